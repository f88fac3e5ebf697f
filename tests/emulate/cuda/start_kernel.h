// SPDX-License-Identifier: Apache-2.0
// A kernel is a function here.
#pragma once

namespace tq {
namespace cuda {

template <typename... Params>
cudaError_t start_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                         bool, Params... arguments) {
  const int cluster = emulate::take_cluster();
  emulate::enqueue(stream, [=] {
    emulate::launch(
        grid, block, shared, [&] { kernel(arguments...); }, cluster);
  });
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace tq
