// SPDX-License-Identifier: Apache-2.0
// See launch.h.
#include "cuda/latent/launch.h"

#include <algorithm>
#include <type_traits>

#include "cuda/code/zones.h"
#include "cuda/latent/append.cuh"
#include "cuda/latent/finish.cuh"
#include "cuda/latent/launch_width.cuh"
#include "cuda/latent/query.cuh"
#include "cuda/latent/read.cuh"
#include "cuda/runtime.h"
#include "cuda/schedule/work_list.h"

namespace tq::cuda::latent {

extern template void launch_width<code::kNibbleRows, false>(const Launches&, bool, int);
extern template void launch_width<0, false>(const Launches&, bool, int);
extern template void launch_width<code::kNibbleRows, true>(const Launches&, bool, int);
extern template void launch_width<0, true>(const Launches&, bool, int);

namespace {

// Blocks beyond one for each of a plan's: what a device has to do at once, and more.
constexpr int64_t kSpareSlots = 320;
constexpr int kRowCtas = 12, kEndCtas = 6;  // of a multiprocessor, where a row is a CTA's

int64_t slice_tokens(int num_q_heads) { return std::max<int64_t>(1, kSliceRows / num_q_heads); }

struct Needs {
  int64_t rows, slots;
};
// Of a slice in blocks of so many tiles of 16 rows.
Needs needs_of(const PlanBounds& bounds, const HeadShape& heads, int tiles) {
  const int64_t tokens = std::min(bounds.query_tokens, slice_tokens(heads.num_q_heads)),
                rows = tokens * heads.num_q_heads;
  // An entry's last block may have few rows; each entry has a query.
  const int64_t blocks = rows / (kTileRows * tiles) + std::min(bounds.entries, tokens) * heads.num_kv_heads;
  return Needs{rows, blocks + kSpareSlots * 4 / tiles};
}

// Of the kernel for other chips: as many tiles a block as these, or as there is room for.
int fitting_tiles(int tiles, const DeviceLayer& layer, int shared) {
  const auto fits = [&](auto count) {
    return split_shape<decltype(count)::value>(layer.value.layout, layer.key.layout, shared).depth > 0;
  };
  while (tiles > 1 && !with_tiles(tiles, fits)) tiles /= 2;
  return tiles;
}

}  // namespace

bool refuses(const Geometry& geometry, int layer, int shared_memory_per_block, ReasonList& reasons) {
  const LayerGeometry& l = geometry.layers[layer];
  const auto scalar = [](format::CodeId id) { return id.family == format::CodeFamily::kRows; };
  const char* text = nullptr;
  if (l.value_dim != kLatent || l.head_dim != kRest)
    text = "CUDA has head_dim = 576 with value_dim = 512";
  else if (!scalar(l.value_code))
    text = "CUDA has scalar codes of the latent";
  else if (!scalar(l.key_code) && !l.key_code.raw())
    text = "CUDA has scalar codes or raw numbers of the rest";
  if (text) {
    reasons.add(Status::kNotSupported, "layer %d: layer_kind = 2 (TQ_LATENT): %s", layer, text);
    return true;
  }
  if (has_warpgroups()) return false;
  const format::TileLayout tile = geometry.tile(layer);
  const SplitShape shape = split_shape<1>(tile.value, tile.key, shared_memory_per_block);
  if (shape.depth > 0) return false;
  reasons.add(
      Status::kNotSupported,
      "layer %d: layer_kind = 2 (TQ_LATENT): needs %d bytes of shared memory, the device gives a block "
      "%d",
      layer, shape.needs(), shared_memory_per_block);
  return true;
}

PlanBounds bounds_of(const Geometry& geometry) {
  return PlanBounds{geometry.max_batch_tokens, max_entries(geometry), 0, false};
}

int64_t workspace_bytes(const Geometry& geometry, const PlanBounds& bounds) {
  int64_t most = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    if (!geometry.layers[layer].latent) continue;
    for (const int tiles : {1, 2, 4}) {
      const Needs needs = needs_of(bounds, geometry.layers[layer], tiles);
      Space space;
      most = std::max(most, Space::place(nullptr, needs.rows, needs.slots, kTileRows * tiles, &space));
    }
  }
  return most;
}

void launch_slices(void (*split)(LatentParams), const Launches& all, int ctas_of_unit, int shared) {
  check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(split),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "cudaFuncSetAttribute");
  LatentParams params = all.params;
  const int num_units = all.launch.num_ctas;
  const dim3 row_ctas(static_cast<unsigned>(kRowCtas * num_units)),
      end_ctas(static_cast<unsigned>(kEndCtas * num_units)),
      ctas(static_cast<unsigned>(num_units * ctas_of_unit));
  const cudaStream_t stream = all.launch.stream;
  const int64_t each = slice_tokens(params.row.layer.num_q_heads);
  for (int64_t first = 0; first < all.query_tokens; first += each) {
    params.first_token = static_cast<int32_t>(first);
    params.num_tokens = static_cast<int32_t>(std::min(each, all.query_tokens - first));
    // Each waits by itself for what comes before it.
    launch_early(all.early, "latent prepare_kernel", prepare_kernel, row_ctas, dim3(32 * kRowWarps), 0,
                 stream, params);
    launch_early(all.early, "latent split_kernel", split, ctas, dim3(kThreads), static_cast<size_t>(shared),
                 stream, params);
    launch_early(all.early, "latent finish_kernel", finish_kernel, end_ctas, dim3(32 * kEndWarps), 0, stream,
                 params);
  }
}

void launch_latent(const RowLaunch& launch, bool early, const PlanBounds& bounds, void* workspace) {
  const DeviceLayer& layer = launch.layer;
  const bool group = has_warpgroups(), nibbles = layer.value.layout.bits == code::kNibbleRows,
             exact = layer.value.raw != nullptr;
  // More rows than a kv head has of a query token are worth a larger block where these cost little.
  const int64_t rows = layer.q_per_kv * (group ? std::max<int64_t>(bounds.sequence_queries, 1) : 1);
  const int tiles = group ? block_tiles(rows, 0)
                          : fitting_tiles(block_tiles(rows, layer.value.layout.row_bytes()), layer,
                                          launch.shared_memory_per_block);
  const Needs needs = needs_of(bounds, {layer.num_q_heads, layer.num_kv_heads, layer.q_per_kv}, tiles);
  Space space;
  Space::place(workspace, needs.rows, needs.slots, kTileRows * tiles, &space);
  const Launches all = {{make_row_params(launch), launch.plan.work, space, split_tokens(layer.q_per_kv),
                         kTileRows * tiles, 0, 0, bounds.all_rows, false, 0},
                        launch,
                        early,
                        bounds.query_tokens};
  if (nibbles && exact)
    launch_width<code::kNibbleRows, true>(all, group, tiles);
  else if (nibbles)
    launch_width<code::kNibbleRows, false>(all, group, tiles);
  else if (exact)
    launch_width<0, true>(all, group, tiles);
  else
    launch_width<0, false>(all, group, tiles);
}

void launch_append(const DeviceLayer& layer, const DevicePlan& plan, const AppendRequest& request,
                   int64_t tokens, int num_units, cudaStream_t stream) {
  LatentAppend args = {layer, plan, request.k, request.key_strides, {false, false}, 0};
  args.zones[0] = !layer.key.layout.raw() && code::zones_apart(layer.key.book);
  args.zones[1] = code::zones_apart(layer.value.book);
  // Of slots: every token may be alone in its tile.
  const int64_t warps = 2 * tokens * layer.num_kv_heads * (plan.runs ? format::kTileTokens : 1),
                ctas = std::clamp<int64_t>((warps + kWarps - 1) / kWarps, 1, 4 * num_units);
  args.slot_jobs = static_cast<int32_t>(tokens);
  launch_in_order("append_latent_kernel", append_latent_kernel, dim3(static_cast<unsigned>(ctas)),
                  dim3(kThreads), 0, stream, args);
}

namespace {

void start_read(const LatentRead& args, int num_units, cudaStream_t stream) {
  const int64_t warps = 2 * static_cast<int64_t>(args.count) * args.layer.num_kv_heads;
  const unsigned ctas =
      static_cast<unsigned>(std::min<int64_t>((warps + kWarps - 1) / kWarps, 8 * num_units));
  launch_in_order("read_latent_kernel", read_latent_kernel, dim3(ctas), dim3(kThreads), 0, stream, args);
}

}  // namespace

void launch_read(const DeviceLayer& layer, const ReadRequest& request, const int32_t* pages,
                 const int32_t* raw_pages, int num_units, cudaStream_t stream) {
  LatentRead args = {layer, request.k, request.v, request.key_strides, request.value_strides};
  if (raw_pages) {  // as a query at the last token reads them
    const StepSequence& sequence = request.sequence;
    args.sink_end = static_cast<int32_t>(sequence.sink_end);
    args.exact_first =
        static_cast<int32_t>(std::max(sequence.raw_first, sequence.length() - layer.window_tokens));
  }
  constexpr int64_t kTile = format::kTileTokens;
  const int64_t end = request.first + request.count;
  for (int64_t first = request.first; first < end; first += args.count) {
    const int64_t page = first / layer.page_size, raw_page = first / kTile,
                  stop = std::min({end, (page + kReadPages) * static_cast<int64_t>(layer.page_size),
                                   raw_pages ? (raw_page + kReadPages) * kTile : INT64_MAX});
    args.row = first - request.first;
    args.first = static_cast<int32_t>(first);
    args.count = static_cast<int32_t>(stop - first);
    args.first_page = static_cast<int32_t>(page);
    std::copy(pages + page, pages + (stop - 1) / layer.page_size + 1, args.pages);
    args.first_raw_page = static_cast<int32_t>(raw_page);
    if (raw_pages) std::copy(raw_pages + raw_page, raw_pages + (stop - 1) / kTile + 1, args.raw_pages);
    start_read(args, num_units, stream);
  }
}

void launch_read(const DeviceLayer& layer, const SlotsRead& request, int num_units, cudaStream_t stream) {
  LatentRead args = {layer, request.k, request.v, request.key_strides, request.value_strides};
  args.slots = request.slots;
  args.count = static_cast<int32_t>(request.count);
  start_read(args, num_units, stream);
}

}  // namespace tq::cuda::latent
