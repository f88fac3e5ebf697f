// SPDX-License-Identifier: Apache-2.0
// Calibration fed from a device's memory (tq_calibration_feed_from): the same file, byte for byte, as from
// the host's, over pieces and behind what a stream holds; refusals, and every CUDA call made to fail, leave
// it as it was. What it found in caches of both devices.
#include "api_cache.cuh"
#include "failing_calls.cuh"

namespace {

using namespace gpu_test;

constexpr int kLayers = 2, kQHeads = 16, kKvHeads = 2, kDim = 64, kTokens = 1300;  // 512 of q to a piece

// As bfloat16, of a seed.
std::vector<uint16_t> numbers(int64_t count, uint32_t seed) {
  std::vector<uint16_t> x(static_cast<size_t>(count));
  uint32_t state = seed * 2654435761u + 1;
  for (uint16_t& one : x) {
    state = state * 1664525u + 1013904223u;
    one = static_cast<uint16_t>(0x3E00 | (state >> 16 & 0x81FF));  // 1/8 .. 2, of both signs
  }
  return x;
}

struct Tokens {
  std::vector<uint16_t> q = numbers(kTokens * kQHeads * kDim, 1), k = numbers(kTokens * kKvHeads * kDim, 2),
                        v = numbers(kTokens * kKvHeads * kDim, 3);
};

struct Calibration {
  tq_calibration* handle = nullptr;

  Calibration() {
    tq_calibration_config config = {};
    config.struct_size = sizeof config;
    config.num_layers = kLayers;
    config.num_q_heads = kQHeads, config.num_kv_heads = kKvHeads, config.head_dim = kDim;
    config.io_dtype = TQ_BF16;
    API_MUST(tq_calibration_create(&config, &handle));
  }
  ~Calibration() { check(tq_calibration_destroy(handle) == TQ_OK, "destroy"); }
  Calibration(const Calibration&) = delete;
  Calibration& operator=(const Calibration&) = delete;

  std::string file() const {
    std::string text;
    tq_io io = {};
    io.struct_size = sizeof io;
    io.user = &text;
    io.write = [](void* user, const void* bytes, size_t count) -> int32_t {
      static_cast<std::string*>(user)->append(static_cast<const char*>(bytes), count);
      return 0;
    };
    API_MUST(tq_calibration_save(handle, &io));
    return text;
  }
};

const Tokens& host() {
  static const Tokens tokens;
  return tokens;
}
// What the host's memory gives.
const std::string& expected() {
  static const std::string text = [] {
    Calibration calibration;
    for (int layer = 0; layer < kLayers; layer++)
      API_MUST(tq_calibration_feed(calibration.handle, layer, kTokens, host().q.data(), host().k.data(),
                                   host().v.data()));
    return calibration.file();
  }();
  return text;
}

void same_file() {
  const Buffer<uint16_t> q(host().q), k(host().k), v(host().v);
  Calibration calibration;
  for (int layer = 0; layer < kLayers; layer++)
    API_MUST(tq_calibration_feed_from(calibration.handle, layer, kTokens, q.get(), k.get(), v.get(),
                                      TQ_DEVICE_CUDA, 0, nullptr));
  check(calibration.file() == expected(), "from the device's memory");
  Calibration pinned;
  uint16_t* memory = nullptr;
  GPU_MUST(cudaHostAlloc(reinterpret_cast<void**>(&memory), host().q.size() * 2, cudaHostAllocDefault));
  memcpy(memory, host().q.data(), host().q.size() * 2);
  for (int layer = 0; layer < kLayers; layer++)
    API_MUST(tq_calibration_feed_from(pinned.handle, layer, kTokens, memory, k.get(), v.get(), TQ_DEVICE_CUDA,
                                      0, nullptr));
  check(pinned.file() == expected(), "queries in pinned memory");
  GPU_MUST(cudaFreeHost(memory));
}

void behind_a_stream() {
  cudaStream_t stream = nullptr;
  GPU_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Buffer<uint16_t> q(host().q.size()), k(host().k.size()), v(host().v.size());
  Calibration calibration;
  for (int layer = 0; layer < kLayers; layer++) {
    for (const auto& [to, from] : {std::pair{&q, &host().q}, {&k, &host().k}, {&v, &host().v}}) {
      GPU_MUST(cudaMemsetAsync(to->get(), 0, from->size() * 2, stream));
      GPU_MUST(cudaMemcpyAsync(to->get(), from->data(), from->size() * 2, cudaMemcpyHostToDevice, stream));
    }
    API_MUST(tq_calibration_feed_from(calibration.handle, layer, kTokens, q.get(), k.get(), v.get(),
                                      TQ_DEVICE_CUDA, 0, stream));
  }
  check(calibration.file() == expected(), "behind what a stream holds");
  GPU_MUST(cudaStreamDestroy(stream));
}

void refused(tq_status status, tq_status wanted, const char* text) {
  check(status == wanted && strstr(tq_last_error(), text), "%d instead of %d \"%s\": %s", status, wanted,
        text, tq_last_error());
}

void refusals() {
  const Buffer<uint16_t> q(host().q), k(host().k), v(host().v);
  Calibration calibration;
  const auto feed = [&](const void* keys, int32_t type, int32_t device) {
    return tq_calibration_feed_from(calibration.handle, 0, kTokens, q.get(), keys, v.get(), type, device,
                                    nullptr);
  };
  for (int layer = 0; layer < kLayers; layer++)
    API_MUST(tq_calibration_feed(calibration.handle, layer, kTokens, host().q.data(), host().k.data(),
                                 host().v.data()));
  std::vector<uint16_t> wrong = host().k;
  wrong[1299 * kKvHeads * kDim + 7] = 0x7F80;  // infinity
  const Buffer<uint16_t> infinite(wrong);
  refused(feed(infinite.get(), TQ_DEVICE_CUDA, 0), TQ_ERROR_INVALID_ARGUMENT,
          "k: number 7 of token 1299 is not finite");
  refused(feed(host().k.data(), TQ_DEVICE_CUDA, 0), TQ_ERROR_INVALID_ARGUMENT,
          "is no memory that CUDA device 0 reaches");
  refused(feed(k.get(), 3, 0), TQ_ERROR_INVALID_ARGUMENT, "device_type = 3");
  refused(feed(k.get(), TQ_DEVICE_CUDA, 99), TQ_ERROR_NO_DEVICE, "device_id = 99");
  check(calibration.file() == expected(), "what was refused counts");
}

// A calibration's matrices and centres in a cache of either device: tokens get the same codes, and read
// alike.
void matrices() {
  const std::vector<float> turns = key_matrices(kKvHeads, kDim, 7);
  Calibration calibration;
  API_MUST(tq_calibration_set_key_matrix(calibration.handle, 1, turns.data()));
  for (int layer = 0; layer < kLayers; layer++)
    API_MUST(tq_calibration_feed(calibration.handle, layer, kTokens, host().q.data(), host().k.data(),
                                 host().v.data()));
  uint64_t prints[2] = {};
  std::vector<uint8_t> pools[2], reads[2];
  for (const int device : {TQ_DEVICE_CPU, TQ_DEVICE_CUDA}) {
    const int side = device == TQ_DEVICE_CUDA;
    tq_cache_config config = api_config(kDim, kDim, 3, 4, kQHeads, kKvHeads, TQ_BF16);
    config.num_layers = kLayers;
    config.max_tokens = 512;
    ApiCache cache(config, device);
    API_MUST(tq_calibration_set_centres(calibration.handle, cache.cache));
    API_MUST(tq_cache_fingerprint(cache.cache, &prints[side]));
    const tq_sequence id = cache.sequence();
    for (const int64_t count : {1, 5, 200, 2, 48}) {  // whole pages, whose bytes are all somebody's
      const int64_t rows = count * kKvHeads * kDim;
      Memory k(device, static_cast<size_t>(rows) * 2), v(device, static_cast<size_t>(rows) * 2);
      GPU_MUST(
          cudaMemcpy(k.get(), host().k.data() + count, static_cast<size_t>(rows) * 2, cudaMemcpyDefault));
      GPU_MUST(
          cudaMemcpy(v.get(), host().v.data() + count, static_cast<size_t>(rows) * 2, cudaMemcpyDefault));
      cache.plan({id}, {count}, {1});
      for (int layer = 0; layer < kLayers; layer++)
        API_MUST(tq_cache_append(cache.cache, layer, cache.batch, k.get(), v.get(), nullptr, nullptr));
    }
    reads[side] = cache.read(1, id);
    pools[side] = cache.pool.host();
    refused(tq_cache_set_key_matrix(cache.cache, 1, turns.data()), TQ_ERROR_INVALID_STATE,
            "key matrices are fixed once a sequence holds tokens (256 in all)");
  }
  pools[1].resize(pools[0].size());  // a device's pool is rounded up
  check(prints[0] == prints[1], "fingerprints differ");
  check(pools[0] == pools[1], "stored bytes differ");
  check(reads[0] == reads[1] && !reads[0].empty(), "keys and values read differ");
}

void failing() {
  const Buffer<uint16_t> q(host().q), k(host().k), v(host().v);
  count_calls();
  for (fail_at = 1;; fail_at++) {
    Calibration calibration;
    for (int layer = 0; layer < kLayers; layer++)
      API_MUST(tq_calibration_feed(calibration.handle, layer, kTokens, host().q.data(), host().k.data(),
                                   host().v.data()));
    calls = 0;
    const tq_status status = tq_calibration_feed_from(calibration.handle, 0, kTokens, q.get(), k.get(),
                                                      v.get(), TQ_DEVICE_CUDA, 0, nullptr);
    if (calls < fail_at) {
      check(status == TQ_OK, "without a failure: %s", tq_last_error());
      break;
    }
    if (status == TQ_OK) continue;  // a release, which has no error
    if (fail_at % 6 == 1) check(calibration.file() == expected(), "call %d failed", fail_at);
  }
  printf("   %d CUDA calls made to fail in turn\n", fail_at - 1);
  check(fail_at > 50, "only %d calls were made to fail", fail_at - 1);
  runtime() = real_runtime();
}

}  // namespace

int main() {
  try {
    same_file();
    behind_a_stream();
    refusals();
    matrices();
    failing();
  } catch (const std::exception& error) {
    gpu_test::check(false, "uncaught: %s", error.what());
  }
  return gpu_test::finish("calibration_test");
}
