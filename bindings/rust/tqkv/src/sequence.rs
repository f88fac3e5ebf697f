// SPDX-License-Identifier: Apache-2.0
//! The cache's calls on sequences: they live, fork, lose tokens and end.

use crate::cache::Cache;
use crate::error::Result;
use crate::types::{Noticed, Sequence, Stream};

impl Cache {
    /// A new, empty sequence.
    pub fn create_sequence(&self) -> Result<Sequence> {
        let mut id = 0;
        // SAFETY: the number outlives the call.
        self.status(unsafe { (self.library.api().tq_sequence_create)(self.raw, &mut id) })?;
        Ok(Sequence(id))
    }

    /// Gives the sequence's pages back; pages shared with a fork stay. A batch that has it in its plan must
    /// be planned again.
    pub fn free_sequence(&self, sequence: Sequence) -> Result<()> {
        self.free_sequence_on(sequence, Stream::NONE)
    }

    /// [`Cache::free_sequence`] in the order of a stream.
    pub fn free_sequence_on(&self, sequence: Sequence, stream: Stream) -> Result<()> {
        // SAFETY: any id is allowed.
        self.status(unsafe { (self.library.api().tq_sequence_free)(self.raw, sequence.0, stream.as_raw()) })
    }

    /// A new sequence with the same tokens: pages are shared, and copied when one side writes into a shared
    /// page.
    ///
    /// Fork after a step's appends: layers into which a plan in force has not been appended yet refuse it
    /// afterwards.
    pub fn fork_sequence(&self, source: Sequence) -> Result<Sequence> {
        self.fork_sequence_on(source, Stream::NONE)
    }

    /// [`Cache::fork_sequence`] in the order of a stream.
    pub fn fork_sequence_on(&self, source: Sequence, stream: Stream) -> Result<Sequence> {
        let mut id = 0;
        // SAFETY: any id is allowed; the number outlives the call.
        self.status(unsafe {
            (self.library.api().tq_sequence_fork)(self.raw, source.0, stream.as_raw(), &mut id)
        })?;
        Ok(Sequence(id))
    }

    /// Shortens the sequence to `length` tokens, as if the later ones had never been appended (the exact
    /// window included, as long as no more than `rollback_tokens` go).
    pub fn truncate_sequence(&self, sequence: Sequence, length: i64) -> Result<()> {
        self.truncate_sequence_on(sequence, length, Stream::NONE)
    }

    /// [`Cache::truncate_sequence`] in the order of a stream.
    pub fn truncate_sequence_on(&self, sequence: Sequence, length: i64, stream: Stream) -> Result<()> {
        // SAFETY: any id and length are allowed.
        self.status(unsafe {
            (self.library.api().tq_sequence_truncate)(self.raw, sequence.0, length, stream.as_raw())
        })
    }

    /// Gives up the exact copies of the window, not those of the sinks: queries to come read these tokens as
    /// codes.
    pub fn flush_sequence(&self, sequence: Sequence) -> Result<()> {
        self.flush_sequence_on(sequence, Stream::NONE)
    }

    /// [`Cache::flush_sequence`] in the order of a stream.
    pub fn flush_sequence_on(&self, sequence: Sequence, stream: Stream) -> Result<()> {
        // SAFETY: any id is allowed.
        self.status(unsafe { (self.library.api().tq_sequence_flush)(self.raw, sequence.0, stream.as_raw()) })
    }

    /// Takes tokens `first .. first + count` out; later ones move down, bit for bit. Positions for rotary
    /// embeddings stay the caller's business: a key stays rotated for the position that it was appended at.
    pub fn remove_tokens(&self, sequence: Sequence, first: i64, count: i64) -> Result<()> {
        self.remove_tokens_on(sequence, first, count, Stream::NONE)
    }

    /// [`Cache::remove_tokens`] in the order of a stream.
    pub fn remove_tokens_on(&self, sequence: Sequence, first: i64, count: i64, stream: Stream) -> Result<()> {
        // SAFETY: any id and range are allowed.
        self.status(unsafe {
            (self.library.api().tq_sequence_remove)(self.raw, sequence.0, first, count, stream.as_raw())
        })
    }

    /// Keeps the tokens at these rising positions alone; as [`Cache::remove_tokens`] otherwise.
    pub fn select_tokens(&self, sequence: Sequence, positions: &[i64]) -> Result<()> {
        self.select_tokens_on(sequence, positions, Stream::NONE)
    }

    /// [`Cache::select_tokens`] in the order of a stream.
    pub fn select_tokens_on(&self, sequence: Sequence, positions: &[i64], stream: Stream) -> Result<()> {
        // SAFETY: the positions are copied in the call; any are allowed.
        self.status(unsafe {
            (self.library.api().tq_sequence_select)(
                self.raw,
                sequence.0,
                positions.as_ptr(),
                positions.len() as i64,
                stream.as_raw(),
            )
        })
    }

    /// Tokens, planned ones included.
    pub fn sequence_length(&self, sequence: Sequence) -> Result<i64> {
        let mut length = 0;
        // SAFETY: any id is allowed; the number outlives the call.
        self.status(unsafe { (self.library.api().tq_sequence_length)(self.raw, sequence.0, &mut length) })?;
        Ok(length)
    }

    /// What was noticed in this sequence since it was created. No synchronisation: on a CUDA cache it may be
    /// early.
    pub fn sequence_flags(&self, sequence: Sequence) -> Result<Noticed> {
        let mut flags = 0;
        // SAFETY: any id is allowed; the number outlives the call.
        self.status(unsafe { (self.library.api().tq_sequence_flags)(self.raw, sequence.0, &mut flags) })?;
        Ok(Noticed(flags))
    }
}
