// SPDX-License-Identifier: Apache-2.0
// The world of the fuzz target of C API programs: two caches of one geometry, batches, sequences, and a model
// of what every caller can see: which sequences live, how long they are, what the pools hold.
//
// after(status) is told of every call. A call that failed has left all that as it was, has a text, and is no
// INTERNAL error; one that succeeded has changed the lengths as the model says.
#pragma once
#define XXH_INLINE_ALL
#include <math.h>
#include <xxhash.h>

#include <memory>

#include "fuzz.h"
#include "tqkv.h"

namespace tq {
namespace fuzz {

struct Call {
  uint8_t op, a, b, bad;
  uint32_t n;
  uint64_t value;
};
constexpr size_t kCallHead = 16, kCallBytes = 16, kMostCalls = 48;

// Bytes of exactly the wanted size, so that AddressSanitizer sees the first one behind them.
struct Buffer {
  explicit Buffer(size_t bytes, uint8_t fill = 0xA5)
      : size(bytes), data(new uint8_t[std::max<size_t>(bytes, 1)]) {
    memset(data.get(), fill, size);
  }
  bool untouched() const {
    return std::all_of(data.get(), data.get() + size, [](uint8_t x) { return x == 0xA5; });
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  size_t size;
  std::unique_ptr<uint8_t[]> data;
};

inline int element_bytes(int32_t dtype) { return dtype == TQ_F32 ? 4 : 2; }

// Numbers of a type, below 2 in size; wild: any bits, NaN and infinity among them.
inline Buffer numbers(size_t count, int32_t dtype, uint64_t seed, bool wild) {
  Buffer buffer(count * static_cast<size_t>(element_bytes(dtype)));
  std::minstd_rand random(static_cast<unsigned>(seed % 2147483647));
  for (size_t i = 0; i < count; i++) {
    const uint32_t bits = static_cast<uint32_t>(random()) << 1 ^ static_cast<uint32_t>(random());
    const uint32_t exponent = bits >> 8 & 3;
    if (dtype == TQ_F32) {
      const uint32_t x = wild ? bits : (bits & 0x807FFFFFu) | (124 + exponent) << 23;
      memcpy(buffer.as<uint32_t>() + i, &x, sizeof x);
    } else {
      const uint32_t low = dtype == TQ_F16 ? 0x83FF : 0x807F, shift = dtype == TQ_F16 ? 10 : 7,
                     least = dtype == TQ_F16 ? 12 : 124;
      buffer.as<uint16_t>()[i] =
          static_cast<uint16_t>(wild ? bits : ((bits & low) | (least + exponent) << shift));
    }
  }
  return buffer;
}

inline float number_of(const uint8_t* data, size_t index, int32_t dtype) {
  uint32_t bits = 0;
  if (dtype == TQ_F32) {
    memcpy(&bits, data + 4 * index, 4);
  } else {
    uint16_t half;
    memcpy(&half, data + 2 * index, 2);
    // only whether it is finite matters
    bits = dtype == TQ_BF16 ? static_cast<uint32_t>(half) << 16 : ((half >> 10 & 31) == 31 ? 0x7F800000u : 0);
  }
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

struct Digest {
  uint64_t hash = 0;
  void add(const void* data, size_t size) { hash = XXH64(data, size, hash); }
  void add(const Buffer& buffer) { add(buffer.data.get(), buffer.size); }
  template <typename T>
  void add_value(T value) {
    add(&value, sizeof value);
  }
};

struct LiveSequence {
  int cache;
  tq_sequence id;
  int64_t length;
};

class CallWorld {
 public:
  explicit CallWorld(const uint8_t* head) {
    for (int i = 0; i < 2; i++) {
      configure(head, i);
      FUZZ_CHECK(tq_cache_create(&config_, nullptr, &caches[i]) == TQ_OK, "%s", tq_last_error());
      own[i].struct_size = sizeof own[i];
      FUZZ_CHECK(tq_cache_get_config(caches[i], &own[i]) == TQ_OK, "%s", tq_last_error());
    }
    if (head[15] % 4 != 3) settle_in();
    for (int i = 0; i < 2; i++) memory_[i] = memory(i);
  }
  ~CallWorld() {
    for (const LiveSequence& each : live)
      FUZZ_CHECK(tq_sequence_free(caches[each.cache], each.id, nullptr) == TQ_OK, "%s", tq_last_error());
    for (tq_batch*& batch : batches) tq_batch_destroy(batch);
    for (int i = 0; i < 2; i++) {
      const tq_cache_memory left = memory(i);
      FUZZ_CHECK(
          left.pages_used == 0 && left.stored_bytes_used == 0 && left.raw_bytes_used == 0 && left.tokens == 0,
          "cache %d: %lld pages, %lld bytes of exact copies are left", i,
          static_cast<long long>(left.pages_used), static_cast<long long>(left.raw_bytes_used));
      FUZZ_CHECK(tq_cache_destroy(caches[i]) == TQ_OK, "%s", tq_last_error());
    }
  }
  CallWorld(const CallWorld&) = delete;
  CallWorld& operator=(const CallWorld&) = delete;

  // What a call has done is what it says.
  void after(tq_status status) {
    if (status != TQ_OK) {
      FUZZ_CHECK(tq_last_error()[0] != 0, "%s without a text", tq_status_name(status));
      FUZZ_CHECK(
          status > 0 && status <= TQ_ERROR_IO && status != TQ_ERROR_OUT_OF_MEMORY && status != TQ_ERROR_CUDA,
          "%s: %s", tq_status_name(status), tq_last_error());
    }
    int64_t tokens[2] = {}, alive[2] = {};
    for (const LiveSequence& each : live) {
      int64_t length = -1;
      FUZZ_CHECK(tq_sequence_length(caches[each.cache], each.id, &length) == TQ_OK && length == each.length,
                 "sequence %lld has %lld tokens, expected %lld", static_cast<long long>(each.id),
                 static_cast<long long>(length), static_cast<long long>(each.length));
      tokens[each.cache] += length, alive[each.cache]++;
    }
    for (int i = 0; i < 2; i++) {
      const tq_cache_memory now = memory(i);
      FUZZ_CHECK(now.tokens == tokens[i] && now.num_sequences == alive[i],
                 "cache %d: %lld tokens, expected %lld", i, static_cast<long long>(now.tokens),
                 static_cast<long long>(tokens[i]));
      FUZZ_CHECK(status == TQ_OK || memcmp(&now, &memory_[i], sizeof now) == 0,
                 "cache %d: a failed call has changed its memory: %s", i, tq_last_error());
      memory_[i] = now;
    }
  }

  const tq_layer_config& layer(int cache, int32_t index) const {
    return own[cache].layers[static_cast<uint32_t>(index) % static_cast<uint32_t>(own[cache].num_layers)];
  }

  tq_cache* caches[2] = {};
  tq_cache_config own[2] = {};
  tq_batch* batches[3] = {};  // the last is the second cache's
  std::vector<LiveSequence> live;

 private:
  tq_cache_memory memory(int i) const {
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    FUZZ_CHECK(tq_cache_get_memory(caches[i], &memory) == TQ_OK, "%s", tq_last_error());
    return memory;
  }

  // Batches and sequences to begin with: programs that make them all themselves are rarely found.
  void settle_in() {
    for (int i = 0; i < 3; i++)
      FUZZ_CHECK(tq_batch_create(caches[i / 2], &batches[i]) == TQ_OK, "%s", tq_last_error());
    for (const int at : {0, 1, 0}) {
      if (std::count_if(live.begin(), live.end(),
                        [&](const LiveSequence& each) { return each.cache == at; }) == own[at].max_sequences)
        continue;
      live.push_back({at, 0, 0});
      FUZZ_CHECK(tq_sequence_create(caches[at], &live.back().id) == TQ_OK, "%s", tq_last_error());
    }
  }

  void configure(const uint8_t* head, int second) {
    static const int32_t kDims[] = {32, 32, 32, 64}, kBits[] = {2, 3, 4, 5, 6, 8, 16, 4};
    tq_cache_config& c = config_;
    tq_cache_config_init(&c);
    c.num_layers = 1 + head[0] % 3, c.num_kv_heads = 1 + head[1] % 2;
    c.num_q_heads = c.num_kv_heads * (1 + head[1] / 2 % 3);
    c.head_dim = kDims[head[2] % 4], c.value_dim = kDims[head[2] / 4 % 4];
    c.io_dtype = 1 + head[3] % 3, c.key_bits = kBits[head[4] % 8], c.value_bits = kBits[head[4] / 8 % 8];
    c.page_size = 32 * (1 + (head[5] + second) % 2), c.max_tokens = 64 + head[6] % 192;
    c.max_sequences = 1 + head[7] % 4, c.num_threads = 1;
    if (head[8] & 1) c.window_tokens = head[8] / 2 % 40, c.sink_tokens = head[9] % 40;
    if (head[8] & 128) c.rollback_tokens = head[9] / 4 % 40;
    if (head[10] & 1) c.max_batch_tokens = 1 + head[10] / 2;
    if (head[10] & 2 && !(head[11] & 8)) c.max_reserve_tokens = c.max_tokens + 64;
    if (head[11] & 1) c.max_sequence_tokens = 1 + head[11] % static_cast<int32_t>(c.max_tokens);
    c.flags = head[12] % 32;
    const bool once = c.flags & TQ_FLAG_STORE_ONCE;
    if (once) c.window_tokens = std::max(c.window_tokens, 1);
    if (head[11] & 8) {
      c.num_layers = 3;
      for (tq_layer_config& layer : layers_) layer = {}, layer.struct_size = sizeof layer;
      if (!once) layers_[1].sliding_window = 1 + head[13] % 64;
      layers_[2].shares_layer = 1 + head[14] % 2;
      c.layers = layers_;
    }
    choose_codes(head[3] / 3 % 8, head[14] / 2 % 8);
    if (head[13] / 64 == 3) be_latent(head[2] / 16 % 2);
  }

  // Codes of another family, of keys and of values, or keys in bands.
  void choose_codes(int key, int value) {
    static const int32_t kFamilies[] = {0,           0, 0, TQ_CODE_GROUPED, TQ_CODE_TRELLIS, TQ_CODE_LEVELS,
                                        TQ_CODE_PROD};
    static const float kNumbers[] = {-1.5f, -.5f, .5f, 1.5f, -1, 0, 1};
    static const tq_levels kLevels = {sizeof kLevels, 2, 1, 0, kNumbers, kNumbers + 4};
    static const int32_t kWidths[] = {6, 3};
    tq_cache_config& c = config_;
    if (value < 6) c.value_family = kFamilies[value];
    if (c.value_family) c.value_bits = c.value_family == TQ_CODE_LEVELS ? 2 : 2 + c.value_bits % 3;
    if (c.value_family == TQ_CODE_LEVELS) c.value_levels = &kLevels;
    if (key == 7) {
      if (!c.layers)
        for (tq_layer_config& layer : layers_) layer = {}, layer.struct_size = sizeof layer;
      for (size_t i = 0; i < sizeof order_ / sizeof *order_; i++)
        order_[i] = static_cast<int32_t>(i % static_cast<size_t>(c.head_dim)) ^ (c.value_bits & 1);
      bands_ = {sizeof bands_, c.head_dim / 32, kWidths, order_};
      c.key_bits = 0, c.layers = layers_;
      if (c.value_family == TQ_CODE_TRELLIS) c.key_family = TQ_CODE_TRELLIS;
      for (int i = 0; i < c.num_layers; i++)
        if (!layers_[i].shares_layer) layers_[i].key_bands = &bands_;
      return;
    }
    c.key_family = kFamilies[key];
    if (c.key_family) c.key_bits = c.key_family == TQ_CODE_LEVELS ? 2 : 2 + c.key_bits % 3;
    if (c.key_family == TQ_CODE_LEVELS) c.key_levels = &kLevels;
  }

  // All layers, or the last, with what latent ones take of the above.
  void be_latent(bool last) {
    tq_cache_config& c = config_;
    for (tq_layer_config& layer : layers_) layer.key_bands = nullptr;
    if (c.key_bits == 0) c.key_bits = 4;
    c.key_family = c.value_family = 0, c.key_levels = c.value_levels = nullptr;
    c.flags &= ~static_cast<uint64_t>(TQ_FLAG_EXACT_CHUNK);
    if (last && c.layers) {
      layers_[2] = {};
      layers_[2].struct_size = sizeof layers_[2], layers_[2].layer_kind = TQ_LATENT;
      layers_[2].head_dim = 96, layers_[2].value_dim = 64;
    } else {
      c.layer_kind = TQ_LATENT, c.head_dim += c.value_dim;
    }
  }

  tq_cache_config config_ = {};
  tq_layer_config layers_[3] = {};
  tq_key_bands bands_ = {};
  int32_t order_[2 * 64] = {};
  tq_cache_memory memory_[2] = {};
};

}  // namespace fuzz
}  // namespace tq
