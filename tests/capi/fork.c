/* SPDX-License-Identifier: Apache-2.0
 *
 * A process that fork() made: a cache of its parent works there in the one thread that it has, whatever the
 * number of the cache's own, and goes away at once. A child that hangs is ended by its alarm.
 */
#include "capi.h"

#include <sys/wait.h>
#include <unistd.h>

struct step {
  tq_cache* cache;
  tq_batch* batch;
  tq_sequence sequence;
};

/* In the child: the same bits as in the parent, further steps, and the end. */
static int child(const struct step* p, const float* expected, size_t count, int destroy) {
  const int before = capi_failures;
  float* again = attend_last(p->cache, p->batch, p->sequence, 9, 5);
  CHECK(memcmp(expected, again, count * sizeof *again) == 0);
  EXPECT(TQ_OK, grow(p->cache, p->batch, p->sequence, 40, 9));
  free(again);
  free(attend_last(p->cache, p->batch, p->sequence, 40, 6));
  if (!destroy) return capi_failures != before;
  EXPECT(TQ_OK, tq_batch_destroy(p->batch));
  EXPECT(TQ_OK, tq_cache_destroy(p->cache));
  /* A cache of the child's own. */
  const tq_cache_config config = small_config();
  EXPECT(TQ_OK, tq_cache_destroy(make_cache(&config)));
  return capi_failures != before;
}

void test_fork(void) {
  for (int threads = 1; threads <= 3; threads++)
    for (int destroy = 0; destroy < 2; destroy++) {
      tq_cache_config config = small_config();
      config.num_threads = threads;
      struct step p;
      p.cache = make_cache(&config);
      p.batch = make_batch(p.cache);
      p.sequence = make_sequence(p.cache);
      EXPECT(TQ_OK, grow(p.cache, p.batch, p.sequence, 100, 20));
      float* out = attend_last(p.cache, p.batch, p.sequence, 9, 5);
      fflush(stdout);
      const pid_t pid = fork();
      if (pid == 0) {
        alarm(20);
        const int failed = child(&p, out, 9 * Q_HEADS * VALUE_DIM, destroy);
        fflush(stdout);
        if (destroy) _exit(failed);
        exit(failed); /* with the cache alive */
      }
      int status = -1;
      CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
      /* The parent goes on, with its threads. */
      float* again = attend_last(p.cache, p.batch, p.sequence, 9, 5);
      CHECK(memcmp(out, again, 9 * Q_HEADS * VALUE_DIM * sizeof *out) == 0);
      free(out);
      free(again);
      EXPECT(TQ_OK, tq_batch_destroy(p.batch));
      EXPECT(TQ_OK, tq_cache_destroy(p.cache));
    }
}
