// SPDX-License-Identifier: Apache-2.0
// See rig.h.
#include "rig.h"

#include <fenv.h>
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <limits>
#include <random>

#include "cpu/schedule.h"

namespace tq {
namespace test {
namespace {

DataType raw_type(DataType io) { return io == DataType::kBF16 ? DataType::kBF16 : DataType::kF16; }

float round_to(DataType type, float x) {
  if (type == DataType::kF16) return format::float_from_f16(format::f16_from_float(x));
  if (type == DataType::kBF16 && isfinite(x)) return format::float_from_bf16(format::bf16_from_float(x));
  return x;
}

void store_as(DataType type, float x, uint8_t* target) {
  if (type == DataType::kF32) {
    memcpy(target, &x, 4);
    return;
  }
  uint16_t h =
      // x is already a value of the type, or infinite or NaN
      type == DataType::kF16 ? format::f16_from_float(x) : static_cast<uint16_t>(format::float_bits(x) >> 16);
  memcpy(target, &h, 2);
}

float load_as(DataType type, const uint8_t* source) {
  if (type == DataType::kF32) {
    float x;
    memcpy(&x, source, 4);
    return x;
  }
  uint16_t h;
  memcpy(&h, source, 2);
  return type == DataType::kF16 ? format::float_from_f16(h) : format::float_from_bf16(h);
}

// A caller's floating-point mode for the length of a scope.
struct CallerMode {
#if defined(__x86_64__)
  explicit CallerMode(bool strange) : saved(_mm_getcsr()) {
    // flush to zero, denormals are zero, round towards zero
    if (strange) _mm_setcsr(saved | 0x8040 | 0x6000);
  }
  ~CallerMode() { _mm_setcsr(saved); }
  uint32_t saved;
#else
  explicit CallerMode(bool strange) : saved(fegetround()) {
    if (strange) fesetround(FE_TOWARDZERO);
  }
  ~CallerMode() { fesetround(saved); }
  int saved;
#endif
};

}  // namespace

float Random::normal() {
  const double u = uniform() + 1e-18, v = uniform();
  return static_cast<float>(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

bool full_set() {
  const char* value = getenv("TQKV_TEST_FULL");
  return value && *value == '1';
}

std::vector<std::string> isas() {
  const cpu::Kernels* tables[cpu::kMaxIsas];
  std::vector<std::string> names;
  for (int i = 0, count = cpu::supported_kernels(tables); i < count; i++) names.push_back(tables[i]->name);
  return names;
}

const cpu::Kernels& kernels_of(const std::string& isa) { return cpu::select_kernels(isa.c_str()); }

void* Rig::alloc(void* user, size_t bytes, size_t alignment, int32_t, int32_t) {
  Rig& rig = *static_cast<Rig*>(user);
  if (rig.fail_allocations) return nullptr;
  void* pointer = nullptr;
  if (posix_memalign(&pointer, std::max<size_t>(alignment, 64), bytes) != 0) return nullptr;
  memset(pointer, rig.config.fill, bytes);
  rig.blocks_.emplace_back(static_cast<uint8_t*>(pointer), bytes);
  rig.allocations++;
  rig.live_bytes += static_cast<int64_t>(bytes);
  rig.total_bytes += static_cast<int64_t>(bytes);
  return pointer;
}
void Rig::free(void* user, void* pointer, size_t bytes, int32_t, int32_t) {
  static_cast<Rig*>(user)->live_bytes -= static_cast<int64_t>(bytes);
  ::free(pointer);
}

Rig::Rig(const RigConfig& c) : config(c), geometry(), plan_() {
  UniformGeometry& g = geometry;
  g.num_layers = c.layers;
  g.num_kv_heads = c.kv_heads;
  g.q_per_kv = c.q_per_kv;
  g.num_q_heads = c.kv_heads * c.q_per_kv;
  g.head_dim = c.head_dim;
  g.value_dim = c.value_dim;
  g.latent = c.latent;
  g.io_dtype = c.io;
  g.rotation = c.rotation;
  g.rotation_seed = 12345;
  g.first_layer = 7, g.first_kv_head = 3;
  g.key_rule = c.key_rule;
  g.value_rule = c.value_rule;
  g.search = true;
  g.page_size = c.page_size;
  const int64_t num_pages = (c.max_tokens + c.page_size - 1) / c.page_size + c.max_sequences;
  g.num_groups = 1;
  g.groups[0] = PageGroup{c.page_size, num_pages, num_pages};
  g.max_sequences = g.max_batch_sequences = c.max_sequences;
  g.max_batch_tokens = c.max_tokens;
  g.window_tokens = c.window;
  g.sink_tokens = c.sinks;
  g.raw_group = c.window + c.sinks > 0 ? g.num_groups++ : -1;
  if (g.has_exact()) {
    const int64_t stride = (c.max_tokens + format::kTileTokens - 1) / format::kTileTokens;
    g.groups[g.raw_group] = PageGroup{format::kTileTokens, c.max_sequences * stride, stride};
  }
  g.num_threads = c.threads;
  g.sketch = c.sketch;
  g.key_levels = &(levels_[0] = some_levels(c.key_bits)),
  g.value_levels = &(levels_[1] = some_levels(c.value_bits));
  if (!c.band_bits.empty()) order_ = some_orders(c.kv_heads, c.head_dim);
  g.key_order = order_.empty() ? nullptr : order_.data();
  g.set_layers(code_of(c, Kind::kKey), code_of(c, Kind::kValue));
  page_memory_ =
      static_cast<uint8_t*>(alloc(this, static_cast<size_t>(cpu::cpu_backend_bytes(g).pages), 256, 1, 0));
  const CallerMode mode(c.strange_fp);
  backend = cpu::create_cpu_backend_for(g, HostOps{this, alloc, free}, page_memory_, c.isa.c_str());
  const size_t raw_bytes = static_cast<size_t>(backend->bytes().raw);
  for (const auto& block : blocks_)
    if (c.dirty && (block.first == page_memory_ || block.second == raw_bytes))
      memset(block.first, c.fill, block.second);
  blocks_.clear();
  Random random(99);
  for (int32_t page = 0; page < num_pages; page++) free_pages_.push_back(page);
  for (size_t i = free_pages_.size(); i > 1; i--)
    std::swap(free_pages_[i - 1], free_pages_[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  sequences_.resize(c.max_sequences);
  page_table_.assign(static_cast<size_t>(c.max_sequences * num_pages), -1);
  raw_table_.resize(static_cast<size_t>(g.has_exact() ? g.groups[g.raw_group].num_pages : 0));
  for (size_t i = 0; i < raw_table_.size(); i++) {
    raw_table_[i] = static_cast<int32_t>(i);
    std::swap(raw_table_[i], raw_table_[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
  }
  storage_ = backend->create_plan_storage();
  if (!c.centres) return;
  for (int kind = 0; kind < 2; kind++)
    for (int i = 0; i < c.kv_heads * (kind ? c.value_dim : c.head_dim); i++)
      centre_[kind].push_back(0.5f * random.normal());
  for (int layer = 0; layer < c.layers; layer++)
    backend->set_centres(layer, centre_[0].data(), centre_[1].data());
}

Rig::~Rig() {
  backend->destroy_plan_storage(storage_);
  backend.reset();
  free(this, page_memory_, static_cast<size_t>(cpu::cpu_backend_bytes(geometry).pages), 1, 0);
}

std::vector<float> Rig::input(int sequence, int64_t token, int head, Kind kind) const {
  Random random(config.seed * 1000003 +
                static_cast<uint64_t>(((token * 64 + sequence) * 64 + head) * 2 + static_cast<int>(kind)));
  const int dim = kind == Kind::kKey ? config.head_dim : config.value_dim;
  const float size = kind == Kind::kKey ? config.key_size : config.value_size;
  std::vector<float> x(dim);
  const float own = 0.5f + static_cast<float>(random.uniform());  // tokens differ in length
  for (int i = 0; i < dim; i++) {
    x[i] = round_to(config.io, random.normal() * own * size);
    const auto poke = pokes_.find({sequence, token, head, static_cast<int>(kind), i});
    if (poke != pokes_.end()) x[i] = round_to(config.io, poke->second);
  }
  return x;
}

void Rig::step(const std::vector<Ask>& asks, bool append) {
  const UniformGeometry& g = geometry;
  plan_sequences_.clear();
  asks_ = asks;
  int64_t kv_row = 0, q_row = 0;
  for (const Ask& ask : asks) {
    Sequence& sequence = sequences_[ask.sequence];
    const int64_t old_length = sequence.length;
    sequence.length += ask.new_tokens;
    const int64_t copies = config.window > 0 ? config.window + config.rollback : 0;
    sequence.raw_first = std::max(sequence.raw_first, sequence.length - copies);
    while (static_cast<int64_t>(sequence.pages.size()) * g.page_size < sequence.length) {
      sequence.pages.push_back(free_pages_.back());
      free_pages_.pop_back();
    }
    plan_sequences_.push_back(
        StepSequence{ask.sequence, ask.sequence, ask.sequence, old_length, ask.new_tokens, ask.query_tokens,
                     kv_row, q_row, sequence.raw_first, std::min<int64_t>(g.sink_tokens, sequence.length)});
    kv_row += ask.new_tokens;
    q_row += ask.query_tokens;
  }
  first_changed_.assign(asks.size(), 0);
  plan_ = BatchPlan{
      {static_cast<int32_t>(asks.size()), plan_sequences_.data(), kv_row, q_row}, page_maps(), storage_};
  backend->upload_plan(plan_, nullptr);
  if (!append) return;
  const int element = dtype_bytes(config.io);
  const int64_t key_stride = g.input_dim() + 16, value_stride = g.value_dim + 48;  // strided on purpose
  std::vector<uint8_t>&k = key_bytes_, &v = value_bytes_;
  k.assign(static_cast<size_t>(kv_row * g.num_kv_heads * key_stride * element + 64), 0);
  v.assign(static_cast<size_t>(kv_row * g.num_kv_heads * value_stride * element + 64), 0);
  for (size_t i = 0; i < asks.size(); i++)
    for (int64_t token = plan_sequences_[i].old_length; token < plan_sequences_[i].length(); token++)
      for (int head = 0; head < g.num_kv_heads; head++)
        for (const Kind kind : {Kind::kKey, Kind::kValue}) {
          const std::vector<float> x = input(asks[i].sequence, token, head, kind);
          const int64_t row = plan_sequences_[i].kv_row + token - plan_sequences_[i].old_length;
          const int64_t offset = g.layers[0].input_offset(kind);
          uint8_t* target =
              kind == Kind::kKey || g.latent
                  ? &k[static_cast<size_t>(((row * g.num_kv_heads + head) * key_stride + offset) * element)]
                  : &v[static_cast<size_t>((row * g.num_kv_heads + head) * value_stride * element)];
          for (size_t c = 0; c < x.size(); c++) store_as(config.io, x[c], target + c * element);
        }
  const CallerMode mode(config.strange_fp);
  append_ = AppendRequest{0,
                          &plan_,
                          k.data(),
                          g.latent ? nullptr : v.data(),
                          {key_stride * g.num_kv_heads, key_stride},
                          {value_stride * g.num_kv_heads, value_stride},
                          nullptr};
  for (append_.layer = 0; append_.layer < g.num_layers; append_.layer++) backend->append(append_);
}

const PageMap* Rig::page_maps() {
  const int64_t stride = geometry.groups[0].max_sequence_pages;
  for (size_t i = 0; i < sequences_.size(); i++)
    std::copy(sequences_[i].pages.begin(), sequences_[i].pages.end(),
              page_table_.begin() + static_cast<int64_t>(i) * stride);
  maps_[0] = PageMap{page_table_.data(), stride, first_changed_.data()};
  if (geometry.has_exact())
    maps_[1] = PageMap{raw_table_.data(), geometry.groups[1].max_sequence_pages, first_changed_.data()};
  return maps_;
}

Result Rig::attend(const AttendOptions& o) {
  const UniformGeometry& g = geometry;
  const int element = dtype_bytes(config.io), out_element = dtype_bytes(o.out);
  const int64_t q_stride = g.input_dim() + (o.strided ? 32 : 0),
                out_stride = g.value_dim + (o.strided ? 7 : 0), rows = plan_.rows.query_tokens;
  std::vector<uint8_t>& q = query_bytes_;
  q.assign(static_cast<size_t>(rows * g.num_q_heads * q_stride * element + 1), 0);
  std::vector<uint8_t> out(static_cast<size_t>(rows * g.num_q_heads * out_stride * out_element + 1), 0xEE);
  queries.assign(static_cast<size_t>(rows * g.num_q_heads * g.input_dim()), 0);
  for (size_t i = 0; i < asks_.size(); i++)
    for (int64_t j = 0; j < asks_[i].query_tokens; j++)
      for (int head = 0; head < g.num_q_heads; head++) {
        const int64_t position = plan_sequences_[i].length() - asks_[i].query_tokens + j;
        Random random(config.seed * 77 +
                      static_cast<uint64_t>((position * 64 + asks_[i].sequence) * 512 + head));
        const int64_t row = (plan_sequences_[i].q_row + j) * g.num_q_heads + head;
        for (int c = 0; c < g.input_dim(); c++) {
          float x = round_to(config.io, config.query_size * random.normal());
          if (strange_query != 0 && c == 0) x = round_to(config.io, strange_query);
          const auto poke = query_pokes_.find({asks_[i].sequence, position, head, c});
          if (poke != query_pokes_.end()) x = poke->second;
          queries[static_cast<size_t>(row * g.input_dim() + c)] = x;
          store_as(config.io, x, &q[static_cast<size_t>((row * q_stride + c) * element)]);
        }
      }
  std::vector<float>& sinks = sink_logits_;
  sinks = o.sinks;
  for (int head = 0; o.sinks.empty() && head < g.num_q_heads; head++)
    sinks.push_back(0.5f * static_cast<float>(head) - 1);
  Result result;
  const cpu::SplitLimits limits = cpu::split_limits(cpu::step_bounds(g), g.heads(), g.num_threads);
  std::vector<cpu::WorkItem> items(static_cast<size_t>(limits.items));
  result.num_partials = cpu::split_work(plan_.rows, limits, items.data()).num_partials;
  result.lse.assign(static_cast<size_t>(rows * g.num_q_heads), -7);
  AttendRequest request = {};
  request.plan = &plan_;
  request.q = q.data();
  request.out = out.data();
  request.lse = result.lse.data();
  request.q_strides = {q_stride * g.num_q_heads, q_stride};
  request.out_strides = {out_stride * g.num_q_heads, out_stride};
  request.out_dtype = o.out;
  request.softmax_scale = o.scale != 0 ? o.scale : 1 / sqrtf(static_cast<float>(g.input_dim()));
  request.logit_softcap = o.softcap;
  request.sliding_window = o.sliding_window;
  request.sink_logits = o.sink_logits ? sinks.data() : nullptr;
  request.history_only = o.history_only;
  o.masks.pass(&request);
  void* workspace = nullptr;
  if (!o.own_workspace) {
    request.workspace_bytes = static_cast<size_t>(backend->bytes().workspace);
    if (posix_memalign(&workspace, 256, request.workspace_bytes) != 0) abort();
    memset(workspace, o.workspace_fill, request.workspace_bytes);
    request.workspace = workspace;
  } else {
    request.workspace = backend->own_workspace();
    request.workspace_bytes = static_cast<size_t>(backend->bytes().workspace);
  }
  {
    const CallerMode mode(config.strange_fp);
    backend->attend(request);
  }
  ::free(workspace);
  request_ = request;
  for (int64_t row = 0; row < rows * g.num_q_heads; row++)
    for (int c = 0; c < g.value_dim; c++)
      result.out.push_back(load_as(o.out, &out[static_cast<size_t>((row * out_stride + c) * out_element)]));
  return result;
}

Result Rig::attend_again() {
  const UniformGeometry& g = geometry;
  Result result;
  result.out.resize(static_cast<size_t>(plan_.rows.query_tokens * g.num_q_heads * g.value_dim));
  result.lse.resize(static_cast<size_t>(plan_.rows.query_tokens * g.num_q_heads));
  AttendRequest request = request_;
  request.out = result.out.data();
  request.out_strides = {static_cast<int64_t>(g.num_q_heads) * g.value_dim, g.value_dim};
  request.out_dtype = DataType::kF32;
  request.lse = result.lse.data();
  request.workspace_bytes = static_cast<size_t>(backend->bytes().workspace);
  if (posix_memalign(&request.workspace, 256, request.workspace_bytes) != 0) abort();
  backend->attend(request);
  ::free(request.workspace);
  return result;
}

void Rig::attend_with_workspace(size_t bytes) {
  attend();
  std::vector<float> out(
      static_cast<size_t>(plan_.rows.query_tokens * geometry.num_q_heads * geometry.value_dim));
  alignas(256) uint8_t workspace[256];
  AttendRequest request = request_;
  request.out = out.data();
  request.lse = nullptr;
  request.workspace = workspace;
  request.workspace_bytes = bytes;
  backend->attend(request);
}

// What the codes (or a raw side) of a token stand for.
std::vector<float> Rig::decoded(int sequence, int64_t token, int head, Kind kind) {
  std::vector<float> x = input(sequence, token, head, kind);
  bool replaced = false;
  if (code_of(config, kind).raw()) {
    for (float& value : x) {
      uint16_t h;
      if (config.io == DataType::kF32)
        h = format::raw_from_f32(value, &replaced);
      else if (config.io == DataType::kF16)
        h = format::raw_from_f16(format::f16_from_float(value), &replaced);
      else
        h = format::raw_from_bf16(static_cast<uint16_t>(format::float_bits(value) >> 16), &replaced);
      value = raw_type(config.io) == DataType::kF16 ? format::float_from_f16(h) : format::float_from_bf16(h);
    }
    return x;
  }
  if (code_of(config, kind).banded()) return bands_and_back(head, x);
  if (const format::SideLayout side(static_cast<int>(x.size()), code_of(config, kind)); side.by_rows())
    return row_and_back(row_coder(head, kind), side, x);
  const format::VectorCoder& c = coder(head, kind);
  uint8_t codes[format::kMaxVectorDim];
  uint16_t scale;
  format::encode_vector(c, x.data(), codes, &scale);
  std::vector<float> y(x.size());
  format::decode_vector(c, codes, scale, y.data());
  return y;
}

bool Rig::is_exact(int sequence, int64_t token, int64_t position) const {
  return token < config.sinks ||
         (token > position - config.window && token >= sequences_[sequence].raw_first);
}

std::vector<float> Rig::expected(int sequence, int64_t token, int head, Kind kind) {
  return is_exact(sequence, token, sequences_[sequence].length - 1) ? exact(sequence, token, head, kind)
                                                                    : decoded(sequence, token, head, kind);
}

std::vector<float> Rig::exact(int sequence, int64_t token, int head, Kind kind) const {
  std::vector<float> x = input(sequence, token, head, kind);
  bool replaced = false;
  for (float& value : x) {
    value = format::sanitise(value, &replaced);
    if (config.io == DataType::kF16) value = std::min(std::max(value, -65504.0f), 65504.0f);
  }
  return x;
}

std::vector<float> Rig::whole_key(int sequence, int64_t token, int head, bool is_exact) {
  std::vector<float> key;
  for (const Kind kind : {Kind::kValue, Kind::kKey}) {
    if (kind == Kind::kValue && !config.latent) continue;
    const std::vector<float> part =
        is_exact ? exact(sequence, token, head, kind) : decoded(sequence, token, head, kind);
    key.insert(key.end(), part.begin(), part.end());
  }
  return key;
}

void Rig::truncate(int sequence, int64_t length) {
  Sequence& s = sequences_[sequence];
  s.length = length;
  s.raw_first = std::min(s.raw_first, length);
}

const uint8_t* Rig::tile(int sequence, int head, int64_t index) const {
  const int per_page = geometry.tiles_per_page();
  const int tile_bytes = geometry.tile(0).tile_bytes();
  return page_memory_ +
         sequences_[sequence].pages[static_cast<size_t>(index / per_page)] * geometry.page_bytes(0) +
         (static_cast<int64_t>(head) * per_page + index % per_page) * tile_bytes;
}

void Rig::read(int sequence, int64_t first, int64_t count, std::vector<float>* k, std::vector<float>* v) {
  const UniformGeometry& g = geometry;
  const Sequence& s = sequences_[sequence];
  const int element = dtype_bytes(config.io);
  std::vector<uint8_t> kb(static_cast<size_t>(count * g.num_kv_heads * g.input_dim() * element)),
      vb(static_cast<size_t>(count * g.num_kv_heads * g.value_dim * element));
  ReadRequest request = {};
  request.sequence =
      StepSequence{sequence, sequence, sequence, s.length,    0,
                   0,        0,        0,        s.raw_first, std::min<int64_t>(g.sink_tokens, s.length)};
  request.maps = page_maps();
  request.first = first;
  request.count = count;
  request.k = k ? kb.data() : nullptr;
  request.v = v ? vb.data() : nullptr;
  request.key_strides = {static_cast<int64_t>(g.num_kv_heads) * g.input_dim(), g.input_dim()};
  request.value_strides = {static_cast<int64_t>(g.num_kv_heads) * g.value_dim, g.value_dim};
  backend->read(request);
  if (k) k->clear();
  if (v) v->clear();
  for (size_t i = 0; k && i < kb.size(); i += element) k->push_back(load_as(config.io, &kb[i]));
  for (size_t i = 0; v && i < vb.size(); i += element) v->push_back(load_as(config.io, &vb[i]));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool same_bits(const Result& a, const Result& b) {
  return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  return size > 0 ? sqrt(difference / size) : difference > 0 ? std::numeric_limits<double>::infinity() : 0;
}

void Rig::lose_pages(int sequence, int64_t first, int64_t last) {
  const int64_t stride = geometry.groups[0].max_sequence_pages, page_size = geometry.page_size;
  for (int64_t page = 0; page * page_size < last; page++)
    if (page * page_size >= first && (page + 1) * page_size <= last)
      page_table_[static_cast<size_t>(sequence * stride + page)] = INT32_MAX / 2;
}

Masks Rig::masks(bool ranges, bool tree, bool alibi, uint64_t number) const {
  std::vector<MaskedRows> rows;
  for (const StepSequence& s : plan_sequences_) rows.push_back({s.length(), s.new_tokens, s.query_tokens});
  std::mt19937_64 random(config.seed * 1000 + number);
  return random_masks(rows, geometry.num_q_heads, ranges, tree, alibi,
                      [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); });
}

Result Rig::reference(const AttendOptions& o) {
  const UniformGeometry& g = geometry;
  const double scale = o.scale != 0 ? static_cast<double>(o.scale)
                                    : static_cast<double>(1 / sqrtf(static_cast<float>(g.input_dim())));
  Result result;
  result.out.assign(static_cast<size_t>(plan_.rows.query_tokens * g.num_q_heads * g.value_dim), 0);
  result.lse.assign(static_cast<size_t>(plan_.rows.query_tokens * g.num_q_heads), 0);
  for (size_t i = 0; i < asks_.size(); i++)
    for (int head = 0; head < g.num_kv_heads; head++) {
      const int64_t length = plan_sequences_[i].length();
      const int sequence = asks_[i].sequence;
      std::vector<std::vector<float>> vectors[2][2];  // [exact][kind][token]
      for (auto& both : vectors)
        for (auto& all : both) all.resize(static_cast<size_t>(length));
      // Made when first asked for: few tokens are both exact and coded to someone.
      const auto vector_of = [&](int64_t token, int64_t position, Kind kind) -> const std::vector<float>& {
        const bool as_given = is_exact(sequence, token, position);
        std::vector<float>& x = vectors[as_given][kind == Kind::kValue][static_cast<size_t>(token)];
        if (x.empty())
          x = kind == Kind::kKey ? whole_key(sequence, token, head, as_given)
              : as_given         ? exact(sequence, token, head, kind)
                                 : decoded(sequence, token, head, kind);
        return x;
      };
      for (int64_t j = 0; j < asks_[i].query_tokens; j++)
        for (int h = head * g.q_per_kv; h < (head + 1) * g.q_per_kv; h++) {
          const int64_t position = length - asks_[i].query_tokens + j,
                        row = (plan_sequences_[i].q_row + j) * g.num_q_heads + h;
          const float* q = &queries[static_cast<size_t>(row * g.input_dim())];
          const int64_t old_length = plan_sequences_[i].old_length;
          std::vector<int64_t> tokens;
          for (int64_t token = 0; token < (o.history_only ? old_length : length); token++)
            if (o.masks.sees(plan_sequences_[i].q_row + j, position, token, old_length, o.sliding_window))
              tokens.push_back(token);
          std::vector<double> logits;
          double largest = -std::numeric_limits<double>::infinity(), sum = 0;
          for (const int64_t token : tokens) {
            const std::vector<float>& k = vector_of(token, position, Kind::kKey);
            double logit = 0;
            for (int c = 0; c < g.input_dim(); c++) logit += static_cast<double>(q[c]) * k[c];
            logit *= scale;
            if (o.softcap > 0) logit = o.softcap * tanh(logit / o.softcap);
            logit += o.masks.bias(h, position, token);
            logits.push_back(logit);
            largest = std::max(largest, logit);
          }
          const double sink = o.sinks.empty() ? 0.5 * h - 1 : o.sinks[static_cast<size_t>(h)];
          if (o.sink_logits) largest = std::max(largest, sink);
          std::vector<double> out(g.value_dim, 0.0);
          for (size_t t = 0; t < logits.size(); t++) {
            const double p = exp(logits[t] - largest);
            sum += p;
            const int64_t token = tokens[t];
            const std::vector<float>& v = vector_of(token, position, Kind::kValue);
            for (int c = 0; c < g.value_dim; c++) out[c] += p * v[c];
          }
          if (o.sink_logits) sum += exp(sink - largest);
          for (int c = 0; c < g.value_dim; c++)
            result.out[static_cast<size_t>(row * g.value_dim + c)] =
                static_cast<float>(sum > 0 ? out[c] / sum : 0);
          result.lse[static_cast<size_t>(row)] =
              static_cast<float>(sum > 0 ? largest + log(sum) : -std::numeric_limits<double>::infinity());
        }
    }
  return result;
}

}  // namespace test
}  // namespace tq
