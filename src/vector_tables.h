// SPDX-License-Identifier: Apache-2.0
// What coding a vector needs beside the vector: the signs or matrices of its rotations, those of the sketch,
// and levels by code. Made once, on the host, in one block of memory that a device can have a copy of.
#pragma once
#include "format/sketch.h"
#include "host_block.h"
#include "vector_backend.h"

namespace tq {

class VectorTables {
 public:
  // Under the floating-point environment of the format: nearest, subnormals kept.
  VectorTables(const VectorGeometry& geometry, const HostOps& ops);

  format::VectorCoder coder[VectorGeometry::kMaxParts];
  format::Sketch sketch;
  float level[VectorGeometry::kMaxParts][format::kMaxLevels];  // by code
  float sketch_scale;                                          // factor / divisor
  format::Codebook sign_book;                                  // of the sketch's signs

  const uint8_t* memory() const { return static_cast<const uint8_t*>(block_.get()); }
  int64_t bytes() const { return bytes_; }

 private:
  // Fills the table of a coder at `next`, which moves behind it.
  void fill(format::VectorCoder& table, uint64_t base, bool gaussian, const HostOps& ops, uint8_t** next);

  int64_t bytes_;
  HostBlock block_;
};

}  // namespace tq
