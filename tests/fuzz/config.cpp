// SPDX-License-Identifier: Apache-2.0
// Configurations: edits of a sound one, of its layers, code widths, codebooks, levels and bands. All calls
// that judge a configuration must agree on it, its parts must add up, and a cache made of it takes from its
// allocator exactly the bytes that were announced and says of itself what makes the same cache again.
//
// Input: 1 byte that picks the start, records of 12 bytes: what is edited, where, how, which layer, value.
#include <list>
#include <string>

#include "fuzz.h"
#include "tqkv.h"

namespace {

constexpr size_t kHead = 1, kRecord = 12;
constexpr size_t kLargestStruct = 16384;  // struct_size may say so much; what is beyond ours must be zero
constexpr int32_t kMostLayers = 65536;
constexpr int64_t kMostCreated = 1 << 22;  // bytes of a cache that is made

// Key bands of a layer. The library copies as many numbers as head_dim and kv heads ask for.
struct BandsInput {
  alignas(8) uint8_t bands[256] = {};
  std::vector<int32_t> bits = std::vector<int32_t>(64, 4), order;
  tq_key_bands& fields() { return *reinterpret_cast<tq_key_bands*>(bands); }
};

// Levels of one side, of the cache or of its layers.
struct LevelsInput {
  tq_levels fields = {};
  std::vector<float> levels = std::vector<float>(256), boundaries = std::vector<float>(255);
};

struct Input {
  alignas(8) uint8_t config[kLargestStruct] = {};
  std::vector<uint8_t> layers;  // [num_layers] of layers[0].struct_size bytes
  std::vector<int32_t> key_bits, value_bits;
  tq_codebook books[2] = {};
  std::list<BandsInput> bands;
  LevelsInput levels[2];
  tq_cache_config& fields() { return *reinterpret_cast<tq_cache_config*>(config); }
};

struct Edit {
  uint8_t what, where, how, layer;
  uint64_t value;
};

// A value that is likely to matter, or the raw one.
uint64_t edited(const Edit& edit) {
  static const int64_t kTelling[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     8,
                                     16,
                                     31,
                                     32,
                                     64,
                                     80,
                                     96,
                                     127,
                                     128,
                                     576,
                                     4096,
                                     65535,
                                     65536,
                                     65537,
                                     INT32_MAX,
                                     INT32_MIN,
                                     -1,
                                     -32,
                                     INT64_MAX,
                                     INT64_MIN,
                                     int64_t{1} << 31,
                                     int64_t{1} << 32,
                                     int64_t{1} << 48,
                                     int64_t{1} << 56};
  if (edit.how % 4 == 0) return edit.value;
  if (edit.how % 4 == 1) return edit.value % 17;
  return static_cast<uint64_t>(kTelling[edit.value % (sizeof kTelling / sizeof *kTelling)]);
}

bool is_pointer(size_t offset) {
  for (const size_t pointer :
       {offsetof(tq_cache_config, layer_key_bits), offsetof(tq_cache_config, layer_value_bits),
        offsetof(tq_cache_config, key_codebook), offsetof(tq_cache_config, value_codebook),
        offsetof(tq_cache_config, allocator), offsetof(tq_cache_config, pool),
        offsetof(tq_cache_config, layers), offsetof(tq_cache_config, key_levels),
        offsetof(tq_cache_config, value_levels)})
    if (offset / 8 == pointer / 8) return true;
  return false;
}

// Writes 4 or 8 bytes at the field's place inside `size` bytes.
void set_word(uint8_t* bytes, size_t size, const Edit& edit) {
  const uint64_t value = edited(edit);
  const size_t width = edit.how & 64 ? 8 : 4, offset = edit.where * width % size / width * width;
  if (offset + width <= size) memcpy(bytes + offset, &value, width);
}

void start(Input& input, uint8_t choice) {
  tq_cache_config& c = input.fields();
  tq_cache_config_init(&c);
  c.num_layers = 1 + choice % 3, c.num_q_heads = 2, c.num_kv_heads = 1, c.head_dim = 32,
  c.io_dtype = 1 + choice % 3;
  c.key_bits = 4, c.value_bits = 3, c.max_tokens = 96, c.num_threads = 1;
  if (choice & 32) c.window_tokens = 8, c.sink_tokens = 4;
  for (int side = 0; side < 2; side++) {
    tq_codebook& book = input.books[side];
    book.struct_size = sizeof book;
    book.bits = 3, book.unit = 1;
    for (int j = 0; j < 32; j++) book.magnitude[j] = static_cast<uint8_t>(10 + 3 * j);
  }
}

// A layer's pointers are ours alone.
void clear_pointers(uint8_t* layer, size_t size) {
  for (const size_t pointer : {offsetof(tq_layer_config, key_levels), offsetof(tq_layer_config, value_levels),
                               offsetof(tq_layer_config, key_bands)})
    if (pointer < size) memset(layer + pointer, 0, std::min(sizeof(void*), size - pointer));
}

// Bands for a layer by its edits: which width or place, of how many, or a word of the struct.
void give_bands(Input& input, size_t index, size_t stride, const std::vector<Edit>& edits) {
  const tq_cache_config& c = input.fields();
  tq_layer_config layer = {};
  memcpy(&layer, &input.layers[index * stride], std::min(stride, sizeof layer));
  if (stride < offsetof(tq_layer_config, key_bands) + sizeof(void*)) return;
  const int64_t dim = layer.head_dim ? layer.head_dim : c.head_dim,
                heads = layer.num_kv_heads ? layer.num_kv_heads : c.num_kv_heads;
  BandsInput* own = nullptr;
  for (const Edit& edit : edits) {
    if (edit.what % 8 != 6 || edit.layer % static_cast<size_t>(c.num_layers) != index) continue;
    if (!own) {
      own = &input.bands.emplace_back();
      own->fields() = {sizeof(tq_key_bands), static_cast<int32_t>((dim + 31) / 32), own->bits.data(),
                       nullptr};
    }
    const int32_t value = static_cast<int32_t>(edited(edit));
    switch (edit.how / 16 % 4) {
      case 0: own->bits[edit.where % own->bits.size()] = value; break;
      case 1:
        if (dim < 1 || heads < 1 || dim > 4096 || heads > 64) break;
        if (own->order.empty())
          for (int64_t i = 0; i < dim * heads; i++) own->order.push_back(static_cast<int32_t>(i % dim));
        own->fields().order = own->order.data();
        if (edit.where % 2)
          own->order[static_cast<size_t>(edit.value) % own->order.size()] = value;
        else
          std::swap(own->order[edit.where % static_cast<size_t>(dim)],
                    own->order[static_cast<size_t>(edit.value) % static_cast<size_t>(dim)]);
        break;
      case 2: own->fields().num_bands = value; break;
      case 3:  // in steps of 8: no version of the header ends within a pointer
        own->fields().struct_size = std::min<uint32_t>(static_cast<uint32_t>(value), 256) / 8 * 8;
        break;
    }
  }
  if (!own) return;
  layer.key_bands = &own->fields();
  memcpy(&input.layers[index * stride + offsetof(tq_layer_config, key_bands)], &layer.key_bands,
         sizeof(void*));
}

// Levels of either side: rising ones of as many bits as that side has, with edits of how many, of one of
// them, or of a word of the struct.
void give_levels(Input& input, const std::vector<Edit>& edits) {
  tq_cache_config& c = input.fields();
  for (const Edit& edit : edits) {
    if (edit.what % 8 != 7) continue;
    const int side = edit.where % 2;
    LevelsInput& own = input.levels[side];
    if (!own.fields.struct_size) {
      const int32_t bits = side == 0 ? c.key_bits : c.value_bits;
      own.fields = {sizeof own.fields, bits, 1, 0, own.levels.data(), own.boundaries.data()};
      for (size_t i = 0; i < own.levels.size(); i++) own.levels[i] = static_cast<float>(i) / 2 - 2;
      for (size_t i = 0; i < own.boundaries.size(); i++) own.boundaries[i] = static_cast<float>(i) / 2;
    }
    const uint64_t value = edited(edit);
    switch (edit.how / 16 % 4) {
      case 0: own.fields.bits = static_cast<int32_t>(value); break;
      case 1: memcpy(&own.levels[edit.layer % own.levels.size()], &value, sizeof(float)); break;
      case 2: memcpy(&own.boundaries[edit.layer % own.boundaries.size()], &value, sizeof(float)); break;
      case 3:
        if (edit.layer & 1)
          memcpy(&own.fields.unit, &value, sizeof(float));
        else
          own.fields.struct_size = static_cast<uint32_t>(value % (sizeof own.fields + 1)) / 8 * 8;
        break;
    }
    if (edit.layer < 128)
      (side == 0 ? c.key_levels : c.value_levels) = &own.fields;
    else if (c.layers && c.num_layers >= 1 &&
             input.layers.size() / static_cast<size_t>(c.num_layers) >= sizeof(tq_layer_config)) {
      const size_t stride = input.layers.size() / static_cast<size_t>(c.num_layers),
                   pointer = side == 0 ? offsetof(tq_layer_config, key_levels)
                                       : offsetof(tq_layer_config, value_levels);
      const tq_levels* const levels = &own.fields;
      memcpy(&input.layers[edit.layer % static_cast<size_t>(c.num_layers) * stride + pointer], &levels,
             sizeof levels);
    }
  }
}

// The arrays of the layers, as long as num_layers says; none for more layers than there may be.
void give_arrays(Input& input, const std::vector<Edit>& edits) {
  tq_cache_config& c = input.fields();
  bool layers = false, bits[2] = {}, books[2] = {};
  tq_layer_config common = {};
  common.struct_size = sizeof common;
  for (const Edit& edit : edits) {
    if (edit.what % 8 == 2 || edit.what % 8 == 6) layers = true;
    if (edit.what % 8 == 3) bits[edit.where % 2] = true;
    if (edit.what % 8 == 4) books[edit.where % 2] = true;
    if (edit.what % 8 == 5) common.struct_size = static_cast<uint32_t>(edited(edit));
  }
  c.key_codebook = books[0] ? &input.books[0] : nullptr;
  c.value_codebook = books[1] ? &input.books[1] : nullptr;
  if (c.num_layers < 1 || c.num_layers > kMostLayers) return;
  const size_t count = static_cast<size_t>(c.num_layers);
  const size_t stride = std::max<size_t>(common.struct_size, 4);
  if (layers && stride <= kLargestStruct && count * stride <= 1 << 18) {
    input.layers.resize(count * stride);
    for (size_t i = 0; i < count; i++)
      memcpy(&input.layers[i * stride], &common, std::min(stride, sizeof common));
    for (const Edit& edit : edits)
      if (edit.what % 8 == 2) set_word(&input.layers[edit.layer % count * stride], stride, edit);
    for (size_t i = 0; i < count; i++) {
      clear_pointers(&input.layers[i * stride], stride);
      give_bands(input, i, stride, edits);
    }
    uint32_t first;
    memcpy(&first, input.layers.data(), sizeof first);
    // The first element says where the others are; a lie about it is the caller's.
    if (first == stride || first < 8 || first > kLargestStruct || count == 1)
      c.layers = reinterpret_cast<const tq_layer_config*>(input.layers.data());
    if (count == 1 && first > stride) c.layers = nullptr;
  }
  if (count > 4096) return;
  for (int side = 0; side < 2; side++) {
    if (!bits[side]) continue;
    std::vector<int32_t>& array = side == 0 ? input.key_bits : input.value_bits;
    array.assign(count, 0);
    for (const Edit& edit : edits)
      if (edit.what % 8 == 3 && edit.where % 2 == side)
        array[edit.layer % count] = static_cast<int32_t>(edited(edit));
    (side == 0 ? c.layer_key_bits : c.layer_value_bits) = array.data();
  }
}

void build(Input& input, const uint8_t* data, size_t size) {
  start(input, size > 0 ? data[0] : 0);
  std::vector<Edit> edits;
  for (size_t at = kHead; at + kRecord <= size && edits.size() < 64; at += kRecord)
    edits.push_back(
        {data[at], data[at + 1], data[at + 2], data[at + 3], tq::fuzz::number_at(data, size, at + 4, 8)});
  for (const Edit& edit : edits) {
    if (edit.what % 8 < 2) {
      const size_t width = edit.how & 64 ? 8 : 4;
      const size_t fields = sizeof(tq_cache_config) + 64;
      if (!is_pointer(edit.where * width % fields)) set_word(input.config, fields, edit);
    }
    if (edit.what % 8 == 4)
      set_word(reinterpret_cast<uint8_t*>(&input.books[edit.layer % 2]), sizeof(tq_codebook), edit);
  }
  if (input.books[0].struct_size > sizeof(tq_codebook)) input.books[0].struct_size = 0;
  if (input.books[1].struct_size > sizeof(tq_codebook)) input.books[1].struct_size = 0;
  // No version of the header ends within a pointer.
  uint32_t& struct_size = input.fields().struct_size;
  if (struct_size < sizeof(tq_cache_config) && is_pointer(struct_size)) struct_size = struct_size / 8 * 8;
  give_arrays(input, edits);
  give_levels(input, edits);
}

// ---- what must hold ----

void check_text(const tq_cache_config* config, tq_status status) {
  std::string whole(8192, 'x'), part(100, 'x');
  FUZZ_CHECK(tq_cache_config_check(config, &whole[0], whole.size()) == status, "another status");
  FUZZ_CHECK(tq_cache_config_check(config, &part[0], part.size()) == status, "another status");
  FUZZ_CHECK((whole[0] == 0) == (status == TQ_OK), "%s: '%s'", tq_status_name(status), whole.c_str());
  const size_t length = strlen(whole.c_str());
  FUZZ_CHECK(std::string(part.c_str()) == whole.substr(0, std::min(length, part.size() - 1)),
             "a short text is no beginning");
  for (size_t i = 0; i < length; i++)
    FUZZ_CHECK(whole[i] == '\n' || (whole[i] >= 0x20 && whole[i] < 0x7F), "byte %d in a reason", whole[i]);
  FUZZ_CHECK(status != TQ_ERROR_INTERNAL, "%s", whole.c_str());
}

// The layers' bytes are the cache's.
void check_layers(const tq_cache_config* config, int32_t num_layers, const tq_cache_bytes& bytes) {
  int64_t pages = 0, raw = 0, token = 0, fp16 = 0;
  if (num_layers > 64) return;  // each call resolves all of them
  for (int32_t layer = 0; layer < num_layers; layer++) {
    tq_layer_bytes own = {};
    own.struct_size = sizeof own;
    const tq_status status = tq_cache_config_layer_bytes(config, layer, &own);
    FUZZ_CHECK(status == TQ_OK, "layer %d: %s", layer, tq_last_error());
    pages += own.page_bytes, raw += own.raw_bytes, token += own.token_bytes, fp16 += own.fp16_token_bytes;
    FUZZ_CHECK(own.group != 0 || own.page_bytes == 0 || own.num_pages == bytes.num_pages, "layer %d", layer);
  }
  FUZZ_CHECK(pages <= bytes.page_bytes && raw == bytes.raw_bytes && token == bytes.token_bytes &&
                 fp16 == bytes.fp16_token_bytes,
             "pages %lld of %lld, raw %lld of %lld, token %lld of %lld", static_cast<long long>(pages),
             static_cast<long long>(bytes.page_bytes), static_cast<long long>(raw),
             static_cast<long long>(bytes.raw_bytes), static_cast<long long>(token),
             static_cast<long long>(bytes.token_bytes));
}

struct Meter {
  int64_t taken = 0, blocks = 0;
};
void* meter_alloc(void* user, size_t bytes, size_t alignment, int32_t, int32_t) {
  void* pointer;
  if (posix_memalign(&pointer, std::max(alignment, sizeof(void*)), bytes) != 0) return nullptr;
  static_cast<Meter*>(user)->taken += static_cast<int64_t>(bytes), static_cast<Meter*>(user)->blocks++;
  return pointer;
}
void meter_free(void* user, void* pointer, size_t bytes, int32_t, int32_t) {
  static_cast<Meter*>(user)->taken -= static_cast<int64_t>(bytes), static_cast<Meter*>(user)->blocks--;
  free(pointer);
}

bool same_bytes(const tq_cache_bytes& a, const tq_cache_bytes& b) { return memcmp(&a, &b, sizeof a) == 0; }

void check_cache(tq_cache_config config, const tq_cache_bytes& bytes) {
  Meter meter;
  tq_allocator allocator = {sizeof allocator, 0, &meter, meter_alloc, meter_free};
  const bool grows = config.max_reserve_tokens > config.max_tokens;  // an allocator cannot
  if (!grows) config.allocator = &allocator;
  tq_cache* cache = nullptr;
  FUZZ_CHECK(tq_cache_create(&config, nullptr, &cache) == TQ_OK, "%s", tq_last_error());
  FUZZ_CHECK(grows || meter.taken == bytes.host_bytes, "%lld bytes announced, %lld taken",
             static_cast<long long>(bytes.host_bytes), static_cast<long long>(meter.taken));
  tq_cache_config own = {};
  own.struct_size = sizeof own;
  FUZZ_CHECK(tq_cache_get_config(cache, &own) == TQ_OK, "%s", tq_last_error());
  tq_cache_bytes again = {};
  again.struct_size = sizeof again;
  FUZZ_CHECK(tq_cache_config_bytes(&own, &again) == TQ_OK && same_bytes(bytes, again),
             "the cache's own configuration: %s", tq_last_error());
  tq_cache* second = nullptr;
  uint64_t first_print = 0, second_print = 1;
  FUZZ_CHECK(tq_cache_create(&own, nullptr, &second) == TQ_OK, "%s", tq_last_error());
  tq_cache_fingerprint(cache, &first_print), tq_cache_fingerprint(second, &second_print);
  FUZZ_CHECK(first_print == second_print, "another fingerprint");
  FUZZ_CHECK(tq_cache_destroy(second) == TQ_OK && tq_cache_destroy(cache) == TQ_OK, "%s", tq_last_error());
  FUZZ_CHECK(meter.taken == 0 && meter.blocks == 0, "%lld blocks are left",
             static_cast<long long>(meter.blocks));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input;
  build(input, data, size);
  const tq_cache_config* config = &input.fields();
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  const tq_status status = tq_cache_config_bytes(config, &bytes);
  check_text(config, status);
  if (status != TQ_OK) {
    FUZZ_CHECK(bytes.page_bytes == 0 && bytes.host_bytes == 0, "a failed call has written");
    tq_cache* cache = nullptr;
    FUZZ_CHECK(tq_cache_create(config, nullptr, &cache) == status && !cache, "create says something else");
    return 0;
  }
  FUZZ_CHECK(bytes.page_bytes > 0 && bytes.raw_bytes >= 0 && bytes.table_bytes > 0 && bytes.num_pages > 0 &&
                 bytes.host_bytes >= bytes.page_bytes && bytes.device_bytes == 0,
             "pages %lld, host %lld", static_cast<long long>(bytes.page_bytes),
             static_cast<long long>(bytes.host_bytes));
  tq_cache_config copy = {};
  memcpy(&copy, config, std::min<size_t>(config->struct_size, sizeof copy));
  copy.struct_size = sizeof copy;
  check_layers(config, copy.num_layers, bytes);
  if (bytes.host_bytes <= kMostCreated && copy.num_threads >= 1 && copy.num_threads <= 2)
    check_cache(copy, bytes);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return tq::fuzz::mutate_records<kHead, kRecord>(data, size, max_size, seed);
}
