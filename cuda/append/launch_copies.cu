// SPDX-License-Identifier: Apache-2.0
// The launch of copies.cuh.
#include <algorithm>

#include "cuda/append/copies.cuh"
#include "cuda/runtime.h"

namespace tq::cuda::append {

void launch_copies(const CopyParams& params, int64_t new_tokens, int num_units, bool early,
                   cudaStream_t stream) {
  constexpr int64_t kCtasPerUnit = 8;
  const int64_t warps = 2 * new_tokens * params.layer.num_kv_heads,
                ctas = (warps + kCopyThreads / 32 - 1) / (kCopyThreads / 32),
                // A graph captured on a small plan may be replayed on a large one.
      grid = std::min(std::max<int64_t>(ctas, num_units), kCtasPerUnit * num_units);
  launch_early(early, "copies_kernel", copies_kernel, dim3(static_cast<unsigned>(grid)), dim3(kCopyThreads),
               0, stream, params);
}

}  // namespace tq::cuda::append
