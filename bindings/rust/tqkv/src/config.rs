// SPDX-License-Identifier: Apache-2.0
//! The configuration of a cache, and the figures that go with it: the structs of `tqkv.h` with owned arrays.

use crate::error::{Error, Result};
use crate::layer::LayerConfig;
use crate::quantizer::Levels;
use crate::sys;
use crate::types::{CodeFamily, DeviceType, Dtype, LayerKind, Rotation, ScaleRule, Sketch, SketchRule};
use core::{ptr, slice};

/// Do not scrub the memory of freed, truncated or destroyed sequences; for [`CacheConfig::flags`].
pub const FLAG_NO_ZERO_ON_FREE: u64 = sys::TQ_FLAG_NO_ZERO_ON_FREE;
/// Encoder: one quantisation step instead of the best of several (up to 20 % more error); for
/// [`CacheConfig::flags`].
pub const FLAG_NO_SCALE_SEARCH: u64 = sys::TQ_FLAG_NO_SCALE_SEARCH;
/// One arithmetic for any number of query rows: chunks of a prompt of any size agree bit for bit.
pub const FLAG_BATCH_INVARIANT: u64 = sys::TQ_FLAG_BATCH_INVARIANT;
/// A token of the exact window gets its codes when it leaves the window, with the same bytes; until then they
/// take no memory. CPU caches.
pub const FLAG_STORE_ONCE: u64 = sys::TQ_FLAG_STORE_ONCE;
/// Attend may take a plan's own tokens as they are: [`crate::AttendPointers::chunk_k`].
pub const FLAG_EXACT_CHUNK: u64 = sys::TQ_FLAG_EXACT_CHUNK;

/// A codebook of the caller's own: `2^(bits - 1)` magnitudes, rising, on the int8 grid; a level is `unit`
/// times the magnitude, for coordinates of unit variance. `bits` up to 3: magnitudes are 1 to 127. From 4: a
/// magnitude m of 0 to 127 stands for m + 1/2.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// 2 to 6.
    pub bits: i32,
    /// Above 0.
    pub unit: f32,
    /// `2^(bits - 1)` of them.
    pub magnitude: Vec<u8>,
}

impl Codebook {
    pub(crate) fn to_raw(&self, name: &str) -> Result<sys::tq_codebook> {
        let mut raw = sys::tq_codebook { bits: self.bits, unit: self.unit, ..Default::default() };
        let levels = if (2..=6).contains(&self.bits) {
            1usize << (self.bits - 1)
        } else {
            self.magnitude.len().min(32)
        };
        if self.magnitude.len() != levels {
            return Err(Error::argument(format!(
                "{name}: {} magnitudes, but {} bits need {levels}",
                self.magnitude.len(),
                self.bits
            )));
        }
        raw.magnitude[..levels].copy_from_slice(&self.magnitude);
        Ok(raw)
    }

    fn from_raw(raw: &sys::tq_codebook) -> Codebook {
        let levels = 1usize << (raw.bits.clamp(1, 6) - 1);
        Codebook { bits: raw.bits, unit: raw.unit, magnitude: raw.magnitude[..levels].to_vec() }
    }
}

/// What a cache is to be. Zero (and `None`, and empty) means the default throughout, so that only the
/// required fields need be set:
///
/// ```
/// let mut config = tqkv::CacheConfig::default();
/// config.num_layers = 32;
/// config.num_q_heads = 32;
/// config.num_kv_heads = 8;
/// config.head_dim = 128;
/// config.io_dtype = tqkv::Dtype::BF16;
/// config.key_bits = 4;
/// config.value_bits = 4;
/// config.max_tokens = 32_768;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Default CPU.
    pub device_type: DeviceType,
    /// CUDA ordinal.
    pub device_id: i32,
    /// Required, at least 1.
    pub num_layers: i32,
    /// A multiple of `num_kv_heads`; required, as the next ones, unless each of `layers` has its own.
    pub num_q_heads: i32,
    /// At least 1.
    pub num_kv_heads: i32,
    /// A multiple of 4 from 8 to 256, 512 or 576.
    pub head_dim: i32,
    /// Default `head_dim`; same list.
    pub value_dim: i32,
    /// Type of k, v, q and out; required.
    pub io_dtype: Dtype,
    /// 1 2 3 4 5 6 8, or 16 = raw; required unless `layer_key_bits` is given.
    pub key_bits: i32,
    /// Likewise for values.
    pub value_bits: i32,
    /// Default scalar.
    pub code_family: CodeFamily,
    /// Bits per layer, overriding `key_bits` where not 0. Empty, or `num_layers` of them.
    pub layer_key_bits: Vec<i32>,
    /// Likewise for values.
    pub layer_value_bits: Vec<i32>,
    /// Default Hadamard.
    pub rotation: Rotation,
    /// Default unbiased.
    pub key_scale_rule: ScaleRule,
    /// Default unbiased.
    pub value_scale_rule: ScaleRule,
    /// Tokens, a multiple of 32, at most 4096; default 64.
    pub page_size: i32,
    /// Any value.
    pub rotation_seed: u64,
    /// Number in the whole model of this cache's layer 0: rotations follow it, so that a rank stores the
    /// bytes that one device stores.
    pub first_layer: i32,
    /// Likewise of kv head 0.
    pub first_kv_head: i32,
    /// Default built in; used by coded layers of exactly its bits.
    pub key_codebook: Option<Codebook>,
    /// Likewise for values.
    pub value_codebook: Option<Codebook>,
    /// Required: tokens that the pool holds over all sequences, whatever their lengths.
    pub max_tokens: i64,
    /// What [`Cache::reserve`](crate::Cache::reserve) may raise it to; default `max_tokens`: no growth.
    pub max_reserve_tokens: i64,
    /// Longest sequence; default `max_reserve_tokens`.
    pub max_sequence_tokens: i64,
    /// Default 1.
    pub max_sequences: i32,
    /// Sequences in one plan; default `max_sequences`.
    pub max_batch_sequences: i32,
    /// New tokens, and query tokens, in one plan, each; default `max_tokens`.
    pub max_batch_tokens: i64,
    /// Exact copies that there is room for, over all sequences; default see tqkv.h.
    pub max_raw_tokens: i64,
    /// Last tokens of a sequence that are read exactly, from raw copies beside the codes; default none.
    pub window_tokens: i32,
    /// First tokens likewise.
    pub sink_tokens: i32,
    /// Raw copies kept behind the window, so that truncating by up to this many keeps the window whole.
    pub rollback_tokens: i32,
    /// CPU: default all that the process may use; 1 = the caller's thread only.
    pub num_threads: i32,
    /// `FLAG_*`.
    pub flags: u64,
    /// Layers that differ. Empty (all alike), or `num_layers` of them.
    pub layers: Vec<LayerConfig>,
    /// Of keys; default `code_family`.
    pub key_family: CodeFamily,
    /// Of values; default `code_family`.
    pub value_family: CodeFamily,
    /// Of [`CodeFamily::GROUPED`]: 16, 32 or 64 neighbours that share scale and zero; default 32.
    pub group_size: i32,
    /// Of [`CodeFamily::PROD`] keys; default orthogonal.
    pub sketch: Sketch,
    /// Of [`CodeFamily::PROD`] keys; default unbiased.
    pub sketch_rule: SketchRule,
    /// What the estimate of the residual is multiplied by; 0 = by `sketch_rule`.
    pub sketch_factor: f32,
    /// Of keys of [`CodeFamily::LEVELS`].
    pub key_levels: Option<Levels>,
    /// Of values likewise.
    pub value_levels: Option<Levels>,
    /// What the layers' tokens are; default keys and values. [`LayerKind::LATENT`]: keys whose first
    /// `value_dim` coordinates are the values too, appended with an empty `v`.
    pub layer_kind: LayerKind,
}

impl CacheConfig {
    /// With these layers, and as many.
    pub fn with_layers(self, layers: Vec<LayerConfig>) -> CacheConfig {
        CacheConfig { num_layers: i32::try_from(layers.len()).unwrap_or(i32::MAX), layers, ..self }
    }

    /// Calls `f` with the C struct. What it points to lives until `f` returns.
    pub(crate) fn with_raw<R>(&self, f: impl FnOnce(&mut sys::tq_cache_config) -> R) -> Result<R> {
        fn list<T>(name: &str, entries: &[T], num_layers: i32) -> Result<*const T> {
            match entries.len() {
                0 => Ok(ptr::null()),
                length if i64::try_from(length) == Ok(i64::from(num_layers)) => Ok(entries.as_ptr()),
                length => {
                    Err(Error::argument(format!("{name}: {length} entries, but num_layers = {num_layers}")))
                }
            }
        }
        let layer_levels = self.layers.iter().enumerate();
        let layer_levels = layer_levels
            .map(|(i, layer)| layer.raw_levels(i, self.num_kv_heads, self.head_dim))
            .collect::<Result<Vec<_>>>()?;
        let layers = self.layers.iter().zip(&layer_levels).enumerate();
        let layers =
            layers.map(|(i, (layer, levels))| layer.to_raw(i, levels)).collect::<Result<Vec<_>>>()?;
        let key_codebook = self.key_codebook.as_ref().map(|book| book.to_raw("key_codebook")).transpose()?;
        let value_codebook =
            self.value_codebook.as_ref().map(|book| book.to_raw("value_codebook")).transpose()?;
        let key_levels = self.key_levels.as_ref().map(Levels::to_raw).transpose()?;
        let value_levels = self.value_levels.as_ref().map(Levels::to_raw).transpose()?;
        let mut raw = sys::tq_cache_config {
            device_type: self.device_type.0,
            device_id: self.device_id,
            num_layers: self.num_layers,
            num_q_heads: self.num_q_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            io_dtype: self.io_dtype.0,
            key_bits: self.key_bits,
            value_bits: self.value_bits,
            code_family: self.code_family.0,
            layer_key_bits: list("layer_key_bits", &self.layer_key_bits, self.num_layers)?,
            layer_value_bits: list("layer_value_bits", &self.layer_value_bits, self.num_layers)?,
            rotation: self.rotation.0,
            key_scale_rule: self.key_scale_rule.0,
            value_scale_rule: self.value_scale_rule.0,
            page_size: self.page_size,
            rotation_seed: self.rotation_seed,
            first_layer: self.first_layer,
            first_kv_head: self.first_kv_head,
            key_codebook: key_codebook.as_ref().map_or(ptr::null(), |book| book),
            value_codebook: value_codebook.as_ref().map_or(ptr::null(), |book| book),
            max_tokens: self.max_tokens,
            max_reserve_tokens: self.max_reserve_tokens,
            max_sequence_tokens: self.max_sequence_tokens,
            max_sequences: self.max_sequences,
            max_batch_sequences: self.max_batch_sequences,
            max_batch_tokens: self.max_batch_tokens,
            max_raw_tokens: self.max_raw_tokens,
            window_tokens: self.window_tokens,
            sink_tokens: self.sink_tokens,
            rollback_tokens: self.rollback_tokens,
            num_threads: self.num_threads,
            flags: self.flags,
            layers: list("layers", &layers, self.num_layers)?,
            key_family: self.key_family.0,
            value_family: self.value_family.0,
            group_size: self.group_size,
            sketch: self.sketch.0,
            sketch_rule: self.sketch_rule.0,
            sketch_factor: self.sketch_factor,
            key_levels: key_levels.as_ref().map_or(ptr::null(), |levels| levels),
            value_levels: value_levels.as_ref().map_or(ptr::null(), |levels| levels),
            layer_kind: self.layer_kind.0,
            ..Default::default()
        };
        Ok(f(&mut raw))
    }

    /// SAFETY: what `raw` points to must be valid.
    pub(crate) unsafe fn from_raw(raw: &sys::tq_cache_config) -> CacheConfig {
        /// SAFETY: null, or so many entries.
        unsafe fn list<T: Clone>(entries: *const T, num_layers: i32) -> Vec<T> {
            match entries.is_null() {
                true => Vec::new(),
                // SAFETY: the caller's promise.
                false => unsafe { slice::from_raw_parts(entries, num_layers.max(0) as usize) }.to_vec(),
            }
        }
        // SAFETY: the caller's promise: num_layers entries each.
        let (layer_key_bits, layer_value_bits, layers) = unsafe {
            (
                list(raw.layer_key_bits, raw.num_layers),
                list(raw.layer_value_bits, raw.num_layers),
                list(raw.layers, raw.num_layers),
            )
        };
        // SAFETY: the caller's promise.
        let book = |book: *const sys::tq_codebook| unsafe { book.as_ref() }.map(Codebook::from_raw);
        // SAFETY: the caller's promise: 2^bits levels and one boundary less.
        let levels =
            |levels: *const sys::tq_levels| unsafe { levels.as_ref().map(|raw| Levels::from_raw(raw)) };
        CacheConfig {
            device_type: DeviceType(raw.device_type),
            device_id: raw.device_id,
            num_layers: raw.num_layers,
            num_q_heads: raw.num_q_heads,
            num_kv_heads: raw.num_kv_heads,
            head_dim: raw.head_dim,
            value_dim: raw.value_dim,
            io_dtype: Dtype(raw.io_dtype),
            key_bits: raw.key_bits,
            value_bits: raw.value_bits,
            code_family: CodeFamily(raw.code_family),
            layer_key_bits,
            layer_value_bits,
            rotation: Rotation(raw.rotation),
            key_scale_rule: ScaleRule(raw.key_scale_rule),
            value_scale_rule: ScaleRule(raw.value_scale_rule),
            page_size: raw.page_size,
            rotation_seed: raw.rotation_seed,
            first_layer: raw.first_layer,
            first_kv_head: raw.first_kv_head,
            key_codebook: book(raw.key_codebook),
            value_codebook: book(raw.value_codebook),
            max_tokens: raw.max_tokens,
            max_reserve_tokens: raw.max_reserve_tokens,
            max_sequence_tokens: raw.max_sequence_tokens,
            max_sequences: raw.max_sequences,
            max_batch_sequences: raw.max_batch_sequences,
            max_batch_tokens: raw.max_batch_tokens,
            max_raw_tokens: raw.max_raw_tokens,
            window_tokens: raw.window_tokens,
            sink_tokens: raw.sink_tokens,
            rollback_tokens: raw.rollback_tokens,
            num_threads: raw.num_threads,
            flags: raw.flags,
            // SAFETY: the caller's promise.
            layers: layers.iter().map(|layer| unsafe { LayerConfig::from_raw(layer) }).collect(),
            key_family: CodeFamily(raw.key_family),
            value_family: CodeFamily(raw.value_family),
            group_size: raw.group_size,
            sketch: Sketch(raw.sketch),
            sketch_rule: SketchRule(raw.sketch_rule),
            sketch_factor: raw.sketch_factor,
            key_levels: levels(raw.key_levels),
            value_levels: levels(raw.value_levels),
            layer_kind: LayerKind(raw.layer_kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To C and back, through every pointer: run by Miri too.
    #[test]
    fn a_configuration_survives_the_way_to_c_and_back() {
        let book = |bits, levels| Some(Codebook { bits, unit: 0.25, magnitude: (1..=levels).collect() });
        let config = CacheConfig {
            num_layers: 3,
            io_dtype: Dtype::F16,
            layer_key_bits: vec![2, 3, 4],
            layer_value_bits: vec![5, 6, 8],
            key_codebook: book(2, 2),
            value_codebook: book(6, 32),
            rotation_seed: u64::MAX,
            first_layer: 5,
            first_kv_head: 6,
            max_tokens: i64::MAX,
            flags: FLAG_NO_SCALE_SEARCH,
            layers: vec![
                LayerConfig::new().heads(8, 2).head_dim(128).bits(3, 4).sliding_window(77),
                LayerConfig::new().value_dim(64).rotation(Rotation::DENSE).kind(LayerKind::LATENT),
                LayerConfig::new()
                    .families(CodeFamily::SCALAR, CodeFamily::GROUPED)
                    .group_size(16)
                    .shares(0)
                    .key_levels(Levels { levels: vec![-2.0, 2.0], boundaries: vec![0.5], unit: 0.0 })
                    .value_levels(Levels { levels: vec![3.0], boundaries: vec![], unit: 1.0 }),
            ],
            key_family: CodeFamily::SCALAR,
            value_family: CodeFamily::GROUPED,
            group_size: 64,
            sketch: Sketch::GAUSSIAN,
            sketch_rule: SketchRule::LEAST_ERROR,
            sketch_factor: 0.5,
            layer_kind: LayerKind::LATENT,
            key_levels: Some(Levels { levels: vec![-1.0, 1.0], boundaries: vec![0.0], unit: 0.5 }),
            ..CacheConfig::default()
        };
        // SAFETY: with_raw's pointers live until the closure returns.
        let back = config.with_raw(|raw| unsafe { CacheConfig::from_raw(raw) }).unwrap();
        assert_eq!(back, config);
        assert_eq!(
            config.with_raw(|raw| raw.struct_size as usize).unwrap(),
            size_of::<sys::tq_cache_config>()
        );
        let empty = CacheConfig::default();
        // SAFETY: as above; there are no pointers.
        assert_eq!(empty.with_raw(|raw| unsafe { CacheConfig::from_raw(raw) }).unwrap(), empty);
    }

    #[test]
    fn lists_of_the_wrong_length_never_reach_c() {
        let text_of = |config: CacheConfig| config.with_raw(|_| ()).unwrap_err().message;
        for (bits, magnitudes) in [(4, 9), (6, 31), (7, 33), (-1, 33), (i32::MAX, 64)] {
            let book = Some(Codebook { bits, unit: 1.0, magnitude: vec![1; magnitudes] });
            let text = text_of(CacheConfig { key_codebook: book, ..CacheConfig::default() });
            assert!(text.contains(&format!("{magnitudes} magnitudes")), "{text}");
        }
        for num_layers in [-1, 1, 3] {
            let layer_value_bits = vec![4, 4];
            let text = text_of(CacheConfig { num_layers, layer_value_bits, ..CacheConfig::default() });
            assert!(text.contains("layer_value_bits: 2 entries"), "{text}");
            let layers = vec![LayerConfig::new(); 2];
            let text = text_of(CacheConfig { num_layers, layers, ..CacheConfig::default() });
            assert!(text.contains("layers: 2 entries"), "{text}");
        }
        for layer in [-1, i32::MAX] {
            let text = text_of(CacheConfig::default().with_layers(vec![LayerConfig::new().shares(layer)]));
            assert!(text.contains(&format!("layers[0].shares_layer = {layer}")), "{text}");
        }
    }
}
