// SPDX-License-Identifier: Apache-2.0
// The launch of products in tiles.
#pragma once
#include <algorithm>

#include "cuda/vectors/launch.h"
#include "cuda/vectors/tile_products.cuh"

namespace tq::cuda::vectors {

// at: of the operands in the planes, or null.
inline ProductParams product_params(const PartParams* parts, int num_parts, const int64_t* at,
                                    const RecordRange& range, const ProductRows& target) {
  ProductParams params = {};
  std::copy_n(parts, num_parts, params.part);
  if (at) std::copy_n(at, kMaxOperands, params.at);
  params.num_parts = num_parts;
  params.records = range.records;
  params.end = range.end;
  params.count = range.count;
  params.rows = target.rows;
  params.out = target.out;
  params.stride = target.stride;
  return params;
}

// part, records and what becomes of the products: params; operand_at: of the part in the planes.
void launch_tile_products(const TileParams& params, const QueryPlanes& planes, int64_t operand_at,
                          const LaunchPlace& place);

}  // namespace tq::cuda::vectors
