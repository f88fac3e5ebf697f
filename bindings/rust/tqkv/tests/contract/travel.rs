// SPDX-License-Identifier: Apache-2.0
//! Steps of state that travels, and of an engine's pages.

use crate::fields::{attend_params, config_of, int, int32, ints, known, text};
use crate::runner::{equal, Outcome, Runner, Trouble};
use crate::tensors::{compare, Number, Tensors};
use half::{bf16, f16};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use tqkv::{
    CacheConfig, Dtype, LayerConfig, Library, Mac, PageBytes, PageOrder, PagedCodec, PagedStep, Pages, Part,
    State, StateBytes, StepArrays,
};

/// Things by the names that steps give them.
#[derive(Default)]
pub struct Travel {
    parts: HashMap<String, (State, StateBytes)>,
    files: HashMap<String, Vec<u8>>,
    codecs: HashMap<String, (PagedCodec, CacheConfig)>,
    blocks: HashMap<String, Blocks>,
    steps: HashMap<String, (PagedStep, i64)>,
}

struct Blocks {
    memory: PageBytes,
    block_size: i32,
    order: PageOrder,
}

/// The MAC of the cases: 16 bytes (README).
struct CaseMac {
    key: u8,
    at: usize,
    tag: [u8; 16],
}

impl Mac for CaseMac {
    fn tag_bytes(&self) -> usize {
        16
    }
    fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let tag = &mut self.tag[self.at % 16];
            *tag = tag.wrapping_mul(31).wrapping_add(byte).wrapping_add(self.key);
            self.at += 1;
        }
    }
    fn tag(&mut self, tag: &mut [u8]) {
        tag.copy_from_slice(&self.tag);
    }
}

fn mac_of(step: &Value) -> Option<CaseMac> {
    step.get("mac").map(|key| CaseMac { key: key.as_u64().expect("mac") as u8, at: 0, tag: [0; 16] })
}

fn range<T: TryFrom<i64>>(step: &Value, field: &str) -> Option<Range<T>> {
    let number = |n: i64| T::try_from(n).unwrap_or_else(|_| panic!("{field} in {step}"));
    step.get(field).map(|pair| {
        let pair = ints(pair);
        number(pair[0])..number(pair[0] + pair[1])
    })
}

fn same(what: &str, equal: bool) -> Outcome {
    if equal {
        return Ok(());
    }
    Err(Trouble::Contract(format!("other bytes than {what}")))
}

impl Runner<'_> {
    pub fn export(&mut self, step: &Value) -> Outcome {
        let part = Part {
            layers: range(step, "layers"),
            kv_heads: range(step, "kv_heads"),
            tokens: range(step, "tokens"),
        };
        let made = self.named(step).cache.export_sequence(self.sequence(step, "sequence"), &part)?;
        let s = &made.0;
        for (name, found) in [
            ("first_layer", i64::from(s.first_layer)),
            ("num_layers", i64::from(s.num_layers)),
            ("first_kv_head", i64::from(s.first_kv_head)),
            ("num_kv_heads", i64::from(s.num_kv_heads)),
            ("first_token", s.first_token),
            ("num_tokens", s.num_tokens),
            ("exact_sinks", s.exact_sinks),
            ("exact_first", s.exact_first),
        ] {
            if step.get("expect").is_some_and(|expect| expect.get(name).is_some()) {
                equal(name, found, int(&step["expect"], name))?;
            }
        }
        if step.get("equals").is_some() {
            let other = text(step, "equals");
            same(other, self.travel.parts[other].1 == made.1)?;
        }
        self.travel.parts.insert(text(step, "save").to_owned(), made);
        Ok(())
    }

    pub fn import(&mut self, step: &Value) -> Outcome {
        let (mut state, memory) = self.travel.parts[text(step, "part")].clone();
        let mut bytes = memory.len();
        if let Some(change) = step.get("change") {
            for (name, value) in change.as_object().expect("change") {
                let number = value.as_i64().expect("number");
                match name.as_str() {
                    "identity" => state.identity ^= number as u64,
                    "num_layers" => state.num_layers = number as i32,
                    "num_tokens" => state.num_tokens = number,
                    "first_token" => state.first_token = number,
                    "exact_sinks" => state.exact_sinks = number,
                    "exact_first" => state.exact_first = number,
                    "rollback_tokens" => state.rollback_tokens = number,
                    "cut" => bytes -= number as usize,
                    other => panic!("change.{other}"),
                }
            }
        }
        let sequence = self.sequence(step, "sequence");
        Ok(self.named(step).cache.import_sequence(sequence, &state, &memory[..bytes])?)
    }

    pub fn save(&mut self, step: &Value) -> Outcome {
        let (mut file, mut mac) = (Vec::new(), mac_of(step));
        let mac = mac.as_mut().map(|mac| mac as &mut dyn Mac);
        let sequence = self.sequence(step, "sequence");
        self.named(step).cache.save_sequence_with(sequence, &mut file, mac)?;
        if step.get("equals").is_some() {
            let other = text(step, "equals");
            same(other, self.travel.files[other] == file)?;
        }
        self.travel.files.insert(text(step, "save").to_owned(), file);
        Ok(())
    }

    pub fn load(&mut self, step: &Value) -> Outcome {
        let mut file = self.travel.files[text(step, "file")].clone();
        if let Some(change) = step.get("change") {
            known(change, "at xor cut");
            let at = int(change, "at");
            let at = if at < 0 { file.len() - at.unsigned_abs() as usize } else { at as usize };
            file[at] ^= int(change, "xor") as u8;
            file.truncate(file.len() - int(change, "cut") as usize);
        }
        let mut mac = mac_of(step);
        let mac = mac.as_mut().map(|mac| mac as &mut dyn Mac);
        let loaded = self.named(step).cache.load_sequence_with(&mut file.as_slice(), mac)?;
        self.named_mut(step).sequences.insert(text(step, "sequence").to_owned(), loaded);
        Ok(())
    }
}

impl Travel {
    fn entry(&self, step: &Value) -> &(PagedCodec, CacheConfig) {
        &self.codecs[step.get("codec").map_or("main", |name| name.as_str().expect("codec"))]
    }

    pub fn codec(&self, step: &Value) -> &PagedCodec {
        &self.entry(step).0
    }

    fn layer(&self, step: &Value) -> LayerConfig {
        let layers = &self.entry(step).1.layers;
        layers.get(int32(step, "layer") as usize).unwrap_or(&layers[0]).clone()
    }

    pub fn paged(&mut self, op: &str, step: &Value, library: &Library, tensors: &Tensors) -> Outcome {
        match op {
            "codec_create" => {
                let codec = PagedCodec::new(library, &config_of(&step["config"]))?;
                let config = codec.config()?;
                self.codecs.insert("main".to_owned(), (codec, config));
                Ok(())
            }
            "codec_check" => equal("flags", self.codec(step).check()?.0 as i64, int(step, "expect")),
            "codec_centres" => {
                let key = tensors.get(&step["key_centre"]).map(|t| t.slice()).transpose()?;
                let value = tensors.get(&step["value_centre"]).map(|t| t.slice()).transpose()?;
                Ok(self.codec(step).set_centres(int32(step, "layer"), key, value)?)
            }
            "pages" => self.pages(step),
            "paged_plan" => self.plan(step),
            "paged_copy" => self.copy(step),
            _ => match self.entry(step).1.io_dtype {
                Dtype::F16 => self.typed::<f16>(op, step, tensors),
                Dtype::BF16 => self.typed::<bf16>(op, step, tensors),
                _ => self.typed::<f32>(op, step, tensors),
            },
        }
    }

    fn typed<T: Number>(&mut self, op: &str, step: &Value, tensors: &Tensors) -> Outcome {
        match op {
            "paged_append" => self.append::<T>(step, tensors),
            "paged_attend" => self.attend::<T>(step, tensors),
            "paged_read" => self.read::<T>(step, tensors),
            other => panic!("op {other}"),
        }
    }

    fn pages(&mut self, step: &Value) -> Outcome {
        let order = step.get("order").map_or(PageOrder::BLOCKS_FIRST, |_| PageOrder(int32(step, "order")));
        let (layer, block_size, count) =
            (int32(step, "layer"), int32(step, "block_size"), int(step, "num_blocks"));
        let layout = self.codec(step).page_layout(layer, block_size, count, order)?;
        equal("total_bytes", layout.total_bytes, int(&step["expect"], "total_bytes"))?;
        equal("block_head_bytes", layout.block_head_bytes, int(&step["expect"], "block_head_bytes"))?;
        let memory = self.codec(step).allocate(layer, count, block_size, order)?;
        self.blocks.insert(text(step, "name").to_owned(), Blocks { memory, block_size, order });
        Ok(())
    }

    fn plan(&mut self, step: &Value) -> Outcome {
        let narrow = |list: Vec<i64>| -> Vec<i32> { list.into_iter().map(|n| n as i32).collect() };
        let slots = ints(&step["slot_mapping"]);
        let rows = step["block_table"].as_array().expect("block_table");
        let table: Vec<i32> = rows.iter().flat_map(|row| narrow(ints(row))).collect();
        let (lens, starts) = (narrow(ints(&step["seq_lens"])), narrow(ints(&step["query_start_loc"])));
        let mut planned = self.steps.remove(text(step, "step")).unwrap_or_default();
        planned.1 = slots.len() as i64;
        let done = self.codec(step).plan(
            &mut planned.0,
            &StepArrays {
                slot_mapping: Some(&slots),
                block_table: &table,
                seq_lens: &lens,
                query_start_loc: &starts,
                num_tokens: 0,
                max_query_len: int32(step, "max_query_len"),
                max_seq_len: int32(step, "max_seq_len"),
            },
        );
        self.steps.insert(text(step, "step").to_owned(), planned);
        Ok(done?)
    }

    /// Calls with the codec, the step and the pages that the fields name.
    fn with<R>(
        &mut self,
        step: &Value,
        field: &str,
        call: impl FnOnce(&PagedCodec, &mut PagedStep, &mut Pages<'_>) -> tqkv::Result<R>,
    ) -> Result<R, Trouble> {
        let codec = &self.codecs["main"].0;
        let name = step.get("step").map_or("", |name| name.as_str().expect("step"));
        let (planned, _) = self.steps.entry(name.to_owned()).or_default();
        let blocks = self.blocks.get_mut(text(step, field)).expect("pages");
        let layer = int32(step, "layer").max(0);
        let mut pages = codec.pages(layer, &mut blocks.memory, blocks.block_size, blocks.order)?;
        Ok(call(codec, planned, &mut pages)?)
    }

    fn append<T: Number>(&mut self, step: &Value, tensors: &Tensors) -> Outcome {
        let slice = |field: &str| tensors.get(&step[field]).expect("tensor").slice::<T>();
        let (k, v) = (slice("k")?, slice("v")?);
        self.with(step, "pages", |codec, s, pages| codec.append(s, int32(step, "layer"), pages, k, v))
    }

    fn attend<T: Number>(&mut self, step: &Value, tensors: &Tensors) -> Outcome {
        let layer = self.layer(step);
        let q = tensors.get(&step["q"]).expect("q").slice::<T>()?;
        let rows = q.len() / layer.head_dim as usize;
        let (mut out, mut lse) = (vec![f32::NAN; rows * layer.value_dim as usize], vec![f32::NAN; rows]);
        let params = attend_params(step, tensors)?;
        self.with(step, "pages", |codec, s, pages| {
            codec.attend_with(s, int32(step, "layer"), pages, q, &mut out, Some(&mut lse), &params)
        })?;
        if step.get("status").is_some() {
            return Ok(()); // it should have failed: nothing to compare with
        }
        compare("out", &out, tensors.get(&step["out"]).expect("out"), step)?;
        Ok(compare("lse", &lse, tensors.get(&step["lse"]).expect("lse"), step)?)
    }

    fn read<T: Number>(&mut self, step: &Value, tensors: &Tensors) -> Outcome {
        let (layer, slots) = (self.layer(step), ints(&step["slots"]));
        let rows = slots.len() * layer.num_kv_heads as usize;
        let mut k = vec![T::NAN; rows * layer.head_dim as usize];
        let mut v = vec![T::NAN; rows * layer.value_dim as usize];
        self.with(step, "pages", |codec, _, pages| {
            codec.read(int32(step, "layer"), pages, &slots, Some(&mut k), Some(&mut v))
        })?;
        if step.get("status").is_some() {
            return Ok(()); // it should have failed: nothing to compare with
        }
        for (what, found) in [("k", &k), ("v", &v)] {
            compare(what, found, tensors.get(&step[what]).expect("tensor"), step)?;
        }
        Ok(())
    }

    fn copy(&mut self, step: &Value) -> Outcome {
        let pairs: Vec<[i64; 2]> = (step["pairs"].as_array().expect("pairs").iter())
            .map(|pair| ints(pair).try_into().expect("two blocks"))
            .collect();
        let layer = int32(step, "layer");
        if text(step, "source") == text(step, "target") {
            return self.with(step, "source", |codec, _, pages| codec.copy_within(layer, pages, &pairs));
        }
        let mut from = self.blocks.remove(text(step, "source")).expect("source");
        let done = self.with(step, "target", |codec, _, target| {
            let source = codec.pages(layer, &mut from.memory, from.block_size, from.order)?;
            codec.copy(layer, &source, target, &pairs)
        });
        self.blocks.insert(text(step, "source").to_owned(), from);
        done
    }

    /// Frees the codecs.
    pub fn close(self) -> Result<(), String> {
        for (_, (codec, _)) in self.codecs {
            codec.close().map_err(|error| format!("closing a codec: {error}"))?;
        }
        Ok(())
    }
}
