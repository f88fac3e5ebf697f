// SPDX-License-Identifier: Apache-2.0
//
// See layer_cache.h.
#include "cli/layer_cache.h"

#include <algorithm>
#include <chrono>

namespace tq::cli {
namespace {

constexpr double kMinTimedSeconds = 0.02;  // short calls are repeated for so long

template <typename Body>
double median_seconds(int32_t repeats, const Body& body) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  double total = 0;
  while (static_cast<int32_t>(seconds.size()) < repeats ||
         (total < kMinTimedSeconds && seconds.size() < 1000)) {
    const auto start = Clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += seconds.back();
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size() / 2),
                   seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

LayerCache::LayerCache(const LayerData& data, const tq_cache_config& config, const Centres* centres)
    : data_(data),
      cache_(config),
      memory_(DeviceMemory::open(config.device_type, config.device_id)),
      sequence_(cache_) {
  const int32_t key_bits = config.layers ? config.layers[0].key_bits : config.key_bits;
  if (centres != nullptr && !centres->matrix.empty() && key_bits != 16)
    check(tq_cache_set_key_matrix(cache_.get(), 0, centres->matrix.data()), "tq_cache_set_key_matrix");
  if (centres != nullptr)
    check(tq_cache_set_centres(cache_.get(), 0, centres->key.data(), centres->value.data()),
          "tq_cache_set_centres");
  sequence_.plan(data.shape.tokens, data.shape.queries);
  key_.emplace(*memory_, data.key);
  value_.emplace(*memory_, data.value);
  query_.emplace(*memory_, data.query);
}

void LayerCache::append() {
  check(tq_cache_append(cache_.get(), 0, sequence_.batch(), key_->get(), value_->get(), nullptr, nullptr),
        "tq_cache_append");
  memory_->synchronize();
}

Quality LayerCache::judge(const ExactAttention& exact) {
  const CaptureShape& shape = data_.shape;
  FloatBuffer out(*memory_, exact.output().size());
  check(tq_cache_attend(cache_.get(), 0, sequence_.batch(), query_->get(), out.get(), nullptr, nullptr,
                        nullptr, 0, nullptr),
        "tq_cache_attend");
  FloatBuffer key(*memory_, data_.key.size()), value(*memory_, data_.value.size());
  check(tq_cache_read(cache_.get(), 0, sequence_.id(), 0, shape.tokens, key.get(), value.get(), nullptr,
                      nullptr),
        "tq_cache_read");
  memory_->synchronize();
  uint64_t noticed = 0;
  check(tq_cache_check(cache_.get(), nullptr, &noticed), "tq_cache_check");
  const std::vector<float> decoded_key = key.to_host();
  Quality quality;
  quality.key = vector_error(data_.key, decoded_key, shape.key_dim);
  quality.value = vector_error(data_.value, value.to_host(), shape.value_dim);
  quality.output = output_error(exact.output(), out.to_host());
  quality.kl = exact.kl(decoded_key);
  return quality;
}

double LayerCache::append_seconds(int32_t repeats) {
  return median_seconds(repeats, [this] { append(); });
}

double LayerCache::attend_seconds(int32_t repeats) {
  const CaptureShape& shape = data_.shape;
  sequence_.plan(0, 1);
  FloatBuffer out(*memory_, static_cast<size_t>(shape.q_heads) * static_cast<size_t>(shape.value_dim));
  const float* last = query_->at(static_cast<size_t>(shape.queries - 1) * static_cast<size_t>(shape.q_heads) *
                                 static_cast<size_t>(shape.key_dim));
  return median_seconds(repeats, [&] {
    check(tq_cache_attend(cache_.get(), 0, sequence_.batch(), last, out.get(), nullptr, nullptr, nullptr, 0,
                          nullptr),
          "tq_cache_attend");
    memory_->synchronize();
  });
}

double LayerCache::stored_bytes() const {
  tq_cache_memory memory = {};
  memory.struct_size = sizeof memory;
  check(tq_cache_get_memory(cache_.get(), &memory), "tq_cache_memory");
  return static_cast<double>(memory.stored_bytes_used + memory.raw_bytes) /
         (static_cast<double>(data_.shape.tokens) * static_cast<double>(data_.shape.kv_heads));
}

Centres centres_of(const Calibrated& calibrated, size_t place) {
  const Calibrated::Means means = calibrated.centres(place);
  return {means.key, means.value, means.matrix};
}

}  // namespace tq::cli
