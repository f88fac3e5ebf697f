// SPDX-License-Identifier: Apache-2.0
// Kernels of every instruction set against the scalar format code: codes, scales, words and integer sums
// exactly, floats within rounding.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu/kernels/operands.h"
#include "cpu/kernels/scalar.h"
#include "dims.h"
#include "rig.h"
#include "status.h"

namespace tq {
namespace test {
namespace {

using cpu::kBlockTiles;
using cpu::kBlockTokens;

class KernelsTest : public testing::TestWithParam<std::string> {
 protected:
  const cpu::Kernels& kernels() { return kernels_of(GetParam()); }
};

// Codes with kernels.
std::vector<format::CodeId> coded() {
  std::vector<format::CodeId> codes;
  for (const format::CodeId code : format::kCodes)
    if (!code.raw()) codes.push_back(code);
  return codes;
}
std::string name_of(format::CodeId code) {
  return (code.trellis() ? "trellis " : "scalar ") + std::to_string(code.bits);
}

struct CoderBox {
  format::VectorCoder coder = {};
  std::vector<uint64_t> signs;
  std::vector<float> dense, centre;

  CoderBox(int dim, format::CodeId code, format::Rotation rotation, format::ScaleRule rule, bool search,
           bool centred, uint64_t seed) {
    coder.dim = dim;
    coder.stored = format::stored_dim(dim);
    coder.rotation = rotation;
    coder.rule = rule;
    coder.search = search;
    coder.codebook = format::builtin_codebook(dim, code);
    coder.trellis = code.trellis();
    coder.kind = static_cast<Kind>(seed % 2);
    const uint64_t base = format::stream_base(seed, 3, 1, Kind::kKey);
    for (int w = 0; w < format::sign_words(coder.stored); w++) signs.push_back(format::stream_word(base, w));
    coder.signs = signs.data();
    if (rotation == format::Rotation::kDense) {
      dense.resize(static_cast<size_t>(coder.stored) * coder.stored);
      std::vector<double> work(dense.size() + coder.stored);
      format::dense_matrix(base, coder.stored, dense.data(), work.data());
      coder.dense = dense.data();
    }
    Random random(seed);
    for (int i = 0; centred && i < dim; i++) centre.push_back(random.normal());
    coder.centre = centred ? centre.data() : nullptr;
  }
};

// Gaussian vectors of many sizes, and the ones that break encoders.
std::vector<std::vector<float>> vectors(int dim, int count) {
  Random random(static_cast<uint64_t>(dim));
  std::vector<std::vector<float>> all;
  const auto filled = [&](float x) { return std::vector<float>(static_cast<size_t>(dim), x); };
  for (int i = 0; i < count; i++) {
    std::vector<float> x = filled(0);
    const float size = ldexpf(1, static_cast<int>(random.below(40)) - 20);
    for (float& v : x) v = random.normal() * size;
    all.push_back(x);
  }
  const float infinity = HUGE_VALF, nan = nanf("");
  for (const float x : {0.0f, -0.0f, 1.0f, -3.5f, 1e-30f, 1e-40f, 3.4e38f, infinity, nan, ldexpf(1, -100),
                        ldexpf(0.999f, -100), ldexpf(1, 64)})
    all.push_back(filled(x));
  for (const float x : {1.0f, 1e30f, -infinity, nan, 1e-38f, -65504.0f}) {
    all.push_back(filled(0));
    all.back()[static_cast<size_t>(dim) / 3] = x;  // one-hot
    all.push_back(filled(0));
    for (int i = 0; i < dim; i++) all.back()[static_cast<size_t>(i)] = i % 7 == 3 ? x : random.normal();
  }
  all.push_back(filled(0));
  // many exact ties
  for (int i = 0; i < dim; i++) all.back()[static_cast<size_t>(i)] = static_cast<float>(i % 5 - 2);
  return all;
}

const cpu::CodeKernels& code_kernels(const cpu::Kernels& kernels, format::CodeId code) {
  return kernels.codes.entry[format::code_index(code)];
}

void expect_same_encoding(const cpu::Kernels& kernels, const CoderBox& box, const std::vector<float>& x) {
  const int stored = box.coder.stored;
  std::vector<uint8_t> want(static_cast<size_t>(stored), 0xAA), got(static_cast<size_t>(stored), 0x55);
  uint16_t want_scale = 1, got_scale = 2;
  const bool want_flag = format::encode_vector(box.coder, x.data(), want.data(), &want_scale);
  const bool got_flag = kernels.encode(box.coder, x.data(), got.data(), &got_scale);
  ASSERT_EQ(want_flag, got_flag) << box.coder.dim << " x0 " << x[0];
  ASSERT_EQ(want_scale, got_scale) << box.coder.dim << " bits " << box.coder.codebook.bits << " x0 " << x[0];
  ASSERT_EQ(want, got) << box.coder.dim << " bits " << box.coder.codebook.bits << " x0 " << x[0];
}

TEST_P(KernelsTest, EncodesAsTheFormatSays) {
  const int count = full_set() ? 400 : 20;
  int variant = 0;
  for (const int dim : kTriedDims) {
    const auto inputs = vectors(dim, count);
    for (const format::CodeId code : coded())
      for (int rule = 1; rule <= 4; rule++) {
        variant++;
        const CoderBox box(dim, code, format::Rotation::kHadamard, static_cast<format::ScaleRule>(rule),
                           variant % 5 != 0, variant % 3 == 0, static_cast<uint64_t>(variant));
        for (size_t i = 0; i < inputs.size(); i++) {
          if (!full_set() && i % 4 != static_cast<size_t>(rule) % 4 && i + 25 < inputs.size()) continue;
          ASSERT_NO_FATAL_FAILURE(expect_same_encoding(kernels(), box, inputs[i]));
        }
      }
  }
}

TEST_P(KernelsTest, EncodesDenseRotations) {
  for (const int dim : {32, 80, 128}) {
    const auto inputs = vectors(dim, 5);
    for (const format::CodeId code :
         {format::scalar_code(2), format::scalar_code(4), format::scalar_code(8), format::trellis_code(3)}) {
      const CoderBox box(dim, code, format::Rotation::kDense, format::ScaleRule::kLs, true, false, 5);
      for (const auto& x : inputs) ASSERT_NO_FATAL_FAILURE(expect_same_encoding(kernels(), box, x));
    }
  }
}

TEST_P(KernelsTest, RotatesBothWays) {
  for (const auto rotation : {format::Rotation::kHadamard, format::Rotation::kDense})
    for (const int dim : kTriedDims) {
      if (rotation == format::Rotation::kDense && dim > 128) continue;
      const CoderBox box(dim, format::scalar_code(4), rotation, format::ScaleRule::kLs, true, false, 9);
      const std::vector<float> x = vectors(dim, 1)[0];
      alignas(64) float y[format::kMaxDim], z[format::kMaxDim], want[format::kMaxDim], back[format::kMaxDim],
          want_back[format::kMaxDim];
      kernels().rotate(box.coder, x.data(), y);
      cpu::kScalarKernels.rotate(box.coder, x.data(), want);
      EXPECT_EQ(0, memcmp(y, want, sizeof(float) * box.coder.stored)) << dim;
      std::copy(y, y + format::kMaxDim, z);
      kernels().unrotate(box.coder, y, back);
      format::unrotate(box.coder, z, want_back);
      EXPECT_EQ(0, memcmp(back, want_back, sizeof(float) * dim)) << dim;
      double error = 0, size = 0;
      for (int i = 0; i < dim; i++) {
        error += (static_cast<double>(back[i]) - x[static_cast<size_t>(i)]) *
                 (static_cast<double>(back[i]) - x[static_cast<size_t>(i)]);
        size += static_cast<double>(x[static_cast<size_t>(i)]) * x[static_cast<size_t>(i)];
      }
      // Two transforms of at most 9 rounded levels and two norms each; for the dense matrix, tree sums of 128
      // and its own float32 rounding.
      EXPECT_LT(sqrt(error / size), 22 * ldexp(1, -24)) << dim;
    }
}

TEST_P(KernelsTest, PacksTiles) {
  for (const int dim : kTriedDims)
    for (const format::CodeId code : coded())
      for (const Kind kind : {Kind::kKey, Kind::kValue}) {
        const format::SideLayout layout(dim, code);
        const size_t words = static_cast<size_t>(layout.code_bytes()) / 4;
        Random random(static_cast<uint64_t>(dim * 10 + code.bits));
        std::vector<uint8_t> codes(static_cast<size_t>(32 * layout.stored));
        for (uint8_t& x : codes) x = static_cast<uint8_t>(random.bits() & ((1u << code.bits) - 1));
        std::vector<uint32_t> want(words), got(words);
        for (size_t i = 0; i < words; i++) want[i] = static_cast<uint32_t>(random.bits());
        std::vector<uint32_t> merged = want;
        code_kernels(cpu::kScalarKernels, code).pack(layout, kind, codes.data(), want.data());
        code_kernels(kernels(), code).pack(layout, kind, codes.data(), got.data());
        ASSERT_EQ(want, got) << dim << " " << name_of(code);
        // Token by token into words that hold something else, against the definition after every token.
        std::vector<uint32_t> defined = merged;
        for (int token = 0; token < 32; token++) {
          const uint8_t* row = &codes[static_cast<size_t>(token * layout.stored)];
          code_kernels(kernels(), code).merge_token(layout, kind, token, row, merged.data());
          format::pack_scalar(layout, kind, token, row, defined.data());
          ASSERT_EQ(defined, merged) << dim << " " << name_of(code) << " token " << token;
        }
        ASSERT_EQ(want, merged);
      }
}

// ---- integers ----

struct Tiles {
  std::vector<uint8_t> memory;
  const uint8_t* side[kBlockTiles];

  Tiles(const format::SideLayout& layout, uint64_t seed)
      : memory(static_cast<size_t>(layout.code_bytes()) * kBlockTiles + 64) {
    Random random(seed);
    for (uint8_t& byte : memory) byte = static_cast<uint8_t>(random.bits());
    uint8_t* start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    for (int i = 0; i < kBlockTiles; i++) side[i] = start + i * layout.code_bytes();
  }
};

// The tiles as the kernels want them.
struct Opened {
  std::vector<uint32_t> memory;
  const uint8_t* side[kBlockTiles];

  Opened(const cpu::Kernels& kernels, const cpu::CodedSide& coded, const Tiles& tiles)
      : memory(static_cast<size_t>(cpu::opened_words(coded.layout)) * kBlockTiles + 16) {
    std::copy(tiles.side, tiles.side + kBlockTiles, side);
    const auto open = kernels.of(coded).open;
    uint32_t* start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / 4;
    for (int i = 0; open && i < kBlockTiles; i++) {
      uint32_t* selectors = start + i * cpu::opened_words(coded.layout);
      open(coded, tiles.side[i], selectors);
      side[i] = reinterpret_cast<const uint8_t*>(selectors);
    }
  }
};

uint8_t* aligned(std::vector<uint8_t>& memory, size_t bytes) {
  memory.assign(bytes + 64, 0x5A);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

TEST_P(KernelsTest, ScoresAreExact) {
  const int row_counts[] = {1, 2, 3, 4, 7, 8, 13, 32};
  int variant = 0;
  for (const int dim : kTriedDims)
    for (const format::CodeId code : coded()) {
      const cpu::CodedSide side(dim, code, Kind::kKey, format::builtin_codebook(dim, code));
      const int stored = side.layout.stored, q_max = cpu::query_max(stored);
      const Tiles tiles(side.layout, static_cast<uint64_t>(dim + code.bits));
      const int rows = row_counts[variant++ % 8], first = variant % 3,
                last = first + 1 + variant % (kBlockTiles - first);
      std::vector<uint8_t> want_memory, got_memory, want_score, got_score;
      const size_t operand = cpu::query_operand_bytes(stored);
      uint8_t* want_operand = aligned(want_memory, operand * 32);
      uint8_t* got_operand = aligned(got_memory, operand * 32);
      int32_t* want = reinterpret_cast<int32_t*>(aligned(want_score, 32 * kBlockTokens * 4));
      int32_t* got = reinterpret_cast<int32_t*>(aligned(got_score, 32 * kBlockTokens * 4));
      Random random(static_cast<uint64_t>(variant));
      for (int r = 0; r < rows; r++) {
        std::vector<int16_t> q(static_cast<size_t>(stored));
        for (int16_t& x : q)
          x = static_cast<int16_t>(r == 0   ? q_max
                                   : r == 1 ? -q_max
                                            : static_cast<int>(random.below(2 * q_max + 1)) - q_max);
        cpu::kScalarKernels.of(side).prepare_query(side, q.data(), want_operand + r * operand);
        kernels().of(side).prepare_query(side, q.data(), got_operand + r * operand);
      }
      cpu::kScalarKernels.of(side).score(side, tiles.side, tiles.side, first, last, want_operand, rows, want);
      const Opened opened(kernels(), side, tiles);
      kernels().of(side).score(side, opened.side, tiles.side, first, last, got_operand, rows, got);
      for (int r = 0; r < rows; r++)
        for (int i = 32 * first; i < 32 * last; i++)
          ASSERT_EQ(want[r * kBlockTokens + i], got[r * kBlockTokens + i])
              << dim << " " << name_of(code) << " row " << r << " token " << i;
    }
}

TEST_P(KernelsTest, ValueSumsAreExact) {
  const int row_counts[] = {1, 2, 3, 4, 7, 8, 13, 32};
  int variant = 0;
  for (const int dim : kTriedDims)
    for (const format::CodeId code : coded()) {
      const cpu::CodedSide side(dim, code, Kind::kValue, format::builtin_codebook(dim, code));
      const Tiles tiles(side.layout, static_cast<uint64_t>(dim + code.bits));
      const int rows = row_counts[variant++ % 8], first = variant % 3,
                last = first + 1 + variant % (kBlockTiles - first);
      Random random(static_cast<uint64_t>(variant));
      std::vector<uint16_t> weights(static_cast<size_t>(32 * kBlockTokens));
      for (size_t i = 0; i < weights.size(); i++)
        weights[i] = static_cast<uint16_t>(i < static_cast<size_t>(kBlockTokens) ? 65535 : random.bits());
      std::vector<uint8_t> want_memory, got_memory, work_memory;
      int32_t* want =
          reinterpret_cast<int32_t*>(aligned(want_memory, static_cast<size_t>(32 * side.layout.stored) * 4));
      int32_t* got =
          reinterpret_cast<int32_t*>(aligned(got_memory, static_cast<size_t>(32 * side.layout.stored) * 4));
      uint8_t* work = aligned(work_memory, cpu::kAccumulateWork);
      cpu::kScalarKernels.of(side).accumulate(side, tiles.side, tiles.side, first, last, weights.data(), rows,
                                              want, work);
      const Opened opened(kernels(), side, tiles);
      kernels().of(side).accumulate(side, opened.side, tiles.side, first, last, weights.data(), rows, got,
                                    work);
      for (int i = 0; i < rows * side.layout.stored; i++)
        ASSERT_EQ(want[i], got[i]) << dim << " " << name_of(code) << " entry " << i;
    }
}

TEST(Operands, KernelOrderIsAPermutation) {
  for (const int dim : kTriedDims) {
    const format::SideLayout layout(dim, 4);
    std::vector<int> seen(static_cast<size_t>(layout.stored));
    for (int i = 0; i < layout.stored; i++) seen[static_cast<size_t>(cpu::value_coordinate(layout, i))]++;
    EXPECT_EQ(layout.stored, std::count(seen.begin(), seen.end(), 1)) << dim;
  }
}

// ---- floats ----

TEST_P(KernelsTest, SoftmaxAgreesWithTheScalarPath) {
  Random random(4);
  alignas(64) int32_t scores[kBlockTokens];
  alignas(64) float scales[kBlockTokens], value_scales[kBlockTokens], p[kBlockTokens], want_p[kBlockTokens];
  for (int round = 0; round < 400; round++) {
    cpu::RowBlock row = {};
    row.begin = round % 7 == 0 ? 0 : static_cast<int>(random.below(kBlockTokens));
    row.end = round % 7 == 0 ? kBlockTokens
                             : row.begin + 1 + static_cast<int>(random.below(kBlockTokens - row.begin));
    row.half_sum = round % 2 ? 1234.5f : 0.0f;
    row.factor = ldexpf(1, -24);
    row.constant = round % 3 ? 0.5f : 0.0f;
    row.softcap = round % 5 == 0 ? 3.0f : 0.0f;
    for (int i = 0; i < kBlockTokens; i++) {
      const bool visible = i >= row.begin && i < row.end;
      scores[i] = static_cast<int32_t>(random.bits());
      scales[i] = visible ? static_cast<float>(random.uniform() * 0.1) : nanf("");
      value_scales[i] = visible ? static_cast<float>(random.uniform()) : 0.0f;
    }
    SoftmaxState state = round % 4 ? SoftmaxState{2.0f, 3.0f} : empty_state(), want_state = state;
    const float* vs = round % 2 ? value_scales : nullptr;
    float largest, want_largest;
    const float alpha = kernels().softmax(row, scores, scales, vs, &state, p, &largest);
    const float want_alpha =
        cpu::kScalarKernels.softmax(row, scores, scales, vs, &want_state, want_p, &want_largest);
    // Logits up to 13 in log2 units are formed in four rounded steps (< 2^-19), soft-capped ones in a dozen;
    // 2^x and its argument reduction add 2^-21.
    EXPECT_NEAR(alpha, want_alpha, 1e-5);
    EXPECT_NEAR(state.m, want_state.m, 2e-5);
    EXPECT_NEAR(state.l / want_state.l, 1, 2e-5);
    if (vs) {
      EXPECT_NEAR(largest, want_largest, 2e-5);
      EXPECT_EQ(largest, *std::max_element(p, p + kBlockTokens));
    }
    for (int i = 0; i < kBlockTokens; i++) {
      ASSERT_NEAR(p[i], want_p[i], 2e-5) << i;
      const bool visible = i >= row.begin && i < row.end;
      ASSERT_TRUE(visible || p[i] == 0.0f) << i;
    }
  }
}

TEST_P(KernelsTest, WeightsAgreeWithTheScalarPath) {
  Random random(5);
  alignas(64) float p[kBlockTokens];
  alignas(64) uint16_t weights[kBlockTokens], want[kBlockTokens];
  for (int round = 0; round < 200; round++) {
    // the smallest to the largest stored scale, times 2^24
    const float size = ldexpf(1, static_cast<int>(random.below(182)) - 87);
    float largest = 0;
    for (int i = 0; i < kBlockTokens; i++) {
      p[i] = round % 10 == 0 ? 0.0f : size * static_cast<float>(exp2(-20 * random.uniform()));
      largest = std::max(largest, p[i]);
    }
    const cpu::BlockWeights got = kernels().weigh(p, largest, true, weights),
                            expected = cpu::kScalarKernels.weigh(p, largest, true, want);
    EXPECT_EQ(expected.unit, got.unit);
    EXPECT_EQ(expected.half_sum, got.half_sum);
    EXPECT_EQ(0, memcmp(weights, want, sizeof weights));
    EXPECT_EQ(largest > 0 ? 65535 : 0, *std::max_element(weights, weights + kBlockTokens));
    // Rounding of p / unit, and of the unit itself.
    for (int i = 0; i < kBlockTokens; i++)
      ASSERT_NEAR(weights[i] * static_cast<double>(got.unit) * cpu::kWeightShift, p[i],
                  largest * (0.51 / 65535));
  }
}

// Exact tokens of every stored type, for row counts that make all groups of rows. Tokens that are not asked
// for hold NaNs; a row's numbers are the same alone and among others.
TEST_P(KernelsTest, ExactTokens) {
  Random random(7);
  for (const int dim : {32, 80, 112, 128, 576})
    for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      const int rows = 7, begin = 5 + dim % 3, end = 120, row_bytes = dim * dtype_bytes(type);
      std::vector<uint8_t> stored(static_cast<size_t>(kBlockTokens * row_bytes), 0xFF);
      std::vector<float> values(static_cast<size_t>(kBlockTokens * dim));
      for (int i = begin * dim; i < end * dim; i++) {
        const float x = random.normal();
        uint8_t* at = &stored[static_cast<size_t>(i * dtype_bytes(type))];
        cpu::kScalarKernels.from_float(type, &x, 1, at);
        cpu::kScalarKernels.to_float(type, at, 1, &values[static_cast<size_t>(i)]);
      }
      cpu::ExactSide side = {type, dim, {}, {}};
      for (int i = 0; i < kBlockTiles; i++)
        side.tiles[i] = side.next[i] = &stored[static_cast<size_t>(i * format::kTileTokens * row_bytes)];
      alignas(64) static float q[rows * format::kMaxDim], o[rows * format::kMaxDim], alone[format::kMaxDim],
          dots[(rows + 1) * kBlockTokens], p[rows * kBlockTokens];
      for (float& x : q) x = random.normal();
      for (float& x : o) x = random.normal();
      for (float& x : p) x = static_cast<float>(random.uniform());
      const std::vector<float> before(o, o + rows * format::kMaxDim);
      kernels().dot_tokens(side, begin, end, q, dim, rows, dots);
      const float *weights[rows], alpha[rows] = {0, 1, 0.5f, 2, 0.25f, 0, 3};
      float* sums[rows];
      for (int r = 0; r < rows; r++) weights[r] = p + r * kBlockTokens, sums[r] = o + r * format::kMaxDim;
      kernels().add_tokens(side, begin, end, weights, alpha, rows, sums);
      for (int r = 0; r < rows; r++) {
        kernels().dot_tokens(side, begin, end, q + r * dim, dim, 1, dots + rows * kBlockTokens);
        for (int i = begin; i < end; i++) {
          double want = 0, size = 0;
          for (int c = 0; c < dim; c++) {
            const double product =
                static_cast<double>(q[r * dim + c]) * values[static_cast<size_t>(i * dim + c)];
            want += product, size += fabs(product);
          }
          ASSERT_NEAR(want, dots[r * kBlockTokens + i], size * dim * ldexp(1, -24)) << dim << " token " << i;
          ASSERT_EQ(dots[rows * kBlockTokens + i], dots[r * kBlockTokens + i]) << dim << " token " << i;
        }
        const size_t row = static_cast<size_t>(r * format::kMaxDim);
        std::copy(before.begin() + r * format::kMaxDim, before.begin() + r * format::kMaxDim + dim, alone);
        float* sum = alone;
        // in two runs
        kernels().add_tokens(side, begin, 40, weights + r, alpha + r, 1, &sum);
        const float one = 1;
        kernels().add_tokens(side, 40, end, weights + r, &one, 1, &sum);
        for (int c = 0; c < dim; c++) {
          double want = static_cast<double>(before[row + static_cast<size_t>(c)]) * alpha[r],
                 size = fabs(want);
          for (int i = begin; i < end; i++) {
            const double product =
                static_cast<double>(p[r * kBlockTokens + i]) * values[static_cast<size_t>(i * dim + c)];
            want += product, size += fabs(product);
          }
          ASSERT_NEAR(want, sums[r][c], size * (end - begin + 1) * ldexp(1, -23)) << dim << " entry " << c;
          ASSERT_EQ(alone[c], sums[r][c]) << dim << " row " << r << " entry " << c;
        }
      }
    }
}

TEST_P(KernelsTest, ConvertsEveryHalf) {
  std::vector<uint16_t> halves(65536), back(65536);
  std::vector<float> got(65536), want(65536);
  for (int i = 0; i < 65536; i++) halves[static_cast<size_t>(i)] = static_cast<uint16_t>(i);
  for (const DataType type : {DataType::kF16, DataType::kBF16}) {
    kernels().to_float(type, halves.data(), 65536, got.data());
    cpu::kScalarKernels.to_float(type, halves.data(), 65536, want.data());
    ASSERT_EQ(0, memcmp(got.data(), want.data(), 65536 * 4));
  }
  Random random(6);
  for (int round = 0; round < 100; round++) {
    for (float& x : want) {
      x = format::bits_float(static_cast<uint32_t>(random.bits()));
      if (!isfinite(x)) x = 65520.0f;
    }
    for (const DataType type : {DataType::kF16, DataType::kBF16}) {
      kernels().from_float(type, want.data(), 65535, halves.data());
      cpu::kScalarKernels.from_float(type, want.data(), 65535, back.data());
      ASSERT_EQ(0, memcmp(halves.data(), back.data(), 65535 * 2));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, KernelsTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return info.param; });

TEST(Selection, NamesAnUnknownInstructionSet) {
  try {
    cpu::select_kernels("avx9000");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(Status::kNotSupported, e.status());
    EXPECT_NE(nullptr, strstr(e.what(), "avx9000"));
    EXPECT_NE(nullptr, strstr(e.what(), "scalar"));
  }
  setenv("TQKV_CPU_ISA", "scalar", 1);
  EXPECT_STREQ("scalar", cpu::active_isa());
  setenv("TQKV_CPU_ISA", "mmx", 1);
  RigConfig config;
  EXPECT_THROW(cpu::select_kernels(nullptr), Error);
  EXPECT_STREQ(isas().back().c_str(), cpu::active_isa());
  unsetenv("TQKV_CPU_ISA");
  EXPECT_STREQ(isas().back().c_str(), cpu::active_isa());
}

}  // namespace
}  // namespace test
}  // namespace tq
