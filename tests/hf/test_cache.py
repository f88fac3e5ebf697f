# SPDX-License-Identifier: Apache-2.0
"""What Transformers asks of a cache, one thing at a time, each compared with what its own cache does."""
import copy
import gc
import pickle

import pytest
import torch
import tqkv
from tiny import DEVICE, RoundedCache, assert_same, generate, logits, prompt, tiny, turbo
from transformers import DynamicCache

from tqkv.transformers import PRESETS, StaticTurboCache, TurboCache
from tqkv.transformers._recording import recorded

TOLERANCE = 5e-3 if DEVICE == "cpu" else 5e-2  # of logits of about 10: float32 sums in another order
BOTH = pytest.mark.parametrize("mode", ("fused", "compatible"))


def pair(name="llama", mode="fused", rows=2, tokens=20, padding=(), **options):
    """A model, and both caches with the same prompt in them."""
    model, inputs = tiny(name), prompt(rows, tokens, padding)
    plain, ours = RoundedCache(model, mode), turbo(model, mode=mode, **options)
    run(model, inputs["input_ids"], plain, ours, attention_mask=inputs["attention_mask"])
    return model, plain, ours


def run(model, ids, plain, ours, attention_mask=None):
    """One forward pass with each cache, which must agree where there is no padding."""
    model.set_attn_implementation(model._plain)
    expected = logits(model, ids, plain, attention_mask=attention_mask)
    model.set_attn_implementation("tqkv" if ours.mode != "compatible" else model._plain)
    got = logits(model, ids, ours, attention_mask=attention_mask)
    real = slice(None) if attention_mask is None else attention_mask[:, -ids.shape[1]:].bool()
    assert torch.allclose(got[real], expected[real], rtol=1e-3, atol=TOLERANCE), (got - expected).abs().max()
    assert ours.get_seq_length() == plain.get_seq_length()


def ids(rows, tokens, seed=5):
    return prompt(rows, tokens, seed=seed)["input_ids"]


@BOTH
@pytest.mark.parametrize("name", ("llama", "mistral", "gemma3", "gemma4", "lfm2"))
def test_lengths_and_mask_sizes(name, mode):
    """Of a compatible layer with a window, those of Transformers; a fused one lets the mask see all
    columns."""
    model, plain, ours = pair(name, mode)
    for tokens in (1, 3):
        for layer, other in enumerate(plain.layers):
            if not hasattr(other, "get_mask_sizes"):
                continue
            sizes = other.get_mask_sizes(tokens)
            assert ours.get_mask_sizes(tokens, layer) == (sizes if mode == "compatible" else (20 + tokens, 0))
            assert ours.get_seq_length(layer) == plain.get_seq_length(layer) == 20
    assert ours.is_sliding == plain.is_sliding and ours.is_linear == plain.is_linear
    assert len(ours) == len(plain) and ours.get_max_length() in (-1, plain.get_max_length())
    assert ours.is_initialized and not ours.is_compileable
    run(model, ids(2, 3), plain, ours)


def test_an_empty_cache():
    model = tiny("llama")
    cache = turbo(model)
    assert cache.get_seq_length() == 0 and cache.get_mask_sizes(4, 0) == (4, 0) and not cache.is_initialized
    cache.crop(0)
    cache.reorder_cache(torch.tensor([0, 0]))
    cache.reset()
    assert cache.memory() is None and cache.tqkv is None


@BOTH
@pytest.mark.parametrize("name", ("llama", "mistral", "gemma4"))
def test_crop_takes_the_last_tokens_away(name, mode):
    model, plain, ours = pair(name, mode)
    plain.activate_past_recording()
    ours.activate_past_recording()
    for new, gone in ((5, 3), (4, 4), (1, 0), (6, 5)):
        run(model, ids(2, new, seed=new), plain, ours)
        plain.crop(-gone)
        ours.crop(-gone)
    run(model, ids(2, 2), plain, ours)
    length = ours.get_seq_length()
    plain.crop(-1)
    ours.crop(length - 1)  # a positive number is the length to keep
    assert ours.get_seq_length() == length - 1
    if any(ours.is_sliding):  # a cache without recording, which some versions do not do over long passes
        model, plain, ours = pair(name, mode)
        run(model, ids(2, 70), plain, ours)
        run(model, ids(2, 1), plain, ours)
        with pytest.raises(tqkv.InvalidState, match="crop\\(-68\\): .* rollback_tokens, of which it has 64"):
            ours.crop(-68)
        run(model, ids(2, 1), plain, ours)
    with pytest.raises(tqkv.InvalidArgument, match="crop: 100 tokens to remove, the cache has"):
        ours.crop(-100)


def test_a_long_pass_over_sliding_windows_that_is_cut_off():
    """More tokens than can be cropped otherwise: those of the last plan can always be taken back."""
    model, plain, ours = pair("mistral")
    forward, model.model.layers[1].forward = model.model.layers[1].forward, None
    with pytest.raises(TypeError):
        logits(model, ids(2, 80), ours)
    model.model.layers[1].forward = forward
    run(model, ids(2, 4), plain, ours)


def test_crop_knows_which_columns_are_padding():
    """Padding in the middle: a row whose second text is shorter."""
    model, plain, ours = pair(padding=(5, 0))
    mask = torch.ones(2, 26, dtype=torch.long, device=DEVICE)
    mask[0, :5] = mask[1, 20:23] = 0
    run(model, ids(2, 6), plain, ours, mask)
    assert [len(row) for row in ours.store.rows] == [21, 23]
    plain.crop(-4)
    ours.crop(-4)
    assert [len(row) for row in ours.store.rows] == [17, 20]
    run(model, ids(2, 2), plain, ours, torch.cat((mask[:, :22], mask[:, :2] * 0 + 1), 1))


@BOTH
@pytest.mark.parametrize("name", ("llama", "gemma3", "falcon_h1"))
def test_rows_are_reordered_repeated_and_selected(name, mode):
    model, plain, ours = pair(name, mode, rows=3, padding=(4, 0, 2))
    real = prompt(3, 20, (4, 0, 2))["attention_mask"]
    for indices in ([2, 0, 0], [1, 1, 2], [0, 1, 2]):
        index = torch.tensor(indices, device=DEVICE)
        plain.reorder_cache(index)
        ours.reorder_cache(index)
        real = real[index]
        real = torch.cat((real, torch.ones_like(real[:, :2])), 1)
        run(model, ids(3, 2, seed=sum(indices)), plain, ours, real)
    assert ours.memory().num_sequences == 3
    if name == "falcon_h1":  # Transformers has no such calls for layers with states
        ours.batch_repeat_interleave(2)
        assert ours.layers[0].conv_states[0].shape[0] == 6
        return
    for cache in (plain, ours):
        cache.batch_repeat_interleave(2)
    real = torch.cat((real, torch.ones_like(real[:, :1])), 1).repeat_interleave(2, 0)
    run(model, ids(6, 1), plain, ours, real)
    for cache in (plain, ours):
        cache.batch_select_indices(torch.tensor([5, 0], device=DEVICE))
    real = torch.cat((real, torch.ones_like(real[:, :1])), 1)[[5, 0]]
    run(model, ids(2, 1), plain, ours, real)
    assert ours.memory().num_sequences == 2
    with pytest.raises(tqkv.InvalidArgument, match="row 7 of a batch of 2"):
        ours.reorder_cache(torch.tensor([0, 7]))


def test_copies_share_pages_until_one_side_writes():
    """A prompt that is computed once: the recipe with copy.deepcopy."""
    model, inputs = tiny("lfm2"), prompt(tokens=130)
    cache = turbo(model)
    logits(model, inputs["input_ids"][:, :-1], cache)
    pages = cache.memory().pages_used
    expected = generate(model, inputs, turbo(model))
    for _ in range(2):
        other = copy.deepcopy(cache)
        assert cache.memory().pages_used == pages
        assert_same(generate(model, inputs, other), expected, 0.9)
        assert other.tqkv is cache.tqkv and cache.get_seq_length() == 129
        del other
        gc.collect()
    assert cache.memory().num_sequences == 1
    with pytest.raises(tqkv.NotSupported, match="pickled"):
        pickle.dumps(cache)


@BOTH
def test_reset_empties_it_for_another_batch(mode):
    model, plain, ours = pair(mode=mode, rows=3)
    ours.reset()
    assert ours.get_seq_length() == 0 and ours.memory().tokens == 0
    plain = RoundedCache(model, mode)
    run(model, ids(2, 9), plain, ours)
    run(model, ids(2, 1), plain, ours)
    assert ours.memory().num_sequences == 2
    ours.close()
    with pytest.raises(tqkv.InvalidState, match="closed"):
        logits(model, ids(2, 1), ours)


@pytest.mark.parametrize("name", ("llama", "mistral"))
def test_a_pass_that_is_cut_off_is_undone(name):
    model, plain, ours = pair(name)
    layer = model.model.layers[-1]
    forward = layer.forward
    for cut in ("self_attn", "mlp"):
        def broken(*args, **kwargs):
            if cut == "mlp":
                forward(*args, **kwargs)
            raise KeyboardInterrupt
        layer.forward = broken
        with pytest.raises(KeyboardInterrupt):
            logits(model, ids(2, 4), ours)
        layer.forward = forward
        if cut == "mlp":
            ours.crop(-4)  # all layers have it: it counts
        run(model, ids(2, 2, seed=len(cut)), plain, ours)


@pytest.mark.parametrize("name, mode", (("llama", "fused"), ("mistral", "fused"), ("gemma4", "fused"),
                                        ("qwen3_next", "fused"), ("llama", "compatible")))
def test_swapped_out_and_back(name, mode):
    model, plain, ours = pair(name, mode)
    bytes_there = ours.swap_out()
    assert bytes_there > 0 and ours.swap_out() == bytes_there  # it is there already
    assert ours.tqkv is None and ours.memory() is None
    run(model, ids(2, 3), plain, ours)
    ours.swap_out()
    ours.swap_in()
    assert ours.memory().num_sequences == 2
    run(model, ids(2, 1), plain, ours)


def test_swapped_out_with_window_and_copies():
    """Exact copies travel too; a copy's tokens stay on the device, and in the same cache."""
    model, inputs = tiny("llama"), prompt(2, 30)
    expected, ours = (turbo(model, "small") for _ in range(2))
    for cache in (expected, ours):
        logits(model, inputs["input_ids"], cache)
    twin = copy.deepcopy(ours)
    ours.swap_out()
    assert ours.tqkv is twin.tqkv and ours.memory().num_sequences == 2
    new = ids(2, 2)
    wanted = logits(model, new, expected)
    assert torch.equal(logits(model, new, twin), wanted)
    assert torch.equal(logits(model, new, ours), wanted)


def test_what_needs_swapped_rows_brings_them_back():
    model, plain, ours = pair(rows=2)
    for change in (lambda cache: cache.crop(-2), lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
                   lambda cache: cache.batch_repeat_interleave(2),
                   lambda cache: cache.batch_select_indices(torch.tensor([3, 0]))):
        ours.swap_out()
        change(plain)
        change(ours)
        run(model, ids(len(ours.store.rows), 2), plain, ours)
    other = copy.deepcopy(ours)
    ours.swap_out()
    ours.reset()
    assert ours.get_seq_length() == 0 and other.get_seq_length() == plain.get_seq_length()


def test_it_grows_and_keeps_what_it_holds():
    model, plain, ours = pair(tokens=10)
    small = ours.tqkv.config.max_tokens
    for step in range(4):
        run(model, ids(2, 100, seed=step), plain, ours)
    assert ours.tqkv.config.max_tokens > small
    with pytest.raises(tqkv.CapacityError, match="max_sequence_tokens = 512: a row would have 610"):
        logits(model, ids(2, 200), ours)
    run(model, ids(2, 1), plain, ours)


def test_limits_say_what_to_give():
    model = tiny("llama")
    fixed = turbo(model, max_tokens=256, max_batch=2)
    logits(model, ids(2, 60), fixed)
    with pytest.raises(tqkv.CapacityError, match="larger max_tokens, or none"):
        logits(model, ids(2, 190), fixed)
    assert fixed.get_seq_length() == 60
    rows = turbo(model, max_batch=3)
    logits(model, ids(2, 9), rows)
    with pytest.raises(tqkv.CapacityError, match="4 rows, the cache was made for 3.*max_batch=4"):
        rows.batch_repeat_interleave(2)
    with pytest.raises(tqkv.InvalidArgument, match="of 3 rows, the cache holds 2"):
        logits(model, ids(3, 1), rows)


def errors_of(model, text, caches):
    """Mean squares of what caches of these names change in the logits of 8 tokens behind the text."""
    model.set_attn_implementation(model._plain)
    plain, errors = DynamicCache(config=model.config), {}
    logits(model, text, plain)
    expected = logits(model, text[:, :8], plain)
    model.set_attn_implementation("tqkv")
    for name, cache in caches.items():
        logits(model, text, cache)
        errors[name] = (logits(model, text[:, :8], cache) - expected).square().mean().item()
    return errors


def test_skipped_layers_and_calibration():
    model = tiny("qwen2")
    key = model.model.layers[1].self_attn.k_proj
    bias = key.bias.detach().clone()
    key.bias.data += 40.0  # as models have it whose keys share a large part
    try:
        text = ids(2, 64)
        calibration = TurboCache.calibrate(model, text)
        assert calibration.skip_layers == [1] and calibration.key_norms[1] > 4 * calibration.key_norms[0]
        caches = {"bare": turbo(model, "turboquant-s3"),
                  "skipped": turbo(model, "turboquant-s3", skip_layers=[-1]),
                  "calibrated": turbo(model, "turboquant-s3", calibration=calibration)}
        errors = errors_of(model, text, caches)
        for name, cache in caches.items():
            layers = cache.tqkv.config.layers
            assert (layers[0].key_bits, layers[1].key_bits) == ((4, 4) if name == "bare" else (4, 16))
        assert errors["calibrated"] < errors["skipped"] < errors["bare"]
    finally:
        key.bias.data = bias


def test_key_bands_are_calibrated_in_one_call():
    model = tiny("qwen2")
    text = ids(2, 256)
    before = model.config._attn_implementation
    calibration = TurboCache.calibrate(model, text, key_bits=3)
    assert model.config._attn_implementation == before
    assert len(calibration.key_bands) == 2
    bands = tqkv.KeyBands((3, ), tuple(tuple(range(32)) for _ in range(2)))
    given = calibration._replace(key_bands=[bands, None], skip_layers=[])
    cache = turbo(model, "turboquant-s3", calibration=given)
    logits(model, text[:, :40], cache)
    layers = cache.tqkv.config.layers
    assert (layers[0].key_bands, layers[1].key_bands, layers[1].key_bits) == (bands, None, 4)
    with pytest.raises(tqkv.InvalidState, match="was fed 40 tokens: it takes 256 or more"):
        TurboCache.calibrate(model, ids(1, 40), key_bits=3)
    with pytest.raises(tqkv.InvalidArgument, match="code_family = 'grouped'"):
        TurboCache.calibrate(model, text, key_bits=3, code_family="grouped")
    with pytest.raises(tqkv.NotSupported, match="key bands or key matrices, which a StaticTurbo"):
        StaticTurboCache(model, max_cache_len=64, max_batch=1, calibration=given)


@pytest.mark.parametrize("family", ("scalar", "trellis"))
def test_a_calibration_is_that_of_the_package(family):
    """tqkv.Calibration, fed what the attention layers are given: its bands, and centres of the heads alone
    that gain by them."""
    model, text = tiny("qwen2", head_dim=64), ids(2, 256)
    found = TurboCache.calibrate(model, text, key_bits=2.5, value_bits=2, code_family=family)
    seen = recorded(model, lambda: logits(model, text, DynamicCache(config=model.config)))
    for layer in range(2):
        q, k, v = (side.transpose(1, 2).flatten(0, 1).float().cpu().contiguous() for side in seen[layer])
        with tqkv.Calibration(1, 4, 2, 64, key_family=family, value_family=family) as own:
            own.feed(0, q, k, v)
            assert found.key_bands[layer] == own.choose(2.5, 2).layers[0].key_bands
            for side, wanted in zip(found.centres[layer], own.centres(0)):
                assert side.numpy().tobytes() == wanted
    cache = turbo(model, "turboquant-s3", key_bits=2, value_bits=2, code_family=family, calibration=found)
    logits(model, text[:, :40], cache)
    layer = cache.tqkv.config.layers[0]
    assert (layer.key_family, layer.key_bands) == (family, found.key_bands[0])


def uneven_llama():
    """A model whose keys are long where its queries are short, by pairs of coordinates that RoPE turns: the
    same function as without, and nothing for bands, of which 32 coordinates have one."""
    model = tiny("llama", max_position_embeddings=600)
    uneven = torch.logspace(-1, 1, 16).repeat(2)[:, None]
    for layer in model.model.layers:
        for side, factor in ((layer.self_attn.k_proj, uneven), (layer.self_attn.q_proj, 1 / uneven)):
            side.weight.data.view(-1, 32, side.in_features).mul_(factor.to(side.weight.device))
    return model


def test_key_matrices_are_calibrated_in_one_call():
    model, text = uneven_llama(), ids(2, 256)
    found = TurboCache.calibrate(model, text, key_bits=3, turn_keys=True)
    plain = TurboCache.calibrate(model, text, key_bits=3)
    assert plain.key_matrices is None and len(found.key_matrices) == 2
    assert all(matrix.shape == (2, 32, 32) for matrix in found.key_matrices)
    caches = {name: turbo(model, "turboquant-s3", key_bits=3, value_bits=8, calibration=calibration)
              for name, calibration in (("plain", plain), ("turned", found))}
    errors = errors_of(model, ids(2, 256, seed=6), caches)
    assert errors["turned"] < 0.5 * errors["plain"], errors
    assert caches["turned"].tqkv.fingerprint() != caches["plain"].tqkv.fingerprint()
    caches["turned"].swap_out()  # what comes back is a new cache
    logits(model, text[:, :8], caches["turned"])
    exact = found._replace(skip_layers=[0])  # 16 bits take none
    logits(model, text, turbo(model, "turboquant-s3", calibration=exact))
    with pytest.raises(tqkv.InvalidArgument, match="turn_keys: needs key_bits"):
        TurboCache.calibrate(model, text, turn_keys=True)
    with pytest.raises(tqkv.InvalidState, match="was fed 40 tokens: it takes 256 or more"):
        TurboCache.calibrate(model, ids(1, 40), key_bits=3, turn_keys=True)
    with pytest.raises(tqkv.NotSupported, match="key bands or key matrices, which a StaticTurbo"):
        StaticTurboCache(model, max_cache_len=64, max_batch=1,
                         calibration=found._replace(key_bands=[None] * 2))


def test_key_matrices_that_a_device_has_not_are_refused(monkeypatch):
    """Before anything is stored, and again in the next pass."""
    model = tiny("llama")
    eyes = [torch.eye(32).repeat(2, 1, 1)] * 2
    given = TurboCache.calibrate(model, ids(1, 16))._replace(key_bands=[None] * 2, key_matrices=eyes)

    def refuse(self, layer, matrix):
        raise tqkv.NotSupported(f"layer {layer}: key matrices: not here")

    monkeypatch.setattr(tqkv.Cache, "set_key_matrix", refuse)
    cache = turbo(model, "turboquant-s3", calibration=given)
    for _ in range(2):
        with pytest.raises(tqkv.NotSupported, match="calibration: has key matrices, which this cache does "
                           "not take: .*layer 0: key matrices: not here; calibrate without turn_keys"):
            logits(model, ids(1, 8), cache)
        assert cache.tqkv is None and cache.get_seq_length() == 0


def test_presets_are_what_the_cache_is_made_of():
    model = tiny("llama")
    for name, preset in PRESETS.items():
        cache = turbo(model, name)
        logits(model, ids(1, 8), cache)
        config = cache.tqkv.config
        assert (config.key_bits, config.value_bits) == (preset.key_bits, preset.value_bits)
        assert (config.window_tokens, config.sink_tokens) == (preset.window_tokens, preset.sink_tokens)
    cache = turbo(model, key_bits=8, value_bits=3, window_tokens=32, rotation_seed=9, page_size=128)
    logits(model, ids(1, 8), cache)
    config = cache.tqkv.config
    assert (config.key_bits, config.value_bits, config.window_tokens, config.rotation_seed,
            config.page_size) == (8, 3, 32, 9, 128)


def test_what_is_wrong_is_said():
    model, config = tiny("llama"), tiny("llama").config
    for error, text, call in (
        (tqkv.InvalidArgument, "preset = 'q4': must be one of turb", lambda: TurboCache(model, "q4")),
        (tqkv.InvalidArgument, "mode = 'fast': must be one of auto", lambda: TurboCache(model, mode="fast")),
        (tqkv.InvalidArgument, "head_dim: is no field", lambda: TurboCache(model, head_dim=64)),
        (tqkv.InvalidArgument, "skip_layers: 2 is no layer of a model of 2",
         lambda: TurboCache(model, skip_layers=[2])),
        (tqkv.InvalidArgument, "skip_layers = 0: must be a list", lambda: TurboCache(model, skip_layers=0)),
        (tqkv.InvalidArgument, "skip_layers = 0.5: must be an int",
         lambda: TurboCache(model, skip_layers=[0.5])),
        (tqkv.InvalidArgument, "calibration: a list is not what", lambda: TurboCache(model, calibration=[1])),
        (tqkv.InvalidArgument, "max_batch = 0: must be 1 or more", lambda: TurboCache(model, max_batch=0)),
        (tqkv.InvalidArgument, "max_tokens = '9': must be an int", lambda: TurboCache(model, max_tokens="9")),
        (tqkv.InvalidArgument, "tokens_to_remove = -2.5: must be", lambda: TurboCache(model).crop(-2.5)),
        (tqkv.InvalidArgument, r"reorder_cache: \[1\] of torch.float32; must be numbers of rows",
         lambda: TurboCache(model).reorder_cache([0.5])),
        (tqkv.InvalidArgument, "a dict is neither", lambda: TurboCache({})),
        (tqkv.NotSupported, "mode = 'fused': .*latents", lambda: TurboCache(tiny("deepseek"), mode="fused")),
        (tqkv.NotSupported, "calls of the cache", lambda: TurboCache(model).layers[0].crop(-1)),
        (tqkv.NotSupported, "layer 0 is of type 'heavily_compressed_attention', which it does not know",
         lambda: TurboCache(type(config)(**{**config.to_dict(),
                                            "layer_types": ["heavily_compressed_attention"] * 2}))),
    ):
        with pytest.raises(error, match=text):
            call()
    from transformers import T5Config
    with pytest.raises(tqkv.NotSupported, match="encoder-decoder"):
        TurboCache(T5Config())


def test_head_dimensions_that_the_library_lacks():
    model = tiny("llama", head_dim=50)
    with pytest.raises(tqkv.NotSupported, match="this model cannot be held:\n.*head_dim = 50"):
        logits(model, ids(1, 4), turbo(model))


def test_a_device_that_the_library_lacks():
    model = copy.deepcopy(tiny("llama")).to("meta")
    with pytest.raises(tqkv.InvalidArgument, match="device = 'meta': must be \"cpu\", \"cuda\" or"):
        logits(model, ids(1, 4).to("meta"), turbo(model))


def test_a_cache_of_another_type():
    model = tiny("llama")
    cache = turbo(model)
    logits(model, ids(2, 4), cache)
    other = tiny("llama", torch.bfloat16)
    other.set_attn_implementation("tqkv")
    with pytest.raises(tqkv.InvalidArgument, match="are torch.bfloat16 .* cache was made for float32"):
        logits(other, ids(2, 1), cache)
    run(model, ids(2, 1), RoundedCache(model), turbo(model))


def test_keys_that_never_reach_the_attention_function():
    """A fused cache, and a model that was told of another implementation."""
    model = tiny("llama")
    cache = turbo(model.config, mode="fused")
    with pytest.raises(tqkv.InvalidState, match="attention layer 0 .*set_attn_implementation"):
        logits(model, ids(1, 4), cache)
    model.set_attn_implementation("tqkv")
    assert logits(model, ids(1, 4), cache).shape[1] == 4 and cache.get_seq_length() == 4


def test_auto_follows_the_model():
    model = tiny("llama")
    cache = turbo(model.config)
    logits(model, ids(1, 4), cache)
    assert not cache.fused and model.config._attn_implementation == model._plain
    cache = turbo(model)
    logits(model, ids(1, 4), cache)
    assert cache.fused and model.config._attn_implementation == "tqkv"
