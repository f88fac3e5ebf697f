// SPDX-License-Identifier: Apache-2.0
// What the kernels of vectors on their own are given: one part of the geometry a launch, since its dimension
// decides the shape of a team. All pointers are the device's.
#pragma once
#include "vector_backend.h"

namespace tq::cuda::vectors {

// Signs are 64-bit words; a dense rotation has a matrix [stored][stored] in their place.
struct RotationTable {
  const uint64_t* signs;
  const float* dense;
};

struct PartParams {
  int32_t vector_dim;  // numbers of a vector, of which `dim` are this part's
  DataType io_dtype;
  VectorPart part;  // with channels on the device
  RotationTable rotation;
  format::ScaleRule rule;
  bool search;
  int64_t record_bytes;
  // By the caller's levels: level [2^bits], boundary [2^bits - 1], unit. Else boundary is null, and level
  // holds those of part.book by code.
  const float* level;
  const float* boundary;
  float level_unit;
  bool has_sketch;
  RotationTable sketch[2];  // the second of an orthogonal sketch alone
  float sketch_scale;

  __host__ __device__ bool has_levels() const { return boundary != nullptr; }
  __host__ __device__ bool has_dense_sketch() const { return sketch[0].dense != nullptr; }
};

struct GroupParams {
  int32_t dim, bits, group, num_groups;
  DataType io_dtype;
  int64_t record_bytes, scale_at, norm_at;
};

// What was noticed of a call's vectors; ones are written, nothing is read.
struct NoticedWords {
  uint32_t nonfinite, saturated;
};

// Queries of a pass, ready for products; a plane is what all queries have of one kind, row after row. The 16
// bits of q are signed high bytes and unsigned low ones, [rows][slots] each; q of each part, then of the
// sketch, each from a multiple of 32 on with zeros behind it.
struct QueryPlanes {
  int64_t slots;
  int8_t* high;
  uint8_t* low;
  int16_t* q;       // [rows][slots], grouped: in place of the bytes
  float* rotated;   // [rows][stored], with levels
  int32_t* sums;    // [rows][kMaxOperands]: of q
  double* units;    // [rows][kMaxOperands]: what a unit of q is worth, times twice a level
  int32_t* finite;  // [rows]
};
// Parts, then the sketch.
constexpr int kMaxOperands = VectorGeometry::kMaxParts + 1;
constexpr int kSketchOperand = VectorGeometry::kMaxParts;

constexpr int kBlockRecords = 64;  // of a search by blocks: whose best score is kept

constexpr int64_t operand_slots(int stored) { return (stored + 31) / 32 * 32; }

struct ProductParams {
  PartParams part[VectorGeometry::kMaxParts];
  int32_t num_parts;
  int64_t at[kMaxOperands];  // of an operand in the planes
  const uint8_t* records;    // the first of those multiplied
  const uint8_t* end;        // of all that may be read
  int64_t count, rows;
  float* out;  // [rows][stride]
  int64_t stride;
};

// Operand `step` of a record: a part, or behind them the signs of the first one's sketch.
struct RecordOperand {
  const VectorPart& part;
  int index, bits;  // index: of its units and sums
  int64_t codes_at, scale_at, plane_at;
  bool half;

  TQ_HD RecordOperand(const ProductParams& p, int step) : part(p.part[step == p.num_parts ? 0 : step].part) {
    const bool sketch = step == p.num_parts;
    index = sketch ? kSketchOperand : step;
    bits = sketch ? 1 : part.bits;
    codes_at = sketch ? part.signs_at : part.codes_at;
    scale_at = sketch ? part.norm_at : part.scale_at;
    plane_at = p.at[index];
    half = !sketch && part.book.half();
  }
  static TQ_HD int count(const ProductParams& p) { return p.num_parts + (p.part[0].has_sketch ? 1 : 0); }
};

}  // namespace tq::cuda::vectors
