// SPDX-License-Identifier: Apache-2.0
// A warp and tokens of a trellis side: rotated one after the other, their chains searched side by side
// (code/trellis_fit.cuh), and coded. The codes go where those of scalar sides go, into rows or columns of
// bytes in shared memory; kernels for codes by rows have them, others have none of their code.
#pragma once
#include "cuda/append/token.cuh"
#include "cuda/code/trellis_fit.cuh"

namespace tq::cuda::append {

template <int kStored>
struct TrellisShape {
  static constexpr int kChains = kStored / format::kChain;
  // vectors of a warp at a time: of bands it has whole tiles
  static constexpr int kTogether = kChains >= 4 ? 32 / kChains : kChains == 1 ? 32 : 8;
  static constexpr int kCapacity = kChains * kTogether;
  static constexpr int kWarpBytes = code::TrellisWork::bytes(kCapacity);
};

// Of a launch with trellis sides, beside the kernel's own arrays.
template <int kStored>
constexpr int trellis_shared_bytes() {
  return kWarps * TrellisShape<kStored>::kWarpBytes;
}

// Where the codes of a token go.
struct CodeTarget {
  uint8_t* first;  // of token 0
  int token_step, coordinate_step;
  bool columns;  // tokens in the order of value octets

  __device__ __forceinline__ uint8_t* of(int token) const {
    return first + (columns ? value_position(token) : token) * token_step;
  }
};

// Codes of y, which it destroys, along the paths that were found: the chains first, first + 1, ... of work;
// returns what the scale is fitted to.
template <int kStored, int kBits>
__device__ __forceinline__ format::QuantiseResult code_paths(const format::Codebook& book,
                                                             const code::TrellisWork& work, int kind,
                                                             int first, float inverse,
                                                             float (&y)[kStored / 32], uint8_t* to, int step,
                                                             int lane) {
  constexpr int kRegs = kStored / 32, kJv = SideWords<kStored>::kJv;
  float products[kRegs];
  int four_qq = 0;
#pragma unroll
  for (int r = 0; r < kRegs; r++) {
    const int i = lane + 32 * r, place = format::trellis_place(static_cast<Kind>(kind), kJv, i),
              q = code::eighths(y[r], inverse);
    const code::CodedPlace at(work.coded[first + place / format::kChain], place % format::kChain);
    const uint32_t plain = static_cast<uint32_t>(code::nearest_plain<kBits>(q, at.coset));
    to[i * step] = static_cast<uint8_t>(plain << 1 | at.bit);
    const float level = format::code_level(book, format::trellis_level_code(kBits, plain << 2 | at.coset));
    const int twice = static_cast<int>(2 * level);
    four_qq += twice * twice;
    products[r] = format::mul_rn(y[r], level);
    y[r] = level;
  }
  float dot[1] = {code::lane_tree<kStored>(products)};
  code::warp_tree<1>(dot);
  four_qq = __reduce_add_sync(code::kFullWarp, four_qq);
  return format::QuantiseResult{dot[0], format::mul_rn(static_cast<float>(four_qq), 0.25f)};
}

// Where the tokens of a side come from.
template <bool kTurns>
struct WholeTokens {
  template <int kStored>
  __device__ __forceinline__ bool load(const AppendParams& args, const DeviceSide& side, const TileJob& job,
                                       int token, float (&y)[kStored / 32], int lane) const {
    return load_token<kStored, kTurns>(args, side, job, token, y, lane);
  }
};

// Tokens first, first + stride, ... of a job, `count` of them. Not inlined, job and target by value: as
// encode_row. Returns whether a value was replaced.
template <int kStored, class Tokens>
__device__ __noinline__ bool encode_trellis(const AppendParams& args, const DeviceSide& side,
                                            const TileJob job, const Tokens tokens, int first, int stride,
                                            int count, const CodeTarget target, uint16_t* scales, int lane) {
  using Shape = TrellisShape<kStored>;
  constexpr int kRegs = kStored / 32, kJv = SideWords<kStored>::kJv, kChains = Shape::kChains;
  const code::TrellisWork work(Shape::kCapacity);
  const Kind kind = static_cast<Kind>(job.kind);
  bool replaced = false;
  float n2 = 0.0f;  // lane v: of vector v
  int exponent = 0;
  bool zero = true;
#pragma unroll 1
  for (int v = 0; v < count; v++) {
    float y[kRegs];
    uint32_t signs[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++) signs[r] = side.signs[job.head * side.sign_stride + r];
    replaced |= tokens.template load<kStored>(args, side, job, first + v * stride, y, lane);
    int own_exponent = 0;
    const bool there = code::rotate_warp<kStored>(y, signs, lane, &own_exponent);
    float squares[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      if (!there) y[r] = 0.0f;
      squares[r] = format::mul_rn(y[r], y[r]);
      const int place = format::trellis_place(kind, kJv, lane + 32 * r);
      work.y[(v * kChains + place / format::kChain) * code::kChainPitch + place % format::kChain] = y[r];
    }
    float sum[1] = {code::lane_tree<kStored>(squares)};
    code::warp_tree<1>(sum);
    if (lane == v) {
      n2 = sum[0];
      exponent = own_exponent;
      zero = !there;
      const float rms = format::sqrt_rn(format::div_rn(sum[0], static_cast<float>(kStored)));
      work.base[v] = there ? format::mul_rn(rms, side.book.unit) : 1.0f;
    }
  }
  __syncwarp();
  const int steps = format::num_trellis_steps(side.rule, side.search != 0);
  code::with_trellis_bits(side.layout.bits, [&](auto width) {
    code::search_trellis<decltype(width)::value>(Shape::kCapacity, count, kChains, steps, lane);
  });
#pragma unroll 1
  for (int v = 0; v < count; v++) {
    const int token = first + v * stride;
    const bool of_zero = __shfl_sync(code::kFullWarp, zero ? 1 : 0, v) != 0;
    uint8_t* to = target.of(token);
    if (of_zero) {
#pragma unroll
      for (int r = 0; r < kRegs; r++) to[(lane + 32 * r) * target.coordinate_step] = 0;
      if (lane == 0) scales[token] = 0;
      continue;
    }
    float y[kRegs];
#pragma unroll
    for (int r = 0; r < kRegs; r++) {
      const int place = format::trellis_place(kind, kJv, lane + 32 * r);
      y[r] = work.y[(v * kChains + place / format::kChain) * code::kChainPitch + place % format::kChain];
    }
    const float inverse = code::inverse_step(work.step[v]);
    format::ScalarFit fit;
    fit.paper = work.base[v];
    fit.kept = code::with_trellis_bits(side.layout.bits, [&](auto width) {
      return code_paths<kStored, decltype(width)::value>(side.book, work, job.kind, v * kChains, inverse, y,
                                                         to, target.coordinate_step, lane);
    });
    if (format::fits_kept_part(side.rule, side.layout.dim, kStored))
      fit.kept.qq = code::kept_square_warp<kStored>(y, side.layout.dim, lane);
    const float s = format::fitted_scale(side.rule, fit.kept, __shfl_sync(code::kFullWarp, n2, v), fit.paper);
    const uint16_t scale = code::stored_scale<kStored>(s, __shfl_sync(code::kFullWarp, exponent, v));
    if (lane == 0) scales[token] = scale;
  }
  __syncwarp();  // the chains may be overwritten
  return replaced;
}

// The same of any number of tokens.
template <int kStored, class Tokens>
__device__ __forceinline__ bool encode_trellis_tokens(const AppendParams& args, const DeviceSide& side,
                                                      const TileJob& job, int first, int stride,
                                                      const CodeTarget& target, uint16_t* scales, int lane,
                                                      const Tokens& tokens) {
  constexpr int kTogether = TrellisShape<kStored>::kTogether;
  bool replaced = false;
  for (int token = first; token < job.end; token += kTogether * stride)
    replaced |= encode_trellis<kStored>(args, side, job, tokens, token, stride,
                                        min(kTogether, (job.end - token + stride - 1) / stride), target,
                                        scales, lane);
  return replaced;
}

}  // namespace tq::cuda::append
