// SPDX-License-Identifier: Apache-2.0
// Which CTA does what: from the sequences of a plan to the attend work list. Pure host code; attend kernels
// read the result. cut.h has the rules by which sequences are cut.
//
// Query rows of one kv head (q_per_kv x query tokens, query token major) come in blocks of kRowsPerBlock
// rows. The coded tokens of a sequence are cut into at most kMaxSplits splits of equal size, a power of two,
// and a split into jobs (job_tokens). What a row sees is thus cut at absolute tokens by a rule in which only
// the row's own position counts, so that its fold is the same whoever computes it and whatever else is
// planned: drafts verified at once are single steps, bit for bit. Where the rule changes between two queries
// of a sequence, these are two entries of the list. A unit is (block, split); who has a block's first one has
// its exact tokens too. Units in their order (entry, kv head, row block, split) are given to
// CTAs as contiguous runs of equal weight. Blocks that a run border cuts leave their states in workspace
// slots and are finished by whoever comes last.
#pragma once
#include "requests.h"

namespace tq {
namespace cuda {

constexpr int kRowsPerBlock = 8;
constexpr int kMaxSplits = 16;
constexpr int kMinSplitTokens = 1024;
constexpr int kJobs = 16;  // jobs of a whole split, at most, given to the warps of a CTA
// a job takes at least so many tokens: shorter ones cost more to fold than they balance
constexpr int kMinJobTokens = 256;
constexpr int kStepTokens = 64;  // unit of weight
// A step of exact tokens takes a warp as long as a CTA takes for so many of coded ones: at 4 + 4 bits some
// 1.2 us, two warps side by side (H200).
constexpr int kExactStepTokens = 16, kExactStepWeight = 2;
// Fixed cost of a unit, in steps: query load, fold, hand-over, and workers that wait for one another. One
// sequence of 131,072 tokens beside 63 of 512 takes 83.5 us with 2, 74.3 with 4, 74.7 with 8; 64 sequences of
// 128 .. 65,536 tokens 210.8 / 214.2 / 211.7 (H200, 4 + 4 bits, `attend_bench --cases ragged`).
constexpr int kUnitWeight = 8;

// What kernels know of some consecutive queries of a sequence: query token j stands at position + j.
struct SequenceRows {
  int32_t page_row, raw_slot;  // plan.h
  int32_t length, old_length;
  int32_t query_tokens, position;
  int32_t q_row;                // first row in q, out and lse
  int32_t raw_first, sink_end;  // plan.h
};

// Queries of one sequence that cut its history alike: all of them but where a border lies between. 64 bytes.
struct alignas(16) SequenceWork : SequenceRows {
  int32_t split_tokens, num_splits;  // split kMaxSplits - 1 has all tokens from its first on
  int32_t row_blocks;                // of each kv head
  int32_t reserved[4];
};
static_assert(sizeof(SequenceWork) == 64, "four 16-byte loads");

// The run of one CTA: its units from (sequence, block, split) on; block = kv_head * row_blocks + row block.
// 128 bytes. It may go on elsewhere: a second run of whole blocks fills up what large units leave uneven.
struct alignas(16) CtaWork {
  int32_t num_units;  // of both runs
  int32_t sequence, block, split;
  // workspace of the block that the run starts in the middle of; -1 if it starts at split 0
  int32_t head_slot, head_counter;
  int32_t tail_slot, tail_counter;  // of the block that the run starts but does not end; -1 if there is none
  int32_t jobs;       // of the run (at most 32767 are told), if all its units are of one sequence; else 0
  int32_t own_units;  // of this run
  int32_t second;  // where the second run is: so many SequenceWork behind the first entry; 0 = there is none
  int32_t reserved[5];
  SequenceWork first;  // of `sequence`: saves the first dependent load
};
static_assert(sizeof(CtaWork) == 128, "eight 16-byte loads");

struct WorkHeader {
  int32_t num_ctas, num_sequences;
  int32_t num_slots, num_counters;  // below which all are that runs have
};
static_assert(sizeof(WorkHeader) == 16, "aligned");

// The work list: header, CtaWork[num_ctas], SequenceWork[num_sequences], second runs.
constexpr int64_t work_bytes(int num_ctas, int64_t num_sequences) {
  return static_cast<int64_t>(sizeof(WorkHeader)) + num_ctas * static_cast<int64_t>(sizeof(CtaWork)) +
         num_sequences * static_cast<int64_t>(sizeof(SequenceWork));
}

// ---- Long query blocks ----
//
// A sequence with many query rows can go to the prefill kernel, which expands tiles once for kPrefillRows
// rows. Whether it may depends on its own rows, so that its bits do not depend on its batch; in a
// batch_invariant geometry no sequence may. A plan has up to two work lists: the one above with all
// sequences, which is right by itself, and a pair: the same list without the long sequences, and the list of
// these, below. A graph reads the pair, in both kernels, if the plan in force at its capture had a long
// sequence, else the first list alone, and then goes through long sequences of later plans in blocks of
// kRowsPerBlock: right, slower, rounded differently. So decode graphs do not pay for a kernel that has
// nothing to do.

constexpr int kPrefillRows = 128;  // query rows of a CTA of the prefill kernel
// Rows from which on a sequence is long. Fewer would leave most of the device idle when the sequence is
// alone: it has rows / kPrefillRows CTAs a kv head, while the decode kernel cuts the history; at 32k tokens
// of 8 kv heads the two are equal near 400 rows alone, and near 60 in a batch that fills the device.
constexpr int kLongRows = 256;
// On devices with products of warpgroups, long sequences of fewer rows than this are shared: each row block
// by a cluster of CTAs, which deal the history out among themselves (cuda/prefill/group_shape.cuh). Others
// are alone: a CTA a row block.
constexpr int kSharedRows = 1024;

// One long sequence. Its items are its (row block, kv head) pairs, the last row blocks first.
struct alignas(16) PrefillSequence : SequenceRows {
  int32_t row_blocks;  // of kPrefillRows
  int32_t first_item;
  int32_t reserved;
};
static_assert(sizeof(PrefillSequence) == 48, "three 16-byte loads");

struct PrefillHeader {
  int32_t num_items, num_sequences;
  int32_t reserved[2];
};
static_assert(sizeof(PrefillHeader) == 16, "aligned");

bool is_long(const Geometry& geometry, const HeadShape& heads, const StepSequence& sequence);
// Plans of few blocks of rows, of all kv heads, and no long history: attend may give each to a cluster of
// CTAs (attend/few.cuh).
constexpr int kFewBlocks = 8;
constexpr int kFewTokens = 2048;
// A graph keeps the kernel that it was captured with, whatever later plans hold. So it has this one where no
// sequence can pass these tokens, at which both are equally fast.
constexpr int kFewGraphTokens = 4096;
// Sequences with queries of such a plan, 0 for others.
int few_sequences(const Geometry& geometry, const HeadShape& heads, const StepRows& rows);
// Of the pair: the short list takes work_capacity bytes, the list of long sequences follows.
int64_t pair_capacity(const Geometry& geometry, int num_ctas);
// Writes the pair of a plan; returns the bytes used.
int64_t build_pair(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* pair, bool second_runs = true);
const PrefillHeader& prefill_header(const Geometry& geometry, int num_ctas, const uint8_t* pair);

// Entries of the list of all sequences, at most.
int64_t max_entries(const Geometry& geometry);
// The same of so many sequences, the longest and all their queries of so many tokens.
int64_t max_entries(int64_t sequences, int64_t longest, int64_t query_tokens);
// Tokens of a job. window: what a row sees at most, INT32_MAX = all.
TQ_HD int32_t job_tokens(int32_t split_tokens, int32_t window) {
  int32_t seen = split_tokens;
  while (seen > kMinJobTokens * kJobs && seen / 2 >= window) seen /= 2;
  return seen / kJobs > kMinJobTokens ? seen / kJobs : kMinJobTokens;
}

// Slots that any plan needs: each border between two runs cuts at most one block, and a block has at most
// kMaxSplits units and the state of its exact tokens. Those of a border stand at its number times as many.
constexpr int64_t max_slots(int num_ctas) { return static_cast<int64_t>(num_ctas) * (kMaxSplits + 1); }
// Bytes that any plan of this geometry needs for its work list, and for its attend workspace on num_ctas
// CTAs.
int64_t work_capacity(const Geometry& geometry, int num_ctas);
int64_t attend_workspace_capacity(const Geometry& geometry, int num_ctas);

// Workspace: int32 counters [kCounterBytes], then slots: kRowsPerBlock x stored value dims floats, m and l
// of the rows, one int32.
constexpr int64_t counter_bytes(int num_ctas) {
  return (static_cast<int64_t>(num_ctas) * 4 + 255) / 256 * 256;
}
constexpr int64_t slot_floats(int stored_value_dim) {
  return kRowsPerBlock * (static_cast<int64_t>(stored_value_dim) + 2) + 4;
}

// Writes the work list of a plan for layers of these heads to `work` (>= work_capacity bytes); returns the
// bytes used. O(sequences + CTAs). short_only: without long sequences. second_runs: CTAs may have two.
int64_t build_work(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_ctas,
                   uint8_t* work, bool short_only = false, bool second_runs = true);

}  // namespace cuda
}  // namespace tq
