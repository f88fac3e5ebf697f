/* SPDX-License-Identifier: Apache-2.0
 *
 * State that travels: a sequence into another cache by parts and as a stream, and every way in which the five
 * calls refuse: status, the argument's name and value, and nothing changed.
 */
#include "capi.h"

typedef struct {
  unsigned char bytes[1 << 17];
  size_t size, at;
  int fails; /* what the next call returns, 0 = it works */
} memory_file;

static int32_t write_file(void* user, const void* bytes, size_t count) {
  memory_file* file = user;
  if (file->fails || count > sizeof file->bytes - file->size) return file->fails ? file->fails : -1;
  memcpy(file->bytes + file->size, bytes, count);
  file->size += count;
  return 0;
}
static int32_t read_file(void* user, void* bytes, size_t count) {
  memory_file* file = user;
  if (file->fails) return file->fails;
  if (count > file->size - file->at) return 1;
  memcpy(bytes, file->bytes + file->at, count);
  file->at += count;
  return 0;
}
static int32_t no_mac(void* user, const void* bytes, size_t count, void* tag) {
  (void)user, (void)bytes, (void)count, (void)tag;
  return 5;
}
static memory_file* empty_file(void) { return calloc(1, sizeof(memory_file)); }
static tq_io io_of(memory_file* file) {
  tq_io io = {sizeof io, 0, NULL, write_file, read_file, NULL};
  io.user = file;
  return io;
}

static tq_state described(tq_cache* cache, tq_sequence sequence) {
  tq_state state = {0};
  state.struct_size = sizeof state;
  EXPECT(TQ_OK, tq_sequence_describe(cache, sequence, &state));
  return state;
}

static int same_rows(tq_cache* a, tq_batch* a_batch, tq_sequence x, tq_cache* b, tq_batch* b_batch,
                     tq_sequence y) {
  float *one = attend_last(a, a_batch, x, 2, 5), *other = attend_last(b, b_batch, y, 2, 5);
  const int same = memcmp(one, other, sizeof(float) * 2 * Q_HEADS * VALUE_DIM) == 0;
  free(one);
  free(other);
  return same;
}

/* A cache of some of the model's kv heads, and another page size. */
static tq_cache* other_cache(int32_t first_head, int32_t heads) {
  tq_cache_config config = small_config();
  config.page_size = 64;
  config.first_kv_head = first_head;
  config.num_kv_heads = heads;
  config.num_q_heads = heads * Q_HEADS / HEADS;
  return make_cache(&config);
}

void test_state_parts(void) {
  const tq_cache_config config = small_config();
  tq_cache *cache = make_cache(&config), *target = other_cache(0, HEADS), *rank = other_cache(1, 1);
  tq_batch *batch = make_batch(cache), *target_batch = make_batch(target);
  const tq_sequence a = make_sequence(cache), b = make_sequence(target), r = make_sequence(rank);
  EXPECT(TQ_OK, grow(cache, batch, a, 77, 1));
  tq_state state = described(cache, a);
  CHECK(state.num_layers == LAYERS && state.num_kv_heads == HEADS && state.num_tokens == 77);
  CHECK(state.io_dtype == 0 && state.exact_first == 77 && state.bytes > 0 && state.identity != 0);
  const size_t bytes = (size_t)state.bytes;
  unsigned char* memory = aligned(64, bytes + 64);
  memset(memory, 0xEE, bytes + 64);
  EXPECT(TQ_OK, tq_sequence_export(cache, a, &state, memory, bytes, NULL));
  CHECK(memory[bytes] == 0xEE);
  EXPECT(TQ_OK, tq_sequence_import(target, b, &state, memory, bytes, NULL));
  CHECK(length_of(target, b) == 77);
  CHECK(same_rows(cache, batch, a, target, target_batch, b));
  /* A rank has one kv head of the two. */
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.first_kv_head = 0: the cache has 1 .. 1",
          tq_sequence_import(rank, r, &state, memory, bytes, NULL));
  tq_state head = {0};
  head.struct_size = sizeof head;
  head.first_kv_head = 1, head.num_kv_heads = 1, head.first_token = 0, head.num_tokens = 50;
  EXPECT(TQ_OK, tq_sequence_describe(cache, a, &head));
  EXPECT(TQ_OK, tq_sequence_export(cache, a, &head, memory, bytes, NULL));
  EXPECT(TQ_OK, tq_sequence_import(rank, r, &head, memory, (size_t)head.bytes, NULL));
  CHECK(length_of(rank, r) == 50);
  /* An older caller's struct: what it does not know stays as it is. */
  tq_state old = described(cache, a);
  old.struct_size = offsetof(tq_state, bytes);
  old.bytes = -5;
  EXPECT(TQ_OK, tq_sequence_describe(cache, a, &old));
  CHECK(old.bytes == -5);
  free(memory);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_batch_destroy(target_batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(target));
  EXPECT(TQ_OK, tq_cache_destroy(rank));
}

static void refuses_description(tq_cache* cache, tq_sequence a) {
  tq_state state = {0};
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state = NULL", tq_sequence_describe(cache, a, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.struct_size", tq_sequence_describe(cache, a, &state));
  state.struct_size = sizeof state;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "cache = NULL", tq_sequence_describe(NULL, a, &state));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "sequence = 77", tq_sequence_describe(cache, 77, &state));
  state.first_layer = 2, state.num_layers = 1;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.first_layer = 2: the cache has 0 .. 1",
          tq_sequence_describe(cache, a, &state));
  state.first_layer = 1, state.num_layers = 2;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.num_layers = 2: the cache has 1 from 1 on",
          tq_sequence_describe(cache, a, &state));
  state.num_layers = 0, state.first_kv_head = 0, state.num_kv_heads = -1;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.num_kv_heads = -1", tq_sequence_describe(cache, a, &state));
  state.num_kv_heads = 0, state.first_token = 41;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.first_token = 41: the sequence has 40",
          tq_sequence_describe(cache, a, &state));
  state.first_token = 30, state.num_tokens = 11;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.num_tokens = 11: the sequence has 10",
          tq_sequence_describe(cache, a, &state));
}

static void refuses_parts(tq_cache* cache, tq_sequence a, tq_cache* target, tq_sequence b) {
  const tq_state state = described(cache, a);
  const size_t bytes = (size_t)state.bytes;
  unsigned char* memory = aligned(64, bytes + 64);
  tq_state wrong = state;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "memory = NULL",
          tq_sequence_export(cache, a, &state, NULL, bytes, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT,
          "memory = ", tq_sequence_export(cache, a, &state, memory + 8, bytes, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT,
          "bytes = ", tq_sequence_export(cache, a, &state, memory, bytes - 1, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT,
          "stream = ", tq_sequence_export(cache, a, &state, memory, bytes, memory));
  wrong.identity++;
  REFUSES(TQ_ERROR_INVALID_STATE, "state: ", tq_sequence_export(cache, a, &wrong, memory, bytes, NULL));
  EXPECT(TQ_OK, tq_sequence_export(cache, a, &state, memory, bytes, NULL));
  REFUSES(TQ_ERROR_INCOMPATIBLE,
          "state.identity = ", tq_sequence_import(target, b, &wrong, memory, bytes, NULL));
  wrong = state, wrong.num_tokens = 0;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state: num_layers = 2, num_tokens = 0",
          tq_sequence_import(target, b, &wrong, memory, bytes, NULL));
  wrong = state, wrong.io_dtype = 7;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state: exact_sinks = 0, exact_first = 40, io_dtype = 7",
          tq_sequence_import(target, b, &wrong, memory, bytes, NULL));
  wrong = state, wrong.rollback_tokens = INT64_MIN;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "state.rollback_tokens",
          tq_sequence_import(target, b, &wrong, memory, bytes, NULL));
  wrong = state, wrong.bytes += 64;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT,
          "state.bytes = ", tq_sequence_import(target, b, &wrong, memory, bytes + 64, NULL));
  wrong = state, wrong.first_token = 3, wrong.exact_sinks = 3, wrong.num_tokens = 29, wrong.exact_first = 32;
  wrong.bytes = wrong.bytes / 2;
  REFUSES(TQ_ERROR_INVALID_STATE, "state.first_token = 3: layer 0 of sequence ",
          tq_sequence_import(target, b, &wrong, memory, bytes, NULL));
  CHECK(length_of(target, b) == 0);
  free(memory);
}

static void refuses_streams(tq_cache* cache, tq_sequence a, tq_cache* target) {
  memory_file* file = empty_file();
  tq_io io = io_of(file);
  tq_sequence copy = -9;
  io.mac_bytes = 16;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.mac_bytes = 16: must be 0 without io.mac",
          tq_sequence_save(cache, a, &io, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.mac_bytes = 16", tq_sequence_load(target, &io, NULL, &copy));
  io.mac = no_mac;
  static const int32_t lengths[] = {-1, 0, 15, 65};
  for (int i = 0; i < 4; i++) {
    io.mac_bytes = lengths[i];
    REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.mac_bytes = ", tq_sequence_save(cache, a, &io, NULL));
    REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.mac_bytes = ", tq_sequence_load(target, &io, NULL, &copy));
  }
  io.mac_bytes = 16;
  REFUSES(TQ_ERROR_IO, "io.mac: returned 5", tq_sequence_save(cache, a, &io, NULL));
  file->size = 0;
  io.mac_bytes = 0, io.mac = NULL, io.write = NULL;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.write = NULL", tq_sequence_save(cache, a, &io, NULL));
  io.write = write_file, io.read = NULL;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io.read = NULL", tq_sequence_load(target, &io, NULL, &copy));
  EXPECT(TQ_OK, tq_sequence_save(cache, a, &io, NULL));
  io.read = read_file;
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "io = NULL", tq_sequence_save(cache, a, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "sequence = NULL", tq_sequence_load(target, &io, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_ARGUMENT, "stream = ", tq_sequence_load(target, &io, file, &copy));
  file->fails = 28;
  REFUSES(TQ_ERROR_IO, "io.write: returned 28", tq_sequence_save(cache, a, &io, NULL));
  REFUSES(TQ_ERROR_IO, "io.read: returned 28", tq_sequence_load(target, &io, NULL, &copy));
  file->fails = 0;
  file->size--;
  REFUSES(TQ_ERROR_CORRUPT_DATA, "saved sequence: ends after", tq_sequence_load(target, &io, NULL, &copy));
  file->size++, file->at = 0, file->bytes[0] ^= 1;
  REFUSES(TQ_ERROR_CORRUPT_DATA, "saved sequence: it does not begin as one",
          tq_sequence_load(target, &io, NULL, &copy));
  file->at = 0, file->bytes[0] ^= 1, file->bytes[8] = 2;
  REFUSES(TQ_ERROR_INCOMPATIBLE, "saved sequence: format version 2",
          tq_sequence_load(target, &io, NULL, &copy));
  file->at = 0, file->bytes[8] = 1, file->bytes[16] = 1;
  REFUSES(TQ_ERROR_INCOMPATIBLE, "saved sequence: features 0x1", tq_sequence_load(target, &io, NULL, &copy));
  file->at = 0, file->bytes[16] = 0;
  CHECK(copy == -9);
  EXPECT(TQ_OK, tq_sequence_load(target, &io, NULL, &copy));
  CHECK(length_of(target, copy) == 40 && file->at == file->size);
  EXPECT(TQ_OK, tq_sequence_free(target, copy, NULL));
  free(file);
}

void test_state_refusals(void) {
  const tq_cache_config config = small_config();
  tq_cache *cache = make_cache(&config), *target = other_cache(0, HEADS);
  tq_batch* batch = make_batch(cache);
  const tq_sequence a = make_sequence(cache), b = make_sequence(target);
  EXPECT(TQ_OK, grow(cache, batch, a, 40, 1));
  refuses_description(cache, a);
  refuses_parts(cache, a, target, b);
  refuses_streams(cache, a, target);
  /* Planned is not written. */
  const int64_t two = 2;
  memory_file* file = empty_file();
  const tq_io io = io_of(file);
  tq_state state = {0};
  state.struct_size = sizeof state;
  EXPECT(TQ_OK, tq_batch_plan(batch, 1, &a, &two, NULL, NULL));
  REFUSES(TQ_ERROR_INVALID_STATE, "state: layer 0 of sequence ", tq_sequence_describe(cache, a, &state));
  REFUSES(TQ_ERROR_INVALID_STATE, "state: layer 0 of sequence ", tq_sequence_save(cache, a, &io, NULL));
  CHECK(file->size == 0);
  state.num_tokens = 40;
  EXPECT(TQ_OK, tq_sequence_describe(cache, a, &state));
  free(file);
  EXPECT(TQ_OK, tq_batch_destroy(batch));
  EXPECT(TQ_OK, tq_cache_destroy(cache));
  EXPECT(TQ_OK, tq_cache_destroy(target));
}
