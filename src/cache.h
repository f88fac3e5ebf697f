// SPDX-License-Identifier: Apache-2.0
// A cache and its batches: owns the configuration, the page table and the backend, and turns calls into
// requests. No arithmetic on vectors.
//
// Failure is atomic because every change has three steps in this order: check and prepare (throws, leaves no
// trace), device work (throws before it changes anything, or touches only pages that nobody holds yet),
// commit (cannot fail).
#pragma once
#include "config.h"
#include "gate.h"
#include "identity.h"
#include "sequence_table.h"
#include "written.h"

namespace tq {

struct StatePart;
struct PartRun;
struct RunSlice;
struct SavedHeader;
class StateReader;
class Cache;
class ExactNew;

// k and v of the plan's new tokens, as an AppendRequest has them, to be attended to instead of their codes;
// null: none.
struct NewTensors {
  const void *k, *v;
  TensorStrides key_strides, value_strides;
};

// What a plan in force covers; zeros without one.
struct BatchRows {
  int64_t new_tokens, query_tokens;
  bool in_force;
};

// One batch: a plan in force, and room for the next one, so that a plan that fails leaves the old one as it
// was.
class Batch {
 public:
  explicit Batch(Cache& cache);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  Cache& cache() const { return cache_; }
  BatchRows rows() const;

 private:
  friend class Cache;
  struct Arrays {
    Arrays(const Geometry& geometry, Carver& carver);
    StepSequence* sequences[2];  // [max_batch_sequences] each
    Growth* growth;              // [2 * max_batch_sequences] of the plan, then what leaves it
    uint8_t* in_graph;           // [num_layers] 1 = an append of the layer was captured in a graph
  };
  static int64_t bytes(const Geometry& geometry);

  Cache& cache_;
  HostBlock block_;
  Arrays arrays_;
  void* storage_ = nullptr;
  std::unique_ptr<ExactNew> exact_new_;  // of a cache with TQ_FLAG_EXACT_CHUNK
  int active_ = 0;                       // which of the two plans is in use
  BatchPlan plan_ = {};
  bool in_force_ = false;
  const char* lapsed_ = "";  // why not; "" = never planned
  int64_t lapsed_by_ = 0;    // the sequence
};

// create_backend, or what a test puts in its place.
using BackendFactory = std::unique_ptr<Backend> (*)(DeviceType, const Geometry&, const HostOps&, void* pool,
                                                    void* stream);

class Cache {
 public:
  Cache(const tq_cache_config* config, void* stream, BackendFactory factory = create_backend);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  // Throws INVALID_STATE while batches live or another call runs; the cache then stays whole.
  static void destroy(Cache* cache);

  const ResolvedConfig& config() const { return config_; }
  const Geometry& geometry() const { return config_.geometry(); }
  // INVALID_ARGUMENT without such a layer.
  const LayerGeometry& layer(int32_t layer) const;
  void set_centres(int32_t layer, const float* key, const float* value);
  void set_key_matrix(int32_t layer, const float* matrix);
  // Throws if the layer, whatever the matrix, takes none.
  void check_key_matrix(int32_t layer) const;
  tq_cache_memory memory() const;
  uint64_t fingerprint() const;
  void reserve(int64_t max_tokens, void* stream);
  uint64_t check(void* stream);

  int64_t create_sequence();
  void free_sequence(int64_t id, void* stream);
  int64_t fork_sequence(int64_t source, void* stream);
  void truncate_sequence(int64_t id, int64_t length, void* stream);
  void flush_sequence(int64_t id, void* stream);
  static int64_t copy_sequence(Cache& source, int64_t id, Cache& target, void* stream);  // copy.cpp
  void remove_tokens(int64_t id, int64_t first, int64_t count, void* stream);
  void select_tokens(int64_t id, const int64_t* positions, int64_t count, void* stream);
  int64_t sequence_length(int64_t id) const;
  // transfer.cpp
  void describe(int64_t id, tq_state* state) const;
  void export_part(int64_t id, const tq_state& state, void* memory, size_t bytes, void* stream);
  void import_part(int64_t id, const tq_state& state, const void* memory, size_t bytes, void* stream);
  // save.cpp
  void save(int64_t id, const tq_io& io, void* stream);
  int64_t load(const tq_io& io, void* stream);
  uint64_t sequence_flags(int64_t id) const;

  Batch* create_batch();
  static void destroy_batch(Batch* batch);
  void plan(Batch& batch, int32_t num_sequences, const int64_t* sequences, const int64_t* new_tokens,
            const int64_t* query_tokens, void* stream);

  // Requests come with all but the plan (or the sequence) and the workspace's default.
  void append(AppendRequest request, const Batch& batch);
  void attend(AttendRequest request, const Batch& batch, const NewTensors& given = {});
  // What attend needs at most, whatever the plan.
  size_t attend_workspace_bytes() const { return static_cast<size_t>(bytes_.workspace_bytes); }
  void read(ReadRequest request, int64_t id);

  // What a cache of this configuration allocates; Cache takes exactly this.
  static tq_cache_bytes bytes(const ResolvedConfig& config);
  static tq_layer_bytes layer_bytes(const ResolvedConfig& config, int32_t layer);
  // Whether this is the child of a fork and the cache on a device.
  bool barred() const { return gate_.barred(); }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) {
    return backend_->take_memory(bytes, what);
  }
  // For tests: the tables' own audit.
  const char* audit() const { return arrays_.table.audit(); }

 private:
  friend class Batch;
  struct Arrays {
    Arrays(const ResolvedConfig& config, Carver& carver);
    SequenceTable table;
    Written written;
    Batch** owners;  // [max_sequences] the batch whose plan in force has the slot, or null
    Batch** last;    // [max_sequences] the batch whose plan had the sequence last, in force or not, or null
    int64_t* seen;   // [max_sequences] number of the last plan call that named the slot
    float* centres;  // of each layer [num_kv_heads][head_dim + value_dim], keys first; zeros = none
    uint64_t* key_matrices;  // of each layer [num_kv_heads] hashes, 0 = none
  };
  static int64_t block_bytes(const ResolvedConfig& config);

  float* layer_centres(int32_t layer) const;
  Identity identity() const { return {&geometry(), arrays_.centres, arrays_.key_matrices}; }
  void check_exchangeable(const Cache& source) const;
  void collect_available(const Cache& source, int32_t slot, KeptTokens* available) const;
  void move_layer(Cache& source, int32_t from, int32_t slot, int32_t layer, void* stream);
  void move_staged(Cache& source, const TileMove& move);
  StatePart part_of_sequence(const tq_state& state, int32_t slot) const;
  TilePlace run_place(const PartRun& run, int32_t slot, int32_t first_head, int64_t first_tile) const;
  KeptTokens kept_of(const PartRun& run, int32_t slot, bool planned) const;
  void put_tokens(const PartRun& run, const RunSlice& slice, const KeptTokens& kept, int32_t slot,
                  int32_t first_head, int64_t begin, int64_t end);
  void put_slice(const PartRun& run, const RunSlice& slice, const KeptTokens& kept, int32_t slot,
                 int32_t first_head);
  void check_memory(const tq_state& state, const void* memory, size_t bytes) const;
  StatePart part_to_import(const tq_state& state) const;
  void check_importable(const StatePart& part, int32_t slot) const;
  void check_kept(const StatePart& part, int32_t slot, bool planned) const;
  void prepare_import(const StatePart& part, int32_t slot, const char* who, void* stream);
  void mark_imported(const StatePart& part, int32_t slot) noexcept;
  void load_payload(StateReader& in, const SavedHeader& header, int32_t slot, uint8_t* room, void* stream);
  void check_stream(const void* stream) const;
  const BatchPlan& plan_in_force(const Batch& batch) const;
  void collect_growth(Batch& batch, int32_t num_sequences, const int64_t* sequences,
                      const int64_t* new_tokens, const int64_t* query_tokens);
  void check_graph_layers(const Batch& batch, int32_t num_sequences) const;
  void check_appendable(const StepRows& rows, int32_t layer) const;
  void check_attendable(const StepRows& rows, int32_t layer, bool history_only) const;
  void check_masks(const StepRows& rows, const AttendCall& call) const;
  void check_new(const Batch& batch, const AttendRequest& request, const NewTensors& given) const;
  void mark_appended(const StepRows& rows, int32_t layer) noexcept;
  BatchPlan build_plan(Batch& batch, int32_t num_sequences, int buffer) const;
  int32_t collect_leavers(Batch& batch, int32_t num_sequences) const noexcept;
  // coding.cpp
  class AllCoded;
  void code_all(int32_t slot, PageCopy* copy, void* stream);
  void give_up_codes(int32_t slot, int64_t coded, const PageCopy& copy, void* stream);
  void encode_planned(void* stream);
  void shorten(int32_t slot, int64_t length, void* stream);
  void take_out(int32_t slot, const TokenMap& tokens, void* stream);
  void lapse(int32_t slot, const char* why) noexcept;
  void retire_plan(Batch& batch) noexcept;
  void scrub(int group, const int32_t* pages, int64_t count, void* stream);
  void scrub_dropped(int32_t group, const int32_t* pages, int64_t count, void* stream);
  void scrub_behind(int32_t slot, int64_t length, void* stream);
  void scrub_uncleared(void* stream);
  void scrub_handed_over(void* stream) noexcept;

  ResolvedConfig config_;
  tq_cache_bytes bytes_;
  HostBlock block_;
  Arrays arrays_;
  BackendFactory factory_;
  std::unique_ptr<Backend> backend_;
  int64_t plan_calls_ = 0;
  int32_t live_batches_ = 0;
  Gate gate_;
};

}  // namespace tq
