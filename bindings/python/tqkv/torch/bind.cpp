// SPDX-License-Identifier: Apache-2.0
// The functions that _torch_extension.py calls: binding, and turns. None throws: ctypes could not pass it on.
#include <mutex>
#include <new>

#include "bound.h"

using tq::torch_ops::BoundCache;
using tq::torch_ops::BoundStep;
using tq::torch_ops::Functions;
using tq::torch_ops::LayerShape;
using tq::torch_ops::registry;
using tq::torch_ops::Turn;

#define TQKV_TORCH_API extern "C" __attribute__((visibility("default")))

using Lock = std::unique_lock<std::shared_mutex>;

// functions: addresses in the order of Functions.
TQKV_TORCH_API void tqkv_torch_open(const Functions* functions) { tq::torch_ops::library = *functions; }

// A cache or a codec, the other one NULL. layers: [num_layers], copied. Returns its number.
TQKV_TORCH_API int64_t tqkv_torch_bind_cache(tq_cache* cache, tq_codec* codec, int32_t device_type,
                                             int32_t device_id, int32_t dtype, const LayerShape* layers,
                                             int32_t num_layers) {
  auto bound = std::make_shared<BoundCache>();
  bound->cache = cache, bound->codec = codec, bound->device_type = device_type, bound->device_id = device_id;
  bound->dtype = dtype;
  bound->layers.assign(layers, layers + num_layers);
  Lock lock(registry.mutex);
  registry.caches[++registry.last_number] = bound;
  return registry.last_number;
}
// Its turn, good until the cache is unbound.
TQKV_TORCH_API Turn* tqkv_torch_turn(int64_t cache) {
  Lock lock(registry.mutex);
  return &registry.caches.at(cache)->turn;
}
// When nobody can take its turn any more.
TQKV_TORCH_API void tqkv_torch_unbind_cache(int64_t cache) {
  Lock lock(registry.mutex);
  registry.caches.erase(cache);
}

TQKV_TORCH_API int64_t tqkv_torch_bind_batch(int64_t cache, tq_batch* batch) {
  Lock lock(registry.mutex);
  registry.batches[++registry.last_number] = {registry.caches.at(cache), batch};
  return registry.last_number;
}
// In the cache's turn: no operator is running on the batch.
TQKV_TORCH_API void tqkv_torch_unbind_batch(int64_t batch) {
  Lock lock(registry.mutex);
  registry.batches.erase(batch);
}

TQKV_TORCH_API int64_t tqkv_torch_bind_step(int64_t codec) {
  Lock lock(registry.mutex);
  registry.steps[++registry.last_number].codec = registry.caches.at(codec);
  return registry.last_number;
}
// What the step's last plan was made of. step is copied; its arrays and the workspace must live as long as
// operators are called.
TQKV_TORCH_API void tqkv_torch_set_step(int64_t number, const tq_paged_step* step, void* workspace,
                                        size_t workspace_bytes) {
  Lock lock(registry.mutex);
  BoundStep& bound = registry.steps.at(number);
  bound.step = *step, bound.workspace = workspace, bound.workspace_bytes = workspace_bytes;
}
TQKV_TORCH_API void tqkv_torch_unbind_step(int64_t number) {
  Lock lock(registry.mutex);
  registry.steps.erase(number);
}

// The arguments behind turn are what Python gives to __exit__.
TQKV_TORCH_API void tqkv_torch_lock(Turn* turn) { turn->lock(); }
TQKV_TORCH_API void tqkv_torch_unlock(Turn* turn, void*, void*, void*) { turn->unlock(); }
TQKV_TORCH_API void tqkv_torch_lock_shared(Turn* turn) { turn->lock_shared(); }
TQKV_TORCH_API void tqkv_torch_unlock_shared(Turn* turn, void*, void*, void*) { turn->unlock_shared(); }

// In a forked process: who held them is not there.
TQKV_TORCH_API void tqkv_torch_after_fork(Turn* turn) {
  new (turn) Turn;
  new (&registry.mutex) std::shared_mutex;
}

// What this was compiled from, as _torch_extension.py counts it.
TQKV_TORCH_API const char* tqkv_torch_sources() { return TQKV_TORCH_SOURCES; }
