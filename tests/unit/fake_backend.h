// SPDX-License-Identifier: Apache-2.0
// A backend as plain as can be, for tests of the core: stored tokens are floats rounded to bfloat16
// ("codes"), raw copies are the floats themselves, attention is float64, one row at a time. Tests give it to
// Cache as its factory.
//
// It is strict where real backends are fast: fresh, scrubbed and not yet copied memory is NaN, so that any
// read of a wrong page, slot or token shows in the result; and any verb can be made to fail.
#pragma once
#include <vector>

#include "backend.h"

namespace tq {
namespace fake {

// Verbs that can be made to fail.
enum class Verb {
  kCreate,
  kCreatePlanStorage,
  kUploadPlan,
  kAppend,
  kAttend,
  kRead,
  kCopyPages,
  kScrubPages,
  kMoveTiles,
  kAddToSlot,
  kCopySlot,
  kStartSlot,
  kSetCentres,
  kCheck,
  kGrowPages,
  kMoveTokens,
  kCount
};

// Of the process: tests are single-threaded except where they say so.
struct World {
  bool fail[static_cast<int>(Verb::kCount)];       // that verb throws kCuda until cleared
  int64_t spared[static_cast<int>(Verb::kCount)];  // calls that do not fail yet
  int64_t calls[static_cast<int>(Verb::kCount)];
  int64_t live_storages;
  int64_t live_backends;
  std::vector<int32_t> scrubbed;  // page ids, in order; those of exact copies apart
  std::vector<int32_t> scrubbed_raw;
  std::vector<PageCopy> copied;
  std::vector<int32_t> started;  // slots
  void (*during_attend)();       // called inside attend, or null
  bool capturing;                // streams are being captured
  bool unreachable;              // memory of callers is none that moves reach
  int64_t reached_at;            // bytes behind its own address at which moves reach it
  int64_t staging_bytes;         // taken and not given back
  int64_t waits;
  Backend* backend;      // the last one created,
  bool batch_invariant;  // and whether it was asked for one arithmetic
  BatchPlan last_plan;   // the last one uploaded
};
World& world();

std::unique_ptr<Backend> create_backend(DeviceType type, const Geometry& geometry, const HostOps& ops,
                                        void* pool, void* stream);

// What the fake stores for a coded value.
float coded(float x);

}  // namespace fake
}  // namespace tq
