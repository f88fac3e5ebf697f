# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, of many architectures: what a cache meets in each is its own."""
import os

import torch
import transformers
from transformers import DynamicCache

from tqkv.transformers import TurboCache
from tqkv.transformers._calibrate import CACHE

DEVICE = os.environ.get("TQKV_TEST_DEVICE", "cpu")
VOCABULARY = 199

SMALL = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
             initializer_range=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=None)
EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
               shared_expert_intermediate_size=32)
SLIDING = dict(num_hidden_layers=4, sliding_window=7)
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LINEAR = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
              linear_value_head_dim=16)
UNTIED = dict(tie_word_embeddings=False)  # tied random embeddings of Gemma repeat what they are given

# name: (configuration, model, fields beside SMALL)
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", dict(hidden_size=128)),  # biases on q, k and v
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", SLIDING),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM",
               dict(SLIDING, **UNTIED, attn_logit_softcapping=5.0, layer_types=ALTERNATING)),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", dict(SLIDING, **UNTIED, layer_types=ALTERNATING)),
    "gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM",  # full layers of another shape; two that share tokens
               dict(UNTIED, sliding_window=7, num_hidden_layers=6, layer_types=ALTERNATING + ALTERNATING[:2],
                    global_head_dim=64, num_kv_shared_layers=2, hidden_size_per_layer_input=16,
                    vocab_size_per_layer_input=VOCABULARY)),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", dict(hidden_size=128, sliding_window=9)),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", dict(SLIDING, **EXPERTS, layer_types=ALTERNATING)),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", dict(partial_rotary_factor=0.5)),
    "cohere": ("CohereConfig", "CohereForCausalLM", dict(hidden_size=128)),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", dict(SLIDING, layer_types=ALTERNATING)),
    "opt": ("OPTConfig", "OPTForCausalLM", dict(hidden_size=128, ffn_dim=96, word_embed_proj_dim=128,
                                                init_std=0.25)),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", dict(hidden_size=128, n_inner=96)),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", dict(num_hidden_layers=4, hidden_size=128)),
    "deepseek": ("DeepseekV3Config", "DeepseekV3ForCausalLM",  # caches latents
                 dict(num_key_value_heads=4, first_k_dense_replace=2, q_lora_rank=32, kv_lora_rank=32,
                      qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, head_dim=64)),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM",  # chunked attention
               dict(num_hidden_layers=4, attention_chunk_size=8, intermediate_size_mlp=96,
                    num_local_experts=2, moe_layers=[],
                    layer_types=["chunked_attention"] * 3 + ["full_attention"],
                    no_rope_layers=[1, 1, 1, 0])),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM",  # convolutions
             dict(hidden_size=128, layer_types=["conv", "full_attention", "conv", "full_attention"],
                  num_hidden_layers=4, block_auto_adjust_ff_dim=False, block_ff_dim=96)),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM",  # linear attention
                   dict(EXPERTS, **LINEAR, num_hidden_layers=4,
                        layer_types=["linear_attention", "full_attention"] * 2)),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM",  # attention and state space in each layer
                  dict(mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1)),
}
WITH_STATES = ("lfm2", "qwen3_next", "falcon_h1")  # what cannot be rolled back, or not without recording
FULL = tuple(name for name in MODELS if name not in WITH_STATES)

_made = {}


def tiny(name, dtype=torch.float32, **changes):
    """A model of its own for each name and type, made once; attention "sdpa" where it exists, else
    "eager"."""
    key = name, dtype, tuple(sorted(changes.items()))
    if key not in _made:
        config, model, fields = MODELS[name]
        config = getattr(transformers, config)(**{**SMALL, **fields, **changes})
        torch.manual_seed(sum(map(ord, name)))
        _made[key] = getattr(transformers, model)(config).eval().to(device=DEVICE, dtype=dtype)
        _made[key]._plain = _made[key].config._attn_implementation
        if getattr(config, "attn_logit_softcapping", None):
            _made[key]._plain = "eager"  # "sdpa" of some versions leaves the soft-cap out
    model = _made[key]
    model.set_attn_implementation(model._plain)
    return model


def prompt(rows=1, tokens=24, padding=(), seed=0):
    """input_ids and attention_mask; padding: tokens of padding on the left of each row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row, pads in enumerate(padding):
        ids[row, :pads], mask[row, :pads] = 0, 0
    return {"input_ids": ids.to(DEVICE), "attention_mask": mask.to(DEVICE)}


def turbo(model, preset="raw", **options):
    return TurboCache(model, preset, **{"num_threads": 1, **options})


class RoundedCache(DynamicCache):
    """What a TurboCache of 16 bits is to compute, by other means: a float32 model's tokens as float16 once
    they are in the cache. The first prompt sees its tokens as they were; so do later ones in compatible
    mode."""

    def __init__(self, model, mode="fused"):
        super().__init__(config=model.config)
        self.mode = mode

    def update(self, key, value, layer, *args, **kwargs):
        first, given = self.layers[layer].get_seq_length() == 0, (key, value)
        if key.dtype == torch.float32:
            key, value = key.half().float(), value.half().float()
        sides = super().update(key, value, layer, *args, **kwargs)
        if first:
            return given
        if self.mode == "fused":
            return sides
        return tuple(torch.cat((side[:, :, :-new.shape[2]], new), 2) for side, new in zip(sides, given))


def generate(model, inputs, cache=None, new_tokens=12, mode="fused", **options):
    """The new tokens of greedy decoding, or as the options say. Without a cache, what is expected: a
    RoundedCache, with the model's own attention implementation."""
    if cache is None:
        cache = RoundedCache(model, mode)
    if not isinstance(cache, TurboCache):
        model.set_attn_implementation(model._plain)
    out = model.generate(**inputs, **{CACHE: cache, "max_new_tokens": new_tokens, "do_sample": False,
                                      "pad_token_id": 0, "eos_token_id": None, **options})
    return out[:, inputs["input_ids"].shape[1]:]


def assert_same(got, expected, least=1.0):
    """Equal tokens. On a GPU, whose attention rounds otherwise than torch's, rows may part where two tokens
    are nearly as likely: the first ones must be the same, and most of all. least: likewise on the CPU."""
    if DEVICE != "cpu":
        least = min(least, 0.7)
    same = (got == expected).int().cumprod(1)
    assert bool(same[:, 0].all()) and same.float().mean() >= least, (got.tolist(), expected.tolist())


def logits(model, ids, cache, **options):
    """[batch][tokens][vocabulary] float32 of one forward pass."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, **{CACHE: cache}, **options).logits.float()
