// SPDX-License-Identifier: Apache-2.0
// Integer dot products over codes with AVX-512 VBMI and VNNI (Ice Lake, Zen 4 and later).
//
// Look-up: vpermb reads the low 6 bits of each byte, so a table that repeats with the code's period makes the
// neighbouring bits irrelevant: 2- and 3-bit codes need about two operations per 64 codes, 4 bits three and a
// half, 5 bits four, 6 bits six. Dot: vpdpbusd, u8 x s8, four products per dword. Keys: level + 128 (folded
// into the table) times the signed digits of q, less 128 * sum(q). Values: the digits of the unsigned weights
// times the level. Everything is exact modulo 2^32 and the true sums fit int32 (kernels.h).
//
// Of about 21 ns a token at 8 rows of 4+4 bits (Zen 5, in cache) the 64 vpdpbusd take 9, the expansions with
// their loads and fetches 5, softmax and weights 3. Tried without gain: the expansion as a function of its
// own between the loops over rows (4 rows a tenth slower, 8 as fast), and besides the fetches of the next
// block in equal shares beside the products (the same).
//
// Highway 1.0.3 has none of these operations.
#include "cpu/kernels/vbmi.h"

#include <string.h>

#include "cpu/kernels/vbmi_expand.h"
#include "hwy/detect_targets.h"

#if HWY_TARGETS & HWY_AVX3  // as in select.cpp
HWY_PUSH_ATTRIBUTES(TQ_VBMI_TARGET)
namespace tq {
namespace cpu {
namespace vbmi {
namespace {

// ---- scores ----

// What kRows rows have on one load against kVectors expanded vectors, put (first load) or added to
// partials[row][class][vector]. Rows and vectors share loads: with 16 sums in registers a product costs 5/8
// of a load, and loads would be the limit.
template <int kJv, int kRows, int kVectors>
TQ_INLINE void score_expanded(const V* levels, const uint8_t* operand, size_t operand_bytes, bool first,
                              V* partials) {
  constexpr int kClasses = 4 / kJv;
  V high[kRows][kVectors][kClasses], low[kRows][kVectors][kClasses];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++)
      for (int c = 0; c < kClasses; c++) high[r][v][c] = low[r][v][c] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kJv; i++)  // coordinate block i / 2 of the load, half i mod 2
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const V q_high = _mm512_load_si512(operand + r * operand_bytes + i * 128),
              q_low = _mm512_load_si512(operand + r * operand_bytes + i * 128 + 64);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++)
#pragma GCC unroll 4
        for (int c = 0; c < kClasses; c++) {
          const V level = levels[8 * v + 2 * c * kJv + i];
          high[r][v][c] = _mm512_dpbusd_epi32(high[r][v][c], level, q_high);
          low[r][v][c] = _mm512_dpbusd_epi32(low[r][v][c], level, q_low);
        }
    }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++)
      for (int c = 0; c < kClasses; c++) {
        V& sum = partials[r * 8 + c * 2 * kJv + v];
        const V joined = join_digits(high[r][v][c], low[r][v][c]);
        sum = first ? joined : _mm512_add_epi32(sum, joined);
      }
}

// The same, not inlined: the compiler would keep all levels in registers and load q once for each product
// instead.
template <int kJv, int kRows, int kVectors>
__attribute__((noinline)) void score_rows(const V* levels, const uint8_t* operand, size_t operand_bytes,
                                          bool first, V* partials) {
  score_expanded<kJv, kRows, kVectors>(levels, operand, operand_bytes, first, partials);
}

// One tile against 1, 2 or 4 rows: expanded vectors stay in registers.
template <size_t kIndex, int kJv, int kRows>
TQ_INLINE void score_few(const CodedSide& side, const uint32_t* words, const uint32_t* next,
                         const uint8_t* operands, V* partials) {
  const Tables tables = load_tables(side, 0x80);
  const int64_t plane = static_cast<int64_t>(side.layout.jb) * 32 * kJv;
  for (int vector = 0; vector < 2 * kJv; vector++)
    for (int jb = 0; jb < side.layout.jb; jb++) {
      const int64_t at = jb * 32 * kJv + 16 * vector;
      V levels[8];
      expand<kIndex, kJv>(tables, 0x80, words + at, plane, levels);
      prefetch_planes<format::kCodes[kIndex].bits>(next + at, plane);
      score_expanded<kJv, kRows, 1>(levels, operands + jb * kJv * 256,
                                    query_operand_bytes(side.layout.stored), jb == 0, partials + vector);
    }
}

// More rows: vectors are expanded in pairs into the cache.
template <size_t kIndex, int kJv>
TQ_INLINE void score_many(const CodedSide& side, const uint32_t* words, const uint32_t* next,
                          const uint8_t* operands, int rows, V* partials) {
  constexpr int kVectors = kJv == 1 ? 1 : 2, kRows = kJv == 4 ? 4 : 2;
  const Tables tables = load_tables(side, 0x80);
  const int64_t plane = static_cast<int64_t>(side.layout.jb) * 32 * kJv;
  const size_t bytes = query_operand_bytes(side.layout.stored);
  V expanded[8 * kVectors];
  for (int vector = 0; vector < 2 * kJv; vector += kVectors)
    for (int jb = 0; jb < side.layout.jb; jb++) {
      for (int v = 0; v < kVectors; v++) {
        const int64_t at = jb * 32 * kJv + 16 * (vector + v);
        V levels[8];
        expand<kIndex, kJv>(tables, 0x80, words + at, plane, levels);
        prefetch_planes<format::kCodes[kIndex].bits>(next + at, plane);
        for (int i = 0; i < 8; i++) expanded[8 * v + i] = levels[i];
      }
      const uint8_t* operand = operands + jb * kJv * 256;
      int r = 0;
      for (; r + kRows <= rows; r += kRows)
        score_rows<kJv, kRows, kVectors>(expanded, operand + r * bytes, bytes, jb == 0,
                                         partials + r * 8 + vector);
      for (; r < rows; r++)
        score_rows<kJv, 1, kVectors>(expanded, operand + r * bytes, bytes, jb == 0,
                                     partials + r * 8 + vector);
    }
}

template <size_t kIndex, int kJv>
void score_tile(const CodedSide& side, const uint32_t* words, const uint32_t* next, const uint8_t* operands,
                int rows, int32_t* scores) {
  static constexpr Permutation kTokens0 = token_step<kJv>(0), kTokens1 = token_step<kJv>(1);
  V partials[kMaxRows * 8];
  if (rows == 1) score_few<kIndex, kJv, 1>(side, words, next, operands, partials);
  if (rows == 2) score_few<kIndex, kJv, 2>(side, words, next, operands, partials);
  if (kJv == 4 && rows == 4) score_few<kIndex, kJv, kJv == 4 ? 4 : 1>(side, words, next, operands, partials);
  if (rows == 3 || rows > 4 || (kJv < 4 && rows == 4))
    score_many<kIndex, kJv>(side, words, next, operands, rows, partials);
  for (int r = 0; r < rows; r++) {
    const V* p = partials + r * 8;
    int32_t bias;  // 128 * sum(q)
    memcpy(
        &bias,
        operands + r * query_operand_bytes(side.layout.stored) + query_correction_offset(side.layout.stored),
        4);
    const V a = fold4<kJv>(p[0], p[1], p[2], p[3]), b = fold4<kJv>(p[4], p[5], p[6], p[7]),
            correction = _mm512_set1_epi32(bias);
    _mm512_store_si512(scores + r * kBlockTokens, _mm512_sub_epi32(permute2(kTokens0, a, b), correction));
    _mm512_store_si512(scores + r * kBlockTokens + 16,
                       _mm512_sub_epi32(permute2(kTokens1, a, b), correction));
  }
}

template <size_t kIndex, int kJv>
void score_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next, int first_tile,
              int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  for (int tile = first_tile; tile < last_tile; tile++)
    score_tile<kIndex, kJv>(side, reinterpret_cast<const uint32_t*>(tiles[tile]),
                            reinterpret_cast<const uint32_t*>(next[tile]), operands, rows,
                            scores + tile * format::kTileTokens);
}

template <size_t kIndex>
void score_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores) {
  if (side.layout.jv == 4)
    return score_jv<kIndex, 4>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
  if (side.layout.jv == 2)
    return score_jv<kIndex, 2>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
  score_jv<kIndex, 1>(side, tiles, next, first_tile, last_tile, operands, rows, scores);
}

// ---- value sums ----

// Bytes of 32 weights (64 bytes) that make the operand of half h, digit 0 = high, 1 = low.
struct BytePermutation {
  alignas(64) uint8_t byte[64];
};
template <size_t kIndex, int kJv>
constexpr BytePermutation weight_bytes(int h, int digit) {
  BytePermutation p = {};
  for (int x = 0; x < 16; x++)
    for (int m = 0; m < 4; m++)
      p.byte[4 * x + m] =
          static_cast<uint8_t>(2 * weight_token(format::kCodes[kIndex], kJv, h, x, m) + 1 - digit);
  return p;
}

template <size_t kIndex, int kJv>
TQ_INLINE void prepare_weights(int first_tile, int last_tile, const uint16_t* weights, uint8_t* operand) {
  static constexpr BytePermutation kPermutations[4] = {
      weight_bytes<kIndex, kJv>(0, 0), weight_bytes<kIndex, kJv>(0, 1), weight_bytes<kIndex, kJv>(1, 0),
      weight_bytes<kIndex, kJv>(1, 1)};
  for (int tile = first_tile; tile < last_tile; tile++) {
    const V w = _mm512_loadu_si512(weights + tile * format::kTileTokens);
    for (int i = 0; i < 4; i++)
      _mm512_store_si512(operand + tile * 256 + i * 64,
                         _mm512_permutexvar_epi8(_mm512_load_si512(kPermutations[i].byte), w));
  }
}

// Sums of kRows rows over the tiles: 8 kRows registers.
template <int kRows>
struct ValueSums {
  V high[kRows][4], low[kRows][4];

  TQ_INLINE void clear() {
    for (int r = 0; r < kRows; r++)
      for (int s = 0; s < 4; s++) high[r][s] = low[r][s] = _mm512_setzero_si512();
  }
  // levels: the eight vectors of one tile; operands: that tile's weights of the first row.
  TQ_INLINE void add(const V* levels, const uint8_t* operands) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 2
      for (int r = 0; r < kRows; r++) {
        const uint8_t* operand = operands + r * kWeightOperandBytes + h * 128;
        const V w_high = _mm512_load_si512(operand), w_low = _mm512_load_si512(operand + 64);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
          high[r][s] = _mm512_dpbusd_epi32(high[r][s], w_high, levels[2 * s + h]);
          low[r][s] = _mm512_dpbusd_epi32(low[r][s], w_low, levels[2 * s + h]);
        }
      }
  }
  template <int kJv>
  TQ_INLINE void store(int stored, int32_t* sums) const {
    for (int r = 0; r < kRows; r++)
      _mm512_store_si512(sums + r * stored,
                         fold4<kJv>(join_digits(high[r][0], low[r][0]), join_digits(high[r][1], low[r][1]),
                                    join_digits(high[r][2], low[r][2]), join_digits(high[r][3], low[r][3])));
  }
};

// Values of one call, and where the prepared weights are.
struct ValueJob {
  const CodedSide& side;
  const uint8_t* const* tiles;
  const uint8_t* const* next;
  int first_tile, last_tile;
  const uint8_t* operands;
  int rows;
  int32_t* sums;
};

template <size_t kIndex, int kJv>
TQ_INLINE void expand_values(const ValueJob& job, const Tables& tables, int tile, int vector,
                             V (&levels)[8]) {
  const int64_t plane = static_cast<int64_t>(job.side.layout.jb) * 32 * kJv;
  expand<kIndex, kJv>(tables, 0, reinterpret_cast<const uint32_t*>(job.tiles[tile]) + 16 * vector, plane,
                      levels);
  prefetch_planes<format::kCodes[kIndex].bits>(
      reinterpret_cast<const uint32_t*>(job.next[tile]) + 16 * vector, plane);
}

// One or two rows: the expanded vectors stay in registers.
template <size_t kIndex, int kJv, int kRows>
TQ_INLINE void accumulate_few(const ValueJob& job) {
  const Tables tables = load_tables(job.side, 0);
  const int stored = job.side.layout.stored;
  for (int vector = 0; vector < stored / 16; vector++) {
    ValueSums<kRows> sums;
    sums.clear();
    for (int tile = job.first_tile; tile < job.last_tile; tile++) {
      V levels[8];
      expand_values<kIndex, kJv>(job, tables, tile, vector, levels);
      sums.add(levels, job.operands + tile * 256);
    }
    sums.template store<kJv>(stored, job.sums + 16 * vector);
  }
}

// More rows: each word vector of the block is expanded once, into the cache.
template <size_t kIndex, int kJv>
TQ_INLINE void accumulate_many(const ValueJob& job) {
  const Tables tables = load_tables(job.side, 0);
  const int stored = job.side.layout.stored;
  V expanded[kBlockTiles * 8];
  for (int vector = 0; vector < stored / 16; vector++) {
    for (int tile = job.first_tile; tile < job.last_tile; tile++) {
      V levels[8];
      expand_values<kIndex, kJv>(job, tables, tile, vector, levels);
      for (int i = 0; i < 8; i++) expanded[tile * 8 + i] = levels[i];
    }
    const auto run = [&](auto sums, int r) __attribute__((always_inline)) {
      sums.clear();
      for (int tile = job.first_tile; tile < job.last_tile; tile++)
        sums.add(expanded + tile * 8, job.operands + r * kWeightOperandBytes + tile * 256);
      sums.template store<kJv>(stored, job.sums + r * stored + 16 * vector);
    };
    int r = 0;
    for (; r + 2 <= job.rows; r += 2) run(ValueSums<2>(), r);
    if (r < job.rows) run(ValueSums<1>(), r);
  }
}

template <size_t kIndex, int kJv>
void accumulate_jv(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                   int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                   uint8_t* work) {
  for (int r = 0; r < rows; r++)
    prepare_weights<kIndex, kJv>(first_tile, last_tile, weights + r * kBlockTokens,
                                 work + r * kWeightOperandBytes);
  const ValueJob job = {side, tiles, next, first_tile, last_tile, work, rows, sums};
  if (rows == 1) return accumulate_few<kIndex, kJv, 1>(job);
  if (rows == 2) return accumulate_few<kIndex, kJv, 2>(job);
  accumulate_many<kIndex, kJv>(job);
}

template <size_t kIndex>
void accumulate_code(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                     int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                     uint8_t* work) {
  if (side.layout.jv == 4)
    return accumulate_jv<kIndex, 4>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
  if (side.layout.jv == 2)
    return accumulate_jv<kIndex, 2>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
  accumulate_jv<kIndex, 1>(side, tiles, next, first_tile, last_tile, weights, rows, sums, work);
}

// The integers of a code, the rest empty.
template <size_t kIndex>
struct VbmiCode {
  static constexpr CodeKernels kernels() {
    return {nullptr, nullptr, nullptr, prepare_query_digits, score_code<kIndex>, accumulate_code<kIndex>};
  }
};

#undef TQ_INLINE
}  // namespace
}  // namespace vbmi
}  // namespace cpu
}  // namespace tq
HWY_POP_ATTRIBUTES

namespace tq {
namespace cpu {

Kernels with_vbmi(const Kernels& base) {
  constexpr CodeTable kIntegers = code_table<vbmi::VbmiCode>();
  Kernels kernels = base;
  kernels.name = "avx3_dl";
  for (int i = 0; i < format::kNumCodes; i++) {
    kernels.codes.entry[i].prepare_query = kIntegers.entry[i].prepare_query;
    kernels.codes.entry[i].score = kIntegers.entry[i].score;
    kernels.codes.entry[i].accumulate = kIntegers.entry[i].accumulate;
  }
  return kernels;
}

}  // namespace cpu
}  // namespace tq
#endif  // HWY_TARGETS & HWY_AVX3
