/* SPDX-License-Identifier: Apache-2.0
 *
 * Pools that grow: arguments, what stays (tokens, plans, bits of results), exact bytes.
 */
#include "capi.h"

static int64_t host_bytes(tq_cache* cache) {
  tq_cache_memory memory;
  memset(&memory, 0, sizeof memory);
  memory.struct_size = sizeof memory;
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));
  return memory.host_bytes;
}

void test_reserve(void) {
  tq_cache_config config = small_config(), resolved;
  config.max_reserve_tokens = 255;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "max_reserve_tokens = 255: must be 0 or at least max_tokens = 256",
          tq_cache_config_check(&config, NULL, 0));
  config.max_reserve_tokens = 1000;
  config.max_batch_tokens = 256;
  tq_cache_bytes bytes;
  memset(&bytes, 0, sizeof bytes);
  bytes.struct_size = sizeof bytes;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  tq_cache* cache = make_cache(&config);
  CHECK(host_bytes(cache) == bytes.host_bytes && bytes.num_pages == 8 + 3);
  tq_batch* batch = make_batch(cache);
  const tq_sequence a = make_sequence(cache), b = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, a, 250, 1));
  EXPECT(TQ_OK, grow(cache, batch, b, 90, 2)); /* the pages that tails may need */
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens: the plan needs", grow(cache, batch, b, 40, 3));
  float* before = attend_last(cache, batch, a, 3, 7);

  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "max_tokens = 255: the cache has room for 256",
          tq_cache_reserve(cache, 255, NULL));
  REFUSES(TQ_ERROR_CAPACITY, "max_tokens = 1001: max_reserve_tokens = 1000",
          tq_cache_reserve(cache, 1001, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "stream = ", tq_cache_reserve(cache, 500, &config));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "cache = NULL", tq_cache_reserve(NULL, 500, NULL));
  EXPECT(TQ_OK, tq_cache_reserve(cache, 256, NULL));
  CHECK(host_bytes(cache) == bytes.host_bytes);
  EXPECT(TQ_OK, tq_cache_reserve(cache, 500, NULL));
  int32_t in_force = 0;
  EXPECT(TQ_OK, tq_batch_rows(batch, NULL, NULL, &in_force));
  CHECK(in_force == 1);
  memset(&resolved, 0, sizeof resolved);
  resolved.struct_size = sizeof resolved;
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.max_tokens == 500 && resolved.max_reserve_tokens == 1000 &&
        resolved.max_sequence_tokens == 1000);
  config.max_tokens = 500;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes)); /* as if created so */
  CHECK(host_bytes(cache) == bytes.host_bytes && bytes.num_pages == 16 + 3);

  float* after = attend_last(cache, batch, a, 3, 7);
  CHECK(memcmp(before, after, sizeof(float) * 3 * Q_HEADS * VALUE_DIM) == 0);
  EXPECT(TQ_OK, grow(cache, batch, b, 40, 3));
  CHECK(length_of(cache, b) == 130);
  EXPECT(TQ_OK, tq_cache_reserve(cache, 1000, NULL));
  EXPECT(TQ_OK, grow(cache, batch, a, 256, 4));
  free(before);
  free(after);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));

  /* A cache that may not grow says so. */
  config = small_config();
  cache = make_cache(&config);
  REFUSES(TQ_ERROR_CAPACITY, "max_tokens = 257: max_reserve_tokens = 256",
          tq_cache_reserve(cache, 257, NULL));
  EXPECT(TQ_OK, tq_cache_reserve(cache, 256, NULL));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
