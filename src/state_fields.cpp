// SPDX-License-Identifier: Apache-2.0
// Fields of a part, hashed one by one; see state_fields.h. Each is a chain of XXH64 over the part's layers in
// order, the hash so far being the seed of the next.
#include "state_fields.h"

#include <algorithm>
#include <iterator>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tq {
namespace {

// Keys first. What follows from another field (a raw side has no rotation) stands behind that one.
enum Field {
  kSharesLayer,
  kSlidingWindow,
  kHeads,
  kDim,
  kBits = kDim + 2,
  kFamily = kBits + 2,
  kRawType = kFamily + 2,
  kRotation,
  kSeed,
  kMagnitudes,
  kCentres = kMagnitudes + 2,
  kEnd = kCentres + 2
};
constexpr const char* kNames[kStateFields] = {"shares_layer",
                                              "sliding_window",
                                              "num_kv_heads",
                                              "head_dim",
                                              "value_dim",
                                              "key_bits",
                                              "value_bits",
                                              "key_family or group_size",
                                              "value_family or group_size",
                                              "io_dtype",
                                              "rotation",
                                              "rotation_seed",
                                              "key_codebook",
                                              "value_codebook",
                                              "key_centre",
                                              "value_centre"};
static_assert(kEnd == kStateFields, "a name for each field");

class Chains {
 public:
  template <typename T>
  void add(int field, T x) {
    add_bytes(field, &x, sizeof x);
  }
  void add_bytes(int field, const void* bytes, size_t count) {
    hashes_[field] = XXH64(bytes, count, hashes_[field]);
  }
  uint32_t value(int field) const { return static_cast<uint32_t>(hashes_[field] ^ hashes_[field] >> 32); }

 private:
  uint64_t hashes_[kStateFields] = {};
};

}  // namespace

void part_fields(const Identity& identity, const StatePart& part, uint32_t (&fields)[kStateFields]) {
  const Geometry& g = *identity.geometry;
  Chains chains;
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    const LayerGeometry& l = g.layers[layer];
    chains.add(kSharesLayer, g.first_layer + l.storage);
    if (!g.stores(layer)) continue;
    const int32_t heads = part.heads_of(l), first = part.own_head(l);
    chains.add(kSlidingWindow, l.sliding_window);
    chains.add(kHeads, l.first_kv_head + first);
    chains.add(kHeads, heads);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const int side = static_cast<int>(kind);
      const SideIdentity is = side_identity(g, layer, kind);
      chains.add(kDim + side, is.dim);
      chains.add(kFamily + side, is.family);
      chains.add(kFamily + side, is.variant);
      chains.add(kBits + side, is.bits);
      chains.add(kRawType, is.raw_type);
      chains.add(kRotation, is.rotation);
      chains.add(kSeed, is.seed);
      chains.add_bytes(kMagnitudes + side, is.magnitude, sizeof is.magnitude);
      for (int32_t head = first; head < first + heads; head++)
        chains.add(kCentres + side, centre_hash(identity, layer, head, kind));
    }
  }
  for (int field = 0; field < kStateFields; field++) fields[field] = chains.value(field);
}

const char* differing_field(const uint32_t (&given)[kStateFields], const uint32_t (&own)[kStateFields]) {
  if (std::all_of(std::begin(given), std::end(given), [](uint32_t x) { return x == 0; })) return nullptr;
  for (int field = 0; field < kStateFields; field++)
    if (given[field] != own[field]) return kNames[field];
  return nullptr;
}

}  // namespace tq
