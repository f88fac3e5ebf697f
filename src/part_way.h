// SPDX-License-Identifier: Apache-2.0
// How the bytes of a part come from pages to memory of the caller's, and back: straight, where moves reach
// that memory, in stream order; or through staging memory of the host, and then the host waits.
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
  uint8_t* at() const { return staging_ ? staging_ + used_ : next_ + used_; }
  // For the moves' over_link.
  bool over_link() const { return over_link_; }
  // So many have been moved from there on, or are not wanted.
  void pass(int64_t bytes) { used_ += bytes; }
  // All is there, or enqueued.
  void end();

 private:
  void turn();
  void carry(uint8_t* to, const uint8_t* from, int64_t bytes);

  Backend& backend_;
  const bool out_;
  bool over_link_ = false;
  uint8_t* next_;               // of the caller's memory: what has not been carried yet
  uint8_t* staging_ = nullptr;  // if the bytes pass through some
  int64_t capacity_ = 0, room_ = 0, used_ = 0, left_;
  void* const stream_;
};

}  // namespace tq
