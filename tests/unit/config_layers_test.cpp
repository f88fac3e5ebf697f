// SPDX-License-Identifier: Apache-2.0
// What a layer has of its own, of the cache and of the layer whose tokens it reads; levels and codebooks that
// layers use; page groups and shapes of heads that come of it.
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "config.h"
#include "status.h"
#include "unit/small_config.h"

namespace tq {
namespace {

using L = tq_layer_config;

tq_cache_config base() { return small_config(3); }

std::vector<L> plain_layers(size_t count) {
  L layer = {};
  layer.struct_size = sizeof layer;
  return std::vector<L>(count, layer);
}

std::string reasons(tq_cache_config c, const std::vector<L>& layers) {
  c.layers = layers.data();
  try {
    const ResolvedConfig resolved(&c);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ConfigLayers, OwnOrTheCaches) {
  const struct {
    int32_t L::*own;
    int32_t tq_cache_config::*common;
    int32_t cache, layer;
  } fields[] = {
      {&L::num_q_heads, &tq_cache_config::num_q_heads, 8, 4},
      {&L::num_kv_heads, &tq_cache_config::num_kv_heads, 2, 4},
      {&L::head_dim, &tq_cache_config::head_dim, 128, 96},
      {&L::value_dim, &tq_cache_config::value_dim, 64, 32},
      {&L::key_bits, &tq_cache_config::key_bits, 3, 5},
      {&L::value_bits, &tq_cache_config::value_bits, 4, 2},
      {&L::key_family, &tq_cache_config::key_family, TQ_CODE_SCALAR, TQ_CODE_GROUPED},
      {&L::value_family, &tq_cache_config::value_family, TQ_CODE_SCALAR, TQ_CODE_TRELLIS},
      {&L::rotation, &tq_cache_config::rotation, TQ_ROTATION_HADAMARD, TQ_ROTATION_DENSE},
      {&L::first_kv_head, &tq_cache_config::first_kv_head, 7, 9},
  };
  for (const auto& field : fields) {
    tq_cache_config c = base();
    c.*field.common = field.cache;
    std::vector<L> layers = plain_layers(3);
    layers[1].*field.own = field.layer;
    if (field.own == &L::key_family) layers[1].key_bits = 4;
    c.layers = layers.data();
    const ResolvedConfig resolved(&c);
    for (int i = 0; i < 3; i++)
      EXPECT_EQ(resolved.config().layers[i].*field.own, i == 1 ? field.layer : field.cache) << i;
  }
  // The value's dimension follows the layer's keys, unless the cache says otherwise.
  tq_cache_config c = base();
  std::vector<L> layers = plain_layers(3);
  layers[1].head_dim = 96;
  c.layers = layers.data();
  EXPECT_EQ(ResolvedConfig(&c).config().layers[1].value_dim, 96);
  EXPECT_EQ(ResolvedConfig(&c).config().layers[2].value_dim, 128);
  c.value_dim = 64;
  EXPECT_EQ(ResolvedConfig(&c).config().layers[1].value_dim, 64);
}

TEST(ConfigLayers, SharedTokensHaveOneForm) {
  const struct {
    const char* name;
    int32_t L::*own;
    int32_t wrong, there;
  } fields[] = {
      {"num_kv_heads", &L::num_kv_heads, 4, 2},
      {"head_dim", &L::head_dim, 64, 128},
      {"value_dim", &L::value_dim, 64, 128},
      {"key_bits", &L::key_bits, 4, 3},
      {"value_bits", &L::value_bits, 3, 4},
      {"key_family", &L::key_family, TQ_CODE_TRELLIS, 1},
      {"rotation", &L::rotation, TQ_ROTATION_DENSE, 1},
      {"first_kv_head", &L::first_kv_head, 5, 0},
      {"layer_kind", &L::layer_kind, TQ_LATENT, 1},
  };
  for (const auto& field : fields) {
    std::vector<L> layers = plain_layers(3);
    layers[2].shares_layer = 2;
    layers[2].*field.own = field.wrong;
    const std::string start = std::string("layers[2].") + field.name + " = " + std::to_string(field.wrong) +
                              ": it shares the tokens of layer 1, where it is " + std::to_string(field.there);
    EXPECT_EQ(reasons(base(), layers), start);
  }
  std::vector<L> layers = plain_layers(3);
  layers[1].shares_layer = 1, layers[2].shares_layer = 2;
  EXPECT_EQ(reasons(base(), layers), "layers[2].shares_layer = 2: layer 1 shares another's tokens itself");
  layers[1].shares_layer = 0, layers[1].sliding_window = 10, layers[2].sliding_window = 11;
  EXPECT_EQ(reasons(base(), layers),
            "layers[2].sliding_window = 11: layer 1, whose tokens it shares, keeps those of 10");
  layers[2].sliding_window = 10;
  EXPECT_EQ(reasons(base(), layers), "");
  // What it does not say it has from there: the window, and heads of its own beside them.
  layers[2].sliding_window = 0, layers[2].num_q_heads = 4;
  layers[1].key_bits = 5, layers[1].value_bits = 6;
  tq_cache_config c = base();
  c.layers = layers.data();
  const ResolvedConfig resolved(&c);
  EXPECT_EQ(resolved.config().layers[2].sliding_window, 10);
  EXPECT_EQ(resolved.config().layers[2].num_q_heads, 4);
  EXPECT_EQ(resolved.config().layers[2].key_bits, 5);
  for (int layer = 0; layer < 3; layer++) {
    EXPECT_EQ(resolved.config().layer_key_bits[layer], layer == 0 ? 3 : 5);
    EXPECT_EQ(resolved.config().layer_value_bits[layer], layer == 0 ? 4 : 6);
  }
  EXPECT_EQ(resolved.geometry().layers[2].storage, 1);
  EXPECT_EQ(resolved.geometry().layers[2].group, resolved.geometry().layers[1].group);
  EXPECT_EQ(resolved.token_bytes(2), 0);
  EXPECT_EQ(resolved.fp16_token_bytes(2), 0);
  EXPECT_EQ(resolved.token_bytes(0), 2 * (128 * 3 / 8 + 128 * 4 / 8 + 4));
  EXPECT_EQ(resolved.fp16_token_bytes(0), 2 * 2 * 256);
  EXPECT_EQ(resolved.token_bytes(), resolved.token_bytes(0) + resolved.token_bytes(1));
  EXPECT_EQ(resolved.fp16_token_bytes(), 2 * resolved.fp16_token_bytes(0));
}

TEST(ConfigLayers, WrongOnesBeyondFourAreCounted) {
  std::vector<L> layers = plain_layers(6);
  for (L& layer : layers) layer.sliding_window = -1, layer.rotation = 3;
  tq_cache_config c = base();
  c.num_layers = 6;
  const std::string text = reasons(c, layers);
  EXPECT_NE(text.find("layers[3].rotation = 3"), std::string::npos) << text;
  EXPECT_NE(text.find("layers[3].sliding_window = -1"), std::string::npos) << text;
  EXPECT_EQ(text.find("layers[4]"), std::string::npos) << text;
  EXPECT_NE(text.find("layers: 2 more layers likewise"), std::string::npos) << text;
  layers.resize(4);
  c.num_layers = 4;
  EXPECT_EQ(reasons(c, layers).find("likewise"), std::string::npos);
}

class Levels {
 public:
  explicit Levels(int bits) : bits_(bits) {
    for (int i = 0; i < 1 << bits; i++) numbers_.push_back(static_cast<float>(2 * i - (1 << bits) + 1));
    for (int i = 0; i + 1 < 1 << bits; i++) bounds_.push_back(numbers_[static_cast<size_t>(i)] + 1);
    of = {sizeof of, bits, 0, 0, numbers_.data(), bounds_.data()};
  }
  tq_levels of;
  // Whether a copy holds these numbers, in memory of its own.
  bool copied(const tq_levels* copy) const {
    return copy && copy->bits == bits_ && copy->unit == 1 && copy->levels != numbers_.data() &&
           memcmp(copy->levels, numbers_.data(), numbers_.size() * sizeof(float)) == 0 &&
           memcmp(copy->boundaries, bounds_.data(), bounds_.size() * sizeof(float)) == 0;
  }

 private:
  int bits_;
  std::vector<float> numbers_, bounds_;
};

TEST(ConfigLayers, LevelsAreTheLayersOrTheCaches) {
  const Levels common(3), own(2);
  std::vector<L> layers = plain_layers(3);
  layers[1].key_bits = 2, layers[1].key_levels = &own.of;
  layers[2].shares_layer = 2;
  tq_cache_config c = base();
  c.key_family = TQ_CODE_LEVELS, c.key_levels = &common.of, c.layers = layers.data();
  const ResolvedConfig resolved(&c);
  const tq_cache_config& now = resolved.config();
  EXPECT_TRUE(common.copied(now.key_levels));
  EXPECT_EQ(now.layers[0].key_levels, now.key_levels);
  EXPECT_TRUE(own.copied(now.layers[1].key_levels));
  EXPECT_EQ(now.layers[2].key_levels, now.layers[1].key_levels);
  EXPECT_EQ(now.value_levels, nullptr);
  EXPECT_EQ(now.layers[0].value_levels, nullptr);
  const LayerGeometry* g = resolved.geometry().layers;
  EXPECT_EQ(g[0].key_levels->bits, 3);
  EXPECT_EQ(g[1].key_levels->bits, 2);
  EXPECT_EQ(g[2].key_levels, g[1].key_levels);
  EXPECT_EQ(g[0].value_levels, nullptr);
}

TEST(ConfigLayers, LevelsThatDoNotFitAreNamed) {
  static const Levels three(3), two(2);
  const struct {
    const char* text;
    std::function<void(tq_cache_config&, std::vector<L>&)> set;
  } cases[] = {
      {"layer 0: key_levels = NULL: needed with family = 4 (TQ_CODE_LEVELS)",
       [](tq_cache_config& c, std::vector<L>&) { c.key_family = TQ_CODE_LEVELS; }},
      {"layer 1: key_levels.bits = 3: must be 2",
       [](tq_cache_config& c, std::vector<L>& l) {
         c.key_family = TQ_CODE_LEVELS, c.key_levels = &three.of, l[1].key_bits = 2;
       }},
      {"layers[1].key_levels: must be NULL, the side has other codes",
       [](tq_cache_config&, std::vector<L>& l) { l[1].key_levels = &three.of; }},
      {"layers[2].value_levels: it shares another layer's tokens",
       [](tq_cache_config&, std::vector<L>& l) { l[2].shares_layer = 1, l[2].value_levels = &three.of; }},
      {"value_levels: must be NULL, no side has TQ_CODE_LEVELS",
       [](tq_cache_config& c, std::vector<L>&) { c.value_levels = &two.of; }},
      {"layers[1].key_levels.bits = 2: must be 3, within 1 .. 8",
       [](tq_cache_config& c, std::vector<L>& l) {
         c.key_family = TQ_CODE_LEVELS, c.key_levels = &three.of, l[1].key_levels = &two.of;
       }},
      {"layers[1].shares_layer = -1: must be 0 (none) or 1 + the index of an earlier layer",
       [](tq_cache_config&, std::vector<L>& l) { l[1].shares_layer = -1; }},
      {"",
       [](tq_cache_config& c, std::vector<L>& l) {  // a raw side has no levels
         c.key_family = TQ_CODE_LEVELS, c.key_levels = &three.of, l[1].key_bits = 16;
       }},
  };
  for (const auto& each : cases) {
    tq_cache_config c = base();
    std::vector<L> layers = plain_layers(3);
    each.set(c, layers);
    EXPECT_EQ(reasons(c, layers), each.text);
  }
}

TEST(ConfigLayers, LevelsThemselves) {
  const auto text = [](const std::function<void(tq_levels&, float*, float*)>& change) {
    float numbers[] = {-3, -1, 1, 3}, bounds[] = {-2, 0, 2};
    tq_levels levels = {sizeof levels, 2, 0, 0, numbers, bounds};
    change(levels, numbers, bounds);
    tq_cache_config c = base();
    c.key_family = TQ_CODE_LEVELS, c.key_bits = 2, c.key_levels = &levels;
    return reasons(c, plain_layers(3));
  };
  const float most = 1073741824.0f, above = 1073741952.0f;
  EXPECT_EQ(text([](tq_levels&, float*, float*) {}), "");
  EXPECT_EQ(text([=](tq_levels& l, float* n, float* b) { l.unit = most, n[0] = -most, b[2] = most; }), "");
  EXPECT_EQ(text([](tq_levels&, float*, float* b) { b[1] = b[0] = b[2]; }), "") << "levels that nothing gets";
  EXPECT_EQ(text([](tq_levels& l, float*, float*) { l.unit = -1; }),
            "key_levels.unit = -1: must be 0 (1) or up to 2^30");
  EXPECT_EQ(text([=](tq_levels& l, float*, float*) { l.unit = above; }),
            "key_levels.unit = 1.07374e+09: must be 0 (1) or up to 2^30");
  EXPECT_EQ(text([=](tq_levels&, float* n, float*) { n[3] = above; }),
            "key_levels.levels[3] = 1.07374e+09: must be at most 2^30 in size");
  EXPECT_EQ(text([](tq_levels&, float* n, float*) { n[0] = -NAN; }).substr(0, 20), "key_levels.levels[0]");
  EXPECT_EQ(text([=](tq_levels&, float*, float* b) { b[2] = above; }),
            "key_levels.boundaries[2] = 1.07374e+09: must be at most 2^30 in size and not fall");
  EXPECT_EQ(text([=](tq_levels&, float*, float* b) { b[0] = -above; }).substr(0, 24),
            "key_levels.boundaries[0]");
  EXPECT_EQ(text([](tq_levels& l, float*, float*) { l.levels = nullptr; }).substr(0, 30),
            "key_levels.levels = (nil), key");
  EXPECT_EQ(text([](tq_levels& l, float*, float*) { l.boundaries = nullptr; }).substr(0, 23),
            "key_levels.levels = 0x7");
  EXPECT_EQ(text([](tq_levels& l, float*, float*) { l.reserved = 1; }), "key_levels.reserved = 1: must be 0");
  EXPECT_EQ(text([](tq_levels& l, float*, float*) { l.struct_size = 0; }).substr(0, 27),
            "key_levels.struct_size = 0:");
}

TEST(ConfigLayers, GroupsAndShapes) {
  std::vector<L> layers = plain_layers(8);
  for (int i = 1; i < 7; i++) layers[static_cast<size_t>(i)].sliding_window = 32 * i;
  tq_cache_config c = base();
  c.num_layers = 8, c.max_tokens = 160, c.max_sequences = 2, c.max_sequence_tokens = 160;
  c.layers = layers.data();
  const ResolvedConfig resolved(&c);
  const Geometry& g = resolved.geometry();
  EXPECT_EQ(g.num_groups, 5) << "all tokens; 32, 64, 96, 128: none is longer than 160";
  for (int i = 0; i < 8; i++) EXPECT_EQ(g.layers[i].group, i < 5 ? i : 0) << i;
  EXPECT_EQ(g.groups[0].window, kAllTokens);
  EXPECT_EQ(g.groups[2].window, 64);
  EXPECT_EQ(g.groups[2].layer, 2);
  EXPECT_EQ(g.groups[0].max_sequence_pages, 3);
  EXPECT_EQ(g.groups[0].num_pages, 3 + 2);
  EXPECT_EQ(resolved.pool_pages(1, 100000), (1 + 3) * 2 + 3) << "windows of two sequences, and a plan";
  layers[7].sliding_window = 7;
  EXPECT_EQ(reasons(c, layers), "layers: 7 different sliding windows, at most 6");

  layers = plain_layers(9);
  for (int i = 0; i < 9; i++) layers[static_cast<size_t>(i)].num_q_heads = 2 * (1 + i);
  c = base();
  c.num_layers = 9;
  EXPECT_EQ(reasons(c, layers), "layers[8]: num_q_heads = 18, num_kv_heads = 2: at most 8 different pairs");
  layers[8].num_q_heads = 2;
  c.layers = layers.data();
  const ResolvedConfig shapes(&c);
  EXPECT_EQ(shapes.geometry().num_shapes, 8);
  EXPECT_EQ(shapes.geometry().layers[8].shape, 0);
  EXPECT_EQ(shapes.geometry().layers[7].shape, 7);
  EXPECT_EQ(shapes.geometry().layers[7].q_per_kv, 8);
}

// Layers as they are resolved are whole structs, whatever the caller's were.
TEST(ConfigLayers, SizesOfWhatIsResolved) {
  tq_cache_config c = base();
  const ResolvedConfig none(&c);
  std::vector<L> layers = plain_layers(3);
  // Of an older caller's size, one after the other.
  std::vector<uint8_t> older;
  for (L& layer : layers) {
    layer.struct_size = sizeof(L) - sizeof layer.key_bands;
    const uint8_t* const first = reinterpret_cast<const uint8_t*>(&layer);
    older.insert(older.end(), first, first + layer.struct_size);
  }
  c.layers = reinterpret_cast<const L*>(older.data());
  const ResolvedConfig old(&c);
  for (int i = 0; i < 3; i++) {
    EXPECT_EQ(none.config().layers[i].struct_size, sizeof(L));
    EXPECT_EQ(old.config().layers[i].struct_size, sizeof(L));
  }
}

// The rule of keys without one of the caller's: least squares where all coded keys have a sketch, which takes
// the bias away; of raw keys there is none to speak of.
TEST(ConfigLayers, ScaleRuleOfKeys) {
  const auto rule = [](std::vector<std::pair<int32_t, int32_t>> families_and_bits) {
    std::vector<L> layers = plain_layers(static_cast<int32_t>(families_and_bits.size()));
    for (size_t i = 0; i < layers.size(); i++)
      layers[i].key_family = families_and_bits[i].first, layers[i].key_bits = families_and_bits[i].second;
    tq_cache_config c = base();
    c.num_layers = static_cast<int32_t>(layers.size()), c.layers = layers.data();
    return ResolvedConfig(&c).config().key_scale_rule;
  };
  EXPECT_EQ(rule({{TQ_CODE_PROD, 3}, {TQ_CODE_PROD, 4}}), TQ_SCALE_LS);
  EXPECT_EQ(rule({{TQ_CODE_PROD, 3}, {TQ_CODE_SCALAR, 16}}), TQ_SCALE_LS);
  EXPECT_EQ(rule({{TQ_CODE_PROD, 3}, {TQ_CODE_SCALAR, 4}}), TQ_SCALE_UNBIASED);
  EXPECT_EQ(rule({{TQ_CODE_SCALAR, 4}, {TQ_CODE_SCALAR, 3}}), TQ_SCALE_UNBIASED);
  EXPECT_EQ(rule({{TQ_CODE_SCALAR, 16}, {TQ_CODE_SCALAR, 16}}), TQ_SCALE_UNBIASED);
}

// What a family does not have is looked for in every layer whose bits or families differ from those of the
// layer before, and told once for layers alike.
TEST(ConfigLayers, BitsThatAFamilyDoesNotHave) {
  const struct {
    int32_t L::*member;
    int32_t wrong;
    const char* text;
  } cases[] = {
      {&L::key_bits, 5,
       "key_bits = 5: must be one of 2 3 4 8, or 16 (raw), with key_family = 3 (TQ_CODE_GROUPED)"},
      {&L::value_bits, 6,
       "value_bits = 6: must be one of 2 3 4, or 16 (raw), with value_family = 5 (TQ_CODE_TRELLIS)"},
      {&L::key_family, TQ_CODE_PROD,
       "key_bits = 8: must be one of 2 3 4, or 16 (raw), with key_family = 2 (TQ_CODE_PROD)"},
      {&L::value_family, TQ_CODE_PROD, "value_family = 2 (TQ_CODE_PROD): keys alone have it"},
  };
  tq_cache_config c = base();
  c.key_family = TQ_CODE_GROUPED, c.key_bits = 8, c.value_family = TQ_CODE_TRELLIS, c.value_bits = 3;
  EXPECT_EQ(reasons(c, plain_layers(3)), "");
  for (const auto& each : cases)
    for (size_t first = 0; first < 3; first++) {
      std::vector<L> layers = plain_layers(3);
      for (size_t i = first; i < 3; i++) layers[i].*each.member = each.wrong;
      EXPECT_EQ(reasons(c, layers), "layer " + std::to_string(first) + ": " + each.text);
    }
}

// The size of a group that nobody names, where a layer is grouped.
TEST(ConfigLayers, GroupSizeOfTheCache) {
  for (const bool values : {false, true}) {
    tq_cache_config c = base();
    std::vector<L> layers = plain_layers(3);
    layers[1].*(values ? &L::value_family : &L::key_family) = TQ_CODE_GROUPED;
    layers[1].key_bits = layers[1].value_bits = 4;
    c.layers = layers.data();
    const ResolvedConfig resolved(&c);
    EXPECT_EQ(resolved.config().group_size, 32);
    for (int i = 0; i < 3; i++) EXPECT_EQ(resolved.config().layers[i].group_size, i == 1 ? 32 : 0);
    layers[1].group_size = 64;
    EXPECT_EQ(ResolvedConfig(&c).config().group_size, 32);
    EXPECT_EQ(ResolvedConfig(&c).config().layers[1].group_size, 64);
    c.group_size = 16, layers[1].group_size = 0;
    EXPECT_EQ(ResolvedConfig(&c).config().group_size, 16);
    EXPECT_EQ(ResolvedConfig(&c).config().layers[1].group_size, 16);
  }
}

// A window of one token is one.
TEST(ConfigLayers, TheShortestWindow) {
  std::vector<L> layers = plain_layers(3);
  tq_cache_config c = base();
  c.max_tokens = 100000, c.layers = layers.data();
  EXPECT_EQ(ResolvedConfig(&c).config().max_batch_tokens, 100000);
  layers[1].sliding_window = 1;
  const ResolvedConfig resolved(&c);
  EXPECT_EQ(resolved.config().max_batch_tokens, 2048) << "plans are bounded where layers slide";
  EXPECT_EQ(resolved.geometry().num_groups, 2);
  EXPECT_EQ(resolved.geometry().groups[1].window, 1);
  c.window_tokens = 10, c.flags = TQ_FLAG_STORE_ONCE;
  EXPECT_EQ(reasons(c, layers),
            "flags = 0x8: TQ_FLAG_STORE_ONCE: not with layers that have a sliding_window");
}

}  // namespace
}  // namespace tq
