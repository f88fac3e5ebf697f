// SPDX-License-Identifier: Apache-2.0
// The entry points of the CUDA runtime, and of the driver, that the library and its tests call. Device memory
// is the host's; work is done as streams.cpp says, that of a captured stream when its graph is launched.
#include <cuda.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "emulate.h"
#include "streams.h"

namespace {

using Work = std::vector<std::function<void()>>;
std::map<cudaStream_t, Work*> capturing;

constexpr size_t kMemoryStep = 256;
std::map<void*, size_t> sizes;  // of what is taken
std::set<void*> pinned;         // what of it is the host's
size_t taken = 0;
constexpr size_t kTotalMemory = size_t{1} << 40;

cudaError_t copy(void* target, const void* source, size_t bytes) {
  memcpy(target, source, bytes);
  return cudaSuccess;
}

}  // namespace

// Now, or when the stream comes to it, or when the graph that is captured runs.
static void put(cudaStream_t stream, const std::function<void()>& work) {
  const emulate::Busy busy;
  const auto found = capturing.find(stream);
  if (found == capturing.end())
    emulate::give(stream, work);
  else
    found->second->push_back(work);
}
void emulate::enqueue(cudaStream_t stream, const std::function<void()>& work) {
  starting = false;
  if (before_launch) tq::cuda::check_cuda(before_launch(), "launch");
  put(stream, work);
}

// ---- Virtual memory management ----

namespace {

constexpr size_t kGranularity = 1 << 16;  // smaller than any device's: the same steps in less memory
std::map<CUdeviceptr, size_t> reserved, mapped;
size_t created = 0;  // handles that are alive

// A whole number of pieces inside the reserved addresses.
bool reserved_range(CUdeviceptr at, size_t bytes) {
  auto found = reserved.upper_bound(at);
  if (found == reserved.begin() || bytes == 0 || at % kGranularity || bytes % kGranularity) return false;
  --found;
  return at + bytes <= found->first + found->second;
}
// Whether the range touches a mapping.
bool overlaps(CUdeviceptr at, size_t bytes) {
  const auto next = mapped.lower_bound(at + bytes);
  return next != mapped.begin() && std::prev(next)->first + std::prev(next)->second > at;
}
// The piece that was taken as a whole around it, or null.
void* piece_of(const void* pointer) {
  const auto next = sizes.upper_bound(const_cast<void*>(pointer));
  if (next == sizes.begin()) return nullptr;
  const auto found = std::prev(next);
  return static_cast<const char*>(pointer) < static_cast<char*>(found->first) + found->second ? found->first
                                                                                              : nullptr;
}
// Memory of the device, or of the host where the device reaches it.
bool is_taken(const void* pointer) {
  return piece_of(pointer) || overlaps(reinterpret_cast<CUdeviceptr>(pointer), 1);
}
bool is_pinned(const void* pointer) { return pinned.count(piece_of(pointer)) > 0; }
void* memory_at(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

CUresult device_get(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult device_get_attribute(int* value, CUdevice_attribute which, CUdevice) {
  if (which != CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) return CUDA_ERROR_INVALID_VALUE;
  *value = 1;
  return CUDA_SUCCESS;
}
CUresult get_granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = kGranularity;
  return CUDA_SUCCESS;
}
CUresult address_reserve(CUdeviceptr* at, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
  char* const space = static_cast<char*>(
      mmap(nullptr, bytes + kGranularity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (space == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const size_t first = reinterpret_cast<size_t>(space), start = (first + kGranularity - 1) & -kGranularity;
  if (start > first) munmap(space, start - first);
  if (first + kGranularity > start) munmap(memory_at(start + bytes), first + kGranularity - start);
  reserved[*at = start] = bytes;
  return CUDA_SUCCESS;
}
CUresult address_free(CUdeviceptr at, size_t bytes) {
  const auto found = reserved.find(at);
  if (found == reserved.end() || found->second != bytes || overlaps(at, bytes))
    return CUDA_ERROR_INVALID_VALUE;
  munmap(memory_at(at), bytes);
  reserved.erase(found);
  return CUDA_SUCCESS;
}
CUresult memory_create(CUmemGenericAllocationHandle* memory, size_t bytes, const CUmemAllocationProp*,
                       unsigned long long) {
  if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
  *memory = bytes;  // a handle is its size
  created++;
  return CUDA_SUCCESS;
}
CUresult memory_release(CUmemGenericAllocationHandle) {
  created--;
  return CUDA_SUCCESS;
}
CUresult memory_map(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle memory,
                    unsigned long long) {
  if (created == 0 || offset != 0 || memory != bytes || !reserved_range(at, bytes) || overlaps(at, bytes))
    return CUDA_ERROR_INVALID_VALUE;
  mapped[at] = bytes;
  taken += bytes;
  return CUDA_SUCCESS;
}
CUresult memory_unmap(CUdeviceptr at, size_t bytes) {
  const auto found = mapped.find(at);
  if (found == mapped.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  mmap(memory_at(at), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  mapped.erase(found);
  taken -= bytes;
  return CUDA_SUCCESS;
}
// What new memory holds is not defined: anything but zeros.
CUresult memory_set_access(CUdeviceptr at, size_t bytes, const CUmemAccessDesc*, size_t) {
  const auto found = mapped.find(at);
  if (found == mapped.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  if (mprotect(memory_at(at), bytes, PROT_READ | PROT_WRITE)) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(memory_at(at), 0xA5, bytes);
  return CUDA_SUCCESS;
}

const std::map<std::string, void*> driver = {
    {"cuDeviceGet", reinterpret_cast<void*>(device_get)},
    {"cuDeviceGetAttribute", reinterpret_cast<void*>(device_get_attribute)},
    {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(get_granularity)},
    {"cuMemAddressReserve", reinterpret_cast<void*>(address_reserve)},
    {"cuMemAddressFree", reinterpret_cast<void*>(address_free)},
    {"cuMemCreate", reinterpret_cast<void*>(memory_create)},
    {"cuMemRelease", reinterpret_cast<void*>(memory_release)},
    {"cuMemMap", reinterpret_cast<void*>(memory_map)},
    {"cuMemUnmap", reinterpret_cast<void*>(memory_unmap)},
    {"cuMemSetAccess", reinterpret_cast<void*>(memory_set_access)},
};

}  // namespace

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const auto function = driver.find(name);
  *entry = function == driver.end() ? nullptr : function->second;
  *found = *entry ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = aligned_alloc(kMemoryStep, (bytes + kMemoryStep - 1) / kMemoryStep * kMemoryStep);
  if (!*pointer) return cudaErrorMemoryAllocation;
  sizes[*pointer] = bytes;
  taken += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  emulate::wait_for_all();
  const auto found = sizes.find(pointer);
  if (found == sizes.end()) return pointer ? cudaErrorInvalidValue : cudaSuccess;
  taken -= found->second;
  sizes.erase(found);
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const cudaError_t error = cudaMalloc(pointer, bytes);
  if (error == cudaSuccess) pinned.insert(*pointer);
  return error;
}
cudaError_t cudaFreeHost(void* pointer) {
  pinned.erase(pointer);
  return cudaFree(pointer);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
// Memory that was taken is a device's where it was asked for as that; other memory is not pinned.
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  if (!is_taken(pointer)) return cudaSuccess;
  attributes->type = is_pinned(pointer) ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->devicePointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  emulate::wait_for(nullptr);
  return copy(target, source, bytes);
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const emulate::Busy busy;
  if (!emulate::in_disorder() || (is_taken(source) && is_taken(target))) {
    put(stream, [=] { copy(target, source, bytes); });
  } else if (is_taken(target)) {  // out of memory that can be swapped out: the driver keeps a copy
    const std::vector<char> kept(static_cast<const char*>(source), static_cast<const char*>(source) + bytes);
    put(stream, [=] { copy(target, kept.data(), bytes); });
  } else {  // into such memory: the call waits
    emulate::wait_for(stream);
    copy(target, source, bytes);
  }
  return cudaSuccess;
}
// What was taken and not given back counts; there is no end to the rest.
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kTotalMemory;
  *free = *total - taken;
  return cudaSuccess;
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  emulate::wait_for(nullptr);
  memset(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  put(stream, [=] { memset(target, value, bytes); });
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
  properties->multiProcessorCount = emulate::multiprocessors;
  properties->sharedMemPerBlockOptin = emulate::kSharedBytes;
  properties->totalGlobalMem = kTotalMemory;
  return cudaSuccess;
}
// TQ_EMULATE_CAPABILITY: 80 or 90, whose kernels are to run.
static int emulated_capability() {
  const char* const text = getenv("TQ_EMULATE_CAPABILITY");
  return text ? atoi(text) : 90;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int capability = emulated_capability();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = emulate::multiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = capability < 90 ? 166912 : emulate::kSharedBytes;
      break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120 * emulate::multiprocessors / 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
    default: return cudaErrorInvalidValue;  // nobody has asked for it yet
  }
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
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : *reinterpret_cast<Work*>(executable)) emulate::give(stream, work);
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

// Kernels are started by start_kernel.h; an untyped launch cannot be done.
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return cudaErrorNotSupported;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "emulated error"; }

}  // extern "C"
