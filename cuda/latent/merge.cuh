// SPDX-License-Identifier: Apache-2.0
// States of a row over two pieces of its history, in the order of the tokens. Both kernels that merge do it
// here, with one rounding, so that a row's bits do not depend on which of them did.
#pragma once
#include "cuda/latent/params.h"
#include "cuda/row/logits.cuh"

namespace tq::cuda::latent {

struct SlotMerge {
  SlotState state;
  float first, second;  // factors of the sums
};
// A piece in which a row sees nothing has kNoScore as maxima and a sum of zeros.
__device__ __forceinline__ SlotMerge merge_slots(const SlotState& a, const SlotState& b) {
  SlotMerge r;
  r.state.m = fmaxf(a.m, b.m);
  r.state.l = __fmaf_rn(b.l, ex2(b.m - r.state.m), __fmul_rn(a.l, ex2(a.m - r.state.m)));
  r.state.reference = fmaxf(a.reference, b.reference);
  r.state.reserved = 0.0f;
  r.first = ex2(a.reference - r.state.reference);
  r.second = ex2(b.reference - r.state.reference);
  return r;
}
__device__ __forceinline__ float merged_sum(float a, float b, float first, float second) {
  return __fmaf_rn(b, second, __fmul_rn(a, first));
}

}  // namespace tq::cuda::latent
