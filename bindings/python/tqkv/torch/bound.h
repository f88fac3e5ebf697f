// SPDX-License-Identifier: Apache-2.0
// What Python binds: caches and batches under numbers, the library's functions as addresses, and the turns
// that calls take.
//
// An operator gets a number instead of a pointer: one that is no longer bound is an error and never a stale
// pointer. The functions come as addresses, so the operators are linked to torch alone and work with the
// libtqkv that the package has loaded. A turn is the Python package's too (_handles.py): what a call has
// checked, the rows of a plan above all, holds when the library is called.
#pragma once

#include <stdint.h>

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "tqkv.h"

namespace tq {
namespace torch_ops {

struct Functions {
  decltype(&tq_last_error) last_error;
  decltype(&tq_status_name) status_name;
  decltype(&tq_batch_rows) batch_rows;
  decltype(&tq_cache_append) append;
  decltype(&tq_cache_attend) attend;
  decltype(&tq_merge_states) merge;
  decltype(&tq_cache_read) read;
  decltype(&tq_codec_page_layout) page_layout;
  decltype(&tq_paged_append) paged_append;
  decltype(&tq_paged_attend) paged_attend;
  // torch's own, of its CUDA part: the current stream of a device, 0 on success; null where torch has no such
  int32_t (*cuda_stream)(int32_t device, void** stream);
};
inline Functions library;

// Of one layer, what tensors are compared with. All zero: there is no such layer.
struct LayerShape {
  int32_t q_heads, kv_heads, head_dim, value_dim;
};

// One call at a time; but the Python package's attends in workspaces of their own share a turn.
class Turn {
 public:
  void lock() {
    mutex_.lock();
    owner_ = std::this_thread::get_id();
  }
  void unlock() {
    owner_ = std::thread::id();
    mutex_.unlock();
  }
  void lock_shared() { mutex_.lock_shared(); }
  void unlock_shared() { mutex_.unlock_shared(); }
  // Whether this thread has it already: an allocator of the caller's that calls an operator.
  bool is_mine() const { return owner_ == std::this_thread::get_id(); }

 private:
  std::shared_mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

// A cache, or a codec.
struct BoundCache {
  tq_cache* cache = nullptr;
  tq_codec* codec = nullptr;
  int32_t device_type = 0, device_id = 0, dtype = 0;
  std::vector<LayerShape> layers;
  Turn turn;
};
struct BoundBatch {
  std::shared_ptr<BoundCache> cache;
  tq_batch* batch = nullptr;
};

// A step of a codec, as it was planned last: workspace NULL if never.
struct BoundStep {
  std::shared_ptr<BoundCache> codec;
  tq_paged_step step = {};
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

// Numbers are never given twice.
struct Registry {
  std::shared_mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<BoundCache>> caches;
  std::unordered_map<int64_t, BoundBatch> batches;
  std::unordered_map<int64_t, BoundStep> steps;
  int64_t last_number = 0;
};
inline Registry registry;

template <typename Bound>
Bound find(const std::unordered_map<int64_t, Bound>& all, int64_t number) {
  std::shared_lock<std::shared_mutex> lock(registry.mutex);
  const auto found = all.find(number);
  return found == all.end() ? Bound() : found->second;
}

[[noreturn]] inline void refuse(const std::string& text) {
  throw std::runtime_error("TQ_ERROR_INVALID_ARGUMENT: " + text);
}
[[noreturn]] inline void refuse_state(const std::string& text) {
  throw std::runtime_error("TQ_ERROR_INVALID_STATE: " + text);
}
inline void check(tq_status status) {
  if (status != TQ_OK)
    throw std::runtime_error(std::string(library.status_name(status)) + ": " + library.last_error());
}

}  // namespace torch_ops
}  // namespace tq
