// SPDX-License-Identifier: Apache-2.0
// Visible ranges, tree masks and ALiBi, in the compiled, the generic and the prefill kernel: against float64;
// ranges that say what causality says, to the bit; pages that nobody sees, which are not there. Included by
// attend_test.cu.
#pragma once

namespace {

// Every combination that the plan admits; long: rows enough for the prefill kernel, which has no tree masks.
void mask_kinds(CaseSpec s, bool is_long, bool quick) {
  for (int kinds = 1; kinds < 8; kinds++) {
    s.ranges = kinds & 1;
    s.tree = kinds & 2;
    s.alibi = kinds & 4;
    if (is_long && s.tree) continue;
    s.seed = 100 + kinds;
    if (is_long)
      try_prefill(s, kinds == 1 && !quick);
    else
      try_case(s, kinds == 1 || (kinds == 7 && !quick));
  }
}

// A causal range is causality, whatever kernel.
void causal_ranges(CaseSpec s, bool is_long) {
  s.long_apart = is_long;
  AttendCase causal(s);
  std::vector<float> lse, lse2;
  const std::vector<float> out = attend_once(causal, &lse);
  s.ranges = true;
  s.range_kind = 0;
  AttendCase ranged(s);
  check(same_bits(out, attend_once(ranged, &lse2)) && same_bits(lse, lse2), "%s: a causal range differs",
        name_of(s).c_str());
}

void unseen_pages(CaseSpec s, bool is_long) {
  s.long_apart = is_long;
  s.ranges = true;
  s.window = s.sinks = 0;
  for (int kind : {3, 4, 5}) {
    s.range_kind = kind;
    AttendCase c(s);
    const std::vector<float> out = attend_once(c);
    c.lose_unseen_pages();
    check(same_bits(out, attend_once(c)), "%s: pages outside ranges of kind %d are read", name_of(s).c_str(),
          kind);
  }
}

void mask_features(int key_bits, int value_bits, int dim, int value_dim, bool quick) {
  CaseSpec s;
  s.key_bits = key_bits;
  s.value_bits = value_bits;
  s.head_dim = dim;
  s.value_dim = value_dim;
  s.q_heads = 6;
  s.kv_heads = 2;
  s.sequences = {{400, 5, 5}, {quick ? 1500 : 5200, 60, 9}, {33, 33, 20}, {1, 1, 1}};
  mask_kinds(s, false, quick);
  causal_ranges(s, false);
  unseen_pages(s, false);
  s.window = 40;
  s.sinks = 5;
  s.rollback = 70;
  s.centres = true;
  s.sink_logits = true;
  s.softcap = 6;
  mask_kinds(s, false, quick);
  causal_ranges(s, false);
  s.history_only = true;
  s.softcap = 0;
  s.page_size = 32;
  mask_kinds(s, false, quick);
  if (quick) return;
  s.history_only = false;
  s.sliding = 50;  // with ranges: the layer's own
  mask_kinds(s, false, true);
}

void long_mask_features(CaseSpec s, bool quick) {
  s.sequences = {{700, 300, 300}, {500, 7, 7}, {200, 200, 200}, {900, 0, 130}, {150, 0, 200}};
  mask_kinds(s, true, quick);
  unseen_pages(s, true);
  s.sequences.pop_back();  // without ranges there are no more queries than tokens
  causal_ranges(s, true);
  s.window = 100;
  s.sinks = 5;
  s.rollback = 400;
  s.centres = true;
  s.sink_logits = true;
  mask_kinds(s, true, quick);
  causal_ranges(s, true);
  if (quick) return;
  s.softcap = 5;
  s.sliding = 64;
  mask_kinds(s, true, true);
}

void masks(bool quick) {
  const int pairs[][4] = {{4, 4, 128, 128}, {3, 3, 64, 64},    {8, 8, 256, 256}, {5, 3, 96, 96},
                          {16, 4, 64, 64},  {4, 16, 128, 128}, {2, 6, 192, 128}, {4, 4, 576, 512}};
  for (const auto& p : pairs)
    if (!quick || p[2] <= 128) mask_features(p[0], p[1], p[2], p[3], quick);
  const int long_pairs[][4] = {{4, 4, 128, 128}, {3, 2, 64, 64},   {16, 4, 64, 64},
                               {8, 16, 96, 96},  {4, 4, 256, 256}, {4, 4, 192, 128}};
  for (const auto& p : long_pairs) {
    const CaseSpec s = prefill_base(p[0], p[1], p[2], p[3]);
    if ((!quick || p[2] < 96) && (p[2] == p[3] || on_warpgroups(s))) long_mask_features(s, quick);
  }
  printf("masks: worst row %.2e\n", worst_of_all);
}

}  // namespace
