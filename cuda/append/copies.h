// SPDX-License-Identifier: Apache-2.0
// Host side of copies.cuh: one launch for an append of a geometry that stores tokens once. Throws tq::Error
// if it fails.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device_view.h"

namespace tq::cuda::append {

constexpr int kCopyThreads = 256;

struct CopyParams {
  DeviceLayer layer;
  DevicePlan plan;  // lengths of its sequences are where codes end
  const void* input[2];
  TensorStrides strides[2];
};

// new_tokens: of the present plan; the grid serves any number. num_units, early: as launch_append.
void launch_copies(const CopyParams& params, int64_t new_tokens, int num_units, bool early,
                   cudaStream_t stream);

}  // namespace tq::cuda::append
