// SPDX-License-Identifier: Apache-2.0
// What encoding a decoded vector gives (FORMAT.md section 6): the same codes and scale, at once for almost
// every vector where D = d and for nine in ten where D > d, and never a vector that shrinks.
#include <gtest/gtest.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "format/encode.h"

namespace tq {
namespace format {
namespace {

constexpr int kVectors = 200, kRounds = 12;

struct Outcome {
  int same_at_once = 0, same_at_last = 0;  // of kVectors: nothing changes from the first round, in the last
  double length = 0, error = 0, first_error = 0;  // against the input: ratio, and relative errors
};

Outcome rounds(int dim, CodeId code, ScaleRule rule) {
  const int stored = stored_dim(dim);
  uint64_t signs[sign_words(kMaxDim)], state = 1;
  for (int i = 0; i < sign_words(stored); i++) signs[i] = stream_word(stream_base(7, 1, 2, Kind::kKey), i);
  const VectorCoder coder = {dim,  stored, Rotation::kHadamard,         signs,         nullptr, nullptr,
                             rule, true,   builtin_codebook(dim, code), code.trellis()};
  Outcome outcome;
  double energy = 0, last = 0, error = 0, first = 0;
  for (int n = 0; n < kVectors; n++) {
    float input[kMaxDim], x[kMaxDim];
    for (int i = 0; i < dim; i++) {
      double sum = 0;  // about normal
      for (int j = 0; j < 12; j++) sum += static_cast<double>(mix64(state += kGolden) >> 11) * 0x1p-53;
      input[i] = x[i] = static_cast<float>(sum - 6);
      energy += input[i] * static_cast<double>(input[i]);
    }
    uint8_t codes[2][kMaxDim];
    uint16_t scales[2] = {};
    for (int round = 0; round < kRounds; round++) {
      encode_vector(coder, x, codes[round % 2], &scales[round % 2]);
      const bool same =
          memcmp(codes[0], codes[1], static_cast<size_t>(stored)) == 0 && scales[0] == scales[1];
      if (round == 1) outcome.same_at_once += same;
      if (round == kRounds - 1) outcome.same_at_last += same;
      decode_vector(coder, codes[round % 2], scales[round % 2], x);
      for (int i = 0; i < dim && round == 0; i++) first += pow(static_cast<double>(x[i] - input[i]), 2);
    }
    for (int i = 0; i < dim; i++) {
      last += x[i] * static_cast<double>(x[i]);
      error += pow(static_cast<double>(x[i] - input[i]), 2);
    }
  }
  outcome.length = sqrt(last / energy);
  outcome.error = sqrt(error / energy);
  outcome.first_error = sqrt(first / energy);
  return outcome;
}

// TQKV_TEST_QUICK: one that is padded, one that is not.
std::vector<int> dims(const std::vector<int>& all) {
  return getenv("TQKV_TEST_QUICK") ? std::vector<int>{32, 80} : all;
}

TEST(Reencode, KeepsLengthAndAlmostAllCodes) {
  for (const int dim : dims({32, 64, 80, 96, 112, 128}))
    for (const int bits : {2, 3, 4, 5, 6, 8})
      for (const ScaleRule rule : {ScaleRule::kLs, ScaleRule::kUnbiased, ScaleRule::kNorm}) {
        const Outcome o = rounds(dim, scalar_code(bits), rule);
        SCOPED_TRACE(testing::Message()
                     << "d " << dim << ", " << bits << " bits, rule " << static_cast<int>(rule) << ": "
                     << o.same_at_once << " and " << o.same_at_last << " of " << kVectors << ", length "
                     << o.length << ", error " << o.first_error << " and " << o.error);
        const bool padded = stored_dim(dim) > dim;
        EXPECT_GE(o.same_at_once, padded ? 176 : 198);
        EXPECT_GE(o.same_at_last, 198);
        // least squares shrinks by the error's square, once; unbiased grows by half of it
        EXPECT_NEAR(o.length, 1, 0.6 * o.first_error * o.first_error + 1e-3);
        EXPECT_LE(o.error, 1.02 * o.first_error);
      }
}

// The distortion of section 3.10, and that trellis codes come to rest as scalar ones do.
TEST(Reencode, TrellisKeepsItsCodesAndErrors) {
  constexpr double kError[] = {0.0842, 0.0218, 0.0055};
  for (const int dim : dims({32, 80, 128}))
    for (const int bits : {2, 3, 4})
      for (const ScaleRule rule : {ScaleRule::kLs, ScaleRule::kUnbiased}) {
        const Outcome o = rounds(dim, trellis_code(bits), rule);
        SCOPED_TRACE(testing::Message()
                     << "d " << dim << ", " << bits << " bits, rule " << static_cast<int>(rule) << ": "
                     << o.same_at_once << " and " << o.same_at_last << " of " << kVectors << ", length "
                     << o.length << ", error " << o.first_error << " and " << o.error);
        EXPECT_GE(o.same_at_once, 196);
        EXPECT_GE(o.same_at_last, 198);
        EXPECT_NEAR(o.length, 1, 0.6 * o.first_error * o.first_error + 1e-3);
        EXPECT_LE(o.error, 1.02 * o.first_error);
        // 200 vectors: the mean's own deviation is below 1 %
        if (dim == 128 && rule == ScaleRule::kLs) {
          EXPECT_NEAR(o.first_error * o.first_error / kError[bits - 2], 1, 0.03);
        }
      }
}

// Why the scale is fitted to the coordinates that decoding keeps: fitted to all D levels it shrinks.
TEST(Reencode, ShrinksWithoutThat) {
  const Outcome o = rounds(80, scalar_code(2), ScaleRule::kPaper);
  EXPECT_LT(o.length, 0.95) << "the paper's rule takes the length of what is left each time";
}

}  // namespace
}  // namespace format
}  // namespace tq
