// SPDX-License-Identifier: Apache-2.0
// The end of a row: rotation back, centre, exact tokens, sink logit, output.
#include <algorithm>

#include "cpu/attend_rows.h"

namespace tq {
namespace cpu {

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
