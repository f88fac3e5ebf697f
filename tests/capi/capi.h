/* SPDX-License-Identifier: Apache-2.0
 *
 * What the C programs' topics share: checks that count instead of stopping, a small configuration, data, a
 * step in one call.
 */
#pragma once
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200112L /* posix_memalign, pthreads */
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tqkv.h"

extern int capi_failures;

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      capi_failures++;                                                   \
      printf("# %s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                    \
  } while (0)

/* The call returns this status. */
#define EXPECT(expected, call) capi_expect(__FILE__, __LINE__, #call, (call), expected, NULL)
/* The call fails with this status, and the thread's error text begins with `text`: the argument's name,
 * mostly with its value. */
#define REFUSES(expected, text, call) capi_expect(__FILE__, __LINE__, #call, (call), expected, text)

void capi_expect(const char* file, int line, const char* call, tq_status status, tq_status expected,
                 const char* text);

/* 2 layers, 4 query heads, 2 kv heads, head_dim 64, value_dim 32, float32, 8 bits, pages of 32, 3 sequences
 * of up to 256 tokens in all. */
#define HEADS 2
#define Q_HEADS 4
#define DIM 64
#define VALUE_DIM 32
#define LAYERS 2
tq_cache_config small_config(void);
tq_cache* make_cache(const tq_cache_config* config);
tq_batch* make_batch(tq_cache* cache);
tq_sequence make_sequence(tq_cache* cache);

/* Deterministic values around -1 .. 1; never freed memory of its own: fill what is given. */
void fill(float* x, size_t count, unsigned seed);
float* random_floats(size_t count, unsigned seed); /* malloc */

/* Memory for free(). */
void* aligned(size_t alignment, size_t bytes);

/* Plans count more tokens for one sequence and appends them to all layers; token i of the call is the stream
 * of `seed` at row i. */
tq_status grow(tq_cache* cache, tq_batch* batch, tq_sequence sequence, int64_t count, unsigned seed);
/* Attention output of the last `queries` tokens on layer 0: [queries][Q_HEADS][VALUE_DIM], malloc. Plans the
 * batch anew. */
float* attend_last(tq_cache* cache, tq_batch* batch, tq_sequence sequence, int64_t queries, unsigned seed);
int64_t length_of(tq_cache* cache, tq_sequence sequence);

/* The topics. */
void test_lifecycle(void);
void test_introspection(void);
void test_attend_against_exact(void);
void test_attend_options(void);
void test_strides(void);
void test_dtypes(void);
void test_merge(void);
void test_empty_cases(void);
void test_nonfinite(void);
void test_saturated(void);
void test_sequences(void);
void test_layers(void);
void test_sliding_layers(void);
void test_sliding_remove(void);
void test_sliding_refusals(void);
void test_sliding_bytes(void);
void test_masks(void);
void test_batch_rows(void);
void test_plan_in_force(void);
void test_unwritten_old_tokens(void);
void test_unwritten_history(void);
void test_appended_again(void);
void test_fork(void);
void test_rows(void);
void test_capacity_is_atomic(void);
void test_exact_copies(void);
void test_room_for_exact_copies(void);
void test_centres(void);
void test_struct_sizes(void);
void test_misuse_config(void);
void test_misuse_cache(void);
void test_misuse_sequences(void);
void test_misuse_batch(void);
void test_misuse_append(void);
void test_misuse_extents(void);
void test_misuse_attend(void);
void test_misuse_read_and_merge(void);
void test_cuda_requests(void);
void test_errors(void);
void test_allocator_and_pool(void);
void test_reserve(void);
void test_remove(void);
void test_select(void);
void test_state_parts(void);
void test_state_refusals(void);
void test_paged_steps(void);
void test_misuse_codec(void);
void test_misuse_paged(void);
void test_quantizer_families(void);
void test_quantizer_rotation(void);
void test_quantizer_calibration(void);
void test_quantizer_inputs(void);
void test_quantizer_memory(void);
void test_misuse_quantizer_config(void);
void test_misuse_quantizer(void);
void test_pointers_of_tensors(void);
void test_pointers_of_merge(void);
void test_pointers_of_codecs(void);
void test_pointers_of_quantizers(void);
void test_two_caches_on_two_threads(void);
