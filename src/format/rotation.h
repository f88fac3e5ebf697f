// SPDX-License-Identifier: Apache-2.0
// The rotation before coding (FORMAT.md section 2): sign bits, Walsh-Hadamard transform with a small
// orthogonal factor, dense matrices, and the summation tree. Scalar definition; the order of every float
// operation is part of the format.
//
// Signs come before the transform: after it, constant inputs would concentrate on one coordinate (relative
// error 2.76 instead of 0.29).
#pragma once
#include "format/tile_layout.h"

namespace tq {
namespace format {

enum class Rotation : int32_t { kHadamard = 1, kDense = 2 };

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

TQ_HD uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Start of the random stream of one (layer, kv head, kind).
TQ_HD uint64_t stream_base(uint64_t seed, int layer, int kv_head, Kind kind) {
  uint64_t z = mix64(seed + kGolden * (static_cast<uint64_t>(layer) + 1));
  z = mix64(z + kGolden * (static_cast<uint64_t>(kv_head) + 1));
  return mix64(z + kGolden * (static_cast<uint64_t>(kind) + 1));
}
TQ_HD uint64_t stream_word(uint64_t base, uint64_t index) { return mix64(base + kGolden * (index + 1)); }

constexpr int sign_words(int stored) { return (stored + 63) / 64; }  // 64-bit words that hold the signs
TQ_HD bool sign_bit(const uint64_t* signs, int i) { return signs[i / 64] >> (i % 64) & 1u; }

// 2^(-k/2), rounded to float.
TQ_HD float hadamard_norm(int log2n) {
  return log2n % 2 ? mul_rn(exp2_int(-(log2n + 1) / 2), 1.41421356237309504880f) : exp2_int(-log2n / 2);
}

constexpr int kMaxOddFactor = 9;

// Row r, column c of the orthonormal DCT-II of size m, as float bits; m in {3, 5, 7, 9}. tests/unit compares
// with the formula.
TQ_HD float dct_entry(int m, int r, int c) {
  // clang-format off
  constexpr uint32_t k3[] = {
      0x3F13CD3A, 0x3F13CD3A, 0x3F13CD3A,
      0x3F3504F3, 0x00000000, 0xBF3504F3,
      0x3ED105EC, 0xBF5105EC, 0x3ED105EC};
  constexpr uint32_t k5[] = {
      0x3EE4F92E, 0x3EE4F92E, 0x3EE4F92E, 0x3EE4F92E, 0x3EE4F92E,
      0x3F19FBF7, 0x3EBE55C2, 0x00000000, 0xBEBE55C2, 0xBF19FBF7,
      0x3F02FCA0, 0xBE48214B, 0xBF21E89B, 0xBE48214B, 0x3F02FCA0,
      0x3EBE55C2, 0xBF19FBF7, 0x00000000, 0x3F19FBF7, 0xBEBE55C2,
      0x3E48214B, 0xBF02FCA0, 0x3F21E89B, 0xBF02FCA0, 0x3E48214B};
  constexpr uint32_t k7[] = {
      0x3EC1848F, 0x3EC1848F, 0x3EC1848F, 0x3EC1848F, 0x3EC1848F, 0x3EC1848F, 0x3EC1848F,
      0x3F05682E, 0x3ED5F7D7, 0x3E6D7C99, 0x00000000, 0xBE6D7C99, 0xBED5F7D7, 0xBF05682E,
      0x3EF692B8, 0x3DF39818, 0xBEAAA247, 0xBF08D677, 0xBEAAA247, 0x3DF39818, 0x3EF692B8,
      0x3ED5F7D7, 0xBE6D7C99, 0xBF05682E, 0x00000000, 0x3F05682E, 0x3E6D7C99, 0xBED5F7D7,
      0x3EAAA247, 0xBEF692B8, 0xBDF39818, 0x3F08D677, 0xBDF39818, 0xBEF692B8, 0x3EAAA247,
      0x3E6D7C99, 0xBF05682E, 0x3ED5F7D7, 0x00000000, 0xBED5F7D7, 0x3F05682E, 0xBE6D7C99,
      0x3DF39818, 0xBEAAA247, 0x3EF692B8, 0xBF08D677, 0x3EF692B8, 0xBEAAA247, 0x3DF39818};
  constexpr uint32_t k9[] = {
      0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB, 0x3EAAAAAB,
      0x3EEDB13C, 0x3ED105EC, 0x3E9B2485, 0x3E251970, 0x00000000, 0xBE251970, 0xBE9B2485, 0xBED105EC, 0xBEEDB13C,
      0x3EE2CDAA, 0x3E715BEF, 0xBDA7A573, 0xBEB8E44E, 0xBEF15BEF, 0xBEB8E44E, 0xBDA7A573, 0x3E715BEF, 0x3EE2CDAA,
      0x3ED105EC, 0x00000000, 0xBED105EC, 0xBED105EC, 0x00000000, 0x3ED105EC, 0x3ED105EC, 0x00000000, 0xBED105EC,
      0x3EB8E44E, 0xBE715BEF, 0xBEE2CDAA, 0x3DA7A573, 0x3EF15BEF, 0x3DA7A573, 0xBEE2CDAA, 0xBE715BEF, 0x3EB8E44E,
      0x3E9B2485, 0xBED105EC, 0xBE251970, 0x3EEDB13C, 0x00000000, 0xBEEDB13C, 0x3E251970, 0x3ED105EC, 0xBE9B2485,
      0x3E715BEF, 0xBEF15BEF, 0x3E715BEF, 0x3E715BEF, 0xBEF15BEF, 0x3E715BEF, 0x3E715BEF, 0xBEF15BEF, 0x3E715BEF,
      0x3E251970, 0xBED105EC, 0x3EEDB13C, 0xBE9B2485, 0x00000000, 0x3E9B2485, 0xBEEDB13C, 0x3ED105EC, 0xBE251970,
      0x3DA7A573, 0xBE715BEF, 0x3EB8E44E, 0xBEE2CDAA, 0x3EF15BEF, 0xBEE2CDAA, 0x3EB8E44E, 0xBE715BEF, 0x3DA7A573};
  // clang-format on
  const int i = r * m + c;
  return bits_float(m == 3 ? k3[i] : m == 5 ? k5[i] : m == 7 ? k7[i] : k9[i]);
}

// Unnormalised transform of n = 2^k values in place.
TQ_HD void fwht(float* x, int n) {
  for (int h = 1; h < n; h *= 2)
    for (int i = 0; i < n; i += 2 * h)
      for (int j = i; j < i + h; j++) {
        const float a = x[j], b = x[j + h];
        x[j] = add_rn(a, b);
        x[j + h] = sub_rn(a, b);
      }
}

// y_r = sum_c O[r][c] x_c across the m blocks of n values; transposed: O[c][r].
TQ_HD void mix_blocks(float* x, int m, int n, bool transposed) {
  for (int p = 0; p < n; p++) {
    float in[kMaxOddFactor];
    for (int c = 0; c < m; c++) in[c] = x[c * n + p];
    for (int r = 0; r < m; r++) {
      float acc = mul_rn(transposed ? dct_entry(m, 0, r) : dct_entry(m, r, 0), in[0]);
      for (int c = 1; c < m; c++)
        acc = add_rn(acc, mul_rn(transposed ? dct_entry(m, c, r) : dct_entry(m, r, c), in[c]));
      x[r * n + p] = acc;
    }
  }
}

// Tree sum of stored = m * 2^k values; destroys v.
template <typename T>
TQ_HD T tree_sum(T* v, int stored) {
  const int n = 1 << log2_block(stored), m = stored / n;
  for (int r = 1; r < m; r++)
    for (int p = 0; p < n; p++) v[p] = v[p] + v[r * n + p];
  for (int h = n / 2; h >= 1; h /= 2)
    for (int p = 0; p < h; p++) v[p] = v[p] + v[p + h];
  return v[0];
}

// Signs and transform, without normalisation; x has `stored` values. forward() after inverse() multiplies by
// 2^k.
TQ_HD void hadamard_forward(float* x, int stored, const uint64_t* signs) {
  const int n = 1 << log2_block(stored), m = stored / n;
  for (int i = 0; i < stored; i++)
    if (sign_bit(signs, i)) x[i] = -x[i];
  for (int r = 0; r < m; r++) fwht(x + r * n, n);
  if (m > 1) mix_blocks(x, m, n, false);
}
// Transform back, without the final norm and signs.
TQ_HD void hadamard_inverse(float* x, int stored) {
  const int n = 1 << log2_block(stored), m = stored / n;
  if (m > 1) mix_blocks(x, m, n, true);
  for (int r = 0; r < m; r++) fwht(x + r * n, n);
}

// y = R x (or R^T x), each entry a tree sum. y and x may not overlap.
TQ_HD void dense_apply(const float* matrix, const float* x, float* y, int stored, bool transposed) {
  for (int r = 0; r < stored; r++) {
    float products[kMaxVectorDim];
    for (int c = 0; c < stored; c++)
      products[c] = mul_rn(transposed ? matrix[c * stored + r] : matrix[r * stored + c], x[c]);
    y[r] = tree_sum(products, stored);
  }
}

// ---- dense matrices (host) ----

// Natural logarithm of q in (0, 1) by the series of FORMAT.md section 2.3: no library function, the same bits
// everywhere.
inline double series_log(double q) {
  int p;
  double t = frexp(q, &p);  // exact: t in [1/2, 1)
  if (t < 0.70710678118654752) {
    t = 2 * t;
    p = p - 1;
  }
  const double s = (t - 1) / (t + 1), s2 = s * s;
  double r = 1.0 / 25;
  for (int c = 23; c >= 1; c -= 2) {
    const double term = r * s2;
    r = term + 1.0 / c;
  }
  const double whole = p * 0.693147180559945309, part = (2 * s) * r;
  return whole + part;
}

inline double dot64(const double* a, const double* b, double* scratch, int n) {
  for (int i = 0; i < n; i++) scratch[i] = a[i] * b[i];
  return tree_sum(scratch, n);
}

// The normal numbers of a stream, in order (FORMAT.md section 2.3).
class NormalStream {
 public:
  explicit NormalStream(uint64_t base) : base_(base) {}
  double next() {
    if (has_second_) {
      has_second_ = false;
      return second_;
    }
    for (;;) {
      const double u1 = uniform(), u2 = uniform();
      const double u1u1 = u1 * u1, u2u2 = u2 * u2, q = u1u1 + u2u2;
      if (q >= 1 || q == 0) continue;
      const double f = sqrt(-2 * series_log(q) / q);
      second_ = u2 * f;
      has_second_ = true;
      return u1 * f;
    }
  }

 private:
  double uniform() {
    return static_cast<double>(stream_word(base_, word_++) >> 11) * (1.0 / 9007199254740992.0) * 2 - 1;
  }

  uint64_t base_, word_ = 0;
  double second_ = 0;
  bool has_second_ = false;
};

// Fills matrix [D][D] with the orthonormal matrix of the stream. work: D * D + D doubles.
inline void dense_matrix(uint64_t base, int stored, float* matrix, double* work) {
  double* a = work;
  double* scratch = work + static_cast<int64_t>(stored) * stored;
  const int64_t total = static_cast<int64_t>(stored) * stored;
  NormalStream normals(base);
  for (int64_t i = 0; i < total; i++) a[i] = normals.next();
  for (int i = 0; i < stored; i++) {
    double* row = a + static_cast<int64_t>(i) * stored;
    for (int pass = 0; pass < 2; pass++)  // a second pass restores orthogonality to rounding level
      for (int j = 0; j < i; j++) {
        const double* other = a + static_cast<int64_t>(j) * stored;
        const double c = dot64(row, other, scratch, stored);
        for (int l = 0; l < stored; l++) {
          const double step = c * other[l];
          row[l] = row[l] - step;
        }
      }
    const double length = sqrt(dot64(row, row, scratch, stored));
    for (int l = 0; l < stored; l++) row[l] = row[l] / length;
  }
  for (int64_t i = 0; i < total; i++) matrix[i] = static_cast<float>(a[i]);
}

}  // namespace format
}  // namespace tq
