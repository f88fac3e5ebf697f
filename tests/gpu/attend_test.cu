// SPDX-License-Identifier: Apache-2.0
// Attention on codes against float64 over the same decoded codes, and its promises: the same bits for any
// batch, CTA count, worker count and run; no influence of unwritten memory; graphs.
//
// Tolerance: relative L2 of a row <= 1e-3 (the gate of the design). Expected: query and weights carry 16 bits
// (2^-16 relative to the row's largest coordinate, about 3e-5 of the spread of the logits), products and sums
// are exact. A row's error grows with the absolute error of its logits, so cases with a large spread are
// allowed 6e-5 of it.
#include "attend_case.cuh"

namespace {

using namespace gpu_test;

constexpr double kGate = 1e-3, kLseGate = 2e-3;
double worst_of_all = 0;

std::string name_of(const CaseSpec& s) {
  char text[256];
  snprintf(text, sizeof text,
           "d %d/%d bits %d/%d heads %d/%d page %d win %d sink %d len %d x%zu q %d sliding %lld cap %g hist "
           "%d masks "
           "%d",
           s.head_dim, s.value_dim, s.key_bits, s.value_bits, s.q_heads, s.kv_heads, s.page_size, s.window,
           s.sinks, s.sequences[0].length, s.sequences.size(), s.sequences[0].queries,
           static_cast<long long>(s.sliding), s.softcap, s.history_only, s.ranges + 2 * s.tree + 4 * s.alibi);
  return text;
}

// Numbers that are finite, zero, infinite or NaN where they should be.
bool right_kinds(const Comparison& r) { return r.not_finite == 0 && r.wrong_empty == 0 && r.wrong_nan == 0; }
std::string kinds(const Comparison& r) {
  char text[120];
  snprintf(text, sizeof text, "%lld not finite, %lld wrong empty, %lld not NaN",
           static_cast<long long>(r.not_finite), static_cast<long long>(r.wrong_empty),
           static_cast<long long>(r.wrong_nan));
  return text;
}

// Standard deviation of the logits, times sqrt(head_dim): what the query's rounding is relative to. Codes are
// uniform, so the levels' root mean square counts (the fill takes it for 60; at 2 bits it is 94).
double spread_of(const CaseSpec& spec) {
  double levels = 1;
  if (spec.key_bits != tq::format::kRawBits) {
    const tq::format::Codebook book = tq::format::builtin_codebook(spec.head_dim, spec.code(spec.key_bits));
    double square = 0;
    const int codes = 1 << book.bits;
    for (int c = 0; c < codes; c++)
      square += pow(tq::format::code_level(book, static_cast<uint32_t>(c)), 2) / codes;
    levels = std::max(1.0, sqrt(square) / 60);
  }
  return fabs(spec.scale != 0 ? spec.scale : 1 / sqrt(spec.head_dim)) * sqrt(spec.head_dim) * spec.spread *
         levels;
}

std::vector<float> attend_once(AttendCase& c, std::vector<float>* lse = nullptr) {
  c.poison_output();
  c.run();
  GPU_MUST(cudaDeviceSynchronize());
  if (lse) *lse = c.lse();
  return c.output();
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

// One case: values, then a second run, another CTA count and other workers.
void try_case(const CaseSpec& spec, bool variants = true) {
  const std::string name = name_of(spec);
  try {
    AttendCase c(spec);
    std::vector<float> lse, lse2;
    const std::vector<float> out = attend_once(c, &lse);
    const Comparison r = c.compare_all();
    worst_of_all = std::max(worst_of_all, r.worst);
    // 16-bit outputs carry their own rounding: half of 2^-10 or 2^-7 relative.
    const double spread = spread_of(spec);
    const double gate = std::max(kGate, 6e-5 * spread) + (spec.out == DataType::kF32   ? 0.0
                                                          : spec.out == DataType::kF16 ? 5e-4
                                                                                       : 4e-3);
    check(r.worst <= gate && right_kinds(r), "%s: worst %.2e total %.2e, %s", name.c_str(), r.worst, r.total,
          kinds(r).c_str());
    check(r.lse <= std::max(kLseGate, 2e-4 * spread), "%s: lse off by %.2e", name.c_str(), r.lse);
    if (!variants) return;
    for (int i = 0; i < 3; i++)
      check(same_bits(out, attend_once(c, &lse2)) && same_bits(lse, lse2), "%s: run %d differs", name.c_str(),
            i + 2);
    CaseSpec other = spec;
    other.ctas = 7;
    AttendCase few(other);
    check(same_bits(out, attend_once(few, &lse2)) && same_bits(lse, lse2), "%s: 7 CTAs differ", name.c_str());
    other.ctas = 1;
    AttendCase single(other);
    check(same_bits(out, attend_once(single)), "%s: 1 CTA differs", name.c_str());
    other = spec;
    other.tuning = {};
    other.tuning.workers = spec.head_dim > 256 ? 1 : 3;
    other.tuning.stages = spec.head_dim > 128 ? 1 : 2;
    AttendCase workers(other);
    check(same_bits(out, attend_once(workers)), "%s: 3 workers differ", name.c_str());
  } catch (const tq::Error& error) {
    check(false, "%s: %s", name.c_str(), error.what());
  }
}

// Rows of a sequence alone and among others: the same bits. Lengths are such that CTA borders fall anywhere.
void batch_composition(CaseSpec spec) {
  const std::vector<CaseSequence> all = {{1500, 1, 1}, {31, 1, 1},  {9000, 1, 1}, {64, 2, 2},
                                         {4097, 1, 1}, {700, 3, 3}, {12000, 1, 1}};
  // Contents are drawn by slot: keep the sequence of interest in slot 0.
  for (size_t target = 0; target < all.size(); target++) {
    spec.sequences = {all[target]};
    AttendCase alone(spec);
    const std::vector<float> a = attend_once(alone);
    for (size_t others : {1, 3, 6}) {
      spec.sequences = {all[target]};
      for (size_t i = 0; i < others; i++) spec.sequences.push_back(all[(target + 1 + i) % all.size()]);
      AttendCase together(spec);
      std::vector<float> b = attend_once(together);
      b.resize(a.size());
      check(same_bits(a, b), "length %d among %zu others differs", all[target].length, others);
    }
  }
}

// A ragged batch on any number of CTAs and workers.
void distribution(CaseSpec spec, bool quick) {
  spec.sequences = {{1500, 1, 1}, {31, 1, 1}, {6000, 1, 1}, {64, 2, 2},
                    {4097, 5, 5}, {1, 1, 1},  {2048, 1, 1}};
  spec.window = 37;
  spec.sinks = 3;
  AttendCase usual(spec);
  std::vector<float> lse, lse2;
  const std::vector<float> out = attend_once(usual, &lse);
  for (int ctas : {1, 2, 3, 5, 17, 64, 131, 133, 264, 400}) {
    if (quick && ctas != 2 && ctas != 131 && ctas != 264) continue;
    CaseSpec other = spec;
    other.ctas = ctas;
    AttendCase c(other);
    check(same_bits(out, attend_once(c, &lse2)) && same_bits(lse, lse2), "%s: %d CTAs differ",
          name_of(spec).c_str(), ctas);
  }
  for (int workers : {1, 2, 4, 5, 7}) {
    if ((quick && workers != 5) || (spec.head_dim > 256 && workers > 1)) continue;
    CaseSpec other = spec;
    other.tuning.workers = workers;
    other.tuning.stages = 1;
    try {
      AttendCase c(other);
      check(same_bits(out, attend_once(c, &lse2)) && same_bits(lse, lse2), "%s: %d workers differ",
            name_of(spec).c_str(), workers);
    } catch (const tq::Error& error) {
      check(error.status() == tq::Status::kNotSupported, "%s: %d workers: %s", name_of(spec).c_str(), workers,
            error.what());
    }
  }
}

void graph_replay(CaseSpec spec) {
  AttendCase c(spec);
  const std::vector<float> eager = attend_once(c);
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreate(&stream));
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < 3; i++) c.run(0, stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  GPU_MUST(cudaStreamEndCapture(stream, &graph));
  GPU_MUST(cudaGraphInstantiate(&exec, graph, 0));
  for (int replay = 0; replay < 200; replay++) {
    if (replay % 50 == 0) c.poison_output();
    GPU_MUST(cudaDeviceSynchronize());
    GPU_MUST(cudaGraphLaunch(exec, stream));
    if (replay % 50) continue;
    GPU_MUST(cudaStreamSynchronize(stream));
    check(same_bits(eager, c.output()), "graph replay %d differs", replay);
  }
  GPU_MUST(cudaStreamSynchronize(stream));
  GPU_MUST(cudaGraphExecDestroy(exec));
  GPU_MUST(cudaGraphDestroy(graph));
  GPU_MUST(cudaStreamDestroy(stream));
}

void features(int key_bits, int value_bits, int dim, int value_dim, bool trellis = false) {
  CaseSpec base;
  base.trellis = trellis;
  base.key_bits = key_bits;
  base.value_bits = value_bits;
  base.head_dim = dim;
  base.value_dim = value_dim;
  base.sequences = {{1000, 1, 1}, {77, 1, 1}, {3000, 1, 1}};
  CaseSpec s = base;
  try_case(s);
  for (int group : {1, 2, 3, 8, 16}) {
    s = base;
    s.q_heads = 2 * group;
    try_case(s, group == 16);
  }
  s = base;
  s.sequences = {{513, 7, 7}, {2, 2, 2}, {2100, 40, 40}, {100, 0, 5}, {64, 64, 64}};
  try_case(s);
  s.history_only = true;
  try_case(s);
  s = base;
  s.centres = true;
  s.sink_logits = true;
  s.pad = 8;
  try_case(s);
  s.softcap = 5;
  try_case(s);
  s = base;
  s.sliding = 128;
  try_case(s);
  s.sliding = 700;
  s.sequences = {{1800, 9, 9}, {40, 5, 5}, {5000, 1, 1}};
  try_case(s);
  for (int rollback : {0, 19}) {
    s = base;
    s.window = 100;
    s.sinks = rollback ? 5 : 0;
    s.rollback = rollback;
    s.centres = true;
    s.sequences = {{1500, 1, 1}, {60, 3, 3}, {3, 1, 1}, {230, 120, 120}, {1100, 2, 2}, {701, 1, 0}};
    try_case(s);
    s.history_only = true;
    s.sink_logits = true;
    try_case(s);
    s.history_only = false;
    s.sliding = 64;
    try_case(s, false);
    s.softcap = 20;
    s.sliding = 0;
    try_case(s, false);
  }
  s = base;
  s.sinks = 4;
  try_case(s);
  s = base;
  s.io = DataType::kBF16;
  s.out = DataType::kBF16;
  try_case(s, false);
  s.io = s.out = DataType::kF16;
  try_case(s, false);
  s.io = DataType::kF32;
  s.scale = -0.3f;
  try_case(s, false);
  s.scale = 2.0f;
  s.spread = 4.0f;  // nearly one-hot
  try_case(s, false);
  for (int page : {32, 96, 128, 512}) {
    s = base;
    s.page_size = page;
    s.sequences = {{1000, 1, 1}, {129, 1, 1}, {2049, 1, 1}};
    try_case(s, false);
  }
}

void lengths(int key_bits, int value_bits, int dim, int value_dim, bool trellis = false) {
  CaseSpec s;
  s.trellis = trellis;
  s.key_bits = key_bits;
  s.value_bits = value_bits;
  s.head_dim = dim;
  s.value_dim = value_dim;
  for (int edge : {0, 32, 64, 96, 128, 512, 1024, 2048, 8192, 16384})
    for (int delta : {-1, 0, 1})
      if (edge + delta > 0) {
        s.sequences = {{edge + delta, 1, 1}, {edge + delta + 5, 1, 2}};
        s.seed++;
        try_case(s, false);
      }
}

// Few and short cases, for sanitizers; tiny: for the one that watches every access to shared memory.
void small(bool tiny) {
  const int pairs[][3] = {{4, 4, 128}, {16, 16, 80}, {2, 2, 64}, {3, 3, 256}, {5, 6, 128}, {16, 8, 512}};
  for (const auto& p : pairs) {
    CaseSpec s;
    s.key_bits = p[0];
    s.value_bits = p[1];
    s.head_dim = s.value_dim = p[2];
    s.sequences = {{70, 1, 1}, {33, 2, 2}};
    s.ctas = 3;
    try_case(s, false);
    s.window = 20;
    s.sinks = 3;
    s.sequences = {{1100, 1, 1}, {5, 5, 5}};
    if (!tiny || p[2] == 128) try_case(s, false);
    if (tiny && p[2] == 64) break;
    s.ctas = 0;
    s.centres = s.sink_logits = true;
    s.sequences = {{2200, 9, 9}, {40, 5, 5}, {640, 1, 1}};
    if (!tiny) try_case(s, false);
  }
}

// Every pair once, with few and with eight rows a block: where the kernels run on the CPU (tests/emulate)
// more would take too long.
void each() {
  const int pairs[][4] = {
#include "attend_pairs.inc"
  };
  for (const auto& p : pairs) {
    CaseSpec s;
    s.key_bits = p[0];
    s.value_bits = p[1];
    s.head_dim = p[2];
    s.value_dim = p[3];
    s.sequences = {{300, 1, 1}, {65, 3, 3}, {520, 1, 1}};
    try_case(s, p[2] <= 128);
    s.q_heads = 16;
    s.kv_heads = 2;
    s.window = 12;
    s.sequences = {{150, 2, 2}};
    try_case(s, false);
  }
}

}  // namespace

#include "attend_edges.cuh"
#include "attend_few.cuh"
#include "attend_masks.cuh"
#include "attend_prefill.cuh"
#include "attend_rows.cuh"
#include "attend_wide.cuh"

// A block of fewer than 8 rows leaves places of rows that stand for nothing. What lies there must not reach
// the rows beside it, not even by the common decision of a warp to raise its maxima.
void unused_rows(int repeats) {
  for (int key_bits : {16, 4})
    for (int q_heads : {2, 6}) {
      CaseSpec spec;
      spec.key_bits = key_bits;
      spec.value_bits = key_bits == 16 ? 4 : 5;  // no compiled kernel
      spec.q_heads = q_heads;
      spec.sequences = {{1000, 1, 1}, {300, 1, 1}};
      AttendCase c(spec);
      const std::vector<float> out = attend_once(c);
      int differ = 0;
      for (int i = 0; i < repeats; i++) differ += !same_bits(out, attend_once(c));
      check(differ == 0, "%s: %d of %d runs differ", name_of(spec).c_str(), differ, repeats);
    }
}

// attend_test [--quick | --small | --tiny | --each] [FIRST COUNT]: pairs FIRST .. FIRST + COUNT - 1 only.
// attend_test --prefill [--quick | trellis [DIM] | unequal [quick]]: long query blocks only. attend_test
// --edges [--quick], --rows [--quick], --masks [--quick], --few [LONGEST [PAIRS]],
// --wide [DIM [KEY_BITS VALUE_BITS [quick|trellis]]]: attend_edges.cuh, attend_rows.cuh, attend_masks.cuh,
// attend_few.cuh, attend_wide.cuh only.
// Trellis codes: kernels of their own, and the one for all families, which has two widths and masks too.
void trellis_codes(bool quick) {
  const int pairs[][4] = {{3, 3, 128, 128}, {2, 2, 128, 128}, {4, 4, 128, 128}, {4, 3, 128, 128},
                          {3, 3, 64, 64},   {2, 4, 96, 96},   {3, 3, 256, 256}, {16, 3, 80, 80}};
  for (const auto& p : pairs) {
    worst_of_all = 0;
    features(p[0], p[1], p[2], p[3], true);
    if (!quick) lengths(p[0], p[1], p[2], p[3], true);
    CaseSpec s;
    s.trellis = true;
    s.key_bits = p[0];
    s.value_bits = p[1];
    s.head_dim = p[2];
    s.value_dim = p[3];
    batch_composition(s);
    distribution(s, quick);
    s.sequences = {{5000, 1, 1}, {100, 1, 1}, {9000, 1, 1}};
    graph_replay(s);
    printf("trellis, d %d bits %d/%d: worst row %.2e\n", p[2], p[0], p[1], worst_of_all);
    fflush(stdout);
  }
}

int main(int argc, char** argv) {
  if (argc > 1 && (!strcmp(argv[1], "--small") || !strcmp(argv[1], "--tiny"))) {
    const bool tiny = !strcmp(argv[1], "--tiny");
    small(tiny);
    if (!tiny) unused_rows(20);
    for (int dim : {128, 64}) {
      CaseSpec s = prefill_base(dim == 128 ? 4 : 3, 4, dim);
      s.sequences = {{tiny ? 140 : 400, 140, 140}, {40, 1, 1}};
      s.window = dim == 64 ? 20 : 0;
      if (!tiny || dim == 128) try_prefill(s);
    }
    return gpu_test::finish("attend_test");
  }
  if (argc > 1 && !strcmp(argv[1], "--each")) {
    each();
    return gpu_test::finish("attend_test --each");
  }
  if (argc > 1 && !strcmp(argv[1], "--prefill")) {
    if (argc > 2 && !strcmp(argv[2], "trellis"))
      prefill_trellis(argc > 3 ? atoi(argv[3]) : 0);
    else if (argc > 2 && !strcmp(argv[2], "unequal"))
      prefill_unequal(argc > 3);
    else
      prefill(argc > 2 && !strcmp(argv[2], "--quick"));
    return gpu_test::finish("attend_test --prefill");
  }
  if (argc > 1 && !strcmp(argv[1], "--wide")) {
    show_totals = true;
    prefill_wide(argc > 3 ? atoi(argv[3]) : 4, argc > 4 ? atoi(argv[4]) : 4, argc > 2 ? atoi(argv[2]) : 128,
                 argc > 5, argc > 5 && !strcmp(argv[5], "trellis"));
    return gpu_test::finish("attend_test --wide");
  }
  if (argc > 1 && !strcmp(argv[1], "--trellis")) {
    trellis_codes(argc > 2 && !strcmp(argv[2], "--quick"));
    return gpu_test::finish("attend_test --trellis");
  }
  if (argc > 1 && !strcmp(argv[1], "--edges")) {
    edges(argc > 2 && !strcmp(argv[2], "--quick"));
    return gpu_test::finish("attend_test --edges");
  }
  if (argc > 1 && !strcmp(argv[1], "--few")) {
    few(argc > 3 ? atoi(argv[3]) : 3, argc > 2 ? atoi(argv[2]) : 40000);
    return gpu_test::finish("attend_test --few");
  }
  if (argc > 1 && !strcmp(argv[1], "--rows")) {
    rows(argc > 2 && !strcmp(argv[2], "--quick"));
    return gpu_test::finish("attend_test --rows");
  }
  if (argc > 1 && !strcmp(argv[1], "--masks")) {
    masks(argc > 2 && !strcmp(argv[2], "--quick"));
    return gpu_test::finish("attend_test --masks");
  }
  const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
  const int first = argc > 2 + quick ? atoi(argv[1 + quick]) : 0,
            last = argc > 2 + quick ? first + atoi(argv[2 + quick]) : 1000;
  int index = 0;
  const int pairs[][4] = {
#include "attend_pairs.inc"
  };
  for (const auto& p : pairs) {
    const int at = index++;
    if (at < first || at >= last) continue;
    const int64_t failed = gpu_test::tally().failed;
    worst_of_all = 0;
    features(p[0], p[1], p[2], p[3]);
    if (!quick) lengths(p[0], p[1], p[2], p[3]);
    CaseSpec s;
    s.key_bits = p[0];
    s.value_bits = p[1];
    s.head_dim = p[2];
    s.value_dim = p[3];
    batch_composition(s);
    distribution(s, quick);
    s.sequences = {{5000, 1, 1}, {100, 1, 1}, {9000, 1, 1}};
    graph_replay(s);
    printf("d %d/%d bits %d/%d: worst row %.2e%s\n", p[2], p[3], p[0], p[1], worst_of_all,
           gpu_test::tally().failed > failed ? "  FAILED" : "");
    fflush(stdout);
  }
  if (first == 0) trellis_codes(quick);
  if (first == 0) prefill(quick);
  if (first == 0) edges(quick);
  if (first == 0) rows(quick);
  if (first == 0) few(3, quick ? 20000 : 40000);
  if (first == 0) masks(quick);
  if (first == 0) unused_rows(quick ? 50 : 1000);
  return gpu_test::finish("attend_test");
}
