/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache from creation to destruction, what it tells about itself, and its memory: callbacks see exactly the
 * bytes that were announced.
 */
#include "capi.h"

void test_lifecycle(void) {
  const tq_cache_config config = small_config();
  char text[256] = "old";
  EXPECT(TQ_OK, tq_cache_config_check(&config, text, sizeof text));
  CHECK(strcmp(text, "") == 0);
  EXPECT(TQ_OK, tq_cache_config_check(&config, NULL, 0));

  tq_cache* cache = make_cache(&config);
  tq_cache_config resolved;
  tq_cache_config_init(&resolved);
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.device_type == TQ_DEVICE_CPU && resolved.head_dim == DIM && resolved.value_dim == VALUE_DIM);
  CHECK(resolved.rotation == TQ_ROTATION_HADAMARD && resolved.key_scale_rule == TQ_SCALE_UNBIASED &&
        resolved.value_scale_rule == TQ_SCALE_UNBIASED);
  CHECK(resolved.max_sequence_tokens == 256 && resolved.max_batch_sequences == 3 &&
        resolved.max_batch_tokens == 256);
  CHECK(resolved.layer_key_bits && resolved.layer_key_bits[1] == 8 && resolved.layer_value_bits[0] == 8);
  CHECK(resolved.struct_size == sizeof resolved);
  /* The resolved configuration makes the same cache. */
  tq_cache* twin = make_cache(&resolved);
  uint64_t a = 0, b = 1;
  EXPECT(TQ_OK, tq_cache_fingerprint(cache, &a));
  EXPECT(TQ_OK, tq_cache_fingerprint(twin, &b));
  CHECK(a == b);
  EXPECT(TQ_OK, tq_cache_destroy(twin));

  tq_batch* batch = make_batch(cache);
  const tq_sequence sequence = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, sequence, 40, 1));
  EXPECT(TQ_OK, grow(cache, batch, sequence, 1, 2));
  CHECK(length_of(cache, sequence) == 41);

  tq_cache_bytes bytes;
  memset(&bytes, 0, sizeof bytes);
  bytes.struct_size = sizeof bytes;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  CHECK(bytes.page_bytes + bytes.raw_bytes + bytes.table_bytes + bytes.workspace_bytes ==
        bytes.host_bytes + bytes.device_bytes);
  CHECK(bytes.device_bytes == 0 && bytes.num_pages == 256 / 32 + 3);
  CHECK(bytes.token_bytes == LAYERS * HEADS * (DIM + VALUE_DIM + 4));
  CHECK(bytes.fp16_token_bytes == LAYERS * HEADS * (DIM + VALUE_DIM) * 2);
  tq_cache_memory memory;
  memset(&memory, 0, sizeof memory);
  memory.struct_size = sizeof memory;
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));
  CHECK(memory.num_sequences == 1 && memory.tokens == 41 && memory.pages_used == 2 &&
        memory.pages_total == bytes.num_pages);
  CHECK(memory.stored_bytes_used == 2 * 32 * bytes.token_bytes);
  CHECK(memory.host_bytes == bytes.host_bytes && memory.device_bytes == 0 && memory.raw_bytes == 0);
  CHECK(fabs(memory.compression - 256.0 * (double)bytes.fp16_token_bytes / (double)bytes.page_bytes) < 1e-12);

  uint64_t flags = 77;
  EXPECT(TQ_OK, tq_cache_check(cache, NULL, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_cache_check(cache, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_free(cache, sequence, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "cache: 1 of its batches live", tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(NULL));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(NULL));
}

void test_introspection(void) {
  CHECK(strcmp(tq_version(), "0.1.0") == 0);
  CHECK(tq_abi_version() == TQ_ABI_VERSION);
  const char* info = tq_build_info();
  CHECK(strncmp(info, "tqkv 0.1.0; ", 12) == 0);
  CHECK(strstr(info, "cuda ") && strstr(info, "simd ") && strstr(info, "format 1") && !strchr(info, '\n'));
  CHECK(info == tq_build_info());
  CHECK(tq_struct_size(TQ_STRUCT_CACHE_CONFIG) == sizeof(tq_cache_config));
  CHECK(tq_struct_size(TQ_STRUCT_CACHE_BYTES) == sizeof(tq_cache_bytes));
  CHECK(tq_struct_size(TQ_STRUCT_CACHE_MEMORY) == sizeof(tq_cache_memory));
  CHECK(tq_struct_size(TQ_STRUCT_TENSOR_LAYOUT) == sizeof(tq_tensor_layout));
  CHECK(tq_struct_size(TQ_STRUCT_ATTEND_PARAMS) == sizeof(tq_attend_params));
  CHECK(tq_struct_size(TQ_STRUCT_DEVICE_INFO) == sizeof(tq_device_info));
  CHECK(tq_struct_size(TQ_STRUCT_CODEBOOK) == sizeof(tq_codebook));
  CHECK(tq_struct_size(TQ_STRUCT_LAYER_CONFIG) == sizeof(tq_layer_config));
  CHECK(tq_struct_size(TQ_STRUCT_LAYER_BYTES) == sizeof(tq_layer_bytes));
  CHECK(tq_struct_size(TQ_STRUCT_ALLOCATOR) == sizeof(tq_allocator));
  CHECK(tq_struct_size(0) == 0 && tq_struct_size(99) == 0 && tq_struct_size(-1) == 0);
  CHECK(strcmp(tq_status_name(TQ_OK), "TQ_OK") == 0);
  CHECK(strcmp(tq_status_name(TQ_ERROR_INTERNAL), "TQ_ERROR_INTERNAL") == 0);
  CHECK(strcmp(tq_status_name(12345), "TQ_ERROR_UNKNOWN") == 0);

  int32_t count = -1;
  EXPECT(TQ_OK, tq_device_count(TQ_DEVICE_CPU, &count));
  CHECK(count == 1);
  EXPECT(TQ_OK, tq_device_count(TQ_DEVICE_CUDA, &count));
  CHECK(count >= 0);
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "type = 3", tq_device_count(3, &count));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "count = NULL", tq_device_count(TQ_DEVICE_CPU, NULL));
  tq_device_info device;
  memset(&device, 0, sizeof device);
  device.struct_size = sizeof device;
  EXPECT(TQ_OK, tq_device_get_info(TQ_DEVICE_CPU, 0, &device));
  CHECK(device.device_type == TQ_DEVICE_CPU && device.device_id == 0 && device.num_units >= 1 &&
        device.memory_bytes > 0);
  CHECK(device.name[0] && strstr(info, device.name));
  CHECK(device.compute_major == 0 && device.compute_minor == 0);
  REFUSES(TQ_ERROR_NO_DEVICE, "index = 1", tq_device_get_info(TQ_DEVICE_CPU, 1, &device));
  REFUSES(TQ_ERROR_NO_DEVICE, "index = -1", tq_device_get_info(TQ_DEVICE_CPU, -1, &device));
  REFUSES(TQ_ERROR_NO_DEVICE, "index = 1000", tq_device_get_info(TQ_DEVICE_CUDA, 1000, &device));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "info = NULL", tq_device_get_info(TQ_DEVICE_CPU, 0, NULL));
  device.struct_size = 0;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "info.struct_size = 0", tq_device_get_info(TQ_DEVICE_CPU, 0, &device));
}

/* Counts what callbacks give out; every block is followed by a guard. */
struct ledger {
  int64_t bytes, blocks, calls;
  int bad;
};
static void* ledger_alloc(void* user, size_t bytes, size_t alignment, int32_t device_type,
                          int32_t device_id) {
  struct ledger* l = (struct ledger*)user;
  const size_t padded = (bytes + alignment - 1) / alignment * alignment;
  char* p = (char*)aligned(alignment, padded + alignment);
  if (alignment > 4096 || (alignment & (alignment - 1)) || device_type != TQ_DEVICE_CPU || device_id != 0 ||
      bytes == 0)
    l->bad++;
  memset(p, 0xCD, padded + alignment);
  l->bytes += (int64_t)bytes;
  l->blocks++;
  l->calls++;
  return p;
}
static void ledger_free(void* user, void* pointer, size_t bytes, int32_t device_type, int32_t device_id) {
  struct ledger* l = (struct ledger*)user;
  if (((unsigned char*)pointer)[bytes] != 0xCD || device_type != TQ_DEVICE_CPU || device_id != 0) l->bad++;
  l->bytes -= (int64_t)bytes;
  l->blocks--;
  free(pointer);
}

/* 8 bytes beside what was asked for, once calls has come to 0. */
static void* astray_alloc(void* user, size_t bytes, size_t alignment, int32_t device_type,
                          int32_t device_id) {
  struct ledger* l = (struct ledger*)user;
  char* p = (char*)aligned(alignment, (bytes + alignment - 1) / alignment * alignment + alignment);
  (void)device_type, (void)device_id;
  l->blocks++;
  return p + (l->calls++ < 0 ? 0 : 8);
}
static void astray_free(void* user, void* pointer, size_t bytes, int32_t device_type, int32_t device_id) {
  (void)bytes, (void)device_type, (void)device_id;
  ((struct ledger*)user)->blocks--;
  free((void*)((uintptr_t)pointer & ~(uintptr_t)31));
}

void test_allocator_and_pool(void) {
  tq_cache_config config = small_config();
  config.window_tokens = 5;
  config.sink_tokens = 2;
  struct ledger l = {0, 0, 0, 0};
  tq_allocator allocator;
  memset(&allocator, 0, sizeof allocator);
  allocator.struct_size = sizeof allocator;
  allocator.user = &l;
  allocator.alloc = ledger_alloc;
  allocator.free = ledger_free;
  config.allocator = &allocator;
  tq_cache_bytes bytes;
  memset(&bytes, 0, sizeof bytes);
  bytes.struct_size = sizeof bytes;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  CHECK(l.calls == 0);
  tq_cache* cache = make_cache(&config);
  memset(&allocator, 0, sizeof allocator); /* it was copied */
  CHECK(l.bytes == bytes.host_bytes);
  if (l.bytes != bytes.host_bytes)
    printf("# %lld allocated, %lld announced\n", (long long)l.bytes, (long long)bytes.host_bytes);
  tq_batch* batch = make_batch(cache);
  const int64_t calls = l.calls;
  const tq_sequence sequence = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, sequence, 100, 3));
  free(attend_last(cache, batch, sequence, 3, 4));
  tq_sequence fork;
  EXPECT(TQ_OK, tq_sequence_fork(cache, sequence, NULL, &fork));
  EXPECT(TQ_OK, grow(cache, batch, fork, 3, 5));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, fork, 50, NULL));
  EXPECT(TQ_OK, tq_sequence_free(cache, sequence, NULL));
  CHECK(l.calls == calls); /* only create and destroy calls allocate */
  tq_cache_config resolved;
  tq_cache_config_init(&resolved);
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.allocator && resolved.allocator->alloc == ledger_alloc && resolved.allocator->user == &l);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  CHECK(l.bytes == 0 && l.blocks == 0 && l.bad == 0);

  /* Memory that is not aligned as asked, from the first call on or from a later one: given back, and said. */
  allocator.struct_size = sizeof allocator;
  allocator.user = &l;
  allocator.alloc = astray_alloc;
  allocator.free = astray_free;
  for (l.calls = -3; l.calls <= 0; l.calls++) {
    const int64_t first = l.calls;
    REFUSES(TQ_ERROR_INVALID_ARGUMENT, "allocator.alloc returned 0x", tq_cache_create(&config, NULL, &cache));
    CHECK(l.blocks == 0 && l.calls == 1);
    l.calls = first;
  }

  /* A pool of the caller's: the pages lie there, nothing is written beside it, and scrubbing shows in it. */
  config = small_config();
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  const size_t size = (size_t)bytes.page_bytes;
  char* pool = (char*)aligned(256, (size + 511) / 256 * 256);
  memset(pool, 0, size);
  memset(pool + size, 0x5A, 256 - size % 256);
  config.pool = pool;
  config.pool_bytes = bytes.page_bytes - 1;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "pool_bytes = ", tq_cache_create(&config, NULL, &cache));
  config.pool_bytes = bytes.page_bytes;
  cache = make_cache(&config);
  batch = make_batch(cache);
  const tq_sequence second = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, second, 100, 6));
  size_t used = 0;
  for (size_t i = 0; i < size; i++) used += pool[i] != 0;
  CHECK(used > (size_t)(80 * bytes.token_bytes));
  EXPECT(TQ_OK, tq_sequence_free(cache, second, NULL));
  used = 0;
  for (size_t i = 0; i < size; i++) used += pool[i] != 0;
  CHECK(used == 0);
  for (size_t i = size; i < size + (256 - size % 256); i++) CHECK(pool[i] == 0x5A);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  free(pool);
}
