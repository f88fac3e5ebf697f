// SPDX-License-Identifier: Apache-2.0
//! Opens the library and checks that it is one this crate can talk to. Nothing here panics: a missing or
//! unfit library is a [`LoadError`].

use crate::{Api, STRUCTS, TQ_ABI_VERSION};
use core::ffi::CStr;
use std::fmt;

/// The environment variable that names the library's file when no path is given.
pub const LIBRARY_VARIABLE: &str = "TQKV_LIBRARY";

/// The name that the system's loader is asked for at last.
pub const SONAME: &str = "libtqkv.so.0";

/// Why there is no library to call. The text says what was tried and what helps.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is not there, or the system's loader refused it.
    NotFound {
        /// What was asked for.
        library: String,
        /// Who named it: the caller, the variable, or nobody.
        source: &'static str,
        /// The loader's words.
        reason: String,
    },
    /// It is some library, but lacks functions of this crate's version.
    MissingFunctions {
        /// What was opened.
        library: String,
        /// The functions.
        names: Vec<&'static str>,
    },
    /// The library's ABI number is another than this crate's.
    AbiVersion {
        /// What was opened.
        library: String,
        /// The library's release.
        version: String,
        /// The library's ABI number.
        found: i32,
    },
    /// A struct of the library is smaller than this crate's.
    StructSize {
        /// What was opened.
        library: String,
        /// The library's release.
        version: String,
        /// The struct.
        name: &'static str,
        /// Its size here.
        expected: usize,
        /// Its size in the library; 0 if it has none of that name.
        found: usize,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crate_version = env!("CARGO_PKG_VERSION");
        match self {
            LoadError::NotFound { library, source, reason } => write!(
                f,
                "cannot open {library} ({source}): {reason}. Install tqkv, or give the path of libtqkv.so, \
                 or set {LIBRARY_VARIABLE} to it"
            ),
            LoadError::MissingFunctions { library, names } => write!(
                f,
                "{library} lacks {}: it is older than this crate ({crate_version}), or not tqkv. Install \
                 tqkv {crate_version} or newer",
                names.join(", ")
            ),
            LoadError::AbiVersion { library, version, found } => write!(
                f,
                "{library} is tqkv {version} with ABI {found}, but this crate ({crate_version}) speaks ABI \
                 {TQ_ABI_VERSION}. Install a tqkv of that ABI, or a crate for this one"
            ),
            LoadError::StructSize { library, version, name, expected, found } => write!(
                f,
                "{library} is tqkv {version}, whose {name} has {found} bytes, but this crate \
                 ({crate_version}) needs {expected}: the library is too old. Install tqkv {crate_version} \
                 or newer"
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// The library, opened and checked. Once opened it stays in the process: it is linked `-z nodelete`, and its
/// streams and threads may outlive any handle.
#[derive(Debug)]
pub struct Library {
    api: Api,
    name: String,
    #[cfg(feature = "dlopen")]
    _handle: Option<os::Handle>,
}

impl Library {
    /// The functions.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// What was opened: a path, the SONAME, or "linked library".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens the file that the environment variable `TQKV_LIBRARY` names; without it, `libtqkv.so.0` as the
    /// system's loader finds it. If the variable is set its file must work: there is no falling through.
    ///
    /// This runs the library's initialisers and is safe all the same: what these two names stand for is
    /// chosen by who installed and started the program, as it is for every library that a program is linked
    /// with, and no caller could check it. A program that sets the variable itself chooses a file: it answers
    /// for that file as [`Library::open_at`] asks.
    #[cfg(feature = "dlopen")]
    pub fn open() -> Result<Library, LoadError> {
        let variable = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
        let (file, source) = match variable {
            Some(value) => (value, "from the variable TQKV_LIBRARY"),
            None => (SONAME.into(), "the default, no path and no TQKV_LIBRARY given"),
        };
        // SAFETY: chosen by who installed and started the program, see above.
        unsafe { Library::open_named(&file, source) }
    }

    /// Opens the library in the file `path`.
    ///
    /// # Safety
    /// Opening a file runs its initialisers, and the functions in it are called by the names of `tqkv.h`:
    /// `path` must be a file that may be run in this process, and if it has functions of these names, they
    /// must be tqkv's.
    ///
    /// ```compile_fail,E0133
    /// tqkv_sys::Library::open_at("libtqkv.so".as_ref()); // not without `unsafe`
    /// ```
    #[cfg(feature = "dlopen")]
    pub unsafe fn open_at(path: &std::path::Path) -> Result<Library, LoadError> {
        // SAFETY: the caller's promise.
        unsafe { Library::open_named(path.as_os_str(), "the path given") }
    }

    /// # Safety
    /// As [`Library::open_at`].
    #[cfg(feature = "dlopen")]
    unsafe fn open_named(file: &std::ffi::OsStr, source: &'static str) -> Result<Library, LoadError> {
        let name = file.to_string_lossy().into_owned();
        // SAFETY: the caller's promise.
        let handle = unsafe { os::Handle::open(file) };
        let handle =
            handle.map_err(|reason| LoadError::NotFound { library: name.clone(), source, reason })?;
        // SAFETY: the addresses belong to the names; that the library means by these names what the header
        // says is the caller's promise. The handle is kept beside the table.
        let api = unsafe { Api::from_symbols(|symbol| handle.symbol(symbol)) };
        let api = api.map_err(|names| LoadError::MissingFunctions { library: name.clone(), names })?;
        check(&api, &name)?;
        Ok(Library { api, name, _handle: Some(handle) })
    }

    /// The library that the program was linked with.
    #[cfg(feature = "link")]
    pub fn linked() -> Result<Library, LoadError> {
        let (api, name) = (Api::linked(), "linked library".to_owned());
        check(&api, &name)?;
        Ok(Library {
            api,
            name,
            #[cfg(feature = "dlopen")]
            _handle: None,
        })
    }
}

/// A newer library may have longer structs, it knows how to read the shorter ones; an older one does not know
/// how to read longer ones.
fn check(api: &Api, name: &str) -> Result<(), LoadError> {
    // SAFETY: these take nothing and return a number and a static string.
    let (found, version) = unsafe { ((api.tq_abi_version)(), CStr::from_ptr((api.tq_version)())) };
    let (library, version) = (name.to_owned(), version.to_string_lossy().into_owned());
    if found != TQ_ABI_VERSION {
        return Err(LoadError::AbiVersion { library, version, found });
    }
    for &(id, name, expected) in STRUCTS {
        // SAFETY: takes any number.
        let found = unsafe { (api.tq_struct_size)(id) };
        if found < expected {
            return Err(LoadError::StructSize { library, version, name, expected, found });
        }
    }
    Ok(())
}

#[cfg(feature = "dlopen")]
mod os {
    use core::ffi::c_void;
    use libloading::os::unix;
    use std::ffi::OsStr;

    #[derive(Debug)]
    pub struct Handle(unix::Library);

    impl Handle {
        /// Everything is bound now, so that a broken file is found here; nothing of it becomes visible to
        /// other libraries.
        ///
        /// # Safety
        /// The file's initialisers may be run.
        pub unsafe fn open(file: &OsStr) -> Result<Handle, String> {
            // SAFETY: the caller's promise.
            let library = unsafe { unix::Library::open(Some(file), unix::RTLD_NOW | unix::RTLD_LOCAL) };
            library.map(Handle).map_err(|error| match std::error::Error::source(&error) {
                Some(source) => source.to_string(),
                None => error.to_string(),
            })
        }

        pub fn symbol(&self, name: &str) -> Option<*mut c_void> {
            // SAFETY: only the address is taken; its type is the caller's affair.
            unsafe { self.0.get::<*mut c_void>(name.as_bytes()) }.ok().map(|symbol| symbol.into_raw())
        }
    }
}
