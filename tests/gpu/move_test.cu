// SPDX-License-Identifier: Apache-2.0
// Tokens taken out of sequences on the GPU: what stays decodes to the same bits as on the CPU, and, without
// exact copies, reads and attends as a fresh sequence does to which only these tokens were appended. Random
// removals and selections, with forks that share pages.  move_test [--quick]
#include <random>
#include <string>

#include "modes.cuh"

namespace {

using namespace gpu_test;

struct Case {
  int head_dim, value_dim, key_bits, value_bits, dtype, page_size, window, sinks, rollback;
  int key_family = 0, value_family = 0;
  std::vector<int32_t> bands = {};
};
const Case kCases[] = {
    {128, 128, 4, 4, TQ_F16, 64, 0, 0, 0},
    {64, 64, 3, 2, TQ_BF16, 32, 0, 0, 0},
    {80, 80, 5, 6, TQ_F16, 32, 0, 0, 0},
    {96, 96, 2, 8, TQ_F32, 96, 0, 0, 0},
    {192, 128, 8, 3, TQ_F16, 64, 0, 0, 0},
    {128, 128, 16, 4, TQ_F32, 64, 0, 0, 0},
    {256, 256, 6, 5, TQ_BF16, 128, 0, 0, 0},
    {128, 128, 4, 3, TQ_F32, 64, 40, 6, 10},
    {64, 64, 16, 16, TQ_F16, 32, 0, 5, 0},
    {576, 512, 4, 4, TQ_F32, 32, 33, 0, 0},
    {64, 64, 4, 3, TQ_F16, 32, 0, 0, 0, TQ_CODE_PROD, TQ_CODE_GROUPED},
    {96, 96, 3, 2, TQ_F32, 64, 9, 4, 5, TQ_CODE_LEVELS, TQ_CODE_LEVELS},
    {128, 128, 3, 2, TQ_F16, 64, 0, 0, 0, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS},
    {128, 128, 4, 3, TQ_F16, 64, 20, 4, 5, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS, {5, 4, 2, 1}},
    {80, 80, 4, 4, TQ_F32, 32, 0, 0, 0, 0, 0, {6, 3, 1}},
};

constexpr int kSequences = 3, kLongest = 400, kLayers = 2;

class World {
 public:
  World(const Case& c, unsigned seed)
      : c_(c),
        mode_({c.head_dim,
               c.value_dim,
               {c.key_family, c.key_bits},
               {c.value_family, c.value_bits},
               0,
               0,
               c.bands}),
        random_(seed),
        cpu_(config(c), TQ_DEVICE_CPU),
        gpu_(config(c), TQ_DEVICE_CUDA) {
    for (int side = 0; side < 3; side++)
      for (int layer = 0; layer < kLayers; layer++)
        sources_[side][layer] =
            RowSource{seed, c.dtype, side, layer, 2, side == 1 ? c.value_dim : c.head_dim, 1};
    for (int i = 0; i < kSequences; i++) {
      Sequence s;
      for (int device = 0; device < 2; device++) s.id[device] = cache(device).sequence();
      sequences_.push_back(s);
    }
  }

  void step() {
    Sequence& s = sequences_[pick(kSequences)];
    const int64_t length = static_cast<int64_t>(s.tokens.size());
    switch (pick(length < 40 ? 2 : 7)) {
      case 0:
      case 1:
        grow(s, numbers(std::min<int64_t>(kLongest - length, pick(3) == 0 ? pick(150) : 1 + pick(40))));
        break;
      case 2: fork(s); break;
      case 3:
      case 4: remove(s); break;
      default: select(s);
    }
    compare(s);
  }
  int64_t moves() const { return moves_; }

 private:
  struct Sequence {
    tq_sequence id[2];
    std::vector<int64_t> tokens;  // their numbers: what they hold follows
  };

  tq_cache_config config(const Case& c) const {
    tq_cache_config config = api_config(c.head_dim, c.value_dim, c.key_bits, c.value_bits, 2, 2, c.dtype);
    mode_.apply(&config);
    config.num_layers = kLayers;
    config.page_size = c.page_size;
    config.window_tokens = c.window;
    config.sink_tokens = c.sinks;
    config.rollback_tokens = c.rollback;
    config.max_sequences = kSequences + 1;
    config.max_tokens = (kSequences + 2) * kLongest;
    config.max_sequence_tokens = kLongest;
    return config;
  }
  ApiCache& cache(int device) { return device ? gpu_ : cpu_; }
  int64_t pick(int64_t n) { return n > 0 ? static_cast<int64_t>(random_() % static_cast<uint64_t>(n)) : 0; }
  std::vector<int64_t> numbers(int64_t count) {
    std::vector<int64_t> made;
    for (int64_t i = 0; i < count; i++) made.push_back(made_++);
    return made;
  }

  void append(int device, tq_sequence id, const std::vector<int64_t>& tokens) {
    const int64_t count = static_cast<int64_t>(tokens.size());
    std::vector<RowRun> runs;
    for (int64_t i = 0; i < count; i++) {
      if (i > 0 && runs.back().token + runs.back().count == tokens[i])
        runs.back().count++;
      else
        runs.push_back(RowRun{0, tokens[i], i, 1});
    }
    cache(device).plan({id}, {count}, {1});
    for (int layer = 0; layer < kLayers && count > 0; layer++) {
      const Rows k(sources_[0][layer], count, false), v(sources_[1][layer], count, false);
      k.fill(sources_[0][layer], runs);
      v.fill(sources_[1][layer], runs);
      const Memory host_k = device ? Memory() : k.on(TQ_DEVICE_CPU),
                   host_v = device ? Memory() : v.on(TQ_DEVICE_CPU);
      cache(device).append(layer, device ? k.memory.get() : host_k.get(),
                           device ? v.memory.get() : host_v.get(), k, v);
    }
    GPU_MUST(cudaDeviceSynchronize());
  }
  void grow(Sequence& s, const std::vector<int64_t>& tokens) {
    if (tokens.empty()) return;
    for (int device = 0; device < 2; device++) append(device, s.id[device], tokens);
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
  }
  void fork(const Sequence& s) {
    Sequence& other = sequences_[pick(kSequences)];
    if (&other == &s) return;
    for (int device = 0; device < 2; device++) {
      API_MUST(tq_sequence_free(cache(device).cache, other.id[device], nullptr));
      API_MUST(tq_sequence_fork(cache(device).cache, s.id[device], nullptr, &other.id[device]));
    }
    other.tokens = s.tokens;
    compare(other);
  }
  void remove(Sequence& s) {
    const int64_t length = static_cast<int64_t>(s.tokens.size());
    int64_t first = pick(length), count = 1 + pick(length - first);
    if (pick(3) == 0) first = first / 32 * 32;
    if (pick(3) == 0) count = std::min<int64_t>(length - first, (count + 31) / 32 * 32);
    if (pick(3) == 0) count = 1;
    const tq_status status = tq_sequence_remove(cpu_.cache, s.id[0], first, count, nullptr);
    check(tq_sequence_remove(gpu_.cache, s.id[1], first, count, nullptr) == status, "remove: CPU %d", status);
    if (status == TQ_OK) s.tokens.erase(s.tokens.begin() + first, s.tokens.begin() + first + count);
    moves_++;
  }
  void select(Sequence& s) {
    std::vector<int64_t> kept, tokens;
    const int64_t drop = 2 + pick(10);
    for (int64_t i = 0; i < static_cast<int64_t>(s.tokens.size()); i++)
      if (pick(drop) > 0) kept.push_back(i), tokens.push_back(s.tokens[i]);
    const int64_t count = static_cast<int64_t>(kept.size());
    const tq_status status = tq_sequence_select(cpu_.cache, s.id[0], kept.data(), count, nullptr);
    check(tq_sequence_select(gpu_.cache, s.id[1], kept.data(), count, nullptr) == status, "select: CPU %d",
          status);
    if (status == TQ_OK) s.tokens = tokens;
    moves_++;
  }

  AttendOutput attend(int device, tq_sequence id, int layer) {
    cache(device).plan({id}, {0}, {1});
    const Rows q(sources_[2][layer], 1, false);
    q.fill(sources_[2][layer], {RowRun{7, 0, 0, 1}});
    const Memory host = device ? Memory() : q.on(TQ_DEVICE_CPU);
    GPU_MUST(cudaDeviceSynchronize());
    return cache(device).attend(layer, device ? q.memory.get() : host.get(), tq_attend_params{});
  }

  void compare(const Sequence& s) {
    if (s.tokens.empty()) return;
    std::vector<uint8_t> read[2][kLayers];
    for (int device = 0; device < 2; device++)
      for (int layer = 0; layer < kLayers; layer++)
        read[device][layer] = cache(device).read(layer, s.id[device]);
    for (int layer = 0; layer < kLayers; layer++)
      check(read[0][layer] == read[1][layer], "case %d: decoded values, layer %d", number(), layer);
    if (c_.window + c_.sinks > 0) return;
    for (int device = 0; device < 2; device++) {
      const tq_sequence fresh = cache(device).sequence();
      append(device, fresh, s.tokens);
      for (int layer = 0; layer < kLayers; layer++) {
        check(cache(device).read(layer, fresh) == read[device][layer],
              "case %d, device %d: other values than a fresh sequence's, layer %d", number(), device, layer);
        check(same_output(attend(device, s.id[device], layer), attend(device, fresh, layer)),
              "case %d, device %d: other attention than a fresh sequence's, layer %d", number(), device,
              layer);
      }
      API_MUST(tq_sequence_free(cache(device).cache, fresh, nullptr));
    }
  }
  int number() const { return static_cast<int>(&c_ - kCases); }

  const Case& c_;
  ModeConfig mode_;
  std::mt19937_64 random_;
  ApiCache cpu_, gpu_;
  RowSource sources_[3][kLayers];
  std::vector<Sequence> sequences_;
  int64_t made_ = 0, moves_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "--quick";
  try {
    int64_t moves = 0;
    for (const Case& c : kCases) {
      World world(c, static_cast<unsigned>(&c - kCases) + 1);
      for (int i = 0; i < (quick ? 12 : 120); i++) world.step();
      moves += world.moves();
    }
    printf("   %lld removals and selections\n", static_cast<long long>(moves));
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return finish("move_test");
}
