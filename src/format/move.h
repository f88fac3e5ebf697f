// SPDX-License-Identifier: Apache-2.0
// Tokens of one side into other places, bits alone (FORMAT.md section 4.1): a tile is gathered from tokens
// that lie anywhere in tiles of the same layout. Nothing is decoded: a moved token decodes to the same
// numbers.
//
// What a group's words hold of one token is a share: a position of all four octets (values) or some whole
// octets (keys). Moving a share means moving masks of bits from word to word by a shift; which ones follows
// from the definition of the codes' places (scalar.h) and is worked out once for each pair of shares. A
// family whose codes do not stand alone in their bits needs a table of its own here.
#pragma once
#include "format/scalar.h"

namespace tq {
namespace format {

constexpr int kMaxShares = 8;      // of a group
constexpr int kMaxMovePieces = 8;  // 4 bits, values: 4 words of 2 pieces; 8 bits, keys: 8 words of one

// Shares that the words of a group hold.
TQ_HD constexpr int group_shares(const SideLayout& side, Kind kind) {
  return kind == Kind::kKey ? 4 / side.jv : 8;
}

// Where a token's share of a group is. The coordinates are those of the group's jb, and of its part: lane % 4
// and nothing else for keys, whose jj follows from the token; lane / 4 and jj for values.
struct TokenShare {
  int share;
  int lane;  // keys: lane - lane % 4; values: lane % 4
  int jj;    // keys only
};
TQ_HD constexpr TokenShare token_share(const SideLayout& side, Kind kind, int token) {
  const CodePlace at = kind == Kind::kKey ? key_place(side, token, 0) : value_place(side, token, 0);
  return kind == Kind::kKey ? TokenShare{at.s / side.jv, at.lane, at.jj} : TokenShare{at.n, at.lane, 0};
}
// The token of a share of group (lane, jj); inverse of token_share.
TQ_HD constexpr int token_of_share(const SideLayout& side, Kind kind, int lane, int jj, int share) {
  if (kind == Kind::kKey) return 8 * (4 * jj / side.jv + share) + lane / 4;
  const int p = octet_position(share, lane % 4);
  return 16 * (p / 16) + 8 * (p % 4 / 2) + 2 * (p % 16 / 4) + p % 2;
}

// Bits of one word of a group, and where they go in another group's words.
struct MovePiece {
  uint32_t mask;  // in the source word
  int8_t from, to;
  int8_t shift;  // to the left; negative: to the right
  int8_t reserved;
};
struct ShareMove {
  int32_t count;
  MovePiece piece[kMaxMovePieces];
};

// Pieces from every share to every share, for one code, kind and jv.
struct MoveTable {
  ShareMove move[kMaxShares][kMaxShares];  // [from][to]

  MoveTable() = default;
  MoveTable(const SideLayout& side, Kind kind) : move{} {
    const int shares = group_shares(side, kind);
    for (int from = 0; from < shares; from++)
      for (int to = 0; to < shares; to++) {
        // The codes of a share: one octet position each of four octets, or all of jv octets.
        if (kind == Kind::kKey) {
          for (int s = 0; s < side.jv; s++)
            for (int n = 0; n < 8; n++)
              add(&move[from][to], side, from * side.jv + s, n, to * side.jv + s, n);
        } else {
          for (int s = 0; s < 4; s++) add(&move[from][to], side, s, from, s, to);
        }
      }
  }

 private:
  static void add(ShareMove* move, const SideLayout& side, int from_s, int from_n, int to_s, int to_n) {
    for (int index = 0; index < side.bits; index++) {
      const BitPlace from = code_bit(side, from_s, from_n, index), to = code_bit(side, to_s, to_n, index);
      const int shift = to.bit - from.bit;
      int i = 0;
      while (i < move->count && !(move->piece[i].from == from.word && move->piece[i].to == to.word &&
                                  move->piece[i].shift == shift))
        i++;
      if (i == move->count)
        move->piece[move->count++] = MovePiece{0, static_cast<int8_t>(from.word),
                                               static_cast<int8_t>(to.word), static_cast<int8_t>(shift), 0};
      move->piece[i].mask |= 1u << from.bit;
    }
  }
};

// A token to be moved: words of its side, which token of their tile. words null: no token, its bits are zero.
struct SourceToken {
  const uint32_t* words;
  int32_t token;
};

// Writes the words of group (jb, lane, jj) of a side: its token i becomes source(i).
template <typename Source>
TQ_HD void gather_group(const SideLayout& side, Kind kind, const MoveTable& table, int jb, int lane, int jj,
                        const Source& source, uint32_t* words) {
  const int count = code_regions(side.code()).group_words, step = side.word_index(1, 0, 0, 0);
  uint32_t* target = words + side.word_index(0, jb, lane, jj);
  for (int i = 0; i < count; i++) target[i * step] = 0;
  for (int share = 0; share < group_shares(side, kind); share++) {
    const SourceToken from = source(token_of_share(side, kind, lane, jj, share));
    if (!from.words) continue;
    const TokenShare at = token_share(side, kind, from.token);
    const uint32_t* group =
        from.words + (kind == Kind::kKey ? side.word_index(0, jb, at.lane + lane % 4, at.jj)
                                         : side.word_index(0, jb, lane - lane % 4 + at.lane, jj));
    const ShareMove& move = table.move[at.share][share];
    for (int i = 0; i < move.count; i++) {
      const MovePiece piece = move.piece[i];
      const uint32_t bits = group[piece.from * step] & piece.mask;
      target[piece.to * step] |= piece.shift >= 0 ? bits << piece.shift : bits >> -piece.shift;
    }
  }
}

}  // namespace format
}  // namespace tq
