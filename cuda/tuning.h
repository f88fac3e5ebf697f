// SPDX-License-Identifier: Apache-2.0
// Sizes that were measured, not derived: workers and ring stages of an attend CTA by (stored dimension, key bits, value bits). Each line says on what.
// They never change a bit of a result: jobs and their order do not depend on them.
#pragma once

namespace tq {
namespace cuda {

struct AttendTuning {
  int workers, stages;
};

// Tried in this order until the shared memory fits.
constexpr AttendTuning kAttendTunings[] = {{10, 2}, {8, 2}, {6, 2}, {4, 2}, {4, 1}, {2, 1}, {1, 1}};

}  // namespace cuda
}  // namespace tq
