// SPDX-License-Identifier: Apache-2.0
// A cache used through tqkv.h alone, on the CPU or a CUDA device: memory on either, inputs as a pure function
// of where they stand, and one object that plans, appends, attends and reads. What tests of the whole library
// share; the same calls go to both devices.
#pragma once
#include <math.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "gpu_test.h"
#include "tqkv.h"
#include "vectors.cuh"

namespace gpu_test {

inline void api_must(tq_status status, const char* what) {
  if (status == TQ_OK) return;
  throw std::runtime_error(std::string(what) + ": " + tq_status_name(status) + ": " + tq_last_error());
}
#define API_MUST(call) ::gpu_test::api_must((call), #call)

// Bytes on a device of either type, or pinned ones of the host, which both reach.
constexpr int kPinned = 100;
class Memory {
 public:
  Memory() = default;
  Memory(int device, size_t bytes) : device_(device), bytes_(bytes) {
    if (bytes == 0) return;
    if (device == TQ_DEVICE_CUDA)
      GPU_MUST(cudaMalloc(&data_, bytes));
    else if (device == kPinned)
      GPU_MUST(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
    else
      data_ = aligned_alloc(256, (bytes + 255) / 256 * 256);
  }
  ~Memory() {
    if (device_ == TQ_DEVICE_CUDA)
      cudaFree(data_);
    else if (device_ == kPinned)
      cudaFreeHost(data_);
    else
      free(data_);
  }
  Memory(Memory&& other) noexcept { *this = static_cast<Memory&&>(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  void fill(uint8_t byte) {
    if (bytes_ == 0) return;
    if (device_ == TQ_DEVICE_CUDA)
      GPU_MUST(cudaMemset(data_, byte, bytes_));
    else
      memset(data_, byte, bytes_);
  }
  void* get() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return bytes_; }
  // Waits for all work of the device.
  std::vector<uint8_t> host() const {
    std::vector<uint8_t> copy(bytes_);
    if (bytes_ > 0 && device_ != TQ_DEVICE_CPU) GPU_MUST(cudaDeviceSynchronize());
    if (bytes_ > 0) GPU_MUST(cudaMemcpy(copy.data(), data_, bytes_, cudaMemcpyDefault));
    return copy;
  }
  std::vector<float> floats() const {
    const std::vector<uint8_t> bytes = host();
    std::vector<float> numbers(bytes.size() / 4);
    if (!numbers.empty()) memcpy(numbers.data(), bytes.data(), numbers.size() * 4);
    return numbers;
  }

 private:
  int device_ = TQ_DEVICE_CPU;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Matrices of keys [heads][dim][dim]: the identity and numbers beside it that leave them well conditioned, no
// two heads' alike.
inline std::vector<float> key_matrices(int heads, int dim, uint64_t seed) {
  std::vector<float> all(static_cast<size_t>(heads) * dim * dim);
  const float spread = 1.0f / sqrtf(static_cast<float>(dim));
  for (size_t i = 0; i < all.size(); i++) {
    const float random = static_cast<float>(mix64(seed * kGolden + i) % 2001) * 0.001f - 1.0f;
    const size_t place = i % (static_cast<size_t>(dim) * dim);
    all[i] = random * 0.5f * spread + (place % (static_cast<size_t>(dim) + 1) == 0 ? 1.0f : 0.0f);
  }
  return all;
}

inline int api_dtype_bytes(int dtype) { return dtype == TQ_F32 ? 4 : 2; }

// What rows hold: side 0 keys, 1 values, 2 queries. Sums of four uniform numbers (standard deviation 0.58)
// times gain.
struct RowSource {
  uint64_t seed;
  int32_t dtype, side, layer, heads, dim;
  float gain;
};
TQ_HD uint32_t row_bits(const RowSource& source, int64_t sequence, int64_t token, int head, int i) {
  uint64_t h = mix64(source.seed * 4 + static_cast<uint64_t>(source.side) +
                     kGolden * static_cast<uint64_t>(sequence + 1));
  h = mix64(h + kGolden * static_cast<uint64_t>(token + 1));
  h = mix64(h + kGolden * static_cast<uint64_t>(source.layer * 4096 + head + 1));
  const uint64_t r = mix64(h + kGolden * static_cast<uint64_t>(i + 1));
  const int sum =
      static_cast<int>((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) + (r >> 48)) - 131070;
  const float x = mul_rn(mul_rn(static_cast<float>(sum), exp2_int(-16)), source.gain);
  return source.dtype == TQ_F32   ? float_bits(x)
         : source.dtype == TQ_F16 ? f16_from_float(x)
                                  : bf16_from_float(x);
}

struct RowRun {
  int64_t sequence, token, row, count;  // tokens token .. token + count - 1 of a sequence go to rows row ..
};

// [rows][heads][dim] by strides.
static __global__ void fill_rows(RowSource source, RowRun run, void* base, int64_t token_stride,
                                 int64_t head_stride) {
  const int64_t total = run.count * source.heads * source.dim;
  for (int64_t at = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; at < total;
       at += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int i = static_cast<int>(at % source.dim), head = static_cast<int>(at / source.dim % source.heads);
    const int64_t token = at / source.dim / source.heads;
    const uint32_t bits = row_bits(source, run.sequence, run.token + token, head, i);
    const int64_t to = (run.row + token) * token_stride + head * head_stride + i;
    if (source.dtype == TQ_F32)
      static_cast<uint32_t*>(base)[to] = bits;
    else
      static_cast<uint16_t*>(base)[to] = static_cast<uint16_t>(bits);
  }
}

// Rows in CUDA memory; `padded` puts NaN between tokens and heads.
struct Rows {
  Memory memory;
  int64_t token_stride = 0, head_stride = 0;

  Rows() = default;
  Rows(const RowSource& source, int64_t count, bool padded)
      : token_stride((padded ? 24 : 0) + source.heads * static_cast<int64_t>(source.dim + (padded ? 8 : 0))),
        head_stride(source.dim + (padded ? 8 : 0)) {
    memory = Memory(TQ_DEVICE_CUDA, static_cast<size_t>(std::max<int64_t>(count, 1) * token_stride *
                                                        api_dtype_bytes(source.dtype)));
    memory.fill(0xFF);
  }
  void fill(const RowSource& source, const std::vector<RowRun>& runs, cudaStream_t stream = nullptr) const {
    for (const RowRun& run : runs) {
      const int64_t elements = run.count * source.heads * source.dim;
      if (elements == 0) continue;
      start(fill_rows, dim3(static_cast<unsigned>(std::min<int64_t>((elements + 255) / 256, 4096))),
            dim3(256), stream, source, run, memory.get(), token_stride, head_stride);
    }
  }
  // The same bytes on a device of either type.
  Memory on(int device) const {
    Memory copy(device, memory.size());
    GPU_MUST(cudaDeviceSynchronize());
    GPU_MUST(cudaMemcpy(copy.get(), memory.get(), memory.size(), cudaMemcpyDefault));
    return copy;
  }
};

struct AttendOutput {
  std::vector<float> out, lse;
};
inline bool same_output(const AttendOutput& a, const AttendOutput& b) {
  return a.out.size() == b.out.size() && a.lse.size() == b.lse.size() &&
         !memcmp(a.out.data(), b.out.data(), a.out.size() * 4) &&
         !memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4);
}

// A cache, one batch and its pool. The pool is the test's, so that it can be poisoned and looked at.
class ApiCache {
 public:
  ApiCache(tq_cache_config wanted, int device, uint8_t poison = 0xFF) : config(wanted), device_(device) {
    config.device_type = device;
    tq_cache_bytes bytes = {};
    bytes.struct_size = sizeof bytes;
    API_MUST(tq_cache_config_bytes(&config, &bytes));
    num_pages = bytes.num_pages;
    pool = Memory(device, static_cast<size_t>(bytes.page_bytes));
    config.pool = pool.get();
    config.pool_bytes = bytes.page_bytes;
    API_MUST(tq_cache_create(&config, nullptr, &cache));
    pool.fill(poison);  // after the zeros that a cache starts with
    API_MUST(tq_batch_create(cache, &batch));
    config.struct_size = sizeof config;
    API_MUST(tq_cache_get_config(cache, &config));
  }
  ~ApiCache() {
    const tq_status first = tq_batch_destroy(batch), second = tq_cache_destroy(cache);
    if (!broken) check(first == TQ_OK && second == TQ_OK, "destroy: %d, %d", first, second);
  }
  ApiCache(const ApiCache&) = delete;
  ApiCache& operator=(const ApiCache&) = delete;

  tq_sequence sequence() {
    tq_sequence id = 0;
    API_MUST(tq_sequence_create(cache, &id));
    return id;
  }
  void plan(const std::vector<tq_sequence>& sequences, const std::vector<int64_t>& new_tokens,
            const std::vector<int64_t>& queries, cudaStream_t stream = nullptr) {
    API_MUST(tq_batch_plan(batch, static_cast<int32_t>(sequences.size()), sequences.data(), new_tokens.data(),
                           queries.data(), stream));
    query_tokens = 0;
    for (int64_t n : queries) query_tokens += n;
  }
  // k and v by their strides, in memory of this device.
  void append(int layer, const void* k, const void* v, const Rows& key_form, const Rows& value_form,
              cudaStream_t stream = nullptr) {
    tq_tensor_layout layout = {sizeof layout,           0,
                               key_form.token_stride,   key_form.head_stride,
                               value_form.token_stride, value_form.head_stride};
    API_MUST(tq_cache_append(cache, layer, batch, k, v, &layout, stream));
  }
  // Fresh float32 outputs, poisoned before; out rows are padded if asked.
  AttendOutput attend(int layer, const void* q, tq_attend_params params, bool padded = false,
                      Memory* workspace = nullptr, cudaStream_t stream = nullptr) {
    const tq_layer_config& shape = config.layers[layer];
    const int64_t head = shape.value_dim + (padded ? 4 : 0),
                  token = head * shape.num_q_heads + (padded ? 12 : 0);
    Memory out(device_, static_cast<size_t>(std::max<int64_t>(query_tokens, 1) * token * 4));
    Memory lse(device_, static_cast<size_t>(std::max<int64_t>(query_tokens, 1) * shape.num_q_heads * 4));
    out.fill(0xFF);
    lse.fill(0xFF);
    if (device_ == TQ_DEVICE_CUDA) GPU_MUST(cudaDeviceSynchronize());
    params.struct_size = sizeof params;
    params.out_dtype = TQ_F32;
    params.out_token_stride = token;
    params.out_head_stride = head;
    API_MUST(tq_cache_attend(cache, layer, batch, q, out.get(), lse.as<float>(), &params,
                             workspace ? workspace->get() : nullptr, workspace ? workspace->size() : 0,
                             stream));
    AttendOutput result;
    const std::vector<float> all = out.floats();
    const float* rows = all.data();
    for (int64_t row = 0; row < query_tokens; row++)
      for (int h = 0; h < shape.num_q_heads; h++)
        result.out.insert(result.out.end(), rows + row * token + h * head,
                          rows + row * token + h * head + shape.value_dim);
    result.lse = lse.floats();
    result.lse.resize(static_cast<size_t>(query_tokens * shape.num_q_heads));
    return result;
  }
  // Decoded keys, then values, of the tokens from `first` on.
  std::vector<uint8_t> read(int layer, tq_sequence sequence, int64_t first = 0) {
    const tq_layer_config& shape = config.layers[layer];
    int64_t length = 0;
    API_MUST(tq_sequence_length(cache, sequence, &length));
    std::vector<uint8_t> all;
    for (int side = 0; side < 2; side++) {
      const int64_t row =
          static_cast<int64_t>(shape.num_kv_heads) * (side ? shape.value_dim : shape.head_dim);
      Memory rows(device_, static_cast<size_t>((length - first) * row * api_dtype_bytes(config.io_dtype)));
      rows.fill(0xFF);
      API_MUST(tq_cache_read(cache, layer, sequence, first, length - first, side ? nullptr : rows.get(),
                             side ? rows.get() : nullptr, nullptr, nullptr));
      const std::vector<uint8_t> bytes = rows.host();
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  tq_cache_config config;  // resolved
  tq_cache* cache = nullptr;
  tq_batch* batch = nullptr;
  Memory pool;
  int64_t num_pages = 0, query_tokens = 0;
  bool broken = false;  // its context is: destroy may report that

 private:
  int device_;
};

inline tq_cache_config api_config(int head_dim, int value_dim, int key_bits, int value_bits, int q_heads,
                                  int kv_heads, int dtype) {
  tq_cache_config config;
  API_MUST(tq_cache_config_init(&config));
  config.num_layers = 1;
  config.num_q_heads = q_heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.value_dim = value_dim;
  config.key_bits = key_bits;
  config.value_bits = value_bits;
  config.io_dtype = dtype;
  config.rotation_seed = 0x1234;
  return config;
}

inline tq_attend_params default_params() {
  tq_attend_params params = {};
  params.struct_size = sizeof params;
  return params;
}

}  // namespace gpu_test
