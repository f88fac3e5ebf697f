// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel groups by bytes: caches of 1, 2 and 4 ranks over the same four kv heads hold the same
// tiles, and tiles that move between them are attended to the same bits. Pages are looked at in pools of the
// tests' own.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "format/rotation.h"
#include "tqkv.h"

namespace tq {
namespace {

constexpr int kLayers = 3, kHeads = 4, kGroup = 2, kKeyDim = 80, kValueDim = 64, kPageSize = 64,
              kTokens = 150, kPages = 3;
constexpr int32_t kKeyBits[kLayers] = {3, 16, 6}, kValueBits[kLayers] = {5, 2, 8};

#define TQ_MUST(call) ASSERT_EQ(call, TQ_OK) << tq_last_error()

float number(uint64_t seed) {
  return static_cast<float>(format::mix64(seed) >> 40) * (1.0f / (1 << 23)) - 1.0f;
}
// [kTokens][heads][dim] of the heads from `first` on: the model's numbers, whatever the rank.
std::vector<float> rows(uint64_t seed, int first, int heads, int dim) {
  std::vector<float> x;
  for (int token = 0; token < kTokens; token++)
    for (int head = first; head < first + heads; head++)
      for (int d = 0; d < dim; d++)
        x.push_back(number(
            ((seed * kTokens + static_cast<uint64_t>(token)) * 64 + static_cast<uint64_t>(head)) * 1024 +
            static_cast<uint64_t>(d)));
  return x;
}

// A cache of some of the heads, with one sequence.
class Rank {
 public:
  Rank(int first_head, int heads) : first_(first_head), heads_(heads) { open(); }
  ~Rank() {
    EXPECT_EQ(tq_batch_destroy(batch_), TQ_OK);
    EXPECT_EQ(tq_cache_destroy(cache_), TQ_OK);
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  void append() {
    for (int layer = 0; layer < kLayers; layer++) {
      const std::vector<float> k = rows(2 * static_cast<uint64_t>(layer), first_, heads_, kKeyDim),
                               v = rows(2 * static_cast<uint64_t>(layer) + 1, first_, heads_, kValueDim);
      TQ_MUST(tq_cache_append(cache_, layer, batch_, k.data(), v.data(), nullptr, nullptr));
    }
  }
  // [kTokens][q heads][kValueDim], then lse [kTokens][q heads]
  std::vector<float> attend(int layer) {
    const std::vector<float> q = rows(99, kGroup * first_, kGroup * heads_, kKeyDim);
    std::vector<float> out(static_cast<size_t>(kTokens) * kGroup * heads_ * (kValueDim + 1), -1.0f);
    EXPECT_EQ(tq_cache_attend(cache_, layer, batch_, q.data(), out.data(), out.data() + lse_at(), nullptr,
                              nullptr, 0, nullptr),
              TQ_OK)
        << tq_last_error();
    return out;
  }
  // Tiles of one head of a page: the model's number of the head.
  uint8_t* tiles(int layer, int page, int head) {
    uint8_t* at = pool_.get();
    for (int i = 0; i < layer; i++) at += num_pages_ * static_cast<size_t>(heads_) * head_bytes(i);
    return at + static_cast<size_t>(page * heads_ + (head - first_)) * head_bytes(layer);
  }
  static size_t head_bytes(int layer) {
    return static_cast<size_t>(kPageSize / 32) *
           format::TileLayout(kKeyDim, kValueDim, kKeyBits[layer], kValueBits[layer]).tile_bytes();
  }
  int first() const { return first_; }
  int heads() const { return heads_; }
  size_t lse_at() const { return static_cast<size_t>(kTokens) * kGroup * heads_ * kValueDim; }

 private:
  void open() {
    tq_cache_config config;
    TQ_MUST(tq_cache_config_init(&config));
    config.num_layers = kLayers;
    config.num_q_heads = kGroup * heads_;
    config.num_kv_heads = heads_;
    config.head_dim = kKeyDim;
    config.value_dim = kValueDim;
    config.io_dtype = TQ_F32;
    config.layer_key_bits = kKeyBits;
    config.layer_value_bits = kValueBits;
    config.rotation_seed = 5;
    config.first_layer = 11;
    config.first_kv_head = first_;
    config.page_size = kPageSize;
    config.max_tokens = kPages * kPageSize;
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    TQ_MUST(tq_cache_config_bytes(&config, &bytes));
    const size_t size = (static_cast<size_t>(bytes.page_bytes) + 255) / 256 * 256;
    pool_.reset(static_cast<uint8_t*>(aligned_alloc(256, size)));
    num_pages_ = static_cast<size_t>(bytes.num_pages);
    config.pool = pool_.get();
    config.pool_bytes = static_cast<int64_t>(size);
    TQ_MUST(tq_cache_create(&config, nullptr, &cache_));
    TQ_MUST(tq_batch_create(cache_, &batch_));
    for (int layer = 0; layer < kLayers; layer++) {
      std::vector<float> centre;
      for (int i = 0; i < heads_ * kKeyDim; i++)
        centre.push_back(number(static_cast<uint64_t>(layer * 1000000 + first_ * kKeyDim + i)));
      TQ_MUST(tq_cache_set_centres(cache_, layer, centre.data(), nullptr));
    }
    TQ_MUST(tq_sequence_create(cache_, &sequence_));
    const int64_t count = kTokens;
    TQ_MUST(tq_batch_plan(batch_, 1, &sequence_, &count, nullptr, nullptr));
  }

  struct Freed {
    void operator()(uint8_t* pointer) const { free(pointer); }
  };
  int first_, heads_;
  size_t num_pages_ = 0;
  std::unique_ptr<uint8_t, Freed> pool_;
  tq_cache* cache_ = nullptr;
  tq_batch* batch_ = nullptr;
  tq_sequence sequence_ = 0;
};

using Ranks = std::vector<std::unique_ptr<Rank>>;

Ranks ranks(int count, bool append) {
  Ranks result;
  for (int r = 0; r < count; r++) {
    result.emplace_back(new Rank(r * kHeads / count, kHeads / count));
    if (append) result.back()->append();
  }
  return result;
}
Rank& of_head(Ranks& group, int head) { return *group[static_cast<size_t>(head) * group.size() / kHeads]; }

void expect_same_tiles(Ranks& a, Ranks& b) {
  for (int layer = 0; layer < kLayers; layer++)
    for (int page = 0; page < kPages; page++)
      for (int head = 0; head < kHeads; head++)
        EXPECT_EQ(memcmp(of_head(a, head).tiles(layer, page, head), of_head(b, head).tiles(layer, page, head),
                         Rank::head_bytes(layer)),
                  0)
            << a.size() << " and " << b.size() << " ranks: layer " << layer << ", page " << page << ", head "
            << head;
}
// Bits of every row of `b` equal those of `a`, the caches over the same heads.
void expect_same_rows(Ranks& a, Ranks& b) {
  for (int layer = 0; layer < kLayers; layer++)
    for (auto& one : b)
      for (auto& other : a) {
        const int first = std::max(one->first(), other->first()),
                  end = std::min(one->first() + one->heads(), other->first() + other->heads());
        if (first >= end) continue;
        const std::vector<float> x = one->attend(layer), y = other->attend(layer);
        const auto at = [](Rank& rank, const std::vector<float>& rows, int token, int head) {
          return &rows[static_cast<size_t>((token * kGroup * rank.heads() + (head - kGroup * rank.first())) *
                                           kValueDim)];
        };
        for (int token = 0; token < kTokens; token++)
          for (int head = kGroup * first; head < kGroup * end; head++)
            ASSERT_EQ(memcmp(at(*one, x, token, head), at(*other, y, token, head), kValueDim * sizeof(float)),
                      0)
                << "layer " << layer << ", token " << token << ", q head " << head;
      }
}

TEST(Ranks, HoldTheBytesOfOneDevice) {
  Ranks one = ranks(1, true), two = ranks(2, true), four = ranks(4, true);
  expect_same_tiles(one, two);
  expect_same_tiles(two, four);
  expect_same_rows(one, two);
  expect_same_rows(one, four);
}

// 1 -> 2 -> 4 -> 1: each group gets its tiles from the one before.
TEST(Ranks, TilesMoveBetweenGroups) {
  Ranks source = ranks(1, true), appended = ranks(1, true), group;
  for (const int count : {2, 4, 1}) {
    group = ranks(count, false);
    // Something else is written first, so that the layers count as appended.
    for (auto& rank : group) rank->append();
    for (int layer = 0; layer < kLayers; layer++)
      for (int page = 0; page < kPages; page++)
        for (int head = 0; head < kHeads; head++) {
          uint8_t* to = of_head(group, head).tiles(layer, page, head);
          memset(to, 0xA5, Rank::head_bytes(layer));
          memcpy(to, of_head(source, head).tiles(layer, page, head), Rank::head_bytes(layer));
        }
    expect_same_rows(appended, group);
    source = std::move(group);
  }
  expect_same_tiles(appended, source);
}

}  // namespace
}  // namespace tq
