/* SPDX-License-Identifier: Apache-2.0
 *
 * Planned is not written: no call gives out bytes of tokens that nothing appended, whether they are a
 * rejected draft's, another sequence's or the heap's. The allocator's memory is filled as a recycled heap may
 * be.
 */
#include "capi.h"

static void* dirty_alloc(void* user, size_t bytes, size_t alignment, int32_t type, int32_t id) {
  (void)user, (void)type, (void)id;
  return memset(aligned(alignment, bytes), 0xFF, bytes);
}
static void dirty_free(void* user, void* memory, size_t bytes, int32_t type, int32_t id) {
  (void)user, (void)bytes, (void)type, (void)id;
  free(memory);
}
static const tq_allocator dirty = {sizeof(tq_allocator), 0, NULL, dirty_alloc, dirty_free};

/* Rejected drafts, with pages that keep their bytes; another sequence's tokens in the same place. */
void test_unwritten_old_tokens(void) {
  tq_cache_config config = small_config();
  config.flags = TQ_FLAG_NO_ZERO_ON_FREE;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  tq_sequence s = make_sequence(cache);
  const int64_t two = 2, three = 3, one = 1;
  float q[3 * Q_HEADS * DIM], out[3 * Q_HEADS * VALUE_DIM], k[3 * HEADS * DIM], v[3 * HEADS * VALUE_DIM];
  fill(q, 3 * Q_HEADS * DIM, 5);
  fill(k, 3 * HEADS * DIM, 6);
  fill(v, 3 * HEADS * VALUE_DIM, 7);
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) out[i] = 5.0f;
  EXPECT(TQ_OK, grow(cache, batch, s, 3, 1));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 1, NULL));
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &two, &one, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "layer = 1: sequence ",
          tq_cache_attend(cache, 1, batch, q, out, NULL, NULL, NULL, 0, NULL));
  CHECK(strstr(tq_last_error(), "holds 1 tokens there, the plan's queries see 3") != NULL);
  REFUSES(TQ_ERROR_INVALID_STATE, "first + count = 2: layer 1 of sequence ",
          tq_cache_read(cache, 1, s, 1, 1, k, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 1, s, 0, 1, k, NULL, NULL, NULL));
  /* The next plan does not make up for it. */
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &one, &one, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "layer = 0: sequence ", tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  CHECK(strstr(tq_last_error(), "come behind 3: an earlier plan was not appended; truncate it to 1") != NULL);
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 1, NULL));
  EXPECT(TQ_OK, grow(cache, batch, s, 2, 9));
  free(attend_last(cache, batch, s, 3, 4));
  EXPECT(TQ_OK, tq_sequence_free(cache, s, NULL));
  s = make_sequence(cache);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &three, &one, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "layer = 0: sequence ",
          tq_cache_attend(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "first + count = 3: layer 0 of sequence ",
          tq_cache_read(cache, 0, s, 0, 3, k, v, NULL, NULL));
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) CHECK(out[i] == 5.0f);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* history_only between plan and append sees the history and nothing else, with exact copies or without. */
void test_unwritten_history(void) {
  for (int kind = 0; kind < 4; kind++) {
    tq_cache_config config = small_config();
    config.allocator = &dirty;
    config.window_tokens = kind & 1 ? 16 : 0;
    config.rollback_tokens = kind & 1 ? 3 : 0;
    config.sink_tokens = kind & 2 ? 12 : 0;
    tq_cache* cache = make_cache(&config);
    tq_batch* batch = make_batch(cache);
    const tq_sequence s = make_sequence(cache);
    const int64_t three = 3;
    float q[3 * Q_HEADS * DIM], before[3 * Q_HEADS * VALUE_DIM], after[3 * Q_HEADS * VALUE_DIM],
        lse[3 * Q_HEADS], lse_after[3 * Q_HEADS];
    fill(q, 3 * Q_HEADS * DIM, 5);
    tq_attend_params p;
    EXPECT(TQ_OK, tq_attend_params_init(&p));
    p.history_only = 1;
    EXPECT(TQ_OK, grow(cache, batch, s, 8, 1));
    EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &three, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, before, lse, &p, NULL, 0, NULL));
    float *k = random_floats(3 * HEADS * DIM, 6), *v = random_floats(3 * HEADS * VALUE_DIM, 7);
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, after, lse_after, &p, NULL, 0, NULL));
    for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) CHECK(isfinite(before[i]));
    CHECK(memcmp(before, after, sizeof before) == 0 && memcmp(lse, lse_after, sizeof lse) == 0);
    free(k);
    free(v);
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
}

/* Appending again in one plan replaces its tokens, but never those that a fork made since then shares. A
 * truncate to the length that a sequence has changes nothing, its plan included. */
void test_appended_again(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  const int64_t three = 3;
  float *a = random_floats(3 * HEADS * DIM, 1), *b = random_floats(3 * HEADS * DIM, 2);
  float before[3 * HEADS * DIM], after[3 * HEADS * DIM];
  tq_sequence fork;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &three, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, a, a, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, b, b, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 3, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, a, a, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_fork(cache, s, NULL, &fork));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, fork, 0, 3, before, NULL, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "layer = 0: sequence ", tq_cache_append(cache, 0, batch, b, b, NULL, NULL));
  CHECK(strstr(tq_last_error(), "a fork shares their pages") != NULL);
  EXPECT(TQ_OK, tq_cache_read(cache, 0, fork, 0, 3, after, NULL, NULL, NULL));
  CHECK(memcmp(before, after, sizeof before) == 0);
  /* A layer that was not appended yet still is, and the fork does not see its tokens. */
  EXPECT(TQ_OK, tq_cache_append(cache, 1, batch, b, b, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "first + count = 3: layer 1",
          tq_cache_read(cache, 1, fork, 0, 3, after, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_free(cache, fork, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, b, b, NULL, NULL));
  free(a);
  free(b);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
