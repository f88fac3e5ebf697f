// SPDX-License-Identifier: Apache-2.0
// Attention of every instruction set against float64 attention over the decoded vectors, and append and read
// against the scalar format code.
//
// Where the tolerance comes from. A coordinate of q is off by at most 1/2 of absmax / 32512; with absmax
// about 4 sigma that is 3.6e-5 sigma rms, so a logit q.k / sqrt(d) of order 1 is off by about 4e-5, at random
// over tokens. A weight is off by at most 1/2 of wmax / 65535: 4e-6 of the block's largest, 2e-5 of a typical
// one when logits spread by 2 nats. Both enter the output as independent errors of the weights, so rms 5e-5
// of the output when few tokens carry it and less when many do; float32 sums add 1e-6. kTolerance is four
// times that; kGate is for data made to hurt.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <iterator>

#include "dims.h"
#include "rig.h"

namespace tq {
namespace test {
namespace {

constexpr double kTolerance = 2e-4, kGate = 1e-3;
// lse is off by at most the largest logit error: 3.6e-5 x |q| |k| / sqrt(d) x scale rms, keys are up to 1.5
// times the nominal length, and of thousands of rows the worst is at 4.5 sigma; float32 adds 2^-20 of the
// value itself.
double lse_tolerance(const RigConfig& config, const AttendOptions& options) {
  const double scale = options.scale != 0 ? options.scale * sqrt(config.head_dim) : 1;
  return 4.5 * 3.6e-5 * 1.5 * scale * config.key_size * config.query_size;
}

class AttendTest : public testing::TestWithParam<std::string> {
 protected:
  RigConfig base() {
    RigConfig config;
    config.isa = GetParam();
    return config;
  }
};

void expect_close(const Result& got, const Result& want, double tolerance, double lse_tolerance,
                  const std::string& what) {
  ASSERT_EQ(want.out.size(), got.out.size()) << what;
  EXPECT_LE(relative_error(got.out, want.out), tolerance) << what;
  const size_t dim = want.out.size() / std::max<size_t>(want.lse.size(), 1);
  for (size_t row = 0; row < want.lse.size(); row++) {
    if (isinf(want.lse[row])) {
      ASSERT_EQ(want.lse[row], got.lse[row]) << what << " row " << row;
      for (size_t c = 0; c < dim; c++)
        ASSERT_EQ(0u, format::float_bits(got.out[row * dim + c])) << what << " row " << row;
    } else {
      ASSERT_NEAR(want.lse[row], got.lse[row], lse_tolerance + ldexp(fabs(want.lse[row]), -20))
          << what << " row " << row;
    }
  }
}

void check(Rig& rig, const AttendOptions& options, double tolerance, const std::string& what) {
  const Result got = rig.attend(options);
  expect_close(got, rig.reference(options), tolerance, lse_tolerance(rig.config, options), what);
}

TEST_P(AttendTest, LengthsAtEveryEdge) {
  RigConfig config = base();
  config.max_sequences = 1;
  config.kv_heads = 1;
  std::vector<int64_t> lengths = {1,   2,   31,  32,  33,  63,  64,   65,   95,   96,   97,   127,
                                  128, 129, 160, 255, 256, 257, 1023, 1024, 1025, 1151, 1152, 1153};
  if (full_set())
    for (int64_t n : {2047, 2048, 2049, 3071, 3072, 3073}) lengths.push_back(n);
  config.max_tokens = 4096;
  for (const int bits : {3, 4}) {
    config.key_bits = config.value_bits = bits;
    Rig rig(config);
    for (const int64_t length : lengths) {
      rig.step({{0, length - rig.length(0), 1}});
      check(rig, AttendOptions(), kTolerance, "length " + std::to_string(length));
    }
  }
}

TEST_P(AttendTest, EveryWidthAndDimension) {
  const int widths[] = {2, 3, 4, 5, 6, 8, 16};
  int variant = 0;
  for (const int dim : kTriedDims)
    for (const int key_bits : widths)
      for (const int value_bits : widths) {
        variant++;
        if (!full_set() && variant % 11 != 0 && !(dim == 128 && key_bits == value_bits)) continue;
        RigConfig config = base();
        config.head_dim = dim;
        config.value_dim = variant % 4 == 0 ? kTriedDims[variant % std::size(kTriedDims)] : dim;
        config.key_bits = key_bits;
        config.value_bits = value_bits;
        config.kv_heads = 1;
        config.q_per_kv = 1 + variant % 3;
        config.io = static_cast<DataType>(1 + variant % 3);
        config.max_sequences = 1;
        config.max_tokens = 512;
        Rig rig(config);
        rig.step({{0, 150 + variant % 40, 2}});
        check(rig, AttendOptions(), kTolerance,
              "dim " + std::to_string(dim) + " value dim " + std::to_string(config.value_dim) + " bits " +
                  std::to_string(key_bits) + " " + std::to_string(value_bits));
      }
}

// Vectors that end inside of a SIMD vector: coded, raw, and as exact copies.
TEST_P(AttendTest, PaddedDimensions) {
  const int widths[][2] = {{4, 3}, {16, 5}, {2, 16}, {16, 16}};
  int variant = 0;
  for (const int dim : {8, 20, 40, 72, 100, 120})
    for (const auto& width : widths) {
      RigConfig config = base();
      config.head_dim = dim;
      config.value_dim = ++variant % 3 == 0 ? 72 : dim;
      config.key_bits = width[0];
      config.value_bits = width[1];
      config.io = static_cast<DataType>(1 + variant % 3);
      config.kv_heads = 2;
      config.centres = variant % 2 == 0;
      config.window = variant % 4 < 2 ? 37 : 0;
      config.sinks = variant % 4 < 2 ? 5 : 0;
      config.max_tokens = 1024;
      Rig rig(config);
      rig.step({{0, 150 + variant, 2}, {1, 30, 1}});
      check(rig, AttendOptions(), kTolerance,
            "dim " + std::to_string(dim) + " value dim " + std::to_string(config.value_dim) + " bits " +
                std::to_string(width[0]) + " " + std::to_string(width[1]));
    }
}

TEST_P(AttendTest, GroupSizes) {
  for (const int q_per_kv : {1, 2, 3, 4, 5, 8, 40}) {
    RigConfig config = base();
    config.q_per_kv = q_per_kv;
    config.max_tokens = 512;
    Rig rig(config);
    rig.step({{0, 200, 1}, {1, 77, 1}});
    check(rig, AttendOptions(), kTolerance, "q_per_kv " + std::to_string(q_per_kv));
  }
}

TEST_P(AttendTest, RaggedPrefillAndDecode) {
  RigConfig config = base();
  config.q_per_kv = 4;
  Rig rig(config);
  rig.step({{0, 130, 130}, {1, 1, 1}, {2, 70, 70}});
  check(rig, AttendOptions(), kTolerance, "prefill");
  rig.step({{1, 45, 45}, {2, 1, 1}, {0, 0, 5}});
  check(rig, AttendOptions(), kTolerance, "mixed");
  rig.step({{0, 1, 1}, {1, 1, 1}, {2, 1, 0}});
  AttendOptions strided;
  strided.strided = true;
  check(rig, strided, kTolerance, "decode, strided");
}

TEST_P(AttendTest, WindowAndSinks) {
  for (const int bits : {3, 16}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    config.window = 48;
    config.sinks = 5;
    config.rollback = 9;
    config.io = bits == 3 ? DataType::kBF16 : DataType::kF32;
    Rig rig(config);
    for (const int64_t more : {3, 1, 40, 100, 1, 70}) {
      rig.step({{0, more, std::min<int64_t>(more, 6)}});
      check(rig, AttendOptions(), kTolerance, "length " + std::to_string(rig.length(0)));
    }
    rig.truncate(0, rig.length(0) - 9);
    rig.step({{0, 0, 3}});
    check(rig, AttendOptions(), kTolerance, "rolled back");
    rig.truncate(0, rig.length(0) - 30);
    rig.step({{0, 0, 3}});
    check(rig, AttendOptions(), kTolerance, "rolled back too far");
    rig.step({{0, 20, 20}});
    check(rig, AttendOptions(), kTolerance, "and on");
    AttendOptions sliding;
    sliding.sliding_window = 60;
    check(rig, sliding, kTolerance, "sliding over the window's edge");
    AttendOptions history;
    history.history_only = true;
    check(rig, history, kTolerance, "history before the window's end");
  }
}

TEST_P(AttendTest, OptionsOfTheSoftmax) {
  RigConfig config = base();
  config.q_per_kv = 3;
  Rig rig(config);
  rig.step({{0, 300, 20}, {1, 40, 40}});
  for (int mask = 0; mask < 32; mask++) {
    AttendOptions options;
    options.sliding_window = mask & 1 ? 37 : 0;
    options.softcap = mask & 2 ? 2.5f : 0;
    options.sink_logits = mask & 4;
    options.history_only = mask & 8;  // sequence by sequence nothing or little is left
    options.scale = mask & 16 ? 0.4f : 0;
    check(rig, options, kTolerance, "options " + std::to_string(mask));
  }
  rig.step({{0, 5, 5}, {1, 0, 1}});
  AttendOptions history;
  history.history_only = true;
  check(rig, history, kTolerance, "history");
}

TEST_P(AttendTest, HistoryBeforeTheAppend) {
  for (const int window : {0, 20}) {
    RigConfig config = base();
    config.window = window;
    Rig rig(config);
    rig.step({{0, 100, 1}});
    rig.step({{0, 15, 15}}, false);  // planned, not appended
    AttendOptions history;
    history.history_only = true;
    check(rig, history, kTolerance, "window " + std::to_string(window));
  }
}

TEST_P(AttendTest, CentresAndTypes) {
  int variant = 0;
  for (const DataType io : {DataType::kF32, DataType::kF16, DataType::kBF16})
    for (const DataType out : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      RigConfig config = base();
      config.centres = true;
      config.io = io;
      config.head_dim = variant++ % 2 ? 96 : 80;
      config.value_dim = 112;
      config.window = variant % 3 == 0 ? 10 : 0;
      Rig rig(config);
      rig.step({{0, 90, 4}});
      AttendOptions options;
      options.out = out;
      // The output's own rounding: half a unit of 11 or 8 bits.
      const double rounding = out == DataType::kF32   ? 0
                              : out == DataType::kF16 ? ldexp(1, -12)
                                                      : ldexp(1, -9);
      check(rig, options, kTolerance + rounding, "variant " + std::to_string(variant));
    }
}

TEST_P(AttendTest, DenseRotation) {
  RigConfig config = base();
  config.rotation = format::Rotation::kDense;
  config.head_dim = 80;
  config.centres = true;
  Rig rig(config);
  rig.step({{0, 140, 3}});
  check(rig, AttendOptions(), kTolerance, "dense");
}

TEST_P(AttendTest, PeakyAndExtremeInputs) {
  struct Case {
    float key, value, query;
    DataType io;
  };
  // The first two concentrate the softmax; the others lie at the ends of the number range.
  const Case cases[] = {{3, 1, 3, DataType::kF32},           {1, 40, 6, DataType::kF32},
                        {1e-20f, 1e-25f, 1, DataType::kF32}, {1e15f, 1e18f, 1e-15f, DataType::kF32},
                        {1, 3e4f, 1, DataType::kF16},        {1e-28f, 1, 1e28f, DataType::kF32}};
  for (const Case& c : cases) {
    RigConfig config = base();
    config.key_size = c.key;
    config.value_size = c.value;
    config.query_size = c.query;
    config.io = c.io;
    config.max_tokens = 1024;
    Rig rig(config);
    rig.step({{0, 300, 2}});
    check(rig, AttendOptions(), kGate,
          "sizes " + std::to_string(c.key) + " " + std::to_string(c.value) + " " + std::to_string(c.query));
  }
}

TEST_P(AttendTest, FiniteForEveryFiniteQuery) {
  for (const float strange : {3.38e38f, -3.38e38f, 1e-45f})  // the largest of bfloat16 is 3.39e38
    for (const int bits : {4, 16}) {
      RigConfig config = base();
      config.key_bits = config.value_bits = bits;
      config.window = 8;
      config.io = DataType::kBF16;
      config.max_tokens = 512;
      config.key_size = config.value_size = 1e25f;
      Rig rig(config);
      rig.poke(0, 3, 0, Kind::kKey, 5, HUGE_VALF);
      rig.poke(0, 70, 0, Kind::kValue, 5, -HUGE_VALF);
      rig.poke(0, 4, 1, Kind::kKey, 2, nanf(""));
      rig.strange_query = strange;
      rig.step({{0, 100, 5}});
      EXPECT_EQ(1u, rig.backend->slot_flags(0));
      EXPECT_EQ(0u, rig.backend->slot_flags(1));
      EXPECT_EQ(1u, rig.backend->check(nullptr));
      EXPECT_EQ(0u, rig.backend->check(nullptr));
      for (const DataType out : {DataType::kF32, DataType::kF16}) {
        AttendOptions options;
        options.out = out;
        for (const float x : rig.attend(options).out) ASSERT_TRUE(isfinite(x));
        for (const float x : rig.attend(options).lse) ASSERT_TRUE(isfinite(x));
      }
    }
}

TEST_P(AttendTest, ReadsWhatTheFormatSays) {
  for (const int bits : {2, 5, 8, 16})
    for (const DataType io : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      RigConfig config = base();
      config.key_bits = bits;
      config.value_bits = bits == 16 ? 3 : bits;
      config.head_dim = 80;
      config.io = io;
      config.window = 20;
      config.sinks = 2;
      config.centres = bits == 5;
      Rig rig(config);
      rig.step({{0, 45, 0}});
      rig.step({{0, 40, 0}});
      std::vector<float> k, v;
      rig.read(0, 0, 85, &k, &v);
      const auto rounded = [&](float x) {
        uint16_t h;
        if (io == DataType::kF32) return x;
        float* source = &x;
        cpu::select_kernels("scalar").from_float(io, source, 1, &h);
        cpu::select_kernels("scalar").to_float(io, &h, 1, source);
        return x;
      };
      for (int64_t token = 0; token < 85; token++)
        for (int head = 0; head < config.kv_heads; head++)
          for (const Kind kind : {Kind::kKey, Kind::kValue}) {
            const std::vector<float> want = rig.expected(0, token, head, kind);
            const std::vector<float>& all = kind == Kind::kKey ? k : v;
            for (size_t i = 0; i < want.size(); i++)
              ASSERT_EQ(rounded(want[i]),
                        all[static_cast<size_t>(token * config.kv_heads + head) * want.size() + i])
                  << bits << " token " << token;
          }
    }
}

// Tiles written in one go, token by token, and in pieces hold the same bytes.
TEST_P(AttendTest, PiecesMakeTheSameTiles) {
  for (const int bits : {2, 3, 4, 5, 6, 8, 16}) {
    RigConfig config = base();
    config.key_bits = config.value_bits = bits;
    config.head_dim = config.value_dim = 96;
    config.max_sequences = 1;
    Rig whole(config), single(config), pieces(config);
    whole.step({{0, 96, 0}});
    for (int i = 0; i < 96; i++) single.step({{0, 1, 0}});
    for (const int n : {5, 40, 3, 48}) pieces.step({{0, n, 0}});
    for (int head = 0; head < config.kv_heads; head++)
      for (int64_t tile = 0; tile < 3; tile++) {
        const size_t bytes = static_cast<size_t>(whole.geometry.tile(0).tile_bytes());
        ASSERT_EQ(0, memcmp(whole.tile(0, head, tile), single.tile(0, head, tile), bytes))
            << bits << " tile " << tile;
        ASSERT_EQ(0, memcmp(whole.tile(0, head, tile), pieces.tile(0, head, tile), bytes))
            << bits << " tile " << tile;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace test
}  // namespace tq
