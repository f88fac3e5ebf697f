// SPDX-License-Identifier: Apache-2.0
// What an encoder fits a scale to (FORMAT.md section 3.3): the sum of squares of the levels that its codes
// decode to, which is exact, and the sum of their products with the vector.
#include <gtest/gtest.h>
#include <math.h>

#include <vector>

#include "format/encode.h"

namespace tq {
namespace format {
namespace {

std::vector<float> normal(size_t count, uint64_t seed) {
  std::vector<float> y;
  for (size_t i = 0; i < count; i++) {
    double sum = -6;
    for (uint64_t k = 0; k < 12; k++)
      sum += static_cast<double>(mix64((seed * 1000 + i) * 12 + k) >> 11) * 0x1p-53;
    y.push_back(static_cast<float>(sum));
  }
  return y;
}

TEST(Fit, SumsOfTheLevelsThatCodesDecodeTo) {
  for (const int stored : {32, 64, 96, 128})
    for (int bits = 1; bits <= 8; bits++)
      for (const bool trellis : {false, true})
        for (const Kind kind : {Kind::kKey, Kind::kValue})
          for (const ScaleRule rule : {ScaleRule::kLs, ScaleRule::kUnbiased, ScaleRule::kPaper}) {
            if (trellis && !is_trellis_bits(bits)) continue;
            SCOPED_TRACE(testing::Message() << stored << ", " << bits << " bits, trellis " << trellis);
            const size_t size = static_cast<size_t>(stored);
            std::vector<float> y = normal(size, static_cast<uint64_t>(stored + bits)), scratch(size),
                               levels(size);
            std::vector<uint8_t> codes(size);
            VectorCoder coder = {};
            coder.dim = coder.stored = stored;
            coder.rule = rule, coder.search = true, coder.kind = kind, coder.trellis = trellis;
            coder.codebook = trellis ? trellis_codebook(bits) : builtin_codebook(stored, bits);
            double squares = 0;
            for (const float each : y) squares += static_cast<double>(each) * static_cast<double>(each);
            const float rms = static_cast<float>(sqrt(squares / stored));
            const ScalarFit fit = trellis
                                      ? fit_trellis_codes(coder, y.data(), rms, codes.data(), scratch.data())
                                      : fit_scalar(coder.codebook, rule, true, y.data(), stored, rms,
                                                   codes.data(), scratch.data());
            code_levels(coder, codes.data(), levels.data());
            double qq = 0, dot = 0;
            for (size_t i = 0; i < size; i++) {
              qq += static_cast<double>(levels[i]) * static_cast<double>(levels[i]);
              dot += static_cast<double>(levels[i]) * static_cast<double>(y[i]);
            }
            EXPECT_EQ(static_cast<double>(fit.kept.qq), qq);
            EXPECT_NEAR(static_cast<double>(fit.kept.dot), dot, 1e-5 * dot);
          }
}

}  // namespace
}  // namespace format
}  // namespace tq
