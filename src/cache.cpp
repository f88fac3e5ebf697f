// SPDX-License-Identifier: Apache-2.0
// Calls to requests; see cache.h.
#include "cache.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "exact_new.h"
#include "identity.h"
#include "key_matrix.h"
#include "side_centres.h"
#include "tensor_check.h"

namespace tq {
namespace {

// Writes the arrays' places into a block that exists now.
Carver carver_of(const HostBlock& block) { return Carver(block.get()); }

long long ll(int64_t x) { return static_cast<long long>(x); }

}  // namespace

// ---- Cache ----

Cache::Arrays::Arrays(const ResolvedConfig& config, Carver& carver)
    : table(config.geometry(), config.max_sequence_tokens(), carver),
      written(config.geometry().num_layers, config.geometry().max_sequences, carver) {
  const Geometry& g = config.geometry();
  owners = carver.take<Batch*>(g.max_sequences);
  last = carver.take<Batch*>(g.max_sequences);
  seen = carver.take<int64_t>(g.max_sequences);
  centres = carver.take<float>(g.centre_floats(g.num_layers));
  key_matrices = carver.take<uint64_t>(g.kv_heads(g.num_layers));
}

Cache::Cache(const tq_cache_config* config, void* stream, BackendFactory factory)
    : config_(config),
      bytes_(bytes(config_)),
      block_(config_.host_ops(), block_bytes(config_), "cache"),
      arrays_([this] {
        Carver carver = carver_of(block_);
        return Arrays(config_, carver);
      }()),
      factory_(factory),
      gate_("cache", config_.device() == DeviceType::kCuda) {
  check_stream(stream);
  const Geometry& g = geometry();
  arrays_.table.reset();
  arrays_.written.reset();
  for (int32_t slot = 0; slot < g.max_sequences; slot++) {
    arrays_.owners[slot] = arrays_.last[slot] = nullptr;
    arrays_.seen[slot] = 0;
  }
  memset(arrays_.centres, 0, sizeof(float) * static_cast<size_t>(g.centre_floats(g.num_layers)));
  std::fill_n(arrays_.key_matrices, g.kv_heads(g.num_layers), uint64_t{0});
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

void Cache::check_stream(const void* stream) const {
  TQ_CHECK(!stream || config_.device() != DeviceType::kCpu, Status::kInvalidArgument,
           "stream = %p: must be NULL for a CPU cache", stream);
}

float* Cache::layer_centres(int32_t layer) const { return arrays_.centres + geometry().centre_floats(layer); }

void Cache::set_centres(int32_t layer, const float* key, const float* value) {
  const Gate::Use use(gate_, true);
  const LayerGeometry& l = this->layer(layer);
  check_stores(geometry(), layer);
  const SideCentres centres(l, layer, key, value);
  TQ_CHECK(arrays_.table.total_tokens() == 0, Status::kInvalidState,
           "cache: centres are fixed once a sequence holds tokens (%lld in all)",
           ll(arrays_.table.total_tokens()));
  if (!centres.key() && !centres.value()) return;
  geometry().for_each_reader(layer, [&](int i) { backend_->set_centres(i, centres.key(), centres.value()); });
  keep_centres(l, centres.key(), centres.value(), layer_centres(layer));
}

void Cache::check_key_matrix(int32_t layer) const {
  const LayerGeometry& l = this->layer(layer);
  check_stores(geometry(), layer);
  TQ_CHECK(!l.latent && l.key_code.rotated(), Status::kNotSupported,
           "layer %d: a key matrix is for keys and values apart, and keys that are rotated (no latent layer, "
           "no 16 bits, no grouped codes)",
           layer);
  TQ_CHECK(arrays_.table.total_tokens() == 0, Status::kInvalidState,
           "cache: key matrices are fixed once a sequence holds tokens (%lld in all)",
           ll(arrays_.table.total_tokens()));
}

void Cache::set_key_matrix(int32_t layer, const float* matrix) {
  const Gate::Use use(gate_, true);
  TQ_CHECK(matrix, Status::kInvalidArgument, "matrix = NULL");
  check_key_matrix(layer);
  const LayerGeometry& l = this->layer(layer);
  const KeyMatrix made = KeyMatrix::make(layer, l.num_kv_heads, l.head_dim, matrix);
  const auto or_null = [](const float* centres, int64_t numbers) {
    return std::any_of(centres, centres + numbers, [](float x) { return x != 0; }) ? centres : nullptr;
  };
  const int64_t heads = l.num_kv_heads;
  const float* const key = or_null(layer_centres(layer), heads * l.head_dim);
  const float* const value = or_null(layer_centres(layer) + heads * l.head_dim, heads * l.value_dim);
  geometry().for_each_reader(layer, [&](int i) { backend_->set_key_matrix(i, made, key, value); });
  geometry().for_each_reader(layer, [&](int i) {
    std::copy(made.hashes.begin(), made.hashes.end(), arrays_.key_matrices + geometry().kv_heads(i));
  });
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
  return fingerprint_of(identity());
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
  check_stores(geometry(), request.layer);
  const BatchPlan& plan = plan_in_force(batch);
  check_stream(request.stream);
  check_append_tensors(l, geometry().io_dtype, plan.rows.new_tokens, request);
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

void Cache::attend(AttendRequest request, const Batch& batch, const NewTensors& given) {
  const Gate::Use use(gate_, !request.workspace);
  const LayerGeometry& l = layer(request.layer);
  const BatchPlan& plan = plan_in_force(batch);
  check_stream(request.stream);
  check_attend_tensors(l, geometry().io_dtype, plan.rows.query_tokens, request);
  if (request.workspace) {
    check_workspace(request.workspace, request.workspace_bytes, attend_workspace_bytes(),
                    "tq_attend_workspace_bytes");
  } else {
    request.workspace = backend_->own_workspace();
    request.workspace_bytes = static_cast<size_t>(bytes_.workspace_bytes);
  }
  if (plan.rows.query_tokens == 0) {
    TQ_CHECK(!backend_->capturing(request.stream), Status::kInvalidState,
             "batch: its plan has no query tokens, so a graph captured now would never attend any");
    return;
  }
  check_attendable(plan.rows, l.storage, request.history_only || given.k);
  check_masks(plan.rows, request);
  request.plan = &plan;
  if (!given.k) {
    backend_->attend(request);
    return;
  }
  check_new(batch, request, given);
  batch.exact_new_->attend(request, given, backend_->capturing(request.stream),
                           [this](const AttendRequest& history) { backend_->attend(history); });
}

void Cache::check_new(const Batch& batch, const AttendRequest& request, const NewTensors& given) const {
  const LayerGeometry& l = layer(request.layer);
  TQ_CHECK(batch.exact_new_, Status::kInvalidArgument,
           "params.chunk_k = %p: the cache was created without TQ_FLAG_EXACT_CHUNK", given.k);
  TQ_CHECK(!request.history_only, Status::kInvalidArgument,
           "params.history_only = 1: with params.chunk_k, which brings the plan's new tokens");
  TQ_CHECK(!request.visible_begin && !request.tree_mask && !request.alibi_slopes, Status::kNotSupported,
           "params.chunk_k = %p: not with visible ranges, a tree_mask or alibi_slopes", given.k);
  TQ_CHECK(request.out_strides.head == l.value_dim &&
               request.out_strides.token == static_cast<int64_t>(l.num_q_heads) * l.value_dim,
           Status::kInvalidArgument,
           "params.out_token_stride = %lld, params.out_head_stride = %lld: with params.chunk_k out must be "
           "dense",
           ll(request.out_strides.token), ll(request.out_strides.head));
  AppendRequest as_appended = {};
  as_appended.layer = request.layer;
  as_appended.k = given.k;
  as_appended.v = given.v;
  as_appended.key_strides = given.key_strides;
  as_appended.value_strides = given.value_strides;
  check_append_tensors(l, geometry().io_dtype, request.plan->rows.new_tokens, as_appended);
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
  check_read_tensors(l, geometry().io_dtype, request.count, request.k, request.v, request.key_strides,
                     request.value_strides);
  if (request.count == 0 || (!request.k && !request.v)) return;
  const KeptTokens exact = table.exact(slot);
  request.sequence = StepSequence{slot, slot, slot, length, 0, 0, 0, 0, exact.first, exact.sink_end};
  request.maps = table.maps();
  backend_->read(request);
}

}  // namespace tq
