// SPDX-License-Identifier: Apache-2.0
// From an AttendLaunch to a kernel launch, for one core. The files that instances.txt expands to instantiate
// a few each, so that they compile in parallel.
#pragma once
#include <utility>

#include "cuda/attend/banded.cuh"
#include "cuda/attend/core_shape.cuh"
#include "cuda/attend/few.cuh"
#include "cuda/attend/kernel.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::attend {

// 16 warps of up to 128 registers, 12 of up to 168, or 8 of up to 255: workers, the producer, the preparer,
// stewards, and those of exact tokens.
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
               dim3((params.plan.workers + kOthers + params.plan.exact_warps) * 32), params.plan.total_bytes,
               launch.stream, params);
}

template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_coded(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  if (exact)
    launch_core<ExactToo<CodedCore<kDim, kKeyBits, kValueBits, kTiles>>, kWarps>(
        launch, coded_shape(kDim, std::max(kKeyBits, kValueBits), kTiles, true));
  else
    launch_core<CodedCore<kDim, kKeyBits, kValueBits, kTiles>, kWarps>(
        launch, coded_shape(kDim, std::max(kKeyBits, kValueBits), kTiles, false));
}
template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_trellis(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  using Core = CodedCore<kDim, kKeyBits, kValueBits, kTiles, false, kRowsPerBlock / kRowsPerSet, TrellisOf>;
  if (exact)
    launch_core<ExactToo<Core>, kWarps>(launch, trellis_shape(kDim, kTiles, true));
  else
    launch_core<Core, kWarps>(launch, trellis_shape(kDim, kTiles, false));
}

// Core<kOwnTables> of keys in bands.
template <template <bool> class Core, int kDim, bool kTrellis, int kTiles, int kWarps>
void launch_band_core(const AttendLaunch& launch) {
  if (launch.layer.window_tokens + launch.layer.sink_tokens > 0)
    launch_core<ExactToo<Core<!kTrellis>>, kWarps>(launch, banded_shape(kDim, kTiles, true));
  else
    launch_core<Core<!kTrellis>, kWarps>(launch, banded_shape(kDim, kTiles, false));
}
template <int kDim, int kPattern, bool kTrellis, int kValueBits, int kTiles>
struct BandedCores {
  template <bool kOwnTables>
  using Core = BandedCore<kDim, kPattern, kTrellis, kValueBits, kTiles, kOwnTables>;
};
template <int kDim, int kSum, bool kTrellis, int kValueBits, int kTiles>
struct AnyBandsCores {
  template <bool kOwnTables>
  using Core = AnyBandsCore<kDim, kSum, kTrellis, kValueBits, kTiles, kOwnTables>;
};
template <int kDim, int kPattern, int kTrellis, int kValueBits, int kTiles, int kWarps>
void launch_banded(const AttendLaunch& launch) {
  constexpr bool kOf = kTrellis != 0;
  launch_band_core<BandedCores<kDim, kPattern, kOf, kValueBits, kTiles>::template Core, kDim, kOf, kTiles,
                   kWarps>(launch);
}
template <int kDim, int kSum, int kTrellis, int kValueBits, int kTiles, int kWarps>
void launch_any_bands(const AttendLaunch& launch) {
  constexpr bool kOf = kTrellis != 0;
  launch_band_core<AnyBandsCores<kDim, kSum, kOf, kValueBits, kTiles>::template Core, kDim, kOf, kTiles,
                   kWarps>(launch);
}

// The kernel of few blocks, made ready for its launch.
template <int kDim, int kKeyBits, int kValueBits>
auto few_kernel_of() {
  using Core = CodedCore<kDim, kKeyBits, kValueBits, kFewTiles>;
  const auto kernel = few_kernel<Core, kFewRanks>;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check_cuda(runtime().func_set_attribute(reinterpret_cast<const void*>(kernel), attribute, value),
               "attend: a kernel of clusters");
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(FewShared<Core>));
  if (kFewRanks > 8) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return std::make_pair(kernel, sizeof(FewShared<Core>));
}
template <int kDim, int kKeyBits, int kValueBits>
int FewKernel<kDim, kKeyBits, kValueBits>::clusters() {
  const auto [kernel, shared] = few_kernel_of<kDim, kKeyBits, kValueBits>();
  int clusters = 0;
  check_cuda(runtime().active_clusters(&clusters, reinterpret_cast<const void*>(kernel), kFewRanks,
                                       kFewWarps * 32, shared),
             "attend: cudaOccupancyMaxActiveClusters");
  return clusters;
}
template <int kDim, int kKeyBits, int kValueBits>
void FewKernel<kDim, kKeyBits, kValueBits>::launch(const AttendLaunch& launch) {
  const auto [kernel, shared] = few_kernel_of<kDim, kKeyBits, kValueBits>();
  AttendParams params = list_params(launch);
  params.plan.query_rows_at = query_rows_at(kDim);
  params.plan.raw_query_at = params.plan.mask_rows_at = params.plan.ranges_at = -1;
  expect_cluster(kFewRanks);
  launch_early(
      launch.early, "attend", kernel,
      dim3(static_cast<unsigned>(launch.few_sequences * kFewRanks),
           static_cast<unsigned>(launch.layer.num_kv_heads), launch.layer.q_per_kv > kRowsPerSet ? 2 : 1),
      dim3(kFewWarps * 32), shared, launch.stream, params);
}

template <int kKey, int kValue, Takes kTakes>
void launch_generic_core(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  constexpr int kWarps = kKey <= 128 && kValue <= 128 ? (kTakes == Takes::kRows ? 16 : 12) : 8;
  launch_core<GenericCore<kKey, kValue, kTakes>, kWarps>(
      launch, generic_shape(kKey, kValue, launch.layer.key.layout, exact));
}

template <int kKey, int kValue>
void launch_generic(const AttendLaunch& launch) {
  const bool exact = launch.layer.window_tokens + launch.layer.sink_tokens > 0;
  if (exact || launch.layer.key.layout.raw() || launch.layer.value.layout.raw())
    launch_generic_core<kKey, kValue, Takes::kRaw>(launch);
  else
    launch_generic_core<kKey, kValue, Takes::kCodes>(launch);
}

// One kernel for all families by rows, with whatever the other side is.
template <int kKey, int kValue>
void launch_rows(const AttendLaunch& launch) {
  launch_generic_core<kKey, kValue, Takes::kRows>(launch);
}

}  // namespace tq::cuda::attend
