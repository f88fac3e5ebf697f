// SPDX-License-Identifier: Apache-2.0
//! Files that are replaced as a whole: written beside the old one, synced, renamed, the folder synced.

use crate::error::{Error, Result, Status};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

impl Error {
    pub(crate) fn file(path: &Path, error: &io::Error) -> Error {
        Error::new(Status::Io, format!("{}: {error}", path.display()))
    }
}

/// `.NAME.PID.NUMBER.tmp` beside a file: what is left if the process is killed meanwhile.
fn beside(path: &Path) -> io::Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::other("names no file"))?;
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    fresh.push(format!(".{}.{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(fresh))
}

/// Writes a file through `write` and puts it in the place of `path`. A symbolic link stays one.
pub(crate) fn replace_file(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let at = |error: io::Error| Error::file(path, &error);
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let fresh = beside(&target).map_err(at)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh).map_err(at)?;
    let written = write(&mut file)
        .and_then(|()| file.sync_all().map_err(at))
        .and_then(|()| fs::rename(&fresh, &target).map_err(at));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
        return written;
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(at)
}
