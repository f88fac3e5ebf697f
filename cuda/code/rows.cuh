// SPDX-License-Identifier: Apache-2.0
// Codes by rows, one token a warp (FORMAT.md sections 3.6 to 3.8): the same bits as format/grouped.h,
// levels.h and sketch.h. Lane l has the coordinates l, l + 32, ...; 32 neighbours of a row are as many words
// as a code has bits, so that a register's codes become words without looking at the next one.
#pragma once
#include <limits.h>

#include "cuda/code/encode.cuh"
#include "cuda/device_view.h"
#include "format/grouped.h"

namespace tq::cuda::code {

// Bits of scalar codes that lie by rows: those of prod keys.
constexpr int kMostRowBits = 3;

// A side's row and scales of one token.
struct RowTarget {
  uint32_t* row;
  uint16_t* scales;
};
struct RowSource {
  const uint32_t* row;
  const uint16_t* scales;
};

// Stores one code of `bits` bits a lane as words 0 .. bits - 1, those below `words`.
__device__ __forceinline__ void store_unit(uint32_t code, int bits, int words, uint32_t* to, int lane) {
  const int word = lane * bits / 32, shift = lane * bits % 32;
  const uint32_t low = code << shift, high = shift + bits > 32 ? code >> (32 - shift) : 0u;
  uint32_t mine = 0;
#pragma unroll 1
  for (int i = 0; i < bits; i++) {
    const uint32_t all = __reduce_or_sync(kFullWarp, (word == i ? low : 0u) | (word + 1 == i ? high : 0u));
    if (lane == i) mine = all;
  }
  if (lane < min(bits, words)) to[lane] = mine;
}
template <int kRegs>
__device__ __forceinline__ void store_row(const uint8_t (&codes)[kRegs], int bits, int words, uint32_t* row,
                                          int lane) {
#pragma unroll
  for (int r = 0; r < kRegs; r++) store_unit(codes[r], bits, words - r * bits, row + r * bits, lane);
}

template <int kStored>
__device__ __forceinline__ float tree_of(float (&v)[kStored / 32]) {
  float sum[1] = {lane_tree<kStored>(v)};
  warp_tree<1>(sum);
  return sum[0];
}
template <int kStored>
__device__ __forceinline__ float square_of(const float (&y)[kStored / 32]) {
  float squares[kStored / 32];
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) squares[r] = mul_rn(y[r], y[r]);
  return tree_of<kStored>(squares);
}

// ---- Grouped ----

// Of the group that each lane's coordinate is in: f of all its numbers. Groups of 16, 32 or 64 neighbours.
template <class T, int kRegs, class F>
__device__ __forceinline__ void over_groups(T (&v)[kRegs], int group, const F& f) {
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    if (h == 16 && group == 16) break;
#pragma unroll
    for (int r = 0; r < kRegs; r++) v[r] = f(v[r], __shfl_xor_sync(kFullWarp, v[r], h));
  }
  if (group != 64) return;
#pragma unroll
  for (int r = 0; r + 1 < kRegs; r += 2) v[r] = v[r + 1] = f(v[r], v[r + 1]);
}

// x: sanitised, numbers from dim on of no meaning. Returns whether a float16 was not enough.
template <int kStored>
__device__ __forceinline__ bool encode_grouped(const float (&x)[kStored / 32], const format::SideLayout& side,
                                               const RowTarget& to, int lane) {
  constexpr int kRegs = kStored / 32;
  const float infinity = __uint_as_float(0x7F800000u), top = static_cast<float>((1 << side.bits) - 1);
  const int log_group = side.group == 16 ? 4 : side.group == 32 ? 5 : 6;
  // A least number of zero has the sign of the first one, which neither the minimum nor its order tells.
  float low[kRegs], high[kRegs];
  int first_zero[kRegs];  // twice the coordinate, and the sign
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const bool real = lane + 32 * r < side.dim;
    low[r] = real ? x[r] : infinity;
    high[r] = real ? x[r] : -infinity;
    first_zero[r] =
        real && x[r] == 0.0f ? 2 * (lane + 32 * r) + static_cast<int>(__float_as_uint(x[r]) >> 31) : INT_MAX;
  }
  over_groups(low, side.group, [](float a, float b) { return fminf(a, b); });
  over_groups(high, side.group, [](float a, float b) { return fmaxf(a, b); });
  over_groups(first_zero, side.group, [](int a, int b) { return min(a, b); });
  bool saturated = false;
  uint8_t codes[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    if (low[r] == 0.0f) low[r] = first_zero[r] & 1 ? -0.0f : 0.0f;
    const float range = high[r] > low[r] ? format::sub_rn(high[r], low[r]) : 0.0f;
    bool replaced = false, full = false;
    const uint16_t scale_bits = format::raw_from_f32(div_rn(range, top), &replaced, &full);
    const uint16_t zero_bits = format::raw_from_f32(low[r], &replaced, &full);
    const float scale = format::float_from_f16(scale_bits), zero = format::float_from_f16(zero_bits);
    float c = scale > 0 ? rintf(div_rn(format::sub_rn(x[r], zero), scale)) : 0.0f;
    c = c < 0 ? 0.0f : c > top ? top : c;
    const int i = lane + 32 * r;
    const bool real = i < side.dim;
    codes[r] = real ? static_cast<uint8_t>(c) : 0;
    saturated |= real && full;
    if (!real || i % side.group != 0) continue;
    to.scales[2 * (i >> log_group)] = scale_bits;
    to.scales[2 * (i >> log_group) + 1] = zero_bits;
  }
  store_row<kRegs>(codes, side.bits, side.row_words(), to.row, lane);
  return saturated;
}

// ---- Levels ----

// format::level_index.
__device__ __forceinline__ int level_index(const format::LevelTable& table, int count, float u, float v) {
  int first = 0, left = count - 1;
  while (left > 0) {
    const int half = left / 2;
    if (v >= mul_rn(__ldg(table.boundary + first + half), u)) {
      first += half + 1;
      left -= half + 1;
    } else {
      left = half;
    }
  }
  return first;
}

// y: rotated, destroyed. there, exponent: from rotate_warp.
template <int kStored>
__device__ __forceinline__ void encode_levels(float (&y)[kStored / 32], bool there, int exponent,
                                              const DeviceSide& side, const RowTarget& to, int lane) {
  constexpr int kRegs = kStored / 32;
  const format::LevelTable& table = side.rows->levels;
  const format::SideLayout& layout = side.layout;
  uint8_t codes[kRegs] = {};
  uint16_t scale = 0;
  if (there) {
    const float n2 = square_of<kStored>(y), u = mul_rn(sqrt_rn(n2), __ldg(&table.unit));
    float level[kRegs], products[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      codes[r] = static_cast<uint8_t>(level_index(table, 1 << layout.bits, u, y[r]));
      level[r] = __ldg(table.level + codes[r]);
      products[r] = mul_rn(y[r], level[r]);
    }
    format::QuantiseResult fit = {tree_of<kStored>(products), square_of<kStored>(level)};
    if (format::fits_kept_part(side.rule, layout.dim, kStored))
      fit.qq = kept_square_warp<kStored>(level, layout.dim, lane);
    const bool fits = side.rule == format::ScaleRule::kPaper || (fit.dot > 0 && fit.qq > 0);
    scale = stored_scale<kStored>(fits ? format::fitted_scale(side.rule, fit, n2, u) : 0.0f, exponent);
  }
  store_row<kRegs>(codes, layout.bits, layout.row_words(), to.row, lane);
  if (lane == 0) to.scales[0] = scale;
}

// ---- Scalar codes of few bits, and prod ----

// Half of an orthogonal sketch (format::apply_sketch).
template <int kStored>
__device__ __forceinline__ void turn_warp(float (&y)[kStored / 32], const uint32_t* signs, int lane) {
#pragma unroll
  for (int r = 0; r < kStored / 32; r++)
    y[r] = __uint_as_float(__float_as_uint(y[r]) ^ (__ldg(signs + r) << (31 - lane) & 0x80000000u));
  warp_fwht<kStored>(y, lane);
  warp_mix<kStored, false>(y);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
#pragma unroll
  for (int r = 0; r < kStored / 32; r++) y[r] = mul_rn(y[r], norm_rot);
}
// And back.
template <int kStored>
__device__ __forceinline__ void turn_back_warp(float (&y)[kStored / 32], const uint32_t* signs, int lane) {
  warp_mix<kStored, true>(y);
  warp_fwht<kStored>(y, lane);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
#pragma unroll
  for (int r = 0; r < kStored / 32; r++)
    y[r] = __uint_as_float(__float_as_uint(mul_rn(y[r], norm_rot)) ^
                           (__ldg(signs + r) << (31 - lane) & 0x80000000u));
}
// format::dense_apply in place.
template <int kStored, bool kTransposed>
__device__ __forceinline__ void dense_warp(const float* matrix, float (&y)[kStored / 32], int lane) {
  constexpr int kRegs = kStored / 32;
  float out[kRegs] = {};
#pragma unroll 1
  for (int q = 0; q < kRegs; q++) {
    float mine = 0;
#pragma unroll 1
    for (int i = 0; i < 32; i++) {
      const int row = 32 * q + i;
      float products[kRegs];
#pragma unroll
      for (int r = 0; r < kRegs; r++) {
        const int column = lane + 32 * r;
        products[r] =
            mul_rn(__ldg(matrix + (kTransposed ? column * kStored + row : row * kStored + column)), y[r]);
      }
      const float sum = tree_of<kStored>(products);
      if (lane == i) mine = sum;
    }
#pragma unroll
    for (int r = 0; r < kRegs; r++) out[r] = r == q ? mine : out[r];
  }
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = out[r];
}

// w = S r, in place.
template <int kStored>
__device__ __forceinline__ void sketch_warp(const DeviceSide& side, int head, float (&y)[kStored / 32],
                                            int lane) {
  if (const float* matrix = side.rows->sketch_matrix)
    return dense_warp<kStored, false>(matrix + static_cast<int64_t>(head) * kStored * kStored, y, lane);
  const uint32_t* signs = side.rows->sketch_signs + 2 * head * side.sign_stride;
#pragma unroll 1
  for (int i = 0; i < 2; i++) turn_warp<kStored>(y, signs + i * side.sign_stride, lane);
}
// z = S^T s, in place.
template <int kStored>
__device__ __forceinline__ void unsketch_warp(const DeviceSide& side, int head, float (&y)[kStored / 32],
                                              int lane) {
  if (const float* matrix = side.rows->sketch_matrix)
    return dense_warp<kStored, true>(matrix + static_cast<int64_t>(head) * kStored * kStored, y, lane);
  const uint32_t* signs = side.rows->sketch_signs + 2 * head * side.sign_stride;
#pragma unroll 1
  for (int i = 1; i >= 0; i--) turn_back_warp<kStored>(y, signs + i * side.sign_stride, lane);
}

// Scalar codes, of a prod side those of one bit less, its residual's norm and signs behind them. y: rotated,
// destroyed. there, exponent: from rotate_warp. zones: zones_apart(book).
template <int kStored>
__device__ __forceinline__ void encode_scalar_row(float (&y)[kStored / 32], bool there, int exponent,
                                                  const DeviceSide& side, int head, bool zones,
                                                  const RowTarget& to, int lane) {
  constexpr int kRegs = kStored / 32;
  const format::SideLayout& layout = side.layout;
  const bool prod = layout.family == format::CodeFamily::kProd;
  const int bits = layout.bits - prod;
  uint8_t codes[kRegs] = {};
  uint16_t scale = 0, norm = 0;
  if (there) {
    float kept[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++) kept[r] = y[r];
    scale = fit_warp<kStored, kMostRowBits>(kept, side.book, side.rule, side.search != 0, layout.dim, zones,
                                            exponent, lane, codes);
  }
  store_row<kRegs>(codes, bits, kRegs * bits, to.row, lane);
  if (lane == 0) to.scales[0] = scale;
  if (!prod) return;
  if (there) {
    const float norm_rot = format::hadamard_norm(format::log2_block(kStored)),
                t = mul_rn(format::float_from_bf16(scale), format::exp2_int(-exponent));
#pragma unroll
    for (int r = 0; r < kRegs; r++)
      y[r] = format::sub_rn(mul_rn(y[r], norm_rot), mul_rn(t, format::code_level(side.book, codes[r])));
    norm = format::bf16_from_float(mul_rn(sqrt_rn(square_of<kStored>(y)), format::exp2_int(exponent)));
    sketch_warp<kStored>(side, head, y, lane);
  }
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const unsigned minus = __ballot_sync(kFullWarp, there && y[r] < 0);
    if (lane == 0) to.row[kRegs * bits + r] = minus;
  }
  if (lane == 0) to.scales[1] = norm;
}

// ---- Decoding ----

// The code of coordinate 32 unit + lane.
__device__ __forceinline__ uint32_t load_row_code(const uint32_t* row, int bits, int words, int unit,
                                                  int lane) {
  const int bit = lane * bits, first = unit * bits + bit / 32, shift = bit % 32;
  if (first >= words) return 0;  // behind the end of a grouped row
  uint32_t code = row[first] >> shift;
  if (shift + bits > 32 && first + 1 < words) code |= row[first + 1] << (32 - shift);
  return code & ((1u << bits) - 1);
}

// A token in rotated space, or as it was (grouped): what format::decode_row has before it turns back.
template <int kStored>
__device__ __forceinline__ void decode_row(const DeviceSide& side, int head, const RowSource& from, int lane,
                                           float (&y)[kStored / 32]) {
  constexpr int kRegs = kStored / 32;
  const format::SideLayout& layout = side.layout;
  const bool prod = layout.family == format::CodeFamily::kProd;
  const int bits = layout.bits - prod, words = prod ? kRegs * bits : layout.row_words();
  const bool grouped = layout.family == format::CodeFamily::kGrouped;
  const float scale = grouped ? 0.0f : format::float_from_bf16(from.scales[0]);
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const uint32_t code = load_row_code(from.row, bits, words, r, lane);
    if (grouped) {
      const int group = min(lane + 32 * r, layout.dim - 1) / layout.group;
      y[r] = format::decode_grouped(format::GroupScale{from.scales[2 * group], from.scales[2 * group + 1]},
                                    static_cast<uint8_t>(code));
    } else {
      y[r] =
          mul_rn(scale, prod ? format::code_level(side.book, code) : __ldg(side.rows->levels.level + code));
    }
  }
  if (!prod) return;
  float z[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) z[r] = from.row[words + r] >> lane & 1u ? -1.0f : 1.0f;
  unsketch_warp<kStored>(side, head, z, lane);
  const float by = mul_rn(__ldg(&side.rows->gain), format::float_from_bf16(from.scales[1]));
#pragma unroll
  for (int r = 0; r < kRegs; r++) y[r] = format::add_rn(y[r], mul_rn(by, z[r]));
}

}  // namespace tq::cuda::code
