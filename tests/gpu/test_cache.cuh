// SPDX-License-Identifier: Apache-2.0
// TestCache: plays the core for a backend, fills inputs and asks the oracle.
#pragma once
#include "fixture.cuh"
#include "tests/uniform_geometry.h"

namespace gpu_test {

constexpr int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

class TestCache {
 public:
  explicit TestCache(const Config& config, const tq::HostOps& ops = {});
  ~TestCache() {
    if (storage_) backend->destroy_plan_storage(storage_);
  }

  // Plans new_tokens[i] for sequence i, and `queries` queries of each: bookkeeping only, into `last`.
  void prepare_plan(const std::vector<int64_t>& new_tokens);
  void plan(const std::vector<int64_t>& new_tokens, cudaStream_t stream = nullptr) {
    prepare_plan(new_tokens);
    backend->upload_plan(last, stream);
  }
  // Writes the plan's input rows of a layer.
  void fill(int layer, cudaStream_t stream = nullptr);
  std::vector<uint8_t> read_all(int sequence);
  const std::vector<int32_t>& pages(int sequence) const { return pages_[sequence]; }
  // Pages of exact copies, one for each 32 tokens, whether they are kept or not.
  std::vector<int32_t> raw_pages(int sequence) const {
    const int64_t stride = raw_stride();
    return std::vector<int32_t>(raw_table_.begin() + sequence * stride,
                                raw_table_.begin() + (sequence + 1) * stride);
  }
  void append(int layer, cudaStream_t stream = nullptr);
  // Dense rows of q in config.type; float32 out and lse.
  void attend(int layer, const void* q, float* out, float* lse, cudaStream_t stream = nullptr);
  void step(const std::vector<int64_t>& new_tokens) {
    plan(new_tokens);
    for (int layer = 0; layer < config.layers; layer++) {
      fill(layer);
      append(layer);
    }
  }
  // Every stored code and scale against the oracle; read: decoded values instead. name says what was tried.
  bool verify(const char* name, bool read = false) {
    bool right = true;
    for (int layer = 0; layer < config.layers; layer++) right &= verify_layer(name, layer, read);
    return right;
  }
  bool verify_layer(const char* name, int layer, bool read = false);
  // Sequence 0 again, by format::encode_vector on the host.
  bool verify_host(const char* name);
  OracleJob job(int layer, int kind, int sequence) const;
  // Forgets all tokens and draws other vectors from now on.
  void restart(uint64_t seed) {
    config.seed = seed;
    std::fill(length.begin(), length.end(), 0);
    std::fill(raw_first_.begin(), raw_first_.end(), 0);
  }
  // First token of the window that a read gives.
  int64_t window_first(int sequence) const {
    return std::max(raw_first_[sequence],
                    length[sequence] - std::min<int64_t>(length[sequence], config.window));
  }

  Config config;
  tq::UniformGeometry geometry;
  std::unique_ptr<tq::Backend> backend;
  std::vector<int64_t> length;
  int64_t queries = 0;
  Buffer<uint8_t> pool;
  tq::BatchPlan last = {};
  tq::TensorStrides strides[2];  // of the inputs; padded so that rows are not dense
  Buffer<uint8_t> input[2];

 private:
  tq::StepSequence sequence_at(int sequence, int64_t old_length) const;
  const tq::PageMap* page_maps();
  int64_t raw_stride() const {
    return geometry.has_exact() ? geometry.groups[geometry.raw_group].max_sequence_pages : 0;
  }

  std::vector<std::vector<int32_t>> pages_;
  std::vector<int32_t> table_;      // the same, [sequences][max_sequence_pages]
  std::vector<int32_t> raw_table_;  // the same for exact copies
  tq::PageMap maps_[2];
  std::vector<int64_t> shown_, first_changed_, raw_shown_, raw_changed_, raw_first_;
  std::vector<int32_t> free_;
  std::vector<tq::StepSequence> plan_;
  std::vector<int64_t> layer_at_;
  Buffer<uint64_t> signs_;
  Buffer<float> centres_;
  std::vector<float> centres_host_;
  void* storage_ = nullptr;
};

inline TestCache::TestCache(const Config& c, const tq::HostOps& ops) : config(c), length(c.sequences, 0) {
  const int64_t sequence_pages = (c.tokens + c.page_size - 1) / c.page_size;
  geometry.num_layers = c.layers;
  geometry.num_q_heads = geometry.num_kv_heads = c.heads;
  geometry.q_per_kv = 1;
  geometry.head_dim = c.head_dim;
  geometry.value_dim = c.value_dim;
  geometry.io_dtype = c.type;
  geometry.rotation_seed = c.seed * 77;
  geometry.first_layer = 7, geometry.first_kv_head = 3;
  geometry.key_rule = c.key_rule;
  geometry.value_rule = c.value_rule;
  geometry.search = c.search;
  geometry.page_size = c.page_size;
  geometry.num_groups = 1;
  geometry.groups[0] = tq::PageGroup{c.page_size, sequence_pages * c.sequences + 3, sequence_pages};
  geometry.max_sequences = geometry.max_batch_sequences = c.sequences;
  geometry.max_batch_tokens = c.tokens * c.sequences;
  geometry.window_tokens = c.window;
  geometry.sink_tokens = c.sinks;
  geometry.raw_group = c.window + c.sinks > 0 ? geometry.num_groups++ : -1;
  const int64_t raw_pages = (c.tokens + 31) / 32;
  if (geometry.has_exact())
    geometry.groups[geometry.raw_group] = tq::PageGroup{32, raw_pages * c.sequences, raw_pages};
  geometry.num_threads = 1;
  geometry.set_layers(c.code(c.key_bits), c.code(c.value_bits));

  int64_t pool_bytes = 0;
  for (int layer = 0; layer < c.layers; layer++) {
    layer_at_.push_back(pool_bytes);
    pool_bytes += padded(geometry.page_bytes(layer) * geometry.groups[0].num_pages);
  }
  pool = Buffer<uint8_t>(static_cast<size_t>(pool_bytes));
  backend = tq::cuda::create_cuda_backend(geometry, ops, pool.get(), nullptr);
  // The backend starts with zeros; that no kernel needs them is tested as well.
  GPU_MUST(cudaMemset(pool.get(), 0xA5, pool.size()));
  storage_ = backend->create_plan_storage();

  // Pages in an order that jumps about.
  for (int64_t i = 0; i < geometry.groups[0].num_pages; i++) free_.push_back(static_cast<int32_t>(i));
  for (size_t i = free_.size(); i > 1; i--) std::swap(free_[i - 1], free_[mix64(c.seed + i) % i]);
  pages_.resize(c.sequences);
  shown_.assign(c.sequences, 0);
  first_changed_.assign(c.sequences, 0);
  table_.assign(static_cast<size_t>(c.sequences * sequence_pages), -1);
  raw_first_.assign(c.sequences, 0);
  raw_shown_.assign(c.sequences, 0);
  raw_changed_.assign(c.sequences, 0);
  raw_table_.resize(static_cast<size_t>(raw_stride() * c.sequences));
  for (size_t i = 0; i < raw_table_.size(); i++) {
    raw_table_[i] = static_cast<int32_t>(i);
    std::swap(raw_table_[i], raw_table_[mix64(c.seed + 99 + i) % (i + 1)]);
  }

  std::vector<uint64_t> signs;
  for (int layer = 0; layer < c.layers; layer++)
    for (int kind = 0; kind < 2; kind++)
      for (int head = 0; head < c.heads; head++)
        for (int word = 0; word < sign_words(stored_dim(kind == 0 ? c.head_dim : c.value_dim)); word++)
          signs.push_back(stream_word(stream_base(geometry.rotation_seed, geometry.first_layer + layer,
                                                  geometry.first_kv_head + head, static_cast<Kind>(kind)),
                                      word));
  signs_ = Buffer<uint64_t>(signs);
  const int dims = c.head_dim + c.value_dim;
  for (int64_t i = 0; i < static_cast<int64_t>(c.layers) * c.heads * dims; i++)
    centres_host_.push_back(static_cast<float>(static_cast<int>(mix64(c.seed * 31 + i) % 200) - 100) *
                            0.015625f);
  centres_ = Buffer<float>(centres_host_);
  for (int layer = 0; layer < c.layers && c.centres; layer++) {
    const float* first = centres_host_.data() + static_cast<int64_t>(layer) * c.heads * dims;
    backend->set_centres(layer, first, first + c.heads * c.head_dim);
  }
  for (int kind = 0; kind < 2; kind++) {
    const int dim = kind == 0 ? c.head_dim : c.value_dim;
    strides[kind] = tq::TensorStrides{static_cast<int64_t>(c.heads) * (dim + 8) + 24, dim + 8};
    input[kind] = Buffer<uint8_t>(
        static_cast<size_t>(strides[kind].token * geometry.max_batch_tokens * tq::dtype_bytes(c.type)));
  }
}

inline void TestCache::prepare_plan(const std::vector<int64_t>& new_tokens) {
  plan_.clear();
  last = tq::BatchPlan{};
  for (size_t i = 0; i < new_tokens.size(); i++) {
    const int64_t after = length[i] + new_tokens[i],
                  copies = config.window > 0 ? config.window + config.rollback : 0;
    while (static_cast<int64_t>(pages_[i].size()) * config.page_size < after) {
      pages_[i].push_back(free_.back());
      free_.pop_back();
    }
    raw_first_[i] = std::max(raw_first_[i], after - std::min(after, copies));
    const int64_t before = length[i];
    length[i] = after;
    const int64_t asks = std::min(queries, after);
    plan_.push_back(sequence_at(static_cast<int>(i), before));
    plan_.back().new_tokens = new_tokens[i];
    plan_.back().query_tokens = asks;
    plan_.back().kv_row = last.rows.new_tokens;
    plan_.back().q_row = last.rows.query_tokens;
    first_changed_[i] = shown_[i];
    shown_[i] = static_cast<int64_t>(pages_[i].size());
    raw_changed_[i] = raw_shown_[i];
    raw_shown_[i] = std::max(raw_shown_[i], (after + 31) / 32);
    last.rows.new_tokens += new_tokens[i];
    last.rows.query_tokens += asks;
  }
  last.rows.num_sequences = static_cast<int32_t>(plan_.size());
  last.rows.sequences = plan_.data();
  last.maps = page_maps();
  last.storage = storage_;
}

inline tq::StepSequence TestCache::sequence_at(int sequence, int64_t old_length) const {
  tq::StepSequence s = {};
  s.page_row = s.raw_slot = s.flag = sequence;
  s.old_length = old_length;
  s.raw_first = raw_first_[sequence];
  s.sink_end = std::min<int64_t>(config.sinks, length[sequence]);
  return s;
}

inline const tq::PageMap* TestCache::page_maps() {
  const int64_t stride = geometry.groups[0].max_sequence_pages;
  for (size_t i = 0; i < pages_.size(); i++)
    std::copy(pages_[i].begin(), pages_[i].end(), table_.begin() + static_cast<int64_t>(i) * stride);
  maps_[0] = tq::PageMap{table_.data(), stride, first_changed_.data()};
  maps_[1] = tq::PageMap{raw_table_.data(), raw_stride(), raw_changed_.data()};
  return maps_;
}

inline void TestCache::fill(int layer, cudaStream_t stream) {
  for (int kind = 0; kind < 2; kind++) {
    const int dim = kind == 0 ? config.head_dim : config.value_dim;
    const size_t bytes =
        static_cast<size_t>(strides[kind].token) * last.rows.new_tokens * tq::dtype_bytes(config.type);
    GPU_MUST(cudaMemsetAsync(input[kind].get(), 0xFF, bytes, stream));  // NaN between the rows
    for (const tq::StepSequence& s : plan_) {
      if (s.new_tokens == 0) continue;
      const int64_t elements = s.new_tokens * config.heads * dim;
      start(fill_kernel, dim3(static_cast<unsigned>(std::min<int64_t>((elements + 255) / 256, 65535))),
            dim3(256), stream, Source{config.seed, config.type, config.edges}, layer, kind, s.raw_slot,
            static_cast<int>(s.old_length), static_cast<int>(s.new_tokens), config.heads, dim,
            input[kind].get(), s.kv_row, strides[kind].token, strides[kind].head);
    }
  }
  GPU_MUST(cudaGetLastError());
}

inline void TestCache::append(int layer, cudaStream_t stream) {
  tq::AppendRequest request = {layer, &last, input[0].get(), input[1].get(), strides[0], strides[1], stream};
  backend->append(request);
}

inline void TestCache::attend(int layer, const void* q, float* out, float* lse, cudaStream_t stream) {
  tq::AttendRequest request = {};
  request.layer = layer;
  request.plan = &last;
  request.q = q;
  request.out = out;
  request.lse = lse;
  request.q_strides = {static_cast<int64_t>(config.heads) * config.head_dim, config.head_dim};
  request.out_strides = {static_cast<int64_t>(config.heads) * config.value_dim, config.value_dim};
  request.out_dtype = DataType::kF32;
  request.softmax_scale = 0.125f;
  request.workspace = backend->own_workspace();
  request.workspace_bytes = static_cast<size_t>(backend->bytes().workspace);
  request.stream = stream;
  backend->attend(request);
}

inline OracleJob TestCache::job(int layer, int kind, int sequence) const {
  const TileLayout tile = geometry.tile(layer);
  const SideLayout& layout = kind == 0 ? tile.key : tile.value;
  const int key_words = sign_words(stored_dim(config.head_dim)),
            value_words = sign_words(stored_dim(config.value_dim));
  const int64_t signs_at = static_cast<int64_t>(layer) * config.heads * (key_words + value_words) +
                           (kind == 0 ? 0 : config.heads * key_words);
  const int64_t centre_at =
      static_cast<int64_t>(layer) * config.heads * (config.head_dim + config.value_dim) +
      (kind == 0 ? 0 : config.heads * config.head_dim);
  OracleSide side = {layout,
                     kind == 0 ? tile.key_offset() : tile.value_offset(),
                     kind == 0 ? tile.key_scale_offset() : tile.value_scale_offset(),
                     kind,
                     layer,
                     kind == 0 ? geometry.layers[layer].key_book : geometry.layers[layer].value_book,
                     kind == 0 ? config.key_rule : config.value_rule,
                     config.search,
                     signs_.get() + signs_at,
                     config.centres ? centres_.get() + centre_at : nullptr};
  return OracleJob{Source{config.seed, config.type, config.edges},
                   side,
                   pool.get() + layer_at_[layer],
                   geometry.page_bytes(layer),
                   tile.tile_bytes(),
                   config.page_size,
                   config.heads,
                   nullptr,
                   sequence,
                   0,
                   static_cast<int32_t>(length[sequence]),
                   config.sinks,
                   static_cast<int32_t>(config.window > 0 ? window_first(sequence) : INT32_MAX),
                   nullptr};
}

inline bool TestCache::verify_layer(const char* name, int layer, bool read) {
  GPU_MUST(cudaDeviceSynchronize());
  Buffer<Mismatch> mismatch(std::vector<Mismatch>(1));
  bool right = true;
  for (int sequence = 0; sequence < config.sequences; sequence++) {
    if (length[sequence] == 0) continue;
    const Buffer<int32_t> table(pages_[sequence]);
    for (int kind = 0; kind < 2; kind++) {
      OracleJob work = job(layer, kind, sequence);
      work.page_table = table.get();
      Buffer<uint8_t> out;
      if (read) {
        const int dim = work.side.layout.dim;
        out = Buffer<uint8_t>(static_cast<size_t>(length[sequence]) * config.heads * dim *
                              tq::dtype_bytes(config.type));
        const tq::TensorStrides dense = {static_cast<int64_t>(config.heads) * dim, dim};
        tq::ReadRequest request = {layer,
                                   sequence_at(sequence, length[sequence]),
                                   page_maps(),
                                   0,
                                   length[sequence],
                                   kind == 0 ? out.get() : nullptr,
                                   kind == 1 ? out.get() : nullptr,
                                   dense,
                                   dense,
                                   nullptr};
        backend->read(request);
        work.read = out.get();
      }
      const int64_t vectors = static_cast<int64_t>(work.count) * work.heads;
      start(oracle_kernel, dim3(static_cast<unsigned>((vectors + 63) / 64)), dim3(64), nullptr, work,
            mismatch.get());
      GPU_MUST(cudaDeviceSynchronize());
      const Mismatch found = mismatch.host()[0];
      right &=
          check(found.count == 0,
                "%s%s%s: d %d/%d bits %d/%d dtype %d, layer %d %s sequence %d: %llu wrong, first at token "
                "%d head %d coordinate %d: expected %#x, found %#x",
                name, config.trellis ? ", trellis" : "", read ? " (read)" : "", config.head_dim,
                config.value_dim, config.key_bits, config.value_bits, static_cast<int>(config.type), layer,
                kind == 0 ? "keys" : "values", sequence, found.count, found.token, found.head,
                found.coordinate, found.expected, found.found);
      if (found.count) GPU_MUST(cudaMemset(mismatch.get(), 0, sizeof(Mismatch)));
    }
  }
  return right;
}

inline std::vector<uint8_t> TestCache::read_all(int sequence) {
  std::vector<uint8_t> all;
  for (int layer = 0; layer < config.layers; layer++)
    for (int kind = 0; kind < 2; kind++) {
      const int dim = kind == 0 ? config.head_dim : config.value_dim;
      const Buffer<uint8_t> out(static_cast<size_t>(length[sequence]) * config.heads * dim *
                                tq::dtype_bytes(config.type));
      const tq::TensorStrides dense = {static_cast<int64_t>(config.heads) * dim, dim};
      backend->read(tq::ReadRequest{layer, sequence_at(sequence, length[sequence]), page_maps(), 0,
                                    length[sequence], kind == 0 ? out.get() : nullptr,
                                    kind == 1 ? out.get() : nullptr, dense, dense, nullptr});
      GPU_MUST(cudaDeviceSynchronize());
      const std::vector<uint8_t> host = out.host();
      all.insert(all.end(), host.begin(), host.end());
    }
  return all;
}

inline bool TestCache::verify_host(const char* name) {
  GPU_MUST(cudaDeviceSynchronize());
  const std::vector<uint8_t> bytes = pool.host();
  const std::vector<uint64_t> signs = signs_.host();
  int64_t wrong = 0;
  for (int layer = 0; layer < config.layers; layer++)
    for (int kind = 0; kind < 2; kind++) {
      const OracleJob work = job(layer, kind, 0);
      const SideLayout& layout = work.side.layout;
      if (layout.raw()) continue;
      const uint64_t* head_signs = signs.data() + (work.side.signs - signs_.get());
      const float* centres =
          config.centres ? centres_host_.data() + (work.side.centre - centres_.get()) : nullptr;
      for (int64_t token = 0; token < length[0]; token++)
        for (int head = 0; head < config.heads; head++) {
          float x[kMaxDim];
          uint8_t codes[kMaxDim];
          uint16_t scale;
          const uint64_t hash =
              vector_hash(work.source, VectorId{layer, kind, 0, static_cast<int32_t>(token), head});
          for (int i = 0; i < layout.dim; i++)
            x[i] = bits_value(config.type, element_bits(work.source, hash, i, layout.dim));
          const VectorCoder coder = {layout.dim,
                                     layout.stored,
                                     Rotation::kHadamard,
                                     head_signs + head * sign_words(layout.stored),
                                     nullptr,
                                     centres ? centres + head * layout.dim : nullptr,
                                     work.side.rule,
                                     work.side.search,
                                     work.side.book,
                                     layout.code().trellis(),
                                     static_cast<Kind>(kind)};
          encode_vector(coder, x, codes, &scale);
          const uint8_t* tile =
              bytes.data() + (work.pages - pool.get()) +
              pages_[0][token / config.page_size] * work.page_bytes +
              (static_cast<int64_t>(head) * (config.page_size / 32) + token % config.page_size / 32) *
                  work.tile_bytes;
          uint16_t found_scale;
          memcpy(&found_scale, tile + work.side.scale_offset + 2 * (token % 32), 2);
          wrong += found_scale != scale;
          const uint32_t* words = reinterpret_cast<const uint32_t*>(tile + work.side.code_offset);
          for (int i = 0; i < layout.stored; i++)
            wrong += load_code(words, layout,
                               code_place(layout, static_cast<Kind>(kind), static_cast<int>(token % 32),
                                          i)) != (codes[i] & ((1u << layout.bits) - 1));
        }
    }
  return check(wrong == 0, "%s (host): d %d/%d bits %d/%d dtype %d: %lld wrong", name, config.head_dim,
               config.value_dim, config.key_bits, config.value_bits, static_cast<int>(config.type),
               static_cast<long long>(wrong));
}

}  // namespace gpu_test
