// SPDX-License-Identifier: Apache-2.0
//! Blocks of a layer in memory of the caller's, and how long that must be.

use crate::error::{Error, Result};
use crate::paged::PagedCodec;
use crate::sys;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// How the blocks of a layer lie. A number, as the library's enumerations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageOrder(pub i32);

impl PageOrder {
    /// `[blocks][heads][bytes]`.
    pub const BLOCKS_FIRST: PageOrder = PageOrder(sys::TQ_PAGES_BLOCKS_FIRST);
    /// `[heads][blocks][bytes]`.
    pub const HEADS_FIRST: PageOrder = PageOrder(sys::TQ_PAGES_HEADS_FIRST);
}

/// Sizes of blocks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageLayout {
    /// Of the memory and of both strides.
    pub alignment: i32,
    /// Of a block, all kv heads.
    pub block_bytes: i64,
    /// Of one of its kv heads.
    pub block_head_bytes: i64,
    /// A token's share of `block_bytes`.
    pub token_bytes: i64,
    /// From one block to the next.
    pub block_stride: i64,
    /// From one kv head to the next.
    pub head_stride: i64,
    /// Of all blocks.
    pub total_bytes: i64,
}

impl PageLayout {
    pub(crate) fn from_raw(raw: &sys::tq_page_layout) -> PageLayout {
        PageLayout {
            alignment: raw.alignment,
            block_bytes: raw.block_bytes,
            block_head_bytes: raw.block_head_bytes,
            token_bytes: raw.token_bytes,
            block_stride: raw.block_stride,
            head_stride: raw.head_stride,
            total_bytes: raw.total_bytes,
        }
    }
}

/// Zeroed bytes for blocks, aligned as they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageBytes {
    lines: Vec<Line>,
    len: usize,
}

/// As much as the library's alignment of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Deref for PageBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the lines have room for len bytes.
        unsafe { core::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for PageBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Blocks of one layer in memory of the caller's. Made by [`PagedCodec::pages`].
#[derive(Debug)]
pub struct Pages<'m> {
    raw: sys::tq_pages,
    order: PageOrder,
    len: Option<usize>, // None: somebody answers for it
    memory: PhantomData<&'m mut [u8]>,
}

// SAFETY: the memory is borrowed as a slice of bytes would be.
unsafe impl Send for Pages<'_> {}
// SAFETY: as above; what writes takes it mutably.
unsafe impl Sync for Pages<'_> {}

impl Pages<'_> {
    /// Blocks in any memory of the codec's device, with any strides.
    ///
    /// # Safety
    /// The blocks that `raw` describes must be memory as large as every layer needs that they are used with,
    /// and nothing else may use it as long as this value lives.
    pub unsafe fn from_raw(raw: sys::tq_pages) -> Pages<'static> {
        Pages { raw, order: PageOrder::BLOCKS_FIRST, len: None, memory: PhantomData }
    }

    /// Blocks; their numbers run below it.
    pub fn num_blocks(&self) -> i64 {
        self.raw.num_blocks
    }

    pub(crate) fn raw(&self) -> &sys::tq_pages {
        &self.raw
    }

    pub(crate) fn order(&self) -> PageOrder {
        self.order
    }

    /// The memory is as long as a layer of this layout needs, and lies as it does.
    pub(crate) fn check(&self, wanted: &PageLayout) -> Result<()> {
        let Some(len) = self.len else { return Ok(()) };
        let same = (self.raw.block_stride, self.raw.head_stride) == (wanted.block_stride, wanted.head_stride);
        if same && i64::try_from(len).is_ok_and(|len| len >= wanted.total_bytes) {
            return Ok(());
        }
        Err(Error::argument(format!(
            "pages: {len} bytes with strides {} and {}, the layer needs {} with {} and {}",
            self.raw.block_stride,
            self.raw.head_stride,
            wanted.total_bytes,
            wanted.block_stride,
            wanted.head_stride
        )))
    }
}

impl PagedCodec {
    /// Memory for so many blocks of a layer, of zeros.
    pub fn allocate(
        &self,
        layer: i32,
        num_blocks: i64,
        block_size: i32,
        order: PageOrder,
    ) -> Result<PageBytes> {
        let layout = self.page_layout(layer, block_size, num_blocks, order)?;
        let len = usize::try_from(layout.total_bytes)
            .map_err(|_| Error::argument(format!("num_blocks = {num_blocks}: too many")))?;
        Ok(PageBytes { lines: vec![Line([0; 64]); len.div_ceil(64)], len })
    }

    /// Blocks of a layer in memory of the caller's, as many as are whole in it. It begins at a multiple of
    /// the layout's alignment, as [`PagedCodec::allocate`]'s does.
    pub fn pages<'m>(
        &self,
        layer: i32,
        memory: &'m mut [u8],
        block_size: i32,
        order: PageOrder,
    ) -> Result<Pages<'m>> {
        let one = self.page_layout(layer, block_size, 0, order)?;
        let num_blocks = (memory.len() as i64).checked_div(one.block_bytes).unwrap_or(0);
        let layout = self.page_layout(layer, block_size, num_blocks, order)?;
        let raw = sys::tq_pages {
            block_size,
            base: memory.as_mut_ptr().cast(),
            num_blocks,
            block_stride: layout.block_stride,
            head_stride: layout.head_stride,
            ..Default::default()
        };
        Ok(Pages { raw, order, len: Some(memory.len()), memory: PhantomData })
    }
}
