// SPDX-License-Identifier: Apache-2.0
// A quantizer: the meaning of records, and a backend. It checks what the caller says and turns calls into a
// backend's; it has no vectors of its own.
#pragma once
#include <vector>

#include "gate.h"
#include "host_block.h"
#include "tqkv.h"
#include "vector_backend.h"

namespace tq {

// The caller's configuration with defaults resolved; owns copies of all arrays. Neither copied nor moved: the
// geometry points into it.
class QuantizerConfig {
 public:
  // Throws Error whose text holds every reason, one a line.
  explicit QuantizerConfig(const tq_quantizer_config* caller);
  QuantizerConfig(const QuantizerConfig&) = delete;
  QuantizerConfig& operator=(const QuantizerConfig&) = delete;

  const VectorGeometry& geometry() const { return geometry_; }
  const HostOps& host_ops() const { return host_ops_; }
  // The caller's callbacks, or none: then the device's own.
  const HostOps& device_ops() const { return device_ops_; }

 private:
  void resolve_family(ReasonList& reasons);
  void resolve_bits(ReasonList& reasons);
  void resolve_sketch(ReasonList& reasons);
  void resolve_outliers(ReasonList& reasons);
  void resolve_codebook(ReasonList& reasons);
  void resolve_levels(ReasonList& reasons);
  void build_geometry();
  void place_record();

  tq_quantizer_config config_;
  tq_codebook codebook_;
  tq_levels levels_;
  tq_allocator allocator_;
  HostOps host_ops_, device_ops_;
  std::vector<int32_t> outliers_, others_;
  VectorGeometry geometry_;
};

class Quantizer {
 public:
  explicit Quantizer(const tq_quantizer_config* config);
  // Throws INVALID_STATE while a call runs.
  static void destroy(Quantizer* quantizer);

  tq_quantizer_info info() const;
  void encode(const void* x, int64_t count, void* codes, uint64_t* noticed, void* stream) const;
  void decode(const void* codes, int64_t count, void* x, void* stream) const;
  void inner_products(const void* queries, int64_t num_queries, const void* codes, int64_t count, float* out,
                      void* stream) const;
  void search(const SearchRequest& request, void* stream) const;
  void rotate(const void* x, int64_t count, float* y, void* stream) const;
  void unrotate(const float* y, int64_t count, void* x, void* stream) const;
  float calibrate_sketch_factor(const void* x, int64_t count, const void* stream) const;
  // levels [2^bits], boundaries [2^bits - 1]; returns the mean squared error.
  double calibrate_levels(const void* x, int64_t count, int32_t bits, float* levels, float* boundaries,
                          const void* stream) const;

 private:
  // x and codes of a call: how many, and where.
  void check_vectors(const char* name, const void* x, int64_t count) const;
  void check_codes(const void* codes, int64_t count) const;
  void check_rotates(const char* what) const;
  void check_stream(const void* stream) const;
  bool on_cpu() const { return config_.geometry().device_type == DeviceType::kCpu; }

  QuantizerConfig config_;
  Gate gate_;
  std::unique_ptr<VectorBackend> backend_;
};

// Lloyd's rounds on `values` [count], which it sorts: levels [2^bits] from those of N(0, 1 / dim), boundaries
// half way. Returns the mean squared error of a value.
double lloyd_levels(float* values, int64_t count, int32_t dim, int32_t bits, float* levels,
                    float* boundaries);

}  // namespace tq
