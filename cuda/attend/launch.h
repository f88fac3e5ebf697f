// SPDX-License-Identifier: Apache-2.0
// Starts attention on codes for one layer of a planned batch: one kernel, no allocation, no synchronisation,
// legal inside graph capture.
#pragma once
#include "cuda/attend/tuning.h"
#include "cuda/row/params.h"

namespace tq::cuda::attend {

// plan.work: build_work's list, made for num_ctas.
struct AttendLaunch : RowLaunch {
  void* workspace;      // attend_workspace bytes of device memory; its counters must be 0
  bool clear_counters;  // true for memory of unknown contents: one small memset before the kernel
  // workers 0 = automatic, with other copies if these are set; deposits 0 = as many as fit
  AttendTuning tuning = {};
  bool paced = false;  // paced_memory of the device (tuning.h); copies set in tuning count anyway
  // the device starts a kernel before the one in front of it has ended: compute capability 9.0
  bool early = false;
  // Sequences of a plan of few blocks of rows (schedule/work_list.h), on a device that has clusters: each
  // block is given to one. Bits are the same, and any later plan may lie behind the list. 0 = other plans.
  int few_sequences = 0;
};

// Throws tq::Error (kCuda ...) if the launch fails.
void launch_attend(const AttendLaunch& launch);

// Whether the current device has room for a cluster of the kernel of few blocks, and there is one for such a
// layer. May fail as a launch does.
bool few_fits(const format::TileLayout& tile, bool exact);
// Whether launch_attend knows a kernel for such a layer, and which: a compiled width pair or the generic
// kernel.
enum class AttendKernel { kNone, kCompiled, kGeneric };
AttendKernel attend_kernel_for(const format::TileLayout& tile);
// Bytes of shared memory without which that kernel cannot run. exact: with a window or sinks.
int attend_least_shared_memory(const format::TileLayout& tile, bool exact);

}  // namespace tq::cuda::attend
