// SPDX-License-Identifier: Apache-2.0
// Copies of sequences by way of a second cache, of another page size: what comes back must be what a fork is.
#pragma once
#include <vector>

#include "model/reference.h"
#include "tqkv.h"

namespace tq {
namespace model {

// What a fork of a sequence is, and a copy of it.
inline Sequence forked(const Reference& reference, Sequence sequence) {
  sequence.last_batch = -1;
  reference.plan(&sequence, sequence.length(), 0);
  return sequence;
}

class Travel {
 public:
  ~Travel() { tq_cache_destroy(away_); }
  // config and centres are the cache's; the first call that fails decides.
  tq_status copy(tq_cache* cache, const tq_cache_config& config, const std::vector<float>& centres,
                 tq_sequence sequence, tq_sequence* back) {
    if (const tq_status status = open(config, centres)) return status;
    tq_sequence there = 0;
    if (const tq_status status = tq_sequence_copy(cache, sequence, away_, nullptr, &there)) return status;
    const tq_status returned = tq_sequence_copy(away_, there, cache, nullptr, back);
    const tq_status freed = tq_sequence_free(away_, there, nullptr);
    return returned == TQ_OK ? freed : returned;
  }

 private:
  tq_status open(tq_cache_config config, const std::vector<float>& centres) {
    if (away_) return TQ_OK;
    config.page_size = config.page_size == 32 ? 96 : 32;
    config.max_tokens = 2048;
    config.max_sequences = 1;
    config.max_sequence_tokens = config.max_batch_tokens = config.max_raw_tokens = 0;
    config.max_batch_sequences = 0;
    if (const tq_status status = tq_cache_create(&config, nullptr, &away_)) return status;
    tq_cache_config resolved = {};
    resolved.struct_size = sizeof resolved;
    if (const tq_status status = tq_cache_get_config(away_, &resolved)) return status;
    const float* next = centres.data();
    for (int layer = 0; layer < config.num_layers && !centres.empty(); layer++) {
      const tq_layer_config& l = resolved.layers[layer];
      if (l.shares_layer > 0) continue;
      std::vector<float> key, value;
      for (int head = 0; head < l.num_kv_heads; head++) {
        key.insert(key.end(), next, next + l.head_dim);
        value.insert(value.end(), next + l.head_dim, next + l.head_dim + l.value_dim);
        next += l.head_dim + l.value_dim;
      }
      if (const tq_status status = tq_cache_set_centres(away_, layer, key.data(), value.data()))
        return status;
    }
    return TQ_OK;
  }

  tq_cache* away_ = nullptr;
};

}  // namespace model
}  // namespace tq
