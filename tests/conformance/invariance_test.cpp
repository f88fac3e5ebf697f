// SPDX-License-Identifier: Apache-2.0
// What must not change a bit: batch composition, splits, threads, workspace, page placement, unwritten
// memory, the caller's floating-point mode.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <thread>

#include "cpu/schedule.h"
#include "cpu/thread_pool.h"
#include "rig.h"
#include "status.h"

namespace tq {
namespace test {
namespace {

class InvarianceTest : public testing::TestWithParam<std::string> {
 protected:
  RigConfig base() {
    RigConfig config;
    config.isa = GetParam();
    config.max_tokens = 8192;
    return config;
  }
};

void expect_same(const Result& a, const Result& b, const std::string& what) {
  EXPECT_TRUE(same_bits(a.out, b.out)) << what;
  EXPECT_TRUE(same_bits(a.lse, b.lse)) << what;
}

// Rows of one sequence's queries out of a result in which they start at `first`.
Result rows_of(const Result& all, size_t first, size_t count, const UniformGeometry& g) {
  Result part;
  const size_t rows = static_cast<size_t>(g.num_q_heads),
               width = static_cast<size_t>(g.num_q_heads) * g.value_dim;
  part.out.assign(all.out.begin() + first * width, all.out.begin() + (first + count) * width);
  part.lse.assign(all.lse.begin() + first * rows, all.lse.begin() + (first + count) * rows);
  return part;
}

TEST_P(InvarianceTest, BatchCompositionAndPagePlacement) {
  for (const int bits : {3, 16}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    config.q_per_kv = 3;
    config.window = 21;
    Rig together(config), apart(config);
    together.step({{0, 500, 0}, {1, 90, 0}, {2, 1300, 0}});
    together.step({{2, 2, 7}, {0, 1, 1}, {1, 40, 40}});
    const Result all = together.attend();
    apart.step({{2, 1302, 7}});
    expect_same(rows_of(all, 0, 7, together.geometry), apart.attend(), "long sequence");
    apart.step({{0, 501, 1}});
    expect_same(rows_of(all, 7, 1, together.geometry), apart.attend(), "decode");
    apart.step({{1, 130, 40}});
    expect_same(rows_of(all, 8, 40, together.geometry), apart.attend(), "prefill");
  }
}

// A prompt in one chunk, in a few and token by token: the copies of its window are there for each query.
TEST_P(InvarianceTest, ChunksOfAPrompt) {
  for (const int window : {0, 1, 32})
    for (const int bits : {2, 3, 16}) {
      RigConfig config = base();
      config.key_bits = bits;
      config.value_bits = bits == 2 ? 16 : bits;
      config.q_per_kv = 3;
      config.sinks = window ? 2 : 0;
      config.window = window;
      config.rollback = 80;
      config.centres = bits == 3;
      SCOPED_TRACE(testing::Message() << bits << " bits, window " << window);
      Rig whole(config);
      whole.step({{0, 980, 0}});
      whole.step({{0, 80, 80}});
      AttendOptions options;
      options.sliding_window = bits == 3 ? 50 : 0;
      const Result all = whole.attend(options);
      for (const int64_t chunk : {1, 27, 64}) {
        Rig parts(config);
        parts.step({{0, 980, 0}});
        for (int64_t first = 0; first < 80; first += chunk) {
          const int64_t count = std::min<int64_t>(chunk, 80 - first);
          parts.step({{0, count, count}});
          expect_same(rows_of(all, static_cast<size_t>(first), static_cast<size_t>(count), whole.geometry),
                      parts.attend(options), "chunks of " + std::to_string(chunk));
        }
      }
    }
}

// Eight drafts verified at once are eight single steps, bit for bit; some at the border of two splits.
TEST_P(InvarianceTest, DraftsAreSingleSteps) {
  int variant = 0;
  for (const int window : {0, 1, 32, 128})
    for (const int head_dim : {64, 80, 128})
      for (const int q_per_kv : {1, 2, 5, 16}) {
        variant++;
        const int bits[] = {2, 3, 4, 5, 6, 8, 16};
        RigConfig config = base();
        config.head_dim = config.value_dim = head_dim;
        config.q_per_kv = q_per_kv;
        config.kv_heads = 1;
        config.key_bits = bits[variant % 7];
        config.value_bits = bits[variant / 3 % 7];
        config.io = static_cast<DataType>(1 + variant % 3);
        config.window = window;
        config.sinks = variant % 4 ? 0 : 5;
        config.rollback = 7;
        config.centres = variant % 5 == 0;
        config.threads = 1 + variant % 2;
        const int64_t history = variant % 3 == 0 ? 1020 : variant % 3 == 1 ? 200 : 1148;
        SCOPED_TRACE(testing::Message()
                     << "window " << window << ", head_dim " << head_dim << ", bits " << config.key_bits
                     << " + " << config.value_bits << ", history " << history);
        AttendOptions options;
        options.sliding_window = variant % 6 == 1 ? 150 : 0;
        options.softcap = variant % 6 == 2 ? 3.0f : 0.0f;
        options.sink_logits = variant % 6 == 3;
        Rig drafts(config), steps(config);
        drafts.step({{0, history, 0}});
        drafts.step({{0, 8, 8}});
        const Result eight = drafts.attend(options);
        steps.step({{0, history, 0}});
        for (size_t i = 0; i < 8; i++) {
          steps.step({{0, 1, 1}});
          expect_same(rows_of(eight, i, 1, drafts.geometry), steps.attend(options),
                      "draft " + std::to_string(i));
        }
      }
}

TEST_P(InvarianceTest, SplitsThreadsAndWorkspaces) {
  RigConfig config = base();
  config.kv_heads = 1;
  config.q_per_kv = 8;
  config.sinks = 3;
  config.window = 10;
  config.rollback = 5;
  config.max_sequences = 4;
  config.max_tokens = 4500;
  Result first;
  for (const int threads : {1, 2, 3, 16}) {
    config.threads = threads;
    Rig rig(config);
    rig.step({{0, 3000, 0}, {1, 1200, 0}, {2, 9, 0}, {3, 70, 0}});
    rig.step({{0, 1, 1}, {1, 1, 1}, {2, 1, 1}, {3, 1, 1}});
    for (const bool own : {true, false}) {
      AttendOptions options;
      options.own_workspace = own;
      options.sink_logits = true;
      options.workspace_fill = static_cast<uint8_t>(threads * 31 + 7);
      const Result result = rig.attend(options);
      EXPECT_EQ(threads > 1, result.num_partials > 0);
      if (first.out.empty()) first = result;
      expect_same(first, result, "threads " + std::to_string(threads));
    }
  }
}

TEST_P(InvarianceTest, UnwrittenMemory) {
  int variant = 0;
  for (const int key_bits : {2, 3, 4, 5, 6, 8, 16})
    for (const int value_bits : {3, 4, 16}) {
      variant++;
      RigConfig config = base();
      config.key_bits = key_bits;
      config.value_bits = value_bits;
      config.head_dim = config.value_dim = variant % 2 ? 64 : 96;
      config.window = variant % 3 ? 0 : 12;
      config.io = static_cast<DataType>(1 + variant % 3);
      config.max_tokens = 512;
      std::vector<Result> results;
      std::vector<std::vector<float>> reads;
      // 0xFFFF and 0x7F7F are a NaN and a huge number as scales
      for (const uint8_t fill : {0xFF, 0x00, 0x7F}) {
        config.fill = fill;
        Rig rig(config);
        rig.step({{0, 37, 5}, {1, 161, 1}});
        AttendOptions options;
        options.own_workspace = false;
        options.workspace_fill = fill;
        results.push_back(rig.attend(options));
        reads.emplace_back();
        rig.read(0, 0, 37, &reads.back(), nullptr);
      }
      for (size_t i = 1; i < results.size(); i++) {
        expect_same(results[0], results[i],
                    "bits " + std::to_string(key_bits) + " " + std::to_string(value_bits));
        EXPECT_TRUE(same_bits(reads[0], reads[i]));
      }
    }
}

TEST_P(InvarianceTest, CallersFloatingPointMode) {
  RigConfig config = base();
  config.max_tokens = 512;
  config.threads = 2;
  config.key_size = 1e-30f;  // subnormals on the way
  config.io = DataType::kF16;
  config.rotation = format::Rotation::kDense;  // its matrices are computed at create
  Rig calm(config);
  calm.step({{0, 77, 3}});
  const Result want = calm.attend();
  config.strange_fp = true;
  Rig rough(config);
  rough.step({{0, 77, 3}});
  expect_same(want, rough.attend(), "floating-point mode");
  for (int head = 0; head < config.kv_heads; head++)
    for (int64_t tile = 0; tile < 2; tile++)  // the full ones
      EXPECT_EQ(0, memcmp(calm.tile(0, head, tile), rough.tile(0, head, tile),
                          static_cast<size_t>(calm.geometry.tile(0).tile_bytes())));
}

TEST_P(InvarianceTest, CopiesOfPagesAndFlags) {
  RigConfig config = base();
  config.window = 16;
  config.sinks = 2;
  config.layers = 2;
  config.max_tokens = 512;
  Rig rig(config);
  rig.step({{0, 100, 2}});
  rig.poke(1, 5, 0, Kind::kKey, 0, HUGE_VALF);
  rig.step({{1, 30, 0}});
  EXPECT_EQ(1u, rig.backend->slot_flags(1));
  rig.backend->copy_slot(1, 2, nullptr);
  rig.backend->start_slot(1, nullptr);
  EXPECT_EQ(0u, rig.backend->slot_flags(1));
  EXPECT_EQ(1u, rig.backend->slot_flags(2));
  rig.step({{0, 0, 2}});
  const Result want = rig.attend();
  // A page moves and comes back; so do the exact copies, sinks and window.
  const int64_t page_bytes = rig.geometry.page_bytes(0);
  const PageCopy away[] = {{rig.page_of(0, 0), static_cast<int32_t>(rig.free_page())}};
  rig.backend->copy_pages(0, away, 1, nullptr);
  EXPECT_EQ(0, memcmp(rig.pages() + away[0].source * page_bytes, rig.pages() + away[0].target * page_bytes,
                      static_cast<size_t>(page_bytes)));
  const int32_t *exact = rig.raw_pages_of(0), *spare = rig.raw_pages_of(2);
  const PageCopy exact_away[] = {{exact[0], spare[0]}, {exact[2], spare[1]}, {exact[3], spare[2]}},
                 exact_home[] = {{spare[0], exact[0]}, {spare[1], exact[2]}, {spare[2], exact[3]}};
  rig.backend->copy_pages(1, exact_away, 3, nullptr);
  const int32_t scrub[] = {away[0].source};
  rig.backend->scrub_pages(0, scrub, 1, nullptr);
  const std::vector<uint8_t> zeros(static_cast<size_t>(page_bytes), 0);
  EXPECT_EQ(0, memcmp(rig.pages() + scrub[0] * page_bytes, zeros.data(), zeros.size()));
  rig.backend->scrub_pages(1, exact, 4, nullptr);
  const PageCopy home[] = {{away[0].target, away[0].source}};
  rig.backend->copy_pages(0, home, 1, nullptr);
  EXPECT_NE(want.out, rig.attend().out) << "without the exact copies";
  rig.backend->copy_pages(1, exact_home, 3, nullptr);
  expect_same(want, rig.attend(), "after the round trip");
}

// `moved` is the tile `own` without all but its first tokens.
void expect_tokens(const format::TileLayout& layout, const uint8_t* own, const uint8_t* moved, int tokens) {
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const format::SideLayout& side = kind == Kind::kKey ? layout.key : layout.value;
    const int at = kind == Kind::kKey ? layout.key_offset() : layout.value_offset(),
              scales_at = kind == Kind::kKey ? layout.key_scale_offset() : layout.value_scale_offset();
    for (int token = 0; token < 32; token++) {
      if (side.raw()) {
        const std::vector<uint8_t> zeros(static_cast<size_t>(2 * side.dim), 0);
        EXPECT_EQ(0, memcmp(moved + at + 2 * side.dim * token,
                            token < tokens ? own + at + 2 * side.dim * token : zeros.data(), zeros.size()));
        continue;
      }
      uint8_t codes[2][format::kMaxDim];
      format::unpack_scalar(side, kind, reinterpret_cast<const uint32_t*>(own + at), token, codes[0]);
      format::unpack_scalar(side, kind, reinterpret_cast<const uint32_t*>(moved + at), token, codes[1]);
      for (int i = 0; i < side.stored; i++) EXPECT_EQ(codes[1][i], token < tokens ? codes[0][i] : 0);
      const uint16_t scale = reinterpret_cast<const uint16_t*>(own + scales_at)[token];
      EXPECT_EQ(reinterpret_cast<const uint16_t*>(moved + scales_at)[token], token < tokens ? scale : 0);
    }
  }
}

// Tiles from a cache of one page size to memory and into a cache of another, some heads, from any tile to any
// token; what no token has is zero, and what was not named stays as it is.
TEST_P(InvarianceTest, MovedTiles) {
  for (const auto& bits : {std::pair<int, int>{3, 6}, {16, 2}, {8, 4}}) {
    RigConfig config = base();
    config.key_bits = bits.first, config.value_bits = bits.second;
    config.kv_heads = 3;
    config.head_dim = 96, config.value_dim = 64;
    config.threads = 2;
    config.max_tokens = 512;
    RigConfig other = config;
    other.page_size = 96;
    Rig rig(config), target(other);
    rig.step({{0, 300, 2}});
    target.step({{0, 300, 2}});
    const Result want = rig.attend();
    const format::TileLayout layout = rig.geometry.tile(0);
    const int64_t tile_bytes = layout.tile_bytes();
    // Heads 1 and 2, tokens 32 .. 299, to memory.
    TileMove out(layout);
    out.source = rig.backend->tiles(0);
    out.source.memory += out.source.head_bytes;
    out.source.pages = rig.pages_of(0).data();
    out.source.first_tile = 1;
    std::vector<uint8_t> memory(static_cast<size_t>(2 * 9 * tile_bytes), 0xEE);
    out.target = TilePlace{memory.data(), 0, 9 * tile_bytes, 0, nullptr, 0};
    out.heads = 2, out.tiles = 9;
    out.end = 268;
    rig.backend->move_tiles(out);
    for (int head = 1; head < 3; head++)
      for (int64_t tile = 1; tile < 10; tile++) {
        const uint8_t* got = &memory[static_cast<size_t>(((head - 1) * 9 + tile - 1) * tile_bytes)];
        const uint8_t* own = rig.tile(0, head, tile);
        expect_tokens(layout, own, got, tile < 9 ? 32 : 12);
      }
    // Into the other cache; head 0 and the first tile by way of pages.
    target.backend->scrub_pages(0, target.pages_of(0).data(), static_cast<int64_t>(target.pages_of(0).size()),
                                nullptr);
    TileMove in = out;
    in.source = out.target;
    in.target = target.backend->tiles(0);
    in.target.memory += in.target.head_bytes;
    in.target.pages = target.pages_of(0).data();
    in.target.first_tile = 1;
    target.backend->move_tiles(in);
    TileMove rest = out;
    rest.source.memory -= out.source.head_bytes;
    rest.source.first_tile = 0;
    rest.target = target.backend->tiles(0);
    rest.target.pages = in.target.pages;
    rest.heads = 3, rest.tiles = 1, rest.end = 32;
    target.backend->move_tiles(rest);
    rest.heads = 1, rest.tiles = 10, rest.end = 300;
    target.backend->move_tiles(rest);
    expect_same(want, target.attend(), "tiles moved");
  }
}

TEST_P(InvarianceTest, ConcurrentAttends) {
  RigConfig config = base();
  config.threads = 2;
  config.max_tokens = 2048;
  Rig rig(config);
  rig.step({{0, 900, 2}, {1, 300, 1}});
  const Result want = rig.attend();
  std::vector<std::thread> callers;
  std::vector<int> wrong(4, 0);
  for (int caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 8; round++)
        wrong[static_cast<size_t>(caller)] += !same_bits(want.out, rig.attend_again().out);
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(std::vector<int>(4, 0), wrong);
}

INSTANTIATE_TEST_SUITE_P(Isa, InvarianceTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

// ---- the backend as a whole ----

TEST(Backend, AllocatesAsAnnounced) {
  RigConfig config;
  config.isa = isas().back();
  config.window = 20;
  config.sinks = 4;
  config.layers = 3;
  config.max_tokens = 512;
  Rig rig(config);
  const BackendBytes bytes = cpu::cpu_backend_bytes(rig.geometry);
  const BackendBytes same = rig.backend->bytes();
  EXPECT_EQ(bytes.pages, same.pages);
  EXPECT_EQ(bytes.raw, same.raw);
  EXPECT_EQ(bytes.tables, same.tables);
  EXPECT_EQ(bytes.workspace, same.workspace);
  // Besides: the plan's storage, its lists padded to 64 bytes each.
  const int64_t items =
                    cpu::split_limits(cpu::step_bounds(rig.geometry), rig.geometry.heads(), config.threads)
                        .items,
                lists = 8 * (config.max_sequences + 1) + items * static_cast<int64_t>(sizeof(cpu::WorkItem));
  EXPECT_GE(rig.total_bytes, bytes.pages + bytes.raw + bytes.tables + bytes.workspace);
  EXPECT_LE(rig.total_bytes, bytes.pages + bytes.raw + bytes.tables + bytes.workspace + lists + 128);
  const int64_t before = rig.allocations;
  rig.fail_allocations = true;  // any further one would fail the call
  rig.step({{0, 100, 3}, {1, 40, 40}});
  rig.attend();
  std::vector<float> k, v;
  rig.read(0, 0, 100, &k, &v);
  EXPECT_EQ(before, rig.allocations);
}

TEST(Backend, FailedAllocationsLeakNothing) {
  RigConfig config;
  config.window = 8;
  Rig rig(config);
  struct World {
    int64_t live = 0;
    int calls = 0, fail_at = 0;
  } world;
  const HostOps ops = {&world,
                       [](void* user, size_t bytes, size_t alignment, int32_t, int32_t) -> void* {
                         World& w = *static_cast<World*>(user);
                         void* pointer = nullptr;
                         if (w.calls++ == w.fail_at || posix_memalign(&pointer, alignment, bytes) != 0)
                           return nullptr;
                         w.live += static_cast<int64_t>(bytes);
                         return pointer;
                       },
                       [](void* user, void* pointer, size_t bytes, int32_t, int32_t) {
                         static_cast<World*>(user)->live -= static_cast<int64_t>(bytes);
                         free(pointer);
                       }};
  int failures = 0;
  for (world.fail_at = 0;; world.fail_at++) {
    world.calls = 0;
    try {
      const std::unique_ptr<Backend> backend = cpu::create_cpu_backend(rig.geometry, ops, nullptr);
      break;
    } catch (const Error& e) {
      EXPECT_EQ(Status::kOutOfMemory, e.status());
      EXPECT_EQ(0, world.live);
      failures++;
    }
  }
  EXPECT_EQ(4, failures);  // pages, raw copies, tables, workspace
  EXPECT_EQ(0, world.live);
}

TEST(Backend, RefusesASmallWorkspace) {
  RigConfig config;
  Rig rig(config);
  rig.step({{0, 10, 1}});
  try {
    rig.attend_with_workspace(100);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(Status::kWorkspaceTooSmall, e.status());
    EXPECT_NE(nullptr, strstr(e.what(), "workspace_bytes: 100 given"));
  }
}

TEST(Merge, PartsMakeTheWhole) {
  RigConfig config;
  config.isa = isas().back();
  Rig rig(config);
  rig.step({{0, 300, 0}});
  rig.step({{0, 20, 20}});
  const Result whole = rig.attend();
  AttendOptions history;
  history.history_only = true;
  const Result past = rig.attend(history);
  // The new tokens alone, in float64 over the decoded vectors.
  const UniformGeometry& g = rig.geometry;
  Result present = whole;
  for (int64_t row = 0; row < 20 * g.num_q_heads; row++) {
    const int head = static_cast<int>(row % g.num_q_heads) / g.q_per_kv;
    std::vector<double> out(g.value_dim, 0.0);
    double sum = 0;
    for (int64_t token = 300; token <= 300 + row / g.num_q_heads; token++) {
      const std::vector<float> k = rig.expected(0, token, head, Kind::kKey),
                               v = rig.expected(0, token, head, Kind::kValue);
      double logit = 0;
      for (int c = 0; c < g.head_dim; c++)
        logit += static_cast<double>(k[c]) * rig.queries[static_cast<size_t>(row * g.head_dim + c)];
      const double p = exp(logit / sqrt(g.head_dim));
      sum += p;
      for (int c = 0; c < g.value_dim; c++) out[c] += p * v[c];
    }
    for (int c = 0; c < g.value_dim; c++)
      present.out[static_cast<size_t>(row * g.value_dim + c)] = static_cast<float>(out[c] / sum);
    present.lse[static_cast<size_t>(row)] = static_cast<float>(log(sum));
  }
  std::vector<float> nothing(whole.out.size(), nanf("")), nothing_lse(whole.lse.size(), -HUGE_VALF);
  const void* outs[] = {nothing.data(), past.out.data(), present.out.data()};
  const float* lses[] = {nothing_lse.data(), past.lse.data(), present.lse.data()};
  Result merged = whole;
  std::fill(merged.out.begin(), merged.out.end(), 7.0f);
  cpu::merge_states_cpu(MergeRequest{3, outs, lses, 20 * g.num_q_heads, g.value_dim, DataType::kF32,
                                     merged.out.data(), merged.lse.data(), 0, nullptr});
  EXPECT_LT(relative_error(merged.out, whole.out), 2e-4);  // the tolerance of attend itself
  for (size_t i = 0; i < whole.lse.size(); i++) EXPECT_NEAR(whole.lse[i], merged.lse[i], 3e-4);
  // In place, and of nothing but empty parts.
  cpu::merge_states_cpu(MergeRequest{1, outs, lses, 20 * g.num_q_heads, g.value_dim, DataType::kF32,
                                     nothing.data(), merged.lse.data(), 0, nullptr});
  for (const float x : nothing) ASSERT_EQ(0u, format::float_bits(x));
  for (const float x : merged.lse) ASSERT_EQ(-HUGE_VALF, x);
}

TEST(ThreadPool, RunsEveryIndexOnceAndCarriesErrors) {
  cpu::ThreadPool pool(4);
  for (int round = 0; round < 300; round++) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(round % 37));
    pool.parallel_for(static_cast<int64_t>(hits.size()), [&](int64_t index, int worker) {
      ASSERT_LT(worker, 4);
      hits[static_cast<size_t>(index)]++;
    });
    for (const auto& hit : hits) ASSERT_EQ(1, hit.load());
  }
  for (int round = 0; round < 50; round++)
    EXPECT_THROW(pool.parallel_for(
                     20, [](int64_t index, int) { TQ_CHECK(index != 7, Status::kInternal, "index: %d", 7); }),
                 Error);
  // A loop that finds the pool busy runs in its caller's thread.
  std::atomic<int> inner{0};
  pool.parallel_for(
      6, [&](int64_t, int) { pool.parallel_for(5, [&](int64_t, int worker) { inner += worker == 0; }); });
  EXPECT_EQ(30, inner.load());
}

}  // namespace
}  // namespace test
}  // namespace tq
