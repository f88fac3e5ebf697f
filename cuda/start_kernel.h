// SPDX-License-Identifier: Apache-2.0
// The one place where a kernel's typed arguments become the runtime's untyped ones. Included by runtime.h;
// tests that run kernels on the CPU have a file of this name of their own (tests/emulate).
#pragma once

namespace tq {
namespace cuda {

// Arguments come converted to the kernel's parameter types: the runtime reads them through their addresses.
template <typename... Params>
cudaError_t start_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                         bool early, Params... arguments) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  return runtime().launch_kernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared, stream,
                                 early);
}

}  // namespace cuda
}  // namespace tq
