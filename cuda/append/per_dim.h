// SPDX-License-Identifier: Apache-2.0
// Kernels compiled per stored dimension: each file that instances.txt expands to instantiates a few, launch.cu
// picks by number.
#pragma once
#include "cuda/append/kernel.cuh"
#include "cuda/launch.h"
#include "cuda/pages/read.cuh"

namespace tq {
namespace cuda {

template <int kStored>
struct PerDim {
  static void append(const AppendArguments& arguments, unsigned grid, cudaStream_t stream);
  static void read(const ReadArguments& arguments, unsigned grid, cudaStream_t stream);
  static void require();
};

}  // namespace cuda
}  // namespace tq
