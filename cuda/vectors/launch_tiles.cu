// SPDX-License-Identifier: Apache-2.0
// Launches of products in tiles, and of searches that keep the best of each block of records.
#include "cuda/vectors/launch_tiles.h"

#include "cuda/vectors/best_blocks.cuh"
#include "cuda/vectors/few_products.cuh"
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

constexpr int64_t kFewCtasPerUnit = 3;

unsigned pieces_of(int64_t items, int64_t of) { return static_cast<unsigned>((items + of - 1) / of); }

template <typename... Params, typename... Args>
void launch_few(const char* name, void (*kernel)(Params...), dim3 grid, const ProductParams& products,
                const LaunchPlace& place, const Args&... args) {
  const int64_t shared = few_shared_bytes(products);
  if (shared > 48 * 1024)
    check_cuda(
        runtime().func_set_attribute(reinterpret_cast<const void*>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        name);
  launch_in_order(name, kernel, grid, dim3(kFewThreads), static_cast<size_t>(shared), place.stream, args...);
}

void launch_pick(BlockParams params, int64_t rows, const LaunchPlace& place) {
  const int64_t bytes = params.num_blocks * static_cast<int64_t>(sizeof(uint32_t));
  params.in_shared = bytes + static_cast<int64_t>(sizeof(SelectShared)) <= place.most_shared;
  if (params.in_shared && bytes > 32 * 1024)
    check_cuda(
        runtime().func_set_attribute(reinterpret_cast<const void*>(pick_kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "pick_kernel");
  launch_in_order("pick_kernel", pick_kernel, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads),
                  params.in_shared ? static_cast<size_t>(bytes) : 0, place.stream, params);
}

int64_t blocks_of(int64_t records) { return (records + kBlockRecords - 1) / kBlockRecords; }

}  // namespace

bool has_tiles(const PartParams* parts, int num_parts, const LaunchPlace& place) {
  return num_parts == 1 && !parts[0].has_levels() && !parts[0].has_sketch &&
         ProductTile<kManyQueries>::shared_bytes(parts[0].part.stored) <= place.most_shared;
}

bool has_few(const PartParams* parts, int num_parts, const LaunchPlace& place) {
  return !parts[0].has_levels() &&
         few_shared_bytes(product_params(parts, num_parts, nullptr, {}, {})) <= place.most_shared;
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

void launch_best_blocks(const PartParams* parts, int num_parts, const int64_t* at, const QueryPlanes& planes,
                        const RecordRange& range, const float* bias, int64_t first, int64_t rows, int64_t k,
                        void* memory, const BestPlaces& best, const BestPlaces& other,
                        const LaunchPlace& place) {
  const int64_t blocks = blocks_of(range.count);
  int64_t* const picked = static_cast<int64_t*>(memory);
  uint32_t* const maxima = reinterpret_cast<uint32_t*>(picked + rows * k);
  const BestList list = {best.scores, best.ids, best.least, best.stride};
  const bool tiles = has_tiles(parts, num_parts, place);
  const TileParams tile_params = {parts[0], range.records, range.end, range.count, rows,
                                  nullptr,  maxima,        blocks,    bias};
  const FewParams few_params = {product_params(parts, num_parts, at, range, {nullptr, rows, blocks}), bias,
                                maxima};
  if (tiles && (rows > kFewQueries || !has_few(parts, num_parts, place)))
    launch_tile_products(tile_params, planes, at[0], place);
  else
    launch_few("few_products_kernel", few_products_kernel,
               dim3(static_cast<unsigned>(std::min(blocks, kFewCtasPerUnit * place.num_units)),
                    pieces_of(rows, kFewQueries)),
               few_params.products, place, few_params, planes);
  launch_pick(BlockParams{maxima, blocks, blocks, k, picked, list, false}, rows, place);
  if (tiles)  // a CTA a block is through sooner than a warp
    launch_in_order("rescore_kernel", rescore_kernel,
                    dim3(static_cast<unsigned>(k), static_cast<unsigned>(rows)), dim3(kRescoreThreads), 0,
                    place.stream, tile_params, planes, at[0], static_cast<const int64_t*>(picked), list, k,
                    first);
  else
    launch_few("few_rescore_kernel", few_rescore_kernel,
               dim3(pieces_of(k, kFewWarps), static_cast<unsigned>(rows)), few_params.products, place,
               few_params, planes, static_cast<const int64_t*>(picked), list, k, first);
  launch_merge(best, other, rows, block_list_stride(k), k, place);
}

}  // namespace tq::cuda::vectors
