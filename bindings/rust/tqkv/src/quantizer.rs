// SPDX-License-Identifier: Apache-2.0
//! Vectors on their own: records of 1-8 bits a coordinate, inner products with them, search (section 10 of
//! the header). Slices are for CPU quantizers; calls on pointers (`*_raw`), for any device, stand in
//! quantizer_raw.rs.

use crate::error::{Error, Result};
use crate::library::Library;
use crate::tensor;
use crate::types::{
    CodeFamily, DeviceType, Dtype, Element, Noticed, Rotation, ScaleRule, Sketch, SketchRule,
};
use crate::{sys, Codebook};
use core::ptr::{self, NonNull};
use core::slice;

/// Levels of the caller's own: a coordinate of the rotated vector, divided by `unit * |x|`, gets as code the
/// number of boundaries that it reaches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Levels {
    /// `2^bits` levels.
    pub levels: Vec<f32>,
    /// `2^bits - 1` boundaries, not falling.
    pub boundaries: Vec<f32>,
    /// 0 = 1: levels for vectors of length 1.
    pub unit: f32,
}

/// What a quantizer is to be. Zero means the default throughout; `dim` and `bits` are required.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizerConfig {
    /// 0 = CPU.
    pub device_type: DeviceType,
    /// Of CUDA: which; 0 on the CPU.
    pub device_id: i32,
    /// Coordinates of a vector: 1 to 8192.
    pub dim: i32,
    /// Type of vectors and queries; 0 = `f32`.
    pub io_dtype: Dtype,
    /// 0 = scalar.
    pub family: CodeFamily,
    /// Bits of a coordinate: scalar and levels 1 to 8, prod 2 to 4, grouped 2, 3, 4 or 8.
    pub bits: i32,
    /// 0 = Hadamard; dense: `dim` up to 1536.
    pub rotation: Rotation,
    /// 0 = least squares; with levels that of the paper.
    pub scale_rule: ScaleRule,
    /// Grouped: 16, 32 or 64.
    pub group_size: i32,
    /// Prod.
    pub sketch: Sketch,
    /// Prod.
    pub sketch_rule: SketchRule,
    /// Prod: 0 = by `sketch_rule`.
    pub sketch_factor: f32,
    /// Scalar: channels, rising, that get a bit more.
    pub outlier_channels: Vec<i32>,
    /// 0 = all that the process may use.
    pub num_threads: i32,
    /// Any value.
    pub seed: u64,
    /// Scalar: `None` = built in.
    pub codebook: Option<Codebook>,
    /// Of the levels family, or of prod's codes.
    pub levels: Option<Levels>,
    /// [`crate::FLAG_NO_SCALE_SEARCH`].
    pub flags: u64,
}

impl QuantizerConfig {
    /// Calls `f` with the C struct. What it points to lives until `f` returns.
    fn with_raw<R>(&self, f: impl FnOnce(&sys::tq_quantizer_config) -> R) -> Result<R> {
        let codebook = self.codebook.as_ref().map(|book| book.to_raw("codebook")).transpose()?;
        let levels = self.levels.as_ref().map(Levels::to_raw).transpose()?;
        let outliers = &self.outlier_channels;
        Ok(f(&sys::tq_quantizer_config {
            device_type: self.device_type.0,
            device_id: self.device_id,
            dim: self.dim,
            io_dtype: self.io_dtype.0,
            family: self.family.0,
            bits: self.bits,
            rotation: self.rotation.0,
            scale_rule: self.scale_rule.0,
            group_size: self.group_size,
            sketch: self.sketch.0,
            sketch_rule: self.sketch_rule.0,
            sketch_factor: self.sketch_factor,
            num_outliers: tensor::count("outlier_channels", outliers.len())?,
            num_threads: self.num_threads,
            outlier_channels: if outliers.is_empty() { ptr::null() } else { outliers.as_ptr() },
            seed: self.seed,
            codebook: codebook.as_ref().map_or(ptr::null(), |book| book),
            levels: levels.as_ref().map_or(ptr::null(), |levels| levels),
            flags: self.flags,
            ..Default::default()
        }))
    }
}

impl Levels {
    /// SAFETY: `raw`'s arrays hold 2^bits levels and one boundary less.
    pub(crate) unsafe fn from_raw(raw: &sys::tq_levels) -> Levels {
        let count = 1usize << raw.bits.clamp(0, 8);
        // SAFETY: the caller's promise.
        let (levels, boundaries) = unsafe {
            (slice::from_raw_parts(raw.levels, count), slice::from_raw_parts(raw.boundaries, count - 1))
        };
        Levels { levels: levels.to_vec(), boundaries: boundaries.to_vec(), unit: raw.unit }
    }

    pub(crate) fn to_raw(&self) -> Result<sys::tq_levels> {
        let bits = self.levels.len().checked_ilog2().unwrap_or(0);
        if self.levels.len() != 1 << bits || self.boundaries.len() + 1 != self.levels.len() {
            return Err(Error::argument(format!(
                "levels: {} levels and {} boundaries; there must be 2^bits and one less",
                self.levels.len(),
                self.boundaries.len()
            )));
        }
        Ok(sys::tq_levels {
            bits: bits as i32,
            unit: self.unit,
            levels: self.levels.as_ptr(),
            boundaries: self.boundaries.as_ptr(),
            ..Default::default()
        })
    }
}

/// Turns vectors into records, and back. Freed when dropped.
///
/// Slices may be longer than needed. Records are dense, [`Quantizer::code_bytes`] each.
#[derive(Debug)]
pub struct Quantizer {
    library: Library,
    raw: NonNull<sys::tq_quantizer>,
    info: sys::tq_quantizer_info,
    dim: i32,
    io_dtype: Dtype,
    on_cpu: bool,
}

// SAFETY: the library's calls on a quantizer may run at once in any threads; destroying one takes `self`.
unsafe impl Send for Quantizer {}
// SAFETY: as above.
unsafe impl Sync for Quantizer {}

impl Quantizer {
    /// Makes a quantizer. The text of a refusal has every reason, one a line.
    pub fn new(library: &Library, config: &QuantizerConfig) -> Result<Quantizer> {
        let (api, mut raw) = (library.api(), ptr::null_mut());
        // SAFETY: the raw configuration borrows from `config`, which outlives the call.
        library.status(config.with_raw(|c| unsafe { (api.tq_quantizer_create)(c, &mut raw) })?)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::argument("quantizer: the library made none"))?;
        let io_dtype = if config.io_dtype == Dtype::default() { Dtype::F32 } else { config.io_dtype };
        let mut made = Quantizer {
            library: library.clone(),
            raw,
            info: Default::default(),
            dim: config.dim,
            io_dtype,
            on_cpu: config.device_type != DeviceType::CUDA,
        };
        // SAFETY: the quantizer lives; the struct carries its size.
        library.status(unsafe { (api.tq_quantizer_get_info)(made.raw.as_ptr(), &mut made.info) })?;
        Ok(made)
    }

    /// Coordinates of a vector.
    pub fn dim(&self) -> i32 {
        self.dim
    }

    /// Coordinates of a rotated vector: `dim` and its padding.
    pub fn rotated_dim(&self) -> i32 {
        self.info.rotated_dim
    }

    /// Bytes of a record, scales included.
    pub fn code_bytes(&self) -> i64 {
        self.info.code_bytes
    }

    /// Equal: records mean the same.
    pub fn fingerprint(&self) -> u64 {
        self.info.fingerprint
    }

    /// The sketch factor in use; 0 without a sketch.
    pub fn sketch_factor(&self) -> f32 {
        self.info.sketch_factor
    }

    /// `x [count][dim]` -> `codes [count][code_bytes]`. Returns what was noticed in `x`.
    pub fn encode<T: Element>(&self, x: &[T], count: i64, codes: &mut [u8]) -> Result<Noticed> {
        self.check_vectors("x", x, count)?;
        self.check_codes(codes.len(), count)?;
        let (call, mut noticed) = (self.library.api().tq_quantizer_encode, 0);
        // SAFETY: vectors and records are as long as the counts say.
        self.library.status(unsafe {
            call(
                self.raw.as_ptr(),
                x.as_ptr().cast(),
                count,
                codes.as_mut_ptr().cast(),
                &mut noticed,
                ptr::null_mut(),
            )
        })?;
        Ok(Noticed(noticed))
    }

    /// `codes [count][code_bytes]` -> `x [count][dim]`.
    pub fn decode<T: Element>(&self, codes: &[u8], count: i64, x: &mut [T]) -> Result<()> {
        self.check_vectors("x", x, count)?;
        self.check_codes(codes.len(), count)?;
        let call = self.library.api().tq_quantizer_decode;
        // SAFETY: as in encode.
        self.library.status(unsafe {
            call(self.raw.as_ptr(), codes.as_ptr().cast(), count, x.as_mut_ptr().cast(), ptr::null_mut())
        })
    }

    /// `out [num_queries][count]`: products of `queries [num_queries][dim]` with what `codes` decode to.
    pub fn inner_products<T: Element>(
        &self,
        queries: &[T],
        num_queries: i64,
        codes: &[u8],
        count: i64,
        out: &mut [f32],
    ) -> Result<()> {
        self.check_vectors("queries", queries, num_queries)?;
        self.check_codes(codes.len(), count)?;
        check_length("out", out.len(), num_queries, count)?;
        let call = self.library.api().tq_quantizer_inner_products;
        // SAFETY: every slice is as long as the counts say.
        self.library.status(unsafe {
            call(
                self.raw.as_ptr(),
                queries.as_ptr().cast(),
                num_queries,
                codes.as_ptr().cast(),
                count,
                out.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }

    /// The `k` largest inner products of each query, best first: `(scores, ids)`, `[num_queries][k]` each;
    /// places without a record -infinity and -1. `bias [count]` is added to the products.
    pub fn search<T: Element>(
        &self,
        queries: &[T],
        num_queries: i64,
        codes: &[u8],
        count: i64,
        bias: Option<&[f32]>,
        k: usize,
    ) -> Result<(Vec<f32>, Vec<i64>)> {
        self.check_vectors("queries", queries, num_queries)?;
        self.check_codes(codes.len(), count)?;
        if let Some(bias) = bias {
            check_length("bias", bias.len(), count, 1)?;
        }
        let places = usize::try_from(num_queries)
            .ok()
            .and_then(|rows| rows.checked_mul(k))
            .filter(|&places| places <= isize::MAX as usize / 8)
            .ok_or_else(|| Error::argument(format!("num_queries = {num_queries}, k = {k}: too many")))?;
        let (mut scores, mut ids) = (vec![0.0; places], vec![0; places]);
        let call = self.library.api().tq_quantizer_search;
        // SAFETY: every slice is as long as the counts say.
        self.library.status(unsafe {
            call(
                self.raw.as_ptr(),
                queries.as_ptr().cast(),
                num_queries,
                codes.as_ptr().cast(),
                count,
                bias.map_or(ptr::null(), |bias| bias.as_ptr()),
                k as i64,
                scores.as_mut_ptr(),
                ids.as_mut_ptr(),
                ptr::null_mut(),
            )
        })?;
        Ok((scores, ids))
    }

    /// The rotation alone: `x [count][dim]` -> `y [count][rotated_dim]`, of the same lengths.
    pub fn rotate<T: Element>(&self, x: &[T], count: i64, y: &mut [f32]) -> Result<()> {
        self.check_vectors("x", x, count)?;
        check_length("y", y.len(), count, i64::from(self.rotated_dim()))?;
        let call = self.library.api().tq_quantizer_rotate;
        // SAFETY: as in encode.
        self.library.status(unsafe {
            call(self.raw.as_ptr(), x.as_ptr().cast(), count, y.as_mut_ptr(), ptr::null_mut())
        })
    }

    /// The inverse: `y [count][rotated_dim]` -> `x [count][dim]`.
    pub fn unrotate<T: Element>(&self, y: &[f32], count: i64, x: &mut [T]) -> Result<()> {
        self.check_vectors("x", x, count)?;
        check_length("y", y.len(), count, i64::from(self.rotated_dim()))?;
        let call = self.library.api().tq_quantizer_unrotate;
        // SAFETY: as in encode.
        self.library.status(unsafe {
            call(self.raw.as_ptr(), y.as_ptr(), count, x.as_mut_ptr().cast(), ptr::null_mut())
        })
    }

    /// The sketch factor of the least squared error over `x [count][dim]`.
    pub fn calibrate_sketch_factor<T: Element>(&self, x: &[T], count: i64) -> Result<f32> {
        self.check_vectors("x", x, count)?;
        let (call, mut factor) = (self.library.api().tq_calibrate_sketch_factor, 0.0);
        // SAFETY: as in encode.
        self.library.status(unsafe {
            call(self.raw.as_ptr(), x.as_ptr().cast(), count, &mut factor, ptr::null_mut())
        })?;
        Ok(factor)
    }

    /// Lloyd-Max levels of the rotated coordinates of `x [count][dim]`, and the mean squared error of the
    /// rotated vectors relative to `|x|^2`.
    pub fn calibrate_levels<T: Element>(&self, x: &[T], count: i64, bits: i32) -> Result<(Levels, f64)> {
        self.check_vectors("x", x, count)?;
        let room = if (1..=8).contains(&bits) { 1 << bits } else { 256 };
        let (mut levels, mut boundaries, mut error) = (vec![0.0; room], vec![0.0; room], 0.0);
        let call = self.library.api().tq_calibrate_levels;
        // SAFETY: as in encode; there is room for 2^bits levels.
        self.library.status(unsafe {
            call(
                self.raw.as_ptr(),
                x.as_ptr().cast(),
                count,
                bits,
                levels.as_mut_ptr(),
                boundaries.as_mut_ptr(),
                &mut error,
                ptr::null_mut(),
            )
        })?;
        boundaries.pop();
        Ok((Levels { levels, boundaries, unit: 1.0 }, error))
    }

    pub(crate) fn api(&self) -> &sys::Api {
        self.library.api()
    }

    pub(crate) fn raw(&self) -> *const sys::tq_quantizer {
        self.raw.as_ptr()
    }

    pub(crate) fn status(&self, status: sys::tq_status) -> Result<()> {
        self.library.status(status)
    }

    fn check_vectors<T: Element>(&self, name: &str, x: &[T], count: i64) -> Result<()> {
        if !self.on_cpu {
            return Err(Error::argument(format!(
                "{name}: a slice of the host, but the quantizer is on CUDA: use the calls on pointers (_raw)"
            )));
        }
        if T::DTYPE != self.io_dtype {
            return Err(Error::argument(format!(
                "{name}: elements of type {}, but io_dtype = {}",
                T::DTYPE.0,
                self.io_dtype.0
            )));
        }
        check_length(name, x.len(), count, i64::from(self.dim))
    }

    fn check_codes(&self, have: usize, count: i64) -> Result<()> {
        check_length("codes", have, count, self.code_bytes())
    }
}

/// `rows * width` elements, which a count below 0 does not need: the library refuses it.
fn check_length(name: &str, have: usize, rows: i64, width: i64) -> Result<()> {
    if rows <= 0 || have as i128 >= i128::from(rows) * i128::from(width) {
        return Ok(());
    }
    Err(Error::argument(format!("{name}: a slice of {have} elements, but {rows} x {width} are needed")))
}

impl Drop for Quantizer {
    fn drop(&mut self) {
        // SAFETY: no call runs, `self` is the last owner. Nothing can be done about a failure here.
        unsafe { (self.library.api().tq_quantizer_destroy)(self.raw.as_ptr()) };
    }
}
