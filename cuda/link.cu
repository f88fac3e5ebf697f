// SPDX-License-Identifier: Apache-2.0
// What a device reaches; see link.h.
#include "cuda/link.h"

#include "cuda/runtime.h"

namespace tq {
namespace cuda {

ReachedMemory reach(int device, const void* memory, int64_t bytes) {
  const DeviceGuard guard(device);
  const uint8_t* const first = static_cast<const uint8_t*>(memory);
  cudaPointerAttributes begin = {}, end = {};
  check_cuda(runtime().pointer_get_attributes(&begin, first), "memory: cudaPointerGetAttributes");
  check_cuda(runtime().pointer_get_attributes(&end, first + bytes - 1), "memory: cudaPointerGetAttributes");
  const bool on_device = begin.type == cudaMemoryTypeDevice;
  TQ_CHECK(!on_device || begin.device == device, Status::kInvalidArgument,
           "memory = %p: on CUDA device %d, the cache is on %d", memory, begin.device, device);
  // One allocation, or several side by side, from the first byte to the last.
  uint8_t* const at = static_cast<uint8_t*>(begin.devicePointer);
  const bool whole = begin.type == end.type && at && at + bytes - 1 == end.devicePointer;
  TQ_CHECK(!on_device || whole, Status::kInvalidArgument,
           "memory = %p: device memory that ends before byte %lld", memory, static_cast<long long>(bytes));
  return whole ? ReachedMemory{at, !on_device} : ReachedMemory{};
}

}  // namespace cuda
}  // namespace tq
