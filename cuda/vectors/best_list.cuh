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
  int taken[2][kSelectWarps], equal[2][kSelectWarps];
  uint32_t prefix;
  int64_t wanted;
  int found;
};

// key(i) of n places; put(place, i) for the min(k, n) best of them, in order; those of key 0 need not be put.
// Returns how many were put, and the least key of k of them in *least, which is 0 if there are not as many.
template <class Key, class Put>
__device__ __forceinline__ int64_t select_best(SelectShared& shared, int64_t n, int64_t k, const Key& key,
                                               const Put& put, uint32_t* least) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  // Often few are better than what is there already: then there is nothing to choose.
  int some = 0;
  for (int64_t i = thread; i < n; i += kSelectThreads) some += key(i) > 0 ? 1 : 0;
  if (thread == 0) shared.found = 0;
  __syncthreads();
  some = __reduce_add_sync(kFullWarp, some);
  if (lane == 0) atomicAdd(&shared.found, some);
  __syncthreads();
  const bool all = shared.found <= k;
  // The k-th largest key, from its high digit on; wanted: how many of those with the prefix.
  uint32_t prefix = 0;
  int64_t wanted = all ? 0 : k;
  for (int shift = 24; shift >= 0 && !all; shift -= 8) {
    __syncthreads();
    for (int b = thread; b < kRadixBins; b += kSelectThreads) shared.bins[b] = 0;
    __syncthreads();
    const uint32_t mask = shift == 24 ? 0u : ~0u << (shift + 8);
    for (int64_t i = thread; i < n; i += kSelectThreads) {
      const uint32_t own = key(i);
      if ((own & mask) == prefix) atomicAdd(&shared.bins[own >> shift & 255u], 1u);
    }
    __syncthreads();
    if (thread == 0) {
      int digit = kRadixBins - 1;
      while (wanted > shared.bins[digit]) wanted -= shared.bins[digit--];
      shared.prefix = prefix | static_cast<uint32_t>(digit) << shift;
      shared.wanted = wanted;
    }
    __syncthreads();
    prefix = shared.prefix;
    wanted = shared.wanted;
  }
  // Copies in order: all keys above the prefix, and the first `wanted` that are equal to it.
  int64_t placed = 0, equals = 0;
  int turn = 0;
  for (int64_t begin = 0; begin < n && placed < k; begin += kSelectThreads, turn ^= 1) {
    const int64_t i = begin + thread;
    const uint32_t own = i < n ? key(i) : 0u;
    const bool equal = i < n && own == prefix;
    const unsigned before = (1u << lane) - 1, all_equal = __ballot_sync(kFullWarp, equal);
    if (lane == 0) shared.equal[turn][warp] = __popc(all_equal);
    __syncthreads();
    int64_t rank = equals + __popc(all_equal & before);
    for (int w = 0; w < kSelectWarps; w++) {
      rank += w < warp ? shared.equal[turn][w] : 0;
      equals += shared.equal[turn][w];
    }
    const bool take = i < n && (own > prefix || (equal && rank < wanted));
    const unsigned all_taken = __ballot_sync(kFullWarp, take);
    if (lane == 0) shared.taken[turn][warp] = __popc(all_taken);
    __syncthreads();
    int64_t place = placed + __popc(all_taken & before);
    for (int w = 0; w < kSelectWarps; w++) {
      place += w < warp ? shared.taken[turn][w] : 0;
      placed += shared.taken[turn][w];
    }
    if (take) put(place, i);
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
