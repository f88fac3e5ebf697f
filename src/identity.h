// SPDX-License-Identifier: Apache-2.0
// What decides the meaning of page bytes, and nothing else. The identity of a cache is a fixed sequence of
// 32-bit words; the fingerprint is their hash, and two caches with equal fingerprints can exchange pages. Of
// caches that differ in pages, layers or kv heads, parts can be compared: a layer by what its two sides are,
// a kv head by its number and its centres. What is moved by tiles (copies, ranks of a tensor-parallel group)
// needs no more than that.
//
// In: format version, code families, widths and magnitudes of the codebooks, dimensions, page size, centres,
// the rotation and its seed, and which layer and kv head of the model come first (rotations are numbered by
// both). Out: how the encoder chose the codes (scale rule, scale search, a codebook's unit: the stored scale
// has taken it up), and everything about capacity, devices and queries.
#pragma once
#include "requests.h"

namespace tq {

constexpr uint32_t kFormatVersion = 1;

// Copies centres of one layer, either null (unchanged), to [num_kv_heads][head_dim + value_dim], keys first.
void keep_centres(const LayerGeometry& layer, const float* key, const float* value, float* kept);

struct Identity {
  const Geometry* geometry;
  // [num_layers]: keys [num_kv_heads][head_dim], then values [num_kv_heads][value_dim]; zeros = none
  const float* centres;
  // [num_layers][num_kv_heads] hashes (KeyMatrix), 0 = none; null: none at all
  const uint64_t* key_matrices = nullptr;

  // Centre of one kv head, [dim of the side].
  const float* centre(int32_t layer, int32_t kv_head, Kind kind) const;
  uint64_t key_matrix(int32_t layer, int32_t kv_head) const {
    return key_matrices ? key_matrices[geometry->kv_heads(layer) + kv_head] : 0;
  }
};

// What the codes of one side of one layer are, kv heads' centres apart. Equal sides of the same layer and kv
// head of a model: tiles are exchangeable.
constexpr int32_t kLatentFamilies = 16;
struct SideIdentity {
  int32_t dim;
  int32_t family, bits;  // family: of a latent layer's sides kLatentFamilies more
  int32_t raw_type;      // of a raw side's values: 1 float16, 2 bfloat16; else 0
  // of the codebook, zeros where the code has none; prod: the factor in the last 4; levels: their hash first;
  // banded: that of the bands' codebooks
  uint8_t magnitude[format::kMaxMagnitudes];
  int32_t rotation;  // 0 where nothing is rotated, as the seed
  int32_t variant;   // grouped: group size; prod: sketch; banded: widths, four bits each; else 0
  uint64_t seed;
};
SideIdentity side_identity(const Geometry& geometry, int32_t layer, Kind kind);
// The first field that differs, for a text: "head_dim", "value_bits", ... and its values; name null if none
// does.
struct Difference {
  const char* name;
  uint64_t a, b;
};
Difference difference(const SideIdentity& a, const SideIdentity& b, Kind kind);

// XXH64 of a kv head's centre as little-endian floats, 0 for one of zeros and where nothing is rotated. Of
// banded keys: XXH64 of their order, seeded with the centre's. Of keys with a matrix: XXH64 of its hash,
// seeded with what there is without.
uint64_t centre_hash(const Identity& identity, int32_t layer, int32_t kv_head, Kind kind);

// Calls put(context, word) for every word, in order. Allocates nothing.
void for_each_word(const Identity& identity, void (*put)(void* context, uint32_t word), void* context);
// XXH64 of the words as little-endian bytes.
uint64_t fingerprint_of(const Identity& identity);

}  // namespace tq
