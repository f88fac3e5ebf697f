// SPDX-License-Identifier: Apache-2.0
// Host side of moving tokens: the device memory that it needs, fixed at create, and one call that uploads
// lists and enqueues one kernel.
#pragma once
#include <vector>

#include "cuda/arena.h"
#include "cuda/move/params.h"

namespace tq::cuda::move {

class MoveSpace {
 public:
  MoveSpace(const Geometry& geometry, const HostOps& ops);
  // What it allocates on the device.
  static int64_t bytes(const Geometry& geometry) { return Places(geometry).bytes; }

  // Fills the tables; waits for the stream.
  void initialise(const Geometry& geometry, const Arena& arena, cudaStream_t stream);
  // Throws before anything has changed.
  void move(const Geometry& geometry, const MoveRequest& request, cudaStream_t stream);

 private:
  // Offsets in the block.
  struct Places {
    explicit Places(const Geometry& geometry);
    std::vector<int> table_of_side;  // [num_sides]: index of the move table, -1 for rows
    int32_t num_tables, num_sides;
    int64_t tables, sides, lists, bytes;
  };

  Places places_;
  DeviceBlock block_;
  Event read_;  // the stream has done what it needs the last call's lists for
  int32_t max_heads_;
};

}  // namespace tq::cuda::move
