// SPDX-License-Identifier: Apache-2.0
// Codes into the words of a tile (FORMAT.md section 4): whole tiles at once, or one token merged into words
// that hold others.
#pragma once
#include "format/scalar.h"

namespace tq {
namespace cpu {

// codes [32][stored] -> every word of the side.
void pack_tile(const format::SideLayout& layout, format::Kind kind, const uint8_t* codes, uint32_t* words);
// codes [stored] of one token; the bits of other tokens stay as they are.
void merge_token(const format::SideLayout& layout, format::Kind kind, int token, const uint8_t* codes,
                 uint32_t* words);

}  // namespace cpu
}  // namespace tq
