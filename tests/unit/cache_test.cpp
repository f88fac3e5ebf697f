// SPDX-License-Identifier: Apache-2.0
// The cache's own duties on a strict fake backend: which plan is in force, what a failing device leaves
// behind, copy-on-write, scrubbing, exact copies after truncation, busy detection.
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "unit/cache_fixture.h"

namespace tq {
namespace {

TEST_F(CacheTest, PlanInForce) {
  open();
  const int64_t a = cache_->create_sequence(), b = cache_->create_sequence();
  EXPECT_EQ(status_of([&] { append(batch_, rows(0, 1)); }), Status::kInvalidState);
  EXPECT_NE(text_.find("no plan was made"), std::string::npos) << text_;
  plan(batch_, {a, b}, {3, 2});
  append(batch_, rows(0, 5));
  append(batch_, rows(0, 5));  // again: allowed
  attend(batch_, 5);

  // A failed plan leaves the old one in force.
  EXPECT_EQ(status_of([&] { plan(batch_, {a}, {1000}); }), Status::kCapacity);
  attend(batch_, 5);
  // Another batch that plans other sequences does not touch it; one that plans one of its sequences does.
  const int64_t c = cache_->create_sequence();
  plan(other_, {c}, {1});
  attend(batch_, 5);
  plan(other_, {b}, {1});
  EXPECT_EQ(status_of([&] { attend(batch_, 5); }), Status::kInvalidState);
  EXPECT_NE(text_.find("sequence " + std::to_string(b) + " was planned in another batch"), std::string::npos)
      << text_;
  plan(batch_, {a}, {1});
  append(batch_, rows(3, 1));
  append(other_, rows(9, 1));  // b's
  cache_->truncate_sequence(b, 1, nullptr);
  EXPECT_EQ(status_of([&] { append(other_, rows(9, 1)); }), Status::kInvalidState);
  EXPECT_NE(text_.find("was truncated"), std::string::npos) << text_;
  attend(batch_, 1);
  cache_->free_sequence(a, nullptr);
  EXPECT_EQ(status_of([&] { attend(batch_, 1); }), Status::kInvalidState);
  EXPECT_NE(text_.find("sequence " + std::to_string(a) + " was freed"), std::string::npos) << text_;
}

TEST_F(CacheTest, BatchOfAnotherCacheIsRefused) {
  open();
  Cache second(&config_, nullptr, fake::create_backend);
  Batch* foreign = second.create_batch();
  EXPECT_EQ(status_of([&] { attend(foreign, 1); }), Status::kInvalidArgument);
  EXPECT_NE(text_.find("batch = "), std::string::npos) << text_;
  Cache::destroy_batch(foreign);
}

// Whatever verb fails inside a plan: lengths, pages, results and the old plan are as before, and the plan
// then succeeds.
TEST_F(CacheTest, FailingDeviceLeavesPlansAndSequencesUnchanged) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  const int64_t b = cache_->fork_sequence(a, nullptr);
  plan(batch_, {a}, {0}, {4});
  const std::vector<float> before = attend(batch_, 4);
  for (const Verb verb : {Verb::kCopyPages, Verb::kUploadPlan}) {
    fail(verb, true);
    EXPECT_EQ(status_of([&] { plan(batch_, {a, b}, {2, 3}); }), Status::kCuda);
    EXPECT_EQ(status_of([&] { plan(other_, {b}, {1}); }), Status::kCuda);
    fail(verb, false);
    EXPECT_STREQ(cache_->audit(), "");
    EXPECT_EQ(cache_->sequence_length(a), 40);
    EXPECT_EQ(cache_->sequence_length(b), 40);
    EXPECT_EQ(cache_->memory().pages_used, 2);
    EXPECT_EQ(attend(batch_, 4), before);
  }
  plan(other_, {b}, {1});
  EXPECT_EQ(world().copied.size(), 3u) << "two by uploads that failed, one now";
  EXPECT_EQ(attend(batch_, 4), before) << "a's plan is untouched by b's";
  append(other_, rows(100, 1));
  EXPECT_EQ(attend(batch_, 4), before);
}

TEST_F(CacheTest, FailingDeviceInSequenceCalls) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 70);
  fail(Verb::kCopySlot, true);
  EXPECT_EQ(status_of([&] { cache_->fork_sequence(a, nullptr); }), Status::kCuda);
  fail(Verb::kCopySlot, false);
  EXPECT_EQ(cache_->memory().num_sequences, 1);
  fail(Verb::kStartSlot, true);
  EXPECT_EQ(status_of([&] { cache_->free_sequence(a, nullptr); }), Status::kCuda);
  fail(Verb::kStartSlot, false);
  EXPECT_EQ(cache_->sequence_length(a), 70);
  EXPECT_STREQ(cache_->audit(), "");
  EXPECT_EQ(read(a, 69, 1)[0], coded(69));
  attend(batch_, 70);  // its plan is still in force
  EXPECT_TRUE(world().scrubbed.empty());

  // Pages that cannot be cleared are not given out: the next plan clears them, or fails.
  const int64_t b = cache_->create_sequence();
  fail(Verb::kScrubPages, true);
  cache_->truncate_sequence(a, 10, nullptr);
  EXPECT_EQ(cache_->sequence_length(a), 10);
  EXPECT_EQ(status_of([&] { plan(other_, {b}, {1}); }), Status::kCuda);
  EXPECT_EQ(status_of([&] { cache_->free_sequence(a, nullptr); }), Status::kCuda);
  EXPECT_EQ(read(a, 9, 1)[0], coded(9));
  fail(Verb::kScrubPages, false);
  EXPECT_TRUE(world().scrubbed.empty());
  plan(other_, {b}, {1});
  EXPECT_EQ(world().scrubbed.size(), 2u);
  fail(Verb::kScrubPages, true);
  cache_->free_sequence(a, nullptr);
  EXPECT_EQ(status_of([&] { plan(other_, {b}, {1}); }), Status::kCuda);
  fail(Verb::kScrubPages, false);
  plan(other_, {b}, {1});
  EXPECT_EQ(world().scrubbed.size(), 3u);
  EXPECT_STREQ(cache_->audit(), "");
}

TEST_F(CacheTest, FailingCreationLeaksNothing) {
  fail(Verb::kCreate, true);
  EXPECT_EQ(status_of([&] { Cache cache(&config_, nullptr, fake::create_backend); }), Status::kCuda);
  fail(Verb::kCreate, false);
  open();
  fail(Verb::kCreatePlanStorage, true);
  EXPECT_EQ(status_of([&] { cache_->create_batch(); }), Status::kCuda);
  fail(Verb::kCreatePlanStorage, false);
  EXPECT_EQ(world().live_storages, 2);
}

TEST_F(CacheTest, ForkCopiesOnWrite) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  const int64_t b = cache_->fork_sequence(a, nullptr);
  EXPECT_EQ(cache_->memory().pages_used, 2);
  grow(b, 100, 10);
  grow(a, 200, 3);
  for (int layer = 0; layer < 2; layer++) {
    EXPECT_EQ(read(a, 39, 2, layer), (std::vector<float>{coded(39), coded(200)}));
    EXPECT_EQ(read(b, 39, 2, layer), (std::vector<float>{coded(39), coded(100)}));
  }
  EXPECT_EQ(cache_->memory().pages_used, 3);
  EXPECT_EQ(world().copied.size(), 1u);
  cache_->free_sequence(a, nullptr);
  EXPECT_EQ(read(b, 0, 1)[0], coded(0)) << "shared pages stay";
}

TEST_F(CacheTest, FreedAndTruncatedPagesAreScrubbed) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 100);  // 4 pages
  const int64_t b = cache_->fork_sequence(a, nullptr);
  cache_->truncate_sequence(a, 33, nullptr);
  EXPECT_TRUE(world().scrubbed.empty()) << "b still holds them";
  cache_->free_sequence(b, nullptr);
  EXPECT_EQ(world().scrubbed.size(), 2u);
  EXPECT_EQ(world().started.size(), 1u);
  cache_->truncate_sequence(a, 32, nullptr);
  EXPECT_EQ(world().scrubbed.size(), 3u);
  Cache::destroy_batch(batch_);
  Cache::destroy_batch(other_);
  batch_ = other_ = nullptr;
  cache_.reset();
  EXPECT_EQ(world().scrubbed.size(), 4u) << "destroying scrubs what lives";
}

TEST_F(CacheTest, NothingIsScrubbedWhenToldNotTo) {
  config_.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 100);
  cache_->truncate_sequence(a, 1, nullptr);
  cache_->free_sequence(a, nullptr);
  EXPECT_TRUE(world().scrubbed.empty());
  EXPECT_EQ(world().started.size(), 1u) << "flags are cleared all the same";
}

TEST_F(CacheTest, WindowAndSinksAreExact) {
  config_.window_tokens = 4;
  config_.rollback_tokens = 3;
  config_.sink_tokens = 2;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  plan(batch_, {a}, {0}, {1});  // the queries before needed more copies
  const auto expect = [&](int64_t id, int64_t length, int64_t window) {
    const bool whole = window <= std::max<int64_t>(config_.sink_tokens, length - config_.window_tokens);
    EXPECT_EQ(cache_->sequence_flags(id), whole ? 0u : TQ_NOTICED_SHORT_WINDOW) << length;
    const std::vector<float> all = read(id, 0, length);
    for (int64_t i = 0; i < length; i++)
      EXPECT_EQ(all[static_cast<size_t>(i)], i < 2 || i >= window ? exact(i) : coded(i))
          << i << " of " << length;
  };
  expect(a, 40, 36);
  const int64_t b = cache_->fork_sequence(a, nullptr);
  expect(b, 40, 36);
  cache_->truncate_sequence(a, 37, nullptr);  // 3 back: the window is whole
  expect(a, 37, 33);
  cache_->truncate_sequence(a, 35, nullptr);  // 5 back: 33 and 34 are left
  expect(a, 35, 33);
  grow(a, 35, 1);
  expect(a, 36, 33);
  cache_->truncate_sequence(a, 20, nullptr);
  expect(a, 20, 20);
  grow(a, 20, 2);
  expect(a, 22, 20);
  expect(b, 40, 36);
  cache_->truncate_sequence(a, 1, nullptr);
  expect(a, 1, 1);
  grow(a, 1, 10);
  expect(a, 11, 7);
  // A flush gives up the rest at once, of this sequence alone, and the sinks stay.
  const int64_t used = cache_->memory().raw_bytes_used;
  plan(batch_, {b}, {0}, {1});
  cache_->flush_sequence(b, nullptr);
  expect(b, 40, 40);
  expect(a, 11, 7);
  EXPECT_LT(cache_->memory().raw_bytes_used, used);
  EXPECT_EQ(status_of([&] { attend(batch_, 1); }), Status::kInvalidState);
  EXPECT_NE(text_.find("flushed"), std::string::npos) << text_;
  plan(batch_, {b}, {0}, {1});
  cache_->flush_sequence(b, nullptr);  // nothing is left: the plan stays in force
  attend(batch_, 1);
  grow(b, 40, 3);
  expect(b, 43, 40);
  grow(b, 43, 1);
  expect(b, 44, 40);
  cache_->truncate_sequence(b, 2, nullptr);
  cache_->flush_sequence(b, nullptr);  // sinks alone
  expect(b, 2, 2);
}

TEST_F(CacheTest, CentresOnlyWithoutTokens) {
  open();
  std::vector<float> centre(kDim, 1.0f);
  const uint64_t plain = cache_->fingerprint();
  cache_->set_centres(1, centre.data(), nullptr);
  EXPECT_NE(cache_->fingerprint(), plain);
  const int64_t a = cache_->create_sequence();
  cache_->set_centres(1, nullptr, centre.data());
  grow(a, 0, 1);
  EXPECT_EQ(status_of([&] { cache_->set_centres(0, centre.data(), nullptr); }), Status::kInvalidState);
  cache_->truncate_sequence(a, 0, nullptr);
  std::vector<float> zero(kDim, -0.0f);
  cache_->set_centres(1, zero.data(), zero.data());
  EXPECT_EQ(cache_->fingerprint(), plain) << "a centre of zeros is none";
  centre[3] = INFINITY;
  EXPECT_EQ(status_of([&] { cache_->set_centres(0, nullptr, centre.data()); }), Status::kInvalidArgument);
  EXPECT_NE(text_.find("value_centre[0][3] = inf"), std::string::npos) << text_;
  fail(Verb::kSetCentres, true);
  centre[3] = 2;
  EXPECT_EQ(status_of([&] { cache_->set_centres(0, centre.data(), nullptr); }), Status::kCuda);
  EXPECT_EQ(cache_->fingerprint(), plain);
}

TEST_F(CacheTest, FingerprintFollowsTheMeaningOfBytes) {
  const auto print = [](const tq_cache_config& config) {
    return Cache(&config, nullptr, fake::create_backend).fingerprint();
  };
  const uint64_t plain = print(config_);
  EXPECT_EQ(plain, print(config_));
  const auto changed = [&](const std::function<void(tq_cache_config&)>& change) {
    tq_cache_config c = config_;
    change(c);
    return print(c) != plain;
  };
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.num_layers = 3; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.num_kv_heads = 2; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.head_dim = 64, c.value_dim = 32; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.value_dim = 64; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.key_bits = 3; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.value_bits = 16; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.page_size = 64; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.rotation_seed = 1; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.rotation_seed = 1ull << 40; }));
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.rotation = TQ_ROTATION_DENSE; }));
  static tq_codebook book = {sizeof(tq_codebook), 4, 0.01f, {1, 2, 3, 4, 5, 6, 7, 8}};
  EXPECT_TRUE(changed([](tq_cache_config& c) { c.key_codebook = &book; }));
  // What only the encoder or the bookkeeping knows makes no difference.
  EXPECT_FALSE(changed([](tq_cache_config& c) { c.key_scale_rule = TQ_SCALE_NORM; }));
  EXPECT_FALSE(changed([](tq_cache_config& c) { c.flags = TQ_FLAG_NO_SCALE_SEARCH; }));
  EXPECT_FALSE(
      changed([](tq_cache_config& c) { c.max_tokens = 512, c.max_sequences = 9, c.window_tokens = 7; }));
  EXPECT_FALSE(changed([](tq_cache_config& c) { c.num_q_heads = 8; }));
}

TEST_F(CacheTest, DestroyRefusesWhileBatchesLive) {
  Cache* cache = new Cache(&config_, nullptr, fake::create_backend);
  Batch* batch = cache->create_batch();
  EXPECT_EQ(status_of([&] { Cache::destroy(cache); }), Status::kInvalidState);
  EXPECT_NE(text_.find("1 of its batches live"), std::string::npos) << text_;
  cache->create_sequence();  // still whole
  Cache::destroy_batch(batch);
  Cache::destroy(cache);
}

// While attend runs: other calls are refused with "busy", attends with workspaces of their own are let in.
Cache* busy_cache;
std::atomic<int> busy_seen, let_in;
TEST_F(CacheTest, BusyIsNoticed) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 4);
  busy_cache = cache_.get();
  busy_seen = 0;
  world().during_attend = [] {
    std::thread([] {
      try {
        busy_cache->create_sequence();
      } catch (const Error& error) {
        busy_seen += error.status() == Status::kInvalidState &&
                     std::string(error.what()).find("busy") != std::string::npos;
      }
    }).join();
  };
  attend(batch_, 4);
  EXPECT_EQ(busy_seen, 1);

  static CacheTest* self;
  static void* spare;
  alignas(256) static char memory[2][1 << 12];
  self = this;
  spare = memory[1];
  let_in = 0;
  world().during_attend = [] {
    if (let_in++ == 0) self->attend(self->batch_, 4, spare);  // a second attend beside the first
  };
  attend(batch_, 4, memory[0]);
  EXPECT_EQ(let_in, 2);
  world().during_attend = [] {
    if (let_in++ > 2) return;
    EXPECT_EQ(self->status_of([] { self->attend(self->batch_, 4); }), Status::kInvalidState)
        << "the cache's own workspace is one";
  };
  attend(batch_, 4, memory[0]);
  EXPECT_EQ(let_in, 3);
  world().during_attend = nullptr;
  cache_->create_sequence();  // the gate is open again
}

TEST_F(CacheTest, WorkspaceIsChecked) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 40);
  alignas(256) char memory[512];
  AttendRequest r = {};
  std::vector<float> q(40 * 2 * kDim), out(q.size());
  r.q = q.data();
  r.out = out.data();
  r.q_strides = r.out_strides = TensorStrides{2 * kDim, kDim};
  r.out_dtype = DataType::kF32;
  r.workspace = memory + 64;
  EXPECT_EQ(status_of([&] { cache_->attend(r, *batch_); }), Status::kInvalidArgument);
  EXPECT_NE(text_.find("workspace = 0x"), std::string::npos) << text_;
}

TEST_F(CacheTest, ManyLongPlansKeepTheWorkList) {
  // Long enough for several splits, few enough groups to be cut: the fake checks the cover.
  config_.max_tokens = 8192;
  config_.max_sequence_tokens = 8192;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 5000);
  plan(batch_, {a}, {0}, {1});
  const std::vector<float> one = attend(batch_, 1);
  plan(batch_, {a}, {0}, {40});
  const std::vector<float> forty = attend(batch_, 40);
  for (int d = 0; d < 2 * kDim; d++)
    EXPECT_EQ(one[static_cast<size_t>(d)], forty[39 * 2 * kDim + static_cast<size_t>(d)]);
}

// ---- Tokens taken out ----

TEST_F(CacheTest, RemoveIsAtomicAndScrubsLate) {
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 150);  // 5 pages
  plan(batch_, {a}, {0}, {1});
  const std::vector<float> before = attend(batch_, 1);
  fail(Verb::kMoveTokens, true);
  EXPECT_EQ(status_of([&] { cache_->remove_tokens(a, 10, 70, nullptr); }), Status::kCuda);
  const int64_t positions[] = {1, 3, 149};
  EXPECT_EQ(status_of([&] { cache_->select_tokens(a, positions, 3, nullptr); }), Status::kCuda);
  fail(Verb::kMoveTokens, false);
  EXPECT_EQ(attend(batch_, 1), before);  // the plan too is still in force
  EXPECT_STREQ(cache_->audit(), "");

  world().scrubbed.clear();
  cache_->remove_tokens(a, 10, 70, nullptr);
  EXPECT_EQ(cache_->sequence_length(a), 80);
  EXPECT_EQ(world().scrubbed.size(), 2u);
  for (const int64_t i : {0, 9, 10, 79})
    EXPECT_EQ(read(a, i, 1)[0], coded(i < 10 ? i : i + 70)) << "token " << i;
  EXPECT_EQ(status_of([&] { attend(batch_, 1); }), Status::kInvalidState);
  EXPECT_NE(text_.find("was left without some of its tokens; plan again"), std::string::npos) << text_;

  // What cannot be scrubbed now is scrubbed by the next plan; the call has succeeded.
  world().scrubbed.clear();
  fail(Verb::kScrubPages, true);
  cache_->remove_tokens(a, 3, 40, nullptr);
  EXPECT_EQ(cache_->sequence_length(a), 40);
  EXPECT_EQ(status_of([&] { plan(batch_, {a}, {1}); }), Status::kCuda);
  fail(Verb::kScrubPages, false);
  EXPECT_TRUE(world().scrubbed.empty());
  plan(batch_, {a}, {1});
  EXPECT_EQ(world().scrubbed.size(), 1u);
  append(batch_, rows(500, 1));
  EXPECT_EQ(read(a, 40, 1)[0], coded(500));
  EXPECT_EQ(read(a, 39, 1)[0], coded(149));
  EXPECT_STREQ(cache_->audit(), "");
}

// ---- Growing pools ----

TEST_F(CacheTest, ReserveIsAtomicAndKeepsPlans) {
  config_.max_reserve_tokens = 1024;
  config_.max_sequence_tokens = 0;
  open();
  const int64_t a = cache_->create_sequence();
  grow(a, 0, 250);
  grow(a, 250, 100);  // pages of the tails
  EXPECT_EQ(status_of([&] { plan(batch_, {a}, {400}); }), Status::kCapacity);
  plan(batch_, {a}, {0}, {1});
  const std::vector<float> before = attend(batch_, 1);
  EXPECT_EQ(status_of([&] { cache_->reserve(255, nullptr); }), Status::kInvalidArgument);
  EXPECT_EQ(text_.find("max_tokens = 255: the cache has room for 256 already"), 0u) << text_;
  EXPECT_EQ(status_of([&] { cache_->reserve(1025, nullptr); }), Status::kCapacity);
  EXPECT_EQ(text_.find("max_tokens = 1025: max_reserve_tokens = 1024"), 0u) << text_;
  cache_->reserve(256, nullptr);
  const tq_cache_memory old = cache_->memory();
  fail(Verb::kGrowPages, true);
  EXPECT_EQ(status_of([&] { cache_->reserve(1000, nullptr); }), Status::kCuda);
  fail(Verb::kGrowPages, false);
  EXPECT_EQ(cache_->memory().pages_total, old.pages_total);
  EXPECT_EQ(cache_->config().config().max_tokens, 256);
  cache_->reserve(1000, nullptr);
  EXPECT_EQ(cache_->memory().pages_total, 32 + 4);
  EXPECT_GT(cache_->memory().host_bytes, old.host_bytes);
  EXPECT_EQ(cache_->config().config().max_tokens, 1000);
  EXPECT_EQ(attend(batch_, 1), before);  // the plan is still in force
  plan(batch_, {a}, {256});
  append(batch_, rows(350, 256));
  EXPECT_EQ(read(a, 605, 1)[0], coded(605));
}

// ---- Processes ----

TEST(Gate, BarsForkedProcessesFromWhatIsTheCreatorsAlone) {
  const Gate device("cache", true), host("cache", false);
  EXPECT_FALSE(device.barred());
  { const Gate::Use use(device, true); }
  const pid_t parent = getpid(), child = fork();
  if (child == 0) {
    alarm(20);
    int failed = !device.barred() || host.barred();
    try {
      const Gate::Use use(device, false);
      failed = 1;
    } catch (const Error& error) {
      const std::string text = error.what();
      failed |= error.status() != Status::kInvalidState ||
                text.find("created in process " + std::to_string(parent)) == std::string::npos ||
                text.find("called in process " + std::to_string(getpid())) == std::string::npos;
    }
    const Gate::Use use(host, true);
    _exit(failed);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(Gate, ACallThatWasRunningIsNamedInTheForkedProcess) {
  const Gate gate("cache", false);
  const Gate::Use running(gate, true);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    try {
      const Gate::Use use(gate, false);
      _exit(1);
    } catch (const Error& error) {
      _exit(strstr(error.what(), "busy: a call on it was running when process") == nullptr);
    }
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace tq
