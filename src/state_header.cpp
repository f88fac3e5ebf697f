// SPDX-License-Identifier: Apache-2.0
// Headers of saved sequences, written, read and compared with a cache; see state_header.h.
#include "state_header.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

namespace tq {
namespace {

constexpr int32_t kMaxHeads = 65536;
constexpr Kind kKinds[] = {Kind::kKey, Kind::kValue};
constexpr int kSideBytes = 32 + format::kMaxMagnitudes, kRecordBytes = 16 + 2 * kSideBytes;

long long ll(int64_t x) { return static_cast<long long>(x); }

// Numbers into bytes, and out of them.
class Bytes {
 public:
  explicit Bytes(uint8_t* at) : at_(at) {}
  template <typename T>
  void put(T x) {
    for (size_t i = 0; i < sizeof x; i++) *at_++ = static_cast<uint8_t>(static_cast<uint64_t>(x) >> (8 * i));
  }
  template <typename T>
  T take() {
    uint64_t x = 0;
    for (size_t i = 0; i < sizeof(T); i++) x |= static_cast<uint64_t>(*at_++) << (8 * i);
    return static_cast<T>(x);
  }
  void put_bytes(const void* from, size_t count) {
    memcpy(at_, from, count);
    at_ += count;
  }
  void take_bytes(void* to, size_t count) {
    memcpy(to, at_, count);
    at_ += count;
  }

 private:
  uint8_t* at_;
};

// What a layer's record says, but for centres. Of a layer that reads another's tokens: storage alone.
struct Record {
  uint32_t storage, first_head, num_heads, window;
  SideIdentity sides[2];
};

Record record_of(const Geometry& g, int32_t layer, int32_t first_head, int32_t num_heads) {
  Record record = {};
  record.storage = static_cast<uint32_t>(g.first_layer + g.layers[layer].storage);
  if (!g.stores(layer)) return record;
  record.first_head = static_cast<uint32_t>(g.layers[layer].first_kv_head + first_head);
  record.num_heads = static_cast<uint32_t>(num_heads);
  record.window = static_cast<uint32_t>(g.layers[layer].sliding_window);
  for (const Kind kind : kKinds) record.sides[static_cast<int>(kind)] = side_identity(g, layer, kind);
  return record;
}

void put_record(const Record& record, uint8_t (&bytes)[kRecordBytes]) {
  Bytes out(bytes);
  for (const uint32_t x : {record.storage, record.first_head, record.num_heads, record.window}) out.put(x);
  for (const SideIdentity& side : record.sides) {
    for (const int32_t x : {side.dim, side.family, side.bits, side.raw_type, side.rotation, side.variant})
      out.put(static_cast<uint32_t>(x));
    out.put(side.seed);
    out.put_bytes(side.magnitude, sizeof side.magnitude);
  }
}

Record take_record(uint8_t (&bytes)[kRecordBytes]) {
  Record record = {};
  Bytes in(bytes);
  for (uint32_t* x : {&record.storage, &record.first_head, &record.num_heads, &record.window})
    *x = in.take<uint32_t>();
  for (SideIdentity& side : record.sides) {
    for (int32_t* x : {&side.dim, &side.family, &side.bits, &side.raw_type, &side.rotation, &side.variant})
      *x = in.take<int32_t>();
    side.seed = in.take<uint64_t>();
    in.take_bytes(side.magnitude, sizeof side.magnitude);
  }
  return record;
}

// The records of a part, as put(bytes, count).
template <typename Put>
void put_records(const Identity& identity, const StatePart& part, const Put& put) {
  const Geometry& g = *identity.geometry;
  uint8_t bytes[kRecordBytes];
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    const int32_t first = part.own_head(g.layers[layer]), heads = part.heads_of(g.layers[layer]);
    put_record(record_of(g, layer, first, heads), bytes);
    put(bytes, sizeof bytes);
    for (int32_t head = 0; g.stores(layer) && head < heads; head++)
      for (const Kind kind : kKinds) {
        Bytes(bytes).put(centre_hash(identity, layer, first + head, kind));
        put(bytes, sizeof(uint64_t));
      }
  }
}

// The hash of a part's records as they pass by.
class IdentityHash {
 public:
  explicit IdentityHash(uint32_t first_layer) {
    uint8_t bytes[8];
    Bytes out(bytes);
    out.put(kFormatVersion);
    out.put(first_layer);
    XXH64_reset(&state_, 0);
    add(bytes, sizeof bytes);
  }
  void add(const void* bytes, size_t count) { XXH64_update(&state_, bytes, count); }
  uint64_t value() const { return XXH64_digest(&state_); }

 private:
  XXH64_state_t state_;
};

// The first reason why saved bytes are not this cache's; thrown once the header is known to be whole.
class Mismatch {
 public:
  void check(const char* name, uint64_t saved, uint64_t own, int32_t layer = -1) {
    if (saved == own || reason_[0]) return;
    char where[32] = "";
    if (layer >= 0) snprintf(where, sizeof where, "layer %d: ", layer);
    snprintf(reason_, sizeof reason_, "saved sequence: %s%s = %llu, the cache's is %llu", where, name,
             static_cast<unsigned long long>(saved), static_cast<unsigned long long>(own));
  }
  void check_centre(bool equal, Kind kind, int64_t kv_head, int32_t layer) {
    if (equal || reason_[0]) return;
    snprintf(reason_, sizeof reason_,
             "saved sequence: layer %d: the %s centre of kv head %lld is not the cache's", layer,
             kind == Kind::kKey ? "key" : "value", ll(kv_head));
  }
  void raise() const {
    if (reason_[0]) throw Error(Status::kIncompatible, "%s", reason_);
  }

 private:
  char reason_[256] = "";
};

// One layer's record and centres, compared with the cache's.
void read_layer(StateReader& in, const Identity& identity, int32_t layer, SavedHeader* header,
                IdentityHash* hash, Mismatch* mismatch) {
  const Geometry& g = *identity.geometry;
  uint8_t bytes[kRecordBytes];
  in.bytes_of(bytes, sizeof bytes);
  hash->add(bytes, sizeof bytes);
  const Record saved = take_record(bytes);
  const bool stores = saved.num_heads != 0;
  const int64_t first = saved.first_head, heads = saved.num_heads;
  TQ_CHECK(first < kMaxHeads && heads <= kMaxHeads, Status::kCorruptData,
           "saved sequence: layer %d has %lld kv heads from %lld on", layer, ll(heads), ll(first));
  const Record own = record_of(g, layer, 0, g.layers[layer].num_kv_heads);
  mismatch->check("shares_layer", saved.storage, own.storage, layer);
  mismatch->check("sliding_window", saved.window, own.window, layer);
  const int64_t first_own = own.first_head, heads_own = own.num_heads;
  if (first > first_own || first + heads < first_own + heads_own || stores != g.stores(layer)) {
    mismatch->check("first_kv_head", saved.first_head, own.first_head, layer);
    mismatch->check("num_kv_heads", saved.num_heads, own.num_heads, layer);
  }
  for (const Kind kind : kKinds) {
    const int side = static_cast<int>(kind);
    const Difference found = difference(saved.sides[side], own.sides[side], kind);
    if (found.name) mismatch->check(found.name, found.a, found.b, layer);
  }
  for (int64_t head = first; head < first + heads; head++)
    for (const Kind kind : kKinds) {
      in.bytes_of(bytes, sizeof(uint64_t));
      hash->add(bytes, sizeof(uint64_t));
      const uint64_t centre = Bytes(bytes).take<uint64_t>();
      if (!g.stores(layer) || head < first_own || head >= first_own + heads_own) continue;
      mismatch->check_centre(
          centre == centre_hash(identity, layer, static_cast<int32_t>(head - first_own), kind), kind, head,
          layer);
    }
  header->first_heads[static_cast<size_t>(layer)] = static_cast<int32_t>(first);
  header->num_heads[static_cast<size_t>(layer)] = static_cast<int32_t>(heads);
}

// Numbers of tokens that fit together, and the payload that they make.
void check_numbers(const Geometry& g, const SavedHeader& header, int64_t max_tokens) {
  const StatePart& part = header.part;
  TQ_CHECK(part.num_tokens <= max_tokens, Status::kCapacity,
           "saved sequence: %lld tokens, max_sequence_tokens = %lld", ll(part.num_tokens), ll(max_tokens));
  const bool none = part.exact_sinks == 0 && part.exact_first == part.num_tokens;
  TQ_CHECK(part.exact_type >= 0 && part.exact_type <= TQ_BF16 && part.num_tokens >= 0 &&
               part.exact_sinks >= 0 && part.exact_first <= part.num_tokens &&
               (part.exact_sinks < part.exact_first || part.exact_first == 0) &&
               part.exact_sinks <= part.exact_first && (part.exact_type == 0) == none,
           Status::kCorruptData,
           "saved sequence: %lld tokens with exact copies of type %d before %lld and from %lld on",
           ll(part.num_tokens), part.exact_type, ll(part.exact_sinks), ll(part.exact_first));
  TQ_CHECK(part.rollback <= INT32_MAX && part.rollback > -INT64_MAX / 4, Status::kCorruptData,
           "saved sequence: rollback_tokens = %lld", ll(part.rollback));
  TQ_CHECK(g.any_window() || part.rollback == 0, Status::kCorruptData,
           "saved sequence: rollback_tokens = %lld, and no layer has a sliding window", ll(part.rollback));
  int64_t left = header.payload_bytes;
  bool fits = true;
  for_each_part_run(g, part, [&](const PartRun& run) {
    const int64_t heads = header.num_heads[static_cast<size_t>(run.layer)],
                  head_bytes = run.move.tiles * run.move.tile_bytes();
    fits = fits && head_bytes <= left / heads;
    if (fits) left -= head_bytes * heads;
  });
  TQ_CHECK(fits && left == 0, Status::kCorruptData,
           "saved sequence: its payload has %lld bytes, which is not what the fields of its header make",
           ll(header.payload_bytes));
}

}  // namespace

uint64_t part_identity(const Identity& identity, const StatePart& part) {
  IdentityHash hash(static_cast<uint32_t>(identity.geometry->first_layer + part.first_layer));
  put_records(identity, part, [&](const void* bytes, size_t count) { hash.add(bytes, count); });
  return hash.value();
}

void write_header(StateWriter& out, const Identity& identity, const StatePart& part, const tq_state& state) {
  out.bytes_of(kStateMagic, sizeof kStateMagic);
  out.number(kFormatVersion);
  out.number(static_cast<uint32_t>(part.num_layers));
  out.number(uint64_t{0});                             // features that a reader must know
  out.number(static_cast<uint64_t>(out.mac_bytes()));  // and others
  out.number(static_cast<uint64_t>(state.bytes));
  out.number(static_cast<uint32_t>(state.first_layer));
  out.number(static_cast<uint32_t>(part.exact_type));
  for (const int64_t x :
       {part.first_token, part.num_tokens, part.exact_sinks, part.exact_first, part.rollback})
    out.number(static_cast<uint64_t>(x));
  out.number(state.flags & (kNoticedNonfinite | kNoticedSaturated));
  out.number(state.identity);
  put_records(identity, part, [&](const void* bytes, size_t count) { out.bytes_of(bytes, count); });
  out.end_header();
}

SavedHeader read_header(StateReader& in, const Identity& identity, int64_t max_tokens) {
  const Geometry& g = *identity.geometry;
  uint8_t magic[8];
  in.bytes_of(magic, sizeof magic);
  TQ_CHECK(memcmp(magic, kStateMagic, sizeof magic) == 0, Status::kCorruptData,
           "saved sequence: it does not begin as one");
  const uint32_t version = in.number<uint32_t>();
  TQ_CHECK(version == kFormatVersion, Status::kIncompatible,
           "saved sequence: format version %u, this library has %u", version, kFormatVersion);
  const uint32_t layers = in.number<uint32_t>();
  const uint64_t required = in.number<uint64_t>();
  in.expect_mac(in.number<uint64_t>());  // what a reader need not know
  TQ_CHECK(required == 0, Status::kIncompatible, "saved sequence: features 0x%llx are not known here",
           static_cast<unsigned long long>(required));
  // Records follow for as many layers as the cache has, so this cannot wait for the checksum.
  TQ_CHECK(layers == static_cast<uint32_t>(g.num_layers), Status::kIncompatible,
           "saved sequence: num_layers = %u, the cache's is %d", layers, g.num_layers);
  SavedHeader header = {};
  header.first_heads.resize(layers), header.num_heads.resize(layers);
  header.payload_bytes = in.number<int64_t>();
  Mismatch mismatch;
  const uint32_t first_layer = in.number<uint32_t>();
  mismatch.check("first_layer", first_layer, static_cast<uint32_t>(g.first_layer));
  StatePart& part = header.part;
  part.num_layers = g.num_layers;
  part.exact_type = in.number<int32_t>();
  for (int64_t* x :
       {&part.first_token, &part.num_tokens, &part.exact_sinks, &part.exact_first, &part.rollback})
    *x = in.number<int64_t>();
  header.flags = in.number<uint64_t>();
  const uint64_t saved_identity = in.number<uint64_t>();
  IdentityHash hash(first_layer);
  const bool wrong = (header.flags & ~(kNoticedNonfinite | kNoticedSaturated)) != 0;
  for (int32_t layer = 0; layer < g.num_layers; layer++)
    read_layer(in, identity, layer, &header, &hash, &mismatch);
  in.end_header();
  mismatch.check("first_token", static_cast<uint64_t>(part.first_token), 0);
  if (g.has_exact() && part.exact_type != 0)
    mismatch.check("io_dtype of exact copies", static_cast<uint64_t>(part.exact_type),
                   static_cast<uint64_t>(g.io_dtype));
  mismatch.raise();
  TQ_CHECK(!wrong && saved_identity == hash.value(), Status::kCorruptData,
           "saved sequence: the identity or what is reserved in its header is wrong");
  check_numbers(g, header, max_tokens);
  return header;
}

}  // namespace tq
