/* SPDX-License-Identifier: Apache-2.0
 *
 * Two caches on two threads: each works alone, gives what it gives when nobody else runs, and has its own
 * error text.
 */
#include "capi.h"

#include <pthread.h>

struct job {
  unsigned seed;
  float out[5 * Q_HEADS * VALUE_DIM];
  char error[256];
  char first_error[256];
};

static void* work(void* argument) {
  struct job* job = (struct job*)argument;
  snprintf(job->first_error, sizeof job->first_error, "%s", tq_last_error());
  tq_cache_config config = small_config();
  config.window_tokens = 3;
  config.num_threads = 2;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  for (unsigned round = 0; round < 30; round++) {
    EXPECT(TQ_OK, tq_sequence_truncate(cache, s, 0, NULL));
    EXPECT(TQ_OK, grow(cache, batch, s, 40, job->seed));
    tq_sequence fork = 0;
    EXPECT(TQ_OK, tq_sequence_fork(cache, s, NULL, &fork));
    EXPECT(TQ_OK, grow(cache, batch, fork, 5, job->seed + 1));
    float* out = attend_last(cache, batch, fork, 5, job->seed + 2);
    memcpy(job->out, out, sizeof job->out);
    free(out);
    EXPECT(TQ_OK, tq_sequence_free(cache, fork, NULL));
  }
  tq_sequence_length(cache, (tq_sequence)job->seed, NULL);
  tq_sequence_free(cache, -(tq_sequence)job->seed, NULL);
  snprintf(job->error, sizeof job->error, "%s", tq_last_error());
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  return NULL;
}

void test_two_caches_on_two_threads(void) {
  static struct job alone[2], together[2];
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    alone[i].seed = together[i].seed = 1000u + 100u * (unsigned)i;
    work(&alone[i]);
  }
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, work, &together[i]) == 0);
  for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (int i = 0; i < 2; i++) {
    char expected[64];
    snprintf(expected, sizeof expected, "sequence = -%u", together[i].seed);
    CHECK(memcmp(alone[i].out, together[i].out, sizeof alone[i].out) == 0);
    CHECK(strncmp(together[i].error, expected, strlen(expected)) == 0);
    CHECK(together[i].first_error[0] == '\0');
  }
}
