// SPDX-License-Identifier: Apache-2.0
// Verbs of the CUDA backend: requests become launches. Nothing here touches a vector; nothing in append and
// attend allocates or waits.
//
// Failure is atomic because a verb is one launch wherever that is possible, and otherwise its earlier steps
// change nothing that anybody can observe (page-table entries behind a sequence's end, a repeated append).
#include "cuda/backend.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cuda/append/copies.h"
#include "cuda/coding.h"
#include "cuda/device_layers.h"
#include "cuda/latent/launch.h"
#include "cuda/link.h"
#include "cuda/merge/launch.h"
#include "cuda/move/launch.h"
#include "cuda/pages/launch.h"
#include "cuda/plan_upload.h"
#include "cuda/prefill/launch.h"
#include "cuda/schedule/work_list.h"

namespace tq {
namespace cuda {
namespace {

int64_t max_page_bytes(const Geometry& geometry, int group) {
  int64_t most = 0;
  for (int layer = 0; layer < geometry.num_layers; layer++)
    if (geometry.in_group(layer, group)) most = std::max(most, geometry.page_bytes(layer, group));
  return most;
}

struct Batch {
  PlanStorage storage;
  UploadedPlan uploaded;
  // A graph was captured that takes long sequences apart, in layers of a head shape: every later plan must
  // bring the pair of work lists it reads.
  mutable std::atomic<bool> pair_in_graph[kMaxHeadShapes] = {};

  Batch(const Geometry& geometry, const HostOps& ops, int64_t work_capacity)
      : storage(geometry, ops, work_capacity) {}
};

class CudaBackend : public Backend, private DeviceLayers {
 public:
  CudaBackend(const Geometry& geometry, const HostOps& ops, void* pool, cudaStream_t stream);
  ~CudaBackend() override;

  BackendBytes bytes() const override { return cuda_backend_bytes(geometry_); }
  void* create_plan_storage() override;
  void destroy_plan_storage(void* storage) override;
  void upload_plan(const BatchPlan& plan, void* stream) override;
  void append(const AppendRequest& request) override;
  void encode_tokens(const EncodeRequest& request) override;
  void attend(const AttendRequest& request) override;
  void read(const ReadRequest& request) override;
  void* own_workspace() override { return arena_.workspace(); }
  void set_centres(int layer, const float* key, const float* value) override {
    set_layer_centres(layer, key, value);
  }
  void set_key_matrix(int layer, const KeyMatrix& matrix, const float* key, const float* value) override {
    set_layer_matrix(layer, matrix, key, value);
  }
  void grow_pages(const int64_t* num_pages, void* stream) override;
  void copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) override;
  void scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) override;
  void move_tokens(const MoveRequest& request) override;
  void copy_slot(int source, int target, void* stream) override;
  void start_slot(int slot, void* stream) override;
  TilePlace tiles(int layer) const override;
  TilePlace exact_tiles(int layer, Kind kind) const override;
  void move_tiles(const TileMove& move) override;
  ReachedMemory reach(const void* memory, int64_t bytes) const override {
    return cuda::reach(geometry_.device_id, memory, bytes);
  }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char* what) override;
  uint8_t* take_staging(int64_t bytes) override;
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override;
  void add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) override;
  const volatile uint32_t* slot_word(int slot) const override { return arena_.device_flags() + slot; }
  void wait(void* stream) override;
  bool capturing(void* stream) const override;
  uint64_t slot_flags(int slot) const override { return noticed_flags(arena_.host_flags()[slot]); }
  uint64_t check(void* stream) override { return check_layers(stream); }
  void drain() noexcept override { drain_device(); }

 private:
  DevicePlan plan_view(const Batch& batch, int layer) const {
    return batch.storage.view(arena_, layers_[layer].group,
                              layers_[layer].shape * plan_work_capacity(geometry_, num_units_));
  }
  move::MoveSpace move_;
  CodingSpace coding_;
};

CudaBackend::CudaBackend(const Geometry& geometry, const HostOps& ops, void* pool, cudaStream_t stream)
    : DeviceLayers(geometry, ops, pool, kOwnWorkspace, stream),
      move_(geometry_, ops),
      coding_(geometry_, ops) {
  try {
    move_.initialise(geometry_, arena_, stream);
  } catch (...) {  // what was enqueued must not outlive the memory
    if (runtime().stream_synchronize(stream) != cudaSuccess) runtime().get_last_error();
    throw;
  }
}

CudaBackend::~CudaBackend() { drain_device(); }

// ---- Plans ----

void* CudaBackend::create_plan_storage() {
  const DeviceGuard guard(geometry_.device_id);
  return new Batch(geometry_, ops_, geometry_.num_shapes * plan_work_capacity(geometry_, num_units_));
}

void CudaBackend::destroy_plan_storage(void* storage) {
  if (!storage) return;
  drain();
  delete static_cast<Batch*>(storage);
}

void CudaBackend::upload_plan(const BatchPlan& plan, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "tq_batch_plan");
  Batch& batch = *static_cast<Batch*>(plan.storage);
  ListNeeds needs[kMaxHeadShapes];
  for (int layer = 0; layer < geometry_.num_layers; layer++)
    needs[layers_[layer].shape].long_apart |= long_apart_[layer] != 0;
  for (int shape = 0; shape < geometry_.num_shapes; shape++)
    needs[shape].keep_pair = batch.pair_in_graph[shape];
  batch.uploaded =
      tq::cuda::upload_plan(geometry_, arena_, batch.storage, plan, num_units_, needs, as_stream(stream));
}

bool CudaBackend::capturing(void* stream) const {
  const DeviceGuard guard(geometry_.device_id);
  return is_capturing(as_stream(stream));
}

// ---- Append, attend, read ----

void CudaBackend::append(const AppendRequest& request) {
  const DeviceGuard guard(geometry_.device_id);
  const Batch& batch = *static_cast<const Batch*>(request.plan->storage);
  if (layers_[request.layer].latent) {
    latent::launch_append(layer_view(request.layer), plan_view(batch, request.layer), request,
                          request.plan->rows.new_tokens, num_units_, as_stream(request.stream));
    return;
  }
  const DeviceLayer layer = layer_view(request.layer);
  const DevicePlan plan = plan_view(batch, request.layer);
  const int64_t tiles = batch.uploaded.small_jobs + batch.uploaded.large_tiles;
  // A graph's later plans may bring tokens that are coded at once.
  if (!geometry_.store_once || tiles > 0 || is_capturing(as_stream(request.stream)))
    append_tokens(layer, plan, 2 * geometry_.max_batch_sequences, tiles, request);
  if (!geometry_.store_once) return;
  append::launch_copies(
      append::CopyParams{layer, plan, {request.k, request.v}, {request.key_strides, request.value_strides}},
      request.plan->rows.new_tokens, num_units_, early_, as_stream(request.stream));
}

void CudaBackend::encode_tokens(const EncodeRequest& request) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(request.stream), "coding a window");
  coding_.for_each_plan(geometry_, request, num_units_, [&](const DevicePlan& plan, int32_t jobs) {
    for (int32_t layer = 0; layer < geometry_.num_layers; layer++)
      if (geometry_.stores(layer)) encode_copies(layer_view(layer), plan, jobs, as_stream(request.stream));
  });
}

void CudaBackend::attend(const AttendRequest& request) {
  const DeviceGuard guard(geometry_.device_id);
  const Batch& batch = *static_cast<const Batch*>(request.plan->storage);
  // its counters start at zero and each call leaves them so
  const bool own = request.workspace == arena_.workspace();
  attend::AttendLaunch launch =
      attend_launch(layer_view(request.layer), plan_view(batch, request.layer), request, !own);
  if (layers_[request.layer].latent) {
    latent::PlanBounds bounds = latent::bounds_of(geometry_);
    const StepRows& rows = request.plan->rows;
    // A graph serves plans of more rows.
    if (!is_capturing(launch.stream)) bounds.query_tokens = rows.query_tokens;
    for (int i = 0; i < rows.num_sequences; i++)
      bounds.sequence_queries = std::max(bounds.sequence_queries, rows.sequences[i].query_tokens);
    latent::launch_latent(launch, launch.early, bounds,
                          static_cast<uint8_t*>(request.workspace) + latent_place(geometry_, num_units_));
    return;
  }
  const int shape = layers_[request.layer].shape;
  const UploadedPlan::List& uploaded = batch.uploaded.lists[shape];
  // Its 64 registers are few for a matrix.
  if (uploaded.few_sequences > 0 && few_fits_[request.layer] && !launch.layer.key_matrix) {
    const PageGroup& group = geometry_.groups[layers_[request.layer].group];
    if (group.max_sequence_pages * group.page_size <= kFewGraphTokens || !is_capturing(launch.stream))
      launch.few_sequences = uploaded.few_sequences;
  }
  // The prefill kernel knows no tree masks.
  if (!uploaded.any_long() || !long_apart_[request.layer] || request.tree_mask) {
    attend::launch_attend(launch);  // of all sequences: right for whatever later plan a captured graph meets
    return;
  }
  // Long sequences apart. A graph's later plans may have sequences of either kind, so it gets both kernels.
  const bool in_graph = is_capturing(launch.stream);
  launch.plan.work += pair_offset(geometry_, num_units_);
  if (in_graph) batch.pair_in_graph[shape] = true;
  if (in_graph || uploaded.any_short) attend::launch_attend(launch);
  prefill::LongKinds kinds;
  if (!in_graph) kinds = {uploaded.any_shared, uploaded.any_alone, uploaded.least_rows, uploaded.most_rows};
  prefill::launch_prefill(
      launch, launch.plan.work + work_capacity(geometry_, num_units_), kinds,
      {static_cast<uint8_t*>(request.workspace) + wide_place(geometry_, num_units_), wide_bounds(geometry_)});
}

void CudaBackend::read(const ReadRequest& request) {
  const DeviceGuard guard(geometry_.device_id);
  const StepSequence& sequence = request.sequence;
  const int32_t* ids = request.maps[geometry_.layers[request.layer].group].row(sequence.page_row);
  const int32_t* raw_ids =
      geometry_.has_exact() ? request.maps[geometry_.raw_group].row(sequence.raw_slot) : nullptr;
  const cudaStream_t stream = as_stream(request.stream);
  if (layers_[request.layer].latent)
    return latent::launch_read(layer_view(request.layer), request, ids, raw_ids, num_units_, stream);
  pages::ReadParams params(layer_view(request.layer));
  params.length = static_cast<int32_t>(sequence.length());
  params.raw_first = static_cast<int32_t>(sequence.raw_first);
  params.sink_end = static_cast<int32_t>(sequence.sink_end);
  void* outputs[2] = {request.k, request.v};
  for (int64_t first = request.first; first < request.first + request.count; first += params.count) {
    const int64_t first_page = first / geometry_.page_size, first_raw = first / format::kTileTokens;
    const int64_t end =
        std::min({request.first + request.count, (first_page + pages::kReadPages) * geometry_.page_size,
                  raw_ids ? (first_raw + pages::kReadPages) * format::kTileTokens : INT64_MAX});
    params.first = static_cast<int32_t>(first);
    params.count = static_cast<int32_t>(end - first);
    params.row = first - request.first;
    params.first_page = static_cast<int32_t>(first_page);
    const int64_t last_page = (end - 1) / geometry_.page_size;
    std::copy(ids + first_page, ids + last_page + 1, params.pages);
    params.first_raw_page = static_cast<int32_t>(first_raw);
    if (raw_ids)
      std::copy(raw_ids + first_raw, raw_ids + (end - 1) / format::kTileTokens + 1, params.raw_pages);
    for (const Kind kind : {Kind::kKey, Kind::kValue}) {
      params.kind = kind;
      params.output = outputs[static_cast<int>(kind)];
      params.strides = kind == Kind::kKey ? request.key_strides : request.value_strides;
      if (params.output) pages::launch_read(params, num_units_, stream);
    }
  }
}

// ---- Centres, pages, slots ----

void CudaBackend::grow_pages(const int64_t* num_pages, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "tq_cache_reserve");
  Geometry next = geometry_;
  for (int group = 0; group < next.num_groups; group++) next.groups[group].num_pages = num_pages[group];
  arena_.grow(geometry_, next, as_stream(stream));
  geometry_ = next;
}

void CudaBackend::copy_pages(int group, const PageCopy* copies, int64_t count, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "copying pages");
  pages::launch_copy_pages(arena_.layer_memory(group), arena_.places().layers_in_group[group],
                           max_page_bytes(geometry_, group), copies, count, as_stream(stream));
}

void CudaBackend::scrub_pages(int group, const int32_t* pages, int64_t count, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "scrubbing pages");
  pages::launch_scrub_pages(arena_.layer_memory(group), arena_.places().layers_in_group[group],
                            max_page_bytes(geometry_, group), pages, count, as_stream(stream));
}

TilePlace CudaBackend::tiles(int layer) const {
  const DeviceLayer view = layer_view(layer);
  return TilePlace{view.pages, view.page_bytes, view.head_bytes, view.tiles_per_page, nullptr, 0};
}

TilePlace CudaBackend::exact_tiles(int layer, Kind kind) const {
  const DeviceLayer view = layer_view(layer);
  const DeviceSide& side = kind == Kind::kKey ? view.key : view.value;
  const int64_t element = dtype_bytes(geometry_.io_dtype);
  return TilePlace{static_cast<uint8_t*>(side.raw),
                   view.raw_page_elements * element,
                   format::kTileTokens * side.layout.dim * element,
                   1,
                   nullptr,
                   0};
}

std::unique_ptr<DeviceMemory> CudaBackend::take_memory(int64_t bytes, const char* what) {
  struct Block : DeviceMemory {
    explicit Block(DeviceBlock&& from) : block(std::move(from)) {}
    uint8_t* data() const override { return block.data(); }
    DeviceBlock block;
  };
  const DeviceGuard guard(geometry_.device_id);
  return std::make_unique<Block>(DeviceBlock(ops_, geometry_.device_id, bytes, what));
}

uint8_t* CudaBackend::take_staging(int64_t bytes) {
  const DeviceGuard guard(geometry_.device_id);
  void* pointer = nullptr;
  check_cuda(runtime().host_alloc(&pointer, static_cast<size_t>(bytes), cudaHostAllocPortable),
             "staging: cudaHostAlloc");
  return static_cast<uint8_t*>(pointer);
}

void CudaBackend::give_staging(uint8_t* memory, int64_t) noexcept {
  if (runtime().host_free(memory) != cudaSuccess) runtime().get_last_error();
}

void CudaBackend::move_tiles(const TileMove& move) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(move.stream), "moving tiles");
  pages::launch_move_tiles(move, move.over_link ? pages::kLinkCtas : 0, as_stream(move.stream));
}

void CudaBackend::move_tokens(const MoveRequest& request) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(request.stream), "taking tokens out of a sequence");
  move_.move(geometry_, request, as_stream(request.stream));
}

void CudaBackend::copy_slot(int source, int target, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "forking a sequence");
  pages::launch_slot(source, target, arena_.device_flags(), as_stream(stream));
}

void CudaBackend::start_slot(int slot, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "freeing a sequence");
  pages::launch_slot(-1, slot, arena_.device_flags(), as_stream(stream));
}

void CudaBackend::add_to_slot(int slot, uint64_t flags, const volatile uint32_t* word, void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "copying a sequence");
  pages::launch_add_to_slot(slot, flags, word, arena_.device_flags(), as_stream(stream));
}

void CudaBackend::wait(void* stream) {
  const DeviceGuard guard(geometry_.device_id);
  require_no_capture(as_stream(stream), "waiting for the stream");
  check_cuda(runtime().stream_synchronize(as_stream(stream)), "cudaStreamSynchronize");
}

}  // namespace

// ---- Entry points ----

std::unique_ptr<Backend> create_cuda_backend(const Geometry& geometry, const HostOps& ops, void* pool,
                                             void* stream) {
  const DeviceGuard guard(geometry.device_id);
  require_no_capture(as_stream(stream), "tq_cache_create");
  return std::unique_ptr<Backend>(new CudaBackend(geometry, ops, pool, as_stream(stream)));
}

void merge_states_cuda(const MergeRequest& request) {
  const DeviceGuard guard(request.device_id);
  merge::launch_merge(request, num_multiprocessors(request.device_id), as_stream(request.stream));
}

}  // namespace cuda
}  // namespace tq
