// SPDX-License-Identifier: Apache-2.0
// What every attention kernel is given, whatever its wing: the layer, the call as it came, the numbers made
// from it, and where the pages of a sequence are listed. By value: everything that changes from step to step
// lies behind pointers, since graphs replay the parameters as they were.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device_view.h"
#include "cuda/row/numbers.h"

namespace tq {
namespace cuda {

// What a launch of any of them needs.
struct RowLaunch {
  DeviceLayer layer;
  DevicePlan plan;
  AttendCall call;
  int num_ctas;                 // for which plan.work was made: multiprocessors of the device
  int shared_memory_per_block;  // opt-in limit of the device
  cudaStream_t stream;
};

struct RowParams {
  DeviceLayer layer;
  AttendCall call;
  RowNumbers numbers;
  const int32_t* page_table;
  int64_t page_table_stride;
  const int32_t* raw_table;  // of exact copies, or null
  int64_t raw_table_stride;
};
static_assert(offsetof(RowParams, numbers) % 8 == 0, "RowNumbers counts on it");

// Of a query row.
constexpr int kRowWild = 1;       // scores may leave the safe range: clamp them
constexpr int kRowNotFinite = 2;  // it holds NaN or infinity: zeros while it is worked on, NaN in the end

// Masks that need work for each token of a row's range.
inline bool adds_to_logits(const AttendCall& call) { return call.alibi_slopes || call.tree_mask; }

inline RowParams make_row_params(const RowLaunch& launch) {
  return RowParams{launch.layer,
                   launch.call,
                   make_row_numbers(launch.call, launch.layer),
                   launch.plan.page_table,
                   launch.plan.page_table_stride,
                   launch.plan.raw_table,
                   launch.plan.raw_table_stride};
}

}  // namespace cuda
}  // namespace tq
