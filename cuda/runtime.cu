// SPDX-License-Identifier: Apache-2.0
// The table of CUDA runtime entry points and what surrounds each call: error mapping and the device guard.
#include "cuda/runtime.h"

#include <cuda_runtime.h>

namespace tq {
namespace cuda {
namespace {

// Some entry points are overloaded by C++ helpers in cuda_runtime.h; these pick the C function.
cudaError_t malloc_device(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
cudaError_t host_alloc(void** pointer, size_t bytes, unsigned flags) {
  return cudaHostAlloc(pointer, bytes, flags);
}
cudaError_t host_get_device_pointer(void** device, void* host, unsigned flags) {
  return cudaHostGetDevicePointer(device, host, flags);
}
cudaError_t event_create(cudaEvent_t* event, unsigned flags) {
  return cudaEventCreateWithFlags(event, flags);
}
cudaError_t event_record(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecord(event, stream); }
cudaError_t launch_kernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                          cudaStream_t stream, bool early) {
  if (!early) return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelExC(&config, function, arguments);
}
cudaError_t func_set_attribute(const void* function, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(function, attribute, value);
}
cudaError_t occupancy(int* blocks, const void* function, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
cudaError_t active_clusters(int* clusters, const void* function, int ctas, int threads, size_t shared) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, function, &config);
}
cudaError_t get_device_properties(cudaDeviceProp* properties, int device) {
  return cudaGetDeviceProperties(properties, device);
}

// A function of the driver, which is linked by nobody. Null if the driver does not have it.
template <typename Function>
Function* driver_function(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &entry, CUDART_VERSION, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function*>(entry)
                                                                      : nullptr;
}
// Calls it; asked for once.
#define TQ_DRIVER_CALL(function, ...)                                                    \
  do {                                                                                   \
    static const auto entry = driver_function<decltype(function)>(#function);            \
    return entry ? static_cast<cudaError_t>(entry(__VA_ARGS__)) : cudaErrorNotSupported; \
  } while (0)

cudaError_t driver_device(CUdevice* device, int ordinal) { TQ_DRIVER_CALL(cuDeviceGet, device, ordinal); }
cudaError_t driver_attribute(int* value, CUdevice_attribute which, int ordinal) {
  CUdevice device;
  if (const cudaError_t error = driver_device(&device, ordinal)) return error;
  TQ_DRIVER_CALL(cuDeviceGetAttribute, value, which, device);
}
cudaError_t memory_granularity(size_t* bytes, const CUmemAllocationProp* properties) {
  TQ_DRIVER_CALL(cuMemGetAllocationGranularity, bytes, properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
}
cudaError_t address_reserve(CUdeviceptr* address, size_t bytes) {
  TQ_DRIVER_CALL(cuMemAddressReserve, address, bytes, 0, 0, 0);
}
cudaError_t address_free(CUdeviceptr address, size_t bytes) {
  TQ_DRIVER_CALL(cuMemAddressFree, address, bytes);
}
cudaError_t memory_create(CUmemGenericAllocationHandle* memory, size_t bytes,
                          const CUmemAllocationProp* properties) {
  TQ_DRIVER_CALL(cuMemCreate, memory, bytes, properties, 0);
}
cudaError_t memory_release(CUmemGenericAllocationHandle memory) { TQ_DRIVER_CALL(cuMemRelease, memory); }
cudaError_t memory_map(CUdeviceptr address, size_t bytes, CUmemGenericAllocationHandle memory) {
  TQ_DRIVER_CALL(cuMemMap, address, bytes, 0, memory, 0);
}
cudaError_t memory_unmap(CUdeviceptr address, size_t bytes) { TQ_DRIVER_CALL(cuMemUnmap, address, bytes); }
cudaError_t memory_set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access) {
  TQ_DRIVER_CALL(cuMemSetAccess, address, bytes, access, 1);
}

Runtime make_table() {
  Runtime table;
  table.get_device_count = cudaGetDeviceCount;
  table.get_device = cudaGetDevice;
  table.set_device = cudaSetDevice;
  table.device_get_attribute = cudaDeviceGetAttribute;
  table.get_device_properties = get_device_properties;
  table.malloc_device = malloc_device;
  table.free_device = cudaFree;
  table.driver_attribute = driver_attribute;
  table.memory_granularity = memory_granularity;
  table.address_reserve = address_reserve;
  table.address_free = address_free;
  table.memory_create = memory_create;
  table.memory_release = memory_release;
  table.memory_map = memory_map;
  table.memory_unmap = memory_unmap;
  table.memory_set_access = memory_set_access;
  table.host_alloc = host_alloc;
  table.host_free = cudaFreeHost;
  table.host_get_device_pointer = host_get_device_pointer;
  table.pointer_get_attributes = cudaPointerGetAttributes;
  table.memcpy_sync = cudaMemcpy;
  table.memcpy_async = cudaMemcpyAsync;
  table.memset_async = cudaMemsetAsync;
  table.stream_synchronize = cudaStreamSynchronize;
  table.stream_is_capturing = cudaStreamIsCapturing;
  table.device_synchronize = cudaDeviceSynchronize;
  table.event_create = event_create;
  table.event_destroy = cudaEventDestroy;
  table.event_record = event_record;
  table.event_synchronize = cudaEventSynchronize;
  table.launch_kernel = launch_kernel;
  table.func_set_attribute = func_set_attribute;
  table.occupancy = occupancy;
  table.active_clusters = active_clusters;
  table.get_last_error = cudaGetLastError;
  table.peek_last_error = cudaPeekAtLastError;
  table.error_name = cudaGetErrorName;
  return table;
}

}  // namespace

const Runtime& real_runtime() {
  static const Runtime table = make_table();
  return table;
}

Runtime& runtime() {
  static Runtime table = real_runtime();
  return table;
}

Status status_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return Status::kOk;
    case cudaErrorMemoryAllocation: return Status::kOutOfMemory;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice: return Status::kNoDevice;
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorInitializationError:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorUnsupportedPtxVersion: return Status::kDriver;
    case cudaErrorNoKernelImageForDevice:  // this build has no code for the device
      return Status::kNotSupported;
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureWrongThread: return Status::kCapture;
    default: return Status::kCuda;
  }
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const char* name = runtime().error_name(error);
  runtime().get_last_error();
  throw Error(status_of(error), "%s: %s", what, name ? name : "unknown CUDA error");
}

int device_attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(runtime().device_get_attribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}
bool has_warpgroups() {
  int device = 0;
  check_cuda(runtime().get_device(&device), "cudaGetDevice");
  return TQ_WARPGROUPS && device_attribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(runtime().stream_is_capturing(stream, &status),
             "cudaStreamIsCapturing (where an asynchronous error of earlier work comes back)");
  return status != cudaStreamCaptureStatusNone;
}

void require_no_capture(cudaStream_t stream, const char* what) {
  TQ_CHECK(!is_capturing(stream), Status::kCapture,
           "stream: %s is not allowed while the stream is being captured", what);
}

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  check_cuda(runtime().get_device(&current), "cudaGetDevice");
  if (current == device) return;
  check_cuda(runtime().set_device(device), "cudaSetDevice");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0 && runtime().set_device(previous_) != cudaSuccess) runtime().get_last_error();
}

}  // namespace cuda
}  // namespace tq
