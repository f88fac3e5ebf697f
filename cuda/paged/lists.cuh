// SPDX-License-Identifier: Apache-2.0
// The work lists of a step, by one CTA each: what schedule/work_list.cpp writes for a cache's plan, bit for
// bit, from lengths that only the device knows. A thread has a request, then a border between two runs, which
// it finds by binary search in the running sum of weights, then a run.
#pragma once
#include "cuda/paged/block.cuh"

namespace tq::cuda::paged {

// Lists of so many entries keep them, and their running sums, in shared memory as well.
constexpr int kNearEntries = 256;

// Weight and units of the entries before one.
struct Before {
  int64_t weight;
  uint32_t units, reserved;
};
struct ListMemory {
  SequenceWork entries[kNearEntries];
  Before before[kNearEntries + 1];
  int64_t scratch[2][kPlanWarps];
  uint32_t flags[kPlanWarps];
  Border borders[kMaxCtas + 1];
};

// A request as its kv head's rows. What the arrays say beyond the bounds asks nothing.
__device__ __forceinline__ SequenceRows rows_of_request(const PlanParams& p, int request, bool* wrong) {
  const int first = p.starts[request], end = p.starts[request + 1], length = p.lens[request];
  const int64_t count = static_cast<int64_t>(end) - first;
  *wrong = length < 0 || length > p.max_seq_len || first < 0 || count < 0 || count > p.max_query_len ||
           end > p.num_tokens;
  const int queries = *wrong || length == 0 ? 0 : static_cast<int>(count);
  return SequenceRows{request, request, length, max(length - queries, 0), queries, length - queries,
                      first,   length,  0};
}

// All entries in order with what is before each; returns their number.
__device__ __forceinline__ int write_entries(const PlanParams& p, const ListRule& rule, bool short_only,
                                             SequenceWork* entries, SequenceWork* near, Before* before,
                                             int64_t (*scratch)[kPlanWarps]) {
  int64_t weight = 0;  // of the rounds so far
  uint32_t count = 0, units = 0;
  for (int first = 0; first < p.num_reqs; first += kPlanThreads) {
    const int request = first + static_cast<int>(threadIdx.x);
    SequenceRows all = {};
    bool wrong;
    if (request < p.num_reqs) all = rows_of_request(p, request, &wrong);
    if (short_only && is_long(rule, all.query_tokens)) all.query_tokens = 0;
    // Most have one entry: it is kept for when its place is known.
    SequenceWork entry = {};
    if (all.query_tokens > 0) entry = entry_at(rule, all, 0);
    int64_t own[2] = {0, 0}, earlier[2], of_all[2];  // weight; units and entries, 32 bits each
    const auto each = [&](const auto& visit) {
      SequenceWork now = entry;
      for (int query = now.query_tokens; query > 0;) {
        visit(now);
        if (query >= all.query_tokens) break;
        now = entry_at(rule, all, query);
        query += now.query_tokens;
      }
    };
    each([&](const SequenceWork& now) {
      own[0] += entry_weight(rule, now);
      own[1] += static_cast<int64_t>(static_cast<uint64_t>(entry_units(rule, now)) << 32 | 1);
    });
    sum_over_block(own, earlier, of_all, scratch);
    const auto high = [](int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); };
    uint32_t at = count + static_cast<uint32_t>(earlier[1]);
    Before there = {weight + earlier[0], units + high(earlier[1]), 0};
    each([&](const SequenceWork& now) {
      if (at < static_cast<uint32_t>(p.entries)) {
        entries[at] = now;
        if (near) near[at] = now;
        before[at] = there;
      }
      at++;
      there.weight += entry_weight(rule, now);
      there.units += entry_units(rule, now);
    });
    weight += of_all[0];
    units += high(of_all[1]);
    count += static_cast<uint32_t>(of_all[1]);
  }
  if (count > static_cast<uint32_t>(p.entries)) {  // query_start_loc falls: several requests ask for rows
    __syncthreads();
    if (threadIdx.x == 0) set_noticed(p.noticed, kNoticedOutOfRange);
    weight = count = units = 0;
  }
  if (threadIdx.x == 0) before[count] = Before{weight, units, 0};
  return static_cast<int>(count);
}

// Border c of the list.
__device__ __forceinline__ Border find_border(const ListRule& rule, const SequenceWork* entries, int count,
                                              const Before* before, int c) {
  if (c == 0) return Border{0, 0, 0, 0};
  const int64_t weight = border_weight(before[count].weight, rule.num_ctas, c);
  int low = 0, high = count;  // entry low - 1 ends at or before the weight, entry high behind it
  while (low < high) {
    const int middle = (low + high) / 2;
    if (before[middle + 1].weight <= weight)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == count) return Border{count, 0, 0, before[count].units};
  return border_inside(rule, entries[low], low, weight - before[low].weight, before[low].units);
}

__device__ __forceinline__ void write_list(const PlanParams& p, int shape, ListKind kind, uint8_t* memory) {
  const ListRule rule = p.rules[shape];
  ListMemory& near = *reinterpret_cast<ListMemory*>(memory);
  uint8_t* base = p.workspace + p.places.lists + shape * p.places.list_bytes;
  uint8_t* list = base + p.places.list[static_cast<int>(kind)];
  CtaWork* ctas = reinterpret_cast<CtaWork*>(list + sizeof(WorkHeader));
  SequenceWork* entries = reinterpret_cast<SequenceWork*>(ctas + rule.num_ctas);
  const bool fits = p.entries <= kNearEntries;
  Before* before =
      fits ? near.before : reinterpret_cast<Before*>(base + p.places.sums[static_cast<int>(kind)]);
  const int count = write_entries(p, rule, kind == ListKind::kShort, entries, fits ? near.entries : nullptr,
                                  before, near.scratch);
  __syncthreads();
  const SequenceWork* known = fits ? near.entries : entries;
  const int c = static_cast<int>(threadIdx.x);
  if (c <= rule.num_ctas) near.borders[c] = find_border(rule, known, count, before, c);
  __syncthreads();
  put_flags(c > 0 && c <= rule.num_ctas && cuts_anew(near.borders[c], near.borders[c - 1]), near.flags);
  __syncthreads();
  if (c < rule.num_ctas)  // without entries nothing is looked at
    ctas[c] = run_between(known[min(near.borders[c].sequence, max(count - 1, 0))], near.borders[c],
                          near.borders[c + 1], last_flag(near.flags, c + 1), c + 1);
  if (c == 0)
    *reinterpret_cast<WorkHeader*>(list) =
        work_header(rule.num_ctas, count, max(last_flag(near.flags, kPlanThreads), 0));
}

// The long requests, those with long histories first: CTAs take items in this order, on which no result
// depends.
__device__ __forceinline__ void write_long(const PlanParams& p, int shape, uint8_t* memory) {
  const ListRule rule = p.rules[shape];
  ListMemory& near = *reinterpret_cast<ListMemory*>(memory);
  uint8_t* base = p.workspace + p.places.lists + shape * p.places.list_bytes;
  constexpr int kKind = static_cast<int>(ListKind::kLong);
  uint8_t* list = base + p.places.list[kKind];
  PrefillSequence* sorted = reinterpret_cast<PrefillSequence*>(list + sizeof(PrefillHeader));
  PrefillSequence* found = reinterpret_cast<PrefillSequence*>(base + p.places.sums[kKind]);
  int64_t count = 0;
  for (int first = 0; first < p.num_reqs; first += kPlanThreads) {
    const int request = first + static_cast<int>(threadIdx.x);
    SequenceRows all = {};
    bool wrong;
    if (request < p.num_reqs) all = rows_of_request(p, request, &wrong);
    const bool found_one = all.query_tokens > 0 && is_long(rule, all.query_tokens);
    const Ranks ranks = rank_in_block(found_one, false, near.flags);
    if (found_one) {
      PrefillSequence sequence = {};
      static_cast<SequenceRows&>(sequence) = all;
      sequence.row_blocks = blocks_of_rows(rule, all.query_tokens, kPrefillRows);
      found[count + ranks.before] = sequence;
    }
    count += ranks.all;
  }
  __syncthreads();
  int64_t items[1] = {0}, before[1], all_items[1];
  for (int64_t i = threadIdx.x; i < count; i += kPlanThreads) {
    PrefillSequence own = found[i];
    int rank = 0;
    for (int64_t j = 0; j < count; j++) {
      const int length = found[j].length;
      if (length < own.length || (length == own.length && j >= i)) continue;
      rank++;
      own.first_item += found[j].row_blocks * rule.num_kv_heads;
    }
    items[0] += static_cast<int64_t>(own.row_blocks) * rule.num_kv_heads;
    sorted[rank] = own;
  }
  sum_over_block(items, before, all_items, near.scratch);
  if (threadIdx.x == 0)
    *reinterpret_cast<PrefillHeader*>(list) =
        PrefillHeader{static_cast<int32_t>(all_items[0]), static_cast<int32_t>(count), {0, 0}};
}

}  // namespace tq::cuda::paged
