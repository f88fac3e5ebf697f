// SPDX-License-Identifier: Apache-2.0
// Nothing is brought anywhere.
#pragma once

namespace tq {
namespace cuda {

constexpr int kLineBytes = 128;

inline void prefetch_l2(const void*) {}

}  // namespace cuda
}  // namespace tq
