// SPDX-License-Identifier: Apache-2.0
// A day of an engine's traffic on a clock of its own: requests arrive at 20 a second, some behind a prefix
// that others share; they decode token by token or verify drafts and take the rejected ones back; when a
// replica is full the last one is preempted to a third cache and comes back; some migrate to another replica
// of another page size. Every token that is read and every output that is looked at is compared with the
// model.
//
// What must not grow over the day: the caches' own counts, which return to nothing whenever all requests
// have ended; the blocks of memory that they hold; the process's resident memory. Latencies are reported
// and not judged: the machine has other work.
#include <gtest/gtest.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <random>

#include "traffic/client.h"
#include "traffic/guarded_memory.h"

namespace tq {
namespace {

using namespace traffic;

// 20 a second in steps of 50 ms, half of them in bursts.
constexpr double kArrivalsPerStep = 0.5;
constexpr int64_t kBurst = 20, kStepsToABurst = 40;
constexpr int64_t kDay = 24 * 3600 * 20, kPrefixTokens = 60, kDrafts = 4;
// A day is for what requests cost besides their tokens: most prompts are short. The longest sequence, a long
// prompt behind the prefix and drafts that are all right, just fits into a replica.
constexpr int64_t kShort = 6, kLong = 64, kShortToALong = 11, kOutputs = 8;
constexpr int64_t kReplicaTokens = kPrefixTokens + kLong + kOutputs * kDrafts;
constexpr int kParts = 10;

int64_t lifecycles_wanted() {
  return getenv("TQKV_TEST_LONG") ? kDay : getenv("TQKV_TEST_QUICK") ? kDay / 200 : kDay / 20;
}

int64_t resident_bytes() {
  long long pages = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file && fscanf(file, "%*s %lld", &pages) != 1) pages = 0;
  if (file) fclose(file);
  return pages * sysconf(_SC_PAGESIZE);
}

// Durations by their logarithm: eight steps to a doubling.
class Latencies {
 public:
  void add(double seconds) {
    const int at = seconds > 1e-9 ? static_cast<int>(8 * log2(seconds * 1e9)) : 0;
    counts_[std::min(at, kSteps - 1)]++;
    total_++;
  }
  double quantile(double q) const {
    int64_t left = static_cast<int64_t>(q * static_cast<double>(total_));
    for (int i = 0; i < kSteps; i++)
      if ((left -= counts_[i]) < 0) return exp2((i + 0.5) / 8) * 1e-3;  // microseconds
    return 0;
  }

 private:
  static constexpr int kSteps = 400;
  int64_t counts_[kSteps] = {}, total_ = 0;
};

struct Job {
  Request request;
  int64_t prompt = 0, outputs = 0;  // tokens still to come
  bool away = false;
};

struct Counts {
  int64_t ended = 0, forks = 0, rejected = 0, preempted = 0, returned = 0, migrated = 0, steps = 0,
          tokens = 0, checks = 0;
};

class Replica {
 public:
  Replica(int page_size, std::mt19937_64* random, Counts* counts)
      : random_(random), counts_(counts), client_(config_of(page_size, 12, kReplicaTokens, &memory_)) {}

  static tq_cache_config config_of(int page_size, int sequences, int64_t tokens, GuardedMemory* memory) {
    tq_cache_config config = tiny_config();
    config.allocator = memory->allocator();
    config.page_size = page_size;
    config.num_q_heads = 1;  // more would be more of the same arithmetic
    config.max_sequences = sequences;
    config.max_tokens = tokens;
    config.window_tokens = 4, config.sink_tokens = 2, config.rollback_tokens = kDrafts;
    return config;
  }
  Client& client() { return client_; }
  const GuardedMemory& memory() const { return memory_; }
  std::deque<Job>& jobs() { return jobs_; }
  bool has_room() const { return jobs_.size() + 1 < static_cast<size_t>(client_.config().max_sequences); }

  void start_day() {
    client_.begin(&prefix_);
    ASSERT_EQ(client_.step({{&prefix_, kPrefixTokens, 0}}, [&](int64_t) { return letter(); }), TQ_OK);
  }
  void end_day() {
    client_.end(&prefix_);
    // The batch's plan goes, and with it what its queries kept.
    ASSERT_EQ(client_.step({}, [](int64_t) { return 0; }), TQ_OK);
  }
  void arrive() {
    Job job;
    job.prompt = 1 + below(below(kShortToALong + 1) == 0 ? kLong : kShort), job.outputs = 1 + below(kOutputs);
    if (below(10) < 3) {
      client_.fork(prefix_, &job.request);
      counts_->forks++;
    } else {
      client_.begin(&job.request);
    }
    jobs_.push_back(job);
  }
  // One step of all jobs; those that are done end. False: there was no room, nothing has happened.
  bool step(Latencies* latencies) {
    if (jobs_.empty()) return true;
    turns_.clear();
    for (Job& job : jobs_) {
      const bool drafts = job.prompt == 0 && job.outputs > 1 && below(8) == 0;
      const int64_t count = job.prompt > 0 ? job.prompt : drafts ? kDrafts : 1;
      turns_.push_back({&job.request, count, drafts ? kDrafts : 1});
    }
    const auto before = std::chrono::steady_clock::now();
    const tq_status status = client_.step(turns_, [&](int64_t) { return letter(); });
    latencies->add(std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count());
    if (status != TQ_OK) return false;
    counts_->steps++;
    look();
    for (size_t i = 0; i < jobs_.size(); i++) {
      Job& job = jobs_[i];
      counts_->tokens += turns_[i].new_tokens;
      if (turns_[i].queries > 1) {
        const int64_t rejected = below(kDrafts);  // one is always right
        client_.truncate(&job.request, job.request.tokens.length() - rejected);
        counts_->rejected += rejected;
      }
      job.outputs -= job.prompt == 0;
      job.prompt = 0;
    }
    for (size_t i = jobs_.size(); i-- > 0;) {
      if (jobs_[i].outputs > 0) continue;
      if (below(16) == 0) check(jobs_[i].request);
      end(i);
    }
    return true;
  }
  // Job i goes to another cache, if it has room.
  bool send(size_t i, Client* target, std::deque<Job>* jobs) {
    Job job = jobs_[i];
    const tq_status status = client_.copy(jobs_[i].request, target, &job.request);
    if (status == TQ_ERROR_CAPACITY) return false;
    EXPECT_EQ(status, TQ_OK) << tq_last_error();
    client_.end(&jobs_[i].request);
    jobs_.erase(jobs_.begin() + static_cast<int64_t>(i));
    jobs->push_back(job);
    return true;
  }

 private:
  int64_t below(int64_t n) { return static_cast<int64_t>((*random_)() % static_cast<uint64_t>(n)); }
  int letter() { return static_cast<int>((*random_)() % kLetters); }
  void end(size_t i) {
    client_.end(&jobs_[i].request);
    jobs_.erase(jobs_.begin() + static_cast<int64_t>(i));
    counts_->ended++;
  }
  void check(const Request& request) {
    client_.reads_as_it_must(request);
    counts_->checks++;
  }
  // One row of the step in 16, against float64; one stretch of tokens, bit for bit.
  void look() {
    if (below(16) == 0) {
      const size_t turn = static_cast<size_t>(below(static_cast<int64_t>(turns_.size())));
      client_.attends_as_it_must(turns_, turn, below(turns_[turn].queries), static_cast<int>(below(2)));
      counts_->checks++;
    }
    if (below(16) == 0)
      check(*turns_[static_cast<size_t>(below(static_cast<int64_t>(turns_.size())))].request);
  }

  std::mt19937_64* random_;
  Counts* counts_;
  GuardedMemory memory_;
  Client client_;
  Request prefix_;
  std::deque<Job> jobs_;
  std::vector<Turn> turns_;
};

class Engine {
 public:
  Engine()
      : a_(32, &random_, &counts_),
        b_(64, &random_, &counts_),
        host_(Replica::config_of(96, 64, 8192, &memory_)) {}

  const Counts& counts() const { return counts_; }
  // Serves until so many have ended, then until nobody is left.
  void serve(int64_t until, Latencies* latencies) {
    std::poisson_distribution<int64_t> arrivals(kArrivalsPerStep);
    for (Replica* replica : {&a_, &b_}) replica->start_day();
    int64_t waiting = 0;
    while (counts_.ended < until || !idle() || waiting > 0) {
      if (counts_.ended + waiting < until)
        waiting += arrivals(random_) + (random_() % kStepsToABurst == 0 ? kBurst : 0);
      for (; waiting > 0 && away_.empty(); waiting--) {  // who was preempted comes first
        Replica& replica = random_() % 2 ? a_ : b_;
        if (!replica.has_room()) break;
        replica.arrive();
      }
      for (Replica* replica : {&a_, &b_}) {
        if (!replica->step(latencies)) preempt(replica);
        if (::testing::Test::HasFailure()) return;
      }
      come_back();
      if (random_() % 40 == 0) migrate();
    }
    for (Replica* replica : {&a_, &b_}) replica->end_day();
  }
  void expect_nothing_left(const tq_cache_memory (&at_first)[3]) {
    for (int i = 0; i < 3; i++) {
      const tq_cache_memory memory = memory_of(i);
      EXPECT_EQ(memory.num_sequences, 0);
      EXPECT_EQ(memory.tokens, 0);
      EXPECT_EQ(memory.pages_used, 0);
      EXPECT_EQ(memory.raw_bytes_used, 0);
      EXPECT_EQ(memcmp(&memory, &at_first[i], sizeof memory), 0) << "cache " << i;
    }
  }
  // Blocks of memory that the caches hold, and whether nobody wrote beside them.
  size_t blocks() const {
    return memory_.blocks().size() + a_.memory().blocks().size() + b_.memory().blocks().size();
  }
  bool intact() const { return memory_.intact() && a_.memory().intact() && b_.memory().intact(); }
  tq_cache_memory memory_of(int i) { return (i == 0 ? a_.client() : i == 1 ? b_.client() : host_).memory(); }

 private:
  bool idle() { return a_.jobs().empty() && b_.jobs().empty() && away_.empty(); }
  // The last to come leaves.
  void preempt(Replica* replica) {
    ASSERT_GT(replica->jobs().size(), 1u) << "a replica has no room for one request: " << tq_last_error();
    ASSERT_TRUE(replica->send(replica->jobs().size() - 1, &host_, &away_)) << tq_last_error();
    counts_.preempted++;
  }
  void come_back() {
    if (away_.empty()) return;
    Replica& replica = random_() % 2 ? a_ : b_;
    if (!replica.has_room()) return;
    Job job = away_.front();
    const tq_status status = host_.copy(away_.front().request, &replica.client(), &job.request);
    if (status == TQ_ERROR_CAPACITY) return;
    ASSERT_EQ(status, TQ_OK) << tq_last_error();
    host_.end(&away_.front().request);
    away_.pop_front();
    replica.jobs().push_back(job);
    counts_.returned++;
  }
  void migrate() {
    Replica &from = random_() % 2 ? a_ : b_, &to = &from == &a_ ? b_ : a_;
    if (from.jobs().empty() || !to.has_room()) return;
    counts_.migrated += from.send(random_() % from.jobs().size(), &to.client(), &to.jobs());
  }

  std::mt19937_64 random_{2026};
  Counts counts_;
  Replica a_, b_;
  GuardedMemory memory_;
  Client host_;
  std::deque<Job> away_;
};

TEST(Soak, ADayOfTraffic) {
  const int64_t wanted = lifecycles_wanted();
  const auto begun = std::chrono::steady_clock::now();
  Engine engine;
  tq_cache_memory at_first[3];
  for (int i = 0; i < 3; i++) at_first[i] = engine.memory_of(i);
  const size_t blocks = engine.blocks();
  Latencies latencies[kParts];
  int64_t resident[kParts];
  for (int part = 0; part < kParts; part++) {
    engine.serve(wanted * (part + 1) / kParts, &latencies[part]);
    if (HasFailure()) return;
    engine.expect_nothing_left(at_first);
    EXPECT_EQ(engine.blocks(), blocks);
    EXPECT_TRUE(engine.intact());
    resident[part] = resident_bytes();
  }
  const Counts& c = engine.counts();
  EXPECT_GE(c.ended, wanted);
  // Pages of the pools are touched, and the test's own lists grow, in the first parts; then nothing may.
  const int64_t grown = resident[kParts - 1] - resident[1];
#ifdef __SANITIZE_ADDRESS__
  const int64_t allowed = INT64_MAX;  // what is freed stays in quarantine
#else
  const int64_t allowed = 512 << 10;
#endif
  EXPECT_LE(grown, allowed) << "bytes more are resident after " << c.ended << " requests than after "
                            << wanted / 5;
  for (const int64_t count : {c.forks, c.rejected, c.preempted, c.returned, c.migrated, c.checks})
    EXPECT_GT(count, 0) << "a kind of traffic that never came";
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  printf(
      "    %lld requests, %lld steps, %lld tokens in %.0f s, %.0f of the processor's: %lld forks, %lld "
      "drafts rejected, %lld preempted, %lld returned, %lld migrated, %lld checks\n",
      static_cast<long long>(c.ended), static_cast<long long>(c.steps), static_cast<long long>(c.tokens),
      seconds, static_cast<double>(clock()) / CLOCKS_PER_SEC, static_cast<long long>(c.forks),
      static_cast<long long>(c.rejected), static_cast<long long>(c.preempted),
      static_cast<long long>(c.returned), static_cast<long long>(c.migrated),
      static_cast<long long>(c.checks));
  printf("    %lld KiB resident, %+lld KiB since the second tenth\n",
         static_cast<long long>(resident[kParts - 1] >> 10), static_cast<long long>(grown >> 10));
  for (const int part : {0, kParts - 1})
    printf("    %d. tenth: a step takes %.0f us (median), %.0f (p99), %.0f (p99.9)\n", part + 1,
           latencies[part].quantile(0.5), latencies[part].quantile(0.99), latencies[part].quantile(0.999));
}

}  // namespace
}  // namespace tq
