// SPDX-License-Identifier: Apache-2.0
//! Append, attend and read: on slices for CPU caches, on pointers for any.

use crate::cache::{Batch, Cache};
use crate::error::{Error, Result};
use crate::sys;
use crate::types::{Dtype, Element, Layout, Sequence, Stream};
use core::ffi::c_void;
use core::ptr;

/// Parameters of attention; zero means the default throughout, so `AttendParams::default()` is plain causal
/// attention.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AttendParams<'a> {
    /// Type of `out` for [`Cache::attend_raw`]; default `io_dtype`. On slices it follows from the slice.
    pub out_dtype: Dtype,
    /// Default `1 / sqrt(head_dim)`.
    pub softmax_scale: f32,
    /// c: logits become `c * tanh(logit / c)`; default off.
    pub logit_softcap: f32,
    /// Tokens that a query sees, its own included; default all.
    pub sliding_window: i64,
    /// One logit per query head, added to the softmax's sum only. On the host; on pointers see
    /// [`AttendPointers::sink_logits`].
    pub sink_logits: Option<&'a [f32]>,
    /// Leave out the batch's new tokens, for a caller that attends them itself and merges by lse.
    pub history_only: bool,
    /// With `visible_end`, one number per query token: it sees the tokens `begin .. end` that are there,
    /// those behind its own included. On the host, as the masks below; on pointers see [`AttendPointers`].
    pub visible_begin: Option<&'a [i32]>,
    /// See `visible_begin`; both or neither.
    pub visible_end: Option<&'a [i32]>,
    /// `tree_words` words per query token: bit `j % 64` of word `j / 64` says whether it sees the j-th of the
    /// plan's new tokens of its sequence.
    pub tree_mask: Option<&'a [u64]>,
    /// 1 or 2; 0 = 1.
    pub tree_words: i32,
    /// One slope per query head: `slope * (token - query position)` is added to the logits.
    pub alibi_slopes: Option<&'a [f32]>,
    /// Elements from one query token to the next; default dense `[token][q head][dim]`.
    pub q_token_stride: i64,
    /// Elements from one query head to the next.
    pub q_head_stride: i64,
    /// Elements from one output token to the next.
    pub out_token_stride: i64,
    /// Elements from one output head to the next.
    pub out_head_stride: i64,
}

impl AttendParams<'_> {
    pub(crate) fn without_slices(self) -> Self {
        AttendParams {
            sink_logits: None,
            visible_begin: None,
            visible_end: None,
            tree_mask: None,
            alibi_slopes: None,
            ..self
        }
    }

    /// `pointers`: where the arrays are.
    pub(crate) fn to_raw(self, pointers: &AttendPointers) -> sys::tq_attend_params {
        sys::tq_attend_params {
            out_dtype: self.out_dtype.0,
            softmax_scale: self.softmax_scale,
            logit_softcap: self.logit_softcap,
            sliding_window: self.sliding_window,
            sink_logits: pointers.sink_logits,
            history_only: i32::from(self.history_only),
            tree_words: self.tree_words,
            visible_begin: pointers.visible_begin,
            visible_end: pointers.visible_end,
            tree_mask: pointers.tree_mask,
            alibi_slopes: pointers.alibi_slopes,
            chunk_k: pointers.chunk_k,
            chunk_v: pointers.chunk_v,
            q_token_stride: self.q_token_stride,
            q_head_stride: self.q_head_stride,
            out_token_stride: self.out_token_stride,
            out_head_stride: self.out_head_stride,
            ..Default::default()
        }
    }

    fn has_slices(&self) -> bool {
        self.sink_logits.is_some()
            || self.visible_begin.is_some()
            || self.visible_end.is_some()
            || self.tree_mask.is_some()
            || self.alibi_slopes.is_some()
    }
}

/// Memory of [`Cache::attend_raw`], on the cache's device.
#[derive(Clone, Copy, Debug)]
pub struct AttendPointers {
    /// `[query tokens][num_q_heads][head_dim]` of `io_dtype`.
    pub q: *const c_void,
    /// `[query tokens][num_q_heads][value_dim]` of `out_dtype`.
    pub out: *mut c_void,
    /// `[query tokens][num_q_heads]` of `f32`: natural logarithm of the softmax's sum; null = not wanted.
    pub lse: *mut f32,
    /// `[num_q_heads]`, or null.
    pub sink_logits: *const f32,
    /// `[query tokens]`, or null; as [`AttendParams::visible_begin`].
    pub visible_begin: *const i32,
    /// `[query tokens]`, or null with `visible_begin`.
    pub visible_end: *const i32,
    /// `[query tokens][tree_words]`, or null; [`AttendParams::tree_words`] counts here too.
    pub tree_mask: *const u64,
    /// `[num_q_heads]`, or null.
    pub alibi_slopes: *const f32,
    /// Keys and values of the plan's new tokens as [`Cache::append_raw`] takes them, dense, to be attended to
    /// instead of their codes, in a cache with [`crate::FLAG_EXACT_CHUNK`]. Both null: by their codes.
    pub chunk_k: *const c_void,
    /// See `chunk_k`.
    pub chunk_v: *const c_void,
    /// Null = the cache's own, else [`Cache::attend_workspace_bytes`], 256-byte aligned.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: usize,
}

impl Default for AttendPointers {
    fn default() -> Self {
        AttendPointers {
            q: ptr::null(),
            out: ptr::null_mut(),
            lse: ptr::null_mut(),
            sink_logits: ptr::null(),
            visible_begin: ptr::null(),
            visible_end: ptr::null(),
            tree_mask: ptr::null(),
            alibi_slopes: ptr::null(),
            chunk_k: ptr::null(),
            chunk_v: ptr::null(),
            workspace: ptr::null_mut(),
            workspace_bytes: 0,
        }
    }
}

impl Cache {
    /// Encodes the new tokens of the batch into one layer of a CPU cache.
    ///
    /// `k` is `[new tokens][num_kv_heads][head_dim]`, `v` likewise with `value_dim`: the new tokens of all
    /// sequences of the plan one after the other. Slices may be longer. RoPE is applied before. `v` is empty
    /// for a layer of [`crate::LayerKind::LATENT`].
    pub fn append<T: Element>(&self, layer: i32, batch: Batch, k: &[T], v: &[T]) -> Result<()> {
        self.append_strided(layer, batch, k, v, Layout::DENSE)
    }

    /// [`Cache::append`] of tensors with strides.
    pub fn append_strided<T: Element>(
        &self,
        layer: i32,
        batch: Batch,
        k: &[T],
        v: &[T],
        layout: Layout,
    ) -> Result<()> {
        self.geometry.check_host::<T>("k and v")?;
        let tokens = self.batch_rows(batch)?.new_tokens;
        let v = self.geometry.values(layer, v);
        self.geometry.check_kv(layer, Some(k.len()), v.map(<[T]>::len), tokens, layout)?;
        let values = v.map_or(ptr::null(), |v| v.as_ptr().cast());
        // SAFETY: host memory of a CPU cache, of its type, as long as the plan needs.
        unsafe { self.append_raw(layer, batch, k.as_ptr().cast(), values, layout, Stream::NONE) }
    }

    /// [`Cache::append`] on pointers, on any device.
    ///
    /// # Safety
    /// `k` and `v` must be memory of the cache's device with the batch's new tokens, `io_dtype`, in `layout`;
    /// not written to until `stream` has passed this call (CPU: until it returns). The stream's CUDA context
    /// must be usable from this thread.
    pub unsafe fn append_raw(
        &self,
        layer: i32,
        batch: Batch,
        k: *const c_void,
        v: *const c_void,
        layout: Layout,
        stream: Stream,
    ) -> Result<()> {
        let raw = self.batch_as_raw(batch)?;
        let layout = layout.to_raw();
        // SAFETY: the caller's promise; the batch belongs to this cache.
        self.status(unsafe {
            (self.library.api().tq_cache_append)(self.raw, layer, raw, k, v, &layout, stream.as_raw())
        })
    }

    /// `out = softmax(q . K^T * softmax_scale) . V` for the query tokens of the batch, on a CPU cache; each
    /// query sees the tokens up to its own.
    ///
    /// `q` is `[query tokens][num_q_heads][head_dim]`, `out` `[query tokens][num_q_heads][value_dim]`, of the
    /// cache's type or `f32`. Slices may be longer. A query that sees no token: out exactly 0.
    pub fn attend<T: Element, O: Element>(
        &self,
        layer: i32,
        batch: Batch,
        q: &[T],
        out: &mut [O],
    ) -> Result<()> {
        self.attend_with(layer, batch, q, out, None, &AttendParams::default())
    }

    /// [`Cache::attend`] with parameters. `lse` is `[query tokens][num_q_heads]`: the natural logarithm of
    /// the softmax's sum, sink logit included.
    pub fn attend_with<T: Element, O: Element>(
        &self,
        layer: i32,
        batch: Batch,
        q: &[T],
        out: &mut [O],
        lse: Option<&mut [f32]>,
        params: &AttendParams<'_>,
    ) -> Result<()> {
        let tokens = self.batch_rows(batch)?.query_tokens;
        let pointers = self.geometry.check_attend(layer, tokens, q, out, lse, params)?;
        let params = AttendParams { out_dtype: O::DTYPE, ..params.without_slices() };
        // SAFETY: host memory of a CPU cache, of the types said, as long as the plan needs.
        unsafe { self.attend_raw(layer, batch, pointers, &params, Stream::NONE) }
    }

    /// [`Cache::attend_with`] on pointers, on any device. The slices of `params` must be `None`.
    ///
    /// # Safety
    /// Every pointer must be null where that is allowed, or memory of the cache's device, of the size, type
    /// and strides said. The inputs must not be written to, `out`, `lse` and `workspace` not used at all,
    /// until `stream` has passed this call (CPU: until it returns). The stream's CUDA context must be usable
    /// from this thread.
    pub unsafe fn attend_raw(
        &self,
        layer: i32,
        batch: Batch,
        pointers: AttendPointers,
        params: &AttendParams<'_>,
        stream: Stream,
    ) -> Result<()> {
        if params.has_slices() {
            return Err(Error::argument(
                "params.sink_logits, params.visible_begin, params.visible_end, params.tree_mask, \
                 params.alibi_slopes: host slices; with pointers use those of AttendPointers",
            ));
        }
        let raw = self.batch_as_raw(batch)?;
        let raw_params = params.to_raw(&pointers);
        let AttendPointers { q, out, lse, workspace, workspace_bytes, .. } = pointers;
        let attend = self.library.api().tq_cache_attend;
        // SAFETY: the caller's promise; the batch belongs to this cache.
        self.status(unsafe {
            attend(
                self.raw,
                layer,
                raw,
                q,
                out,
                lse,
                &raw_params,
                workspace,
                workspace_bytes,
                stream.as_raw(),
            )
        })
    }

    /// Decoded keys and values of `count` tokens of a sequence of a CPU cache, from token `first`, exact
    /// where exact copies are kept.
    ///
    /// `k` is `[count][num_kv_heads][head_dim]`, `v` likewise with `value_dim`. Slices may be longer.
    pub fn read<T: Element>(
        &self,
        layer: i32,
        sequence: Sequence,
        first: i64,
        count: i64,
        k: Option<&mut [T]>,
        v: Option<&mut [T]>,
    ) -> Result<()> {
        self.read_strided(layer, sequence, (first, count), k, v, Layout::DENSE)
    }

    /// [`Cache::read`] of `(first, count)` into tensors with strides.
    pub fn read_strided<T: Element>(
        &self,
        layer: i32,
        sequence: Sequence,
        (first, count): (i64, i64),
        k: Option<&mut [T]>,
        v: Option<&mut [T]>,
        layout: Layout,
    ) -> Result<()> {
        self.geometry.check_host::<T>("k and v")?;
        self.geometry.check_kv(
            layer,
            k.as_ref().map(|k| k.len()),
            v.as_ref().map(|v| v.len()),
            count,
            layout,
        )?;
        let pointer =
            |slice: Option<&mut [T]>| slice.map_or(ptr::null_mut(), |slice| slice.as_mut_ptr().cast());
        // SAFETY: host memory of a CPU cache, of its type, as long as `count` tokens need.
        unsafe {
            self.read_raw(layer, sequence, (first, count), pointer(k), pointer(v), layout, Stream::NONE)
        }
    }

    /// [`Cache::read_strided`] on pointers, on any device.
    ///
    /// # Safety
    /// `k` and `v` must be null or memory of the cache's device for `count` tokens, `io_dtype`, in `layout`,
    /// not used by anything else until `stream` has passed this call (CPU: until it returns). The stream's
    /// CUDA context must be usable from this thread.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn read_raw(
        &self,
        layer: i32,
        sequence: Sequence,
        (first, count): (i64, i64),
        k: *mut c_void,
        v: *mut c_void,
        layout: Layout,
        stream: Stream,
    ) -> Result<()> {
        let layout = layout.to_raw();
        let read = self.library.api().tq_cache_read;
        // SAFETY: the caller's promise.
        self.status(unsafe {
            read(self.raw, layer, sequence.0, first, count, k, v, &layout, stream.as_raw())
        })
    }
}
