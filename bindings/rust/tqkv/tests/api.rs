// SPDX-License-Identifier: Apache-2.0
//! What the shared cases do not reach: handles, slices that are too short, types, memory of the caller's,
//! threads, and the end of things.

use core::ffi::c_void;
use half::{bf16, f16};
use std::alloc::{alloc, dealloc, Layout as MemoryLayout};
use std::sync::atomic::{AtomicI64, Ordering};
use tqkv::{
    sys, AttendParams, AttendPointers, Cache, CacheConfig, CodeFamily, DeviceType, Dtype, Element, KeyBands,
    LayerConfig, Layout, Levels, Library, Memory, Status, Step, Stream,
};

const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

fn library() -> Library {
    Library::open().unwrap_or_else(|error| panic!("{error}"))
}

fn config(io_dtype: Dtype) -> CacheConfig {
    let mut config = CacheConfig::default();
    (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) =
        (1, Q_HEADS as i32, KV_HEADS as i32, DIM as i32);
    (config.io_dtype, config.key_bits, config.value_bits, config.max_tokens) = (io_dtype, 8, 8, 256);
    (config.max_sequences, config.num_threads) = (4, 1);
    config
}

/// About normal numbers, the same everywhere.
fn random(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / 16777216.0
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn status_of<T: std::fmt::Debug>(result: tqkv::Result<T>, parts: &[&str]) -> Status {
    let error = result.expect_err("it must fail");
    for part in parts {
        assert!(error.message.contains(part), "'{part}' is not in: {error}");
    }
    error.status
}

/// Relative error of 8-bit codes against the appended numbers: 2 % is generous, a step is max / 127.
fn close(found: &[f32], expected: &[f32]) -> bool {
    let error: f32 = found.iter().zip(expected).map(|(x, y)| (x - y) * (x - y)).sum();
    let length: f32 = expected.iter().map(|y| y * y).sum();
    found.len() == expected.len() && error.sqrt() <= 0.02 * length.sqrt()
}

#[test]
fn the_library_introduces_itself() {
    let library = library();
    let version = format!("{}.{}.{}", sys::TQ_VERSION_MAJOR, sys::TQ_VERSION_MINOR, sys::TQ_VERSION_PATCH);
    assert_eq!(library.version(), version);
    assert_eq!(library.abi_version(), sys::TQ_ABI_VERSION);
    assert!(library.build_info().contains(&version), "{}", library.build_info());
    assert_eq!(library.status_name(sys::TQ_ERROR_CAPACITY), "TQ_ERROR_CAPACITY");
    assert_eq!(library.status_name(12345), "TQ_ERROR_UNKNOWN");
    assert_eq!(library.device_count(DeviceType::CPU).unwrap(), 1);
    let cpu = library.device_info(DeviceType::CPU, 0).unwrap();
    assert!(cpu.num_units >= 1 && !cpu.name.is_empty(), "{cpu:?}");
    assert_eq!(status_of(library.device_info(DeviceType::CPU, 1), &["index"]), Status::NoDevice);
    assert_eq!(status_of(library.device_count(DeviceType(7)), &["type = 7"]), Status::InvalidArgument);
}

#[test]
fn every_status_has_its_number() {
    let library = library();
    for &(name, value) in sys::CONSTANTS.iter().filter(|(name, _)| name.starts_with("TQ_ERROR_")) {
        assert_eq!(library.status_name(value as i32), name);
    }
}

fn decoded_is_close<T: Element>(narrow: fn(f32) -> T, widen: fn(T) -> f32) {
    let cache = Cache::new(&library(), &config(T::DTYPE)).unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    let k: Vec<T> = random(1, 3 * KV_HEADS * DIM).into_iter().map(narrow).collect();
    let v: Vec<T> = random(2, 3 * KV_HEADS * DIM).into_iter().map(narrow).collect();
    cache.plan(batch, &[Step::new(sequence, 3).queries(1)]).unwrap();
    cache.append(0, batch, &k, &v).unwrap();
    let (mut k_back, mut v_back) = (vec![narrow(f32::NAN); k.len()], vec![narrow(f32::NAN); v.len()]);
    cache.read(0, sequence, 0, 3, Some(&mut k_back), Some(&mut v_back)).unwrap();
    let wide = |values: &[T]| values.iter().map(|&x| widen(x)).collect::<Vec<f32>>();
    assert!(close(&wide(&k_back), &wide(&k)) && close(&wide(&v_back), &wide(&v)));
    // Attention in the cache's own type and in float32.
    let q: Vec<T> = random(3, Q_HEADS * DIM).into_iter().map(narrow).collect();
    let (mut out, mut out32) = (vec![narrow(f32::NAN); Q_HEADS * DIM], vec![f32::NAN; Q_HEADS * DIM]);
    cache.attend(0, batch, &q, &mut out).unwrap();
    cache.attend(0, batch, &q, &mut out32).unwrap();
    assert!(close(&wide(&out), &out32));
    cache.close().unwrap();
}

#[test]
fn all_element_types() {
    decoded_is_close::<f32>(|x| x, |x| x);
    decoded_is_close::<f16>(f16::from_f32, f16::to_f32);
    decoded_is_close::<bf16>(bf16::from_f32, bf16::to_f32);
}

#[test]
fn slices_of_another_type_or_too_short() {
    let cache = Cache::new(&library(), &config(Dtype::F32)).unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    cache.plan(batch, &[Step::new(sequence, 2)]).unwrap();
    let kv = random(1, 2 * KV_HEADS * DIM);
    let bad = Status::InvalidArgument;
    assert_eq!(status_of(cache.append(0, batch, &kv[1..], &kv), &["k: a slice of 255", "need 256"]), bad);
    assert_eq!(status_of(cache.append(0, batch, &kv, &kv[..200]), &["v: a slice of 200", "need 256"]), bad);
    let halves = vec![f16::ONE; kv.len()];
    assert_eq!(status_of(cache.append(0, batch, &halves, &halves), &["io_dtype = 1"]), bad);
    let wide = Layout { key_token_stride: 1000, ..Layout::DENSE };
    assert_eq!(status_of(cache.append_strided(0, batch, &kv, &kv, wide), &["k:", "need 1128"]), bad);
    let negative = Layout { value_head_stride: -64, ..Layout::DENSE };
    assert_eq!(
        status_of(cache.append_strided(0, batch, &kv, &kv, negative), &["v:", "must not be negative"]),
        bad
    );
    let huge = Layout { key_token_stride: i64::MAX, key_head_stride: i64::MAX, ..Layout::DENSE };
    assert_eq!(status_of(cache.append_strided(0, batch, &kv, &kv, huge), &["k:"]), bad);
    cache.append(0, batch, &kv, &kv).unwrap();

    let (q, mut out, mut lse) =
        (random(2, 2 * Q_HEADS * DIM), vec![0f32; 2 * Q_HEADS * DIM], vec![0f32; 2 * Q_HEADS]);
    assert_eq!(status_of(cache.attend(0, batch, &q[1..], &mut out), &["q:"]), bad);
    assert_eq!(status_of(cache.attend(0, batch, &q, &mut out[1..]), &["out:"]), bad);
    assert_eq!(
        status_of(cache.attend(0, batch, &q, &mut vec![f16::ONE; out.len()]), &["out: of type 2"]),
        bad
    );
    let mut params = AttendParams::default();
    assert_eq!(
        status_of(cache.attend_with(0, batch, &q, &mut out, Some(&mut lse[1..]), &params), &["lse:"]),
        bad
    );
    let sinks = [0.0; Q_HEADS - 1];
    params.sink_logits = Some(&sinks);
    assert_eq!(status_of(cache.attend_with(0, batch, &q, &mut out, None, &params), &["sink_logits"]), bad);
    // SAFETY: refused before a pointer is looked at.
    let refused = unsafe { cache.attend_raw(0, batch, AttendPointers::default(), &params, Stream::NONE) };
    assert_eq!(status_of(refused, &["sink_logits"]), bad);
    params.sink_logits = None;
    let ranges = vec![0; q.len() / (Q_HEADS * DIM)];
    params.visible_begin = Some(&ranges);
    params.visible_end = Some(&ranges[1..]);
    assert_eq!(status_of(cache.attend_with(0, batch, &q, &mut out, None, &params), &["visible_end:"]), bad);
    params.visible_end = Some(&ranges);
    params.tree_mask = Some(&[]);
    assert_eq!(status_of(cache.attend_with(0, batch, &q, &mut out, None, &params), &["tree_mask:"]), bad);
    (params.visible_begin, params.visible_end, params.tree_mask) = (None, None, None);
    params.out_head_stride = 3 * DIM as i64;
    assert_eq!(status_of(cache.attend_with(0, batch, &q, &mut out, None, &params), &["out:"]), bad);
    cache.attend(0, batch, &q, &mut out).unwrap();

    let (mut k, mut v) = (vec![0f32; 2 * KV_HEADS * DIM], vec![0f32; 2 * KV_HEADS * DIM]);
    assert_eq!(status_of(cache.read(0, sequence, 0, 2, Some(&mut k[1..]), Some(&mut v)), &["k:"]), bad);
    assert_eq!(status_of(cache.read(0, sequence, 0, i64::MAX, Some(&mut k), None), &["k:"]), bad);
    cache.read(0, sequence, 0, 2, Some(&mut k), None).unwrap();
    let half = vec![f32::NAN; KV_HEADS * DIM / 2];
    assert_eq!(status_of(cache.set_centres(0, Some(&half), None), &["key_centre"]), bad);
    assert_eq!(status_of(library().merge_states(&[&k[..]], &[], 1, 64, &mut v, None), &["lses"]), bad);
    assert_eq!(
        status_of(library().merge_states(&[&k[..]], &[&lse[..1]], 9, 64, &mut v, None), &["outs[0]"]),
        bad
    );
    let (outs, lses) = ([k.as_ptr().cast(), v.as_ptr().cast()], [lse.as_ptr()]);
    let (out, cpu) = (out.as_mut_ptr().cast(), (DeviceType::CPU, 0));
    // SAFETY: tensors of one row of 64, and refused before a pointer is looked at.
    let merged = unsafe {
        let none = std::ptr::null_mut();
        library().merge_states_raw(&outs, &lses, 1, 64, Dtype::F32, out, none, cpu, Stream::NONE)
    };
    assert_eq!(status_of(merged, &["lses: 1 parts, but outs has 2"]), bad);
}

#[test]
fn configurations_with_lists_of_the_wrong_length() {
    let mut layers = config(Dtype::F32);
    layers.layer_key_bits = vec![4, 4];
    assert_eq!(
        status_of(Cache::new(&library(), &layers), &["layer_key_bits: 2 entries", "num_layers = 1"]),
        Status::InvalidArgument
    );
    let mut book = config(Dtype::F32);
    book.value_codebook = Some(tqkv::Codebook { bits: 4, unit: 0.01, magnitude: vec![1; 9] });
    assert_eq!(
        status_of(library().check_config(&book), &["value_codebook: 9 magnitudes", "need 8"]),
        Status::InvalidArgument
    );
}

#[test]
fn slices_are_measured_by_the_layer_that_is_named() {
    let mut asked = config(Dtype::F32).with_layers(vec![
        LayerConfig::new(),
        LayerConfig::new().heads(3, 1).head_dim(32).bits(8, 3).sliding_window(5),
        LayerConfig::new().heads(2, 0).shares(0),
    ]);
    asked.max_tokens = 64;
    let cache = Cache::new(&library(), &asked).unwrap();
    let layers = cache.config().unwrap().layers;
    let bytes = |layer| library().config_layer_bytes(&asked, layer).unwrap();
    assert_eq!((bytes(1).fp16_token_bytes, bytes(2).page_bytes), (2 * 2 * 32, 0));
    assert_eq!(bytes(0).page_bytes + bytes(1).page_bytes, library().config_bytes(&asked).unwrap().page_bytes);
    assert_eq!(status_of(library().config_layer_bytes(&asked, 3), &["layer = 3"]), Status::InvalidArgument);
    assert_eq!((layers.len(), layers[0].value_dim, layers[1].key_bits), (3, DIM as i32, 8));
    assert_eq!((layers[2].num_kv_heads, layers[2].shares_layer), (KV_HEADS as i32, Some(0)));
    let (sequence, batch) = (cache.create_sequence().unwrap(), cache.create_batch().unwrap());
    cache.plan(batch, &[Step::new(sequence, 2)]).unwrap();
    let kv = vec![0.5f32; 2 * KV_HEADS * DIM];
    let bad = Status::InvalidArgument;
    cache.append(0, batch, &kv, &kv).unwrap();
    assert_eq!(status_of(cache.append(1, batch, &kv[..63], &kv), &["k:"]), bad);
    cache.append(1, batch, &kv[..64], &kv[..64]).unwrap();
    assert_eq!(status_of(cache.append(2, batch, &kv, &kv), &["layer"]), bad);
    let (q, mut out) = (vec![0.5f32; 2 * Q_HEADS * DIM], vec![0f32; 2 * Q_HEADS * DIM]);
    assert_eq!(status_of(cache.attend(1, batch, &q, &mut out[..191]), &["out:"]), bad);
    cache.attend(1, batch, &q, &mut out[..192]).unwrap();
    cache.attend(2, batch, &q, &mut out[..2 * 2 * DIM]).unwrap();
    for layer in [-1, 3] {
        assert_eq!(status_of(cache.append(layer, batch, &kv, &kv), &["layer"]), bad);
        assert_eq!(status_of(cache.attend(layer, batch, &q, &mut out), &["layer"]), bad);
        assert_eq!(status_of(cache.set_centres(layer, Some(&kv), None), &["layer"]), bad);
    }
}

#[test]
fn levels_of_layers() {
    let own = Levels { levels: vec![-0.2, 0.15], boundaries: vec![0.05], unit: 0.5 };
    let mut asked =
        config(Dtype::F32).with_layers(vec![LayerConfig::new(), LayerConfig::new().key_levels(own.clone())]);
    (asked.code_family, asked.key_bits, asked.value_bits) = (CodeFamily::LEVELS, 1, 1);
    asked.key_levels = Some(Levels { levels: vec![-0.1, 0.1], boundaries: vec![0.0], unit: 1.0 });
    asked.value_levels = asked.key_levels.clone();
    let cache = Cache::new(&library(), &asked).unwrap();
    let resolved = cache.config().unwrap();
    assert_eq!((&resolved.key_levels, &resolved.layers[1].key_levels), (&asked.key_levels, &Some(own)));
    let (sequence, batch) = (cache.create_sequence().unwrap(), cache.create_batch().unwrap());
    cache.plan(batch, &[Step::new(sequence, 1)]).unwrap();
    let kv: Vec<f32> = (0..KV_HEADS * DIM).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut keys = [vec![0f32; kv.len()], vec![0f32; kv.len()]];
    for (layer, k) in keys.iter_mut().enumerate() {
        cache.append(layer as i32, batch, &kv, &kv).unwrap();
        cache.read(layer as i32, sequence, 0, 1, Some(k), None).unwrap();
    }
    assert_ne!(keys[0], keys[1]);
    asked.layers[1].key_levels = Some(Levels { levels: vec![-1.0; 4], boundaries: vec![0.0; 3], unit: 0.0 });
    assert_eq!(status_of(Cache::new(&library(), &asked), &["layers[1].key_levels"]), Status::InvalidArgument);
}

#[test]
fn key_bands_of_layers() {
    let order: Vec<i32> = (0..KV_HEADS * DIM).map(|i| (DIM - 1 - i % DIM) as i32).collect();
    let bands = KeyBands { bits: vec![4; DIM.div_ceil(32)], order };
    let layers = vec![LayerConfig::new(), LayerConfig::new().key_bands(bands.clone())];
    let mut asked = config(Dtype::F32).with_layers(layers);
    let cache = Cache::new(&library(), &asked).unwrap();
    let resolved = cache.config().unwrap();
    assert_eq!((&resolved.layers[0].key_bands, &resolved.layers[1].key_bands), (&None, &Some(bands.clone())));
    let again = Cache::new(&library(), &resolved).unwrap();
    assert_eq!(again.fingerprint().unwrap(), cache.fingerprint().unwrap());
    let wrong = [(vec![0], "layers[1].key_bands.order"), (vec![1; KV_HEADS * DIM], "order[0][1] = 1")];
    for (order, text) in wrong {
        asked.layers[1].key_bands = Some(KeyBands { order, ..bands.clone() });
        assert_eq!(status_of(Cache::new(&library(), &asked), &[text]), Status::InvalidArgument);
    }
}

#[test]
fn the_resolved_configuration_makes_the_same_cache() {
    let mut asked = config(Dtype::BF16);
    (asked.num_layers, asked.layer_value_bits) = (2, vec![0, 3]);
    (asked.key_bits, asked.rotation_seed) = (2, 99);
    (asked.first_layer, asked.first_kv_head) = (3, 4);
    asked.key_codebook = Some(tqkv::Codebook { bits: 2, unit: 0.015625, magnitude: vec![27, 98] });
    let first = Cache::new(&library(), &asked).unwrap();
    let resolved = first.config().unwrap();
    assert_eq!((resolved.value_dim, resolved.page_size, resolved.max_sequence_tokens), (64, 64, 256));
    assert_eq!(resolved.key_codebook, asked.key_codebook);
    let second = Cache::new(&library(), &resolved).unwrap();
    assert_eq!(second.config().unwrap(), resolved);
    assert_eq!(first.fingerprint().unwrap(), second.fingerprint().unwrap());
}

#[test]
fn handles_of_other_caches_and_destroyed_ones() {
    let (one, two) = (
        Cache::new(&library(), &config(Dtype::F32)).unwrap(),
        Cache::new(&library(), &config(Dtype::F32)).unwrap(),
    );
    let batch = one.create_batch().unwrap();
    assert_eq!(status_of(two.plan(batch, &[]), &["another cache"]), Status::InvalidArgument);
    assert_eq!(status_of(two.destroy_batch(batch), &["another cache"]), Status::InvalidArgument);
    one.plan(batch, &[]).unwrap();
    one.destroy_batch(batch).unwrap();
    assert_eq!(status_of(one.plan(batch, &[]), &["was destroyed"]), Status::InvalidArgument);
    assert_eq!(status_of(one.destroy_batch(batch), &["was destroyed"]), Status::InvalidArgument);
    // The next batch may lie where the destroyed one lay; its handle is another all the same.
    let next = one.create_batch().unwrap();
    assert_ne!(next, batch);
    assert_eq!(status_of(one.plan(batch, &[]), &["was destroyed"]), Status::InvalidArgument);
    assert_eq!(status_of(one.batch_rows(batch), &["was destroyed"]), Status::InvalidArgument);
    one.plan(next, &[]).unwrap();
    let made_up = tqkv::Sequence::from_id(0x7fff_0000_0000_0007);
    assert_eq!(status_of(one.sequence_length(made_up), &["sequence"]), Status::InvalidArgument);
    assert_eq!(tqkv::Sequence::from_id(made_up.id()), made_up);
}

/// Raw keys hold +-65504 at most; a coded side has no such bound.
#[test]
fn what_was_noticed() {
    let mut raw_keys = config(Dtype::F32);
    raw_keys.key_bits = 16;
    let cache = Cache::new(&library(), &raw_keys).unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    let (mut k, mut v) = (random(1, KV_HEADS * DIM), random(2, KV_HEADS * DIM));
    let append = |k: &[f32], v: &[f32]| {
        cache.plan(batch, &[Step::new(sequence, 1)]).unwrap();
        cache.append(0, batch, k, v).unwrap();
        cache.check().unwrap()
    };
    assert!(append(&k, &v).is_empty());
    v[3] = 1e6;
    assert!(append(&k, &v).is_empty());
    k[5] = -1e6;
    let noticed = append(&k, &v);
    assert!(noticed.saturated() && !noticed.nonfinite(), "{noticed:?}");
    v[3] = f32::NAN;
    let noticed = append(&random(3, KV_HEADS * DIM), &v);
    assert!(noticed.nonfinite() && !noticed.saturated(), "{noticed:?}");
    let all = cache.sequence_flags(sequence).unwrap();
    assert!(all.saturated() && all.nonfinite(), "{all:?}");
}

fn rows(cache: &Cache, batch: tqkv::Batch) -> (i64, i64, bool) {
    let rows = cache.batch_rows(batch).unwrap();
    (rows.new_tokens, rows.query_tokens, rows.in_force)
}

#[test]
fn rows_are_those_of_the_plan_in_force() {
    let cache = Cache::new(&library(), &config(Dtype::F32)).unwrap();
    let (batch, other) = (cache.create_batch().unwrap(), cache.create_batch().unwrap());
    let (a, b) = (cache.create_sequence().unwrap(), cache.create_sequence().unwrap());
    assert_eq!(rows(&cache, batch), (0, 0, false));
    cache.plan(batch, &[Step::new(a, 5).queries(2), Step::new(b, 1)]).unwrap();
    assert_eq!(rows(&cache, batch), (6, 3, true));
    // Out of force: another batch has planned one of its sequences, or the sequence is gone.
    cache.plan(other, &[Step::new(b, 2)]).unwrap();
    assert_eq!((rows(&cache, batch), rows(&cache, other)), ((0, 0, false), (2, 2, true)));
    let kv = random(1, 6 * KV_HEADS * DIM);
    assert_eq!(status_of(cache.append(0, batch, &kv, &kv), &["plan"]), Status::InvalidState);
    cache.free_sequence(b).unwrap();
    assert_eq!(rows(&cache, other), (0, 0, false));
    cache.close().unwrap();
}

/// The lengths of slices are checked by the rows that the library has, whoever made the plan.
#[test]
fn a_plan_made_through_the_raw_handle_counts() {
    let cache = Cache::new(&library(), &config(Dtype::F32)).unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    cache.plan(batch, &[Step::new(sequence, 1)]).unwrap();
    let (ids, new_tokens) = ([sequence.id()], [100i64]);
    // SAFETY: a batch of this cache; arrays of one entry.
    let status = unsafe {
        let raw = cache.batch_as_raw(batch).unwrap();
        let plan = cache.library().api().tq_batch_plan;
        plan(raw, 1, ids.as_ptr(), new_tokens.as_ptr(), std::ptr::null(), std::ptr::null_mut())
    };
    assert_eq!(status, sys::TQ_OK);
    let one = random(1, KV_HEADS * DIM);
    let bad = Status::InvalidArgument;
    assert_eq!(status_of(cache.append(0, batch, &one, &one), &["k: a slice of 128", "need 12800"]), bad);
    let (q, mut out) = (random(2, Q_HEADS * DIM), vec![0f32; Q_HEADS * DIM]);
    assert_eq!(status_of(cache.attend(0, batch, &q, &mut out), &["q: a slice of 256"]), bad);
}

static BYTES_IN_USE: AtomicI64 = AtomicI64::new(0);

unsafe extern "C" fn counted_alloc(
    _user: *mut c_void,
    bytes: usize,
    alignment: usize,
    _type: i32,
    _id: i32,
) -> *mut c_void {
    BYTES_IN_USE.fetch_add(bytes as i64, Ordering::SeqCst);
    // The size is not known to free but by its argument, the alignment not at all: one for all.
    assert!(alignment <= 4096);
    // SAFETY: never of size 0.
    unsafe { alloc(MemoryLayout::from_size_align(bytes.max(1), 4096).unwrap()).cast() }
}

unsafe extern "C" fn counted_free(
    _user: *mut c_void,
    pointer: *mut c_void,
    bytes: usize,
    _type: i32,
    _id: i32,
) {
    BYTES_IN_USE.fetch_sub(bytes as i64, Ordering::SeqCst);
    // SAFETY: from counted_alloc, with the same size.
    unsafe { dealloc(pointer.cast(), MemoryLayout::from_size_align(bytes.max(1), 4096).unwrap()) }
}

#[test]
fn memory_of_the_callers() {
    let config = config(Dtype::F32);
    let bytes = library().config_bytes(&config).unwrap().page_bytes as usize;
    let layout = MemoryLayout::from_size_align(bytes, 256).unwrap();
    let allocator =
        sys::tq_allocator { alloc: Some(counted_alloc), free: Some(counted_free), ..Default::default() };
    // SAFETY: of the size and alignment asked for, freed below after the cache.
    let pool: *mut c_void = unsafe { alloc(layout) }.cast();
    let memory = Memory { allocator: Some(allocator), pool, pool_bytes: bytes as i64 };
    // SAFETY: the callbacks allocate; the pool is ours.
    let cache = unsafe { Cache::with_memory(&library(), &config, memory, Stream::NONE) }.unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    assert!(BYTES_IN_USE.load(Ordering::SeqCst) > 0, "the callbacks are used");
    cache.plan(batch, &[Step::new(sequence, 1)]).unwrap();
    let kv = random(5, KV_HEADS * DIM);
    cache.append(0, batch, &kv, &kv).unwrap();
    let mut back = vec![0f32; KV_HEADS * DIM];
    cache.read(0, sequence, 0, 1, Some(&mut back), None).unwrap();
    assert!(close(&back, &kv));
    drop(cache);
    assert_eq!(BYTES_IN_USE.load(Ordering::SeqCst), 0, "all given back");
    // SAFETY: from alloc with this layout; the cache is gone.
    unsafe { dealloc(pool.cast(), layout) };
    // One callback without the other.
    let memory = Memory {
        allocator: Some(sys::tq_allocator { alloc: Some(counted_alloc), ..Default::default() }),
        ..Memory::default()
    };
    // SAFETY: refused.
    let refused = unsafe { Cache::with_memory(&library(), &config, memory, Stream::NONE) };
    assert_eq!(status_of(refused, &["allocator"]), Status::InvalidArgument);
}

#[test]
fn a_stream_on_the_cpu_is_refused() {
    let cache = Cache::new(&library(), &config(Dtype::F32)).unwrap();
    let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
    // SAFETY: never used as a stream: CPU caches refuse it.
    let stream = unsafe { Stream::from_raw(8 as *mut c_void) };
    assert_eq!(
        status_of(cache.plan_on(batch, &[Step::new(sequence, 1)], stream), &["stream"]),
        Status::InvalidArgument
    );
    assert_eq!(status_of(cache.fork_sequence_on(sequence, stream), &["stream"]), Status::InvalidArgument);
    assert_eq!(cache.sequence_length(sequence).unwrap(), 0);
}

/// Errors of many threads at once keep their own texts; caches are made in one thread and used in another.
#[test]
fn threads() {
    let library = library();
    std::thread::scope(|scope| {
        for thread in 0..16i64 {
            let cache = Cache::new(&library, &config(Dtype::F32)).unwrap();
            scope.spawn(move || {
                for call in 0..500 {
                    let id = 1_000_000 * (thread + 1) + call;
                    let error = cache.truncate_sequence(tqkv::Sequence::from_id(-id), 0).unwrap_err();
                    assert!(error.message.contains(&id.to_string()), "{id} is not in: {error}");
                }
            });
        }
    });
}

#[test]
fn dropping_and_closing_with_batches_and_sequences() {
    for close in [true, false] {
        let cache = Cache::new(&library(), &config(Dtype::F32)).unwrap();
        let (batch, sequence) = (cache.create_batch().unwrap(), cache.create_sequence().unwrap());
        cache.create_batch().unwrap();
        cache.plan(batch, &[Step::new(sequence, 5)]).unwrap();
        if close {
            cache.close().unwrap();
        }
    }
}

#[test]
fn a_cuda_cache_without_cuda_is_an_error() {
    let mut cuda = config(Dtype::F32);
    cuda.device_type = DeviceType::CUDA;
    cuda.device_id = library().device_count(DeviceType::CUDA).unwrap();
    let status = Cache::new(&library(), &cuda).unwrap_err().status;
    assert!(matches!(status, Status::NoDevice | Status::Driver | Status::NotSupported), "{status:?}");
}
