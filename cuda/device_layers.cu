// SPDX-License-Identifier: Apache-2.0
// See device_layers.h.
#include "cuda/device_layers.h"

#include <string.h>

#include <algorithm>

#include "cuda/append/launch.h"
#include "cuda/append/launch_bands.h"
#include "cuda/latent/launch.h"
#include "cuda/prefill/launch.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {
namespace {

// Stored dimension whose append kernels serve a side; a raw side runs in any.
int stored_of(const DeviceSide& side) { return format::stored_dim(side.layout.dim); }

Geometry with_layers(Geometry geometry, const std::vector<LayerGeometry>& layers) {
  geometry.layers = layers.data();
  return geometry;
}

}  // namespace

int64_t latent_place(const Geometry& geometry, int num_units) {
  return align_up(attend_workspace_capacity(geometry, num_units), 256);
}
int64_t workspace_capacity(const Geometry& geometry, int num_units) {
  return latent_place(geometry, num_units) + latent::workspace_bytes(geometry, latent::bounds_of(geometry));
}

DeviceLayers::DeviceLayers(const Geometry& geometry, const HostOps& ops, void* pool,
                           WorkspaceChoice workspace, cudaStream_t stream)
    : layers_(geometry.layers, geometry.layers + geometry.num_layers),
      geometry_(with_layers(geometry, layers_)),
      ops_(ops),
      num_units_(num_multiprocessors(geometry.device_id)),
      shared_memory_per_block_(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, geometry.device_id)),
      paced_(attend::paced_memory(device_attribute(cudaDevAttrMemoryClockRate, geometry.device_id),
                                  device_attribute(cudaDevAttrGlobalMemoryBusWidth, geometry.device_id),
                                  num_units_)),
      early_(device_attribute(cudaDevAttrComputeCapabilityMajor, geometry.device_id) >= 9),
      long_apart_(static_cast<size_t>(geometry.num_layers), 0),
      few_fits_(static_cast<size_t>(geometry.num_layers), 0),
      arena_(geometry_, ops, pool,
             workspace == kOwnWorkspace ? workspace_capacity(geometry_, num_units_) : 0),
      has_centre_(2 * static_cast<size_t>(geometry.num_layers), 0) {
  for (int layer = 0; layer < geometry_.num_layers; layer++) {
    if (layers_[layer].latent) continue;
    long_apart_[layer] = prefill::prefill_serves(geometry_, layer, shared_memory_per_block_);
    few_fits_[layer] = attend::few_fits(geometry_.tile(layer), geometry_.has_exact());
  }
  for (const LayerGeometry& layer : layers_) {
    if (layer.latent) continue;
    append::require_kernels(format::stored_dim(layer.head_dim));
    append::require_kernels(format::stored_dim(layer.value_dim));
  }
  try {
    arena_.initialise(geometry_, stream);
  } catch (...) {  // what was enqueued must not outlive the memory
    if (runtime().stream_synchronize(stream) != cudaSuccess) runtime().get_last_error();
    throw;
  }
}

void DeviceLayers::append_tokens(const DeviceLayer& layer, const DevicePlan& plan, int32_t entries,
                                 int64_t tiles, const AppendRequest& request) const {
  append::AppendParams params = {
      layer, plan,    {request.k, request.v}, {request.key_strides, request.value_strides}, 0,
      2,     entries, append::FastDivisor(1)};
  if (geometry_.store_once && geometry_.io_dtype == DataType::kF16) params.largest = format::kMaxHalf;
  append_sides(params, tiles, as_stream(request.stream));
}

void DeviceLayers::encode_copies(const DeviceLayer& layer, const DevicePlan& plan, int32_t entries,
                                 cudaStream_t stream) const {
  const auto strides = [](const DeviceSide& side) {
    return TensorStrides{side.layout.dim, format::kTileTokens * static_cast<int64_t>(side.layout.dim)};
  };
  append::AppendParams params = {layer,
                                 plan,
                                 {layer.key.raw, layer.value.raw},
                                 {strides(layer.key), strides(layer.value)},
                                 0,
                                 2,
                                 entries,
                                 append::FastDivisor(1)};
  params.from_copies = true;
  append_sides(params, entries, stream);
}

void DeviceLayers::append_sides(append::AppendParams& params, int64_t tiles, cudaStream_t stream) const {
  const DeviceLayer& layer = params.layer;
  const auto sides = [&](int stored, int first_kind, int num_kinds) {
    params.first_kind = first_kind;
    params.num_kinds = num_kinds;
    params.per_tile = append::FastDivisor(static_cast<uint32_t>(layer.num_kv_heads * num_kinds));
    append::launch_append(stored, params, tiles * layer.num_kv_heads * num_kinds, num_units_, early_, stream);
  };
  const DeviceSide &key = layer.key, &value = layer.value;
  if (key.layout.banded()) {
    append::launch_append_bands(params, tiles, num_units_, early_, stream);
    sides(stored_of(value), 1, 1);
  } else if (key.layout.raw() || value.layout.raw() || stored_of(key) == stored_of(value)) {
    sides(stored_of(key.layout.raw() ? value : key), 0, 2);
  } else {  // kernels are compiled per dimension: one launch for each
    sides(stored_of(key), 0, 1);
    sides(stored_of(value), 1, 1);
  }
}

attend::AttendLaunch DeviceLayers::attend_launch(const DeviceLayer& layer, const DevicePlan& plan,
                                                 const AttendRequest& request, bool clear) const {
  return attend::AttendLaunch{
      {layer, plan, request, num_units_, shared_memory_per_block_, as_stream(request.stream)},
      request.workspace,
      clear,
      {},
      paced_,
      early_};
}

void DeviceLayers::set_layer_centres(int layer, const float* key, const float* value) {
  const DeviceGuard guard(geometry_.device_id);
  // Both in one copy, so that a failure leaves both as they were: the places of a layer's centres are
  // neighbours.
  const float* given[2] = {key, value};
  float* places[2] = {arena_.centre(layer, Kind::kKey), arena_.centre(layer, Kind::kValue)};
  const LayerGeometry& l = layers_[layer];
  const int dims[2] = {l.head_dim, l.value_dim};
  uint8_t *begin = nullptr, *end = nullptr;
  for (int kind = 0; kind < 2; kind++) {
    if (!given[kind] || !places[kind]) continue;
    uint8_t* place = reinterpret_cast<uint8_t*>(places[kind]);
    if (!begin) begin = place;
    end = place + sizeof(float) * l.num_kv_heads * dims[kind];
  }
  if (!begin) return;
  std::vector<uint8_t> bytes(static_cast<size_t>(end - begin), 0);
  for (int kind = 0; kind < 2; kind++) {
    if (!given[kind] || !places[kind]) continue;
    float* to = reinterpret_cast<float*>(bytes.data() + (reinterpret_cast<uint8_t*>(places[kind]) - begin));
    for (int head = 0; head < l.num_kv_heads; head++)
      for (int i = 0; i < dims[kind]; i++)  // of keys in bands by place
        *to++ = given[kind][head * dims[kind] + (kind == 0 ? l.band_coordinate(head, i) : i)];
  }
  check_cuda(runtime().memcpy_sync(begin, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  for (int kind = 0; kind < 2; kind++)
    if (given[kind] && places[kind]) has_centre_[2 * layer + kind] = 1;
}

uint64_t DeviceLayers::check_layers(void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "checking for errors");
  // An asynchronous error of an earlier launch comes back here; the runtime forgets it unless it broke the
  // context.
  check_cuda(runtime().stream_synchronize(as_stream(stream)),
             "asynchronous error found by cudaStreamSynchronize");
  volatile uint32_t* noticed = arena_.host_flags() + geometry_.max_sequences;
  const uint32_t flags = *noticed;
  *noticed = 0;
  return noticed_flags(flags);
}

void DeviceLayers::drain_device() const noexcept {
  try {
    const DeviceGuard guard(geometry_.device_id);
    check_cuda(runtime().device_synchronize(), "cudaDeviceSynchronize");
  } catch (const Error&) {  // a broken context or a driver on its way out: nothing runs any more
  }
}

}  // namespace cuda
}  // namespace tq
