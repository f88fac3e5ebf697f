// SPDX-License-Identifier: Apache-2.0
// Vectors on their own on the CPU: the class behind vector_backend.h, for its own sources. Coding stands in
// vectors.cpp, inner products and search in vector_products.cpp. Work is handed out in blocks of vectors;
// every vector is coded alone, so that threads change nothing.
#pragma once
#include "cpu/kernels/kernels.h"
#include "cpu/thread_pool.h"
#include "vector_tables.h"

namespace tq {
namespace cpu {

// Integers of operands and values: whole vectors of any instruction set.
constexpr int64_t value_slots(int stored) { return (stored + 31) / 32 * 32; }

// One query, ready for integer products: q of each part, then of its sketch, each value_slots long. A unit is
// what a product with twice a level is worth, times a record's scale.
struct QueryOperand {
  bool finite;
  double unit[VectorGeometry::kMaxParts];
  double sketch_unit;
};

class CpuVectors final : public VectorBackend {
 public:
  CpuVectors(const VectorGeometry& geometry, const HostOps& ops, const Kernels& kernels);

  void encode(const void* x, int64_t count, uint8_t* codes, uint64_t* noticed, void* stream) override;
  void decode(const uint8_t* codes, int64_t count, void* x, void* stream) override;
  void inner_products(const void* queries, int64_t num_queries, const uint8_t* codes, int64_t count,
                      float* out, void* stream) override;
  void search(const SearchRequest& request, void* stream) override;
  void rotate(const void* x, int64_t count, float* y, void* stream) override;
  void unrotate(const float* y, int64_t count, void* x, void* stream) override;
  void sketch_sums(const void* x, int64_t count, double* rv, double* vv) override;
  int64_t unit_coordinates(const void* x, int64_t count, float* values) override;

 private:
  // vectors.cpp
  static VectorTables tables_of(const VectorGeometry& geometry, const HostOps& ops);
  const uint8_t* vector_at(const void* x, int64_t index) const;
  // Coordinates of a part: x [dim of the vector] -> [stored], zeros behind the part's own.
  void gather(const VectorPart& part, const float* x, float* target) const;
  void scatter(const VectorPart& part, const float* source, float* x) const;
  uint64_t encode_one(const float* x, uint8_t* record) const;
  uint64_t encode_groups(const float* x, uint8_t* record) const;
  // The part's codes and its scale; returns whether a value had to be replaced.
  bool encode_part(int part, const float* x, uint8_t* codes, uint8_t* record) const;
  void encode_sketch(const float* x, const uint8_t* codes, uint8_t* record) const;
  void decode_one(const uint8_t* record, float* x) const;
  void decode_groups(const uint8_t* record, float* x) const;
  // z = S^T signs of a record's sketch.
  void unsketch(const uint8_t* record, float* z) const;
  float scale_of(const VectorPart& part, const uint8_t* record) const;
  float norm_of(const uint8_t* record) const;

  // vector_products.cpp
  class Operands;
  // q [operand_slots]; rotated [stored], with levels alone.
  void prepare_query(const float* x, QueryOperand* operand, int16_t* q, float* rotated) const;
  void prepare(const void* queries, int64_t first, int64_t rows, const Operands& operands);
  // scores[r * stride] of rows queries, from `first` on, with one record.
  void score_record(const uint8_t* record, const Operands& operands, int64_t first, int rows, float* scores,
                    int64_t stride) const;
  void score_groups(const uint8_t* record, const Operands& operands, int64_t first, int rows, float* scores,
                    int64_t stride) const;
  // Records begin .. end - 1 for queries row .. row + rows - 1 of a pass; heap [rows].
  struct Segment {
    int64_t begin, end, row;
    int rows;
  };
  struct Heap;
  void scan(const SearchRequest& request, const Operands& operands, const Segment& work, Heap* heap) const;
  int64_t operand_slots() const;

  VectorGeometry g_;
  HostOps ops_;
  const Kernels& kernels_;
  VectorTables tables_;
  ThreadPool pool_;  // last: its threads end before what they use
};

}  // namespace cpu
}  // namespace tq
