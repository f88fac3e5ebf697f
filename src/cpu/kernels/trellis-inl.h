// SPDX-License-Identifier: Apache-2.0
// Trellis sides on any Highway target: a tile's words opened into selectors.
//
// The coset planes c0, c1 are the plane of coded bits moved by one, two and three steps of its chains: along
// the bits of a word, and into it from the lane before (keys), or from word to word (values; the words in
// front of a block's first are its last ones, one bit further where a chain comes back to them). Selectors
// are the indexes' low four bits, one octet a word, so that a look-up takes them as they stand.
#if defined(TQ_CPU_TRELLIS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_TRELLIS_INL_H_
#undef TQ_CPU_TRELLIS_INL_H_
#else
#define TQ_CPU_TRELLIS_INL_H_
#endif

#include "cpu/kernels/expand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

// The coded bits of the positions one, two and three before.
struct ChainBits {
  VU32 one, two, three;
};

template <int kJv>
HWY_INLINE ChainBits key_chain(VU32 w) {
  constexpr int kStep = 4 / kJv;
  const VU32 before = kJv == 4 ? w : kJv == 2 ? hn::Shuffle1032(w) : hn::Shuffle2103(w);
  return {hn::Or(hn::ShiftLeft<kStep>(w), hn::ShiftRight<32 - kStep>(before)),
          hn::Or(hn::ShiftLeft<2 * kStep>(w), hn::ShiftRight<32 - 2 * kStep>(before)),
          hn::Or(hn::ShiftLeft<3 * kStep>(w), hn::ShiftRight<32 - 3 * kStep>(before))};
}

constexpr int kChainLead = 16;  // words in front of a block of values

// words: behind kChainLead others, or further words of the block.
template <int kJv>
HWY_INLINE ChainBits value_chain(const uint32_t* HWY_RESTRICT words) {
  const DU32 d;
  const VU32 w = hn::LoadU(d, words), before = hn::LoadU(d, words - 4 * kJv);
  if constexpr (kJv == 4) {
    return {hn::CombineShiftRightBytes<12>(d, w, before), hn::CombineShiftRightBytes<8>(d, w, before),
            hn::CombineShiftRightBytes<4>(d, w, before)};
  } else if constexpr (kJv == 2) {
    const hn::Repartition<uint64_t, DU32> d64;
    const auto step = [&](VU32 own, VU32 earlier) HWY_ATTR {
      return hn::BitCast(
          d, hn::Or(hn::ShiftRight<32>(hn::BitCast(d64, earlier)), hn::ShiftLeft<32>(hn::BitCast(d64, own))));
    };
    return {step(w, before), before, step(before, hn::LoadU(d, words - 16))};
  } else {
    return {before, hn::LoadU(d, words - 8), hn::LoadU(d, words - 12)};
  }
}

// Bits of even and odd octets of two planes, in pairs.
struct Pairs {
  VU32 even, odd;

  HWY_INLINE Pairs(VU32 low, VU32 high)
      : even(hn::Or(mask_bits(low, 0x55555555u), hn::ShiftLeft<1>(mask_bits(high, 0x55555555u)))),
        odd(hn::Or(mask_bits(hn::ShiftRight<1>(low), 0x55555555u), mask_bits(high, 0xAAAAAAAAu))) {}
};

// Selectors of one vector of words; planes of the words and of the selectors are `plane` apart.
template <int kBits, int kJv>
HWY_INLINE void open_vector(VU32 coded, ChainBits before, const uint32_t* HWY_RESTRICT words, int64_t plane,
                            uint32_t* HWY_RESTRICT selectors) {
  const DU32 d;
  const VU32 c1 = hn::Xor(hn::Xor(coded, before.one), before.three);
  const VU32 low = hn::LoadU(d, words + plane),
             high = kBits == 2 ? hn::Zero(d) : hn::LoadU(d, words + 2 * plane);
  const Pairs coset(before.two, c1), plain(low, high);
  constexpr uint32_t kLow = 0x33333333u, kHigh = 0xCCCCCCCCu;
  const VU32 by_bit[4] = {
      hn::Or(mask_bits(coset.even, kLow), hn::ShiftLeft<2>(mask_bits(plain.even, kLow))),
      hn::Or(mask_bits(coset.odd, kLow), hn::ShiftLeft<2>(mask_bits(plain.odd, kLow))),
      hn::Or(mask_bits(hn::ShiftRight<2>(coset.even), kLow), mask_bits(plain.even, kHigh)),
      hn::Or(mask_bits(hn::ShiftRight<2>(coset.odd), kLow), mask_bits(plain.odd, kHigh))};
  for (int s = 0; s < 4; s++)
    hn::StoreU(by_bit[format::trellis_nibble_bit(kJv, s)], d, selectors + s * plane);
  if constexpr (kBits == 4) hn::StoreU(hn::LoadU(d, words + 3 * plane), d, selectors + 4 * plane);
}

// One step further in the chain that ends where another begins.
template <int kJv>
HWY_INLINE VU32 next_turn(VU32 w) {
  if constexpr (kJv == 4) return w;
  if constexpr (kJv == 2)
    return hn::Or(mask_bits(hn::ShiftLeft<1>(w), 0xAAAAAAAAu), mask_bits(hn::ShiftRight<1>(w), 0x55555555u));
  return hn::Or(mask_bits(hn::ShiftLeft<1>(w), 0xEEEEEEEEu), mask_bits(hn::ShiftRight<3>(w), 0x11111111u));
}

template <int kBits, int kJv>
void open_jv(const CodedSide& side, const uint32_t* HWY_RESTRICT words, uint32_t* HWY_RESTRICT selectors) {
  const DU32 d;
  constexpr int kBlock = 32 * kJv;
  const int lanes = static_cast<int>(hn::Lanes(d)), blocks = side.layout.jb;
  const int64_t plane = static_cast<int64_t>(blocks) * kBlock;
  if (side.kind == Kind::kKey) {
    for (int64_t i = 0; i < plane; i += lanes) {
      const VU32 w = hn::LoadU(d, words + i);
      open_vector<kBits, kJv>(w, key_chain<kJv>(w), words + i, plane, selectors + i);
    }
    return;
  }
  alignas(64) uint32_t chain[kChainLead + kBlock];
  for (int block = 0; block < blocks; block++, words += kBlock, selectors += kBlock) {
    for (int i = 0; i < kChainLead; i += lanes)
      hn::Store(next_turn<kJv>(hn::LoadU(d, words + kBlock - kChainLead + i)), d, chain + i);
    for (int i = 0; i < kBlock; i += lanes) hn::Store(hn::LoadU(d, words + i), d, chain + kChainLead + i);
    for (int i = 0; i < kBlock; i += lanes)
      open_vector<kBits, kJv>(hn::Load(d, chain + kChainLead + i), value_chain<kJv>(chain + kChainLead + i),
                              words + i, plane, selectors + i);
  }
}

template <int kBits>
void open_trellis(const CodedSide& side, const uint8_t* words, uint32_t* selectors) {
  const uint32_t* from = reinterpret_cast<const uint32_t*>(words);
  if (side.layout.jv == 4) return open_jv<kBits, 4>(side, from, selectors);
  if (side.layout.jv == 2) return open_jv<kBits, 2>(side, from, selectors);
  open_jv<kBits, 1>(side, from, selectors);
}

// CodeKernels::open of a code.
template <size_t kIndex>
constexpr auto opening() -> decltype(CodeKernels::open) {
  if constexpr (format::kCodes[kIndex].trellis())
    return open_trellis<format::kCodes[kIndex].bits>;
  else
    return nullptr;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
