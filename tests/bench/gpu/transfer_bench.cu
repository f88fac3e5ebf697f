// SPDX-License-Identifier: Apache-2.0
// Parts of sequences to pinned memory of the host and back, beside cudaMemcpyAsync of as many bytes in the
// same process: GB/s, share of the link, time of the host per call, and how much of a transfer by layers
// disappears beside the attention of the layers. One JSON object on stdout.
//
//   transfer_bench [--tokens N] [--layers N] [--rounds N]
//
// The ways are timed in turns, each round all of them, and the medians are printed.
#include <string.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "../../gpu/api_cache.cuh"

namespace {

using namespace gpu_test;

struct Options {
  int64_t tokens = 32768;
  int layers = 16, rounds = 7;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

class Clock {
 public:
  Clock() {
    GPU_MUST(cudaEventCreate(&begin_));
    GPU_MUST(cudaEventCreate(&end_));
  }
  ~Clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  // Milliseconds of the device between what a call enqueues first and last; *host: of the call itself.
  double time(cudaStream_t stream, const std::function<void()>& call, double* host = nullptr) {
    GPU_MUST(cudaDeviceSynchronize());
    GPU_MUST(cudaEventRecord(begin_, stream));
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
    GPU_MUST(cudaEventRecord(end_, stream));
    GPU_MUST(cudaEventSynchronize(end_));
    float ms = 0;
    GPU_MUST(cudaEventElapsedTime(&ms, begin_, end_));
    if (host) *host = spent.count();
    return ms;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Pages of a sequence lie as a pool that is in use has them: in no order.
class Bench {
 public:
  explicit Bench(const Options& options) : o_(options) {
    tq_cache_config config = api_config(128, 128, 4, 4, 32, 8, TQ_BF16);
    config.num_layers = o_.layers;
    config.max_tokens = 3 * o_.tokens, config.max_sequences = 3;
    config.max_batch_tokens = 4096;
    cache_.reset(new ApiCache(config, TQ_DEVICE_CUDA, 0));
    GPU_MUST(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking));
    GPU_MUST(cudaStreamCreateWithFlags(&copy_, cudaStreamNonBlocking));
    GPU_MUST(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    id_ = cache_->sequence();
    other_ = cache_->sequence();
    source_ = RowSource{1, TQ_BF16, 0, 0, 8, 128, 1};
    rows_ = Rows(source_, 4096, false);
    rows_.fill(source_, {RowRun{0, 0, 0, 4096}});
    GPU_MUST(cudaDeviceSynchronize());
    for (int64_t done = 0; done < o_.tokens; done += 1024)  // pages of both by turns
      for (const tq_sequence id : {id_, other_}) append(id, std::min<int64_t>(1024, o_.tokens - done));
    describe();
    memory_ = Memory(kPinned, static_cast<size_t>(state_.bytes));
    plain_ = Memory(TQ_DEVICE_CUDA, static_cast<size_t>(state_.bytes));
    GPU_MUST(cudaMemset(plain_.get(), 1, plain_.size()));
    memory_.fill(0);
  }
  ~Bench() {
    cudaStreamDestroy(compute_);
    cudaStreamDestroy(copy_);
    cudaEventDestroy(event_);
  }

  void rates() {
    struct Way {
      const char* name;
      std::function<void()> call;
      std::vector<double> ms, host;
    };
    std::vector<Way> ways;
    const auto way = [&](const char* name, const std::function<void()>& call) {
      ways.push_back({name, call, {}, {}});
    };
    const size_t bytes = static_cast<size_t>(state_.bytes);
    way("link_to_host", [=] { memcpy_async(memory_.get(), plain_.get(), bytes, cudaMemcpyDeviceToHost); });
    way("export", [=] { export_part(state_, memory_.get(), copy_); });
    way("export_by_layers",
        [=] { by_layers([this](const tq_state& s, uint8_t* at) { export_part(s, at, copy_); }); });
    way("link_to_device", [=] { memcpy_async(plain_.get(), memory_.get(), bytes, cudaMemcpyHostToDevice); });
    way("import", [=] { import_part(state_, memory_.get()); });
    way("import_by_layers",
        [=] { by_layers([this](const tq_state& s, uint8_t* at) { import_part(s, at); }); });
    for (int round = 0; round <= o_.rounds; round++)
      for (Way& each : ways) {
        const bool import = strstr(each.name, "import");
        if (import) target_ = cache_->sequence();
        double host = 0;
        const double ms = clock_.time(copy_, each.call, &host);
        if (import) API_MUST(tq_sequence_free(cache_->cache, target_, copy_));
        if (round > 0) each.ms.push_back(ms), each.host.push_back(host);
      }
    double link[2] = {};
    for (const Way& each : ways) {
      const double ms = median(each.ms), rate = static_cast<double>(bytes) / ms / 1e6;
      const bool inward = strstr(each.name, "import") || strstr(each.name, "to_device");
      if (!strncmp(each.name, "link", 4)) link[inward] = rate;
      printf("  \"%s\": {\"ms\": %.3f, \"gb_per_s\": %.2f, \"share_of_link\": %.3f, \"host_ms\": %.3f},\n",
             each.name, ms, rate, rate / link[inward], median(each.host));
    }
  }

  // Attention of the layers, and the export of each layer on a stream of its own as soon as its attention has
  // begun; both alone, both together.
  void overlap() {
    Memory q(TQ_DEVICE_CUDA, 32 * 128 * 2), out(TQ_DEVICE_CUDA, 32 * 128 * 2);
    q.fill(0);
    cache_->plan({other_, id_}, {0, 0}, {1, 0}, compute_);
    const int repeats = 8;
    const auto attend = [&](bool both) {
      uint8_t* at = memory_.as<uint8_t>();
      for (int layer = 0; layer < o_.layers; layer++) {
        if (both) {
          GPU_MUST(cudaEventRecord(event_, compute_));
          GPU_MUST(cudaStreamWaitEvent(copy_, event_, 0));
          export_part(layers_[static_cast<size_t>(layer)], at, copy_);
          at += layers_[static_cast<size_t>(layer)].bytes;
        }
        for (int i = 0; i < repeats; i++)
          API_MUST(tq_cache_attend(cache_->cache, layer, cache_->batch, q.get(), out.get(), nullptr, nullptr,
                                   nullptr, 0, compute_));
      }
      if (!both) return;
      GPU_MUST(cudaEventRecord(event_, copy_));
      GPU_MUST(cudaStreamWaitEvent(compute_, event_, 0));
    };
    std::vector<double> alone, moved, together;
    for (int round = 0; round <= o_.rounds; round++) {
      const double a = clock_.time(compute_, [&] { attend(false); });
      const double m = clock_.time(
          copy_, [&] { by_layers([this](const tq_state& s, uint8_t* at) { export_part(s, at, copy_); }); });
      const double t = clock_.time(compute_, [&] { attend(true); });
      if (round > 0) alone.push_back(a), moved.push_back(m), together.push_back(t);
    }
    const double a = median(alone), m = median(moved), t = median(together);
    printf(
        "  \"overlap\": {\"attend_ms\": %.3f, \"export_ms\": %.3f, \"together_ms\": %.3f, "
        "\"hidden\": %.3f},\n",
        a, m, t, (a + m - t) / std::min(a, m));
  }

  // What is timed is right: straight into the device's memory, over the link, back and out again.
  void verify() {
    export_part(state_, plain_.get(), copy_);
    const std::vector<uint8_t> want = plain_.host();
    memory_.fill(0);
    export_part(state_, memory_.get(), copy_);
    check(memory_.host() == want, "pinned memory has other bytes");
    target_ = cache_->sequence();
    import_part(state_, memory_.get());
    tq_state copy = {};
    copy.struct_size = sizeof copy;
    API_MUST(tq_sequence_describe(cache_->cache, target_, &copy));
    API_MUST(tq_sequence_export(cache_->cache, target_, &copy, plain_.get(), plain_.size(), copy_));
    check(plain_.host() == want, "a sequence that came in goes out as other bytes");
    API_MUST(tq_sequence_free(cache_->cache, target_, copy_));
    if (tally().failed > 0) throw std::runtime_error("wrong bytes");
  }

  int64_t bytes() const { return state_.bytes; }

 private:
  void memcpy_async(void* to, const void* from, size_t count, cudaMemcpyKind kind) const {
    GPU_MUST(cudaMemcpyAsync(to, from, count, kind, copy_));
  }
  void append(tq_sequence id, int64_t count) {
    cache_->plan({id}, {count}, {0});
    for (int layer = 0; layer < o_.layers; layer++)
      cache_->append(layer, rows_.memory.get(), rows_.memory.get(), rows_, rows_);
    GPU_MUST(cudaDeviceSynchronize());
  }
  // All layers, and each.
  void describe() {
    state_.struct_size = sizeof state_;
    API_MUST(tq_sequence_describe(cache_->cache, id_, &state_));
    for (int layer = 0; layer < o_.layers; layer++) {
      tq_state one = {};
      one.struct_size = sizeof one;
      one.first_layer = layer, one.num_layers = 1;
      API_MUST(tq_sequence_describe(cache_->cache, id_, &one));
      layers_.push_back(one);
    }
  }
  void by_layers(const std::function<void(const tq_state&, uint8_t*)>& call) const {
    uint8_t* at = memory_.as<uint8_t>();
    for (const tq_state& state : layers_) {
      call(state, at);
      at += state.bytes;
    }
  }
  void export_part(const tq_state& state, void* at, cudaStream_t stream) const {
    API_MUST(tq_sequence_export(cache_->cache, id_, &state, at, static_cast<size_t>(state.bytes), stream));
  }
  void import_part(const tq_state& state, const void* at) const {
    API_MUST(tq_sequence_import(cache_->cache, target_, &state, at, static_cast<size_t>(state.bytes), copy_));
  }

  const Options o_;
  std::unique_ptr<ApiCache> cache_;
  cudaStream_t compute_ = nullptr, copy_ = nullptr;
  cudaEvent_t event_ = nullptr;
  tq_sequence id_ = 0, other_ = 0, target_ = 0;
  RowSource source_ = {};
  Rows rows_;
  tq_state state_ = {};
  std::vector<tq_state> layers_;
  Memory memory_, plain_;  // pinned; of the device, as large
  Clock clock_;
};

}  // namespace

int main(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i++) {
    const std::string name = arguments[i];
    const bool value = i + 1 < count;
    if (name == "--tokens" && value) {
      options.tokens = atoll(arguments[++i]);
    } else if (name == "--layers" && value) {
      options.layers = atoi(arguments[++i]);
    } else if (name == "--rounds" && value) {
      options.rounds = atoi(arguments[++i]);
    } else {
      fprintf(stderr, "transfer_bench: %s: [--tokens N] [--layers N] [--rounds N]\n", name.c_str());
      return 2;
    }
  }
  cudaDeviceProp properties;
  GPU_MUST(cudaGetDeviceProperties(&properties, 0));
  try {
    Bench bench(options);
    bench.verify();
    printf("{\n  \"device\": \"%s\", \"tokens\": %lld, \"layers\": %d, \"bytes\": %lld, \"rounds\": %d,\n",
           properties.name, static_cast<long long>(options.tokens), options.layers,
           static_cast<long long>(bench.bytes()), options.rounds);
    bench.rates();
    bench.overlap();
    printf("  \"version\": \"%s\"\n}\n", tq_version());
  } catch (const std::exception& error) {
    fprintf(stderr, "transfer_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
