/* SPDX-License-Identifier: Apache-2.0
 *
 * Every pointer of every call once NULL and once misaligned, with something to point to and with nothing:
 * refused by its name, or not looked at. Counts and strides at both sides of what they may be.
 */
#include "capi.h"

#define BAD(text, call) REFUSES(TQ_ERROR_INVALID_ARGUMENT, text, call)

/* One argument or field set to a wrong value for one call. */
#define WITH(field, value, check)          \
  do {                                     \
    unsigned char kept[sizeof(field)];     \
    memcpy(kept, &(field), sizeof(field)); \
    field = value;                         \
    check;                                 \
    memcpy(&(field), kept, sizeof(field)); \
  } while (0)

static float numbers[4096];
static char* const odd = (char*)numbers + 1; /* aligned to nothing */

void test_pointers_of_tensors(void) {
  tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  tq_sequence sequence = make_sequence(cache);
  const int64_t three = 3, none = 0;
  float *x = numbers, *o = numbers + 2048;
  tq_attend_params p;
  EXPECT(TQ_OK, tq_attend_params_init(&p));
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &three, NULL, NULL));
#define APPEND(k, v) tq_cache_append(cache, 0, batch, k, v, NULL, NULL)
#define ATTEND(q, out, lse) tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL)
  BAD("k = NULL", APPEND(NULL, x));
  BAD("v = NULL", APPEND(x, NULL));
  BAD("k = 0x", APPEND(odd, x));
  BAD("v = 0x", APPEND(x, odd));
  EXPECT(TQ_OK, APPEND(x, x));
  EXPECT(TQ_OK, tq_cache_append(cache, 1, batch, x, x, NULL, NULL));
  BAD("q = NULL", ATTEND(NULL, o, NULL));
  BAD("out = NULL", ATTEND(x, NULL, NULL));
  BAD("q = 0x", ATTEND(odd, o, NULL));
  BAD("out = 0x", ATTEND(x, odd, NULL));
  BAD("lse = 0x", ATTEND(x, o, (float*)odd));
  WITH(p.sink_logits, (const float*)odd, BAD("params.sink_logits = 0x", ATTEND(x, o, NULL)));
  WITH(p.alibi_slopes, (const float*)odd, BAD("params.alibi_slopes = 0x", ATTEND(x, o, NULL)));
  p.visible_begin = p.visible_end = (const int32_t*)numbers;
  WITH(p.visible_begin, (const int32_t*)odd, BAD("params.visible_begin = 0x", ATTEND(x, o, NULL)));
  WITH(p.visible_end, (const int32_t*)odd, BAD("params.visible_end = 0x", ATTEND(x, o, NULL)));
  p.visible_begin = p.visible_end = NULL;
  p.tree_words = 1;
  WITH(p.tree_mask, (const uint64_t*)odd, BAD("params.tree_mask = 0x", ATTEND(x, o, NULL)));
  p.tree_words = 0;
  EXPECT(TQ_OK, ATTEND(x, o, o + 1024));
  /* a half-precision result needs half the alignment */
  p.out_dtype = TQ_F16;
  EXPECT(TQ_OK, ATTEND(x, (char*)o + 2, NULL));
  BAD("out = 0x", ATTEND(x, (char*)o + 1, NULL));
  p.out_dtype = 0;
  /* no rows: nothing is looked at */
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &none, &none, NULL));
  EXPECT(TQ_OK, APPEND(NULL, NULL));
  EXPECT(TQ_OK, ATTEND(NULL, NULL, NULL));
  BAD("k = 0x", tq_cache_read(cache, 0, sequence, 0, 3, odd, o, NULL, NULL));
  BAD("v = 0x", tq_cache_read(cache, 0, sequence, 0, 3, o, odd, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, sequence, 0, 3, NULL, o, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, sequence, 0, 3, o, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, sequence, 3, 0, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
#undef APPEND
#undef ATTEND
}

void test_pointers_of_merge(void) {
  const void* outs[2] = {numbers, numbers + 64};
  const float* lses[2] = {numbers + 128, numbers + 160};
  float *o = numbers + 2048, *lse = numbers + 3072;
#define MERGE(states, rows, dim, type, out, lse) \
  tq_merge_states(states, outs, lses, rows, dim, type, out, lse, TQ_DEVICE_CPU, 0, NULL)
  EXPECT(TQ_OK, MERGE(2, 4, 8, TQ_F32, o, lse));
  EXPECT(TQ_OK, MERGE(2, 4, 8, TQ_F32, o, NULL));
  EXPECT(TQ_OK, MERGE(1, 1, 1, TQ_F32, o, lse));
  BAD("num_states = 0: must be 1 .. 1024", MERGE(0, 4, 8, TQ_F32, o, lse));
  BAD("num_states = 1025", MERGE(1025, 4, 8, TQ_F32, o, lse));
  BAD("dim = 0: must be 1 .. 65536", MERGE(2, 4, 0, TQ_F32, o, lse));
  BAD("dim = 65537", MERGE(2, 0, 65537, TQ_F32, o, lse));
  EXPECT(TQ_OK, MERGE(2, 0, 65536, TQ_F32, o, lse));
  BAD("rows = -1: must be 0 .. 2^48 / dim", MERGE(2, -1, 8, TQ_F32, o, lse));
  BAD("rows = 35184372088833", MERGE(2, (1ll << 45) + 1, 8, TQ_F32, o, lse));
  BAD("out = NULL", MERGE(2, 4, 8, TQ_F32, NULL, lse));
  BAD("out = 0x", MERGE(2, 4, 8, TQ_F32, odd, lse));
  BAD("lse = 0x", MERGE(2, 4, 8, TQ_F32, o, (float*)odd));
  WITH(outs[1], NULL, BAD("outs[1] = NULL", MERGE(2, 4, 8, TQ_F32, o, lse)));
  WITH(lses[1], NULL, BAD("lses[1] = NULL", MERGE(2, 4, 8, TQ_F32, o, lse)));
  WITH(outs[0], odd, BAD("outs[0] = 0x", MERGE(2, 4, 8, TQ_F32, o, lse)));
  WITH(lses[0], (const float*)odd, BAD("lses[0] = 0x", MERGE(2, 4, 8, TQ_F32, o, lse)));
  WITH(outs[0], odd + 1, EXPECT(TQ_OK, MERGE(2, 4, 8, TQ_BF16, o, lse)));
  WITH(outs[1], NULL, EXPECT(TQ_OK, MERGE(2, 0, 8, TQ_F32, NULL, NULL)));
  WITH(lses[0], NULL, EXPECT(TQ_OK, MERGE(2, 0, 8, TQ_F32, NULL, NULL)));
  BAD("outs = NULL", tq_merge_states(2, NULL, lses, 4, 8, TQ_F32, o, lse, TQ_DEVICE_CPU, 0, NULL));
  BAD("lses = NULL", tq_merge_states(2, outs, NULL, 4, 8, TQ_F32, o, lse, TQ_DEVICE_CPU, 0, NULL));
  BAD("stream = 0x", tq_merge_states(2, outs, lses, 4, 8, TQ_F32, o, lse, TQ_DEVICE_CPU, 0, o));
  REFUSES(TQ_ERROR_NO_DEVICE, "device_id = 1",
          tq_merge_states(2, outs, lses, 4, 8, TQ_F32, o, lse, TQ_DEVICE_CPU, 1, NULL));
  REFUSES(TQ_ERROR_NO_DEVICE, "device_id = -1",
          tq_merge_states(2, outs, lses, 4, 8, TQ_F32, o, lse, TQ_DEVICE_CPU, -1, NULL));
#undef MERGE
}

void test_pointers_of_codecs(void) {
  tq_cache_config config = small_config();
  tq_codec* codec = NULL;
  tq_page_layout layout, other;
  tq_pages pages;
  size_t bytes = 0;
  uint64_t u;
  tq_paged_step step;
  int64_t slot = 5;
  fill(numbers, 4096, 1);
  memset(&step, 0, sizeof step);
  memset(&pages, 0, sizeof pages);
  step.struct_size = sizeof step, layout.struct_size = other.struct_size = sizeof layout;
  pages.struct_size = sizeof pages;
  config.max_tokens = 0, config.max_sequences = 0;
  EXPECT(TQ_OK, tq_codec_create(&config, NULL, &codec));
  BAD("codec = NULL", tq_codec_get_config(NULL, &config));
  BAD("config = NULL", tq_codec_get_config(codec, NULL));
  BAD("codec = NULL", tq_codec_set_centres(NULL, 0, numbers, NULL));
  BAD("codec = NULL", tq_codec_fingerprint(NULL, &u));
  BAD("fingerprint = NULL", tq_codec_fingerprint(codec, NULL));
  /* the centres of one side alone, as a cache has them */
  tq_cache_config of_cache = small_config();
  tq_cache* cache = make_cache(&of_cache);
  for (int side = 0; side < 2; side++) {
    uint64_t before, after, caches;
    EXPECT(TQ_OK, tq_codec_fingerprint(codec, &before));
    EXPECT(TQ_OK, tq_codec_set_centres(codec, side, side ? NULL : numbers + 1, side ? numbers + 1 : NULL));
    EXPECT(TQ_OK, tq_cache_set_centres(cache, side, side ? NULL : numbers + 1, side ? numbers + 1 : NULL));
    EXPECT(TQ_OK, tq_codec_fingerprint(codec, &after));
    EXPECT(TQ_OK, tq_cache_fingerprint(cache, &caches));
    CHECK(before != after && after == caches);
  }
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  BAD("codec = NULL", tq_codec_check(NULL, NULL, &u));
  EXPECT(TQ_OK, tq_codec_check(codec, NULL, NULL));
  BAD("stream = 0x", tq_codec_check(codec, odd, &u));
  BAD("codec = NULL", tq_codec_page_layout(NULL, 0, 0, 1, TQ_PAGES_BLOCKS_FIRST, &layout));
  BAD("layout = NULL", tq_codec_page_layout(codec, 0, 0, 1, TQ_PAGES_BLOCKS_FIRST, NULL));
  BAD("order = 0", tq_codec_page_layout(codec, 0, 0, 1, 0, &layout));
  BAD("codec = NULL", tq_paged_workspace_bytes(NULL, &step, &bytes));
  BAD("step = NULL", tq_paged_workspace_bytes(codec, NULL, &bytes));
  BAD("bytes = NULL", tq_paged_workspace_bytes(codec, &step, NULL));
  BAD("codec = NULL", tq_paged_plan(NULL, &step, numbers, 64, NULL));
  BAD("codec = NULL", tq_paged_append(NULL, 0, &pages, &step, NULL, NULL, NULL, numbers, 64, NULL));
  BAD("codec = NULL", tq_paged_attend(NULL, 0, &pages, &step, NULL, NULL, NULL, NULL, numbers, 64, NULL));
  BAD("codec = NULL", tq_paged_read(NULL, 0, &pages, NULL, 0, NULL, NULL, NULL, NULL));
  BAD("codec = NULL", tq_paged_copy(NULL, 0, &pages, &pages, NULL, 0, NULL));
  BAD("pages = NULL", tq_paged_read(codec, 0, NULL, NULL, 0, NULL, NULL, NULL, NULL));
  BAD("source = NULL", tq_paged_copy(codec, 0, NULL, &pages, NULL, 0, NULL));
  BAD("target = NULL", tq_paged_copy(codec, 0, &pages, NULL, NULL, 0, NULL));
  WITH(step.max_query_len, -1,
       BAD("step.max_query_len = -1", tq_paged_workspace_bytes(codec, &step, &bytes)));
  WITH(step.max_seq_len, -1, BAD("step.max_seq_len = -1", tq_paged_workspace_bytes(codec, &step, &bytes)));
  WITH(step.num_tokens, -1, BAD("step.num_tokens = -1", tq_paged_workspace_bytes(codec, &step, &bytes)));
  EXPECT(TQ_OK, tq_paged_workspace_bytes(codec, &step, &bytes));

  BAD("workspace = NULL", tq_paged_append(codec, 0, &pages, &step, NULL, NULL, NULL, NULL, 0, NULL));
  BAD("workspace = NULL", tq_paged_attend(codec, 0, &pages, &step, NULL, NULL, NULL, NULL, NULL, 0, NULL));
  {
    /* a step of nothing needs no table, however long sequences may be */
    step.max_seq_len = 640;
    EXPECT(TQ_OK, tq_paged_workspace_bytes(codec, &step, &bytes));
    void* workspace = aligned(256, bytes + 256);
    EXPECT(TQ_OK, tq_paged_plan(codec, &step, workspace, bytes, NULL));
    EXPECT(TQ_OK, tq_paged_append(codec, 0, &pages, &step, NULL, NULL, NULL, workspace, bytes, NULL));
    EXPECT(TQ_OK, tq_paged_attend(codec, 0, &pages, &step, NULL, NULL, NULL, NULL, workspace, bytes, NULL));
    WITH(step.block_table_stride, -1,
         BAD("step.block_table_stride = -1",
             tq_paged_attend(codec, 0, &pages, &step, NULL, NULL, NULL, NULL, workspace, bytes, NULL)));
    BAD("stream = 0x", tq_paged_plan(codec, &step, workspace, bytes, odd));
    BAD("stream = 0x", tq_paged_append(codec, 0, &pages, &step, NULL, NULL, NULL, workspace, bytes, odd));
    BAD("stream = 0x",
        tq_paged_attend(codec, 0, &pages, &step, NULL, NULL, NULL, NULL, workspace, bytes, odd));
    WITH(step.slot_mapping, (int64_t*)odd,
         BAD("step.slot_mapping = 0x", tq_paged_plan(codec, &step, workspace, bytes, NULL)));
    step.max_seq_len = 0;
    free(workspace);
  }
  EXPECT(TQ_OK, tq_codec_page_layout(codec, 0, 32, 0, TQ_PAGES_BLOCKS_FIRST, &layout));
  CHECK(layout.total_bytes == 0);
  BAD("block_size = -32", tq_codec_page_layout(codec, 0, -32, 1, TQ_PAGES_BLOCKS_FIRST, &layout));
  /* Both orders of the same blocks: HEADS of them, 8-bit keys of 64 and values of 32 coordinates. */
  EXPECT(TQ_OK, tq_codec_page_layout(codec, 0, 96, 7, TQ_PAGES_BLOCKS_FIRST, &layout));
  CHECK(layout.alignment == 16 || layout.alignment == 64);
  CHECK(layout.block_head_bytes == 96 * (DIM + VALUE_DIM + 4));
  CHECK(layout.block_bytes == HEADS * layout.block_head_bytes &&
        layout.total_bytes == 7 * layout.block_bytes);
  CHECK(layout.token_bytes * 96 == layout.block_bytes);
  CHECK(layout.block_stride == layout.block_bytes && layout.head_stride == layout.block_head_bytes);
  EXPECT(TQ_OK, tq_codec_page_layout(codec, 0, 96, 7, TQ_PAGES_HEADS_FIRST, &other));
  CHECK(other.block_stride == layout.block_head_bytes && other.head_stride == 7 * layout.block_head_bytes);
  CHECK(other.total_bytes == layout.total_bytes);

  /* Places of blocks and heads that do not overlap, and the nearest ones that do. */
  char* memory = (char*)aligned(64, (size_t)layout.total_bytes * 2);
  memset(memory, 0, (size_t)layout.total_bytes * 2);
  const int64_t one = layout.block_head_bytes, step_of = layout.alignment;
  pages.base = memory, pages.num_blocks = 2, pages.block_size = 96;
#define READ tq_paged_read(codec, 0, &pages, &slot, 1, numbers, numbers + 1024, NULL, NULL)
#define PLACED(blocks, block, head) \
  (pages.num_blocks = (blocks), pages.block_stride = (block), pages.head_stride = (head), READ)
  EXPECT(TQ_OK, PLACED(2, 0, 0));
  EXPECT(TQ_OK, PLACED(2, 2 * one, one));
  EXPECT(TQ_OK, PLACED(2, one, 2 * one));
  EXPECT(TQ_OK, PLACED(3, one, 3 * one));
  BAD("pages.block_stride = ", PLACED(2, 2 * one - step_of, one));
  BAD("pages.block_stride = ", PLACED(2, one, 2 * one - step_of));
  BAD("pages.block_stride = ", PLACED(3, one, 2 * one));
  BAD("pages.block_stride = ", PLACED(2, one - step_of, 2 * one));
  BAD("pages.block_stride = ", PLACED(2, 2 * one, one - step_of));
  EXPECT(TQ_OK, PLACED(1, 0, one)); /* of one block alone its stride does not matter */
  BAD("pages.block_stride = ", PLACED(1, 0, one - step_of));
  BAD("pages.block_stride = ", PLACED(2, -2 * one, one));
  BAD("pages.block_stride = ", PLACED(2, 2 * one, -one));
  BAD("pages.base = 0x", PLACED(2, 2 * one + 1, one));
  BAD("pages.base = 0x", PLACED(2, 2 * one, one + 1));
  BAD("pages.block_stride = ", PLACED(1 << 20, 1ll << 56, one));
  BAD("pages.num_blocks = 2147483648: must be 0 .. 2^31 - 1", PLACED(1ll << 31, 0, 0));
  BAD("pages.num_blocks = -1", PLACED(-1, 0, 0));
  EXPECT(TQ_OK, PLACED(INT32_MAX, 0, 0)); /* the slot is in the first of them */
  EXPECT(TQ_OK, PLACED(2, 0, 0));
  WITH(pages.base, NULL, BAD("pages.base = NULL: num_blocks = 2", READ));
  BAD("count = -1: must be 0 .. 2^30 - 1",
      tq_paged_read(codec, 0, &pages, &slot, -1, numbers, NULL, NULL, NULL));
  BAD("count = 1073741824", tq_paged_read(codec, 0, &pages, &slot, 1 << 30, numbers, NULL, NULL, NULL));
  BAD("slots = NULL", tq_paged_read(codec, 0, &pages, NULL, 1, numbers, NULL, NULL, NULL));
  BAD("slots = 0x", tq_paged_read(codec, 0, &pages, (int64_t*)odd, 1, numbers, NULL, NULL, NULL));
  BAD("k = 0x", tq_paged_read(codec, 0, &pages, &slot, 1, odd, NULL, NULL, NULL));
  BAD("v = 0x", tq_paged_read(codec, 0, &pages, &slot, 1, numbers, odd, NULL, NULL));
  BAD("stream = 0x", tq_paged_read(codec, 0, &pages, &slot, 1, numbers, NULL, NULL, odd));
  BAD("count = -1", tq_paged_copy(codec, 0, &pages, &pages, &slot, -1, NULL));
  BAD("count = 1073741824", tq_paged_copy(codec, 0, &pages, &pages, &slot, 1 << 30, NULL));
  BAD("pairs = NULL", tq_paged_copy(codec, 0, &pages, &pages, NULL, 1, NULL));
  BAD("pairs = 0x", tq_paged_copy(codec, 0, &pages, &pages, (int64_t*)odd, 1, NULL));
  BAD("stream = 0x", tq_paged_copy(codec, 0, &pages, &pages, NULL, 0, odd));
  EXPECT(TQ_OK, tq_paged_copy(codec, 0, &pages, &pages, NULL, 0, NULL));
  free(memory);
  EXPECT(TQ_OK, tq_codec_destroy(codec));
#undef READ
#undef PLACED
}

void test_pointers_of_quantizers(void) {
  tq_quantizer_config config;
  tq_quantizer* z = NULL;
  float *x = numbers, *y = numbers + 512, *o = numbers + 1024, factor;
  unsigned char codes[256];
  int64_t ids[8];
  memset(&config, 0, sizeof config);
  config.struct_size = sizeof config, config.dim = 32, config.family = TQ_CODE_PROD, config.bits = 3;
  fill(numbers, 4096, 1);
  EXPECT(TQ_OK, tq_quantizer_create(&config, &z));
  const int64_t most = (1ll << 40) + 1; /* above what any call takes */
#define EVERY(call_of, zero, text_null, text_odd) \
  do {                                            \
    EXPECT(TQ_OK, zero);                          \
    BAD(text_null, call_of(NULL));                \
    BAD(text_odd, call_of((void*)odd));           \
  } while (0)
#define ENCODE(p) tq_quantizer_encode(z, p, 1, codes, NULL, NULL)
  EVERY(ENCODE, tq_quantizer_encode(z, NULL, 0, NULL, NULL, NULL), "x = NULL", "x = 0x");
#define DECODE(p) tq_quantizer_decode(z, codes, 1, p, NULL)
  EVERY(DECODE, tq_quantizer_decode(z, NULL, 0, NULL, NULL), "x = NULL", "x = 0x");
#define QUERIES(p) tq_quantizer_inner_products(z, p, 1, codes, 1, o, NULL)
  EVERY(QUERIES, tq_quantizer_inner_products(z, NULL, 0, NULL, 0, NULL, NULL), "queries = NULL",
        "queries = 0x");
#define PRODUCTS(p) tq_quantizer_inner_products(z, x, 1, codes, 1, p, NULL)
  EVERY(PRODUCTS, tq_quantizer_inner_products(z, x, 1, NULL, 0, NULL, NULL), "out = NULL", "out = 0x");
#define SEARCH(p) tq_quantizer_search(z, p, 1, codes, 1, NULL, 1, o, ids, NULL)
  EVERY(SEARCH, tq_quantizer_search(z, NULL, 0, NULL, 0, NULL, 1, NULL, NULL, NULL), "queries = NULL",
        "queries = 0x");
#define SCORES(p) tq_quantizer_search(z, x, 1, codes, 1, NULL, 1, p, ids, NULL)
  EVERY(SCORES, tq_quantizer_search(z, x, 1, NULL, 0, NULL, 1, o, ids, NULL), "scores = (nil)",
        "scores = 0x");
#define IDS(p) tq_quantizer_search(z, x, 1, codes, 1, NULL, 1, o, p, NULL)
  EVERY(IDS, tq_quantizer_search(z, x, 1, codes, 1, o, 1, o, ids, NULL), "scores = 0x", "ids = 0x");
  BAD("bias = 0x", tq_quantizer_search(z, x, 1, codes, 1, (float*)odd, 1, o, ids, NULL));
#define ROTATE(p) tq_quantizer_rotate(z, p, 1, y, NULL)
  EVERY(ROTATE, tq_quantizer_rotate(z, NULL, 0, NULL, NULL), "x = NULL", "x = 0x");
#define ROTATED(p) tq_quantizer_rotate(z, x, 1, p, NULL)
  EVERY(ROTATED, tq_quantizer_rotate(z, x, 0, y, NULL), "y = NULL", "y = 0x");
#define UNROTATE(p) tq_quantizer_unrotate(z, p, 1, x, NULL)
  EVERY(UNROTATE, tq_quantizer_unrotate(z, NULL, 0, NULL, NULL), "y = NULL", "y = 0x");
#define UNROTATED(p) tq_quantizer_unrotate(z, y, 1, p, NULL)
  EVERY(UNROTATED, tq_quantizer_unrotate(z, y, 0, x, NULL), "x = NULL", "x = 0x");
  /* the factor is of the vectors' directions alone */
  float small[64], of_small;
  for (int i = 0; i < 64; i++) small[i] = ldexpf(x[i], -20);
  EXPECT(TQ_OK, tq_calibrate_sketch_factor(z, x, 2, &factor, NULL));
  EXPECT(TQ_OK, tq_calibrate_sketch_factor(z, small, 2, &of_small, NULL));
  CHECK(factor == of_small);
  BAD("x = NULL", tq_calibrate_sketch_factor(z, NULL, 1, &factor, NULL));
  BAD("x = 0x", tq_calibrate_sketch_factor(z, odd, 1, &factor, NULL));
  BAD("factor = NULL", tq_calibrate_sketch_factor(z, x, 1, NULL, NULL));
  BAD("x = NULL", tq_calibrate_levels(z, NULL, 1, 2, o, y, NULL, NULL));
  BAD("levels = (nil)", tq_calibrate_levels(z, x, 1, 2, NULL, y, NULL, NULL));
  BAD("levels = 0x", tq_calibrate_levels(z, x, 1, 2, o, NULL, NULL, NULL));
  BAD("bits = 0: must be 1 .. 8", tq_calibrate_levels(z, x, 1, 0, o, y, NULL, NULL));

  /* counts, and streams of a CPU's */
  BAD("count = -1", tq_quantizer_decode(z, codes, -1, x, NULL));
  BAD("count = -1", tq_quantizer_inner_products(z, x, 1, codes, -1, o, NULL));
  BAD("num_queries = -1", tq_quantizer_search(z, x, -1, codes, 1, NULL, 1, o, ids, NULL));
  BAD("count = -1", tq_quantizer_search(z, x, 1, codes, -1, NULL, 1, o, ids, NULL));
  BAD("count = -1", tq_quantizer_rotate(z, x, -1, y, NULL));
  BAD("count = -1", tq_quantizer_unrotate(z, y, -1, x, NULL));
  BAD("count = -1", tq_calibrate_sketch_factor(z, x, -1, &factor, NULL));
  BAD("count = -1", tq_calibrate_levels(z, x, -1, 2, o, y, NULL, NULL));
  BAD("count = 1099511627777", tq_quantizer_rotate(z, x, most, y, NULL));
  BAD("count = 1099511627777", tq_quantizer_encode(z, x, most, codes, NULL, NULL));
  BAD("num_queries = 1099511627777", tq_quantizer_inner_products(z, x, most, codes, 1, o, NULL));
  BAD("stream = 0x", tq_quantizer_decode(z, codes, 1, x, odd));
  BAD("stream = 0x", tq_quantizer_inner_products(z, x, 1, codes, 1, o, odd));
  BAD("stream = 0x", tq_quantizer_search(z, x, 1, codes, 1, NULL, 1, o, ids, odd));
  BAD("stream = 0x", tq_quantizer_rotate(z, x, 1, y, odd));
  BAD("stream = 0x", tq_quantizer_unrotate(z, y, 1, x, odd));
  BAD("stream = 0x", tq_calibrate_sketch_factor(z, x, 1, &factor, odd));
  BAD("stream = 0x", tq_calibrate_levels(z, x, 1, 2, o, y, NULL, odd));
  EXPECT(TQ_OK, tq_quantizer_destroy(z));
  EXPECT(TQ_OK, tq_quantizer_destroy(NULL));
}
