// SPDX-License-Identifier: Apache-2.0
// Copies of sequences by way of a second cache, of another page size: what comes back must be what a fork is.
// The way there and back is a copy by codes, parts in memory (two token ranges, kv heads one by one), or a
// saved stream. With TQKV_MODEL_AWAY=cuda the second cache is on CUDA device 0, unless that has no kernels
// for the configuration (keys of another length than values, dense rotations).
#pragma once
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <string>
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

struct Journeys {
  int64_t all = 0, by_cuda = 0;  // there and back
};

class Travel {
 public:
  ~Travel() { tq_cache_destroy(away_); }
  // config and centres are the cache's; the first call that fails decides.
  tq_status copy(tq_cache* cache, const tq_cache_config& config, const std::vector<float>& centres,
                 tq_sequence sequence, tq_sequence* back) {
    if (const tq_status status = open(config, centres)) return status;
    tq_sequence there = 0;
    if (const tq_status status = move(cache, config, sequence, away_, &there)) return status;
    const tq_status returned = move(away_, config, there, cache, back);
    journeys_.all++;
    journeys_.by_cuda += on_cuda_;
    const tq_status freed = tq_sequence_free(away_, there, nullptr);
    return returned == TQ_OK ? freed : returned;
  }
  const Journeys& journeys() const { return journeys_; }

 private:
  tq_status move(tq_cache* from, const tq_cache_config& config, tq_sequence sequence, tq_cache* to,
                 tq_sequence* moved) {
    switch (ways_++ % 3) {
      case 0: return tq_sequence_copy(from, sequence, to, nullptr, moved);
      case 1: return by_parts(from, config, sequence, to, moved);
      default: return by_stream(from, sequence, to, moved);
    }
  }

  static tq_status by_parts(tq_cache* from, const tq_cache_config& config, tq_sequence sequence, tq_cache* to,
                            tq_sequence* moved) {
    tq_sequence id = 0;
    int64_t length = 0;
    if (const tq_status status = tq_sequence_length(from, sequence, &length)) return status;
    if (length == 0) return tq_sequence_copy(from, sequence, to, nullptr, moved);  // no part has its flags
    tq_status status = tq_sequence_create(to, &id);
    if (status != TQ_OK) return status;
    // Head by head where all layers hold the same ones, else all of them at once.
    tq_cache_config resolved = {};
    resolved.struct_size = sizeof resolved;
    if (const tq_status got = tq_cache_get_config(from, &resolved)) return got;
    const tq_layer_config& one = resolved.layers[0];
    bool alike = true;
    for (int layer = 0; layer < config.num_layers; layer++)
      alike &= resolved.layers[layer].first_kv_head == one.first_kv_head &&
               resolved.layers[layer].num_kv_heads == one.num_kv_heads;
    const int parts = alike ? one.num_kv_heads : 1;
    // The last part is the longer one, so that the window comes with it.
    const int64_t border = length / 5;
    for (const int64_t first : {int64_t{0}, border}) {
      const int64_t end = first == 0 && border > 0 ? border : length;
      for (int head = 0; head < parts && first < end && status == TQ_OK; head++)
        status =
            part(from, sequence, to, id, first, end - first, alike ? one.first_kv_head + head : 0, alike);
      if (border == 0) break;
    }
    if (status == TQ_OK)
      *moved = id;
    else
      tq_sequence_free(to, id, nullptr);
    return status;
  }
  static tq_status part(tq_cache* from, tq_sequence sequence, tq_cache* to, tq_sequence id, int64_t first,
                        int64_t count, int32_t head, int32_t num_heads) {
    tq_state state = {};
    state.struct_size = sizeof state;
    state.first_token = first, state.num_tokens = count;
    state.first_kv_head = head, state.num_kv_heads = num_heads;  // 0: all
    if (const tq_status status = tq_sequence_describe(from, sequence, &state)) return status;
    const size_t bytes = static_cast<size_t>(state.bytes);
    const std::unique_ptr<void, void (*)(void*)> memory(aligned_alloc(64, (bytes + 64) / 64 * 64), free);
    if (const tq_status status = tq_sequence_export(from, sequence, &state, memory.get(), bytes, nullptr))
      return status;
    return tq_sequence_import(to, id, &state, memory.get(), bytes, nullptr);
  }

  static tq_status by_stream(tq_cache* from, tq_sequence sequence, tq_cache* to, tq_sequence* moved) {
    std::string bytes;
    tq_io io = {};
    io.struct_size = sizeof io;
    io.user = &bytes;
    io.write = [](void* user, const void* data, size_t count) {
      static_cast<std::string*>(user)->append(static_cast<const char*>(data), count);
      return int32_t{0};
    };
    io.read = [](void* user, void* data, size_t count) {
      std::string& left = *static_cast<std::string*>(user);
      if (left.size() < count) return int32_t{1};
      memcpy(data, left.data(), count);
      left.erase(0, count);
      return int32_t{0};
    };
    if (const tq_status status = tq_sequence_save(from, sequence, &io, nullptr)) return status;
    return tq_sequence_load(to, &io, nullptr, moved);
  }

  tq_status open(tq_cache_config config, const std::vector<float>& centres) {
    if (away_) return TQ_OK;
    config.page_size = config.page_size == 32 ? 96 : 32;
    config.max_tokens = 2048;
    config.max_sequences = 1;
    config.max_sequence_tokens = config.max_batch_tokens = config.max_raw_tokens = 0;
    config.max_batch_sequences = 0;
    const char* device = getenv("TQKV_MODEL_AWAY");
    on_cuda_ = device && strcmp(device, "cuda") == 0;
    if (on_cuda_) config.device_type = TQ_DEVICE_CUDA;
    tq_status made = tq_cache_create(&config, nullptr, &away_);
    if (on_cuda_ && made == TQ_ERROR_NOT_SUPPORTED) {
      on_cuda_ = false;
      config.device_type = TQ_DEVICE_CPU;
      made = tq_cache_create(&config, nullptr, &away_);
    }
    if (made != TQ_OK) return made;
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
  bool on_cuda_ = false;
  int ways_ = 0;
  Journeys journeys_;
};

}  // namespace model
}  // namespace tq
