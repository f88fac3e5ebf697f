/* SPDX-License-Identifier: Apache-2.0
 *
 * A prompt cache on disk: prompt_cache FILE. The first run computes the prompt's keys and values and saves
 * them; a later one, another process, loads them instead. Both answer with the same bits, which the hash in
 * the last line shows. The file appears whole or not at all, whenever the program is killed: it is written
 * beside its place, synced, renamed, and its folder synced.
 *
 * Build: cc prompt_cache.c $(pkg-config --cflags --libs tqkv)
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tqkv.h"

enum { kLayers = 2, kHeads = 4, kDim = 64, kPrompt = 96, kRow = kHeads * kDim };

#define CHECK(call)                                                                     \
  do {                                                                                  \
    const tq_status status_ = (call);                                                   \
    if (status_ != TQ_OK) {                                                             \
      fprintf(stderr, "%s: %s: %s\n", #call, tq_status_name(status_), tq_last_error()); \
      return 1;                                                                         \
    }                                                                                   \
  } while (0)

/* In place of a model: numbers that follow from where they stand. */
static void numbers(float* out, int count, uint32_t state) {
  for (int i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    out[i] = (float)((int)((state >> 16) % 2048u) - 1024) / 1024.0f;
  }
}

static int32_t write_some(void* user, const void* bytes, size_t count) {
  return fwrite(bytes, 1, count, user) == count ? 0 : -1;
}
static int32_t read_some(void* user, void* bytes, size_t count) {
  return fread(bytes, 1, count, user) == count ? 0 : ferror((FILE*)user) ? -1 : 1;
}

static int prefill(tq_cache* cache, tq_batch* batch, tq_sequence* sequence) {
  static float k[kPrompt * kRow], v[kPrompt * kRow];
  const int64_t tokens = kPrompt, queries = 0;
  CHECK(tq_sequence_create(cache, sequence));
  CHECK(tq_batch_plan(batch, 1, sequence, &tokens, &queries, NULL));
  for (int32_t layer = 0; layer < kLayers; layer++) {
    numbers(k, kPrompt * kRow, 2 * (uint32_t)layer);
    numbers(v, kPrompt * kRow, 2 * (uint32_t)layer + 1);
    CHECK(tq_cache_append(cache, layer, batch, k, v, NULL, NULL));
  }
  return 0;
}

static int save(tq_cache* cache, tq_sequence sequence, const char* path) {
  char beside[4096], folder[4096];
  tq_io io = {sizeof io, 0, NULL, write_some, NULL, NULL};
  snprintf(beside, sizeof beside, "%s.%ld.tmp", path, (long)getpid());
  snprintf(folder, sizeof folder, "%s", path);
  FILE* file = fopen(beside, "wbx");
  if (!file) return perror(beside), 1;
  io.user = file;
  CHECK(tq_sequence_save(cache, sequence, &io, NULL));
  if (fflush(file) != 0 || fsync(fileno(file)) != 0 || fclose(file) != 0 || rename(beside, path) != 0)
    return perror(beside), 1;
  const int number = open(dirname(folder), O_RDONLY);
  if (number < 0 || fsync(number) != 0 || close(number) != 0) return perror(folder), 1;
  return 0;
}

static int load(tq_cache* cache, FILE* file, tq_sequence* sequence) {
  const tq_io io = {sizeof io, 0, file, NULL, read_some, NULL};
  CHECK(tq_sequence_load(cache, &io, NULL, sequence));
  return fclose(file);
}

int main(int argc, char** argv) {
  if (argc != 2) return fprintf(stderr, "usage: prompt_cache FILE\n"), 2;
  tq_cache_config config;
  tq_cache* cache;
  tq_batch* batch;
  tq_sequence sequence;
  CHECK(tq_cache_config_init(&config));
  config.num_layers = kLayers, config.num_q_heads = config.num_kv_heads = kHeads, config.head_dim = kDim;
  config.io_dtype = TQ_F32, config.key_bits = 4, config.value_bits = 4, config.max_tokens = 2 * kPrompt;
  CHECK(tq_cache_create(&config, NULL, &cache));
  CHECK(tq_batch_create(cache, &batch));
  FILE* file = fopen(argv[1], "rb");
  printf("%s\n", file ? "loaded" : "computed and saved");
  if (file ? load(cache, file, &sequence)
           : prefill(cache, batch, &sequence) || save(cache, sequence, argv[1]))
    return 1;
  float q[kRow], out[kRow];
  const int64_t none = 0, one = 1;
  uint64_t hash = 0;
  CHECK(tq_batch_plan(batch, 1, &sequence, &none, &one, NULL));
  for (int32_t layer = 0; layer < kLayers; layer++) {
    numbers(q, kRow, 99 + (uint32_t)layer);
    CHECK(tq_cache_attend(cache, layer, batch, q, out, NULL, NULL, NULL, 0, NULL));
    for (int i = 0; i < kRow; i++) {
      uint32_t bits;
      memcpy(&bits, &out[i], sizeof bits);
      hash = (hash ^ bits) * 0x9E3779B97F4A7C15u;
    }
  }
  printf("answer %016llx\n", (unsigned long long)hash);
  CHECK(tq_batch_destroy(batch));
  CHECK(tq_cache_destroy(cache));
  return 0;
}
