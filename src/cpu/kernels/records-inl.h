// SPDX-License-Identifier: Apache-2.0
// Codes of records to integers, and integer dot products with them, in SIMD; included once per instruction
// set.
//
// Unpacking, any width: 8 codes are `bits` bytes. Each code's two bytes are brought into a 16-bit lane, a
// product shifts its lowest bit to the same place in all lanes, a shift right leaves the code. Groups of 8
// are short work beside the dot products, which run in the widest vectors.
#if defined(TQ_CPU_RECORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_RECORDS_INL_H_
#undef TQ_CPU_RECORDS_INL_H_
#else
#define TQ_CPU_RECORDS_INL_H_
#endif

#include "cpu/kernels/kernels.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <int kBits>
HWY_INLINE void unpack_width(const uint8_t* HWY_RESTRICT packed, int count, uint8_t* HWY_RESTRICT codes) {
  using DB = hn::FixedTag<uint8_t, 16>;
  using DH = hn::FixedTag<uint16_t, 8>;
  alignas(16) uint8_t pick[16];
  alignas(16) uint16_t factor[8];
  for (int i = 0; i < 8; i++) {
    pick[2 * i] = static_cast<uint8_t>(i * kBits / 8);
    pick[2 * i + 1] = static_cast<uint8_t>(pick[2 * i] + 1);
    factor[i] = static_cast<uint16_t>(1 << (16 - kBits - i * kBits % 8));
  }
  const auto bytes = hn::Load(DB(), pick);
  const auto factors = hn::Load(DH(), factor);
  const uint8_t* const end = packed + format::packed_bytes(kBits, count);
  for (int i = 0; i < count; i += 8, packed += kBits) {
    uint64_t eight = 0;
    if (end - packed >= 8)
      memcpy(&eight, packed, 8);
    else
      memcpy(&eight, packed, kBits);
    const auto both = hn::BitCast(DB(), hn::Set(hn::FixedTag<uint64_t, 2>(), eight));
    const auto lanes = hn::BitCast(DH(), hn::TableLookupBytes(both, bytes));
    const auto code = hn::ShiftRight<16 - kBits>(hn::Mul(lanes, factors));
    hn::StoreU(hn::DemoteTo(hn::FixedTag<uint8_t, 8>(), hn::BitCast(hn::FixedTag<int16_t, 8>(), code)),
               hn::FixedTag<uint8_t, 8>(), codes + i);
  }
}

void unpack_codes(const uint8_t* packed, int bits, int count, uint8_t* codes) {
  using Unpack = void (*)(const uint8_t*, int, uint8_t*);
  static constexpr Unpack kWidths[] = {unpack_width<1>, unpack_width<2>, unpack_width<3>, unpack_width<4>,
                                       unpack_width<5>, unpack_width<6>, unpack_width<7>};
  if (bits == 8)
    memcpy(codes, packed, count);
  else
    kWidths[bits - 1](packed, count, codes);
}

// Twice the signed levels of 16 codes whose level bytes (less 1/2 where `half` is 1) are these.
HWY_INLINE void store_doubled(hn::Vec<hn::FixedTag<int8_t, 16>> level, int half, int16_t* values) {
  const hn::FixedTag<int16_t, 8> d;
  const hn::Half<hn::FixedTag<int8_t, 16>> d8;
  const auto add = hn::Set(d, static_cast<int16_t>(half));
  const auto lower = hn::PromoteTo(d, hn::LowerHalf(level)),
             upper = hn::PromoteTo(d, hn::UpperHalf(d8, level));
  hn::Store(hn::Add(hn::Add(lower, lower), add), d, values);
  hn::Store(hn::Add(hn::Add(upper, upper), add), d, values + 8);
}

// 7 and 8 bits: the code is its level.
HWY_INLINE void double_grid(int bits, const uint8_t* codes, int count, int16_t* values) {
  const hn::FixedTag<uint8_t, 16> d;
  // the sign of 7 bits is bit 6, and goes to bit 7 as well
  const auto sign = hn::Set(d, static_cast<uint8_t>(bits == 7 ? 0x40 : 0));
  for (int i = 0; i < count; i += 16) {
    const auto code = hn::LoadU(d, codes + i), minus = hn::And(code, sign);
    store_doubled(hn::BitCast(hn::FixedTag<int8_t, 16>(), hn::Or(code, hn::Add(minus, minus))), 0,
                  values + i);
  }
}

void double_levels(const format::Codebook& book, const uint8_t* codes, int count, int16_t* values) {
  if (format::code_is_level(book.bits)) return double_grid(book.bits, codes, count, values);
  const hn::FixedTag<uint8_t, 16> d;
  static_assert(format::kMaxMagnitudes == 32, "two tables of 16");
  const auto few = hn::LoadU(d, book.magnitude), more = hn::LoadU(d, book.magnitude + 16);
  const auto sign = hn::Set(d, static_cast<uint8_t>(1 << (book.bits - 1))), fifteen = hn::Set(d, 15),
             sixteen = hn::Set(d, 16);
  const auto index = hn::Sub(sign, hn::Set(d, 1));
  const bool half = book.half();
  for (int i = 0; i < count; i += 16) {
    const auto code = hn::LoadU(d, codes + i), j = hn::And(code, index), low = hn::And(j, fifteen);
    auto magnitude = hn::TableLookupBytes(few, low);
    if (book.bits == 6)
      magnitude =
          hn::IfThenElse(hn::Eq(hn::And(j, sixteen), sixteen), hn::TableLookupBytes(more, low), magnitude);
    const auto minus = hn::VecFromMask(d, hn::Eq(hn::And(code, sign), sign));
    auto level = hn::Xor(magnitude, minus);  // half-integers: negation is a bitwise NOT of the byte
    if (!half) level = hn::Sub(level, minus);
    store_doubled(hn::BitCast(hn::FixedTag<int8_t, 16>(), level), half ? 1 : 0, values + i);
  }
}

// 16-bit products are added to 32-bit lanes for as long as these hold: a lane of at least 4 takes two
// products of up to 32767 * 255 for every 8 values.
constexpr int kExactValues = 1024;
static_assert(kExactValues / 8 * 2ll * 32767 * 255 < 1ll << 31, "sums fit int32");

template <int kRows>
HWY_INLINE void dot_rows_of(const int16_t* HWY_RESTRICT q, int64_t stride, const int16_t* HWY_RESTRICT values,
                            int count, int64_t* HWY_RESTRICT sums) {
  const hn::CappedTag<int16_t, 32> d16;
  const hn::Repartition<int32_t, decltype(d16)> d32;
  const int lanes = static_cast<int>(hn::Lanes(d16));
  for (int r = 0; r < kRows; r++) sums[r] = 0;
  for (int first = 0; first < count; first += kExactValues) {
    const int end = count - first < kExactValues ? count : first + kExactValues;
    auto a = hn::Zero(d32), b = hn::Zero(d32), c = hn::Zero(d32), e = hn::Zero(d32);
    auto a1 = hn::Zero(d32), b1 = hn::Zero(d32), c1 = hn::Zero(d32), e1 = hn::Zero(d32);
    for (int i = first; i < end; i += lanes) {
      const auto v = hn::Load(d16, values + i);
      a = hn::ReorderWidenMulAccumulate(d32, hn::Load(d16, q + i), v, a, a1);
      if constexpr (kRows > 1)
        b = hn::ReorderWidenMulAccumulate(d32, hn::Load(d16, q + stride + i), v, b, b1);
      if constexpr (kRows > 2) {
        c = hn::ReorderWidenMulAccumulate(d32, hn::Load(d16, q + 2 * stride + i), v, c, c1);
        e = hn::ReorderWidenMulAccumulate(d32, hn::Load(d16, q + 3 * stride + i), v, e, e1);
      }
    }
    const auto total = [&](decltype(a) x, decltype(a) y) {
      alignas(64) int32_t lane[32];
      const int n = static_cast<int>(hn::Lanes(d32));
      hn::Store(x, d32, lane);
      hn::Store(y, d32, lane + n);
      int64_t sum = 0;
      for (int i = 0; i < 2 * n; i++) sum += lane[i];
      return sum;
    };
    sums[0] += total(a, a1);
    if constexpr (kRows > 1) sums[1] += total(b, b1);
    if constexpr (kRows > 2) {
      sums[2] += total(c, c1);
      sums[3] += total(e, e1);
    }
  }
}

void dot_values(const int16_t* q, int64_t stride, int rows, const int16_t* values, int count, int64_t* sums) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) dot_rows_of<4>(q + r * stride, stride, values, count, sums + r);
  for (; r + 2 <= rows; r += 2) dot_rows_of<2>(q + r * stride, stride, values, count, sums + r);
  if (r < rows) dot_rows_of<1>(q + r * stride, stride, values, count, sums + r);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
