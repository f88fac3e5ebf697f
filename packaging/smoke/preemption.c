/* SPDX-License-Identifier: Apache-2.0
 *
 * Preemption under load: four requests share a pool with room for about two. When a plan finds no room
 * (TQ_ERROR_CAPACITY, nothing has changed), the youngest running request goes to host memory as bytes and its
 * pages are free; when others have ended it comes back, codes as they were. So every answer has the bits that
 * it has when nothing else runs. Build: cc -std=c11 preemption.c $(pkg-config --cflags --libs tqkv)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tqkv.h>

enum { kHeads = 2, kDim = 64, kRow = kHeads * kDim, kRequests = 4, kTokens = 72, kPrompt = 32 };

#define CHECK(call)                                                                     \
  do {                                                                                  \
    const tq_status status_ = (call);                                                   \
    if (status_ != TQ_OK) {                                                             \
      fprintf(stderr, "%s: %s: %s\n", #call, tq_status_name(status_), tq_last_error()); \
      exit(1);                                                                          \
    }                                                                                   \
  } while (0)

typedef struct Request {
  tq_sequence sequence; /* 0: none of its tokens are in the cache */
  int64_t tokens;
  tq_state state; /* of the bytes in host memory */
  void* memory;
  float answer[kRow];
} Request;

static void numbers(float* out, int64_t count, uint32_t state) {
  for (int64_t i = 0; i < count; i++)
    out[i] = (float)((state = state * 1664525u + 1013904223u) >> 16) / 32768.0f - 1.0f;
}

static tq_cache* make_cache(int64_t max_tokens) {
  tq_cache_config config = {.struct_size = sizeof config};
  tq_cache* cache;
  config.num_layers = 1, config.num_q_heads = config.num_kv_heads = kHeads, config.head_dim = kDim;
  config.io_dtype = TQ_F32, config.key_bits = 4, config.value_bits = 3, config.page_size = 32;
  config.max_tokens = max_tokens, config.max_sequence_tokens = 96, config.max_sequences = 2;
  CHECK(tq_cache_create(&config, NULL, &cache));
  return cache;
}

/* The request's next tokens; TQ_ERROR_CAPACITY if the pool has no room. */
static tq_status run(tq_cache* cache, tq_batch* batch, int which, Request* r) {
  static float k[kPrompt * kRow], v[kPrompt * kRow], q[kRow];
  const int64_t rows = r->tokens == 0 ? kPrompt : 1, queries = 1;
  const tq_status status = tq_batch_plan(batch, 1, &r->sequence, &rows, &queries, NULL);
  if (status != TQ_OK) return status;
  const uint32_t seed = (uint32_t)(1000 * which + r->tokens); /* in place of a model */
  numbers(k, rows * kRow, seed), numbers(v, rows * kRow, seed + 1), numbers(q, kRow, seed + 2);
  CHECK(tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  CHECK(tq_cache_attend(cache, 0, batch, q, r->answer, NULL, NULL, NULL, 0, NULL));
  r->tokens += rows;
  return TQ_OK;
}

static void to_host(tq_cache* cache, Request* r) {
  r->state = (tq_state){.struct_size = sizeof r->state};
  CHECK(tq_sequence_describe(cache, r->sequence, &r->state));
  r->memory = aligned_alloc(16, (size_t)r->state.bytes + 16);
  CHECK(tq_sequence_export(cache, r->sequence, &r->state, r->memory, (size_t)r->state.bytes, NULL));
  CHECK(tq_sequence_free(cache, r->sequence, NULL));
  r->sequence = 0;
}

/* True if the request runs: it ran already, or there was room to bring it (back). */
static int from_host(tq_cache* cache, Request* r) {
  if (r->sequence) return 1;
  if (tq_sequence_create(cache, &r->sequence) != TQ_OK) return 0;
  if (!r->memory) return 1;
  if (tq_sequence_import(cache, r->sequence, &r->state, r->memory, (size_t)r->state.bytes, NULL) != TQ_OK) {
    CHECK(tq_sequence_free(cache, r->sequence, NULL));
    return r->sequence = 0, 0;
  }
  free(r->memory);
  return r->memory = NULL, 1;
}

/* All requests to their ends; how often one went to the host. */
static int serve(tq_cache* cache, Request* requests, int first, int count) {
  tq_batch* batch;
  int preempted = 0;
  CHECK(tq_batch_create(cache, &batch));
  for (int unfinished = count; unfinished > 0;)
    for (int i = first; i < first + count; i++) {
      Request* r = &requests[i];
      if (r->tokens >= kTokens || !from_host(cache, r)) continue;
      while (run(cache, batch, i, r) == TQ_ERROR_CAPACITY) {
        int victim = first + count - 1;
        while (victim > first && (!requests[victim].sequence || victim == i)) victim--;
        if (!requests[victim].sequence) victim = i;
        to_host(cache, &requests[victim]);
        preempted++;
        if (victim == i) break;
      }
      if (r->tokens < kTokens) continue;
      CHECK(tq_sequence_free(cache, r->sequence, NULL));
      r->sequence = 0, unfinished--;
    }
  CHECK(tq_batch_destroy(batch));
  return preempted;
}

int main(void) {
  static Request crowded[kRequests], alone[kRequests];
  tq_cache *small = make_cache(96), *large = make_cache(4 * 96);
  int preempted = serve(small, crowded, 0, kRequests), same = 0;
  for (int i = 0; i < kRequests; i++) {
    serve(large, alone, i, 1);
    same += memcmp(crowded[i].answer, alone[i].answer, sizeof alone[i].answer) == 0;
  }
  printf("%d requests, preempted: %s, answers as alone: %d\n", kRequests, preempted > 0 ? "yes" : "no", same);
  CHECK(tq_cache_destroy(small));
  CHECK(tq_cache_destroy(large));
  return same == kRequests && preempted > 0 ? 0 : 1;
}
