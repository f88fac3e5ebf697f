// SPDX-License-Identifier: Apache-2.0
// See coding.h.
#include "cuda/coding.h"

#include <algorithm>

#include "cuda/append/split.h"
#include "cuda/pages/launch.h"

namespace tq {
namespace cuda {
namespace {

constexpr int64_t kMostJobs = 4096;  // of one list: more tiles take further launches

// A decode step brings one or two tiles a sequence; a window that is coded as a whole has a sequence's.
int32_t capacity_of(const Geometry& g) {
  return static_cast<int32_t>(std::min(
      kMostJobs, 2 * static_cast<int64_t>(g.max_batch_sequences) + g.groups[g.raw_group].max_sequence_pages));
}
int64_t list_bytes(int64_t jobs) {
  return static_cast<int64_t>(sizeof(DeviceCounts)) + jobs * static_cast<int64_t>(sizeof(AppendJob));
}

}  // namespace

int64_t CodingSpace::bytes(const Geometry& geometry) {
  return geometry.store_once ? align_up(list_bytes(capacity_of(geometry)), 256) : 0;
}

CodingSpace::CodingSpace(const Geometry& geometry, const HostOps& ops)
    : capacity_(geometry.store_once ? capacity_of(geometry) : 0),
      block_(ops, geometry.device_id, bytes(geometry), "lists of tokens to be coded") {
  if (!geometry.store_once) return;
  for (PlanStorage::Staging& staging : staging_) {
    staging.memory = MappedBlock(list_bytes(capacity_));
    staging.read.create();
  }
}

int32_t CodingSpace::stage(const Geometry& g, Walk* walk) {
  PlanStorage::Staging& staging = staging_[turn_];
  staging.read.wait();
  uint8_t* const host = staging.memory.host();
  AppendJob* const jobs = reinterpret_cast<AppendJob*>(host + sizeof(DeviceCounts));
  DeviceCounts counts = {};
  // Small ones from the front; large ones behind them, in any order, as all have tiles of their own.
  for (; walk->range < walk->request.count && counts.num_small_jobs + counts.num_large_tiles < capacity_;) {
    const CodeRange& range = walk->request.ranges[walk->range];
    const int64_t tile = walk->token / format::kTileTokens,
                  end = std::min(range.end, (tile + 1) * format::kTileTokens);
    const AppendJob job = {-1,
                           static_cast<int32_t>(walk->token),
                           static_cast<int32_t>(end),
                           0,
                           static_cast<int32_t>(tile),
                           walk->request.maps[0].row(range.slot)[tile / g.tiles_per_page()],
                           static_cast<int32_t>(tile % g.tiles_per_page()),
                           walk->request.maps[g.raw_group].row(range.slot)[tile]};
    const int32_t count = counts.num_small_jobs + counts.num_large_tiles;
    if (end - walk->token <= append::kSmallTokens) {
      jobs[count] = jobs[counts.num_small_jobs];
      jobs[counts.num_small_jobs++] = job;
    } else {
      jobs[count] = job;
      counts.num_large_tiles++;
    }
    walk->token = end;
    if (end < range.end) continue;
    if (++walk->range < walk->request.count) walk->token = walk->request.ranges[walk->range].begin;
  }
  memcpy(host, &counts, sizeof counts);
  return counts.num_small_jobs + counts.num_large_tiles;
}

void CodingSpace::send(int32_t jobs, int num_units, cudaStream_t stream) {
  PlanStorage::Staging& staging = staging_[turn_];
  pages::launch_apply_plan(staging.memory.device(), block_.data(), list_bytes(jobs), nullptr, 0, nullptr,
                           nullptr, num_units, stream);
  staging.read.record(stream);
  turn_ ^= 1;
}

DevicePlan CodingSpace::plan() const {
  DevicePlan plan = {};
  plan.counts = reinterpret_cast<const DeviceCounts*>(block_.data());
  plan.small_jobs = reinterpret_cast<const AppendJob*>(block_.data() + sizeof(DeviceCounts));
  return plan;
}

}  // namespace cuda
}  // namespace tq
