# SPDX-License-Identifier: Apache-2.0
"""The attention function "tqkv": exact without a TurboCache, on codes with one, and what it refuses."""
import pytest
import torch
import tqkv
from tiny import CACHE, DEVICE, FULL, logits, prompt, tiny, turbo
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from tqkv.transformers import tqkv_attention, tqkv_mask
from tqkv.transformers import _attention


def reference(query, key, value, seen, scale, softcap, sinks):
    """In float64, head by head. seen [B][T][S]."""
    query, key, value = (x.double().cpu() for x in (query, key, value))
    batch, heads, tokens, _ = query.shape
    out = torch.zeros(batch, tokens, heads, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kv = h * key.shape[1] // heads
            x = query[b, h] @ key[b, kv].T * scale
            x = softcap * torch.tanh(x / softcap) if softcap else x
            x = x.masked_fill(~seen[b], -torch.inf)
            sink = -torch.inf if sinks is None else float(sinks[h])
            extra = torch.full((tokens, 1), sink, dtype=torch.float64)
            weights = torch.softmax(torch.cat((x, extra), 1), 1)[:, :-1].nan_to_num(0.0)
            out[b, :, h] = weights @ value[b, kv]
    return out


def tensors(batch=2, heads=4, kv_heads=2, tokens=9, length=9, dim=32, value_dim=32):
    generator = torch.Generator().manual_seed(tokens + length)
    shapes = ((batch, heads, tokens, dim), (batch, kv_heads, length, dim),
              (batch, kv_heads, length, value_dim))
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


@pytest.mark.parametrize("small_blocks", (False, True))
@pytest.mark.parametrize("softcap", (None, 3.0))
@pytest.mark.parametrize("sinks", (False, True))
@pytest.mark.parametrize("window", (0, 4))
@pytest.mark.parametrize("tokens, length", ((9, 9), (1, 9), (4, 17)))
def test_exact_attention(tokens, length, window, sinks, softcap, small_blocks, monkeypatch):
    if small_blocks:
        monkeypatch.setattr(_attention, "_LOGITS", 200)
    query, key, value = tensors(tokens=tokens, length=length, value_dim=64)
    sinks = torch.tensor([0.5, -1.0, 3.0, -torch.inf], device=DEVICE) if sinks else None
    real = torch.ones(2, length, dtype=torch.bool)
    at, own = torch.arange(length), torch.arange(length - tokens, length)[:, None]
    seen = ((at <= own) & (at > own - window if window else True)).expand(2, -1, -1)
    options = dict(scale=0.3, softcap=softcap, sinks=sinks)
    for causal, mask in ((True, None), (False, seen[:, None].to(DEVICE))):
        out = _attention.exact_attention(query, key, value, window=window, causal=causal, mask=mask,
                                         real=real, **options)
        assert torch.allclose(out.cpu().double(), reference(query, key, value, seen, **options), atol=1e-5)
    if window:
        return
    both = torch.ones(2, tokens, length, dtype=torch.bool)
    out = _attention.exact_attention(query, key, value, causal=False, **options)
    assert torch.allclose(out.cpu().double(), reference(query, key, value, both, **options), atol=1e-5)
    real[0, :3] = real[1, 5] = False  # padding, in front and in the middle
    out = _attention.exact_attention(query, key, value, real=real, **options)
    expected = reference(query, key, value, seen & real[:, None], **options)
    rows = real[:, -tokens:]
    assert torch.allclose(out.cpu().double()[rows], expected[rows], atol=1e-5)
    assert bool((out.cpu()[~rows] == 0).all())


@pytest.mark.parametrize("name", FULL)
def test_a_model_with_another_cache_or_none(name):
    """The model's attention stays "tqkv" when another cache is given: then it is exact."""
    model, inputs = tiny(name), prompt(3, 20, (7, 0, 2))
    more = torch.cat((inputs["attention_mask"], inputs["attention_mask"][:, -3:]), 1)
    results = []
    for attention in (model._plain, "tqkv"):
        model.set_attn_implementation(attention)
        cache = DynamicCache(config=model.config)
        first = logits(model, inputs["input_ids"], cache, attention_mask=inputs["attention_mask"])
        later = logits(model, inputs["input_ids"][:, :3], cache, attention_mask=more)
        with torch.no_grad():
            none = model(**inputs, use_cache=False).logits
            bare = model(inputs["input_ids"], use_cache=False).logits
        real = inputs["attention_mask"].bool()
        results.append((first[real], later, none[real], bare))
    for expected, got in zip(*results):
        assert torch.allclose(got, expected, rtol=1e-3, atol=5e-3 if DEVICE == "cpu" else 5e-2)


@pytest.mark.parametrize("bits", (8, 4, 2))
@pytest.mark.parametrize("name", ("llama", "gemma2", "gpt_oss", "mistral", "llama4", "phi3"))
def test_fused_attention_is_attention_on_what_the_codes_mean(name, bits):
    """Both modes hold the same codes; compatible mode decodes them, and torch attends. One exact token, so
    that a new token is exact in both."""
    model, inputs = tiny(name), prompt(2, 20, ())
    results = []
    for mode in ("fused", "compatible"):
        cache = turbo(model, key_bits=bits, value_bits=bits, window_tokens=1, mode=mode)
        model.set_attn_implementation("tqkv" if mode == "fused" else model._plain)
        logits(model, inputs["input_ids"], cache)
        results.append([logits(model, inputs["input_ids"][:, i:i + 1], cache) for i in range(9)])
    # The median, since gpt-oss chooses experts, and a choice that flips moves a whole row.
    difference = (torch.stack(results[0]) - torch.stack(results[1])).abs().median()
    assert difference < (5e-3 if DEVICE == "cpu" else 5e-2), difference


def test_more_bits_are_nearer():
    model, inputs, errors = tiny("qwen3"), prompt(2, 60), []
    plain = DynamicCache(config=model.config)
    logits(model, inputs["input_ids"], plain)
    expected = logits(model, inputs["input_ids"][:, :4], plain)
    for bits in (16, 8, 6, 4, 3, 2):
        cache = turbo(model, key_bits=bits, value_bits=bits)
        logits(model, inputs["input_ids"], cache)
        errors.append((logits(model, inputs["input_ids"][:, :4], cache) - expected).square().mean().item())
    assert errors == sorted(errors) and errors[0] < 1e-4 * errors[-1]


@pytest.mark.parametrize("dtype", (torch.bool, torch.float32))
def test_masks_of_the_callers_own(dtype):
    """[batch][1][queries][tokens]: a prefix that sees itself both ways, then a span that looks back to it."""
    model, inputs = tiny("llama"), prompt(2, 12)
    seen = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    seen[:, :, :5, :5] = True
    later = torch.ones(2, 1, 3, 15, dtype=torch.bool)
    later[:, :, :, :4] = False
    results = []
    for cache in (DynamicCache(config=model.config), turbo(model)):
        if dtype == torch.float32:
            masks = [torch.zeros(m.shape).masked_fill(~m, torch.finfo(dtype).min) for m in (seen, later)]
        else:
            masks = [seen, later]
        results.append([logits(model, inputs["input_ids"], cache, attention_mask=masks[0].to(DEVICE)),
                        logits(model, inputs["input_ids"][:, :3], cache, attention_mask=masks[1].to(DEVICE))])
    for expected, got in zip(*results):
        assert torch.allclose(got, expected, rtol=1e-3, atol=5e-3 if DEVICE == "cpu" else 5e-2)


def test_masks_that_are_refused():
    model, inputs = tiny("llama"), prompt(1, 12)["input_ids"]

    def with_mask(mask):
        cache = turbo(model)
        logits(model, inputs, cache)
        logits(model, inputs[:, :3], cache, attention_mask=mask)

    gap = torch.ones(1, 1, 3, 15, dtype=torch.bool, device=DEVICE)
    gap[:, :, :, 5] = False
    bias = torch.zeros(1, 1, 3, 15, device=DEVICE) + 0.5
    for mask, text in ((gap, "a gap"), (bias, "a bias"), (gap[..., :9], r"shape \[1, 1, 3, 9\]"),
                       (torch.ones(1, 4, 3, 15, dtype=torch.bool, device=DEVICE), "4 heads")):
        with pytest.raises(tqkv.NotSupported, match=text):
            with_mask(mask)


def test_there_is_no_gradient_and_no_dropout():
    model, inputs = tiny("llama"), prompt(1, 12)["input_ids"]
    cache = turbo(model)
    model(input_ids=inputs, use_cache=True, **{CACHE: cache})  # without no_grad: forward passes work
    out = model(input_ids=inputs[:, :2], use_cache=True, **{CACHE: cache})
    with pytest.raises(tqkv.NotSupported, match="no gradient"):
        out.logits.sum().backward()
    model.zero_grad()
    query, key, value = tensors()
    for options, text in ((dict(dropout=0.1), "model.eval"), (dict(position_bias=query), "position_bias")):
        with pytest.raises(tqkv.NotSupported, match=text):
            tqkv_attention(model, query, key, value, None, **options)


def test_the_mask_function_knows_what_needs_no_mask():
    from transformers.masking_utils import (causal_mask_function, chunked_causal_mask_function,
                                            sliding_window_causal_mask_function)
    padding = torch.ones(2, 9, dtype=torch.bool)
    sizes = dict(batch_size=2, q_length=4, kv_length=9, q_offset=5)
    for function in (causal_mask_function, sliding_window_causal_mask_function(3)):
        assert tqkv_mask(mask_function=function, **sizes) is None
        assert tqkv_mask(mask_function=function, attention_mask=padding, **sizes).shape == (2, 1, 1, 9)
    chunked = chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64))
    assert tqkv_mask(mask_function=chunked, **sizes).shape == (2, 1, 4, 9)
    config = tiny("llama").config
    tiny("llama").set_attn_implementation("tqkv")
    mask = create_causal_mask(config, torch.zeros(2, 9, 64), padding, None,
                              or_mask_function=lambda b, h, q, k: k < 3)
    assert mask.shape == (2, 1, 9, 9) and bool(mask[0, 0, 0, 2])
