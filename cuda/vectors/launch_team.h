// SPDX-License-Identifier: Apache-2.0
// How the kernels of teams are started: which of them a dimension takes, threads, shared memory.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cuda/runtime.h"
#include "cuda/vectors/launch.h"
#include "cuda/vectors/team.cuh"

namespace tq::cuda::vectors {

inline bool any_dense(const PartParams& part) { return part.rotation.dense || part.has_dense_sketch(); }

// visit(m, dense) with the constants of a part's kernels: the odd factor of its stored dimension, and whether
// there are matrices.
template <class Visit>
void with_kernel(const PartParams& part, const Visit& visit) {
  const auto with = [&](auto odd) {
    return any_dense(part) ? visit(odd, std::true_type()) : visit(odd, std::false_type());
  };
  switch (format::odd_factor(part.part.stored)) {
    case 1: return with(std::integral_constant<int, 1>());
    case 3: return with(std::integral_constant<int, 3>());
    case 5: return with(std::integral_constant<int, 5>());
    case 7: return with(std::integral_constant<int, 7>());
    case 9: return with(std::integral_constant<int, 9>());
    default: throw Error(Status::kInternal, "stored dimension %d has no kernels", part.part.stored);
  }
}

constexpr int kUsualThreads = 256;
constexpr int kCtasOfUnit = 16;

// codes: the kernel keeps codes in shared memory; dense: it may apply a matrix.
template <int kOdd, typename... Params, typename... Args>
void launch_team(const char* name, void (*kernel)(Params...), int stored, bool codes, bool dense,
                 int64_t count, const LaunchPlace& place, const Args&... args) {
  if (count == 0) return;
  constexpr int kRegs = TeamVector<kOdd>::kRegs;
  const int size = stored / kRegs, threads = std::max(size, kUsualThreads);
  static_assert(kMostThreads % kUsualThreads == 0, "teams fill a CTA");
  TQ_CHECK(size >= 1 && size <= kMostThreads && size * kRegs == stored, Status::kInternal,
           "stored dimension %d: no team of threads", stored);
  const bool exchanges = codes || dense || size > 32;
  const size_t floats = static_cast<size_t>(kTableFloats) + (exchanges ? kRegs * threads : 0) +
                        (size > 32 ? 2 * kMaxSums * threads : 0);
  const size_t shared = floats * sizeof(float) + (codes ? static_cast<size_t>(kRegs) * threads : 0);
  if (shared > 48 * 1024)
    check_cuda(
        runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        name);
  const int64_t teams = threads / size, wanted = (count + teams - 1) / teams;
  const unsigned grid =
      static_cast<unsigned>(std::min<int64_t>(wanted, static_cast<int64_t>(place.num_units) * kCtasOfUnit));
  launch_in_order(name, kernel, dim3(grid), dim3(static_cast<unsigned>(threads)), shared, place.stream,
                  args...);
}

// Of a kernel whose threads take what there is in turns.
inline dim3 grid_for(int64_t items, int threads, const LaunchPlace& place) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((items + threads - 1) / threads,
                                                      static_cast<int64_t>(place.num_units) * kCtasOfUnit)));
}

}  // namespace tq::cuda::vectors
