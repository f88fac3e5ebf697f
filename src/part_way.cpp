// SPDX-License-Identifier: Apache-2.0
// Bytes of parts between pages and a caller's memory; see part_way.h.
#include "part_way.h"

#include <string.h>

#include <algorithm>

namespace tq {

PartWay::PartWay(Backend& backend, bool out, const void* memory, int64_t bytes, void* stream)
    : backend_(backend),
      out_(out),
      next_(const_cast<uint8_t*>(static_cast<const uint8_t*>(memory))),
      left_(bytes),
      stream_(stream) {
  if (bytes == 0) return;
  const ReachedMemory reached = backend.reach(memory, bytes);
  if (reached.at) next_ = reached.at;
  if (reached.at && !reached.over_link) return;
  kind_ = reached.at ? Kind::kLink : Kind::kStaged;
  if (reached.at) {
    const LinkMemory link = backend.take_link(stream);
    between_ = link.at, capacity_ = link.bytes;
  } else {
    capacity_ = std::min(bytes, kStagingBytes);
    between_ = backend.take_staging(capacity_);
  }
  if (out) room_ = std::min(capacity_, left_);
}

PartWay::~PartWay() {
  if (kind_ == Kind::kLink) backend_.give_link(stream_, !ended_);
  if (kind_ == Kind::kStaged) backend_.give_staging(between_, capacity_);
}

int64_t PartWay::room(int64_t least) {
  if (!between_) return left_ - passed_;
  if (room_ - used_ < least) turn();
  return room_ - used_;
}

// What was gathered goes on, or the next bytes come.
void PartWay::turn() {
  if (out_) carry(next_, between_, used_);
  next_ += used_, left_ -= used_, used_ = 0;
  room_ = std::min(capacity_, left_);
  if (!out_) carry(between_, next_, room_);
}

void PartWay::carry(uint8_t* to, const uint8_t* from, int64_t bytes) {
  if (kind_ == Kind::kLink) {
    backend_.copy_over_link(to, from, bytes, stream_);
    return;
  }
  backend_.wait(stream_);  // what was moved out is there; what came in is not read any more
  memcpy(to, from, static_cast<size_t>(bytes));
}

void PartWay::end() {
  if (between_ && out_ && used_ > 0) carry(next_, between_, used_);
  if (kind_ == Kind::kStaged && !out_) backend_.wait(stream_);
  ended_ = true;
}

}  // namespace tq
