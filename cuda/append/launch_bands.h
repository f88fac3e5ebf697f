// SPDX-License-Identifier: Apache-2.0
// Host side of the append of keys in bands: one launch, for keys alone. Throws tq::Error if it fails.
#pragma once
#include "cuda/append/launch.h"

namespace tq::cuda::append {

// tiles: with new tokens, as far as the host knows; the grid serves any number.
void launch_append_bands(const AppendParams& params, int64_t tiles, int num_units, bool early,
                         cudaStream_t stream);

}  // namespace tq::cuda::append
