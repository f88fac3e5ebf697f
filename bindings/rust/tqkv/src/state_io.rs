// SPDX-License-Identifier: Apache-2.0
//! What saves write to and loads read from, as the library's callbacks.

use crate::error::{Error, Result, Status};
use crate::state::Mac;
use crate::sys;
use core::any::Any;
use core::ffi::c_void;
use std::io::{self, Read, Write};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

/// Calls `save` with callbacks that write to `writer`, whose failure or panic comes first.
pub(crate) fn write_through(
    writer: &mut dyn Write,
    mac: Option<&mut dyn Mac>,
    save: impl FnOnce(&sys::tq_io) -> Result<()>,
) -> Result<()> {
    let mut end = End::new(writer, mac);
    let io = sys::tq_io {
        user: (&mut end as *mut End<'_, &mut dyn Write>).cast(),
        mac_bytes: end.mac_bytes(),
        write: Some(write_some),
        mac: end.mac.as_ref().map(|_| mac_some::<&mut dyn Write> as _),
        ..Default::default()
    };
    let saved = save(&io);
    end.finish(saved)
}

/// Likewise with callbacks that read from `reader`.
pub(crate) fn read_through(
    reader: &mut dyn Read,
    mac: Option<&mut dyn Mac>,
    load: impl FnOnce(&sys::tq_io) -> Result<()>,
) -> Result<()> {
    let mut end = End::new(reader, mac);
    let io = sys::tq_io {
        user: (&mut end as *mut End<'_, &mut dyn Read>).cast(),
        mac_bytes: end.mac_bytes(),
        read: Some(read_some),
        mac: end.mac.as_ref().map(|_| mac_some::<&mut dyn Read> as _),
        ..Default::default()
    };
    let loaded = load(&io);
    end.finish(loaded)
}

/// The other end of a save or load, and what went wrong there. Neither errors nor panics pass C.
struct End<'a, S> {
    stream: S,
    mac: Option<&'a mut dyn Mac>,
    failed: Option<io::Error>,
    panic: Option<Box<dyn Any + Send>>,
}

impl<'a, S> End<'a, S> {
    fn new(stream: S, mac: Option<&'a mut dyn Mac>) -> End<'a, S> {
        End { stream, mac, failed: None, panic: None }
    }

    /// What fits no tag length the library refuses.
    fn mac_bytes(&self) -> i32 {
        self.mac.as_ref().map_or(0, |mac| i32::try_from(mac.tag_bytes()).unwrap_or(i32::MAX))
    }

    fn guarded(&mut self, call: impl FnOnce(&mut Self) -> io::Result<i32>) -> i32 {
        match catch_unwind(AssertUnwindSafe(|| call(self))) {
            Ok(Ok(done)) => return done,
            Ok(Err(error)) => self.failed = Some(error),
            Err(panic) => self.panic = Some(panic),
        }
        -1
    }

    fn finish(self, result: Result<()>) -> Result<()> {
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
        match self.failed {
            Some(error) => Err(Error::new(Status::Io, error.to_string())),
            None => result,
        }
    }
}

unsafe extern "C" fn write_some(user: *mut c_void, bytes: *const c_void, count: usize) -> i32 {
    // SAFETY: user is the End of the call that is running, bytes has count bytes.
    let (end, bytes) = unsafe {
        (&mut *user.cast::<End<'_, &mut dyn Write>>(), core::slice::from_raw_parts(bytes.cast::<u8>(), count))
    };
    end.guarded(|end| end.stream.write_all(bytes).map(|()| 0))
}

unsafe extern "C" fn read_some(user: *mut c_void, bytes: *mut c_void, count: usize) -> i32 {
    // SAFETY: as above; the memory is the library's own, and has been written before.
    let (end, bytes) = unsafe {
        (
            &mut *user.cast::<End<'_, &mut dyn Read>>(),
            core::slice::from_raw_parts_mut(bytes.cast::<u8>(), count),
        )
    };
    end.guarded(|end| match end.stream.read_exact(bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(1),
        done => done.map(|()| 0),
    })
}

unsafe extern "C" fn mac_some<S>(
    user: *mut c_void,
    bytes: *const c_void,
    count: usize,
    tag: *mut c_void,
) -> i32 {
    // SAFETY: user is the End of the call that is running.
    let end = unsafe { &mut *user.cast::<End<'_, S>>() };
    end.guarded(|end| {
        let Some(mac) = end.mac.as_mut() else { return Ok(-1) };
        if tag.is_null() {
            // SAFETY: bytes has count bytes.
            mac.update(unsafe { core::slice::from_raw_parts(bytes.cast::<u8>(), count) });
        } else {
            let length = mac.tag_bytes();
            // SAFETY: the library has room for as many as it was told, 64 at most.
            mac.tag(unsafe { core::slice::from_raw_parts_mut(tag.cast::<u8>(), length.min(64)) });
        }
        Ok(0)
    })
}
