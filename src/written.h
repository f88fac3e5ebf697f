// SPDX-License-Identifier: Apache-2.0
// How far each layer of each sequence has been written: a plan makes a sequence longer in all layers at once,
// an append fills one of them. Planned is not written: what lies between holds the bytes of an older token,
// of another sequence, or nothing.
//
// Tokens are written from the front without gaps, so one number for each (layer, slot) is enough. Appends
// that were captured in a graph run without a host call; batch.cpp counts them as done when their plan is
// made. An import may bring some kv heads at a time, in order: tokens count once all heads have come.
#pragma once
#include <algorithm>

#include "host_block.h"
#include "token_map.h"

namespace tq {

class Written {
 public:
  Written(int32_t num_layers, int32_t max_sequences, Carver& carver)
      : num_layers_(num_layers), max_sequences_(max_sequences) {
    const int64_t count = checked_mul(num_layers, max_sequences, "max_sequences");
    tokens_ = carver.take<int64_t>(count);
    imports_ = carver.take<Import>(count);
  }
  void reset() noexcept {
    std::fill_n(tokens_, static_cast<int64_t>(num_layers_) * max_sequences_, 0);
    std::fill_n(imports_, static_cast<int64_t>(num_layers_) * max_sequences_, Import{});
  }

  // Leading tokens of the sequence that the layer holds.
  int64_t tokens(int32_t layer, int32_t slot) const { return at(layer, slot); }
  void append(int32_t layer, int32_t slot, int64_t length) noexcept {
    at(layer, slot) = length;
    import(layer, slot) = Import{};
  }
  void truncate(int32_t slot, int64_t length) noexcept {
    for (int32_t layer = 0; layer < num_layers_; layer++)
      append(layer, slot, std::min(at(layer, slot), length));
  }
  void move(int32_t slot, const TokenMap& tokens) noexcept {
    for (int32_t layer = 0; layer < num_layers_; layer++)
      append(layer, slot, tokens.kept_before(at(layer, slot)));
  }
  void fork(int32_t source, int32_t target) noexcept {
    for (int32_t layer = 0; layer < num_layers_; layer++) append(layer, target, at(layer, source));
  }

  // The next tokens, of which the first kv heads are there.
  struct Import {
    int64_t end = 0;
    int32_t heads = 0;
  };
  Import& import(int32_t layer, int32_t slot) const {
    return imports_[static_cast<int64_t>(layer) * max_sequences_ + slot];
  }

 private:
  int64_t& at(int32_t layer, int32_t slot) const {
    return tokens_[static_cast<int64_t>(layer) * max_sequences_ + slot];
  }

  int32_t num_layers_, max_sequences_;
  int64_t* tokens_;  // [num_layers][max_sequences]
  Import* imports_;  // the same
};

}  // namespace tq
