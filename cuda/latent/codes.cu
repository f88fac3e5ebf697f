// SPDX-License-Identifier: Apache-2.0
// Attention of latent layers without exact tokens. See launch_width.cuh.
#include "cuda/latent/launch_width.cuh"

namespace tq::cuda::latent {

template void launch_width<code::kNibbleRows, false>(const Launches&, bool, int);
template void launch_width<0, false>(const Launches&, bool, int);

}  // namespace tq::cuda::latent
