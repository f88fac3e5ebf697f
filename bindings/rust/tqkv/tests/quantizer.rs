// SPDX-License-Identifier: Apache-2.0
//! Vectors on their own: there and back, products and search against decoded vectors, refusals.

use tqkv::{
    CodeFamily, DeviceType, Dtype, Levels, Library, Quantizer, QuantizerConfig, Rotation, ScaleRule, Sketch,
    SketchRule, Status, Stream, FLAG_NO_SCALE_SEARCH,
};

const DIM: i32 = 100;
const COUNT: i64 = 200;

fn numbers(count: usize, mut state: u64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8388608.0 - 1.0
        })
        .collect()
}

fn config(bits: i32, family: CodeFamily) -> QuantizerConfig {
    QuantizerConfig { dim: DIM, bits, family, num_threads: 1, ..Default::default() }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn there_and_back(config: &QuantizerConfig, most: f64) {
    let quantizer = Quantizer::new(&Library::open().unwrap(), config).unwrap();
    let (dim, bytes) = (DIM as usize, quantizer.code_bytes() as usize);
    let (x, q) = (numbers(COUNT as usize * dim, 1), numbers(7 * dim, 2));
    let (mut codes, mut back) = (vec![0u8; COUNT as usize * bytes], vec![0.0f32; x.len()]);
    assert!(quantizer.encode(&x, COUNT, &mut codes).unwrap().is_empty());
    quantizer.decode(&codes, COUNT, &mut back).unwrap();
    let off: Vec<f32> = x.iter().zip(&back).map(|(a, b)| a - b).collect();
    let error = dot(&off, &off) / dot(&x, &x);
    assert!(error < most && error > most / 2.0, "{config:?}: {error}");

    let mut out = vec![f32::NAN; 7 * COUNT as usize];
    quantizer.inner_products(&q, 7, &codes, COUNT, &mut out).unwrap();
    for (row, query) in out.chunks(COUNT as usize).zip(q.chunks(dim)) {
        for (&product, vector) in row.iter().zip(back.chunks(dim)) {
            let bound = 4e-4 * (dot(query, query) * dot(vector, vector)).sqrt();
            assert!((f64::from(product) - dot(query, vector)).abs() < bound);
        }
    }
    let bias = numbers(COUNT as usize, 3);
    let (scores, ids) = quantizer.search(&q, 7, &codes, COUNT, Some(&bias), 5).unwrap();
    for (row, (scores, ids)) in out.chunks(COUNT as usize).zip(scores.chunks(5).zip(ids.chunks(5))) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| (row[b] + bias[b]).total_cmp(&(row[a] + bias[a])));
        assert_eq!(ids, order[..5].iter().map(|&i| i as i64).collect::<Vec<_>>());
        assert!(order[..5].iter().zip(scores).all(|(&i, &score)| score == row[i] + bias[i]));
    }
}

#[test]
fn families() {
    there_and_back(&config(4, CodeFamily::SCALAR), 0.0105);
    there_and_back(&config(3, CodeFamily::PROD), 0.08);
    let mut gaussian = config(3, CodeFamily::PROD);
    (gaussian.sketch, gaussian.sketch_rule) = (Sketch::GAUSSIAN, SketchRule::LEAST_ERROR);
    there_and_back(&gaussian, 0.085);
    there_and_back(&QuantizerConfig { group_size: 32, ..config(4, CodeFamily::GROUPED) }, 0.0045);
    there_and_back(&QuantizerConfig { outlier_channels: vec![3, 50], ..config(2, CodeFamily::SCALAR) }, 0.13);
}

#[test]
fn levels_are_calibrated_and_used() {
    let library = Library::open().unwrap();
    let x = numbers(2000 * DIM as usize, 5);
    let quantizer = Quantizer::new(&library, &config(2, CodeFamily::SCALAR)).unwrap();
    let (levels, error) = quantizer.calibrate_levels(&x, 2000, 3).unwrap();
    assert_eq!((levels.levels.len(), levels.boundaries.len()), (8, 7));
    assert!(error < 0.036 && error > 0.03, "{error}");
    there_and_back(&QuantizerConfig { levels: Some(levels), ..config(3, CodeFamily::LEVELS) }, 0.04);
    let prod = Quantizer::new(&library, &config(3, CodeFamily::PROD)).unwrap();
    assert!((prod.calibrate_sketch_factor(&x, 2000).unwrap() - 0.798).abs() < 0.01);
    assert!((prod.sketch_factor() - 1.2505).abs() < 1e-3);
}

#[test]
fn rotation() {
    let quantizer = Quantizer::new(&Library::open().unwrap(), &config(1, CodeFamily::SCALAR)).unwrap();
    assert_eq!((quantizer.dim(), quantizer.rotated_dim(), quantizer.code_bytes()), (100, 112, 16));
    let (x, mut y) = (numbers(300, 6), vec![0.0f32; 336]);
    let mut back = vec![0.0f32; 300];
    quantizer.rotate(&x, 3, &mut y).unwrap();
    quantizer.unrotate(&y, 3, &mut back).unwrap();
    assert!((dot(&x, &x) - dot(&y, &y)).abs() < 1e-5 * dot(&x, &x));
    assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn threads_share_one() {
    let quantizer = Quantizer::new(&Library::open().unwrap(), &config(4, CodeFamily::SCALAR)).unwrap();
    let x = numbers(50 * DIM as usize, 7);
    let encode = || {
        let mut codes = vec![0u8; 50 * quantizer.code_bytes() as usize];
        quantizer.encode(&x, 50, &mut codes).unwrap();
        codes
    };
    let expected = encode();
    std::thread::scope(|scope| {
        for thread in [0; 4].map(|_| scope.spawn(encode)) {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn refusals() {
    let library = Library::open().unwrap();
    let refused = |config: &QuantizerConfig| Quantizer::new(&library, config).unwrap_err();
    let error = refused(&config(9, CodeFamily::SCALAR));
    assert_eq!((error.status, error.message.contains("bits = 9")), (Status::InvalidArgument, true));
    let levels = Some(Levels { levels: vec![0.0; 4], boundaries: vec![0.0; 4], unit: 1.0 });
    assert!(refused(&QuantizerConfig { levels, ..config(2, CodeFamily::LEVELS) })
        .message
        .contains("4 levels"));
    let quantizer = Quantizer::new(&library, &config(4, CodeFamily::SCALAR)).unwrap();
    let (x, mut codes) = (numbers(200, 8), vec![0u8; 100]);
    let error = quantizer.encode(&x, 2, &mut codes).unwrap_err();
    assert!(error.message.contains("codes: a slice of 100 elements, but 2 x 58"), "{error}");
    assert!(quantizer.encode(&x[1..], 2, &mut codes).is_err());
    assert!(quantizer.encode(&x, -1, &mut codes).unwrap_err().message.contains("count = -1"));
    assert!(quantizer.search(&x, 1, &codes, 1, None, 0).unwrap_err().message.contains("k = 0"));
    let wrong =
        Quantizer::new(&library, &QuantizerConfig { io_dtype: Dtype::F16, ..config(4, CodeFamily::SCALAR) });
    assert!(wrong.unwrap().encode(&x, 1, &mut codes).unwrap_err().message.contains("io_dtype = 2"));
}

/// The records of the golden file, which all bindings make: every family, field and rule of a configuration.
#[test]
fn golden_records() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/quantizer.safetensors");
    let Ok(blob) = std::fs::read(&path) else {
        assert!(!path.parent().unwrap().exists(), "{path:?} is missing");
        return; // the crate by itself
    };
    let length = u64::from_le_bytes(blob[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&blob[8..8 + length]).unwrap();
    let tensor = |name: &str| {
        let offsets = header.get(name)?["data_offsets"].as_array()?;
        let at = |i: usize| 8 + length + offsets[i].as_u64().unwrap() as usize;
        Some(&blob[at(0)..at(1)])
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let library = Library::open().unwrap();
    let mut cases = 0;
    for (case, text) in header["__metadata__"].as_object().unwrap() {
        let p: serde_json::Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        let number = |name: &str| p[name].as_i64().unwrap() as i32;
        let real = |name: &str| p[name].as_f64().unwrap() as f32;
        let reals = |name: &str| -> Vec<f32> {
            p[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let only = |family: CodeFamily, name: &str| match number("family") == family.0 {
            true => number(name),
            false => 0,
        };
        let config = QuantizerConfig {
            dim: number("dim"),
            bits: number("bits"),
            family: CodeFamily(number("family")),
            rotation: Rotation(if number("family") == CodeFamily::GROUPED.0 {
                0
            } else {
                number("rotation")
            }),
            scale_rule: ScaleRule(number("rule")),
            group_size: only(CodeFamily::GROUPED, "group"),
            sketch: Sketch(only(CodeFamily::PROD, "sketch")),
            sketch_rule: SketchRule(only(CodeFamily::PROD, "sketch_rule")),
            sketch_factor: real("factor"),
            outlier_channels: p["outliers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c.as_i64().unwrap() as i32)
                .collect(),
            seed: p["seed"].as_u64().unwrap(),
            levels: match reals("levels") {
                levels if levels.is_empty() => None,
                levels => Some(Levels { levels, boundaries: reals("boundaries"), unit: real("unit") }),
            },
            flags: if p["search"].as_bool().unwrap() { 0 } else { FLAG_NO_SCALE_SEARCH },
            ..Default::default()
        };
        let quantizer = Quantizer::new(&library, &config).unwrap();
        let x = floats(tensor(&format!("d{}.input", config.dim)).unwrap());
        let (expected, count) = (tensor(&format!("{case}.records")).unwrap(), 32);
        let mut codes = vec![0u8; expected.len()];
        assert_eq!(expected.len() as i64, count * quantizer.code_bytes(), "{case}");
        quantizer.encode(&x, count, &mut codes).unwrap();
        assert!(codes == expected, "{case}");
        if let Some(decoded) = tensor(&format!("{case}.decoded")) {
            let mut back = vec![0.0f32; x.len()];
            quantizer.decode(&codes, count, &mut back).unwrap();
            assert_eq!(back, floats(decoded), "{case}");
        }
        cases += 1;
    }
    assert!(cases > 40);
}

/// Calls on pointers do what those on slices do; a CUDA quantizer refuses slices, where there is one.
#[test]
fn pointers() {
    let library = Library::open().unwrap();
    let config = QuantizerConfig { dim: 100, bits: 4, ..Default::default() };
    let q = Quantizer::new(&library, &config).unwrap();
    let (count, bytes) = (7, q.code_bytes() as usize);
    let x: Vec<f32> = (0..700).map(|i| (i as f32 * 0.37).sin()).collect();
    let (mut codes, mut raw_codes) = (vec![0u8; 7 * bytes], vec![1u8; 7 * bytes]);
    q.encode(&x, count, &mut codes).unwrap();
    let (mut back, mut raw_back) = (vec![0f32; 700], vec![1f32; 700]);
    q.decode(&codes, count, &mut back).unwrap();
    let width = q.rotated_dim() as usize;
    let (mut y, mut raw_y) = (vec![0f32; 7 * width], vec![1f32; 7 * width]);
    q.rotate(&x, count, &mut y).unwrap();
    let (mut out, mut raw_out) = (vec![0f32; 14], vec![1f32; 14]);
    q.inner_products(&x, 2, &codes, count, &mut out).unwrap();
    let (scores, ids) = q.search(&x, 2, &codes, count, None, 3).unwrap();
    let (mut raw_scores, mut raw_ids) = (vec![1f32; 6], vec![1i64; 6]);
    let (none, x_at) = (Stream::NONE, x.as_ptr().cast());
    // SAFETY: host memory of a CPU quantizer, as long as the counts say.
    unsafe {
        q.encode_raw(x_at, count, raw_codes.as_mut_ptr().cast(), none).unwrap();
        assert_eq!(q.encode_raw_noticing(x_at, count, raw_codes.as_mut_ptr().cast(), none).unwrap().0, 0);
        q.decode_raw(codes.as_ptr().cast(), count, raw_back.as_mut_ptr().cast(), none).unwrap();
        q.rotate_raw(x_at, count, raw_y.as_mut_ptr(), none).unwrap();
        q.inner_products_raw(x_at, 2, codes.as_ptr().cast(), count, raw_out.as_mut_ptr(), none).unwrap();
        let (at_scores, at_ids) = (raw_scores.as_mut_ptr(), raw_ids.as_mut_ptr());
        q.search_raw(x_at, 2, codes.as_ptr().cast(), count, core::ptr::null(), 3, at_scores, at_ids, none)
            .unwrap();
    }
    assert_eq!((&codes, &back, &y, &out), (&raw_codes, &raw_back, &raw_y, &raw_out));
    assert_eq!((scores, ids), (raw_scores, raw_ids));
    // SAFETY: as above.
    unsafe { q.unrotate_raw(y.as_ptr(), count, raw_back.as_mut_ptr().cast(), none).unwrap() };
    q.unrotate(&y, count, &mut back).unwrap();
    assert_eq!(back, raw_back);
    let cuda = QuantizerConfig { device_type: DeviceType::CUDA, ..config };
    match Quantizer::new(&library, &cuda) {
        Ok(q) => assert!(q.encode(&x, count, &mut codes).unwrap_err().message.contains("CUDA")),
        Err(error) => assert!(error.message.contains("CUDA"), "{}", error.message),
    }
}
