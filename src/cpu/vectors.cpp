// SPDX-License-Identifier: Apache-2.0
// Tables, encoder, decoder and rotation of vectors on their own; see vectors.h.
#include "cpu/vectors.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "cpu/cpu_backend.h"
#include "cpu/fp_environment.h"
#include "format/grouped.h"

namespace tq {
namespace cpu {
namespace {

constexpr int64_t kBlock = 32;  // vectors of one task

template <typename T>
void store(uint8_t* target, T value) {
  memcpy(target, &value, sizeof value);
}
template <typename T>
T load(const uint8_t* source) {
  T value;
  memcpy(&value, source, sizeof value);
  return value;
}

}  // namespace

VectorTables CpuVectors::tables_of(const VectorGeometry& geometry, const HostOps& ops) {
  const FpEnvironment environment;
  return VectorTables(geometry, ops);
}

CpuVectors::CpuVectors(const VectorGeometry& geometry, const HostOps& ops, const Kernels& kernels)
    : g_(geometry),
      ops_(ops),
      kernels_(kernels),
      tables_(tables_of(geometry, ops)),
      pool_(geometry.num_threads) {}

const uint8_t* CpuVectors::vector_at(const void* x, int64_t index) const {
  return static_cast<const uint8_t*>(x) + index * g_.dim * dtype_bytes(g_.io_dtype);
}

void CpuVectors::gather(const VectorPart& part, const float* x, float* target) const {
  if (part.channels)
    for (int i = 0; i < part.dim; i++) target[i] = x[part.channels[i]];
  else
    memcpy(target, x, part.dim * sizeof(float));
  std::fill(target + part.dim, target + part.stored, 0.0f);
}
void CpuVectors::scatter(const VectorPart& part, const float* source, float* x) const {
  if (part.channels)
    for (int i = 0; i < part.dim; i++) x[part.channels[i]] = source[i];
  else
    memcpy(x, source, part.dim * sizeof(float));
}

float CpuVectors::scale_of(const VectorPart& part, const uint8_t* record) const {
  return g_.has_levels ? load<float>(record + part.scale_at)
                       : format::float_from_bf16(load<uint16_t>(record + part.scale_at));
}
float CpuVectors::norm_of(const uint8_t* record) const {
  return format::float_from_bf16(load<uint16_t>(record + g_.parts[0].norm_at));
}

// ---- encode ----

bool CpuVectors::encode_part(int index, const float* x, uint8_t* codes, uint8_t* record) const {
  const VectorPart& part = g_.parts[index];
  bool replaced;
  if (g_.has_levels) {
    alignas(64) float y[format::kMaxVectorDim], scratch[format::kMaxVectorDim];
    const format::RotatedInput in = kernels_.rotate_input(tables_.coder[index], x, y, scratch);
    replaced = in.replaced;
    float scale = 0;
    if (in.zero)
      std::fill_n(codes, part.stored, static_cast<uint8_t>(0));
    else
      scale = format::mul_rn(
          format::mul_rn(format::encode_levels(tables_.coder[index], g_.levels, y, codes, scratch),
                         in.norm_rot),
          format::exp2_int(in.exponent));
    store(record + part.scale_at, scale);
  } else {
    uint16_t scale;
    replaced = kernels_.encode(tables_.coder[index], x, codes, &scale);
    store(record + part.scale_at, scale);
  }
  format::pack_codes(codes, part.bits, part.stored, record + part.codes_at);
  return replaced;
}

// The rotation is made again, once for the codes and once here: a small part of the codes' own work.
void CpuVectors::encode_sketch(const float* x, const uint8_t* codes, uint8_t* record) const {
  const VectorPart& part = g_.parts[0];
  alignas(64) float y[format::kMaxVectorDim], w[format::kMaxVectorDim];
  uint8_t signs[format::kMaxVectorDim];
  const format::RotatedInput in = kernels_.rotate_input(tables_.coder[0], x, y, w);
  uint16_t norm = 0;
  if (in.zero) {
    std::fill_n(signs, part.stored, static_cast<uint8_t>(0));
  } else {
    format::residual(in, codes, tables_.level[0], scale_of(part, record), part.stored, y);
    norm = format::residual_norm(y, part.stored, in.exponent, w);
    format::apply_sketch(tables_.sketch, y, w, kernels_.rotate);
    for (int i = 0; i < part.stored; i++) signs[i] = w[i] < 0 ? 1 : 0;
  }
  format::pack_codes(signs, 1, part.stored, record + part.signs_at);
  store(record + part.norm_at, norm);
}

uint64_t CpuVectors::encode_groups(const float* x, uint8_t* record) const {
  const VectorPart& part = g_.parts[0];
  uint8_t codes[format::kMaxVectorDim];
  float clean[format::kMaxVectorDim];
  bool replaced = false, saturated = false;
  for (int i = 0; i < g_.dim; i++) clean[i] = format::sanitise(x[i], &replaced);
  for (int group = 0; group < g_.num_groups(); group++) {
    const int first = group * g_.group, count = std::min(g_.group, g_.dim - first);
    const format::GroupScale scale =
        format::encode_group(clean + first, count, part.bits, codes + first, &saturated);
    store(record + part.scale_at + 2 * group, scale.scale);
    store(record + part.norm_at + 2 * group, scale.zero);
  }
  format::pack_codes(codes, part.bits, g_.dim, record);
  return (replaced ? kNoticedNonfinite : 0) | (saturated ? kNoticedSaturated : 0);
}

uint64_t CpuVectors::encode_one(const float* x, uint8_t* record) const {
  if (g_.grouped()) return encode_groups(x, record);
  alignas(64) float own[format::kMaxVectorDim];
  uint8_t codes[format::kMaxVectorDim];
  bool replaced = false;
  for (int i = 0; i < g_.num_parts; i++) {
    gather(g_.parts[i], x, own);
    replaced |= encode_part(i, own, codes, record);
  }
  if (g_.has_sketch) encode_sketch(own, codes, record);
  return replaced ? kNoticedNonfinite : 0;
}

void CpuVectors::encode(const void* x, int64_t count, uint8_t* codes, uint64_t* noticed, void*) {
  std::atomic<uint64_t> all{0};
  pool_.parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const FpEnvironment environment;
    alignas(64) float vector[format::kMaxVectorDim];
    uint64_t flags = 0;
    for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); i++) {
      kernels_.to_float(g_.io_dtype, vector_at(x, i), g_.dim, vector);
      flags |= encode_one(vector, codes + i * g_.record_bytes);
    }
    if (flags != 0) all.fetch_or(flags, std::memory_order_relaxed);
  });
  if (noticed) *noticed = all.load(std::memory_order_relaxed);
}

// ---- decode ----

void CpuVectors::unsketch(const uint8_t* record, float* z) const {
  const int stored = g_.parts[0].stored;
  uint8_t signs[format::kMaxVectorDim];
  alignas(64) float s[format::kMaxVectorDim];
  kernels_.unpack_codes(record + g_.parts[0].signs_at, 1, stored, signs);
  for (int i = 0; i < stored; i++) s[i] = signs[i] ? -1.0f : 1.0f;
  format::unsketch(tables_.sketch, s, z, kernels_.unrotate);
}

void CpuVectors::decode_groups(const uint8_t* record, float* x) const {
  const VectorPart& part = g_.parts[0];
  uint8_t codes[format::kMaxVectorDim];
  format::unpack_codes(record, part.bits, g_.dim, codes);
  for (int i = 0; i < g_.dim; i++) {
    const int64_t at = 2 * static_cast<int64_t>(i / g_.group);
    x[i] = format::decode_grouped(format::GroupScale{load<uint16_t>(record + part.scale_at + at),
                                                     load<uint16_t>(record + part.norm_at + at)},
                                  codes[i]);
  }
}

void CpuVectors::decode_one(const uint8_t* record, float* x) const {
  if (g_.grouped()) return decode_groups(record, x);
  uint8_t codes[format::kMaxVectorDim];
  alignas(64) float y[format::kMaxVectorDim], own[format::kMaxVectorDim];
  for (int index = 0; index < g_.num_parts; index++) {
    const VectorPart& part = g_.parts[index];
    kernels_.unpack_codes(record + part.codes_at, part.bits, part.stored, codes);
    const float scale = scale_of(part, record);
    for (int i = 0; i < part.stored; i++) y[i] = format::mul_rn(scale, tables_.level[index][codes[i]]);
    if (g_.has_sketch) {
      unsketch(record, own);
      const float norm = format::mul_rn(tables_.sketch_scale, norm_of(record));
      for (int i = 0; i < part.stored; i++) y[i] = format::add_rn(y[i], format::mul_rn(norm, own[i]));
    }
    kernels_.unrotate(tables_.coder[index], y, own);
    scatter(part, own, x);
  }
}

void CpuVectors::decode(const uint8_t* codes, int64_t count, void* x, void*) {
  pool_.parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const FpEnvironment environment;
    alignas(64) float vector[format::kMaxVectorDim];
    for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); i++) {
      decode_one(codes + i * g_.record_bytes, vector);
      kernels_.from_float(g_.io_dtype, vector, g_.dim, const_cast<uint8_t*>(vector_at(x, i)));
    }
  });
}

// ---- the rotation alone, and what calibration looks at ----

void CpuVectors::rotate(const void* x, int64_t count, float* y, void*) {
  const int64_t row = g_.rotated_dim();
  pool_.parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const FpEnvironment environment;
    alignas(64) float vector[format::kMaxVectorDim], own[format::kMaxVectorDim];
    for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); i++) {
      kernels_.to_float(g_.io_dtype, vector_at(x, i), g_.dim, vector);
      float* target = y + i * row;
      for (int part = 0; part < g_.num_parts; target += g_.parts[part++].stored) {
        gather(g_.parts[part], vector, own);
        kernels_.rotate(tables_.coder[part], own, target);
      }
    }
  });
}

void CpuVectors::unrotate(const float* y, int64_t count, void* x, void*) {
  const int64_t row = g_.rotated_dim();
  pool_.parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const FpEnvironment environment;
    alignas(64) float vector[format::kMaxVectorDim], own[format::kMaxVectorDim],
        rotated[format::kMaxVectorDim];
    for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); i++) {
      const float* source = y + i * row;
      for (int part = 0; part < g_.num_parts; source += g_.parts[part++].stored) {
        memcpy(rotated, source, g_.parts[part].stored * sizeof(float));
        kernels_.unrotate(tables_.coder[part], rotated, own);
        scatter(g_.parts[part], own, vector);
      }
      kernels_.from_float(g_.io_dtype, vector, g_.dim, const_cast<uint8_t*>(vector_at(x, i)));
    }
  });
}

void CpuVectors::sketch_sums(const void* x, int64_t count, double* rv, double* vv) {
  const FpEnvironment environment;
  const VectorPart& part = g_.parts[0];
  const HostBlock record(ops_, g_.record_bytes, "record");
  uint8_t* const bytes = static_cast<uint8_t*>(record.get());
  alignas(64) float vector[format::kMaxVectorDim], own[format::kMaxVectorDim], r[format::kMaxVectorDim],
      z[format::kMaxVectorDim];
  uint8_t codes[format::kMaxVectorDim];
  const double divisor = static_cast<double>(format::sketch_divisor(g_.sketch, part.stored));
  for (int64_t i = 0; i < count; i++) {
    kernels_.to_float(g_.io_dtype, vector_at(x, i), g_.dim, vector);
    gather(part, vector, own);
    encode_part(0, own, codes, bytes);
    encode_sketch(own, codes, bytes);
    const format::RotatedInput in = kernels_.rotate_input(tables_.coder[0], own, r, z);
    if (in.zero) continue;
    double squares = 0, products = 0, estimates = 0;
    for (int c = 0; c < part.stored; c++) squares += static_cast<double>(r[c]) * static_cast<double>(r[c]);
    squares *= static_cast<double>(in.norm_rot) * static_cast<double>(in.norm_rot);
    format::residual(in, codes, tables_.level[0], scale_of(part, bytes), part.stored, r);
    unsketch(bytes, z);
    const double norm = ldexp(static_cast<double>(norm_of(bytes)), -in.exponent) / divisor;
    for (int c = 0; c < part.stored; c++) {
      products += static_cast<double>(r[c]) * static_cast<double>(z[c]);
      estimates += static_cast<double>(z[c]) * static_cast<double>(z[c]);
    }
    *rv += norm * products / squares;
    *vv += norm * norm * estimates / squares;
  }
}

int64_t CpuVectors::unit_coordinates(const void* x, int64_t count, float* values) {
  const FpEnvironment environment;
  const VectorPart& part = g_.parts[0];
  alignas(64) float vector[format::kMaxVectorDim], own[format::kMaxVectorDim], y[format::kMaxVectorDim],
      scratch[format::kMaxVectorDim];
  int64_t found = 0;
  for (int64_t i = 0; i < count; i++) {
    kernels_.to_float(g_.io_dtype, vector_at(x, i), g_.dim, vector);
    gather(part, vector, own);
    const format::RotatedInput in = kernels_.rotate_input(tables_.coder[0], own, y, scratch);
    if (in.zero) continue;
    double squares = 0;
    for (int c = 0; c < part.stored; c++) squares += static_cast<double>(y[c]) * static_cast<double>(y[c]);
    float* target = values + found++ * part.stored;
    for (int c = 0; c < part.stored; c++)
      target[c] = static_cast<float>(static_cast<double>(y[c]) / sqrt(squares));
  }
  return found;
}

std::unique_ptr<VectorBackend> create_cpu_vectors(const VectorGeometry& geometry, const HostOps& ops,
                                                  const char* isa) {
  return std::make_unique<CpuVectors>(geometry, ops, select_kernels(isa));
}

}  // namespace cpu
}  // namespace tq
