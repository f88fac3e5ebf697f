// SPDX-License-Identifier: Apache-2.0
// A prefill kernel's launch, for one stored dimension, or one of keys and one of values. Each file that
// instances.txt expands to instantiates one, so that they compile in parallel.
#pragma once
#include <algorithm>

#include "cuda/prefill/group_kernel.cuh"
#include "cuda/prefill/kernel.cuh"
#include "cuda/prefill/launch.h"
#include "cuda/prefill/wide_kernel.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::prefill {

// CTAs that what stands in for the device runs together; a device does so without being asked.
constexpr int kMostTogether = 8;

template <int kStored, RawForm kForm>
void launch_prefill_kernel(const PrefillParams& params, int num_ctas, cudaStream_t stream) {
  const bool masks = params.call.visible_begin || params.call.alibi_slopes;
  const auto kernel = masks ? prefill_kernel<kStored, kForm, true> : prefill_kernel<kStored, kForm, false>;
  check_cuda(
      runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, params.smem.total_bytes),
      "attend: shared memory");
  launch_in_order("attend", kernel, dim3(num_ctas * prefill_blocks(kStored, kForm)), dim3(kPrefillThreads),
                  params.smem.total_bytes, stream, params);
}

template <int kStored>
void launch_prefill_dim(const PrefillParams& params, int num_ctas, cudaStream_t stream) {
  if (!params.layer.key.layout.raw() && !params.layer.value.layout.raw())
    launch_prefill_kernel<kStored, RawForm::kNone>(params, num_ctas, stream);
  else if (params.layer.io_dtype == DataType::kBF16)
    launch_prefill_kernel<kStored, RawForm::kBf16>(params, num_ctas, stream);
  else  // float32 callers' numbers are stored as float16
    launch_prefill_kernel<kStored, RawForm::kF16>(params, num_ctas, stream);
}

template <class Kernel, class Params>
void launch_group_kernel(const Kernel& kernel, const Params& params, int shared, int num_ctas,
                         cudaStream_t stream) {
  check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "attend: shared memory");
  launch_in_order("attend", kernel, dim3(num_ctas), dim3(kGroupThreads), shared, stream, params);
}
template <int kKeys, int kValues, bool kMasks, bool kExact, class Sides>
void launch_group_kernels(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream) {
  const int shared = params.smem.total_bytes;
  if (kinds.alone)
    launch_group_kernel(group_kernel<kKeys, kValues, kMasks, kExact, Sides>, params, shared, num_ctas,
                        stream);
  if (!kinds.shared) return;
  expect_cluster(kRanks);
  launch_group_kernel(shared_kernel<kKeys, kValues, kMasks, kExact, Sides>, params, shared,
                      std::max(num_ctas / kRanks, 1) * kRanks, stream);
}
template <int kKeys, int kValues, class Sides>
void launch_group(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream) {
  if (params.call.visible_begin || params.call.alibi_slopes)
    launch_group_kernels<kKeys, kValues, true, true, Sides>(params, kinds, num_ctas, stream);
  else if (params.layer.key.raw)
    launch_group_kernels<kKeys, kValues, false, true, Sides>(params, kinds, num_ctas, stream);
  else
    launch_group_kernels<kKeys, kValues, false, false, Sides>(params, kinds, num_ctas, stream);
}
template <int kKeys, int kValues>
void launch_group_dim(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream) {
  launch_group<kKeys, kValues, ScalarSides>(params, kinds, num_ctas, stream);
}
template <int kKeys, int kValues>
void launch_any_group_dim(const PrefillParams& params, LongKinds kinds, int num_ctas, cudaStream_t stream) {
  launch_group<kKeys, kValues, AnySides>(params, kinds, num_ctas, stream);
}

template <int kStored, class Tuning, class Sides>
void launch_wide_kernels(const WideParams& params, int num_ctas, cudaStream_t stream) {
  static_assert(kWideThreads == kGroupThreads, "one launch");
  const auto queries = params.layer.key_matrix ? wide_query_kernel<kStored, Sides::kAny, true>
                                               : wide_query_kernel<kStored, Sides::kAny, false>;
  launch_in_order("attend", queries, dim3(2 * num_ctas), dim3(kPrefillThreads), sizeof(PrefillRowTable),
                  stream, params);
  expect_cluster(num_ctas <= kMostTogether ? num_ctas : 1);
  launch_group_kernel(wide_kernel<kStored, Tuning, Sides>, params, params.cut.total_bytes, num_ctas, stream);
}
template <int kStored>
void launch_wide_dim(const WideParams& params, int num_ctas, cudaStream_t stream) {
  launch_wide_kernels<kStored, WideTuning, ScalarSides>(params, num_ctas, stream);
}
template <int kStored>
void launch_any_wide_dim(const WideParams& params, int num_ctas, cudaStream_t stream) {
  launch_wide_kernels<kStored, WideTuning, AnySides>(params, num_ctas, stream);
}

}  // namespace tq::cuda::prefill
