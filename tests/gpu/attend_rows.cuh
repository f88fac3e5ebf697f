// SPDX-License-Identifier: Apache-2.0
// A row's bits are its own: they follow from its query, its position and the tokens it sees. Drafts verified
// at once are single steps, chunks of a prompt the whole of it, with a switch for any number of rows.
// Included by attend_test.cu.
#pragma once
#include "attend_prefill.cuh"

namespace {

// The rows of queries first .. first + count - 1 of a case of one sequence.
struct RowsOf {
  std::vector<float> out, lse;
  RowsOf(const std::vector<float>& all, const std::vector<float>& all_lse, const CaseSpec& s, int first,
         int count) {
    const size_t row = static_cast<size_t>(s.q_heads), width = row * static_cast<size_t>(s.value_dim);
    out.assign(all.begin() + static_cast<ptrdiff_t>(first * width),
               all.begin() + static_cast<ptrdiff_t>((first + count) * width));
    lse.assign(all_lse.begin() + static_cast<ptrdiff_t>(first * row),
               all_lse.begin() + static_cast<ptrdiff_t>((first + count) * row));
  }
  bool operator==(const RowsOf& other) const {
    return same_bits(out, other.out) && same_bits(lse, other.lse);
  }
};

// One plan with `count` queries at the end of `history` tokens, against plans of `chunk` queries each.
void same_in_chunks(CaseSpec s, int history, int count, int chunk) {
  const auto rows_of = [&](int length, int queries, int first, int wanted) {
    s.sequences = {{length, queries, queries}};
    AttendCase c(s);
    std::vector<float> lse;
    const std::vector<float> out = attend_once(c, &lse);
    return RowsOf(out, lse, s, first, wanted);
  };
  const RowsOf all = rows_of(history + count, count, 0, count);
  int different = 0;
  for (int first = 0; first < count; first += chunk) {
    const int now = std::min(chunk, count - first);
    const RowsOf part = rows_of(history + first + now, now, 0, now),
                 same = RowsOf(all.out, all.lse, s, first, now);
    different += !(part == same);
  }
  s.sequences = {{history + count, count, count}};
  check(different == 0, "%s rollback %d%s: %d of the chunks of %d queries differ from the whole",
        name_of(s).c_str(), s.rollback, s.batch_invariant ? " batch-invariant" : "", different, chunk);
}

CaseSpec rows_base(int key_bits, int value_bits, int dim, int value_dim, int group) {
  CaseSpec s;
  s.key_bits = key_bits;
  s.value_bits = value_bits;
  s.head_dim = dim;
  s.value_dim = value_dim;
  s.kv_heads = 1;
  s.q_heads = group;
  return s;
}

// Windows, sinks, masks and caps; the border of two splits, and of two sizes of splits (16,384 tokens).
void drafts(int key_bits, int value_bits, int dim, int value_dim, bool quick) {
  for (int group : {1, 2, 5, 16}) {
    CaseSpec s = rows_base(key_bits, value_bits, dim, value_dim, group);
    for (int window : {0, 1, 32, 128}) {
      if (quick && window == 1) continue;
      s.window = window;
      s.rollback = window ? 8 : 0;
      s.sinks = group == 2 ? 5 : 0;
      s.centres = group == 5;
      s.seed++;
      same_in_chunks(s, 300, 8, 1);
      if (group == 5 || window == 32) same_in_chunks(s, 1020, 8, 1);
    }
    s.window = 32;
    s.sliding = 300;
    same_in_chunks(s, 1100, 8, 1);
    s.sliding = 0;
    s.softcap = 5;
    same_in_chunks(s, 250, 8, 3);
    s.softcap = 0;
    s.sink_logits = true;
    s.history_only = true;
    same_in_chunks(s, 250, 8, 8);
  }
  CaseSpec s = rows_base(key_bits, value_bits, dim, value_dim, 2);
  s.window = 40;
  s.rollback = 8;
  s.spread = 6.0f;  // maxima that rise late
  same_in_chunks(s, 16380, 8, 1);
  s.sliding = 900;
  same_in_chunks(s, 16380, 8, 4);
}

// Many rows: by the prefill kernel in chunks that are long themselves; by the other one with the switch, in
// chunks of any size.
void chunks(int key_bits, int value_bits, int dim) {
  CaseSpec s = rows_base(key_bits, value_bits, dim, dim, 4);
  s.window = 50;
  s.rollback = 400;
  s.sinks = 3;
  s.centres = true;
  for (int range : {0, 30}) {  // of the value scales
    s.value_range = range;
    s.long_apart = true;
    for (int sliding : {0, 100}) {
      s.sliding = sliding;
      same_in_chunks(s, 130, 320, 64);
      same_in_chunks(s, 77, 240, 80);
    }
    s.sliding = 0;
    s.long_apart = false;  // no prefill kernel: long rows take their history in one split
    same_in_chunks(s, 1500, 192, 64);
    s.batch_invariant = true;
    same_in_chunks(s, 1500, 100, 1);
    same_in_chunks(s, 900, 160, 33);
    s.batch_invariant = false;
  }
}

void rows(bool quick) {
  const int pairs[][4] = {{4, 4, 128, 128}, {2, 3, 64, 64},    {16, 4, 80, 80},  {5, 6, 96, 96},
                          {4, 4, 256, 256}, {3, 16, 192, 128}, {8, 8, 128, 128}, {4, 4, 576, 512}};
  int left = quick ? 3 : 100;
  for (const auto& p : pairs) {
    if (left-- == 0) break;
    const int64_t failed = gpu_test::tally().failed;
    drafts(p[0], p[1], p[2], p[3], quick);
    if (p[2] == p[3] && p[2] <= 256) chunks(p[0], p[1], p[2]);
    printf("rows d %d/%d bits %d/%d%s\n", p[2], p[3], p[0], p[1],
           gpu_test::tally().failed > failed ? "  FAILED" : "");
    fflush(stdout);
  }
}

}  // namespace
