// SPDX-License-Identifier: Apache-2.0
// Launches of few blocks by clusters (cuda/attend/few.cuh) against the kernel of all others: the same bits of
// every row and LSE, whatever the plan, and also for plans that they are not chosen for, which a graph may
// meet. Against float64 for some.
#pragma once

// few: sequences that get clusters, 0 = all of them.
void try_few(CaseSpec spec, const char* what, bool against_float64, int few = 0) {
  try {
    spec.few = 0;
    AttendCase usual(spec);
    spec.few = few > 0 ? few : static_cast<int>(spec.sequences.size());
    AttendCase clusters(spec);
    for (AttendCase* c : {&usual, &clusters}) {
      c->poison_output();
      c->run();
      GPU_MUST(cudaDeviceSynchronize());
    }
    const std::vector<float> a = usual.output(), b = clusters.output(), la = usual.lse(), lb = clusters.lse();
    size_t differ = 0, first = 0;
    for (size_t i = 0; i < a.size(); i++)
      if (memcmp(&a[i], &b[i], 4) != 0 && differ++ == 0) first = i;
    check(differ == 0 && same_bits(la, lb),
          "few blocks, %s, length %d x%zu, %d/%d heads, bits %d/%d: %zu of %zu numbers differ, first %zu: %g "
          "and %g",
          what, spec.sequences[0].length, spec.sequences.size(), spec.q_heads, spec.kv_heads, spec.key_bits,
          spec.value_bits, differ, a.size(), first, a.empty() ? 0.0 : a[first], b.empty() ? 0.0 : b[first]);
    for (int again = 0; again < 3; again++) {
      clusters.run();
      GPU_MUST(cudaDeviceSynchronize());
      check(same_bits(b, clusters.output()), "few blocks, %s: another run differs", what);
    }
    if (!against_float64) return;
    const Comparison r = clusters.compare_all();
    check(r.worst <= 1e-3 && r.not_finite == 0 && r.wrong_empty == 0 && r.wrong_nan == 0,
          "few blocks, %s, length %d: worst %.2e", what, spec.sequences[0].length, r.worst);
  } catch (const tq::Error& error) {
    check(false, "few blocks, %s: %s", what, error.what());
  }
}

// Of the first width pairs that have such a kernel; histories of at most so many tokens.
void few(int pairs, int longest) {
  for (int at = 0; at < pairs; at++) {
    CaseSpec base;
    base.key_bits = base.value_bits = 4 - at;
    for (int length : {1,    31,   33,   64,   65,   200,  256,  257,  1000,  1024,  1025,
                       1500, 2048, 2049, 4096, 4100, 5000, 8192, 8193, 12345, 16000, 16384}) {
      if (length > longest) continue;
      CaseSpec s = base;
      s.sequences = {{length, 1, 1}};
      try_few(s, "one", length <= 2048);
      s.q_heads = 16;  // two sets
      try_few(s, "8 rows", length == 1500);
    }
    const int medium = longest < 5000 ? longest : 5000;
    CaseSpec s = base;
    s.sequences = {{medium, 1, 1}, {100, 1, 1}, {1, 1, 1}, {medium / 2, 1, 1}, {1030, 1, 1}};
    try_few(s, "several", true);
    s.q_heads = 2;
    s.page_size = 32;
    try_few(s, "one row", false);
    s = base;
    s.sequences = {{medium, 2, 2}};
    try_few(s, "drafts", true);
    s.sequences = {{16386 < longest ? 16386 : longest, 4, 4}, {20, 3, 3}};
    s.q_heads = 2;
    try_few(s, "drafts across a border of splits", false, 2);
    s.history_only = true;
    try_few(s, "history only", false);
    s = base;
    s.sequences = {{medium, 1, 1}, {513, 1, 1}};
    s.centres = s.sink_logits = true;
    s.pad = 8;
    try_few(s, "centres, sink logits", true);
    s.softcap = 5;
    try_few(s, "soft-cap", true);
    s = base;
    s.sequences = {{medium, 1, 1}, {700, 1, 1}};
    for (int sliding : {1, 128, 700, 3000}) {
      s.sliding = sliding;
      try_few(s, "sliding", true);
    }
    s.sliding = 0;
    s.value_range = 60;
    try_few(s, "value scales of many magnitudes", false);
    s.value_range = 0;
    for (float spread : {90.0f, 1e5f, 1e7f}) {
      s.spread = spread;
      try_few(s, "large logits", false);
    }
    s.spread = 1;
    s.scale = -0.3f;
    try_few(s, "negative scale", false);
    s.scale = 0;
    s.odd_queries = {{0, 1, NAN}, {1, 3, INFINITY}, {1, 0, 6e4f}};
    try_few(s, "odd queries", false);
    s = base;  // plans that it is not chosen for
    s.sequences = {{20000 < longest ? 20000 : longest, 1, 1}, {300, 1, 1}, {64, 5, 5}};
    try_few(s, "a long one by a cluster a head", false, 1);
    try_few(s, "a long one", false, 3);
  }
}
