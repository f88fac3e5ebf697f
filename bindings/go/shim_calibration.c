// SPDX-License-Identifier: Apache-2.0
// Calls on calibrations.
#include "shim.h"

tq_status tqkv_calibration_create(const tqkv_api* api, const tq_calibration_config* config,
                                  tq_calibration** calibration, char* text) {
  tq_calibration_config whole = *config;
  whole.struct_size = sizeof whole;
  return tqkv_done(api, api->tq_calibration_create(&whole, calibration), text);
}

tq_status tqkv_calibration_feed(const tqkv_api* api, tq_calibration* calibration, int32_t layer,
                                int64_t count, const uint8_t* q, const uint8_t* k, const uint8_t* v,
                                char* text) {
  return tqkv_done(api, api->tq_calibration_feed(calibration, layer, count, q, k, v), text);
}

tq_status tqkv_calibration_feed_device(const tqkv_api* api, tq_calibration* calibration, int32_t layer,
                                       int64_t count, uintptr_t q, uintptr_t k, uintptr_t v,
                                       int32_t device_id, uintptr_t stream, char* text) {
  const tq_status status =
      api->tq_calibration_feed_from(calibration, layer, count, (const void*)q, (const void*)k, (const void*)v,
                                    TQ_DEVICE_CUDA, device_id, (void*)stream);
  return tqkv_done(api, status, text);
}

tq_status tqkv_calibration_choose(const tqkv_api* api, tq_calibration* calibration,
                                  const tq_calibration_goal* goal, tq_layer_config* layers,
                                  int32_t num_layers, tq_calibration_result* result, char* text) {
  tq_calibration_goal whole = *goal;
  whole.struct_size = sizeof whole;
  result->struct_size = sizeof *result;
  return tqkv_done(api, api->tq_calibration_choose(calibration, &whole, layers, num_layers, result), text);
}

tq_status tqkv_calibration_save(const tqkv_api* api, tq_calibration* calibration, uintptr_t user,
                                int32_t mac_bytes, char* text) {
  const tq_io io = tqkv_writer(user, mac_bytes);
  return tqkv_done(api, api->tq_calibration_save(calibration, &io), text);
}

tq_status tqkv_calibration_load(const tqkv_api* api, uintptr_t user, int32_t mac_bytes,
                                tq_calibration** calibration, char* text) {
  const tq_io io = tqkv_reader(user, mac_bytes);
  return tqkv_done(api, api->tq_calibration_load(&io, calibration), text);
}
