// SPDX-License-Identifier: Apache-2.0
// Graphs and determinism through the C API. One captured step (append, attend and merge of two layers'
// partial results) is replayed while sequences grow, planned anew between replays, and must equal the same
// calls made eagerly in another cache, bit for bit. Then: the same bits for any
// split hint, workspace, stream, batch composition, slot and page placement.   graph_test [--quick | --small]
#include "api_cache.cuh"

namespace {

using namespace gpu_test;

__global__ void count_different(const uint32_t* a, const uint32_t* b, int64_t count,
                                unsigned long long* different) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    if (a[i] != b[i]) atomicAdd(different, 1ull);
}

struct GraphCase {
  const char* name;
  int head_dim, key_bits, value_bits, q_heads, kv_heads, dtype, window, sinks;
};
constexpr int kLayers = 2, kSequences = 6, kMostNew = 80;
constexpr int64_t kQueries = 9;  // of a step, in all

// Buffers of one step at fixed places, and the calls of the step.
struct Stepper {
  ApiCache cache;
  std::vector<tq_sequence> ids;
  Rows k[kLayers], v[kLayers], q;
  Memory out[kLayers], lse[kLayers], merged, merged_lse;
  // Masks of the last layer: at addresses that the graph keeps, with other contents every step.
  Buffer<int32_t> begin{kQueries}, end{kQueries};
  Buffer<float> slopes;

  static tq_cache_config config(const GraphCase& c, int64_t tokens) {
    tq_cache_config config =
        api_config(c.head_dim, c.head_dim, c.key_bits, c.value_bits, c.q_heads, c.kv_heads, c.dtype);
    config.num_layers = kLayers;
    config.max_sequences = kSequences;
    config.max_tokens = tokens * kSequences;
    config.max_sequence_tokens = tokens;
    config.window_tokens = c.window;
    config.sink_tokens = c.sinks;
    return config;
  }
  Stepper(const GraphCase& c, int64_t tokens)
      : cache(config(c, tokens), TQ_DEVICE_CUDA), q(source(2, 0), kQueries, false) {
    for (int i = 0; i < kSequences; i++) ids.push_back(cache.sequence());
    const size_t rows = static_cast<size_t>(kQueries * c.q_heads);
    for (int layer = 0; layer < kLayers; layer++) {
      k[layer] = Rows(source(0, layer), kMostNew, false);
      v[layer] = Rows(source(1, layer), kMostNew, false);
      out[layer] = Memory(TQ_DEVICE_CUDA, rows * c.head_dim * 4);
      lse[layer] = Memory(TQ_DEVICE_CUDA, rows * 4);
    }
    slopes = Buffer<float>(static_cast<size_t>(c.q_heads));
    merged = Memory(TQ_DEVICE_CUDA, rows * c.head_dim * 4);
    merged_lse = Memory(TQ_DEVICE_CUDA, rows * 4);
  }
  RowSource source(int side, int layer) const {
    return RowSource{5,
                     cache.config.io_dtype,
                     side,
                     layer,
                     side == 2 ? cache.config.num_q_heads : cache.config.num_kv_heads,
                     cache.config.head_dim,
                     side == 2 ? 3.0f : 1.0f};
  }
  void fill(const std::vector<RowRun>& runs, int step, cudaStream_t stream) {
    for (int layer = 0; layer < kLayers; layer++) {
      k[layer].fill(source(0, layer), runs, stream);
      v[layer].fill(source(1, layer), runs, stream);
    }
    q.fill(source(2, 0), {RowRun{1000, step * kQueries, 0, kQueries}}, stream);
    std::vector<int32_t> first, last;
    std::vector<float> slope;
    for (int i = 0; i < kQueries; i++) {
      const uint64_t h = mix64(static_cast<uint64_t>(step) * 1024 + i);
      first.push_back(static_cast<int32_t>(h % 4000) - 1000);
      last.push_back(first.back() + static_cast<int32_t>(h >> 16 & 4095));
    }
    for (int i = 0; i < cache.config.num_q_heads; i++)
      slope.push_back(0.001f * static_cast<float>((step + i) % 50));
    const auto put = [&](void* to, const void* from, size_t bytes) {
      GPU_MUST(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
    };
    put(begin.get(), first.data(), first.size() * sizeof(int32_t));
    put(end.get(), last.data(), last.size() * sizeof(int32_t));
    put(slopes.get(), slope.data(), slope.size() * sizeof(float));
    GPU_MUST(cudaStreamSynchronize(stream));
  }
  void calls(cudaStream_t stream) {
    tq_attend_params params = default_params();
    params.out_dtype = TQ_F32;
    const void* outs[kLayers];
    const float* lses[kLayers];
    for (int layer = 0; layer < kLayers; layer++) {
      cache.append(layer, k[layer].memory.get(), v[layer].memory.get(), k[layer], v[layer], stream);
      if (layer == kLayers - 1) {
        params.visible_begin = begin.get();
        params.visible_end = end.get();
        params.alibi_slopes = slopes.get();
      }
      API_MUST(tq_cache_attend(cache.cache, layer, cache.batch, q.memory.get(), out[layer].get(),
                               lse[layer].as<float>(), &params, nullptr, 0, stream));
      outs[layer] = out[layer].get();
      lses[layer] = lse[layer].as<float>();
    }
    API_MUST(tq_merge_states(kLayers, outs, lses, kQueries * cache.config.num_q_heads, cache.config.head_dim,
                             TQ_F32, merged.get(), merged_lse.as<float>(), TQ_DEVICE_CUDA, 0, stream));
  }
};

// New tokens and queries of a step: mostly one each, sometimes none, drafts, a chunk; kQueries queries in
// all.
void draw_step(int step, const std::vector<int64_t>& lengths, std::vector<int64_t>& news,
               std::vector<int64_t>& queries) {
  news.assign(kSequences, 1);
  queries.assign(kSequences, 1);
  int64_t left = kQueries;
  for (int i = 0; i < kSequences; i++) {
    const uint64_t h = mix64(static_cast<uint64_t>(step) * 64 + i);
    news[i] = h % 16 == 0 ? 0 : h % 16 == 1 ? 3 : 1;
    if (step % 97 == 50 + i) news[i] = 40;  // a whole tile and both its neighbours
    queries[i] = std::min<int64_t>({left, lengths[i] + news[i], static_cast<int64_t>(h >> 8) % 3});
    left -= queries[i];
  }
  // What is left goes to the longest.
  const size_t longest =
      static_cast<size_t>(std::max_element(lengths.begin(), lengths.end()) - lengths.begin());
  queries[longest] += left;
}

void replay(const GraphCase& c, int steps) {
  const int64_t starts[kSequences] = {1, 30, 64, 1000, 2040, 4000};
  const int64_t tokens = 4000 + 2 * steps + 40 * (steps / 97 + 2) + 200;
  Stepper eager(c, tokens), graphed(c, tokens);
  Stepper* both[2] = {&eager, &graphed};
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<int64_t> lengths(kSequences, 0), news, queries;
  // The beginning, eagerly in both: pieces that fit the step's buffers would take long for the longest, so it
  // has buffers of its own.
  for (int i = 0; i < kSequences; i++) {
    for (Stepper* s : both) {
      s->cache.plan({s->ids[i]}, {starts[i]}, {0}, stream);
      for (int layer = 0; layer < kLayers; layer++) {
        Rows k(s->source(0, layer), starts[i], false), v(s->source(1, layer), starts[i], false);
        GPU_MUST(cudaDeviceSynchronize());
        k.fill(s->source(0, layer), {RowRun{i, 0, 0, starts[i]}}, stream);
        v.fill(s->source(1, layer), {RowRun{i, 0, 0, starts[i]}}, stream);
        s->cache.append(layer, k.memory.get(), v.memory.get(), k, v, stream);
        GPU_MUST(cudaStreamSynchronize(stream));
      }
    }
    lengths[i] = starts[i];
  }
  GPU_MUST(cudaDeviceSynchronize());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  const Buffer<unsigned long long> different(std::vector<unsigned long long>(1));
  unsigned long long found = 0;
  int first_wrong = -1;
  for (int step = 0; step < steps; step++) {
    draw_step(step, lengths, news, queries);
    std::vector<RowRun> runs;
    int64_t rows = 0;
    for (int i = 0; i < kSequences; i++) {
      runs.push_back(RowRun{i, lengths[i], rows, news[i]});
      rows += news[i];
      lengths[i] += news[i];
    }
    for (Stepper* s : both) {
      s->cache.plan(s->ids, news, queries, stream);
      s->fill(runs, step, stream);
    }
    eager.calls(stream);
    if (!executable) {
      GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
      graphed.calls(stream);
      GPU_MUST(cudaStreamEndCapture(stream, &graph));
      GPU_MUST(cudaGraphInstantiate(&executable, graph, 0));
    }
    GPU_MUST(cudaGraphLaunch(executable, stream));
    const int64_t out_words = static_cast<int64_t>(eager.merged.size() / 4),
                  lse_words = static_cast<int64_t>(eager.merged_lse.size() / 4);
    start(count_different, dim3(32), dim3(256), stream, eager.merged.as<uint32_t>(),
          graphed.merged.as<uint32_t>(), out_words, different.get());
    start(count_different, dim3(1), dim3(256), stream, eager.merged_lse.as<uint32_t>(),
          graphed.merged_lse.as<uint32_t>(), lse_words, different.get());
    GPU_MUST(cudaStreamSynchronize(stream));
    const unsigned long long now = different.host()[0];
    check(now == found, "%s: step %d of the replayed graph differs from the eager one in %llu words", c.name,
          step, now - found);
    if (now != found && first_wrong < 0) first_wrong = step;
    found = now;
  }
  double size = 0;
  for (float x : graphed.merged.floats()) size += static_cast<double>(x) * x;
  check(std::isfinite(size) && size > 0, "%s: the last output is %g", c.name, size);
  for (int layer = 0; layer < kLayers; layer++)
    for (int i = 0; i < kSequences; i++)
      check(eager.cache.read(layer, eager.ids[i]) == graphed.cache.read(layer, graphed.ids[i]),
            "%s: layer %d sequence %d reads differently", c.name, layer, i);
  uint64_t flags = 1;
  for (Stepper* s : both) {
    API_MUST(tq_cache_check(s->cache.cache, stream, &flags));
    check(flags == 0, "%s: flags %llu", c.name, static_cast<unsigned long long>(flags));
  }
  printf("   %s: one graph of append, attend and merge replayed %d times, lengths %lld to %lld\n", c.name,
         steps, static_cast<long long>(lengths[0]), static_cast<long long>(lengths[kSequences - 1]));
  GPU_MUST(cudaGraphExecDestroy(executable));
  GPU_MUST(cudaGraphDestroy(graph));
  GPU_MUST(cudaStreamDestroy(stream));
}

// ---- Determinism ----

struct Member {
  int64_t length, queries;
};

// Rows of `members` in one batch of a fresh cache; `decoys` pages are taken and partly given back first, so
// that pages and slots differ.
class Batch {
 public:
  Batch(const GraphCase& c, const std::vector<std::pair<int, Member>>& members, int decoys)
      : members_(members), cache(config(c, members, decoys), TQ_DEVICE_CUDA) {
    std::vector<tq_sequence> held;
    for (int i = 0; i < decoys; i++) {
      held.push_back(cache.sequence());
      cache.plan({held.back()}, {64}, {0});
    }
    for (int i = 0; i < decoys; i += 2) API_MUST(tq_sequence_free(cache.cache, held[i], nullptr));
    std::vector<int64_t> news, queries;
    std::vector<RowRun> key_runs, query_runs;
    int64_t rows = 0, query_rows = 0;
    for (const auto& member : members) {
      ids.push_back(cache.sequence());
      news.push_back(member.second.length);
      queries.push_back(member.second.queries);
      key_runs.push_back(RowRun{member.first, 0, rows, member.second.length});
      query_runs.push_back(RowRun{1000 + member.first, 0, query_rows, member.second.queries});
      rows += member.second.length;
      query_rows += member.second.queries;
    }
    const Rows k(source(0), rows, false), v(source(1), rows, false);
    k.fill(source(0), key_runs);
    v.fill(source(1), key_runs);
    q = Rows(source(2), query_rows, false);
    q.fill(source(2), query_runs);
    cache.plan(ids, news, queries);
    cache.append(0, k.memory.get(), v.memory.get(), k, v);
    GPU_MUST(cudaDeviceSynchronize());
  }
  AttendOutput attend(Memory* workspace = nullptr, cudaStream_t stream = nullptr) {
    const tq_attend_params params = default_params();
    return cache.attend(0, q.memory.get(), params, false, workspace, stream);
  }
  // The rows of the member at an index.
  AttendOutput rows_of(const AttendOutput& all, size_t index) const {
    const int64_t heads = cache.config.num_q_heads, dim = cache.config.value_dim;
    int64_t first = 0;
    for (size_t i = 0; i < index; i++) first += members_[i].second.queries;
    const int64_t count = members_[index].second.queries;
    AttendOutput part;
    part.out.assign(all.out.begin() + first * heads * dim, all.out.begin() + (first + count) * heads * dim);
    part.lse.assign(all.lse.begin() + first * heads, all.lse.begin() + (first + count) * heads);
    return part;
  }

 private:
  static tq_cache_config config(const GraphCase& c, const std::vector<std::pair<int, Member>>& members,
                                int decoys) {
    tq_cache_config config =
        api_config(c.head_dim, c.head_dim, c.key_bits, c.value_bits, c.q_heads, c.kv_heads, c.dtype);
    config.max_sequences = static_cast<int32_t>(members.size()) + decoys;
    config.window_tokens = c.window;
    config.sink_tokens = c.sinks;
    config.max_tokens = 64 * (decoys + 1);
    for (const auto& member : members) config.max_tokens += member.second.length + 64;
    return config;
  }
  RowSource source(int side) const {
    return RowSource{6,
                     cache.config.io_dtype,
                     side,
                     0,
                     side == 2 ? cache.config.num_q_heads : cache.config.num_kv_heads,
                     cache.config.head_dim,
                     side == 2 ? 3.0f : 1.0f};
  }
  std::vector<std::pair<int, Member>> members_;

 public:
  ApiCache cache;
  std::vector<tq_sequence> ids;
  Rows q;
};

void determinism(const GraphCase& c, bool few) {
  const std::vector<Member> all = {{1, 1},    {33, 2},   {700, 1},   {1025, 3}, {2048, 1},
                                   {5000, 9}, {9000, 1}, {20000, 1}, {3000, 40}};
  const size_t count = few ? 4 : all.size();
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (size_t i = 0; i < count; i++) {
    const int id = static_cast<int>(i);
    Batch alone(c, {{id, all[i]}}, 0);
    const AttendOutput want = alone.attend();
    double size = 0;
    for (float x : want.out) size += static_cast<double>(x) * x;
    check(std::isfinite(size) && size > 0, "%s: length %lld gives %g", c.name,
          static_cast<long long>(all[i].length), size);
    for (int run = 0; run < 4; run++)
      check(same_output(want, alone.attend()), "%s: length %lld, run %d differs", c.name,
            static_cast<long long>(all[i].length), run + 2);
    size_t bytes = 0;
    API_MUST(tq_attend_workspace_bytes(alone.cache.cache, &bytes));
    Memory workspace(TQ_DEVICE_CUDA, std::max<size_t>(bytes, 256));
    for (int fill : {0xFF, 0x00, 0x7F}) {
      workspace.fill(static_cast<uint8_t>(fill));
      check(same_output(want, alone.attend(&workspace, stream)),
            "%s: length %lld differs with a workspace full of %#x", c.name,
            static_cast<long long>(all[i].length), fill);
    }
    // Among others, at any place of the batch, in other slots and pages.
    for (size_t others : few ? std::vector<size_t>{2} : std::vector<size_t>{1, 4, 8, 20})
      for (size_t place : {static_cast<size_t>(0), others / 2, others}) {
        std::vector<std::pair<int, Member>> members;
        for (size_t j = 0; j <= others; j++) {
          const size_t other = (i + 1 + j) % count;
          members.emplace_back(j == place ? id : 100 + static_cast<int>(j), j == place ? all[i] : all[other]);
        }
        Batch together(c, members, 3 + static_cast<int>(place));
        const AttendOutput rows = together.rows_of(together.attend(), place);
        check(same_output(want, rows), "%s: length %lld differs as number %zu among %zu others", c.name,
              static_cast<long long>(all[i].length), place, others);
      }
  }
  GPU_MUST(cudaStreamDestroy(stream));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const bool small = mode == "--small", quick = mode == "--quick";
  const GraphCase cases[] = {{"4+4 bits, d 128", 128, 4, 4, 8, 2, TQ_F16, 0, 0},
                             {"3+2 bits, d 128, window", 128, 3, 2, 8, 1, TQ_BF16, 45, 4},
                             {"8+8 bits, d 64, MHA", 64, 8, 8, 3, 3, TQ_F32, 0, 0},
                             {"5+16 bits, d 80, generic, sinks", 80, 5, 16, 4, 2, TQ_F16, 0, 3},
                             {"2+2 bits, d 256, window", 256, 2, 2, 16, 1, TQ_F16, 100, 0},
                             {"16+16 bits, d 128, generic", 128, 16, 16, 8, 2, TQ_BF16, 0, 0}};
  int index = 0;
  for (const GraphCase& c : cases) {
    try {
      replay(c, small ? 12 : quick && index > 1 ? 300 : 1000);
      if (!small || index == 1) determinism(c, small || quick);
    } catch (const std::exception& error) {
      check(false, "%s: %s", c.name, error.what());
    }
    index++;
    fflush(stdout);
    if (small && index == 2) break;
  }
  return gpu_test::finish("graph_test");
}
