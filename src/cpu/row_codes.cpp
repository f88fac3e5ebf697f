// SPDX-License-Identifier: Apache-2.0
// See row_codes.h. Codes of any width are taken four at a time from a 32-bit word; a group begins at a whole
// byte, since its first coordinate is a multiple of 16.
#include "cpu/row_codes.h"

#include <string.h>

#include <algorithm>

#include "format/grouped.h"

namespace tq {
namespace cpu {
namespace {

template <int kBits>
void expand_group(const uint8_t* codes, int count, format::GroupScale group, float* x) {
  const float scale = format::float_from_f16(group.scale), zero = format::float_from_f16(group.zero);
  for (int i = 0; i < count; i += 4) {
    uint32_t four;
    memcpy(&four, codes + i * kBits / 8, sizeof four);
    four >>= i * kBits % 8;
    for (int j = 0; j < 4; j++)
      x[i + j] = format::add_rn(
          format::mul_rn(scale, static_cast<float>(four >> j * kBits & ((1u << kBits) - 1))), zero);
  }
}

using ExpandGroup = void (*)(const uint8_t* codes, int count, format::GroupScale group, float* x);
constexpr ExpandGroup kExpand[] = {nullptr, nullptr, expand_group<2>, expand_group<3>, expand_group<4>,
                                   nullptr, nullptr, nullptr,         expand_group<8>};
static_assert(format::kMaxDim % 4 == 0, "four codes at a time");

}  // namespace

void expand_grouped(const format::SideLayout& side, const uint32_t* words, const uint16_t* scales, int count,
                    int width, float* rows) {
  const ExpandGroup expand = kExpand[side.bits];
  for (int token = 0; token < count; token++, rows += width, scales += side.scales_per_token()) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(words + token * side.row_words());
    for (int i = 0; i < side.num_groups(); i++) {
      const int first = i * side.group;
      expand(row + first * side.bits / 8, std::min(side.group, side.dim - first),
             format::GroupScale{scales[2 * i], scales[2 * i + 1]}, rows + first);
    }
    std::fill(rows + side.dim, rows + width, 0.0f);
  }
}

}  // namespace cpu
}  // namespace tq
