// SPDX-License-Identifier: Apache-2.0
// What the kernels of this wing are given, by value: the step as the host knows it, and where its plan goes
// in the caller's workspace.
#pragma once
#include "cuda/schedule/cut.h"
#include "cuda/schedule/slot_job.h"

namespace tq::cuda::paged {

constexpr int kPlanThreads = 256;
constexpr int kPlanWarps = kPlanThreads / 32;
// A thread has one border between runs.
constexpr int kMaxCtas = kPlanThreads - 1;

// Lists of each head shape: one of all requests alone, or with it one of those that are not long, and one of
// those that are.
enum class ListKind { kAll, kShort, kLong };
constexpr int kListKinds = 3;

// Byte offsets of a step's plan in its workspace, all multiples of 256.
struct PlanPlaces {
  int64_t counts, idle, jobs, runs;
  int64_t lists;       // of head shape s: from s * list_bytes on
  int64_t list_bytes;  // of one head shape
  int64_t list[kListKinds];
  int64_t sums[kListKinds];  // scratch of kAll and kShort: Before [entries + 1]; of kLong the unsorted list
  int64_t attend;            // counters, then slots (work_list.h)
  int64_t latent;            // of latent layers (latent/launch.h)
  int64_t total;
};

struct PlanParams {
  // The step; its pointers are the device's, null where it has no append, or no attend.
  int32_t num_reqs, max_query_len, max_seq_len;
  int32_t num_tokens;
  const int64_t* slots;
  const int32_t *lens, *starts;

  uint8_t* workspace;
  PlanPlaces places;
  int32_t entries;  // of a list, at most
  int32_t kinds;    // 1, or kListKinds if some request may be long
  int32_t num_shapes;
  uint64_t one_by_ctas;  // 2^64 / num_ctas, rounded up
  ListRule rules[kMaxHeadShapes];
  volatile uint32_t* noticed;
};

// Blocks from pages to pages.
struct CopyParams {
  uint8_t *source, *target;
  int64_t source_block, source_head, target_block, target_head;  // bytes from one to the next
  int64_t source_blocks, target_blocks;                          // how many there are
  int32_t num_kv_heads;
  int32_t units;         // of 16 bytes of a block's kv head
  const int64_t* pairs;  // device [count][2]
  int64_t count;
  volatile uint32_t* noticed;
};

}  // namespace tq::cuda::paged
