// SPDX-License-Identifier: Apache-2.0
// Tokens moved between tiles against the definition of a code's place: codes are taken out one by one and put
// back one by one.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "dims.h"
#include "format/move.h"

namespace tq {
namespace format {
namespace {

TEST(Move, SharesAndTokensAreInverse) {
  for (const int dim : kTriedDims)
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      const SideLayout side(dim, 4);
      for (int token = 0; token < kTileTokens; token++) {
        const TokenShare at = token_share(side, kind, token);
        ASSERT_LT(at.share, group_shares(side, kind));
        for (int part = 0; part < (kind == Kind::kKey ? 4 : 8); part++) {
          const int lane = kind == Kind::kKey ? at.lane + part : 4 * part + at.lane;
          ASSERT_EQ(token, token_of_share(side, kind, lane, at.jj, at.share));
        }
      }
    }
}

class Tiles {
 public:
  Tiles(const SideLayout& side, int count, std::mt19937& random)
      : words_(static_cast<size_t>(side.code_bytes()) / 4), all_(words_ * static_cast<size_t>(count)) {
    for (uint32_t& word : all_) word = static_cast<uint32_t>(random());
  }
  const uint32_t* tile(int64_t index) const { return all_.data() + words_ * static_cast<size_t>(index); }

 private:
  size_t words_;
  std::vector<uint32_t> all_;
};

TEST(Move, GathersAnyTokensExactly) {
  constexpr int kTiles = 5;
  std::mt19937 random(20260731);
  for (const int dim : kTriedDims)
    for (const CodeId code : kCodes)
      for (const Kind kind : {Kind::kKey, Kind::kValue}) {
        if (code.raw()) continue;
        SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(code.bits) + " " +
                     std::to_string(static_cast<int>(kind)));
        const SideLayout side(dim, code);
        const MoveTable table(side, kind);
        const Tiles tiles(side, kTiles, random);
        int64_t from[kTileTokens];  // -1: none
        for (int64_t& token : from) token = static_cast<int64_t>(random() % (kTiles * kTileTokens + 20)) - 20;
        std::vector<uint32_t> want(static_cast<size_t>(side.code_bytes()) / 4, 0),
            got(want.size(), 0xA5A5A5A5u);
        std::vector<uint8_t> codes(static_cast<size_t>(side.stored));
        for (int token = 0; token < kTileTokens; token++) {
          if (from[token] < 0) continue;
          unpack_scalar(side, kind, tiles.tile(from[token] / kTileTokens),
                        static_cast<int>(from[token] % kTileTokens), codes.data());
          pack_scalar(side, kind, token, codes.data(), want.data());
        }
        const auto source = [&](int token) {
          const int64_t at = from[token];
          return at < 0 ? SourceToken{nullptr, 0}
                        : SourceToken{tiles.tile(at / kTileTokens), static_cast<int32_t>(at % kTileTokens)};
        };
        for (int jb = 0; jb < side.jb; jb++)
          for (int lane = 0; lane < kLanes; lane++)
            for (int jj = 0; jj < side.jv; jj++)
              gather_group(side, kind, table, jb, lane, jj, source, got.data());
        ASSERT_EQ(want, got);
      }
}

}  // namespace
}  // namespace format
}  // namespace tq
