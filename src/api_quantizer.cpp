// SPDX-License-Identifier: Apache-2.0
// The C functions of vectors on their own (tqkv.h section 10).
#include "api_arguments.h"
#include "api_guard.h"
#include "quantizer.h"

using tq::guarded;
using tq::Quantizer;

namespace {

const Quantizer* unwrap(const tq_quantizer* quantizer) {
  tq::require(quantizer, "quantizer");
  return reinterpret_cast<const Quantizer*>(quantizer);
}

}  // namespace

extern "C" {

tq_status tq_quantizer_create(const tq_quantizer_config* config, tq_quantizer** quantizer) {
  return guarded([&] {
    tq::require(quantizer, "quantizer");
    *quantizer = reinterpret_cast<tq_quantizer*>(new Quantizer(config));
  });
}

tq_status tq_quantizer_destroy(tq_quantizer* quantizer) {
  return guarded([&] {
    if (quantizer) Quantizer::destroy(reinterpret_cast<Quantizer*>(quantizer));
  });
}

tq_status tq_quantizer_get_info(const tq_quantizer* quantizer, tq_quantizer_info* info) {
  return guarded([&] {
    const Quantizer* q = unwrap(quantizer);
    const uint32_t size = tq::checked_struct_size(info, "info");
    tq::write_struct(q->info(), size, info);
  });
}

tq_status tq_quantizer_encode(const tq_quantizer* quantizer, const void* x, int64_t count, void* codes,
                              uint64_t* noticed, void* stream) {
  return guarded([&] { unwrap(quantizer)->encode(x, count, codes, noticed, stream); });
}

tq_status tq_quantizer_decode(const tq_quantizer* quantizer, const void* codes, int64_t count, void* x,
                              void* stream) {
  return guarded([&] { unwrap(quantizer)->decode(codes, count, x, stream); });
}

tq_status tq_quantizer_inner_products(const tq_quantizer* quantizer, const void* queries, int64_t num_queries,
                                      const void* codes, int64_t count, float* out, void* stream) {
  return guarded([&] { unwrap(quantizer)->inner_products(queries, num_queries, codes, count, out, stream); });
}

tq_status tq_quantizer_search(const tq_quantizer* quantizer, const void* queries, int64_t num_queries,
                              const void* codes, int64_t count, const float* bias, int64_t k, float* scores,
                              int64_t* ids, void* stream) {
  return guarded([&] {
    unwrap(quantizer)->search(tq::SearchRequest{queries, num_queries, static_cast<const uint8_t*>(codes),
                                                count, bias, k, scores, ids},
                              stream);
  });
}

tq_status tq_quantizer_rotate(const tq_quantizer* quantizer, const void* x, int64_t count, float* y,
                              void* stream) {
  return guarded([&] { unwrap(quantizer)->rotate(x, count, y, stream); });
}

tq_status tq_quantizer_unrotate(const tq_quantizer* quantizer, const float* y, int64_t count, void* x,
                                void* stream) {
  return guarded([&] { unwrap(quantizer)->unrotate(y, count, x, stream); });
}

tq_status tq_calibrate_sketch_factor(const tq_quantizer* quantizer, const void* x, int64_t count,
                                     float* factor, void* stream) {
  return guarded([&] {
    const Quantizer* q = unwrap(quantizer);
    tq::require(factor, "factor");
    *factor = q->calibrate_sketch_factor(x, count, stream);
  });
}

tq_status tq_calibrate_levels(const tq_quantizer* quantizer, const void* x, int64_t count, int32_t bits,
                              float* levels, float* boundaries, double* error, void* stream) {
  return guarded([&] {
    const double mean = unwrap(quantizer)->calibrate_levels(x, count, bits, levels, boundaries, stream);
    if (error) *error = mean;
  });
}

}  // extern "C"
