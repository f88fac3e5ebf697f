// SPDX-License-Identifier: Apache-2.0
// How the bytes of a part come from pages to memory of the caller's, and back: straight, where moves reach
// that memory; through memory of the device and over its link by one large copy at a time, in stream order;
// or through staging memory of the host, and then the host waits.
//
// Many small copies over a link take it a fraction of its rate, and a kernel that writes to the host's memory
// holds units that attention waits for: so tiles are gathered first (cuda/DESIGN.md has the figures).
#pragma once
#include "backend.h"

namespace tq {

constexpr int64_t kStagingBytes = 4 << 20;

class PartWay {
 public:
  // out: from pages to `memory`, else the other way; of a part of `bytes`.
  PartWay(Backend& backend, bool out, const void* memory, int64_t bytes, void* stream);
  ~PartWay();
  PartWay(const PartWay&) = delete;
  PartWay& operator=(const PartWay&) = delete;

  // Bytes that may be moved to (out) or from at(), at least `least` of them.
  int64_t room(int64_t least);
  uint8_t* at() const { return between_ ? between_ + used_ : next_; }
  // So many have been moved from there on, or are not wanted.
  void pass(int64_t bytes) { (between_ ? used_ : passed_) += bytes, next_ += between_ ? 0 : bytes; }
  // All is on its way.
  void end();

 private:
  enum class Kind { kStraight, kLink, kStaged };

  void turn();
  void carry(uint8_t* to, const uint8_t* from, int64_t bytes);

  Backend& backend_;
  const bool out_;
  Kind kind_ = Kind::kStraight;
  uint8_t* next_;               // of the caller's memory: what has not been carried yet
  uint8_t* between_ = nullptr;  // what the bytes pass through
  int64_t capacity_ = 0, room_ = 0, used_ = 0, left_, passed_ = 0;
  void* const stream_;
  bool ended_ = false;
};

}  // namespace tq
