// SPDX-License-Identifier: Apache-2.0
// Device memory as the host reads it: through pinned memory, one slot for each array that is read side by
// side. A read waits, since the host looks at what came; calibration, which reads so, computes far longer
// than the link takes.
#include "cuda/arena.h"
#include "cuda/backend.h"
#include "cuda/link.h"

namespace tq {
namespace cuda {
namespace {

class CudaReader final : public DeviceReader {
 public:
  CudaReader(int device, int64_t slot_bytes, cudaStream_t stream)
      : device_(device), slot_bytes_(align_up(slot_bytes, 256)), stream_(stream) {
    const DeviceGuard guard(device);
    require_no_capture(stream, "tq_calibration_feed_from");
    staging_ = MappedBlock(kSlots * slot_bytes_);
  }
  const void* read(int slot, const char* name, const void* from, int64_t bytes) override {
    const DeviceGuard guard(device_);
    const ReachedMemory memory = reach(device_, from, bytes);
    TQ_CHECK(memory.at, Status::kInvalidArgument, "%s = %p: is no memory that CUDA device %d reaches", name,
             from, device_);
    uint8_t* const to = staging_.host() + slot * slot_bytes_;
    check_cuda(runtime().memcpy_async(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
               "cudaMemcpyAsync");
    check_cuda(runtime().stream_synchronize(stream_), "cudaStreamSynchronize");
    return to;
  }

 private:
  int device_;
  int64_t slot_bytes_;
  cudaStream_t stream_;
  MappedBlock staging_;
};

}  // namespace

std::unique_ptr<DeviceReader> create_cuda_reader(int device_id, int64_t slot_bytes, void* stream) {
  return std::make_unique<CudaReader>(device_id, slot_bytes, as_stream(stream));
}

}  // namespace cuda
}  // namespace tq
