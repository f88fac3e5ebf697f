// SPDX-License-Identifier: Apache-2.0
// The judgement of an AttendCase: decodes its pages with the scalar format code and computes attention in
// float64. Included by attend_case.cuh.
#pragma once
#include "attend_case.cuh"

namespace gpu_test {

inline void AttendCase::decode(int set, int sequence, int head, int side, Decoded* decoded) const {
  const int count = static_cast<int>(spec.sequences.size()), slot = set * count + sequence,
            length = spec.sequences[sequence].length;
  const int tiles_per_page = spec.page_size / 32;
  std::vector<uint32_t> words(tile_.tile_bytes() / 4);
  const SideLayout layout = side ? tile_.value : tile_.key;
  const int dim = layout.dim, stored = layout.stored, n = 1 << tq::format::log2_block(stored), m = stored / n;
  const tq::format::Codebook& book = side ? geometry_.layers[0].value_book : geometry_.layers[0].key_book;
  decoded->coded.assign(static_cast<size_t>(length) * dim, 0.0);
  decoded->exact.assign(geometry_.has_exact() ? static_cast<size_t>(length) * dim : 0, 0.0);
  std::vector<double> y(stored);
  for (int tile = 0; tile * 32 < length; tile++) {
    const int page = host_table_[slot * stride_ + tile / tiles_per_page];
    const uint8_t* at =
        pages_.get() + page * geometry_.page_bytes(0) +
        static_cast<int64_t>(head * tiles_per_page + tile % tiles_per_page) * tile_.tile_bytes();
    GPU_MUST(cudaMemcpy(words.data(), at, tile_.tile_bytes(), cudaMemcpyDeviceToHost));
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(words.data());
    for (int t = 0; t < 32 && tile * 32 + t < length; t++) {
      const int token = tile * 32 + t;
      double* x = &decoded->coded[static_cast<size_t>(token) * dim];
      if (token < spec.sinks || (spec.window > 0 && token >= raw_first_[sequence]))
        for (int i = 0; i < dim; i++)
          decoded->exact[static_cast<size_t>(token) * dim + i] =
              raw_.host[raw_at(slot, head, side, token) + static_cast<size_t>(i)];
      if (layout.raw()) {
        const uint16_t* h =
            reinterpret_cast<const uint16_t*>(bytes + (side ? tile_.value_offset() : 0)) + t * dim;
        for (int i = 0; i < dim; i++)
          x[i] = from_16(h[i], spec.io == DataType::kBF16 ? DataType::kBF16 : DataType::kF16);
      } else {
        const uint32_t* code_words = words.data() + (side ? tile_.value_offset() : 0) / 4;
        const double scale = tq::format::float_from_bf16(reinterpret_cast<const uint16_t*>(
            bytes + (side ? tile_.value_scale_offset() : tile_.key_scale_offset()))[t]);
        const tq::Kind kind = side ? tq::Kind::kValue : tq::Kind::kKey;
        tq::format::VectorCoder coder = {};
        coder.stored = stored;
        coder.codebook = book;
        coder.trellis = layout.code().trellis();
        coder.kind = kind;
        uint8_t codes[tq::format::kMaxDim];
        float levels[tq::format::kMaxDim];
        tq::format::unpack_scalar(layout, kind, code_words, t, codes);
        tq::format::code_levels(coder, codes, levels);
        for (int i = 0; i < stored; i++) y[i] = scale * static_cast<double>(levels[i]);
        if (m > 1)
          for (int p = 0; p < n; p++) {
            double in[9], out[9];
            for (int c = 0; c < m; c++) in[c] = y[c * n + p];
            for (int c = 0; c < m; c++) {
              out[c] = 0;
              for (int r = 0; r < m; r++) out[c] += tq::format::dct_entry(m, r, c) * in[r];
            }
            for (int c = 0; c < m; c++) y[c * n + p] = out[c];
          }
        for (int h = 1; h < n; h *= 2)
          for (int i = 0; i < stored; i++)
            if (!(i & h)) {
              const double a = y[i], b = y[i + h];
              y[i] = a + b;
              y[i + h] = a - b;
            }
        for (int i = 0; i < dim; i++) {
          const bool minus = host_signs_[side][head * ((stored + 31) / 32) + i / 32] >> (i % 32) & 1;
          x[i] = (minus ? -y[i] : y[i]) / sqrt(static_cast<double>(n)) +
                 (centre_[side].host.empty() ? 0.0 : centre_[side].host[head * dim + i]);
        }
      }
    }
  }
}

inline Comparison AttendCase::compare(int set, const std::vector<std::pair<int, int>>& which) const {
  const std::vector<float> out = output(), got_lse = lse();
  const int group = geometry_.q_per_kv;
  std::vector<Comparison> results(which.size());
  std::vector<double> squares(which.size()), errors(which.size());
  const auto one = [&](size_t index) {
    const int sequence = which[index].first, head = which[index].second;
    const CaseSequence& s = spec.sequences[sequence];
    int64_t first_row = 0;
    for (int i = 0; i < sequence; i++) first_row += spec.sequences[i].queries;
    Decoded keys, values;
    decode(set, sequence, head, 0, &keys);
    decode(set, sequence, head, 1, &values);
    const auto of = [&](const Decoded& side, int token, int position, int dim) {
      return (is_exact(sequence, token, position) ? side.exact : side.coded).data() +
             static_cast<size_t>(token) * dim;
    };
    Comparison& result = results[index];
    for (int query = 0; query < s.queries; query++)
      for (int h = 0; h < group; h++) {
        const int64_t row = first_row + query;
        const int q_head = head * group + h, position = s.length - s.queries + query;
        const int old_length = s.length - s.new_tokens;
        std::vector<int> tokens;
        for (int token = 0; token < (spec.history_only ? old_length : s.length); token++)
          if (masks_.sees(row, position, token, old_length, spec.sliding)) tokens.push_back(token);
        const float* q =
            &q_.host[row * launches_[set].call.q_strides.token + q_head * launches_[set].call.q_strides.head];
        std::vector<double> logits;
        const float* got = &out[(row * spec.q_heads + q_head) * spec.value_dim];
        const double lse_got = got_lse[row * spec.q_heads + q_head];
        result.rows++;
        if (!finite_query(row, q_head)) {
          result.wrong_nan += !isnan(lse_got);
          for (int i = 0; i < spec.value_dim; i++) result.wrong_nan += !isnan(got[i]);
          continue;
        }
        // +inf takes all weight: an output of zeros, LSE +inf. -inf is no sink.
        const double sink = spec.sink_logits ? sinks_.host[q_head] : -INFINITY;
        if (sink == INFINITY) {
          result.wrong_empty += lse_got != INFINITY;
          for (int i = 0; i < spec.value_dim; i++) result.wrong_empty += got[i] != 0.0f;
          continue;
        }
        double top = sink;
        for (const int token : tokens) {
          const double* k = of(keys, token, position, spec.head_dim);
          double sum = 0;
          for (int i = 0; i < spec.head_dim; i++) sum += static_cast<double>(q[i]) * k[i];
          sum *= launches_[set].call.softmax_scale;
          if (spec.softcap > 0) sum = spec.softcap * tanh(sum / spec.softcap);
          sum += masks_.bias(q_head, position, token);
          logits.push_back(sum);
          top = std::max(top, sum);
        }
        double total = sink > -INFINITY ? exp(sink - top) : 0;
        std::vector<double> o(spec.value_dim, 0.0);
        for (size_t at = 0; at < tokens.size(); at++) {
          const int token = tokens[at];
          const double weight = exp(logits[at] - top);
          const double* v = of(values, token, position, spec.value_dim);
          total += weight;
          for (int i = 0; i < spec.value_dim; i++) o[i] += weight * v[i];
        }
        double error = 0, square = 0;
        for (int i = 0; i < spec.value_dim; i++) {
          const double want = !tokens.empty() ? o[i] / total : 0.0;
          if (!isfinite(got[i])) result.not_finite++;
          if (tokens.empty() && got[i] != 0.0f) result.wrong_empty++;
          error += (got[i] - want) * (got[i] - want);
          square += want * want;
        }
        errors[index] += error;
        squares[index] += square;
        // Beside a sink that takes nearly all weight a row may be too small for a float.
        if (square > 1e-60) result.worst = std::max(result.worst, sqrt(error / square));
        const double want_lse = total > 0 ? top + log(total) : -INFINITY;
        if (isinf(want_lse)) {
          if (!(lse_got == -INFINITY)) result.wrong_empty++;
        } else {
          if (!isfinite(lse_got)) result.not_finite++;
          result.lse = std::max(result.lse, fabs(want_lse - lse_got));
        }
      }
  };
  std::vector<std::thread> threads;
  const size_t workers = std::min<size_t>(which.size(), std::max(1u, std::thread::hardware_concurrency()));
  for (size_t t = 0; t < workers; t++)
    threads.emplace_back([&, t] {
      for (size_t i = t; i < which.size(); i += workers) one(i);
    });
  for (std::thread& t : threads) t.join();
  Comparison sum;
  double error = 0, square = 0;
  for (size_t i = 0; i < which.size(); i++) {
    sum.worst = std::max(sum.worst, results[i].worst);
    sum.lse = std::max(sum.lse, results[i].lse);
    sum.rows += results[i].rows;
    sum.wrong_empty += results[i].wrong_empty;
    sum.not_finite += results[i].not_finite;
    sum.wrong_nan += results[i].wrong_nan;
    error += errors[i];
    square += squares[i];
  }
  sum.total = square > 0 ? sqrt(error / square) : 0;
  return sum;
}

inline Comparison AttendCase::compare_all() const {
  std::vector<std::pair<int, int>> which;
  for (size_t i = 0; i < spec.sequences.size(); i++)
    for (int head = 0; head < spec.kv_heads; head++) which.emplace_back(static_cast<int>(i), head);
  return compare(0, which);
}

}  // namespace gpu_test
