// SPDX-License-Identifier: Apache-2.0
// Starts attention of a plan's long sequences (cuda/schedule/work_list.h) for one layer: one kernel, no
// allocation, no synchronisation, legal inside graph capture. The grid does not depend on the plan.
#pragma once
#include "cuda/prefill/launch_wide.h"

namespace tq::cuda::prefill {

// Whether a prefill kernel takes the long sequences of a layer. Where none does (other dimensions than 64 96
// 128 192 256, of keys and values alike, and 192 with 128, all rounded up to 32; too little shared memory;
// unequal dimensions where the kernel for warpgroups does not run), the decode kernel goes through a sequence
// in blocks of 8 rows.
bool prefill_serves(const Geometry& geometry, int layer, int shared_memory_per_block);

// Which long sequences a list may have (work_list.h): a kernel for each kind.
struct LongKinds {
  bool shared = true, alone = true;
  int64_t least_rows = 0, most_rows = INT64_MAX;  // of a kv head, of those that are alone
};
// list: of the long sequences (the second part of build_pair's), on the device. wide: for those that are
// alone.
void launch_prefill(const RowLaunch& launch, const uint8_t* list, LongKinds kinds = {},
                    const WideSpace& wide = {});

}  // namespace tq::cuda::prefill
