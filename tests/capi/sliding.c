/* SPDX-License-Identifier: Apache-2.0
 *
 * Sliding layers in bounded memory: what they give is bit for bit what a cache gives that keeps everything
 * and is asked for the same window; what they no longer keep is refused in words; and how little they take.
 */
#include "capi.h"

enum { kWindow = 40, kBack = 8, kChunk = 64, kLongest = 700 };

/* Two layers, the second sliding; or, for comparison, both full. */
static tq_cache_config sliding_config(tq_layer_config* layers, int sliding) {
  tq_cache_config config = small_config();
  memset(layers, 0, LAYERS * sizeof *layers);
  for (int i = 0; i < LAYERS; i++) layers[i].struct_size = sizeof *layers;
  if (sliding) layers[1].sliding_window = kWindow;
  config.layers = layers;
  config.max_tokens = 2048;
  config.max_sequences = 3;
  config.max_batch_tokens = kChunk;
  config.rollback_tokens = kBack;
  return config;
}

/* The last rows of layer 1, and what a window asked for gives in the cache that keeps all. */
static void compare_rows(tq_cache* sliding, tq_cache* full, tq_batch* sliding_batch, tq_batch* full_batch,
                         int64_t rows, unsigned seed) {
  const size_t count = (size_t)rows * Q_HEADS * VALUE_DIM;
  float *q = random_floats((size_t)rows * Q_HEADS * DIM, seed), *a = random_floats(count, 1),
        *b = random_floats(count, 2);
  tq_attend_params params;
  EXPECT(TQ_OK, tq_attend_params_init(&params));
  params.sliding_window = kWindow;
  EXPECT(TQ_OK, tq_cache_attend(sliding, 1, sliding_batch, q, a, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_cache_attend(full, 1, full_batch, q, b, NULL, &params, NULL, 0, NULL));
  CHECK(memcmp(a, b, count * sizeof *a) == 0);
  EXPECT(TQ_OK, tq_cache_attend(sliding, 0, sliding_batch, q, a, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_cache_attend(full, 0, full_batch, q, b, NULL, NULL, NULL, 0, NULL));
  CHECK(memcmp(a, b, count * sizeof *a) == 0);
  free(q), free(a), free(b);
}

void test_sliding_layers(void) {
  tq_layer_config layers[LAYERS], all_layers[LAYERS];
  const tq_cache_config config = sliding_config(layers, 1), all_config = sliding_config(all_layers, 0);
  tq_cache *cache = make_cache(&config), *all = make_cache(&all_config);
  tq_batch *batch = make_batch(cache), *all_batch = make_batch(all);
  tq_sequence s[2] = {make_sequence(cache), 0}, t[2] = {make_sequence(all), 0};
  int64_t length = 0;
  for (unsigned step = 0; length < kLongest; step++) {
    const int64_t count = step % 9 == 0 ? kChunk : 1 + (int64_t)(step % 4);
    EXPECT(TQ_OK, grow(cache, batch, s[0], count, step));
    EXPECT(TQ_OK, grow(all, all_batch, t[0], count, step));
    length += count;
    compare_rows(cache, all, batch, all_batch, count, step);
    if (step % 5 == 4) { /* drafts taken back */
      length -= kBack;
      EXPECT(TQ_OK, tq_sequence_truncate(cache, s[0], length, NULL));
      EXPECT(TQ_OK, tq_sequence_truncate(all, t[0], length, NULL));
    }
  }
  /* Both sides of a fork go on by themselves. */
  EXPECT(TQ_OK, tq_sequence_fork(cache, s[0], NULL, &s[1]));
  EXPECT(TQ_OK, tq_sequence_fork(all, t[0], NULL, &t[1]));
  for (unsigned step = 0; step < 80; step++) {
    EXPECT(TQ_OK, grow(cache, batch, s[step % 2], 3, 1000 + step));
    EXPECT(TQ_OK, grow(all, all_batch, t[step % 2], 3, 1000 + step));
    compare_rows(cache, all, batch, all_batch, 3, step);
  }
  /* The pool of the sliding layer: the windows of three sequences and one chunk, not 2,048 tokens. */
  tq_layer_bytes of_full = {sizeof of_full, 0, 0, 0, 0, 0, 0}, of_sliding = of_full;
  EXPECT(TQ_OK, tq_cache_config_layer_bytes(&config, 0, &of_full));
  EXPECT(TQ_OK, tq_cache_config_layer_bytes(&config, 1, &of_sliding));
  CHECK(of_full.group == 0 && of_full.num_pages == 2048 / 32 + 3);
  CHECK(of_sliding.group == 1 && of_sliding.num_pages == 3 * (2 + 3) + kChunk / 32);
  CHECK(of_sliding.page_bytes == of_sliding.num_pages * 32 * of_sliding.token_bytes);
  CHECK(of_full.token_bytes == of_sliding.token_bytes && of_full.raw_bytes == 0);
  CHECK(of_full.fp16_token_bytes == HEADS * (DIM + VALUE_DIM) * 2);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(all_batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(all));
}

void test_sliding_refusals(void) {
  tq_layer_config layers[LAYERS];
  const tq_cache_config config = sliding_config(layers, 1);
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  for (unsigned step = 0; step < 10; step++) EXPECT(TQ_OK, grow(cache, batch, s, 20, step));
  EXPECT(TQ_OK, grow(cache, batch, s, 1, 77)); /* 201 tokens: those from 153 on are kept */
  REFUSES(TQ_ERROR_INVALID_STATE, "length = 100: layer 1 has a sliding window of 40 tokens",
          tq_sequence_truncate(cache, s, 100, NULL));
  CHECK(length_of(cache, s) == 201);
  float* x = random_floats(201 * HEADS * DIM, 3);
  REFUSES(TQ_ERROR_INVALID_STATE,
          "first = 100: layer 1 has a sliding window of 40 tokens and keeps those from",
          tq_cache_read(cache, 1, s, 100, 101, x, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 0, 201, x, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 1, s, 161, 40, x, NULL, NULL, NULL));
  const int64_t none = 0, many = 60;
  REFUSES(TQ_ERROR_INVALID_STATE, "query_tokens[0] = 60: the first query, at position 141, sees the last 40",
          tq_batch_plan(batch, 1, &s, &none, &many, NULL));
  const int64_t chunk = kChunk + 1;
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[0] = 65, with 0 before it: max_batch_tokens = 64",
          tq_batch_plan(batch, 1, &s, &chunk, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 193, NULL));
  EXPECT(TQ_OK, grow(cache, batch, s, 5, 78));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 0, NULL)); /* a new start is always possible */
  EXPECT(TQ_OK, grow(cache, batch, s, 50, 79));
  free(x);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* Gemma 3 27B at 128k tokens: 62 layers, five of six with a window of 1,024. */
void test_sliding_bytes(void) {
  tq_layer_config layers[62];
  tq_cache_config config;
  tq_cache_bytes bytes = {sizeof bytes, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT(TQ_OK, tq_cache_config_init(&config));
  memset(layers, 0, sizeof layers);
  for (int i = 0; i < 62; i++) {
    layers[i].struct_size = sizeof *layers;
    layers[i].sliding_window = i % 6 == 5 ? 0 : 1024;
  }
  config.num_layers = 62, config.num_q_heads = 32, config.num_kv_heads = 16, config.head_dim = 128;
  config.key_bits = config.value_bits = 4;
  config.io_dtype = TQ_BF16;
  config.max_tokens = 131072;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  CHECK((double)bytes.page_bytes > 15.0 * 1073741824.0);
  config.layers = layers;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  CHECK((double)bytes.page_bytes < 3.2 * 1073741824.0);
  int64_t sum = 0;
  for (int32_t i = 0; i < 62; i++) {
    tq_layer_bytes of = {sizeof of, 0, 0, 0, 0, 0, 0};
    EXPECT(TQ_OK, tq_cache_config_layer_bytes(&config, i, &of));
    sum += of.page_bytes;
  }
  CHECK(sum == bytes.page_bytes);
  tq_layer_bytes of = {sizeof of, 0, 0, 0, 0, 0, 0};
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "layer = 62: must be 0 .. 61",
          tq_cache_config_layer_bytes(&config, 62, &of));
}

void test_sliding_remove(void) {
  tq_layer_config layers[LAYERS], all_layers[LAYERS];
  const tq_cache_config config = sliding_config(layers, 1), all_config = sliding_config(all_layers, 0);
  tq_cache *cache = make_cache(&config), *all = make_cache(&all_config);
  tq_batch *batch = make_batch(cache), *all_batch = make_batch(all);
  const tq_sequence s = make_sequence(cache), t = make_sequence(all);
  int64_t length = 0, refused = 0;
  for (unsigned step = 0; step < 60; step++) {
    const int64_t count = step % 7 == 0 ? kChunk : 1 + (int64_t)(step % 4);
    EXPECT(TQ_OK, grow(cache, batch, s, count, step));
    EXPECT(TQ_OK, grow(all, all_batch, t, count, step));
    length += count;
    compare_rows(cache, all, batch, all_batch, count, step);
    /* In front of the window anything may go; in it as much as lies in reach of a rollback. */
    const int64_t first = (int64_t)(step * 7919u) % length, some = 1 + (int64_t)(step * 31u) % 23,
                  gone = some < length - first ? some : length - first;
    const tq_status status = tq_sequence_remove(cache, s, first, gone, NULL);
    if (status == TQ_OK) {
      EXPECT(TQ_OK, tq_sequence_remove(all, t, first, gone, NULL));
      length -= gone;
    } else {
      CHECK(status == TQ_ERROR_INVALID_STATE && first + gone > length - kWindow);
      CHECK(strstr(tq_last_error(), "layer 1 ") != NULL);
      refused++;
    }
    CHECK(length_of(cache, s) == length);
  }
  CHECK(refused > 0 && refused < 30);
  REFUSES(TQ_ERROR_INVALID_STATE, "sequence: layer 1 keeps ",
          tq_sequence_remove(cache, s, length - kWindow, kWindow - 1, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(all_batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(all));
}
