// SPDX-License-Identifier: Apache-2.0
// The scalar table: the format's own code and plain sums in coordinate order. Every other table is tested
// against it; it also runs where no SIMD path fits. Speed is not its duty.
#include "cpu/kernels/scalar.h"

#include <algorithm>

#include "cpu/kernels/operands.h"

namespace tq {
namespace cpu {
namespace {

format::RotatedInput rotate_input(const format::VectorCoder& coder, const float* x, float* y,
                                  float* scratch) {
  return format::rotate_input(coder, x, y, scratch);
}

bool encode(const format::VectorCoder& coder, const float* x, uint8_t* codes, uint16_t* scale) {
  return format::encode_vector(coder, x, codes, scale);
}

void rotate(const format::VectorCoder& coder, const float* x, float* y) {
  if (coder.rotation == format::Rotation::kDense) {
    float padded[format::kMaxVectorDim];
    std::copy(x, x + coder.dim, padded);
    std::fill(padded + coder.dim, padded + coder.stored, 0.0f);
    format::dense_apply(coder.dense, padded, y, coder.stored, false);
    return;
  }
  for (int i = 0; i < coder.stored; i++) y[i] = i < coder.dim ? x[i] : 0.0f;
  format::hadamard_forward(y, coder.stored, coder.signs);
  const float norm = format::hadamard_norm(format::log2_block(coder.stored));
  for (int i = 0; i < coder.stored; i++) y[i] *= norm;
}

void unrotate(const format::VectorCoder& coder, float* y, float* x) { format::unrotate(coder, y, x); }

void pack(const format::SideLayout& layout, Kind kind, const uint8_t* codes, uint32_t* words) {
  for (int token = 0; token < format::kTileTokens; token++)
    format::pack_scalar(layout, kind, token, codes + token * layout.stored, words);
}

void merge_token(const format::SideLayout& layout, Kind kind, int token, const uint8_t* codes,
                 uint32_t* words) {
  format::pack_scalar(layout, kind, token, codes, words);
}

uint16_t bf16_or_nan(float x) {
  return format::is_nan(x) ? static_cast<uint16_t>(0x7FC0) : format::bf16_from_float(x);
}
uint16_t saturated_f16(float x) {
  const uint16_t h = format::f16_from_float(x);
  return (h & 0x7FFFu) == 0x7C00u ? static_cast<uint16_t>(h - 1) : h;
}

void to_float(DataType type, const void* source, int64_t count, float* target) {
  const float* f = static_cast<const float*>(source);
  const uint16_t* h = static_cast<const uint16_t*>(source);
  for (int64_t i = 0; i < count; i++)
    target[i] = type == DataType::kF32   ? f[i]
                : type == DataType::kF16 ? format::float_from_f16(h[i])
                                         : format::float_from_bf16(h[i]);
}

void from_float(DataType type, const float* source, int64_t count, void* target) {
  if (type == DataType::kF32) std::copy(source, source + count, static_cast<float*>(target));
  if (type == DataType::kF32) return;
  uint16_t* h = static_cast<uint16_t*>(target);
  for (int64_t i = 0; i < count; i++)
    h[i] = type == DataType::kF16 ? saturated_f16(source[i]) : bf16_or_nan(source[i]);
}

// The operand is q itself.
void prepare_query(const CodedSide& side, const int16_t* q, uint8_t* operand) {
  memcpy(operand, q, side.layout.stored * sizeof(int16_t));
}

// Level bytes of one token, [stored].
void load_levels(const CodedSide& side, const uint8_t* words, int token, int8_t* levels) {
  uint8_t codes[format::kMaxDim];
  format::unpack_scalar(side.layout, side.kind, reinterpret_cast<const uint32_t*>(words), token, codes);
  if (side.layout.code().trellis()) format::trellis_indexes(side.kind, side.layout.stored, codes, codes);
  for (int i = 0; i < side.layout.stored; i++) levels[i] = static_cast<int8_t>(side.level(codes[i]));
}

void score(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const*, int first_tile,
           int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  const int stored = side.layout.stored;
  int8_t levels[format::kMaxDim];
  for (int tile = first_tile; tile < last_tile; tile++)
    for (int token = 0; token < format::kTileTokens; token++) {
      load_levels(side, tiles[tile], token, levels);
      for (int r = 0; r < rows; r++) {
        const int16_t* q = reinterpret_cast<const int16_t*>(operands + r * query_operand_bytes(stored));
        int32_t sum = 0;
        for (int i = 0; i < stored; i++) sum += q[i] * levels[i];
        scores[r * kBlockTokens + tile * format::kTileTokens + token] = sum;
      }
    }
}

void accumulate(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const*, int first_tile,
                int last_tile, const uint16_t* weights, int rows, int32_t* sums, uint8_t*) {
  const int stored = side.layout.stored;
  int8_t levels[format::kMaxDim];
  std::fill(sums, sums + static_cast<int64_t>(rows) * stored, 0);
  for (int tile = first_tile; tile < last_tile; tile++)
    for (int token = 0; token < format::kTileTokens; token++) {
      load_levels(side, tiles[tile], token, levels);
      for (int r = 0; r < rows; r++) {
        const int weight = weights[r * kBlockTokens + tile * format::kTileTokens + token];
        for (int entry = 0; entry < stored; entry++)
          sums[r * stored + entry] += levels[value_coordinate(side.layout, entry)] * weight;
      }
    }
}

// The functions ask the side for its width: one entry serves all.
template <size_t>
struct ScalarCode {
  static constexpr CodeKernels kernels() {
    return {pack, merge_token, nullptr, prepare_query, score, accumulate};
  }
};

template <typename Score>
float softmax_of(const RowBlock& row, const Score* scores, const float* key_scales, const float* value_scales,
                 SoftmaxState* state, float* p, float* largest) {
  std::fill(p, p + kBlockTokens, 0.0f);
  float m = state->m;
  for (int i = row.begin; i < row.end; i++) {
    p[i] = minus_infinity();
    if (row.bias && row.bias[i] == minus_infinity()) continue;
    float logit =
        (static_cast<float>(scores[i]) + row.half_sum) * row.factor * (key_scales ? key_scales[i] : 1.0f);
    logit = std::min(std::max(logit, -kLogitLimit), kLogitLimit) + row.constant;
    if (row.softcap > 0) logit = row.softcap * tanhf(logit * kLn2 / row.softcap) * kLog2E;
    if (row.bias) logit += row.bias[i];
    p[i] = logit;
    m = std::max(m, logit);
  }
  float l = 0;
  *largest = 0;
  for (int i = row.begin; i < row.end; i++) {
    p[i] = exp2f(p[i] - m);
    l += p[i];
    if (value_scales) p[i] *= value_scales[i];
    *largest = std::max(*largest, p[i]);
  }
  return extend_state(state, m, l);
}

BlockWeights weigh(const float* p, float largest, bool half, uint16_t* weights) {
  if (!(largest > kMinWeight)) {
    std::fill(weights, weights + kBlockTokens, static_cast<uint16_t>(0));
    return BlockWeights{0.0f, 0.0f};
  }
  const float inverse = static_cast<float>(kWeightMax) / largest;
  int32_t sum = 0;
  for (int i = 0; i < kBlockTokens; i++) {
    weights[i] = static_cast<uint16_t>(
        rintf(std::min(std::max(p[i] * inverse, 0.0f), static_cast<float>(kWeightMax))));
    sum += weights[i];
  }
  return BlockWeights{largest / kWeightMax / kWeightShift, half ? 0.5f * static_cast<float>(sum) : 0.0f};
}

void update(float* o, const int32_t* sums, int count, float alpha, BlockWeights weights) {
  for (int i = 0; i < count; i++)
    o[i] = o[i] * alpha + (static_cast<float>(sums[i]) + weights.half_sum) * weights.unit;
}

// Coordinate c of token i of a block.
float exact_value(const ExactSide& side, int i, int c) {
  const uint8_t* at = side.tiles[i / format::kTileTokens] +
                      static_cast<int64_t>(i % format::kTileTokens * side.dim + c) * dtype_bytes(side.type);
  float x;
  to_float(side.type, at, 1, &x);
  return x;
}

void dot_tokens(const ExactSide& side, int begin, int end, const float* q, int stride, int rows,
                float* dots) {
  for (int r = 0; r < rows; r++)
    for (int i = begin; i < end; i++) {
      float sum = 0;
      for (int c = 0; c < side.dim; c++) sum += q[r * stride + c] * exact_value(side, i, c);
      dots[r * kBlockTokens + i] = sum;
    }
}

void add_tokens(const ExactSide& side, int begin, int end, const float* const* p, const float* alpha,
                int rows, float* const* o) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < side.dim; c++) {
      float sum = alpha[r] == 0 ? 0.0f : o[r][c] * alpha[r];
      for (int i = begin; i < end; i++) sum += p[r][i] * exact_value(side, i, c);
      o[r][c] = sum;
    }
}

void combine(float* y, float a, const float* x, float b, int count) {
  for (int i = 0; i < count; i++) y[i] = (a == 0 ? 0.0f : a * y[i]) + b * x[i];
}

void double_levels(const format::Codebook& book, const uint8_t* codes, int count, int16_t* values) {
  for (int i = 0; i < count; i++)
    values[i] = static_cast<int16_t>(2 * format::level_byte(book, codes[i]) + (book.half() ? 1 : 0));
}

void dot_values(const int16_t* q, int64_t stride, int rows, const int16_t* values, int count, int64_t* sums) {
  for (int r = 0; r < rows; r++) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += static_cast<int32_t>(q[r * stride + i]) * values[i];
    sums[r] = sum;
  }
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",   code_table<ScalarCode>(), rotate_input,      encode,    rotate, unrotate,   to_float,
    from_float, softmax_of<int32_t>,      softmax_of<float>, weigh,     update, dot_tokens, add_tokens,
    combine,    format::unpack_codes,     double_levels,     dot_values};

}  // namespace cpu
}  // namespace tq
