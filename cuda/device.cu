// SPDX-License-Identifier: Apache-2.0
// What devices there are and what each can run: questions of the core before a backend exists, answered
// without allocating device memory.
#include <inttypes.h>
#include <stdio.h>

#include "cuda/arena.h"
#include "cuda/attend/launch.h"
#include "cuda/backend.h"
#include "cuda/coding.h"
#include "cuda/device_layers.h"
#include "cuda/dispatch.h"
#include "cuda/latent/launch.h"
#include "cuda/move/launch.h"
#include "cuda/runtime.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {
namespace {

constexpr int64_t kMaxTokens = INT32_MAX - format::kTileTokens;  // lengths are 32-bit on the device

}  // namespace

int cuda_device_count() {
  int count = 0;
  const cudaError_t error = runtime().get_device_count(&count);
  const Status status = status_of(error);
  if (status == Status::kNoDevice || status == Status::kDriver) {
    runtime().get_last_error();
    return 0;
  }
  check_cuda(error, "cudaGetDeviceCount");
  return count;
}

DeviceInfo cuda_device_info(int index) {
  const int count = cuda_device_count();
  TQ_CHECK(index >= 0 && index < count, Status::kNoDevice, "index = %d: there are %d CUDA devices", index,
           count);
  cudaDeviceProp properties = {};
  check_cuda(runtime().get_device_properties(&properties, index), "cudaGetDeviceProperties");
  DeviceInfo info = {};
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.num_units = properties.multiProcessorCount;
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  snprintf(info.name, sizeof info.name, "%.*s", static_cast<int>(sizeof info.name - 1), properties.name);
  return info;
}

void check_cuda_backend(const Geometry& geometry, ReasonList& reasons) {
  const int device = geometry.device_id;
  const int capability = 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, device) +
                         device_attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (capability < kMinComputeCapability)
    reasons.add(Status::kNotSupported, "device_id = %d: compute capability %d.%d, at least %d.%d is needed",
                device, capability / 10, capability % 10, kMinComputeCapability / 10,
                kMinComputeCapability % 10);
  const int64_t sequence_tokens = geometry.groups[0].max_sequence_pages * geometry.page_size;
  if (sequence_tokens > kMaxTokens)
    reasons.add(Status::kNotSupported,
                "max_sequence_tokens: %" PRId64 " tokens in whole pages, on CUDA at most %" PRId64,
                sequence_tokens, kMaxTokens);
  if (geometry.max_batch_tokens > kMaxTokens)
    reasons.add(Status::kNotSupported, "max_batch_tokens = %" PRId64 ": on CUDA at most %" PRId64,
                geometry.max_batch_tokens, kMaxTokens);
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    const LayerGeometry& l = geometry.layers[layer];
    if (l.head_dim % kDimStep == 0 && l.value_dim % kDimStep == 0) continue;
    reasons.add(Status::kNotSupported,
                "layer %d: head_dim = %d, value_dim = %d: on CUDA they must be multiples of %d", layer,
                l.head_dim, l.value_dim, kDimStep);
    break;
  }
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    if (geometry.layers[layer].latent ||
        attend::attend_kernel_for(geometry.tile(layer)) != attend::AttendKernel::kNone)
      continue;
    reasons.add(
        Status::kNotSupported,
        "layer %d: no attention kernel in this build for head_dim = %d, value_dim = %d at %d + %d bits",
        layer, geometry.layers[layer].head_dim, geometry.layers[layer].value_dim,
        geometry.layers[layer].key_code.bits, geometry.layers[layer].value_code.bits);
    break;  // the others of a uniform cache would repeat it
  }
  for (int layer = 0; geometry.store_once && layer < geometry.num_layers; layer++) {
    if (!geometry.layers[layer].latent) continue;
    reasons.add(Status::kNotSupported,
                "layer %d: layer_kind = 2 (TQ_LATENT): TQ_FLAG_STORE_ONCE: on CUDA not with latent layers",
                layer);
    break;
  }
  const int shared = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, geometry.device_id);
  for (int layer = 0; layer < geometry.num_layers; layer++)
    if (geometry.layers[layer].latent && latent::refuses(geometry, layer, shared, reasons)) break;
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    if (geometry.layers[layer].latent) continue;
    const int needed = attend::attend_least_shared_memory(geometry.tile(layer),
                                                          geometry.window_tokens + geometry.sink_tokens > 0);
    if (needed <= shared) continue;
    reasons.add(Status::kNotSupported,
                "layer %d: attention at head_dim = %d, value_dim = %d needs %d bytes of shared memory, the "
                "device gives a block %d",
                layer, geometry.layers[layer].head_dim, geometry.layers[layer].value_dim, needed, shared);
    break;
  }
  if (geometry.may_grow() && !may_reserve(device))
    reasons.add(
        Status::kNotSupported,
        "max_reserve_tokens: device_id = %d has no virtual memory management (cuMemAddressReserve), so "
        "its pools cannot grow",
        device);
  if (geometry.num_layers > 65535)
    reasons.add(Status::kNotSupported, "num_layers = %d: on CUDA at most 65535", geometry.num_layers);
}

BackendBytes cuda_backend_bytes(const Geometry& geometry) {
  const ArenaPlaces places(geometry);
  const int64_t workspace = workspace_capacity(geometry, num_multiprocessors(geometry.device_id));
  return BackendBytes{places.pages_bytes, places.raw_bytes,
                      places.table_bytes + places.flags_bytes + move::MoveSpace::bytes(geometry) +
                          CodingSpace::bytes(geometry),
                      workspace};
}

}  // namespace cuda
}  // namespace tq
