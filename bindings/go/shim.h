// SPDX-License-Identifier: Apache-2.0
// What the Go package calls beside the calls of calls.h: loading, and the functions whose arguments need
// thought. Structs with pointers are put together here, on the C stack, from pointers given one by one: Go
// memory then never holds Go pointers that C sees. Host memory comes as uint8_t *, device memory as a number;
// at most one of the two is not 0.
#pragma once
#include "calls.h"

// Opens and checks the library. path NULL: the linked one. Returns NULL and a text if there is none (*unfit =
// 0) or it is of another version (*unfit = 1). The table lives as long as the process.
const tqkv_api* tqkv_load(const char* path, int* unfit, char* text);

// A configuration: the pointers of *config are 0, what they would point to comes beside it.
#define TQKV_CONFIG                                                                                      \
  const tq_cache_config *config, const int32_t *layer_key_bits, const int32_t *layer_value_bits,         \
      const tq_layer_config *layers, const tq_codebook *key_codebook, const tq_codebook *value_codebook, \
      uintptr_t allocator_user, uintptr_t allocator_alloc, uintptr_t allocator_free, uintptr_t pool

tq_status tqkv_cache_config_check(const tqkv_api* api, TQKV_CONFIG, char* text);
tq_status tqkv_cache_config_bytes(const tqkv_api* api, TQKV_CONFIG, tq_cache_bytes* bytes, char* text);
tq_status tqkv_cache_config_layer_bytes(const tqkv_api* api, TQKV_CONFIG, int32_t layer,
                                        tq_layer_bytes* bytes, char* text);
tq_status tqkv_cache_create(const tqkv_api* api, TQKV_CONFIG, uintptr_t stream, tq_cache** cache, char* text);
tq_status tqkv_cache_append(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const uint8_t* k_host, const uint8_t* v_host, uintptr_t k_device,
                            uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream, char* text);
// The pointers of *params are 0.
tq_status tqkv_cache_attend(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const tq_attend_params* params, const uint8_t* q_host, uint8_t* out_host,
                            float* lse_host, const float* sinks_host, const int32_t* begin_host,
                            const int32_t* end_host, const uint64_t* tree_host, const float* slopes_host,
                            uint8_t* workspace_host, uintptr_t q_device, uintptr_t out_device,
                            uintptr_t lse_device, uintptr_t sinks_device, uintptr_t begin_device,
                            uintptr_t end_device, uintptr_t tree_device, uintptr_t slopes_device,
                            uintptr_t chunk_k, uintptr_t chunk_v, uintptr_t workspace_device,
                            size_t workspace_bytes, uintptr_t stream, char* text);
// outs, lses: arrays of addresses, host or device.
tq_status tqkv_merge_states(const tqkv_api* api, int32_t num_states, const void* const* outs,
                            const void* const* lses, int64_t rows, int32_t dim, int32_t dtype,
                            uint8_t* out_host, float* lse_host, uintptr_t out_device, uintptr_t lse_device,
                            int32_t device_type, int32_t device_id, uintptr_t stream, char* text);
tq_status tqkv_cache_read(const tqkv_api* api, tq_cache* cache, int32_t layer, int64_t sequence,
                          int64_t first, int64_t count, uint8_t* k_host, uint8_t* v_host, uintptr_t k_device,
                          uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream, char* text);
tq_status tqkv_sequence_export(const tqkv_api* api, tq_cache* cache, int64_t sequence, const tq_state* state,
                               uint8_t* memory, size_t bytes, uintptr_t stream, char* text);
tq_status tqkv_sequence_import(const tqkv_api* api, tq_cache* cache, int64_t sequence, const tq_state* state,
                               const uint8_t* memory, size_t bytes, uintptr_t stream, char* text);
// A step of an engine: its arrays and its workspace, in C's memory, where the library may keep addresses of
// them.
typedef struct {
  tq_paged_step step;
  uint8_t* arrays;
  uint8_t* workspace;
  size_t workspace_bytes, taken;
} tqkv_step;

tq_status tqkv_codec_create(const tqkv_api* api, TQKV_CONFIG, uintptr_t stream, tq_codec** codec, char* text);
// Copies the arrays, as long as the step's numbers say, of which the pointers are 0; -1: no memory.
int tqkv_step_fill(tqkv_step* room, const tq_paged_step* step, const int64_t* slots, const int32_t* table,
                   const int32_t* lens, const int32_t* starts);
void tqkv_step_empty(tqkv_step* room);
tq_status tqkv_paged_plan(const tqkv_api* api, const tq_codec* codec, tqkv_step* room, char* text);
// The base of *pages is 0.
tq_status tqkv_paged_append(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                            uint8_t* base, const tqkv_step* room, const uint8_t* k, const uint8_t* v,
                            const tq_tensor_layout* layout, char* text);
// The pointers of *params are 0.
tq_status tqkv_paged_attend(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                            uint8_t* base, const tqkv_step* room, const tq_attend_params* params,
                            const uint8_t* q, uint8_t* out, float* lse, const float* sinks,
                            const int32_t* begin, const int32_t* end, const uint64_t* tree,
                            const float* slopes, char* text);
tq_status tqkv_paged_read(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                          uint8_t* base, const int64_t* slots, int64_t count, uint8_t* k, uint8_t* v,
                          const tq_tensor_layout* layout, char* text);
tq_status tqkv_paged_copy(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* source,
                          uint8_t* source_base, const tq_pages* target, uint8_t* target_base,
                          const int64_t* pairs, int64_t count, char* text);
// user: a cgo handle, which tqkvGoWrite, tqkvGoRead and, if mac_bytes is not 0, tqkvGoMac (state.go) get.
tq_io tqkv_writer(uintptr_t user, int32_t mac_bytes);
tq_io tqkv_reader(uintptr_t user, int32_t mac_bytes);
tq_status tqkv_sequence_save(const tqkv_api* api, tq_cache* cache, int64_t sequence, uintptr_t user,
                             int32_t mac_bytes, uintptr_t stream, char* text);
tq_status tqkv_sequence_load(const tqkv_api* api, tq_cache* cache, uintptr_t user, int32_t mac_bytes,
                             uintptr_t stream, int64_t* sequence, char* text);

// Calibration. feed: arrays of the host, or of a device by their addresses.
tq_status tqkv_calibration_create(const tqkv_api* api, const tq_calibration_config* config,
                                  tq_calibration** calibration, char* text);
tq_status tqkv_calibration_feed(const tqkv_api* api, tq_calibration* calibration, int32_t layer,
                                int64_t count, const uint8_t* q, const uint8_t* k, const uint8_t* v,
                                char* text);
tq_status tqkv_calibration_feed_device(const tqkv_api* api, tq_calibration* calibration, int32_t layer,
                                       int64_t count, uintptr_t q, uintptr_t k, uintptr_t v,
                                       int32_t device_id, uintptr_t stream, char* text);
// layers, *result: zeros.
tq_status tqkv_calibration_choose(const tqkv_api* api, tq_calibration* calibration,
                                  const tq_calibration_goal* goal, tq_layer_config* layers,
                                  int32_t num_layers, tq_calibration_result* result, char* text);
tq_status tqkv_calibration_save(const tqkv_api* api, tq_calibration* calibration, uintptr_t user,
                                int32_t mac_bytes, char* text);
tq_status tqkv_calibration_load(const tqkv_api* api, uintptr_t user, int32_t mac_bytes,
                                tq_calibration** calibration, char* text);

// Vectors on their own. The pointers of *config and *levels are 0; levels NULL: none.
tq_status tqkv_quantizer_create(const tqkv_api* api, const tq_quantizer_config* config,
                                const int32_t* outlier_channels, const tq_codebook* codebook,
                                const tq_levels* levels, const float* values, const float* boundaries,
                                tq_quantizer** quantizer, char* text);
tq_status tqkv_quantizer_encode(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, uint8_t* codes, uint64_t* noticed, char* text);
tq_status tqkv_quantizer_decode(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* codes,
                                int64_t count, uint8_t* x, char* text);
tq_status tqkv_quantizer_inner_products(const tqkv_api* api, const tq_quantizer* quantizer,
                                        const uint8_t* queries, int64_t num_queries, const uint8_t* codes,
                                        int64_t count, float* out, char* text);
tq_status tqkv_quantizer_search(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* queries,
                                int64_t num_queries, const uint8_t* codes, int64_t count, const float* bias,
                                int64_t k, float* scores, int64_t* ids, char* text);
tq_status tqkv_quantizer_rotate(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, float* y, char* text);
tq_status tqkv_quantizer_unrotate(const tqkv_api* api, const tq_quantizer* quantizer, const float* y,
                                  int64_t count, uint8_t* x, char* text);
tq_status tqkv_calibrate_sketch_factor(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                       int64_t count, float* factor, char* text);
tq_status tqkv_calibrate_levels(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, int32_t bits, float* levels, float* boundaries, double* error,
                                char* text);

// The same on memory of a device, whose addresses are numbers. noticed: NULL, or on the host.
tq_status tqkv_quantizer_encode_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t x,
                                       int64_t count, uintptr_t codes, uint64_t* noticed, uintptr_t stream,
                                       char* text);
tq_status tqkv_quantizer_decode_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t codes,
                                       int64_t count, uintptr_t x, uintptr_t stream, char* text);
tq_status tqkv_quantizer_inner_products_device(const tqkv_api* api, const tq_quantizer* quantizer,
                                               uintptr_t queries, int64_t num_queries, uintptr_t codes,
                                               int64_t count, uintptr_t out, uintptr_t stream, char* text);
tq_status tqkv_quantizer_search_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t queries,
                                       int64_t num_queries, uintptr_t codes, int64_t count, uintptr_t bias,
                                       int64_t k, uintptr_t scores, uintptr_t ids, uintptr_t stream,
                                       char* text);
tq_status tqkv_quantizer_rotate_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t x,
                                       int64_t count, uintptr_t y, uintptr_t stream, char* text);
tq_status tqkv_quantizer_unrotate_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t y,
                                         int64_t count, uintptr_t x, uintptr_t stream, char* text);
