// SPDX-License-Identifier: Apache-2.0
// The way between a device and memory of the host's: which memory of a caller's is on it, and the device
// memory that what crosses it is gathered in. One large copy at a time keeps the link busy; tiles that are
// moved one by one, or by a kernel that writes to the host, do not, or hold units that attention waits for.
#pragma once
#include "cuda/arena.h"
#include "src/backend.h"

namespace tq {
namespace cuda {

// Emulated, so small that parts go in turns.
#ifdef TQ_EMULATE
constexpr int64_t kLinkBytes = 80 << 10;
#else
constexpr int64_t kLinkBytes = 16 << 20;
#endif

// kLinkBytes of device memory, made when they are first asked for. One stream at a time uses them: the next
// one comes behind.
class LinkBuffer {
 public:
  LinkMemory take(const HostOps& ops, int device, void* stream);
  // failed: memory that this call made goes again.
  void give(int device, void* stream, bool failed) noexcept;

 private:
  DeviceBlock memory_;
  Event free_;
  bool made_ = false;   // the event
  bool fresh_ = false;  // the memory, by the call that has it
};

// As Backend::reach and Backend::copy_over_link.
ReachedMemory reach(int device, const void* memory, int64_t bytes);
void copy_over_link(int device, uint8_t* to, const uint8_t* from, int64_t bytes, void* stream);

}  // namespace cuda
}  // namespace tq
