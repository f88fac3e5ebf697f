// SPDX-License-Identifier: Apache-2.0
// What a quantizer asks of a backend: vectors to records and back, inner products, the rotation alone
// (FORMAT.md section 8). A backend sees geometry and plain requests, never the caller's configuration.
#pragma once
#include <memory>

#include "backend.h"
#include "format/levels.h"
#include "format/record.h"
#include "host_ops.h"
#include "requests.h"

namespace tq {

// Coordinates that are rotated together, and where what is stored of them begins in a record.
struct VectorPart {
  int32_t dim, stored;      // d and D; grouped: both d
  int32_t bits;             // of a code
  const int32_t* channels;  // [dim]: the vector's coordinates of this part; null: all of them, in order
  format::Codebook book;    // of scalar codes
  int64_t codes_at, signs_at, scale_at, norm_at;
};

struct VectorGeometry {
  static constexpr int kMaxParts = 2;

  DeviceType device_type;
  int32_t device_id;
  format::VectorFamily family;
  int32_t dim;
  DataType io_dtype;
  format::Rotation rotation;
  format::ScaleRule rule;
  bool search;
  int32_t group;    // grouped: coordinates with one scale
  bool has_levels;  // codes are of `levels`, scales float32; else of a codebook, and bfloat16
  bool has_sketch;
  format::SketchKind sketch;
  float sketch_factor;
  uint64_t seed;
  int32_t num_threads;
  int32_t num_parts;
  VectorPart parts[kMaxParts];
  int64_t record_bytes;
  format::LevelTable levels;

  bool grouped() const { return family == format::VectorFamily::kGrouped; }
  int32_t num_groups() const { return (dim + group - 1) / group; }
  int32_t rotated_dim() const {
    int32_t sum = 0;
    for (int i = 0; i < num_parts; i++) sum += parts[i].stored;
    return sum;
  }
};

// Vectors [count][dim] of io_dtype and records [count][record_bytes].
struct SearchRequest {
  const void* queries;  // [num_queries][dim]
  int64_t num_queries;
  const uint8_t* codes;
  int64_t count;
  const float* bias;  // [count] or null
  int64_t k;
  float* scores;  // [num_queries][k]
  int64_t* ids;   // [num_queries][k]
};

class VectorBackend {
 public:
  virtual ~VectorBackend() = default;

  // *noticed: kNoticed*; not null: waits for the stream.
  virtual void encode(const void* x, int64_t count, uint8_t* codes, uint64_t* noticed, void* stream) = 0;
  virtual void decode(const uint8_t* codes, int64_t count, void* x, void* stream) = 0;
  // out [num_queries][count]
  virtual void inner_products(const void* queries, int64_t num_queries, const uint8_t* codes, int64_t count,
                              float* out, void* stream) = 0;
  virtual void search(const SearchRequest& request, void* stream) = 0;
  // y [count][rotated_dim]
  virtual void rotate(const void* x, int64_t count, float* y, void* stream) = 0;
  virtual void unrotate(const float* y, int64_t count, void* x, void* stream) = 0;
  // The rest is for calibration, of the CPU alone: a device's backend throws kNotSupported.
  // Sums over x of <r, v> and <v, v> of the sketch's estimates v at factor 1, relative to |x|^2.
  virtual void sketch_sums(const void* x, int64_t count, double* rv, double* vv) = 0;
  // values [count][stored of part 0]: rotated coordinates of each vector, over its length. Returns how many
  // vectors were not zero; only theirs are written, one after the other.
  virtual int64_t unit_coordinates(const void* x, int64_t count, float* values) = 0;
};

// The geometry's arrays must outlive the backend. device_ops: for memory of the device, alloc null: its own.
std::unique_ptr<VectorBackend> create_vector_backend(const VectorGeometry& geometry, const HostOps& ops,
                                                     const HostOps& device_ops);

}  // namespace tq
