// SPDX-License-Identifier: Apache-2.0
// The part of paged_test.cu that is about slots, numbers that cannot be, copies, and captured steps.
#pragma once
#include <algorithm>

#include "paged_engine.cuh"

namespace gpu_test {

inline tq_cache_config engine_config(int dim, int bits, int dtype) {
  tq_cache_config config = api_config(dim, dim, bits, bits, 8, 2, dtype);
  config.page_size = 64;
  return config;
}
constexpr int64_t kSlotBlocks = 9;
inline EngineForm engine_form(bool heads_first) {
  return EngineForm{64, kSlotBlocks, heads_first ? TQ_PAGES_HEADS_FIRST : TQ_PAGES_BLOCKS_FIRST, 64, 0x5A};
}
inline RowSource engine_source(const Engine& engine, int side, int layer) {
  const tq_cache_config& c = engine.config;
  return RowSource{3, c.io_dtype, side, layer, side == 2 ? c.num_q_heads : c.num_kv_heads, c.head_dim, 1.0f};
}
inline void append_rows(Engine& engine, int device, const Rows& k, const Rows& v) {
  const Memory own_k = k.on(device), own_v = v.on(device);
  engine.append(0, own_k.get(), own_v.get(), k, v);
  if (device == TQ_DEVICE_CUDA) GPU_MUST(cudaDeviceSynchronize());
}
inline bool same_pages(const Engine& a, const Engine& b) {
  for (size_t l = 0; l < a.memory.size(); l++)
    if (a.memory[l].host() != b.memory[l].host()) return false;
  return true;
}

// Slots in any order, with holes, some twice: every byte is the CPU's, those of slots that nobody wrote too.
// Many tokens: the tiles that they share are looked for in parts.
inline void slots_in_any_order(int rounds) {
  std::mt19937 random(5);
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int round = 0; round < rounds; round++) {
    const int widths[] = {3, 16, 5, 4, 2, 8};
    const tq_cache_config config = engine_config(round % 2 ? 64 : 128, widths[round % 6], TQ_F16);
    Engine device(config, TQ_DEVICE_CUDA, engine_form(round % 2)),
        host(config, TQ_DEVICE_CPU, engine_form(round % 2));
    EngineStep s;
    const int64_t all = kSlotBlocks * 64;
    s.tokens = round % 3 == 2 ? 3000 : 1 + pick(400);
    int64_t next = 0;
    for (int64_t t = 0; t < s.tokens; t++) {
      const int64_t how = pick(12);
      next = how == 0 ? pick(all) : (next + 1) % all;
      s.slots.push_back(how == 1 ? -1 : next);
    }
    const Rows k(engine_source(device, 0, 0), s.tokens, true), v(engine_source(device, 1, 0), s.tokens, true);
    k.fill(engine_source(device, 0, 0), {RowRun{round, 0, 0, s.tokens}});
    v.fill(engine_source(device, 1, 0), {RowRun{round, 0, 0, s.tokens}});
    device.plan(s);
    host.plan(s);
    append_rows(device, TQ_DEVICE_CUDA, k, v);
    append_rows(host, TQ_DEVICE_CPU, k, v);
    check(same_pages(device, host), "slots, round %d, %lld tokens: not the CPU's bytes", round,
          static_cast<long long>(s.tokens));
    check(device.noticed() == 0, "slots, round %d: noticed", round);
  }
}

// What the CPU refuses is left out on a device, and said by tq_codec_check.
inline void out_of_range() {
  const tq_cache_config config = engine_config(64, 4, TQ_F16);
  Engine device(config, TQ_DEVICE_CUDA, engine_form(false)), host(config, TQ_DEVICE_CPU, engine_form(false));
  EngineStep s;
  s.tokens = 4;
  s.slots = {70, kSlotBlocks * 64, -5, int64_t{1} << 50};
  const Rows k(engine_source(device, 0, 0), 4, false), v(engine_source(device, 1, 0), 4, false);
  k.fill(engine_source(device, 0, 0), {RowRun{0, 0, 0, 4}});
  v.fill(engine_source(device, 1, 0), {RowRun{0, 0, 0, 4}});
  device.plan(s);
  append_rows(device, TQ_DEVICE_CUDA, k, v);
  check(device.noticed() == TQ_NOTICED_OUT_OF_RANGE && device.noticed() == 0, "slots out of range: flags");
  s.slots = {70, -1, -1, -1};
  host.plan(s);
  append_rows(host, TQ_DEVICE_CPU, k, v);
  check(same_pages(device, host), "slots out of range: other bytes");

  const std::vector<int64_t> slots = {70, kSlotBlocks * 64, -7};
  const std::vector<uint8_t> rows = device.read(0, slots, 2 * 64, 2 * 64),
                             want = host.read(0, {70, -1, -1}, 2 * 64, 2 * 64);
  check(rows == want, "read of slots that are not there");
  check(device.noticed() == TQ_NOTICED_OUT_OF_RANGE, "read of slots that are not there: flags");

  EngineStep attend;
  attend.lens = {20, 3, 20};
  attend.starts = {0, 1, 1, 3};
  attend.bound();
  attend.tokens = 4;
  attend.stride = 2;
  attend.table = {1, -1, INT32_MAX, 3, 1, INT32_MIN};
  const Rows q(engine_source(device, 2, 0), 4, false);
  q.fill(engine_source(device, 2, 0), {RowRun{9, 0, 0, 4}});
  device.plan(attend);
  const AttendOutput right = device.attend(0, q.memory.get(), default_params(), 8, 64);
  check(device.noticed() == 0, "a right step was noticed");
  for (const int wrong : {0, 1}) {  // a length beyond the bound, more queries than the bound
    EngineStep bad = attend;
    if (wrong == 0)
      bad.lens[0] = 21;
    else
      bad.starts = {0, 3, 3, 5};
    device.plan(bad);
    const AttendOutput got = device.attend(0, q.memory.get(), default_params(), 8, 64);
    check(device.noticed() == TQ_NOTICED_OUT_OF_RANGE, "lengths out of range (%d): flags", wrong);
    for (int h = 0; h < 8; h++)
      check(got.lse[static_cast<size_t>(h)] == -INFINITY && got.out[static_cast<size_t>(h) * 64] == 0,
            "lengths out of range (%d): the request's rows", wrong);
    if (wrong == 0)
      check(!memcmp(&right.out[8 * 64], &got.out[8 * 64], 2 * 8 * 64 * 4), "another request's rows");
  }
  // Blocks that are not there: some other block's bytes, no fault.
  attend.table = {INT32_MAX, -1, -1, -1, -9, -1};
  device.plan(attend);
  const AttendOutput any = device.attend(0, q.memory.get(), default_params(), 8, 64);
  check(any.lse[3 * 8] == -INFINITY, "padding beside blocks that are not there");
}

inline void copies() {
  const tq_cache_config config = engine_config(64, 3, TQ_F16);
  Engine from(config, TQ_DEVICE_CUDA, engine_form(false)), to(config, TQ_DEVICE_CUDA, engine_form(true));
  EngineStep s;
  s.tokens = kSlotBlocks * 64;
  for (int64_t t = 0; t < s.tokens; t++) s.slots.push_back(t);
  const Rows k(engine_source(from, 0, 0), s.tokens, false), v(engine_source(from, 1, 0), s.tokens, false);
  k.fill(engine_source(from, 0, 0), {RowRun{0, 0, 0, s.tokens}});
  v.fill(engine_source(from, 1, 0), {RowRun{0, 0, 0, s.tokens}});
  from.plan(s);
  append_rows(from, TQ_DEVICE_CUDA, k, v);
  const std::vector<int64_t> pairs = {-1, 1, 2, 7, 3, -1, 5, 0, 8, 4};
  const Memory list = on_device(TQ_DEVICE_CUDA, pairs);
  API_MUST(tq_paged_copy(from.codec, 0, &from.pages[0], &to.pages[0], list.as<int64_t>(), 5, nullptr));
  const auto block = [&](Engine& engine, int64_t number) {
    std::vector<int64_t> slots;
    for (int64_t t = 0; t < 64; t++) slots.push_back(number * 64 + t);
    return engine.read(0, slots, 2 * 64, 2 * 64);
  };
  for (size_t i = 0; i < pairs.size(); i += 2)
    if (pairs[i] >= 0 && pairs[i + 1] >= 0)
      check(block(from, pairs[i]) == block(to, pairs[i + 1]), "copy of block %d", static_cast<int>(pairs[i]));
  std::vector<uint8_t> untouched = to.memory[0].host();
  check(from.noticed() == 0, "copies: noticed");
  const std::vector<int64_t> wrong = {0, kSlotBlocks, kSlotBlocks, 0, -2, 0};
  const Memory bad = on_device(TQ_DEVICE_CUDA, wrong);
  API_MUST(tq_paged_copy(from.codec, 0, &from.pages[0], &to.pages[0], bad.as<int64_t>(), 3, nullptr));
  check(from.noticed() == TQ_NOTICED_OUT_OF_RANGE, "copies of blocks that are not there: flags");
  check(to.memory[0].host() == untouched, "copies of blocks that are not there wrote something");
}

// One step captured with bounds that all later ones stay within: lengths, padding, slots and block tables
// change between replays, and bytes and bits are those of steps that were planned for themselves.
struct Replay {
  static constexpr int kReqs = 4;
  Engine graph, eager;
  const int most_queries;
  const int64_t tokens;
  std::mt19937 random;
  int64_t lengths[kReqs] = {};
  std::vector<int32_t> blocks[kReqs], free;
  Memory slots, lens, starts, table, out, lse;
  Rows k, v, q;

  Replay(int dim, int most)
      : graph(engine_config(dim, 4, TQ_F16), TQ_DEVICE_CUDA, form()),
        eager(engine_config(dim, 4, TQ_F16), TQ_DEVICE_CUDA, form()),
        most_queries(most),
        tokens(kReqs * std::min(most, 40) + (most > 40 ? most : 0)),
        random(static_cast<unsigned>(dim)) {
    const size_t rows = static_cast<size_t>(tokens);
    slots = on_device(TQ_DEVICE_CUDA, std::vector<int64_t>(rows, -1));
    lens = on_device(TQ_DEVICE_CUDA, std::vector<int32_t>(kReqs, 0));
    starts = on_device(TQ_DEVICE_CUDA, std::vector<int32_t>(kReqs + 1, 0));
    table = on_device(TQ_DEVICE_CUDA, std::vector<int32_t>(kReqs * kSlots, -1));
    out = Memory(TQ_DEVICE_CUDA, rows * 8 * static_cast<size_t>(dim) * 4);
    lse = Memory(TQ_DEVICE_CUDA, rows * 8 * 4);
    k = Rows(engine_source(graph, 0, 0), tokens, false);
    v = Rows(engine_source(graph, 1, 0), tokens, false);
    q = Rows(engine_source(graph, 2, 0), tokens, false);
    for (int32_t i = 0; i < kReqs * kSlots; i++) free.push_back(i);
  }
  static constexpr int kSlots = 8;  // blocks of a request
  static EngineForm form() { return EngineForm{64, kReqs * kSlots, TQ_PAGES_BLOCKS_FIRST, 0, 0x5A}; }
  int pick(int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); }

  void run(int replays) {
    cudaStream_t stream;
    GPU_MUST(cudaStreamCreate(&stream));
    tq_paged_step& step = graph.step;
    step = {sizeof step,         kReqs,       tokens,
            most_queries,        kSlots * 64, slots.as<int64_t>(),
            table.as<int32_t>(), kSlots,      lens.as<int32_t>(),
            starts.as<int32_t>()};
    size_t bytes = 0;
    API_MUST(tq_paged_workspace_bytes(graph.codec, &step, &bytes));
    graph.workspace = Memory(TQ_DEVICE_CUDA, bytes);
    graph.workspace.fill(0xA7);
    GPU_MUST(cudaDeviceSynchronize());
    tq_attend_params params = default_params();
    params.out_dtype = TQ_F32;
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t executable = nullptr;
    GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    API_MUST(tq_paged_plan(graph.codec, &step, graph.workspace.get(), bytes, stream));
    API_MUST(tq_paged_append(graph.codec, 0, &graph.pages[0], &step, k.memory.get(), v.memory.get(), nullptr,
                             graph.workspace.get(), bytes, stream));
    API_MUST(tq_paged_attend(graph.codec, 0, &graph.pages[0], &step, q.memory.get(), out.get(),
                             lse.as<float>(), &params, graph.workspace.get(), bytes, stream));
    GPU_MUST(cudaStreamEndCapture(stream, &captured));
    GPU_MUST(cudaGraphInstantiate(&executable, captured, 0));
    for (int replay = 0; replay < replays; replay++) {
      const EngineStep s = next(replay);
      put(s);
      out.fill(0xFF);
      GPU_MUST(cudaDeviceSynchronize());
      GPU_MUST(cudaGraphLaunch(executable, stream));
      GPU_MUST(cudaStreamSynchronize(stream));
      eager.plan(s);
      eager.append(0, k.memory.get(), v.memory.get(), k, v);
      const AttendOutput want = eager.attend(0, q.memory.get(), params, 8, graph.config.head_dim);
      const AttendOutput got = {out.floats(), lse.floats()};
      check(same_output(want, got), "replay %d of a step of at most %d queries: other bits", replay,
            most_queries);
      check(same_pages(graph, eager), "replay %d of a step of at most %d queries: other bytes", replay,
            most_queries);
    }
    check(graph.noticed() == 0, "replays: noticed");
    GPU_MUST(cudaGraphExecDestroy(executable));
    GPU_MUST(cudaGraphDestroy(captured));
    GPU_MUST(cudaStreamDestroy(stream));
  }

  // Arrays of full size, padding where the step has less. Every fifth: all of it is padding.
  EngineStep next(int replay) {
    EngineStep s;
    const bool dummy = replay % 5 == 4;
    std::vector<RowRun> runs;
    for (int i = 0; i < kReqs; i++) {
      if (pick(4) == 0 || lengths[i] > kSlots * 64 - most_queries) {  // another sequence, in other blocks
        free.insert(free.end(), blocks[i].begin(), blocks[i].end());
        std::shuffle(free.begin(), free.end(), random);
        blocks[i].clear();
        lengths[i] = 0;
      }
      const int64_t room = tokens - s.starts.back();
      const int most = i == 1 ? most_queries : std::min(most_queries, 40);
      int count = replay % 3 == 0 ? 1 : pick(most + 1);
      if (dummy || pick(6) == 0) count = 0;
      count = static_cast<int>(std::min<int64_t>(count, room));
      if (count > 0) runs.push_back(RowRun{100 * replay + i, lengths[i], s.starts.back(), count});
      for (int t = 0; t < count; t++, lengths[i]++) {
        if (lengths[i] / 64 == static_cast<int64_t>(blocks[i].size())) {
          blocks[i].push_back(free.back());
          free.pop_back();
        }
        s.slots.push_back(static_cast<int64_t>(blocks[i][static_cast<size_t>(lengths[i] / 64)]) * 64 +
                          lengths[i] % 64);
      }
      s.lens.push_back(dummy ? 0 : static_cast<int32_t>(lengths[i]));
      s.starts.push_back(s.starts.back() + count);
      for (size_t j = 0; j < kSlots; j++)
        s.table.push_back(!dummy && j < blocks[i].size() ? blocks[i][j] : j % 2 ? -1 : INT32_MAX);
    }
    s.tokens = tokens;
    s.stride = kSlots;
    s.slots.resize(static_cast<size_t>(tokens), -1);
    s.bound();
    k.memory.fill(0xFF);
    v.memory.fill(0xFF);
    q.memory.fill(0xFF);
    k.fill(engine_source(graph, 0, 0), runs);
    v.fill(engine_source(graph, 1, 0), runs);
    q.fill(engine_source(graph, 2, 0), runs);
    return s;
  }
  void put(const EngineStep& s) {
    const auto to = [](const Memory& memory, const auto& host) {
      GPU_MUST(cudaMemcpy(memory.get(), host.data(), host.size() * sizeof host[0], cudaMemcpyHostToDevice));
    };
    to(slots, s.slots);
    to(lens, s.lens);
    to(starts, s.starts);
    to(table, s.table);
  }
};

inline void replays(int count) {
  Replay(128, 6).run(count);
  Replay(64, 150).run(count);
}

}  // namespace gpu_test
