// SPDX-License-Identifier: Apache-2.0
// Matrix instructions of the prefill kernel by their definition; sums in float64, rounded once.
#pragma once
#include <stdint.h>

#include <vector>

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/imma.cuh"

namespace tq {
namespace cuda {

// The toolkit's conversion on the CPU takes its time.
inline float f16_value(uint32_t h) {
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (uint32_t i = 0; i < all.size(); i++)
      all[i] = __half2float(__ushort_as_half(static_cast<uint16_t>(i)));
    return all;
  }();
  return values[h];
}
inline float bf16_value(uint32_t h) { return __uint_as_float(h << 16); }

template <float (*kValue)(uint32_t)>
inline void hmma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const uint8_t* all = emulate::gather_bytes(&mine, sizeof mine);
  const int lane = emulate::here.lane;
  double rows[2][16], columns[2][16];
  Line line;
  const auto numbers_of = [&](double* numbers) {
    for (int i = 0; i < 8; i++)
      numbers[2 * i] = kValue(line[i] & 0xFFFFu), numbers[2 * i + 1] = kValue(line[i] >> 16);
  };
  for (int i = 0; i < 2; i++) {
    row_of(all, lane / 4 + 8 * i, line), numbers_of(rows[i]);
    column_of(all, lane % 4 * 2 + i, line), numbers_of(columns[i]);
  }
  for (int i = 0; i < 4; i++) {
    double sum = c[i];
    for (int k = 0; k < 16; k++) sum += rows[i / 2][k] * columns[i % 2][k];
    c[i] = static_cast<float>(sum);
  }
}
inline void hmma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  hmma<f16_value>(c, a, b0, b1);
}
inline void hmma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  hmma<bf16_value>(c, a, b0, b1);
}
template <bool kBf16>
inline void hmma_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  hmma<kBf16 ? bf16_value : f16_value>(c, a, b0, b1);
}
inline void imma_s8s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
  int sum[4] = {c[0], c[1], c[2], c[3]};
  imma_s8s8(sum, a, b0, b1);
  for (int i = 0; i < 4; i++) d[i] = sum[i];
}

inline uint32_t f16_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
inline uint32_t bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
inline uint32_t pack_f16(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }
inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(f16_value(a & 0xFFFFu) * f16_value(b & 0xFFFFu), f16_value(a >> 16) * f16_value(b >> 16));
}
inline uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(f16_value(a & 0xFFFFu) - f16_value(b & 0xFFFFu), f16_value(a >> 16) - f16_value(b >> 16));
}

inline void load_matrices(const void* row, uint32_t (&r)[4]) {
  const uint64_t* rows = emulate::gather(reinterpret_cast<uintptr_t>(row));
  for (int m = 0; m < 4; m++)
    r[m] = reinterpret_cast<const uint32_t*>(rows[8 * m + emulate::here.lane / 4])[emulate::here.lane % 4];
}
inline void load_matrices_transposed(const void* row, uint32_t (&r)[4]) {
  const uint64_t* rows = emulate::gather(reinterpret_cast<uintptr_t>(row));
  for (int m = 0; m < 4; m++)
    r[m] = turned([&](int at, int column) {
      return static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(rows[8 * m + at])[column]);
    });
}

inline void store_matrices(void* row, const uint32_t (&r)[4]) {
  const uint64_t* rows = emulate::gather(reinterpret_cast<uintptr_t>(row));
  for (int m = 0; m < 4; m++)
    reinterpret_cast<uint32_t*>(rows[8 * m + emulate::here.lane / 4])[emulate::here.lane % 4] = r[m];
}
template <int kMatrices>
inline void store_matrices_transposed(void* row, const uint32_t (&r)[kMatrices]) {
  const uint64_t* rows = emulate::gather(reinterpret_cast<uintptr_t>(row));
  const int g = emulate::here.lane / 4, t = emulate::here.lane % 4;
  for (int m = 0; m < kMatrices; m++)
    for (int i = 0; i < 2; i++)
      reinterpret_cast<uint16_t*>(rows[8 * m + 2 * t + i])[g] = static_cast<uint16_t>(r[m] >> 16 * i);
}

inline void bulk_copy_shared(void* target, const void* source, uint32_t bytes, uint64_t* bar) {
  bulk_copy(target, source, bytes, bar);
}

}  // namespace cuda
}  // namespace tq
