// SPDX-License-Identifier: Apache-2.0
// Exact tokens of a row: blocks of raw sides, and the sinks and the window as one more state; and sides by
// rows, which are read in the same way.
//
// Kernels read tiles in their stored type. Rows that are no whole number of vectors, and grouped codes, are
// widened to floats first, a tile at a time.
//
// Scores of all rows are taken over the tokens that any of them sees; what a row does not see is left out by
// its softmax. Values are added over runs of tokens that the same rows see: a token that a row does not see
// may be one that nothing has written, and weight 0 times a NaN would be one. A row's multiply-adds are those
// of its own tokens in their order, however the runs lie.
#include <algorithm>

#include "cpu/attend_rows.h"
#include "cpu/kernels/row_codes.h"

namespace tq {
namespace cpu {

// Whether kernels read vectors as they are stored: whole vectors of every instruction set.
bool RowTask::read_as_stored(Kind kind) const { return layer_.dim(kind) % kMaxLanes == 0; }

ExactSide RowTask::raw_side(const BlockTiles& tiles, Kind kind) const {
  ExactSide side = {raw_type(), layer_.dim(kind), {}, {}};
  const int64_t offset = kind == Kind::kKey ? layer_.tile.key_offset() : layer_.tile.value_offset();
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    side.tiles[i] = tiles.tile[i] + offset;
    side.next[i] = (i + 1 < tiles.last_tile ? tiles.tile[i + 1] : tiles.next[tiles.first_tile]) + offset;
  }
  return side;
}

// Copies of a range of the block at token `start`.
ExactSide RowTask::copies(Kind kind, int64_t start, Range range) const {
  ExactSide side = {g_.io_dtype, layer_.dim(kind), {}, {}};
  const int first = range.begin / format::kTileTokens, last = (range.end - 1) / format::kTileTokens;
  for (int i = first; i <= last; i++)
    side.tiles[i] =
        store_.raw(layer_, raw_pages_, head_, kind, start + static_cast<int64_t>(i) * format::kTileTokens);
  for (int i = first; i <= last; i++) side.next[i] = side.tiles[std::min(i + 1, last)];
  return side;
}

void RowTask::load_row(Kind kind, DataType type, const uint8_t* source, int token, float* rows) {
  const int dim = layer_.dim(kind), width = kind == Kind::kKey ? key_width_ : value_width_;
  float* row = rows + static_cast<int64_t>(token) * width;
  kernels_.to_float(type, source, dim, row);
  std::fill(row + dim, row + width, 0.0f);
}

void RowTask::load_tile(const uint8_t* tile, Kind kind, int begin, int end, float* rows) {
  const bool key = kind == Kind::kKey;
  const format::SideLayout& side = key ? layer_.tile.key : layer_.tile.value;
  const uint8_t* words = tile + (key ? layer_.tile.key_offset() : layer_.tile.value_offset());
  if (!side.raw()) {
    const uint8_t* scales = tile + (key ? layer_.tile.key_scale_offset() : layer_.tile.value_scale_offset());
    return expand_rows(key ? key_coder_ : value_coder_, side, reinterpret_cast<const uint32_t*>(words),
                       reinterpret_cast<const uint16_t*>(scales), end, rows);
  }
  for (int i = begin; i < end; i++)
    load_row(kind, raw_type(), words + static_cast<int64_t>(i) * side.dim * dtype_bytes(raw_type()), i, rows);
}

// body(side, range): the range at once as it is stored, or a tile at a time, which load(tile, begin, end) has
// brought into `rows`.
template <typename Load, typename Body>
void RowTask::for_each_part(const ExactSide& stored, bool as_stored, Range range, int width, const Load& load,
                            const Body& body) {
  if (range.begin >= range.end) return;
  if (as_stored) return body(stored, range);
  for (int i = range.begin / format::kTileTokens; i * format::kTileTokens < range.end; i++) {
    const int start = i * format::kTileTokens;
    const Range part = {std::max(range.begin, start), std::min(range.end, start + format::kTileTokens)};
    load(i, part.begin - start, part.end - start);
    ExactSide side = {DataType::kF32, width, {}, {}};
    side.tiles[i] = side.next[i] = reinterpret_cast<const uint8_t*>(space_.rows);
    body(side, part);
  }
}

RowTask::Range RowTask::seen_by_any() const {
  Range range = {kBlockTokens, 0};
  for (int r = 0; r < rows_; r++) {
    const Row& row = space_.row[r];
    if (row.begin >= row.end) continue;
    range.begin = std::min(range.begin, row.begin);
    range.end = std::max(range.end, row.end);
  }
  return range;
}

void RowTask::dot_exact(const ExactSide& side, Range range, const float* queries, int width) {
  kernels_.dot_tokens(side, range.begin, range.end, queries, width, rows_,
                      reinterpret_cast<float*>(space_.scores));
}

void RowTask::score_exact(const BlockTiles& tiles) {
  for_each_part(
      raw_side(tiles, Kind::kKey), layer_.tile.key.raw() && read_as_stored(Kind::kKey), seen_by_any(),
      row_width_,
      [&](int i, int begin, int end) { load_tile(tiles.tile[i], Kind::kKey, begin, end, space_.rows); },
      [&](const ExactSide& side, Range range) {
        dot_exact(side, range, key_rotated_ ? space_.q_rows : space_.q_exact, row_width_);
      });
  if (!layer_.latent) return;
  latents_ = load_latents(tiles, seen_by_any());
  add_latent_scores(latents_, seen_by_any(), space_.q_latent_rows);
}

ExactSide RowTask::load_latents(const BlockTiles& tiles, Range range) {
  if (layer_.tile.value.raw() && read_as_stored(Kind::kValue)) return raw_side(tiles, Kind::kValue);
  ExactSide side = {DataType::kF32, value_width_, {}, {}};
  for (int i = range.begin / format::kTileTokens; i * format::kTileTokens < range.end; i++) {
    const int start = i * format::kTileTokens;
    float* rows = space_.latents + static_cast<int64_t>(start) * value_width_;
    side.tiles[i] = side.next[i] = reinterpret_cast<const uint8_t*>(rows);
    load_tile(tiles.tile[i], Kind::kValue, std::max(range.begin - start, 0),
              std::min(range.end - start, format::kTileTokens), rows);
  }
  return side;
}

void RowTask::add_latent_scores(const ExactSide& side, Range range, const float* queries) {
  if (range.begin >= range.end) return;
  kernels_.dot_tokens(side, range.begin, range.end, queries, value_width_, rows_, space_.latent_scores);
  float* const scores = reinterpret_cast<float*>(space_.scores);
  for (int r = 0; r < rows_; r++)
    for (int i = r * kBlockTokens + range.begin; i < r * kBlockTokens + range.end; i++)
      scores[i] += space_.latent_scores[i];
}

void RowTask::value_exact(const BlockTiles& tiles) {
  if (layer_.latent) return add_exact(latents_, tiles.start, seen_by_any());
  for_each_part(
      raw_side(tiles, Kind::kValue), layer_.tile.value.raw() && read_as_stored(Kind::kValue), seen_by_any(),
      value_width_,
      [&](int i, int begin, int end) { load_tile(tiles.tile[i], Kind::kValue, begin, end, space_.rows); },
      [&](const ExactSide& side, Range range) { add_exact(side, tiles.start, range); });
}

// Tokens begin .. end - 1, each of which is seen by the same rows.
void RowTask::add_run(const ExactSide& side, int64_t start, int begin, int end) {
  const float* p[kMaxRows];
  float* sums[kMaxRows];
  float alpha[kMaxRows];
  int count = 0;
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    if (begin < row.begin || begin >= row.end || tree_hides(row, start + begin)) continue;
    p[count] = space_.p + r * kBlockTokens;
    sums[count] = o(r);
    alpha[count++] = row.alpha;
    row.alpha = 1.0f;  // o has it now
  }
  if (count > 0) kernels_.add_tokens(side, begin, end, p, alpha, count, sums);
}

void RowTask::add_exact(const ExactSide& side, int64_t start, Range range) {
  bool border[kBlockTokens + 1] = {};
  border[range.end] = true;
  for (int r = 0; r < rows_; r++) {
    const Row& row = space_.row[r];
    if (row.begin >= row.end) continue;
    border[row.begin] = border[row.end] = true;
    if (row.tree)
      for (int64_t i = std::max<int64_t>(row.begin, sequence_.old_length - start); i < row.end; i++)
        border[i] = true;
  }
  for (int begin = range.begin; begin < range.end;) {
    int end = begin + 1;
    while (!border[end]) end++;
    add_run(side, start, begin, end);
    begin = end;
  }
}

// The sinks, or the window, among the tokens first .. first + kBlockTokens - 1. Uses `o` for the exact
// state's vector. A copy that no row sees may be one that nothing has written yet.
void RowTask::exact_block(int64_t first, bool sinks) {
  bool any = false;
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    const int64_t begin = sinks ? row.sight.first : row.sight.window_begin,
                  end = sinks ? row.sight.sink_end : row.sight.end;
    any |= see_block(row, first, begin, std::min(end, first + kBlockTokens));
  }
  if (!any) return;
  const Range range = seen_by_any();
  const auto each = [&](Kind kind, const auto& body) {
    const ExactSide stored = copies(kind, first, range);
    for_each_part(
        stored, read_as_stored(kind), range, kind == Kind::kKey ? key_width_ : value_width_,
        [&](int i, int begin, int end) {
          for (int token = begin; token < end; token++)
            load_row(kind, g_.io_dtype,
                     stored.tiles[i] + static_cast<int64_t>(token) * stored.dim * dtype_bytes(g_.io_dtype),
                     token, space_.rows);
        },
        body);
  };
  each(Kind::kKey,
       [&](const ExactSide& side, Range part) { dot_exact(side, part, space_.q_exact, key_width_); });
  if (layer_.latent)
    each(Kind::kValue,
         [&](const ExactSide& side, Range part) { add_latent_scores(side, part, space_.q_latent); });
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    if (row.begin >= row.end) continue;
    const RowBlock view = {row.begin,          row.end, 0.0f, row.exact_factor, 0.0f, request_.logit_softcap,
                           bias_of(row, first)};
    float largest;
    row.alpha = kernels_.softmax_dots(view, reinterpret_cast<const float*>(space_.scores + r * kBlockTokens),
                                      nullptr, nullptr, &row.exact, space_.p + r * kBlockTokens, &largest);
  }
  each(Kind::kValue, [&](const ExactSide& side, Range part) { add_exact(side, first, part); });
}

void RowTask::fold_exact() {
  int64_t sink_end = 0, window_begin = sequence_.length(), end = 0;  // of all rows
  for (int r = 0; r < rows_; r++) {
    const RowSight& sight = space_.row[r].sight;
    std::fill(o(r), o(r) + value_width_, 0.0f);
    sink_end = std::max(sink_end, sight.sink_end);
    if (sight.window_begin >= sight.end) continue;
    window_begin = std::min(window_begin, sight.window_begin);
    end = std::max(end, sight.end);
  }
  for (int64_t first = 0; first < sink_end; first += kBlockTokens) exact_block(first, true);
  for (int64_t first = window_begin / kBlockTokens * kBlockTokens; first < end; first += kBlockTokens)
    exact_block(first, false);
}

}  // namespace cpu
}  // namespace tq
