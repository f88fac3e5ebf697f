// SPDX-License-Identifier: Apache-2.0
// Windows whose tokens are stored once, on the GPU: whatever is done to a sequence, it is the same bits as in
// a cache of the device that codes every token at its append: outputs, reads, saved bytes, flags. Random
// plans of several sequences, forks, truncations, removals, flushes, copies between both kinds of cache and
// the CPU's; numbers that are not finite or out of range; one step captured and replayed for later plans.
// once_test [--quick] [CASE...]
#include <memory>
#include <random>
#include <string>

#include "modes.cuh"

namespace {

using namespace gpu_test;

struct Case {
  int head_dim, value_dim, key_bits, value_bits, dtype, page_size, window, sinks, rollback;
  int key_family = 0, value_family = 0;
};
const Case kCases[] = {
    {64, 64, 4, 3, TQ_F16, 32, 70, 3, 5},
    {128, 128, 4, 4, TQ_BF16, 64, 33, 0, 0},
    {64, 64, 4, 16, TQ_F32, 64, 40, 5, 40},
    {192, 128, 8, 3, TQ_F16, 64, 20, 0, 7},
    {64, 64, 4, 3, TQ_F32, 32, 50, 4, 3, TQ_CODE_PROD, TQ_CODE_GROUPED},
    {96, 96, 3, 2, TQ_BF16, 64, 9, 4, 5, TQ_CODE_LEVELS, TQ_CODE_GROUPED},
    {64, 64, 4, 3, TQ_F16, 32, 64, 0, 6, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS},
    {80, 80, 16, 5, TQ_F16, 96, 17, 0, 0},
};
constexpr int kLayers = 2, kHeads = 2, kSequences = 3, kMostNew = 160;
constexpr int64_t kLongest = 420;

using Bytes = std::vector<uint8_t>;

class World {
 public:
  World(const Case& c, unsigned seed)
      : c_(c),
        mode_({c.head_dim, c.value_dim, {c.key_family, c.key_bits}, {c.value_family, c.value_bits}}),
        random_(seed) {
    for (int i = 0; i < 2; i++) caches_[i].reset(new ApiCache(config(i == 1), TQ_DEVICE_CUDA, 0));
    cpu_.reset(new ApiCache(config(true), TQ_DEVICE_CPU, 0));
    for (int layer = 0; layer < kLayers; layer++) {
      for (int side = 0; side < 3; side++)
        sources_[side][layer] = RowSource{
            seed, c.dtype, side, layer, side == 2 ? 2 * kHeads : kHeads, side == 1 ? c.value_dim : c.head_dim,
            1};
      k_[layer] = Rows(sources_[0][layer], kSequences * kMostNew, true);
      v_[layer] = Rows(sources_[1][layer], kSequences * kMostNew, true);
      q_[layer] = Rows(sources_[2][layer], kSequences * kMostNew, false);
    }
    for (int i = 0; i < kSequences; i++) sequences_.push_back(fresh());
    GPU_MUST(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~World() { cudaStreamDestroy(stream_); }

  void step() {
    const int choice = pick(12);
    const int64_t which = pick(kSequences);
    Pair& s = sequences_[static_cast<size_t>(which)];
    const int64_t length = length_of(s);
    if (choice < 7) {
      grow();
    } else if (choice == 7) {
      const int64_t to = pick(3) ? std::max<int64_t>(0, length - pick(c_.rollback + 2)) : pick(length + 1);
      for (int i = 0; i < 2; i++) API_MUST(tq_sequence_truncate(caches_[i]->cache, s.id[i], to, nullptr));
    } else if (choice == 8) {
      for (int i = 0; i < 2; i++) API_MUST(tq_sequence_flush(caches_[i]->cache, s.id[i], nullptr));
    } else if (choice == 9) {
      const int64_t first = pick(length + 1), count = pick(length - first + 1);
      for (int i = 0; i < 2; i++)
        API_MUST(tq_sequence_remove(caches_[i]->cache, s.id[i], first, count, nullptr));
    } else {
      Pair& other = sequences_[static_cast<size_t>(pick(kSequences))];
      if (&other != &s) replace(s, &other, choice == 10);
    }
    compare();
  }

  // Infinite numbers have the codes of their copies, whenever they are coded: the CPU's bytes.
  void infinite() {
    ApiCache* const both[2] = {caches_[1].get(), cpu_.get()};
    const tq_sequence own[2] = {both[0]->sequence(), both[1]->sequence()};
    for (const int64_t count : {int64_t{kMostNew}, int64_t{1}, int64_t{40}}) {
      for (int odd = 2; odd <= 3; odd++) {
        fill({count}, odd);
        for (int i = 0; i < 2; i++) both[i]->plan({own[i]}, {count}, {0});
        for (int layer = 0; layer < kLayers; layer++) {
          both[0]->append(layer, k_[layer].memory.get(), v_[layer].memory.get(), k_[layer], v_[layer]);
          const Memory k = k_[layer].on(TQ_DEVICE_CPU), v = v_[layer].on(TQ_DEVICE_CPU);
          both[1]->append(layer, k.get(), v.get(), k_[layer], v_[layer]);
        }
        GPU_MUST(cudaDeviceSynchronize());
      }
    }
    uint64_t flags[2] = {};
    for (int i = 0; i < 2; i++) {
      API_MUST(tq_sequence_flags(both[i]->cache, own[i], &flags[i]));
      API_MUST(tq_sequence_flush(both[i]->cache, own[i], nullptr));
    }
    check(save(*both[0], own[0]) == save(*both[1], own[1]) && flags[0] == flags[1],
          "case %d: infinite numbers, flags %llu and %llu", number(),
          static_cast<unsigned long long>(flags[0]), static_cast<unsigned long long>(flags[1]));
    for (int i = 0; i < 2; i++) API_MUST(tq_sequence_free(both[i]->cache, own[i], nullptr));
  }

  // A step captured for a plan of single tokens, and replayed for others, against calls one by one.
  void replay(int steps) {
    for (Pair& s : sequences_) {
      for (int i = 0; i < 2; i++) API_MUST(tq_sequence_free(caches_[i]->cache, s.id[i], nullptr));
      s = fresh();
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Memory out(TQ_DEVICE_CUDA, kLayers * row_bytes());
    out.fill(0);
    GPU_MUST(cudaDeviceSynchronize());
    for (int step = 0; step < steps; step++) {
      std::vector<int64_t> counts;
      for (const Pair& s : sequences_)
        counts.push_back(
            step == 0 ? 1 : std::min(kLongest - length_of(s), pick(3) ? pick(3) : pick(kMostNew / 4)));
      fill(counts, 0);
      plan(1, counts, counts, stream_);
      if (step == 0) {
        GPU_MUST(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
        for (int layer = 0; layer < kLayers; layer++) {
          append(1, layer, stream_);
          attend_to(layer, out, stream_);
        }
        GPU_MUST(cudaStreamEndCapture(stream_, &graph));
        GPU_MUST(cudaGraphInstantiate(&exec, graph, 0));
      }
      GPU_MUST(cudaGraphLaunch(exec, stream_));
      GPU_MUST(cudaStreamSynchronize(stream_));
      const Bytes replayed = out.host();
      plan(0, counts, counts, nullptr);
      Memory wanted(TQ_DEVICE_CUDA, kLayers * row_bytes());
      wanted.fill(0);
      GPU_MUST(cudaMemcpy(wanted.get(), replayed.data(), replayed.size(), cudaMemcpyDefault));
      for (int layer = 0; layer < kLayers; layer++) {
        append(0, layer, nullptr);
        attend_to(layer, wanted, nullptr, 0);
      }
      check(wanted.host() == replayed, "case %d: step %d of a graph attends otherwise", number(), step);
    }
    GPU_MUST(cudaGraphExecDestroy(exec));
    GPU_MUST(cudaGraphDestroy(graph));
    compare();
  }

 private:
  struct Pair {
    tq_sequence id[2];  // in the cache that codes at once, in that which stores once
  };

  tq_cache_config config(bool once) const {
    tq_cache_config config =
        api_config(c_.head_dim, c_.value_dim, c_.key_bits, c_.value_bits, 2 * kHeads, kHeads, c_.dtype);
    mode_.apply(&config);
    config.num_layers = kLayers;
    config.page_size = c_.page_size;
    config.window_tokens = c_.window;
    config.sink_tokens = c_.sinks;
    config.rollback_tokens = c_.rollback;
    config.max_sequences = kSequences + 2;
    config.max_tokens = (kSequences + 2) * kLongest;
    config.max_sequence_tokens = kLongest;
    config.max_batch_tokens = kSequences * kMostNew;
    config.max_raw_tokens = (kSequences + 2) * kLongest;
    config.num_threads = 1;
    if (once) config.flags = TQ_FLAG_STORE_ONCE;
    return config;
  }
  int64_t pick(int64_t n) { return n > 0 ? static_cast<int64_t>(random_() % static_cast<uint64_t>(n)) : 0; }
  int number() const { return static_cast<int>(&c_ - kCases); }
  size_t row_bytes() const {
    return static_cast<size_t>(kSequences * kMostNew * 2 * kHeads * c_.value_dim) * 4;
  }
  Pair fresh() {
    Pair s;
    for (int i = 0; i < 2; i++) s.id[i] = caches_[i]->sequence();
    return s;
  }
  int64_t length_of(const Pair& s) {
    int64_t length[2] = {};
    for (int i = 0; i < 2; i++) API_MUST(tq_sequence_length(caches_[i]->cache, s.id[i], &length[i]));
    check(length[0] == length[1], "case %d: lengths", number());
    return length[0];
  }

  // New rows, some of them with numbers that are noticed: odd - 1 of NaN, +-infinity and a large one.
  void fill(const std::vector<int64_t>& counts, int odd) {
    std::vector<RowRun> runs;
    int64_t row = 0;
    for (const int64_t count : counts) {
      runs.push_back(RowRun{0, made_, row, count});
      made_ += count;
      row += count;
    }
    for (int layer = 0; layer < kLayers; layer++) {
      k_[layer].fill(sources_[0][layer], runs);
      v_[layer].fill(sources_[1][layer], runs);
      q_[layer].fill(sources_[2][layer], runs);
    }
    GPU_MUST(cudaDeviceSynchronize());
    if (row == 0 || odd == 0) return;
    static const uint32_t kOdd[3][4] = {{0x7FC00000, 0x7F800000, 0xFF800000, 0x49742400},  // NaN, +-inf, 1e6
                                        {0x7E00, 0x7C00, 0xFC00, 0x7BFF},
                                        {0x7FC0, 0x7F80, 0xFF80, 0x4974}};
    const int type = c_.dtype == TQ_F32 ? 0 : c_.dtype == TQ_F16 ? 1 : 2;
    for (Rows* rows : {&k_[1], &v_[0]}) {
      const size_t element = static_cast<size_t>(api_dtype_bytes(c_.dtype));
      const uint32_t bits = kOdd[type][odd - 1];
      const int64_t at = pick(row) * rows->token_stride + pick(kHeads) * rows->head_stride + pick(60);
      GPU_MUST(cudaMemcpy(rows->memory.as<uint8_t>() + static_cast<size_t>(at) * element, &bits, element,
                          cudaMemcpyDefault));
    }
  }
  void plan(int index, const std::vector<int64_t>& counts, const std::vector<int64_t>& queries,
            cudaStream_t stream) {
    std::vector<tq_sequence> ids;
    for (const Pair& s : sequences_) ids.push_back(s.id[index]);
    caches_[index]->plan(ids, counts, queries, stream);
  }
  void append(int index, int layer, cudaStream_t stream) {
    caches_[index]->append(layer, k_[layer].memory.get(), v_[layer].memory.get(), k_[layer], v_[layer],
                           stream);
  }
  void attend_to(int layer, Memory& out, cudaStream_t stream, int index = 1) {
    tq_attend_params params = default_params();
    params.out_dtype = TQ_F32;
    API_MUST(tq_cache_attend(caches_[index]->cache, layer, caches_[index]->batch, q_[layer].memory.get(),
                             out.as<uint8_t>() + static_cast<size_t>(layer) * row_bytes(), nullptr, &params,
                             nullptr, 0, stream));
  }

  void grow() {
    std::vector<int64_t> counts, queries;
    for (const Pair& s : sequences_) {
      const int64_t room = kLongest - length_of(s), wanted = pick(3) ? pick(6) : pick(kMostNew);
      counts.push_back(std::min(room, wanted));
      queries.push_back(pick(2) ? counts.back() : pick(counts.back() + 1));
    }
    // An infinite float16 has other codes where tokens are stored once: infinite().
    const int64_t odd = 1 + pick(4);
    fill(counts, pick(6) || (c_.dtype == TQ_F16 && (odd == 2 || odd == 3)) ? 0 : static_cast<int>(odd));
    for (int i = 0; i < 2; i++) plan(i, counts, queries, nullptr);
    for (int layer = 0; layer < kLayers; layer++) {
      for (int i = 0; i < 2; i++) append(i, layer, nullptr);
      same_attention(layer);
    }
  }
  void same_attention(int layer) {
    const AttendOutput a = caches_[0]->attend(layer, q_[layer].memory.get(), default_params()),
                       b = caches_[1]->attend(layer, q_[layer].memory.get(), default_params());
    check(same_output(a, b), "case %d: layer %d attends otherwise", number(), layer);
  }
  // A fork, or copies by way of the other cache and the CPU's.
  void replace(const Pair& s, Pair* other, bool fork) {
    Pair made;
    for (int i = 0; i < 2; i++) {
      if (fork) {
        API_MUST(tq_sequence_fork(caches_[i]->cache, s.id[i], nullptr, &made.id[i]));
        continue;
      }
      tq_sequence between = 0;
      API_MUST(tq_sequence_copy(caches_[1 - i]->cache, s.id[1 - i], cpu_->cache, nullptr, &between));
      API_MUST(tq_sequence_copy(cpu_->cache, between, caches_[i]->cache, nullptr, &made.id[i]));
      API_MUST(tq_sequence_free(cpu_->cache, between, nullptr));
    }
    for (int i = 0; i < 2; i++) API_MUST(tq_sequence_free(caches_[i]->cache, other->id[i], nullptr));
    *other = made;
  }

  Bytes save(const ApiCache& cache, tq_sequence id) {
    Bytes bytes;
    tq_io io = {};
    io.struct_size = sizeof io;
    io.user = &bytes;
    io.write = [](void* user, const void* data, size_t count) {
      Bytes& to = *static_cast<Bytes*>(user);
      to.insert(to.end(), static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + count);
      return int32_t{0};
    };
    API_MUST(tq_sequence_save(cache.cache, id, &io, nullptr));
    return bytes;
  }
  void compare() {
    GPU_MUST(cudaDeviceSynchronize());
    std::vector<int64_t> none(kSequences, 0), queries;
    for (const Pair& s : sequences_) queries.push_back(std::min<int64_t>(1 + pick(9), length_of(s)));
    for (int i = 0; i < 2; i++) plan(i, none, queries, nullptr);
    for (int layer = 0; layer < kLayers; layer++) same_attention(layer);
    for (const Pair& s : sequences_) {
      if (length_of(s) == 0) continue;
      for (int layer = 0; layer < kLayers; layer++)
        check(caches_[0]->read(layer, s.id[0]) == caches_[1]->read(layer, s.id[1]),
              "case %d: layer %d reads otherwise", number(), layer);
      check(save(*caches_[0], s.id[0]) == save(*caches_[1], s.id[1]), "case %d: saved otherwise", number());
      uint64_t flags[2] = {};
      for (int i = 0; i < 2; i++) API_MUST(tq_sequence_flags(caches_[i]->cache, s.id[i], &flags[i]));
      check(flags[0] == flags[1], "case %d: flags %llu and %llu", number(),
            static_cast<unsigned long long>(flags[0]), static_cast<unsigned long long>(flags[1]));
    }
  }

  const Case& c_;
  ModeConfig mode_;
  std::mt19937_64 random_;
  std::unique_ptr<ApiCache> caches_[2], cpu_;
  RowSource sources_[3][kLayers];
  Rows k_[kLayers], v_[kLayers], q_[kLayers];
  std::vector<Pair> sequences_;
  cudaStream_t stream_ = nullptr;
  int64_t made_ = 0;
};

void refusals() {
  tq_cache_config config = api_config(576, 512, 8, 4, 4, 1, TQ_F16);
  config.layer_kind = TQ_LATENT;
  config.device_type = TQ_DEVICE_CUDA;
  config.window_tokens = 64;
  config.max_tokens = 256;
  config.flags = TQ_FLAG_STORE_ONCE;
  char reasons[1024] = "";
  const tq_status status = tq_cache_config_check(&config, reasons, sizeof reasons);
  check(status == TQ_ERROR_NOT_SUPPORTED &&
            strstr(reasons, "TQ_FLAG_STORE_ONCE: on CUDA not with latent layers"),
        "latent layers: status %d: %s", status, reasons);
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "--quick";
  try {
    for (const Case& c : kCases) {
      bool wanted = count <= 1 + quick;
      for (int i = 1 + quick; i < count; i++) wanted |= std::stol(arguments[i]) == &c - kCases;
      if (!wanted) continue;
      World world(c, static_cast<unsigned>(&c - kCases) + 1);
      for (int i = 0; i < (quick ? 8 : 150); i++) world.step();
      world.infinite();
      world.replay(quick ? 4 : 60);
    }
    refusals();
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return finish("once_test");
}
