/* SPDX-License-Identifier: Apache-2.0
 *
 * tqkv: a KV cache held as 2-8 bit TurboQuant codes (arXiv 2504.19874), and attention straight on the codes.
 *
 * A decode loop, whole (the checks of each call's status are left out):
 *
 *     int64_t one = 1;
 *     tq_cache_config config;
 *     tq_cache *cache;
 *     tq_batch *batch;
 *     tq_sequence sequence;
 *     tq_cache_config_init(&config);
 *     config.num_layers = 2, config.num_q_heads = 32, config.num_kv_heads = 8, config.head_dim = 128;
 *     config.io_dtype = TQ_F32, config.key_bits = 4, config.value_bits = 3, config.max_tokens = 4096;
 *     tq_cache_create(&config, NULL, &cache);
 *     tq_sequence_create(cache, &sequence);
 *     tq_batch_create(cache, &batch);
 *     for (int step = 0; step < 100; step++) {
 *       tq_batch_plan(batch, 1, &sequence, &one, NULL, NULL);                 // once a step
 *       for (int32_t layer = 0; layer < 2; layer++) {
 *         tq_cache_append(cache, layer, batch, k, v, NULL, NULL);             // k, v [1][8][128]
 *         tq_cache_attend(cache, layer, batch, q, out, NULL, NULL, NULL, 0, NULL);  // q, out [1][32][128]
 *       }
 *     }
 *     tq_batch_destroy(batch);
 *     tq_cache_destroy(cache);
 *
 * Rules that hold for every call
 *   Status   Every call returns tq_status, 0 = TQ_OK, unless its comment says otherwise. Outputs are written
 *     only on TQ_OK, and a failed call has changed nothing observable. tq_last_error() names the argument and
 *     prints the values. Nothing throws, aborts, prints, installs signal handlers or runs at exit.
 *   Structs  First field struct_size = sizeof the struct as compiled by the caller; all other fields zero =
 *     default. Structs only grow at the end: a smaller size is accepted, a larger one if the unknown tail is
 *     zero (else TQ_ERROR_VERSION).
 *   Handles  Opaque; NULL is accepted only by the destroy calls.
 *   Streams  A stream is a cudaStream_t passed as void *; NULL is the legacy default stream. CPU caches work
 *     before they return; their stream must be NULL. append and attend never allocate or synchronise.
 *   Pointers k, v, q, out and lse live on the cache's device. Inputs are borrowed until the stream has passed
 *     the call (CPU: until it returns). Host arrays (ids, counts, config arrays) are copied in the call.
 *   Threads  Different caches are independent. One cache: one thread at a time, except that several
 *     tq_cache_attend calls may run at once when each brings its own workspace and nothing else runs. A
 *     violation returns TQ_ERROR_INVALID_STATE with "busy" in the text where it is noticed, not always.
 *   Forks    In a process that fork() made, a CPU cache of its parent works, on the calling thread alone, if
 *     no call was running on it at the fork (else it stays busy). A CUDA cache refuses all (INVALID_STATE)
 *     but the destroy calls, which free host memory and return.
 *   Units    Strides in elements, sizes in bytes, lengths and capacities in tokens, LSE in natural logarithm.
 *
 * Written  A plan makes its sequences longer in all layers, an append fills one of them. What a layer lacks
 *   no call gives out: attend and tq_cache_read refuse to see it (history_only leaves the plan's own tokens
 *   out), append refuses to leave a gap behind a plan that was not appended. The text of INVALID_STATE says
 *   which layer and sequence, and the length to truncate to.
 *
 * Window   window_tokens and sink_tokens keep raw copies of a sequence's last and first tokens, in io_dtype,
 *   beside the codes; attend and tq_cache_read take them instead of the codes. The window belongs to the
 *   query: one at position p reads the tokens p - window_tokens + 1 .. p exactly, and tq_cache_read what a
 *   query at the last token reads. A sequence keeps copies of its sinks and of its last window_tokens +
 *   max(rollback_tokens, query_tokens - 1) tokens at the end of its plan: every query of the plan reads its
 *   whole window, and so do those that follow a truncate by up to rollback_tokens. What is in front is given
 *   back by the plan; what only its queries need, when the batch is planned again without the sequence. After
 *   a deeper truncate, and after tq_sequence_flush, the window is shorter (TQ_NOTICED_SHORT_WINDOW) and grows
 *   again with what is appended.
 *   Copies lie in pages of 32 tokens, taken by need from a pool of max_raw_tokens that all sequences share;
 *   forks share pages. A plan that finds no room there fails: CAPACITY; plan fewer query tokens at once, or
 *   raise max_raw_tokens.
 *   With TQ_FLAG_STORE_ONCE (no layer with a sliding_window; on CUDA no latent one) the tokens of a window
 *   have no codes: the plan that brings them out makes these from the copies, byte for byte those of their
 *   append (an infinite float16 is coded as its copy, +-65504). max_tokens then counts tokens with codes
 *   alone; a sequence, and a plan by default, may have window_tokens more. tq_sequence_copy, _export, _save,
 *   _remove and _select code the window for their time, _flush and _import for good: CAPACITY, nothing
 *   changed, if there is no room.
 *
 * Bits     A row of out and lse follows from its query, its position, what it sees and the parameters of the
 *   call: not from the other rows and sequences of the plan, the tokens behind it, threads or where pages
 *   are. So 8 drafts verified in one plan are 8 single steps bit for bit, and a prompt in one chunk is the
 *   prompt in many, while the copies of the exact window are there. One rule on CUDA: where a plan has 256 or
 *   more query rows of a sequence for each kv head (query tokens times num_q_heads / num_kv_heads), they are
 *   computed by another arithmetic, 1,024 or more by a third, and 4,096 or more (1,024 at dimensions above
 *   128) by a fourth where no windows, sinks, masks or caps are; chunks on the same side of all agree. These
 *   round weights to float16, and on compute capability 9.0, between sides of 2 to 8 bits, trellis codes and
 *   keys in bands, the rotated query too: logits are off by 2e-4 of their spread there, by 3e-4 of keys in
 *   bands, which are rounded as well. The fourth, which is of that capability, rounds what values stand for
 *   too: all together 4e-4 of a row that averages many tokens. With TQ_FLAG_BATCH_INVARIANT all are computed
 *   as fewer are: slower for long prompts. Builds, device types and CUDA architectures agree within rounding
 *   only.
 *
 * Sliding  A layer with a sliding_window keeps what queries to come can see: the last sliding_window +
 *   rollback_tokens of a sequence, and all new tokens of its plan. Pages in front are given back when the
 *   batch is planned again. So its pool is small: it follows from max_sequences and max_batch_tokens, not
 *   from max_tokens. INVALID_STATE: a truncate to a length whose next query would see less (the text says
 *   which is the least), a plan whose first query would, tq_cache_read of tokens in front.
 *
 * Graphs   On a CUDA cache tq_cache_append, tq_cache_attend and tq_merge_states may be captured. A graph
 *   holds the batch and the arguments of the calls: the batch must live, k, v, q, out, lse, sink_logits, the
 *   masks and the workspace stay where they are, strides and params are those of the capture. Lengths, rows
 *   and pages are read from the batch's plan as the graph runs: call tq_batch_plan on it between replays
 *   (never in a capture: TQ_ERROR_CAPTURE), on the replay's stream or ordered before it by an event. A plan
 *   may have any sequences and counts that the cache admits; the buffers must hold its rows. A replay without
 *   a new plan repeats the step. After a planned sequence lost tokens or was freed, plan before the next
 *   replay: a graph cannot notice that its plan is out of force, and would use pages that are others'.
 *   Replays make no call, so a layer whose append was captured counts as written by every plan of the batch,
 *   from the moment the plan is made until the batch is destroyed: replay once for each plan. Before the
 *   replay has run, its new tokens (a fork's too) are zeros or older values. tq_batch_plan refuses to leave a
 *   gap in such a layer; append (attend) refuses a capture without new tokens (queries): INVALID_STATE.
 *   Long prefill: 256 or more query rows of a sequence for each kv head (see Bits) go to kernels of their
 *   own. A graph has these if its plan had such a sequence at capture; otherwise a later plan's are
 *   computed as a cache without them would: at least as exact, slower, not the same bits.
 *
 * Masks    Query token j of a sequence of L tokens, with n query tokens in the plan, stands at position
 *   p = L - n + j and sees the tokens up to p, of these the last sliding_window. Arrays of tq_attend_params
 *   change that, alone or together; history_only leaves the plan's new tokens out in any case.
 *   visible_begin, visible_end: the query sees the tokens begin .. end - 1, those behind its own included,
 *   cut to 0 .. L; an empty range sees none. No causal bound, and sliding_window must be 0; in a layer with a
 *   window of its own the query does not see what lies in front of that. For bidirectional spans, prefixes,
 *   encoders, chunked local attention; and for cross-attention: a plan of no new tokens may ask more queries
 *   than the sequence has tokens (then p may be negative), of layers without a window of their own.
 *   tree_mask: of the plan's new tokens of its sequence the query sees the j-th if bit j % 64 of its word
 *   j / 64 is set, whatever their order; the tokens before these as said above. With visible ranges, a new
 *   token must be in the range as well. Queries must be new tokens, at most 64 * tree_words of a sequence.
 *   alibi_slopes: slope * (t - p) is added to the logit of token t, after softmax_scale and logit_softcap. A
 *   slope of NaN or infinity: out and lse of the head are NaN.
 *   Pages outside every range are not read (but beside a token that is, up to 128 of its neighbours). CUDA:
 *   visible ranges run in the kernels of causal attention, so does long prefill with ALiBi; other ALiBi, and
 *   every tree mask, run in the kernel for any widths: as exact, not the same bits as without.
 *
 * Chunk    In a cache with TQ_FLAG_EXACT_CHUNK attend may be given k and v of the plan's new tokens as append
 *   gets them (chunk_k, chunk_v of tq_attend_params). Queries see the new tokens up to their own as these
 *   numbers (float32: as float16), and only what was there before the plan as codes, windows and sinks: the
 *   rows of a first prompt are those of attention without compression. Append may come before or after; later
 *   plans read codes. What a prompt's rows are then depends on how it is cut into plans. With a history, out
 *   is the merge of two parts rounded to out_dtype each. The queries must be new tokens (INVALID_STATE), out
 *   dense; NOT_SUPPORTED with masks, in TQ_LATENT layers and for a codec. Calls with chunk_k on one batch run
 *   one at a time, also with workspaces of their own. A batch of such a cache takes memory of its own at its
 *   creation, which tq_cache_bytes does not count: raw pages of max_batch_tokens tokens of one layer of each
 *   shape, and float32 rows of as many query tokens: set max_batch_tokens.
 *
 * State    A sequence travels by its codes, bit for bit: into another cache of the process
 *   (tq_sequence_copy), as bytes in memory, by layers, tokens and kv heads (tq_sequence_export, _import), or
 *   as a stream that says what it is and is checked as it is read (tq_sequence_save, _load): section 9.
 *
 * Limits   The caller applies RoPE before append and attend. A raw side (16 bits) of a float32 cache is
 *   float16: beyond +-65504 it saturates (TQ_NOTICED_SATURATED). Little-endian machines. CUDA: compute
 *   capability 8.0 or later; head and value dimension equal (rounded up to 32), 192/128 or 576/512; Hadamard;
 *   sequences below 2^31 - 32 tokens.
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

/* ---- 1. Status ----------------------------------------------------------------------------------------- */

typedef int32_t tq_status;
#define TQ_OK 0
#define TQ_ERROR_INVALID_ARGUMENT 1     /* a value is out of range or inconsistent; the text names it */
#define TQ_ERROR_INVALID_STATE 2        /* right arguments, wrong moment: append without a plan, busy, ... */
#define TQ_ERROR_OUT_OF_MEMORY 3        /* host or device allocation failed */
#define TQ_ERROR_CAPACITY 4             /* max_tokens, max_sequences or a batch limit is used up */
#define TQ_ERROR_NOT_SUPPORTED 5        /* valid, but not in this build or not for this configuration */
#define TQ_ERROR_NO_DEVICE 6            /* no such device */
#define TQ_ERROR_DRIVER 7               /* the driver is absent or too old */
#define TQ_ERROR_CUDA 8                 /* a CUDA call failed; the text has the CUDA error's name */
#define TQ_ERROR_VERSION 9              /* struct of a newer header uses a field that is not known here */
#define TQ_ERROR_CORRUPT_DATA 10        /* saved bytes fail their checks */
#define TQ_ERROR_INCOMPATIBLE 11        /* a sequence is of another format, geometry or codebook */
#define TQ_ERROR_WORKSPACE_TOO_SMALL 12 /* the text says how many bytes are needed */
#define TQ_ERROR_CAPTURE 13             /* not allowed while the stream is being captured */
#define TQ_ERROR_IO 14
#define TQ_ERROR_INTERNAL 99            /* a bug in this library */

/* "TQ_OK" .. "TQ_ERROR_INTERNAL", or "TQ_ERROR_UNKNOWN". Never NULL; static storage. Any thread. */
TQ_API const char *tq_status_name(tq_status status);

/* Text about the last failed call of the calling thread, "" if there was none. Never NULL; valid until the
 * thread's next tq_ call. A success does not clear it. */
TQ_API const char *tq_last_error(void);
/* Copies that text. buffer: capacity bytes, always NUL-terminated, cut if short; NULL only with capacity 0
 * (else INVALID_ARGUMENT). needed: bytes with the NUL; may be NULL. */
TQ_API tq_status tq_last_error_copy(char *buffer, size_t capacity, size_t *needed);

/* ---- 2. Introspection ---------------------------------------------------------------------------------- */

/* "0.1.0"; static storage. */
TQ_API const char *tq_version(void);
/* TQ_ABI_VERSION of the library in hand. */
TQ_API int32_t tq_abi_version(void);
/* One line: version, compiler, CUDA architectures or "cuda off", SIMD paths, format version. Static. */
TQ_API const char *tq_build_info(void);

/* sizeof a public struct in the library, 0 for an unknown id: a binding checks its layout at load time. */
#define TQ_STRUCT_CACHE_CONFIG 1
#define TQ_STRUCT_CACHE_BYTES 2
#define TQ_STRUCT_CACHE_MEMORY 3
#define TQ_STRUCT_TENSOR_LAYOUT 4
#define TQ_STRUCT_ATTEND_PARAMS 5
#define TQ_STRUCT_DEVICE_INFO 6
#define TQ_STRUCT_CODEBOOK 7
#define TQ_STRUCT_ALLOCATOR 8
#define TQ_STRUCT_LAYER_CONFIG 9
#define TQ_STRUCT_LAYER_BYTES 10
#define TQ_STRUCT_STATE 11
#define TQ_STRUCT_IO 12
#define TQ_STRUCT_PAGES 13
#define TQ_STRUCT_PAGE_LAYOUT 14
#define TQ_STRUCT_PAGED_STEP 15
#define TQ_STRUCT_LEVELS 16
#define TQ_STRUCT_QUANTIZER_CONFIG 17
#define TQ_STRUCT_QUANTIZER_INFO 18
#define TQ_STRUCT_KEY_BANDS 19
#define TQ_STRUCT_CALIBRATION_CONFIG 20
#define TQ_STRUCT_CALIBRATION_GOAL 21
#define TQ_STRUCT_CALIBRATION_RESULT 22
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
  int32_t num_units;           /* multiprocessors; CPU: threads that affinity and cgroup quotas allow */
  int64_t memory_bytes;        /* total; 0 if unknown */
  char name[128];              /* device name; CPU: the SIMD path in use, such as "avx3_dl" */
} tq_device_info;

/* Devices of a type: 1 for the CPU; CUDA without a driver, or in a build without CUDA: 0 and TQ_OK. */
TQ_API tq_status tq_device_count(tq_device_type type, int32_t *count);
/* info->struct_size must be set. NO_DEVICE if index is not below the count. */
TQ_API tq_status tq_device_get_info(tq_device_type type, int32_t index, tq_device_info *info);

/* ---- 3. Configuration ---------------------------------------------------------------------------------- */

typedef int32_t tq_dtype;
#define TQ_F32 1
#define TQ_F16 2
#define TQ_BF16 3

typedef int32_t tq_rotation;
#define TQ_ROTATION_HADAMARD 1 /* random signs + Hadamard: O(d log d); the default */
#define TQ_ROTATION_DENSE 2    /* QR of a seeded Gaussian matrix, as in the paper: O(d^2), CPU only */

typedef int32_t tq_scale_rule;
#define TQ_SCALE_LS 1       /* least squares: smallest error of a vector, shorter than it */
#define TQ_SCALE_UNBIASED 2 /* no shrinkage: inner products and averages over tokens stay right; default */
#define TQ_SCALE_NORM 3     /* the vector keeps its length */
#define TQ_SCALE_PAPER 4    /* |x| times the published codebook; scale search is off with it */

/* PROD: keys alone, 2 3 4 bits, the sign included. GROUPED: 2 3 4 8 bits, each group of neighbours with a
 * float16 scale and zero, neither rotated nor centred; beyond +-65504 it saturates (TQ_NOTICED_SATURATED).
 * LEVELS: 1 2 3 4 5 6 8 bits. TRELLIS: caches alone, 2 3 4 bits; the bytes of SCALAR with an
 * error a quarter to a third lower, and an append several times as long. */
typedef int32_t tq_code_family;
#define TQ_CODE_SCALAR 1  /* Lloyd-Max levels for each coordinate (TurboQuant_mse) */
#define TQ_CODE_PROD 2    /* these at one bit less, and signs of a sketch of the residual (TurboQuant_prod) */
#define TQ_CODE_GROUPED 3 /* min/max of groups of neighbours, no rotation */
#define TQ_CODE_LEVELS 4  /* levels and boundaries of the caller's */
#define TQ_CODE_TRELLIS 5 /* as SCALAR, with twice the levels, which neighbours in a chain tell apart */

typedef int32_t tq_sketch;
#define TQ_SKETCH_ORTHOGONAL 1 /* more rotations: a third of the variance; the default */
#define TQ_SKETCH_GAUSSIAN 2   /* as published: a matrix, dim up to 4096 */

typedef int32_t tq_sketch_rule;
#define TQ_SKETCH_UNBIASED 1    /* inner products right on average; the default */
#define TQ_SKETCH_LEAST_ERROR 2 /* least mean squared error of the decoded vector */

/* Levels of the caller's: a coordinate of the rotated vector, divided by unit * |x|, gets as code the number
 * of boundaries that it reaches. */
typedef struct tq_levels {
  uint32_t struct_size;
  int32_t bits;            /* 1 .. 8 */
  float unit;              /* 0 = 1: levels for vectors of length 1 */
  uint32_t reserved;
  const float *levels;     /* [2^bits], finite; copied */
  const float *boundaries; /* [2^bits - 1], finite, not falling; copied */
} tq_levels;

/* The caller's own codebook: 2^(bits-1) rising magnitudes; level = unit * magnitude for coordinates of unit
 * variance. bits <= 3: magnitudes 1 .. 127. bits 4 .. 6: a magnitude m in 0 .. 127 stands for m + 1/2. */
typedef struct tq_codebook {
  uint32_t struct_size;
  int32_t bits; /* 2 .. 6 */
  float unit;   /* > 0 */
  uint8_t magnitude[32];
} tq_codebook;

/* Memory callbacks, both or neither, called in create and destroy calls only. alloc returns NULL on failure;
 * alignment is a power of two <= 4096. Memory for CUDA must be usable on device_id in stream order. */
typedef struct tq_allocator {
  uint32_t struct_size;
  uint32_t reserved;
  void *user;
  void *(*alloc)(void *user, size_t bytes, size_t alignment, int32_t device_type, int32_t device_id);
  void (*free)(void *user, void *pointer, size_t bytes, int32_t device_type, int32_t device_id);
} tq_allocator;

/* What a token of a layer is. KEYS_VALUES: a key and a value. LATENT: a key whose first value_dim coordinates
 * are the value too (multi-head latent attention: DeepSeek, Kimi, GLM, 512 + 64), stored once. Append takes
 * k alone, with v NULL; read gives either. These coordinates have value_bits, value_family and the value's
 * rotation, codebook and scale rule, the head_dim - value_dim behind them (rotary) those of the key: 4 and 16
 * bits are 386 bytes a token at 512 + 64, 4 and 4 bits 292. key_centre has all head_dim coordinates,
 * value_centre is NULL. value_dim and head_dim - value_dim are what head_dim may be, together at most 576.
 * CUDA: 512 + 64, scalar codes (the rest raw as well); queries, weights and exact tokens are rounded to
 * halves, these relative to their largest number. */
typedef int32_t tq_layer_kind;
#define TQ_KEYS_VALUES 1
#define TQ_LATENT 2

/* Keys of a layer in bands of 32 coordinates, each band with a width, a rotation and a scale of its own. For
 * calibrated caches: with rotary positions few coordinates of keys and queries decide about the logits, and
 * these take the wide bands. A token's key has 4 bytes for each bit of `bits`, and 2 for each band.
 * The layer's key_bits must be 0; its key_family SCALAR, or TRELLIS: bands of 2, 3, 4 bits then have trellis
 * codes, the others scalar ones. Not with TQ_LATENT, TQ_ROTATION_DENSE, or a head_dim above 256; key_codebook
 * is not used. INVALID_ARGUMENT otherwise. */
typedef struct tq_key_bands {
  uint32_t struct_size;
  int32_t num_bands;    /* head_dim / 32, rounded up */
  const int32_t *bits;  /* [num_bands]: 1 .. 6, none above the one before; copied */
  const int32_t *order; /* [num_kv_heads][head_dim]: the coordinate at each place, band 0 first; each of a
                         * head's coordinates once. NULL = as they are. Copied */
} tq_key_bands;

/* One layer of a cache whose layers differ. A field that is 0 stands for the cache's own. */
typedef struct tq_layer_config {
  uint32_t struct_size;   /* the same in all elements of the array */
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t value_dim;
  int32_t key_bits;
  int32_t value_bits;
  int32_t key_family;     /* TQ_CODE_* */
  int32_t value_family;
  int32_t rotation;
  int32_t sliding_window; /* tokens that a query sees, its own included; 0 = all; see Sliding */
  int32_t shares_layer;   /* 0 = tokens of its own; else 1 + the earlier layer whose tokens it attends to:
                           * all but num_q_heads and sliding_window are that layer's, append refuses it */
  int32_t first_kv_head;  /* as the cache's, for ranks whose layers hold different numbers of heads */
  int32_t group_size;
  const tq_levels *key_levels; /* NULL = the cache's own */
  const tq_levels *value_levels;
  int32_t layer_kind;     /* TQ_KEYS_VALUES or TQ_LATENT */
  uint32_t reserved;
  const tq_key_bands *key_bands; /* NULL = all of a key alike */
} tq_layer_config;

#define TQ_FLAG_NO_ZERO_ON_FREE 1u    /* leave freed pages and exact copies as they are, do not zero them */
#define TQ_FLAG_NO_SCALE_SEARCH 2u    /* encoder: one quantisation step, not the best of several */
#define TQ_FLAG_BATCH_INVARIANT 4u    /* one arithmetic for any number of query rows: see Bits */
#define TQ_FLAG_STORE_ONCE 8u         /* a token of the window gets its codes when it leaves: see Window */
#define TQ_FLAG_EXACT_CHUNK 16u       /* attend may take a plan's own tokens as they are: see Chunk */

typedef struct tq_cache_config {
  uint32_t struct_size;
  int32_t device_type;     /* 0 = CPU */
  int32_t device_id;
  int32_t num_layers;      /* required, >= 1 */
  int32_t num_q_heads;     /* required; a multiple of num_kv_heads */
  int32_t num_kv_heads;    /* required, >= 1 */
  int32_t head_dim;        /* required: a multiple of 4 (CUDA: of 8) from 8 to 256, 512 or 576. Codes have
                            * the next multiple of 32 coordinates: 40 takes the bytes of 64, 100 those of
                            * 128 */
  int32_t value_dim;       /* 0 = head_dim; likewise. Required where layers are TQ_LATENT */
  int32_t io_dtype;        /* type of k, v, q and out; required */
  int32_t key_bits;        /* 1 2 3 4 5 6 8, or 16 = raw; required unless layer_key_bits is given */
  int32_t value_bits;
  int32_t code_family;     /* TQ_CODE_* of both sides; 0 = TQ_CODE_SCALAR. 16 bits are raw in any family */
  const int32_t *layer_key_bits;   /* [num_layers] or NULL: bits per layer, overriding key_bits where not 0 */
  const int32_t *layer_value_bits;
  int32_t rotation;        /* 0 = TQ_ROTATION_HADAMARD */
  int32_t key_scale_rule;  /* 0 = TQ_SCALE_UNBIASED; TQ_SCALE_LS where all coded keys are PROD */
  int32_t value_scale_rule;/* 0 = TQ_SCALE_UNBIASED */
  int32_t page_size;       /* tokens, a multiple of 32, <= 4096; 0 = 64 */
  uint64_t rotation_seed;  /* any value */
  int32_t first_layer;     /* number in the whole model of this cache's layer 0, and of its kv head 0: with */
  int32_t first_kv_head;   /* them a rank stores the bytes that one device stores; 0 .. 65535 */
  const tq_codebook *key_codebook;   /* NULL = built in; used by coded layers of exactly these bits */
  const tq_codebook *value_codebook;
  int64_t max_tokens;      /* required: tokens that the pool holds over all sequences */
  int64_t max_reserve_tokens; /* what tq_cache_reserve may raise it to; 0 = max_tokens, no growth */
  int64_t max_sequence_tokens; /* longest sequence; 0 = max_reserve_tokens */
  int32_t max_sequences;   /* 0 = 1 */
  int32_t max_batch_sequences; /* sequences in one plan; 0 = max_sequences */
  int64_t max_batch_tokens;/* new tokens, and query tokens, in one plan, each; 0 = max_tokens, at most 2048
                            * where a layer has a sliding window */
  int64_t max_raw_tokens;  /* exact copies that there is room for, over all sequences; see Window; 0 = enough
                            * for many sequences between plans, and for 8192 queries of one plan. It does not
                            * grow with tq_cache_reserve */
  int32_t window_tokens;   /* last tokens read exactly, from raw copies beside the codes; see Window */
  int32_t sink_tokens;     /* first tokens likewise */
  int32_t rollback_tokens; /* more raw copies, so that truncate by up to this many keeps the window whole */
  int32_t num_threads;     /* CPU: 0 = num_units of the device, 1 = the caller's thread only */
  uint64_t flags;          /* TQ_FLAG_* */
  const tq_allocator *allocator;   /* NULL = malloc / cudaMalloc; copied */
  void *pool;              /* NULL, or memory for the pages, 256-byte aligned, zeroed, kept until destroy */
  int64_t pool_bytes;      /* >= page_bytes of tq_cache_config_bytes when pool is given */
  const tq_layer_config *layers; /* [num_layers] or NULL: all alike. num_q_heads .. value_bits above are then
                                  * required only where a layer leaves them 0 */
  int32_t key_family;      /* 0 = code_family */
  int32_t value_family;
  int32_t group_size;      /* TQ_CODE_GROUPED: neighbours that share scale and zero: 16 32 64; 0 = 32. The
                            * last group of a vector may be shorter. 0 where no side is grouped */
  int32_t sketch;          /* TQ_CODE_PROD: TQ_SKETCH_*, 0 = ORTHOGONAL; this and the next two: else 0 */
  int32_t sketch_rule;     /* 0 = TQ_SKETCH_UNBIASED */
  float sketch_factor;     /* 0 = by sketch_rule; what the estimate of the residual is multiplied by */
  const tq_levels *key_levels; /* TQ_CODE_LEVELS: required, of the sides' bits, unless layers have theirs */
  const tq_levels *value_levels;
  int32_t layer_kind;      /* TQ_KEYS_VALUES (0 too) or TQ_LATENT: what the layers' tokens are */
  uint32_t reserved;
} tq_cache_config;

/* What a cache of this configuration allocates, exactly. */
typedef struct tq_cache_bytes {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t page_bytes;      /* all pages of all layers: the codes and their scales */
  int64_t raw_bytes;       /* the pool of exact copies: max_raw_tokens in all layers */
  int64_t table_bytes;     /* rotation signs or matrices, centres, page tables, flags */
  int64_t workspace_bytes; /* the cache's own attend workspace */
  int64_t device_bytes;    /* of all that: on the device (0 for CPU caches) */
  int64_t host_bytes;      /* of all that: on the host, bookkeeping included */
  int64_t num_pages;       /* pages of each layer of the first group (tq_cache_config_layer_bytes) */
  int64_t token_bytes;     /* stored bytes of one token over all layers and heads, scales included */
  int64_t fp16_token_bytes;/* the same token as float16 */
} tq_cache_bytes;

/* Zeroes *config and sets struct_size. NULL: INVALID_ARGUMENT. */
TQ_API tq_status tq_cache_config_init(tq_cache_config *config);
/* The status that tq_cache_create would return, and every reason for it in text, one a line, each naming its
 * field (capacity bytes, NUL-terminated, cut if short; NULL with capacity 0). Allocates no device memory. */
TQ_API tq_status tq_cache_config_check(const tq_cache_config *config, char *text, size_t capacity);
/* Fills *bytes (struct_size set) with what tq_cache_create allocates. Status as tq_cache_config_check. */
TQ_API tq_status tq_cache_config_bytes(const tq_cache_config *config, tq_cache_bytes *bytes);

/* Of one layer. All zero but group and num_pages for a layer that shares another's tokens. */
typedef struct tq_layer_bytes {
  uint32_t struct_size;
  int32_t group;            /* layers whose tokens live equally long are a group: page ids are theirs */
  int64_t num_pages;        /* pages of the group */
  int64_t page_bytes;       /* of all of them in this layer */
  int64_t raw_bytes;        /* of its exact copies */
  int64_t token_bytes;      /* stored bytes of a token over its heads, scales included */
  int64_t fp16_token_bytes; /* the same token as float16 */
} tq_layer_bytes;
/* bytes->struct_size set by the caller. Status as tq_cache_config_check; INVALID_ARGUMENT for no layer. */
TQ_API tq_status tq_cache_config_layer_bytes(const tq_cache_config *config, int32_t layer,
                                             tq_layer_bytes *bytes);

/* ---- 4. Cache ------------------------------------------------------------------------------------------ */

typedef struct tq_cache tq_cache;
typedef struct tq_batch tq_batch;
typedef int64_t tq_sequence; /* never 0; the id of a freed sequence stays invalid */

/* Creates a cache and allocates all it will ever need; config and its arrays are copied. INVALID_ARGUMENT,
 * VERSION, NOT_SUPPORTED, NO_DEVICE, DRIVER, OUT_OF_MEMORY, CUDA; CAPTURE if stream is being captured. */
TQ_API tq_status tq_cache_create(const tq_cache_config *config, void *stream, tq_cache **cache);

/* Frees the cache; NULL is accepted. Waits for the work that the cache itself enqueued. All its batches must
 * be destroyed first (INVALID_STATE otherwise, nothing freed). */
TQ_API tq_status tq_cache_destroy(tq_cache *cache);
/* Raises max_tokens; the memory is taken now, zeroed, and waited for. Pages keep their addresses, so plans
 * stay in force and captured graphs valid. Bookkeeping, workspace and exact copies are sized for
 * max_reserve_tokens at create; the pages of a cache that may grow come in whole pieces of the system's
 * memory (4 KiB; CUDA: mostly 2 MiB, for each layer), which tq_cache_bytes counts. A failed call leaves the
 * pool as it was.
 *   max_tokens  from the present one (nothing happens) up; below: INVALID_ARGUMENT
 * CAPACITY beyond max_reserve_tokens, OUT_OF_MEMORY; CAPTURE inside a graph. Creating a cache with
 * max_reserve_tokens above max_tokens is NOT_SUPPORTED with a pool or an allocator of the caller's, and where
 * the device has no virtual memory management. */
TQ_API tq_status tq_cache_reserve(tq_cache *cache, int64_t max_tokens, void *stream);
/* The configuration with every default resolved; config->struct_size set by the caller. The arrays and
 * codebooks it points to belong to the cache. */
TQ_API tq_status tq_cache_get_config(const tq_cache *cache, tq_cache_config *config);

/* Fixed vectors subtracted before coding and added again in attention, exactly: key_centre
 * [num_kv_heads][head_dim], value_centre [num_kv_heads][value_dim], finite float32 on the host; NULL leaves
 * a side as it is; value_centre of a layer of TQ_LATENT must be NULL. Keys of models with biases spend much
 * of their energy on a constant: without it the error is lower at equal bits. Ignored by raw layers.
 * INVALID_STATE once a sequence holds tokens. */
TQ_API tq_status tq_cache_set_centres(tq_cache *cache, int32_t layer, const float *key_centre,
                                      const float *value_centre);

typedef struct tq_cache_memory {
  uint32_t struct_size;
  int32_t num_sequences;     /* alive */
  int64_t tokens;            /* lengths of all sequences added up (a shared page counts in each) */
  int64_t pages_used;        /* distinct pages in use, in each layer of the first group */
  int64_t pages_total;
  int64_t stored_bytes_used; /* pages in use over all layers, in bytes */
  int64_t raw_bytes;         /* exact copies, allocated; raw_bytes_used of them in use */
  int64_t device_bytes;      /* allocated in all */
  int64_t host_bytes;
  double compression;        /* float16 bytes of a full cache's tokens (max_tokens in a layer, fewer where it
                              * slides, more by its windows if stored once) / (page_bytes + raw_bytes) */
  int64_t raw_bytes_used;    /* pages of exact copies that sequences hold */
} tq_cache_memory;

/* Host-side figures, no synchronisation. memory->struct_size set by the caller. */
TQ_API tq_status tq_cache_get_memory(const tq_cache *cache, tq_cache_memory *memory);
/* Hash of what page bytes mean (format version, geometry, codes, magnitudes of the codebooks, rotation, seed,
 * centres, first layer and kv head; not a codebook's unit or the scale rules): equal if and only if pages are
 * exchangeable. A rank's cache has another one than the whole model's. */
TQ_API tq_status tq_cache_fingerprint(const tq_cache *cache, uint64_t *fingerprint);

/* Synchronises stream, then returns and clears the cache's sticky asynchronous error (TQ_OK if none). flags
 * (may be NULL) receives and clears what was noticed since the last check: */
#define TQ_NOTICED_NONFINITE 1u /* NaN, infinity or above 2^64 was appended, and replaced as FORMAT.md says */
#define TQ_NOTICED_SATURATED 2u /* beyond +-65504 on a raw side of a float32 cache: stored as +-65504 */
#define TQ_NOTICED_SHORT_WINDOW 4u /* tq_sequence_flags alone: see Window */
#define TQ_NOTICED_OUT_OF_RANGE 8u /* tq_codec_check alone: see section 8, Checks */
TQ_API tq_status tq_cache_check(tq_cache *cache, void *stream, uint64_t *flags);

/* ---- 5. Sequences: host bookkeeping, all layers at once ------------------------------------------------ */

/* A new, empty sequence. CAPACITY if max_sequences are alive. */
TQ_API tq_status tq_sequence_create(tq_cache *cache, tq_sequence *sequence);

/* Gives its pages back; pages shared with a fork stay. Freed pages are scrubbed in stream order unless
 * TQ_FLAG_NO_ZERO_ON_FREE. A batch that has the sequence in its plan must be planned again before its next
 * use (INVALID_STATE otherwise). */
TQ_API tq_status tq_sequence_free(tq_cache *cache, tq_sequence sequence, void *stream);

/* A new sequence with the same tokens: pages are shared and copied when one side writes into a shared page;
 * so are exact copies. CAPACITY as tq_sequence_create. Fork after a step's appends (and replay): in layers
 * appended later, the fork's planned tokens stay unwritten. */
TQ_API tq_status tq_sequence_fork(tq_cache *cache, tq_sequence source, void *stream, tq_sequence *sequence);

/* A new sequence of target with the same tokens. Codes are moved as they are, so it attends to the same bits
 * however often it moves (reading and appending is no such move: FORMAT.md 7). Exact copies, as far as target
 * keeps any, flags and what is written come along. Page sizes, windows and capacities may differ, and one
 * cache may be the CPU's; stream is the CUDA cache's (two of them: of one device, else NOT_SUPPORTED).
 * CAPACITY: of target. INCOMPATIBLE, naming the field: codes, shapes, centres, first layer or head differ, or
 * layers of the source gave back tokens that target's see. Between CPU and CUDA the call waits for stream and
 * has 4 MiB or more of pinned memory for its time. source may be target: then nothing is shared. */
TQ_API tq_status tq_sequence_copy(tq_cache *source, tq_sequence sequence, tq_cache *target, void *stream,
                                  tq_sequence *copy);

/* Shortens to length tokens, 0 <= length <= current: afterwards it is as if the later tokens had never been
 * appended, the exact window included within rollback_tokens of the longest length (deeper: see Window).
 * Whole pages are given back and scrubbed; the rest of the last page is overwritten by the next append. A
 * plan that holds the sequence is out of force, unless length is the current one. */
TQ_API tq_status tq_sequence_truncate(tq_cache *cache, tq_sequence sequence, int64_t length, void *stream);

/* Gives up the exact copies of the window, not those of the sinks: queries to come read these tokens as
 * codes. Their pages go back to the pool of max_raw_tokens, scrubbed, as far as no fork has them; a turn that
 * waits then costs its codes alone. Nothing happens without a window, or if nothing but sinks has copies. A
 * plan that holds the sequence is out of force otherwise; before a replay of a graph plan anew. CAPTURE. */
TQ_API tq_status tq_sequence_flush(tq_cache *cache, tq_sequence sequence, void *stream);
/* Takes tokens first .. first + count - 1 out: later tokens move down, codes, scales and exact copies bit for
 * bit, nothing is decoded. Afterwards it is as if the tokens that stay had been appended alone, but for the
 * exact copies: the sinks are those that stay of the old ones (fewer, unless all tokens have copies), the
 * window what stays of the old one (TQ_NOTICED_SHORT_WINDOW). Layers that lack tokens (see Written) lack the
 * same ones. Pages whose tokens stay together at their places move by table only; the others are rewritten in
 * place, those that a fork shares into free ones (CAPACITY, nothing changed, if there are none).
 *   first, count  inside the sequence; count 0: nothing happens; up to the end: a truncate
 * RoPE and other encodings of positions are the caller's: a key that was appended at position p stays rotated
 * for p. Either count positions on from those of the tokens that stay, or re-rotate: read keys that have
 * exact copies (sinks, window), rotate them by the difference, append them anew; coded keys lose a little by
 * that. bindings/python/examples/streaming.py does it for the sinks. INVALID_STATE if a layer with a sliding
 * window would miss tokens that the next query sees. A plan that holds the sequence is out of force; before a
 * replay of a graph plan anew, as after a truncate. */
TQ_API tq_status tq_sequence_remove(tq_cache *cache, tq_sequence sequence, int64_t first, int64_t count,
                                    void *stream);
/* Keeps the named tokens alone, likewise. positions: [count] rising, in the host's memory; NULL only with
 * count 0. */
TQ_API tq_status tq_sequence_select(tq_cache *cache, tq_sequence sequence, const int64_t *positions,
                                    int64_t count, void *stream);
/* Tokens, planned ones included. */
TQ_API tq_status tq_sequence_length(const tq_cache *cache, tq_sequence sequence, int64_t *length);
/* TQ_NOTICED_* since the sequence was created (a fork inherits them); TQ_NOTICED_SHORT_WINDOW as long as it
 * is so. No synchronisation: CUDA may lag. */
TQ_API tq_status tq_sequence_flags(const tq_cache *cache, tq_sequence sequence, uint64_t *flags);

/* ---- 6. Batch: the sequences of one step --------------------------------------------------------------- */

/* Room for one plan of up to max_batch_sequences sequences. A cache may have several batches. */
TQ_API tq_status tq_batch_create(tq_cache *cache, tq_batch **batch);
/* NULL is accepted. */
TQ_API tq_status tq_batch_destroy(tq_batch *batch);

/* Plans one step: sequence i gets new_tokens[i] >= 0 more tokens (room is reserved in all layers, its length
 * grows at once) and asks query_tokens[i] >= 0 queries, which are its last tokens (NULL = new_tokens).
 *   num_sequences  0 .. max_batch_sequences; sequences[] distinct and alive; query_tokens[i] <= new length,
 *                  or any number where new_tokens[i] = 0 (cross-attention, see Masks)
 * Rows of k, v are the new tokens of all sequences one after the other, rows of q, out, lse the query tokens
 * likewise. append and attend of every layer follow the plan, which is in force until the batch's next one,
 * or until one of its sequences is planned in another batch, freed, or loses tokens. CAPACITY: pool,
 * max_raw_tokens, max_sequence_tokens or batch limits exceeded; the text has the numbers. CAPTURE: inside a
 * graph. */
TQ_API tq_status tq_batch_plan(tq_batch *batch, int32_t num_sequences, const tq_sequence *sequences,
                               const int64_t *new_tokens, const int64_t *query_tokens, void *stream);

/* Rows of the plan: new_tokens of k and v, query_tokens of q, out and lse. in_force: 1 if append and attend
 * accept the plan now; else 0, and the counts are 0. Each pointer may be NULL. No synchronisation. */
TQ_API tq_status tq_batch_rows(const tq_batch *batch, int64_t *new_tokens, int64_t *query_tokens,
                               int32_t *in_force);

/* ---- 7. Append and attend ------------------------------------------------------------------------------ */

/* Where element (token, head, dim) lies: base + token * token_stride + head * head_stride + dim. Strides in
 * elements, 0 = dense [token][head][dim]. dim is always contiguous. NULL instead of a layout = dense. */
typedef struct tq_tensor_layout {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t key_token_stride; /* k of append and read */
  int64_t key_head_stride;
  int64_t value_token_stride; /* v of append and read */
  int64_t value_head_stride;
} tq_tensor_layout;

/* Encodes the new tokens of the batch into one layer.
 *   k  [new tokens][num_kv_heads][head_dim] io_dtype, v likewise with value_dim; NULL only without new tokens
 *      (TQ_LATENT: v must be NULL)
 * Each layer of a plan is appended once; a repeated append writes the same bytes again. INVALID_STATE without
 * a plan in force, behind a gap (see Written), or again after a fork that shares the new tokens. */
TQ_API tq_status tq_cache_append(tq_cache *cache, int32_t layer, const tq_batch *batch, const void *k,
                                 const void *v, const tq_tensor_layout *layout, void *stream);

typedef struct tq_attend_params {
  uint32_t struct_size;
  int32_t out_dtype;        /* 0 = io_dtype; TQ_F32 keeps the full precision of a partial result */
  float softmax_scale;      /* 0 = 1 / sqrt(head_dim); else 2^-126 .. 2^100 in size, of either sign */
  float logit_softcap;      /* c: logits become c * tanh(logit / c), 2^-126 <= c <= 2^100; 0 = off */
  int64_t sliding_window;   /* tokens that a query sees, its own included; 0 = all */
  const float *sink_logits; /* [num_q_heads] float32 on the cache's device, natural units, added to the
                             * softmax's sum only; NULL = none. -inf: no sink for this head. +inf: all weight
                             * is the sink's: out 0, lse +inf. NaN: out and lse of the head are NaN */
  int32_t history_only;     /* 1: without the plan's new tokens; the caller attends them and merges by LSE */
  int32_t tree_words;       /* words of a query in tree_mask: 1 (0 = 1) or 2; 0 without tree_mask */
  int64_t q_token_stride;   /* elements, 0 = dense [token][q head][dim]; same for out below */
  int64_t q_head_stride;
  int64_t out_token_stride;
  int64_t out_head_stride;
  const int32_t *visible_begin; /* [query tokens], both or neither. These and what follows: see Masks; on the
                                 * cache's device, read as the call, or its graph, runs; NULL = none */
  const int32_t *visible_end;
  const uint64_t *tree_mask;    /* [query tokens][tree_words] */
  const float *alibi_slopes;    /* [num_q_heads] float32, natural units */
  const void *chunk_k;          /* k and v of the plan's new tokens, as append's: see Chunk; both or none */
  const void *chunk_v;
  const tq_tensor_layout *chunk_layout; /* NULL = dense; read in the call */
} tq_attend_params;

/* Zeroes *params and sets struct_size. NULL: INVALID_ARGUMENT. */
TQ_API tq_status tq_attend_params_init(tq_attend_params *params);

/* out = softmax(q . K^T * softmax_scale) . V for the batch's query tokens; each sees up to its own position,
 * or what its mask says (Masks).
 *   q    [query tokens][num_q_heads][head_dim] io_dtype; head h reads kv head h * num_kv_heads / num_q_heads
 *   out  [query tokens][num_q_heads][value_dim] out_dtype
 *   lse  [query tokens][num_q_heads] float32, log of the softmax's sum with its sink logit; NULL = not wanted
 *   params NULL = defaults
 *   workspace  NULL = the cache's own, else tq_attend_workspace_bytes on the cache's device, 256-byte aligned
 * A query that sees no token: out exactly 0, lse -inf (with a sink logit: that logit, to the bit). A row of
 * q, one token and head, that holds NaN or infinity gives NaN in its row of out and its lse, whatever it
 * sees, and in no other row. The result is finite for finite q, and independent of what unwritten memory
 * holds. What its bits depend on: see Bits.
 * INVALID_STATE without a plan in force, or if a query could see tokens that are not written (with visible
 * ranges: if the sequence has such tokens), or if the plan does not fit the masks (more queries than tokens
 * without visible ranges; queries of a tree that are not new tokens; more new tokens than mask bits). */
TQ_API tq_status tq_cache_attend(tq_cache *cache, int32_t layer, const tq_batch *batch, const void *q,
                                 void *out, float *lse, const tq_attend_params *params, void *workspace,
                                 size_t workspace_bytes, void *stream);
/* Workspace that tq_cache_attend needs: enough for every plan that the cache admits. No plan is needed. */
TQ_API tq_status tq_attend_workspace_bytes(const tq_cache *cache, size_t *bytes);

/* Merges num_states partial results of the same rows: context-parallel ranks, prefill in parts, history_only.
 *   outs[s]  [rows][dim] dtype, lses[s] [rows] float32, both on device_type / device_id. lse -inf: an empty
 *            part, its out is not read. lse +inf takes all: the out of the first such part is the row's. lse
 *            NaN: that row of out and lse is NaN. A part of weight 0 adds nothing, whatever its out holds
 *   out      [rows][dim] dtype; lse [rows] or NULL. A row of empty parts alone: out 0, lse -inf
 * In index order, in float32. num_states 1 .. 1024. outs, lses: host arrays. out may be one of outs. */
TQ_API tq_status tq_merge_states(int32_t num_states, const void *const *outs, const float *const *lses,
                                 int64_t rows, int32_t dim, tq_dtype dtype, void *out, float *lse,
                                 tq_device_type device_type, int32_t device_id, void *stream);

/* Decoded keys and values of tokens first .. first + count - 1, exact where exact copies are kept (Window).
 *   k [count][num_kv_heads][head_dim] io_dtype, v likewise; either may be NULL
 * INVALID_ARGUMENT: the range is not inside the sequence. INVALID_STATE: some of it is not written. */
TQ_API tq_status tq_cache_read(tq_cache *cache, int32_t layer, tq_sequence sequence, int64_t first,
                               int64_t count, void *k, void *v, const tq_tensor_layout *layout, void *stream);

/* ---- 8. Pages that an engine owns ---------------------------------------------------------------------- */

/* For engines that keep block tables and slot mappings themselves: a codec knows shapes, codes, rotations and
 * centres, and has neither pages nor sequences. Keys and values lie in blocks of the engine's memory, and
 * what varies from step to step is read from its arrays, on the device, as the call (or its graph) runs: the
 * host knows counts of rows and bounds. A step, for every group of layers with block tables of their own:
 *
 *     tq_paged_workspace_bytes(codec, &step, &bytes);                      // once, for the largest step
 *     tq_paged_plan(codec, &step, workspace, bytes, NULL);                 // once a step
 *     for (int32_t layer = 0; layer < num_layers; layer++) {
 *       tq_paged_append(codec, layer, &pages[layer], &step, k, v, NULL, workspace, bytes, NULL);
 *       tq_paged_attend(codec, layer, &pages[layer], &step, q, out, NULL, NULL, workspace, bytes, NULL);
 *     }
 *
 * Block      block_size tokens, a multiple of 32, of all kv heads of a layer: block_size / 32 tiles for each
 *   kv head, as in a page of FORMAT.md. A cache and a codec of equal fingerprint write equal bytes for equal
 *   tokens and give equal bits of out and lse. What unwritten memory holds never matters.
 * Slots      Token t of a step goes to slot slot_mapping[t] = block * block_size + place in the block. -1
 *   (padding, holes): it is not stored, and its rows of k and v are not read. Slots may stand in any order;
 *   of several tokens for one slot the last one stays. The other tokens of a block keep their bits.
 * Requests   Request r has seq_lens[r] tokens. Its last ones are its queries, in the rows query_start_loc[r]
 *   .. query_start_loc[r + 1] - 1 of q and out. Token i of it is in the block block_table[r][i / block_size].
 *   Entries that no query sees (beyond the length, in front of a window,
 *   outside every visible range) may be stale: they are not looked at. Masks and windows are those of
 *   tq_attend_params, where a request's queries are its new tokens: n queries of a sequence of L tokens. Rows
 *   of a request of length 0, and of none: out 0, lse -inf, whatever q and sink_logits hold. A query in front
 *   of token 0 (more queries than tokens) sees nothing, but with visible ranges what they say.
 * Workspace  holds the plan from tq_paged_plan on; its address and the step's numbers must stay the same for
 *   the calls that follow. A workspace for larger num_reqs, num_tokens, max_query_len, max_seq_len suffices.
 *   No call allocates or synchronises. The bounds choose work lists and never change a bit.
 * Checks     On the CPU what the arrays hold is checked before anything is written: INVALID_ARGUMENT. On CUDA
 *   the device alone reads them, and leaves out what cannot be (a slot or block that there is not, a request
 *   beyond the bounds, whose rows are then nobody's); tq_codec_check returns TQ_NOTICED_OUT_OF_RANGE. A block
 *   number that a query sees and that there is not, it takes for another block's. That a workspace has the
 *   step's plan is the caller's to see to.
 * Graphs     plan, append, attend, read and copy may be captured, all of a step in one graph: replayed, it
 *   reads what the arrays hold then. Bounds, counts and strides stay those of the capture.
 * Threads    Calls on one codec may run at once, each step with its own workspace and no two of them writing
 *   to one tile; tq_codec_set_centres, tq_codec_check and tq_codec_destroy run alone.
 * Exact copies of windows and sinks are a cache's: layers that need more give themselves 16 bits. */
typedef struct tq_codec tq_codec;

/* config: as for a cache, device_type, num_layers .. code_family, layer_*_bits, rotation .. value_codebook,
 * key_family .. value_levels, num_threads, flags, allocator and layers (sliding_window is what a query sees;
 * shares_layer: attend with the pages of that layer). page_size is the block size where tq_pages gives none,
 * and part of the fingerprint. All that says how many tokens or sequences there are, the pool, and
 * window_tokens, sink_tokens, rollback_tokens must be 0. Status as tq_cache_create, every reason in
 * tq_last_error. */
TQ_API tq_status tq_codec_create(const tq_cache_config *config, void *stream, tq_codec **codec);
/* NULL is accepted. INVALID_STATE while a call on it runs. */
TQ_API tq_status tq_codec_destroy(tq_codec *codec);
/* As tq_cache_get_config; what must be 0 is. */
TQ_API tq_status tq_codec_get_config(const tq_codec *codec, tq_cache_config *config);
/* As tq_cache_set_centres. Blocks that were written before mean something else afterwards. */
TQ_API tq_status tq_codec_set_centres(tq_codec *codec, int32_t layer, const float *key_centre,
                                      const float *value_centre);
/* As tq_cache_fingerprint: equal to that of a cache of the same layers and page_size. */
TQ_API tq_status tq_codec_fingerprint(const tq_codec *codec, uint64_t *fingerprint);
/* As tq_cache_check. */
TQ_API tq_status tq_codec_check(tq_codec *codec, void *stream, uint64_t *flags);

/* Where the blocks of one layer are: kv head h of block b at base + b * block_stride + h * head_stride. */
typedef struct tq_pages {
  uint32_t struct_size;
  int32_t block_size;   /* tokens, a multiple of 32; 0 = page_size of the codec */
  void *base;           /* on the codec's device; base and strides: multiples of 64 */
  int64_t num_blocks;   /* block numbers run below it */
  int64_t block_stride; /* bytes; 0 with head_stride 0: [blocks][heads][bytes] without gaps */
  int64_t head_stride;  /* bytes */
} tq_pages;

typedef int32_t tq_page_order;
#define TQ_PAGES_BLOCKS_FIRST 1 /* [blocks][heads][bytes] */
#define TQ_PAGES_HEADS_FIRST 2  /* [heads][blocks][bytes] */

typedef struct tq_page_layout {
  uint32_t struct_size;
  int32_t alignment;        /* of base and strides, bytes */
  int64_t block_bytes;      /* of a block, all kv heads */
  int64_t block_head_bytes; /* of one of its kv heads */
  int64_t token_bytes;      /* a token's share of block_bytes, exactly */
  int64_t block_stride;     /* what tq_pages takes */
  int64_t head_stride;
  int64_t total_bytes;      /* of all blocks */
} tq_page_layout;
/* Fills *layout (struct_size set) for num_blocks >= 0 blocks of block_size tokens (0 = page_size) of a layer,
 * in an order. A layer that shares another's tokens: that layer's. */
TQ_API tq_status tq_codec_page_layout(const tq_codec *codec, int32_t layer, int32_t block_size,
                                      int64_t num_blocks, tq_page_order order, tq_page_layout *layout);

/* One step. Arrays are on the codec's device and stay unchanged until its calls have run. */
typedef struct tq_paged_step {
  uint32_t struct_size;
  int32_t num_reqs;               /* 0 or more, padding included */
  int64_t num_tokens;             /* rows of k, v, q, out and lse, padding included; below 2^30 */
  int32_t max_query_len;          /* no request has more queries, */
  int32_t max_seq_len;            /* or more tokens */
  const int64_t *slot_mapping;    /* [num_tokens]; NULL: a step without append */
  const int32_t *block_table;     /* [num_reqs][block_table_stride]; attend alone reads it, and may
                                   * bring another than the plan's; NULL: a step without attend */
  int64_t block_table_stride;     /* entries; * block_size >= max_seq_len */
  const int32_t *seq_lens;        /* [num_reqs]; NULL: a step without attend, as query_start_loc */
  const int32_t *query_start_loc; /* [num_reqs + 1], from 0 on, not falling; at most num_tokens */
} tq_paged_step;

/* Workspace of steps with at most these num_reqs, num_tokens, max_query_len and max_seq_len; the step's other
 * fields are not looked at. */
TQ_API tq_status tq_paged_workspace_bytes(const tq_codec *codec, const tq_paged_step *step, size_t *bytes);

/* Reads slot_mapping, seq_lens and query_start_loc, and writes the plan of the step to the workspace (on the
 * codec's device, 256-byte aligned). WORKSPACE_TOO_SMALL. */
TQ_API tq_status tq_paged_plan(const tq_codec *codec, const tq_paged_step *step, void *workspace,
                               size_t workspace_bytes, void *stream);

/* Encodes the tokens of the step into the slots of one layer's blocks.
 *   k  [num_tokens][num_kv_heads][head_dim] io_dtype, v likewise with value_dim
 * INVALID_STATE if the workspace holds no plan of this step (CPU). INVALID_ARGUMENT for a slot beyond the
 * blocks (CPU: see Checks), and for a layer that shares another's tokens. */
TQ_API tq_status tq_paged_append(const tq_codec *codec, int32_t layer, const tq_pages *pages,
                                 const tq_paged_step *step, const void *k, const void *v,
                                 const tq_tensor_layout *layout, void *workspace, size_t workspace_bytes,
                                 void *stream);

/* out = softmax(q . K^T * softmax_scale) . V for the queries of the step: shapes and params as in
 * tq_cache_attend with num_tokens rows, every one of which is written. With a tree_mask max_query_len is at
 * most 64 * tree_words. Append the step's tokens first (or history_only); a layer that shares another's
 * tokens takes that layer's pages. INVALID_STATE as tq_paged_append, INVALID_ARGUMENT for a block number that
 * a query sees and that there is not (CPU: see Checks). */
TQ_API tq_status tq_paged_attend(const tq_codec *codec, int32_t layer, const tq_pages *pages,
                                 const tq_paged_step *step, const void *q, void *out, float *lse,
                                 const tq_attend_params *params, void *workspace, size_t workspace_bytes,
                                 void *stream);

/* Decoded keys and values of slots [count] (on the codec's device).
 *   k  [count][num_kv_heads][head_dim] io_dtype, v likewise; either may be NULL
 * Slot -1: a row of zeros. What was never written decodes to anything. */
TQ_API tq_status tq_paged_read(const tq_codec *codec, int32_t layer, const tq_pages *pages,
                               const int64_t *slots, int64_t count, void *k, void *v,
                               const tq_tensor_layout *layout, void *stream);

/* Copies blocks of one layer: pairs[i][0] of source to pairs[i][1] of target, pairs [count][2] on the codec's
 * device; a pair with a -1 is left out. Block sizes must be equal, strides need not; source may be target. No
 * block may be a pair's target and in another pair. */
TQ_API tq_status tq_paged_copy(const tq_codec *codec, int32_t layer, const tq_pages *source,
                               const tq_pages *target, const int64_t *pairs, int64_t count, void *stream);

/* ---- 9. State that travels ----------------------------------------------------------------------------- */

/* A part of a sequence, and what there is of it. Layers and kv heads have their numbers in the whole model,
 * so that a part means the same to every rank. tq_sequence_describe reads first_layer .. num_tokens (not
 * io_dtype) and fills in all; pass the result on to export, and along with the bytes to import. */
typedef struct tq_state {
  uint32_t struct_size;
  int32_t first_layer;     /* ignored if num_layers = 0 */
  int32_t num_layers;      /* 0 = all of the cache */
  int32_t first_kv_head;   /* ignored if num_kv_heads = 0 */
  int32_t num_kv_heads;    /* 0 = all of each layer; stays 0 if the layers have different ones */
  int32_t io_dtype;        /* of the exact copies; 0 = the part has none */
  int64_t first_token;
  int64_t num_tokens;      /* 0 = to the sequence's end */
  int64_t exact_sinks;     /* tokens of the part before this one have exact copies, */
  int64_t exact_first;     /* and those from this one on; positions in the sequence */
  int64_t rollback_tokens; /* layers with a sliding_window: tokens in front of the last sliding_window */
  uint64_t flags;          /* TQ_NOTICED_NONFINITE, TQ_NOTICED_SATURATED of the sequence */
  uint64_t identity;       /* hash of what the bytes mean: codes, shapes, rotation, centres, layers, heads */
  int64_t bytes;           /* of the part in memory */
  uint32_t fields[16];     /* hashes of what is behind identity, by which an error names it; 0: unknown */
} tq_state;

/* Completes *state (struct_size set, unused fields zero or of an earlier call).
 * INVALID_ARGUMENT: a layer, kv head or token is not there; the text names the field. INVALID_STATE: a layer
 * lacks tokens of the part (see Written). No synchronisation: flags may lag on CUDA. */
TQ_API tq_status tq_sequence_describe(const tq_cache *cache, tq_sequence sequence, tq_state *state);

/* Writes the part to memory: FORMAT.md 6.1. Equal states give equal bytes, on any device, wherever pages lie
 * and however large they are.
 *   state   as tq_sequence_describe has completed it; INVALID_STATE if the sequence has something else now
 *   memory  bytes >= state->bytes of them, 16-byte aligned; NULL only if state->bytes is 0. Of the host, or
 *           of a CUDA cache's own device
 * CUDA: in stream order. To the device's memory, and to pinned memory of the host (cudaHostAlloc,
 * cudaHostRegister), the call enqueues its work and returns: the bytes are there when stream has passed it.
 * To other memory it waits for stream, and has up to 4 MiB of pinned memory for its time. One call a layer,
 * on a stream that an event puts behind the layer's append, lets transfers run beside the layers to come. A
 * failed call may have written to memory. CAPTURE: inside a graph. */
TQ_API tq_status tq_sequence_export(tq_cache *cache, tq_sequence sequence, const tq_state *state,
                                    void *memory, size_t bytes, void *stream);

/* The other way, as export does it: memory must stay as it is until stream has passed the call, if that does
 * not wait. Puts the part behind the tokens that its layers hold, bit for bit. The sequence grows, in all
 * layers, by the first part that ends behind it; each layer holds the tokens once its own part has come
 * (see Written). kv heads may come some at a time, in order, and count when all are there: so ranks merge.
 *   state   what described the part; memory: its bytes, as for export
 * Page sizes, windows, capacities and devices may differ; of exact copies the cache keeps what it would, and
 * fewer where the part has fewer (TQ_NOTICED_SHORT_WINDOW). A plan that holds the sequence is out of force if
 * the sequence grows. The bytes are trusted: without checksums on the way use tq_sequence_save.
 * INCOMPATIBLE, naming the field: identity or io_dtype are not this cache's. INVALID_ARGUMENT: fields of
 * state contradict each other. INVALID_STATE: the first token is not the next one of a layer; kv heads out of
 * order; a fork shares the tokens' pages; another layer's part had tokens that this one lacks. CAPACITY as
 * tq_batch_plan. CAPTURE.
 * A failed call leaves lengths, pages and what layers hold as they were. */
TQ_API tq_status tq_sequence_import(tq_cache *cache, tq_sequence sequence, const tq_state *state,
                                    const void *memory, size_t bytes, void *stream);

/* Where a saved sequence goes and comes from. Called on the calling thread, in order, during save and load
 * alone; the cache is busy meanwhile. write, read: all count bytes (at most 64 KiB) or a failure. Result 0 =
 * done; read: 1 = fewer bytes are left; anything else fails the call with TQ_ERROR_IO and is in its text.
 * A keyed MAC, if mac is given, tells who wrote: mac(user, bytes, count, NULL) is called with all bytes in
 * their order, at last mac(user, NULL, 0, tag) once, and puts mac_bytes bytes to tag. Save writes them at the
 * end. Load wants the same there, else CORRUPT_DATA: no sequence is there before that. A load without mac
 * does not look at them. Result 0, or the call fails with TQ_ERROR_IO. */
typedef struct tq_io {
  uint32_t struct_size;
  int32_t mac_bytes; /* 16 .. 64; 0 without mac */
  void *user;
  int32_t (*write)(void *user, const void *bytes, size_t count);          /* save needs it */
  int32_t (*read)(void *user, void *bytes, size_t count);                 /* load needs it */
  int32_t (*mac)(void *user, const void *bytes, size_t count, void *tag); /* NULL: none */
} tq_io;

/* Writes a sequence, all layers and tokens, in a form that says what it is and whether it is whole: FORMAT.md
 * 6.2. Waits for stream; takes up to 4 MiB for its time (CUDA: pinned). To be safe from crashes write a new
 * file, sync it and rename it. Checksums find damage; they do not tell who wrote. IO; INVALID_STATE: a layer
 * lacks tokens; CAPTURE. The sequence is not changed. */
TQ_API tq_status tq_sequence_save(tq_cache *cache, tq_sequence sequence, const tq_io *io, void *stream);

/* A new sequence from what save wrote, on any device, with any page size, window and capacity; a rank of a
 * tensor-parallel group may load what the whole, or a rank with more kv heads, saved. No byte of the input is
 * believed: sizes are the cache's own, and the sequence is there once the last checksum has agreed. A failed
 * call leaves the cache as it was, but for its position in the input. Reads not beyond what save wrote.
 * CORRUPT_DATA: damaged, cut short, or nothing that save writes. INCOMPATIBLE, naming the field: of another
 * format version, geometry, codebook, rotation or centres. CAPACITY: max_sequences, max_sequence_tokens or
 * the pools. IO; CAPTURE. Waits for stream; memory as save. */
TQ_API tq_status tq_sequence_load(tq_cache *cache, const tq_io *io, void *stream, tq_sequence *sequence);

/* ---- 10. Vectors on their own -------------------------------------------------------------------------- */

/* A quantizer turns vectors of 1 to 8192 numbers into records of code_bytes bytes each (FORMAT.md section 8),
 * dense in memory, one after the other, readable one by one:
 *
 *     tq_quantizer_config config = {sizeof config};
 *     tq_quantizer *quantizer;
 *     config.dim = 1536, config.family = TQ_CODE_SCALAR, config.bits = 4;
 *     tq_quantizer_create(&config, &quantizer);
 *     tq_quantizer_encode(quantizer, x, 100000, codes, NULL, NULL);             // x [100000][1536]
 *     tq_quantizer_search(quantizer, q, 8, codes, 100000, NULL, 10, scores, ids, NULL);
 *     tq_quantizer_destroy(quantizer);
 *
 * Families  SCALAR, 1 .. 8 bits: 1 .. 6 by Lloyd-Max levels, 7 and 8 by a uniform grid. PROD, 2 .. 4 bits in
 *   all: estimates of inner products are unbiased over seeds, with more variance than SCALAR at equal bits.
 *   GROUPED, 2, 3, 4, 8 bits. LEVELS, 1 .. 8 bits. With outlier_channels (SCALAR): these at bits + 1, each
 *   part with a rotation and a scale of its own.
 * Padding   A rotation has m * 2^k coordinates, m = 1 3 5 7 9, k >= 4: dim is padded with zeros to the next
 *   such number (at most a fifth more from 16 on), which are coded too. tq_quantizer_get_info says by how
 *   much. GROUPED has none.
 * Bits      Records are the same on every machine and for any number of threads, and so are inner products:
 *   queries are rounded to 16 bits relative to their largest rotated coordinate (error of a product: at most
 *   2^-16 of it times the sum of the levels' sizes), products with codes are summed as integers. LEVELS (and
 *   PROD with levels): in double.
 * Input     x and queries: io_dtype, on the quantizer's device. In x NaN is taken as 0, sizes above 2^64 as
 *   2^64; noticed says so. A query that is not finite: NaN.
 * Threads   Calls on one quantizer may run at once; destroy alone.
 * CUDA      All vectors, queries, records and results lie on device_id; calls are enqueued on their stream
 *   and return, but for encode with noticed, which waits for it. Records and products are the CPU's, bit for
 *   bit. inner_products and search work in memory of the quantizer's, which the first of them takes and
 *   larger ones enlarge; one that follows another on another stream waits for it. They and encode with
 *   noticed may not be captured (CAPTURE), the others may. Destroy waits for the device. calibrate_*:
 *   NOT_SUPPORTED; what a CPU quantizer of the same configuration finds serves both. */
typedef struct tq_quantizer tq_quantizer;

typedef struct tq_quantizer_config {
  uint32_t struct_size;
  int32_t device_type;     /* 0 = CPU */
  int32_t dim;             /* required: 1 .. 8192 */
  int32_t io_dtype;        /* of x and queries; 0 = TQ_F32 */
  int32_t family;          /* TQ_CODE_*; 0 = TQ_CODE_SCALAR */
  int32_t bits;            /* of a coordinate, required; PROD: its sign included */
  int32_t rotation;        /* 0 = TQ_ROTATION_HADAMARD; DENSE: dim up to 1536; GROUPED: 0 */
  int32_t scale_rule;      /* TQ_SCALE_*; 0 = LS, with levels PAPER; GROUPED: 0 */
  int32_t group_size;      /* GROUPED: 16, 32 or 64; else 0 */
  int32_t sketch;          /* PROD: TQ_SKETCH_*, 0 = ORTHOGONAL; else 0 */
  int32_t sketch_rule;     /* PROD: TQ_SKETCH_*, 0 = UNBIASED; else 0 */
  float sketch_factor;     /* PROD: 0 = by sketch_rule; what the estimate of the residual is multiplied by */
  int32_t num_outliers;    /* SCALAR: 0 or, below dim, the number of outlier_channels; the paper has 32 */
  int32_t num_threads;     /* 0 = num_units of the device */
  const int32_t *outlier_channels; /* [num_outliers], rising; copied */
  uint64_t seed;           /* any value */
  const tq_codebook *codebook; /* SCALAR without outliers: NULL = built in for dim, else for N(0,1) */
  const tq_levels *levels; /* LEVELS: required, of `bits`. PROD: NULL, or of bits - 1 */
  uint64_t flags;          /* TQ_FLAG_NO_SCALE_SEARCH */
  const tq_allocator *allocator;
  int32_t device_id;       /* 0 on the CPU */
  int32_t reserved;        /* must be 0 */
} tq_quantizer_config;

typedef struct tq_quantizer_info {
  uint32_t struct_size;
  int32_t rotated_dim;  /* coordinates of a rotated vector: dim and the padding; GROUPED: dim */
  int64_t code_bytes;   /* of a record, scales included */
  uint64_t fingerprint; /* equal: records mean the same */
  float sketch_factor;  /* in use; 0 without a sketch */
  uint32_t reserved;
} tq_quantizer_info;

/* INVALID_ARGUMENT, NOT_SUPPORTED: every reason in tq_last_error. */
TQ_API tq_status tq_quantizer_create(const tq_quantizer_config *config, tq_quantizer **quantizer);
/* NULL is accepted. INVALID_STATE while a call on it runs. */
TQ_API tq_status tq_quantizer_destroy(tq_quantizer *quantizer);
/* info->struct_size must be set. */
TQ_API tq_status tq_quantizer_get_info(const tq_quantizer *quantizer, tq_quantizer_info *info);

/* x [count][dim] -> codes [count][code_bytes]. noticed (on the host): TQ_NOTICED_* of x, or NULL. stream here
 * and below: NULL on the CPU. */
TQ_API tq_status tq_quantizer_encode(const tq_quantizer *quantizer, const void *x, int64_t count, void *codes,
                                     uint64_t *noticed, void *stream);
/* codes [count][code_bytes] -> x [count][dim]. */
TQ_API tq_status tq_quantizer_decode(const tq_quantizer *quantizer, const void *codes, int64_t count, void *x,
                                     void *stream);
/* out [num_queries][count] = queries [num_queries][dim] . what codes [count][code_bytes] decode to. */
TQ_API tq_status tq_quantizer_inner_products(const tq_quantizer *quantizer, const void *queries,
                                             int64_t num_queries, const void *codes, int64_t count,
                                             float *out, void *stream);
/* The k best records of each query, best first, the lower index first of equals.
 *   bias    [count] or NULL: added to the inner products. -|x|^2 / 2 ranks by distance.
 *   scores  [num_queries][k]; ids [num_queries][k]: indices of records. Where count < k or the query is not
 *           finite: -infinity and -1
 * k: 1 .. 65536. INVALID_ARGUMENT: a bias is NaN (CUDA: a record whose bias is NaN is not found). */
TQ_API tq_status tq_quantizer_search(const tq_quantizer *quantizer, const void *queries, int64_t num_queries,
                                     const void *codes, int64_t count, const float *bias, int64_t k,
                                     float *scores, int64_t *ids, void *stream);

/* The rotation alone: x [count][dim] -> y [count][rotated_dim], of the same length, in float32 arithmetic;
 * with outliers first their rotated part, then the others'. */
TQ_API tq_status tq_quantizer_rotate(const tq_quantizer *quantizer, const void *x, int64_t count, float *y,
                                     void *stream);
/* The inverse: y [count][rotated_dim] -> x [count][dim]. */
TQ_API tq_status tq_quantizer_unrotate(const tq_quantizer *quantizer, const float *y, int64_t count, void *x,
                                       void *stream);

/* The sketch_factor of the least squared error over x [count][dim]: sum <r, v> / sum <v, v>, r the residuals,
 * v their estimates at factor 1. INVALID_ARGUMENT: not PROD, or no residuals. */
TQ_API tq_status tq_calibrate_sketch_factor(const tq_quantizer *quantizer, const void *x, int64_t count,
                                            float *factor, void *stream);
/* Lloyd-Max levels of the rotated coordinates of x [count][dim], each vector divided by its length: levels
 * [2^bits] and boundaries [2^bits - 1], half way between them, as tq_levels takes them (unit 1); bits 1 .. 8.
 * They begin as those of a normal distribution; at most 1000 rounds. error: mean squared error of the rotated
 * vectors, relative to |x|^2, or NULL. INVALID_ARGUMENT: no vector that is not zero; GROUPED or outliers. */
TQ_API tq_status tq_calibrate_levels(const tq_quantizer *quantizer, const void *x, int64_t count,
                                     int32_t bits, float *levels, float *boundaries, double *error,
                                     void *stream);

/* ---- 11. Calibration ----------------------------------------------------------------------------------- */

/* What some prompts of the model's own kind say of its keys and values: centres, the order of coordinates and
 * the widths of key bands, layers that are better left raw, bits for each layer.
 *
 *     tq_calibration_config config = {sizeof config};
 *     config.num_layers = 32, config.num_q_heads = 32, config.num_kv_heads = 8, config.head_dim = 128;
 *     config.io_dtype = TQ_F32;
 *     tq_calibration_create(&config, &calibration);
 *     tq_calibration_feed(calibration, layer, count, q, k, v);      // each layer, as often as there is more
 *     tq_calibration_choose(calibration, &goal, layers, 32, NULL);  // tq_layer_config layers[32]
 *     cache_config.layers = layers, tq_cache_create(&cache_config, NULL, &cache);
 *     tq_calibration_set_centres(calibration, cache);
 *
 * Every fourth run of 32 tokens of a layer is held out: it does not count in what is measured, and what is
 * measured is judged by it. A layer gets bands only where they make the error of held-out logits smaller by
 * 2 % than the same bits for all coordinates. The file has no seed: fingerprints and saved states of a cache
 * follow from the centres, orders and widths themselves.
 * Memory: sums of the layers' heads, and held_out_tokens rows of q, k and v of each layer. */
typedef struct tq_calibration tq_calibration;

typedef struct tq_calibration_config {
  uint32_t struct_size;
  int32_t num_layers;      /* required, as the next three */
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;        /* a multiple of 4 from 8 to 256 */
  int32_t value_dim;       /* 0 = head_dim */
  int32_t io_dtype;        /* of q, k and v; required */
  int32_t key_family;      /* of what is compared: TQ_CODE_SCALAR (0 too) or TQ_CODE_TRELLIS */
  int32_t value_family;
  int32_t held_out_tokens; /* kept of each layer, 32 .. 4096; 0 = 128 */
  int32_t turn_keys;       /* 1: also layers get matrices of their keys, found from second moments of keys and
                            * queries, where these make the error of held-out logits at 3 bits smaller by 2 %:
                            * for caches that take them. Feed each token's own queries: few that come again
                            * are no judges. 16 head_dim^2 bytes more a kv head. */
} tq_calibration_config;

/* What is wanted of tq_calibration_choose. */
typedef struct tq_calibration_goal {
  uint32_t struct_size;
  float key_bits;     /* of a key's coordinate, on average: 2, 2.5, 3, 3.5 or 4; with bands two bytes more for
                       * each band but one. Ignored with max_error */
  int32_t value_bits; /* 2, 3 or 4; likewise */
  float max_error;    /* 0, or the error, on average over layers, to be reached with the fewest bytes: that of
                       * held-out logits (their variance, softmax_scale 1 / sqrt(head_dim)) plus that of
                       * values, relative to their square */
  float outlier;      /* layers whose median key is longer than this many times that of the median layer keep
                       * 16 bits; 0 = 4 */
} tq_calibration_goal;

typedef struct tq_calibration_result {
  uint32_t struct_size;
  int32_t banded_layers;
  int32_t raw_layers;
  float error;         /* as max_error, of what was chosen */
  float uniform_error; /* of key_bits (rounded down) and value_bits in all layers, without bands; 0 with
                        * max_error */
  uint32_t reserved;
  int64_t token_bytes; /* of a token over all layers and heads */
} tq_calibration_result;

/* INVALID_ARGUMENT names every field that is wrong. */
TQ_API tq_status tq_calibration_create(const tq_calibration_config *config, tq_calibration **calibration);
/* Frees it; NULL is accepted. */
TQ_API tq_status tq_calibration_destroy(tq_calibration *calibration);
/* The configuration with defaults resolved; config->struct_size set by the caller. */
TQ_API tq_status tq_calibration_get_config(const tq_calibration *calibration,
                                           tq_calibration_config *config);
/* Tokens of a layer, after RoPE: q [count][num_q_heads][head_dim], k [count][num_kv_heads][head_dim], v
 * [count][num_kv_heads][value_dim], dense, on the host. Numbers that are not finite: INVALID_ARGUMENT, and
 * nothing of the call counts. A calibration that was loaded takes none: INVALID_STATE. */
TQ_API tq_status tq_calibration_feed(tq_calibration *calibration, int32_t layer, int64_t count, const void *q,
                                     const void *k, const void *v);
/* The same of memory that a CUDA device reaches, behind what stream holds: waits for it, and reads the tokens
 * in pieces through up to 3 MiB of pinned memory, twice, as none counts before all are found finite. On
 * TQ_DEVICE_CPU (device_id 0, stream NULL) it is tq_calibration_feed. NO_DEVICE, DRIVER, CUDA, OUT_OF_MEMORY;
 * CAPTURE if stream is being captured; INVALID_ARGUMENT: memory that the device does not reach. */
TQ_API tq_status tq_calibration_feed_from(tq_calibration *calibration, int32_t layer, int64_t count,
                                          const void *q, const void *k, const void *v,
                                          tq_device_type device_type, int32_t device_id, void *stream);
/* A matrix for each kv head's keys, [num_kv_heads][head_dim][head_dim] float32 on the host, row by row: what
 * is coded is matrix * (key - centre), in front of the layer's own rotation and bands, and queries meet it
 * times the inverse transpose: for rotations calibrated to where queries look. Exact copies and what
 * tq_cache_read gives are keys as they came. Copied; fingerprints and states know it. head_dim^2
 * multiplications more a key of an append, and a query of an attend. CUDA: a layer's first call takes device
 * memory of (2 * head_dim^2 + head_dim + value_dim) * num_kv_heads floats, which tq_cache_bytes does not
 * count (OUT_OF_MEMORY); graphs captured before it know of no matrix. INVALID_ARGUMENT: numbers beyond 2^20,
 * or no inverse of such in float32. INVALID_STATE once a sequence holds tokens. NOT_SUPPORTED: latent layers,
 * keys of 16 bits or TQ_CODE_GROUPED. */
TQ_API tq_status tq_cache_set_key_matrix(tq_cache *cache, int32_t layer, const float *matrix);
/* The layer's key matrices as tq_cache_set_key_matrix takes them, in front of its first tokens: they and its
 * queries are measured as the matrices turn them. In the file, and set with the centres. INVALID_STATE: the
 * layer was fed, or the calibration loaded. */
TQ_API tq_status tq_calibration_set_key_matrix(tq_calibration *calibration, int32_t layer,
                                               const float *matrix);
/* layers [num_layers], of which key_bits, value_bits, key_family, value_family and key_bands are written, the
 * rest zero; key_bands points into the calibration, until the next call with it. result: NULL, or
 * struct_size set. INVALID_STATE: a layer was fed fewer than 256 tokens. INVALID_ARGUMENT: a max_error that
 * 4 bits do not reach (the text says what they do). */
TQ_API tq_status tq_calibration_choose(tq_calibration *calibration, const tq_calibration_goal *goal,
                                       tq_layer_config *layers, int32_t num_layers,
                                       tq_calibration_result *result);
/* tq_cache_set_centres of all layers of a cache of the same shape, and tq_cache_set_key_matrix of those that
 * have matrices (not of layers whose keys have 16 bits). A head has a centre only where codes of 3 bits with
 * it make the error of held-out tokens smaller; else zeros. */
TQ_API tq_status tq_calibration_set_centres(tq_calibration *calibration, tq_cache *cache);
/* key [num_kv_heads][head_dim], value [num_kv_heads][value_dim] of a layer; either may be NULL. */
TQ_API tq_status tq_calibration_centres(tq_calibration *calibration, int32_t layer, float *key, float *value);
/* The layer's key matrices, given or found, [num_kv_heads][head_dim][head_dim], NULL for the second answer
 * alone: *has is 1, or 0 where it has none, and nothing is written. With turn_keys INVALID_STATE, as choose.
 */
TQ_API tq_status tq_calibration_key_matrix(tq_calibration *calibration, int32_t layer, float *matrix,
                                           int32_t *has);
/* Writes a small file with a version and checksums: what was measured, from which choose chooses. IO. */
TQ_API tq_status tq_calibration_save(tq_calibration *calibration, const tq_io *io);
/* A calibration from what save wrote. CORRUPT_DATA, INCOMPATIBLE, IO. */
TQ_API tq_status tq_calibration_load(const tq_io *io, tq_calibration **calibration);

#ifdef __cplusplus
}
#endif

#endif /* TQKV_H */
