// SPDX-License-Identifier: Apache-2.0
// Integer kernels for AVX-512 with VBMI and VNNI; see vbmi.cpp.
#pragma once
#include "cpu/kernels/kernels.h"

namespace tq {
namespace cpu {

// `base` with its integer kernels replaced, named "avx3_dl".
Kernels with_vbmi(const Kernels& base);

}  // namespace cpu
}  // namespace tq
