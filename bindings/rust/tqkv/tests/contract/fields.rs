// SPDX-License-Identifier: Apache-2.0
//! Fields of a step, and the configuration in one.

use crate::runner::Trouble;
use crate::tensors::Tensors;
use serde_json::Value;
use tqkv::{
    AttendParams, CacheConfig, CodeFamily, Codebook, DeviceType, Dtype, KeyBands, LayerConfig, LayerKind,
    Rotation, ScaleRule, Sketch, SketchRule,
};

pub fn text<'a>(step: &'a Value, field: &str) -> &'a str {
    step[field].as_str().unwrap_or_else(|| panic!("{field} in {step}"))
}

pub fn int(value: &Value, field: &str) -> i64 {
    value.get(field).map_or(0, |number| number.as_i64().unwrap_or_else(|| panic!("{field} in {value}")))
}

pub fn int32(value: &Value, field: &str) -> i32 {
    i32::try_from(int(value, field)).unwrap_or_else(|_| panic!("{field} in {value}"))
}

pub fn float(value: &Value, field: &str) -> f32 {
    value
        .get(field)
        .map_or(0.0, |number| number.as_f64().unwrap_or_else(|| panic!("{field} in {value}")) as f32)
}

pub fn ints(value: &Value) -> Vec<i64> {
    value.as_array().map_or(Vec::new(), |list| list.iter().map(|n| n.as_i64().expect("integer")).collect())
}

fn layer_of(fields: &Value) -> LayerConfig {
    known(
        fields,
        "num_q_heads num_kv_heads head_dim value_dim key_bits value_bits key_family value_family rotation \
         sliding_window shares_layer first_kv_head group_size layer_kind key_bands",
    );
    let number = |name| int32(fields, name);
    let layer = LayerConfig::new()
        .heads(number("num_q_heads"), number("num_kv_heads"))
        .head_dim(number("head_dim"))
        .value_dim(number("value_dim"))
        .bits(number("key_bits"), number("value_bits"))
        .families(CodeFamily(number("key_family")), CodeFamily(number("value_family")))
        .rotation(Rotation(number("rotation")))
        .sliding_window(number("sliding_window"))
        .first_kv_head(number("first_kv_head"))
        .group_size(number("group_size"))
        .kind(LayerKind(number("layer_kind")));
    let layer = match fields.get("key_bands") {
        None => layer,
        Some(bands) => {
            known(bands, "bits order");
            let list = |name| ints(&bands[name]).into_iter().map(|n| n as i32).collect();
            layer.key_bands(KeyBands { bits: list("bits"), order: list("order") })
        }
    };
    match number("shares_layer") {
        0 => layer,
        shared => layer.shares(shared - 1),
    }
}

pub fn config_of(fields: &Value) -> CacheConfig {
    let mut config = CacheConfig::default();
    let bits = |value: &Value| ints(value).into_iter().map(|n| n as i32).collect();
    let codebook = |book: &Value| Codebook {
        bits: int32(book, "bits"),
        unit: float(book, "unit"),
        magnitude: ints(&book["magnitude"]).into_iter().map(|n| n as u8).collect(),
    };
    for (name, value) in fields.as_object().expect("config") {
        let number = || int32(fields, name);
        match name.as_str() {
            "device_type" => config.device_type = DeviceType(number()),
            "device_id" => config.device_id = number(),
            "num_layers" => config.num_layers = number(),
            "num_q_heads" => config.num_q_heads = number(),
            "num_kv_heads" => config.num_kv_heads = number(),
            "head_dim" => config.head_dim = number(),
            "value_dim" => config.value_dim = number(),
            "io_dtype" => config.io_dtype = Dtype(number()),
            "key_bits" => config.key_bits = number(),
            "value_bits" => config.value_bits = number(),
            "code_family" => config.code_family = CodeFamily(number()),
            "key_family" => config.key_family = CodeFamily(number()),
            "value_family" => config.value_family = CodeFamily(number()),
            "group_size" => config.group_size = number(),
            "layer_kind" => config.layer_kind = LayerKind(number()),
            "sketch" => config.sketch = Sketch(number()),
            "sketch_rule" => config.sketch_rule = SketchRule(number()),
            "sketch_factor" => config.sketch_factor = float(fields, name),
            "layer_key_bits" => config.layer_key_bits = bits(value),
            "layer_value_bits" => config.layer_value_bits = bits(value),
            "rotation" => config.rotation = Rotation(number()),
            "key_scale_rule" => config.key_scale_rule = ScaleRule(number()),
            "value_scale_rule" => config.value_scale_rule = ScaleRule(number()),
            "page_size" => config.page_size = number(),
            "first_layer" => config.first_layer = number(),
            "first_kv_head" => config.first_kv_head = number(),
            "rotation_seed" => config.rotation_seed = value.as_u64().expect("seed"),
            "layers" => config.layers = value.as_array().expect("layers").iter().map(layer_of).collect(),
            "key_codebook" => config.key_codebook = Some(codebook(value)),
            "value_codebook" => config.value_codebook = Some(codebook(value)),
            "max_tokens" => config.max_tokens = int(fields, name),
            "max_reserve_tokens" => config.max_reserve_tokens = int(fields, name),
            "max_sequence_tokens" => config.max_sequence_tokens = int(fields, name),
            "max_sequences" => config.max_sequences = number(),
            "max_batch_sequences" => config.max_batch_sequences = number(),
            "max_batch_tokens" => config.max_batch_tokens = int(fields, name),
            "max_raw_tokens" => config.max_raw_tokens = int(fields, name),
            "window_tokens" => config.window_tokens = number(),
            "sink_tokens" => config.sink_tokens = number(),
            "rollback_tokens" => config.rollback_tokens = number(),
            "num_threads" => config.num_threads = number(),
            "flags" => config.flags = value.as_u64().expect("flags"),
            other => panic!("config.{other}"),
        }
    }
    config
}

pub const STEP_FIELDS: &str =
    "op cache sequence source batch status text config expect save equals differs key_centre value_centre \
     layer length sequences new_tokens query_tokens k v k_offset v_offset layout q params workspace out \
     out_l2 lse lse_abs first count k_l2 v_l2 outs lses rows dim dtype \
     max_tokens positions target layers kv_heads tokens part change mac file codec name num_blocks \
     block_size order step slot_mapping block_table seq_lens query_start_loc max_query_len max_seq_len pages \
     slots pairs";
pub const LAYOUT_FIELDS: &str = "key_token_stride key_head_stride value_token_stride value_head_stride";
const ATTEND_FIELDS: &str = "out_dtype softmax_scale logit_softcap sliding_window sink_logits \
    history_only q_token_stride q_head_stride out_token_stride out_head_stride visible_begin visible_end \
    tree_mask tree_words alibi_slopes";

/// A step that the runner does not understand must not pass.
pub fn known(object: &Value, fields: &str) {
    for name in object.as_object().expect("object").keys() {
        assert!(fields.split_whitespace().any(|field| field == name), "unknown field {name}");
    }
}

/// The parameters of an attend step.
pub fn attend_params<'t>(step: &Value, tensors: &'t Tensors) -> Result<AttendParams<'t>, Trouble> {
    let none = Value::Object(Default::default());
    let fields = step.get("params").unwrap_or(&none);
    known(fields, ATTEND_FIELDS);
    let floats = |name| tensors.get(&fields[name]).map(|t| t.slice::<f32>()).transpose();
    let bounds = |name| tensors.get(&fields[name]).map(|t| t.ranges());
    let mut params = AttendParams::default();
    params.out_dtype = Dtype(int32(fields, "out_dtype"));
    params.softmax_scale = float(fields, "softmax_scale");
    params.logit_softcap = float(fields, "logit_softcap");
    params.sliding_window = int(fields, "sliding_window");
    params.sink_logits = floats("sink_logits")?;
    params.alibi_slopes = floats("alibi_slopes")?;
    params.visible_begin = bounds("visible_begin");
    params.visible_end = bounds("visible_end");
    params.tree_mask = tensors.get(&fields["tree_mask"]).map(|t| t.bits());
    params.tree_words = int32(fields, "tree_words");
    params.q_token_stride = int(fields, "q_token_stride");
    params.q_head_stride = int(fields, "q_head_stride");
    params.out_token_stride = int(fields, "out_token_stride");
    params.out_head_stride = int(fields, "out_head_stride");
    match int(fields, "history_only") {
        0 | 1 => params.history_only = int(fields, "history_only") == 1,
        _ => return Err(Trouble::Inexpressible), // in a bool
    }
    Ok(params)
}
