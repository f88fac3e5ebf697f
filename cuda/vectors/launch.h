// SPDX-License-Identifier: Apache-2.0
// Starts the kernels of vectors on their own, one a function. All throw tq::Error if a launch fails, and
// start nothing for a count of 0.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/vectors/params.h"

namespace tq::cuda::vectors {

struct LaunchPlace {
  int num_units, most_shared;  // multiprocessors, bytes of shared memory that a CTA may have
  cudaStream_t stream;
};

// encode.cuh, decode.cuh. offset, row: of the part in rotated vectors.
void launch_encode(const PartParams& part, const void* x, int64_t count, uint8_t* records,
                   NoticedWords* noticed, const LaunchPlace& place);
void launch_encode(const GroupParams& groups, const void* x, int64_t count, uint8_t* records,
                   NoticedWords* noticed, const LaunchPlace& place);
void launch_decode(const PartParams& part, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place);
void launch_decode(const GroupParams& groups, const uint8_t* records, int64_t count, void* x,
                   const LaunchPlace& place);
void launch_rotate(const PartParams& part, const void* x, int64_t count, float* y, int64_t row,
                   int64_t offset, const LaunchPlace& place);
// row_rotation.cuh: the same where vectors and addresses allow it; false: they do not.
bool rotate_rows(const PartParams& part, const void* x, int64_t count, float* y, int64_t row, bool back,
                 const LaunchPlace& place);
void launch_unrotate(const PartParams& part, const float* y, int64_t count, void* x, int64_t row,
                     int64_t offset, const LaunchPlace& place);

// query.cuh. Rows of the planes from queries first_row on; operand: the part's, at: where it lies there.
void launch_queries(const PartParams& part, const QueryPlanes& planes, const void* x, int64_t first_row,
                    int64_t rows, int operand, int64_t at, const LaunchPlace& place);
void launch_queries(const GroupParams& groups, const QueryPlanes& planes, const void* x, int64_t first_row,
                    int64_t rows, const LaunchPlace& place);

// products.cuh: rows of the planes by records.
struct RecordRange {
  const uint8_t* records;
  const uint8_t* end;  // of all records
  int64_t count;
};
struct ProductRows {
  float* out;  // [rows][stride]
  int64_t rows, stride;
};
// parts: num_parts of them; at: of each operand in the planes.
void launch_products(const PartParams* parts, int num_parts, const int64_t* at, const QueryPlanes& planes,
                     const RecordRange& range, const ProductRows& target, const LaunchPlace& place);
void launch_products(const GroupParams& groups, const QueryPlanes& planes, const RecordRange& range,
                     const ProductRows& target, const LaunchPlace& place);

// tile_products.cuh, of quantizers of one scalar part: whether the device has them.
bool has_tiles(const PartParams* parts, int num_parts, const LaunchPlace& place);
// few_products.cuh, of all quantizers of scalar parts, with a sketch or without.
bool has_few(const PartParams* parts, int num_parts, const LaunchPlace& place);

// select.cuh. Scores [rows][stride] of records first .. first + count - 1 with their biases; the k best so
// far stand in front of best, and stay there: in `best` or, where that is told, in `other`.
struct BestPlaces {
  float* scores;
  int64_t* ids;
  uint32_t* least;  // [rows]
  int64_t stride;
};
// Places of a row's list for passes of `records` records.
int64_t best_stride(int64_t k, int64_t records);
void launch_clear(const BestPlaces& best, int64_t rows, int64_t k, const LaunchPlace& place);
void launch_select(const ProductRows& scores, const float* bias, const int32_t* finite, int64_t first,
                   int64_t count, int64_t k, const BestPlaces& best, const BestPlaces& other,
                   const LaunchPlace& place);
// The k best of each list of so many -> the other's.
void launch_merge(const BestPlaces& best, const BestPlaces& other, int64_t rows, int64_t listed, int64_t k,
                  const LaunchPlace& place);
// best_blocks.cuh. The same in one step, of parts that have tiles or few_products, where a list has room for
// the k best and as many blocks, and no score is kept; blocks: memory for best_blocks_bytes.
int64_t block_list_stride(int64_t k);
int64_t best_blocks_bytes(int64_t rows, int64_t records, int64_t k);
void launch_best_blocks(const PartParams* parts, int num_parts, const int64_t* at, const QueryPlanes& planes,
                        const RecordRange& range, const float* bias, int64_t first, int64_t rows, int64_t k,
                        void* blocks, const BestPlaces& best, const BestPlaces& other,
                        const LaunchPlace& place);
// The first k of each list, best first -> scores, ids [rows][k].
void launch_sort(const BestPlaces& best, int64_t rows, int64_t k, float* scores, int64_t* ids,
                 const LaunchPlace& place);

}  // namespace tq::cuda::vectors
