// SPDX-License-Identifier: Apache-2.0
// The CUDA backend around its kernels: capture and replay, every CUDA call made to fail in turn, slots and
// pages, merge.  backend_test [--small]
#include <math.h>

#include "failing_calls.cuh"
#include "test_cache.cuh"
#include "tile_moves.cuh"

namespace {

using namespace gpu_test;
using tq::Status;
using tq::cuda::real_runtime;
using tq::cuda::runtime;

// ---- Failing calls ----

int64_t live_blocks = 0;
void* counting_alloc(void*, size_t bytes, size_t, int32_t, int32_t) {
  void* pointer = nullptr;
  if (fails() || cudaMalloc(&pointer, bytes) != cudaSuccess) return nullptr;
  live_blocks++;
  return pointer;
}
void counting_free(void*, void* pointer, size_t, int32_t, int32_t) {
  cudaFree(pointer);
  live_blocks--;
}

Config small_config() {
  Config config;
  config.tokens = 128;
  config.sequences = 2;
  config.window = 10;
  config.sinks = 3;
  config.page_size = 32;
  return config;
}

// Runs one verb; whether it threw. A failed verb is then repeated without failures, as a caller could.
template <typename Verb>
bool attempt(Verb verb) {
  std::string text;
  const Status status = status_of_call(verb, &text);
  if (status == Status::kOk) return false;
  check(status == Status::kCuda || status == Status::kOutOfMemory, "injected failure: status %d, text '%s'",
        static_cast<int>(status), text.c_str());
  check(text.find("cudaErrorUnknown") != std::string::npos || text.find("allocating ") != std::string::npos,
        "text '%s' has no CUDA error name", text.c_str());
  fail_at = -1;
  verb();
  return true;
}

// One life of a cache with call number n failing: everything still ends right, nothing leaks. False when n is
// beyond the last call.
bool life(int n, const tq::HostOps& ops) {
  static std::vector<float> usual;  // all attention outputs of a life without failures
  Config config = small_config();
  const size_t rows = static_cast<size_t>(config.sequences * config.heads);
  const Buffer<uint8_t> q(std::vector<uint8_t>(rows * config.head_dim * 2, 0x38));
  Buffer<float> out(rows * config.value_dim), lse(rows), merged(rows * config.value_dim), merged_lse(rows);
  std::vector<float> seen;
  calls = 0;
  fail_at = n;
  std::unique_ptr<TestCache> cache;
  int thrown = 0;
  thrown += attempt([&] { cache.reset(new TestCache(config, ops)); });
  TestCache& c = *cache;
  c.queries = 1;
  for (const std::vector<int64_t>& step :
       {std::vector<int64_t>{40, 1}, std::vector<int64_t>{1, 2}, std::vector<int64_t>{1, 33}}) {
    c.prepare_plan(step);
    thrown += attempt([&] { c.backend->upload_plan(c.last, nullptr); });
    c.fill(0);
    thrown += attempt([&] { c.append(0); });
    thrown += attempt([&] { c.attend(0, q.get(), out.get(), lse.get()); });
    const void* outs[] = {out.get(), out.get()};
    const float* lses[] = {lse.get(), lse.get()};
    thrown += attempt([&] {
      tq::cuda::merge_states_cuda(tq::MergeRequest{2, outs, lses, static_cast<int64_t>(rows),
                                                   config.value_dim, tq::DataType::kF32, merged.get(),
                                                   merged_lse.get(), 0, nullptr});
    });
    GPU_MUST(cudaDeviceSynchronize());
    for (const Buffer<float>* buffer : {&out, &lse, &merged, &merged_lse}) {
      const std::vector<float> host = buffer->host();
      seen.insert(seen.end(), host.begin(), host.end());
    }
  }
  if (usual.empty()) usual = seen;
  check(seen.size() == usual.size() && !memcmp(seen.data(), usual.data(), seen.size() * sizeof(float)),
        "call %d failing: other outputs of attend or merge", n);
  const tq::PageCopy copy = {static_cast<int32_t>(c.geometry.groups[0].num_pages - 1),
                             static_cast<int32_t>(c.geometry.groups[0].num_pages - 1)};
  thrown += attempt([&] { c.backend->copy_pages(0, &copy, 1, nullptr); });
  tq::TileMove move(c.geometry.tile(0));  // a page that nobody holds, to itself
  move.source = move.target = c.backend->tiles(0);
  move.source.pages = move.target.pages = &copy.target;
  move.heads = config.heads, move.tiles = 1, move.end = 32;
  thrown += attempt([&] { c.backend->move_tiles(move); });
  thrown += attempt([&] { c.backend->add_to_slot(config.sequences - 1, 0, nullptr, nullptr); });
  GPU_MUST(cudaDeviceSynchronize());
  uint64_t flags = 0;
  thrown += attempt([&] { flags = c.backend->check(nullptr); });
  const int used = calls;
  const bool reached = n < 0 || used >= n;
  fail_at = -1;
  check(flags == 1u, "call %d failing: flags %llu", n, static_cast<unsigned long long>(flags));
  c.verify("after a failing call");
  c.verify("after a failing call", true);
  if (n > 0 && n <= used) check(thrown <= 1, "call %d failing: %d verbs threw", n, thrown);
  fail_at = n - used > 0 ? calls + n - used : -1;  // the rest of the turns fall on destruction
  const int before = calls;
  cache.reset();
  const int destruction = calls - before;
  fail_at = -1;
  return reached || n <= used + destruction;
}

void failures() {
  count_calls();
  const tq::HostOps counting = {nullptr, counting_alloc, counting_free};
  for (const tq::HostOps& ops : {counting, tq::HostOps{}}) {
    life(-1, ops);
    GPU_MUST(cudaDeviceSynchronize());
    size_t free_before = 0, free_after = 0, total = 0;
    GPU_MUST(cudaMemGetInfo(&free_before, &total));
    int n = 1;
    while (life(n, ops)) n++;
    GPU_MUST(cudaDeviceSynchronize());
    GPU_MUST(cudaMemGetInfo(&free_after, &total));
    check(live_blocks == 0, "%lld blocks of the caller's allocator leaked",
          static_cast<long long>(live_blocks));
    check_held({}, "after all lives");
    check(free_before == free_after, "device memory: %zu bytes free before, %zu after", free_before,
          free_after);
    check(n > 40, "only %d calls were made to fail", n - 1);
    printf("   %d CUDA calls and allocations made to fail in turn (%s)\n", n - 1,
           ops.alloc ? "caller's allocator" : "cudaMalloc");
  }
  runtime() = real_runtime();
}

// ---- Capture ----

void capture() {
  Config config;
  config.tokens = 600;
  config.window = 33;
  config.sinks = 5;
  TestCache cache(config);
  cudaStream_t stream;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const std::vector<int64_t> one(config.sequences, 1);
  cache.step({3, 40, 64, 0});
  GPU_MUST(cudaDeviceSynchronize());
  cache.plan(one, stream);
  cache.fill(0, stream);
  GPU_MUST(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  GPU_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cache.append(0, stream);
  const Status refused = status_of_call([&] { cache.backend->upload_plan(cache.last, stream); });
  const Status refused_create =
      status_of_call([&] { tq::cuda::create_cuda_backend(cache.geometry, {}, cache.pool.get(), stream); });
  const Status refused_copy = status_of_call([&] { cache.backend->copy_slot(0, 1, stream); });
  const Status refused_check = status_of_call([&] { cache.backend->check(stream); });
  GPU_MUST(cudaStreamEndCapture(stream, &graph));  // the refusals left the capture whole
  check(refused == Status::kCapture, "plan in a capture: status %d", static_cast<int>(refused));
  check(refused_create == Status::kCapture, "create in a capture: status %d",
        static_cast<int>(refused_create));
  check(refused_copy == Status::kCapture, "copy_slot in a capture: status %d",
        static_cast<int>(refused_copy));
  check(refused_check == Status::kCapture, "check in a capture: status %d", static_cast<int>(refused_check));
  GPU_MUST(cudaGraphInstantiate(&executable, graph, 0));
  GPU_MUST(cudaGraphLaunch(executable, stream));
  // The first plan is in; later steps replay the same launch on other plans, some much larger than the
  // captured one.
  int replays = 1;
  for (int i = 0; i < 100; i++) {
    const bool large = i % 25 == 24;
    cache.plan(large ? std::vector<int64_t>{70, 5, 33, 32} : std::vector<int64_t>{1, i % 3, 2, 1}, stream);
    cache.fill(0, stream);
    GPU_MUST(cudaGraphLaunch(executable, stream));
    replays++;
  }
  GPU_MUST(cudaStreamSynchronize(stream));
  cache.verify_layer("graph replay", 0);
  printf("   one captured append replayed %d times over growing and changing plans\n", replays);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// ---- Memory that nothing has written ----

struct Block {
  uint8_t* data;
  size_t bytes;
};
std::vector<Block> dirty_blocks;
void* dirty_alloc(void*, size_t bytes, size_t, int32_t, int32_t) {
  void* pointer = nullptr;
  GPU_MUST(cudaMalloc(&pointer, bytes));
  GPU_MUST(cudaMemset(pointer, 0xA5, bytes));
  dirty_blocks.push_back(Block{static_cast<uint8_t*>(pointer), bytes});
  return pointer;
}
void dirty_free(void*, void* pointer, size_t, int32_t, int32_t) { cudaFree(pointer); }

int64_t nonzero(const uint8_t* data, size_t bytes) {
  std::vector<uint8_t> host(bytes);
  GPU_MUST(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost));
  return static_cast<int64_t>(bytes) - std::count(host.begin(), host.end(), 0);
}

// Pages and exact copies start as zeros, in the cache's own memory and in the caller's pool.
void starts_zeroed() {
  Config config = small_config();
  config.layers = 2;
  TestCache cache(config);
  const tq::BackendBytes bytes = tq::cuda::cuda_backend_bytes(cache.geometry);
  const tq::HostOps dirty = {nullptr, dirty_alloc, dirty_free};
  GPU_MUST(cudaMemset(cache.pool.get(), 0xA5, cache.pool.size()));
  for (void* pool : {static_cast<void*>(nullptr), static_cast<void*>(cache.pool.get())}) {
    dirty_blocks.clear();
    const std::unique_ptr<tq::Backend> backend =
        tq::cuda::create_cuda_backend(cache.geometry, dirty, pool, nullptr);
    int seen = 0;
    for (const Block& block : dirty_blocks) {
      const bool pages = static_cast<int64_t>(block.bytes) == bytes.pages;
      if (!pages && static_cast<int64_t>(block.bytes) != bytes.raw) continue;
      seen++;
      const int64_t wrong = nonzero(block.data, block.bytes);
      check(wrong == 0, "%s: %lld bytes of a new cache are not zero", pages ? "pages" : "exact copies",
            static_cast<long long>(wrong));
    }
    check(seen == (pool ? 1 : 2), "%d blocks found", seen);
    if (!pool) continue;
    const int64_t wrong = nonzero(cache.pool.get(), cache.pool.size());
    check(wrong == 0, "caller's pool: %lld bytes of a new cache are not zero", static_cast<long long>(wrong));
  }
}

// ---- Slots, pages, merge ----

void slots_and_pages() {
  Config config = small_config();
  config.layers = 2;
  TestCache cache(config);
  cache.step({50, 50});
  // Copy all pages of sequence 0 onto those of sequence 1, exact copies and flags too: sequence 1 now reads
  // as sequence 0 did.
  const std::vector<uint8_t> before = cache.pool.host();
  std::vector<tq::PageCopy> copies;
  for (size_t i = 0; i < cache.pages(0).size(); i++)
    copies.push_back(tq::PageCopy{cache.pages(0)[i], cache.pages(1)[i]});
  cache.backend->copy_pages(0, copies.data(), static_cast<int64_t>(copies.size()), nullptr);
  const std::vector<int32_t> exact = cache.raw_pages(0), other = cache.raw_pages(1);
  std::vector<tq::PageCopy> exact_copies;
  for (size_t i = 0; i < exact.size(); i++) exact_copies.push_back(tq::PageCopy{exact[i], other[i]});
  cache.backend->copy_pages(1, exact_copies.data(), static_cast<int64_t>(exact_copies.size()), nullptr);
  cache.backend->copy_slot(0, 1, nullptr);
  GPU_MUST(cudaDeviceSynchronize());
  std::vector<uint8_t> after = cache.pool.host();
  int64_t wrong = 0;
  std::vector<uint8_t> expected = before;
  int64_t at = 0;
  for (int layer = 0; layer < config.layers; layer++) {
    const int64_t page_bytes = cache.geometry.page_bytes(layer);
    for (const tq::PageCopy& copy : copies)
      memcpy(expected.data() + at + copy.target * page_bytes, before.data() + at + copy.source * page_bytes,
             static_cast<size_t>(page_bytes));
    at += padded(page_bytes * cache.geometry.groups[0].num_pages);
  }
  for (size_t i = 0; i < expected.size(); i++) wrong += expected[i] != after[i];
  check(wrong == 0, "copy_pages: %lld bytes wrong", static_cast<long long>(wrong));
  check(cache.read_all(0) == cache.read_all(1), "copy_pages: the copy reads differently");
  check(cache.backend->slot_flags(1) == 1, "copy_slot: flags");

  cache.backend->scrub_pages(0, cache.pages(1).data(), static_cast<int64_t>(cache.pages(1).size()), nullptr);
  cache.backend->scrub_pages(1, other.data(), static_cast<int64_t>(other.size()), nullptr);
  cache.backend->start_slot(1, nullptr);
  GPU_MUST(cudaDeviceSynchronize());
  check(cache.backend->slot_flags(1) == 0, "start_slot: flags are not cleared");
  check(cache.backend->slot_flags(0) == 1, "start_slot: another slot's flags");
  after = cache.pool.host();
  wrong = 0;
  at = 0;
  for (int layer = 0; layer < config.layers; layer++) {
    const int64_t page_bytes = cache.geometry.page_bytes(layer);
    for (int32_t page : cache.pages(1))
      memset(expected.data() + at + page * page_bytes, 0, static_cast<size_t>(page_bytes));
    at += padded(page_bytes * cache.geometry.groups[0].num_pages);
  }
  for (size_t i = 0; i < expected.size(); i++) wrong += expected[i] != after[i];
  check(wrong == 0, "scrub_pages: %lld bytes wrong", static_cast<long long>(wrong));
  cache.length[1] = 0;
  cache.verify("the other sequence after scrubbing");
  cache.verify("the other sequence after scrubbing", true);
}

void merge() {
  for (int states : {1, 2, 5, 33, 1024})
    for (int dim : {64, 128, 576})
      for (tq::DataType type : {tq::DataType::kF32, tq::DataType::kF16, tq::DataType::kBF16}) {
        const int64_t rows = 7;
        std::vector<Buffer<uint8_t>> outs;
        std::vector<Buffer<float>> lses;
        std::vector<const void*> out_pointers;
        std::vector<const float*> lse_pointers;
        std::vector<double> sum(rows * dim), weight(rows), top(rows, -INFINITY);
        std::vector<std::vector<float>> values, logs;
        const Source source = {static_cast<uint64_t>(states * 1000 + dim), type, 0};
        for (int s = 0; s < states; s++) {
          std::vector<uint8_t> bytes(rows * dim * tq::dtype_bytes(type));
          std::vector<float> value(rows * dim), log(rows);
          for (int64_t r = 0; r < rows; r++) {
            // Row 6 is empty everywhere; elsewhere one part in five is, and its out holds NaN.
            const bool empty = r == 6 || (states > 1 && mix64(s * 100 + r) % 5 == 0);
            log[r] =
                empty ? -INFINITY : element_value(Source{9, type, 0}, 0x800 + s, static_cast<int>(r), 8) * 5;
            if (!empty) top[r] = std::max(top[r], static_cast<double>(log[r]));
            for (int i = 0; i < dim; i++) {
              const uint32_t bits = empty ? 0x7FC07E01u : element_bits(source, 0x800 + s * 64 + r, i, dim);
              value[r * dim + i] = bits_value(type, bits);
              memcpy(bytes.data() + (r * dim + i) * tq::dtype_bytes(type), &bits, tq::dtype_bytes(type));
            }
          }
          outs.emplace_back(bytes);
          lses.emplace_back(log);
          out_pointers.push_back(outs.back().get());
          lse_pointers.push_back(lses.back().get());
          values.push_back(value);
          logs.push_back(log);
        }
        for (int s = 0; s < states; s++)
          for (int64_t r = 0; r < rows; r++) {
            if (logs[s][r] == -INFINITY) continue;
            const double w = exp(logs[s][r] - top[r]);
            weight[r] += w;
            for (int i = 0; i < dim; i++) sum[r * dim + i] += w * values[s][r * dim + i];
          }
        // In place over the last part, as the manual allows.
        void* out = const_cast<void*>(out_pointers.back());
        Buffer<float> lse(rows);
        tq::cuda::merge_states_cuda(tq::MergeRequest{states, out_pointers.data(), lse_pointers.data(), rows,
                                                     dim, type, out, lse.get(), 0, nullptr});
        GPU_MUST(cudaDeviceSynchronize());
        const std::vector<uint8_t> bytes = outs.back().host();
        const std::vector<float> got_lse = lse.host();
        // Float32 sums of `states` terms: about sqrt(states) roundings of 2^-24, exponentials included; then
        // one rounding to the type.
        const double unit = type == tq::DataType::kF32 ? 0 : type == tq::DataType::kF16 ? 0x1p-11 : 0x1p-8;
        const double bound = unit + 64 * 0x1p-24 * (1 + sqrt(static_cast<double>(states)));
        double error = 0, size = 0, lse_error = 0;
        bool empty_right = true;
        for (int64_t r = 0; r < rows; r++) {
          for (int i = 0; i < dim; i++) {
            uint32_t bits = 0;
            memcpy(&bits, bytes.data() + (r * dim + i) * tq::dtype_bytes(type), tq::dtype_bytes(type));
            const double got = bits_value(type, bits),
                         want = weight[r] > 0 ? sum[r * dim + i] / weight[r] : 0;
            if (weight[r] == 0) empty_right &= got == 0;
            error += (got - want) * (got - want);
            size += want * want;
          }
          if (weight[r] == 0)
            empty_right &= got_lse[r] == -INFINITY;
          else
            lse_error = std::max(lse_error, fabs(got_lse[r] - (top[r] + log(weight[r]))));
        }
        check(sqrt(error) <= bound * sqrt(size) || (states == 1 && error == 0),
              "merge of %d states, dim %d, dtype %d: relative error %.3g, bound %.3g", states, dim,
              static_cast<int>(type), sqrt(error / size), bound);
        check(lse_error < 2e-5, "merge of %d states, dim %d, dtype %d: lse error %.3g", states, dim,
              static_cast<int>(type), lse_error);
        check(empty_right, "merge of %d states: the empty row", states);
      }
}

void devices() {
  check(tq::cuda::cuda_device_count() >= 1, "no device");
  const tq::DeviceInfo info = tq::cuda::cuda_device_info(0);
  check(info.num_units > 0 && info.memory_bytes > 0 && info.name[0], "device info");
  printf("   %s, compute capability %d.%d, %d multiprocessors\n", info.name, info.compute_major,
         info.compute_minor, info.num_units);
  check(status_of_call([] { tq::cuda::cuda_device_info(99); }) == Status::kNoDevice, "device 99");
  runtime().get_device_count = [](int*) { return cudaErrorInsufficientDriver; };
  check(tq::cuda::cuda_device_count() == 0, "no driver: count");
  runtime() = real_runtime();
  Config config = small_config();
  TestCache cache(config);
  const tq::BackendBytes bytes = tq::cuda::cuda_backend_bytes(cache.geometry);
  check(bytes.pages == static_cast<int64_t>(cache.pool.size()), "page bytes %lld, pool %zu",
        static_cast<long long>(bytes.pages), cache.pool.size());
  tq::ReasonList reasons;
  tq::cuda::check_cuda_backend(cache.geometry, reasons);
  check(reasons.empty(), "reasons: %s", reasons.text());
}

// LSEs that are not finite or near the ends of float: which part's output a row is (-1: zeros, -2: NaN) and
// its LSE, said case by case.
void merge_of_any_lse() {
  const float inf = INFINITY;
  const struct {
    float lse[3];
    int part;
    float merged;
  } cases[] = {{{-inf, -inf, -inf}, -1, -inf},    {{inf, 1, 2}, 0, inf},
               {{1, inf, inf}, 1, inf},           {{1, NAN, 2}, -2, NAN},
               {{inf, 1, NAN}, -2, NAN},          {{3e38f, 1, -3e38f}, 0, 3e38f},
               {{-inf, -3e38f, -inf}, 1, -3e38f}, {{-3e38f, -inf, 3e38f}, 2, 3e38f},
               {{NAN, -inf, -inf}, -2, NAN}};
  const int64_t rows = std::size(cases);
  const int dim = 40;
  std::vector<Buffer<float>> outs, lses;
  const void* out_pointers[3];
  const float* lse_pointers[3];
  for (int part = 0; part < 3; part++) {
    std::vector<float> out(rows * dim), lse(rows);
    for (int64_t r = 0; r < rows; r++) {
      lse[r] = cases[r].lse[part];
      for (int i = 0; i < dim; i++) out[r * dim + i] = lse[r] == -inf ? NAN : 100.0f * part + r + i / 64.0f;
    }
    outs.emplace_back(out);
    lses.emplace_back(lse);
    out_pointers[part] = outs.back().get();
    lse_pointers[part] = lses.back().get();
  }
  Buffer<float> merged(rows * dim), merged_lse(rows);
  tq::cuda::merge_states_cuda(tq::MergeRequest{3, out_pointers, lse_pointers, rows, dim, tq::DataType::kF32,
                                               merged.get(), merged_lse.get(), 0, nullptr});
  GPU_MUST(cudaDeviceSynchronize());
  const std::vector<float> got = merged.host(), got_lse = merged_lse.host();
  for (int64_t r = 0; r < rows; r++) {
    const int part = cases[r].part;
    bool right = part == -2 ? isnan(got_lse[r]) : got_lse[r] == cases[r].merged;
    for (int i = 0; i < dim; i++) {
      const float x = got[r * dim + i];
      right &= part == -2 ? isnan(x) : x == (part < 0 ? 0.0f : 100.0f * part + r + i / 64.0f);
    }
    check(right, "merge of lse %g %g %g: lse %g, out %g ...", cases[r].lse[0], cases[r].lse[1],
          cases[r].lse[2], got_lse[r], got[r * dim]);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const bool small = count > 1 && std::string(arguments[1]) == "--small";  // under a sanitizer
  try {
    devices();
    starts_zeroed();
    slots_and_pages();
    moved_tiles(small_config());
    capture();
    merge();
    merge_of_any_lse();
    if (!small) failures();
  } catch (const tq::Error& error) {
    gpu_test::check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("backend_test");
}
