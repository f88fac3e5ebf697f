// SPDX-License-Identifier: Apache-2.0
// tq_sequence_save and _load (FORMAT.md section 6.2). A loader asks its own geometry how much is to come,
// compares every field with its own, and puts tokens where nobody sees them until the last byte agrees.
#include <algorithm>

#include "all_coded.h"
#include "state_check.h"
#include "state_header.h"

namespace tq {
namespace {

int64_t staging_room() { return kStagingBytes; }

}  // namespace

void Cache::save(int64_t id, const tq_io& io, void* stream) {
  const Gate::Use use(gate_, true);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(stream);
  TQ_CHECK(!backend_->capturing(stream), Status::kCapture, "stream: saving is no part of a graph");
  const Geometry& g = geometry();
  const Identity identity = this->identity();
  tq_state state = {};
  const StatePart part = part_of_sequence(state, slot);
  describe_part(identity, part, &state);
  const AllCoded codes(*this, slot, stream);
  backend_->wait(stream);  // for the flags
  state.flags = backend_->slot_flags(slot);
  const Staging staging(*backend_, kStatePiece + std::min(state.bytes, kStagingBytes));
  uint8_t* room = staging.get() + kStatePiece;
  StateWriter out(io, staging.get());
  write_header(out, identity, part, state);
  for_each_part_run(g, part, [&](const PartRun& run) {
    for_each_slice(run.move, staging_room, [&](RunSlice& slice) {
      slice.move.source = run_place(run, slot, slice.first_head, slice.first_tile);
      slice.move.target = linear_place(room, slice.move.tiles, slice.move.tile_bytes());
      slice.move.stream = stream;
      backend_->move_tiles(slice.move);
      backend_->wait(stream);
      out.payload(room, slice.bytes());
    });
  });
  out.end();
}

// The payload of a saved sequence into the pages that are prepared for it.
void Cache::load_payload(StateReader& in, const SavedHeader& header, int32_t slot, uint8_t* room,
                         void* stream) {
  const Geometry& g = geometry();
  for_each_part_run(g, header.part, [&](PartRun& run) {
    const size_t layer = static_cast<size_t>(run.layer);
    const int32_t own = run.move.heads,
                  before = g.layers[run.layer].first_kv_head - header.first_heads[layer];
    const bool kept = run.kind == PieceKind::kCodes || g.has_exact();
    run.move.heads = header.num_heads[layer];
    for_each_slice(run.move, staging_room, [&](RunSlice& slice) {
      in.payload(room, slice.bytes());
      // Those of the slice's kv heads that are this cache's.
      const int32_t first = std::max(slice.first_head, before),
                    last = std::min(slice.first_head + slice.move.heads, before + own);
      if (first >= last) return;
      TileMove& move = slice.move;
      const int64_t head_bytes = move.tiles * move.tile_bytes();
      move.source =
          linear_place(room + (first - slice.first_head) * head_bytes, move.tiles, move.tile_bytes());
      move.heads = last - first;
      move.stream = stream;
      check_saved_tiles(move, run.kind, header.part.exact_type, g, run.layer);
      if (!kept) return;
      put_slice(run, slice, kept_of(run, slot, true), slot, first - before);
      backend_->wait(stream);
    });
  });
  in.end();
}

int64_t Cache::load(const tq_io& io, void* stream) {
  const Gate::Use use(gate_, true);
  check_stream(stream);
  TQ_CHECK(!backend_->capturing(stream), Status::kCapture, "stream: loading is no part of a graph");
  SequenceTable& table = arrays_.table;
  table.prepare_slot();
  Staging staging(*backend_, kStatePiece + kStagingBytes, 0);
  StateReader in(io, staging.get());
  const SavedHeader header = read_header(in, identity(), config_.max_sequence_tokens());
  in.begin_payload(header.payload_bytes);
  staging.will_use(kStatePiece + std::min(header.payload_bytes, kStagingBytes));
  const int64_t id = table.commit_create();
  const int32_t slot = table.find(id, "sequence");
  bool prepared = false;
  try {
    prepare_import(header.part, slot, "sequence: it", stream);
    prepared = true;
    check_kept(header.part, slot, true);
    load_payload(in, header, slot, staging.get() + kStatePiece, stream);
    backend_->add_to_slot(slot, header.flags, nullptr, stream);
  } catch (...) {
    if (prepared) table.cancel_import();
    table.cancel_create(slot);
    throw;
  }
  table.commit_growth();
  mark_imported(header.part, slot);
  return id;
}

}  // namespace tq
