// SPDX-License-Identifier: Apache-2.0
// Whether the search over quantisation steps needs one comparison a magnitude instead of one a level.
#pragma once
#include "format/codebook.h"

namespace tq::cuda::code {

constexpr float kWidestStep = 1.12f, kNarrowestStep = 0.88f;  // of format::step at 2 to 4 bits

// Whether the ranges over which the search's steps move two thresholds never meet (2 to 4 bits): a magnitude
// then has one threshold at most that steps decide upon. True of all built-in codebooks. The margin covers
// the rounding of threshold * step.
inline bool zones_apart(const format::Codebook& book) {
  constexpr float kMargin = 1.0001f;
  if (book.bits > 4) return false;
  for (int j = 1; j + 1 < book.count(); j++)
    if (book.threshold(j) * kWidestStep * kMargin >= book.threshold(j + 1) * kNarrowestStep) return false;
  return true;
}

}  // namespace tq::cuda::code
