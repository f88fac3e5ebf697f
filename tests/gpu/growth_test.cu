// SPDX-License-Identifier: Apache-2.0
// Pools that grow (tq_cache_reserve): what was stored stays where it is, a graph captured before the growth
// serves plans after it, every CUDA call made to fail leaves the pool as it was; removals likewise.
#include "api_cache.cuh"
#include "cuda/backend.h"
#include "failing_calls.cuh"

namespace {

using namespace gpu_test;

constexpr int kHeads = 2, kDim = 64, kLayers = 2, kSequences = 2;

tq_cache_config growing_config(int64_t max_tokens, int64_t reserve) {
  tq_cache_config config;
  API_MUST(tq_cache_config_init(&config));
  config.device_type = TQ_DEVICE_CUDA;
  config.num_layers = kLayers;
  config.num_q_heads = config.num_kv_heads = kHeads;
  config.head_dim = kDim;
  config.io_dtype = TQ_F32;
  config.key_bits = 4;
  config.value_bits = 3;
  config.page_size = 32;
  config.max_tokens = max_tokens;
  config.max_reserve_tokens = reserve;
  config.max_sequences = kSequences;
  config.max_sequence_tokens = 2048;
  config.max_batch_tokens = 512;
  config.window_tokens = 8;
  return config;
}

// A cache whose steps are planned and run; the same data for the same step of any such cache.
struct Runner {
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  tq_sequence ids[kSequences];
  Buffer<float> k, v, q, out;
  int64_t tokens = 0;

  explicit Runner(const tq_cache_config& config)
      : k(512 * kHeads * kDim), v(512 * kHeads * kDim), q(512 * kHeads * kDim), out(512 * kHeads * kDim) {
    API_MUST(tq_cache_create(&config, nullptr, &cache));
    try {
      API_MUST(tq_batch_create(cache, &batch));
      for (tq_sequence& id : ids) API_MUST(tq_sequence_create(cache, &id));
    } catch (...) {
      tq_batch_destroy(batch);
      tq_cache_destroy(cache);
      throw;
    }
  }
  ~Runner() { check(tq_batch_destroy(batch) == TQ_OK && tq_cache_destroy(cache) == TQ_OK, "destroy"); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  tq_status plan(int64_t first, int64_t second, cudaStream_t stream = nullptr) {
    const int64_t added[] = {first, second}, asked[] = {1, 1};
    return tq_batch_plan(batch, kSequences, ids, added, asked, stream);
  }
  void fill(int64_t rows) {
    std::vector<float> x(static_cast<size_t>(512 * kHeads * kDim), 0.0f);
    for (Buffer<float>* buffer : {&k, &v, &q}) {
      for (size_t i = 0; i < static_cast<size_t>(rows) * kHeads * kDim; i++)
        x[i] = static_cast<float>(static_cast<int>(mix64(tokens * 77 + i) % 2000) - 1000) * 0.001f;
      GPU_MUST(cudaMemcpy(buffer->get(), x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice));
    }
    tokens += rows;
  }
  void run(cudaStream_t stream = nullptr) {
    for (int layer = 0; layer < kLayers; layer++) {
      API_MUST(tq_cache_append(cache, layer, batch, k.get(), v.get(), nullptr, stream));
      API_MUST(
          tq_cache_attend(cache, layer, batch, q.get(), out.get(), nullptr, nullptr, nullptr, 0, stream));
    }
  }
  std::vector<float> output() {
    GPU_MUST(cudaDeviceSynchronize());
    std::vector<float> host = out.host();
    host.resize(kSequences * kHeads * kDim);
    return host;
  }
  int64_t length(int sequence) {
    int64_t tokens = -1;
    API_MUST(tq_sequence_length(cache, ids[sequence], &tokens));
    return tokens;
  }
  int64_t pages_total() {
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    API_MUST(tq_cache_get_memory(cache, &memory));
    return memory.pages_total;
  }
};

// A graph captured in a small pool, replayed while the pool grows, beside a cache that had all memory at
// once.
void graph_through_growth() {
  Runner small(growing_config(128, 4096)), large(growing_config(4096, 0));
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (Runner* runner : {&small, &large}) {
    API_MUST(runner->plan(40, 3));
    runner->fill(43);
    runner->run();
    GPU_MUST(cudaDeviceSynchronize());
    API_MUST(runner->plan(1, 1, stream));
    runner->fill(2);
    GPU_MUST(cudaStreamSynchronize(stream));
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  small.run(stream);
  check(tq_cache_reserve(small.cache, 256, stream) == TQ_ERROR_CAPTURE, "growth in a capture");
  GPU_MUST(cudaStreamEndCapture(stream, &graph));
  GPU_MUST(cudaGraphInstantiate(&executable, graph, 0));
  GPU_MUST(cudaGraphLaunch(executable, stream));
  large.run(stream);
  check(small.output() == large.output(), "the captured step");
  int64_t room = 128, refused = 0;
  for (int step = 0; step < 40; step++) {
    const int64_t first = step % 7 == 3 ? 120 : 1, second = step % 5;
    while (small.plan(first, second, stream) == TQ_ERROR_CAPACITY) {
      refused++;
      room += 200;
      API_MUST(tq_cache_reserve(small.cache, room, stream));
    }
    API_MUST(large.plan(first, second, stream));
    small.fill(first + second);
    large.fill(first + second);
    GPU_MUST(cudaGraphLaunch(executable, stream));
    large.run(stream);
    check(small.output() == large.output(), "step %d at %lld tokens", step, static_cast<long long>(room));
  }
  check(refused >= 2, "the pool grew %lld times", static_cast<long long>(refused));
  GPU_MUST(cudaGraphExecDestroy(executable));
  GPU_MUST(cudaGraphDestroy(graph));
  GPU_MUST(cudaStreamDestroy(stream));
}

// Creation and growth with call number n failing. False when n is beyond the last call.
bool life(int n) {
  const tq_cache_config config = growing_config(128, 8192);
  calls = 0;
  fail_at = n;
  bool failed = false;
  {
    std::unique_ptr<Runner> runner;
    try {
      runner.reset(new Runner(config));
    } catch (const std::runtime_error&) {
      failed = true;
      return true;  // nothing is left; the caller looks at the memory
    }
    const int after_create = calls;
    const tq_status grown = tq_cache_reserve(runner->cache, 5000, nullptr);
    const int used = calls;
    fail_at = -1;
    if (grown != TQ_OK) {
      failed = true;
      check(n > after_create && n <= used, "call %d failing: %s", n, tq_last_error());
      check(runner->pages_total() == 4 + kSequences, "call %d failing: the pool grew", n);
      API_MUST(tq_cache_reserve(runner->cache, 5000, nullptr));
    }
    check(runner->pages_total() == 157 + kSequences, "call %d: pages of the grown pool", n);
    API_MUST(runner->plan(500, 12));
    runner->fill(512);
    runner->run();
    static std::vector<float> usual;
    const std::vector<float> output = runner->output();
    if (usual.empty()) usual = output;
    check(output == usual, "call %d failing: another output", n);
    // A removal: it fails as a whole, too.
    fail_at = n > used ? calls + n - used : -1;
    int before = calls;
    const tq_status removed = tq_sequence_remove(runner->cache, runner->ids[0], 3, 40, nullptr);
    const int counted = used + calls - before;
    fail_at = -1;
    if (removed != TQ_OK) {
      failed = true;
      check(runner->length(0) == 500, "call %d failing: tokens are gone", n);
      API_MUST(tq_sequence_remove(runner->cache, runner->ids[0], 3, 40, nullptr));
    }
    check(runner->length(0) == 460, "call %d: tokens after a removal", n);
    fail_at = n > counted ? calls + n - counted : -1;
    before = calls;
    runner.reset();
    fail_at = -1;
    return failed || n <= counted + calls - before;
  }
}

void failures() {
  life(-1);
  count_calls();
  size_t before = 0, after = 0, total = 0;
  GPU_MUST(cudaDeviceSynchronize());
  GPU_MUST(cudaMemGetInfo(&before, &total));
  // What the driver takes once for such lives is no leak of theirs.
  size_t steady = 0;
  for (int i = 0; i < 4; i++) life(-1);
  GPU_MUST(cudaMemGetInfo(&steady, &total));
  for (int i = 0; i < 16; i++) life(-1);
  GPU_MUST(cudaMemGetInfo(&before, &total));
  check(steady == before, "lives without a failure: %zu bytes free, then %zu", steady, before);
  int n = 1;
  while (life(n)) n++;
  runtime() = real_runtime();
  GPU_MUST(cudaDeviceSynchronize());
  GPU_MUST(cudaMemGetInfo(&after, &total));
  check_held({}, "after all lives");
  check(before == after, "device memory: %zu bytes free before, %zu after", before, after);
  check(n > 60, "only %d calls were made to fail", n - 1);
  printf("   %d CUDA calls made to fail in turn\n", n - 1);
}

// What is announced is what is taken, page by page.
void bytes() {
  const tq_cache_config config = growing_config(128, 8192);
  tq_cache_bytes announced = {};
  announced.struct_size = sizeof announced;
  API_MUST(tq_cache_config_bytes(&config, &announced));
  Runner runner(config);
  tq_cache_memory memory = {};
  memory.struct_size = sizeof memory;
  API_MUST(tq_cache_get_memory(runner.cache, &memory));
  check(memory.device_bytes == announced.device_bytes, "device bytes at create");
  size_t before = 0, after = 0, total = 0;
  GPU_MUST(cudaMemGetInfo(&before, &total));
  const int64_t old = memory.device_bytes;
  API_MUST(tq_cache_reserve(runner.cache, 8192, nullptr));
  GPU_MUST(cudaMemGetInfo(&after, &total));
  API_MUST(tq_cache_get_memory(runner.cache, &memory));
  check(memory.device_bytes - old == static_cast<int64_t>(before - after), "grown by %lld bytes, said %lld",
        static_cast<long long>(before - after), static_cast<long long>(memory.device_bytes - old));
}

void not_on_every_device() {
  const tq_cache_config config = growing_config(128, 8192);
  char text[512];
  runtime().driver_attribute = [](int* value, CUdevice_attribute, int) {
    *value = 0;
    return cudaSuccess;
  };
  check(tq_cache_config_check(&config, text, sizeof text) == TQ_ERROR_NOT_SUPPORTED &&
            strstr(text, "max_reserve_tokens") && strstr(text, "virtual memory"),
        "a device without virtual memory management: %s", text);
  runtime().driver_attribute = [](int*, CUdevice_attribute, int) { return cudaErrorNotSupported; };
  check(tq_cache_config_check(&config, text, sizeof text) == TQ_ERROR_NOT_SUPPORTED, "an old driver: %s",
        text);
  runtime() = real_runtime();
}

}  // namespace

int main() {
  try {
    not_on_every_device();
    bytes();
    graph_through_growth();
    failures();
  } catch (const std::exception& error) {
    gpu_test::check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("growth_test");
}
