// SPDX-License-Identifier: Apache-2.0
// The scalar family (FORMAT.md sections 3.1, 3.2 and 4): bits of a group's words (trellis sides too), and the
// codes of a rotated vector. The definition that every fast path must agree with. A code is a magnitude index
// with the sign above it, or the level's byte at 7 and 8 bits.
//
// Why these bit orders: the byte-permute instruction of the GPU looks up four table bytes from the low 3 bits
// of four nibbles, and copies a byte's top bit over the byte. So magnitudes sit in nibbles, and what one of
// them cannot hold where one shift brings it to the top of the right bytes. 4 bits have no words but these
// nibbles, whose top bits are the signs. From 5 bits on a nibble is all magnitude: an index of 16 entries as
// it stands, for a look-up of bytes on a CPU too; on the GPU its top bit chooses between two tables of 8.
// Signs and the magnitudes' fifth bits have words of their own.
#pragma once
#include "format/codebook.h"
#include "format/rotation.h"

namespace tq {
namespace format {

struct BitPlace {
  int word;  // 0 .. bits-1 in the group
  int bit;
};

// Where bit `index` of the code at (octet s, position n) lies; code = magnitude index | sign << (bits-1), or
// a byte for 8 bits.
TQ_HD constexpr BitPlace code_bit(int bits, int s, int n, int index) {
  if (bits == 2) return BitPlace{s / 2, 4 * n + 2 * (s % 2) + index};
  if (bits == 3) return s < 3 ? BitPlace{s, 4 * n + index} : BitPlace{index, 4 * n + 3};
  if (bits == 8) return BitPlace{2 * s + n / 4, 8 * (n % 4) + index};
  if (bits == 4 && index == 3) return BitPlace{s, n < 4 ? 8 * n + 7 : 8 * (n - 4) + 3};
  if (index < 4) return BitPlace{s, 4 * n + index};
  return BitPlace{index, 8 * (n % 4) + 7 - (2 * s + n / 4)};  // 5, 6 bits
}

// The same of a trellis code: word `index` has that bit of all four octets, in nibble n. Octets of one token
// lie 4 / jv bits apart, so that a chain of keys goes through a word in steps of this size.
TQ_HD constexpr int trellis_nibble_bit(int jv, int s) { return s % jv * (4 / jv) + s / jv; }
TQ_HD constexpr BitPlace code_bit(const SideLayout& side, int s, int n, int index) {
  return side.family == CodeFamily::kTrellis ? BitPlace{index, 4 * n + trellis_nibble_bit(side.jv, s)}
                                             : code_bit(side.bits, s, n, index);
}

// Reads and writes one code of a side. words: the side's words; reading and writing are exact inverses and
// touch no other code's bits.
TQ_HD uint32_t load_code(const uint32_t* words, const SideLayout& side, const CodePlace& at) {
  uint32_t code = 0;
  for (int index = 0; index < side.bits; index++) {
    const BitPlace place = code_bit(side, at.s, at.n, index);
    code |= (words[side.word_index(place.word, at.jb, at.lane, at.jj)] >> place.bit & 1u) << index;
  }
  return code;
}
TQ_HD void store_code(uint32_t* words, const SideLayout& side, const CodePlace& at, uint32_t code) {
  for (int index = 0; index < side.bits; index++) {
    const BitPlace place = code_bit(side, at.s, at.n, index);
    uint32_t& word = words[side.word_index(place.word, at.jb, at.lane, at.jj)];
    word = (word & ~(1u << place.bit)) | (code >> index & 1u) << place.bit;
  }
}

// All codes of one token, [stored]; the bits of other tokens stay as they are.
TQ_HD void unpack_scalar(const SideLayout& side, Kind kind, const uint32_t* words, int token,
                         uint8_t* codes) {
  for (int i = 0; i < side.stored; i++)
    codes[i] = static_cast<uint8_t>(load_code(words, side, code_place(side, kind, token, i)));
}
TQ_HD void pack_scalar(const SideLayout& side, Kind kind, int token, const uint8_t* codes, uint32_t* words) {
  for (int i = 0; i < side.stored; i++) store_code(words, side, code_place(side, kind, token, i), codes[i]);
}

// ---- codes of a rotated vector ----

struct QuantiseResult {
  float dot;  // sum |y| L
  float qq;   // sum L^2
};

// Magnitude index of |y| at threshold step u.
TQ_HD int magnitude_index(const Codebook& book, float abs_y, float u) {
  int j = 0;
  while (j + 1 < book.count() && abs_y >= mul_rn(book.threshold(j + 1), u)) j++;
  return j;
}

// Codes of y at one step; scratch and codes have `stored` entries.
TQ_HD QuantiseResult quantise(const Codebook& book, const float* y, int stored, float u, uint8_t* codes,
                              float* scratch) {
  int32_t four_qq = 0;
  for (int i = 0; i < stored; i++) {
    const float a = abs_float(y[i]);
    const int j = magnitude_index(book, a, u);
    const float level = book.level(j);
    const int twice = static_cast<int>(2 * level);
    codes[i] = static_cast<uint8_t>(j | (y[i] < 0 ? 1 << (book.bits - 1) : 0));
    four_qq += twice * twice;
    scratch[i] = mul_rn(a, level);
  }
  return QuantiseResult{tree_sum(scratch, stored), mul_rn(static_cast<float>(four_qq), 0.25f)};
}

TQ_HD QuantiseResult quantise_uniform(const float* y, int stored, float max_y, int limit, uint8_t* codes,
                                      float* scratch) {
  const float inv = div_rn(static_cast<float>(limit), max_y);
  int32_t four_qq = 0;
  for (int i = 0; i < stored; i++) {
    int c = static_cast<int>(rintf(mul_rn(y[i], inv)));
    c = c > limit ? limit : c < -limit ? -limit : c;
    codes[i] = static_cast<uint8_t>(c);
    four_qq += 4 * c * c;
    scratch[i] = mul_rn(abs_float(y[i]), static_cast<float>(c < 0 ? -c : c));
  }
  return QuantiseResult{tree_sum(scratch, stored), mul_rn(static_cast<float>(four_qq), 0.25f)};
}

// What the scale is fitted to.
struct ScalarFit {
  QuantiseResult kept;  // of the codes
  float paper;          // the scale of the paper's rule
};

// Codes of y [stored] by the codebook; codes come in as zeros, and stay so if no step explains anything.
TQ_HD ScalarFit fit_scalar(const Codebook& book, ScaleRule rule, bool search, const float* y, int stored,
                           float rms, uint8_t* codes, float* scratch) {
  ScalarFit fit = {{0.0f, 1.0f}, 0.0f};
  if (code_is_level(book.bits)) {
    const int limit = level_limit(book.bits);
    float max_y = 0;
    for (int i = 0; i < stored; i++) max_y = abs_float(y[i]) > max_y ? abs_float(y[i]) : max_y;
    fit.kept = quantise_uniform(y, stored, max_y, limit, codes, scratch);
    fit.paper = div_rn(max_y, static_cast<float>(limit));
    return fit;
  }
  const int steps = num_steps(book.bits, rule, search);
  fit.paper = mul_rn(rms, book.unit);
  uint8_t trial[kMaxVectorDim];
  float best_gain = -1.0f;  // dot^2 / qq: the energy that the best scale explains
  for (int index = 0; index < steps; index++) {
    const QuantiseResult tried =
        quantise(book, y, stored, mul_rn(fit.paper, step(book.bits, steps, index)), trial, scratch);
    const float gain = div_rn(mul_rn(tried.dot, tried.dot), tried.qq);
    if (!(gain > best_gain)) continue;
    best_gain = gain;
    fit.kept = tried;
    for (int i = 0; i < stored; i++) codes[i] = trial[i];
  }
  return fit;
}

}  // namespace format
}  // namespace tq
