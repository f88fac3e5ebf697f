// SPDX-License-Identifier: Apache-2.0
// Codes into the words of a tile (FORMAT.md section 4): whole tiles at once, or one token merged into words
// that hold others.
#pragma once
#include <stddef.h>

#include "format/scalar.h"

namespace tq {
namespace cpu {

// Codes format::kCodes[kIndex]: CodeKernels::pack and merge_token of every SIMD table.
template <size_t kIndex>
struct Packing {
  static void tile(const format::SideLayout& layout, format::Kind kind, const uint8_t* codes,
                   uint32_t* words);
  static void token(const format::SideLayout& layout, format::Kind kind, int token, const uint8_t* codes,
                    uint32_t* words);
};

}  // namespace cpu
}  // namespace tq
