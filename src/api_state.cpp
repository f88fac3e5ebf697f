// SPDX-License-Identifier: Apache-2.0
// The extern "C" wall, section 9 of the header: state that travels. See api.cpp.
#ifndef TQ_BUILDING_LIBRARY
#define TQ_BUILDING_LIBRARY
#endif
#include "api_arguments.h"
#include "api_guard.h"
#include "cache.h"
#include "struct_size.h"

namespace {

using tq::Cache;
using tq::checked_io;
using tq::guarded;

Cache* unwrap(tq_cache* cache) { return reinterpret_cast<Cache*>(cache); }
const Cache* unwrap(const tq_cache* cache) { return reinterpret_cast<const Cache*>(cache); }

}  // namespace

extern "C" {

tq_status tq_sequence_describe(const tq_cache* cache, tq_sequence sequence, tq_state* state) {
  return guarded([&] {
    tq::require(cache, "cache");
    const uint32_t size = tq::checked_struct_size(state, "state");
    tq_state full = tq::read_struct(state, "state");
    unwrap(cache)->describe(sequence, &full);
    tq::write_struct(full, size, state);
  });
}

tq_status tq_sequence_export(tq_cache* cache, tq_sequence sequence, const tq_state* state, void* memory,
                             size_t bytes, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->export_part(sequence, tq::read_struct(state, "state"), memory, bytes, stream);
  });
}

tq_status tq_sequence_import(tq_cache* cache, tq_sequence sequence, const tq_state* state, const void* memory,
                             size_t bytes, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->import_part(sequence, tq::read_struct(state, "state"), memory, bytes, stream);
  });
}

tq_status tq_sequence_save(tq_cache* cache, tq_sequence sequence, const tq_io* io, void* stream) {
  return guarded([&] {
    tq::require(cache, "cache");
    unwrap(cache)->save(sequence, checked_io(io, false), stream);
  });
}

tq_status tq_sequence_load(tq_cache* cache, const tq_io* io, void* stream, tq_sequence* sequence) {
  return guarded([&] {
    tq::require(cache, "cache");
    tq::require(sequence, "sequence");
    *sequence = unwrap(cache)->load(checked_io(io, true), stream);
  });
}

}  // extern "C"
