// SPDX-License-Identifier: Apache-2.0
// A device of the tests' own: the CPU's backend under the name of CUDA, which looks at every call's stream,
// and moves tiles and tells what was noticed no sooner than somebody waits. So a copy by way of the host that
// does not wait, or waits for another stream, moves what is not there. Five functions of the library are
// wrapped (CMakeLists.txt), so that configurations may name it; nothing else changes while there is none.
#pragma once
#include <memory>

#include "backend.h"
#include "host_ops.h"

namespace tq {
namespace stand_in {

struct World {
  int devices;        // of the tests' own; 0: those of the machine
  bool reaches;       // whether a device reaches memory of callers
  bool copies_fail;   // of pages
  int32_t device_id;  // of the last one that was made
  int64_t drains;
  const void* stream;  // that every call to a device is to have; null while caches end
  int64_t wrong;       // calls on another one, or on two without a wait between them, or of nothing
  int64_t staged, most_staged, moves, words;
  // What was asked of the last reader of a device's memory.
  struct {
    int32_t device_id;
    int64_t slot_bytes, bytes;
    const void* stream;
  } reader;
};
World& world();

extern void* const kStream;

// What was enqueued and has not run yet.
bool idle();
void run();
// Forgets all memory that was ever staged: late work finds its own until then.
void forget();

// BackendFactory of the host and of devices.
std::unique_ptr<Backend> create(DeviceType type, const Geometry& geometry, const HostOps& ops, void* pool,
                                void* stream);

}  // namespace stand_in
}  // namespace tq
