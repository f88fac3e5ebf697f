// SPDX-License-Identifier: Apache-2.0
// Sides, centres and words of an identity, and their hash; see identity.h.
#include "identity.h"

#include <algorithm>
#include <initializer_list>

#include "tqkv.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tq {
namespace {

constexpr Kind kKinds[] = {Kind::kKey, Kind::kValue};

// A number as its four bytes, the lowest first, into a hash.
void put_word(void* state, uint32_t x) {
  const uint8_t bytes[4] = {static_cast<uint8_t>(x), static_cast<uint8_t>(x >> 8),
                            static_cast<uint8_t>(x >> 16), static_cast<uint8_t>(x >> 24)};
  XXH64_update(static_cast<XXH64_state_t*>(state), bytes, sizeof bytes);
}

// Lowest byte first, as everything that is saved.
template <typename T>
void put_number(T number, uint8_t* at) {
  for (size_t i = 0; i < sizeof number; i++) at[i] = static_cast<uint8_t>(number >> (8 * i));
}

uint32_t centre_word(float x) { return format::float_bits(x + 0.0f); }  // -0 is 0

bool is_banded(int32_t family) { return format::CodeId{static_cast<format::CodeFamily>(family), 0}.banded(); }

uint64_t levels_hash(const format::LevelTable& table) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for (int i = 0; i < table.count(); i++) put_word(&state, centre_word(table.level[i]));
  return XXH64_digest(&state);
}

// Of the magnitudes of a side's bands, as they stand in the side of a record, band by band.
uint64_t band_books_hash(const LayerGeometry& layer) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for (int band = 0; band < format::stored_dim(layer.head_dim) / format::kGroupCodes; band++) {
    const format::Codebook book =
        format::builtin_codebook(format::kGroupCodes, format::band_code(layer.key_code, band));
    uint8_t magnitude[format::kMaxMagnitudes] = {};
    std::copy_n(book.magnitude, book.count(), magnitude);
    XXH64_update(&state, magnitude, sizeof magnitude);
  }
  return XXH64_digest(&state);
}

}  // namespace

void keep_centres(const LayerGeometry& layer, const float* key, const float* value, float* kept) {
  const int64_t keys = static_cast<int64_t>(layer.num_kv_heads) * layer.head_dim;
  if (key) std::copy_n(key, keys, kept);
  if (value) std::copy_n(value, static_cast<int64_t>(layer.num_kv_heads) * layer.value_dim, kept + keys);
}

const float* Identity::centre(int32_t layer, int32_t kv_head, Kind kind) const {
  const Geometry& g = *geometry;
  const LayerGeometry& l = g.layers[layer];
  return centres + g.centre_floats(layer) +
         (kind == Kind::kKey ? 0 : static_cast<int64_t>(l.num_kv_heads) * l.head_dim) +
         static_cast<int64_t>(kv_head) * l.dim(kind);
}

SideIdentity side_identity(const Geometry& g, int32_t layer, Kind kind) {
  const LayerGeometry& code = g.layers[layer];
  const format::CodeId id = kind == Kind::kKey ? code.key_code : code.value_code;
  SideIdentity side = {};
  side.dim = code.dim(kind);
  side.family =
      static_cast<int32_t>(id.family == format::CodeFamily::kRows ? format::CodeFamily::kScalar : id.family) +
      (code.latent ? kLatentFamilies : 0);
  side.bits = id.bits;
  if (id.raw()) {
    side.raw_type = g.io_dtype == DataType::kBF16 ? 2 : 1;
    return side;
  }
  const bool prod = id.family == format::CodeFamily::kProd;
  side.variant = prod          ? static_cast<int32_t>(g.sketch)
                 : id.banded() ? static_cast<int32_t>(id.bands)
                               : id.group;
  if (!id.rotated()) return side;
  const format::Codebook& book = kind == Kind::kKey ? code.key_book : code.value_book;
  if (id.family == format::CodeFamily::kLevels)
    put_number(levels_hash(*(kind == Kind::kKey ? code.key_levels : code.value_levels)), side.magnitude);
  else if (id.banded())
    put_number(band_books_hash(code), side.magnitude);
  else
    std::copy_n(book.magnitude, book.count(), side.magnitude);
  if (prod) put_number(format::float_bits(code.sketch_factor), side.magnitude + format::kMaxMagnitudes - 4);
  side.rotation = static_cast<int32_t>(code.rotation);
  side.seed = g.rotation_seed;
  return side;
}

Difference difference(const SideIdentity& a, const SideIdentity& b, Kind kind) {
  const bool key = kind == Kind::kKey;
  const int32_t family = a.family % kLatentFamilies;
  if (a.family / kLatentFamilies != b.family / kLatentFamilies)
    return {"layer_kind (0 keys and values, 1 latent)", static_cast<uint64_t>(a.family / kLatentFamilies),
            static_cast<uint64_t>(b.family / kLatentFamilies)};
  const auto number = [](int32_t x) { return static_cast<uint64_t>(x); };
  const Difference fields[] = {
      {key ? "head_dim" : "value_dim", number(a.dim), number(b.dim)},
      {"code_family", number(a.family), number(b.family)},
      {key ? "key_bits" : "value_bits", number(a.bits), number(b.bits)},
      {"io_dtype (1 float16, 2 bfloat16 values)", number(a.raw_type), number(b.raw_type)},
      {family == TQ_CODE_PROD ? "sketch"
       : is_banded(family)    ? "key_bands (bits, 4 each)"
                              : "group_size",
       number(a.variant), number(b.variant)},
      {"rotation", number(a.rotation), number(b.rotation)},
      {"rotation_seed", a.seed, b.seed}};
  for (const Difference& field : fields)
    if (field.a != field.b) return field;
  for (int j = 0; j < format::kMaxMagnitudes; j++)
    if (a.magnitude[j] != b.magnitude[j])
      return Difference{family == TQ_CODE_PROD     ? "sketch_factor (a byte of it)"
                        : family == TQ_CODE_LEVELS ? key ? "key_levels (a byte of their hash)"
                                                         : "value_levels (a byte of their hash)"
                        : is_banded(family)        ? "key_bands (a byte of the hash of their codebooks)"
                        : key                      ? "key_codebook.magnitude"
                                                   : "value_codebook.magnitude",
                        a.magnitude[j], b.magnitude[j]};
  return Difference{nullptr, 0, 0};
}

uint64_t centre_hash(const Identity& identity, int32_t layer, int32_t kv_head, Kind kind) {
  const Geometry& g = *identity.geometry;
  const LayerGeometry& code = g.layers[layer];
  if (!(kind == Kind::kKey ? code.key_code : code.value_code).rotated()) return 0;
  const float* centre = identity.centre(layer, kv_head, kind);
  const int dim = code.dim(kind);
  uint32_t words[format::kMaxDim], any = 0;  // little-endian, as the machine is
  for (int i = 0; i < dim; i++) any |= words[i] = centre_word(centre[i]);
  uint64_t hash = any ? XXH64(words, sizeof(uint32_t) * static_cast<size_t>(dim), 0) : 0;
  if (kind != Kind::kKey) return hash;
  if (code.key_code.banded()) {
    for (int i = 0; i < dim; i++) words[i] = static_cast<uint32_t>(code.band_coordinate(kv_head, i));
    hash = XXH64(words, sizeof(uint32_t) * static_cast<size_t>(dim), hash);
  }
  const uint64_t matrix = identity.key_matrix(layer, kv_head);
  return matrix ? XXH64(&matrix, sizeof matrix, hash) : hash;
}

void for_each_word(const Identity& identity, void (*visit)(void* context, uint32_t word), void* context) {
  const Geometry& g = *identity.geometry;
  const auto put = [&](int64_t x) { visit(context, static_cast<uint32_t>(x)); };
  for (const int64_t x : {static_cast<int64_t>(kFormatVersion), static_cast<int64_t>(g.first_layer),
                          static_cast<int64_t>(g.num_layers), static_cast<int64_t>(g.page_size)})
    put(x);
  for (int32_t layer = 0; layer < g.num_layers; layer++) {
    const LayerGeometry& l = g.layers[layer];
    put(l.storage);
    if (!g.stores(layer)) continue;  // no bytes of its own
    put(l.num_kv_heads);
    put(l.first_kv_head);
    for (const Kind kind : kKinds) {
      const SideIdentity side = side_identity(g, layer, kind);
      for (const int64_t x :
           {static_cast<int64_t>(side.dim), static_cast<int64_t>(side.family),
            static_cast<int64_t>(side.bits), static_cast<int64_t>(side.raw_type),
            static_cast<int64_t>(side.rotation), static_cast<int64_t>(side.seed & 0xFFFFFFFF),
            static_cast<int64_t>(side.seed >> 32)})
        put(x);
      if (side.variant != 0) put(side.variant);
      if (side.rotation == 0) continue;
      for (const uint8_t magnitude : side.magnitude) put(magnitude);
      const float* centres = identity.centre(layer, 0, kind);
      for (int64_t i = 0; i < static_cast<int64_t>(l.num_kv_heads) * side.dim; i++)
        put(centre_word(centres[i]));
      if (kind != Kind::kKey) continue;
      for (int32_t head = 0; head < l.num_kv_heads; head++)
        if (const uint64_t matrix = identity.key_matrix(layer, head))
          put(static_cast<int64_t>(matrix & 0xFFFFFFFF)), put(static_cast<int64_t>(matrix >> 32));
      if (!l.key_code.banded()) continue;
      for (int32_t head = 0; head < l.num_kv_heads; head++)
        for (int32_t i = 0; i < side.dim; i++) put(l.band_coordinate(head, i));
    }
  }
}

uint64_t fingerprint_of(const Identity& identity) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for_each_word(identity, put_word, &state);
  return XXH64_digest(&state);
}

}  // namespace tq
