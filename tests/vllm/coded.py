# SPDX-License-Identifier: Apache-2.0
"""What a model says whose keys and values went through codes, computed without vLLM and without attention on
codes: Transformers' model in float32, each layer's keys and values appended to a cache of the package, read
back decoded, and attended in float64."""
import torch
import tqkv
from transformers import AttentionInterface, AutoModelForCausalLM

WIDTHS = (16, 16)


def attention(module, query, key, value, mask, scaling=None, **others):
    """[1][heads][tokens][dim] of all tokens at once, causal."""
    (_, kv_heads, tokens, dim), group = key.shape, query.shape[1] // key.shape[1]
    with tqkv.Cache(num_layers=1, num_q_heads=query.shape[1], num_kv_heads=kv_heads, head_dim=dim,
                    key_bits=WIDTHS[0], value_bits=WIDTHS[1], max_tokens=1024, first_layer=module.layer_idx,
                    num_threads=1) as cache:
        batch, sequence = cache.batch(), cache.sequence()
        batch.plan([sequence], [tokens], [0])
        batch.append(0, key[0].transpose(0, 1).contiguous(), value[0].transpose(0, 1).contiguous())
        k, v = (torch.empty(tokens, kv_heads, dim) for _ in "kv")
        sequence.read(0, 0, tokens, k=k, v=v)
    k, v = (side.double().repeat_interleave(group, 1) for side in (k, v))
    logits = torch.einsum("hqd,khd->hqk", query[0].double(), k) * scaling
    weights = logits.masked_fill(torch.ones(tokens, tokens).tril() == 0, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).float()[None], None


AttentionInterface.register("coded", attention)


@torch.no_grad()
def log_probabilities(folder, widths, prompts, answers):
    """Of each answer's tokens, given the prompt and the tokens before."""
    global WIDTHS
    WIDTHS, found = widths, []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="coded")
    for prompt, answer in zip(prompts, answers):
        logits = model(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0, len(prompt) - 1:]
        rows = torch.arange(len(answer)), torch.tensor(answer)
        found.append(logits.float().log_softmax(-1)[rows].tolist())
    return found
