// SPDX-License-Identifier: Apache-2.0
// From a code's id at run time to its Code at compile time. Kernels call what Code offers and ask for
// families and widths nowhere else; a new family is a file beside scalar.cuh, a specialisation and lines in
// with_code.
//
// The unit is the group: 32 codes that share the words of one lane. No caller picks a code out of its words.
#pragma once
#include "cuda/code/scalar.cuh"

namespace tq {
namespace cuda {

// Of a coded family (raw sides are rows of numbers: raw.cuh).
//   kId, kBits, kWords                what it is; words of a group
//   kHalfLevels                       levels are bytes + 1/2
//   bytes(words, table, r)            a group -> 8 registers of signed bytes, matrix operands
//   halves(words, tables, h)          a group -> 16 registers of two halves
//   level(byte)                       what a byte stands for
//   pack(octets, words)               codes of a group -> its words
// How codes are chosen for a vector stands in <family>_fit.cuh.
template <format::CodeFamily kFamily, int kBits>
struct Code;
template <int kBits>
struct Code<format::CodeFamily::kScalar, kBits> : ScalarCode<kBits> {};

template <int kBits>
using Scalar = Code<format::CodeFamily::kScalar, kBits>;

// f(Code()). The usual widths first: hot loops come here once a group. Which ids exist is checked where a
// cache is made (format::code_index).
template <class F>
__device__ __forceinline__ void with_code(format::CodeId id, const F& f) {
  if (id.bits == 4)
    f(Scalar<4>());
  else if (id.bits == 3)
    f(Scalar<3>());
  else if (id.bits == 2)
    f(Scalar<2>());
  else if (id.bits == 8)
    f(Scalar<8>());
  else if (id.bits == 6)
    f(Scalar<6>());
  else
    f(Scalar<5>());
}

// A group's words, `stride` words apart.
template <class OfCode>
__device__ __forceinline__ void load_group(const uint32_t* words, int stride, uint32_t (&w)[OfCode::kWords]) {
#pragma unroll
  for (int i = 0; i < OfCode::kWords; i++) w[i] = words[i * stride];
}

}  // namespace cuda
}  // namespace tq
