// SPDX-License-Identifier: Apache-2.0
// Made by generate.py from include/tqkv.h; do not edit. A test makes it anew and compares.
// The table of the loaded library's functions, and one call for each function that takes numbers, handles
// and structs to fill; the others are written by hand in shim.c. A call takes the table first and a buffer
// for the error's text last, which it fills before the goroutine can move to another thread (the library
// keeps the text by thread). It sets struct_size.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "tqkv.h"

// Bytes of a text buffer: the library's own texts are not longer.
#define TQKV_TEXT 2048

// clang-format off
#define TQKV_FUNCTIONS(X) \
  X(tq_status_name) X(tq_last_error) X(tq_last_error_copy) X(tq_version) X(tq_abi_version) X(tq_build_info) \
  X(tq_struct_size) X(tq_device_count) X(tq_device_get_info) X(tq_cache_config_init) \
  X(tq_cache_config_check) X(tq_cache_config_bytes) X(tq_cache_config_layer_bytes) X(tq_cache_create) \
  X(tq_cache_destroy) X(tq_cache_reserve) X(tq_cache_get_config) X(tq_cache_set_centres) \
  X(tq_cache_get_memory) X(tq_cache_fingerprint) X(tq_cache_check) X(tq_sequence_create) X(tq_sequence_free) \
  X(tq_sequence_fork) X(tq_sequence_copy) X(tq_sequence_truncate) X(tq_sequence_flush) X(tq_sequence_remove) \
  X(tq_sequence_select) X(tq_sequence_length) X(tq_sequence_flags) X(tq_batch_create) X(tq_batch_destroy) \
  X(tq_batch_plan) X(tq_batch_rows) X(tq_cache_append) X(tq_attend_params_init) X(tq_cache_attend) \
  X(tq_attend_workspace_bytes) X(tq_merge_states) X(tq_cache_read) X(tq_codec_create) X(tq_codec_destroy) \
  X(tq_codec_get_config) X(tq_codec_set_centres) X(tq_codec_fingerprint) X(tq_codec_check) \
  X(tq_codec_page_layout) X(tq_paged_workspace_bytes) X(tq_paged_plan) X(tq_paged_append) X(tq_paged_attend) \
  X(tq_paged_read) X(tq_paged_copy) X(tq_sequence_describe) X(tq_sequence_export) X(tq_sequence_import) \
  X(tq_sequence_save) X(tq_sequence_load) X(tq_quantizer_create) X(tq_quantizer_destroy) \
  X(tq_quantizer_get_info) X(tq_quantizer_encode) X(tq_quantizer_decode) X(tq_quantizer_inner_products) \
  X(tq_quantizer_search) X(tq_quantizer_rotate) X(tq_quantizer_unrotate) X(tq_calibrate_sketch_factor) \
  X(tq_calibrate_levels) X(tq_calibration_create) X(tq_calibration_destroy) X(tq_calibration_get_config) \
  X(tq_calibration_feed) X(tq_calibration_feed_from) X(tq_cache_set_key_matrix) \
  X(tq_calibration_set_key_matrix) X(tq_calibration_choose) X(tq_calibration_set_centres) \
  X(tq_calibration_centres) X(tq_calibration_key_matrix) X(tq_calibration_save) X(tq_calibration_load)

#define TQKV_STRUCTS(X) \
  X(TQ_STRUCT_DEVICE_INFO, tq_device_info) X(TQ_STRUCT_LEVELS, tq_levels) X(TQ_STRUCT_CODEBOOK, tq_codebook) \
  X(TQ_STRUCT_ALLOCATOR, tq_allocator) X(TQ_STRUCT_KEY_BANDS, tq_key_bands) \
  X(TQ_STRUCT_LAYER_CONFIG, tq_layer_config) X(TQ_STRUCT_CACHE_CONFIG, tq_cache_config) \
  X(TQ_STRUCT_CACHE_BYTES, tq_cache_bytes) X(TQ_STRUCT_LAYER_BYTES, tq_layer_bytes) \
  X(TQ_STRUCT_CACHE_MEMORY, tq_cache_memory) X(TQ_STRUCT_TENSOR_LAYOUT, tq_tensor_layout) \
  X(TQ_STRUCT_ATTEND_PARAMS, tq_attend_params) X(TQ_STRUCT_PAGES, tq_pages) \
  X(TQ_STRUCT_PAGE_LAYOUT, tq_page_layout) X(TQ_STRUCT_PAGED_STEP, tq_paged_step) \
  X(TQ_STRUCT_STATE, tq_state) X(TQ_STRUCT_IO, tq_io) X(TQ_STRUCT_QUANTIZER_CONFIG, tq_quantizer_config) \
  X(TQ_STRUCT_QUANTIZER_INFO, tq_quantizer_info) X(TQ_STRUCT_CALIBRATION_CONFIG, tq_calibration_config) \
  X(TQ_STRUCT_CALIBRATION_GOAL, tq_calibration_goal) X(TQ_STRUCT_CALIBRATION_RESULT, tq_calibration_result)

#define TQKV_MEMBER(f) __typeof__(f)* f;
typedef struct tqkv_api {
  TQKV_FUNCTIONS(TQKV_MEMBER)
} tqkv_api;

static inline tq_status tqkv_done(const tqkv_api* api, tq_status status, char* text) {
  if (status != TQ_OK) api->tq_last_error_copy(text, TQKV_TEXT, NULL);
  return status;
}

static inline const char* tqkv_status_name(const tqkv_api* api, int32_t status) {
  return api->tq_status_name(status);
}

static inline const char* tqkv_version(const tqkv_api* api) {
  return api->tq_version();
}

static inline int32_t tqkv_abi_version(const tqkv_api* api) {
  return api->tq_abi_version();
}

static inline const char* tqkv_build_info(const tqkv_api* api) {
  return api->tq_build_info();
}

static inline tq_status tqkv_device_count(const tqkv_api* api, int32_t type, int32_t* count, char* text) {
  return tqkv_done(api, api->tq_device_count(type, count), text);
}

static inline tq_status tqkv_device_get_info(const tqkv_api* api, int32_t type, int32_t index,
    tq_device_info* info, char* text) {
  info->struct_size = sizeof *info;
  return tqkv_done(api, api->tq_device_get_info(type, index, info), text);
}

static inline tq_status tqkv_cache_destroy(const tqkv_api* api, tq_cache* cache, char* text) {
  return tqkv_done(api, api->tq_cache_destroy(cache), text);
}

static inline tq_status tqkv_cache_reserve(const tqkv_api* api, tq_cache* cache, int64_t max_tokens,
    uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_cache_reserve(cache, max_tokens, (void*)stream), text);
}

static inline tq_status tqkv_cache_get_config(const tqkv_api* api, const tq_cache* cache,
    tq_cache_config* config, char* text) {
  config->struct_size = sizeof *config;
  return tqkv_done(api, api->tq_cache_get_config(cache, config), text);
}

static inline tq_status tqkv_cache_set_centres(const tqkv_api* api, tq_cache* cache, int32_t layer,
    const float* key_centre, const float* value_centre, char* text) {
  return tqkv_done(api, api->tq_cache_set_centres(cache, layer, key_centre, value_centre), text);
}

static inline tq_status tqkv_cache_get_memory(const tqkv_api* api, const tq_cache* cache,
    tq_cache_memory* memory, char* text) {
  memory->struct_size = sizeof *memory;
  return tqkv_done(api, api->tq_cache_get_memory(cache, memory), text);
}

static inline tq_status tqkv_cache_fingerprint(const tqkv_api* api, const tq_cache* cache,
    uint64_t* fingerprint, char* text) {
  return tqkv_done(api, api->tq_cache_fingerprint(cache, fingerprint), text);
}

static inline tq_status tqkv_cache_check(const tqkv_api* api, tq_cache* cache, uintptr_t stream,
    uint64_t* flags, char* text) {
  return tqkv_done(api, api->tq_cache_check(cache, (void*)stream, flags), text);
}

static inline tq_status tqkv_sequence_create(const tqkv_api* api, tq_cache* cache, int64_t* sequence,
    char* text) {
  return tqkv_done(api, api->tq_sequence_create(cache, sequence), text);
}

static inline tq_status tqkv_sequence_free(const tqkv_api* api, tq_cache* cache, int64_t sequence,
    uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_sequence_free(cache, sequence, (void*)stream), text);
}

static inline tq_status tqkv_sequence_fork(const tqkv_api* api, tq_cache* cache, int64_t source,
    uintptr_t stream, int64_t* sequence, char* text) {
  return tqkv_done(api, api->tq_sequence_fork(cache, source, (void*)stream, sequence), text);
}

static inline tq_status tqkv_sequence_copy(const tqkv_api* api, tq_cache* source, int64_t sequence,
    tq_cache* target, uintptr_t stream, int64_t* copy, char* text) {
  return tqkv_done(api, api->tq_sequence_copy(source, sequence, target, (void*)stream, copy), text);
}

static inline tq_status tqkv_sequence_truncate(const tqkv_api* api, tq_cache* cache, int64_t sequence,
    int64_t length, uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_sequence_truncate(cache, sequence, length, (void*)stream), text);
}

static inline tq_status tqkv_sequence_flush(const tqkv_api* api, tq_cache* cache, int64_t sequence,
    uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_sequence_flush(cache, sequence, (void*)stream), text);
}

static inline tq_status tqkv_sequence_remove(const tqkv_api* api, tq_cache* cache, int64_t sequence,
    int64_t first, int64_t count, uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_sequence_remove(cache, sequence, first, count, (void*)stream), text);
}

static inline tq_status tqkv_sequence_select(const tqkv_api* api, tq_cache* cache, int64_t sequence,
    const int64_t* positions, int64_t count, uintptr_t stream, char* text) {
  return tqkv_done(api, api->tq_sequence_select(cache, sequence, positions, count, (void*)stream), text);
}

static inline tq_status tqkv_sequence_length(const tqkv_api* api, const tq_cache* cache, int64_t sequence,
    int64_t* length, char* text) {
  return tqkv_done(api, api->tq_sequence_length(cache, sequence, length), text);
}

static inline tq_status tqkv_sequence_flags(const tqkv_api* api, const tq_cache* cache, int64_t sequence,
    uint64_t* flags, char* text) {
  return tqkv_done(api, api->tq_sequence_flags(cache, sequence, flags), text);
}

static inline tq_status tqkv_batch_create(const tqkv_api* api, tq_cache* cache, tq_batch** batch,
    char* text) {
  return tqkv_done(api, api->tq_batch_create(cache, batch), text);
}

static inline tq_status tqkv_batch_destroy(const tqkv_api* api, tq_batch* batch, char* text) {
  return tqkv_done(api, api->tq_batch_destroy(batch), text);
}

static inline tq_status tqkv_batch_plan(const tqkv_api* api, tq_batch* batch, int32_t num_sequences,
    const int64_t* sequences, const int64_t* new_tokens, const int64_t* query_tokens, uintptr_t stream,
    char* text) {
  return tqkv_done(api, api->tq_batch_plan(batch, num_sequences, sequences, new_tokens, query_tokens,
      (void*)stream), text);
}

static inline tq_status tqkv_batch_rows(const tqkv_api* api, const tq_batch* batch, int64_t* new_tokens,
    int64_t* query_tokens, int32_t* in_force, char* text) {
  return tqkv_done(api, api->tq_batch_rows(batch, new_tokens, query_tokens, in_force), text);
}

static inline tq_status tqkv_attend_workspace_bytes(const tqkv_api* api, const tq_cache* cache,
    size_t* bytes, char* text) {
  return tqkv_done(api, api->tq_attend_workspace_bytes(cache, bytes), text);
}

static inline tq_status tqkv_codec_destroy(const tqkv_api* api, tq_codec* codec, char* text) {
  return tqkv_done(api, api->tq_codec_destroy(codec), text);
}

static inline tq_status tqkv_codec_get_config(const tqkv_api* api, const tq_codec* codec,
    tq_cache_config* config, char* text) {
  config->struct_size = sizeof *config;
  return tqkv_done(api, api->tq_codec_get_config(codec, config), text);
}

static inline tq_status tqkv_codec_set_centres(const tqkv_api* api, tq_codec* codec, int32_t layer,
    const float* key_centre, const float* value_centre, char* text) {
  return tqkv_done(api, api->tq_codec_set_centres(codec, layer, key_centre, value_centre), text);
}

static inline tq_status tqkv_codec_fingerprint(const tqkv_api* api, const tq_codec* codec,
    uint64_t* fingerprint, char* text) {
  return tqkv_done(api, api->tq_codec_fingerprint(codec, fingerprint), text);
}

static inline tq_status tqkv_codec_check(const tqkv_api* api, tq_codec* codec, uintptr_t stream,
    uint64_t* flags, char* text) {
  return tqkv_done(api, api->tq_codec_check(codec, (void*)stream, flags), text);
}

static inline tq_status tqkv_codec_page_layout(const tqkv_api* api, const tq_codec* codec, int32_t layer,
    int32_t block_size, int64_t num_blocks, int32_t order, tq_page_layout* layout, char* text) {
  layout->struct_size = sizeof *layout;
  return tqkv_done(api, api->tq_codec_page_layout(codec, layer, block_size, num_blocks, order, layout),
      text);
}

static inline tq_status tqkv_sequence_describe(const tqkv_api* api, const tq_cache* cache, int64_t sequence,
    tq_state* state, char* text) {
  state->struct_size = sizeof *state;
  return tqkv_done(api, api->tq_sequence_describe(cache, sequence, state), text);
}

static inline tq_status tqkv_quantizer_destroy(const tqkv_api* api, tq_quantizer* quantizer, char* text) {
  return tqkv_done(api, api->tq_quantizer_destroy(quantizer), text);
}

static inline tq_status tqkv_quantizer_get_info(const tqkv_api* api, const tq_quantizer* quantizer,
    tq_quantizer_info* info, char* text) {
  info->struct_size = sizeof *info;
  return tqkv_done(api, api->tq_quantizer_get_info(quantizer, info), text);
}

static inline tq_status tqkv_calibration_destroy(const tqkv_api* api, tq_calibration* calibration,
    char* text) {
  return tqkv_done(api, api->tq_calibration_destroy(calibration), text);
}

static inline tq_status tqkv_calibration_get_config(const tqkv_api* api, const tq_calibration* calibration,
    tq_calibration_config* config, char* text) {
  config->struct_size = sizeof *config;
  return tqkv_done(api, api->tq_calibration_get_config(calibration, config), text);
}

static inline tq_status tqkv_cache_set_key_matrix(const tqkv_api* api, tq_cache* cache, int32_t layer,
    const float* matrix, char* text) {
  return tqkv_done(api, api->tq_cache_set_key_matrix(cache, layer, matrix), text);
}

static inline tq_status tqkv_calibration_set_key_matrix(const tqkv_api* api, tq_calibration* calibration,
    int32_t layer, const float* matrix, char* text) {
  return tqkv_done(api, api->tq_calibration_set_key_matrix(calibration, layer, matrix), text);
}

static inline tq_status tqkv_calibration_set_centres(const tqkv_api* api, tq_calibration* calibration,
    tq_cache* cache, char* text) {
  return tqkv_done(api, api->tq_calibration_set_centres(calibration, cache), text);
}

static inline tq_status tqkv_calibration_centres(const tqkv_api* api, tq_calibration* calibration,
    int32_t layer, float* key, float* value, char* text) {
  return tqkv_done(api, api->tq_calibration_centres(calibration, layer, key, value), text);
}

static inline tq_status tqkv_calibration_key_matrix(const tqkv_api* api, tq_calibration* calibration,
    int32_t layer, float* matrix, int32_t* has, char* text) {
  return tqkv_done(api, api->tq_calibration_key_matrix(calibration, layer, matrix, has), text);
}
// clang-format on
