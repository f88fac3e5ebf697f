// SPDX-License-Identifier: Apache-2.0
// Launches of the encoders of vectors on their own.
#include "cuda/vectors/encode.cuh"
#include "cuda/vectors/launch_team.h"

namespace tq::cuda::vectors {

void launch_encode(const PartParams& part, const void* x, int64_t count, uint8_t* records,
                   NoticedWords* noticed, const LaunchPlace& place) {
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("encode_kernel", encode_kernel<kOdd, kDense>, part.part.stored, true, kDense, count,
                      place, part, x, count, records, noticed);
  });
}

void launch_encode(const GroupParams& groups, const void* x, int64_t count, uint8_t* records,
                   NoticedWords* noticed, const LaunchPlace& place) {
  constexpr int kThreads = 128;
  if (count == 0) return;
  launch_in_order("encode_groups_kernel", encode_groups_kernel,
                  grid_for(count * groups.num_groups, kThreads, place), dim3(kThreads), 0, place.stream,
                  groups, x, count, records, noticed);
}

}  // namespace tq::cuda::vectors
