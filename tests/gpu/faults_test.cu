// SPDX-License-Identifier: Apache-2.0
// Every CUDA call and every allocation of every call of the C API made to fail: create, plan, append, attend,
// fork, truncate, remove, select, reserve, copies between caches of both devices, export, import, save, load,
// free; and of a codec's. A call that fails says so, has changed nothing that can be seen and leaves nothing
// behind; made again without a failure it does what it always does. Each failing point is tried alone and as
// the first of all that follow.
//
// Method: one life of three caches is run without failures, and what can be seen after each call is kept.
// Then it is run again; before each call takes effect, it is made to fail at its point 1, 2, .. until there
// is none left to fail, and that last success must give what was kept. All of it once more with windows whose
// tokens are stored once.  faults_test [--quick]: each point alone.
#include <functional>
#include <map>

#include "../counted_new.h"
#include "failing_calls.cuh"
#include "faults_world.cuh"
#ifdef TQ_EMULATE
#include "streams.h"
#endif

namespace {

int64_t allocations = 0, fail_allocation = -1;
bool counting = false;

// Not the CUDA runtime, nor what stands for it. Launches are calls of the runtime's table on a device alone.
#ifdef TQ_EMULATE
bool runtime_is_at_work() { return gpu_test::inside > 0 || emulate::busy > 0 || emulate::starting; }
void fail_launches(bool too) {
  emulate::before_launch = nullptr;
  if (too)
    emulate::before_launch = [] { return counting && gpu_test::fails() ? gpu_test::injected : cudaSuccess; };
}
#else
bool runtime_is_at_work() { return gpu_test::inside > 0; }
void fail_launches(bool) {}
#endif
bool library_is_at_work() { return counting && !runtime_is_at_work(); }

}  // namespace

bool counted_new::refuse() {
  if (!library_is_at_work()) return false;
  allocations++;
  return allocations == fail_allocation ||
         (gpu_test::fail_for_ever && fail_allocation > 0 && allocations > fail_allocation);
}

namespace {

using namespace gpu_test;

constexpr int kDim = World::kDim, kLayers = World::kLayers;

bool stores_once = false;  // the lives that follow

tq_cache_config config_of(int device, int page_size, int64_t reserve) {
  static const int32_t key_bits[kLayers] = {4, 16}, value_bits[kLayers] = {3, 16};
  tq_cache_config config;
  API_MUST(tq_cache_config_init(&config));
  config.device_type = device;
  config.num_layers = kLayers;
  config.num_q_heads = 2, config.num_kv_heads = 1, config.head_dim = kDim;
  config.io_dtype = TQ_F32;
  config.layer_key_bits = key_bits, config.layer_value_bits = value_bits;
  config.page_size = page_size;
  config.max_tokens = World::kMostTokens, config.max_reserve_tokens = reserve;
  config.max_sequences = 4;
  config.window_tokens = 5, config.sink_tokens = 2, config.rollback_tokens = 2;
  config.num_threads = 1;
  config.flags = stores_once ? TQ_FLAG_STORE_ONCE : 0;
  return config;
}

struct Step {
  const char* name;
  std::function<tq_status(World&)> call;
};

tq_status planned(World& w, tq_sequence sequence, int64_t count, int64_t queries) {
  return tq_batch_plan(w.batch, 1, &sequence, &count, &queries, nullptr);
}
tq_status appended(World& w, int layer) {
  return tq_cache_append(w.main, layer, w.batch, w.k.get(), w.k.get(), nullptr, nullptr);
}
tq_status attended(World& w, int layer) {
  return tq_cache_attend(w.main, layer, w.batch, w.k.get(), w.out.get(), w.lse.as<float>(), nullptr, nullptr,
                         0, nullptr);
}

// A saved sequence in memory of the world's: nothing is allocated in the callbacks.
int32_t write_saved(void* user, const void* bytes, size_t count) {
  World& w = *static_cast<World*>(user);
  if (count > World::kPartBytes - w.saved_bytes) return 7;
  memcpy(w.saved.as<uint8_t>() + w.saved_bytes, bytes, count);
  w.saved_bytes += count;
  return 0;
}
int32_t read_saved(void* user, void* bytes, size_t count) {
  World& w = *static_cast<World*>(user);
  if (count > w.saved_bytes - w.read_bytes) return 1;
  memcpy(bytes, w.saved.as<uint8_t>() + w.read_bytes, count);
  w.read_bytes += count;
  return 0;
}
// The same part to memory of one kind, and from it; by layers.
tq_status exported(World& w, const Memory& memory) {
  return tq_sequence_export(w.main, w.a, &w.state, memory.get(), memory.size(), nullptr);
}
tq_status imported(World& w, const Memory& memory, int layer) {
  tq_state part = w.state;
  part.first_layer = layer, part.num_layers = 1;
  const tq_status described = tq_sequence_describe(w.main, w.a, &part);
  if (described != TQ_OK) return described;
  const int64_t at = layer == 0 ? 0 : w.state.bytes - part.bytes;
  return tq_sequence_import(w.other, w.put, &part, memory.as<uint8_t>() + at, static_cast<size_t>(part.bytes),
                            nullptr);
}
void add_state_steps(std::vector<Step>* list) {
  list->push_back({"describe", [](World& w) {
                     w.state.struct_size = sizeof w.state;
                     return tq_sequence_describe(w.main, w.a, &w.state);
                   }});
  list->push_back({"export, pinned", [](World& w) { return exported(w, w.pinned); }});
  list->push_back({"export, not pinned", [](World& w) { return exported(w, w.pageable); }});
  list->push_back({"sequence_create", [](World& w) { return tq_sequence_create(w.other, &w.put); }});
  list->push_back({"import, pinned", [](World& w) { return imported(w, w.pinned, 0); }});
  list->push_back({"import, not pinned", [](World& w) { return imported(w, w.pageable, 1); }});
  list->push_back({"save", [](World& w) {
                     w.saved_bytes = 0;
                     const tq_io io = {sizeof io, 0, &w, write_saved, nullptr, nullptr};
                     return tq_sequence_save(w.main, w.a, &io, nullptr);
                   }});
  list->push_back({"load", [](World& w) {
                     w.read_bytes = 0;
                     const tq_io io = {sizeof io, 0, &w, nullptr, read_saved, nullptr};
                     return tq_sequence_load(w.other, &io, nullptr, &w.loaded);
                   }});
}

std::vector<Step> steps() {
  static std::vector<float> centre(kDim, 0.25f), identity(kDim * kDim, 0.0f),
      matrices = key_matrices(1, kDim, 3);
  for (int i = 0; i < kDim; i++) identity[static_cast<size_t>(i * (kDim + 1))] = 1;
  const auto created = [](int device, int page_size, int64_t reserve, tq_cache** cache) {
    const tq_cache_config config = config_of(device, page_size, reserve);
    return tq_cache_create(&config, nullptr, cache);
  };
  std::vector<Step> list = {
      {"create", [=](World& w) { return created(TQ_DEVICE_CUDA, 32, 1024, &w.main); }},
      {"create, another page size", [=](World& w) { return created(TQ_DEVICE_CUDA, 96, 0, &w.other); }},
      {"create, CPU", [=](World& w) { return created(TQ_DEVICE_CPU, 64, 0, &w.host); }},
      {"batch_create", [](World& w) { return tq_batch_create(w.main, &w.batch); }},
      {"sequence_create", [](World& w) { return tq_sequence_create(w.main, &w.a); }},
  };
  for (int which = 0; which < 3; which++)
    list.push_back({"set_centres", [which](World& w) {
                      return tq_cache_set_centres(which == 0   ? w.main
                                                  : which == 1 ? w.other
                                                               : w.host,
                                                  0, centre.data(), nullptr);
                    }});
  // Taken at first, then filled anew.
  for (const std::vector<float>* matrix : {&identity, &matrices})
    for (const auto cache : {&World::main, &World::other, &World::host})
      list.push_back(
          {"set_key_matrix", [=](World& w) { return tq_cache_set_key_matrix(w.*cache, 0, matrix->data()); }});
  const auto served = [&](const char* plan, tq_sequence World::*sequence, int64_t count, int64_t queries) {
    list.push_back({plan, [=](World& w) { return planned(w, w.*sequence, count, queries); }});
    for (int layer = 0; layer < kLayers; layer++)
      list.push_back({"append", [=](World& w) { return appended(w, layer); }});
    for (int layer = 0; layer < kLayers; layer++)
      list.push_back({"attend", [=](World& w) { return attended(w, layer); }});
  };
  served("plan", &World::a, 70, 3);
  served("plan, exact copies given back", &World::a, 1, 1);
  list.push_back({"fork", [](World& w) { return tq_sequence_fork(w.main, w.a, nullptr, &w.b); }});
  served("plan, a shared page copied", &World::b, 5, 2);
  list.push_back({"read", [](World& w) {
                    return tq_cache_read(w.main, 0, w.b, 0, 76, w.out.get(), nullptr, nullptr, nullptr);
                  }});
  list.push_back({"truncate", [](World& w) { return tq_sequence_truncate(w.main, w.b, 60, nullptr); }});
  list.push_back({"remove", [](World& w) { return tq_sequence_remove(w.main, w.b, 3, 20, nullptr); }});
  list.push_back({"select", [](World& w) {
                    static const int64_t kept[] = {0, 1, 5, 6, 17, 20, 38, 39};
                    return tq_sequence_select(w.main, w.b, kept, 8, nullptr);
                  }});
  list.push_back({"reserve", [](World& w) { return tq_cache_reserve(w.main, 1000, nullptr); }});
  list.push_back({"copy, CUDA to CUDA",
                  [](World& w) { return tq_sequence_copy(w.main, w.a, w.other, nullptr, &w.there); }});
  list.push_back({"copy, CUDA to CPU",
                  [](World& w) { return tq_sequence_copy(w.main, w.a, w.host, nullptr, &w.away); }});
  list.push_back({"copy, CPU to CUDA",
                  [](World& w) { return tq_sequence_copy(w.host, w.away, w.main, nullptr, &w.back); }});
  add_state_steps(&list);
  served("plan, what came back", &World::back, 3, 3);
  list.push_back({"check", [](World& w) {
                    uint64_t flags = 0;
                    return tq_cache_check(w.main, nullptr, &flags);
                  }});
  list.push_back({"merge_states", [](World& w) {
                    const void* outs[] = {w.out.get(), w.out.get()};
                    const float* lses[] = {w.lse.as<float>(), w.lse.as<float>()};
                    return tq_merge_states(2, outs, lses, 6, kDim, TQ_F32, w.out.get(), nullptr,
                                           TQ_DEVICE_CUDA, 0, nullptr);
                  }});
  list.push_back({"codec_create", [](World& w) { return w.engine.create(); }});
  list.push_back({"codec_set_centres", [](World& w) {
                    return tq_codec_set_centres(w.engine.codec, 0, centre.data(), centre.data());
                  }});
  list.push_back({"paged_plan", [](World& w) { return w.engine.plan(); }});
  list.push_back({"paged_append", [](World& w) { return w.engine.append(w.k.get()); }});
  list.push_back({"paged_attend", [](World& w) { return w.engine.attend(w.k.get()); }});
  list.push_back({"paged_copy", [](World& w) { return w.engine.copy(); }});
  list.push_back({"paged_read", [](World& w) { return w.engine.read(); }});
  list.push_back({"codec_check", [](World& w) { return tq_codec_check(w.engine.codec, nullptr, nullptr); }});
  list.push_back({"free", [](World& w) {
                    const tq_status status = tq_sequence_free(w.main, w.b, nullptr);
                    if (status == TQ_OK) w.b = 0;
                    return status;
                  }});
  return list;
}

// Points of a step that were made to fail, by kind.
enum Kind { kCudaCall, kAllocation };
const char* const kKinds[] = {"CUDA call", "allocation"};
struct Progress {
  int64_t next[2] = {1, 1};
  bool finished[2] = {};
};

// The step with its point n failing. reached: whether there is such a point. Whether the call failed; then
// nothing has changed.
bool fails_cleanly(World& w, const Step& step, Kind kind, int64_t n, const std::string& before,
                   bool* reached) {
  const Holdings holdings = held;
  const int64_t blocks = counted_new::live;
  calls = 0, allocations = 0;
  if (kind == kCudaCall)
    fail_at = static_cast<int>(n);
  else
    fail_allocation = n;
  counting = true;
  const tq_status status = step.call(w);
  counting = false;
  fail_at = -1, fail_allocation = -1;
  *reached = (kind == kCudaCall ? calls : allocations) >= n;
  if (status == TQ_OK) return false;
  const int64_t blocks_after = counted_new::live;
  const std::string point = std::string(step.name) + ", " + kKinds[kind] + " " + std::to_string(n);
  check(blocks_after == blocks, "%s failing: %lld blocks of host memory are left", point.c_str(),
        static_cast<long long>(blocks_after - blocks));
  check_held(holdings, point.c_str());
  GPU_MUST(cudaDeviceSynchronize());
  check(*reached, "%s fails by itself: %s", step.name, tq_last_error());
  check(status == TQ_ERROR_OUT_OF_MEMORY || (kind == kCudaCall && status == TQ_ERROR_CUDA),
        "%s failing: status %d: %s", point.c_str(), status, tq_last_error());
  check(w.seen() == before, "%s failing: something has changed: %s", point.c_str(), tq_last_error());
  return true;
}

// What is seen after each step of a life without failures.
std::vector<std::string> usual_life() {
  std::vector<std::string> seen;
  World w;
  for (const Step& step : steps()) {
    API_MUST(step.call(w));
    seen.push_back(w.seen());
  }
  w.end();
  return seen;
}

// A life in which every step fails at all its points not tried yet, until it gets over one (a call may do
// without some of CUDA's answers) or there is none left. Whether some are.
bool failing_life(const std::vector<std::string>& usual, std::vector<Progress>* progress) {
  World w;
  bool more = false;
  size_t at = 0;
  for (const Step& step : steps()) {
    const std::string before = w.seen();
    Progress& tried = (*progress)[at];
    bool done = false, reached = true;
    for (const Kind kind : {kCudaCall, kAllocation})
      while (!done && !tried.finished[kind]) {
        const bool failed = fails_cleanly(w, step, kind, tried.next[kind], before, &reached);
        done = !failed;
        tried.finished[kind] = !reached;
        tried.next[kind] += reached;
        if (tally().failed > 20) return false;
      }
    if (!done) API_MUST(step.call(w));
    more |= !tried.finished[kCudaCall] || !tried.finished[kAllocation];
    GPU_MUST(cudaDeviceSynchronize());
    check(w.seen() == usual[at], "%s, after its failures: another result", step.name);
    at++;
  }
  w.end();
  check_held({}, "the end of a life");
  return more;
}

// How many points each call has, by its name up to a comma.
void print_points(const std::vector<Progress>& progress) {
  std::vector<std::string> names;
  std::map<std::string, Progress> sums;
  size_t at = 0;
  for (const Step& step : steps()) {
    const std::string name(step.name, strcspn(step.name, ","));
    if (sums.count(name) == 0) names.push_back(name);
    for (const Kind kind : {kCudaCall, kAllocation}) sums[name].next[kind] += progress[at].next[kind] - 1;
    at++;
  }
  printf("   CUDA calls and allocations of");
  for (const std::string& name : names)
    printf("%s %s %lld + %lld", name == names[0] ? "" : ",", name.c_str(),
           static_cast<long long>(sums[name].next[kCudaCall] - 1),
           static_cast<long long>(sums[name].next[kAllocation] - 1));
  printf("\n");
}

void all_points(const std::vector<std::string>& usual) {
  int lives = 0;
  size_t before = 0, after = 0, total = 0;
  GPU_MUST(cudaMemGetInfo(&before, &total));
  std::vector<Progress> progress(usual.size());
  do lives++;
  while (failing_life(usual, &progress));
  GPU_MUST(cudaDeviceSynchronize());
  GPU_MUST(cudaMemGetInfo(&after, &total));
  check(before == after, "device memory: %zu bytes free before, %zu after", before, after);
  long long points[2] = {};
  for (const Progress& tried : progress)
    for (const Kind kind : {kCudaCall, kAllocation}) points[kind] += tried.next[kind] - 1;
  check(points[kCudaCall] > 150 && points[kAllocation] > 30, "only %lld and %lld points", points[kCudaCall],
        points[kAllocation]);
  printf("   %lld CUDA calls and %lld allocations of %zu calls made to fail%s, %d lives\n", points[kCudaCall],
         points[kAllocation], usual.size(), fail_for_ever ? ", with all that follow" : "", lives);
  if (!fail_for_ever) print_points(progress);
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && !strcmp(arguments[1], "--quick");
  try {
    for (const bool once : {false, true}) {
      stores_once = once;
      const std::vector<std::string> usual = usual_life();
      count_calls();
      // What a driver takes once for such lives is no leak of those that follow.
      for (int i = 0; i < 4; i++) check(usual_life() == usual, "lives without failures differ");
      fail_launches(true);
      for (const bool for_ever : {false, true}) {
        fail_for_ever = for_ever;
        if (!for_ever || !quick) all_points(usual);
      }
      fail_launches(false);
      runtime() = real_runtime();
    }
  } catch (const std::exception& error) {
    gpu_test::check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("faults_test");
}
