// SPDX-License-Identifier: Apache-2.0
// See plan_upload.h. Only page-table entries that changed are sent; entries behind the end of the sequences
// in force may go ahead of the plan.
#include "cuda/plan_upload.h"

#include <inttypes.h>
#include <string.h>

#include <algorithm>

#include "cuda/append/split.h"
#include "cuda/pages/launch.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {
namespace {

// Collects the plan's changed page-table entries in staging memory, as runs.
class PageStager {
 public:
  PageStager(PlanStorage& storage, int64_t max_runs) : storage_(storage), max_runs_(max_runs) {}

  void bind(PlanStorage::Staging& staging) {
    uint8_t* host = staging.memory.host();
    runs_ = reinterpret_cast<PageRun*>(host + storage_.runs_at);
    pages_ = reinterpret_cast<int32_t*>(host + storage_.pages_at);
    num_runs_ = 0;
    num_pages_ = 0;
  }
  // How many of the pages found room.
  int64_t add(int64_t target, const int32_t* pages, int64_t count) {
    const int64_t now = num_runs_ == max_runs_ ? 0 : std::min(count, storage_.pages_capacity - num_pages_);
    if (now == 0) return 0;
    runs_[num_runs_++] = PageRun{target, static_cast<int32_t>(num_pages_), static_cast<int32_t>(now)};
    memcpy(pages_ + num_pages_, pages, static_cast<size_t>(now) * sizeof(int32_t));
    num_pages_ += now;
    return now;
  }
  int num_runs() const { return static_cast<int>(num_runs_); }

 private:
  PlanStorage& storage_;
  int64_t max_runs_;
  PageRun* runs_ = nullptr;
  int32_t* pages_ = nullptr;
  int64_t num_runs_ = 0, num_pages_ = 0;
};

// Tokens of a sequence before the end of what a group's pages hold.
int64_t tokens_in(const Geometry& geometry, int group, const StepSequence& sequence) {
  return group == geometry.raw_group ? sequence.length() : sequence.coded_end();
}

// Writes counts, sequences and append jobs (those of each page group) to staging; returns the counts.
DeviceCounts stage_image(const Geometry& geometry, const PlanStorage& storage, const BatchPlan& plan,
                         uint8_t* host) {
  DeviceSequence* sequences = reinterpret_cast<DeviceSequence*>(host + storage.sequences_at);
  int32_t* large_first = reinterpret_cast<int32_t*>(host + storage.large_at);
  DeviceCounts counts = {};
  const StepRows& rows = plan.rows;
  counts.num_sequences = rows.num_sequences;
  counts.new_tokens = static_cast<int32_t>(rows.new_tokens);
  counts.query_tokens = static_cast<int32_t>(rows.query_tokens);
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& from = rows.sequences[i];
    // What append codes.
    const int32_t old_length = static_cast<int32_t>(from.old_length),
                  length = static_cast<int32_t>(from.coded_end());
    sequences[i] = DeviceSequence{from.page_row,
                                  from.raw_slot,
                                  from.flag,
                                  old_length,
                                  length,
                                  static_cast<int32_t>(from.kv_row),
                                  static_cast<int32_t>(from.raw_first),
                                  static_cast<int32_t>(from.sink_end)};
    large_first[i] = counts.num_large_tiles;
    if (length <= old_length) continue;
    const append::AppendSplit split = append::split_append(old_length, length);
    bool seen_first = false;
    for (int32_t tile : {split.first_tile, split.last_tile}) {
      const bool is_large = tile >= split.first_large && tile < split.first_large + split.num_large;
      if (is_large || (tile == split.first_tile && seen_first)) continue;  // one tile is both first and last
      seen_first = tile == split.first_tile;
      const bool exact = geometry.has_exact() && from.has_raw_page(tile * format::kTileTokens);
      const int32_t raw_page = exact ? plan.maps[geometry.raw_group].row(from.raw_slot)[tile] : -1;
      for (int group = 0; group < geometry.num_code_groups(); group++)
        reinterpret_cast<AppendJob*>(host + storage.small_at +
                                     group * storage.small_bytes)[counts.num_small_jobs] =
            AppendJob{from.flag,
                      old_length,
                      length,
                      sequences[i].kv_row,
                      tile,
                      plan.maps[group].row(from.page_row)[tile / geometry.tiles_per_page()],
                      tile % geometry.tiles_per_page(),
                      raw_page};
      counts.num_small_jobs++;
    }
    counts.num_large_tiles += split.num_large;
  }
  large_first[rows.num_sequences] = counts.num_large_tiles;
  return counts;
}

// Writes the lists of one head shape; returns the bytes used.
int64_t build_lists(const Geometry& geometry, const HeadShape& heads, const StepRows& rows, int num_units,
                    const ListNeeds& needs, uint8_t* lists, UploadedPlan::List* uploaded) {
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& sequence = rows.sequences[i];
    if (sequence.query_tokens == 0) continue;
    const int64_t rows_each = static_cast<int64_t>(sequence.query_tokens) * heads.q_per_kv;
    if (!is_long(geometry, heads, sequence)) {
      uploaded->any_short = true;
    } else if (rows_each < kSharedRows) {
      uploaded->any_shared = true;
    } else {
      uploaded->any_alone = true;
      uploaded->least_rows = std::min(uploaded->least_rows, rows_each);
      uploaded->most_rows = std::max(uploaded->most_rows, rows_each);
    }
  }
  uploaded->few_sequences = few_sequences(geometry, heads, rows);
  uploaded->pair = needs.long_apart && (uploaded->any_long() || needs.keep_pair);
  const int64_t work = build_work(geometry, heads, rows, num_units, lists);
  if (!uploaded->pair) return work;
  uint8_t* const pair = lists + pair_offset(geometry, num_units);
  return pair_offset(geometry, num_units) + build_pair(geometry, heads, rows, num_units, pair);
}

}  // namespace

int64_t pair_offset(const Geometry& geometry, int num_units) {
  return align_up(work_capacity(geometry, num_units), 16);
}
int64_t plan_work_capacity(const Geometry& geometry, int num_units) {
  return pair_offset(geometry, num_units) + align_up(pair_capacity(geometry, num_units), 16);
}

UploadedPlan upload_plan(const Geometry& geometry, const Arena& arena, PlanStorage& storage,
                         const BatchPlan& plan, int num_units, const ListNeeds* needs, cudaStream_t stream) {
  const StepRows& rows = plan.rows;
  PageStager stager(storage, static_cast<int64_t>(geometry.num_groups) * geometry.max_batch_sequences);
  PlanStorage::Staging* staging = &storage.next();
  stager.bind(*staging);
  const auto send = [&](const uint8_t* image, int64_t bytes) {
    const uint8_t* device = staging->memory.device();
    pages::launch_apply_plan(image, storage.device(), bytes,
                             reinterpret_cast<const PageRun*>(device + storage.runs_at), stager.num_runs(),
                             reinterpret_cast<const int32_t*>(device + storage.pages_at), arena.page_table(0),
                             num_units, stream);
    staging->read.record(stream);
  };
  const auto stage_pages = [&](int group, const StepSequence& sequence, int64_t page) {
    const int32_t row = group == geometry.raw_group ? sequence.raw_slot : sequence.page_row;
    const int32_t* pages = plan.maps[group].row(row);
    const int64_t target = arena.page_table(group) - arena.page_table(0) +
                           row * arena.places().page_table_stride[group],
                  num_pages = geometry.groups[group].pages_for(tokens_in(geometry, group, sequence));
    while (page < num_pages) {
      page += stager.add(target + page, pages + page, num_pages - page);
      if (page == num_pages) break;
      send(nullptr, 0);  // no room left: these entries go ahead
      staging = &storage.next();
      stager.bind(*staging);
    }
  };
  for (int group = 0; group < geometry.num_groups; group++)
    for (int32_t i = 0; i < rows.num_sequences; i++) {
      const int64_t changed = plan.maps[group].first_changed[i];  // of most steps nothing
      if (changed * geometry.groups[group].page_size < tokens_in(geometry, group, rows.sequences[i]))
        stage_pages(group, rows.sequences[i], changed);
    }
  uint8_t* host = staging->memory.host();
  DeviceCounts counts = stage_image(geometry, storage, plan, host);
  UploadedPlan uploaded;
  int64_t work = 0;
  for (int shape = 0; shape < geometry.num_shapes; shape++) {
    const int64_t at = shape * plan_work_capacity(geometry, num_units);
    work = at + build_lists(geometry, geometry.shapes[shape], rows, num_units, needs[shape],
                            host + storage.work_at + at, &uploaded.lists[shape]);
  }
  TQ_CHECK(work <= storage.work_capacity, Status::kInternal,
           "work list: %" PRId64 " bytes, room for %" PRId64, work, storage.work_capacity);
  counts.work_bytes = static_cast<int32_t>(work);
  memcpy(host, &counts, sizeof counts);
  send(staging->memory.device(), storage.image_bytes + align_up(work, 16));
  uploaded.small_jobs = counts.num_small_jobs;
  uploaded.large_tiles = counts.num_large_tiles;
  return uploaded;
}

}  // namespace cuda
}  // namespace tq
