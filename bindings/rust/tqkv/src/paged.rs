// SPDX-License-Identifier: Apache-2.0
//! Codes in pages that an engine owns (block tables, slot mappings), and attention on them: section 8 of
//! `tqkv.h`, on the CPU.

use crate::config::CacheConfig;
use crate::error::Result;
use crate::geometry::Geometry;
use crate::library::Library;
use crate::pages::{PageLayout, PageOrder, Pages};
use crate::sys;
use crate::types::{Element, Layout, Noticed, Stream};
use core::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Shapes, codes, rotations and centres of a model's layers; neither pages nor sequences.
///
/// Its calls may run in several threads: steps with workspaces of their own run side by side, and
/// [`PagedCodec::set_centres`] and [`PagedCodec::check`] wait until nothing runs.
///
/// ```no_run
/// # fn main() -> tqkv::Result<()> {
/// # let (k, v, q, mut out) = ([0f32; 128], [0f32; 128], [0f32; 128], [0f32; 128]);
/// let library = tqkv::Library::open()?;
/// let mut config = tqkv::CacheConfig::default();
/// (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) = (1, 2, 1, 64);
/// (config.io_dtype, config.key_bits, config.value_bits) = (tqkv::Dtype::F32, 4, 4);
/// let codec = tqkv::PagedCodec::new(&library, &config)?;
/// let mut memory = codec.allocate(0, 16, 0, tqkv::PageOrder::BLOCKS_FIRST)?;
/// let mut pages = codec.pages(0, &mut memory, 0, tqkv::PageOrder::BLOCKS_FIRST)?;
/// let mut step = tqkv::PagedStep::new();
/// codec.plan(&mut step, &tqkv::StepArrays {
///     slot_mapping: Some(&[64, 65]), // two tokens, to the first places of block 1
///     block_table: &[1],
///     seq_lens: &[2],
///     query_start_loc: &[0, 2],
///     ..Default::default()
/// })?;
/// codec.append(&mut step, 0, &mut pages, &k, &v)?;
/// codec.attend(&mut step, 0, &pages, &q, &mut out)?;
/// # Ok(())
/// # }
/// ```
pub struct PagedCodec {
    pub(crate) library: Library,
    pub(crate) geometry: Geometry,
    pub(crate) page_size: i32,
    pub(crate) id: u64,
    raw: RwLock<Handle>,
}

pub(crate) struct Handle(pub *mut sys::tq_codec);

// SAFETY: the library ties nothing to a thread but the text of the last error, which is copied before a call
// here returns. What must run alone takes the lock for writing.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl std::fmt::Debug for PagedCodec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedCodec").field("library", &self.library.name()).finish_non_exhaustive()
    }
}

impl PagedCodec {
    /// A codec of this configuration: `page_size` is the block size where none is given; what says how many
    /// tokens or sequences there are must be 0, and so must windows, sinks and rollback.
    pub fn new(library: &Library, config: &CacheConfig) -> Result<PagedCodec> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let mut raw = ptr::null_mut();
        let status = config.with_raw(|config| {
            // SAFETY: the configuration and what it points to outlive the call, which copies them.
            unsafe { (library.api().tq_codec_create)(config, Stream::NONE.as_raw(), &mut raw) }
        })?;
        library.status(status)?;
        let mut codec = PagedCodec {
            library: library.clone(),
            geometry: Geometry::default(),
            page_size: 0,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            raw: RwLock::new(Handle(raw)),
        };
        let resolved = codec.config()?;
        codec.page_size = resolved.page_size;
        codec.geometry = Geometry::of(resolved);
        Ok(codec)
    }

    /// Frees the codec and says whether that worked. Pages are the caller's and stay.
    pub fn close(mut self) -> Result<()> {
        self.destroy()
    }

    fn destroy(&mut self) -> Result<()> {
        let handle = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
        let raw = std::mem::replace(&mut handle.0, ptr::null_mut());
        // SAFETY: made by new, destroyed once; null is allowed.
        self.library.status(unsafe { (self.library.api().tq_codec_destroy)(raw) })
    }

    pub(crate) fn shared(&self) -> RwLockReadGuard<'_, Handle> {
        self.raw.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the codec's handle in the C interface while nothing else runs on it: for raw calls.
    pub fn with_raw<R>(&self, f: impl FnOnce(*mut sys::tq_codec) -> R) -> R {
        f(self.raw.write().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The library that this codec belongs to.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// The configuration with every default resolved; what must be 0 is.
    pub fn config(&self) -> Result<CacheConfig> {
        let mut raw = sys::tq_cache_config::default();
        // SAFETY: the struct carries its size; the arrays it then points to belong to the codec, which
        // outlives the copy.
        unsafe {
            self.library.status((self.library.api().tq_codec_get_config)(self.shared().0, &mut raw))?;
            Ok(CacheConfig::from_raw(&raw))
        }
    }

    /// Equal to that of a cache of the same layers and page_size, whose pages hold the same bytes.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut fingerprint = 0;
        // SAFETY: the number outlives the call.
        self.library.status(unsafe {
            (self.library.api().tq_codec_fingerprint)(self.shared().0, &mut fingerprint)
        })?;
        Ok(fingerprint)
    }

    /// What was noticed since the last check, which is cleared.
    pub fn check(&self) -> Result<Noticed> {
        let mut flags = 0;
        let check = self.library.api().tq_codec_check;
        // SAFETY: the number outlives the call, and nothing else runs.
        let status = self.with_raw(|raw| unsafe { check(raw, Stream::NONE.as_raw(), &mut flags) });
        self.library.status(status)?;
        Ok(Noticed(flags))
    }

    /// As [`crate::Cache::set_centres`]. Blocks that were written before mean something else afterwards.
    pub fn set_centres(&self, layer: i32, key: Option<&[f32]>, value: Option<&[f32]>) -> Result<()> {
        self.geometry.check_centres(layer, key, value)?;
        let pointer = |centre: Option<&[f32]>| centre.map_or(ptr::null(), <[f32]>::as_ptr);
        let set = self.library.api().tq_codec_set_centres;
        // SAFETY: long enough, copied before the call returns; nothing else runs.
        let status = self.with_raw(|raw| unsafe { set(raw, layer, pointer(key), pointer(value)) });
        self.library.status(status)
    }

    /// Sizes of `num_blocks` blocks of a layer; `block_size` 0: the codec's `page_size`.
    pub fn page_layout(
        &self,
        layer: i32,
        block_size: i32,
        num_blocks: i64,
        order: PageOrder,
    ) -> Result<PageLayout> {
        let mut raw = sys::tq_page_layout::default();
        let layout = self.library.api().tq_codec_page_layout;
        // SAFETY: the struct carries its size.
        let status = unsafe { layout(self.shared().0, layer, block_size, num_blocks, order.0, &mut raw) };
        self.library.status(status)?;
        Ok(PageLayout::from_raw(&raw))
    }

    /// A layer's pages must fit another layer's memory as well, if that is what they are used for.
    pub(crate) fn checked<'p>(&self, layer: i32, pages: &'p Pages<'_>) -> Result<&'p sys::tq_pages> {
        let raw = pages.raw();
        let wanted = self.page_layout(layer, raw.block_size, raw.num_blocks, pages.order())?;
        pages.check(&wanted)?;
        Ok(raw)
    }

    /// Decoded keys and values of slots; -1: a row of zeros. `k` is `[slots][num_kv_heads][head_dim]`, `v`
    /// likewise with `value_dim`.
    pub fn read<T: Element>(
        &self,
        layer: i32,
        pages: &Pages<'_>,
        slots: &[i64],
        k: Option<&mut [T]>,
        v: Option<&mut [T]>,
    ) -> Result<()> {
        self.geometry.check_host::<T>("k and v")?;
        let (count, lengths) =
            (slots.len() as i64, (k.as_ref().map(|k| k.len()), v.as_ref().map(|v| v.len())));
        self.geometry.check_kv(layer, lengths.0, lengths.1, count, Layout::DENSE)?;
        let pages = self.checked(layer, pages)?;
        let pointer = |slice: Option<&mut [T]>| slice.map_or(ptr::null_mut(), |s| s.as_mut_ptr().cast());
        let (layout, read) = (Layout::DENSE.to_raw(), self.library.api().tq_paged_read);
        // SAFETY: memory of a CPU codec, as long as the slots need, pages as long as they say.
        self.library.status(unsafe {
            let (slots, codec) = (slots.as_ptr(), self.shared());
            read(codec.0, layer, pages, slots, count, pointer(k), pointer(v), &layout, Stream::NONE.as_raw())
        })
    }

    /// Copies blocks: `pairs[i][0]` of `source` to `pairs[i][1]` of `target`. A pair with a -1 is left out.
    pub fn copy(
        &self,
        layer: i32,
        source: &Pages<'_>,
        target: &mut Pages<'_>,
        pairs: &[[i64; 2]],
    ) -> Result<()> {
        self.copy_between(layer, self.checked(layer, source)?, self.checked(layer, target)?, pairs)
    }

    /// [`PagedCodec::copy`] inside of one layer's pages. No block may be a target and in another pair.
    pub fn copy_within(&self, layer: i32, pages: &mut Pages<'_>, pairs: &[[i64; 2]]) -> Result<()> {
        let pages = self.checked(layer, pages)?;
        self.copy_between(layer, pages, pages, pairs)
    }

    fn copy_between(
        &self,
        layer: i32,
        source: &sys::tq_pages,
        target: &sys::tq_pages,
        pairs: &[[i64; 2]],
    ) -> Result<()> {
        let (count, copy) = (pairs.len() as i64, self.library.api().tq_paged_copy);
        // SAFETY: pages as long as they say; the pairs are read in the call.
        self.library.status(unsafe {
            copy(self.shared().0, layer, source, target, pairs.as_ptr().cast(), count, Stream::NONE.as_raw())
        })
    }
}

impl Drop for PagedCodec {
    fn drop(&mut self) {
        // Nobody to tell: close() is for those who want to know.
        let _ = self.destroy();
    }
}
