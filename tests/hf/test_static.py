# SPDX-License-Identifier: Apache-2.0
"""StaticTurboCache: generate() on it, and decoding steps in one compiled graph, beside a float16 cache at 16
bits and beside TurboCache's tokens at fewer; padding, windows, sinks; what is refused."""
import pytest
import torch
import tqkv
from tiny import DEVICE, assert_same, generate, logits, prompt, tiny, turbo
from torch._dynamo.utils import counters

from tqkv.transformers import StaticTurboCache
from tqkv.transformers._calibrate import CACHE

NEW, TOKENS, COLUMNS = 10, 15, 64


def static(model, preset="raw", **fields):
    return StaticTurboCache(model, preset, **{"max_batch": 2, "max_cache_len": COLUMNS, "num_threads": 1,
                                              **fields})


def inputs(padded):
    return prompt(2, TOKENS, (0, 6) if padded else ())


@pytest.mark.parametrize("name", ("llama", "mistral", "gemma2", "gpt_oss"))
def test_generate_at_16_bits(name):
    model, given = tiny(name), inputs(True)
    other = inputs(False)
    expected = [generate(model, each) for each in (given, other)]
    cache = static(model)
    for each, tokens in 2 * list(zip((given, other), expected)):  # in the same memory
        assert_same(generate_static(model, each, cache), tokens)
        assert not cache.check()
        cache.reset()


def generate_static(model, given, cache, **options):
    """Without a change of the model's attention."""
    out = model.generate(**given, **{CACHE: cache, "max_new_tokens": NEW + 2, "do_sample": False,
                                     "pad_token_id": 0, "eos_token_id": None, **options})
    return out[:, TOKENS:]


# On the CPU inductor was tried by hand: compiling its C++ takes half a minute.
@pytest.mark.parametrize("name, padded", (("llama", False), ("mistral", True)))
def test_one_graph_for_all_steps(name, padded):
    backend = "aot_eager" if DEVICE == "cpu" else "inductor"
    model, given = tiny(name), inputs(padded)
    expected = generate(model, given, new_tokens=NEW)
    cache, mask, found = static(model), given["attention_mask"], []
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(**given, position_ids=positions, use_cache=True, **{CACHE: cache})
        step = torch.compile(model.forward, backend=backend, fullgraph=True)
        for i in range(NEW):
            found.append(out.logits[:, -1].argmax(-1))
            if i + 1 < NEW:
                at = (mask.sum(1) + i)[:, None]
                out = step(found[-1][:, None], position_ids=at, use_cache=True, **{CACHE: cache})
    assert_same(torch.stack(found, 1), expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert not cache.check() and int(cache.get_seq_length()) == TOKENS + NEW - 1


def test_codes_are_those_of_turbo_cache():
    model, given = tiny("llama"), inputs(False)
    expected = generate(model, given, turbo(model, "turboquant-s3"))
    assert torch.equal(generate_static(model, given, static(model, "turboquant-s3")), expected)


def test_a_prompt_in_parts_and_crop():
    model, ids = tiny("llama"), inputs(False)["input_ids"]
    caches = turbo(model, "turboquant-s3"), static(model, "turboquant-s3")
    for cache in caches:
        logits(model, ids[:, :9], cache)
        logits(model, ids[:, 9:], cache)
        cache.crop(-5)
    both = [logits(model, ids[:, 10:], cache) for cache in caches]
    assert torch.equal(*both)


def test_a_second_turn():
    model, given = tiny("llama"), inputs(True)
    both = []
    for cache in (turbo(model, "turboquant-s3"), static(model, "turboquant-s3")):
        first = generate_static(model, given, cache)
        more = torch.cat((given["input_ids"], first, first.flip(1)), 1)
        mask = torch.nn.functional.pad(given["attention_mask"], (0, more.shape[1] - TOKENS), value=1)
        both.append(generate_static(model, {"input_ids": more, "attention_mask": mask}, cache))
    assert torch.equal(*both)


def test_another_attention_function():
    model, given = tiny("llama"), inputs(False)
    cache = static(model)
    model.set_attn_implementation("sdpa")
    for _ in range(2):
        with pytest.raises(tqkv.InvalidState, match="attention layer 0 of the model did not reach"):
            generate_static(model, given, cache)
    model.set_attn_implementation("tqkv")
    assert generate_static(model, given, cache).shape == (2, NEW + 2)


def test_a_closed_cache():
    model, given = tiny("llama"), inputs(False)
    cache = static(model)
    generate_static(model, given, cache)
    cache.close()
    with pytest.raises(tqkv.InvalidState, match="StaticTurboCache: is closed"):
        logits(model, given["input_ids"][:, :1].expand(2, 1), cache)


def test_refused():
    model, given = tiny("llama"), inputs(False)
    model.set_attn_implementation("tqkv")
    with pytest.raises(tqkv.NotSupported, match="keeps exact tokens"):
        static(model, "small")
    with pytest.raises(tqkv.NotSupported, match="layer 0 is of type 'linear_attention'"):
        static(tiny("qwen3_next"))
    behind = dict(given, attention_mask=given["attention_mask"].index_fill(
        1, torch.tensor([TOKENS - 1], device=DEVICE), 0))
    with pytest.raises(tqkv.NotSupported, match="padding in front only"):
        generate_static(model, behind, static(model))
    with pytest.raises(tqkv.NotSupported, match="use TurboCache"):
        generate_static(model, given, static(model, max_batch=4), num_beams=2)
    with pytest.raises(tqkv.CapacityError, match="the prompt is 2 rows of 15 columns"):
        generate_static(model, given, static(model, max_batch=1))
    with pytest.raises(tqkv.InvalidArgument, match="max_cache_len = 0"):
        static(model, max_cache_len=0)


@pytest.mark.skipif(DEVICE != "cpu", reason="the device alone knows how long it is; check() tells")
def test_no_room():
    model, given = tiny("llama"), inputs(False)
    with pytest.raises(tqkv.CapacityError, match="max_cache_len = 16: a row would have 17 columns"):
        generate_static(model, given, static(model, max_cache_len=16))


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are CUDA's")
def test_generate_in_cuda_graphs():
    """generate() compiles its decoding steps by itself, and captures them."""
    model = tiny("llama")
    wanted = {padded: generate(model, inputs(padded)) for padded in (True, False)}
    cache = static(model)
    for padded in (True, False, True, False):
        assert_same(generate_static(model, inputs(padded), cache), wanted[padded])
        assert not cache.check()
        cache.reset()
