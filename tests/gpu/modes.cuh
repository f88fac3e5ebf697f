// SPDX-License-Identifier: Apache-2.0
// Configurations of tests of other families than scalar codes: prod keys with both sketches, grouped sides
// of every width and group, levels of the caller's, trellis codes of every width, keys in bands, beside each
// other, scalar codes and raw sides, at dimensions of every shape.
#pragma once
#include "api_cache.cuh"

namespace gpu_test {

struct SideMode {
  int family, bits, group = 0;  // family 0: scalar (by rows at one bit) or, with 16 bits, raw
};
struct ModeShape {
  int head_dim, value_dim;
  SideMode key, value;
  int sketch = 0, rule = 0;         // scale rule of both sides
  std::vector<int32_t> bands = {};  // widths of keys in bands, in an order that differs from head to head
};

inline std::vector<ModeShape> mode_shapes() {
  constexpr int kProd = TQ_CODE_PROD, kGrouped = TQ_CODE_GROUPED, kLevels = TQ_CODE_LEVELS,
                kTrellis = TQ_CODE_TRELLIS;
  return {
      {128, 128, {kProd, 4}, {0, 4}},
      {128, 128, {kProd, 3}, {kGrouped, 2, 32}, TQ_SKETCH_ORTHOGONAL},
      {128, 128, {kGrouped, 4, 64}, {kGrouped, 4, 64}},
      {128, 128, {kLevels, 4}, {kLevels, 3}},
      {64, 64, {kProd, 2}, {kLevels, 2}, TQ_SKETCH_GAUSSIAN},
      {64, 64, {kGrouped, 8, 16}, {0, 16}},
      {80, 80, {kProd, 4}, {kGrouped, 3, 16}, TQ_SKETCH_ORTHOGONAL, TQ_SCALE_LS},
      {96, 96, {kLevels, 8}, {kGrouped, 8, 64}},
      {72, 72, {0, 16}, {kGrouped, 3, 64}},
      {40, 40, {kGrouped, 3, 16}, {kLevels, 6}},
      {8, 8, {kProd, 3}, {kGrouped, 2, 16}, TQ_SKETCH_GAUSSIAN},
      {32, 32, {0, 3}, {kLevels, 5}},
      {128, 128, {0, 1}, {0, 1}},
      {96, 96, {0, 1}, {0, 4}, 0, TQ_SCALE_LS},
      {256, 256, {kProd, 3}, {kGrouped, 4, 32}},
      {160, 160, {kGrouped, 2, 32}, {0, 2}},
      {192, 128, {kProd, 2}, {kGrouped, 8, 32}},
      {224, 224, {kLevels, 3}, {0, 8}, 0, TQ_SCALE_NORM},
      {200, 200, {kLevels, 2}, {kLevels, 4}, 0, TQ_SCALE_LS},
      {576, 512, {kProd, 4}, {kGrouped, 4, 64}},
      {512, 512, {kLevels, 4}, {kLevels, 8}},
      {576, 576, {kGrouped, 8, 64}, {0, 5}},
      {128, 128, {kTrellis, 3}, {kTrellis, 3}},
      {128, 128, {kTrellis, 2}, {kTrellis, 4}},
      {128, 128, {kTrellis, 4}, {kTrellis, 2}},
      {128, 128, {kTrellis, 3}, {0, 4}, 0, TQ_SCALE_LS},
      {128, 128, {0, 16}, {kTrellis, 2}},
      {64, 64, {kTrellis, 3}, {kTrellis, 2}},
      {40, 40, {kTrellis, 4}, {kTrellis, 3}, 0, TQ_SCALE_LS},
      {32, 32, {kTrellis, 2}, {kTrellis, 4}},
      {96, 96, {kTrellis, 4}, {kTrellis, 2}},
      {80, 80, {kGrouped, 4, 16}, {kTrellis, 3}},
      {160, 160, {kTrellis, 2}, {kTrellis, 3}},
      {192, 128, {kTrellis, 3}, {kGrouped, 4, 32}},
      {256, 256, {kTrellis, 4}, {kTrellis, 4}},
      {224, 224, {kLevels, 3}, {kTrellis, 2}},
      {512, 512, {kTrellis, 3}, {kTrellis, 3}},
      {576, 512, {kTrellis, 2}, {kTrellis, 4}},
      {128, 128, {0, 4}, {0, 3}, 0, 0, {4, 3, 3, 2}},
      {128, 128, {kTrellis, 4}, {kTrellis, 3}, 0, 0, {5, 3, 2, 2}},
      {128, 128, {kTrellis, 4}, {kTrellis, 2}, 0, 0, {3, 2, 2, 1}},
      {128, 128, {0, 4}, {0, 2}, 0, TQ_SCALE_LS, {4, 2, 1, 1}},
      {128, 128, {0, 4}, {kTrellis, 2}, 0, TQ_SCALE_LS, {4, 3, 2, 1}},
      {128, 128, {kTrellis, 4}, {kGrouped, 4, 32}, 0, TQ_SCALE_NORM, {6, 5, 4, 1}},
      {80, 80, {0, 4}, {0, 16}, 0, TQ_SCALE_LS, {6, 5, 1}},
      {32, 32, {kTrellis, 4}, {kTrellis, 2}, 0, 0, {2}},
      {40, 40, {kTrellis, 4}, {0, 5}, 0, 0, {4, 1}},
      {64, 64, {0, 4}, {0, 4}, 0, 0, {1, 1}},
      {256, 256, {kTrellis, 4}, {kTrellis, 3}, 0, 0, {6, 5, 4, 4, 3, 2, 1, 1}},
      {192, 128, {0, 4}, {0, 4}, 0, 0, {5, 4, 3, 3, 2, 2}},
      {128, 128, {kTrellis, 4}, {kTrellis, 2}, 0, 0, {4, 3, 2, 1}},
      {128, 128, {0, 4}, {0, 3}, 0, 0, {6, 5, 2, 1}},
      {128, 128, {kTrellis, 4}, {kTrellis, 4}, 0, TQ_SCALE_LS, {5, 4, 4, 3}},
  };
}

// 2^bits levels about those of a coordinate of a rotated vector of length 1, neither even nor symmetric.
class ModeLevels {
 public:
  ModeLevels(int bits, int dim, uint64_t seed) {
    const int count = 1 << bits;
    const double unit = 6.0 / (count * sqrt(static_cast<double>(dim)));
    for (int i = 0; i < count; i++)
      levels_.push_back(static_cast<float>(unit * (i - 0.5 * count + draw(seed + static_cast<uint64_t>(i)))));
    for (int i = 0; i + 1 < count; i++)
      boundaries_.push_back(0.5f * (levels_[static_cast<size_t>(i)] + levels_[static_cast<size_t>(i) + 1]));
    of_ = tq_levels{sizeof of_, bits, 0, 0, levels_.data(), boundaries_.data()};
  }
  ModeLevels(const ModeLevels&) = delete;
  const tq_levels* get() const { return &of_; }

 private:
  static double draw(uint64_t seed) { return 0.1 + 0.8 * static_cast<double>(mix64(seed) >> 40) / (1 << 24); }
  std::vector<float> levels_, boundaries_;
  tq_levels of_;
};

// A configuration's codes; what it points to lives as long as this.
class ModeConfig {
 public:
  ModeConfig(const ModeConfig&) = delete;
  explicit ModeConfig(const ModeShape& shape) : shape_(shape) {
    if (shape.key.family == TQ_CODE_LEVELS)
      key_ = std::make_unique<ModeLevels>(shape.key.bits, shape.head_dim, 11);
    if (shape.value.family == TQ_CODE_LEVELS)
      value_ = std::make_unique<ModeLevels>(shape.value.bits, shape.value_dim, 77);
    if (shape.bands.empty()) return;
    for (int head = 0; head < kMostHeads; head++)
      for (int i = 0; i < shape.head_dim; i++) {
        order_.push_back(i);
        std::swap(order_.back(), order_[static_cast<size_t>(head * shape.head_dim) +
                                        mix64(static_cast<uint64_t>(order_.size())) % (i + 1u)]);
      }
    bands_ = tq_key_bands{sizeof bands_, static_cast<int32_t>(shape_.bands.size()), shape_.bands.data(),
                          order_.data()};
    tq_layer_config layer = {};
    layer.struct_size = sizeof layer;
    layer.key_bands = &bands_;
    layers_.assign(kMostLayers, layer);
  }
  // null: keys have none
  const tq_key_bands* bands() const { return order_.empty() ? nullptr : &bands_; }
  void apply(tq_cache_config* config) const {
    config->key_family = shape_.key.family;
    config->value_family = shape_.value.family;
    config->group_size = std::max(shape_.key.group, shape_.value.group);
    config->sketch = shape_.sketch;
    config->key_scale_rule = config->value_scale_rule = shape_.rule;
    if (key_) config->key_levels = key_->get();
    if (value_) config->value_levels = value_->get();
    if (bands()) config->layers = layers_.data();
  }

 private:
  static constexpr int kMostHeads = 8, kMostLayers = 8;

  ModeShape shape_;
  std::unique_ptr<ModeLevels> key_, value_;
  std::vector<int32_t> order_;
  tq_key_bands bands_ = {};
  std::vector<tq_layer_config> layers_;
};

}  // namespace gpu_test
