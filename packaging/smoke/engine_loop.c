/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine's loop in the shape of llama.cpp's: a batch of tokens of several sequences in any order, a graph
 * on raw host pointers in which q, k and v are views of one fused buffer, and a server's calls on sequences:
 * copy a prompt (llama_memory_seq_cp), take tokens back (llama_memory_seq_rm), end. The cache wants a
 * sequence's rows one after the other, so the batch is ordered first. Four answers to one prompt are made
 * together, then each alone: the same, as a sequence's bits do not depend on what else is planned.
 * Build: cc engine_loop.c $(pkg-config --cflags --libs tqkv) */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "tqkv.h"

enum { kLayers = 2, kQueryHeads = 4, kKvHeads = 2, kDim = 64, kWidth = 256, kFused = 512 };
enum { kMostSequences = 4, kMostRows = 64, kPrompt = 40, kAnswer = 20 };

#define CHECK(call)                                                                     \
  do                                                                                    \
    if ((call) != TQ_OK) return fprintf(stderr, "%s: %s\n", #call, tq_last_error()), 1; \
  while (0)

/* Of a llama_batch. */
typedef struct token_row {
  int32_t token, sequence;
} token_row;

typedef struct engine {
  tq_cache* cache;
  tq_batch* batch;
  tq_sequence sequences[kMostSequences];
} engine;

/* In place of the projections of a token, and of what the layer before gave. */
static void project(float* fused, int32_t layer, int32_t token, const float* x) {
  uint32_t state = (uint32_t)(token * 31 + layer);
  for (int i = 0; i < kFused; i++) {
    state = state * 1664525u + 1013904223u;
    fused[i] = (float)((int)((state >> 16) % 2048u) - 1024) / 1024.0f + x[i % kWidth];
  }
}

/* Decodes rows of any sequences; next[i] is the token behind row i. */
static int decode(engine* e, const token_row* rows, int num_rows, int32_t* next) {
  static float fused[kMostRows][kFused], x[kMostRows][kWidth];
  int order[kMostRows], n = 0, num_sequences = 0;
  tq_sequence planned[kMostSequences];
  int64_t counts[kMostSequences] = {0};
  for (int s = 0; s < kMostSequences; s++) { /* rows by sequence, in their order */
    const int first = n;
    for (int i = 0; i < num_rows; i++)
      if (rows[i].sequence == s) order[n++] = i;
    if (n == first) continue;
    planned[num_sequences] = e->sequences[s];
    counts[num_sequences++] = n - first;
  }
  CHECK(tq_batch_plan(e->batch, num_sequences, planned, counts, NULL, NULL)); /* once a step */
  tq_tensor_layout views = {sizeof views, 0, kFused, kDim, kFused, kDim};
  tq_attend_params params;
  CHECK(tq_attend_params_init(&params));
  params.q_token_stride = kFused, params.q_head_stride = kDim;
  memset(x, 0, sizeof x);
  for (int32_t layer = 0; layer < kLayers; layer++) {
    for (int i = 0; i < num_rows; i++) project(fused[i], layer, rows[order[i]].token, x[i]);
    const float *q = fused[0], *k = q + kQueryHeads * kDim, *v = k + kKvHeads * kDim;
    CHECK(tq_cache_append(e->cache, layer, e->batch, k, v, &views, NULL));
    CHECK(tq_cache_attend(e->cache, layer, e->batch, q, x, NULL, &params, NULL, 0, NULL));
  }
  for (int i = 0; i < num_rows; i++) { /* in place of logits: the output's bits */
    memcpy(&next[order[i]], &x[i][0], sizeof *next);
    next[order[i]] = (next[order[i]] & 0x7fffffff) % 997;
  }
  return 0;
}

/* The prompt in sequence 0, copied to the others, and answers of kAnswer tokens to all, or to one alone. */
static int answer(engine* e, int alone, int32_t answers[kMostSequences][kAnswer]) {
  token_row rows[kMostRows];
  int32_t next[kMostRows];
  CHECK(tq_sequence_create(e->cache, &e->sequences[0]));
  for (int i = 0; i < kPrompt; i++) rows[i] = (token_row){i * i, 0};
  if (decode(e, rows, kPrompt, next)) return 1;
  for (int s = 1; s < kMostSequences; s++) /* llama_memory_seq_cp: the prompt's pages are shared */
    CHECK(tq_sequence_fork(e->cache, e->sequences[0], NULL, &e->sequences[s]));
  for (int s = 0; s < kMostSequences; s++) answers[s][0] = next[kPrompt - 1] + s;
  for (int step = 1; step < kAnswer; step++) {
    int n = 0;
    for (int s = kMostSequences; s-- > 0;) /* any order */
      if (alone < 0 || s == alone) rows[n++] = (token_row){answers[s][step - 1], s};
    const int drafts = alone < 0 && step % 5 == 0 ? 3 : 0; /* of sequence 3, all wrong */
    for (int i = 0; i < drafts; i++) rows[n++] = (token_row){1000 + i, 3};
    if (decode(e, rows, n, next)) return 1;
    for (int i = 0; i < n - drafts; i++) answers[rows[i].sequence][step] = next[i];
    if (drafts > 0) /* llama_memory_seq_rm */
      CHECK(tq_sequence_truncate(e->cache, e->sequences[3], kPrompt + step, NULL));
  }
  for (int s = 0; s < kMostSequences; s++) CHECK(tq_sequence_free(e->cache, e->sequences[s], NULL));
  return 0;
}

int main(void) {
  engine e = {0};
  static int32_t together[kMostSequences][kAnswer], alone[kMostSequences][kAnswer];
  tq_cache_config config;
  CHECK(tq_cache_config_init(&config));
  config.num_layers = kLayers, config.num_q_heads = kQueryHeads, config.num_kv_heads = kKvHeads;
  config.head_dim = kDim, config.io_dtype = TQ_F32, config.key_bits = 4, config.value_bits = 4;
  config.max_tokens = 1024, config.max_sequences = kMostSequences;
  CHECK(tq_cache_create(&config, NULL, &e.cache));
  CHECK(tq_batch_create(e.cache, &e.batch));
  if (answer(&e, -1, together)) return 1;
  int same = 0;
  for (int s = 0; s < kMostSequences; s++) {
    if (answer(&e, s, alone)) return 1;
    same += memcmp(together[s], alone[s], sizeof together[s]) == 0;
  }
  printf("%d answers of %d tokens to one prompt, as alone: %d\n", kMostSequences, kAnswer, same);
  return tq_batch_destroy(e.batch) || tq_cache_destroy(e.cache) || same != kMostSequences;
}
