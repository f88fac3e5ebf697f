// SPDX-License-Identifier: Apache-2.0
// The ends of a prefill row block: queries into operands at its start (each warp its own 16 rows),
// accumulators into output rows at its end. The rotation back works on the accumulators where they are:
// coordinate bit 0 is in a register pair, bits 1 2 are lanes, the others registers.
#pragma once
#include "cuda/prefill/params.cuh"
#include "cuda/ptx/hmma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/row/mask.cuh"
#include "cuda/row/query.cuh"
#include "cuda/row/write.cuh"
#include "cuda/warp/store_run.cuh"

namespace tq::cuda::prefill {

// A row block of a kv head.
struct PrefillBlock : SequenceRows {   // in shared memory at kBlockAt
  int kv_head, first_row, rows_total;  // row = query token * q_per_kv + head in the group
  int begin, end;                      // coded tokens that some row sees; of ranges: a run of them
  int first_tile, num_tiles;           // from the step of `begin` on

  __device__ __forceinline__ void take(int first, int last, int step_tokens) {
    begin = first;
    end = last;
    first_tile = first / step_tokens * (step_tokens / format::kTileTokens);
    num_tiles = max((last + format::kTileTokens - 1) / format::kTileTokens - first_tile, 0);
  }
};

static_assert(kBlockAt + sizeof(PrefillBlock) <= kPlacesAt && kPlacesAt + 32 * 4 <= kPrefillHeadBytes,
              "their places");

template <bool kMasks>
__device__ __forceinline__ RowRange range_of(const PrefillParams& p, const PrefillBlock& b, int row) {
  return row_range<kMasks>(p, b, query_of_row(p, b.query_tokens, row));
}
// Of `count` rows from `first` on, as far as there are such; by a whole warp.
template <bool kMasks>
__device__ __forceinline__ RowsRange range_of(const PrefillParams& p, const PrefillBlock& b, int first,
                                              int count, int lane) {
  return rows_range<kMasks>(p, b, query_of_row(p, b.query_tokens, first),
                            query_of_row(p, b.query_tokens, min(first + count, b.rows_total) - 1), lane);
}

// ALiBi of a row.
struct RowSlope {
  float slope;  // log2 units a token
  int position;
};
__device__ __forceinline__ RowSlope slope_of_row(const PrefillParams& p, const PrefillBlock& b, int row) {
  row = min(row, b.rows_total - 1);
  bool finite = true;
  return RowSlope{slope_of_head(p, row_place(p, b, b.kv_head, row).head, finite),
                  b.position + query_of_row(p, b.query_tokens, row)};
}

// What a lane of the first sixteen says of its row, `place`: the ranges.
template <bool kMasks>
__device__ __forceinline__ void put_ranges(const PrefillParams& p, const PrefillBlock& b, int row, int at,
                                           PrefillRowTable* table) {
  const RowRange range = range_of<kMasks>(p, b, row);
  table->begin[at] = range.begin;
  table->end[at] = range.end;
  table->visible_begin[at] = range.visible_begin;
  table->visible_end[at] = range.visible_end;
  table->unit[at] = ValueUnit{ValueUnit::kFirst};
}
// A warp's 16 rows, a row a lane: its place, of which dividing by rows a token is the longest part, and its
// range, which goes to the table.
template <bool kMasks>
struct WarpRows {
  int first, last;  // of the row block; last: the last there is
  RowPlace place;
  int64_t element;

  __device__ __forceinline__ WarpRows(const PrefillParams& p, const PrefillBlock& b, int warp,
                                      PrefillRowTable* table, int lane)
      : first(b.first_row + warp * 16), last(b.rows_total - 1) {
    const int own = min(first + lane % 16, last);
    place = row_place(p, b, b.kv_head, own);
    element = place.element(p.call.q_strides);
    if (lane < 16) put_ranges<kMasks>(p, b, own, warp * 16 + lane, table);
  }
  template <int kPieces>
  __device__ __forceinline__ void load(const PrefillParams& p, int r, float (&x)[kPieces], int lane) const {
    load_row<kPieces>(p.call.q, __shfl_sync(~0u, element, r), p.layer.io_dtype, p.layer.key.layout.dim, lane,
                      x);
  }
};

// One lane, of row `at` of the table. real: there is such a row.
__device__ __forceinline__ void put_query(PrefillRowTable* table, int at, bool real, bool coded,
                                          const CodedQuery& query, float up_log2, float down, bool finite) {
  table->scale[at] = real ? query.scale : 0.0f;
  table->exact_scale[at] = real ? up_log2 : 0.0f;
  table->exact_down[at] = down;
  table->constant[at] = query.constant;
  table->half_sum[at] = query.half_sum;
  table->flags[at] = (!coded || is_wild(query.scale) ? kRowWild : 0) | (finite ? 0 : kRowNotFinite);
}
// Factor that brings a query to order 1, with the sign of the softmax scale, and back to log2 units: a power
// of two keeps sums of large queries in range.
__device__ __forceinline__ float down_of(const PrefillParams& p, const QuerySize& size) {
  return format::exp2_int(-size.exponent) * p.numbers.query_sign;
}
__device__ __forceinline__ float up_of(const PrefillParams& p, const QuerySize& size) {
  return fminf(format::exp2_int(size.exponent) * p.numbers.scale_log2, kMaxScale);
}

// Two floats as a pair of 16-bit numbers, and what these lack as another one.
template <bool kBf16>
__device__ __forceinline__ void split_pair(float low, float high, uint32_t& pair, uint32_t& rest) {
  if constexpr (kBf16) {
    pair = pack_bf16(low, high);
    rest = pack_bf16(low - low_bf16(pair), high - high_bf16(pair));
  } else {
    pair = pack_f16(low, high);
    const float2 kept = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    rest = pack_f16(low - kept.x, high - kept.y);
  }
}

// Row r of a warp's 16 among operands of 16-bit numbers: coordinate 32 i + lane lies 512 i behind what this
// returns, and what its number lacks, if that is there, as far behind those of all coordinates.
__device__ __forceinline__ uint16_t* query_operand(uint8_t* queries, int r, int lane) {
  return reinterpret_cast<uint16_t*>(queries) + lane / 16 * 256 + (r % 8 * 4 + lane % 8 / 2) * 8 +
         (r / 8 + lane % 16 / 8 * 2) * 2 + lane % 2;
}
template <int kPieces>
__device__ __forceinline__ void put_operands(uint16_t* to, bool bf16, bool two_parts,
                                             const float (&x)[kPieces]) {
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    uint32_t part, rest;
    if (bf16)
      split_pair<true>(x[i], 0.0f, part, rest);
    else
      split_pair<false>(x[i], 0.0f, part, rest);
    to[i * 512] = static_cast<uint16_t>(part);
    if (two_parts) to[(kPieces + i) * 512] = static_cast<uint16_t>(rest);
  }
}

// The warp's rows: the row table, and queries in shared memory in A operand order, as bytes (raw keys: 16-bit
// numbers).
template <int kStored, bool kRaw, bool kMasks>
__device__ __forceinline__ void prepare_rows(const PrefillParams& p, const PrefillBlock& b, int warp,
                                             PrefillRowTable* table, uint8_t* queries, int lane) {
  constexpr int kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const bool coded = !kRaw || !side.layout.raw();
  uint32_t signs[kPieces];
  load_signs<kPieces>(side, b.kv_head, signs);
  const WarpRows<kMasks> rows(p, b, warp, table, lane);
  const int first = rows.first, last = rows.last;
  float next[kPieces];
  rows.load(p, 0, next, lane);
#pragma unroll 1
  for (int r = 0; r < 16; r++) {
    float x[kPieces];
    const bool real = first + r <= last;
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = real ? next[i] : 0.0f;
    if (r < 15) rows.load(p, r + 1, next, lane);
    QuerySize size = admit_query(x);
    if (kMasks && p.call.alibi_slopes) slope_of_head(p, __shfl_sync(~0u, rows.place.head, r), size.finite);
    const float down = down_of(p, size), up_log2 = up_of(p, size);
    CodedQuery query = {up_log2, 0.0f, 0};
    if (coded) {
      query = code_query<kStored, FastDivision>(
          p, b.kv_head, signs, size.exponent, x, lane, [&](int i, uint8_t high, uint8_t low) {
            // made here: ahead of the rotation it would take registers from the steps
            uint8_t* to = queries + (r % 8 * 4 + lane % 16 / 4) * 16 + (r / 8 + lane / 16 * 2) * 4 + lane % 4;
            to[i * 512] = high;
            to[(kPieces + i) * 512] = low;
          });
    } else {
#pragma unroll
      for (int i = 0; i < kPieces; i++) x[i] *= down;
      put_operands(query_operand(queries, r, lane), p.layer.io_dtype == DataType::kBF16,
                   p.layer.io_dtype == DataType::kF32, x);
    }
    if (lane == 0) put_query(table, warp * 16 + r, real, coded, query, up_log2, down, size.finite);
  }
  __syncwarp();
}

// The warp's unrotated queries, scaled as exact_scale says, in two parts of the type in which exact copies
// multiply.
template <int kStored>
__device__ __forceinline__ void load_exact_queries(const PrefillParams& p, const PrefillBlock& b, int warp,
                                                   const PrefillRowTable* table, uint8_t* queries, int lane) {
  constexpr int kPieces = kStored / 32;
  const int first = b.first_row + warp * 16, last = b.rows_total - 1;
#pragma unroll 2
  for (int r = 0; r < 16; r++) {
    float x[kPieces];
    load_query<kPieces>(p, row_place(p, b, b.kv_head, min(first + r, last)), lane, x);
    const int at = warp * 16 + r;
    const bool finite = !(table->flags[at] & kRowNotFinite);
    const float down = table->exact_down[at];
#pragma unroll
    for (int i = 0; i < kPieces; i++) x[i] = finite ? x[i] * down : 0.0f;
    put_operands(query_operand(queries, r, lane), p.layer.io_dtype != DataType::kF16, true, x);
  }
  __syncwarp();
}

// o[n][0 1] = row g, o[n][2 3] = row g + 8; coordinates 8 n + 2 t, + 1. Without signs and norm.
template <int kStored>
__device__ __forceinline__ void unrotate_accumulators(float (&o)[kStored / 8][4], int lane) {
  // columns of 8 in a block of 2^k coordinates
  constexpr int kOdd = format::odd_factor(kStored), kBlock = kStored / 8 / kOdd;
  if constexpr (kOdd > 1) {
#pragma unroll
    for (int at = 0; at < kBlock; at++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float in[kOdd];
#pragma unroll
        for (int c = 0; c < kOdd; c++) in[c] = o[c * kBlock + at][i];
#pragma unroll
        for (int r = 0; r < kOdd; r++) {
          float sum = 0.0f;
#pragma unroll
          for (int c = 0; c < kOdd; c++) sum = fmaf(format::dct_entry(kOdd, c, r), in[c], sum);
          o[r * kBlock + at][i] = sum;
        }
      }
  }
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float a = o[n][i], b = o[n][i + 1];
      o[n][i] = a + b;
      o[n][i + 1] = a - b;
    }
#pragma unroll
    for (int h = 1; h <= 2; h *= 2)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float other = __shfl_xor_sync(~0u, o[n][i], h);
        o[n][i] = lane & h ? other - o[n][i] : o[n][i] + other;
      }
  }
#pragma unroll
  for (int h = 1; h < kBlock; h *= 2)
#pragma unroll
    for (int n = 0; n < kStored / 8; n++)
      if (!(n % kBlock & h)) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float a = o[n][i], b = o[n + h][i];
          o[n][i] = a + b;
          o[n + h][i] = a - b;
        }
      }
}

// Accumulators of coded values to the caller's space: unit, rotation, signs, centre. l: the rows' whole sums.
template <class Order, int kStored>
__device__ __forceinline__ void leave_rotated_space(const PrefillParams& p, int kv_head,
                                                    const float (&unit)[2], const float (&l)[2],
                                                    float (&o)[kStored / 8][4], int lane) {
  const DeviceSide& side = p.layer.value;
  const int dim = side.layout.dim;
  unrotate_accumulators<kStored>(o, lane);
  const float norm = format::hadamard_norm(format::log2_block(kStored));
#pragma unroll
  for (int n = 0; n < kStored / 8; n++) {
    const int first = Order::coordinate(n, lane & 3);
    const uint32_t signs = __ldg(side.signs + kv_head * side.sign_stride + first / 32) >> first % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = first + i;
      const float factor = signs >> i & 1 ? -norm : norm;
      const float centre = side.centre && at < dim ? __ldg(side.centre + kv_head * dim + at) : 0.0f;
#pragma unroll
      for (int h = 0; h < 2; h++) o[n][2 * h + i] = fmaf(l[h], centre, o[n][2 * h + i] * (factor * unit[h]));
    }
  }
}

// The lane's part of a row to the caller. state: of the whole row. half: 0 = row g, 1 = row g + 8. finite:
// the query was.
template <class Order, int kStored>
__device__ __forceinline__ void write_part(const PrefillParams& p, const PrefillBlock& b, int row, int half,
                                           bool finite, SoftmaxState state, const float (&o)[kStored / 8][4],
                                           int lane) {
  const RowPlace place = row_place(p, b, b.kv_head, row);
  const RowEnd end = end_of_row<FastDivision>(p, state, place.head, finite);
  const int64_t to = place.element(p.call.out_strides);
  constexpr int kRun = Order::kRun;
  const bool whole = is_aligned<kRun>(p.call.out, to, p.call.out_dtype);
#pragma unroll
  for (int n = 0; n < kStored / 8; n += kRun / 2) {
    const int at = Order::coordinate(n, lane & 3);
    if (at >= p.layer.value.layout.dim) continue;
    float x[kRun];
#pragma unroll
    for (int i = 0; i < kRun; i++) x[i] = weighted(o[n + i / 2][2 * half + i % 2], end.factor);
    if (whole && at + kRun <= p.layer.value.layout.dim) {
      store_run<kRun>(p.call.out, to + at, p.call.out_dtype, x);
    } else {
#pragma unroll
      for (int i = 0; i < kRun; i++)
        if (at + i < p.layer.value.layout.dim) store_scalar(p.call.out, to + at + i, p.call.out_dtype, x[i]);
    }
  }
  if ((lane & 3) == 0) write_lse(p, place, end);
}

}  // namespace tq::cuda::prefill
