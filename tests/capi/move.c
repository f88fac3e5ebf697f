/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens taken out of a sequence: what stays reads and attends as a fresh sequence of these tokens does, bit
 * for bit; arguments; shared pages; what a layer lacks it goes on lacking.
 */
#include "capi.h"

#define ROWS(count) ((size_t)(count)*HEADS)

/* k and v of token i of a run: the stream of seed i + 1. */
static void token_rows(const int64_t* tokens, int64_t count, float* k, float* v) {
  for (int64_t i = 0; i < count; i++) {
    fill(k + ROWS(i) * DIM, ROWS(1) * DIM, 2 * (unsigned)tokens[i] + 1);
    fill(v + ROWS(i) * VALUE_DIM, ROWS(1) * VALUE_DIM, 2 * (unsigned)tokens[i] + 2);
  }
}

static void append_tokens(tq_cache* cache, tq_batch* batch, tq_sequence sequence, const int64_t* tokens,
                          int64_t count, int32_t layers) {
  float *k = random_floats(ROWS(count) * DIM, 1), *v = random_floats(ROWS(count) * VALUE_DIM, 1);
  token_rows(tokens, count, k, v);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &count, NULL, NULL));
  for (int32_t layer = 0; layer < layers; layer++)
    EXPECT(TQ_OK, tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
  free(k);
  free(v);
}

static float* read_all(tq_cache* cache, tq_sequence sequence, int32_t layer, int64_t count) {
  float* rows = random_floats(ROWS(count) * (DIM + VALUE_DIM), 3);
  EXPECT(TQ_OK, tq_cache_read(cache, layer, sequence, 0, count, rows, rows + ROWS(count) * DIM, NULL, NULL));
  return rows;
}

/* The sequence is what a fresh one would be to which these tokens were appended. */
static void is_as_fresh(tq_cache* cache, tq_batch* batch, tq_sequence sequence, const int64_t* tokens,
                        int64_t count) {
  const tq_sequence fresh = make_sequence(cache);
  append_tokens(cache, batch, fresh, tokens, count, LAYERS);
  CHECK(length_of(cache, sequence) == count);
  for (int32_t layer = 0; layer < LAYERS; layer++) {
    float *a = read_all(cache, sequence, layer, count), *b = read_all(cache, fresh, layer, count);
    CHECK(memcmp(a, b, sizeof(float) * ROWS(count) * (DIM + VALUE_DIM)) == 0);
    free(a);
    free(b);
  }
  float *a = attend_last(cache, batch, sequence, 2, 5), *b = attend_last(cache, batch, fresh, 2, 5);
  CHECK(memcmp(a, b, sizeof(float) * 2 * Q_HEADS * VALUE_DIM) == 0);
  free(a);
  free(b);
  EXPECT(TQ_OK, tq_sequence_free(cache, fresh, NULL));
}

void test_remove(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence a = make_sequence(cache);
  int64_t tokens[100], kept[100];
  for (int i = 0; i < 100; i++) tokens[i] = i;
  append_tokens(cache, batch, a, tokens, 100, LAYERS);

  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "cache = NULL", tq_sequence_remove(NULL, a, 0, 1, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "sequence = 77", tq_sequence_remove(cache, 77, 0, 1, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "first = -1: the sequence has 100",
          tq_sequence_remove(cache, a, -1, 1, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "first = 101: the sequence has 100",
          tq_sequence_remove(cache, a, 101, 0, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "count = -1: ", tq_sequence_remove(cache, a, 3, -1, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "count = 98: the sequence has 97 tokens from first = 3 on",
          tq_sequence_remove(cache, a, 3, 98, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "stream = ", tq_sequence_remove(cache, a, 3, 1, cache));

  /* Nothing: the plan stays in force. */
  int32_t in_force = 0;
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 100, 0, NULL));
  EXPECT(TQ_OK, tq_batch_rows(batch, NULL, NULL, &in_force));
  CHECK(in_force == 1);
  /* Out of the middle: it is out of force. */
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 10, 7, NULL));
  EXPECT(TQ_OK, tq_batch_rows(batch, NULL, NULL, &in_force));
  CHECK(in_force == 0);
  float* rows = random_floats(ROWS(100) * DIM, 3);
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: its plan is not in force any more, sequence ",
          tq_cache_append(cache, 0, batch, rows, rows, NULL, NULL));
  free(rows);
  int64_t count = 0;
  for (int64_t i = 0; i < 100; i++)
    if (i < 10 || i >= 17) kept[count++] = i;
  is_as_fresh(cache, batch, a, kept, count);
  /* Whole pages, the end, the front. */
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 32, 32, NULL));
  memmove(kept + 32, kept + 64, sizeof kept[0] * (size_t)(count - 64));
  count -= 32;
  is_as_fresh(cache, batch, a, kept, count);
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 55, count - 55, NULL));
  is_as_fresh(cache, batch, a, kept, count = 55);
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 0, 1, NULL));
  is_as_fresh(cache, batch, a, kept + 1, 54);
  /* It grows on as any other. */
  for (int64_t i = 0; i < 40; i++) kept[55 + i] = 200 + i;
  append_tokens(cache, batch, a, kept + 55, 40, LAYERS);
  is_as_fresh(cache, batch, a, kept + 1, 94);
  EXPECT(TQ_OK, tq_sequence_remove(cache, a, 0, 94, NULL));
  CHECK(length_of(cache, a) == 0);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_select(void) {
  tq_cache_config config = small_config();
  config.max_sequences = 4;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence a = make_sequence(cache);
  int64_t tokens[90], kept[90];
  for (int i = 0; i < 90; i++) tokens[i] = i;
  append_tokens(cache, batch, a, tokens, 90, LAYERS);
  tq_sequence b = 0;
  EXPECT(TQ_OK, tq_sequence_fork(cache, a, NULL, &b));

  const int64_t twice[] = {3, 3}, falls[] = {5, 4}, far[] = {3, 90}, low[] = {-1, 3};
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "positions[1] = 3: must be above positions[0] = 3",
          tq_sequence_select(cache, b, twice, 2, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "positions[1] = 4: must be above positions[0] = 5",
          tq_sequence_select(cache, b, falls, 2, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "positions[1] = 90: the sequence has 90",
          tq_sequence_select(cache, b, far, 2, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "positions[0] = -1: ", tq_sequence_select(cache, b, low, 2, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "positions = NULL: count = 2",
          tq_sequence_select(cache, b, NULL, 2, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "count = 91: ", tq_sequence_select(cache, b, tokens, 91, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "count = -1: ", tq_sequence_select(cache, b, tokens, -1, NULL));
  EXPECT(TQ_OK, tq_sequence_select(cache, b, tokens, 90, NULL));
  is_as_fresh(cache, batch, b, tokens, 90);

  /* A fork's pages are replaced, the other side's stay. */
  int64_t count = 0;
  for (int64_t i = 0; i < 90; i++)
    if (i % 3 != 1) kept[count++] = i;
  EXPECT(TQ_OK, tq_sequence_select(cache, b, kept, count, NULL));
  is_as_fresh(cache, batch, b, kept, count);
  is_as_fresh(cache, batch, a, tokens, 90);
  EXPECT(TQ_OK, tq_sequence_free(cache, b, NULL));

  /* Without room for that nothing changes. */
  EXPECT(TQ_OK, tq_sequence_fork(cache, a, NULL, &b));
  const tq_sequence filler = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, filler, 256, 9));
  REFUSES(TQ_ERROR_CAPACITY, "sequence: without these tokens it needs 2 more pages of 32 tokens",
          tq_sequence_select(cache, b, kept, count, NULL));
  EXPECT(TQ_OK, tq_sequence_free(cache, filler, NULL));
  is_as_fresh(cache, batch, b, tokens, 90);
  EXPECT(TQ_OK, tq_sequence_select(cache, b, NULL, 0, NULL));
  CHECK(length_of(cache, b) == 0);

  /* Layer 1 lacks the last tokens: it lacks those of them that stay. */
  EXPECT(TQ_OK, tq_sequence_free(cache, a, NULL));
  append_tokens(cache, batch, b, tokens, 50, LAYERS);
  append_tokens(cache, batch, b, tokens + 50, 20, 1);
  EXPECT(TQ_OK, tq_sequence_remove(cache, b, 40, 15, NULL)); /* 10 that it has, 5 that it lacks */
  float* rows = read_all(cache, b, 1, 40);
  free(rows);
  rows = random_floats(ROWS(55) * DIM, 3);
  REFUSES(TQ_ERROR_INVALID_STATE, "first + count = 41: layer 1 of sequence ",
          tq_cache_read(cache, 1, b, 0, 41, rows, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, b, 0, 55, rows, NULL, NULL, NULL));
  free(rows);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
