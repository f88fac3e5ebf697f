// SPDX-License-Identifier: Apache-2.0
// The frame of saved sequences and calibrations: files whose checksums, pieces, digest and mark are made
// right after a mutation, as without that nearly all inputs would end at the first of them.
#pragma once
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "byte_stream.h"
#include "fuzz.h"
#include "tqkv.h"

namespace tq {
namespace fuzz {

constexpr size_t kFramePiece = 65536, kFrameTail = 24;

inline ByteStream reading(const std::vector<uint8_t>& file) {
  ByteStream stream;
  stream.bytes = file;
  return stream;
}

template <typename T>
void put(uint8_t* file, size_t at, T value) {
  memcpy(file + at, &value, sizeof value);
}

// header: bytes in front of the header's checksum; at least its 8 and the tail follow.
inline void mend_frame(uint8_t* file, size_t size, size_t header) {
  put(file, header, XXH3_64bits(file, header));
  size_t at = header + 8;
  const size_t end = size - kFrameTail;
  for (uint64_t piece = 1; at + 8 < end; piece++) {
    const size_t count = std::min(kFramePiece, end - at - 8);
    put(file, at + count, XXH3_64bits_withSeed(file + at, count, piece));
    at += count + 8;
  }
  const XXH128_hash_t digest = XXH3_128bits(file, end);
  put(file, end, digest.low64), put(file, end + 8, digest.high64);
  memcpy(file + end + 16, "TQKVEND\n", 8);
}

// Numbers that are likely to matter in a header.
inline uint64_t telling_number(uint32_t choice) {
  static const uint64_t kTelling[] = {0,     1,          2,          3,        4,     8,         16, 31,
                                      32,    33,         64,         96,       80,    10,        70, 73,
                                      65536, 0x7FFFFFFF, 0xFFFFFFFF, 1u << 31, ~0ull, 1ull << 63};
  return kTelling[choice % (sizeof kTelling / sizeof *kTelling)];
}

// Edits of a file that the target has made itself, records of 8 bytes: how, where (2 bytes), 1 byte, value.
// Each changes a word of 1, 4 or 8 bytes, cuts the file, or lengthens it.
constexpr size_t kFileEdit = 8;
inline void edit_file(std::vector<uint8_t>& file, const uint8_t* data, size_t size) {
  for (size_t at = 0, done = 0; at + kFileEdit <= size && done < 16; at += kFileEdit, done++) {
    const uint8_t how = data[at];
    const size_t where = number_at(data, size, at + 1, 2);
    const uint32_t value = static_cast<uint32_t>(number_at(data, size, at + 4, 4));
    if (how % 32 == 31) {
      file.resize(where % (file.size() + 1));
    } else if (how % 32 == 30) {
      file.insert(file.end(), where % 256, static_cast<uint8_t>(value));
    } else {
      const size_t width = how % 4 == 0 ? 1 : how % 4 == 1 ? 8 : 4;
      // Words stand at multiples of four from the front, the header's too.
      const size_t first =
          where % (file.size() + 1) / std::min<size_t>(width, 4) * std::min<size_t>(width, 4);
      const uint64_t word = how & 64 ? telling_number(value) : value;
      if (first + width <= file.size()) memcpy(&file[first], &word, width);
    }
  }
}

}  // namespace fuzz
}  // namespace tq
