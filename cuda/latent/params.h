// SPDX-License-Identifier: Apache-2.0
// What the kernels of latent attention are given, and where things lie in their workspace.
//
// Rows (query token, query head) of a kv head come in blocks; the history of a sequence in splits of fixed
// size at absolute places. A slot is a block over one split: its rows' states and sums. Where a plan has more
// (block, split) pairs than slots, a block has one slot, into which its CTA merges split after split: the
// same operations in the same order, so the same bits.
//
// Query tokens come in slices, three launches each, so that the workspace has a bound.
#pragma once
#include "cuda/row/params.h"

namespace tq::cuda::latent {

constexpr int kLatent = 512, kRest = 64;  // coordinates; no other shape is compiled
constexpr int kQuery = kLatent + kRest;   // halves of a prepared query: latent, rest
constexpr int kWarps = 8, kThreads = 32 * kWarps;
// Where a row is a CTA's, at its beginning and its end: the warps, and the coordinates of the latent of each.
constexpr int kRowWarps = 4, kQuarter = kLatent / kRowWarps;
constexpr int kEndWarps = 8, kEighth = kLatent / kEndWarps;
constexpr int kSlice = kLatent / kWarps;  // coordinates of the latent that a warp has
constexpr int kFewRowsCtas = 2;           // of a multiprocessor, of kernels with 16 rows
constexpr int kTileRows = 16;             // of a matrix instruction
// In place of a width: exact tokens, as halves in shared memory (exact.cuh).
constexpr int kExactRows = 16;

// A prepared query row: logit = factor * (query . key) + constant, in log2 units.
struct alignas(16) QueryHead {
  float factor, constant;
  int32_t finite, reserved;
};
// Where the kernel that ends a row finds it: its place among the states of all slots, in its first one, and
// how many slots it has, block rows apart; none: nobody asks the row.
struct RowSlots {
  int32_t first, pieces;
};
// A row over some tokens: the softmax's state, and what its sum of latents is relative to. Both maxima, of
// logits and of logits + log2(scale), are kept: weights as halves then lie in 0 .. 1 whatever the scales are.
struct alignas(16) SlotState {
  float m, l, reference, reserved;
};

constexpr int kMostDepth = 4;
// Rows of a block, in tiles of 16: those of 64 leave room for tiles of narrow codes alone. rows: of a
// sequence and kv head; row_bytes: of a token's latent. A row's bits do not depend on its block.
constexpr int block_tiles(int64_t rows, int row_bytes) {
  return rows <= 16 ? 1 : rows <= 32 || row_bytes > 256 ? 2 : 4;
}
// Tokens of a split: long ones for many rows, whose states cost as much as codes. A rule in which the layer
// alone counts, so that what else is planned does not.
constexpr int split_tokens(int q_per_kv) { return q_per_kv <= 32 ? 512 : q_per_kv <= 64 ? 1024 : 2048; }

// Rows: those of a slice.
struct Space {
  QueryHead* heads;    // [rows]
  RowSlots* slots_of;  // [rows]
  uint16_t* queries;   // [rows][kQuery]
  SlotState* states;   // [slots][block rows]
  float* sums;         // [slots][block rows][kLatent]
  int32_t slots;

  // rows: query tokens x query heads. Returns the bytes.
  static int64_t place(void* base, int64_t rows, int64_t slots, int block_rows, Space* space) {
    uint8_t* at = static_cast<uint8_t*>(base);
    const auto take = [&at](int64_t bytes) {
      uint8_t* const here = at;
      at += (bytes + 255) / 256 * 256;
      return here;
    };
    space->heads = reinterpret_cast<QueryHead*>(take(rows * static_cast<int64_t>(sizeof(QueryHead))));
    space->slots_of = reinterpret_cast<RowSlots*>(take(rows * static_cast<int64_t>(sizeof(RowSlots))));
    space->queries = reinterpret_cast<uint16_t*>(take(rows * kQuery * 2));
    space->states =
        reinterpret_cast<SlotState*>(take(slots * block_rows * static_cast<int64_t>(sizeof(SlotState))));
    space->sums = reinterpret_cast<float*>(take(slots * block_rows * kLatent * 4));
    space->slots = static_cast<int32_t>(slots);
    return at - static_cast<uint8_t*>(base);
  }
};

constexpr int64_t kSliceRows = 1 << 16;  // query tokens x query heads of a slice, at most, or one token's

struct LatentParams {
  RowParams row;
  const uint8_t* work;  // the plan's list (schedule/work_list.h): its entries of all sequences
  Space space;
  int32_t split_tokens, block_rows;
  int32_t first_token, num_tokens;  // the slice, of the plan's query tokens
  // Of an engine's step: there are all rows of the slice, some of which may belong to no entry.
  bool all_rows;
  bool in_operand_order;  // prepared queries: of the kernel for warpgroups (group_tile.cuh)
  int32_t depth;          // tiles of a CTA's ring in shared memory: 2 .. kMostDepth; of the other kernel
};

}  // namespace tq::cuda::latent
