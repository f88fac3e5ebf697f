// SPDX-License-Identifier: Apache-2.0
// Verbs over an engine's pages on a CUDA device: the kernels of a cache, with pages and block tables of the
// call. A step's plan lies in its workspace, written there by the device (cuda/paged): nothing is copied,
// allocated or waited for, so that a whole step may be captured and replayed with other arrays.
#include "cuda/backend.h"
#include "cuda/device_layers.h"
#include "cuda/latent/launch.h"
#include "cuda/paged/launch.h"
#include "cuda/pages/launch.h"
#include "cuda/prefill/launch.h"
#include "paged_backend.h"

namespace tq {
namespace cuda {
namespace {

long long ll(int64_t x) { return static_cast<long long>(x); }

// Places of tiles are 32-bit multiples of 64 bytes (row/place.cuh).
constexpr int64_t kMostPoolBytes = int64_t{1} << 38;

class CudaPagedBackend final : public PagedBackend, private DeviceLayers {
 public:
  CudaPagedBackend(const Geometry& geometry, const HostOps& ops, cudaStream_t stream)
      : DeviceLayers(geometry, ops, nullptr, kNoWorkspace, stream) {
    TQ_CHECK(num_units_ <= paged::kMaxCtas, Status::kNotSupported,
             "device_id = %d: %d multiprocessors, pages of the caller's are served on at most %d",
             geometry.device_id, num_units_, paged::kMaxCtas);
  }
  ~CudaPagedBackend() override { drain_device(); }

  void set_centres(int layer, const float* key, const float* value) override {
    set_layer_centres(layer, key, value);
  }
  int64_t workspace_bytes(const PagedStep& bounds) const override {
    const DeviceGuard guard(geometry_.device_id);
    return wide_place(paged::plan_places(geometry_, bounds, num_units_)) +
           prefill::wide_workspace_bytes(geometry_, wide_bounds(bounds), num_units_,
                                         shared_memory_per_block_);
  }
  void plan(const PlannedStep& step, void* stream) override {
    const DeviceGuard guard(geometry_.device_id);
    paged::launch_plan(geometry_, *step.step, num_units_, static_cast<uint8_t*>(step.workspace), noticed(),
                       early_, as_stream(stream));
  }
  void append(const PlannedStep& step, const PagePool& pool, const AppendRequest& request) override;
  void attend(const PlannedStep& step, const PagePool& pool, const AttendRequest& request) override;
  void read(const PagePool& pool, const SlotsRead& request) override;
  void copy(const PagePool& source, const PagePool& target, int32_t num_kv_heads, const int64_t* pairs,
            int64_t count, void* stream) override;
  uint64_t check(void* stream) override { return check_layers(stream); }

 private:
  volatile uint32_t* noticed() const { return arena_.device_flags() + geometry_.max_sequences; }
  // Behind the plan.
  static int64_t wide_place(const paged::PlanPlaces& places) { return align_up(places.total, 256); }
  static prefill::WideBounds wide_bounds(const PagedStep& step) {
    return prefill::WideBounds{step.num_tokens, step.max_query_len, step.max_seq_len};
  }
  // The layer with the call's pages, of which there must be one.
  DeviceLayer view_of(int layer, const PagePool& pool) const;
};

DeviceLayer CudaPagedBackend::view_of(int layer, const PagePool& pool) const {
  DeviceLayer view = layer_view(layer);
  const CodePages& pages = pool.pages;
  const int64_t bytes = (pool.num_blocks - 1) * pages.page_bytes + view.num_kv_heads * pages.head_bytes +
                        static_cast<int64_t>(pages.tiles_per_page) * pages.tile_bytes;
  TQ_CHECK(pool.num_blocks > 0, Status::kInvalidArgument, "pages.num_blocks = 0: at least 1 on CUDA");
  TQ_CHECK(bytes <= kMostPoolBytes, Status::kNotSupported,
           "pages: %lld blocks, block_stride = %lld, head_stride = %lld: a layer's pages may reach over %lld "
           "bytes on CUDA",
           ll(pool.num_blocks), ll(pages.page_bytes), ll(pages.head_bytes), ll(kMostPoolBytes));
  view.pages = pages.first;
  view.page_bytes = pages.page_bytes;
  view.head_bytes = pages.head_bytes;
  view.last_page = static_cast<uint32_t>(pool.num_blocks - 1);
  view.tiles_per_page = pages.tiles_per_page;
  view.page_size = static_cast<int32_t>(pool.block_size());
  return view;
}

void CudaPagedBackend::append(const PlannedStep& step, const PagePool& pool, const AppendRequest& request) {
  if (step.step->num_tokens == 0) return;
  const DeviceGuard guard(geometry_.device_id);
  const paged::PlanPlaces places = paged::plan_places(geometry_, *step.step, num_units_);
  const uint8_t* workspace = static_cast<const uint8_t*>(step.workspace);
  DevicePlan plan = {};
  plan.counts = reinterpret_cast<const DeviceCounts*>(workspace + places.counts);
  plan.small_jobs = reinterpret_cast<const AppendJob*>(workspace + places.jobs);
  plan.runs = reinterpret_cast<const AppendJob*>(workspace + places.runs);
  const int32_t tokens = static_cast<int32_t>(step.step->num_tokens);
  if (layers_[request.layer].latent)
    return latent::launch_append(view_of(request.layer, pool), plan, request, tokens, num_units_,
                                 as_stream(request.stream));
  append_tokens(view_of(request.layer, pool), plan, tokens, tokens, request);
}

void CudaPagedBackend::attend(const PlannedStep& step, const PagePool& pool, const AttendRequest& call) {
  const DeviceGuard guard(geometry_.device_id);
  const PagedStep& s = *step.step;
  const paged::PlanPlaces places = paged::plan_places(geometry_, s, num_units_);
  uint8_t* workspace = static_cast<uint8_t*>(step.workspace);
  const int shape = layers_[call.layer].shape;
  const auto list = [&](paged::ListKind kind) { return paged::list_at(places, workspace, shape, kind); };
  DevicePlan plan = {};
  plan.page_table = s.block_table;
  plan.page_table_stride = s.block_table_stride;
  plan.work = list(paged::ListKind::kAll);
  plan.idle_rows = reinterpret_cast<const IdleRows*>(workspace + places.idle);
  AttendRequest request = call;
  request.workspace = workspace + places.attend;
  attend::AttendLaunch launch = attend_launch(view_of(call.layer, pool), plan, request, false);
  if (layers_[call.layer].latent)
    return latent::launch_latent(launch, launch.early, paged::latent_bounds(s), workspace + places.latent);
  // As in a cache: the prefill kernel knows no tree masks.
  if (!paged::may_be_long(geometry_, layers_[call.layer], s.max_query_len) || !long_apart_[call.layer] ||
      call.tree_mask) {
    attend::launch_attend(launch);
    return;
  }
  launch.plan.work = list(paged::ListKind::kShort);
  attend::launch_attend(launch);
  const int64_t most_rows = s.max_query_len * layers_[call.layer].q_per_kv;
  prefill::launch_prefill(launch, list(paged::ListKind::kLong),
                          {true, most_rows >= kSharedRows, 0, most_rows},
                          {workspace + wide_place(places), wide_bounds(s)});
}

void CudaPagedBackend::read(const PagePool& pool, const SlotsRead& request) {
  if (request.count == 0) return;
  const DeviceGuard guard(geometry_.device_id);
  if (layers_[request.layer].latent)
    return latent::launch_read(view_of(request.layer, pool), request, num_units_, as_stream(request.stream));
  pages::ReadParams params(view_of(request.layer, pool));
  params.slots = request.slots;
  params.count = static_cast<int32_t>(request.count);
  for (const Kind kind : {Kind::kKey, Kind::kValue}) {
    params.kind = kind;
    params.output = kind == Kind::kKey ? request.k : request.v;
    params.strides = kind == Kind::kKey ? request.key_strides : request.value_strides;
    if (params.output) pages::launch_read(params, num_units_, as_stream(request.stream));
  }
}

void CudaPagedBackend::copy(const PagePool& source, const PagePool& target, int32_t num_kv_heads,
                            const int64_t* pairs, int64_t count, void* stream) {
  if (count == 0) return;
  const DeviceGuard guard(geometry_.device_id);
  constexpr int64_t kUnit = 16;
  const CodePages &from = source.pages, &to = target.pages;
  const paged::CopyParams params = {from.first,
                                    to.first,
                                    from.page_bytes,
                                    from.head_bytes,
                                    to.page_bytes,
                                    to.head_bytes,
                                    source.num_blocks,
                                    target.num_blocks,
                                    num_kv_heads,
                                    static_cast<int32_t>(from.tiles_per_page * from.tile_bytes / kUnit),
                                    pairs,
                                    count,
                                    noticed()};
  paged::launch_copy(params, num_units_, as_stream(stream));
}

}  // namespace

std::unique_ptr<PagedBackend> create_cuda_paged_backend(const Geometry& geometry, const HostOps& ops,
                                                        void* stream) {
  const DeviceGuard guard(geometry.device_id);
  require_no_capture(as_stream(stream), "tq_codec_create");
  return std::unique_ptr<PagedBackend>(new CudaPagedBackend(geometry, ops, as_stream(stream)));
}

}  // namespace cuda
}  // namespace tq
