// SPDX-License-Identifier: Apache-2.0
// The exact tokens of a block, sinks and window: one warp's attention of the block's rows over the caller's
// own numbers, in unrotated space, by the matrix unit (raw.cuh). Steps lie at absolute places, and each row
// sees its own tokens; what a row does not see leaves its state as it is, so that its bits do not depend on
// the rows beside it.
//
// Few tokens of a launch are exact: a step of 16 is loaded straight into registers, values before the softmax
// of the scores. They have warps of their own beside the workers, or else the preparer does them, ahead of
// the stewards who want their states: workers that took them between coded jobs fetched all their
// instructions anew each time.
#pragma once
#include "cuda/attend/coded.cuh"
#include "cuda/attend/frame.cuh"
#include "cuda/attend/raw.cuh"
#include "cuda/ptx/prefetch.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/row/mask.cuh"

namespace tq::cuda::attend {

constexpr int kExactStep = 16;  // tokens

// A block's exact tokens, and what they want of the kernel's parameters.
struct ExactTokens {
  int2 sinks, window;            // begin and end of what some row sees
  const uint8_t *keys, *values;  // of the kv head, in the first page of copies
  uint32_t page_elements;        // at most 65,536 kv heads x 32 tokens x 2 x 576
  const int32_t* raw_table;      // of the sequence
  const uint8_t* query;          // the block's slot
  int32_t rows_at, raw_query_at, mask_rows_at;
  int32_t key_dim, value_dim;
  float softcap_log2, softcap_steepness;

  // A page of copies of the sequence, 0 of those without tokens first .. last - 1.
  __device__ __forceinline__ uint32_t page(int number, int first, int last) const {
    return number >= first / format::kTileTokens && number * format::kTileTokens < last
               ? static_cast<uint32_t>(__ldg(raw_table + number))
               : 0u;
  }
  __device__ __forceinline__ int64_t page_at(uint32_t page) const {
    return static_cast<int64_t>(static_cast<uint64_t>(page) * page_elements);
  }
};

// Eight numbers of a row of exact copies as pairs. Those of float32 are two parts each, and loaded when they
// are wanted: that takes the fewest registers.
template <DataType kType>
struct ExactPiece {
  static constexpr bool kWide = false, kBf16 = kType == DataType::kBF16;
  using Numbers = RawNumbers<kBf16>;
  uint32_t word[4];

  __device__ __forceinline__ void load(const uint8_t* row, int piece) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(row) + piece);
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
  }
  // Numbers 2 i, 2 i + 1; rest: what they lack.
  __device__ __forceinline__ uint32_t pair(int i, uint32_t& rest) const {
    rest = 0;
    return word[i];
  }
};
template <>
struct ExactPiece<DataType::kF32> {
  static constexpr bool kWide = true, kBf16 = true;
  using Numbers = RawNumbers<kBf16>;
  const float2* pairs;

  __device__ __forceinline__ void load(const uint8_t* row, int piece) {
    pairs = reinterpret_cast<const float2*>(row) + 4 * piece;
  }
  __device__ __forceinline__ uint32_t pair(int i, uint32_t& rest) const {
    const float2 v = __ldg(pairs + i);
    uint32_t part;
    Numbers::split(v.x, v.y, part, rest);
    return part;
  }
};

// The query for these numbers: float32 callers' has parts of float16 for raw keys.
template <DataType kType>
__device__ __forceinline__ void exact_query(const uint4* at, uint32_t (&a)[4]) {
  operand_of(at, a);
  if constexpr (kType == DataType::kF32) {
    using Halves = RawNumbers<false>;
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      RawNumbers<true>::split(Halves::low(a[i]) + Halves::low(a[i + 1]),
                              Halves::high(a[i]) + Halves::high(a[i + 1]), a[i], a[i + 1]);
  }
}

template <DataType kType>
__device__ __forceinline__ void multiply_exact(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                               const uint32_t (&rest)[2]) {
  using Numbers = typename ExactPiece<kType>::Numbers;
  Numbers::multiply(c, a, b[0], b[1]);
  if constexpr (ExactPiece<kType>::kWide) Numbers::multiply(c, a, rest[0], rest[1]);
}

// Groups of 32 coordinates that are on their way together: all of a row, or one at a time where these do not
// fit into 128 registers.
constexpr int exact_batch(int groups) { return groups <= 4 ? groups : 1; }

// A block's rows over exact tokens.
template <int kKeyGroups, int kGroups, DataType kType>
struct ExactRows {
  using Piece = ExactPiece<kType>;
  using Numbers = typename Piece::Numbers;
  static constexpr int kKeyBatch = Piece::kWide ? 1 : exact_batch(kKeyGroups),
                       kBatch = Piece::kWide ? 1 : exact_batch(kGroups);

  float m = kNoScore, l = 0.0f;  // l: this lane's share
  float o[4 * kGroups][2] = {};  // in the order of pieces

  // x[2 b + i]: token 8 b + 2 t + i of a step. row: the lane's, of the step's token g.
  static __device__ __forceinline__ void scores(const uint8_t* row, int dim, const uint4* query,
                                                float (&x)[4], int lane) {
    const int t = lane & 3, last = made_here(dim / 8 - 1), eight = 8 * dim * dtype_bytes(kType);
    float c[2][4] = {};
#pragma unroll 1
    for (int first = 0; first < kKeyGroups; first += kKeyBatch) {
      Piece k[kKeyBatch][2];
#pragma unroll
      for (int i = 0; i < kKeyBatch; i++)
#pragma unroll
        for (int b = 0; b < 2; b++) k[i][b].load(row + b * eight, min(4 * (first + i) + t, last));
#pragma unroll
      for (int i = 0; i < kKeyBatch; i++)
#pragma unroll
        for (int s = 0; s < 2; s++) {
          uint32_t a[4];
          exact_query<kType>(query + (2 * (first + i) + s) * 32 + lane, a);
#pragma unroll
          for (int b = 0; b < 2; b++) {
            uint32_t pairs[2], rest[2];
#pragma unroll
            for (int j = 0; j < 2; j++) pairs[j] = k[i][b].pair(2 * s + j, rest[j]);
            multiply_exact<kType>(c[b], a, pairs, rest);
          }
        }
    }
#pragma unroll
    for (int b = 0; b < 2; b++) x[2 * b] = c[b][0] + c[b][2], x[2 * b + 1] = c[b][1] + c[b][3];
  }

  static __device__ __forceinline__ void load_values(const uint8_t* row, int dim, int first,
                                                     Piece (&v)[kBatch][2], int lane) {
    // not kept from step to step: pieces of a row and their places
    const int last = made_here(dim / 8 - 1), eight = 8 * dim * dtype_bytes(kType);
#pragma unroll
    for (int i = 0; i < kBatch; i++)
#pragma unroll
      for (int b = 0; b < 2; b++) v[i][b].load(row + b * eight, min(4 * (first + i) + (lane & 3), last));
  }
  // Tokens g of the blocks become pairs of tokens of a column.
  template <int kFirst>
  __device__ __forceinline__ void add_values(const Piece (&v)[kBatch][2], const uint32_t (&a)[4],
                                             const uint32_t (&keep)[2], float factor) {
#pragma unroll
    for (int i = 0; i < kBatch; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (Piece::kWide) __syncwarp();  // more loads would take registers early
        uint32_t pairs[2], rest[2];
#pragma unroll
        for (int b = 0; b < 2; b++) {
          pairs[b] = transpose_16(v[i][b].pair(j, rest[b])) & keep[b];
          if (Piece::kWide) rest[b] = transpose_16(rest[b]) & keep[b];
        }
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        multiply_exact<kType>(c, a, pairs, rest);
        float(&out)[2] = o[4 * (kFirst + i) + j];
        out[0] = fmaf(factor, c[0] + c[2], out[0]);
        out[1] = fmaf(factor, c[1] + c[3], out[1]);
      }
  }
  template <int kFirst>
  __device__ __forceinline__ void more_values(const uint8_t* row, int dim, const uint32_t (&a)[4],
                                              const uint32_t (&keep)[2], float factor, int lane) {
    if constexpr (kFirst < kGroups) {
      __syncwarp();  // these loads would take registers early
      Piece v[kBatch][2];
      load_values(row, dim, kFirst, v, lane);
      add_values<kFirst>(v, a, keep, factor);
      more_values<kFirst + kBatch>(row, dim, a, keep, factor, lane);
    }
  }

  // Scores become weights of which the largest is 1; returns their factor.
  __device__ __forceinline__ float weigh(float (&x)[4]) {
    float top = fmaxf(kMaskedFloor, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const bool raise = top > m + kRaise;
    if (__any_sync(~0u, raise)) {
      const float raised = raise ? top : m, down = ex2(m - raised);
      m = raised;
      l *= down;
#pragma unroll
      for (int i = 0; i < 4 * kGroups; i++) o[i][0] *= down, o[i][1] *= down;
    }
    const float factor = ex2(top - m);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += x[i] = ex2(x[i] - top);
    l = fmaf(factor, sum, l);
    return factor;
  }

  // Over a run of exact tokens, sinks or window: in steps at absolute places, those that some row of the
  // block sees.
  __device__ __forceinline__ void attend(const ExactTokens& of, bool sink, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const QueryRows& rows = *reinterpret_cast<const QueryRows*>(of.query + of.rows_at);
    const uint4* query = reinterpret_cast<const uint4*>(of.query + of.raw_query_at);
    const int first = (sink ? of.sinks.x : of.window.x) / kExactStep * kExactStep,
              last = sink ? of.sinks.y : of.window.y;
    const int begin = sink ? rows.visible_begin[g] : rows.end[g],
              end = sink ? min(rows.visible_end[g], of.sinks.y) : rows.visible_end[g];
    uint32_t pages = 0;  // lane i: page i of 32 of them
#pragma unroll 1
    for (int token = first; token < last; token += kExactStep) {
      const int page = token / format::kTileTokens;
      if (token == first || token % (32 * format::kTileTokens) == 0)
        pages = of.page(page / 32 * 32 + lane, token, last);
      if (!__any_sync(~0u, max(begin, token) < min(end, token + kExactStep))) continue;
      const uint32_t own_page = __shfl_sync(~0u, pages, page % 32);
      const int64_t from = of.page_at(own_page);
      const int in_page = token % format::kTileTokens + g;
      const uint8_t* value_row = of.values + (from + in_page * of.value_dim) * dtype_bytes(kType);
      float x[4];
      scores(of.keys + (from + in_page * of.key_dim) * dtype_bytes(kType), of.key_dim, query, x, lane);
      Piece v[kBatch][2];
      load_values(value_row, of.value_dim, 0, v, lane);
      const float scale = rows.raw_scale[made_here(g)];  // again in every step: a register less
      uint32_t seen = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = token + 8 * (i / 2) + 2 * t + i % 2;
        x[i] *= scale;
        if (of.softcap_log2 != 0.0f) x[i] = soft_cap(x[i], of.softcap_log2, of.softcap_steepness);
        x[i] = clamp_logit(x[i]);
        bool sees = at >= begin && at < end;
        if (of.mask_rows_at >= 0) {
          const MaskRows& masks = *reinterpret_cast<const MaskRows*>(of.query + of.mask_rows_at);
          const TreeWords tree = {{masks.tree[g][0], masks.tree[g][1]}};
          x[i] = add_slope(x[i], masks.slope[g], at - masks.position[g]);
          sees = sees && !tree.hides(at - masks.new_first[g]);
        }
        if (!sees) x[i] = kMasked;
        seen |= sees ? 1u << i : 0u;
      }
      const float factor = weigh(x) * (1.0f / kRawWeightUnit);
      uint32_t a[4], keep[2];
      raw_weights<Piece::kBf16>(x, a);
      seen_pairs(seen, keep);
      add_values<0>(v, a, keep, factor);
      more_values<kBatch>(value_row, of.value_dim, a, keep, factor, lane);
    }
  }
};

// Asks for the copies of a run into the second-level cache: they are there before the query is.
__device__ __forceinline__ void ask_for_exact(const ExactTokens& of, int2 run, int bytes_each, int lane) {
  if (run.x >= run.y) return;  // no row sees any, and run.x may be anything
#pragma unroll 1
  for (int page = run.x / format::kTileTokens + lane; page * format::kTileTokens < run.y; page += 32) {
    const int begin = max(run.x - page * format::kTileTokens, 0),
              end = min(run.y - page * format::kTileTokens, format::kTileTokens);
    const int64_t from = of.page_at(of.page(page, run.x, run.y));
    prefetch_l2(of.keys + (from + begin * of.key_dim) * bytes_each, (end - begin) * of.key_dim * bytes_each);
    prefetch_l2(of.values + (from + begin * of.value_dim) * bytes_each,
                (end - begin) * of.value_dim * bytes_each);
  }
}

// The exact tokens of the block that begins with a unit, from its copies to its state.
template <class Core, DataType kType>
__device__ __forceinline__ void exact_rows(const AttendParams& p, const Frame& f, const UnitInfo& info,
                                           int lane) {
  const DeviceSide &key = p.layer.key, &value = p.layer.value;
  constexpr int kGroups = Core::kValue / 32;
  const int head = info.kv_head * format::kTileTokens * dtype_bytes(kType);
  const ExactTokens of = {make_int2(info.exact_begin[0], info.exact_end[0]),
                          make_int2(info.exact_begin[1], info.exact_end[1]),
                          static_cast<const uint8_t*>(key.raw) + head * key.layout.dim,
                          static_cast<const uint8_t*>(value.raw) + head * value.layout.dim,
                          static_cast<uint32_t>(p.layer.raw_page_elements),
                          p.raw_table + info.raw_slot * p.raw_table_stride,
                          f.query_slot(p, info.block),
                          p.plan.query_rows_at,
                          p.plan.raw_query_at,
                          Core::kMasks ? p.plan.mask_rows_at : -1,
                          key.layout.dim,
                          value.layout.dim,
                          p.numbers.softcap_log2,
                          p.numbers.softcap_steepness};
  ask_for_exact(of, of.sinks, dtype_bytes(kType), lane);
  ask_for_exact(of, of.window, dtype_bytes(kType), lane);
  wait_query(p, f.control, info.block);
  ExactRows<Core::kKey / 32, kGroups, kType> rows;
#pragma unroll 1
  for (int run = 0; run < 2; run++) rows.attend(of, run == 0, lane);
  wait_exact_place(f.control, info.exact_number);
  put_state<OutputOrder::kPieces>(exact_place<kGroups>(p, f.smem, info.exact_number), rows.m, rows.l, 0.0f,
                                  rows.o, info.rows, lane);
  exact_put(f.control, info.exact_number);
}

// Apart, so that it takes no registers of who calls it, and is there once.
template <class Core>
__device__ __noinline__ void exact_block(const AttendParams& p, int unit) {
  const Frame f(p, launch_shared(), 0);
  const UnitInfo& info = f.info(unit);
  const int lane = threadIdx.x % 32;
  if (p.layer.io_dtype == DataType::kF16)
    exact_rows<Core, DataType::kF16>(p, f, info, lane);
  else if (p.layer.io_dtype == DataType::kBF16)
    exact_rows<Core, DataType::kBF16>(p, f, info, lane);
  else
    exact_rows<Core, DataType::kF32>(p, f, info, lane);
}

// A warp of exact tokens: every exact_warps-th of the blocks that begin in this CTA, from number `index` on.
// control_threads: of Barrier::kControl, behind which the first query is there.
template <class Core>
__device__ __forceinline__ void attend_exact(const AttendParams& p, const Frame& f, int control_threads,
                                             int index) {
  barrier_sync(Barrier::kControl, control_threads);
#pragma unroll 1
  for (int unit = 0; unit < f.num_units; unit++) {
    wait_described(f.control, unit);
    const UnitInfo& info = f.info(unit);
    if (info.exact && info.exact_number % p.plan.exact_warps == index) exact_block<Core>(p, unit);
    leave_unit(f.control, unit);
  }
}

}  // namespace tq::cuda::attend
