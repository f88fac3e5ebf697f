// SPDX-License-Identifier: Apache-2.0
// Host side of append: one launch a call. Throws tq::Error if it fails.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/append/params.h"

namespace tq::cuda::append {

// stored: the dimension of the sides that are coded. units: CTAs that the present plan could use; later plans
// of a captured graph may have more, the grid serves any number. num_units: multiprocessors of the current
// device. early: as launch_early.
void launch_append(int stored, const AppendParams& params, int64_t units, int num_units, bool early,
                   cudaStream_t stream);

// Whether this build has code for the current device: asks for the kernel of a stored dimension. Throws
// otherwise.
void require_kernels(int stored);

// The kernels of one stored dimension (instances.txt), and that for keys with matrices, whose loops would
// take registers of the others.
template <int kStored>
struct AppendKernel {
  static void start(const AppendParams& params, unsigned grid, bool early, cudaStream_t stream);
  static void require();
};
template <int kStored>
struct TurnedAppend {
  static void start(const AppendParams& params, unsigned grid, bool early, cudaStream_t stream);
  static void require();
};

}  // namespace tq::cuda::append
