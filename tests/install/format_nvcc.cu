// SPDX-License-Identifier: Apache-2.0
// The format headers under nvcc: every one included, the encoder and decoder instantiated in a kernel.
// Compiled, never run: GPU runs are in tests/gpu.
#include "format/codebook.h"
#include "format/encode.h"
#include "format/hd.h"
#include "format/rotation.h"
#include "format/scalar.h"
#include "format/tile_layout.h"
#include "requests.h"
#include "softmax_state.h"

__global__ void encode_kernel(tq::format::VectorCoder coder, const float* x, uint8_t* codes, uint16_t* scale,
                              float* back, bool* replaced) {
  *replaced = tq::format::encode_vector(coder, x, codes, scale);
  tq::format::decode_vector(coder, codes, *scale, back);
}

__global__ void pack_kernel(tq::format::SideLayout side, tq::format::Kind kind, const uint8_t* codes,
                            uint32_t* words, uint32_t* back) {
  const int token = blockIdx.x, coordinate = threadIdx.x;
  const tq::format::CodePlace at = tq::format::code_place(side, kind, token, coordinate);
  tq::format::store_code(words, side, at, codes[token * side.stored + coordinate]);
  *back = tq::format::load_code(words, side, at);
}

__global__ void merge_kernel(tq::SoftmaxState a, tq::SoftmaxState b, float* lse) {
  *lse = tq::lse_of(tq::merge_weights(a, b).state);
}
