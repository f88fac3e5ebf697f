// SPDX-License-Identifier: Apache-2.0
// Made by generate.py from include/tqkv.h; do not edit. A test makes it anew and compares.

use core::ffi::{c_char, c_void};
use core::mem::{align_of, size_of};

constants! {
    TQ_VERSION_MAJOR: i32 = 0;
    TQ_VERSION_MINOR: i32 = 1;
    TQ_VERSION_PATCH: i32 = 0;
    /// Grows with every incompatible change of this header; equals the SONAME's number.
    TQ_ABI_VERSION: i32 = 0;
    TQ_OK: i32 = 0;
    /// a value is out of range or inconsistent; the text names it
    TQ_ERROR_INVALID_ARGUMENT: i32 = 1;
    /// right arguments, wrong moment: append without a plan, busy, ...
    TQ_ERROR_INVALID_STATE: i32 = 2;
    /// host or device allocation failed
    TQ_ERROR_OUT_OF_MEMORY: i32 = 3;
    /// max_tokens, max_sequences or a batch limit is used up
    TQ_ERROR_CAPACITY: i32 = 4;
    /// valid, but not in this build or not for this configuration
    TQ_ERROR_NOT_SUPPORTED: i32 = 5;
    /// no such device
    TQ_ERROR_NO_DEVICE: i32 = 6;
    /// the driver is absent or too old
    TQ_ERROR_DRIVER: i32 = 7;
    /// a CUDA call failed; the text has the CUDA error's name
    TQ_ERROR_CUDA: i32 = 8;
    /// struct of a newer header uses a field that is not known here
    TQ_ERROR_VERSION: i32 = 9;
    /// saved bytes fail their checks
    TQ_ERROR_CORRUPT_DATA: i32 = 10;
    /// a sequence is of another format, geometry or codebook
    TQ_ERROR_INCOMPATIBLE: i32 = 11;
    /// the text says how many bytes are needed
    TQ_ERROR_WORKSPACE_TOO_SMALL: i32 = 12;
    /// not allowed while the stream is being captured
    TQ_ERROR_CAPTURE: i32 = 13;
    TQ_ERROR_IO: i32 = 14;
    /// a bug in this library
    TQ_ERROR_INTERNAL: i32 = 99;
    /// sizeof a public struct in the library, 0 for an unknown id: a binding checks its layout at load
    /// time.
    TQ_STRUCT_CACHE_CONFIG: i32 = 1;
    TQ_STRUCT_CACHE_BYTES: i32 = 2;
    TQ_STRUCT_CACHE_MEMORY: i32 = 3;
    TQ_STRUCT_TENSOR_LAYOUT: i32 = 4;
    TQ_STRUCT_ATTEND_PARAMS: i32 = 5;
    TQ_STRUCT_DEVICE_INFO: i32 = 6;
    TQ_STRUCT_CODEBOOK: i32 = 7;
    TQ_STRUCT_ALLOCATOR: i32 = 8;
    TQ_STRUCT_LAYER_CONFIG: i32 = 9;
    TQ_STRUCT_LAYER_BYTES: i32 = 10;
    TQ_STRUCT_STATE: i32 = 11;
    TQ_STRUCT_IO: i32 = 12;
    TQ_STRUCT_PAGES: i32 = 13;
    TQ_STRUCT_PAGE_LAYOUT: i32 = 14;
    TQ_STRUCT_PAGED_STEP: i32 = 15;
    TQ_STRUCT_LEVELS: i32 = 16;
    TQ_STRUCT_QUANTIZER_CONFIG: i32 = 17;
    TQ_STRUCT_QUANTIZER_INFO: i32 = 18;
    TQ_STRUCT_KEY_BANDS: i32 = 19;
    TQ_STRUCT_CALIBRATION_CONFIG: i32 = 20;
    TQ_STRUCT_CALIBRATION_GOAL: i32 = 21;
    TQ_STRUCT_CALIBRATION_RESULT: i32 = 22;
    TQ_DEVICE_CPU: i32 = 1;
    TQ_DEVICE_CUDA: i32 = 2;
    TQ_F32: i32 = 1;
    TQ_F16: i32 = 2;
    TQ_BF16: i32 = 3;
    /// random signs + Hadamard: O(d log d); the default
    TQ_ROTATION_HADAMARD: i32 = 1;
    /// QR of a seeded Gaussian matrix, as in the paper: O(d^2), CPU only
    TQ_ROTATION_DENSE: i32 = 2;
    /// least squares: smallest error of a vector, shorter than it
    TQ_SCALE_LS: i32 = 1;
    /// no shrinkage: inner products and averages over tokens stay right; default
    TQ_SCALE_UNBIASED: i32 = 2;
    /// the vector keeps its length
    TQ_SCALE_NORM: i32 = 3;
    /// |x| times the published codebook; scale search is off with it
    TQ_SCALE_PAPER: i32 = 4;
    /// Lloyd-Max levels for each coordinate (TurboQuant_mse)
    TQ_CODE_SCALAR: i32 = 1;
    /// these at one bit less, and signs of a sketch of the residual (TurboQuant_prod)
    TQ_CODE_PROD: i32 = 2;
    /// min/max of groups of neighbours, no rotation
    TQ_CODE_GROUPED: i32 = 3;
    /// levels and boundaries of the caller's
    TQ_CODE_LEVELS: i32 = 4;
    /// as SCALAR, with twice the levels, which neighbours in a chain tell apart
    TQ_CODE_TRELLIS: i32 = 5;
    /// more rotations: a third of the variance; the default
    TQ_SKETCH_ORTHOGONAL: i32 = 1;
    /// as published: a matrix, dim up to 4096
    TQ_SKETCH_GAUSSIAN: i32 = 2;
    /// inner products right on average; the default
    TQ_SKETCH_UNBIASED: i32 = 1;
    /// least mean squared error of the decoded vector
    TQ_SKETCH_LEAST_ERROR: i32 = 2;
    TQ_KEYS_VALUES: i32 = 1;
    TQ_LATENT: i32 = 2;
    /// leave freed pages and exact copies as they are, do not zero them
    TQ_FLAG_NO_ZERO_ON_FREE: u64 = 1;
    /// encoder: one quantisation step, not the best of several
    TQ_FLAG_NO_SCALE_SEARCH: u64 = 2;
    /// one arithmetic for any number of query rows: see Bits
    TQ_FLAG_BATCH_INVARIANT: u64 = 4;
    /// a token of the window gets its codes when it leaves: see Window
    TQ_FLAG_STORE_ONCE: u64 = 8;
    /// attend may take a plan's own tokens as they are: see Chunk
    TQ_FLAG_EXACT_CHUNK: u64 = 16;
    /// NaN, infinity or above 2^64 was appended, and replaced as FORMAT.md says
    TQ_NOTICED_NONFINITE: u64 = 1;
    /// beyond +-65504 on a raw side of a float32 cache: stored as +-65504
    TQ_NOTICED_SATURATED: u64 = 2;
    /// tq_sequence_flags alone: see Window
    TQ_NOTICED_SHORT_WINDOW: u64 = 4;
    /// tq_codec_check alone: see section 8, Checks
    TQ_NOTICED_OUT_OF_RANGE: u64 = 8;
    /// \[blocks\]\[heads\]\[bytes\]
    TQ_PAGES_BLOCKS_FIRST: i32 = 1;
    /// \[heads\]\[blocks\]\[bytes\]
    TQ_PAGES_HEADS_FIRST: i32 = 2;
}

numbers! {
    tq_status = i32;
    tq_device_type = i32;
    tq_dtype = i32;
    tq_rotation = i32;
    tq_scale_rule = i32;
    /// PROD: keys alone, 2 3 4 bits, the sign included. GROUPED: 2 3 4 8 bits, each group of neighbours
    /// with a float16 scale and zero, neither rotated nor centred; beyond +-65504 it saturates
    /// (TQ_NOTICED_SATURATED). LEVELS: 1 2 3 4 5 6 8 bits. TRELLIS: caches alone, 2 3 4 bits; the bytes of
    /// SCALAR with an error a quarter to a third lower, and an append several times as long.
    tq_code_family = i32;
    tq_sketch = i32;
    tq_sketch_rule = i32;
    /// What a token of a layer is. KEYS_VALUES: a key and a value. LATENT: a key whose first value_dim
    /// coordinates are the value too (multi-head latent attention: DeepSeek, Kimi, GLM, 512 + 64), stored
    /// once. Append takes k alone, with v NULL; read gives either. These coordinates have value_bits,
    /// value_family and the value's rotation, codebook and scale rule, the head_dim - value_dim behind them
    /// (rotary) those of the key: 4 and 16 bits are 386 bytes a token at 512 + 64, 4 and 4 bits 292.
    /// key_centre has all head_dim coordinates, value_centre is NULL. value_dim and head_dim - value_dim
    /// are what head_dim may be, together at most 576. CUDA: 512 + 64, scalar codes (the rest raw as well);
    /// queries, weights and exact tokens are rounded to halves, these relative to their largest number.
    tq_layer_kind = i32;
    /// never 0; the id of a freed sequence stays invalid
    tq_sequence = i64;
    tq_page_order = i32;
}

handles! {
    tq_cache;
    tq_batch;
    /// For engines that keep block tables and slot mappings themselves: a codec knows shapes, codes,
    /// rotations and centres, and has neither pages nor sequences. Keys and values lie in blocks of the
    /// engine's memory, and what varies from step to step is read from its arrays, on the device, as the
    /// call (or its graph) runs: the host knows counts of rows and bounds. A step, for every group of
    /// layers with block tables of their own:
    ///
    /// - tq_paged_workspace_bytes(codec, &step, &bytes); // once, for the largest step tq_paged_plan(codec,
    ///   &step, workspace, bytes, NULL); // once a step for (int32_t layer = 0; layer \< num_layers;
    ///   layer++) { tq_paged_append(codec, layer, &pages\[layer\], &step, k, v, NULL, workspace, bytes,
    ///   NULL); tq_paged_attend(codec, layer, &pages\[layer\], &step, q, out, NULL, NULL, workspace, bytes,
    ///   NULL); }
    ///
    /// Block block_size tokens, a multiple of 32, of all kv heads of a layer: block_size / 32 tiles for
    /// each
    ///
    /// - kv head, as in a page of FORMAT.md. A cache and a codec of equal fingerprint write equal bytes for
    ///   equal
    /// - tokens and give equal bits of out and lse. What unwritten memory holds never matters.
    ///
    /// Slots Token t of a step goes to slot slot_mapping\[t\] = block \* block_size + place in the block.
    /// -1
    ///
    /// - (padding, holes): it is not stored, and its rows of k and v are not read. Slots may stand in any
    ///   order;
    /// - of several tokens for one slot the last one stays. The other tokens of a block keep their bits.
    ///
    /// Requests Request r has seq_lens\[r\] tokens. Its last ones are its queries, in the rows
    /// query_start_loc\[r\]
    ///
    /// - .. query_start_loc\[r + 1\] - 1 of q and out. Token i of it is in the block block_table\[r\]\[i /
    ///   block_size\].
    /// - Entries that no query sees (beyond the length, in front of a window,
    /// - outside every visible range) may be stale: they are not looked at. Masks and windows are those of
    /// - tq_attend_params, where a request's queries are its new tokens: n queries of a sequence of L
    ///   tokens. Rows
    /// - of a request of length 0, and of none: out 0, lse -inf, whatever q and sink_logits hold. A query
    ///   in front
    /// - of token 0 (more queries than tokens) sees nothing, but with visible ranges what they say.
    ///
    /// Workspace holds the plan from tq_paged_plan on; its address and the step's numbers must stay the
    /// same for
    ///
    /// - the calls that follow. A workspace for larger num_reqs, num_tokens, max_query_len, max_seq_len
    ///   suffices.
    /// - No call allocates or synchronises. The bounds choose work lists and never change a bit.
    ///
    /// Checks On the CPU what the arrays hold is checked before anything is written: INVALID_ARGUMENT. On
    /// CUDA
    ///
    /// - the device alone reads them, and leaves out what cannot be (a slot or block that there is not, a
    ///   request
    /// - beyond the bounds, whose rows are then nobody's); tq_codec_check returns TQ_NOTICED_OUT_OF_RANGE.
    ///   A block
    /// - number that a query sees and that there is not, it takes for another block's. That a workspace has
    ///   the
    /// - step's plan is the caller's to see to.
    ///
    /// Graphs plan, append, attend, read and copy may be captured, all of a step in one graph: replayed, it
    ///
    /// - reads what the arrays hold then. Bounds, counts and strides stay those of the capture.
    ///
    /// Threads Calls on one codec may run at once, each step with its own workspace and no two of them
    /// writing
    ///
    /// - to one tile; tq_codec_set_centres, tq_codec_check and tq_codec_destroy run alone.
    ///
    /// Exact copies of windows and sinks are a cache's: layers that need more give themselves 16 bits.
    tq_codec;
    /// A quantizer turns vectors of 1 to 8192 numbers into records of code_bytes bytes each (FORMAT.md
    /// section 8), dense in memory, one after the other, readable one by one:
    ///
    /// - tq_quantizer_config config = {sizeof config}; tq_quantizer \*quantizer; config.dim = 1536,
    ///   config.family = TQ_CODE_SCALAR, config.bits = 4; tq_quantizer_create(&config, &quantizer);
    ///   tq_quantizer_encode(quantizer, x, 100000, codes, NULL, NULL); // x \[100000\]\[1536\]
    ///   tq_quantizer_search(quantizer, q, 8, codes, 100000, NULL, 10, scores, ids, NULL);
    ///   tq_quantizer_destroy(quantizer);
    ///
    /// Families SCALAR, 1 .. 8 bits: 1 .. 6 by Lloyd-Max levels, 7 and 8 by a uniform grid. PROD, 2 .. 4
    /// bits in
    ///
    /// - all: estimates of inner products are unbiased over seeds, with more variance than SCALAR at equal
    ///   bits.
    /// - GROUPED, 2, 3, 4, 8 bits. LEVELS, 1 .. 8 bits. With outlier_channels (SCALAR): these at bits + 1,
    ///   each
    /// - part with a rotation and a scale of its own.
    ///
    /// Padding A rotation has m \* 2^k coordinates, m = 1 3 5 7 9, k \>= 4: dim is padded with zeros to the
    /// next
    ///
    /// - such number (at most a fifth more from 16 on), which are coded too. tq_quantizer_get_info says by
    ///   how
    /// - much. GROUPED has none.
    ///
    /// Bits Records are the same on every machine and for any number of threads, and so are inner products:
    ///
    /// - queries are rounded to 16 bits relative to their largest rotated coordinate (error of a product:
    ///   at most
    /// - 2^-16 of it times the sum of the levels' sizes), products with codes are summed as integers.
    ///   LEVELS (and
    /// - PROD with levels): in double.
    ///
    /// Input x and queries: io_dtype, on the quantizer's device. In x NaN is taken as 0, sizes above 2^64
    /// as
    ///
    /// - 2^64; noticed says so. A query that is not finite: NaN.
    ///
    /// Threads Calls on one quantizer may run at once; destroy alone. CUDA All vectors, queries, records
    /// and results lie on device_id; calls are enqueued on their stream
    ///
    /// - and return, but for encode with noticed, which waits for it. Records and products are the CPU's,
    ///   bit for
    /// - bit. inner_products and search work in memory of the quantizer's, which the first of them takes
    ///   and
    /// - larger ones enlarge; one that follows another on another stream waits for it. They and encode with
    /// - noticed may not be captured (CAPTURE), the others may. Destroy waits for the device. calibrate_\*:
    /// - NOT_SUPPORTED; what a CPU quantizer of the same configuration finds serves both.
    tq_quantizer;
    /// What some prompts of the model's own kind say of its keys and values: centres, the order of
    /// coordinates and the widths of key bands, layers that are better left raw, bits for each layer.
    ///
    /// - tq_calibration_config config = {sizeof config}; config.num_layers = 32, config.num_q_heads = 32,
    ///   config.num_kv_heads = 8, config.head_dim = 128; config.io_dtype = TQ_F32;
    ///   tq_calibration_create(&config, &calibration); tq_calibration_feed(calibration, layer, count, q, k,
    ///   v); // each layer, as often as there is more tq_calibration_choose(calibration, &goal, layers, 32,
    ///   NULL); // tq_layer_config layers\[32\] cache_config.layers = layers,
    ///   tq_cache_create(&cache_config, NULL, &cache); tq_calibration_set_centres(calibration, cache);
    ///
    /// Every fourth run of 32 tokens of a layer is held out: it does not count in what is measured, and
    /// what is measured is judged by it. A layer gets bands only where they make the error of held-out
    /// logits smaller by 2 % than the same bits for all coordinates. The file has no seed: fingerprints and
    /// saved states of a cache follow from the centres, orders and widths themselves. Memory: sums of the
    /// layers' heads, and held_out_tokens rows of q, k and v of each layer.
    tq_calibration;
}

structs! {
    TQ_STRUCT_DEVICE_INFO tq_device_info {
        struct_size: u32,
        /// TQ_DEVICE_CPU or TQ_DEVICE_CUDA
        device_type: i32,
        /// CUDA ordinal; 0 for the CPU
        device_id: i32,
        /// CUDA compute capability; 0 for the CPU
        compute_major: i32,
        compute_minor: i32,
        /// multiprocessors; CPU: threads that affinity and cgroup quotas allow
        num_units: i32,
        /// total; 0 if unknown
        memory_bytes: i64,
        /// device name; CPU: the SIMD path in use, such as "avx3_dl"
        name: [c_char; 128],
    }
    /// Levels of the caller's: a coordinate of the rotated vector, divided by unit \* |x|, gets as code the
    /// number of boundaries that it reaches.
    TQ_STRUCT_LEVELS tq_levels {
        struct_size: u32,
        /// 1 .. 8
        bits: i32,
        /// 0 = 1: levels for vectors of length 1
        unit: f32,
        reserved: u32,
        /// \[2^bits\], finite; copied
        levels: *const f32,
        /// \[2^bits - 1\], finite, not falling; copied
        boundaries: *const f32,
    }
    /// The caller's own codebook: 2^(bits-1) rising magnitudes; level = unit \* magnitude for coordinates
    /// of unit variance. bits \<= 3: magnitudes 1 .. 127. bits 4 .. 6: a magnitude m in 0 .. 127 stands for
    /// m + 1/2.
    TQ_STRUCT_CODEBOOK tq_codebook {
        struct_size: u32,
        /// 2 .. 6
        bits: i32,
        /// \> 0
        unit: f32,
        magnitude: [u8; 32],
    }
    /// Memory callbacks, both or neither, called in create and destroy calls only. alloc returns NULL on
    /// failure; alignment is a power of two \<= 4096. Memory for CUDA must be usable on device_id in stream
    /// order.
    TQ_STRUCT_ALLOCATOR tq_allocator {
        struct_size: u32,
        reserved: u32,
        user: *mut c_void,
        alloc: Option<unsafe extern "C" fn(
            user: *mut c_void,
            bytes: usize,
            alignment: usize,
            device_type: i32,
            device_id: i32,
        ) -> *mut c_void>,
        free: Option<unsafe extern "C" fn(
            user: *mut c_void,
            pointer: *mut c_void,
            bytes: usize,
            device_type: i32,
            device_id: i32,
        )>,
    }
    /// Keys of a layer in bands of 32 coordinates, each band with a width, a rotation and a scale of its
    /// own. For calibrated caches: with rotary positions few coordinates of keys and queries decide about
    /// the logits, and these take the wide bands. A token's key has 4 bytes for each bit of `bits`, and 2
    /// for each band. The layer's key_bits must be 0; its key_family SCALAR, or TRELLIS: bands of 2, 3, 4
    /// bits then have trellis codes, the others scalar ones. Not with TQ_LATENT, TQ_ROTATION_DENSE, or a
    /// head_dim above 256; key_codebook is not used. INVALID_ARGUMENT otherwise.
    TQ_STRUCT_KEY_BANDS tq_key_bands {
        struct_size: u32,
        /// head_dim / 32, rounded up
        num_bands: i32,
        /// \[num_bands\]: 1 .. 6, none above the one before; copied
        bits: *const i32,
        /// \[num_kv_heads\]\[head_dim\]: the coordinate at each place, band 0 first; each of a head's
        /// coordinates once. NULL = as they are. Copied
        order: *const i32,
    }
    /// One layer of a cache whose layers differ. A field that is 0 stands for the cache's own.
    TQ_STRUCT_LAYER_CONFIG tq_layer_config {
        /// the same in all elements of the array
        struct_size: u32,
        num_q_heads: i32,
        num_kv_heads: i32,
        head_dim: i32,
        value_dim: i32,
        key_bits: i32,
        value_bits: i32,
        /// TQ_CODE_\*
        key_family: i32,
        value_family: i32,
        rotation: i32,
        /// tokens that a query sees, its own included; 0 = all; see Sliding
        sliding_window: i32,
        /// 0 = tokens of its own; else 1 + the earlier layer whose tokens it attends to: all but
        /// num_q_heads and sliding_window are that layer's, append refuses it
        shares_layer: i32,
        /// as the cache's, for ranks whose layers hold different numbers of heads
        first_kv_head: i32,
        group_size: i32,
        /// NULL = the cache's own
        key_levels: *const tq_levels,
        value_levels: *const tq_levels,
        /// TQ_KEYS_VALUES or TQ_LATENT
        layer_kind: i32,
        reserved: u32,
        /// NULL = all of a key alike
        key_bands: *const tq_key_bands,
    }
    TQ_STRUCT_CACHE_CONFIG tq_cache_config {
        struct_size: u32,
        /// 0 = CPU
        device_type: i32,
        device_id: i32,
        /// required, \>= 1
        num_layers: i32,
        /// required; a multiple of num_kv_heads
        num_q_heads: i32,
        /// required, \>= 1
        num_kv_heads: i32,
        /// required: a multiple of 4 (CUDA: of 8) from 8 to 256, 512 or 576. Codes have the next multiple
        /// of 32 coordinates: 40 takes the bytes of 64, 100 those of 128
        head_dim: i32,
        /// 0 = head_dim; likewise. Required where layers are TQ_LATENT
        value_dim: i32,
        /// type of k, v, q and out; required
        io_dtype: i32,
        /// 1 2 3 4 5 6 8, or 16 = raw; required unless layer_key_bits is given
        key_bits: i32,
        value_bits: i32,
        /// TQ_CODE_\* of both sides; 0 = TQ_CODE_SCALAR. 16 bits are raw in any family
        code_family: i32,
        /// \[num_layers\] or NULL: bits per layer, overriding key_bits where not 0
        layer_key_bits: *const i32,
        layer_value_bits: *const i32,
        /// 0 = TQ_ROTATION_HADAMARD
        rotation: i32,
        /// 0 = TQ_SCALE_UNBIASED; TQ_SCALE_LS where all coded keys are PROD
        key_scale_rule: i32,
        /// 0 = TQ_SCALE_UNBIASED
        value_scale_rule: i32,
        /// tokens, a multiple of 32, \<= 4096; 0 = 64
        page_size: i32,
        /// any value
        rotation_seed: u64,
        /// number in the whole model of this cache's layer 0, and of its kv head 0: with
        first_layer: i32,
        /// them a rank stores the bytes that one device stores; 0 .. 65535
        first_kv_head: i32,
        /// NULL = built in; used by coded layers of exactly these bits
        key_codebook: *const tq_codebook,
        value_codebook: *const tq_codebook,
        /// required: tokens that the pool holds over all sequences
        max_tokens: i64,
        /// what tq_cache_reserve may raise it to; 0 = max_tokens, no growth
        max_reserve_tokens: i64,
        /// longest sequence; 0 = max_reserve_tokens
        max_sequence_tokens: i64,
        /// 0 = 1
        max_sequences: i32,
        /// sequences in one plan; 0 = max_sequences
        max_batch_sequences: i32,
        /// new tokens, and query tokens, in one plan, each; 0 = max_tokens, at most 2048 where a layer has
        /// a sliding window
        max_batch_tokens: i64,
        /// exact copies that there is room for, over all sequences; see Window; 0 = enough for many
        /// sequences between plans, and for 8192 queries of one plan. It does not grow with
        /// tq_cache_reserve
        max_raw_tokens: i64,
        /// last tokens read exactly, from raw copies beside the codes; see Window
        window_tokens: i32,
        /// first tokens likewise
        sink_tokens: i32,
        /// more raw copies, so that truncate by up to this many keeps the window whole
        rollback_tokens: i32,
        /// CPU: 0 = num_units of the device, 1 = the caller's thread only
        num_threads: i32,
        /// TQ_FLAG_\*
        flags: u64,
        /// NULL = malloc / cudaMalloc; copied
        allocator: *const tq_allocator,
        /// NULL, or memory for the pages, 256-byte aligned, zeroed, kept until destroy
        pool: *mut c_void,
        /// \>= page_bytes of tq_cache_config_bytes when pool is given
        pool_bytes: i64,
        /// \[num_layers\] or NULL: all alike. num_q_heads .. value_bits above are then required only where
        /// a layer leaves them 0
        layers: *const tq_layer_config,
        /// 0 = code_family
        key_family: i32,
        value_family: i32,
        /// TQ_CODE_GROUPED: neighbours that share scale and zero: 16 32 64; 0 = 32. The last group of a
        /// vector may be shorter. 0 where no side is grouped
        group_size: i32,
        /// TQ_CODE_PROD: TQ_SKETCH_\*, 0 = ORTHOGONAL; this and the next two: else 0
        sketch: i32,
        /// 0 = TQ_SKETCH_UNBIASED
        sketch_rule: i32,
        /// 0 = by sketch_rule; what the estimate of the residual is multiplied by
        sketch_factor: f32,
        /// TQ_CODE_LEVELS: required, of the sides' bits, unless layers have theirs
        key_levels: *const tq_levels,
        value_levels: *const tq_levels,
        /// TQ_KEYS_VALUES (0 too) or TQ_LATENT: what the layers' tokens are
        layer_kind: i32,
        reserved: u32,
    }
    /// What a cache of this configuration allocates, exactly.
    TQ_STRUCT_CACHE_BYTES tq_cache_bytes {
        struct_size: u32,
        reserved: u32,
        /// all pages of all layers: the codes and their scales
        page_bytes: i64,
        /// the pool of exact copies: max_raw_tokens in all layers
        raw_bytes: i64,
        /// rotation signs or matrices, centres, page tables, flags
        table_bytes: i64,
        /// the cache's own attend workspace
        workspace_bytes: i64,
        /// of all that: on the device (0 for CPU caches)
        device_bytes: i64,
        /// of all that: on the host, bookkeeping included
        host_bytes: i64,
        /// pages of each layer of the first group (tq_cache_config_layer_bytes)
        num_pages: i64,
        /// stored bytes of one token over all layers and heads, scales included
        token_bytes: i64,
        /// the same token as float16
        fp16_token_bytes: i64,
    }
    /// Of one layer. All zero but group and num_pages for a layer that shares another's tokens.
    TQ_STRUCT_LAYER_BYTES tq_layer_bytes {
        struct_size: u32,
        /// layers whose tokens live equally long are a group: page ids are theirs
        group: i32,
        /// pages of the group
        num_pages: i64,
        /// of all of them in this layer
        page_bytes: i64,
        /// of its exact copies
        raw_bytes: i64,
        /// stored bytes of a token over its heads, scales included
        token_bytes: i64,
        /// the same token as float16
        fp16_token_bytes: i64,
    }
    TQ_STRUCT_CACHE_MEMORY tq_cache_memory {
        struct_size: u32,
        /// alive
        num_sequences: i32,
        /// lengths of all sequences added up (a shared page counts in each)
        tokens: i64,
        /// distinct pages in use, in each layer of the first group
        pages_used: i64,
        pages_total: i64,
        /// pages in use over all layers, in bytes
        stored_bytes_used: i64,
        /// exact copies, allocated; raw_bytes_used of them in use
        raw_bytes: i64,
        /// allocated in all
        device_bytes: i64,
        host_bytes: i64,
        /// float16 bytes of a full cache's tokens (max_tokens in a layer, fewer where it slides, more by
        /// its windows if stored once) / (page_bytes + raw_bytes)
        compression: f64,
        /// pages of exact copies that sequences hold
        raw_bytes_used: i64,
    }
    /// Where element (token, head, dim) lies: base + token \* token_stride + head \* head_stride + dim.
    /// Strides in elements, 0 = dense \[token\]\[head\]\[dim\]. dim is always contiguous. NULL instead of a
    /// layout = dense.
    TQ_STRUCT_TENSOR_LAYOUT tq_tensor_layout {
        struct_size: u32,
        reserved: u32,
        /// k of append and read
        key_token_stride: i64,
        key_head_stride: i64,
        /// v of append and read
        value_token_stride: i64,
        value_head_stride: i64,
    }
    TQ_STRUCT_ATTEND_PARAMS tq_attend_params {
        struct_size: u32,
        /// 0 = io_dtype; TQ_F32 keeps the full precision of a partial result
        out_dtype: i32,
        /// 0 = 1 / sqrt(head_dim); else 2^-126 .. 2^100 in size, of either sign
        softmax_scale: f32,
        /// c: logits become c \* tanh(logit / c), 2^-126 \<= c \<= 2^100; 0 = off
        logit_softcap: f32,
        /// tokens that a query sees, its own included; 0 = all
        sliding_window: i64,
        /// \[num_q_heads\] float32 on the cache's device, natural units, added to the softmax's sum only;
        /// NULL = none. -inf: no sink for this head. +inf: all weight is the sink's: out 0, lse +inf. NaN:
        /// out and lse of the head are NaN
        sink_logits: *const f32,
        /// 1: without the plan's new tokens; the caller attends them and merges by LSE
        history_only: i32,
        /// words of a query in tree_mask: 1 (0 = 1) or 2; 0 without tree_mask
        tree_words: i32,
        /// elements, 0 = dense \[token\]\[q head\]\[dim\]; same for out below
        q_token_stride: i64,
        q_head_stride: i64,
        out_token_stride: i64,
        out_head_stride: i64,
        /// \[query tokens\], both or neither. These and what follows: see Masks; on the cache's device,
        /// read as the call, or its graph, runs; NULL = none
        visible_begin: *const i32,
        visible_end: *const i32,
        /// \[query tokens\]\[tree_words\]
        tree_mask: *const u64,
        /// \[num_q_heads\] float32, natural units
        alibi_slopes: *const f32,
        /// k and v of the plan's new tokens, as append's: see Chunk; both or none
        chunk_k: *const c_void,
        chunk_v: *const c_void,
        /// NULL = dense; read in the call
        chunk_layout: *const tq_tensor_layout,
    }
    /// Where the blocks of one layer are: kv head h of block b at base + b \* block_stride + h \*
    /// head_stride.
    TQ_STRUCT_PAGES tq_pages {
        struct_size: u32,
        /// tokens, a multiple of 32; 0 = page_size of the codec
        block_size: i32,
        /// on the codec's device; base and strides: multiples of 64
        base: *mut c_void,
        /// block numbers run below it
        num_blocks: i64,
        /// bytes; 0 with head_stride 0: \[blocks\]\[heads\]\[bytes\] without gaps
        block_stride: i64,
        /// bytes
        head_stride: i64,
    }
    TQ_STRUCT_PAGE_LAYOUT tq_page_layout {
        struct_size: u32,
        /// of base and strides, bytes
        alignment: i32,
        /// of a block, all kv heads
        block_bytes: i64,
        /// of one of its kv heads
        block_head_bytes: i64,
        /// a token's share of block_bytes, exactly
        token_bytes: i64,
        /// what tq_pages takes
        block_stride: i64,
        head_stride: i64,
        /// of all blocks
        total_bytes: i64,
    }
    /// One step. Arrays are on the codec's device and stay unchanged until its calls have run.
    TQ_STRUCT_PAGED_STEP tq_paged_step {
        struct_size: u32,
        /// 0 or more, padding included
        num_reqs: i32,
        /// rows of k, v, q, out and lse, padding included; below 2^30
        num_tokens: i64,
        /// no request has more queries,
        max_query_len: i32,
        /// or more tokens
        max_seq_len: i32,
        /// \[num_tokens\]; NULL: a step without append
        slot_mapping: *const i64,
        /// \[num_reqs\]\[block_table_stride\]; attend alone reads it, and may bring another than the
        /// plan's; NULL: a step without attend
        block_table: *const i32,
        /// entries; \* block_size \>= max_seq_len
        block_table_stride: i64,
        /// \[num_reqs\]; NULL: a step without attend, as query_start_loc
        seq_lens: *const i32,
        /// \[num_reqs + 1\], from 0 on, not falling; at most num_tokens
        query_start_loc: *const i32,
    }
    /// A part of a sequence, and what there is of it. Layers and kv heads have their numbers in the whole
    /// model, so that a part means the same to every rank. tq_sequence_describe reads first_layer ..
    /// num_tokens (not io_dtype) and fills in all; pass the result on to export, and along with the bytes
    /// to import.
    TQ_STRUCT_STATE tq_state {
        struct_size: u32,
        /// ignored if num_layers = 0
        first_layer: i32,
        /// 0 = all of the cache
        num_layers: i32,
        /// ignored if num_kv_heads = 0
        first_kv_head: i32,
        /// 0 = all of each layer; stays 0 if the layers have different ones
        num_kv_heads: i32,
        /// of the exact copies; 0 = the part has none
        io_dtype: i32,
        first_token: i64,
        /// 0 = to the sequence's end
        num_tokens: i64,
        /// tokens of the part before this one have exact copies,
        exact_sinks: i64,
        /// and those from this one on; positions in the sequence
        exact_first: i64,
        /// layers with a sliding_window: tokens in front of the last sliding_window
        rollback_tokens: i64,
        /// TQ_NOTICED_NONFINITE, TQ_NOTICED_SATURATED of the sequence
        flags: u64,
        /// hash of what the bytes mean: codes, shapes, rotation, centres, layers, heads
        identity: u64,
        /// of the part in memory
        bytes: i64,
        /// hashes of what is behind identity, by which an error names it; 0: unknown
        fields: [u32; 16],
    }
    /// Where a saved sequence goes and comes from. Called on the calling thread, in order, during save and
    /// load alone; the cache is busy meanwhile. write, read: all count bytes (at most 64 KiB) or a failure.
    /// Result 0 = done; read: 1 = fewer bytes are left; anything else fails the call with TQ_ERROR_IO and
    /// is in its text. A keyed MAC, if mac is given, tells who wrote: mac(user, bytes, count, NULL) is
    /// called with all bytes in their order, at last mac(user, NULL, 0, tag) once, and puts mac_bytes bytes
    /// to tag. Save writes them at the end. Load wants the same there, else CORRUPT_DATA: no sequence is
    /// there before that. A load without mac does not look at them. Result 0, or the call fails with
    /// TQ_ERROR_IO.
    TQ_STRUCT_IO tq_io {
        struct_size: u32,
        /// 16 .. 64; 0 without mac
        mac_bytes: i32,
        user: *mut c_void,
        /// save needs it
        write: Option<unsafe extern "C" fn(
            user: *mut c_void,
            bytes: *const c_void,
            count: usize,
        ) -> i32>,
        /// load needs it
        read: Option<unsafe extern "C" fn(
            user: *mut c_void,
            bytes: *mut c_void,
            count: usize,
        ) -> i32>,
        /// NULL: none
        mac: Option<unsafe extern "C" fn(
            user: *mut c_void,
            bytes: *const c_void,
            count: usize,
            tag: *mut c_void,
        ) -> i32>,
    }
    TQ_STRUCT_QUANTIZER_CONFIG tq_quantizer_config {
        struct_size: u32,
        /// 0 = CPU
        device_type: i32,
        /// required: 1 .. 8192
        dim: i32,
        /// of x and queries; 0 = TQ_F32
        io_dtype: i32,
        /// TQ_CODE_\*; 0 = TQ_CODE_SCALAR
        family: i32,
        /// of a coordinate, required; PROD: its sign included
        bits: i32,
        /// 0 = TQ_ROTATION_HADAMARD; DENSE: dim up to 1536; GROUPED: 0
        rotation: i32,
        /// TQ_SCALE_\*; 0 = LS, with levels PAPER; GROUPED: 0
        scale_rule: i32,
        /// GROUPED: 16, 32 or 64; else 0
        group_size: i32,
        /// PROD: TQ_SKETCH_\*, 0 = ORTHOGONAL; else 0
        sketch: i32,
        /// PROD: TQ_SKETCH_\*, 0 = UNBIASED; else 0
        sketch_rule: i32,
        /// PROD: 0 = by sketch_rule; what the estimate of the residual is multiplied by
        sketch_factor: f32,
        /// SCALAR: 0 or, below dim, the number of outlier_channels; the paper has 32
        num_outliers: i32,
        /// 0 = num_units of the device
        num_threads: i32,
        /// \[num_outliers\], rising; copied
        outlier_channels: *const i32,
        /// any value
        seed: u64,
        /// SCALAR without outliers: NULL = built in for dim, else for N(0,1)
        codebook: *const tq_codebook,
        /// LEVELS: required, of `bits`. PROD: NULL, or of bits - 1
        levels: *const tq_levels,
        /// TQ_FLAG_NO_SCALE_SEARCH
        flags: u64,
        allocator: *const tq_allocator,
        /// 0 on the CPU
        device_id: i32,
        /// must be 0
        reserved: i32,
    }
    TQ_STRUCT_QUANTIZER_INFO tq_quantizer_info {
        struct_size: u32,
        /// coordinates of a rotated vector: dim and the padding; GROUPED: dim
        rotated_dim: i32,
        /// of a record, scales included
        code_bytes: i64,
        /// equal: records mean the same
        fingerprint: u64,
        /// in use; 0 without a sketch
        sketch_factor: f32,
        reserved: u32,
    }
    TQ_STRUCT_CALIBRATION_CONFIG tq_calibration_config {
        struct_size: u32,
        /// required, as the next three
        num_layers: i32,
        num_q_heads: i32,
        num_kv_heads: i32,
        /// a multiple of 4 from 8 to 256
        head_dim: i32,
        /// 0 = head_dim
        value_dim: i32,
        /// of q, k and v; required
        io_dtype: i32,
        /// of what is compared: TQ_CODE_SCALAR (0 too) or TQ_CODE_TRELLIS
        key_family: i32,
        value_family: i32,
        /// kept of each layer, 32 .. 4096; 0 = 128
        held_out_tokens: i32,
        /// 1: also layers get matrices of their keys, found from second moments of keys and queries, where
        /// these make the error of held-out logits at 3 bits smaller by 2 %: for caches that take them.
        /// Feed each token's own queries: few that come again are no judges. 16 head_dim^2 bytes more a kv
        /// head.
        turn_keys: i32,
    }
    /// What is wanted of tq_calibration_choose.
    TQ_STRUCT_CALIBRATION_GOAL tq_calibration_goal {
        struct_size: u32,
        /// of a key's coordinate, on average: 2, 2.5, 3, 3.5 or 4; with bands two bytes more for each band
        /// but one. Ignored with max_error
        key_bits: f32,
        /// 2, 3 or 4; likewise
        value_bits: i32,
        /// 0, or the error, on average over layers, to be reached with the fewest bytes: that of held-out
        /// logits (their variance, softmax_scale 1 / sqrt(head_dim)) plus that of values, relative to their
        /// square
        max_error: f32,
        /// layers whose median key is longer than this many times that of the median layer keep 16 bits; 0
        /// = 4
        outlier: f32,
    }
    TQ_STRUCT_CALIBRATION_RESULT tq_calibration_result {
        struct_size: u32,
        banded_layers: i32,
        raw_layers: i32,
        /// as max_error, of what was chosen
        error: f32,
        /// of key_bits (rounded down) and value_bits in all layers, without bands; 0 with max_error
        uniform_error: f32,
        reserved: u32,
        /// of a token over all layers and heads
        token_bytes: i64,
    }
}

functions! {
    /// "TQ_OK" .. "TQ_ERROR_INTERNAL", or "TQ_ERROR_UNKNOWN". Never NULL; static storage. Any thread.
    fn tq_status_name(status: tq_status) -> *const c_char;
    /// Text about the last failed call of the calling thread, "" if there was none. Never NULL; valid until
    /// the thread's next tq_ call. A success does not clear it.
    fn tq_last_error() -> *const c_char;
    /// Copies that text. buffer: capacity bytes, always NUL-terminated, cut if short; NULL only with
    /// capacity 0 (else INVALID_ARGUMENT). needed: bytes with the NUL; may be NULL.
    fn tq_last_error_copy(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> tq_status;
    /// "0.1.0"; static storage.
    fn tq_version() -> *const c_char;
    /// TQ_ABI_VERSION of the library in hand.
    fn tq_abi_version() -> i32;
    /// One line: version, compiler, CUDA architectures or "cuda off", SIMD paths, format version. Static.
    fn tq_build_info() -> *const c_char;
    /// sizeof a public struct in the library, 0 for an unknown id: a binding checks its layout at load
    /// time.
    fn tq_struct_size(struct_id: i32) -> usize;
    /// Devices of a type: 1 for the CPU; CUDA without a driver, or in a build without CUDA: 0 and TQ_OK.
    fn tq_device_count(r#type: tq_device_type, count: *mut i32) -> tq_status;
    /// info-\>struct_size must be set. NO_DEVICE if index is not below the count.
    fn tq_device_get_info(r#type: tq_device_type, index: i32, info: *mut tq_device_info) -> tq_status;
    /// Zeroes \*config and sets struct_size. NULL: INVALID_ARGUMENT.
    fn tq_cache_config_init(config: *mut tq_cache_config) -> tq_status;
    /// The status that tq_cache_create would return, and every reason for it in text, one a line, each
    /// naming its field (capacity bytes, NUL-terminated, cut if short; NULL with capacity 0). Allocates no
    /// device memory.
    fn tq_cache_config_check(config: *const tq_cache_config, text: *mut c_char,
        capacity: usize) -> tq_status;
    /// Fills \*bytes (struct_size set) with what tq_cache_create allocates. Status as
    /// tq_cache_config_check.
    fn tq_cache_config_bytes(config: *const tq_cache_config, bytes: *mut tq_cache_bytes) -> tq_status;
    /// bytes-\>struct_size set by the caller. Status as tq_cache_config_check; INVALID_ARGUMENT for no
    /// layer.
    fn tq_cache_config_layer_bytes(config: *const tq_cache_config, layer: i32,
        bytes: *mut tq_layer_bytes) -> tq_status;
    /// Creates a cache and allocates all it will ever need; config and its arrays are copied.
    /// INVALID_ARGUMENT, VERSION, NOT_SUPPORTED, NO_DEVICE, DRIVER, OUT_OF_MEMORY, CUDA; CAPTURE if stream
    /// is being captured.
    fn tq_cache_create(config: *const tq_cache_config, stream: *mut c_void,
        cache: *mut *mut tq_cache) -> tq_status;
    /// Frees the cache; NULL is accepted. Waits for the work that the cache itself enqueued. All its
    /// batches must be destroyed first (INVALID_STATE otherwise, nothing freed).
    fn tq_cache_destroy(cache: *mut tq_cache) -> tq_status;
    /// Raises max_tokens; the memory is taken now, zeroed, and waited for. Pages keep their addresses, so
    /// plans stay in force and captured graphs valid. Bookkeeping, workspace and exact copies are sized for
    /// max_reserve_tokens at create; the pages of a cache that may grow come in whole pieces of the
    /// system's memory (4 KiB; CUDA: mostly 2 MiB, for each layer), which tq_cache_bytes counts. A failed
    /// call leaves the pool as it was.
    ///
    /// - max_tokens from the present one (nothing happens) up; below: INVALID_ARGUMENT
    ///
    /// CAPACITY beyond max_reserve_tokens, OUT_OF_MEMORY; CAPTURE inside a graph. Creating a cache with
    /// max_reserve_tokens above max_tokens is NOT_SUPPORTED with a pool or an allocator of the caller's,
    /// and where the device has no virtual memory management.
    fn tq_cache_reserve(cache: *mut tq_cache, max_tokens: i64, stream: *mut c_void) -> tq_status;
    /// The configuration with every default resolved; config-\>struct_size set by the caller. The arrays
    /// and codebooks it points to belong to the cache.
    fn tq_cache_get_config(cache: *const tq_cache, config: *mut tq_cache_config) -> tq_status;
    /// Fixed vectors subtracted before coding and added again in attention, exactly: key_centre
    /// \[num_kv_heads\]\[head_dim\], value_centre \[num_kv_heads\]\[value_dim\], finite float32 on the
    /// host; NULL leaves a side as it is; value_centre of a layer of TQ_LATENT must be NULL. Keys of models
    /// with biases spend much of their energy on a constant: without it the error is lower at equal bits.
    /// Ignored by raw layers. INVALID_STATE once a sequence holds tokens.
    fn tq_cache_set_centres(cache: *mut tq_cache, layer: i32, key_centre: *const f32,
        value_centre: *const f32) -> tq_status;
    /// Host-side figures, no synchronisation. memory-\>struct_size set by the caller.
    fn tq_cache_get_memory(cache: *const tq_cache, memory: *mut tq_cache_memory) -> tq_status;
    /// Hash of what page bytes mean (format version, geometry, codes, magnitudes of the codebooks,
    /// rotation, seed, centres, first layer and kv head; not a codebook's unit or the scale rules): equal
    /// if and only if pages are exchangeable. A rank's cache has another one than the whole model's.
    fn tq_cache_fingerprint(cache: *const tq_cache, fingerprint: *mut u64) -> tq_status;
    /// Synchronises stream, then returns and clears the cache's sticky asynchronous error (TQ_OK if none).
    /// flags (may be NULL) receives and clears what was noticed since the last check:
    fn tq_cache_check(cache: *mut tq_cache, stream: *mut c_void, flags: *mut u64) -> tq_status;
    /// A new, empty sequence. CAPACITY if max_sequences are alive.
    fn tq_sequence_create(cache: *mut tq_cache, sequence: *mut tq_sequence) -> tq_status;
    /// Gives its pages back; pages shared with a fork stay. Freed pages are scrubbed in stream order unless
    /// TQ_FLAG_NO_ZERO_ON_FREE. A batch that has the sequence in its plan must be planned again before its
    /// next use (INVALID_STATE otherwise).
    fn tq_sequence_free(cache: *mut tq_cache, sequence: tq_sequence, stream: *mut c_void) -> tq_status;
    /// A new sequence with the same tokens: pages are shared and copied when one side writes into a shared
    /// page; so are exact copies. CAPACITY as tq_sequence_create. Fork after a step's appends (and replay):
    /// in layers appended later, the fork's planned tokens stay unwritten.
    fn tq_sequence_fork(cache: *mut tq_cache, source: tq_sequence, stream: *mut c_void,
        sequence: *mut tq_sequence) -> tq_status;
    /// A new sequence of target with the same tokens. Codes are moved as they are, so it attends to the
    /// same bits however often it moves (reading and appending is no such move: FORMAT.md 7). Exact copies,
    /// as far as target keeps any, flags and what is written come along. Page sizes, windows and capacities
    /// may differ, and one cache may be the CPU's; stream is the CUDA cache's (two of them: of one device,
    /// else NOT_SUPPORTED). CAPACITY: of target. INCOMPATIBLE, naming the field: codes, shapes, centres,
    /// first layer or head differ, or layers of the source gave back tokens that target's see. Between CPU
    /// and CUDA the call waits for stream and has 4 MiB or more of pinned memory for its time. source may
    /// be target: then nothing is shared.
    fn tq_sequence_copy(source: *mut tq_cache, sequence: tq_sequence, target: *mut tq_cache,
        stream: *mut c_void, copy: *mut tq_sequence) -> tq_status;
    /// Shortens to length tokens, 0 \<= length \<= current: afterwards it is as if the later tokens had
    /// never been appended, the exact window included within rollback_tokens of the longest length (deeper:
    /// see Window). Whole pages are given back and scrubbed; the rest of the last page is overwritten by
    /// the next append. A plan that holds the sequence is out of force, unless length is the current one.
    fn tq_sequence_truncate(cache: *mut tq_cache, sequence: tq_sequence, length: i64,
        stream: *mut c_void) -> tq_status;
    /// Gives up the exact copies of the window, not those of the sinks: queries to come read these tokens
    /// as codes. Their pages go back to the pool of max_raw_tokens, scrubbed, as far as no fork has them; a
    /// turn that waits then costs its codes alone. Nothing happens without a window, or if nothing but
    /// sinks has copies. A plan that holds the sequence is out of force otherwise; before a replay of a
    /// graph plan anew. CAPTURE.
    fn tq_sequence_flush(cache: *mut tq_cache, sequence: tq_sequence, stream: *mut c_void) -> tq_status;
    /// Takes tokens first .. first + count - 1 out: later tokens move down, codes, scales and exact copies
    /// bit for bit, nothing is decoded. Afterwards it is as if the tokens that stay had been appended
    /// alone, but for the exact copies: the sinks are those that stay of the old ones (fewer, unless all
    /// tokens have copies), the window what stays of the old one (TQ_NOTICED_SHORT_WINDOW). Layers that
    /// lack tokens (see Written) lack the same ones. Pages whose tokens stay together at their places move
    /// by table only; the others are rewritten in place, those that a fork shares into free ones (CAPACITY,
    /// nothing changed, if there are none).
    ///
    /// - first, count inside the sequence; count 0: nothing happens; up to the end: a truncate
    ///
    /// RoPE and other encodings of positions are the caller's: a key that was appended at position p stays
    /// rotated for p. Either count positions on from those of the tokens that stay, or re-rotate: read keys
    /// that have exact copies (sinks, window), rotate them by the difference, append them anew; coded keys
    /// lose a little by that. bindings/python/examples/streaming.py does it for the sinks. INVALID_STATE if
    /// a layer with a sliding window would miss tokens that the next query sees. A plan that holds the
    /// sequence is out of force; before a replay of a graph plan anew, as after a truncate.
    fn tq_sequence_remove(cache: *mut tq_cache, sequence: tq_sequence, first: i64, count: i64,
        stream: *mut c_void) -> tq_status;
    /// Keeps the named tokens alone, likewise. positions: \[count\] rising, in the host's memory; NULL only
    /// with count 0.
    fn tq_sequence_select(cache: *mut tq_cache, sequence: tq_sequence, positions: *const i64, count: i64,
        stream: *mut c_void) -> tq_status;
    /// Tokens, planned ones included.
    fn tq_sequence_length(cache: *const tq_cache, sequence: tq_sequence, length: *mut i64) -> tq_status;
    /// TQ_NOTICED_\* since the sequence was created (a fork inherits them); TQ_NOTICED_SHORT_WINDOW as long
    /// as it is so. No synchronisation: CUDA may lag.
    fn tq_sequence_flags(cache: *const tq_cache, sequence: tq_sequence, flags: *mut u64) -> tq_status;
    /// Room for one plan of up to max_batch_sequences sequences. A cache may have several batches.
    fn tq_batch_create(cache: *mut tq_cache, batch: *mut *mut tq_batch) -> tq_status;
    /// NULL is accepted.
    fn tq_batch_destroy(batch: *mut tq_batch) -> tq_status;
    /// Plans one step: sequence i gets new_tokens\[i\] \>= 0 more tokens (room is reserved in all layers,
    /// its length grows at once) and asks query_tokens\[i\] \>= 0 queries, which are its last tokens (NULL
    /// = new_tokens).
    ///
    /// - num_sequences 0 .. max_batch_sequences; sequences\[\] distinct and alive; query_tokens\[i\] \<=
    ///   new length, or any number where new_tokens\[i\] = 0 (cross-attention, see Masks)
    ///
    /// Rows of k, v are the new tokens of all sequences one after the other, rows of q, out, lse the query
    /// tokens likewise. append and attend of every layer follow the plan, which is in force until the
    /// batch's next one, or until one of its sequences is planned in another batch, freed, or loses tokens.
    /// CAPACITY: pool, max_raw_tokens, max_sequence_tokens or batch limits exceeded; the text has the
    /// numbers. CAPTURE: inside a graph.
    fn tq_batch_plan(batch: *mut tq_batch, num_sequences: i32, sequences: *const tq_sequence,
        new_tokens: *const i64, query_tokens: *const i64, stream: *mut c_void) -> tq_status;
    /// Rows of the plan: new_tokens of k and v, query_tokens of q, out and lse. in_force: 1 if append and
    /// attend accept the plan now; else 0, and the counts are 0. Each pointer may be NULL. No
    /// synchronisation.
    fn tq_batch_rows(batch: *const tq_batch, new_tokens: *mut i64, query_tokens: *mut i64,
        in_force: *mut i32) -> tq_status;
    /// Encodes the new tokens of the batch into one layer.
    ///
    /// - k \[new tokens\]\[num_kv_heads\]\[head_dim\] io_dtype, v likewise with value_dim; NULL only
    ///   without new tokens (TQ_LATENT: v must be NULL)
    ///
    /// Each layer of a plan is appended once; a repeated append writes the same bytes again. INVALID_STATE
    /// without a plan in force, behind a gap (see Written), or again after a fork that shares the new
    /// tokens.
    fn tq_cache_append(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, k: *const c_void,
        v: *const c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status;
    /// Zeroes \*params and sets struct_size. NULL: INVALID_ARGUMENT.
    fn tq_attend_params_init(params: *mut tq_attend_params) -> tq_status;
    /// out = softmax(q . K^T \* softmax_scale) . V for the batch's query tokens; each sees up to its own
    /// position, or what its mask says (Masks).
    ///
    /// - q \[query tokens\]\[num_q_heads\]\[head_dim\] io_dtype; head h reads kv head h \* num_kv_heads /
    ///   num_q_heads
    /// - out \[query tokens\]\[num_q_heads\]\[value_dim\] out_dtype
    /// - lse \[query tokens\]\[num_q_heads\] float32, log of the softmax's sum with its sink logit; NULL =
    ///   not wanted
    /// - params NULL = defaults
    /// - workspace NULL = the cache's own, else tq_attend_workspace_bytes on the cache's device, 256-byte
    ///   aligned
    ///
    /// A query that sees no token: out exactly 0, lse -inf (with a sink logit: that logit, to the bit). A
    /// row of q, one token and head, that holds NaN or infinity gives NaN in its row of out and its lse,
    /// whatever it sees, and in no other row. The result is finite for finite q, and independent of what
    /// unwritten memory holds. What its bits depend on: see Bits. INVALID_STATE without a plan in force, or
    /// if a query could see tokens that are not written (with visible ranges: if the sequence has such
    /// tokens), or if the plan does not fit the masks (more queries than tokens without visible ranges;
    /// queries of a tree that are not new tokens; more new tokens than mask bits).
    fn tq_cache_attend(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, q: *const c_void,
        out: *mut c_void, lse: *mut f32, params: *const tq_attend_params, workspace: *mut c_void,
        workspace_bytes: usize, stream: *mut c_void) -> tq_status;
    /// Workspace that tq_cache_attend needs: enough for every plan that the cache admits. No plan is
    /// needed.
    fn tq_attend_workspace_bytes(cache: *const tq_cache, bytes: *mut usize) -> tq_status;
    /// Merges num_states partial results of the same rows: context-parallel ranks, prefill in parts,
    /// history_only.
    ///
    /// - outs\[s\] \[rows\]\[dim\] dtype, lses\[s\] \[rows\] float32, both on device_type / device_id. lse
    ///   -inf: an empty part, its out is not read. lse +inf takes all: the out of the first such part is
    ///   the row's. lse NaN: that row of out and lse is NaN. A part of weight 0 adds nothing, whatever its
    ///   out holds
    /// - out \[rows\]\[dim\] dtype; lse \[rows\] or NULL. A row of empty parts alone: out 0, lse -inf
    ///
    /// In index order, in float32. num_states 1 .. 1024. outs, lses: host arrays. out may be one of outs.
    fn tq_merge_states(num_states: i32, outs: *const *const c_void, lses: *const *const f32, rows: i64,
        dim: i32, dtype: tq_dtype, out: *mut c_void, lse: *mut f32, device_type: tq_device_type,
        device_id: i32, stream: *mut c_void) -> tq_status;
    /// Decoded keys and values of tokens first .. first + count - 1, exact where exact copies are kept
    /// (Window).
    ///
    /// - k \[count\]\[num_kv_heads\]\[head_dim\] io_dtype, v likewise; either may be NULL
    ///
    /// INVALID_ARGUMENT: the range is not inside the sequence. INVALID_STATE: some of it is not written.
    fn tq_cache_read(cache: *mut tq_cache, layer: i32, sequence: tq_sequence, first: i64, count: i64,
        k: *mut c_void, v: *mut c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status;
    /// config: as for a cache, device_type, num_layers .. code_family, layer_\*_bits, rotation ..
    /// value_codebook, key_family .. value_levels, num_threads, flags, allocator and layers (sliding_window
    /// is what a query sees; shares_layer: attend with the pages of that layer). page_size is the block
    /// size where tq_pages gives none, and part of the fingerprint. All that says how many tokens or
    /// sequences there are, the pool, and window_tokens, sink_tokens, rollback_tokens must be 0. Status as
    /// tq_cache_create, every reason in tq_last_error.
    fn tq_codec_create(config: *const tq_cache_config, stream: *mut c_void,
        codec: *mut *mut tq_codec) -> tq_status;
    /// NULL is accepted. INVALID_STATE while a call on it runs.
    fn tq_codec_destroy(codec: *mut tq_codec) -> tq_status;
    /// As tq_cache_get_config; what must be 0 is.
    fn tq_codec_get_config(codec: *const tq_codec, config: *mut tq_cache_config) -> tq_status;
    /// As tq_cache_set_centres. Blocks that were written before mean something else afterwards.
    fn tq_codec_set_centres(codec: *mut tq_codec, layer: i32, key_centre: *const f32,
        value_centre: *const f32) -> tq_status;
    /// As tq_cache_fingerprint: equal to that of a cache of the same layers and page_size.
    fn tq_codec_fingerprint(codec: *const tq_codec, fingerprint: *mut u64) -> tq_status;
    /// As tq_cache_check.
    fn tq_codec_check(codec: *mut tq_codec, stream: *mut c_void, flags: *mut u64) -> tq_status;
    /// Fills \*layout (struct_size set) for num_blocks \>= 0 blocks of block_size tokens (0 = page_size) of
    /// a layer, in an order. A layer that shares another's tokens: that layer's.
    fn tq_codec_page_layout(codec: *const tq_codec, layer: i32, block_size: i32, num_blocks: i64,
        order: tq_page_order, layout: *mut tq_page_layout) -> tq_status;
    /// Workspace of steps with at most these num_reqs, num_tokens, max_query_len and max_seq_len; the
    /// step's other fields are not looked at.
    fn tq_paged_workspace_bytes(codec: *const tq_codec, step: *const tq_paged_step,
        bytes: *mut usize) -> tq_status;
    /// Reads slot_mapping, seq_lens and query_start_loc, and writes the plan of the step to the workspace
    /// (on the codec's device, 256-byte aligned). WORKSPACE_TOO_SMALL.
    fn tq_paged_plan(codec: *const tq_codec, step: *const tq_paged_step, workspace: *mut c_void,
        workspace_bytes: usize, stream: *mut c_void) -> tq_status;
    /// Encodes the tokens of the step into the slots of one layer's blocks.
    ///
    /// - k \[num_tokens\]\[num_kv_heads\]\[head_dim\] io_dtype, v likewise with value_dim
    ///
    /// INVALID_STATE if the workspace holds no plan of this step (CPU). INVALID_ARGUMENT for a slot beyond
    /// the blocks (CPU: see Checks), and for a layer that shares another's tokens.
    fn tq_paged_append(codec: *const tq_codec, layer: i32, pages: *const tq_pages,
        step: *const tq_paged_step, k: *const c_void, v: *const c_void, layout: *const tq_tensor_layout,
        workspace: *mut c_void, workspace_bytes: usize, stream: *mut c_void) -> tq_status;
    /// out = softmax(q . K^T \* softmax_scale) . V for the queries of the step: shapes and params as in
    /// tq_cache_attend with num_tokens rows, every one of which is written. With a tree_mask max_query_len
    /// is at most 64 \* tree_words. Append the step's tokens first (or history_only); a layer that shares
    /// another's tokens takes that layer's pages. INVALID_STATE as tq_paged_append, INVALID_ARGUMENT for a
    /// block number that a query sees and that there is not (CPU: see Checks).
    fn tq_paged_attend(codec: *const tq_codec, layer: i32, pages: *const tq_pages,
        step: *const tq_paged_step, q: *const c_void, out: *mut c_void, lse: *mut f32,
        params: *const tq_attend_params, workspace: *mut c_void, workspace_bytes: usize,
        stream: *mut c_void) -> tq_status;
    /// Decoded keys and values of slots \[count\] (on the codec's device).
    ///
    /// - k \[count\]\[num_kv_heads\]\[head_dim\] io_dtype, v likewise; either may be NULL
    ///
    /// Slot -1: a row of zeros. What was never written decodes to anything.
    fn tq_paged_read(codec: *const tq_codec, layer: i32, pages: *const tq_pages, slots: *const i64,
        count: i64, k: *mut c_void, v: *mut c_void, layout: *const tq_tensor_layout,
        stream: *mut c_void) -> tq_status;
    /// Copies blocks of one layer: pairs\[i\]\[0\] of source to pairs\[i\]\[1\] of target, pairs
    /// \[count\]\[2\] on the codec's device; a pair with a -1 is left out. Block sizes must be equal,
    /// strides need not; source may be target. No block may be a pair's target and in another pair.
    fn tq_paged_copy(codec: *const tq_codec, layer: i32, source: *const tq_pages, target: *const tq_pages,
        pairs: *const i64, count: i64, stream: *mut c_void) -> tq_status;
    /// Completes \*state (struct_size set, unused fields zero or of an earlier call). INVALID_ARGUMENT: a
    /// layer, kv head or token is not there; the text names the field. INVALID_STATE: a layer lacks tokens
    /// of the part (see Written). No synchronisation: flags may lag on CUDA.
    fn tq_sequence_describe(cache: *const tq_cache, sequence: tq_sequence,
        state: *mut tq_state) -> tq_status;
    /// Writes the part to memory: FORMAT.md 6.1. Equal states give equal bytes, on any device, wherever
    /// pages lie and however large they are.
    ///
    /// - state as tq_sequence_describe has completed it; INVALID_STATE if the sequence has something else
    ///   now
    /// - memory bytes \>= state-\>bytes of them, 16-byte aligned; NULL only if state-\>bytes is 0. Of the
    ///   host, or of a CUDA cache's own device
    ///
    /// CUDA: in stream order. To the device's memory, and to pinned memory of the host (cudaHostAlloc,
    /// cudaHostRegister), the call enqueues its work and returns: the bytes are there when stream has
    /// passed it. To other memory it waits for stream, and has up to 4 MiB of pinned memory for its time.
    /// One call a layer, on a stream that an event puts behind the layer's append, lets transfers run
    /// beside the layers to come. A failed call may have written to memory. CAPTURE: inside a graph.
    fn tq_sequence_export(cache: *mut tq_cache, sequence: tq_sequence, state: *const tq_state,
        memory: *mut c_void, bytes: usize, stream: *mut c_void) -> tq_status;
    /// The other way, as export does it: memory must stay as it is until stream has passed the call, if
    /// that does not wait. Puts the part behind the tokens that its layers hold, bit for bit. The sequence
    /// grows, in all layers, by the first part that ends behind it; each layer holds the tokens once its
    /// own part has come (see Written). kv heads may come some at a time, in order, and count when all are
    /// there: so ranks merge.
    ///
    /// - state what described the part; memory: its bytes, as for export
    ///
    /// Page sizes, windows, capacities and devices may differ; of exact copies the cache keeps what it
    /// would, and fewer where the part has fewer (TQ_NOTICED_SHORT_WINDOW). A plan that holds the sequence
    /// is out of force if the sequence grows. The bytes are trusted: without checksums on the way use
    /// tq_sequence_save. INCOMPATIBLE, naming the field: identity or io_dtype are not this cache's.
    /// INVALID_ARGUMENT: fields of state contradict each other. INVALID_STATE: the first token is not the
    /// next one of a layer; kv heads out of order; a fork shares the tokens' pages; another layer's part
    /// had tokens that this one lacks. CAPACITY as tq_batch_plan. CAPTURE. A failed call leaves lengths,
    /// pages and what layers hold as they were.
    fn tq_sequence_import(cache: *mut tq_cache, sequence: tq_sequence, state: *const tq_state,
        memory: *const c_void, bytes: usize, stream: *mut c_void) -> tq_status;
    /// Writes a sequence, all layers and tokens, in a form that says what it is and whether it is whole:
    /// FORMAT.md 6.2. Waits for stream; takes up to 4 MiB for its time (CUDA: pinned). To be safe from
    /// crashes write a new file, sync it and rename it. Checksums find damage; they do not tell who wrote.
    /// IO; INVALID_STATE: a layer lacks tokens; CAPTURE. The sequence is not changed.
    fn tq_sequence_save(cache: *mut tq_cache, sequence: tq_sequence, io: *const tq_io,
        stream: *mut c_void) -> tq_status;
    /// A new sequence from what save wrote, on any device, with any page size, window and capacity; a rank
    /// of a tensor-parallel group may load what the whole, or a rank with more kv heads, saved. No byte of
    /// the input is believed: sizes are the cache's own, and the sequence is there once the last checksum
    /// has agreed. A failed call leaves the cache as it was, but for its position in the input. Reads not
    /// beyond what save wrote. CORRUPT_DATA: damaged, cut short, or nothing that save writes. INCOMPATIBLE,
    /// naming the field: of another format version, geometry, codebook, rotation or centres. CAPACITY:
    /// max_sequences, max_sequence_tokens or the pools. IO; CAPTURE. Waits for stream; memory as save.
    fn tq_sequence_load(cache: *mut tq_cache, io: *const tq_io, stream: *mut c_void,
        sequence: *mut tq_sequence) -> tq_status;
    /// INVALID_ARGUMENT, NOT_SUPPORTED: every reason in tq_last_error.
    fn tq_quantizer_create(config: *const tq_quantizer_config,
        quantizer: *mut *mut tq_quantizer) -> tq_status;
    /// NULL is accepted. INVALID_STATE while a call on it runs.
    fn tq_quantizer_destroy(quantizer: *mut tq_quantizer) -> tq_status;
    /// info-\>struct_size must be set.
    fn tq_quantizer_get_info(quantizer: *const tq_quantizer, info: *mut tq_quantizer_info) -> tq_status;
    /// x \[count\]\[dim\] -\> codes \[count\]\[code_bytes\]. noticed (on the host): TQ_NOTICED_\* of x, or
    /// NULL. stream here and below: NULL on the CPU.
    fn tq_quantizer_encode(quantizer: *const tq_quantizer, x: *const c_void, count: i64, codes: *mut c_void,
        noticed: *mut u64, stream: *mut c_void) -> tq_status;
    /// codes \[count\]\[code_bytes\] -\> x \[count\]\[dim\].
    fn tq_quantizer_decode(quantizer: *const tq_quantizer, codes: *const c_void, count: i64, x: *mut c_void,
        stream: *mut c_void) -> tq_status;
    /// out \[num_queries\]\[count\] = queries \[num_queries\]\[dim\] . what codes \[count\]\[code_bytes\]
    /// decode to.
    fn tq_quantizer_inner_products(quantizer: *const tq_quantizer, queries: *const c_void, num_queries: i64,
        codes: *const c_void, count: i64, out: *mut f32, stream: *mut c_void) -> tq_status;
    /// The k best records of each query, best first, the lower index first of equals.
    ///
    /// - bias \[count\] or NULL: added to the inner products. -|x|^2 / 2 ranks by distance.
    /// - scores \[num_queries\]\[k\]; ids \[num_queries\]\[k\]: indices of records. Where count \< k or the
    ///   query is not finite: -infinity and -1
    ///
    /// k: 1 .. 65536. INVALID_ARGUMENT: a bias is NaN (CUDA: a record whose bias is NaN is not found).
    fn tq_quantizer_search(quantizer: *const tq_quantizer, queries: *const c_void, num_queries: i64,
        codes: *const c_void, count: i64, bias: *const f32, k: i64, scores: *mut f32, ids: *mut i64,
        stream: *mut c_void) -> tq_status;
    /// The rotation alone: x \[count\]\[dim\] -\> y \[count\]\[rotated_dim\], of the same length, in
    /// float32 arithmetic; with outliers first their rotated part, then the others'.
    fn tq_quantizer_rotate(quantizer: *const tq_quantizer, x: *const c_void, count: i64, y: *mut f32,
        stream: *mut c_void) -> tq_status;
    /// The inverse: y \[count\]\[rotated_dim\] -\> x \[count\]\[dim\].
    fn tq_quantizer_unrotate(quantizer: *const tq_quantizer, y: *const f32, count: i64, x: *mut c_void,
        stream: *mut c_void) -> tq_status;
    /// The sketch_factor of the least squared error over x \[count\]\[dim\]: sum \<r, v\> / sum \<v, v\>, r
    /// the residuals, v their estimates at factor 1. INVALID_ARGUMENT: not PROD, or no residuals.
    fn tq_calibrate_sketch_factor(quantizer: *const tq_quantizer, x: *const c_void, count: i64,
        factor: *mut f32, stream: *mut c_void) -> tq_status;
    /// Lloyd-Max levels of the rotated coordinates of x \[count\]\[dim\], each vector divided by its
    /// length: levels \[2^bits\] and boundaries \[2^bits - 1\], half way between them, as tq_levels takes
    /// them (unit 1); bits 1 .. 8. They begin as those of a normal distribution; at most 1000 rounds.
    /// error: mean squared error of the rotated vectors, relative to |x|^2, or NULL. INVALID_ARGUMENT: no
    /// vector that is not zero; GROUPED or outliers.
    fn tq_calibrate_levels(quantizer: *const tq_quantizer, x: *const c_void, count: i64, bits: i32,
        levels: *mut f32, boundaries: *mut f32, error: *mut f64, stream: *mut c_void) -> tq_status;
    /// INVALID_ARGUMENT names every field that is wrong.
    fn tq_calibration_create(config: *const tq_calibration_config,
        calibration: *mut *mut tq_calibration) -> tq_status;
    /// Frees it; NULL is accepted.
    fn tq_calibration_destroy(calibration: *mut tq_calibration) -> tq_status;
    /// The configuration with defaults resolved; config-\>struct_size set by the caller.
    fn tq_calibration_get_config(calibration: *const tq_calibration,
        config: *mut tq_calibration_config) -> tq_status;
    /// Tokens of a layer, after RoPE: q \[count\]\[num_q_heads\]\[head_dim\], k
    /// \[count\]\[num_kv_heads\]\[head_dim\], v \[count\]\[num_kv_heads\]\[value_dim\], dense, on the host.
    /// Numbers that are not finite: INVALID_ARGUMENT, and nothing of the call counts. A calibration that
    /// was loaded takes none: INVALID_STATE.
    fn tq_calibration_feed(calibration: *mut tq_calibration, layer: i32, count: i64, q: *const c_void,
        k: *const c_void, v: *const c_void) -> tq_status;
    /// The same of memory that a CUDA device reaches, behind what stream holds: waits for it, and reads the
    /// tokens in pieces through up to 3 MiB of pinned memory, twice, as none counts before all are found
    /// finite. On TQ_DEVICE_CPU (device_id 0, stream NULL) it is tq_calibration_feed. NO_DEVICE, DRIVER,
    /// CUDA, OUT_OF_MEMORY; CAPTURE if stream is being captured; INVALID_ARGUMENT: memory that the device
    /// does not reach.
    fn tq_calibration_feed_from(calibration: *mut tq_calibration, layer: i32, count: i64, q: *const c_void,
        k: *const c_void, v: *const c_void, device_type: tq_device_type, device_id: i32,
        stream: *mut c_void) -> tq_status;
    /// A matrix for each kv head's keys, \[num_kv_heads\]\[head_dim\]\[head_dim\] float32 on the host, row
    /// by row: what is coded is matrix \* (key - centre), in front of the layer's own rotation and bands,
    /// and queries meet it times the inverse transpose: for rotations calibrated to where queries look.
    /// Exact copies and what tq_cache_read gives are keys as they came. Copied; fingerprints and states
    /// know it. head_dim^2 multiplications more a key of an append, and a query of an attend. CUDA: a
    /// layer's first call takes device memory of (2 \* head_dim^2 + head_dim + value_dim) \* num_kv_heads
    /// floats, which tq_cache_bytes does not count (OUT_OF_MEMORY); graphs captured before it know of no
    /// matrix. INVALID_ARGUMENT: numbers beyond 2^20, or no inverse of such in float32. INVALID_STATE once
    /// a sequence holds tokens. NOT_SUPPORTED: latent layers, keys of 16 bits or TQ_CODE_GROUPED.
    fn tq_cache_set_key_matrix(cache: *mut tq_cache, layer: i32, matrix: *const f32) -> tq_status;
    /// The layer's key matrices as tq_cache_set_key_matrix takes them, in front of its first tokens: they
    /// and its queries are measured as the matrices turn them. In the file, and set with the centres.
    /// INVALID_STATE: the layer was fed, or the calibration loaded.
    fn tq_calibration_set_key_matrix(calibration: *mut tq_calibration, layer: i32,
        matrix: *const f32) -> tq_status;
    /// layers \[num_layers\], of which key_bits, value_bits, key_family, value_family and key_bands are
    /// written, the rest zero; key_bands points into the calibration, until the next call with it. result:
    /// NULL, or struct_size set. INVALID_STATE: a layer was fed fewer than 256 tokens. INVALID_ARGUMENT: a
    /// max_error that 4 bits do not reach (the text says what they do).
    fn tq_calibration_choose(calibration: *mut tq_calibration, goal: *const tq_calibration_goal,
        layers: *mut tq_layer_config, num_layers: i32, result: *mut tq_calibration_result) -> tq_status;
    /// tq_cache_set_centres of all layers of a cache of the same shape, and tq_cache_set_key_matrix of
    /// those that have matrices (not of layers whose keys have 16 bits). A head has a centre only where
    /// codes of 3 bits with it make the error of held-out tokens smaller; else zeros.
    fn tq_calibration_set_centres(calibration: *mut tq_calibration, cache: *mut tq_cache) -> tq_status;
    /// key \[num_kv_heads\]\[head_dim\], value \[num_kv_heads\]\[value_dim\] of a layer; either may be
    /// NULL.
    fn tq_calibration_centres(calibration: *mut tq_calibration, layer: i32, key: *mut f32,
        value: *mut f32) -> tq_status;
    /// The layer's key matrices, given or found, \[num_kv_heads\]\[head_dim\]\[head_dim\], NULL for the
    /// second answer alone: \*has is 1, or 0 where it has none, and nothing is written. With turn_keys
    /// INVALID_STATE, as choose.
    fn tq_calibration_key_matrix(calibration: *mut tq_calibration, layer: i32, matrix: *mut f32,
        has: *mut i32) -> tq_status;
    /// Writes a small file with a version and checksums: what was measured, from which choose chooses. IO.
    fn tq_calibration_save(calibration: *mut tq_calibration, io: *const tq_io) -> tq_status;
    /// A calibration from what save wrote. CORRUPT_DATA, INCOMPATIBLE, IO.
    fn tq_calibration_load(io: *const tq_io, calibration: *mut *mut tq_calibration) -> tq_status;
}
