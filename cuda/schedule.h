// SPDX-License-Identifier: Apache-2.0
// Which CTA does what: from the sequences of a plan to the attend work list. Pure host code; attend kernels read the result.
//
// Query rows of one kv head (q_per_kv x query tokens, query token major) come in blocks of kRowsPerBlock rows. The coded tokens of a sequence are cut
// into at most kMaxChunks chunks of equal size, a power of two that depends on the sequence's length alone, so that the fold of a row over
// its chunks is the same whoever computes it. A unit is (block, chunk); with exact tokens a block has one more unit, the last, for them. Units in
// their order (sequence, kv head, row block, chunk) are given to CTAs as contiguous runs of equal weight. Blocks that a run border cuts leave their states
// in workspace slots and are finished by whoever comes last.
#pragma once
#include "requests.h"

namespace tq {
namespace cuda {

constexpr int kRowsPerBlock = 8;
constexpr int kMaxChunks = 16;
constexpr int kMinChunkTokens = 1024;
constexpr int kStepTokens = 64;     // unit of weight
constexpr int kUnitWeight = 2;      // fixed cost of a unit, in steps: query load, fold, hand-over
constexpr int kMaxSplitBlocks = 8;  // more row blocks than this fill the device by themselves: their history is one chunk

// One sequence with queries. 64 bytes.
struct alignas(16) SequenceWork {
  int32_t slot, length, old_length, query_tokens;
  int32_t q_row, raw_first;
  int32_t chunk_tokens, num_chunks;
  int32_t row_blocks;       // of each kv head
  int32_t units_per_block;  // num_chunks, + 1 with exact tokens
  int32_t reserved[6];
};
static_assert(sizeof(SequenceWork) == 64, "four 16-byte loads");

// The run of one CTA: num_units units from (sequence, block, chunk) on; block = kv_head * row_blocks + row block. 128 bytes.
struct alignas(16) CtaWork {
  int32_t num_units;
  int32_t sequence, block, chunk;
  int32_t head_slot, head_counter;  // workspace of the block that the run starts in the middle of; -1 if it starts at chunk 0
  int32_t tail_slot, tail_counter;  // of the block that the run starts but does not end; -1 if there is none
  int32_t reserved[8];
  SequenceWork first;  // of `sequence`: saves the first dependent load
};
static_assert(sizeof(CtaWork) == 128, "eight 16-byte loads");

struct WorkHeader {
  int32_t num_ctas, num_sequences;
  int32_t num_slots, num_counters;
};
static_assert(sizeof(WorkHeader) == 16, "aligned");

// The work list: header, CtaWork[num_ctas], SequenceWork[num_sequences].
constexpr int64_t work_bytes(int num_ctas, int64_t num_sequences) {
  return static_cast<int64_t>(sizeof(WorkHeader)) + num_ctas * static_cast<int64_t>(sizeof(CtaWork)) +
         num_sequences * static_cast<int64_t>(sizeof(SequenceWork));
}

// Tokens of a chunk of a sequence of this length (>= 1).
int32_t chunk_tokens(int64_t length, int64_t row_blocks);

// Bytes that any plan of this geometry needs for its work list, and for its attend workspace on num_ctas CTAs.
int64_t work_capacity(const Geometry& geometry, int num_ctas);
int64_t attend_workspace_capacity(const Geometry& geometry, int num_ctas);

// Workspace: int32 counters [kCounterBytes], then slots: kRowsPerBlock x stored value dims floats, m and l of the rows, one int32.
constexpr int64_t counter_bytes(int num_ctas) { return (static_cast<int64_t>(num_ctas) * 4 + 255) / 256 * 256; }
constexpr int64_t slot_floats(int stored_value_dim) { return kRowsPerBlock * (static_cast<int64_t>(stored_value_dim) + 2) + 4; }

// Writes the work list of a plan to `work` (>= work_capacity bytes); returns the bytes used. O(sequences + CTAs).
int64_t build_work(const Geometry& geometry, const BatchPlan& plan, int num_ctas, uint8_t* work);
// Workspace of a plan, counters included; monotonic in what build_work counted.
int64_t attend_workspace(const Geometry& geometry, const uint8_t* work);

}  // namespace cuda
}  // namespace tq
