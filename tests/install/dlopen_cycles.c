/* SPDX-License-Identifier: Apache-2.0
 *
 * dlopen_cycles LIBRARY: opens and closes the library 1,000 times: bare; with a cache and its threads made
 * and destroyed in between; and with a cache alive all the while. File descriptors, threads and mappings must
 * not grow, and the code stays mapped after dlclose (nodelete): a thread that still runs in it, or a pointer
 * that outlived the handle, is never cut off. Prints "ok - " and "not ok - " lines.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tqkv.h>
#include <unistd.h>

enum { kCycles = 1000, kTokens = 32, kDim = 32, kThreads = 4 };

static int bad = 0;

static void report(int good, const char* what) {
  printf("%s - %s\n", good ? "ok" : "not ok", what);
  bad |= !good;
}

static int entries(const char* folder) {
  int count = -2; /* . and .. */
  DIR* open = opendir(folder);
  if (!open) return -1;
  while (readdir(open)) count++;
  closedir(open);
  return count;
}

/* A joined thread stays in the list for a moment after pthread_join. */
static int threads_become(int expected) {
  const struct timespec moment = {0, 1000000};
  for (int i = 0; i < 2000 && entries("/proc/self/task") != expected; i++) nanosleep(&moment, NULL);
  return entries("/proc/self/task") == expected;
}

static int mappings_of(const char* path) {
  char line[4096];
  int count = 0;
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return -1;
  while (fgets(line, sizeof line, maps)) count += strstr(line, path) != NULL;
  fclose(maps);
  return count;
}

struct Api {
  void* handle;
/* clang-format off */
#define FUNCTIONS(X) \
  X(tq_version) X(tq_last_error) X(tq_cache_config_init) X(tq_cache_create) X(tq_cache_destroy) \
  X(tq_sequence_create) X(tq_batch_create) X(tq_batch_plan) X(tq_batch_destroy) X(tq_cache_append) \
  X(tq_cache_attend)
/* clang-format on */
#define MEMBER(f) __typeof__(f)* f##_;
  FUNCTIONS(MEMBER)
};

static int open_library(struct Api* api, const char* path) {
  void* symbol;
  api->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!api->handle) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
#define RESOLVE(f)                 \
  symbol = dlsym(api->handle, #f); \
  if (!symbol) return 1;           \
  memcpy(&api->f##_, &symbol, sizeof symbol);
  FUNCTIONS(RESOLVE)
  return 0;
}

static int create(const struct Api* api, tq_cache** cache) {
  tq_cache_config config;
  if (api->tq_cache_config_init_(&config)) return 1;
  config.num_layers = 1;
  config.num_q_heads = config.num_kv_heads = 4;
  config.head_dim = kDim;
  config.io_dtype = TQ_F32;
  config.key_bits = config.value_bits = 4;
  config.max_tokens = kTokens * 2 * kCycles;
  config.num_threads = kThreads;
  return api->tq_cache_create_(&config, NULL, cache);
}

/* Appends and attends, so that the pool's threads have run. */
static int use(const struct Api* api, tq_cache* cache, tq_batch* batch, tq_sequence sequence) {
  static float k[kTokens * 4 * kDim], q[kTokens * 4 * kDim], out[kTokens * 4 * kDim];
  const int64_t tokens = kTokens;
  for (int i = 0; i < kTokens * 4 * kDim; i++) k[i] = q[i] = (float)(i % 7) - 3.0f;
  return api->tq_batch_plan_(batch, 1, &sequence, &tokens, NULL, NULL) ||
         api->tq_cache_append_(cache, 0, batch, k, k, NULL, NULL) ||
         api->tq_cache_attend_(cache, 0, batch, q, out, NULL, NULL, NULL, 0, NULL);
}

static int live_cache(const struct Api* api, int* most_threads) {
  tq_cache* cache = NULL;
  tq_batch* batch = NULL;
  tq_sequence sequence = 0;
  if (create(api, &cache) || api->tq_batch_create_(cache, &batch) ||
      api->tq_sequence_create_(cache, &sequence) || use(api, cache, batch, sequence))
    return 1;
  const int threads = entries("/proc/self/task");
  if (threads > *most_threads) *most_threads = threads;
  return api->tq_batch_destroy_(batch) || api->tq_cache_destroy_(cache);
}

int main(int argc, char** argv) {
  struct Api api, again;
  if (argc != 2 || open_library(&api, argv[1])) return 2;
  const char* (*version)(void) = api.tq_version_;
  Dl_info place;
  char path[4096];
  if (!dladdr(*(void**)(void*)&version, &place) || !realpath(place.dli_fname, path)) return 2;
  const int descriptors = entries("/proc/self/fd"), threads = entries("/proc/self/task"),
            mappings = mappings_of(path);
  report(mappings > 0 && threads == 1, "loading starts no thread");

  dlclose(api.handle);
  report(mappings_of(path) == mappings && version()[0] != 0,
         "after dlclose the code is still mapped and callable");

  int good = 1;
  for (int i = 0; good && i < kCycles; i++)
    good = !open_library(&again, argv[1]) && again.tq_version_ == version && !dlclose(again.handle);
  report(good, "1,000 times opened and closed: the same addresses");

  int most_threads = 0;
  good = 1;
  for (int i = 0; good && i < kCycles; i++)
    good = !open_library(&again, argv[1]) && !live_cache(&again, &most_threads) && !dlclose(again.handle);
  report(good, "1,000 times with a cache and its threads in between");
  if (!good) fprintf(stderr, "%s\n", again.tq_last_error_());
  report(most_threads > 1, "those caches had threads");
  report(threads_become(threads), "no thread is left");

  tq_cache* cache = NULL;
  tq_batch* batch = NULL;
  tq_sequence sequence = 0;
  good = !open_library(&api, argv[1]) && !create(&api, &cache) && !api.tq_batch_create_(cache, &batch) &&
         !api.tq_sequence_create_(cache, &sequence);
  good = good && !dlclose(api.handle);
  for (int i = 0; good && i < kCycles; i++)
    good = !open_library(&again, argv[1]) && !use(&again, cache, batch, sequence) && !dlclose(again.handle);
  report(good, "1,000 times around a live cache, used through every new handle and after the last close");
  if (!good) fprintf(stderr, "%s\n", api.tq_last_error_());
  report(!api.tq_batch_destroy_(batch) && !api.tq_cache_destroy_(cache),
         "the cache is destroyed after the last dlclose");

  report(threads_become(threads), "as many threads as at first");
  report(entries("/proc/self/fd") == descriptors, "as many file descriptors as at first");
  report(mappings_of(path) == mappings, "as many mappings of the library as at first");
  return bad;
}
