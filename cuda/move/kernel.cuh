// SPDX-License-Identifier: Apache-2.0
// Tokens move down in their pages when others were taken out of the sequence. A CTA has one side of one kv
// head and walks its pages in rising order; what it gathers for a step lies in shared memory until all its
// threads have read what they need, so that a page may be gathered into one that is still read from
// (page_move.cpp says why later steps find everything). No CTA reads what another writes.
#pragma once
#include "cuda/move/params.h"

namespace tq::cuda::move {

// Where a token of a step comes from; unit null: no token.
struct Source {
  const uint8_t* unit;
  int32_t token;
};

// Items of a step, the same for gathering and storing: a thread meets its own again, so that the image in
// shared memory needs no barrier of its own. f(unit, number of the item in its unit)
template <class F>
__device__ __forceinline__ void for_items(int units, int per_unit, const F& f) {
  for (int i = threadIdx.x; i < units * per_unit; i += kThreads) f(i / per_unit, i % per_unit);
}

__device__ __forceinline__ void gather_codes(const MoveSide& side, const Source* sources, int units,
                                             uint8_t* image) {
  const format::SideLayout& layout = side.layout;
  for_items(units, format::kLanes * layout.groups, [&](int unit, int group) {
    const int jj = group % layout.jv, lane = group / layout.jv % format::kLanes,
              jb = group / (layout.jv * format::kLanes);
    format::gather_group(
        layout, side.kind, *side.table, jb, lane, jj,
        [&](int token) {
          const Source& from = sources[unit * kUnitTokens + token];
          return format::SourceToken{reinterpret_cast<const uint32_t*>(from.unit), from.token};
        },
        reinterpret_cast<uint32_t*>(image + unit * side.image_bytes()));
  });
}
__device__ __forceinline__ void store_codes(const MoveSide& side, uint8_t* const* targets, int units,
                                            const uint8_t* image) {
  const int words = format::code_regions(side.layout.code()).group_words,
            step = side.layout.word_index(1, 0, 0, 0);
  for_items(units, format::kLanes * side.layout.groups, [&](int unit, int group) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(image + unit * side.image_bytes()) + group;
    uint32_t* to = reinterpret_cast<uint32_t*>(targets[unit]) + group;
    for (int i = 0; i < words; i++) to[i * step] = from[i * step];
  });
}

template <class Piece>
__device__ __forceinline__ void gather_rows(const MoveSide& side, const Source* sources, int units,
                                            uint8_t* image) {
  const int pieces = side.column_bytes / static_cast<int>(sizeof(Piece));
  for_items(units, kUnitTokens * pieces, [&](int unit, int item) {
    const Source& from = sources[unit * kUnitTokens + item / pieces];
    const uint8_t* row = from.unit + static_cast<int64_t>(from.token) * side.row_bytes + side.column;
    reinterpret_cast<Piece*>(image + unit * side.image_bytes())[item] =
        from.unit ? reinterpret_cast<const Piece*>(row)[item % pieces] : Piece{};
  });
}
template <class Piece>
__device__ __forceinline__ void store_rows(const MoveSide& side, uint8_t* const* targets, int units,
                                           const uint8_t* image) {
  const int pieces = side.column_bytes / static_cast<int>(sizeof(Piece));
  for_items(units, kUnitTokens * pieces, [&](int unit, int item) {
    uint8_t* row = targets[unit] + static_cast<int64_t>(item / pieces) * side.row_bytes + side.column;
    reinterpret_cast<Piece*>(row)[item % pieces] =
        reinterpret_cast<const Piece*>(image + unit * side.image_bytes())[item];
  });
}
// f(Piece()) with the side's piece.
template <class F>
__device__ __forceinline__ void with_piece(const MoveSide& side, const F& f) {
  if (side.piece_bytes == 16)
    f(uint4());
  else if (side.piece_bytes == 4)
    f(uint32_t());
  else
    f(uint16_t());
}

// grid: sides * max_heads
__global__ void __launch_bounds__(kThreads) move_kernel(const __grid_constant__ MoveParams params) {
  __shared__ __align__(16) uint8_t image[kImageBytes];
  __shared__ Source sources[kStepTokens];
  __shared__ uint8_t* targets[kStepTokens / kUnitTokens];
  const MoveSide& side = params.sides[blockIdx.x / params.max_heads];
  const int head = blockIdx.x % params.max_heads;
  if (head >= side.heads) return;
  const MoveLists& lists = params.groups[side.group];
  uint8_t* const base = side.first + static_cast<int64_t>(head) * side.head_bytes;
  const auto unit_at = [&](int page, int token) {
    return base + page * side.page_bytes +
           static_cast<int64_t>(token % lists.page_size / kUnitTokens) * side.unit_bytes;
  };
  const int per_page = lists.page_size / kUnitTokens, all = lists.num_gathers * per_page,
            at_once = min(kImageBytes / side.image_bytes(), kStepTokens / kUnitTokens);
  const int own_unit = threadIdx.x / kUnitTokens, own_token = threadIdx.x % kUnitTokens;
  for (int first = 0; first < all; first += at_once) {
    const int units = min(at_once, all - first);
    // Where the step's tokens come from: a token a thread.
    Source source = {nullptr, 0};
    if (own_unit < units) {
      const PageGather page = lists.gathers[(first + own_unit) / per_page];
      const int token =
          page.index * lists.page_size + (first + own_unit) % per_page * kUnitTokens + own_token;
      if (lists.has(token)) {
        const int from = params.source(token);
        source = Source{unit_at(lists.sources[from / lists.page_size], from), from % kUnitTokens};
      }
      if (own_token == 0) targets[own_unit] = unit_at(page.target, token);
    }
    sources[threadIdx.x] = source;
    __syncthreads();
    uint16_t scale = 0;
    if (side.table) {
      gather_codes(side, sources, units, image);
      if (source.unit)
        scale = reinterpret_cast<const uint16_t*>(source.unit + side.scale_offset)[source.token];
    } else {
      with_piece(side, [&](auto piece) { gather_rows<decltype(piece)>(side, sources, units, image); });
    }
    __syncthreads();  // everything is read that the stores may overwrite
    if (side.table) {
      store_codes(side, targets, units, image);
      if (own_unit < units)
        reinterpret_cast<uint16_t*>(targets[own_unit] + side.scale_offset)[own_token] = scale;
    } else {
      with_piece(side, [&](auto piece) { store_rows<decltype(piece)>(side, targets, units, image); });
    }
    __syncthreads();  // sources and targets are the next step's now
  }
}

}  // namespace tq::cuda::move
