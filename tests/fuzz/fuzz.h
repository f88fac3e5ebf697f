// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share: a check that ends the process with its values (libFuzzer then keeps the
// input), and inputs made of records.
//
// A target whose input is a list of edits or calls takes it as a head of kHead bytes and records of kRecord
// bytes. Its mutator works on whole records (repeats, drops, moves and splices them) as often as on bytes:
// a byte mutator alone shifts everything behind what it inserts, and nearly all programs it makes are noise.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

#define FUZZ_CHECK(condition, ...)                                    \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                   \
      fprintf(stderr, "\n");                                          \
      abort();                                                        \
    }                                                                 \
  } while (0)

namespace tq {
namespace fuzz {

// A little-endian number; bytes beyond the input's end are zeros.
inline uint64_t number_at(const uint8_t* data, size_t size, size_t at, size_t bytes) {
  uint64_t number = 0;
  for (size_t i = 0; i < bytes && at + i < size; i++)
    number |= static_cast<uint64_t>(data[at + i]) << (8 * i);
  return number;
}

// One mutation of an input of records; returns its new size.
template <size_t kHead, size_t kRecord>
size_t mutate_records(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  const size_t records = size > kHead ? (size - kHead) / kRecord : 0;
  if (records == 0 || random() % 2 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::vector<uint8_t> input(data, data + kHead + records * kRecord);
  const auto record = [&] {
    return input.begin() + static_cast<ptrdiff_t>(kHead + random() % records * kRecord);
  };
  const auto from = record(), to = record();
  const ptrdiff_t run =
      std::min<ptrdiff_t>(static_cast<ptrdiff_t>((1 + random() % 4) * kRecord), input.end() - from);
  const std::vector<uint8_t> taken(from, from + run);
  switch (random() % 4) {
    case 0:
      if (static_cast<size_t>(run) < input.size() - kHead) input.erase(from, from + run);
      break;
    case 1: input.insert(to, taken.begin(), taken.end()); break;
    case 2: std::rotate(std::min(from, to), std::max(from, to), input.end()); break;
    case 3: LLVMFuzzerMutate(&*from, kRecord, kRecord); break;
  }
  const size_t after = std::min(input.size(), max_size);
  std::copy_n(input.begin(), after, data);
  return after;
}

}  // namespace fuzz
}  // namespace tq
