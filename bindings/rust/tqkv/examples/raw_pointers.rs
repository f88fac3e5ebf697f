// SPDX-License-Identifier: Apache-2.0
//! Tensors of another framework by their addresses: what candle (`Storage` and `Layout`) and cudarc
//! (`DevicePtr`) hand to an operation is an address, a shape and strides. A candle attention layer has
//! `[batch][heads][tokens][dim]`, which strides describe; nothing is copied or transposed. Here the memory is
//! the host's, so that the program runs everywhere; on a GPU `address` is the device pointer and `stream`
//! the framework's stream (interop-examples has that with cudarc).
//!
//!     TQKV_LIBRARY=/path/to/libtqkv.so cargo run --example raw_pointers

use core::ffi::c_void;
use tqkv::{AttendParams, AttendPointers, Batch, Cache, CacheConfig, Dtype, Layout, Library, Step, Stream};

const LAYERS: i32 = 2;
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

/// A tensor `[heads][tokens][dim]` of one sequence, as a framework describes it.
struct Tensor {
    address: u64, // a host pointer, or a CUdeviceptr
    head_stride: i64,
    token_stride: i64,
}

impl Tensor {
    /// The framework's memory, here a vector, which must outlive the calls that use it.
    fn of(memory: &mut [f32], tokens: usize) -> Tensor {
        let (address, dim) = (memory.as_mut_ptr() as u64, DIM as i64);
        Tensor { address, head_stride: tokens as i64 * dim, token_stride: dim }
    }
}

/// The operation: one layer's keys and values into the cache, its queries answered.
fn attention(
    cache: &Cache,
    batch: Batch,
    layer: i32,
    [q, k, v, out]: [&Tensor; 4],
    stream: Stream,
) -> tqkv::Result<()> {
    let layout = Layout {
        key_token_stride: k.token_stride,
        key_head_stride: k.head_stride,
        value_token_stride: v.token_stride,
        value_head_stride: v.head_stride,
    };
    let pointers = AttendPointers {
        q: q.address as *const c_void,
        out: out.address as *mut c_void,
        ..Default::default()
    };
    let mut params = AttendParams::default();
    (params.q_token_stride, params.q_head_stride) = (q.token_stride, q.head_stride);
    (params.out_token_stride, params.out_head_stride) = (out.token_stride, out.head_stride);
    // SAFETY: memory of the cache's device, of the plan's rows and these strides; it lives, and is not
    // written to, until the stream has passed the calls.
    unsafe {
        cache.append_raw(
            layer,
            batch,
            k.address as *const c_void,
            v.address as *const c_void,
            layout,
            stream,
        )?;
        cache.attend_raw(layer, batch, pointers, &params, stream)
    }
}

/// Stands for the model: `[tokens][heads][dim]`, and the same as `[heads][tokens][dim]`.
fn numbers(state: &mut u32, tokens: usize, heads: usize) -> (Vec<f32>, Vec<f32>) {
    let mut next = || {
        *state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (((*state >> 16) % 2048) as f32 - 1024.0) / 1024.0
    };
    let rows: Vec<f32> = (0..tokens * heads * DIM).map(|_| next()).collect();
    let turned = turn(&rows, tokens, heads);
    (rows, turned)
}

/// `[a][b][DIM]` as `[b][a][DIM]`.
fn turn(rows: &[f32], a: usize, b: usize) -> Vec<f32> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| &rows[(i * b + j) * DIM..][..DIM])).copied().collect()
}

fn main() -> tqkv::Result<()> {
    let library = Library::open()?;
    let mut config = CacheConfig::default();
    (config.num_layers, config.head_dim, config.max_tokens) = (LAYERS, DIM as i32, 1024);
    (config.num_q_heads, config.num_kv_heads) = (Q_HEADS as i32, KV_HEADS as i32);
    (config.io_dtype, config.key_bits, config.value_bits) = (Dtype::F32, 4, 4);
    let (cache, plain) = (Cache::new(&library, &config)?, Cache::new(&library, &config)?);
    let (batch, plain_batch) = (cache.create_batch()?, plain.create_batch()?);
    let (sequence, plain_sequence) = (cache.create_sequence()?, plain.create_sequence()?);
    let (mut state, mut same) = (5, true);
    for tokens in [100, 1, 1, 4, 1] {
        cache.plan(batch, &[Step::new(sequence, tokens as i64)])?; // once a step
        plain.plan(plain_batch, &[Step::new(plain_sequence, tokens as i64)])?;
        for layer in 0..LAYERS {
            let (q_rows, mut q) = numbers(&mut state, tokens, Q_HEADS);
            let (k_rows, mut k) = numbers(&mut state, tokens, KV_HEADS);
            let (v_rows, mut v) = numbers(&mut state, tokens, KV_HEADS);
            let (mut out, mut rows) = (vec![0.0; q.len()], vec![0.0; q.len()]);
            let tensors = [&mut q, &mut k, &mut v, &mut out].map(|memory| Tensor::of(memory, tokens));
            attention(&cache, batch, layer, tensors.each_ref(), Stream::NONE)?;
            plain.append(layer, plain_batch, &k_rows, &v_rows)?;
            plain.attend(layer, plain_batch, &q_rows, &mut rows)?;
            same &= turn(&rows, tokens, Q_HEADS) == out && out.iter().any(|&x| x != 0.0);
        }
    }
    println!(
        "{} tokens by pointers and strides, the bits of slices: {same}",
        cache.sequence_length(sequence)?
    );
    assert!(same);
    Ok(())
}
