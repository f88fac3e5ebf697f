// SPDX-License-Identifier: Apache-2.0
// Who does what in the wide way. CTAs draw tickets from one counter; a ticket stands for an item, and what an
// item waits for has lower tickets, so that whoever holds these is running and no CTA waits for one that has
// not started, however many of them the device runs at a time.
//
// Items come in passes: some kv heads of a sequence, some of its row blocks, a slice of its history. A pass
// first has its steps expanded, into one half of the images, then its row blocks attended to, while the other
// half is filled for the next pass. Slices begin where sums are put aside anyway (WideChoice), so that a row
// has the same bits however its history is sliced.
#pragma once
#include "cuda/prefill/item.cuh"
#include "cuda/prefill/wide_shape.cuh"

namespace tq::cuda::prefill {

__device__ __forceinline__ bool is_wide(const WideParams& p, const PrefillSequence& s) {
  return s.query_tokens * p.layer.q_per_kv >= p.places.least_rows;
}
// End of the coded tokens that a row of a block sees, at most; rows are in the order of their positions.
__device__ __forceinline__ int seen_by_rows(const WideParams& p, const SequenceRows& s, int last_row) {
  return row_range<false>(p, s, query_of_row(p, s.query_tokens, last_row)).end;
}

// All items in their order, walked by one lane. It stands in shared memory: that lane has few registers.
template <int kStored, class Tuning>
struct WideWalk {
  using Shape = WideShape<kStored>;
  static constexpr int kMoveSteps = Tuning::kMoveTokens / Shape::kTokens;
  int sequence = -1;  // of the list
  PrefillSequence s;
  int blocks_before = 0;                    // row blocks of all kv heads of the sequences in front
  int steps = 0;                            // of the sequence
  int heads, rows, slice;                   // of a pass: kv heads, row blocks of each, steps
  int head = 0, row = 0, step = 0;          // where the pass begins
  int set = 0;                              // of the states: they change with the heads and rows
  int number = -1;                          // of the pass
  int first = 0, expands = 0, attends = 0;  // tickets: of the pass' first item, and how many
  int expanded[2] = {}, attended[2] = {};   // by parity: what the passes so far make of the counters
  int behind = 0;                           // attends of the pass before, which may still be under way
  bool ended = false;

  __device__ __forceinline__ int pass_heads(const WideParams& p) const {
    return min(heads, p.layer.num_kv_heads - head);
  }
  __device__ __forceinline__ int pass_rows() const { return min(rows, s.row_blocks - row); }
  __device__ __forceinline__ int pass_steps() const { return min(slice, steps - step); }

  // How the sequence is cut. No row's bits follow from it.
  __device__ void open_sequence(const WideParams& p) {
    const int room = p.places.steps, grid = static_cast<int>(gridDim.x), all = p.layer.num_kv_heads;
    steps = (seen_by_rows(p, s, s.query_tokens * p.layer.q_per_kv - 1) + Shape::kTokens - 1) / Shape::kTokens;
    heads = min(all, room / max(steps, 1));
    rows = s.row_blocks, slice = steps;
    // As many row blocks at a time as nearly fill the device.
    const int wanted = min(all, (grid - grid / 8 + s.row_blocks - 1) / s.row_blocks);
    if (p.places.capacity == 0 || heads >= wanted) return;
    heads = min(min(wanted, room / kMoveSteps), p.places.capacity);
    slice = room / heads / kMoveSteps * kMoveSteps;
    if (slice >= steps)
      slice = steps;
    else
      rows = min(rows, p.places.capacity / heads);
  }
  // The pass behind this one.
  __device__ void next(const WideParams& p) {
    first += expands + attends;
    if (number >= 0) {
      expanded[number & 1] += expands * kPrefillWarps;
      attended[number & 1] += attends;
      behind = attends;
      step += slice;
      if (step < steps) return open(p);
      step = 0, set ^= 1;
      row += rows;
      if (row < s.row_blocks) return open(p);
      row = 0;
      head += heads;
      if (head < p.layer.num_kv_heads) return open(p);
      head = 0;
      blocks_before += s.row_blocks * p.layer.num_kv_heads;
    }
    do {
      if (++sequence == p.header->num_sequences) {
        ended = true;
        expands = attends = 0;
        return;
      }
      s = p.sequences[sequence];
    } while (!is_wide(p, s));
    open_sequence(p);
    open(p);
  }
  __device__ void open(const WideParams& p) {
    number++;
    expands = pass_heads(p) * pass_steps();
    attends = pass_heads(p) * pass_rows();
  }
  __device__ __forceinline__ void go_to(const WideParams& p, int ticket) {
    while (!ended && ticket >= first + expands + attends) next(p);
  }
  __device__ __forceinline__ bool expands_at(int ticket) const { return !ended && ticket < first + expands; }

  // Where the images of a kv head of the pass begin.
  __device__ __forceinline__ int images_of(const WideParams& p, int local_head) const {
    return (number & 1) * p.places.steps + local_head * pass_steps();
  }
  // The item of a ticket that go_to has gone to.
  __device__ WideItem item(const WideParams& p, int ticket) const {
    WideItem it = {};
    it.kind = ended ? kWideEnd : expands_at(ticket) ? kWideExpand : kWideAttend;
    if (ended) return it;
    it.sequence = sequence;
    it.parity = number & 1;
    it.stamp = number + 1;
    const int local = ticket - first - (it.kind == kWideExpand ? 0 : expands),
              local_head = local % pass_heads(p), at = local / pass_heads(p);
    it.kv_head = head + local_head;
    it.image = images_of(p, local_head);
    if (it.kind == kWideExpand) {  // early steps first
      it.step = step + at;
      it.image += at;
      return it;
    }
    // The last row blocks, which see most, first.
    const int block = row + pass_rows() - 1 - at,
              last_row = min((block + 1) * kPrefillRows, s.query_tokens * p.layer.q_per_kv) - 1,
              own_steps = (seen_by_rows(p, s, last_row) + Shape::kTokens - 1) / Shape::kTokens,
              pass_end = step + pass_steps();
    it.first_row = block * kPrefillRows;
    it.begin = step;
    it.end = min(pass_end, own_steps);
    it.block = blocks_before + it.kv_head * s.row_blocks + block;
    it.flags = (step == 0 ? kWideFirst : 0) | (own_steps <= pass_end ? kWideLast : 0);
    it.state = it.flags == (kWideFirst | kWideLast)
                   ? -1
                   : set * kWideStates + (block - row) * pass_heads(p) + local_head;
    return it;
  }
};

}  // namespace tq::cuda::prefill
