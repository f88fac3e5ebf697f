/* SPDX-License-Identifier: Apache-2.0
 *
 * A row's bits are its own: 8 drafts verified in one plan of a fork are 8 single steps, whatever the window,
 * and with the switch for any number of rows.
 */
#include "capi.h"

#define DRAFTS 8

/* Attends the rows `first` .. of q, appended as tokens of k and v, and writes out and lse. */
static void step(tq_cache* cache, tq_batch* batch, tq_sequence sequence, int64_t first, int64_t count,
                 const float* const x[3], float* out, float* lse) {
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &count, NULL, NULL));
  for (int32_t layer = 0; layer < LAYERS; layer++)
    EXPECT(TQ_OK, tq_cache_append(cache, layer, batch, x[0] + first * HEADS * DIM,
                                  x[1] + first * HEADS * VALUE_DIM, NULL, NULL));
  EXPECT(TQ_OK,
         tq_cache_attend(cache, 1, batch, x[2] + first * Q_HEADS * DIM, out + first * Q_HEADS * VALUE_DIM,
                         lse + first * Q_HEADS, NULL, NULL, 0, NULL));
}

static void drafts(int32_t window, int32_t sinks, uint64_t flags) {
  tq_cache_config config = small_config();
  config.key_bits = config.value_bits = 2; /* codes and copies differ clearly */
  config.window_tokens = window;
  config.sink_tokens = sinks;
  config.flags = flags;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence steps = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, steps, 70, 3));
  tq_sequence fork = 0;
  EXPECT(TQ_OK, tq_sequence_fork(cache, steps, NULL, &fork));
  float* x[3] = {random_floats(DRAFTS * HEADS * DIM, 4), random_floats(DRAFTS * HEADS * VALUE_DIM, 5),
                 random_floats(DRAFTS * Q_HEADS * DIM, 6)};
  const float* const inputs[3] = {x[0], x[1], x[2]};
  float out[2][DRAFTS * Q_HEADS * VALUE_DIM], lse[2][DRAFTS * Q_HEADS];
  for (int64_t i = 0; i < DRAFTS; i++) step(cache, batch, steps, i, 1, inputs, out[0], lse[0]);
  step(cache, batch, fork, 0, DRAFTS, inputs, out[1], lse[1]);
  CHECK(memcmp(out[0], out[1], sizeof out[0]) == 0);
  CHECK(memcmp(lse[0], lse[1], sizeof lse[0]) == 0);
  tq_cache_config resolved;
  EXPECT(TQ_OK, tq_cache_config_init(&resolved));
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.flags == flags);
  for (int i = 0; i < 3; i++) free(x[i]);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_rows(void) {
  const int32_t windows[] = {0, 1, 5, 32};
  for (int i = 0; i < 4; i++) {
    drafts(windows[i], 0, 0);
    drafts(windows[i], 3, TQ_FLAG_BATCH_INVARIANT);
  }
}
