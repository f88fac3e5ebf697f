// SPDX-License-Identifier: Apache-2.0
//! Sequences that go from one cache to another.
use crate::cache::Cache;
use crate::error::Result;
use crate::types::{Sequence, Stream};

impl Cache {
    /// A new sequence of `target` (which may be this cache) with the same tokens. Codes are moved as they
    /// are, so it attends to the same bits however often it moves; page sizes, windows and capacities may
    /// differ, and one cache may be the CPU's.
    pub fn copy_sequence(&self, source: Sequence, target: &Cache) -> Result<Sequence> {
        self.copy_sequence_on(source, target, Stream::NONE)
    }

    /// [`Cache::copy_sequence`] in the order of a stream of the CUDA cache.
    pub fn copy_sequence_on(&self, source: Sequence, target: &Cache, stream: Stream) -> Result<Sequence> {
        let mut id = 0;
        // SAFETY: any id is allowed; both caches are alive, and the number outlives the call.
        self.status(unsafe {
            (self.library.api().tq_sequence_copy)(self.raw, source.0, target.raw, stream.as_raw(), &mut id)
        })?;
        Ok(Sequence(id))
    }
}
