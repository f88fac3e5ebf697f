// SPDX-License-Identifier: Apache-2.0
// Test vectors as a pure function of where they stand, the same on host and device: nothing has to be kept to
// know what was appended. One vector in two is an edge case if asked: zeros, spikes, ties, magnitudes at both
// ends, NaN and infinity.
#pragma once
#include "format/encode.h"
#include "requests.h"

namespace gpu_test {

using tq::DataType;
using namespace tq::format;

struct Source {
  uint64_t seed;
  DataType type;
  int32_t edges;  // 0 or 1
};
struct VectorId {
  int32_t layer, kind, sequence, token, head;
};

TQ_HD uint64_t vector_hash(const Source& source, const VectorId& id) {
  uint64_t h = mix64(source.seed + kGolden * static_cast<uint64_t>(id.sequence + 1));
  h = mix64(h + kGolden * static_cast<uint64_t>(id.token + 1));
  return mix64(h + kGolden * static_cast<uint64_t>((id.layer * 2 + id.kind) * 1024 + id.head + 1));
}

TQ_HD float element_value(const Source& source, uint64_t h, int i, int dim) {
  const uint64_t r = mix64(h + kGolden * static_cast<uint64_t>(i + 1));
  const int sum =
      static_cast<int>((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) + (r >> 48)) - 131070;
  const float normal = mul_rn(static_cast<float>(sum), exp2_int(-16));
  const float sign = r >> 63 ? -1.0f : 1.0f;
  const float scaled = mul_rn(normal, exp2_int(static_cast<int>(h >> 8 & 15) - 8));
  if (!source.edges || h & 1) return scaled;
  const float nan = bits_float(0x7FC00000u), infinity = bits_float(0x7F800000u);
  switch (h >> 1 & 15) {
    case 0: return 0.0f;
    case 1: return 0.25f;                                                         // constant
    case 2: return i == static_cast<int>(h >> 16 & 0xFFFF) % dim ? -3.0f : 0.0f;  // spike
    case 3: return mul_rn(normal, exp2_int(-101));  // about the zero-vector limit
    case 4: return mul_rn(normal, exp2_int(63));    // about the magnitude limit
    case 5: return r % 7 == 0 ? nan : scaled;
    case 6: return r % 11 == 0 ? mul_rn(sign, infinity) : scaled;
    case 7: return -0.0f;
    case 8: return mul_rn(normal, bits_float(0x00000400u));           // float32 subnormals
    case 9: return sign;                                              // equal magnitudes
    case 10: return mul_rn(mul_rn(normal, normal), normal);           // heavy tails
    case 11: return static_cast<float>(static_cast<int>(r % 5) - 2);  // many ties
    case 12: return mul_rn(normal, exp2_int(15));                     // about the largest float16
    case 13: return mul_rn(normal, exp2_int(-20));                    // float16 subnormals
    case 14: return i % 2 ? 1.0f : -1.0f;                             // one coordinate after the transform
    default: return mul_rn(sign, exp2_int(static_cast<int>(r % 40) - 20));
  }
}

// Bits of an element in its type, 16 or 32.
TQ_HD uint32_t element_bits(const Source& source, uint64_t h, int i, int dim) {
  const float x = element_value(source, h, i, dim);
  if (source.type == DataType::kF32) return float_bits(x);
  if (source.type == DataType::kF16) return f16_from_float(x);
  return (float_bits(x) & 0x7F800000u) == 0x7F800000u ? float_bits(x) >> 16 : bf16_from_float(x);
}
TQ_HD float bits_value(DataType type, uint32_t bits) {
  return type == DataType::kF32   ? bits_float(bits)
         : type == DataType::kF16 ? float_from_f16(static_cast<uint16_t>(bits))
                                  : bits_float(bits << 16);
}

// What an exact copy (or a raw side, if 16 bits) keeps.
TQ_HD uint32_t exact_bits(DataType type, uint32_t bits, bool* replaced) {
  if (type == DataType::kF32) return float_bits(sanitise(bits_float(bits), replaced));
  return type == DataType::kF16 ? raw_from_f16(static_cast<uint16_t>(bits), replaced)
                                : raw_from_bf16(static_cast<uint16_t>(bits), replaced);
}
TQ_HD uint16_t raw_side_bits(DataType type, uint32_t bits, bool* replaced) {
  bool saturated = false;
  if (type == DataType::kF32) return raw_from_f32(bits_float(bits), replaced, &saturated);
  return static_cast<uint16_t>(exact_bits(type, bits, replaced));
}

}  // namespace gpu_test
