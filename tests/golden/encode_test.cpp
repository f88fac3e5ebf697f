// SPDX-License-Identifier: Apache-2.0
// The scalar definition (src/format) against the golden vectors of the NumPy oracle: codes, scales, words,
// tiles, decoded vectors and non-finite flags, every bit. The oracle was written from FORMAT.md alone.
#include <cstdio>

#include "golden_file.h"

namespace tq::golden {
namespace {

using format::Kind;

constexpr int kVectors = 32;

class Encode : public testing::TestWithParam<int> {
 protected:
  Encode()
      : file_("encode_d" + std::to_string(GetParam()) + ".safetensors"),
        parameters_(file_.parameters("parameters")) {}

  // One coded set of the file.
  struct Set {
    std::string prefix;  // "key.b3.norm."
    Kind kind;
    int bits;
    std::string variant;
  };
  std::vector<Set> sets() const {
    std::vector<Set> found;
    for (const auto& entry : file_.tensors())
      for (const std::string side : {"key", "value"})
        for (const int bits : {2, 3, 4, 5, 6, 8})
          for (const std::string variant : {"", "norm", "paper", "nosearch", "centre", "dense"}) {
            const std::string prefix =
                side + ".b" + std::to_string(bits) + "." + (variant.empty() ? "" : variant + ".");
            if (entry.first == prefix + "codes")
              found.push_back({prefix, side == "key" ? Kind::kKey : Kind::kValue, bits, variant});
          }
    return found;
  }
  std::vector<float> centre(const std::string& variant) {
    return variant == "centre" ? file_.read<float>("centre") : std::vector<float>();
  }

  GoldenFile file_;
  nlohmann::json parameters_;
};

TEST_P(Encode, CodesScalesAndFlags) {
  const std::vector<float> input = file_.read<float>("input");
  const std::vector<Set> all = sets();
  ASSERT_GE(all.size(), 12u) << "six widths, keys and values";
  for (const Set& set : all) {
    SCOPED_TRACE(set.prefix);
    const Coder coder(parameters_, set.kind, set.bits, set.variant, centre(set.variant));
    const int stored = (*coder).stored, dim = (*coder).dim;
    std::vector<uint8_t> codes(static_cast<size_t>(kVectors) * stored), flags(kVectors);
    std::vector<uint16_t> scales(kVectors);
    for (int i = 0; i < kVectors; i++)
      flags[i] = format::encode_vector(*coder, &input[i * dim], &codes[i * stored], &scales[i]);
    const std::vector<uint8_t> expected = file_.read<uint8_t>(set.prefix + "codes");
    const int64_t at = first_difference(codes, expected);
    EXPECT_EQ(at, -1) << "vector " << at / stored << ", coordinate " << at % stored << ": code "
                      << int(codes[at]) << ", expected " << int(expected[at]);
    EXPECT_EQ(scales, file_.read<uint16_t>(set.prefix + "scales"));
    const std::string own = set.prefix + "nonfinite";
    EXPECT_EQ(flags, file_.read<uint8_t>(file_.has(own) ? own : "nonfinite"));
  }
}

TEST_P(Encode, Decoded) {
  int compared = 0;
  for (const Set& set : sets()) {
    if (!file_.has(set.prefix + "decoded")) continue;
    SCOPED_TRACE(set.prefix);
    const Coder coder(parameters_, set.kind, set.bits, set.variant, centre(set.variant));
    const std::vector<uint8_t> codes = file_.read<uint8_t>(set.prefix + "codes");
    const std::vector<uint16_t> scales = file_.read<uint16_t>(set.prefix + "scales");
    std::vector<float> decoded(static_cast<size_t>(kVectors) * (*coder).dim);
    for (int i = 0; i < kVectors; i++)
      format::decode_vector(*coder, &codes[i * (*coder).stored], scales[i], &decoded[i * (*coder).dim]);
    EXPECT_EQ(first_difference(decoded, file_.read<float>(set.prefix + "decoded")), -1);
    compared++;
  }
  if (GetParam() == 64 || GetParam() == 128) {
    EXPECT_GE(compared, 6);
  }
}

TEST_P(Encode, Words) {
  int compared = 0;
  for (const Set& set : sets()) {
    if (!file_.has(set.prefix + "words")) continue;
    SCOPED_TRACE(set.prefix);
    const format::SideLayout side(GetParam(), set.bits);
    const std::vector<uint8_t> codes = file_.read<uint8_t>(set.prefix + "codes");
    const std::vector<uint32_t> expected = file_.read<uint32_t>(set.prefix + "words");
    ASSERT_EQ(expected.size() * 4, static_cast<size_t>(side.code_bytes()));
    // store_code must overwrite every bit between them
    std::vector<uint32_t> words(expected.size(), 0xDEADBEEFu);
    for (int i = 0; i < kVectors; i++)
      for (int c = 0; c < side.stored; c++)
        format::store_code(words.data(), side, format::code_place(side, set.kind, i, c),
                           codes[i * side.stored + c]);
    EXPECT_EQ(first_difference(words, expected), -1);
    for (int i = 0; i < kVectors; i++)
      for (int c = 0; c < side.stored; c++)
        ASSERT_EQ(format::load_code(expected.data(), side, format::code_place(side, set.kind, i, c)),
                  codes[i * side.stored + c]);
    compared++;
  }
  EXPECT_GE(compared, 12);
}

std::string dim_name(const testing::TestParamInfo<int>& info) { return "d" + std::to_string(info.param); }
INSTANTIATE_TEST_SUITE_P(Golden, Encode, testing::ValuesIn(kGoldenDims), dim_name);

TEST(Golden, DenseCorner) {
  GoldenFile file("encode_d64.safetensors");
  for (const char* side : {"key", "value"}) {
    const Coder coder(file.parameters("parameters"), side[0] == 'k' ? Kind::kKey : Kind::kValue, 3, "dense",
                      {});
    const std::vector<float> corner = file.read<float>(std::string(side) + ".dense.corner");
    for (int r = 0; r < 8; r++)
      for (int c = 0; c < 8; c++)
        EXPECT_EQ(coder.dense()[r * 64 + c], corner[r * 8 + c]) << side << " " << r << " " << c;
  }
}

TEST(Golden, RawSides) {
  GoldenFile file("encode_d64.safetensors");
  for (const std::string type : {"f16", "bf16", "f32"}) {
    SCOPED_TRACE(type);
    const std::vector<uint16_t> expected = file.read<uint16_t>("raw." + type + ".stored");
    std::vector<uint16_t> stored(expected.size()), halves;
    std::vector<uint8_t> flags(kVectors), saturations(kVectors);
    std::vector<float> floats;
    if (type == "f32")
      floats = file.read<float>("raw.f32.input");
    else
      halves = file.read<uint16_t>("raw." + type + ".input");
    for (size_t i = 0; i < stored.size(); i++) {
      bool replaced = false, saturated = false;
      stored[i] = type == "f32"   ? format::raw_from_f32(floats[i], &replaced, &saturated)
                  : type == "f16" ? format::raw_from_f16(halves[i], &replaced)
                                  : format::raw_from_bf16(halves[i], &replaced);
      flags[i / 64] |= replaced;
      saturations[i / 64] |= saturated;
    }
    EXPECT_EQ(first_difference(stored, expected), -1);
    EXPECT_EQ(saturations, file.read<uint8_t>("raw." + type + ".saturated"));
    EXPECT_EQ(flags, file.read<uint8_t>("raw." + type + ".nonfinite"));
  }
}

// One side of a tile into bytes: codes of the golden sets, or the raw values.
void place_side(GoldenFile& file, Kind kind, const format::SideLayout& side, int tokens, uint8_t* words,
                uint8_t* scales) {
  if (side.raw()) {
    const std::vector<uint16_t> raw = file.read<uint16_t>("raw.f32.stored");
    memcpy(words, raw.data(), static_cast<size_t>(tokens) * side.dim * 2);
    return;
  }
  const std::string prefix =
      std::string(kind == Kind::kKey ? "key.b" : "value.b") + std::to_string(side.bits) + ".";
  const std::vector<uint8_t> codes = file.read<uint8_t>(prefix + "codes");
  std::vector<uint32_t> packed(side.code_bytes() / 4);
  for (int i = 0; i < tokens; i++)
    for (int c = 0; c < side.stored; c++)
      format::store_code(packed.data(), side, format::code_place(side, kind, i, c),
                         codes[i * side.stored + c]);
  memcpy(words, packed.data(), side.code_bytes());
  memcpy(scales, file.read<uint16_t>(prefix + "scales").data(), 2 * static_cast<size_t>(tokens));
}

TEST(Golden, WholeTiles) {
  GoldenFile file("encode_d64.safetensors");
  int compared = 0;
  for (const auto& entry : file.tensors()) {
    int key_bits = 0, value_bits = 0, tokens = kVectors;
    if (std::sscanf(entry.first.c_str(), "tile.k%dv%d.n%d", &key_bits, &value_bits, &tokens) < 2) continue;
    SCOPED_TRACE(entry.first);
    const format::TileLayout tile(64, 64, key_bits, value_bits);
    std::vector<uint8_t> bytes(tile.tile_bytes());
    place_side(file, Kind::kKey, tile.key, tokens, &bytes[tile.key_offset()],
               bytes.data() + tile.key_scale_offset());
    place_side(file, Kind::kValue, tile.value, tokens, &bytes[tile.value_offset()],
               bytes.data() + tile.value_scale_offset());
    EXPECT_EQ(first_difference(bytes, file.read<uint8_t>(entry.first)), -1);
    compared++;
  }
  EXPECT_EQ(compared, 4);
}

}  // namespace
}  // namespace tq::golden
