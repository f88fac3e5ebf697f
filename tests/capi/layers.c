/* SPDX-License-Identifier: Apache-2.0
 *
 * Layers of different shape in one cache: each gives bit for bit what a cache of that layer alone gives, and
 * a layer that shares another's tokens what that one would give for its queries.
 */
#include "capi.h"

enum { kLayers = 4, kTokens = 75, kQueries = 3, kMaxFloats = kTokens * 8 * 128 };

/* Two kinds of heads, three of dimensions, raw and coded sides; the last shares the tokens of layer 1. */
static void make_layers(tq_layer_config* layers) {
  memset(layers, 0, kLayers * sizeof *layers);
  for (int i = 0; i < kLayers; i++) layers[i].struct_size = sizeof *layers;
  layers[1].num_q_heads = 6, layers[1].num_kv_heads = 3, layers[1].head_dim = 96, layers[1].value_dim = 128;
  layers[1].key_bits = 3, layers[1].value_bits = 16;
  layers[2].num_q_heads = 8, layers[2].num_kv_heads = 1, layers[2].head_dim = 128, layers[2].value_dim = 64;
  layers[2].key_bits = 2, layers[2].rotation = TQ_ROTATION_DENSE, layers[2].sliding_window = 20;
  layers[3].num_q_heads = 3, layers[3].shares_layer = 2;
}

struct Shape {
  int q_heads, kv_heads, dim, value_dim;
};
static const struct Shape kShapes[kLayers] = {
    {4, 2, 64, 32}, {6, 3, 96, 128}, {8, 1, 128, 64}, {3, 3, 96, 128}};

/* Appends to the layer unless it shares, attends with its last queries: [kQueries][q heads][value dim]. */
static void run_layer(tq_cache* cache, tq_batch* batch, int layer, int model_layer, int appends, float* out) {
  float *k = random_floats(kMaxFloats, 7 + (unsigned)model_layer),
        *v = random_floats(kMaxFloats, 70 + (unsigned)model_layer),
        *q = random_floats(kMaxFloats, 700 + (unsigned)model_layer);
  if (appends)
    EXPECT(TQ_OK, tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
  else
    REFUSES(TQ_ERROR_INVALID_ARGUMENT, "layer = 3: it shares the tokens of layer 1",
            tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
  EXPECT(TQ_OK, tq_cache_attend(cache, layer, batch, q, out, NULL, NULL, NULL, 0, NULL));
  free(k);
  free(v);
  free(q);
}

static void plan_step(tq_cache* cache, tq_batch** batch, tq_sequence* sequence) {
  const int64_t new_tokens = kTokens, queries = kQueries;
  *batch = make_batch(cache);
  *sequence = make_sequence(cache);
  EXPECT(TQ_OK, tq_batch_plan(*batch, 1, sequence, &new_tokens, &queries, NULL));
}

void test_layers(void) {
  tq_cache_config config = small_config();
  tq_layer_config layers[kLayers];
  make_layers(layers);
  config.num_layers = kLayers;
  config.layers = layers;
  tq_cache* cache = make_cache(&config);
  tq_cache_config resolved;
  EXPECT(TQ_OK, tq_cache_config_init(&resolved));
  EXPECT(TQ_OK, tq_cache_get_config(cache, &resolved));
  CHECK(resolved.layers != layers && resolved.layers[0].num_q_heads == 4 &&
        resolved.layers[0].head_dim == 64);
  CHECK(resolved.layers[1].value_bits == 16 && resolved.layers[3].head_dim == 96);
  CHECK(resolved.layers[3].num_q_heads == 3 && resolved.layers[3].num_kv_heads == 3);
  tq_batch* batch;
  tq_sequence sequence;
  plan_step(cache, &batch, &sequence);
  for (int layer = 0; layer < kLayers; layer++) {
    const struct Shape s = kShapes[layer];
    const size_t count = (size_t)kQueries * s.q_heads * s.value_dim;
    float *out = random_floats(count, 1), *alone_out = random_floats(count, 2);
    run_layer(cache, batch, layer, layer, layer != 3, out);
    /* The same layer in a cache of its own, at its place in the model. */
    tq_cache_config single = small_config();
    const int storage = layer == 3 ? 1 : layer;
    single.num_layers = 1;
    single.first_layer = storage;
    tq_layer_config sharer = layers[storage];
    sharer.num_q_heads = s.q_heads;
    single.layers = &sharer;
    tq_cache* alone = make_cache(&single);
    tq_batch* alone_batch;
    tq_sequence alone_sequence;
    plan_step(alone, &alone_batch, &alone_sequence);
    float *k = random_floats(kMaxFloats, 7 + (unsigned)storage),
          *v = random_floats(kMaxFloats, 70 + (unsigned)storage),
          *q = random_floats(kMaxFloats, 700 + (unsigned)layer);
    EXPECT(TQ_OK, tq_cache_append(alone, 0, alone_batch, k, v, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_attend(alone, 0, alone_batch, q, alone_out, NULL, NULL, NULL, 0, NULL));
    CHECK(memcmp(out, alone_out, count * sizeof *out) == 0);
    /* Decoded tokens too. */
    const size_t keys = (size_t)kTokens * s.kv_heads * s.dim;
    float *read = random_floats(keys, 3), *alone_read = random_floats(keys, 4);
    EXPECT(TQ_OK, tq_cache_read(cache, layer, sequence, 55, kTokens - 55, read, NULL, NULL, NULL));
    EXPECT(TQ_OK, tq_cache_read(alone, 0, alone_sequence, 55, kTokens - 55, alone_read, NULL, NULL, NULL));
    CHECK(memcmp(read, alone_read, (size_t)(kTokens - 55) * s.kv_heads * s.dim * sizeof *read) == 0);
    free(k), free(v), free(q), free(out), free(alone_out), free(read), free(alone_read);
    EXPECT(TQ_OK, tq_batch_destroy(alone_batch));
    EXPECT(TQ_OK, tq_cache_destroy(alone));
  }
  /* The layer's own window is the widest that a call may ask for. */
  tq_attend_params params;
  float *q = random_floats(kMaxFloats, 5), *out = random_floats(kMaxFloats, 6);
  EXPECT(TQ_OK, tq_attend_params_init(&params));
  params.sliding_window = 21;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "params.sliding_window = 21: the layer keeps",
          tq_cache_attend(cache, 2, batch, q, out, NULL, &params, NULL, 0, NULL));
  params.sliding_window = 5;
  EXPECT(TQ_OK, tq_cache_attend(cache, 2, batch, q, out, NULL, &params, NULL, 0, NULL));
  free(q), free(out);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
}
