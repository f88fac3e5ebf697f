// SPDX-License-Identifier: Apache-2.0
// Where things lie: a row in the caller's tensors, a tile in the pages, the signs of a head.
#pragma once
#include "cuda/row/range.cuh"

namespace tq {
namespace cuda {

// A row in tensors [query_tokens][num_q_heads].
struct RowPlace {
  int64_t token;
  int head;

  __device__ __forceinline__ int64_t element(const TensorStrides& strides) const {
    return token * strides.token + head * strides.head;
  }
};
__device__ __forceinline__ RowPlace row_place(const RowParams& p, int q_row, int query_tokens, int kv_head,
                                              int row) {
  const int query = query_of_row(p, query_tokens, row);
  return RowPlace{static_cast<int64_t>(q_row) + query,
                  kv_head * p.layer.q_per_kv + row - query * p.layer.q_per_kv};
}

__device__ __forceinline__ RowPlace row_place(const RowParams& p, const SequenceRows& s, int kv_head,
                                              int row) {
  return row_place(p, s.q_row, s.query_tokens, kv_head, row);
}

constexpr int kPlaceBytes = 64;  // every tile starts at a multiple

// Which page a tile of a sequence is in, as the page table has it, and which of its tiles it is.
struct TilePage {
  uint32_t id;
  int tile;
};
__device__ __forceinline__ TilePage tile_page(const RowParams& p, int page_row, int tile) {
  const int page = p.numbers.page_shift >= 0 ? tile >> p.numbers.page_shift : tile / p.layer.tiles_per_page;
  return TilePage{static_cast<uint32_t>(__ldg(p.page_table + page_row * p.page_table_stride + page)),
                  tile - page * p.layer.tiles_per_page};
}
// Where a tile lies, in kPlaceBytes from the first page.
__device__ __forceinline__ uint32_t place_in_page(const RowParams& p, const TilePage& at, int kv_head) {
  return static_cast<uint32_t>(
      static_cast<uint64_t>(tile_offset(p.layer, min(at.id, p.layer.last_page), kv_head, at.tile)) /
      kPlaceBytes);
}
__device__ __forceinline__ uint32_t tile_place(const RowParams& p, int page_row, int kv_head, int tile) {
  return place_in_page(p, tile_page(p, page_row, tile), kv_head);
}

// Where the exact copy of a token of a sequence is.
__device__ __forceinline__ int64_t raw_place(const RowParams& p, int raw_slot, int token) {
  return tq::cuda::raw_place(__ldg(p.raw_table + raw_slot * p.raw_table_stride + token / format::kTileTokens),
                             token);
}

// Sign words of one head: bit lane of word i belongs to coordinate 32 i + lane. Zeros for a side that is not
// rotated.
template <int kPieces>
__device__ __forceinline__ void load_signs(const DeviceSide& side, int kv_head, uint32_t (&words)[kPieces]) {
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    words[i] = !side.layout.code().rotated() ? 0u : __ldg(side.signs + kv_head * side.sign_stride + i);
}

}  // namespace cuda
}  // namespace tq
