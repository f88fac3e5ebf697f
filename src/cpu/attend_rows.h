// SPDX-License-Identifier: Apache-2.0
// Attention of up to kMaxRows query rows of one kv head over one sequence: the state of the rows, and its
// workspace.
//
// A row's result is a fixed sequence of steps: splits in index order, each from an empty state, blocks of 128
// tokens inside; then the exact tokens (sinks, window), in such blocks too, as one more state; then the sink
// logit. Splits and blocks lie at absolute tokens, and steps in which a row sees nothing are skipped. So
// nothing but the tokens that a row sees and its own position enters its numbers: neither the other rows of
// the plan nor splits or threads.
#pragma once
#include "cpu/exact_range.h"
#include "cpu/kernels/row_codes.h"
#include "cpu/schedule.h"
#include "cpu/store.h"

namespace tq {
namespace cpu {

// Tokens that one row sees: [coded_begin, coded_end) from codes, [first, sink_end) and [window_begin, end)
// exactly; of the plan's new ones only those that its tree mask names.
struct RowSight {
  int64_t first, sink_end;
  int64_t coded_begin, coded_end;
  int64_t window_begin, end;
};

// Tokens first .. end - 1, or none, that a query of a step may see: all masks but a tree's.
struct SeenTokens {
  int64_t first, end;
};
SeenTokens seen_tokens(const AttendCall& call, const StepSequence& sequence, int64_t query);

struct Row {
  RowSight sight;
  bool finite;         // q holds neither NaN nor infinity; else the row sees nothing and ends as nan_row()
  float exact_factor;  // logit in log2 units per unit of q_exact . k
  float code_factor;   // per unit of integer score x key scale
  float half_sum;      // sum(q_int) / 2 for half-integer codebooks
  float constant;      // q . key centre, log2 units
  int64_t position;
  float slope;           // ALiBi, log2 units a token
  const uint64_t* tree;  // bits of the plan's new tokens, or null
  SoftmaxState split;    // current split
  SoftmaxState total;    // splits so far
  SoftmaxState exact;
  float alpha;  // factor of o in the current block
  BlockWeights weights;
  int begin, end;  // visible part of the current block
};

// Of banded keys, whose bands are scored one after the other.
struct BandSpace {
  uint8_t* operands;  // [num_bands][kMaxRows][query_operand_bytes(32)]
  float* queries;     // [num_bands][kMaxRows][32], rotated
  float* factor;      // [num_bands][kMaxRows]: of (integer score + half_sum) x key scale
  float* half_sum;    // [num_bands][kMaxRows]
  float* scales;      // [num_bands][kBlockTokens]
  int32_t* scores;    // [kMaxRows][kBlockTokens] of one band; floats where it is by rows
};

// One worker's scratch, carved from a workspace.
struct WorkerSpace {
  float* q_exact;  // [kMaxRows][key width], scaled to |q| < 4; zeros from head_dim on
  float* q_rows;   // [kMaxRows][row_width] for keys by rows in rotated space
  // Of a latent layer: the latent's part of the query, exact and as rows; sums of its scores; its tokens of a
  // block, which scores and values share.
  float* q_latent;       // [kMaxRows][value width]
  float* q_latent_rows;  // [kMaxRows][value width]
  float* latent_scores;  // [kMaxRows][kBlockTokens]
  float* latents;        // [kBlockTokens][value width]
  uint8_t* operands;     // [kMaxRows][query_operand_bytes]
  float* o;              // [kMaxRows][value width], current split
  float* total;          // [kMaxRows][value width]
  int32_t* scores;       // [kMaxRows][kBlockTokens]; float dot products for exact keys
  float* p;              // [kMaxRows][kBlockTokens]
  uint16_t* weights;     // [kMaxRows][kBlockTokens]
  int32_t* sums;         // [kMaxRows][value width]
  float* rows;           // [32][widest]: a tile of exact keys or values, padded; unwritten ones undefined
  float* key_scales;     // [kBlockTokens]
  float* value_scales;
  float* bias;  // [kBlockTokens] of one row
  uint8_t* accumulate_work;
  uint32_t* opened;  // a side of a block's tiles, where it has to be opened
  BandSpace band;
  Row* row;  // [kMaxRows]
};

// x, at most `limit` in size.
inline float limited(double x, double limit) {
  return static_cast<float>(x > limit ? limit : x < -limit ? -limit : x);
}

int64_t worker_space_bytes(const LayerGeometry& layer);
WorkerSpace carve_worker_space(const LayerGeometry& layer, void* base);

// Partial states: [slot][kv head][row of the item][partial_floats]: m, l and o.
// a workspace that the backend sizes holds at most this much of them; a plan with more runs unsplit
constexpr int64_t kOwnPartialBytes = 32 << 20;
int64_t partial_floats(const LayerGeometry& layer);
// Workspace for steps within bounds; the cache's own, for all its plans.
int64_t step_workspace_bytes(const Geometry& geometry, const StepBounds& bounds);
int64_t own_workspace_bytes(const Geometry& geometry);

class RowTask {
 public:
  RowTask(const Store& store, const Kernels& kernels, const AttendRequest& request,
          const StepSequence& sequence, int head, int64_t first_row, int rows, WorkerSpace& space);

  // Split `index` into the rows' split states and o.
  void run_split(int64_t index);
  // Adds the split's states to the totals.
  void fold_split();
  // Splits as stored by another worker: one row's state and o.
  void store_partial(int row, float* partial) const;
  void fold_partial(int row, const float* partial);
  // Exact tokens, output and lse of all rows.
  void finish();

 private:
  void prepare_row(int r);
  void prepare_query(int r, float* q, int exponent);
  void prepare_codes(int r, const float* q, float scale);
  // q [stored] as integers for a coded side of `stored` coordinates; half_sum: what half-integer levels add.
  struct QueryUnit {
    double factor;  // of an integer
    float half_sum;
  };
  QueryUnit prepare_integers(const CodedSide& side, const CodeKernels& kernels, const float* rotated,
                             uint8_t* operand) const;
  void prepare_latent(int r, const float* q, float scale);
  void add_centre(Row& row, const format::VectorCoder& coder, const float* q, float scale) const;
  RowSight sight_of(int64_t query) const;
  // What the row sees of the tokens [begin, end) is begin .. end - 1 of the block that starts at token
  // `start`. False: nothing.
  bool see_block(Row& row, int64_t start, int64_t begin, int64_t end) const;
  bool tree_hides(const Row& row, int64_t token) const;
  const float* bias_of(const Row& row, int64_t start) const;
  void run_block(int64_t block, int64_t high);
  // Tiles first_tile .. last_tile - 1 of the block at token `start`, of which rows see those with a bit in
  // `seen`; tokens at or beyond `high` are not to be read.
  struct BlockTiles {
    int64_t start, high;
    int first_tile, last_tile;
    uint32_t seen;
    const uint8_t* tile[kBlockTiles];
    const uint8_t* next[kBlockTiles];  // the same tiles of the next block, or `tile`

    // Tokens of tile i that may be read.
    int valid(int i) const {
      return static_cast<int>(std::min<int64_t>(format::kTileTokens, high - start - i * format::kTileTokens));
    }
  };
  void locate(BlockTiles* tiles, int64_t end) const;
  void load_scales(const BlockTiles& tiles);
  void open_tiles(const BlockTiles& tiles, const CodedSide& side, const CodeKernels& kernels,
                  const uint8_t** sides) const;
  void score_block(const BlockTiles& tiles);
  // Banded keys (attend_bands.cpp).
  void prepare_bands(int r, const float* q, float scale);
  void load_band_scales(const BlockTiles& tiles);
  void score_bands(const BlockTiles& tiles);
  void add_coded_band(const BlockTiles& tiles, int band);
  void add_row_band(const BlockTiles& tiles, int band);
  void value_block(const BlockTiles& tiles);
  // Exact keys and values of a block, and those of sides by rows (attend_exact.cpp).
  struct Range {
    int begin, end;
  };
  Range seen_by_any() const;
  DataType raw_type() const { return g_.io_dtype == DataType::kBF16 ? DataType::kBF16 : DataType::kF16; }
  ExactSide raw_side(const BlockTiles& tiles, Kind kind) const;
  ExactSide copies(Kind kind, int64_t start, Range range) const;
  bool read_as_stored(Kind kind) const;
  template <typename Load, typename Body>
  void for_each_part(const ExactSide& stored, bool as_stored, Range range, int width, const Load& load,
                     const Body& body);
  // Tokens begin .. end - 1 of a tile, by rows, into `rows`.
  void load_tile(const uint8_t* tile, Kind kind, int begin, int end, float* rows);
  // An exact vector to row `token` of `rows`, zeros behind it.
  void load_row(Kind kind, DataType type, const uint8_t* source, int token, float* rows);
  // The latent layer's value side of a block as floats, and its scores, which are added to the key side's.
  ExactSide load_latents(const BlockTiles& tiles, Range range);
  void add_latent_scores(const ExactSide& side, Range range, const float* queries);
  void score_exact(const BlockTiles& tiles);
  void value_exact(const BlockTiles& tiles);
  void dot_exact(const ExactSide& side, Range range, const float* queries, int width);
  void add_run(const ExactSide& side, int64_t start, int begin, int end);
  void add_exact(const ExactSide& side, int64_t start, Range range);
  void exact_block(int64_t first, bool sinks);
  void fold_exact();
  void write_row(int r);
  float* o(int r) const { return space_.o + static_cast<int64_t>(r) * value_width_; }
  float* total(int r) const { return space_.total + static_cast<int64_t>(r) * value_width_; }

  const Store& store_;
  const Geometry& g_;
  const Kernels& kernels_;
  const AttendRequest& request_;
  const StepSequence& sequence_;
  const LayerStore& layer_;
  const CodePages place_;
  const int32_t* pages_;      // of the sequence
  const int32_t* raw_pages_;  // of its exact copies
  const int head_;
  const int64_t first_row_;  // row = query * q_per_kv + q head in the group, from the sequence's first query
  const int rows_;
  WorkerSpace& space_;
  const bool key_rotated_;             // keys by rows, in rotated space
  const int row_width_;                // of keys by rows
  const int key_width_, value_width_;  // floats of a vector: stored dimensions, of sides by rows too
  ExactSide latents_ = {};             // of the current block of a latent layer
  const CodeKernels& key_kernels_;
  const CodeKernels& value_kernels_;
  format::RowCoder key_coder_, value_coder_;
  format::BandCoder band_coder_;
};

}  // namespace cpu
}  // namespace tq
