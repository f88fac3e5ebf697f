// SPDX-License-Identifier: Apache-2.0
// Pieces of the texts that reject a configuration.
#pragma once
#include <stdio.h>

#include "status.h"

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

// wrong layers with reasons of their own; the text has room for all fields, not for all layers
inline constexpr int32_t kLayersNamed = 4;

// Reasons against single layers, as many as are named.
class LayerReasons {
 public:
  explicit LayerReasons(ReasonList& reasons) : reasons_(reasons) {}
  ~LayerReasons() {
    if (wrong_ > kLayersNamed)
      reasons_.add(Status::kInvalidArgument, "layers: %d more layers likewise", wrong_ - kLayersNamed);
  }
  template <typename... Args>
  void add(int32_t layer, const char* format, Args... args) {
    if (layer != last_) wrong_++;
    last_ = layer;
    if (wrong_ <= kLayersNamed) reasons_.add(Status::kInvalidArgument, format, args...);
  }

 private:
  ReasonList& reasons_;
  int32_t wrong_ = 0, last_ = -1;
};

}  // namespace tq
