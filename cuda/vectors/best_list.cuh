// SPDX-License-Identifier: Apache-2.0
// The k best of a list of scores, the lower place first of equals, which is the lower index: lists are in the
// order of indices, and so are results until the end. A CTA finds the k-th largest key by four passes of a
// radix selection and copies what is above it, with the first of those equal to it, in order.
#pragma once
#include "cuda/vectors/score_key.cuh"

namespace tq::cuda::vectors {

constexpr int kSelectThreads = 512, kSelectWarps = kSelectThreads / 32, kRadixBins = 256;

// [rows][stride] each; an index of -1: no result. least [rows]: the key of the worst of k results, or 0 while
// there are fewer.
struct BestList {
  float* scores;
  int64_t* ids;
  uint32_t* least;
  int64_t stride;
};

struct SelectShared {
  uint32_t bins[kRadixBins];
  int above[kSelectWarps], equal[kSelectWarps];
  uint32_t prefix;
  int wanted, found;
};

// The digit that the wanted-th largest of the bins' numbers has: *wanted becomes its place among those of the
// digit. One warp; lane l has bins 8 (31 - l) .. 8 (31 - l) + 7.
__device__ __forceinline__ int find_digit(const uint32_t* bins, int lane, int* wanted) {
  constexpr int kOwn = kRadixBins / 32;
  const int first = kOwn * (31 - lane);
  int own = 0;
#pragma unroll
  for (int i = 0; i < kOwn; i++) own += static_cast<int>(bins[first + i]);
  int before = own;  // with those of lower lanes, which have the higher digits
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const int other = __shfl_up_sync(kFullWarp, before, h);
    if (lane >= h) before += other;
  }
  const int owner = __ffs(static_cast<int>(__ballot_sync(kFullWarp, before >= *wanted))) - 1;
  int left = *wanted - (before - own), digit = first + kOwn - 1;
  if (lane == owner)
    while (left > static_cast<int>(bins[digit])) left -= static_cast<int>(bins[digit--]);
  *wanted = __shfl_sync(kFullWarp, left, owner);
  return __shfl_sync(kFullWarp, digit, owner);
}

// key(i) of n places; put(place, i) for the min(k, n) best of them, in order; those of key 0 need not be put.
// Returns how many were put, and the least key of k of them in *least, which is 0 if there are not as many.
template <class Key, class Put>
__device__ __forceinline__ int64_t select_best(SelectShared& shared, int64_t n, int64_t k, const Key& key,
                                               const Put& put, uint32_t* least) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  // Often few are better than what is there already: then there is nothing to choose.
  int some = 0;
#pragma unroll 4
  for (int64_t i = thread; i < n; i += kSelectThreads) some += key(i) > 0 ? 1 : 0;
  if (thread == 0) shared.found = 0;
  __syncthreads();
  some = __reduce_add_sync(kFullWarp, some);
  if (lane == 0) atomicAdd(&shared.found, some);
  __syncthreads();
  const bool all = shared.found <= k;
  // The k-th largest key, from its high digit on; wanted: how many of those with the prefix.
  uint32_t prefix = 0;
  int wanted = all ? 0 : static_cast<int>(k);
  for (int shift = 24; shift >= 0 && !all; shift -= 8) {
    __syncthreads();
    for (int b = thread; b < kRadixBins; b += kSelectThreads) shared.bins[b] = 0;
    __syncthreads();
    const uint32_t mask = shift == 24 ? 0u : ~0u << (shift + 8);
#pragma unroll 4
    for (int64_t i = thread; i < n; i += kSelectThreads) {
      const uint32_t own = key(i);
      if (own > 0 && (own & mask) == prefix) atomicAdd(&shared.bins[own >> shift & 255u], 1u);
    }
    __syncthreads();
    if (warp == 0) {
      const int digit = find_digit(shared.bins, lane, &wanted);
      if (lane == 0) shared.prefix = prefix | static_cast<uint32_t>(digit) << shift, shared.wanted = wanted;
    }
    __syncthreads();
    prefix = shared.prefix;
    wanted = shared.wanted;
  }
  // Copies in order, a warp a share of the places: all keys above the prefix, and the first `wanted` that are
  // equal to it.
  const int64_t share = (n + kSelectWarps - 1) / kSelectWarps, begin = warp * share,
                end = min(n, begin + share);
  const unsigned before = (1u << lane) - 1;
  int above = 0, equal = 0;
#pragma unroll 4
  for (int64_t i = begin + lane; i < end; i += 32) {
    const uint32_t own = key(i);
    above += own > prefix ? 1 : 0;
    equal += own == prefix ? 1 : 0;
  }
  above = __reduce_add_sync(kFullWarp, above);
  equal = __reduce_add_sync(kFullWarp, equal);
  if (lane == 0) shared.above[warp] = above, shared.equal[warp] = equal;
  __syncthreads();
  int64_t place = 0, placed = 0;
  int equals = 0, seen = 0;  // before this warp's, and before w's
  for (int w = 0; w < kSelectWarps; w++) {
    if (w == warp) place = placed, equals = seen;
    placed += shared.above[w] + max(0, min(shared.equal[w], wanted - seen));
    seen += shared.equal[w];
  }
  if (above > 0 || (equal > 0 && equals < wanted))
    for (int64_t from = begin; from < end; from += 32) {
      const int64_t i = from + lane;
      const uint32_t own = i < end ? key(i) : 0u;
      const bool same = i < end && own == prefix;
      const unsigned all_same = __ballot_sync(kFullWarp, same);
      const bool take = i < end && (own > prefix || (same && equals + __popc(all_same & before) < wanted));
      const unsigned all_taken = __ballot_sync(kFullWarp, take);
      if (take) put(place + __popc(all_taken & before), i);
      place += __popc(all_taken);
      equals += __popc(all_same);
    }
  *least = prefix;
  return placed;
}

// No result in places from .. end - 1 behind `at`.
__device__ __forceinline__ void put_nothing(const BestList& list, int64_t at, int64_t from, int64_t end) {
  for (int64_t i = from + threadIdx.x; i < end; i += kSelectThreads) {
    list.scores[at + i] = -__uint_as_float(0x7F800000u);
    list.ids[at + i] = -1;
  }
}

}  // namespace tq::cuda::vectors
