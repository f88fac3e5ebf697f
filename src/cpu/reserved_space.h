// SPDX-License-Identifier: Apache-2.0
// Addresses without memory, which get memory piece by piece and never move: pools of pages that grow
// (tq_cache_reserve). Anonymous private mappings, so that a process that fork() made has its own copy.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace tq {
namespace cpu {

// Pieces start and end at multiples of it.
int64_t memory_granularity();

class ReservedSpace {
 public:
  // what: the field that errors name. Throws kOutOfMemory.
  ReservedSpace(int64_t bytes, const char* what);
  ~ReservedSpace();
  ReservedSpace(const ReservedSpace&) = delete;
  ReservedSpace& operator=(const ReservedSpace&) = delete;

  uint8_t* get() const { return addresses_; }
  // Gives a piece zeroed memory; kOutOfMemory, nothing changed, if there is none.
  void commit(int64_t offset, int64_t bytes);
  // Takes it back.
  void decommit(int64_t offset, int64_t bytes) noexcept;

 private:
  uint8_t* addresses_;
  int64_t bytes_;
  const char* what_;
};

}  // namespace cpu
}  // namespace tq
