// SPDX-License-Identifier: Apache-2.0
// The random small configurations of the model test's worlds: two in five have layers of their own shapes,
// some with sliding windows, some that share another's tokens. See world.h.
#pragma once
#include "model/world.h"

namespace tq {
namespace model {

constexpr int kDims[] = {32, 32, 32, 64, 64, 80}, kBits[] = {2, 3, 4, 5, 6, 8, 16};

inline void World::choose_config() {
  tq_cache_config& c = config_;
  c = tq_cache_config{};
  c.struct_size = sizeof c;
  static const int pages[] = {32, 64, 96}, windows[] = {0, 0, 1, 5, 32, 40}, rollbacks[] = {0, 3, 32},
                   sinks[] = {0, 0, 1, 4, 33}, ratios[] = {1, 2, 3, 5};
  c.num_layers = 1 + pick(2);
  c.num_kv_heads = 1 + pick(2);
  c.num_q_heads = c.num_kv_heads * one_of(ratios);
  c.head_dim = one_of(kDims);
  c.value_dim = one_of(kDims);
  c.io_dtype = 1 + pick(3);
  c.key_bits = one_of(kBits);
  c.value_bits = one_of(kBits);
  for (int i = 0; i < 2; i++) layer_bits_[i] = chance(30) ? one_of(kBits) : 0;
  if (chance(50)) c.layer_value_bits = layer_bits_;
  c.rotation = chance(10) && c.head_dim == 32 && c.value_dim == 32 ? TQ_ROTATION_DENSE : 0;
  c.key_scale_rule = pick(5);
  c.value_scale_rule = pick(5);
  c.page_size = one_of(pages);
  c.rotation_seed = random_(), c.first_layer = c.first_kv_head = chance(50) ? pick(65536) : 0;
  c.max_tokens = 60 + pick(400);
  c.max_sequences = 1 + pick(5);
  c.max_sequence_tokens = chance(30) ? 1 + pick(static_cast<int>(c.max_tokens)) : 0;
  c.max_batch_sequences = chance(30) ? 1 + pick(c.max_sequences) : 0;
  c.max_batch_tokens = chance(30) ? 1 + pick(static_cast<int>(c.max_tokens)) : 0;
  c.window_tokens = one_of(windows);
  c.rollback_tokens = one_of(rollbacks);
  c.sink_tokens = one_of(sinks);
  if (c.window_tokens + c.sink_tokens > 0 && chance(30)) c.max_raw_tokens = 256 + 32 * pick(10);
  c.num_threads = 1 + pick(2);
  c.flags = (chance(20) ? TQ_FLAG_NO_ZERO_ON_FREE : 0u) | (chance(20) ? TQ_FLAG_NO_SCALE_SEARCH : 0u);
  // Less room for codes than for tokens, now and then.
  if (c.window_tokens > 0 && chance(50)) {
    c.flags |= TQ_FLAG_STORE_ONCE;
    if (chance(50)) c.max_sequence_tokens = 0;
    if (chance(30)) c.max_tokens = 40 + pick(100), c.max_sequence_tokens = 0;
  }
  if (chance(40)) choose_layers();
  if (chance(25)) choose_families();
}

// Rising numbers about zero, not symmetric, of which codes are the next lower one.
inline const tq_levels* World::make_levels(int32_t bits) {
  own_levels_.emplace_back();
  OwnLevels& own = own_levels_.back();
  const size_t count = size_t{1} << bits;
  for (size_t i = 0; i < count; i++)
    own.levels.push_back((static_cast<float>(i) + 0.4f + 0.2f * uniform()) * 6 / static_cast<float>(count) -
                         3);
  for (size_t i = 0; i + 1 < count; i++) own.boundaries.push_back(0.5f * (own.levels[i] + own.levels[i + 1]));
  own.given = tq_levels{sizeof(tq_levels), bits, 0.125f, 0, own.levels.data(), own.boundaries.data()};
  return &own.given;
}

// Grouped, trellis, prod and levels sides, where the bits allow them.
inline void World::choose_families() {
  static const int groups[] = {0, 16, 32, 64};
  tq_cache_config& c = config_;
  bool prod = false;
  const auto family = [&](int32_t own, int32_t common, bool key, const tq_levels** levels) {
    const int32_t bits = own != 0 ? own : common;
    if (!chance(60) || bits == format::kRawBits) return 0;
    if (key && chance(30) && format::is_code(format::CodeFamily::kProd, bits)) {
      prod = true;
      return TQ_CODE_PROD;
    }
    if (chance(30)) {
      *levels = make_levels(bits);
      return TQ_CODE_LEVELS;
    }
    if (chance(40) && format::is_trellis_bits(bits)) return TQ_CODE_TRELLIS;
    return format::is_grouped_bits(bits) ? TQ_CODE_GROUPED : 0;
  };
  const auto has_groups = [](int32_t key, int32_t value) {
    return key == TQ_CODE_GROUPED || value == TQ_CODE_GROUPED;
  };
  if (!c.layers) {
    c.key_family = family(c.key_bits, 0, true, &c.key_levels);
    if (!c.layer_value_bits) c.value_family = family(c.value_bits, 0, false, &c.value_levels);
    if (has_groups(c.key_family, c.value_family)) c.group_size = one_of(groups);
  }
  for (tq_layer_config& l : layers_) {
    if (!c.layers || l.shares_layer != 0) continue;
    if (!l.key_bands) l.key_family = family(l.key_bits, c.key_bits, true, &l.key_levels);
    l.value_family = family(l.value_bits, c.value_bits, false, &l.value_levels);
    if (has_groups(l.key_family, l.value_family)) l.group_size = one_of(groups);
  }
  if (!prod) return;
  c.sketch = pick(3);
  c.sketch_rule = pick(3);
  if (chance(20)) c.sketch_factor = 0.75f;
}

// Keys of the layer in bands, of random widths that do not rise, in a random order.
inline void World::choose_bands(tq_layer_config* l) {
  const int dim = l->head_dim ? l->head_dim : config_.head_dim,
            heads = l->num_kv_heads ? l->num_kv_heads : config_.num_kv_heads;
  own_bands_.emplace_back();
  OwnBands& own = own_bands_.back();
  for (int band = 0, most = 6; 32 * band < dim; band++) own.bits.push_back(most = 1 + pick(most));
  for (int head = 0; head < heads && chance(80); head++) {
    std::vector<int32_t> order(static_cast<size_t>(dim));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    own.order.insert(own.order.end(), order.begin(), order.end());
  }
  const bool whole = own.order.size() == static_cast<size_t>(heads) * static_cast<size_t>(dim);
  own.given = tq_key_bands{sizeof(tq_key_bands), static_cast<int32_t>(own.bits.size()), own.bits.data(),
                           whole ? own.order.data() : nullptr};
  l->key_bits = 0;
  l->key_family = chance(50) ? TQ_CODE_TRELLIS : 0;
  l->key_bands = &own.given;
}

// What a layer leaves 0 is the cache's.
inline void World::choose_layers() {
  static const int windows[] = {0, 0, 1, 20, 32, 50, 100}, ratios[] = {1, 2, 3};
  config_.num_layers = 1 + pick(4);
  config_.layer_value_bits = nullptr;
  layers_.assign(static_cast<size_t>(config_.num_layers), tq_layer_config{});
  for (size_t i = 0; i < layers_.size(); i++) {
    tq_layer_config& l = layers_[i];
    l.struct_size = sizeof l;
    l.sliding_window = config_.flags & TQ_FLAG_STORE_ONCE ? 0 : one_of(windows);
    const int source = pick(static_cast<int>(i) + 1);
    if (chance(25) && static_cast<size_t>(source) < i) {
      const tq_layer_config& shared = layers_[static_cast<size_t>(source)];
      const int kv_heads = shared.num_kv_heads ? shared.num_kv_heads : config_.num_kv_heads;
      if (shared.shares_layer == 0) {
        l.shares_layer = source + 1;
        l.num_q_heads = kv_heads * one_of(ratios);
        if (shared.sliding_window > 0) l.sliding_window = std::min(l.sliding_window, shared.sliding_window);
        continue;
      }
    }
    if (chance(50)) {
      l.num_kv_heads = 1 + pick(3);
      l.num_q_heads = l.num_kv_heads * one_of(ratios);
    }
    if (chance(40)) l.head_dim = one_of(kDims);
    if (chance(40)) l.value_dim = one_of(kDims);
    if (chance(40)) l.key_bits = one_of(kBits);
    if (chance(40)) l.value_bits = one_of(kBits);
    if (chance(30)) l.first_kv_head = pick(65536);
    if (chance(25) && config_.rotation != TQ_ROTATION_DENSE) choose_bands(&l);
  }
  config_.layers = layers_.data();
}

inline void World::choose_centres() {
  if (!chance(30)) return;
  for (int i = 0; i < config_.num_layers; i++) {
    const tq_layer_config& l = layer(i);
    if (l.shares_layer > 0) continue;
    std::vector<float> key, value;
    for (int head = 0; head < l.num_kv_heads; head++)
      for (int d = 0; d < l.head_dim + l.value_dim; d++) {
        centres_.push_back(uniform());
        (d < l.head_dim ? key : value).push_back(centres_.back());
      }
    TQ_MUST(tq_cache_set_centres(cache_, i, key.data(), value.data()));
  }
}

}  // namespace model
}  // namespace tq
