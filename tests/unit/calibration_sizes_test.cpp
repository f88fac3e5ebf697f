// SPDX-License-Identifier: Apache-2.0
// Calibrations at the ends of what numbers can be: tokens of nearly the largest floats, key matrices that
// turn them beyond, tables that a file says are larger than memory, and caches that take a part of it only.
#include <float.h>
#include <gtest/gtest.h>
#include <math.h>
#include <string.h>
#include <sys/resource.h>

#include <algorithm>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "byte_stream.h"
#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr int32_t kDim = 8;
constexpr int64_t kTokens = 256;

// Of two layers, one head of kDim coordinates each.
class CalibrationSizesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tq_calibration_config config = {};
    config.struct_size = sizeof config;
    config.num_layers = 2, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = kDim;
    config.io_dtype = TQ_F32, config.held_out_tokens = 32;
    ASSERT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
  }
  void TearDown() override { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }

  // Numbers of about this size and both signs, the same for q, k and v.
  tq_status feed(int32_t layer, float size) {
    std::vector<float> x(kTokens * kDim);
    for (size_t i = 0; i < x.size(); i++)
      x[i] = (i * i % 7 < 3 ? -size : size) / static_cast<float>(1 + i % 5);
    return tq_calibration_feed(calibration, layer, kTokens, x.data(), x.data(), x.data());
  }
  // A matrix that makes keys so many times as long.
  tq_status turn(int32_t layer, float by) {
    std::vector<float> matrix(kDim * kDim);
    for (size_t i = 0; i < kDim; i++) matrix[i * kDim + i] = by;
    return tq_calibration_set_key_matrix(calibration, layer, matrix.data());
  }
  tq_status set_centres(int32_t last_family) {
    tq_layer_config layers[2] = {};
    for (tq_layer_config& layer : layers) layer.struct_size = sizeof layer;
    layers[1].key_family = last_family;
    tq_cache_config config;
    tq_cache_config_init(&config);
    config.num_layers = 2, config.num_q_heads = config.num_kv_heads = 1, config.head_dim = kDim;
    config.io_dtype = TQ_F32, config.key_bits = config.value_bits = 4, config.max_tokens = 32;
    config.num_threads = 1, config.layers = layers;
    tq_cache* cache = nullptr;
    EXPECT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
    uint64_t before = 0, after = 1;
    EXPECT_EQ(tq_cache_fingerprint(cache, &before), TQ_OK);
    const tq_status status = tq_calibration_set_centres(calibration, cache);
    EXPECT_EQ(tq_cache_fingerprint(cache, &after), TQ_OK);
    EXPECT_TRUE(before == after || status == TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
    return status;
  }
  // What is saved loads, and chooses finite numbers.
  void check_round() {
    ByteStream file;
    const tq_io io = file.io();
    ASSERT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
    tq_calibration* again = nullptr;
    ASSERT_EQ(tq_calibration_load(&io, &again), TQ_OK) << tq_last_error();
    tq_calibration_goal goal = {};
    goal.struct_size = sizeof goal;
    goal.key_bits = 3, goal.value_bits = 3;
    tq_layer_config layers[2];
    tq_calibration_result result = {};
    result.struct_size = sizeof result;
    EXPECT_EQ(tq_calibration_choose(again, &goal, layers, 2, &result), TQ_OK) << tq_last_error();
    EXPECT_TRUE(isfinite(result.error) && isfinite(result.uniform_error)) << result.error;
    EXPECT_EQ(tq_calibration_destroy(again), TQ_OK);
  }

  tq_calibration* calibration = nullptr;
};

TEST_F(CalibrationSizesTest, LargestFloats) {
  for (const float size : {FLT_MAX, 0x1p64f, 0x1p32f, FLT_MIN, 0x1p-149f}) {
    SCOPED_TRACE(size);
    for (int32_t layer = 0; layer < 2; layer++) ASSERT_EQ(feed(layer, size), TQ_OK) << tq_last_error();
    check_round();
    EXPECT_EQ(set_centres(0), TQ_OK) << tq_last_error();
  }
}

TEST_F(CalibrationSizesTest, BeyondFloatsByTheirMatrix) {
  ASSERT_EQ(turn(0, 0x1p20f), TQ_OK) << tq_last_error();
  EXPECT_EQ(feed(0, FLT_MAX), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "k: token 0 is not finite as the matrix of layer 0 turns it");
  ASSERT_EQ(turn(1, 0x1p-20f), TQ_OK) << tq_last_error();
  EXPECT_EQ(feed(1, FLT_MAX), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(tq_last_error(), "q: token 0 is not finite as the matrix of layer 1 turns it");
  // Nothing of these calls counts: layers that were fed take no matrix.
  for (int32_t layer = 0; layer < 2; layer++) {
    ASSERT_EQ(turn(layer, 0x1p20f), TQ_OK) << tq_last_error();
    ASSERT_EQ(feed(layer, 0x1p100f), TQ_OK) << tq_last_error();
  }
  check_round();
  EXPECT_EQ(set_centres(0), TQ_OK) << tq_last_error();
}

// A cache one of whose layers takes no matrix takes nothing of the others'.
TEST_F(CalibrationSizesTest, CacheThatRefusesAMatrix) {
  for (int32_t layer = 0; layer < 2; layer++) {
    ASSERT_EQ(turn(layer, 2), TQ_OK);
    ASSERT_EQ(feed(layer, 1), TQ_OK);
  }
  EXPECT_EQ(set_centres(TQ_CODE_GROUPED), TQ_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(std::string(tq_last_error()).substr(0, 22), "layer 1: a key matrix ");
  EXPECT_EQ(set_centres(TQ_CODE_TRELLIS), TQ_OK) << tq_last_error();
}

// The process's largest size so far, in bytes.
int64_t most_memory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// A file of some hundred bytes whose header promises key matrices of 16 GiB is refused at its end, before
// there is memory for them.
TEST_F(CalibrationSizesTest, TablesLargerThanTheirFile) {
  ASSERT_EQ(turn(0, 2), TQ_OK);
  for (int32_t layer = 0; layer < 2; layer++) ASSERT_EQ(feed(layer, 1), TQ_OK);
  ByteStream file;
  const tq_io io = file.io();
  ASSERT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
  const auto put = [&](size_t at, auto x) { memcpy(&file.bytes[at], &x, sizeof x); };
  // After magic and version: layers, query heads, kv heads, dim; the payload's bytes; the header's checksum.
  put(16, int32_t{65536}), put(20, int32_t{65536}), put(24, int32_t{256}), put(56, int64_t{1} << 40);
  put(64, XXH3_64bits(file.bytes.data(), 64));
  const int64_t before = most_memory();
  tq_calibration* again = nullptr;
  EXPECT_EQ(tq_calibration_load(&io, &again), TQ_ERROR_CORRUPT_DATA) << tq_last_error();
  EXPECT_EQ(again, nullptr);
  EXPECT_LT(most_memory() - before, int64_t{64} << 20);
}

// Prompts whose numbers differ by coordinate; one head, and coordinates from `still` on, are zero.
struct Prompt {
  tq_calibration* calibration = nullptr;
  Prompt(int32_t heads, int32_t dim, int32_t value_dim, int32_t silent = -1, int32_t still = 256,
         const int (&powers)[3] = {0, 0, 0}) {
    tq_calibration_config config = {};
    config.struct_size = sizeof config;
    config.num_layers = 1, config.num_q_heads = config.num_kv_heads = heads;
    config.head_dim = dim, config.value_dim = value_dim;
    config.io_dtype = TQ_F32, config.held_out_tokens = 32;
    EXPECT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
    std::vector<float> rows[2];
    for (const int32_t size : {dim, value_dim})
      for (int64_t i = 0; i < kTokens * heads * size; i++) {
        const int64_t token = i / size / heads, c = i % size, head = i / size % heads;
        const float x = static_cast<float>((token * 37 + c * c * 11) % 64 - 30);
        rows[size == value_dim].push_back(
            head == silent || c >= still ? 0.0f : ldexpf(x, static_cast<int>(c * 7 % 5)));
      }
    if (dim == value_dim) rows[0] = rows[1];
    // Queries are keys from the last coordinate to the first.
    std::vector<float> sides[3] = {rows[0], rows[0], rows[1]};
    for (auto row = sides[0].begin(); row != sides[0].end(); row += dim) std::reverse(row, row + dim);
    for (int i = 0; i < 3; i++)
      for (float& x : sides[i]) x = ldexpf(x, powers[i]);
    EXPECT_EQ(tq_calibration_feed(calibration, 0, kTokens, sides[0].data(), sides[1].data(), sides[2].data()),
              TQ_OK)
        << tq_last_error();
  }
  ~Prompt() { EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK); }
  Prompt(const Prompt&) = delete;
  Prompt& operator=(const Prompt&) = delete;

  struct Chosen {
    float error;
    int64_t token_bytes;
    std::vector<int32_t> widths;  // of bands, if there are any
  };
  static Chosen choose(tq_calibration* of, float bits) {
    tq_calibration_goal goal = {};
    goal.struct_size = sizeof goal;
    goal.key_bits = bits, goal.value_bits = 3;
    tq_calibration_result result = {};
    result.struct_size = sizeof result;
    tq_layer_config layer = {};
    EXPECT_EQ(tq_calibration_choose(of, &goal, &layer, 1, &result), TQ_OK) << tq_last_error();
    Chosen chosen = {result.error, result.token_bytes, {}};
    if (layer.key_bands)
      chosen.widths.assign(layer.key_bands->bits, layer.key_bands->bits + layer.key_bands->num_bands);
    return chosen;
  }
};

// Bytes of a token are those of FORMAT.md section 4, and of a loaded calibration the same: codes of 32 or
// fewer coordinates of a key, of the stored ones of a value, and two bytes of scale for each band or side.
TEST(CalibrationDims, BytesOfAToken) {
  const struct {
    int32_t dim, value_dim, bands, stored;
  } cases[] = {{36, 100, 2, 128}, {100, 36, 4, 64}, {132, 164, 5, 192}, {196, 32, 7, 32}, {228, 228, 8, 256}};
  for (const auto& each : cases) {
    SCOPED_TRACE(each.dim);
    Prompt own(1, each.dim, each.value_dim);
    ByteStream file;
    const tq_io io = file.io();
    ASSERT_EQ(tq_calibration_save(own.calibration, &io), TQ_OK) << tq_last_error();
    tq_calibration* again = nullptr;
    ASSERT_EQ(tq_calibration_load(&io, &again), TQ_OK) << tq_last_error();
    for (const float bits : {2.0f, 3.0f, 4.0f}) {
      const Prompt::Chosen first = Prompt::choose(own.calibration, bits),
                           second = Prompt::choose(again, bits);
      EXPECT_EQ(first.widths, second.widths);
      EXPECT_EQ(first.token_bytes, second.token_bytes);
      const int64_t keys =
          4 * each.bands * static_cast<int64_t>(bits) + (first.widths.empty() ? 2 : 2 * each.bands);
      EXPECT_EQ(first.token_bytes, keys + each.stored / 8 * 3 + 2);
    }
    EXPECT_EQ(tq_calibration_destroy(again), TQ_OK);
  }
}

// A head without keys has no say in what suits the others.
TEST(CalibrationDims, ASilentHead) {
  Prompt one(1, 96, 32);
  for (const int32_t silent : {0, 1}) {
    Prompt two(2, 96, 32, silent);
    for (const float bits : {2.0f, 3.0f, 4.0f}) {
      const std::vector<int32_t> alone = Prompt::choose(one.calibration, bits).widths;
      EXPECT_EQ(Prompt::choose(two.calibration, bits).widths, alone) << bits;
      EXPECT_FALSE(alone.empty()) << bits;
    }
  }
}

// Coordinates without a number in them get the band of the fewest bits, which is 1.
TEST(CalibrationDims, StillCoordinates) {
  Prompt own(1, 64, 32, -1, 32);
  const std::vector<int32_t> expected[] = {{3, 1}, {5, 1}, {6, 2}};
  for (const int bits : {2, 3, 4})
    EXPECT_EQ(Prompt::choose(own.calibration, static_cast<float>(bits)).widths, expected[bits - 2]) << bits;
}

// Of nothing nothing is wrong.
TEST(CalibrationDims, AllIsZero) {
  Prompt none(1, 64, 32, 0);
  for (const float bits : {2.0f, 3.0f, 4.0f}) EXPECT_EQ(Prompt::choose(none.calibration, bits).error, 0.0f);
}

// Numbers that are all a power of two larger: lengths and centres are, errors in logits by the squares, and
// every order, width and relative error is the same, to the bit.
TEST(CalibrationDims, PowersOfTwo) {
  const int powers[][3] = {{-9, 0, 0}, {0, -11, 0}, {0, 0, -12}, {7, 5, 9}, {-20, -14, -3}};
  const int32_t heads = 2, dim = 96, value_dim = 40, rates = 3;  // of three bands: 2, 3 and 4 bits
  const auto payload = [](Prompt& of) {
    ByteStream file;
    const tq_io io = file.io();
    EXPECT_EQ(tq_calibration_save(of.calibration, &io), TQ_OK) << tq_last_error();
    std::vector<uint8_t> bytes(file.bytes.begin() + 8 + 4 + 36 + 16 + 8, file.bytes.end() - 32);
    return bytes;
  };
  Prompt plain(heads, dim, value_dim);
  const std::vector<uint8_t> first = payload(plain);
  for (const auto& each : powers) {
    Prompt other(heads, dim, value_dim, -1, 256, each);
    const std::vector<uint8_t> found = payload(other);
    ASSERT_EQ(found.size(), first.size());
    size_t at = 0;
    const auto same = [&](int power, size_t count, const char* what) {
      for (size_t i = 0; i < count; i++, at += 4) {
        float a, b;
        memcpy(&a, &first[at], 4), memcpy(&b, &found[at], 4);
        EXPECT_EQ(ldexpf(a, power), b) << what << " " << i;
      }
    };
    const auto bits = [&](size_t count, const char* what) {
      EXPECT_EQ(memcmp(&first[at], &found[at], 4 * count), 0) << what;
      at += 4 * count;
    };
    const int errors = 2 * (each[0] + each[1]);
    same(each[1], 1, "length");
    same(each[1], heads * dim, "key centre");
    same(each[2], heads * value_dim, "value centre");
    bits(heads * dim, "order");
    same(errors, 3, "errors of keys");
    for (int rate = 0; rate < rates; rate++) bits(1, "widths"), same(errors, 1, "error in bands");
    same(0, 3, "errors of values");
    EXPECT_EQ(at, found.size());
  }
}

// Tables of more than a piece of the file: key matrices of 132 coordinates.
TEST(CalibrationDims, TablesOfSeveralPieces) {
  constexpr int32_t kWide = 132;
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = kWide, config.value_dim = 8, config.io_dtype = TQ_F32, config.held_out_tokens = 32;
  tq_calibration *own = nullptr, *again = nullptr;
  ASSERT_EQ(tq_calibration_create(&config, &own), TQ_OK) << tq_last_error();
  std::vector<float> matrix(kWide * kWide), found(matrix.size()), x(kTokens * kWide);
  for (size_t i = 0; i < kWide; i++)
    for (size_t j = 0; j < kWide; j++)
      matrix[i * kWide + j] = (i == j ? 1.0f : 0.0f) + static_cast<float>((i * 31 + j * 17) % 64) / 8192;
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * i % 101) - 50;
  ASSERT_EQ(tq_calibration_set_key_matrix(own, 0, matrix.data()), TQ_OK) << tq_last_error();
  ASSERT_EQ(tq_calibration_feed(own, 0, kTokens, x.data(), x.data(), x.data()), TQ_OK) << tq_last_error();
  ByteStream file;
  const tq_io io = file.io();
  ASSERT_EQ(tq_calibration_save(own, &io), TQ_OK) << tq_last_error();
  ASSERT_EQ(tq_calibration_load(&io, &again), TQ_OK) << tq_last_error();
  int32_t has = 0;
  ASSERT_EQ(tq_calibration_key_matrix(again, 0, found.data(), &has), TQ_OK);
  EXPECT_EQ(has, 1);
  EXPECT_EQ(found, matrix);
  EXPECT_EQ(tq_calibration_destroy(own), TQ_OK);
  EXPECT_EQ(tq_calibration_destroy(again), TQ_OK);
}

// The first numbers of a file behind its header: a key's length, centres, and the order of a head.
struct First {
  float length;
  std::vector<int32_t> order;
};
First first_of(int32_t dim, const std::vector<float>& q, const std::vector<float>& k) {
  tq_calibration_config config = {};
  config.struct_size = sizeof config;
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = config.value_dim = dim, config.io_dtype = TQ_F32, config.held_out_tokens = 32;
  tq_calibration* calibration = nullptr;
  EXPECT_EQ(tq_calibration_create(&config, &calibration), TQ_OK) << tq_last_error();
  EXPECT_EQ(
      tq_calibration_feed(calibration, 0, static_cast<int64_t>(k.size()) / dim, q.data(), k.data(), k.data()),
      TQ_OK);
  ByteStream file;
  const tq_io io = file.io();
  EXPECT_EQ(tq_calibration_save(calibration, &io), TQ_OK) << tq_last_error();
  EXPECT_EQ(tq_calibration_destroy(calibration), TQ_OK);
  const size_t size = static_cast<size_t>(dim);
  const uint8_t* const payload = file.bytes.data() + 8 + 4 + 36 + 16 + 8;
  First first = {0, std::vector<int32_t>(size)};
  memcpy(&first.length, payload, 4);
  memcpy(first.order.data(), payload + 4 * (1 + 2 * size), 4 * size);
  return first;
}

// The coordinate that weighs most comes first, whichever it is.
TEST(CalibrationDims, EveryCoordinateIsWeighed) {
  constexpr int32_t kWide = 64;
  std::vector<float> k(kTokens * kWide);
  for (size_t i = 0; i < k.size(); i++) k[i] = static_cast<float>(i * i % 101) - 50;
  for (const size_t at : {0u, 1u, 31u, 32u, 63u})
    for (const bool queries : {false, true}) {
      std::vector<float> sides[2] = {k, k};
      for (size_t token = 0; token < kTokens; token++) sides[!queries][token * kWide + at] *= 20;
      EXPECT_EQ(first_of(kWide, sides[0], sides[1]).order[0], static_cast<int32_t>(at)) << queries;
    }
}

// Of an even number of lengths the lower one of the two in the middle; of the tokens that are not held out,
// the first 4096.
TEST(CalibrationDims, TheLengthInTheMiddle) {
  for (const size_t tokens : {256u, 257u, 6000u}) {
    std::vector<float> k(tokens * kDim), lengths;
    for (size_t token = 0; token < tokens; token++) {
      const float length = static_cast<float>(1 + token * 2741 % 6007);
      k[token * kDim + token % kDim] = length;
      if (token / 32 % 4 != 3 && lengths.size() < 4096) lengths.push_back(length);
    }
    std::sort(lengths.begin(), lengths.end());
    EXPECT_EQ(first_of(kDim, k, k).length, lengths[(lengths.size() - 1) / 2]) << tokens;
  }
}

// What a coordinate weighs is its energy in queries times that in keys: much of one alone is less than some
// of both, and the sum of both says nothing.
TEST(CalibrationDims, ACoordinateWeighsByBoth) {
  constexpr int32_t kWide = 96;
  std::vector<float> sides[2] = {std::vector<float>(kTokens * kWide), std::vector<float>(kTokens * kWide)};
  const float energies[3][2] = {{1, 20}, {20, 1}, {9.5f, 9.5f}};  // products 20, 20 and 90, sums 21, 21, 19
  for (size_t token = 0; token < kTokens; token++)
    for (size_t i = 0; i < kWide; i++)
      for (size_t side = 0; side < 2; side++) {
        const float sign = format::mix64(token * kWide + i + 100000 * side) & 1 ? 1.0f : -1.0f;
        sides[side][token * kWide + i] = sign * sqrtf(energies[i / 32][side]);
      }
  const std::vector<int32_t> order = first_of(kWide, sides[0], sides[1]).order;
  for (size_t i = 0; i < 32; i++) EXPECT_GE(order[i], 64) << i;
}

}  // namespace
}  // namespace tq
