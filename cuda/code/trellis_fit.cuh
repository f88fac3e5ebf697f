// SPDX-License-Identifier: Apache-2.0
// Paths of trellis codes for rotated vectors, several a warp (FORMAT.md section 3.10): the same bits as
// format::fit_trellis.
//
// A lane takes a chain at one step: the metrics of its eight states stay in registers, and nothing goes from
// lane to lane. Passes without ends of all steps run side by side, so that one vector of 128 coordinates
// already fills 20 lanes. Of their paths only the state in front of position 0 is wanted, which is three bits
// that go along from there; the closing pass keeps all coded bits of a path, one word a state.
//
// Chains lie in shared memory, a word more than their 32 apart: lanes that are at the same position of
// different chains meet no bank twice.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/shared.cuh"
#include "format/trellis.h"

namespace tq::cuda::code {

constexpr int kChainPitch = format::kChain + 1;

// f(std::integral_constant) for the bits of a code.
template <class F>
__device__ __forceinline__ auto with_trellis_bits(int bits, const F& f) {
  if (bits == 3) return f(std::integral_constant<int, 3>());
  return bits == 2 ? f(std::integral_constant<int, 2>()) : f(std::integral_constant<int, 4>());
}

// What a warp needs of shared memory, for up to `capacity` chains.
struct TrellisWork {
  float* y;         // [capacity][kChainPitch], by place
  int32_t* error;   // [kNumTrellisSteps * capacity]: of chain c at step i at i * chains in use + c
  int32_t* tail;    // likewise
  uint32_t* coded;  // [capacity]: coded bits, that of position 31 lowest
  float* base;      // [vectors], [capacity] at most: rms * unit
  float* step;      // likewise: base times the step that was chosen

  static constexpr int bytes(int capacity) {
    return 4 * capacity * (kChainPitch + 2 * format::kNumTrellisSteps + 3);
  }
  // The warp's share of what the launch has.
  __device__ __forceinline__ explicit TrellisWork(int capacity)
      : TrellisWork(launch_shared() + threadIdx.x / 32 * bytes(capacity), capacity) {}
  __device__ __forceinline__ TrellisWork(uint8_t* at, int capacity)
      : y(reinterpret_cast<float*>(at)),
        error(reinterpret_cast<int32_t*>(y + capacity * kChainPitch)),
        tail(error + capacity * format::kNumTrellisSteps),
        coded(reinterpret_cast<uint32_t*>(tail + capacity * format::kNumTrellisSteps)),
        base(reinterpret_cast<float*>(coded + capacity)),
        step(base + capacity) {}
};

// Eight times a level of the family's only codebook.
template <int kBits>
constexpr int eighth_level(int index) {
  for (const format::TrellisTable& table : format::kTrellisTables) {
    if (table.bits != kBits) continue;
    const int half = 1 << kBits, j = index >= half ? index - half : half - 1 - index,
              size = 8 * table.magnitude[j] + (kBits > 2 ? 4 : 0);
    return index >= half ? size : -size;
  }
  return 0;
}

// Squared distances from q to levels 4 l are q^2 - 8 (q l - 2 l^2): the nearest level of a coset has the
// largest gain q l - 2 l^2, a multiplication and an addition at once, and the best path the largest sum.
template <int kBits, int kCoset, int kFirst = 0, int kCount = (1 << (kBits - 1))>
__device__ __forceinline__ int coset_gain(int q) {
  if constexpr (kCount == 1) {
    constexpr int kQuarter = eighth_level<kBits>(4 * kFirst + kCoset) / 4;
    return q * kQuarter - 2 * kQuarter * kQuarter;
  } else {
    return max(coset_gain<kBits, kCoset, kFirst, kCount / 2>(q),
               coset_gain<kBits, kCoset, kFirst + kCount / 2, kCount / 2>(q));
  }
}

// Which level of a coset is nearest to q: one for each sum of neighbours that 2 q is above, so that of equals
// it is the lower.
template <int kBits, int kPlain = 0>
__device__ __forceinline__ int nearest_plain(int q, uint32_t coset) {
  if constexpr (kPlain + 1 == 1 << (kBits - 1)) {
    return 0;
  } else {
    constexpr int kSum[4] = {eighth_level<kBits>(4 * kPlain) + eighth_level<kBits>(4 * kPlain + 4),
                             eighth_level<kBits>(4 * kPlain + 1) + eighth_level<kBits>(4 * kPlain + 5),
                             eighth_level<kBits>(4 * kPlain + 2) + eighth_level<kBits>(4 * kPlain + 6),
                             eighth_level<kBits>(4 * kPlain + 3) + eighth_level<kBits>(4 * kPlain + 7)};
    const int low = coset & 1 ? kSum[1] : kSum[0], high = coset & 1 ? kSum[3] : kSum[2];
    return (2 * q > (coset & 2 ? high : low) ? 1 : 0) + nearest_plain<kBits, kPlain + 1>(q, coset);
  }
}

// y at a step, in eighths of the grid: below 2^22.
__device__ __forceinline__ int eighths(float y, float inverse) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  return __float_as_int(format::add_rn(format::mul_rn(y, inverse), kShift)) - __float_as_int(kShift);
}

// What goes along with a state's sum of gains.
enum class Along { kNothing, kTail, kHistory };

// The coset on the way from the lower of its two states to a state; from the other it is this one ^ 2.
__device__ __forceinline__ constexpr int coset_to(int state) {
  return state >> 2 | ((state ^ state >> 1) & 1) << 1;
}

// Paths of a chain in one lane.
template <Along kAlong>
struct Paths {
  int sum[format::kTrellisStates];
  uint32_t along[format::kTrellisStates];

  // gain: of the position, by coset.
  __device__ __forceinline__ void extend(const int (&gain)[4]) {
    const Paths old = *this;
#pragma unroll
    for (int s = 0; s < format::kTrellisStates; s++) {
      const int first = s >> 1, second = first | 4, coset = coset_to(s);
      const int a = old.sum[first] + gain[coset], b = old.sum[second] + gain[coset ^ 2];
      sum[s] = max(a, b);
      if constexpr (kAlong != Along::kNothing) along[s] = b > a ? old.along[second] : old.along[first];
      if constexpr (kAlong == Along::kHistory) along[s] = 2 * along[s] + (s & 1);
    }
  }
  // Positions first .. last - 1 of a chain; returns the sum of their squares.
  template <int kBits>
  __device__ __forceinline__ int extend_over(const float* y, float inverse, int first, int last) {
    int squares = 0;
#pragma unroll 2
    for (int r = first; r < last; r++) {
      const int q = eighths(y[r], inverse);
      squares += q * q;
      extend({coset_gain<kBits, 0>(q), coset_gain<kBits, 1>(q), coset_gain<kBits, 2>(q),
              coset_gain<kBits, 3>(q)});
    }
    return squares;
  }
};

struct OpenEnd {
  int32_t error, tail;
};
// The pass without ends over a chain.
template <int kBits>
__device__ __forceinline__ OpenEnd open_pass(const float* y, float inverse) {
  Paths<Along::kNothing> open = {};
  int squares = open.extend_over<kBits>(y, inverse, format::kOpenFirst, format::kChain);
  Paths<Along::kTail> paths;
#pragma unroll
  for (int s = 0; s < format::kTrellisStates; s++) {
    paths.sum[s] = open.sum[s];
    paths.along[s] = static_cast<uint32_t>(s);
  }
  squares += paths.extend_over<kBits>(y, inverse, 0, format::kOpenFirst);
  int best = paths.sum[0];
  uint32_t tail = paths.along[0];
#pragma unroll
  for (int s = 1; s < format::kTrellisStates; s++)
    if (paths.sum[s] > best) {
      best = paths.sum[s];
      tail = paths.along[s];
    }
  return OpenEnd{squares - 8 * best, static_cast<int32_t>(tail)};
}

constexpr int kNoGain = -(1 << 28);  // below every sum of gains

// Coded bits of the best path from a state to itself.
template <int kBits>
__device__ __forceinline__ uint32_t closed_pass(const float* y, float inverse, int tail) {
  Paths<Along::kHistory> paths;
#pragma unroll
  for (int s = 0; s < format::kTrellisStates; s++) {
    paths.sum[s] = s == tail ? 0 : kNoGain;
    paths.along[s] = 0;
  }
  paths.extend_over<kBits>(y, inverse, 0, format::kChain);
  uint32_t history = 0;
#pragma unroll
  for (int s = 0; s < format::kTrellisStates; s++)
    if (s == tail) history = paths.along[s];
  return history;
}

// l of all levels, in rising order.
template <int kBits>
struct Quarters {
  int of[2 << kBits];

  constexpr Quarters() : of{} {
    for (int i = 0; i < 2 << kBits; i++) of[i] = eighth_level<kBits>(i) / 4;
  }
};
// The same by eight lanes, one a state: where a warp has few chains, most lanes would idle. By a whole warp,
// for four chains.
template <int kBits>
__device__ __forceinline__ uint32_t closed_pass_lanes(const float* y, float inverse, int tail, int lane) {
  constexpr int kLevels = 1 << (kBits - 1);
  constexpr Quarters<kBits> kQuarters;
  const int s = lane % format::kTrellisStates, base = lane - s, first = base + (s >> 1), second = first + 4;
  const int coset = coset_to(s);
  int quarter[2][kLevels], less[2][kLevels];  // of the coset from the first state, and from the second
#pragma unroll
  for (int p = 0; p < kLevels; p++) {
    const int *const of = kQuarters.of + 4 * p, low = coset & 1 ? of[1] : of[0],
                     high = coset & 1 ? of[3] : of[2];
    quarter[0][p] = coset & 2 ? high : low;
    quarter[1][p] = coset & 2 ? low : high;
#pragma unroll
    for (int i = 0; i < 2; i++) less[i][p] = 2 * quarter[i][p] * quarter[i][p];
  }
  int sum = s == tail ? 0 : kNoGain;
  uint32_t history = 0;
#pragma unroll 2
  for (int r = 0; r < format::kChain; r++) {
    const int q = eighths(y[r], inverse);
    int gain[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      gain[i] = q * quarter[i][0] - less[i][0];
#pragma unroll
      for (int p = 1; p < kLevels; p++) gain[i] = max(gain[i], q * quarter[i][p] - less[i][p]);
    }
    const int a = __shfl_sync(~0u, sum, first) + gain[0], b = __shfl_sync(~0u, sum, second) + gain[1];
    const uint32_t past_first = __shfl_sync(~0u, history, first),
                   past_second = __shfl_sync(~0u, history, second);
    sum = max(a, b);
    history = 2 * (b > a ? past_second : past_first) + (s & 1);
  }
  return __shfl_sync(~0u, history, base + tail);
}

// The coset of position r of a chain, and the coded bit there.
struct CodedPlace {
  uint32_t coset, bit;

  __device__ __forceinline__ CodedPlace(uint32_t coded, int r) {
    const uint32_t back = funnel_right(coded, coded, 31 - r);  // bit i: of the position i before
    bit = back & 1u;
    coset = (back >> 2 & 1u) | ((back ^ back >> 1 ^ back >> 3) & 1u) << 1;
  }
};

__device__ __forceinline__ float inverse_step(float step) { return format::div_rn(8.0f, step); }

constexpr int kFewChains = 8;  // of a warp: two rounds of eight lanes each

// From y and base of `vectors` vectors of `chains` chains each, in the warp's TrellisWork, to coded bits and
// steps. steps: 1 or all.
template <int kBits>
__device__ __noinline__ void search_trellis(int capacity, int vectors, int chains, int steps, int lane) {
  const TrellisWork work(capacity);
  const int all = vectors * chains;
#pragma unroll 1
  for (int item = lane; item < steps * all; item += 32) {
    const int index = item / all, chain = item - index * all;
    const float inverse =
        inverse_step(format::mul_rn(work.base[chain / chains], format::trellis_step(steps, index)));
    const float* y = work.y + chain * kChainPitch;
    const OpenEnd end = open_pass<kBits>(y, inverse);
    work.error[item] = end.error;
    work.tail[item] = end.tail;
  }
  __syncwarp();
#pragma unroll 1
  for (int item = lane; item < steps * vectors; item += 32) {
    const int index = item / vectors;
    int32_t* errors = work.error + index * all + (item - index * vectors) * chains;
    int32_t sum = 0;
    for (int chain = 0; chain < chains; chain++) sum += errors[chain];
    const float step = format::trellis_step(steps, index);
    errors[0] = __float_as_int(format::mul_rn(static_cast<float>(sum), format::mul_rn(step, step)));
  }
  __syncwarp();
  if (lane < vectors) {
    float best_error = 0;
    int best = 0;
    for (int index = 0; index < steps; index++) {
      const float error = __int_as_float(work.error[index * all + lane * chains]);
      if (index > 0 && !(error < best_error)) continue;
      best_error = error;
      best = index;
    }
    work.step[lane] = format::mul_rn(work.base[lane], format::trellis_step(steps, best));
    for (int chain = lane * chains; chain < (lane + 1) * chains; chain++)
      work.tail[chain] = work.tail[best * all + chain];  // its own place, or one that nobody reads any more
  }
  __syncwarp();
  if (all <= kFewChains) {
#pragma unroll 1
    for (int first = 0; first < all; first += 4) {
      const int chain = min(first + lane / format::kTrellisStates, all - 1);
      const uint32_t coded = closed_pass_lanes<kBits>(
          work.y + chain * kChainPitch, inverse_step(work.step[chain / chains]), work.tail[chain], lane);
      if (lane % format::kTrellisStates == 0) work.coded[chain] = coded;
    }
  } else {
#pragma unroll 1
    for (int chain = lane; chain < all; chain += 32)
      work.coded[chain] = closed_pass<kBits>(work.y + chain * kChainPitch,
                                             inverse_step(work.step[chain / chains]), work.tail[chain]);
  }
  __syncwarp();
}

}  // namespace tq::cuda::code
