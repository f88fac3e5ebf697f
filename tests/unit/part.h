// SPDX-License-Identifier: Apache-2.0
// Parts of sequences of OneCache in memory, as tq_sequence_export writes them and _import takes them.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>

#include "unit/api_cache.h"

namespace tq {

// A part in memory that is aligned as it must be.
struct Part {
  tq_state state = {};
  std::unique_ptr<uint8_t, void (*)(uint8_t*)> memory{nullptr, [](uint8_t* p) { free(p); }};

  explicit Part(tq_state wanted = {}) : state(wanted) { state.struct_size = sizeof state; }
  void take() {
    const size_t bytes = (static_cast<size_t>(state.bytes) + 255) / 256 * 256 + 256;
    memory.reset(static_cast<uint8_t*>(aligned_alloc(256, bytes)));
    memset(memory.get(), 0xEE, bytes);
  }
  std::string bytes() const {
    return std::string(reinterpret_cast<const char*>(memory.get()), static_cast<size_t>(state.bytes));
  }
};

inline Part exported(OneCache& cache, tq_sequence sequence, tq_state wanted = {}) {
  Part part(wanted);
  EXPECT_EQ(tq_sequence_describe(cache.cache, sequence, &part.state), TQ_OK) << tq_last_error();
  part.take();
  EXPECT_EQ(tq_sequence_export(cache.cache, sequence, &part.state, part.memory.get(),
                               static_cast<size_t>(part.state.bytes), nullptr),
            TQ_OK)
      << tq_last_error();
  EXPECT_EQ(part.memory.get()[part.state.bytes], 0xEE) << "written behind the end";
  return part;
}
inline tq_status import(OneCache& cache, tq_sequence sequence, const Part& part) {
  return tq_sequence_import(cache.cache, sequence, &part.state, part.memory.get(),
                            static_cast<size_t>(part.state.bytes), nullptr);
}
#define TQ_IMPORT(cache, sequence, part) EXPECT_EQ(import(cache, sequence, part), TQ_OK) << tq_last_error()

inline tq_state tokens(int64_t first, int64_t count) {
  tq_state state = {};
  state.first_token = first, state.num_tokens = count;
  return state;
}

}  // namespace tq
