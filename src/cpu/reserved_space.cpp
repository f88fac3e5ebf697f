// SPDX-License-Identifier: Apache-2.0
// Reserving and committing by mmap and mprotect; see reserved_space.h.
#include "cpu/reserved_space.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"

namespace tq {
namespace cpu {

int64_t memory_granularity() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

ReservedSpace::ReservedSpace(int64_t bytes, const char* what) : bytes_(bytes), what_(what) {
  void* const addresses = mmap(nullptr, static_cast<size_t>(bytes), PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TQ_CHECK(addresses != MAP_FAILED, Status::kOutOfMemory, "%s: reserving addresses for %lld bytes failed: %s",
           what, static_cast<long long>(bytes), strerror(errno));
  addresses_ = static_cast<uint8_t*>(addresses);
}

ReservedSpace::~ReservedSpace() { munmap(addresses_, static_cast<size_t>(bytes_)); }

void ReservedSpace::commit(int64_t offset, int64_t bytes) {
  const int failed = mprotect(addresses_ + offset, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE);
  TQ_CHECK(!failed, Status::kOutOfMemory, "%s: committing %lld bytes of memory failed: %s", what_,
           static_cast<long long>(bytes), strerror(errno));
}

// A fresh mapping in the place of the old one: memory that was written to counts no longer either. Should
// the system refuse it, the old mapping stays, unused, until the whole space is unmapped.
void ReservedSpace::decommit(int64_t offset, int64_t bytes) noexcept {
  (void)mmap(addresses_ + offset, static_cast<size_t>(bytes), PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // namespace cpu
}  // namespace tq
