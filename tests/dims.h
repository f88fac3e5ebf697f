// SPDX-License-Identifier: Apache-2.0
// head_dims that tests try: those with a codebook of their own, and some that are padded by more and take
// another's codebook (odd counts of 8 and of 4, odd factors 1, 3, 5, 7 of the stored dimension).
#pragma once

namespace tq {

constexpr int kTriedDims[] = {32,  64,  80, 96, 112, 128, 160, 192, 224, 256,
                              512, 576, 8,  40, 72,  100, 120, 136, 212};

}  // namespace tq
