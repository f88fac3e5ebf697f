// SPDX-License-Identifier: Apache-2.0
// The scores of one tile, 32 tokens, and the queries for them. See split.cuh.
#pragma once
#include "cuda/code/row_halves.cuh"
#include "cuda/latent/exact.cuh"
#include "cuda/ptx/hmma.cuh"
#include "cuda/row/mask.cuh"
#include "cuda/row/place.cuh"

namespace tq::cuda::latent {

constexpr int kTokens = format::kTileTokens, kTokenBlocks = kTokens / 8;
constexpr int kSliceRow = 2 * kSlice;         // bytes of a token's part of a warp
constexpr int kScoreRow = kTokens + 8;        // floats: rows of partial scores without bank conflicts
constexpr int kWeightRow = 2 * kTokens + 16;  // bytes, likewise
constexpr int kQueryRow = 2 * kQuery + 64;    // bytes, likewise
constexpr int kGroups = kSlice / 32;          // of 32 coordinates, of a warp
constexpr int kRestWarps = kRest / 32;        // that take a part of the rest too

// What a row needs beside its state.
struct RowView {
  int begin, end;                  // tokens it sees as codes
  int visible_begin, visible_end;  // all
  float factor, constant, slope;
  int position;
  TreeWords tree;
};

template <int kTiles>
struct SplitShared {
  static constexpr int kRows = kTiles * kTileRows;
  alignas(16) uint8_t slices[kWarps][kTokens * kSliceRow];
  alignas(16) float scores[kWarps][kRows][kScoreRow];
  alignas(16) uint8_t weights[kRows * kWeightRow];
  alignas(16) uint8_t queries[kTiles > 1 ? kRows* kQueryRow : 16];
  float alpha[kRows], mine[kRows];  // factors of earlier sums; of the split's own, when it is merged
  RowView rows[kRows];
  uint16_t latent_levels[256], rest_levels[256];
};

// A tile in shared memory: rows of the latent's codes, padded by 16 bytes against bank conflicts, then the
// rest's, then both sides' scales. The ring of a CTA has `depth` of them.
struct TileRing {
  int row_stride, rest_at, scales_at, slot_bytes;

  TQ_HD TileRing(const format::SideLayout& latent, const format::SideLayout& rest)
      : row_stride(latent.row_bytes() + 16),
        rest_at(kTokens * row_stride),
        scales_at(rest_at + rest.code_bytes()),
        slot_bytes(scales_at + 2 * format::kScaleBytes) {}
  TQ_HD explicit TileRing(const DeviceLayer& layer) : TileRing(layer.value.layout, layer.key.layout) {}
  // Where the latent's scales are; the rest's lie in front of them.
  TQ_HD int latent_scales() const { return scales_at + format::kScaleBytes; }
};

// Of exact tokens, where the ring is otherwise: the rest's halves, then both sides' scales. Halves of the
// latent lie in the slices.
struct ExactTile {
  uint16_t rest[kTokens][kRest];
  uint16_t rest_scales[kTokens], scales[kTokens];  // bfloat16
};
static_assert(sizeof(ExactTile) <= 2 * kTokens * (kLatent / 8 + 16), "two slots of the narrowest codes");

// Starts the copy of a tile; all threads.
__device__ __forceinline__ void start_tile(const DeviceLayer& layer, const TileRing& ring,
                                           const uint8_t* tile, uint8_t* slot, int thread) {
  const int pieces = layer.value.layout.row_bytes() / 16;
  for (int i = thread; i < kTokens * pieces; i += kThreads) {
    const int row = i / pieces, at = 16 * (i - row * pieces);
    lane_copy(slot + row * ring.row_stride + at, tile + layer.value.code_offset + 16 * i, 16, 0);
  }
  for (int i = thread; i < layer.key.layout.code_bytes() / 16; i += kThreads)
    lane_copy(slot + ring.rest_at + 16 * i, tile + layer.key.code_offset + 16 * i, 16, 0);
  constexpr int kScalePieces = format::kScaleBytes / 16;
  if (thread < kScalePieces)
    lane_copy(slot + ring.latent_scales() + 16 * thread, tile + layer.value.scale_offset + 16 * thread, 16,
              0);
  else if (thread < 2 * kScalePieces && !layer.key.layout.raw())
    lane_copy(slot + ring.scales_at + 16 * (thread - kScalePieces),
              tile + layer.key.scale_offset + 16 * (thread - kScalePieces), 16, 0);
}

// The rest's operands of a warp's 32 coordinates, and what its scores are multiplied by.
__device__ __forceinline__ void load_rest(const LatentParams& p, const DeviceSide& side, const TileRing& ring,
                                          const uint8_t* slot, const uint16_t* levels, int warp, int lane,
                                          uint32_t (&h)[kTokenBlocks][4], float (&scale)[kTokenBlocks][2]) {
  const int t = lane % 4;
  if (side.layout.raw()) {
    // bfloat16 has the range of float: each token's numbers are taken relative to a power of two near its
    // largest.
    const bool wide = p.row.layer.io_dtype == DataType::kBF16;
    float unit[kTokenBlocks];
#pragma unroll
    for (int n = 0; n < kTokenBlocks; n++) {
      const uint4 raw = reinterpret_cast<const uint4*>(
          slot + ring.rest_at)[(8 * n + lane / 4) * (kRest / 8) + 4 * warp + t];
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
      uint32_t most = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t a = words[i] << 16 & 0x7FFF0000u, b = words[i] & 0x7FFF0000u;
        most = max(most, max(a, b));
      }
      most = max(most, __shfl_xor_sync(~0u, most, 1));
      most = max(most, __shfl_xor_sync(~0u, most, 2));
      const int exponent = min(max(static_cast<int>(most >> 23) - 127, -100), 100);
      const float down = format::exp2_int(-exponent);
      unit[n] = wide ? format::exp2_int(exponent) : 1.0f;
#pragma unroll
      for (int i = 0; i < 4; i++)
        h[n][i] = wide ? pack_f16(low_bf16(words[i]) * down, high_bf16(words[i]) * down) : words[i];
    }
#pragma unroll
    for (int n = 0; n < kTokenBlocks; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) scale[n][i] = __shfl_sync(~0u, unit[n], 4 * (2 * t + i));
    return;
  }
  const int bits = side.layout.bits, words = kRest * bits / 32;
  const uint32_t* rows = reinterpret_cast<const uint32_t*>(slot + ring.rest_at);
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(slot + ring.scales_at);
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) {
    code::RowPiece<0> piece;
    piece.load(rows + (8 * n + lane / 4) * words, words, 4 * warp + t, bits);
    piece.halves(HalfTable{}, levels, bits, h[n]);
    const uint32_t pair = pairs[4 * n + t];
    scale[n][0] = low_bf16(pair);
    scale[n][1] = high_bf16(pair);
  }
}

// First operand of the products of 32 coordinates, of rows g and g + 8: pieces of eight halves of each.
__device__ __forceinline__ void query_operands(const uint4& a, const uint4& b, uint32_t (&first)[4],
                                               uint32_t (&second)[4]) {
  first[0] = a.x, first[1] = b.x, first[2] = a.y, first[3] = b.y;
  second[0] = a.z, second[1] = b.z, second[2] = a.w, second[3] = b.w;
}

// Adds 32 coordinates to the scores of 16 rows.
__device__ __forceinline__ void add_scores(float (&acc)[kTokenBlocks][4], const uint4& a, const uint4& b,
                                           const uint32_t (&h)[kTokenBlocks][4]) {
  uint32_t first[4], second[4];
  query_operands(a, b, first, second);
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) hmma_f16(acc[n], first, h[n][0], h[n][1]);
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) hmma_f16(acc[n], second, h[n][2], h[n][3]);
}

// The queries of a block. Of 16 rows a warp keeps its coordinates in registers, of more all lie in shared
// memory. Rows that there are not are zeros.
template <int kTiles>
struct Queries {
  uint4 own[kTiles == 1 ? kGroups + 1 : 1][2];
  const uint8_t* shared;

  // at(row): the row's prepared query, or null.
  template <class At>
  __device__ __forceinline__ void load(uint8_t* memory, int thread, const At& at) {
    const int warp = thread / 32, lane = thread % 32;
    const auto piece = [&](int row, int number) {
      const uint16_t* from = at(row);
      return from ? __ldg(reinterpret_cast<const uint4*>(from) + number) : make_uint4(0, 0, 0, 0);
    };
    if constexpr (kTiles == 1) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = lane / 4 + 8 * half, t = lane % 4;
#pragma unroll
        for (int g = 0; g < kGroups; g++) own[g][half] = piece(row, (kSlice * warp + 32 * g) / 8 + t);
        own[kGroups][half] =
            warp < kRestWarps ? piece(row, kLatent / 8 + 4 * warp + t) : make_uint4(0, 0, 0, 0);
      }
    } else {
      shared = memory;
      for (int i = thread; i < kTiles * kTileRows * (kQuery / 8); i += kThreads) {
        const int row = i / (kQuery / 8), number = i % (kQuery / 8);
        *reinterpret_cast<uint4*>(memory + row * kQueryRow + 16 * number) = piece(row, number);
      }
    }
  }
  // group kGroups: the rest's.
  __device__ __forceinline__ uint4 get(int tile, int half, int group, int warp, int lane) const {
    if constexpr (kTiles == 1) return own[group][half];
    const int number = (group < kGroups ? kSlice * warp + 32 * group : kLatent + 32 * warp) / 8 + lane % 4;
    return *reinterpret_cast<const uint4*>(shared + (kTileRows * tile + lane / 4 + 8 * half) * kQueryRow +
                                           16 * number);
  }
};

// A warp's partial scores of 16 rows: what they are multiplied by, a column each, and where they go.
template <bool kMore, int kTiles, class Scale>
__device__ __forceinline__ void put_scores(SplitShared<kTiles>& shared, const float (&acc)[kTokenBlocks][4],
                                           int tile, int warp, int lane, const Scale& scale) {
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float2* const to = reinterpret_cast<float2*>(
          &shared.scores[warp][kTileRows * tile + lane / 4 + 8 * half][8 * n + 2 * (lane % 4)]);
      float2 x = make_float2(acc[n][2 * half] * scale(n, 0), acc[n][2 * half + 1] * scale(n, 1));
      if constexpr (kMore) {
        const float2 before = *to;
        x.x += before.x;
        x.y += before.y;
      }
      *to = x;
    }
}

// Expands 32 coordinates of a tile, as operands and into the warp's slice.
template <int kWidth, int kTiles>
__device__ __forceinline__ void expand_group(const LatentParams& p, SplitShared<kTiles>& shared,
                                             const TileRing& ring, const uint8_t* slot, int group, int warp,
                                             int lane, uint32_t (&h)[kTokenBlocks][4]) {
  const format::SideLayout& side = p.row.layer.value.layout;
  const int piece = 4 * group + lane % 4;  // of the warp's
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) {
    const int token = 8 * n + lane / 4;
    code::RowPiece<kWidth> codes;
    codes.load(reinterpret_cast<const uint32_t*>(slot + token * ring.row_stride), side.row_words(),
               kSlice / 8 * warp + piece, side.bits);
    codes.halves(p.row.numbers.value_tables.halves, shared.latent_levels, side.bits, h[n]);
    *reinterpret_cast<uint4*>(shared.slices[warp] + token * kSliceRow + 16 * (piece ^ (token & 7))) =
        make_uint4(h[n][0], h[n][1], h[n][2], h[n][3]);
  }
}

// Halves of exact tokens that are in the slices.
template <int kTiles>
__device__ __forceinline__ void load_group(const SplitShared<kTiles>& shared, int group, int warp, int lane,
                                           uint32_t (&h)[kTokenBlocks][4]) {
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) {
    const int token = 8 * n + lane / 4;
    const uint4 x = *reinterpret_cast<const uint4*>(shared.slices[warp] + token * kSliceRow +
                                                    16 * ((4 * group + lane % 4) ^ (token & 7)));
    h[n][0] = x.x, h[n][1] = x.y, h[n][2] = x.z, h[n][3] = x.w;
  }
}
__device__ __forceinline__ void load_exact_rest(const ExactTile& tile, int warp, int lane,
                                                uint32_t (&h)[kTokenBlocks][4],
                                                float (&scale)[kTokenBlocks][2]) {
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) {
    const uint4 x = reinterpret_cast<const uint4*>(tile.rest[8 * n + lane / 4])[4 * warp + lane % 4];
    h[n][0] = x.x, h[n][1] = x.y, h[n][2] = x.z, h[n][3] = x.w;
    const uint32_t pair = reinterpret_cast<const uint32_t*>(tile.rest_scales)[4 * n + lane % 4];
    scale[n][0] = low_bf16(pair);
    scale[n][1] = high_bf16(pair);
  }
}

// The scores of a warp's coordinates, and its slice of the tile. kWidth kExactRows: `slot` is an ExactTile,
// and the slices are there.
template <int kWidth, int kTiles>
__device__ __forceinline__ void score_tile(const LatentParams& p, SplitShared<kTiles>& shared,
                                           const Queries<kTiles>& queries, const TileRing& ring,
                                           const uint8_t* slot, int warp, int lane) {
  const ExactTile& exact = *reinterpret_cast<const ExactTile*>(slot);
  const uint32_t* const pairs = kWidth == kExactRows
                                    ? reinterpret_cast<const uint32_t*>(exact.scales)
                                    : reinterpret_cast<const uint32_t*>(slot + ring.latent_scales());
  uint32_t scales[kTokenBlocks];  // two bfloat16 each: of tokens 8 n + 2 t, + 1
#pragma unroll
  for (int n = 0; n < kTokenBlocks; n++) scales[n] = pairs[4 * n + lane % 4];
  const auto expand = [&](int group, uint32_t(&h)[kTokenBlocks][4]) {
    if constexpr (kWidth == kExactRows)
      load_group(shared, group, warp, lane, h);
    else
      expand_group<kWidth, kTiles>(p, shared, ring, slot, group, warp, lane, h);
  };
  const auto scale = [&](int n, int j) { return j == 0 ? low_bf16(scales[n]) : high_bf16(scales[n]); };
  if constexpr (kTiles == 1) {
    float acc[kTokenBlocks][4] = {};
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
      uint32_t h[kTokenBlocks][4];
      expand(group, h);
      add_scores(acc, queries.get(0, 0, group, warp, lane), queries.get(0, 1, group, warp, lane), h);
    }
    put_scores<false>(shared, acc, 0, warp, lane, scale);
  } else {
    uint32_t h[kGroups][kTokenBlocks][4];
#pragma unroll
    for (int group = 0; group < kGroups; group++) expand(group, h[group]);
#pragma unroll 1
    for (int i = 0; i < kTiles; i++) {
      float acc[kTokenBlocks][4] = {};
#pragma unroll
      for (int group = 0; group < kGroups; group++)
        add_scores(acc, queries.get(i, 0, group, warp, lane), queries.get(i, 1, group, warp, lane), h[group]);
      put_scores<false>(shared, acc, i, warp, lane, scale);
    }
  }
  if (warp >= kRestWarps) return;
  uint32_t rest[kTokenBlocks][4];
  float rest_scale[kTokenBlocks][2];
  if constexpr (kWidth == kExactRows)
    load_exact_rest(exact, warp, lane, rest, rest_scale);
  else
    load_rest(p, p.row.layer.key, ring, slot, shared.rest_levels, warp, lane, rest, rest_scale);
#pragma unroll 1
  for (int i = 0; i < kTiles; i++) {
    float acc[kTokenBlocks][4] = {};
    add_scores(acc, queries.get(i, 0, kGroups, warp, lane), queries.get(i, 1, kGroups, warp, lane), rest);
    put_scores<true>(shared, acc, i, warp, lane, [&](int n, int j) { return rest_scale[n][j]; });
  }
}

}  // namespace tq::cuda::latent
