// SPDX-License-Identifier: Apache-2.0
// Queries of keys by rows: integers of 16 bits as for scalar codes (query.cuh), in the order in which a lane
// finds codes in a row. What a family needs beside them lies behind the numbers for exact tokens: of prod
// keys the same for the sketched query, of grouped keys the sums of the integers over each group.
#pragma once
#include "cuda/attend/params.cuh"
#include "cuda/code/row_operands.cuh"
#include "cuda/code/rows.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::attend {

// Behind the second operands of prod keys.
struct SketchRows {
  float ratio[kRowsPerBlock];    // of a sum of signs to one of levels, norm and scale apart
  int32_t sum[kRowsPerBlock];    // of the sketched integers
  int32_t whole[kRowsPerBlock];  // of the others, where codes are bits (codes_are_bits)
};
// Of grouped keys: int32_t [groups][kRowsPerBlock]. Of keys in bands the same of bands, see bands.cuh.

// Bytes of it in a query slot.
inline int row_query_bytes(const format::SideLayout& side) {
  if (side.family == format::CodeFamily::kProd)
    return query_rows_at(side.stored) + static_cast<int>(sizeof(SketchRows));
  const int sums = side.family == format::CodeFamily::kGrouped ? side.num_groups() : side.num_bands();
  return sums * kRowsPerBlock * static_cast<int>(sizeof(int32_t));
}

constexpr int kRowsPerSet = 4, kQuerySets = kRowsPerBlock / kRowsPerSet;

// Place of a row's high byte as second operand (query.cuh): position = lane of matrix step 0, of which a
// lane's two registers have 0-15 and the others; 512 bytes a step. The low one lies 32 behind.
__device__ __forceinline__ int set_place(int row, int position) {
  return row / kRowsPerSet * 256 + (row % kRowsPerSet * 8 + position % 16 / 4) * 8 + position / 16 * 4 +
         position % 4;
}
// Operands of a matrix step, as a lane takes its first operand: a uint4. A row has 64 bytes of each step; the
// low byte of a number lies behind the high ones of four positions.
constexpr int kOperandStep = 512, kOperandRow = 64;
__device__ __forceinline__ void row_operand(const uint8_t* operands, int step, int lane, uint32_t (&a)[4]) {
  const uint4 v = reinterpret_cast<const uint4*>(operands)[step * 32 + lane];
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}
// Where coordinate 32 piece + c of a query stands among a row's bytes: what follows from c, behind what
// follows from the piece. Of prod keys lane t finds codes and signs in words of its own if there are four for
// every lane (words_of_lanes), else in a quarter of each. Signs are taken as every eighth bit of a word, and
// so are codes of one bit in a lane's own word; there codes of two bits are every other one of a word, whose
// places are nibbles then, and others eight neighbours.
constexpr bool words_of_lanes(int pieces) { return pieces % 4 == 0; }
constexpr bool codes_are_bits(int pieces, int bits) {
  return words_of_lanes(pieces) && code_order(bits) == CodeOrder::kSigns;
}
__device__ __forceinline__ constexpr int plain_place(int c) { return c % 16 / 4 * 16 + c / 16 * 8 + c % 4; }
template <int kPieces>
__device__ __forceinline__ int prod_piece(int piece) {
  return words_of_lanes(kPieces) ? piece / 4 * 4 * kOperandStep + piece % 4 * 16 : piece * kOperandStep;
}
template <int kPieces>
__device__ __forceinline__ int sign_place(int c) {
  const int place = c % 2 * 8 + c / 8;
  return place + (words_of_lanes(kPieces) ? c % 8 / 2 * kOperandStep : c % 8 / 2 * 16);
}
// bits: of the codes.
template <int kPieces>
__device__ __forceinline__ int code_place(int bits, int c) {
  if (codes_are_bits(kPieces, bits)) return sign_place<kPieces>(c);
  if (words_of_lanes(kPieces) && code_order(bits) == CodeOrder::kOthers)  // of 16 every other one
    return (c / 16 * 2 + c % 2) * kOperandStep + c % 16 / 8 * 8 + c % 8 / 2;
  return c % 8 / 4 * 8 + c % 4 + (words_of_lanes(kPieces) ? c / 8 * kOperandStep : c / 8 * 16);
}

// Sums of grouped integers, q[i] of coordinate 32 i + lane, into [groups][kRowsPerBlock] from the row's on.
template <int kPieces>
__device__ __forceinline__ void put_group_sums(const format::SideLayout& side, int (&q)[kPieces], int32_t* to,
                                               int lane) {
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
#pragma unroll
    for (int h = 1; h <= 8; h *= 2) q[i] += __shfl_xor_sync(~0u, q[i], h);
    if (side.group > 16) q[i] += __shfl_xor_sync(~0u, q[i], 16);
  }
  const int groups = side.num_groups();
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    if (side.group == 64 && i % 2 == 1) continue;
    const int sum = side.group == 64 && i + 1 < kPieces ? q[i] + q[min(i + 1, kPieces - 1)] : q[i];
    const int group = side.group == 16 ? 2 * i + lane / 16 : side.group == 32 ? i : i / 2;
    if (lane % 16 == 0 && (side.group == 16 || lane == 0) && group < groups) to[group * kRowsPerBlock] = sum;
  }
}

// x: of row r, as code_query wants it. slot: its block's. Fills in the row's operands.
template <int kStored>
__device__ __forceinline__ CodedQuery row_query(const AttendParams& p, int kv_head,
                                                uint32_t (&signs)[kStored / 32], int exponent,
                                                float (&x)[kStored / 32], int r, uint8_t* slot, int lane) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const format::CodeFamily family = side.layout.family;
  const bool prod = family == format::CodeFamily::kProd;
  uint8_t* const extra = slot + p.plan.row_query_at;
  const auto put_at = [](uint8_t* to, uint8_t high, uint8_t low) {
    to[0] = high;
    to[4] = low;
  };
  if (family == format::CodeFamily::kGrouped) {  // as it stands
    const float down = format::exp2_int(-exponent) * p.numbers.query_sign;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] *= down;
    int q[kPieces];
    const RoundedQuery rounded = round_query<ExactDivision>(p, x, [&](int i, uint8_t high, uint8_t low) {
      put_at(slot + kOperandRow * r + plain_place(lane) + kOperandStep * i, high, low);
      q[i] = static_cast<int8_t>(high) * 256 + static_cast<int8_t>(low);
    });
    put_group_sums(side.layout, q, reinterpret_cast<int32_t*>(extra) + r, lane);
    return CodedQuery{rounded.unit * p.numbers.scale_log2 * format::exp2_int(exponent), 0.0f, 0};
  }
  uint8_t* const own =
      slot + kOperandRow * r + (prod ? code_place<kPieces>(side.layout.bits - 1, lane) : plain_place(lane));
  int whole = 0;  // of the integers
  CodedQuery query = code_query<kStored, ExactDivision>(
      p, kv_head, signs, exponent, x, lane, [&](int i, uint8_t high, uint8_t low) {
        put_at(own + (prod ? prod_piece<kPieces>(i) : kOperandStep * i), high, low);
        whole += static_cast<int8_t>(high) * 256 + static_cast<int8_t>(low);
      });
  query.half_sum = 0;
  if (!prod) {
    query.scale *= __ldg(&side.rows->grid_unit);
    return query;
  }
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; i++) largest = fmaxf(largest, fabsf(x[i]));
  largest = all_max(largest);
  code::sketch_warp<kStored>(side, kv_head, x, lane);
  const RoundedQuery rounded = round_query<ExactDivision>(p, x, [&](int i, uint8_t high, uint8_t low) {
    put_at(extra + kOperandRow * r + sign_place<kPieces>(lane) + prod_piece<kPieces>(i), high, low);
  });
  SketchRows* rows = reinterpret_cast<SketchRows*>(extra + query_rows_at(kStored));
  whole = all_sum(whole);
  const float unit = largest * (1.0f / p.numbers.query_max);
  if (lane == 0) {
    rows->ratio[r] = unit > 0.0f ? rounded.unit / unit * __ldg(&side.rows->gain) : 0.0f;
    rows->sum[r] = rounded.sum;
    rows->whole[r] = whole;
  }
  return query;
}

}  // namespace tq::cuda::attend
