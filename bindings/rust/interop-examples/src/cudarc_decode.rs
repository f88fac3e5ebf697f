// SPDX-License-Identifier: Apache-2.0
//! tqkv on buffers and a stream of the crate cudarc: a decode loop on a GPU, in bfloat16, compared with the
//! same loop on the CPU. Exit status: 0 compared and alike, 1 a failure, 2 no CUDA here.
//!
//! Two rules for everyone who brings buffers of another crate: the guard that `device_ptr(&stream)` returns
//! beside the pointer lives until the call that uses the pointer has returned, because it orders the stream
//! behind the buffer's last writer and records this use; and a buffer is dropped or written to only after the
//! stream has passed the call, which cudarc sees to as long as it happens on the same stream.

use core::ffi::c_void;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use half::bf16;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use tqkv::{
    AttendParams, AttendPointers, Batch, Cache, CacheConfig, DeviceType, Dtype, Layout, Library, Status,
    Step, Stream,
};

const Q_HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 128;
type Outcome<T> = Result<T, Box<dyn Error>>;

fn config(device_type: DeviceType) -> CacheConfig {
    let mut config = CacheConfig::default();
    config.device_type = device_type;
    (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) =
        (1, Q_HEADS as i32, KV_HEADS as i32, DIM as i32);
    (config.io_dtype, config.key_bits, config.value_bits, config.max_tokens) = (Dtype::BF16, 4, 4, 1024);
    config
}

/// Stands for the model.
fn numbers(state: &mut u32, count: usize) -> Vec<bf16> {
    let mut next = || {
        *state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        bf16::from_f32((((*state >> 16) % 2048) as f32 - 1024.0) / 512.0)
    };
    (0..count).map(|_| next()).collect()
}

/// One step on the GPU; returns the outputs in float32.
fn step(cache: &Cache, batch: Batch, stream: &Arc<CudaStream>, rows: [&[bf16]; 3]) -> Outcome<Vec<f32>> {
    let [k, v, q] = rows.map(|row| stream.clone_htod(row));
    let (k, v, q) = (k?, v?, q?);
    let mut out = stream.alloc_zeros::<f32>(Q_HEADS * DIM)?;
    // SAFETY: the stream of the cache's device, alive until the end of main.
    let on = unsafe { Stream::from_raw(stream.cu_stream().cast()) };
    {
        let ((k, _k_guard), (v, _v_guard)) = (k.device_ptr(stream), v.device_ptr(stream));
        // SAFETY: of the plan's size; cudarc frees them in the order of this stream.
        unsafe { cache.append_raw(0, batch, k as *const c_void, v as *const c_void, Layout::DENSE, on)? };
    }
    {
        let ((q, _q_guard), (out, _out_guard)) = (q.device_ptr(stream), out.device_ptr_mut(stream));
        let pointers =
            AttendPointers { q: q as *const c_void, out: out as *mut c_void, ..Default::default() };
        let mut params = AttendParams::default();
        params.out_dtype = Dtype::F32;
        // SAFETY: as above; out is written in the order of this stream and read behind it.
        unsafe { cache.attend_raw(0, batch, pointers, &params, on)? };
    }
    Ok(stream.clone_dtoh(&out)?)
}

fn compare() -> Outcome<bool> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let library = Library::open()?;
    // SAFETY: as in step.
    let on = unsafe { Stream::from_raw(stream.cu_stream().cast()) };
    let gpu = Cache::new_on(&library, &config(DeviceType::CUDA), on)?;
    let cpu = Cache::new(&library, &config(DeviceType::CPU))?;
    let (gpu_batch, cpu_batch) = (gpu.create_batch()?, cpu.create_batch()?);
    let (gpu_sequence, cpu_sequence) = (gpu.create_sequence()?, cpu.create_sequence()?);
    let (mut state, mut worst) = (5, 0.0f64);
    for new in [100, 1, 1, 1, 1] {
        let (k, v) = (numbers(&mut state, new * KV_HEADS * DIM), numbers(&mut state, new * KV_HEADS * DIM));
        let q = numbers(&mut state, Q_HEADS * DIM);
        gpu.plan_on(gpu_batch, &[Step::new(gpu_sequence, new as i64).queries(1)], on)?;
        cpu.plan(cpu_batch, &[Step::new(cpu_sequence, new as i64).queries(1)])?;
        let found = step(&gpu, gpu_batch, &stream, [&k, &v, &q])?;
        let mut expected = vec![0f32; Q_HEADS * DIM];
        cpu.append(0, cpu_batch, &k, &v)?;
        cpu.attend(0, cpu_batch, &q, &mut expected)?;
        let error: f64 = found.iter().zip(&expected).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        let length: f64 = expected.iter().map(|&y| f64::from(y).powi(2)).sum();
        let (tokens, apart) = (gpu.sequence_length(gpu_sequence)?, (error / length).sqrt());
        println!("{tokens} tokens, GPU and CPU differ by {apart:.2e}");
        worst = worst.max(apart);
    }
    gpu.check_on(on)?;
    gpu.close()?;
    // The bound of attention in the shared contract: 2^-12.
    Ok(worst <= 1.0 / 4096.0)
}

fn main() -> ExitCode {
    // SAFETY: only looks whether the driver's library can be opened.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        eprintln!("no CUDA driver on this machine");
        return ExitCode::from(2);
    }
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("GPU and CPU differ");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            let none = error.downcast_ref::<tqkv::Error>().is_some_and(|e| {
                matches!(e.status, Status::NotSupported | Status::NoDevice | Status::Driver)
            });
            ExitCode::from(if none { 2 } else { 1 })
        }
    }
}
