// SPDX-License-Identifier: Apache-2.0
//! What a cache takes: `tq_cache_bytes`, `tq_cache_memory`.

use crate::sys;

/// What a cache of some configuration allocates, exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheBytes {
    /// All pages of all layers: the codes and their scales.
    pub page_bytes: i64,
    /// Exact window, rollback and sink copies.
    pub raw_bytes: i64,
    /// Rotation signs or matrices, centres, page tables, flags.
    pub table_bytes: i64,
    /// The cache's own attend workspace.
    pub workspace_bytes: i64,
    /// Of all that, on the device (0 for CPU caches).
    pub device_bytes: i64,
    /// Of all that, on the host, bookkeeping included.
    pub host_bytes: i64,
    /// Pages per layer.
    pub num_pages: i64,
    /// Stored bytes of one token over all layers and heads, scales included.
    pub token_bytes: i64,
    /// The same token as float16.
    pub fp16_token_bytes: i64,
}

impl CacheBytes {
    pub(crate) fn from_raw(raw: &sys::tq_cache_bytes) -> CacheBytes {
        CacheBytes {
            page_bytes: raw.page_bytes,
            raw_bytes: raw.raw_bytes,
            table_bytes: raw.table_bytes,
            workspace_bytes: raw.workspace_bytes,
            device_bytes: raw.device_bytes,
            host_bytes: raw.host_bytes,
            num_pages: raw.num_pages,
            token_bytes: raw.token_bytes,
            fp16_token_bytes: raw.fp16_token_bytes,
        }
    }
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CacheMemory {
    /// Sequences alive.
    pub num_sequences: i32,
    /// Lengths of all sequences added up (a shared page counts in each).
    pub tokens: i64,
    /// Distinct pages in use, per layer.
    pub pages_used: i64,
    /// Pages per layer.
    pub pages_total: i64,
    /// `pages_used` over all layers, in bytes.
    pub stored_bytes_used: i64,
    /// Exact copies, allocated.
    pub raw_bytes: i64,
    /// Allocated on the device in all.
    pub device_bytes: i64,
    /// Allocated on the host in all.
    pub host_bytes: i64,
    /// float16 bytes of `max_tokens` tokens over the bytes of all pages and `raw_bytes`.
    pub compression: f64,
    /// Of `raw_bytes`, held by sequences.
    pub raw_bytes_used: i64,
}

impl CacheMemory {
    pub(crate) fn from_raw(raw: &sys::tq_cache_memory) -> CacheMemory {
        CacheMemory {
            num_sequences: raw.num_sequences,
            tokens: raw.tokens,
            pages_used: raw.pages_used,
            pages_total: raw.pages_total,
            stored_bytes_used: raw.stored_bytes_used,
            raw_bytes: raw.raw_bytes,
            device_bytes: raw.device_bytes,
            host_bytes: raw.host_bytes,
            compression: raw.compression,
            raw_bytes_used: raw.raw_bytes_used,
        }
    }
}
