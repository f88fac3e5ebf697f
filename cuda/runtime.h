// SPDX-License-Identifier: Apache-2.0
// The only door to the CUDA runtime: one table of the entry points in use, error mapping, the current-device
// guard and kernel launches.
//
// Tests replace entries to make each call fail in turn, so nothing in cuda/ calls the runtime past the table.
// The runtime is linked statically and opens the driver itself on first use: the library loads on machines
// without one, where device_count() is 0.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

namespace tq {
namespace cuda {

// Same signatures as the functions of these names, where nothing else is said.
struct Runtime {
  cudaError_t (*get_device_count)(int*);
  cudaError_t (*get_device)(int*);
  cudaError_t (*set_device)(int);
  cudaError_t (*device_get_attribute)(int*, cudaDeviceAttr, int);
  cudaError_t (*get_device_properties)(cudaDeviceProp*, int);
  cudaError_t (*malloc_device)(void**, size_t);
  cudaError_t (*free_device)(void*);
  // Addresses that get memory piece by piece: cuMem* of the driver, which the runtime has no functions for.
  // Its error codes are the runtime's. cudaErrorNotSupported if the driver lacks the entry points.
  cudaError_t (*driver_attribute)(int*, CUdevice_attribute, int device);
  cudaError_t (*memory_granularity)(size_t*, const CUmemAllocationProp*);
  cudaError_t (*address_reserve)(CUdeviceptr*, size_t bytes);
  cudaError_t (*address_free)(CUdeviceptr, size_t bytes);
  cudaError_t (*memory_create)(CUmemGenericAllocationHandle*, size_t bytes, const CUmemAllocationProp*);
  cudaError_t (*memory_release)(CUmemGenericAllocationHandle);
  cudaError_t (*memory_map)(CUdeviceptr, size_t bytes, CUmemGenericAllocationHandle);
  cudaError_t (*memory_unmap)(CUdeviceptr, size_t bytes);
  cudaError_t (*memory_set_access)(CUdeviceptr, size_t bytes, const CUmemAccessDesc*);
  cudaError_t (*host_alloc)(void**, size_t, unsigned);
  cudaError_t (*host_free)(void*);
  cudaError_t (*host_get_device_pointer)(void**, void*, unsigned);
  cudaError_t (*pointer_get_attributes)(cudaPointerAttributes*, const void*);
  cudaError_t (*memcpy_sync)(void*, const void*, size_t, cudaMemcpyKind);
  cudaError_t (*memcpy_async)(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t);
  cudaError_t (*memset_async)(void*, int, size_t, cudaStream_t);
  cudaError_t (*stream_synchronize)(cudaStream_t);
  cudaError_t (*stream_is_capturing)(cudaStream_t, cudaStreamCaptureStatus*);
  cudaError_t (*device_synchronize)();
  cudaError_t (*event_create)(cudaEvent_t*, unsigned);
  cudaError_t (*event_destroy)(cudaEvent_t);
  cudaError_t (*event_record)(cudaEvent_t, cudaStream_t);
  cudaError_t (*event_synchronize)(cudaEvent_t);
  // The last: may start before the kernel in front of it has ended (programmatic dependent launch, compute
  // capability 9.0).
  cudaError_t (*launch_kernel)(const void*, dim3, dim3, void**, size_t, cudaStream_t, bool);
  cudaError_t (*func_set_attribute)(const void*, cudaFuncAttribute, int);
  cudaError_t (*occupancy)(int*, const void*, int, size_t);
  // Clusters of so many CTAs that can be on the device at a time.
  cudaError_t (*active_clusters)(int*, const void*, int ctas, int threads, size_t shared);
  cudaError_t (*get_last_error)();
  cudaError_t (*peek_last_error)();
  const char* (*error_name)(cudaError_t);
};

// The table in force. Production never writes to it; tests may, on one thread.
Runtime& runtime();
const Runtime& real_runtime();

// NO_DEVICE, DRIVER, OUT_OF_MEMORY, CAPTURE, NOT_SUPPORTED (no code for the device) or CUDA.
Status status_of(cudaError_t error);
// Throws Error "what: cudaErrorName" unless error is cudaSuccess. Clears the runtime's per-thread last error,
// so that a caller's own checks do not find ours.
void check_cuda(cudaError_t error, const char* what);

int device_attribute(cudaDeviceAttr which, int device);
inline int num_multiprocessors(int device) {
  return device_attribute(cudaDevAttrMultiProcessorCount, device);
}
// Whether the current device runs what is compiled for sm_90a.
bool has_warpgroups();
// Whether the stream, of the current device, is being captured.
bool is_capturing(cudaStream_t stream);
// Throws kCapture if the stream is being captured. what: the call's name.
void require_no_capture(cudaStream_t stream, const char* what);

// Makes a device current and restores the caller's on leaving.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: nothing to restore
};

}  // namespace cuda
}  // namespace tq

#include "cuda/start_kernel.h"

namespace tq {
namespace cuda {

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// kernel<<<grid, block, shared, stream>>>(args...) through the table. early: the kernel waits by itself for
// what comes before it in the stream (ptx/order.cuh).
template <typename... Params, typename... Args>
void launch_early(bool early, const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                  size_t shared, cudaStream_t stream, const Args&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each kernel parameter");
  check_cuda(start_kernel<Params...>(kernel, grid, block, shared, stream, early, args...), name);
}
template <typename... Params, typename... Args>
void launch_in_order(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                     cudaStream_t stream, const Args&... args) {
  launch_early(false, name, kernel, grid, block, shared, stream, args...);
}

}  // namespace cuda
}  // namespace tq
