// SPDX-License-Identifier: Apache-2.0
// Sides by rows as floats: what attention reads of codes that have no integer kernels.
#pragma once
#include "requests.h"

namespace tq {
namespace cpu {

// Tokens 0 .. count - 1 of a tile's grouped side -> rows [count][width], exactly as format::decode_token,
// zeros from dim on. Reads up to 3 bytes behind a row; behind the last one lie the scales.
void expand_grouped(const format::SideLayout& side, const uint32_t* words, const uint16_t* scales, int count,
                    int width, float* rows);

}  // namespace cpu
}  // namespace tq
