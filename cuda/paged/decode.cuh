// SPDX-License-Identifier: Apache-2.0
// The work list of a step in which no request has more than one query: that of lists.cuh, bit for bit, by
// shorter code, since a plan is over before most of its instructions are used a second time.
//
// A thread has a request, which is one entry or none. Then a warp has kWarpRuns runs: its lanes find the
// borders of these and of one more on either side, so that a run sees both its ends in its own warp. Runs and
// entries go to memory in whole lines: threads that each write a run of their own touch 32 lines a store.
#pragma once
#include <string.h>

#include "cuda/paged/lists.cuh"

namespace tq::cuda::paged {

constexpr int kWarpRuns = 30;
static_assert(32 % (sizeof(CtaWork) / 16) == 0, "a lane has the same piece of every run");
// Pieces of 16 bytes of an entry, and of a run, which ends with a copy of its first entry.
constexpr int kEntryPieces = sizeof(SequenceWork) / 16, kRunPieces = sizeof(CtaWork) / 16,
              kOwnPieces = kRunPieces - kEntryPieces;

// A search looks at 7 numbers a step, which come together: 3 steps.
constexpr int kSearched = 512;

struct DecodeMemory {
  // a piece more than there are: lanes that each write one meet in no bank
  uint4 entries[kPlanThreads][kEntryPieces + 1];
  uint4 runs[kPlanWarps][kWarpRuns][kOwnPieces + 1];
  // before an entry, and of all; above every weight behind them, as far as a search looks
  uint32_t weight[kSearched], units[kPlanThreads];
  uint32_t sums[kPlanWarps][3];  // weight, units, entries of a warp
  int32_t last_cut[kPlanWarps];

  __device__ SequenceWork entry(int at) const { return *reinterpret_cast<const SequenceWork*>(entries[at]); }
};

// Entries with what is before each; returns their number.
__device__ __forceinline__ int near_entries(const PlanParams& p, const ListRule& rule, DecodeMemory& near) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  SequenceRows all = {};
  bool wrong;
  if (static_cast<int>(threadIdx.x) < p.num_reqs)
    all = rows_of_request(p, static_cast<int>(threadIdx.x), &wrong);
  const bool asks = all.query_tokens > 0;
  SequenceWork entry = {};
  if (asks) entry = entry_at(rule, all, 0);
  const uint32_t weight = asks ? static_cast<uint32_t>(entry_weight(rule, entry)) : 0,
                 units = asks ? entry_units(rule, entry) : 0, asking = __ballot_sync(~0u, asks);
  uint32_t weight_before = weight, units_before = units;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const uint32_t more_weight = __shfl_up_sync(~0u, weight_before, by),
                   more_units = __shfl_up_sync(~0u, units_before, by);
    if (lane >= by) weight_before += more_weight, units_before += more_units;
  }
  if (lane == 31) {
    near.sums[warp][0] = weight_before;
    near.sums[warp][1] = units_before;
    near.sums[warp][2] = static_cast<uint32_t>(__popc(asking));
  }
  weight_before -= weight, units_before -= units;
  __syncthreads();
  uint32_t at = static_cast<uint32_t>(__popc(asking & ((1u << lane) - 1))), total[3] = {};
#pragma unroll
  for (int w = 0; w < kPlanWarps; w++) {
    if (w == warp) weight_before += total[0], units_before += total[1], at += total[2];
#pragma unroll
    for (int i = 0; i < 3; i++) total[i] += near.sums[w][i];
  }
  if (asks) {
    *reinterpret_cast<SequenceWork*>(near.entries[at]) = entry;
    near.weight[at] = weight_before;
    near.units[at] = units_before;
  }
  for (uint32_t i = total[2] + threadIdx.x; i < kSearched; i += kPlanThreads)
    near.weight[i] = i == total[2] ? total[0] : ~0u;
  return static_cast<int>(total[2]);
}

// Border c. The last one, at the weight of all, is the end of the last entry.
__device__ __forceinline__ Border near_border(const PlanParams& p, const ListRule& rule, int count,
                                              const DecodeMemory& near, int c) {
  const uint64_t whole = static_cast<uint64_t>(near.weight[count]) * static_cast<uint32_t>(c);
  // border_weight: without its divisions
  const uint32_t weight = static_cast<uint32_t>(__umul64hi(whole, p.one_by_ctas));
  int at = 0;  // entries that begin at or before the weight, and follow each other with weights above 0
#pragma unroll
  for (int by = kSearched / 8; by > 0; by /= 8) {
    int passed = 0;
#pragma unroll
    for (int i = 1; i < 8; i++) passed += near.weight[at + i * by] <= weight;
    at += passed * by;
  }
  at = min(at, max(count - 1, 0));
  const Border border =
      border_inside(rule, near.entry(at), at, static_cast<int64_t>(weight - near.weight[at]), near.units[at]);
  return count > 0 ? border : Border{0, 0, 0, 0};
}

// A warp's runs: lanes 1 .. kWarpRuns have one each.
struct LaneRun {
  Border start, end;
  uint32_t cuts;  // lanes whose borders cut a block anew
};
__device__ __forceinline__ LaneRun find_run(const PlanParams& p, const ListRule& rule, int count, int first,
                                            const DecodeMemory& near) {
  const int lane = threadIdx.x % 32, c = first + lane - 1;
  const Border start = near_border(p, rule, count, near, min(max(c, 0), rule.num_ctas));
  const auto of_lane = [&](int other) {
    return Border{__shfl_sync(~0u, start.sequence, other), __shfl_sync(~0u, start.block, other),
                  __shfl_sync(~0u, start.unit, other), __shfl_sync(~0u, start.index, other)};
  };
  const Border last = of_lane(max(lane - 1, 0)), end = of_lane(min(lane + 1, 31));
  const bool cuts = lane > 0 && lane <= kWarpRuns && c <= rule.num_ctas && cuts_anew(start, last);
  return LaneRun{start, end, __ballot_sync(~0u, cuts)};
}
// The last border below lane `end` that cuts a block anew, -1 if the warp has none.
__device__ __forceinline__ int last_cut_below(uint32_t cuts, int first, int end) {
  const uint32_t below = end < 32 ? cuts & ((1u << end) - 1) : cuts;
  return below ? first + 30 - __clz(static_cast<int>(below)) : -1;
}
__device__ __forceinline__ void write_warp_runs(const ListRule& rule, int count, const LaneRun& found,
                                                int first, DecodeMemory& near, CtaWork* ctas) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32, c = first + lane - 1;
  int cut = last_cut_below(found.cuts, first, lane + 1);
  for (int w = 0; w < warp; w++) cut = max(cut, near.last_cut[w]);
  if (lane > 0 && lane <= kWarpRuns && c < rule.num_ctas) {
    const CtaWork run = run_between(near.entry(min(found.start.sequence, max(count - 1, 0))), found.start,
                                    found.end, cut, c + 1);
    memcpy(near.runs[warp][lane - 1], &run, kOwnPieces * 16);
  }
  __syncwarp();
  uint4* to = reinterpret_cast<uint4*>(ctas + first);
  const int pieces = min(kWarpRuns, rule.num_ctas - first) * kRunPieces, piece = lane % kRunPieces;
#pragma unroll
  for (int i = lane; i < (kWarpRuns + 2) * kRunPieces; i += 32) {
    const uint4* run = near.runs[warp][i < pieces ? i / kRunPieces : 0];
    const uint4 head = run[0];  // units and sequence first
    uint4 now = piece < kOwnPieces ? run[piece] : near.entries[head.y][piece - kOwnPieces];
    if (piece >= kOwnPieces && head.x == 0) now = {};
    if (i < pieces) to[i] = now;
  }
}

__device__ __forceinline__ void write_decode_list(const PlanParams& p, int shape, uint8_t* memory) {
  const ListRule rule = p.rules[shape];
  DecodeMemory& near = *reinterpret_cast<DecodeMemory*>(memory);
  uint8_t* list = p.workspace + p.places.lists + shape * p.places.list_bytes +
                  p.places.list[static_cast<int>(ListKind::kAll)];
  CtaWork* ctas = reinterpret_cast<CtaWork*>(list + sizeof(WorkHeader));
  const int count = near_entries(p, rule, near), run_warps = (rule.num_ctas + kWarpRuns - 1) / kWarpRuns,
            warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();
  const int first = warp * kWarpRuns;
  LaneRun found = {};
  if (warp < run_warps) found = find_run(p, rule, count, first, near);
  if (threadIdx.x % 32 == 0) near.last_cut[warp] = last_cut_below(found.cuts, first, 32);
  __syncthreads();
  if (warp < run_warps) write_warp_runs(rule, count, found, first, near, ctas);
  // by the warps without runs, if there are any
  const int writers = run_warps < kPlanWarps ? run_warps : 0;
  if (warp < writers) return;
  uint4* entries = reinterpret_cast<uint4*>(ctas + rule.num_ctas);
  for (int i = static_cast<int>(threadIdx.x) - 32 * writers; i < count * kEntryPieces;
       i += kPlanThreads - 32 * writers)
    entries[i] = near.entries[i / kEntryPieces][i % kEntryPieces];
  if (threadIdx.x == kPlanThreads - 1) {
    int cut = 0;
    for (int w = 0; w < kPlanWarps; w++) cut = max(cut, near.last_cut[w]);
    *reinterpret_cast<WorkHeader*>(list) = work_header(rule.num_ctas, count, cut);
  }
}

}  // namespace tq::cuda::paged
