/* SPDX-License-Identifier: Apache-2.0
 *
 * Pages that an engine owns: the loop of an engine with block tables, slots, padding and a shared prefix
 * beside a cache that does the same by sequences, equal to the bit; what is refused.
 */
#include "capi.h"

#define BLOCK 64
#define BLOCKS 12
#define TABLE 4
#define MAX_REQS 4
#define MAX_TOKENS 128

/* An engine: blocks of each layer, a table for each request, the arrays of one step. */
typedef struct engine {
  tq_codec* codec;
  tq_pages pages[LAYERS];
  int32_t tables[MAX_REQS][TABLE], lens[MAX_REQS], starts[MAX_REQS + 1];
  int64_t slots[MAX_TOKENS];
  int32_t next_block;
  void* workspace;
  size_t workspace_bytes;
} engine;

static tq_cache_config codec_config(void) {
  tq_cache_config config = small_config();
  config.page_size = BLOCK;
  config.max_tokens = 0;
  config.max_sequences = 0;
  return config;
}

static tq_paged_step empty_step(void) {
  tq_paged_step step;
  memset(&step, 0, sizeof step);
  step.struct_size = sizeof step;
  step.num_reqs = MAX_REQS;
  step.num_tokens = MAX_TOKENS;
  step.max_query_len = MAX_TOKENS;
  step.max_seq_len = TABLE * BLOCK;
  return step;
}

static void start_engine(engine* e, tq_page_order order) {
  const tq_cache_config config = codec_config();
  const tq_paged_step largest = empty_step();
  memset(e, 0, sizeof *e);
  EXPECT(TQ_OK, tq_codec_create(&config, NULL, &e->codec));
  for (int32_t layer = 0; layer < LAYERS; layer++) {
    tq_page_layout layout;
    tq_pages* pages = &e->pages[layer];
    layout.struct_size = sizeof layout;
    EXPECT(TQ_OK, tq_codec_page_layout(e->codec, layer, 0, BLOCKS, order, &layout));
    CHECK(layout.block_bytes == layout.token_bytes * BLOCK);
    CHECK(layout.token_bytes == (int64_t)HEADS * (DIM + VALUE_DIM + 4));
    CHECK(layout.total_bytes == BLOCKS * layout.block_bytes);
    pages->struct_size = sizeof *pages;
    pages->base = aligned(64, (size_t)layout.total_bytes);
    pages->num_blocks = BLOCKS;
    pages->block_stride = layout.block_stride;
    pages->head_stride = layout.head_stride;
    memset(pages->base, 0xFF, (size_t)layout.total_bytes);
  }
  EXPECT(TQ_OK, tq_paged_workspace_bytes(e->codec, &largest, &e->workspace_bytes));
  e->workspace = aligned(256, e->workspace_bytes);
  e->next_block = 1; /* block 0 is for padding */
}

static void stop_engine(engine* e) {
  for (int32_t layer = 0; layer < LAYERS; layer++) free(e->pages[layer].base);
  free(e->workspace);
  EXPECT(TQ_OK, tq_codec_destroy(e->codec));
}

/* Request r gets new_tokens[r] more tokens, which ask as many queries; behind them a request of padding and
 * rows of padding up to num_tokens. */
static tq_paged_step plan_engine(engine* e, int32_t num_reqs, const int64_t* new_tokens, int64_t num_tokens) {
  tq_paged_step step = empty_step();
  int32_t row = 0;
  for (int32_t r = 0; r < num_reqs; r++)
    for (int64_t i = 0; i < new_tokens[r]; i++, row++) {
      const int32_t token = e->lens[r]++;
      e->starts[r] = row - (int32_t)i;
      if (token % BLOCK == 0 && e->tables[r][token / BLOCK] == 0)
        e->tables[r][token / BLOCK] = e->next_block++;
      e->slots[row] = (int64_t)e->tables[r][token / BLOCK] * BLOCK + token % BLOCK;
    }
  for (int32_t r = num_reqs; r <= MAX_REQS; r++) e->starts[r] = row;
  for (int64_t i = row; i < num_tokens; i++) e->slots[i] = -1;
  step.num_reqs = num_reqs + 1;
  e->lens[num_reqs] = 0;
  step.num_tokens = num_tokens;
  step.slot_mapping = e->slots;
  step.block_table = e->tables[0];
  step.block_table_stride = TABLE;
  step.seq_lens = e->lens;
  step.query_start_loc = e->starts;
  EXPECT(TQ_OK, tq_paged_plan(e->codec, &step, e->workspace, e->workspace_bytes, NULL));
  return step;
}

static void equal_fingerprints(const tq_codec* codec, const tq_cache* cache) {
  uint64_t a = 1, b = 2;
  EXPECT(TQ_OK, tq_codec_fingerprint(codec, &a));
  EXPECT(TQ_OK, tq_cache_fingerprint(cache, &b));
  CHECK(a == b);
}

/* Steps of an engine: two prompts, one of which begins as the other does, then tokens of both. */
static void engine_steps(tq_page_order order) {
  static const int64_t steps[][2] = {{70, 0}, {1, 30}, {1, 1}, {40, 1}};
  tq_cache_config config = small_config();
  config.page_size = BLOCK;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  tq_sequence sequences[2] = {make_sequence(cache), 0};
  float *q = random_floats(MAX_TOKENS * Q_HEADS * DIM, 1), *k = random_floats(MAX_TOKENS * HEADS * DIM, 2),
        *v = random_floats(MAX_TOKENS * HEADS * VALUE_DIM, 3);
  float *out = random_floats(MAX_TOKENS * Q_HEADS * VALUE_DIM, 4),
        *lse = random_floats(MAX_TOKENS * Q_HEADS, 5),
        *cache_out = random_floats(MAX_TOKENS * Q_HEADS * VALUE_DIM, 6),
        *cache_lse = random_floats(MAX_TOKENS * Q_HEADS, 7);
  engine e;
  start_engine(&e, order);
  equal_fingerprints(e.codec, cache);
  for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
    const int64_t tokens = steps[s][0] + steps[s][1], padded = tokens + 5;
    if (s == 1) { /* the first block of the first request is the second's too */
      EXPECT(TQ_OK, tq_sequence_fork(cache, sequences[0], NULL, &sequences[1]));
      EXPECT(TQ_OK, tq_sequence_truncate(cache, sequences[1], BLOCK, NULL));
      e.tables[1][0] = e.tables[0][0];
      e.lens[1] = BLOCK;
    }
    const int32_t reqs = s == 0 ? 1 : 2;
    const tq_paged_step step = plan_engine(&e, reqs, steps[s], padded);
    EXPECT(TQ_OK, tq_batch_plan(batch, reqs, sequences, steps[s], NULL, NULL));
    for (int32_t layer = 0; layer < LAYERS; layer++) {
      EXPECT(TQ_OK, tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
      EXPECT(TQ_OK, tq_cache_attend(cache, layer, batch, q, cache_out, cache_lse, NULL, NULL, 0, NULL));
      EXPECT(TQ_OK, tq_paged_append(e.codec, layer, &e.pages[layer], &step, k, v, NULL, e.workspace,
                                    e.workspace_bytes, NULL));
      EXPECT(TQ_OK, tq_paged_attend(e.codec, layer, &e.pages[layer], &step, q, out, lse, NULL, e.workspace,
                                    e.workspace_bytes, NULL));
      CHECK(memcmp(out, cache_out, sizeof(float) * (size_t)tokens * Q_HEADS * VALUE_DIM) == 0);
      CHECK(memcmp(lse, cache_lse, sizeof(float) * (size_t)tokens * Q_HEADS) == 0);
      for (int64_t i = tokens * Q_HEADS; i < padded * Q_HEADS; i++)
        CHECK(lse[i] == -INFINITY && out[i * VALUE_DIM] == 0 && out[(i + 1) * VALUE_DIM - 1] == 0);
    }
    fill(k, MAX_TOKENS * HEADS * DIM, 10 + (unsigned)s);
  }
  /* A copied block reads as the one that it was copied from, and as the cache's tokens. */
  const int64_t pairs[] = {e.tables[1][0], BLOCKS - 1, -1, 0};
  for (int32_t layer = 0; layer < LAYERS; layer++)
    EXPECT(TQ_OK, tq_paged_copy(e.codec, layer, &e.pages[layer], &e.pages[layer], pairs, 2, NULL));
  const int64_t slots[] = {(int64_t)e.tables[0][0] * BLOCK + 3, (int64_t)(BLOCKS - 1) * BLOCK + 3, -1};
  EXPECT(TQ_OK, tq_paged_read(e.codec, 1, &e.pages[1], slots, 3, k, v, NULL, NULL));
  CHECK(memcmp(k, k + HEADS * DIM, sizeof(float) * HEADS * DIM) == 0);
  CHECK(memcmp(v, v + HEADS * VALUE_DIM, sizeof(float) * HEADS * VALUE_DIM) == 0);
  CHECK(k[2 * HEADS * DIM] == 0 && v[3 * HEADS * VALUE_DIM - 1] == 0);
  EXPECT(TQ_OK, tq_cache_read(cache, 1, sequences[1], 3, 1, q, out, NULL, NULL));
  CHECK(memcmp(k, q, sizeof(float) * HEADS * DIM) == 0);
  CHECK(memcmp(v, out, sizeof(float) * HEADS * VALUE_DIM) == 0);
  stop_engine(&e);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  float* all[] = {q, k, v, out, lse, cache_out, cache_lse};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

void test_paged_steps(void) {
  engine_steps(TQ_PAGES_BLOCKS_FIRST);
  engine_steps(TQ_PAGES_HEADS_FIRST);
}

/* ---- what is refused ---- */

void test_misuse_codec(void) {
  tq_codec* codec = NULL;
  tq_cache_config config = codec_config();
  tq_page_layout layout;
  uint64_t flags = 1;
  float* centre = random_floats(HEADS * DIM, 1);
  layout.struct_size = sizeof layout;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "codec = NULL", tq_codec_create(&config, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "config = NULL", tq_codec_create(NULL, NULL, &codec));
  config.max_tokens = 4096;
  config.key_bits = 7;
  REFUSES(
      TQ_ERROR_INVALID_ARGUMENT,
      "max_tokens = 4096: must be 0, a codec has neither pages nor sequences\nkey_bits = 7: must be one of",
      tq_codec_create(&config, NULL, &codec));
  config = codec_config();
  config.window_tokens = 128;
  REFUSES(TQ_ERROR_NOT_SUPPORTED, "window_tokens = 128: pages of the caller's have no room for exact copies",
          tq_codec_create(&config, NULL, &codec));
  config = codec_config();
  config.device_type = TQ_DEVICE_CUDA;
  REFUSES(TQ_ERROR_NOT_SUPPORTED, "device_type = 2 (CUDA): this build has no CUDA support",
          tq_codec_create(&config, NULL, &codec));
  CHECK(codec == NULL);
  config = codec_config();
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "stream = ", tq_codec_create(&config, &config, &codec));
  EXPECT(TQ_OK, tq_codec_create(&config, NULL, &codec));
  EXPECT(TQ_OK, tq_codec_get_config(codec, &config));
  CHECK(config.max_tokens == 0 && config.max_batch_tokens == 0 && config.max_sequences == 0);
  CHECK(config.page_size == BLOCK && config.num_threads == 1 && config.layers != NULL);

  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "layer = 2: must be 0 .. 1",
          tq_codec_page_layout(codec, 2, 0, 1, TQ_PAGES_BLOCKS_FIRST, &layout));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "block_size = 48: must be 0 (page_size) or a multiple of 32",
          tq_codec_page_layout(codec, 0, 48, 1, TQ_PAGES_BLOCKS_FIRST, &layout));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "num_blocks = -1", tq_codec_page_layout(codec, 0, 0, -1, 1, &layout));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "order = 3", tq_codec_page_layout(codec, 0, 0, 1, 3, &layout));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "layer = -1", tq_codec_set_centres(codec, -1, centre, NULL));
  centre[DIM + 5] = NAN;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "key_centre[1][5] = nan", tq_codec_set_centres(codec, 0, centre, NULL));
  centre[DIM + 5] = 0;
  EXPECT(TQ_OK, tq_codec_set_centres(codec, 0, centre, NULL));
  EXPECT(TQ_OK, tq_codec_check(codec, NULL, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_codec_destroy(codec));
  EXPECT(TQ_OK, tq_codec_destroy(NULL));
  free(centre);
}

/* One field of a step or of pages set to a wrong value for one call. */
#define WITH(field, value, check)          \
  do {                                     \
    unsigned char kept[sizeof(field)];     \
    memcpy(kept, &(field), sizeof(field)); \
    field = value;                         \
    check;                                 \
    memcpy(&(field), kept, sizeof(field)); \
  } while (0)

void test_misuse_paged(void) {
  float *q = random_floats(MAX_TOKENS * Q_HEADS * DIM, 1), *k = random_floats(MAX_TOKENS * HEADS * DIM, 2),
        *out = random_floats(MAX_TOKENS * Q_HEADS * VALUE_DIM, 4);
  engine e;
  start_engine(&e, TQ_PAGES_BLOCKS_FIRST);
  void* const w = e.workspace;
  const size_t bytes = e.workspace_bytes;
  tq_pages* const p = &e.pages[0];
  tq_paged_step step = plan_engine(&e, 2, (const int64_t[]){70, 3}, 80);
#define PLAN tq_paged_plan(e.codec, &step, w, bytes, NULL)
#define APPEND tq_paged_append(e.codec, 0, p, &step, k, k, NULL, w, bytes, NULL)
#define ATTEND tq_paged_attend(e.codec, 0, p, &step, q, out, NULL, NULL, w, bytes, NULL)
#define BAD(text, call) REFUSES(TQ_ERROR_INVALID_ARGUMENT, text, call)
  /* what the host says */
  BAD("step = NULL", tq_paged_plan(e.codec, NULL, w, bytes, NULL));
  BAD("workspace = NULL", tq_paged_plan(e.codec, &step, NULL, bytes, NULL));
  BAD("workspace = ", tq_paged_plan(e.codec, &step, (char*)w + 64, bytes, NULL));
  REFUSES(TQ_ERROR_WORKSPACE_TOO_SMALL, "workspace_bytes = 256: tq_paged_workspace_bytes says ",
          tq_paged_plan(e.codec, &step, w, 256, NULL));
  WITH(step.num_reqs, -1, BAD("step.num_reqs = -1", PLAN));
  WITH(step.num_tokens, 1ll << 30, BAD("step.num_tokens = 1073741824", PLAN));
  WITH(step.seq_lens, NULL, BAD("step.seq_lens = ", PLAN));
  /* what the arrays say */
  WITH(e.lens[1], 257, BAD("step.seq_lens[1] = 257: must be 0 .. max_seq_len = 256", PLAN));
  WITH(e.lens[0], -1, BAD("step.seq_lens[0] = -1", PLAN));
  WITH(e.starts[0], 1, BAD("step.query_start_loc[0] = 1: must be 0", PLAN));
  WITH(e.starts[2], 60, BAD("step.query_start_loc[2] = 60 behind 70", PLAN));
  WITH(e.starts[3], 81, BAD("step.query_start_loc[3] = 81: num_tokens = 80", PLAN));
  WITH(step.max_query_len, 69, BAD("step.query_start_loc[1] = 70 behind 0: 70 queries", PLAN));
  WITH(e.slots[7], -2, BAD("step.slot_mapping[7] = -2", PLAN));
  /* the plan of this step, and none other */
  EXPECT(TQ_OK, PLAN);
  WITH(step.num_tokens, 79, REFUSES(TQ_ERROR_INVALID_STATE, "step: num_reqs = 3, num_tokens = 79", APPEND));
  memset(w, 0, bytes);
  REFUSES(TQ_ERROR_INVALID_STATE, "workspace = ", ATTEND);
  EXPECT(TQ_OK, PLAN);
  WITH(p->base, (char*)p->base + 16, BAD("pages.base = ", APPEND));
  WITH(p->num_blocks, 1, BAD("step.slot_mapping[0] = 64: must be -1 or a slot of 1 blocks of 64", APPEND));
  WITH(p->num_blocks, 2, BAD("step.block_table[0][1] = 2: must be 0 .. 1", ATTEND));
  WITH(p->block_stride, p->block_stride - 64, BAD("pages.block_stride = ", APPEND));
  WITH(p->block_size, 33, BAD("pages.block_size = 33", APPEND));
  WITH(p->struct_size, 0, BAD("pages.struct_size = 0", APPEND));
  WITH(step.block_table_stride, 1,
       BAD("step.block_table_stride = 1: max_seq_len = 256 needs 4 blocks of 64 tokens", ATTEND));
  WITH(step.block_table, NULL, BAD("step.block_table = NULL", ATTEND));
  BAD("layer = 5", tq_paged_append(e.codec, 5, p, &step, k, k, NULL, w, bytes, NULL));
  BAD("v = NULL", tq_paged_append(e.codec, 0, p, &step, k, NULL, NULL, w, bytes, NULL));
  BAD("q = NULL", tq_paged_attend(e.codec, 0, p, &step, NULL, out, NULL, NULL, w, bytes, NULL));
  {
    static const uint64_t tree[2 * MAX_TOKENS];
    tq_attend_params params;
    EXPECT(TQ_OK, tq_attend_params_init(&params));
    params.tree_mask = tree;
    BAD("step.max_query_len = 128: a tree_mask of 64 bits",
        tq_paged_attend(e.codec, 0, p, &step, q, out, NULL, &params, w, bytes, NULL));
  }
  /* Nothing of all that has changed a byte. */
  for (int64_t i = 0; i < BLOCKS * p->block_stride; i++) CHECK(((uint8_t*)p->base)[i] == 0xFF);
  const int64_t slots[] = {BLOCKS * BLOCK}, pairs[] = {0, BLOCKS};
  BAD("slots[0] = 768: must be -1 or a slot of 12 blocks",
      tq_paged_read(e.codec, 0, p, slots, 1, k, NULL, NULL, NULL));
  BAD("pairs[0][1] = 12: must be -1 .. 11", tq_paged_copy(e.codec, 0, p, p, pairs, 1, NULL));
  tq_pages halves = *p;
  halves.block_size = BLOCK / 2;
  BAD("source.block_size = 64, target.block_size = 32",
      tq_paged_copy(e.codec, 0, p, &halves, pairs, 1, NULL));
  EXPECT(TQ_OK, APPEND);
  EXPECT(TQ_OK, ATTEND);
  stop_engine(&e);
  free(q);
  free(k);
  free(out);
}
