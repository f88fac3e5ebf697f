// SPDX-License-Identifier: Apache-2.0
// Read: decoded keys and values by the format's own scalar code, exact copies where they are kept. Not a hot
// path.
#include "cpu/cpu_backend_impl.h"
#include "cpu/exact_range.h"
#include "cpu/read_targets.h"

namespace tq {
namespace cpu {
// A decoded key or value as the caller knows it.
void CpuBackend::give(int32_t index, int head, Kind kind, float* x, uint8_t* target) const {
  const int dim = store_.layer(index).dim(kind);
  float turned[format::kMaxDim];
  const KeyMatrix* const matrix = kind == Kind::kKey ? store_.key_matrix(index) : nullptr;
  if (matrix) apply_rows(matrix->head_inverse(head), dim, x, turned), x = turned;
  kernels_.from_float(store_.geometry.io_dtype, x, dim, target);
}

void CpuBackend::decode_token(int32_t index, int head, Kind kind, const uint8_t* base, int token,
                              uint8_t* target) const {
  const LayerStore& layer = store_.layer(index);
  const bool key = kind == Kind::kKey;
  const format::TileLayout& tile = layer.tile;
  const uint8_t* words = base + (key ? tile.key_offset() : tile.value_offset());
  const uint8_t* scales = base + (key ? tile.key_scale_offset() : tile.value_scale_offset());
  const DataType io = store_.geometry.io_dtype;
  float x[format::kMaxDim];
  const format::SideLayout& side = key ? tile.key : tile.value;
  if (side.banded()) {
    format::decode_bands(store_.band_coder(index, head), side, words, scales, token, x);
    return give(index, head, kind, x, target);
  }
  if (side.by_rows() && !side.raw()) {
    format::decode_row(store_.row_coder(index, head, kind), side,
                       reinterpret_cast<const uint32_t*>(words) + token * side.row_words(),
                       reinterpret_cast<const uint16_t*>(scales) + token * side.scales_per_token(), x);
    return give(index, head, kind, x, target);
  }
  format::decode_token(store_.coder(index, head, kind), side, kind, reinterpret_cast<const uint32_t*>(words),
                       reinterpret_cast<const uint16_t*>(scales), token, io == DataType::kBF16, x);
  give(index, head, kind, x, target);
}

void CpuBackend::read(const ReadRequest& request) {
  const Geometry& g = store_.geometry;
  const LayerStore& layer = store_.layer(request.layer);
  const StepSequence& sequence = request.sequence;
  const int32_t* pages = request.maps[layer.group].row(sequence.page_row);
  const int32_t* raw_pages = store_.raw_row(request.maps, sequence);
  const ExactRange exact = exact_range(g, sequence, sequence.length() - 1);
  const CodePages place = store_.code_pages(layer);
  const int element = dtype_bytes(g.io_dtype);
  pool_.parallel_for(request.count * layer.num_kv_heads, [&](int64_t index, int) {
    const int64_t token = request.first + index / layer.num_kv_heads;
    const int head = static_cast<int>(index % layer.num_kv_heads);
    const bool copied = token < exact.sink_end || token >= exact.window_begin;  // has codes, else
    const uint8_t* base = copied ? nullptr : place.sequence_tile(pages, head, token / format::kTileTokens);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const size_t bytes = static_cast<size_t>(layer.dim(kind)) * static_cast<size_t>(element);
      for_each_target(request, layer, g.io_dtype, kind, token - request.first, head, [&](uint8_t* target) {
        if (copied)
          memcpy(target, store_.raw(layer, raw_pages, head, kind, token), bytes);
        else
          decode_token(request.layer, head, kind, base, static_cast<int>(token % format::kTileTokens),
                       target);
      });
    }
  });
}

}  // namespace cpu
}  // namespace tq
