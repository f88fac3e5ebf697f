// SPDX-License-Identifier: Apache-2.0
// Launches of the search for the largest scores.
#include "cuda/vectors/launch_team.h"
#include "cuda/vectors/select.cuh"

namespace tq::cuda::vectors {
namespace {

// A CTA's share of a pass: much more than what it keeps.
constexpr int64_t kLeastSegment = 4096, kSegmentOfKept = 64;

int64_t segment_of(int64_t k, int64_t records) {
  return std::min(std::max(kLeastSegment, kSegmentOfKept * k), std::max<int64_t>(records, 1));
}
int64_t segments_of(int64_t k, int64_t records) {
  const int64_t segment = segment_of(k, records);
  return (records + segment - 1) / segment;
}
int64_t sorted_size(int64_t k) {
  int64_t size = 1;
  while (size < k) size *= 2;
  return size;
}

BestList list_of(const BestPlaces& places) {
  return BestList{places.scores, places.ids, places.least, places.stride};
}

}  // namespace

int64_t best_stride(int64_t k, int64_t records) {
  const int64_t kept = std::min(k, segment_of(k, records));
  return std::max(sorted_size(k), k + segments_of(k, records) * kept);
}

void launch_clear(const BestPlaces& best, int64_t rows, int64_t k, const LaunchPlace& place) {
  launch_in_order("clear_kernel", clear_kernel, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads), 0,
                  place.stream, list_of(best), k);
}

void launch_select(const ProductRows& scores, const float* bias, const int32_t* finite, int64_t first,
                   int64_t count, int64_t k, const BestPlaces& best, const BestPlaces& other,
                   const LaunchPlace& place) {
  const int64_t segment = segment_of(k, count), segments = segments_of(k, count);
  const BestList list = list_of(best);
  const SegmentParams params = {scores.out, scores.stride,        first, count, bias, finite,
                                segment,    std::min(k, segment), k,     list};
  launch_in_order("segment_kernel", segment_kernel,
                  dim3(static_cast<unsigned>(segments), static_cast<unsigned>(scores.rows)),
                  dim3(kSelectThreads), 0, place.stream, params);
  launch_merge(best, other, scores.rows, k + segments * params.kept, k, place);
}

void launch_merge(const BestPlaces& best, const BestPlaces& other, int64_t rows, int64_t listed, int64_t k,
                  const LaunchPlace& place) {
  launch_in_order("merge_kernel", merge_kernel, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads), 0,
                  place.stream, list_of(best), list_of(other), listed, k);
}

void launch_sort(const BestPlaces& best, int64_t rows, int64_t k, float* scores, int64_t* ids,
                 const LaunchPlace& place) {
  launch_in_order("sort_kernel", sort_kernel, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads), 0,
                  place.stream, list_of(best), k, sorted_size(k), scores, ids);
}

}  // namespace tq::cuda::vectors
