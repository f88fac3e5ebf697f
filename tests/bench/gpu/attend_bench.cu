// SPDX-License-Identifier: Apache-2.0
// Decode attention on codes: time by graph replay, share of the read roof measured in the same process, error
// of the very output that was timed.
//
//   attend_bench [--json FILE] [--cases one|tune|short|full|rows|few|ragged|exact] [--bits KV]
//   [--workers N --stages N --deposits N] [--pages ordered|random] [--page-size N] [--family scalar|trellis]
//   [--few 0: plans of few blocks by the kernel of all others] [--only TEXT: cases whose names have it]
//
// Several sets of pages are rotated until they exceed three times the second-level cache. Microseconds are
// medians over replays of a graph of many launches.
#include <string.h>

#include "../../gpu/attend_case.cuh"

namespace {

using namespace gpu_test;

__global__ void __launch_bounds__(512) read_stream(const uint4* p, size_t n, uint32_t* out) {
  uint32_t x = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  for (; i + 3 * stride < n; i += 4 * stride) {
    const uint4 a = __ldcs(p + i), b = __ldcs(p + i + stride), c = __ldcs(p + i + 2 * stride),
                d = __ldcs(p + i + 3 * stride);
    x ^= a.x ^ b.y ^ c.z ^ d.w ^ a.y ^ b.x;
  }
  if (x == 0x12345) *out = x;
}

double median(std::vector<float> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

double measure_roof(int sms) {
  const size_t bytes = static_cast<size_t>(2) << 30;
  Buffer<uint8_t> memory(bytes);
  Buffer<uint32_t> sink(1);
  GPU_MUST(cudaMemset(memory.get(), 7, bytes));
  cudaEvent_t a, b;
  GPU_MUST(cudaEventCreate(&a));
  GPU_MUST(cudaEventCreate(&b));
  std::vector<float> times;
  for (int i = 0; i < 12; i++) {
    GPU_MUST(cudaEventRecord(a));
    read_stream<<<sms * 8, 512>>>(reinterpret_cast<const uint4*>(memory.get()), bytes / 16, sink.get());
    GPU_MUST(cudaEventRecord(b));
    GPU_MUST(cudaEventSynchronize(b));
    float ms;
    GPU_MUST(cudaEventElapsedTime(&ms, a, b));
    if (i > 1) times.push_back(ms);
  }
  return bytes / median(times) / 1e6;
}

struct Case {
  const char* name;
  int batch, q_heads, kv_heads, length, dim;
  int queries = 1;
  std::vector<int> lengths = {};  // of the sequences, instead of batch x length
  int window = 0, sinks = 0;
};

// Lengths 128 .. 65536 of 64 sequences, evenly in their logarithm, shuffled; and one long sequence beside 63
// short ones.
std::vector<int> spread_lengths() {
  std::vector<int> lengths(64);
  for (int i = 0; i < 64; i++) lengths[i * 37 % 64] = static_cast<int>(lround(128 * exp2(9.0 * i / 63)));
  return lengths;
}
std::vector<int> one_long() {
  std::vector<int> lengths(64, 512);
  lengths[0] = 131072;
  return lengths;
}

struct Result {
  double us, low, high, gbs, error;
  int sets;
};

Result bench(const Case& c, int key_bits, int value_bits, bool trellis, tq::cuda::attend::AttendTuning tuning,
             bool pages_in_order, int page_size, int few, size_t cache_bytes, bool check_error) {
  CaseSpec spec;
  spec.head_dim = spec.value_dim = c.dim;
  spec.key_bits = key_bits;
  spec.value_bits = value_bits;
  spec.trellis = trellis;
  spec.q_heads = c.q_heads;
  spec.kv_heads = c.kv_heads;
  spec.out = DataType::kF16;
  spec.tuning = tuning;
  spec.pages_in_order = pages_in_order;
  spec.page_size = page_size;
  spec.few = few;
  spec.window = c.window;
  spec.sinks = c.sinks;
  std::vector<int> lengths = c.lengths;
  if (lengths.empty()) lengths.assign(c.batch, c.length);
  int64_t set_bytes = 0;
  for (int length : lengths) {
    spec.sequences.push_back(CaseSequence{length, c.queries, c.queries});
    set_bytes += static_cast<int64_t>(c.kv_heads) * (length / 32) *
                 TileLayout(c.dim, c.dim, key_bits, value_bits).tile_bytes();
  }
  const int sets = static_cast<int>(std::min<int64_t>(
      24, std::max<int64_t>(1, (3 * static_cast<int64_t>(cache_bytes) + set_bytes - 1) / set_bytes)));
  AttendCase subject(spec, sets);
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreate(&stream));
  for (int i = 0; i < sets; i++) subject.run(i, stream);
  GPU_MUST(cudaStreamSynchronize(stream));
  const int launches = std::max(sets, 2 * (10 + sets) / (2 * sets) * sets);
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; i++) subject.run(i % sets, stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  GPU_MUST(cudaStreamEndCapture(stream, &graph));
  GPU_MUST(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  GPU_MUST(cudaEventCreate(&a));
  GPU_MUST(cudaEventCreate(&b));
  std::vector<float> times;
  subject.poison_output();
  for (int i = 0; i < 22; i++) {
    GPU_MUST(cudaEventRecord(a, stream));
    GPU_MUST(cudaGraphLaunch(exec, stream));
    GPU_MUST(cudaEventRecord(b, stream));
    GPU_MUST(cudaEventSynchronize(b));
    float ms;
    GPU_MUST(cudaEventElapsedTime(&ms, a, b));
    if (i > 1) times.push_back(ms * 1000 / launches);
  }
  GPU_MUST(cudaStreamSynchronize(stream));
  Result r = {};
  r.us = median(times);
  std::sort(times.begin(), times.end());
  r.low = times.front();
  r.high = times.back();
  r.gbs = subject.stored_bytes() / r.us / 1e3;
  r.sets = sets;
  if (check_error)
    r.error = subject.compare((launches - 1) % sets, {{0, 0}, {c.batch - 1, c.kv_heads - 1}}).worst;
  GPU_MUST(cudaGraphExecDestroy(exec));
  GPU_MUST(cudaGraphDestroy(graph));
  GPU_MUST(cudaStreamDestroy(stream));
  return r;
}

}  // namespace

int main(int argc, char** argv) {
  const char *json_path = nullptr, *set = "short", *only = "";
  tq::cuda::attend::AttendTuning tuning = {};
  int only_bits = 0;
  bool pages_in_order = false, trellis = false;
  int page_size = 64, few = -1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--json")) json_path = argv[i + 1];
    if (!strcmp(argv[i], "--cases")) set = argv[i + 1];
    if (!strcmp(argv[i], "--workers")) tuning.workers = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--stages")) tuning.stages = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--deposits")) tuning.deposits = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--copies")) tuning.copies = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--pages")) pages_in_order = !strcmp(argv[i + 1], "ordered");
    if (!strcmp(argv[i], "--page-size")) page_size = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--only")) only = argv[i + 1];
    if (!strcmp(argv[i], "--few")) few = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--family")) trellis = !strcmp(argv[i + 1], "trellis");
    if (!strcmp(argv[i], "--bits")) only_bits = atoi(argv[i + 1]);
  }
  cudaDeviceProp prop;
  GPU_MUST(cudaGetDeviceProperties(&prop, 0));
  const double roof = measure_roof(prop.multiProcessorCount);
  printf("%s, %d SMs, L2 %d MiB, read roof %.0f GB/s\n", prop.name, prop.multiProcessorCount,
         prop.l2CacheSize >> 20, roof);
  std::vector<Case> cases = {{"B8 n32768", 8, 32, 8, 32768, 128},
                             {"B32 n8192", 32, 32, 8, 8192, 128},
                             {"B1 n131072", 1, 32, 8, 131072, 128},
                             {"B64 n1024", 64, 32, 8, 1024, 128},
                             {"B1 n8192", 1, 32, 8, 8192, 128}};
  if (!strcmp(set, "one")) cases.resize(1);
  if (!strcmp(set, "rows"))
    cases = {cases[0],
             {"B8 n32768 g5", 8, 40, 8, 32768, 128},
             {"B8 n32768 g8", 8, 64, 8, 32768, 128},
             {"B8 n32768 g16", 8, 128, 8, 32768, 128},
             {"B8 n32768 q4", 8, 32, 8, 32768, 128, 4},
             {"B8 n32768 q8", 8, 32, 8, 32768, 128, 8},
             {"B64 n1024 g16", 64, 128, 8, 1024, 128},
             {"B1 n8192 q4", 1, 32, 8, 8192, 128, 4}};
  if (!strcmp(set, "few"))
    cases = {{"B1 n1024", 1, 32, 8, 1024, 128},    {"B1 n2048", 1, 32, 8, 2048, 128},
             {"B1 n4096", 1, 32, 8, 4096, 128},    {"B1 n8192", 1, 32, 8, 8192, 128},
             {"B1 n16384", 1, 32, 8, 16384, 128},  {"B1 n1024 g8", 1, 64, 8, 1024, 128},
             {"B1 n2048 g8", 1, 64, 8, 2048, 128}, {"B2 n2048", 2, 32, 8, 2048, 128},
             {"B2 n1024", 2, 32, 8, 1024, 128},    {"B4 n1024", 4, 32, 8, 1024, 128},
             {"B4 n4096", 4, 32, 8, 4096, 128},    {"B1 n32768", 1, 32, 8, 32768, 128}};
  if (!strcmp(set, "ragged"))
    cases = {{"64 of 128..65536", 64, 32, 8, 0, 128, 1, spread_lengths()},
             {"1 of 131072, 63 of 512", 64, 32, 8, 0, 128, 1, one_long()},
             {"B64 n1024", 64, 32, 8, 1024, 128},
             {"B128 n2048", 128, 32, 8, 2048, 128}};
  if (!strcmp(set, "tune")) cases = {cases[0], cases[3], cases[4]};
  if (!strcmp(set, "full")) {
    for (const Case& c :
         {Case{"B32 n32768", 32, 32, 8, 32768, 128}, Case{"B1 n32768", 1, 32, 8, 32768, 128},
          Case{"B8 n32768 g1", 8, 8, 8, 32768, 128}, Case{"B8 n32768 g8", 8, 64, 8, 32768, 128},
          Case{"B8 n32768 g16", 8, 128, 8, 32768, 128}, Case{"B16 n16384 d64", 16, 32, 8, 16384, 64},
          Case{"B8 n16384 d256", 8, 16, 4, 16384, 256}})
      cases.push_back(c);
  }
  if (!strcmp(set, "exact"))
    cases = {cases[0],
             {"B8 n32768 sinks 4", 8, 32, 8, 32768, 128, 1, {}, 0, 4},
             {"B8 n32768 win 128", 8, 32, 8, 32768, 128, 1, {}, 128, 0},
             {"B8 n32768 win 512", 8, 32, 8, 32768, 128, 1, {}, 512, 0},
             cases[3],
             {"B64 n1024 sinks 4", 64, 32, 8, 1024, 128, 1, {}, 0, 4},
             {"B64 n1024 win 32", 64, 32, 8, 1024, 128, 1, {}, 32, 0},
             {"B64 n1024 win 128", 64, 32, 8, 1024, 128, 1, {}, 128, 0},
             {"B64 n1024 both", 64, 32, 8, 1024, 128, 1, {}, 128, 4}};
  const int pairs[][2] = {{4, 4}, {3, 3}, {2, 2}, {4, 2}, {8, 8}, {5, 5}, {6, 6}, {5, 3}, {5, 4}, {6, 4}};
  const auto code = [trellis](int bits) {
    return trellis ? tq::format::trellis_code(bits) : tq::format::scalar_code(bits);
  };
  FILE* json = json_path ? fopen(json_path, "w") : nullptr;
  int driver = 0, clock = 0;
  cudaDriverGetVersion(&driver);
  cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0);
  if (json)
    fprintf(json,
            "{\"gpu\": \"%s\", \"driver\": %d, \"clock_khz\": %d, \"roof_gbs\": %.0f, \"workers\": %d, "
            "\"stages\": %d, \"cases\": [\n",
            prop.name, driver, clock, roof, tuning.workers, tuning.stages);
  bool first = true;
  for (const Case& c : cases)
    for (const auto& pair : pairs) {
      if ((!strcmp(set, "tune") && pair[0] != pair[1]) || !strstr(c.name, only)) continue;
      if (only_bits && pair[0] * 10 + pair[1] != only_bits) continue;
      if (tq::cuda::attend::attend_kernel_for(TileLayout(c.dim, c.dim, code(pair[0]), code(pair[1]))) !=
          tq::cuda::attend::AttendKernel::kCompiled)
        continue;
      try {
        const Result r = bench(c, pair[0], pair[1], trellis, tuning, pages_in_order, page_size, few,
                               prop.l2CacheSize, true);
        printf("%-16s k%dv%d  %8.2f us (%.2f-%.2f)  %5.0f GB/s  %5.1f %% of roof  err %.1e  sets %d\n",
               c.name, pair[0], pair[1], r.us, r.low, r.high, r.gbs, 100 * r.gbs / roof, r.error, r.sets);
        fflush(stdout);
        check(r.error <= 1e-3 + 5e-4, "%s k%dv%d: error %.2e", c.name, pair[0], pair[1], r.error);
        if (json) {
          fprintf(json,
                  "%s{\"name\": \"%s\", \"batch\": %d, \"q_heads\": %d, \"kv_heads\": %d, \"length\": %d, "
                  "\"head_dim\": %d, \"key_bits\": %d, "
                  "\"value_bits\": %d, \"us\": %.3f, \"us_low\": %.3f, \"us_high\": %.3f, \"gbs\": %.1f, "
                  "\"roof_share\": %.4f, \"error\": %.3e, "
                  "\"sets\": %d}",
                  first ? "" : ",\n", c.name, c.batch, c.q_heads, c.kv_heads, c.length, c.dim, pair[0],
                  pair[1], r.us, r.low, r.high, r.gbs, r.gbs / roof, r.error, r.sets);
          first = false;
        }
      } catch (const tq::Error& error) {
        check(false, "%s k%dv%d: %s", c.name, pair[0], pair[1], error.what());
      }
    }
  if (json) {
    fprintf(json, "\n]}\n");
    fclose(json);
  }
  return finish("attend_bench");
}
