// SPDX-License-Identifier: Apache-2.0
// Made by generate.py from include/tqkv.h; do not edit. A test regenerates it and compares.

use core::ffi::{c_char, c_void};
use core::marker::{PhantomData, PhantomPinned};

/// `TQ_VERSION_MAJOR` of `tqkv.h`.
pub const TQ_VERSION_MAJOR: i32 = 0;

/// `TQ_VERSION_MINOR` of `tqkv.h`.
pub const TQ_VERSION_MINOR: i32 = 1;

/// `TQ_VERSION_PATCH` of `tqkv.h`.
pub const TQ_VERSION_PATCH: i32 = 0;

/// Grows with every incompatible change of this header; equals the SONAME's number.
pub const TQ_ABI_VERSION: i32 = 0;

/// `tq_status` of `tqkv.h`.
pub type tq_status = i32;

/// `TQ_OK` of `tqkv.h`.
pub const TQ_OK: i32 = 0;

/// a value is out of range or inconsistent; the text names it
pub const TQ_ERROR_INVALID_ARGUMENT: i32 = 1;

/// right arguments, wrong moment: centres after an append, append without a plan, busy
pub const TQ_ERROR_INVALID_STATE: i32 = 2;

/// host or device allocation failed
pub const TQ_ERROR_OUT_OF_MEMORY: i32 = 3;

/// max\_tokens, max\_sequences or a batch limit is used up
pub const TQ_ERROR_CAPACITY: i32 = 4;

/// valid, but not in this build or not for this configuration
pub const TQ_ERROR_NOT_SUPPORTED: i32 = 5;

/// no such device
pub const TQ_ERROR_NO_DEVICE: i32 = 6;

/// the driver is absent or too old
pub const TQ_ERROR_DRIVER: i32 = 7;

/// a CUDA call failed; the text has the CUDA error's name
pub const TQ_ERROR_CUDA: i32 = 8;

/// struct from a newer header uses a field that this library does not know
pub const TQ_ERROR_VERSION: i32 = 9;

/// saved bytes fail their checks
pub const TQ_ERROR_CORRUPT_DATA: i32 = 10;

/// saved bytes are of another format, geometry or codebook
pub const TQ_ERROR_INCOMPATIBLE: i32 = 11;

/// the text says how many bytes are needed
pub const TQ_ERROR_WORKSPACE_TOO_SMALL: i32 = 12;

/// not allowed while the stream is being captured
pub const TQ_ERROR_CAPTURE: i32 = 13;

/// `TQ_ERROR_IO` of `tqkv.h`.
pub const TQ_ERROR_IO: i32 = 14;

/// a bug in this library
pub const TQ_ERROR_INTERNAL: i32 = 99;

/// sizeof of a public struct inside the library, 0 for an unknown id: lets a binding check its layout at load time.
pub const TQ_STRUCT_CACHE_CONFIG: i32 = 1;

/// `TQ_STRUCT_CACHE_BYTES` of `tqkv.h`.
pub const TQ_STRUCT_CACHE_BYTES: i32 = 2;

/// `TQ_STRUCT_CACHE_MEMORY` of `tqkv.h`.
pub const TQ_STRUCT_CACHE_MEMORY: i32 = 3;

/// `TQ_STRUCT_TENSOR_LAYOUT` of `tqkv.h`.
pub const TQ_STRUCT_TENSOR_LAYOUT: i32 = 4;

/// `TQ_STRUCT_ATTEND_PARAMS` of `tqkv.h`.
pub const TQ_STRUCT_ATTEND_PARAMS: i32 = 5;

/// `TQ_STRUCT_DEVICE_INFO` of `tqkv.h`.
pub const TQ_STRUCT_DEVICE_INFO: i32 = 6;

/// `TQ_STRUCT_CODEBOOK` of `tqkv.h`.
pub const TQ_STRUCT_CODEBOOK: i32 = 7;

/// `TQ_STRUCT_ALLOCATOR` of `tqkv.h`.
pub const TQ_STRUCT_ALLOCATOR: i32 = 8;

/// `tq_device_type` of `tqkv.h`.
pub type tq_device_type = i32;

/// `TQ_DEVICE_CPU` of `tqkv.h`.
pub const TQ_DEVICE_CPU: i32 = 1;

/// `TQ_DEVICE_CUDA` of `tqkv.h`.
pub const TQ_DEVICE_CUDA: i32 = 2;

/// `tq_device_info_t` of `tqkv.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_device_info_t {
    /// `struct_size`.
    pub struct_size: u32,
    /// TQ\_DEVICE\_CPU or TQ\_DEVICE\_CUDA
    pub device_type: i32,
    /// CUDA ordinal; 0 for the CPU
    pub device_id: i32,
    /// CUDA compute capability; 0 for the CPU
    pub compute_major: i32,
    /// `compute_minor`.
    pub compute_minor: i32,
    /// multiprocessors; CPU: hardware threads this process may use
    pub num_units: i32,
    /// total; 0 if unknown
    pub memory_bytes: i64,
    /// device name; CPU: the SIMD path in use, such as "avx3\_dl"
    pub name: [c_char; 128],
}

impl Default for tq_device_info_t {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// `tq_dtype` of `tqkv.h`.
pub type tq_dtype = i32;

/// `TQ_F32` of `tqkv.h`.
pub const TQ_F32: i32 = 1;

/// `TQ_F16` of `tqkv.h`.
pub const TQ_F16: i32 = 2;

/// `TQ_BF16` of `tqkv.h`.
pub const TQ_BF16: i32 = 3;

/// `tq_rotation` of `tqkv.h`.
pub type tq_rotation = i32;

/// random signs + Hadamard: O(d log d); the default
pub const TQ_ROTATION_HADAMARD: i32 = 1;

/// QR of a seeded Gaussian matrix, as in the paper: O(d^2), CPU only, for faithful runs
pub const TQ_ROTATION_DENSE: i32 = 2;

/// `tq_scale_rule` of `tqkv.h`.
pub type tq_scale_rule = i32;

/// least squares: smallest error of a vector; default for keys
pub const TQ_SCALE_LS: i32 = 1;

/// no shrinkage: averages over tokens stay right; default for values
pub const TQ_SCALE_UNBIASED: i32 = 2;

/// the vector keeps its length
pub const TQ_SCALE_NORM: i32 = 3;

/// |x| times the published codebook; scale search is off with it
pub const TQ_SCALE_PAPER: i32 = 4;

/// `tq_code_family` of `tqkv.h`.
pub type tq_code_family = i32;

/// Lloyd-Max levels for each coordinate (TurboQuant\_mse)
pub const TQ_CODE_SCALAR: i32 = 1;

/// A codebook of the caller's own: 2^(bits-1) magnitudes, rising, on the int8 grid; level = unit \* magnitude for coordinates of unit
/// variance. bits \<= 3: magnitudes 1..127 are integers. bits 4..6: a magnitude m in 0..127 stands for m + 1/2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_codebook {
    /// `struct_size`.
    pub struct_size: u32,
    /// 2 .. 6
    pub bits: i32,
    /// \> 0
    pub unit: f32,
    /// `magnitude`.
    pub magnitude: [u8; 32],
}

impl Default for tq_codebook {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// Memory callbacks; both or neither. alloc returns NULL on failure; alignment is a power of two \<= 4096. device\_type says which memory
/// is meant; CUDA memory must be usable on device\_id in stream order. Called only in create and destroy calls.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_allocator {
    /// `struct_size`.
    pub struct_size: u32,
    /// `reserved`.
    pub reserved: u32,
    /// `user`.
    pub user: *mut c_void,
    /// `alloc`.
    pub alloc: Option<unsafe extern "C" fn(user: *mut c_void, bytes: usize, alignment: usize, device_type: i32, device_id: i32) -> *mut c_void>,
    /// `free`.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void, pointer: *mut c_void, bytes: usize, device_type: i32, device_id: i32)>,
}

impl Default for tq_allocator {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// do not scrub the pages that free, truncate and destroy give back, nor the exact copies of freed sequences
pub const TQ_FLAG_NO_ZERO_ON_FREE: u64 = 1;

/// encoder: one quantisation step instead of the best of several (up to 20 % more error)
pub const TQ_FLAG_NO_SCALE_SEARCH: u64 = 2;

/// `tq_cache_config` of `tqkv.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_cache_config {
    /// `struct_size`.
    pub struct_size: u32,
    /// 0 = CPU
    pub device_type: i32,
    /// `device_id`.
    pub device_id: i32,
    /// required, \>= 1
    pub num_layers: i32,
    /// required; a multiple of num\_kv\_heads
    pub num_q_heads: i32,
    /// required, \>= 1
    pub num_kv_heads: i32,
    /// required: 32 64 80 96 112 128 160 192 224 256 512 576
    pub head_dim: i32,
    /// 0 = head\_dim; same list
    pub value_dim: i32,
    /// type of k, v, q and out; required
    pub io_dtype: i32,
    /// 2 3 4 5 6 8, or 16 = raw; required unless layer\_key\_bits is given
    pub key_bits: i32,
    /// `value_bits`.
    pub value_bits: i32,
    /// 0 = TQ\_CODE\_SCALAR
    pub code_family: i32,
    /// \[num\_layers\] or NULL: bits per layer, overriding key\_bits where not 0
    pub layer_key_bits: *const i32,
    /// `layer_value_bits`.
    pub layer_value_bits: *const i32,
    /// 0 = TQ\_ROTATION\_HADAMARD
    pub rotation: i32,
    /// 0 = TQ\_SCALE\_LS
    pub key_scale_rule: i32,
    /// 0 = TQ\_SCALE\_UNBIASED
    pub value_scale_rule: i32,
    /// tokens, a multiple of 32, \<= 4096; 0 = 64
    pub page_size: i32,
    /// any value
    pub rotation_seed: u64,
    /// NULL = built in; used by coded layers of exactly these bits
    pub key_codebook: *const tq_codebook,
    /// `value_codebook`.
    pub value_codebook: *const tq_codebook,
    /// required: tokens that the pool holds over all sequences, whatever their lengths
    pub max_tokens: i64,
    /// longest sequence; 0 = max\_tokens
    pub max_sequence_tokens: i64,
    /// 0 = 1
    pub max_sequences: i32,
    /// sequences in one plan; 0 = max\_sequences
    pub max_batch_sequences: i32,
    /// new tokens, and query tokens, in one plan, each; 0 = max\_tokens
    pub max_batch_tokens: i64,
    /// last tokens of a sequence read exactly, from raw copies beside the codes; 0 = none
    pub window_tokens: i32,
    /// first tokens likewise
    pub sink_tokens: i32,
    /// raw copies kept behind the window, so that truncate by up to this many keeps the window whole
    pub rollback_tokens: i32,
    /// CPU: 0 = all that the process may use, 1 = the caller's thread only
    pub num_threads: i32,
    /// TQ\_FLAG\_\*
    pub flags: u64,
    /// NULL = malloc / cudaMalloc; copied
    pub allocator: *const tq_allocator,
    /// caller's memory for the pages on the cache's device, 256-byte aligned, or NULL
    pub pool: *mut c_void,
    /// \>= page\_bytes of tq\_cache\_config\_bytes when pool is given
    pub pool_bytes: i64,
}

impl Default for tq_cache_config {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// What a cache of this configuration allocates, exactly.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_cache_bytes {
    /// `struct_size`.
    pub struct_size: u32,
    /// `reserved`.
    pub reserved: u32,
    /// all pages of all layers: the codes and their scales
    pub page_bytes: i64,
    /// exact window, rollback and sink copies
    pub raw_bytes: i64,
    /// rotation signs or matrices, centres, page tables, flags
    pub table_bytes: i64,
    /// the cache's own attend workspace
    pub workspace_bytes: i64,
    /// of all that: on the device (0 for CPU caches)
    pub device_bytes: i64,
    /// of all that: on the host, bookkeeping included
    pub host_bytes: i64,
    /// pages per layer; page ids run below it
    pub num_pages: i64,
    /// stored bytes of one token over all layers and heads, scales included
    pub token_bytes: i64,
    /// the same token as float16
    pub fp16_token_bytes: i64,
}

impl Default for tq_cache_bytes {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// Opaque `tq_cache` of `tqkv.h`.
#[repr(C)]
#[derive(Debug)]
pub struct tq_cache {
    _private: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// Opaque `tq_batch` of `tqkv.h`.
#[repr(C)]
#[derive(Debug)]
pub struct tq_batch {
    _private: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// slot and generation: the id of a freed sequence stays invalid. 0 is never a valid id
pub type tq_sequence = i64;

/// `tq_cache_memory_t` of `tqkv.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_cache_memory_t {
    /// `struct_size`.
    pub struct_size: u32,
    /// alive
    pub num_sequences: i32,
    /// lengths of all sequences added up (a shared page counts in each)
    pub tokens: i64,
    /// distinct pages in use, per layer
    pub pages_used: i64,
    /// `pages_total`.
    pub pages_total: i64,
    /// pages\_used over all layers, in bytes
    pub stored_bytes_used: i64,
    /// exact copies, allocated
    pub raw_bytes: i64,
    /// allocated in all
    pub device_bytes: i64,
    /// `host_bytes`.
    pub host_bytes: i64,
    /// float16 bytes of one token / stored bytes of one token, scales included
    pub compression: f64,
}

impl Default for tq_cache_memory_t {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// an appended vector held NaN, infinity or a magnitude above 2^64; it was replaced as FORMAT.md says
pub const TQ_NOTICED_NONFINITE: u64 = 1;

/// Where element (token, head, dim) lies: base + token \* token\_stride + head \* head\_stride + dim. Strides in elements, 0 = dense
/// \[token\]\[head\]\[dim\]. dim is always contiguous. NULL instead of a layout = dense.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_tensor_layout {
    /// `struct_size`.
    pub struct_size: u32,
    /// `reserved`.
    pub reserved: u32,
    /// k of append and read
    pub key_token_stride: i64,
    /// `key_head_stride`.
    pub key_head_stride: i64,
    /// v of append and read
    pub value_token_stride: i64,
    /// `value_head_stride`.
    pub value_head_stride: i64,
}

impl Default for tq_tensor_layout {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// `tq_attend_params` of `tqkv.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tq_attend_params {
    /// `struct_size`.
    pub struct_size: u32,
    /// 0 = io\_dtype; TQ\_F32 keeps the full precision of a partial result
    pub out_dtype: i32,
    /// 0 = 1 / sqrt(head\_dim)
    pub softmax_scale: f32,
    /// c: logits become c \* tanh(logit / c); 0 = off
    pub logit_softcap: f32,
    /// tokens that a query sees, its own included; 0 = all
    pub sliding_window: i64,
    /// \[num\_q\_heads\] float32 on the cache's device, added to the softmax's sum only; NULL = none
    pub sink_logits: *const f32,
    /// 1: leave out the batch's new tokens, for a caller that attends them itself and merges by LSE
    pub history_only: i32,
    /// work distribution hint, 0 = automatic; never changes a bit of the result
    pub num_splits: i32,
    /// elements, 0 = dense \[token\]\[q head\]\[dim\]; same for out below
    pub q_token_stride: i64,
    /// `q_head_stride`.
    pub q_head_stride: i64,
    /// `out_token_stride`.
    pub out_token_stride: i64,
    /// `out_head_stride`.
    pub out_head_stride: i64,
}

impl Default for tq_attend_params {
    /// All zero, which means the defaults, but for `struct_size`.
    fn default() -> Self {
        // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
        let mut zero: Self = unsafe { core::mem::zeroed() };
        zero.struct_size = core::mem::size_of::<Self>() as u32;
        zero
    }
}

/// Name and value of every constant.
pub const CONSTANTS: &[(&str, i64)] = &[
    ("TQ_VERSION_MAJOR", TQ_VERSION_MAJOR as i64),
    ("TQ_VERSION_MINOR", TQ_VERSION_MINOR as i64),
    ("TQ_VERSION_PATCH", TQ_VERSION_PATCH as i64),
    ("TQ_ABI_VERSION", TQ_ABI_VERSION as i64),
    ("TQ_OK", TQ_OK as i64),
    ("TQ_ERROR_INVALID_ARGUMENT", TQ_ERROR_INVALID_ARGUMENT as i64),
    ("TQ_ERROR_INVALID_STATE", TQ_ERROR_INVALID_STATE as i64),
    ("TQ_ERROR_OUT_OF_MEMORY", TQ_ERROR_OUT_OF_MEMORY as i64),
    ("TQ_ERROR_CAPACITY", TQ_ERROR_CAPACITY as i64),
    ("TQ_ERROR_NOT_SUPPORTED", TQ_ERROR_NOT_SUPPORTED as i64),
    ("TQ_ERROR_NO_DEVICE", TQ_ERROR_NO_DEVICE as i64),
    ("TQ_ERROR_DRIVER", TQ_ERROR_DRIVER as i64),
    ("TQ_ERROR_CUDA", TQ_ERROR_CUDA as i64),
    ("TQ_ERROR_VERSION", TQ_ERROR_VERSION as i64),
    ("TQ_ERROR_CORRUPT_DATA", TQ_ERROR_CORRUPT_DATA as i64),
    ("TQ_ERROR_INCOMPATIBLE", TQ_ERROR_INCOMPATIBLE as i64),
    ("TQ_ERROR_WORKSPACE_TOO_SMALL", TQ_ERROR_WORKSPACE_TOO_SMALL as i64),
    ("TQ_ERROR_CAPTURE", TQ_ERROR_CAPTURE as i64),
    ("TQ_ERROR_IO", TQ_ERROR_IO as i64),
    ("TQ_ERROR_INTERNAL", TQ_ERROR_INTERNAL as i64),
    ("TQ_STRUCT_CACHE_CONFIG", TQ_STRUCT_CACHE_CONFIG as i64),
    ("TQ_STRUCT_CACHE_BYTES", TQ_STRUCT_CACHE_BYTES as i64),
    ("TQ_STRUCT_CACHE_MEMORY", TQ_STRUCT_CACHE_MEMORY as i64),
    ("TQ_STRUCT_TENSOR_LAYOUT", TQ_STRUCT_TENSOR_LAYOUT as i64),
    ("TQ_STRUCT_ATTEND_PARAMS", TQ_STRUCT_ATTEND_PARAMS as i64),
    ("TQ_STRUCT_DEVICE_INFO", TQ_STRUCT_DEVICE_INFO as i64),
    ("TQ_STRUCT_CODEBOOK", TQ_STRUCT_CODEBOOK as i64),
    ("TQ_STRUCT_ALLOCATOR", TQ_STRUCT_ALLOCATOR as i64),
    ("TQ_DEVICE_CPU", TQ_DEVICE_CPU as i64),
    ("TQ_DEVICE_CUDA", TQ_DEVICE_CUDA as i64),
    ("TQ_F32", TQ_F32 as i64),
    ("TQ_F16", TQ_F16 as i64),
    ("TQ_BF16", TQ_BF16 as i64),
    ("TQ_ROTATION_HADAMARD", TQ_ROTATION_HADAMARD as i64),
    ("TQ_ROTATION_DENSE", TQ_ROTATION_DENSE as i64),
    ("TQ_SCALE_LS", TQ_SCALE_LS as i64),
    ("TQ_SCALE_UNBIASED", TQ_SCALE_UNBIASED as i64),
    ("TQ_SCALE_NORM", TQ_SCALE_NORM as i64),
    ("TQ_SCALE_PAPER", TQ_SCALE_PAPER as i64),
    ("TQ_CODE_SCALAR", TQ_CODE_SCALAR as i64),
    ("TQ_FLAG_NO_ZERO_ON_FREE", TQ_FLAG_NO_ZERO_ON_FREE as i64),
    ("TQ_FLAG_NO_SCALE_SEARCH", TQ_FLAG_NO_SCALE_SEARCH as i64),
    ("TQ_NOTICED_NONFINITE", TQ_NOTICED_NONFINITE as i64),
];

/// Id for `tq_struct_size`, name and size here of every public struct.
pub const STRUCTS: &[(i32, &str, usize)] = &[
    (TQ_STRUCT_CACHE_CONFIG, "tq_cache_config", core::mem::size_of::<tq_cache_config>()),
    (TQ_STRUCT_CACHE_BYTES, "tq_cache_bytes", core::mem::size_of::<tq_cache_bytes>()),
    (TQ_STRUCT_CACHE_MEMORY, "tq_cache_memory_t", core::mem::size_of::<tq_cache_memory_t>()),
    (TQ_STRUCT_TENSOR_LAYOUT, "tq_tensor_layout", core::mem::size_of::<tq_tensor_layout>()),
    (TQ_STRUCT_ATTEND_PARAMS, "tq_attend_params", core::mem::size_of::<tq_attend_params>()),
    (TQ_STRUCT_DEVICE_INFO, "tq_device_info_t", core::mem::size_of::<tq_device_info_t>()),
    (TQ_STRUCT_CODEBOOK, "tq_codebook", core::mem::size_of::<tq_codebook>()),
    (TQ_STRUCT_ALLOCATOR, "tq_allocator", core::mem::size_of::<tq_allocator>()),
];

/// Name, size and whether it is signed, of every named number type.
pub const TYPES: &[(&str, usize, bool)] = &[
    ("tq_status", core::mem::size_of::<tq_status>(), tq_status::MIN != 0),
    ("tq_device_type", core::mem::size_of::<tq_device_type>(), tq_device_type::MIN != 0),
    ("tq_dtype", core::mem::size_of::<tq_dtype>(), tq_dtype::MIN != 0),
    ("tq_rotation", core::mem::size_of::<tq_rotation>(), tq_rotation::MIN != 0),
    ("tq_scale_rule", core::mem::size_of::<tq_scale_rule>(), tq_scale_rule::MIN != 0),
    ("tq_code_family", core::mem::size_of::<tq_code_family>(), tq_code_family::MIN != 0),
    ("tq_sequence", core::mem::size_of::<tq_sequence>(), tq_sequence::MIN != 0),
];

/// Name, size, alignment and fields (name, offset, size) of every public struct, for comparison with what a C compiler says.
pub const LAYOUT: &[(&str, usize, usize, &[(&str, usize, usize)])] = &[
    ("tq_device_info_t", core::mem::size_of::<tq_device_info_t>(), core::mem::align_of::<tq_device_info_t>(), &[
        ("struct_size", core::mem::offset_of!(tq_device_info_t, struct_size), core::mem::size_of::<u32>()),
        ("device_type", core::mem::offset_of!(tq_device_info_t, device_type), core::mem::size_of::<i32>()),
        ("device_id", core::mem::offset_of!(tq_device_info_t, device_id), core::mem::size_of::<i32>()),
        ("compute_major", core::mem::offset_of!(tq_device_info_t, compute_major), core::mem::size_of::<i32>()),
        ("compute_minor", core::mem::offset_of!(tq_device_info_t, compute_minor), core::mem::size_of::<i32>()),
        ("num_units", core::mem::offset_of!(tq_device_info_t, num_units), core::mem::size_of::<i32>()),
        ("memory_bytes", core::mem::offset_of!(tq_device_info_t, memory_bytes), core::mem::size_of::<i64>()),
        ("name", core::mem::offset_of!(tq_device_info_t, name), core::mem::size_of::<[c_char; 128]>()),
    ]),
    ("tq_codebook", core::mem::size_of::<tq_codebook>(), core::mem::align_of::<tq_codebook>(), &[
        ("struct_size", core::mem::offset_of!(tq_codebook, struct_size), core::mem::size_of::<u32>()),
        ("bits", core::mem::offset_of!(tq_codebook, bits), core::mem::size_of::<i32>()),
        ("unit", core::mem::offset_of!(tq_codebook, unit), core::mem::size_of::<f32>()),
        ("magnitude", core::mem::offset_of!(tq_codebook, magnitude), core::mem::size_of::<[u8; 32]>()),
    ]),
    ("tq_allocator", core::mem::size_of::<tq_allocator>(), core::mem::align_of::<tq_allocator>(), &[
        ("struct_size", core::mem::offset_of!(tq_allocator, struct_size), core::mem::size_of::<u32>()),
        ("reserved", core::mem::offset_of!(tq_allocator, reserved), core::mem::size_of::<u32>()),
        ("user", core::mem::offset_of!(tq_allocator, user), core::mem::size_of::<*mut c_void>()),
        ("alloc", core::mem::offset_of!(tq_allocator, alloc), core::mem::size_of::<Option<unsafe extern "C" fn(user: *mut c_void, bytes: usize, alignment: usize, device_type: i32, device_id: i32) -> *mut c_void>>()),
        ("free", core::mem::offset_of!(tq_allocator, free), core::mem::size_of::<Option<unsafe extern "C" fn(user: *mut c_void, pointer: *mut c_void, bytes: usize, device_type: i32, device_id: i32)>>()),
    ]),
    ("tq_cache_config", core::mem::size_of::<tq_cache_config>(), core::mem::align_of::<tq_cache_config>(), &[
        ("struct_size", core::mem::offset_of!(tq_cache_config, struct_size), core::mem::size_of::<u32>()),
        ("device_type", core::mem::offset_of!(tq_cache_config, device_type), core::mem::size_of::<i32>()),
        ("device_id", core::mem::offset_of!(tq_cache_config, device_id), core::mem::size_of::<i32>()),
        ("num_layers", core::mem::offset_of!(tq_cache_config, num_layers), core::mem::size_of::<i32>()),
        ("num_q_heads", core::mem::offset_of!(tq_cache_config, num_q_heads), core::mem::size_of::<i32>()),
        ("num_kv_heads", core::mem::offset_of!(tq_cache_config, num_kv_heads), core::mem::size_of::<i32>()),
        ("head_dim", core::mem::offset_of!(tq_cache_config, head_dim), core::mem::size_of::<i32>()),
        ("value_dim", core::mem::offset_of!(tq_cache_config, value_dim), core::mem::size_of::<i32>()),
        ("io_dtype", core::mem::offset_of!(tq_cache_config, io_dtype), core::mem::size_of::<i32>()),
        ("key_bits", core::mem::offset_of!(tq_cache_config, key_bits), core::mem::size_of::<i32>()),
        ("value_bits", core::mem::offset_of!(tq_cache_config, value_bits), core::mem::size_of::<i32>()),
        ("code_family", core::mem::offset_of!(tq_cache_config, code_family), core::mem::size_of::<i32>()),
        ("layer_key_bits", core::mem::offset_of!(tq_cache_config, layer_key_bits), core::mem::size_of::<*const i32>()),
        ("layer_value_bits", core::mem::offset_of!(tq_cache_config, layer_value_bits), core::mem::size_of::<*const i32>()),
        ("rotation", core::mem::offset_of!(tq_cache_config, rotation), core::mem::size_of::<i32>()),
        ("key_scale_rule", core::mem::offset_of!(tq_cache_config, key_scale_rule), core::mem::size_of::<i32>()),
        ("value_scale_rule", core::mem::offset_of!(tq_cache_config, value_scale_rule), core::mem::size_of::<i32>()),
        ("page_size", core::mem::offset_of!(tq_cache_config, page_size), core::mem::size_of::<i32>()),
        ("rotation_seed", core::mem::offset_of!(tq_cache_config, rotation_seed), core::mem::size_of::<u64>()),
        ("key_codebook", core::mem::offset_of!(tq_cache_config, key_codebook), core::mem::size_of::<*const tq_codebook>()),
        ("value_codebook", core::mem::offset_of!(tq_cache_config, value_codebook), core::mem::size_of::<*const tq_codebook>()),
        ("max_tokens", core::mem::offset_of!(tq_cache_config, max_tokens), core::mem::size_of::<i64>()),
        ("max_sequence_tokens", core::mem::offset_of!(tq_cache_config, max_sequence_tokens), core::mem::size_of::<i64>()),
        ("max_sequences", core::mem::offset_of!(tq_cache_config, max_sequences), core::mem::size_of::<i32>()),
        ("max_batch_sequences", core::mem::offset_of!(tq_cache_config, max_batch_sequences), core::mem::size_of::<i32>()),
        ("max_batch_tokens", core::mem::offset_of!(tq_cache_config, max_batch_tokens), core::mem::size_of::<i64>()),
        ("window_tokens", core::mem::offset_of!(tq_cache_config, window_tokens), core::mem::size_of::<i32>()),
        ("sink_tokens", core::mem::offset_of!(tq_cache_config, sink_tokens), core::mem::size_of::<i32>()),
        ("rollback_tokens", core::mem::offset_of!(tq_cache_config, rollback_tokens), core::mem::size_of::<i32>()),
        ("num_threads", core::mem::offset_of!(tq_cache_config, num_threads), core::mem::size_of::<i32>()),
        ("flags", core::mem::offset_of!(tq_cache_config, flags), core::mem::size_of::<u64>()),
        ("allocator", core::mem::offset_of!(tq_cache_config, allocator), core::mem::size_of::<*const tq_allocator>()),
        ("pool", core::mem::offset_of!(tq_cache_config, pool), core::mem::size_of::<*mut c_void>()),
        ("pool_bytes", core::mem::offset_of!(tq_cache_config, pool_bytes), core::mem::size_of::<i64>()),
    ]),
    ("tq_cache_bytes", core::mem::size_of::<tq_cache_bytes>(), core::mem::align_of::<tq_cache_bytes>(), &[
        ("struct_size", core::mem::offset_of!(tq_cache_bytes, struct_size), core::mem::size_of::<u32>()),
        ("reserved", core::mem::offset_of!(tq_cache_bytes, reserved), core::mem::size_of::<u32>()),
        ("page_bytes", core::mem::offset_of!(tq_cache_bytes, page_bytes), core::mem::size_of::<i64>()),
        ("raw_bytes", core::mem::offset_of!(tq_cache_bytes, raw_bytes), core::mem::size_of::<i64>()),
        ("table_bytes", core::mem::offset_of!(tq_cache_bytes, table_bytes), core::mem::size_of::<i64>()),
        ("workspace_bytes", core::mem::offset_of!(tq_cache_bytes, workspace_bytes), core::mem::size_of::<i64>()),
        ("device_bytes", core::mem::offset_of!(tq_cache_bytes, device_bytes), core::mem::size_of::<i64>()),
        ("host_bytes", core::mem::offset_of!(tq_cache_bytes, host_bytes), core::mem::size_of::<i64>()),
        ("num_pages", core::mem::offset_of!(tq_cache_bytes, num_pages), core::mem::size_of::<i64>()),
        ("token_bytes", core::mem::offset_of!(tq_cache_bytes, token_bytes), core::mem::size_of::<i64>()),
        ("fp16_token_bytes", core::mem::offset_of!(tq_cache_bytes, fp16_token_bytes), core::mem::size_of::<i64>()),
    ]),
    ("tq_cache_memory_t", core::mem::size_of::<tq_cache_memory_t>(), core::mem::align_of::<tq_cache_memory_t>(), &[
        ("struct_size", core::mem::offset_of!(tq_cache_memory_t, struct_size), core::mem::size_of::<u32>()),
        ("num_sequences", core::mem::offset_of!(tq_cache_memory_t, num_sequences), core::mem::size_of::<i32>()),
        ("tokens", core::mem::offset_of!(tq_cache_memory_t, tokens), core::mem::size_of::<i64>()),
        ("pages_used", core::mem::offset_of!(tq_cache_memory_t, pages_used), core::mem::size_of::<i64>()),
        ("pages_total", core::mem::offset_of!(tq_cache_memory_t, pages_total), core::mem::size_of::<i64>()),
        ("stored_bytes_used", core::mem::offset_of!(tq_cache_memory_t, stored_bytes_used), core::mem::size_of::<i64>()),
        ("raw_bytes", core::mem::offset_of!(tq_cache_memory_t, raw_bytes), core::mem::size_of::<i64>()),
        ("device_bytes", core::mem::offset_of!(tq_cache_memory_t, device_bytes), core::mem::size_of::<i64>()),
        ("host_bytes", core::mem::offset_of!(tq_cache_memory_t, host_bytes), core::mem::size_of::<i64>()),
        ("compression", core::mem::offset_of!(tq_cache_memory_t, compression), core::mem::size_of::<f64>()),
    ]),
    ("tq_tensor_layout", core::mem::size_of::<tq_tensor_layout>(), core::mem::align_of::<tq_tensor_layout>(), &[
        ("struct_size", core::mem::offset_of!(tq_tensor_layout, struct_size), core::mem::size_of::<u32>()),
        ("reserved", core::mem::offset_of!(tq_tensor_layout, reserved), core::mem::size_of::<u32>()),
        ("key_token_stride", core::mem::offset_of!(tq_tensor_layout, key_token_stride), core::mem::size_of::<i64>()),
        ("key_head_stride", core::mem::offset_of!(tq_tensor_layout, key_head_stride), core::mem::size_of::<i64>()),
        ("value_token_stride", core::mem::offset_of!(tq_tensor_layout, value_token_stride), core::mem::size_of::<i64>()),
        ("value_head_stride", core::mem::offset_of!(tq_tensor_layout, value_head_stride), core::mem::size_of::<i64>()),
    ]),
    ("tq_attend_params", core::mem::size_of::<tq_attend_params>(), core::mem::align_of::<tq_attend_params>(), &[
        ("struct_size", core::mem::offset_of!(tq_attend_params, struct_size), core::mem::size_of::<u32>()),
        ("out_dtype", core::mem::offset_of!(tq_attend_params, out_dtype), core::mem::size_of::<i32>()),
        ("softmax_scale", core::mem::offset_of!(tq_attend_params, softmax_scale), core::mem::size_of::<f32>()),
        ("logit_softcap", core::mem::offset_of!(tq_attend_params, logit_softcap), core::mem::size_of::<f32>()),
        ("sliding_window", core::mem::offset_of!(tq_attend_params, sliding_window), core::mem::size_of::<i64>()),
        ("sink_logits", core::mem::offset_of!(tq_attend_params, sink_logits), core::mem::size_of::<*const f32>()),
        ("history_only", core::mem::offset_of!(tq_attend_params, history_only), core::mem::size_of::<i32>()),
        ("num_splits", core::mem::offset_of!(tq_attend_params, num_splits), core::mem::size_of::<i32>()),
        ("q_token_stride", core::mem::offset_of!(tq_attend_params, q_token_stride), core::mem::size_of::<i64>()),
        ("q_head_stride", core::mem::offset_of!(tq_attend_params, q_head_stride), core::mem::size_of::<i64>()),
        ("out_token_stride", core::mem::offset_of!(tq_attend_params, out_token_stride), core::mem::size_of::<i64>()),
        ("out_head_stride", core::mem::offset_of!(tq_attend_params, out_head_stride), core::mem::size_of::<i64>()),
    ]),
];

/// Every function of the library. Made by [`Api::from_symbols`] from an opened library, or by `Api::linked` with the feature `link`.
///
/// The functions are `unsafe` to call: their contracts are those of `tqkv.h`, repeated here.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    /// Name of a status, "TQ\_OK" .. "TQ\_ERROR\_INTERNAL", or "TQ\_ERROR\_UNKNOWN". Never NULL; static storage. Any thread.
    pub tq_status_name: unsafe extern "C" fn(status: tq_status) -> *const c_char,
    /// Text about the last failed call of the calling thread, "" if there was none. Never NULL; valid until the thread's next tq\_ call. A
    /// success does not clear it.
    pub tq_last_error: unsafe extern "C" fn() -> *const c_char,
    /// Copies that text. buffer: capacity bytes, always NUL-terminated when capacity \> 0, cut if short; may be NULL with capacity 0.
    /// needed: bytes with the NUL; may be NULL. Always TQ\_OK unless buffer is NULL with capacity \> 0 (INVALID\_ARGUMENT).
    pub tq_last_error_copy: unsafe extern "C" fn(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> tq_status,
    /// "0.1.0"; static storage.
    pub tq_version: unsafe extern "C" fn() -> *const c_char,
    /// TQ\_ABI\_VERSION of the library in hand.
    pub tq_abi_version: unsafe extern "C" fn() -> i32,
    /// One line: version, compiler, CUDA architectures or "cuda off", SIMD paths compiled and the one in use, format version. Static storage.
    pub tq_build_info: unsafe extern "C" fn() -> *const c_char,
    /// sizeof of a public struct inside the library, 0 for an unknown id: lets a binding check its layout at load time.
    pub tq_struct_size: unsafe extern "C" fn(struct_id: i32) -> usize,
    /// Number of devices of a type. CUDA on a machine without a driver, or in a build without CUDA: 0 and TQ\_OK. The CPU counts as 1.
    pub tq_device_count: unsafe extern "C" fn(r#type: tq_device_type, count: *mut i32) -> tq_status,
    /// info-\>struct\_size must be set. NO\_DEVICE if index is not below the count.
    pub tq_device_info: unsafe extern "C" fn(r#type: tq_device_type, index: i32, info: *mut tq_device_info_t) -> tq_status,
    /// Zeroes \*config and sets struct\_size. NULL: INVALID\_ARGUMENT.
    pub tq_cache_config_init: unsafe extern "C" fn(config: *mut tq_cache_config) -> tq_status,
    /// Can this library run the configuration? TQ\_OK, or the status that tq\_cache\_create would return; then text holds every reason,
    /// one a line, each naming its field. text: capacity bytes, NUL-terminated, cut if short; may be NULL with capacity 0. Allocates nothing
    /// on a device. Any thread.
    pub tq_cache_config_check: unsafe extern "C" fn(config: *const tq_cache_config, text: *mut c_char, capacity: usize) -> tq_status,
    /// Fills \*bytes (struct\_size set) with what tq\_cache\_create would allocate. Status as tq\_cache\_config\_check.
    pub tq_cache_config_bytes: unsafe extern "C" fn(config: *const tq_cache_config, bytes: *mut tq_cache_bytes) -> tq_status,
    /// Creates a cache and allocates all it will ever need. config is copied, its arrays too. Status: INVALID\_ARGUMENT, VERSION,
    /// NOT\_SUPPORTED, NO\_DEVICE, DRIVER, OUT\_OF\_MEMORY, CUDA; CAPTURE if stream is being captured.
    pub tq_cache_create: unsafe extern "C" fn(config: *const tq_cache_config, stream: *mut c_void, cache: *mut *mut tq_cache) -> tq_status,
    /// Frees the cache; NULL is accepted. Waits for the work that the cache itself enqueued. All its batches must be destroyed first
    /// (INVALID\_STATE otherwise, nothing freed).
    pub tq_cache_destroy: unsafe extern "C" fn(cache: *mut tq_cache) -> tq_status,
    /// The configuration with every default resolved; config-\>struct\_size set by the caller. The arrays and codebooks it points to belong to the
    /// cache.
    pub tq_cache_get_config: unsafe extern "C" fn(cache: *const tq_cache, config: *mut tq_cache_config) -> tq_status,
    /// Fixed vectors subtracted before coding, per kv head: key\_centre \[num\_kv\_heads\]\[head\_dim\], value\_centre \[num\_kv\_heads\]\[value\_dim\], float32
    /// on the host, finite; either may be NULL (left as it is). Exact for attention: it is as if the codes stood for centre + code. Keys of
    /// models with biases spend much of their energy on a constant; taking it out there lowers the error at equal bits. Ignored by raw layers.
    /// INVALID\_STATE once a sequence holds tokens.
    pub tq_cache_set_centres: unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, key_centre: *const f32, value_centre: *const f32) -> tq_status,
    /// Host-side figures, no synchronisation. memory-\>struct\_size set by the caller.
    pub tq_cache_memory: unsafe extern "C" fn(cache: *const tq_cache, memory: *mut tq_cache_memory_t) -> tq_status,
    /// Hash of all that decides the meaning of page bytes (format version, geometry, codes, codebooks, rotation, seed, centres): equal if and
    /// only if pages are exchangeable.
    pub tq_cache_fingerprint: unsafe extern "C" fn(cache: *const tq_cache, fingerprint: *mut u64) -> tq_status,
    /// Synchronises stream, then returns and clears the cache's sticky asynchronous error (TQ\_OK if none). flags (may be NULL) receives and
    /// clears what was noticed since the last check:
    pub tq_cache_check: unsafe extern "C" fn(cache: *mut tq_cache, stream: *mut c_void, flags: *mut u64) -> tq_status,
    /// A new, empty sequence. CAPACITY if max\_sequences are alive.
    pub tq_sequence_create: unsafe extern "C" fn(cache: *mut tq_cache, sequence: *mut tq_sequence) -> tq_status,
    /// Gives its pages back; pages shared with a fork stay. Freed pages are scrubbed in stream order unless TQ\_FLAG\_NO\_ZERO\_ON\_FREE. A batch that
    /// has the sequence in its plan must be planned again before its next use (INVALID\_STATE otherwise).
    pub tq_sequence_free: unsafe extern "C" fn(cache: *mut tq_cache, sequence: tq_sequence, stream: *mut c_void) -> tq_status,
    /// A new sequence with the same tokens: pages are shared and copied when one side writes into a shared page; exact copies of
    /// window and sinks are duplicated on stream. CAPACITY as tq\_sequence\_create. Fork after a step's appends: layers into which a plan in force
    /// has not been appended yet refuse it afterwards (INVALID\_STATE), as the fork would miss their new tokens.
    pub tq_sequence_fork: unsafe extern "C" fn(cache: *mut tq_cache, source: tq_sequence, stream: *mut c_void, sequence: *mut tq_sequence) -> tq_status,
    /// Shortens to length tokens, 0 \<= length \<= current: afterwards it is as if the later tokens had never been appended, the exact window
    /// included as long as the length stays within rollback\_tokens of the longest it has had (deeper is allowed; the window then holds only the exact
    /// copies still there). Whole pages are given back and scrubbed; what lies behind the new end in the last page is overwritten by the next append.
    pub tq_sequence_truncate: unsafe extern "C" fn(cache: *mut tq_cache, sequence: tq_sequence, length: i64, stream: *mut c_void) -> tq_status,
    /// Tokens, planned ones included.
    pub tq_sequence_length: unsafe extern "C" fn(cache: *const tq_cache, sequence: tq_sequence, length: *mut i64) -> tq_status,
    /// TQ\_NOTICED\_\* of this sequence since it was created (a fork inherits them); no synchronisation, so on a CUDA cache it may be early.
    pub tq_sequence_flags: unsafe extern "C" fn(cache: *const tq_cache, sequence: tq_sequence, flags: *mut u64) -> tq_status,
    /// Room for one plan of up to max\_batch\_sequences sequences. Several batches of one cache may exist; each has its own plan.
    pub tq_batch_create: unsafe extern "C" fn(cache: *mut tq_cache, batch: *mut *mut tq_batch) -> tq_status,
    /// NULL is accepted.
    pub tq_batch_destroy: unsafe extern "C" fn(batch: *mut tq_batch) -> tq_status,
    /// Plans one step: sequence i gets new\_tokens\[i\] \>= 0 more tokens (room is reserved in all layers, its length grows at once) and asks
    /// query\_tokens\[i\] \>= 0 queries, which are its last tokens (query\_tokens NULL = new\_tokens; query\_tokens\[i\] \<= its new length).
    /// num\_sequences  0 .. max\_batch\_sequences; sequences\[\] distinct and alive
    /// Rows of k, v are the new tokens of all sequences one after the other, rows of q, out, lse the query tokens likewise.
    /// The plan stays in force until the next plan, truncate or free of one of its sequences; append and attend of every layer follow it.
    /// A sequence planned anew in a second batch puts the first plan out of force as well.
    /// CAPACITY: pool, max\_sequence\_tokens or batch limits exceeded; nothing changed, the text has the numbers. Not inside a graph (CAPTURE).
    pub tq_batch_plan: unsafe extern "C" fn(batch: *mut tq_batch, num_sequences: i32, sequences: *const tq_sequence, new_tokens: *const i64, query_tokens: *const i64, stream: *mut c_void) -> tq_status,
    /// Encodes the new tokens of the batch into one layer.
    /// k  \[new tokens\]\[num\_kv\_heads\]\[head\_dim\] io\_dtype, v likewise with value\_dim; may be NULL only if the plan has no new tokens
    /// Each layer of a plan is appended once; a repeated append writes the same bytes again. INVALID\_STATE without a plan in force.
    pub tq_cache_append: unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, k: *const c_void, v: *const c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status,
    /// out = softmax(q . K^T \* softmax\_scale) . V for the query tokens of the batch; query j of a sequence sees the tokens up to its own position.
    /// q    \[query tokens\]\[num\_q\_heads\]\[head\_dim\] io\_dtype; query head h reads kv head h / (num\_q\_heads / num\_kv\_heads)
    /// out  \[query tokens\]\[num\_q\_heads\]\[value\_dim\] out\_dtype
    /// lse  \[query tokens\]\[num\_q\_heads\] float32, natural log of the softmax's sum, sink logit included; NULL = not wanted
    /// params NULL = defaults
    /// workspace  NULL = the cache's own, else tq\_attend\_workspace\_bytes of the cache's device memory, 256-byte aligned
    /// A query that sees no token: out exactly 0, lse -inf (with a sink logit: that logit). The result is finite for finite q, the same
    /// bits for any batch, num\_splits, thread count or page placement, and independent of what unwritten memory holds.
    /// CUDA: 256 or more queries of a sequence, counted over the query heads of a kv head, go to a kernel of their own. A graph has that kernel
    /// if its plan had such a sequence at capture; otherwise a later plan's are computed as short ones are: as exact, slower, not the same bits.
    pub tq_cache_attend: unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, q: *const c_void, out: *mut c_void, lse: *mut f32, params: *const tq_attend_params, workspace: *mut c_void, workspace_bytes: usize, stream: *mut c_void) -> tq_status,
    /// Workspace that tq\_cache\_attend needs for this batch's plan, and for every smaller one.
    pub tq_attend_workspace_bytes: unsafe extern "C" fn(cache: *const tq_cache, batch: *const tq_batch, bytes: *mut usize) -> tq_status,
    /// Merges num\_states partial results of the same rows: context-parallel ranks, chunked prefill, history\_only.
    /// outs\[s\]  \[rows\]\[dim\] dtype, lses\[s\] \[rows\] float32, both on device\_type / device\_id; an empty part has lse -inf (its out is not read)
    /// out      \[rows\]\[dim\] dtype; lse \[rows\] or NULL
    /// Merged in index order, in float32. num\_states 1 .. 1024. Host arrays of pointers. out may be one of outs.
    pub tq_merge_states: unsafe extern "C" fn(num_states: i32, outs: *const *const c_void, lses: *const *const f32, rows: i64, dim: i32, dtype: tq_dtype, out: *mut c_void, lse: *mut f32, device_type: tq_device_type, device_id: i32, stream: *mut c_void) -> tq_status,
    /// Decoded keys and values of tokens first .. first + count - 1 of a sequence, exact where exact copies are kept.
    /// k \[count\]\[num\_kv\_heads\]\[head\_dim\] io\_dtype, v likewise; either may be NULL
    /// INVALID\_ARGUMENT if the range does not lie inside the sequence.
    pub tq_cache_read: unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, sequence: tq_sequence, first: i64, count: i64, k: *mut c_void, v: *mut c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status,
}

impl Api {
    /// Names of all functions, in the header's order.
    pub const NAMES: &'static [&'static str] = &[
        "tq_status_name",
        "tq_last_error",
        "tq_last_error_copy",
        "tq_version",
        "tq_abi_version",
        "tq_build_info",
        "tq_struct_size",
        "tq_device_count",
        "tq_device_info",
        "tq_cache_config_init",
        "tq_cache_config_check",
        "tq_cache_config_bytes",
        "tq_cache_create",
        "tq_cache_destroy",
        "tq_cache_get_config",
        "tq_cache_set_centres",
        "tq_cache_memory",
        "tq_cache_fingerprint",
        "tq_cache_check",
        "tq_sequence_create",
        "tq_sequence_free",
        "tq_sequence_fork",
        "tq_sequence_truncate",
        "tq_sequence_length",
        "tq_sequence_flags",
        "tq_batch_create",
        "tq_batch_destroy",
        "tq_batch_plan",
        "tq_cache_append",
        "tq_cache_attend",
        "tq_attend_workspace_bytes",
        "tq_merge_states",
        "tq_cache_read",
    ];

    /// Fills the table from `symbol`, which returns the address of a name or `None`. If any is missing, all the missing names are the error.
    ///
    /// # Safety
    /// Every address must be that of the function of `tqkv.h` with that name, and stay valid as long as the table is used.
    pub unsafe fn from_symbols(mut symbol: impl FnMut(&'static str) -> Option<*mut c_void>) -> Result<Api, Vec<&'static str>> {
        let mut missing = Vec::new();
        let mut find = |name| {
            symbol(name).filter(|address| !address.is_null()).unwrap_or_else(|| {
                missing.push(name);
                core::ptr::null_mut()
            })
        };
        let tq_status_name = find("tq_status_name");
        let tq_last_error = find("tq_last_error");
        let tq_last_error_copy = find("tq_last_error_copy");
        let tq_version = find("tq_version");
        let tq_abi_version = find("tq_abi_version");
        let tq_build_info = find("tq_build_info");
        let tq_struct_size = find("tq_struct_size");
        let tq_device_count = find("tq_device_count");
        let tq_device_info = find("tq_device_info");
        let tq_cache_config_init = find("tq_cache_config_init");
        let tq_cache_config_check = find("tq_cache_config_check");
        let tq_cache_config_bytes = find("tq_cache_config_bytes");
        let tq_cache_create = find("tq_cache_create");
        let tq_cache_destroy = find("tq_cache_destroy");
        let tq_cache_get_config = find("tq_cache_get_config");
        let tq_cache_set_centres = find("tq_cache_set_centres");
        let tq_cache_memory = find("tq_cache_memory");
        let tq_cache_fingerprint = find("tq_cache_fingerprint");
        let tq_cache_check = find("tq_cache_check");
        let tq_sequence_create = find("tq_sequence_create");
        let tq_sequence_free = find("tq_sequence_free");
        let tq_sequence_fork = find("tq_sequence_fork");
        let tq_sequence_truncate = find("tq_sequence_truncate");
        let tq_sequence_length = find("tq_sequence_length");
        let tq_sequence_flags = find("tq_sequence_flags");
        let tq_batch_create = find("tq_batch_create");
        let tq_batch_destroy = find("tq_batch_destroy");
        let tq_batch_plan = find("tq_batch_plan");
        let tq_cache_append = find("tq_cache_append");
        let tq_cache_attend = find("tq_cache_attend");
        let tq_attend_workspace_bytes = find("tq_attend_workspace_bytes");
        let tq_merge_states = find("tq_merge_states");
        let tq_cache_read = find("tq_cache_read");
        if !missing.is_empty() {
            return Err(missing);
        }
        // SAFETY: not null; the caller answers for the types.
        Ok(unsafe {
            Api {
                tq_status_name: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(status: tq_status) -> *const c_char>(tq_status_name),
                tq_last_error: core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(tq_last_error),
                tq_last_error_copy: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> tq_status>(tq_last_error_copy),
                tq_version: core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(tq_version),
                tq_abi_version: core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i32>(tq_abi_version),
                tq_build_info: core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(tq_build_info),
                tq_struct_size: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(struct_id: i32) -> usize>(tq_struct_size),
                tq_device_count: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(r#type: tq_device_type, count: *mut i32) -> tq_status>(tq_device_count),
                tq_device_info: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(r#type: tq_device_type, index: i32, info: *mut tq_device_info_t) -> tq_status>(tq_device_info),
                tq_cache_config_init: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(config: *mut tq_cache_config) -> tq_status>(tq_cache_config_init),
                tq_cache_config_check: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(config: *const tq_cache_config, text: *mut c_char, capacity: usize) -> tq_status>(tq_cache_config_check),
                tq_cache_config_bytes: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(config: *const tq_cache_config, bytes: *mut tq_cache_bytes) -> tq_status>(tq_cache_config_bytes),
                tq_cache_create: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(config: *const tq_cache_config, stream: *mut c_void, cache: *mut *mut tq_cache) -> tq_status>(tq_cache_create),
                tq_cache_destroy: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache) -> tq_status>(tq_cache_destroy),
                tq_cache_get_config: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, config: *mut tq_cache_config) -> tq_status>(tq_cache_get_config),
                tq_cache_set_centres: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, key_centre: *const f32, value_centre: *const f32) -> tq_status>(tq_cache_set_centres),
                tq_cache_memory: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, memory: *mut tq_cache_memory_t) -> tq_status>(tq_cache_memory),
                tq_cache_fingerprint: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, fingerprint: *mut u64) -> tq_status>(tq_cache_fingerprint),
                tq_cache_check: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, stream: *mut c_void, flags: *mut u64) -> tq_status>(tq_cache_check),
                tq_sequence_create: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, sequence: *mut tq_sequence) -> tq_status>(tq_sequence_create),
                tq_sequence_free: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, sequence: tq_sequence, stream: *mut c_void) -> tq_status>(tq_sequence_free),
                tq_sequence_fork: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, source: tq_sequence, stream: *mut c_void, sequence: *mut tq_sequence) -> tq_status>(tq_sequence_fork),
                tq_sequence_truncate: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, sequence: tq_sequence, length: i64, stream: *mut c_void) -> tq_status>(tq_sequence_truncate),
                tq_sequence_length: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, sequence: tq_sequence, length: *mut i64) -> tq_status>(tq_sequence_length),
                tq_sequence_flags: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, sequence: tq_sequence, flags: *mut u64) -> tq_status>(tq_sequence_flags),
                tq_batch_create: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, batch: *mut *mut tq_batch) -> tq_status>(tq_batch_create),
                tq_batch_destroy: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(batch: *mut tq_batch) -> tq_status>(tq_batch_destroy),
                tq_batch_plan: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(batch: *mut tq_batch, num_sequences: i32, sequences: *const tq_sequence, new_tokens: *const i64, query_tokens: *const i64, stream: *mut c_void) -> tq_status>(tq_batch_plan),
                tq_cache_append: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, k: *const c_void, v: *const c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status>(tq_cache_append),
                tq_cache_attend: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, q: *const c_void, out: *mut c_void, lse: *mut f32, params: *const tq_attend_params, workspace: *mut c_void, workspace_bytes: usize, stream: *mut c_void) -> tq_status>(tq_cache_attend),
                tq_attend_workspace_bytes: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *const tq_cache, batch: *const tq_batch, bytes: *mut usize) -> tq_status>(tq_attend_workspace_bytes),
                tq_merge_states: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(num_states: i32, outs: *const *const c_void, lses: *const *const f32, rows: i64, dim: i32, dtype: tq_dtype, out: *mut c_void, lse: *mut f32, device_type: tq_device_type, device_id: i32, stream: *mut c_void) -> tq_status>(tq_merge_states),
                tq_cache_read: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(cache: *mut tq_cache, layer: i32, sequence: tq_sequence, first: i64, count: i64, k: *mut c_void, v: *mut c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status>(tq_cache_read),
            }
        })
    }

    /// The functions that the program was linked with.
    #[cfg(feature = "link")]
    pub fn linked() -> Api {
        Api {
            tq_status_name: linked::tq_status_name,
            tq_last_error: linked::tq_last_error,
            tq_last_error_copy: linked::tq_last_error_copy,
            tq_version: linked::tq_version,
            tq_abi_version: linked::tq_abi_version,
            tq_build_info: linked::tq_build_info,
            tq_struct_size: linked::tq_struct_size,
            tq_device_count: linked::tq_device_count,
            tq_device_info: linked::tq_device_info,
            tq_cache_config_init: linked::tq_cache_config_init,
            tq_cache_config_check: linked::tq_cache_config_check,
            tq_cache_config_bytes: linked::tq_cache_config_bytes,
            tq_cache_create: linked::tq_cache_create,
            tq_cache_destroy: linked::tq_cache_destroy,
            tq_cache_get_config: linked::tq_cache_get_config,
            tq_cache_set_centres: linked::tq_cache_set_centres,
            tq_cache_memory: linked::tq_cache_memory,
            tq_cache_fingerprint: linked::tq_cache_fingerprint,
            tq_cache_check: linked::tq_cache_check,
            tq_sequence_create: linked::tq_sequence_create,
            tq_sequence_free: linked::tq_sequence_free,
            tq_sequence_fork: linked::tq_sequence_fork,
            tq_sequence_truncate: linked::tq_sequence_truncate,
            tq_sequence_length: linked::tq_sequence_length,
            tq_sequence_flags: linked::tq_sequence_flags,
            tq_batch_create: linked::tq_batch_create,
            tq_batch_destroy: linked::tq_batch_destroy,
            tq_batch_plan: linked::tq_batch_plan,
            tq_cache_append: linked::tq_cache_append,
            tq_cache_attend: linked::tq_cache_attend,
            tq_attend_workspace_bytes: linked::tq_attend_workspace_bytes,
            tq_merge_states: linked::tq_merge_states,
            tq_cache_read: linked::tq_cache_read,
        }
    }
}

/// The functions as symbols of the linked library.
#[cfg(feature = "link")]
pub mod linked {
    use super::*;
    extern "C" {
        /// Name of a status, "TQ\_OK" .. "TQ\_ERROR\_INTERNAL", or "TQ\_ERROR\_UNKNOWN". Never NULL; static storage. Any thread.
        pub fn tq_status_name(status: tq_status) -> *const c_char;
        /// Text about the last failed call of the calling thread, "" if there was none. Never NULL; valid until the thread's next tq\_ call. A
        /// success does not clear it.
        pub fn tq_last_error() -> *const c_char;
        /// Copies that text. buffer: capacity bytes, always NUL-terminated when capacity \> 0, cut if short; may be NULL with capacity 0.
        /// needed: bytes with the NUL; may be NULL. Always TQ\_OK unless buffer is NULL with capacity \> 0 (INVALID\_ARGUMENT).
        pub fn tq_last_error_copy(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> tq_status;
        /// "0.1.0"; static storage.
        pub fn tq_version() -> *const c_char;
        /// TQ\_ABI\_VERSION of the library in hand.
        pub fn tq_abi_version() -> i32;
        /// One line: version, compiler, CUDA architectures or "cuda off", SIMD paths compiled and the one in use, format version. Static storage.
        pub fn tq_build_info() -> *const c_char;
        /// sizeof of a public struct inside the library, 0 for an unknown id: lets a binding check its layout at load time.
        pub fn tq_struct_size(struct_id: i32) -> usize;
        /// Number of devices of a type. CUDA on a machine without a driver, or in a build without CUDA: 0 and TQ\_OK. The CPU counts as 1.
        pub fn tq_device_count(r#type: tq_device_type, count: *mut i32) -> tq_status;
        /// info-\>struct\_size must be set. NO\_DEVICE if index is not below the count.
        pub fn tq_device_info(r#type: tq_device_type, index: i32, info: *mut tq_device_info_t) -> tq_status;
        /// Zeroes \*config and sets struct\_size. NULL: INVALID\_ARGUMENT.
        pub fn tq_cache_config_init(config: *mut tq_cache_config) -> tq_status;
        /// Can this library run the configuration? TQ\_OK, or the status that tq\_cache\_create would return; then text holds every reason,
        /// one a line, each naming its field. text: capacity bytes, NUL-terminated, cut if short; may be NULL with capacity 0. Allocates nothing
        /// on a device. Any thread.
        pub fn tq_cache_config_check(config: *const tq_cache_config, text: *mut c_char, capacity: usize) -> tq_status;
        /// Fills \*bytes (struct\_size set) with what tq\_cache\_create would allocate. Status as tq\_cache\_config\_check.
        pub fn tq_cache_config_bytes(config: *const tq_cache_config, bytes: *mut tq_cache_bytes) -> tq_status;
        /// Creates a cache and allocates all it will ever need. config is copied, its arrays too. Status: INVALID\_ARGUMENT, VERSION,
        /// NOT\_SUPPORTED, NO\_DEVICE, DRIVER, OUT\_OF\_MEMORY, CUDA; CAPTURE if stream is being captured.
        pub fn tq_cache_create(config: *const tq_cache_config, stream: *mut c_void, cache: *mut *mut tq_cache) -> tq_status;
        /// Frees the cache; NULL is accepted. Waits for the work that the cache itself enqueued. All its batches must be destroyed first
        /// (INVALID\_STATE otherwise, nothing freed).
        pub fn tq_cache_destroy(cache: *mut tq_cache) -> tq_status;
        /// The configuration with every default resolved; config-\>struct\_size set by the caller. The arrays and codebooks it points to belong to the
        /// cache.
        pub fn tq_cache_get_config(cache: *const tq_cache, config: *mut tq_cache_config) -> tq_status;
        /// Fixed vectors subtracted before coding, per kv head: key\_centre \[num\_kv\_heads\]\[head\_dim\], value\_centre \[num\_kv\_heads\]\[value\_dim\], float32
        /// on the host, finite; either may be NULL (left as it is). Exact for attention: it is as if the codes stood for centre + code. Keys of
        /// models with biases spend much of their energy on a constant; taking it out there lowers the error at equal bits. Ignored by raw layers.
        /// INVALID\_STATE once a sequence holds tokens.
        pub fn tq_cache_set_centres(cache: *mut tq_cache, layer: i32, key_centre: *const f32, value_centre: *const f32) -> tq_status;
        /// Host-side figures, no synchronisation. memory-\>struct\_size set by the caller.
        pub fn tq_cache_memory(cache: *const tq_cache, memory: *mut tq_cache_memory_t) -> tq_status;
        /// Hash of all that decides the meaning of page bytes (format version, geometry, codes, codebooks, rotation, seed, centres): equal if and
        /// only if pages are exchangeable.
        pub fn tq_cache_fingerprint(cache: *const tq_cache, fingerprint: *mut u64) -> tq_status;
        /// Synchronises stream, then returns and clears the cache's sticky asynchronous error (TQ\_OK if none). flags (may be NULL) receives and
        /// clears what was noticed since the last check:
        pub fn tq_cache_check(cache: *mut tq_cache, stream: *mut c_void, flags: *mut u64) -> tq_status;
        /// A new, empty sequence. CAPACITY if max\_sequences are alive.
        pub fn tq_sequence_create(cache: *mut tq_cache, sequence: *mut tq_sequence) -> tq_status;
        /// Gives its pages back; pages shared with a fork stay. Freed pages are scrubbed in stream order unless TQ\_FLAG\_NO\_ZERO\_ON\_FREE. A batch that
        /// has the sequence in its plan must be planned again before its next use (INVALID\_STATE otherwise).
        pub fn tq_sequence_free(cache: *mut tq_cache, sequence: tq_sequence, stream: *mut c_void) -> tq_status;
        /// A new sequence with the same tokens: pages are shared and copied when one side writes into a shared page; exact copies of
        /// window and sinks are duplicated on stream. CAPACITY as tq\_sequence\_create. Fork after a step's appends: layers into which a plan in force
        /// has not been appended yet refuse it afterwards (INVALID\_STATE), as the fork would miss their new tokens.
        pub fn tq_sequence_fork(cache: *mut tq_cache, source: tq_sequence, stream: *mut c_void, sequence: *mut tq_sequence) -> tq_status;
        /// Shortens to length tokens, 0 \<= length \<= current: afterwards it is as if the later tokens had never been appended, the exact window
        /// included as long as the length stays within rollback\_tokens of the longest it has had (deeper is allowed; the window then holds only the exact
        /// copies still there). Whole pages are given back and scrubbed; what lies behind the new end in the last page is overwritten by the next append.
        pub fn tq_sequence_truncate(cache: *mut tq_cache, sequence: tq_sequence, length: i64, stream: *mut c_void) -> tq_status;
        /// Tokens, planned ones included.
        pub fn tq_sequence_length(cache: *const tq_cache, sequence: tq_sequence, length: *mut i64) -> tq_status;
        /// TQ\_NOTICED\_\* of this sequence since it was created (a fork inherits them); no synchronisation, so on a CUDA cache it may be early.
        pub fn tq_sequence_flags(cache: *const tq_cache, sequence: tq_sequence, flags: *mut u64) -> tq_status;
        /// Room for one plan of up to max\_batch\_sequences sequences. Several batches of one cache may exist; each has its own plan.
        pub fn tq_batch_create(cache: *mut tq_cache, batch: *mut *mut tq_batch) -> tq_status;
        /// NULL is accepted.
        pub fn tq_batch_destroy(batch: *mut tq_batch) -> tq_status;
        /// Plans one step: sequence i gets new\_tokens\[i\] \>= 0 more tokens (room is reserved in all layers, its length grows at once) and asks
        /// query\_tokens\[i\] \>= 0 queries, which are its last tokens (query\_tokens NULL = new\_tokens; query\_tokens\[i\] \<= its new length).
        /// num\_sequences  0 .. max\_batch\_sequences; sequences\[\] distinct and alive
        /// Rows of k, v are the new tokens of all sequences one after the other, rows of q, out, lse the query tokens likewise.
        /// The plan stays in force until the next plan, truncate or free of one of its sequences; append and attend of every layer follow it.
        /// A sequence planned anew in a second batch puts the first plan out of force as well.
        /// CAPACITY: pool, max\_sequence\_tokens or batch limits exceeded; nothing changed, the text has the numbers. Not inside a graph (CAPTURE).
        pub fn tq_batch_plan(batch: *mut tq_batch, num_sequences: i32, sequences: *const tq_sequence, new_tokens: *const i64, query_tokens: *const i64, stream: *mut c_void) -> tq_status;
        /// Encodes the new tokens of the batch into one layer.
        /// k  \[new tokens\]\[num\_kv\_heads\]\[head\_dim\] io\_dtype, v likewise with value\_dim; may be NULL only if the plan has no new tokens
        /// Each layer of a plan is appended once; a repeated append writes the same bytes again. INVALID\_STATE without a plan in force.
        pub fn tq_cache_append(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, k: *const c_void, v: *const c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status;
        /// out = softmax(q . K^T \* softmax\_scale) . V for the query tokens of the batch; query j of a sequence sees the tokens up to its own position.
        /// q    \[query tokens\]\[num\_q\_heads\]\[head\_dim\] io\_dtype; query head h reads kv head h / (num\_q\_heads / num\_kv\_heads)
        /// out  \[query tokens\]\[num\_q\_heads\]\[value\_dim\] out\_dtype
        /// lse  \[query tokens\]\[num\_q\_heads\] float32, natural log of the softmax's sum, sink logit included; NULL = not wanted
        /// params NULL = defaults
        /// workspace  NULL = the cache's own, else tq\_attend\_workspace\_bytes of the cache's device memory, 256-byte aligned
        /// A query that sees no token: out exactly 0, lse -inf (with a sink logit: that logit). The result is finite for finite q, the same
        /// bits for any batch, num\_splits, thread count or page placement, and independent of what unwritten memory holds.
        /// CUDA: 256 or more queries of a sequence, counted over the query heads of a kv head, go to a kernel of their own. A graph has that kernel
        /// if its plan had such a sequence at capture; otherwise a later plan's are computed as short ones are: as exact, slower, not the same bits.
        pub fn tq_cache_attend(cache: *mut tq_cache, layer: i32, batch: *const tq_batch, q: *const c_void, out: *mut c_void, lse: *mut f32, params: *const tq_attend_params, workspace: *mut c_void, workspace_bytes: usize, stream: *mut c_void) -> tq_status;
        /// Workspace that tq\_cache\_attend needs for this batch's plan, and for every smaller one.
        pub fn tq_attend_workspace_bytes(cache: *const tq_cache, batch: *const tq_batch, bytes: *mut usize) -> tq_status;
        /// Merges num\_states partial results of the same rows: context-parallel ranks, chunked prefill, history\_only.
        /// outs\[s\]  \[rows\]\[dim\] dtype, lses\[s\] \[rows\] float32, both on device\_type / device\_id; an empty part has lse -inf (its out is not read)
        /// out      \[rows\]\[dim\] dtype; lse \[rows\] or NULL
        /// Merged in index order, in float32. num\_states 1 .. 1024. Host arrays of pointers. out may be one of outs.
        pub fn tq_merge_states(num_states: i32, outs: *const *const c_void, lses: *const *const f32, rows: i64, dim: i32, dtype: tq_dtype, out: *mut c_void, lse: *mut f32, device_type: tq_device_type, device_id: i32, stream: *mut c_void) -> tq_status;
        /// Decoded keys and values of tokens first .. first + count - 1 of a sequence, exact where exact copies are kept.
        /// k \[count\]\[num\_kv\_heads\]\[head\_dim\] io\_dtype, v likewise; either may be NULL
        /// INVALID\_ARGUMENT if the range does not lie inside the sequence.
        pub fn tq_cache_read(cache: *mut tq_cache, layer: i32, sequence: tq_sequence, first: i64, count: i64, k: *mut c_void, v: *mut c_void, layout: *const tq_tensor_layout, stream: *mut c_void) -> tq_status;
    }
}
