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
  over_link_ = reached.over_link;
  if (reached.at) {
    next_ = reached.at;
    return;
  }
  capacity_ = std::min(bytes, kStagingBytes);
  staging_ = backend.take_staging(capacity_);
  if (out) room_ = capacity_;
}

PartWay::~PartWay() {
  if (!staging_) return;
  memset(staging_, 0, static_cast<size_t>(capacity_));  // tokens went through it
  backend_.give_staging(staging_, capacity_);
}

int64_t PartWay::room(int64_t least) {
  if (!staging_) return left_ - used_;
  if (room_ - used_ < least) turn();
  return room_ - used_;
}

// What was gathered goes on, or the next bytes come.
void PartWay::turn() {
  if (out_) carry(next_, staging_, used_);
  next_ += used_, left_ -= used_, used_ = 0;
  room_ = std::min(capacity_, left_);
  if (!out_) carry(staging_, next_, room_);
}

void PartWay::carry(uint8_t* to, const uint8_t* from, int64_t bytes) {
  backend_.wait(stream_);  // what was moved out is there; what came in is not read any more
  memcpy(to, from, static_cast<size_t>(bytes));
}

void PartWay::end() {
  if (!staging_) return;
  if (out_ && used_ > 0) carry(next_, staging_, used_);
  if (!out_) backend_.wait(stream_);
}

}  // namespace tq
