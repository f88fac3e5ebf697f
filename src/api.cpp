// SPDX-License-Identifier: Apache-2.0
// The extern "C" wall: reads structs, checks pointers and enumerations, calls Cache, and turns every
// exception into a status and a text. Nothing includes this file and nothing thrown passes it.
#ifndef TQ_BUILDING_LIBRARY
#define TQ_BUILDING_LIBRARY
#endif
#include <stdio.h>
#include <string.h>

#include "api_arguments.h"
#include "api_guard.h"
#include "cache.h"
#include "struct_size.h"
#include "tqkv.h"

#define TQ_STRING_OF(x) #x
#define TQ_STRING(x) TQ_STRING_OF(x)

namespace {

using tq::Batch;
using tq::Cache;
using tq::DataType;
using tq::DeviceType;
using tq::guarded;
using tq::Status;
constexpr Status kBad = Status::kInvalidArgument;

#define TQ_SAME(name, value) \
  static_assert(TQ_##name == static_cast<int32_t>(Status::value), "status.h and tqkv.h agree")
TQ_SAME(OK, kOk);
TQ_SAME(ERROR_INVALID_ARGUMENT, kInvalidArgument);
TQ_SAME(ERROR_INVALID_STATE, kInvalidState);
TQ_SAME(ERROR_OUT_OF_MEMORY, kOutOfMemory);
TQ_SAME(ERROR_CAPACITY, kCapacity);
TQ_SAME(ERROR_NOT_SUPPORTED, kNotSupported);
TQ_SAME(ERROR_NO_DEVICE, kNoDevice);
TQ_SAME(ERROR_DRIVER, kDriver);
TQ_SAME(ERROR_CUDA, kCuda);
TQ_SAME(ERROR_VERSION, kVersion);
TQ_SAME(ERROR_CORRUPT_DATA, kCorruptData);
TQ_SAME(ERROR_INCOMPATIBLE, kIncompatible);
TQ_SAME(ERROR_WORKSPACE_TOO_SMALL, kWorkspaceTooSmall);
TQ_SAME(ERROR_CAPTURE, kCapture);
TQ_SAME(ERROR_IO, kIo);
TQ_SAME(ERROR_INTERNAL, kInternal);
#undef TQ_SAME
static_assert(TQ_DEVICE_CPU == static_cast<int32_t>(DeviceType::kCpu) &&
                  TQ_DEVICE_CUDA == static_cast<int32_t>(DeviceType::kCuda),
              "");
static_assert(TQ_F32 == static_cast<int32_t>(DataType::kF32) &&
                  TQ_F16 == static_cast<int32_t>(DataType::kF16) &&
                  TQ_BF16 == static_cast<int32_t>(DataType::kBF16),
              "");
static_assert(TQ_ROTATION_HADAMARD == static_cast<int32_t>(tq::format::Rotation::kHadamard) &&
                  TQ_ROTATION_DENSE == static_cast<int32_t>(tq::format::Rotation::kDense),
              "");
static_assert(TQ_SCALE_LS == static_cast<int32_t>(tq::format::ScaleRule::kLs) &&
                  TQ_SCALE_UNBIASED == static_cast<int32_t>(tq::format::ScaleRule::kUnbiased) &&
                  TQ_SCALE_NORM == static_cast<int32_t>(tq::format::ScaleRule::kNorm) &&
                  TQ_SCALE_PAPER == static_cast<int32_t>(tq::format::ScaleRule::kPaper),
              "");
Cache* unwrap(tq_cache* cache) { return reinterpret_cast<Cache*>(cache); }
const Cache* unwrap(const tq_cache* cache) { return reinterpret_cast<const Cache*>(cache); }
Batch* unwrap(tq_batch* batch) { return reinterpret_cast<Batch*>(batch); }
const Batch* unwrap(const tq_batch* batch) { return reinterpret_cast<const Batch*>(batch); }

}  // namespace

extern "C" {

// ---- 1. Status ----

const char* tq_status_name(tq_status status) { return tq::status_name(status); }

const char* tq_last_error(void) { return tq::last_error(); }

tq_status tq_last_error_copy(char* buffer, size_t capacity, size_t* needed) {
  return guarded([&] {
    TQ_CHECK(buffer || capacity == 0, kBad, "buffer = NULL: capacity = %zu", capacity);
    if (capacity > 0) snprintf(buffer, capacity, "%s", tq::last_error());
    if (needed) *needed = strlen(tq::last_error()) + 1;
  });
}

// ---- 2. Introspection ----

const char* tq_version(void) {
  return TQ_STRING(TQ_VERSION_MAJOR) "." TQ_STRING(TQ_VERSION_MINOR) "." TQ_STRING(TQ_VERSION_PATCH);
}

int32_t tq_abi_version(void) { return TQ_ABI_VERSION; }

const char* tq_build_info(void) { return tq::build_info(); }

size_t tq_struct_size(int32_t struct_id) {
  switch (struct_id) {
    case TQ_STRUCT_CACHE_CONFIG: return sizeof(tq_cache_config);
    case TQ_STRUCT_CACHE_BYTES: return sizeof(tq_cache_bytes);
    case TQ_STRUCT_CACHE_MEMORY: return sizeof(tq_cache_memory);
    case TQ_STRUCT_TENSOR_LAYOUT: return sizeof(tq_tensor_layout);
    case TQ_STRUCT_ATTEND_PARAMS: return sizeof(tq_attend_params);
    case TQ_STRUCT_DEVICE_INFO: return sizeof(tq_device_info);
    case TQ_STRUCT_CODEBOOK: return sizeof(tq_codebook);
    case TQ_STRUCT_ALLOCATOR: return sizeof(tq_allocator);
    case TQ_STRUCT_LAYER_CONFIG: return sizeof(tq_layer_config);
    case TQ_STRUCT_LAYER_BYTES: return sizeof(tq_layer_bytes);
    case TQ_STRUCT_STATE: return sizeof(tq_state);
    case TQ_STRUCT_IO: return sizeof(tq_io);
    case TQ_STRUCT_PAGES: return sizeof(tq_pages);
    case TQ_STRUCT_PAGE_LAYOUT: return sizeof(tq_page_layout);
    case TQ_STRUCT_PAGED_STEP: return sizeof(tq_paged_step);
    case TQ_STRUCT_LEVELS: return sizeof(tq_levels);
    case TQ_STRUCT_KEY_BANDS: return sizeof(tq_key_bands);
    case TQ_STRUCT_CALIBRATION_CONFIG: return sizeof(tq_calibration_config);
    case TQ_STRUCT_CALIBRATION_GOAL: return sizeof(tq_calibration_goal);
    case TQ_STRUCT_CALIBRATION_RESULT: return sizeof(tq_calibration_result);
    case TQ_STRUCT_QUANTIZER_CONFIG: return sizeof(tq_quantizer_config);
    case TQ_STRUCT_QUANTIZER_INFO: return sizeof(tq_quantizer_info);
  }
  return 0;
}

tq_status tq_device_count(tq_device_type type, int32_t* count) {
  return guarded([&] {
    const DeviceType device = tq::device_type_of(type, "type");
    tq::require(count, "count");
    *count = tq::device_count(device);
  });
}

tq_status tq_device_get_info(tq_device_type type, int32_t index, tq_device_info* info) {
  return guarded([&] {
    const DeviceType device = tq::device_type_of(type, "type");
    const uint32_t size = tq::checked_struct_size(info, "info");
    const tq::DeviceInfo found = tq::device_info(device, index);
    tq_device_info result = {};
    result.device_type = type;
    result.device_id = index;
    result.compute_major = found.compute_major;
    result.compute_minor = found.compute_minor;
    result.num_units = found.num_units;
    result.memory_bytes = found.memory_bytes;
    static_assert(sizeof result.name == sizeof found.name, "");
    memcpy(result.name, found.name, sizeof result.name);
    tq::write_struct(result, size, info);
  });
}

// ---- 3. Configuration ----

tq_status tq_cache_config_init(tq_cache_config* config) {
  return guarded([&] {
    tq::require(config, "config");
    memset(config, 0, sizeof *config);
    config->struct_size = sizeof *config;
  });
}

tq_status tq_cache_config_check(const tq_cache_config* config, char* text, size_t capacity) {
  bool usable = false;
  const tq_status status = guarded([&] {
    TQ_CHECK(text || capacity == 0, kBad, "text = NULL: capacity = %zu", capacity);
    usable = capacity > 0;
    const tq::ResolvedConfig resolved(config);
  });
  if (usable) snprintf(text, capacity, "%s", status == TQ_OK ? "" : tq::last_error());
  return status;
}

tq_status tq_cache_config_bytes(const tq_cache_config* config, tq_cache_bytes* bytes) {
  return guarded([&] {
    const uint32_t size = tq::checked_struct_size(bytes, "bytes");
    const tq::ResolvedConfig resolved(config);
    tq::write_struct(Cache::bytes(resolved), size, bytes);
  });
}

tq_status tq_cache_config_layer_bytes(const tq_cache_config* config, int32_t layer, tq_layer_bytes* bytes) {
  return guarded([&] {
    const uint32_t size = tq::checked_struct_size(bytes, "bytes");
    const tq::ResolvedConfig resolved(config);
    tq::write_struct(Cache::layer_bytes(resolved, layer), size, bytes);
  });
}

// ---- 4. Cache ----

tq_status tq_cache_create(const tq_cache_config* config, void* stream, tq_cache** cache) {
  return guarded([&] {
    tq::require(cache, "cache");
    *cache = reinterpret_cast<tq_cache*>(new Cache(config, stream));
  });
}

tq_status tq_cache_destroy(tq_cache* cache) {
  return guarded([&] {
    if (cache) Cache::destroy(unwrap(cache));
  });
}

tq_status tq_cache_reserve(tq_cache* cache, int64_t max_tokens, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->reserve(max_tokens, stream);
  });
}

tq_status tq_cache_get_config(const tq_cache* cache, tq_cache_config* config) {
  return guarded([&] {
    tq::require(cache, "cache");
    const uint32_t size = tq::checked_struct_size(config, "config");
    tq::write_struct(unwrap(cache)->config().config(), size, config);
  });
}

tq_status tq_cache_set_centres(tq_cache* cache, int32_t layer, const float* key_centre,
                               const float* value_centre) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->set_centres(layer, key_centre, value_centre);
  });
}

tq_status tq_cache_get_memory(const tq_cache* cache, tq_cache_memory* memory) {
  return guarded([&] {
    tq::require(cache, "cache");
    const uint32_t size = tq::checked_struct_size(memory, "memory");
    tq::write_struct(unwrap(cache)->memory(), size, memory);
  });
}

tq_status tq_cache_fingerprint(const tq_cache* cache, uint64_t* fingerprint) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(fingerprint, "fingerprint");
    *fingerprint = unwrap(cache)->fingerprint();
  });
}

tq_status tq_cache_check(tq_cache* cache, void* stream, uint64_t* flags) {
  return guarded([&] {
    tq::require(cache, "cache");
    const uint64_t noticed = unwrap(cache)->check(stream);
    if (flags) *flags = noticed;
  });
}

// ---- 5. Sequences ----

tq_status tq_sequence_create(tq_cache* cache, tq_sequence* sequence) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(sequence, "sequence");
    *sequence = unwrap(cache)->create_sequence();
  });
}

tq_status tq_sequence_free(tq_cache* cache, tq_sequence sequence, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->free_sequence(sequence, stream);
  });
}

tq_status tq_sequence_fork(tq_cache* cache, tq_sequence source, void* stream, tq_sequence* sequence) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(sequence, "sequence");
    *sequence = unwrap(cache)->fork_sequence(source, stream);
  });
}

tq_status tq_sequence_truncate(tq_cache* cache, tq_sequence sequence, int64_t length, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->truncate_sequence(sequence, length, stream);
  });
}

tq_status tq_sequence_flush(tq_cache* cache, tq_sequence sequence, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->flush_sequence(sequence, stream);
  });
}

tq_status tq_sequence_copy(tq_cache* source, tq_sequence sequence, tq_cache* target, void* stream,
                           tq_sequence* copy) {
  return guarded([&] {
    tq::require(source, "source");
    tq::require(target, "target");
    tq::require(copy, "copy");
    *copy = Cache::copy_sequence(*unwrap(source), sequence, *unwrap(target), stream);
  });
}

tq_status tq_sequence_remove(tq_cache* cache, tq_sequence sequence, int64_t first, int64_t count,
                             void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->remove_tokens(sequence, first, count, stream);
  });
}

tq_status tq_sequence_select(tq_cache* cache, tq_sequence sequence, const int64_t* positions, int64_t count,
                             void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->select_tokens(sequence, positions, count, stream);
  });
}

tq_status tq_sequence_length(const tq_cache* cache, tq_sequence sequence, int64_t* length) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(length, "length");
    *length = unwrap(cache)->sequence_length(sequence);
  });
}

tq_status tq_sequence_flags(const tq_cache* cache, tq_sequence sequence, uint64_t* flags) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(flags, "flags");
    *flags = unwrap(cache)->sequence_flags(sequence);
  });
}

// ---- 6. Batch ----

tq_status tq_batch_create(tq_cache* cache, tq_batch** batch) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(batch, "batch");
    *batch = reinterpret_cast<tq_batch*>(unwrap(cache)->create_batch());
  });
}

tq_status tq_batch_destroy(tq_batch* batch) {
  return guarded([&] {
    if (batch) Cache::destroy_batch(unwrap(batch));
  });
}

tq_status tq_batch_plan(tq_batch* batch, int32_t num_sequences, const tq_sequence* sequences,
                        const int64_t* new_tokens, const int64_t* query_tokens, void* stream) {
  return guarded([&] {
    tq::require(batch, "batch");
    unwrap(batch)->cache().plan(*unwrap(batch), num_sequences, sequences, new_tokens, query_tokens, stream);
  });
}

tq_status tq_batch_rows(const tq_batch* batch, int64_t* new_tokens, int64_t* query_tokens,
                        int32_t* in_force) {
  return guarded([&] {
    tq::require(batch, "batch");
    const tq::BatchRows rows = unwrap(batch)->rows();
    if (new_tokens) *new_tokens = rows.new_tokens;
    if (query_tokens) *query_tokens = rows.query_tokens;
    if (in_force) *in_force = rows.in_force;
  });
}

// ---- 7. Append and attend ----

tq_status tq_attend_params_init(tq_attend_params* params) {
  return guarded([&] {
    tq::require(params, "params");
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
  });
}

tq_status tq_cache_append(tq_cache* cache, int32_t layer, const tq_batch* batch, const void* k, const void* v,
                          const tq_tensor_layout* layout, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(batch, "batch");
    const tq::LayoutStrides strides = tq::layout_strides(unwrap(cache)->layer(layer), layout);
    unwrap(cache)->append(tq::AppendRequest{layer, nullptr, k, v, strides.key, strides.value, stream},
                          *unwrap(batch));
  });
}

tq_status tq_cache_attend(tq_cache* cache, int32_t layer, const tq_batch* batch, const void* q, void* out,
                          float* lse, const tq_attend_params* params, void* workspace, size_t workspace_bytes,
                          void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(batch, "batch");
    tq::AttendRequest request =
        tq::attend_request(unwrap(cache)->layer(layer), unwrap(cache)->geometry().io_dtype, params);
    request.layer = layer;
    request.q = q;
    request.out = out;
    request.lse = lse;
    request.workspace = workspace;
    request.workspace_bytes = workspace_bytes;
    request.stream = stream;
    unwrap(cache)->attend(request, *unwrap(batch), tq::new_tensors(unwrap(cache)->layer(layer), params));
  });
}

tq_status tq_attend_workspace_bytes(const tq_cache* cache, size_t* bytes) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(bytes, "bytes");
    *bytes = unwrap(cache)->attend_workspace_bytes();
  });
}

tq_status tq_merge_states(int32_t num_states, const void* const* outs, const float* const* lses, int64_t rows,
                          int32_t dim, tq_dtype dtype, void* out, float* lse, tq_device_type device_type,
                          int32_t device_id, void* stream) {
  return guarded([&] {
    const DeviceType device = tq::device_type_of(device_type, "device_type");
    const tq::MergeRequest request = {num_states, outs, lses,      rows,  dim, tq::dtype_of(dtype, "dtype"),
                                      out,        lse,  device_id, stream};
    tq::check_merge(request, device);
    if (rows > 0) tq::merge_states(device, request);
  });
}

tq_status tq_cache_read(tq_cache* cache, int32_t layer, tq_sequence sequence, int64_t first, int64_t count,
                        void* k, void* v, const tq_tensor_layout* layout, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    const tq::LayoutStrides strides = tq::layout_strides(unwrap(cache)->layer(layer), layout);
    unwrap(cache)->read(
        tq::ReadRequest{layer, {}, {}, first, count, k, v, strides.key, strides.value, stream}, sequence);
  });
}

}  // extern "C"
