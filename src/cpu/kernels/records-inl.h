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
    alignas(16) uint8_t eight[16] = {};
    memcpy(eight, packed, end - packed >= 8 ? 8 : kBits);
    const auto lanes = hn::BitCast(DH(), hn::TableLookupBytes(hn::Load(DB(), eight), bytes));
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

void double_levels(const format::Codebook& book, const uint8_t* codes, int count, int16_t* values) {
  using DB = hn::FixedTag<uint8_t, 16>;
  using DI = hn::FixedTag<int8_t, 16>;
  using DH = hn::FixedTag<int16_t, 8>;
  const DB db;
  const DI di;
  const DH dh;
  const bool is_level = format::code_is_level(book.bits);
  const int tables = is_level ? 0 : book.bits <= 4 ? 1 : 1 << (book.bits - 4);
  alignas(16) int8_t table[64];
  for (int i = 0; i < 16 * tables; i++)
    table[i] = format::level_byte(book, static_cast<uint32_t>(i) & ((1u << book.bits) - 1));
  const auto half = hn::Set(dh, book.half() ? 1 : 0);
  for (int i = 0; i < count; i += 16) {
    const auto code = hn::LoadU(db, codes + i);
    auto level = hn::BitCast(di, code);
    if (is_level) {
      if (book.bits == 7) {  // its sign is bit 6
        const auto sign = hn::And(code, hn::Set(db, 0x40));
        level = hn::BitCast(di, hn::Or(code, hn::Add(sign, sign)));
      }
    } else {
      const auto low = hn::And(code, hn::Set(db, 15));
      level = hn::BitCast(di, hn::TableLookupBytes(hn::Load(db, reinterpret_cast<uint8_t*>(table)), low));
      for (int t = 1; t < tables; t++) {
        const auto other =
            hn::TableLookupBytes(hn::Load(db, reinterpret_cast<uint8_t*>(table) + 16 * t), low);
        const auto mine = hn::Eq(hn::Sub(code, low), hn::Set(db, static_cast<uint8_t>(16 * t)));
        level = hn::BitCast(di, hn::IfThenElse(mine, other, hn::BitCast(db, level)));
      }
    }
    const auto lower = hn::PromoteTo(dh, hn::LowerHalf(level)),
               upper = hn::PromoteTo(dh, hn::UpperHalf(hn::Half<DI>(), level));
    hn::Store(hn::Add(hn::Add(lower, lower), half), dh, values + i);
    hn::Store(hn::Add(hn::Add(upper, upper), half), dh, values + i + 8);
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
