// SPDX-License-Identifier: Apache-2.0
// Places and blocks of a CUDA cache. Everything that kernels touch starts at a multiple of 256 bytes.
#include "cuda/arena.h"

#include <cuda_runtime.h>
#include <inttypes.h>

#include <algorithm>

#include <utility>

#include "cuda/code/trellis_tables.h"
#include "cuda/layer_tables.h"

namespace tq {
namespace cuda {
namespace {

constexpr int64_t kAlignment = 256;
// Page ids that one upload launch carries; more are sent by further launches before the plan itself.
constexpr int64_t kMaxStagedPages = 65536;

int64_t take(int64_t* total, int64_t bytes) {
  const int64_t place = *total;
  *total += align_up(bytes, kAlignment);
  return place;
}

}  // namespace

// ---- Blocks ----

DeviceBlock::DeviceBlock(const HostOps& ops, int device, int64_t bytes, const char* what)
    : ops_(ops), device_(device), bytes_(bytes) {
  if (bytes == 0) return;
  if (ops.alloc) {
    data_ = static_cast<uint8_t*>(allocate(ops, bytes, kAlignment, 2, device, what));
    return;
  }
  void* pointer = nullptr;
  if (const cudaError_t error = runtime().malloc_device(&pointer, static_cast<size_t>(bytes))) {
    pointer = nullptr;
    if (status_of(error) != Status::kOutOfMemory) check_cuda(error, "cudaMalloc");
    runtime().get_last_error();
  }
  TQ_CHECK(pointer, Status::kOutOfMemory, "%s: could not allocate %" PRId64 " bytes on CUDA device %d", what,
           bytes, device);
  data_ = static_cast<uint8_t*>(pointer);
}

DeviceBlock::~DeviceBlock() {
  if (!data_) return;
  if (ops_.alloc) {
    ops_.free(ops_.user, data_, static_cast<size_t>(bytes_), 2, device_);
  } else if (runtime().free_device(data_) != cudaSuccess) {
    runtime().get_last_error();  // the driver may be shutting down: nothing is left to free then
  }
}

void DeviceBlock::swap(DeviceBlock& other) noexcept {
  std::swap(ops_, other.ops_);
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

MappedBlock::MappedBlock(int64_t bytes) {
  if (bytes == 0) return;
  void* pointer = nullptr;
  check_cuda(
      runtime().host_alloc(&pointer, static_cast<size_t>(bytes), cudaHostAllocMapped | cudaHostAllocPortable),
      "cudaHostAlloc");
  host_ = static_cast<uint8_t*>(pointer);
  memset(host_, 0, static_cast<size_t>(bytes));
  const cudaError_t error = runtime().host_get_device_pointer(&pointer, host_, 0);
  if (error != cudaSuccess) {
    runtime().host_free(host_);
    host_ = nullptr;
    check_cuda(error, "cudaHostGetDevicePointer");
  }
  device_ = static_cast<uint8_t*>(pointer);
}

MappedBlock::~MappedBlock() {
  if (host_ && runtime().host_free(host_) != cudaSuccess) runtime().get_last_error();
}

void MappedBlock::swap(MappedBlock& other) noexcept {
  std::swap(host_, other.host_);
  std::swap(device_, other.device_);
}

Event::~Event() {
  if (event_ && runtime().event_destroy(event_) != cudaSuccess) runtime().get_last_error();
}

void Event::create() {
  check_cuda(runtime().event_create(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

void Event::record(cudaStream_t stream) {
  recorded_ = runtime().event_record(event_, stream) == cudaSuccess;
  if (recorded_) return;
  runtime().get_last_error();
  if (runtime().stream_synchronize(stream) != cudaSuccess) runtime().get_last_error();
}

void Event::wait() {
  if (!recorded_) return;
  check_cuda(runtime().event_synchronize(event_), "cudaEventSynchronize");
  recorded_ = false;
}

// ---- Places ----

ArenaPlaces::ArenaPlaces(const Geometry& geometry)
    : pages_bytes(0),
      raw_bytes(0),
      table_bytes(0),
      reserved_bytes(0),
      granularity(geometry.may_grow() ? memory_granularity(geometry.device_id) : kAlignment) {
  for (int group = 0; group < geometry.num_groups; group++) {
    page_table_stride[group] = align_up(geometry.groups[group].max_sequence_pages, 4);
    page_table[group] = take(&table_bytes, geometry.max_sequences * page_table_stride[group] *
                                               static_cast<int64_t>(sizeof(int32_t)));
  }
  flags_bytes = (geometry.max_sequences + 1) * static_cast<int64_t>(sizeof(uint32_t));
  for (int group = 0, first = 0; group < geometry.num_groups; group++) {
    first_in_group[group] = first;
    for (int layer = 0; layer < geometry.num_layers; layer++) first += geometry.in_group(layer, group);
    layers_in_group[group] = first - first_in_group[group];
  }
  const int last = geometry.num_groups - 1;
  layer_memory = take(&table_bytes, (first_in_group[last] + layers_in_group[last]) *
                                        static_cast<int64_t>(sizeof(LayerMemory)));
  layers.resize(geometry.num_layers);
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    LayerPlaces& place = layers[layer];
    const int64_t heads = geometry.layers[layer].num_kv_heads;
    if (!geometry.stores(layer)) {
      place = layers[geometry.layers[layer].storage];
      continue;
    }
    const format::TileLayout tile = geometry.tile(layer);
    place.pages = reserved_bytes;
    reserved_bytes +=
        align_up(geometry.own_page_bytes(layer) * geometry.group_of(layer).most_pages(), granularity);
    pages_bytes += layer_bytes(geometry, layer);
    place.raw =
        geometry.has_exact()
            ? take(&raw_bytes, geometry.raw_page_bytes(layer) * geometry.groups[geometry.raw_group].num_pages)
            : -1;
    for (int kind = 0; kind < 2; kind++) {
      const format::SideLayout& side = kind == 0 ? tile.key : tile.value;
      place.signs[kind] = side.code().rotated() ? take(&table_bytes, heads * sign_bytes(side)) : -1;
      const int64_t rows_bytes = row_table_bytes(side, static_cast<int>(heads));
      place.rows[kind] = rows_bytes > 0 ? take(&table_bytes, rows_bytes) : -1;
    }
    place.sketch = tile.key.family != format::CodeFamily::kProd
                       ? -1
                       : take(&table_bytes, heads * sketch_bytes(tile.key, geometry.sketch));
    // Neighbours: set_centres writes both by one copy.
    for (int kind = 0; kind < 2; kind++) {
      const format::SideLayout& side = kind == 0 ? tile.key : tile.value;
      place.centre[kind] = side.code().rotated()
                               ? take(&table_bytes, heads * side.dim * static_cast<int64_t>(sizeof(float)))
                               : -1;
    }
  }
}

// ---- Arena ----

Arena::Arena(const Geometry& geometry, const HostOps& ops, void* pool, int64_t workspace_bytes)
    : places_(geometry), workspace_bytes_(workspace_bytes) {
  const int device = geometry.device_id;
  if (!pool && !geometry.may_grow()) pages_own_ = DeviceBlock(ops, device, places_.pages_bytes, "pages");
  if (geometry.may_grow()) pages_reserved_ = ReservedSpace(device, places_.reserved_bytes);
  for (int layer = 0; geometry.may_grow() && layer < geometry.num_layers; layer++)
    if (geometry.stores(layer))
      pages_reserved_.map(places_.layers[layer].pages, places_.layer_bytes(geometry, layer));
  pages_ = pool                  ? static_cast<uint8_t*>(pool)
           : geometry.may_grow() ? pages_reserved_.data()
                                 : pages_own_.data();
  raw_ = DeviceBlock(ops, device, places_.raw_bytes, "exact copies");
  tables_ = DeviceBlock(ops, device, places_.table_bytes, "tables");
  workspace_ = DeviceBlock(ops, device, workspace_bytes, "workspace");
  flags_ = MappedBlock(places_.flags_bytes);
}

float* Arena::centre(int layer, Kind kind) const {
  const int64_t place = places_.layers[layer].centre[static_cast<int>(kind)];
  return place < 0 ? nullptr : reinterpret_cast<float*>(tables_.data() + place);
}

LayerMemory Arena::pages(const Geometry& geometry, int layer, int group) const {
  const LayerPlaces& place = places_.layers[layer];
  return LayerMemory{group == geometry.raw_group ? raw_.data() + place.raw : pages_ + place.pages,
                     geometry.page_bytes(layer, group)};
}

namespace {

DeviceSide side_view(const Geometry& geometry, const format::SideLayout& layout) {
  DeviceSide side = {layout, 0, 0, {}, format::ScaleRule::kLs, 0, nullptr, 0, nullptr, nullptr, nullptr};
  side.search = geometry.search ? 1 : 0;
  side.sign_stride = layout.code().rotated() ? 2 * format::sign_words(layout.stored) : 0;
  return side;
}

}  // namespace

DeviceLayer Arena::layer_view(const Geometry& geometry, int layer, bool has_key_centre,
                              bool has_value_centre) const {
  const format::TileLayout tile = geometry.tile(layer);
  const LayerPlaces& place = places_.layers[layer];
  const LayerGeometry& code = geometry.layers[layer];
  DeviceLayer view = {nullptr,
                      0,
                      0,
                      UINT32_MAX,
                      0,
                      0,
                      0,
                      0,
                      0,
                      0,
                      0,
                      geometry.io_dtype,
                      0,
                      0,
                      0,
                      side_view(geometry, tile.key),
                      side_view(geometry, tile.value),
                      nullptr,
                      nullptr};
  view.pages = pages_ + place.pages;
  view.page_bytes = geometry.page_bytes(layer);
  view.tile_bytes = tile.tile_bytes();
  view.tiles_per_page = geometry.tiles_per_page();
  view.head_bytes = static_cast<int64_t>(view.tiles_per_page) * view.tile_bytes;
  view.page_size = geometry.page_size;
  view.num_kv_heads = code.num_kv_heads;
  view.num_q_heads = code.num_q_heads;
  view.q_per_kv = code.q_per_kv;
  view.sliding_window = code.sliding_window;
  view.window_tokens = geometry.window_tokens;
  view.sink_tokens = geometry.sink_tokens;
  view.raw_page_elements = geometry.raw_page_bytes(layer) / dtype_bytes(geometry.io_dtype);
  view.flags = device_flags();
  view.noticed = device_flags() + geometry.max_sequences;
  view.key.code_offset = tile.key_offset();
  view.key.scale_offset = tile.key_scale_offset();
  if (has_book(tile.key) || is_trellis(tile.key)) view.key.book = code.key_book;
  view.key.rule = geometry.key_rule;
  view.value.code_offset = tile.value_offset();
  view.value.scale_offset = tile.value_scale_offset();
  if (has_book(tile.value) || is_trellis(tile.value)) view.value.book = code.value_book;
  view.value.rule = geometry.value_rule;
  for (Kind kind : {Kind::kKey, Kind::kValue}) {
    DeviceSide& side = kind == Kind::kKey ? view.key : view.value;
    const int index = static_cast<int>(kind);
    if (place.rows[index] >= 0)
      side.rows = reinterpret_cast<const RowTables*>(tables_.data() + place.rows[index]);
    if (place.signs[index] >= 0)
      side.signs = reinterpret_cast<const uint32_t*>(tables_.data() + place.signs[index]);
    if (kind == Kind::kKey ? has_key_centre : has_value_centre) side.centre = centre(layer, kind);
    if (place.raw >= 0)
      side.raw = raw_.data() + place.raw + (kind == Kind::kKey ? 0 : geometry.raw_value_offset(layer));
  }
  return view;
}

void Arena::initialise(const Geometry& geometry, cudaStream_t stream) {
  const int64_t first = places_.layer_memory;  // the page tables lie before it and are only cleared
  std::vector<uint8_t> constants(static_cast<size_t>(places_.table_bytes - first));
  LayerMemory* memory = reinterpret_cast<LayerMemory*>(constants.data());
  for (int group = 0; group < geometry.num_groups; group++)
    for (int layer = 0; layer < geometry.num_layers; layer++)
      if (geometry.in_group(layer, group)) *memory++ = pages(geometry, layer, group);
  for (int layer = 0; layer < geometry.num_layers; layer++) {
    if (!geometry.stores(layer)) continue;
    fill_layer_tables(geometry, layer, places_.layers[layer], first, constants.data(),
                      tables_.data() + first);
  }
  check_cuda(runtime().memset_async(tables_.data(), 0, static_cast<size_t>(first), stream),
             "cudaMemsetAsync");
  check_cuda(runtime().memcpy_async(tables_.data() + first, constants.data(), constants.size(),
                                    cudaMemcpyHostToDevice, stream),
             "cudaMemcpyAsync");
  // Nothing may show what lay in the memory before, a caller's pool included.
  for (int layer = 0; layer < geometry.num_layers; layer++)
    if (geometry.stores(layer) && places_.layer_bytes(geometry, layer) > 0)
      check_cuda(runtime().memset_async(pages_ + places_.layers[layer].pages, 0,
                                        static_cast<size_t>(places_.layer_bytes(geometry, layer)), stream),
                 "cudaMemsetAsync");
  if (workspace_bytes_ > 0)
    check_cuda(runtime().memset_async(workspace_.data(), 0, static_cast<size_t>(workspace_bytes_), stream),
               "cudaMemsetAsync");
  if (places_.raw_bytes > 0)
    check_cuda(runtime().memset_async(raw_.data(), 0, static_cast<size_t>(places_.raw_bytes), stream),
               "cudaMemsetAsync");
  check_cuda(runtime().stream_synchronize(stream), "cudaStreamSynchronize");
}

void Arena::grow(const Geometry& from, const Geometry& to, cudaStream_t stream) {
  const size_t pieces = pages_reserved_.num_pieces();
  try {
    for (int layer = 0; layer < to.num_layers; layer++) {
      const int64_t before = places_.layer_bytes(from, layer),
                    bytes = places_.layer_bytes(to, layer) - before,
                    offset = places_.layers[layer].pages + before;
      if (bytes == 0) continue;
      pages_reserved_.map(offset, bytes);
      check_cuda(runtime().memset_async(pages_ + offset, 0, static_cast<size_t>(bytes), stream),
                 "cudaMemsetAsync");
    }
    check_cuda(runtime().stream_synchronize(stream), "cudaStreamSynchronize");
  } catch (...) {
    if (runtime().stream_synchronize(stream) != cudaSuccess) runtime().get_last_error();
    pages_reserved_.unmap_since(pieces);
    throw;
  }
}

// ---- Plan storage ----

PlanStorage::PlanStorage(const Geometry& geometry, const HostOps& ops, int64_t work_bytes)
    : work_capacity(align_up(work_bytes, 16)), raw_group(geometry.raw_group) {
  const int64_t count = geometry.max_batch_sequences;
  int64_t at = sizeof(DeviceCounts);
  sequences_at = at;
  at += count * static_cast<int64_t>(sizeof(DeviceSequence));
  small_at = at;
  small_bytes = align_up(2 * count * static_cast<int64_t>(sizeof(AppendJob)), 16);
  at += geometry.num_code_groups() * small_bytes;
  large_at = at;
  at += align_up((count + 1) * static_cast<int64_t>(sizeof(int32_t)), 16);
  image_bytes = work_at = at;
  at += work_capacity;
  const int64_t device_bytes = align_up(at, kAlignment);
  runs_at = at;
  at += align_up(geometry.num_groups * count * static_cast<int64_t>(sizeof(PageRun)), 16);
  pages_at = at;
  int64_t most_pages = 0;
  for (int group = 0; group < geometry.num_groups; group++)
    most_pages += count * geometry.groups[group].max_sequence_pages;
  pages_capacity = std::min<int64_t>(most_pages, kMaxStagedPages);
  staging_bytes = at + pages_capacity * static_cast<int64_t>(sizeof(int32_t));

  device_ = DeviceBlock(ops, geometry.device_id, device_bytes, "batch");
  for (Staging& staging : staging_) {
    staging.memory = MappedBlock(staging_bytes);
    staging.read.create();
  }
}

PlanStorage::Staging& PlanStorage::next() {
  Staging& staging = staging_[turn_];
  staging.read.wait();
  turn_ ^= 1;
  return staging;
}

DevicePlan PlanStorage::view(const Arena& arena, int group, int64_t list) const {
  DevicePlan plan;
  plan.counts = reinterpret_cast<const DeviceCounts*>(device_.data());
  plan.sequences = reinterpret_cast<const DeviceSequence*>(device_.data() + sequences_at);
  plan.small_jobs = reinterpret_cast<const AppendJob*>(device_.data() + small_at + group * small_bytes);
  plan.large_first = reinterpret_cast<const int32_t*>(device_.data() + large_at);
  plan.page_table = arena.page_table(group);
  plan.page_table_stride = arena.places().page_table_stride[group];
  plan.raw_table = raw_group < 0 ? nullptr : arena.page_table(raw_group);
  plan.raw_table_stride = raw_group < 0 ? 0 : arena.places().page_table_stride[raw_group];
  plan.work = device_.data() + work_at + list;
  plan.work_capacity = work_capacity - list;
  return plan;
}

}  // namespace cuda
}  // namespace tq
