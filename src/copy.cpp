// SPDX-License-Identifier: Apache-2.0
// tq_sequence_copy: a sequence into another cache, by codes. Tiles go from pages to pages if one device
// reaches both, else through staging memory of the host, piece by piece.
#include <algorithm>
#include <optional>

#include "all_coded.h"
#include "identity.h"
#include "layer_pieces.h"

namespace tq {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

void require_equal(int32_t layer, const char* name, int64_t target, int64_t source) {
  TQ_CHECK(target == source, Status::kIncompatible, "target: layer %d: %s = %lld, the source's is %lld",
           layer, name, ll(target), ll(source));
}

}  // namespace

// INCOMPATIBLE unless tiles of the source mean the same in the target.
void Cache::check_exchangeable(const Cache& source) const {
  const Geometry &to = geometry(), &from = source.geometry();
  const Identity own = identity(), other = source.identity();
  TQ_CHECK(to.num_layers == from.num_layers, Status::kIncompatible,
           "target: num_layers = %d, the source's is %d", to.num_layers, from.num_layers);
  TQ_CHECK(to.first_layer == from.first_layer, Status::kIncompatible,
           "target: first_layer = %d, the source's is %d", to.first_layer, from.first_layer);
  for (int32_t layer = 0; layer < to.num_layers; layer++) {
    const LayerGeometry &a = to.layers[layer], &b = from.layers[layer];
    require_equal(layer, "num_kv_heads", a.num_kv_heads, b.num_kv_heads);
    require_equal(layer, "first_kv_head", a.first_kv_head, b.first_kv_head);
    require_equal(layer, "shares_layer", to.stores(layer) ? 0 : a.storage + 1,
                  from.stores(layer) ? 0 : b.storage + 1);
    if (!to.stores(layer)) continue;
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const Difference found =
          difference(side_identity(to, layer, kind), side_identity(from, layer, kind), kind);
      TQ_CHECK(!found.name, Status::kIncompatible, "target: layer %d: %s = %llu, the source's is %llu", layer,
               found.name, static_cast<unsigned long long>(found.a),
               static_cast<unsigned long long>(found.b));
      for (int32_t head = 0; head < a.num_kv_heads; head++)
        TQ_CHECK(centre_hash(own, layer, head, kind) == centre_hash(other, layer, head, kind),
                 Status::kIncompatible, "target: layer %d: the %s centre of kv head %d is not the source's",
                 layer, kind == Kind::kKey ? "key" : "value", head);
    }
  }
  TQ_CHECK(!to.has_exact() || !from.has_exact() || to.io_dtype == from.io_dtype, Status::kIncompatible,
           "target: io_dtype = %d, the source's is %d: exact copies of window and sinks cannot be converted",
           static_cast<int>(to.io_dtype), static_cast<int>(from.io_dtype));
}

// What a sequence of the source can give each page group of this cache.
void Cache::collect_available(const Cache& source, int32_t slot, KeptTokens* available) const {
  const Geometry& g = geometry();
  const SequenceTable& table = source.arrays_.table;
  const int64_t length = table.length(slot);
  for (int32_t group = 0; group < g.num_groups; group++) available[group] = KeptTokens{length, 0, length};
  for (int32_t layer = 0; layer < g.num_layers; layer++) {
    if (!g.stores(layer)) continue;
    const KeptTokens& kept = table.group(source.geometry().layers[layer].group).kept(slot);
    KeptTokens& own = available[g.layers[layer].group];
    own.first = std::max(own.first, kept.first);
    own.sink_end = std::min(own.sink_end, kept.first == 0 ? length : kept.sink_end);
    const int64_t window = g.group_of(layer).window,
                  seen = window == kAllTokens ? 0 : std::max<int64_t>(0, length - window + 1);
    TQ_CHECK(kept.first <= seen, Status::kIncompatible,
             "target: layer %d: its next query sees tokens from %lld on, the source keeps those from %lld on",
             layer, ll(seen), ll(kept.first));
  }
  if (g.has_exact()) available[g.raw_group] = table.exact(slot);
}

// Moves a layer's tiles from a sequence of the source to this cache's. Both backends reach what lies between.
void Cache::move_layer(Cache& source, int32_t from, int32_t slot, int32_t layer, void* stream) {
  const Geometry& g = geometry();
  const bool direct = config_.device() == source.config_.device();
  const int64_t end = source.arrays_.written.tokens(layer, from);
  for_each_piece(g, layer, arrays_.table.group(g.layers[layer].group).kept_planned(0),
                 arrays_.table.exact_planned(0), end, [&](LayerPiece& piece) {
                   TileMove& move = piece.move;
                   move.source = place_of(*source.backend_, source.geometry(), source.arrays_.table, from,
                                          layer, piece.kind, piece.first_tile);
                   move.target =
                       place_of(*backend_, g, arrays_.table, slot, layer, piece.kind, piece.first_tile);
                   move.stream = stream;
                   if (direct)
                     backend_->move_tiles(move);
                   else
                     move_staged(source, move);
                 });
}

// The same for caches of which one is on the host and one on a device.
void Cache::move_staged(Cache& source, const TileMove& move) {
  const bool to_device = config_.device() == DeviceType::kCuda;
  Backend& device = to_device ? *backend_ : *source.backend_;
  const int64_t pitch = static_cast<int64_t>(move.heads) * move.tile_bytes(),
                room = std::max<int64_t>(1, kStagingBytes / pitch);
  const Staging staging(device, std::min(room, move.tiles) * pitch);
  for (int64_t first = 0; first < move.tiles; first += room) {
    TileMove part = part_of(move, first, std::min(room, move.tiles - first));
    TileMove in = part, out = part;
    out.source.first_tile += first;
    out.target = linear_place(staging.get(), part.tiles, move.tile_bytes());
    in.source = out.target;
    in.target.first_tile += first;
    (to_device ? out : in).stream = nullptr;
    source.backend_->move_tiles(out);
    if (!to_device) device.wait(move.stream);
    backend_->move_tiles(in);
    if (to_device) device.wait(move.stream);
  }
}

int64_t Cache::copy_sequence(Cache& source, int64_t id, Cache& target, void* stream) {
  const Gate::Use use(target.gate_, true);
  std::optional<Gate::Use> other;
  if (&source != &target) other.emplace(source.gate_, true);
  const int32_t from = source.arrays_.table.find(id, "sequence");
  const Cache& on_device = target.config_.device() == DeviceType::kCuda ? target : source;
  on_device.check_stream(stream);
  TQ_CHECK(target.config_.device() != DeviceType::kCuda || source.config_.device() != DeviceType::kCuda ||
               target.geometry().device_id == source.geometry().device_id,
           Status::kNotSupported,
           "target: on CUDA device %d, the source on %d: copy by way of a CPU cache, or save and load",
           target.geometry().device_id, source.geometry().device_id);
  target.check_exchangeable(source);
  const AllCoded codes(source, from, stream);
  KeptTokens available[kMaxPageGroups];
  target.collect_available(source, from, available);
  SequenceTable& table = target.arrays_.table;
  table.prepare_slot();
  void* own_stream = target.config_.device() == DeviceType::kCuda ? stream : nullptr;
  target.scrub_uncleared(own_stream);
  const int64_t copy = table.commit_create();
  const int32_t slot = table.find(copy, "copy");
  try {
    table.prepare_import(slot, available, "target: the sequence");
  } catch (...) {
    table.cancel_create(slot);
    throw;
  }
  try {
    for (int32_t layer = 0; layer < target.geometry().num_layers; layer++)
      if (target.geometry().stores(layer)) target.move_layer(source, from, slot, layer, stream);
    const bool direct = target.config_.device() == source.config_.device();
    if (!direct && source.config_.device() == DeviceType::kCuda) source.backend_->wait(stream);
    target.backend_->add_to_slot(slot, source.backend_->slot_flags(from),
                                 direct ? source.backend_->slot_word(from) : nullptr, own_stream);
  } catch (...) {
    table.cancel_import();
    table.cancel_create(slot);
    throw;
  }
  for (int32_t layer = 0; layer < target.geometry().num_layers; layer++)
    target.arrays_.written.append(layer, slot, source.arrays_.written.tokens(layer, from));
  table.commit_growth();
  return copy;
}

}  // namespace tq
