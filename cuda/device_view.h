// SPDX-License-Identifier: Apache-2.0
// What kernels see of a cache: plain structs, passed by value as kernel parameters. Every address in them is
// fixed for the life of the cache or of the batch, and everything that changes from step to step (lengths,
// tables, work) lies behind a device pointer, so that a captured graph stays right while sequences grow.
//
// Lengths and rows are 32-bit here: check_cuda_backend refuses configurations whose sequences or batches
// could pass 2^31 - 1 tokens. Byte offsets of pages are 64-bit.
#pragma once
#include "cuda/code/row_tables.h"
#include "requests.h"

namespace tq {
namespace cuda {

// What append knows of one sequence of a plan; positions are token indices in the sequence. 32 bytes: two
// 16-byte loads.
struct alignas(16) DeviceSequence {
  int32_t page_row, raw_slot, flag;  // plan.h
  int32_t old_length;                // before the plan's new tokens
  int32_t length;                    // with them; where tokens are stored once, where codes end
  int32_t kv_row;                    // first row in k/v
  int32_t raw_first, sink_end;       // plan.h
};
static_assert(sizeof(DeviceSequence) == 32, "two 16-byte loads");

// One tile of an append with few new tokens: a warp per kv head and side. It repeats what it needs of the
// sequence and the page table, so that a decode step waits for one load instead of three. Of an engine's
// slots: schedule/slot_job.h.
struct alignas(16) AppendJob {
  int32_t flag, old_length, length, kv_row;  // as in DeviceSequence
  int32_t tile, page, tile_in_page;
  int32_t raw_page;  // where exact copies of the tile's tokens go, or -1
};
static_assert(sizeof(AppendJob) == 32, "two 16-byte loads");

// Rows first .. first + count - 1 of q, out and lse.
struct IdleRows {
  int32_t first, count;
};

struct DeviceCounts {
  int32_t num_sequences;
  int32_t new_tokens, query_tokens;
  int32_t num_small_jobs;   // entries of small_jobs
  int32_t num_large_tiles;  // = large_first[num_sequences]
  int32_t work_bytes;       // bytes of the attend work list in use
  int32_t reserved[2];
};

// A batch's plan on the device. Addresses are fixed from create_plan_storage on; contents change with
// upload_plan, in stream order.
struct DevicePlan {
  const DeviceCounts* counts;
  const DeviceSequence* sequences;  // [max_batch_sequences], counts->num_sequences of them valid
  const AppendJob* small_jobs;      // [2 * max_batch_sequences]
  // [max_batch_sequences + 1] running sum of tiles that are appended by a whole CTA
  const int32_t* large_first;
  // [max_sequences slots][page_table_stride], page ids; belongs to the cache, shared by its batches
  const int32_t* page_table;
  int64_t page_table_stride;  // entries, >= max_sequence_pages
  const int32_t* raw_table;   // the same of the exact copies, or null
  int64_t raw_table_stride;
  const uint8_t* work;    // the attend work list, 16-byte aligned; its form is cuda/schedule/work_list.h's
  int64_t work_capacity;  // bytes
  // Of an engine's step (cuda/paged), null for a cache. Tokens lie by slot: small_jobs and, from its end
  // downwards, as many large ones as counts say, are the owners of tiles; runs has all runs, where the owners
  // find what else goes to their tiles.
  const AppendJob* runs = nullptr;
  // Rows of q that no request asks: [0].count ranges from [1] on.
  const IdleRows* idle_rows = nullptr;
};

// The sequence of a new row: the last one that begins at it or before, as those without new tokens begin
// where the next one does.
TQ_HD DeviceSequence sequence_of_row(const DevicePlan& plan, int row) {
  int low = 0, high = plan.counts->num_sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (plan.sequences[middle].kv_row <= row)
      low = middle;
    else
      high = middle;
  }
  return plan.sequences[low];
}

// Keys or values of one layer.
struct DeviceSide {
  format::SideLayout layout;  // d, D, bits, groups
  int32_t code_offset;        // of the side's words (or raw rows) in a tile, bytes
  int32_t scale_offset;       // of its scales in a tile, bytes; unused for raw sides
  format::Codebook book;      // where has_book says so; zeros otherwise
  format::ScaleRule rule;
  int32_t search;  // 0 or 1
  // [num_kv_heads][sign_stride]; coordinate i of head h: bit i % 32 of word h * sign_stride + i / 32
  const uint32_t* signs;
  int32_t sign_stride;  // words of 32
  const float* centre;  // [num_kv_heads][dim] or null
  // of the first page of exact copies [num_kv_heads][32 tokens][dim] io_dtype, raw_page_elements from page to
  // page; null without window and sinks
  void* raw;
  const RowTables* rows;  // of coded rows, else null
};

struct DeviceLayer {
  // Tile t of kv head h of page p: pages + p * page_bytes + h * head_bytes + t * tile_bytes.
  uint8_t* pages;
  int64_t page_bytes, head_bytes;
  // Ids above it stand for it: what an engine's stale entries say is never an address. A cache's ids are all
  // right, and its last one may change under a captured graph: the largest number.
  uint32_t last_page;
  int32_t tile_bytes;  // a multiple of 64; pages are 256-byte aligned as a whole, tiles 64
  int32_t tiles_per_page, page_size;
  int32_t num_kv_heads, num_q_heads, q_per_kv;
  int32_t sliding_window;  // the layer's own; 0 = all. What lies in front of it is not kept
  DataType io_dtype;
  int32_t window_tokens, sink_tokens;
  int64_t raw_page_elements;
  DeviceSide key, value;
  volatile uint32_t* flags;    // [max_sequences] words of set_noticed, in mapped host memory
  volatile uint32_t* noticed;  // their union since the last check, in mapped host memory
  // Key matrices (key_matrix.h), or null: [num_kv_heads][dim][dim] columns of the matrices, by which keys are
  // multiplied, then rows of their inverses, which are the columns that queries are multiplied by.
  const float* key_matrix = nullptr;
};

// Of a kv head's keys, and of the queries that meet them.
TQ_HD const float* key_columns(const DeviceLayer& layer, int kv_head) {
  return layer.key_matrix + static_cast<int64_t>(kv_head) * layer.key.layout.dim * layer.key.layout.dim;
}
TQ_HD const float* query_columns(const DeviceLayer& layer, int kv_head) {
  return key_columns(layer, layer.num_kv_heads + kv_head);
}

// First byte of a tile.
TQ_HD int64_t tile_offset(const DeviceLayer& layer, int64_t page, int32_t kv_head, int32_t tile_in_page) {
  return page * layer.page_bytes + kv_head * layer.head_bytes +
         static_cast<int64_t>(tile_in_page) * layer.tile_bytes;
}

// Where a token's exact copy is: its page's id and its place in that, in one number.
TQ_HD int64_t raw_place(int32_t page, int32_t token) {
  return static_cast<int64_t>(page) * format::kTileTokens + token % format::kTileTokens;
}
// Element index of its coordinate 0.
TQ_HD int64_t raw_offset(const DeviceLayer& layer, const DeviceSide& side, int32_t kv_head, int64_t place) {
  return place / format::kTileTokens * layer.raw_page_elements +
         (kv_head * format::kTileTokens + place % format::kTileTokens) * side.layout.dim;
}

// kNoticed* in device memory: each flag has a byte of its word, so that warps which notice different things
// at once store without reading.
TQ_HD void set_noticed(volatile uint32_t* word, uint64_t flag) {
  reinterpret_cast<volatile uint8_t*>(word)[(flag >> 1) - (flag >> 3)] = static_cast<uint8_t>(flag);
}
TQ_HD uint64_t noticed_flags(uint32_t word) { return (word | word >> 8 | word >> 24) & 0xFFu; }

}  // namespace cuda
}  // namespace tq
