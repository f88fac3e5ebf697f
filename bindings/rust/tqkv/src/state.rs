// SPDX-License-Identifier: Apache-2.0
//! State that travels: parts of a sequence as bytes, and sequences in files and streams (`tqkv.h`,
//! `FORMAT.md` section 6).

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::state_file::replace_file;
use crate::state_io;
use crate::sys;
use crate::types::{DeviceType, Dtype, Noticed, Sequence, Stream};
use core::ffi::c_void;
use core::ops::{Deref, DerefMut, Range};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// Which part of a sequence: numbers of the whole model; a range that is `None` stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Layers.
    pub layers: Option<Range<i32>>,
    /// kv heads of each layer.
    pub kv_heads: Option<Range<i32>>,
    /// Tokens.
    pub tokens: Option<Range<i64>>,
}

impl Part {
    /// One layer, all its kv heads and tokens: what transfers by layer go by.
    pub fn layer(layer: i32) -> Part {
        Part { layers: Some(layer..layer.saturating_add(1)), ..Part::default() }
    }
}

/// What a part is: plain numbers, which travel beside its bytes. The fields are those of `tq_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Number in the whole model.
    pub first_layer: i32,
    /// Layers.
    pub num_layers: i32,
    /// Number in the whole model.
    pub first_kv_head: i32,
    /// 0: all of each layer, where layers have different ones.
    pub num_kv_heads: i32,
    /// Type of the exact copies; [`Dtype::DEFAULT`] if the part has none.
    pub io_dtype: Dtype,
    /// Position in the sequence.
    pub first_token: i64,
    /// Tokens.
    pub num_tokens: i64,
    /// Tokens of the part before this position have exact copies,
    pub exact_sinks: i64,
    /// and those from this one on.
    pub exact_first: i64,
    /// Of layers with a sliding window: tokens in front of the window's.
    pub rollback_tokens: i64,
    /// What was noticed in the sequence.
    pub flags: Noticed,
    /// Hash of what the bytes mean.
    pub identity: u64,
    /// Bytes of the part in memory.
    pub bytes: i64,
    /// Hashes by which an error names the field that differs; zeros: not known.
    pub fields: [u32; 16],
}

impl State {
    fn from_raw(raw: &sys::tq_state) -> State {
        State {
            first_layer: raw.first_layer,
            num_layers: raw.num_layers,
            first_kv_head: raw.first_kv_head,
            num_kv_heads: raw.num_kv_heads,
            io_dtype: Dtype(raw.io_dtype),
            first_token: raw.first_token,
            num_tokens: raw.num_tokens,
            exact_sinks: raw.exact_sinks,
            exact_first: raw.exact_first,
            rollback_tokens: raw.rollback_tokens,
            flags: Noticed(raw.flags),
            identity: raw.identity,
            bytes: raw.bytes,
            fields: raw.fields,
        }
    }

    fn to_raw(self) -> sys::tq_state {
        sys::tq_state {
            first_layer: self.first_layer,
            num_layers: self.num_layers,
            first_kv_head: self.first_kv_head,
            num_kv_heads: self.num_kv_heads,
            io_dtype: self.io_dtype.0,
            first_token: self.first_token,
            num_tokens: self.num_tokens,
            exact_sinks: self.exact_sinks,
            exact_first: self.exact_first,
            rollback_tokens: self.rollback_tokens,
            flags: self.flags.0,
            identity: self.identity,
            bytes: self.bytes,
            fields: self.fields,
            ..Default::default()
        }
    }
}

/// Bytes that begin at a multiple of 16, as parts of sequences must.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateBytes {
    words: Vec<u128>,
    len: usize,
}

impl StateBytes {
    /// Zeros.
    pub fn new(len: usize) -> StateBytes {
        StateBytes { words: vec![0; len.div_ceil(16)], len }
    }
}

impl From<&[u8]> for StateBytes {
    fn from(bytes: &[u8]) -> StateBytes {
        let mut own = StateBytes::new(bytes.len());
        own.copy_from_slice(bytes);
        own
    }
}

impl Deref for StateBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the words have room for len bytes, and any bytes are a u128's.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for StateBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len) }
    }
}

/// First number and count of a range as the library takes them: a count of 0 stands for all.
fn first_and_count<T>(name: &str, range: &Option<Range<T>>) -> Result<(T, T)>
where
    T: Copy + Default + PartialOrd + core::ops::Sub<Output = T> + core::fmt::Debug,
{
    match range {
        None => Ok((T::default(), T::default())),
        Some(range) if range.start < range.end && range.start >= T::default() => {
            Ok((range.start, range.end - range.start))
        }
        Some(range) => Err(Error::argument(format!("{name} = {range:?}: must be a range that is not empty"))),
    }
}

/// A keyed MAC of the caller's, such as an HMAC: it takes in bytes, and gives the tag of all of them at last.
pub trait Mac {
    /// Bytes of the tag, 16 to 64.
    fn tag_bytes(&self) -> usize;
    /// Takes in bytes, in order.
    fn update(&mut self, bytes: &[u8]);
    /// Writes the tag, as long as `tag_bytes` says.
    fn tag(&mut self, tag: &mut [u8]);
}

impl Cache {
    /// What [`Cache::export_sequence`] would give.
    pub fn describe_sequence(&self, sequence: Sequence, part: &Part) -> Result<State> {
        let mut raw = sys::tq_state::default();
        (raw.first_layer, raw.num_layers) = first_and_count("layers", &part.layers)?;
        (raw.first_kv_head, raw.num_kv_heads) = first_and_count("kv_heads", &part.kv_heads)?;
        (raw.first_token, raw.num_tokens) = first_and_count("tokens", &part.tokens)?;
        // SAFETY: any id is allowed; the struct carries its size.
        self.status(unsafe { (self.library.api().tq_sequence_describe)(self.raw, sequence.0, &mut raw) })?;
        Ok(State::from_raw(&raw))
    }

    /// A part of the sequence as bytes on the host. Equal states give equal bytes, whatever the page size and
    /// device.
    pub fn export_sequence(&self, sequence: Sequence, part: &Part) -> Result<(State, StateBytes)> {
        let state = self.describe_sequence(sequence, part)?;
        let mut memory = StateBytes::new(state.bytes as usize);
        self.export_sequence_to(sequence, &state, &mut memory, Stream::NONE)?;
        Ok((state, memory))
    }

    /// [`Cache::export_sequence`] of a part that was described, into memory of the caller's, which begins at
    /// a multiple of 16. Waits for the stream.
    pub fn export_sequence_to(
        &self,
        sequence: Sequence,
        state: &State,
        memory: &mut [u8],
        stream: Stream,
    ) -> Result<()> {
        if self.geometry.device_type == DeviceType::CPU {
            // SAFETY: the memory has its length, and a CPU cache is done with it when the call returns.
            return unsafe {
                self.export_sequence_raw(sequence, state, memory.as_mut_ptr().cast(), memory.len(), stream)
            };
        }
        // The slice may be pinned, and then the call would not wait: by way of memory that is not.
        let mut own = StateBytes::new(memory.len());
        let (pointer, len) = (own.as_mut_ptr().cast(), own.len());
        // SAFETY: into such memory the call waits.
        unsafe { self.export_sequence_raw(sequence, state, pointer, len, stream) }?;
        memory.copy_from_slice(&own);
        Ok(())
    }

    /// [`Cache::export_sequence_to`] on a pointer, for CUDA caches: into memory of their device, and pinned
    /// memory of the host, it only enqueues.
    ///
    /// # Safety
    /// `memory` must have `bytes` bytes, which nothing else uses until `stream` has passed this call (CPU:
    /// until it returns). The stream's CUDA context must be usable from this thread.
    pub unsafe fn export_sequence_raw(
        &self,
        sequence: Sequence,
        state: &State,
        memory: *mut c_void,
        bytes: usize,
        stream: Stream,
    ) -> Result<()> {
        let export = self.library.api().tq_sequence_export;
        // SAFETY: the caller's promise; the struct carries its size.
        self.status(unsafe { export(self.raw, sequence.0, &state.to_raw(), memory, bytes, stream.as_raw()) })
    }

    /// Puts a part behind the tokens that its layers hold. By layer: the sequence grows with the first part,
    /// and each layer holds the tokens once its own part has come. The bytes, which begin at a multiple of
    /// 16, are trusted.
    pub fn import_sequence(&self, sequence: Sequence, state: &State, memory: &[u8]) -> Result<()> {
        self.import_sequence_on(sequence, state, memory, Stream::NONE)
    }

    /// [`Cache::import_sequence`] in the order of a stream.
    pub fn import_sequence_on(
        &self,
        sequence: Sequence,
        state: &State,
        memory: &[u8],
        stream: Stream,
    ) -> Result<()> {
        let own;
        let memory = match self.geometry.device_type {
            DeviceType::CPU => memory,
            _ => {
                own = StateBytes::from(memory); // as in export_sequence_to
                &own
            }
        };
        // SAFETY: the memory has its length; a CPU cache is done with it when the call returns, and from
        // memory that is not pinned the call waits.
        unsafe { self.import_sequence_raw(sequence, state, memory.as_ptr().cast(), memory.len(), stream) }
    }

    /// [`Cache::import_sequence_on`] on a pointer, for CUDA caches: from memory of their device, and pinned
    /// memory of the host, it only enqueues.
    ///
    /// # Safety
    /// `memory` must have `bytes` bytes, which nobody writes to until `stream` has passed this call (CPU:
    /// until it returns). The stream's CUDA context must be usable from this thread.
    pub unsafe fn import_sequence_raw(
        &self,
        sequence: Sequence,
        state: &State,
        memory: *const c_void,
        bytes: usize,
        stream: Stream,
    ) -> Result<()> {
        let import = self.library.api().tq_sequence_import;
        // SAFETY: the caller's promise; the struct carries its size.
        self.status(unsafe { import(self.raw, sequence.0, &state.to_raw(), memory, bytes, stream.as_raw()) })
    }

    /// Writes the sequence, all layers and tokens, with checksums. A failure of `writer` is the error's text,
    /// with [`crate::Status::Io`].
    pub fn save_sequence(&self, sequence: Sequence, writer: &mut dyn Write) -> Result<()> {
        self.save_sequence_with(sequence, writer, None)
    }

    /// [`Cache::save_sequence`] with a MAC at the end, by which [`Cache::load_sequence_with`] knows who
    /// wrote.
    pub fn save_sequence_with(
        &self,
        sequence: Sequence,
        writer: &mut dyn Write,
        mac: Option<&mut dyn Mac>,
    ) -> Result<()> {
        state_io::write_through(writer, mac, |io| {
            // SAFETY: any id is allowed; the callbacks of io know what it points to.
            self.status(unsafe {
                (self.library.api().tq_sequence_save)(self.raw, sequence.0, io, Stream::NONE.as_raw())
            })
        })
    }

    /// A new sequence from what [`Cache::save_sequence`] wrote; nothing behind it is read.
    pub fn load_sequence(&self, reader: &mut dyn Read) -> Result<Sequence> {
        self.load_sequence_with(reader, None)
    }

    /// [`Cache::load_sequence`] of what was saved with this MAC alone; anything else is
    /// [`crate::Status::CorruptData`].
    pub fn load_sequence_with(&self, reader: &mut dyn Read, mac: Option<&mut dyn Mac>) -> Result<Sequence> {
        let mut id = 0;
        state_io::read_through(reader, mac, |io| {
            // SAFETY: as above; the number outlives the call.
            self.status(unsafe {
                (self.library.api().tq_sequence_load)(self.raw, io, Stream::NONE.as_raw(), &mut id)
            })
        })?;
        Ok(Sequence(id))
    }

    /// [`Cache::save_sequence`] to a file, which is replaced as a whole: killed at any moment, the old file
    /// or the new one is there.
    pub fn save_sequence_file(&self, sequence: Sequence, path: impl AsRef<Path>) -> Result<()> {
        replace_file(path.as_ref(), |file| self.save_sequence(sequence, file))
    }

    /// [`Cache::load_sequence`] from a file.
    pub fn load_sequence_file(&self, path: impl AsRef<Path>) -> Result<Sequence> {
        let file = File::open(path.as_ref()).map_err(|error| Error::file(path.as_ref(), &error))?;
        self.load_sequence(&mut BufReader::new(file))
    }
}
