// SPDX-License-Identifier: Apache-2.0
// One table of kernels per Highway target. Highway re-includes this file once for each; no Highway run-time
// library is used: select.cpp picks a table by the CPU's features.
//
// Scalable vectors (SVE) cannot stand in arrays, which these kernels are made of; Arm runs NEON.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/simd.cpp"
#include "hwy/foreach_target.h"
// clang-format off: must come after foreach_target.h
#include "hwy/highway.h"
// clang-format on
#include "cpu/kernels/pack.h"
#include "cpu/kernels/scalar.h"

// The non-SIMD baseline has its own code.
#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#include "cpu/kernels/codes-inl.h"
#include "cpu/kernels/encode-inl.h"
#include "cpu/kernels/exact-inl.h"
#include "cpu/kernels/floats-inl.h"
#include "cpu/kernels/records-inl.h"
#include "cpu/kernels/trellis-inl.h"
#include "cpu/kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

constexpr const char* kName = HWY_TARGET == HWY_AVX3   ? "avx3"
                              : HWY_TARGET == HWY_AVX2 ? "avx2"
                              : HWY_TARGET == HWY_SSE4 ? "sse4"
                              : HWY_TARGET == HWY_NEON ? "neon"
                                                       : "simd";

template <size_t kIndex>
struct SimdCode {
  static constexpr CodeKernels kernels() {
    return {Packing<kIndex>::tile, Packing<kIndex>::token, opening<kIndex>(),
            prepare_query_pairs,   score_code<kIndex>,     accumulate_code<kIndex>};
  }
};

extern const Kernels kKernels;
const Kernels kKernels = {
    kName,      code_table<SimdCode>(), load_and_rotate,   encode,    rotate, unrotate,   to_float,
    from_float, softmax_of<int32_t>,    softmax_of<float>, weigh,     update, dot_tokens, add_tokens,
    combine,    unpack_codes,           double_levels,     dot_values};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();
#endif
