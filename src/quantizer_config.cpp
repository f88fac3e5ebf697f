// SPDX-License-Identifier: Apache-2.0
// From the caller's tq_quantizer_config to a VectorGeometry: defaults, every reason against it at once, the
// places of a record (FORMAT.md section 8.2).
#include <math.h>

#include <algorithm>

#include "config.h"
#include "format/grouped.h"
#include "format/sketch.h"
#include "quantizer.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
// A matrix of the largest dimension is made in seconds: QR takes dim^3, normal numbers dim^2.
constexpr int32_t kMaxDenseDim = 1536, kMaxGaussianDim = 4096;

// A field that only some families have.
void check_absent(const char* name, int64_t value, int32_t family, ReasonList& reasons) {
  if (value != 0)
    reasons.add(kBad, "%s = %lld: must be 0 with family = %d", name, static_cast<long long>(value), family);
}
void check_absent(const char* name, const void* value, int32_t family, ReasonList& reasons) {
  if (value) reasons.add(kBad, "%s = %p: must be NULL with family = %d", name, value, family);
}

}  // namespace

void QuantizerConfig::resolve_family(ReasonList& reasons) {
  tq_quantizer_config& c = config_;
  if (c.device_type == 0) c.device_type = TQ_DEVICE_CPU;
  if (c.device_type == TQ_DEVICE_CPU || c.device_type == TQ_DEVICE_CUDA)
    check_device(static_cast<DeviceType>(c.device_type), c.device_id, reasons);
  else
    check_count("device_type", c.device_type, TQ_DEVICE_CPU, TQ_DEVICE_CUDA, reasons);
  if (c.reserved != 0) reasons.add(Status::kVersion, "reserved = %d: must be 0", c.reserved);
  if (c.io_dtype == 0) c.io_dtype = TQ_F32;
  if (c.family == 0) c.family = TQ_CODE_SCALAR;
  check_count("dim", c.dim, 1, format::kMaxVectorDim, reasons);
  check_count("io_dtype", c.io_dtype, TQ_F32, TQ_BF16, reasons);
  check_count("family", c.family, TQ_CODE_SCALAR, TQ_CODE_LEVELS, reasons);
  if (c.flags & ~static_cast<uint64_t>(TQ_FLAG_NO_SCALE_SEARCH))
    reasons.add(kBad, "flags = 0x%llx: TQ_FLAG_NO_SCALE_SEARCH (2) alone is known here",
                static_cast<unsigned long long>(c.flags));
  if (c.family == TQ_CODE_GROUPED) {
    check_absent("rotation", c.rotation, c.family, reasons);
    check_absent("scale_rule", c.scale_rule, c.family, reasons);
    if (!format::is_group_size(c.group_size))
      reasons.add(kBad, "group_size = %d: must be 16, 32 or 64", c.group_size);
    return;
  }
  check_absent("group_size", c.group_size, c.family, reasons);
  if (c.rotation == 0) c.rotation = TQ_ROTATION_HADAMARD;
  if (c.scale_rule == 0) c.scale_rule = c.levels ? TQ_SCALE_PAPER : TQ_SCALE_LS;
  check_count("rotation", c.rotation, TQ_ROTATION_HADAMARD, TQ_ROTATION_DENSE, reasons);
  check_count("scale_rule", c.scale_rule, TQ_SCALE_LS, TQ_SCALE_PAPER, reasons);
  if (c.rotation == TQ_ROTATION_DENSE && c.dim > kMaxDenseDim)
    reasons.add(Status::kNotSupported, "rotation = 2 (TQ_ROTATION_DENSE): dim = %d, up to %d", c.dim,
                kMaxDenseDim);
}

void QuantizerConfig::resolve_bits(ReasonList& reasons) {
  const int32_t bits = config_.bits;
  if (config_.family == TQ_CODE_GROUPED) {
    if (!format::is_grouped_bits(bits))
      reasons.add(kBad, "bits = %d: must be 2, 3, 4 or 8 with family = 3 (TQ_CODE_GROUPED)", bits);
  } else if (config_.family == TQ_CODE_PROD) {
    check_count("bits (with family = 2, TQ_CODE_PROD)", bits, 2, 4, reasons);
  } else {
    check_count("bits", bits, 1, format::kMaxVectorBits, reasons);
  }
}

void QuantizerConfig::resolve_sketch(ReasonList& reasons) {
  tq_quantizer_config& c = config_;
  if (c.family != TQ_CODE_PROD) {
    check_absent("sketch", c.sketch, c.family, reasons);
    check_absent("sketch_rule", c.sketch_rule, c.family, reasons);
    if (c.sketch_factor != 0)
      reasons.add(kBad, "sketch_factor = %g: must be 0 with family = %d",
                  static_cast<double>(c.sketch_factor), c.family);
    return;
  }
  resolve_sketch_fields(c.sketch, c.sketch_rule, c.sketch_factor, reasons);
  if (c.sketch == TQ_SKETCH_GAUSSIAN && c.dim > kMaxGaussianDim)
    reasons.add(Status::kNotSupported, "sketch = 2 (TQ_SKETCH_GAUSSIAN): dim = %d, up to %d", c.dim,
                kMaxGaussianDim);
}

void QuantizerConfig::resolve_outliers(ReasonList& reasons) {
  const tq_quantizer_config& c = config_;
  if (c.family != TQ_CODE_SCALAR) {
    check_absent("num_outliers", c.num_outliers, c.family, reasons);
    check_absent("outlier_channels", c.outlier_channels, c.family, reasons);
    return;
  }
  check_count("num_outliers", c.num_outliers, 0, std::max(c.dim - 1, 0), reasons);
  if (!c.outlier_channels != (c.num_outliers == 0)) {
    reasons.add(kBad, "num_outliers = %d, outlier_channels = %p: both or neither", c.num_outliers,
                static_cast<const void*>(c.outlier_channels));
    return;
  }
  if (c.num_outliers <= 0 || c.num_outliers >= c.dim || c.dim > format::kMaxVectorDim) return;
  if (format::is_vector_bits(c.bits) && !format::is_vector_bits(c.bits + 1))
    reasons.add(kBad, "bits = %d: outliers would have %d", c.bits, c.bits + 1);
  outliers_.assign(c.outlier_channels, c.outlier_channels + c.num_outliers);
  for (int32_t i = 0; i < c.num_outliers; i++) {
    const int32_t least = i == 0 ? 0 : outliers_[i - 1] + 1;
    if (outliers_[i] >= least && outliers_[i] < c.dim) continue;
    reasons.add(kBad, "outlier_channels[%d] = %d: must be %d .. %d", i, outliers_[i], least, c.dim - 1);
    return;
  }
  for (int32_t channel = 0, next = 0; channel < c.dim; channel++)
    if (next < c.num_outliers && outliers_[next] == channel)
      next++;
    else
      others_.push_back(channel);
}

void QuantizerConfig::resolve_codebook(ReasonList& reasons) {
  tq_quantizer_config& c = config_;
  if (!c.codebook) return;
  if (c.family != TQ_CODE_SCALAR) return check_absent("codebook", c.codebook, c.family, reasons);
  codebook_ = read_struct(c.codebook, "codebook");
  check_codebook("codebook", codebook_, reasons);
  if (codebook_.bits != c.bits)
    reasons.add(kBad, "codebook.bits = %d: must be bits = %d", codebook_.bits, c.bits);
  if (c.num_outliers != 0)
    reasons.add(kBad, "codebook = %p: must be NULL with outliers, which have other bits",
                static_cast<const void*>(c.codebook));
  c.codebook = &codebook_;
}

void QuantizerConfig::resolve_levels(ReasonList& reasons) {
  tq_quantizer_config& c = config_;
  const bool may = c.family == TQ_CODE_LEVELS || c.family == TQ_CODE_PROD;
  if (!c.levels) {
    if (c.family == TQ_CODE_LEVELS)
      reasons.add(kBad, "levels = NULL: needed with family = 4 (TQ_CODE_LEVELS)");
    return;
  }
  if (!may) return check_absent("levels", c.levels, c.family, reasons);
  levels_ = read_struct(c.levels, "levels");
  const tq_levels& l = levels_;
  const int32_t bits = c.family == TQ_CODE_PROD ? c.bits - 1 : c.bits;
  check_levels("levels", l, bits, reasons, &geometry_.levels);
}

void QuantizerConfig::build_geometry() {
  const tq_quantizer_config& c = config_;
  VectorGeometry& g = geometry_;
  g.device_type = static_cast<DeviceType>(c.device_type);
  g.device_id = c.device_id;
  g.family = static_cast<format::VectorFamily>(c.family);
  g.dim = c.dim;
  g.io_dtype = static_cast<DataType>(c.io_dtype);
  g.rotation = static_cast<format::Rotation>(c.rotation);
  g.rule = static_cast<format::ScaleRule>(c.scale_rule);
  g.search = !(c.flags & TQ_FLAG_NO_SCALE_SEARCH);
  g.group = c.group_size;
  g.has_levels = c.levels != nullptr;
  g.has_sketch = c.family == TQ_CODE_PROD;
  g.seed = c.seed;
  g.num_parts = outliers_.empty() ? 1 : 2;
  const auto part = [&](int index, const std::vector<int32_t>* channels, int32_t bits) {
    VectorPart& p = g.parts[index];
    p.dim = channels ? static_cast<int32_t>(channels->size()) : c.dim;
    p.stored = g.grouped() ? p.dim : format::padded_dim(p.dim);
    p.bits = bits;
    p.channels = channels ? channels->data() : nullptr;
    if (!g.grouped() && !g.has_levels)
      p.book = codebook_of(format::has_builtin_codebook(p.dim) ? p.dim : 0, bits, c.codebook);
  };
  if (g.num_parts == 2) {
    part(0, &outliers_, c.bits + 1);
    part(1, &others_, c.bits);
  } else {
    part(0, nullptr, g.has_sketch ? c.bits - 1 : c.bits);
  }
  if (g.has_sketch) {
    g.sketch = static_cast<format::SketchKind>(c.sketch);
    g.sketch_factor = sketch_factor_of(g.sketch, c.sketch_rule, c.sketch_factor, g.parts[0].stored);
  }
  place_record();
}

void QuantizerConfig::place_record() {
  VectorGeometry& g = geometry_;
  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    at += bytes;
    return at - bytes;
  };
  for (int i = 0; i < g.num_parts; i++)
    g.parts[i].codes_at = take(format::packed_bytes(g.parts[i].bits, g.parts[i].stored));
  if (g.has_sketch) g.parts[0].signs_at = take(format::packed_bytes(1, g.parts[0].stored));
  for (int i = 0; i < g.num_parts; i++)
    g.parts[i].scale_at = take(g.grouped() ? 2 * g.num_groups() : g.has_levels ? 4 : 2);
  if (g.has_sketch || g.grouped()) g.parts[0].norm_at = take(g.grouped() ? 2 * g.num_groups() : 2);
  g.record_bytes = at;
}

QuantizerConfig::QuantizerConfig(const tq_quantizer_config* caller)
    : config_(read_struct(caller, "config")),
      codebook_{},
      levels_{},
      allocator_{},
      host_ops_{},
      device_ops_{},
      geometry_{} {
  ReasonList reasons;
  resolve_family(reasons);
  resolve_bits(reasons);
  resolve_sketch(reasons);
  resolve_outliers(reasons);
  try {
    resolve_codebook(reasons);
    resolve_levels(reasons);
  } catch (const Error& error) {
    reasons.add(error.status(), "%s", error.what());
  }
  geometry_.num_threads = resolve_threads(config_.num_threads, reasons);
  host_ops_ = read_allocator(config_.allocator, &allocator_, reasons);
  if (allocator_.alloc && host_ops_.alloc == allocator_.alloc) device_ops_ = host_ops_;
  if (!reasons.empty()) throw Error(reasons.status(), "%s", reasons.text());
  build_geometry();
}

}  // namespace tq
