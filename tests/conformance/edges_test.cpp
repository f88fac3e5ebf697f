// SPDX-License-Identifier: Apache-2.0
// What is not an ordinary number or was never written, on every instruction set: queries and sink logits that
// are infinite or NaN, soft caps at both ends of the range, memory that no append has reached, values beyond
// float16 on raw sides.
#include <float.h>
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <set>

#include "cpu/store.h"
#include "rig.h"

namespace tq {
namespace test {
namespace {

constexpr float kInf = INFINITY;

class EdgesTest : public testing::TestWithParam<std::string> {
 protected:
  RigConfig base() {
    RigConfig config;
    config.isa = GetParam();
    config.max_tokens = 2048;
    return config;
  }
};

bool same_row(const float* a, const float* b, size_t count) {
  return memcmp(a, b, count * sizeof(float)) == 0;
}

// Rows of `bad` are NaN throughout, all others equal those of `clean` to the bit.
void expect_nan_rows(const Result& got, const Result& clean, const std::set<size_t>& bad) {
  const size_t rows = clean.lse.size(), dim = clean.out.size() / rows;
  ASSERT_EQ(clean.out.size(), got.out.size());
  for (size_t row = 0; row < rows; row++) {
    const float* out = &got.out[row * dim];
    if (bad.count(row)) {
      ASSERT_TRUE(isnan(got.lse[row])) << "row " << row;
      ASSERT_TRUE(std::all_of(out, out + dim, [](float x) { return isnan(x); })) << "row " << row;
    } else {
      ASSERT_TRUE(same_row(out, &clean.out[row * dim], dim)) << "row " << row;
      ASSERT_TRUE(same_row(&got.lse[row], &clean.lse[row], 1)) << "row " << row;
    }
  }
}

TEST_P(EdgesTest, ABadQueryMakesItsOwnRowNan) {
  const float values[] = {nanf(""), kInf, -kInf, -nanf("0x3FFFFF")};
  int variant = 0;
  for (const int bits : {4, 16})
    for (const DataType io : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      variant++;
      RigConfig config = base();
      config.key_bits = bits;
      config.value_bits = variant % 2 ? bits : 3;
      config.io = io;
      config.q_per_kv = 3;
      config.window = variant % 3 ? 12 : 0;
      config.sinks = variant % 3 ? 3 : 0;
      config.centres = variant % 2;
      config.threads = 4;
      Rig rig(config);
      rig.step({{0, 1100, 40}, {1, 5, 5}, {2, 70, 1}});  // two splits, so states are merged across them
      const int heads = rig.geometry.num_q_heads;
      for (const bool history : {false, true}) {  // with history_only no row sees a token
        AttendOptions options;
        options.history_only = history;
        options.out = static_cast<DataType>(1 + variant % 3);
        options.own_workspace = false;
        rig.forget_query_pokes();
        const Result clean = rig.attend(options);
        Random random(static_cast<uint64_t>(variant));
        std::set<size_t> bad;
        const int64_t first[] = {1060, 0, 69}, count[] = {40, 5, 1};
        for (size_t row = 0, sequence = 0; sequence < 3; sequence++)
          for (int64_t query = 0; query < count[sequence]; query++)
            for (int head = 0; head < heads; head++, row++) {
              if (random.below(3) != 0) continue;
              bad.insert(row);
              rig.poke_query(static_cast<int>(sequence), first[sequence] + query, head,
                             static_cast<int>(random.below(config.head_dim)), values[random.below(4)]);
            }
        SCOPED_TRACE(testing::Message()
                     << bits << " bits, type " << static_cast<int>(io) << " history " << history);
        ASSERT_NO_FATAL_FAILURE(expect_nan_rows(rig.attend(options), clean, bad));
      }
    }
}

TEST_P(EdgesTest, SinkLogitsOfAnyKind) {
  for (const int bits : {4, 16}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    config.q_per_kv = 4;
    config.window = bits == 4 ? 9 : 0;
    Rig rig(config);
    rig.step({{0, 200, 3}});
    AttendOptions plain, with;
    with.sink_logits = true;
    with.sinks = {-kInf, kInf, nanf(""), -3e38f, 3e38f, 2.5e38f, 0.5f, -1e30f};
    const Result without = rig.attend(plain), got = rig.attend(with), want = rig.reference(with);
    const size_t heads = with.sinks.size(), dim = static_cast<size_t>(config.value_dim);
    for (size_t row = 0; row < got.lse.size(); row++) {
      const float sink = with.sinks[row % heads], *out = &got.out[row * dim];
      SCOPED_TRACE(testing::Message() << "sink " << sink);
      if (isnan(sink)) {
        EXPECT_TRUE(isnan(got.lse[row]));
        EXPECT_TRUE(std::all_of(out, out + dim, [](float x) { return isnan(x); }));
      } else if (sink > 1e38f) {  // all weight
        EXPECT_EQ(sink, got.lse[row]);
        EXPECT_TRUE(std::all_of(out, out + dim, [](float x) { return format::float_bits(x) == 0; }));
      } else if (sink < -1e29f) {  // none
        EXPECT_EQ(without.lse[row], got.lse[row]);
        EXPECT_TRUE(same_row(out, &without.out[row * dim], dim));
      } else {
        EXPECT_NEAR(want.lse[row], got.lse[row], 5e-4);
        for (size_t c = 0; c < dim; c++) EXPECT_NEAR(want.out[row * dim + c], out[c], 1e-3);
      }
    }
    with.history_only = true;  // no row sees a token
    const Result empty = rig.attend(with);
    for (size_t row = 0; row < empty.lse.size(); row++) {
      const float sink = with.sinks[row % heads], *out = &empty.out[row * dim];
      if (isnan(sink)) {
        EXPECT_TRUE(isnan(empty.lse[row]) && isnan(out[0]));
        continue;
      }
      EXPECT_EQ(sink, empty.lse[row]);
      EXPECT_TRUE(std::all_of(out, out + dim, [](float x) { return format::float_bits(x) == 0; }));
    }
  }
}

// The range that tq_attend_params admits. logit * (ln 2 / cap) is the argument of tanh: it may be subnormal
// for a large cap, which costs 2^-149 * 2^100 of a logit, and overflows to an infinity, of tanh 1, for a
// small one.
TEST_P(EdgesTest, SoftCapsOfAnySize) {
  for (const int bits : {4, 16}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    Rig rig(config);
    for (int i = 0; i < config.head_dim; i++) rig.poke(0, 7, 0, Kind::kKey, i, 0.0f);  // a logit of exactly 0
    rig.step({{0, 200, 2}});
    for (const float cap : {FLT_MIN, 1e-30f, 1e-3f, 1.0f, 1e10f, 1e20f, ldexpf(1, 99), ldexpf(1, 100)}) {
      SCOPED_TRACE(testing::Message() << "cap " << cap << " bits " << bits);
      AttendOptions options;
      options.softcap = cap;
      const Result got = rig.attend(options), want = rig.reference(options);
      EXPECT_LE(relative_error(got.out, want.out), 2e-4);
      for (size_t row = 0; row < want.lse.size(); row++) EXPECT_NEAR(want.lse[row], got.lse[row], 5e-4);
    }
  }
}

// history_only between plan and append: raw copies of the new tokens are not there yet, and after the append
// those of old tokens may be gone. It reads neither, so both give the same bits.
TEST_P(EdgesTest, HistoryBeforeAndAfterTheAppend) {
  struct Case {
    int64_t history, more;
  };
  for (const int bits : {4, 16})
    for (const int window : {0, 16})
      for (const int sinks : {0, 4, 20})
        for (const Case c : {Case{8, 1}, {8, 15}, {2, 40}, {100, 15}, {100, 150}, {0, 5}}) {
          RigConfig config = base();
          config.key_bits = config.value_bits = bits;
          config.window = window;
          config.sinks = sinks;
          config.rollback = window ? 7 : 0;
          Rig before(config), after(config);
          AttendOptions history;
          history.history_only = true;
          for (Rig* rig : {&before, &after}) {
            rig->step({{0, c.history, 0}});
            rig->step({{0, c.more, c.more}}, rig == &after);
          }
          SCOPED_TRACE(testing::Message() << bits << " bits, window " << window << " sinks " << sinks << " "
                                          << c.history << " + " << c.more);
          const Result got = before.attend(history);
          EXPECT_LE(relative_error(got.out, before.reference(history).out), 2e-4);
          EXPECT_TRUE(same_bits(got, after.attend(history)));
        }
}

TEST_P(EdgesTest, FreshMemoryIsZero) {
  RigConfig config = base();
  config.dirty = false;
  config.fill = 0xFF;
  config.window = 16;
  config.sinks = 4;
  config.key_bits = 16;
  Rig rig(config);
  const uint8_t* pages = rig.pages();
  EXPECT_TRUE(std::all_of(pages, pages + rig.backend->bytes().pages, [](uint8_t x) { return x == 0; }));
  rig.step({{0, 100, 0}}, false);  // planned, never appended
  std::vector<float> k, v;
  rig.read(0, 0, 100, &k, &v);
  for (const auto& side : {k, v})
    EXPECT_TRUE(std::all_of(side.begin(), side.end(), [](float x) { return x == 0.0f; }));
}

TEST_P(EdgesTest, RawSidesOfFloat32SaturateAndTell) {
  struct Case {
    float value, stored;
    uint64_t flags;
  };
  const Case cases[] = {{65504, 65504, 0},   {-65504, -65504, 0}, {65505, 65504, 2}, {2e5f, 65504, 2},
                        {-1e19f, -65504, 2}, {1e20f, 65504, 3},   {kInf, 65504, 1},  {-kInf, -65504, 1},
                        {nanf(""), 0, 1},    {1e-3f, 1e-3f, 0},   {-7e4f, -65504, 2}};
  for (const Case& c : cases)
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      RigConfig config = base();
      (kind == Kind::kKey ? config.key_bits : config.value_bits) = 16;
      Rig rig(config);
      rig.poke(1, 3, 1, kind, 5, c.value);
      rig.step({{0, 8, 0}, {1, 8, 0}});
      SCOPED_TRACE(testing::Message() << "value " << c.value);
      EXPECT_EQ(0u, rig.backend->slot_flags(0));
      EXPECT_EQ(c.flags, rig.backend->slot_flags(1));
      EXPECT_EQ(c.flags, rig.backend->check(nullptr));
      EXPECT_EQ(0u, rig.backend->check(nullptr));
      std::vector<float> k, v;
      rig.read(1, 3, 1, &k, &v);
      EXPECT_NEAR(c.stored, (kind == Kind::kKey ? k : v)[64 + 5], 1e-6);
    }
}

// Raw copies hold the input's own type, and coded sides any magnitude: neither saturates.
TEST_P(EdgesTest, ExactCopiesAndCodesKeepTheRangeOfFloat32) {
  for (const int window : {0, 4}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = 8;
    config.window = window;
    config.kv_heads = 1;
    Rig rig(config);
    for (int token = 0; token < 4; token++)
      for (int i = 0; i < config.value_dim; i++) rig.poke(0, token, 0, Kind::kValue, i, 2e5f);
    rig.step({{0, 4, 1}});
    EXPECT_EQ(0u, rig.backend->slot_flags(0));
    // Codes: half a step of 1/127 of the largest rotated coordinate, here up to four times the rms, and a
    // bfloat16 scale.
    for (const float x : rig.attend().out) EXPECT_NEAR(2e5f, x, window ? 1.0f : 2e5f * 4 / 254);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, EdgesTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

// Sequences of 2^37 tokens and more, whose tiles have numbers beyond 32 bits: only their page ids are looked
// at.
TEST(Store, TileNumbersBeyond32Bits) {
  RigConfig config;
  config.page_size = 4096;
  config.max_tokens = 4096;
  const Rig rig(config);
  const HostOps ops = {nullptr,
                       [](void*, size_t bytes, size_t alignment, int32_t, int32_t) -> void* {
                         return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
                       },
                       [](void*, void* pointer, size_t, int32_t, int32_t) { free(pointer); }};
  const cpu::Store store(rig.geometry, ops, nullptr, 256);
  const int64_t index = (1ll << 32) + 5, per_page = rig.geometry.tiles_per_page();
  std::vector<int32_t> pages(static_cast<size_t>(index / per_page + 1));
  pages.back() = 2;
  const CodePages place = store.code_pages(store.layer(0));
  EXPECT_EQ(place.tile(2, 1, 5), place.sequence_tile(pages.data(), 1, index));
  EXPECT_EQ(place.tile(0, 1, 5), place.sequence_tile(pages.data(), 1, 5));
}

// ---- merge of finished parts ----

TEST(MergeStates, PartsWithoutASizeSpreadNothing) {
  const float nan = nanf(""), strange = -nanf("0x3FFFFF");
  // Row by row: lse of two parts, out of two parts, out and lse wanted.
  const float rows[][6] = {{0, 0, 1, 3, 2, logf(2)},           {-kInf, 1, nan, 3, 3, 1},
                           {1, -kInf, 3, kInf, 3, 1},          {-kInf, -kInf, nan, nan, 0, -kInf},
                           {kInf, 1, 0, 3, 0, kInf},           {1, kInf, nan, 4, 4, kInf},
                           {kInf, kInf, 5, 4, 5, kInf},        {nan, 1, 5, 4, nan, nan},
                           {1, nan, 5, 4, nan, nan},           {1, 1, strange, 4, nan, 1 + logf(2)},
                           {-3e38f, -kInf, 2, nan, 2, -3e38f}, {3e38f, 1, 2, nan, 2, 3e38f}};
  constexpr int kRows = sizeof rows / sizeof rows[0], kDim = 600;  // two pieces a row
  const cpu::Kernels& convert = kernels_of("scalar");
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    std::vector<float> lse[2], part[2];
    std::vector<uint8_t> stored[2], out(static_cast<size_t>(kRows) * kDim * 4);
    for (int s = 0; s < 2; s++) {
      for (const auto& row : rows) {
        lse[s].push_back(row[s]);
        part[s].insert(part[s].end(), kDim, row[2 + s]);
      }
      stored[s].resize(out.size());
      convert.from_float(type, part[s].data(), kRows * kDim, stored[s].data());
    }
    const void* outs[] = {stored[0].data(), stored[1].data()};
    const float* lses[] = {lse[0].data(), lse[1].data()};
    std::vector<float> got_lse(kRows), got(static_cast<size_t>(kRows) * kDim);
    MergeRequest request = {};
    request.num_states = 2;
    request.outs = outs;
    request.lses = lses;
    request.rows = kRows;
    request.dim = kDim;
    request.dtype = type;
    request.out = out.data();
    request.lse = got_lse.data();
    cpu::merge_states_cpu(request);
    convert.to_float(type, out.data(), kRows * kDim, got.data());
    for (int row = 0; row < kRows; row++) {
      SCOPED_TRACE(testing::Message() << "row " << row << " type " << static_cast<int>(type));
      for (const int c : {0, 575, 576, kDim - 1}) {
        const float x = got[static_cast<size_t>(row * kDim + c)], want = rows[row][4];
        EXPECT_TRUE(isnan(want) ? isnan(x) : x == want) << x;
      }
      const float x = got_lse[static_cast<size_t>(row)], want = rows[row][5];
      EXPECT_TRUE(isnan(want) ? isnan(x) : x == want || fabs(x - want) < 1e-6) << x;
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace tq
