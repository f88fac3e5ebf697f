/* SPDX-License-Identifier: Apache-2.0
 *
 * Attend through the C API against float64 attention over the decoded keys and values that tq_cache_read
 * gives back.
 *
 * Tolerance. The integer kernels round a query to 1/28672 of its largest coordinate and a softmax weight to
 * 1/65535 of the largest of a block of 128 tokens. Here |q|, |k| < 8 and |v_i| < 1.1: logits err by less than
 * sqrt(64) / (2 * 28672) * 8 * 8 / 8 = 1.2e-3, weights by a factor exp of twice that, which moves an output
 * coordinate by less than 2.4e-3 * 1.1; weight rounding adds less than 64 / 65535 * 1.1. Together 3.8e-3. One
 * token too many or too few of at most 100 moves outputs by more than 1e-2.
 */
#include "capi.h"

#define TOLERANCE 3.8e-3

struct options {
  double scale, softcap, sink;
  int64_t sliding_window, end; /* tokens >= end are not seen; 0 sliding_window = all */
  int has_sink;
};

/* One query row over tokens 0 .. position. out may be NULL. Returns the lse. */
static double exact_row(const float* q, const float* k, const float* v, int kv_head, int64_t position,
                        struct options o, double* out) {
  double m = -INFINITY, l = 0, acc[VALUE_DIM] = {0};
  for (int64_t i = 0; i <= position && i < o.end; i++) {
    if (o.sliding_window > 0 && i <= position - o.sliding_window) continue;
    double logit = 0;
    for (int d = 0; d < DIM; d++) logit += (double)q[d] * k[(i * HEADS + kv_head) * DIM + d];
    logit *= o.scale;
    if (o.softcap > 0) logit = o.softcap * tanh(logit / o.softcap);
    const double top = logit > m ? logit : m, old = l > 0 ? exp(m - top) : 0, weight = exp(logit - top);
    l = l * old + weight;
    for (int d = 0; d < VALUE_DIM; d++)
      acc[d] = acc[d] * old + weight * v[(i * HEADS + kv_head) * VALUE_DIM + d];
    m = top;
  }
  if (o.has_sink) {
    const double top = o.sink > m ? o.sink : m, old = l > 0 ? exp(m - top) : 0;
    l = l * old + exp(o.sink - top);
    for (int d = 0; d < VALUE_DIM; d++) acc[d] *= old;
    m = top;
  }
  for (int d = 0; out && d < VALUE_DIM; d++) out[d] = l > 0 ? acc[d] / l : 0;
  return l > 0 ? m + log(l) : -INFINITY;
}

static struct options plain(void) {
  struct options o = {1.0 / 8.0, 0, 0, 0, INT64_MAX, 0};
  return o;
}

/* Compares [queries][Q_HEADS] rows, the last of `length` tokens. */
static void compare(const char* what, tq_cache* cache, tq_sequence sequence, int64_t queries, const float* q,
                    const float* out, const float* lse, struct options o, const float* sinks) {
  const int64_t length = length_of(cache, sequence);
  float *k = random_floats((size_t)length * HEADS * DIM, 1),
        *v = random_floats((size_t)length * HEADS * VALUE_DIM, 1);
  EXPECT(TQ_OK, tq_cache_read(cache, 0, sequence, 0, length, k, v, NULL, NULL));
  double worst = 0, worst_lse = 0;
  for (int64_t j = 0; j < queries; j++)
    for (int h = 0; h < Q_HEADS; h++) {
      double expected[VALUE_DIM];
      if (sinks) o.sink = sinks[h];
      const double expected_lse = exact_row(q + (j * Q_HEADS + h) * DIM, k, v, h / (Q_HEADS / HEADS),
                                            length - queries + j, o, expected);
      for (int d = 0; d < VALUE_DIM; d++)
        worst = fmax(worst, fabs(expected[d] - out[(j * Q_HEADS + h) * VALUE_DIM + d]));
      if (lse)
        worst_lse = fmax(
            worst_lse, expected_lse == lse[j * Q_HEADS + h] ? 0 : fabs(expected_lse - lse[j * Q_HEADS + h]));
    }
  if (!(worst <= TOLERANCE) || !(worst_lse <= TOLERANCE)) {
    printf("# %s: outputs differ by %g, lse by %g\n", what, worst, worst_lse);
    capi_failures++;
  }
  free(k);
  free(v);
}

void test_attend_against_exact(void) {
  tq_cache_config config = small_config();
  const int bits[] = {8, 4, 3, 16};
  for (int b = 0; b < 4; b++) {
    config.key_bits = bits[b];
    config.value_bits = bits[3 - b];
    tq_cache* cache = make_cache(&config);
    tq_batch* batch = make_batch(cache);
    const tq_sequence s[2] = {make_sequence(cache), make_sequence(cache)};
    /* Prefill of two sequences of different lengths in one plan, then a decode step of both. */
    const int64_t prefill[2] = {37, 5}, step[2] = {1, 1};
    float *k = random_floats(42 * HEADS * DIM, 10), *v = random_floats(42 * HEADS * VALUE_DIM, 11),
          *q = random_floats(42 * Q_HEADS * DIM, 12);
    float *out = random_floats(42 * Q_HEADS * VALUE_DIM, 13), *lse = random_floats(42 * Q_HEADS, 14);
    EXPECT(TQ_OK, tq_batch_plan(batch, 2, s, prefill, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, NULL, NULL, 0, NULL));
    compare("prefill of the first", cache, s[0], 37, q, out, lse, plain(), NULL);
    compare("prefill of the second", cache, s[1], 5, q + 37 * Q_HEADS * DIM, out + 37 * Q_HEADS * VALUE_DIM,
            lse + 37 * Q_HEADS, plain(), NULL);
    EXPECT(TQ_OK, tq_batch_plan(batch, 2, s, step, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, NULL, NULL, 0, NULL));
    compare("decode of the first", cache, s[0], 1, q, out, lse, plain(), NULL);
    compare("decode of the second", cache, s[1], 1, q + Q_HEADS * DIM, out + Q_HEADS * VALUE_DIM,
            lse + Q_HEADS, plain(), NULL);
    free(k);
    free(v);
    free(q);
    free(out);
    free(lse);
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
}

void test_attend_options(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, s, 50, 20));
  const int64_t news = 4, queries = 9;
  float *k = random_floats(4 * HEADS * DIM, 21), *v = random_floats(4 * HEADS * VALUE_DIM, 22),
        *q = random_floats(9 * Q_HEADS * DIM, 23);
  float out[9 * Q_HEADS * VALUE_DIM], again[9 * Q_HEADS * VALUE_DIM], lse[9 * Q_HEADS];
  const float sinks[Q_HEADS] = {0.5f, -1.0f, 3.0f, 8.0f};
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &news, &queries, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  tq_attend_params p;
  struct options o;

  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  compare("defaults", cache, s, 9, q, out, lse, plain(), NULL);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, again, NULL, NULL, NULL, 0, NULL));
  CHECK(memcmp(out, again, sizeof out) == 0);
  size_t bytes = 0;
  EXPECT(TQ_OK, tq_attend_workspace_bytes(cache, &bytes));
  void* workspace = aligned(256, (bytes + 255) / 256 * 256 + 256);
  memset(workspace, 0xFF, bytes);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, again, lse, NULL, workspace, bytes, NULL));
  CHECK(memcmp(out, again, sizeof out) == 0);
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "workspace = 0x",
          tq_cache_attend(cache, 0, batch, q, again, NULL, NULL, (char*)workspace + 64, bytes, NULL));
  REFUSES(TQ_ERROR_WORKSPACE_TOO_SMALL, "workspace_bytes = 1: tq_attend_workspace_bytes says ",
          tq_cache_attend(cache, 0, batch, q, again, NULL, NULL, workspace, 1, NULL));
  free(workspace);

  p.softmax_scale = 0.2f;
  o = plain();
  o.scale = (double)p.softmax_scale;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  compare("softmax_scale", cache, s, 9, q, out, lse, o, NULL);
  p.softmax_scale = 0;
  p.logit_softcap = 0.5f;
  o = plain();
  o.softcap = 0.5;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  compare("logit_softcap", cache, s, 9, q, out, lse, o, NULL);
  p.logit_softcap = 0;
  for (p.sliding_window = 1; p.sliding_window < 70; p.sliding_window += 11) {
    o = plain();
    o.sliding_window = p.sliding_window;
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
    compare("sliding_window", cache, s, 9, q, out, lse, o, NULL);
  }
  p.sliding_window = 0;
  p.sink_logits = sinks;
  o = plain();
  o.has_sink = 1;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  compare("sink_logits", cache, s, 9, q, out, lse, o, sinks);
  p.sink_logits = NULL;
  p.history_only = 1;
  o = plain();
  o.end = 50;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  compare("history_only", cache, s, 9, q, out, lse, o, NULL);

  free(k);
  free(v);
  free(q);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* The same data through padded and head-major tensors gives the same bits, and what lies between rows is
 * untouched. */
void test_strides(void) {
  enum { TOKENS = 11 };
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const int64_t tokens = TOKENS;
  float dense_k[TOKENS * HEADS * DIM], dense_v[TOKENS * HEADS * VALUE_DIM], q[TOKENS * Q_HEADS * DIM],
      out[TOKENS * Q_HEADS * VALUE_DIM];
  fill(dense_k, TOKENS * HEADS * DIM, 30);
  fill(dense_v, TOKENS * HEADS * VALUE_DIM, 31);
  fill(q, TOKENS * Q_HEADS * DIM, 32);
  tq_sequence s = make_sequence(cache);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &tokens, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, dense_k, dense_v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL));
  float read_k[TOKENS * HEADS * DIM], read_v[TOKENS * HEADS * VALUE_DIM];
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 0, TOKENS, read_k, read_v, NULL, NULL));

  /* Keys head-major [head][token][dim + 3], values [token][head][dim] with 7 more floats a token. */
  const int64_t key_token = DIM + 3, key_head = TOKENS * (DIM + 3), value_token = HEADS * VALUE_DIM + 7,
                value_head = VALUE_DIM;
  float k[HEADS * TOKENS * (DIM + 3)], v[TOKENS * (HEADS * VALUE_DIM + 7)];
  for (int t = 0; t < TOKENS; t++)
    for (int h = 0; h < HEADS; h++) {
      memcpy(k + t * key_token + h * key_head, dense_k + (t * HEADS + h) * DIM, DIM * sizeof(float));
      memcpy(v + t * value_token + h * value_head, dense_v + (t * HEADS + h) * VALUE_DIM,
             VALUE_DIM * sizeof(float));
    }
  tq_tensor_layout layout;
  memset(&layout, 0, sizeof layout);
  layout.struct_size = sizeof layout;
  layout.key_token_stride = key_token;
  layout.key_head_stride = key_head;
  layout.value_token_stride = value_token;
  EXPECT(TQ_OK, tq_sequence_free(cache, s, NULL));
  s = make_sequence(cache);
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &tokens, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, &layout, NULL));
  float again_k[HEADS * TOKENS * (DIM + 3)], again_v[TOKENS * (HEADS * VALUE_DIM + 7)];
  for (size_t i = 0; i < sizeof again_k / sizeof again_k[0]; i++) again_k[i] = 7.0f;
  for (size_t i = 0; i < sizeof again_v / sizeof again_v[0]; i++) again_v[i] = 7.0f;
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s, 0, TOKENS, again_k, again_v, &layout, NULL));
  for (int t = 0; t < TOKENS; t++)
    for (int h = 0; h < HEADS; h++) {
      CHECK(memcmp(again_k + t * key_token + h * key_head, read_k + (t * HEADS + h) * DIM,
                   DIM * sizeof(float)) == 0);
      CHECK(memcmp(again_v + t * value_token + h * value_head, read_v + (t * HEADS + h) * VALUE_DIM,
                   VALUE_DIM * sizeof(float)) == 0);
      for (int i = DIM; i < DIM + 3; i++) CHECK(again_k[t * key_token + h * key_head + i] == 7.0f);
    }
  for (int t = 0; t < TOKENS; t++)
    for (int i = HEADS * VALUE_DIM; i < HEADS * VALUE_DIM + 7; i++)
      CHECK(again_v[t * value_token + i] == 7.0f);

  /* q head-major, out with gaps. */
  float q2[Q_HEADS * TOKENS * DIM], out2[TOKENS * Q_HEADS * (VALUE_DIM + 5)];
  for (int t = 0; t < TOKENS; t++)
    for (int h = 0; h < Q_HEADS; h++)
      memcpy(q2 + (h * TOKENS + t) * DIM, q + (t * Q_HEADS + h) * DIM, DIM * sizeof(float));
  for (size_t i = 0; i < sizeof out2 / sizeof out2[0]; i++) out2[i] = 7.0f;
  tq_attend_params p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.q_token_stride = DIM;
  p.q_head_stride = TOKENS * DIM;
  p.out_token_stride = Q_HEADS * (VALUE_DIM + 5);
  p.out_head_stride = VALUE_DIM + 5;
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q2, out2, NULL, &p, NULL, 0, NULL));
  for (int row = 0; row < TOKENS * Q_HEADS; row++) {
    CHECK(memcmp(out2 + row * (VALUE_DIM + 5), out + row * VALUE_DIM, VALUE_DIM * sizeof(float)) == 0);
    for (int i = VALUE_DIM; i < VALUE_DIM + 5; i++) CHECK(out2[row * (VALUE_DIM + 5) + i] == 7.0f);
  }
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* 16-bit types: values that the type holds exactly give the float32 cache's codes, and outputs are its
 * outputs, rounded. */
static uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}
static uint16_t to_f16(float x) { /* multiples of 1/64 below 16: exact */
  if (x == 0) return 0;
  int e;
  const float m = frexpf(fabsf(x), &e);
  return (uint16_t)((x < 0 ? 0x8000 : 0) | (e + 14) << 10 | ((int)(m * 2048.0f) & 0x3FF));
}

void test_dtypes(void) {
  enum { TOKENS = 40, N = TOKENS * Q_HEADS };
  const int64_t tokens = TOKENS;
  float f[N * DIM], out[3][N * VALUE_DIM], lse[3][N];
  uint16_t h[N * DIM], out16[N * VALUE_DIM];
  fill(f, N * DIM, 40);
  for (int i = 0; i < N * DIM; i++) f[i] = (float)((int)(f[i] * 64.0f)) / 64.0f;
  for (int type = TQ_F32; type <= TQ_BF16; type++) {
    tq_cache_config config = small_config();
    config.io_dtype = type;
    tq_cache* cache = make_cache(&config);
    tq_batch* batch = make_batch(cache);
    const tq_sequence s = make_sequence(cache);
    for (int i = 0; i < N * DIM; i++) h[i] = type == TQ_F16 ? to_f16(f[i]) : to_bf16(f[i]);
    const void* x = type == TQ_F32 ? (const void*)f : (const void*)h;
    tq_attend_params p;
    memset(&p, 0, sizeof p);
    p.struct_size = sizeof p;
    p.out_dtype = TQ_F32;
    EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &tokens, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, x, x, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, x, out[type - 1], lse[type - 1], &p, NULL, 0, NULL));
    CHECK(memcmp(out[type - 1], out[0], sizeof out[0]) == 0);
    CHECK(memcmp(lse[type - 1], lse[0], sizeof lse[0]) == 0);
    if (type == TQ_BF16) {
      EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, x, out16, NULL, NULL, NULL, 0, NULL));
      for (int i = 0; i < N * VALUE_DIM; i++) CHECK(out16[i] == to_bf16(out[2][i]));
    }
    if (type == TQ_F16) {
      EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, x, out16, NULL, NULL, NULL, 0, NULL));
      p.out_dtype = TQ_BF16;
      EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, x, out16, NULL, &p, NULL, 0, NULL));
      for (int i = 0; i < N * VALUE_DIM; i++) CHECK(out16[i] == to_bf16(out[1][i]));
    }
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
}

/* The parts of a context merged by LSE give the whole: history_only and the new tokens alone. */
void test_merge(void) {
  enum { ROWS = 6 };
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch *batch = make_batch(cache), *second = make_batch(cache);
  const tq_sequence s = make_sequence(cache), tail = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, s, 60, 50));
  const int64_t news = ROWS;
  float *k = random_floats(ROWS * HEADS * DIM, 51), *v = random_floats(ROWS * HEADS * VALUE_DIM, 52),
        *q = random_floats(ROWS * Q_HEADS * DIM, 53);
  float whole[ROWS * Q_HEADS * VALUE_DIM], a[ROWS * Q_HEADS * VALUE_DIM], b[ROWS * Q_HEADS * VALUE_DIM],
      merged[ROWS * Q_HEADS * VALUE_DIM];
  float whole_lse[ROWS * Q_HEADS], a_lse[ROWS * Q_HEADS], b_lse[ROWS * Q_HEADS], merged_lse[ROWS * Q_HEADS];
  tq_attend_params p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.history_only = 1;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &s, &news, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, whole, whole_lse, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, a, a_lse, &p, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_batch_plan(second, 1, &tail, &news, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, second, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, second, q, b, b_lse, NULL, NULL, 0, NULL));
  const void* outs[3] = {a, b, a};
  const float* lses[3] = {a_lse, b_lse, NULL};
  EXPECT(TQ_OK, tq_merge_states(2, outs, lses, ROWS * Q_HEADS, VALUE_DIM, TQ_F32, merged, merged_lse,
                                TQ_DEVICE_CPU, 0, NULL));
  for (int i = 0; i < ROWS * Q_HEADS * VALUE_DIM; i++) CHECK(fabsf(merged[i] - whole[i]) <= 2 * TOLERANCE);
  for (int i = 0; i < ROWS * Q_HEADS; i++) CHECK(fabsf(merged_lse[i] - whole_lse[i]) <= 2 * TOLERANCE);
  /* An empty part changes no bit of a finished one, wherever it stands; its out is not read. */
  float empty_lse[ROWS * Q_HEADS], unread[ROWS * Q_HEADS * VALUE_DIM], one[ROWS * Q_HEADS * VALUE_DIM],
      two[ROWS * Q_HEADS * VALUE_DIM];
  for (int i = 0; i < ROWS * Q_HEADS; i++) empty_lse[i] = -INFINITY;
  for (int i = 0; i < ROWS * Q_HEADS * VALUE_DIM; i++) unread[i] = NAN;
  EXPECT(TQ_OK, tq_merge_states(1, outs, lses, ROWS * Q_HEADS, VALUE_DIM, TQ_F32, one, NULL, TQ_DEVICE_CPU, 0,
                                NULL));
  CHECK(memcmp(one, a, sizeof one) == 0);
  outs[0] = unread;
  outs[1] = a;
  outs[2] = unread;
  lses[0] = lses[2] = empty_lse;
  lses[1] = a_lse;
  EXPECT(TQ_OK, tq_merge_states(3, outs, lses, ROWS * Q_HEADS, VALUE_DIM, TQ_F32, two, merged_lse,
                                TQ_DEVICE_CPU, 0, NULL));
  CHECK(memcmp(one, two, sizeof one) == 0);
  /* All parts empty: zero and -inf. In place over one of the parts. */
  outs[1] = unread;
  lses[1] = empty_lse;
  EXPECT(TQ_OK, tq_merge_states(3, outs, lses, ROWS * Q_HEADS, VALUE_DIM, TQ_F32, unread, merged_lse,
                                TQ_DEVICE_CPU, 0, NULL));
  for (int i = 0; i < ROWS * Q_HEADS * VALUE_DIM; i++) CHECK(unread[i] == 0.0f);
  for (int i = 0; i < ROWS * Q_HEADS; i++) CHECK(merged_lse[i] == -INFINITY);
  outs[0] = a;
  outs[1] = b;
  lses[0] = a_lse;
  lses[1] = b_lse;
  EXPECT(TQ_OK,
         tq_merge_states(2, outs, lses, ROWS * Q_HEADS, VALUE_DIM, TQ_F32, a, NULL, TQ_DEVICE_CPU, 0, NULL));
  CHECK(memcmp(a, merged, sizeof a) == 0);
  EXPECT(TQ_OK, tq_merge_states(2, outs, lses, 0, VALUE_DIM, TQ_F32, NULL, NULL, TQ_DEVICE_CPU, 0, NULL));
  free(k);
  free(v);
  free(q);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(second));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

void test_empty_cases(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence s[2] = {make_sequence(cache), make_sequence(cache)};
  size_t bytes = 1;
  /* No sequences, or sequences without tokens: everything is allowed and does nothing. */
  EXPECT(TQ_OK, tq_batch_plan(batch, 0, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, NULL, NULL, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_attend_workspace_bytes(cache, &bytes));
  const int64_t none[2] = {0, 0};
  EXPECT(TQ_OK, tq_batch_plan(batch, 2, s, none, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, NULL, NULL, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, NULL, NULL, NULL, NULL, NULL, 0, NULL));
  EXPECT(TQ_OK, tq_cache_read(cache, 0, s[0], 0, 0, NULL, NULL, NULL, NULL));
  /* history_only without history: a query that sees no token. */
  const int64_t news[2] = {3, 0};
  float *k = random_floats(3 * HEADS * DIM, 60), *v = random_floats(3 * HEADS * VALUE_DIM, 61),
        *q = random_floats(3 * Q_HEADS * DIM, 62);
  float out[3 * Q_HEADS * VALUE_DIM], lse[3 * Q_HEADS];
  const float sinks[Q_HEADS] = {-2.0f, 0.0f, 1.5f, 40.0f};
  tq_attend_params p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.history_only = 1;
  EXPECT(TQ_OK, tq_batch_plan(batch, 2, s, news, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  fill(out, 3 * Q_HEADS * VALUE_DIM, 63);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) CHECK(out[i] == 0.0f);
  for (int i = 0; i < 3 * Q_HEADS; i++) CHECK(lse[i] == -INFINITY);
  p.sink_logits = sinks;
  fill(out, 3 * Q_HEADS * VALUE_DIM, 63);
  EXPECT(TQ_OK, tq_cache_attend(cache, 0, batch, q, out, lse, &p, NULL, 0, NULL));
  for (int i = 0; i < 3 * Q_HEADS * VALUE_DIM; i++) CHECK(out[i] == 0.0f);
  for (int i = 0; i < 3 * Q_HEADS; i++) CHECK(lse[i] == sinks[i % Q_HEADS]);
  free(k);
  free(v);
  free(q);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}

/* float32 into raw sides, which hold float16, and into codes with an exact window, which hold any size. */
void test_saturated(void) {
  const struct {
    int32_t bits, window;
    float wanted;
    uint64_t flags;
  } cases[] = {{16, 0, 65504.0f, TQ_NOTICED_SATURATED}, {8, 0, 2e5f, 0}, {8, 4, 2e5f, 0}};
  for (int c = 0; c < 3; c++) {
    tq_cache_config config = small_config();
    config.key_bits = config.value_bits = cases[c].bits;
    config.window_tokens = cases[c].window;
    tq_cache* cache = make_cache(&config);
    tq_batch* batch = make_batch(cache);
    const tq_sequence sequence = make_sequence(cache);
    float k[4 * HEADS * DIM], v[4 * HEADS * VALUE_DIM];
    fill(k, 4 * HEADS * DIM, 75);
    for (int i = 0; i < 4 * HEADS * VALUE_DIM; i++) v[i] = 2e5f;
    const int64_t four = 4;
    uint64_t flags = 7;
    EXPECT(TQ_OK, tq_batch_plan(batch, 1, &sequence, &four, NULL, NULL));
    for (int32_t layer = 0; layer < config.num_layers; layer++)
      EXPECT(TQ_OK, tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
    EXPECT(TQ_OK, tq_sequence_flags(cache, sequence, &flags));
    CHECK(flags == cases[c].flags);
    EXPECT(TQ_OK, tq_cache_check(cache, NULL, &flags));
    CHECK(flags == cases[c].flags);
    float* out = attend_last(cache, batch, sequence, 1, 76);
    /* Codes: half a step of 1/127 of the largest rotated coordinate, here up to four times the rms. */
    for (int i = 0; i < Q_HEADS * VALUE_DIM; i++) CHECK(fabsf(out[i] - cases[c].wanted) <= 2e5f * 4 / 254);
    for (int i = 0; c != 1 && i < Q_HEADS * VALUE_DIM; i++) CHECK(fabsf(out[i] - cases[c].wanted) <= 0.5f);
    free(out);
    EXPECT(TQ_OK, tq_batch_destroy(batch));
    EXPECT(TQ_OK, tq_cache_destroy(cache));
  }
}

void test_nonfinite(void) {
  const tq_cache_config config = small_config();
  tq_cache* cache = make_cache(&config);
  tq_batch* batch = make_batch(cache);
  const tq_sequence good = make_sequence(cache), bad = make_sequence(cache);
  EXPECT(TQ_OK, grow(cache, batch, good, 3, 70));
  float k[2 * HEADS * DIM], v[2 * HEADS * VALUE_DIM];
  fill(k, 2 * HEADS * DIM, 71);
  fill(v, 2 * HEADS * VALUE_DIM, 72);
  k[5] = NAN;
  v[HEADS * VALUE_DIM + 3] = -INFINITY;
  const int64_t two = 2;
  uint64_t flags = 0;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &bad, &two, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_append(cache, 0, batch, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_sequence_flags(cache, good, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_sequence_flags(cache, bad, &flags));
  CHECK(flags == TQ_NOTICED_NONFINITE);
  EXPECT(TQ_OK, tq_cache_check(cache, NULL, &flags));
  CHECK(flags == TQ_NOTICED_NONFINITE);
  EXPECT(TQ_OK, tq_cache_check(cache, NULL, &flags));
  CHECK(flags == 0);
  float* out = attend_last(cache, batch, bad, 2, 73);
  for (int i = 0; i < 2 * Q_HEADS * VALUE_DIM; i++) CHECK(isfinite(out[i]));
  free(out);
  /* The flag stays with the sequence, also when the tokens go; a fork inherits it; a new sequence in the same
   * slot starts clean. */
  tq_sequence fork;
  EXPECT(TQ_OK, tq_sequence_fork(cache, bad, NULL, &fork));
  EXPECT(TQ_OK, tq_sequence_flags(cache, fork, &flags));
  CHECK(flags == TQ_NOTICED_NONFINITE);
  EXPECT(TQ_OK, tq_sequence_truncate(cache, bad, 0, NULL));
  EXPECT(TQ_OK, tq_sequence_flags(cache, bad, &flags));
  CHECK(flags == TQ_NOTICED_NONFINITE);
  EXPECT(TQ_OK, tq_sequence_free(cache, bad, NULL));
  const tq_sequence fresh = make_sequence(cache);
  EXPECT(TQ_OK, tq_sequence_flags(cache, fresh, &flags));
  CHECK(flags == 0);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
