// SPDX-License-Identifier: Apache-2.0
//
// See saved.h. Written from the format text, not from the library's loader: two readers of one file.
#include "cli/saved.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>

#include "cli/printable.h"

namespace tq::cli {
namespace {

constexpr char kMagic[] = "\x89TQKV\r\n\x1a";
constexpr char kEndMark[] = "TQKVEND\n";
constexpr uint64_t kMarkBytes = 8, kChecksumBytes = 8, kDigestBytes = 16;
constexpr uint64_t kFixedBytes = 104;  // magic .. identity
constexpr uint64_t kRecordBytes = 16 + 2 * sizeof(SavedSide);
constexpr uint32_t kMostHeads = 65536, kLastFirstHead = 65535;
constexpr int64_t kTileTokens = 32;
constexpr uint64_t kNoticedBits = 3;
constexpr uint64_t kMacBits = 0x7F, kLeastMac = 16, kMostMac = 64;  // in the features that may be ignored
constexpr uint32_t kBFloat16 = 3;

template <typename T>
void put(std::string* text, T value) {
  text->append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Numbers of a header, front to back; the reader has seen to it that they are there.
class Numbers {
 public:
  explicit Numbers(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  template <typename T>
  T next() {
    T value;
    std::memcpy(&value, &bytes_[at_], sizeof value);
    at_ += sizeof value;
    return value;
  }

 private:
  const std::vector<uint8_t>& bytes_;
  size_t at_ = 0;
};

int64_t tiles(int64_t first, int64_t end) {
  return first >= end ? 0 : (end - 1) / kTileTokens - first / kTileTokens + 1;
}

uint64_t code_bytes(const SavedSide& side) {
  if (side.raw()) return uint64_t{64} * side.dim;
  if (side.grouped()) return 128 * ((uint64_t{side.dim} * side.bits + 31) / 32 + side.num_groups());
  if (side.banded()) return uint64_t{128} * side.bits + uint64_t{64} * side.num_bands();
  const uint64_t scales = side.code() == kSavedProd ? 128 : 64;
  return uint64_t{4} * ((side.dim + 31) / 32 * 32) * side.bits + scales;
}

// Bytes of a tile of a side's exact copies.
uint64_t exact_bytes(const SavedSide& side, uint32_t type) {
  return kTileTokens * uint64_t{side.dim} * (type == 0 ? 0 : type == 1 ? 4 : 2);
}

// Widths from 1 to 6, none above the one before, and their sum.
bool known_bands(const SavedSide& side) {
  if (side.latent() || side.dim > 256 || side.rotation != 1) return false;
  uint32_t sum = 0, widths = 0, most = 6;
  for (uint32_t band = 0; band < side.num_bands(); band++) {
    const uint32_t bits = side.band_bits(band);
    if (bits == 0 || bits > most) return false;
    sum += most = bits;
    widths |= bits << (4 * band);
  }
  return side.bits == sum && side.variant == widths;
}

std::string problem_of_side(const SavedSide& side) {
  if (side.family >= 2 * kSavedLatent) return "family " + std::to_string(side.family);
  const bool small = side.dim >= 8 && side.dim <= 256 && side.dim % 4 == 0;
  if (!small && side.dim != 512 && side.dim != 576) return "dimension " + std::to_string(side.dim);
  const bool coded = side.raw_type == 0 && (side.rotation == 1 || side.rotation == 2),
             plain = side.raw_type == 0 && side.rotation == 0 && side.seed == 0;
  const uint32_t bits = side.bits, variant = side.variant;
  const bool width = bits == 8 || (bits >= 2 && bits <= 6);
  const auto count = [](uint32_t of) { return of == 8 ? size_t{0} : size_t{1} << (of - 1); };
  size_t used = 0, last = 32;  // of the 32 bytes: magnitudes or a hash, then zeros up to `last`
  bool known = false;
  if (side.raw()) {
    known = side.code() == 0 && (side.raw_type == 1 || side.raw_type == 2) && side.rotation == 0 &&
            side.seed == 0 && variant == 0;
  } else if (side.code() == kSavedScalar) {
    known = coded && width && variant == 0;
    used = known ? count(bits) : 0;
  } else if (side.code() == kSavedProd) {
    known = coded && bits >= 2 && bits <= 4 && (variant == 1 || variant == 2);
    used = known ? count(bits - 1) : 0, last = 28;
  } else if (side.grouped()) {
    known = plain && (variant == 16 || variant == 32 || variant == 64) && width && bits != 5 && bits != 6;
  } else if (side.family == kSavedTrellis) {
    known = coded && bits >= 2 && bits <= 4 && variant == 0;
    used = known ? count(bits + 1) : 0;
  } else if (side.banded()) {
    known = coded && known_bands(side);
    used = 8;
  } else if (side.code() == kSavedLevels) {
    known = coded && width && variant == 0;
    used = 8;
  }
  if (!known || std::any_of(side.magnitudes + used, side.magnitudes + last, [](uint8_t x) { return x; }))
    return "a side that nothing writes (family " + std::to_string(side.family) + ", " + std::to_string(bits) +
           " bits)";
  return "";
}

// What is wrong with a header whose checksum agrees, "" if nothing is.
std::string problem_of(const SavedHeader& h) {
  if (h.mac_bytes != 0 && (h.mac_bytes < kLeastMac || h.mac_bytes > kMostMac))
    return "a MAC of " + std::to_string(h.mac_bytes) + " bytes";
  if (h.noticed & ~kNoticedBits) return "noticed = " + std::to_string(h.noticed);
  if (h.first_token < 0 || h.num_tokens < 0 || h.num_tokens > INT64_MAX - h.first_token)
    return std::to_string(h.num_tokens) + " tokens from " + std::to_string(h.first_token) + " on";
  const bool all = h.exact_sinks == h.first_token && h.exact_first == h.first_token;
  const bool none = h.exact_sinks == h.first_token && h.exact_first == h.end();
  if (h.exact_type > kBFloat16 || h.exact_sinks < h.first_token || h.exact_sinks > h.exact_first ||
      h.exact_first > h.end() || (h.exact_sinks == h.exact_first && !all) || (h.exact_type == 0) != none)
    return "exact copies of type " + std::to_string(h.exact_type) + " before " +
           std::to_string(h.exact_sinks) + " and from " + std::to_string(h.exact_first) + " on";
  bool slides = false;
  for (const SavedLayer& layer : h.layers) {
    const std::string name = "layer " + std::to_string(layer.number) + ": ";
    if (layer.stores()) {
      slides |= layer.window != 0;
      if (layer.num_heads == 0) return name + "no kv heads";
      if (layer.key.latent() != layer.value.latent()) return name + "one side is latent, and one is not";
      for (const SavedSide* side : {&layer.key, &layer.value})
        if (const std::string problem = problem_of_side(*side); !problem.empty()) return name + problem;
    } else if (layer.reads > layer.number || layer.reads < h.first_layer ||
               !h.layers[layer.reads - h.first_layer].stores()) {
      return name + "reads the tokens of layer " + std::to_string(layer.reads);
    }
  }
  if (!slides && h.rollback != 0)
    return "rollback = " + std::to_string(h.rollback) + " without a sliding window";
  return "";
}

}  // namespace

// ---- SavedHeader ----

bool SavedHeader::has_centres() const {
  return std::any_of(layers.begin(), layers.end(), [](const SavedLayer& layer) {
    return std::any_of(layer.centres.begin(), layer.centres.end(), [](uint64_t hash) { return hash != 0; });
  });
}

bool SavedHeader::has_bands() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const SavedLayer& layer) { return layer.key.banded(); });
}

bool SavedHeader::has_levels() const {
  return std::any_of(layers.begin(), layers.end(), [](const SavedLayer& layer) {
    return layer.key.code() == kSavedLevels || layer.value.code() == kSavedLevels;
  });
}

std::string SavedHeader::records() const {
  std::string text;
  for (const SavedLayer& layer : layers) {
    put(&text, layer.reads);
    if (!layer.stores()) {
      text.append(kRecordBytes - sizeof layer.reads, '\0');
      continue;
    }
    put(&text, layer.first_head), put(&text, layer.num_heads), put(&text, layer.window);
    put(&text, layer.key), put(&text, layer.value);
    for (const uint64_t hash : layer.centres) put(&text, hash);
  }
  return text;
}

uint64_t SavedHeader::computed_identity() const {
  std::string text;
  put(&text, kSavedVersion), put(&text, first_layer);
  text += records();
  return XXH64(text.data(), text.size(), 0);
}

std::string SavedHeader::bytes() const {
  std::string text(kMagic, kMarkBytes);
  put(&text, kSavedVersion), put(&text, static_cast<uint32_t>(layers.size()));
  put(&text, uint64_t{0}), put(&text, uint64_t{0}), put(&text, payload_bytes);
  put(&text, first_layer), put(&text, exact_type);
  for (const int64_t number : {first_token, num_tokens, exact_sinks, exact_first, rollback})
    put(&text, number);
  put(&text, noticed), put(&text, identity);
  text += records();
  put(&text, XXH3_64bits(text.data(), text.size()));
  return text;
}

std::vector<SavedRun> SavedHeader::runs(uint64_t* payload_bytes) const {
  std::vector<SavedRun> runs;
  uint64_t at = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const SavedLayer& layer = layers[i];
    if (!layer.stores()) continue;
    const auto add = [&](bool exact, int64_t first, int64_t end, uint64_t tile_bytes) {
      uint64_t head = 0, all = 0;
      if (__builtin_mul_overflow(static_cast<uint64_t>(tiles(first, end)), tile_bytes, &head) ||
          __builtin_mul_overflow(head, layer.num_heads, &all) || __builtin_add_overflow(at, all, &all) ||
          all > static_cast<uint64_t>(INT64_MAX))
        throw SavedError("its runs of tiles pass 2^63 bytes");
      if (head > 0) runs.push_back(SavedRun{i, exact, at, head});
      at = all;
    };
    __extension__ using Wide = __int128;
    const Wide seen = static_cast<Wide>(end()) - layer.window - rollback;
    const Wide least = first_token, most = end();
    const int64_t first =
        layer.window == 0 ? first_token : static_cast<int64_t>(std::max(least, std::min(most, seen)));
    add(false, first, end(), code_bytes(layer.key) + code_bytes(layer.value));
    for (const SavedSide* side : {&layer.key, &layer.value}) {
      add(true, first_token, exact_sinks, exact_bytes(*side, exact_type));
      add(true, exact_first, end(), exact_bytes(*side, exact_type));
    }
  }
  *payload_bytes = at;
  return runs;
}

// ---- SavedFile ----

void SavedFile::fail(const std::string& text) const { throw SavedError(printable(path_) + ": " + text); }

SavedFile::SavedFile(const std::string& path) : path_(path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) fail("no such file");
  if (error) fail(error.message());
  if (status.type() != std::filesystem::file_type::regular) fail("not a regular file");
  file_bytes_ = std::filesystem::file_size(path, error);
  if (error) fail(error.message());
  stream_.open(path, std::ios::binary);
  if (!stream_) fail(std::string("cannot be opened: ") + std::strerror(errno));
  parse_header();
}

void SavedFile::read(uint64_t offset, uint64_t count, uint8_t* bytes) {
  if (offset > file_bytes_ || count > file_bytes_ - offset)
    fail("cut short: it has " + std::to_string(file_bytes_) + " bytes, and " + std::to_string(count) +
         " more from " + std::to_string(offset) + " on are missing or incomplete");
  stream_.clear();
  stream_.seekg(static_cast<std::streamoff>(offset));
  stream_.read(reinterpret_cast<char*>(bytes), static_cast<std::streamsize>(count));
  if (!stream_) fail("cannot be read at byte " + std::to_string(offset));
}

void SavedFile::parse_header() {
  std::vector<uint8_t> bytes(kFixedBytes);
  uint8_t magic[kMarkBytes] = {};
  if (file_bytes_ < kMarkBytes) fail("no saved sequence: " + std::to_string(file_bytes_) + " bytes");
  read(0, kMarkBytes, magic);
  if (std::memcmp(magic, kMagic, kMarkBytes) != 0) fail("no saved sequence: it does not begin as one");
  read(0, kFixedBytes, bytes.data());
  Numbers fixed(bytes);
  fixed.next<uint64_t>();
  const auto version = fixed.next<uint32_t>();
  const auto num_layers = fixed.next<uint32_t>();
  const auto required = fixed.next<uint64_t>();
  if (version != kSavedVersion || required != 0)
    fail("format version " + std::to_string(version) + ", features " + std::to_string(required) +
         ": this program knows version 1 without any");
  const auto ignored = fixed.next<uint64_t>();
  SavedHeader& h = header_;
  h.payload_bytes = fixed.next<uint64_t>();
  h.first_layer = fixed.next<uint32_t>();
  h.exact_type = fixed.next<uint32_t>();
  for (int64_t* number : {&h.first_token, &h.num_tokens, &h.exact_sinks, &h.exact_first, &h.rollback})
    *number = fixed.next<int64_t>();
  h.noticed = fixed.next<uint64_t>();
  h.identity = fixed.next<uint64_t>();
  bool blank = (ignored & ~kMacBits) == 0;  // what has no meaning is zero
  h.mac_bytes = ignored & kMacBits;
  for (uint32_t i = 0; i < num_layers; i++) {
    const uint64_t at = bytes.size();
    bytes.resize(at + kRecordBytes);
    read(at, kRecordBytes, &bytes[at]);
    const std::vector<uint8_t> record(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end());
    Numbers numbers(record);
    SavedLayer layer;
    layer.number = h.first_layer + i;
    layer.reads = numbers.next<uint32_t>();
    if (layer.stores()) {
      layer.first_head = numbers.next<uint32_t>(), layer.num_heads = numbers.next<uint32_t>();
      layer.window = numbers.next<uint32_t>();
      layer.key = numbers.next<SavedSide>(), layer.value = numbers.next<SavedSide>();
      if (layer.first_head > kLastFirstHead || layer.num_heads > kMostHeads)
        fail("layer " + std::to_string(layer.number) + ": " + std::to_string(layer.num_heads) +
             " kv heads from " + std::to_string(layer.first_head) + " on");
      layer.centres.resize(2 * size_t{layer.num_heads});
      const uint64_t hashes = bytes.size(), count = layer.centres.size() * sizeof(uint64_t);
      bytes.resize(hashes + count);
      if (count > 0) read(hashes, count, &bytes[hashes]);
      std::copy_n(&bytes[0] + hashes, count, reinterpret_cast<uint8_t*>(layer.centres.data()));
    } else {
      blank &= std::all_of(record.begin() + 4, record.end(), [](uint8_t x) { return x == 0; });
    }
    h.layers.push_back(std::move(layer));
  }
  uint64_t checksum = 0;
  read(bytes.size(), kChecksumBytes, reinterpret_cast<uint8_t*>(&checksum));
  if (checksum != XXH3_64bits(bytes.data(), bytes.size()))
    fail("damaged: the header's checksum does not agree");
  header_bytes_ = bytes.size() + kChecksumBytes;
  std::string problem = blank ? problem_of(h) : "bytes without a meaning are not zero";
  if (problem.empty() && h.identity != h.computed_identity()) problem = "another identity";
  if (!problem.empty()) fail("nothing that is saved: " + problem);
  uint64_t payload = 0;
  try {
    runs_ = h.runs(&payload);
  } catch (const SavedError& error) {
    fail(error.what());
  }
  if (payload != h.payload_bytes)
    fail("nothing that is saved: a payload of " + std::to_string(h.payload_bytes) +
         " bytes, its layers make " + std::to_string(payload));
}

uint64_t SavedFile::whole_bytes() const {
  const uint64_t pieces = (header_.payload_bytes + kSavedPiece - 1) / kSavedPiece;
  return header_bytes_ + header_.payload_bytes + pieces * kChecksumBytes + kDigestBytes + kMarkBytes +
         header_.mac_bytes;
}

void SavedFile::verify(const std::function<void(uint64_t)>& progress) {
  const auto state =
      std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)>(XXH3_createState(), XXH3_freeState);
  if (!state || XXH3_128bits_reset(state.get()) != XXH_OK) throw std::bad_alloc();
  std::vector<uint8_t> bytes(header_bytes_);
  read(0, header_bytes_, bytes.data());
  XXH3_128bits_update(state.get(), bytes.data(), bytes.size());
  uint64_t at = header_bytes_, left = header_.payload_bytes;
  bytes.resize(kSavedPiece + kChecksumBytes);
  for (uint64_t piece = 0; left > 0; piece++) {
    const uint64_t count = std::min(left, kSavedPiece);
    read(at, count + kChecksumBytes, bytes.data());
    uint64_t checksum = 0;
    std::memcpy(&checksum, &bytes[count], sizeof checksum);
    if (checksum != XXH3_64bits_withSeed(bytes.data(), count, piece + 1))
      fail("damaged: the checksum of bytes " + std::to_string(at) + " to " + std::to_string(at + count - 1) +
           " does not agree");
    XXH3_128bits_update(state.get(), bytes.data(), count + kChecksumBytes);
    at += count + kChecksumBytes, left -= count;
    progress(at);
  }
  const XXH128_hash_t digest = XXH3_128bits_digest(state.get());
  const std::string tail = saved_tail(digest.low64, digest.high64);
  read(at, tail.size(), bytes.data());
  if (std::memcmp(bytes.data(), tail.data(), tail.size()) != 0)
    fail("damaged: digest or end mark do not agree");
  at += tail.size();
  read(at, header_.mac_bytes, bytes.data());  // it is there; without the key no more can be said
  at += header_.mac_bytes;
  if (at != file_bytes_) fail(std::to_string(file_bytes_ - at) + " bytes behind its end");
}

void SavedFile::read_payload(uint64_t offset, uint64_t count, uint8_t* bytes) {
  while (count > 0) {
    const uint64_t inside = offset % kSavedPiece, part = std::min(count, kSavedPiece - inside);
    read(header_bytes_ + offset / kSavedPiece * (kSavedPiece + kChecksumBytes) + inside, part, bytes);
    offset += part, bytes += part, count -= part;
  }
}

std::string saved_tail(uint64_t digest_low, uint64_t digest_high) {
  std::string tail;
  put(&tail, digest_low), put(&tail, digest_high);
  tail.append(kEndMark, kMarkBytes);
  return tail;
}

}  // namespace tq::cli
