// SPDX-License-Identifier: Apache-2.0
// What the Go package calls: one function a call of tqkv.h. Each takes the table of the loaded library first
// and a buffer for the error's text last, and fills that buffer in the same C call, before the goroutine can
// move to another thread (the library keeps the text by thread). Structs with pointers are put together here,
// on the C stack, from pointers given one by one: Go memory then never holds Go pointers that C sees. Host
// memory comes as uint8_t *, device memory as a number; at most one of the two is not 0.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "tqkv.h"

// Bytes of a text buffer: the library's own texts are not longer.
#define TQKV_TEXT 2048

// clang-format off
#define TQKV_FUNCTIONS(X) \
  X(tq_status_name) X(tq_last_error) X(tq_last_error_copy) X(tq_version) X(tq_abi_version) X(tq_build_info) \
  X(tq_struct_size) X(tq_device_count) X(tq_device_info) X(tq_cache_config_init) X(tq_cache_config_check) \
  X(tq_cache_config_bytes) X(tq_cache_create) X(tq_cache_destroy) X(tq_cache_get_config) X(tq_cache_set_centres) \
  X(tq_cache_memory) X(tq_cache_fingerprint) X(tq_cache_check) X(tq_sequence_create) X(tq_sequence_free) \
  X(tq_sequence_fork) X(tq_sequence_truncate) X(tq_sequence_length) X(tq_sequence_flags) X(tq_batch_create) \
  X(tq_batch_destroy) X(tq_batch_plan) X(tq_cache_append) X(tq_cache_attend) X(tq_attend_workspace_bytes) \
  X(tq_merge_states) X(tq_cache_read)
// clang-format on

#define TQKV_MEMBER(f) __typeof__(f)* f##_;
typedef struct tqkv_api {
  TQKV_FUNCTIONS(TQKV_MEMBER)
} tqkv_api;

// Opens and checks the library. path NULL: the linked one. Returns NULL and a text if there is none (*unfit =
// 0) or it is of another version (*unfit = 1). The table lives as long as the process.
const tqkv_api* tqkv_load(const char* path, int* unfit, char* text);

// A configuration: the pointers of *config are 0, what they would point to comes beside it.
#define TQKV_CONFIG                                                                                 \
  const tq_cache_config *config, const int32_t *layer_key_bits, const int32_t *layer_value_bits,    \
      const tq_codebook *key_codebook, const tq_codebook *value_codebook, uintptr_t allocator_user, \
      uintptr_t allocator_alloc, uintptr_t allocator_free, uintptr_t pool

tq_status tqkv_device_count(const tqkv_api* api, int32_t type, int32_t* count, char* text);
tq_status tqkv_device_info(const tqkv_api* api, int32_t type, int32_t index, tq_device_info_t* info,
                           char* text);
tq_status tqkv_config_check(const tqkv_api* api, TQKV_CONFIG, char* text);
tq_status tqkv_config_bytes(const tqkv_api* api, TQKV_CONFIG, tq_cache_bytes* bytes, char* text);
tq_status tqkv_cache_create(const tqkv_api* api, TQKV_CONFIG, uintptr_t stream, tq_cache** cache, char* text);
tq_status tqkv_cache_destroy(const tqkv_api* api, tq_cache* cache, char* text);
tq_status tqkv_cache_get_config(const tqkv_api* api, const tq_cache* cache, tq_cache_config* config,
                                char* text);
tq_status tqkv_cache_set_centres(const tqkv_api* api, tq_cache* cache, int32_t layer, const float* key,
                                 const float* value, char* text);
tq_status tqkv_cache_memory(const tqkv_api* api, const tq_cache* cache, tq_cache_memory_t* memory,
                            char* text);
tq_status tqkv_cache_fingerprint(const tqkv_api* api, const tq_cache* cache, uint64_t* fingerprint,
                                 char* text);
tq_status tqkv_cache_check(const tqkv_api* api, tq_cache* cache, uintptr_t stream, uint64_t* flags,
                           char* text);
tq_status tqkv_sequence_create(const tqkv_api* api, tq_cache* cache, int64_t* sequence, char* text);
tq_status tqkv_sequence_free(const tqkv_api* api, tq_cache* cache, int64_t sequence, uintptr_t stream,
                             char* text);
tq_status tqkv_sequence_fork(const tqkv_api* api, tq_cache* cache, int64_t source, uintptr_t stream,
                             int64_t* sequence, char* text);
tq_status tqkv_sequence_truncate(const tqkv_api* api, tq_cache* cache, int64_t sequence, int64_t length,
                                 uintptr_t stream, char* text);
tq_status tqkv_sequence_length(const tqkv_api* api, const tq_cache* cache, int64_t sequence, int64_t* length,
                               char* text);
tq_status tqkv_sequence_flags(const tqkv_api* api, const tq_cache* cache, int64_t sequence, uint64_t* flags,
                              char* text);
tq_status tqkv_batch_create(const tqkv_api* api, tq_cache* cache, tq_batch** batch, char* text);
tq_status tqkv_batch_destroy(const tqkv_api* api, tq_batch* batch, char* text);
tq_status tqkv_batch_plan(const tqkv_api* api, tq_batch* batch, int32_t num_sequences,
                          const int64_t* sequences, const int64_t* new_tokens, const int64_t* query_tokens,
                          uintptr_t stream, char* text);
tq_status tqkv_cache_append(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const uint8_t* k_host, const uint8_t* v_host, uintptr_t k_device,
                            uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream, char* text);
// The pointers of *params are 0.
tq_status tqkv_cache_attend(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const tq_attend_params* params, const uint8_t* q_host, uint8_t* out_host,
                            float* lse_host, const float* sinks_host, uint8_t* workspace_host,
                            uintptr_t q_device, uintptr_t out_device, uintptr_t lse_device,
                            uintptr_t sinks_device, uintptr_t workspace_device, size_t workspace_bytes,
                            uintptr_t stream, char* text);
tq_status tqkv_attend_workspace_bytes(const tqkv_api* api, const tq_cache* cache, const tq_batch* batch,
                                      size_t* bytes, char* text);
// outs, lses: arrays of addresses, host or device.
tq_status tqkv_merge_states(const tqkv_api* api, int32_t num_states, const void* const* outs,
                            const void* const* lses, int64_t rows, int32_t dim, int32_t dtype,
                            uint8_t* out_host, float* lse_host, uintptr_t out_device, uintptr_t lse_device,
                            int32_t device_type, int32_t device_id, uintptr_t stream, char* text);
tq_status tqkv_cache_read(const tqkv_api* api, tq_cache* cache, int32_t layer, int64_t sequence,
                          int64_t first, int64_t count, uint8_t* k_host, uint8_t* v_host, uintptr_t k_device,
                          uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream, char* text);
const char* tqkv_version(const tqkv_api* api);
const char* tqkv_build_info(const tqkv_api* api);
const char* tqkv_status_name(const tqkv_api* api, int32_t status);
int32_t tqkv_abi_version(const tqkv_api* api);
