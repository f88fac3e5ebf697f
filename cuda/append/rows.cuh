// SPDX-License-Identifier: Apache-2.0
// A warp and one token of a side by rows: nobody else writes its row and its scales, so that few and many new
// tokens go the same way and nothing is merged.
#pragma once
#include "cuda/append/token.cuh"
#include "cuda/code/rows.cuh"

namespace tq::cuda::append {

// Not inlined: the kernel has it twice, and what it takes of registers is not the other families'. job by
// value: behind a reference the caller's would lie in memory.
template <int kStored, bool kTurns>
__device__ __noinline__ code::Noticed encode_row(const AppendParams& args, const DeviceSide& side,
                                                 const TileJob job, int token, const code::RowTarget to,
                                                 int lane) {
  constexpr int kRegs = kStored / 32;
  const format::CodeFamily family = side.layout.family;
  code::Noticed noticed;
  float y[kRegs];
  noticed.replaced = load_token<kStored, kTurns>(args, side, job, token, y, lane);
  if (family == format::CodeFamily::kGrouped) {
    noticed.saturated = code::encode_grouped<kStored>(y, side.layout, to, lane);
    return noticed;
  }
  uint32_t signs[kRegs];
#pragma unroll
  for (int r = 0; r < kRegs; r++) signs[r] = side.signs[job.head * side.sign_stride + r];
  int exponent = 0;
  const bool there = code::rotate_warp<kStored>(y, signs, lane, &exponent);
  if (family == format::CodeFamily::kLevels)
    code::encode_levels<kStored>(y, there, exponent, side, to, lane);
  else
    code::encode_scalar_row<kStored>(y, there, exponent, side, job.head, args.zones[job.kind], to, lane);
  return noticed;
}

// A token's row, a raw one where !kRows. tile: the job's.
template <int kStored, bool kRows, bool kTurns>
__device__ __forceinline__ void append_row(const AppendParams& args, const DeviceSide& side,
                                           const TileJob& job, int token, uint8_t* tile, int lane,
                                           code::Noticed* noticed) {
  const format::SideLayout& layout = side.layout;
  if (!kRows || layout.raw())
    return copy_raw_token(args, side, job, token, reinterpret_cast<uint16_t*>(tile + side.code_offset), lane,
                          noticed);
  if constexpr (kRows) {
    const code::RowTarget to = {
        reinterpret_cast<uint32_t*>(tile + side.code_offset) + token * layout.row_words(),
        reinterpret_cast<uint16_t*>(tile + side.scale_offset) + token * layout.scales_per_token()};
    const code::Noticed here = encode_row<kStored, kTurns>(args, side, job, token, to, lane);
    noticed->replaced |= here.replaced;
    noticed->saturated |= here.saturated;
  }
}

}  // namespace tq::cuda::append
