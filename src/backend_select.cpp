// SPDX-License-Identifier: Apache-2.0
// Which backends this build has, and the way to each: the only place that asks TQ_CUDA. Without CUDA every
// request for it is answered with the reason, and nothing is taken instead.
#include <stdio.h>
#include <string.h>

#include "backend.h"
#include "cpu/cpu_backend.h"
#include "cpu/fp_environment.h"
#include "cpu/usable_threads.h"
#include "host_ops.h"
#include "identity.h"
#include "paged_backend.h"
#include "status.h"
#include "tqkv.h"

#if TQ_CUDA
#include "cuda/backend.h"
#endif

#include <unistd.h>

#define TQ_STRING_OF(x) #x
#define TQ_STRING(x) TQ_STRING_OF(x)

namespace tq {
namespace {

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

#if TQ_CUDA
#ifdef TQ_CUDA_ARCHS_BUILT
constexpr char kCuda[] = "cuda " TQ_CUDA_ARCHS_BUILT;
#else
constexpr char kCuda[] = "cuda on";
#endif
#else
constexpr char kCuda[] = "cuda off";
#endif

DeviceInfo cpu_info() {
  DeviceInfo info = {};
  info.num_units = cpu::usable_threads();
  const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page_bytes > 0) info.memory_bytes = static_cast<int64_t>(pages) * page_bytes;
  snprintf(info.name, sizeof info.name, "%s", cpu::active_isa());
  return info;
}

struct BuildInfo {
  char text[512];
  BuildInfo() {
    snprintf(text, sizeof text,
             "tqkv " TQ_STRING(TQ_VERSION_MAJOR) "." TQ_STRING(TQ_VERSION_MINOR) "." TQ_STRING(
                 TQ_VERSION_PATCH) "; %s; %s; simd %s, using %s; format %u",
             kCompiler, kCuda, cpu::supported_isas(), cpu::active_isa(), kFormatVersion);
  }
};

#if !TQ_CUDA
[[noreturn]] void no_cuda() {
  throw Error(Status::kNotSupported, "device_type = 2 (CUDA): this build has no CUDA support");
}
#endif

}  // namespace

const char* build_info() {
  static const BuildInfo info;
  return info.text;
}

int device_count(DeviceType type) {
  if (type == DeviceType::kCpu) return 1;
#if TQ_CUDA
  return cuda::cuda_device_count();
#else
  return 0;
#endif
}

DeviceInfo device_info(DeviceType type, int index) {
  const int count = device_count(type);
  TQ_CHECK(index >= 0 && index < count, Status::kNoDevice, "index = %d: there are %d devices of type %d",
           index, count, static_cast<int>(type));
  if (type == DeviceType::kCpu) return cpu_info();
#if TQ_CUDA
  return cuda::cuda_device_info(index);
#else
  no_cuda();
#endif
}

void check_device(DeviceType type, int device_id, ReasonList& reasons) {
  if (type == DeviceType::kCpu) {
    if (device_id != 0)
      reasons.add(Status::kInvalidArgument, "device_id = %d: must be 0 for the CPU", device_id);
    return;
  }
#if TQ_CUDA
  const int count = cuda::cuda_device_count();
  if (device_id < 0 || device_id >= count)
    reasons.add(Status::kNoDevice, "device_id = %d: there are %d CUDA devices (none without a driver)",
                device_id, count);
#else
  reasons.add(Status::kNotSupported, "device_type = 2 (CUDA): this build has no CUDA support");
#endif
}

void check_backend(DeviceType type, const Geometry& geometry, ReasonList& reasons) {
  if (type == DeviceType::kCpu) return;
  for (int32_t layer = 0; layer < geometry.num_layers; layer++) {
    if (geometry.layers[layer].rotation != format::Rotation::kDense) continue;
    reasons.add(Status::kNotSupported,
                "layer %d: rotation = 2 (TQ_ROTATION_DENSE): CPU only, for faithful runs", layer);
    break;
  }
#if TQ_CUDA
  cuda::check_cuda_backend(geometry, reasons);
#endif
}

BackendBytes backend_bytes(DeviceType type, const Geometry& geometry) {
  if (type == DeviceType::kCpu) return cpu::cpu_backend_bytes(geometry);
#if TQ_CUDA
  return cuda::cuda_backend_bytes(geometry);
#else
  no_cuda();
#endif
}

std::unique_ptr<Backend> create_backend(DeviceType type, const Geometry& geometry, const HostOps& ops,
                                        void* pool, void* stream) {
  if (type == DeviceType::kCpu) return cpu::create_cpu_backend(geometry, ops, pool);
#if TQ_CUDA
  return cuda::create_cuda_backend(geometry, ops, pool, stream);
#else
  static_cast<void>(stream);
  no_cuda();
#endif
}

std::unique_ptr<PagedBackend> create_paged_backend(DeviceType type, const Geometry& geometry,
                                                   const HostOps& ops, void* stream) {
  if (type == DeviceType::kCpu) return cpu::create_cpu_paged_backend(geometry, ops, nullptr);
#if TQ_CUDA
  return cuda::create_cuda_paged_backend(geometry, ops, stream);
#else
  static_cast<void>(stream);
  no_cuda();
#endif
}

std::unique_ptr<VectorBackend> create_vector_backend(const VectorGeometry& geometry, const HostOps& ops,
                                                     const HostOps& device_ops) {
  if (geometry.device_type == DeviceType::kCpu) return cpu::create_cpu_vectors(geometry, ops, nullptr);
#if TQ_CUDA
  const cpu::FpEnvironment environment;  // of the tables, which are made here
  return cuda::create_cuda_vectors(geometry, ops, device_ops);
#else
  static_cast<void>(device_ops);
  no_cuda();
#endif
}

std::unique_ptr<DeviceReader> create_device_reader(int32_t device_id, int64_t slot_bytes, void* stream) {
#if TQ_CUDA
  return cuda::create_cuda_reader(device_id, slot_bytes, stream);
#else
  static_cast<void>(device_id), static_cast<void>(slot_bytes), static_cast<void>(stream);
  no_cuda();
#endif
}

void merge_states(DeviceType type, const MergeRequest& request) {
  if (type == DeviceType::kCpu) return cpu::merge_states_cpu(request);
#if TQ_CUDA
  cuda::merge_states_cuda(request);
#else
  no_cuda();
#endif
}

}  // namespace tq
