// SPDX-License-Identifier: Apache-2.0
//! A quantizer's calls on pointers, on any device: what a CUDA quantizer is used by.

use crate::error::Result;
use crate::quantizer::Quantizer;
use crate::types::{Noticed, Stream};
use core::ffi::c_void;
use core::ptr;

impl Quantizer {
    /// `x [count][dim]` -> `codes [count][code_bytes]`.
    ///
    /// # Safety
    /// Pointers are memory of the quantizer's device, as long as the counts and [`Quantizer::dim`],
    /// [`Quantizer::code_bytes`] and [`Quantizer::rotated_dim`] say, vectors of `io_dtype`; not written to,
    /// and results not used, until `stream` has passed the call (CPU: until it returns). The stream's CUDA
    /// context must be usable from this thread.
    pub unsafe fn encode_raw(
        &self,
        x: *const c_void,
        count: i64,
        codes: *mut c_void,
        stream: Stream,
    ) -> Result<()> {
        let call = self.api().tq_quantizer_encode;
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), x, count, codes, ptr::null_mut(), stream.as_raw()) })
    }

    /// [`Quantizer::encode_raw`], which waits for the stream and says what it noticed in `x`.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    pub unsafe fn encode_raw_noticing(
        &self,
        x: *const c_void,
        count: i64,
        codes: *mut c_void,
        stream: Stream,
    ) -> Result<Noticed> {
        let (call, mut noticed) = (self.api().tq_quantizer_encode, 0);
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), x, count, codes, &mut noticed, stream.as_raw()) })?;
        Ok(Noticed(noticed))
    }

    /// `codes [count][code_bytes]` -> `x [count][dim]`.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    pub unsafe fn decode_raw(
        &self,
        codes: *const c_void,
        count: i64,
        x: *mut c_void,
        stream: Stream,
    ) -> Result<()> {
        let call = self.api().tq_quantizer_decode;
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), codes, count, x, stream.as_raw()) })
    }

    /// `out [num_queries][count]`: products of `queries [num_queries][dim]` with what `codes` decode to.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    pub unsafe fn inner_products_raw(
        &self,
        queries: *const c_void,
        num_queries: i64,
        codes: *const c_void,
        count: i64,
        out: *mut f32,
        stream: Stream,
    ) -> Result<()> {
        let call = self.api().tq_quantizer_inner_products;
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), queries, num_queries, codes, count, out, stream.as_raw()) })
    }

    /// The `k` largest inner products of each query, best first: `scores` and `ids` `[num_queries][k]`;
    /// places without a record -infinity and -1. `bias [count]` or null is added to the products.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn search_raw(
        &self,
        queries: *const c_void,
        num_queries: i64,
        codes: *const c_void,
        count: i64,
        bias: *const f32,
        k: i64,
        scores: *mut f32,
        ids: *mut i64,
        stream: Stream,
    ) -> Result<()> {
        let call = self.api().tq_quantizer_search;
        // SAFETY: the caller's promise.
        self.status(unsafe {
            call(self.raw(), queries, num_queries, codes, count, bias, k, scores, ids, stream.as_raw())
        })
    }

    /// The rotation alone: `x [count][dim]` -> `y [count][rotated_dim]`.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    pub unsafe fn rotate_raw(&self, x: *const c_void, count: i64, y: *mut f32, stream: Stream) -> Result<()> {
        let call = self.api().tq_quantizer_rotate;
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), x, count, y, stream.as_raw()) })
    }

    /// The inverse: `y [count][rotated_dim]` -> `x [count][dim]`.
    ///
    /// # Safety
    /// As [`Quantizer::encode_raw`].
    pub unsafe fn unrotate_raw(
        &self,
        y: *const f32,
        count: i64,
        x: *mut c_void,
        stream: Stream,
    ) -> Result<()> {
        let call = self.api().tq_quantizer_unrotate;
        // SAFETY: the caller's promise.
        self.status(unsafe { call(self.raw(), y, count, x, stream.as_raw()) })
    }
}
