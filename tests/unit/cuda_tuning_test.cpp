// SPDX-License-Identifier: Apache-2.0
// The table of cuda/attend/tuning.h keeps the bounds that the kernels' barriers rely on, and the plan of
// shared memory has room for everything.
#include "cuda/attend/tuning.h"

#include <gtest/gtest.h>

#include <iterator>
#include <vector>

#include "cuda/attend/layout.cuh"

namespace {

using namespace tq;
using namespace tq::cuda;
using namespace tq::cuda::attend;

bool power_of_two(int x) { return x > 0 && (x & (x - 1)) == 0; }

TEST(CudaTuning, TableKeepsWhatBarriersNeed) {
  std::vector<AttendTuning> all(std::begin(kAttendTunings), std::end(kAttendTunings));
  all.insert(all.end(), std::begin(kGenericTunings), std::end(kGenericTunings));
  const size_t paced = all.size();  // the others are bound by instructions: any number of copies
  all.insert(all.end(), std::begin(kTrellisTunings), std::end(kTrellisTunings));
  all.insert(all.end(), std::begin(kWideTunings), std::end(kWideTunings));
  for (size_t i = 0; i < all.size(); i++) {
    const AttendTuning& t = all[i];
    SCOPED_TRACE(testing::Message() << t.workers << " workers, " << t.stages << " stages, " << t.deposits
                                    << " deposits");
    EXPECT_TRUE(power_of_two(t.stages) && t.stages <= kMaxStages);
    EXPECT_TRUE(power_of_two(t.deposits) && t.deposits <= kMaxDeposits);
    EXPECT_LE(t.workers, 4 * t.deposits);  // freed_barrier
    EXPECT_GE(t.copies, 0);
    EXPECT_TRUE(t.copies > 0 || t.stage_bytes <= kSmallStepBytes || i >= paced);
  }
  EXPECT_EQ(std::rbegin(kAttendTunings)->stage_bytes, INT_MAX);
  EXPECT_EQ(std::rbegin(kGenericTunings)->stage_bytes, INT_MAX);
  EXPECT_EQ(std::rbegin(kTrellisTunings)->stage_bytes, INT_MAX);
  EXPECT_EQ(std::rbegin(kWideTunings)->stage_bytes, INT_MAX);
}

TEST(CudaTuning, CopiesAreLimitedByTheMemoryOfAMultiprocessor) {
  EXPECT_TRUE(paced_memory(2619000, 5120, 132));   // H100 80GB HBM3
  EXPECT_FALSE(paced_memory(3201000, 6144, 132));  // H200
  EXPECT_TRUE(paced_memory(10501000, 384, 128));   // GeForce RTX 4090
}

TEST(CudaTuning, PartsOfSharedMemoryFollowOneAnother) {
  struct Shape {
    int key, raw, value, stage;
  };
  for (const Shape& s : {Shape{128, 0, 128, 8448}, Shape{128, 128, 128, 4352}, Shape{64, 0, 64, 2304},
                         Shape{0, 96, 96, 12288}, Shape{576, 576, 512, 17536}})
    for (int trial = 0; trial < 4 * static_cast<int>(std::size(kAttendTunings)); trial++) {
      const AttendTuning& t = kAttendTunings[trial / 4];
      const MaskNeeds masks = {(trial & 1) != 0, (trial & 2) != 0};
      const bool exact = s.raw > 0;
      const int states = t.deposits + (exact ? kExactPlaces : 0);
      const SmemPlan plan = make_smem_plan(s.key, s.raw, s.value, s.stage, masks, t.workers, exact, t.stages,
                                           t.deposits, t.copies);
      EXPECT_GE(kInfosAt, static_cast<int>(sizeof(Control)));
      EXPECT_GE(kStatesAt, kInfosAt + kUnitSlots * static_cast<int>(sizeof(UnitInfo)));
      EXPECT_GE(plan.queries_at, kStatesAt + 4 * (kFirstDeposit + states) * state_floats(s.value));
      EXPECT_EQ(plan.exact_states, exact ? kFirstDeposit + t.deposits : 0);
      EXPECT_GE(plan.query_slot_bytes,
                static_cast<int>(s.key / 32 * 512 + sizeof(QueryRows)) + kRowsPerBlock * s.raw * 4);
      if (masks.rows) {
        EXPECT_GE(plan.mask_rows_at,
                  static_cast<int>(s.key / 32 * 512 + sizeof(QueryRows)) + kRowsPerBlock * s.raw * 4);
        EXPECT_GE(plan.query_slot_bytes, plan.mask_rows_at + static_cast<int>(sizeof(MaskRows)));
      } else {
        EXPECT_EQ(plan.mask_rows_at, -1);
      }
      EXPECT_GE(plan.workers_at, plan.queries_at + plan.query_slots * plan.query_slot_bytes);
      EXPECT_GE(plan.ring_at, kMaxStages * static_cast<int>(sizeof(Item) + sizeof(uint64_t)) + 4);
      EXPECT_GE(plan.worker_bytes, plan.ring_at + t.stages * s.stage);
      const int workers_end = plan.workers_at + t.workers * plan.worker_bytes;
      EXPECT_EQ(plan.ranges_at, masks.ranges ? workers_end : -1);
      EXPECT_EQ(plan.total_bytes,
                workers_end + (masks.ranges ? kUnitSlots * static_cast<int>(sizeof(UnitRanges)) : 0));
      for (int at : {kInfosAt, kStatesAt, plan.queries_at, plan.query_slot_bytes, plan.workers_at,
                     plan.worker_bytes, plan.ring_at, plan.stage_pitch})
        EXPECT_EQ(at % 128, 0);  // bulk copies, 16-byte accesses
      EXPECT_EQ(1 << plan.stages_log2, t.stages);
      EXPECT_EQ(1 << plan.deposits_log2, t.deposits);
      EXPECT_EQ(1 << plan.query_slots_log2, plan.query_slots);
      EXPECT_LE(plan.query_slots, kMaxQuerySlots);
    }
}

}  // namespace
