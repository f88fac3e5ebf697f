// SPDX-License-Identifier: Apache-2.0
// A CUDA backend with the bookkeeping that the core would do (lengths, a fragmented page table), and the
// oracle: one thread per vector regenerates the input, calls format::encode_vector and looks every code up in
// the stored pages through format/scalar.h. It shares no code with the kernels under test beyond the
// format's scalar definition, nor their tables.
#pragma once
#include <algorithm>
#include <memory>

#include "cuda/backend.h"
#include "cuda/runtime.h"
#include "gpu_test.h"
#include "vectors.cuh"

namespace gpu_test {

using tq::Geometry;

struct Config {
  int head_dim = 128, value_dim = 128, key_bits = 4, value_bits = 4;
  DataType type = DataType::kF16;
  int layers = 1, heads = 2, page_size = 64, sequences = 4;
  int64_t tokens = 512;  // of one sequence, at most
  ScaleRule key_rule = ScaleRule::kLs, value_rule = ScaleRule::kUnbiased;
  bool search = true, centres = false, edges = true;
  bool trellis = false;  // sides of up to 4 bits, else scalar
  int window = 0, sinks = 0, rollback = 0;
  uint64_t seed = 1;

  CodeId code(int bits) const { return trellis && bits <= 4 ? trellis_code(bits) : code_of_bits(bits); }
};

// One side of one layer, for the oracle.
struct OracleSide {
  SideLayout layout;
  int32_t code_offset, scale_offset, kind, layer;
  Codebook book;
  ScaleRule rule;
  bool search;
  const uint64_t* signs;  // [heads][sign_words]
  const float* centre;    // [heads][dim] or null
};
struct OracleJob {
  Source source;
  OracleSide side;
  const uint8_t* pages;
  int64_t page_bytes;
  int32_t tile_bytes, page_size, heads;
  const int32_t* page_table;
  int32_t sequence, first, count;
  int32_t exact_before, exact_from;  // tokens below or from here are read exactly
  const void* read;  // output of read [count][heads][dim], or null: then the stored codes are checked
};
struct Mismatch {
  unsigned long long count;
  int32_t token, head, coordinate, expected, found;
};

__device__ inline void report(Mismatch* mismatch, int token, int head, int coordinate, int expected,
                              int found) {
  if (atomicAdd(&mismatch->count, 1ull) == 0) {
    mismatch->token = token;
    mismatch->head = head;
    mismatch->coordinate = coordinate;
    mismatch->expected = expected;
    mismatch->found = found;
  }
}

__device__ inline VectorCoder coder_of(const OracleSide& side, int head) {
  const SideLayout& layout = side.layout;
  return VectorCoder{layout.dim,
                     layout.stored,
                     Rotation::kHadamard,
                     side.signs + head * sign_words(layout.stored),
                     nullptr,
                     side.centre ? side.centre + head * layout.dim : nullptr,
                     side.rule,
                     side.search,
                     side.book,
                     layout.code().trellis(),
                     static_cast<Kind>(side.kind)};
}

__global__ void oracle_kernel(const __grid_constant__ OracleJob job, Mismatch* mismatch) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<int64_t>(job.count) * job.heads) return;
  const int token = job.first + static_cast<int>(index / job.heads),
            head = static_cast<int>(index % job.heads);
  const OracleSide& side = job.side;
  const SideLayout& layout = side.layout;
  const uint64_t hash = vector_hash(job.source, VectorId{side.layer, side.kind, job.sequence, token, head});
  const DataType type = job.source.type;
  const int in_tile = token % 32;
  const uint8_t* tile =
      job.pages + job.page_table[token / job.page_size] * job.page_bytes +
      (static_cast<int64_t>(head) * (job.page_size / 32) + token % job.page_size / 32) * job.tile_bytes;
  bool replaced = false;
  const bool exact = token < job.exact_before || token >= job.exact_from;
  if (layout.raw() || (job.read && exact)) {
    const uint16_t* stored =
        reinterpret_cast<const uint16_t*>(tile + side.code_offset) + in_tile * layout.dim;
    for (int i = 0; i < layout.dim; i++) {
      const uint32_t bits = element_bits(job.source, hash, i, layout.dim);
      const uint32_t raw = raw_side_bits(type, bits, &replaced);
      uint32_t expected = raw, found = stored[i];
      if (job.read) {
        expected = exact                    ? exact_bits(type, bits, &replaced)
                   : type == DataType::kF32 ? float_bits(float_from_f16(static_cast<uint16_t>(raw)))
                                            : raw;
        found = type == DataType::kF32 ? static_cast<const uint32_t*>(job.read)[index * layout.dim + i]
                                       : static_cast<const uint16_t*>(job.read)[index * layout.dim + i];
      }
      if (found != expected)
        report(mismatch, token, head, i, static_cast<int>(expected), static_cast<int>(found));
    }
    return;
  }
  float x[kMaxDim];
  uint8_t codes[kMaxDim];
  uint16_t scale;
  for (int i = 0; i < layout.dim; i++) x[i] = bits_value(type, element_bits(job.source, hash, i, layout.dim));
  const VectorCoder coder = coder_of(side, head);
  encode_vector(coder, x, codes, &scale);
  if (job.read) {
    decode_vector(coder, codes, scale, x);
    for (int i = 0; i < layout.dim; i++) {
      uint32_t expected = type == DataType::kF32   ? float_bits(x[i])
                          : type == DataType::kF16 ? f16_from_float(x[i])
                                                   : bf16_from_float(x[i]);
      // beyond the largest number: that number
      if (type == DataType::kF16 && (expected & 0x7FFF) == 0x7C00) expected -= 1;
      const uint32_t found = type == DataType::kF32
                                 ? static_cast<const uint32_t*>(job.read)[index * layout.dim + i]
                                 : static_cast<const uint16_t*>(job.read)[index * layout.dim + i];
      if (found != expected)
        report(mismatch, token, head, i, static_cast<int>(expected), static_cast<int>(found));
    }
    return;
  }
  const uint16_t found_scale = reinterpret_cast<const uint16_t*>(tile + side.scale_offset)[in_tile];
  if (found_scale != scale) report(mismatch, token, head, -1, scale, found_scale);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(tile + side.code_offset);
  for (int i = 0; i < layout.stored; i++) {
    const uint32_t found =
        load_code(words, layout, code_place(layout, static_cast<Kind>(side.kind), in_tile, i));
    if (found != (codes[i] & ((1u << layout.bits) - 1)))
      report(mismatch, token, head, i, codes[i], static_cast<int>(found));
  }
}

// Rows of new tokens of one sequence, as the caller of append would have them.
__global__ void fill_kernel(Source source, int layer, int kind, int sequence, int first, int count, int heads,
                            int dim, void* base, int64_t row, int64_t token_stride, int64_t head_stride) {
  const int64_t total = static_cast<int64_t>(count) * heads * dim;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int i = static_cast<int>(at % dim), head = static_cast<int>(at / dim % heads),
              token = static_cast<int>(at / dim / heads);
    const uint32_t bits = element_bits(
        source, vector_hash(source, VectorId{layer, kind, sequence, first + token, head}), i, dim);
    const int64_t to = (row + token) * token_stride + head * head_stride + i;
    if (source.type == DataType::kF32)
      static_cast<uint32_t*>(base)[to] = bits;
    else
      static_cast<uint16_t*>(base)[to] = static_cast<uint16_t>(bits);
  }
}

}  // namespace gpu_test
