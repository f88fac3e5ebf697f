// SPDX-License-Identifier: Apache-2.0
// CPU bench: encode MB/s and attend tokens/s on codes beside a float16 KV cache, in one process, as JSON on
// standard output.
//
//     cpu_bench [--quick] [--case encode|attend] [--isa NAME] [--kv 4+4,16+16] [--rows 1,4] [--threads 1]
//               [--repeats N] [--place in]
//
// --kv, --rows, --threads and --place (in or out of cache) choose among them. 16+16 is a raw layer,
// "4+4w128" keeps the last 128 tokens exactly, "t3+3" has trellis codes.
//
// head_dim 128. Out of cache: the codes of all heads are several times the last-level cache (which is
// printed). In cache: one layer of few heads. "tokens" counts (token, kv head) pairs. float16 and all
// kinds take turns, round after round. Figures: the median round by the clock, spread = (largest - smallest)
// / median; and the best round by the process's CPU time, which other programs disturb least.
// The codes are made by append from random data. The timed output of the cases in cache is compared with the
// scalar path over the same codes.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "host_ops.h"
#include "tests/bench/fp16_attention.h"
#include "uniform_geometry.h"

namespace tq {
namespace bench {
namespace {

constexpr int kDim = 128;

// What a cache keeps.
struct Kept {
  std::string name;
  format::CodeId code;  // of keys and values
  int window;
};
Kept coded(const std::string& name, int bits, int window = 0) {
  return Kept{name, format::code_of_bits(bits), window};
}
Kept trellis(const std::string& name, int bits) { return Kept{name, format::trellis_code(bits), 0}; }
const std::vector<Kept> kKept = {coded("2+2", 2),    coded("3+3", 3),          coded("4+4", 4),
                                 coded("5+5", 5),    coded("6+6", 6),          coded("8+8", 8),
                                 coded("16+16", 16), coded("4+4w128", 4, 128), trellis("t2+2", 2),
                                 trellis("t3+3", 3), trellis("t4+4", 4)};

struct Settings {
  bool quick = false, encode = true, attend = true;
  std::vector<Kept> kept;
  std::vector<int> rows = {1, 4, 8}, threads = {1, 2};
  std::string isa = cpu::active_isa(), place;  // place: how a case's begins
  int64_t pairs = 48 * 32768;                  // token-head pairs, out of cache
  int repeats = 5;
};

void* allocate(void*, size_t bytes, size_t alignment, int32_t, int32_t) {
  void* pointer = nullptr;
  return posix_memalign(&pointer, std::max<size_t>(alignment, 64), bytes) == 0 ? pointer : nullptr;
}
void release(void*, void* pointer, size_t, int32_t, int32_t) { free(pointer); }
const HostOps kOps = {nullptr, allocate, release};

// Wall and process CPU seconds. The second stays meaningful while other programs share the machine.
struct Timing {
  double median, spread, cpu_best;
};
double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Several bodies in turn, round after round, so that all of them see the same machine.
std::vector<Timing> measure_in_turn(int repeats, const std::vector<std::function<void()>>& bodies) {
  std::vector<std::vector<double>> seconds(bodies.size()), cpu(bodies.size());
  for (int round = -1; round < repeats; round++)  // the first one warms up
    for (size_t i = 0; i < bodies.size(); i++) {
      const auto start = std::chrono::steady_clock::now();
      const double cpu_start = cpu_seconds();
      bodies[i]();
      if (round < 0) continue;
      cpu[i].push_back(cpu_seconds() - cpu_start);
      seconds[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  std::vector<Timing> timings;
  for (size_t i = 0; i < bodies.size(); i++) {
    std::sort(seconds[i].begin(), seconds[i].end());
    std::sort(cpu[i].begin(), cpu[i].end());
    const double median = seconds[i][seconds[i].size() / 2];
    timings.push_back(Timing{median, (seconds[i].back() - seconds[i].front()) / median, cpu[i].front()});
  }
  return timings;
}

Timing measure(int repeats, const std::function<void()>& body) { return measure_in_turn(repeats, {body})[0]; }

uint32_t noise(uint64_t* state) {
  return static_cast<uint32_t>(format::mix64(*state += format::kGolden) >> 32);
}

// A cache of one layer whose sequence fills the whole pool; pages hold every (token, head) pair once, so the
// same pool serves any split of pairs into heads x tokens.
struct Cache {
  UniformGeometry geometry;
  std::unique_ptr<Backend> backend;
  std::vector<int32_t> pages;
  StepSequence sequence = {};
  const int64_t first_changed = 0;
  std::vector<int32_t> copies;  // pages of exact copies
  PageMap maps[2] = {};
  BatchPlan plan = {};

  Cache(const Settings& settings, const Kept& kept, int heads, int64_t tokens, int q_per_kv, int threads,
        void* pool) {
    UniformGeometry& g = geometry;
    g.num_layers = 1;
    g.num_kv_heads = heads;
    g.q_per_kv = q_per_kv;
    g.num_q_heads = heads * q_per_kv;
    g.head_dim = g.value_dim = kDim;
    g.io_dtype = DataType::kF32;
    g.rotation = format::Rotation::kHadamard;
    g.key_rule = format::ScaleRule::kLs;
    g.value_rule = format::ScaleRule::kUnbiased;
    g.search = true;
    g.page_size = 64;
    const int64_t num_pages = tokens / g.page_size;
    g.num_groups = 1;
    g.groups[0] = PageGroup{g.page_size, num_pages, num_pages};
    g.max_sequences = g.max_batch_sequences = 1;
    g.max_batch_tokens = tokens;
    g.num_threads = threads;
    g.window_tokens = kept.window;
    g.raw_group = kept.window > 0 ? g.num_groups++ : -1;
    if (g.has_exact()) {
      const int64_t tiles = tokens / format::kTileTokens, kept_tiles = kept.window / format::kTileTokens + 2;
      g.groups[1] = PageGroup{format::kTileTokens, kept_tiles, tiles};
      for (int64_t i = 0; i < tiles; i++) copies.push_back(static_cast<int32_t>(i % kept_tiles));
    }
    g.set_layers(kept.code, kept.code);
    if (pool) backend = cpu::create_cpu_backend_for(g, kOps, pool, settings.isa.c_str());
    for (int64_t i = 0; i < num_pages; i++) pages.push_back(static_cast<int32_t>(i));
    uint64_t state = 5;
    // as after long use
    for (size_t i = pages.size(); i > 1; i--) std::swap(pages[i - 1], pages[noise(&state) % i]);
  }
  ~Cache() {
    if (backend) backend->destroy_plan_storage(plan.storage);
  }
  void upload(int64_t old_length, int64_t new_tokens, int64_t queries) {
    const int64_t length = old_length + new_tokens;
    sequence =
        StepSequence{0, 0, 0, old_length, new_tokens, queries, 0, 0, length - geometry.window_tokens, 0};
    if (!plan.storage) plan.storage = backend->create_plan_storage();
    plan.rows = StepRows{1, &sequence, new_tokens, queries};
    maps[0] = PageMap{pages.data(), static_cast<int64_t>(pages.size()), &first_changed};
    maps[1] = PageMap{copies.data(), static_cast<int64_t>(copies.size()), &first_changed};
    plan.maps = maps;
    backend->upload_plan(plan, nullptr);
  }
  // Appends `count` tokens at `old_length` from data [count][heads][128].
  void append(int64_t old_length, int64_t count, const float* data) {
    upload(old_length, count, 0);
    const TensorStrides strides = {static_cast<int64_t>(geometry.num_kv_heads) * kDim, kDim};
    backend->append(AppendRequest{0, &plan, data, data + 1024, strides, strides, nullptr});
  }
  // For attend, with exact copies of the last tokens.
  void make_ready(int64_t length, const float* data) {
    for (int64_t first = length - geometry.window_tokens; first < length; first += 4)
      append(first, 4, data);  // data has so many of the most heads
    upload(length, 0, 1);
  }
  void attend(const float* q, float* out) {
    AttendRequest request = {};
    request.plan = &plan;
    request.q = q;
    request.out = out;
    request.q_strides = request.out_strides = {static_cast<int64_t>(geometry.num_q_heads) * kDim, kDim};
    request.out_dtype = DataType::kF32;
    request.softmax_scale = 0.08838834764f;
    request.workspace = backend->own_workspace();
    request.workspace_bytes = static_cast<size_t>(backend->bytes().workspace);
    backend->attend(request);
  }
};

std::vector<float> random_floats(size_t count) {
  std::vector<float> x(count);
  uint64_t state = 1;
  for (float& v : x) {  // four uniforms: near enough to a Gaussian
    v = 0;
    for (int i = 0; i < 4; i++) v += static_cast<float>(noise(&state)) * 0x1p-32f - 0.5f;
    v *= 1.7320508f;
  }
  return x;
}

bool first_record = true;
void print_record(const std::string& text) {
  printf("%s\n    {%s}", first_record ? "" : ",", text.c_str());
  first_record = false;
  fflush(stdout);
}

template <typename... Args>
std::string text(const char* format, Args... args) {
  char buffer[512];
  snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

void bench_encode(const Settings& settings, const std::vector<float>& data) {
  constexpr int kHeads = 8;
  const int64_t tokens = settings.quick ? 1024 : 4096;
  for (const Kept& kept : kKept)
    for (const int threads : settings.threads) {
      if (kept.code.raw() || kept.window > 0) continue;
      const Cache measure_only(settings, kept, kHeads, tokens, 1, threads, nullptr);
      const size_t bytes = static_cast<size_t>(cpu::cpu_backend_bytes(measure_only.geometry).pages);
      void* pool = allocate(nullptr, bytes, 256, 1, 0);
      Cache cache(settings, kept, kHeads, tokens, 1, threads, pool);
      const Timing t = measure(settings.repeats, [&] {
        for (int64_t first = 0; first < tokens; first += 256) cache.append(first, 256, data.data());
      });
      const double input = static_cast<double>(tokens) * kHeads * 2 * kDim * 4;
      print_record(
          text("\"case\": \"encode\", \"kv\": \"%s\", \"threads\": %d, \"MB_per_s\": %.0f, "
               "\"MB_per_cpu_s\": %.0f, \"spread\": %.3f",
               kept.name.c_str(), threads, input / t.median * 1e-6, input / t.cpu_best * 1e-6, t.spread));
      free(pool);
    }
  // Decode: one token of eight heads at a time.
  const Cache measure_only(settings, coded("", 3), kHeads, 1024, 1, 1, nullptr);
  void* pool =
      allocate(nullptr, static_cast<size_t>(cpu::cpu_backend_bytes(measure_only.geometry).pages), 256, 1, 0);
  Cache cache(settings, coded("", 3), kHeads, 1024, 1, 1, pool);
  const Timing t = measure(settings.repeats, [&] {
    for (int64_t token = 0; token < 1024; token++) cache.append(token, 1, data.data());
  });
  print_record(
      text("\"case\": \"append one token\", \"bits\": 3, \"threads\": 1, \"us_per_token_head\": %.3f, "
           "\"cpu_us_per_token_head\": %.3f, \"spread\": %.3f",
           t.median / 1024 / kHeads * 1e6, t.cpu_best / 1024 / kHeads * 1e6, t.spread));
  free(pool);
}

struct Shape {
  const char* place;
  int64_t tokens, pairs;
};

struct Case {
  Shape shape;
  int q_per_kv, threads;
  int heads() const { return static_cast<int>(shape.pairs / shape.tokens); }
};

std::vector<Case> cases(const Settings& settings) {
  std::vector<Shape> shapes = {{"in cache", 4096, 4 * 4096},
                               {"out of cache", 4096, settings.pairs},
                               {"out of cache", 32768, settings.pairs}};
  if (settings.quick) shapes.erase(shapes.begin() + 1);
  std::vector<Case> all;
  for (const Shape& shape : shapes) {
    if (std::string(shape.place).rfind(settings.place, 0) != 0) continue;
    for (const int q_per_kv : settings.rows)
      for (const int threads : settings.threads) all.push_back(Case{shape, q_per_kv, threads});
  }
  return all;
}

// Repeats inside a measurement of small cases, so that it lasts some milliseconds.
int inner_loops(const Settings& settings, const Case& c) { return c.shape.pairs < settings.pairs ? 16 : 1; }

// fp16: the yardstick's timing, null for its own record. error: against the scalar path, negative = not
// compared.
void print_attend(const Settings& settings, const Case& c, const std::string& kv, double token_bytes,
                  const Timing& t, const Timing* fp16, double error) {
  const double tokens = static_cast<double>(c.shape.pairs) * inner_loops(settings, c);
  std::string record = text(
      "\"case\": \"attend\", \"kv\": \"%s\", \"place\": \"%s\", \"n\": %lld, \"q_per_kv\": %d, \"threads\": "
      "%d, ",
      kv.c_str(), c.shape.place, static_cast<long long>(c.shape.tokens), c.q_per_kv, c.threads);
  record += text(
      "\"Mtokens_per_s\": %.1f, \"spread\": %.3f, \"cpu_ns_per_token\": %.2f, \"GB_per_s\": %.2f, "
      "\"MB_stored\": %.0f",
      tokens / t.median * 1e-6, t.spread, t.cpu_best / tokens * 1e9, tokens * token_bytes / t.median * 1e-9,
      static_cast<double>(c.shape.pairs) * token_bytes * 1e-6);
  if (fp16)
    record += text(", \"times_fp16\": %.2f, \"times_fp16_by_cpu_time\": %.2f", fp16->median / t.median,
                   fp16->cpu_best / t.cpu_best);
  if (error >= 0) record += text(", \"error_to_scalar\": %.1e", error);
  print_record(record);
}

// Relative L2 distance.
double distance(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); i++) {
    difference += (static_cast<double>(got[i]) - want[i]) * (static_cast<double>(got[i]) - want[i]);
    size += static_cast<double>(want[i]) * want[i];
  }
  return sqrt(difference / size);
}

// The tokens of all cases, and their caches. A backend clears the memory it is given: all of them are made
// before tokens are written.
struct Filled {
  void* pool;
  std::vector<std::unique_ptr<Cache>> timed, scalar;  // of each case; scalar: of those that are compared

  Filled(const Settings& settings, const Kept& kept, const std::vector<Case>& all,
         const std::vector<float>& data) {
    const int heads = static_cast<int>(settings.pairs / 32768);
    const Kept codes = {kept.name, kept.code, 0};
    Settings plain = settings;
    plain.isa = "scalar";
    const Cache measure_only(settings, codes, heads, 32768, 1, 1, nullptr);
    pool = allocate(nullptr, static_cast<size_t>(cpu::cpu_backend_bytes(measure_only.geometry).pages), 256, 1,
                    0);
    for (const Case& c : all) {
      timed.push_back(
          std::make_unique<Cache>(settings, kept, c.heads(), c.shape.tokens, c.q_per_kv, c.threads, pool));
      const bool compared = c.shape.pairs < settings.pairs && c.threads == 1;
      scalar.push_back(
          compared ? std::make_unique<Cache>(plain, kept, c.heads(), c.shape.tokens, c.q_per_kv, 1, pool)
                   : nullptr);
    }
    Cache filler(settings, codes, heads, 32768, 1, 2, pool);
    for (int64_t first = 0; first < 32768; first += 128) filler.append(first, 128, data.data() + first % 512);
    for (size_t i = 0; i < all.size(); i++)
      for (Cache* cache : {timed[i].get(), scalar[i].get()})
        if (cache) cache->make_ready(all[i].shape.tokens, data.data());
  }
  ~Filled() {
    timed.clear();
    scalar.clear();
    free(pool);
  }
};

uint16_t* fp16_data(const Settings& settings, const std::vector<float>& data, size_t offset) {
  const size_t elements = static_cast<size_t>(settings.pairs) * kDim, period = data.size() - 1009;
  uint16_t* target = static_cast<uint16_t*>(allocate(nullptr, elements * 2, 64, 1, 0));
  for (size_t i = 0; i < elements; i++) target[i] = format::f16_from_float(data[(i + offset) % period]);
  return target;
}

void bench_attend(const Settings& settings, const std::vector<float>& data) {
  const Fp16Attention fp16 = fp16_attention(settings.isa.c_str());
  uint16_t* keys = fp16 ? fp16_data(settings, data, 0) : nullptr;
  uint16_t* values = fp16 ? fp16_data(settings, data, 500) : nullptr;
  const std::vector<Case> all = cases(settings);
  std::vector<std::unique_ptr<Filled>> filled;
  for (const Kept& kept : settings.kept)
    filled.push_back(std::make_unique<Filled>(settings, kept, all, data));
  for (size_t index = 0; index < all.size(); index++) {
    const Case& c = all[index];
    const size_t out_floats = static_cast<size_t>(c.heads()) * c.q_per_kv * kDim;
    std::vector<std::vector<float>> out(filled.size() + 1, std::vector<float>(out_floats));
    std::vector<std::function<void()>> bodies;
    for (size_t i = 0; i < filled.size(); i++)
      bodies.push_back([&, i] {
        for (int k = 0; k < inner_loops(settings, c); k++)
          filled[i]->timed[index]->attend(data.data(), out[i].data());
      });
    cpu::ThreadPool threads(c.threads);
    if (fp16)
      bodies.push_back([&] {
        for (int k = 0; k < inner_loops(settings, c); k++)
          fp16(threads, keys, values, c.heads(), c.shape.tokens, c.q_per_kv, data.data(), out.back().data());
      });
    const std::vector<Timing> timings = measure_in_turn(settings.repeats, bodies);
    if (fp16) print_attend(settings, c, "fp16", 512, timings.back(), nullptr, -1);
    for (size_t i = 0; i < filled.size(); i++) {
      const Kept& kept = settings.kept[i];
      double error = -1;
      if (filled[i]->scalar[index]) {
        std::vector<float> want(out_floats);
        filled[i]->scalar[index]->attend(data.data(), want.data());
        error = distance(out[i], want);
      }
      print_attend(settings, c, kept.name,
                   format::TileLayout(kDim, kDim, kept.code, kept.code).tile_bytes() / 32.0, timings[i],
                   fp16 ? &timings.back() : nullptr, error);
    }
  }
  free(keys);
  free(values);
}

std::string cpu_name() {
  std::string name = "unknown";
  if (FILE* file = fopen("/proc/cpuinfo", "r")) {
    char line[256];
    while (fgets(line, sizeof line, file))
      if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
        name = strchr(line, ':') + 2;
        name.erase(name.find_last_not_of("\n") + 1);
        break;
      }
    fclose(file);
  }
  return name;
}

std::vector<std::string> parts(const std::string& list) {
  std::vector<std::string> all;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) all.push_back(part);
  return all;
}

// Numbers from 1 on; empty if anything else stands there.
std::vector<int> numbers(const std::string& list) {
  std::vector<int> all;
  for (const std::string& part : parts(list)) {
    all.push_back(atoi(part.c_str()));
    if (all.back() < 1) return {};
  }
  return all;
}

std::vector<Kept> kept_of(const std::string& list) {
  std::vector<Kept> all;
  for (const std::string& part : parts(list)) {
    const auto found =
        std::find_if(kKept.begin(), kKept.end(), [&](const Kept& k) { return k.name == part; });
    if (found == kKept.end()) return {};
    all.push_back(*found);
  }
  return all;
}

bool parse(int argc, char** argv, Settings* settings) {
  settings->kept = kept_of("2+2,3+3,4+4,8+8,16+16,4+4w128");
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (option == "--quick") {
      settings->quick = true, settings->pairs = 24 * 32768, settings->repeats = 3, settings->rows = {1, 4};
      settings->kept = kept_of("3+3,4+4,16+16,4+4w128");
      continue;
    }
    if (++i >= argc) return false;
    if (option == "--case") {
      settings->encode = std::string(argv[i]) != "attend",
      settings->attend = std::string(argv[i]) != "encode";
    } else if (option == "--isa") {
      settings->isa = argv[i];
    } else if (option == "--kv") {
      settings->kept = kept_of(argv[i]);
    } else if (option == "--rows") {
      settings->rows = numbers(argv[i]);
    } else if (option == "--threads") {
      settings->threads = numbers(argv[i]);
    } else if (option == "--place") {
      settings->place = argv[i];
    } else if (option == "--repeats") {
      settings->repeats = atoi(argv[i]);
    } else {
      return false;
    }
  }
  return !settings->kept.empty() && !settings->rows.empty() && !settings->threads.empty() &&
         settings->repeats > 0;
}

int run(int argc, char** argv) {
  Settings settings;
  if (!parse(argc, argv, &settings)) {
    fprintf(stderr,
            "usage: cpu_bench [--quick] [--case encode|attend] [--isa NAME] [--kv NAME,..] [--rows "
            "1,2,4,8,..] [--threads N,..] "
            "[--repeats N] [--place in|out]\n  isa: %s\n  kv: ",
            cpu::supported_isas());
    for (const Kept& kept : kKept) fprintf(stderr, " \"%s\"", kept.name.c_str());
    fprintf(stderr, "\n");
    return 2;
  }
  const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  printf(
      "{\n  \"cpu\": \"%s\", \"isa\": \"%s\", \"isas\": \"%s\", \"hardware_threads\": %ld, "
      "\"last_level_cache_MB\": %.0f, \"head_dim\": %d, "
      "\"repeats\": %d,\n  \"results\": [",
      cpu_name().c_str(), settings.isa.c_str(), cpu::supported_isas(), sysconf(_SC_NPROCESSORS_ONLN),
      static_cast<double>(cache_bytes) / 1048576, kDim, settings.repeats);
  const std::vector<float> data = random_floats(384 * 8 * kDim * 4 + 4096 + 8 * 256 * kDim);
  if (settings.encode) bench_encode(settings, data);
  if (settings.attend) bench_attend(settings, data);
  printf("\n  ]\n}\n");
  return 0;
}

}  // namespace
}  // namespace bench
}  // namespace tq

int main(int argc, char** argv) { return tq::bench::run(argc, argv); }
