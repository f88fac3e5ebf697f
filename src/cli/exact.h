// SPDX-License-Identifier: Apache-2.0
//
// What the codes are judged by: causal attention over the captured vectors in float64, and the error
// measures.
//   relative MSE, cosine   mean over vectors of |x - x^|^2 / |x|^2 and <x, x^> / (|x| |x^|); zero vectors are
//                          left out
//   output error           |out - exact| / |exact| over all queries, heads and coordinates at once
//                          (Frobenius)
//   KL                     of the attention weights, exact || quantised, in nats, mean over (query, q head);
//                          the quantised weights are
//                          the softmax in float64 over the decoded keys
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cli/capture.h"

namespace tq::cli {

struct VectorError {
  double relative_mse = 0;
  double cosine = 0;
};

VectorError vector_error(const std::vector<float>& exact, const std::vector<float>& decoded, int32_t dim);

struct OutputError {
  double relative = 0;  // Frobenius
  double maximum = 0;   // largest |o - o^| of a coordinate
};

OutputError output_error(const std::vector<double>& exact, const std::vector<float>& found);

class ExactAttention {
 public:
  // data must outlive this; threads 0 = all
  ExactAttention(const LayerData& data, int threads);
  const std::vector<double>& output() const { return output_; }  // [queries][q heads][value_dim]
  double kl(const std::vector<float>& decoded_key) const;        // [tokens][kv heads][key_dim]

 private:
  struct HeadKeys;
  int64_t visible(int64_t query) const { return data_.shape.tokens - data_.shape.queries + query + 1; }
  HeadKeys head_keys(const std::vector<float>& key, int32_t kv_head) const;
  // Log of the attention weights of one (query, q head) over its visible tokens.
  void log_weights(const HeadKeys& keys, int64_t query, int32_t q_head, double* result) const;
  double* log_p_row(int64_t query, int32_t q_head) {
    return &log_p_[static_cast<size_t>((query * data_.shape.q_heads + q_head) * data_.shape.tokens)];
  }

  const LayerData& data_;
  int threads_;
  std::vector<double> log_p_;  // [queries][q heads][tokens]
  std::vector<double> output_;
};

// body(i) for i in [0, count), on up to `threads` threads (0 = all).
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

}  // namespace tq::cli
