/* SPDX-License-Identifier: Apache-2.0
 *
 * The job of every consumer program here: 40 tokens of 2 kv heads into a CPU cache at 8 bits, one decode step
 * of 4 query heads, compared with exact attention in double. TQ_CALL(f) is how a tq_ function is reached:
 * linked, or through a table of pointers.
 *
 * Bound on the error: 8-bit codes of about normal data have a step of max/127, some 0.025 standard
 * deviations, so an error of 0.7 % of a vector's length; keys and values each contribute that much to the
 * output. 2 % is twice their sum in squares.
 */
#ifndef TQKV_SMOKE_JOB_H
#define TQKV_SMOKE_JOB_H

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <tqkv.h>

#ifndef TQ_CALL
#define TQ_CALL(f) f
#endif

enum { TOKENS = 40, KV_HEADS = 2, Q_HEADS = 4, DIM = 64 };

#define SMOKE_TRY(call)                                                                        \
  do {                                                                                         \
    tq_status status_ = (call);                                                                \
    if (status_ != TQ_OK) {                                                                    \
      fprintf(stderr, "%s: %s\n", TQ_CALL(tq_status_name)(status_), TQ_CALL(tq_last_error)()); \
      return 1;                                                                                \
    }                                                                                          \
  } while (0)

/* About normal, the same on every machine: a sum of 12 uniforms of a linear congruential generator. */
static float smoke_normal(uint32_t* state) {
  float sum = -6.0f;
  int i;
  for (i = 0; i < 12; i++) {
    *state = *state * 1664525u + 1013904223u;
    sum += (float)(*state >> 8) / 16777216.0f;
  }
  return sum;
}

/* Squared error and squared length of one head's output against exact attention. */
static void smoke_compare(const float* q, const float* k, const float* v, int head, const float* out,
                          double* error, double* length) {
  const int kv = head / (Q_HEADS / KV_HEADS);
  double weight[TOKENS], sum = 0;
  int t, i;
  for (t = 0; t < TOKENS; t++) {
    double dot = 0;
    for (i = 0; i < DIM; i++) dot += (double)q[head * DIM + i] * (double)k[(t * KV_HEADS + kv) * DIM + i];
    weight[t] = exp(dot / sqrt((double)DIM));
    sum += weight[t];
  }
  for (i = 0; i < DIM; i++) {
    double exact = 0, miss;
    for (t = 0; t < TOKENS; t++) exact += weight[t] / sum * (double)v[(t * KV_HEADS + kv) * DIM + i];
    miss = (double)out[head * DIM + i] - exact;
    *error += miss * miss;
    *length += exact * exact;
  }
}

static int smoke_job(void) {
  static float k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM], q[Q_HEADS * DIM], out[Q_HEADS * DIM];
  uint32_t state = 1;
  int64_t new_tokens = TOKENS, query_tokens = 1;
  double error = 0, length = 0;
  tq_cache_config config;
  tq_cache* cache = NULL;
  tq_batch* batch = NULL;
  tq_sequence sequence = 0;
  int i;
  for (i = 0; i < TOKENS * KV_HEADS * DIM; i++) k[i] = smoke_normal(&state), v[i] = smoke_normal(&state);
  for (i = 0; i < Q_HEADS * DIM; i++) q[i] = smoke_normal(&state);

  SMOKE_TRY(TQ_CALL(tq_cache_config_init)(&config));
  config.num_layers = 1;
  config.num_q_heads = Q_HEADS;
  config.num_kv_heads = KV_HEADS;
  config.head_dim = DIM;
  config.io_dtype = TQ_F32;
  config.key_bits = 8;
  config.value_bits = 8;
  config.max_tokens = TOKENS;
  SMOKE_TRY(TQ_CALL(tq_cache_create)(&config, NULL, &cache));
  SMOKE_TRY(TQ_CALL(tq_sequence_create)(cache, &sequence));
  SMOKE_TRY(TQ_CALL(tq_batch_create)(cache, &batch));
  SMOKE_TRY(TQ_CALL(tq_batch_plan)(batch, 1, &sequence, &new_tokens, &query_tokens, NULL));
  SMOKE_TRY(TQ_CALL(tq_cache_append)(cache, 0, batch, k, v, NULL, NULL));
  SMOKE_TRY(TQ_CALL(tq_cache_attend)(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL));
  SMOKE_TRY(TQ_CALL(tq_batch_destroy)(batch));
  SMOKE_TRY(TQ_CALL(tq_cache_destroy)(cache));

  for (i = 0; i < Q_HEADS; i++) smoke_compare(q, k, v, i, out, &error, &length);
  printf("tqkv %s, ABI %d: relative error of the output %.4f\n", TQ_CALL(tq_version)(),
         (int)TQ_CALL(tq_abi_version)(), sqrt(error / length));
  return sqrt(error / length) <= 0.02 && TQ_CALL(tq_abi_version)() == TQ_ABI_VERSION ? 0 : 1;
}

#endif
