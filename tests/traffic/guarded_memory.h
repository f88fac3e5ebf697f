// SPDX-License-Identifier: Apache-2.0
// Memory of a cache that the test owns: every block of the allocator callbacks stands between bands that
// nobody may write, and its bytes can be looked at.
#pragma once
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "tqkv.h"

namespace tq {
namespace traffic {

class GuardedMemory {
 public:
  struct Block {
    uint8_t* data;
    size_t bytes;
  };

  // fill: what new memory holds.
  explicit GuardedMemory(uint8_t fill = 0xA5) : fill_(fill) {
    allocator_ = {};
    allocator_.struct_size = sizeof allocator_;
    allocator_.user = this;
    allocator_.alloc = [](void* self, size_t bytes, size_t, int32_t, int32_t) {
      return static_cast<GuardedMemory*>(self)->take(bytes);
    };
    allocator_.free = [](void* self, void* pointer, size_t bytes, int32_t, int32_t) {
      static_cast<GuardedMemory*>(self)->give(pointer, bytes);
    };
  }
  const tq_allocator* allocator() const { return &allocator_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  // The blocks that hold tokens: all pages, and the pool of exact copies.
  std::vector<Block> token_blocks(const tq_cache_config& config) const {
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    tq_cache_config_bytes(&config, &bytes);
    std::vector<Block> found;
    for (const Block& block : blocks_)
      if (block.bytes == static_cast<size_t>(bytes.page_bytes) ||
          block.bytes == static_cast<size_t>(bytes.raw_bytes))
        found.push_back(block);
    return found;
  }
  // Whether all bands, those of blocks given back included, are as they were.
  bool intact() const {
    bool good = broken_ == 0;
    for (const Block& block : blocks_) good &= bands_of(block);
    return good;
  }

 private:
  static constexpr size_t kBand = 4096;
  static constexpr uint8_t kMark = 0x5C;

  void* take(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kBand, bytes + 2 * kBand) != 0) return nullptr;
    uint8_t* const start = static_cast<uint8_t*>(memory);
    memset(start, kMark, bytes + 2 * kBand);
    memset(start + kBand, fill_, bytes);
    blocks_.push_back(Block{start + kBand, bytes});
    return start + kBand;
  }
  void give(void* pointer, size_t bytes) {
    const auto found = std::find_if(blocks_.begin(), blocks_.end(),
                                    [&](const Block& block) { return block.data == pointer; });
    if (found == blocks_.end() || found->bytes != bytes) {
      broken_++;
      return;
    }
    broken_ += !bands_of(*found);
    free(found->data - kBand);
    blocks_.erase(found);
  }
  static bool bands_of(const Block& block) {
    const auto marked = [](const uint8_t* at) {
      return std::all_of(at, at + kBand, [](uint8_t x) { return x == kMark; });
    };
    return marked(block.data - kBand) && marked(block.data + block.bytes);
  }

  const uint8_t fill_;
  tq_allocator allocator_;
  std::vector<Block> blocks_;
  int64_t broken_ = 0;
};

}  // namespace traffic
}  // namespace tq
