// SPDX-License-Identifier: Apache-2.0
// Pages that an engine owns, on a CUDA device. The work lists that the device writes are those of the host,
// byte for byte. Steps of random requests: the bytes of all pages are those that the CPU's codec leaves, what
// is decoded and attended has the bits of a CUDA cache with the same tokens, whatever padding, holes, stale
// entries, orders of blocks and bounds stand around. One captured step is replayed with other arrays.
//   paged_test [--quick | --small | --tiny | --latent | --case NUMBER]
#include <iterator>
#include <memory>

#include "cuda/arena.h"
#include "cuda/paged/launch.h"
#include "paged_slots.cuh"
#include "tests/masks.h"
#include "tests/uniform_geometry.h"

namespace {

using namespace gpu_test;

constexpr double kTotalGate = 1e-3;  // conformance_test.cu: of rows that the prefill kernel may have

int num_multiprocessors() {
  int count = 0, device = 0;
  GPU_MUST(cudaGetDevice(&device));
  GPU_MUST(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// ---- Lists ----

struct Lists {
  std::mt19937 random{7};
  int pick(int64_t below) { return static_cast<int>(random() % static_cast<uint64_t>(below)); }

  static tq::UniformGeometry geometry(int kv_heads, int q_per_kv) {
    tq::UniformGeometry g;
    g.num_layers = 1;
    g.num_kv_heads = kv_heads;
    g.q_per_kv = q_per_kv;
    g.num_q_heads = kv_heads * q_per_kv;
    g.head_dim = g.value_dim = 64;
    g.page_size = 64;
    g.num_groups = 1;
    g.groups[0] = tq::PageGroup{64, 0, 1};
    g.num_threads = 1;
    g.set_layers(4, 4);
    return g;
  }
  struct Plan {
    tq::cuda::paged::PlanPlaces places;
    std::vector<uint8_t> bytes;
    bool noticed;
  };
  // A step's plan, made by the device.
  static Plan plan(const tq::Geometry& g, const EngineStep& s) {
    tq::PagedStep step = {};
    step.num_reqs = s.requests();
    step.max_query_len = s.max_query_len;
    step.max_seq_len = s.max_seq_len;
    step.num_tokens = s.tokens;
    const Memory lens = on_device(TQ_DEVICE_CUDA, s.lens), starts = on_device(TQ_DEVICE_CUDA, s.starts);
    step.seq_lens = lens.as<int32_t>();
    step.query_start_loc = starts.as<int32_t>();
    const int ctas = num_multiprocessors();
    const tq::cuda::paged::PlanPlaces places = tq::cuda::paged::plan_places(g, step, ctas);
    Memory workspace(TQ_DEVICE_CUDA, static_cast<size_t>(places.total)), noticed(TQ_DEVICE_CUDA, 4);
    workspace.fill(0xA7);
    noticed.fill(0);
    tq::cuda::paged::launch_plan(g, step, ctas, workspace.as<uint8_t>(), noticed.as<uint32_t>(), false,
                                 nullptr);
    Plan made = {places, workspace.host(), false};
    made.noticed = noticed.host() != std::vector<uint8_t>(4, 0);
    return made;
  }

  void one(int round) {
    tq::UniformGeometry g = geometry(1 + pick(8), 1 + pick(8));
    g.batch_invariant = pick(4) == 0;
    const int most = round % 3 == 0 ? 1 : 1 + pick(400),
              count = round % 7 == 6 ? 300 + pick(300) : 1 + pick(40);
    EngineStep s;
    std::vector<tq::StepSequence> sequences;
    for (int i = 0; i < count; i++) {
      const int length = pick(9) == 0 ? 0 : pick(3) == 0 ? 1 + pick(200000) : 1 + pick(3000);
      const int queries = pick(8) == 0 ? 0 : 1 + pick(most);
      tq::StepSequence q = {};
      q.page_row = q.raw_slot = i;
      q.old_length = std::max(length - queries, 0);
      q.new_tokens = length - q.old_length;
      q.query_tokens = length > 0 ? queries : 0;
      q.q_row = s.starts.back();
      q.raw_first = length;
      sequences.push_back(q);
      s.lens.push_back(length);
      s.starts.push_back(s.starts.back() + queries);
    }
    s.tokens = s.starts.back() + pick(3);
    s.bound();
    const int ctas = num_multiprocessors();
    const Plan made = plan(g, s);
    const std::vector<uint8_t>& plan = made.bytes;
    const tq::cuda::paged::PlanPlaces& places = made.places;
    check(!made.noticed, "round %d: a right step was noticed", round);

    g.max_batch_sequences = count;
    g.max_batch_tokens = s.tokens;
    g.groups[0].max_sequence_pages = s.max_seq_len / 64 + 1;
    const tq::StepRows rows = {count, sequences.data(), 0, s.tokens};
    const auto same = [&](const std::vector<uint8_t>& host, int64_t used, tq::cuda::paged::ListKind kind,
                          const char* what) {
      const uint8_t* device = tq::cuda::paged::list_at(places, plan.data(), 0, kind);
      int64_t at = 0;
      while (at < used && host[static_cast<size_t>(at)] == device[at]) at++;
      check(at == used, "round %d, %s: byte %lld of %lld is %d, not %d (%d requests)", round, what,
            static_cast<long long>(at), static_cast<long long>(used), device[std::min(at, used - 1)],
            host[static_cast<size_t>(std::min(at, used - 1))], count);
    };
    std::vector<uint8_t> all(static_cast<size_t>(tq::cuda::work_capacity(g, ctas)));
    same(all, tq::cuda::build_work(g, g.heads(), rows, ctas, all.data(), false, false),
         tq::cuda::paged::ListKind::kAll, "all");
    const bool may = tq::cuda::paged::may_be_long(g, g.heads(), s.max_query_len);
    if (may) {
      std::vector<uint8_t> pair(static_cast<size_t>(tq::cuda::pair_capacity(g, ctas)));
      const int64_t used = tq::cuda::build_pair(g, g.heads(), rows, ctas, pair.data(), false),
                    place = tq::cuda::work_capacity(g, ctas);
      const tq::cuda::WorkHeader& header = *reinterpret_cast<const tq::cuda::WorkHeader*>(pair.data());
      same(pair, tq::cuda::work_bytes(ctas, header.num_sequences), tq::cuda::paged::ListKind::kShort,
           "short");
      same(std::vector<uint8_t>(pair.begin() + place, pair.end()), used - place,
           tq::cuda::paged::ListKind::kLong, "long");
    }
    idle(s, plan.data() + places.idle, round);
  }

  // Starts that fall, so that requests ask more rows than there are: no entry beyond the list's room.
  void falling() {
    EngineStep s;
    s.lens.assign(99, 16385);  // two queries, a border between them
    for (size_t i = 1; i <= s.lens.size(); i++) s.starts.push_back(static_cast<int32_t>(2 * i % 42));
    s.bound();
    s.tokens = 40;
    const Plan made = plan(geometry(1, 1), s);
    check(made.noticed, "starts that fall: not noticed");
    const tq::cuda::WorkHeader& header = *reinterpret_cast<const tq::cuda::WorkHeader*>(
        tq::cuda::paged::list_at(made.places, made.bytes.data(), 0, tq::cuda::paged::ListKind::kAll));
    check(header.num_sequences == 0 && header.num_slots == 0, "starts that fall: %d entries",
          header.num_sequences);
  }

  // Rows that no request asks, each once.
  void idle(const EngineStep& s, const uint8_t* plan, int round) {
    std::vector<int> want(static_cast<size_t>(s.tokens), 1), have(want.size(), 0);
    for (size_t i = 0; i < s.lens.size(); i++)
      if (s.lens[i] > 0)
        for (int row = s.starts[i]; row < s.starts[i + 1]; row++) want[static_cast<size_t>(row)] = 0;
    const tq::cuda::IdleRows* ranges = reinterpret_cast<const tq::cuda::IdleRows*>(plan);
    for (int i = 1; i <= ranges[0].count; i++)
      for (int row = ranges[i].first; row < ranges[i].first + ranges[i].count; row++)
        have[static_cast<size_t>(row)]++;
    check(want == have, "round %d: idle rows", round);
  }
};

// ---- Steps ----

struct Case {
  int head_dim, value_dim, key_bits, value_bits, q_heads, kv_heads, dtype, page_size, block_size, window;
  bool centres, other_heads;
  int key_family = 0, value_family = 0;
  bool latent = false;
  int bands = 0;  // of keys: the digits are their widths
};
const Case kCases[] = {
    {128, 128, 4, 4, 8, 2, TQ_F16, 64, 64, 0, false, true},
    {64, 64, 3, 2, 4, 4, TQ_BF16, 32, 32, 40, true, false},
    {80, 80, 5, 16, 6, 2, TQ_F16, 32, 96, 0, false, false},
    {192, 128, 8, 3, 4, 1, TQ_F32, 96, 32, 0, true, false},
    {128, 128, 2, 2, 7, 1, TQ_BF16, 64, 128, 70, true, true},
    {96, 96, 16, 16, 2, 2, TQ_F32, 32, 64, 0, false, false},
    {64, 64, 3, 4, 4, 2, TQ_F16, 64, 64, 40, true, false, TQ_CODE_PROD, TQ_CODE_GROUPED},
    {128, 128, 1, 1, 4, 2, TQ_BF16, 32, 64, 0, true, false},
    {128, 128, 3, 3, 4, 2, TQ_F16, 64, 64, 0, true, false, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS},
    {128, 128, 4, 3, 4, 2, TQ_F16, 64, 64, 0, true, false, TQ_CODE_TRELLIS, TQ_CODE_TRELLIS, false, 5421},
    {576, 512, 8, 4, 16, 1, TQ_BF16, 64, 64, 0, true, false, 0, 0, true},
    {576, 512, 16, 3, 40, 1, TQ_F32, 32, 96, 70, false, false, 0, 0, true},
    {576, 512, 4, 4, 6, 2, TQ_F16, 64, 32, 0, false, true, 0, 0, true},
};
constexpr int kLatentCases = 3;  // the last ones
#ifdef TQ_EMULATE                // rows of 576 take their time
constexpr int kLatentSteps = 2;
#else
constexpr int kLatentSteps = 3;
#endif
constexpr int kSequences = 5;
constexpr int64_t kBlocks = 70;

// What a step asks of a sequence: padding where sequence < 0.
struct Ask {
  int sequence;
  int tokens;
};

class World {
 public:
  World(const Case& c, int number)
      : c_(c),
        config_(config(c)),
        cache_(cache_config(config_), TQ_DEVICE_CUDA),
        device_(config_, TQ_DEVICE_CUDA, form(c, number)),
        host_(config_, TQ_DEVICE_CPU, form(c, number)),
        random_(static_cast<unsigned>(number)) {
    for (int i = 0; i < kSequences; i++) ids_.push_back(cache_.sequence());
    for (int32_t block = 0; block < form(c, number).num_blocks; block++) free_.push_back(block);
    std::shuffle(free_.begin(), free_.end(), random_);
    for (int l = 0; c.centres && l < num_layers(); l++) {
      std::vector<float> key(static_cast<size_t>(layer(l).num_kv_heads * c.head_dim)),
          value(static_cast<size_t>(layer(l).num_kv_heads * c.value_dim));
      for (std::vector<float>* side : {&key, &value})
        for (float& x : *side) x = static_cast<float>(pick(201) - 100) * 0.01f;
      const float* const own = c.latent ? nullptr : value.data();
      API_MUST(tq_cache_set_centres(cache_.cache, l, key.data(), own));
      for (Engine* engine : {&device_, &host_})
        API_MUST(tq_codec_set_centres(engine->codec, l, key.data(), own));
    }
    uint64_t prints[2];
    API_MUST(tq_cache_fingerprint(cache_.cache, &prints[0]));
    API_MUST(tq_codec_fingerprint(device_.codec, &prints[1]));
    check(prints[0] == prints[1], "%s: fingerprints", name());
  }

  void run(int rounds) {
    step({{0, c_.latent ? kFirstLatents : 300}, {1, 45}}, 0);
    for (int round = 1; round < rounds; round++) {
      std::vector<Ask> asks;
      const int kind = round % 4;
      for (int i = 0; i < kSequences; i++) {
        if (pick(6) == 0) asks.push_back(Ask{-1, pick(3)});
        if (kind != 3 && pick(5) == 0) continue;
        const int64_t room = kLongest - lengths_[i];
        const int64_t tokens = kind == 1 ? 1 : kind == 2 ? 1 + pick(9) : kind == 3 ? 1 : 1 + pick(150);
        if (room < 1) continue;
        asks.push_back(Ask{i, static_cast<int>(std::min(tokens, room))});
      }
      if (kind == 3 && lengths_[2] + 140 <= kLongest) asks.push_back(Ask{2 + kSequences, 140});
      std::vector<Ask> once;  // a sequence asks once in a step
      for (const Ask& ask : asks) {
        Ask own = ask;
        if (own.sequence >= kSequences) own.sequence -= kSequences;
        bool there = false;
        for (Ask& other : once)
          if (own.sequence >= 0 && other.sequence == own.sequence) other.tokens = own.tokens, there = true;
        if (!there) once.push_back(own);
      }
      std::shuffle(once.begin(), once.end(), random_);
      step(once, round);
    }
    compare_reads();
    check(device_.noticed() == 0, "%s: noticed something", name());
  }

 private:
  static constexpr int64_t kLongest = 700;
#ifdef TQ_EMULATE  // rows of 576 take their time
  static constexpr int kFirstLatents = 40;
#else
  static constexpr int kFirstLatents = 600;
#endif

  static tq_cache_config config(const Case& c) {
    static tq_layer_config layers[2];
    tq_cache_config config =
        api_config(c.head_dim, c.value_dim, c.key_bits, c.value_bits, c.q_heads, c.kv_heads, c.dtype);
    config.key_family = c.key_family;
    config.value_family = c.value_family;
    config.layer_kind = c.latent ? TQ_LATENT : TQ_KEYS_VALUES;
    config.page_size = c.page_size;
    config.num_layers = 2;
    for (tq_layer_config& l : layers) l = tq_layer_config{}, l.struct_size = sizeof l;
    static int32_t widths[4];
    for (int i = 3, rest = c.bands; i >= 0; i--, rest /= 10) widths[i] = rest % 10;
    static const tq_key_bands bands = {sizeof bands, 4, widths, nullptr};
    for (tq_layer_config& l : layers) l.key_bands = c.bands ? &bands : nullptr;
    layers[1].sliding_window = c.window;
    if (c.other_heads) layers[1].num_q_heads = 3 * (layers[1].num_kv_heads = 3);
    config.layers = layers;
    return config;
  }
  static tq_cache_config cache_config(tq_cache_config config) {
    config.max_sequences = kSequences;
    config.max_sequence_tokens = kLongest + 32;
    config.max_tokens = kSequences * (kLongest + 96);
    config.max_batch_tokens = 2048;
    return config;
  }
  static EngineForm form(const Case& c, int number) {
    return EngineForm{c.block_size, kBlocks * 64 / std::min(c.block_size, 64),
                      number % 2 ? TQ_PAGES_HEADS_FIRST : TQ_PAGES_BLOCKS_FIRST, number % 3 * 64,
                      static_cast<uint8_t>(number % 2 ? 0xFF : 0x35)};
  }
  const char* name() {
    snprintf(name_, sizeof name_, "%sd %d/%d bits %d/%d dtype %d heads %dx%d pages %d blocks %d window %d",
             c_.latent ? "latent " : "", c_.head_dim, c_.value_dim, c_.key_bits, c_.value_bits, c_.dtype,
             c_.q_heads, c_.kv_heads, c_.page_size, c_.block_size, c_.window);
    return name_;
  }
  int pick(int64_t below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }
  int num_layers() const { return cache_.config.num_layers; }
  const tq_layer_config& layer(int l) const { return cache_.config.layers[l]; }
  RowSource source(int l, int side) const {
    return RowSource{11,
                     c_.dtype,
                     side,
                     l,
                     side == 2 ? layer(l).num_q_heads : layer(l).num_kv_heads,
                     side == 1 ? c_.value_dim : c_.head_dim,
                     side == 2 ? 3.0f : 1.0f};
  }
  int64_t slot(int sequence, int64_t token) {
    std::vector<int32_t>& blocks = blocks_[sequence];
    while (static_cast<int64_t>(blocks.size()) * c_.block_size <= token) {
      blocks.push_back(free_.back());
      free_.pop_back();
    }
    return static_cast<int64_t>(blocks[static_cast<size_t>(token / c_.block_size)]) * c_.block_size +
           token % c_.block_size;
  }

  void step(const std::vector<Ask>& asks, int round) {
    std::vector<tq_sequence> ids;
    std::vector<int64_t> tokens;
    std::vector<RowRun> own, engines;
    std::vector<int64_t> row_of;  // the engine's, of the cache's
    std::vector<tq::test::MaskedRows> masked;
    EngineStep s;
    for (const Ask& ask : asks) {
      const int i = ask.sequence;
      const int64_t first = i < 0 ? 0 : lengths_[i];
      if (i >= 0) {
        own.push_back(RowRun{i, first, static_cast<int64_t>(row_of.size()), ask.tokens});
        engines.push_back(RowRun{i, first, s.starts.back(), ask.tokens});
        ids.push_back(ids_[i]);
        tokens.push_back(ask.tokens);
        lengths_[i] += ask.tokens;
        masked.push_back({lengths_[i], ask.tokens, ask.tokens});
      }
      for (int t = 0; t < ask.tokens; t++) {
        s.slots.push_back(i < 0 ? -1 : slot(i, first + t));
        if (i >= 0) row_of.push_back(s.starts.back() + t);
      }
      s.lens.push_back(i < 0 ? 0 : static_cast<int32_t>(lengths_[i]));
      s.starts.push_back(s.starts.back() + ask.tokens);
    }
    s.tokens = s.starts.back() + round % 3;
    s.slots.resize(static_cast<size_t>(s.tokens), -1);
    s.bound();
    s.stride = (s.max_seq_len + c_.block_size - 1) / c_.block_size + 1;
    // rubbish where nothing is seen: behind a sequence's end, in padding
    const int32_t rubbish[] = {-1, INT32_MAX, INT32_MIN, 12345};
    for (const Ask& ask : asks)
      for (int64_t j = 0; j < s.stride; j++) {
        const std::vector<int32_t>* blocks = ask.sequence < 0 ? nullptr : &blocks_[ask.sequence];
        s.table.push_back(blocks && j * c_.block_size < lengths_[ask.sequence]
                              ? (*blocks)[static_cast<size_t>(j)]
                              : rubbish[(j + round) % 4]);
      }
    if (row_of.empty()) return;
    cache_.plan(ids, tokens, tokens);
    host_.plan(s);
    device_.plan(s, round % 2 * 500);
    tq::test::Masks masks =
        tq::test::random_masks(masked, std::max(layer(0).num_q_heads, layer(1).num_q_heads), round % 3 == 2,
                               round % 4 == 2, round % 5 == 3, [&](int n) { return pick(n); });
    for (int l = 0; l < num_layers(); l++) {
      append(l, own, engines, static_cast<int64_t>(row_of.size()), s.tokens);
      attend(l, own, engines, row_of, s.tokens, masks, round);
    }
    compare_pages(round);
  }

  void append(int l, const std::vector<RowRun>& own, const std::vector<RowRun>& engines, int64_t rows,
              int64_t engine_rows) {
    const Rows k(source(l, 0), rows, true), v(source(l, 1), rows, true);
    k.fill(source(l, 0), own);
    v.fill(source(l, 1), own);
    const auto of = [this](const Memory& values) { return c_.latent ? nullptr : values.get(); };
    cache_.append(l, k.memory.get(), of(v.memory), k, v);
    const Rows engine_k(source(l, 0), engine_rows, true), engine_v(source(l, 1), engine_rows, true);
    engine_k.fill(source(l, 0), engines);
    engine_v.fill(source(l, 1), engines);
    device_.append(l, engine_k.memory.get(), of(engine_v.memory), engine_k, engine_v);
    const Memory host_k = engine_k.on(TQ_DEVICE_CPU), host_v = engine_v.on(TQ_DEVICE_CPU);
    host_.append(l, host_k.get(), of(host_v), engine_k, engine_v);
  }

  // Masks of a cache's rows as those of an engine's.
  static tq::test::Masks spread(const tq::test::Masks& masks, const std::vector<int64_t>& row_of,
                                int64_t rows) {
    tq::test::Masks all = masks;
    const auto each = [&](auto& to, const auto& from, size_t words) {
      to.assign(from.empty() ? 0 : static_cast<size_t>(rows) * words, 0);
      for (size_t i = 0; i < row_of.size() && !from.empty(); i++)
        for (size_t w = 0; w < words; w++)
          to[static_cast<size_t>(row_of[i]) * words + w] = from[i * words + w];
    };
    each(all.begin, masks.begin, 1);
    each(all.end, masks.end, 1);
    each(all.tree, masks.tree, static_cast<size_t>(masks.words));
    return all;
  }
  struct MasksOn {
    MasksOn(int device, const tq::test::Masks& m)
        : begin(on_device(device, m.begin)),
          end(on_device(device, m.end)),
          tree(on_device(device, m.tree)),
          slopes(on_device(device, m.slopes)) {}
    Memory begin, end, tree, slopes;
    void pass(const tq::test::Masks& m, tq_attend_params* p) const {
      m.pass(p);
      if (p->visible_begin) p->visible_begin = begin.as<int32_t>(), p->visible_end = end.as<int32_t>();
      if (p->tree_mask) p->tree_mask = tree.as<uint64_t>();
      if (p->alibi_slopes) p->alibi_slopes = slopes.as<float>();
    }
  };

  void attend(int l, const std::vector<RowRun>& own, const std::vector<RowRun>& engines,
              const std::vector<int64_t>& row_of, int64_t engine_rows, const tq::test::Masks& masks,
              int round) {
    const int heads = layer(l).num_q_heads, dim = c_.value_dim;
    const Rows q(source(l, 2), static_cast<int64_t>(row_of.size()), false),
        engine_q(source(l, 2), engine_rows, false);
    q.fill(source(l, 2), own);
    engine_q.fill(source(l, 2), engines);
    tq_attend_params params = default_params();
    if (round % 4 == 1) params.logit_softcap = 4.0f;
    if (round % 5 == 4 && masks.begin.empty())
      params.sliding_window = c_.window > 0 ? std::min(c_.window, 33) : 33;
    if (round % 7 == 3) params.history_only = 1;
    const std::vector<float> sinks(static_cast<size_t>(heads), 0.7f);
    const Memory device_sinks = on_device(TQ_DEVICE_CUDA, sinks);
    const bool with_sinks = round % 2 == 1;
    if (with_sinks) params.sink_logits = device_sinks.as<float>();
    const MasksOn cache_masks(TQ_DEVICE_CUDA, masks);
    cache_masks.pass(masks, &params);
    const AttendOutput want = cache_.attend(l, q.memory.get(), params);
    const tq::test::Masks all = spread(masks, row_of, engine_rows);
    const MasksOn engine_masks(TQ_DEVICE_CUDA, all);
    engine_masks.pass(all, &params);
    const AttendOutput got = device_.attend(l, engine_q.memory.get(), params, heads, dim);
    all.pass(&params);
    if (with_sinks) params.sink_logits = sinks.data();
    const Memory host_q = engine_q.on(TQ_DEVICE_CPU);
    const AttendOutput host = host_.attend(l, host_q.get(), params, heads, dim);
    compare(l, round, want, got, host, row_of, heads, dim);
  }

  void compare(int l, int round, const AttendOutput& want, const AttendOutput& got, const AttendOutput& host,
               const std::vector<int64_t>& row_of, int heads, int dim) {
    int64_t different = 0, padding = 0;
    std::vector<bool> real(got.lse.size(), false);
    for (size_t i = 0; i < row_of.size(); i++) {
      const size_t row = static_cast<size_t>(row_of[i]);
      for (int h = 0; h < heads; h++) real[row * heads + h] = true;
      different += memcmp(&want.lse[i * heads], &got.lse[row * heads], static_cast<size_t>(heads) * 4) != 0 ||
                   memcmp(&want.out[i * heads * dim], &got.out[row * heads * dim],
                          static_cast<size_t>(heads * dim) * 4) != 0;
    }
    double error = 0, square = 0;
    for (size_t i = 0; i < real.size(); i++)
      for (int d = 0; d < dim; d++) {
        const double mine = got.out[i * dim + d], theirs = host.out[i * dim + d];
        if (!real[i])
          padding +=
              memcmp(&got.out[i * dim + d], "\0\0\0\0", 4) != 0 || !std::isinf(got.lse[i]) || got.lse[i] > 0;
        error += (mine - theirs) * (mine - theirs);
        square += theirs * theirs;
      }
    check(different == 0, "%s, round %d, layer %d: %lld rows have other bits than the cache's", name(), round,
          l, static_cast<long long>(different));
    check(padding == 0, "%s, round %d, layer %d: %lld values of padding", name(), round, l,
          static_cast<long long>(padding));
    check(error <= kTotalGate * kTotalGate * std::max(square, 1e-30),
          "%s, round %d, layer %d: %.2e off the CPU's", name(), round, l,
          sqrt(error / std::max(square, 1e-30)));
  }

  void compare_pages(int round) {
    for (int l = 0; l < num_layers(); l++) {
      const std::vector<uint8_t> a = device_.memory[static_cast<size_t>(l)].host(),
                                 b = host_.memory[static_cast<size_t>(l)].host();
      size_t at = 0;
      while (at < a.size() && a[at] == b[at]) at++;
      check(at == a.size(), "%s, round %d, layer %d: byte %zu of the pages is not the CPU's", name(), round,
            l, at);
    }
  }

  void compare_reads() {
    for (int l = 0; l < num_layers(); l++) {
      const int64_t key_row = layer(l).num_kv_heads * c_.head_dim,
                    value_row = layer(l).num_kv_heads * c_.value_dim;
      for (int i = 0; i < kSequences; i++) {
        if (lengths_[i] == 0) continue;
        const int64_t first =
            layer(l).sliding_window > 0 ? std::max<int64_t>(0, lengths_[i] - layer(l).sliding_window + 1) : 0;
        std::vector<int64_t> slots;
        for (int64_t t = first; t < lengths_[i]; t++) slots.push_back(slot(i, t));
        check(device_.read(l, slots, key_row, value_row) == cache_.read(l, ids_[i], first),
              "%s, layer %d: decoded tokens of sequence %d", name(), l, i);
        slots.push_back(-1);
        check(device_.read(l, slots, key_row, value_row) == host_.read(l, slots, key_row, value_row),
              "%s, layer %d: decoded slots of sequence %d", name(), l, i);
      }
    }
  }

  const Case c_;
  tq_cache_config config_;
  ApiCache cache_;
  Engine device_, host_;
  std::mt19937 random_;
  std::vector<tq_sequence> ids_;
  int64_t lengths_[kSequences] = {};
  std::vector<int32_t> blocks_[kSequences], free_;
  char name_[160];
};

}  // namespace

int main(int argc, char** argv) {
  constexpr int kAll = static_cast<int>(std::size(kCases));
  struct Amount {
    const char* name;
    int lists, first_case, end_case, steps, slots, replays;
  };
  const Amount amounts[] = {{"", 600, 0, kAll, 40, 30, 200},
                            {"--quick", 60, 0, kAll, 9, 3, 8},
                            {"--small", 14, 0, 2, 4, 3, 3},
                            {"--tiny", 4, 0, 1, 3, 1, 2},
                            {"--latent", 0, kAll - kLatentCases, kAll, kLatentSteps, 0, 0}};
  Amount much = amounts[0];
  for (const Amount& each : amounts)
    if (argc > 1 && strcmp(argv[1], each.name) == 0) much = each;
  const int only = argc > 2 && !strcmp(argv[1], "--case") ? atoi(argv[2]) : kAll;
  if (only < kAll) much = Amount{"", 0, only, only + 1, 4, 0, 0};
  try {
    Lists lists;
    for (int round = 0; round < much.lists; round++) lists.one(round);
    for (int number = much.first_case; number < much.end_case; number++)
      World(kCases[number], number).run(much.steps);
    if (much.lists == 0) return finish("paged_test");
    lists.falling();
    slots_in_any_order(much.slots);
    out_of_range();
    copies();
    replays(much.replays);
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return finish("paged_test");
}
