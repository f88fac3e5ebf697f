// SPDX-License-Identifier: Apache-2.0
// Launches of products in tiles, and of searches that keep the best of each block of records.
#include "cuda/vectors/launch_tiles.h"

#include "cuda/vectors/best_blocks.cuh"
#include "cuda/vectors/launch_team.h"

namespace tq::cuda::vectors {
namespace {

// Records of a CTA by 32: few queries take more of them past each byte of theirs.
constexpr int kManyRecords = 4, kManyQueries = 2;

template <int kRecordWarps, bool kMaxima>
void launch(const TileParams& params, const QueryPlanes& planes, int64_t operand_at,
            const LaunchPlace& place) {
  using Tile = ProductTile<kRecordWarps>;
  const int64_t shared = Tile::shared_bytes(params.part.part.stored);
  const auto kernel = tile_products_kernel<kRecordWarps, kMaxima>;
  if (shared > 48 * 1024)
    check_cuda(
        runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "tile_products_kernel");
  const int64_t tiles = (params.count + Tile::kRecords - 1) / Tile::kRecords,
                queries = (params.rows + Tile::kQueries - 1) / Tile::kQueries;
  // Enough CTAs for the device, where the records alone are not.
  const int64_t shares = std::min(queries, std::max<int64_t>(1, 4 * place.num_units / tiles));
  launch_in_order("tile_products_kernel", kernel,
                  dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(shares)), dim3(kTileThreads),
                  static_cast<size_t>(shared), place.stream, params, planes, operand_at);
}

template <bool kMaxima>
void launch_by_rows(const TileParams& params, const QueryPlanes& planes, int64_t operand_at,
                    const LaunchPlace& place) {
  const bool many = params.rows > ProductTile<kManyRecords>::kQueries ||
                    ProductTile<kManyRecords>::shared_bytes(params.part.part.stored) > place.most_shared;
  if (many)
    launch<kManyQueries, kMaxima>(params, planes, operand_at, place);
  else
    launch<kManyRecords, kMaxima>(params, planes, operand_at, place);
}

int64_t blocks_of(int64_t records) { return (records + kBlockRecords - 1) / kBlockRecords; }

}  // namespace

bool has_tiles(const PartParams* parts, int num_parts, const LaunchPlace& place) {
  return num_parts == 1 && !parts[0].has_levels() && !parts[0].has_sketch &&
         ProductTile<kManyQueries>::shared_bytes(parts[0].part.stored) <= place.most_shared;
}

void launch_tile_products(const TileParams& params, const QueryPlanes& planes, int64_t operand_at,
                          const LaunchPlace& place) {
  if (params.maxima)
    launch_by_rows<true>(params, planes, operand_at, place);
  else
    launch_by_rows<false>(params, planes, operand_at, place);
}

int64_t block_list_stride(int64_t k) { return k + k * kBlockRecords; }

int64_t best_blocks_bytes(int64_t rows, int64_t records, int64_t k) {
  return rows * (k * static_cast<int64_t>(sizeof(int64_t)) +
                 blocks_of(records) * static_cast<int64_t>(sizeof(uint32_t)));
}

void launch_best_blocks(const PartParams& part, int64_t at, const QueryPlanes& planes,
                        const RecordRange& range, const float* bias, int64_t first, int64_t rows, int64_t k,
                        void* memory, const BestPlaces& best, const BestPlaces& other,
                        const LaunchPlace& place) {
  const int64_t blocks = blocks_of(range.count);
  int64_t* const picked = static_cast<int64_t*>(memory);
  TileParams params = {part,
                       range.records,
                       range.end,
                       range.count,
                       rows,
                       nullptr,
                       reinterpret_cast<uint32_t*>(picked + rows * k),
                       blocks,
                       bias};
  launch_tile_products(params, planes, at, place);
  const BestList list = {best.scores, best.ids, best.least, best.stride};
  launch_in_order("pick_kernel", pick_kernel, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads), 0,
                  place.stream, BlockParams{params.maxima, blocks, blocks, k, picked, list});
  launch_in_order("rescore_kernel", rescore_kernel,
                  dim3(static_cast<unsigned>(k), static_cast<unsigned>(rows)), dim3(kRescoreThreads), 0,
                  place.stream, params, planes, at, static_cast<const int64_t*>(picked), list, k, first);
  launch_merge(best, other, rows, block_list_stride(k), k, place);
}

}  // namespace tq::cuda::vectors
