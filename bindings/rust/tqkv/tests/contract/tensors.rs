// SPDX-License-Identifier: Apache-2.0
//! The tensors of cases.json, and their comparison.

use base64::Engine;
use half::{bf16, f16};
use serde_json::Value;
use std::collections::HashMap;
use tqkv::{Dtype, Element};

/// Numbers as they are stored.
#[derive(Clone, Debug)]
pub enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Of masks, which no output has.
    Ranges(Vec<i32>),
    Bits(Vec<u64>),
}

/// A type of the cases: from and to the stored numbers.
pub trait Number: Element {
    const NAN: Self;
    fn slice(data: &Data) -> Option<&[Self]>;
    fn widen(self) -> f64;
}

impl Number for f32 {
    const NAN: f32 = f32::NAN;
    fn slice(data: &Data) -> Option<&[f32]> {
        if let Data::F32(values) = data {
            Some(values)
        } else {
            None
        }
    }
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f16 {
    const NAN: f16 = f16::NAN;
    fn slice(data: &Data) -> Option<&[f16]> {
        if let Data::F16(values) = data {
            Some(values)
        } else {
            None
        }
    }
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Number for bf16 {
    const NAN: bf16 = bf16::NAN;
    fn slice(data: &Data) -> Option<&[bf16]> {
        if let Data::Bf16(values) = data {
            Some(values)
        } else {
            None
        }
    }
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

impl Tensor {
    fn new(value: &Value) -> Tensor {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(value["data"].as_str().expect("data"))
            .expect("base64");
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let data = match value["dtype"].as_str().expect("dtype") {
            "f32" => Data::F32(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ),
            "f16" => Data::F16(halves().map(f16::from_bits).collect()),
            "bf16" => Data::Bf16(halves().map(bf16::from_bits).collect()),
            "i32" => Data::Ranges(
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect(),
            ),
            "u64" => Data::Bits(
                bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight"))).collect(),
            ),
            other => panic!("dtype {other}"),
        };
        let shape: Vec<usize> = value["shape"]
            .as_array()
            .expect("shape")
            .iter()
            .map(|n| n.as_u64().expect("size") as usize)
            .collect();
        let tensor = Tensor { shape, data };
        let count = match &tensor.data {
            Data::Ranges(values) => values.len(),
            Data::Bits(values) => values.len(),
            _ => tensor.widened().len(),
        };
        assert_eq!(count, tensor.shape.iter().product::<usize>());
        tensor
    }

    pub fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::F16(_) => Dtype::F16,
            Data::Bf16(_) => Dtype::BF16,
            Data::Ranges(_) | Data::Bits(_) => panic!("a mask has no dtype"),
        }
    }

    pub fn slice<T: Number>(&self) -> Result<&[T], String> {
        T::slice(&self.data)
            .ok_or_else(|| format!("a tensor of dtype {} where {} is needed", self.dtype().0, T::DTYPE.0))
    }

    pub fn ranges(&self) -> &[i32] {
        match &self.data {
            Data::Ranges(values) => values,
            _ => panic!("not i32"),
        }
    }

    pub fn bits(&self) -> &[u64] {
        match &self.data {
            Data::Bits(values) => values,
            _ => panic!("not u64"),
        }
    }

    pub fn widened(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(values) => values.iter().map(|x| x.widen()).collect(),
            Data::F16(values) => values.iter().map(|x| x.widen()).collect(),
            Data::Bf16(values) => values.iter().map(|x| x.widen()).collect(),
            Data::Ranges(_) | Data::Bits(_) => panic!("a mask is nothing to compare with"),
        }
    }
}

pub struct Tensors(HashMap<String, Tensor>);

impl Tensors {
    pub fn new(value: &Value) -> Tensors {
        Tensors(
            value
                .as_object()
                .expect("tensors")
                .iter()
                .map(|(name, tensor)| (name.clone(), Tensor::new(tensor)))
                .collect(),
        )
    }

    pub fn get(&self, name: &Value) -> Option<&Tensor> {
        name.as_str().map(|name| self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")))
    }
}

/// The rule of the README: norm of the difference, largest difference, or equal numbers; infinities always
/// exactly.
pub fn compare<T: Number>(what: &str, found: &[T], expected: &Tensor, step: &Value) -> Result<(), String> {
    let expected = expected.widened();
    if found.len() != expected.len() {
        return Err(format!("{what}: {} elements, expected {}", found.len(), expected.len()));
    }
    let (mut error, mut length, mut largest) = (0.0f64, 0.0f64, 0.0f64);
    let relative = step.get(format!("{what}_l2")).and_then(Value::as_f64);
    let absolute = step.get(format!("{what}_abs")).and_then(Value::as_f64);
    for (i, (&x, &y)) in found.iter().zip(&expected).enumerate() {
        let x = x.widen();
        let exact = y.is_infinite() || (relative.is_none() && absolute.is_none());
        if x.is_nan() || (exact && x != y) {
            return Err(format!("{what}[{i}] = {x}, expected {y}"));
        }
        if !exact {
            error += (x - y) * (x - y);
            length += y * y;
            largest = largest.max((x - y).abs());
        }
    }
    if let Some(bound) = relative {
        if error.sqrt() > bound * length.sqrt() {
            return Err(format!("{what}: relative error {} > {bound}", (error / length).sqrt()));
        }
    }
    match absolute {
        Some(bound) if largest > bound => Err(format!("{what}: error {largest} > {bound}")),
        _ => Ok(()),
    }
}
