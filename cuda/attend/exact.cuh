// SPDX-License-Identifier: Apache-2.0
// One warp's attention of one query row over exact tokens (raw window and sinks): float arithmetic on the
// caller's own values, unrotated space. A row's tokens, sinks first, are cut into parts by their number
// alone, so that they are the same parts whatever other rows the block has.
#pragma once
#include "cuda/attend/coded.cuh"

namespace tq::cuda::attend {

constexpr int kExactBatch = 8;       // tokens whose products are in flight together
constexpr int kExactJobTokens = 64;  // tokens of one row that a job takes, at least
constexpr int kExactRowJobs = 8;     // jobs of one row, at most

// Parts of so many exact tokens of a row.
__device__ __forceinline__ int exact_parts(int tokens) {
  return min(max((tokens + kExactJobTokens - 1) / kExactJobTokens, 1), kExactRowJobs);
}

// One part of a row; a row of fewer parts than the block's longest has empty ones. kPieces = values of one
// lane: ceil(dim / 32). kValue: stored value dimension. take_turn() returns when the state in shared memory
// is this job's. masks: of the block's rows, or null.
template <int kPieces, int kValue, bool kMasks, class TakeTurn>
__device__ __noinline__ void exact_row(const AttendParams& p, const UnitInfo& info, const QueryRows& rows,
                                       const MaskRows* masks, const float* q, int row, int part,
                                       float* state_at, int lane, const TakeTurn take_turn) {
  const DeviceSide &key = p.layer.key, &value = p.layer.value;
  float query[kPieces], o[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; i++)
    query[i] = lane + 32 * i < key.layout.dim ? q[row * p.plan.query_floats + lane + 32 * i] : 0.0f,
    o[i] = 0.0f;
  const float unit = p.numbers.scale_log2 * p.numbers.query_sign;
  const int visible_begin = rows.visible_begin[row], visible_end = rows.visible_end[row],
            window_begin = rows.end[row];
  const int sinks = max(min(visible_end, info.sink_end) - visible_begin, 0),
            count = sinks + max(visible_end - window_begin, 0), parts = exact_parts(count),
            first = part < parts ? count * part / parts : 0,
            last = part < parts ? count * (part + 1) / parts : 0;
  SoftmaxState state = {kMaskedFloor, 0.0f};
  for (int at = first; at < last; at += kExactBatch) {
    float s[kExactBatch];
    int64_t place[kExactBatch];
#pragma unroll
    for (int b = 0; b < kExactBatch; b++) {
      const int index = min(at + b, last - 1),
                token = index < sinks ? visible_begin + index : window_begin + index - sinks;
      place[b] = raw_place(p, info.raw_slot, token);
      const int64_t base = raw_offset(p.layer, key, info.kv_head, place[b]);
      bool seen = at + b < last;
      if (kMasks && masks) {
        const TreeWords tree = {{masks->tree[row][0], masks->tree[row][1]}};
        seen = seen && !tree.hides(token - masks->new_first[row]);
      }
      if (!seen) place[b] = -1;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; i++)
        if (seen && lane + 32 * i < key.layout.dim)
          sum = fmaf(query[i], load_scalar(key.raw, base + lane + 32 * i, p.layer.io_dtype), sum);
      s[b] = sum;
    }
#pragma unroll
    for (int d = 16; d; d /= 2)
#pragma unroll
      for (int b = 0; b < kExactBatch; b++) s[b] += __shfl_xor_sync(~0u, s[b], d);
    float top = kMaskedFloor;
#pragma unroll
    for (int b = 0; b < kExactBatch; b++) {
      s[b] *= unit;
      if (p.numbers.softcap_log2 != 0.0f)
        s[b] = soft_cap(s[b], p.numbers.softcap_log2, p.numbers.softcap_steepness);
      s[b] = clamp_logit(s[b]);
      if (kMasks && masks) {
        const int index = at + b,
                  token = index < sinks ? visible_begin + index : window_begin + index - sinks;
        s[b] = add_slope(s[b], masks->slope[row], token - masks->position[row]);
      }
      if (place[b] < 0) s[b] = kMasked;
      top = fmaxf(top, s[b]);
    }
    const float raised = fmaxf(state.m, top), down = ex2(state.m - raised);
    state.m = raised;
    state.l *= down;
#pragma unroll
    for (int i = 0; i < kPieces; i++) o[i] *= down;
#pragma unroll
    for (int b = 0; b < kExactBatch; b++) {
      if (place[b] < 0) continue;
      const float weight = ex2(s[b] - raised);
      state.l += weight;
      const int64_t base = raw_offset(p.layer, value, info.kv_head, place[b]);
#pragma unroll
      for (int i = 0; i < kPieces; i++)
        if (lane + 32 * i < value.layout.dim)
          o[i] = fmaf(weight, load_scalar(value.raw, base + lane + 32 * i, p.layer.io_dtype), o[i]);
    }
  }
  if (!(state.l > 0.0f)) state.m = minus_infinity();
  take_turn();
  float* ms = state_at + kRowsPerBlock * row_floats(kValue);
  MergeWeights w = {state, 0.0f, 1.0f};
  if (part > 0) w = merge_weights<ExactDivision>(SoftmaxState{ms[row], ms[kRowsPerBlock + row]}, state);
  __syncwarp();  // all lanes have read the sums
#pragma unroll
  for (int i = 0; i < kPieces; i++) {
    float* to = state_at + row * row_floats(kValue) + lane + 32 * i;
    if (lane + 32 * i < value.layout.dim) *to = part > 0 ? merged(*to, o[i], w) : o[i];
  }
  __syncwarp();
  if (lane == 0) {
    ms[row] = w.state.m;
    ms[kRowsPerBlock + row] = w.state.l;
    ms[2 * kRowsPerBlock + row] = 0.0f;
  }
}

}  // namespace tq::cuda::attend
