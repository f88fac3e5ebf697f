// SPDX-License-Identifier: Apache-2.0
// tq_sequence_save and _load on the CPU: the same bits in another cache, the same bytes when saved again, by
// ranks; every changed byte and every length of a file is noticed, and failures change nothing.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "unit/api_cache.h"

namespace tq {
namespace {

constexpr int kLayers = OneCache::kLayers;

// A file in memory. fails_at: the call that brings it there fails with 7.
struct File {
  std::string bytes;
  size_t at = 0, fails_at = ~size_t{0};

  static int32_t write(void* user, const void* from, size_t count) {
    File& file = *static_cast<File*>(user);
    file.bytes.append(static_cast<const char*>(from), count);
    return file.bytes.size() >= file.fails_at ? 7 : 0;
  }
  static int32_t read(void* user, void* to, size_t count) {
    File& file = *static_cast<File*>(user);
    if (file.at + count >= file.fails_at) return 7;
    if (file.at + count > file.bytes.size()) return 1;
    memcpy(to, file.bytes.data() + file.at, count);
    file.at += count;
    return 0;
  }
  tq_io io() { return tq_io{sizeof(tq_io), 0, this, write, read, nullptr}; }
};

std::string saved(OneCache& cache, tq_sequence sequence) {
  File file;
  const tq_io io = file.io();
  EXPECT_EQ(tq_sequence_save(cache.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  return file.bytes;
}
tq_status load(OneCache& cache, const std::string& bytes, tq_sequence* sequence) {
  File file;
  file.bytes = bytes;
  const tq_io io = file.io();
  return tq_sequence_load(cache.cache, &io, nullptr, sequence);
}
tq_sequence loaded(OneCache& cache, const std::string& bytes) {
  tq_sequence sequence = 0;
  EXPECT_EQ(load(cache, bytes, &sequence), TQ_OK) << tq_last_error();
  return sequence;
}

TEST(Save, LoadsToTheSameBits) {
  static tq_layer_config layers[kLayers];
  for (int layer = 0; layer < kLayers; layer++) {
    layers[layer] = tq_layer_config{};
    layers[layer].struct_size = sizeof(tq_layer_config);
    layers[layer].sliding_window = layer == 1 ? 40 : 0;
  }
  const OneCache::Change changes[] = {
      [](tq_cache_config&) {},
      [](tq_cache_config& c) { c.window_tokens = 10, c.sink_tokens = 5, c.rollback_tokens = 3; },
      [](tq_cache_config& c) { c.window_tokens = 50, c.rollback_tokens = 1, c.layers = layers; }};
  for (const auto& change : changes)
    for (const int64_t length : {0, 1, 32, 33, 100, 300}) {
      OneCache source(change);
      OneCache target([&](tq_cache_config& c) {
        change(c);
        c.page_size = 32, c.max_tokens = 2048, c.num_threads = 2;
      });
      const tq_sequence sequence = source.create(), before = target.create();
      source.append(sequence, 0, length);
      target.append(before, 1000, 90);
      TQ_MUST(tq_sequence_free(target.cache, before, nullptr));
      const std::string bytes = saved(source, sequence);
      const tq_sequence copy = loaded(target, bytes);
      EXPECT_EQ(target.length(copy), length);
      EXPECT_TRUE(saved(target, copy) == bytes) << length;
      const int64_t queries = std::min<int64_t>(length, 2);
      EXPECT_EQ(source.attend(sequence, queries), target.attend(copy, queries));
      source.append(sequence, length, 5);
      target.append(copy, length, 5);
      EXPECT_EQ(source.attend(sequence, 2), target.attend(copy, 2));
    }
}

// A sink that shares its tile with the window; a layer of which a query sees one token.
TEST(Save, OneSinkAndOneToken) {
  static tq_layer_config layers[kLayers];
  for (tq_layer_config& layer : layers) layer = {}, layer.struct_size = sizeof layer;
  layers[2].sliding_window = 1;
  const auto change = [](tq_cache_config& c) {
    c.sink_tokens = 1, c.window_tokens = 5, c.rollback_tokens = 4, c.layers = layers;
  };
  OneCache source(change), target(change);
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 30);
  source.append(sequence, 30, 1);
  tq_state state = {};
  state.struct_size = sizeof state;
  TQ_MUST(tq_sequence_describe(source.cache, sequence, &state));
  EXPECT_EQ(state.rollback_tokens, 4);
  const std::string bytes = saved(source, sequence);
  const tq_sequence copy = loaded(target, bytes);
  EXPECT_EQ(source.attend(sequence, 1), target.attend(copy, 1));
  EXPECT_TRUE(saved(target, copy) == bytes);
}

TEST(Save, RanksLoadTheirHeads) {
  OneCache whole([](tq_cache_config& c) { c.num_kv_heads = 4, c.window_tokens = 8; });
  const tq_sequence sequence = whole.create();
  whole.append(sequence, 0, 90);
  const std::string bytes = saved(whole, sequence);
  for (int first = 0; first < 4; first += 2) {
    const auto rank = [first](tq_cache_config& c) { c.first_kv_head = first, c.window_tokens = 8; };
    OneCache own(rank), part(rank);
    const tq_sequence appended = own.create();
    own.append(appended, 0, 90);
    EXPECT_EQ(own.attend(appended, 3), part.attend(loaded(part, bytes), 3));
  }
  OneCache other([](tq_cache_config& c) { c.first_kv_head = 3, c.window_tokens = 8; });
  tq_sequence none = 0;
  EXPECT_EQ(load(other, bytes, &none), TQ_ERROR_INCOMPATIBLE);
  EXPECT_NE(std::string(tq_last_error()).find("layer 0: first_kv_head = 0, the cache's is 3"),
            std::string::npos)
      << tq_last_error();
}

// A cache as small as can be, so that its files are.
void tiny(tq_cache_config& c) {
  static const int32_t bits[kLayers] = {2, 2, 2};
  c.num_kv_heads = 1;
  c.layer_key_bits = c.layer_value_bits = bits;
  c.sink_tokens = 1;
}

// The smallest cache, with one sequence of three tokens.
struct SmallCache {
  tq_cache_config config;
  tq_cache* cache = nullptr;
  explicit SmallCache(bool exact) {
    EXPECT_EQ(tq_cache_config_init(&config), TQ_OK);
    config.num_layers = config.num_kv_heads = config.num_q_heads = config.num_threads = 1;
    config.head_dim = 32, config.key_bits = config.value_bits = 2, config.io_dtype = TQ_F16;
    config.max_tokens = 64, config.max_sequences = 2, config.sink_tokens = exact ? 1 : 0;
    EXPECT_EQ(tq_cache_create(&config, nullptr, &cache), TQ_OK) << tq_last_error();
  }
  ~SmallCache() { EXPECT_EQ(tq_cache_destroy(cache), TQ_OK); }
  tq_sequence filled() {
    uint16_t x[3 * 32];
    for (int i = 0; i < 3 * 32; i++) x[i] = static_cast<uint16_t>(0x3800 + 37 * i);
    tq_batch* batch = nullptr;
    tq_sequence sequence = 0;
    const int64_t three = 3;
    EXPECT_EQ(tq_batch_create(cache, &batch), TQ_OK);
    EXPECT_EQ(tq_sequence_create(cache, &sequence), TQ_OK);
    EXPECT_EQ(tq_batch_plan(batch, 1, &sequence, &three, nullptr, nullptr), TQ_OK);
    EXPECT_EQ(tq_cache_append(cache, 0, batch, x, x, nullptr, nullptr), TQ_OK);
    EXPECT_EQ(tq_batch_destroy(batch), TQ_OK);
    return sequence;
  }
};

std::string bytes_of(tq_cache* cache, tq_sequence sequence) {
  File file;
  const tq_io io = file.io();
  EXPECT_EQ(tq_sequence_save(cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  return file.bytes;
}

// Every byte of a file changed to every other value, and every length: nothing wrong is taken, and the target
// is as it was.
TEST(Save, EveryByteCounts) {
  for (const bool exact : {false, true}) {
    SmallCache source(exact), target(exact);
    std::string bytes = bytes_of(source.cache, source.filled());
    const tq_sequence neighbour = target.filled();
    const std::string before = bytes_of(target.cache, neighbour);
    const bool all = getenv("TQKV_TEST_LONG") || (!exact && !getenv("TQKV_TEST_QUICK"));
    int64_t loads = 0, incompatible = 0;
    const auto refused = [&](const std::string& damaged) {
      File file;
      file.bytes = damaged;
      const tq_io io = file.io();
      tq_sequence copy = 5;
      const tq_status status = tq_sequence_load(target.cache, &io, nullptr, &copy);
      EXPECT_EQ(copy, 5);
      loads++;
      incompatible += status == TQ_ERROR_INCOMPATIBLE;
      return status;
    };
    for (size_t i = 0; i < bytes.size(); i++)
      for (int by = 1; by < 256; by += all ? 1 : 51) {
        const char right = bytes[i];
        bytes[i] = static_cast<char>(right + by);
        const tq_status status = refused(bytes);
        // Version, number of layers and required features are believed before the header's checksum.
        ASSERT_TRUE(status == TQ_ERROR_CORRUPT_DATA || (status == TQ_ERROR_INCOMPATIBLE && i >= 8 && i < 24))
            << "byte " << i << " + " << by << ": " << tq_status_name(status) << ", " << tq_last_error();
        bytes[i] = right;
      }
    for (size_t length = 0; length < bytes.size(); length++)
      ASSERT_EQ(refused(bytes.substr(0, length)), TQ_ERROR_CORRUPT_DATA) << length;
    EXPECT_TRUE(bytes_of(target.cache, neighbour) == before);
    File file;
    file.bytes = bytes + "what follows is not read";
    const tq_io io = file.io();
    tq_sequence copy = 0;
    ASSERT_EQ(tq_sequence_load(target.cache, &io, nullptr, &copy), TQ_OK) << tq_last_error();
    EXPECT_EQ(file.at, bytes.size());
    EXPECT_TRUE(bytes_of(target.cache, copy) == bytes);
    printf("    %lld loads of a file of %zu bytes, a byte changed or cut short: 0 taken, %lld incompatible\n",
           static_cast<long long>(loads), bytes.size(), static_cast<long long>(incompatible));
  }
}

// Checksums of a changed file made right again.
void mend(std::string* bytes, size_t header) {
  const auto put = [&](size_t at, uint64_t x) {
    for (size_t i = 0; i < 8; i++) (*bytes)[at + i] = static_cast<char>(x >> (8 * i));
  };
  put(header, XXH3_64bits(bytes->data(), header));
  const size_t end = bytes->size() - 24;
  size_t at = header + 8;
  for (uint64_t piece = 1; at < end; piece++) {
    const size_t count = std::min<size_t>(64 << 10, end - 8 - at);
    put(at + count, XXH3_64bits_withSeed(bytes->data() + at, count, piece));
    at += count + 8;
  }
  const XXH128_hash_t digest = XXH3_128bits(bytes->data(), end);
  put(end, digest.low64);
  put(end + 8, digest.high64);
}

// Whoever can compute checksums can say what he likes: it is refused, or it is a sequence like any other.
TEST(Save, MendedBytesDoNoHarm) {
  SmallCache source(true), target(true);
  std::string bytes = bytes_of(source.cache, source.filled());
  const size_t header = 104 + 16 + 2 * 64 + 16;
  const tq_sequence neighbour = target.filled();
  const std::string before = bytes_of(target.cache, neighbour);
  {
    std::string same = bytes;
    mend(&same, header);
    ASSERT_TRUE(same == bytes) << "the header has another length";
  }
  int64_t loads = 0, taken = 0;
  for (size_t i = 0; i + 24 < bytes.size(); i++)
    for (const int by : {1, 0x7F, 0x80, 0xFF}) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] + by);
      mend(&changed, header);
      if (changed == bytes) continue;  // a checksum
      File file;
      file.bytes = changed;
      const tq_io io = file.io();
      tq_sequence copy = 5;
      const tq_status status = tq_sequence_load(target.cache, &io, nullptr, &copy);
      loads++;
      if (status == TQ_OK) {
        taken++;
        const std::string again = bytes_of(target.cache, copy);
        if (i >= 104) {
          ASSERT_TRUE(again == changed) << "byte " << i << " + " << by;
        }
        TQ_MUST(tq_sequence_free(target.cache, copy, nullptr));
      } else {
        ASSERT_TRUE(status == TQ_ERROR_CORRUPT_DATA || status == TQ_ERROR_INCOMPATIBLE ||
                    status == TQ_ERROR_CAPACITY)
            << "byte " << i << " + " << by << ": " << tq_status_name(status) << ", " << tq_last_error();
        ASSERT_EQ(copy, 5);
      }
    }
  EXPECT_TRUE(bytes_of(target.cache, neighbour) == before);
  EXPECT_GT(taken, 0);
  EXPECT_LT(taken, loads);
  printf("    %lld loads of changed files with right checksums: %lld are sequences\n",
         static_cast<long long>(loads), static_cast<long long>(taken));
}

// A keyed hash in the place of a MAC: what a caller brings, as far as the library can tell.
struct SealedFile : File {
  XXH3_state_t* const hash = XXH3_createState();
  int32_t mac_bytes, result = 0;

  explicit SealedFile(uint64_t key, int32_t tag_bytes = 16) : mac_bytes(tag_bytes) {
    XXH3_128bits_reset_withSeed(hash, key);
  }
  ~SealedFile() { XXH3_freeState(hash); }
  SealedFile(const SealedFile&) = delete;
  SealedFile& operator=(const SealedFile&) = delete;
  static int32_t mac(void* user, const void* from, size_t count, void* tag) {
    SealedFile& file = *static_cast<SealedFile*>(user);
    if (!tag) return XXH3_128bits_update(file.hash, from, count) == XXH_OK ? file.result : -1;
    const XXH128_hash_t sum = XXH3_128bits_digest(file.hash);
    for (int32_t at = 0; at < file.mac_bytes; at += 16)
      memcpy(static_cast<uint8_t*>(tag) + at, &sum, static_cast<size_t>(std::min(16, file.mac_bytes - at)));
    return file.result;
  }
  tq_io io() { return tq_io{sizeof(tq_io), mac_bytes, static_cast<File*>(this), write, read, mac}; }
};

TEST(Save, AMacSaysWhoWrote) {
  SmallCache source(true), target(true);
  const tq_sequence sequence = source.filled();
  const std::string plain = bytes_of(source.cache, sequence);
  for (const int32_t tag_bytes : {16, 33, 64}) {
    SealedFile out(1, tag_bytes);
    const tq_io out_io = out.io();
    TQ_MUST(tq_sequence_save(source.cache, sequence, &out_io, nullptr));
    const std::string bytes = out.bytes;
    ASSERT_EQ(bytes.size(), plain.size() + static_cast<size_t>(tag_bytes));
    const auto loads = [&](const std::string& from, SealedFile& in, const char* text) {
      in.bytes = from;
      const tq_io io = in.io();
      tq_sequence copy = 5;
      const tq_status status = tq_sequence_load(target.cache, &io, nullptr, &copy);
      if (status == TQ_OK) {
        EXPECT_TRUE(bytes_of(target.cache, copy) == plain);
        EXPECT_EQ(in.at, from.size());
        EXPECT_EQ(tq_sequence_free(target.cache, copy, nullptr), TQ_OK);
      } else {
        EXPECT_NE(std::string(tq_last_error()).find(text), std::string::npos) << tq_last_error();
        EXPECT_EQ(copy, 5);
      }
      return status;
    };
    SealedFile own(1, tag_bytes), other(2, tag_bytes), longer(1, tag_bytes == 64 ? 63 : tag_bytes + 1),
        none(1, tag_bytes), cut(1, tag_bytes), failing(1, tag_bytes);
    EXPECT_EQ(loads(bytes, own, ""), TQ_OK) << tq_last_error();
    EXPECT_EQ(loads(bytes, other, "its MAC is not that of this key"), TQ_ERROR_CORRUPT_DATA);
    EXPECT_EQ(loads(bytes, longer, "a MAC of "), TQ_ERROR_CORRUPT_DATA);
    EXPECT_EQ(loads(plain, none, "a MAC of 0 bytes"), TQ_ERROR_CORRUPT_DATA);
    EXPECT_EQ(loads(bytes.substr(0, bytes.size() - 1), cut, "ends after"), TQ_ERROR_CORRUPT_DATA);
    failing.result = 9;
    EXPECT_EQ(loads(bytes, failing, "io.mac: returned 9"), TQ_ERROR_IO);
    // Without the key it loads, and all of it is read.
    File open;
    open.bytes = bytes;
    const tq_io open_io = open.io();
    tq_sequence copy = 0;
    TQ_MUST(tq_sequence_load(target.cache, &open_io, nullptr, &copy));
    EXPECT_EQ(open.at, bytes.size());
    TQ_MUST(tq_sequence_free(target.cache, copy, nullptr));
    // Whoever can mend checksums cannot mend this.
    const size_t header = 104 + 16 + 2 * 64 + 16, tag = bytes.size() - static_cast<size_t>(tag_bytes);
    int64_t refused = 0;
    for (size_t i = 24; i < bytes.size(); i++) {
      std::string front = bytes.substr(0, tag);
      if (i < tag) front[i] = static_cast<char>(front[i] ^ 1);
      mend(&front, header);
      std::string changed = front + bytes.substr(tag);
      if (i >= tag) changed[i] = static_cast<char>(changed[i] ^ 1);
      if (changed == bytes) continue;  // a checksum
      SealedFile in(1, tag_bytes);
      in.bytes = changed;
      const tq_io io = in.io();
      const tq_status status = tq_sequence_load(target.cache, &io, nullptr, &copy);
      ASSERT_NE(status, TQ_OK) << "byte " << i;
      refused++;
    }
    printf("MAC of %d bytes: %lld changed files with right checksums refused\n", tag_bytes,
           static_cast<long long>(refused));
  }
}

// Two pieces exchanged, and one repeated: their checksums know their places.
TEST(Save, PiecesKnowTheirPlaces) {
  OneCache source, target;
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 600);
  const std::string bytes = saved(source, sequence);
  const size_t piece = (64 << 10) + 8, header = bytes.size() % piece;  // some header's length
  ASSERT_GT(bytes.size(), 4 * piece);
  size_t first = 0;
  tq_sequence copy = 0;
  for (size_t at = 100; at < 2000 && first == 0; at++) {  // where the payload begins
    std::string swapped = bytes;
    std::swap_ranges(swapped.begin() + static_cast<int64_t>(at),
                     swapped.begin() + static_cast<int64_t>(at + piece),
                     swapped.begin() + static_cast<int64_t>(at + piece));
    ASSERT_EQ(load(target, swapped, &copy), TQ_ERROR_CORRUPT_DATA) << at << " " << header;
    if (strstr(tq_last_error(), "piece 0")) first = at;
  }
  EXPECT_GT(first, 0u);
}

TEST(Save, RefusalsNameTheFieldAndChangeNothing) {
  OneCache source(tiny);
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 70);
  const std::string bytes = saved(source, sequence);
  const struct {
    const char* text;
    tq_status status;
    OneCache::Change change;
  } cases[] = {
      {"rotation_seed = 3", TQ_ERROR_INCOMPATIBLE, [](tq_cache_config& c) { c.rotation_seed = 4; }},
      {"first_layer = 0", TQ_ERROR_INCOMPATIBLE, [](tq_cache_config& c) { c.first_layer = 2; }},
      {"layer 0: key_bits = 2, the cache's is 3", TQ_ERROR_INCOMPATIBLE,
       [](tq_cache_config& c) {
         static const int32_t bits[kLayers] = {3, 2, 2};
         c.layer_key_bits = bits;
       }},
      {"io_dtype", TQ_ERROR_INCOMPATIBLE, [](tq_cache_config& c) { c.io_dtype = TQ_F16; }},
      {"max_sequence_tokens = 69", TQ_ERROR_CAPACITY, [](tq_cache_config& c) { c.max_sequence_tokens = 69; }},
  };
  for (const auto& each : cases) {
    OneCache target([&](tq_cache_config& c) {
      tiny(c);
      each.change(c);
    });
    tq_sequence copy = 5;
    EXPECT_EQ(load(target, bytes, &copy), each.status) << each.text;
    EXPECT_NE(std::string(tq_last_error()).find(each.text), std::string::npos) << tq_last_error();
    EXPECT_EQ(copy, 5);
    EXPECT_EQ(target.pages_used(), 0);
    EXPECT_EQ(target.create(), sequence) << "a failed load has used up an id";
  }
  // Callbacks that fail, at every call.
  OneCache target(tiny);
  for (size_t at = 1; at <= bytes.size();
       at = at + 97 < bytes.size() || at == bytes.size() ? at + 97 : bytes.size()) {
    File out, in;
    in.bytes = bytes;
    out.fails_at = in.fails_at = at;
    const tq_io out_io = out.io(), in_io = in.io();
    tq_sequence copy = 5;
    EXPECT_EQ(tq_sequence_save(source.cache, sequence, &out_io, nullptr), TQ_ERROR_IO);
    EXPECT_EQ(tq_sequence_load(target.cache, &in_io, nullptr, &copy), TQ_ERROR_IO);
    EXPECT_NE(std::string(tq_last_error()).find("io.read: returned 7"), std::string::npos) << tq_last_error();
  }
  EXPECT_EQ(target.pages_used(), 0);
  EXPECT_EQ(target.attend(loaded(target, bytes), 2), source.attend(sequence, 2));
  source.append(sequence, 70, 5, 2);
  File out;
  const tq_io io = out.io();
  EXPECT_EQ(tq_sequence_save(source.cache, sequence, &io, nullptr), TQ_ERROR_INVALID_STATE);
  EXPECT_TRUE(out.bytes.empty());
}

// Where all sequences are alive a load is refused before it reads, and goes once one is freed.
TEST(Save, NoSequenceIsLeft) {
  OneCache source(tiny), target([](tq_cache_config&c) {
    tiny(c);
    c.max_sequences = 2;
  });
  const tq_sequence sequence = source.create();
  source.append(sequence, 0, 70);
  File file;
  file.bytes = saved(source, sequence);
  const tq_io io = file.io();
  const tq_sequence first = target.create();
  target.create();
  tq_sequence copy = 5;
  EXPECT_EQ(tq_sequence_load(target.cache, &io, nullptr, &copy), TQ_ERROR_CAPACITY);
  EXPECT_STREQ(tq_last_error(), "max_sequences = 2: all are alive");
  EXPECT_EQ(copy, 5);
  EXPECT_EQ(file.at, 0u);
  EXPECT_EQ(target.pages_used(), 0);
  TQ_MUST(tq_sequence_free(target.cache, first, nullptr));
  TQ_MUST(tq_sequence_load(target.cache, &io, nullptr, &copy));
  EXPECT_EQ(target.attend(copy, 2), source.attend(sequence, 2));
}

}  // namespace
}  // namespace tq
