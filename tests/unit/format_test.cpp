// SPDX-License-Identifier: Apache-2.0
// The scalar format against its own definitions: places of codes, sizes, tables, conversions, rotations. What
// bytes an input gives is compared with an independent implementation by the golden tests.
#include <gtest/gtest.h>
#include <math.h>

#include <limits>
#include <set>
#include <string>
#include <vector>

#include "dims.h"
#include "format/encode.h"
#include "format/grouped.h"

namespace tq {
namespace format {
namespace {

constexpr int kCoded[] = {2, 3, 4, 5, 6, 8};

TEST(Code, WordsOfAGroup) {
  for (const int bits : kCodeBits) {
    const CodeRegions regions = code_regions(code_of_bits(bits));
    EXPECT_EQ(regions.group_words, bits);
    EXPECT_EQ(regions.plane_words, bits == 5 ? 1 : bits == 6 ? 2 : 0) << bits;
  }
  for (const int bits : {2, 3, 4}) {
    EXPECT_EQ(code_regions(trellis_code(bits)).group_words, bits);
    EXPECT_EQ(code_regions(trellis_code(bits)).plane_words, 0);
  }
}

// A row that held something else has zeros behind its codes.
TEST(Grouped, RowsOverOldBits) {
  for (const int bits : kGroupedBits)
    for (const int dim : {4, 12, 20, 36, 44, 100}) {
      const SideLayout side(dim, grouped_code(bits, 16));
      std::vector<float> x(static_cast<size_t>(dim));
      for (int i = 0; i < dim; i++) x[static_cast<size_t>(i)] = static_cast<float>(i * 7 % 23) - 11;
      std::vector<uint32_t> rows[2];
      for (const bool old : {false, true}) {
        rows[old].assign(static_cast<size_t>(side.row_words()) + 1, old ? 0xFFFFFFFFu : 0u);
        GroupScale scales[8];
        bool saturated = false;
        EXPECT_FALSE(encode_grouped_token(side, x.data(), rows[old].data(), scales, &saturated));
        EXPECT_EQ(rows[old].back(), old ? 0xFFFFFFFFu : 0u) << "behind the row";
        rows[old].pop_back();
      }
      EXPECT_EQ(rows[0], rows[1]) << bits << " bits of " << dim;
    }
}

TEST(Numbers, NanWhateverItsPayload) {
  for (const uint32_t bits : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFC00000u, 0xFFFFFFFFu})
    EXPECT_TRUE(is_nan(bits_float(bits))) << bits;
  for (const uint32_t bits : {0u, 0x80000000u, 1u, 0x7F7FFFFFu, 0x7F800000u, 0xFF800000u})
    EXPECT_FALSE(is_nan(bits_float(bits))) << bits;
}

TEST(Code, RegionsMakeUpTheSide) {
  for (int i = 0; i < kNumCodes; i++) {
    const CodeId code = kCodes[i];
    EXPECT_EQ(i, code_index(code));
    EXPECT_TRUE(code == code_of(code.raw() ? CodeFamily::kLevels : code.family, code.bits, 0));
    EXPECT_TRUE(code.raw() || is_code(code.family, code.bits));
    EXPECT_EQ(code.bits == kRawBits, code.raw());
    for (const int dim : kTriedDims) {
      const SideLayout side(dim, code);
      EXPECT_TRUE(side.code() == code);
      EXPECT_EQ(side.code_bytes() * 8, kTileTokens * side.stored * code.bits);
      EXPECT_EQ(side.scale_bytes(), code.raw() ? 0 : 2 * kTileTokens);
    }
  }
  for (const int bits : kGroupedBits)
    for (const int group : kGroupSizes)
      for (const int dim : kHeadDims) {
        const SideLayout side(dim, grouped_code(bits, group));
        EXPECT_EQ(side.row_words(), (dim * bits + 31) / 32);
        EXPECT_EQ(side.code_bytes(), kTileTokens * 4 * side.row_words());
        EXPECT_EQ(side.scale_bytes(), kTileTokens * 4 * ((dim + group - 1) / group));
      }
  EXPECT_EQ(-1, code_index(scalar_code(7)));
  EXPECT_EQ(-1, code_index(scalar_code(16)));  // a width is not a family
  EXPECT_EQ(-1, code_index(scalar_code(1)));   // by rows
  EXPECT_TRUE(is_code_bits(1) && scalar_code(1).by_rows() && !scalar_code(2).by_rows());
}

// A token read from a tile is what decode_vector makes of its codes, or the raw values.
TEST(Code, DecodesTokensOfATile) {
  constexpr int kDim = 96, kToken = 13;
  std::vector<uint64_t> signs(sign_words(kDim), 0x123456789ABCDEF0ull);
  for (const CodeId code : kCodes)
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      SCOPED_TRACE(testing::Message() << code.bits << " bits");
      const SideLayout side(kDim, code);
      std::vector<uint32_t> words(static_cast<size_t>(side.code_bytes()) / 4, 0xFFFFFFFFu);
      std::vector<uint16_t> scales(kTileTokens, 0xFFFF);
      VectorCoder coder = {};
      coder.dim = kDim;
      coder.stored = side.stored;
      coder.rotation = Rotation::kHadamard;
      coder.signs = signs.data();
      if (!code.raw()) coder.codebook = builtin_codebook(kDim, code);
      coder.trellis = code.trellis();
      coder.kind = kind;
      std::vector<float> want(kDim), got(kDim);
      if (code.raw()) {
        uint16_t* row = reinterpret_cast<uint16_t*>(words.data()) + kToken * kDim;
        for (int i = 0; i < kDim; i++) want[i] = float_from_bf16(row[i] = static_cast<uint16_t>(0x3F00 + i));
      } else {
        std::vector<uint8_t> codes(kDim);
        for (int i = 0; i < kDim; i++) codes[i] = static_cast<uint8_t>((i * 7) & ((1 << code.bits) - 1));
        pack_scalar(side, kind, kToken, codes.data(), words.data());
        decode_vector(coder, codes.data(), scales[kToken] = 0x3F80, want.data());
      }
      decode_token(coder, side, kind, words.data(), scales.data(), kToken, true, got.data());
      EXPECT_EQ(want, got);
    }
}

TEST(Layout, EveryBitOfASideIsOneBitOfOneCode) {
  for (const int dim : kTriedDims)
    for (const CodeId code_id : kCodes)
      for (const Kind kind : {Kind::kKey, Kind::kValue}) {
        if (code_id.raw()) continue;
        SCOPED_TRACE(testing::Message() << dim << " family " << static_cast<int>(code_id.family) << " "
                                        << code_id.bits << " " << static_cast<int>(kind));
        const SideLayout side(dim, code_id);
        const size_t words = static_cast<size_t>(side.code_bytes()) / 4;
        std::vector<uint32_t> used(words, 0);
        for (int token = 0; token < kTileTokens; token++)
          for (int coordinate = 0; coordinate < side.stored; coordinate++) {
            const CodePlace at = code_place(side, kind, token, coordinate);
            ASSERT_TRUE(at.jb >= 0 && at.jb < side.jb && at.jj >= 0 && at.jj < side.jv && at.s >= 0 &&
                        at.s < 4 && at.lane >= 0 && at.lane < 32 && at.n >= 0 && at.n < 8);
            for (int index = 0; index < side.bits; index++) {
              const BitPlace place = code_bit(side, at.s, at.n, index);
              const size_t word = static_cast<size_t>(side.word_index(place.word, at.jb, at.lane, at.jj));
              ASSERT_LT(word, words);
              ASSERT_EQ(used[word] >> place.bit & 1u, 0u) << "two codes share a bit";
              used[word] |= 1u << place.bit;
            }
          }
        for (const uint32_t word : used) ASSERT_EQ(word, 0xFFFFFFFFu) << "a bit is unused";
      }
}

TEST(Layout, StoreAndLoadTouchOneCode) {
  for (const CodeId code_id : kCodes) {
    if (code_id.raw()) continue;
    const SideLayout side(96, code_id);
    std::vector<uint32_t> words(static_cast<size_t>(side.code_bytes()) / 4, 0xA5A5A5A5u), copy;
    uint32_t number = 1;
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      for (int token = 0; token < kTileTokens; token += 5)
        for (int coordinate = 0; coordinate < 96; coordinate += 7) {
          const CodePlace at = code_place(side, kind, token, coordinate);
          number = number * 1664525u + 1013904223u;
          const uint32_t code = number >> (32 - side.bits);
          copy = words;
          const uint32_t before = load_code(words.data(), side, at);
          store_code(words.data(), side, at, code);
          ASSERT_EQ(load_code(words.data(), side, at), code);
          store_code(words.data(), side, at, before);
          ASSERT_EQ(words, copy);
          store_code(words.data(), side, at, code);
        }
    }
  }
}

// A chain holds 32 coordinates of a vector; what its positions say of cosets is what the planes of words say.
TEST(Layout, ChainsFollowTheBitsOfWords) {
  for (const int dim : kTriedDims)
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const SideLayout side(dim, trellis_code(2));
      std::vector<int> coordinate(static_cast<size_t>(side.stored), -1);
      for (int i = 0; i < side.stored; i++) {
        const int place = trellis_place(kind, side.jv, i);
        ASSERT_EQ(coordinate.at(static_cast<size_t>(place)), -1);
        coordinate[static_cast<size_t>(place)] = i;
      }
      // Neighbours in a chain are a step of 4 / jv bits apart in a word, or in words one step further.
      for (int place = 0; place < side.stored; place++) {
        if (place % kChain == 0) continue;
        const int steps = 4 / side.jv;
        const CodePlace before = code_place(side, kind, 5, coordinate[static_cast<size_t>(place - 1)]),
                        at = code_place(side, kind, 5, coordinate[static_cast<size_t>(place)]);
        const int from = code_bit(side, before.s, before.n, 0).bit, to = code_bit(side, at.s, at.n, 0).bit;
        if (kind == Kind::kKey && before.lane == at.lane) {
          EXPECT_EQ(to, from + steps);
        }
        if (kind == Kind::kKey && before.lane != at.lane) {
          EXPECT_EQ(at.lane, before.lane + 1);
          EXPECT_EQ(to, from + steps - 32);
        }
        if (kind == Kind::kValue && before.lane / 4 == at.lane / 4) {
          EXPECT_EQ(at.jj, before.jj + 1);
          EXPECT_EQ(to, from);
        }
        if (kind == Kind::kValue && before.lane / 4 != at.lane / 4) {
          EXPECT_EQ(at.lane % 4, before.lane % 4);
          EXPECT_EQ((before.lane / 4 + 1) % 8, at.lane / 4);
          EXPECT_EQ(to, from + (at.lane / 4 == 0));
        }
      }
    }
}

TEST(Layout, Totals) {
  for (const int dim : kTriedDims)
    for (const int key_bits : kCodeBits)
      for (const int value_bits : kCodeBits) {
        const TileLayout tile(dim, 64, key_bits, value_bits);
        const int key = key_bits == 16 ? 64 * dim : 4 * stored_dim(dim) * key_bits,
                  value = value_bits == 16 ? 64 * 64 : 4 * 64 * value_bits;
        EXPECT_EQ(tile.tile_bytes(), key + value + 64 * ((key_bits != 16) + (value_bits != 16)));
        EXPECT_EQ(tile.tile_bytes() % 64, 0);
      }
  EXPECT_EQ(stored_dim(80), 96);
  EXPECT_EQ(stored_dim(112), 128);
  for (const int dim : kTriedDims)
    EXPECT_EQ(odd_factor(stored_dim(dim)) << log2_block(stored_dim(dim)), stored_dim(dim));
}

TEST(Conversions, Float16BothWaysEverywhere) {
  // All finite positive values in order: the rounding borders are the midpoints of neighbours, each exact in
  // float.
  for (uint32_t h = 0; h < 0x7C00; h++) {
    const float value = float_from_f16(static_cast<uint16_t>(h));
    const double exact =
        h < 0x400 ? ldexp(h, -24) : ldexp(1024 + (h & 0x3FF), static_cast<int>(h >> 10) - 25);
    ASSERT_EQ(static_cast<double>(value), exact) << h;
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float s = sign ? -1.0f : 1.0f;
      ASSERT_EQ(f16_from_float(s * value), h | sign);
      const double next =
          h + 1 < 0x7C00 ? static_cast<double>(float_from_f16(static_cast<uint16_t>(h + 1))) : 65536.0;
      const float middle = static_cast<float>((exact + next) / 2);
      ASSERT_EQ(static_cast<double>(middle), (exact + next) / 2);
      ASSERT_EQ(f16_from_float(s * middle), (h + (h & 1)) | sign) << "ties to even, " << h;
      ASSERT_EQ(f16_from_float(s * nextafterf(middle, 0.0f)), h | sign);
      ASSERT_EQ(f16_from_float(s * nextafterf(middle, INFINITY)), (h + 1) | sign);
    }
  }
  for (uint32_t h = 0x7C01; h < 0x8000; h++) {
    ASSERT_TRUE(isnan(float_from_f16(static_cast<uint16_t>(h))));
    ASSERT_TRUE(isnan(float_from_f16(static_cast<uint16_t>(h | 0x8000))));
  }
  EXPECT_EQ(float_from_f16(0x7C00), INFINITY);
  EXPECT_EQ(float_from_f16(0xFC00), -INFINITY);
  EXPECT_EQ(f16_from_float(INFINITY), 0x7C00);
  EXPECT_EQ(f16_from_float(3e38f), 0x7C00);
  EXPECT_EQ(f16_from_float(-0.0f), 0x8000);
  EXPECT_EQ(f16_from_float(bits_float(0x7FC00000)), 0x7E00) << "the quiet NaN without a payload";
  EXPECT_EQ(f16_from_float(bits_float(0xFFC00000)), 0xFE00);
  EXPECT_EQ(f16_from_float(bits_float(0x7F800001)) & 0x7E00, 0x7E00) << "a NaN, whatever its bits";
  EXPECT_EQ(f16_from_float(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Conversions, Bfloat16BothWaysEverywhere) {
  for (uint32_t h = 0; h < 0x7F80; h++)
    for (const uint32_t sign : {0u, 0x8000u}) {
      const uint32_t bits = (h | sign) << 16;
      ASSERT_EQ(float_bits(float_from_bf16(static_cast<uint16_t>(h | sign))), bits);
      ASSERT_EQ(bf16_from_float(bits_float(bits)), h | sign);
      ASSERT_EQ(bf16_from_float(bits_float(bits + 0x7FFF)), h | sign);
      ASSERT_EQ(bf16_from_float(bits_float(bits + 0x8000)), (h + (h & 1)) | sign);
      ASSERT_EQ(bf16_from_float(bits_float(bits + 0x8001)), (h + 1) | sign);
      ASSERT_EQ(bf16_from_float(bits_float(bits + 0xFFFF)), (h + 1) | sign);
    }
}

TEST(Conversions, RawSidesReplaceWhatIsNotFinite) {
  bool replaced = false;
  bool saturated = false;
  EXPECT_EQ(raw_from_f32(1.0f, &replaced, &saturated), 0x3C00);
  EXPECT_EQ(raw_from_f16(0x7BFF, &replaced), 0x7BFF);
  EXPECT_EQ(raw_from_bf16(0x5F80, &replaced), 0x5F80);  // 2^64
  EXPECT_FALSE(replaced);
  const auto told = [](bool* flag) {
    const bool was = *flag;
    *flag = false;
    return was;
  };
  EXPECT_EQ(raw_from_f32(NAN, &replaced, &saturated), 0);
  EXPECT_TRUE(told(&replaced));
  EXPECT_EQ(raw_from_f32(-INFINITY, &replaced, &saturated), 0xFBFF);
  EXPECT_TRUE(told(&replaced));
  EXPECT_EQ(raw_from_f32(-65504.0f, &replaced, &saturated), 0xFBFF);
  EXPECT_FALSE(saturated);
  for (const float x : {65505.0f, 65520.0f, 1e19f}) {
    EXPECT_EQ(raw_from_f32(x, &replaced, &saturated), 0x7BFF);
    EXPECT_TRUE(told(&saturated));
    EXPECT_EQ(raw_from_f32(-x, &replaced, &saturated), 0xFBFF);
    EXPECT_TRUE(told(&saturated));
  }
  EXPECT_FALSE(replaced);
  EXPECT_EQ(raw_from_f32(1e20f, &replaced, &saturated), 0x7BFF);  // beyond 2^64: both
  EXPECT_TRUE(told(&replaced) && told(&saturated));
  EXPECT_EQ(raw_from_f16(0xFC00, &replaced), 0xFBFF);
  EXPECT_TRUE(told(&replaced));
  EXPECT_EQ(raw_from_f16(0x7C01, &replaced), 0);
  EXPECT_TRUE(told(&replaced));
  EXPECT_EQ(raw_from_bf16(0x7F80, &replaced), 0x5F80);
  EXPECT_TRUE(told(&replaced));
  EXPECT_EQ(raw_from_bf16(0xFFC0, &replaced), 0);
  EXPECT_TRUE(told(&replaced));
}

TEST(Rotation, SmallFactorsAreTheOrthonormalDct) {
  for (const int m : {3, 5, 7, 9})
    for (int r = 0; r < m; r++)
      for (int c = 0; c < m; c++) {
        const int angle = (2 * c + 1) * r;  // in units of pi / 2m
        const long double pi = 3.14159265358979323846264338327950288L;
        long double exact = sqrtl((r == 0 ? 1.0L : 2.0L) / m) * cosl(pi * angle / (2 * m));
        if (angle % (2 * m) == m) exact = 0;
        EXPECT_EQ(float_bits(dct_entry(m, r, c)), float_bits(static_cast<float>(exact)))
            << m << " " << r << " " << c;
      }
}

TEST(Rotation, StreamIsSplitMix64) {
  // First outputs of SplitMix64 seeded with 0.
  EXPECT_EQ(stream_word(0, 0), 0xE220A8397B1DCDAFull);
  EXPECT_EQ(stream_word(0, 1), 0x6E789E6AA1B965F4ull);
  EXPECT_EQ(stream_word(0, 2), 0x06C45D188009454Full);
  std::set<uint64_t> bases;
  for (uint64_t seed = 0; seed < 3; seed++)
    for (int layer = 0; layer < 5; layer++)
      for (int head = 0; head < 5; head++)
        for (const Kind kind : {Kind::kKey, Kind::kValue}) bases.insert(stream_base(seed, layer, head, kind));
  EXPECT_EQ(bases.size(), 3u * 5 * 5 * 2) << "every (seed, layer, head, kind) has its own stream";
}

TEST(Rotation, HadamardIsTheMatrixAndItsOwnInverse) {
  for (const int stored : {32, 64, 96, 128, 160, 192, 224, 256, 512, 576}) {
    std::vector<uint64_t> signs(static_cast<size_t>(sign_words(stored)));
    for (size_t w = 0; w < signs.size(); w++) signs[w] = stream_word(42, w);
    const int n = 1 << log2_block(stored), m = stored / n;
    const double norm = static_cast<double>(hadamard_norm(log2_block(stored)));
    EXPECT_NEAR(norm, pow(2.0, -log2_block(stored) / 2.0), 1e-8);
    std::vector<float> x(static_cast<size_t>(stored)), y;
    for (int i = 0; i < stored; i++) x[static_cast<size_t>(i)] = static_cast<float>(i % 17) - 8;
    y = x;
    hadamard_forward(y.data(), stored, signs.data());
    for (int row = 0; row < stored; row += 13) {
      double exact = 0;
      for (int i = 0; i < stored; i++) {
        const double sign = (sign_bit(signs.data(), i) ? -1.0 : 1.0) *
                            (__builtin_popcount(static_cast<unsigned>((row % n) & (i % n))) % 2 ? -1.0 : 1.0);
        const double factor = m > 1 ? static_cast<double>(dct_entry(m, row / n, i / n)) : 1.0;
        exact += factor * sign * static_cast<double>(x[static_cast<size_t>(i)]);
      }
      EXPECT_NEAR(static_cast<double>(y[static_cast<size_t>(row)]), exact, 1e-3) << stored << " " << row;
    }
    hadamard_inverse(y.data(), stored);
    for (int i = 0; i < stored; i++) {
      const double back =
          static_cast<double>(y[static_cast<size_t>(i)]) * norm * norm * (sign_bit(signs.data(), i) ? -1 : 1);
      EXPECT_NEAR(back, static_cast<double>(x[static_cast<size_t>(i)]), 1e-4);
    }
  }
}

TEST(Rotation, DenseMatricesAreOrthonormal) {
  for (const int stored : {32, 96, 128}) {
    std::vector<float> matrix(static_cast<size_t>(stored) * static_cast<size_t>(stored));
    std::vector<double> work(matrix.size() + static_cast<size_t>(stored));
    dense_matrix(stream_base(1, 2, 3, Kind::kValue), stored, matrix.data(), work.data());
    for (int i = 0; i < stored; i++)
      for (int j = 0; j <= i; j++) {
        double dot = 0;
        for (int l = 0; l < stored; l++)
          dot += static_cast<double>(matrix[static_cast<size_t>(i * stored + l)]) *
                 static_cast<double>(matrix[static_cast<size_t>(j * stored + l)]);
        // Each entry is rounded to float: D products with relative error 2^-23 of numbers whose squares add
        // up to 1.
        ASSERT_NEAR(dot, i == j ? 1.0 : 0.0, 2.4e-7) << stored << " " << i << " " << j;
      }
  }
}

TEST(Rotation, SeriesLogarithm) {
  for (double q = 1e-300; q < 1; q = q < 0.01 ? q * 1.7 : q + 0.0137)
    EXPECT_NEAR(series_log(q), log(q), 1e-14 * fabs(log(q)) + 1e-15) << q;
}

TEST(Rotation, TreeSumsInTheStatedOrder) {
  // 96 = 3 * 32: numbers that cancel only if blocks are added first and halves folded afterwards.
  std::vector<float> v(96, 0.0f);
  v[0] = 1e8f;
  v[32] = 1.0f;  // lost: 1e8 + 1 rounds to 1e8
  v[64] = -1e8f;
  v[16] = 3.0f;
  EXPECT_EQ(tree_sum(v.data(), 96), 3.0f);
  double exact[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(tree_sum(exact, 8), 36.0);
}

VectorCoder coder(int dim, int bits, const uint64_t* signs) {
  VectorCoder c = {};
  c.dim = dim;
  c.stored = stored_dim(dim);
  c.rotation = Rotation::kHadamard;
  c.signs = signs;
  c.rule = ScaleRule::kLs;
  c.search = true;
  c.codebook = builtin_codebook(dim, bits);
  return c;
}

TEST(Encode, EdgesOfTheInput) {
  const uint64_t signs[] = {stream_word(9, 0), stream_word(9, 1)};
  for (const int bits : kCoded) {
    const VectorCoder c = coder(80, bits, signs);
    std::vector<float> x(80, 0.0f), back(80);
    std::vector<uint8_t> codes(96, 77);
    uint16_t scale = 77;
    EXPECT_FALSE(encode_vector(c, x.data(), codes.data(), &scale));
    EXPECT_EQ(scale, 0);
    EXPECT_EQ(codes, std::vector<uint8_t>(96, 0));
    x[3] = ldexpf(0.999f, -100);  // just below the limit
    EXPECT_FALSE(encode_vector(c, x.data(), codes.data(), &scale));
    EXPECT_EQ(scale, 0);
    x[3] = ldexpf(1, -100);
    EXPECT_FALSE(encode_vector(c, x.data(), codes.data(), &scale));
    EXPECT_GT(scale, 0);
    for (const float bad : {NAN, INFINITY, -INFINITY, 3.4e38f, ldexpf(1.001f, 64)}) {
      x.assign(80, 1.0f);
      x[79] = bad;
      EXPECT_TRUE(encode_vector(c, x.data(), codes.data(), &scale)) << bad;
      decode_vector(c, codes.data(), scale, back.data());
      for (const float value : back) EXPECT_TRUE(isfinite(value)) << bits << " " << bad;
    }
    x.assign(80, ldexpf(-1, 64));
    EXPECT_FALSE(encode_vector(c, x.data(), codes.data(), &scale));
    decode_vector(c, codes.data(), scale, back.data());
    for (const float value : back) EXPECT_TRUE(isfinite(value));
  }
}

TEST(Encode, LevelBytesFitAndMirror) {
  for (const int dim : kTriedDims)
    for (const int bits : kCoded) {
      const Codebook book = builtin_codebook(dim, bits);
      ASSERT_EQ(book.bits, bits);
      for (uint32_t code = 0; code < 1u << (bits - 1); code++) {
        if (bits == 8) continue;
        ASSERT_GT(book.level(static_cast<int>(code)), 0.0f);
        if (code > 0) {
          ASSERT_GT(book.level(static_cast<int>(code)), book.level(static_cast<int>(code) - 1));
        }
        ASSERT_EQ(code_level(book, code), book.level(static_cast<int>(code)));
        ASSERT_EQ(code_level(book, code | 1u << (bits - 1)), -book.level(static_cast<int>(code)));
        ASSERT_EQ(level_byte(book, code | 1u << (bits - 1)),
                  book.half() ? ~level_byte(book, code) : -level_byte(book, code));
      }
    }
}

}  // namespace
}  // namespace format
}  // namespace tq
