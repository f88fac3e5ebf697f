// SPDX-License-Identifier: Apache-2.0
// Every CUDA call of the library made to fail in turn: a table of entry points that counts them and injects
// an error when the call's number comes. Release functions do their work and then report failure.
#pragma once
#include "cuda/runtime.h"
#include "gpu_test.h"

namespace gpu_test {

using tq::cuda::real_runtime;
using tq::cuda::Runtime;
using tq::cuda::runtime;

inline int calls = 0, fail_at = -1;
inline bool fail_for_ever = false;  // the call, or it and all behind it
inline int inside = 0;              // calls under way
inline cudaError_t injected = cudaErrorUnknown;

inline bool fails() {
  calls++;
  return calls == fail_at || (fail_for_ever && fail_at > 0 && calls > fail_at);
}
struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};

// A table entry that counts and, when its turn comes, fails without doing anything. Release functions do
// their work and then report failure.
template <auto kEntry>
struct Counted;
template <typename... Args, cudaError_t (*Runtime::*kEntry)(Args...)>
struct Counted<kEntry> {
  static cudaError_t call(Args... args) {
    const Inside here;
    return fails() ? injected : (real_runtime().*kEntry)(args...);
  }
  static cudaError_t release(Args... args) {
    const Inside here;
    const bool failed = fails();
    const cudaError_t error = (real_runtime().*kEntry)(args...);
    return failed ? injected : error;
  }
};

inline void count_calls() {
  Runtime& table = runtime();
#define TQ_COUNT(name) table.name = Counted<&Runtime::name>::call
  TQ_COUNT(get_device_count);
  TQ_COUNT(get_device);
  TQ_COUNT(set_device);
  TQ_COUNT(device_get_attribute);
  TQ_COUNT(get_device_properties);
  TQ_COUNT(malloc_device);
  TQ_COUNT(host_alloc);
  TQ_COUNT(driver_attribute);
  TQ_COUNT(memory_granularity);
  TQ_COUNT(address_reserve);
  TQ_COUNT(memory_create);
  TQ_COUNT(memory_map);
  TQ_COUNT(memory_set_access);
  TQ_COUNT(host_get_device_pointer);
  TQ_COUNT(pointer_get_attributes);
  TQ_COUNT(memcpy_sync);
  TQ_COUNT(memcpy_async);
  TQ_COUNT(memset_async);
  TQ_COUNT(stream_synchronize);
  TQ_COUNT(stream_is_capturing);
  TQ_COUNT(device_synchronize);
  TQ_COUNT(event_create);
  TQ_COUNT(event_record);
  TQ_COUNT(event_synchronize);
  TQ_COUNT(launch_kernel);
  TQ_COUNT(func_set_attribute);
  TQ_COUNT(occupancy);
  TQ_COUNT(active_clusters);
#undef TQ_COUNT
  table.free_device = Counted<&Runtime::free_device>::release;
  table.address_free = Counted<&Runtime::address_free>::release;
  table.memory_release = Counted<&Runtime::memory_release>::release;
  table.memory_unmap = Counted<&Runtime::memory_unmap>::release;
  table.host_free = Counted<&Runtime::host_free>::release;
  table.event_destroy = Counted<&Runtime::event_destroy>::release;
}

}  // namespace gpu_test
