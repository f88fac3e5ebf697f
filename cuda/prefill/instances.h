// SPDX-License-Identifier: Apache-2.0
// The compiled prefill kernels: stored dimensions, of keys and values alike. Each is one launch file.
#pragma once
#include <cuda_runtime_api.h>

namespace tq {
namespace cuda {

struct PrefillParams;

#define TQ_PREFILL_LIST(X) X(64) X(96) X(128) X(192) X(256)
#define TQ_PREFILL_DECLARE(dim) \
  void launch_prefill_##dim(const PrefillParams& params, int num_ctas, cudaStream_t stream);
TQ_PREFILL_LIST(TQ_PREFILL_DECLARE)
#undef TQ_PREFILL_DECLARE

// In a launch file: its definition.
#define TQ_PREFILL_DEFINE(dim)                                                                \
  void launch_prefill_##dim(const PrefillParams& params, int num_ctas, cudaStream_t stream) { \
    launch_prefill_dim<dim>(params, num_ctas, stream);                                        \
  }

}  // namespace cuda
}  // namespace tq
