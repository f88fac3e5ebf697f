// SPDX-License-Identifier: Apache-2.0
// Matrix products of a warpgroup by their definition: a descriptor's address and swizzle are taken as the
// device takes them, so that what is stored elsewhere is not found. A warp computes its own 16 rows, at once.
#pragma once
#include <stdint.h>

#include <vector>

#include "cuda/ptx/hmma.cuh"

namespace tq {
namespace cuda {

constexpr uint32_t swizzled(uint32_t row, uint32_t byte) { return row * 128 + (byte ^ (row & 7) << 4); }
constexpr int kMatrixRow = 128;
constexpr bool kWarpgroups = true;
inline uint8_t* launch_shared_matrices() { return emulate::launch_shared(); }

inline uint64_t matrix_descriptor(const void* matrix) {
  const uint64_t at = static_cast<uint64_t>(static_cast<const uint8_t*>(matrix) - emulate::launch_shared());
  must_hold(at < emulate::kSharedBytes && at % 1024 == 0, "a matrix is not at a multiple of 1,024 bytes");
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | at >> 4;
}
inline void wgmma_begin() {}
inline void wgmma_commit() {}
inline void publish_to_products() {}
template <int kRegisters>
inline void give_registers() {}
template <int kRegisters>
inline void take_registers() {}

// Every half as float.
inline const float* halves_as_floats() {
  static const std::vector<float> table = [] {
    std::vector<float> all(65536);
    for (uint32_t i = 0; i < 65536; i++) all[i] = f16_value(i);
    return all;
  }();
  return table.data();
}
// Number (row, k) of a matrix, or k down its rows: the swizzle is of the whole address' bits.
template <bool kTurned = false>
inline float matrix_number(uint64_t descriptor, int row, int k) {
  if (kTurned) std::swap(row, k);
  must_hold(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "another form of matrix");
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4,
                 stride = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4,
                 plain = start + static_cast<uint32_t>(row / 8) * stride + row % 8 * 128 + 2 * k,
                 at = plain ^ (plain >> 7 & 7) << 4;
  must_hold(at + 2 <= emulate::kSharedBytes, "a matrix leaves shared memory");
  return halves_as_floats()[*reinterpret_cast<const uint16_t*>(emulate::launch_shared() + at)];
}

// a(row, k): the first operand. Sums in float64 of 16 products, rounded once.
template <int kColumns, bool kAdd, class First>
inline void warpgroup_product(float (&d)[kColumns / 8][4], uint64_t b, const First& a) {
  const int g = emulate::here.lane / 4, t = emulate::here.lane % 4;
  float first[2][16];
  for (int h = 0; h < 2; h++)
    for (int k = 0; k < 16; k++) first[h][k] = a(g + 8 * h, k);
  for (int n = 0; n < kColumns / 8; n++)
    for (int i = 0; i < 2; i++) {
      float column[16];
      for (int k = 0; k < 16; k++) column[k] = matrix_number(b, 8 * n + 2 * t + i, k);
      for (int h = 0; h < 2; h++) {
        double sum = kAdd ? d[n][2 * h + i] : 0;
        for (int k = 0; k < 16; k++) sum += static_cast<double>(first[h][k]) * column[k];
        d[n][2 * h + i] = static_cast<float>(sum);
      }
    }
}
template <int kColumns, bool kAdd, bool kTurned = false>
inline void wgmma_shared(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b) {
  const int warp_row = emulate::here.warp % 4 * 16;
  warpgroup_product<kColumns, kAdd>(
      d, b, [&](int row, int k) { return matrix_number<kTurned>(a, warp_row + row, k); });
}
template <int kColumns, bool kAdd>
inline void wgmma_registers(float (&d)[kColumns / 8][4], const uint32_t (&a)[4], uint64_t b) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {0, 0}};
  const uint8_t* all = emulate::gather_bytes(&mine, sizeof mine);
  warpgroup_product<kColumns, kAdd>(
      d, b, [&](int row, int k) { return halves_as_floats()[first_operand<2>(all, row, k)]; });
}
template <int kPending>
inline void wgmma_wait_operands() {}
template <int kPending, int kBlocks>
inline void wgmma_wait(float (&)[kBlocks][4]) {}

}  // namespace cuda
}  // namespace tq
