// SPDX-License-Identifier: Apache-2.0
// See reference.h.
#include "model/reference.h"

#include <gtest/gtest.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "format/grouped.h"

namespace tq {
namespace model {
namespace {

constexpr int kSignWords = 16;

}  // namespace

float round_to(tq_dtype type, float x) {
  if (type == TQ_F32) return x;
  if (type == TQ_F16) return format::float_from_f16(format::f16_from_float(x));
  return isfinite(x) ? format::float_from_bf16(format::bf16_from_float(x)) : x;
}

void store_as(tq_dtype type, float x, void* memory, int64_t index) {
  if (type == TQ_F32) {
    static_cast<float*>(memory)[index] = x;
    return;
  }
  uint16_t bits;
  if (type == TQ_F16)
    bits = format::f16_from_float(x);
  else
    bits = isfinite(x) ? format::bf16_from_float(x)
                       : static_cast<uint16_t>(format::float_bits(x) >> 16 | (x != x ? 0x40 : 0));
  static_cast<uint16_t*>(memory)[index] = bits;
}

float load_as(tq_dtype type, const void* memory, int64_t index) {
  if (type == TQ_F32) return static_cast<const float*>(memory)[index];
  const uint16_t bits = static_cast<const uint16_t*>(memory)[index];
  return type == TQ_F16 ? format::float_from_f16(bits) : format::float_from_bf16(bits);
}

Reference::Reference(const tq_cache_config& config, std::vector<float> centres)
    : config_(config), centres_(std::move(centres)) {
  for (int layer = 0; layer < config.num_layers; layer++) {
    const tq_layer_config& l = config.layers[layer];
    if (l.shares_layer > 0) {
      layers_.push_back(layers_[static_cast<size_t>(l.shares_layer - 1)]);
      books_.resize(books_.size() + 2);
      continue;
    }
    layers_.push_back(Place{token_floats_, static_cast<int64_t>(dense_.size())});
    token_floats_ += static_cast<int64_t>(l.num_kv_heads) * (l.head_dim + l.value_dim);
    if (l.sliding_window > 0 && l.sliding_window < config.max_sequence_tokens)
      windows_.insert(l.sliding_window);
    for (int kind = 0; kind < 2; kind++) {
      const int dim = kind == 0 ? l.head_dim : l.value_dim, bits = kind == 0 ? l.key_bits : l.value_bits;
      const tq_codebook* own = kind == 0 ? config.key_codebook : config.value_codebook;
      const int family = kind == 0 ? l.key_family : l.value_family;
      const bool trellis = family == TQ_CODE_TRELLIS;
      format::Codebook book = bits == format::kRawBits ? format::Codebook{}
                              : trellis                ? format::trellis_codebook(bits)
                              : family == TQ_CODE_PROD ? format::builtin_codebook(dim, bits - 1)
                                                       : format::builtin_codebook(dim, bits);
      if (own && own->bits == bits && !trellis && family != TQ_CODE_PROD) {
        book.unit = own->unit;
        memcpy(book.magnitude, own->magnitude, sizeof book.magnitude);
      }
      books_.push_back(book);
    }
    for (int head = 0; head < l.num_kv_heads; head++)
      for (int kind = 0; kind < 2; kind++) {
        const uint64_t base = format::stream_base(config.rotation_seed, config.first_layer + layer,
                                                  l.first_kv_head + head, static_cast<Kind>(kind));
        for (int word = 0; word < kSignWords; word++)
          signs_.push_back(format::stream_word(base, static_cast<uint64_t>(word)));
        dense_.emplace_back();
        make_rows(layer, head, static_cast<Kind>(kind));
        if (l.rotation != TQ_ROTATION_DENSE) continue;
        const int stored = format::stored_dim(kind == 0 ? l.head_dim : l.value_dim);
        std::vector<double> work(static_cast<size_t>(stored) * static_cast<size_t>(stored + 1));
        dense_.back().resize(static_cast<size_t>(stored) * static_cast<size_t>(stored));
        format::dense_matrix(base, stored, dense_.back().data(), work.data());
      }
  }
}

format::VectorCoder Reference::coder(int layer, int head, Kind kind) const {
  const tq_layer_config& l = config_.layers[layer];
  const size_t index = coder_index(layer, head, kind);
  format::VectorCoder c = {};
  c.dim = kind == Kind::kKey ? l.head_dim : l.value_dim;
  c.stored = format::stored_dim(c.dim);
  c.rotation = static_cast<format::Rotation>(l.rotation);
  c.signs = &signs_[index * kSignWords];
  c.dense = dense_[index].empty() ? nullptr : dense_[index].data();
  if (!centres_.empty())
    c.centre = &centres_[place(layer, head) + static_cast<size_t>(kind == Kind::kKey ? 0 : l.head_dim)];
  c.rule =
      static_cast<format::ScaleRule>(kind == Kind::kKey ? config_.key_scale_rule : config_.value_scale_rule);
  c.search = !(config_.flags & TQ_FLAG_NO_SCALE_SEARCH);
  c.codebook = books_[static_cast<size_t>(layer * 2 + static_cast<int>(kind))];
  c.trellis = (kind == Kind::kKey ? l.key_family : l.value_family) == TQ_CODE_TRELLIS;
  c.kind = kind;
  return c;
}

void Reference::make_side(const float* input, int layer, int head, Kind kind, float* decoded, float* exact,
                          uint64_t* noticed) const {
  const tq_layer_config& l = config_.layers[layer];
  const int dim = kind == Kind::kKey ? l.head_dim : l.value_dim;
  const int bits = kind == Kind::kKey ? l.key_bits : l.value_bits;
  const tq_dtype type = config_.io_dtype;
  bool unused = false, replaced = false, saturated = false;
  // Where tokens are stored once, an infinite float16 is coded as its copy holds it.
  std::vector<float> finite(input, input + dim);
  for (float& x : finite)
    if (stores_once() && type == TQ_F16 && std::isinf(x)) x = std::copysign(65504.0f, x), replaced = true;
  input = finite.data();
  for (int i = 0; i < dim; i++) {
    // An exact copy keeps the input's type; a raw side keeps 16 bits of it.
    const uint16_t half = format::f16_from_float(input[i]);
    if (type == TQ_F16)
      exact[i] = format::float_from_f16(format::raw_from_f16(half, &unused));
    else
      exact[i] = format::sanitise(input[i], &unused);
    if (bits != format::kRawBits) continue;
    if (type == TQ_F32)
      decoded[i] = format::float_from_f16(format::raw_from_f32(input[i], &replaced, &saturated));
    else if (type == TQ_F16)
      decoded[i] = format::float_from_f16(format::raw_from_f16(half, &replaced));
    else
      decoded[i] = format::sanitise(input[i], &replaced);
  }
  const auto notice = [&] {
    *noticed |= (replaced ? TQ_NOTICED_NONFINITE : 0) | (saturated ? TQ_NOTICED_SATURATED : 0);
  };
  if (bits == format::kRawBits) return notice();
  if (kind == Kind::kKey && l.key_bands) {
    replaced |= make_bands(input, layer, head, decoded);
    return notice();
  }
  if ((kind == Kind::kKey ? l.key_family : l.value_family) == TQ_CODE_GROUPED) {
    const format::SideLayout side(dim, format::grouped_code(bits, l.group_size));
    uint32_t row[format::kMaxDim / 4];
    format::GroupScale pairs[format::kMaxDim / 16];
    replaced |= format::encode_grouped_token(side, input, row, pairs, &saturated);
    format::decode_grouped_token(side, row, pairs, decoded);
    return notice();
  }
  const int family = kind == Kind::kKey ? l.key_family : l.value_family;
  if (family == TQ_CODE_PROD || family == TQ_CODE_LEVELS) {
    replaced |= make_row(input, layer, head, kind, decoded);
    return notice();
  }
  uint8_t codes[format::kMaxDim];
  uint16_t scale;
  const format::VectorCoder c = coder(layer, head, kind);
  replaced |= format::encode_vector(c, input, codes, &scale);
  notice();
  format::decode_vector(c, codes, scale, decoded);
}

std::shared_ptr<const Token> Reference::make_token(std::vector<float> input) const {
  auto token = std::make_shared<Token>();
  token->input = std::move(input);
  token->decoded.resize(token->input.size());
  token->exact.resize(token->input.size());
  token->noticed = 0;
  for (int layer = 0; layer < config_.num_layers; layer++)
    for (int head = 0; head < config_.layers[layer].num_kv_heads; head++)
      for (const Kind kind : {Kind::kKey, Kind::kValue}) {
        if (config_.layers[layer].shares_layer > 0) continue;
        const size_t at =
            place(layer, head) + static_cast<size_t>(kind == Kind::kKey ? 0 : config_.layers[layer].head_dim);
        make_side(&token->input[at], layer, head, kind, &token->decoded[at], &token->exact[at],
                  &token->noticed);
      }
  return token;
}

void Reference::append(Sequence* sequence, const std::vector<std::shared_ptr<const Token>>& tokens) const {
  for (const auto& token : tokens) {
    sequence->tokens.push_back(token);
    sequence->noticed |= token->noticed;
  }
}

void Reference::plan(Sequence* sequence, int64_t length, int64_t queries) const {
  const int64_t window = config_.window_tokens,
                tail = std::max<int64_t>(queries - 1, config_.rollback_tokens);
  if (sequence->sink_end == sequence->length())  // no first token was lost
    sequence->sink_end = std::max(sequence->sink_end, std::min<int64_t>(config_.sink_tokens, length));
  sequence->exact_from = std::max(sequence->exact_from, window == 0 ? length : length - window - tail);
  sequence->coded = stores_once() ? std::max(sequence->coded, length - window) : length;
  const int64_t rows = std::max(queries, length - sequence->length());
  for (const int32_t w : windows_) {
    int64_t& first = sequence->kept_from[w];
    first = std::max(first, length - w - std::max<int64_t>(rows - 1, config_.rollback_tokens));
  }
}

bool Reference::admits(const Sequence& sequence, int64_t new_tokens, int64_t queries) const {
  for (const auto& [window, first] : sequence.kept_from)
    if (queries > 0 && first > 0 && sequence.length() + new_tokens - queries - window + 1 < first)
      return false;
  return true;
}

bool Reference::admits_length(const Sequence& sequence, int64_t length) const {
  for (const auto& [window, first] : sequence.kept_from)
    if (length > 0 && length < sequence.length() && first > 0 &&
        length - window + 1 < std::min(first, length))
      return false;
  return true;
}

bool Reference::admits_selection(const Sequence& sequence, const std::vector<int64_t>& positions) const {
  for (const auto& [window, first] : sequence.kept_from) {
    int64_t to = 0;
    for (const int64_t position : positions) to += position < first;
    if (to > 0 && to > static_cast<int64_t>(positions.size()) - window + 1) return false;
  }
  return true;
}

int64_t Reference::kept_from(const Sequence& sequence, int layer) const {
  const tq_layer_config& own = config_.layers[layer];
  const auto it = sequence.kept_from.find(
      own.shares_layer > 0 ? config_.layers[own.shares_layer - 1].sliding_window : own.sliding_window);
  return it == sequence.kept_from.end() ? 0 : it->second;
}

bool Reference::flush(Sequence* sequence) const {
  const int64_t length = sequence->length();
  if (config_.window_tokens == 0 || sequence->sink_end == length || sequence->exact_from == length)
    return false;
  sequence->exact_from = sequence->coded = length;
  return true;
}

void Reference::select(Sequence* sequence, const std::vector<int64_t>& positions) const {
  std::vector<std::shared_ptr<const Token>> kept;
  int64_t exact_from = 0, sink_end = 0, coded = 0;
  for (auto& [window, first] : sequence->kept_from)
    first = std::count_if(positions.begin(), positions.end(), [&](int64_t p) { return p < first; });
  for (const int64_t position : positions) {
    kept.push_back(sequence->tokens[static_cast<size_t>(position)]);
    exact_from += position < sequence->exact_from;
    sink_end += position < sequence->sink_end;
    coded += position < sequence->coded;
  }
  if (exact_from <= sink_end) {  // all have exact copies
    exact_from = 0;
    sink_end = std::min<int64_t>(config_.sink_tokens, static_cast<int64_t>(kept.size()));
  }
  sequence->tokens = kept;
  sequence->coded = std::max({coded, sequence->length() - config_.window_tokens, exact_from});
  if (!stores_once()) sequence->coded = sequence->length();
  sequence->exact_from = exact_from;
  sequence->sink_end = sink_end;
}

void Reference::truncate(Sequence* sequence, int64_t length) const {
  sequence->sink_end = std::min(sequence->sink_end, length);
  sequence->tokens.resize(static_cast<size_t>(length));
  sequence->exact_from = std::min(sequence->exact_from, length);
  sequence->coded = std::min(sequence->coded, length);
  for (auto& [window, first] : sequence->kept_from) first = std::min(first, length);
}

int64_t Reference::raw_tokens(const Sequence& sequence) const {
  int64_t pages = 0;
  for (int64_t page = 0; page * 32 < sequence.length(); page++) {
    const int64_t last = std::min(page * 32 + 32, sequence.length()) - 1;
    pages += page * 32 < sequence.sink_end || last >= sequence.exact_from;
  }
  return 32 * pages;
}

uint64_t Reference::flags(const Sequence& sequence) const {
  bool is_short = false;
  for (int64_t i = std::max<int64_t>(0, sequence.length() - config_.window_tokens); i < sequence.length();
       i++)
    is_short |= i >= sequence.sink_end && i < sequence.exact_from;
  return sequence.noticed | (is_short ? TQ_NOTICED_SHORT_WINDOW : 0);
}

bool Reference::is_exact(const Sequence& sequence, int64_t index, int64_t position) const {
  return index < sequence.sink_end ||
         (index > position - config_.window_tokens && index >= sequence.exact_from);
}

const float* Reference::key(const Sequence& sequence, int layer, int head, int64_t index,
                            int64_t position) const {
  const Token& token = *sequence.tokens[static_cast<size_t>(index)];
  const size_t at = place(layer, head);
  return is_exact(sequence, index, position) ? &token.exact[at] : &token.decoded[at];
}

// Tolerances. The kernels round the rotated query to integers of at least 28672 steps a side and softmax
// weights to 1/65535 of the largest of a block. Query: every coordinate is off by at most |q| / (2 * 28672),
// so a logit by at most scale * |q| * sqrt(D) * |k| / (2 * 28672) = delta, and weights by a factor within
// exp(2 delta). Weights: independent errors of at most half a unit, times a level of at most the largest
// |value| L, give an output coordinate a standard deviation below sqrt(n / 12) / 65535 * L; eight of them are
//   allowed. Float arithmetic: 1e-5.
Reference::Result Reference::attend(const Sequence& sequence, const Query& query) const {
  const tq_layer_config& layer = config_.layers[query.layer];
  const int head = query.q_head / (layer.num_q_heads / layer.num_kv_heads);
  Result result;
  result.out.assign(static_cast<size_t>(layer.value_dim), 0);
  double m = -std::numeric_limits<double>::infinity(), l = 0, q_norm = 0, k_norm = 0, v_norm = 0,
         logit_max = 0;
  int64_t seen = 0;
  for (int d = 0; d < layer.head_dim; d++) q_norm += static_cast<double>(query.q[d]) * query.q[d];
  const auto add = [&](double logit, const float* v) {
    const double top = std::max(m, logit), old = l > 0 ? exp(m - top) : 0, weight = exp(logit - top);
    l = l * old + weight;
    for (size_t d = 0; d < result.out.size(); d++)
      result.out[d] = result.out[d] * old + (v ? weight * static_cast<double>(v[d]) : 0);
    m = top;
  };
  for (int64_t i = 0; i < std::min(sequence.length(), query.end); i++) {
    if (!query.masks->sees(query.row, query.position, i, query.old_length, query.sliding_window)) continue;
    const float* k = key(sequence, query.layer, head, i, query.position);
    const float* v = k + layer.head_dim;
    double logit = 0, k_square = 0, v_square = 0;
    for (int d = 0; d < layer.head_dim; d++) {
      logit += static_cast<double>(query.q[d]) * static_cast<double>(k[d]);
      k_square += static_cast<double>(k[d]) * static_cast<double>(k[d]);
    }
    for (int d = 0; d < layer.value_dim; d++)
      v_square += static_cast<double>(v[d]) * static_cast<double>(v[d]);
    k_norm = std::max(k_norm, sqrt(k_square));
    v_norm = std::max(v_norm, sqrt(v_square));
    logit *= query.scale;
    if (query.softcap > 0) logit = query.softcap * tanh(logit / query.softcap);
    logit += query.masks->bias(query.q_head, query.position, i);
    logit_max = std::max(logit_max, fabs(logit));
    add(logit, v);
    seen++;
  }
  if (query.sink_logit) add(static_cast<double>(*query.sink_logit), nullptr);
  for (double& x : result.out) x = l > 0 ? x / l : 0;
  result.lse = l > 0 ? m + log(l) : -std::numeric_limits<double>::infinity();
  // A centre is part of k, but not of what the integers see; its norm adds at most as much again.
  const double stored = format::stored_dim(layer.head_dim);
  const double delta =
      2 * query.scale * sqrt(q_norm) * k_norm * sqrt(stored) / (2 * 28672.0) + 1e-5 * (1 + logit_max);
  const double weights = 8 * sqrt(static_cast<double>(seen) / 12) / 65535;
  result.out_tolerance = (exp(2 * delta) - 1 + 2 * weights + 1e-5) * v_norm;
  result.lse_tolerance = delta + weights + 1e-5;
  return result;
}

void expect_near(const Reference::Result& expected, const float* out, float lse,
                 const Reference::Query& query, const Sequence& s) {
  double worst = 0;
  for (size_t d = 0; d < expected.out.size(); d++)
    worst = std::max(worst, fabs(expected.out[d] - static_cast<double>(out[d])));
  const double lse_error =
      static_cast<double>(lse) == expected.lse ? 0 : fabs(static_cast<double>(lse) - expected.lse);
  if (worst <= expected.out_tolerance && lse_error <= expected.lse_tolerance) return;
  ADD_FAILURE() << "attend: layer " << query.layer << ", head " << query.q_head << ", position "
                << query.position << " of " << s.length() << ", sliding window " << query.sliding_window
                << ", masks " << query.masks->any() << ": out differs by " << worst << " (allowed "
                << expected.out_tolerance << "), lse " << lse << " instead of " << expected.lse
                << " (allowed " << expected.lse_tolerance << ")";
}

}  // namespace model
}  // namespace tq
