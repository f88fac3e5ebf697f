// SPDX-License-Identifier: Apache-2.0
//! Layers with a shape of their own: `tq_layer_config`.

use core::{ptr, slice};

use crate::error::{Error, Result};
use crate::quantizer::Levels;
use crate::sys;
use crate::types::{CodeFamily, LayerKind, Rotation};

/// One layer of a cache whose layers differ; what is zero stands for the cache's own value.
///
/// ```
/// let local = tqkv::LayerConfig::new().heads(32, 16).head_dim(128).sliding_window(1024);
/// let global = tqkv::LayerConfig::new().heads(32, 4).head_dim(512);
/// let config = tqkv::CacheConfig::default().with_layers([vec![local; 5], vec![global]].concat());
/// assert_eq!(config.num_layers, 6);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerConfig {
    /// A multiple of `num_kv_heads`.
    pub num_q_heads: i32,
    /// At least 1.
    pub num_kv_heads: i32,
    /// As [`crate::CacheConfig::head_dim`].
    pub head_dim: i32,
    /// Likewise for values; default the cache's `value_dim`, and without one `head_dim`.
    pub value_dim: i32,
    /// As [`crate::CacheConfig::key_bits`].
    pub key_bits: i32,
    /// Likewise for values.
    pub value_bits: i32,
    /// As [`crate::CacheConfig::code_family`], for keys.
    pub key_family: CodeFamily,
    /// Likewise for values.
    pub value_family: CodeFamily,
    /// As [`crate::CacheConfig::rotation`].
    pub rotation: Rotation,
    /// Tokens that a query sees, its own included; default all.
    pub sliding_window: i32,
    /// An earlier layer, whose tokens this one attends to; `None`: it has its own.
    pub shares_layer: Option<i32>,
    /// As [`crate::CacheConfig::first_kv_head`], for ranks whose layers hold different numbers of heads.
    pub first_kv_head: i32,
    /// As [`crate::CacheConfig::group_size`].
    pub group_size: i32,
    /// As [`crate::CacheConfig::layer_kind`].
    pub layer_kind: LayerKind,
    /// As [`crate::CacheConfig::key_levels`].
    pub key_levels: Option<Levels>,
    /// Likewise of values.
    pub value_levels: Option<Levels>,
    /// Keys in bands, which have the widths in place of `key_bits`.
    pub key_bands: Option<KeyBands>,
}

/// Keys in bands of 32 coordinates, each with a width, a rotation and a scale of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyBands {
    /// Of each band: 1 .. 6, none above the one before.
    pub bits: Vec<i32>,
    /// `[kv heads][head_dim]`: the coordinate at each place, band 0 first; empty: as they are.
    pub order: Vec<i32>,
}

impl KeyBands {
    /// places: kv heads times head_dim, of the layer or the cache.
    fn to_raw(&self, index: usize, places: i64) -> Result<sys::tq_key_bands> {
        let given = self.order.len();
        if given != 0 && i64::try_from(given) != Ok(places) {
            let name = format!("layers[{index}].key_bands.order");
            return Err(Error::argument(format!("{name}: {given} entries, must be none or {places}")));
        }
        Ok(sys::tq_key_bands {
            num_bands: i32::try_from(self.bits.len()).unwrap_or(i32::MAX),
            bits: self.bits.as_ptr(),
            order: if given == 0 { ptr::null() } else { self.order.as_ptr() },
            ..Default::default()
        })
    }

    /// SAFETY: what `raw` points to must be valid, the order of `places` numbers.
    unsafe fn from_raw(raw: &sys::tq_key_bands, places: usize) -> KeyBands {
        let list = |first: *const i32, count| match first.is_null() {
            true => Vec::new(),
            // SAFETY: so many numbers, by the caller's promise.
            false => unsafe { slice::from_raw_parts(first, count) }.to_vec(),
        };
        KeyBands { bits: list(raw.bits, raw.num_bands.max(0) as usize), order: list(raw.order, places) }
    }
}

/// Levels and bands of a layer as C reads them.
pub(crate) struct RawLevels {
    key: Option<sys::tq_levels>,
    value: Option<sys::tq_levels>,
    bands: Option<sys::tq_key_bands>,
}

impl LayerConfig {
    /// A layer like the cache's others.
    pub fn new() -> LayerConfig {
        LayerConfig::default()
    }

    /// With these numbers of heads.
    pub fn heads(self, num_q_heads: i32, num_kv_heads: i32) -> LayerConfig {
        LayerConfig { num_q_heads, num_kv_heads, ..self }
    }

    /// With keys, and values unless [`LayerConfig::value_dim`] says otherwise, of this dimension.
    pub fn head_dim(self, head_dim: i32) -> LayerConfig {
        LayerConfig { head_dim, ..self }
    }

    /// With values of this dimension.
    pub fn value_dim(self, value_dim: i32) -> LayerConfig {
        LayerConfig { value_dim, ..self }
    }

    /// With codes of these widths.
    pub fn bits(self, key_bits: i32, value_bits: i32) -> LayerConfig {
        LayerConfig { key_bits, value_bits, ..self }
    }

    /// With codes of these families.
    pub fn families(self, key_family: CodeFamily, value_family: CodeFamily) -> LayerConfig {
        LayerConfig { key_family, value_family, ..self }
    }

    /// With groups of this size.
    pub fn group_size(self, group_size: i32) -> LayerConfig {
        LayerConfig { group_size, ..self }
    }

    /// Whose tokens are keys and values, or latents.
    pub fn kind(self, layer_kind: LayerKind) -> LayerConfig {
        LayerConfig { layer_kind, ..self }
    }

    /// With this rotation.
    pub fn rotation(self, rotation: Rotation) -> LayerConfig {
        LayerConfig { rotation, ..self }
    }

    /// Whose queries see so many tokens, their own included.
    pub fn sliding_window(self, sliding_window: i32) -> LayerConfig {
        LayerConfig { sliding_window, ..self }
    }

    /// With these levels of keys, of [`CodeFamily::LEVELS`].
    pub fn key_levels(self, levels: Levels) -> LayerConfig {
        LayerConfig { key_levels: Some(levels), ..self }
    }

    /// Likewise of values.
    pub fn value_levels(self, levels: Levels) -> LayerConfig {
        LayerConfig { value_levels: Some(levels), ..self }
    }

    /// That attends to the tokens of an earlier layer.
    pub fn shares(self, layer: i32) -> LayerConfig {
        LayerConfig { shares_layer: Some(layer), ..self }
    }

    /// Whose kv head 0 has this number in the whole model.
    pub fn first_kv_head(self, first_kv_head: i32) -> LayerConfig {
        LayerConfig { first_kv_head, ..self }
    }

    /// With keys in these bands.
    pub fn key_bands(self, bands: KeyBands) -> LayerConfig {
        LayerConfig { key_bands: Some(bands), ..self }
    }

    /// num_kv_heads, head_dim: the cache's, for a layer without its own.
    pub(crate) fn raw_levels(&self, index: usize, num_kv_heads: i32, head_dim: i32) -> Result<RawLevels> {
        let raw = |levels: &Option<Levels>| levels.as_ref().map(Levels::to_raw).transpose();
        let own_or = |own: i32, common: i32| i64::from(if own != 0 { own } else { common });
        let places = own_or(self.num_kv_heads, num_kv_heads) * own_or(self.head_dim, head_dim);
        let bands = self.key_bands.as_ref().map(|bands| bands.to_raw(index, places)).transpose()?;
        Ok(RawLevels { key: raw(&self.key_levels)?, value: raw(&self.value_levels)?, bands })
    }

    /// What it points to is `levels`, and what that points to is the layer's.
    pub(crate) fn to_raw(&self, index: usize, levels: &RawLevels) -> Result<sys::tq_layer_config> {
        let shares_layer = match self.shares_layer {
            None => 0,
            Some(layer) => layer.checked_add(1).filter(|&number| number > 0).ok_or_else(|| {
                Error::argument(format!("layers[{index}].shares_layer = {layer}: must be an earlier layer"))
            })?,
        };
        Ok(sys::tq_layer_config {
            num_q_heads: self.num_q_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            key_bits: self.key_bits,
            value_bits: self.value_bits,
            key_family: self.key_family.0,
            value_family: self.value_family.0,
            rotation: self.rotation.0,
            sliding_window: self.sliding_window,
            shares_layer,
            first_kv_head: self.first_kv_head,
            group_size: self.group_size,
            layer_kind: self.layer_kind.0,
            key_levels: levels.key.as_ref().map_or(ptr::null(), |levels| levels),
            value_levels: levels.value.as_ref().map_or(ptr::null(), |levels| levels),
            key_bands: levels.bands.as_ref().map_or(ptr::null(), |bands| bands),
            ..Default::default()
        })
    }

    /// SAFETY: what `raw` points to must be valid.
    pub(crate) unsafe fn from_raw(raw: &sys::tq_layer_config) -> LayerConfig {
        // SAFETY: the caller's promise: 2^bits levels and one boundary less.
        let levels =
            |levels: *const sys::tq_levels| unsafe { levels.as_ref().map(|raw| Levels::from_raw(raw)) };
        let places = raw.num_kv_heads.max(0) as usize * raw.head_dim.max(0) as usize;
        LayerConfig {
            num_q_heads: raw.num_q_heads,
            num_kv_heads: raw.num_kv_heads,
            head_dim: raw.head_dim,
            value_dim: raw.value_dim,
            key_bits: raw.key_bits,
            value_bits: raw.value_bits,
            key_family: CodeFamily(raw.key_family),
            value_family: CodeFamily(raw.value_family),
            rotation: Rotation(raw.rotation),
            sliding_window: raw.sliding_window,
            shares_layer: (raw.shares_layer > 0).then(|| raw.shares_layer - 1),
            first_kv_head: raw.first_kv_head,
            group_size: raw.group_size,
            layer_kind: LayerKind(raw.layer_kind),
            key_levels: levels(raw.key_levels),
            value_levels: levels(raw.value_levels),
            // SAFETY: the caller's promise.
            key_bands: unsafe { raw.key_bands.as_ref().map(|bands| KeyBands::from_raw(bands, places)) },
        }
    }
}

/// What a layer of a cache of some configuration allocates. All zero but `group` and `num_pages` for a layer
/// that shares another's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerBytes {
    /// Layers whose tokens live equally long are a group: page ids are theirs.
    pub group: i32,
    /// Pages of the group.
    pub num_pages: i64,
    /// Of all of them in this layer.
    pub page_bytes: i64,
    /// Of its exact copies.
    pub raw_bytes: i64,
    /// Stored bytes of one token over its heads, scales included.
    pub token_bytes: i64,
    /// The same token as float16.
    pub fp16_token_bytes: i64,
}

impl LayerBytes {
    pub(crate) fn from_raw(raw: &sys::tq_layer_bytes) -> LayerBytes {
        LayerBytes {
            group: raw.group,
            num_pages: raw.num_pages,
            page_bytes: raw.page_bytes,
            raw_bytes: raw.raw_bytes,
            token_bytes: raw.token_bytes,
            fp16_token_bytes: raw.fp16_token_bytes,
        }
    }
}
