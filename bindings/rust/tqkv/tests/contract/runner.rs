// SPDX-License-Identifier: Apache-2.0
//! One case: named caches, sequences and batches, and the steps.

use crate::fields::{attend_params, config_of, int, int32, ints, known, text, LAYOUT_FIELDS, STEP_FIELDS};
use crate::tensors::{compare, Number, Tensors};
use crate::travel::Travel;
use core::ffi::c_void;
use half::{bf16, f16};
use serde_json::Value;
use std::collections::HashMap;
use tqkv::{
    AttendPointers, Batch, Cache, DeviceType, Dtype, Error, LayerConfig, Layout, Library, Sequence, Step,
    Stream,
};

/// How a step went wrong: the library's answer, which the step may expect; an argument that the types
/// exclude, which answers as well; or a broken expectation.
pub enum Trouble {
    Library(Error),
    Inexpressible,
    Contract(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Library(error)
    }
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Trouble::Contract(text)
    }
}

pub type Outcome = Result<(), Trouble>;

/// A cache with the names of its objects and what the runner must know of it.
pub struct Named {
    pub cache: Cache,
    io_dtype: Dtype,
    layers: Vec<LayerConfig>,
    pub sequences: HashMap<String, Sequence>,
    batches: HashMap<String, (Batch, i64)>,
}

impl Named {
    /// The step's layer; for a number that there is not, the first one.
    fn layer(&self, step: &Value) -> LayerConfig {
        self.layers.get(int32(step, "layer") as usize).unwrap_or(&self.layers[0]).clone()
    }
}

pub struct Runner<'a> {
    library: &'a Library,
    tensors: &'a Tensors,
    caches: HashMap<String, Named>,
    fingerprints: HashMap<String, u64>,
    pub travel: Travel,
}

/// Bytes at a multiple of 256.
struct Workspace(Vec<u8>);

impl Workspace {
    fn new(bytes: usize) -> Workspace {
        Workspace(vec![0xff; bytes + 256])
    }

    fn pointer(&mut self) -> *mut c_void {
        let offset = self.0.as_ptr().align_offset(256);
        self.0[offset..].as_mut_ptr().cast()
    }
}

/// Calls a generic method with the element type of a dtype.
macro_rules! with_type {
    ($dtype:expr, $self:ident.$method:ident($($argument:expr),*)) => {
        match $dtype {
            Dtype::F16 => $self.$method::<f16>($($argument),*),
            Dtype::BF16 => $self.$method::<bf16>($($argument),*),
            _ => $self.$method::<f32>($($argument),*),
        }
    };
}

impl<'a> Runner<'a> {
    pub fn new(library: &'a Library, tensors: &'a Tensors) -> Runner<'a> {
        Runner {
            library,
            tensors,
            caches: HashMap::new(),
            fingerprints: HashMap::new(),
            travel: Travel::default(),
        }
    }

    pub fn run(mut self, case: &Value) -> Result<(), String> {
        for (number, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
            let outcome = self.step(step);
            self.expect(step, outcome)
                .map_err(|why| format!("step {number} ({}): {why}", text(step, "op")))?;
        }
        for (name, named) in self.caches.drain() {
            for (batch, _) in named.batches.values() {
                named
                    .cache
                    .destroy_batch(*batch)
                    .map_err(|error| format!("destroying a batch of {name}: {error}"))?;
            }
            named.cache.close().map_err(|error| format!("closing {name}: {error}"))?;
        }
        self.travel.close()
    }

    /// A step without status must succeed, one with a status fail with it and a text that holds the given
    /// ones.
    fn expect(&self, step: &Value, outcome: Outcome) -> Result<(), String> {
        let error = match (outcome, step.get("status")) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(status)) => return Err(format!("succeeded, expected {status}")),
            (Err(Trouble::Contract(why)), _) => return Err(why),
            (Err(Trouble::Inexpressible), Some(_)) => return Ok(()),
            (Err(Trouble::Inexpressible), None) => return Err("cannot be expressed".to_owned()),
            (Err(Trouble::Library(error)), None) => return Err(error.to_string()),
            (Err(Trouble::Library(error)), Some(_)) => error,
        };
        let name = error.status.raw().map_or("", |number| self.library.status_name(number));
        if name != text(step, "status") {
            return Err(format!("{name} ({error}), expected {}", text(step, "status")));
        }
        let list = match &step["text"] {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        match list.iter().map(|part| part.as_str().expect("text")).find(|part| !error.message.contains(part))
        {
            Some(part) => Err(format!("the text lacks '{part}': {}", error.message)),
            None => Ok(()),
        }
    }

    pub fn named(&self, step: &Value) -> &Named {
        self.caches
            .get(step.get("cache").map_or("main", |name| name.as_str().expect("cache")))
            .expect("cache")
    }

    pub fn named_mut(&mut self, step: &Value) -> &mut Named {
        self.caches
            .get_mut(step.get("cache").map_or("main", |name| name.as_str().expect("cache")))
            .expect("cache")
    }

    pub fn sequence(&self, step: &Value, field: &str) -> Sequence {
        self.named(step).sequences[text(step, field)]
    }

    /// The batch of this name and the queries of its plan; made when first named.
    fn batch(&mut self, step: &Value) -> Result<(Batch, i64), Error> {
        let named = self.named_mut(step);
        let name = text(step, "batch");
        if let Some(&found) = named.batches.get(name) {
            return Ok(found);
        }
        let made = (named.cache.create_batch()?, 0);
        named.batches.insert(name.to_owned(), made);
        Ok(made)
    }

    fn step(&mut self, step: &Value) -> Outcome {
        known(step, STEP_FIELDS);
        match text(step, "op") {
            "create" => self.create(step),
            "config_bytes" => self.config_bytes(step),
            "memory" => self.memory(step),
            "fingerprint" => self.fingerprint(step),
            "export" => self.export(step),
            "import" => self.import(step),
            "save" => self.save(step),
            "load" => self.load(step),
            op if op.starts_with("paged_") || op.starts_with("codec_") || op == "pages" => {
                self.travel.paged(op, step, self.library, self.tensors)
            }
            "check" => equal("flags", self.named(step).cache.check()?.0 as i64, int(step, "expect")),
            "set_centres" => self.set_centres(step),
            "sequence_create" => {
                let made = self.named(step).cache.create_sequence()?;
                self.named_mut(step).sequences.insert(text(step, "sequence").to_owned(), made);
                Ok(())
            }
            "sequence_fork" => {
                let made = self.named(step).cache.fork_sequence(self.sequence(step, "source"))?;
                self.named_mut(step).sequences.insert(text(step, "sequence").to_owned(), made);
                Ok(())
            }
            "sequence_copy" => {
                let target = text(step, "target");
                let made = self
                    .named(step)
                    .cache
                    .copy_sequence(self.sequence(step, "source"), &self.caches[target].cache)?;
                let sequences = &mut self.caches.get_mut(target).expect("target").sequences;
                sequences.insert(text(step, "sequence").to_owned(), made);
                Ok(())
            }
            "sequence_truncate" => Ok(self
                .named(step)
                .cache
                .truncate_sequence(self.sequence(step, "sequence"), int(step, "length"))?),
            "sequence_flush" => Ok(self.named(step).cache.flush_sequence(self.sequence(step, "sequence"))?),
            "reserve" => Ok(self.named(step).cache.reserve(int(step, "max_tokens"))?),
            "sequence_remove" => Ok(self.named(step).cache.remove_tokens(
                self.sequence(step, "sequence"),
                int(step, "first"),
                int(step, "count"),
            )?),
            "sequence_select" => Ok(self
                .named(step)
                .cache
                .select_tokens(self.sequence(step, "sequence"), &ints(&step["positions"]))?),
            "sequence_free" => Ok(self.named(step).cache.free_sequence(self.sequence(step, "sequence"))?),
            "sequence_length" => {
                let length = self.named(step).cache.sequence_length(self.sequence(step, "sequence"))?;
                equal("length", length, int(step, "expect"))
            }
            "sequence_flags" => {
                let flags = self.named(step).cache.sequence_flags(self.sequence(step, "sequence"))?;
                equal("flags", flags.0 as i64, int(step, "expect"))
            }
            "batch_create" => self.batch(step).map(|_| ()).map_err(Trouble::from),
            "plan" => self.plan(step),
            "append" => with_type!(self.named(step).io_dtype, self.append(step)),
            "attend" => with_type!(self.named(step).io_dtype, self.attend(step)),
            "read" => with_type!(self.named(step).io_dtype, self.read(step)),
            "merge" => self.merge(step),
            other => panic!("op {other}"),
        }
    }

    fn create(&mut self, step: &Value) -> Outcome {
        let config = config_of(&step["config"]);
        let checked = self.library.check_config(&config);
        let made = Cache::new(self.library, &config);
        let cache = match (made, checked) {
            (Ok(cache), Ok(())) => cache,
            (Ok(_), Err(error)) => {
                return Err(Trouble::Contract(format!("check_config refuses what new accepts: {error}")))
            }
            (Err(error), Ok(())) => {
                return Err(Trouble::Contract(format!("new refuses what check_config accepts: {error}")))
            }
            (Err(error), Err(checked)) => {
                self.expect(step, Err(checked.into())).map_err(|why| format!("check_config: {why}"))?;
                return Err(error.into());
            }
        };
        let resolved = cache.config()?;
        let named = Named {
            cache,
            io_dtype: resolved.io_dtype,
            layers: resolved.layers,
            sequences: HashMap::new(),
            batches: HashMap::new(),
        };
        self.caches
            .insert(step.get("cache").map_or("main", |name| name.as_str().expect("cache")).to_owned(), named);
        Ok(())
    }

    fn config_bytes(&self, step: &Value) -> Outcome {
        let bytes = self.library.config_bytes(&config_of(&step["config"]))?;
        for (name, value) in step["expect"].as_object().expect("expect") {
            let found = match name.as_str() {
                "token_bytes" => bytes.token_bytes,
                "fp16_token_bytes" => bytes.fp16_token_bytes,
                "page_bytes" => bytes.page_bytes,
                "num_pages" => bytes.num_pages,
                other => panic!("expect.{other}"),
            };
            equal(name, found, value.as_i64().expect("integer"))?;
        }
        Ok(())
    }

    fn memory(&self, step: &Value) -> Outcome {
        let memory = self.named(step).cache.memory()?;
        for (name, value) in step["expect"].as_object().expect("expect") {
            let found = match name.as_str() {
                "num_sequences" => i64::from(memory.num_sequences),
                "tokens" => memory.tokens,
                "pages_used" => memory.pages_used,
                "pages_total" => memory.pages_total,
                "stored_bytes_used" => memory.stored_bytes_used,
                "raw_bytes_used" => memory.raw_bytes_used,
                "compression" => {
                    let expected = value.as_f64().expect("number");
                    if (memory.compression - expected).abs() > 1e-12 * expected {
                        return Err(Trouble::Contract(format!(
                            "compression {}, expected {expected}",
                            memory.compression
                        )));
                    }
                    continue;
                }
                other => panic!("expect.{other}"),
            };
            equal(name, found, value.as_i64().expect("integer"))?;
        }
        Ok(())
    }

    fn fingerprint(&mut self, step: &Value) -> Outcome {
        let found = match step.get("codec") {
            Some(_) => self.travel.codec(step).fingerprint()?,
            None => self.named(step).cache.fingerprint()?,
        };
        if let Some(name) = step.get("save") {
            self.fingerprints.insert(name.as_str().expect("save").to_owned(), found);
        }
        for (field, same) in [("equals", true), ("differs", false)] {
            if let Some(name) = step.get(field) {
                if (self.fingerprints[name.as_str().expect("name")] == found) != same {
                    return Err(Trouble::Contract(format!(
                        "fingerprint {found:x} must be one that {field} {name}"
                    )));
                }
            }
        }
        Ok(())
    }

    fn set_centres(&self, step: &Value) -> Outcome {
        let key = self.tensors.get(&step["key_centre"]).map(|t| t.slice()).transpose()?;
        let value = self.tensors.get(&step["value_centre"]).map(|t| t.slice()).transpose()?;
        Ok(self.named(step).cache.set_centres(int32(step, "layer"), key, value)?)
    }

    fn plan(&mut self, step: &Value) -> Outcome {
        let (batch, _) = self.batch(step)?;
        let new_tokens = ints(&step["new_tokens"]);
        let query_tokens = step.get("query_tokens").map_or(new_tokens.clone(), ints);
        let named = self.named_mut(step);
        let names = step["sequences"].as_array().expect("sequences");
        let steps: Vec<Step> = (names.iter().zip(&new_tokens).zip(&query_tokens))
            .map(|((name, &new), &queries)| {
                Step::new(named.sequences[name.as_str().expect("name")], new).queries(queries)
            })
            .collect();
        named.cache.plan(batch, &steps)?;
        named.batches.insert(text(step, "batch").to_owned(), (batch, query_tokens.iter().sum()));
        Ok(())
    }

    fn append<T: Number>(&mut self, step: &Value) -> Outcome {
        let (batch, _) = self.batch(step)?;
        let tensor = |field: &str| self.tensors.get(&step[field]).expect("tensor").slice::<T>();
        let k = &tensor("k")?[int(step, "k_offset") as usize..];
        let v: &[T] = match step.get("v") {
            None => &[], // of a latent layer
            Some(_) => &tensor("v")?[int(step, "v_offset") as usize..],
        };
        let cache = &self.named(step).cache;
        match step.get("layout") {
            None => cache.append(int32(step, "layer"), batch, k, v)?,
            Some(layout) => {
                known(layout, LAYOUT_FIELDS);
                let layout = Layout {
                    key_token_stride: int(layout, "key_token_stride"),
                    key_head_stride: int(layout, "key_head_stride"),
                    value_token_stride: int(layout, "value_token_stride"),
                    value_head_stride: int(layout, "value_head_stride"),
                };
                cache.append_strided(int32(step, "layer"), batch, k, v, layout)?;
            }
        }
        Ok(())
    }

    fn attend<T: Number>(&mut self, step: &Value) -> Outcome {
        let (batch, queries) = self.batch(step)?;
        let named = self.named(step);
        let layer = named.layer(step);
        let q = self.tensors.get(&step["q"]).expect("q").slice::<T>()?;
        let queries = if step.get("status").is_some() { queries.max(1) } else { queries };
        let rows = queries as usize * layer.num_q_heads as usize;
        let (mut out, mut lse) = (vec![f32::NAN; rows * layer.value_dim as usize], vec![f32::NAN; rows]);
        let params = attend_params(step, self.tensors)?;
        let layer = int32(step, "layer");
        match step.get("workspace").map(|kind| kind.as_str().expect("workspace")) {
            None => named.cache.attend_with(layer, batch, q, &mut out, Some(&mut lse), &params)?,
            Some(kind) => {
                let bytes = if kind == "short" { 1 } else { named.cache.attend_workspace_bytes()? };
                let mut workspace = Workspace::new(bytes);
                let pointers = AttendPointers {
                    q: q.as_ptr().cast(),
                    out: out.as_mut_ptr().cast(),
                    lse: lse.as_mut_ptr(),
                    workspace: workspace.pointer(),
                    workspace_bytes: bytes,
                    ..Default::default()
                };
                // SAFETY: buffers of the plan's size on the host; the workspace is as long as said.
                unsafe { named.cache.attend_raw(layer, batch, pointers, &params, Stream::NONE)? }
            }
        }
        if step.get("status").is_some() {
            return Ok(()); // it should have failed: nothing to compare with
        }
        compare("out", &out, self.tensors.get(&step["out"]).expect("out"), step)?;
        Ok(compare("lse", &lse, self.tensors.get(&step["lse"]).expect("lse"), step)?)
    }

    fn read<T: Number>(&mut self, step: &Value) -> Outcome {
        let named = self.named(step);
        let (first, count) = (int(step, "first"), int(step, "count"));
        let layer = named.layer(step);
        let rows = count.max(0) as usize * layer.num_kv_heads as usize;
        let mut k = vec![T::NAN; rows * layer.head_dim as usize];
        let mut v = vec![T::NAN; rows * layer.value_dim as usize];
        named.cache.read(
            int32(step, "layer"),
            self.sequence(step, "sequence"),
            first,
            count,
            Some(&mut k),
            Some(&mut v),
        )?;
        if step.get("status").is_some() {
            return Ok(()); // it should have failed: nothing to compare with
        }
        for (what, found) in [("k", &k), ("v", &v)] {
            compare(what, found, self.tensors.get(&step[what]).expect("tensor"), step)?;
        }
        Ok(())
    }

    fn merge(&self, step: &Value) -> Outcome {
        let list = |field: &str| -> Result<Vec<&[f32]>, String> {
            step[field]
                .as_array()
                .expect("list")
                .iter()
                .map(|name| self.tensors.get(name).expect("tensor").slice())
                .collect()
        };
        let (outs, lses) = (list("outs")?, list("lses")?);
        let (rows, dim, dtype) = (int(step, "rows"), int32(step, "dim"), Dtype(int32(step, "dtype")));
        let (mut out, mut lse) =
            (vec![f32::NAN; rows.max(0) as usize * dim as usize], vec![f32::NAN; rows.max(0) as usize]);
        if dtype == Dtype::F32 {
            self.library.merge_states(&outs, &lses, rows, dim, &mut out, Some(&mut lse))?;
        } else {
            let outs: Vec<*const c_void> = outs.iter().map(|part| part.as_ptr().cast()).collect();
            let lses: Vec<*const f32> = lses.iter().map(|part| part.as_ptr()).collect();
            let (out, lse, device) = (out.as_mut_ptr().cast(), lse.as_mut_ptr(), (DeviceType::CPU, 0));
            // SAFETY: buffers of float32, which no type is wider than.
            unsafe {
                self.library.merge_states_raw(
                    &outs,
                    &lses,
                    rows,
                    dim,
                    dtype,
                    out,
                    lse,
                    device,
                    Stream::NONE,
                )?
            }
        }
        if step.get("status").is_some() {
            return Ok(()); // it should have failed: nothing to compare with
        }
        compare("out", &out, self.tensors.get(&step["out"]).expect("out"), step)?;
        Ok(compare("lse", &lse, self.tensors.get(&step["lse"]).expect("lse"), step)?)
    }
}

pub fn equal(what: &str, found: i64, expected: i64) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(Trouble::Contract(format!("{what}: {found}, expected {expected}")))
}
