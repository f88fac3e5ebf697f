// SPDX-License-Identifier: Apache-2.0
// A small cache around one CPU backend: pages from a shuffled free list, plans by its own hand, inputs
// remembered, and attention in float64 over the vectors that the scalar format code decodes. Every
// conformance test talks to backends through it.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cpu/cpu_backend.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/row_codes.h"
#include "host_ops.h"
#include "masks.h"
#include "uniform_geometry.h"

namespace tq {
namespace test {

// Deterministic numbers (SplitMix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() { return format::mix64(state_ += format::kGolden); }
  double uniform() { return static_cast<double>(bits() >> 11) * (1.0 / 9007199254740992.0); }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  float normal();

 private:
  uint64_t state_;
};

bool full_set();  // TQKV_TEST_FULL=1: every combination, not a thinned set
std::vector<std::string> isas();
const cpu::Kernels& kernels_of(const std::string& isa);

struct RigConfig {
  std::string isa = "scalar";
  int layers = 1, kv_heads = 2, q_per_kv = 2, head_dim = 64, value_dim = 64;  // dims: of the tile's sides
  bool latent = false;  // then keys are [value_dim | head_dim]
  int key_bits = 4, value_bits = 4;
  format::CodeFamily key_family = format::CodeFamily::kScalar, value_family = format::CodeFamily::kScalar;
  int key_group = 0, value_group = 0;   // of grouped sides
  std::vector<int32_t> band_bits = {};  // of keys in bands, whose orders then are random
  format::SketchKind sketch = format::SketchKind::kOrthogonal;
  DataType io = DataType::kF32;
  format::Rotation rotation = format::Rotation::kHadamard;
  format::ScaleRule key_rule = format::ScaleRule::kLs, value_rule = format::ScaleRule::kUnbiased;
  int page_size = 64, max_sequences = 3;
  int64_t max_tokens = 4096;
  int window = 0, sinks = 0, rollback = 0, threads = 1;
  bool centres = false;
  uint8_t fill = 0xFF;  // what fresh memory holds
  bool dirty =
      true;  // pages and raw copies hold `fill` once the backend stands, as reused ones hold old data
  uint64_t seed = 1;
  bool strange_fp = false;  // the backend is called with flush-to-zero and rounding towards zero
  float key_size = 1.0f, value_size = 1.0f, query_size = 1.0f;
};

inline format::CodeId code_of(const RigConfig& config, Kind kind) {
  const bool key = kind == Kind::kKey;
  if (key && !config.band_bits.empty())
    return format::banded_code(config.band_bits.data(), static_cast<int>(config.band_bits.size()),
                               config.key_family == format::CodeFamily::kTrellis);
  const format::CodeId id =
      format::code_of(key ? config.key_family : config.value_family,
                      key ? config.key_bits : config.value_bits, key ? config.key_group : config.value_group);
  return config.latent ? format::latent_code(id) : id;
}

// Levels of nobody's design: neither symmetric nor half way between boundaries.
inline format::LevelTable some_levels(int bits) {
  format::LevelTable table = {};
  table.bits = bits <= 8 ? bits : 1, table.unit = 0.1f;
  const float count = static_cast<float>(table.count());
  for (int i = 0; i < table.count(); i++) {
    table.level[i] = 5.0f * (static_cast<float>(i) + 0.7f) / count - 2.4f;
    table.boundary[i] = 5.0f * (static_cast<float>(i) + 1.1f) / count - 2.4f;
  }
  return table;
}
// A kv head's orders of coordinates, [heads][dim], random.
std::vector<int32_t> some_orders(int heads, int dim);
// What a side by rows keeps of a vector, by the scalar kernels.
std::vector<float> row_and_back(const format::RowCoder& coder, const format::SideLayout& side,
                                const std::vector<float>& x);

struct Ask {
  int sequence;
  int64_t new_tokens, query_tokens;
};

struct AttendOptions {
  float scale = 0;  // 0 = 1 / sqrt(dim of a query)
  float softcap = 0;
  int64_t sliding_window = 0;
  std::vector<float> sinks;  // of the query heads; empty = a rising row
  bool sink_logits = false, history_only = false, strided = false, own_workspace = true;
  DataType out = DataType::kF32;
  uint8_t workspace_fill = 0xFF;
  Masks masks = {};  // of the plan's queries
};

struct Result {
  std::vector<float> out;  // [query tokens][q heads][value_dim]
  std::vector<float> lse;  // [query tokens][q heads]
  int32_t num_partials = 0;
};

class Rig {
 public:
  explicit Rig(const RigConfig& config);
  ~Rig();

  // Plans and appends; inputs of a token depend only on (seed, sequence number, token).
  void step(const std::vector<Ask>& asks, bool append = true);
  Result attend(const AttendOptions& options = AttendOptions());
  Result reference(const AttendOptions& options);
  // Random masks of the plan's queries.
  Masks masks(bool ranges, bool tree, bool alibi, uint64_t number) const;
  // Pages of a sequence that hold none but the tokens first .. last - 1 move to where no memory is.
  void lose_pages(int sequence, int64_t first, int64_t last);
  // The last attend once more, with a workspace of its own; several threads may.
  Result attend_again();
  void attend_with_workspace(size_t bytes);
  int32_t page_of(int sequence, int64_t index) const {
    return sequences_[sequence].pages[static_cast<size_t>(index)];
  }
  const std::vector<int32_t>& pages_of(int sequence) const { return sequences_[sequence].pages; }
  int32_t free_page() const { return free_pages_.front(); }
  // Pages of exact copies that belong to a sequence, used or not.
  const int32_t* raw_pages_of(int sequence) const {
    return &raw_table_[static_cast<size_t>(sequence * geometry.groups[1].max_sequence_pages)];
  }
  void truncate(int sequence, int64_t length);
  // Decoded (or exact) vectors as float.
  void read(int sequence, int64_t first, int64_t count, std::vector<float>* k, std::vector<float>* v);
  // What read must give, by the scalar format code.
  std::vector<float> expected(int sequence, int64_t token, int head, Kind kind);
  // What codes, or an exact copy, of a token stand for.
  std::vector<float> decoded(int sequence, int64_t token, int head, Kind kind);
  std::vector<float> exact(int sequence, int64_t token, int head, Kind kind) const;
  // The whole key that an exact or a coded token is: of a latent layer both sides'.
  std::vector<float> whole_key(int sequence, int64_t token, int head, bool exact);

  // The vector that step() appended, as the io type holds it.
  std::vector<float> input(int sequence, int64_t token, int head, Kind kind) const;
  // Whether a query at `position` reads the token exactly.
  bool is_exact(int sequence, int64_t token, int64_t position) const;
  int64_t length(int sequence) const { return sequences_[sequence].length; }
  uint8_t* pages() { return page_memory_; }
  // Code words and scales of a tile, and its bytes.
  const uint8_t* tile(int sequence, int head, int64_t index) const;
  // The plan in force, the last append and the last attend, whose arrays live until the next ones.
  const BatchPlan& plan() const { return plan_; }
  const AppendRequest& appended() const { return append_; }
  const AttendRequest& attended() const { return request_; }
  const std::vector<float>& centre(Kind kind) const { return centre_[static_cast<int>(kind)]; }
  // Turns one input element into `value`.
  void poke(int sequence, int64_t token, int head, Kind kind, int coordinate, float value) {
    pokes_[{sequence, token, head, static_cast<int>(kind), coordinate}] = value;
  }

  // The same for the query of head `head` at a position of the sequence.
  void poke_query(int sequence, int64_t position, int head, int coordinate, float value) {
    query_pokes_[{sequence, position, head, coordinate}] = value;
  }
  void forget_query_pokes() { query_pokes_.clear(); }

  RigConfig config;
  UniformGeometry geometry;
  std::unique_ptr<Backend> backend;
  std::vector<float> queries;  // of the last attend, [query tokens][q heads][input_dim]
  int64_t allocations = 0, live_bytes = 0, total_bytes = 0;
  bool fail_allocations = false;
  float strange_query = 0;  // not 0: every query's first coordinate

 private:
  struct Sequence {
    int64_t length = 0, raw_first = 0;
    std::vector<int32_t> pages;
  };
  using Poke = std::vector<int64_t>;

  const format::VectorCoder& coder(int head, Kind kind);
  format::RowCoder row_coder(int head, Kind kind);
  std::vector<float> bands_and_back(int head, const std::vector<float>& x);
  const PageMap* page_maps();
  static void* alloc(void* user, size_t bytes, size_t alignment, int32_t, int32_t);
  static void free(void* user, void* pointer, size_t bytes, int32_t, int32_t);

  struct Coder {
    format::VectorCoder coder = {};
    std::vector<uint64_t> signs;
    std::vector<float> dense;
  };
  std::map<int, Coder> coders_;
  format::LevelTable levels_[2] = {};  // of levels sides
  std::vector<int32_t> order_;         // of banded keys, [kv heads][head_dim]
  std::vector<float> centre_[2];
  std::vector<int32_t> free_pages_;
  std::vector<Sequence> sequences_;
  std::map<Poke, float> pokes_, query_pokes_;
  std::vector<std::pair<uint8_t*, size_t>> blocks_;  // allocated while the backend was created
  uint8_t* page_memory_ = nullptr;
  // The plan in force.
  std::vector<StepSequence> plan_sequences_;
  PageMap maps_[2];
  std::vector<int32_t> page_table_;  // [max_sequences][max_sequence_pages], -1 where there is none
  std::vector<int32_t> raw_table_;   // the same of exact copies, every entry there is
  std::vector<int64_t> first_changed_;
  std::vector<Ask> asks_;
  BatchPlan plan_;
  AppendRequest append_ = {};
  AttendRequest request_ = {};
  std::vector<uint8_t> key_bytes_, value_bytes_, query_bytes_;
  std::vector<float> sink_logits_;
  void* storage_ = nullptr;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b);
bool same_bits(const Result& a, const Result& b);

// That the last of 1,206 tokens' queries gives the same bits alone and behind 5 others, on 1 thread and 4.
void expect_rows_by_themselves(RigConfig config);

// |a - b|_2 / |b|_2, row by row the largest, and over all.
double relative_error(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace test
}  // namespace tq
