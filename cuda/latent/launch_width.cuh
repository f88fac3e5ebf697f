// SPDX-License-Identifier: Apache-2.0
// The launches of attention by the layer's width, the kernel and the size of blocks. Files of their own
// (codes.cu, exact.cu) compile them, with and without exact tokens, side by side.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cuda/latent/group.cuh"
#include "cuda/latent/split.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::latent {

constexpr int kLeastDepth = 2;

// CTAs of a multiprocessor, and tiles of a CTA's ring, of split_kernel; depth 0: there is no room.
struct SplitShape {
  int ctas, depth, fixed, slot;

  int needs() const { return fixed + kLeastDepth * slot; }
};
template <int kTiles>
SplitShape split_shape(const format::SideLayout& latent, const format::SideLayout& rest, int shared) {
  SplitShape s = {kTiles == 1 ? kFewRowsCtas : 1, 0, static_cast<int>(sizeof(SplitShared<kTiles>)),
                  TileRing(latent, rest).slot_bytes};
  for (; s.ctas > 0; s.ctas--) {
    s.depth = std::min(kMostDepth, (shared / s.ctas - 1024 * (s.ctas - 1) - s.fixed) / s.slot);
    if (s.depth >= kLeastDepth) return s;
  }
  s.depth = 0;
  return s;
}
template <class Visit>
auto with_tiles(int tiles, const Visit& visit) {
  if (tiles == 1) return visit(std::integral_constant<int, 1>());
  if (tiles == 2) return visit(std::integral_constant<int, 2>());
  return visit(std::integral_constant<int, 4>());
}

struct Launches {
  LatentParams params;
  const RowLaunch& launch;
  bool early;
  int64_t query_tokens;
};
// The three kernels of each slice; split: the middle one. launch.cu.
void launch_slices(void (*split)(LatentParams), const Launches& all, int ctas_of_unit, int shared);

template <int kWidth, int kTiles, bool kExact>
void launch_split(Launches all) {
  const DeviceLayer& layer = all.launch.layer;
  const SplitShape shape =
      split_shape<kTiles>(layer.value.layout, layer.key.layout, all.launch.shared_memory_per_block);
  TQ_CHECK(shape.depth > 0, Status::kInternal, "latent attention: %d bytes of shared memory of %d",
           shape.needs(), all.launch.shared_memory_per_block);
  all.params.depth = shape.depth;
  launch_slices(split_kernel<kWidth, kTiles, kExact>, all, shape.ctas,
                shape.fixed + shape.depth * shape.slot);
}
template <int kWidth, int kTiles, bool kExact>
void launch_group(Launches all) {
  constexpr int kRows = kTiles * kTileRows;
  all.params.in_operand_order = true;
  launch_slices(group_kernel<kWidth, kRows, kExact>, all, GroupShape<kRows>::kCtas,
                static_cast<int>(sizeof(typename GroupBlock<kWidth, kRows, kExact>::Shared)));
}

// group: on products of warpgroups; tiles: of a block.
template <int kWidth, bool kExact>
void launch_width(const Launches& all, bool group, int tiles) {
  with_tiles(tiles, [&](auto count) {
    constexpr int kTiles = decltype(count)::value;
    group ? launch_group<kWidth, kTiles, kExact>(all) : launch_split<kWidth, kTiles, kExact>(all);
  });
}

}  // namespace tq::cuda::latent
