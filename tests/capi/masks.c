/* SPDX-License-Identifier: Apache-2.0
 *
 * Masks through the C API: what is refused, and what rows give that see the same through a mask and without:
 * the same bits. Against float64 they stand in the conformance, golden and contract tests.
 */
#include "capi.h"

#define BAD TQ_ERROR_INVALID_ARGUMENT
#define STATE TQ_ERROR_INVALID_STATE
#define MOST 160 /* queries */
#define ROW (Q_HEADS * VALUE_DIM)

static tq_attend_params params(void) {
  tq_attend_params p;
  EXPECT(TQ_OK, tq_attend_params_init(&p));
  return p;
}

struct call {
  tq_cache* cache;
  tq_batch* batch;
  float *q, *out, *lse;
};

#define MASK_FAULT(status, text, statement)                                                            \
  do {                                                                                                 \
    tq_attend_params p = params();                                                                     \
    statement;                                                                                         \
    REFUSES(status, text, tq_cache_attend(c.cache, 0, c.batch, c.q, c.out, c.lse, &p, NULL, 0, NULL)); \
  } while (0)

static void attend(struct call c, const tq_attend_params* p) {
  EXPECT(TQ_OK, tq_cache_attend(c.cache, 0, c.batch, c.q, c.out, c.lse, p, NULL, 0, NULL));
}

static void refused(struct call c, tq_sequence s) {
  int32_t begin[MOST] = {0}, end[MOST] = {0};
  uint64_t tree[2 * MOST] = {0};
  float slopes[Q_HEADS + 1] = {0};
  const int64_t none = 0, two = 2, three = 3, many = 129;
  for (int i = 0; i < 3 * ROW; i++) c.out[i] = 5.0f;
  EXPECT(TQ_OK, grow(c.cache, c.batch, s, 3, 1));
  MASK_FAULT(BAD, "params.visible_begin = 0x", p.visible_begin = begin);
  MASK_FAULT(BAD, "params.visible_begin = (nil), params.visible_end = 0x", p.visible_end = end);
  MASK_FAULT(BAD, "params.visible_begin = 0x",
             (p.visible_end = end, p.visible_begin = (const int32_t*)(const void*)((char*)begin + 2)));
  MASK_FAULT(BAD, "params.visible_end = 0x",
             (p.visible_begin = begin, p.visible_end = (const int32_t*)(const void*)((char*)end + 1)));
  MASK_FAULT(BAD, "params.sliding_window = 7: must be 0 with visible_begin",
             (p.visible_begin = begin, p.visible_end = end, p.sliding_window = 7));
  MASK_FAULT(BAD, "params.tree_words = 1: params.tree_mask = NULL", p.tree_words = 1);
  MASK_FAULT(BAD, "params.tree_words = 3", (p.tree_mask = tree, p.tree_words = 3));
  MASK_FAULT(BAD, "params.tree_words = -1", (p.tree_mask = tree, p.tree_words = -1));
  MASK_FAULT(BAD, "params.tree_mask = 0x", p.tree_mask = (const uint64_t*)(const void*)((char*)tree + 4));
  MASK_FAULT(BAD, "params.alibi_slopes = 0x",
             p.alibi_slopes = (const float*)(const void*)((char*)slopes + 2));
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &two, &three, NULL));
  EXPECT(TQ_OK, tq_cache_append(c.cache, 0, c.batch, c.q, c.q, NULL, NULL));
  MASK_FAULT(STATE, "params.tree_mask: 3 queries of sequence", p.tree_mask = tree);
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &many, &two, NULL));
  float* k = random_floats(129 * HEADS * DIM, 9);
  EXPECT(TQ_OK, tq_cache_append(c.cache, 0, c.batch, k, k, NULL, NULL));
  free(k);
  MASK_FAULT(STATE, "params.tree_words = 1: sequence ", p.tree_mask = tree);
  MASK_FAULT(STATE, "params.tree_words = 2: sequence ", (p.tree_mask = tree, p.tree_words = 2));
  /* Cross-attention: only without new tokens, and with ranges. */
  const int64_t more = 135, too_many = 137;
  REFUSES(BAD, "query_tokens[0] = 137: the sequence will have 136 tokens",
          tq_batch_plan(c.batch, 1, &s, &two, &too_many, NULL));
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &none, &more, NULL));
  MASK_FAULT(STATE, "batch: 135 queries of sequence", p.sliding_window = 2);
  MASK_FAULT(STATE, "batch: 135 queries of sequence", p.tree_mask = tree);
  for (int i = 0; i < 3 * ROW; i++) CHECK(c.out[i] == 5.0f);
  EXPECT(TQ_OK, tq_sequence_truncate(c.cache, s, 0, NULL));
}

/* One plan of many queries that all see all tokens: each is a single query of a fork, bit for bit. */
static void cross_attention(struct call c, tq_sequence s) {
  int32_t begin[MOST] = {0}, end[MOST];
  const int64_t none = 0, one = 1, queries = 150;
  float* alone = random_floats(ROW, 1);
  EXPECT(TQ_OK, grow(c.cache, c.batch, s, 140, 1));
  for (int i = 0; i < queries; i++) end[i] = 1 << 30;
  tq_attend_params p = params();
  p.visible_begin = begin;
  p.visible_end = end;
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &none, &queries, NULL));
  attend(c, &p);
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &none, &one, NULL));
  for (int64_t i = 0; i < queries; i += 37) {
    EXPECT(TQ_OK,
           tq_cache_attend(c.cache, 0, c.batch, c.q + i * Q_HEADS * DIM, alone, NULL, NULL, NULL, 0, NULL));
    CHECK(memcmp(alone, c.out + i * ROW, ROW * sizeof(float)) == 0);
  }
  free(alone);
  EXPECT(TQ_OK, tq_sequence_truncate(c.cache, s, 0, NULL));
}

/* A tree of two branches: each branch is what a sequence of its own gives. Empty masks see nothing. */
static void branches(struct call c, tq_sequence s) {
  uint64_t tree[4] = {1, 3, 4, 0}; /* drafts a, a b, c, and one that sees no draft */
  int32_t begin[4] = {0, 0, 0, 9}, end[4] = {99, 99, 99, 9};
  const int64_t four = 4;
  float *k = random_floats(4 * HEADS * DIM, 3), *v = random_floats(4 * HEADS * VALUE_DIM, 4);
  EXPECT(TQ_OK, grow(c.cache, c.batch, s, 40, 1));
  tq_sequence fork;
  EXPECT(TQ_OK, tq_sequence_fork(c.cache, s, NULL, &fork));
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &four, NULL, NULL));
  for (int32_t layer = 0; layer < LAYERS; layer++)
    EXPECT(TQ_OK, tq_cache_append(c.cache, layer, c.batch, k, v, NULL, NULL));
  tq_attend_params p = params();
  p.tree_mask = tree;
  attend(c, &p);
  float* both = random_floats(4 * ROW, 1);
  memcpy(both, c.out, 4 * ROW * sizeof(float));
  const int64_t two = 2;
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &fork, &two, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(c.cache, 0, c.batch, k, v, NULL, NULL));
  attend(c, NULL);
  CHECK(memcmp(both, c.out, 2 * ROW * sizeof(float)) == 0);
  EXPECT(TQ_OK, tq_sequence_free(c.cache, fork, NULL));
  /* With a range that says nothing more, the same; an empty one leaves nothing: 0, or the sink's logit. */
  const float sinks[Q_HEADS] = {1.5f, -2.0f, -INFINITY, INFINITY};
  EXPECT(TQ_OK, tq_sequence_truncate(c.cache, s, 40, NULL));
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &four, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(c.cache, 0, c.batch, k, v, NULL, NULL));
  p.visible_begin = begin;
  p.visible_end = end;
  attend(c, &p);
  CHECK(memcmp(both, c.out, 3 * ROW * sizeof(float)) == 0);
  for (int i = 0; i < ROW; i++) CHECK(c.out[3 * ROW + i] == 0.0f);
  p.sink_logits = sinks;
  attend(c, &p);
  for (int h = 0; h < Q_HEADS; h++) CHECK(c.lse[3 * Q_HEADS + h] == sinks[h]);
  for (int i = 0; i < 4 * ROW; i++) CHECK(isfinite(c.out[i]));
  free(both);
  free(k);
  free(v);
  EXPECT(TQ_OK, tq_sequence_truncate(c.cache, s, 0, NULL));
}

static void strange_numbers(struct call c, tq_sequence s) {
  const float slopes[Q_HEADS] = {3e38f, -3e38f, NAN, -0.5f};
  EXPECT(TQ_OK, grow(c.cache, c.batch, s, 100, 1));
  const int64_t none = 0, three = 3;
  EXPECT(TQ_OK, tq_batch_plan(c.batch, 1, &s, &none, &three, NULL));
  float* kept = random_floats(3 * Q_HEADS * DIM, 1);
  memcpy(kept, c.q, 3 * Q_HEADS * DIM * sizeof(float));
  c.q[(1 * Q_HEADS + 3) * DIM + 5] = NAN;
  tq_attend_params p = params();
  p.alibi_slopes = slopes;
  p.logit_softcap = 4;
  attend(c, &p);
  for (int row = 0; row < 3 * Q_HEADS; row++) {
    const int strange = row % Q_HEADS == 2 || row == Q_HEADS + 3;
    CHECK(strange == !!isnan(c.lse[row]));
    for (int i = 0; i < VALUE_DIM; i++) CHECK(strange == !isfinite(c.out[row * VALUE_DIM + i]));
  }
  memcpy(c.q, kept, 3 * Q_HEADS * DIM * sizeof(float));
  free(kept);
}

void test_masks(void) {
  tq_cache_config config = small_config();
  config.max_tokens = 512;
  config.max_sequence_tokens = 512;
  tq_cache* cache = make_cache(&config);
  struct call c = {cache, make_batch(cache), random_floats(MOST * Q_HEADS * DIM, 2),
                   random_floats(MOST * ROW, 1), random_floats(MOST * Q_HEADS, 1)};
  const tq_sequence s = make_sequence(cache);
  refused(c, s);
  cross_attention(c, s);
  branches(c, s);
  strange_numbers(c, s);
  free(c.q);
  free(c.out);
  free(c.lse);
  EXPECT(TQ_OK, tq_batch_destroy(c.batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
