// SPDX-License-Identifier: Apache-2.0
// Order of streams, tried out on the emulation: random programs of plans, appends, attends, forks, removals,
// copies, parts exported and imported and graph replays on several streams, ordered by events as tqkv.h asks,
// run in random orders that streams and events allow. Every output, and every byte that is read at the end,
// must be what the program gives when each call is done before the next: 0 results that depend on the order.
//
// What a caller may do at once is done at once: arguments of the host are overwritten when a call returns,
// attends of one plan run on streams of their own in their own workspaces, two caches work side by side.
//
// streams_test [--quick] [SCHEDULES [FIRST_PROGRAM]]; needs the emulation. Programs have 1 to 3 steps: what
// streams can do wrong shows between a few calls.
#include <random>

#include "api_cache.cuh"
#include "streams.h"

namespace {

using namespace gpu_test;

constexpr int kDim = 32, kLayers = 2, kHeads = 2, kSequences = 2, kStreams = 3;

struct Program {
  uint64_t seed;
  int steps;
};

// Both caches and all that the calls read and write. Outputs have memory of their own, call by call.
class Run {
 public:
  explicit Run(const Program& program) : program_(program), random_(program.seed) {
    for (int i = 0; i < kStreams; i++)
      GPU_MUST(cudaStreamCreateWithFlags(&streams_[i], cudaStreamNonBlocking));
    GPU_MUST(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    for (int c = 0; c < 2; c++) {
      const tq_cache_config config = config_of(c);
      API_MUST(tq_cache_create(&config, streams_[0], &caches_[c]));
      API_MUST(tq_batch_create(caches_[c], &batches_[c]));
      for (tq_sequence& id : ids_[c]) API_MUST(tq_sequence_create(caches_[c], &id));
      size_t bytes = 0;
      API_MUST(tq_attend_workspace_bytes(caches_[c], &bytes));
      for (Memory& workspace : workspaces_[c]) workspace = Memory(TQ_DEVICE_CUDA, bytes);
    }
    for (int layer = 0; layer < kLayers; layer++)
      parts_[0][layer] = Memory(TQ_DEVICE_CPU, kPartBytes), parts_[1][layer] = Memory(kPinned, kPartBytes);
    std::vector<float> rows(kMostRows * kDim * 4);
    for (size_t i = 0; i < rows.size(); i++)
      rows[i] = static_cast<float>(mix64(program.seed * 65536 + i) >> 40) / (1 << 23) - 1;
    inputs_ = Memory(TQ_DEVICE_CUDA, rows.size() * 4);
    GPU_MUST(cudaMemcpy(inputs_.get(), rows.data(), rows.size() * 4, cudaMemcpyHostToDevice));
    outputs_ = Memory(TQ_DEVICE_CUDA, static_cast<size_t>(program.steps) * 2 * kLayers * kOutFloats * 4);
    outputs_.fill(0);
    GPU_MUST(cudaDeviceSynchronize());
  }
  ~Run() {
    cudaDeviceSynchronize();
    for (int c = 0; c < 2; c++) {
      tq_batch_destroy(batches_[c]);
      tq_cache_destroy(caches_[c]);
    }
    for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
    cudaEventDestroy(event_);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Everything that the program gives out.
  std::vector<uint8_t> results() {
    for (int step = 0; step < program_.steps; step++) serve(step);
    GPU_MUST(cudaDeviceSynchronize());
    std::vector<uint8_t> all = outputs_.host();
    for (int c = 0; c < 2; c++)
      for (const tq_sequence id : ids_[c]) {
        int64_t length = 0;
        API_MUST(tq_sequence_length(caches_[c], id, &length));
        Memory k(TQ_DEVICE_CUDA, static_cast<size_t>(length * kDim * 4)), v(TQ_DEVICE_CUDA, k.size());
        for (int layer = 0; layer < kLayers; layer++) {
          API_MUST(tq_cache_read(caches_[c], layer, id, 0, length, k.get(), v.get(), nullptr, streams_[0]));
          GPU_MUST(cudaDeviceSynchronize());
          for (const Memory* memory : {&k, &v}) {
            const std::vector<uint8_t> bytes = memory->host();
            all.insert(all.end(), bytes.begin(), bytes.end());
          }
        }
      }
    return all;
  }

 private:
  static constexpr size_t kPartBytes = 64 << 10;
  static constexpr int kMostRows = 80, kQueries = 2, kOutFloats = kSequences * kQueries * kHeads * kDim;

  static tq_cache_config config_of(int which) {
    static const int32_t key_bits[kLayers] = {4, 16}, value_bits[kLayers] = {3, 16};
    tq_cache_config config;
    API_MUST(tq_cache_config_init(&config));
    config.device_type = TQ_DEVICE_CUDA;
    config.num_layers = kLayers;
    config.num_q_heads = kHeads, config.num_kv_heads = 1, config.head_dim = kDim;
    config.io_dtype = TQ_F32;
    config.layer_key_bits = key_bits, config.layer_value_bits = value_bits;
    config.page_size = which ? 64 : 32;
    config.max_tokens = 192, config.max_sequences = kSequences + 1;
    config.window_tokens = which ? 0 : 4;
    return config;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  // `later` goes on when all that `earlier` was given so far is done.
  void order(cudaStream_t earlier, cudaStream_t later) {
    GPU_MUST(cudaEventRecord(event_, earlier));
    GPU_MUST(cudaStreamWaitEvent(later, event_, 0));
  }

  // One step of one cache, on its own stream, which may change between steps.
  void serve(int step) {
    const int c = static_cast<int>(below(2));
    if (below(3) == 0) {
      const cudaStream_t next = streams_[below(kStreams)];
      if (next != homes_[c]) order(home(c), next);
      homes_[c] = next;
    }
    const cudaStream_t stream = home(c);
    std::vector<int64_t> news, queries;
    int64_t rows = 0;
    for (int i = 0; i < kSequences; i++) {
      int64_t length = 0;
      API_MUST(tq_sequence_length(caches_[c], ids_[c][i], &length));
      if (length > 50) {
        API_MUST(tq_sequence_truncate(caches_[c], ids_[c][i], below(20), stream));
        length = 0;
      }
      news.push_back(1 + below(below(2) ? 3 : 33));
      queries.push_back(std::min<int64_t>(kQueries, news.back()));
      rows += news.back();
    }
    std::vector<tq_sequence> ids(ids_[c], ids_[c] + kSequences);
    API_MUST(tq_batch_plan(batches_[c], kSequences, ids.data(), news.data(), queries.data(), stream));
    ids.assign(ids.size(), -1), news.assign(news.size(), 1 << 20), queries.assign(queries.size(), -7);
    const float* k = inputs_.as<float>() + below(kMostRows) * kDim;
    for (int layer = 0; layer < kLayers; layer++)
      API_MUST(tq_cache_append(caches_[c], layer, batches_[c], k, k + kDim, nullptr, stream));
    attend_on_many(c, step, stream);
    after(c, stream);
  }
  // Each layer on its own stream, in its own workspace; then the cache's stream waits for them.
  void attend_on_many(int c, int step, cudaStream_t stream) {
    const bool apart = below(2);
    for (int layer = 0; layer < kLayers; layer++) {
      const cudaStream_t own = apart ? streams_[(layer + step) % kStreams] : stream;
      if (own != stream) order(stream, own);
      API_MUST(tq_cache_attend(caches_[c], layer, batches_[c], inputs_.get(),
                               outputs_.as<float>() + ((step * 2 + c) * kLayers + layer) * kOutFloats,
                               nullptr, nullptr, workspaces_[c][layer].get(), workspaces_[c][layer].size(),
                               own));
    }
    for (int layer = 0; layer < kLayers && apart; layer++) {
      const cudaStream_t own = streams_[(layer + step) % kStreams];
      if (own != stream) order(own, stream);
    }
  }
  // What else happens to sequences.
  void after(int c, cudaStream_t stream) {
    tq_sequence& id = ids_[c][below(kSequences)];
    int64_t length = 0;
    API_MUST(tq_sequence_length(caches_[c], id, &length));
    switch (below(7)) {
      case 0: {  // a fork takes its source's place
        tq_sequence fork = 0;
        API_MUST(tq_sequence_fork(caches_[c], id, stream, &fork));
        API_MUST(tq_sequence_free(caches_[c], id, stream));
        id = fork;
        break;
      }
      case 1:
        if (length > 4) API_MUST(tq_sequence_remove(caches_[c], id, below(length - 3), 2, stream));
        break;
      case 2: API_MUST(tq_sequence_truncate(caches_[c], id, below(length + 1), stream)); break;
      case 3: {  // to the other cache, whose stream must have come so far
        tq_sequence& replaced = ids_[1 - c][below(kSequences)];
        if (home(1 - c) != stream) order(home(1 - c), stream);
        API_MUST(tq_sequence_free(caches_[1 - c], replaced, stream));
        API_MUST(tq_sequence_copy(caches_[c], id, caches_[1 - c], stream, &replaced));
        if (home(1 - c) != stream) order(stream, home(1 - c));
        break;
      }
      case 4: travel(c, id, length, stream); break;
      default: break;
    }
  }
  // A sequence to the other cache by layers, each exported on a stream of its own into memory that is pinned
  // or not, and imported on the other cache's stream. That memory is written over as soon as a call that
  // waits has returned, or an event says so.
  void travel(int c, tq_sequence id, int64_t length, cudaStream_t stream) {
    if (length == 0) return;
    tq_sequence& replaced = ids_[1 - c][below(kSequences)];
    const cudaStream_t target = home(1 - c);
    API_MUST(tq_sequence_free(caches_[1 - c], replaced, target));
    API_MUST(tq_sequence_create(caches_[1 - c], &replaced));
    const bool pinned = below(2);
    for (int layer = 0; layer < kLayers; layer++) {
      tq_state state = {};
      state.struct_size = sizeof state;
      state.first_layer = layer, state.num_layers = 1;
      API_MUST(tq_sequence_describe(caches_[c], id, &state));
      const cudaStream_t own = streams_[below(kStreams)];
      if (own != stream) order(stream, own);
      Memory& memory = parts_[pinned][layer];
      if (pinned) GPU_MUST(cudaStreamSynchronize(target));  // what was read from it before
      memset(memory.get(), 0xEE, memory.size());
      API_MUST(tq_sequence_export(caches_[c], id, &state, memory.get(), memory.size(), own));
      if (own != stream) order(own, stream);
      if (own != target) order(own, target);
      API_MUST(tq_sequence_import(caches_[1 - c], replaced, &state, memory.get(), memory.size(), target));
      if (!pinned) memset(memory.get(), 0xEE, memory.size());
    }
  }
  cudaStream_t home(int c) { return homes_[c] ? homes_[c] : homes_[c] = streams_[c]; }

  const Program program_;
  std::mt19937_64 random_;
  cudaStream_t streams_[kStreams] = {}, homes_[2] = {};
  cudaEvent_t event_ = nullptr;
  tq_cache* caches_[2] = {};
  tq_batch* batches_[2] = {};
  tq_sequence ids_[2][kSequences] = {};
  Memory workspaces_[2][kLayers], inputs_, outputs_;
  Memory parts_[2][kLayers];  // of the host: [pinned]
};

std::vector<uint8_t> run(const Program& program, uint64_t order) {
  Run run(program);
  const emulate::Disorder disorder(order);
  return run.results();
}

// The simulator sees what it is there for: two streams that nothing orders, memory refilled too early, an
// event that is waited for.
void simulator() {
  int first_wins = 0, refilled = 0, ordered = 0;
  constexpr int kTimes = 200;
  for (int seed = 0; seed < kTimes; seed++) {
    cudaStream_t a, b;
    GPU_MUST(cudaStreamCreate(&a));
    GPU_MUST(cudaStreamCreate(&b));
    cudaEvent_t event;
    GPU_MUST(cudaEventCreate(&event));
    Memory target(TQ_DEVICE_CUDA, 256);
    void* pinned = nullptr;
    GPU_MUST(cudaHostAlloc(&pinned, 256, 0));
    memset(pinned, 3, 256);
    {
      const emulate::Disorder disorder(static_cast<uint64_t>(seed));
      GPU_MUST(cudaMemsetAsync(target.get(), 1, 64, a));
      GPU_MUST(cudaMemsetAsync(target.get(), 2, 64, b));
      GPU_MUST(cudaMemcpyAsync(target.as<uint8_t>() + 64, pinned, 64, cudaMemcpyHostToDevice, a));
      memset(pinned, 4, 256);
      GPU_MUST(cudaMemsetAsync(target.as<uint8_t>() + 128, 1, 64, a));
      GPU_MUST(cudaEventRecord(event, a));
      GPU_MUST(cudaStreamWaitEvent(b, event, 0));
      GPU_MUST(cudaMemsetAsync(target.as<uint8_t>() + 128, 2, 64, b));
    }
    const std::vector<uint8_t> bytes = target.host();
    first_wins += bytes[0] == 1;
    refilled += bytes[64] == 4;
    ordered += bytes[128] == 2;
    GPU_MUST(cudaFreeHost(pinned));
    GPU_MUST(cudaEventDestroy(event));
    GPU_MUST(cudaStreamDestroy(a));
    GPU_MUST(cudaStreamDestroy(b));
  }
  check(first_wins > 10 && first_wins < kTimes - 10, "unordered streams: one order in %d of %d", first_wins,
        kTimes);
  check(refilled > 10, "memory refilled too early was noticed %d times", refilled);
  check(ordered == kTimes, "an event held in %d of %d orders", ordered, kTimes);
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "--quick";
  const int wanted = count > 1 + quick ? atoi(arguments[1 + quick]) : quick ? 1000 : 100000;
  const uint64_t first = count > 2 + quick ? strtoull(arguments[2 + quick], nullptr, 10) : 1;
  constexpr int kOrders = 8;
  emulate::multiprocessors = 2;  // fewer CTAs: orders are tried between launches
  int64_t differ = 0, schedules = 0;
  try {
    simulator();
    for (uint64_t seed = first; schedules < wanted && differ == 0; seed++) {
      const Program program = {seed, 1 + static_cast<int>(seed % 3)};
      const std::vector<uint8_t> in_order = Run(program).results();
      for (uint64_t order = 1; order <= kOrders; order++, schedules++) {
        const bool same = run(program, seed * 100 + order) == in_order;
        check(same, "program %llu in order %llu gives other results", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(order));
        differ += !same;
      }
      if (schedules % 1000 < kOrders)
        printf("   %lld schedules\n", static_cast<long long>(schedules)), fflush(stdout);
    }
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  printf(
      "   %lld schedules, %lld pieces of work, %lld choices between streams, %lld order-dependent results\n",
      static_cast<long long>(schedules), static_cast<long long>(emulate::Disorder::items()),
      static_cast<long long>(emulate::Disorder::choices()), static_cast<long long>(differ));
  return finish("streams_test");
}
