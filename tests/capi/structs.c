/* SPDX-License-Identifier: Apache-2.0
 *
 * The struct_size rule for structs that are read and for structs that are filled, and the error text's way
 * out.
 */
#include "capi.h"

/* A struct of a newer header: what this library knows, and more. */
#define NEWER(type)   \
  struct {            \
    type known;       \
    uint64_t more[3]; \
  }

void test_struct_sizes(void) {
  NEWER(tq_cache_config) config;
  memset(&config, 0, sizeof config);
  config.known = small_config();
  config.known.struct_size = sizeof config;
  EXPECT(TQ_OK, tq_cache_config_check(&config.known, NULL, 0));
  ((char*)&config)[sizeof config - 1] = 1;
  REFUSES(TQ_ERROR_VERSION, "config.struct_size = ", tq_cache_config_check(&config.known, NULL, 0));
  tq_cache* cache = NULL;
  REFUSES(TQ_ERROR_VERSION, "config.struct_size = ", tq_cache_create(&config.known, NULL, &cache));
  ((char*)&config)[sizeof config - 1] = 0;
  /* An older header: fields behind its end count as zero, whatever lies there. */
  config.known.flags = ~(uint64_t)0;
  config.known.pool_bytes = -1;
  config.known.struct_size = offsetof(tq_cache_config, flags);
  EXPECT(TQ_OK, tq_cache_create(&config.known, NULL, &cache));
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, s, 3, 1));

  /* Filled structs: an older one is filled up to its end and no further, a newer one keeps its zero tail. */
  NEWER(tq_cache_memory) memory;
  memset(&memory, 0x77, sizeof memory);
  memory.known.struct_size = offsetof(tq_cache_memory, pages_used);
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory.known));
  CHECK(memory.known.struct_size == offsetof(tq_cache_memory, pages_used) &&
        memory.known.num_sequences == 1 && memory.known.tokens == 3);
  CHECK(memory.known.pages_used == 0x7777777777777777);
  memory.known.struct_size = sizeof memory;
  REFUSES(TQ_ERROR_VERSION, "memory.struct_size = ", tq_cache_get_memory(cache, &memory.known));
  CHECK(memory.known.pages_used == 0x7777777777777777);
  memset(memory.more, 0, sizeof memory.more);
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory.known));
  CHECK(memory.known.pages_used == 1 && memory.known.struct_size == sizeof memory && memory.more[0] == 0);
  const uint32_t wrong[] = {0, 1, 7, 1000000, 0xFFFFFFFFu};
  for (int i = 0; i < 5; i++) {
    memory.known.struct_size = wrong[i];
    REFUSES(TQ_ERROR_INVALID_ARGUMENT, "memory.struct_size = ", tq_cache_get_memory(cache, &memory.known));
  }
  tq_cache_config resolved;
  memset(&resolved, 0x77, sizeof resolved);
  resolved.struct_size = offsetof(tq_cache_config, key_bits);
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.value_dim == VALUE_DIM && resolved.key_bits == 0x77777777);
  tq_cache_bytes bytes;
  memset(&bytes, 0x77, sizeof bytes);
  bytes.struct_size = offsetof(tq_cache_bytes, raw_bytes);
  EXPECT(TQ_OK, tq_cache_config_bytes(&config.known, &bytes));
  CHECK(bytes.page_bytes > 0 && bytes.raw_bytes == 0x7777777777777777);
  tq_device_info info;
  memset(&info, 0x77, sizeof info);
  info.struct_size = offsetof(tq_device_info, memory_bytes);
  EXPECT(TQ_OK, tq_device_get_info(TQ_DEVICE_CPU, 0, &info));
  CHECK(info.num_units >= 1 && info.memory_bytes == 0x7777777777777777);

  /* Parameters of a call. */
  NEWER(tq_attend_params) params;
  float q[3 * Q_HEADS * DIM], out[3 * Q_HEADS * VALUE_DIM], again[3 * Q_HEADS * VALUE_DIM];
  fill(q, 3 * Q_HEADS * DIM, 2);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL));
  memset(&params, 0xFF, sizeof params);
  EXPECT(TQ_OK, tq_attend_params_init(&params.known));
  const tq_attend_params zeros = {.struct_size = sizeof zeros};
  CHECK(memcmp(&params.known, &zeros, sizeof zeros) == 0);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, again, NULL, &params.known, NULL, 0, NULL));
  CHECK(memcmp(out, again, sizeof out) == 0);
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "params = NULL", tq_attend_params_init(NULL));
  memset(&params, 0xFF, sizeof params);
  params.known.struct_size = offsetof(tq_attend_params, softmax_scale);
  params.known.out_dtype = 0;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, again, NULL, &params.known, NULL, 0, NULL));
  CHECK(memcmp(out, again, sizeof out) == 0);
  memset(&params, 0, sizeof params);
  params.known.struct_size = sizeof params;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, again, NULL, &params.known, NULL, 0, NULL));
  params.more[1] = 1;
  REFUSES(TQ_ERROR_VERSION, "params.struct_size = ",
          tq_cache_attend(cache, 0, batch, q, again, NULL, &params.known, NULL, 0, NULL));
  NEWER(tq_tensor_layout) layout;
  memset(&layout, 0, sizeof layout);
  layout.known.struct_size = sizeof layout;
  float k[3 * HEADS * DIM];
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 0, 3, k, NULL, &layout.known, NULL));
  layout.more[0] = 1;
  REFUSES(TQ_ERROR_VERSION,
          "layout.struct_size = ", tq_cache_read(cache, 0, s, 0, 3, k, NULL, &layout.known, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_errors(void) {
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "cache = NULL", tq_batch_create(NULL, NULL));
  char text[256];
  size_t needed = 0;
  EXPECT(TQ_OK, tq_last_error_copy(text, sizeof text, &needed));
  CHECK(strcmp(text, "cache = NULL") == 0 && needed == sizeof "cache = NULL");
  EXPECT(TQ_OK, tq_last_error_copy(NULL, 0, &needed));
  CHECK(needed == sizeof "cache = NULL");
  memset(text, 'x', sizeof text);
  EXPECT(TQ_OK, tq_last_error_copy(text, 6, NULL));
  CHECK(memcmp(text, "cache\0x", 7) == 0);
  EXPECT(TQ_OK, tq_last_error_copy(text, 1, NULL));
  CHECK(text[0] == '\0');
  EXPECT(TQ_OK, tq_last_error_copy(text, 0, NULL));
  /* A success does not clear it. */
  int32_t count;
  EXPECT(TQ_OK, tq_device_count(TQ_DEVICE_CPU, &count));
  CHECK(strcmp(tq_last_error(), "cache = NULL") == 0);
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "buffer = NULL", tq_last_error_copy(NULL, 5, &needed));
}
