// SPDX-License-Identifier: Apache-2.0
// Memory on the link and the copies over it; see link.h.
#include "cuda/link.h"

namespace tq {
namespace cuda {

LinkMemory LinkBuffer::take(const HostOps& ops, int device, void* stream) {
  const DeviceGuard guard(device);
  require_no_capture(as_stream(stream), "moving a part of a sequence");
  if (!memory_.data()) {
    DeviceBlock memory(ops, device, kLinkBytes, "memory that parts of sequences pass through");
    if (!made_) free_.create();
    made_ = fresh_ = true;
    memory_ = static_cast<DeviceBlock&&>(memory);
  }
  free_.order(as_stream(stream));
  return {memory_.data(), kLinkBytes};
}

void LinkBuffer::give(int device, void* stream, bool failed) noexcept {
  try {
    const DeviceGuard guard(device);
    if (failed && fresh_)
      memory_ = DeviceBlock();  // waits
    else
      free_.record(as_stream(stream));
  } catch (const Error&) {  // no device to make current: nothing runs there any more
  }
  fresh_ = false;
}

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

void copy_over_link(int device, uint8_t* to, const uint8_t* from, int64_t bytes, void* stream) {
  const DeviceGuard guard(device);
  check_cuda(
      runtime().memcpy_async(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, as_stream(stream)),
      "cudaMemcpyAsync");
}

}  // namespace cuda
}  // namespace tq
