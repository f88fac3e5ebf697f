// SPDX-License-Identifier: Apache-2.0
// Launches of the decoders of vectors on their own, and of the rotation.
#include "cuda/vectors/decode.cuh"
#include "cuda/vectors/launch_team.h"

namespace tq::cuda::vectors {

void launch_decode(const PartParams& part, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place) {
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("decode_kernel", decode_kernel<kOdd, kDense>, part.part.stored, false, kDense, count,
                      place, part, records, count, x);
  });
}

void launch_decode(const GroupParams& groups, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place) {
  constexpr int kThreads = 256;
  if (count == 0) return;
  launch_in_order("decode_groups_kernel", decode_groups_kernel, grid_for(count * groups.dim, kThreads, place),
                  dim3(kThreads), 0, place.stream, groups, records, count, x);
}

void launch_rotate(const PartParams& part, const void* x, int64_t count, float* y, int64_t row,
                   int64_t offset, const LaunchPlace& place) {
  if (rotate_rows(part, x, count, y, row, false, place)) return;
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("rotate_kernel", rotate_kernel<kOdd, kDense>, part.part.stored, false, kDense, count,
                      place, part, x, count, y, RotatedPlace{row, offset});
  });
}

void launch_unrotate(const PartParams& part, const float* y, int64_t count, void* x, int64_t row,
                     int64_t offset, const LaunchPlace& place) {
  if (rotate_rows(part, x, count, const_cast<float*>(y), row, true, place)) return;
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("unrotate_kernel", unrotate_kernel<kOdd, kDense>, part.part.stored, false, kDense,
                      count, place, part, y, count, x, RotatedPlace{row, offset});
  });
}

}  // namespace tq::cuda::vectors
