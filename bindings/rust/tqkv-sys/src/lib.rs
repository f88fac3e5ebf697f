// SPDX-License-Identifier: Apache-2.0
//! Raw bindings of [tqkv](https://github.com/tqkv/tqkv): a KV cache held as 2-8 bit TurboQuant codes, and
//! attention straight on the codes.
//!
//! Declarations and comments are those of `tqkv.h`; the safe layer over them is the crate `tqkv`. All
//! functions are reached through one table, [`Api`], whichever way the library came in:
//!
//! - feature `dlopen` (default): [`Library::open`] opens it at run time, so that a program builds and starts
//!   without it;
//! - feature `link`: `Library::linked` uses the one the program was linked with, found through pkg-config.
//!
//! Either way the library is checked before its first use: ABI number, sizes of the structs, and that no
//! function is missing.

#[cfg(not(any(feature = "dlopen", feature = "link")))]
compile_error!("tqkv-sys needs one of the features `dlopen` (default) and `link`");

#[cfg(not(unix))]
compile_error!("tqkv is a library for Unix systems");

#[macro_use]
mod table;

#[rustfmt::skip]
#[allow(
    non_camel_case_types,
missing_docs, // where the header says nothing, the name does
    clippy::too_many_arguments,
    clippy::type_complexity,
    clippy::missing_safety_doc
)]
mod bindings;
mod load;

pub use bindings::*;
pub use load::{Library, LoadError, LIBRARY_VARIABLE, SONAME};
