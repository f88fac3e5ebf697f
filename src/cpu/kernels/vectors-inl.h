// SPDX-License-Identifier: Apache-2.0
// Rotation, encoder and conversions of one vector in SIMD; included once per instruction set.
//
// Bit-exactness: every coordinate passes through the same rounded operations in the same order as in
// src/format. Butterflies of distance below the vector's width take the partner by a lane permutation: x_i +
// x_j and x_i - x_j = x_i + (-x_j) are the same rounded values; the tree folds halves, so it adds whole
// vectors first. No MulAdd here.
#if defined(TQ_CPU_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_VECTORS_INL_H_
#undef TQ_CPU_VECTORS_INL_H_
#else
#define TQ_CPU_VECTORS_INL_H_
#endif

#include "cpu/kernels/kernels.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using VF = hn::Vec<F>;

// Lane numbers. (Highway 1.0.3 makes its Iota through memory, a store that stalls the load behind it.)
alignas(64) static constexpr int32_t kLaneNumber[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
HWY_INLINE hn::Vec<hn::RebindToSigned<F>> lane_numbers() {
  return hn::Load(hn::RebindToSigned<F>(), kLaneNumber);
}

// Lane i of the result is lane i ^ distance of v.
HWY_INLINE VF partner(VF v, int distance) {
  const F d;
#if HWY_TARGET == HWY_AVX2  // half the operations of a look-up, and less to wait for
  if (distance == 1) return hn::Shuffle2301(v);
  if (distance == 2) return hn::Shuffle1032(v);
  if (distance == 4) return hn::ConcatLowerUpper(d, v, v);
#endif
  const hn::RebindToSigned<F> di;
  return hn::TableLookupLanes(v, hn::IndicesFromVec(d, hn::Xor(lane_numbers(), hn::Set(di, distance))));
}

HWY_INLINE float first_lane(VF v) { return hn::GetLane(v); }

// Of 2 * kHalf vectors: the upper half added to the lower one, again and again.
template <int kHalf>
HWY_INLINE VF fold_halves(const float* HWY_RESTRICT v) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  VF sum[kHalf];
  for (int i = 0; i < kHalf; i++)
    sum[i] = hn::Add(hn::Load(d, v + i * lanes), hn::Load(d, v + (i + kHalf) * lanes));
  for (int h = kHalf / 2; h >= 1; h /= 2)
    for (int i = 0; i < h; i++) sum[i] = hn::Add(sum[i], sum[i + h]);
  return sum[0];
}

// format::tree_sum of stored = m * n values; destroys v.
HWY_INLINE float tree_sum(float* HWY_RESTRICT v, int stored) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d)), n = 1 << format::log2_block(stored), m = stored / n;
  for (int p = 0; m > 1 && p < n; p += lanes) {
    VF sum = hn::Load(d, v + p);
    for (int r = 1; r < m; r++) sum = hn::Add(sum, hn::Load(d, v + r * n + p));
    hn::Store(sum, d, v + p);
  }
  int h = n / 2;  // at least 8: half a vector of AVX-512
  for (; h > 8 * lanes; h /= 2)
    for (int p = 0; p < h; p += lanes)
      hn::Store(hn::Add(hn::Load(d, v + p), hn::Load(d, v + p + h)), d, v + p);
  VF sum = h == 8 * lanes   ? fold_halves<8>(v)
           : h == 4 * lanes ? fold_halves<4>(v)
           : h == 2 * lanes ? fold_halves<2>(v)
           : h == lanes     ? fold_halves<1>(v)
                            : hn::Load(d, v);
  for (h = lanes / 2; h >= 1; h /= 2) sum = hn::Add(sum, partner(sum, h));
  return first_lane(sum);
}

// format::fwht of n values.
HWY_INLINE void fwht(float* HWY_RESTRICT x, int n) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int p = 0; p < n; p += lanes) {
    VF v = hn::Load(d, x + p);
    for (int h = 1; h < lanes; h *= 2) {
      // lanes that hold x_{i+h}: they become x_i - x_{i+h}
      const auto upper = hn::And(hn::BitCast(du, lane_numbers()), hn::Set(du, static_cast<uint32_t>(h)));
      const auto flip =
          hn::BitCast(d, hn::IfThenElse(hn::Ne(upper, hn::Zero(du)), hn::Set(du, 0x80000000u), hn::Zero(du)));
      v = hn::Add(partner(v, h), hn::Xor(v, flip));
    }
    hn::Store(v, d, x + p);
  }
  for (int h = lanes; h < n; h *= 2)
    for (int i = 0; i < n; i += 2 * h)
      for (int j = i; j < i + h; j += lanes) {
        const VF a = hn::Load(d, x + j), b = hn::Load(d, x + j + h);
        hn::Store(hn::Add(a, b), d, x + j);
        hn::Store(hn::Sub(a, b), d, x + j + h);
      }
}

// format::mix_blocks.
HWY_INLINE void mix_blocks(float* HWY_RESTRICT x, int m, int n, bool transposed) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  alignas(64) float in[format::kMaxOddFactor * 16];
  float factors[format::kMaxOddFactor * format::kMaxOddFactor];
  for (int r = 0; r < m; r++)
    for (int c = 0; c < m; c++)
      factors[r * m + c] = transposed ? format::dct_entry(m, c, r) : format::dct_entry(m, r, c);
  for (int p = 0; p < n; p += lanes) {
    for (int c = 0; c < m; c++) hn::Store(hn::Load(d, x + c * n + p), d, in + c * lanes);
    for (int r = 0; r < m; r++) {
      VF sum = hn::Mul(hn::Set(d, factors[r * m]), hn::Load(d, in));
      for (int c = 1; c < m; c++)
        sum = hn::Add(sum, hn::Mul(hn::Set(d, factors[r * m + c]), hn::Load(d, in + c * lanes)));
      hn::Store(sum, d, x + r * n + p);
    }
  }
}

// Flips the signs of x where the stream says so.
HWY_INLINE void flip_signs(float* HWY_RESTRICT x, int stored, const uint64_t* signs) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto bit = hn::Shl(hn::Set(du, 1u), hn::BitCast(du, lane_numbers()));
  for (int p = 0; p < stored; p += lanes) {
    const auto word = hn::Set(du, static_cast<uint32_t>(signs[p / 64] >> (p % 64)));
    const auto minus = hn::Ne(hn::And(word, bit), hn::Zero(du));
    const auto flip = hn::BitCast(d, hn::IfThenElse(minus, hn::Set(du, 0x80000000u), hn::Zero(du)));
    hn::Store(hn::Xor(hn::Load(d, x + p), flip), d, x + p);
  }
}

HWY_INLINE void hadamard_forward(float* x, int stored, const uint64_t* signs) {
  const int n = 1 << format::log2_block(stored), m = stored / n;
  flip_signs(x, stored, signs);
  for (int r = 0; r < m; r++) fwht(x + r * n, n);
  if (m > 1) mix_blocks(x, m, n, false);
}

// format::hadamard_inverse.
HWY_INLINE void hadamard_inverse(float* x, int stored) {
  const int n = 1 << format::log2_block(stored), m = stored / n;
  if (m > 1) mix_blocks(x, m, n, true);
  for (int r = 0; r < m; r++) fwht(x + r * n, n);
}

// format::dense_apply with the matrix's rows; the transposed product goes through the scalar code (once per
// output row).
HWY_INLINE void dense_forward(const float* matrix, const float* HWY_RESTRICT x, float* HWY_RESTRICT y,
                              int stored) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  alignas(64) float products[format::kMaxVectorDim];
  for (int r = 0; r < stored; r++) {
    for (int c = 0; c < stored; c += lanes)
      hn::Store(hn::Mul(hn::LoadU(d, matrix + r * stored + c), hn::Load(d, x + c)), d, products + c);
    y[r] = tree_sum(products, stored);
  }
}

HWY_INLINE void multiply(float* x, int stored, float factor) {
  const F d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int p = 0; p < stored; p += lanes)
    hn::Store(hn::Mul(hn::Load(d, x + p), hn::Set(d, factor)), d, x + p);
}

void rotate(const format::VectorCoder& coder, const float* x, float* y) {
  alignas(64) float work[format::kMaxVectorDim];
  memcpy(work, x, coder.dim * sizeof(float));
  memset(work + coder.dim, 0, (coder.stored - coder.dim) * sizeof(float));
  if (coder.rotation == format::Rotation::kDense) return dense_forward(coder.dense, work, y, coder.stored);
  hadamard_forward(work, coder.stored, coder.signs);
  multiply(work, coder.stored, format::hadamard_norm(format::log2_block(coder.stored)));
  memcpy(y, work, coder.stored * sizeof(float));
}

void unrotate(const format::VectorCoder& coder, float* y, float* x) {
  if (coder.rotation == format::Rotation::kDense) return format::unrotate(coder, y, x);
  alignas(64) float work[format::kMaxVectorDim];
  const int stored = coder.stored;
  memcpy(work, y, stored * sizeof(float));
  hadamard_inverse(work, stored);
  multiply(work, stored, format::hadamard_norm(format::log2_block(stored)));
  flip_signs(work, stored, coder.signs);
  memcpy(x, work, coder.dim * sizeof(float));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
