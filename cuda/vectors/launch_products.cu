// SPDX-License-Identifier: Apache-2.0
// Launches of queries and their products with records.
#include "cuda/vectors/launch_team.h"
#include "cuda/vectors/launch_tiles.h"
#include "cuda/vectors/products.cuh"
#include "cuda/vectors/query.cuh"

namespace tq::cuda::vectors {
namespace {

constexpr int kThreads = 128;
constexpr int kManyTiles = 4;  // of 8 queries: what one expansion of codes serves
constexpr int kFewRows = 8;    // that are not worth a tile of queries

unsigned pieces(int64_t items, int64_t of) { return static_cast<unsigned>((items + of - 1) / of); }

template <int kTiles>
void launch_tiles(const ProductParams& params, const QueryPlanes& planes, const LaunchPlace& place) {
  launch_in_order("products_kernel", products_kernel<kTiles>,
                  dim3(pieces(params.count, kProductRecords), pieces(params.rows, 8 * kTiles)),
                  dim3(32 * kProductWarps), 0, place.stream, params, planes);
}

}  // namespace

void launch_queries(const PartParams& part, const QueryPlanes& planes, const void* x, int64_t first_row,
                    int64_t rows, int operand, int64_t at, const LaunchPlace& place) {
  with_kernel(part, [&](auto odd, auto dense) {
    constexpr int kOdd = decltype(odd)::value;
    constexpr bool kDense = decltype(dense)::value;
    launch_team<kOdd>("query_kernel", query_kernel<kOdd, kDense>, part.part.stored, false, kDense, rows,
                      place, part, planes, x, first_row, rows, operand, at);
  });
}

void launch_queries(const GroupParams& groups, const QueryPlanes& planes, const void* x, int64_t first_row,
                    int64_t rows, const LaunchPlace& place) {
  if (rows == 0) return;
  launch_in_order("query_groups_kernel", query_groups_kernel, dim3(pieces(rows, kThreads / 32)),
                  dim3(kThreads), 0, place.stream, groups, planes, x, first_row, rows);
}

void launch_products(const PartParams* parts, int num_parts, const int64_t* at, const QueryPlanes& planes,
                     const RecordRange& range, const ProductRows& target, const LaunchPlace& place) {
  if (range.count == 0 || target.rows == 0) return;
  const ProductParams params = product_params(parts, num_parts, at, range, target);
  if (parts[0].has_levels())
    launch_in_order("level_products_kernel", level_products_kernel,
                    dim3(pieces(range.count, kThreads), static_cast<unsigned>(target.rows)), dim3(kThreads),
                    0, place.stream, params, planes);
  else if (target.rows > kFewRows && has_tiles(parts, num_parts, place))
    launch_tile_products(TileParams{parts[0], range.records, range.end, range.count, target.rows, target.out,
                                    nullptr, target.stride, nullptr},
                         planes, at[0], place);
  else if (target.rows <= kFewRows)
    launch_tiles<1>(params, planes, place);
  else
    launch_tiles<kManyTiles>(params, planes, place);
}

void launch_products(const GroupParams& groups, const QueryPlanes& planes, const RecordRange& range,
                     const ProductRows& target, const LaunchPlace& place) {
  if (range.count == 0 || target.rows == 0) return;
  launch_in_order("group_products_kernel", group_products_kernel,
                  dim3(pieces(range.count, kThreads), static_cast<unsigned>(target.rows)), dim3(kThreads), 0,
                  place.stream, GroupProducts{groups, range.records, range.count, target.out, target.stride},
                  planes);
}

}  // namespace tq::cuda::vectors
