// SPDX-License-Identifier: Apache-2.0
// Several vectors a warp, for appends of whole tiles (FORMAT.md sections 2 and 3): a vector lies in 4 or 8
// lanes, lane t of it holds the coordinates 2 t + b + 2 i * lanes (b = 0, 1). Gives the same bits as
// format::encode_vector.
//
// - The transform's strides from 2 * lanes on and the same folds of the summation tree stay in a lane; the
//   tree's fold order (blocks, high index bits first) is a recursion that keeps few partial sums alive.
// - Search at 3 and 4 bits: while the steps 1.12 ... 0.88 move a threshold T over [0.88 T, 1.12 T], these
//   zones of different thresholds do not meet (ZoneTable checks that). So a magnitude has at most one
//   threshold to be compared with in all steps. A table over r = |y| / (rms * unit) in bins of half a grid
//   unit tells the two levels beside it. r may be off by rounding: a bin counts for every zone within kSlack
//   of it. The comparison itself is the scalar one: |y| >= T * u, with T * u as ((L + L') * (u / 2)), the
//   same number since halving is exact here.
// - Squares of levels are multiples of 1/4 and their sum stays below 2^22 up to 256 coordinates: exact in
//   float in any order.
#pragma once
#include "cuda/code/encode.cuh"

namespace tq {
namespace cuda {

template <int kStored>
struct GroupShape {
  static constexpr bool kSupported = kStored <= 256;
  static constexpr int kLanes = kStored <= 128 ? 4 : 8;  // of one vector
  static constexpr int kVectors = 32 / kLanes;           // of one warp
  static constexpr int kPairs = kStored / (2 * kLanes);  // of one lane
  static constexpr int kBlock = 1 << format::log2_block(kStored);
  static constexpr int kOdd = kStored / kBlock;
  static constexpr int kBlockPairs = kBlock / (2 * kLanes);
  static_assert(kBlockPairs >= 1, "a block fills the lanes");
};

// ---- Table of the search ----

struct ZoneTable {
  static constexpr int kBins = 257;  // bin k: r in [k/2 - 1/4, k/2 + 1/4], the last one everything above too
  static constexpr int kCopies = 2;  // side by side: fewer lanes meet in a bank
  static constexpr float kSlack = 1e-3f;

  float2 levels[kBins * kCopies];  // below and above the zone's threshold; equal outside zones
  uint2 picks
      // bits of their sum, a number beyond all magnitudes outside zones; magnitude index of the one below
      [kBins * kCopies];
};

// All threads of a CTA. Returns whether this thread's bins are right: false if two zones meet in one.
__device__ __forceinline__ bool build_zones(const format::Codebook& book, ZoneTable* table, int thread,
                                            int threads) {
  constexpr float kWidest = 1.12f, kNarrowest = 0.88f;
  bool right = true;
  for (int at = thread; at < ZoneTable::kBins * ZoneTable::kCopies; at += threads) {
    const int bin = at / ZoneTable::kCopies;
    const float low = 0.5f * static_cast<float>(bin) - 0.25f - ZoneTable::kSlack;
    const float high =
        bin == ZoneTable::kBins - 1 ? 1e30f : 0.5f * static_cast<float>(bin) + 0.25f + ZoneTable::kSlack;
    int below = 0, zones = 0;
    for (int j = 1; j < book.count(); j++) {
      const float threshold = book.threshold(j);
      if (threshold * kWidest < low)
        below = j;
      else if (threshold * kNarrowest <= high)
        zones++;
    }
    right &= zones <= 1;
    const int above = zones == 1 ? below + 1 : below;
    const float lower = book.level(below), upper = book.level(above);
    table->levels[at] = make_float2(lower, upper);
    table->picks[at] =
        make_uint2(__float_as_uint(zones == 1 ? lower + upper : 1e30f), static_cast<uint32_t>(below));
  }
  return right;
}

// ---- Sums ----

// Folds in a lane down to kWidth entries, entry kAt of them: leaf(i, sums) gives pair i's summands, for
// kCount sums at once.
template <class S, int kAt, int kWidth, int kCount, class Leaf>
__device__ __forceinline__ void pair_tree(const Leaf& leaf, float (&sums)[kCount]) {
  float more[kCount];
  if constexpr (kWidth == S::kBlockPairs) {
    leaf(kAt, sums);
#pragma unroll
    for (int b = 1; b < S::kOdd; b++) {
      leaf(kAt + b * S::kBlockPairs, more);
#pragma unroll
      for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], more[c]);
    }
  } else {
    pair_tree<S, kAt, 2 * kWidth>(leaf, sums);
    pair_tree<S, kAt + kWidth, 2 * kWidth>(leaf, more);
#pragma unroll
    for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], more[c]);
  }
}

// The folds across lanes; every lane of the vector gets the results.
template <class S, int kCount>
__device__ __forceinline__ void group_tree(float (&sums)[kCount]) {
#pragma unroll
  for (int h = S::kLanes / 2; h >= 1; h /= 2)
#pragma unroll
    for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], __shfl_xor_sync(kFullWarp, sums[c], h));
}

// The whole tree: summand(i, b, sums) for coordinate b of pair i.
template <class S, int kCount, class Summand>
__device__ __forceinline__ void vector_tree(const Summand& summand, float (&sums)[kCount]) {
  float odd[kCount];
  pair_tree<S, 0, 1>([&](int i, float(&out)[kCount]) { summand(i, 0, out); }, sums);
  pair_tree<S, 0, 1>([&](int i, float(&out)[kCount]) { summand(i, 1, out); }, odd);
  group_tree<S>(sums);
  group_tree<S>(odd);
#pragma unroll
  for (int c = 0; c < kCount; c++) sums[c] = add_rn(sums[c], odd[c]);
}

template <class S>
__device__ __forceinline__ uint32_t group_max(uint32_t x) {
#pragma unroll
  for (int h = S::kLanes / 2; h >= 1; h /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, h));
  return x;
}

// ---- Transform ----

template <int kStored>
__device__ __forceinline__ void group_rotate(float (&y)[kStored / GroupShape<kStored>::kLanes], int t) {
  using S = GroupShape<kStored>;
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    const float a = y[2 * i], b = y[2 * i + 1];
    y[2 * i] = add_rn(a, b);
    y[2 * i + 1] = format::sub_rn(a, b);
  }
#pragma unroll
  for (int h = 1; h < S::kLanes; h *= 2) {
    const float side = t & h ? -1.0f : 1.0f;
#pragma unroll
    // one rounding: the product is exact
    for (int r = 0; r < 2 * S::kPairs; r++) y[r] = __fmaf_rn(y[r], side, __shfl_xor_sync(kFullWarp, y[r], h));
  }
#pragma unroll
  for (int h = 1; h < S::kBlockPairs; h *= 2)
#pragma unroll
    for (int i = 0; i < S::kPairs; i++)
      if ((i % S::kBlockPairs & h) == 0)
#pragma unroll
        for (int b = 0; b < 2; b++) {
          const float low = y[2 * i + b], high = y[2 * (i + h) + b];
          y[2 * i + b] = add_rn(low, high);
          y[2 * (i + h) + b] = format::sub_rn(low, high);
        }
  if constexpr (S::kOdd > 1) {
#pragma unroll
    for (int q = 0; q < 2 * S::kBlockPairs; q++) {
      float in[S::kOdd];
#pragma unroll
      for (int c = 0; c < S::kOdd; c++) in[c] = y[c * 2 * S::kBlockPairs + q];
#pragma unroll
      for (int r = 0; r < S::kOdd; r++) {
        float sum = mul_rn(format::dct_entry(S::kOdd, r, 0), in[0]);
#pragma unroll
        for (int c = 1; c < S::kOdd; c++) sum = add_rn(sum, mul_rn(format::dct_entry(S::kOdd, r, c), in[c]));
        y[r * 2 * S::kBlockPairs + q] = sum;
      }
    }
  }
}

// ---- Search ----

// Where the table is read for magnitude a: bytes from the start of levels or picks. to_bins = about 2 / (rms
// * unit), largest = 256 / to_bins. Adding 2^19 + 1/2 leaves the bin's number at bit 4 of the sum (rounded
// towards zero).
__device__ __forceinline__ int zone_offset(float a, float to_bins, float largest, int copy_offset) {
  static_assert(sizeof(float2) * ZoneTable::kCopies == 16, "a bin is 16 bytes");
  constexpr float kShift = 524288.5f;
  return (__float_as_int(__fmaf_rz(fminf(a, largest), to_bins, kShift)) & 0x1FF0) | copy_offset;
}
template <typename T>
__device__ __forceinline__ T zone_entry(const T* entries, int offset) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(entries) + offset);
}

// The first step with the largest dot^2 / qq. Approximate quotients are off by less than 2^-22 of themselves:
// they decide unless two are close.
template <int kSteps>
__device__ __forceinline__ int first_best(const float (&dot)[kSteps], const float (&qq)[kSteps]) {
  float energy[kSteps], gain[kSteps], most = 0.0f, second = 0.0f;
  int best = 0;
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    energy[s] = mul_rn(dot[s], dot[s]);
    gain[s] = __fdividef(energy[s], qq[s]);
  }
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    second = fmaxf(second, fminf(most, gain[s]));
    if (gain[s] > most) best = s;
    most = fmaxf(most, gain[s]);
  }
  if (second >= most * (1.0f - 0x1p-19f)) {  // rare
    most = -1.0f;
#pragma unroll 1
    for (int s = 0; s < kSteps; s++) {
      float exact = 0.0f;
#pragma unroll
      for (int k = 0; k < kSteps; k++)
        if (k == s) gain[0] = energy[k], gain[1] = qq[k];
      exact = div_rn(gain[0], gain[1]);
      if (exact > most) {
        most = exact;
        best = s;
      }
    }
  }
  return best;
}

// Tries all steps and stores the codes of the best: store(i, code of coordinate 0, of coordinate 1).
// kTable: 3 or 4 bits, else 2.
template <int kStored, bool kTable, class Store>
__device__ __forceinline__ Fit group_search(const format::Codebook& book, const ZoneTable* table,
                                            const float (&y)[kStored / GroupShape<kStored>::kLanes],
                                            float base, bool zero, int lane, const Store& store) {
  using S = GroupShape<kStored>;
  constexpr int kSteps = format::kNumSteps;
  const uint32_t minus = zero ? 0u : static_cast<uint32_t>(book.count());
  const int copy = lane % ZoneTable::kCopies * static_cast<int>(sizeof(float2));
  const float to_bins = zero ? 0.0f : __fdividef(2.0f, base), largest = 128.0f * base;
  const float level0 = book.level(0), level1 = book.level(1);
  float half_u[kSteps];  // kTable: u / 2; else the only threshold times u
#pragma unroll
  for (int s = 0; s < kSteps; s++) {
    const float u = mul_rn(base, format::step(4, kSteps, s));
    half_u[s] = kTable ? 0.5f * u : mul_rn(book.threshold(1), u);
  }
  float dot[kSteps], qq[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; s++) qq[s] = 0.0f;
  vector_tree<S>(
      [&](int i, int b, float(&products)[kSteps]) {
        const float a = fabsf(y[2 * i + b]);
        float2 levels = make_float2(level0, level1);
        if constexpr (kTable) levels = zone_entry(table->levels, zone_offset(a, to_bins, largest, copy));
        const float sum = levels.x + levels.y;
#pragma unroll
        for (int s = 0; s < kSteps; s++) {
          const float level = a >= (kTable ? mul_rn(sum, half_u[s]) : half_u[s]) ? levels.y : levels.x;
          qq[s] = __fmaf_rn(level, level, qq[s]);
          products[s] = mul_rn(a, level);
        }
      },
      dot);
  group_tree<S>(qq);

  const int best_step = first_best(dot, qq);
  Fit best = {dot[0], qq[0]};
  float best_half_u = half_u[0];
#pragma unroll
  for (int s = 1; s < kSteps; s++)
    if (s == best_step) {
      best = Fit{dot[s], qq[s]};
      best_half_u = half_u[s];
    }
  if (zero) best_half_u = __uint_as_float(0x7F800000u);  // nothing reaches it: all codes are 0
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    uint32_t codes[2];
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const float a = fabsf(y[2 * i + b]);
      uint32_t code = 0;
      float threshold = best_half_u;
      if constexpr (kTable) {
        const uint2 pick = zone_entry(table->picks, zone_offset(a, to_bins, largest, copy));
        code = pick.y;
        threshold = mul_rn(__uint_as_float(pick.x), best_half_u);
      }
      if (a >= threshold) code++;
      if (y[2 * i + b] < 0) code += minus;
      codes[b] = code;
    }
    store(i, codes[0], codes[1]);
  }
  return best;
}

template <int kStored, class Store>
__device__ __forceinline__ Fit group_quantise_8(const float (&y)[kStored / GroupShape<kStored>::kLanes],
                                                float max_y, bool zero, const Store& store) {
  using S = GroupShape<kStored>;
  // 1.5 * 2^23: the sum's low bits are the nearest integer, ties to even
  constexpr float kShift = 12582912.0f;
  const float inv = zero ? 0.0f : div_rn(127.0f, max_y);
  float dot[1], qq[1] = {0.0f};
  // |y * inv| <= 127 (1 + 2^-22), so that the limits of the format never act.
  vector_tree<S>(
      [&](int i, int b, float(&product)[1]) {
        const float level = fabsf(__fadd_rn(__fadd_rn(mul_rn(y[2 * i + b], inv), kShift), -kShift));
        qq[0] = __fmaf_rn(level, level, qq[0]);
        product[0] = mul_rn(fabsf(y[2 * i + b]), level);
      },
      dot);
  group_tree<S>(qq);
#pragma unroll
  for (int i = 0; i < S::kPairs; i++)
    store(i, __float_as_uint(__fadd_rn(mul_rn(y[2 * i], inv), kShift)),
          __float_as_uint(__fadd_rn(mul_rn(y[2 * i + 1], inv), kShift)));
  return Fit{dot[0], qq[0]};
}

// Widths and rules that encode_group serves; `zones`: the side's table is right.
__device__ __forceinline__ bool group_serves(const format::Codebook& book, format::ScaleRule rule,
                                             bool search_on, bool zones) {
  if (book.bits == 8) return true;
  return search_on && rule != format::ScaleRule::kPaper &&
         (book.bits == 2 || ((book.bits == 3 || book.bits == 4) && zones));
}

// y: sanitised, centred, padded. most: bits of the lane's largest magnitude. signs: the head's words of 32.
// Stores codes (low bits of store's arguments) and returns the bfloat16 scale.
template <int kStored, class Store>
__device__ __forceinline__ uint16_t encode_group(float (&y)[kStored / GroupShape<kStored>::kLanes],
                                                 uint32_t most, const format::Codebook& book,
                                                 format::ScaleRule rule, const uint32_t* signs,
                                                 const ZoneTable* table, int lane, const Store& store) {
  using S = GroupShape<kStored>;
  const int t = lane % S::kLanes;
  const float a = __uint_as_float(group_max<S>(most));
  const bool zero = a < format::exp2_int(format::kMinExponent);
  const int exponent = zero ? 0 : static_cast<int>(__float_as_uint(a) >> 23) - 127;
  const float down = format::exp2_int(-exponent);
#pragma unroll
  for (int i = 0; i < S::kPairs; i++) {
    const int first = 2 * i * S::kLanes;  // coordinate of t = 0, b = 0
    const uint32_t word = signs[first / 32] >> (2 * t);
#pragma unroll
    for (int b = 0; b < 2; b++)
      y[2 * i + b] = __uint_as_float(__float_as_uint(mul_rn(y[2 * i + b], down)) ^
                                     (word << (31 - first % 32 - b) & 0x80000000u));
  }
  group_rotate<kStored>(y, t);

  float n2[1];
  vector_tree<S>([&](int i, int b, float(&square)[1]) { square[0] = mul_rn(y[2 * i + b], y[2 * i + b]); },
                 n2);
  // Dividing by a power of two is exact, so a product will do.
  const float rms =
      sqrt_rn(S::kOdd == 1 ? mul_rn(n2[0], 1.0f / kStored) : div_rn(n2[0], static_cast<float>(kStored)));
  Fit fit;
  float paper = mul_rn(rms, book.unit);
  switch (book.bits) {
    case 2: fit = group_search<kStored, false>(book, table, y, paper, zero, lane, store); break;
    case 3:
    case 4: fit = group_search<kStored, true>(book, table, y, paper, zero, lane, store); break;
    default: {
      uint32_t largest = 0;
#pragma unroll
      for (int r = 0; r < 2 * S::kPairs; r++) largest = max(largest, __float_as_uint(abs_float(y[r])));
      const float max_y = __uint_as_float(group_max<S>(largest));
      fit = group_quantise_8<kStored>(y, max_y, zero, store);
      paper = div_rn(max_y, 127.0f);
      break;
    }
  }
  const float s = format::fitted_scale(rule, format::QuantiseResult{fit.dot, fit.qq}, n2[0], paper);
  const float norm_rot = format::hadamard_norm(format::log2_block(kStored));
  const uint16_t scale = format::bf16_from_float(mul_rn(mul_rn(s, norm_rot), format::exp2_int(exponent)));
  return zero ? 0 : scale;
}

}  // namespace cuda
}  // namespace tq
