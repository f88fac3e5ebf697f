// SPDX-License-Identifier: Apache-2.0
//
// The C API as the tool uses it: owning wrappers, and a status other than TQ_OK as an exception with the
// library's own text.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "tqkv.h"

namespace tq::cli {

// A library call was refused.
class LibraryError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void check(tq_status status, const char* call) {
  if (status == TQ_OK) return;
  throw LibraryError(std::string(call) + ": " + tq_status_name(status) + ": " + tq_last_error());
}

inline tq_cache_config new_config() {
  tq_cache_config config;
  check(tq_cache_config_init(&config), "tq_cache_config_init");
  return config;
}

class Cache {
 public:
  // Throws with every reason of tq_cache_config_check if the library cannot run the configuration.
  explicit Cache(const tq_cache_config& config) {
    char reasons[4096] = "";
    const tq_status status = tq_cache_config_check(&config, reasons, sizeof reasons);
    if (status != TQ_OK)
      throw LibraryError(std::string("this configuration cannot run: ") + tq_status_name(status) + "\n" +
                         reasons);
    check(tq_cache_create(&config, nullptr, &cache_), "tq_cache_create");
  }
  Cache(Cache&& other) noexcept : cache_(std::exchange(other.cache_, nullptr)) {}
  Cache& operator=(Cache&&) = delete;
  ~Cache() { tq_cache_destroy(cache_); }
  tq_cache* get() const { return cache_; }

 private:
  tq_cache* cache_ = nullptr;
};

// One sequence with its batch; must die before its cache.
class Sequence {
 public:
  explicit Sequence(const Cache& cache) : cache_(cache.get()) {
    check(tq_sequence_create(cache_, &id_), "tq_sequence_create");
    check(tq_batch_create(cache_, &batch_), "tq_batch_create");
  }
  Sequence(Sequence&& other) noexcept
      : cache_(other.cache_), id_(other.id_), batch_(std::exchange(other.batch_, nullptr)) {}
  Sequence& operator=(Sequence&&) = delete;
  ~Sequence() { tq_batch_destroy(batch_); }

  void plan(int64_t new_tokens, int64_t query_tokens) {
    check(tq_batch_plan(batch_, 1, &id_, &new_tokens, &query_tokens, nullptr), "tq_batch_plan");
  }
  tq_batch* batch() const { return batch_; }
  tq_sequence id() const { return id_; }

 private:
  tq_cache* cache_;
  tq_sequence id_ = 0;
  tq_batch* batch_ = nullptr;
};

}  // namespace tq::cli
