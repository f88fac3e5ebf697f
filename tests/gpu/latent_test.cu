// SPDX-License-Identifier: Apache-2.0
// Latent layers on CUDA through tqkv.h, beside the CPU, whose attention the conformance tests hold against
// float64: the same bytes, the same numbers read, attention within what half-precision queries and weights
// cost. Drafts verified at once are single steps bit for bit; a graph's replay is the call.
#include "api_cache.cuh"

namespace {

using namespace gpu_test;

constexpr int kLatent = 512, kDim = 576;

struct Form {
  int latent_bits, rest_bits, q_heads, kv_heads, dtype, page_size;
  bool centres;
  int window = 0, sinks = 0, max_batch_tokens = 256;
};

tq_cache_config config_of(const Form& f, int device) {
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.device_type = device, c.num_layers = 2, c.layer_kind = TQ_LATENT;
  c.num_q_heads = f.q_heads * f.kv_heads, c.num_kv_heads = f.kv_heads;
  c.head_dim = kDim, c.value_dim = kLatent, c.io_dtype = f.dtype;
  c.value_bits = f.latent_bits, c.key_bits = f.rest_bits, c.page_size = f.page_size;
  c.window_tokens = f.window, c.sink_tokens = f.sinks;
  c.max_tokens = 8192, c.max_sequences = 6, c.max_batch_tokens = f.max_batch_tokens, c.num_threads = 2;
  return c;
}

// Rows [tokens][heads][kDim] as bytes of the type.
std::vector<uint8_t> rows_of(int dtype, int side, int layer, int heads, int64_t sequence, int64_t first,
                             int64_t count) {
  const RowSource source = {99, dtype, side, layer, heads, kDim, side == 2 ? 1.2f : 1.0f};
  const size_t size = static_cast<size_t>(api_dtype_bytes(dtype));
  std::vector<uint8_t> bytes(static_cast<size_t>(count * heads * kDim) * size);
  for (int64_t i = 0; i < count * heads * kDim; i++) {
    const uint32_t bits = row_bits(source, sequence, first + i / kDim / heads,
                                   static_cast<int>(i / kDim % heads), static_cast<int>(i % kDim));
    memcpy(&bytes[static_cast<size_t>(i) * size], &bits, size);
  }
  return bytes;
}

class Device {
 public:
  Device(const Form& f, int device) : form(f), device_(device) {
    const tq_cache_config config = config_of(f, device);
    API_MUST(tq_cache_create(&config, nullptr, &cache));
    API_MUST(tq_batch_create(cache, &batch));
    if (!f.centres) return;
    std::vector<float> centre(static_cast<size_t>(f.kv_heads) * kDim);
    for (size_t i = 0; i < centre.size(); i++) centre[i] = 0.1f * static_cast<float>(i % 17) - 0.8f;
    for (int layer = 0; layer < 2; layer++)
      API_MUST(tq_cache_set_centres(cache, layer, centre.data(), nullptr));
  }
  ~Device() {
    tq_batch_destroy(batch);
    tq_cache_destroy(cache);
  }
  tq_sequence create() {
    tq_sequence sequence = 0;
    API_MUST(tq_sequence_create(cache, &sequence));
    return sequence;
  }
  // Rows of k (side 0) or q (side 2) of the plan's sequences, one after the other.
  Memory rows(int side, int layer, const std::vector<int64_t>& first, const std::vector<int64_t>& count) {
    const int heads = side == 2 ? form.q_heads * form.kv_heads : form.kv_heads;
    std::vector<uint8_t> all;
    for (size_t i = 0; i < first.size(); i++) {
      const std::vector<uint8_t> own =
          rows_of(form.dtype, side, layer, heads, static_cast<int64_t>(i), first[i], count[i]);
      all.insert(all.end(), own.begin(), own.end());
    }
    Memory memory(device_, all.size());
    if (!all.empty()) GPU_MUST(cudaMemcpy(memory.get(), all.data(), all.size(), cudaMemcpyDefault));
    return memory;
  }
  void plan(const std::vector<tq_sequence>& ids, const std::vector<int64_t>& fresh,
            const std::vector<int64_t>& queries) {
    API_MUST(tq_batch_plan(batch, static_cast<int32_t>(ids.size()), ids.data(), fresh.data(), queries.data(),
                           nullptr));
  }
  template <class T>
  Memory of(const std::vector<T>& host) const {
    Memory memory(device_, host.size() * sizeof(T));
    GPU_MUST(cudaMemcpy(memory.get(), host.data(), memory.size(), cudaMemcpyDefault));
    return memory;
  }
  AttendOutput attend(int layer, const Memory& q, int64_t queries, const tq_attend_params* params = nullptr) {
    const size_t rows = static_cast<size_t>(queries * form.q_heads * form.kv_heads);
    tq_attend_params p = params ? *params : tq_attend_params{};
    p.struct_size = sizeof p;
    p.out_dtype = TQ_F32;
    Memory out(device_, rows * kLatent * 4), lse(device_, rows * 4);
    out.fill(0xEE);
    API_MUST(
        tq_cache_attend(cache, layer, batch, q.get(), out.get(), lse.as<float>(), &p, nullptr, 0, nullptr));
    return AttendOutput{out.floats(), lse.floats()};
  }
  std::vector<uint8_t> exported(tq_sequence sequence) {
    tq_state state = {};
    state.struct_size = sizeof state;
    API_MUST(tq_sequence_describe(cache, sequence, &state));
    Memory memory(TQ_DEVICE_CPU, static_cast<size_t>(state.bytes));
    API_MUST(tq_sequence_export(cache, sequence, &state, memory.get(), memory.size(), nullptr));
    return memory.host();
  }

  const Form form;
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;

 private:
  int device_;
};

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  if (size == 0) return difference == 0 ? 0 : INFINITY;  // no query sees a token: zeros on both
  return sqrt(difference / size);
}

void expect_near(const AttendOutput& got, const AttendOutput& want, const char* what) {
  const double error = relative_error(got.out, want.out);
  check(error < 1e-3, "%s: relative error %.2e", what, error);
  for (size_t i = 0; i < want.lse.size(); i++)
    if (!check(fabs(got.lse[i] - want.lse[i]) < 5e-3 || got.lse[i] == want.lse[i], "%s: lse %zu: %g, %g",
               what, i, static_cast<double>(got.lse[i]), static_cast<double>(want.lse[i])))
      break;
}

// steps: of the five, from the first on.
void beside_the_cpu(const Form& f, size_t count = 5) {
  Device cpu(f, TQ_DEVICE_CPU), gpu(f, TQ_DEVICE_CUDA);
  Device* const both[] = {&cpu, &gpu};
  std::vector<tq_sequence> ids[2];
  for (int d = 0; d < 2; d++)
    for (int i = 0; i < 3; i++) ids[d].push_back(both[d]->create());
  std::vector<int64_t> length = {0, 0, 0};
  std::vector<std::vector<int64_t>> steps = {{40, 1, 200}, {1, 1, 1}, {3, 0, 30}, {30, 150, 60}, {1, 2, 1}};
  steps.resize(count);
  for (const std::vector<int64_t>& fresh : steps) {
    std::vector<int64_t> queries, position;
    int64_t total = 0;
    for (int i = 0; i < 3; i++) {
      queries.push_back(std::min<int64_t>(fresh[i] + 1, std::min<int64_t>(4, length[i] + fresh[i])));
      position.push_back(length[i] + fresh[i] - queries[i]);
      total += queries[i];
    }
    for (int layer = 0; layer < 2; layer++) {
      AttendOutput outputs[2], masked[2], ranges[2];
      std::vector<float> sinks(static_cast<size_t>(f.q_heads * f.kv_heads), 0.5f);
      std::vector<int32_t> begin, end;  // in and out of the window, behind the query's own token, of nothing
      for (int64_t i = 0; i < total; i++)
        begin.push_back(static_cast<int32_t>(i % 4 * 11)), end.push_back(static_cast<int32_t>(i % 5 * 47));
      for (int d = 0; d < 2; d++) {
        if (layer == 0) both[d]->plan(ids[d], fresh, queries);
        const Memory k = both[d]->rows(0, layer, length, fresh),
                     q = both[d]->rows(2, layer, position, queries);
        API_MUST(tq_cache_append(both[d]->cache, layer, both[d]->batch, k.get(), nullptr, nullptr, nullptr));
        outputs[d] = both[d]->attend(layer, q, total);
        tq_attend_params params = {};
        Memory sink(d == 0 ? TQ_DEVICE_CPU : TQ_DEVICE_CUDA, sinks.size() * 4);
        GPU_MUST(cudaMemcpy(sink.get(), sinks.data(), sink.size(), cudaMemcpyDefault));
        params.logit_softcap = 5, params.sliding_window = 70, params.sink_logits = sink.as<float>();
        params.softmax_scale = -0.11f, params.history_only = layer;
        masked[d] = both[d]->attend(layer, q, total, &params);
        const Memory begins = both[d]->of(begin), ends = both[d]->of(end), slopes = both[d]->of(sinks);
        params = tq_attend_params{};
        params.visible_begin = begins.as<int32_t>(), params.visible_end = ends.as<int32_t>();
        params.alibi_slopes = slopes.as<float>();
        ranges[d] = both[d]->attend(layer, q, total, &params);
      }
      expect_near(outputs[1], outputs[0], "attend");
      expect_near(masked[1], masked[0], "attend with a window, a cap and sinks");
      expect_near(ranges[1], ranges[0], "attend with visible ranges and ALiBi");
    }
    for (int i = 0; i < 3; i++) length[i] += fresh[i];
  }
  for (int i = 0; i < 3; i++)
    check(cpu.exported(ids[0][i]) == gpu.exported(ids[1][i]), "latent %d, rest %d bits: bytes of sequence %d",
          f.latent_bits, f.rest_bits, i);
  // What is read, of a fork and of a copy that came from the CPU too.
  tq_sequence fork = 0, copy = 0;
  API_MUST(tq_sequence_fork(gpu.cache, ids[1][2], nullptr, &fork));
  API_MUST(tq_sequence_copy(cpu.cache, ids[0][2], gpu.cache, nullptr, &copy));
  const size_t size = static_cast<size_t>(length[2] * f.kv_heads * api_dtype_bytes(f.dtype));
  Memory k(TQ_DEVICE_CPU, size * kDim), v(TQ_DEVICE_CPU, size * kLatent);
  API_MUST(tq_cache_read(cpu.cache, 1, ids[0][2], 0, length[2], k.get(), v.get(), nullptr, nullptr));
  for (const tq_sequence id : {ids[1][2], fork, copy}) {
    Memory own_k(TQ_DEVICE_CUDA, size * kDim), own_v(TQ_DEVICE_CUDA, size * kLatent);
    API_MUST(tq_cache_read(gpu.cache, 1, id, 0, length[2], own_k.get(), own_v.get(), nullptr, nullptr));
    check(own_k.host() == k.host() && own_v.host() == v.host(), "what is read is the CPU's");
  }
}

struct Stream {
  std::vector<uint8_t> bytes;
  size_t read = 0;

  tq_io io() {
    const auto write = [](void* user, const void* from, size_t count) {
      std::vector<uint8_t>& to = static_cast<Stream*>(user)->bytes;
      to.insert(to.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + count);
      return int32_t{0};
    };
    const auto give = [](void* user, void* to, size_t count) {
      Stream& own = *static_cast<Stream*>(user);
      if (own.bytes.size() - own.read < count) return int32_t{1};
      memcpy(to, own.bytes.data() + own.read, count);
      own.read += count;
      return int32_t{0};
    };
    return tq_io{sizeof(tq_io), 0, this, write, give, nullptr};
  }
};

// A sequence saved, loaded, and taken in as a part in memory, between the devices: the same bytes.
void states(const Form& f) {
  Device cpu(f, TQ_DEVICE_CPU), gpu(f, TQ_DEVICE_CUDA);
  Device* const both[] = {&cpu, &gpu};
  Stream saved[2];
  std::vector<uint8_t> parts[2];
  tq_state state = {};
  for (int d = 0; d < 2; d++) {
    const tq_sequence id = both[d]->create();
    both[d]->plan({id}, {150}, {0});
    const Memory k = both[d]->rows(0, 0, {0}, {150});
    for (int layer = 0; layer < 2; layer++)
      API_MUST(tq_cache_append(both[d]->cache, layer, both[d]->batch, k.get(), nullptr, nullptr, nullptr));
    const tq_io io = saved[d].io();
    API_MUST(tq_sequence_save(both[d]->cache, id, &io, nullptr));
    parts[d] = both[d]->exported(id);
    state.struct_size = sizeof state;
    API_MUST(tq_sequence_describe(both[d]->cache, id, &state));
  }
  check(saved[0].bytes == saved[1].bytes && parts[0] == parts[1], "what is saved and exported is the CPU's");
  for (int d = 0; d < 2; d++) {
    const tq_io io = saved[1 - d].io();
    tq_sequence loaded = 0;
    API_MUST(tq_sequence_load(both[d]->cache, &io, nullptr, &loaded));
    check(both[d]->exported(loaded) == parts[0], "a sequence that the other device has saved");
    const tq_sequence taken = both[d]->create();
    API_MUST(
        tq_sequence_import(both[d]->cache, taken, &state, parts[1 - d].data(), parts[1 - d].size(), nullptr));
    check(both[d]->exported(taken) == parts[0], "a part of the other device's");
  }
}

// Queries that see some of the plan's new tokens, by a tree mask; new tokens in the window and before it.
void tree_masks(const Form& f) {
  Device cpu(f, TQ_DEVICE_CPU), gpu(f, TQ_DEVICE_CUDA);
  Device* const both[] = {&cpu, &gpu};
  AttendOutput outputs[2];
  for (int d = 0; d < 2; d++) {
    Device& device = *both[d];
    const tq_sequence id = device.create();
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 130}, {130, 12}}) {
      const int64_t queries = first > 0 ? count : 0;
      device.plan({id}, {count}, {queries});
      const Memory k = device.rows(0, 0, {first}, {count});
      API_MUST(tq_cache_append(device.cache, 0, device.batch, k.get(), nullptr, nullptr, nullptr));
    }
    std::vector<uint64_t> words;
    for (uint64_t i = 0; i < 12; i++) words.push_back(uint64_t{0x5A3} >> i % 3 | uint64_t{1} << i);
    const Memory tree = device.of(words), q = device.rows(2, 0, {130}, {12});
    tq_attend_params params = {};
    params.tree_mask = tree.as<uint64_t>(), params.tree_words = 1;
    outputs[d] = device.attend(0, q, 12, &params);
  }
  expect_near(outputs[1], outputs[0], "attend with a tree mask");
}

// Several drafts in one plan, and one after the other.
void drafts_are_single_steps(const Form& f, int64_t history = 2040) {
  Device gpu(f, TQ_DEVICE_CUDA);
  const tq_sequence one = gpu.create(), many = gpu.create();
  std::vector<float> single, at_once;
  for (const tq_sequence id : {one, many}) {
    for (int64_t first = 0; first < history; first += 255) {
      const int64_t count = std::min<int64_t>(255, history - first);
      gpu.plan({id}, {count}, {0});
      const Memory k = gpu.rows(0, 0, {first}, {count});
      for (int layer = 0; layer < 2; layer++)
        API_MUST(tq_cache_append(gpu.cache, layer, gpu.batch, k.get(), nullptr, nullptr, nullptr));
    }
    const int64_t pieces = id == one ? 16 : 1, count = 16 / pieces;
    for (int64_t piece = 0; piece < pieces; piece++) {
      gpu.plan({id}, {count}, {count});
      const Memory k = gpu.rows(0, 0, {history + piece * count}, {count}),
                   q = gpu.rows(2, 0, {history + piece * count}, {count});
      for (int layer = 0; layer < 2; layer++)
        API_MUST(tq_cache_append(gpu.cache, layer, gpu.batch, k.get(), nullptr, nullptr, nullptr));
      const AttendOutput got = gpu.attend(0, q, count);
      std::vector<float>& all = id == one ? single : at_once;
      all.insert(all.end(), got.out.begin(), got.out.end());
    }
  }
  check(single == at_once, "%d heads: 16 drafts at once are 16 single steps", f.q_heads);
}

#ifndef TQ_EMULATE
// More rows than a slice has: those of a prompt in one plan are those of one in many.
void many_rows(const Form& f) {
  Device gpu(f, TQ_DEVICE_CUDA);
  const int64_t length = f.max_batch_tokens;
  std::vector<float> all[2];
  for (const int64_t each : {length, int64_t{1400}}) {
    const tq_sequence id = gpu.create();
    for (int64_t first = 0; first < length; first += each) {
      const int64_t count = std::min(each, length - first);
      gpu.plan({id}, {count}, {count});
      const Memory k = gpu.rows(0, 0, {first}, {count}), q = gpu.rows(2, 0, {first}, {count});
      API_MUST(tq_cache_append(gpu.cache, 0, gpu.batch, k.get(), nullptr, nullptr, nullptr));
      const AttendOutput got = gpu.attend(0, q, count);
      std::vector<float>& rows = all[each == length ? 0 : 1];
      rows.insert(rows.end(), got.out.begin(), got.out.end());
    }
    API_MUST(tq_sequence_free(gpu.cache, id, nullptr));
  }
  check(all[0] == all[1], "%d rows of a plan are those of smaller plans",
        static_cast<int>(length * f.q_heads));
}

void graphs(const Form& f) {
  Device eager(f, TQ_DEVICE_CUDA), captured(f, TQ_DEVICE_CUDA);
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreate(&stream));
  const size_t rows = static_cast<size_t>(2 * f.q_heads * f.kv_heads);
  Memory out(TQ_DEVICE_CUDA, rows * kLatent * 4);
  std::vector<tq_sequence> a = {eager.create(), eager.create()}, b = {captured.create(), captured.create()};
  Memory k = captured.rows(0, 0, {0, 0}, {1, 1}), q = captured.rows(2, 0, {0, 0}, {1, 1});
  cudaGraphExec_t exec = nullptr;
  for (int64_t step = 0; step < 70; step++) {
    eager.plan(a, {1, 1}, {1, 1});
    const Memory own_k = eager.rows(0, 0, {step, step}, {1, 1}),
                 own_q = eager.rows(2, 0, {step, step}, {1, 1});
    API_MUST(tq_cache_append(eager.cache, 0, eager.batch, own_k.get(), nullptr, nullptr, nullptr));
    const AttendOutput want = eager.attend(0, own_q, 2);
    const int64_t ones[2] = {1, 1};
    GPU_MUST(cudaMemcpy(k.get(), own_k.get(), k.size(), cudaMemcpyDefault));
    GPU_MUST(cudaMemcpy(q.get(), own_q.get(), q.size(), cudaMemcpyDefault));
    API_MUST(tq_batch_plan(captured.batch, 2, b.data(), ones, ones, stream));
    if (!exec) {
      tq_attend_params p = {};
      p.struct_size = sizeof p, p.out_dtype = TQ_F32;
      cudaGraph_t graph;
      GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      API_MUST(tq_cache_append(captured.cache, 0, captured.batch, k.get(), nullptr, nullptr, stream));
      API_MUST(tq_cache_attend(captured.cache, 0, captured.batch, q.get(), out.get(), nullptr, &p, nullptr, 0,
                               stream));
      GPU_MUST(cudaStreamEndCapture(stream, &graph));
      GPU_MUST(cudaGraphInstantiate(&exec, graph, 0));
    }
    GPU_MUST(cudaGraphLaunch(exec, stream));
    GPU_MUST(cudaStreamSynchronize(stream));
    if (!check(out.floats() == want.out, "replay %d is the call", static_cast<int>(step))) break;
  }
  cudaGraphExecDestroy(exec);
  cudaStreamDestroy(stream);
}
#endif

void refused(void (*change)(tq_cache_config&), const char* text) {
  tq_cache_config config = config_of(Form{4, 8, 16, 1, TQ_BF16, 64, false}, TQ_DEVICE_CUDA);
  change(config);
  tq_cache* cache = nullptr;
  check(tq_cache_create(&config, nullptr, &cache) == TQ_ERROR_NOT_SUPPORTED && strstr(tq_last_error(), text),
        "refusal with %s: %s", text, tq_last_error());
}

void what_cuda_refuses() {
  refused([](tq_cache_config& c) { c.head_dim = 288, c.value_dim = 256; }, "head_dim = 576");
  refused([](tq_cache_config& c) { c.value_bits = 16; }, "scalar codes of the latent");
  refused([](tq_cache_config& c) { c.value_family = TQ_CODE_GROUPED; }, "scalar codes of the latent");
  refused([](tq_cache_config& c) { c.key_family = TQ_CODE_PROD, c.key_bits = 4; },
          "scalar codes or raw numbers of the rest");
}

// Tokens taken out of a sequence, across pages and inside a tile: the bytes that the CPU has, and attention
// goes on.
void tokens_are_taken_out(const Form& f) {
  Device cpu(f, TQ_DEVICE_CPU), gpu(f, TQ_DEVICE_CUDA);
  Device* const both[] = {&cpu, &gpu};
  std::vector<uint8_t> bytes[2];
  AttendOutput outputs[2];
  for (int d = 0; d < 2; d++) {
    Device& device = *both[d];
    const tq_sequence id = device.create();
    device.plan({id}, {250}, {0});
    const Memory k = device.rows(0, 0, {0}, {250});
    for (int layer = 0; layer < 2; layer++)
      API_MUST(tq_cache_append(device.cache, layer, device.batch, k.get(), nullptr, nullptr, nullptr));
    API_MUST(tq_sequence_remove(device.cache, id, 3, 40, nullptr));
    API_MUST(tq_sequence_remove(device.cache, id, 70, 65, nullptr));
    bytes[d] = device.exported(id);
    device.plan({id}, {2}, {2});
    const Memory more = device.rows(0, 0, {250}, {2}), q = device.rows(2, 0, {250}, {2});
    API_MUST(tq_cache_append(device.cache, 1, device.batch, more.get(), nullptr, nullptr, nullptr));
    outputs[d] = device.attend(1, q, 2);
  }
  check(bytes[0] == bytes[1], "bytes of a sequence without the tokens that were taken out");
  expect_near(outputs[1], outputs[0], "attend after tokens were taken out");
}

}  // namespace

// --small, --tiny: for tools that watch every access.
int main(int argc, char** argv) {
  const bool tiny = argc > 1 && !strcmp(argv[1], "--tiny"),
             small = tiny || (argc > 1 && !strcmp(argv[1], "--small"));
  try {
    const Form forms[] = {{4, 8, 16, 1, TQ_BF16, 64, false}, {4, 16, 40, 1, TQ_BF16, 32, true},
                          {8, 4, 128, 1, TQ_F32, 64, false}, {3, 16, 2, 3, TQ_F32, 96, true},
                          {4, 5, 24, 1, TQ_F16, 64, false},  {6, 16, 16, 1, TQ_F16, 64, true},
                          {1, 1, 16, 1, TQ_BF16, 64, false}, {4, 4, 128, 1, TQ_F32, 64, true},
                          {2, 3, 8, 1, TQ_F16, 64, false}};
    // Exact tokens: windows shorter and longer than a step, sinks alone, all tokens exact, every input type.
    const Form exact[] = {{4, 8, 16, 1, TQ_BF16, 64, true, 40, 3},  {4, 16, 64, 1, TQ_F16, 32, false, 100, 0},
                          {3, 4, 24, 2, TQ_F32, 64, true, 0, 37},   {8, 16, 4, 1, TQ_F32, 64, true, 70, 70},
                          {4, 4, 128, 1, TQ_BF16, 64, true, 33, 4}, {4, 8, 32, 1, TQ_F16, 64, false, 400, 9}};
    if (small) {
      for (const Form& f : {forms[0], forms[1], forms[3], exact[0], exact[1], exact[2]})
        beside_the_cpu(f, tiny ? 2 : 4);
      states(exact[0]);
      if (tiny) return finish("latent_test");
      tree_masks(exact[0]);
      drafts_are_single_steps(exact[2], 100);
      tokens_are_taken_out(forms[0]);
      what_cuda_refuses();
      return finish("latent_test");
    }
    for (const Form& f : forms) beside_the_cpu(f);
    for (const Form& f : exact) {
      beside_the_cpu(f);
      tree_masks(f);
      states(f);
      drafts_are_single_steps(f, 1000);
    }
    tree_masks(forms[0]);
    states(forms[1]);
    for (const int heads : {16, 32, 64, 128})
      drafts_are_single_steps(Form{4, 8, heads, 1, TQ_BF16, 64, false});
    drafts_are_single_steps(Form{8, 8, 16, 1, TQ_BF16, 64, false});
#ifndef TQ_EMULATE
    graphs(Form{4, 8, 16, 1, TQ_BF16, 64, false});
    graphs(Form{4, 8, 16, 1, TQ_BF16, 64, true, 20, 4});
    many_rows(Form{4, 8, 16, 1, TQ_BF16, 64, true, 60, 2, 4200});
#endif
    tokens_are_taken_out(Form{4, 8, 16, 1, TQ_BF16, 64, false});
    tokens_are_taken_out(Form{3, 16, 2, 2, TQ_F16, 32, true});
    tokens_are_taken_out(Form{4, 16, 16, 1, TQ_F16, 32, true, 60, 20});
    what_cuda_refuses();
  } catch (const std::exception& error) {
    check(false, "%s", error.what());
  }
  return finish("latent_test");
}
