// SPDX-License-Identifier: Apache-2.0
// Calls on a codec to requests; see paged.h.
#include "paged.h"

#include <stdio.h>
#include <string.h>

#include "identity.h"
#include "side_centres.h"
#include "struct_size.h"
#include "tensor_check.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr int32_t kMaxBlockSize = 1 << 20;
constexpr int64_t kMaxStepTokens = 1 << 30;
constexpr int64_t kAlignment = 64;  // of tiles: a vector register of the widest CPU, half a line of a GPU

long long ll(int64_t x) { return static_cast<long long>(x); }

// Fields that say how many tokens there are: a codec knows of none.
struct Count {
  const char* name;
  int64_t value;
};

// The caller's configuration with room for one page, which the resolver asks for. Throws with all reasons at
// once, the resolver's too.
tq_cache_config stated_config(const tq_cache_config* caller) {
  tq_cache_config c = read_struct(caller, "config");
  ReasonList reasons;
  for (const Count& exact : {Count{"window_tokens", c.window_tokens}, Count{"sink_tokens", c.sink_tokens},
                             Count{"rollback_tokens", c.rollback_tokens}})
    if (exact.value != 0)
      reasons.add(
          Status::kNotSupported,
          "%s = %lld: pages of the caller's have no room for exact copies; give layers that need them "
          "16 bits",
          exact.name, ll(exact.value));
  for (const Count& count :
       {Count{"max_tokens", c.max_tokens}, Count{"max_reserve_tokens", c.max_reserve_tokens},
        Count{"max_sequence_tokens", c.max_sequence_tokens}, Count{"max_sequences", c.max_sequences},
        Count{"max_batch_sequences", c.max_batch_sequences}, Count{"max_batch_tokens", c.max_batch_tokens},
        Count{"max_raw_tokens", c.max_raw_tokens}, Count{"pool_bytes", c.pool_bytes}})
    if (count.value != 0)
      reasons.add(kBad, "%s = %lld: must be 0, a codec has neither pages nor sequences", count.name,
                  ll(count.value));
  if (c.flags & TQ_FLAG_EXACT_CHUNK)
    reasons.add(Status::kNotSupported, "flags = 0x%llx: TQ_FLAG_EXACT_CHUNK: of caches alone",
                static_cast<unsigned long long>(c.flags));
  if (c.pool) reasons.add(kBad, "pool = %p: must be NULL, a codec has no pages", c.pool);
  c.window_tokens = c.sink_tokens = c.rollback_tokens = 0;
  c.max_reserve_tokens = c.max_sequence_tokens = c.max_batch_tokens = c.max_raw_tokens = c.pool_bytes = 0;
  c.max_sequences = c.max_batch_sequences = 0;
  c.pool = nullptr;
  c.max_tokens = format::kTileTokens;
  if (reasons.empty()) return c;
  try {
    const ResolvedConfig others(&c);
  } catch (const Error& error) {
    reasons.add(error.status(), "%s", error.what());
  }
  throw Error(reasons.status(), "%s", reasons.text());
}

Geometry without_pages(const Geometry& geometry) {
  Geometry g = geometry;
  for (PageGroup& group : g.groups) group.num_pages = group.reserve_pages = 0;
  return g;
}

void check_step(const PagedStep& step) {
  TQ_CHECK(step.num_reqs >= 0, kBad, "step.num_reqs = %d: must be 0 or more", step.num_reqs);
  TQ_CHECK(step.num_tokens >= 0 && step.num_tokens < kMaxStepTokens, kBad,
           "step.num_tokens = %lld: must be 0 .. 2^30 - 1", ll(step.num_tokens));
  TQ_CHECK(step.max_query_len >= 0, kBad, "step.max_query_len = %d: must be 0 or more", step.max_query_len);
  TQ_CHECK(step.max_seq_len >= 0, kBad, "step.max_seq_len = %d: must be 0 or more", step.max_seq_len);
}

}  // namespace

Codec::Codec(const tq_cache_config* config, void* stream)
    : stated_(stated_config(config)),
      config_(&stated_),
      geometry_(without_pages(config_.geometry())),
      centres_(config_.host_ops(),
               geometry_.centre_floats(geometry_.num_layers) * static_cast<int64_t>(sizeof(float)),
               "centres"),
      gate_("codec", config_.device() == DeviceType::kCuda) {
  check_stream(stream);
  memset(centres_.get(), 0,
         sizeof(float) * static_cast<size_t>(geometry_.centre_floats(geometry_.num_layers)));
  backend_ = create_paged_backend(config_.device(), geometry_, config_.backend_ops(), stream);
}

void Codec::destroy(Codec* codec) {
  { const Gate::Use use(codec->gate_, true); }
  delete codec;
}

tq_cache_config Codec::config() const {
  tq_cache_config c = config_.config();
  c.max_tokens = c.max_reserve_tokens = c.max_sequence_tokens = c.max_batch_tokens = c.max_raw_tokens = 0;
  c.max_sequences = c.max_batch_sequences = 0;
  return c;
}

const LayerGeometry& Codec::layer(int32_t layer) const {
  TQ_CHECK(layer >= 0 && layer < geometry_.num_layers, kBad, "layer = %d: must be 0 .. %d", layer,
           geometry_.num_layers - 1);
  return geometry_.layers[layer];
}

void Codec::check_stream(const void* stream) const {
  TQ_CHECK(!stream || config_.device() != DeviceType::kCpu, kBad, "stream = %p: must be NULL for a CPU codec",
           stream);
}

void Codec::set_centres(int32_t layer, const float* key, const float* value) {
  const Gate::Use use(gate_, true);
  const LayerGeometry& l = this->layer(layer);
  check_stores(geometry_, layer);
  const SideCentres centres(l, layer, key, value);
  if (!centres.key() && !centres.value()) return;
  geometry_.for_each_reader(layer, [&](int i) { backend_->set_centres(i, centres.key(), centres.value()); });
  keep_centres(l, centres.key(), centres.value(),
               static_cast<float*>(centres_.get()) + geometry_.centre_floats(layer));
}

uint64_t Codec::fingerprint() const {
  const Gate::Use use(gate_, false);
  return fingerprint_of(Identity{&geometry_, static_cast<const float*>(centres_.get())});
}

uint64_t Codec::check(const void* stream) {
  const Gate::Use use(gate_, true);
  check_stream(stream);
  return backend_->check(const_cast<void*>(stream));
}

// ---- Pages ----

int32_t Codec::resolved_block_size(int32_t block_size, const char* name) const {
  if (block_size == 0) return geometry_.page_size;
  TQ_CHECK(block_size > 0 && block_size <= kMaxBlockSize && block_size % format::kTileTokens == 0, kBad,
           "%s = %d: must be 0 (page_size) or a multiple of %d up to %d", name, block_size,
           format::kTileTokens, kMaxBlockSize);
  return block_size;
}

tq_page_layout Codec::page_layout(int32_t layer, int32_t block_size, int64_t num_blocks,
                                  tq_page_order order) const {
  const LayerGeometry& l = this->layer(layer);
  TQ_CHECK(order == TQ_PAGES_BLOCKS_FIRST || order == TQ_PAGES_HEADS_FIRST, kBad,
           "order = %d: must be TQ_PAGES_BLOCKS_FIRST (1) or TQ_PAGES_HEADS_FIRST (2)", order);
  TQ_CHECK(num_blocks >= 0, kBad, "num_blocks = %lld: must be 0 or more", ll(num_blocks));
  const int32_t size = resolved_block_size(block_size, "block_size");
  tq_page_layout layout = {};
  layout.alignment = kAlignment;
  layout.block_head_bytes =
      static_cast<int64_t>(size / format::kTileTokens) * geometry_.tile(layer).tile_bytes();
  layout.block_bytes = layout.block_head_bytes * l.num_kv_heads;
  layout.token_bytes = layout.block_bytes / size;
  const bool blocks_first = order == TQ_PAGES_BLOCKS_FIRST;
  layout.total_bytes = checked_mul(layout.block_bytes, num_blocks, "num_blocks");
  layout.block_stride = blocks_first ? layout.block_bytes : layout.block_head_bytes;
  layout.head_stride = blocks_first ? layout.block_head_bytes : layout.block_head_bytes * num_blocks;
  return layout;
}

PagePool Codec::pool(int32_t layer, const tq_pages* caller, const char* name) const {
  tq_pages p = read_struct(caller, name);
  char field[48];
  snprintf(field, sizeof field, "%s.block_size", name);
  const int32_t size = resolved_block_size(p.block_size, field);
  TQ_CHECK(p.num_blocks >= 0 && p.num_blocks <= INT32_MAX, kBad,
           "%s.num_blocks = %lld: must be 0 .. 2^31 - 1", name, ll(p.num_blocks));
  const tq_page_layout dense = page_layout(layer, size, p.num_blocks, TQ_PAGES_BLOCKS_FIRST);
  if (p.block_stride == 0 && p.head_stride == 0) {
    p.block_stride = dense.block_stride;
    p.head_stride = dense.head_stride;
  }
  TQ_CHECK(p.base || p.num_blocks == 0, kBad, "%s.base = NULL: num_blocks = %lld", name, ll(p.num_blocks));
  TQ_CHECK(reinterpret_cast<uintptr_t>(p.base) % kAlignment == 0 && p.block_stride % kAlignment == 0 &&
               p.head_stride % kAlignment == 0,
           kBad, "%s.base = %p, block_stride = %lld, head_stride = %lld: must be multiples of %lld", name,
           p.base, ll(p.block_stride), ll(p.head_stride), ll(kAlignment));
  // Heads lie inside blocks, or blocks inside heads; of one alone the stride does not matter.
  const int64_t heads = this->layer(layer).num_kv_heads, bytes = dense.block_head_bytes;
  int64_t all_heads, all_blocks, extent;
  const bool sane = p.block_stride >= 0 && p.head_stride >= 0 &&
                    strided_extent(heads, p.head_stride, bytes, &all_heads) &&
                    strided_extent(p.num_blocks, p.block_stride, bytes, &all_blocks) &&
                    strided_extent(p.num_blocks, p.block_stride, all_heads, &extent);
  TQ_CHECK(
      sane && (heads == 1 || p.head_stride >= bytes) && (p.num_blocks <= 1 || p.block_stride >= bytes) &&
          (heads == 1 || p.num_blocks <= 1 || p.block_stride >= all_heads || p.head_stride >= all_blocks),
      kBad,
      "%s.block_stride = %lld, head_stride = %lld: %lld blocks of %lld heads of %lld bytes overlap, or pass "
      "the address space",
      name, ll(p.block_stride), ll(p.head_stride), ll(p.num_blocks), ll(heads), ll(bytes));
  return PagePool{{static_cast<uint8_t*>(p.base), p.block_stride, p.head_stride,
                   geometry_.tile(layer).tile_bytes(), size / format::kTileTokens},
                  p.num_blocks};
}

// ---- Steps ----

size_t Codec::workspace_bytes(const PagedStep& bounds) const {
  check_step(bounds);
  return static_cast<size_t>(backend_->workspace_bytes(bounds));
}

void Codec::check_workspace_of(const PlannedStep& step) const {
  check_step(*step.step);
  TQ_CHECK(step.workspace, kBad, "workspace = NULL");
  check_workspace(step.workspace, step.workspace_bytes,
                  static_cast<size_t>(backend_->workspace_bytes(*step.step)), "tq_paged_workspace_bytes");
}

void Codec::plan(const PlannedStep& step, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_workspace_of(step);
  const PagedStep& s = *step.step;
  TQ_CHECK(!s.seq_lens == !s.query_start_loc, kBad,
           "step.seq_lens = %p, step.query_start_loc = %p: both or neither",
           static_cast<const void*>(s.seq_lens), static_cast<const void*>(s.query_start_loc));
  check_pointer("step.slot_mapping", s.slot_mapping, false, s.num_tokens, sizeof(int64_t));
  check_pointer("step.seq_lens", s.seq_lens, false, s.num_tokens, sizeof(int32_t));
  check_pointer("step.query_start_loc", s.query_start_loc, false, s.num_tokens, sizeof(int32_t));
  backend_->plan(step, stream);
}

void Codec::append(const PlannedStep& step, const tq_pages* pages, const AppendRequest& request) const {
  const Gate::Use use(gate_, false);
  const LayerGeometry& l = layer(request.layer);
  check_stores(geometry_, request.layer);
  check_stream(request.stream);
  check_workspace_of(step);
  TQ_CHECK(step.step->slot_mapping || step.step->num_tokens == 0, kBad,
           "step.slot_mapping = NULL: append writes %lld tokens to slots", ll(step.step->num_tokens));
  check_append_tensors(l, geometry_.io_dtype, step.step->num_tokens, request);
  backend_->append(step, pool(request.layer, pages, "pages"), request);
}

void Codec::attend(const PlannedStep& step, const tq_pages* pages, const AttendRequest& request) const {
  const Gate::Use use(gate_, false);
  const LayerGeometry& l = layer(request.layer);
  check_stream(request.stream);
  check_workspace_of(step);
  const PagedStep& s = *step.step;
  TQ_CHECK(s.seq_lens || s.num_tokens == 0, kBad,
           "step.seq_lens = NULL: attend computes %lld rows of requests", ll(s.num_tokens));
  TQ_CHECK(s.block_table || s.num_tokens == 0, kBad, "step.block_table = NULL: attend computes %lld rows",
           ll(s.num_tokens));
  check_pointer("step.block_table", s.block_table, false, s.num_tokens, sizeof(int32_t));
  check_attend_tensors(l, geometry_.io_dtype, s.num_tokens, request);
  TQ_CHECK(!request.tree_mask || s.max_query_len <= 64 * request.tree_words, kBad,
           "step.max_query_len = %d: a tree_mask of %d bits", s.max_query_len, 64 * request.tree_words);
  const PagePool pool = this->pool(request.layer, pages, "pages");
  TQ_CHECK(s.block_table_stride >= 0 &&
               (s.num_tokens == 0 ||
                s.block_table_stride >= (s.max_seq_len + pool.block_size() - 1) / pool.block_size()),
           kBad, "step.block_table_stride = %lld: max_seq_len = %d needs %lld blocks of %lld tokens",
           ll(s.block_table_stride), s.max_seq_len,
           ll((s.max_seq_len + pool.block_size() - 1) / pool.block_size()), ll(pool.block_size()));
  if (s.num_tokens == 0) return;
  backend_->attend(step, pool, request);
}

void Codec::read(const tq_pages* pages, const SlotsRead& request) const {
  const Gate::Use use(gate_, false);
  const LayerGeometry& l = layer(request.layer);
  check_stream(request.stream);
  TQ_CHECK(request.count >= 0 && request.count < kMaxStepTokens, kBad, "count = %lld: must be 0 .. 2^30 - 1",
           ll(request.count));
  check_pointer("slots", request.slots, request.count > 0, request.count, sizeof(int64_t));
  check_read_tensors(l, geometry_.io_dtype, request.count, request.k, request.v, request.key_strides,
                     request.value_strides);
  backend_->read(pool(request.layer, pages, "pages"), request);
}

void Codec::copy(int32_t layer, const tq_pages* source, const tq_pages* target, const int64_t* pairs,
                 int64_t count, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  const PagePool from = pool(layer, source, "source"), to = pool(layer, target, "target");
  TQ_CHECK(from.block_size() == to.block_size(), kBad,
           "source.block_size = %lld, target.block_size = %lld: must be equal", ll(from.block_size()),
           ll(to.block_size()));
  TQ_CHECK(count >= 0 && count < kMaxStepTokens, kBad, "count = %lld: must be 0 .. 2^30 - 1", ll(count));
  check_pointer("pairs", pairs, count > 0, count, sizeof(int64_t));
  backend_->copy(from, to, this->layer(layer).num_kv_heads, pairs, count, stream);
}

}  // namespace tq
