// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime's entry points that the library and its tests call. Device memory is the host's, and work
// is done when it is given; of a captured stream, when its graph is launched.
#include <stdlib.h>

#include <map>
#include <vector>

#include "emulate.h"

namespace {

using Work = std::vector<std::function<void()>>;
std::map<cudaStream_t, Work*> capturing;

constexpr size_t kMemoryStep = 256;
std::map<void*, size_t> sizes;  // of what is taken
size_t taken = 0;
constexpr size_t kTotalMemory = size_t{1} << 40;

cudaError_t copy(void* target, const void* source, size_t bytes) {
  memcpy(target, source, bytes);
  return cudaSuccess;
}

}  // namespace

void emulate::enqueue(cudaStream_t stream, const std::function<void()>& work) {
  const auto found = capturing.find(stream);
  if (found == capturing.end())
    work();
  else
    found->second->push_back(work);
}

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = aligned_alloc(kMemoryStep, (bytes + kMemoryStep - 1) / kMemoryStep * kMemoryStep);
  if (!*pointer) return cudaErrorMemoryAllocation;
  sizes[*pointer] = bytes;
  taken += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const auto found = sizes.find(pointer);
  if (found == sizes.end()) return pointer ? cudaErrorInvalidValue : cudaSuccess;
  taken -= found->second;
  sizes.erase(found);
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  return copy(target, source, bytes);
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  emulate::enqueue(stream, [=] { copy(target, source, bytes); });
  return cudaSuccess;
}
// What was taken and not given back counts; there is no end to the rest.
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kTotalMemory;
  *free = *total - taken;
  return cudaSuccess;
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  memset(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > target_pitch || width > source_pitch) return cudaErrorInvalidPitchValue;
  emulate::enqueue(stream, [=] {
    for (size_t row = 0; row < height; row++)
      memcpy(static_cast<char*>(target) + row * target_pitch,
             static_cast<const char*>(source) + row * source_pitch, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  emulate::enqueue(stream, [=] { memset(target, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  strcpy(properties->name, "emulation");
  properties->major = 9;
  properties->multiProcessorCount = emulate::kMultiprocessors;
  properties->sharedMemPerBlockOptin = emulate::kSharedBytes;
  properties->totalGlobalMem = kTotalMemory;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = emulate::kMultiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulate::kSharedBytes; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120 * emulate::kMultiprocessors / 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: return cudaErrorInvalidValue;  // nobody has asked for it yet
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = capturing.count(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  capturing[stream] = new Work;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(capturing[stream]);
  capturing.erase(stream);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (const auto& work : *reinterpret_cast<Work*>(executable)) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Work*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Work*>(executable);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = nullptr;
  return cudaSuccess;
}
// time means nothing here
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) { return cudaErrorNotSupported; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

// Kernels are started by start_kernel.h; an untyped launch cannot be done.
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return cudaErrorNotSupported;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "emulated error"; }

}  // extern "C"
