// SPDX-License-Identifier: Apache-2.0
// See launch_wide.h: the workspace and the shared memory of the wide way, and the choice of it.
#include "cuda/prefill/launch_wide.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "cuda/prefill/instances.h"
#include "cuda/prefill/wide_shape.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::prefill {

// Compiled by the files that instances.txt expands to.
template <int kStored>
void launch_wide_dim(const WideParams& params, int num_ctas, cudaStream_t stream);
template <int kStored>
void launch_any_wide_dim(const WideParams& params, int num_ctas, cudaStream_t stream);

namespace {

// WideShape.
struct CompiledWide {
  int stored;
  int step_tokens, move_steps, least_rows;
  int query_bytes, key_bytes, value_bytes, aside_bytes, step_bytes, state_bytes;
  void (*launch)(const WideParams&, int, cudaStream_t);      // of scalar sides
  void (*launch_any)(const WideParams&, int, cudaStream_t);  // of trellis ones, of keys in bands
};
template <int kStored>
constexpr CompiledWide compiled_wide() {
  using Shape = WideShape<kStored>;
  return CompiledWide{kStored,
                      Shape::kTokens,
                      WideTuning::kMoveTokens / Shape::kTokens,
                      Shape::kLeastRows,
                      Shape::kQueryBytes,
                      Shape::kKeyBytes,
                      Shape::kValueBytes,
                      Shape::kAsideBytes,
                      Shape::kStepBytes,
                      Shape::kStateBytes,
                      launch_wide_dim<kStored>,
                      launch_any_wide_dim<kStored>};
}
template <size_t... kAt>
constexpr std::array<CompiledWide, sizeof...(kAt)> compiled_wides(std::index_sequence<kAt...>) {
  return {{compiled_wide<kWideInstances[kAt].stored>()...}};
}
constexpr auto kCompiledWides = compiled_wides(std::make_index_sequence<std::size(kWideInstances)>());
static_assert(std::size(kWideInstances) == std::size(kAnyWideInstances), "the same dimensions");

WideSmem cut_smem(const CompiledWide& shape, int limit) {
  const auto up = [](int x) { return (x + 1023) / 1024 * 1024; };
  WideSmem s = {};
  s.factors_at = kWideHeadBytes;
  s.query_at = up(s.factors_at + 2 * static_cast<int>(sizeof(WideFactors)));
  s.keys_at = s.query_at + shape.query_bytes;
  s.values_at = s.keys_at + 2 * shape.key_bytes;
  s.aside_at = s.values_at + 2 * shape.value_bytes;
  s.total_bytes = s.aside_at + shape.aside_bytes;
  if (s.total_bytes > limit) s.total_bytes = s.aside_at, s.aside_at = -1;
  return s;
}

// null: the wide way does not serve such layers.
const CompiledWide* find_wide(const format::TileLayout& tile, int limit, WideSmem* smem) {
  if (!has_warpgroups() || tile.key.dim != tile.value.dim) return nullptr;
  for (const format::SideLayout* side : {&tile.key, &tile.value})
    if (!side->code().has_kernels() && !side->banded()) return nullptr;
  for (const CompiledWide& row : kCompiledWides) {
    if (row.stored != format::stored_dim(tile.key.dim)) continue;
    *smem = cut_smem(row, limit);
    return smem->total_bytes <= limit ? &row : nullptr;
  }
  return nullptr;
}

// Tokens of all kv heads that half of the images hold at most: 34 MB at head_dim 128.
constexpr int64_t kWideTokens = 65536;

// total 0: no plan has such rows.
WidePlaces cut_workspace(const CompiledWide& shape, const WideSmem& smem, int64_t num_kv_heads,
                         int64_t q_per_kv, const WideBounds& bounds, int num_ctas) {
  WidePlaces places = {};
  const int64_t rows = bounds.query_tokens * q_per_kv;
  places.least_rows = bounds.least_rows > 0 ? bounds.least_rows : shape.least_rows;
  if (bounds.sequence_queries * q_per_kv < places.least_rows) return places;
  const auto take = [&](int64_t bytes) {
    const int64_t at = places.total;
    places.total += (bytes + 1023) / 1024 * 1024;
    return at;
  };
  // Each sequence may have one block that is not full.
  places.blocks = num_kv_heads * (rows / kPrefillRows + rows / places.least_rows);
  const int64_t most = bounds.most_tokens > 0 ? bounds.most_tokens : kWideTokens,
                wanted = num_kv_heads * ((bounds.longest + shape.step_tokens - 1) / shape.step_tokens),
                room = std::max<int64_t>(most / shape.step_tokens, shape.move_steps);
  places.steps = static_cast<int32_t>(std::max<int64_t>(std::min(wanted, room), 1));
  places.capacity = wanted > room ? kWideStates : 0;
  places.counters = take(sizeof(WideCounters));
  places.rows = take(places.blocks * kPrefillRows * static_cast<int64_t>(sizeof(WideRow)));
  places.queries = take(places.blocks * shape.query_bytes);
  places.states = take(2 * static_cast<int64_t>(places.capacity) * shape.state_bytes);
  places.aside = take(smem.aside_at < 0 ? static_cast<int64_t>(num_ctas) * shape.aside_bytes : 0);
  places.images = take(2 * static_cast<int64_t>(places.steps) * shape.step_bytes);
  return places;
}

bool is_plain(const PrefillParams& p) {
  return !p.call.visible_begin && !p.call.alibi_slopes && !p.call.tree_mask &&
         p.numbers.softcap_log2 == 0.0f && p.numbers.sliding_window == INT32_MAX && !p.layer.key.raw &&
         p.layer.window_tokens + p.layer.sink_tokens == 0;
}

}  // namespace

int64_t wide_workspace_bytes(const Geometry& geometry, int layer, const WideBounds& bounds, int num_ctas,
                             int shared_memory_per_block) {
  const LayerGeometry& l = geometry.layers[layer];
  if (l.latent || geometry.has_exact() || geometry.batch_invariant || l.sliding_window > 0) return 0;
  WideSmem smem;
  const CompiledWide* shape = find_wide(geometry.tile(layer), shared_memory_per_block, &smem);
  return shape ? cut_workspace(*shape, smem, l.num_kv_heads, l.q_per_kv, bounds, num_ctas).total : 0;
}

int64_t wide_workspace_bytes(const Geometry& geometry, const WideBounds& bounds, int num_ctas,
                             int shared_memory_per_block) {
  int64_t most = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++)
    most = std::max(most, wide_workspace_bytes(geometry, layer, bounds, num_ctas, shared_memory_per_block));
  return most;
}

int launch_wide(const PrefillParams& params, const RowLaunch& launch, int64_t most_rows,
                const WideSpace& space) {
  const DeviceLayer& layer = launch.layer;
  if (!space.memory || !is_plain(params)) return kNotWide;
  const format::TileLayout tile(layer.key.layout.dim, layer.value.layout.dim, layer.key.layout.code(),
                                layer.value.layout.code());
  WideParams p(params);
  const CompiledWide* shape = find_wide(tile, launch.shared_memory_per_block, &p.cut);
  if (!shape) return kNotWide;
  p.places = cut_workspace(*shape, p.cut, layer.num_kv_heads, layer.q_per_kv, space.bounds, launch.num_ctas);
  if (p.places.total == 0) return kNotWide;
  p.workspace = space.memory;
  const bool scalar = has_book(tile.key) && has_book(tile.value);
  if (most_rows >= p.places.least_rows)
    (space.kernels ? space.kernels
     : scalar      ? shape->launch
                   : shape->launch_any)(p, launch.num_ctas, launch.stream);
  return p.places.least_rows;
}

}  // namespace tq::cuda::prefill
