// SPDX-License-Identifier: Apache-2.0
// A search of all scores. It works in passes: each segment of a pass gives its best (segment_kernel); those
// stand behind the best so far, whose indices are lower, and the best of both are kept (merge_kernel). The
// winners of a whole search are sorted at the end.
#pragma once
#include "cuda/vectors/best_list.cuh"

namespace tq::cuda::vectors {

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
