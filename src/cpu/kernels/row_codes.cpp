// SPDX-License-Identifier: Apache-2.0
// See row_codes.h. Codes of any width are taken four at a time from a 32-bit word: groups, and the signs of a
// prod row, begin at whole bytes, since the first coordinate of a group is a multiple of 16 and the stored
// dimension one of 32.
#include "cpu/kernels/row_codes.h"

#include <string.h>

#include <algorithm>

namespace tq {
namespace cpu {
namespace {

using format::CodeFamily;

// value(code) of `count` codes, a multiple of 4 -> x.
template <int kBits, typename Value>
void expand_codes(const uint8_t* codes, int count, float* x, const Value& value) {
  for (int i = 0; i < count; i += 4) {
    uint32_t four;
    memcpy(&four, codes + i * kBits / 8, sizeof four);
    four >>= i * kBits % 8;  // leaves 4 kBits of them: i is a multiple of 4
    for (int j = 0; j < 4; j++) x[i + j] = value(four >> j * kBits & ((1u << kBits) - 1));
  }
}
// The same for a width that is known as the program runs.
template <typename Value>
void expand_codes(int bits, const uint8_t* codes, int count, float* x, const Value& value) {
  switch (bits) {
    case 1: return expand_codes<1>(codes, count, x, value);
    case 2: return expand_codes<2>(codes, count, x, value);
    case 3: return expand_codes<3>(codes, count, x, value);
    case 4: return expand_codes<4>(codes, count, x, value);
    case 5: return expand_codes<5>(codes, count, x, value);
    case 6: return expand_codes<6>(codes, count, x, value);
    case 7: return expand_codes<7>(codes, count, x, value);
    default: return expand_codes<8>(codes, count, x, value);
  }
}

void expand_grouped(const format::SideLayout& side, const uint8_t* row, const uint16_t* scales, float* x) {
  for (int i = 0; i < side.num_groups(); i++) {
    const int first = i * side.group;
    const float scale = format::float_from_f16(scales[2 * i]),
                zero = format::float_from_f16(scales[2 * i + 1]);
    expand_codes(
        side.bits, row + first * side.bits / 8, std::min(side.group, side.dim - first), x + first,
        [&](uint32_t code) { return format::add_rn(format::mul_rn(scale, static_cast<float>(code)), zero); });
  }
}

void expand_levels(const format::RowCoder& coder, const format::SideLayout& side, const uint8_t* row,
                   const uint16_t* scales, float* x) {
  const format::RowScales by = format::row_scales(coder, side, scales);
  const int bits = format::row_code_bits(side);
  float level[format::kMaxLevels];
  for (int code = 0; code < 1 << bits; code++)
    level[code] = format::mul_rn(by.code, format::row_level(coder, static_cast<uint8_t>(code)));
  expand_codes(bits, row, side.stored, x, [&](uint32_t code) { return level[code]; });
  if (side.family != CodeFamily::kProd) return;
  expand_codes<1>(row + side.stored * bits / 8, side.stored, x + side.stored,
                  [&](uint32_t minus) { return minus ? -by.sign : by.sign; });
}

// Rotated input and codes of a token, with the scale in scales[0].
void encode_codes(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
                  const float* x, uint8_t* codes, uint16_t* scales, Noticed* noticed) {
  if (side.family != CodeFamily::kLevels) {
    noticed->replaced |= kernels.encode(coder.vector, x, codes, scales);
    return;
  }
  alignas(64) float y[format::kMaxDim], scratch[format::kMaxDim];
  const format::RotatedInput in = kernels.rotate_input(coder.vector, x, y, scratch);
  noticed->replaced |= in.replaced;
  scales[0] = 0;
  std::fill_n(codes, side.stored, static_cast<uint8_t>(0));
  if (in.zero) return;
  const float s = format::encode_levels(coder.vector, *coder.levels, y, codes, scratch);
  scales[0] =
      format::bf16_from_float(format::mul_rn(format::mul_rn(s, in.norm_rot), format::exp2_int(in.exponent)));
}

// The rotation is made again, once for the codes and once here: a small part of the codes' own work.
void encode_sketch(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
                   const float* x, const uint8_t* codes, uint16_t* scales, uint8_t* signs) {
  alignas(64) float y[format::kMaxDim], w[format::kMaxDim];
  std::fill_n(signs, side.stored, static_cast<uint8_t>(0));
  scales[1] = 0;
  const format::RotatedInput in = kernels.rotate_input(coder.vector, x, y, w);
  if (in.zero) return;
  float level[format::kMaxLevels];
  for (int code = 0; code < 1 << format::row_code_bits(side); code++)
    level[code] = format::row_level(coder, static_cast<uint8_t>(code));
  format::residual(in, codes, level, format::float_from_bf16(scales[0]), side.stored, y);
  scales[1] = format::residual_norm(y, side.stored, in.exponent, w);
  format::apply_sketch(coder.sketch, y, w, kernels.rotate);
  for (int i = 0; i < side.stored; i++) signs[i] = w[i] < 0 ? 1 : 0;
}

}  // namespace

void encode_row(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
                const float* x, uint32_t* row, uint16_t* scales, Noticed* noticed) {
  if (side.family == CodeFamily::kGrouped) {
    noticed->replaced |= format::encode_grouped_token(
        side, x, row, reinterpret_cast<format::GroupScale*>(scales), &noticed->saturated);
    return;
  }
  alignas(64) uint8_t codes[format::kMaxDim], signs[format::kMaxDim];
  const int bits = format::row_code_bits(side);
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(row);
  encode_codes(kernels, coder, side, x, codes, scales, noticed);
  format::pack_codes(codes, bits, side.stored, bytes);
  if (side.family != CodeFamily::kProd) return;
  encode_sketch(kernels, coder, side, x, codes, scales, signs);
  format::pack_codes(signs, 1, side.stored, bytes + side.stored * bits / 8);
}

void expand_rows(const format::RowCoder& coder, const format::SideLayout& side, const uint32_t* words,
                 const uint16_t* scales, int count, float* rows) {
  for (int token = 0; token < count; token++) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(words + token * side.row_words());
    const uint16_t* own = scales + token * side.scales_per_token();
    float* x = rows + static_cast<int64_t>(token) * row_width(side);
    if (side.family == CodeFamily::kGrouped) {
      expand_grouped(side, row, own, x);
      std::fill(x + side.dim, x + row_width(side), 0.0f);
    } else {
      expand_levels(coder, side, row, own, x);
    }
  }
}

// <q, k> = <q, levels> + <S q, signs>, all in rotated space.
void query_row(const Kernels& kernels, const format::RowCoder& coder, const format::SideLayout& side,
               const float* rotated, float* query) {
  std::copy(rotated, rotated + side.stored, query);
  if (side.family == CodeFamily::kProd)
    format::apply_sketch(coder.sketch, rotated, query + side.stored, kernels.rotate);
}

}  // namespace cpu
}  // namespace tq
