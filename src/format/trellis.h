// SPDX-License-Identifier: Apache-2.0
// The trellis family (FORMAT.md section 3.10): one bit of a code belongs to a convolutional code of eight
// states that runs over the coordinates, so that 2^(b+1) levels are told apart by b bits. 32 coordinates make
// a chain that bites its tail: a decoder has no state, the level of any coordinate follows from its own plain
// bits and from four coded bits of its chain.
//
// The encoder looks for the step by a pass of the Viterbi algorithm without ends, which also says through
// which state the chain's tail goes, and then runs once from that state to itself. Distances are squares of
// integers, so that sums may be made in any order: no device can decide differently.
#pragma once
#include "format/codebook.h"
#include "format/rotation.h"

namespace tq {
namespace format {

constexpr int kChain = 32;  // coordinates
constexpr int kTrellisStates = 8;
constexpr int kMaxTrellisLevels = 32;
constexpr int kMaxChains = kMaxDim / kChain;
constexpr int kNumTrellisSteps = 5;
constexpr int32_t kNoPath = 1 << 30;  // beyond every sum of distances

TQ_HD constexpr float trellis_step(int index) {
  constexpr float steps[kNumTrellisSteps] = {1.18f, 1.08f, 1.0f, 0.92f, 0.84f};
  return steps[index];
}
TQ_HD constexpr int num_trellis_steps(ScaleRule rule, bool search) {
  return search && rule != ScaleRule::kPaper ? kNumTrellisSteps : 1;
}
TQ_HD constexpr float trellis_step(int count, int index) { return count == 1 ? 1.0f : trellis_step(index); }

// The codebook of trellis codes: as that of scalar codes of one bit more, for all dimensions.
inline Codebook trellis_codebook(int bits) {
  Codebook book = {};
  book.bits = bits + 1;
  for (const TrellisTable& table : kTrellisTables)
    if (table.bits == bits) {
      book.unit = table.unit;
      memcpy(book.magnitude, table.magnitude, sizeof table.magnitude);
    }
  return book;
}

// The built-in codebook of a scalar or trellis code.
inline Codebook builtin_codebook(int dim, CodeId code) {
  return code.trellis() ? trellis_codebook(code.bits) : builtin_codebook(dim, code.bits);
}

// ---- places ----

// Place of a coordinate: 32 * its chain + its position there.
TQ_HD constexpr int trellis_place(Kind kind, int jv, int coordinate) {
  const int block = coordinate / (32 * jv), i = coordinate % (32 * jv), cycle = 8 * jv;
  if (kind == Kind::kKey) {
    const int t = position_quarter(i % 32), n = position_index(i % 32), per_lane = 4 / jv;
    return kChain * (block * jv + t / per_lane) + t % per_lane * cycle + n * jv + i / 32;
  }
  const int jj = i / 32, s = i % 32 / 8, g = i % 8;
  return kChain * (block * jv + s % jv) + s / jv * cycle + g * jv + jj;
}

// ---- codes ----

// Index of the level among all in rising order: the plain bits, then the coset, which the chain's coded bits
// say. Bit r of u is that of position r.
TQ_HD constexpr uint32_t trellis_coset(uint32_t u, int r) {
  const auto back = [u, r](int count) { return u >> ((r - count) & 31) & 1u; };
  return back(2) | (back(0) ^ back(1) ^ back(3)) << 1;
}
// A level's index as a code of the codebook: magnitude index and sign.
TQ_HD constexpr uint32_t trellis_level_code(int bits, uint32_t index) {
  const uint32_t half = 1u << bits;
  return index >= half ? index - half : (half - 1 - index) | half;
}
TQ_HD int8_t trellis_level_byte(const Codebook& book, uint32_t index) {
  return level_byte(book, trellis_level_code(book.bits - 1, index));
}

// Codes [stored] of a vector (coded bit, plain bits above it) -> level indexes [stored].
TQ_HD void trellis_indexes(Kind kind, int stored, const uint8_t* codes, uint8_t* indexes) {
  uint32_t u[kMaxChains] = {};
  const int jv = lane_groups(stored);
  for (int i = 0; i < stored; i++) {
    const int place = trellis_place(kind, jv, i);
    u[place / kChain] |= (codes[i] & 1u) << place % kChain;
  }
  for (int i = 0; i < stored; i++) {
    const int place = trellis_place(kind, jv, i);
    indexes[i] = static_cast<uint8_t>(codes[i] >> 1 << 2 | trellis_coset(u[place / kChain], place % kChain));
  }
}

// ---- encoder ----

// Eight times the levels, in rising order.
struct TrellisLevels {
  int32_t count;
  int32_t eighth[kMaxTrellisLevels];

  TQ_HD explicit TrellisLevels(const Codebook& book) : count(2 * book.count()), eighth{} {
    const int half = book.count();
    for (int j = 0; j < half; j++) {
      eighth[half + j] = static_cast<int32_t>(8 * book.level(j));
      eighth[half - 1 - j] = -eighth[half + j];
    }
  }
  // The level of a coset that is nearest to q, the lower of two; its distance squared.
  TQ_HD int nearest(int32_t q, uint32_t coset, int32_t* square) const {
    int index = static_cast<int>(coset);
    int32_t least = 0;
    for (int i = index; i < count; i += 4) {
      const int32_t distance = q < eighth[i] ? eighth[i] - q : q - eighth[i];
      if (i == static_cast<int>(coset) || distance < least) {
        least = distance;
        index = i;
      }
    }
    *square = least * least;
    return index;
  }
};

// A state is u of the last three positions, the newest one lowest.
struct TrellisPaths {
  int32_t metric[kTrellisStates];
  uint32_t history[kTrellisStates];  // u of the path's positions, the newest one lowest

  TQ_HD int best() const {
    int state = 0;
    for (int s = 1; s < kTrellisStates; s++)
      if (metric[s] < metric[state]) state = s;
    return state;
  }
  TQ_HD void extend(const int32_t (&cost)[4]) {
    const TrellisPaths old = *this;
    for (int s = 0; s < kTrellisStates; s++) {
      const int first = s >> 1, second = first | 4, c0 = s >> 2, c1 = (s ^ s >> 1) & 1;
      const int32_t from_first = old.metric[first] + cost[c0 | c1 << 1],
                    from_second = old.metric[second] + cost[c0 | (c1 ^ 1) << 1];
      const bool later = from_second < from_first;
      metric[s] = later ? from_second : from_first;
      history[s] = old.history[later ? second : first] << 1 | (s & 1u);
    }
  }
};

// Paths over the 32 positions of a chain, q [32] beginning with position `first`.
TQ_HD void extend_over(const TrellisLevels& levels, const int32_t* q, int first, TrellisPaths* paths) {
  for (int r = 0; r < kChain; r++) {
    int32_t cost[4];
    for (uint32_t coset = 0; coset < 4; coset++) levels.nearest(q[(first + r) % kChain], coset, &cost[coset]);
    paths->extend(cost);
  }
}
constexpr int kOpenFirst = 16;  // of the pass without ends; the state in front of position 0 is in its middle

TQ_HD constexpr uint32_t reversed(uint32_t history) {
  uint32_t u = 0;
  for (int r = 0; r < kChain; r++) u |= (history >> (kChain - 1 - r) & 1u) << r;
  return u;
}

// y in eighths of the grid at step u, by place.
TQ_HD void trellis_integers(Kind kind, const float* y, int stored, float u, int32_t* q) {
  const float inverse = div_rn(8.0f, u);
  const int jv = lane_groups(stored);
  for (int i = 0; i < stored; i++)
    q[trellis_place(kind, jv, i)] = static_cast<int32_t>(rintf(mul_rn(y[i], inverse)));
}

// y [stored] -> codes [stored] and level indexes [stored]. base: step 1.
TQ_HD void fit_trellis(const Codebook& book, ScaleRule rule, bool search, Kind kind, const float* y,
                       int stored, float base, uint8_t* codes, uint8_t* indexes) {
  const TrellisLevels levels(book);
  const int chains = stored / kChain, steps = num_trellis_steps(rule, search), jv = lane_groups(stored);
  int32_t q[kMaxDim];
  uint8_t state[kMaxChains] = {}, best_state[kMaxChains] = {};
  float best_error = 0, best_step = 0;
  for (int index = 0; index < steps; index++) {
    const float step = trellis_step(steps, index);
    trellis_integers(kind, y, stored, mul_rn(base, step), q);
    int32_t sum = 0;
    for (int chain = 0; chain < chains; chain++) {
      TrellisPaths paths = {};
      extend_over(levels, q + chain * kChain, kOpenFirst, &paths);
      const int end = paths.best();
      state[chain] = static_cast<uint8_t>(paths.history[end] >> kOpenFirst & 7u);
      sum += paths.metric[end];
    }
    const float error = mul_rn(static_cast<float>(sum), mul_rn(step, step));
    if (index > 0 && !(error < best_error)) continue;
    best_error = error;
    best_step = step;
    for (int chain = 0; chain < chains; chain++) best_state[chain] = state[chain];
  }
  trellis_integers(kind, y, stored, mul_rn(base, best_step), q);
  uint32_t u[kMaxChains];
  for (int chain = 0; chain < chains; chain++) {
    TrellisPaths paths = {};
    for (int s = 0; s < kTrellisStates; s++) paths.metric[s] = s == best_state[chain] ? 0 : kNoPath;
    extend_over(levels, q + chain * kChain, 0, &paths);
    u[chain] = reversed(paths.history[best_state[chain]]);
  }
  for (int i = 0; i < stored; i++) {
    const int place = trellis_place(kind, jv, i), r = place % kChain;
    int32_t unused;
    const int level = levels.nearest(q[place], trellis_coset(u[place / kChain], r), &unused);
    indexes[i] = static_cast<uint8_t>(level);
    codes[i] = static_cast<uint8_t>((level >> 2) << 1 | (u[place / kChain] >> r & 1u));
  }
}

}  // namespace format
}  // namespace tq
