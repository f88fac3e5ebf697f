// SPDX-License-Identifier: Apache-2.0
// The integer matrix instruction m16n8k32 by its definition: which lane holds which element stands in
// cuda/ptx/imma.cuh.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

struct Operands {
  uint32_t a[4], b[2];
};

// Element (row, k) of the first operand and (k, column) of the second, each of kPerWord numbers a register.
template <int kPerWord>
inline uint32_t first_operand(const uint8_t* all, int row, int k) {
  const int half = 4 * kPerWord;
  const Operands& lane =
      *reinterpret_cast<const Operands*>(all + emulate::kGatherBytes * (row % 8 * 4 + k % half / kPerWord));
  return lane.a[row / 8 + k / half * 2] >> (32 / kPerWord * (k % kPerWord)) & ((1u << 32 / kPerWord) - 1);
}
template <int kPerWord>
inline uint32_t second_operand(const uint8_t* all, int k, int column) {
  const int half = 4 * kPerWord;
  const Operands& lane =
      *reinterpret_cast<const Operands*>(all + emulate::kGatherBytes * (column * 4 + k % half / kPerWord));
  return lane.b[k / half] >> (32 / kPerWord * (k % kPerWord)) & ((1u << 32 / kPerWord) - 1);
}

template <class A, class B>
inline void imma(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const uint8_t* all = emulate::gather_bytes(&mine, sizeof mine);
  for (int i = 0; i < 4; i++) {
    const int row = emulate::here.lane / 4 + i / 2 * 8, column = emulate::here.lane % 4 * 2 + i % 2;
    for (int k = 0; k < 32; k++)
      c[i] +=
          static_cast<A>(first_operand<4>(all, row, k)) * static_cast<B>(second_operand<4>(all, k, column));
  }
}
inline void imma_s8s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  imma<int8_t, int8_t>(c, a, b0, b1);
}
inline void imma_u8s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  imma<uint8_t, int8_t>(c, a, b0, b1);
}
inline void imma_s8u8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  imma<int8_t, uint8_t>(c, a, b0, b1);
}

// Of rows that the 8 groups of 4 lanes hold, two numbers a lane: lane 4g+t gets numbers 2t 2t+1 of column g.
inline uint32_t turned(const std::function<uint32_t(int, int)>& number) {
  const int g = emulate::here.lane / 4, t = emulate::here.lane % 4;
  return number(2 * t, g) | number(2 * t + 1, g) << 16;
}
inline uint32_t transpose_16(uint32_t row) {
  const uint64_t* all = emulate::gather(row);
  return turned([&](int r, int column) {
    return static_cast<uint32_t>(all[r * 4 + column / 2] >> (16 * (column % 2))) & 0xFFFFu;
  });
}

}  // namespace cuda
}  // namespace tq
