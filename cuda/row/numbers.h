// SPDX-License-Identifier: Apache-2.0
// What kernels use instead of a call's arguments: numbers in log2 units, 32-bit ranges, look-up tables of the
// layer's codes. Made once, on the host, for every kernel of a call.
#pragma once
#include <limits.h>
#include <math.h>
#include <stddef.h>

#include <algorithm>

#include "cuda/code/tables.h"
#include "cuda/device_view.h"
#include "softmax_state.h"

namespace tq {
namespace cuda {

struct RowNumbers {
  float scale_log2;         // |softmax_scale| * log2 e
  float query_sign;         // sign of softmax_scale
  float softcap_log2;       // c * log2 e, 0 = off
  float softcap_steepness;  // 2 / c: of x in log2 units, 2^(x * steepness) = e^(2 logit / c)
  int32_t sliding_window;   // tokens; INT32_MAX = all
  float query_max;          // integers of a query row: -query_max .. query_max
  int32_t page_shift;       // log2 of tiles_per_page, or -1
  CodeTables key_tables, value_tables;
};
// Where words of a table are pairs at multiples of 8 bytes, the compiler loads them as pairs of registers
// ahead of the steps: kernels of 128 registers spill then.
static_assert(offsetof(RowNumbers, key_tables) % 8 == 4 && sizeof(CodeTables) % 8 == 0,
              "tables between pairs");

// Logits are kept below 1e27 (logits.cuh): a larger cap than this changes none of them, and a smaller one
// than this leaves them all alike. In between c * log2 e and 2 / c are finite, normal floats.
constexpr float kLeastSoftcap = 1e-30f, kLargestSoftcap = 1e32f;

// Sums of `stored` products with |level| <= 127.5 stay below 2^31; the high byte of an integer is at most
// 127.
constexpr float query_limit(int stored) { return stored <= 512 ? 32512.0f : 28000.0f; }

inline RowNumbers make_row_numbers(const AttendCall& call, const DeviceLayer& layer) {
  RowNumbers n = {};
  n.scale_log2 = fabsf(call.softmax_scale) * kLog2E;
  n.query_sign = call.softmax_scale < 0 ? -1.0f : 1.0f;
  if (call.logit_softcap > 0) {
    const float cap = std::min(std::max(call.logit_softcap, kLeastSoftcap), kLargestSoftcap);
    n.softcap_log2 = cap * kLog2E;
    n.softcap_steepness = 2 / cap;
  }
  n.sliding_window = static_cast<int32_t>(
      call.sliding_window > 0 ? std::min<int64_t>(call.sliding_window, INT32_MAX) : INT32_MAX);
  n.query_max = query_limit(layer.key.layout.stored);
  n.page_shift = -1;
  for (int shift = 0; shift < 16; shift++)
    if (layer.tiles_per_page == 1 << shift) n.page_shift = shift;
  n.key_tables = code_tables(layer.key.layout, layer.key.book);
  n.value_tables = code_tables(layer.value.layout, layer.value.book);
  return n;
}

}  // namespace cuda
}  // namespace tq
