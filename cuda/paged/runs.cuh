// SPDX-License-Identifier: Apache-2.0
// A step's slots as jobs of append (schedule/slot_job.h), and the rows that nobody asks; by one CTA.
//
// Runs are found by looking at neighbours. Which of them share a tile is asked of a hash table in shared
// memory that keeps each tile's first run; of many runs a part of the tiles at a time. Runs that are not
// their tile's first are rare, and look for the one before them by going back over all.
#pragma once
#include "cuda/paged/lists.cuh"

namespace tq::cuda::paged {

constexpr int kHashPlaces = 2048;            // a power of two
constexpr int kHashTiles = kHashPlaces / 2;  // tiles of a round, about
constexpr int64_t kNoTile = -1;

// Runs of a step of so few tokens stay in shared memory, but for those that hang on others: a thread has one.
constexpr int kNearRuns = kPlanThreads;

struct RunMemory {
  AppendJob runs[kNearRuns];
  unsigned long long tiles[kHashPlaces];
  int32_t first[kHashPlaces];
  uint32_t scratch[kPlanWarps];
  int32_t num_idle;
};

__device__ __forceinline__ uint64_t hash_of_tile(int64_t tile) {
  return format::mix64(static_cast<uint64_t>(tile));
}

// What stands for a token in a list that has a place for each: no run, in no tile.
constexpr int32_t kNoRun = 2, kHangs = 1;  // AppendJob::flag; 0: owns its tile
__device__ __forceinline__ AppendJob no_run() {
  AppendJob none = slot_run(-2, 0, 0, 0);
  none.flag = kNoRun;
  return none;
}
// The run that begins with a token, if one does: the run before it ends with its neighbour. Slots below -1
// are noticed and left out.
__device__ __forceinline__ AppendJob run_at(const PlanParams& p, int token) {
  constexpr int kTile = format::kTileTokens;
  if (token >= p.num_tokens) return no_run();
  const int64_t slot = p.slots[token], last = token > 0 ? p.slots[token - 1] : -1,
                next = token + 1 < p.num_tokens ? p.slots[token + 1] : -1;
  if (slot < -1) set_noticed(p.noticed, kNoticedOutOfRange);
  const int first = static_cast<int>(slot) & (kTile - 1);
  if (slot < 0 || (first > 0 && last == slot - 1)) return no_run();
  const int most = min(kTile - first, p.num_tokens - token);
  int count = 1;
  if (most > 1 && next == slot + 1)
    for (count = 2; count < most && p.slots[token + count] == slot + count;) count++;
  return slot_run(slot / kTile, first, token, count);
}

// All runs in the order of their rows; returns how many places there are, in a near list one for each token.
__device__ __forceinline__ int write_runs(const PlanParams& p, AppendJob* runs, bool near,
                                          uint32_t* scratch) {
  if (near) {
    runs[threadIdx.x] = run_at(p, static_cast<int>(threadIdx.x));
    return p.num_tokens;
  }
  int64_t count = 0;
  for (int first = 0; first < p.num_tokens; first += kPlanThreads) {
    const AppendJob run = run_at(p, first + static_cast<int>(threadIdx.x));
    const Ranks ranks = rank_in_block(run.flag != kNoRun, false, scratch);
    if (run.flag != kNoRun) runs[count + ranks.before] = run;
    count += ranks.all;
  }
  return static_cast<int>(count);
}

__device__ __forceinline__ void clear_tiles(RunMemory& near) {
  for (int i = static_cast<int>(threadIdx.x); i < kHashPlaces; i += kPlanThreads)
    near.tiles[i] = static_cast<unsigned long long>(kNoTile), near.first[i] = INT32_MAX;
}

// Puts a run's tile into the table, or finds it there; -1 if there is no place left.
__device__ __forceinline__ int place_of_tile(RunMemory& near, int64_t tile, bool add) {
  const unsigned long long key = static_cast<unsigned long long>(tile);
  int at = static_cast<int>(hash_of_tile(tile) & (kHashPlaces - 1));
  for (int tries = 0; tries < kHashPlaces; tries++, at = (at + 1) & (kHashPlaces - 1)) {
    unsigned long long there =
        add ? atomicCAS(&near.tiles[at], static_cast<unsigned long long>(kNoTile), key) : near.tiles[at];
    if (there == static_cast<unsigned long long>(kNoTile)) return add ? at : -1;
    if (there == key) return at;
  }
  return -1;
}
// The last run before this one in the same tile, -1 if it is the tile's first.
__device__ __forceinline__ int run_before(AppendJob* runs, int run) {
  const int64_t tile = slot_tile(runs[run]);
  int other = run - 1;
  while (other >= 0 && slot_tile(runs[other]) != tile) other--;
  return other;
}

// Hangs each run on the one before it in its tile. The table is clear, and the runs are there for all.
__device__ __forceinline__ void link_runs(AppendJob* runs, int count, RunMemory& near) {
  const int rounds = (count + kHashTiles - 1) / kHashTiles;
  for (int round = 0; round < rounds; round++) {
    if (round > 0) {
      clear_tiles(near);
      __syncthreads();
    }
    const auto of_round = [&](int run) {
      if (runs[run].flag == kNoRun) return false;
      return rounds == 1 || static_cast<int>((hash_of_tile(slot_tile(runs[run])) >> 32) %
                                             static_cast<unsigned>(rounds)) == round;
    };
    for (int run = static_cast<int>(threadIdx.x); run < count; run += kPlanThreads) {
      if (!of_round(run)) continue;
      const int at = place_of_tile(near, slot_tile(runs[run]), true);
      if (at >= 0) atomicMin(&near.first[at], run);
    }
    __syncthreads();
    for (int run = static_cast<int>(threadIdx.x); run < count; run += kPlanThreads) {
      if (!of_round(run)) continue;
      const int at = place_of_tile(near, slot_tile(runs[run]), false);
      if (at >= 0 && near.first[at] == run) continue;
      const int before = run_before(runs, run);
      if (before < 0) continue;
      next_run_of(runs[before]) = run;
      runs[run].flag = kHangs;
    }
    __syncthreads();
  }
}

// Owners of tiles to `jobs`: runs for a warp from its beginning on, those for a team from its end downwards.
__device__ __forceinline__ void write_jobs(const PlanParams& p, RunMemory& near) {
  AppendJob* jobs = reinterpret_cast<AppendJob*>(p.workspace + p.places.jobs);
  AppendJob* all_runs = reinterpret_cast<AppendJob*>(p.workspace + p.places.runs);
  AppendJob* runs = p.num_tokens <= kNearRuns ? near.runs : all_runs;
  DeviceCounts counts = {};
  counts.new_tokens = p.num_tokens;
  if (p.slots) {
    const int count = write_runs(p, runs, runs == near.runs, near.scratch);
    __syncthreads();
    link_runs(runs, count, near);
    for (int first = 0; first < count; first += kPlanThreads) {
      const int run = first + static_cast<int>(threadIdx.x);
      AppendJob own = no_run();
      if (run < count) own = runs[run];
      const bool team = next_run_of(own) < 0 && own.length - own.old_length > kSmallRun;
      const Ranks ranks = rank_in_block(own.flag == 0 && !team, own.flag == 0 && team, near.scratch);
      const int small = counts.num_small_jobs + static_cast<int>(lower(ranks.before)),
                large = counts.num_large_tiles + static_cast<int>(upper(ranks.before));
      if (own.flag == 0) jobs[team ? p.num_tokens - 1 - large : small] = own;
      if (own.flag == kHangs) all_runs[run] = own;
      counts.num_small_jobs += static_cast<int32_t>(lower(ranks.all));
      counts.num_large_tiles += static_cast<int32_t>(upper(ranks.all));
    }
  }
  if (threadIdx.x == 0) *reinterpret_cast<DeviceCounts*>(p.workspace + p.places.counts) = counts;
}

// Rows of requests of length 0, of requests that cannot be, and of none: what lies between the rows of the
// others. A thread has a request, or stands behind the last one.
__device__ __forceinline__ void write_idle_rows(const PlanParams& p, RunMemory& near) {
  IdleRows* idle = reinterpret_cast<IdleRows*>(p.workspace + p.places.idle);
  if (threadIdx.x == 0) near.num_idle = 0;
  int last = -1;  // the last request before this round's that asks
  for (int first = 0; first <= p.num_reqs; first += kPlanThreads) {
    const int thread = static_cast<int>(threadIdx.x), request = first + thread;
    SequenceRows rows = {};
    bool wrong = false;
    if (request < p.num_reqs) rows = rows_of_request(p, request, &wrong);
    if (wrong) set_noticed(p.noticed, kNoticedOutOfRange);
    put_flags(rows.query_tokens > 0, near.scratch);
    __syncthreads();
    if (rows.query_tokens > 0 || request == p.num_reqs) {
      const int earlier = last_flag(near.scratch, thread), before = earlier < 0 ? last : first + earlier;
      const int begin = before < 0 ? 0 : p.starts[before + 1],
                end = request == p.num_reqs ? p.num_tokens : rows.q_row;
      if (begin < end) idle[1 + atomicAdd(&near.num_idle, 1)] = IdleRows{begin, end - begin};
    }
    const int of_round = last_flag(near.scratch, kPlanThreads);
    if (of_round >= 0) last = first + of_round;
    __syncthreads();
  }
  if (threadIdx.x == 0) idle[0] = IdleRows{0, near.num_idle};
}

}  // namespace tq::cuda::paged
