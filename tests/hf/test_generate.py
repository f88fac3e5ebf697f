# SPDX-License-Identifier: Apache-2.0
"""model.generate with a TurboCache of 16 bits gives the tokens that it gives with a DynamicCache.

Keys and values of a float32 model become float16 in such a cache. Greedy decoding does not notice; where near
ties are likelier, as between beams, what is expected is computed with a RoundedCache."""
import pytest
import torch
from tiny import DEVICE, FULL, MODELS, RoundedCache, assert_same, generate, prompt, tiny, turbo
from transformers import DynamicCache, set_seed

PADDED = dict(rows=3, tokens=24, padding=(9, 0, 4))
MLA = ("deepseek", )  # caches latents of a shape that attention on a GPU is not made for


def models(*names):
    return [pytest.param(name, marks=pytest.mark.skipif(
        DEVICE != "cpu" and name in MLA, reason="its latents' shape is for the CPU only")) for name in names]


@pytest.mark.parametrize("mode", ("fused", "compatible"))
@pytest.mark.parametrize("name", models(*MODELS))
def test_greedy_with_left_padding(name, mode):
    model, inputs = tiny(name), prompt(**PADDED)
    mode = "auto" if name in MLA else mode
    expected = generate(model, inputs, DynamicCache(config=model.config), new_tokens=20)
    assert len(set(expected.flatten().tolist())) > 20  # no model that repeats itself
    cache = turbo(model, mode=mode)
    assert_same(generate(model, inputs, cache, new_tokens=20), expected)
    assert cache.fused == (mode == "fused")
    tokens = 3 * (24 + 19) - (13 if cache.fused else 0)  # padding takes no room; the last token is not cached
    assert cache.memory().tokens == tokens


@pytest.mark.parametrize("name", models(*MODELS))
def test_beams(name):
    model, inputs = tiny(name), prompt(**PADDED)
    options = dict(num_beams=4, num_return_sequences=2, new_tokens=14)
    expected = generate(model, inputs, mode="compatible" if name in MLA else "fused", **options)
    cache = turbo(model)
    assert_same(generate(model, inputs, cache, **options), expected)
    assert cache.memory().num_sequences == 12


@pytest.mark.parametrize("mode", ("fused", "compatible"))
def test_beams_of_both_modes_with_groups_of_one_and_early_stop(mode):
    model, inputs = tiny("llama"), prompt(rows=2, tokens=70)
    options = dict(num_beams=3, early_stopping=True, eos_token_id=50, new_tokens=30)
    expected = generate(model, inputs, mode=mode, **options)
    assert_same(generate(model, inputs, turbo(model, mode=mode), **options), expected)


@pytest.mark.parametrize("name", ("llama", "mistral", "gpt_oss", "qwen3_next"))
def test_sampling_several_answers_to_a_prompt(name):
    model, inputs = tiny(name), prompt(**PADDED)
    options = dict(do_sample=True, num_return_sequences=3, top_k=20, temperature=1.3)
    set_seed(7)
    expected = generate(model, inputs, **options)
    set_seed(7)
    assert_same(generate(model, inputs, turbo(model), **options), expected)


@pytest.mark.parametrize("mode", ("fused", "compatible"))
@pytest.mark.parametrize("name", models(*FULL))
def test_prompt_lookup(name, mode):
    model, inputs = tiny(name), prompt(tokens=32)
    inputs["input_ids"][:, 16:] = inputs["input_ids"][:, :16]  # something to look up
    mode = "compatible" if name in MLA else mode
    expected = generate(model, inputs, mode=mode, new_tokens=24)
    assert_same(generate(model, inputs, turbo(model, mode=mode), new_tokens=24, prompt_lookup_num_tokens=4),
                expected)


@pytest.mark.parametrize("name", ("llama", "mistral", "gemma3"))
def test_assisted_decoding(name):
    model, inputs = tiny(name), prompt(tokens=30)
    expected = generate(model, inputs, new_tokens=24)
    helper = tiny(name, initializer_range=0.2501)  # another model, that is often wrong
    assert_same(generate(model, inputs, turbo(model), new_tokens=24, assistant_model=helper), expected)


def test_assisted_decoding_is_refused_where_states_cannot_be_rolled_back():
    model, inputs = tiny("qwen3_next"), prompt(tokens=30)
    with pytest.raises(ValueError, match="stateful"):
        generate(model, inputs, turbo(model), prompt_lookup_num_tokens=4)


def test_convolutions_are_rolled_back():
    model, inputs = tiny("lfm2"), prompt(tokens=32)
    inputs["input_ids"][:, 16:] = inputs["input_ids"][:, :16]
    expected = generate(model, inputs, new_tokens=24)
    assert_same(generate(model, inputs, turbo(model), new_tokens=24, prompt_lookup_num_tokens=4), expected)


@pytest.mark.parametrize("mode", ("fused", "compatible"))
@pytest.mark.parametrize("name", models(*MODELS))
def test_a_conversation_keeps_its_cache(name, mode):
    """Three turns, each with all text so far: only what is new is computed. Rows are padded in the first."""
    mode = "compatible" if name in MLA else mode
    model = tiny(name)
    cache, plain = turbo(model, mode=mode), RoundedCache(model, mode)
    inputs = prompt(rows=2, tokens=20, padding=(6, 0))
    for turn in range(3):
        expected = generate(model, inputs, plain, new_tokens=7)
        if mode == "fused":
            model.set_attn_implementation("tqkv")
        fresh = generate(model, inputs, cache, new_tokens=7)
        assert_same(fresh, expected)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 6
        more = prompt(rows=2, tokens=5, seed=turn + 1)
        new = {"input_ids": expected, "attention_mask": torch.ones_like(expected)}
        inputs = {key: torch.cat((inputs[key], new[key], more[key]), 1) for key in inputs}


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("name", ("llama", "qwen2", "gemma2", "gemma3", "opt"))
def test_models_of_16_bits(name, dtype):
    """Here the cache is exact. In compatible mode so are the results; in fused mode attention's output is
    rounded otherwise, and tokens may part where two are nearly as likely."""
    model, inputs = tiny(name, dtype), prompt(**PADDED)
    expected = generate(model, inputs, DynamicCache(config=model.config), new_tokens=16)
    got = {}
    for mode in ("compatible", "fused"):  # in this order: fused changes the model's attention
        got[mode] = generate(model, inputs, turbo(model, mode=mode), new_tokens=16)
    assert_same(got["compatible"], expected)
    assert_same(got["fused"], expected, 0.6)


@pytest.mark.parametrize("preset", ("turboquant-s3", "turboquant-s1", "turboquant-s1-retrieval", "small"))
@pytest.mark.parametrize("mode", ("fused", "compatible"))
def test_presets_generate(preset, mode):
    """The first token comes from the exact prompt; with a window of 128 all of this text is exact."""
    model, inputs = tiny("llama"), prompt(**PADDED)
    expected = generate(model, inputs, new_tokens=20, mode=mode)
    cache = turbo(model, preset, mode=mode)
    got = generate(model, inputs, cache, new_tokens=20)
    assert torch.equal(got[:, 0], expected[:, 0])
    if cache.tqkv.config.window_tokens:
        assert_same(got, expected)
    assert cache.compression() > 2


def test_chunked_prefill():
    model, inputs = tiny("mistral"), prompt(rows=2, tokens=50)
    expected = generate(model, inputs, prefill_chunk_size=16)
    assert_same(generate(model, inputs, turbo(model), prefill_chunk_size=16), expected)
