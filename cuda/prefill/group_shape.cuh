// SPDX-License-Identifier: Apache-2.0
// Sizes and places of the prefill kernel for warpgroups (group_kernel.cuh): its matrices, its pipeline, and
// what the order in which words hold codes makes of rows and columns.
#pragma once
#include "cuda/prefill/params.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tq::cuda::prefill {

constexpr int kProducerWarps = 4;
constexpr int kGroupThreads = kPrefillThreads + 32 * kProducerWarps;
// Registers of a thread once the roles are dealt: of what the CTA was started with, or it waits for ever.
constexpr int kStartRegisters = 65536 / kGroupThreads / 8 * 8;
constexpr int kProducerRegisters = 72, kRowsRegisters = 216;
static_assert(32 * kProducerWarps * kProducerRegisters + kPrefillThreads * kRowsRegisters <=
                  kGroupThreads * kStartRegisters,
              "no more than the CTA has");

// A group of codes lies in one lane: 32 coordinates of one token (keys), or 4 coordinates of 8 tokens
// (values).
// Matrices are rows of keys and rows of transposed values in an order that lets a lane store what it has
// expanded by 8 and 16 bytes without bank conflicts:
//   tokens        token 16 a + 8 b + 2 u + e of a tile is its row of keys, and its place in rows of values,
//                 8 u + 4 a + 2 b + e: weights leave the softmax as operands of the value product as they are
//   coordinates   the bits of a value row's number in a block of 32 jv are those of its coordinate, the jj of
//                 tile_layout.h among the lowest three: what the rotation back does to every bit is the same
template <int kStored>
struct WordOrder {
  static constexpr int kLaneTokens = 8, kBlockTokens = 2;
  static constexpr int kJv = PrefillShape<kStored>::kJv;
  static constexpr int kRun = kJv == 4 ? 8 : 2;  // as in PlainOrder

  __device__ static constexpr int key_row(int g, int token_block) {
    return 8 * (g / 2) + 2 * token_block + g % 2;
  }
  // Of coordinate 32 (jv jb + jj) + 8 s + g.
  __device__ static constexpr int value_row(int jb, int jj, int s, int g) {
    return kJv == 4   ? 128 * jb + 8 * (4 * s + g / 2) + 2 * jj + g % 2
           : kJv == 2 ? 64 * jb + 8 * (2 * s + g / 4) + 4 * jj + g % 4
                      : 32 * jb + 8 * s + g;
  }
  // Inverse: row 8 n + 2 t.
  __device__ static constexpr int coordinate(int n, int t) {
    return kJv == 4   ? 128 * (n / 16) + 32 * t + 8 * (n % 16 / 4) + 2 * (n % 4)
           : kJv == 2 ? 64 * (n / 8) + 32 * (t / 2) + 8 * (n % 8 / 2) + 4 * (n % 2) + 2 * (t % 2)
                      : 8 * n + 2 * t;
  }
  // Inverse of that: the column of block n = place / 8 that is coordinate c.
  __device__ static constexpr int place(int c) {
    return kJv == 4   ? c / 128 * 128 + c % 32 / 8 * 32 + c % 8 / 2 * 8 + c / 32 % 4 * 2 + c % 2
           : kJv == 2 ? c / 64 * 64 + c % 32 / 8 * 16 + c % 8 / 4 * 8 + c / 32 % 2 * 4 + c % 4
                      : c;
  }
};

// Row blocks of shared sequences (work_list.h) go to clusters of kRanks CTAs, the history dealt in pieces of
// kPieceTokens at absolute places.
constexpr int kRanks = 4, kPieceTokens = 512;

// The steps of a CTA in a run of tokens, by their absolute numbers: all of them, or those of its pieces.
template <int kTokens, bool kShared>
struct Steps {
  static constexpr int kPiece = kPieceTokens / kTokens;
  int at, end;

  __device__ __forceinline__ Steps(int begin, int end_, int rank) : at(begin), end(end_) {
    if (kShared && at / kPiece % kRanks != rank)
      at = (at / kPiece + (rank - at / kPiece % kRanks + kRanks) % kRanks) * kPiece;
  }
  __device__ __forceinline__ bool more() const { return at < end; }
  __device__ __forceinline__ void advance() {
    at++;
    if (kShared && at % kPiece == 0) at += (kRanks - 1) * kPiece;
  }
};

// For stored dimensions of keys and of values, which may differ.
template <int kKeys, int kValues>
struct GroupShape {
  static constexpr int kKeyStored = kKeys, kValueStored = kValues;
  static constexpr int kTiles = kKeys <= 128 && kValues <= 128 ? 4 : 2,
                       kTokens = kTiles * format::kTileTokens;
  static constexpr int kSplit = kProducerWarps / kTiles;  // producer warps of a tile
  // Matrices of 64 halves a row: coordinates of queries and keys, tokens of values.
  static constexpr int kQueryMatrix = kPrefillRows * kMatrixRow, kKeyMatrix = kTokens * kMatrixRow,
                       kValueMatrix = kValues * kMatrixRow;
  static constexpr int kDepths = (kKeys + 63) / 64;
  static constexpr int kQueryBytes = kDepths * kQueryMatrix, kKeyBytes = kDepths * kKeyMatrix,
                       kValueBytes = kTokens / 64 * kValueMatrix;
  // Expanded steps that wait for their products. At 256 coordinates the second one of the values would leave
  // too little room for stored tiles.
  static constexpr int kKeyBuffers = 2, kValueBuffers = kKeys + kValues <= 384 ? 2 : 1;
  // Columns of a value product: its sums are apart from what the row has gathered.
  static constexpr int kSlice = kValues <= 128   ? kValues
                                : kValues == 192 ? 96
                                                 : 64,
                       kSlices = kValues / kSlice;
  static_assert(kValues % kSlice == 0 && kSlice * kMatrixRow % 1024 == 0, "whole slices");
  // Groups of a tile that a producer warp expands.
  static constexpr int kKeyParts = PrefillShape<kKeys>::kGroups / kSplit,
                       kValueParts = PrefillShape<kValues>::kGroups / kSplit;
  static_assert(kKeys == 32 * kKeyParts * kSplit && kValues == 32 * kValueParts * kSplit, "whole parts");
  // Whether the warpgroups take turns: between many slices of a turn the matrix unit would wait.
  static constexpr bool kTurns = kSlices <= 2;
};

// Scales of a step, 0 for tokens that no row sees; exponents of the largest value scale of each tile.
struct GroupScales {
  float key[128], value[128];
  int32_t exponent[4];
};
// A step's scales are read until its value product starts; their writer is at most two steps ahead.
constexpr int kScaleSlots = 4;

// What stands from the beginning of shared memory on. At the barriers of the keys every lane arrives: scales,
// which all lanes write and read, change hands there too. At those of the values, which guard matrices alone,
// one lane of a warp does. Stored tiles have a ring each of those of a step, `stages` steps deep.
constexpr int kMaxGroupStages = 4, kMaxStepTiles = 4;
struct GroupHead {
  uint64_t copied[kMaxStepTiles][kMaxGroupStages];
  uint64_t keys_full[2], keys_empty[2], values_full[2], values_empty[2];  // of the buffers
  // Tables that producers load into registers once a step: from constant memory each use would be a move.
  HalfTable key_halves, value_halves;
};
// Where a step's matrices are, by its number among all of a CTA: buffer, and the parity of its phase.
template <int kBuffers>
struct StepBuffer {
  int index;
  uint32_t parity;
  __device__ __forceinline__ explicit StepBuffer(int step)
      : index(step % kBuffers), parity(step / kBuffers & 1) {}
};
static_assert(sizeof(GroupHead) <= kPrefillHeadBytes, "their place");

}  // namespace tq::cuda::prefill
