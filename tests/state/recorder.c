/* SPDX-License-Identifier: Apache-2.0 */
/* Loaded in front of libc (LD_PRELOAD): writes down what a process does to files in the folder RECORD_FOLDER,
 * one line a call, to the file RECORD_LOG. Other calls that write go unseen; test_crash.py notices, as the
 * bytes then do not add up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int watched[1024];

static void note(const char* what, int file, long count, const char* path, const char* to) {
  static int (*open_)(const char*, int, ...);
  static ssize_t (*write_)(int, const void*, size_t);
  static int log = -1;
  char line[8192];
  if (log < 0) {
    *(void**)&open_ = dlsym(RTLD_NEXT, "open");
    *(void**)&write_ = dlsym(RTLD_NEXT, "write");
    log = open_(getenv("RECORD_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  }
  const int length = snprintf(line, sizeof line, "%s\t%d\t%ld\t%s\t%s\n", what, file, count, path, to);
  if (length <= 0 || write_(log, line, (size_t)length) != length) abort();
}

static int inside(const char* path) {
  const char* folder = getenv("RECORD_FOLDER");
  return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int opened(int file, int flags, const char* path) {
  if (file >= 0 && file < 1024 && inside(path)) {
    watched[file] = 1;
    note(flags & O_CREAT ? "create" : "open", file, flags & O_TRUNC, path, "");
  }
  return file;
}

#define OPENS(name)                                           \
  int name(const char* path, int flags, ...) {                \
    static int (*real)(const char*, int, ...);                \
    va_list rest;                                             \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);      \
    va_start(rest, flags);                                    \
    const int mode = flags & O_CREAT ? va_arg(rest, int) : 0; \
    va_end(rest);                                             \
    return opened(real(path, flags, mode), flags, path);      \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                           \
  int name(int folder, const char* path, int flags, ...) {       \
    static int (*real)(int, const char*, int, ...);              \
    va_list rest;                                                \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);         \
    va_start(rest, flags);                                       \
    const int mode = flags & O_CREAT ? va_arg(rest, int) : 0;    \
    va_end(rest);                                                \
    return opened(real(folder, path, flags, mode), flags, path); \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

static int is_watched(int file) { return file >= 0 && file < 1024 && watched[file]; }

ssize_t write(int file, const void* bytes, size_t count) {
  static ssize_t (*real)(int, const void*, size_t);
  if (!real) *(void**)&real = dlsym(RTLD_NEXT, "write");
  const ssize_t wrote = real(file, bytes, count);
  if (is_watched(file) && wrote > 0) note("write", file, (long)wrote, "", "");
  return wrote;
}

#define SYNCS(name)                                                     \
  int name(int file) {                                                  \
    static int (*real)(int);                                            \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);                \
    const int result = real(file);                                      \
    if (is_watched(file) && result == 0) note("sync", file, 0, "", ""); \
    return result;                                                      \
  }
SYNCS(fsync)
SYNCS(fdatasync)

int close(int file) {
  static int (*real)(int);
  if (!real) *(void**)&real = dlsym(RTLD_NEXT, "close");
  if (is_watched(file)) watched[file] = 0;
  return real(file);
}

int rename(const char* from, const char* to) {
  static int (*real)(const char*, const char*);
  if (!real) *(void**)&real = dlsym(RTLD_NEXT, "rename");
  const int result = real(from, to);
  if (result == 0 && inside(to)) note("rename", -1, 0, from, to);
  return result;
}
