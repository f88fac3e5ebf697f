// SPDX-License-Identifier: Apache-2.0
// The frame of a saved sequence (FORMAT.md section 6.2) over a caller's callbacks: a header with its
// checksum, a payload in pieces of 64 KiB with theirs, a digest of everything and the mark that all was
// written. A reader gives out nothing of a piece before its checksum agrees.
#pragma once
#include <stdint.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tqkv.h"

namespace tq {

constexpr int64_t kStatePiece = 64 << 10;
constexpr uint8_t kStateMagic[8] = {0x89, 'T', 'Q', 'K', 'V', '\r', '\n', 0x1A};
constexpr uint8_t kStateCommit[8] = {'T', 'Q', 'K', 'V', 'E', 'N', 'D', '\n'};

// Checksums of what passes by: XXH3-128 of all, XXH3-64 of the header.
constexpr int kMostMacBytes = 64;  // its length is in the header, in the low bits of what readers may ignore
constexpr uint64_t kMacBits = 0x7F;

// And the caller's MAC of all, if there is one.
class StateSums {
 public:
  explicit StateSums(const tq_io& io);
  ~StateSums();
  StateSums(const StateSums&) = delete;
  StateSums& operator=(const StateSums&) = delete;
  int mac_bytes() const { return io_.mac ? io_.mac_bytes : 0; }
  void update(const void* bytes, size_t count);
  uint64_t header() const;
  void digest(uint8_t (&bytes)[16]) const;
  static uint64_t piece(const void* bytes, size_t count, uint64_t index);

 protected:
  void mac(uint8_t (&tag)[kMostMacBytes]) const;

  const tq_io& io_;
  int64_t position_ = 0;

 private:
  alignas(64) XXH3_state_t all_, header_;
};

class StateWriter : StateSums {
 public:
  // piece: kStatePiece bytes for the writer's use.
  StateWriter(const tq_io& io, uint8_t* piece) : StateSums(io), piece_(piece) {}
  using StateSums::mac_bytes;
  template <typename T>
  void number(T x) {
    uint8_t bytes[sizeof(T)];
    for (size_t i = 0; i < sizeof(T); i++)
      bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(x) >> (8 * i));
    bytes_of(bytes, sizeof bytes);
  }
  void bytes_of(const void* bytes, size_t count);
  void end_header() { number(header()); }
  void payload(const uint8_t* bytes, int64_t count);
  void end();

 private:
  void put(const void* bytes, size_t count);
  void flush();

  uint8_t* piece_;
  int64_t filled_ = 0;
  uint64_t index_ = 0;
};

class StateReader : StateSums {
 public:
  StateReader(const tq_io& io, uint8_t* piece) : StateSums(io), piece_(piece) {}
  template <typename T>
  T number() {
    uint8_t bytes[sizeof(T)];
    bytes_of(bytes, sizeof bytes);
    uint64_t x = 0;
    for (size_t i = 0; i < sizeof(T); i++) x |= static_cast<uint64_t>(bytes[i]) << (8 * i);
    return static_cast<T>(x);
  }
  void bytes_of(void* bytes, size_t count);
  // What the header says of a MAC. CORRUPT_DATA by end_header if it is not what the caller checks.
  void expect_mac(uint64_t features) { saved_mac_ = static_cast<int>(features & kMacBits); }
  // CORRUPT_DATA unless what was read so far has its checksum.
  void end_header();
  // The payload has `total` bytes; then as many calls as it takes.
  void begin_payload(int64_t total) { left_ = total; }
  void payload(uint8_t* bytes, int64_t count);
  void end();

 private:
  void take(void* bytes, size_t count);
  void next_piece();
  void end_mac();

  uint8_t* piece_;
  int saved_mac_ = 0;  // bytes
  int64_t left_ = 0;   // bytes of the payload not in a piece yet
  int64_t have_ = 0, used_ = 0;
  uint64_t index_ = 0;
};

}  // namespace tq
