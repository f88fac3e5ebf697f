/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences and plans: fork, truncate, free, which plan is in force, and that a call that fails for lack of
 * room changes nothing.
 */
#include "capi.h"

/* Keys and values of layer 0, tokens first .. first + count - 1: [count][HEADS][DIM], then
 * [count][HEADS][VALUE_DIM]; malloc. */
static float* read_all(tq_cache* cache, tq_sequence s, int64_t first, int64_t count) {
  const size_t keys = (size_t)count * HEADS * DIM, values = (size_t)count * HEADS * VALUE_DIM;
  float* x = random_floats(keys + values, 98);
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, first, count, x, x + keys, NULL, NULL));
  return x;
}
static size_t token_floats(int64_t count) { return (size_t)count * HEADS * (DIM + VALUE_DIM); }
static int same(const float* a, const float* b, size_t count) { return memcmp(a, b, count * sizeof *a) == 0; }

void test_sequences(void) {
  tq_cache_config config = small_config();
  config.window_tokens = 4;
  config.rollback_tokens = 4;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence a = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, a, 45, 100));
  float* before = read_all(cache, a, 0, 45);
  tq_sequence b = 0;
  EXPECT(TQ_OK, tq_sequence_fork(cache, a, NULL, &b));
  CHECK(b != a && b != 0 && length_of(cache, b) == 45);
  float* copy = read_all(cache, b, 0, 45);
  CHECK(same(before, copy, token_floats(45)));
  free(copy);
  /* Each side writes for itself. */
  EXPECT(TQ_OK, grow(cache, batch, b, 30, 101));
  copy = read_all(cache, a, 0, 45);
  CHECK(same(before, copy, token_floats(45)));
  free(copy);
  EXPECT(TQ_OK, grow(cache, batch, a, 30, 102));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, a, 45, NULL));
  CHECK(length_of(cache, a) == 45 && length_of(cache, b) == 75);

  /* A step taken back and taken again differently: as if the first had never been. */
  const tq_sequence c = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, c, 20, 103));
  EXPECT(TQ_OK, grow(cache, batch, c, 4, 104));
  float *out = attend_last(cache, batch, c, 5, 105), *all = read_all(cache, c, 0, 24);
  EXPECT(TQ_OK, tq_sequence_truncate(cache, c, 20, NULL));
  EXPECT(TQ_OK, grow(cache, batch, c, 3, 999));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, c, 20, NULL));
  EXPECT(TQ_OK, grow(cache, batch, c, 4, 104));
  float *again = attend_last(cache, batch, c, 5, 105), *all_again = read_all(cache, c, 0, 24);
  CHECK(same(out, again, 5 * Q_HEADS * VALUE_DIM));
  CHECK(same(all, all_again, token_floats(24)));
  free(out);
  free(again);
  free(all);
  free(all_again);

  /* Slots run out; a freed id stays invalid though its slot is used again. */
  tq_sequence d = 0;
  REFUSES(TQ_ERROR_CAPACITY, "max_sequences = 3", tq_sequence_create(cache, &d));
  REFUSES(TQ_ERROR_CAPACITY, "max_sequences = 3", tq_sequence_fork(cache, a, NULL, &d));
  CHECK(d == 0);
  EXPECT(TQ_OK, tq_sequence_free(cache, a, NULL));
  d = make_sequence(cache);
  CHECK(d != a);
  int64_t length = -7;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "sequence = ", tq_sequence_length(cache, a, &length));
  CHECK(length == -7);
  /* b kept the pages that it shared with a. */
  copy = read_all(cache, b, 0, 40);
  float* keys = before;
  CHECK(same(keys, copy, (size_t)40 * HEADS * DIM));
  free(copy);
  free(before);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* What tq_batch_rows says of a batch. */
static int rows_are(const tq_batch* batch, int64_t new_tokens, int64_t query_tokens, int32_t in_force) {
  int64_t news = -1, queries = -1;
  int32_t force = -1;
  EXPECT(TQ_OK, tq_batch_rows(batch, &news, &queries, &force));
  return news == new_tokens && queries == query_tokens && force == in_force;
}

void test_batch_rows(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch *first = make_batch(cache), *second = make_batch(cache);
  const tq_sequence both[2] = {make_sequence(cache), make_sequence(cache)};
  const int64_t news[2] = {5, 2}, queries[2] = {1, 2}, much[2] = {5000, 0}, none[2] = {0, 0};
  CHECK(rows_are(first, 0, 0, 0));
  EXPECT(TQ_OK, tq_batch_plan(first, 2, both, news, queries, NULL));
  CHECK(rows_are(first, 7, 3, 1));
  /* A refused plan leaves the one before in force. */
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[0] = 5000", tq_batch_plan(first, 2, both, much, NULL, NULL));
  CHECK(rows_are(first, 7, 3, 1));
  EXPECT(TQ_OK, tq_batch_plan(second, 1, both, news, NULL, NULL));
  CHECK(rows_are(first, 0, 0, 0));
  CHECK(rows_are(second, 5, 5, 1));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, both[0], 5, NULL));
  CHECK(rows_are(second, 0, 0, 0));
  EXPECT(TQ_OK, tq_batch_plan(second, 2, both, none, queries, NULL));
  CHECK(rows_are(second, 0, 3, 1));
  EXPECT(TQ_OK, tq_sequence_free(cache, both[1], NULL));
  CHECK(rows_are(second, 0, 0, 0));
  EXPECT(TQ_OK, tq_batch_plan(second, 0, NULL, NULL, NULL, NULL));
  CHECK(rows_are(second, 0, 0, 1));
  EXPECT(TQ_OK, tq_batch_rows(second, NULL, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "batch = NULL", tq_batch_rows(NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(first));
  EXPECT(TQ_OK, tq_batch_destroy(second));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_plan_in_force(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch *first = make_batch(cache), *second = make_batch(cache);
  const tq_sequence a = make_sequence(cache), b = make_sequence(cache);
  const tq_sequence both[2] = {a, b};
  const int64_t two[2] = {2, 2};
  float k[4 * HEADS * DIM], v[4 * HEADS * VALUE_DIM], q[4 * Q_HEADS * DIM], out[4 * Q_HEADS * VALUE_DIM];
  fill(k, 4 * HEADS * DIM, 110);
  fill(v, 4 * HEADS * VALUE_DIM, 111);
  fill(q, 4 * Q_HEADS * DIM, 112);
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: no plan was made",
          tq_cache_append(cache, 0, first, k, v, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: no plan was made",
          tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_batch_plan(first, 2, both, two, NULL, NULL));
  CHECK(length_of(cache, a) == 2);
  EXPECT(TQ_OK, tq_cache_append(cache, 0, first, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, first, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  /* Refused plans leave it in force. */
  const int64_t much[2] = {1, 5000}, minus[2] = {1, -1};
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[1] = 5000", tq_batch_plan(first, 2, both, much, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "new_tokens[1] = -1", tq_batch_plan(first, 2, both, minus, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  CHECK(length_of(cache, a) == 2 && length_of(cache, b) == 2);
  /* Planned anew elsewhere, truncated, freed. */
  EXPECT(TQ_OK, tq_batch_plan(second, 1, &b, two, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: its plan is not in force",
          tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_batch_plan(first, 1, &a, two, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, first, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, second, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, b, 1, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: its plan is not in force",
          tq_cache_append(cache, 0, second, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_sequence_free(cache, a, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "batch: its plan is not in force",
          tq_cache_attend(cache, 0, first, q, out, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_batch_plan(first, 1, &b, two, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(first));
  EXPECT(TQ_OK, tq_batch_destroy(second));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_capacity_is_atomic(void) {
  tq_cache_config config = small_config();
  config.max_sequence_tokens = 200;
  config.max_batch_sequences = 2;
  config.max_batch_tokens = 150;
  tq_cache* cache = make_cache(&config);
  tq_batch *batch = make_batch(cache), *other = make_batch(cache);
  const tq_sequence s[3] = {make_sequence(cache), make_sequence(cache), make_sequence(cache)};
  EXPECT(TQ_OK, grow(cache, batch, s[0], 100, 120));
  EXPECT(TQ_OK, grow(cache, batch, s[0], 90, 121));
  EXPECT(TQ_OK, grow(cache, batch, s[1], 60, 122));
  float *out0 = attend_last(cache, batch, s[0], 3, 123), *out1 = attend_last(cache, batch, s[1], 3, 124);
  tq_cache_memory memory, after;
  memset(&memory, 0, sizeof memory);
  memory.struct_size = sizeof memory;
  after = memory;
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));

  /* 11 pages of 32: 6 + 2 are used. Each refusal names what ran out. */
  const tq_sequence pair[2] = {s[1], s[2]};
  const int64_t pool[2] = {5, 96}, longer[2] = {1, 11}, many[3] = {1, 1, 1}, wide[2] = {100, 51};
  const tq_sequence swapped[2] = {s[1], s[0]};
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens: the plan needs 4 more pages",
          tq_batch_plan(other, 2, pair, pool, NULL, NULL));
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[1] = 11: the sequence has 190 tokens, max_sequence_tokens = 200",
          tq_batch_plan(other, 2, swapped, longer, NULL, NULL));
  REFUSES(TQ_ERROR_CAPACITY, "num_sequences = 3: max_batch_sequences = 2",
          tq_batch_plan(other, 3, s, many, NULL, NULL));
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[1] = 51, with 100 before it: max_batch_tokens = 150",
          tq_batch_plan(other, 2, pair, wide, NULL, NULL));
  const int64_t none[2] = {0, 0}, queries[2] = {100, 51};
  REFUSES(TQ_ERROR_CAPACITY, "query_tokens[1] = 51, with 100 before it",
          tq_batch_plan(other, 2, (const tq_sequence[]){s[0], s[1]}, none, queries, NULL));
  CHECK(length_of(cache, s[0]) == 190 && length_of(cache, s[1]) == 60 && length_of(cache, s[2]) == 0);
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &after));
  CHECK(memcmp(&memory, &after, sizeof after) == 0);
  float *again0 = attend_last(cache, batch, s[0], 3, 123), *again1 = attend_last(cache, batch, s[1], 3, 124);
  CHECK(same(out0, again0, 3 * Q_HEADS * VALUE_DIM) && same(out1, again1, 3 * Q_HEADS * VALUE_DIM));
  free(out0);
  free(out1);
  free(again0);
  free(again1);
  /* What fits still fits. */
  const int64_t fits[2] = {4, 96};
  EXPECT(TQ_OK, tq_batch_plan(other, 2, pair, fits, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(other));
  EXPECT(TQ_OK, tq_cache_destroy(cache));

  /* max_tokens always fit, however they are spread. */
  config = small_config();
  config.max_sequences = 5;
  config.max_tokens = 160;
  const int64_t spreads[3][5] = {{160, 0, 0, 0, 0}, {32, 32, 32, 32, 32}, {33, 33, 33, 33, 28}};
  for (int i = 0; i < 3; i++) {
    cache = make_cache(&config);
    batch = make_batch(cache);
    tq_sequence five[5];
    for (int j = 0; j < 5; j++) five[j] = make_sequence(cache);
    EXPECT(TQ_OK, tq_batch_plan(batch, 5, five, spreads[i], NULL, NULL));
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
}

/* Window, sinks and rollback: which tokens are read back exactly. */
static void expect_exact(int line, tq_cache* cache, tq_sequence s, const float* k, int64_t length,
                         int64_t sinks, int64_t window_first) {
  float* x = read_all(cache, s, 0, length);
  for (int64_t i = 0; i < length; i++) {
    const int exact = same(x + i * HEADS * DIM, k + i * HEADS * DIM, HEADS * DIM);
    if (exact != (i < sinks || i >= window_first)) {
      capi_failures++;
      printf("# %s:%d: token %lld of %lld is %s\n", __FILE__, line, (long long)i, (long long)length,
             exact ? "exact" : "not exact");
      break;
    }
  }
  free(x);
}

void test_exact_copies(void) {
  tq_cache_config config = small_config();
  config.key_bits = config.value_bits = 4;
  config.window_tokens = 6;
  config.rollback_tokens = 3;
  config.sink_tokens = 2;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  float *k = random_floats(100 * HEADS * DIM, 130), *v = random_floats(100 * HEADS * VALUE_DIM, 131);
  int64_t length = 0;
  const int64_t chunks[] = {1, 3, 40, 2, 1, 13}, one = 1;
  for (int i = 0; i < 6; i++) {
    EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &chunks[i], &one, NULL));
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k + length * HEADS * DIM, v + length * HEADS * VALUE_DIM,
                                  NULL, NULL));
    length += chunks[i];
    expect_exact(__LINE__, cache, s, k, length, 2, length - 6);
  }
  tq_sequence fork;
  EXPECT(TQ_OK, tq_sequence_fork(cache, s, NULL, &fork));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 57, NULL)); /* 3 of 60: the window is whole */
  expect_exact(__LINE__, cache, s, k, 57, 2, 51);
  uint64_t flags = 77;
  EXPECT(TQ_OK, tq_sequence_flags(cache, s, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 53, NULL)); /* deeper: what is left */
  expect_exact(__LINE__, cache, s, k, 53, 2, 51);
  EXPECT(TQ_OK, tq_sequence_flags(cache, s, &flags));
  CHECK(flags == TQ_NOTICED_SHORT_WINDOW);
  EXPECT(TQ_OK, tq_sequence_flags(cache, fork, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_cache_check(cache, NULL, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 40, NULL));
  expect_exact(__LINE__, cache, s, k, 40, 2, 40);
  expect_exact(__LINE__, cache, fork, k, 60, 2, 54);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &chunks[1], NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k + 40 * HEADS * DIM, v, NULL, NULL));
  expect_exact(__LINE__, cache, s, k, 43, 2, 40);
  EXPECT(TQ_OK, tq_sequence_flags(cache, s, &flags));
  CHECK(flags == TQ_NOTICED_SHORT_WINDOW);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &chunks[1], NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_flags(cache, s, &flags));
  CHECK(flags == 0); /* grown back */
  EXPECT(TQ_OK, tq_sequence_flush(cache, fork, NULL));
  expect_exact(__LINE__, cache, fork, k, 60, 2, 60);
  EXPECT(TQ_OK, tq_sequence_flags(cache, fork, &flags));
  CHECK(flags == TQ_NOTICED_SHORT_WINDOW);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &fork, &chunks[2], NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k + 60 * HEADS * DIM, v, NULL, NULL));
  expect_exact(__LINE__, cache, fork, k, 100, 2, 94);
  free(k);
  free(v);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* The pool of exact copies: what sequences hold of it, a plan that finds no room, one that gives back. */
void test_room_for_exact_copies(void) {
  tq_cache_config config = small_config();
  config.window_tokens = 6;
  config.sink_tokens = 2;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT,
          "max_raw_tokens = 64: one sequence with window_tokens = 6, rollback_tokens = 0 and sink_tokens = 2 "
          "needs 128",
          (config.max_raw_tokens = 64, tq_cache_config_check(&config, NULL, 0)));
  config.max_raw_tokens = 161;
  tq_cache_bytes bytes;
  memset(&bytes, 0, sizeof bytes);
  bytes.struct_size = sizeof bytes;
  EXPECT(TQ_OK, tq_cache_config_bytes(&config, &bytes));
  const int64_t page = LAYERS * HEADS * 32 * (DIM + VALUE_DIM) * (int64_t)sizeof(float);
  CHECK(bytes.raw_bytes == 6 * page);
  tq_cache* cache = make_cache(&config);
  EXPECT(TQ_OK, tq_cache_get_config(cache, &config));
  CHECK(config.max_raw_tokens == 192);
  tq_batch* batch = make_batch(cache);
  const tq_sequence both[] = {make_sequence(cache), make_sequence(cache)};
  tq_cache_memory memory;
  memset(&memory, 0, sizeof memory);
  memory.struct_size = sizeof memory;
  const int64_t news[] = {100, 96}, fewer[] = {100, 7};
  REFUSES(TQ_ERROR_CAPACITY,
          "max_raw_tokens = 192: the plan needs 7 more pages of 32 exact tokens (0 of them to copy shared "
          "ones), 6 of 6 are free; plan fewer query tokens at once, or raise max_raw_tokens",
          tq_batch_plan(batch, 2, both, news, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));
  CHECK(memory.tokens == 0 && memory.raw_bytes_used == 0 && memory.raw_bytes == 6 * page);
  EXPECT(TQ_OK, tq_batch_plan(batch, 2, both, news, fewer, NULL));
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));
  CHECK(memory.raw_bytes_used == 6 * page);
  tq_sequence fork;
  EXPECT(TQ_OK, tq_sequence_fork(cache, both[0], NULL, &fork)); /* shares: no room needed */
  EXPECT(TQ_OK, tq_sequence_free(cache, fork, NULL));
  EXPECT(TQ_OK, tq_batch_plan(batch, 0, NULL, NULL, NULL, NULL)); /* sinks and windows are left */
  EXPECT(TQ_OK, tq_cache_get_memory(cache, &memory));
  CHECK(memory.raw_bytes_used == 5 * page);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* Vectors close to a constant: the centre takes it out, and attention follows. */
void test_centres(void) {
  tq_cache_config config = small_config();
  config.key_bits = config.value_bits = 3;
  double error[2];
  uint64_t prints[2];
  for (int with = 0; with < 2; with++) {
    tq_cache* cache = make_cache(&config);
    tq_batch* batch = make_batch(cache);
    float kc[HEADS * DIM], vc[HEADS * VALUE_DIM], k[50 * HEADS * DIM], v[50 * HEADS * VALUE_DIM];
    fill(kc, HEADS * DIM, 140);
    fill(vc, HEADS * VALUE_DIM, 141);
    fill(k, 50 * HEADS * DIM, 142);
    fill(v, 50 * HEADS * VALUE_DIM, 143);
    for (int i = 0; i < 50 * HEADS * DIM; i++) k[i] = 0.1f * k[i] + 3.0f * kc[i % (HEADS * DIM)];
    for (int i = 0; i < 50 * HEADS * VALUE_DIM; i++) v[i] = 0.1f * v[i] + 3.0f * vc[i % (HEADS * VALUE_DIM)];
    for (int i = 0; i < HEADS * DIM; i++) kc[i] *= 3.0f;
    for (int i = 0; i < HEADS * VALUE_DIM; i++) vc[i] *= 3.0f;
    if (with) EXPECT(TQ_OK, tq_cache_set_centres(cache, 0, kc, vc));
    EXPECT(TQ_OK, tq_cache_set_centres(cache, 0, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_fingerprint(cache, &prints[with]));
    const tq_sequence s = make_sequence(cache);
    const int64_t fifty = 50;
    EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &fifty, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
    REFUSES(TQ_ERROR_INVALID_STATE, "cache: centres are fixed", tq_cache_set_centres(cache, 0, kc, NULL));
    float* x = read_all(cache, s, 0, 50);
    error[with] = 0;
    for (int i = 0; i < 50 * HEADS * DIM; i++) error[with] += ((double)x[i] - k[i]) * ((double)x[i] - k[i]);
    free(x);
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
  /* The constant holds 900 times the energy of the rest; 3 bits leave about 3.4 % of what they code. */
  CHECK(error[1] < error[0] / 100);
  CHECK(prints[0] != prints[1]);
}
