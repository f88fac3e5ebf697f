// SPDX-License-Identifier: Apache-2.0
// Fingerprints, and the hashes by which a state names what differs, number by number: prefix caches keep the
// one as a key, states carry the other between releases, so neither may change while the format does not.
// The words that are hashed are written out here from what identity.h says they are.
#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "config.h"
#include "state_fields.h"

namespace tq {
namespace {

constexpr int kLayers = 4, kDim = 64, kValueDim = 32;
constexpr uint64_t kSeed = 0xFEDCBA9876543210ull;
constexpr int32_t kScalar = 1, kGrouped = 3, kLevels = 4, kBands = 7;

// Layer 0: caller's codebook and raw values, two kv heads; layer 1: two bands, in an order, and grouped
// values; layer 2 reads layer 0's tokens; layer 3: a window, 8 bits and levels, one kv head.
class Words : public ::testing::Test {
 protected:
  void SetUp() override {
    book_.struct_size = sizeof book_;
    book_.bits = 2, book_.unit = 0.02f, book_.magnitude[0] = 30, book_.magnitude[1] = 100;
    for (int i = 0; i < 2 * kDim; i++) order_[i] = (i % kDim * 5 + i / kDim) % kDim;
    bands_ = tq_key_bands{sizeof bands_, 2, widths_, order_};
    levels_ = tq_levels{sizeof levels_, 1, 0.5f, 0, level_, boundary_};
    for (tq_layer_config& layer : layers_) layer.struct_size = sizeof layer;
    layers_[1].key_bands = &bands_;
    layers_[1].value_family = TQ_CODE_GROUPED, layers_[1].value_bits = 3, layers_[1].group_size = 32;
    layers_[2].shares_layer = 1;
    layers_[3].num_kv_heads = 1, layers_[3].sliding_window = 70, layers_[3].first_kv_head = 9;
    layers_[3].key_bits = 8;
    layers_[3].value_family = TQ_CODE_LEVELS, layers_[3].value_bits = 1, layers_[3].value_levels = &levels_;
    config_.struct_size = sizeof config_;
    config_.num_layers = kLayers, config_.num_q_heads = 4, config_.num_kv_heads = 2;
    config_.head_dim = kDim, config_.value_dim = kValueDim, config_.io_dtype = TQ_BF16;
    config_.key_bits = 2, config_.value_bits = 16, config_.key_codebook = &book_;
    config_.first_layer = 5, config_.first_kv_head = 4, config_.rotation_seed = kSeed;
    config_.page_size = 96, config_.max_tokens = 960, config_.num_threads = 1;
    config_.layers = layers_;
    resolved_ = std::make_unique<ResolvedConfig>(&config_);
    centres_.assign(2 * 2 * (kDim + kValueDim) + kDim + kValueDim, 0.0f);
    centres_[3] = 0.5f, centres_[kDim + 1] = -2.0f, centres_[kDim + 2] = -0.0f;  // layer 0, keys
    centres_[2 * (kDim + kValueDim) + 7] = 3.0f;                                 // layer 1, keys
    centres_[4 * (kDim + kValueDim) + kDim] = 1.5f;                              // layer 3, values
    matrices_ = {0, 0x1122334455667788ull, 0, 0, 0, 0, 0x99AABBCCDDEEFF00ull};
    identity_ = Identity{&resolved_->geometry(), centres_.data(), matrices_.data()};
  }

  static uint32_t bits(float x) {
    uint32_t word = 0;
    memcpy(&word, &x, sizeof word);
    return word;
  }
  void put(std::initializer_list<uint64_t> more) {
    for (const uint64_t x : more) words_.push_back(static_cast<uint32_t>(x));
  }
  // Dimension, family, width, type of raw values, rotation, seed, and the variant if there is one.
  void side(int dim, int family, int width, int raw, int rotation, uint32_t variant = 0) {
    const uint64_t seed = rotation ? kSeed : 0;
    put({static_cast<uint64_t>(dim), static_cast<uint64_t>(family), static_cast<uint64_t>(width),
         static_cast<uint64_t>(raw), static_cast<uint64_t>(rotation), seed & 0xFFFFFFFF, seed >> 32});
    if (variant) put({variant});
  }
  // 32 bytes of a codebook, the rest of them zero.
  void magnitudes(const std::vector<uint8_t>& first) {
    for (size_t i = 0; i < 32; i++) put({i < first.size() ? first[i] : 0u});
  }
  void numbers(size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) put({bits(centres_[i] == 0 ? 0.0f : centres_[i])});
  }
  static std::vector<uint8_t> bytes_of(uint64_t hash) {
    std::vector<uint8_t> bytes;
    for (int i = 0; i < 8; i++) bytes.push_back(static_cast<uint8_t>(hash >> 8 * i));
    return bytes;
  }
  // Of the bands' codebooks, as the library's tables have them: 32 bytes each, band by band.
  std::vector<uint8_t> band_books() const {
    std::vector<uint8_t> books(64);
    for (size_t band = 0; band < 2; band++) {
      const format::Codebook book = format::builtin_codebook(32, widths_[band]);
      memcpy(books.data() + 32 * band, book.magnitude, size_t{1} << (widths_[band] - 1));
    }
    return bytes_of(XXH64(books.data(), books.size(), 0));
  }
  static std::vector<uint8_t> levels_bytes() {
    const float levels[2] = {-1.25f, 0.0f};  // the second one is given as -0
    return bytes_of(XXH64(levels, sizeof levels, 0));
  }

  tq_codebook book_ = {};
  int32_t widths_[2] = {4, 3}, order_[2 * kDim];
  const float level_[2] = {-1.25f, -0.0f}, boundary_[1] = {-0.5f};
  tq_key_bands bands_ = {};
  tq_levels levels_ = {};
  tq_layer_config layers_[kLayers] = {};
  tq_cache_config config_ = {};
  std::unique_ptr<ResolvedConfig> resolved_;
  std::vector<float> centres_;
  std::vector<uint64_t> matrices_;  // of the kv heads of all layers
  Identity identity_ = {};
  std::vector<uint32_t> words_;
};

TEST_F(Words, OfTheFingerprint) {
  put({1, 5, kLayers, 96});  // version, first layer, layers, page size
  put({0, 2, 4});            // layer 0: its own tokens, two kv heads from 4 on
  side(kDim, kScalar, 2, 0, 1);
  magnitudes({30, 100});
  numbers(0, 2 * kDim);
  put({0x55667788, 0x11223344});
  side(kValueDim, 0, 16, 2, 0);
  put({1, 2, 4});  // layer 1
  side(kDim, kBands, 4 + 3, 0, 1, 0x34);
  magnitudes(band_books());
  numbers(2 * (kDim + kValueDim), 2 * kDim);
  for (const int32_t coordinate : order_) put({static_cast<uint64_t>(coordinate)});
  side(kValueDim, kGrouped, 3, 0, 0, 32);
  put({0});        // layer 2 reads layer 0
  put({3, 1, 9});  // layer 3
  side(kDim, kScalar, 8, 0, 1);
  magnitudes({});
  numbers(4 * (kDim + kValueDim), kDim);
  put({0xDDEEFF00, 0x99AABBCC});
  side(kValueDim, kLevels, 1, 0, 1);
  magnitudes(levels_bytes());
  numbers(4 * (kDim + kValueDim) + kDim, kValueDim);

  std::vector<uint32_t> found;
  for_each_word(
      identity_, [](void* to, uint32_t word) { static_cast<std::vector<uint32_t>*>(to)->push_back(word); },
      &found);
  EXPECT_EQ(found, words_);
  EXPECT_EQ(fingerprint_of(identity_), XXH64(words_.data(), 4 * words_.size(), 0));
}

// XXH64 over 64-bit and 32-bit numbers, each the next one's seed.
struct Chain {
  uint64_t hash = 0;
  Chain& add32(int32_t x) { return hash = XXH64(&x, 4, hash), *this; }
  Chain& add64(uint64_t x) { return hash = XXH64(&x, 8, hash), *this; }
  Chain& book(std::vector<uint8_t> first) {
    first.resize(32);
    return hash = XXH64(first.data(), 32, hash), *this;
  }
  uint32_t value() const { return static_cast<uint32_t>(hash ^ hash >> 32); }
};

TEST_F(Words, OfAStatesFields) {
  StatePart part = {};
  part.first_layer = 0, part.num_layers = kLayers;  // and all kv heads
  const auto centre = [&](size_t first, size_t count) {
    std::vector<float> x;
    bool any = false;
    for (size_t i = first; i < first + count; i++)
      x.push_back(centres_[i] == 0 ? 0.0f : centres_[i]), any |= x.back() != 0;
    return any ? XXH64(x.data(), 4 * count, 0) : 0;
  };
  const auto turned = [](uint64_t matrix, uint64_t hash) { return XXH64(&matrix, 8, hash); };
  const auto placed = [&](int head, uint64_t hash) { return XXH64(order_ + head * kDim, 4 * kDim, hash); };
  const size_t one = 2 * (kDim + kValueDim), three = 2 * one;
  Chain key_centres, value_centres;
  key_centres.add64(centre(0, kDim)).add64(turned(matrices_[1], centre(kDim, kDim)));
  key_centres.add64(placed(0, centre(one, kDim))).add64(placed(1, centre(one + kDim, kDim)));
  key_centres.add64(turned(matrices_[6], centre(three, kDim)));
  for (int head = 0; head < 4; head++) value_centres.add64(0);  // raw and grouped sides have none
  value_centres.add64(centre(three + kDim, kValueDim));
  const uint64_t s = kSeed;
  const uint32_t expected[kStateFields] = {
      Chain().add32(5).add32(6).add32(5).add32(8).value(),                    // shares_layer
      Chain().add32(0).add32(0).add32(70).value(),                            // sliding_window
      Chain().add32(4).add32(2).add32(4).add32(2).add32(9).add32(1).value(),  // num_kv_heads
      Chain().add32(kDim).add32(kDim).add32(kDim).value(),                    // head_dim
      Chain().add32(kValueDim).add32(kValueDim).add32(kValueDim).value(),     // value_dim
      Chain().add32(2).add32(7).add32(8).value(),                             // key_bits
      Chain().add32(16).add32(3).add32(1).value(),                            // value_bits
      Chain().add32(kScalar).add32(0).add32(kBands).add32(0x34).add32(kScalar).add32(0).value(),
      Chain().add32(0).add32(0).add32(kGrouped).add32(32).add32(kLevels).add32(0).value(),
      Chain().add32(0).add32(2).add32(0).add32(0).add32(0).add32(0).value(),  // io_dtype
      Chain().add32(1).add32(0).add32(1).add32(0).add32(1).add32(1).value(),  // rotation
      Chain().add64(s).add64(0).add64(s).add64(0).add64(s).add64(s).value(),  // rotation_seed
      Chain().book({30, 100}).book(band_books()).book({}).value(),            // key_codebook
      Chain().book({}).book({}).book(levels_bytes()).value(),                 // value_codebook
      key_centres.value(),
      value_centres.value()};
  uint32_t found[kStateFields] = {};
  part_fields(identity_, part, found);
  for (int i = 0; i < kStateFields; i++) EXPECT_EQ(found[i], expected[i]) << "field " << i;
}

// The kv head from 5 on alone, of two layers.
TEST_F(Words, OfAPartsFields) {
  StatePart part = {};
  part.first_layer = 0, part.num_layers = 2, part.first_head = 5, part.num_heads = 1;
  uint32_t found[kStateFields] = {};
  part_fields(identity_, part, found);
  EXPECT_EQ(found[0], Chain().add32(5).add32(6).value());
  EXPECT_EQ(found[2], Chain().add32(5).add32(1).add32(5).add32(1).value());
  EXPECT_EQ(found[14], Chain()
                           .add64(centre_hash(identity_, 0, 1, Kind::kKey))
                           .add64(centre_hash(identity_, 1, 1, Kind::kKey))
                           .value());
}

// Of prod keys: the codebook of a bit less, and the factor in the last four bytes.
TEST_F(Words, OfAProdSide) {
  config_.layers = nullptr, config_.key_codebook = nullptr;
  config_.key_bits = 3, config_.key_family = TQ_CODE_PROD, config_.value_bits = 4;
  const ResolvedConfig resolved(&config_);
  const Geometry& g = resolved.geometry();
  const SideIdentity side = side_identity(g, 1, Kind::kKey);
  const format::Codebook book = format::builtin_codebook(kDim, 2);
  std::vector<uint8_t> expected(32);
  memcpy(expected.data(), book.magnitude, 2);
  const uint32_t factor = bits(g.layers[1].sketch_factor);
  EXPECT_NE(factor, 0u);
  for (size_t i = 0; i < 4; i++) expected[28 + i] = static_cast<uint8_t>(factor >> 8 * i);
  EXPECT_EQ(std::vector<uint8_t>(side.magnitude, side.magnitude + 32), expected);
  EXPECT_EQ(side.dim, kDim);
  EXPECT_EQ(side.family, 2);
  EXPECT_EQ(side.bits, 3);
  EXPECT_EQ(side.variant, TQ_SKETCH_ORTHOGONAL);
  EXPECT_EQ(side.raw_type, 0);
  EXPECT_EQ(side.rotation, 1);
  EXPECT_EQ(side.seed, kSeed);
}

}  // namespace
}  // namespace tq
