// SPDX-License-Identifier: Apache-2.0
// The end of a finished row: sink logit, division, elements of the output and the LSE. What the cases are
// says softmax_state.h.
#pragma once
#include "cuda/row/logits.cuh"
#include "cuda/row/place.cuh"
#include "cuda/warp/elements.cuh"

namespace tq {
namespace cuda {

// finite: what admit_query found.
template <class Arithmetic>
__device__ __forceinline__ RowEnd end_of_row(const RowParams& p, SoftmaxState state, int head, bool finite) {
  if (!finite) return nan_row();
  // Apart, so that a row without a sink does not fetch the instructions of one with it.
  if (!p.call.sink_logits) return finish_row<Arithmetic>(state);
  return finish_row<Arithmetic>(state, __ldg(p.call.sink_logits + head));
}

// at: element of the coordinate. o: not normalised.
__device__ __forceinline__ void write_element(const RowParams& p, int64_t at, float o, const RowEnd& end) {
  store_scalar(p.call.out, at, p.call.out_dtype, weighted(o, end.factor));
}

// By one lane.
__device__ __forceinline__ void write_lse(const RowParams& p, const RowPlace& place, const RowEnd& end) {
  if (p.call.lse) p.call.lse[place.token * p.layer.num_q_heads + place.head] = end.lse;
}

}  // namespace cuda
}  // namespace tq
