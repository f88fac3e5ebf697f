// SPDX-License-Identifier: Apache-2.0
//
// See exact.h. Keys of a head are laid out dim-major in blocks of tokens, so that the inner loop runs over
// independent tokens: it vectorises without reassociating a sum, and one block's logits stay in the
// first-level cache.
#include "cli/exact.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

namespace tq::cli {
namespace {

constexpr int64_t kBlock = 512;  // tokens; 4 KiB of logits

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  const int64_t available = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  const int64_t workers = std::min(available, count);
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> pool;
  for (int64_t w = 1; w < workers; ++w) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

VectorError vector_error(const std::vector<float>& exact, const std::vector<float>& decoded, int32_t dim) {
  VectorError sum;
  int64_t counted = 0;
  for (size_t at = 0; at < exact.size(); at += static_cast<size_t>(dim)) {
    double xx = 0, yy = 0, xy = 0, error = 0;
    for (size_t i = at; i < at + static_cast<size_t>(dim); ++i) {
      const double x = exact[i], y = decoded[i];
      xx += x * x;
      yy += y * y;
      xy += x * y;
      error += (x - y) * (x - y);
    }
    if (xx == 0) continue;
    sum.relative_mse += error / xx;
    if (yy > 0) sum.cosine += xy / std::sqrt(xx * yy);
    ++counted;
  }
  if (counted > 0) {
    sum.relative_mse /= static_cast<double>(counted);
    sum.cosine /= static_cast<double>(counted);
  }
  return sum;
}

OutputError output_error(const std::vector<double>& exact, const std::vector<float>& found) {
  double error = 0, norm = 0, maximum = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::abs(exact[i] - found[i]);
    error += difference * difference;
    norm += exact[i] * exact[i];
    maximum = std::max(maximum, difference);
  }
  return {error == 0 ? 0 : std::sqrt(error / norm), maximum};
}

struct ExactAttention::HeadKeys {
  std::vector<float> blocks;  // [token / kBlock][dim][token % kBlock], padded with zeros
};

ExactAttention::HeadKeys ExactAttention::head_keys(const std::vector<float>& key, int32_t kv_head) const {
  const int64_t tokens = data_.shape.tokens, dim = data_.shape.key_dim, heads = data_.shape.kv_heads;
  HeadKeys keys;
  keys.blocks.assign(static_cast<size_t>((tokens + kBlock - 1) / kBlock * kBlock * dim), 0.0f);
  for (int64_t token = 0; token < tokens; ++token) {
    const float* row = &key[static_cast<size_t>((token * heads + kv_head) * dim)];
    float* block = &keys.blocks[static_cast<size_t>(token / kBlock * kBlock * dim + token % kBlock)];
    for (int64_t i = 0; i < dim; ++i) block[i * kBlock] = row[i];
  }
  return keys;
}

void ExactAttention::log_weights(const HeadKeys& keys, int64_t query, int32_t q_head, double* result) const {
  const int64_t dim = data_.shape.key_dim, count = visible(query);
  const float* q = &data_.query[static_cast<size_t>((query * data_.shape.q_heads + q_head) * dim)];
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  double logits[kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    std::fill(logits, logits + kBlock, 0.0);
    const float* block = &keys.blocks[static_cast<size_t>(first * dim)];
    for (int64_t i = 0; i < dim; ++i) {
      const double factor = q[i] * scale;
      const float* row = block + i * kBlock;
      for (int64_t t = 0; t < kBlock; ++t) logits[t] += factor * static_cast<double>(row[t]);
    }
    std::copy_n(logits, std::min(kBlock, count - first), result + first);
  }
  const double top = *std::max_element(result, result + count);
  double sum = 0;
  for (int64_t t = 0; t < count; ++t) sum += std::exp(result[t] - top);
  const double log_sum = top + std::log(sum);
  for (int64_t t = 0; t < count; ++t) result[t] -= log_sum;
}

ExactAttention::ExactAttention(const LayerData& data, int threads) : data_(data), threads_(threads) {
  const CaptureShape& shape = data.shape;
  const int64_t value_dim = shape.value_dim;
  log_p_.resize(static_cast<size_t>(shape.queries * shape.q_heads * shape.tokens));
  output_.assign(static_cast<size_t>(shape.queries * shape.q_heads * value_dim), 0.0);
  for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    const HeadKeys keys = head_keys(data.key, kv_head);
    parallel_for(shape.queries * shape.q_per_kv(), threads_, [&](int64_t row) {
      const int64_t query = row / shape.q_per_kv();
      const auto q_head = static_cast<int32_t>(kv_head * shape.q_per_kv() + row % shape.q_per_kv());
      double* log_p = log_p_row(query, q_head);
      log_weights(keys, query, q_head, log_p);
      double* out = &output_[static_cast<size_t>((query * shape.q_heads + q_head) * value_dim)];
      for (int64_t t = 0; t < visible(query); ++t) {
        const double weight = std::exp(log_p[t]);
        const float* value = &data_.value[static_cast<size_t>((t * shape.kv_heads + kv_head) * value_dim)];
        for (int64_t i = 0; i < value_dim; ++i) out[i] += weight * static_cast<double>(value[i]);
      }
    });
  }
}

double ExactAttention::kl(const std::vector<float>& decoded_key) const {
  const CaptureShape& shape = data_.shape;
  std::vector<double> row_kl(static_cast<size_t>(shape.queries * shape.q_heads));
  for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    const HeadKeys keys = head_keys(decoded_key, kv_head);
    parallel_for(shape.queries * shape.q_per_kv(), threads_, [&](int64_t row) {
      const int64_t query = row / shape.q_per_kv();
      const auto q_head = static_cast<int32_t>(kv_head * shape.q_per_kv() + row % shape.q_per_kv());
      const auto index = static_cast<size_t>(query * shape.q_heads + q_head);
      std::vector<double> log_q(static_cast<size_t>(shape.tokens));
      log_weights(keys, query, q_head, log_q.data());
      const double* log_p = &log_p_[index * static_cast<size_t>(shape.tokens)];
      double sum = 0;
      for (int64_t t = 0; t < visible(query); ++t)
        sum += std::exp(log_p[t]) * (log_p[t] - log_q[static_cast<size_t>(t)]);
      row_kl[index] = std::max(sum, 0.0);  // rounding alone can push an exact row below 0
    });
  }
  double sum = 0;
  for (const double row : row_kl) sum += row;
  return sum / static_cast<double>(row_kl.size());
}

}  // namespace tq::cli
