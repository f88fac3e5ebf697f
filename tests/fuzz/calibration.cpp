// SPDX-License-Identifier: Apache-2.0
// Calibrations: hostile files, and programs of their calls. A file that is taken is one that save writes
// again byte for byte, and what it chooses makes a cache that takes its centres and matrices. A call that
// fails has a text and has changed nothing that can be asked for.
//
// Input: 1 byte. Even: the file of one of the target's own calibrations follows as edits (state_frame.h); 1,
// 5, ...: a whole file; 3, 7, ...: records of 12 bytes, a program: which call, layer, how, value. The rest of
// the byte picks the calibration.
#include <math.h>

#include "state_frame.h"

namespace {

using namespace tq::fuzz;

constexpr size_t kHead = 2, kRecord = 12, kFixed = 64;  // of the header, in front of its checksum
constexpr int kOwn = 4;
constexpr int64_t kMostNumbers =
    1 << 15;  // of a token's keys, values and queries: work, not memory, is short

tq_calibration_config own_config(int which) {
  tq_calibration_config c = {};
  c.struct_size = sizeof c;
  c.num_layers = 1 + which % 2, c.num_q_heads = 2, c.num_kv_heads = which == 3 ? 2 : 1, c.head_dim = 8;
  c.io_dtype = TQ_F32, c.held_out_tokens = 32;
  if (which == 1) c.head_dim = 40, c.value_dim = 8, c.key_family = TQ_CODE_TRELLIS;
  if (which == 2) c.io_dtype = TQ_F16;
  return c;
}

std::vector<float> matrix_of(const tq_calibration_config& c, uint64_t value) {
  const size_t dim = static_cast<size_t>(c.head_dim);
  std::vector<float> matrix(dim * dim * static_cast<size_t>(c.num_kv_heads));
  for (size_t i = 0; i < dim * static_cast<size_t>(c.num_kv_heads); i++)
    matrix[i * dim + (i % dim ^ (value & 1))] = 1 + static_cast<float>((value >> 1 & 7) * (i % 3));
  if (value & 16) matrix[value % matrix.size()] = ldexpf(1, static_cast<int>(value >> 8 & 63) - 30);
  if (value & 32) matrix[value % matrix.size()] = value & 64 ? NAN : 0;
  return matrix;
}

// What all calls that ask for something say.
std::vector<uint8_t> told(tq_calibration* calibration) {
  tq::ByteStream stream;
  const tq_io io = stream.io();
  const tq_status status = tq_calibration_save(calibration, &io);
  FUZZ_CHECK(status == TQ_OK || status == TQ_ERROR_INVALID_STATE, "%s", tq_last_error());
  return stream.bytes;
}

// Tokens of numbers that differ from coordinate to coordinate; wild: any bits.
tq_status feed(tq_calibration* calibration, int32_t layer, int64_t count, uint64_t value, bool wild) {
  tq_calibration_config c = {};
  c.struct_size = sizeof c;
  FUZZ_CHECK(tq_calibration_get_config(calibration, &c) == TQ_OK, "%s", tq_last_error());
  const int64_t most =
      std::max<int64_t>({int64_t{c.num_q_heads} * c.head_dim, int64_t{c.num_kv_heads} * c.value_dim, 1});
  if (count > 400 || most > kMostNumbers) return TQ_OK;
  std::vector<uint8_t> numbers(static_cast<size_t>(std::max<int64_t>(count, 0) * most) * 4 + 4);
  std::minstd_rand random(static_cast<unsigned>(value % 2147483647));
  const bool wide = c.io_dtype == TQ_F32;
  for (size_t at = 0; at + 4 < numbers.size(); at += wide ? 4 : 2) {
    uint32_t bits = static_cast<uint32_t>(random()) << 1;
    if (!wild) bits = wide ? (bits & 0x83FFFFFFu) | 0x3C000000u : (bits & 0x83FFu) | 0x3800u;
    memcpy(&numbers[at], &bits, wide ? 4 : 2);
  }
  return tq_calibration_feed(calibration, layer, count, numbers.data(), numbers.data(), numbers.data());
}

tq_calibration* made(const tq_calibration_config& config, bool matrix) {
  tq_calibration* calibration = nullptr;
  FUZZ_CHECK(tq_calibration_create(&config, &calibration) == TQ_OK, "%s", tq_last_error());
  if (matrix)
    FUZZ_CHECK(tq_calibration_set_key_matrix(calibration, 0, matrix_of(config, 5).data()) == TQ_OK, "%s",
               tq_last_error());
  for (int32_t layer = 0; layer < config.num_layers; layer++)
    FUZZ_CHECK(feed(calibration, layer, 300, 7 + static_cast<uint64_t>(layer), false) == TQ_OK, "%s",
               tq_last_error());
  return calibration;
}

// The files of the target's own calibrations, made once.
const std::vector<uint8_t>& own_file(int which) {
  static std::vector<uint8_t> files[kOwn];
  std::vector<uint8_t>& file = files[which % kOwn];
  if (file.empty()) {
    tq_calibration* const calibration = made(own_config(which % kOwn), which % kOwn >= 2);
    file = told(calibration);
    FUZZ_CHECK(tq_calibration_destroy(calibration) == TQ_OK, "%s", tq_last_error());
  }
  return file;
}

void mend(uint8_t* file, size_t size) {
  if (size >= kFixed + 8 + kFrameTail) mend_frame(file, size, kFixed);
}

// ---- what must hold ----

// Layers that were chosen are those of a cache that takes all that the calibration has.
void check_cache(tq_calibration* calibration, const tq_calibration_config& c,
                 const std::vector<tq_layer_config>& layers, uint64_t value) {
  if (int64_t{c.num_layers} * (c.num_q_heads + c.num_kv_heads) * std::max(c.head_dim, c.value_dim) >
      kMostNumbers)
    return;
  tq_cache_config config;
  tq_cache_config_init(&config);
  config.num_layers = c.num_layers, config.num_q_heads = c.num_q_heads, config.num_kv_heads = c.num_kv_heads;
  config.head_dim = c.head_dim, config.value_dim = c.value_dim, config.io_dtype = c.io_dtype;
  config.max_tokens = 32, config.num_threads = 1;
  config.layers = value & 1 ? nullptr : layers.data();
  // Or codes that take no matrix, which is refused before anything has changed.
  static const int32_t kLast[] = {2, 3, 16, 4};
  std::vector<int32_t> bits(static_cast<size_t>(c.num_layers), 4);
  std::vector<tq_layer_config> others(layers.size());
  if (value & 1) {
    config.key_bits = config.value_bits = 4;
    bits.back() = kLast[value >> 1 & 3];
    config.layer_key_bits = bits.data();
    if (value & 8) {
      for (tq_layer_config& layer : others) layer = {}, layer.struct_size = sizeof layer;
      others.back().key_family = TQ_CODE_GROUPED, config.layers = others.data();
    }
  }
  tq_cache* cache = nullptr;
  FUZZ_CHECK(tq_cache_create(&config, nullptr, &cache) == TQ_OK, "%s", tq_last_error());
  uint64_t before = 0, after = 0;
  tq_cache_fingerprint(cache, &before);
  const tq_status status = tq_calibration_set_centres(calibration, cache);
  tq_cache_fingerprint(cache, &after);
  FUZZ_CHECK(status == TQ_OK || (status == TQ_ERROR_NOT_SUPPORTED && value & 1 && before == after), "%s: %s",
             tq_status_name(status), tq_last_error());
  FUZZ_CHECK(tq_cache_destroy(cache) == TQ_OK, "%s", tq_last_error());
}

void check_arrays(tq_calibration* calibration, const tq_calibration_config& c, int32_t layer) {
  if (int64_t{c.num_kv_heads} * c.head_dim * c.head_dim > kMostNumbers) return;
  const size_t heads = static_cast<size_t>(c.num_kv_heads), dim = static_cast<size_t>(c.head_dim);
  std::vector<float> key(heads * dim, NAN), value(heads * static_cast<size_t>(c.value_dim), NAN),
      matrix(heads * dim * dim, NAN);
  int32_t has = -1;
  if (tq_calibration_centres(calibration, layer, key.data(), value.data()) == TQ_OK)
    for (const std::vector<float>* centre : {&key, &value})
      FUZZ_CHECK(std::all_of(centre->begin(), centre->end(), [](float x) { return isfinite(x); }),
                 "a centre of layer %d", layer);
  if (tq_calibration_key_matrix(calibration, layer, matrix.data(), &has) == TQ_OK)
    FUZZ_CHECK(std::all_of(matrix.begin(), matrix.end(),
                           [&](float x) { return has == 1 ? isfinite(x) : has == 0 && isnan(x); }),
               "a matrix of layer %d", layer);
}

tq_status choose(tq_calibration* calibration, const tq_calibration_config& c, uint64_t value) {
  // And what a newer header's goal may have behind this one's.
  struct {
    tq_calibration_goal known;
    uint32_t more[5];
  } newer = {};
  tq_calibration_goal& goal = newer.known;
  goal.struct_size = value >> 56 == 255 ? static_cast<uint32_t>(value % (sizeof newer + 1)) : sizeof goal;
  newer.more[value >> 48 & 3] = value >> 52 & 1;
  goal.key_bits = 2 + .5f * static_cast<float>(value % 5), goal.value_bits = 2 + value / 8 % 3;
  if (value & 64) goal.max_error = ldexpf(1, static_cast<int>(value >> 8 & 31) - 24);
  if (value & 128) goal.outlier = ldexpf(1, static_cast<int>(value >> 13 & 7) - 2);
  if ((value >> 48 & 255) == 77) memcpy(&goal.key_bits, &value, 4), memcpy(&goal.max_error, &value, 4);
  std::vector<tq_layer_config> layers(static_cast<size_t>(std::min(c.num_layers, 4096)));
  tq_calibration_result result = {};
  result.struct_size = sizeof result;
  const tq_status status =
      tq_calibration_choose(calibration, &goal, layers.data(), static_cast<int32_t>(layers.size()), &result);
  FUZZ_CHECK(status == TQ_OK || layers[0].struct_size == 0, "a failed choose has written");
  if (status != TQ_OK) return status;
  FUZZ_CHECK(isfinite(result.error) && result.error >= 0 && result.token_bytes > 0 &&
                 result.raw_layers >= 0 && result.raw_layers + result.banded_layers <= c.num_layers,
             "error %g, %lld bytes, %d raw layers", static_cast<double>(result.error),
             static_cast<long long>(result.token_bytes), result.raw_layers);
  check_cache(calibration, c, layers, value >> 24);
  return status;
}

void check_status(tq_status status) {
  FUZZ_CHECK(status >= TQ_OK && status <= TQ_ERROR_IO && status != TQ_ERROR_OUT_OF_MEMORY &&
                 (status == TQ_OK || tq_last_error()[0] != 0),
             "%s: %s", tq_status_name(status), tq_last_error());
}

// ---- files ----

void take_file(const std::vector<uint8_t>& file, uint64_t value) {
  tq::ByteStream stream = reading(file);
  const tq_io io = stream.io();
  tq_calibration* calibration = nullptr;
  const tq_status status = tq_calibration_load(&io, &calibration);
  FUZZ_CHECK((status == TQ_OK) == (calibration != nullptr), "%s", tq_status_name(status));
  if (status != TQ_OK) {
    FUZZ_CHECK(status == TQ_ERROR_CORRUPT_DATA || status == TQ_ERROR_INCOMPATIBLE, "%s: %s",
               tq_status_name(status), tq_last_error());
    return;
  }
  // Defaults that a file leaves to the reader, and a MAC, are not written again: then the second file counts.
  const std::vector<uint8_t> again = told(calibration);
  if (again.size() <= file.size() && memcmp(again.data(), file.data(), kFixed) == 0)
    FUZZ_CHECK(memcmp(again.data(), file.data(), again.size()) == 0, "saved again it is another file");
  tq::ByteStream second = reading(again);
  const tq_io second_io = second.io();
  tq_calibration* copy = nullptr;
  FUZZ_CHECK(tq_calibration_load(&second_io, &copy) == TQ_OK && told(copy) == again,
             "what was saved does not load, or saves as another file: %s", tq_last_error());
  FUZZ_CHECK(tq_calibration_destroy(copy) == TQ_OK, "%s", tq_last_error());
  tq_calibration_config c = {};
  c.struct_size = sizeof c;
  FUZZ_CHECK(tq_calibration_get_config(calibration, &c) == TQ_OK, "%s", tq_last_error());
  check_status(choose(calibration, c, value));
  check_arrays(calibration, c, 0);
  FUZZ_CHECK(feed(calibration, 0, 1, 1, false) == TQ_ERROR_INVALID_STATE || c.num_q_heads > 64, "it was fed");
  FUZZ_CHECK(tq_calibration_destroy(calibration) == TQ_OK, "%s", tq_last_error());
}

// ---- programs ----

struct Call {
  uint8_t what, layer, how, more;
  uint64_t value;
};

// A configuration with words changed, made if it is small enough.
tq_calibration* created(const std::vector<Call>& calls, int which) {
  alignas(8) uint8_t bytes[sizeof(tq_calibration_config) + 32] = {};
  const tq_calibration_config base = own_config(which);
  memcpy(bytes, &base, sizeof base);
  for (const Call& call : calls) {
    const uint64_t word = call.how & 1 ? telling_number(static_cast<uint32_t>(call.value)) : call.value;
    if (call.what % 8 == 7) memcpy(bytes + call.layer % (sizeof bytes / 4) * 4, &word, 4);
  }
  tq_calibration_config c;
  memcpy(&c, bytes, sizeof c);
  const int64_t numbers = int64_t{std::max(c.num_layers, 0)} * std::max(c.num_kv_heads, 0);
  const bool large = numbers > 1 << 12 || c.num_q_heads > 1 << 12;
  if (c.struct_size > sizeof bytes || (large && numbers <= int64_t{1} << 32)) return nullptr;
  tq_calibration* calibration = nullptr;
  const tq_status status =
      tq_calibration_create(reinterpret_cast<tq_calibration_config*>(bytes), &calibration);
  check_status(status);
  FUZZ_CHECK((status == TQ_OK) == (calibration != nullptr), "%s", tq_status_name(status));
  return calibration;
}

tq_status do_call(tq_calibration* calibration, const tq_calibration_config& c, const Call& call) {
  const int32_t layer = call.more == 255 ? static_cast<int32_t>(call.value) : call.layer % 3;
  switch (call.what % 8) {
    case 0:
    case 1:
    case 2: {
      static const int64_t kCounts[] = {-1, 0, 1, INT64_MIN, 33, 127};
      const int64_t count = call.more == 254 ? kCounts[call.value % 6] : int64_t{call.how} + 128;
      return feed(calibration, layer, count, call.value, call.more % 16 == 13);
    }
    case 3: {
      if (int64_t{c.num_kv_heads} * c.head_dim * c.head_dim > kMostNumbers) return TQ_OK;
      return tq_calibration_set_key_matrix(calibration, layer,
                                           call.more == 253 ? nullptr : matrix_of(c, call.value).data());
    }
    case 4: return choose(calibration, c, call.value);
    case 5: check_arrays(calibration, c, layer); return TQ_OK;
    default: return TQ_OK;
  }
}

void run_program(const uint8_t* data, size_t size, int which) {
  std::vector<Call> calls;
  for (size_t at = kHead; at + kRecord <= size && calls.size() < 16; at += kRecord)
    calls.push_back({data[at], data[at + 1], data[at + 2], data[at + 3], number_at(data, size, at + 4, 8)});
  tq_calibration* const calibration = created(calls, which);
  if (!calibration) return;
  tq_calibration_config c = {};
  c.struct_size = sizeof c;
  FUZZ_CHECK(tq_calibration_get_config(calibration, &c) == TQ_OK, "%s", tq_last_error());
  for (const Call& call : calls) {
    const std::vector<uint8_t> before = call.how & 128 ? told(calibration) : std::vector<uint8_t>();
    const tq_status status = do_call(calibration, c, call);
    check_status(status);
    if (status != TQ_OK && call.how & 128)
      FUZZ_CHECK(told(calibration) == before, "a failed call has changed something");
  }
  const std::vector<uint8_t> file = told(calibration);
  FUZZ_CHECK(tq_calibration_destroy(calibration) == TQ_OK, "%s", tq_last_error());
  if (!file.empty()) take_file(file, data[1]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kHead) return 0;
  const int which = data[0] / 4 % kOwn;
  if (data[0] % 4 == 3) return run_program(data, size, which), 0;
  std::vector<uint8_t> file(data + kHead, data + size);
  if (data[0] % 2 == 0) {
    file = own_file(which);
    edit_file(file, data + kHead, size - kHead);
    if (data[0] < 192) mend(file.data(), file.size());
  }
  take_file(file, data[1]);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size >= kHead && data[0] % 4 == 3) return mutate_records<kHead, kRecord>(data, size, max_size, seed);
  if (size >= kHead && data[0] % 2 == 0) return mutate_records<kHead, kFileEdit>(data, size, max_size, seed);
  size = LLVMFuzzerMutate(data, size, max_size);
  if (size > kHead && data[0] % 4 == 1 && random() % 8 != 0) mend(data + kHead, size - kHead);
  return size;
}
