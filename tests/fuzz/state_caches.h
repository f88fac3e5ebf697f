// SPDX-License-Identifier: Apache-2.0
// Caches that saved sequences and parts are fed to. The first are those of golden files of
// tests/state/golden.py, by the order of their names, so that these files are seeds.
#pragma once
#include <math.h>

#include "fuzz.h"
#include "tqkv.h"

namespace tq {
namespace fuzz {

enum {
  kDense,
  kEmpty,
  kLayers,
  kPadded,
  kRaw,
  kWindow,
  kBands,
  kLatent,
  kTrellis,
  kOnce,
  kMatrix,
  kProd,
  kGrouped,
  kLevels,
  kCaches
};

class StateCache {
 public:
  explicit StateCache(int which) {
    tq_layer_config layers[3] = {};
    for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
    tq_cache_config c;
    tq_cache_config_init(&c);
    c.num_layers = 1, c.num_q_heads = 1, c.num_kv_heads = 1, c.head_dim = 32, c.key_bits = 4,
    c.value_bits = 3;
    c.io_dtype = TQ_F32, c.max_tokens = 256, c.max_sequences = 3, c.num_threads = 1;
    switch (which % kCaches) {
      case kDense: c.rotation = TQ_ROTATION_DENSE, c.key_bits = 2; break;
      case kLayers:
        c.num_layers = 3, c.rollback_tokens = 4, c.layers = layers;
        layers[1].sliding_window = 10, layers[1].key_bits = 3, layers[2].shares_layer = 2;
        break;
      case kPadded:
        c.head_dim = 80, c.value_dim = 64, c.key_bits = 6, c.value_bits = 16, c.io_dtype = TQ_F16;
        break;
      case kRaw: c.key_bits = 16, c.value_bits = 5, c.io_dtype = TQ_BF16, c.first_kv_head = 3; break;
      case kWindow: c.window_tokens = 3, c.sink_tokens = 2, c.first_layer = 5; break;
      default: configure_codes(which % kCaches, c, layers); break;
    }
    FUZZ_CHECK(tq_cache_create(&c, nullptr, &cache_) == TQ_OK, "%s", tq_last_error());
    if (which % kCaches == kMatrix) turn();
    own_.struct_size = sizeof own_;
    FUZZ_CHECK(tq_cache_get_config(cache_, &own_) == TQ_OK, "%s", tq_last_error());
  }
  ~StateCache() { FUZZ_CHECK(tq_cache_destroy(cache_) == TQ_OK, "%s", tq_last_error()); }
  StateCache(const StateCache&) = delete;
  StateCache& operator=(const StateCache&) = delete;

  tq_cache* get() const { return cache_; }
  const tq_cache_config& config() const { return own_; }
  tq_cache_memory memory() const {
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    FUZZ_CHECK(tq_cache_get_memory(cache_, &memory) == TQ_OK, "%s", tq_last_error());
    return memory;
  }
  int64_t length(tq_sequence sequence) const {
    int64_t length = -1;
    FUZZ_CHECK(tq_sequence_length(cache_, sequence, &length) == TQ_OK, "%s", tq_last_error());
    return length;
  }

  // Tokens to a sequence, the same numbers for all.
  void fill(tq_sequence sequence, int64_t tokens) const {
    tq_batch* batch = nullptr;
    FUZZ_CHECK(tq_batch_create(cache_, &batch) == TQ_OK &&
                   tq_batch_plan(batch, 1, &sequence, &tokens, nullptr, nullptr) == TQ_OK,
               "%s", tq_last_error());
    for (int32_t layer = 0; layer < own_.num_layers; layer++) {
      if (own_.layers[layer].shares_layer) continue;
      const std::vector<uint8_t> numbers(static_cast<size_t>(tokens) * 96 * 4, 0x3C);
      FUZZ_CHECK(tq_cache_append(cache_, layer, batch, numbers.data(),
                                 own_.layers[layer].layer_kind == TQ_LATENT ? nullptr : numbers.data(),
                                 nullptr, nullptr) == TQ_OK,
                 "%s", tq_last_error());
    }
    tq_batch_destroy(batch);
  }

  // Decodes what each layer keeps of the last token's sight, and attends to it. finite: it must be.
  void use(tq_sequence sequence, bool finite) const {
    const int64_t tokens = length(sequence);
    for (int32_t layer = 0; layer < own_.num_layers; layer++) {
      const tq_layer_config& l = own_.layers[layer];
      const int64_t first = l.sliding_window == 0 ? 0 : std::max<int64_t>(0, tokens - l.sliding_window);
      std::vector<uint8_t> k(static_cast<size_t>((tokens - first) * l.num_kv_heads * l.head_dim * 4 + 4)),
          v(static_cast<size_t>((tokens - first) * l.num_kv_heads * l.value_dim * 4 + 4));
      const tq_status status =
          tq_cache_read(cache_, layer, sequence, first, tokens - first, k.data(), v.data(), nullptr, nullptr);
      FUZZ_CHECK(status == TQ_OK || (!finite && status == TQ_ERROR_INVALID_STATE), "%s", tq_last_error());
      if (finite) check_finite(k), check_finite(v);
    }
    attend(sequence, tokens);
  }

 private:
  // Families of codes, and what else changes what a token's bytes mean. What c points to
  // ends with the call of tq_cache_create, but for what is static.
  static void configure_codes(int which, tq_cache_config& c, tq_layer_config* layers) {
    static const int32_t kBits[] = {6, 2};
    static int32_t order[64];
    static const tq_key_bands kTwo = {sizeof kTwo, 2, kBits, order};
    static const float kLevel[] = {-1.5f, -.5f, .5f, 1.5f}, kBoundary[] = {-1, 0, 1};
    static const tq_levels kFour = {sizeof kFour, 2, 1, 0, kLevel, kBoundary};
    for (int i = 0; i < 64; i++) order[i] = i ^ 1;
    switch (which) {
      case kBands:
        c.num_layers = 2, c.head_dim = 64, c.value_dim = 32, c.key_bits = 0, c.layers = layers;
        layers[0].key_bands = layers[1].key_bands = &kTwo, layers[1].key_family = TQ_CODE_TRELLIS;
        break;
      case kLatent:
        c.layer_kind = TQ_LATENT, c.head_dim = 64, c.value_dim = 32, c.key_bits = 16, c.value_bits = 4;
        c.io_dtype = TQ_BF16, c.window_tokens = 5;
        break;
      case kTrellis: c.code_family = TQ_CODE_TRELLIS, c.key_bits = 2; break;
      case kOnce:
        c.flags = TQ_FLAG_STORE_ONCE | TQ_FLAG_EXACT_CHUNK, c.window_tokens = 40, c.sink_tokens = 3;
        c.rollback_tokens = 4, c.io_dtype = TQ_F16;
        break;
      case kMatrix: c.key_bits = 3, c.window_tokens = 2; break;
      case kProd: c.key_family = TQ_CODE_PROD, c.key_bits = 3, c.sketch_rule = TQ_SKETCH_LEAST_ERROR; break;
      case kGrouped: c.code_family = TQ_CODE_GROUPED, c.key_bits = 8, c.group_size = 16; break;
      default:
        c.code_family = TQ_CODE_LEVELS, c.key_bits = c.value_bits = 2;
        c.key_levels = c.value_levels = &kFour;
        break;
    }
  }
  // Centres and a key matrix: neighbours change places, and one coordinate is stretched.
  void turn() const {
    std::vector<float> matrix(32 * 32), centre(32, .25f);
    for (size_t i = 0; i < 32; i++) matrix[i * 32 + (i ^ 1)] = i == 5 ? 8 : 1;
    FUZZ_CHECK(tq_cache_set_key_matrix(cache_, 0, matrix.data()) == TQ_OK &&
                   tq_cache_set_centres(cache_, 0, centre.data(), nullptr) == TQ_OK,
               "%s", tq_last_error());
  }

  void check_finite(const std::vector<uint8_t>& numbers) const {
    const uint32_t exponent = own_.io_dtype == TQ_F32   ? 0x7F800000
                              : own_.io_dtype == TQ_F16 ? 0x7C00
                                                        : 0x7F80;
    const size_t bytes = own_.io_dtype == TQ_F32 ? 4 : 2;
    for (size_t at = 0; at + 4 < numbers.size(); at += bytes)
      FUZZ_CHECK((number_at(numbers.data(), numbers.size(), at, bytes) & exponent) != exponent,
                 "number %zu is not finite", at / bytes);
  }
  void attend(tq_sequence sequence, int64_t tokens) const {
    if (tokens == 0) return;
    tq_batch* batch = nullptr;
    const int64_t none = 0, one = 1;
    FUZZ_CHECK(tq_batch_create(cache_, &batch) == TQ_OK, "%s", tq_last_error());
    if (tq_batch_plan(batch, 1, &sequence, &none, &one, nullptr) == TQ_OK) {
      std::vector<uint8_t> q(4 * 96, 0), out(4 * 96);
      for (int32_t layer = 0; layer < own_.num_layers; layer++)
        tq_cache_attend(cache_, layer, batch, q.data(), out.data(), nullptr, nullptr, nullptr, 0, nullptr);
    }
    tq_batch_destroy(batch);
  }

  tq_cache* cache_ = nullptr;
  tq_cache_config own_ = {};
};

// The caches are made once: they stay as they were, and that is checked after every input.
inline StateCache& state_cache(int which) {
  static StateCache* caches[kCaches] = {};
  StateCache*& cache = caches[which % kCaches];
  if (!cache) cache = new StateCache(which);
  return *cache;
}

}  // namespace fuzz
}  // namespace tq
