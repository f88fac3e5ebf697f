// SPDX-License-Identifier: Apache-2.0
// Rows of attention: preparation of q, splits of coded tokens. What a row sees is in attend_mask.cpp, exact
// tokens are in attend_exact.cpp, banded keys in attend_bands.cpp, the output in attend_finish.cpp.
#include "cpu/attend_rows.h"

#include <float.h>

#include <algorithm>

namespace tq {
namespace cpu {

namespace {

// Of the widest of a side's parts.
int64_t part_opened_words(const format::SideLayout& side) {
  int64_t most = 0;
  for (int i = 0; i < side.num_parts(); i++)
    most = std::max<int64_t>(most, opened_words(format::side_part(side, i).side));
  return most;
}

BandSpace carve_bands(int64_t bands, Carver& carver) {
  BandSpace band;
  band.operands =
      carver.take<uint8_t>(bands * kMaxRows * static_cast<int64_t>(query_operand_bytes(format::kGroupCodes)));
  band.queries = carver.take<float>(bands * kMaxRows * format::kGroupCodes);
  band.factor = carver.take<float>(bands * kMaxRows);
  band.half_sum = carver.take<float>(bands * kMaxRows);
  band.scales = carver.take<float>(bands * kBlockTokens);
  band.scores = carver.take<int32_t>(bands > 0 ? kMaxRows * kBlockTokens : 0);
  return band;
}

WorkerSpace carve(const LayerGeometry& layer, Carver& carver) {
  const format::SideLayout key(layer.head_dim, layer.key_code);
  const int64_t k = format::stored_dim(layer.head_dim), v = format::stored_dim(layer.value_dim),
                rows = key.by_rows() ? row_width(key) : 0;
  WorkerSpace space;
  space.q_exact = carver.take<float>(kMaxRows * k);
  space.q_rows = carver.take<float>(key.by_rows() && key.code().rotated() ? kMaxRows * rows : 0);
  const int64_t latent = layer.latent ? v : 0;
  space.q_latent = carver.take<float>(kMaxRows * latent);
  space.q_latent_rows = carver.take<float>(kMaxRows * latent);
  space.latent_scores = carver.take<float>(layer.latent ? kMaxRows * kBlockTokens : 0);
  space.latents = carver.take<float>(kBlockTokens * latent);
  space.operands =
      carver.take<uint8_t>(kMaxRows * static_cast<int64_t>(query_operand_bytes(static_cast<int>(k))));
  space.o = carver.take<float>(kMaxRows * v);
  space.total = carver.take<float>(kMaxRows * v);
  space.scores = carver.take<int32_t>(kMaxRows * kBlockTokens);
  space.p = carver.take<float>(kMaxRows * kBlockTokens);
  space.weights = carver.take<uint16_t>(kMaxRows * kBlockTokens);
  space.sums = carver.take<int32_t>(kMaxRows * v);
  space.rows = carver.take<float>(format::kTileTokens * std::max(std::max(k, v), rows));
  space.key_scales = carver.take<float>(kBlockTokens);
  space.value_scales = carver.take<float>(kBlockTokens);
  space.bias = carver.take<float>(kBlockTokens);
  space.accumulate_work = carver.take<uint8_t>(kAccumulateWork);
  const format::SideLayout value(layer.value_dim, layer.value_code);
  space.opened =
      carver.take<uint32_t>(kBlockTiles * std::max(part_opened_words(key), part_opened_words(value)));
  space.band = carve_bands(key.num_bands(), carver);
  space.row = carver.take<Row>(kMaxRows);
  return space;
}

}  // namespace

int64_t worker_space_bytes(const LayerGeometry& layer) {
  Carver carver;
  carve(layer, carver);
  return (carver.used() + 255) / 256 * 256;
}

WorkerSpace carve_worker_space(const LayerGeometry& layer, void* base) {
  Carver carver(base);
  return carve(layer, carver);
}

int64_t partial_floats(const LayerGeometry& layer) { return 16 + format::stored_dim(layer.value_dim); }

int64_t step_workspace_bytes(const Geometry& geometry, const StepBounds& bounds) {
  int64_t worker = 0, partials = 0;
  for (int i = 0; i < geometry.num_layers; i++) {
    const LayerGeometry& layer = geometry.layers[i];
    // one query token
    const int64_t slot = partial_floats(layer) * static_cast<int64_t>(sizeof(float)) * layer.num_q_heads;
    const int64_t wanted = split_limits(bounds, layer, geometry.num_threads).partial_queries;
    worker = std::max(worker, worker_space_bytes(layer));
    partials = std::max(partials, std::min(wanted, kOwnPartialBytes / slot) * slot);
  }
  return geometry.num_threads * worker + partials;
}

int64_t own_workspace_bytes(const Geometry& geometry) {
  return step_workspace_bytes(geometry, step_bounds(geometry));
}

namespace {

float scaled_dot(const float* a, const float* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += static_cast<double>(a[i]) * b[i];
  return static_cast<float>(sum);
}

}  // namespace

RowTask::RowTask(const Store& store, const Kernels& kernels, const AttendRequest& request,
                 const StepSequence& sequence, int head, int64_t first_row, int rows, WorkerSpace& space)
    : store_(store),
      g_(store.geometry),
      kernels_(kernels),
      request_(request),
      sequence_(sequence),
      layer_(store.layer(request.layer)),
      place_(request.pages ? *request.pages : store.code_pages(layer_)),
      pages_(request.plan->maps[layer_.group].row(sequence.page_row)),
      raw_pages_(store.raw_row(request.plan->maps, sequence)),
      head_(head),
      first_row_(first_row),
      rows_(rows),
      space_(space),
      key_rotated_(layer_.tile.key.by_rows() && layer_.key_code.rotated()),
      row_width_(row_width(layer_.tile.key)),
      key_width_(format::stored_dim(layer_.head_dim)),
      value_width_(format::stored_dim(layer_.value_dim)),
      key_kernels_(kernels.of(layer_.key)),
      value_kernels_(kernels.of(layer_.value)),
      key_coder_(store.row_coder(request.layer, head, Kind::kKey)),
      value_coder_(store.row_coder(request.layer, head, Kind::kValue)),
      band_coder_(layer_.key_code.banded() ? store.band_coder(request.layer, head) : format::BandCoder{}) {
  for (int r = 0; r < rows_; r++) prepare_row(r);
}

void RowTask::prepare_row(int r) {
  Row& row = space_.row[r];
  const int64_t index = first_row_ + r, query = index / layer_.q_per_kv,
                q_head = head_ * layer_.q_per_kv + index % layer_.q_per_kv;
  float* q = space_.q_exact + static_cast<int64_t>(r) * key_width_;
  const uint8_t* source =
      static_cast<const uint8_t*>(request_.q) +
      ((sequence_.q_row + query) * request_.q_strides.token + q_head * request_.q_strides.head) *
          dtype_bytes(g_.io_dtype);
  float* const latent = layer_.latent ? space_.q_latent + static_cast<int64_t>(r) * value_width_ : nullptr;
  // As integers, magnitudes of floats are in order, and infinity and NaN lie above all finite ones.
  uint32_t largest = 0;
  const auto load = [&](Kind kind, float* part, int width) {
    const int dim = layer_.dim(kind);
    kernels_.to_float(g_.io_dtype, source + layer_.input_offset(kind) * dtype_bytes(g_.io_dtype), dim, part);
    std::fill(part + dim, part + width, 0.0f);
    for (int i = 0; i < dim; i++) largest = std::max(largest, format::float_bits(format::abs_float(part[i])));
  };
  load(Kind::kKey, q, key_width_);
  if (latent) load(Kind::kValue, latent, value_width_);
  row = Row{};
  row.position = sequence_.position(query);
  const float slope = request_.alibi_slopes ? request_.alibi_slopes[q_head] : 0.0f;
  row.slope = limited(static_cast<double>(slope) * kLog2E, kLogitLimit);
  if (request_.tree_mask) row.tree = request_.tree_mask + (sequence_.q_row + query) * request_.tree_words;
  row.finite = largest < 0x7F800000u && (format::float_bits(slope) & 0x7F800000u) != 0x7F800000u;
  row.split = row.total = row.exact = empty_state();
  std::fill(total(r), total(r) + value_width_, 0.0f);
  if (row.finite) {
    prepare_query(r, q, static_cast<int>(largest >> 23) - 127);
    row.sight = sight_of(query);
    return;
  }
  // Kernels take all rows of a task together: this one takes part as zeros and sees no token.
  std::fill(q, q + key_width_, 0.0f);
  if (layer_.key_code.rotated()) prepare_codes(r, q, 0.0f);
  if (!latent) return;
  std::fill(latent, latent + value_width_, 0.0f);
  prepare_latent(r, latent, 0.0f);
}

// exponent: of the largest |q|.
void RowTask::prepare_query(int r, float* q, int exponent) {
  Row& row = space_.row[r];
  // A power of two brings q to order 1: no sum below can overflow, and products with it are exact.
  exponent = std::min(126, std::max(-126, exponent));
  for (int i = 0; i < key_width_; i++) q[i] *= format::exp2_int(-exponent);
  const double scale = static_cast<double>(request_.softmax_scale) * kLog2E * format::exp2_int(exponent);
  row.exact_factor = limited(scale, kLogitLimit);
  const KeyMatrix* const matrix = store_.key_matrix(request_.layer);
  if (matrix) {  // the transpose of the inverse: its columns are the inverse's rows
    alignas(64) float turned[format::kMaxDim + kMaxLanes] = {};
    apply_columns(matrix->head_inverse(head_), layer_.head_dim, q, turned);
    prepare_codes(r, turned, limited(scale, FLT_MAX));
  } else if (layer_.key_code.rotated()) {
    prepare_codes(r, q, limited(scale, FLT_MAX));
  }
  if (!layer_.latent) return;
  float* const latent = space_.q_latent + static_cast<int64_t>(r) * value_width_;
  for (int i = 0; i < value_width_; i++) latent[i] *= format::exp2_int(-exponent);
  prepare_latent(r, latent, limited(scale, FLT_MAX));
}

// The share of a side's centre in the logits.
void RowTask::add_centre(Row& row, const format::VectorCoder& coder, const float* q, float scale) const {
  if (!coder.centre) return;
  const double share = static_cast<double>(scaled_dot(q, coder.centre, coder.dim)) * scale;
  row.constant = limited(row.constant + share, kLogitLimit);
}

// The latent's part of a query in the space of the value side's rows.
void RowTask::prepare_latent(int r, const float* q, float scale) {
  float* const rows = space_.q_latent_rows + static_cast<int64_t>(r) * value_width_;
  if (!layer_.value_code.rotated()) {
    std::copy(q, q + value_width_, rows);
    return;
  }
  alignas(64) float rotated[format::kMaxDim];
  kernels_.rotate(value_coder_.vector, q, rotated);
  query_row(kernels_, value_coder_, layer_.tile.value, rotated, rows);
  add_centre(space_.row[r], value_coder_.vector, q, scale);
}

RowTask::QueryUnit RowTask::prepare_integers(const CodedSide& side, const CodeKernels& kernels,
                                             const float* rotated, uint8_t* operand) const {
  const int stored = side.layout.stored, q_max = query_max(stored);
  alignas(64) int16_t integers[format::kMaxDim];
  float largest = 0;
  for (int i = 0; i < stored; i++) largest = std::max(largest, format::abs_float(rotated[i]));
  const float inverse = largest > 0 ? static_cast<float>(q_max) / largest : 0.0f;
  int32_t sum = 0;
  for (int i = 0; i < stored; i++) {
    // The order of the arguments drops a NaN.
    const float x =
        std::min(static_cast<float>(q_max), std::max(static_cast<float>(-q_max), rotated[i] * inverse));
    integers[i] = static_cast<int16_t>(rintf(x));
    sum += integers[i];
  }
  kernels.prepare_query(side, integers, operand);
  return {static_cast<double>(largest) / q_max, side.half ? 0.5f * static_cast<float>(sum) : 0.0f};
}

// q in rotated space, as floats for keys by rows, else as integers. The factor is limited to 2^90, so that
// |score| < 2^31 times it is finite: its product with a key scale may overflow to infinity, never to NaN, and
// is then limited like every logit.
void RowTask::prepare_codes(int r, const float* q, float scale) {
  if (layer_.key_code.banded()) return prepare_bands(r, q, scale);
  Row& row = space_.row[r];
  const int stored = layer_.tile.key.stored;
  alignas(64) float rotated[format::kMaxDim];
  kernels_.rotate(key_coder_.vector, q, rotated);
  add_centre(row, key_coder_.vector, q, scale);
  if (key_rotated_)
    return query_row(kernels_, key_coder_, layer_.tile.key, rotated,
                     space_.q_rows + static_cast<int64_t>(r) * row_width_);
  const QueryUnit unit =
      prepare_integers(layer_.key, key_kernels_, rotated, space_.operands + r * query_operand_bytes(stored));
  row.code_factor = limited(unit.factor * scale, 1.2379400e27);  // 2^90
  row.half_sum = unit.half_sum;
}

void RowTask::run_split(int64_t index) {
  const int64_t split_begin = index * kSplitTokens, split_end = split_begin + kSplitTokens;
  int64_t low = split_end, high = split_begin;
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    row.split = empty_state();
    const int64_t begin = std::max(row.sight.coded_begin, split_begin),
                  end = std::min(row.sight.coded_end, split_end);
    if (begin >= end) continue;
    low = std::min(low, begin);
    high = std::max(high, end);
    std::fill(o(r), o(r) + value_width_, 0.0f);
  }
  if (low >= high) return;
  for (int64_t block = low / kBlockTokens * kBlockTokens; block < high; block += kBlockTokens)
    run_block(block, high);
}

// Scales of the block's tiles as floats, the values' times kWeightShift; tokens at or beyond `high` and tiles
// that no row sees count as 0.
void RowTask::load_scales(const BlockTiles& tiles) {
  if (layer_.tile.key.raw() && layer_.tile.value.raw()) return;
  std::fill(space_.key_scales, space_.key_scales + kBlockTokens, 0.0f);
  std::fill(space_.value_scales, space_.value_scales + kBlockTokens, 0.0f);
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    if (!(tiles.seen >> i & 1)) continue;
    const int start = i * format::kTileTokens;
    const int64_t count = tiles.valid(i);
    if (layer_.key_code.has_kernels())
      kernels_.to_float(DataType::kBF16, tiles.tile[i] + layer_.tile.key_scale_offset(), count,
                        space_.key_scales + start);
    if (!layer_.tile.value.by_rows())
      kernels_.to_float(DataType::kBF16, tiles.tile[i] + layer_.tile.value_scale_offset(), count,
                        space_.value_scales + start);
  }
  for (int i = 0; i < kBlockTokens; i++) space_.value_scales[i] *= kWeightShift;
  if (layer_.key_code.banded()) load_band_scales(tiles);
}

// Addresses, and those of the next block as far as tokens below `end` are in it: its scales are fetched here,
// its words by the kernels. In the place of a tile that no row sees stands one that is read anyway.
void RowTask::locate(BlockTiles* tiles, int64_t end) const {
  for (int i = 0; i < kBlockTiles; i++) {
    tiles->tile[i] = tiles->next[i] = nullptr;
    if (i < tiles->first_tile || i >= tiles->last_tile) continue;
    const bool seen = tiles->seen >> i & 1;
    const int64_t index = tiles->start / format::kTileTokens + (seen ? i : tiles->first_tile),
                  next = index + kBlockTiles;
    tiles->tile[i] = tiles->next[i] = place_.sequence_tile(pages_, head_, index);
    if (!seen || next * format::kTileTokens >= end) continue;
    tiles->next[i] = place_.sequence_tile(pages_, head_, next);
    if (!layer_.tile.key.raw()) __builtin_prefetch(tiles->next[i] + layer_.tile.key_scale_offset(), 0, 2);
    if (!layer_.tile.value.raw()) __builtin_prefetch(tiles->next[i] + layer_.tile.value_scale_offset(), 0, 2);
  }
}

void RowTask::run_block(int64_t block, int64_t high) {
  BlockTiles tiles = {block, std::min(high, block + kBlockTokens), kBlockTiles, 0, 0, {}, {}};
  int64_t end = 0;
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    end = std::max(end, row.sight.coded_end);
    if (!see_block(row, block, row.sight.coded_begin, std::min(row.sight.coded_end, block + kBlockTokens)))
      continue;
    const int first = row.begin / format::kTileTokens, last = (row.end - 1) / format::kTileTokens;
    tiles.first_tile = std::min(tiles.first_tile, first);
    tiles.last_tile = std::max(tiles.last_tile, last + 1);
    tiles.seen |= (2u << last) - (1u << first);
  }
  if (tiles.first_tile >= tiles.last_tile) return;
  locate(&tiles, end);
  load_scales(tiles);
  score_block(tiles);
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    float* p = space_.p + r * kBlockTokens;
    uint16_t* weights = space_.weights + r * kBlockTokens;
    if (row.begin >= row.end) {
      std::fill(weights, weights + kBlockTokens, static_cast<uint16_t>(0));
      continue;
    }
    const bool coded = layer_.key_code.has_kernels();
    const RowBlock view = {row.begin,          row.end,
                           row.half_sum,       coded ? row.code_factor : row.exact_factor,
                           row.constant,       request_.logit_softcap,
                           bias_of(row, block)};
    const int32_t* scores = space_.scores + r * kBlockTokens;
    const float* value_scales = layer_.tile.value.by_rows() ? nullptr : space_.value_scales;
    float largest;
    row.alpha = coded
                    ? kernels_.softmax(view, scores, space_.key_scales, value_scales, &row.split, p, &largest)
                    : kernels_.softmax_dots(view, reinterpret_cast<const float*>(scores), nullptr,
                                            value_scales, &row.split, p, &largest);
    if (value_scales) row.weights = kernels_.weigh(p, largest, layer_.value.half, weights);
  }
  value_block(tiles);
}

// Sides of tiles, opened where kernels want them so.
void RowTask::open_tiles(const BlockTiles& tiles, const CodedSide& side, const CodeKernels& kernels,
                         const uint8_t** sides) const {
  if (!kernels.open) return;
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    uint32_t* selectors = space_.opened + i * opened_words(side.layout);
    kernels.open(side, sides[i], selectors);
    sides[i] = reinterpret_cast<const uint8_t*>(selectors);
  }
}

void RowTask::score_block(const BlockTiles& tiles) {
  if (layer_.key_code.banded()) return score_bands(tiles);
  if (!layer_.tile.key.by_rows()) {
    const uint8_t* sides[kBlockTiles] = {};
    std::copy(tiles.tile + tiles.first_tile, tiles.tile + tiles.last_tile, sides + tiles.first_tile);
    open_tiles(tiles, layer_.key, key_kernels_, sides);
    key_kernels_.score(layer_.key, sides, tiles.next, tiles.first_tile, tiles.last_tile, space_.operands,
                       rows_, space_.scores);
    return;
  }
  score_exact(tiles);
}

void RowTask::value_block(const BlockTiles& tiles) {
  if (layer_.tile.value.by_rows()) return value_exact(tiles);
  const uint8_t* sides[kBlockTiles] = {};
  const uint8_t* next[kBlockTiles] = {};
  for (int i = tiles.first_tile; i < tiles.last_tile; i++) {
    sides[i] = tiles.tile[i] + layer_.tile.value_offset();
    next[i] = tiles.next[i] + layer_.tile.value_offset();
  }
  open_tiles(tiles, layer_.value, value_kernels_, sides);
  value_kernels_.accumulate(layer_.value, sides, next, tiles.first_tile, tiles.last_tile, space_.weights,
                            rows_, space_.sums, space_.accumulate_work);
  for (int r = 0; r < rows_; r++) {
    const Row& row = space_.row[r];
    if (row.begin < row.end)
      kernels_.update(o(r), space_.sums + static_cast<int64_t>(r) * value_width_, value_width_, row.alpha,
                      row.weights);
  }
}

void RowTask::fold_split() {
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    if (is_empty(row.split)) continue;
    const MergeWeights w = merge_weights(row.total, row.split);
    kernels_.combine(total(r), w.first, o(r), w.second, value_width_);
    row.total = w.state;
  }
}

void RowTask::store_partial(int r, float* partial) const {
  const Row& row = space_.row[r];
  partial[0] = row.split.m;
  partial[1] = row.split.l;
  if (!is_empty(row.split)) std::copy(o(r), o(r) + value_width_, partial + 16);
}

void RowTask::fold_partial(int r, const float* partial) {
  Row& row = space_.row[r];
  const SoftmaxState split = {partial[0], partial[1]};
  if (is_empty(split)) return;
  const MergeWeights w = merge_weights(row.total, split);
  kernels_.combine(total(r), w.first, partial + 16, w.second, value_width_);
  row.total = w.state;
}

}  // namespace cpu
}  // namespace tq
