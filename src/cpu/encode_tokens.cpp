// SPDX-License-Identifier: Apache-2.0
// Codes of tokens that have exact copies alone, from these: what leaves a window whose tokens are stored
// once. A task is one tile of one kv head of a layer, so every tile has one writer.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"

namespace tq {
namespace cpu {
namespace {

int64_t tiles_of(const CodeRange& range) {
  return (range.end - 1) / format::kTileTokens - range.begin / format::kTileTokens + 1;
}

}  // namespace

void CpuBackend::encode_tokens(const EncodeRequest& request) {
  const Geometry& g = store_.geometry;
  const int element = dtype_bytes(g.io_dtype);
  const auto encode_tile = [&](int32_t index, const CodeRange& range, int64_t tile, int head) {
    const LayerStore& layer = store_.layer(index);
    const int64_t start = tile * format::kTileTokens, first = std::max(start, range.begin),
                  last = std::min(start + format::kTileTokens, range.end);
    uint8_t* const target =
        store_.code_pages(layer).sequence_tile(request.maps[layer.group].row(range.slot), head, tile);
    const int32_t* const copies = request.maps[g.raw_group].row(range.slot);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const VectorRows rows = {store_.raw(layer, copies, head, kind, start),
                               static_cast<int64_t>(layer.dim(kind)) * element};
      encode_side(index, head, kind, rows, target,
                  TileRun{first - start, static_cast<int>(first - start), static_cast<int>(last - first)});
    }
  };
  int64_t tiles = 0;
  for (int32_t i = 0; i < request.count; i++) tiles += tiles_of(request.ranges[i]);
  for (int32_t index = 0; index < g.num_layers; index++) {
    if (!g.stores(index)) continue;
    const int heads = store_.layer(index).num_kv_heads;
    pool_.parallel_for(tiles * heads, [&](int64_t task, int) {
      int64_t tile = task / heads;
      const CodeRange* range = request.ranges;
      for (; tile >= tiles_of(*range); range++) tile -= tiles_of(*range);
      encode_tile(index, *range, range->begin / format::kTileTokens + tile, static_cast<int>(task % heads));
    });
  }
}

}  // namespace cpu
}  // namespace tq
