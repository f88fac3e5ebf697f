/* SPDX-License-Identifier: Apache-2.0
 *
 * Every argument class of every call, wrong: the status, and the argument's name and value in the text.
 * Nothing is written and nothing changes.
 */
#include "capi.h"

#define BAD TQ_ERROR_INVALID_ARGUMENT

/* One configuration fault and how its reason begins. */
#define CONFIG_FAULT(text, statement)                                       \
  do {                                                                      \
    tq_cache_config c = small_config();                                     \
    statement;                                                              \
    char reasons[512] = "";                                                 \
    cache = NULL;                                                           \
    REFUSES(BAD, text, tq_cache_create(&c, NULL, &cache));                  \
    CHECK(cache == NULL);                                                   \
    REFUSES(BAD, text, tq_cache_config_check(&c, reasons, sizeof reasons)); \
    CHECK(strncmp(reasons, text, strlen(text)) == 0);                       \
    REFUSES(BAD, text, tq_cache_config_bytes(&c, &bytes));                  \
    CHECK(bytes.page_bytes == 0);                                           \
  } while (0)

void test_misuse_config(void) {
  tq_cache* cache = NULL;
  tq_cache_bytes bytes;
  memset(&bytes, 0, sizeof bytes);
  bytes.struct_size = sizeof bytes;
  static const int32_t wrong_bits[LAYERS] = {8, 9};
  tq_codebook book;
  memset(&book, 0, sizeof book);
  book.struct_size = sizeof book;
  book.bits = 8;
  tq_allocator allocator;
  memset(&allocator, 0, sizeof allocator);
  allocator.struct_size = sizeof allocator;
  allocator.alloc = (void* (*)(void*, size_t, size_t, int32_t, int32_t))(void (*)(void))test_misuse_config;
  CONFIG_FAULT("config.struct_size = 0", c.struct_size = 0);
  CONFIG_FAULT("device_type = 9", c.device_type = 9);
  CONFIG_FAULT("device_id = 2", c.device_id = 2);
  CONFIG_FAULT("num_layers = 0", c.num_layers = 0);
  CONFIG_FAULT("num_q_heads = 3: must be a multiple of num_kv_heads = 2", c.num_q_heads = 3);
  CONFIG_FAULT("num_kv_heads = 0", c.num_kv_heads = 0);
  CONFIG_FAULT("head_dim = 50", c.head_dim = 50);
  CONFIG_FAULT("value_dim = 1", c.value_dim = 1);
  CONFIG_FAULT("io_dtype = 0", c.io_dtype = 0);
  CONFIG_FAULT("key_bits = 7", c.key_bits = 7);
  CONFIG_FAULT("value_bits = 7", c.value_bits = 7);
  CONFIG_FAULT("code_family = 6", c.code_family = 6);
  CONFIG_FAULT("key_family = 8", c.key_family = 8);
  CONFIG_FAULT("value_family = -3", c.value_family = -3);
  CONFIG_FAULT("group_size = 64: must be 0", c.group_size = 64);
  CONFIG_FAULT("group_size = 5", c.group_size = 5);
  CONFIG_FAULT("layer_key_bits[1] = 9", c.layer_key_bits = wrong_bits);
  CONFIG_FAULT("layer_value_bits[1] = 9", c.layer_value_bits = wrong_bits);
  CONFIG_FAULT("rotation = 8", c.rotation = 8);
  CONFIG_FAULT("key_scale_rule = 8", c.key_scale_rule = 8);
  CONFIG_FAULT("value_scale_rule = 8", c.value_scale_rule = 8);
  CONFIG_FAULT("page_size = 33", c.page_size = 33);
  CONFIG_FAULT("first_layer = -1", c.first_layer = -1);
  CONFIG_FAULT("first_kv_head = 65536", c.first_kv_head = 65536);
  CONFIG_FAULT("key_codebook.bits = 8", c.key_codebook = &book);
  CONFIG_FAULT("value_codebook.bits = 8", c.value_codebook = &book);
  CONFIG_FAULT("max_tokens = 0", c.max_tokens = 0);
  CONFIG_FAULT("max_sequence_tokens = 257", c.max_sequence_tokens = 257);
  CONFIG_FAULT("max_sequences = -1", c.max_sequences = -1);
  CONFIG_FAULT("max_batch_sequences = 4", c.max_batch_sequences = 4);
  CONFIG_FAULT("max_batch_tokens = -4", c.max_batch_tokens = -4);
  CONFIG_FAULT("window_tokens = -1", c.window_tokens = -1);
  CONFIG_FAULT("sink_tokens = -1", c.sink_tokens = -1);
  CONFIG_FAULT("rollback_tokens = -1", c.rollback_tokens = -1);
  CONFIG_FAULT("num_threads = -1", c.num_threads = -1);
  CONFIG_FAULT("flags = 0x100", c.flags = 256);
  CONFIG_FAULT("allocator.free = NULL", c.allocator = &allocator);
  CONFIG_FAULT("pool = 0x", c.pool = (char*)&bytes + 1);
  CONFIG_FAULT("pool_bytes = 5", c.pool_bytes = 5);

  tq_cache_config c = small_config();
  REFUSES(BAD, "config = NULL", tq_cache_config_init(NULL));
  REFUSES(BAD, "config = NULL", tq_cache_config_check(NULL, NULL, 0));
  REFUSES(BAD, "text = NULL", tq_cache_config_check(&c, NULL, 1));
  REFUSES(BAD, "config = NULL", tq_cache_config_bytes(NULL, &bytes));
  REFUSES(BAD, "bytes = NULL", tq_cache_config_bytes(&c, NULL));
  REFUSES(BAD, "config = NULL", tq_cache_create(NULL, NULL, &cache));
  REFUSES(BAD, "cache = NULL", tq_cache_create(&c, NULL, NULL));
  REFUSES(BAD, "stream = 0x", tq_cache_create(&c, &c, &cache));
  CHECK(cache == NULL);
  /* Several faults: one line each, and a text that is cut where the room ends. */
  char text[600], little[20];
  c.head_dim = 1;
  c.page_size = 1;
  c.num_threads = -5;
  REFUSES(BAD, "head_dim = 1", tq_cache_config_check(&c, text, sizeof text));
  CHECK(strstr(text, "\npage_size = 1: ") && strstr(text, "\nnum_threads = -5: "));
  REFUSES(BAD, "head_dim = 1", tq_cache_config_check(&c, little, sizeof little));
  CHECK(strlen(little) == sizeof little - 1 && strncmp(little, text, sizeof little - 1) == 0);
}

void test_misuse_cache(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_cache_config out;
  tq_cache_config_init(&out);
  tq_cache_memory memory;
  memset(&memory, 0, sizeof memory);
  uint64_t u = 77;
  float centre[HEADS * DIM];
  fill(centre, HEADS * DIM, 1);
  REFUSES(BAD, "cache = NULL", tq_cache_get_config(NULL, &out));
  REFUSES(BAD, "config = NULL", tq_cache_get_config(cache, NULL));
  REFUSES(BAD, "cache = NULL", tq_cache_get_memory(NULL, &memory));
  REFUSES(BAD, "memory = NULL", tq_cache_get_memory(cache, NULL));
  REFUSES(BAD, "memory.struct_size = 0", tq_cache_get_memory(cache, &memory));
  REFUSES(BAD, "cache = NULL", tq_cache_fingerprint(NULL, &u));
  REFUSES(BAD, "fingerprint = NULL", tq_cache_fingerprint(cache, NULL));
  REFUSES(BAD, "cache = NULL", tq_cache_check(NULL, NULL, &u));
  REFUSES(BAD, "stream = 0x", tq_cache_check(cache, &u, &u));
  CHECK(u == 77);
  REFUSES(BAD, "cache = NULL", tq_cache_set_centres(NULL, 0, centre, NULL));
  REFUSES(BAD, "layer = -1", tq_cache_set_centres(cache, -1, centre, NULL));
  REFUSES(BAD, "layer = 2: must be 0 .. 1", tq_cache_set_centres(cache, LAYERS, centre, NULL));
  centre[DIM + 5] = NAN;
  REFUSES(BAD, "key_centre[1][5] = nan", tq_cache_set_centres(cache, 0, centre, NULL));
  centre[DIM + 5] = 0;
  centre[VALUE_DIM + 7] = -INFINITY;
  REFUSES(BAD, "value_centre[1][7] = -inf", tq_cache_set_centres(cache, 0, NULL, centre));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_misuse_sequences(void) {
  const tq_cache_config config = small_config();
  tq_cache *cache = make_cache(&config), *other = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  tq_sequence s = 0, out = 55;
  int64_t length = 55;
  uint64_t flags = 55;
  REFUSES(BAD, "cache = NULL", tq_sequence_create(NULL, &out));
  REFUSES(BAD, "sequence = NULL", tq_sequence_create(cache, NULL));
  s = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, s, 10, 1));
  REFUSES(BAD, "cache = NULL", tq_sequence_free(NULL, s, NULL));
  REFUSES(BAD, "stream = 0x", tq_sequence_free(cache, s, &s));
  REFUSES(BAD, "source = NULL", tq_sequence_copy(NULL, s, cache, NULL, &out));
  REFUSES(BAD, "target = NULL", tq_sequence_copy(cache, s, NULL, NULL, &out));
  REFUSES(BAD, "copy = NULL", tq_sequence_copy(cache, s, cache, NULL, NULL));
  REFUSES(BAD, "stream = 0x", tq_sequence_copy(cache, s, cache, &s, &out));
  REFUSES(BAD, "cache = NULL", tq_sequence_fork(NULL, s, NULL, &out));
  REFUSES(BAD, "sequence = NULL", tq_sequence_fork(cache, s, NULL, NULL));
  REFUSES(BAD, "stream = 0x", tq_sequence_fork(cache, s, &s, &out));
  REFUSES(BAD, "cache = NULL", tq_sequence_truncate(NULL, s, 1, NULL));
  REFUSES(BAD, "stream = 0x", tq_sequence_truncate(cache, s, 1, &s));
  REFUSES(BAD, "cache = NULL", tq_sequence_flush(NULL, s, NULL));
  REFUSES(BAD, "stream = 0x", tq_sequence_flush(cache, s, &s));
  REFUSES(BAD, "length = -1: must be 0 .. 10", tq_sequence_truncate(cache, s, -1, NULL));
  REFUSES(BAD, "length = 11: must be 0 .. 10", tq_sequence_truncate(cache, s, 11, NULL));
  REFUSES(BAD, "cache = NULL", tq_sequence_length(NULL, s, &length));
  REFUSES(BAD, "length = NULL", tq_sequence_length(cache, s, NULL));
  REFUSES(BAD, "cache = NULL", tq_sequence_flags(NULL, s, &flags));
  REFUSES(BAD, "flags = NULL", tq_sequence_flags(cache, s, NULL));
  const tq_sequence wrong[] = {0, -1, 1, s + 1, s + ((int64_t)1 << 32), INT64_MAX, INT64_MIN};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    char text[64];
    snprintf(text, sizeof text, "sequence = %lld", (long long)wrong[i]);
    REFUSES(BAD, text, tq_sequence_free(cache, wrong[i], NULL));
    REFUSES(BAD, text, tq_sequence_truncate(cache, wrong[i], 0, NULL));
    REFUSES(BAD, text, tq_sequence_flush(cache, wrong[i], NULL));
    REFUSES(BAD, text, tq_sequence_length(cache, wrong[i], &length));
    REFUSES(BAD, text, tq_sequence_flags(cache, wrong[i], &flags));
    REFUSES(BAD, text, tq_sequence_copy(cache, wrong[i], cache, NULL, &out));
    snprintf(text, sizeof text, "source = %lld", (long long)wrong[i]);
    REFUSES(BAD, text, tq_sequence_fork(cache, wrong[i], NULL, &out));
  }
  REFUSES(BAD, "sequence = ", tq_sequence_length(other, s, &length));
  CHECK(out == 55 && length == 55 && flags == 55 && length_of(cache, s) == 10);
  EXPECT(TQ_OK, tq_sequence_free(cache, s, NULL));
  REFUSES(BAD, "sequence = ", tq_sequence_free(cache, s, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(other));
}

void test_misuse_batch(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = NULL;
  REFUSES(BAD, "cache = NULL", tq_batch_create(NULL, &batch));
  REFUSES(BAD, "batch = NULL", tq_batch_create(cache, NULL));
  CHECK(batch == NULL);
  batch = make_batch(cache);
  const tq_sequence s[2] = {make_sequence(cache), make_sequence(cache)}, twice[2] = {s[0], s[0]},
                    dead[2] = {s[0], 12345};
  const int64_t ones[2] = {1, 1}, minus[2] = {1, -3}, twos[2] = {1, 2};
  REFUSES(BAD, "batch = NULL", tq_batch_plan(NULL, 2, s, ones, NULL, NULL));
  REFUSES(BAD, "num_sequences = -1", tq_batch_plan(batch, -1, s, ones, NULL, NULL));
  REFUSES(TQ_ERROR_CAPACITY, "num_sequences = 4", tq_batch_plan(batch, 4, s, ones, NULL, NULL));
  REFUSES(BAD, "sequences = NULL", tq_batch_plan(batch, 2, NULL, ones, NULL, NULL));
  REFUSES(BAD, "new_tokens = NULL", tq_batch_plan(batch, 2, s, NULL, NULL, NULL));
  REFUSES(BAD, "sequences[1] = ", tq_batch_plan(batch, 2, twice, ones, NULL, NULL));
  CHECK(strstr(tq_last_error(), "named twice") != NULL);
  REFUSES(BAD, "sequences[1] = 12345", tq_batch_plan(batch, 2, dead, ones, NULL, NULL));
  REFUSES(BAD, "new_tokens[1] = -3", tq_batch_plan(batch, 2, s, minus, NULL, NULL));
  REFUSES(BAD, "query_tokens[1] = -3", tq_batch_plan(batch, 2, s, ones, minus, NULL));
  REFUSES(BAD, "query_tokens[1] = 2: the sequence will have 1 tokens",
          tq_batch_plan(batch, 2, s, ones, twos, NULL));
  const int64_t huge[2] = {INT64_MAX, INT64_MAX};
  REFUSES(TQ_ERROR_CAPACITY, "new_tokens[0] = 9223372036854775807",
          tq_batch_plan(batch, 2, s, huge, NULL, NULL));
  REFUSES(BAD, "query_tokens[0] = 9223372036854775807", tq_batch_plan(batch, 2, s, ones, huge, NULL));
  REFUSES(BAD, "stream = 0x", tq_batch_plan(batch, 2, s, ones, NULL, &cache));
  CHECK(length_of(cache, s[0]) == 0 && length_of(cache, s[1]) == 0);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_misuse_append(void) {
  const tq_cache_config config = small_config();
  tq_cache *cache = make_cache(&config), *other = make_cache(&config);
  tq_batch *batch = make_batch(cache), *foreign = make_batch(other);
  const tq_sequence s = make_sequence(cache);
  const int64_t three = 3;
  float k[3 * HEADS * DIM], v[3 * HEADS * VALUE_DIM];
  fill(k, 3 * HEADS * DIM, 1);
  fill(v, 3 * HEADS * VALUE_DIM, 2);
  EXPECT(TQ_OK, tq_batch_plan(foreign, 0, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &three, NULL, NULL));
  REFUSES(BAD, "cache = NULL", tq_cache_append(NULL, 0, batch, k, v, NULL, NULL));
  REFUSES(BAD, "layer = -1", tq_cache_append(cache, -1, batch, k, v, NULL, NULL));
  REFUSES(BAD, "layer = 2", tq_cache_append(cache, 2, batch, k, v, NULL, NULL));
  REFUSES(BAD, "batch = NULL", tq_cache_append(cache, 0, NULL, k, v, NULL, NULL));
  REFUSES(BAD, "batch = 0x", tq_cache_append(cache, 0, foreign, k, v, NULL, NULL));
  REFUSES(BAD, "k = NULL: 3 tokens", tq_cache_append(cache, 0, batch, NULL, v, NULL, NULL));
  REFUSES(BAD, "v = NULL: 3 tokens", tq_cache_append(cache, 0, batch, k, NULL, NULL, NULL));
  REFUSES(BAD, "k = 0x", tq_cache_append(cache, 0, batch, (char*)k + 2, v, NULL, NULL));
  REFUSES(BAD, "v = 0x", tq_cache_append(cache, 0, batch, k, (char*)v + 1, NULL, NULL));
  REFUSES(BAD, "stream = 0x", tq_cache_append(cache, 0, batch, k, v, NULL, k));
  tq_tensor_layout layout;
  const struct {
    const char* text;
    int64_t key_token, key_head, value_token, value_head;
  } strides[] = {{"layout.key_token_stride = 63", 63, 0, 0, 0},
                 {"layout.key_head_stride = -64", 0, -64, 0, 0},
                 {"layout.value_token_stride = 1", 0, 0, 1, 0},
                 {"layout.value_head_stride = 31", 0, 0, 0, 31},
                 {"layout.key_token_stride = 9223372036854775807", INT64_MAX, 0, 0, 0},
                 {"layout.key_head_stride = -9223372036854775808", 0, INT64_MIN, 0, 0}};
  for (size_t i = 0; i < sizeof strides / sizeof strides[0]; i++) {
    memset(&layout, 0, sizeof layout);
    layout.struct_size = sizeof layout;
    layout.key_token_stride = strides[i].key_token;
    layout.key_head_stride = strides[i].key_head;
    layout.value_token_stride = strides[i].value_token;
    layout.value_head_stride = strides[i].value_head;
    REFUSES(BAD, strides[i].text, tq_cache_append(cache, 0, batch, k, v, &layout, NULL));
  }
  memset(&layout, 0, sizeof layout);
  REFUSES(BAD, "layout.struct_size = 0", tq_cache_append(cache, 0, batch, k, v, &layout, NULL));
  layout.struct_size = sizeof layout;
  layout.reserved = 1;
  REFUSES(TQ_ERROR_VERSION, "layout.reserved = 1", tq_cache_append(cache, 0, batch, k, v, &layout, NULL));
  /* All that changed nothing: the plan is in force. */
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(foreign));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(other));
}

/* Products of heads and strides that pass 64 bits are refused, not wrapped. */
void test_misuse_extents(void) {
  tq_cache_config config = small_config();
  config.num_layers = 1;
  config.num_q_heads = config.num_kv_heads = 65536;
  config.head_dim = config.value_dim = config.max_tokens = config.page_size = 32;
  config.max_sequences = 1;
  config.key_bits = config.value_bits = 2;
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  const int64_t one = 1;
  float* x = (float*)calloc(65536 * 32, sizeof(float));
  tq_tensor_layout layout;
  memset(&layout, 0, sizeof layout);
  layout.struct_size = sizeof layout;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &one, NULL, NULL));
  layout.key_head_stride = (int64_t)1 << 48;
  REFUSES(BAD, "k: 65536 heads with a stride of 281474976710656 elements",
          tq_cache_append(cache, 0, batch, x, x, &layout, NULL));
  layout.key_head_stride = 0;
  layout.value_head_stride = ((int64_t)1 << 48) - 1;
  REFUSES(BAD, "v: 65536 heads with a stride of 281474976710655 elements",
          tq_cache_append(cache, 0, batch, x, x, &layout, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, x, x, NULL, NULL));
  tq_attend_params p;
  EXPECT(TQ_OK, tq_attend_params_init(&p));
  p.q_head_stride = (int64_t)1 << 48;
  REFUSES(BAD, "q: 65536 heads", tq_cache_attend(cache, 0, batch, x, x, NULL, &p, NULL, 0, NULL));
  p.q_head_stride = 0;
  p.out_head_stride = (int64_t)1 << 48;
  REFUSES(BAD, "out: 65536 heads", tq_cache_attend(cache, 0, batch, x, x, NULL, &p, NULL, 0, NULL));
  REFUSES(
      BAD, "k: 65536 heads",
      tq_cache_read(cache, 0, s, 0, 1, x, NULL, (layout.key_head_stride = (int64_t)1 << 48, &layout), NULL));
  free(x);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

static tq_attend_params params(void) {
  tq_attend_params p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  return p;
}
#define PARAM_FAULT(text, statement)                                                      \
  do {                                                                                    \
    tq_attend_params p = params();                                                        \
    statement;                                                                            \
    REFUSES(BAD, text, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL)); \
  } while (0)

void test_misuse_attend(void) {
  const tq_cache_config config = small_config();
  tq_cache *cache = make_cache(&config), *other = make_cache(&config);
  tq_batch *batch = make_batch(cache), *foreign = make_batch(other);
  const tq_sequence s = make_sequence(cache);
  float q[3 * Q_HEADS * DIM], out[3 * Q_HEADS * VALUE_DIM], lse[3 * Q_HEADS];
  size_t bytes = 55;
  fill(q, 3 * Q_HEADS * DIM, 1);
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) out[i] = 5.0f;
  for (int i = 0; i < 3 * Q_HEADS; i++) lse[i] = 5.0f;
  EXPECT(TQ_OK, tq_batch_plan(foreign, 0, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, grow(cache, batch, s, 3, 1));
  REFUSES(BAD, "cache = NULL", tq_cache_attend(NULL, 0, batch, q, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "layer = 2", tq_cache_attend(cache, 2, batch, q, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "layer = -7", tq_cache_attend(cache, -7, batch, q, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "batch = NULL", tq_cache_attend(cache, 0, NULL, q, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "batch = 0x", tq_cache_attend(cache, 0, foreign, q, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "q = NULL", tq_cache_attend(cache, 0, batch, NULL, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "out = NULL", tq_cache_attend(cache, 0, batch, q, NULL, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "q = 0x", tq_cache_attend(cache, 0, batch, (char*)q + 1, out, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "out = 0x", tq_cache_attend(cache, 0, batch, q, (char*)out + 2, lse, NULL, NULL, 0, NULL));
  REFUSES(BAD, "lse = 0x",
          tq_cache_attend(cache, 0, batch, q, out, (float*)(void*)((char*)lse + 2), NULL, NULL, 0, NULL));
  REFUSES(BAD, "stream = 0x", tq_cache_attend(cache, 0, batch, q, out, lse, NULL, NULL, 0, q));
  PARAM_FAULT("params.struct_size = 3", p.struct_size = 3);
  PARAM_FAULT("params.out_dtype = 4", p.out_dtype = 4);
  PARAM_FAULT("params.out_dtype = -1", p.out_dtype = -1);
  PARAM_FAULT("params.softmax_scale = nan", p.softmax_scale = NAN);
  PARAM_FAULT("params.softmax_scale = inf", p.softmax_scale = INFINITY);
  PARAM_FAULT("params.softmax_scale = -3e+38", p.softmax_scale = -3e38f);
  PARAM_FAULT("params.softmax_scale = 1e-39", p.softmax_scale = 1e-39f);
  PARAM_FAULT("params.logit_softcap = -1", p.logit_softcap = -1);
  PARAM_FAULT("params.logit_softcap = inf", p.logit_softcap = INFINITY);
  PARAM_FAULT("params.logit_softcap = nan", p.logit_softcap = NAN);
  PARAM_FAULT("params.logit_softcap = 2.3e+38", p.logit_softcap = 2.3e38f);
  PARAM_FAULT("params.logit_softcap = 1e-38", p.logit_softcap = 1e-38f);
  PARAM_FAULT("params.sliding_window = -1", p.sliding_window = -1);
  PARAM_FAULT("params.sink_logits = 0x", p.sink_logits = (const float*)(const void*)((char*)q + 1));
  PARAM_FAULT("params.history_only = 2", p.history_only = 2);
  PARAM_FAULT("params.q_token_stride = 63", p.q_token_stride = 63);
  PARAM_FAULT("params.q_head_stride = -1", p.q_head_stride = -1);
  PARAM_FAULT("params.out_token_stride = 31", p.out_token_stride = 31);
  PARAM_FAULT("params.out_head_stride = 9", p.out_head_stride = 9);
  PARAM_FAULT(
      "out: strides of 33 (token) and 32 (head) elements make rows of 3 tokens x 4 heads x 32 overlap",
      p.out_token_stride = 33);
  REFUSES(BAD, "cache = NULL", tq_attend_workspace_bytes(NULL, &bytes));
  REFUSES(BAD, "bytes = NULL", tq_attend_workspace_bytes(cache, NULL));
  CHECK(bytes == 55);
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) CHECK(out[i] == 5.0f);
  for (int i = 0; i < 3 * Q_HEADS; i++) CHECK(lse[i] == 5.0f);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(foreign));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(other));
}

void test_misuse_read_and_merge(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, s, 10, 1));
  float k[10 * HEADS * DIM], v[10 * HEADS * VALUE_DIM];
  for (int i = 0; i < 10 * HEADS * DIM; i++) k[i] = 5.0f;
  for (int i = 0; i < 10 * HEADS * VALUE_DIM; i++) v[i] = 5.0f;
  REFUSES(BAD, "cache = NULL", tq_cache_read(NULL, 0, s, 0, 1, k, v, NULL, NULL));
  REFUSES(BAD, "layer = 2", tq_cache_read(cache, 2, s, 0, 1, k, v, NULL, NULL));
  REFUSES(BAD, "sequence = 0", tq_cache_read(cache, 0, 0, 0, 1, k, v, NULL, NULL));
  REFUSES(BAD, "first = -1", tq_cache_read(cache, 0, s, -1, 1, k, v, NULL, NULL));
  REFUSES(BAD, "first = 11: the sequence has 10 tokens", tq_cache_read(cache, 0, s, 11, 0, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 10, 0, k, v, NULL, NULL));
  REFUSES(BAD, "count = -1", tq_cache_read(cache, 0, s, 0, -1, k, v, NULL, NULL));
  REFUSES(BAD, "count = 8: the sequence has 7 tokens from first = 3 on",
          tq_cache_read(cache, 0, s, 3, 8, k, v, NULL, NULL));
  REFUSES(BAD, "count = 9223372036854775807", tq_cache_read(cache, 0, s, 3, INT64_MAX, k, v, NULL, NULL));
  REFUSES(BAD, "k = 0x", tq_cache_read(cache, 0, s, 0, 1, (char*)k + 2, v, NULL, NULL));
  REFUSES(BAD, "v = 0x", tq_cache_read(cache, 0, s, 0, 1, k, (char*)v + 2, NULL, NULL));
  REFUSES(BAD, "stream = 0x", tq_cache_read(cache, 0, s, 0, 1, k, v, NULL, k));
  tq_tensor_layout layout;
  memset(&layout, 0, sizeof layout);
  layout.struct_size = sizeof layout;
  layout.key_token_stride = DIM;
  REFUSES(BAD, "k: strides of 64 (token) and 64 (head)",
          tq_cache_read(cache, 0, s, 0, 2, k, v, &layout, NULL));
  for (int i = 0; i < 10 * HEADS * DIM; i++) CHECK(k[i] == 5.0f);
  for (int i = 0; i < 10 * HEADS * VALUE_DIM; i++) CHECK(v[i] == 5.0f);
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 9, 1, k, v, &layout, NULL)); /* one token overlaps nothing */
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 10, 0, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));

  float a[8] = {0}, lse[2] = {0}, out[8];
  const void *outs[2] = {a, a}, *hole[2] = {a, NULL};
  const float *lses[2] = {lse, lse}, *lse_hole[2] = {NULL, lse};
  REFUSES(BAD, "num_states = 0",
          tq_merge_states(0, outs, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "num_states = 1025",
          tq_merge_states(1025, outs, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "outs = NULL",
          tq_merge_states(2, NULL, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "lses = NULL",
          tq_merge_states(2, outs, NULL, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "outs[1] = NULL",
          tq_merge_states(2, hole, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "lses[0] = NULL",
          tq_merge_states(2, outs, lse_hole, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "rows = -1", tq_merge_states(2, outs, lses, -1, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "rows = 9223372036854775807",
          tq_merge_states(2, outs, lses, INT64_MAX, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "dim = 0", tq_merge_states(2, outs, lses, 2, 0, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "dtype = 0", tq_merge_states(2, outs, lses, 2, 4, 0, out, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "out = NULL",
          tq_merge_states(2, outs, lses, 2, 4, TQ_F32, NULL, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "out = 0x",
          tq_merge_states(2, outs, lses, 2, 4, TQ_F32, (char*)out + 1, NULL, TQ_DEVICE_CPU, 0, NULL));
  REFUSES(BAD, "lse = 0x",
          tq_merge_states(2, outs, lses, 2, 4, TQ_F32, out, (float*)(void*)((char*)lse + 1), TQ_DEVICE_CPU, 0,
                          NULL));
  REFUSES(BAD, "device_type = 0", tq_merge_states(2, outs, lses, 2, 4, TQ_F32, out, NULL, 0, 0, NULL));
  REFUSES(TQ_ERROR_NO_DEVICE, "device_id = 1",
          tq_merge_states(2, outs, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 1, NULL));
  REFUSES(BAD, "stream = 0x", tq_merge_states(2, outs, lses, 2, 4, TQ_F32, out, NULL, TQ_DEVICE_CPU, 0, out));
}

void test_cuda_requests(void) {
  int32_t count = -1;
  EXPECT(TQ_OK, tq_device_count(TQ_DEVICE_CUDA, &count));
  if (count > 0) return; /* tests/gpu */
  tq_cache_config c = small_config();
  c.device_type = TQ_DEVICE_CUDA;
  tq_cache* cache = NULL;
  char text[256] = "";
  const tq_status status = tq_cache_create(&c, NULL, &cache);
  CHECK(cache == NULL);
  CHECK(status == TQ_ERROR_NOT_SUPPORTED || status == TQ_ERROR_NO_DEVICE || status == TQ_ERROR_DRIVER);
  CHECK(strncmp(tq_last_error(), "device_", 7) == 0 && strstr(tq_last_error(), "CUDA"));
  EXPECT(status, tq_cache_config_check(&c, text, sizeof text));
  CHECK(strcmp(text, tq_last_error()) == 0);
  tq_device_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  REFUSES(TQ_ERROR_NO_DEVICE, "index = 0", tq_device_get_info(TQ_DEVICE_CUDA, 0, &info));
  float a[4] = {0}, lse[1] = {0}, out[4];
  const void* outs[1] = {a};
  const float* lses[1] = {lse};
  REFUSES(TQ_ERROR_NO_DEVICE, "device_id = 0",
          tq_merge_states(1, outs, lses, 1, 4, TQ_F32, out, NULL, TQ_DEVICE_CUDA, 0, NULL));
}
