// SPDX-License-Identifier: Apache-2.0
// The tables that are plain data: scalar everywhere, and one per SIMD instruction set compiled in (see
// select.cpp for which run here).
#pragma once
#include "cpu/kernels/kernels.h"

namespace tq {
namespace cpu {

extern const Kernels kScalarKernels;

}  // namespace cpu
}  // namespace tq
