// SPDX-License-Identifier: Apache-2.0
// What an attend kernel is given beside what all of them are: its work list, the workspace of blocks that
// several CTAs share, and how its shared memory is cut.
#pragma once
#include "cuda/attend/layout.cuh"
#include "cuda/row/params.h"
#include "cuda/schedule/work_list.h"

namespace tq::cuda::attend {

struct AttendParams : RowParams {
  explicit AttendParams(const RowParams& common) : RowParams(common) {}

  const CtaWork* ctas = {};
  const SequenceWork* sequences = {};
  const IdleRows* idle_rows = {};  // device_view.h; or null
  int32_t* counters = {};
  float* slots = {};
  int32_t whole_steps = {};  // 1: a step's tiles are always in one page
  SmemPlan plan = {};
};

}  // namespace tq::cuda::attend
