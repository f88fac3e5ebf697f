// SPDX-License-Identifier: Apache-2.0
// Vectors on their own on the device, against the CPU through the same calls: records byte for byte, decoded
// and rotated vectors, products and results of searches bit for bit, for every family, at every kind of
// dimension, from records at odd addresses, with numbers that no vector should have. The CPU is held against
// the NumPy oracle by tests/golden.
//
//   vectors_test [--quick | --small]    --small: what an emulation does in seconds
#include <random>

#include "api_cache.cuh"

using namespace gpu_test;

namespace {

struct Case {
  int dim, family, bits;
  int rotation = 0, rule = 0, outliers = 0;
  bool search = true, levels = false;
  int sketch = 0, group = 0;
  int dtype = TQ_F32;
};

constexpr int kScalar = TQ_CODE_SCALAR, kProd = TQ_CODE_PROD, kGrouped = TQ_CODE_GROUPED,
              kLevels = TQ_CODE_LEVELS;

// A quantizer on each device.
class Pair {
 public:
  explicit Pair(const Case& c) : c_(c) {
    for (int i = 0; i < 256; i++) {
      level_[i] = (i - (1 << (level_bits() - 1)) + 0.45f) * 0.05f;
      boundary_[i] = level_[i] + 0.021f;
    }
    tq_levels levels = {};
    levels.struct_size = sizeof levels;
    levels.bits = level_bits();
    levels.levels = level_;
    levels.boundaries = boundary_;
    std::vector<int32_t> outliers;
    for (int i = 0; i < c.outliers; i++) outliers.push_back(i * (c.dim / c.outliers));
    tq_quantizer_config config = {};
    config.struct_size = sizeof config;
    config.dim = c.dim;
    config.io_dtype = c.dtype;
    config.family = c.family;
    config.bits = c.bits;
    config.rotation = c.rotation;
    config.scale_rule = c.rule;
    config.group_size = c.group;
    config.sketch = c.sketch;
    config.num_outliers = c.outliers;
    config.outlier_channels = outliers.empty() ? nullptr : outliers.data();
    config.seed = 77;
    config.flags = c.search ? 0 : TQ_FLAG_NO_SCALE_SEARCH;
    config.levels = c.levels ? &levels : nullptr;
    for (int d = 0; d < 2; d++) {
      config.device_type = d ? TQ_DEVICE_CUDA : TQ_DEVICE_CPU;
      API_MUST(tq_quantizer_create(&config, &on[d]));
      info[d].struct_size = sizeof info[d];
      API_MUST(tq_quantizer_get_info(on[d], &info[d]));
    }
    check(info[0].code_bytes == info[1].code_bytes && info[0].fingerprint == info[1].fingerprint &&
              info[0].sketch_factor == info[1].sketch_factor,
          "%s: other records on the device", name().c_str());
  }
  ~Pair() {
    for (tq_quantizer* q : on) tq_quantizer_destroy(q);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  std::string name() const {
    char text[160];
    snprintf(text, sizeof text,
             "dim %d, family %d, %d bits, rotation %d, rule %d, search %d, levels %d, "
             "outliers %d, group %d, sketch %d, dtype %d",
             c_.dim, c_.family, c_.bits, c_.rotation, c_.rule, c_.search, c_.levels, c_.outliers, c_.group,
             c_.sketch, c_.dtype);
    return text;
  }
  int level_bits() const { return c_.family == kProd ? c_.bits - 1 : c_.bits; }

  tq_quantizer* on[2] = {};
  tq_quantizer_info info[2] = {};

 private:
  const Case c_;
  float level_[256], boundary_[256];
};

uint16_t half_of(float x, int dtype) {
  return dtype == TQ_F16 ? tq::format::f16_from_float(x) : tq::format::bf16_from_float(x);
}

// Vectors of a type: most are normal numbers of any size, some are what nobody should code.
std::vector<uint8_t> numbers(const Case& c, int64_t count, bool wild, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bytes(static_cast<size_t>(count * c.dim * (c.dtype == TQ_F32 ? 4 : 2)));
  for (int64_t v = 0; v < count; v++) {
    const float size = v % 5 == 3 ? 3e-20f : v % 5 == 4 && c.dtype != TQ_F16 ? 3e17f : 1.7f;
    for (int64_t i = 0; i < c.dim; i++) {
      float x = normal(random) * size;
      if (wild && v % 11 == 5) x = 0;
      if (wild && v % 11 == 6) x = i == c.dim / 2 ? 7.0f : 0.0f;
      if (wild && v % 11 == 7 && i % 13 == 1) x = i % 2 ? NAN : -INFINITY;
      if (wild && v % 11 == 8) x = 1.0f;
      const int64_t at = v * c.dim + i;
      if (c.dtype == TQ_F32) {
        memcpy(&bytes[static_cast<size_t>(at) * 4], &x, 4);
      } else {
        const uint16_t h = isnan(x) ? 0x7FC0 : half_of(x, c.dtype);
        memcpy(&bytes[static_cast<size_t>(at) * 2], &h, 2);
      }
    }
  }
  return bytes;
}

// Device memory that begins `offset` bytes behind an aligned address.
class Odd {
 public:
  Odd(size_t bytes, size_t offset) : memory_(bytes + offset), offset_(offset), bytes_(bytes) {
    GPU_MUST(cudaMemset(memory_.get(), 0xA5, bytes + offset));
  }
  Odd(const std::vector<uint8_t>& host, size_t offset) : Odd(host.size(), offset) {
    if (bytes_) GPU_MUST(cudaMemcpy(get(), host.data(), bytes_, cudaMemcpyHostToDevice));
  }
  uint8_t* get() const { return memory_.get() + offset_; }
  std::vector<uint8_t> host() const {
    std::vector<uint8_t> all = memory_.host();
    return std::vector<uint8_t>(all.begin() + static_cast<ptrdiff_t>(offset_), all.end());
  }

 private:
  Buffer<uint8_t> memory_;
  size_t offset_, bytes_;
};

template <typename T>
int64_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); i++)
    if (i >= b.size() || memcmp(&a[i], &b[i], sizeof(T)) != 0) return static_cast<int64_t>(i);
  return a.size() == b.size() ? -1 : static_cast<int64_t>(a.size());
}
// NaNs are equal whatever their bits.
bool same_floats(const std::vector<float>& a, const std::vector<float>& b, int64_t* at) {
  for (size_t i = 0; i < a.size(); i++)
    if (memcmp(&a[i], &b[i], 4) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
      *at = static_cast<int64_t>(i);
      return false;
    }
  return true;
}
template <typename T>
std::vector<T> as(const std::vector<uint8_t>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class World {
 public:
  World(const Case& c, int64_t count, int64_t num_queries)
      : c_(c), pair_(c), count_(count), num_queries_(num_queries), bytes_(pair_.info[0].code_bytes) {}

  void run() {
    records();
    rotation();
    products();
    for (const int64_t k : {int64_t{1}, int64_t{10}, std::min<int64_t>(count_ + 3, 65536)}) search(k);
  }

 private:
  void records() {
    const std::vector<uint8_t> x = numbers(c_, count_, true, 1);
    codes_.resize(static_cast<size_t>(count_ * bytes_));
    uint64_t noticed[2] = {};
    API_MUST(tq_quantizer_encode(pair_.on[0], x.data(), count_, codes_.data(), &noticed[0], nullptr));
    const Buffer<uint8_t> device_x(x);
    for (const size_t offset : {size_t{0}, size_t{3}}) {
      Odd codes(codes_.size(), offset);
      API_MUST(tq_quantizer_encode(pair_.on[1], device_x.get(), count_, codes.get(), &noticed[1], nullptr));
      const int64_t at = first_difference(codes.host(), codes_);
      check(at < 0, "%s: record %lld, byte %lld", name(), ll(at / bytes_), ll(at % bytes_));
      check(noticed[0] == noticed[1], "%s: noticed %llu on the CPU, %llu", name(),
            static_cast<unsigned long long>(noticed[0]), static_cast<unsigned long long>(noticed[1]));
      std::vector<uint8_t> back(x.size());
      API_MUST(tq_quantizer_decode(pair_.on[0], codes_.data(), count_, back.data(), nullptr));
      const Buffer<uint8_t> device_back(x.size());
      API_MUST(tq_quantizer_decode(pair_.on[1], codes.get(), count_, device_back.get(), nullptr));
      GPU_MUST(cudaDeviceSynchronize());
      const int64_t wrong = first_difference(device_back.host(), back);
      check(wrong < 0, "%s: decoded, byte %lld of vector %lld", name(), ll(wrong % (back.size() / count_)),
            ll(wrong / static_cast<int64_t>(back.size() / count_)));
    }
  }

  void rotation() {
    if (c_.family == kGrouped) return;
    const std::vector<uint8_t> x = numbers(c_, count_, false, 2);
    const size_t size = static_cast<size_t>(count_ * pair_.info[0].rotated_dim);
    std::vector<float> y(size);
    API_MUST(tq_quantizer_rotate(pair_.on[0], x.data(), count_, y.data(), nullptr));
    const Buffer<uint8_t> device_x(x), device_back(x.size());
    const Buffer<float> device_y(size);
    API_MUST(tq_quantizer_rotate(pair_.on[1], device_x.get(), count_, device_y.get(), nullptr));
    GPU_MUST(cudaDeviceSynchronize());
    const int64_t at = first_difference(device_y.host(), y);
    check(at < 0, "%s: rotated number %lld", name(), ll(at));
    std::vector<uint8_t> back(x.size());
    API_MUST(tq_quantizer_unrotate(pair_.on[0], y.data(), count_, back.data(), nullptr));
    API_MUST(tq_quantizer_unrotate(pair_.on[1], device_y.get(), count_, device_back.get(), nullptr));
    GPU_MUST(cudaDeviceSynchronize());
    check(first_difference(device_back.host(), back) < 0, "%s: rotated back", name());
  }

  void products() {
    queries_ = numbers(c_, num_queries_, false, 3);
    if (c_.dtype == TQ_F32 && num_queries_ > 2) {
      const float odd = NAN;
      memcpy(&queries_[static_cast<size_t>(2 * c_.dim) * 4], &odd, 4);
    }
    const size_t size = static_cast<size_t>(num_queries_ * count_);
    std::vector<float> out(size);
    API_MUST(tq_quantizer_inner_products(pair_.on[0], queries_.data(), num_queries_, codes_.data(), count_,
                                         out.data(), nullptr));
    const Buffer<uint8_t> queries(queries_);
    for (const size_t offset : {size_t{0}, size_t{1}, size_t{2}}) {
      const Odd codes(codes_, offset);
      const Buffer<float> device_out(size);
      API_MUST(tq_quantizer_inner_products(pair_.on[1], queries.get(), num_queries_, codes.get(), count_,
                                           device_out.get(), nullptr));
      GPU_MUST(cudaDeviceSynchronize());
      const std::vector<float> got = device_out.host();
      int64_t at = 0;
      const bool same = same_floats(got, out, &at);
      check(same, "%s: product %lld with record %lld is %.9g, the CPU's %.9g", name(), ll(at / count_),
            ll(at % count_), got[static_cast<size_t>(at)], out[static_cast<size_t>(at)]);
    }
  }

  void search(int64_t k) {
    std::vector<float> bias(static_cast<size_t>(count_));
    for (int64_t i = 0; i < count_; i++)
      bias[static_cast<size_t>(i)] = i % 7 == 2 ? -INFINITY : static_cast<float>(i % 3) * 0.25f;
    const size_t size = static_cast<size_t>(num_queries_ * k);
    const Buffer<uint8_t> queries(queries_), codes(codes_);
    const Buffer<float> device_bias(bias), scores(size);
    const Buffer<int64_t> ids(size);
    for (const bool biased : {false, true}) {
      std::vector<float> want_scores(size);
      std::vector<int64_t> want_ids(size);
      API_MUST(tq_quantizer_search(pair_.on[0], queries_.data(), num_queries_, codes_.data(), count_,
                                   biased ? bias.data() : nullptr, k, want_scores.data(), want_ids.data(),
                                   nullptr));
      API_MUST(tq_quantizer_search(pair_.on[1], queries.get(), num_queries_, codes.get(), count_,
                                   biased ? device_bias.get() : nullptr, k, scores.get(), ids.get(),
                                   nullptr));
      GPU_MUST(cudaDeviceSynchronize());
      const int64_t at = first_difference(ids.host(), want_ids);
      check(at < 0, "%s: k = %lld, bias %d: query %lld, place %lld is %lld, the CPU's %lld", name(), ll(k),
            biased, ll(at / k), ll(at % k), at < 0 ? 0 : ll(ids.host()[static_cast<size_t>(at)]),
            at < 0 ? 0 : ll(want_ids[static_cast<size_t>(at)]));
      check(first_difference(scores.host(), want_scores) < 0, "%s: k = %lld: scores", name(), ll(k));
    }
  }

  static long long ll(int64_t x) { return static_cast<long long>(x); }
  const char* name() {
    name_ = pair_.name();
    return name_.c_str();
  }

  const Case c_;
  Pair pair_;
  const int64_t count_, num_queries_, bytes_;
  std::vector<uint8_t> codes_, queries_;
  std::string name_;
};

std::vector<Case> cases(bool small) {
  std::vector<Case> all;
  const std::vector<int> dims =
      small ? std::vector<int>{1, 17, 48, 80, 112, 144, 641}
            : std::vector<int>{1,   7,   16,   17,   48,   64,   80,   100,  112,  128,  144,  256,  300,
                               641, 768, 1000, 1024, 1536, 2049, 3072, 4096, 4608, 5120, 7168, 8191, 8192};
  for (const int dim : dims)
    for (int bits = 1; bits <= 8; bits++) {
      if (small && (bits + dim) % 3) continue;
      Case c = {dim, kScalar, bits};
      c.rule = 1 + (dim + bits) % 4;
      c.search = (dim / 16 + bits) % 3 != 0;
      c.dtype = 1 + (dim + bits) % 3;
      all.push_back(c);
    }
  const auto add = [&](Case c) { all.push_back(c); };
  for (const int dim : {48, 100, 128, small ? 144 : 1536}) {
    for (const int bits : {2, 3, 4}) {
      Case c = {dim, kProd, bits};
      c.dtype = 1 + bits % 3;
      add(c);
      c.sketch = TQ_SKETCH_GAUSSIAN;
      if (dim <= 128) add(c);
      c.levels = true;
      c.sketch = 0;
      add(c);
    }
    for (const int bits : {2, 3, 4, 8}) {
      Case c = {dim + 3, kGrouped, bits};
      c.group = 16 << bits % 3;
      c.dtype = 1 + bits % 3;
      add(c);
    }
    for (const int bits : {1, 4, 7}) {
      Case c = {dim, kLevels, bits};
      c.levels = true;
      c.rule = bits % 5;
      add(c);
    }
    Case split = {dim, kScalar, 3};
    split.outliers = dim / 4;
    add(split);
    split.bits = 1;
    add(split);
    Case dense = {dim, kScalar, 3};
    dense.rotation = TQ_ROTATION_DENSE;
    if (dim <= 128) add(dense);
  }
  return all;
}

// Calls that must be refused, with the sentence that says why.
void refusals() {
  Case c = {128, kScalar, 4};
  Pair pair(c);
  const Buffer<float> x(128);
  float factor = 0;
  check(tq_calibrate_levels(pair.on[1], x.get(), 1, 2, &factor, &factor, nullptr, nullptr) ==
                TQ_ERROR_NOT_SUPPORTED &&
            strstr(tq_last_error(), "CPU"),
        "calibrate on the device: %s", tq_last_error());
  tq_quantizer_config config = {};
  config.struct_size = sizeof config;
  config.dim = 8;
  config.bits = 2;
  config.device_type = TQ_DEVICE_CUDA;
  config.device_id = 4711;
  tq_quantizer* none = nullptr;
  check(tq_quantizer_create(&config, &none) == TQ_ERROR_NO_DEVICE && strstr(tq_last_error(), "4711"),
        "device_id = 4711: %s", tq_last_error());
  int64_t count[2] = {0, 1};
  for (const int64_t n : count)
    check(tq_quantizer_search(pair.on[1], nullptr, 0, nullptr, n - n, nullptr, 1, nullptr, nullptr,
                              nullptr) == TQ_OK,
          "no queries: %s", tq_last_error());
}

#ifndef TQ_EMULATE
// Encode, decode and rotate in a graph that is replayed on other vectors; products are refused there.
void captured() {
  Case c = {1536, kScalar, 4};
  Pair pair(c);
  constexpr int64_t kCount = 300;
  const size_t bytes = static_cast<size_t>(kCount * pair.info[1].code_bytes);
  Buffer<float> x(kCount * 1536), back(kCount * 1536), y(static_cast<size_t>(kCount) * 1536);
  Buffer<uint8_t> codes(bytes);
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph;
  cudaGraphExec_t run;
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  API_MUST(tq_quantizer_encode(pair.on[1], x.get(), kCount, codes.get(), nullptr, stream));
  API_MUST(tq_quantizer_decode(pair.on[1], codes.get(), kCount, back.get(), stream));
  API_MUST(tq_quantizer_rotate(pair.on[1], x.get(), kCount, y.get(), stream));
  uint64_t noticed;
  check(tq_quantizer_encode(pair.on[1], x.get(), kCount, codes.get(), &noticed, stream) == TQ_ERROR_CAPTURE,
        "encode with noticed was captured");
  check(tq_quantizer_inner_products(pair.on[1], x.get(), 1, codes.get(), 1, y.get(), stream) ==
            TQ_ERROR_CAPTURE,
        "inner_products was captured");
  GPU_MUST(cudaStreamEndCapture(stream, &graph));
  GPU_MUST(cudaGraphInstantiate(&run, graph, 0));
  for (unsigned round = 0; round < 3; round++) {
    const std::vector<float> host = as<float>(numbers(c, kCount, true, 40 + round));
    std::vector<uint8_t> want(bytes);
    API_MUST(tq_quantizer_encode(pair.on[0], host.data(), kCount, want.data(), nullptr, nullptr));
    GPU_MUST(cudaMemcpy(x.get(), host.data(), host.size() * 4, cudaMemcpyHostToDevice));
    GPU_MUST(cudaGraphLaunch(run, stream));
    GPU_MUST(cudaStreamSynchronize(stream));
    check(first_difference(codes.host(), want) < 0, "replay %u: other records", round);
  }
  GPU_MUST(cudaGraphExecDestroy(run));
  GPU_MUST(cudaGraphDestroy(graph));
  GPU_MUST(cudaStreamDestroy(stream));
}
#endif

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  const bool small = mode == "--small", quick = mode == "--quick";
  try {
    for (const Case& c : cases(small)) World(c, small ? 13 : 133, small ? 3 : c.dim % 2 ? 5 : 35).run();
    // Rotations of whole vectors, 4 and 32 lanes each.
    for (const int dtype : {TQ_F32, TQ_F16, TQ_BF16})
      for (const int dim : {64, 512})
        World(Case{dim, kScalar, 2, 0, 0, 0, true, false, 0, 0, dtype}, 11, 2).run();
    // Searches that keep the best of each block of records: tiles of few and of many queries, full and not,
    // records all but equal.
    for (int bits = 1; bits <= 8; bits++) World(Case{32, kScalar, bits}, 300 + bits, 9).run();
    World(Case{48, kScalar, 3}, 1100, 35).run();
    // By up to eight queries; of records with a sketch, and of two parts.
    for (int bits = 1; bits <= 8; bits++) World(Case{32, kScalar, bits}, 300 + bits, bits).run();
    World(Case{1000, kScalar, 4}, 700, 1).run();
    for (const int sketch : {TQ_SKETCH_ORTHOGONAL, TQ_SKETCH_GAUSSIAN})
      World(Case{80, kProd, 3, 0, 0, 0, true, false, sketch}, 1100, sketch == TQ_SKETCH_GAUSSIAN ? 1 : 19)
          .run();
    World(Case{96, kScalar, 3, 0, 0, 32}, 1300, 11).run();
    World(Case{144, kProd, 2}, 900, 1).run();
    World(Case{144, kScalar, 5, 0, 0, 0, true, false, 0, 0, TQ_BF16}, 2900, 131).run();
    World(Case{1, kScalar, 1}, 3000, 70).run();
    // More records than a search takes in its first pass.
    World(Case{16, kScalar, 2}, 34000, 1).run();
    if (!small) {
      Case many = {128, kScalar, 4};
      World(many, quick ? 30000 : 300000, 9).run();
      World(many, 5000, 300).run();
    }
    refusals();
#ifndef TQ_EMULATE
    captured();
#endif
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return finish("vectors_test");
}
