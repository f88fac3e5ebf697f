// SPDX-License-Identifier: Apache-2.0
// What host code must know of a core to choose and start it: its share of shared memory, and that its launch
// is compiled elsewhere (instances.txt).
#pragma once
#include <iterator>

#include "cuda/attend/generic.cuh"
#include "cuda/attend/launch.h"
#include "cuda/attend/params.cuh"

namespace tq::cuda::attend {

// What a core wants of shared memory.
struct CoreShape {
  int stored_key;  // 0: raw keys
  int raw_dim;     // numbers of a query row kept for raw keys and exact tokens
  bool exact;      // the cache keeps exact tokens
  int stored_value;
  int tiles_per_step;
  int max_workers;
  const AttendTuning *tunings, *tunings_end;
  int row_query_bytes = 0;  // of a query slot, for keys by rows
};

// exact: the cache keeps exact tokens, which need the query as it came. widest: bits of the wider side.
inline CoreShape coded_shape(int dim, int widest, int tiles, bool exact) {
  CoreShape shape = {
      dim, exact ? dim : 0, exact, dim, tiles, 0, std::begin(kAttendTunings), std::end(kAttendTunings)};
  if (widest == 5 || widest == 6) {
    shape.tunings = std::begin(kWideTunings);
    shape.tunings_end = std::end(kWideTunings);
  }
  return shape;
}
inline CoreShape trellis_shape(int dim, int tiles, bool exact) {
  CoreShape shape = coded_shape(dim, 0, tiles, exact);
  shape.tunings = std::begin(kTrellisTunings);
  shape.tunings_end = std::end(kTrellisTunings);
  return shape;
}
// Of keys in bands, whose steps are bound by instructions too.
inline CoreShape banded_shape(int dim, int tiles, bool exact) {
  CoreShape shape = trellis_shape(dim, tiles, exact);
  shape.row_query_bytes = dim / format::kGroupCodes * kRowsPerBlock * static_cast<int>(sizeof(int32_t));
  return shape;
}
inline CoreShape generic_shape(int key, int value, const format::SideLayout& side, bool exact) {
  const bool raw = side.raw();
  return CoreShape{raw ? 0 : key,
                   raw || exact ? key : 0,
                   exact,
                   value,
                   1,
                   0,
                   std::begin(kGenericTunings),
                   std::end(kGenericTunings),
                   row_query_bytes(side)};
}

// The list, the layer and the call; no shared memory.
AttendParams list_params(const AttendLaunch& launch);
AttendParams make_attend_params(const AttendLaunch& launch, const CoreShape& shape);

// Defined in launch_core.cuh, which the files that instantiate them include.
template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_coded(const AttendLaunch& launch);
template <int kDim, int kKeyBits, int kValueBits, int kTiles, int kWarps>
void launch_trellis(const AttendLaunch& launch);
template <int kDim, int kPattern, int kTrellis, int kValueBits, int kTiles, int kWarps>
void launch_banded(const AttendLaunch& launch);
template <int kDim, int kSum, int kTrellis, int kValueBits, int kTiles, int kWarps>
void launch_any_bands(const AttendLaunch& launch);
// The kernel of few blocks (few.cuh).
template <int kDim, int kKeyBits, int kValueBits>
struct FewKernel {
  static void launch(const AttendLaunch& launch);
  static int clusters();  // of the current device, at a time
};
template <int kKey, int kValue>
void launch_generic(const AttendLaunch& launch);
template <int kKey, int kValue>
void launch_rows(const AttendLaunch& launch);

}  // namespace tq::cuda::attend
