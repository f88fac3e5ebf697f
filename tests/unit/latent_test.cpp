// SPDX-License-Identifier: Apache-2.0
// Latent layers: configuration, sizes, what calls refuse, and what becomes of a sequence that forks, loses
// tokens, moves to other pages, to memory and to a file: it attends to the same bits.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "config.h"
#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

#define TQ_MUST(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

constexpr int kLatent = 64, kRest = 32, kDim = kLatent + kRest, kHeads = 24;

tq_cache_config base() {
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.num_layers = 2, c.num_q_heads = kHeads, c.num_kv_heads = 1;
  c.head_dim = kDim, c.value_dim = kLatent, c.layer_kind = TQ_LATENT;
  c.io_dtype = TQ_F32, c.key_bits = 8, c.value_bits = 4;
  c.max_tokens = 512, c.max_sequences = 4, c.num_threads = 1;
  return c;
}

std::string reason(const tq_cache_config& c) {
  try {
    const ResolvedConfig resolved(&c);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(LatentConfig, Sizes) {
  tq_cache_config c = base();
  c.num_layers = 1, c.head_dim = 576, c.value_dim = 512, c.num_q_heads = 128;
  const struct {
    int rest_bits, latent_bits;
    int64_t token_bytes;
  } cases[] = {{8, 4, 256 + 2 + 64 + 2}, {4, 4, 256 + 2 + 32 + 2}, {16, 4, 256 + 2 + 128}, {16, 16, 1152}};
  for (const auto& each : cases) {
    c.key_bits = each.rest_bits, c.value_bits = each.latent_bits;
    const ResolvedConfig r(&c);
    EXPECT_EQ(r.token_bytes(), each.token_bytes);
    EXPECT_EQ(r.fp16_token_bytes(), 1152);
    EXPECT_EQ(r.geometry().layers[0].input_dim(), 576);
    EXPECT_EQ(r.config().layers[0].head_dim, 576);
    EXPECT_EQ(r.config().layers[0].layer_kind, TQ_LATENT);
  }
  c.head_dim = 288, c.value_dim = 256;  // no dimension of other layers
  EXPECT_EQ(reason(c), "");
}

TEST(LatentConfig, Reasons) {
  const auto text = [](void (*change)(tq_cache_config&)) {
    tq_cache_config c = base();
    change(c);
    return reason(c);
  };
  const char* const dims = "layer 0: head_dim = %d, value_dim = %d: with layer_kind = 2 (TQ_LATENT)";
  const auto begins = [](const std::string& found, const std::string& wanted) {
    EXPECT_EQ(found.substr(0, wanted.size()), wanted) << found;
    EXPECT_EQ(found.find('\n'), std::string::npos) << "one fault, one reason: " << found;
  };
  const auto with = [dims](int head_dim, int value_dim) {
    char line[128];
    snprintf(line, sizeof line, dims, head_dim, value_dim);
    return std::string(line);
  };
  begins(text([](tq_cache_config& c) { c.layer_kind = 3; }), "layer_kind = 3: must be 1 .. 2");
  begins(text([](tq_cache_config& c) { c.layer_kind = -1; }), "layer_kind = -1:");
  begins(text([](tq_cache_config& c) { c.reserved = 7; }), "reserved = 7: must be 0");
  begins(text([](tq_cache_config& c) { c.value_dim = 0; }), with(kDim, 0));
  begins(text([](tq_cache_config& c) { c.value_dim = kDim; }), with(kDim, kDim));
  begins(text([](tq_cache_config& c) { c.value_dim = kDim - 2; }), with(kDim, kDim - 2));
  begins(text([](tq_cache_config& c) { c.head_dim = 640, c.value_dim = 512; }), with(640, 512));
  begins(text([](tq_cache_config& c) { c.head_dim = -4; }), with(-4, kLatent));
  begins(text([](tq_cache_config& c) { c.value_family = TQ_CODE_PROD; }),
         "layer 0: value_family = 2 (TQ_CODE_PROD)");
  begins(text([](tq_cache_config& c) { c.flags = TQ_FLAG_EXACT_CHUNK; }),
         "flags = 0x10: TQ_FLAG_EXACT_CHUNK: layer 0 is TQ_LATENT");
  static tq_layer_config layers[2];
  for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
  layers[1].layer_kind = 5;
  begins(text([](tq_cache_config& c) { c.layers = layers; }), "layers[1].layer_kind = 5: must be 0");
  layers[1].layer_kind = TQ_KEYS_VALUES, layers[1].shares_layer = 1;
  begins(text([](tq_cache_config& c) { c.layers = layers; }),
         "layers[1].layer_kind = 1: it shares the tokens of layer 0, where it is 2");
  layers[1].layer_kind = 0;
  EXPECT_EQ(text([](tq_cache_config& c) { c.layers = layers; }), "");
  // A latent layer whose parts are no dimensions, behind one that is right.
  layers[1].shares_layer = 0, layers[1].value_dim = kLatent - 2;
  const auto second = [&](int head_dim, int value_dim) {
    std::string line = with(head_dim, value_dim);
    line.replace(0, 7, "layer 1");
    return line;
  };
  begins(text([](tq_cache_config& c) { c.layers = layers; }), second(kDim, kLatent - 2));
  layers[1].value_dim = 0, layers[1].head_dim = kDim + 2;
  begins(text([](tq_cache_config& c) { c.layers = layers; }), second(kDim + 2, kLatent));
  layers[1].head_dim = 0;
  layers[1].shares_layer = 0, layers[1].layer_kind = TQ_KEYS_VALUES;  // a layer of 96 beside a latent one
  EXPECT_EQ(text([](tq_cache_config& c) { c.layers = layers; }), "");
}

// Numbers that depend on `stream` alone.
std::vector<float> rows(uint64_t stream, int64_t count) {
  std::vector<float> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); i++)
    x[i] = static_cast<float>(static_cast<double>(format::mix64(stream * 7919 + i) >> 11) * 0x1p-52 - 1) * 3;
  return x;
}

class LatentCache {
 public:
  explicit LatentCache(const tq_cache_config& config) { open(config); }
  ~LatentCache() {
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache), TQ_OK);
  }
  LatentCache(const LatentCache&) = delete;
  LatentCache& operator=(const LatentCache&) = delete;

  void append(tq_sequence sequence, uint64_t stream, int64_t count) {
    const int64_t none = 0;
    TQ_MUST(tq_batch_plan(batch, 1, &sequence, &count, &none, nullptr));
    for (int32_t layer = 0; layer < 2; layer++) {
      const std::vector<float> k = rows(stream + static_cast<uint64_t>(layer), count * kDim);
      TQ_MUST(tq_cache_append(cache, layer, batch, k.data(), nullptr, nullptr, nullptr));
    }
  }
  std::vector<float> attend(tq_sequence sequence) {
    const int64_t none = 0, queries = 2;
    EXPECT_EQ(tq_batch_plan(batch, 1, &sequence, &none, &queries, nullptr), TQ_OK) << tq_last_error();
    std::vector<float> all;
    for (int32_t layer = 0; layer < 2; layer++) {
      const std::vector<float> q = rows(77, queries * kHeads * kDim);
      std::vector<float> out(static_cast<size_t>(queries * kHeads * kLatent));
      EXPECT_EQ(
          tq_cache_attend(cache, layer, batch, q.data(), out.data(), nullptr, nullptr, nullptr, 0, nullptr),
          TQ_OK)
          << tq_last_error();
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }

  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  tq_sequence sequence = 0;

 private:
  void open(const tq_cache_config& config) {
    TQ_MUST(tq_cache_create(&config, nullptr, &cache));
    TQ_MUST(tq_batch_create(cache, &batch));
    TQ_MUST(tq_sequence_create(cache, &sequence));
  }
};

TEST(LatentCalls, ValuesAndTheirCentreAreRefused) {
  LatentCache own(base());
  const std::vector<float> x = rows(1, kDim);
  const int64_t one = 1;
  EXPECT_EQ(tq_cache_set_centres(own.cache, 1, x.data(), x.data()), TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_NE(std::string(tq_last_error()).find("value_centre = "), std::string::npos) << tq_last_error();
  TQ_MUST(tq_batch_plan(own.batch, 1, &own.sequence, &one, nullptr, nullptr));
  EXPECT_EQ(tq_cache_append(own.cache, 0, own.batch, x.data(), x.data(), nullptr, nullptr),
            TQ_ERROR_INVALID_ARGUMENT);
  EXPECT_NE(std::string(tq_last_error()).find("v = 0x"), std::string::npos) << tq_last_error();
  EXPECT_NE(std::string(tq_last_error()).find("layer 0"), std::string::npos) << tq_last_error();
  EXPECT_EQ(tq_cache_append(own.cache, 0, own.batch, nullptr, nullptr, nullptr, nullptr),
            TQ_ERROR_INVALID_ARGUMENT);
  TQ_MUST(tq_cache_append(own.cache, 0, own.batch, x.data(), nullptr, nullptr, nullptr));
}

// A centre of all coordinates of the keys changes the codes, not what exact arithmetic would give: it brings
// keys with a large common part near the result without codes.
TEST(LatentCalls, CentresCoverBothParts) {
  tq_cache_config coded = base(), raw = base();
  coded.num_layers = raw.num_layers = 2;
  coded.key_bits = coded.value_bits = 4;
  raw.key_bits = raw.value_bits = 16;
  LatentCache plain(coded), centred(coded), exact(raw);
  std::vector<float> centre = rows(5, kDim);
  for (float& x : centre) x *= 10;
  for (int32_t layer = 0; layer < 2; layer++)
    TQ_MUST(tq_cache_set_centres(centred.cache, layer, centre.data(), nullptr));
  for (LatentCache* each : {&plain, &centred, &exact}) {
    const int64_t count = 40, none = 0;
    TQ_MUST(tq_batch_plan(each->batch, 1, &each->sequence, &count, &none, nullptr));
    for (int32_t layer = 0; layer < 2; layer++) {
      std::vector<float> k = rows(9, count * kDim);
      for (size_t i = 0; i < k.size(); i++) k[i] += centre[i % kDim];
      TQ_MUST(tq_cache_append(each->cache, layer, each->batch, k.data(), nullptr, nullptr, nullptr));
    }
  }
  const std::vector<float> want = exact.attend(exact.sequence);
  const auto error = [&want](const std::vector<float>& got) {
    double difference = 0;
    for (size_t i = 0; i < got.size(); i++) difference += (got[i] - want[i]) * (got[i] - want[i]);
    return difference;
  };
  EXPECT_LT(error(centred.attend(centred.sequence)), error(plain.attend(plain.sequence)) / 20);
  uint64_t a = 0, b = 0;
  TQ_MUST(tq_cache_fingerprint(plain.cache, &a));
  TQ_MUST(tq_cache_fingerprint(centred.cache, &b));
  EXPECT_NE(a, b);
}

TEST(LatentCalls, SequencesTravel) {
  tq_cache_config config = base(), other = base();
  config.window_tokens = other.window_tokens = 6, config.sink_tokens = other.sink_tokens = 2;
  other.page_size = 32, other.max_tokens = 1024;
  LatentCache own(config), target(other);
  own.append(own.sequence, 10, 100);
  const std::vector<float> want = own.attend(own.sequence);
  // A fork that goes on and comes back.
  tq_sequence fork = 0, copy = 0, loaded = 0;
  TQ_MUST(tq_sequence_fork(own.cache, own.sequence, nullptr, &fork));
  own.append(fork, 20, 3);
  EXPECT_TRUE(own.attend(own.sequence) == want);
  EXPECT_FALSE(own.attend(fork) == want);
  TQ_MUST(tq_sequence_copy(own.cache, own.sequence, target.cache, nullptr, &copy));
  EXPECT_TRUE(target.attend(copy) == want);
  // Out and in, and through a file.
  tq_state state = {};
  state.struct_size = sizeof state;
  TQ_MUST(tq_sequence_describe(own.cache, own.sequence, &state));
  std::vector<uint8_t> memory(static_cast<size_t>(state.bytes) + 16);
  uint8_t* const at = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  TQ_MUST(tq_sequence_export(own.cache, own.sequence, &state, at, static_cast<size_t>(state.bytes), nullptr));
  TQ_MUST(tq_sequence_import(target.cache, target.sequence, &state, at, static_cast<size_t>(state.bytes),
                             nullptr));
  EXPECT_TRUE(target.attend(target.sequence) == want);
  struct Stream {
    std::vector<uint8_t> bytes;
    size_t at = 0;
  } stream;
  tq_io io = {};
  io.struct_size = sizeof io, io.user = &stream;
  io.write = [](void* user, const void* from, size_t count) {
    const uint8_t* first = static_cast<const uint8_t*>(from);
    auto& bytes = static_cast<Stream*>(user)->bytes;
    bytes.insert(bytes.end(), first, first + count);
    return int32_t{0};
  };
  io.read = [](void* user, void* to, size_t count) {
    Stream& s = *static_cast<Stream*>(user);
    if (count > s.bytes.size() - s.at) return int32_t{1};
    memcpy(to, s.bytes.data() + s.at, count);
    s.at += count;
    return int32_t{0};
  };
  TQ_MUST(tq_sequence_save(own.cache, own.sequence, &io, nullptr));
  TQ_MUST(tq_sequence_load(target.cache, &io, nullptr, &loaded));
  EXPECT_TRUE(target.attend(loaded) == want);
  // What is read of tokens behind others that were taken out is what it was.
  std::vector<float> before(50 * kDim), after(50 * kDim);
  TQ_MUST(tq_cache_read(own.cache, 1, own.sequence, 20, 50, before.data(), nullptr, nullptr, nullptr));
  TQ_MUST(tq_sequence_remove(own.cache, own.sequence, 5, 11, nullptr));
  TQ_MUST(tq_cache_read(own.cache, 1, own.sequence, 9, 50, after.data(), nullptr, nullptr, nullptr));
  EXPECT_TRUE(before == after);
}

// Layers of the same sides that are not latent do not take latents, nor the other way round.
TEST(LatentCalls, OtherLayersAreIncompatible) {
  for (const int bits : {4, 16}) {
    tq_cache_config config = base();
    config.key_bits = config.value_bits = bits;
    tq_cache_config sides = config;
    sides.layer_kind = TQ_KEYS_VALUES, sides.head_dim = kRest;
    LatentCache own(config), other(sides);
    own.append(own.sequence, 1, 10);
    tq_sequence copy = 0;
    EXPECT_EQ(tq_sequence_copy(own.cache, own.sequence, other.cache, nullptr, &copy), TQ_ERROR_INCOMPATIBLE);
    EXPECT_NE(std::string(tq_last_error()).find("layer_kind"), std::string::npos) << tq_last_error();
    uint64_t a = 0, b = 0;
    TQ_MUST(tq_cache_fingerprint(own.cache, &a));
    TQ_MUST(tq_cache_fingerprint(other.cache, &b));
    EXPECT_NE(a, b);
  }
}

}  // namespace
}  // namespace tq
