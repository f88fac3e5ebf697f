// SPDX-License-Identifier: Apache-2.0
// The words of an identity and their hash; see identity.h.
#include "identity.h"

#include <initializer_list>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tq {

void for_each_word(const Identity& identity, void (*put_word)(void* context, uint32_t word), void* context) {
  const Geometry& g = *identity.geometry;
  const auto put = [&](int64_t x) { put_word(context, static_cast<uint32_t>(x)); };
  for (const int64_t x : {static_cast<int64_t>(kFormatVersion), static_cast<int64_t>(identity.first_layer),
                          static_cast<int64_t>(identity.first_kv_head), static_cast<int64_t>(g.num_layers),
                          static_cast<int64_t>(g.num_kv_heads), static_cast<int64_t>(g.head_dim),
                          static_cast<int64_t>(g.value_dim), static_cast<int64_t>(g.page_size)})
    put(x);
  bool any_coded = false;
  const float* centres = identity.centres;
  for (int32_t layer = 0; layer < g.num_layers; layer++) {
    const LayerCode& code = g.layers[layer];
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const bool key = kind == Kind::kKey;
      const format::CodeId id = key ? code.key_code : code.value_code;
      const int64_t count = static_cast<int64_t>(g.num_kv_heads) * (key ? g.head_dim : g.value_dim);
      put(static_cast<int32_t>(id.family));
      put(id.bits);
      if (id.raw()) {
        put(g.io_dtype == DataType::kBF16 ? 2 : 1);  // bfloat16 or float16
      } else {
        any_coded = true;
        const format::Codebook& book = key ? code.key_book : code.value_book;
        for (int j = 0; j < book.count(); j++) put(book.magnitude[j]);
        for (int64_t i = 0; i < count; i++) put(format::float_bits(centres[i] + 0.0f));  // -0 is 0
      }
      centres += count;
    }
  }
  if (!any_coded) return;
  put(static_cast<int32_t>(g.rotation));
  put(static_cast<int64_t>(g.rotation_seed & 0xFFFFFFFF));
  put(static_cast<int64_t>(g.rotation_seed >> 32));
}

uint64_t fingerprint_of(const Identity& identity) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for_each_word(
      identity,
      [](void* hash, uint32_t x) {
        const uint8_t bytes[4] = {static_cast<uint8_t>(x), static_cast<uint8_t>(x >> 8),
                                  static_cast<uint8_t>(x >> 16), static_cast<uint8_t>(x >> 24)};
        XXH64_update(static_cast<XXH64_state_t*>(hash), bytes, sizeof bytes);
      },
      &state);
  return XXH64_digest(&state);
}

}  // namespace tq
