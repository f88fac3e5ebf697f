// SPDX-License-Identifier: Apache-2.0
//
// Saved sequences (FORMAT.md section 6.2) as the tool sees them: the header as numbers and as bytes, where
// each run of the payload lies, and whether all checksums agree. The library's loader compares a file with a
// cache; this says what a file is when no cache is at hand. Nothing of a file is believed before its checksum
// has agreed, and no memory is taken for what the file cannot hold.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace tq::cli {

// The file is no saved sequence, damaged, or of another version; the text starts with its path.
class SavedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr uint32_t kSavedVersion = 1, kSavedRawBits = 16;
constexpr uint32_t kSavedScalar = 1, kSavedProd = 2, kSavedGrouped = 3, kSavedLevels = 4, kSavedTrellis = 5,
                   kSavedBands = 7, kSavedTrellisBands = 8;  // families
constexpr uint32_t kSavedLatent = 16;  // added to the family of both sides of a latent layer
constexpr uint64_t kSavedPiece = 65536;

struct SavedSide {
  uint32_t dim, family, bits, raw_type, rotation;
  uint32_t variant;  // grouped: group size; prod: sketch; in bands: widths, four bits each
  uint64_t seed;
  uint8_t magnitudes[32];

  uint32_t code() const { return family % kSavedLatent; }
  bool latent() const { return family >= kSavedLatent; }
  bool raw() const { return bits == kSavedRawBits && !banded(); }
  bool grouped() const { return code() == kSavedGrouped; }
  bool banded() const { return code() == kSavedBands || code() == kSavedTrellisBands; }
  uint32_t num_bands() const { return (dim + 31) / 32; }
  uint32_t band_bits(uint32_t band) const { return variant >> (4 * band) & 15; }
  uint64_t num_groups() const { return grouped() ? (dim + variant - 1) / variant : 0; }
};
static_assert(sizeof(SavedSide) == 64, "as it stands in the file");

struct SavedLayer {
  uint32_t number = 0, reads = 0;  // in the whole model; it reads another's tokens if they differ
  uint32_t first_head = 0, num_heads = 0, window = 0;
  SavedSide key = {}, value = {};
  std::vector<uint64_t> centres;  // [kv head][key, value]: hashes, 0 = none

  bool stores() const { return reads == number; }
};

// A run of tiles of one layer: [kv head][tile], in the payload.
struct SavedRun {
  size_t layer;
  bool exact;       // exact copies, not codes
  uint64_t offset;  // in the payload
  uint64_t head_bytes;
};

struct SavedHeader {
  uint32_t first_layer = 0, exact_type = 0;
  int64_t first_token = 0, num_tokens = 0, exact_sinks = 0, exact_first = 0, rollback = 0;
  uint64_t noticed = 0, identity = 0, payload_bytes = 0;
  uint64_t mac_bytes = 0;  // behind the end mark; whose key it is of, no file says
  std::vector<SavedLayer> layers;

  int64_t end() const { return first_token + num_tokens; }
  bool has_centres() const;
  bool has_levels() const;
  bool has_bands() const;
  // Records of the layers as they stand in a file.
  std::string records() const;
  uint64_t computed_identity() const;
  // The whole header with its checksum, identity and payload_bytes as they are here, without a MAC.
  std::string bytes() const;
  // The payload's runs in their order, and its length; SavedError if that passes 2^63 or a field is wrong.
  std::vector<SavedRun> runs(uint64_t* payload_bytes) const;
};

class SavedFile {
 public:
  explicit SavedFile(const std::string& path);

  const std::string& path() const { return path_; }
  const SavedHeader& header() const { return header_; }
  uint64_t header_bytes() const { return header_bytes_; }
  uint64_t file_bytes() const { return file_bytes_; }
  // The byte behind the end mark and the MAC, as the header says.
  uint64_t whole_bytes() const;
  const std::vector<SavedRun>& runs() const { return runs_; }

  // Reads everything: pieces, digest and end mark agree, and nothing but the MAC follows. progress(bytes read
  // so far).
  void verify(const std::function<void(uint64_t)>& progress);
  // Part of the payload of a file that verify has passed.
  void read_payload(uint64_t offset, uint64_t count, uint8_t* bytes);

 private:
  [[noreturn]] void fail(const std::string& text) const;
  void read(uint64_t offset, uint64_t count, uint8_t* bytes);
  void parse_header();

  std::string path_;
  std::ifstream stream_;
  uint64_t file_bytes_ = 0, header_bytes_ = 0;
  SavedHeader header_;
  std::vector<SavedRun> runs_;
};

// What stands behind the payload: digest (XXH3-128 of all in front) and end mark.
std::string saved_tail(uint64_t digest_low, uint64_t digest_high);

}  // namespace tq::cli
