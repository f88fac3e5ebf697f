// SPDX-License-Identifier: Apache-2.0
// The k best of a list of scores, the lower place first of equals, which is the lower index: lists are in the
// order of indices, and so are results until the end. A CTA finds the k-th largest key by four passes of a
// radix selection and copies what is above it, with the first of those equal to it, in order; the winners of
// a whole search are sorted at the end.
//
// A search works in passes: each segment of a pass gives its best (segment_kernel); those stand behind the
// best so far, whose indices are lower, and the best of both are kept (merge_kernel).
#pragma once
#include "cuda/vectors/team.cuh"

namespace tq::cuda::vectors {

constexpr int kSelectThreads = 512, kSelectWarps = kSelectThreads / 32, kRadixBins = 256;

// Larger is better; 0: no result. Zeros of either sign are equal.
__device__ __forceinline__ uint32_t score_key(float score) {
  if (format::is_nan(score)) return 0;
  const uint32_t bits = __float_as_uint(add_rn(score, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

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

// Scores [rows][stride] of records first .. first + count - 1.
struct SegmentParams {
  const float* scores;
  int64_t stride, first, count;
  const float* bias;  // [count] of them, or null
  const int32_t* finite;
  int64_t segment, kept, k;  // records of a segment; kept of each
  BestList list;
};
// blockIdx.x: segment, .y: row.
__global__ void __launch_bounds__(kSelectThreads) segment_kernel(const __grid_constant__ SegmentParams p) {
  __shared__ SelectShared shared;
  const int64_t row = blockIdx.y, begin = static_cast<int64_t>(blockIdx.x) * p.segment,
                n = min(p.segment, p.count - begin);
  const float* const scores = p.scores + row * p.stride + begin;
  const bool finite = p.finite[row] != 0;
  const uint32_t floor = p.list.least[row];
  const auto score = [&](int64_t i) { return p.bias ? add_rn(scores[i], p.bias[begin + i]) : scores[i]; };
  const int64_t at = row * p.list.stride + p.k + static_cast<int64_t>(blockIdx.x) * p.kept;
  // One as good as the worst of k that are there already comes behind it.
  const auto key = [&](int64_t i) {
    const uint32_t own = score_key(score(i));
    return finite && own > floor ? own : 0u;
  };
  const auto put = [&](int64_t place, int64_t i) {
    p.list.scores[at + place] = score(i);
    p.list.ids[at + place] = p.first + begin + i;
  };
  uint32_t least;
  const int64_t placed = select_best(shared, n, p.kept, key, put, &least);
  put_nothing(p.list, at, placed, p.kept);
}

// The k best of each row's list of n -> the first k of the other's.
__global__ void __launch_bounds__(kSelectThreads)
    merge_kernel(BestList from, BestList to, int64_t n, int64_t k) {
  __shared__ SelectShared shared;
  const int64_t row = blockIdx.x;
  const float* const scores = from.scores + row * from.stride;
  const int64_t* const ids = from.ids + row * from.stride;
  uint32_t least;
  const int64_t placed = select_best(
      shared, n, k, [&](int64_t i) { return ids[i] < 0 ? 0u : score_key(scores[i]); },
      [&](int64_t place, int64_t i) {
        to.scores[row * to.stride + place] = scores[i];
        to.ids[row * to.stride + place] = ids[i];
      },
      &least);
  put_nothing(to, row * to.stride, placed, k);
  if (threadIdx.x == 0) to.least[row] = least;
}

// No result in the first k of each row.
__global__ void __launch_bounds__(kSelectThreads) clear_kernel(BestList list, int64_t k) {
  put_nothing(list, blockIdx.x * list.stride, 0, k);
  if (threadIdx.x == 0) list.least[blockIdx.x] = 0;
}

// Sorts the first k of each row's list, whose stride is at least the power of two `size` >= k, and writes
// them out, a CTA a row. By a bitonic network: places from k on come last.
__global__ void __launch_bounds__(kSelectThreads)
    sort_kernel(BestList list, int64_t k, int64_t size, float* scores, int64_t* ids) {
  float* const own = list.scores + blockIdx.x * list.stride;
  int64_t* const index = list.ids + blockIdx.x * list.stride;
  const auto key = [&](int64_t i) { return index[i] < 0 ? 0u : score_key(own[i]); };
  for (int64_t i = k + threadIdx.x; i < size; i += kSelectThreads) index[i] = -1;
  for (int64_t run = 2; run <= size; run *= 2)
    for (int64_t h = run / 2; h >= 1; h /= 2) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < size; i += kSelectThreads) {
        const int64_t other = i ^ h;
        if (other < i) continue;
        const uint32_t a = key(i), b = key(other);
        const bool later = a != b ? a < b : index[i] > index[other];
        if (later != ((i & run) == 0)) continue;
        const float score = own[i];
        const int64_t id = index[i];
        own[i] = own[other];
        index[i] = index[other];
        own[other] = score;
        index[other] = id;
      }
    }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < k; i += kSelectThreads) {
    const bool found = index[i] >= 0;
    scores[blockIdx.x * k + i] = found ? own[i] : -__uint_as_float(0x7F800000u);
    ids[blockIdx.x * k + i] = found ? index[i] : -1;
  }
}

}  // namespace tq::cuda::vectors
