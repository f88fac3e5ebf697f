// SPDX-License-Identifier: Apache-2.0
// Codes of tokens that have exact copies alone (Geometry::store_once): lists of their tiles, which append's
// kernel takes as it takes an engine's, with pages of copies instead of the caller's rows. The lists travel
// as plans do: written into pinned memory, taken to their place by a kernel.
#pragma once
#include "cuda/arena.h"

namespace tq {
namespace cuda {

class CodingSpace {
 public:
  // Of a geometry with store_once; others have none.
  CodingSpace(const Geometry& geometry, const HostOps& ops);
  // What it allocates on the device.
  static int64_t bytes(const Geometry& geometry);

  // The tiles of the request as plans whose small_jobs are all their jobs, as many as they say:
  // visit(plan, number of jobs) enqueues what reads one, before the next is made.
  template <typename Visit>
  void for_each_plan(const Geometry& geometry, const EncodeRequest& request, int num_units,
                     const Visit& visit) {
    Walk walk = {request, 0, request.count > 0 ? request.ranges[0].begin : 0};
    while (const int32_t jobs = stage(geometry, &walk)) {
      send(jobs, num_units, static_cast<cudaStream_t>(request.stream));
      visit(plan(), jobs);
    }
  }

 private:
  // Where the next list begins.
  struct Walk {
    const EncodeRequest& request;
    int32_t range;
    int64_t token;
  };
  // Writes jobs to the staging memory whose turn it is; returns how many, 0 at the end.
  int32_t stage(const Geometry& geometry, Walk* walk);
  void send(int32_t jobs, int num_units, cudaStream_t stream);
  DevicePlan plan() const;

  int32_t capacity_;
  DeviceBlock block_;  // DeviceCounts, AppendJob[capacity_]
  PlanStorage::Staging staging_[2];
  int turn_ = 0;
};

}  // namespace cuda
}  // namespace tq
