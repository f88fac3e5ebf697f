// SPDX-License-Identifier: Apache-2.0
//! What prompts of the model's own kind say of its keys and values: centres, key bands and bits for each
//! layer, and matrices for keys (section 11 of the header).

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::layer::LayerConfig;
use crate::library::Library;
use crate::state::Mac;
use crate::state_file::replace_file;
use crate::tensor::{self, Shape};
use crate::types::{CodeFamily, DeviceType, Dtype, Element, Stream};
use crate::{state_io, sys};
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// The shape of what is calibrated. Zero means the default; `num_layers` to `head_dim` are required.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CalibrationConfig {
    /// Layers.
    pub num_layers: i32,
    /// Query heads of a layer, a multiple of its kv heads.
    pub num_q_heads: i32,
    /// kv heads.
    pub num_kv_heads: i32,
    /// A multiple of 4 from 8 to 256.
    pub head_dim: i32,
    /// 0 = `head_dim`.
    pub value_dim: i32,
    /// Type of queries, keys and values; 0 = `f32`.
    pub io_dtype: Dtype,
    /// Of what is compared: scalar (0 too) or trellis codes.
    pub key_family: CodeFamily,
    /// Likewise of values.
    pub value_family: CodeFamily,
    /// Tokens kept of each layer, 32 to 4096; 0 = 128.
    pub held_out_tokens: i32,
    /// Layers also get key matrices of the calibration's own where these make the error of held-out logits
    /// smaller by 2 %: for caches on the CPU.
    pub turn_keys: bool,
}

/// What is wanted of [`Calibration::choose`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CalibrationGoal {
    /// Bits of a key's coordinate, on average: 2, 2.5, 3, 3.5 or 4. Ignored with `max_error`.
    pub key_bits: f32,
    /// 2, 3 or 4; likewise.
    pub value_bits: i32,
    /// 0, or the error, on average over layers, to be reached with the fewest bytes.
    pub max_error: f32,
    /// Layers whose median key is longer than this many times that of the median layer keep 16 bits; 0 = 4.
    pub outlier: f32,
}

/// What [`Calibration::choose`] found.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// For [`crate::CacheConfig::with_layers`].
    pub layers: Vec<LayerConfig>,
    /// Layers whose keys are in bands.
    pub banded_layers: i32,
    /// Layers that keep 16 bits.
    pub raw_layers: i32,
    /// Of held-out logits (variance) and values (relative), on average over layers.
    pub error: f32,
    /// Likewise without bands; 0 with `max_error`.
    pub uniform_error: f32,
    /// Bytes of a token over all layers and heads.
    pub token_bytes: i64,
}

/// Measures tokens of some prompts, and chooses by them. Freed when dropped.
///
/// Every fourth run of 32 tokens of a layer is held out and decides whether the layer gets bands; tokens are
/// not kept, but for `held_out_tokens` of each layer. Each layer needs 256 tokens or more.
///
/// ```no_run
/// # fn main() -> tqkv::Result<()> {
/// # let (library, q, k, v) = (tqkv::Library::open()?, [0f32], [0f32], [0f32]);
/// use tqkv::{Cache, CacheConfig, Calibration, CalibrationConfig, CalibrationGoal, Dtype};
/// let shape = CalibrationConfig {
///     num_layers: 32, num_q_heads: 32, num_kv_heads: 8, head_dim: 128, ..Default::default()
/// };
/// let calibration = Calibration::new(&library, &shape)?;
/// for layer in 0..32 {
///     calibration.feed(layer, 512, &q, &k, &v)?; // of this layer, as often as there is more
/// }
/// let goal = CalibrationGoal { key_bits: 3.0, value_bits: 3, ..Default::default() };
/// let mut config = CacheConfig::default().with_layers(calibration.choose(&goal)?.layers);
/// (config.num_q_heads, config.num_kv_heads, config.head_dim) = (32, 8, 128);
/// (config.io_dtype, config.max_tokens) = (Dtype::F32, 4096);
/// let cache = Cache::new(&library, &config)?;
/// calibration.set_centres(&cache)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Calibration {
    library: Library,
    raw: NonNull<sys::tq_calibration>,
    config: CalibrationConfig,
}

// SAFETY: the library ties nothing to a thread, and one thread at a time uses it, as it is not Sync.
unsafe impl Send for Calibration {}

impl Calibration {
    /// Begins one. The text of a refusal has every reason.
    pub fn new(library: &Library, config: &CalibrationConfig) -> Result<Calibration> {
        let raw_config = sys::tq_calibration_config {
            num_layers: config.num_layers,
            num_q_heads: config.num_q_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            value_dim: config.value_dim,
            io_dtype: if config.io_dtype == Dtype::DEFAULT { Dtype::F32.0 } else { config.io_dtype.0 },
            key_family: config.key_family.0,
            value_family: config.value_family.0,
            held_out_tokens: config.held_out_tokens,
            turn_keys: config.turn_keys.into(),
            ..Default::default()
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the struct carries its size; the pointer outlives the call.
        library.status(unsafe { (library.api().tq_calibration_create)(&raw_config, &mut raw) })?;
        Calibration::of(library, raw)
    }

    /// What [`Calibration::save`] wrote; it takes no more tokens.
    pub fn load(library: &Library, reader: &mut dyn Read) -> Result<Calibration> {
        Calibration::load_with(library, reader, None)
    }

    /// [`Calibration::load`] of what was saved with this MAC alone.
    pub fn load_with(
        library: &Library,
        reader: &mut dyn Read,
        mac: Option<&mut dyn Mac>,
    ) -> Result<Calibration> {
        let mut raw = ptr::null_mut();
        state_io::read_through(reader, mac, |io| {
            // SAFETY: the callbacks of io know what it points to; the pointer outlives the call.
            library.status(unsafe { (library.api().tq_calibration_load)(io, &mut raw) })
        })?;
        Calibration::of(library, raw)
    }

    /// [`Calibration::load`] from a file.
    pub fn load_file(library: &Library, path: impl AsRef<Path>) -> Result<Calibration> {
        let file = File::open(path.as_ref()).map_err(|error| Error::file(path.as_ref(), &error))?;
        Calibration::load(library, &mut BufReader::new(file))
    }

    fn of(library: &Library, raw: *mut sys::tq_calibration) -> Result<Calibration> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::argument("calibration: the library made none"))?;
        let mut made = Calibration { library: library.clone(), raw, config: Default::default() };
        let mut c = sys::tq_calibration_config::default();
        // SAFETY: the calibration lives; the struct carries its size.
        library.status(unsafe { (library.api().tq_calibration_get_config)(raw.as_ptr(), &mut c) })?;
        made.config = CalibrationConfig {
            num_layers: c.num_layers,
            num_q_heads: c.num_q_heads,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            value_dim: c.value_dim,
            io_dtype: Dtype(c.io_dtype),
            key_family: CodeFamily(c.key_family),
            value_family: CodeFamily(c.value_family),
            held_out_tokens: c.held_out_tokens,
            turn_keys: c.turn_keys != 0,
        };
        Ok(made)
    }

    /// The configuration with defaults resolved.
    pub fn config(&self) -> &CalibrationConfig {
        &self.config
    }

    /// Tokens of a layer, after RoPE: `q [count][num_q_heads][head_dim]`, `k [count][num_kv_heads][head_dim]`
    /// and `v [count][num_kv_heads][value_dim]` of `io_dtype`. A number that is not finite is refused, and
    /// then nothing of the call counts.
    pub fn feed<T: Element>(&self, layer: i32, count: i64, q: &[T], k: &[T], v: &[T]) -> Result<()> {
        let c = &self.config;
        if T::DTYPE != c.io_dtype {
            return Err(Error::argument(format!(
                "q, k, v: of type {}, but the calibration has io_dtype = {}",
                T::DTYPE.0,
                c.io_dtype.0
            )));
        }
        for (name, side, heads, dim) in [
            ("q", q, c.num_q_heads, c.head_dim),
            ("k", k, c.num_kv_heads, c.head_dim),
            ("v", v, c.num_kv_heads, c.value_dim),
        ] {
            tensor::check(name, side.len(), Shape { tokens: count, heads, dim }, (0, 0))?;
        }
        let (q, k, v) = (q.as_ptr().cast(), k.as_ptr().cast(), v.as_ptr().cast());
        // SAFETY: host memory as long as the counts say, read before the call returns.
        unsafe { self.feed_raw(layer, count, q, k, v, (DeviceType::CPU, 0), Stream::NONE) }
    }

    /// [`Calibration::feed`] of memory that a device reaches, behind what `stream` holds; waits for it.
    ///
    /// # Safety
    /// The arrays must have `count` tokens of `io_dtype`, dense, which nobody writes to until the call
    /// returns. The stream's CUDA context must be usable from this thread.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn feed_raw(
        &self,
        layer: i32,
        count: i64,
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        device: (DeviceType, i32),
        stream: Stream,
    ) -> Result<()> {
        let feed = self.library.api().tq_calibration_feed_from;
        let (raw, stream) = (self.raw.as_ptr(), stream.as_raw());
        // SAFETY: the caller's promise.
        self.library.status(unsafe { feed(raw, layer, count, q, k, v, device.0 .0, device.1, stream) })
    }

    /// As [`Cache::set_key_matrix`], in front of the layer's first tokens: they and their queries are
    /// measured as the matrices turn them. Kept in the file, and set with the centres.
    pub fn set_key_matrix(&self, layer: i32, matrix: &[f32]) -> Result<()> {
        let c = &self.config;
        let shape = Shape { tokens: i64::from(c.num_kv_heads), heads: c.head_dim, dim: c.head_dim };
        tensor::check("matrix", matrix.len(), shape, (0, 0))?;
        let set = self.library.api().tq_calibration_set_key_matrix;
        // SAFETY: long enough, and copied before the call returns.
        self.library.status(unsafe { set(self.raw.as_ptr(), layer, matrix.as_ptr()) })
    }

    /// Bits, families and bands of all layers.
    pub fn choose(&self, goal: &CalibrationGoal) -> Result<Choice> {
        let c = &self.config;
        let goal = sys::tq_calibration_goal {
            key_bits: goal.key_bits,
            value_bits: goal.value_bits,
            max_error: goal.max_error,
            outlier: goal.outlier,
            ..Default::default()
        };
        let mut layers = vec![sys::tq_layer_config::default(); c.num_layers as usize];
        let mut found = sys::tq_calibration_result::default();
        let choose = self.library.api().tq_calibration_choose;
        // SAFETY: so many layers; the structs carry their size.
        self.library.status(unsafe {
            choose(self.raw.as_ptr(), &goal, layers.as_mut_ptr(), c.num_layers, &mut found)
        })?;
        let own = |raw: &mut sys::tq_layer_config| {
            // What orders are read by.
            (raw.num_kv_heads, raw.head_dim) = (c.num_kv_heads, c.head_dim);
            // SAFETY: the bands are the calibration's until its next call.
            unsafe { LayerConfig::from_raw(raw) }
        };
        Ok(Choice {
            layers: layers.iter_mut().map(own).collect(),
            banded_layers: found.banded_layers,
            raw_layers: found.raw_layers,
            error: found.error,
            uniform_error: found.uniform_error,
            token_bytes: found.token_bytes,
        })
    }

    /// [`Cache::set_centres`] of all layers of a cache of the same shape, and [`Cache::set_key_matrix`] of
    /// those that have one.
    pub fn set_centres(&self, cache: &Cache) -> Result<()> {
        let set = self.library.api().tq_calibration_set_centres;
        // SAFETY: both live, and this thread alone uses them.
        self.library.status(unsafe { set(self.raw.as_ptr(), cache.raw) })
    }

    /// A layer's centres of keys `[num_kv_heads][head_dim]` and of values `[num_kv_heads][value_dim]`.
    pub fn centres(&self, layer: i32) -> Result<(Vec<f32>, Vec<f32>)> {
        let c = &self.config;
        let room = |dim: i32| vec![0f32; c.num_kv_heads as usize * dim as usize];
        let (mut key, mut value) = (room(c.head_dim), room(c.value_dim));
        let centres = self.library.api().tq_calibration_centres;
        let (k, v) = (key.as_mut_ptr(), value.as_mut_ptr());
        // SAFETY: the vectors have the lengths that the call writes.
        self.library.status(unsafe { centres(self.raw.as_ptr(), layer, k, v) })?;
        Ok((key, value))
    }

    /// A layer's matrices of keys, given or found, `[num_kv_heads][head_dim][head_dim]`; with `turn_keys` as
    /// [`Calibration::choose`].
    pub fn key_matrix(&self, layer: i32) -> Result<Option<Vec<f32>>> {
        let (c, mut has) = (&self.config, 0);
        let get = self.library.api().tq_calibration_key_matrix;
        // SAFETY: null asks for the number alone.
        self.library.status(unsafe { get(self.raw.as_ptr(), layer, ptr::null_mut(), &mut has) })?;
        if has == 0 {
            return Ok(None);
        }
        let mut matrix = vec![0f32; c.num_kv_heads as usize * c.head_dim as usize * c.head_dim as usize];
        // SAFETY: the vector has the length that the call writes.
        self.library.status(unsafe { get(self.raw.as_ptr(), layer, matrix.as_mut_ptr(), &mut has) })?;
        Ok(Some(matrix))
    }

    /// Writes what was measured, with checksums. A failure of `writer` is the error's text.
    pub fn save(&self, writer: &mut dyn Write) -> Result<()> {
        self.save_with(writer, None)
    }

    /// [`Calibration::save`] with a MAC at the end.
    pub fn save_with(&self, writer: &mut dyn Write, mac: Option<&mut dyn Mac>) -> Result<()> {
        let save = self.library.api().tq_calibration_save;
        state_io::write_through(writer, mac, |io| {
            // SAFETY: the callbacks of io know what it points to.
            self.library.status(unsafe { save(self.raw.as_ptr(), io) })
        })
    }

    /// [`Calibration::save`] to a file, which is replaced as a whole.
    pub fn save_file(&self, path: impl AsRef<Path>) -> Result<()> {
        replace_file(path.as_ref(), |file| self.save(file))
    }
}

impl Drop for Calibration {
    fn drop(&mut self) {
        // SAFETY: no call runs, `self` is the last owner. Nothing can be done about a failure here.
        unsafe { (self.library.api().tq_calibration_destroy)(self.raw.as_ptr()) };
    }
}
