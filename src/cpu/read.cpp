// SPDX-License-Identifier: Apache-2.0
// Read: decoded keys and values by the format's own scalar code, exact copies where they are kept. Not a hot
// path.
#include "cpu/cpu_backend_impl.h"
#include "cpu/exact_range.h"

namespace tq {
namespace cpu {
namespace {

// Vector of one token out of a tile's side.
void decode_token(const format::VectorCoder& coder, const format::SideLayout& layout, Kind kind,
                  const uint8_t* words, const uint8_t* scales, int token, DataType raw_type, float* x) {
  if (layout.raw()) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(words) + static_cast<int64_t>(token) * layout.dim;
    for (int i = 0; i < layout.dim; i++)
      x[i] = raw_type == DataType::kBF16 ? format::float_from_bf16(row[i]) : format::float_from_f16(row[i]);
    return;
  }
  uint8_t codes[format::kMaxDim];
  for (int i = 0; i < layout.stored; i++)
    codes[i] = static_cast<uint8_t>(format::load_code(reinterpret_cast<const uint32_t*>(words), layout,
                                                      format::code_place(layout, kind, token, i)));
  format::decode_vector(coder, codes, reinterpret_cast<const uint16_t*>(scales)[token], x);
}

}  // namespace

void CpuBackend::read(const ReadRequest& request) {
  const Geometry& g = store_.geometry;
  const LayerStore& layer = store_.layer(request.layer);
  const PlanSequence& sequence = request.sequence;
  const ExactRange exact = exact_range(g, sequence.length(), sequence.raw_first);
  const int element = dtype_bytes(g.io_dtype);
  pool_.parallel_for(request.count * g.num_kv_heads, [&](int64_t index, int) {
    const int64_t token = request.first + index / g.num_kv_heads;
    const int head = static_cast<int>(index % g.num_kv_heads);
    const uint8_t* base = store_.sequence_tile(layer, sequence, head, token / format::kTileTokens);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const bool key = kind == Kind::kKey;
      void* tensor = key ? request.k : request.v;
      if (!tensor) continue;
      const TensorStrides strides = key ? request.key_strides : request.value_strides;
      const int dim = key ? g.head_dim : g.value_dim;
      uint8_t* target = static_cast<uint8_t*>(tensor) +
                        ((token - request.first) * strides.token + head * strides.head) * element;
      if (token < exact.coded_begin || token >= exact.coded_end) {
        memcpy(target, store_.raw(layer, sequence.slot, head, kind, raw_index(g, token)),
               static_cast<size_t>(dim) * element);
        continue;
      }
      float x[format::kMaxDim];
      decode_token(store_.coder(request.layer, head, kind), key ? layer.tile.key : layer.tile.value, kind,
                   base + (key ? layer.tile.key_offset() : layer.tile.value_offset()),
                   base + (key ? layer.tile.key_scale_offset() : layer.tile.value_scale_offset()),
                   static_cast<int>(token % format::kTileTokens), g.io_dtype, x);
      kernels_.from_float(g.io_dtype, x, dim, target);
    }
  });
}

}  // namespace cpu
}  // namespace tq
