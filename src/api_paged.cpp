// SPDX-License-Identifier: Apache-2.0
// The extern "C" wall of the codec and the paged calls; see api.cpp.
#ifndef TQ_BUILDING_LIBRARY
#define TQ_BUILDING_LIBRARY
#endif
#include "api_arguments.h"
#include "api_guard.h"
#include "paged.h"
#include "struct_size.h"

namespace {

using tq::Codec;
using tq::guarded;
using tq::PagedStep;

Codec* unwrap(tq_codec* codec) { return reinterpret_cast<Codec*>(codec); }
const Codec* unwrap(const tq_codec* codec) { return reinterpret_cast<const Codec*>(codec); }

PagedStep read_step(const tq_paged_step* caller) {
  const tq_paged_step s = tq::read_struct(caller, "step");
  return PagedStep{s.num_reqs,    s.max_query_len,      s.max_seq_len, s.num_tokens,     s.slot_mapping,
                   s.block_table, s.block_table_stride, s.seq_lens,    s.query_start_loc};
}

}  // namespace

extern "C" {

// ---- Codec ----

tq_status tq_codec_create(const tq_cache_config* config, void* stream, tq_codec** codec) {
  return guarded([&] {
    tq::require(codec, "codec");
    *codec = reinterpret_cast<tq_codec*>(new Codec(config, stream));
  });
}

tq_status tq_codec_destroy(tq_codec* codec) {
  return guarded([&] {
    if (codec) Codec::destroy(unwrap(codec));
  });
}

tq_status tq_codec_get_config(const tq_codec* codec, tq_cache_config* config) {
  return guarded([&] {
    tq::require(codec, "codec");
    const uint32_t size = tq::checked_struct_size(config, "config");
    tq::write_struct(unwrap(codec)->config(), size, config);
  });
}

tq_status tq_codec_set_centres(tq_codec* codec, int32_t layer, const float* key_centre,
                               const float* value_centre) {
  return guarded([&] {
    tq::require(codec, "codec");
    unwrap(codec)->set_centres(layer, key_centre, value_centre);
  });
}

tq_status tq_codec_fingerprint(const tq_codec* codec, uint64_t* fingerprint) {
  return guarded([&] {
    tq::require(codec, "codec");
    tq::require(fingerprint, "fingerprint");
    *fingerprint = unwrap(codec)->fingerprint();
  });
}

tq_status tq_codec_check(tq_codec* codec, void* stream, uint64_t* flags) {
  return guarded([&] {
    tq::require(codec, "codec");
    const uint64_t noticed = unwrap(codec)->check(stream);
    if (flags) *flags = noticed;
  });
}

tq_status tq_codec_page_layout(const tq_codec* codec, int32_t layer, int32_t block_size, int64_t num_blocks,
                               tq_page_order order, tq_page_layout* layout) {
  return guarded([&] {
    tq::require(codec, "codec");
    const uint32_t size = tq::checked_struct_size(layout, "layout");
    tq::write_struct(unwrap(codec)->page_layout(layer, block_size, num_blocks, order), size, layout);
  });
}

// ---- Steps ----

tq_status tq_paged_workspace_bytes(const tq_codec* codec, const tq_paged_step* step, size_t* bytes) {
  return guarded([&] {
    tq::require(codec, "codec");
    tq::require(bytes, "bytes");
    *bytes = unwrap(codec)->workspace_bytes(read_step(step));
  });
}

tq_status tq_paged_plan(const tq_codec* codec, const tq_paged_step* step, void* workspace,
                        size_t workspace_bytes, void* stream) {
  return guarded([&] {
    tq::require(codec, "codec");
    const PagedStep s = read_step(step);
    unwrap(codec)->plan(tq::PlannedStep{&s, workspace, workspace_bytes}, stream);
  });
}

tq_status tq_paged_append(const tq_codec* codec, int32_t layer, const tq_pages* pages,
                          const tq_paged_step* step, const void* k, const void* v,
                          const tq_tensor_layout* layout, void* workspace, size_t workspace_bytes,
                          void* stream) {
  return guarded([&] {
    tq::require(codec, "codec");
    const PagedStep s = read_step(step);
    const tq::LayoutStrides strides = tq::layout_strides(unwrap(codec)->layer(layer), layout);
    unwrap(codec)->append(tq::PlannedStep{&s, workspace, workspace_bytes}, pages,
                          tq::AppendRequest{layer, nullptr, k, v, strides.key, strides.value, stream});
  });
}

tq_status tq_paged_attend(const tq_codec* codec, int32_t layer, const tq_pages* pages,
                          const tq_paged_step* step, const void* q, void* out, float* lse,
                          const tq_attend_params* params, void* workspace, size_t workspace_bytes,
                          void* stream) {
  return guarded([&] {
    tq::require(codec, "codec");
    const PagedStep s = read_step(step);
    tq::AttendRequest request =
        tq::attend_request(unwrap(codec)->layer(layer), unwrap(codec)->geometry().io_dtype, params);
    const void* const given = tq::new_tensors(unwrap(codec)->layer(layer), params).k;
    TQ_CHECK(!given, tq::Status::kNotSupported,
             "params.chunk_k = %p: of caches alone; attend with history_only and merge by LSE", given);
    request.layer = layer;
    request.q = q;
    request.out = out;
    request.lse = lse;
    request.stream = stream;
    unwrap(codec)->attend(tq::PlannedStep{&s, workspace, workspace_bytes}, pages, request);
  });
}

tq_status tq_paged_read(const tq_codec* codec, int32_t layer, const tq_pages* pages, const int64_t* slots,
                        int64_t count, void* k, void* v, const tq_tensor_layout* layout, void* stream) {
  return guarded([&] {
    tq::require(codec, "codec");
    const tq::LayoutStrides strides = tq::layout_strides(unwrap(codec)->layer(layer), layout);
    unwrap(codec)->read(pages, tq::SlotsRead{layer, slots, count, k, v, strides.key, strides.value, stream});
  });
}

tq_status tq_paged_copy(const tq_codec* codec, int32_t layer, const tq_pages* source, const tq_pages* target,
                        const int64_t* pairs, int64_t count, void* stream) {
  return guarded([&] {
    tq::require(codec, "codec");
    unwrap(codec)->copy(layer, source, target, pairs, count, stream);
  });
}

}  // extern "C"
