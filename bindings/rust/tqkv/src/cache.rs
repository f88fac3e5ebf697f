// SPDX-License-Identifier: Apache-2.0
//! The cache, its sequences and its batches. Sequences and batches are handles, not borrowing objects: an
//! engine can keep them beside the cache.

use crate::config::CacheConfig;
use crate::error::{Error, Result};
use crate::figures::CacheMemory;
use crate::geometry::Geometry;
use crate::library::Library;
use crate::sys;
use crate::tensor;
use crate::types::{Noticed, Sequence, Stream};
use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A batch of a cache: room for one plan. A handle; the cache owns what it stands for. Its numbers are never
/// given out again, so that the handle of a destroyed batch stays invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    cache: u64,
    number: u64,
}

/// Rows of a batch's plan, as the library has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchRows {
    /// Rows of `k` and `v` in [`Cache::append`].
    pub new_tokens: i64,
    /// Rows of `q`, `out` and `lse` in [`Cache::attend`].
    pub query_tokens: i64,
    /// Whether append and attend accept the plan now; if not, the counts are 0.
    pub in_force: bool,
}

/// One line of a plan: this sequence gets `new_tokens` more tokens and asks `query_tokens` queries, which are
/// its last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The sequence.
    pub sequence: Sequence,
    /// 0 or more.
    pub new_tokens: i64,
    /// 0 or more, at most the new length.
    pub query_tokens: i64,
}

impl Step {
    /// As many queries as new tokens: decoding, or a prefill that wants all its outputs.
    pub fn new(sequence: Sequence, new_tokens: i64) -> Step {
        Step { sequence, new_tokens, query_tokens: new_tokens }
    }

    /// The same with another number of queries; 1 after a prefill that wants only the last output.
    pub fn queries(self, query_tokens: i64) -> Step {
        Step { query_tokens, ..self }
    }
}

/// Memory of the caller's for a cache: see [`Cache::with_memory`].
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Callbacks for everything that is allocated; `None`: the library's own.
    pub allocator: Option<sys::tq_allocator>,
    /// Memory for the pages on the cache's device, 256-byte aligned, or null.
    pub pool: *mut c_void,
    /// Its bytes, at least [`crate::CacheBytes::page_bytes`].
    pub pool_bytes: i64,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { allocator: None, pool: ptr::null_mut(), pool_bytes: 0 }
    }
}

/// A KV cache held as codes, for all layers and many sequences.
///
/// Calls without a stream use [`Stream::NONE`]; those ending in `_on` take one, for CUDA caches.
///
/// A cache may move to another thread, but only one thread at a time may use it:
///
/// ```
/// fn sendable<T: Send>() {}
/// sendable::<tqkv::Cache>();
/// ```
/// ```compile_fail,E0277
/// fn shareable<T: Sync>() {}
/// shareable::<tqkv::Cache>();
/// ```
///
/// Dropping it frees everything and tells nobody of a failure; [`Cache::close`] does.
pub struct Cache {
    pub(crate) library: Library,
    pub(crate) raw: *mut sys::tq_cache,
    pub(crate) geometry: Geometry,
    id: u64,
    batches: RefCell<HashMap<u64, *mut sys::tq_batch>>,
    batches_made: Cell<u64>,
}

// SAFETY: the library ties nothing to a thread but the text of the last error, which is copied before a call
// here returns. It allows one thread at a time, and Cache is not Sync (raw pointers and RefCell are not).
unsafe impl Send for Cache {}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("raw", &self.raw)
            .field("library", &self.library.name())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Makes a cache and allocates all it will ever need.
    pub fn new(library: &Library, config: &CacheConfig) -> Result<Cache> {
        Cache::new_on(library, config, Stream::NONE)
    }

    /// [`Cache::new`] with the work of setting up on a stream.
    pub fn new_on(library: &Library, config: &CacheConfig, stream: Stream) -> Result<Cache> {
        // SAFETY: no memory of the caller's is involved.
        unsafe { Cache::with_memory(library, config, Memory::default(), stream) }
    }

    /// [`Cache::new_on`] in memory of the caller's.
    ///
    /// # Safety
    /// The callbacks must do what `tq_allocator` in `tqkv.h` says, from any thread, until the cache is gone,
    /// and must not unwind. `pool` must be null or memory of the cache's device, of `pool_bytes`, used by
    /// nothing else until the cache is gone.
    pub unsafe fn with_memory(
        library: &Library,
        config: &CacheConfig,
        memory: Memory,
        stream: Stream,
    ) -> Result<Cache> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let mut raw = ptr::null_mut();
        let status = config.with_raw(|raw_config| {
            raw_config.allocator = memory.allocator.as_ref().map_or(ptr::null(), |allocator| allocator);
            raw_config.pool = memory.pool;
            raw_config.pool_bytes = memory.pool_bytes;
            // SAFETY: the configuration and what it points to outlive the call, which copies them; the caller
            // answers for the memory.
            unsafe { (library.api().tq_cache_create)(raw_config, stream.as_raw(), &mut raw) }
        })?;
        library.status(status)?;
        let mut cache = Cache {
            library: library.clone(),
            raw,
            geometry: Geometry::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            batches: RefCell::new(HashMap::new()),
            batches_made: Cell::new(0),
        };
        let resolved = cache.config()?;
        cache.geometry = Geometry::of(resolved);
        Ok(cache)
    }

    /// Frees the cache and its batches and says whether that worked. If not, what is left of it stays
    /// allocated.
    pub fn close(mut self) -> Result<()> {
        self.destroy()
    }

    fn destroy(&mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        let mut result = Ok(());
        for (_, batch) in self.batches.get_mut().drain() {
            // SAFETY: made by this cache, destroyed once.
            let done = self.library.status(unsafe { (self.library.api().tq_batch_destroy)(batch) });
            result = result.and(done);
        }
        // SAFETY: made by new, destroyed once.
        let done = self.library.status(unsafe { (self.library.api().tq_cache_destroy)(raw) });
        result.and(done)
    }

    /// The library that this cache belongs to.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// The handle in the C interface, for raw calls. It belongs to this object.
    pub fn as_raw(&self) -> *mut sys::tq_cache {
        self.raw
    }

    /// The configuration with every default resolved.
    pub fn config(&self) -> Result<CacheConfig> {
        let mut raw = sys::tq_cache_config::default();
        // SAFETY: the struct carries its size; the arrays it then points to belong to the cache, which
        // outlives the copy.
        unsafe {
            self.status((self.library.api().tq_cache_get_config)(self.raw, &mut raw))?;
            Ok(CacheConfig::from_raw(&raw))
        }
    }

    /// Fixed vectors subtracted before coding, per kv head: `key` is `[num_kv_heads][head_dim]`, `value`
    /// `[num_kv_heads][value_dim]`. Exact for attention; lowers the error where keys spend much of their
    /// length on a constant. Before the first token only.
    pub fn set_centres(&self, layer: i32, key: Option<&[f32]>, value: Option<&[f32]>) -> Result<()> {
        self.geometry.check_centres(layer, key, value)?;
        let pointer = |centre: Option<&[f32]>| centre.map_or(ptr::null(), <[f32]>::as_ptr);
        // SAFETY: long enough, and copied before the call returns.
        self.status(unsafe {
            (self.library.api().tq_cache_set_centres)(self.raw, layer, pointer(key), pointer(value))
        })
    }

    /// A matrix for each kv head's keys, `[num_kv_heads][head_dim][head_dim]` row by row: codes are of
    /// `matrix * (key - centre)`, and queries meet them times the inverse transpose, so that attention is
    /// that of keys as they came. For calibrated rotations; copied. Before the first token only;
    /// [`Status::InvalidArgument`](crate::Status::InvalidArgument) where there is no inverse,
    /// [`Status::NotSupported`](crate::Status::NotSupported) on CUDA, in latent layers, and for keys of 16
    /// bits or grouped codes.
    pub fn set_key_matrix(&self, layer: i32, matrix: &[f32]) -> Result<()> {
        self.geometry.check_key_matrix(layer, matrix)?;
        // SAFETY: long enough, and copied before the call returns.
        self.status(unsafe { (self.library.api().tq_cache_set_key_matrix)(self.raw, layer, matrix.as_ptr()) })
    }

    /// Raises `max_tokens`, up to the configuration's `max_reserve_tokens`, in place: plans stay in force,
    /// and what graphs hold stays where it is. Waits for its memory.
    pub fn reserve(&self, max_tokens: i64) -> Result<()> {
        self.reserve_on(max_tokens, Stream::NONE)
    }

    /// [`Cache::reserve`] in the order of a stream.
    pub fn reserve_on(&self, max_tokens: i64, stream: Stream) -> Result<()> {
        // SAFETY: any number is allowed.
        self.status(unsafe { (self.library.api().tq_cache_reserve)(self.raw, max_tokens, stream.as_raw()) })
    }

    /// What the cache holds, by the host's bookkeeping.
    pub fn memory(&self) -> Result<CacheMemory> {
        let mut raw = sys::tq_cache_memory::default();
        // SAFETY: the struct carries its size.
        self.status(unsafe { (self.library.api().tq_cache_get_memory)(self.raw, &mut raw) })?;
        Ok(CacheMemory::from_raw(&raw))
    }

    /// Hash of all that decides the meaning of page bytes: equal if and only if pages are exchangeable.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut fingerprint = 0;
        // SAFETY: the number outlives the call.
        self.status(unsafe { (self.library.api().tq_cache_fingerprint)(self.raw, &mut fingerprint) })?;
        Ok(fingerprint)
    }

    /// Waits for the work, then returns and clears the asynchronous error, and what was noticed since the
    /// last check.
    pub fn check(&self) -> Result<Noticed> {
        self.check_on(Stream::NONE)
    }

    /// [`Cache::check`], waiting for a stream.
    pub fn check_on(&self, stream: Stream) -> Result<Noticed> {
        let mut flags = 0;
        // SAFETY: the number outlives the call.
        self.status(unsafe { (self.library.api().tq_cache_check)(self.raw, stream.as_raw(), &mut flags) })?;
        Ok(Noticed(flags))
    }

    // ---- Batches ----

    /// Room for one plan of up to `max_batch_sequences` sequences. A cache may have several batches, each
    /// with its own plan.
    pub fn create_batch(&self) -> Result<Batch> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        self.status(unsafe { (self.library.api().tq_batch_create)(self.raw, &mut raw) })?;
        let number = self.batches_made.get() + 1;
        self.batches_made.set(number);
        self.batches.borrow_mut().insert(number, raw);
        Ok(Batch { cache: self.id, number })
    }

    /// Gives a batch back before its cache goes, which would do it as well. A handle of it gives errors from
    /// then on.
    pub fn destroy_batch(&self, batch: Batch) -> Result<()> {
        let raw = self.batch_as_raw(batch)?;
        // SAFETY: made by this cache; forgotten only if it is gone.
        self.status(unsafe { (self.library.api().tq_batch_destroy)(raw) })?;
        self.batches.borrow_mut().remove(&batch.number);
        Ok(())
    }

    /// The batch's handle in the C interface, for raw calls. It belongs to the cache.
    pub fn batch_as_raw(&self, batch: Batch) -> Result<*mut sys::tq_batch> {
        if batch.cache != self.id {
            return Err(Error::argument("batch: belongs to another cache"));
        }
        let raw = self.batches.borrow().get(&batch.number).copied();
        raw.ok_or_else(|| Error::argument("batch: was destroyed"))
    }

    /// Rows of the batch's plan: how long the slices of [`Cache::append`] and [`Cache::attend`] must be.
    pub fn batch_rows(&self, batch: Batch) -> Result<BatchRows> {
        let raw = self.batch_as_raw(batch)?;
        let (mut rows, mut in_force) = (BatchRows::default(), 0);
        let (new_tokens, query_tokens) = (&mut rows.new_tokens, &mut rows.query_tokens);
        // SAFETY: the batch belongs to this cache; the numbers outlive the call.
        self.status(unsafe {
            (self.library.api().tq_batch_rows)(raw, new_tokens, query_tokens, &mut in_force)
        })?;
        rows.in_force = in_force != 0;
        Ok(rows)
    }

    /// Plans one step: reserves room for the new tokens of these sequences in all layers; their lengths grow
    /// at once. [`Cache::append`] and [`Cache::attend`] of every layer follow the plan, until the next plan,
    /// truncate or free of one of its sequences.
    ///
    /// If the pool or a limit is used up ([`crate::Status::Capacity`]), nothing has changed.
    pub fn plan(&self, batch: Batch, steps: &[Step]) -> Result<()> {
        self.plan_on(batch, steps, Stream::NONE)
    }

    /// [`Cache::plan`] in the order of a stream.
    pub fn plan_on(&self, batch: Batch, steps: &[Step], stream: Stream) -> Result<()> {
        let count = tensor::count("steps", steps.len())?;
        let ids: Vec<sys::tq_sequence> = steps.iter().map(|step| step.sequence.0).collect();
        let new_tokens: Vec<i64> = steps.iter().map(|step| step.new_tokens).collect();
        let query_tokens: Vec<i64> = steps.iter().map(|step| step.query_tokens).collect();
        let raw = self.batch_as_raw(batch)?;
        let plan = self.library.api().tq_batch_plan;
        // SAFETY: three arrays of `count` entries, copied before the call returns.
        self.status(unsafe {
            plan(raw, count, ids.as_ptr(), new_tokens.as_ptr(), query_tokens.as_ptr(), stream.as_raw())
        })
    }

    /// Bytes of workspace that [`Cache::attend_raw`] needs: enough for every plan that the cache admits.
    pub fn attend_workspace_bytes(&self) -> Result<usize> {
        let mut bytes = 0;
        // SAFETY: the number outlives the call.
        self.status(unsafe { (self.library.api().tq_attend_workspace_bytes)(self.raw, &mut bytes) })?;
        Ok(bytes)
    }

    pub(crate) fn status(&self, status: sys::tq_status) -> Result<()> {
        self.library.status(status)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Nobody to tell: close() is for those who want to know.
        let _ = self.destroy();
    }
}
