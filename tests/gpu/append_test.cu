// SPDX-License-Identifier: Apache-2.0
// Append on the GPU against the scalar encoder, code by code and scale by scale: every dimension and width,
// edge vectors, strides, types, ragged steps that mix single tokens and whole tiles; then random codes in
// bulk.  append_test [--quick | --time | --profile | --small | --tiny | --trellis]
#include "cuda/dispatch.h"
#include "test_cache.cuh"
#include "tests/dims.h"

namespace {

using namespace gpu_test;

// Token counts at the edges of tiles and pages, single tokens, drafts, whole tiles, nothing.
const std::vector<std::vector<int64_t>> kSteps = {{1, 31, 32, 33},  {1, 1, 1, 1},   {4, 5, 0, 3},
                                                  {70, 2, 64, 1},   {0, 0, 0, 0},   {1, 1, 31, 5},
                                                  {33, 100, 3, 29}, {2, 28, 61, 36}};

void run_steps(const Config& config, const char* name, bool host) {
  TestCache cache(config);
  for (size_t i = 0; i < kSteps.size(); i++) {
    cache.step(kSteps[i]);
    if (i == 1) cache.verify(name);
  }
  const bool right = cache.verify(name) && cache.verify(name, true);
  if (host && right) cache.verify_host(name);
  // Edge vectors have NaN, and magnitudes that a float16 does not hold.
  const bool clips = config.type == DataType::kF32 && (config.key_bits == 16 || config.value_bits == 16);
  const uint64_t expected = !config.edges ? 0 : clips ? 3 : 1;
  const uint64_t seen = cache.backend->check(nullptr);
  check(seen == expected, "%s: flags %d, expected %d", name, static_cast<int>(seen),
        static_cast<int>(expected));
  for (int i = 0; i < config.sequences; i++)
    check(cache.backend->slot_flags(i) == expected, "%s: flags of sequence %d", name, i);
  check(cache.backend->check(nullptr) == 0, "%s: the flags were not cleared", name);
}

void all_shapes() {
  const DataType types[] = {DataType::kF16, DataType::kBF16, DataType::kF32};
  int turn = 0;
  for (int dim : tq::kTriedDims)
    for (int bits : kCodeBits) {
      if (dim % tq::cuda::kDimStep != 0) continue;
      Config config;
      config.head_dim = config.value_dim = dim;
      config.key_bits = config.value_bits = bits;
      config.type = types[turn++ % 3];
      config.seed = 100 + turn;
      config.page_size = turn % 4 == 0 ? 32 : turn % 4 == 1 ? 96 : 64;
      run_steps(config, "all shapes", true);
    }
}

// Of each dimension all widths in turn, beside each other and beside scalar codes and raw sides; all rules.
void trellis_codes() {
  const int pairs[][2] = {{2, 3}, {3, 4}, {4, 2}, {3, 3}, {2, 2}, {4, 4}, {3, 8}, {16, 4}, {5, 2}};
  const ScaleRule rules[] = {ScaleRule::kUnbiased, ScaleRule::kLs, ScaleRule::kNorm, ScaleRule::kPaper};
  const DataType types[] = {DataType::kF16, DataType::kBF16, DataType::kF32};
  int turn = 0;
  for (int dim : tq::kTriedDims) {
    if (dim % tq::cuda::kDimStep != 0) continue;
    for (int i = 0; i < 3; i++, turn++) {
      Config config;
      config.trellis = true;
      config.head_dim = config.value_dim = dim;
      config.key_bits = pairs[turn % 9][0];
      config.value_bits = pairs[turn % 9][1];
      config.key_rule = rules[turn % 4];
      config.value_rule = rules[turn / 4 % 4];
      config.search = turn % 5 != 4;
      config.type = types[turn % 3];
      config.centres = turn % 2 == 1;
      config.window = turn % 7 == 3 ? 20 : 0;
      config.seed = 4000 + static_cast<uint64_t>(turn);
      run_steps(config, "trellis", i == 0);
    }
  }
}

void modes() {
  uint64_t seed = 1000;
  const auto with = [&](auto change, const char* name) {
    Config config;
    config.seed = ++seed;
    change(config);
    run_steps(config, name, false);
  };
  for (DataType type : {DataType::kF16, DataType::kBF16, DataType::kF32})
    for (int bits : {2, 3, 4, 5, 6, 8, 16})
      with(
          [&](Config& c) {
            c.key_bits = c.value_bits = bits;
            c.type = type;
            c.edges = false;
          },
          "types");
  const int mixed_bits[][2] = {{4, 2}, {16, 4}, {3, 8}, {2, 16}, {5, 6}, {8, 3}};
  for (const auto& bits : mixed_bits)
    with(
        [&](Config& c) {
          c.key_bits = bits[0];
          c.value_bits = bits[1];
          c.layers = 2;
        },
        "mixed widths");
  const int mixed_dims[][2] = {{192, 128}, {64, 256}, {576, 512}, {80, 112}, {112, 128}, {32, 576}};
  for (const auto& dims : mixed_dims)
    for (int key_bits : {4, 16})
      with(
          [&](Config& c) {
            c.head_dim = dims[0];
            c.value_dim = dims[1];
            c.key_bits = key_bits;
          },
          "mixed dimensions");
  for (ScaleRule rule : {ScaleRule::kLs, ScaleRule::kUnbiased, ScaleRule::kNorm, ScaleRule::kPaper})
    for (int bits : {2, 3, 4, 5, 6, 8})
      for (bool search : {false, true})
        with(
            [&](Config& c) {
              c.key_rule = c.value_rule = rule;
              c.key_bits = c.value_bits = bits;
              c.search = search;
            },
            "scale rules");
  for (DataType type : {DataType::kF16, DataType::kBF16, DataType::kF32}) {
    with(
        [&](Config& c) {
          c.type = type;
          c.centres = true;
          c.head_dim = c.value_dim = 80;
        },
        "centres");
    with(
        [&](Config& c) {
          c.type = type;
          c.window = 20;
          c.rollback = 7;
          c.sinks = 4;
        },
        "window and sinks");
    with(
        [&](Config& c) {
          c.type = type;
          c.window = 100;
          c.sinks = 40;
          c.key_bits = 16;
          c.centres = true;
        },
        "window and sinks");
    with(
        [&](Config& c) {
          c.type = type;
          c.sinks = 33;
        },
        "sinks only");
  }
  with(
      [&](Config& c) {
        c.heads = 1;
        c.page_size = 512;
        c.layers = 3;
      },
      "one page a sequence");
}

// What one number among ordinary ones is noticed as, in a single token and in a whole tile, in keys and in
// values.
void noticed_flags() {
  struct Case {
    int bits;
    DataType type;
    float x, stored;
    uint64_t flags;
  };
  const float infinity = bits_float(0x7F800000u), nan = bits_float(0x7FC00000u);
  const Case cases[] = {
      {16, DataType::kF32, 65504.0f, 65504.0f, 0},
      {16, DataType::kF32, bits_float(0x477FE001u), 65504.0f, 2},  // the next float32
      {16, DataType::kF32, -65519.0f, -65504.0f, 2},               // rounds to -65504 as it is
      {16, DataType::kF32, -1e30f, -65504.0f, 3},                  // above 2^64 as well
      {16, DataType::kF32, 70000.0f, 65504.0f, 2},
      {16, DataType::kF32, -infinity, -65504.0f, 1},
      {16, DataType::kF32, nan, 0.0f, 1},
      {16, DataType::kF16, infinity, 65504.0f, 1},
      {16, DataType::kBF16, 70144.0f, 70144.0f, 0},
      {4, DataType::kF32, 70000.0f, nan, 0},  // a code has the range of its scale
  };
  for (const Case& c : cases)
    for (int kind = 0; kind < 2; kind++)
      for (int64_t tokens : {1, 40}) {
        Config config;
        config.edges = false;
        config.type = c.type;
        config.key_bits = config.value_bits = c.bits;
        config.sequences = 3;
        TestCache cache(config);
        cache.plan({tokens, tokens, tokens});
        cache.fill(0);
        const uint32_t bits = c.type == DataType::kF32   ? float_bits(c.x)
                              : c.type == DataType::kF16 ? f16_from_float(c.x)
                                                         : bf16_from_float(c.x);
        const tq::TensorStrides strides = cache.strides[kind];
        const int element = 5, head = 1;
        const int64_t row = tokens;  // the first token of sequence 1
        GPU_MUST(cudaMemcpy(cache.input[kind].get() + (row * strides.token + head * strides.head + element) *
                                                          tq::dtype_bytes(c.type),
                            &bits, static_cast<size_t>(tq::dtype_bytes(c.type)), cudaMemcpyHostToDevice));
        cache.append(0);
        const uint64_t seen = cache.backend->check(nullptr);
        check(seen == c.flags, "%g in a side of %d bits, dtype %d, kind %d, %d tokens: flags %d, expected %d",
              static_cast<double>(c.x), c.bits, static_cast<int>(c.type), kind, static_cast<int>(tokens),
              static_cast<int>(seen), static_cast<int>(c.flags));
        for (int i = 0; i < config.sequences; i++)
          check(cache.backend->slot_flags(i) == (i == 1 ? c.flags : 0), "%g: flags of sequence %d",
                static_cast<double>(c.x), i);
        if (c.bits != 16) continue;
        const std::vector<uint8_t> read = cache.read_all(1);  // keys, then values
        const int64_t at = (kind * tokens * config.heads + head) * config.head_dim + element;
        uint32_t found = 0;
        memcpy(&found, read.data() + at * tq::dtype_bytes(c.type),
               static_cast<size_t>(tq::dtype_bytes(c.type)));
        check(bits_value(c.type, found) == c.stored, "%g is read back as %g", static_cast<double>(c.x),
              static_cast<double>(bits_value(c.type, found)));
      }
  // Two things at once, in one sequence and in others: none of the flags is lost.
  Config config;
  config.edges = false;
  config.type = DataType::kF32;
  config.key_bits = config.value_bits = 16;
  TestCache cache(config);
  cache.plan({40, 1, 33, 2});
  cache.fill(0);
  const int64_t rows[] = {0, 40, 41, 74};
  const auto put = [&](int kind, int64_t row, float x) {
    GPU_MUST(cudaMemcpy(cache.input[kind].get() + row * cache.strides[kind].token * 4, &x, 4,
                        cudaMemcpyHostToDevice));
  };
  for (int64_t token = 0; token < 40; token++) put(token % 2, rows[0] + token, token % 4 < 2 ? nan : 1e6f);
  put(0, rows[1], -1e6f);
  put(1, rows[2] + 32, nan);
  cache.append(0);
  const uint64_t expected[] = {3, 2, 1, 0};
  check(cache.backend->check(nullptr) == 3, "two flags at once");
  for (int i = 0; i < 4; i++)
    check(cache.backend->slot_flags(i) == expected[i], "two flags at once: sequence %d has %d", i,
          static_cast<int>(cache.backend->slot_flags(i)));
  cache.backend->copy_slot(0, 3, nullptr);
  cache.backend->start_slot(0, nullptr);
  GPU_MUST(cudaDeviceSynchronize());
  check(cache.backend->slot_flags(3) == 3 && cache.backend->slot_flags(0) == 0,
        "flags of copied and new slots");
}

void bulk(bool quick, bool trellis) {
  const int rounds = quick ? 1 : 8;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    if (trellis && bits > 4) break;
    Config config;
    config.trellis = trellis;
    config.key_bits = config.value_bits = bits;
    config.heads = 8;
    config.sequences = 1;
    config.tokens = 65536;
    config.edges = false;
    config.type = bits % 2 ? DataType::kBF16 : DataType::kF16;
    TestCache cache(config);
    float best = 1e30f;
    cudaEvent_t begin, end;
    GPU_MUST(cudaEventCreate(&begin));
    GPU_MUST(cudaEventCreate(&end));
    for (int round = 0; round < rounds; round++) {
      cache.restart(5000 + 100 * bits + round);
      cache.plan({config.tokens});
      cache.fill(0);
      GPU_MUST(cudaEventRecord(begin));
      cache.append(0);
      GPU_MUST(cudaEventRecord(end));
      if (!cache.verify("bulk")) return;
      float ms = 0;
      GPU_MUST(cudaEventElapsedTime(&ms, begin, end));
      best = std::min(best, ms);
    }
    const double vectors = 2.0 * config.tokens * config.heads, bytes = vectors * (2 * 128 + 16 * bits + 2);
    printf(
        "   bulk append, %d bits%s: %.3g random codes compared; %.0f us for %.0f tokens of 8 heads, %.0f "
        "GB/s "
        "read + written\n",
        bits, trellis ? " trellis" : "", vectors * 128 * rounds, 1000 * best,
        static_cast<double>(config.tokens), bytes / best / 1e6);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
}

// Microseconds of one append of the plan in force, from replays of a graph that holds `repeats` of them.
struct Times {
  float median, least, most;
};
Times replay_times(TestCache& cache, int repeats, int replays) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  GPU_MUST(cudaEventCreate(&begin));
  GPU_MUST(cudaEventCreate(&end));
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  GPU_MUST(cudaDeviceSynchronize());
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < repeats; i++) cache.append(0, stream);
  GPU_MUST(cudaStreamEndCapture(stream, &graph));
  GPU_MUST(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<float> times;
  for (int i = 0; i <= replays; i++) {
    GPU_MUST(cudaEventRecord(begin, stream));
    GPU_MUST(cudaGraphLaunch(executable, stream));
    GPU_MUST(cudaEventRecord(end, stream));
    GPU_MUST(cudaStreamSynchronize(stream));
    float ms = 0;
    GPU_MUST(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(1000 * ms / static_cast<float>(repeats));
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return Times{times[times.size() / 2], times.front(), times.back()};
}

// One token for each of 64 sequences, 8 kv heads, inside a graph: the decode step of one layer.
Config decode_config(int dim, int bits) {
  Config config;
  config.head_dim = config.value_dim = dim;
  config.key_bits = config.value_bits = bits;
  config.heads = 8;
  config.sequences = 64;
  config.tokens = 256;
  config.edges = false;
  return config;
}
void plan_decode(TestCache& cache) {
  cache.step(std::vector<int64_t>(64, 100));
  cache.plan(std::vector<int64_t>(64, 1));
  cache.fill(0);
}
void decode_time(bool trellis) {
  for (int bits : {2, 3, 4, 8}) {
    if (trellis && bits > 4) break;
    Config config = decode_config(128, bits);
    config.trellis = trellis;
    TestCache cache(config);
    plan_decode(cache);
    const Times times = replay_times(cache, 20, 21);
    if (cache.verify("decode timing"))
      printf(
          "   decode append, %d bits%s: %.2f us median of 21 graph replays of 20 (min %.2f, max %.2f), 64 "
          "sequences x 8 heads x 1 token\n",
          bits, trellis ? " trellis" : "", times.median, times.least, times.most);
  }
}

__global__ void sum_kernel(const uint4* from, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
#pragma unroll 8
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
    const uint4 x = from[at];
    sum += x.x ^ x.y ^ x.z ^ x.w;
  }
  if (sum == 0x12345678u) *out = sum;  // keeps the loads
}
// GB/s of reading 1 GiB in order, best of 8.
double read_roof() {
  constexpr int64_t kBytes = 1ll << 30;
  const Buffer<uint8_t> from(static_cast<size_t>(kBytes));
  const Buffer<uint32_t> out(1);
  GPU_MUST(cudaMemset(from.get(), 1, from.size()));
  cudaEvent_t begin, end;
  GPU_MUST(cudaEventCreate(&begin));
  GPU_MUST(cudaEventCreate(&end));
  float best = 1e30f;
  for (int i = 0; i < 8; i++) {
    GPU_MUST(cudaEventRecord(begin));
    start(sum_kernel, dim3(132 * 8), dim3(512), nullptr, reinterpret_cast<const uint4*>(from.get()),
          kBytes / 16, out.get());
    GPU_MUST(cudaEventRecord(end));
    GPU_MUST(cudaDeviceSynchronize());
    float ms = 0;
    GPU_MUST(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return kBytes / best / 1e6;
}

// One line of JSON a case: decode steps, and a prefill of 8 sequences x 4096 tokens, at 3 and 4 bits by the
// paper's rule too. bytes: input read and codes and scales written.
void bench() {
  const double roof = read_roof();
  struct Width {
    int bits;
    bool paper = false;
  };
  const Width widths[] = {{2}, {3}, {4}, {5}, {6}, {8}, {3, true}, {4, true}};
  for (int dim : {64, 128, 256})
    for (const Width& width : widths)
      for (bool prefill : {false, true}) {
        const int bits = width.bits;
        Config config = decode_config(dim, bits);
        if (width.paper) config.key_rule = config.value_rule = ScaleRule::kPaper;
        if (prefill) {
          config.sequences = 8;
          config.tokens = 4096;
        }
        TestCache cache(config);
        if (prefill) {
          cache.plan(std::vector<int64_t>(8, config.tokens));
          cache.fill(0);
        } else {
          plan_decode(cache);
        }
        const Times times = prefill ? replay_times(cache, 3, 11) : replay_times(cache, 20, 21);
        if (!cache.verify("bench")) return;
        const double vectors = 2.0 * config.heads * (prefill ? 8 * config.tokens : 64);
        const double rate = vectors * (2 * dim + dim * bits / 8 + 2) / times.median / 1e3;
        printf(
            "{\"case\": \"%s\", \"dim\": %d, \"bits\": %d, \"paper\": %s, \"us\": %.2f, \"us_min\": %.2f, "
            "\"us_max\": %.2f, "
            "\"gb_per_s\": %.1f, \"roof_gb_per_s\": "
            "%.1f, "
            "\"of_roof\": %.3f}\n",
            prefill ? "bulk_8x4096" : "decode_64x1", dim, bits, width.paper ? "true" : "false", times.median,
            times.least, times.most, rate, roof, rate / roof);
        fflush(stdout);
      }
}

// A bulk append and a decode step at 4 and at 8 bits, for a profiler.
void profile() {
  for (int bits : {4, 8}) {
    Config config;
    config.key_bits = config.value_bits = bits;
    config.heads = 8;
    config.edges = false;
    config.sequences = 64;
    TestCache cache(config);
    cache.step(std::vector<int64_t>(64, 300));
    cache.step(std::vector<int64_t>(64, 1));
    cache.step(std::vector<int64_t>(64, 1));
    check(cache.backend->check(nullptr) == 0, "profile");
  }
}

// Few and short cases, for sanitizers; tiny: for the one that watches every access to shared memory.
void small(bool tiny) {
  const int dims[] = {128, 80, 64, 256, 512, 96}, bits[] = {4, 3, 16, 2, 8, 3};
  for (int i = 0; i < (tiny ? 2 : 6); i++) {
    Config config;
    config.trellis = i == 5;
    config.head_dim = config.value_dim = dims[i];
    config.key_bits = config.value_bits = bits[i];
    config.centres = i == 1;
    config.window = i % 2 ? 20 : 0;
    config.sinks = i % 2 ? 4 : 0;
    config.rollback = i % 2 ? 7 : 0;
    run_steps(config, "small", false);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  const bool quick = mode == "--quick", timing = mode == "--time";
  try {
    if (mode == "--small" || mode == "--tiny") {
      small(mode == "--tiny");
      if (mode == "--small") noticed_flags();
      return gpu_test::finish("append_test");
    }
    if (mode == "--trellis") {  // these codes alone, 1e9 of each width
      trellis_codes();
      if (gpu_test::tally().failed == 0) {
        bulk(false, true);
        decode_time(true);
      }
      return gpu_test::finish("append_test");
    }
    if (mode == "--profile" || mode == "--bench") {
      mode == "--bench" ? bench() : profile();
      return gpu_test::finish("append_test");
    }
    if (!timing) {
      all_shapes();
      modes();
      trellis_codes();
      noticed_flags();
    }
    if (gpu_test::tally().failed == 0) {
      for (const bool trellis : {false, true}) {
        bulk(quick || timing, trellis);
        if (!quick) decode_time(trellis);
      }
    }
  } catch (const tq::Error& error) {
    gpu_test::check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("append_test");
}
