// SPDX-License-Identifier: Apache-2.0
// Pages with random codes, and attention over them in float64: what attend tests and benches share. It
// stands on device_view.h and launch_attend alone; codes are drawn, not encoded, and read back through
// format/scalar.h, so that nothing of the kernels is in the reference.
//
// Everything a kernel must not use is poison: scales and raw values of unwritten tokens are NaN, free pages
// are all ones.
#pragma once
#include <math.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "case_spec.cuh"
#include "cuda/schedule/work_list.h"
#include "format/encode.h"
#include "gpu_test.h"
#include "softmax_state.h"
#include "tests/masks.h"
#include "tests/uniform_geometry.h"

namespace gpu_test {

using tq::cuda::attend::AttendLaunch;
using tq::format::SideLayout;
using tq::format::TileLayout;

__host__ __device__ inline uint32_t hash32(uint64_t x) {
  x = tq::format::mix64(x);
  return static_cast<uint32_t>(x >> 32);
}

struct FillSide {
  int code_offset, code_words, scale_offset, raw;
  float scale;
  int range;
};
// One CTA a (tile of a sequence, head).
static __global__ void fill_tiles(uint8_t* pages, int64_t page_bytes, int tile_bytes, int tiles_per_page,
                                  const int32_t* table, int64_t stride, const int32_t* lengths, FillSide key,
                                  FillSide value, int kv_head_count, int raw_is_bf16, uint32_t seed) {
  const int tile = blockIdx.x, head = blockIdx.y % kv_head_count, slot = blockIdx.y / kv_head_count;
  const int length = lengths[slot];
  const int page = table[slot * stride + tile / tiles_per_page];
  if (page < 0) return;  // behind the sequence's last page
  uint8_t* at = pages + page * page_bytes +
                static_cast<int64_t>(head * tiles_per_page + tile % tiles_per_page) * tile_bytes;
  const uint64_t base = (static_cast<uint64_t>(seed) << 48) ^ (static_cast<uint64_t>(blockIdx.y) << 32) ^
                        (static_cast<uint64_t>(tile) << 14);
  for (int s = 0; s < 2; s++) {
    const FillSide side = s ? value : key;
    for (int i = threadIdx.x; i < side.code_words; i += blockDim.x) {
      uint32_t w = hash32(base * 2 + s + (static_cast<uint64_t>(i) << 52));
      if (side.raw) {  // two numbers of magnitude 0.5 .. 2, or NaN
        const int token = tile * 32 + i / (side.code_words / 32);
        w = raw_is_bf16 ? (w & 0x80FF80FFu) | 0x3F003F00u : (w & 0x87FF87FFu) | 0x38003800u;
        if (token >= length) w = 0xFFFFFFFFu;
      }
      reinterpret_cast<uint32_t*>(at + side.code_offset)[i] = w;
    }
    if (!side.raw)
      for (int i = threadIdx.x; i < 32; i += blockDim.x) {
        const float u = (hash32(base * 2 + s + 77 + (static_cast<uint64_t>(i) << 53)) & 0xFFFF) / 65536.0f;
        const int power =
            side.range > 0 ? static_cast<int>(hash32(base * 2 + s + 79 + (static_cast<uint64_t>(i) << 53)) %
                                              side.range) -
                                 side.range / 2
                           : 0;
        const uint16_t h = tq::format::bf16_from_float(side.scale * (0.5f + u) * tq::format::exp2_int(power));
        reinterpret_cast<uint16_t*>(at + side.scale_offset)[i] =
            tile * 32 + i < length ? h : static_cast<uint16_t>(0x7FFF | (i & 1) << 15);
      }
  }
}

inline uint16_t to_16(float x, DataType type) {
  return type == DataType::kBF16 ? tq::format::bf16_from_float(x) : tq::format::f16_from_float(x);
}
inline float from_16(uint16_t h, DataType type) {
  return type == DataType::kBF16 ? tq::format::float_from_bf16(h) : tq::format::float_from_f16(h);
}

// Numbers of one type in device memory, with their float values on the host.
struct Numbers {
  std::vector<float> host;
  Buffer<uint8_t> device;
  void upload(DataType type) {
    std::vector<uint8_t> bytes(host.size() * dtype_bytes(type));
    for (size_t i = 0; i < host.size(); i++) {
      if (type == DataType::kF32) {
        reinterpret_cast<float*>(bytes.data())[i] = host[i];
      } else {
        const uint16_t h = to_16(isnan(host[i]) ? 0.0f : host[i], type);
        reinterpret_cast<uint16_t*>(bytes.data())[i] = isnan(host[i]) ? 0x7FFF : h;
        if (!isnan(host[i])) host[i] = from_16(h, type);
      }
    }
    device = Buffer<uint8_t>(bytes);
  }
};

struct Comparison {
  double worst = 0;  // relative L2 of a row's output
  double total = 0;  // of all rows together
  double lse = 0;    // largest difference
  int64_t rows = 0, wrong_empty = 0, not_finite = 0;
  int64_t wrong_nan = 0;  // of rows whose query is not finite: numbers that are not NaN
};

class AttendCase {
 public:
  explicit AttendCase(const CaseSpec& spec, int sets = 1);
  // Writes set's output. Asynchronous.
  void run(int set = 0, cudaStream_t stream = nullptr);
  std::vector<float> output() const;
  std::vector<float> lse() const { return lse_.host_copy(); }
  void poison_output();
  // Rows of (sequence, kv head) pairs against float64.
  Comparison compare(int set, const std::vector<std::pair<int, int>>& which) const;
  Comparison compare_all() const;
  int64_t stored_bytes() const;  // of one set: what attention must read
  // Page table entries of which no query sees a token, nor one that a step may hold beside it, lead to where
  // no memory is.
  void lose_unseen_pages();

  CaseSpec spec;
  int num_ctas = 0, shared_limit = 0;
  bool paced = false;
  int64_t q_rows = 0;

 private:
  template <class T>
  struct Device : Buffer<T> {
    Device() = default;
    explicit Device(size_t n) : Buffer<T>(n), count(n) {}
    explicit Device(const std::vector<T>& v) : Buffer<T>(v), count(v.size()) {}
    std::vector<T> host_copy() const {
      std::vector<T> v(count);
      GPU_MUST(cudaMemcpy(v.data(), this->get(), count * sizeof(T), cudaMemcpyDeviceToHost));
      return v;
    }
    size_t count = 0;
  };
  int written(int sequence) const {
    const CaseSequence& s = spec.sequences[sequence];
    return spec.unappended ? s.length - s.new_tokens : s.length;
  }
  bool finite_query(int64_t row, int head) const {
    for (const OddQuery& odd : spec.odd_queries)
      if (odd.row == row && odd.head == head && !std::isfinite(odd.value)) return false;
    return true;
  }
  // Keys or values of one head in input space, [length][dim].
  struct Decoded {
    std::vector<double> coded, exact;  // exact: of tokens of which there are copies
  };
  void decode(int set, int sequence, int head, int side, Decoded* to) const;
  // Whether the query at `position` must use the exact copy.
  bool is_exact(int sequence, int token, int position) const {
    return token < spec.sinks || (token > position - spec.window && token >= raw_first_[sequence]);
  }

  tq::UniformGeometry geometry_;
  TileLayout tile_;
  Buffer<uint8_t> pages_;
  Device<int32_t> table_;
  std::vector<int32_t> host_table_;
  int64_t stride_ = 0;
  std::vector<Buffer<uint8_t>> work_;
  Buffer<uint8_t> workspace_, wide_memory_;
  tq::cuda::prefill::WideSpace wide_;
  Buffer<uint32_t> signs_[2];
  std::vector<uint32_t> host_signs_[2];
  // Element of coordinate 0 of a token's exact copy.
  size_t raw_at(int slot, int head, int side, int token) const {
    const int dims[2] = {spec.head_dim, spec.value_dim};
    const int64_t page = host_raw_table_[static_cast<size_t>(slot * raw_stride_ + token / 32)];
    return static_cast<size_t>(page * 32 * spec.kv_heads * (dims[0] + dims[1]) +
                               side * 32 * spec.kv_heads * dims[0] + (head * 32 + token % 32) * dims[side]);
  }

  Numbers centre_[2], raw_, q_, sinks_;
  tq::test::Masks masks_;
  Buffer<int32_t> mask_begin_, mask_end_;
  Buffer<uint64_t> mask_tree_;
  Buffer<float> mask_slopes_;
  std::vector<int> raw_first_;
  // Pages of exact copies; page 0 stands for all that are not kept, and holds NaN.
  Device<int32_t> raw_table_;
  std::vector<int32_t> host_raw_table_;
  int64_t raw_stride_ = 0;
  Buffer<uint8_t> out_;
  size_t out_bytes_ = 0;
  Device<float> lse_;
  std::vector<AttendLaunch> launches_;
  int slots_ = 0;
};

inline AttendCase::AttendCase(const CaseSpec& s, int sets)
    : spec(s), geometry_(), tile_(s.head_dim, s.value_dim, s.code(s.key_bits), s.code(s.value_bits)) {
  // Streams of their own for each token: what a sequence holds, and asks at a position, depends neither on
  // the others beside it nor on its length.
  std::mt19937 page_rng(spec.seed), rng(spec.seed + 1);
  std::normal_distribution<float> normal;
  cudaDeviceProp prop;
  GPU_MUST(cudaGetDeviceProperties(&prop, 0));
  num_ctas = spec.ctas ? spec.ctas : prop.multiProcessorCount;
  shared_limit = static_cast<int>(prop.sharedMemPerBlockOptin);
  int clock = 0, bus = 0;
  GPU_MUST(cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, 0));
  GPU_MUST(cudaDeviceGetAttribute(&bus, cudaDevAttrGlobalMemoryBusWidth, 0));
  paced = tq::cuda::attend::paced_memory(clock, bus, prop.multiProcessorCount);
  const int count = static_cast<int>(spec.sequences.size());
  slots_ = count * sets;
  geometry_.num_layers = 1;
  geometry_.num_q_heads = spec.q_heads;
  geometry_.num_kv_heads = spec.kv_heads;
  geometry_.q_per_kv = spec.q_heads / spec.kv_heads;
  geometry_.head_dim = spec.head_dim;
  geometry_.value_dim = spec.value_dim;
  geometry_.io_dtype = spec.io;
  geometry_.page_size = spec.page_size;
  geometry_.max_batch_sequences = count;
  geometry_.batch_invariant = spec.batch_invariant;
  geometry_.window_tokens = spec.window;
  geometry_.sink_tokens = spec.sinks;
  geometry_.raw_group = spec.window + spec.sinks > 0 ? 1 : -1;
  geometry_.set_layers(spec.code(spec.key_bits), spec.code(spec.value_bits));

  // Pages in random order, with a few that nobody owns between them.
  int64_t used = 0;
  for (const CaseSequence& q : spec.sequences) {
    const int64_t pages = (q.length + spec.page_size - 1) / spec.page_size;
    used += pages;
    stride_ = std::max(stride_, pages);
  }
  geometry_.num_groups = geometry_.has_exact() ? 2 : 1;
  geometry_.groups[0] = tq::PageGroup{spec.page_size, used * sets + 3, stride_};
  for (const CaseSequence& q : spec.sequences) geometry_.max_batch_tokens += q.queries;
  const int64_t num_pages = used * sets + 3, page_bytes = geometry_.page_bytes(0);
  std::vector<int32_t> order(num_pages);
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
  if (!spec.pages_in_order) std::shuffle(order.begin(), order.end(), page_rng);
  host_table_.assign(slots_ * stride_, -1);
  std::vector<int32_t> lengths(slots_);
  int64_t next = 0;
  for (int slot = 0; slot < slots_; slot++) {
    const int length = spec.sequences[slot % count].length;
    lengths[slot] = written(slot % count);
    for (int64_t i = 0; i < (length + spec.page_size - 1) / spec.page_size; i++)
      host_table_[slot * stride_ + i] = order[next++];
  }
  pages_ = Buffer<uint8_t>(num_pages * page_bytes);
  GPU_MUST(cudaMemset(pages_.get(), 0xFF, num_pages * page_bytes));
  table_ = Device<int32_t>(host_table_);
  Buffer<int32_t> device_lengths(lengths);
  const int dims[2] = {spec.head_dim, spec.value_dim}, bits[2] = {spec.key_bits, spec.value_bits};
  FillSide fill[2];
  const int offsets[2] = {tile_.key_offset(), tile_.value_offset()},
            scales[2] = {tile_.key_scale_offset(), tile_.value_scale_offset()};
  for (int side = 0; side < 2; side++) {
    const SideLayout& layout = side ? tile_.value : tile_.key;
    // Levels of about 60: coordinates of about 1.
    fill[side] = FillSide{offsets[side],
                          layout.code_bytes() / 4,
                          scales[side],
                          layout.raw(),
                          (side ? 1.0f : spec.spread) / 60.0f,
                          side ? spec.value_range : 0};
    if (side == 0 && layout.raw()) fill[side].scale = 1;
  }
  const int max_tiles = static_cast<int>(stride_ * (spec.page_size / 32));
  start(fill_tiles, dim3(max_tiles, slots_ * spec.kv_heads), dim3(128), nullptr, pages_.get(), page_bytes,
        tile_.tile_bytes(), spec.page_size / 32, table_.get(), stride_, device_lengths.get(), fill[0],
        fill[1], spec.kv_heads, spec.io == DataType::kBF16, spec.seed);

  raw_first_.resize(count);
  for (int i = 0; i < count; i++) {
    const int length = spec.sequences[i].length;
    raw_first_[i] = std::max(0, length - (spec.window + spec.rollback));
    // a window that is only partly there
    if (spec.window && i % 3 == 2) raw_first_[i] = std::max(raw_first_[i], length - spec.window / 2);
    if (!spec.window) raw_first_[i] = length;
  }
  const int64_t raw_page = 32 * static_cast<int64_t>(spec.kv_heads) * (spec.head_dim + spec.value_dim);
  if (geometry_.has_exact()) {
    for (const CaseSequence& q : spec.sequences)
      raw_stride_ = std::max<int64_t>(raw_stride_, (q.length + 31) / 32);
    host_raw_table_.assign(static_cast<size_t>(slots_ * raw_stride_), 0);
    int32_t raw_pages = 1;
    for (int slot = 0; slot < slots_; slot++)
      for (int64_t i = 0; i < raw_stride_; i++)
        if (tq::has_raw_page(32 * i, raw_first_[slot % count],
                             std::min(spec.sinks, spec.sequences[slot % count].length),
                             spec.sequences[slot % count].length))
          host_raw_table_[static_cast<size_t>(slot * raw_stride_ + i)] = raw_pages++;
    raw_table_ = Device<int32_t>(host_raw_table_);
    raw_.host.assign(static_cast<size_t>(raw_pages * raw_page), NAN);
  }
  for (int side = 0; side < 2; side++) {
    const SideLayout& layout = side ? tile_.value : tile_.key;
    const int words = (layout.stored + 31) / 32;
    host_signs_[side].resize(spec.kv_heads * words);
    for (uint32_t& w : host_signs_[side]) w = rng();
    signs_[side] = Buffer<uint32_t>(host_signs_[side]);
    if (spec.centres && bits[side] != 16) {
      centre_[side].host.resize(spec.kv_heads * dims[side]);
      for (float& x : centre_[side].host) x = normal(rng) * 2;
      centre_[side].upload(DataType::kF32);
    }
    if (geometry_.has_exact())
      for (int slot = 0; slot < slots_; slot++) {
        const int length = lengths[slot], first = raw_first_[slot % count];
        for (int head = 0; head < spec.kv_heads; head++)
          for (int token = 0; token < length; token++) {
            if (token >= spec.sinks && token < first) continue;
            std::minstd_rand raw_rng(hash32((static_cast<uint64_t>(spec.seed) << 40) +
                                            (slot * 64 + head) * 2 + side +
                                            (static_cast<uint64_t>(token) << 20)));
            normal.reset();
            float* at = &raw_.host[raw_at(slot, head, side, token)];
            for (int i = 0; i < dims[side]; i++) at[i] = normal(raw_rng);
          }
      }
  }
  raw_.upload(spec.io);

  for (const CaseSequence& q : spec.sequences) q_rows += q.queries;
  const int64_t q_head = spec.head_dim + spec.pad, q_token = q_head * spec.q_heads + spec.pad;
  q_.host.assign(std::max<int64_t>(q_rows, 1) * q_token, NAN);
  int64_t q_row = 0;
  for (int sequence = 0; sequence < count; sequence++) {
    const CaseSequence& s = spec.sequences[sequence];
    for (int query = 0; query < s.queries; query++, q_row++) {
      const uint64_t position = static_cast<uint64_t>(s.length - s.queries + query);
      std::minstd_rand q_rng(
          hash32((static_cast<uint64_t>(spec.seed + 5000) << 40) + sequence + (position << 20)));
      normal.reset();
      for (int head = 0; head < spec.q_heads; head++)
        for (int i = 0; i < spec.head_dim; i++) q_.host[q_row * q_token + head * q_head + i] = normal(q_rng);
    }
  }
  for (const OddQuery& odd : spec.odd_queries)
    q_.host[odd.row * q_token + odd.head * q_head + odd.row % spec.head_dim] = odd.value;
  q_.upload(spec.io);
  const int64_t out_head = spec.value_dim + spec.pad, out_token = out_head * spec.q_heads + spec.pad;
  out_bytes_ = std::max<int64_t>(q_rows, 1) * out_token * dtype_bytes(spec.out);
  out_ = Buffer<uint8_t>(out_bytes_);
  lse_ = Device<float>(std::max<int64_t>(q_rows, 1) * spec.q_heads);
  if (spec.sink_logits) {
    sinks_.host.resize(spec.q_heads);
    for (float& x : sinks_.host) x = normal(rng) * 3;
    for (size_t i = 0; !spec.sink_values.empty() && i < sinks_.host.size(); i++)
      sinks_.host[i] = spec.sink_values[i % spec.sink_values.size()];
    sinks_.upload(DataType::kF32);
  }

  std::vector<tq::test::MaskedRows> rows;
  for (const CaseSequence& q : spec.sequences) rows.push_back({q.length, q.new_tokens, q.queries});
  masks_ = tq::test::random_masks(
      rows, spec.q_heads, spec.ranges, spec.tree, spec.alibi,
      [&](int n) { return static_cast<int>(rng() % n); }, spec.range_kind);
  if (!masks_.begin.empty())
    mask_begin_ = Buffer<int32_t>(masks_.begin), mask_end_ = Buffer<int32_t>(masks_.end);
  if (!masks_.tree.empty()) mask_tree_ = Buffer<uint64_t>(masks_.tree);
  if (!masks_.slopes.empty()) mask_slopes_ = Buffer<float>(masks_.slopes);

  const auto side_view = [&](int side) {
    tq::cuda::DeviceSide view{side ? tile_.value : tile_.key, 0, 0, {}, {}, 0, nullptr, 0, nullptr, nullptr};
    view.code_offset = offsets[side];
    view.scale_offset = scales[side];
    view.book = side ? geometry_.layers[0].value_book : geometry_.layers[0].key_book;
    view.signs = signs_[side].get();
    view.sign_stride = (view.layout.stored + 31) / 32;
    view.centre = reinterpret_cast<const float*>(centre_[side].device.get());
    if (geometry_.has_exact()) view.raw = raw_.device.get() + (side ? geometry_.raw_value_offset(0) : 0);
    return view;
  };
  tq::cuda::DeviceLayer layer{pages_.get(),
                              page_bytes,
                              static_cast<int64_t>(spec.page_size / 32) * tile_.tile_bytes(),
                              UINT32_MAX,
                              tile_.tile_bytes(),
                              spec.page_size / 32,
                              spec.page_size,
                              spec.kv_heads,
                              spec.q_heads,
                              geometry_.q_per_kv,
                              0,
                              spec.io,
                              spec.window,
                              spec.sinks,
                              raw_page,
                              side_view(0),
                              side_view(1),
                              nullptr,
                              nullptr};
  workspace_ = Buffer<uint8_t>(tq::cuda::attend_workspace_capacity(geometry_, num_ctas));
  GPU_MUST(cudaMemset(workspace_.get(), 0xFF, tq::cuda::attend_workspace_capacity(geometry_, num_ctas)));
  GPU_MUST(cudaMemset(workspace_.get(), 0, tq::cuda::counter_bytes(num_ctas)));
  if (spec.long_apart && spec.wide) {
    tq::cuda::prefill::WideBounds& bounds = wide_.bounds;
    for (const CaseSequence& q : spec.sequences) {
      bounds.query_tokens += q.queries;
      bounds.sequence_queries = std::max<int64_t>(bounds.sequence_queries, q.queries);
      bounds.longest = std::max<int64_t>(bounds.longest, q.length);
    }
    bounds.most_tokens = spec.wide_tokens;
    bounds.least_rows = spec.wide_rows;
    const int64_t bytes =
        tq::cuda::prefill::wide_workspace_bytes(geometry_, 0, bounds, num_ctas, shared_limit);
    if (bytes > 0) {
      wide_memory_ = Buffer<uint8_t>(bytes);
      GPU_MUST(cudaMemset(wide_memory_.get(), 0xFF, bytes));
      wide_.memory = wide_memory_.get();
      wide_.kernels = spec.wide_kernels;
    }
  }
  for (int set = 0; set < sets; set++) {
    std::vector<tq::StepSequence> plan(count);
    int64_t row = 0;
    for (int i = 0; i < count; i++) {
      const CaseSequence& q = spec.sequences[i];
      const int32_t slot = set * count + i;
      plan[i] =
          tq::StepSequence{slot,      slot, slot, q.length - q.new_tokens, q.new_tokens,
                           q.queries, 0,    row,  raw_first_[i],           std::min(spec.sinks, q.length)};
      row += q.queries;
    }
    const tq::StepRows batch = {count, plan.data(), 0, row};
    std::vector<uint8_t> work(spec.long_apart ? tq::cuda::pair_capacity(geometry_, num_ctas)
                                              : tq::cuda::work_capacity(geometry_, num_ctas));
    if (spec.long_apart)
      tq::cuda::build_pair(geometry_, geometry_.heads(), batch, num_ctas, work.data());
    else
      tq::cuda::build_work(geometry_, geometry_.heads(), batch, num_ctas, work.data());
    work_.emplace_back(work);
    tq::cuda::DevicePlan plan_view = {};
    plan_view.page_table = table_.get();
    plan_view.page_table_stride = stride_;
    plan_view.raw_table = raw_table_.get();
    plan_view.raw_table_stride = raw_stride_;
    plan_view.work = work_.back().get();
    tq::AttendCall call = {};
    call.q = q_.device.get();
    call.out = out_.get();
    call.lse = lse_.get();
    call.q_strides = {q_token, q_head};
    call.out_strides = {out_token, out_head};
    call.out_dtype = spec.out;
    call.softmax_scale = spec.scale != 0 ? spec.scale : 1.0f / sqrtf(static_cast<float>(spec.head_dim));
    call.logit_softcap = spec.softcap;
    call.sliding_window = spec.sliding;
    call.sink_logits = spec.sink_logits ? reinterpret_cast<const float*>(sinks_.device.get()) : nullptr;
    call.history_only = spec.history_only;
    masks_.pass(&call);
    if (call.visible_begin) call.visible_begin = mask_begin_.get(), call.visible_end = mask_end_.get();
    if (call.tree_mask) call.tree_mask = mask_tree_.get();
    if (call.alibi_slopes) call.alibi_slopes = mask_slopes_.get();
    const int few = spec.few < 0 ? tq::cuda::few_sequences(geometry_, geometry_.heads(), batch) : spec.few;
    launches_.push_back(AttendLaunch{{layer, plan_view, call, num_ctas, shared_limit, nullptr},
                                     workspace_.get(),
                                     false,
                                     spec.tuning,
                                     paced,
                                     true,
                                     few});
  }
  GPU_MUST(cudaDeviceSynchronize());
}

inline void AttendCase::run(int set, cudaStream_t stream) {
  AttendLaunch launch = launches_[set];
  launch.stream = stream;
  tq::cuda::attend::launch_attend(launch);
  if (spec.long_apart)
    tq::cuda::prefill::launch_prefill(launch, launch.plan.work + tq::cuda::work_capacity(geometry_, num_ctas),
                                      {}, wide_);
}

inline void AttendCase::lose_unseen_pages() {
  std::vector<int32_t> table = host_table_;
  for (int slot = 0; slot < slots_; slot++) {
    const CaseSequence& s = spec.sequences[slot % spec.sequences.size()];
    int64_t first_row = 0;
    for (size_t i = 0; i < slot % spec.sequences.size(); i++) first_row += spec.sequences[i].queries;
    for (int64_t page = 0; page < stride_; page++) {
      constexpr int kStep = 128;  // the largest of any kernel
      const int64_t first = page * spec.page_size / kStep * kStep,
                    last = ((page + 1) * spec.page_size + kStep - 1) / kStep * kStep;
      bool seen = false;
      for (int64_t j = 0; j < s.queries; j++)
        for (int64_t token = first; token < std::min<int64_t>(last, s.length) && !seen; token++)
          seen = masks_.sees(first_row + j, s.length - s.queries + j, token, s.length - s.new_tokens, 0);
      if (!seen) table[static_cast<size_t>(slot * stride_ + page)] = INT32_MAX / 2;
    }
  }
  GPU_MUST(cudaMemcpy(table_.get(), table.data(), table.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
}

inline void AttendCase::poison_output() {
  GPU_MUST(cudaMemset(out_.get(), 0xFF, out_bytes_));
  GPU_MUST(cudaMemset(lse_.get(), 0xFF, lse_.count * 4));
}

// [q_rows][q_heads][value_dim]
inline std::vector<float> AttendCase::output() const {
  std::vector<uint8_t> bytes(out_bytes_);
  GPU_MUST(cudaMemcpy(bytes.data(), out_.get(), out_bytes_, cudaMemcpyDeviceToHost));
  std::vector<float> out(q_rows * spec.q_heads * spec.value_dim);
  const tq::TensorStrides strides = launches_[0].call.out_strides;
  for (int64_t row = 0; row < q_rows; row++)
    for (int head = 0; head < spec.q_heads; head++)
      for (int i = 0; i < spec.value_dim; i++) {
        const int64_t at = row * strides.token + head * strides.head + i;
        out[(row * spec.q_heads + head) * spec.value_dim + i] =
            spec.out == DataType::kF32
                ? reinterpret_cast<const float*>(bytes.data())[at]
                : from_16(reinterpret_cast<const uint16_t*>(bytes.data())[at], spec.out);
      }
  return out;
}

inline int64_t AttendCase::stored_bytes() const {
  int64_t bytes = 0;
  for (const CaseSequence& q : spec.sequences)
    bytes += static_cast<int64_t>((q.length + 31) / 32) * tile_.tile_bytes() * spec.kv_heads;
  return bytes;
}

}  // namespace gpu_test

#include "attend_check.cuh"
