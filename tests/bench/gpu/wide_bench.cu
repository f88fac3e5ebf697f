// SPDX-License-Identifier: Apache-2.0
// Long prefill: the group kernel, and the wide way in every choice of its tuning
// (cuda/prefill/wide_shape.cuh), in one process: microseconds, TFLOP/s, and the error of a short case and of
// one that moves its sums.
//
//   wide_bench [--quick]
//
// Medians over bare launches between events, expansion and queries included; variants in turns.
#include <string.h>

#include <memory>

#include "../../gpu/attend_case.cuh"
#include "cuda/prefill/launch_dim.cuh"

namespace {

using namespace gpu_test;
using tq::cuda::prefill::WideChoice;

template <int kStored, bool kFold, bool kTurn, int kMove>
void launch(const tq::cuda::prefill::WideParams& params, int num_ctas, cudaStream_t stream) {
  tq::cuda::prefill::launch_wide_kernels<kStored, WideChoice<kFold, kTurn, kMove>,
                                         tq::cuda::prefill::ScalarSides>(params, num_ctas, stream);
}

struct Variant {
  const char* name;
  bool wide;
  decltype(CaseSpec::wide_kernels) kernels;
};
const Variant kVariants[] = {{"group kernel", false, nullptr},
                             {"wide, as compiled", true, nullptr},
                             {"wide, moved each 2,048", true, launch<128, false, true, 2048>},
                             {"wide, moved each 8,192", true, launch<128, false, true, 8192>},
                             {"wide, no turns", true, launch<128, false, false, 4096>},
                             {"wide, key scales folded", true, launch<128, true, true, 4096>},
                             {"wide, folded, no turns", true, launch<128, true, false, 4096>}};

struct Case {
  const char* name;
  int queries, tokens, dim;
};
const Case kCases[] = {
    {"2,048 over 32,768", 2048, 32768, 128},       {"512 over 32,768", 512, 32768, 128},
    {"8,192 over themselves", 8192, 8192, 128},    {"1,024 over themselves", 1024, 1024, 128},
    {"2,048 over 131,072", 2048, 131072, 128},     {"2,048 over 32,768, d 64", 2048, 32768, 64},
    {"2,048 over 32,768, d 96", 2048, 32768, 96},  {"2,048 over 32,768, d 192", 2048, 32768, 192},
    {"2,048 over 32,768, d 256", 2048, 32768, 256}};

CaseSpec spec_of(const Case& c, const Variant& v) {
  CaseSpec s;
  s.head_dim = s.value_dim = c.dim;
  s.q_heads = 32;
  s.kv_heads = 8;
  s.out = DataType::kF16;
  s.sequences = {{c.tokens, c.queries, c.queries}};
  s.long_apart = true;
  s.wide = v.wide;
  s.wide_kernels = v.kernels;
  return s;
}

float once(AttendCase& c, cudaEvent_t from, cudaEvent_t to) {
  GPU_MUST(cudaEventRecord(from));
  c.run();
  GPU_MUST(cudaEventRecord(to));
  GPU_MUST(cudaEventSynchronize(to));
  float ms;
  GPU_MUST(cudaEventElapsedTime(&ms, from, to));
  return ms;
}

void time_case(const Case& c, int repeats) {
  cudaEvent_t from, to;
  GPU_MUST(cudaEventCreate(&from));
  GPU_MUST(cudaEventCreate(&to));
  std::vector<std::unique_ptr<AttendCase>> cases;
  std::vector<const Variant*> of;
  std::vector<std::vector<float>> times;
  for (const Variant& v : kVariants) {
    if (v.kernels && c.dim != 128) continue;
    cases.push_back(std::make_unique<AttendCase>(spec_of(c, v)));
    of.push_back(&v);
    times.emplace_back();
  }
  for (int i = 0; i < repeats + 2; i++)
    for (size_t v = 0; v < cases.size(); v++) {
      const float ms = once(*cases[v], from, to);
      if (i > 1) times[v].push_back(ms);
    }
  const double pairs = c.queries * (c.tokens - 0.5 * (c.queries - 1));
  for (size_t v = 0; v < cases.size(); v++) {
    std::sort(times[v].begin(), times[v].end());
    const double ms = times[v][times[v].size() / 2];
    printf("%-26s %-24s %8.0f us %5.0f TFLOP/s\n", c.name, of[v]->name, 1e3 * ms,
           4 * pairs * c.dim * 32 / ms / 1e9);
  }
  fflush(stdout);
}

// Of 1,024 rows of one kv head, against float64.
void show_errors(int tokens) {
  for (const Variant& v : kVariants) {
    CaseSpec s = spec_of({"", 128, tokens, 128}, v);
    s.q_heads = 8;
    s.kv_heads = 1;
    s.out = DataType::kF32;
    AttendCase c(s);
    c.poison_output();
    c.run();
    GPU_MUST(cudaDeviceSynchronize());
    const Comparison r = c.compare_all();
    printf("%-26d %-24s total %.2e, worst row %.2e\n", tokens, v.name, r.total, r.worst);
  }
  fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
  for (int tokens : {500, 4096, 20000}) show_errors(tokens);
  for (const Case& c : kCases) time_case(c, quick ? 3 : 11);
  return 0;
}
