// SPDX-License-Identifier: Apache-2.0
// Pieces of the texts that reject a configuration.
#pragma once
#include <stdio.h>

namespace tq {

// "32 64 80 ...": the list in a message is the list in the code.
template <int n>
struct ListText {
  char text[16 * n];
  explicit ListText(const int (&values)[n]) {
    size_t used = 0;
    for (int value : values)
      used += static_cast<size_t>(snprintf(text + used, sizeof text - used, used ? " %d" : "%d", value));
  }
};

}  // namespace tq
