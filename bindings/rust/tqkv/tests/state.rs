// SPDX-License-Identifier: Apache-2.0
//! Sequences as bytes and files: the same tokens afterwards, and errors for what cannot be.

use std::fs;
use std::io::{self, Read, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use tqkv::{Cache, CacheConfig, Dtype, Library, Part, Sequence, Status, Step};

const TOKENS: usize = 70;
const KV_HEADS: usize = 2;
const DIM: usize = 32;

fn cache() -> Cache {
    let mut config = CacheConfig::default();
    (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) =
        (2, 4, KV_HEADS as i32, DIM as i32);
    (config.io_dtype, config.key_bits, config.value_bits, config.max_tokens) = (Dtype::F32, 4, 3, 256);
    (config.max_sequences, config.num_threads, config.window_tokens) = (4, 1, 8);
    Cache::new(&Library::open().unwrap(), &config).unwrap()
}

fn filled(cache: &Cache) -> Sequence {
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    cache.plan(batch, &[Step::new(sequence, TOKENS as i64)]).unwrap();
    let numbers: Vec<f32> = (0..TOKENS * KV_HEADS * DIM).map(|i| (i * 7919 % 257) as f32 / 64.0).collect();
    for layer in 0..2 {
        cache.append(layer, batch, &numbers, &numbers).unwrap();
    }
    cache.destroy_batch(batch).unwrap();
    sequence
}

/// Keys of both layers, as the cache reads them.
fn decoded(cache: &Cache, sequence: Sequence) -> Vec<f32> {
    let mut all = Vec::new();
    for layer in 0..2 {
        let mut k = vec![0.0f32; TOKENS * KV_HEADS * DIM];
        cache.read(layer, sequence, 0, TOKENS as i64, Some(&mut k), None).unwrap();
        all.extend(k);
    }
    all
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tqkv-rust-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn save_and_load() {
    let (one, other) = (cache(), cache());
    let sequence = filled(&one);
    let folder = folder("save");
    let path = folder.join("prompt.tqkv");
    fs::write(&path, b"old").unwrap();
    one.save_sequence_file(sequence, &path).unwrap();
    let loaded = other.load_sequence_file(&path).unwrap();
    assert_eq!(decoded(&other, loaded), decoded(&one, sequence));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    let mut stream = Vec::new();
    one.save_sequence(sequence, &mut stream).unwrap();
    assert_eq!(stream, fs::read(&path).unwrap());
    stream.extend(b"rest");
    let mut rest = &stream[..];
    one.load_sequence(&mut rest).unwrap();
    assert_eq!(rest, b"rest");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn export_and_import() {
    let (one, other) = (cache(), cache());
    let (sequence, copy) = (filled(&one), other.create_sequence().unwrap());
    for layer in 0..2 {
        let (state, memory) = one.export_sequence(sequence, &Part::layer(layer)).unwrap();
        assert_eq!((state.num_tokens, state.bytes), (TOKENS as i64, memory.len() as i64));
        other.import_sequence(copy, &state, &memory).unwrap();
    }
    assert_eq!(decoded(&other, copy), decoded(&one, sequence));
    let (state, memory) = one.export_sequence(sequence, &Part::default()).unwrap();
    let status = |result: tqkv::Result<()>| result.unwrap_err().status;
    assert_eq!(status(other.import_sequence(copy, &state, &memory[..64])), Status::InvalidArgument);
    let wrong = tqkv::State { identity: state.identity ^ 1, ..state };
    assert_eq!(status(other.import_sequence(copy, &wrong, &memory)), Status::Incompatible);
    for part in [Part::layer(2), Part { tokens: Some(60..80), ..Part::default() }] {
        assert_eq!(one.describe_sequence(sequence, &part).unwrap_err().status, Status::InvalidArgument);
    }
    let backwards = Part { tokens: Some(9..9), ..Part::default() };
    assert!(one.describe_sequence(sequence, &backwards).unwrap_err().message.contains("9..9"));
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is full"))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("the reader's own")
    }
}

#[test]
fn what_goes_wrong_outside() {
    let cache = cache();
    let sequence = filled(&cache);
    let error = cache.save_sequence(sequence, &mut Broken).unwrap_err();
    assert_eq!((error.status, error.message.as_str()), (Status::Io, "the disk is full"));
    let panic = catch_unwind(AssertUnwindSafe(|| cache.load_sequence(&mut Broken))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the reader's own"));
    let mut stream = Vec::new();
    cache.save_sequence(sequence, &mut stream).unwrap();
    for cut in [0, 7, 300, stream.len() - 1] {
        assert_eq!(cache.load_sequence(&mut &stream[..cut]).unwrap_err().status, Status::CorruptData);
    }
    let nowhere = folder("nowhere").join("none").join("prompt.tqkv");
    assert_eq!(cache.save_sequence_file(sequence, &nowhere).unwrap_err().status, Status::Io);
    assert_eq!(cache.load_sequence_file(&nowhere).unwrap_err().status, Status::Io);
    assert_eq!(cache.memory().unwrap().num_sequences, 1);
    fs::remove_dir_all(nowhere.ancestors().nth(2).unwrap()).unwrap();
}
