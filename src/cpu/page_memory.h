// SPDX-License-Identifier: Apache-2.0
// The memory of the pages of all layers: one block from HostOps, the caller's pool, or, for a cache that may
// grow, reserved addresses of which each layer's pages in use have memory. Pages never move.
#pragma once
#include <memory>
#include <vector>

#include "cpu/reserved_space.h"
#include "host_ops.h"
#include "requests.h"

namespace tq {
namespace cpu {

constexpr size_t kBlockAlignment = 256;

class Block {
 public:
  Block(const HostOps& ops, int64_t bytes, const char* what);  // what: the field that the error names
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  uint8_t* get() const { return pointer_; }
  int64_t bytes() const { return bytes_; }

 private:
  HostOps ops_;
  int64_t bytes_;
  uint8_t* pointer_;
};

class PageMemory {
 public:
  PageMemory(const Geometry& geometry, const HostOps& ops, void* pool);

  // What is allocated (of a pool: what is used) for the pages that the geometry has now.
  static int64_t bytes(const Geometry& geometry);

  // Of one layer, with what its last piece of memory has beyond them.
  static int64_t layer_bytes(const Geometry& geometry, int layer);

  // First page of a layer.
  uint8_t* layer(int index) const { return base_ + offsets_[static_cast<size_t>(index)]; }
  // Memory for more pages, from one number of them to a larger one; kOutOfMemory, nothing changed.
  void grow(const Geometry& from, const Geometry& to);

 private:
  std::unique_ptr<Block> block_;
  std::unique_ptr<ReservedSpace> space_;
  uint8_t* base_;
  std::vector<int64_t> offsets_;  // [num_layers]
};

}  // namespace cpu
}  // namespace tq
