/* SPDX-License-Identifier: Apache-2.0
 *
 * tqkv: a KV cache held as 2-8 bit TurboQuant codes (arXiv 2504.19874), and attention straight on the codes.
 *
 * The whole job in five calls:
 *
 *     tq_cache_config cfg;  tq_cache_config_init(&cfg);          // then set the shapes
 *     tq_cache *cache;      tq_cache_create(&cfg, NULL, &cache);
 *     tq_batch_plan(batch, 1, &sequence, &new_tokens, NULL, NULL);    // once a step
 *     tq_cache_append(cache, layer, batch, k, v, NULL, NULL);         // once a layer
 *     tq_cache_attend(cache, layer, batch, q, out, NULL, NULL, NULL, 0, NULL);
 *
 * Rules that hold for every call
 *   Status     Every call returns tq_status, 0 = TQ_OK, unless its comment says otherwise. Outputs are written only on TQ_OK,
 *              and a failed call has changed nothing observable. tq_last_error() names the argument and prints the values.
 *   Structs    First field struct_size = sizeof the struct as compiled by the caller; all other fields zero = default. Structs only
 *              ever grow at the end: a smaller size is accepted, a larger one only if the unknown tail is zero (else TQ_ERROR_VERSION).
 *   Handles    Opaque; NULL is accepted only by the destroy calls.
 *   Streams    A stream is a cudaStream_t passed as void *; NULL is the legacy default stream. CPU caches work before they
 *              return, and their stream must be NULL. append and attend never allocate, synchronise or move an address, so
 *              they may be captured in a CUDA graph; tq_batch_plan runs outside the graph, between replays.
 *   Pointers   k, v, q, out and lse live on the cache's device. Inputs are borrowed until the stream has passed the call
 *              (CPU: until it returns). Host arrays (ids, counts, config arrays) are copied before the call returns.
 *   Threads    Different caches are independent. One cache: one thread at a time, except that several tq_cache_attend calls
 *              may run at once when each brings its own workspace and nothing else runs. A violation that is noticed returns
 *              TQ_ERROR_INVALID_STATE with "busy" in the text; it is not always noticed.
 *   Units      Strides in elements, sizes in bytes, lengths and capacities in tokens, LSE in natural logarithm.
 *   RoPE       is applied by the caller before append and attend.
 *
 * Nothing here throws, aborts, prints, installs signal handlers or runs at exit.
 */
#ifndef TQKV_H
#define TQKV_H

#include <stddef.h>
#include <stdint.h>

#define TQ_VERSION_MAJOR 0
#define TQ_VERSION_MINOR 1
#define TQ_VERSION_PATCH 0
/* Grows with every incompatible change of this header; equals the SONAME's number. */
#define TQ_ABI_VERSION 0

#if defined(TQ_BUILDING_LIBRARY) && (defined(__GNUC__) || defined(__clang__))
#define TQ_API __attribute__((visibility("default")))
#else
#define TQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Status ---------------------------------------------------------------------------------------------------- */

typedef int32_t tq_status;
#define TQ_OK 0
#define TQ_ERROR_INVALID_ARGUMENT 1     /* a value is out of range or inconsistent; the text names it */
#define TQ_ERROR_INVALID_STATE 2        /* right arguments, wrong moment: centres after an append, append without a plan, busy */
#define TQ_ERROR_OUT_OF_MEMORY 3        /* host or device allocation failed */
#define TQ_ERROR_CAPACITY 4             /* max_tokens, max_sequences or a batch limit is used up */
#define TQ_ERROR_NOT_SUPPORTED 5        /* valid, but not in this build or not for this configuration */
#define TQ_ERROR_NO_DEVICE 6            /* no such device */
#define TQ_ERROR_DRIVER 7               /* the driver is absent or too old */
#define TQ_ERROR_CUDA 8                 /* a CUDA call failed; the text has the CUDA error's name */
#define TQ_ERROR_VERSION 9              /* struct from a newer header uses a field that this library does not know */
#define TQ_ERROR_CORRUPT_DATA 10        /* saved bytes fail their checks */
#define TQ_ERROR_INCOMPATIBLE 11        /* saved bytes are of another format, geometry or codebook */
#define TQ_ERROR_WORKSPACE_TOO_SMALL 12 /* the text says how many bytes are needed */
#define TQ_ERROR_CAPTURE 13             /* not allowed while the stream is being captured */
#define TQ_ERROR_IO 14
#define TQ_ERROR_INTERNAL 99            /* a bug in this library */

/* Name of a status, "TQ_OK" .. "TQ_ERROR_INTERNAL", or "TQ_ERROR_UNKNOWN". Never NULL; static storage. Any thread. */
TQ_API const char *tq_status_name(tq_status status);

/* Text about the last failed call of the calling thread, "" if there was none. Never NULL; valid until the thread's next tq_ call. A
 * success does not clear it. */
TQ_API const char *tq_last_error(void);

/* Copies that text. buffer: capacity bytes, always NUL-terminated when capacity > 0, cut if short; may be NULL with capacity 0.
 * needed: bytes with the NUL; may be NULL. Always TQ_OK unless buffer is NULL with capacity > 0 (INVALID_ARGUMENT). */
TQ_API tq_status tq_last_error_copy(char *buffer, size_t capacity, size_t *needed);

/* ---- 2. Introspection ---------------------------------------------------------------------------------------------- */

/* "0.1.0"; static storage. */
TQ_API const char *tq_version(void);
/* TQ_ABI_VERSION of the library in hand. */
TQ_API int32_t tq_abi_version(void);
/* One line: version, compiler, CUDA architectures or "cuda off", SIMD paths compiled and the one in use, format version. Static storage. */
TQ_API const char *tq_build_info(void);

/* sizeof of a public struct inside the library, 0 for an unknown id: lets a binding check its layout at load time. */
#define TQ_STRUCT_CACHE_CONFIG 1
#define TQ_STRUCT_CACHE_BYTES 2
#define TQ_STRUCT_CACHE_MEMORY 3
#define TQ_STRUCT_TENSOR_LAYOUT 4
#define TQ_STRUCT_ATTEND_PARAMS 5
#define TQ_STRUCT_DEVICE_INFO 6
#define TQ_STRUCT_CODEBOOK 7
#define TQ_STRUCT_ALLOCATOR 8
TQ_API size_t tq_struct_size(int32_t struct_id);

typedef int32_t tq_device_type;
#define TQ_DEVICE_CPU 1
#define TQ_DEVICE_CUDA 2

typedef struct tq_device_info {
  uint32_t struct_size;
  int32_t device_type;         /* TQ_DEVICE_CPU or TQ_DEVICE_CUDA */
  int32_t device_id;           /* CUDA ordinal; 0 for the CPU */
  int32_t compute_major;       /* CUDA compute capability; 0 for the CPU */
  int32_t compute_minor;
  int32_t num_units;           /* multiprocessors; CPU: hardware threads this process may use */
  int64_t memory_bytes;        /* total; 0 if unknown */
  char name[128];              /* device name; CPU: the SIMD path in use, such as "avx3_dl" */
} tq_device_info;

/* Number of devices of a type. CUDA on a machine without a driver, or in a build without CUDA: 0 and TQ_OK. The CPU counts as 1. */
TQ_API tq_status tq_device_count(tq_device_type type, int32_t *count);
/* info->struct_size must be set. NO_DEVICE if index is not below the count. */
TQ_API tq_status tq_device_get_info(tq_device_type type, int32_t index, tq_device_info *info);

/* ---- 3. Configuration ---------------------------------------------------------------------------------------------- */

typedef int32_t tq_dtype;
#define TQ_F32 1
#define TQ_F16 2
#define TQ_BF16 3

typedef int32_t tq_rotation;
#define TQ_ROTATION_HADAMARD 1 /* random signs + Hadamard: O(d log d); the default */
#define TQ_ROTATION_DENSE 2    /* QR of a seeded Gaussian matrix, as in the paper: O(d^2), CPU only, for faithful runs */

typedef int32_t tq_scale_rule;
#define TQ_SCALE_LS 1       /* least squares: smallest error of a vector; default for keys */
#define TQ_SCALE_UNBIASED 2 /* no shrinkage: averages over tokens stay right; default for values */
#define TQ_SCALE_NORM 3     /* the vector keeps its length */
#define TQ_SCALE_PAPER 4    /* |x| times the published codebook; scale search is off with it */

typedef int32_t tq_code_family;
#define TQ_CODE_SCALAR 1 /* Lloyd-Max levels for each coordinate (TurboQuant_mse) */

/* A codebook of the caller's own: 2^(bits-1) magnitudes, rising, on the int8 grid; level = unit * magnitude for coordinates of unit
 * variance. bits <= 3: magnitudes 1..127 are integers. bits 4..6: a magnitude m in 0..127 stands for m + 1/2. */
typedef struct tq_codebook {
  uint32_t struct_size;
  int32_t bits; /* 2 .. 6 */
  float unit;   /* > 0 */
  uint8_t magnitude[32];
} tq_codebook;

/* Memory callbacks; both or neither. alloc returns NULL on failure; alignment is a power of two <= 4096. device_type says which memory
 * is meant; CUDA memory must be usable on device_id in stream order. Called only in create and destroy calls. */
typedef struct tq_allocator {
  uint32_t struct_size;
  uint32_t reserved;
  void *user;
  void *(*alloc)(void *user, size_t bytes, size_t alignment, int32_t device_type, int32_t device_id);
  void (*free)(void *user, void *pointer, size_t bytes, int32_t device_type, int32_t device_id);
} tq_allocator;

#define TQ_FLAG_NO_ZERO_ON_FREE 1u    /* do not scrub the pages that free, truncate and destroy give back, nor the exact copies of freed sequences */
#define TQ_FLAG_NO_SCALE_SEARCH 2u    /* encoder: one quantisation step instead of the best of several (up to 20 % more error) */

typedef struct tq_cache_config {
  uint32_t struct_size;
  int32_t device_type;     /* 0 = CPU */
  int32_t device_id;
  int32_t num_layers;      /* required, >= 1 */
  int32_t num_q_heads;     /* required; a multiple of num_kv_heads */
  int32_t num_kv_heads;    /* required, >= 1 */
  int32_t head_dim;        /* required: 32 64 80 96 112 128 160 192 224 256 512 576 */
  int32_t value_dim;       /* 0 = head_dim; same list */
  int32_t io_dtype;        /* type of k, v, q and out; required */
  int32_t key_bits;        /* 2 3 4 5 6 8, or 16 = raw; required unless layer_key_bits is given */
  int32_t value_bits;
  int32_t code_family;     /* 0 = TQ_CODE_SCALAR */
  const int32_t *layer_key_bits;   /* [num_layers] or NULL: bits per layer, overriding key_bits where not 0 */
  const int32_t *layer_value_bits;
  int32_t rotation;        /* 0 = TQ_ROTATION_HADAMARD */
  int32_t key_scale_rule;  /* 0 = TQ_SCALE_LS */
  int32_t value_scale_rule;/* 0 = TQ_SCALE_UNBIASED */
  int32_t page_size;       /* tokens, a multiple of 32, <= 4096; 0 = 64 */
  uint64_t rotation_seed;  /* any value */
  const tq_codebook *key_codebook;   /* NULL = built in; used by coded layers of exactly these bits */
  const tq_codebook *value_codebook;
  int64_t max_tokens;      /* required: tokens that the pool holds over all sequences, whatever their lengths */
  int64_t max_sequence_tokens; /* longest sequence; 0 = max_tokens */
  int32_t max_sequences;   /* 0 = 1 */
  int32_t max_batch_sequences; /* sequences in one plan; 0 = max_sequences */
  int64_t max_batch_tokens;/* new tokens, and query tokens, in one plan, each; 0 = max_tokens */
  int32_t window_tokens;   /* last tokens of a sequence read exactly, from raw copies beside the codes; 0 = none */
  int32_t sink_tokens;     /* first tokens likewise */
  int32_t rollback_tokens; /* raw copies kept behind the window, so that truncate by up to this many keeps the window whole */
  int32_t num_threads;     /* CPU: 0 = all that the process may use, 1 = the caller's thread only */
  uint64_t flags;          /* TQ_FLAG_* */
  const tq_allocator *allocator;   /* NULL = malloc / cudaMalloc; copied */
  void *pool;              /* caller's memory for the pages on the cache's device, 256-byte aligned, or NULL */
  int64_t pool_bytes;      /* >= page_bytes of tq_cache_config_bytes when pool is given */
} tq_cache_config;

/* What a cache of this configuration allocates, exactly. */
typedef struct tq_cache_bytes {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t page_bytes;      /* all pages of all layers: the codes and their scales */
  int64_t raw_bytes;       /* exact window, rollback and sink copies */
  int64_t table_bytes;     /* rotation signs or matrices, centres, page tables, flags */
  int64_t workspace_bytes; /* the cache's own attend workspace */
  int64_t device_bytes;    /* of all that: on the device (0 for CPU caches) */
  int64_t host_bytes;      /* of all that: on the host, bookkeeping included */
  int64_t num_pages;       /* pages per layer; page ids run below it */
  int64_t token_bytes;     /* stored bytes of one token over all layers and heads, scales included */
  int64_t fp16_token_bytes;/* the same token as float16 */
} tq_cache_bytes;

/* Zeroes *config and sets struct_size. NULL: INVALID_ARGUMENT. */
TQ_API tq_status tq_cache_config_init(tq_cache_config *config);

/* Can this library run the configuration? TQ_OK, or the status that tq_cache_create would return; then text holds every reason,
 * one a line, each naming its field. text: capacity bytes, NUL-terminated, cut if short; may be NULL with capacity 0. Allocates nothing
 * on a device. Any thread. */
TQ_API tq_status tq_cache_config_check(const tq_cache_config *config, char *text, size_t capacity);

/* Fills *bytes (struct_size set) with what tq_cache_create would allocate. Status as tq_cache_config_check. */
TQ_API tq_status tq_cache_config_bytes(const tq_cache_config *config, tq_cache_bytes *bytes);

/* ---- 4. Cache ------------------------------------------------------------------------------------------------------ */

typedef struct tq_cache tq_cache;
typedef struct tq_batch tq_batch;
typedef int64_t tq_sequence; /* slot and generation: the id of a freed sequence stays invalid. 0 is never a valid id */

/* Creates a cache and allocates all it will ever need. config is copied, its arrays too. Status: INVALID_ARGUMENT, VERSION,
 * NOT_SUPPORTED, NO_DEVICE, DRIVER, OUT_OF_MEMORY, CUDA; CAPTURE if stream is being captured. */
TQ_API tq_status tq_cache_create(const tq_cache_config *config, void *stream, tq_cache **cache);

/* Frees the cache; NULL is accepted. Waits for the work that the cache itself enqueued. All its batches must be destroyed first
 * (INVALID_STATE otherwise, nothing freed). */
TQ_API tq_status tq_cache_destroy(tq_cache *cache);

/* The configuration with every default resolved; config->struct_size set by the caller. The arrays and codebooks it points to belong to the
 * cache. */
TQ_API tq_status tq_cache_get_config(const tq_cache *cache, tq_cache_config *config);

/* Fixed vectors subtracted before coding, per kv head: key_centre [num_kv_heads][head_dim], value_centre [num_kv_heads][value_dim], float32
 * on the host, finite; either may be NULL (left as it is). Exact for attention: it is as if the codes stood for centre + code. Keys of
 * models with biases spend much of their energy on a constant; taking it out there lowers the error at equal bits. Ignored by raw layers.
 * INVALID_STATE once a sequence holds tokens. */
TQ_API tq_status tq_cache_set_centres(tq_cache *cache, int32_t layer, const float *key_centre, const float *value_centre);

typedef struct tq_cache_memory {
  uint32_t struct_size;
  int32_t num_sequences;     /* alive */
  int64_t tokens;            /* lengths of all sequences added up (a shared page counts in each) */
  int64_t pages_used;        /* distinct pages in use, per layer */
  int64_t pages_total;
  int64_t stored_bytes_used; /* pages_used over all layers, in bytes */
  int64_t raw_bytes;         /* exact copies, allocated */
  int64_t device_bytes;      /* allocated in all */
  int64_t host_bytes;
  double compression;        /* float16 bytes of one token / stored bytes of one token, scales included */
} tq_cache_memory;

/* Host-side figures, no synchronisation. memory->struct_size set by the caller. */
TQ_API tq_status tq_cache_get_memory(const tq_cache *cache, tq_cache_memory *memory);

/* Hash of all that decides the meaning of page bytes (format version, geometry, codes, codebooks, rotation, seed, centres): equal if and
 * only if pages are exchangeable. */
TQ_API tq_status tq_cache_fingerprint(const tq_cache *cache, uint64_t *fingerprint);

/* Synchronises stream, then returns and clears the cache's sticky asynchronous error (TQ_OK if none). flags (may be NULL) receives and
 * clears what was noticed since the last check: */
#define TQ_NOTICED_NONFINITE 1u /* an appended vector held NaN, infinity or a magnitude above 2^64; it was replaced as FORMAT.md says */
#define TQ_NOTICED_SATURATED 2u /* a finite number beyond +-65504 went into a raw side of a float32 cache and was stored as +-65504 */
TQ_API tq_status tq_cache_check(tq_cache *cache, void *stream, uint64_t *flags);

/* ---- 5. Sequences: host bookkeeping, all layers at once -------------------------------------------------------------- */

/* A new, empty sequence. CAPACITY if max_sequences are alive. */
TQ_API tq_status tq_sequence_create(tq_cache *cache, tq_sequence *sequence);

/* Gives its pages back; pages shared with a fork stay. Freed pages are scrubbed in stream order unless TQ_FLAG_NO_ZERO_ON_FREE. A batch that
 * has the sequence in its plan must be planned again before its next use (INVALID_STATE otherwise). */
TQ_API tq_status tq_sequence_free(tq_cache *cache, tq_sequence sequence, void *stream);

/* A new sequence with the same tokens: pages are shared and copied when one side writes into a shared page; exact copies of
 * window and sinks are duplicated on stream. CAPACITY as tq_sequence_create. Fork after a step's appends: layers into which a plan in force
 * has not been appended yet refuse it afterwards (INVALID_STATE), as the fork would miss their new tokens. */
TQ_API tq_status tq_sequence_fork(tq_cache *cache, tq_sequence source, void *stream, tq_sequence *sequence);

/* Shortens to length tokens, 0 <= length <= current: afterwards it is as if the later tokens had never been appended, the exact window
 * included as long as the length stays within rollback_tokens of the longest it has had (deeper is allowed; the window then holds only the exact
 * copies still there). Whole pages are given back and scrubbed; what lies behind the new end in the last page is overwritten by the next append. */
TQ_API tq_status tq_sequence_truncate(tq_cache *cache, tq_sequence sequence, int64_t length, void *stream);

/* Tokens, planned ones included. */
TQ_API tq_status tq_sequence_length(const tq_cache *cache, tq_sequence sequence, int64_t *length);

/* TQ_NOTICED_* of this sequence since it was created (a fork inherits them); no synchronisation, so on a CUDA cache it may be early. */
TQ_API tq_status tq_sequence_flags(const tq_cache *cache, tq_sequence sequence, uint64_t *flags);

/* ---- 6. Batch: the sequences of one step --------------------------------------------------------------------------------- */

/* Room for one plan of up to max_batch_sequences sequences. Several batches of one cache may exist; each has its own plan. */
TQ_API tq_status tq_batch_create(tq_cache *cache, tq_batch **batch);
/* NULL is accepted. */
TQ_API tq_status tq_batch_destroy(tq_batch *batch);

/* Plans one step: sequence i gets new_tokens[i] >= 0 more tokens (room is reserved in all layers, its length grows at once) and asks
 * query_tokens[i] >= 0 queries, which are its last tokens (query_tokens NULL = new_tokens; query_tokens[i] <= its new length).
 *   num_sequences  0 .. max_batch_sequences; sequences[] distinct and alive
 * Rows of k, v are the new tokens of all sequences one after the other, rows of q, out, lse the query tokens likewise.
 * The plan stays in force until the next plan, truncate or free of one of its sequences; append and attend of every layer follow it.
 * A sequence planned anew in a second batch puts the first plan out of force as well.
 * CAPACITY: pool, max_sequence_tokens or batch limits exceeded; nothing changed, the text has the numbers. Not inside a graph (CAPTURE). */
TQ_API tq_status tq_batch_plan(tq_batch *batch, int32_t num_sequences, const tq_sequence *sequences, const int64_t *new_tokens,
                               const int64_t *query_tokens, void *stream);

/* Rows of the plan: new_tokens rows of k and v, query_tokens rows of q, out and lse. in_force: 1 if append and attend accept
 * the plan now; 0 before the first plan, or once a sequence of it was planned elsewhere, truncated or
 * freed (the counts are then 0). Each pointer may be NULL. Host-side, no synchronisation. */
TQ_API tq_status tq_batch_rows(const tq_batch *batch, int64_t *new_tokens, int64_t *query_tokens, int32_t *in_force);

/* ---- 7. Append and attend ------------------------------------------------------------------------------------------------- */

/* Where element (token, head, dim) lies: base + token * token_stride + head * head_stride + dim. Strides in elements, 0 = dense
 * [token][head][dim]. dim is always contiguous. NULL instead of a layout = dense. */
typedef struct tq_tensor_layout {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t key_token_stride; /* k of append and read */
  int64_t key_head_stride;
  int64_t value_token_stride; /* v of append and read */
  int64_t value_head_stride;
} tq_tensor_layout;

/* Encodes the new tokens of the batch into one layer.
 *   k  [new tokens][num_kv_heads][head_dim] io_dtype, v likewise with value_dim; may be NULL only if the plan has no new tokens
 * Each layer of a plan is appended once; a repeated append writes the same bytes again. INVALID_STATE without a plan in force. */
TQ_API tq_status tq_cache_append(tq_cache *cache, int32_t layer, const tq_batch *batch, const void *k, const void *v,
                                 const tq_tensor_layout *layout, void *stream);

typedef struct tq_attend_params {
  uint32_t struct_size;
  int32_t out_dtype;        /* 0 = io_dtype; TQ_F32 keeps the full precision of a partial result */
  float softmax_scale;      /* 0 = 1 / sqrt(head_dim) */
  float logit_softcap;      /* c: logits become c * tanh(logit / c); 0 = off */
  int64_t sliding_window;   /* tokens that a query sees, its own included; 0 = all */
  const float *sink_logits; /* [num_q_heads] float32 on the cache's device, natural units, added to the softmax's sum only; NULL =
                             * none. -inf: no sink for this head. +inf: all weight is the sink's: out 0, lse +inf. NaN: out and
                             * lse of the head's rows are NaN */
  int32_t history_only;     /* 1: leave out the batch's new tokens, for a caller that attends them itself and merges by LSE */
  int64_t q_token_stride;   /* elements, 0 = dense [token][q head][dim]; same for out below */
  int64_t q_head_stride;
  int64_t out_token_stride;
  int64_t out_head_stride;
} tq_attend_params;

/* Zeroes *params and sets struct_size. NULL: INVALID_ARGUMENT. */
TQ_API tq_status tq_attend_params_init(tq_attend_params *params);

/* out = softmax(q . K^T * softmax_scale) . V for the query tokens of the batch; query j of a sequence sees the tokens up to its own position.
 *   q    [query tokens][num_q_heads][head_dim] io_dtype; query head h reads kv head h / (num_q_heads / num_kv_heads)
 *   out  [query tokens][num_q_heads][value_dim] out_dtype
 *   lse  [query tokens][num_q_heads] float32, natural log of the softmax's sum, sink logit included; NULL = not wanted
 *   params NULL = defaults
 *   workspace  NULL = the cache's own, else tq_attend_workspace_bytes of the cache's device memory, 256-byte aligned
 * A query that sees no token: out exactly 0, lse -inf (with a sink logit: that logit, to the bit). A row of q, one token and head, that
 * holds NaN or infinity gives NaN in its row of out and its lse, whatever it sees, and in no other row. The result is finite for finite
 * q, the same bits for any batch, thread count or page placement, and independent of what unwritten memory holds.
 * CUDA: 256 or more queries of a sequence, counted over the query heads of a kv head, go to a kernel of their own. A graph has that kernel
 * if its plan had such a sequence at capture; otherwise a later plan's are computed as short ones are: as exact, slower, not the same bits. */
TQ_API tq_status tq_cache_attend(tq_cache *cache, int32_t layer, const tq_batch *batch, const void *q, void *out, float *lse,
                                 const tq_attend_params *params, void *workspace, size_t workspace_bytes, void *stream);

/* Workspace that tq_cache_attend needs: enough for every plan that the cache admits. No plan is needed. */
TQ_API tq_status tq_attend_workspace_bytes(const tq_cache *cache, size_t *bytes);

/* Merges num_states partial results of the same rows: context-parallel ranks, chunked prefill, history_only.
 *   outs[s]  [rows][dim] dtype, lses[s] [rows] float32, both on device_type / device_id. lse -inf: an empty part, its out is not read.
 *            lse +inf takes all: the out of the first such part is the row's. lse NaN: that row of out and lse is NaN. A part of weight 0
 *            adds nothing, whatever its out holds
 *   out      [rows][dim] dtype; lse [rows] or NULL. A row of empty parts alone: out 0, lse -inf
 * Merged in index order, in float32. num_states 1 .. 1024. Host arrays of pointers. out may be one of outs. */
TQ_API tq_status tq_merge_states(int32_t num_states, const void *const *outs, const float *const *lses, int64_t rows, int32_t dim,
                                 tq_dtype dtype, void *out, float *lse, tq_device_type device_type, int32_t device_id, void *stream);

/* Decoded keys and values of tokens first .. first + count - 1 of a sequence, exact where exact copies are kept.
 *   k [count][num_kv_heads][head_dim] io_dtype, v likewise; either may be NULL
 * INVALID_ARGUMENT if the range does not lie inside the sequence. */
TQ_API tq_status tq_cache_read(tq_cache *cache, int32_t layer, tq_sequence sequence, int64_t first, int64_t count, void *k, void *v,
                               const tq_tensor_layout *layout, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* TQKV_H */
