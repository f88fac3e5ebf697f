// SPDX-License-Identifier: Apache-2.0
// tq_sequence_load on hostile bytes. What is refused leaves the cache as it was; what is taken decodes to
// finite numbers, and saved again it is a file that loads to the same bytes once more.
//
// Input: 1 byte that picks the cache, then the file. Or 128 and the cache, the tokens of a sequence that the
// target saves itself (200 and more: not mended), and edits of that file: state_frame.h. The mutator mends
// what would end nearly all inputs at the first checksum: identity, header, pieces, digest and mark are made
// right after most mutations.
#include "state_caches.h"
#include "state_frame.h"

namespace {

using namespace tq::fuzz;

constexpr size_t kHead = 2;
constexpr uint8_t kEdits = 128;

tq_status load(const StateCache& cache, const std::vector<uint8_t>& file, tq_sequence* sequence) {
  tq::ByteStream stream = reading(file);
  const tq_io io = stream.io();
  return tq_sequence_load(cache.get(), &io, nullptr, sequence);
}
std::vector<uint8_t> save(const StateCache& cache, tq_sequence sequence) {
  tq::ByteStream stream;
  const tq_io io = stream.io();
  FUZZ_CHECK(tq_sequence_save(cache.get(), sequence, &io, nullptr) == TQ_OK, "%s", tq_last_error());
  return stream.bytes;
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

constexpr size_t kFixed = 104, kRecord = 144;

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
  return at + 8 + kFrameTail <= size ? at : 0;
}

void mend(uint8_t* file, size_t size) {
  const size_t header = header_length(file, size);
  if (header == 0) return;
  std::vector<uint8_t> named(8);  // version, first layer, records
  memcpy(&named[0], file + 8, 4), memcpy(&named[4], file + 40, 4);
  named.insert(named.end(), file + kFixed, file + header);
  put(file, 96, XXH64(named.data(), named.size(), 0));
  mend_frame(file, size, header);
}

// One field of the header or a record takes a value that is likely to matter.
void change_field(uint8_t* file, size_t size, std::minstd_rand& random) {
  const size_t header = header_length(file, size), width = random() % 2 ? 4 : 8;
  if (header == 0) return;
  const size_t at = 8 + random() % (header - 8) / 4 * 4;
  const uint64_t value = telling_number(static_cast<uint32_t>(random()));
  if (at + width <= size) memcpy(file + at, &value, width);
}

// A sequence of the cache's own, saved, with edits; mended unless the input says otherwise.
std::vector<uint8_t> edited_file(StateCache& cache, const uint8_t* data, size_t size) {
  tq_sequence sequence = 0;
  FUZZ_CHECK(tq_sequence_create(cache.get(), &sequence) == TQ_OK, "%s", tq_last_error());
  if (data[1] % 100 > 0) cache.fill(sequence, data[1] % 100);
  std::vector<uint8_t> file = save(cache, sequence);
  FUZZ_CHECK(tq_sequence_free(cache.get(), sequence, nullptr) == TQ_OK, "%s", tq_last_error());
  edit_file(file, data + 2, size - 2);
  if (data[1] < 200) mend(file.data(), file.size());
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kHead) return 0;
  StateCache& cache = state_cache(data[0] & 127);
  const tq_cache_memory before = cache.memory();
  tq_sequence sequence = -7;
  // Exactly so long, for AddressSanitizer.
  const std::vector<uint8_t> file =
      data[0] & kEdits ? edited_file(cache, data, size) : std::vector<uint8_t>(data + 1, data + size);
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
  if (size >= kHead && data[0] & kEdits && random() % 8 != 0)
    return mutate_records<kHead, kFileEdit>(data, size, max_size, seed);
  if (size > kFixed && random() % 3 == 0)
    change_field(data + 1, size - 1, random);
  else
    size = LLVMFuzzerMutate(data, size, max_size);
  if (size > 1 && !(data[0] & kEdits) && random() % 8 != 0) mend(data + 1, size - 1);
  return size;
}
