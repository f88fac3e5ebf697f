// SPDX-License-Identifier: Apache-2.0
// Tables, lists and the launch of the kernel that moves tokens.
#include "cuda/move/launch.h"

#include <algorithm>
#include <array>

#include "cuda/move/kernel.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::move {
namespace {

// f(side, its place in a page) for the sides of a layer, its exact copies last; rows in pieces of columns.
// Addresses are left open.
template <typename F>
void for_sides(const Geometry& g, int layer, const F& f) {
  if (!g.stores(layer)) return;
  const format::TileLayout tile = g.tile(layer);
  const auto rows = [&](MoveSide side, int64_t offset, int row_bytes) {
    side.row_bytes = row_bytes;
    side.piece_bytes = row_bytes % 16 == 0 ? 16 : row_bytes % 4 == 0 ? 4 : 2;
    for (side.column = 0; side.column < side.row_bytes; side.column += kMaxColumnBytes) {
      side.column_bytes = std::min(kMaxColumnBytes, side.row_bytes - side.column);
      f(side, offset);
    }
  };
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    const bool key = kind == Kind::kKey;
    const format::SideLayout& layout = key ? tile.key : tile.value;
    const int offset = key ? tile.key_offset() : tile.value_offset();
    MoveSide side = {nullptr,
                     g.page_bytes(layer),
                     g.tiles_per_page() * tile.tile_bytes(),
                     tile.tile_bytes(),
                     g.layers[layer].num_kv_heads,
                     g.layers[layer].group,
                     layout,
                     kind,
                     nullptr,
                     0,
                     0,
                     0,
                     0,
                     0};
    for (int i = 0; i < layout.num_parts(); i++) {
      const format::SidePart part = format::side_part(layout, i);
      const int words = offset + part.word_offset,
                scales = (key ? tile.key_scale_offset() : tile.value_scale_offset()) + part.scale_offset;
      side.layout = part.side;
      side.scale_offset = scales - words;
      if (!part.side.by_rows()) {
        f(side, words);
        continue;
      }
      rows(side, words, part.side.row_bytes());
      if (part.side.scale_bytes() > 0) rows(side, scales, part.side.scale_bytes() / kUnitTokens);
    }
  }
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    if (!g.has_exact()) break;
    const bool key = kind == Kind::kKey;
    const int row_bytes = g.layers[layer].dim(kind) * dtype_bytes(g.io_dtype);
    const MoveSide side = {nullptr,
                           g.raw_page_bytes(layer),
                           kUnitTokens * row_bytes,
                           0,
                           g.layers[layer].num_kv_heads,
                           g.raw_group,
                           key ? tile.key : tile.value,
                           kind,
                           nullptr,
                           0,
                           0,
                           0,
                           0,
                           0};
    rows(side, key ? 0 : g.raw_value_offset(layer), row_bytes);
  }
}

}  // namespace

MoveSpace::Places::Places(const Geometry& g) : num_tables(0), num_sides(0), bytes(0) {
  struct Known {
    format::CodeId code;
    Kind kind;
    int jv;
  };
  std::vector<Known> known;
  for (int layer = 0; layer < g.num_layers; layer++)
    for_sides(g, layer, [&](const MoveSide& side, int64_t) {
      num_sides++;
      int index = -1;
      const bool codes = side.row_bytes == 0;
      for (size_t i = 0; codes && i < known.size(); i++)
        if (known[i].code == side.layout.code() && known[i].kind == side.kind &&
            known[i].jv == side.layout.jv)
          index = static_cast<int>(i);
      if (codes && index < 0) {
        index = static_cast<int>(known.size());
        known.push_back(Known{side.layout.code(), side.kind, side.layout.jv});
      }
      table_of_side.push_back(index);
    });
  num_tables = static_cast<int32_t>(known.size());
  const auto take = [this](int64_t size) {
    const int64_t place = bytes;
    bytes += align_up(size, 256);
    return place;
  };
  tables = take(num_tables * static_cast<int64_t>(sizeof(format::MoveTable)));
  sides = take(num_sides * static_cast<int64_t>(sizeof(MoveSide)));
  int64_t entries = g.groups[0].max_sequence_pages * g.groups[0].page_size;  // tokens
  for (int group = 0; group < g.num_groups; group++) entries += 3 * g.groups[group].max_sequence_pages;
  lists = take(entries * static_cast<int64_t>(sizeof(int32_t)));
}

MoveSpace::MoveSpace(const Geometry& geometry, const HostOps& ops)
    : places_(geometry),
      block_(ops, geometry.device_id, places_.bytes, "lists of moved tokens"),
      max_heads_(0) {
  for (int layer = 0; layer < geometry.num_layers; layer++)
    max_heads_ = std::max(max_heads_, geometry.layers[layer].num_kv_heads);
  read_.create();
}

void MoveSpace::initialise(const Geometry& g, const Arena& arena, cudaStream_t stream) {
  std::vector<uint8_t> constants(static_cast<size_t>(places_.lists));
  format::MoveTable* tables = reinterpret_cast<format::MoveTable*>(constants.data() + places_.tables);
  MoveSide* sides = reinterpret_cast<MoveSide*>(constants.data() + places_.sides);
  const format::MoveTable* device_tables =
      reinterpret_cast<const format::MoveTable*>(block_.data() + places_.tables);
  const int* table_of = places_.table_of_side.data();
  for (int layer = 0; layer < g.num_layers; layer++)
    for_sides(g, layer, [&](MoveSide side, int64_t offset) {
      side.first = arena.pages(g, layer, side.group).pages + offset;
      const int table = *table_of++;
      if (side.row_bytes == 0) {
        tables[table] = format::MoveTable(side.layout, side.kind);
        side.table = device_tables + table;
      }
      *sides++ = side;
    });
  check_cuda(runtime().memcpy_async(block_.data(), constants.data(), constants.size(), cudaMemcpyHostToDevice,
                                    stream),
             "cudaMemcpyAsync");
  check_cuda(runtime().stream_synchronize(stream), "cudaStreamSynchronize");
}

void MoveSpace::move(const Geometry& g, const MoveRequest& request, cudaStream_t stream) {
  MoveParams params = {};
  params.sides = reinterpret_cast<const MoveSide*>(block_.data() + places_.sides);
  params.max_heads = max_heads_;
  const TokenMap& tokens = request.tokens;
  params.moved = static_cast<int32_t>(tokens.first_moved());
  params.shift = static_cast<int32_t>(tokens.count);
  // Pageable memory: the copy has read it when the call returns.
  std::vector<int32_t> lists;
  const int32_t* const device = reinterpret_cast<const int32_t*>(block_.data() + places_.lists);
  const auto add = [&](const int32_t* from, int64_t count) {
    const int32_t* place = device + lists.size();
    lists.insert(lists.end(), from, from + count);
    return place;
  };
  static_assert(sizeof(PageGather) == 2 * sizeof(int32_t), "pairs of entries");
  for (int group = 0; group < g.num_groups; group++) {  // first, so that pairs lie at even places
    const GroupMove& move = request.groups[group];
    MoveLists& to = params.groups[group];
    to.gathers = reinterpret_cast<const PageGather*>(
        add(reinterpret_cast<const int32_t*>(move.gathers), 2 * move.num_gathers));
    to.num_gathers = static_cast<int32_t>(move.num_gathers);
    to.page_size = g.groups[group].page_size;
    to.sink_end = static_cast<int32_t>(move.kept.sink_end);
    to.first = static_cast<int32_t>(move.kept.first);
    to.end = static_cast<int32_t>(move.kept.end);
  }
  if (lists.empty()) return;
  for (int group = 0; group < g.num_groups; group++)
    params.groups[group].sources = add(request.groups[group].sources, request.groups[group].num_sources);
  if (tokens.positions) {
    params.positions = device + lists.size();
    for (int64_t i = params.moved; i < tokens.length; i++)
      lists.push_back(static_cast<int32_t>(tokens.positions[i]));
  }
  read_.wait();
  check_cuda(runtime().memcpy_async(block_.data() + places_.lists, lists.data(),
                                    lists.size() * sizeof(int32_t), cudaMemcpyHostToDevice, stream),
             "cudaMemcpyAsync");
  launch_in_order("move_kernel", move_kernel, dim3(static_cast<unsigned>(places_.num_sides * max_heads_)),
                  dim3(kThreads), 0, stream, params);
  read_.record(stream);
}

}  // namespace tq::cuda::move
