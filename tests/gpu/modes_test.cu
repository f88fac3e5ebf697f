// SPDX-License-Identifier: Apache-2.0
// Attention over codes by rows on CUDA against attention in float64 over what the cache decodes, which
// conformance_test finds equal to the CPU's bit for bit: every configuration of modes.cuh, ragged lengths,
// one and several queries, soft-cap, ALiBi, exact windows and sinks.
//
// Queries and levels lie on grids of 16 bits, weights have 16 bits: a logit is off by up to about 2^-16 |q|
// |k|, where |q| |k| is below 20 here, a weight by 2^-17 of the largest, a value by 2^-16 of itself, levels
// alike for all tokens. So rows are judged by the length of the values that they average, less their centre:
// each is within 3e-4 of it, all within 1e-4, and LSE within 2e-4; prompts as below.
//   modes_test [FIRST COUNT]
#include "modes.cuh"

namespace {

using namespace gpu_test;

struct Gates {
  double row, total, lse;
};
constexpr Gates kGates = {3e-4, 1e-4, 2e-4};
// Of many rows, which the prefill kernel for warpgroups may take: weights are halves there, 2e-4 at random;
// so are queries, and keys in bands, which are 1.85e-4 and as much again off of what logits spread by (1
// here), 2.6e-4 together. The worst of some thousand rows is 4.5 times that off, an LSE, which may be of few
// tokens, 5.5 times.
constexpr Gates kLongGates = {1.5e-3, 4e-4, 1.7e-3};
constexpr int kHeads = 2, kGroup = 3;
double worst_short[3] = {}, worst_long[3] = {};  // row, total, lse

struct Numbers {
  std::vector<double> of[2];  // [token][kv head][dim]
};

struct Errors {
  double error = 0, square = 0, row = 0, lse = 0;
};

class World {
 public:
  World(const ModeShape& shape, bool exact, bool centres, bool matrices)
      : shape_(shape), mode_(shape), cache_(config(exact), TQ_DEVICE_CUDA) {
    if (matrices)
      API_MUST(tq_cache_set_key_matrix(cache_.cache, 0, key_matrices(kHeads, dim(0), exact ? 1 : 2).data()));
    if (!centres) return;
    for (int side = 0; side < 2; side++)
      for (int i = 0; i < kHeads * dim(side); i++)
        centre_[side].push_back(static_cast<float>(mix64(static_cast<uint64_t>(i)) % 100) * 0.01f);
    API_MUST(tq_cache_set_centres(cache_.cache, 0, centre_[0].data(), centre_[1].data()));
  }

  // Queries at the end of a sequence of `length` tokens, which two appends have written.
  void compare(const char* name, int64_t length, int64_t queries, float softcap, bool alibi) {
    const tq_sequence id = cache_.sequence();
    for (int64_t done = 0; done<length; done += length - done> 1 ? length / 2 + 1 : 1)
      append(id, done, std::min<int64_t>(length - done, length / 2 + 1), queries);
    cache_.plan({id}, {0}, {queries});
    const Numbers numbers = decoded(id);
    const Rows q(source(2), queries, false);
    q.fill(source(2), {RowRun{9, 0, 0, queries}});
    const std::vector<float> rows = q.memory.floats();
    tq_attend_params params = default_params();
    params.logit_softcap = softcap;
    std::vector<float> slopes(alibi ? kHeads * kGroup : 0);
    for (size_t h = 0; h < slopes.size(); h++) slopes[h] = 0.01f * static_cast<float>(h);
    const Buffer<float> device_slopes(slopes);
    if (alibi) params.alibi_slopes = device_slopes.get();
    const AttendOutput got = cache_.attend(0, q.memory.get(), params);
    Errors e;
    for (int64_t query = 0; query < queries; query++)
      for (int h = 0; h < kHeads * kGroup; h++)
        row(numbers, rows.data() + (query * kHeads * kGroup + h) * shape_.head_dim, length,
            length - queries + query, h / kGroup, softcap, alibi ? slopes[static_cast<size_t>(h)] : 0.0f,
            got.out.data() + (query * kHeads * kGroup + h) * shape_.value_dim,
            got.lse[static_cast<size_t>(query * kHeads * kGroup + h)], &e);
    const double total = sqrt(e.error / e.square);
    const Gates& gates = queries * kGroup >= 256 ? kLongGates : kGates;
    check(e.row <= gates.row && total <= gates.total && e.lse <= gates.lse,
          "d %d/%d families %d/%d bits %d/%d, %s, %lld tokens: row %.2e, all %.2e, lse %.2e", shape_.head_dim,
          shape_.value_dim, shape_.key.family, shape_.value.family, shape_.key.bits, shape_.value.bits, name,
          static_cast<long long>(length), e.row, total, e.lse);
    double* const worst = queries * kGroup >= 256 ? worst_long : worst_short;
    worst[0] = std::max(worst[0], e.row);
    worst[1] = std::max(worst[1], total);
    worst[2] = std::max(worst[2], e.lse);
    API_MUST(tq_sequence_free(cache_.cache, id, nullptr));
  }

 private:
  int dim(int side) const { return side == 1 ? shape_.value_dim : shape_.head_dim; }
  RowSource source(int side) const {
    return RowSource{
        5, TQ_F32, side, 0, side == 2 ? kHeads * kGroup : kHeads, dim(side), side == 2 ? 3.0f : 1.0f};
  }
  tq_cache_config config(bool exact) const {
    tq_cache_config config = api_config(shape_.head_dim, shape_.value_dim, shape_.key.bits, shape_.value.bits,
                                        kHeads * kGroup, kHeads, TQ_F32);
    mode_.apply(&config);
    config.max_sequences = 1;
    config.max_tokens = config.max_sequence_tokens = 4096;
    config.window_tokens = exact ? 40 : 0;
    config.sink_tokens = exact ? 5 : 0;
    return config;
  }

  void append(tq_sequence id, int64_t first, int64_t count, int64_t queries) {
    const Rows k(source(0), count, true), v(source(1), count, true);
    k.fill(source(0), {RowRun{1, first, 0, count}});
    v.fill(source(1), {RowRun{1, first, 0, count}});
    cache_.plan({id}, {count}, {std::min(queries, count)});
    cache_.append(0, k.memory.get(), v.memory.get(), k, v);
  }

  Numbers decoded(tq_sequence id) {
    const std::vector<uint8_t> bytes = cache_.read(0, id);
    Numbers numbers;
    const float* at = reinterpret_cast<const float*>(bytes.data());
    const size_t keys = bytes.size() / 4 * static_cast<size_t>(dim(0)) / static_cast<size_t>(dim(0) + dim(1));
    numbers.of[0].assign(at, at + keys);
    numbers.of[1].assign(at + keys, at + bytes.size() / 4);
    return numbers;
  }

  void row(const Numbers& numbers, const float* q, int64_t length, int64_t position, int head, float softcap,
           float slope, const float* out, float lse, Errors* e) const {
    const auto of = [&](int side, int64_t token) {
      return numbers.of[side].data() + (token * kHeads + head) * dim(side);
    };
    std::vector<double> logit(static_cast<size_t>(length)), want(static_cast<size_t>(dim(1)), 0.0);
    double top = -INFINITY, total = 0;
    for (int64_t token = 0; token <= position; token++) {
      double sum = 0;
      for (int i = 0; i < dim(0); i++) sum += static_cast<double>(q[i]) * of(0, token)[i];
      sum /= sqrt(static_cast<double>(dim(0)));
      if (softcap > 0) sum = softcap * tanh(sum / static_cast<double>(softcap));
      sum += static_cast<double>(slope) * static_cast<double>(token - position);
      logit[static_cast<size_t>(token)] = sum;
      top = std::max(top, sum);
    }
    const auto centre = [&](int i) {
      const bool has =
          !centre_[1].empty() && shape_.value.family != TQ_CODE_GROUPED && shape_.value.bits < 16;
      return has ? static_cast<double>(centre_[1][static_cast<size_t>(head * dim(1) + i)]) : 0.0;
    };
    double square = 0;
    for (int64_t token = 0; token <= position; token++) {
      const double weight = exp(logit[static_cast<size_t>(token)] - top);
      total += weight;
      for (int i = 0; i < dim(1); i++) {
        const double x = of(1, token)[i], apart = x - centre(i);
        want[static_cast<size_t>(i)] += weight * x;
        square += weight * apart * apart;
      }
    }
    square /= total;
    double error = 0;
    for (int i = 0; i < dim(1); i++) {
      const double off = static_cast<double>(out[i]) - want[static_cast<size_t>(i)] / total;
      error += off * off;
    }
    e->error += error;
    e->square += square;
    const double far = sqrt(error / square), apart = fabs(top + log(total) - static_cast<double>(lse));
    if (!(far <= e->row)) e->row = far;
    if (!(apart <= e->lse)) e->lse = apart;
  }

  ModeShape shape_;
  ModeConfig mode_;
  ApiCache cache_;
  std::vector<float> centre_[2];
};

void compare_all(const ModeShape& shape, bool centres, bool matrices) {
  World plain(shape, false, centres, matrices);
  for (const int64_t length : {1, 2, 31, 33, 64, 200, 1100}) plain.compare("one query", length, 1, 0, false);
  plain.compare("queries", 150, 11, 0, false);
  plain.compare("soft-cap", 150, 2, 4.0f, false);
  plain.compare("ALiBi", 150, 3, 0, true);
  plain.compare("many queries", 333, 90, 0, false);
  plain.compare("more queries, soft-cap", 600, 345, 4.0f, false);
  plain.compare("many queries, ALiBi", 300, 90, 0, true);
  World exact(shape, true, centres, matrices);
  for (const int64_t length : {3, 45, 46, 300}) exact.compare("window and sinks", length, 1, 0, false);
}

}  // namespace

int main(int count, char** arguments) {
  const int first = count > 2 ? atoi(arguments[1]) : 0, last = count > 2 ? first + atoi(arguments[2]) : 1000;
  int index = 0;
  for (const ModeShape& shape : mode_shapes()) {
    const int at = index++;
    if (at < first || at >= last) continue;
    try {
      const bool turns = shape.key.bits < 16 && shape.key.family != TQ_CODE_GROUPED;
      compare_all(shape, at % 2 == 1, turns && at % 3 == 1);
    } catch (const std::exception& error) {
      check(false, "configuration %d: %s", at, error.what());
    }
  }
  for (const double* const worst : {worst_short, worst_long})
    printf(
        "   %d configurations, %s queries: worst row %.2e, worst whole %.2e, worst lse %.2e from float64\n",
        index, worst == worst_short ? "few" : "many", worst[0], worst[1], worst[2]);
  return finish("modes_test");
}
