// SPDX-License-Identifier: Apache-2.0
// The trellis family, 2 to 4 bits (FORMAT.md sections 3.10 and 4; format/trellis.h is the definition): from a
// group's words, and those that its chains go through before it, to signed bytes.
//
// Opening: the coded bits of the positions one, two and three before are the plane of coded bits moved along
// its chains, for keys by a few bits within a word (the words of a chain's other lanes join in where a group
// holds several tokens), for values from word to word. One exclusive or of three then serves 32 codes.
//
// Expansion: bit k of nibble n of every plane belongs to one code. Planes turned by their own number are
// merged by selections alone: the selectors of the octet at bit k come out turned by k, and one shift each
// brings four of them in front of a byte permute. The sign is the index's top bit; below the middle the other
// bits are inverted, for the whole word at once, and so is the byte that was looked up.
#pragma once
#include "cuda/code/dispatch.cuh"
#include "cuda/ptx/bits.cuh"
#include "cuda/ptx/logic.cuh"
#include "format/trellis.h"

namespace tq {
namespace cuda {

// Where mask has bits a, else b.
__device__ __forceinline__ uint32_t choose(uint32_t mask, uint32_t a, uint32_t b) {
  return lop3<0xCA>(mask, a, b);
}
__device__ __forceinline__ uint32_t turn_left(uint32_t x, int count) {
  return funnel_right(x, x, (32 - count) & 31);
}

// The coset bits of a group's positions, in the places of its coded bits; the higher ones turned left by one.
struct Coset {
  uint32_t low, high;
};
__device__ __forceinline__ Coset coset_of(uint32_t own, uint32_t one, uint32_t two, uint32_t three) {
  return {two, turn_left(own ^ one ^ three, 1)};
}

// Words that lie before those of a lane in the chains of a block of the coded plane.
template <format::Kind kKind, int kJv>
struct ChainLead;

// Keys: a chain goes along the bits of a word, and through the words of 4 / kJv lanes.
template <int kJv>
struct ChainLead<format::Kind::kKey, kJv> {
  static constexpr int kStep = 4 / kJv, kLanes = 4 / kJv;
  uint32_t before[kJv == 4 ? 1 : kJv];  // of the lane before

  __device__ __forceinline__ ChainLead(const uint32_t* block, int lane) {
    const int last = (lane & ~(kLanes - 1)) | ((lane - 1) & (kLanes - 1));
#pragma unroll
    for (int jj = 0; jj < kJv && kJv < 4; jj++) before[jj] = block[last * kJv + jj];
  }
  __device__ __forceinline__ Coset coset(const uint32_t (&own)[kJv], int jj) const {
    if constexpr (kJv == 4) {
      const uint32_t u = own[jj], two = turn_left(u, 2);
      return {two, turn_left(u, 1) ^ two ^ turn_left(u, 4)};
    } else {
      return coset_between(before[jj], own[jj]);
    }
  }
  __device__ static __forceinline__ Coset coset_at(const uint32_t* block, int lane, int jj) {
    const int last = (lane & ~(kLanes - 1)) | ((lane - 1) & (kLanes - 1));
    return coset_between(block[last * kJv + jj], block[lane * kJv + jj]);
  }

 private:
  // last: the word of the lane before, which is the lane itself where a chain stays in a word.
  __device__ static __forceinline__ Coset coset_between(uint32_t last, uint32_t own) {
    const auto back = [&](int count) { return funnel_right(last, own, 32 - count * kStep); };
    return coset_of(own, back(1), back(2), back(3));
  }
};

// Values: from word to word of a lane, then to that of the next coordinate; where a chain comes back to its
// beginning, with four lanes' words behind it, it may go on as another octet.
template <int kJv>
struct ChainLead<format::Kind::kValue, kJv> {
  const uint32_t* block;
  int lane;

  __device__ __forceinline__ ChainLead(const uint32_t* block_words, int lane_)
      : block(block_words), lane(lane_) {}
  // The word `back` before the first: loaded where it is needed, which takes fewer registers.
  __device__ __forceinline__ uint32_t before(int back) const {
    const int lanes = (back + kJv - 1) / kJv, g = lane / 4 - lanes;
    const uint32_t w = block[((g & 7) * 4 + lane % 4) * kJv + lanes * kJv - back];
    uint32_t turned = w;
    if constexpr (kJv == 2) turned = choose(0xAAAAAAAAu, w << 1, w >> 1);
    if constexpr (kJv == 1) turned = choose(0xEEEEEEEEu, w << 1, w >> 3);
    return g < 0 ? turned : w;
  }
  __device__ __forceinline__ Coset coset(const uint32_t (&own)[kJv], int jj) const {
    const auto back = [&](int count) { return jj >= count ? own[jj - count] : before(count - jj); };
    return coset_of(own[jj], back(1), back(2), back(3));
  }
  __device__ static __forceinline__ Coset coset_at(const uint32_t* block, int lane, int jj) {
    const ChainLead lead(block, lane);
    return coset_of(lead.before(-jj), lead.before(1 - jj), lead.before(2 - jj), lead.before(3 - jj));
  }
};

template <int kBitsOfCode, int kJv>
struct TrellisCode {
  static constexpr format::CodeId kId = format::trellis_code(kBitsOfCode);
  static constexpr int kBits = kBitsOfCode;
  static constexpr int kWords = kBits;
  static constexpr bool kHalfLevels = kBits > 2;  // the level is the byte + 1/2
  static constexpr bool kWideExpansion = true;
  static constexpr int kTableWords = kBits == 4 ? 4 : 2;
  using Words = uint32_t[kWords];
  using Open = uint32_t[kBits + 1];  // coset bits (Coset), plain bits

  // words: of the side; planes are `stride` words apart.
  template <format::Kind kKind>
  __device__ static __forceinline__ void open(const uint32_t* words, int stride, int block, int lane, int jj,
                                              Open& w) {
    const uint32_t* const first = words + block * 32 * kJv;
    uint32_t own[kJv];
#pragma unroll
    for (int i = 0; i < kJv; i++) own[i] = first[lane * kJv + i];
    const ChainLead<kKind, kJv> lead(first, lane);
    Coset coset = {};
#pragma unroll
    for (int i = 0; i < kJv; i++)
      if (i == jj) coset = lead.coset(own, i);
    w[0] = coset.low;
    w[1] = coset.high;
#pragma unroll
    for (int i = 1; i < kBits; i++) w[i + 1] = first[lane * kJv + jj + i * stride];
  }

  // The same of one group whose jj follows from the lane: nothing is loaded that another group needs.
  template <format::Kind kKind>
  __device__ static __forceinline__ void open_one(const uint32_t* words, int stride, int block, int lane,
                                                  int jj, Open& w) {
    const uint32_t* const first = words + block * 32 * kJv;
    const Coset coset = ChainLead<kKind, kJv>::coset_at(first, lane, jj);
    w[0] = coset.low;
    w[1] = coset.high;
#pragma unroll
    for (int i = 1; i < kBits; i++) w[i + 1] = first[lane * kJv + jj + i * stride];
  }

  // f(bit, selectors turned left by it) for the four octets, a nibble a code: the level's index (2 bits) or
  // its magnitude's.
  template <class F>
  __device__ static __forceinline__ void for_octets(const Open& w, const F& f) {
    // Below the middle, where the index's top bit is 0, the others count downwards.
    const auto mirror = [](uint32_t x, uint32_t top) { return kHalfLevels ? ~(x ^ top) : x; };
    const uint32_t top = w[kBits], a = mirror(w[0], top), b = mirror(w[1], turn_left(top, 1)),
                   c = turn_left(mirror(w[2], top), 2), d = kBits == 4 ? turn_left(mirror(w[3], top), 3) : 0u;
    const uint32_t even = choose(0x55555555u, a, b), odd = choose(0xAAAAAAAAu, a, b),
                   high_even = choose(0x55555555u, c, d), high_odd = choose(0xAAAAAAAAu, c, d);
    f(0, choose(0x33333333u, even, high_even));
    f(1, choose(0x66666666u, odd, high_odd));
    f(2, choose(0xCCCCCCCCu, even, high_even));
    f(3, choose(0x99999999u, odd, high_odd));
  }

  // Four codes' bytes; m: selectors in its low half; plus: bytes of ones where the level is above the middle.
  __device__ static __forceinline__ uint32_t look_up(const ByteTable& table, uint32_t m, uint32_t plus) {
    const uint32_t low = prmt(table.word[0], table.word[1], m);
    if constexpr (kBits == 2) return low;
    if constexpr (kBits == 3) return lop3<0x99>(low, low, plus);  // ~(low ^ plus)
    // A selector's fourth bit asks for the sign of the byte, and magnitudes have none: it chooses the table.
    return lop3<0xA9>(low, prmt(table.word[2], table.word[3], m ^ 0x8888u), plus);  // ~((low | high) ^ plus)
  }

  // A group as 8 registers of signed bytes: register 2 s has positions 0-3 of octet s, 2 s + 1 positions 4-7.
  __device__ static __forceinline__ void bytes(const Open& w, const ByteTable& table, uint32_t (&r)[8]) {
    for_octets(w, [&](int bit, uint32_t turned) {
      const int s = octet_of(bit);
      uint32_t plus[2] = {};
      if constexpr (kHalfLevels) {  // tops of even and of odd nibbles at the tops of bytes, and spread
        const uint32_t even = w[kBits] << (7 - bit), odd = w[kBits] << (3 - bit);
        plus[0] = prmt(even, odd, 0xD9C8u);
        plus[1] = prmt(even, odd, 0xFBEAu);
      }
      r[2 * s] = look_up(table, funnel_right(turned, turned, bit), plus[0]);
      r[2 * s + 1] = look_up(table, funnel_right(turned, turned, bit + 16), plus[1]);
    });
  }

  __device__ static __forceinline__ float level(uint32_t byte) {
    return static_cast<float>(static_cast<int8_t>(byte)) + (kHalfLevels ? 0.5f : 0.0f);
  }

  // Words of a group of codes, the coded bit lowest.
  __device__ static __forceinline__ void pack(const Octets& o, Words& words) {
#pragma unroll
    for (int q = 0; q < kBits; q++) {
      uint32_t lo = 0, hi = 0;
#pragma unroll
      for (int s = 0; s < 4; s++) {
        lo |= (o.lo[s] >> q & 0x01010101u) << format::trellis_nibble_bit(kJv, s);
        hi |= (o.hi[s] >> q & 0x01010101u) << format::trellis_nibble_bit(kJv, s);
      }
      words[q] = nibbles_8(lo, hi);
    }
  }

 private:
  // Inverse of format::trellis_nibble_bit.
  __device__ static constexpr int octet_of(int bit) {
    for (int s = 0; s < 4; s++)
      if (format::trellis_nibble_bit(kJv, s) == bit) return s;
    return 0;
  }
};

// with_code of every code whose words are in the order of the integer kernels, of a side with kJv groups of a
// lane in one load.
template <int kJv, class F>
__device__ __forceinline__ void with_any_code(format::CodeId id, const F& f) {
  if (!id.trellis())
    with_code(id, f);
  else if (id.bits == 3)
    f(TrellisCode<3, kJv>());
  else if (id.bits == 2)
    f(TrellisCode<2, kJv>());
  else
    f(TrellisCode<4, kJv>());
}

// The bytes of a group. words: of the side; planes are `stride` words apart.
template <class OfCode, format::Kind kKind, int kJv>
__device__ __forceinline__ void group_bytes(const uint32_t* words, int stride, int block, int lane, int jj,
                                            const ByteTable& table, uint32_t (&r)[8]) {
  if constexpr (OfCode::kId.trellis()) {
    typename OfCode::Open w;
    OfCode::template open<kKind>(words, stride, block, lane, jj, w);
    OfCode::bytes(w, table, r);
  } else {
    typename OfCode::Words w;
    load_group<OfCode>(words + (block * 32 + lane) * kJv + jj, stride, w);
    OfCode::bytes(w, table, r);
  }
}

}  // namespace cuda
}  // namespace tq
