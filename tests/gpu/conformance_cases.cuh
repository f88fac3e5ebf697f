// SPDX-License-Identifier: Apache-2.0
// The configurations of conformance_test.cu, and how far its two sides may be apart.
//
// Each side is within 2e-4 of exact arithmetic over the same codes for logits up to about 5 (derived in
// tests/golden/library_test.cpp), so they may differ by 4e-4 of the whole output and 4e-4 in the LSE; a
// single row, whose output can be small, by the design's gate of 1e-3. An LSE of thousands (ALiBi) may
// differ by one place of a float besides. Values at levels of the caller's are taken on a grid of 16 bits,
// up to 2^-16 of what their coordinates spread by off in the mean (tests/reference/test_level_grid.py), all
// tokens alike, and so is a row that averages thousands of them, however short it is.
//
// Where the prefill kernel for warpgroups may serve rows (256 and more a kv head, both sides coded), it
// rounds queries to halves: a logit is off by 1.85e-4 of what logits spread by, 1 here, and the LSE of a row
// that sees few tokens by as much; 5.5 times that is the worst of millions of rows. Keys and queries that
// matrices have turned are longer, their products 1.1 times: a row's gate is 5.5 times what its logits and
// weights are off. Keys in bands are rounded to halves there too, as much again: 2.6e-4 together; but what a
// band is off, all of its coordinates are, so that rows are off by 5.3e-4
// (tests/reference/test_band_rounding.py), the worst of millions by 5.5 times that.
#pragma once
#include "api_cache.cuh"
#include "cuda/attend/instances.h"
#include "cuda/prefill/instances.h"
#include "modes.cuh"

namespace {

using namespace gpu_test;

constexpr double kRowGate = 1e-3, kTotalGate = 4e-4, kLseGate = 4e-4;
constexpr double kWorst = 5.5, kBandRows = 5.3e-4;  // of millions of rows; of rows over keys in bands

struct Shape {
  int head_dim, value_dim, key_bits, value_bits;
  ModeShape mode = {};  // head_dim 0: scalar codes
};

std::vector<Shape> shapes() {
  std::vector<Shape> list;
  for (const tq::cuda::attend::CodedInstance& is : tq::cuda::attend::kCodedInstances)
    list.push_back(Shape{is.stored, is.stored, is.key_bits, is.value_bits});
  // Generic kernels: three width pairs for each, all widths on either side in turn. Dimensions that are
  // padded come with those they share a kernel with.
  const int widths[][2] = {{5, 6}, {16, 16}, {6, 2}, {16, 4}, {3, 16}, {8, 5},
                           {2, 8}, {4, 16},  {6, 5}, {16, 3}, {5, 3},  {2, 6}};
  size_t turn = 0;
  const auto generic = [&](int key, int value) {
    for (int i = 0; i < 3; i++, turn++)
      list.push_back(Shape{key, value, widths[turn % 12][0], widths[turn % 12][1]});
  };
  for (const tq::cuda::attend::GenericInstance& is : tq::cuda::attend::kGenericInstances)
    generic(is.key, is.value);
  for (const Shape& shape :
       {Shape{112, 112, 4, 4}, Shape{80, 80, 3, 3}, Shape{112, 112, 8, 8}, Shape{80, 80, 16, 5},
        Shape{112, 112, 2, 16}, Shape{120, 120, 4, 4}, Shape{40, 40, 2, 2}, Shape{72, 72, 16, 5},
        Shape{8, 8, 3, 16}, Shape{168, 168, 16, 16}, Shape{104, 104, 6, 16}})
    list.push_back(shape);
  std::vector<ModeShape> modes = mode_shapes();
  for (const tq::cuda::attend::BandedInstance& is : tq::cuda::attend::kBandedInstances) {
    const int family = is.trellis ? TQ_CODE_TRELLIS : 0;
    ModeShape mode = {is.stored, is.stored, {family, 4}, {family, is.value_bits}};
    for (int pattern = is.pattern; pattern > 0; pattern /= 10)
      mode.bands.insert(mode.bands.begin(), pattern % 10);
    modes.push_back(mode);
  }
  for (const ModeShape& mode : modes)
    list.push_back(Shape{mode.head_dim, mode.value_dim, mode.key.bits, mode.value.bits, mode});
  return list;
}

struct Case {
  Shape shape;
  int dtype, q_per_kv, kv_heads, page_size, window, sinks, rollback;
  bool centres, matrices;
  uint64_t seed;
};

bool turns_keys(const Shape& shape) {
  return shape.key_bits < 16 && shape.mode.key.family != TQ_CODE_GROUPED;
}

// Codes and dimensions that the prefill kernel for warpgroups is written for.
bool takes_half_queries(const Shape& shape) {
  const auto served = [](int family, int bits) {
    return family == TQ_CODE_TRELLIS || (family == 0 && bits > 1 && bits <= 8);
  };
  const auto compiled = [&](const tq::cuda::prefill::GroupInstance& is) {
    return is.keys == tq::format::stored_dim(shape.head_dim) &&
           is.values == tq::format::stored_dim(shape.value_dim);
  };
  return served(shape.mode.key.family, shape.key_bits) && served(shape.mode.value.family, shape.value_bits) &&
         std::any_of(std::begin(tq::cuda::prefill::kGroupInstances),
                     std::end(tq::cuda::prefill::kGroupInstances), compiled);
}

// Of logits, where queries are halves.
double logit_rounding(const Case& c) {
  return (c.shape.mode.bands.empty() ? 1.85e-4 : 2.6e-4) * (c.matrices ? 1.1 : 1.0);
}

// Of a row's own length.
double row_gate(const Case& c, bool half_queries) {
  if (!half_queries) return kRowGate;
  if (!c.shape.mode.bands.empty()) return kWorst * kBandRows;
  return c.matrices ? std::max(kRowGate, kWorst * hypot(logit_rounding(c), 2e-4)) : kRowGate;
}

// What values on a grid of 16 bits are off, of coordinates that spread by .58 (RowSource).
double value_rounding(const Case& c) {
  const bool by_levels = c.shape.mode.value.family == TQ_CODE_LEVELS;
  return by_levels ? exp2(-16) * 0.58 * sqrt(static_cast<double>(c.shape.value_dim)) : 0.0;
}

std::string name_of(const Case& c) {
  char text[240];
  snprintf(text, sizeof text,
           "d %d/%d bits %d/%d families %d/%d dtype %d heads %dx%d page %d window %d sinks %d%s%s",
           c.shape.head_dim, c.shape.value_dim, c.shape.key_bits, c.shape.value_bits, c.shape.mode.key.family,
           c.shape.mode.value.family, c.dtype, c.kv_heads, c.q_per_kv, c.page_size, c.window, c.sinks,
           c.centres ? " centres" : "", c.matrices ? " matrices" : "");
  return text;
}

}  // namespace
