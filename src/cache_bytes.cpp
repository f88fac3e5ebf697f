// SPDX-License-Identifier: Apache-2.0
// What a cache takes: announced before it exists, by layer and in all, and counted while it lives.
#include <algorithm>

#include "cache.h"

namespace tq {

int64_t Cache::block_bytes(const ResolvedConfig& config) {
  Carver carver;
  Arrays arrays(config, carver);
  return carver.used();
}

tq_layer_bytes Cache::layer_bytes(const ResolvedConfig& config, int32_t layer) {
  const Geometry& g = config.geometry();
  TQ_CHECK(layer >= 0 && layer < g.num_layers, Status::kInvalidArgument, "layer = %d: must be 0 .. %d", layer,
           g.num_layers - 1);
  tq_layer_bytes bytes = {};
  bytes.group = g.layers[layer].group;
  bytes.num_pages = g.group_of(layer).num_pages;
  bytes.page_bytes = bytes.num_pages * g.own_page_bytes(layer);
  bytes.raw_bytes =
      g.has_exact() && g.stores(layer) ? g.groups[g.raw_group].num_pages * g.raw_page_bytes(layer) : 0;
  bytes.token_bytes = config.token_bytes(layer);
  bytes.fp16_token_bytes = config.fp16_token_bytes(layer);
  return bytes;
}

tq_cache_bytes Cache::bytes(const ResolvedConfig& config) {
  const BackendBytes backend = backend_bytes(config.device(), config.geometry());
  const int64_t block = block_bytes(config);
  tq_cache_bytes bytes = {};
  bytes.page_bytes = backend.pages;
  bytes.raw_bytes = backend.raw;
  bytes.table_bytes = backend.tables + block;
  bytes.workspace_bytes = backend.workspace;
  const int64_t device = backend.pages + backend.raw + backend.tables + backend.workspace;
  bytes.device_bytes = config.device() == DeviceType::kCuda ? device : 0;
  bytes.host_bytes = device + block - bytes.device_bytes;
  bytes.num_pages = config.geometry().groups[0].num_pages;
  bytes.token_bytes = config.token_bytes();
  bytes.fp16_token_bytes = config.fp16_token_bytes();
  return bytes;
}

tq_cache_memory Cache::memory() const {
  const Gate::Use use(gate_, false);
  tq_cache_memory memory = {};
  memory.num_sequences = arrays_.table.num_sequences();
  memory.tokens = arrays_.table.total_tokens();
  memory.pages_total = bytes_.num_pages;
  const Geometry& g = geometry();
  for (int32_t i = 0; i < g.num_groups; i++) {
    const int64_t used = arrays_.table.group(i).pages_used();
    if (i == 0) memory.pages_used = used;
    (i == g.raw_group ? memory.raw_bytes_used : memory.stored_bytes_used) += used * g.group_page_bytes(i);
  }
  memory.raw_bytes = bytes_.raw_bytes;
  memory.device_bytes = bytes_.device_bytes;
  memory.host_bytes = bytes_.host_bytes;
  double fp16 = 0;  // of the tokens of a full cache
  for (int32_t i = 0; i < g.num_layers; i++) {
    const PageGroup& group = g.group_of(i);
    int64_t tokens = std::min(config_.config().max_tokens, group.num_pages * group.page_size);
    if (g.store_once)  // and those of the windows
      tokens +=
          std::min(config_.config().max_raw_tokens, static_cast<int64_t>(g.window_tokens) * g.max_sequences);
    fp16 += static_cast<double>(config_.fp16_token_bytes(i)) * static_cast<double>(tokens);
  }
  memory.compression = fp16 / static_cast<double>(bytes_.page_bytes + bytes_.raw_bytes);
  return memory;
}

}  // namespace tq
