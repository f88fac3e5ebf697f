// SPDX-License-Identifier: Apache-2.0
// Writing and reading the frame of a saved sequence; see state_stream.h.
#include "state_stream.h"

#include <string.h>

#include <algorithm>

#include "status.h"

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

// memset that the compiler does not leave out where nobody reads the zeros.
void* (*const volatile wipe)(void*, int, size_t) = memset;

}  // namespace

StateSums::StateSums(const tq_io& io) : io_(io) {
  XXH3_128bits_reset(&all_);
  XXH3_64bits_reset(&header_);
}

// The states hold what passed by last.
StateSums::~StateSums() {
  wipe(&all_, 0, sizeof all_);
  wipe(&header_, 0, sizeof header_);
}

void StateSums::update(const void* bytes, size_t count) {
  XXH3_128bits_update(&all_, bytes, count);
  XXH3_64bits_update(&header_, bytes, count);
  if (io_.mac)
    if (const int32_t status = io_.mac(io_.user, bytes, count, nullptr))
      throw Error(Status::kIo, "io.mac: returned %d for %zu bytes at %lld", status, count, ll(position_));
  position_ += static_cast<int64_t>(count);
}

void StateSums::mac(uint8_t (&tag)[kMostMacBytes]) const {
  if (const int32_t status = io_.mac(io_.user, nullptr, 0, tag))
    throw Error(Status::kIo, "io.mac: returned %d for the tag of %lld bytes", status, ll(position_));
}

uint64_t StateSums::header() const { return XXH3_64bits_digest(&header_); }

void StateSums::digest(uint8_t (&bytes)[16]) const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&all_);
  for (int i = 0; i < 8; i++) {
    bytes[i] = static_cast<uint8_t>(hash.low64 >> (8 * i));
    bytes[8 + i] = static_cast<uint8_t>(hash.high64 >> (8 * i));
  }
}

uint64_t StateSums::piece(const void* bytes, size_t count, uint64_t index) {
  return XXH3_64bits_withSeed(bytes, count, index + 1);
}

// ---- writing ----

void StateWriter::put(const void* bytes, size_t count) {
  if (const int32_t status = io_.write(io_.user, bytes, count))
    throw Error(Status::kIo, "io.write: returned %d for %zu bytes at %lld", status, count, ll(position_));
}

void StateWriter::bytes_of(const void* bytes, size_t count) {
  put(bytes, count);
  update(bytes, count);
}

void StateWriter::payload(const uint8_t* bytes, int64_t count) {
  while (count > 0) {
    const int64_t now = std::min(count, kStatePiece - filled_);
    memcpy(piece_ + filled_, bytes, static_cast<size_t>(now));
    filled_ += now, bytes += now, count -= now;
    if (filled_ == kStatePiece) flush();
  }
}

void StateWriter::flush() {
  if (filled_ == 0) return;
  const uint64_t sum = piece(piece_, static_cast<size_t>(filled_), index_++);
  bytes_of(piece_, static_cast<size_t>(filled_));
  number(sum);
  filled_ = 0;
}

void StateWriter::end() {
  flush();
  uint8_t sum[16];
  digest(sum);
  bytes_of(sum, sizeof sum);
  bytes_of(kStateCommit, sizeof kStateCommit);
  if (mac_bytes() == 0) return;
  uint8_t tag[kMostMacBytes];
  mac(tag);
  put(tag, static_cast<size_t>(mac_bytes()));
}

// ---- reading ----

void StateReader::take(void* bytes, size_t count) {
  const int32_t status = io_.read(io_.user, bytes, count);
  TQ_CHECK(status != 1, Status::kCorruptData, "saved sequence: ends after %lld bytes, in the middle",
           ll(position_));
  TQ_CHECK(status == 0, Status::kIo, "io.read: returned %d for %zu bytes at %lld", status, count,
           ll(position_));
}

void StateReader::bytes_of(void* bytes, size_t count) {
  take(bytes, count);
  update(bytes, count);
}

void StateReader::end_header() {
  const uint64_t wanted = header(), found = number<uint64_t>();
  TQ_CHECK(found == wanted, Status::kCorruptData,
           "saved sequence: the header's checksum is 0x%llx, not 0x%llx",
           static_cast<unsigned long long>(wanted), static_cast<unsigned long long>(found));
  TQ_CHECK(mac_bytes() == 0 || mac_bytes() == saved_mac_, Status::kCorruptData,
           "saved sequence: a MAC of %d bytes stands at its end, io.mac_bytes = %d", saved_mac_, mac_bytes());
}

void StateReader::next_piece() {
  have_ = std::min(left_, kStatePiece);
  used_ = 0;
  left_ -= have_;
  const int64_t at = position_;
  bytes_of(piece_, static_cast<size_t>(have_));
  const uint64_t wanted = piece(piece_, static_cast<size_t>(have_), index_), found = number<uint64_t>();
  TQ_CHECK(found == wanted, Status::kCorruptData,
           "saved sequence: piece %llu at byte %lld has the checksum 0x%llx, not 0x%llx",
           static_cast<unsigned long long>(index_), ll(at), static_cast<unsigned long long>(wanted),
           static_cast<unsigned long long>(found));
  index_++;
}

void StateReader::payload(uint8_t* bytes, int64_t count) {
  while (count > 0) {
    if (used_ == have_) next_piece();
    const int64_t now = std::min(count, have_ - used_);
    memcpy(bytes, piece_ + used_, static_cast<size_t>(now));
    used_ += now, bytes += now, count -= now;
  }
}

void StateReader::end() {
  uint8_t wanted[16], found[16], mark[8];
  digest(wanted);
  bytes_of(found, sizeof found);
  bytes_of(mark, sizeof mark);
  TQ_CHECK(memcmp(wanted, found, sizeof wanted) == 0, Status::kCorruptData,
           "saved sequence: the digest differs");
  TQ_CHECK(memcmp(mark, kStateCommit, sizeof mark) == 0, Status::kCorruptData,
           "saved sequence: the mark at its end is missing");
  end_mac();
}

void StateReader::end_mac() {
  uint8_t wanted[kMostMacBytes] = {}, found[kMacBits];
  if (mac_bytes() > 0) mac(wanted);
  if (saved_mac_ > 0) take(found, static_cast<size_t>(saved_mac_));
  unsigned differ = 0;  // in a time that does not say where
  for (int i = 0; i < mac_bytes(); i++) differ |= wanted[i] ^ found[i];
  TQ_CHECK(differ == 0, Status::kCorruptData, "saved sequence: its MAC is not that of this key");
}

}  // namespace tq
