/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors on their own from C: every family there and back, inner products against the decoded vectors,
 * search against sorting, the rotation, calibration; what is refused.
 */
#include <float.h>

#include "capi.h"

#define QDIM 100
#define VECTORS 90
#define QUERIES 37

static const float levels2[4] = {-1.51f, -0.45f, 0.45f, 1.51f}, boundaries2[3] = {-0.98f, 0, 0.98f};
static const int32_t channels[5] = {0, 7, 31, 32, 99};

static tq_levels own_levels(void) {
  tq_levels levels;
  memset(&levels, 0, sizeof levels);
  levels.struct_size = sizeof levels;
  levels.bits = 2;
  levels.unit = 0.1f; /* 1 / sqrt(QDIM) */
  levels.levels = levels2;
  levels.boundaries = boundaries2;
  return levels;
}

static tq_quantizer_config config_of(int32_t family, int32_t bits) {
  tq_quantizer_config config;
  memset(&config, 0, sizeof config);
  config.struct_size = sizeof config;
  config.dim = QDIM;
  config.family = family;
  config.bits = bits;
  config.seed = 11;
  if (family == TQ_CODE_GROUPED) config.group_size = 32;
  return config;
}

static tq_quantizer* make_quantizer(const tq_quantizer_config* config, tq_quantizer_info* info) {
  tq_quantizer* quantizer = NULL;
  EXPECT(TQ_OK, tq_quantizer_create(config, &quantizer));
  if (!quantizer) exit(1);
  info->struct_size = sizeof *info;
  EXPECT(TQ_OK, tq_quantizer_get_info(quantizer, info));
  return quantizer;
}

static double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += (double)a[i] * b[i];
  return sum;
}

/* The k best of scores, the lower index first of equals, one by one. */
static void check_search(const float* scores, const float* bias, int64_t count, int64_t k, const float* got,
                         const int64_t* ids) {
  char* taken = (char*)calloc((size_t)count, 1);
  for (int64_t place = 0; place < k; place++) {
    int64_t best = -1;
    float best_score = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
      const float score = scores[i] + (bias ? bias[i] : 0);
      if (!taken[i] && (best < 0 || score > best_score)) best = i, best_score = score;
    }
    CHECK(ids[place] == best);
    CHECK(got[place] == best_score);
    if (best >= 0) taken[best] = 1;
  }
  free(taken);
}

/* Encodes, decodes, multiplies, searches. most: bound of the mean squared error relative to |x|^2. */
static void there_and_back(const tq_quantizer_config* config, double most) {
  tq_quantizer_info info;
  tq_quantizer* quantizer = make_quantizer(config, &info);
  const int64_t k = 100;
  float *x = random_floats(VECTORS * QDIM, 5), *q = random_floats(QUERIES * QDIM, 6),
        *back = random_floats(VECTORS * QDIM, 7), *out = random_floats(QUERIES * VECTORS, 8),
        *bias = random_floats(VECTORS, 9), *scores = random_floats(QUERIES * k, 10);
  int64_t* ids = (int64_t*)aligned(8, sizeof(int64_t) * QUERIES * k);
  unsigned char* codes = (unsigned char*)aligned(1, (size_t)info.code_bytes * VECTORS);
  uint64_t noticed = 1;
  memset(x + 3 * QDIM, 0, QDIM * sizeof *x); /* a zero vector */
  q[5 * QDIM + 1] = INFINITY;
  q[6 * QDIM] = NAN;
  for (int i = 0; i < QDIM; i++) q[7 * QDIM + i] *= FLT_MAX / 32, q[8 * QDIM + i] *= 1e-39f;
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, VECTORS, codes, &noticed, NULL));
  CHECK(noticed == 0);
  EXPECT(TQ_OK, tq_quantizer_decode(quantizer, codes, VECTORS, back, NULL));
  double error = 0, square = dot(x, x, VECTORS * QDIM);
  for (int i = 0; i < VECTORS * QDIM; i++) error += ((double)back[i] - x[i]) * ((double)back[i] - x[i]);
  CHECK(error <= most * square);
  CHECK(error >= most * square / 2); /* the bound says something */
  for (int i = 0; i < QDIM; i++) CHECK(back[3 * QDIM + i] == 0);

  EXPECT(TQ_OK, tq_quantizer_inner_products(quantizer, q, QUERIES, codes, VECTORS, out, NULL));
  for (int64_t row = 0; row < QUERIES; row++) {
    const int finite = row != 5 && row != 6;
    for (int64_t i = 0; i < VECTORS; i++) {
      const double want = finite ? dot(q + row * QDIM, back + i * QDIM, QDIM) : NAN;
      /* A query is off by half of 1/32767 of its largest rotated coordinate, which is below its length, in
       * every coordinate: by sqrt(D) times that in length. Decoding rounds to float. */
      const double bound =
          sqrt(dot(q + row * QDIM, q + row * QDIM, QDIM) * dot(back + i * QDIM, back + i * QDIM, QDIM)) *
          (sqrt(112) / 65534 * 2 + 1e-6);
      CHECK(finite ? fabs(out[row * VECTORS + i] - want) <= bound : isnan(out[row * VECTORS + i]));
    }
  }
  for (int with = 0; with < 2; with++) {
    EXPECT(TQ_OK, tq_quantizer_search(quantizer, q, QUERIES, codes, VECTORS, with ? bias : NULL, k, scores,
                                      ids, NULL));
    for (int64_t row = 0; row < QUERIES; row++) {
      const int64_t there = row == 5 || row == 6 ? 0 : VECTORS;
      check_search(out + row * VECTORS, with ? bias : NULL, there, there, scores + row * k, ids + row * k);
      for (int64_t i = there; i < k; i++) CHECK(ids[row * k + i] == -1 && scores[row * k + i] == -INFINITY);
    }
  }
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  free(x), free(q), free(back), free(out), free(bias), free(scores), free(ids), free(codes);
}

/* Bounds: uniform numbers in [-1, 1), 100 of them padded to 112 coordinates. */
void test_quantizer_families(void) {
  static const double scalar[] = {0, .38, .13, .038, .0105, .0027, .0007, .00022, .00006};
  static const double grouped[] = {0, 0, .111, .0205, .00445};
  tq_quantizer_config config;
  const tq_levels levels = own_levels();
  for (int32_t bits = 1; bits <= 8; bits++) {
    config = config_of(TQ_CODE_SCALAR, bits);
    config.num_threads = bits % 3;
    there_and_back(&config, scalar[bits]);
  }
  for (int32_t bits = 2; bits <= 4; bits++) {
    config = config_of(TQ_CODE_GROUPED, bits);
    there_and_back(&config, grouped[bits]);
    config = config_of(TQ_CODE_PROD, bits);
    there_and_back(&config, .62 * scalar[bits - 1]); /* pi/2 - 1 of the residual */
    config.sketch_rule = TQ_SKETCH_LEAST_ERROR;
    there_and_back(&config, .40 * scalar[bits - 1]); /* 1 - 2/pi */
    config.sketch = TQ_SKETCH_GAUSSIAN;
    there_and_back(&config, .67 * scalar[bits - 1]); /* 1 / (1 + 2/pi) */
    config.sketch_rule = TQ_SKETCH_UNBIASED;
    there_and_back(&config, 1.7 * scalar[bits - 1]); /* pi/2 */
  }
  config = config_of(TQ_CODE_LEVELS, 2);
  config.levels = &levels;
  there_and_back(&config, .13);
  config = config_of(TQ_CODE_PROD, 3);
  config.levels = &levels;
  there_and_back(&config, .62 * .13);
  config = config_of(TQ_CODE_SCALAR, 2);
  config.num_outliers = 5;
  config.outlier_channels = channels;
  there_and_back(&config, .13);
  config = config_of(TQ_CODE_SCALAR, 4);
  config.rotation = TQ_ROTATION_DENSE;
  there_and_back(&config, .0105);
}

void test_quantizer_rotation(void) {
  static const int32_t dims[] = {1, 16, 17, 100, 641, 8192}, padded[] = {16, 16, 32, 112, 768, 8192};
  for (int d = 0; d < 6; d++) {
    tq_quantizer_config config = config_of(TQ_CODE_SCALAR, 2);
    tq_quantizer_info info;
    config.dim = dims[d];
    tq_quantizer* quantizer = make_quantizer(&config, &info);
    CHECK(info.rotated_dim == padded[d]);
    CHECK(info.code_bytes == padded[d] / 4 + 2);
    float *x = random_floats(3 * (size_t)dims[d], 1), *y = random_floats(3 * (size_t)padded[d], 2),
          *back = random_floats(3 * (size_t)dims[d], 3);
    EXPECT(TQ_OK, tq_quantizer_rotate(quantizer, x, 3, y, NULL));
    for (int i = 0; i < 3; i++) {
      const double before = dot(x + i * dims[d], x + i * dims[d], dims[d]),
                   after = dot(y + i * padded[d], y + i * padded[d], padded[d]);
      CHECK(fabs(after - before) <= 1e-6 * before);
    }
    EXPECT(TQ_OK, tq_quantizer_unrotate(quantizer, y, 3, back, NULL));
    for (int i = 0; i < 3 * dims[d]; i++) CHECK(fabsf(back[i] - x[i]) <= 4e-6f);
    EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
    free(x), free(y), free(back);
  }
}

void test_quantizer_calibration(void) {
  const int64_t count = 2000;
  tq_quantizer_config config = config_of(TQ_CODE_PROD, 3);
  tq_quantizer_info info;
  float *x = random_floats((size_t)count * QDIM, 1), factor = 0, levels[256], boundaries[255];
  double error = 0;
  tq_quantizer* quantizer = make_quantizer(&config, &info);
  CHECK(fabs(info.sketch_factor - 1.25331 * (1 - 1 / (4. * info.rotated_dim))) < 1e-4);
  EXPECT(TQ_OK, tq_calibrate_sketch_factor(quantizer, x, count, &factor, NULL));
  CHECK(fabs(factor - .7979) < .01);
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  config.sketch = TQ_SKETCH_GAUSSIAN;
  quantizer = make_quantizer(&config, &info);
  EXPECT(TQ_OK, tq_calibrate_sketch_factor(quantizer, x, count, &factor, NULL));
  CHECK(fabs(factor - .4875) < .01);
  for (int32_t bits = 1; bits <= 8; bits++) {
    static const double shannon[] = {1, .38, .13, .038, .0105, .0028, .0008, .00021, .00006};
    EXPECT(TQ_OK, tq_calibrate_levels(quantizer, x, count, bits, levels, boundaries, &error, NULL));
    CHECK(error < shannon[bits] && error > shannon[bits] / 2);
    for (int i = 0; i + 1 < 1 << bits; i++) {
      CHECK(levels[i] < boundaries[i] && boundaries[i] < levels[i + 1]);
      CHECK(fabsf(boundaries[i] - (levels[i] + levels[i + 1]) / 2) < 1e-6f);
    }
  }
  memset(x, 0, (size_t)count * QDIM * sizeof *x);
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "x: none of the 2000",
          tq_calibrate_sketch_factor(quantizer, x, count, &factor, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "x: all of the 2000",
          tq_calibrate_levels(quantizer, x, count, 2, levels, boundaries, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "bits = 9",
          tq_calibrate_levels(quantizer, x, count, 9, levels, boundaries, NULL, NULL));
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  free(x);
}

/* What the input's values say, and its types. */
void test_quantizer_inputs(void) {
  tq_quantizer_config config = config_of(TQ_CODE_SCALAR, 4);
  tq_quantizer_info info, other;
  tq_quantizer* quantizer = make_quantizer(&config, &info);
  uint64_t noticed = 0;
  float x[QDIM], back[QDIM];
  unsigned char codes[128], again[128];
  uint16_t half[QDIM], half_back[QDIM];
  fill(x, QDIM, 3);
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, 1, codes, NULL, NULL));
  x[4] = NAN;
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, 1, again, &noticed, NULL));
  CHECK(noticed == TQ_NOTICED_NONFINITE);
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, NULL, 0, NULL, &noticed, NULL));
  CHECK(noticed == 0);
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));

  config = config_of(TQ_CODE_GROUPED, 8);
  quantizer = make_quantizer(&config, &other);
  x[4] = -70000;
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, 1, again, &noticed, NULL));
  CHECK(noticed == TQ_NOTICED_SATURATED);
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));

  /* bfloat16 input is the same vector where its numbers are floats with 16 low bits of zero */
  config = config_of(TQ_CODE_SCALAR, 8);
  config.io_dtype = TQ_BF16;
  for (int i = 0; i < QDIM; i++) {
    uint32_t bits;
    fill(x + i, 1, 50 + (unsigned)i);
    memcpy(&bits, x + i, 4);
    half[i] = (uint16_t)(bits >> 16);
    bits &= 0xFFFF0000u;
    memcpy(x + i, &bits, 4);
  }
  quantizer = make_quantizer(&config, &other);
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, half, 1, codes, NULL, NULL));
  EXPECT(TQ_OK, tq_quantizer_decode(quantizer, codes, 1, half_back, NULL));
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  config.io_dtype = TQ_F32;
  quantizer = make_quantizer(&config, &info);
  EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, 1, again, NULL, NULL));
  CHECK(memcmp(codes, again, (size_t)info.code_bytes) == 0);
  CHECK(info.fingerprint == other.fingerprint);
  EXPECT(TQ_OK, tq_quantizer_decode(quantizer, codes, 1, back, NULL));
  for (int i = 0; i < QDIM; i++) {
    const uint32_t bits = (uint32_t)half_back[i] << 16;
    memcpy(x, &bits, 4);
    CHECK(fabsf(x[0] - back[i]) <= fabsf(back[i]) / 256);
  }
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  config.seed++;
  quantizer = make_quantizer(&config, &other);
  CHECK(info.fingerprint != other.fingerprint);
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
}

/* An allocator that fails at the n-th request, and counts what is out. */
typedef struct counted {
  int until_failure, live;
} counted;

static void* counted_alloc(void* user, size_t bytes, size_t alignment, int32_t type, int32_t id) {
  counted* c = (counted*)user;
  CHECK(type == TQ_DEVICE_CPU && id == 0);
  if (c->until_failure-- == 0) return NULL;
  c->live++;
  return aligned(alignment, bytes);
}
static void counted_free(void* user, void* pointer, size_t bytes, int32_t type, int32_t id) {
  (void)bytes, (void)type, (void)id;
  ((counted*)user)->live--;
  free(pointer);
}

/* Every allocation of create, products, search and calibration fails once: the call fails, nothing is lost,
 * and the next one works. */
void test_quantizer_memory(void) {
  tq_quantizer_config config = config_of(TQ_CODE_PROD, 3);
  tq_allocator allocator;
  counted c = {0, 0};
  float *x = random_floats(10 * QDIM, 1), out[100], scores[20], levels[4], boundaries[3];
  int64_t ids[20];
  unsigned char codes[10 * 64];
  memset(&allocator, 0, sizeof allocator);
  allocator.struct_size = sizeof allocator;
  allocator.user = &c;
  allocator.alloc = counted_alloc;
  allocator.free = counted_free;
  config.allocator = &allocator;
  config.rotation = TQ_ROTATION_DENSE;
  int failures = 0;
  for (int n = 0, done = 0; !done; n++) {
    tq_quantizer* quantizer = NULL;
    tq_status status;
    c.until_failure = n;
    status = tq_quantizer_create(&config, &quantizer);
    if (status == TQ_OK) {
      EXPECT(TQ_OK, tq_quantizer_encode(quantizer, x, 10, codes, NULL, NULL));
      status = tq_quantizer_inner_products(quantizer, x, 10, codes, 10, out, NULL);
      if (status == TQ_OK)
        status = tq_quantizer_search(quantizer, x, 10, codes, 10, NULL, 2, scores, ids, NULL);
      if (status == TQ_OK) status = tq_calibrate_levels(quantizer, x, 10, 2, levels, boundaries, NULL, NULL);
      done = status == TQ_OK;
      if (!done) {
        c.until_failure = 1000;
        EXPECT(TQ_OK, tq_quantizer_search(quantizer, x, 10, codes, 10, NULL, 2, scores, ids, NULL));
      }
    }
    if (!done) {
      failures++;
      CHECK(status == TQ_ERROR_OUT_OF_MEMORY);
    }
    EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
    CHECK(c.live == 0);
  }
  CHECK(failures >= 6);
  free(x);
}

static void refuse_config(tq_status status, const char* text, int32_t family, int32_t bits,
                          void (*change)(tq_quantizer_config*)) {
  tq_quantizer_config config = config_of(family, bits);
  tq_quantizer* quantizer = NULL;
  change(&config);
  REFUSES(status, text, tq_quantizer_create(&config, &quantizer));
  CHECK(!quantizer);
}

static tq_levels bad_levels;
static const float falling[3] = {0, 1, 0.5f};
static const int32_t twice[2] = {4, 4};
static tq_codebook book3 = {sizeof(tq_codebook), 3, 0.02f, {10, 31, 55, 88}};

static void no_change(tq_quantizer_config* c) { (void)c; }
static void cuda(tq_quantizer_config* c) { c->device_type = TQ_DEVICE_CUDA; }
static void cpu_4(tq_quantizer_config* c) { c->device_id = 4; }
static void reserved(tq_quantizer_config* c) { c->reserved = 9; }
static void device_3(tq_quantizer_config* c) { c->device_type = 3; }
static void dim_0(tq_quantizer_config* c) { c->dim = 0; }
static void dim_8193(tq_quantizer_config* c) { c->dim = 8193; }
static void dtype_9(tq_quantizer_config* c) { c->io_dtype = 9; }
static void rotation_3(tq_quantizer_config* c) { c->rotation = 3; }
static void rule_5(tq_quantizer_config* c) { c->scale_rule = 5; }
static void group_20(tq_quantizer_config* c) { c->group_size = 20; }
static void large_dense(tq_quantizer_config* c) { c->dim = 1537, c->rotation = TQ_ROTATION_DENSE; }
static void large_gaussian(tq_quantizer_config* c) { c->dim = 4097, c->sketch = TQ_SKETCH_GAUSSIAN; }
static void sketch_1(tq_quantizer_config* c) { c->sketch = 1; }
static void sketch_3(tq_quantizer_config* c) { c->sketch = 3; }
static void nan_factor(tq_quantizer_config* c) { c->sketch_factor = NAN; }
static void half_outliers(tq_quantizer_config* c) { c->num_outliers = 2; }
static void same_outliers(tq_quantizer_config* c) { c->num_outliers = 2, c->outlier_channels = twice; }
static void five_outliers(tq_quantizer_config* c) { c->num_outliers = 5, c->outlier_channels = channels; }
static void all_outliers(tq_quantizer_config* c) { c->num_outliers = c->dim, c->outlier_channels = channels; }
static void less_outliers(tq_quantizer_config* c) { c->num_outliers = -1, c->outlier_channels = channels; }
static void book_and_outliers(tq_quantizer_config* c) { five_outliers(c), c->codebook = &book3; }
static void other_book(tq_quantizer_config* c) { c->codebook = &book3; }
static void other_levels(tq_quantizer_config* c) {
  bad_levels = own_levels();
  c->levels = &bad_levels;
}
static void falling_levels(tq_quantizer_config* c) { other_levels(c), bad_levels.boundaries = falling; }
static void flag_1(tq_quantizer_config* c) { c->flags = TQ_FLAG_NO_ZERO_ON_FREE; }
static void threads(tq_quantizer_config* c) { c->num_threads = -1; }

void test_misuse_quantizer_config(void) {
  tq_quantizer_config config = config_of(TQ_CODE_SCALAR, 4);
  tq_quantizer* quantizer = NULL;
  const tq_status bad = TQ_ERROR_INVALID_ARGUMENT, no = TQ_ERROR_NOT_SUPPORTED;
  const int32_t scalar = TQ_CODE_SCALAR, prod = TQ_CODE_PROD, grouped = TQ_CODE_GROUPED;
  REFUSES(bad, "config = NULL", tq_quantizer_create(NULL, &quantizer));
  REFUSES(bad, "quantizer = NULL", tq_quantizer_create(&config, NULL));
  config.struct_size = 3;
  REFUSES(bad, "config.struct_size = 3", tq_quantizer_create(&config, &quantizer));
  refuse_config(no, "device_type = 2 (CUDA)", scalar, 4, cuda);
  refuse_config(bad, "device_type = 3", scalar, 4, device_3);
  refuse_config(bad, "device_id = 4", scalar, 4, cpu_4);
  refuse_config(TQ_ERROR_VERSION, "reserved = 9", scalar, 4, reserved);
  refuse_config(bad, "dim = 0", scalar, 4, dim_0);
  refuse_config(bad, "dim = 8193", scalar, 4, dim_8193);
  refuse_config(bad, "io_dtype = 9", scalar, 4, dtype_9);
  refuse_config(bad, "family = 5", 5, 4, no_change);
  refuse_config(bad, "bits = 0", scalar, 0, no_change);
  refuse_config(bad, "bits = 9", scalar, 9, no_change);
  refuse_config(bad, "bits (with family = 2, TQ_CODE_PROD) = 5", prod, 5, no_change);
  refuse_config(bad, "bits = 5: must be 2, 3, 4 or 8", grouped, 5, no_change);
  refuse_config(bad, "group_size = 20", grouped, 4, group_20);
  refuse_config(bad, "group_size = 20: must be 0 with family = 1", scalar, 4, group_20);
  refuse_config(bad, "rotation = 3: must be 0 with family = 3", grouped, 4, rotation_3);
  refuse_config(bad, "rotation = 3", scalar, 4, rotation_3);
  refuse_config(bad, "scale_rule = 5", scalar, 4, rule_5);
  refuse_config(no, "rotation = 2 (TQ_ROTATION_DENSE): dim = 1537", scalar, 4, large_dense);
  refuse_config(no, "sketch = 2 (TQ_SKETCH_GAUSSIAN): dim = 4097", prod, 4, large_gaussian);
  refuse_config(bad, "sketch = 1: must be 0", scalar, 4, sketch_1);
  refuse_config(bad, "sketch = 3", prod, 4, sketch_3);
  refuse_config(bad, "sketch_factor = nan", prod, 4, nan_factor);
  refuse_config(bad, "sketch_factor = nan: must be 0", scalar, 4, nan_factor);
  refuse_config(bad, "num_outliers = 2, outlier_channels = ", scalar, 4, half_outliers);
  refuse_config(bad, "outlier_channels[1] = 4: must be 5 .. 99", scalar, 4, same_outliers);
  refuse_config(bad, "bits = 8: outliers would have 9", scalar, 8, five_outliers);
  refuse_config(bad, "num_outliers = 5: must be 0 with family = 2", prod, 4, five_outliers);
  refuse_config(bad, "num_outliers = 100: must be 0 .. 99", scalar, 4, all_outliers);
  refuse_config(bad, "num_outliers = -1: must be 0 .. 99", scalar, 4, less_outliers);
  refuse_config(bad, "codebook = ", scalar, 3, book_and_outliers);
  refuse_config(bad, "codebook.bits = 3: must be bits = 4", scalar, 4, other_book);
  refuse_config(bad, "codebook = ", prod, 4, other_book);
  refuse_config(bad, "levels = NULL", TQ_CODE_LEVELS, 4, no_change);
  refuse_config(bad, "levels.bits = 2: must be 3", TQ_CODE_LEVELS, 3, other_levels);
  refuse_config(bad, "levels.boundaries[2] = 0.5", TQ_CODE_LEVELS, 2, falling_levels);
  refuse_config(bad, "levels = ", scalar, 2, other_levels);
  refuse_config(bad, "flags = 0x1", scalar, 4, flag_1);
  refuse_config(bad, "num_threads = -1", scalar, 4, threads);
}

void test_misuse_quantizer(void) {
  tq_quantizer_config config = config_of(TQ_CODE_SCALAR, 4);
  tq_quantizer_info info;
  tq_quantizer* quantizer = make_quantizer(&config, &info);
  const tq_status bad = TQ_ERROR_INVALID_ARGUMENT;
  float x[QDIM] = {0}, score, nan = NAN;
  unsigned char codes[128] = {0}, *odd = (unsigned char*)x + 1;
  int64_t id;
  int stream;
  EXPECT(TQ_OK, tq_quantizer_destroy(NULL));
  REFUSES(bad, "quantizer = NULL", tq_quantizer_encode(NULL, x, 1, codes, NULL, NULL));
  REFUSES(bad, "info = NULL", tq_quantizer_get_info(quantizer, NULL));
  REFUSES(bad, "stream = ", tq_quantizer_encode(quantizer, x, 1, codes, NULL, &stream));
  REFUSES(bad, "count = -1", tq_quantizer_encode(quantizer, x, -1, codes, NULL, NULL));
  REFUSES(bad, "x = NULL", tq_quantizer_encode(quantizer, NULL, 1, codes, NULL, NULL));
  REFUSES(bad, "x = ", tq_quantizer_encode(quantizer, odd, 1, codes, NULL, NULL));
  REFUSES(bad, "codes = NULL", tq_quantizer_encode(quantizer, x, 1, NULL, NULL, NULL));
  REFUSES(bad, "codes = NULL", tq_quantizer_decode(quantizer, NULL, 1, x, NULL));
  REFUSES(bad, "x = NULL", tq_quantizer_decode(quantizer, codes, 1, NULL, NULL));
  REFUSES(bad, "num_queries = -2", tq_quantizer_inner_products(quantizer, x, -2, codes, 1, x, NULL));
  REFUSES(bad, "queries = NULL", tq_quantizer_inner_products(quantizer, NULL, 1, codes, 1, x, NULL));
  REFUSES(bad, "out = NULL", tq_quantizer_inner_products(quantizer, x, 1, codes, 1, NULL, NULL));
  REFUSES(bad, "k = 0", tq_quantizer_search(quantizer, x, 1, codes, 1, NULL, 0, &score, &id, NULL));
  REFUSES(bad, "k = 65537", tq_quantizer_search(quantizer, x, 1, codes, 1, NULL, 65537, &score, &id, NULL));
  REFUSES(bad, "bias[0] = NaN", tq_quantizer_search(quantizer, x, 1, codes, 1, &nan, 1, &score, &id, NULL));
  REFUSES(bad, "scores = ", tq_quantizer_search(quantizer, x, 1, codes, 1, NULL, 1, NULL, &id, NULL));
  REFUSES(bad, "y = NULL", tq_quantizer_rotate(quantizer, x, 1, NULL, NULL));
  REFUSES(bad, "y = NULL", tq_quantizer_unrotate(quantizer, NULL, 1, x, NULL));
  REFUSES(bad, "quantizer: its family = 1 has no sketch",
          tq_calibrate_sketch_factor(quantizer, x, 1, &score, NULL));
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
  config = config_of(TQ_CODE_GROUPED, 4);
  quantizer = make_quantizer(&config, &info);
  REFUSES(bad, "quantizer: rotate", tq_quantizer_rotate(quantizer, x, 1, x, NULL));
  REFUSES(bad, "quantizer: calibrate_levels", tq_calibrate_levels(quantizer, x, 1, 2, x, x, NULL, NULL));
  EXPECT(TQ_OK, tq_quantizer_destroy(quantizer));
}
