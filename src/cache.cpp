// SPDX-License-Identifier: Apache-2.0
// Calls to requests; see cache.h.
#include "cache.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "identity.h"
#include "tensor_check.h"

namespace tq {
namespace {

// Writes the arrays' places into a block that exists now.
Carver carver_of(const HostBlock& block) { return Carver(block.get()); }

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

// ---- Gate ----

Gate::Gate(bool of_one_process) : of_one_process_(of_one_process), process_(getpid()) {}

bool Gate::barred() const { return of_one_process_ && getpid() != process_; }

Gate::Use::Use(const Gate& gate, bool exclusive) : gate_(gate), exclusive_(exclusive) {
  TQ_CHECK(
      !gate_.barred(), Status::kInvalidState,
      "cache: created in process %d, called in process %d: a CUDA cache is of no use to a forked process",
      static_cast<int>(gate_.process_), static_cast<int>(getpid()));
  int32_t users = gate_.users_.load(std::memory_order_relaxed);
  do {
    if (exclusive ? users == 0 : users >= 0) continue;
    TQ_CHECK(getpid() == gate_.process_, Status::kInvalidState,
             "cache: busy: a call on it was running when process %d was forked from process %d",
             static_cast<int>(getpid()), static_cast<int>(gate_.process_));
    throw Error(Status::kInvalidState, "cache: busy: another call on it is running");
  } while (!gate_.users_.compare_exchange_weak(users, exclusive ? -1 : users + 1, std::memory_order_acquire,
                                               std::memory_order_relaxed));
}
Gate::Use::~Use() {
  if (exclusive_)
    gate_.users_.store(0, std::memory_order_release);
  else
    gate_.users_.fetch_sub(1, std::memory_order_release);
}

// ---- Cache ----

Cache::Arrays::Arrays(const ResolvedConfig& config, Carver& carver)
    : table(config.geometry(), config.max_sequence_tokens(), carver),
      written(config.geometry().num_layers, config.geometry().max_sequences, carver) {
  const Geometry& g = config.geometry();
  owners = carver.take<Batch*>(g.max_sequences);
  last = carver.take<Batch*>(g.max_sequences);
  seen = carver.take<int64_t>(g.max_sequences);
  centres = carver.take<float>(g.centre_floats(g.num_layers));
}

Cache::Cache(const tq_cache_config* config, void* stream, BackendFactory factory)
    : config_(config),
      bytes_(bytes(config_)),
      block_(config_.host_ops(), block_bytes(config_), "cache"),
      arrays_([this] {
        Carver carver = carver_of(block_);
        return Arrays(config_, carver);
      }()),
      gate_(config_.device() == DeviceType::kCuda) {
  check_stream(stream);
  const Geometry& g = geometry();
  arrays_.table.reset();
  arrays_.written.reset();
  for (int32_t slot = 0; slot < g.max_sequences; slot++) {
    arrays_.owners[slot] = arrays_.last[slot] = nullptr;
    arrays_.seen[slot] = 0;
  }
  memset(arrays_.centres, 0, sizeof(float) * static_cast<size_t>(g.centre_floats(g.num_layers)));
  backend_ = factory(config_.device(), g, config_.backend_ops(), config_.config().pool, stream);
}

Cache::~Cache() {
  if (!backend_) return;
  backend_->drain();
  try {  // the device may be gone by now: then there is nothing left to scrub
    for (int32_t slot = 0; slot < geometry().max_sequences && geometry().zero_on_free; slot++) {
      if (!arrays_.table.alive(slot)) continue;
      scrub_behind(slot, 0, nullptr);
      arrays_.table.commit_free(slot);
    }
    if (geometry().zero_on_free) scrub_uncleared(nullptr);
  } catch (...) {
  }
  backend_->drain();
}

void Cache::destroy(Cache* cache) {
  const auto check_batches = [cache] {
    TQ_CHECK(cache->live_batches_ == 0, Status::kInvalidState,
             "cache: %d of its batches live; destroy them first", cache->live_batches_);
  };
  if (cache->gate_.barred()) {
    check_batches();
    // Device memory is its creator's affair. All that leaks is the backend's object and its host arrays.
    static_cast<void>(cache->backend_.release());
  } else {
    const Gate::Use use(cache->gate_, true);
    check_batches();
  }
  delete cache;
}

const LayerGeometry& Cache::layer(int32_t layer) const {
  TQ_CHECK(layer >= 0 && layer < geometry().num_layers, Status::kInvalidArgument,
           "layer = %d: must be 0 .. %d", layer, geometry().num_layers - 1);
  return geometry().layers[layer];
}

void Cache::check_stores(int32_t layer) const {
  TQ_CHECK(geometry().stores(layer), Status::kInvalidArgument,
           "layer = %d: it shares the tokens of layer %d and has none of its own", layer,
           geometry().layers[layer].storage);
}

void Cache::check_stream(const void* stream) const {
  TQ_CHECK(!stream || config_.device() != DeviceType::kCpu, Status::kInvalidArgument,
           "stream = %p: must be NULL for a CPU cache", stream);
}

float* Cache::layer_centres(int32_t layer) const { return arrays_.centres + geometry().centre_floats(layer); }

void Cache::set_centres(int32_t layer, const float* key, const float* value) {
  const Gate::Use use(gate_, true);
  const LayerGeometry& l = this->layer(layer);
  check_stores(layer);
  const int64_t key_count = static_cast<int64_t>(l.num_kv_heads) * l.head_dim,
                value_count = static_cast<int64_t>(l.num_kv_heads) * l.value_dim;
  for (int64_t i = 0; key && i < key_count; i++)
    TQ_CHECK(isfinite(key[i]), Status::kInvalidArgument, "key_centre[%lld][%lld] = %g: must be finite",
             ll(i / l.head_dim), ll(i % l.head_dim), static_cast<double>(key[i]));
  for (int64_t i = 0; value && i < value_count; i++)
    TQ_CHECK(isfinite(value[i]), Status::kInvalidArgument, "value_centre[%lld][%lld] = %g: must be finite",
             ll(i / l.value_dim), ll(i % l.value_dim), static_cast<double>(value[i]));
  TQ_CHECK(arrays_.table.total_tokens() == 0, Status::kInvalidState,
           "cache: centres are fixed once a sequence holds tokens (%lld in all)",
           ll(arrays_.table.total_tokens()));
  // Raw sides have no centre, so none is kept for them: the fingerprint follows.
  if (l.key_code.raw()) key = nullptr;
  if (l.value_code.raw()) value = nullptr;
  if (!key && !value) return;
  backend_->set_centres(layer, key, value);
  if (key) memcpy(layer_centres(layer), key, sizeof(float) * static_cast<size_t>(key_count));
  if (value)
    memcpy(layer_centres(layer) + key_count, value, sizeof(float) * static_cast<size_t>(value_count));
}

void Cache::reserve(int64_t max_tokens, void* stream) {
  const Gate::Use use(gate_, true);
  const tq_cache_config& c = config_.config();
  check_stream(stream);
  TQ_CHECK(max_tokens >= c.max_tokens, Status::kInvalidArgument,
           "max_tokens = %lld: the cache has room for %lld already, and pools do not shrink", ll(max_tokens),
           ll(c.max_tokens));
  TQ_CHECK(max_tokens <= c.max_reserve_tokens, Status::kCapacity,
           "max_tokens = %lld: max_reserve_tokens = %lld, fixed when the cache was created", ll(max_tokens),
           ll(c.max_reserve_tokens));
  const int64_t before = c.max_tokens;
  if (max_tokens == before) return;
  tq_cache_bytes grown;
  int64_t num_pages[kMaxPageGroups];
  config_.set_max_tokens(max_tokens);
  try {
    for (int32_t group = 0; group < geometry().num_groups; group++)
      num_pages[group] = geometry().groups[group].num_pages;
    grown = bytes(config_);
    backend_->grow_pages(num_pages, stream);
  } catch (...) {
    config_.set_max_tokens(before);
    throw;
  }
  for (int32_t group = 0; group < geometry().num_groups; group++)
    arrays_.table.group(group).grow(num_pages[group]);
  bytes_ = grown;
}

uint64_t Cache::fingerprint() const {
  const Gate::Use use(gate_, false);
  return fingerprint_of(Identity{&geometry(), arrays_.centres});
}

uint64_t Cache::check(void* stream) {
  const Gate::Use use(gate_, true);
  check_stream(stream);
  return backend_->check(stream);
}

// ---- Requests ----

void Cache::append(AppendRequest request, const Batch& batch) {
  const Gate::Use use(gate_, true);
  const LayerGeometry& l = layer(request.layer);
  check_stores(request.layer);
  const BatchPlan& plan = plan_in_force(batch);
  check_stream(request.stream);
  const int element_bytes = dtype_bytes(geometry().io_dtype);
  check_pointer("k", request.k, plan.rows.new_tokens > 0, plan.rows.new_tokens, element_bytes);
  check_pointer("v", request.v, plan.rows.new_tokens > 0, plan.rows.new_tokens, element_bytes);
  check_extent("k", TensorShape{plan.rows.new_tokens, l.num_kv_heads, l.head_dim}, request.key_strides);
  check_extent("v", TensorShape{plan.rows.new_tokens, l.num_kv_heads, l.value_dim}, request.value_strides);
  const bool in_graph = backend_->capturing(request.stream);
  TQ_CHECK(plan.rows.new_tokens > 0 || !in_graph, Status::kInvalidState,
           "batch: its plan has no new tokens, so a graph captured now would never append any");
  if (plan.rows.new_tokens == 0) return;
  check_appendable(plan.rows, request.layer);
  request.plan = &plan;
  backend_->append(request);
  mark_appended(plan.rows, request.layer);
  // Replays make no call: what the graph appends for this plan it appends for every later one.
  if (in_graph) batch.arrays_.in_graph[request.layer] = 1;
}

void Cache::attend(AttendRequest request, const Batch& batch) {
  const Gate::Use use(gate_, !request.workspace);
  const LayerGeometry& l = layer(request.layer);
  const BatchPlan& plan = plan_in_force(batch);
  check_stream(request.stream);
  const TensorShape q_shape = {plan.rows.query_tokens, l.num_q_heads, l.head_dim},
                    out_shape = {plan.rows.query_tokens, l.num_q_heads, l.value_dim};
  check_pointer("q", request.q, plan.rows.query_tokens > 0, plan.rows.query_tokens,
                dtype_bytes(geometry().io_dtype));
  check_pointer("out", request.out, plan.rows.query_tokens > 0, plan.rows.query_tokens,
                dtype_bytes(request.out_dtype));
  check_pointer("lse", request.lse, false, plan.rows.query_tokens, sizeof(float));
  check_pointer("params.sink_logits", request.sink_logits, false, plan.rows.query_tokens, sizeof(float));
  check_pointer("params.visible_begin", request.visible_begin, false, plan.rows.query_tokens,
                sizeof(int32_t));
  check_pointer("params.visible_end", request.visible_end, false, plan.rows.query_tokens, sizeof(int32_t));
  check_pointer("params.tree_mask", request.tree_mask, false, plan.rows.query_tokens, sizeof(uint64_t));
  check_pointer("params.alibi_slopes", request.alibi_slopes, false, plan.rows.query_tokens, sizeof(float));
  check_extent("q", q_shape, request.q_strides);
  check_extent("out", out_shape, request.out_strides);
  check_no_overlap("out", out_shape, request.out_strides);
  if (request.workspace) {
    TQ_CHECK(reinterpret_cast<uintptr_t>(request.workspace) % 256 == 0, Status::kInvalidArgument,
             "workspace = %p: must be aligned to 256 bytes", request.workspace);
    TQ_CHECK(request.workspace_bytes >= attend_workspace_bytes(), Status::kWorkspaceTooSmall,
             "workspace_bytes = %zu: tq_attend_workspace_bytes says %zu", request.workspace_bytes,
             attend_workspace_bytes());
  } else {
    request.workspace = backend_->own_workspace();
    request.workspace_bytes = static_cast<size_t>(bytes_.workspace_bytes);
  }
  if (plan.rows.query_tokens == 0) {
    TQ_CHECK(!backend_->capturing(request.stream), Status::kInvalidState,
             "batch: its plan has no query tokens, so a graph captured now would never attend any");
    return;
  }
  check_attendable(plan.rows, l.storage, request.history_only);
  check_masks(plan.rows, request);
  request.plan = &plan;
  backend_->attend(request);
}

void Cache::read(ReadRequest request, int64_t id) {
  const Gate::Use use(gate_, true);
  const LayerGeometry& l = layer(request.layer);
  const int32_t slot = arrays_.table.find(id, "sequence");
  check_stream(request.stream);
  const SequenceTable& table = arrays_.table;
  const int64_t length = table.length(slot);
  TQ_CHECK(request.first >= 0 && request.first <= length, Status::kInvalidArgument,
           "first = %lld: the sequence has %lld tokens", ll(request.first), ll(length));
  TQ_CHECK(request.count >= 0 && request.count <= length - request.first, Status::kInvalidArgument,
           "count = %lld: the sequence has %lld tokens from first = %lld on", ll(request.count),
           ll(length - request.first), ll(request.first));
  const int64_t written = arrays_.written.tokens(l.storage, slot);
  TQ_CHECK(request.first + request.count <= written || request.count == 0, Status::kInvalidState,
           "first + count = %lld: layer %d of sequence %lld holds %lld of its %lld tokens; the others are "
           "planned and not appended there",
           ll(request.first + request.count), request.layer, ll(id), ll(written), ll(length));
  const int64_t kept = table.group(l.group).kept(slot).first;
  TQ_CHECK(request.first >= kept || request.count == 0, Status::kInvalidState,
           "first = %lld: layer %d has a sliding window of %d tokens and keeps those from %lld on",
           ll(request.first), request.layer, geometry().layers[l.storage].sliding_window, ll(kept));
  const TensorShape k_shape = {request.count, l.num_kv_heads, l.head_dim},
                    v_shape = {request.count, l.num_kv_heads, l.value_dim};
  check_pointer("k", request.k, false, request.count, dtype_bytes(geometry().io_dtype));
  check_pointer("v", request.v, false, request.count, dtype_bytes(geometry().io_dtype));
  check_extent("k", k_shape, request.key_strides);
  check_extent("v", v_shape, request.value_strides);
  check_no_overlap("k", k_shape, request.key_strides);
  check_no_overlap("v", v_shape, request.value_strides);
  if (request.count == 0 || (!request.k && !request.v)) return;
  const KeptTokens exact = table.exact(slot);
  request.sequence = StepSequence{slot, slot, slot, length, 0, 0, 0, 0, exact.first, exact.sink_end};
  request.maps = table.maps();
  backend_->read(request);
}

}  // namespace tq
