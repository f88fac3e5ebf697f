// SPDX-License-Identifier: Apache-2.0
// What a prefill kernel is given beside what all attention kernels are: the list of long sequences and how
// its shared memory is cut.
#pragma once
#include "cuda/ptx/order.cuh"
#include "cuda/row/params.h"
#include "cuda/schedule/work_list.h"

namespace tq::cuda::prefill {

constexpr int kPrefillWarps = kPrefillRows / 16;  // a warp has the 16 rows of a matrix instruction
constexpr int kPrefillThreads = 32 * kPrefillWarps;
// Barriers of the CTA that this wing's kernels use (ptx/order.cuh): warps that have rows; all warps; the
// warps of a warpgroup, two in turn; both warpgroups where one of them takes its turn; the producer warps of
// a tile.
constexpr Barrier kRowsBarrier = static_cast<Barrier>(4), kItemBarrier = static_cast<Barrier>(5);
__device__ __forceinline__ Barrier group_barrier(int group) { return static_cast<Barrier>(6 + group); }
__device__ __forceinline__ Barrier turn_barrier(int group) { return static_cast<Barrier>(8 + group); }
__device__ __forceinline__ Barrier tile_barrier(int tile) { return static_cast<Barrier>(10 + tile); }
// What the sides of a layer are that are not coded.
enum class RawForm { kNone, kF16, kBf16 };
// CTAs of a multiprocessor.
constexpr int prefill_blocks(int stored, RawForm raw) {
  return stored <= 64 && raw == RawForm::kNone ? 2 : 1;
}

// Per stored dimension. A step is what is expanded and attended between two barriers.
template <int kStored>
struct PrefillShape {
  static constexpr int kGroups = kStored / 32;
  static constexpr int kJv = format::SideLayout(kStored, 8).jv, kJb = format::SideLayout(kStored, 8).jb;
  static constexpr int kTiles = kStored <= 128 ? 2 : 1;
  static constexpr int kTokens = kTiles * format::kTileTokens;
  // Expanded tiles, one group after the other: keys [2][32 lanes][16 bytes], values [4][32][16]. The padding
  // makes the stores of neighbouring lanes, which go to jv groups, free of bank conflicts.
  static constexpr int kPad = kJv == 1 ? 0 : 128 / kJv;
  static constexpr int kKeyGroup = 1024 + kPad, kValueGroup = 2048 + kPad;
  static constexpr int kKeyTile = kGroups * kKeyGroup, kValueTile = kGroups * kValueGroup;
  // Raw sides: rows of 16-bit numbers, padded so that 8 of them are in different banks.
  static constexpr int kRawRow = 2 * kStored + 16, kRawTile = format::kTileTokens * kRawRow;
  // Queries of a warp in A operand order: for coded keys high bytes, then low; for raw keys 16-bit numbers,
  // and what these lack of float32 behind them.
  static constexpr int kQueryWarp = 2 * kGroups * 512;
  static constexpr bool kQueryInRegisters = kStored <= 128;  // of layers without raw sides
};

// What stands where in a tile's accumulators, scores as well as outputs: lane quarter t holds the columns
// 8 b + 2 t, + 1 of block b. Score block b: tokens kLaneTokens t + kBlockTokens b, + 1 of the tile; output
// block n: coordinates coordinate(n, t), + 1.
template <int kStored>
struct PlainOrder {
  static constexpr int kLaneTokens = 2, kBlockTokens = 8;
  static constexpr int kRun = 2;  // neighbouring coordinates that a lane has in blocks n, n + 1, ..
  __device__ static constexpr int coordinate(int n, int t) { return 8 * n + 2 * t; }
  __device__ static constexpr int place(int c) { return c; }
};

// Weights are at most 2^(kValueTop - unit of the row), so that their products with value scales, which are
// below 2^(unit + 1), are below 2^15: halves end at 65504.
constexpr int kValueTop = 14;
constexpr int kNoExponent = -32768;
// Exponent of the largest value scale. Scales are below 2^65: units from 2^-60 on are so near each other
// that a power of two in the range of a float leads from any to any other.
__device__ __forceinline__ int value_exponent(float largest) {
  return largest > 0.0f ? max(static_cast<int>(__float_as_uint(largest) >> 23) - 127, -60) : kNoExponent;
}

// The unit of what a row has accumulated, a power of two near the largest value scale: weights are divided
// by it, o and l count times 2^(exponent - kValueTop). It follows from the scales of the tokens that the row
// has seen, step by step, and changes only where a step's leave its range. It does not sink below 2^-40 of
// the highest ever, so that what was accumulated stays finite.
struct ValueUnit {
  int32_t packed;  // the highest ever, kNoExponent before the first; exponent

  static constexpr int kFirst = kNoExponent * 65536 + kValueTop;
  __device__ __forceinline__ int exponent() const { return static_cast<int16_t>(packed); }
  // now: exponent of the step's largest scale. Whether the unit changes; ratio: what earlier sums count in
  // it.
  __device__ __forceinline__ bool see(int now, float& ratio) {
    const int before = exponent(), highest = packed >> 16;
    ratio = 1.0f;
    if (now == kNoExponent || (highest != kNoExponent && now <= before && now >= before - 8)) return false;
    const int after = max(now, highest - 40);
    packed = static_cast<int32_t>(static_cast<uint32_t>(max(highest, after)) << 16 |
                                  (static_cast<uint32_t>(after) & 0xFFFFu));
    ratio = format::exp2_int(max(before - after, -126));
    return true;
  }
};

// Coded tokens that some row of a warp sees, and those that all do and that need no special care.
struct alignas(16) WarpRange {
  int32_t begin, end, full_begin, full_end;
};

// Of the rows of a CTA.
struct PrefillRowTable {
  float scale[kPrefillRows];        // integer (or raw) score x key scale -> log2 units, >= 0
  float exact_scale[kPrefillRows];  // product of unrotated vectors -> log2 units, >= 0
  // factor that brings the unrotated query to order 1, sign of the softmax scale included
  float exact_down[kPrefillRows];
  float constant[kPrefillRows];                    // what the key centre adds, log2 units
  int32_t half_sum[kPrefillRows];                  // 1/2 sum of the integer query
  int32_t begin[kPrefillRows], end[kPrefillRows];  // coded tokens that the row sees
  int32_t visible_begin[kPrefillRows], visible_end[kPrefillRows];
  int32_t flags[kPrefillRows];  // kRowWild, kRowNotFinite
  ValueUnit unit[kPrefillRows];
  WarpRange warps[kPrefillWarps];
};

// Scales of a step; 0 for tokens that no row sees.
struct StepScales {
  float key[64];
  float value[64];
  int32_t exponent;  // of the largest value scale, kNoExponent if all are 0
  int32_t reserved[3];
};
// Fixed places in shared memory: barriers of the ring from 0 on, then these, then PrefillSmem's.
constexpr int kBlockAt = 64, kPlacesAt = 128, kPrefillHeadBytes = 256;
constexpr int kMaxPrefillStages = kBlockAt / 8;

// Byte offsets. The ring is never overlaid: bulk copies write it behind the back of ordinary stores.
struct PrefillSmem {
  int32_t stages, stage_pitch;
  int32_t rows_at, scales_at, ring_at;
  int32_t query_at, query_warp;  // bytes of a warp
  int32_t keys_at, values_at;    // two steps of expanded tiles each
  int32_t key_tile, value_tile;  // bytes of an expanded tile
  // of the exact tokens' part, over query_at and what follows
  int32_t exact_query_at, exact_tile_at;
  int32_t total_bytes;
};

struct PrefillParams : RowParams {
  explicit PrefillParams(const RowParams& common) : RowParams(common) {}

  const PrefillHeader* header = {};
  const PrefillSequence* sequences = {};
  PrefillSmem smem = {};
  int32_t wide_rows = INT32_MAX;  // sequences of as many rows a kv head go the wide way
};

}  // namespace tq::cuda::prefill
