// SPDX-License-Identifier: Apache-2.0
// See device_layers.h.
#include "cuda/device_layers.h"

#include <string.h>

#include <algorithm>
#include <utility>

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
int64_t wide_place(const Geometry& geometry, int num_units) {
  return align_up(
      latent_place(geometry, num_units) + latent::workspace_bytes(geometry, latent::bounds_of(geometry)),
      256);
}
prefill::WideBounds wide_bounds(const Geometry& geometry) {
  prefill::WideBounds bounds = {geometry.max_batch_tokens, geometry.max_batch_tokens, 0};
  for (int group = 0; group < geometry.num_code_groups(); group++)
    bounds.longest = std::max(bounds.longest,
                              geometry.groups[group].max_sequence_pages * geometry.groups[group].page_size);
  return bounds;
}
int64_t workspace_capacity(const Geometry& geometry, int num_units) {
  const DeviceGuard guard(geometry.device_id);
  return wide_place(geometry, num_units) +
         prefill::wide_workspace_bytes(
             geometry, wide_bounds(geometry), num_units,
             device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, geometry.device_id));
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
      has_centre_(2 * static_cast<size_t>(geometry.num_layers), 0),
      matrices_(static_cast<size_t>(geometry.num_layers)) {
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

DeviceLayer DeviceLayers::layer_view(int layer) const {
  const int storage = layers_[layer].storage;
  DeviceLayer view =
      arena_.layer_view(geometry_, layer, has_centre_[2 * storage], has_centre_[2 * storage + 1]);
  const MatrixSpace* const space = matrix_space(layer);
  if (!space) return view;
  view.key_matrix = reinterpret_cast<const float*>(space->block.data());
  if (view.key.centre) view.key.centre = centre_place(layer, Kind::kKey);
  if (view.value.centre) view.value.centre = centre_place(layer, Kind::kValue);
  return view;
}

float* DeviceLayers::centre_place(int layer, Kind kind) const {
  float* const place = arena_.centre(layer, kind);
  const MatrixSpace* const space = matrix_space(layer);
  if (!space || !place) return place;
  const size_t keys = kind == Kind::kKey ? 0 : space->matrix.centre_numbers();
  return reinterpret_cast<float*>(space->block.data()) + 2 * space->matrix.given.size() + keys;
}

void DeviceLayers::fill_centre(int layer, Kind kind, const KeyMatrix* matrix, const float* given,
                               float* to) const {
  const LayerGeometry& l = layers_[layer];
  const int dim = l.dim(kind);
  float turned[format::kMaxDim];
  for (int head = 0; head < l.num_kv_heads; head++) {
    const float* own = given + static_cast<int64_t>(head) * dim;
    if (matrix && kind == Kind::kKey)
      apply_columns(matrix->head_columns(head), dim, own, turned), own = turned;
    for (int i = 0; i < dim; i++) *to++ = own[kind == Kind::kKey ? l.band_coordinate(head, i) : i];
  }
}

void DeviceLayers::set_layer_centres(int layer, const float* key, const float* value) {
  if (!geometry_.stores(layer)) return;
  const DeviceGuard guard(geometry_.device_id);
  // Both in one copy, so that a failure leaves both as they were: the places of a layer's centres are
  // neighbours.
  const float* given[2] = {key, value};
  float* places[2] = {centre_place(layer, Kind::kKey), centre_place(layer, Kind::kValue)};
  const LayerGeometry& l = layers_[layer];
  const MatrixSpace* const space = matrix_space(layer);
  float *begin = nullptr, *end = nullptr;
  for (int kind = 0; kind < 2; kind++) {
    if (!given[kind] || !places[kind]) continue;
    if (!begin) begin = places[kind];
    end = places[kind] + static_cast<int64_t>(l.num_kv_heads) * l.dim(static_cast<Kind>(kind));
  }
  if (!begin) return;
  std::vector<float> numbers(static_cast<size_t>(end - begin), 0.0f);
  for (int kind = 0; kind < 2; kind++)
    if (given[kind] && places[kind])
      fill_centre(layer, static_cast<Kind>(kind), space ? &space->matrix : nullptr, given[kind],
                  numbers.data() + (places[kind] - begin));
  check_cuda(
      runtime().memcpy_sync(begin, numbers.data(), numbers.size() * sizeof(float), cudaMemcpyHostToDevice),
      "cudaMemcpy");
  for (int kind = 0; kind < 2; kind++)
    if (given[kind] && places[kind]) has_centre_[2 * layer + kind] = 1;
}

void DeviceLayers::set_layer_matrix(int layer, const KeyMatrix& matrix, const float* key,
                                    const float* value) {
  if (!geometry_.stores(layer)) return;
  const DeviceGuard guard(geometry_.device_id);
  const LayerGeometry& l = layers_[layer];
  MatrixSpace space;
  space.matrix = matrix;
  const size_t numbers = matrix.given.size(), key_numbers = matrix.centre_numbers(),
               value_numbers = static_cast<size_t>(l.num_kv_heads) * static_cast<size_t>(l.value_dim);
  std::vector<float> image(2 * numbers + key_numbers + value_numbers, 0.0f);
  std::copy(matrix.columns.begin(), matrix.columns.end(), image.begin());
  std::copy(matrix.inverse.begin(), matrix.inverse.end(), image.data() + numbers);
  float* const centres = image.data() + 2 * numbers;
  if (key) fill_centre(layer, Kind::kKey, &matrix, key, centres);
  if (value) fill_centre(layer, Kind::kValue, &matrix, value, centres + key_numbers);
  MatrixSpace& own = matrices_[layer];
  const int64_t bytes = static_cast<int64_t>(image.size() * sizeof(float));
  if (!own.block.data()) space.block = DeviceBlock(ops_, geometry_.device_id, bytes, "key matrices");
  uint8_t* const to = own.block.data() ? own.block.data() : space.block.data();
  check_cuda(runtime().memcpy_sync(to, image.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
             "cudaMemcpy");
  if (space.block.data()) own.block = std::move(space.block);
  own.matrix = std::move(space.matrix);
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
