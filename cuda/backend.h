// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: all that the core links to.
#pragma once
#include <memory>

#include "host_ops.h"
#include "src/paged_backend.h"
#include "src/vector_backend.h"

namespace tq {
namespace cuda {

// Devices; 0 without a driver or a device.
int cuda_device_count();
DeviceInfo cuda_device_info(int index);

// Reasons why the geometry cannot run on its device, appended. Needs a device; allocates nothing on it.
void check_cuda_backend(const Geometry& geometry, ReasonList& reasons);
// What create_cuda_backend allocates, exactly.
BackendBytes cuda_backend_bytes(const Geometry& geometry);
// ops.alloc null: cudaMalloc and cudaFree. pool: device memory for the pages, 256-byte aligned, or null.
// Waits for the stream.
std::unique_ptr<Backend> create_cuda_backend(const Geometry& geometry, const HostOps& ops, void* pool,
                                             void* stream);

// For pages of the caller's: the geometry has none. Waits for the stream.
std::unique_ptr<PagedBackend> create_cuda_paged_backend(const Geometry& geometry, const HostOps& ops,
                                                        void* stream);

// ops: memory of the host, for the time of the call; device_ops as ops above.
std::unique_ptr<VectorBackend> create_cuda_vectors(const VectorGeometry& geometry, const HostOps& ops,
                                                   const HostOps& device_ops);

std::unique_ptr<DeviceReader> create_cuda_reader(int device_id, int64_t slot_bytes, void* stream);

void merge_states_cuda(const MergeRequest& request);

}  // namespace cuda
}  // namespace tq
