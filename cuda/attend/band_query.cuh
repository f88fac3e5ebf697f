// SPDX-License-Identifier: Apache-2.0
// Queries of keys in bands: the coordinates in the head's order, each 32 of them rotated by themselves, then
// integers of 16 bits with one unit for the row, as second operands of the matrix unit like those of scalar
// codes. One unit, not one a band, since a band's scale then is all that its products need; an integer is off
// by as much of the row's largest number as in any other code.
#pragma once
#include "cuda/attend/row_query.cuh"
#include "cuda/row/bands.cuh"

namespace tq::cuda::attend {

// Behind the numbers for exact tokens, of each band 1/2 sum of the row's integers where levels lie between
// bytes, else 0: int32_t [bands][kRowsPerBlock]. x: of the row, as code_query wants it.
template <int kPieces>
__device__ __forceinline__ CodedQuery band_query(const AttendParams& p, const RowPlace& place, int kv_head,
                                                 const uint32_t (&signs)[kPieces], const QuerySize& size,
                                                 float (&x)[kPieces], int r, uint8_t* slot, int lane) {
  const DeviceSide& side = p.layer.key;
  const BandTables& tables = band_tables(side);
  const int dim = side.layout.dim, first = kv_head * dim + lane;
  const int64_t from = place.element(p.call.q_strides);
  const float down = format::exp2_int(-size.exponent) * p.numbers.query_sign,
              unit = format::exp2_int(size.exponent);
  float constant = 0.0f;
  if (p.layer.key_matrix) {
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] *= down;
    turn_row(query_columns(p.layer, kv_head), dim, 1, dim, x, lane);
    order_query<kPieces>(side, kv_head, x, lane);
  } else {  // loaded once more, in the places' order
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      x[i] =
          !size.finite || lane + 32 * i >= dim
              ? 0.0f
              : load_scalar(p.call.q, from + __ldg(tables.order + first + 32 * i), p.layer.io_dtype) * down;
  }
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    if (lane + 32 * i >= dim) continue;
    if (side.centre) constant = fmaf(x[i], __ldg(side.centre + first + 32 * i), constant);
    x[i] = signs[i] >> lane & 1 ? -x[i] : x[i];
  }
  hadamard_lanes(x, lane);
  CodedQuery query = {0.0f, 0.0f, 0};
  if (side.centre) query.constant = clamp_logit(all_sum(constant) * p.numbers.scale_log2 * unit);
  uint8_t* const to = slot + set_place(r, lane);
  int32_t* const half_sums = reinterpret_cast<int32_t*>(slot + p.plan.row_query_at) + r;
  const RoundedQuery rounded = round_query<ExactDivision>(p, x, [&](int i, uint8_t high, uint8_t low) {
    to[i * 512] = high;
    to[i * 512 + 32] = low;
    const int sum = all_sum(static_cast<int8_t>(high) * 256 + static_cast<int8_t>(low));
    if (lane == 0) half_sums[i * kRowsPerBlock] = tables.book[i].half() ? sum >> 1 : 0;
  });
  query.scale = fminf(rounded.unit * format::hadamard_norm(format::log2_block(format::kGroupCodes)) *
                          p.numbers.scale_log2 * unit,
                      kMaxScale);
  return query;
}

}  // namespace tq::cuda::attend
