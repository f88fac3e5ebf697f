// SPDX-License-Identifier: Apache-2.0
// Calls on quantizers: structs with pointers are put together here, the rest is passed on.
#include "shim.h"

tq_status tqkv_quantizer_create(const tqkv_api* api, const tq_quantizer_config* config,
                                const int32_t* outlier_channels, const tq_codebook* codebook,
                                const tq_levels* levels, const float* values, const float* boundaries,
                                tq_quantizer** quantizer, char* text) {
  tq_quantizer_config whole = *config;
  tq_levels own;
  tq_codebook book;
  whole.struct_size = sizeof whole;
  whole.outlier_channels = outlier_channels;
  if (codebook) {
    book = *codebook;
    book.struct_size = sizeof book;
    whole.codebook = &book;
  }
  if (levels) {
    own = *levels;
    own.struct_size = sizeof own;
    own.levels = values;
    own.boundaries = boundaries;
    whole.levels = &own;
  }
  return tqkv_done(api, api->tq_quantizer_create(&whole, quantizer), text);
}

tq_status tqkv_quantizer_encode(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, uint8_t* codes, uint64_t* noticed, char* text) {
  return tqkv_done(api, api->tq_quantizer_encode(quantizer, x, count, codes, noticed, NULL), text);
}

tq_status tqkv_quantizer_decode(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* codes,
                                int64_t count, uint8_t* x, char* text) {
  return tqkv_done(api, api->tq_quantizer_decode(quantizer, codes, count, x, NULL), text);
}

tq_status tqkv_quantizer_inner_products(const tqkv_api* api, const tq_quantizer* quantizer,
                                        const uint8_t* queries, int64_t num_queries, const uint8_t* codes,
                                        int64_t count, float* out, char* text) {
  const tq_status status =
      api->tq_quantizer_inner_products(quantizer, queries, num_queries, codes, count, out, NULL);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_search(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* queries,
                                int64_t num_queries, const uint8_t* codes, int64_t count, const float* bias,
                                int64_t k, float* scores, int64_t* ids, char* text) {
  const tq_status status =
      api->tq_quantizer_search(quantizer, queries, num_queries, codes, count, bias, k, scores, ids, NULL);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_rotate(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, float* y, char* text) {
  return tqkv_done(api, api->tq_quantizer_rotate(quantizer, x, count, y, NULL), text);
}

tq_status tqkv_quantizer_unrotate(const tqkv_api* api, const tq_quantizer* quantizer, const float* y,
                                  int64_t count, uint8_t* x, char* text) {
  return tqkv_done(api, api->tq_quantizer_unrotate(quantizer, y, count, x, NULL), text);
}

tq_status tqkv_calibrate_sketch_factor(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                       int64_t count, float* factor, char* text) {
  return tqkv_done(api, api->tq_calibrate_sketch_factor(quantizer, x, count, factor, NULL), text);
}

tq_status tqkv_calibrate_levels(const tqkv_api* api, const tq_quantizer* quantizer, const uint8_t* x,
                                int64_t count, int32_t bits, float* levels, float* boundaries, double* error,
                                char* text) {
  const tq_status status =
      api->tq_calibrate_levels(quantizer, x, count, bits, levels, boundaries, error, NULL);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_encode_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t x,
                                       int64_t count, uintptr_t codes, uint64_t* noticed, uintptr_t stream,
                                       char* text) {
  const tq_status status =
      api->tq_quantizer_encode(quantizer, (const void*)x, count, (void*)codes, noticed, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_decode_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t codes,
                                       int64_t count, uintptr_t x, uintptr_t stream, char* text) {
  const tq_status status =
      api->tq_quantizer_decode(quantizer, (const void*)codes, count, (void*)x, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_inner_products_device(const tqkv_api* api, const tq_quantizer* quantizer,
                                               uintptr_t queries, int64_t num_queries, uintptr_t codes,
                                               int64_t count, uintptr_t out, uintptr_t stream, char* text) {
  const tq_status status = api->tq_quantizer_inner_products(
      quantizer, (const void*)queries, num_queries, (const void*)codes, count, (float*)out, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_search_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t queries,
                                       int64_t num_queries, uintptr_t codes, int64_t count, uintptr_t bias,
                                       int64_t k, uintptr_t scores, uintptr_t ids, uintptr_t stream,
                                       char* text) {
  const tq_status status =
      api->tq_quantizer_search(quantizer, (const void*)queries, num_queries, (const void*)codes, count,
                               (const float*)bias, k, (float*)scores, (int64_t*)ids, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_rotate_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t x,
                                       int64_t count, uintptr_t y, uintptr_t stream, char* text) {
  const tq_status status =
      api->tq_quantizer_rotate(quantizer, (const void*)x, count, (float*)y, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_quantizer_unrotate_device(const tqkv_api* api, const tq_quantizer* quantizer, uintptr_t y,
                                         int64_t count, uintptr_t x, uintptr_t stream, char* text) {
  const tq_status status =
      api->tq_quantizer_unrotate(quantizer, (const float*)y, count, (void*)x, (void*)stream);
  return tqkv_done(api, status, text);
}
