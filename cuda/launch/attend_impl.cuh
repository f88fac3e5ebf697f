// SPDX-License-Identifier: Apache-2.0
// From an AttendLaunch to a kernel launch, for one core. Each launch/attend_*.cu instantiates a few, so that they compile in parallel.
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>

#include "cuda/kernels/attend.cuh"
#include "cuda/kernels/attend_generic.cuh"
#include "cuda/launch/attend.h"
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

AttendParams make_attend_params(const AttendLaunch& launch, const CoreShape& shape);

// 12 warps of up to 168 registers, or 8 of up to 255: workers, the preparer, stewards.
template <class Core, int kWarps>
void launch_core(const AttendLaunch& launch, CoreShape shape) {
  constexpr int kStewards = 1;
  shape.max_workers = kWarps - 1 - kStewards;
  const AttendParams params = make_attend_params(launch, shape);
  const auto kernel = attend_kernel<Core, kWarps * 32>;
  check_cuda(
      runtime().func_set_attribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, params.plan.total_bytes),
      "attend: shared memory");
  tq::cuda::launch("attend", kernel, dim3(launch.num_ctas), dim3((params.plan.workers + 1 + kStewards) * 32), params.plan.total_bytes, launch.stream,
                   params);
}

template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_coded(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  launch_core<CodedCore<kDim, kKeyBits, kValueBits, kTiles>, kWarps>(launch, CoreShape{kDim, exact ? kDim : 0, kDim, kTiles, 0, 0});
}

template <int kKey, int kValue>
void launch_generic(const AttendLaunch& launch) {
  using Core = GenericCore<kKey, kValue>;
  const bool raw = launch.layer.key.layout.raw(), exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  launch_core<Core, 8>(launch, CoreShape{raw ? 0 : kKey, raw || exact ? kKey : 0, kValue, 1, Core::kWorkerBytes, 0});
}

}  // namespace cuda
}  // namespace tq
