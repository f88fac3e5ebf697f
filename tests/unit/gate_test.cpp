// SPDX-License-Identifier: Apache-2.0
// Which calls on a cache may run beside each other, and which may be part of a graph: each call from inside
// another one, and while the stream is captured.
#include "gate.h"

#include "unit/api_cache.h"
#include "unit/cache_fixture.h"

namespace tq {
namespace {

// What runs inside an attend with the caller's own workspace, which others may run beside.
class BesideAttend : public CacheTest {
 public:
  BesideAttend() {
    open();
    id_ = cache_->create_sequence();
    grow(id_, 0, 4);
    self = this;
  }
  // Whether the call was let in while the attend ran.
  bool let_in(const std::function<void()>& call) {
    call_ = call;
    alignas(256) static char memory[1 << 12];
    plan(batch_, {id_}, {0}, {1});
    world().during_attend = [] {
      world().during_attend = nullptr;
      self->status_ = self->status_of(self->call_);
    };
    attend(batch_, 1, memory);
    if (status_ == Status::kOk) return true;
    EXPECT_EQ(status_, Status::kInvalidState) << text_;
    EXPECT_EQ(text_, "cache: busy: another call on it is running");
    return false;
  }

  static BesideAttend* self;
  int64_t id_ = 0;
  std::function<void()> call_;
  Status status_ = Status::kOk;
};
BesideAttend* BesideAttend::self = nullptr;

TEST_F(BesideAttend, WhatChangesNothingIsLetIn) {
  tq_state state = {};
  state.struct_size = sizeof state;
  EXPECT_TRUE(let_in([&] { cache_->memory(); }));
  EXPECT_TRUE(let_in([&] { cache_->fingerprint(); }));
  EXPECT_TRUE(let_in([&] { cache_->sequence_length(id_); }));
  EXPECT_TRUE(let_in([&] { cache_->sequence_flags(id_); }));
  EXPECT_TRUE(let_in([&] { cache_->describe(id_, &state); }));
  EXPECT_TRUE(let_in([&] {
    const BatchRows rows = batch_->rows();
    EXPECT_EQ(rows.new_tokens, 0);
    EXPECT_EQ(rows.query_tokens, 1);
  }));
}

TEST_F(BesideAttend, WhatChangesSomethingIsNot) {
  const tq_io io = {sizeof io, 0, nullptr, nullptr, nullptr, nullptr};
  tq_state state = {};
  state.struct_size = sizeof state;
  cache_->describe(id_, &state);
  std::vector<float> numbers(4096);
  const int64_t kept[] = {0, 2};
  EXPECT_FALSE(let_in([&] { cache_->create_sequence(); }));
  EXPECT_FALSE(let_in([&] { cache_->free_sequence(id_, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->fork_sequence(id_, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->truncate_sequence(id_, 1, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->flush_sequence(id_, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->remove_tokens(id_, 0, 1, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->select_tokens(id_, kept, 2, nullptr); }));
  EXPECT_FALSE(let_in([&] { Cache::copy_sequence(*cache_, id_, *cache_, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->export_part(id_, state, numbers.data(), 0, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->import_part(id_, state, numbers.data(), 0, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->save(id_, io, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->load(io, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->set_centres(0, numbers.data(), nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->reserve(300, nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->check(nullptr); }));
  EXPECT_FALSE(let_in([&] { cache_->create_batch(); }));
  EXPECT_FALSE(let_in([&] { Cache::destroy_batch(other_); }));
  EXPECT_FALSE(let_in([&] { plan(other_, {id_}, {1}); }));
  EXPECT_FALSE(let_in([&] { append(batch_, rows(0, 0)); }));
  EXPECT_FALSE(let_in([&] { read(id_, 0, 1); }));
  EXPECT_FALSE(let_in([&] { Cache::destroy(cache_.get()); }));
  EXPECT_EQ(cache_->sequence_length(id_), 4);
  EXPECT_EQ(cache_->memory().num_sequences, 1);
}

TEST_F(BesideAttend, StateIsNoPartOfAGraph) {
  const tq_io io = {sizeof io, 0, nullptr, nullptr, nullptr, nullptr};
  tq_state state = {};
  state.struct_size = sizeof state;
  cache_->describe(id_, &state);
  std::vector<uint64_t> memory(static_cast<size_t>(state.bytes) / 8 + 2);
  void* const at = reinterpret_cast<uintptr_t>(memory.data()) % 16 == 0 ? memory.data() : memory.data() + 1;
  const int64_t empty = cache_->create_sequence();
  world().capturing = true;
  const std::function<void()> calls[] = {
      [&] { cache_->save(id_, io, nullptr); },
      [&] { cache_->load(io, nullptr); },
      [&] { cache_->export_part(id_, state, at, static_cast<size_t>(state.bytes), nullptr); },
      [&] { cache_->import_part(empty, state, at, static_cast<size_t>(state.bytes), nullptr); },
  };
  for (const auto& call : calls) {
    EXPECT_EQ(status_of(call), Status::kCapture);
    EXPECT_EQ(text_.substr(0, 8), "stream: ") << text_;
  }
  world().capturing = false;
  EXPECT_EQ(cache_->sequence_length(empty), 0);
  EXPECT_STREQ(cache_->audit(), "");
}

// Inside a call that has the cache for itself even what changes nothing is not let in.
struct Inside {
  OneCache* own;
  tq_sequence sequence;
  int busy = 0, calls = 0;
  void see(tq_status status) {
    calls++;
    busy += status == TQ_ERROR_INVALID_STATE &&
            std::string(tq_last_error()) == "cache: busy: another call on it is running";
  }
};

TEST(Gate, ASaveHasTheCacheForItself) {
  OneCache own;
  const tq_sequence sequence = own.create();
  own.append(sequence, 0, 5);
  Inside inside = {&own, sequence};
  tq_io io = {};
  io.struct_size = sizeof io;
  io.user = &inside;
  io.write = [](void* user, const void*, size_t) {
    Inside& in = *static_cast<Inside*>(user);
    if (in.calls > 0) return int32_t{0};
    uint64_t number;
    int64_t length;
    tq_cache_memory memory = {};
    memory.struct_size = sizeof memory;
    tq_state state = {};
    state.struct_size = sizeof state;
    in.see(tq_cache_fingerprint(in.own->cache, &number));
    in.see(tq_cache_get_memory(in.own->cache, &memory));
    in.see(tq_sequence_length(in.own->cache, in.sequence, &length));
    in.see(tq_sequence_flags(in.own->cache, in.sequence, &number));
    in.see(tq_sequence_describe(in.own->cache, in.sequence, &state));
    in.see(tq_cache_destroy(in.own->cache));
    return int32_t{0};
  };
  EXPECT_EQ(tq_sequence_save(own.cache, sequence, &io, nullptr), TQ_OK) << tq_last_error();
  EXPECT_EQ(inside.calls, 6);
  EXPECT_EQ(inside.busy, inside.calls);
  EXPECT_EQ(own.length(sequence), 5) << "the gate is open again";
}

TEST(Gate, SharedUsesAreCounted) {
  const Gate gate("thing", false);
  const auto open = [&](bool exclusive) {
    try {
      const Gate::Use use(gate, exclusive);
      return true;
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "thing: busy: another call on it is running");
      return false;
    }
  };
  {
    const Gate::Use first(gate, false);
    {
      const Gate::Use second(gate, false);
      EXPECT_TRUE(open(false));
      EXPECT_FALSE(open(true));
    }
    EXPECT_FALSE(open(true)) << "the first is still in";
    EXPECT_TRUE(open(false));
  }
  {
    const Gate::Use alone(gate, true);
    EXPECT_FALSE(open(false));
    EXPECT_FALSE(open(true));
  }
  EXPECT_TRUE(open(true));
  EXPECT_TRUE(open(false));
  EXPECT_FALSE(gate.barred());
  EXPECT_FALSE(Gate("of one process", true).barred());
}

}  // namespace
}  // namespace tq
