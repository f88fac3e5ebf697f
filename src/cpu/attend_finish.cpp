// SPDX-License-Identifier: Apache-2.0
// The end of a row: exact tokens (sinks, window) as one more state, rotation back, centre, sink logit,
// output.
#include <algorithm>

#include "cpu/attend_rows.h"

namespace tq {
namespace cpu {

// Raw copies of tokens begin .. end - 1 of the tile that starts at token `first`, as floats.
void RowTask::load_copies(Kind kind, int64_t first, int begin, int end) {
  for (int i = begin; i < end; i++)
    load_row(kind, g_.io_dtype, store_.raw(layer_, raw_pages_, head_, kind, first + i), i);
}

// The sinks, or the window, among the tokens first .. first + kBlockTokens - 1. Uses `o` for the exact
// state's vector. A copy that no row sees may be one that nothing has written yet: it is not loaded.
void RowTask::exact_block(int64_t first, bool sinks) {
  int low = kBlockTokens, high = 0;
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    const int64_t begin = sinks ? row.sight.first : row.sight.window_begin,
                  end = sinks ? row.sight.sink_end : row.sight.end;
    if (!see_block(row, first, begin, std::min(end, first + kBlockTokens))) continue;
    low = std::min(low, row.begin);
    high = std::max(high, row.end);
  }
  const auto for_each_tile = [&](Kind kind, const auto& body) {
    for (int start = low / format::kTileTokens * format::kTileTokens; start < high;
         start += format::kTileTokens) {
      load_copies(kind, first + start, std::max(0, low - start), std::min(format::kTileTokens, high - start));
      body(start);
    }
  };
  if (low >= high) return;
  for_each_tile(Kind::kKey, [&](int start) { dot_tile(start, space_.q_exact, key_width_); });
  for (int r = 0; r < rows_; r++) {
    Row& row = space_.row[r];
    if (row.begin >= row.end) continue;
    const RowBlock view = {row.begin,          row.end, 0.0f, row.exact_factor, 0.0f, request_.logit_softcap,
                           bias_of(row, first)};
    float largest;
    row.alpha = kernels_.softmax_dots(view, reinterpret_cast<const float*>(space_.scores + r * kBlockTokens),
                                      nullptr, nullptr, &row.exact, space_.p + r * kBlockTokens, &largest);
  }
  bool started[kMaxRows] = {};
  for_each_tile(Kind::kValue, [&](int start) { add_tile(start, started); });
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

void RowTask::write_row(int r) {
  Row& row = space_.row[r];
  const int64_t index = first_row_ + r, query = index / layer_.q_per_kv,
                q_head = head_ * layer_.q_per_kv + index % layer_.q_per_kv;
  const int dim = layer_.value_dim;
  alignas(64) float coded[format::kMaxDim] = {};
  if (!is_empty(row.total)) {
    if (!layer_.value_code.rotated()) {
      std::copy(total(r), total(r) + dim, coded);
    } else {
      // Rotated back as a normalised vector: the centre is added to it once. Then it counts with its sum
      // again.
      alignas(64) float rotated[format::kMaxDim];
      const float inverse = inverse_sum(row.total);
      const float* const centre = value_coder_.vector.centre;
      for (int i = 0; i < value_width_; i++) rotated[layer_.value_order[i]] = total(r)[i] * inverse;
      kernels_.unrotate(value_coder_.vector, rotated, coded);
      for (int i = 0; i < dim; i++) coded[i] = (centre ? coded[i] + centre[i] : coded[i]) * row.total.l;
    }
  }
  const MergeWeights w = merge_weights(row.total, row.exact);
  kernels_.combine(coded, w.first, o(r), w.second, value_width_);
  const float sink = request_.sink_logits ? request_.sink_logits[q_head] : minus_infinity();
  const RowEnd end = row.finite ? finish_row(w.state, sink) : nan_row();
  for (int i = 0; i < dim; i++) coded[i] = weighted(coded[i], end.factor);
  const int64_t token = sequence_.q_row + query;
  uint8_t* out = static_cast<uint8_t*>(request_.out) +
                 (token * request_.out_strides.token + q_head * request_.out_strides.head) *
                     dtype_bytes(request_.out_dtype);
  kernels_.from_float(request_.out_dtype, coded, dim, out);
  if (request_.lse) request_.lse[token * layer_.num_q_heads + q_head] = end.lse;
}

void RowTask::finish() {
  fold_exact();
  for (int r = 0; r < rows_; r++) write_row(r);
}

}  // namespace cpu
}  // namespace tq
