// SPDX-License-Identifier: Apache-2.0
// What stands at the edge of arithmetic, in all three kernels (compiled, generic, prefill): queries that are
// not finite, sink logits that are not, soft-caps of any size, plans whose tokens are not appended yet.
// Included by attend_test.cu.
#pragma once
#include "attend_prefill.cuh"

namespace {

// A case as it is, and with blocks so long that the prefill kernel takes them.
void try_kernels(CaseSpec s) {
  try_case(s, false);
  s.sequences = {{420, 300, 300}, {90, 40, 40}};
  try_prefill(s);
}

CaseSpec edge_base(int key_bits, int value_bits, int dim) {
  CaseSpec s = prefill_base(key_bits, value_bits, dim);
  s.q_heads = 8;
  s.sequences = {{300, 3, 3}, {40, 1, 1}, {1200, 2, 2}};
  return s;
}

// Rows beside one another, in a set of 4 and in a warp's 16; NaN and infinity of either sign. All other rows
// keep their bits.
void queries_not_finite(const CaseSpec& base) {
  CaseSpec s = base, clean = base;
  s.odd_queries = {{0, 0, NAN}, {1, 3, INFINITY}, {1, 4, -INFINITY}, {2, 7, NAN}, {5, 1, NAN}};
  for (DataType out : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    s.out = out;
    try_kernels(s);
  }
  s.out = DataType::kF32;
  AttendCase odd(s), usual(clean);
  std::vector<float> odd_lse, usual_lse;
  const std::vector<float> a = attend_once(odd, &odd_lse), b = attend_once(usual, &usual_lse);
  int64_t other_bits = 0;
  for (size_t i = 0; i < odd_lse.size(); i++)
    if (!isnan(odd_lse[i]))
      other_bits += odd_lse[i] != usual_lse[i] ||
                    memcmp(&a[i * s.value_dim], &b[i * s.value_dim], s.value_dim * sizeof(float)) != 0;
  check(other_bits == 0, "%s: %lld rows differ beside rows that are not finite", name_of(s).c_str(),
        static_cast<long long>(other_bits));
}

// Of rows with tokens, and of rows without: a sliding window or a history of nothing leaves them none.
void sinks_of_any_size(CaseSpec s) {
  s.sink_logits = true;
  s.sink_values = {-INFINITY, INFINITY, 1.0f, -3e38f, 3e38f, 60.0f, -60.0f, 0.0f};
  try_kernels(s);
  s.history_only = true;
  s.sequences = {{3, 3, 3}, {40, 1, 1}};
  try_case(s, false);
  s.sequences = {{300, 300, 300}};
  try_prefill(s);
}

// From caps that leave all logits alike to caps that change none; between them x and c tanh(x / c) differ in
// the last places only, which a difference of large numbers would lose.
void caps_of_any_size(CaseSpec s) {
  for (float cap : {1e-45f, 1e-20f, 0.01f, 3.0f, 50.0f, 1e4f, 1e6f, 1e12f, 1e30f, 3e38f}) {
    s.softcap = cap;
    s.seed++;
    try_kernels(s);
  }
}

// history_only between plan and append: new tokens are nowhere, neither as codes nor as raw copies.
void before_append(CaseSpec s) {
  s.history_only = s.unappended = true;
  for (int window : {0, 24}) {
    s.window = window;
    s.rollback = window / 3;
    for (int sinks : {0, 6}) {
      s.sinks = sinks;
      s.sequences = {{300, 5, 5}, {40, 37, 9}, {30, 30, 3}, {64, 1, 2}};
      try_case(s, false);
      s.sequences = {{420, 300, 300}, {290, 288, 288}, {260, 260, 260}};
      try_prefill(s);
    }
  }
}

void edges(bool quick) {
  const int pairs[][3] = {{4, 4, 128}, {5, 6, 64}, {16, 16, 64}, {4, 16, 128}, {16, 3, 80}, {2, 2, 256}};
  int left = quick ? 3 : 100;
  for (const auto& p : pairs) {
    if (left-- == 0) break;
    const CaseSpec base = edge_base(p[0], p[1], p[2]);
    queries_not_finite(base);
    CaseSpec exact = base;
    exact.window = 20;
    exact.sinks = 3;
    exact.centres = true;
    exact.io = DataType::kF32;
    queries_not_finite(exact);
    sinks_of_any_size(base);
    caps_of_any_size(base);
    before_append(base);
  }
}

}  // namespace
