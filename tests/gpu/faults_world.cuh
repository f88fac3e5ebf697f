// SPDX-License-Identifier: Apache-2.0
// The part of faults_test.cu that its calls work on: three caches and all that a caller can see of them.
#pragma once
#include <string>

#include "api_cache.cuh"
#include "faults_engine.cuh"

namespace gpu_test {

struct World {
  static constexpr int kDim = FaultyEngine::kDim, kLayers = 2, kMostRows = 80, kMostTokens = 128;
  static constexpr size_t kPartBytes = 128 << 10, kSideBytes = kMostTokens * kDim * 4;

  tq_cache *main = nullptr, *other = nullptr, *host = nullptr;  // CUDA, CUDA, CPU
  tq_batch* batch = nullptr;
  tq_sequence a = 0, b = 0, there = 0, away = 0, back = 0, put = 0, loaded = 0;
  tq_state state = {};  // of a, whose parts are:
  Memory pinned{kPinned, kPartBytes}, pageable{TQ_DEVICE_CPU, kPartBytes}, saved{TQ_DEVICE_CPU, kPartBytes};
  size_t saved_bytes = 0, read_bytes = 0;
  Memory k{TQ_DEVICE_CUDA, kMostRows*kDim * 4}, out{TQ_DEVICE_CUDA, kMostRows * 2 * kDim * 4},
      lse{TQ_DEVICE_CUDA, kMostRows * 2 * 4};
  FaultyEngine engine;
  Memory rows_read{TQ_DEVICE_CUDA, 2 * kSideBytes}, host_rows_read{TQ_DEVICE_CPU, 2 * kSideBytes};

  World() {
    std::vector<float> rows(kMostRows * kDim);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
    GPU_MUST(cudaMemcpy(k.get(), rows.data(), rows.size() * 4, cudaMemcpyHostToDevice));
    out.fill(0), lse.fill(0);
  }
  void end() {
    API_MUST(tq_batch_destroy(batch));
    for (tq_cache* cache : {main, other, host}) API_MUST(tq_cache_destroy(cache));
    API_MUST(tq_codec_destroy(engine.codec));
  }
  // All that a caller can see, as bytes. Without failures.
  std::string seen() const {
    std::string all;
    for (tq_cache* cache : {main, other, host}) {
      if (!cache) continue;
      tq_cache_memory memory;
      memset(&memory, 0, sizeof memory);
      memory.struct_size = sizeof memory;
      API_MUST(tq_cache_get_memory(cache, &memory));
      add(&all, &memory, sizeof memory);
    }
    if (batch) {
      int64_t rows[2] = {};
      int32_t in_force = 0;
      API_MUST(tq_batch_rows(batch, &rows[0], &rows[1], &in_force));
      add(&all, rows, sizeof rows), add(&all, &in_force, sizeof in_force);
    }
    add_sequence(&all, main, a, TQ_DEVICE_CUDA), add_sequence(&all, main, b, TQ_DEVICE_CUDA);
    add_sequence(&all, main, back, TQ_DEVICE_CUDA), add_sequence(&all, other, there, TQ_DEVICE_CUDA);
    add_sequence(&all, other, put, TQ_DEVICE_CUDA), add_sequence(&all, other, loaded, TQ_DEVICE_CUDA);
    add_sequence(&all, host, away, TQ_DEVICE_CPU);
    for (const Memory* memory : {&out, &lse}) add(&all, *memory, 0, memory->size());
    engine.see(&all);
    return all;
  }

 private:
  static void add(std::string* all, const void* bytes, size_t count) {
    all->append(static_cast<const char*>(bytes), count);
  }
  static void add(std::string* all, const Memory& memory, size_t at, size_t bytes) {
    const size_t end = all->size();
    all->resize(end + bytes);
    if (bytes > 0) GPU_MUST(cudaMemcpy(&(*all)[end], memory.as<uint8_t>() + at, bytes, cudaMemcpyDefault));
  }
  void add_sequence(std::string* all, tq_cache* cache, tq_sequence sequence, int device) const {
    if (!cache || !sequence) return;
    int64_t length = 0;
    uint64_t flags = 0;
    API_MUST(tq_sequence_length(cache, sequence, &length));
    API_MUST(tq_sequence_flags(cache, sequence, &flags));
    add(all, &length, sizeof length), add(all, &flags, sizeof flags);
    const Memory& rows = device == TQ_DEVICE_CUDA ? rows_read : host_rows_read;
    for (int layer = 0; layer < kLayers; layer++) {
      const tq_status status = tq_cache_read(cache, layer, sequence, 0, length, rows.get(),
                                             rows.as<uint8_t>() + kSideBytes, nullptr, nullptr);
      add(all, &status, sizeof status);
      if (status != TQ_OK) continue;  // planned and not written
      for (const size_t side : {size_t{0}, kSideBytes})
        add(all, rows, side, static_cast<size_t>(length * kDim * 4));
    }
  }
};

}  // namespace gpu_test
