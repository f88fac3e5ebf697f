// SPDX-License-Identifier: Apache-2.0
// State that travels on CUDA caches: what a sequence exports and saves are the bytes that the CPU's exports
// and saves, and what comes in from either device saves and attends as the sequence that was appended there.
// Random ranges of tokens, layers and kv heads, other page sizes, sliding layers, exact copies; loads that
// fail leave nothing. Parts lie in memory of the device, in pinned memory, where calls only enqueue, and in
// other memory of the host; in a graph all is refused.  state_test [--quick]
#include <memory>
#include <random>
#include <string>

#include "modes.cuh"

namespace {

using namespace gpu_test;

struct Case {
  int head_dim, value_dim, key_bits, value_bits, dtype, page_size, window, sinks, rollback, sliding;
  int key_family = 0, value_family = 0;
  std::vector<int32_t> bands = {};
};
const Case kCases[] = {
    {128, 128, 4, 4, TQ_F16, 64, 0, 0, 0, 0},
    {64, 64, 3, 2, TQ_BF16, 32, 10, 5, 3, 0},
    {80, 80, 5, 6, TQ_F16, 32, 0, 0, 4, 40},
    {192, 128, 8, 3, TQ_F32, 96, 40, 33, 0, 0},
    {128, 128, 16, 4, TQ_F32, 64, 7, 0, 5, 20},
    {576, 512, 4, 4, TQ_F32, 32, 0, 6, 0, 0},
    {64, 64, 3, 4, TQ_F32, 32, 8, 0, 0, 0, TQ_CODE_PROD, TQ_CODE_GROUPED},
    {96, 96, 2, 5, TQ_F16, 64, 0, 0, 0, 50, TQ_CODE_GROUPED, TQ_CODE_LEVELS},
    {64, 64, 4, 3, TQ_BF16, 32, 0, 5, 3, 0, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS},
    {128, 128, 4, 3, TQ_F16, 64, 8, 5, 3, 0, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS, {4, 3, 3, 2}},
    {40, 40, 4, 4, TQ_F32, 32, 0, 0, 0, 30, 0, 0, {4, 1}},
};
constexpr int kLayers = 2, kHeads = 2;
constexpr int64_t kLongest = 200;

using Bytes = std::vector<uint8_t>;

struct Stream {
  Bytes bytes;
  size_t at = 0;
  static int32_t write(void* user, const void* from, size_t count) {
    Bytes& bytes = static_cast<Stream*>(user)->bytes;
    bytes.insert(bytes.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + count);
    return 0;
  }
  static int32_t read(void* user, void* to, size_t count) {
    Stream& stream = *static_cast<Stream*>(user);
    if (count > stream.bytes.size() - stream.at) return 1;
    memcpy(to, stream.bytes.data() + stream.at, count);
    stream.at += count;
    return 0;
  }
  tq_io io() { return tq_io{sizeof(tq_io), 0, this, write, read, nullptr}; }
};

struct Part {
  tq_state state = {};
  Memory memory;
  Bytes bytes() const {
    Bytes all = memory.host();
    all.resize(static_cast<size_t>(state.bytes));
    return all;
  }
};

class World {
 public:
  World(const Case& c, unsigned seed)
      : c_(c),
        mode_({c.head_dim,
               c.value_dim,
               {c.key_family, c.key_bits},
               {c.value_family, c.value_bits},
               0,
               0,
               c.bands}),
        random_(seed) {
    for (int i = 0; i < 4; i++)  // the CPU's, the device's, and one more of each with other pages
      caches_[i].reset(new ApiCache(config(c, i >= 2), i % 2 ? TQ_DEVICE_CUDA : TQ_DEVICE_CPU));
    for (int side = 0; side < 3; side++)
      for (int layer = 0; layer < kLayers; layer++)
        sources_[side][layer] =
            RowSource{seed, c.dtype, side, layer, kHeads, side == 1 ? c.value_dim : c.head_dim, 1};
  }

  int64_t step(int64_t number) {
    const int64_t length = 1 + pick(kLongest);
    tq_sequence own[2];
    for (int device = 0; device < 2; device++) {
      own[device] = caches_[device]->sequence();
      for (int64_t done = 0, border = pick(length); done < length; done = done < border ? border : length)
        append(*caches_[device], device, own[device], number, done, (done < border ? border : length) - done);
    }
    const Bytes saved = save(0, own[0]);
    check(save(1, own[1]) == saved, "%s: %lld tokens save as other bytes on CUDA", name(), ll(length));
    const AttendOutput want[2] = {attend(0, own[0]), attend(1, own[1])};
    for (int way = 0; way < 4; way++) {
      const int from = way % 2, to = way / 2;
      tq_sequence copy = caches_[to + 2]->sequence();
      for (int64_t done = 0; done < length;) {
        const int64_t count = pick(3) == 0 ? length - done : 1 + pick(length - done);
        move_range(from, own, to, copy, done, count);
        done += count;
      }
      check(same_output(attend(to + 2, copy), want[to]), "%s: %lld tokens from %d to %d attend otherwise",
            name(), ll(length), from, to);
      API_MUST(tq_sequence_free(caches_[to + 2]->cache, copy, nullptr));
      Stream stream = {saved};
      const tq_io io = stream.io();
      API_MUST(tq_sequence_load(caches_[to + 2]->cache, &io, nullptr, &copy));
      check(save(to + 2, copy) == saved, "%s: %lld tokens loaded on %d save otherwise", name(), ll(length),
            to);
      check(same_output(attend(to + 2, copy), want[to]), "%s: %lld tokens loaded on %d attend otherwise",
            name(), ll(length), to);
      API_MUST(tq_sequence_free(caches_[to + 2]->cache, copy, nullptr));
    }
    damaged(saved);
    captured(own[1], saved);
    for (int device = 0; device < 2; device++)
      API_MUST(tq_sequence_free(caches_[device]->cache, own[device], nullptr));
    return moves_;
  }

 private:
  static long long ll(int64_t x) { return x; }
  tq_cache_config config(const Case& c, bool other_pages) const {
    static tq_layer_config layers[kLayers];
    tq_cache_config config =
        api_config(c.head_dim, c.value_dim, c.key_bits, c.value_bits, kHeads, kHeads, c.dtype);
    for (int layer = 0; layer < kLayers; layer++) {
      layers[layer] = tq_layer_config{};
      layers[layer].struct_size = sizeof layers[layer];
      layers[layer].sliding_window = layer ? c.sliding : 0;
      layers[layer].key_bands = mode_.bands();
    }
    mode_.apply(&config);
    config.layers = layers;
    config.num_layers = kLayers;
    config.page_size = other_pages ? 160 - c.page_size : c.page_size;
    config.window_tokens = c.window;
    config.sink_tokens = c.sinks;
    config.rollback_tokens = c.rollback;
    config.max_sequences = 3;
    config.max_batch_tokens = kLongest;
    config.max_tokens = 3 * kLongest;
    config.max_sequence_tokens = kLongest;
    config.first_layer = 3, config.first_kv_head = 4;
    return config;
  }
  const char* name() const { return "state"; }
  int64_t pick(int64_t n) { return n > 0 ? static_cast<int64_t>(random_() % static_cast<uint64_t>(n)) : 0; }

  void append(ApiCache& cache, int device, tq_sequence id, int64_t number, int64_t first, int64_t count) {
    if (count == 0) return;
    cache.plan({id}, {count}, {1});
    for (int layer = 0; layer < kLayers; layer++) {
      const Rows k(sources_[0][layer], count, false), v(sources_[1][layer], count, false);
      k.fill(sources_[0][layer], {RowRun{number, first, 0, count}});
      v.fill(sources_[1][layer], {RowRun{number, first, 0, count}});
      const Memory host_k = device ? Memory() : k.on(TQ_DEVICE_CPU),
                   host_v = device ? Memory() : v.on(TQ_DEVICE_CPU);
      cache.append(layer, device ? k.memory.get() : host_k.get(), device ? v.memory.get() : host_v.get(), k,
                   v);
    }
    GPU_MUST(cudaDeviceSynchronize());
  }
  AttendOutput attend(int index, tq_sequence id) {
    const bool device = index % 2;
    caches_[index]->plan({id}, {0}, {1});
    AttendOutput all;
    for (int layer = 0; layer < kLayers; layer++) {
      const Rows q(sources_[2][layer], 1, false);
      q.fill(sources_[2][layer], {RowRun{7, 0, 0, 1}});
      const Memory host = device ? Memory() : q.on(TQ_DEVICE_CPU);
      GPU_MUST(cudaDeviceSynchronize());
      const AttendOutput one =
          caches_[index]->attend(layer, device ? q.memory.get() : host.get(), tq_attend_params{});
      all.out.insert(all.out.end(), one.out.begin(), one.out.end());
      all.lse.insert(all.lse.end(), one.lse.begin(), one.lse.end());
    }
    return all;
  }
  Bytes save(int index, tq_sequence id) {
    Stream stream;
    const tq_io io = stream.io();
    API_MUST(tq_sequence_save(caches_[index]->cache, id, &io, nullptr));
    return stream.bytes;
  }
  // by_cuda: CUDA caches alone use the memory.
  Part exported(int index, tq_sequence id, int64_t first, int64_t count, int layer, int head, bool by_cuda) {
    Part part;
    tq_state& state = part.state;
    state.struct_size = sizeof state;
    state.first_token = first, state.num_tokens = count;
    state.first_layer = 3 + layer, state.num_layers = layer < 0 ? 0 : 1;
    state.first_kv_head = 4 + head, state.num_kv_heads = head < 0 ? 0 : 1;
    API_MUST(tq_sequence_describe(caches_[index]->cache, id, &state));
    static const int kinds[] = {TQ_DEVICE_CPU, kPinned, TQ_DEVICE_CUDA};
    part.memory = Memory(kinds[pick(by_cuda ? 3 : 2)], static_cast<size_t>(state.bytes));
    part.memory.fill(0xEE);
    GPU_MUST(cudaDeviceSynchronize());
    API_MUST(tq_sequence_export(caches_[index]->cache, id, &state, part.memory.get(), part.memory.size(),
                                nullptr));
    return part;
  }
  // Tokens by layers and kv heads in several ways; both devices export the same bytes.
  void move_range(int from, const tq_sequence (&own)[2], int to, tq_sequence copy, int64_t first,
                  int64_t count) {
    const bool by_layers = pick(2), by_heads = pick(2);
    for (int layer = by_layers ? 0 : -1; layer < (by_layers ? kLayers : 0); layer++)
      for (int head = by_heads ? 0 : -1; head < (by_heads ? kHeads : 0); head++) {
        const Part part = exported(from, own[from], first, count, layer, head, from == 1 && to == 1),
                   other = exported(1 - from, own[1 - from], first, count, layer, head, from == 0);
        if (from == 1 && to == 0) GPU_MUST(cudaDeviceSynchronize());  // else the stream orders both
        API_MUST(tq_sequence_import(caches_[to + 2]->cache, copy, &part.state, part.memory.get(),
                                    part.memory.size(), nullptr));
        check(part.state.identity == other.state.identity && part.bytes() == other.bytes(),
              "%s: tokens %lld + %lld export as other bytes on CUDA", name(), ll(first), ll(count));
        moves_++;
      }
  }
  // None of the calls is part of a graph, and a capture goes on as if they had not been made.
  void captured(tq_sequence id, const Bytes& saved) {
    tq_cache* cache = caches_[1]->cache;
    const Part part = exported(1, id, 0, 0, -1, -1, true);
    const tq_sequence empty = caches_[3]->sequence();
    cudaStream_t stream;
    cudaGraph_t graph;
    GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Stream written, read = {saved};
    const tq_io out = written.io(), in = read.io();
    tq_sequence loaded = 0;
    GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const tq_status refused[] = {
        tq_sequence_export(cache, id, &part.state, part.memory.get(), part.memory.size(), stream),
        tq_sequence_import(caches_[3]->cache, empty, &part.state, part.memory.get(), part.memory.size(),
                           stream),
        tq_sequence_save(cache, id, &out, stream), tq_sequence_load(cache, &in, stream, &loaded)};
    GPU_MUST(cudaStreamEndCapture(stream, &graph));
    for (int i = 0; i < 4; i++)
      check(refused[i] == TQ_ERROR_CAPTURE, "call %d in a capture: status %d", i, refused[i]);
    int64_t length = -1;
    API_MUST(tq_sequence_length(caches_[3]->cache, empty, &length));
    API_MUST(tq_sequence_free(caches_[3]->cache, empty, nullptr));
    check(length == 0 && written.bytes.empty() && read.at == 0 && loaded == 0,
          "a call in a capture did something");
    GPU_MUST(cudaGraphDestroy(graph));
    GPU_MUST(cudaStreamDestroy(stream));
  }
  // A stream with a wrong last byte of the payload: refused, and the device's cache is as it was.
  void damaged(const Bytes& saved) {
    ApiCache& target = *caches_[3];
    tq_cache_memory before = {}, after = {};
    before.struct_size = after.struct_size = sizeof before;
    API_MUST(tq_cache_get_memory(target.cache, &before));
    Stream stream = {saved};
    stream.bytes[saved.size() - 40] ^= 1;
    const tq_io io = stream.io();
    tq_sequence copy = 0;
    check(tq_sequence_load(target.cache, &io, nullptr, &copy) == TQ_ERROR_CORRUPT_DATA && copy == 0,
          "%s: a damaged stream was loaded", name());
    API_MUST(tq_cache_get_memory(target.cache, &after));
    check(!memcmp(&before, &after, sizeof before), "%s: a load that failed left something", name());
  }

  const Case& c_;
  ModeConfig mode_;
  std::mt19937_64 random_;
  std::unique_ptr<ApiCache> caches_[4];
  RowSource sources_[3][kLayers];
  int64_t moves_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "--quick";
  try {
    int64_t moves = 0;
    for (const Case& c : kCases) {
      World world(c, static_cast<unsigned>(&c - kCases) + 1);
      int64_t own = 0;
      for (int i = 0; i < (quick ? 2 : 40); i++) own = world.step(i);
      moves += own;
    }
    printf("   %lld parts of sequences moved\n", static_cast<long long>(moves));
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return finish("state_test");
}
