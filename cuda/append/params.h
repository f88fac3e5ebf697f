// SPDX-License-Identifier: Apache-2.0
// What an append kernel is given, by value, and the shape of its CTAs.
#pragma once
#include "cuda/append/split.h"
#include "cuda/schedule/slot_job.h"
#include "format/raw.h"

namespace tq::cuda::append {

// n / d by a multiplication: exact for n < 2^31, since m = ceil(2^63 / d) is off by less than d / 2^63 of a
// quotient unit.
struct FastDivisor {
  uint64_t m;
  uint32_t d;

  explicit FastDivisor(uint32_t divisor) : m(((1ull << 63) + divisor - 1) / divisor), d(divisor) {}
#if defined(__CUDACC__) || defined(TQ_EMULATE)
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>(__umul64hi(m, static_cast<uint64_t>(n) << 1));
  }
  __device__ __forceinline__ int remainder(int n, int q) const { return n - q * static_cast<int>(d); }
#endif
};

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTeams = 2;  // of a CTA: each works on a tile of its own
constexpr int kTeamWarps = kWarps / kTeams;
constexpr int kTeamThreads = 32 * kTeamWarps;
static_assert(kWarps * kSmallTokens == format::kTileTokens,
              "small jobs keep their rows where a tile's rows would be");
static_assert(kSmallRun == kSmallTokens, "a small run is one piece");

// Resident CTAs of a multiprocessor, and the grid's size. More would only wait: a decode step of 64 sequences
// x 8 heads took 9.2 us in two waves of CTAs and takes 5.2 us in one (H100, 4 bits).
constexpr int ctas_per_unit(int stored) { return stored <= 256 ? 2 : 1; }

struct AppendParams {
  DeviceLayer layer;
  DevicePlan plan;
  const void* input[2];  // keys, values
  TensorStrides strides[2];
  int32_t first_kind, num_kinds;  // sides of this launch
  int32_t small_capacity;         // entries of plan.small_jobs that may be read; of slots all, large ones too
  FastDivisor per_tile;           // num_kv_heads * num_kinds
  // Instead of the caller's rows the exact copies in the pages that the jobs name, whose codes they are to
  // get: input is their memory, strides are theirs, nothing is noticed. All jobs are listed, large ones from
  // the end of small_jobs on.
  bool from_copies = false;
  float largest = format::kMaxMagnitudeIn;  // what an infinite value is coded as
  bool zones[2] = {};                       // zones_apart of the sides' codebooks; launch_append fills it in
};

}  // namespace tq::cuda::append
