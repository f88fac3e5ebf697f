// SPDX-License-Identifier: Apache-2.0
// How queries of a sequence are cut into entries, splits and units, and units into runs of equal weight: the
// rules of work_list.h, apart because two write such lists and must write the same one. The host does for a
// cache's plan (work_list.cpp), the device for an engine's step, whose lengths it alone knows (cuda/paged).
//
// Borders between runs are found by arithmetic in each sequence, never by walking over units: a prefill has
// millions of them.
#pragma once
#include "cuda/schedule/work_list.h"
#include "format/hd.h"

namespace tq {
namespace cuda {

// What a list follows from beside its sequences.
struct ListRule {
  int32_t num_kv_heads, q_per_kv;
  int32_t exact_tokens;  // of a query, at most: window and sinks; 0 = none
  int32_t batch_invariant;
  int32_t num_ctas;
};

// a / b. A device divides 32-bit numbers in a third of the time.
TQ_HD int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 ? a / b : static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}
TQ_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TQ_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TQ_HD int32_t num_bits(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return 32 - __clz(static_cast<int>(x));
#else
  return x == 0 ? 0 : 32 - __builtin_clz(x);
#endif
}

TQ_HD bool is_long(const ListRule& rule, int64_t query_tokens) {
  return !rule.batch_invariant && query_tokens * rule.q_per_kv >= kLongRows;
}

// log2 of the least split, a power of two of at least kMinSplitTokens, of which kMaxSplits hold what a row at
// `position` sees. Positions are below 0 where there are more queries than tokens.
constexpr int kMinSplitLog2 = 10, kMaxSplitsLog2 = 4;
static_assert(kMinSplitTokens == 1 << kMinSplitLog2 && kMaxSplits == 1 << kMaxSplitsLog2, "powers of two");
TQ_HD int32_t least_split_log2(int64_t position) {
  const int32_t log2 = position > 0 ? num_bits(static_cast<uint32_t>(position)) - kMaxSplitsLog2 : 0;
  return log2 > kMinSplitLog2 ? log2 : kMinSplitLog2;
}
// Of the tokens of a split for a row at this position: as few as make kMaxSplits of what it sees, at least
// kMinSplitTokens. Rows of a long sequence fill the device by themselves: all of that is one split.
TQ_HD int32_t split_log2(int64_t position, bool is_long) {
  const int32_t log2 = least_split_log2(position) + (is_long ? kMaxSplitsLog2 : 0);
  return log2 < 30 ? log2 : 30;
}
TQ_HD int32_t split_tokens(int64_t position, bool is_long) { return 1 << split_log2(position, is_long); }
// The first position behind this one with another split.
TQ_HD int64_t next_border(int64_t position) {
  return int64_t{1} << (least_split_log2(position) + kMaxSplitsLog2);
}

// Queries first .. first + count - 1 of all that a sequence has.
TQ_HD SequenceRows part_of(const SequenceRows& all, int32_t first, int32_t count) {
  SequenceRows part = all;
  part.query_tokens = count;
  part.position = all.position + first;
  part.q_row = all.q_row + first;
  return part;
}
// Blocks of so many rows that query tokens have, of each kv head.
TQ_HD int32_t blocks_of_rows(const ListRule& rule, int64_t queries, int32_t rows) {
  return static_cast<int32_t>((queries * rule.q_per_kv + rows - 1) / rows);
}
// Whether a plan of so many sequences, the longest and all their queries of so many tokens, has few blocks.
TQ_HD bool is_few(const ListRule& rule, int32_t sequences, int64_t query_tokens, int64_t length) {
  return sequences <= kFewBlocks / rule.num_kv_heads && length <= kFewTokens &&
         query_tokens * rule.q_per_kv <= kRowsPerBlock;
}
// The entry that begins with query `first`.
TQ_HD SequenceWork entry_at(const ListRule& rule, const SequenceRows& all, int32_t first) {
  const int32_t position = all.position + first, log2 = split_log2(position, is_long(rule, all.query_tokens)),
                count =
                    static_cast<int32_t>(smaller(all.query_tokens - first, next_border(position) - position));
  SequenceWork entry = {};
  static_cast<SequenceRows&>(entry) = part_of(all, first, count);
  entry.row_blocks = blocks_of_rows(rule, count, kRowsPerBlock);
  entry.split_tokens = 1 << log2;
  const int32_t splits = static_cast<int32_t>((static_cast<uint32_t>(all.length) + (1u << log2) - 1) >> log2);
  entry.num_splits = splits < 1 ? 1 : splits < kMaxSplits ? splits : kMaxSplits;
  return entry;
}

// Weights of the units of one block of an entry. They count steps of kStepTokens: 32 bits hold them.
struct BlockWeights {
  int32_t full, last;  // of all splits but the last, the last
  int32_t splits;
};
TQ_HD int32_t unit_weight(int32_t tokens) { return (tokens + kStepTokens - 1) / kStepTokens + kUnitWeight; }
TQ_HD int32_t total_weight(const BlockWeights& w) { return (w.splits - 1) * w.full + w.last; }
TQ_HD BlockWeights block_weights(const ListRule& rule, const SequenceWork& entry) {
  const int32_t splits = entry.num_splits, end = entry.position + entry.query_tokens;
  BlockWeights w = {unit_weight(entry.split_tokens), unit_weight(end - (splits - 1) * entry.split_tokens),
                    splits};
  // Exact tokens are attended to beside the codes: what they take longer than these counts.
  const int32_t exact =
      (rule.exact_tokens + kExactStepTokens - 1) / kExactStepTokens * kExactStepWeight - total_weight(w);
  if (exact > 0) w.last += exact;
  return w;
}
// First unit that starts at or after this weight of the block's; `splits` if none.
TQ_HD int32_t unit_at(const BlockWeights& w, int32_t weight) {
  const uint32_t full = static_cast<uint32_t>(w.full);
  const int32_t index = static_cast<int32_t>((static_cast<uint32_t>(weight) + full - 1) / full);
  return index < w.splits ? index : w.splits;
}
// Units that end at or before this weight of the block's.
TQ_HD int32_t units_within(const BlockWeights& w, int32_t weight) {
  const int32_t index = weight / w.full;
  if (index < w.splits - 1) return index;
  return weight < total_weight(w) ? w.splits - 1 : w.splits;
}
// Where unit `index` of the block starts.
TQ_HD int32_t start_of_unit(const BlockWeights& w, int32_t index) {
  return index < w.splits ? index * w.full : total_weight(w);
}
// Of all kv heads.
TQ_HD int32_t num_blocks(const ListRule& rule, const SequenceWork& entry) {
  return entry.row_blocks * rule.num_kv_heads;
}
TQ_HD int64_t entry_weight(const ListRule& rule, const SequenceWork& entry) {
  return static_cast<int64_t>(total_weight(block_weights(rule, entry))) * num_blocks(rule, entry);
}
TQ_HD uint32_t entry_units(const ListRule& rule, const SequenceWork& entry) {
  return static_cast<uint32_t>(num_blocks(rule, entry)) * static_cast<uint32_t>(entry.num_splits);
}

// A place between units.
struct Border {
  int32_t sequence;  // the number of entries at the end
  int32_t block, unit;
  uint32_t index;  // units before it, as far as 32 bits tell: only differences count
};
// Border c (0 .. num_ctas) is the first unit that starts at or after this weight.
TQ_HD int64_t border_weight(int64_t total, int num_ctas, int c) {
  const int64_t each = quotient(total, num_ctas);
  const uint32_t rest = static_cast<uint32_t>(total - each * num_ctas);  // below num_ctas
  return each * c + rest * static_cast<uint32_t>(c) / static_cast<uint32_t>(num_ctas);
}
// The border at a weight that lies inside entry `sequence`, counted from the entry's first unit, in front of
// which there are so many; below 0 if an earlier entry's last units already end behind it.
TQ_HD Border border_inside(const ListRule& rule, const SequenceWork& entry, int32_t sequence, int64_t weight,
                           uint32_t units_before) {
  const BlockWeights w = block_weights(rule, entry);
  const int32_t each = total_weight(w);
  int32_t block = static_cast<int32_t>(quotient(larger(weight, 0), each));
  int32_t unit =
      weight <= 0 ? 0 : unit_at(w, static_cast<int32_t>(weight - static_cast<int64_t>(block) * each));
  if (unit == w.splits) unit = 0, block++;
  const uint32_t units = static_cast<uint32_t>(block) * static_cast<uint32_t>(w.splits);
  const Border border = {sequence, block, unit, units_before + units + static_cast<uint32_t>(unit)};
  // the border between two sequences: say it from the later one
  return block == num_blocks(rule, entry) ? Border{sequence + 1, 0, 0, border.index} : border;
}

// Jobs of a run that begins in this entry, at most; 0 if it goes on in another.
TQ_HD int32_t run_jobs(const SequenceWork& entry, const Border& start, const Border& end) {
  const bool of_one = end.sequence == start.sequence ||
                      (end.sequence == start.sequence + 1 && end.block == 0 && end.unit == 0);
  if (!of_one) return 0;
  const int32_t log2 = num_bits(static_cast<uint32_t>(job_tokens(entry.split_tokens, INT32_MAX))) - 1;
  const int64_t each = (smaller(entry.split_tokens, entry.length) + (int64_t{1} << log2) - 1) >> log2;
  return static_cast<int32_t>(smaller(static_cast<int64_t>(end.index - start.index) * each, INT16_MAX));
}

// Whether a border cuts a block that the border in front of it does not cut too.
TQ_HD bool cuts_anew(const Border& border, const Border& before) {
  return border.unit > 0 &&
         !(before.unit > 0 && before.sequence == border.sequence && before.block == border.block);
}
// A block that is cut has the slots and the counter of the first border that cuts it.
constexpr int32_t slot_of_cut(int32_t border) { return border * (kMaxSplits + 1); }

// The run from border `start` to the next, `end`, which is number `next`. cut: number of the border that
// first cut the block that the run starts in the middle of. entry: of start, not looked at if the run is
// empty.
TQ_HD CtaWork run_between(const SequenceWork& entry, const Border& start, const Border& end, int32_t cut,
                          int32_t next) {
  CtaWork run = {};
  run.head_slot = run.head_counter = run.tail_slot = run.tail_counter = -1;
  run.num_units = run.own_units = static_cast<int32_t>(end.index - start.index);
  if (run.num_units == 0) return run;
  run.sequence = start.sequence;
  run.block = start.block;
  run.split = start.unit;
  run.first = entry;
  run.jobs = run_jobs(entry, start, end);
  if (start.unit > 0) run.head_slot = slot_of_cut(cut), run.head_counter = cut;
  if (cuts_anew(end, start)) run.tail_slot = slot_of_cut(next), run.tail_counter = next;
  return run;
}
// last_cut: the last border that cuts a block anew, 0 without any.
TQ_HD WorkHeader work_header(int32_t num_ctas, int32_t num_entries, int32_t last_cut) {
  return WorkHeader{num_ctas, num_entries, last_cut > 0 ? slot_of_cut(last_cut + 1) : 0,
                    last_cut > 0 ? last_cut + 1 : 0};
}

}  // namespace cuda
}  // namespace tq
