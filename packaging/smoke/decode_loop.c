/* SPDX-License-Identifier: Apache-2.0
 *
 * "Replace your attention call": a decode loop on a tqkv cache. Plan the step once, then append and attend in
 * every layer; fork a sequence for a shared prompt; truncate it when a draft is rejected. The same program
 * stands in bindings/python, rust and go under examples/decode_loop, and all print the lines of
 * decode_loop.txt.
 *
 * In place of a model there is a generator of numbers, the same in every language: state = state * 1664525 +
 * 1013904223 modulo 2^32, starting from 5; the number is (((state >> 16) mod 2048) - 1024) / 1024, exact in
 * float32. A layer of a step takes k, then v, then q. A norm is the root of the sum of squares of all outputs
 * of the step, both layers, in double.
 *
 * Build: cc decode_loop.c $(pkg-config --cflags --libs tqkv) -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include "tqkv.h"

enum { kLayers = 2, kQueryHeads = 4, kKvHeads = 2, kDim = 64, kPrompt = 48, kMostTokens = 48 };

#define CHECK(call)                                                                     \
  do {                                                                                  \
    const tq_status status_ = (call);                                                   \
    if (status_ != TQ_OK) {                                                             \
      fprintf(stderr, "%s: %s: %s\n", #call, tq_status_name(status_), tq_last_error()); \
      return 1;                                                                         \
    }                                                                                   \
  } while (0)

static uint32_t state = 5;

static void fill(float* numbers, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    numbers[i] = (float)((int)((state >> 16) % 2048u) - 1024) / 1024.0f;
  }
}

/* One step of the model: num_sequences sequences get new_tokens[i] tokens each and ask query_tokens[i]
 * queries. */
static int step(tq_cache* cache, tq_batch* batch, int32_t num_sequences, const tq_sequence* sequences,
                const int64_t* new_tokens, const int64_t* query_tokens, double* norm) {
  static float k[kMostTokens * kKvHeads * kDim], v[kMostTokens * kKvHeads * kDim],
      q[kMostTokens * kQueryHeads * kDim];
  static float out[kMostTokens * kQueryHeads * kDim];
  int64_t rows = 0, queries = 0;
  for (int32_t i = 0; i < num_sequences; i++) {
    rows += new_tokens[i];
    queries += query_tokens[i];
  }
  CHECK(tq_batch_plan(batch, num_sequences, sequences, new_tokens, query_tokens, NULL));
  double sum = 0;
  for (int32_t layer = 0; layer < kLayers; layer++) {
    fill(k, rows * kKvHeads * kDim); /* here the model computes k, v and q, rotary embedding applied */
    fill(v, rows * kKvHeads * kDim);
    fill(q, queries * kQueryHeads * kDim);
    CHECK(tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
    CHECK(tq_cache_attend(cache, layer, batch, q, out, NULL, NULL, NULL, 0, NULL));
    for (int64_t i = 0; i < queries * kQueryHeads * kDim; i++) sum += (double)out[i] * (double)out[i];
  }
  *norm = sqrt(sum);
  return 0;
}

static int print_lengths(tq_cache* cache, const char* what, tq_sequence a, tq_sequence b, double norm) {
  int64_t length_a = 0, length_b = 0;
  CHECK(tq_sequence_length(cache, a, &length_a));
  CHECK(tq_sequence_length(cache, b, &length_b));
  printf("%s: lengths %d and %d, norm %.3f\n", what, (int)length_a, (int)length_b, norm);
  return 0;
}

int main(void) {
  tq_cache_config config;
  CHECK(tq_cache_config_init(&config));
  config.num_layers = kLayers;
  config.num_q_heads = kQueryHeads;
  config.num_kv_heads = kKvHeads;
  config.head_dim = kDim;
  config.io_dtype = TQ_F32;
  config.key_bits = 4;
  config.value_bits = 4;
  config.max_tokens = 8192;
  config.max_sequences = 2;
  config.max_batch_tokens = 48; /* the prompt's: a plan's queries need room for exact copies */
  config.window_tokens = 16;    /* the newest tokens are read exactly .. */
  config.rollback_tokens = 4;   /* .. also after a draft of up to 4 tokens was taken back */

  tq_cache* cache = NULL;
  tq_batch* batch = NULL;
  CHECK(tq_cache_create(&config, NULL, &cache));
  CHECK(tq_batch_create(cache, &batch));

  double norm = 0;
  const int64_t prompt = kPrompt, one_query = 1;
  tq_sequence a = 0, b = 0;
  CHECK(tq_sequence_create(cache, &a));
  if (step(cache, batch, 1, &a, &prompt, &one_query, &norm)) return 1;
  printf("prompt: %d tokens, norm %.3f\n", kPrompt, norm);

  CHECK(tq_sequence_fork(cache, a, NULL, &b)); /* a second answer to the same prompt: its pages are shared */
  tq_cache_memory memory = {0};
  memory.struct_size = sizeof memory;
  CHECK(tq_cache_get_memory(cache, &memory));
  printf("fork: %d sequences, %d tokens, %d page\n", (int)memory.num_sequences, (int)memory.tokens,
         (int)memory.pages_used);

  const tq_sequence both[2] = {a, b};
  const int64_t ones[2] = {1, 1};
  for (int i = 1; i <= 4; i++) {
    char name[16];
    snprintf(name, sizeof name, "step %d", i);
    if (step(cache, batch, 2, both, ones, ones, &norm)) return 1;
    if (print_lengths(cache, name, a, b, norm)) return 1;
  }

  const int64_t draft = 4; /* speculative decoding: four tokens at once, of which two turn out to be wrong */
  int64_t length = 0;
  if (step(cache, batch, 1, &a, &draft, &draft, &norm)) return 1;
  if (print_lengths(cache, "draft", a, b, norm)) return 1;
  CHECK(tq_sequence_length(cache, a, &length));
  CHECK(tq_sequence_truncate(cache, a, length - 2, NULL));
  if (step(cache, batch, 2, both, ones, ones, &norm)) return 1;
  if (print_lengths(cache, "two rejected", a, b, norm)) return 1;

  CHECK(tq_cache_get_memory(cache, &memory));
  printf("memory: %d tokens, %d pages, %.2f times smaller than float16\n", (int)memory.tokens,
         (int)memory.pages_used, memory.compression);
  CHECK(tq_batch_destroy(batch));
  CHECK(tq_cache_destroy(cache));
  return 0;
}
