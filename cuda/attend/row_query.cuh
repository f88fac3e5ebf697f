// SPDX-License-Identifier: Apache-2.0
// Queries of keys by rows: integers of 16 bits as for scalar codes (query.cuh), in the order in which a lane
// finds codes in a row. What a family needs beside them lies behind the numbers for exact tokens: of prod
// keys the same for the sketched query, of grouped keys the sums of the integers over each group.
#pragma once
#include "cuda/attend/params.cuh"
#include "cuda/code/rows.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::attend {

// Behind the second operands of prod keys.
struct SketchRows {
  float ratio[kRowsPerBlock];  // of a sum of signs to one of levels, norm and scale apart
  int32_t sum[kRowsPerBlock];  // of the sketched integers
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
// Place of a row's high byte at a position of a matrix step, as a lane takes its first operand: a uint4. The
// low one lies behind those of four positions.
__device__ __forceinline__ int operand_place(int row, int step, int position) {
  return step * 512 + (4 * row + position % 16 / 4) * 16 + position / 16 * 8 + position % 4;
}
__device__ __forceinline__ void row_operand(const uint8_t* operands, int step, int lane, uint32_t (&a)[4]) {
  const uint4 v = reinterpret_cast<const uint4*>(operands)[step * 32 + lane];
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}
// Where coordinate 32 piece + c of a prod key's query stands. Codes of a row are taken eight at a time, signs
// as every eighth bit of a word. Lane t finds both in words of its own if there are four for every lane
// (words_of_lanes), else in a quarter of each.
struct OperandPlace {
  int step, position;
};
constexpr bool words_of_lanes(int pieces) { return pieces % 4 == 0; }
template <int kPieces>
__device__ __forceinline__ OperandPlace octet_place(int piece, int c) {
  const int place = c % 8 / 4 * 16 + c % 4;
  if constexpr (words_of_lanes(kPieces)) return {piece / 4 * 4 + c / 8, place + piece % 4 * 4};
  return {piece, place + c / 8 * 4};
}
template <int kPieces>
__device__ __forceinline__ OperandPlace sign_place(int piece, int c) {
  const int place = c % 2 * 16 + c / 8;
  if constexpr (words_of_lanes(kPieces)) return {piece / 4 * 4 + c % 8 / 2, place + piece % 4 * 4};
  return {piece, place + c % 8 / 2 * 4};
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
                                                const uint32_t (&signs)[kStored / 32], int exponent,
                                                float (&x)[kStored / 32], int r, uint8_t* slot, int lane) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const format::CodeFamily family = side.layout.family;
  const bool prod = family == format::CodeFamily::kProd;
  uint8_t* const extra = slot + p.plan.row_query_at;
  const auto put_at = [&](uint8_t* operands, OperandPlace at, uint8_t high, uint8_t low) {
    uint8_t* to = operands + operand_place(r, at.step, at.position);
    to[0] = high;
    to[4] = low;
  };
  if (family == format::CodeFamily::kGrouped) {  // as it stands
    const float down = format::exp2_int(-exponent) * p.numbers.query_sign;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] *= down;
    int q[kPieces];
    const RoundedQuery rounded = round_query<ExactDivision>(p, x, [&](int i, uint8_t high, uint8_t low) {
      put_at(slot, {i, lane}, high, low);
      q[i] = static_cast<int8_t>(high) * 256 + static_cast<int8_t>(low);
    });
    put_group_sums(side.layout, q, reinterpret_cast<int32_t*>(extra) + r, lane);
    return CodedQuery{rounded.unit * p.numbers.scale_log2 * format::exp2_int(exponent), 0.0f, 0};
  }
  CodedQuery query = code_query<kStored, ExactDivision>(
      p, kv_head, signs, exponent, x, lane, [&](int i, uint8_t high, uint8_t low) {
        put_at(slot, prod ? octet_place<kPieces>(i, lane) : OperandPlace{i, lane}, high, low);
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
    put_at(extra, sign_place<kPieces>(i, lane), high, low);
  });
  SketchRows* rows = reinterpret_cast<SketchRows*>(extra + query_rows_at(kStored));
  const float unit = largest * (1.0f / p.numbers.query_max);
  if (lane == 0) {
    rows->ratio[r] = unit > 0.0f ? rounded.unit / unit * __ldg(&side.rows->gain) : 0.0f;
    rows->sum[r] = rounded.sum;
  }
  return query;
}

}  // namespace tq::cuda::attend
