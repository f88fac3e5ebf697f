// SPDX-License-Identifier: Apache-2.0
// Launches of few blocks (few.cuh): which block of rows a cluster has, and which tokens of its history each
// CTA of the cluster takes. Jobs and units are those of the list, so that the fold is the same one.
#pragma once
#include <string.h>

#include "cuda/attend/params.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/row/place.cuh"

namespace tq::cuda::attend {

constexpr int kFewRanks = 8;  // CTAs of a cluster; of 16 a launch takes a microsecond longer
constexpr int kSplitSteps = kMinSplitTokens / kStepTokens, kLeastJobSteps = kMinJobTokens / kStepTokens;
constexpr int kLeastJobsOfUnit = kSplitSteps / kLeastJobSteps;

struct FewBlock {
  SequenceWork s;
  int kv_head, first_row, rows;
  int begin, end;            // coded tokens: no row sees others
  int full_begin, full_end;  // every row sees these
  int job_steps;             // a power of two
  int units, unit_steps;     // the last unit has what follows, too
  int log2_ranks;            // CTAs of a unit
  int first_unit;            // of this CTA
  int first_step, end_step;  // steps of this CTA in which a row sees a token; none if not below
};

// Row block number `index` of all entries of the list. Mostly every entry has one, and few entries there are:
// what the answer then is has been asked for together with the question. likely: there are so many entries,
// at least in the list's memory.
__device__ __forceinline__ bool find_entry(const AttendParams& p, int index, bool likely, int lane,
                                           SequenceWork& s, int& row_block) {
  const WorkHeader* header = reinterpret_cast<const WorkHeader*>(p.ctas) - 1;
  row_block = 0;
  if (likely) {
    // All on their way before any is looked at: a compiler would ask for the entry when it is known to be
    // one.
    constexpr int kParts = sizeof s / sizeof(uint4);
    uint4 parts[kParts];
#pragma unroll
    for (int i = 0; i < kParts; i++)
      parts[i] = __ldg(reinterpret_cast<const uint4*>(p.sequences + index) + i);
    const int own = lane <= index ? __ldg(&p.sequences[lane].row_blocks) : 1;
    const int count = made_here(__ldg(&header->num_sequences));
#pragma unroll
    for (int i = 0; i < kParts; i++) parts[i].x = made_here(parts[i].x);
    memcpy(&s, parts, sizeof s);
    if (index < 32 && index < count && __all_sync(~0u, own == 1)) return true;
  }
  const int count = header->num_sequences;
  int before = 0;  // row blocks of the entries before `at`
#pragma unroll 1
  for (int at = 0; at < count; at++) {
    s = p.sequences[at];
    row_block = index - before;
    if (row_block < s.row_blocks) return true;
    before += s.row_blocks;
  }
  return false;
}

// Row block `index` of kv head blockIdx.y. kRanks: CTAs of a cluster.
template <int kRanks>
__device__ __forceinline__ bool find_block(const AttendParams& p, int index, int rank, int lane,
                                           FewBlock& b) {
  int row_block;
  if (!find_entry(p, index, index < static_cast<int>(gridDim.x) / kRanks, lane, b.s, row_block)) return false;
  const SequenceWork& s = b.s;
  b.kv_head = static_cast<int>(blockIdx.y);
  b.first_row = row_block * kRowsPerBlock;
  b.rows = min(kRowsPerBlock, s.query_tokens * p.layer.q_per_kv - b.first_row);
  const RowsRange range = rows_range<false>(p, s, query_of_row(p, s.query_tokens, b.first_row),
                                            query_of_row(p, s.query_tokens, b.first_row + b.rows - 1), lane);
  b.begin = range.begin;
  b.end = range.end;
  b.full_begin = range.full_begin;
  b.full_end = range.full_end;
  b.job_steps = job_tokens(s.split_tokens, p.numbers.sliding_window) / kStepTokens;
  b.units = s.num_splits;
  b.unit_steps = s.split_tokens / kStepTokens;
  // Units of four jobs are shared by CTAs, which leave their jobs' states, while there are more CTAs than
  // units; else a CTA leaves the states of its units.
  const bool least = b.unit_steps == kSplitSteps && b.job_steps == kLeastJobSteps;
  b.log2_ranks = !least ? 0 : 4 * b.units <= kRanks ? 2 : 2 * b.units <= kRanks ? 1 : 0;
  const int each = b.units > kRanks ? 2 : 1;  // units of a CTA
  static_assert(2 * kRanks >= kMaxSplits && kLeastJobsOfUnit == 4, "two units, four jobs");
  const int first = (rank >> b.log2_ranks) * each;
  b.first_unit = first;
  int from = first * b.unit_steps, to = from + each * b.unit_steps;
  if (b.log2_ranks > 0) {
    const int part = b.unit_steps >> b.log2_ranks;
    from += (rank & ((1 << b.log2_ranks) - 1)) * part;
    to = from + part;
  } else if (first + each >= kMaxSplits) {
    to = INT_MAX / kStepTokens;
  }
  const int seen = b.begin < b.end ? (b.end + kStepTokens - 1) / kStepTokens : 0;
  b.first_step = first < b.units ? max(from, b.begin / kStepTokens) : INT_MAX;
  b.end_step = min(to, seen);
  return true;
}

// Whether steps from .. to - 1 of the history have a token that a row sees.
__device__ __forceinline__ bool any_seen(const FewBlock& b, int from, int to) {
  return b.begin < b.end &&
         max(from, b.begin / kStepTokens) < min(to, (b.end + kStepTokens - 1) / kStepTokens);
}

}  // namespace tq::cuda::attend
