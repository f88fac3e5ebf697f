// SPDX-License-Identifier: Apache-2.0
//! Errors: a status to match on, and the library's text, which names the argument and prints the values.

use crate::sys;
use std::fmt;

/// What kind of failure it was: the library's status, or [`Status::Load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// A value is out of range or inconsistent.
    InvalidArgument,
    /// Right arguments, wrong moment: append without a plan, centres after an append, busy.
    InvalidState,
    /// An allocation failed, on the host or the device.
    OutOfMemory,
    /// `max_tokens`, `max_sequences` or a batch limit is used up; nothing has changed.
    Capacity,
    /// Valid, but not in this build of the library or not for this configuration.
    NotSupported,
    /// No such device.
    NoDevice,
    /// The driver is absent or too old.
    Driver,
    /// A CUDA call failed; the text has its name.
    Cuda,
    /// The library is too old or of another ABI, or a struct from a newer header uses a field that it does
    /// not know.
    Version,
    /// Saved bytes fail their checks.
    CorruptData,
    /// Saved bytes are of another format, geometry or codebook.
    Incompatible,
    /// The text says how many bytes are needed.
    WorkspaceTooSmall,
    /// Not allowed while the stream is being captured.
    Capture,
    /// Reading or writing failed.
    Io,
    /// A bug in the library.
    Internal,
    /// Not of the library: it could not be opened.
    Load,
    /// A status of a newer library.
    Unknown(i32),
}

impl Status {
    pub(crate) fn from_raw(status: sys::tq_status) -> Status {
        match status {
            sys::TQ_ERROR_INVALID_ARGUMENT => Status::InvalidArgument,
            sys::TQ_ERROR_INVALID_STATE => Status::InvalidState,
            sys::TQ_ERROR_OUT_OF_MEMORY => Status::OutOfMemory,
            sys::TQ_ERROR_CAPACITY => Status::Capacity,
            sys::TQ_ERROR_NOT_SUPPORTED => Status::NotSupported,
            sys::TQ_ERROR_NO_DEVICE => Status::NoDevice,
            sys::TQ_ERROR_DRIVER => Status::Driver,
            sys::TQ_ERROR_CUDA => Status::Cuda,
            sys::TQ_ERROR_VERSION => Status::Version,
            sys::TQ_ERROR_CORRUPT_DATA => Status::CorruptData,
            sys::TQ_ERROR_INCOMPATIBLE => Status::Incompatible,
            sys::TQ_ERROR_WORKSPACE_TOO_SMALL => Status::WorkspaceTooSmall,
            sys::TQ_ERROR_CAPTURE => Status::Capture,
            sys::TQ_ERROR_IO => Status::Io,
            sys::TQ_ERROR_INTERNAL => Status::Internal,
            other => Status::Unknown(other),
        }
    }

    /// The number in `tqkv.h`; `None` for [`Status::Load`].
    pub fn raw(self) -> Option<i32> {
        Some(match self {
            Status::InvalidArgument => sys::TQ_ERROR_INVALID_ARGUMENT,
            Status::InvalidState => sys::TQ_ERROR_INVALID_STATE,
            Status::OutOfMemory => sys::TQ_ERROR_OUT_OF_MEMORY,
            Status::Capacity => sys::TQ_ERROR_CAPACITY,
            Status::NotSupported => sys::TQ_ERROR_NOT_SUPPORTED,
            Status::NoDevice => sys::TQ_ERROR_NO_DEVICE,
            Status::Driver => sys::TQ_ERROR_DRIVER,
            Status::Cuda => sys::TQ_ERROR_CUDA,
            Status::Version => sys::TQ_ERROR_VERSION,
            Status::CorruptData => sys::TQ_ERROR_CORRUPT_DATA,
            Status::Incompatible => sys::TQ_ERROR_INCOMPATIBLE,
            Status::WorkspaceTooSmall => sys::TQ_ERROR_WORKSPACE_TOO_SMALL,
            Status::Capture => sys::TQ_ERROR_CAPTURE,
            Status::Io => sys::TQ_ERROR_IO,
            Status::Internal => sys::TQ_ERROR_INTERNAL,
            Status::Load => return None,
            Status::Unknown(other) => other,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::InvalidArgument => "invalid argument",
            Status::InvalidState => "invalid state",
            Status::OutOfMemory => "out of memory",
            Status::Capacity => "capacity used up",
            Status::NotSupported => "not supported",
            Status::NoDevice => "no such device",
            Status::Driver => "driver absent or too old",
            Status::Cuda => "CUDA call failed",
            Status::Version => "version mismatch",
            Status::CorruptData => "corrupt data",
            Status::Incompatible => "incompatible data",
            Status::WorkspaceTooSmall => "workspace too small",
            Status::Capture => "not allowed in stream capture",
            Status::Io => "input or output failed",
            Status::Internal => "internal error of tqkv",
            Status::Load => "library not loaded",
            Status::Unknown(number) => return write!(f, "unknown status {number}"),
        })
    }
}

/// A failed call. It has changed nothing observable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status}: {message}")]
#[non_exhaustive]
pub struct Error {
    /// What kind of failure it was.
    pub status: Status,
    /// The text: which argument, which values.
    pub message: String,
}

impl Error {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Error {
        Error::new(Status::InvalidArgument, message)
    }
}

impl From<sys::LoadError> for Error {
    fn from(error: sys::LoadError) -> Error {
        let status = match error {
            sys::LoadError::NotFound { .. } => Status::Load,
            _ => Status::Version,
        };
        Error::new(status, error.to_string())
    }
}

/// The result of every call here.
pub type Result<T> = std::result::Result<T, Error>;
