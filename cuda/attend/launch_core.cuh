// SPDX-License-Identifier: Apache-2.0
// From an AttendLaunch to a kernel launch, for one core. Each launch/attend_*.cu instantiates a few, so that
// they compile in parallel.
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>

#include "cuda/attend/kernel.cuh"
#include "cuda/attend/generic.cuh"
#include "cuda/attend/launch.h"
#include "cuda/runtime.h"

namespace tq {
namespace cuda {

// What a core wants of shared memory.
struct CoreShape {
  int stored_key;  // 0: raw keys
  int float_dim;   // floats of a query row kept
  int stored_value;
  int tiles_per_step;
  int worker_bytes;
  int max_workers;
};

// Integers of a query row: sums of D products with |level| <= 127.5 stay below 2^31.
inline float query_limit(int stored) { return stored <= 512 ? 32512.0f : 28000.0f; }

// exact: the cache keeps exact tokens, which need the query as it came.
inline CoreShape coded_shape(int dim, int tiles, bool exact) {
  return CoreShape{dim, exact ? dim : 0, dim, tiles, 0, 0};
}
inline CoreShape generic_shape(int key, int value, bool raw_keys, bool exact) {
  return CoreShape{raw_keys ? 0 : key, raw_keys || exact ? key : 0, value, 1, kGenericScratchBytes, 0};
}

AttendParams make_attend_params(const AttendLaunch& launch, const CoreShape& shape);

// 16 warps of up to 128 registers, 12 of up to 168, or 8 of up to 255: workers, the producer, the preparer,
// stewards.
template <class Core, int kWarps>
void launch_core(const AttendLaunch& launch, CoreShape shape) {
  constexpr int kStewards = kWarps == 16 ? 4 : kWarps == 12 ? 2 : 1, kOthers = kStewards + 2;
  shape.max_workers = kWarps - kOthers;
  const AttendParams params = make_attend_params(launch, shape);
  const auto kernel = attend_kernel<Core, kWarps, kStewards>;
  check_cuda(
      runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, params.plan.total_bytes),
      "attend: shared memory");
  launch_early(launch.early, "attend", kernel, dim3(launch.num_ctas),
               dim3((params.plan.workers + kOthers) * 32), params.plan.total_bytes, launch.stream, params);
}

template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_coded(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  launch_core<CodedCore<kDim, kKeyBits, kValueBits, kTiles>, kWarps>(launch,
                                                                     coded_shape(kDim, kTiles, exact));
}

template <int kKey, int kValue>
void launch_generic(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  launch_core<GenericCore<kKey, kValue>, 8>(
      launch, generic_shape(kKey, kValue, launch.layer.key.layout.raw(), exact));
}

}  // namespace cuda
}  // namespace tq
