// SPDX-License-Identifier: Apache-2.0
// Building blocks of vbmi.cpp, for its use only: look-up of codes by vpermb, and sums over the four
// lanes of a coordinate.
#pragma once
#include "cpu/kernels/operands.h"
#include "hwy/highway.h"

#if HWY_ARCH_X86
#include <immintrin.h>

// GCC 12 and 13 see the deliberately undefined source of unmasked intrinsics as uninitialised (GCC bug
// 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Highway's AVX3_DL target also permits VEX-encoded VNNI, which Zen 4 lacks: these files name their own set.
#define TQ_VBMI_TARGET "avx512f,avx512vl,avx512dq,avx512bw,avx512vbmi,avx512vnni,bmi,bmi2,fma"
#define TQ_INLINE inline __attribute__((always_inline))

HWY_PUSH_ATTRIBUTES(TQ_VBMI_TARGET)
namespace tq {
namespace cpu {
namespace vbmi {
namespace {

using V = __m512i;

struct Tables {
  V low, high;
};

// bias 0x80 turns level into level + 128.
TQ_INLINE Tables load_tables(const CodedSide& side, int bias) {
  const V flip = _mm512_set1_epi8(static_cast<char>(bias));
  return Tables{_mm512_xor_si512(_mm512_load_si512(side.levels), flip),
                _mm512_xor_si512(_mm512_load_si512(side.levels_high), flip)};
}

// Nibbles 4 h .. 4 h + 3 of each dword as bytes; the upper 4 bits of a byte hold what follows.
TQ_INLINE V spread_nibbles(V w, int h) {
  const V offsets = _mm512_set1_epi64(h == 0 ? 0x2C2824200C080400ll : 0x3C3834301C181410ll);
  return _mm512_multishift_epi64_epi8(offsets, w);
}

// Where mask is set: b, else a.
TQ_INLINE V select(V a, V b, V mask) { return _mm512_ternarylogic_epi32(mask, b, a, 0xCA); }

// Shifts dwords right (left if negative).
template <int kRight>
TQ_INLINE V shift(V w) {
  if constexpr (kRight > 0) return _mm512_srli_epi32(w, kRight);
  if constexpr (kRight < 0) return _mm512_slli_epi32(w, -kRight);
  return w;
}

// Codes of octet kOctet of a 5- or 6-bit group, half kHalf; the bits of a byte above a code hold anything.
template <int kBits, int kOctet, int kHalf>
TQ_INLINE V wide_index(V w, const V (&planes)[2]) {
  constexpr int kPlaneBit = 7 - (2 * kOctet + kHalf);
  V index = select(spread_nibbles(w, kHalf), shift<kPlaneBit - 4>(planes[0]), _mm512_set1_epi8(16));
  if constexpr (kBits == 6) index = select(index, shift<kPlaneBit - 5>(planes[1]), _mm512_set1_epi8(32));
  return index;
}

template <int kBits, int kOctet>
TQ_INLINE void expand_wide_octet(const Tables& tables, const uint32_t* words, int64_t plane,
                                 const V (&planes)[2], V (&levels)[8]) {
  const V w = _mm512_load_si512(words + kOctet * plane);
  levels[2 * kOctet] = _mm512_permutexvar_epi8(wide_index<kBits, kOctet, 0>(w, planes), tables.low);
  levels[2 * kOctet + 1] = _mm512_permutexvar_epi8(wide_index<kBits, kOctet, 1>(w, planes), tables.low);
}

// 16 words of each plane of an opened side, whose fifth plane is shifted by shift[s] bits for octet s.
template <int kBits>
TQ_INLINE void expand_opened(const Tables& tables, int jv, const uint32_t* words, int64_t plane,
                             V (&levels)[8]) {
  for (int s = 0; s < 4; s++) {
    V even = _mm512_load_si512(words + s * plane), odd = _mm512_srli_epi32(even, 4);
    if constexpr (kBits == 4) {
      const V fifth = _mm512_load_si512(words + 4 * plane), bit = _mm512_set1_epi8(16);
      const int at = format::trellis_nibble_bit(jv, s);
      even = select(even, _mm512_slli_epi32(fifth, static_cast<unsigned>(4 - at)), bit);
      odd = select(odd, at == 0 ? fifth : _mm512_srli_epi32(fifth, static_cast<unsigned>(at)), bit);
    }
    levels[2 * s] = _mm512_permutexvar_epi8(even, tables.low);
    levels[2 * s + 1] = _mm512_permutexvar_epi8(odd, tables.low);
  }
}

// 16 words of each plane -> levels[2 s + h].
template <size_t kIndex, int kJv>
TQ_INLINE void expand(const Tables& tables, int bias, const uint32_t* words, int64_t plane, V (&levels)[8]) {
  constexpr int kBits = format::kCodes[kIndex].bits;
  if constexpr (format::kCodes[kIndex].trellis()) {
    expand_opened<kBits>(tables, kJv, words, plane, levels);
  } else if constexpr (kBits == 8) {
    const V flip = _mm512_set1_epi8(static_cast<char>(bias));
    for (int i = 0; i < 8; i++) levels[i] = _mm512_xor_si512(_mm512_load_si512(words + i * plane), flip);
  } else if constexpr (kBits == 2) {
    for (int i = 0; i < 2; i++) {
      const V w = _mm512_load_si512(words + i * plane), odd = _mm512_srli_epi32(w, 4);
      levels[4 * i] = _mm512_permutexvar_epi8(w, tables.low);
      levels[4 * i + 1] = _mm512_permutexvar_epi8(odd, tables.low);
      levels[4 * i + 2] = _mm512_permutexvar_epi8(w, tables.high);
      levels[4 * i + 3] = _mm512_permutexvar_epi8(odd, tables.high);
    }
  } else if constexpr (kBits == 3) {
    V w[3];
    for (int i = 0; i < 3; i++) {
      w[i] = _mm512_load_si512(words + i * plane);
      levels[2 * i] = _mm512_permutexvar_epi8(w[i], tables.low);
      levels[2 * i + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi32(w[i], 4), tables.low);
    }
    V fourth = select(_mm512_srli_epi32(w[1], 2), _mm512_srli_epi32(w[0], 3), _mm512_set1_epi8(0x11));
    fourth = select(_mm512_srli_epi32(w[2], 1), fourth, _mm512_set1_epi8(0x33));
    levels[6] = _mm512_permutexvar_epi8(fourth, tables.low);
    levels[7] = _mm512_permutexvar_epi8(_mm512_srli_epi32(fourth, 4), tables.low);
  } else if constexpr (kBits == 4) {
    const V sign = _mm512_set1_epi8(8);
    for (int s = 0; s < 4; s++) {
      const V w = _mm512_load_si512(words + s * plane);
      levels[2 * s] =
          _mm512_permutexvar_epi8(select(spread_nibbles(w, 0), _mm512_srli_epi32(w, 4), sign), tables.low);
      levels[2 * s + 1] = _mm512_permutexvar_epi8(select(spread_nibbles(w, 1), w, sign), tables.low);
    }
  } else {
    const V planes[2] = {_mm512_load_si512(words + 4 * plane),
                         kBits == 6 ? _mm512_load_si512(words + 5 * plane) : _mm512_setzero_si512()};
    expand_wide_octet<kBits, 0>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 1>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 2>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 3>(tables, words, plane, planes, levels);
  }
}

// The lines that a later block's expand will load.
template <int kBits>
TQ_INLINE void prefetch_planes(const uint32_t* words, int64_t plane) {
  for (int i = 0; i < kBits; i++) _mm_prefetch(reinterpret_cast<const char*>(words + i * plane), _MM_HINT_T1);
}

// ---- sums over t ----

// Lane numbers that bring together what two vectors have to add. Dword of output o, quarter t of a vector:
// the inverse of dword_quarter.
template <int kJv>
constexpr int dword_of(int o, int t) {
  return o / kJv * 4 * kJv + t * kJv + o % kJv;
}

struct Permutation {
  alignas(64) int32_t lane[16];
};
// First step: t = half and half + 2 of two vectors (second vector: lanes 16 ..) -> [vector][o][t mod 2].
template <int kJv>
constexpr Permutation first_step(int half) {
  Permutation p = {};
  for (int k = 0; k < 16; k++) p.lane[k] = k / 8 * 16 + dword_of<kJv>(k % 8 / 2, k % 2 + 2 * half);
  return p;
}
// Second step: two results of the first -> [vector][o].
constexpr Permutation second_step(int half) {
  Permutation p = {};
  for (int k = 0; k < 16; k++) p.lane[k] = k / 8 * 16 + k % 8 * 2 + half;
  return p;
}
// Key scores: [vector][o] of the eight vectors -> tokens 16 half ...
template <int kJv>
constexpr Permutation token_step(int half) {
  Permutation p = {};
  for (int k = 0; k < 16; k++) {
    const int token = 16 * half + k, block = token / 8, g = token % 8;
    const int klass = block % (4 / kJv), jj = block / (4 / kJv), v = g * kJv / 4, gl = g % (4 / kJv);
    p.lane[k] = 4 * (klass * 2 * kJv + v) + gl * kJv + jj;
  }
  return p;
}

TQ_INLINE V permute2(const Permutation& p, V a, V b) {
  return _mm512_permutex2var_epi32(a, _mm512_load_si512(p.lane), b);
}

template <int kJv>
TQ_INLINE V fold4(V a, V b, V c, V d) {
  static constexpr Permutation kFirst0 = first_step<kJv>(0), kFirst1 = first_step<kJv>(1),
                               kSecond0 = second_step(0), kSecond1 = second_step(1);
  const V ab = _mm512_add_epi32(permute2(kFirst0, a, b), permute2(kFirst1, a, b));
  const V cd = _mm512_add_epi32(permute2(kFirst0, c, d), permute2(kFirst1, c, d));
  return _mm512_add_epi32(permute2(kSecond0, ab, cd), permute2(kSecond1, ab, cd));
}

// 256 high + low.
TQ_INLINE V join_digits(V high, V low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }

}  // namespace
}  // namespace vbmi
}  // namespace cpu
}  // namespace tq
HWY_POP_ATTRIBUTES
#endif  // HWY_ARCH_X86
