// SPDX-License-Identifier: Apache-2.0
// What decides the meaning of page bytes, and nothing else: two caches with the same identity can exchange
// pages. It is a fixed sequence of 32-bit words; the fingerprint is their hash, and who stores pages stores
// the words beside them.
//
// In: format version, code families, widths and magnitudes of the codebooks, dimensions, page size, centres,
// the rotation and its seed, and which layer and kv head of the model come first (rotations are numbered by
// both). Out: how the encoder chose the codes (scale rule, scale search, a codebook's unit: the stored scale
// has taken it up), and everything about capacity, devices and queries.
#pragma once
#include "requests.h"

namespace tq {

constexpr uint32_t kFormatVersion = 1;

struct Identity {
  const Geometry* geometry;
  // [num_layers]: keys [num_kv_heads][head_dim], then values [num_kv_heads][value_dim]; zeros = none
  const float* centres;
  // Number in the whole model of this cache's first layer and kv head. Rotations do not follow them yet, so
  // they are 0.
  uint32_t first_layer = 0, first_kv_head = 0;
};

// Calls put(context, word) for every word, in order. Allocates nothing.
void for_each_word(const Identity& identity, void (*put)(void* context, uint32_t word), void* context);
// XXH64 of the words as little-endian bytes.
uint64_t fingerprint_of(const Identity& identity);

}  // namespace tq
