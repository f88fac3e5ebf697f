// SPDX-License-Identifier: Apache-2.0
//! Shapes and types of a cache's or a codec's layers, and what slices must be to fit them. This is what makes
//! the calls on slices safe.

use crate::attend::{AttendParams, AttendPointers};
use crate::config::CacheConfig;
use crate::error::{Error, Result};
use crate::layer::LayerConfig;
use crate::tensor::{self, Shape};
use crate::types::{DeviceType, Dtype, Element, LayerKind, Layout};
use core::ptr;

/// What slices are checked by.
#[derive(Default)]
pub(crate) struct Geometry {
    pub device_type: DeviceType,
    pub io_dtype: Dtype,
    layers: Vec<LayerConfig>,
}

impl Geometry {
    /// Of a resolved configuration.
    pub fn of(resolved: CacheConfig) -> Geometry {
        Geometry { device_type: resolved.device_type, io_dtype: resolved.io_dtype, layers: resolved.layers }
    }

    /// None for a layer that there is not: the library refuses it, with its own text.
    pub fn layer(&self, layer: i32) -> Option<&LayerConfig> {
        self.layers.get(usize::try_from(layer).ok()?)
    }

    /// Host memory for a CPU object, of its type.
    pub fn check_host<T: Element>(&self, what: &str) -> Result<()> {
        if self.device_type != DeviceType::CPU {
            return Err(Error::argument(format!(
                "{what}: slices are host memory, but the cache is on a device; use the call ending in _raw"
            )));
        }
        if T::DTYPE != self.io_dtype {
            return Err(Error::argument(format!(
                "{what}: of type {}, but the cache has io_dtype = {}",
                T::DTYPE.0,
                self.io_dtype.0
            )));
        }
        Ok(())
    }

    /// Lengths of centres.
    pub fn check_centres(&self, layer: i32, key: Option<&[f32]>, value: Option<&[f32]>) -> Result<()> {
        let Some(&LayerConfig { num_kv_heads, head_dim, value_dim, .. }) = self.layer(layer) else {
            return Ok(());
        };
        for (name, centre, dim) in [("key_centre", key, head_dim), ("value_centre", value, value_dim)] {
            if let Some(centre) = centre {
                tensor::check_rows(name, centre.len(), i64::from(num_kv_heads), dim)?;
            }
        }
        Ok(())
    }

    /// Length of the matrices of keys.
    pub fn check_key_matrix(&self, layer: i32, matrix: &[f32]) -> Result<()> {
        let Some(&LayerConfig { num_kv_heads: heads, head_dim: dim, .. }) = self.layer(layer) else {
            return Ok(());
        };
        tensor::check("matrix", matrix.len(), Shape { tokens: i64::from(heads), heads: dim, dim }, (0, 0))
    }

    /// The values that an append passes on: none where the layer is latent and `v` empty.
    pub fn values<'v, T>(&self, layer: i32, v: &'v [T]) -> Option<&'v [T]> {
        let latent = self.layer(layer).is_some_and(|layer| layer.layer_kind == LayerKind::LATENT);
        Some(v).filter(|v| !(latent && v.is_empty()))
    }

    /// Lengths of `k` and `v` of so many tokens.
    pub fn check_kv(
        &self,
        layer: i32,
        k: Option<usize>,
        v: Option<usize>,
        tokens: i64,
        layout: Layout,
    ) -> Result<()> {
        let Some(&LayerConfig { num_kv_heads, head_dim, value_dim, .. }) = self.layer(layer) else {
            return Ok(());
        };
        let shape = Shape { tokens, heads: num_kv_heads, dim: head_dim };
        if let Some(k) = k {
            tensor::check("k", k, shape, (layout.key_token_stride, layout.key_head_stride))?;
        }
        if let Some(v) = v {
            let shape = Shape { dim: value_dim, ..shape };
            tensor::check("v", v, shape, (layout.value_token_stride, layout.value_head_stride))?;
        }
        Ok(())
    }

    /// Types and lengths of what attention of so many rows uses; where it all is.
    pub fn check_attend<T: Element, O: Element>(
        &self,
        layer: i32,
        tokens: i64,
        q: &[T],
        out: &mut [O],
        lse: Option<&mut [f32]>,
        params: &AttendParams<'_>,
    ) -> Result<AttendPointers> {
        self.check_host::<T>("q")?;
        if params.out_dtype != Dtype::DEFAULT && params.out_dtype != O::DTYPE {
            return Err(Error::argument(format!(
                "out_dtype = {}: out is a slice of type {}",
                params.out_dtype.0,
                O::DTYPE.0
            )));
        }
        if O::DTYPE != self.io_dtype && O::DTYPE != Dtype::F32 {
            return Err(Error::argument(format!(
                "out: of type {}, must be the cache's type {} or f32",
                O::DTYPE.0,
                self.io_dtype.0
            )));
        }
        if let Some(&LayerConfig { num_q_heads, head_dim, value_dim, .. }) = self.layer(layer) {
            let shape = Shape { tokens, heads: num_q_heads, dim: head_dim };
            tensor::check("q", q.len(), shape, (params.q_token_stride, params.q_head_stride))?;
            let shape = Shape { dim: value_dim, ..shape };
            tensor::check("out", out.len(), shape, (params.out_token_stride, params.out_head_stride))?;
            if let Some(lse) = &lse {
                tensor::check_rows("lse", lse.len(), tokens, num_q_heads)?;
            }
            for (name, heads) in [("sink_logits", params.sink_logits), ("alibi_slopes", params.alibi_slopes)]
            {
                heads.map_or(Ok(()), |heads| tensor::check_rows(name, heads.len(), 1, num_q_heads))?;
            }
        }
        for (name, bounds) in [("visible_begin", params.visible_begin), ("visible_end", params.visible_end)] {
            bounds.map_or(Ok(()), |bounds| tensor::check_rows(name, bounds.len(), tokens, 1))?;
        }
        if let Some(tree) = params.tree_mask {
            tensor::check_rows("tree_mask", tree.len(), tokens, params.tree_words.clamp(1, 2))?;
        }
        Ok(AttendPointers {
            q: q.as_ptr().cast(),
            out: out.as_mut_ptr().cast(),
            lse: lse.map_or(ptr::null_mut(), |lse| lse.as_mut_ptr()),
            sink_logits: params.sink_logits.map_or(ptr::null(), <[f32]>::as_ptr),
            visible_begin: params.visible_begin.map_or(ptr::null(), <[i32]>::as_ptr),
            visible_end: params.visible_end.map_or(ptr::null(), <[i32]>::as_ptr),
            tree_mask: params.tree_mask.map_or(ptr::null(), <[u64]>::as_ptr),
            alibi_slopes: params.alibi_slopes.map_or(ptr::null(), <[f32]>::as_ptr),
            ..AttendPointers::default()
        })
    }
}
