// SPDX-License-Identifier: Apache-2.0
// See page_memory.h. A cache that may grow has its layers as far apart as they can ever need, each layer's
// memory in whole pieces of the system's.
#include "cpu/page_memory.h"

#include "host_block.h"

namespace tq {
namespace cpu {
namespace {

constexpr char kWhat[] = "max_tokens: pages";

int64_t whole_pieces(int64_t bytes) {
  const int64_t piece = memory_granularity();
  return checked_add(bytes, piece - 1, kWhat) / piece * piece;
}

int64_t bytes_of(const Geometry& g, int layer, int64_t num_pages) {
  const int64_t bytes = checked_mul(num_pages, g.own_page_bytes(layer), kWhat);
  return g.may_grow() ? whole_pieces(bytes) : bytes;
}

}  // namespace

Block::Block(const HostOps& ops, int64_t bytes, const char* what)
    : ops_(ops), bytes_(bytes), pointer_(nullptr) {
  if (bytes == 0) return;
  pointer_ = static_cast<uint8_t*>(allocate(ops, bytes, kBlockAlignment, 1, 0, what));
}
Block::~Block() {
  if (pointer_) ops_.free(ops_.user, pointer_, static_cast<size_t>(bytes_), 1, 0);
}

int64_t PageMemory::layer_bytes(const Geometry& g, int layer) {
  return bytes_of(g, layer, g.group_of(layer).num_pages);
}

int64_t PageMemory::bytes(const Geometry& g) {
  int64_t total = 0;
  for (int i = 0; i < g.num_layers; i++) total = checked_add(total, layer_bytes(g, i), kWhat);
  return total;
}

PageMemory::PageMemory(const Geometry& g, const HostOps& ops, void* pool) {
  int64_t total = 0;
  for (int i = 0; i < g.num_layers; i++) {
    offsets_.push_back(total);
    total = checked_add(total, bytes_of(g, i, g.group_of(i).most_pages()), kWhat);
  }
  if (!g.may_grow()) {
    if (!pool) block_ = std::make_unique<Block>(ops, total, kWhat);
    base_ = pool ? static_cast<uint8_t*>(pool) : block_->get();
    return;
  }
  space_ = std::make_unique<ReservedSpace>(total, "max_reserve_tokens: pages");
  base_ = space_->get();
  for (int i = 0; i < g.num_layers; i++) space_->commit(offsets_[static_cast<size_t>(i)], layer_bytes(g, i));
}

void PageMemory::grow(const Geometry& from, const Geometry& to) {
  const auto piece = [&](int i, auto&& use) {
    const int64_t before = layer_bytes(from, i), after = layer_bytes(to, i);
    if (after > before) use(offsets_[static_cast<size_t>(i)] + before, after - before);
  };
  int done = 0;
  try {
    for (; done < to.num_layers; done++)
      piece(done, [&](int64_t offset, int64_t bytes) { space_->commit(offset, bytes); });
  } catch (...) {
    while (--done >= 0) piece(done, [&](int64_t offset, int64_t bytes) { space_->decommit(offset, bytes); });
    throw;
  }
}

}  // namespace cpu
}  // namespace tq
