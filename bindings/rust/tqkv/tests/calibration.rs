// SPDX-License-Identifier: Apache-2.0
//! Matrices of keys, and calibrations that carry them: attention stays what it was, files say the same again,
//! and what does not fit is named.

use std::io::Write;
use tqkv::{
    Cache, CacheConfig, Calibration, CalibrationConfig, CalibrationGoal, CodeFamily, Dtype, Library, Status,
    Step,
};

const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const TOKENS: usize = 320;

fn library() -> Library {
    Library::open().unwrap()
}

fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let mut state = salt;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 2.0
        })
        .collect()
}

/// 4 at (i, order(i)): codes of such turned keys are those of the same keys in another order, four times as
/// long.
fn permutation() -> Vec<f32> {
    let mut matrix = vec![0f32; KV_HEADS * DIM * DIM];
    for head in 0..KV_HEADS {
        for i in 0..DIM {
            matrix[(head * DIM + i) * DIM + order(i)] = 4.0;
        }
    }
    matrix
}

fn order(i: usize) -> usize {
    (i * 27 + 5) % DIM
}

fn reordered(rows: &[f32], factor: f32) -> Vec<f32> {
    rows.chunks(DIM).flat_map(|row| (0..DIM).map(move |i| row[order(i)] * factor)).collect()
}

fn config() -> CacheConfig {
    let mut config = CacheConfig::default();
    (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) =
        (1, Q_HEADS as i32, KV_HEADS as i32, DIM as i32);
    (config.io_dtype, config.key_bits, config.value_bits) = (Dtype::F32, 3, 4);
    (config.max_tokens, config.num_threads) = (TOKENS as i64, 1);
    config
}

fn attended(cache: &Cache, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    cache.plan(batch, &[Step::new(sequence, TOKENS as i64)]).unwrap();
    cache.append(0, batch, k, v).unwrap();
    let mut out = vec![0f32; TOKENS * Q_HEADS * DIM];
    cache.attend(0, batch, q, &mut out).unwrap();
    out
}

fn sides() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let of = |heads, salt| numbers(TOKENS * heads * DIM, salt);
    (of(Q_HEADS, 1), of(KV_HEADS, 2), of(KV_HEADS, 3))
}

fn shape() -> CalibrationConfig {
    CalibrationConfig {
        num_layers: 1,
        num_q_heads: Q_HEADS as i32,
        num_kv_heads: KV_HEADS as i32,
        head_dim: DIM as i32,
        ..Default::default()
    }
}

fn told<T: std::fmt::Debug>(result: tqkv::Result<T>, part: &str) -> Status {
    let error = result.unwrap_err();
    assert!(error.message.contains(part), "{}", error.message);
    error.status
}

#[test]
fn codes_are_those_of_turned_keys() {
    let (q, k, v) = sides();
    let (turned, plain) =
        (Cache::new(&library(), &config()).unwrap(), Cache::new(&library(), &config()).unwrap());
    turned.set_key_matrix(0, &permutation()).unwrap();
    assert_ne!(turned.fingerprint().unwrap(), plain.fingerprint().unwrap());
    let out = attended(&plain, &reordered(&q, 0.25), &reordered(&k, 4.0), &v);
    assert_eq!(attended(&turned, &q, &k, &v), out);
    assert_eq!(
        told(turned.set_key_matrix(0, &permutation()), "key matrices are fixed once a sequence holds tokens"),
        Status::InvalidState
    );
}

#[test]
fn matrices_that_do_not_fit() {
    let cache = Cache::new(&library(), &config()).unwrap();
    let good = permutation();
    let bad = Status::InvalidArgument;
    assert_eq!(told(cache.set_key_matrix(0, &good[1..]), "matrix: a slice of 8191 elements"), bad);
    assert_eq!(told(cache.set_key_matrix(1, &good), "layer = 1"), bad);
    let mut singular = good.clone();
    singular[..DIM].fill(0.0);
    assert_eq!(told(cache.set_key_matrix(0, &singular), "matrix[0] of layer 0: has no inverse"), bad);
    singular[3] = f32::NAN;
    assert_eq!(told(cache.set_key_matrix(0, &singular), "matrix[0][0][3]"), bad);
    let mut raw = config();
    raw.key_bits = 16;
    let raw = Cache::new(&library(), &raw).unwrap();
    assert_eq!(told(raw.set_key_matrix(0, &good), "a key matrix is for"), Status::NotSupported);
}

#[test]
fn a_calibration_carries_them() {
    let (q, k, v) = sides();
    let k: Vec<f32> = k.iter().enumerate().map(|(i, x)| x * (1.0 + (i % DIM / 16) as f32) + 2.0).collect();
    let calibration = Calibration::new(&library(), &shape()).unwrap();
    assert_eq!((calibration.config().value_dim, calibration.config().held_out_tokens), (DIM as i32, 128));
    assert_eq!(calibration.key_matrix(0).unwrap(), None);
    calibration.set_key_matrix(0, &permutation()).unwrap();
    calibration.feed(0, TOKENS as i64, &q, &k, &v).unwrap();
    let goal = CalibrationGoal { key_bits: 3.0, value_bits: 3, ..Default::default() };
    let found = calibration.choose(&goal).unwrap();
    assert!(found.error > 0.0 && found.error <= found.uniform_error && found.raw_layers == 0, "{found:?}");
    assert_eq!((found.layers.len(), found.layers[0].value_bits), (1, 3));

    let mut file = Vec::new();
    calibration.save(&mut file).unwrap();
    let again = Calibration::load(&library(), &mut &file[..]).unwrap();
    assert_eq!(again.choose(&goal).unwrap(), found);
    assert_eq!(again.key_matrix(0).unwrap().unwrap(), permutation());
    assert_eq!(again.centres(0).unwrap(), calibration.centres(0).unwrap());
    assert!(again.centres(0).unwrap().0.iter().any(|&x| x > 1.0));

    let (set, own) = {
        let mut config = config().with_layers(found.layers.clone());
        config.num_layers = 1;
        (Cache::new(&library(), &config).unwrap(), Cache::new(&library(), &config).unwrap())
    };
    again.set_centres(&set).unwrap();
    let (key, value) = again.centres(0).unwrap();
    own.set_centres(0, Some(&key), Some(&value)).unwrap();
    own.set_key_matrix(0, &permutation()).unwrap();
    assert_eq!(set.fingerprint().unwrap(), own.fingerprint().unwrap());

    let path = std::env::temp_dir().join(format!("tqkv-rust-{}-calibration", std::process::id()));
    again.save_file(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), file);
    assert_eq!(Calibration::load_file(&library(), &path).unwrap().config(), calibration.config());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn calibrations_that_cannot_be() {
    let bad = Status::InvalidArgument;
    let wrong = CalibrationConfig { head_dim: 66, key_family: CodeFamily::GROUPED, ..shape() };
    assert_eq!(told(Calibration::new(&library(), &wrong), "head_dim = 66"), bad);
    let calibration = Calibration::new(&library(), &shape()).unwrap();
    let (q, k, v) = sides();
    let feed = |layer, count, q: &[f32], k: &[f32]| calibration.feed(layer, count, q, k, &v);
    assert_eq!(told(feed(0, TOKENS as i64 + 1, &q, &k), "q: a slice of"), bad);
    assert_eq!(told(feed(0, TOKENS as i64, &q, &k[1..]), "k: a slice of"), bad);
    assert_eq!(told(feed(1, 1, &q, &k), "layer = 1"), bad);
    assert_eq!(told(feed(0, -1, &q, &k), "count = -1"), bad);
    let halves = vec![half::f16::ONE; TOKENS * Q_HEADS * DIM];
    assert_eq!(told(calibration.feed(0, 1, &halves, &halves, &halves), "of type 2, but"), bad);
    let infinite = vec![f32::INFINITY; KV_HEADS * DIM];
    assert_eq!(told(feed(0, 1, &q, &infinite), "k: number 0 of token 0 is not finite"), bad);
    let goal = CalibrationGoal { key_bits: 3.0, value_bits: 3, ..Default::default() };
    assert_eq!(told(calibration.choose(&goal), "layer 0 was fed 0 tokens"), Status::InvalidState);
    feed(0, TOKENS as i64, &q, &k).unwrap();
    assert_eq!(told(calibration.set_key_matrix(0, &permutation()[1..]), "matrix: a slice of"), bad);
    assert_eq!(
        told(calibration.set_key_matrix(0, &permutation()), "its key matrix comes before them"),
        Status::InvalidState
    );
    let odd = CalibrationGoal { key_bits: 2.25, value_bits: 9, ..Default::default() };
    assert_eq!(told(calibration.choose(&odd), "goal.value_bits = 9"), bad);
    assert_eq!(told(calibration.key_matrix(5), "layer = 5"), bad);
    let turning = CalibrationConfig { turn_keys: true, ..shape() };
    let turning = Calibration::new(&library(), &turning).unwrap();
    assert!(turning.config().turn_keys && !calibration.config().turn_keys);
    assert_eq!(told(turning.key_matrix(0), "layer 0 was fed 0 tokens"), Status::InvalidState);

    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is full"))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(told(calibration.save(&mut Full), "the disk is full"), Status::Io);
    let mut file = Vec::new();
    calibration.save(&mut file).unwrap();
    let last = file.len() / 2;
    file[last] ^= 1;
    assert_eq!(told(Calibration::load(&library(), &mut &file[..]), "checksum"), Status::CorruptData);
    let loaded = Calibration::load_file(&library(), "/nonexistent/calibration");
    assert_eq!(told(loaded, "/nonexistent/calibration"), Status::Io);
}
