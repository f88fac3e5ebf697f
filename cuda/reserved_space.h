// SPDX-License-Identifier: Apache-2.0
// Device addresses without memory, which get memory piece by piece and never move: pools of pages that grow
// (tq_cache_reserve) under graphs that hold their addresses. Virtual memory management of the driver.
#pragma once
#include <vector>

#include "cuda/runtime.h"

namespace tq {
namespace cuda {

// Whether the device and its driver can do it.
bool may_reserve(int device);
// Pieces start and end at multiples of it.
int64_t memory_granularity(int device);

class ReservedSpace {
 public:
  ReservedSpace() = default;
  // bytes: a multiple of the granularity
  ReservedSpace(int device, int64_t bytes);
  ~ReservedSpace();
  ReservedSpace(ReservedSpace&& other) noexcept { swap(other); }
  ReservedSpace& operator=(ReservedSpace&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() const { return reinterpret_cast<uint8_t*>(address_); }
  // Pieces with memory so far; later ones are taken back by unmap_since.
  size_t num_pieces() const { return pieces_.size(); }
  // Gives a piece memory, which the device alone can access; what it holds is not defined. Throws, nothing
  // changed.
  void map(int64_t offset, int64_t bytes);
  void unmap_since(size_t num_pieces) noexcept;

 private:
  struct Piece {
    CUdeviceptr address;
    size_t bytes;
  };
  void swap(ReservedSpace& other) noexcept;

  int device_ = 0;
  CUdeviceptr address_ = 0;
  size_t bytes_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace cuda
}  // namespace tq
