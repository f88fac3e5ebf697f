// SPDX-License-Identifier: Apache-2.0
//! The loaded library: found once, shared by everything made from it.

use crate::error::{Error, Result, Status};
use crate::tensor::{self, Shape};
use crate::types::{DeviceType, Dtype, Element, Stream};
use crate::{sys, CacheBytes, CacheConfig, LayerBytes};
use core::ffi::{c_char, c_void, CStr};
use core::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// The library, loaded and checked. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Library(Arc<sys::Library>);

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// CPU or CUDA.
    pub device_type: DeviceType,
    /// CUDA ordinal; 0 for the CPU.
    pub device_id: i32,
    /// CUDA compute capability, major and minor; 0 for the CPU.
    pub compute_capability: (i32, i32),
    /// Multiprocessors; CPU: hardware threads that this process may use.
    pub num_units: i32,
    /// Memory in all; 0 if unknown.
    pub memory_bytes: i64,
    /// Name of the device; CPU: the instruction set in use.
    pub name: String,
}

static DEFAULT: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    /// The process's library, loaded by the first call that succeeds: the linked one with the feature `link`,
    /// else the file that the variable `TQKV_LIBRARY` names, else `libtqkv.so.0` as the system's loader finds
    /// it.
    ///
    /// A missing library is [`Status::Load`], an unfit one [`Status::Version`]; the text says what helps.
    ///
    /// Safe although it runs the library's initialisers: see [`sys::Library::open`].
    pub fn open() -> Result<Library> {
        let mut default = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*default {
            return Ok(library.clone());
        }
        #[cfg(feature = "link")]
        let loaded = sys::Library::linked()?;
        #[cfg(not(feature = "link"))]
        let loaded = sys::Library::open()?;
        let library = Library(Arc::new(loaded));
        *default = Some(library.clone());
        Ok(library)
    }

    /// The library in this file.
    ///
    /// # Safety
    /// That of [`sys::Library::open_at`]: opening runs the file's initialisers, and its functions are called
    /// by tqkv's names.
    ///
    /// ```compile_fail,E0133
    /// tqkv::Library::open_at("libtqkv.so"); // not without `unsafe`
    /// ```
    #[cfg(feature = "dlopen")]
    pub unsafe fn open_at(path: impl AsRef<std::path::Path>) -> Result<Library> {
        // SAFETY: the caller's promise.
        Ok(Library(Arc::new(unsafe { sys::Library::open_at(path.as_ref()) }?)))
    }

    /// The raw functions, for what this crate does not cover. Objects made through them are not known to this
    /// crate.
    pub fn api(&self) -> &sys::Api {
        self.0.api()
    }

    /// What was loaded: a path, the SONAME, or "linked library".
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The library's release, such as "0.1.0".
    pub fn version(&self) -> &str {
        // SAFETY: a static, ASCII string.
        unsafe { static_text((self.api().tq_version)()) }
    }

    /// The library's ABI number.
    pub fn abi_version(&self) -> i32 {
        // SAFETY: takes nothing.
        unsafe { (self.api().tq_abi_version)() }
    }

    /// One line: release, compiler, CUDA architectures, instruction sets.
    pub fn build_info(&self) -> &str {
        // SAFETY: a static, ASCII string.
        unsafe { static_text((self.api().tq_build_info)()) }
    }

    /// The name of a status number, such as "TQ_ERROR_CAPACITY".
    pub fn status_name(&self, status: i32) -> &str {
        // SAFETY: a static, ASCII string for any number.
        unsafe { static_text((self.api().tq_status_name)(status)) }
    }

    /// Number of devices of a type; 0 for CUDA on a machine without a driver.
    pub fn device_count(&self, device_type: DeviceType) -> Result<i32> {
        let mut count = 0;
        // SAFETY: the number outlives the call.
        self.status(unsafe { (self.api().tq_device_count)(device_type.0, &mut count) })?;
        Ok(count)
    }

    /// One device.
    pub fn device_info(&self, device_type: DeviceType, index: i32) -> Result<DeviceInfo> {
        let mut raw = sys::tq_device_info::default();
        // SAFETY: the struct carries its size.
        self.status(unsafe { (self.api().tq_device_get_info)(device_type.0, index, &mut raw) })?;
        let bytes: Vec<u8> = raw.name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
        Ok(DeviceInfo {
            device_type: DeviceType(raw.device_type),
            device_id: raw.device_id,
            compute_capability: (raw.compute_major, raw.compute_minor),
            num_units: raw.num_units,
            memory_bytes: raw.memory_bytes,
            name: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// Can this library run the configuration? If not, the text has every reason, one a line, each naming its
    /// field.
    pub fn check_config(&self, config: &CacheConfig) -> Result<()> {
        let mut text = vec![0u8; 4096];
        // SAFETY: the raw configuration borrows from `config` and `held`, which outlive the call; the buffer
        // is as long as said.
        let status = config.with_raw(|raw| unsafe {
            (self.api().tq_cache_config_check)(raw, text.as_mut_ptr() as *mut c_char, text.len())
        })?;
        if status == sys::TQ_OK {
            return Ok(());
        }
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        Err(Error::new(Status::from_raw(status), String::from_utf8_lossy(&text[..end])))
    }

    /// What a cache of this configuration would allocate, exactly.
    pub fn config_bytes(&self, config: &CacheConfig) -> Result<CacheBytes> {
        let mut raw_bytes = sys::tq_cache_bytes::default();
        let config_bytes = self.api().tq_cache_config_bytes;
        // SAFETY: as in check_config; the struct carries its size.
        let status = config.with_raw(|raw| unsafe { config_bytes(raw, &mut raw_bytes) })?;
        self.status(status)?;
        Ok(CacheBytes::from_raw(&raw_bytes))
    }

    /// The same of one of its layers.
    pub fn config_layer_bytes(&self, config: &CacheConfig, layer: i32) -> Result<LayerBytes> {
        let mut raw_bytes = sys::tq_layer_bytes::default();
        let layer_bytes = self.api().tq_cache_config_layer_bytes;
        // SAFETY: as in check_config; the struct carries its size.
        let status = config.with_raw(|raw| unsafe { layer_bytes(raw, layer, &mut raw_bytes) })?;
        self.status(status)?;
        Ok(LayerBytes::from_raw(&raw_bytes))
    }

    /// Merges partial results of the same rows on the CPU: context-parallel ranks, chunked prefill,
    /// `history_only`.
    ///
    /// `outs[s]` is `[rows][dim]`, `lses[s]` `[rows]`; an empty part has an lse of -infinity and its out is
    /// not read. Merged in order, in `f32`.
    pub fn merge_states<T: Element>(
        &self,
        outs: &[&[T]],
        lses: &[&[f32]],
        rows: i64,
        dim: i32,
        out: &mut [T],
        lse: Option<&mut [f32]>,
    ) -> Result<()> {
        let shape = Shape { tokens: rows, heads: 1, dim };
        for (s, (part, part_lse)) in outs.iter().zip(lses).enumerate() {
            tensor::check(&format!("outs[{s}]"), part.len(), shape, (0, 0))?;
            tensor::check_rows(&format!("lses[{s}]"), part_lse.len(), rows, 1)?;
        }
        tensor::check("out", out.len(), shape, (0, 0))?;
        if let Some(lse) = &lse {
            tensor::check_rows("lse", lse.len(), rows, 1)?;
        }
        let out_pointers: Vec<*const c_void> = outs.iter().map(|part| part.as_ptr().cast()).collect();
        let lse_pointers: Vec<*const f32> = lses.iter().map(|part| part.as_ptr()).collect();
        // SAFETY: every tensor is as long as the shape says, of the type said, on the host.
        unsafe {
            self.merge_states_raw(
                &out_pointers,
                &lse_pointers,
                rows,
                dim,
                T::DTYPE,
                out.as_mut_ptr().cast(),
                lse.map_or(ptr::null_mut(), |lse| lse.as_mut_ptr()),
                (DeviceType::CPU, 0),
                Stream::NONE,
            )
        }
    }

    /// [`Library::merge_states`] on pointers, on any device.
    ///
    /// # Safety
    /// Every pointer must be to memory of the device, of `rows * dim` numbers of `dtype` (`lses` and `lse`:
    /// `rows` of `f32`; `lse` may be null), that stays valid until `stream` has passed this call (CPU: until
    /// it returns); `out` and `lse` must not be used by anything else until then. `out` may be one of `outs`.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn merge_states_raw(
        &self,
        outs: &[*const c_void],
        lses: &[*const f32],
        rows: i64,
        dim: i32,
        dtype: Dtype,
        out: *mut c_void,
        lse: *mut f32,
        device: (DeviceType, i32),
        stream: Stream,
    ) -> Result<()> {
        let count = tensor::count("outs", outs.len())?;
        if outs.len() != lses.len() {
            return Err(Error::argument(format!("lses: {} parts, but outs has {}", lses.len(), outs.len())));
        }
        let merge = self.api().tq_merge_states;
        // SAFETY: the caller's promise; the arrays have `count` entries.
        self.status(unsafe {
            merge(
                count,
                outs.as_ptr(),
                lses.as_ptr(),
                rows,
                dim,
                dtype.0,
                out,
                lse,
                device.0 .0,
                device.1,
                stream.as_raw(),
            )
        })
    }

    /// A status as a result, with the text that the library keeps for this thread.
    pub(crate) fn status(&self, status: sys::tq_status) -> Result<()> {
        if status == sys::TQ_OK {
            return Ok(());
        }
        // SAFETY: never null, valid until this thread's next call; copied at once.
        let message = unsafe { CStr::from_ptr((self.api().tq_last_error)()) }.to_string_lossy().into_owned();
        Err(Error::new(Status::from_raw(status), message))
    }
}

/// SAFETY: text must be a NUL-terminated string that lives as long as the process.
unsafe fn static_text(text: *const c_char) -> &'static str {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("(not UTF-8)")
}
