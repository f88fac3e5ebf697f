// SPDX-License-Identifier: Apache-2.0
// Calls on a quantizer, checked; see quantizer.h.
#include "quantizer.h"

#include <math.h>

#include <algorithm>

#include "tensor_check.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tq {
namespace {

constexpr Status kBad = Status::kInvalidArgument;
constexpr int64_t kMaxVectors = 1ll << 40, kMaxResults = 1ll << 40, kMaxBest = 65536;

long long ll(int64_t x) { return static_cast<long long>(x); }

void check_number(const char* name, int64_t value, int64_t most) {
  TQ_CHECK(value >= 0 && value <= most, kBad, "%s = %lld: must be 0 .. 2^40", name, ll(value));
}

void put(XXH64_state_t* state, uint64_t x) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; i++) bytes[i] = static_cast<uint8_t>(x >> (8 * i));
  XXH64_update(state, bytes, sizeof bytes);
}

// FORMAT.md section 8.6.
uint64_t fingerprint_of(const VectorGeometry& g) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  for (const int64_t number :
       {static_cast<int64_t>(g.family), static_cast<int64_t>(g.dim), static_cast<int64_t>(g.parts[0].bits),
        static_cast<int64_t>(g.rotation), static_cast<int64_t>(g.group), static_cast<int64_t>(g.sketch),
        static_cast<int64_t>(format::float_bits(g.sketch_factor)),
        static_cast<int64_t>(g.num_parts == 2 ? g.parts[0].dim : 0)})
    put(&state, static_cast<uint64_t>(number));
  put(&state, g.grouped() ? 0 : g.seed);
  for (int32_t i = 0; g.num_parts == 2 && i < g.parts[0].dim; i++)
    put(&state, static_cast<uint64_t>(g.parts[0].channels[i]));
  for (int i = 0; i < g.num_parts && !g.grouped() && !g.has_levels; i++)
    for (int j = 0; j < g.parts[i].book.count(); j++) put(&state, g.parts[i].book.magnitude[j]);
  for (int i = 0; g.has_levels && i < g.levels.count(); i++)
    put(&state, format::float_bits(g.levels.level[i] + 0.0f));
  return XXH64_digest(&state);
}

}  // namespace

Quantizer::Quantizer(const tq_quantizer_config* config)
    : config_(config),
      gate_("quantizer", false),
      backend_(create_vector_backend(config_.geometry(), config_.host_ops(), config_.device_ops())) {}

void Quantizer::destroy(Quantizer* quantizer) {
  { const Gate::Use use(quantizer->gate_, true); }
  delete quantizer;
}

tq_quantizer_info Quantizer::info() const {
  const VectorGeometry& g = config_.geometry();
  tq_quantizer_info info = {};
  info.rotated_dim = g.rotated_dim();
  info.code_bytes = g.record_bytes;
  info.fingerprint = fingerprint_of(g);
  info.sketch_factor = g.sketch_factor;
  return info;
}

void Quantizer::check_vectors(const char* name, const void* x, int64_t count) const {
  TQ_CHECK(x || count == 0, kBad, "%s = NULL: %lld vectors are to be read or written", name, ll(count));
  check_pointer(name, x, false, count, dtype_bytes(config_.geometry().io_dtype));
}
void Quantizer::check_codes(const void* codes, int64_t count) const {
  check_number("count", count, kMaxVectors);
  TQ_CHECK(codes || count == 0, kBad, "codes = NULL: %lld records are to be read or written", ll(count));
}
void Quantizer::check_rotates(const char* what) const {
  TQ_CHECK(!config_.geometry().grouped(), kBad, "quantizer: %s, and TQ_CODE_GROUPED has no rotation", what);
}

void Quantizer::check_stream(const void* stream) const {
  TQ_CHECK(!stream || !on_cpu(), kBad, "stream = %p: must be NULL for a CPU quantizer", stream);
}

void Quantizer::encode(const void* x, int64_t count, void* codes, uint64_t* noticed, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_codes(codes, count);
  check_vectors("x", x, count);
  backend_->encode(x, count, static_cast<uint8_t*>(codes), noticed, stream);
}

void Quantizer::decode(const void* codes, int64_t count, void* x, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_codes(codes, count);
  check_vectors("x", x, count);
  backend_->decode(static_cast<const uint8_t*>(codes), count, x, stream);
}

void Quantizer::inner_products(const void* queries, int64_t num_queries, const void* codes, int64_t count,
                               float* out, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_number("num_queries", num_queries, kMaxVectors);
  check_codes(codes, count);
  check_vectors("queries", queries, num_queries);
  const int64_t results = checked_mul(num_queries, count, "num_queries * count");
  TQ_CHECK(results <= kMaxResults, kBad, "num_queries * count = %lld: must be at most 2^40", ll(results));
  TQ_CHECK(out || results == 0, kBad, "out = NULL: %lld products are to be written", ll(results));
  check_pointer("out", out, false, results, sizeof(float));
  backend_->inner_products(queries, num_queries, static_cast<const uint8_t*>(codes), count, out, stream);
}

void Quantizer::search(const SearchRequest& request, void* stream) const {
  const Gate::Use use(gate_, false);
  const SearchRequest& r = request;
  check_stream(stream);
  check_number("num_queries", r.num_queries, kMaxVectors);
  check_codes(r.codes, r.count);
  check_vectors("queries", r.queries, r.num_queries);
  TQ_CHECK(r.k >= 1 && r.k <= kMaxBest, kBad, "k = %lld: must be 1 .. %lld", ll(r.k), ll(kMaxBest));
  check_number("num_queries * k", checked_mul(r.num_queries, r.k, "num_queries * k"), kMaxResults);
  check_pointer("bias", r.bias, false, r.count, sizeof(float));
  for (int64_t i = 0; r.bias && on_cpu() && i < r.count; i++)
    TQ_CHECK(!isnan(r.bias[i]), kBad, "bias[%lld] = NaN", ll(i));
  TQ_CHECK((r.scores && r.ids) || r.num_queries == 0, kBad, "scores = %p, ids = %p: both are needed",
           static_cast<const void*>(r.scores), static_cast<const void*>(r.ids));
  check_pointer("scores", r.scores, false, r.num_queries, sizeof(float));
  check_pointer("ids", r.ids, false, r.num_queries, sizeof(int64_t));
  backend_->search(r, stream);
}

void Quantizer::rotate(const void* x, int64_t count, float* y, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_rotates("rotate");
  check_number("count", count, kMaxVectors);
  check_vectors("x", x, count);
  TQ_CHECK(y || count == 0, kBad, "y = NULL: %lld vectors are to be written", ll(count));
  check_pointer("y", y, false, count, sizeof(float));
  backend_->rotate(x, count, y, stream);
}

void Quantizer::unrotate(const float* y, int64_t count, void* x, void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  check_rotates("unrotate");
  check_number("count", count, kMaxVectors);
  check_vectors("x", x, count);
  TQ_CHECK(y || count == 0, kBad, "y = NULL: %lld vectors are to be read", ll(count));
  check_pointer("y", y, false, count, sizeof(float));
  backend_->unrotate(y, count, x, stream);
}

float Quantizer::calibrate_sketch_factor(const void* x, int64_t count, const void* stream) const {
  const Gate::Use use(gate_, false);
  check_stream(stream);
  TQ_CHECK(config_.geometry().has_sketch, kBad, "quantizer: its family = %d has no sketch",
           static_cast<int>(config_.geometry().family));
  check_number("count", count, kMaxVectors);
  check_vectors("x", x, count);
  double rv = 0, vv = 0;
  backend_->sketch_sums(x, count, &rv, &vv);
  TQ_CHECK(vv > 0, kBad, "x: none of the %lld vectors has a residual", ll(count));
  return static_cast<float>(rv / vv);
}

double Quantizer::calibrate_levels(const void* x, int64_t count, int32_t bits, float* levels,
                                   float* boundaries, const void* stream) const {
  const Gate::Use use(gate_, false);
  const VectorGeometry& g = config_.geometry();
  check_stream(stream);
  check_rotates("calibrate_levels");
  TQ_CHECK(g.num_parts == 1, kBad, "quantizer: it has outliers, whose levels are not those of the others");
  check_number("count", count, kMaxVectors);
  check_vectors("x", x, count);
  TQ_CHECK(format::is_vector_bits(bits), kBad, "bits = %d: must be 1 .. 8", bits);
  TQ_CHECK(levels && boundaries, kBad, "levels = %p, boundaries = %p: both are needed",
           static_cast<const void*>(levels), static_cast<const void*>(boundaries));
  const int64_t stored = g.parts[0].stored,
                bytes = checked_mul(checked_mul(count, stored, "count"), sizeof(float), "count");
  const HostBlock block(config_.host_ops(), std::max<int64_t>(bytes, 64), "rotated coordinates");
  float* values = static_cast<float*>(block.get());
  const int64_t vectors = backend_->unit_coordinates(x, count, values);
  TQ_CHECK(vectors > 0, kBad, "x: all of the %lld vectors are zero", ll(count));
  const double error =
      lloyd_levels(values, vectors * stored, static_cast<int32_t>(stored), bits, levels, boundaries);
  return error * static_cast<double>(stored);
}

}  // namespace tq
