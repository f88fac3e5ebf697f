// SPDX-License-Identifier: Apache-2.0
// tq_sequence_describe, _export and _import: parts of a sequence to memory of the caller's and from it, as
// tiles. part_way.h says how they get there.
#include <string.h>

#include "all_coded.h"
#include "state_fields.h"
#include "state_header.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr int64_t kTile = format::kTileTokens;

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

// ---- what there is ----

// The part of a sequence that a tq_state names, with what the sequence has of it.
StatePart Cache::part_of_sequence(const tq_state& state, int32_t slot) const {
  const Geometry& g = geometry();
  const SequenceTable& table = arrays_.table;
  StatePart part = part_of_state(g, state, table.length(slot));
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    if (!g.stores(layer)) continue;
    const int64_t written = arrays_.written.tokens(layer, slot);
    TQ_CHECK(part.end() <= written, Status::kInvalidState,
             "state: layer %d of sequence %lld holds %lld of the tokens before %lld; the others are planned "
             "and not appended there",
             layer, ll(table.id(slot)), ll(written), ll(part.end()));
  }
  const KeptTokens exact = table.exact(slot);
  const auto inside = [&](int64_t token) { return std::min(part.end(), std::max(part.first_token, token)); };
  part.exact_sinks = inside(exact.sink_end);
  part.exact_first = inside(exact.first);
  if (part.exact_first <= part.exact_sinks) part.exact_sinks = part.exact_first = part.first_token;  // all
  const bool any = part.exact_sinks > part.first_token || part.exact_first < part.end();
  part.exact_type = any ? static_cast<int32_t>(g.io_dtype) : 0;
  // One number for all sliding layers of the cache, whatever layers the part has: parts of some layers each
  // then agree in what there is.
  part.rollback = g.any_window() ? g.groups[0].rollback : 0;
  for (int32_t group = 0; group < g.num_code_groups(); group++) {
    const KeptTokens& kept = table.group(group).kept(slot);
    if (kept.first > 0)
      part.rollback = std::min(part.rollback, part.end() - g.groups[group].window - kept.first);
  }
  return part;
}

void Cache::describe(int64_t id, tq_state* state) const {
  const Gate::Use use(gate_, false);
  const int32_t slot = arrays_.table.find(id, "sequence");
  describe_part(identity(), part_of_sequence(*state, slot), state);
  state->flags = backend_->slot_flags(slot);
}

// ---- moves ----

TilePlace Cache::run_place(const PartRun& run, int32_t slot, int32_t first_head, int64_t first_tile) const {
  TilePlace place = place_of(*backend_, geometry(), arrays_.table, slot, run.layer, run.kind,
                             run.first_tile() + first_tile);
  place.memory += first_head * place.head_bytes;
  return place;
}

// Tokens begin .. end - 1 of a slice, whose source is memory of one piece, into the pages of a sequence that
// keeps `kept`. What it holds in front of them in their first tile stays.
void Cache::put_tokens(const PartRun& run, const RunSlice& slice, const KeptTokens& kept, int32_t slot,
                       int32_t first_head, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t skipped = begin / kTile, base = (run.first_tile() + slice.first_tile + skipped) * kTile;
  TileMove move = slice.move;
  move.source.memory += skipped * move.tile_bytes();
  move.target = run_place(run, slot, first_head, slice.first_tile + skipped);
  move.tiles = (end + kTile - 1) / kTile - skipped;
  move.begin = begin - skipped * kTile, move.end = end - skipped * kTile;
  const auto inside = [&](int64_t token) {
    return static_cast<int32_t>(std::min(move.begin, std::max<int64_t>(0, token - base)));
  };
  move.stay = {inside(kept.sink_end), inside(kept.first), static_cast<int32_t>(move.begin)};
  backend_->move_tiles(move);
}

// What the sequence keeps of a slice.
void Cache::put_slice(const PartRun& run, const RunSlice& slice, const KeptTokens& kept, int32_t slot,
                      int32_t first_head) {
  const int64_t base = (run.first_tile() + slice.first_tile) * kTile, begin = slice.move.begin,
                end = slice.move.end;
  if (kept.first <= kept.sink_end) {
    put_tokens(run, slice, kept, slot, first_head, begin, end);
    return;
  }
  put_tokens(run, slice, kept, slot, first_head, begin, std::min(end, kept.sink_end - base));
  put_tokens(run, slice, kept, slot, first_head, std::max(begin, kept.first - base), end);
}

// ---- export ----

void Cache::check_memory(const tq_state& state, const void* memory, size_t bytes) const {
  TQ_CHECK(memory || state.bytes == 0, kBad, "memory = NULL: state.bytes = %lld", ll(state.bytes));
  TQ_CHECK(reinterpret_cast<uintptr_t>(memory) % 16 == 0, kBad, "memory = %p: must be aligned to 16 bytes",
           memory);
  TQ_CHECK(bytes >= static_cast<uint64_t>(state.bytes), kBad, "bytes = %zu: state.bytes = %lld", bytes,
           ll(state.bytes));
}

void Cache::export_part(int64_t id, const tq_state& state, void* memory, size_t bytes, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  const StatePart part = part_of_sequence(state, slot);
  tq_state now = state;
  describe_part(identity(), part, &now);
  TQ_CHECK(now.bytes == state.bytes && now.identity == state.identity &&
               now.exact_sinks == state.exact_sinks && now.exact_first == state.exact_first &&
               now.rollback_tokens == state.rollback_tokens,
           Status::kInvalidState,
           "state: not what sequence %lld has now (%lld bytes, the state says %lld): call "
           "tq_sequence_describe again",
           ll(id), ll(now.bytes), ll(state.bytes));
  check_memory(state, memory, bytes);
  TQ_CHECK(!backend_->capturing(stream), Status::kCapture, "stream: an export is no part of a graph");
  const AllCoded codes(*this, slot, stream);
  const Geometry& g = geometry();
  PartWay way(*backend_, true, memory, state.bytes, stream);
  for_each_part_run(g, part, [&](const PartRun& run) {
    const int64_t tile = run.move.tile_bytes();
    for_each_slice(
        run.move, [&] { return way.room(tile); },
        [&](RunSlice& slice) {
          TileMove& move = slice.move;
          move.source =
              run_place(run, slot, part.own_head(g.layers[run.layer]) + slice.first_head, slice.first_tile);
          move.target = linear_place(way.at(), move.tiles, move.tile_bytes());
          move.stream = stream;
          backend_->move_tiles(move);
          way.pass(slice.bytes());
        });
  });
  way.end();
}

// ---- import ----

// The part that a tq_state of another cache is here. INCOMPATIBLE unless its tiles mean the same.
StatePart Cache::part_to_import(const tq_state& state) const {
  const Geometry& g = geometry();
  TQ_CHECK(state.num_layers > 0 && state.num_tokens > 0, kBad,
           "state: num_layers = %d, num_tokens = %lld: import what tq_sequence_describe says",
           state.num_layers, ll(state.num_tokens));
  StatePart part = part_of_state(g, state, INT64_MAX / 4);
  part.exact_type = state.io_dtype;
  part.exact_sinks = state.exact_sinks;
  part.exact_first = state.exact_first;
  part.rollback = state.rollback_tokens;
  const auto inside = [&](int64_t token) { return token >= part.first_token && token <= part.end(); };
  TQ_CHECK(inside(part.exact_sinks) && inside(part.exact_first) && part.exact_sinks <= part.exact_first &&
               state.io_dtype >= 0 && state.io_dtype <= TQ_BF16,
           kBad, "state: exact_sinks = %lld, exact_first = %lld, io_dtype = %d: not of tokens %lld .. %lld",
           ll(part.exact_sinks), ll(part.exact_first), state.io_dtype, ll(part.first_token), ll(part.end()));
  TQ_CHECK(part.rollback <= INT32_MAX && part.rollback > -INT64_MAX / 4, kBad,
           "state.rollback_tokens = %lld: no sequence has that many", ll(part.rollback));
  const uint64_t identity = part_identity(this->identity(), part);
  if (identity != state.identity) {
    uint32_t fields[kStateFields];
    part_fields(this->identity(), part, fields);
    const char* const name = differing_field(state.fields, fields);
    throw Error(Status::kIncompatible,
                "state.identity = 0x%llx: these layers and kv heads are 0x%llx here: %s not the cache's",
                static_cast<unsigned long long>(state.identity), static_cast<unsigned long long>(identity),
                name ? name : "codes, shapes, rotation or centres are");
  }
  TQ_CHECK(!g.has_exact() || part.exact_type == 0 || part.exact_type == static_cast<int32_t>(g.io_dtype),
           Status::kIncompatible, "state.io_dtype = %d: exact copies are of type %d here", part.exact_type,
           static_cast<int>(g.io_dtype));
  const int64_t bytes = part_bytes(g, part);
  TQ_CHECK(bytes == state.bytes, kBad, "state.bytes = %lld: the part has %lld", ll(state.bytes), ll(bytes));
  const bool none = part.exact_sinks == part.first_token && part.exact_first == part.end();
  TQ_CHECK((part.exact_type == 0) == none &&
               (part.exact_sinks < part.exact_first || part.exact_first == part.first_token),
           kBad, "state: exact_sinks = %lld, exact_first = %lld: not with io_dtype = %d",
           ll(part.exact_sinks), ll(part.exact_first), part.exact_type);
  return part;
}

// Tokens come behind what a layer holds, kv heads in order.
void Cache::check_importable(const StatePart& part, int32_t slot) const {
  const Geometry& g = geometry();
  const SequenceTable& table = arrays_.table;
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    if (!g.stores(layer)) continue;
    const int64_t written = arrays_.written.tokens(layer, slot);
    TQ_CHECK(
        part.first_token == written, Status::kInvalidState,
        "state.first_token = %lld: layer %d of sequence %lld holds %lld tokens, the next ones are to come",
        ll(part.first_token), layer, ll(table.id(slot)), ll(written));
    const Written::Import& import = arrays_.written.import(layer, slot);
    const LayerGeometry& l = g.layers[layer];
    TQ_CHECK(part.own_head(l) == import.heads && (import.heads == 0 || import.end == part.end()),
             Status::kInvalidState,
             "state.first_kv_head = %d: kv heads come in order, of layer %d those from %d on are missing "
             "(tokens before %lld)",
             part.first_head, layer, l.first_kv_head + import.heads, ll(import.end));
  }
  TQ_CHECK(part.first_token == table.length(slot) || !table.shares(slot, part.first_token),
           Status::kInvalidState, "sequence = %lld: a fork shares the pages of these tokens",
           ll(table.id(slot)));
}

// The part has what the sequence keeps of its tokens: the import of another layer, or a plan, may have
// decided that before.
void Cache::check_kept(const StatePart& part, int32_t slot, bool planned) const {
  const Geometry& g = geometry();
  const SequenceTable& table = arrays_.table;
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    if (!g.stores(layer)) continue;
    const PageTable& group = table.group(g.layers[layer].group);
    const int64_t kept = (planned ? group.kept_planned(0) : group.kept(slot)).first;
    TQ_CHECK(std::max(kept, part.first_token) >= first_code(g, part, layer), Status::kInvalidState,
             "state.rollback_tokens = %lld: the part has tokens from %lld on in layer %d, which keeps those "
             "from %lld on",
             ll(part.rollback), ll(first_code(g, part, layer)), layer, ll(kept));
  }
  if (!g.has_exact()) return;
  const KeptTokens exact = planned ? table.exact_planned(0) : table.exact(slot);
  const bool all = exact.first <= exact.sink_end;
  const int64_t sinks = all ? part.end() : std::min(exact.sink_end, part.end()),
                first = all ? part.first_token : std::max(exact.first, part.first_token);
  TQ_CHECK((sinks <= part.exact_sinks || part.exact_first <= part.first_token) &&
               (first >= part.exact_first || first >= part.end()),
           Status::kInvalidState,
           "state: exact copies before token %lld and from %lld on, the sequence has them before %lld and "
           "from %lld on",
           ll(part.exact_sinks), ll(part.exact_first), ll(sinks), ll(first));
}

// What a sequence keeps of a kind and layer.
KeptTokens Cache::kept_of(const PartRun& run, int32_t slot, bool planned) const {
  const SequenceTable& table = arrays_.table;
  if (run.kind != PieceKind::kCodes) return planned ? table.exact_planned(0) : table.exact(slot);
  const PageTable& group = table.group(geometry().layers[run.layer].group);
  return planned ? group.kept_planned(0) : group.kept(slot);
}

void Cache::import_part(int64_t id, const tq_state& state, const void* memory, size_t bytes, void* stream) {
  const Gate::Use use(gate_, true);
  const Geometry& g = geometry();
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  const StatePart part = part_to_import(state);
  check_memory(state, memory, bytes);
  check_importable(part, slot);
  TQ_CHECK(!backend_->capturing(stream), Status::kCapture, "stream: an import is no part of a graph");
  AllCoded codes(*this, slot, stream);
  const bool grows = part.end() > arrays_.table.length(slot);
  if (grows) prepare_import(part, slot, "sequence: it", stream);
  try {
    check_kept(part, slot, grows);
    PartWay way(*backend_, false, memory, state.bytes, stream);
    for_each_part_run(g, part, [&](const PartRun& run) {
      const bool kept = run.kind == PieceKind::kCodes || g.has_exact();
      const int64_t tile = run.move.tile_bytes();
      for_each_slice(
          run.move, [&] { return way.room(tile); },
          [&](RunSlice& slice) {
            slice.move.source = linear_place(way.at(), slice.move.tiles, tile);
            slice.move.over_link = way.over_link();
            slice.move.stream = stream;
            if (kept)
              put_slice(run, slice, kept_of(run, slot, grows), slot,
                        part.own_head(g.layers[run.layer]) + slice.first_head);
            way.pass(slice.bytes());
          });
    });
    way.end();
    const uint64_t flags = state.flags & (kNoticedNonfinite | kNoticedSaturated);
    if (flags != 0) backend_->add_to_slot(slot, flags, nullptr, stream);
  } catch (...) {
    if (grows) arrays_.table.cancel_import();
    throw;
  }
  if (grows) {
    lapse(slot, "imported into");
    arrays_.table.commit_growth();
  }
  codes.keep();
  mark_imported(part, slot);
}

void Cache::mark_imported(const StatePart& part, int32_t slot) noexcept {
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++) {
    const LayerGeometry& l = geometry().layers[layer];
    if (!geometry().stores(layer)) continue;
    const int32_t heads = part.own_head(l) + part.heads_of(l);
    if (heads == l.num_kv_heads)
      arrays_.written.append(layer, slot, part.end());
    else
      arrays_.written.import(layer, slot) = Written::Import{part.end(), heads};
  }
}

// Room for the part's tokens, not committed yet.
void Cache::prepare_import(const StatePart& part, int32_t slot, const char* who, void* stream) {
  const Geometry& g = geometry();
  SequenceTable& table = arrays_.table;
  for (int32_t layer = part.first_layer; layer < part.first_layer + part.num_layers; layer++)
    TQ_CHECK(!g.stores(layer) || g.group_of(layer).window != kAllTokens ||
                 first_code(g, part, layer) == part.first_token,
             Status::kIncompatible,
             "%s: rollback_tokens = %lld: layer %d has the tokens from %lld on, and keeps all here", who,
             ll(part.rollback), layer, ll(first_code(g, part, layer)));
  KeptTokens available[kMaxPageGroups];
  for (int32_t group = 0; group < g.num_groups; group++) {
    const int64_t window = g.groups[group].window;
    const int64_t first =
        window == kAllTokens ? 0 : std::max<int64_t>(0, part.end() - window - part.rollback);
    available[group] = KeptTokens{part.end(), std::min(first, part.end()), part.end()};
  }
  if (g.has_exact()) {
    const bool all = part.exact_first <= part.exact_sinks;
    available[g.raw_group] =
        part.exact_type == 0 ? KeptTokens{0, part.end(), part.end()}
                             : KeptTokens{all ? part.end() : part.exact_sinks, part.exact_first, part.end()};
  }
  scrub_uncleared(stream);
  table.prepare_import(slot, available, who);
  try {
    for (int32_t group = 0; group < table.num_groups(); group++)
      if (table.group(group).num_copies() > 0)
        backend_->copy_pages(group, table.group(group).copies(), table.group(group).num_copies(), stream);
  } catch (...) {
    table.cancel_import();
    throw;
  }
}

}  // namespace tq
