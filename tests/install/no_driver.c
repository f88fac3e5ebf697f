/* SPDX-License-Identifier: Apache-2.0
 *
 * no_driver LIBRARY, a build with CUDA, on a machine without NVIDIA's driver: it loads, CPU caches work, and
 * CUDA requests are answered by a status and a text. Prints "ok - " and "not ok - " lines, or "skip - " where
 * there is a driver.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <tqkv.h>

/* clang-format off */
#define FUNCTIONS(X) \
  X(tq_build_info) X(tq_last_error) X(tq_status_name) X(tq_device_count) X(tq_device_get_info) \
  X(tq_cache_config_init) X(tq_cache_create) X(tq_cache_destroy)
/* clang-format on */
#define MEMBER(f) static __typeof__(f)* f##_;
FUNCTIONS(MEMBER)

static int bad = 0;

static void report(int good, const char* what) {
  printf("%s - %s\n", good ? "ok" : "not ok", what);
  if (!good) printf("    %s\n", tq_last_error_ ? tq_last_error_() : "");
  bad |= !good;
}

static tq_status create(tq_device_type device, tq_cache** cache) {
  tq_cache_config config;
  const tq_status status = tq_cache_config_init_(&config);
  if (status) return status;
  config.device_type = device;
  config.num_layers = config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = 128;
  config.io_dtype = TQ_F32;
  config.key_bits = config.value_bits = 4;
  config.max_tokens = 64;
  return tq_cache_create_(&config, NULL, cache);
}

int main(int argc, char** argv) {
  void *library, *symbol;
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    puts("skip - a machine without a driver: this one has libcuda.so.1");
    return 0;
  }
  library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  report(library != NULL, "without a driver: the library loads");
  if (!library) {
    puts(dlerror());
    return 1;
  }
#define RESOLVE(f)             \
  symbol = dlsym(library, #f); \
  if (!symbol) return 2;       \
  memcpy(&f##_, &symbol, sizeof symbol);
  FUNCTIONS(RESOLVE)
  report(strstr(tq_build_info_(), "cuda off") == NULL, "without a driver: this library has CUDA");

  int32_t count = -1;
  report(tq_device_count_(TQ_DEVICE_CUDA, &count) == TQ_OK && count == 0,
         "without a driver: tq_device_count is OK and counts 0");
  tq_device_info info = {0};
  info.struct_size = sizeof info;
  report(tq_device_get_info_(TQ_DEVICE_CUDA, 0, &info) == TQ_ERROR_NO_DEVICE,
         "without a driver: tq_device_get_info is NO_DEVICE");

  tq_cache* cache = NULL;
  const tq_status status = create(TQ_DEVICE_CUDA, &cache);
  report((status == TQ_ERROR_DRIVER || status == TQ_ERROR_NO_DEVICE) && cache == NULL,
         "without a driver: creating a CUDA cache is DRIVER or NO_DEVICE");
  const char* text = tq_last_error_();
  report(strstr(text, "CUDA") != NULL && strlen(text) >= 20, "without a driver: the text says so");
  printf("  %s: %s\n", tq_status_name_(status), text);
  report(create(TQ_DEVICE_CPU, &cache) == TQ_OK && tq_cache_destroy_(cache) == TQ_OK,
         "without a driver: a CPU cache works");
  report(dlclose(library) == 0, "without a driver: dlclose");
  return bad;
}
