// SPDX-License-Identifier: Apache-2.0
// The kernels of the CPU backend as one table of functions per instruction set, and their selection.
//
// Duty: everything that touches coordinates (rotation, codes, integer dot products, softmax weights, exact
// rows). The partition of work and the fold over blocks are in attend.cpp, and the same for every table.
// Integer results (codes, scales, score and value sums, operands excepted) are equal on all tables; float
// results agree to rounding. Rows never influence each other: a row's numbers are the same whatever rows
// stand beside it.
//
// The scalar table calls src/format and spells every sum out in coordinate order: it is the oracle of the
// others.
#pragma once
#include <utility>

#include "format/encode.h"
#include "format/record.h"
#include "requests.h"
#include "softmax_state.h"

namespace tq {
namespace cpu {

constexpr int kBlockTiles = 4;
// tokens that share one exact int32 value sum: 128 * 65535 * 128 < 2^31
constexpr int kBlockTokens = kBlockTiles * format::kTileTokens;
constexpr int kMaxLanes = 16;  // floats of the widest vector
constexpr int kMaxRows = 32;   // query rows that one call of a kernel serves
// softmax weights are unsigned 16-bit integers relative to the largest of a block
constexpr int kWeightMax = 65535;

// 2^100: beyond it logits count as equal, and differences stay finite
constexpr float kLogitLimit = 1.2676506e30f;
// p * value_scale is taken times 2^24, so that the reciprocal of the largest stays finite down to the
// smallest stored scale, about 2^-112.
constexpr float kWeightShift = 16777216.0f;
constexpr float kMinWeight = 7.7037198e-34f;  // 2^-110, after the shift

// Query integers: |sum q * level| <= D * 127.5 * q_max < 2^31.
constexpr int query_max(int stored) { return stored <= 512 ? 32512 : 28672; }
static_assert(512ll * 128 * 32512 < (1ll << 31) && 576ll * 128 * 28672 < (1ll << 31), "scores fit int32");
static_assert(static_cast<int64_t>(kBlockTokens) * kWeightMax * 128 < (1ll << 31), "value sums fit int32");

// A coded side of one layer.
struct CodedSide {
  // level byte of code i mod 2^bits (bits <= 6), or of trellis index i mod 2^(bits + 1)
  alignas(64) int8_t levels[64];
  alignas(64) int8_t levels_high[64];  // of code (i / 4) mod 4, 2 bits only
  format::SideLayout layout;
  int code_index;  // of the side's code
  Kind kind;
  bool half;  // the level is the byte + 1/2

  // Level byte of a code, or of a trellis index.
  int level(uint8_t code) const { return layout.bits == 8 ? static_cast<int8_t>(code) : levels[code]; }

  // A code by rows makes a side without levels and kernels.
  CodedSide(int dim, format::CodeId code, Kind side, const format::Codebook& book);
};

// Value sums and the o vector of a coded side stand in kernel order: 16 consecutive entries are one 64-byte
// vector of words, summed over the four lanes of a coordinate. This is the coordinate of entry `index`.
int value_coordinate(const format::SideLayout& layout, int index);

// Bytes of one row's query operand, and of the weight operands of one row and block.
constexpr size_t query_operand_bytes(int stored) { return static_cast<size_t>(stored) * 8 + 64; }
// int32, see operands.h
constexpr size_t query_correction_offset(int stored) { return static_cast<size_t>(stored) * 8; }
constexpr size_t kWeightOperandBytes = kBlockTiles * 256;
constexpr size_t kAccumulateWork = kMaxRows * kWeightOperandBytes;  // scratch of `accumulate`

// One row against one block of up to 128 tokens.
struct RowBlock {
  int begin, end;  // visible tokens of the block
  float half_sum;  // added to the integer score: sum(q_int) / 2 for half-integer codebooks, else 0
  float factor;    // logit in log2 units per unit of (score x key scale)
  float constant;  // added to the logit: the key centre's share
  float softcap;   // natural units, 0 = off
  // [kBlockTokens] or null: added to the logit behind the soft-cap, at most kLogitLimit in size; -inf: the
  // token is not visible. Some token from begin on is.
  const float* bias;
};

// Keys or values of a block that are kept exactly, as float32, float16 or bfloat16 rows [dim], finite where
// they are written; dim is a multiple of kMaxLanes. tiles[i] is token 32 i of the block; next[i] is the tile
// that is read after it, to be brought near meanwhile (or any other, tiles[i] itself too).
struct ExactSide {
  DataType type;
  int dim;
  const uint8_t* tiles[kBlockTiles];
  const uint8_t* next[kBlockTiles];
};

struct BlockWeights {
  float unit;      // value of one unit of a weight x level
  float half_sum;  // sum(weights) / 2 for half-integer codebooks, else 0
};

// What is done with one code; empty for codes by rows, which are read as floats.
struct CodeKernels {
  // codes [32][stored] -> all words of a tile's side.
  void (*pack)(const format::SideLayout& layout, Kind kind, const uint8_t* codes, uint32_t* words);
  // codes [stored] of one token into words that hold others.
  void (*merge_token)(const format::SideLayout& layout, Kind kind, int token, const uint8_t* codes,
                      uint32_t* words);

  // Null, or what turns the words of a tile's side into selectors [opened_words], 64-byte aligned, which are
  // then what score and accumulate are given: a code whose level depends on its neighbours is looked at once,
  // whatever the number of rows.
  void (*open)(const CodedSide& side, const uint8_t* words, uint32_t* selectors);

  // Integers over codes. tiles[i] is the side's first word of tile i of the block, opened if there is `open`,
  // for first_tile <= i < last_tile; next[i] is where the same side of a later block lies, to be brought into
  // the cache meanwhile (tiles[i] itself if there is none). q [stored] -> operand [query_operand_bytes],
  // 64-byte aligned.
  void (*prepare_query)(const CodedSide& side, const int16_t* q, uint8_t* operand);
  // scores[r * kBlockTokens + token] = sum q * level byte. operands: [rows][query_operand_bytes].
  void (*score)(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                int first_tile, int last_tile, const uint8_t* operands, int rows, int32_t* scores);
  // sums[r * stored + entry] = sum weight * level byte over the given tiles, entries in kernel order.
  // weights: [rows][kBlockTokens].
  void (*accumulate)(const CodedSide& side, const uint8_t* const* tiles, const uint8_t* const* next,
                     int first_tile, int last_tile, const uint16_t* weights, int rows, int32_t* sums,
                     uint8_t* work);
};

struct CodeTable {
  CodeKernels entry[format::kNumCodes];  // by format::code_index
};

// Selectors of an opened side: four planes of nibbles, the low bits of an index, and one of the fifth bit.
constexpr int opened_planes(int bits) { return bits == 4 ? 5 : 4; }
constexpr int opened_words(const format::SideLayout& layout) {
  return layout.family == format::CodeFamily::kTrellis ? opened_planes(layout.bits) * layout.stored : 0;
}

// The one way from a code to its kernels: Of<index in kCodes>::kernels() for every code that has some.
template <template <size_t> class Of, size_t kIndex>
constexpr CodeKernels code_entry() {
  constexpr format::CodeId kCode = format::kCodes[kIndex];
  if constexpr (kCode.raw())
    return CodeKernels{};
  else
    return Of<kIndex>::kernels();
}
template <template <size_t> class Of, size_t... kIndex>
constexpr CodeTable code_table(std::index_sequence<kIndex...>) {
  return CodeTable{{code_entry<Of, kIndex>()...}};
}
template <template <size_t> class Of>
constexpr CodeTable code_table() {
  return code_table<Of>(std::make_index_sequence<format::kNumCodes>());
}

struct Kernels {
  const char* name;
  CodeTable codes;

  const CodeKernels& of(const CodedSide& side) const { return codes.entry[side.code_index]; }

  // ---- vectors ----
  // x [dim, zeros up to a multiple of 16]; 64-byte aligned y and scratch. Exactly format::rotate_input and
  // format::encode_vector.
  format::RotatedInput (*rotate_input)(const format::VectorCoder& coder, const float* x, float* y,
                                       float* scratch);
  bool (*encode)(const format::VectorCoder& coder, const float* x, uint8_t* codes, uint16_t* scale);
  // y [stored] = orthonormal rotation of x [dim]. |x_i| <= 2.
  void (*rotate)(const format::VectorCoder& coder, const float* x, float* y);
  // Exactly format::unrotate: y [stored] (destroyed) -> x [dim].
  void (*unrotate)(const format::VectorCoder& coder, float* y, float* x);
  // dtype <-> float; to float16 rounds to nearest even and saturates at 65504, to bfloat16 rounds to nearest
  // even.
  void (*to_float)(DataType type, const void* source, int64_t count, float* target);
  void (*from_float)(DataType type, const float* source, int64_t count, void* target);

  // ---- floats ----
  // Turns scores (int32, or float dot products) into p = 2^(logit - new maximum), 0 outside begin..end,
  // updates the state and returns the factor of the earlier o. key_scales may be null (ones). value_scales,
  // already times kWeightShift, may be null; else p is multiplied by them once its sum is taken, and *largest
  // is the largest product.
  float (*softmax)(const RowBlock& row, const int32_t* scores, const float* key_scales,
                   const float* value_scales, SoftmaxState* state, float* p, float* largest);
  float (*softmax_dots)(const RowBlock& row, const float* dots, const float* key_scales,
                        const float* value_scales, SoftmaxState* state, float* p, float* largest);
  // weights = rint(p / unit) of products p from softmax, unit = largest / kWeightMax; all 0 if the largest is
  // below kMinWeight.
  BlockWeights (*weigh)(const float* p, float largest, bool half, uint16_t* weights);
  // o = o * alpha + (sums + half_sum) * unit.
  void (*update)(float* o, const int32_t* sums, int count, float alpha, BlockWeights weights);
  // dots[r * kBlockTokens + i] = q[r * stride ..] . token i for begin <= i < end; others of the same tiles
  // come to hold anything. No token outside begin .. end - 1 is read.
  void (*dot_tokens)(const ExactSide& side, int begin, int end, const float* q, int stride, int rows,
                     float* dots);
  // o[r] = o[r] * alpha[r] + sum p[r][i] * token i for begin <= i < end, in this order; alpha 0 never reads
  // o. No other token is read.
  void (*add_tokens)(const ExactSide& side, int begin, int end, const float* const* p, const float* alpha,
                     int rows, float* const* o);
  // y = a * y + b * x, a = 0 never reads y.
  void (*combine)(float* y, float a, const float* x, float b, int count);

  // ---- records of vectors on their own (format/record.h) ----
  // Exactly format::unpack_codes, for a count that is a multiple of 16.
  void (*unpack_codes)(const uint8_t* packed, int bits, int count, uint8_t* codes);
  // values[i] = twice the level of codes[i], for i < count, a multiple of 16; 64-byte aligned.
  void (*double_levels)(const format::Codebook& book, const uint8_t* codes, int count, int16_t* values);
  // sums[r] = sum over i < count of q[r * stride + i] * values[i], exact. |q| <= 32767, |values| <= 255; all
  // 64-byte aligned, count and stride multiples of 32.
  void (*dot_values)(const int16_t* q, int64_t stride, int rows, const int16_t* values, int count,
                     int64_t* sums);
};

// ---- selection ----
constexpr int kMaxIsas = 8;
// Tables compiled in and usable on this machine, best last; the first is "scalar". Returns their number.
int supported_kernels(const Kernels** tables);
// The table of a name, or of the environment variable TQKV_CPU_ISA when name is null, or the best. Throws
// tq::Error naming the choices.
const Kernels& select_kernels(const char* name);

}  // namespace cpu
}  // namespace tq
