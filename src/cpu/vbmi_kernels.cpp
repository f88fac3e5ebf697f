// SPDX-License-Identifier: Apache-2.0
// Integer dot products over codes with AVX-512 VBMI and VNNI (Ice Lake, Zen 4 and later).
//
// Look-up: vpermb reads the low 6 bits of each byte, so a table that repeats with the code's period makes the neighbouring bits irrelevant: 2- and
// 3-bit codes need about two operations per 64 codes, 4 bits three and a half, 5 and 6 bits six to eight. Dot: vpdpbusd, u8 x s8, four products per
// dword. Keys: level + 128 (folded into the table) times the signed digits of q, less 128 * sum(q). Values: the digits of the unsigned weights
// times the level. Everything is exact modulo 2^32 and the true sums fit int32 (kernels.h).
//
// Highway 1.0.3 has none of these operations; its AVX3_DL target also permits VEX-encoded VNNI, which Zen 4 lacks, so this file names its own set.
#include "cpu/vbmi_kernels.h"

#include "cpu/operands.h"
#include "hwy/highway.h"

#if HWY_ARCH_X86
#include <immintrin.h>

// GCC 12 and 13 see the deliberately undefined source of unmasked intrinsics as uninitialised (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

HWY_PUSH_ATTRIBUTES("avx512f,avx512vl,avx512dq,avx512bw,avx512vbmi,avx512vnni,bmi,bmi2,fma")
namespace tq {
namespace cpu {
namespace vbmi {
namespace {

using V = __m512i;
#define TQ_INLINE inline __attribute__((always_inline))

struct Tables {
  V low, high;
};

// bias 0x80 turns level into level + 128.
TQ_INLINE Tables load_tables(const CodedSide& side, int bias) {
  const V flip = _mm512_set1_epi8(static_cast<char>(bias));
  return Tables{_mm512_xor_si512(_mm512_load_si512(side.levels), flip), _mm512_xor_si512(_mm512_load_si512(side.levels_high), flip)};
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

// Octet s of a 5- or 6-bit group, half h.
template <int kBits, int kOctet, int kHalf>
TQ_INLINE V wide_index(V w, const V (&planes)[2]) {
  constexpr int kPlaneBit = 7 - (2 * kOctet + kHalf);
  V index = select(spread_nibbles(w, kHalf), shift<kPlaneBit - 3>(planes[0]), _mm512_set1_epi8(8));
  if constexpr (kBits == 6) index = select(index, shift<kPlaneBit - 4>(planes[1]), _mm512_set1_epi8(16));
  constexpr int kSignBit = kHalf == 0 ? 7 : 3;
  return select(index, shift<kSignBit - (kBits - 1)>(w), _mm512_set1_epi8(1 << (kBits - 1)));
}

template <int kBits, int kOctet>
TQ_INLINE void expand_wide_octet(const Tables& tables, const uint32_t* words, int64_t plane, const V (&planes)[2], V (&levels)[8]) {
  const V w = _mm512_load_si512(words + kOctet * plane);
  levels[2 * kOctet] = _mm512_permutexvar_epi8(wide_index<kBits, kOctet, 0>(w, planes), tables.low);
  levels[2 * kOctet + 1] = _mm512_permutexvar_epi8(wide_index<kBits, kOctet, 1>(w, planes), tables.low);
}

// 16 words of each plane -> levels[2 s + h].
template <int kBits>
TQ_INLINE void expand(const Tables& tables, int bias, const uint32_t* words, int64_t plane, V (&levels)[8]) {
  if constexpr (kBits == 8) {
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
      levels[2 * s] = _mm512_permutexvar_epi8(select(spread_nibbles(w, 0), _mm512_srli_epi32(w, 4), sign), tables.low);
      levels[2 * s + 1] = _mm512_permutexvar_epi8(select(spread_nibbles(w, 1), w, sign), tables.low);
    }
  } else {
    const V planes[2] = {_mm512_load_si512(words + 4 * plane), kBits == 6 ? _mm512_load_si512(words + 5 * plane) : _mm512_setzero_si512()};
    expand_wide_octet<kBits, 0>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 1>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 2>(tables, words, plane, planes, levels);
    expand_wide_octet<kBits, 3>(tables, words, plane, planes, levels);
  }
}

// The lines that a later block's expand will load.
template <int kBits>
TQ_INLINE void prefetch_planes(const uint32_t* words, int64_t plane) {
  for (int i = 0; i < kBits; i++) _mm_prefetch(reinterpret_cast<const char*>(words + i * plane), _MM_HINT_T0);
}

// ---- sums over t ----

// Lane numbers that bring together what two vectors have to add. Dword of output o, quarter t of a vector: the inverse of dword_quarter.
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

TQ_INLINE V permute2(const Permutation& p, V a, V b) { return _mm512_permutex2var_epi32(a, _mm512_load_si512(p.lane), b); }

template <int kJv>
TQ_INLINE V fold4(V a, V b, V c, V d) {
  static constexpr Permutation kFirst0 = first_step<kJv>(0), kFirst1 = first_step<kJv>(1), kSecond0 = second_step(0), kSecond1 = second_step(1);
  const V ab = _mm512_add_epi32(permute2(kFirst0, a, b), permute2(kFirst1, a, b));
  const V cd = _mm512_add_epi32(permute2(kFirst0, c, d), permute2(kFirst1, c, d));
  return _mm512_add_epi32(permute2(kSecond0, ab, cd), permute2(kSecond1, ab, cd));
}

// 256 high + low.
TQ_INLINE V join_digits(V high, V low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }

// ---- scores ----

// One word vector of a tile for kRows rows: partial sums go to partials[row][class][vector].
template <int kBits, int kJv, int kRows>
TQ_INLINE void score_vector(const Tables& tables, const format::SideLayout& layout, const uint32_t* words, const uint32_t* next, int vector,
                            const uint8_t* operands, size_t operand_bytes, V* partials) {
  constexpr int kClasses = 4 / kJv;
  const int64_t plane = static_cast<int64_t>(layout.jb) * 32 * kJv;
  V high[kRows][kClasses], low[kRows][kClasses];
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kClasses; c++) high[r][c] = low[r][c] = _mm512_setzero_si512();
  for (int jb = 0; jb < layout.jb; jb++) {
    V levels[8];
    expand<kBits>(tables, 0x80, words + jb * 32 * kJv + 16 * vector, plane, levels);
    prefetch_planes<kBits>(next + jb * 32 * kJv + 16 * vector, plane);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) {
      const uint8_t* operand = operands + r * operand_bytes + jb * kJv * 256;
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        const int s = i / 2, h = i % 2, c = s / kJv;
        const uint8_t* q = operand + (s % kJv) * 256 + h * 128;
        high[r][c] = _mm512_dpbusd_epi32(high[r][c], levels[i], _mm512_load_si512(q));
        low[r][c] = _mm512_dpbusd_epi32(low[r][c], levels[i], _mm512_load_si512(q + 64));
      }
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kClasses; c++) partials[r * 8 + c * 2 * kJv + vector] = join_digits(high[r][c], low[r][c]);
}

// kRows rows of one tile. corrections[r] = 128 * sum(q).
template <int kBits, int kJv, int kRows>
void score_rows(const CodedSide& side, const uint32_t* words, const uint32_t* next, const uint8_t* operands, const int32_t* corrections, int32_t* scores) {
  static constexpr Permutation kTokens0 = token_step<kJv>(0), kTokens1 = token_step<kJv>(1);
  const Tables tables = load_tables(side, 0x80);
  V partials[kRows * 8];
  for (int vector = 0; vector < 2 * kJv; vector++)
    score_vector<kBits, kJv, kRows>(tables, side.layout, words, next, vector, operands, query_operand_bytes(side.layout.stored), partials);
  for (int r = 0; r < kRows; r++) {
    const V* p = partials + r * 8;
    const V a = fold4<kJv>(p[0], p[1], p[2], p[3]), b = fold4<kJv>(p[4], p[5], p[6], p[7]), correction = _mm512_set1_epi32(corrections[r]);
    _mm512_store_si512(scores + r * kBlockTokens, _mm512_sub_epi32(permute2(kTokens0, a, b), correction));
    _mm512_store_si512(scores + r * kBlockTokens + 16, _mm512_sub_epi32(permute2(kTokens1, a, b), correction));
  }
}

// 128 * sum(q), from the digits in the operand: every coordinate stands there in 16 / (4 t) = 4 dwords of the same t.
TQ_INLINE int32_t correction_of(const CodedSide& side, const uint8_t* operand) {
  const V ones = _mm512_set1_epi8(1);
  V high = _mm512_setzero_si512(), low = high;
  for (int i = 0; i < 2 * side.layout.groups; i++) {
    high = _mm512_dpbusd_epi32(high, ones, _mm512_load_si512(operand + i * 128));
    low = _mm512_dpbusd_epi32(low, ones, _mm512_load_si512(operand + i * 128 + 64));
  }
  return static_cast<int32_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(join_digits(high, low)) / 4) * 128u);
}

template <int kBits, int kJv>
void score_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  const size_t bytes = query_operand_bytes(side.layout.stored);
  int32_t corrections[kMaxRows];
  for (int r = 0; r < rows; r++) corrections[r] = correction_of(side, operands + r * bytes);
  for (int tile = first_tile; tile < last_tile; tile++) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(tiles[tile]);
    int r = 0;
    const auto advance = [&](auto kernel, int count) {
      for (; r + count <= rows; r += count)
        kernel(side, words, r == 0 ? reinterpret_cast<const uint32_t*>(next[tile]) : words, operands + r * bytes, corrections + r, scores + r * kBlockTokens + tile * format::kTileTokens);
    };
    // As many rows as accumulators fit beside the eight expanded vectors.
    if constexpr (kJv == 4) advance(score_rows<kBits, kJv, 8>, 8);
    if constexpr (kJv >= 2) advance(score_rows<kBits, kJv, 4>, 4);
    advance(score_rows<kBits, kJv, 2>, 2);
    advance(score_rows<kBits, kJv, 1>, 1);
  }
}

template <int kBits>
void score_bits(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  if (side.layout.jv == 4) return score_jv<kBits, 4>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
  if (side.layout.jv == 2) return score_jv<kBits, 2>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
  score_jv<kBits, 1>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
}

// ---- value sums ----

// Bytes of 32 weights (64 bytes) that make the operand of half h, digit 0 = high, 1 = low.
struct BytePermutation {
  alignas(64) uint8_t byte[64];
};
template <int kBits, int kJv>
constexpr BytePermutation weight_bytes(int h, int digit) {
  BytePermutation p = {};
  for (int x = 0; x < 16; x++)
    for (int m = 0; m < 4; m++) p.byte[4 * x + m] = static_cast<uint8_t>(2 * weight_token(kBits, kJv, h, x, m) + 1 - digit);
  return p;
}

template <int kBits, int kJv>
TQ_INLINE void prepare_weights(int first_tile, int last_tile, const uint16_t* weights, uint8_t* operand) {
  static constexpr BytePermutation kPermutations[4] = {weight_bytes<kBits, kJv>(0, 0), weight_bytes<kBits, kJv>(0, 1), weight_bytes<kBits, kJv>(1, 0),
                                                       weight_bytes<kBits, kJv>(1, 1)};
  for (int tile = first_tile; tile < last_tile; tile++) {
    const V w = _mm512_loadu_si512(weights + tile * format::kTileTokens);
    for (int i = 0; i < 4; i++)
      _mm512_store_si512(operand + tile * 256 + i * 64, _mm512_permutexvar_epi8(_mm512_load_si512(kPermutations[i].byte), w));
  }
}

// kRows rows against an expanded word vector of the tiles: levels [tile][8].
template <int kJv, int kRows>
TQ_INLINE void accumulate_vector(const V* levels, int first_tile, int last_tile, const uint8_t* operands, int stored, int32_t* sums) {
  V high[kRows][4], low[kRows][4];
  for (int r = 0; r < kRows; r++)
    for (int s = 0; s < 4; s++) high[r][s] = low[r][s] = _mm512_setzero_si512();
  for (int tile = first_tile; tile < last_tile; tile++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 2
      for (int r = 0; r < kRows; r++) {
        const uint8_t* operand = operands + r * kWeightOperandBytes + tile * 256 + h * 128;
        const V w_high = _mm512_load_si512(operand), w_low = _mm512_load_si512(operand + 64);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
          const V level = levels[tile * 8 + 2 * s + h];
          high[r][s] = _mm512_dpbusd_epi32(high[r][s], w_high, level);
          low[r][s] = _mm512_dpbusd_epi32(low[r][s], w_low, level);
        }
      }
  for (int r = 0; r < kRows; r++)
    _mm512_store_si512(sums + r * stored, fold4<kJv>(join_digits(high[r][0], low[r][0]), join_digits(high[r][1], low[r][1]),
                                                     join_digits(high[r][2], low[r][2]), join_digits(high[r][3], low[r][3])));
}

template <int kBits, int kJv>
void accumulate_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                   uint8_t* work) {
  const format::SideLayout& layout = side.layout;
  const Tables tables = load_tables(side, 0);
  const int64_t plane = static_cast<int64_t>(layout.jb) * 32 * kJv;
  for (int r = 0; r < rows; r++) prepare_weights<kBits, kJv>(first_tile, last_tile, weights + r * kBlockTokens, work + r * kWeightOperandBytes);
  V expanded[kBlockTiles * 8];
  for (int vector = 0; vector < layout.jb * 2 * kJv; vector++) {
    for (int tile = first_tile; tile < last_tile; tile++) {
      V levels[8];
      expand<kBits>(tables, 0, reinterpret_cast<const uint32_t*>(tiles[tile]) + 16 * vector, plane, levels);
      prefetch_planes<kBits>(reinterpret_cast<const uint32_t*>(next[tile]) + 16 * vector, plane);
      for (int i = 0; i < 8; i++) expanded[tile * 8 + i] = levels[i];
    }
    int r = 0;
    for (; r + 2 <= rows; r += 2)
      accumulate_vector<kJv, 2>(expanded, first_tile, last_tile, work + r * kWeightOperandBytes, layout.stored, sums + r * layout.stored + 16 * vector);
    if (r < rows)
      accumulate_vector<kJv, 1>(expanded, first_tile, last_tile, work + r * kWeightOperandBytes, layout.stored, sums + r * layout.stored + 16 * vector);
  }
}

template <int kBits>
void accumulate_bits(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                     uint8_t* work) {
  if (side.layout.jv == 4) return accumulate_jv<kBits, 4>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
  if (side.layout.jv == 2) return accumulate_jv<kBits, 2>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
  accumulate_jv<kBits, 1>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
}

void score(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  constexpr decltype(&score_bits<2>) kByBits[] = {score_bits<2>, score_bits<3>, score_bits<4>, score_bits<5>, score_bits<6>, nullptr, score_bits<8>};
  kByBits[side.layout.bits - 2](side, tiles, next, first_tile, last_tile, operands, rows, scores);
}
void accumulate(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                uint8_t* work) {
  constexpr decltype(&accumulate_bits<2>) kByBits[] = {accumulate_bits<2>, accumulate_bits<3>, accumulate_bits<4>, accumulate_bits<5>,
                                                       accumulate_bits<6>, nullptr,            accumulate_bits<8>};
  kByBits[side.layout.bits - 2](side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
}

#undef TQ_INLINE
}  // namespace
}  // namespace vbmi
}  // namespace cpu
}  // namespace tq
HWY_POP_ATTRIBUTES

namespace tq {
namespace cpu {

Kernels with_vbmi(const Kernels& base) {
  Kernels kernels = base;
  kernels.name = "avx3_dl";
  kernels.prepare_query = prepare_query_digits;
  kernels.score = vbmi::score;
  kernels.accumulate = vbmi::accumulate;
  return kernels;
}

}  // namespace cpu
}  // namespace tq
#endif  // HWY_ARCH_X86
