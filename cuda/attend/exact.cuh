// SPDX-License-Identifier: Apache-2.0
// One job of a unit of exact tokens (sinks or window): a warp's attention of a block's rows over the caller's
// own numbers, in unrotated space, by the matrix unit (raw.cuh). A job is a run of tokens at absolute places,
// and each row sees its own of them; what a row does not see leaves its state as it is, so that its bits do
// not depend on the rows beside it.
//
// Few tokens of a launch are exact: a step of 16 is loaded straight into registers, values before the softmax
// of the scores. The preparer has asked for them in time (prepare.cuh).
#pragma once
#include "cuda/attend/coded.cuh"
#include "cuda/attend/frame.cuh"
#include "cuda/attend/raw.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/row/mask.cuh"

namespace tq::cuda::attend {

constexpr int kExactStep = 16;  // tokens

// What an exact job wants of the kernel's parameters: behind a reference they are loads from memory, all at
// once here.
struct ExactJob {
  const uint8_t *keys, *values;  // of the kv head, in the first page of copies
  uint32_t page_elements;        // at most 65,536 kv heads x 32 tokens x 2 x 576
  const int32_t* raw_table;      // of the sequence
  const uint8_t* query;          // the block's slot
  int32_t rows_at, raw_query_at, mask_rows_at;
  int32_t key_dim, value_dim, job_tokens, job;
  float softcap_log2, softcap_steepness;
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

// A block's rows over the tokens of a job.
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

  __device__ __forceinline__ void attend(const ExactJob& job, const UnitInfo& info, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const QueryRows& rows = *reinterpret_cast<const QueryRows*>(job.query + job.rows_at);
    const uint4* query = reinterpret_cast<const uint4*>(job.query + job.raw_query_at);
    const bool sink = job.job < info.sink_jobs;
    const int first =
        (sink ? info.first_sink_job + job.job : info.first_window_job + job.job - info.sink_jobs) *
        job.job_tokens;
    const int begin = sink ? rows.visible_begin[g] : rows.end[g],
              end = sink ? min(rows.visible_end[g], info.sink_end) : rows.visible_end[g];
#pragma unroll 1
    for (int token = first; token < first + job.job_tokens; token += kExactStep) {
      if (!__any_sync(~0u, max(begin, token) < min(end, token + kExactStep))) continue;
      const int entry = (job.job * job.job_tokens + token - first) / format::kTileTokens;
      const uint32_t page =
          entry < kPlaces ? info.places[entry] : __ldg(job.raw_table + token / format::kTileTokens);
      const int64_t from = static_cast<int64_t>(static_cast<uint64_t>(page) * job.page_elements);
      const int in_page = token % format::kTileTokens + g;
      const uint8_t* value_row = job.values + (from + in_page * job.value_dim) * dtype_bytes(kType);
      float x[4];
      scores(job.keys + (from + in_page * job.key_dim) * dtype_bytes(kType), job.key_dim, query, x, lane);
      Piece v[kBatch][2];
      load_values(value_row, job.value_dim, 0, v, lane);
      const float scale = rows.raw_scale[made_here(g)];  // again in every step: a register less
      uint32_t seen = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = token + 8 * (i / 2) + 2 * t + i % 2;
        x[i] *= scale;
        if (job.softcap_log2 != 0.0f) x[i] = soft_cap(x[i], job.softcap_log2, job.softcap_steepness);
        x[i] = clamp_logit(x[i]);
        bool sees = at >= begin && at < end;
        if (job.mask_rows_at >= 0) {
          const MaskRows& masks = *reinterpret_cast<const MaskRows*>(job.query + job.mask_rows_at);
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
      more_values<kBatch>(value_row, job.value_dim, a, keep, factor, lane);
    }
  }
};

// The item that a worker has in hand; the worker is found by the thread, the item by what was given back.
__device__ __forceinline__ const volatile Item* item_in_hand(const AttendParams& p, const Frame& f) {
  uint8_t* own = f.worker(p, __shfl_sync(~0u, made_here(static_cast<int>(threadIdx.x)) / 32, 0));
  return queue_item(p, own, *queue_consumed(own));
}

// A job of an exact unit, from its tokens to its deposit.
template <class Core, DataType kType>
__device__ __forceinline__ void exact_rows(const AttendParams& p) {
  const Frame f(p, launch_shared(), 0);
  const int lane = threadIdx.x % 32;
  const DeviceSide &key = p.layer.key, &value = p.layer.value;
  constexpr int kGroups = Core::kValue / 32;
  ExactRows<Core::kKey / 32, kGroups, kType> rows;
  {
    const volatile Item* item = item_in_hand(p, f);
    const UnitInfo& info = f.info(item->unit);
    const int head = info.kv_head * format::kTileTokens * dtype_bytes(kType);
    const ExactJob of = {static_cast<const uint8_t*>(key.raw) + head * key.layout.dim,
                         static_cast<const uint8_t*>(value.raw) + head * value.layout.dim,
                         static_cast<uint32_t>(p.layer.raw_page_elements),
                         p.raw_table + info.raw_slot * p.raw_table_stride,
                         f.query_slot(p, info.block),
                         p.plan.query_rows_at,
                         p.plan.raw_query_at,
                         Core::kMasks ? p.plan.mask_rows_at : -1,
                         key.layout.dim,
                         value.layout.dim,
                         exact_job_tokens(p.layer.window_tokens, p.layer.sink_tokens),
                         item->at,
                         p.numbers.softcap_log2,
                         p.numbers.softcap_steepness};
    rows.attend(of, info, lane);
  }
  // again, instead of kept in registers
  const volatile Item* item = item_in_hand(p, f);
  const int number = item->deposit;
  wait_place(p, f.control, number);
  put_state<OutputOrder::kPieces>(f.template deposit<kGroups>(p, number), rows.m, rows.l, 0.0f, rows.o,
                                  f.info(item->unit).rows, lane);
  deposit_put(p, f.control, number);
}

}  // namespace tq::cuda::attend
