// SPDX-License-Identifier: Apache-2.0
// Where everything lies in a tile (FORMAT.md sections 1 and 4): sizes, offsets, and the map between a code's
// place in the words and its (token, coordinate). All constexpr; nothing here touches memory.
//
// The words are the B operands of mma.m16n8k32 in lane order, so that a GPU lane loads its operands with one
// wide load and a CPU vector of 16 words holds whole lanes. jv consecutive groups of one lane share a
// 4*jv-byte load; inside such a load the token block changes slowest, which gives every head_dim the same
// number of partial sums a tile (8 vectors of 16 on 512-bit SIMD).
#pragma once
#include "format/code.h"

namespace tq {
namespace format {

constexpr int kLanes = 32;
constexpr int kMaxDim = 576;         // of a cache
constexpr int kMaxVectorDim = 8192;  // of the encoder: vectors on their own are coded by the same text
constexpr int kScaleBytes = 2 * kTileTokens;  // one 16-bit number for each token

// Those with a codebook of their own.
constexpr int kHeadDims[] = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576};

// What d may be: a multiple of 4 from 8 to 256, and larger ones of the list.
constexpr bool is_head_dim(int d) {
  if (d <= 256) return d >= 8 && d % 4 == 0;
  for (int x : kHeadDims)
    if (x == d) return true;
  return false;
}
// as messages say it
constexpr char kHeadDimText[] =
    "a multiple of 4 from 8 to 256 (stored as the next multiple of 32), 512 or 576";

enum class Kind : int32_t { kKey = 0, kValue = 1 };

// Stored dimension D of a coded side.
constexpr int stored_dim(int d) { return (d + 31) / 32 * 32; }

// D = odd * 2^log2n.
constexpr int log2_block(int stored) {
  int k = 0;
  while (stored % 2 == 0) {
    stored /= 2;
    k++;
  }
  return k;
}
constexpr int odd_factor(int stored) { return stored >> log2_block(stored); }

// gcd(J, 4) of J = D / 32.
TQ_HD constexpr int lane_groups(int stored) {
  return stored / kGroupCodes % 4 == 0 ? 4 : stored / kGroupCodes % 2 == 0 ? 2 : 1;
}

// One side (keys or values) of a tile.
struct SideLayout {
  int dim;            // d, as the caller sees it
  int stored;         // D; equals d where nothing is rotated
  int bits;           // of the code
  int group;          // of the code
  int groups;         // J = D / 32; 0 for sides by rows
  int jv;             // gcd(J, 4): groups of one lane in one load
  int jb;             // J / jv
  CodeFamily family;  // of the code
  uint32_t bands;     // of the code; what bands have of words and scales: SidePart

  constexpr SideLayout(int head_dim, CodeId code)
      : dim(head_dim),
        stored(code.rotated() ? stored_dim(head_dim) : head_dim),
        bits(code.bits),
        group(code.group),
        groups(code.by_rows() || code.banded() ? 0 : stored / kGroupCodes),
        jv(code.by_rows() || code.banded() ? 1 : lane_groups(stored)),
        jb(groups / jv),
        family(code.family),
        bands(code.bands) {}
  constexpr SideLayout(int head_dim, int code_bits) : SideLayout(head_dim, code_of_bits(code_bits)) {}

  constexpr CodeId code() const { return CodeId{family, bits, group, bands}; }
  constexpr bool raw() const { return family == CodeFamily::kRaw; }
  constexpr bool by_rows() const { return code().by_rows(); }
  constexpr bool banded() const { return code().banded(); }
  // 32-bit words of a token: its row, or its share of the words.
  constexpr int row_words() const { return banded() ? bits : (stored * bits + 31) / 32; }
  constexpr int row_bytes() const { return 4 * row_words(); }
  constexpr int code_bytes() const { return kTileTokens * row_bytes(); }
  // 16-bit numbers: one scale, or scale and norm, or a scale and a zero for each group.
  constexpr int scales_per_token() const {
    return raw()                         ? 0
           : banded()                    ? num_bands()
           : family == CodeFamily::kProd ? 2
           : group > 0                   ? 2 * num_groups()
                                         : 1;
  }
  constexpr int num_groups() const { return (dim + group - 1) / group; }
  // Sides that words and scales of this one consist of, one after the other: its bands, or itself.
  constexpr int num_bands() const { return banded() ? stored / kGroupCodes : 0; }
  constexpr int num_parts() const { return banded() ? num_bands() : 1; }
  constexpr int band_bits(int band) const { return format::band_bits(bands, band); }
  // Sum of the widths of the bands before this one.
  constexpr int bits_before(int band) const {
    int sum = 0;
    for (int i = 0; i < band; i++) sum += band_bits(i);
    return sum;
  }
  constexpr int scale_bytes() const { return kScaleBytes * scales_per_token(); }
  // Word i of group (jb_, jj) of a lane.
  constexpr int word_index(int i, int jb_, int lane, int jj) const {
    return ((i * jb + jb_) * kLanes + lane) * jv + jj;
  }
};

// One of a side's parts: a side of its own, and where its words and scales lie in those of the side.
struct SidePart {
  SideLayout side;
  int word_offset, scale_offset;  // bytes
};
constexpr SidePart side_part(const SideLayout& side, int part) {
  if (!side.banded()) return SidePart{side, 0, 0};
  const int left = side.dim - kGroupCodes * part;
  return SidePart{SideLayout(left < kGroupCodes ? left : kGroupCodes, band_code(side.code(), part)),
                  4 * kTileTokens * side.bits_before(part), kScaleBytes * part};
}

struct TileLayout {
  SideLayout key, value;

  constexpr TileLayout(int head_dim, int value_dim, CodeId key_code, CodeId value_code)
      : key(head_dim, key_code), value(value_dim, value_code) {}
  constexpr TileLayout(int head_dim, int value_dim, int key_bits, int value_bits)
      : TileLayout(head_dim, value_dim, code_of_bits(key_bits), code_of_bits(value_bits)) {}

  constexpr int key_offset() const { return 0; }
  constexpr int value_offset() const { return key.code_bytes(); }
  constexpr int key_scale_offset() const { return value_offset() + value.code_bytes(); }
  constexpr int value_scale_offset() const { return key_scale_offset() + key.scale_bytes(); }
  constexpr int tile_bytes() const { return value_scale_offset() + value.scale_bytes(); }
};

static_assert(TileLayout(128, 128, 3, 3).tile_bytes() == 3200, "100 bytes a token and head at 3+3 bits");
static_assert(TileLayout(128, 128, 4, 4).tile_bytes() == 4224, "132 at 4+4");
static_assert(TileLayout(128, 128, 2, 2).tile_bytes() == 2176, "68 at 2+2");
static_assert(TileLayout(80, 80, 16, 4).tile_bytes() == 64 * 80 + 4 * 4 * 96 + 64,
              "a raw side is not padded and has no scales");
static_assert(TileLayout(128, 128, CodeId{CodeFamily::kBands, 12, 0, 0x2334}, scalar_code(3)).tile_bytes() ==
                  3200 + 3 * kScaleBytes,
              "106 at bands of 4, 3, 3 and 2 bits beside 3");
static_assert(SideLayout(128, grouped_code(2, 32)).code_bytes() / kTileTokens == 32 &&
                  SideLayout(128, grouped_code(2, 32)).scale_bytes() / kTileTokens == 16,
              "48 bytes a token at 2 bits in groups of 32");

// Position of code n (0..7) of lane quarter t in the 32 positions of an octet row.
TQ_HD constexpr int octet_position(int n, int t) { return n < 4 ? 4 * t + n : 16 + 4 * t + (n - 4); }

struct CodePlace {
  int jb, jj;  // group
  int s;       // octet in the group
  int lane;
  int n;  // position in the octet
};

// Inverse of octet_position: p -> (t, n).
TQ_HD constexpr int position_quarter(int p) { return (p % 16) / 4; }
TQ_HD constexpr int position_index(int p) { return p % 4 + (p / 16) * 4; }

// Place of a key code. token 0..31, coordinate 0..D-1.
TQ_HD constexpr CodePlace key_place(const SideLayout& side, int token, int coordinate) {
  const int block = coordinate / 32, p = coordinate % 32;
  const int e = (token / 8) * side.jv + block % side.jv;
  return CodePlace{block / side.jv, e / 4, e % 4, 4 * (token % 8) + position_quarter(p), position_index(p)};
}

// Place of a value code. Token bits abcde (a = 16's bit) stand at position p = a, d c, b e: the order in
// which the score accumulators of the matrix unit leave the softmax weights in registers.
TQ_HD constexpr CodePlace value_place(const SideLayout& side, int token, int coordinate) {
  const int p = 16 * (token / 16) + 4 * ((token % 8) / 2) + 2 * ((token % 16) / 8) + token % 2;
  const int octet = coordinate / 8, j = octet / 4;
  return CodePlace{j / side.jv, j % side.jv, octet % 4, 4 * (coordinate % 8) + position_quarter(p),
                   position_index(p)};
}

TQ_HD CodePlace code_place(const SideLayout& side, Kind kind, int token, int coordinate) {
  return kind == Kind::kKey ? key_place(side, token, coordinate) : value_place(side, token, coordinate);
}

}  // namespace format
}  // namespace tq
