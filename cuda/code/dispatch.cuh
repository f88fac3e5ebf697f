// SPDX-License-Identifier: Apache-2.0
// From a code's number at run time to its Code at compile time. Kernels call what Code offers and ask for widths
// nowhere else; a new family is a file beside scalar.cuh and lines here.
#pragma once
#include "cuda/code/scalar.cuh"

namespace tq {
namespace cuda {

// kId: format's number of a code that is not raw.
//   kWords                            words of a group: 32 codes of one lane, decoded together
//   kHalfLevels                       levels are bytes + 1/2
//   bytes(words, table, r)            a group -> 8 registers of signed bytes, matrix operands
//   halves(words, tables, h)          a group -> 16 registers of two halves
//   level(byte)                       what a byte stands for
//   pack(octets, words)               codes of a group -> words
template <int kId>
struct Code : ScalarCode<kId> {};

// A group's words, `stride` words apart.
template <class OfCode>
__device__ __forceinline__ void load_group(const uint32_t* words, int stride, uint32_t (&w)[OfCode::kWords]) {
#pragma unroll
  for (int i = 0; i < OfCode::kWords; i++) w[i] = words[i * stride];
}

// f(Code<id>()). The usual widths first: hot loops come here once a group. Ids are checked where a cache is made
// (format::is_code_bits); raw sides do not come here.
template <class F>
__device__ __forceinline__ void with_code(int id, const F& f) {
  if (id == 4)
    f(Code<4>());
  else if (id == 3)
    f(Code<3>());
  else if (id == 2)
    f(Code<2>());
  else if (id == 8)
    f(Code<8>());
  else if (id == 6)
    f(Code<6>());
  else
    f(Code<5>());
}

}  // namespace cuda
}  // namespace tq
