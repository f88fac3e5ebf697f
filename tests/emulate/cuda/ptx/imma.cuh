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

// Number (row, k) of the first operand, each of kPerWord numbers a register.
template <int kPerWord>
inline uint32_t first_operand(const uint8_t* all, int row, int k) {
  const int half = 4 * kPerWord;
  const Operands& lane =
      *reinterpret_cast<const Operands*>(all + emulate::kGatherBytes * (row % 8 * 4 + k % half / kPerWord));
  return lane.a[row / 8 + k / half * 2] >> (32 / kPerWord * (k % kPerWord)) & ((1u << 32 / kPerWord) - 1);
}
// A row of the first operand and a column of the second, whose 8 words hold their numbers in order.
using Line = uint32_t[8];
inline void row_of(const uint8_t* all, int row, Line& line) {
  for (int i = 0; i < 8; i++)
    line[i] = reinterpret_cast<const Operands*>(all + emulate::kGatherBytes * (row % 8 * 4 + i % 4))
                  ->a[row / 8 + i / 4 * 2];
}
inline void column_of(const uint8_t* all, int column, Line& line) {
  for (int i = 0; i < 8; i++)
    line[i] = reinterpret_cast<const Operands*>(all + emulate::kGatherBytes * (column * 4 + i % 4))->b[i / 4];
}

template <class A, class B>
inline void imma(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const uint8_t* all = emulate::gather_bytes(&mine, sizeof mine);
  const int lane = emulate::here.lane;
  Line rows[2], columns[2];
  for (int i = 0; i < 2; i++) {
    row_of(all, lane / 4 + 8 * i, rows[i]);
    column_of(all, lane % 4 * 2 + i, columns[i]);
  }
  for (int i = 0; i < 4; i++) {
    const A* row = reinterpret_cast<const A*>(rows[i / 2]);
    const B* column = reinterpret_cast<const B*>(columns[i % 2]);
    int sum = c[i];
    for (int k = 0; k < 32; k++) sum += row[k] * column[k];
    c[i] = sum;
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
