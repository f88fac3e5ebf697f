// SPDX-License-Identifier: Apache-2.0
// Parameters and shared memory of a prefill kernel, and the choice among the compiled ones.
#include "cuda/prefill/launch.h"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <iterator>
#include <utility>

#include "cuda/code/trellis_tables.h"
#include "cuda/prefill/group_shape.cuh"
#include "cuda/prefill/instances.h"
#include "cuda/runtime.h"
#include "softmax_state.h"

namespace tq::cuda::prefill {

// Compiled by the files that instances.txt expands to.
template <int kStored>
void launch_prefill_dim(const PrefillParams& params, int num_ctas, cudaStream_t stream);
template <int kKeys, int kValues>
void launch_group_dim(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream);
template <int kKeys, int kValues>
void launch_any_group_dim(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream);

namespace {

struct Compiled {
  int stored;
  int tiles, key_tile, value_tile, raw_tile, query_warp;  // PrefillShape
  bool query_in_registers;                                // of coded layers
  void (*launch)(const PrefillParams&, int, cudaStream_t);
};

template <int kStored>
constexpr Compiled compiled() {
  using Shape = PrefillShape<kStored>;
  return Compiled{kStored,         Shape::kTiles,     Shape::kKeyTile,          Shape::kValueTile,
                  Shape::kRawTile, Shape::kQueryWarp, Shape::kQueryInRegisters, launch_prefill_dim<kStored>};
}
template <size_t... kAt>
constexpr std::array<Compiled, sizeof...(kAt)> compiled_rows(std::index_sequence<kAt...>) {
  return {{compiled<kPrefillInstances[kAt].stored>()...}};
}
constexpr auto kCompiled = compiled_rows(std::make_index_sequence<std::size(kPrefillInstances)>());

// The same of the kernel for warpgroups: GroupShape.
struct CompiledGroup {
  int keys, values;  // stored dimensions
  int step_tiles, query_bytes;
  int key_bytes, value_bytes;                                          // of all buffers
  int exact_query, exact_tile;                                         // RowsBody
  void (*launch)(const PrefillParams&, LongKinds, int, cudaStream_t);  // of scalar sides
  void (*launch_any)(const PrefillParams&, LongKinds, int,
                     cudaStream_t);  // of trellis ones, of keys in bands
};
template <int kKeys, int kValues>
constexpr CompiledGroup compiled_group() {
  using Shape = GroupShape<kKeys, kValues>;
  return CompiledGroup{kKeys,
                       kValues,
                       Shape::kTiles,
                       Shape::kQueryBytes,
                       Shape::kKeyBuffers * Shape::kKeyBytes,
                       Shape::kValueBuffers * Shape::kValueBytes,
                       2 * PrefillShape<kKeys>::kQueryWarp,
                       PrefillShape<(kKeys > kValues ? kKeys : kValues)>::kRawTile,
                       launch_group_dim<kKeys, kValues>,
                       launch_any_group_dim<kKeys, kValues>};
}
template <size_t... kAt>
constexpr std::array<CompiledGroup, sizeof...(kAt)> compiled_groups(std::index_sequence<kAt...>) {
  return {{compiled_group<kGroupInstances[kAt].keys, kGroupInstances[kAt].values>()...}};
}
constexpr auto kCompiledGroups = compiled_groups(std::make_index_sequence<std::size(kGroupInstances)>());
static_assert(std::size(kGroupInstances) == std::size(kAnyGroupInstances), "the same dimensions");

const Compiled* find_compiled(const format::TileLayout& tile) {
  if (tile.key.dim != tile.value.dim || coded_rows(tile.key) || coded_rows(tile.value) ||
      tile.key.code().trellis() || tile.value.code().trellis() || tile.key.banded())
    return nullptr;
  for (const Compiled& row : kCompiled)
    if (row.stored == format::stored_dim(tile.key.dim)) return &row;
  return nullptr;
}

constexpr int kPrefillStages[] = {4, 3, 2};  // tried in this order until the shared memory fits
static_assert(kPrefillStages[0] <= kMaxPrefillStages, "barriers");

PrefillSmem cut_smem(const Compiled& shape, const format::TileLayout& tile, DataType io, bool exact,
                     int stages) {
  const auto up = [](int x) { return (x + 127) / 128 * 128; };
  const bool raw_key = tile.key.raw(), raw = raw_key || tile.value.raw();
  PrefillSmem s = {};
  s.stages = stages;
  s.stage_pitch = up(shape.tiles * tile.tile_bytes());
  s.rows_at = kPrefillHeadBytes;
  s.scales_at = up(s.rows_at + static_cast<int>(sizeof(PrefillRowTable)));
  s.ring_at = up(s.scales_at + 2 * static_cast<int>(sizeof(StepScales)));
  s.query_at = s.ring_at + stages * s.stage_pitch;
  s.query_warp = shape.query_warp * (raw_key && io == DataType::kF32 ? 2 : 1);
  s.key_tile = raw_key ? shape.raw_tile : shape.key_tile;
  s.value_tile = tile.value.raw() ? shape.raw_tile : shape.value_tile;
  const int queries = up(kPrefillWarps * s.query_warp);
  const bool in_registers = !raw && shape.query_in_registers;  // then expanded tiles go over the queries
  s.keys_at = s.query_at + (in_registers ? 0 : queries);
  s.values_at = up(s.keys_at + 2 * shape.tiles * s.key_tile);
  s.total_bytes = std::max(up(s.values_at + 2 * shape.tiles * s.value_tile), s.query_at + queries);
  if (exact) {
    s.exact_query_at = s.query_at;
    s.exact_tile_at = up(s.exact_query_at + kPrefillWarps * 2 * shape.query_warp);
    s.total_bytes = std::max(s.total_bytes, s.exact_tile_at + 2 * shape.raw_tile);
  }
  return s;
}

// total_bytes 0: does not fit.
PrefillSmem fit_smem(const Compiled& shape, const format::TileLayout& tile, DataType io, bool exact,
                     int limit) {
  for (int stages : kPrefillStages) {
    const PrefillSmem s = cut_smem(shape, tile, io, exact, stages);
    if (s.total_bytes <= limit) return s;
  }
  return PrefillSmem{};
}

PrefillSmem cut_group_smem(const CompiledGroup& shape, const format::TileLayout& tile, bool exact,
                           int stages) {
  const auto up = [](int x, int to) { return (x + to - 1) / to * to; };
  PrefillSmem s = {};
  s.stages = stages;
  s.stage_pitch = up(tile.tile_bytes(), 128);
  s.rows_at = kPrefillHeadBytes;
  s.scales_at = up(s.rows_at + static_cast<int>(sizeof(PrefillRowTable)), 128);
  s.query_at = up(s.scales_at + kScaleSlots * static_cast<int>(sizeof(GroupScales)), 1024);
  s.keys_at = s.query_at + shape.query_bytes;
  s.values_at = s.keys_at + shape.key_bytes;
  s.ring_at = s.values_at + shape.value_bytes;
  if (exact) {
    s.exact_query_at = s.query_at;
    s.exact_tile_at = up(s.exact_query_at + kPrefillWarps * shape.exact_query, 128);
    s.ring_at = std::max(s.ring_at, up(s.exact_tile_at + 2 * shape.exact_tile, 128));
  }
  s.total_bytes = s.ring_at + shape.step_tiles * stages * s.stage_pitch;
  return s;
}

// null: the device has no products of warpgroups, the layer no codes that they are written for, or its tiles
// do not fit.
const CompiledGroup* find_group(const format::TileLayout& tile, bool exact, int limit, PrefillSmem* smem) {
  if (!has_warpgroups()) return nullptr;
  for (const format::SideLayout* side : {&tile.key, &tile.value})
    if (!side->code().has_kernels() && !side->banded()) return nullptr;
  for (const CompiledGroup& row : kCompiledGroups) {
    if (row.keys != format::stored_dim(tile.key.dim) || row.values != format::stored_dim(tile.value.dim))
      continue;
    for (int stages = kMaxGroupStages; stages > 0; stages--) {
      *smem = cut_group_smem(row, tile, exact, stages);
      if (smem->total_bytes <= limit) return &row;
    }
  }
  return nullptr;
}

}  // namespace

bool prefill_serves(const Geometry& geometry, int layer, int shared_memory_per_block) {
  const format::TileLayout tile = geometry.tile(layer);
  PrefillSmem smem;
  if (find_group(tile, geometry.has_exact(), shared_memory_per_block, &smem)) return true;
  const Compiled* compiled = find_compiled(tile);
  return compiled &&
         fit_smem(*compiled, tile, geometry.io_dtype, geometry.has_exact(), shared_memory_per_block)
                 .total_bytes > 0;
}

void launch_prefill(const RowLaunch& launch, const uint8_t* list, LongKinds kinds, const WideSpace& wide) {
  const DeviceLayer& layer = launch.layer;
  const format::TileLayout tile(layer.key.layout.dim, layer.value.layout.dim, layer.key.layout.code(),
                                layer.value.layout.code());
  PrefillParams p(make_row_params(launch));
  p.header = reinterpret_cast<const PrefillHeader*>(list);
  p.sequences = reinterpret_cast<const PrefillSequence*>(list + sizeof(PrefillHeader));
  if (const CompiledGroup* group =
          find_group(tile, layer.key.raw != nullptr, launch.shared_memory_per_block, &p.smem)) {
    const bool scalar = has_book(tile.key) && has_book(tile.value);
    set_side_tables(layer, &p.numbers);
    if (kinds.alone) p.wide_rows = launch_wide(p, launch, kinds.most_rows, wide);
    kinds.alone = kinds.alone && kinds.least_rows < p.wide_rows;
    (scalar ? group->launch : group->launch_any)(p, kinds, launch.num_ctas, launch.stream);
    return;
  }
  const Compiled* compiled = find_compiled(tile);
  TQ_CHECK(compiled, Status::kInternal, "attend: no prefill kernel for head_dim %d, value_dim %d",
           tile.key.dim, tile.value.dim);
  p.smem =
      fit_smem(*compiled, tile, layer.io_dtype, layer.key.raw != nullptr, launch.shared_memory_per_block);
  TQ_CHECK(p.smem.total_bytes > 0, Status::kInternal,
           "attend: the prefill kernel for head_dim %d does not fit %d bytes of shared memory", tile.key.dim,
           launch.shared_memory_per_block);
  compiled->launch(p, launch.num_ctas, launch.stream);
}

}  // namespace tq::cuda::prefill
