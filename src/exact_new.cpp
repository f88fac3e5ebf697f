// SPDX-License-Identifier: Apache-2.0
// See exact_new.h.
#include "exact_new.h"

#include <string.h>

#include <algorithm>

#include "config_text.h"

namespace tq {
namespace {

constexpr int32_t kNewPage = format::kTileTokens;

long long ll(int64_t x) { return static_cast<long long>(x); }

int64_t align_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool same_shape(const LayerGeometry& a, const LayerGeometry& b) {
  return a.num_q_heads == b.num_q_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim &&
         a.value_dim == b.value_dim;
}

int64_t most_rows(const Geometry& geometry, bool values) {
  int64_t most = 0;
  for (int32_t i = 0; i < geometry.num_layers; i++)
    most = std::max<int64_t>(most, static_cast<int64_t>(geometry.layers[i].num_q_heads) *
                                       (values ? geometry.layers[i].value_dim : 1));
  return most * geometry.max_batch_tokens;
}
int64_t lse_bytes(const Geometry& geometry) {
  return align_up(most_rows(geometry, false) * static_cast<int64_t>(sizeof(float)));
}
// Outputs of float32 or less.
int64_t space_bytes(const Geometry& geometry) {
  return 2 * lse_bytes(geometry) + most_rows(geometry, true) * static_cast<int64_t>(sizeof(float));
}

}  // namespace

ExactNew::ExactNew(const ResolvedConfig& config, BackendFactory factory)
    : of_(config),
      layer_of_(static_cast<size_t>(config.geometry().num_layers)),
      sequences_(static_cast<size_t>(config.geometry().max_batch_sequences)),
      counts_(sequences_.size()),
      queries_(sequences_.size()) {
  const Geometry& g = config.geometry();
  std::vector<int32_t> first;  // layer of each shape
  for (int32_t i = 0; i < g.num_layers; i++) {
    size_t at = 0;
    while (at < first.size() && !same_shape(g.layers[first[at]], g.layers[i])) at++;
    if (at == first.size()) first.push_back(i);
    layer_of_[static_cast<size_t>(i)] = static_cast<int32_t>(at);
  }
  std::vector<tq_layer_config> layers(first.size());
  for (size_t i = 0; i < first.size(); i++) {
    const LayerGeometry& l = g.layers[first[i]];
    layers[i].struct_size = sizeof layers[i];
    layers[i].num_q_heads = l.num_q_heads;
    layers[i].num_kv_heads = l.num_kv_heads;
    layers[i].head_dim = l.head_dim;
    layers[i].value_dim = l.value_dim;
  }
  tq_cache_config c = {};
  c.struct_size = sizeof c;
  c.device_type = config.config().device_type;
  c.device_id = config.config().device_id;
  c.num_layers = static_cast<int32_t>(layers.size());
  c.layers = layers.data();
  c.io_dtype = config.config().io_dtype;
  c.key_bits = c.value_bits = format::kRawBits;
  c.page_size = kNewPage;
  c.max_batch_tokens = g.max_batch_tokens;
  c.max_sequences = c.max_batch_sequences = g.max_batch_sequences;
  c.max_tokens = (g.max_batch_tokens / kNewPage + g.max_batch_sequences + 1) * kNewPage;
  c.num_threads = config.config().num_threads;
  c.flags = TQ_FLAG_NO_ZERO_ON_FREE | (config.config().flags & TQ_FLAG_BATCH_INVARIANT);
  c.allocator = config.config().allocator;
  cache_ = std::make_unique<Cache>(&c, nullptr, factory);
  for (int64_t& id : sequences_) id = cache_->create_sequence();
  space_ = cache_->take_memory(space_bytes(g), "TQ_FLAG_EXACT_CHUNK: max_batch_tokens");
  batch_ = cache_->create_batch();
}

ExactNew::~ExactNew() {
  if (batch_) Cache::destroy_batch(batch_);
  // In the child of a fork the device is not to be touched.
  if (cache_->barred()) static_cast<void>(space_.release());
  Cache::destroy(cache_.release());
}

void ExactNew::plan(const StepRows& rows, void* stream) {
  in_force_ = false;
  fits_ = true;
  for (int32_t i = 0; i < rows.num_sequences; i++) {
    const StepSequence& s = rows.sequences[i];
    counts_[static_cast<size_t>(i)] = s.new_tokens;
    queries_[static_cast<size_t>(i)] = s.query_tokens;
    fits_ = fits_ && s.query_tokens <= s.new_tokens;
  }
  if (!fits_) {
    in_force_ = true;
    return;
  }
  for (; used_ > 0; used_--) cache_->truncate_sequence(sequences_[static_cast<size_t>(used_ - 1)], 0, stream);
  cache_->plan(*batch_, rows.num_sequences, sequences_.data(), counts_.data(), queries_.data(), stream);
  used_ = rows.num_sequences;
  in_force_ = true;
}

void ExactNew::attend(const AttendRequest& request, const NewTensors& given, bool capturing,
                      const std::function<void(const AttendRequest&)>& history) {
  const LayerGeometry& l = of_.geometry().layers[request.layer];
  TQ_CHECK(in_force_, Status::kInvalidState,
           "params.chunk_k: a later plan of the batch has failed before it was whole; plan again");
  TQ_CHECK(fits_, Status::kInvalidState,
           "params.chunk_k: the plan has queries that are not new tokens; those are what it may ask");
  AppendRequest append = {};
  append.layer = layer_of_[static_cast<size_t>(request.layer)];
  append.k = given.k;
  append.v = given.v;
  append.key_strides = given.key_strides;
  append.value_strides = given.value_strides;
  append.stream = request.stream;
  AttendRequest own = request;
  own.layer = append.layer;
  own.workspace = nullptr;
  own.workspace_bytes = 0;
  // A graph's later plans may have a history even if this one has none.
  bool any = capturing;
  const StepRows& plan = request.plan->rows;
  for (int32_t i = 0; i < plan.num_sequences; i++)
    any |= plan.sequences[i].query_tokens > 0 && plan.sequences[i].old_length > 0;
  const int64_t rows = plan.query_tokens * l.num_q_heads, lse_array = lse_bytes(of_.geometry());
  float* lses[2] = {reinterpret_cast<float*>(space_->data()),
                    reinterpret_cast<float*>(space_->data() + lse_array)};
  void* outs[2] = {space_->data() + 2 * lse_array, request.out};
  if (any) {
    AttendRequest before = request;
    before.history_only = true;
    before.sink_logits = nullptr;  // counts once, with the new tokens
    before.out = outs[0];
    before.lse = lses[0];
    history(before);
    own.lse = lses[1];
  }
  cache_->append(append, *batch_);
  cache_->attend(own, *batch_);
  if (!any) return;
  merge_states(of_.device(), MergeRequest{2, outs, lses, rows, l.value_dim, request.out_dtype, request.out,
                                          request.lse, of_.geometry().device_id, request.stream});
}

void ExactNew::check(const tq_cache_config& config, const std::vector<LayerGeometry>& layers,
                     ReasonList& reasons) {
  if (!(config.flags & TQ_FLAG_EXACT_CHUNK)) return;
  for (size_t i = 0; i < layers.size(); i++)
    if (layers[i].latent) {
      reasons.add(Status::kNotSupported, "flags = 0x%llx: TQ_FLAG_EXACT_CHUNK: layer %lld is TQ_LATENT",
                  static_cast<unsigned long long>(config.flags), ll(static_cast<int64_t>(i)));
      return;
    }
}

}  // namespace tq
