#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face generate() on a tqkv cache: each preset beside Transformers' own cache.

    transformers_generate.py [model [prompt]]    a folder or a name, such as Qwen/Qwen2.5-0.5B-Instruct

Without a model: a tiny one with random weights, for which bits are many or few all the same. Prints, for each
cache, how many of the new tokens are those of DynamicCache up to the first other one, the time, and the bytes
of one token.
"""
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from tqkv.transformers import PRESETS, TurboCache

NEW_TOKENS = 48


def load(arguments):
    """(model, inputs, decode)"""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not arguments:
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                             num_attention_heads=8, num_key_value_heads=2, head_dim=64, initializer_range=0.1)
        ids = torch.randint(3, 512, (1, 200), device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return LlamaForCausalLM(config).eval().to(device), inputs, lambda tokens: ""
    tokenizer = AutoTokenizer.from_pretrained(arguments[0])
    model = AutoModelForCausalLM.from_pretrained(arguments[0], dtype="auto").eval().to(device)
    text = arguments[1] if len(arguments) > 1 else "The three laws of thermodynamics are:"
    return model, dict(tokenizer(text, return_tensors="pt").to(device)), tokenizer.decode


def main():
    model, inputs, decode = load(sys.argv[1:])
    prompt, expected = inputs["input_ids"].shape[1], None
    own_attention = model.config._attn_implementation
    for name in ["DynamicCache", *PRESETS]:
        if name == "DynamicCache":
            cache = DynamicCache(config=model.config)
        else:
            cache = TurboCache(model, name)  # the model attends on codes from now on
        start = time.perf_counter()
        tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=NEW_TOKENS, do_sample=False,
                                pad_token_id=0)[0, prompt:].tolist()
        seconds = time.perf_counter() - start
        if expected is None:
            expected = tokens
            print(f"{name}, attention {own_attention!r}: {len(tokens)} tokens, {seconds:.2f} s "
                  f"{decode(tokens)!r}")
            continue
        same = next((i for i, (a, b) in enumerate(zip(tokens, expected)) if a != b), len(expected))
        print(f"{name}: {same} of {len(expected)} tokens the same, {seconds:.2f} s, a token takes 1/"
              f"{cache.compression():.2f} of float16: {PRESETS[name].what}")


if __name__ == "__main__":
    main()
