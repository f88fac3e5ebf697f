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
constexpr int64_t kRawTokens = format::kTileTokens;  // of a page of exact copies

void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "fake backend: %s\n", what);
  abort();
}

void enter(Verb verb) {
  World& w = world();
  w.calls[static_cast<int>(verb)]++;
  if (w.fail[static_cast<int>(verb)] && w.spared[static_cast<int>(verb)]-- <= 0)
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
    const int64_t raw_pages = g_.has_exact() ? g_.groups[g_.raw_group].num_pages : 0;
    raw_.assign(static_cast<size_t>(g_.num_layers * raw_pages) * kRawTokens * token_floats(), NAN);
    flags_.assign(static_cast<size_t>(g_.max_sequences), 0);
    workspace_.assign(kWorkspaceBytes, 0);
    world().live_backends++;
    world().backend = this;
    world().batch_invariant = geometry.batch_invariant;
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
          store(r.layer, r.plan->maps, s, s.old_length + j, h, k, v);
        }
    }
  }

  void encode_tokens(const EncodeRequest&) override { require(false, "no tokens are stored once"); }

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
        const float* x = token(r.layer, r.maps, r.sequence, r.first + j, h, r.sequence.length() - 1);
        float* k = static_cast<float*>(r.k) + j * r.key_strides.token + h * r.key_strides.head;
        float* v = static_cast<float*>(r.v) + j * r.value_strides.token + h * r.value_strides.head;
        for (int i = 0; r.k && i < l_.head_dim; i++) k[i] = x[i];
        for (int i = 0; r.v && i < l_.value_dim; i++) v[i] = x[l_.head_dim + i];
      }
  }
  void* own_workspace() override { return workspace_.data(); }

  void set_centres(int, const float*, const float*) override { enter(Verb::kSetCentres); }
  void set_key_matrix(int, const KeyMatrix&, const float*, const float*) override {
    enter(Verb::kSetCentres);
  }
  void copy_pages(int group, const PageCopy* copies, int64_t count, void*) override {
    enter(Verb::kCopyPages);
    for (int64_t i = 0; i < count; i++) {
      if (group != g_.raw_group) world().copied.push_back(copies[i]);
      for_each_page(group, copies[i].target, [&](int layer, float* target, size_t floats) {
        std::copy_n(page_of(layer, group, copies[i].source), floats, target);
      });
    }
  }
  void scrub_pages(int group, const int32_t* pages, int64_t count, void*) override {
    enter(Verb::kScrubPages);
    for (int64_t i = 0; i < count; i++) {
      (group == g_.raw_group ? world().scrubbed_raw : world().scrubbed).push_back(pages[i]);
      for_each_page(group, pages[i], [](int, float* page, size_t floats) { std::fill_n(page, floats, NAN); });
    }
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
  // Key and value lie side by side, so both kinds are this.
  TilePlace exact_tiles(int layer, Kind) const override {
    const int64_t bytes = static_cast<int64_t>(kRawTokens * token_floats() * sizeof(float));
    return TilePlace{const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(raw_.data())) +
                         layer * g_.groups[g_.raw_group].num_pages * bytes,
                     bytes,
                     static_cast<int64_t>(token_floats() * sizeof(float)) / l_.num_kv_heads,
                     1,
                     nullptr,
                     0};
  }
  ReachedMemory reach(const void* memory, int64_t) const override {
    if (world().unreachable) return {nullptr, false};
    return {const_cast<uint8_t*>(static_cast<const uint8_t*>(memory)) + world().reached_at, false};
  }
  std::unique_ptr<DeviceMemory> take_memory(int64_t bytes, const char*) override {
    struct Memory : DeviceMemory {
      explicit Memory(int64_t bytes) : bytes_(static_cast<size_t>(bytes), 0xFF) {}
      uint8_t* data() const override { return bytes_.data(); }
      mutable std::vector<uint8_t> bytes_;
    };
    return std::make_unique<Memory>(bytes);
  }
  uint8_t* take_staging(int64_t bytes) override {
    world().staging_bytes += bytes;
    return new uint8_t[static_cast<size_t>(bytes)];
  }
  void give_staging(uint8_t* memory, int64_t bytes) noexcept override {
    world().staging_bytes -= bytes;
    delete[] memory;
  }
  // A token's vectors, where the real ones have codes.
  void move_tiles(const TileMove& move) override {
    enter(Verb::kMoveTiles);
    for (int64_t token = 0; token < move.tiles * format::kTileTokens; token++)
      for (int head = 0; head < move.heads; head++) {
        const int64_t tile = token / format::kTileTokens;
        const int in_tile = static_cast<int>(token % format::kTileTokens);
        const bool moved = move.tokens(tile).holds(in_tile);
        if (!moved && move.stays(tile) && move.stay.holds(in_tile)) continue;
        float* to = moved_token(move.target, token, head);
        for (int64_t d = 0; d < move.target.head_bytes / static_cast<int64_t>(sizeof(float)); d++)
          to[d] = moved ? moved_token(move.source, token, head)[d] : NAN;
      }
  }
  void copy_slot(int source, int target, void*) override {
    enter(Verb::kCopySlot);
    flags_[static_cast<size_t>(target)] = flags_[static_cast<size_t>(source)];
  }
  void start_slot(int slot, void*) override {
    enter(Verb::kStartSlot);
    world().started.push_back(slot);
    flags_[static_cast<size_t>(slot)] = 0;
  }
  void add_to_slot(int slot, uint64_t flags, const volatile uint32_t*, void*) override {
    enter(Verb::kAddToSlot);
    flags_[static_cast<size_t>(slot)] |= flags;
  }
  const volatile uint32_t* slot_word(int) const override { return nullptr; }
  void wait(void*) override { world().waits++; }
  // 32 tokens at a time, as page_move.cpp allows; what has no token is NaN.
  void move_tokens(const MoveRequest& request) override {
    enter(Verb::kMoveTokens);
    for (int32_t group = 0; group < g_.num_groups; group++) {
      const GroupMove& move = request.groups[group];
      const int64_t size = g_.groups[group].page_size;
      for (int64_t i = 0; i < move.num_gathers * (size / kRawTokens); i++) {
        const PageGather& to = move.gathers[i / (size / kRawTokens)];
        const int64_t unit = i % (size / kRawTokens) * kRawTokens;
        for (int layer = 0; layer < g_.num_layers; layer++) {
          if (!g_.in_group(layer, group)) continue;
          std::vector<float> gathered(static_cast<size_t>(kRawTokens) * token_floats(), NAN);
          for (int64_t j = 0; j < kRawTokens; j++) {
            const int64_t token = to.index * size + unit + j;
            if (!move.kept.has(token)) continue;
            const int64_t from = request.tokens.source(token);
            require(from / size < move.num_sources, "source page");
            const float* page = page_of(layer, group, move.sources[from / size]);
            std::copy_n(page + static_cast<size_t>(from % size) * token_floats(), token_floats(),
                        gathered.begin() + j * static_cast<int64_t>(token_floats()));
          }
          std::copy(gathered.begin(), gathered.end(),
                    page_of(layer, group, to.target) + static_cast<size_t>(unit) * token_floats());
        }
      }
    }
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
  float* raw_page(int layer, int32_t id) {
    const int64_t pages = g_.groups[g_.raw_group].num_pages;
    require(id >= 0 && id < pages, "id of a page of exact copies out of range");
    return raw_.data() + static_cast<size_t>(layer * pages + id) * kRawTokens * token_floats();
  }
  float* page_of(int layer, int group, int32_t id) {
    return group == g_.raw_group ? raw_page(layer, id) : page(layer, id);
  }
  // visit(layer, page, floats)
  template <typename Visit>
  void for_each_page(int group, int32_t id, const Visit& visit) {
    for (int layer = 0; layer < g_.num_layers; layer++)
      if (g_.in_group(layer, group))
        visit(layer, page_of(layer, group, id),
              group == g_.raw_group ? kRawTokens * token_floats() : page_floats());
  }
  float* coded_at(int layer, const PageMap* maps, const StepSequence& s, int64_t i, int h) {
    require(i < s.length(), "token behind the sequence");
    return page(layer, maps[0].row(s.page_row)[i / g_.page_size]) +
           (static_cast<size_t>(i % g_.page_size) * l_.num_kv_heads + h) * (l_.head_dim + l_.value_dim);
  }
  float* raw_at(int layer, const PageMap* maps, const StepSequence& s, int64_t i, int h) {
    require(i < s.length() && s.has_raw_page(i / kRawTokens * kRawTokens), "token without an exact copy");
    return raw_page(layer, maps[g_.raw_group].row(s.raw_slot)[i / kRawTokens]) +
           (static_cast<size_t>(i % kRawTokens) * l_.num_kv_heads + h) * (l_.head_dim + l_.value_dim);
  }

  void store(int layer, const PageMap* maps, const StepSequence& s, int64_t i, int h, const float* k,
             const float* v) {
    float* exact = s.has_raw_page(i / kRawTokens * kRawTokens) ? raw_at(layer, maps, s, i, h) : nullptr;
    for (int d = 0; d < l_.head_dim + l_.value_dim; d++) {
      float x = d < l_.head_dim ? k[d] : v[d - l_.head_dim];
      if (x != x) {
        x = 0;
        flags_[static_cast<size_t>(s.flag)] |= 1;
        noticed_ |= 1;
      }
      coded_at(layer, maps, s, i, h)[d] = coded(x);
      if (exact) exact[d] = x;
    }
  }
  // Keys and values of one token as a query at `position` sees them.
  const float* token(int layer, const PageMap* maps, const StepSequence& s, int64_t i, int h,
                     int64_t position) {
    const bool exact = i < s.sink_end || (i >= s.raw_first && i > position - g_.window_tokens);
    return exact ? raw_at(layer, maps, s, i, h) : coded_at(layer, maps, s, i, h);
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
      require(s.raw_first >= 0 && s.raw_first <= s.length(), "raw_first");
      for (int64_t j = 0; g_.has_exact() && j < s.length(); j += kRawTokens)
        if (s.has_raw_page(j)) raw_page(0, plan.maps[g_.raw_group].row(s.raw_slot)[j / kRawTokens]);
      require(s.sink_end >= 0 && s.sink_end <= std::min<int64_t>(g_.sink_tokens, s.length()), "sink_end");
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
      const float* x = token(r.layer, r.plan->maps, s, i, h, position);
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
