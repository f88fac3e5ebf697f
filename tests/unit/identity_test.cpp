// SPDX-License-Identifier: Apache-2.0
// What is part of an identity, and what is not.
#include "identity.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "config.h"

namespace tq {
namespace {

tq_codebook codebook() {
  tq_codebook book = {};
  book.struct_size = sizeof book;
  book.bits = 2;
  book.unit = 0.02f;
  book.magnitude[0] = 30;
  book.magnitude[1] = 100;
  return book;
}

struct Given {
  tq_cache_config config = {};
  tq_codebook book = codebook();
  Given() {
    config.struct_size = sizeof config;
    config.num_layers = 2;
    config.num_q_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 64;
    config.io_dtype = TQ_F16;
    config.key_bits = 2;
    config.value_bits = 16;
    config.key_codebook = &book;
    config.max_tokens = 256;
    config.num_threads = 1;
  }
};

// Words and hash of a configuration after `change`; the identity's own fields may be changed too.
std::vector<uint32_t> words_of(
    const std::function<void(Given&)>& change,
    const std::function<void(Identity&)>& more = [](Identity&) {}) {
  Given setup;
  change(setup);
  const ResolvedConfig resolved(&setup.config);
  const Geometry& g = resolved.geometry();
  const std::vector<float> centres(static_cast<size_t>(g.num_layers) * g.layers[0].num_kv_heads *
                                   (g.layers[0].head_dim + g.layers[0].value_dim));
  Identity identity = {&g, centres.data()};
  more(identity);
  std::vector<uint32_t> words;
  for_each_word(
      identity, [](void* to, uint32_t word) { static_cast<std::vector<uint32_t>*>(to)->push_back(word); },
      &words);
  const uint64_t hash = fingerprint_of(identity);
  words.push_back(static_cast<uint32_t>(hash));
  words.push_back(static_cast<uint32_t>(hash >> 32));
  return words;
}

TEST(Identity, HowCodesAreChosenIsNoPartOfIt) {
  const std::vector<uint32_t> plain = words_of([](Given&) {});
  EXPECT_EQ(plain, words_of([](Given& s) { s.book.unit = 0.03f; })) << "the stored scale has taken it up";
  EXPECT_EQ(plain, words_of([](Given& s) { s.config.key_scale_rule = TQ_SCALE_NORM; }));
  EXPECT_EQ(plain, words_of([](Given& s) { s.config.flags = TQ_FLAG_NO_SCALE_SEARCH; }));
  EXPECT_EQ(plain, words_of([](Given& s) { s.config.num_q_heads = 2; }));
  EXPECT_EQ(plain, words_of([](Given& s) { s.config.max_tokens = 512, s.config.window_tokens = 9; }));
  // Raw sides keep float16 of float32 input.
  EXPECT_EQ(plain, words_of([](Given& s) { s.config.io_dtype = TQ_F32; }));
}

TEST(Identity, WhatBytesMeanIs) {
  const std::vector<std::function<void(Given&)>> changes = {
      [](Given&) {},
      [](Given& s) { s.book.magnitude[1] = 101; },
      [](Given& s) { s.config.key_codebook = nullptr; },
      [](Given& s) { s.config.io_dtype = TQ_BF16; },
      [](Given& s) { s.config.value_bits = 4; },
      [](Given& s) { s.config.num_layers = 3; },
      [](Given& s) { s.config.num_kv_heads = 1; },
      [](Given& s) { s.config.head_dim = 96; },
      [](Given& s) { s.config.value_dim = 96; },
      [](Given& s) { s.config.page_size = 128; },
      [](Given& s) { s.config.rotation = TQ_ROTATION_DENSE; },
      [](Given& s) { s.config.rotation_seed = 1; },
      [](Given& s) { s.config.rotation_seed = 1ull << 32; },
      [](Given& s) { s.config.first_layer = 7; },
      [](Given& s) { s.config.first_kv_head = 7; },
  };
  std::vector<std::vector<uint32_t>> seen;
  for (const auto& change : changes) seen.push_back(words_of(change));
  std::vector<float> centres(2 * 2 * 128);
  centres[3] = 0.5f;
  seen.push_back(words_of(changes[0], [&](Identity& identity) { identity.centres = centres.data(); }));
  for (size_t i = 0; i < seen.size(); i++)
    for (size_t j = 0; j < i; j++) {
      EXPECT_NE(seen[i], seen[j]) << i << " and " << j;
      EXPECT_NE(std::vector<uint32_t>(seen[i].end() - 2, seen[i].end()),
                std::vector<uint32_t>(seen[j].end() - 2, seen[j].end()))
          << "the hashes of " << i << " and " << j;
    }
  // A centre of a raw side is none, and neither is one of zeros, whatever their sign.
  std::vector<float> none(2 * 2 * 128);
  for (float& x : none) x = -0.0f;
  none[2 * 64] = 3;  // layer 0, values
  EXPECT_EQ(seen[0], words_of(changes[0], [&](Identity& identity) { identity.centres = none.data(); }));
}

}  // namespace
}  // namespace tq
