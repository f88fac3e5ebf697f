// SPDX-License-Identifier: Apache-2.0
// A row block of queries into shared memory: rotated, as 16-bit integers split into a high and a low signed
// byte, in the order of the matrix unit's second operand. A set of 4 rows is its 8 columns: 2 r the high
// bytes of row r, 2 r + 1 the low ones, so that score = 256 * high + low exactly, in one lane.
#pragma once
#include "cuda/attend/band_query.cuh"
#include "cuda/attend/raw.cuh"
#include "cuda/attend/row_query.cuh"
#include "cuda/row/mask.cuh"
#include "cuda/row/query.cuh"

namespace tq::cuda::attend {

// What prepare_query asks memory for first: the signs, and the first of a warp's rows.
template <class Core>
struct QueryLoads {
  static constexpr int kPieces = Core::kKey / 32;
  uint32_t signs[kPieces], row[kPieces];

  __device__ __forceinline__ void load_row_of(const AttendParams& p, const SequenceRows& s, int kv_head,
                                              int row_of, int lane) {
    load_row_bits<kPieces>(p.call.q, row_place(p, s, kv_head, row_of).element(p.call.q_strides),
                           p.layer.io_dtype, p.layer.key.layout.dim, lane, row);
  }
  __device__ __forceinline__ void load(const AttendParams& p, const SequenceRows& s, int kv_head, int row_of,
                                       int lane) {
    load_signs<kPieces>(p.layer.key, kv_head, signs);
    load_row_of(p, s, kv_head, row_of, lane);
  }
};

// Rows first, first + step, ... < rows of a block, by one warp that has loaded the first. Core::kKey: stored
// key dimension, a multiple of 32 (raw keys: head_dim rounded up). first_row = query token * q_per_kv + head
// of the block's row 0. Inlined: kernel parameters behind a reference would be loaded from memory, one
// dependent miss after another, at the start of every launch. kTurns: keys may have matrices.
template <class Core, bool kTurns = true>
__device__ __forceinline__ void prepare_query(const AttendParams& p, const SequenceRows& s, int kv_head,
                                              int first_row, int rows, int first, int step,
                                              QueryLoads<Core>& loads, uint8_t* slot, int lane) {
  constexpr int kStored = Core::kKey, kPieces = kStored / 32;
  const DeviceSide& side = p.layer.key;
  const bool banded = Core::kBands && side.layout.banded(), coded = !side.layout.raw() && !banded,
             by_rows = Core::kByRows && coded_rows(side.layout);
  QueryRows* table = reinterpret_cast<QueryRows*>(slot + p.plan.query_rows_at);
  uint32_t(&signs)[kPieces] = loads.signs;
  const bool turns = kTurns && p.layer.key_matrix != nullptr;
#pragma unroll 1
  for (int r = first; r < rows; r += step) {
    float x[kPieces];
    row_numbers<kPieces>(loads.row, p.layer.io_dtype, x);
    // on its way while this row is worked on, but where a matrix wants the registers
    if (!turns && r + step < rows) loads.load_row_of(p, s, kv_head, first_row + r + step, lane);
    QuerySize size = admit_query(x);
    if (Core::kMasks && p.plan.mask_rows_at >= 0) {
      const int query = query_of_row(p, s.query_tokens, first_row + r);
      const RowPlace place = row_place(p, s, kv_head, first_row + r);
      const float slope = slope_of_head(p, place.head, size.finite);
      const TreeWords tree = tree_of_row(p, place.token);
      MaskRows* masks = reinterpret_cast<MaskRows*>(slot + p.plan.mask_rows_at);
      if (lane >= r && lane < (r == rows - 1 ? kRowsPerBlock : r + 1)) {
        masks->slope[lane] = slope;
        masks->position[lane] = s.position + query;
        masks->new_first[lane] = p.call.tree_mask ? s.old_length : INT32_MAX;
        masks->tree[lane][0] = tree.word[0];
        masks->tree[lane][1] = tree.word[1];
      }
    }
    CodedQuery query = {p.numbers.scale_log2 * p.numbers.query_sign, 0.0f, 0};
    float raw_scale = 0.0f;
    if (Core::kExact && p.plan.raw_query_at >= 0) {
      const int exponent = raw_exponent(p, size.exponent);
      put_raw_query(slot + p.plan.raw_query_at, query_is_bf16(p), r, format::exp2_int(-exponent), x, lane);
      raw_scale = fminf(fmaxf(query.scale * format::exp2_int(exponent), -kMaxScale), kMaxScale);
      query.scale = raw_scale;
    }
    bool wild = !(size.largest * p.numbers.scale_log2 <= 1e6f);
    if constexpr (Core::kByRows)
      if (by_rows) {
        query = row_query<kStored>(p, kv_head, signs, size.exponent, x, r, slot, lane);
        wild = is_wild(query.scale);
      }
    if constexpr (Core::kBands)
      if (banded) {
        query = band_query<kPieces>(p, row_place(p, s, kv_head, first_row + r), kv_head, signs, size, x, r,
                                    slot, lane);
        wild = is_wild(query.scale);
      }
    if (coded && !by_rows) {
      uint8_t* to = slot + set_place(r, lane);
      query = code_query<kStored, ExactDivision, kTurns>(p, kv_head, signs, size.exponent, x, lane,
                                                         [&](int i, uint8_t high, uint8_t low) {
                                                           to[i * 512] = high;
                                                           to[i * 512 + 32] = low;
                                                         });
      wild = is_wild(query.scale);
    }
    if (turns && r + step < rows) loads.load_row_of(p, s, kv_head, first_row + r + step, lane);
    // The last row also fills in for rows that stand for nothing: a zero scale makes them harmless.
    if (lane >= r && lane < (r == rows - 1 ? kRowsPerBlock : r + 1)) {
      const RowRange range = row_range(p, s, query_of_row(p, s.query_tokens, first_row + r));
      const bool real = lane == r;
      table->begin[lane] = range.begin;
      table->end[lane] = range.end;
      table->visible_begin[lane] = range.visible_begin;
      table->visible_end[lane] = range.visible_end;
      table->constant[lane] = real ? query.constant : 0.0f;
      table->scale[lane] = real ? fminf(fmaxf(query.scale, -kMaxScale), kMaxScale) : 0.0f;
      if (Core::kExact && p.plan.raw_query_at >= 0) table->raw_scale[lane] = real ? raw_scale : 0.0f;
      table->half_sum[lane] = real ? query.half_sum : 0;
      table->flags[lane] = real ? (wild ? kRowWild : 0) | (size.finite ? 0 : kRowNotFinite) : 0;
    }
  }
}

}  // namespace tq::cuda::attend
