// SPDX-License-Identifier: Apache-2.0
// Caches whose layers differ, on the GPU against the CPU through the C API: shapes, widths, raw sides, a
// layer that attends to another's tokens, sliding layers that give pages back. Random steps (prompts, single
// tokens, drafts taken back, forks) run on both devices; decoded tokens must be equal bit for bit, attention
// as in conformance_test.cu.   layers_test [--quick]
#include <random>

#include "api_cache.cuh"

namespace {

using namespace gpu_test;

constexpr double kTotalGate = 4e-4, kLseGate = 4e-4;
constexpr int kNumLayers = 6, kWindow = 48, kRollback = 8;

tq_layer_config layer(int q_heads, int kv_heads, int dim, int key_bits, int value_bits) {
  tq_layer_config l = {};
  l.struct_size = sizeof l;
  l.num_q_heads = q_heads;
  l.num_kv_heads = kv_heads;
  l.head_dim = l.value_dim = dim;
  l.key_bits = key_bits;
  l.value_bits = value_bits;
  return l;
}

class Twin {
 public:
  Twin(int dtype, int page_size, int window, int sinks, uint64_t seed)
      : seed_(seed),
        dtype_(dtype),
        cpu_(config(dtype, page_size, window, sinks), TQ_DEVICE_CPU),
        gpu_(config(dtype, page_size, window, sinks), TQ_DEVICE_CUDA),
        rng_(seed) {
    for (int l : {0, 1})
      if (seed % 2 == 1) centre(l);
  }

  void run(int steps) {
    for (int i = 0; i < 2; i++) add(cpu_.sequence(), gpu_.sequence(), 0);
    for (int i = 0; i < steps && right_; i++) step();
    for (size_t i = 0; i < cpu_ids_.size(); i++) compare_reads(i);
  }

 private:
  // Layers are static: configurations point to them until the caches have copied them.
  static tq_cache_config config(int dtype, int page_size, int window, int sinks) {
    static tq_layer_config layers[kNumLayers];
    layers[0] = layer(4, 2, 128, 4, 4);
    layers[1] = layer(6, 3, 64, 3, 3);
    layers[1].sliding_window = kWindow;
    layers[2] = layer(8, 1, 128, 16, 4);
    layers[3] = layer(4, 2, 96, 2, 8);
    layers[3].sliding_window = 3 * kWindow;
    layers[4] = layer(4, 0, 0, 0, 0);
    layers[4].shares_layer = 1;
    layers[5] = layer(6, 0, 0, 0, 0);
    layers[5].shares_layer = 2;
    layers[5].sliding_window = kWindow / 2;
    tq_cache_config c = api_config(64, 64, 4, 4, 2, 2, dtype);
    c.num_layers = kNumLayers;
    c.layers = layers;
    c.page_size = page_size;
    c.window_tokens = window;
    c.sink_tokens = sinks;
    c.rollback_tokens = kRollback;
    c.max_tokens = 8192;
    c.max_sequences = 4;
    c.max_batch_tokens = 512;
    return c;
  }
  // Of layers that others share.
  void centre(int index) {
    const tq_layer_config& l = cpu_.config.layers[index];
    std::vector<float> key(static_cast<size_t>(l.num_kv_heads * l.head_dim)), value(key.size());
    for (std::vector<float>* side : {&key, &value})
      for (float& x : *side) x = static_cast<float>(pick(201) - 100) * 0.02f;
    API_MUST(tq_cache_set_centres(cpu_.cache, index, key.data(), value.data()));
    API_MUST(tq_cache_set_centres(gpu_.cache, index, key.data(), value.data()));
    const std::vector<float> matrices = key_matrices(l.num_kv_heads, l.head_dim, seed_);
    for (tq_cache* cache : {cpu_.cache, gpu_.cache})
      API_MUST(tq_cache_set_key_matrix(cache, index, matrices.data()));
  }
  int pick(int below) { return static_cast<int>(rng_() % static_cast<unsigned>(below)); }
  void add(tq_sequence cpu, tq_sequence gpu, int64_t length) {
    cpu_ids_.push_back(cpu);
    gpu_ids_.push_back(gpu);
    lengths_.push_back(length);
    identity_.push_back(static_cast<int64_t>(identity_.size()));
  }
  RowSource source(int index, int side) const {
    const tq_layer_config& l = cpu_.config.layers[index];
    return RowSource{seed_,
                     dtype_,
                     side,
                     index,
                     side == 2 ? l.num_q_heads : l.num_kv_heads,
                     side == 1 ? l.value_dim : l.head_dim,
                     side == 2 ? 3.0f : 1.0f};
  }

  void step() {
    const int what = pick(10);
    if (what == 0 && cpu_ids_.size() < 4) {
      const size_t from = static_cast<size_t>(pick(static_cast<int>(cpu_ids_.size())));
      tq_sequence cpu = 0, gpu = 0;
      API_MUST(tq_sequence_fork(cpu_.cache, cpu_ids_[from], nullptr, &cpu));
      API_MUST(tq_sequence_fork(gpu_.cache, gpu_ids_[from], nullptr, &gpu));
      add(cpu, gpu, lengths_[from]);
      return;
    }
    if (what == 1) {
      const size_t at = static_cast<size_t>(pick(static_cast<int>(cpu_ids_.size())));
      const int64_t back = std::min<int64_t>(pick(kRollback + 1), lengths_[at]);
      API_MUST(tq_sequence_truncate(cpu_.cache, cpu_ids_[at], lengths_[at] - back, nullptr));
      API_MUST(tq_sequence_truncate(gpu_.cache, gpu_ids_[at], lengths_[at] - back, nullptr));
      lengths_[at] -= back;
      return;
    }
    std::vector<int64_t> news, asks;
    std::vector<RowRun> runs;
    int64_t rows = 0;
    for (size_t i = 0; i < cpu_ids_.size(); i++) {
      const int64_t count = what < 7 ? 1 : what == 7 ? pick(9) : lengths_[i] < 1200 ? pick(120) : 1;
      news.push_back(count);
      asks.push_back(count);
      // What a token holds depends on the step, not on the sequence's past: forks differ.
      runs.push_back(RowRun{identity_[i], lengths_[i] + 10000 * step_, rows, count});
      rows += count;
      lengths_[i] += count;
    }
    step_++;
    asks_ = asks;
    cpu_.plan(cpu_ids_, news, asks);
    gpu_.plan(gpu_ids_, news, asks);
    for (int l = 0; l < kNumLayers && rows > 0; l++) {
      if (cpu_.config.layers[l].shares_layer == 0) {
        const Rows k(source(l, 0), rows, true), v(source(l, 1), rows, true);
        k.fill(source(l, 0), runs);
        v.fill(source(l, 1), runs);
        const Memory host_k = k.on(TQ_DEVICE_CPU), host_v = v.on(TQ_DEVICE_CPU);
        cpu_.append(l, host_k.get(), host_v.get(), k, v);
        gpu_.append(l, k.memory.get(), v.memory.get(), k, v);
      }
      compare_attention(l, rows);
    }
  }

  void compare_attention(int l, int64_t rows) {
    const Rows q(source(l, 2), rows, true);
    q.fill(source(l, 2), {RowRun{1000, step_, 0, rows}});
    tq_attend_params params = default_params();
    params.q_token_stride = q.token_stride;
    params.q_head_stride = q.head_stride;
    const Memory host_q = q.on(TQ_DEVICE_CPU);
    // Every third call: ranges of the caller's, some empty, some beyond the end or the query's own token.
    std::vector<int32_t> begins, ends;
    for (size_t i = 0; i < asks_.size(); i++)
      for (int64_t j = 0; j < asks_[i]; j++) {
        const int position = static_cast<int>(lengths_[i] - asks_[i] + j);
        begins.push_back(pick(4) ? std::max(0, position - pick(200)) : pick(position + 40) - 20);
        ends.push_back(pick(4) ? position + 1 + pick(8) : pick(position + 40) - 20);
      }
    const bool masked = rows % 3 == step_ % 3;
    const Buffer<int32_t> device_begins(begins), device_ends(ends);
    if (masked) params.visible_begin = begins.data(), params.visible_end = ends.data();
    const AttendOutput want = cpu_.attend(l, host_q.get(), params, true);
    if (masked) params.visible_begin = device_begins.get(), params.visible_end = device_ends.get();
    const AttendOutput got = gpu_.attend(l, q.memory.get(), params, true);
    double error = 0, square = 0, lse = 0;
    for (size_t i = 0; i < want.out.size(); i++) {
      const double difference = static_cast<double>(want.out[i]) - got.out[i];
      error += difference * difference;
      square += static_cast<double>(want.out[i]) * want.out[i];
    }
    for (size_t i = 0; i < want.lse.size(); i++)
      if (want.lse[i] != got.lse[i])  // both are -inf where a query sees nothing
        lse = std::max(lse, fabs(static_cast<double>(want.lse[i]) - got.lse[i]));
    const double relative = sqrt(error / std::max(square, 1e-30));
    right_ &= check(relative <= kTotalGate && lse <= kLseGate,
                    "step %lld layer %d: output differs by %.2e (gate %.0e), lse by %.2e",
                    static_cast<long long>(step_), l, relative, kTotalGate, lse);
  }

  void compare_reads(size_t at) {
    for (int l = 0; l < kNumLayers; l++) {
      const int window = cpu_.config.layers[l].sliding_window;
      const int64_t first = window > 0 ? std::max<int64_t>(0, lengths_[at] - window + 1) : 0;
      check(cpu_.read(l, cpu_ids_[at], first) == gpu_.read(l, gpu_ids_[at], first),
            "sequence %zu layer %d: decoded tokens differ", at, l);
    }
  }

  const uint64_t seed_;
  const int dtype_;
  ApiCache cpu_, gpu_;
  std::mt19937 rng_;
  std::vector<tq_sequence> cpu_ids_, gpu_ids_;
  std::vector<int64_t> lengths_, identity_, asks_;
  int64_t step_ = 0;
  bool right_ = true;
};

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
  uint64_t seed = 1;
  try {
    for (int dtype : {TQ_BF16, TQ_F32})
      for (int page_size : {32, 96})
        for (int window : {0, 20}) {
          Twin twin(dtype, page_size, window, window ? 4 : 0, seed++);
          twin.run(quick ? 16 : 150);
        }
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("layers_test");
}
