// SPDX-License-Identifier: Apache-2.0
// Hashes of the single fields behind a part's identity, so that two parts whose identities differ can say
// where: a tq_state carries them. 32 bits each, for a text alone; the identity decides.
#pragma once
#include "state_part.h"

namespace tq {

constexpr int kStateFields = 16;
static_assert(sizeof tq_state{}.fields == kStateFields * sizeof(uint32_t), "");

void part_fields(const Identity& identity, const StatePart& part, uint32_t (&fields)[kStateFields]);
// The first field that differs, by its name in the configuration; null if none does, or if `given` is all
// zeros: of a caller who does not know them.
const char* differing_field(const uint32_t (&given)[kStateFields], const uint32_t (&own)[kStateFields]);

}  // namespace tq
