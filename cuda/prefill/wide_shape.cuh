// SPDX-License-Identifier: Apache-2.0
// Sizes and places of the wide way (wide_kernel.cuh): the history of a kv head is expanded once into images
// of the matrices of group_shape.cuh, which all row blocks copy. What the images hold, how a CTA's shared
// memory is cut, and how the workspace is.
//
// Scales of values are in the halves of an image as far as these carry them, so that the softmax multiplies
// by none: a scale is its mantissa times a power of two, which is cut to kScaleLow .. kScaleHigh. What lies
// outside, a power of two as well, stays beside the image as the token's factor, and steps that have any
// such token say so. Keys are levels, their scales the factors (WideChoice has the other way). A token's
// image and factors follow from the token alone: those behind a row change none of its bits.
#pragma once
#include "cuda/prefill/group_shape.cuh"

namespace tq::cuda::prefill {

// What is to be chosen by measurement (tests/bench/gpu/wide_bench.cu has the others compiled too).
//   kFold   key scales in the halves of the images; else their factors are whole scales and every step
//           multiplies by them: 64 products a lane and step. Folded, a key is off in parts of its logit: an
//           error that grows with the square of the logits' spread, and passes 1e-3 near a spread of 1.6
//   kTurn   the warpgroups take turns at the matrix unit
//   kMove   tokens whose values are summed in the matrix unit, which cuts off what a sum loses; then the sums
//           are added to what the thread has put aside. At absolute places
template <bool kFold, bool kTurn, int kMove>
struct WideChoice {
  static constexpr bool kFoldKeys = kFold, kTurns = kTurn;
  static constexpr int kMoveTokens = kMove;
};
using WideTuning = WideChoice<false, true, 4096>;
// A row's maximum is raised by what exceeds it by more than so many powers of two.
constexpr int kWideSlack = 4;

constexpr int kWideWarps = kPrefillWarps + 4;  // two warpgroups of rows, one of which a single warp works
constexpr int kWideThreads = 32 * kWideWarps;
constexpr int kWideCopyRegisters = 40, kWideRowsRegisters = 232;
static_assert(128 * kWideCopyRegisters + kPrefillThreads * kWideRowsRegisters <=
                  kWideThreads * (65536 / kWideThreads / 8 * 8),
              "no more than the CTA has");

// Exponents of the scales that the halves of an image carry, and what these are multiplied by: levels are 1/2
// to 127.5, so that every product is a normal half. 127.5 * 1.992 * 2^(1 + 7) = 65,025.
constexpr int kScaleLow = -19, kScaleHigh = 1, kScaleUp = 7;
// Weights are at most 2^(kWideTop + kWideSlack): halves.
constexpr int kWideTop = 15 - kWideSlack;

// Beside a step's images: factors of its tokens, and whether any is not 1; of each tile's keys and values.
struct alignas(16) WideFactors {
  float key[128], value[128];
  int32_t special[2][4];
};

template <int kStored>
struct WideShape : GroupShape<kStored, kStored> {
  using Base = GroupShape<kStored, kStored>;
  // Rows a kv head from which on this is the faster way (cuda/DESIGN.md): up to dimension 128 as many as read
  // an image often enough.
  static constexpr int kLeastRows = kStored <= 128 ? 4096 : 1024;
  static_assert(kLeastRows >= kSharedRows, "sequences that are alone");
  // A step of a kv head in the workspace: keys, values, factors.
  static constexpr int kFactorsAt = Base::kKeyBytes + Base::kValueBytes;
  static constexpr int kStepBytes = (kFactorsAt + static_cast<int>(sizeof(WideFactors)) + 1023) / 1024 * 1024;
  // What a thread puts aside of its sums, in float4: of a warp's threads one after the other.
  static constexpr int kAside = kStored / 8;
  static constexpr int kAsideBytes = kAside * 16 * kPrefillThreads;
  // A row block between two slices of the history: sums put aside, then maxima, totals, units of the rows.
  static constexpr int kStateBytes = kAsideBytes + 32 * kPrefillThreads;
  // Columns of a value product: the sums stay where they are.
  static constexpr int kWideSlice = kStored <= 128 ? kStored : kStored / 2,
                       kWideSlices = kStored / kWideSlice;
};

// One place of the workspace, which the kernel of the queries sets to zeros.
constexpr int kWideStates = 192;  // row blocks whose state waits, of each of two sets
struct WideCounters {
  int32_t ticket;
  // Of passes of even and of odd number, since the launch: steps that are expanded, by warps; row blocks that
  // are done with their slice.
  int32_t expanded[2], attended[2];
  int32_t reserved[3];
  int32_t done[2 * kWideStates];  // number + 1 of the last pass that has left its state there
};

// Of a query row. The rest follows from its number.
struct alignas(16) WideRow {
  float scale, constant;  // as in PrefillRowTable
  int32_t flags;
  int32_t reserved;
};

// Byte offsets in the workspace and what there is room for.
struct WidePlaces {
  int64_t counters, rows, queries, states, aside, images;
  int64_t blocks;      // row blocks of kv heads, of all sequences
  int32_t steps;       // in each half of the images
  int32_t capacity;    // states in each set: kWideStates, or 0 if no history needs slices
  int32_t least_rows;  // of a kv head, of the sequences that go this way
  int64_t total;
};

// Of a CTA. Everything that bulk copies write or products read is never anything else.
struct WideSmem {
  int32_t query_at, keys_at, values_at, factors_at;
  int32_t aside_at;  // -1: in the workspace
  int32_t total_bytes;
};
constexpr int kWideHeadBytes = 512;

// What the copying warp tells those with rows.
enum WideKind : int32_t { kWideEnd, kWideExpand, kWideAttend };
struct alignas(16) WideItem {
  int32_t kind;
  int32_t sequence;
  int32_t kv_head;
  int32_t step;        // expand: of the sequence
  int32_t image;       // of the step, or of the pass's first step of the kv head; in kStepBytes
  int32_t first_row;   // attend
  int32_t begin, end;  // steps
  int32_t block;       // row block of all: its queries and rows
  int32_t state;       // of both sets, -1 if the slice is all that there is
  int32_t flags;
  int32_t stamp;   // number + 1 of the pass
  int32_t parity;  // of the pass
  int32_t reserved[3];
};
constexpr int kWideFirst = 1, kWideLast = 2;  // slices that begin and end the block's history

struct WideHead {
  uint64_t posted[2], finished[2];  // items
  uint64_t queries_full, queries_empty;
  uint64_t keys_full[2], keys_empty[2], values_full[2], values_empty[2];
  WideItem items[2];
};
static_assert(sizeof(WideHead) <= kWideHeadBytes, "its place");

struct WideParams : PrefillParams {
  explicit WideParams(const PrefillParams& common) : PrefillParams(common) {}

  uint8_t* workspace = {};
  WidePlaces places = {};
  WideSmem cut = {};
};

__device__ __forceinline__ WideCounters* wide_counters(const WideParams& p) {
  return reinterpret_cast<WideCounters*>(p.workspace + p.places.counters);
}
__device__ __forceinline__ WideRow* wide_rows(const WideParams& p, int64_t block) {
  return reinterpret_cast<WideRow*>(p.workspace + p.places.rows) + block * kPrefillRows;
}
template <int kStored>
__device__ __forceinline__ uint8_t* wide_queries(const WideParams& p, int64_t block) {
  return p.workspace + p.places.queries + block * WideShape<kStored>::kQueryBytes;
}
template <int kStored>
__device__ __forceinline__ uint8_t* wide_image(const WideParams& p, int image) {
  return p.workspace + p.places.images + static_cast<int64_t>(image) * WideShape<kStored>::kStepBytes;
}
template <int kStored>
__device__ __forceinline__ uint8_t* wide_state(const WideParams& p, int state) {
  return p.workspace + p.places.states + static_cast<int64_t>(state) * WideShape<kStored>::kStateBytes;
}

}  // namespace tq::cuda::prefill
