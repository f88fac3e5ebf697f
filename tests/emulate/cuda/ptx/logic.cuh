// SPDX-License-Identifier: Apache-2.0
// Any function of three words bit by bit.
#pragma once
#include <stdint.h>

namespace tq {
namespace cuda {

template <int kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; i++)
    if (kTable >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}

}  // namespace cuda
}  // namespace tq
