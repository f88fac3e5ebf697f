// SPDX-License-Identifier: Apache-2.0
// Every CUDA call of the library made to fail in turn: a table of entry points that counts them and injects
// an error when the call's number comes. Release functions and waits do their work and then report failure:
// what a real device still works on must not be given back. What is taken and not released is counted too,
// block by block: a driver that takes memory in large pieces shows no small leak.
#pragma once
#include <array>

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

// What the library holds, taken while calls are counted.
enum Resource { kDeviceBlocks, kHostBlocks, kAddressRanges, kDriverHandles, kMappings, kEvents, kResources };
using Holdings = std::array<int64_t, kResources>;
inline Holdings held = {};
inline bool check_held(const Holdings& wanted, const char* when) {
  static const char* const names[kResources] = {"blocks of device memory",
                                                "blocks of pinned memory",
                                                "ranges of addresses",
                                                "handles of memory",
                                                "mappings",
                                                "events"};
  size_t kind = 0;
  while (kind + 1 < held.size() && held[kind] == wanted[kind]) kind++;
  return check(held == wanted, "%s: %lld %s more than before", when,
               static_cast<long long>(held[kind] - wanted[kind]), names[kind]);
}

inline bool fails() {
  calls++;
  return calls == fail_at || (fail_for_ever && fail_at > 0 && calls > fail_at);
}
struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};

// A table entry that counts and, when its turn comes, fails without doing anything.
template <auto kEntry>
struct Counted;
template <typename... Args, cudaError_t (*Runtime::*kEntry)(Args...)>
struct Counted<kEntry> {
  static cudaError_t call(Args... args) {
    const Inside here;
    return fails() ? injected : (real_runtime().*kEntry)(args...);
  }
  // Does its work even then.
  static cudaError_t done(Args... args) {
    const Inside here;
    const bool failed = fails();
    const cudaError_t error = (real_runtime().*kEntry)(args...);
    return failed ? injected : error;
  }
  template <Resource kKind>
  static cudaError_t take(Args... args) {
    const cudaError_t error = call(args...);
    held[kKind] += error == cudaSuccess;
    return error;
  }
  template <Resource kKind>
  static cudaError_t release(Args... args) {
    held[kKind]--;
    return done(args...);
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
  TQ_COUNT(driver_attribute);
  TQ_COUNT(memory_granularity);
  TQ_COUNT(memory_set_access);
  TQ_COUNT(host_get_device_pointer);
  TQ_COUNT(pointer_get_attributes);
  TQ_COUNT(memcpy_sync);
  TQ_COUNT(memcpy_async);
  TQ_COUNT(memset_async);
  TQ_COUNT(stream_is_capturing);
  TQ_COUNT(event_record);
  TQ_COUNT(launch_kernel);
  TQ_COUNT(func_set_attribute);
  TQ_COUNT(occupancy);
  TQ_COUNT(active_clusters);
#undef TQ_COUNT
  table.stream_synchronize = Counted<&Runtime::stream_synchronize>::done;
  table.device_synchronize = Counted<&Runtime::device_synchronize>::done;
  table.event_synchronize = Counted<&Runtime::event_synchronize>::done;
#define TQ_HOLD(kind, taken, released)                \
  table.taken = Counted<&Runtime::taken>::take<kind>; \
  table.released = Counted<&Runtime::released>::release<kind>
  TQ_HOLD(kDeviceBlocks, malloc_device, free_device);
  TQ_HOLD(kHostBlocks, host_alloc, host_free);
  TQ_HOLD(kAddressRanges, address_reserve, address_free);
  TQ_HOLD(kDriverHandles, memory_create, memory_release);
  TQ_HOLD(kMappings, memory_map, memory_unmap);
  TQ_HOLD(kEvents, event_create, event_destroy);
#undef TQ_HOLD
}

}  // namespace gpu_test
