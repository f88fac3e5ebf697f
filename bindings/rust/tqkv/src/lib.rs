// SPDX-License-Identifier: Apache-2.0
//! A KV cache for LLM inference held as 2-8 bit TurboQuant codes ([arXiv
//! 2504.19874](https://arxiv.org/abs/2504.19874)), with attention straight on the codes, on the CPU or a CUDA
//! device.
//!
//! This crate is a thin, safe layer over the shared library tqkv: what the C header says holds here, and
//! there is nothing here that is not there. The library is found when the program runs ([`Library::open`]),
//! or linked with the feature `link`.
//!
//! ```no_run
//! use tqkv::{Cache, CacheConfig, Dtype, Library, Step};
//!
//! # fn main() -> tqkv::Result<()> {
//! let library = Library::open()?;
//! let mut config = CacheConfig::default();
//! (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) = (1, 4, 2, 64);
//! (config.io_dtype, config.key_bits, config.value_bits, config.max_tokens) = (Dtype::F32, 4, 4, 1024);
//! let cache = Cache::new(&library, &config)?;
//! let (batch, sequence) = (cache.create_batch()?, cache.create_sequence()?);
//!
//! let (k, v, q) = (vec![0.5f32; 2 * 64], vec![0.25f32; 2 * 64], vec![1.0f32; 4 * 64]);
//! let mut out = vec![0.0f32; 4 * 64];
//! for _token in 0..10 {
//!     cache.plan(batch, &[Step::new(sequence, 1)])?; // once a step
//!     for layer in 0..config.num_layers {
//!         cache.append(layer, batch, &k, &v)?;
//!         cache.attend(layer, batch, &q, &mut out)?;
//!     }
//! }
//! cache.close()
//! # }
//! ```
//!
//! # Memory and streams
//! Calls on slices are for CPU caches: they are checked and have done their work when they return. CUDA
//! caches are used through the calls ending in `_raw`, which take device pointers and a [`Stream`]: they are
//! `unsafe`, because the work is done later and nothing here can see how long the memory must live.
//!
//! # Errors
//! Every call returns [`Result`]; a failed call has changed nothing. [`Error::status`] is to match on,
//! [`Error::message`] names the argument and has the values. Nothing panics because of the library or its
//! absence.
//!
//! # Threads
//! [`Library`] may be used from any thread. A [`Cache`] may move between threads and is used by one at a
//! time; different caches are independent.

/// The README's program, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod attend;
mod cache;
mod calibration;
mod config;
mod error;
mod figures;
mod geometry;
mod layer;
mod library;
mod paged;
mod paged_step;
mod pages;
mod quantizer;
mod quantizer_raw;
mod sequence;
mod state;
mod state_file;
mod state_io;
mod tensor;
mod travel;
mod types;

pub use attend::{AttendParams, AttendPointers};
pub use cache::{Batch, BatchRows, Cache, Memory, Step};
pub use calibration::{Calibration, CalibrationConfig, CalibrationGoal, Choice};
pub use config::{
    CacheConfig, Codebook, FLAG_BATCH_INVARIANT, FLAG_EXACT_CHUNK, FLAG_NO_SCALE_SEARCH,
    FLAG_NO_ZERO_ON_FREE, FLAG_STORE_ONCE,
};
pub use error::{Error, Result, Status};
pub use figures::{CacheBytes, CacheMemory};
pub use layer::{KeyBands, LayerBytes, LayerConfig};
pub use library::{DeviceInfo, Library};
pub use paged::PagedCodec;
pub use paged_step::{PagedStep, StepArrays};
pub use pages::{PageBytes, PageLayout, PageOrder, Pages};
pub use quantizer::{Levels, Quantizer, QuantizerConfig};
pub use state::{Mac, Part, State, StateBytes};
pub use tqkv_sys as sys;
pub use types::{
    CodeFamily, DeviceType, Dtype, Element, LayerKind, Layout, Noticed, Rotation, ScaleRule, Sequence,
    Sketch, SketchRule, Stream,
};
