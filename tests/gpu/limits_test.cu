// SPDX-License-Identifier: Apache-2.0
// Large caches and broken contexts, through the C API. Pages whose bytes lie around and beyond 2^31 and 2^32:
// a sequence there must be stored, read and attended exactly as in a small cache, and no byte of any other
// page may change. An asynchronous error of a kernel must come out of tq_cache_check with CUDA's name; it
// ruins the process's context, so a child process provokes it.   limits_test [--quick]
#include <sys/wait.h>
#include <unistd.h>

#include "api_cache.cuh"

namespace {

using namespace gpu_test;

// ---- Far pages ----

__global__ void count_other_than(const uint4* words, int64_t count, uint32_t poison,
                                 unsigned long long* other) {
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint4 w = words[i];
    mine += (w.x != poison) + (w.y != poison) + (w.z != poison) + (w.w != poison);
  }
  if (mine > 0) atomicAdd(other, mine);
}

struct FarCase {
  const char* name;
  int key_bits, value_bits, heads, page_size, window;
};

// A sequence at certain pages: appended in pieces, its attention and its decoded values.
struct Story {
  AttendOutput out;
  std::vector<uint8_t> read;
};

tq_cache_config far_config(const FarCase& c, int64_t tokens, int64_t longest, int sequences) {
  tq_cache_config config = api_config(128, 128, c.key_bits, c.value_bits, 4 * c.heads, c.heads, TQ_F16);
  config.page_size = c.page_size;
  config.max_tokens = tokens;
  config.max_sequence_tokens = longest;
  config.max_sequences = sequences;
  config.window_tokens = c.window;
  config.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  return config;
}

Story tell(ApiCache& cache, tq_sequence id, int64_t pages, int page_size, int story) {
  const auto source = [&](int side) {
    return RowSource{9,
                     TQ_F16,
                     side,
                     0,
                     side == 2 ? cache.config.num_q_heads : cache.config.num_kv_heads,
                     128,
                     side == 2 ? 3.0f : 1.0f};
  };
  Rows q(source(2), 3, false);
  q.fill(source(2), {RowRun{1000 + story, 0, 0, 3}});
  int64_t length = 0;
  const int64_t whole = pages * page_size;
  for (int64_t piece : {static_cast<int64_t>(1), static_cast<int64_t>(40), whole / 2 - 41,
                        whole - whole / 2 - 3, static_cast<int64_t>(3)}) {
    const Rows k(source(0), piece, false), v(source(1), piece, false);
    k.fill(source(0), {RowRun{story, length, 0, piece}});
    v.fill(source(1), {RowRun{story, length, 0, piece}});
    length += piece;
    cache.plan({id}, {piece}, {std::min<int64_t>(piece, 3)});
    cache.append(0, k.memory.get(), v.memory.get(), k, v);
    GPU_MUST(cudaDeviceSynchronize());
  }
  return Story{cache.attend(0, q.memory.get(), default_params()), cache.read(0, id)};
}

void far_pages(const FarCase& c) {
  constexpr int kPages = 4;
  tq_cache_config config = far_config(c, 64 * c.page_size, 64 * c.page_size, 1);
  tq_cache_bytes bytes = {};
  bytes.struct_size = sizeof bytes;
  config.device_type = TQ_DEVICE_CUDA;
  API_MUST(tq_cache_config_bytes(&config, &bytes));
  const int64_t page_bytes = bytes.page_bytes / bytes.num_pages;
  const int64_t total_pages = (static_cast<int64_t>(1) << 32) / page_bytes + 40 * kPages;
  size_t free_bytes = 0, all_bytes = 0;
  GPU_MUST(cudaMemGetInfo(&free_bytes, &all_bytes));
  if (static_cast<int64_t>(free_bytes) < total_pages * page_bytes + (static_cast<int64_t>(1) << 30)) {
    skip("%s: %zu MB of device memory free, the cache needs %lld", c.name, free_bytes >> 20,
         static_cast<long long>(total_pages * page_bytes >> 20));
    return;
  }
  ApiCache cache(far_config(c, total_pages * c.page_size, total_pages * c.page_size, 8), TQ_DEVICE_CUDA);
  // Stories around byte 2^31, around 2^32, and on the last pages. Fillers take the pages between: planned,
  // never appended.
  const int64_t firsts[] = {(static_cast<int64_t>(1) << 31) / page_bytes - 1,
                            (static_cast<int64_t>(1) << 32) / page_bytes - 1, cache.num_pages - kPages};
  int64_t taken = 0;
  std::vector<tq_sequence> ids;
  for (int64_t first : firsts) {
    cache.plan({cache.sequence()}, {(first - taken) * c.page_size}, {0});
    ids.push_back(cache.sequence());
    taken = first + kPages;
    const Story far = tell(cache, ids.back(), kPages, c.page_size, static_cast<int>(ids.size()));
    ApiCache near(far_config(c, (kPages + 1) * c.page_size, kPages * c.page_size, 1), TQ_DEVICE_CUDA);
    const Story want = tell(near, near.sequence(), kPages, c.page_size, static_cast<int>(ids.size()));
    double size = 0;
    for (float x : want.out.out) size += static_cast<double>(x) * x;
    check(std::isfinite(size) && size > 0, "%s: the small cache gives %g", c.name, size);
    check(same_output(far.out, want.out), "%s: pages from byte %lld on: attention differs from a small cache",
          c.name, static_cast<long long>(first * page_bytes));
    check(far.read == want.read, "%s: pages from byte %lld on: decoded values differ from a small cache",
          c.name, static_cast<long long>(first * page_bytes));
    const std::vector<uint8_t> small = near.pool.host();
    std::vector<uint8_t> big(static_cast<size_t>(kPages * page_bytes));
    GPU_MUST(cudaMemcpy(big.data(), cache.pool.as<uint8_t>() + first * page_bytes, big.size(),
                        cudaMemcpyDeviceToHost));
    check(!memcmp(small.data(), big.data(), big.size()),
          "%s: pages from byte %lld on: other bytes than in a small cache", c.name,
          static_cast<long long>(first * page_bytes));
  }
  // Nothing else was written.
  const Buffer<unsigned long long> other(std::vector<unsigned long long>(1));
  int64_t at = 0;
  for (int64_t first : {firsts[0], firsts[1], firsts[2], cache.num_pages + kPages}) {
    const int64_t end = std::min(first, cache.num_pages);
    if (end > at)
      count_other_than<<<1024, 256>>>(
          reinterpret_cast<const uint4*>(cache.pool.as<uint8_t>() + at * page_bytes),
          (end - at) * page_bytes / 16, 0xFFFFFFFFu, other.get());
    at = first + kPages;
  }
  GPU_MUST(cudaGetLastError());
  GPU_MUST(cudaDeviceSynchronize());
  check(other.host()[0] == 0, "%s: %llu words outside the sequences' pages were written", c.name,
        other.host()[0]);
  printf("   %s: pages of %lld bytes up to byte %lld\n", c.name, static_cast<long long>(page_bytes),
         static_cast<long long>(cache.num_pages * page_bytes));
}

// ---- Asynchronous errors ----

__global__ void trap_kernel() { __trap(); }

// In a process of its own: exit status 0 if the library reports the error as it should.
int child(const std::string& how) {
  alarm(60);
  tq_cache_config config = api_config(128, 128, 4, 4, 8, 2, TQ_F16);
  config.max_tokens = 256;
  ApiCache cache(config, TQ_DEVICE_CUDA);
  const tq_sequence id = cache.sequence();
  const RowSource source = {1, TQ_F16, 0, 0, 2, 128, 1.0f};
  const Rows k(source, 70, false);
  k.fill(source, {RowRun{1, 0, 0, 70}});
  cache.plan({id}, {70}, {1});
  cache.append(0, k.memory.get(), k.memory.get(), k, k);
  uint64_t flags = 7;
  tq_status status = tq_cache_check(cache.cache, nullptr, &flags);
  if (status != TQ_OK || flags != 0)
    return printf("before the error: check gives %d, flags %llu\n", status,
                  static_cast<unsigned long long>(flags)),
           2;
  cache.broken = true;
  if (how == "trap") {
    trap_kernel<<<1, 1>>>();
  } else {  // a query that lies nowhere
    Memory out(TQ_DEVICE_CUDA, 8 * 128 * 4);
    status = tq_cache_attend(cache.cache, 0, cache.batch, reinterpret_cast<const void*>(0x100), out.get(),
                             nullptr, nullptr, nullptr, 0, nullptr);
    if (status != TQ_OK) return printf("attend itself gives %d: %s\n", status, tq_last_error()), 3;
    cudaDeviceSynchronize();
  }
  status = tq_cache_check(cache.cache, nullptr, &flags);
  const std::string text = tq_last_error();
  printf("check after the error: %s: %s\n", tq_status_name(status), text.c_str());
  if (status != TQ_ERROR_CUDA || text.find("cudaError") == std::string::npos ||
      text.find("asynchronous") == std::string::npos)
    return 4;
  status = tq_cache_append(cache.cache, 0, cache.batch, k.memory.get(), k.memory.get(), nullptr, nullptr);
  if (status != TQ_ERROR_CUDA) return printf("append in a broken context gives %d\n", status), 5;
  int64_t length = 0;
  if (tq_sequence_length(cache.cache, id, &length) != TQ_OK || length != 70)
    return printf("length %lld\n", static_cast<long long>(length)), 6;
  return 0;  // destroying what is left must not hang or crash
}

void asynchronous_errors() {
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0) {
    skip("asynchronous errors: this program does not know its own file");
    return;
  }
  for (const char* how : {"trap", "pointer"}) {
    FILE* pipe = popen((std::string(self) + " --child " + how + " 2>&1").c_str(), "r");
    std::string text;
    char line[512];
    while (pipe && fgets(line, sizeof line, pipe)) text += line;
    const int status = pipe ? pclose(pipe) : -1;
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child '%s': status %#x: %s", how, status,
          text.c_str());
    printf("   %s: %s", how, text.c_str());
  }
  // This process's context is whole.
  GPU_MUST(cudaDeviceSynchronize());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 2 && !strcmp(argv[1], "--child")) return child(argv[2]);
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    asynchronous_errors();
    const FarCase cases[] = {{"8+8 bits", 8, 8, 8, 64, 0},
                             {"4+4 bits, pages of 4096 tokens", 4, 4, 8, 4096, 0},
                             {"16+16 bits, window", 16, 16, 8, 64, 50},
                             {"3+2 bits, 16 heads, pages of 32", 3, 2, 16, 32, 0}};
    int index = 0;
    for (const FarCase& c : cases) {
      try {
        if (!quick || index < 2) far_pages(c);
      } catch (const std::exception& error) {
        check(false, "%s: %s", c.name, error.what());
      }
      index++;
    }
  } catch (const std::exception& error) {
    check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("limits_test");
}
