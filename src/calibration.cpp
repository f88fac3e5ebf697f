// SPDX-License-Identifier: Apache-2.0
// What was fed, and what is chosen of what was measured; see calibration.h.
#include "calibration.h"

#include <math.h>

#include <algorithm>

#include "format/raw.h"
#include "status.h"
#include "struct_size.h"

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr int32_t kMaxCount = 65536;
constexpr int64_t kLeastTokens = 256, kRun = 32, kHeldRun = 4;
constexpr size_t kMostLengths = 4096;
constexpr int64_t kPieceBytes = 1 << 20;  // of an array, of what a device reader is asked for
constexpr float kDefaultOutlier = 4;

long long ll(int64_t x) { return static_cast<long long>(x); }

float element(DataType type, const void* from, int64_t i) {
  if (type == DataType::kF32) return static_cast<const float*>(from)[i];
  const uint16_t h = static_cast<const uint16_t*>(from)[i];
  return type == DataType::kF16 ? format::float_from_f16(h) : format::float_from_bf16(h);
}

// x: tokens [tokens][row], of which the first is number `first` of the call.
void check_finite(const char* name, DataType type, const void* x, int64_t first, int64_t tokens,
                  int64_t row) {
  for (int64_t i = 0; i < tokens * row; i++)
    TQ_CHECK(isfinite(element(type, x, i)), kBad, "%s: number %lld of token %lld is not finite", name,
             ll(i % row), ll(first + i / row));
}

void check_dim(const char* name, int32_t dim, ReasonList& reasons) {
  if (!format::is_head_dim(dim) || dim > format::kMaxBands * format::kGroupCodes)
    reasons.add(kBad, "%s = %d: must be a multiple of 4 from 8 to 256", name, dim);
}

void check_family(const char* name, int32_t* family, ReasonList& reasons) {
  if (*family == 0) *family = TQ_CODE_SCALAR;
  if (*family != TQ_CODE_SCALAR && *family != TQ_CODE_TRELLIS)
    reasons.add(kBad, "%s = %d: must be TQ_CODE_SCALAR (1) or TQ_CODE_TRELLIS (5)", name, *family);
}

void check_count(const char* name, int32_t value, int32_t least, int32_t most, ReasonList& reasons) {
  if (value < least || value > most) reasons.add(kBad, "%s = %d: must be %d .. %d", name, value, least, most);
}

void raise(const ReasonList& reasons) {
  if (!reasons.empty()) throw Error(reasons.status(), "%s", reasons.text());
}

template <typename T>
T median(std::vector<T> values) {
  if (values.empty()) return T{};
  const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

tq_calibration_config resolved(tq_calibration_config c) {
  ReasonList reasons;
  if (c.value_dim == 0) c.value_dim = c.head_dim;
  if (c.held_out_tokens == 0) c.held_out_tokens = 128;
  check_count("num_layers", c.num_layers, 1, kMaxCount, reasons);
  check_count("num_q_heads", c.num_q_heads, 1, kMaxCount, reasons);
  check_count("num_kv_heads", c.num_kv_heads, 1, kMaxCount, reasons);
  if (c.num_kv_heads >= 1 && c.num_q_heads % c.num_kv_heads != 0)
    reasons.add(kBad, "num_q_heads = %d: must be a multiple of num_kv_heads = %d", c.num_q_heads,
                c.num_kv_heads);
  check_dim("head_dim", c.head_dim, reasons);
  check_dim("value_dim", c.value_dim, reasons);
  check_count("io_dtype", c.io_dtype, TQ_F32, TQ_BF16, reasons);
  check_family("key_family", &c.key_family, reasons);
  check_family("value_family", &c.value_family, reasons);
  check_count("held_out_tokens", c.held_out_tokens, 32, 4096, reasons);
  check_count("turn_keys", c.turn_keys, 0, 1, reasons);
  raise(reasons);
  return c;
}

Calibration::Calibration(const tq_calibration_config* config)
    : config_(resolved(read_struct(config, "config"))),
      fed_(static_cast<size_t>(config_.num_layers)),
      measured_(static_cast<size_t>(config_.num_layers)),
      matrices_(static_cast<size_t>(config_.num_layers)),
      found_(static_cast<size_t>(config_.num_layers)) {
  const size_t heads = static_cast<size_t>(config_.num_kv_heads),
               keys = heads * static_cast<size_t>(config_.head_dim);
  for (Fed& fed : fed_) {
    for (std::vector<double>* sums : {&fed.key, &fed.key_square, &fed.query_square}) sums->assign(keys, 0.0);
    fed.value.assign(heads * static_cast<size_t>(config_.value_dim), 0.0);
    if (config_.turn_keys == 0) continue;
    for (std::vector<double>* sums : {&fed.key_moment, &fed.query_moment})
      sums->assign(keys * static_cast<size_t>(config_.head_dim), 0.0);
  }
}

void Calibration::destroy(Calibration* calibration) {
  { const Gate::Use use(calibration->gate_, true); }
  delete calibration;
}

int64_t Calibration::longest_row() const {
  const tq_calibration_config& c = config_;
  return dtype_bytes(static_cast<DataType>(c.io_dtype)) *
         std::max(static_cast<int64_t>(c.num_q_heads) * c.head_dim,
                  static_cast<int64_t>(c.num_kv_heads) * c.value_dim);
}
int64_t Calibration::piece_tokens() const { return std::max<int64_t>(kPieceBytes / longest_row(), 1); }
int64_t Calibration::piece_bytes() const { return piece_tokens() * longest_row(); }

// A token's rows [q, k, v] as floats, keys and queries as the layer's matrices turn them.
void Calibration::load_rows(int32_t index, const void* const* at, int64_t token,
                            std::vector<float> (&rows)[3]) const {
  for (int side = 0; side < 3; side++)
    for (size_t i = 0; i < rows[side].size(); i++)
      rows[side][i] = element(static_cast<DataType>(config_.io_dtype), at[side],
                              token * static_cast<int64_t>(rows[side].size()) + static_cast<int64_t>(i));
  const KeyMatrix& matrix = matrices_[static_cast<size_t>(index)];
  if (matrix.empty()) return;
  float turned[format::kMaxDim];
  const int32_t dim = config_.head_dim, group = config_.num_q_heads / config_.num_kv_heads;
  for (int32_t head = 0; head < config_.num_q_heads; head++) {
    float* const q = rows[0].data() + static_cast<size_t>(head) * static_cast<size_t>(dim);
    apply_columns(matrix.head_inverse(head / group), dim, q, turned);
    std::copy_n(turned, dim, q);
  }
  for (int32_t head = 0; head < config_.num_kv_heads; head++) {
    float* const k = rows[1].data() + static_cast<size_t>(head) * static_cast<size_t>(dim);
    apply_columns(matrix.head_columns(head), dim, k, turned);
    std::copy_n(turned, dim, k);
  }
}

// Held out, at its place among those kept so far, or added to the sums.
void Calibration::add_token(Fed& fed, const std::vector<float> (&rows)[3]) const {
  const tq_calibration_config& c = config_;
  const int64_t number = fed.tokens++;
  if (number / kRun % kHeldRun == kHeldRun - 1) {
    const int64_t seen = fed.held_out_seen++, most = c.held_out_tokens;
    const int64_t place = seen < most ? seen
                                      : static_cast<int64_t>(format::mix64(static_cast<uint64_t>(seen)) %
                                                             static_cast<uint64_t>(seen + 1));
    if (place >= most) return;
    std::vector<float>* const kept[] = {&fed.held_q, &fed.held_k, &fed.held_v};
    for (int side = 0; side < 3; side++) {
      const size_t row = rows[side].size(), first = static_cast<size_t>(place) * row;
      kept[side]->resize(std::max(kept[side]->size(), first + row));
      std::copy(rows[side].begin(), rows[side].end(), kept[side]->begin() + static_cast<int64_t>(first));
    }
    return;
  }
  fed.counted++;
  const size_t dim = static_cast<size_t>(c.head_dim),
               group = static_cast<size_t>(c.num_q_heads / c.num_kv_heads);
  double length = 0;
  for (size_t i = 0; i < rows[1].size(); i++) {
    const double x = static_cast<double>(rows[1][i]);
    fed.key[i] += x;
    fed.key_square[i] += x * x;
    length += x * x;
  }
  for (size_t i = 0; i < rows[0].size(); i++) {
    const double x = static_cast<double>(rows[0][i]);
    fed.query_square[i / dim / group * dim + i % dim] += x * x;
  }
  for (size_t i = 0; i < rows[2].size(); i++) fed.value[i] += static_cast<double>(rows[2][i]);
  add_moments(fed, rows[0], rows[1]);
  if (fed.key_lengths.size() < kMostLengths)
    fed.key_lengths.push_back(bounded(sqrt(length / c.num_kv_heads)));
}

void Calibration::feed(int32_t index, int64_t count, const void* q, const void* k, const void* v,
                       DeviceReader* reader) {
  const Gate::Use use(gate_, true);
  const tq_calibration_config& c = config_;
  TQ_CHECK(!fed_.empty(), Status::kInvalidState, "calibration: it was loaded, and takes no more tokens");
  TQ_CHECK(index >= 0 && index < c.num_layers, kBad, "layer = %d: must be 0 .. %d", index, c.num_layers - 1);
  TQ_CHECK(count >= 0, kBad, "count = %lld: must be 0 or more", ll(count));
  if (count == 0) return;
  TQ_CHECK(q && k && v, kBad, "q = %p, k = %p, v = %p: must not be NULL", q, k, v);
  const DataType type = static_cast<DataType>(c.io_dtype);
  const int64_t head_row = c.head_dim, step = reader ? piece_tokens() : count;
  const Array sides[] = {{"q", q, c.num_q_heads * head_row},
                         {"k", k, c.num_kv_heads * head_row},
                         {"v", v, static_cast<int64_t>(c.num_kv_heads) * c.value_dim}};
  const auto piece = [&](int i, int64_t first, int64_t tokens) -> const void* {
    const int64_t row = sides[i].row * dtype_bytes(type);
    const uint8_t* const from = static_cast<const uint8_t*>(sides[i].from) + first * row;
    return reader ? reader->read(i, sides[i].name, from, tokens * row) : from;
  };
  for (int i = 0; i < 3; i++)
    for (int64_t first = 0; first < count; first += step) {
      const int64_t tokens = std::min(step, count - first);
      check_finite(sides[i].name, type, piece(i, first, tokens), first, tokens, sides[i].row);
    }
  std::vector<float> rows[3];
  for (int i = 0; i < 3; i++) rows[i].resize(static_cast<size_t>(sides[i].row));
  // Of every token, its rows as they are measured.
  const auto for_each_token = [&](const auto& visit) {
    for (int64_t first = 0; first < count; first += step) {
      const int64_t tokens = std::min(step, count - first);
      const void* at[3];
      for (int i = 0; i < 3; i++) at[i] = piece(i, first, tokens);
      for (int64_t token = 0; token < tokens; token++) {
        load_rows(index, at, token, rows);
        visit(first + token);
      }
    }
  };
  if (!matrices_[static_cast<size_t>(index)].empty())
    for_each_token([&](int64_t token) {
      for (int i = 0; i < 2; i++)
        TQ_CHECK(all_finite(rows[i]), kBad, "%s: token %lld is not finite as the matrix of layer %d turns it",
                 sides[i].name, ll(token), index);
    });
  Fed& own = fed_[static_cast<size_t>(index)];
  Fed copy;  // a read may fail
  if (reader) copy = own;
  Fed& fed = reader ? copy : own;
  for_each_token([&](int64_t) { add_token(fed, rows); });
  if (reader) own = std::move(copy);
  current_ = false;
}

void Calibration::set_key_matrix(int32_t index, const float* matrix) {
  const Gate::Use use(gate_, true);
  TQ_CHECK(!fed_.empty(), Status::kInvalidState, "calibration: it was loaded, and takes no key matrix");
  TQ_CHECK(index >= 0 && index < config_.num_layers, kBad, "layer = %d: must be 0 .. %d", index,
           config_.num_layers - 1);
  TQ_CHECK(matrix, kBad, "matrix = NULL");
  TQ_CHECK(fed_[static_cast<size_t>(index)].tokens == 0, Status::kInvalidState,
           "layer %d was fed %lld tokens: its key matrix comes before them", index,
           ll(fed_[static_cast<size_t>(index)].tokens));
  matrices_[static_cast<size_t>(index)] =
      KeyMatrix::make(index, config_.num_kv_heads, config_.head_dim, matrix);
  Fed& fed = fed_[static_cast<size_t>(index)];
  fed.key_moment.clear(), fed.query_moment.clear();
}

void Calibration::measure() {
  if (current_ || fed_.empty()) return;
  for (int32_t i = 0; i < config_.num_layers; i++) {
    const Fed& fed = fed_[static_cast<size_t>(i)];
    TQ_CHECK(fed.tokens >= kLeastTokens, Status::kInvalidState,
             "layer %d was fed %lld tokens: it takes %lld or more", i, ll(fed.tokens), ll(kLeastTokens));
  }
  for (int32_t i = 0; i < config_.num_layers; i++) {
    Measured& to = measured_[static_cast<size_t>(i)];
    to = Measured{};
    found_[static_cast<size_t>(i)] = KeyMatrix{};
    to.key_length = median(fed_[static_cast<size_t>(i)].key_lengths);
    measure_layer(i);
  }
  current_ = true;
}

const SideChoice& Calibration::uniform(const std::vector<SideChoice>& choices, int32_t bits) const {
  return *std::find_if(choices.begin(), choices.end(),
                       [bits](const SideChoice& choice) { return choice.bits == bits; });
}

// With bands where they earn it: against the same bits for all coordinates, or the next lower ones.
const SideChoice& Calibration::of_rate(const std::vector<SideChoice>& choices, int32_t half_bits) const {
  const SideChoice& plain = uniform(choices, half_bits / 2);
  for (const SideChoice& choice : choices)
    if (choice.bits == 0 && choice.half_bits == half_bits && choice.error <= kLeastGain * plain.error)
      return choice;
  return plain;
}

void Calibration::fill_layer(int32_t index, const SideChoice& key, const SideChoice& value,
                             tq_layer_config* to) {
  *to = tq_layer_config{};
  to->struct_size = sizeof *to;
  to->key_family = config_.key_family;
  to->value_family = config_.value_family;
  to->key_bits = key.bits;
  to->value_bits = value.bits;
  if (key.bits != 0) return;
  GivenBands& given = given_[static_cast<size_t>(index)];
  given.bits.clear();
  for (int band = 0; band < num_bands(); band++) given.bits.push_back(format::band_bits(key.bands, band));
  given.bands = {sizeof given.bands, num_bands(), given.bits.data(),
                 measured_[static_cast<size_t>(index)].order.data()};
  to->key_bands = &given.bands;
}

namespace {

const SideChoice kRaw = {16, 0, 32, 0, 0.0};

// The choices of one side from the fewest bytes up, each better than the one before.
std::vector<const SideChoice*> ladder(std::vector<const SideChoice*> choices) {
  std::stable_sort(choices.begin(), choices.end(),
                   [](const SideChoice* a, const SideChoice* b) { return a->head_bytes < b->head_bytes; });
  std::vector<const SideChoice*> kept;
  for (const SideChoice* choice : choices)
    if (kept.empty() || choice->error < kept.back()->error) kept.push_back(choice);
  return kept;
}

// Where a side stands on its ladder.
struct Side {
  std::vector<const SideChoice*> ladder;
  size_t at = 0;

  const SideChoice& now() const { return *ladder[at]; }
  // The step up that gains most for its bytes; 0 if there is none.
  size_t best_step(double* gain) const {
    size_t best = 0;
    *gain = 0;
    for (size_t to = at + 1; to < ladder.size(); to++) {
      const double each = (now().error - ladder[to]->error) / (ladder[to]->head_bytes - now().head_bytes);
      if (each > *gain) *gain = each, best = to;
    }
    return best;
  }
};

}  // namespace

void Calibration::choose(const tq_calibration_goal& goal, tq_layer_config* layers, int32_t num_layers,
                         tq_calibration_result* result) {
  const Gate::Use use(gate_, true);
  const tq_calibration_config& c = config_;
  TQ_CHECK(layers && num_layers == c.num_layers, kBad, "layers = %p, num_layers = %d: must be %d of them",
           static_cast<void*>(layers), num_layers, c.num_layers);
  ReasonList reasons;
  const bool by_error = goal.max_error != 0;
  const int32_t half_bits = static_cast<int32_t>(lrintf(2 * goal.key_bits));
  if (!(goal.max_error >= 0 && isfinite(goal.max_error)))
    reasons.add(kBad, "goal.max_error = %g: must be 0 or more", static_cast<double>(goal.max_error));
  if (!(goal.outlier >= 0 && isfinite(goal.outlier)))
    reasons.add(kBad, "goal.outlier = %g: must be 0 (4) or more", static_cast<double>(goal.outlier));
  if (!by_error && (static_cast<float>(half_bits) != 2 * goal.key_bits || half_bits < kLeastHalfBits ||
                    half_bits > kMostHalfBits || half_bits * num_bands() % 2 != 0))
    reasons.add(kBad,
                "goal.key_bits = %g: must be 2, 2.5, 3, 3.5 or 4; a whole number with an odd number of "
                "bands (%d)",
                static_cast<double>(goal.key_bits), num_bands());
  if (!by_error && !format::is_trellis_bits(goal.value_bits))
    reasons.add(kBad, "goal.value_bits = %d: must be 2, 3 or 4", goal.value_bits);
  raise(reasons);
  measure();
  std::vector<float> lengths;
  for (const Measured& layer : measured_) lengths.push_back(layer.key_length);
  const float longest = median(lengths) * (goal.outlier != 0 ? goal.outlier : kDefaultOutlier);

  std::vector<Side> sides(2 * measured_.size());  // [layer][key, value]
  double error = 0, uniform_error = 0;
  std::vector<bool> raw;
  for (size_t i = 0; i < measured_.size(); i++) {
    const Measured& layer = measured_[i];
    raw.push_back(layer.key_length > longest);
    Side* const own = &sides[2 * i];
    if (raw.back()) {
      own[0].ladder = own[1].ladder = {&kRaw};
    } else if (by_error) {
      std::vector<const SideChoice*> keys, values;
      for (int32_t rate = kLeastHalfBits; rate <= kMostHalfBits; rate++)
        keys.push_back(&of_rate(layer.keys, rate));
      for (const SideChoice& value : layer.values) values.push_back(&value);
      own[0].ladder = ladder(keys), own[1].ladder = ladder(values);
    } else {
      own[0].ladder = {&of_rate(layer.keys, half_bits)};
      own[1].ladder = {&uniform(layer.values, goal.value_bits)};
      uniform_error += uniform(layer.keys, half_bits / 2).error + own[1].now().error;
    }
    error += own[0].now().error + own[1].now().error;
  }
  const double count = static_cast<double>(measured_.size()), allowed = static_cast<double>(goal.max_error);
  while (by_error && error > allowed * count) {
    Side* best = nullptr;
    size_t to = 0;
    double most = 0;
    for (Side& side : sides) {
      double gain;
      const size_t step = side.best_step(&gain);
      if (step != 0 && gain > most) most = gain, best = &side, to = step;
    }
    TQ_CHECK(best, kBad, "goal.max_error = %g: 4 bits in all layers come to %g", allowed, error / count);
    error += best->ladder[to]->error - best->now().error;
    best->at = to;
  }

  given_.resize(measured_.size());
  tq_calibration_result found = {};
  for (size_t i = 0; i < measured_.size(); i++) {
    const SideChoice &key = sides[2 * i].now(), &value = sides[2 * i + 1].now();
    fill_layer(static_cast<int32_t>(i), key, value, &layers[i]);
    found.banded_layers += key.bits == 0;
    found.raw_layers += raw[i];
    const int64_t bytes = raw[i] ? 2 * (c.head_dim + c.value_dim) : key.head_bytes + value.head_bytes;
    found.token_bytes += c.num_kv_heads * bytes;
  }
  found.error = bounded(error / count);
  found.uniform_error = bounded(uniform_error / count);
  if (result) *result = found;
}

void Calibration::copy_centres(int32_t index, float* key, float* value) {
  const Gate::Use use(gate_, true);
  TQ_CHECK(index >= 0 && index < config_.num_layers, kBad, "layer = %d: must be 0 .. %d", index,
           config_.num_layers - 1);
  measure();
  const Measured& layer = measured_[static_cast<size_t>(index)];
  const std::vector<float> centre = given_key_centre(index);
  if (key) std::copy(centre.begin(), centre.end(), key);
  if (value) std::copy(layer.value_centre.begin(), layer.value_centre.end(), value);
}

}  // namespace tq
