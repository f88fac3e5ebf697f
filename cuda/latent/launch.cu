// SPDX-License-Identifier: Apache-2.0
// See launch.h.
#include "cuda/latent/launch.h"

#include <algorithm>
#include <type_traits>

#include "cuda/code/zones.h"
#include "cuda/latent/append.cuh"
#include "cuda/latent/finish.cuh"
#include "cuda/latent/group.cuh"
#include "cuda/latent/query.cuh"
#include "cuda/latent/read.cuh"
#include "cuda/latent/split.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::latent {
namespace {

// Blocks beyond one for each of a plan's: what a device has to do at once, and more.
constexpr int64_t kSpareSlots = 320;
constexpr int64_t kMostRows = 1 << 16;
constexpr int kRowCtas = 12;  // of a multiprocessor, where a row is a CTA's

struct Needs {
  int64_t rows, slots;
};
// Of blocks of so many tiles of 16 rows.
Needs needs_of(const Geometry& geometry, const LayerGeometry& layer, int tiles) {
  const int64_t rows = geometry.max_batch_tokens * layer.num_q_heads;
  const int64_t blocks = rows / (kTileRows * tiles) +
                         static_cast<int64_t>(geometry.max_batch_sequences) * 2 * layer.num_kv_heads;
  return Needs{rows, blocks + kSpareSlots * 4 / tiles};
}

// The three kernels of a call; split: the middle one.
void launch_three(void (*split)(LatentParams), const LatentParams& params, int num_units, int ctas_of_unit,
                  int shared, bool early, cudaStream_t stream) {
  check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(split),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "cudaFuncSetAttribute");
  const dim3 row_ctas(static_cast<unsigned>(kRowCtas * num_units)), row_threads(32 * kRowWarps),
      ctas(static_cast<unsigned>(num_units * ctas_of_unit));
  // Each waits by itself for what comes before it.
  launch_early(early, "latent prepare_kernel", prepare_kernel, row_ctas, row_threads, 0, stream, params);
  launch_early(early, "latent split_kernel", split, ctas, dim3(kThreads), static_cast<size_t>(shared), stream,
               params);
  launch_early(early, "latent finish_kernel", finish_kernel, row_ctas, row_threads, 0, stream, params);
}

template <int kWidth, int kTiles>
void launch_of(LatentParams params, const RowLaunch& launch, bool early) {
  const int slot = TileRing(params.row.layer).slot_bytes,
            fixed = static_cast<int>(sizeof(SplitShared<kTiles>)),
            ctas_of_unit = kTiles == 1 ? kFewRowsCtas : 1;
  params.depth = std::min(
      kMostDepth, (launch.shared_memory_per_block / ctas_of_unit - 1024 * (ctas_of_unit - 1) - fixed) / slot);
  TQ_CHECK(params.depth >= 2, Status::kInternal, "latent attention: %d + 2 * %d bytes of shared memory of %d",
           fixed, slot, launch.shared_memory_per_block);
  launch_three(split_kernel<kWidth, kTiles>, params, launch.num_ctas, ctas_of_unit,
               fixed + params.depth * slot, early, launch.stream);
}
// On products of warpgroups.
template <int kWidth, int kTiles>
void launch_group(LatentParams params, const RowLaunch& launch, bool early) {
  constexpr int kRows = kTiles * kTileRows;
  params.in_operand_order = true;
  launch_three(group_kernel<kWidth, kRows>, params, launch.num_ctas, GroupShape<kRows>::kCtas,
               static_cast<int>(sizeof(GroupShared<kRows>)), early, launch.stream);
}

template <int kWidth>
void launch_width(const LatentParams& params, const RowLaunch& launch, bool early, bool group, int tiles) {
  const auto launch_tiles = [&](auto count) {
    if (group)
      launch_group<kWidth, decltype(count)::value>(params, launch, early);
    else
      launch_of<kWidth, decltype(count)::value>(params, launch, early);
  };
  if (tiles == 1)
    launch_tiles(std::integral_constant<int, 1>());
  else if (tiles == 2)
    launch_tiles(std::integral_constant<int, 2>());
  else
    launch_tiles(std::integral_constant<int, 4>());
}

}  // namespace

const char* refusal(const Geometry& geometry, int layer) {
  const LayerGeometry& l = geometry.layers[layer];
  const auto scalar = [](format::CodeId id) { return id.family == format::CodeFamily::kRows; };
  if (l.value_dim != kLatent || l.head_dim != kRest) return "CUDA has head_dim = 576 with value_dim = 512";
  if (!scalar(l.value_code)) return "CUDA has scalar codes of the latent";
  if (!scalar(l.key_code) && !l.key_code.raw()) return "CUDA has scalar codes or raw numbers of the rest";
  if (geometry.has_exact()) return "CUDA has no window_tokens and sink_tokens with it";
  if (geometry.max_batch_tokens * l.num_q_heads > kMostRows)
    return "CUDA has at most 65536 rows of a plan: max_batch_tokens * num_q_heads";
  return nullptr;
}

int64_t workspace_bytes(const Geometry& geometry) {
  int64_t most = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    if (!geometry.layers[layer].latent) continue;
    for (const int tiles : {1, 2, 4}) {
      const Needs needs = needs_of(geometry, geometry.layers[layer], tiles);
      Space space;
      most = std::max(most, Space::place(nullptr, needs.rows, needs.slots, kTileRows * tiles, &space));
    }
  }
  return most;
}

void launch_latent(const RowLaunch& launch, bool early, const Geometry& geometry, int layer, void* workspace,
                   const StepRows& step) {
  const format::SideLayout& latent = launch.layer.value.layout;
  const bool group = has_warpgroups();
  int64_t rows = launch.layer.q_per_kv;  // of a sequence and kv head
  if (group)
    for (int i = 0; i < step.num_sequences; i++)
      rows = std::max<int64_t>(rows, launch.layer.q_per_kv * step.sequences[i].query_tokens);
  const int tiles = block_tiles(rows, group ? 0 : latent.row_bytes());
  const Needs needs = needs_of(geometry, geometry.layers[layer], tiles);
  LatentParams params = {make_row_params(launch),
                         launch.plan.work,
                         {},
                         split_tokens(launch.layer.q_per_kv),
                         kTileRows * tiles,
                         false,
                         0};
  Space::place(workspace, needs.rows, needs.slots, kTileRows * tiles, &params.space);
  if (latent.bits == code::kNibbleRows)
    launch_width<code::kNibbleRows>(params, launch, early, group, tiles);
  else
    launch_width<0>(params, launch, early, group, tiles);
}

void launch_append(const DeviceLayer& layer, const DevicePlan& plan, const AppendRequest& request,
                   int64_t tokens, int num_units, cudaStream_t stream) {
  LatentAppend args = {layer, plan, request.k, request.key_strides, {false, false}};
  args.zones[0] = !layer.key.layout.raw() && code::zones_apart(layer.key.book);
  args.zones[1] = code::zones_apart(layer.value.book);
  const int64_t warps = 2 * tokens * layer.num_kv_heads,
                ctas = std::clamp<int64_t>((warps + kWarps - 1) / kWarps, 1, 4 * num_units);
  launch_in_order("append_latent_kernel", append_latent_kernel, dim3(static_cast<unsigned>(ctas)),
                  dim3(kThreads), 0, stream, args);
}

void launch_read(const DeviceLayer& layer, const ReadRequest& request, const int32_t* pages, int num_units,
                 cudaStream_t stream) {
  LatentRead args = {layer, request.k, request.v, request.key_strides, request.value_strides, 0, 0, 0, 0, {}};
  const int64_t end = request.first + request.count;
  for (int64_t first = request.first; first < end; first += args.count) {
    const int64_t page = first / layer.page_size,
                  stop = std::min(end, (page + kReadPages) * static_cast<int64_t>(layer.page_size));
    args.row = first - request.first;
    args.first = static_cast<int32_t>(first);
    args.count = static_cast<int32_t>(stop - first);
    args.first_page = static_cast<int32_t>(page);
    std::copy(pages + page, pages + (stop - 1) / layer.page_size + 1, args.pages);
    const int64_t warps = 2 * (stop - first) * layer.num_kv_heads;
    const unsigned ctas =
        static_cast<unsigned>(std::min<int64_t>((warps + kWarps - 1) / kWarps, 8 * num_units));
    launch_in_order("read_latent_kernel", read_latent_kernel, dim3(ctas), dim3(kThreads), 0, stream, args);
  }
}

}  // namespace tq::cuda::latent
