// SPDX-License-Identifier: Apache-2.0
// The extern "C" wall, section 11 of the header: calibration. See api.cpp.
#ifndef TQ_BUILDING_LIBRARY
#define TQ_BUILDING_LIBRARY
#endif
#include "api_arguments.h"
#include "api_guard.h"
#include "cache.h"
#include "calibration.h"

namespace {

using tq::Calibration;
using tq::guarded;

Calibration* unwrap(tq_calibration* calibration) {
  tq::require(calibration, "calibration");
  return reinterpret_cast<Calibration*>(calibration);
}

// The cache's layers are those of the calibration.
void check_shape(const tq_calibration_config& c, const tq::Geometry& g) {
  TQ_CHECK(g.num_layers == c.num_layers, tq::Status::kInvalidArgument,
           "cache: num_layers = %d, the calibration's is %d", g.num_layers, c.num_layers);
  for (int32_t i = 0; i < g.num_layers; i++) {
    const tq::LayerGeometry& layer = g.layers[i];
    TQ_CHECK(layer.num_kv_heads == c.num_kv_heads && layer.head_dim == c.head_dim &&
                 layer.value_dim == c.value_dim && !layer.latent && g.stores(i),
             tq::Status::kInvalidArgument,
             "cache: layer %d has %d kv heads of %d and %d coordinates, the calibration's %d of %d and %d", i,
             layer.num_kv_heads, layer.head_dim, layer.value_dim, c.num_kv_heads, c.head_dim, c.value_dim);
  }
}

}  // namespace

extern "C" {

tq_status tq_calibration_create(const tq_calibration_config* config, tq_calibration** calibration) {
  return guarded([&] {
    tq::require(calibration, "calibration");
    *calibration = reinterpret_cast<tq_calibration*>(new Calibration(config));
  });
}

tq_status tq_calibration_destroy(tq_calibration* calibration) {
  return guarded([&] {
    if (calibration) Calibration::destroy(reinterpret_cast<Calibration*>(calibration));
  });
}

tq_status tq_calibration_get_config(const tq_calibration* calibration, tq_calibration_config* config) {
  return guarded([&] {
    tq::require(calibration, "calibration");
    const uint32_t size = tq::checked_struct_size(config, "config");
    tq::write_struct(reinterpret_cast<const Calibration*>(calibration)->config(), size, config);
  });
}

tq_status tq_calibration_feed(tq_calibration* calibration, int32_t layer, int64_t count, const void* q,
                              const void* k, const void* v) {
  return guarded([&] { unwrap(calibration)->feed(layer, count, q, k, v); });
}

tq_status tq_calibration_set_key_matrix(tq_calibration* calibration, int32_t layer, const float* matrix) {
  return guarded([&] { unwrap(calibration)->set_key_matrix(layer, matrix); });
}

tq_status tq_cache_set_key_matrix(tq_cache* cache, int32_t layer, const float* matrix) {
  return guarded([&] {
    tq::require(cache, "cache");
    reinterpret_cast<tq::Cache*>(cache)->set_key_matrix(layer, matrix);
  });
}

tq_status tq_calibration_feed_from(tq_calibration* calibration, int32_t layer, int64_t count, const void* q,
                                   const void* k, const void* v, tq_device_type device_type,
                                   int32_t device_id, void* stream) {
  return guarded([&] {
    Calibration* const c = unwrap(calibration);
    TQ_CHECK(device_type == TQ_DEVICE_CPU || device_type == TQ_DEVICE_CUDA, tq::Status::kInvalidArgument,
             "device_type = %d: must be 1 (CPU) or 2 (CUDA)", device_type);
    const tq::DeviceType type = static_cast<tq::DeviceType>(device_type);
    tq::ReasonList reasons;
    check_device(type, device_id, reasons);
    if (!reasons.empty()) throw tq::Error(reasons.status(), "%s", reasons.text());
    if (type == tq::DeviceType::kCpu) {
      TQ_CHECK(!stream, tq::Status::kInvalidArgument, "stream = %p: must be NULL on the CPU", stream);
      return c->feed(layer, count, q, k, v);
    }
    const auto reader = tq::create_device_reader(device_id, c->piece_bytes(), stream);
    c->feed(layer, count, q, k, v, reader.get());
  });
}

tq_status tq_calibration_choose(tq_calibration* calibration, const tq_calibration_goal* goal,
                                tq_layer_config* layers, int32_t num_layers, tq_calibration_result* result) {
  return guarded([&] {
    Calibration* const c = unwrap(calibration);
    const tq_calibration_goal wanted = tq::read_struct(goal, "goal");
    const uint32_t size = result ? tq::checked_struct_size(result, "result") : 0;
    tq_calibration_result found = {};
    c->choose(wanted, layers, num_layers, &found);
    if (result) tq::write_struct(found, size, result);
  });
}

tq_status tq_calibration_set_centres(tq_calibration* calibration, tq_cache* cache) {
  return guarded([&] {
    Calibration* const c = unwrap(calibration);
    tq::require(cache, "cache");
    tq::Cache* const own = reinterpret_cast<tq::Cache*>(cache);
    check_shape(c->config(), own->geometry());
    const auto takes_matrix = [&](int32_t layer) { return !own->geometry().layers[layer].key_code.raw(); };
    // All layers are asked before the first is changed.
    c->for_each_centre([&](int32_t layer, const float*, const float*, const float* matrix) {
      if (matrix && takes_matrix(layer)) own->check_key_matrix(layer);
    });
    c->for_each_centre([&](int32_t layer, const float* key, const float* value, const float* matrix) {
      if (matrix && takes_matrix(layer)) own->set_key_matrix(layer, matrix);
      own->set_centres(layer, key, value);
    });
  });
}

tq_status tq_calibration_centres(tq_calibration* calibration, int32_t layer, float* key, float* value) {
  return guarded([&] { unwrap(calibration)->copy_centres(layer, key, value); });
}

tq_status tq_calibration_key_matrix(tq_calibration* calibration, int32_t layer, float* matrix, int32_t* has) {
  return guarded([&] {
    tq::require(has, "has");
    *has = unwrap(calibration)->copy_key_matrix(layer, matrix);
  });
}

tq_status tq_calibration_save(tq_calibration* calibration, const tq_io* io) {
  return guarded([&] { unwrap(calibration)->save(tq::checked_io(io, false)); });
}

tq_status tq_calibration_load(const tq_io* io, tq_calibration** calibration) {
  return guarded([&] {
    tq::require(calibration, "calibration");
    *calibration = reinterpret_cast<tq_calibration*>(new Calibration(tq::checked_io(io, true)));
  });
}

}  // extern "C"
