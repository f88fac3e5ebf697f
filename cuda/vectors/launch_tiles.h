// SPDX-License-Identifier: Apache-2.0
// The launch of products in tiles.
#pragma once
#include "cuda/vectors/launch.h"
#include "cuda/vectors/tile_products.cuh"

namespace tq::cuda::vectors {

// part, records and what becomes of the products: params; operand_at: of the part in the planes.
void launch_tile_products(const TileParams& params, const QueryPlanes& planes, int64_t operand_at,
                          const LaunchPlace& place);

}  // namespace tq::cuda::vectors
