// SPDX-License-Identifier: Apache-2.0
// What the kernels of this wing are given, by value.
#pragma once
#include "cuda/arena.h"
#include "cuda/code/tables.h"
#include "tile_move.h"

namespace tq::cuda::pages {

constexpr int kMemoryThreads = 256;
constexpr int kPagesPerLaunch = 256;

struct PageCopyList {
  PageCopy copies[kPagesPerLaunch];
};
struct PageList {
  int32_t pages[kPagesPerLaunch];
};

constexpr int kMovePages = 440;  // page ids of one side in one launch's parameters

struct MovePlace {
  uint8_t* memory;
  int64_t page_bytes, head_bytes;
  int32_t tiles_per_page;  // 0: one piece
  int32_t first_tile;      // of pages[0]
  int32_t pages[kMovePages];
};
// Tiles first .. first + count - 1 of a move, of all its heads.
struct MoveParams {
  MovePlace source, target;
  TileMove move;  // its places are the host's
  int64_t first;
  int32_t count;
};
constexpr int kMoveWarps = kMemoryThreads / 32;  // a warp moves a tile
// CTAs of a move between a device and the host's memory: as many as fill the link, so that other units go on
// with what runs beside it.
constexpr int kLinkCtas = 32;
constexpr int kMoveTiles = 1 << 20;  // of a head in one launch: numbers of its tiles fit 32 bits
static_assert(sizeof(MoveParams) <= 4096, "kernel parameters before CUDA 12.1");

constexpr int kReadWarps = 4;
constexpr int kReadPages = 256;  // page ids in one launch's parameters, of codes and of exact copies each

// Tokens first .. first + count - 1 of one sequence, keys or values.
struct ReadParams {
  explicit ReadParams(const DeviceLayer& of) : layer(of) {}

  DeviceLayer layer;
  Kind kind = Kind::kKey;
  CodeTables tables = {};  // of the side; launch_read fills them in
  int32_t length = 0, raw_first = 0, sink_end = 0;
  int32_t first = 0, count = 0;
  // Device [count], or null: instead of a sequence's tokens those in an engine's slots, which have no exact
  // copies. -1: zeros.
  const int64_t* slots = nullptr;
  int64_t row = 0;         // of token `first` in the output
  void* output = nullptr;  // [row][kv head][dim] by strides, of the layer's type
  TensorStrides strides = {};
  int32_t first_page = 0;  // of pages[0]
  int32_t pages[kReadPages] = {};
  int32_t first_raw_page = 0;  // of raw_pages[0]
  int32_t raw_pages[kReadPages] = {};

  TQ_HD const DeviceSide& side() const { return kind == Kind::kKey ? layer.key : layer.value; }
};

}  // namespace tq::cuda::pages
