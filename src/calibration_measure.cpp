// SPDX-License-Identifier: Apache-2.0
// From sums and held-out tokens of a layer to its centres, orders and choices; see calibration.h.
//
// The order: coordinates by what they weigh in logits, E[q^2] E[k^2] (with the centre taken off), or by one
// of the two factors, whichever the estimate prefers. The estimate of a band's error is D(b) * sum(q^2) *
// sum(k^2) / 32: its rotation spreads the key's error over the band, whatever the query weighs there.
#include <math.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "calibration.h"
#include "format/bands.h"

namespace tq {
namespace {

using format::Kind;

// Mean squared error of codes of 32 coordinates, rule unbiased, with search, by width.
constexpr double kScalarDistortion[] = {1, .557, .1195, .0278, .00645, .00154, .000386};
constexpr double kTrellisShare = .7;  // of trellis codes, where they have the width

constexpr int32_t kJudgedBits = 3;  // of the codes that centres are judged by

// Of a float's precision, as the file has it.
double saved_error(double error) { return static_cast<double>(bounded(error)); }

double distortion(int32_t bits, bool trellis) {
  return kScalarDistortion[bits] * (trellis && format::is_trellis_bits(bits) ? kTrellisShare : 1);
}

// Widths of the bands that add up to `total`, from the widest on.
void for_each_pattern(int32_t bands, int32_t total, int32_t most, std::vector<int32_t>* widths,
                      const std::function<void(const std::vector<int32_t>&)>& visit) {
  const int32_t left = bands - static_cast<int32_t>(widths->size());
  if (left == 0) {
    if (total == 0) visit(*widths);
    return;
  }
  for (int32_t width = std::min(most, total - (left - 1)); width * left >= total; width--) {
    widths->push_back(width);
    for_each_pattern(bands, total - width, width, widths, visit);
    widths->pop_back();
  }
}

// A vector as its codes give it back.
void code_and_back(const format::VectorCoder& coder, const float* x, float* back) {
  uint8_t codes[format::kMaxDim];
  uint16_t scale;
  format::encode_vector(coder, x, codes, &scale);
  format::decode_vector(coder, codes, scale, back);
}

// The coder of a whole vector, with signs of a seed of its own: any will do.
struct WholeCoder {
  format::VectorCoder coder = {};
  std::vector<uint64_t> signs;

  WholeCoder(int32_t dim, int32_t bits, int32_t family, Kind kind, int32_t layer, int32_t head,
             const float* centre) {
    const format::CodeId code = format::code_of(static_cast<format::CodeFamily>(family), bits, 0);
    coder.dim = dim;
    coder.stored = format::stored_dim(dim);
    coder.rotation = format::Rotation::kHadamard;
    const uint64_t base = format::stream_base(0, layer, head, kind);
    for (int w = 0; w < format::sign_words(coder.stored); w++) signs.push_back(format::stream_word(base, w));
    coder.signs = signs.data();
    coder.centre = centre;
    coder.rule = format::ScaleRule::kUnbiased;
    coder.search = true;
    coder.codebook = format::builtin_codebook(dim, code);
    coder.trellis = code.trellis();
    coder.kind = kind;
  }
};

// A key as its bands give it back. centre: in the caller's order.
void band_and_back(int32_t dim, format::CodeId code, const int32_t* order, uint64_t base, const float* centre,
                   const float* x, float* back) {
  for (int band = 0; format::kGroupCodes * band < dim; band++) {
    const int32_t* own = order + format::kGroupCodes * band;
    float in[format::kGroupCodes], middle[format::kGroupCodes], out[format::kGroupCodes];
    format::VectorCoder coder = {};
    coder.dim = std::min(format::kGroupCodes, dim - format::kGroupCodes * band);
    coder.stored = format::kGroupCodes;
    coder.rotation = format::Rotation::kHadamard;
    const uint64_t signs = format::band_signs(base, band);
    coder.signs = &signs;
    coder.centre = middle;
    coder.rule = format::ScaleRule::kUnbiased;
    coder.search = true;
    const format::CodeId id = format::band_code(code, band);
    coder.codebook = format::builtin_codebook(format::kGroupCodes, id);
    coder.trellis = id.trellis();
    for (int i = 0; i < coder.dim; i++) in[i] = x[own[i]], middle[i] = centre[own[i]];
    code_and_back(coder, in, out);
    for (int i = 0; i < coder.dim; i++) back[own[i]] = out[i];
  }
}

// What queries and keys of a head weigh, by coordinate.
struct Weights {
  const double *query, *key;
  int32_t dim;

  double cost(const std::vector<int32_t>& order, const std::vector<int32_t>& widths, bool trellis) const {
    double sum = 0;
    for (size_t band = 0; band < widths.size(); band++) {
      double q = 0, k = 0;
      for (int32_t i = 32 * static_cast<int32_t>(band);
           i < std::min(dim, 32 * static_cast<int32_t>(band + 1)); i++)
        q += query[order[static_cast<size_t>(i)]], k += key[order[static_cast<size_t>(i)]];
      sum += distortion(widths[band], trellis) * q * k / 32;
    }
    return sum;
  }
  std::vector<int32_t> order_by(int which) const {
    std::vector<int32_t> order(static_cast<size_t>(dim));
    std::iota(order.begin(), order.end(), 0);
    const auto weight = [&](int32_t i) {
      return which == 0 ? query[i] * key[i] : which == 1 ? query[i] : key[i];
    };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weight(a) > weight(b); });
    return order;
  }
};

// Orders of a layer's heads and the widths that suit all of them.
class KeyBands {
 public:
  // Energies [heads][dim] of queries and centred keys.
  KeyBands(std::vector<double> query, std::vector<double> key, int32_t dim, bool trellis)
      : query_(std::move(query)), key_(std::move(key)), dim_(dim), trellis_(trellis) {
    for (size_t head = 0; head < heads(); head++) {
      const Weights own = weights(head);
      double least = -1;
      for (int which = 0; which < 3; which++) {
        const std::vector<int32_t> order = own.order_by(which);
        double best = -1;
        for_each_widths(3 * bands(), [&](const std::vector<int32_t>& widths) {
          const double cost = own.cost(order, widths, trellis_);
          if (best < 0 || cost < best) best = cost;
        });
        if (which > 0 && best >= least) continue;
        least = best;
        orders_.resize(head);
        orders_.push_back(order);
      }
      const double all =
          std::accumulate(own.query, own.query + dim_, 0.0) * std::accumulate(own.key, own.key + dim_, 0.0);
      share_.push_back(all > 0 ? 1 / all : 0);
    }
  }
  const std::vector<int32_t>& order(size_t head) const { return orders_[head]; }
  size_t heads() const { return query_.size() / static_cast<size_t>(dim_); }
  // The widths of this sum with the least estimate, every head counting alike.
  std::vector<int32_t> widths(int32_t total) const {
    std::vector<int32_t> best;
    double least = 0;
    for_each_widths(total, [&](const std::vector<int32_t>& widths) {
      double cost = 0;
      for (size_t head = 0; head < heads(); head++)
        cost += share_[head] * weights(head).cost(orders_[head], widths, trellis_);
      if (!best.empty() && cost >= least) return;
      least = cost;
      best = widths;
    });
    return best;
  }

 private:
  int32_t bands() const { return (dim_ + 31) / 32; }
  Weights weights(size_t head) const {
    const size_t first = head * static_cast<size_t>(dim_);
    return Weights{&query_[first], &key_[first], dim_};
  }
  template <typename Visit>
  void for_each_widths(int32_t total, const Visit& visit) const {
    std::vector<int32_t> widths;
    for_each_pattern(bands(), total, format::kMostBandBits, &widths, visit);
  }

  std::vector<double> query_, key_, share_;
  int32_t dim_;
  bool trellis_;
  std::vector<std::vector<int32_t>> orders_;
};

}  // namespace

void Calibration::measure_sums(const Fed& fed, Measured* to) const {
  const double count = static_cast<double>(fed.counted);
  for (const double sum : fed.key) to->key_centre.push_back(static_cast<float>(sum / count));
  for (const double sum : fed.value) to->value_centre.push_back(static_cast<float>(sum / count));
}

// Centres of the heads whose held-out tokens are none the better for them become zero: codes of kJudgedBits,
// with and without. So do those of a layer where one is beyond floats on its way back through the matrices.
void Calibration::judge_centres(int32_t index, const Fed& fed, const KeyMatrix& matrix, Measured* to) const {
  const size_t heads = static_cast<size_t>(config_.num_kv_heads);
  const auto judge = [&](Kind kind, int32_t dim, int32_t family, const std::vector<float>& rows,
                         std::vector<float>* centre) {
    const size_t size = static_cast<size_t>(dim), count = rows.size() / (heads * size);
    for (size_t head = 0; head < heads; head++) {
      double errors[2];
      for (const bool centred : {false, true}) {
        const WholeCoder coder(dim, kJudgedBits, family, kind, index, static_cast<int32_t>(head),
                               centred ? &(*centre)[head * size] : nullptr);
        std::vector<float> differences(count * size);
        for (size_t row = 0; row < count; row++) {
          const float* const x = &rows[(row * heads + head) * size];
          float* const d = &differences[row * size];
          code_and_back(coder.coder, x, d);
          for (size_t i = 0; i < size; i++) d[i] -= x[i];
        }
        errors[centred] = kind == Kind::kKey ? logit_error(fed, static_cast<int32_t>(head), differences)
                                             : std::inner_product(differences.begin(), differences.end(),
                                                                  differences.begin(), 0.0);
      }
      if (!(errors[1] < errors[0]))  // NaN too
        std::fill_n(centre->begin() + static_cast<std::ptrdiff_t>(head * size), size, 0.0f);
    }
  };
  judge(Kind::kKey, config_.head_dim, config_.key_family, fed.held_k, &to->key_centre);
  judge(Kind::kValue, config_.value_dim, config_.value_family, fed.held_v, &to->value_centre);
  if (!all_finite(before_turning(matrix, to->key_centre))) to->key_centre.assign(to->key_centre.size(), 0.0f);
}

// The mean over held-out queries of a head's group of the squared products with differences of held-out keys.
double Calibration::logit_error(const Fed& fed, int32_t head, const std::vector<float>& differences) const {
  const int64_t dim = config_.head_dim, group = config_.num_q_heads / config_.num_kv_heads,
                q_row = dim * config_.num_q_heads;
  const int64_t rows = static_cast<int64_t>(fed.held_q.size()) / q_row,
                keys = static_cast<int64_t>(differences.size()) / dim;
  double sum = 0;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < group; i++) {
      const float* q = &fed.held_q[static_cast<size_t>(row * q_row + (head * group + i) * dim)];
      for (int64_t key = 0; key < keys; key++) {
        const float* difference = &differences[static_cast<size_t>(key * dim)];
        float dot = 0;
        for (int64_t c = 0; c < dim; c++) dot += q[c] * difference[c];
        const double logit = static_cast<double>(dot);
        sum += logit * logit;
      }
    }
  return sum / static_cast<double>(rows * group * keys) / static_cast<double>(dim);
}

// The mean over heads of what back(head, key, result) leaves wrong of held-out keys, in logits.
template <typename Back>
double Calibration::key_error(const Fed& fed, const Back& back) const {
  const size_t dim = static_cast<size_t>(config_.head_dim), heads = static_cast<size_t>(config_.num_kv_heads);
  const size_t rows = fed.held_k.size() / (heads * dim);
  double error = 0;
  for (size_t head = 0; head < heads; head++) {
    std::vector<float> differences(rows * dim);
    for (size_t row = 0; row < rows; row++) {
      const float* x = &fed.held_k[(row * heads + head) * dim];
      float found[format::kMaxDim];
      back(head, x, found);
      for (size_t i = 0; i < dim; i++) differences[row * dim + i] = found[i] - x[i];
    }
    error += logit_error(fed, static_cast<int32_t>(head), differences);
  }
  return saved_error(error / static_cast<double>(heads));
}

void Calibration::measure_keys(int32_t index, const Fed& fed, Measured* to) const {
  const tq_calibration_config& c = config_;
  const bool trellis = c.key_family == TQ_CODE_TRELLIS;
  const size_t dim = static_cast<size_t>(c.head_dim);
  const double count = static_cast<double>(fed.counted);
  std::vector<double> query(fed.query_square), key(fed.key_square);
  for (size_t i = 0; i < key.size(); i++) {
    const double centre = static_cast<double>(to->key_centre[i]);
    query[i] /= count;
    key[i] = std::max(key[i] / count - centre * centre, 0.0);
  }
  const KeyBands bands(std::move(query), std::move(key), c.head_dim, trellis);
  for (size_t head = 0; head < bands.heads(); head++)
    to->order.insert(to->order.end(), bands.order(head).begin(), bands.order(head).end());
  for (const int32_t width : kUniformBits) {
    std::vector<WholeCoder> coders;
    for (size_t head = 0; head < bands.heads(); head++)
      coders.emplace_back(c.head_dim, width, c.key_family, Kind::kKey, index, static_cast<int32_t>(head),
                          &to->key_centre[head * dim]);
    const double error = key_error(
        fed, [&](size_t head, const float* x, float* found) { code_and_back(coders[head].coder, x, found); });
    to->keys.push_back(SideChoice{width, 0, 2 * width, 4 * num_bands() * width + 2, error});
  }
  for (int32_t half = kLeastHalfBits; half <= kMostHalfBits; half++) {
    if (half * num_bands() % 2 != 0) continue;
    const int32_t total = half * num_bands() / 2;
    const std::vector<int32_t> widths = bands.widths(total);
    const format::CodeId code = format::banded_code(widths.data(), num_bands(), trellis);
    const double error = key_error(fed, [&](size_t head, const float* x, float* found) {
      const uint64_t base = format::stream_base(0, index, static_cast<int32_t>(head), Kind::kKey);
      band_and_back(c.head_dim, code, bands.order(head).data(), base, &to->key_centre[head * dim], x, found);
    });
    to->keys.push_back(SideChoice{0, code.bands, half, 4 * total + 2 * num_bands(), error});
  }
}

void Calibration::measure_values(int32_t index, const Fed& fed, Measured* to) const {
  const tq_calibration_config& c = config_;
  const size_t dim = static_cast<size_t>(c.value_dim), heads = static_cast<size_t>(c.num_kv_heads);
  const size_t rows = fed.held_v.size() / (heads * dim);
  for (const int32_t width : kUniformBits) {
    double wrong = 0, all = 0;
    for (size_t head = 0; head < heads; head++) {
      const WholeCoder coder(c.value_dim, width, c.value_family, Kind::kValue, index,
                             static_cast<int32_t>(head), &to->value_centre[head * dim]);
      for (size_t row = 0; row < rows; row++) {
        const float* x = &fed.held_v[(row * heads + head) * dim];
        float back[format::kMaxDim];
        code_and_back(coder.coder, x, back);
        for (size_t i = 0; i < dim; i++) {
          const double difference = static_cast<double>(back[i] - x[i]), own = static_cast<double>(x[i]);
          wrong += difference * difference;
          all += own * own;
        }
      }
    }
    to->values.push_back(SideChoice{width, 0, 2 * width, format::stored_dim(c.value_dim) / 8 * width + 2,
                                    saved_error(all > 0 ? wrong / all : 0)});
  }
}

void Calibration::measure_fed(int32_t index, const Fed& fed, const KeyMatrix& matrix, Measured* to) const {
  measure_sums(fed, to);
  judge_centres(index, fed, matrix, to);
  measure_keys(index, fed, to);
  measure_values(index, fed, to);
}

// A layer is turned where that makes the error of codes of kJudgedBits smaller, in bands or not, as bands are
// taken: for all bits, as the file has one matrix.
void Calibration::measure_layer(int32_t index) {
  const size_t at = static_cast<size_t>(index);
  Measured& plain = measured_[at];
  measure_fed(index, fed_[at], matrices_[at], &plain);
  if (fed_[at].key_moment.empty()) return;
  KeyMatrix matrix = find_matrix(index);
  if (matrix.empty()) return;
  Measured other;
  other.key_length = plain.key_length;
  measure_fed(index, turned(fed_[at], matrix), matrix, &other);
  const double before = of_rate(plain.keys, 2 * kJudgedBits).error,
               now = of_rate(other.keys, 2 * kJudgedBits).error;
  if (!(now < before && now <= kLeastGain * before)) return;
  plain = std::move(other);
  found_[at] = std::move(matrix);
}

}  // namespace tq
