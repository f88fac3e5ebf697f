// SPDX-License-Identifier: Apache-2.0
// tq_sequence_load on hostile bytes. What is refused leaves the cache as it was; what is taken decodes to
// finite numbers, and saved again it is a file that loads to the same bytes once more.
//
// Input: 1 byte that picks the cache, then the file. The mutator mends what would end nearly all inputs at
// the first checksum: identity, header, pieces, digest and mark are made right after most mutations.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "state_caches.h"

namespace {

using namespace tq::fuzz;

struct Stream {
  const uint8_t* data;
  size_t size, at;
  std::vector<uint8_t> written;
};
int32_t read_some(void* user, void* bytes, size_t count) {
  Stream& s = *static_cast<Stream*>(user);
  if (count > s.size - s.at) return 1;
  memcpy(bytes, s.data + s.at, count);
  s.at += count;
  return 0;
}
int32_t write_some(void* user, const void* bytes, size_t count) {
  auto& written = static_cast<Stream*>(user)->written;
  written.insert(written.end(), static_cast<const uint8_t*>(bytes),
                 static_cast<const uint8_t*>(bytes) + count);
  return 0;
}

tq_status load(const StateCache& cache, const std::vector<uint8_t>& file, tq_sequence* sequence) {
  Stream stream = {file.data(), file.size(), 0, {}};
  const tq_io io = {sizeof io, 0, &stream, nullptr, read_some, nullptr};
  return tq_sequence_load(cache.get(), &io, nullptr, sequence);
}
std::vector<uint8_t> save(const StateCache& cache, tq_sequence sequence) {
  Stream stream = {};
  const tq_io io = {sizeof io, 0, &stream, write_some, nullptr, nullptr};
  FUZZ_CHECK(tq_sequence_save(cache.get(), sequence, &io, nullptr) == TQ_OK, "%s", tq_last_error());
  return stream.written;
}

void check_taken(const StateCache& cache, tq_sequence sequence) {
  FUZZ_CHECK(cache.length(sequence) <= cache.config().max_sequence_tokens, "too long");
  cache.use(sequence, true);
  const std::vector<uint8_t> once = save(cache, sequence);
  tq_sequence again = 0;
  FUZZ_CHECK(load(cache, once, &again) == TQ_OK, "what was saved does not load: %s", tq_last_error());
  FUZZ_CHECK(save(cache, again) == once, "saved again it is another file");
  FUZZ_CHECK(tq_sequence_free(cache.get(), again, nullptr) == TQ_OK, "%s", tq_last_error());
}

// ---- mending ----

constexpr size_t kFixed = 104, kRecord = 144, kPiece = 65536, kTail = 24;

template <typename T>
void put(uint8_t* file, size_t at, T value) {
  memcpy(file + at, &value, sizeof value);
}

// Length of the header without its checksum, 0 if the file is too short for what it says.
size_t header_length(const uint8_t* file, size_t size) {
  if (size < kFixed) return 0;
  const uint64_t layers = number_at(file, size, 12, 4), first = number_at(file, size, 40, 4);
  size_t at = kFixed;
  for (uint64_t i = 0; i < layers; i++) {
    if (at + kRecord > size) return 0;
    const bool stores = number_at(file, size, at, 4) == first + i;
    at += kRecord + (stores ? 16 * static_cast<size_t>(number_at(file, size, at + 8, 4)) : 0);
  }
  return at + 8 + kTail <= size ? at : 0;
}

void mend(uint8_t* file, size_t size) {
  const size_t header = header_length(file, size);
  if (header == 0) return;
  std::vector<uint8_t> named(8);  // version, first layer, records
  memcpy(&named[0], file + 8, 4), memcpy(&named[4], file + 40, 4);
  named.insert(named.end(), file + kFixed, file + header);
  put(file, 96, XXH64(named.data(), named.size(), 0));
  put(file, header, XXH3_64bits(file, header));
  size_t at = header + 8;
  const size_t end = size - kTail;
  for (uint64_t piece = 1; at + 8 < end; piece++) {
    const size_t count = std::min(kPiece, end - at - 8);
    put(file, at + count, XXH3_64bits_withSeed(file + at, count, piece));
    at += count + 8;
  }
  const XXH128_hash_t digest = XXH3_128bits(file, end);
  put(file, end, digest.low64), put(file, end + 8, digest.high64);
  memcpy(file + end + 16, "TQKVEND\n", 8);
}

// One field of the header or a record takes a value that is likely to matter.
void change_field(uint8_t* file, size_t size, std::minstd_rand& random) {
  static const uint64_t kTelling[] = {0,     1,          2,          3,        4,     8,         16, 31,
                                      32,    33,         64,         96,       80,    10,        70, 73,
                                      65536, 0x7FFFFFFF, 0xFFFFFFFF, 1u << 31, ~0ull, 1ull << 63};
  const size_t header = header_length(file, size), width = random() % 2 ? 4 : 8;
  if (header == 0) return;
  const size_t at = 8 + random() % (header - 8) / 4 * 4;
  const uint64_t value = kTelling[random() % (sizeof kTelling / sizeof *kTelling)];
  if (at + width <= size) memcpy(file + at, &value, width);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const StateCache& cache = state_cache(data[0]);
  const tq_cache_memory before = cache.memory();
  tq_sequence sequence = -7;
  const std::vector<uint8_t> file(data + 1, data + size);  // exactly so long, for AddressSanitizer
  const tq_status status = load(cache, file, &sequence);
  if (status == TQ_OK) {
    check_taken(cache, sequence);
    FUZZ_CHECK(tq_sequence_free(cache.get(), sequence, nullptr) == TQ_OK, "%s", tq_last_error());
  } else {
    FUZZ_CHECK(
        status == TQ_ERROR_CORRUPT_DATA || status == TQ_ERROR_INCOMPATIBLE || status == TQ_ERROR_CAPACITY,
        "%s: %s", tq_status_name(status), tq_last_error());
    FUZZ_CHECK(sequence == -7 && tq_last_error()[0] != 0, "no text, or a sequence");
  }
  const tq_cache_memory after = cache.memory();
  FUZZ_CHECK(memcmp(&before, &after, sizeof before) == 0, "%lld pages are left",
             static_cast<long long>(after.pages_used));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size > kFixed && random() % 3 == 0)
    change_field(data + 1, size - 1, random);
  else
    size = LLVMFuzzerMutate(data, size, max_size);
  if (size > 1 && random() % 8 != 0) mend(data + 1, size - 1);
  return size;
}
