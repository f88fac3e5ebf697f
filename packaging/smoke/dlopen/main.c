/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program that needs the library only when it runs: main LIBRARY, by default the SONAME. Opens it
 * RTLD_LOCAL, resolves every function that it calls before the first call, names the missing one.
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <tqkv.h>

/* The functions this program calls; the pointer types come from the header's declarations. */
/* clang-format off */
#define FUNCTIONS(X) \
  X(tq_version) X(tq_abi_version) X(tq_status_name) X(tq_last_error) \
  X(tq_cache_config_init) X(tq_cache_create) X(tq_cache_destroy) X(tq_sequence_create) \
  X(tq_batch_create) X(tq_batch_plan) X(tq_batch_destroy) X(tq_cache_append) \
  X(tq_cache_attend)
/* clang-format on */
#define MEMBER(f) __typeof__(f)* f##_;
static struct { FUNCTIONS(MEMBER) } api;
#define TQ_CALL(f) api.f##_
#include "../job.h"

static void* resolve(void* library, const char* name, int* missing) {
  void* symbol = dlsym(library, name);
  if (!symbol) {
    fprintf(stderr, "the library lacks %s: %s\n", name, dlerror());
    *missing = 1;
  }
  return symbol;
}

int main(int argc, char** argv) {
  int missing = 0;
  void *library = dlopen(argc > 1 ? argv[1] : "libtqkv.so.0", RTLD_NOW | RTLD_LOCAL), *symbol;
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  /* memcpy: ISO C knows no cast from an object pointer to a function pointer. */
#define RESOLVE(f) symbol = resolve(library, #f, &missing), memcpy(&api.f##_, &symbol, sizeof symbol);
  FUNCTIONS(RESOLVE)
  if (missing) return 2;
  return smoke_job() || dlclose(library) ? 1 : 0;
}
