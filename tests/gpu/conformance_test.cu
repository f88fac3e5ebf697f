// SPDX-License-Identifier: Apache-2.0
// The library on the GPU against the library on the CPU, through the C API: every attention kernel of
// cuda/attend/instances.txt, lengths at every tile and page edge +- 1, tokens appended in ragged pieces,
// interleaved pages, strides, memory that holds NaN where nothing was written.
//
// Stored bytes and decoded values must be equal bit for bit; how near attention must be says
// conformance_cases.cuh.
//   conformance_test [--quick] [FIRST COUNT]
#include <sys/wait.h>
#include <unistd.h>

#include "conformance_cases.cuh"
#include "tests/masks.h"

namespace {

using namespace gpu_test;

double worst_row = 0, worst_total = 0, worst_lse = 0;
int64_t rows_compared = 0;
bool quick = false;

// Every tile edge up to ten tiles and every page edge up to four pages, the edges of chunks, all +- 1.
std::vector<int64_t> edge_lengths(int page_size) {
  std::vector<int64_t> list = {1, 2, 7};
  const auto around = [&](int64_t edge) {
    for (int64_t length : {edge - 1, edge, edge + 1})
      if (length > 0 && std::find(list.begin(), list.end(), length) == list.end()) list.push_back(length);
  };
  for (int tile = 1; tile <= (quick ? 4 : 10); tile++) around(32 * tile);
  for (int page = 1; page <= 4 && page * page_size <= 4096; page++)
    around(static_cast<int64_t>(page) * page_size);
  around(1024);
  around(2048);
  if (!quick) {
    around(4096);
    around(8192);
    around(16384);
  }
  return list;
}

// The same calls on both devices.
class Pair {
 public:
  explicit Pair(const Case& c, const std::vector<int64_t>& lengths);
  void grow(const std::vector<int64_t>& pieces, const std::vector<int64_t>& queries);
  void compare_attention(const char* what, tq_attend_params params, double total_gate = kTotalGate);
  // The same with random masks; a tree only where queries are new tokens.
  void compare_masked(bool ranges, bool tree, bool alibi, double total_gate = kTotalGate);
  void compare_reads();
  void compare_pools();
  void compare_copies();
  void free_decoy();

  int num_targets, num_all;
  std::vector<int64_t> lengths;

 private:
  RowSource source(int side) const {
    const bool value = side == 1;
    return RowSource{c_.seed,
                     cpu_.config.io_dtype,
                     side,
                     0,
                     side == 2 ? cpu_.config.num_q_heads : cpu_.config.num_kv_heads,
                     value ? c_.shape.value_dim : c_.shape.head_dim,
                     side == 2 ? 3.0f : 1.0f};
  }
  tq_cache_config config(const Case& c, const std::vector<int64_t>& lengths) const;

  Case c_;
  ModeConfig mode_;
  std::string name_;
  ApiCache cpu_, gpu_;
  std::vector<tq_sequence> ids_[2];
  std::vector<bool> freed_;
  std::vector<int64_t> last_queries_;
  std::vector<tq::test::MaskedRows> rows_;  // of the plan, in its order
  tq::test::Masks masks_;
  uint64_t turn_ = 0;
};

constexpr int kDecoys = 3;

tq_cache_config Pair::config(const Case& c, const std::vector<int64_t>& lengths) const {
  tq_cache_config config = api_config(c.shape.head_dim, c.shape.value_dim, c.shape.key_bits,
                                      c.shape.value_bits, c.kv_heads * c.q_per_kv, c.kv_heads, c.dtype);
  if (c.shape.mode.head_dim > 0) mode_.apply(&config);
  config.page_size = c.page_size;
  config.window_tokens = c.window;
  config.sink_tokens = c.sinks;
  config.rollback_tokens = c.rollback;
  config.max_sequences = static_cast<int32_t>(lengths.size()) + kDecoys;
  config.flags = TQ_FLAG_NO_ZERO_ON_FREE;  // pages that come back hold what they held
  for (int64_t length : lengths) {
    config.max_tokens += (length + 2 * c.page_size) / c.page_size * c.page_size;
    config.max_sequence_tokens = std::max<int64_t>(config.max_sequence_tokens, length + 2 * c.page_size);
  }
  config.max_tokens += kDecoys * 8 * c.page_size;
  config.max_sequence_tokens = std::max<int64_t>(config.max_sequence_tokens, 8 * c.page_size);
  return config;
}

Pair::Pair(const Case& c, const std::vector<int64_t>& final_lengths)
    : num_targets(static_cast<int>(final_lengths.size())),
      num_all(num_targets + kDecoys),
      lengths(static_cast<size_t>(num_all), 0),
      c_(c),
      mode_(c.shape.mode),
      name_(name_of(c)),
      cpu_(config(c, final_lengths), TQ_DEVICE_CPU),
      gpu_(config(c, final_lengths), TQ_DEVICE_CUDA),
      freed_(static_cast<size_t>(num_all), false) {
  std::vector<float> centre[2];
  for (int side = 0; side < 2; side++)
    for (int i = 0; i < c.kv_heads * (side ? c.shape.value_dim : c.shape.head_dim); i++)
      centre[side].push_back(
          static_cast<float>(static_cast<int>(mix64(c.seed + side * 77777 + i) % 200) - 100) * 0.0078125f);
  ApiCache* caches[2] = {&cpu_, &gpu_};
  for (int device = 0; device < 2; device++) {
    if (c.centres)
      API_MUST(tq_cache_set_centres(caches[device]->cache, 0, centre[0].data(), centre[1].data()));
    if (c.matrices)
      API_MUST(tq_cache_set_key_matrix(caches[device]->cache, 0,
                                       key_matrices(c.kv_heads, c.shape.head_dim, c.seed).data()));
    for (int i = 0; i < num_all; i++) ids_[device].push_back(caches[device]->sequence());
  }
  uint64_t prints[2] = {0, 1};
  for (int device = 0; device < 2; device++)
    API_MUST(tq_cache_fingerprint(caches[device]->cache, &prints[device]));
  check(prints[0] == prints[1], "%s: fingerprints differ", name_.c_str());
}

// One plan over all sequences in a drawn order: pieces[i] new tokens of sequence i.
void Pair::grow(const std::vector<int64_t>& pieces, const std::vector<int64_t>& queries) {
  std::vector<int> order;
  for (int i = 0; i < num_all; i++)
    if (!freed_[i]) order.push_back(i);
  for (size_t i = order.size(); i > 1; i--)
    std::swap(order[i - 1], order[mix64(c_.seed * 7919 + ++turn_) % i]);
  std::vector<int64_t> news, asks;
  std::vector<RowRun> runs;
  int64_t rows = 0;
  rows_.clear();
  for (int i : order) {
    rows_.push_back({lengths[i] + pieces[i], pieces[i], queries[i]});
    news.push_back(pieces[i]);
    asks.push_back(queries[i]);
    runs.push_back(RowRun{i, lengths[i], rows, pieces[i]});
    rows += pieces[i];
    lengths[i] += pieces[i];
  }
  const Rows k(source(0), rows, true), v(source(1), rows, true);
  k.fill(source(0), runs);
  v.fill(source(1), runs);
  for (int device = 0; device < 2; device++) {
    ApiCache& cache = device ? gpu_ : cpu_;
    std::vector<tq_sequence> ids;
    for (int i : order) ids.push_back(ids_[device][i]);
    cache.plan(ids, news, asks);
    if (rows == 0) continue;
    const Memory host_k = device ? Memory() : k.on(TQ_DEVICE_CPU),
                 host_v = device ? Memory() : v.on(TQ_DEVICE_CPU);
    cache.append(0, device ? k.memory.get() : host_k.get(), device ? v.memory.get() : host_v.get(), k, v);
  }
  GPU_MUST(cudaDeviceSynchronize());
  last_queries_ = asks;
}

void Pair::compare_attention(const char* what, tq_attend_params params, double total_gate) {
  int64_t rows = 0;
  for (int64_t n : last_queries_) rows += n;
  const Rows q(source(2), rows, true);
  q.fill(source(2), {RowRun{1000, static_cast<int64_t>(c_.seed), 0, rows}});
  params.q_token_stride = q.token_stride;
  params.q_head_stride = q.head_stride;
  const int heads = cpu_.config.num_q_heads, dim = c_.shape.value_dim;
  std::vector<float> sinks;
  for (int h = 0; h < heads; h++)
    sinks.push_back(static_cast<float>(static_cast<int>(mix64(c_.seed + h) % 64) - 32) * 0.125f);
  const bool with_sinks = params.sink_logits != nullptr;
  const Buffer<float> device_sinks(sinks);
  const Memory host_q = q.on(TQ_DEVICE_CPU);
  params.sink_logits = with_sinks ? sinks.data() : nullptr;
  masks_.pass(&params);
  const AttendOutput want = cpu_.attend(0, host_q.get(), params, true);
  params.sink_logits = with_sinks ? device_sinks.get() : nullptr;
  const Buffer<int32_t> begin(masks_.begin), end(masks_.end);
  const Buffer<uint64_t> tree(masks_.tree);
  const Buffer<float> slopes(masks_.slopes);
  if (params.visible_begin) params.visible_begin = begin.get(), params.visible_end = end.get();
  if (params.tree_mask) params.tree_mask = tree.get();
  if (params.alibi_slopes) params.alibi_slopes = slopes.get();
  const AttendOutput got = gpu_.attend(0, q.memory.get(), params, true);

  const bool half_queries = rows * heads / cpu_.config.num_kv_heads >= 256 && takes_half_queries(c_.shape);
  const double of_values = value_rounding(c_);
  double total_error = 0, total_square = 0, row_worst = 0, lse_worst = 0, square_there = 0;
  int64_t strange = 0, worst_at = -1;
  for (int64_t row = 0; row < rows * heads; row++) {
    double error = 0, square = 0;
    for (int i = 0; i < dim; i++) {
      const double a = want.out[row * dim + i], b = got.out[row * dim + i];
      if (!std::isfinite(a) || !std::isfinite(b)) strange++;
      error += (a - b) * (a - b);
      square += a * a;
    }
    total_error += error;
    total_square += square;
    if (square > 0) {
      const double off = std::max(0.0, sqrt(error) - of_values) / sqrt(square);
      if (off > row_worst) row_worst = off, worst_at = row, square_there = square;
    } else {
      strange += error != 0;  // a row that sees nothing is exactly zero
    }
    const float a = want.lse[row], b = got.lse[row];
    if (!std::isfinite(a) || !std::isfinite(b))
      strange += a != b;  // NaN always
    else if (const double off = fabs(a - b) - exp2(-23) * fabs(a); !(off <= lse_worst))
      lse_worst = off;
  }
  const double total = total_square > 0 ? sqrt(total_error / total_square) : 0;
  check(strange == 0, "%s, %s: %lld values not finite, or empty on one side only", name_.c_str(), what,
        static_cast<long long>(strange));
  check(row_worst <= row_gate(c_, half_queries) && total <= total_gate,
        "%s, %s: worst row %.2e, %lld of %lld and %.2f times as long as others, whole %.2e", name_.c_str(),
        what, row_worst, static_cast<long long>(worst_at), static_cast<long long>(rows * heads),
        sqrt(square_there * static_cast<double>(rows * heads) / total_square), total);
  const double logits = half_queries ? logit_rounding(c_) : 0.0;
  check(lse_worst <= kLseGate + kWorst * logits, "%s, %s: lse differs by %.2e", name_.c_str(), what,
        lse_worst);
  worst_row = std::max(worst_row, row_worst);
  worst_total = std::max(worst_total, total);
  worst_lse = std::max(worst_lse, lse_worst);
  rows_compared += rows * heads;
}

void Pair::compare_masked(bool ranges, bool tree, bool alibi, double total_gate) {
  char what[40];
  snprintf(what, sizeof what, "masks %d%d%d", ranges, tree, alibi);
  masks_ = tq::test::random_masks(rows_, cpu_.config.num_q_heads, ranges, tree, alibi, [this](int n) {
    return static_cast<int>(mix64(c_.seed * 104729 + ++turn_) % static_cast<uint64_t>(n));
  });
  compare_attention(what, default_params(), total_gate);
  masks_ = {};
}

void Pair::compare_reads() {
  for (int i = 0; i < num_targets; i++) {
    const std::vector<uint8_t> a = cpu_.read(0, ids_[0][i]), b = gpu_.read(0, ids_[1][i]);
    int64_t wrong = 0, first = -1;
    for (size_t at = 0; at < a.size() && at < b.size(); at++)
      if (a[at] != b[at] && wrong++ == 0) first = static_cast<int64_t>(at);
    check(wrong == 0 && a.size() == b.size(),
          "%s: decoded values of length %lld: %lld bytes differ, the first at %lld", name_.c_str(),
          static_cast<long long>(lengths[i]), static_cast<long long>(wrong), static_cast<long long>(first));
  }
}

// Pages are whole by now: the pools must be equal, unused pages zero on both.
void Pair::compare_pools() {
  const std::vector<uint8_t> a = cpu_.pool.host(), b = gpu_.pool.host();
  int64_t wrong = 0, first = -1, written = 0;
  for (size_t at = 0; at < a.size() && at < b.size(); at++) {
    written += a[at] != 0;
    if (a[at] != b[at] && wrong++ == 0) first = static_cast<int64_t>(at);
  }
  // The device's pool may be rounded up to its alignment.
  const size_t rounding = std::max(a.size(), b.size()) - std::min(a.size(), b.size());
  check(wrong == 0 && rounding < 256 && written > 0,
        "%s: stored bytes: %lld of %zu differ, the first at %lld (page of %lld bytes)", name_.c_str(),
        static_cast<long long>(wrong), a.size(), static_cast<long long>(first),
        static_cast<long long>(a.size() / static_cast<size_t>(cpu_.num_pages)));
}

// From either cache to either: a copy reads and attends as the sequence of that cache does, bit for bit.
void Pair::compare_copies() {
  ApiCache* caches[2] = {&cpu_, &gpu_};
  int compared = 0;
  for (int i = 0; i < num_targets && compared < 3; i++) {
    if (lengths[i] < 60 || lengths[i] > 300) continue;
    compared++;
    for (int pair = 1; pair < 4; pair++) {
      const int from = pair % 2, to = pair / 2;
      tq_sequence copy = 0;
      API_MUST(tq_sequence_copy(caches[from]->cache, ids_[from][i], caches[to]->cache, nullptr, &copy));
      check(caches[to]->read(0, copy) == caches[to]->read(0, ids_[to][i]),
            "%s: a copy of %lld tokens from %d to %d reads otherwise", name_.c_str(),
            static_cast<long long>(lengths[i]), from, to);
      const Rows q(source(2), 2, true);
      q.fill(source(2), {RowRun{1000, static_cast<int64_t>(c_.seed), 0, 2}});
      const Memory host_q = q.on(TQ_DEVICE_CPU);
      tq_attend_params params = default_params();
      params.q_token_stride = q.token_stride;
      params.q_head_stride = q.head_stride;
      AttendOutput rows[2];
      for (int own = 0; own < 2; own++) {
        caches[to]->plan({own ? ids_[to][i] : copy}, {0}, {2});
        rows[own] = caches[to]->attend(0, to ? q.memory.get() : host_q.get(), params);
      }
      check(same_output(rows[0], rows[1]), "%s: a copy of %lld tokens from %d to %d attends otherwise",
            name_.c_str(), static_cast<long long>(lengths[i]), from, to);
      API_MUST(tq_sequence_free(caches[to]->cache, copy, nullptr));
    }
  }
}

void Pair::free_decoy() {
  for (int i = num_targets; i < num_all; i++) {
    if (freed_[i]) continue;
    API_MUST(tq_sequence_free(cpu_.cache, ids_[0][i], nullptr));
    API_MUST(tq_sequence_free(gpu_.cache, ids_[1][i], nullptr));
    freed_[i] = true;
    return;
  }
}

void conform(const Case& c) {
  const std::vector<int64_t> targets = edge_lengths(c.page_size);
  Pair pair(c, targets);
  // Rounds of ragged pieces; decoys take whole pages between them and are freed along the way, so that pages
  // interleave and come back used.
  const int rounds = 5;
  for (int round = 0; round < rounds; round++) {
    std::vector<int64_t> pieces(pair.num_all, 0), queries(pair.num_all, 0);
    for (int i = 0; i < pair.num_targets; i++) {
      const int64_t left = targets[i] - 1 - pair.lengths[i], share = left / (rounds - round);
      pieces[i] = round == rounds - 1
                      ? left
                      : std::min<int64_t>(left, static_cast<int64_t>(mix64(c.seed * 31 + round * 1000 + i) %
                                                                     (2 * share + 2)));
    }
    for (int i = pair.num_targets; i < pair.num_all; i++) pieces[i] = c.page_size * ((i + round) % 2);
    pair.grow(pieces, queries);
    if (round >= 2) pair.free_decoy();
  }
  // The last token, and queries: mostly one, sometimes more than the new tokens.
  std::vector<int64_t> ones(pair.num_all, 1), queries(pair.num_all, 1);
  for (int i = 0; i < pair.num_targets; i++)
    queries[i] = i % 5 == 4 ? std::min<int64_t>(targets[i], 1 + i % 7) : i % 11 == 10 ? 0 : 1;
  pair.grow(ones, queries);
  tq_attend_params params = default_params();
  pair.compare_attention("attend", params);
  params.history_only = 1;
  pair.compare_attention("history only", params);
  params = default_params();
  params.sliding_window = 70;
  params.logit_softcap = 4.0f;
  static const float some = 0;
  params.sink_logits = &some;  // stands for "with"
  pair.compare_attention("sliding window, soft-cap, sink logits", params);
  for (int kinds = 1; kinds < 4; kinds++) pair.compare_masked(kinds & 1, false, kinds & 2);
  pair.compare_reads();
  // Up to whole pages, several rows of queries each.
  std::vector<int64_t> pieces(pair.num_all, 0);
  for (int i = 0; i < pair.num_targets; i++) {
    pieces[i] = (c.page_size - pair.lengths[i] % c.page_size) % c.page_size;
    queries[i] = i % 3 == 0 ? std::min<int64_t>(pair.lengths[i] + pieces[i], 1 + i % 20) : 0;
  }
  pair.grow(pieces, queries);
  pair.compare_attention("drafts and extends", default_params());
  pair.compare_pools();
  pair.compare_copies();
  // Many queries of a few sequences over what is stored, others beside them: rows that the GPU may give to
  // its prefill kernel, whose weights are halves (2^-11 of each), so that the gate of a row is that of the
  // whole.
  for (int i = 0; i < pair.num_targets; i++) {
    pieces[i] = 0;
    const bool many = targets[i] == 2049 || targets[i] == 1025 || targets[i] == 129 || targets[i] == 33;
    queries[i] = many ? std::min<int64_t>(pair.lengths[i], 290) : i % 4 == 0;
  }
  pair.grow(pieces, queries);
  pair.compare_attention("many queries", default_params(), kRowGate);
  params = default_params();
  params.sliding_window = 200;
  pair.compare_attention("many queries, sliding window", params, kRowGate);
  for (int kinds = 1; kinds < 4; kinds++) pair.compare_masked(kinds & 1, false, kinds & 2, kRowGate);
  // Drafts of trees, one of them long; some sequences ask nothing.
  for (int i = 0; i < pair.num_all; i++) {
    pieces[i] = i == 0 ? 128 : i < pair.num_targets ? 3 + i % 2 * 9 : 0;
    queries[i] = i % 4 == 3 ? 0 : pieces[i];
  }
  pair.grow(pieces, queries);
  for (int kinds = 0; kinds < 4; kinds++) pair.compare_masked(kinds & 1, true, kinds & 2);
}

// A process that fork() made has the cache's addresses and none of its device: every call says so, and the
// destroy calls return at once.
void forked() {
  tq_cache_config config = api_config(64, 64, 4, 4, 2, 1, TQ_F16);
  config.max_tokens = 64;
  ApiCache cache(config, TQ_DEVICE_CUDA);
  const tq_sequence id = cache.sequence();
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    int64_t length = -1;
    tq_sequence other = 0;
    bool right = tq_sequence_length(cache.cache, id, &length) == TQ_ERROR_INVALID_STATE && length == -1;
    right &= strstr(tq_last_error(), "cache: created in process ") != nullptr;
    right &= tq_sequence_create(cache.cache, &other) == TQ_ERROR_INVALID_STATE && other == 0;
    right &= tq_batch_rows(cache.batch, nullptr, nullptr, nullptr) == TQ_ERROR_INVALID_STATE;
    right &= tq_cache_destroy(cache.cache) == TQ_ERROR_INVALID_STATE;  // its batch lives
    right &= tq_batch_destroy(cache.batch) == TQ_OK && tq_cache_destroy(cache.cache) == TQ_OK;
    _exit(right ? 0 : 1);
  }
  int status = -1;
  check(child > 0 && waitpid(child, &status, 0) == child && status == 0, "forked process: status %#x",
        status);
  int64_t length = -1;
  check(tq_sequence_length(cache.cache, id, &length) == TQ_OK && length == 0, "the parent's cache");
}

}  // namespace

int main(int argc, char** argv) {
  quick = argc > 1 && !strcmp(argv[1], "--quick");
  const int first = argc > 2 + quick ? atoi(argv[1 + quick]) : 0,
            last = argc > 2 + quick ? first + atoi(argv[2 + quick]) : 1000;
  const int dtypes[] = {TQ_F16, TQ_BF16, TQ_F32}, groups[] = {4, 1, 8, 3, 16, 2},
            pages[] = {64, 32, 96, 64, 512, 128};
  if (first == 0) forked();
  int index = 0;
  for (const Shape& shape : shapes()) {
    const int at = index++;
    if (at < first || at >= last) continue;
    Case c = {shape,
              dtypes[at % 3],
              groups[at % 6],
              1 + at % 2,
              pages[(at / 2) % 6],
              0,
              0,
              0,
              at % 4 == 3,
              at % 2 == 1 && turns_keys(shape),
              static_cast<uint64_t>(100 + at)};
    if (at % 3 == 1) c.window = 50, c.sinks = 4, c.rollback = 9;
    if (at % 9 == 5) c.sinks = 33;
    const int64_t failed = tally().failed;
    try {
      conform(c);
    } catch (const std::exception& error) {
      check(false, "%s: %s", name_of(c).c_str(), error.what());
    }
    if (tally().failed > failed) printf("FAILED case %d: %s\n", at, name_of(c).c_str());
    fflush(stdout);
  }
  printf(
      "   %d configurations, %lld rows: worst row %.2e, worst whole %.2e, worst lse %.2e between CPU and "
      "GPU\n",
      index, static_cast<long long>(rows_compared), worst_row, worst_total, worst_lse);
  return gpu_test::finish("conformance_test");
}
