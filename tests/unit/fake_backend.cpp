// SPDX-License-Identifier: Apache-2.0
// See fake_backend.h. io is float32 only.
#include "fake_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "host_ops.h"
#include "status.h"

namespace tq {
namespace fake {
namespace {

constexpr int64_t kWorkspaceBytes = 64;

void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "fake backend: %s\n", what);
  abort();
}

void enter(Verb verb) {
  World& w = world();
  w.calls[static_cast<int>(verb)]++;
  if (w.fail[static_cast<int>(verb)])
    throw Error(Status::kCuda, "fake backend: verb %d fails as told", static_cast<int>(verb));
}

// State of one row.
struct Part {
  double m = -std::numeric_limits<double>::infinity(), l = 0;
  std::vector<double> o;
};

class FakeBackend : public Backend {
 public:
  FakeBackend(const Geometry& geometry, const HostOps& ops, void* pool)
      : g_(geometry), l_(geometry.layers[0]), ops_(ops) {
    enter(Verb::kCreate);
    require(g_.io_dtype == DataType::kF32, "io_dtype must be float32");
    pages_bytes_ = static_cast<size_t>(page_bytes());
    if (!pool) {
      own_ = static_cast<float*>(ops_.alloc(ops_.user, pages_bytes_, 256, 1, 0));
      TQ_CHECK(own_, Status::kOutOfMemory, "pages: %zu bytes", pages_bytes_);
    }
    pages_ = pool ? static_cast<float*>(pool) : own_;
    const size_t count = pages_bytes_ / sizeof(float);
    for (size_t i = 0; i < count; i++) pages_[i] = NAN;
    raw_.assign(static_cast<size_t>(g_.num_layers) * g_.max_sequences * g_.raw_tokens() * token_floats(),
                NAN);
    flags_.assign(static_cast<size_t>(g_.max_sequences), 0);
    workspace_.assign(kWorkspaceBytes, 0);
    world().live_backends++;
    world().backend = this;
  }
  ~FakeBackend() override {
    if (own_) ops_.free(ops_.user, own_, pages_bytes_, 1, 0);
    world().live_backends--;
  }

  BackendBytes bytes() const override { return BackendBytes{page_bytes(), 0, 0, kWorkspaceBytes}; }
  void* create_plan_storage() override {
    enter(Verb::kCreatePlanStorage);
    world().live_storages++;
    return new int64_t(0);
  }
  void destroy_plan_storage(void* storage) override {
    world().live_storages--;
    delete static_cast<int64_t*>(storage);
  }
  void upload_plan(const BatchPlan& plan, void*) override {
    enter(Verb::kUploadPlan);
    require(plan.storage != nullptr, "plan without storage");
    *static_cast<int64_t*>(plan.storage) += 1;
    check_rows(plan);
    world().last_plan = plan;
  }

  void append(const AppendRequest& r) override {
    enter(Verb::kAppend);
    for (int32_t i = 0; i < r.plan->rows.num_sequences; i++) {
      const StepSequence& s = r.plan->rows.sequences[i];
      for (int64_t j = 0; j < s.new_tokens; j++)
        for (int h = 0; h < l_.num_kv_heads; h++) {
          const float* k =
              static_cast<const float*>(r.k) + (s.kv_row + j) * r.key_strides.token + h * r.key_strides.head;
          const float* v = static_cast<const float*>(r.v) + (s.kv_row + j) * r.value_strides.token +
                           h * r.value_strides.head;
          store(r.layer, r.plan->maps[0], s, s.old_length + j, h, k, v);
        }
    }
  }

  void attend(const AttendRequest& r) override {
    enter(Verb::kAttend);
    if (world().during_attend) world().during_attend();
    require(r.workspace_bytes >= kWorkspaceBytes, "workspace too small");
    for (int32_t i = 0; i < r.plan->rows.num_sequences; i++)
      for (int64_t j = 0; j < r.plan->rows.sequences[i].query_tokens; j++)
        for (int qh = 0; qh < l_.num_q_heads; qh++) attend_row(r, r.plan->rows.sequences[i], j, qh);
  }

  void read(const ReadRequest& r) override {
    enter(Verb::kRead);
    for (int64_t j = 0; j < r.count; j++)
      for (int h = 0; h < l_.num_kv_heads; h++) {
        const float* x = token(r.layer, r.maps[0], r.sequence, r.first + j, h, r.sequence.length() - 1);
        float* k = static_cast<float*>(r.k) + j * r.key_strides.token + h * r.key_strides.head;
        float* v = static_cast<float*>(r.v) + j * r.value_strides.token + h * r.value_strides.head;
        for (int i = 0; r.k && i < l_.head_dim; i++) k[i] = x[i];
        for (int i = 0; r.v && i < l_.value_dim; i++) v[i] = x[l_.head_dim + i];
      }
  }
  void* own_workspace() override { return workspace_.data(); }

  void set_centres(int, const float*, const float*) override { enter(Verb::kSetCentres); }
  void copy_pages(int, const PageCopy* copies, int64_t count, void*) override {
    enter(Verb::kCopyPages);
    for (int64_t i = 0; i < count; i++) {
      world().copied.push_back(copies[i]);
      for (int layer = 0; layer < g_.num_layers; layer++)
        for (size_t f = 0; f < page_floats(); f++)
          page(layer, copies[i].target)[f] = page(layer, copies[i].source)[f];
    }
  }
  void scrub_pages(int, const int32_t* pages, int64_t count, void*) override {
    enter(Verb::kScrubPages);
    for (int64_t i = 0; i < count; i++) {
      world().scrubbed.push_back(pages[i]);
      for (int layer = 0; layer < g_.num_layers; layer++)
        for (size_t f = 0; f < page_floats(); f++) page(layer, pages[i])[f] = NAN;
    }
  }
  void export_pages(int, const int32_t* pages, int64_t count, void* host, void*) override {
    move_pages(pages, count, [&](float* own, size_t at) {
      memcpy(static_cast<float*>(host) + at, own, page_floats() * sizeof(float));
    });
  }
  void import_pages(int, const int32_t* pages, int64_t count, const void* host, void*) override {
    move_pages(pages, count, [&](float* own, size_t at) {
      memcpy(own, static_cast<const float*>(host) + at, page_floats() * sizeof(float));
    });
  }
  TilePlace tiles(int layer) const override {
    const int64_t bytes = static_cast<int64_t>(page_floats() * sizeof(float));
    return TilePlace{reinterpret_cast<uint8_t*>(pages_) + layer * g_.groups[0].num_pages * bytes,
                     bytes,
                     static_cast<int64_t>(token_floats() * sizeof(float)) / l_.num_kv_heads,
                     g_.page_size / format::kTileTokens,
                     nullptr,
                     0};
  }
  // A token's vectors, where the real ones have codes.
  void move_tiles(const TileMove& move) override {
    enter(Verb::kMoveTiles);
    for (int64_t token = 0; token < move.tiles * format::kTileTokens; token++)
      for (int head = 0; head < move.heads; head++) {
        const bool moved = token >= move.begin && token < move.end;
        float* to = moved_token(move.target, token, head);
        for (int64_t d = 0; d < move.target.head_bytes / static_cast<int64_t>(sizeof(float)); d++)
          to[d] = moved ? moved_token(move.source, token, head)[d] : NAN;
      }
  }
  void copy_slot(int source, int target, void*) override {
    enter(Verb::kCopySlot);
    flags_[static_cast<size_t>(target)] = flags_[static_cast<size_t>(source)];
    for (int layer = 0; layer < g_.num_layers; layer++)
      for (size_t f = 0; f < slot_floats(); f++) slot_raw(layer, target)[f] = slot_raw(layer, source)[f];
  }
  void start_slot(int slot, bool scrub, void*) override {
    enter(Verb::kStartSlot);
    world().started.push_back(slot);
    flags_[static_cast<size_t>(slot)] = 0;
    for (int layer = 0; scrub && layer < g_.num_layers; layer++)
      for (size_t f = 0; f < slot_floats(); f++) slot_raw(layer, slot)[f] = NAN;
  }
  void grow_pages(const int64_t* num_pages, void*) override {
    enter(Verb::kGrowPages);
    require(num_pages[0] >= g_.groups[0].num_pages && num_pages[0] <= g_.groups[0].most_pages(), "pages");
    g_.groups[0].num_pages = num_pages[0];
  }
  bool capturing(void*) const override { return world().capturing; }
  uint64_t slot_flags(int slot) const override { return flags_[static_cast<size_t>(slot)]; }
  uint64_t check(void*) override {
    enter(Verb::kCheck);
    const uint64_t result = noticed_;
    noticed_ = 0;
    return result;
  }
  void drain() noexcept override {}

 private:
  int64_t page_bytes() const {
    return static_cast<int64_t>(page_floats()) * g_.groups[0].most_pages() * g_.num_layers *
           static_cast<int64_t>(sizeof(float));
  }
  size_t token_floats() const { return static_cast<size_t>(l_.num_kv_heads) * (l_.head_dim + l_.value_dim); }
  size_t page_floats() const { return token_floats() * g_.page_size; }
  size_t slot_floats() const { return token_floats() * g_.raw_tokens(); }
  float* page(int layer, int32_t id) {
    require(id >= 0 && id < g_.groups[0].num_pages, "page id out of range");
    return pages_ + (static_cast<size_t>(layer) * static_cast<size_t>(g_.groups[0].most_pages()) +
                     static_cast<size_t>(id)) *
                        page_floats();
  }
  static float* moved_token(const TilePlace& place, int64_t token, int head) {
    require(place.pages != nullptr, "tiles of this backend stay in pages");
    const int64_t page_size = place.tiles_per_page * static_cast<int64_t>(format::kTileTokens),
                  i = place.first_tile * format::kTileTokens + token;
    return reinterpret_cast<float*>(place.memory + place.pages[i / page_size] * place.page_bytes +
                                    i % page_size * (place.page_bytes / page_size) + head * place.head_bytes);
  }
  template <typename Move>
  void move_pages(const int32_t* pages, int64_t count, const Move& move) {
    size_t at = 0;
    for (int64_t i = 0; i < count; i++)
      for (int layer = 0; layer < g_.num_layers; layer++, at += page_floats())
        move(page(layer, pages[i]), at);
  }
  float* slot_raw(int layer, int slot) {
    return raw_.data() + (static_cast<size_t>(layer) * g_.max_sequences + slot) * slot_floats();
  }
  float* coded_at(int layer, const PageMap& pages, const StepSequence& s, int64_t i, int h) {
    require(i < s.length(), "token behind the sequence");
    return page(layer, pages.row(s.page_row)[i / g_.page_size]) +
           (static_cast<size_t>(i % g_.page_size) * l_.num_kv_heads + h) * (l_.head_dim + l_.value_dim);
  }
  float* raw_at(int layer, int slot, int64_t row, int h) {
    return slot_raw(layer, slot) +
           (static_cast<size_t>(row) * l_.num_kv_heads + h) * (l_.head_dim + l_.value_dim);
  }

  void store(int layer, const PageMap& pages, const StepSequence& s, int64_t i, int h, const float* k,
             const float* v) {
    float* sink = i < g_.sink_tokens ? raw_at(layer, s.raw_slot, i, h) : nullptr;
    float* ring = g_.ring_tokens > 0 && i >= s.length() - g_.ring_tokens
                      ? raw_at(layer, s.raw_slot, g_.sink_tokens + i % g_.ring_tokens, h)
                      : nullptr;
    for (int d = 0; d < l_.head_dim + l_.value_dim; d++) {
      float x = d < l_.head_dim ? k[d] : v[d - l_.head_dim];
      if (x != x) {
        x = 0;
        flags_[static_cast<size_t>(s.flag)] |= 1;
        noticed_ |= 1;
      }
      coded_at(layer, pages, s, i, h)[d] = coded(x);
      if (sink) sink[d] = x;
      if (ring) ring[d] = x;
    }
  }
  // Keys and values of one token as a query at `position` sees them.
  const float* token(int layer, const PageMap& pages, const StepSequence& s, int64_t i, int h,
                     int64_t position) {
    if (i < s.sink_end) return raw_at(layer, s.raw_slot, i, h);
    if (i >= s.raw_first && i > position - g_.window_tokens)
      return raw_at(layer, s.raw_slot, g_.sink_tokens + i % g_.ring_tokens, h);
    return coded_at(layer, pages, s, i, h);
  }

  void check_rows(const BatchPlan& plan) {
    int64_t new_tokens = 0, query_tokens = 0;
    for (int32_t i = 0; i < plan.rows.num_sequences; i++) {
      const StepSequence& s = plan.rows.sequences[i];
      require(s.kv_row == new_tokens && s.q_row == query_tokens, "rows do not follow each other");
      const int64_t num_pages = g_.groups[0].pages_for(s.length());
      for (int64_t j = 0; j < num_pages; j++) page(0, plan.maps[0].row(s.page_row)[j]);
      require(plan.maps[0].first_changed[i] >= 0 && plan.maps[0].first_changed[i] <= num_pages,
              "first_changed");
      require(s.raw_first >= s.length() - g_.ring_tokens && s.raw_first >= 0 && s.raw_first <= s.length(),
              "raw_first");
      require(s.sink_end == std::min<int64_t>(g_.sink_tokens, s.length()), "sink_end");
      new_tokens += s.new_tokens;
      query_tokens += s.query_tokens;
    }
    require(new_tokens == plan.rows.new_tokens && query_tokens == plan.rows.query_tokens, "totals");
  }

  void attend_row(const AttendRequest& r, const StepSequence& s, int64_t query, int qh) {
    const int64_t position = s.length() - s.query_tokens + query, row = s.q_row + query;
    const float* q = static_cast<const float*>(r.q) + row * r.q_strides.token + qh * r.q_strides.head;
    const int h = qh / l_.q_per_kv;
    const int64_t limit = r.history_only ? std::min(position, s.old_length - 1) : position;
    Part part;
    part.o.assign(static_cast<size_t>(l_.value_dim), 0);
    for (int64_t i = 0; i <= limit; i++) {
      if (r.sliding_window > 0 && i <= position - r.sliding_window) continue;
      const float* x = token(r.layer, r.plan->maps[0], s, i, h, position);
      double logit = 0;
      for (int d = 0; d < l_.head_dim; d++) logit += static_cast<double>(q[d]) * x[d];
      logit *= r.softmax_scale;
      if (r.logit_softcap > 0) logit = r.logit_softcap * tanh(logit / r.logit_softcap);
      require(logit == logit, "a key that was never written, or is scrubbed, was read");
      const double m = std::max(part.m, logit), old = exp(part.m - m), weight = exp(logit - m);
      part.l = part.l * old + weight;
      for (int d = 0; d < l_.value_dim; d++)
        part.o[static_cast<size_t>(d)] = part.o[static_cast<size_t>(d)] * old + weight * x[l_.head_dim + d];
      part.m = m;
    }
    finish(r, row, qh, part);
  }

  void finish(const AttendRequest& r, int64_t row, int qh, Part part) {
    if (r.sink_logits) {
      const double sink = r.sink_logits[qh], m = std::max(part.m, sink),
                   old = part.l > 0 ? exp(part.m - m) : 0;
      part.l = part.l * old + exp(sink - m);
      for (double& o : part.o) o *= old;
      part.m = m;
    }
    float* out = static_cast<float*>(r.out) + row * r.out_strides.token + qh * r.out_strides.head;
    for (int d = 0; d < l_.value_dim; d++)
      out[d] = part.l > 0 ? static_cast<float>(part.o[static_cast<size_t>(d)] / part.l) : 0.0f;
    if (r.lse)
      r.lse[row * l_.num_q_heads + qh] =
          part.l > 0 ? static_cast<float>(part.m + log(part.l)) : -std::numeric_limits<float>::infinity();
  }

  Geometry g_;
  LayerGeometry l_;  // of every layer
  HostOps ops_;
  size_t pages_bytes_;
  float* own_ = nullptr;
  float* pages_;
  std::vector<float> raw_;
  std::vector<uint64_t> flags_;
  std::vector<char> workspace_;
  uint64_t noticed_ = 0;
};

}  // namespace

World& world() {
  static World w = {};
  return w;
}

float coded(float x) { return format::float_from_bf16(format::bf16_from_float(x)); }

std::unique_ptr<Backend> create_backend(DeviceType, const Geometry& geometry, const HostOps& ops, void* pool,
                                        void*) {
  return std::unique_ptr<Backend>(new FakeBackend(geometry, ops, pool));
}

}  // namespace fake
}  // namespace tq
