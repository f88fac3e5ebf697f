// SPDX-License-Identifier: Apache-2.0
// What saved tiles must be beside having the right checksums, so that a sequence has one string of bytes and
// no bytes make attention lose its promises: zeros where no token is, scales that are finite and not
// negative, numbers that are finite, and codes that the encoder can write.
#pragma once
#include "layer_pieces.h"

namespace tq {

// Tiles of a move, whose source is memory of one piece; exact_type: DataType of exact copies. CORRUPT_DATA.
void check_saved_tiles(const TileMove& tiles, PieceKind kind, int32_t exact_type, const Geometry& geometry,
                       int32_t layer);

}  // namespace tq
