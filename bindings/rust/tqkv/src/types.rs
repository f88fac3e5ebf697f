// SPDX-License-Identifier: Apache-2.0
//! Small types of the interface. The enumerations of `tqkv.h` are open (a newer library may know more), hence
//! numbers with named constants.

use crate::sys;
use core::ffi::c_void;

macro_rules! open_enum {
    ($(#[$about:meta])* $name:ident { $($(#[$value_about:meta])* $value:ident = $raw:path,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub i32);
        impl $name {
            /// The library's default.
            pub const DEFAULT: $name = $name(0);
            $($(#[$value_about])* pub const $value: $name = $name($raw);)*
        }
    };
}

open_enum! {
    /// Where a cache lives.
    DeviceType {
        /// The processor.
        CPU = sys::TQ_DEVICE_CPU,
        /// An NVIDIA GPU.
        CUDA = sys::TQ_DEVICE_CUDA,
    }
}

open_enum! {
    /// Type of the numbers that go in and come out.
    Dtype {
        /// `f32`
        F32 = sys::TQ_F32,
        /// [`half::f16`]
        F16 = sys::TQ_F16,
        /// [`half::bf16`]
        BF16 = sys::TQ_BF16,
    }
}

open_enum! {
    /// The random rotation before coding.
    Rotation {
        /// Random signs and a Hadamard transform; the default.
        HADAMARD = sys::TQ_ROTATION_HADAMARD,
        /// QR of a seeded Gaussian matrix, as in the paper; CPU only.
        DENSE = sys::TQ_ROTATION_DENSE,
    }
}

open_enum! {
    /// How the scale of a coded vector is chosen.
    ScaleRule {
        /// Least squares: smallest error of a vector, shorter than it.
        LS = sys::TQ_SCALE_LS,
        /// No shrinkage: inner products and averages over tokens stay right; the default.
        UNBIASED = sys::TQ_SCALE_UNBIASED,
        /// The vector keeps its length.
        NORM = sys::TQ_SCALE_NORM,
        /// Length times the published codebook.
        PAPER = sys::TQ_SCALE_PAPER,
    }
}

open_enum! {
    /// The family of codes.
    CodeFamily {
        /// Lloyd-Max levels for each coordinate; the default.
        SCALAR = sys::TQ_CODE_SCALAR,
        /// These at one bit less, and signs of a sketch of the residual.
        PROD = sys::TQ_CODE_PROD,
        /// Min/max of groups of neighbours, without a rotation.
        GROUPED = sys::TQ_CODE_GROUPED,
        /// Levels and boundaries of the caller's.
        LEVELS = sys::TQ_CODE_LEVELS,
        /// Twice the levels, told apart by neighbours in a chain.
        TRELLIS = sys::TQ_CODE_TRELLIS,
    }
}

open_enum! {
    /// What a layer's tokens are.
    LayerKind {
        /// Keys and values; the default.
        KEYS_VALUES = sys::TQ_KEYS_VALUES,
        /// Keys whose first `value_dim` coordinates are the values too, stored once.
        LATENT = sys::TQ_LATENT,
    }
}

open_enum! {
    /// How a residual is sketched ([`CodeFamily::PROD`]).
    Sketch {
        /// More rotations: a third of the variance; the default.
        ORTHOGONAL = sys::TQ_SKETCH_ORTHOGONAL,
        /// A Gaussian matrix, as published.
        GAUSSIAN = sys::TQ_SKETCH_GAUSSIAN,
    }
}

open_enum! {
    /// What a sketch's estimate of the residual is multiplied by.
    SketchRule {
        /// Inner products are right on average; the default.
        UNBIASED = sys::TQ_SKETCH_UNBIASED,
        /// Least mean squared error of the decoded vector.
        LEAST_ERROR = sys::TQ_SKETCH_LEAST_ERROR,
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A number type that caches take and give: `f32`, [`half::f16`], [`half::bf16`]. Sealed.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type's name in the library.
    const DTYPE: Dtype;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Element for half::f16 {
    const DTYPE: Dtype = Dtype::F16;
}

impl Element for half::bf16 {
    const DTYPE: Dtype = Dtype::BF16;
}

/// A CUDA stream, or none. CPU caches take only [`Stream::NONE`]; for CUDA caches that is the legacy default
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(*mut c_void);

impl Stream {
    /// No stream: what CPU caches want, and CUDA's legacy default stream.
    pub const NONE: Stream = Stream(core::ptr::null_mut());

    /// A `cudaStream_t` or `CUstream`.
    ///
    /// # Safety
    /// It must be a stream of the device of every cache it is used with, and live as long as this value or a
    /// copy of it is used.
    pub const unsafe fn from_raw(stream: *mut c_void) -> Stream {
        Stream(stream)
    }

    /// The handle.
    pub const fn as_raw(self) -> *mut c_void {
        self.0
    }
}

impl Default for Stream {
    fn default() -> Self {
        Stream::NONE
    }
}

// SAFETY: a CUDA stream may be used from any thread; who makes a Stream answers for its life.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A sequence of a cache: a slot and a generation, so that the id of a freed sequence stays invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequence(pub(crate) sys::tq_sequence);

impl Sequence {
    /// The number in the C interface.
    pub fn id(self) -> i64 {
        self.0
    }

    /// A sequence by its number in the C interface. A number that is none gives errors, nothing worse.
    pub fn from_id(id: i64) -> Sequence {
        Sequence(id)
    }
}

/// What the library noticed: see [`crate::Cache::check`] and [`crate::Cache::sequence_flags`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Noticed(pub u64);

impl Noticed {
    /// An appended vector held NaN, an infinity or a magnitude above 2^64; it was replaced.
    pub fn nonfinite(self) -> bool {
        self.0 & sys::TQ_NOTICED_NONFINITE != 0
    }

    /// A finite number beyond +-65504 went into a raw side of a float32 cache and was stored as +-65504.
    pub fn saturated(self) -> bool {
        self.0 & sys::TQ_NOTICED_SATURATED != 0
    }

    /// Of a sequence, as long as it is so: a truncate went back further than `rollback_tokens`, and fewer
    /// than `window_tokens` are exact.
    pub fn short_window(self) -> bool {
        self.0 & sys::TQ_NOTICED_SHORT_WINDOW != 0
    }

    /// Whether nothing was.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Where element (token, head, dim) of `k` and `v` lies: `token * token_stride + head * head_stride + dim`.
/// Strides in elements; 0 = dense `[token][head][dim]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Elements from one token's keys to the next's.
    pub key_token_stride: i64,
    /// Elements from one head's keys to the next's.
    pub key_head_stride: i64,
    /// Elements from one token's values to the next's.
    pub value_token_stride: i64,
    /// Elements from one head's values to the next's.
    pub value_head_stride: i64,
}

impl Layout {
    /// `[token][head][dim]` without gaps.
    pub const DENSE: Layout =
        Layout { key_token_stride: 0, key_head_stride: 0, value_token_stride: 0, value_head_stride: 0 };

    pub(crate) fn to_raw(self) -> sys::tq_tensor_layout {
        sys::tq_tensor_layout {
            key_token_stride: self.key_token_stride,
            key_head_stride: self.key_head_stride,
            value_token_stride: self.value_token_stride,
            value_head_stride: self.value_head_stride,
            ..Default::default()
        }
    }
}
