// SPDX-License-Identifier: Apache-2.0
// A query row on its way to integers, in the registers of a warp: lane l has the coordinates l, l + 32, ...
// What is the same for every kernel; the order in which the integers' bytes lie in shared memory, where the
// matrix unit takes them as its first or its second operand, is each kernel's own.
#pragma once
#include "cuda/row/logits.cuh"
#include "cuda/row/place.cuh"
#include "cuda/warp/elements.cuh"
#include "cuda/warp/fwht.cuh"
#include "cuda/warp/reduce.cuh"
#include "cuda/warp/turn.cuh"

namespace tq {
namespace cuda {

template <int kPieces>
__device__ __forceinline__ void load_query(const RowParams& p, const RowPlace& place, int lane,
                                           float (&x)[kPieces]) {
  load_row<kPieces>(p.call.q, place.element(p.call.q_strides), p.layer.io_dtype, p.layer.key.layout.dim, lane,
                    x);
}

struct QuerySize {
  float largest;  // magnitude of a coordinate
  int exponent;   // of a power of two near it, within what exp2_int takes both ways
  bool finite;
};
// Bits of the largest magnitude among a lane's coordinates.
template <int kPieces>
__device__ __forceinline__ uint32_t largest_bits(const float (&x)[kPieces]) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kPieces; i++) bits = max(bits, __float_as_uint(x[i]) & 0x7FFFFFFFu);
  return bits;
}
// bits: of the largest of the row.
__device__ __forceinline__ QuerySize size_of_query(uint32_t bits) {
  const bool finite = bits < 0x7F800000u;
  if (!finite) bits = 0;
  return QuerySize{__uint_as_float(bits), min(max(static_cast<int>(bits >> 23) - 127, -120), 120), finite};
}
// A row that holds NaN or infinity becomes zeros, so that nothing of it reaches the rows beside it in the
// matrix unit. Its end writes NaN (write.cuh).
template <int kPieces>
__device__ __forceinline__ QuerySize admit_query(float (&x)[kPieces]) {
  const QuerySize size = size_of_query(all_max(largest_bits(x)));
  if (!size.finite) {
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = 0.0f;
  }
  return size;
}

struct CodedQuery {
  float scale;     // integer score x key scale -> log2 units
  float constant;  // what the key centre adds, log2 units
  int half_sum;    // 1/2 sum of the integers, where levels lie between bytes; else 0
};

struct RoundedQuery {
  float unit;  // what one counts
  int sum;     // of the integers
};
// Integers of 16 bits. put(i, high, low) stores the two bytes of coordinate 32 i + lane: integer = 256 * high
// + low, both signed.
template <class Arithmetic, int kPieces, class Put>
__device__ __forceinline__ RoundedQuery round_query(const RowParams& p, const float (&x)[kPieces],
                                                    const Put& put) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) largest = fmaxf(largest, fabsf(x[i]));
  largest = all_max(largest);
  const float up = largest > 0.0f ? Arithmetic::divide(p.numbers.query_max, largest) : 0.0f;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    const int q = __float2int_rn(x[i] * up), high = (q + 128) >> 8;
    sum += q;
    put(i, static_cast<uint8_t>(high), static_cast<uint8_t>(q - high * 256));
  }
  return RoundedQuery{largest * (1.0f / p.numbers.query_max), all_sum(sum)};
}

// x: divided by 2^exponent and with the sign of the softmax scale, which keeps the transform of large float32
// queries in range; turned, if keys are (kTurns: they may be); then rotated and rounded by round_query.
template <int kStored, class Arithmetic, bool kTurns = true, class Put>
__device__ __forceinline__ CodedQuery code_query(const RowParams& p, int kv_head,
                                                 uint32_t (&signs)[kStored / 32], int exponent,
                                                 float (&x)[kStored / 32], int lane, const Put& put) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const float down = format::exp2_int(-exponent) * p.numbers.query_sign;
  CodedQuery coded = {0.0f, 0.0f, 0};
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] *= down;
  if (kTurns && p.layer.key_matrix) {
    turn_row(query_columns(p.layer, kv_head), side.layout.dim, 1, side.layout.dim, x, lane);
    load_signs<kPieces>(side, kv_head, signs);  // once more, instead of registers that hold them meanwhile
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    if (side.centre && lane + 32 * i < side.layout.dim)
      coded.constant =
          fmaf(x[i], __ldg(side.centre + kv_head * side.layout.dim + lane + 32 * i), coded.constant);
  }
  const float unit = format::exp2_int(exponent);
  if (side.centre) coded.constant = clamp_logit(all_sum(coded.constant) * p.numbers.scale_log2 * unit);
#pragma unroll
  for (int i = 0; i < kPieces; i++) x[i] = signs[i] >> lane & 1 ? -x[i] : x[i];
  rotate_row<kStored>(x, lane);
  const RoundedQuery rounded = round_query<Arithmetic>(p, x, put);
  if (side.book.half()) coded.half_sum = rounded.sum >> 1;
  coded.scale =
      fminf(rounded.unit * format::hadamard_norm(format::log2_block(kStored)) * p.numbers.scale_log2 * unit,
            kMaxScale);
  return coded;
}

}  // namespace cuda
}  // namespace tq
