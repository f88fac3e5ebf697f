// SPDX-License-Identifier: Apache-2.0
// Loads the library (dlopen, or linked with TQKV_LINK), checks that it fits the header that this package was
// made with, and passes calls on.
#include "shim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- Loading ----

#define TQKV_RELEASE_OF_(a, b, c) #a "." #b "." #c
#define TQKV_RELEASE_OF(a, b, c) TQKV_RELEASE_OF_(a, b, c)
#define TQKV_RELEASE TQKV_RELEASE_OF(TQ_VERSION_MAJOR, TQ_VERSION_MINOR, TQ_VERSION_PATCH)

// A newer library may have longer structs, it knows how to read the shorter ones; an older one does not know
// how to read longer ones.
static int structs_fit(const tqkv_api* api, const char* name, char* text) {
#define TQKV_STRUCT(number, type) {number, #type, sizeof(type)},
  static const struct {
    int32_t id;
    const char* name;
    size_t size;
  } structs[] = {TQKV_STRUCTS(TQKV_STRUCT)};
  for (size_t i = 0; i < sizeof structs / sizeof structs[0]; i++) {
    const size_t found = api->tq_struct_size(structs[i].id);
    if (found < structs[i].size) {
      snprintf(text, TQKV_TEXT,
               "%s is tqkv %s, whose %s has %zu bytes, but this package (" TQKV_RELEASE
               ") needs %zu: the library is too old. Install tqkv " TQKV_RELEASE " or newer",
               name, api->tq_version(), structs[i].name, found, structs[i].size);
      return 0;
    }
  }
  return 1;
}

static int library_fits(const tqkv_api* api, const char* name, char* text) {
  if (api->tq_abi_version() != TQ_ABI_VERSION) {
    snprintf(text, TQKV_TEXT,
             "%s is tqkv %s with ABI %d, but this package (" TQKV_RELEASE
             ") speaks ABI %d. Install a tqkv of that ABI, or a package for this one",
             name, api->tq_version(), (int)api->tq_abi_version(), TQ_ABI_VERSION);
    return 0;
  }
  return structs_fit(api, name, text);
}

#ifdef TQKV_LINK

static int fill(tqkv_api* api, const char* path, int* unfit, char* text) {
  (void)path, (void)unfit, (void)text;
#define TQKV_TAKE(f) api->f = f;
  TQKV_FUNCTIONS(TQKV_TAKE)
  return 1;
}

#else

static int fill(tqkv_api* api, const char* path, int* unfit, char* text) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    snprintf(text, TQKV_TEXT, "%s", reason ? reason : "dlopen gave no reason");
    return 0;
  }
  size_t length = 0;
  char missing[TQKV_TEXT / 2] = "";
  // memcpy: ISO C knows no cast from an object pointer to a function pointer.
#define TQKV_RESOLVE(f)                                                                                      \
  {                                                                                                          \
    void* symbol = dlsym(library, #f);                                                                       \
    memcpy(&api->f, &symbol, sizeof symbol);                                                                 \
    if (!symbol && length < sizeof missing)                                                                  \
      length += (size_t)snprintf(missing + length, sizeof missing - length, "%s%s", length ? ", " : "", #f); \
  }
  TQKV_FUNCTIONS(TQKV_RESOLVE)
  if (length) {
    *unfit = 1;
    snprintf(text, TQKV_TEXT,
             "%s lacks %s: it is older than this package (" TQKV_RELEASE
             "), or not tqkv. Install tqkv " TQKV_RELEASE " or newer",
             path, missing);
    dlclose(library);
    return 0;
  }
  return 1;  // never closed: its threads and streams may outlive any handle
}

#endif

const tqkv_api* tqkv_load(const char* path, int* unfit, char* text) {
  tqkv_api* api = calloc(1, sizeof *api);
  *unfit = 0;
  if (!api) {
    snprintf(text, TQKV_TEXT, "out of memory");
    return NULL;
  }
  if (fill(api, path, unfit, text)) {
    if (library_fits(api, path ? path : "the linked library", text)) return api;
    *unfit = 1;
  }
  free(api);
  return NULL;
}

// ---- Calls ----

static void* either(const void* host, uintptr_t device) {
  return host ? (void*)(uintptr_t)host : (void*)device;
}

// The configuration with its pointers, on the stack of the caller, whose `allocator` it may use.
static tq_cache_config whole_config(TQKV_CONFIG, tq_allocator* allocator) {
  tq_cache_config whole = *config;
  whole.struct_size = sizeof whole;
  whole.layer_key_bits = layer_key_bits;
  whole.layer_value_bits = layer_value_bits;
  whole.layers = layers;
  whole.key_codebook = key_codebook;
  whole.value_codebook = value_codebook;
  whole.pool = (void*)pool;
  if (allocator_alloc || allocator_free) {
    *allocator = (tq_allocator){.struct_size = sizeof *allocator, .user = (void*)allocator_user};
    memcpy(&allocator->alloc, &allocator_alloc, sizeof allocator_alloc);
    memcpy(&allocator->free, &allocator_free, sizeof allocator_free);
    whole.allocator = allocator;
  }
  return whole;
}
#define WHOLE_CONFIG                                                                               \
  tq_allocator allocator;                                                                          \
  const tq_cache_config whole =                                                                    \
      whole_config(config, layer_key_bits, layer_value_bits, layers, key_codebook, value_codebook, \
                   allocator_user, allocator_alloc, allocator_free, pool, &allocator)

tq_status tqkv_cache_config_check(const tqkv_api* api, TQKV_CONFIG, char* text) {
  WHOLE_CONFIG;
  return api->tq_cache_config_check(&whole, text, TQKV_TEXT);
}

tq_status tqkv_cache_config_bytes(const tqkv_api* api, TQKV_CONFIG, tq_cache_bytes* bytes, char* text) {
  WHOLE_CONFIG;
  bytes->struct_size = sizeof *bytes;
  return tqkv_done(api, api->tq_cache_config_bytes(&whole, bytes), text);
}

tq_status tqkv_cache_config_layer_bytes(const tqkv_api* api, TQKV_CONFIG, int32_t layer,
                                        tq_layer_bytes* bytes, char* text) {
  WHOLE_CONFIG;
  bytes->struct_size = sizeof *bytes;
  return tqkv_done(api, api->tq_cache_config_layer_bytes(&whole, layer, bytes), text);
}

tq_status tqkv_cache_create(const tqkv_api* api, TQKV_CONFIG, uintptr_t stream, tq_cache** cache,
                            char* text) {
  WHOLE_CONFIG;
  return tqkv_done(api, api->tq_cache_create(&whole, (void*)stream, cache), text);
}

tq_status tqkv_cache_append(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const uint8_t* k_host, const uint8_t* v_host, uintptr_t k_device,
                            uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream,
                            char* text) {
  tq_tensor_layout whole = *layout;
  whole.struct_size = sizeof whole;
  return tqkv_done(api,
                   api->tq_cache_append(cache, layer, batch, either(k_host, k_device),
                                        either(v_host, v_device), &whole, (void*)stream),
                   text);
}

tq_status tqkv_cache_attend(const tqkv_api* api, tq_cache* cache, int32_t layer, const tq_batch* batch,
                            const tq_attend_params* params, const uint8_t* q_host, uint8_t* out_host,
                            float* lse_host, const float* sinks_host, const int32_t* begin_host,
                            const int32_t* end_host, const uint64_t* tree_host, const float* slopes_host,
                            uint8_t* workspace_host, uintptr_t q_device, uintptr_t out_device,
                            uintptr_t lse_device, uintptr_t sinks_device, uintptr_t begin_device,
                            uintptr_t end_device, uintptr_t tree_device, uintptr_t slopes_device,
                            uintptr_t chunk_k, uintptr_t chunk_v, uintptr_t workspace_device,
                            size_t workspace_bytes, uintptr_t stream, char* text) {
  tq_attend_params whole = *params;
  whole.struct_size = sizeof whole;
  whole.sink_logits = either(sinks_host, sinks_device);
  whole.visible_begin = either(begin_host, begin_device);
  whole.visible_end = either(end_host, end_device);
  whole.tree_mask = either(tree_host, tree_device);
  whole.alibi_slopes = either(slopes_host, slopes_device);
  whole.chunk_k = (const void*)chunk_k;
  whole.chunk_v = (const void*)chunk_v;
  return tqkv_done(
      api,
      api->tq_cache_attend(cache, layer, batch, either(q_host, q_device), either(out_host, out_device),
                           either(lse_host, lse_device), &whole, either(workspace_host, workspace_device),
                           workspace_bytes, (void*)stream),
      text);
}

tq_status tqkv_merge_states(const tqkv_api* api, int32_t num_states, const void* const* outs,
                            const void* const* lses, int64_t rows, int32_t dim, int32_t dtype,
                            uint8_t* out_host, float* lse_host, uintptr_t out_device, uintptr_t lse_device,
                            int32_t device_type, int32_t device_id, uintptr_t stream, char* text) {
  return tqkv_done(api,
                   api->tq_merge_states(num_states, outs, (const float* const*)lses, rows, dim, dtype,
                                        either(out_host, out_device), either(lse_host, lse_device),
                                        device_type, device_id, (void*)stream),
                   text);
}

tq_status tqkv_cache_read(const tqkv_api* api, tq_cache* cache, int32_t layer, int64_t sequence,
                          int64_t first, int64_t count, uint8_t* k_host, uint8_t* v_host, uintptr_t k_device,
                          uintptr_t v_device, const tq_tensor_layout* layout, uintptr_t stream, char* text) {
  tq_tensor_layout whole = *layout;
  whole.struct_size = sizeof whole;
  return tqkv_done(api,
                   api->tq_cache_read(cache, layer, sequence, first, count, either(k_host, k_device),
                                      either(v_host, v_device), &whole, (void*)stream),
                   text);
}

// ---- Pages of an engine's ----

tq_status tqkv_codec_create(const tqkv_api* api, TQKV_CONFIG, uintptr_t stream, tq_codec** codec,
                            char* text) {
  WHOLE_CONFIG;
  return tqkv_done(api, api->tq_codec_create(&whole, (void*)stream, codec), text);
}

// The array behind *at, which moves on; NULL stays NULL.
static const void* put_array(uint8_t** at, const void* from, size_t bytes) {
  void* to = *at;
  if (!from) return NULL;
  memcpy(to, from, bytes);
  *at += (bytes + 7) / 8 * 8;
  return to;
}

int tqkv_step_fill(tqkv_step* room, const tq_paged_step* step, const int64_t* slots, const int32_t* table,
                   const int32_t* lens, const int32_t* starts) {
  const size_t tokens = (size_t)step->num_tokens, requests = (size_t)step->num_reqs,
               entries = requests * (size_t)step->block_table_stride;
  uint8_t* memory = malloc(8 * tokens + 4 * (entries + 2 * requests + 1) + 64);
  if (!memory) return -1;
  free(room->arrays);
  room->arrays = memory;
  room->step = *step;
  room->step.struct_size = sizeof room->step;
  room->step.slot_mapping = put_array(&memory, slots, 8 * tokens);
  room->step.block_table = put_array(&memory, table, 4 * entries);
  room->step.seq_lens = put_array(&memory, lens, 4 * requests);
  room->step.query_start_loc = put_array(&memory, starts, 4 * (requests + 1));
  return 0;
}

void tqkv_step_empty(tqkv_step* room) {
  free(room->arrays);
  free(room->workspace);
  *room = (tqkv_step){0};
}

tq_status tqkv_paged_plan(const tqkv_api* api, const tq_codec* codec, tqkv_step* room, char* text) {
  size_t bytes = 0;
  const tq_status sized = api->tq_paged_workspace_bytes(codec, &room->step, &bytes);
  if (sized) return tqkv_done(api, sized, text);
  if (bytes > room->taken) {
    void* memory = NULL;
    if (posix_memalign(&memory, 256, bytes)) {
      snprintf(text, TQKV_TEXT, "workspace: %zu bytes", bytes);
      return TQ_ERROR_OUT_OF_MEMORY;
    }
    free(room->workspace);
    room->workspace = memory, room->taken = bytes;
  }
  room->workspace_bytes = bytes;
  return tqkv_done(api, api->tq_paged_plan(codec, &room->step, room->workspace, bytes, NULL), text);
}

static tq_pages whole_pages(const tq_pages* pages, uint8_t* base) {
  tq_pages whole = *pages;
  whole.struct_size = sizeof whole;
  whole.base = base;
  return whole;
}

tq_status tqkv_paged_append(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                            uint8_t* base, const tqkv_step* room, const uint8_t* k, const uint8_t* v,
                            const tq_tensor_layout* layout, char* text) {
  const tq_pages whole = whole_pages(pages, base);
  tq_tensor_layout strides = *layout;
  strides.struct_size = sizeof strides;
  return tqkv_done(api,
                   api->tq_paged_append(codec, layer, &whole, &room->step, k, v, &strides, room->workspace,
                                        room->workspace_bytes, NULL),
                   text);
}

tq_status tqkv_paged_attend(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                            uint8_t* base, const tqkv_step* room, const tq_attend_params* params,
                            const uint8_t* q, uint8_t* out, float* lse, const float* sinks,
                            const int32_t* begin, const int32_t* end, const uint64_t* tree,
                            const float* slopes, char* text) {
  const tq_pages whole = whole_pages(pages, base);
  tq_attend_params all = *params;
  all.struct_size = sizeof all;
  all.sink_logits = sinks, all.visible_begin = begin, all.visible_end = end;
  all.tree_mask = tree, all.alibi_slopes = slopes;
  return tqkv_done(api,
                   api->tq_paged_attend(codec, layer, &whole, &room->step, q, out, lse, &all, room->workspace,
                                        room->workspace_bytes, NULL),
                   text);
}

tq_status tqkv_paged_read(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* pages,
                          uint8_t* base, const int64_t* slots, int64_t count, uint8_t* k, uint8_t* v,
                          const tq_tensor_layout* layout, char* text) {
  const tq_pages whole = whole_pages(pages, base);
  tq_tensor_layout strides = *layout;
  strides.struct_size = sizeof strides;
  return tqkv_done(api, api->tq_paged_read(codec, layer, &whole, slots, count, k, v, &strides, NULL), text);
}

tq_status tqkv_paged_copy(const tqkv_api* api, const tq_codec* codec, int32_t layer, const tq_pages* source,
                          uint8_t* source_base, const tq_pages* target, uint8_t* target_base,
                          const int64_t* pairs, int64_t count, char* text) {
  const tq_pages from = whole_pages(source, source_base), to = whole_pages(target, target_base);
  return tqkv_done(api, api->tq_paged_copy(codec, layer, &from, &to, pairs, count, NULL), text);
}

// ---- State that travels ----

tq_status tqkv_sequence_export(const tqkv_api* api, tq_cache* cache, int64_t sequence, const tq_state* state,
                               uint8_t* memory, size_t bytes, uintptr_t stream, char* text) {
  tq_state whole = *state;
  whole.struct_size = sizeof whole;
  return tqkv_done(api, api->tq_sequence_export(cache, sequence, &whole, memory, bytes, (void*)stream), text);
}

tq_status tqkv_sequence_import(const tqkv_api* api, tq_cache* cache, int64_t sequence, const tq_state* state,
                               const uint8_t* memory, size_t bytes, uintptr_t stream, char* text) {
  tq_state whole = *state;
  whole.struct_size = sizeof whole;
  return tqkv_done(api, api->tq_sequence_import(cache, sequence, &whole, memory, bytes, (void*)stream), text);
}

extern int32_t tqkvGoWrite(uintptr_t user, void* bytes, size_t count);
extern int32_t tqkvGoRead(uintptr_t user, void* bytes, size_t count);
extern int32_t tqkvGoMac(uintptr_t user, void* bytes, size_t count, void* tag);

static int32_t write_some(void* user, const void* bytes, size_t count) {
  return tqkvGoWrite((uintptr_t)user, (void*)bytes, count);
}
static int32_t read_some(void* user, void* bytes, size_t count) {
  return tqkvGoRead((uintptr_t)user, bytes, count);
}

static int32_t mac_some(void* user, const void* bytes, size_t count, void* tag) {
  return tqkvGoMac((uintptr_t)user, (void*)bytes, count, tag);
}

tq_io tqkv_writer(uintptr_t user, int32_t mac_bytes) {
  const tq_io io = {sizeof io, mac_bytes, (void*)user, write_some, NULL, mac_bytes ? mac_some : NULL};
  return io;
}

tq_io tqkv_reader(uintptr_t user, int32_t mac_bytes) {
  const tq_io io = {sizeof io, mac_bytes, (void*)user, NULL, read_some, mac_bytes ? mac_some : NULL};
  return io;
}

tq_status tqkv_sequence_save(const tqkv_api* api, tq_cache* cache, int64_t sequence, uintptr_t user,
                             int32_t mac_bytes, uintptr_t stream, char* text) {
  const tq_io io = tqkv_writer(user, mac_bytes);
  return tqkv_done(api, api->tq_sequence_save(cache, sequence, &io, (void*)stream), text);
}

tq_status tqkv_sequence_load(const tqkv_api* api, tq_cache* cache, uintptr_t user, int32_t mac_bytes,
                             uintptr_t stream, int64_t* sequence, char* text) {
  const tq_io io = tqkv_reader(user, mac_bytes);
  return tqkv_done(api, api->tq_sequence_load(cache, &io, (void*)stream, sequence), text);
}
