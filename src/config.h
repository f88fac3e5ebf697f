// SPDX-License-Identifier: Apache-2.0
// From the caller's tq_cache_config to a Geometry: the struct rule, defaults, and every reason against it at
// once. Nothing behind this point meets an unresolved or impossible configuration.
#pragma once
#include <memory>
#include <vector>

#include "backend.h"
#include "host_ops.h"
#include "tqkv.h"

namespace tq {

class ReasonList;

constexpr int32_t kMaxFirstKvHead = 65535;

// What other configurations have as well. Each adds its reasons.
void check_count(const char* name, int64_t value, int64_t least, int64_t most, ReasonList& reasons);
void check_codebook(const char* name, const tq_codebook& book, ReasonList& reasons);
// The built-in codebook, or a checked one of the caller's if it has these bits.
format::Codebook codebook_of(int dim, int bits, const tq_codebook* custom);
// Levels of the caller's for codes of these bits, into *table.
void check_levels(const char* name, const tq_levels& levels, int32_t bits, ReasonList& reasons,
                  format::LevelTable* table);
// sketch, sketch_rule and sketch_factor of prod codes: defaults, and what is wrong.
void resolve_sketch_fields(int32_t& sketch, int32_t& rule, float factor, ReasonList& reasons);
// The factor in use.
float sketch_factor_of(format::SketchKind sketch, int32_t rule, float factor, int stored);
// Threads of a CPU backend: num_threads, or all for 0.
int32_t resolve_threads(int32_t num_threads, ReasonList& reasons);
// malloc, or the caller's callbacks, which are copied to *own.
HostOps read_allocator(const tq_allocator* caller, tq_allocator* own, ReasonList& reasons);

// Owns copies of all arrays, so that the caller's may go. Neither copied nor moved: it points into itself.
class ResolvedConfig {
 public:
  // Throws Error whose text holds every reason, one a line.
  explicit ResolvedConfig(const tq_cache_config* caller);
  ResolvedConfig(const ResolvedConfig&) = delete;
  ResolvedConfig& operator=(const ResolvedConfig&) = delete;

  // defaults resolved, pointers to this object's copies
  const tq_cache_config& config() const { return config_; }
  const Geometry& geometry() const { return geometry_; }
  DeviceType device() const { return static_cast<DeviceType>(config_.device_type); }
  // Where host memory comes from: the caller's callbacks, else malloc.
  const HostOps& host_ops() const { return host_ops_; }
  // The same for the backend. Without callbacks a CUDA backend gets null functions and asks its runtime.
  const HostOps& backend_ops() const { return backend_ops_; }
  // Longest sequence in tokens; Geometry has it in pages only.
  int64_t max_sequence_tokens() const { return config_.max_sequence_tokens; }
  // Bytes of one token over all layers and heads, scales included, and as float16.
  int64_t token_bytes() const;
  int64_t fp16_token_bytes() const;
  // The same of one layer; 0 if it has no tokens of its own.
  int64_t token_bytes(int32_t layer) const;
  int64_t fp16_token_bytes(int32_t layer) const;
  // Pages of a group in a pool for this many tokens, and the pool grown to them.
  int64_t pool_pages(int32_t group, int64_t tokens) const;
  void set_max_tokens(int64_t tokens) noexcept;

 private:
  void resolve_bits(ReasonList& reasons);
  void resolve_allocator(ReasonList& reasons);
  void check_reserve(ReasonList& reasons) const;
  // config_codes.cpp
  void resolve_families(ReasonList& reasons);
  void resolve_prod(ReasonList& reasons);
  void resolve_codebooks(ReasonList& reasons);
  const tq_levels* own_levels(const char* name, const tq_levels* caller, int32_t bits, ReasonList& reasons,
                              const format::LevelTable** table);
  void resolve_levels(ReasonList& reasons);
  // config_bands.cpp
  void resolve_bands(ReasonList& reasons);
  // config_layers.cpp
  void resolve_layers(ReasonList& reasons);
  bool any_sliding() const;
  void build_layers(ReasonList& reasons);
  void build_groups();
  void build_geometry();
  void check_sizes(ReasonList& reasons) const;

  tq_cache_config config_;
  Geometry geometry_;
  HostOps host_ops_, backend_ops_;
  std::vector<LayerGeometry> layers_;
  std::vector<tq_layer_config> resolved_layers_;
  std::vector<int32_t> key_bits_, value_bits_;
  tq_codebook key_codebook_, value_codebook_;
  // Levels of the caller's, each as it is copied, and the tables that layers use: [layer][key, value], or
  // null.
  struct OwnLevels {
    tq_levels levels;
    format::LevelTable table;
  };
  std::vector<std::unique_ptr<OwnLevels>> levels_;
  std::vector<const format::LevelTable*> layer_tables_;
  // Key bands of the caller's as they are copied, and those that layers use, or null.
  struct OwnBands {
    tq_key_bands bands;
    std::vector<int32_t> bits, order;
    format::CodeId code;
  };
  std::vector<std::unique_ptr<OwnBands>> bands_;
  std::vector<const OwnBands*> layer_bands_;
  tq_allocator allocator_;
};

}  // namespace tq
