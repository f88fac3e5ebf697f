/* SPDX-License-Identifier: Apache-2.0
 *
 * The C API from C99: runs the topics, prints one "ok" or "not ok" line each and a summary. Options are
 * ignored; TQ_ERROR texts that a topic did not expect stand on lines that begin with #.
 */
#include "capi.h"

int capi_failures = 0;

void capi_expect(const char* file, int line, const char* call, tq_status status, tq_status expected,
                 const char* text) {
  const char* error = tq_last_error();
  if (status != expected) {
    capi_failures++;
    printf("# %s:%d: %s\n#   gave %s, expected %s%s%s\n", file, line, call, tq_status_name(status),
           tq_status_name(expected), status == TQ_OK ? "" : ": ", status == TQ_OK ? "" : error);
  } else if (text && strncmp(error, text, strlen(text)) != 0) {
    capi_failures++;
    printf("# %s:%d: %s\n#   text \"%s\"\n#   should begin with \"%s\"\n", file, line, call, error, text);
  }
}

tq_cache_config small_config(void) {
  tq_cache_config c;
  EXPECT(TQ_OK, tq_cache_config_init(&c));
  c.num_layers = LAYERS;
  c.num_q_heads = Q_HEADS;
  c.num_kv_heads = HEADS;
  c.head_dim = DIM;
  c.value_dim = VALUE_DIM;
  c.io_dtype = TQ_F32;
  c.key_bits = 8;
  c.value_bits = 8;
  c.page_size = 32;
  c.max_tokens = 256;
  c.max_sequences = 3;
  c.num_threads = 1;
  return c;
}

tq_cache* make_cache(const tq_cache_config* config) {
  tq_cache* cache = NULL;
  EXPECT(TQ_OK, tq_cache_create(config, NULL, &cache));
  if (!cache) {
    printf("# no cache: %s\nnot ok - cache creation\n", tq_last_error());
    exit(1);
  }
  return cache;
}

tq_batch* make_batch(tq_cache* cache) {
  tq_batch* batch = NULL;
  EXPECT(TQ_OK, tq_batch_create(cache, &batch));
  return batch;
}

tq_sequence make_sequence(tq_cache* cache) {
  tq_sequence sequence = 0;
  EXPECT(TQ_OK, tq_sequence_create(cache, &sequence));
  CHECK(sequence != 0);
  return sequence;
}

void fill(float* x, size_t count, unsigned seed) {
  unsigned state = seed * 2654435761u + 12345u;
  for (size_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(int)(state >> 8) / 8388608.0f - 1.0f;
  }
}

float* random_floats(size_t count, unsigned seed) {
  float* x = (float*)malloc((count ? count : 1) * sizeof *x);
  fill(x, count, seed);
  return x;
}

void* aligned(size_t alignment, size_t bytes) {
  void* pointer = NULL;
  if (posix_memalign(&pointer, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes) != 0) exit(1);
  return pointer;
}

tq_status grow(tq_cache* cache, tq_batch* batch, tq_sequence sequence, int64_t count, unsigned seed) {
  tq_status status = tq_batch_plan(batch, 1, &sequence, &count, NULL, NULL);
  if (status != TQ_OK) return status;
  for (int32_t layer = 0; layer < LAYERS && status == TQ_OK; layer++) {
    float* k = random_floats((size_t)count * HEADS * DIM, seed + 1000u * (unsigned)layer);
    float* v = random_floats((size_t)count * HEADS * VALUE_DIM, seed + 1000u * (unsigned)layer + 500u);
    status = tq_cache_append(cache, layer, batch, k, v, NULL, NULL);
    free(k);
    free(v);
  }
  return status;
}

float* attend_last(tq_cache* cache, tq_batch* batch, tq_sequence sequence, int64_t queries, unsigned seed) {
  const int64_t none = 0;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &none, &queries, NULL));
  float* q = random_floats((size_t)queries * Q_HEADS * DIM, seed);
  float* out = random_floats((size_t)queries * Q_HEADS * VALUE_DIM, 99);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL));
  free(q);
  return out;
}

int64_t length_of(tq_cache* cache, tq_sequence sequence) {
  int64_t length = -1;
  EXPECT(TQ_OK, tq_sequence_length(cache, sequence, &length));
  return length;
}

int main(void) {
  static const struct {
    const char* name;
    void (*run)(void);
  } topics[] = {
      {"lifecycle", test_lifecycle},
      {"introspection", test_introspection},
      {"attend against exact attention", test_attend_against_exact},
      {"attend options", test_attend_options},
      {"strides", test_strides},
      {"data types", test_dtypes},
      {"merge of partial results", test_merge},
      {"empty cases", test_empty_cases},
      {"non-finite input", test_nonfinite},
      {"saturated input", test_saturated},
      {"layers of different shape", test_layers},
      {"sliding layers: rows", test_sliding_layers},
      {"sliding layers: refusals", test_sliding_refusals},
      {"sliding layers: bytes", test_sliding_bytes},
      {"masks", test_masks},
      {"sequences: fork, truncate, free", test_sequences},
      {"rows of a batch", test_batch_rows},
      {"plan in force", test_plan_in_force},
      {"unwritten: tokens of before", test_unwritten_old_tokens},
      {"unwritten: history of a plan not appended", test_unwritten_history},
      {"appended again", test_appended_again},
      {"a forked process", test_fork},
      {"rows have bits of their own", test_rows},
      {"capacity is atomic", test_capacity_is_atomic},
      {"exact copies", test_exact_copies},
      {"room for exact copies", test_room_for_exact_copies},
      {"centres", test_centres},
      {"struct sizes", test_struct_sizes},
      {"misuse: configuration", test_misuse_config},
      {"misuse: cache", test_misuse_cache},
      {"misuse: sequences", test_misuse_sequences},
      {"misuse: batch", test_misuse_batch},
      {"misuse: append", test_misuse_append},
      {"misuse: extents", test_misuse_extents},
      {"misuse: attend", test_misuse_attend},
      {"misuse: read and merge", test_misuse_read_and_merge},
      {"CUDA requests without CUDA", test_cuda_requests},
      {"error texts", test_errors},
      {"allocator and pool", test_allocator_and_pool},
      {"pools that grow", test_reserve},
      {"an engine's steps", test_paged_steps},
      {"codec misuse", test_misuse_codec},
      {"paged misuse", test_misuse_paged},
      {"tokens removed", test_remove},
      {"tokens selected", test_select},
      {"state that travels, by parts", test_state_parts},
      {"state that travels, refused", test_state_refusals},
      {"tokens removed, sliding layers", test_sliding_remove},
      {"vectors on their own: families", test_quantizer_families},
      {"vectors on their own: rotation", test_quantizer_rotation},
      {"vectors on their own: calibration", test_quantizer_calibration},
      {"vectors on their own: inputs", test_quantizer_inputs},
      {"vectors on their own: memory", test_quantizer_memory},
      {"misuse: quantizer configuration", test_misuse_quantizer_config},
      {"misuse: quantizer", test_misuse_quantizer},
      {"pointers: tensors", test_pointers_of_tensors},
      {"pointers: merge", test_pointers_of_merge},
      {"pointers: codecs and pages", test_pointers_of_codecs},
      {"pointers: quantizers", test_pointers_of_quantizers},
      {"two caches on two threads", test_two_caches_on_two_threads},
  };
  const int count = (int)(sizeof topics / sizeof topics[0]);
  int failed = 0;
  for (int i = 0; i < count; i++) {
    const int before = capi_failures;
    topics[i].run();
    const int good = capi_failures == before;
    failed += !good;
    printf("%s - %s\n", good ? "ok" : "not ok", topics[i].name);
    fflush(stdout);
  }
  printf("[  PASSED  ] %d tests.\n", count - failed);
  if (failed) printf("[  FAILED  ] %d tests, listed below:\n", failed);
  return failed ? 1 : 0;
}
