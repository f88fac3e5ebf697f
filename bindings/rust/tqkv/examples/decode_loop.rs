// SPDX-License-Identifier: Apache-2.0
//! "Replace your attention call": a decode loop on a tqkv cache. Plan the step once, then append and attend
//! in every layer; fork a sequence for a shared prompt; truncate it when a draft is rejected. The same
//! program stands in packaging/smoke/decode_loop.c and in the other bindings, and all print the same lines.
//!
//! In place of a model there is a generator of numbers, the same in every language. A layer of a step takes
//! k, then v, then q.
//!
//!     TQKV_LIBRARY=/path/to/libtqkv.so cargo run --example decode_loop

use tqkv::{Batch, Cache, CacheConfig, Dtype, Library, Sequence, Step};

const LAYERS: i32 = 2;
const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const PROMPT: i64 = 48;

/// Stands for the model: numbers in [-1, 1), exact in f32.
struct Model {
    state: u32,
}

impl Model {
    fn numbers(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.state = self.state.wrapping_mul(1664525).wrapping_add(1013904223);
            (((self.state >> 16) % 2048) as i32 - 1024) as f32 / 1024.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// One step; returns the norm of all outputs.
    fn step(&mut self, cache: &Cache, batch: Batch, steps: &[Step]) -> tqkv::Result<f64> {
        let rows: i64 = steps.iter().map(|step| step.new_tokens).sum();
        let queries: i64 = steps.iter().map(|step| step.query_tokens).sum();
        let mut out = vec![0.0f32; queries as usize * QUERY_HEADS * DIM];
        let mut sum = 0.0;
        cache.plan(batch, steps)?;
        for layer in 0..LAYERS {
            // Here the model computes k, v and q, rotary embedding applied.
            let k = self.numbers(rows as usize * KV_HEADS * DIM);
            let v = self.numbers(rows as usize * KV_HEADS * DIM);
            let q = self.numbers(queries as usize * QUERY_HEADS * DIM);
            cache.append(layer, batch, &k, &v)?;
            cache.attend(layer, batch, &q, &mut out)?;
            sum += out.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        }
        Ok(sum.sqrt())
    }
}

fn print_lengths(cache: &Cache, what: &str, a: Sequence, b: Sequence, norm: f64) -> tqkv::Result<()> {
    println!(
        "{what}: lengths {} and {}, norm {norm:.3}",
        cache.sequence_length(a)?,
        cache.sequence_length(b)?
    );
    Ok(())
}

fn main() -> tqkv::Result<()> {
    let library = Library::open()?;
    let mut config = CacheConfig::default();
    config.num_layers = LAYERS;
    config.num_q_heads = QUERY_HEADS as i32;
    config.num_kv_heads = KV_HEADS as i32;
    config.head_dim = DIM as i32;
    config.io_dtype = Dtype::F32;
    config.key_bits = 4;
    config.value_bits = 4;
    config.max_tokens = 8192;
    config.max_sequences = 2;
    config.max_batch_tokens = 48; // the prompt's: a plan's queries need room for exact copies
    config.window_tokens = 16; // the newest tokens are read exactly ..
    config.rollback_tokens = 4; // .. also after a draft of up to 4 tokens was taken back

    let cache = Cache::new(&library, &config)?;
    let batch = cache.create_batch()?;
    let mut model = Model { state: 5 };

    let a = cache.create_sequence()?;
    let norm = model.step(&cache, batch, &[Step::new(a, PROMPT).queries(1)])?;
    println!("prompt: {PROMPT} tokens, norm {norm:.3}");

    let b = cache.fork_sequence(a)?; // a second answer to the same prompt: its pages are shared
    let memory = cache.memory()?;
    println!(
        "fork: {} sequences, {} tokens, {} page",
        memory.num_sequences, memory.tokens, memory.pages_used
    );

    for i in 1..=4 {
        let norm = model.step(&cache, batch, &[Step::new(a, 1), Step::new(b, 1)])?;
        print_lengths(&cache, &format!("step {i}"), a, b, norm)?;
    }

    // speculative decoding: four tokens at once, of which two turn out to be wrong
    let norm = model.step(&cache, batch, &[Step::new(a, 4)])?;
    print_lengths(&cache, "draft", a, b, norm)?;
    cache.truncate_sequence(a, cache.sequence_length(a)? - 2)?;
    let norm = model.step(&cache, batch, &[Step::new(a, 1), Step::new(b, 1)])?;
    print_lengths(&cache, "two rejected", a, b, norm)?;

    let memory = cache.memory()?;
    println!(
        "memory: {} tokens, {} pages, {:.2} times smaller than float16",
        memory.tokens, memory.pages_used, memory.compression
    );
    cache.close()
}
