# SPDX-License-Identifier: Apache-2.0
"""Layers with a shape of their own: arrays are compared with that of the layer that is named. What they
compute is the contract cases' affair."""
import numpy as np
import pytest
import tqkv
from test_cache import random

LAYERS = (tqkv.Layer(num_q_heads=4, num_kv_heads=2, head_dim=64),
          tqkv.Layer(num_q_heads=3, num_kv_heads=1, head_dim=32, key_bits=8, sliding_window=5),
          tqkv.Layer(num_q_heads=2, shares_layer=0))


def layered(layers=LAYERS, **changes):
    return tqkv.Cache(**{**dict(layers=layers, key_bits=4, value_bits=3, max_tokens=64, num_threads=1),
                         **changes})


def test_each_layer_takes_arrays_of_its_own_shape():
    with layered() as c:
        step = c.batch()
        step.plan([c.sequence()], [7], [2])
        step.append(0, random(7, 2, 64), random(7, 2, 64))
        with pytest.raises(tqkv.InvalidArgument, match=r"k: has shape .*, expected \[7, 1, 32\]"):
            step.append(1, random(7, 2, 64), random(7, 2, 64))
        step.append(1, random(7, 1, 32), random(7, 1, 32))
        assert [step.attend(i, random(2, heads, dim)).shape
                for i, (heads, dim) in enumerate(((4, 64), (3, 32), (2, 64)))] == [(2, 4, 64), (2, 3, 32),
                                                                                  (2, 2, 64)]
        with pytest.raises(tqkv.InvalidArgument, match=r"q: has shape .*, expected \[2, 2, 64\]"):
            step.attend(2, random(2, 4, 64))
        with pytest.raises(tqkv.InvalidArgument, match="layer"):
            step.append(2, random(7, 2, 64), random(7, 2, 64))


@pytest.mark.parametrize("layer", (-1, 3, 2**31 - 1))
def test_a_layer_that_there_is_not(layer):
    with layered() as c:
        step, sequence, array = c.batch(), c.sequence(), random(1, 1, 32)
        step.plan([sequence], [1])
        for call in (lambda: step.append(layer, array, array), lambda: step.attend(layer, array),
                     lambda: step.attend(layer, array, sink_logits=np.zeros(1, "float32"), lse=True),
                     lambda: sequence.read(layer, 0, 1),
                     lambda: c.set_centres(layer, key_centre=np.zeros((1, 32), "float32"))):
            with pytest.raises(tqkv.InvalidArgument, match=f"layer = {layer}"):
                call()


def test_read_and_centres_by_layer():
    with layered() as c:
        c.set_centres(1, key_centre=np.ones((1, 32), "float32"))
        with pytest.raises(tqkv.InvalidArgument, match="value_centre: has shape"):
            c.set_centres(1, value_centre=np.ones((2, 64), "float32"))
        step, sequence = c.batch(), c.sequence()
        step.plan([sequence], [2])
        for layer, shape in ((0, (2, 2, 64)), (1, (2, 1, 32))):
            step.append(layer, random(*shape), random(*shape))
            k, v = sequence.read(layer, 0, 2, like=np.zeros(0, "float32"))
            assert k.shape == v.shape == shape
        assert sequence.read(2, 0, 2)[0].shape == (2, 2, 64)


def test_the_resolved_configuration_shows_every_layer():
    with layered() as c:
        assert c.config.num_layers == 3 and len(c.config.layers) == 3
        first, second, third = c.config.layers
        assert (first.value_dim, first.key_bits, first.sliding_window, first.shares_layer) == (64, 4, 0, None)
        assert (second.key_bits, second.value_bits, second.rotation) == (8, 3, "hadamard")
        assert (third.num_q_heads, third.num_kv_heads, third.head_dim, third.shares_layer) == (2, 2, 64, 0)
        with tqkv.Cache(c.config) as same:
            assert same.config == c.config and same.fingerprint() == c.fingerprint()
    with tqkv.Cache(num_layers=2, num_q_heads=2, num_kv_heads=1, head_dim=32, key_bits=4, value_bits=4,
                    max_tokens=32) as c:
        assert [layer.num_q_heads for layer in c.config.layers] == [2, 2]


def test_bytes_of_each_layer():
    config = tqkv.Config(layers=LAYERS, key_bits=4, value_bits=3, max_tokens=4096, max_batch_tokens=32)
    first, second, third = (config.layer_bytes(i) for i in range(3))
    assert first.group == third.group != second.group and first.num_pages > second.num_pages
    assert (first.token_bytes, first.fp16_token_bytes) == (2 * (64 * 7 // 8 + 4), 2 * 64 * 4)
    assert (second.token_bytes, second.fp16_token_bytes) == (32 * 11 // 8 + 4, 32 * 4)
    assert third.page_bytes == third.token_bytes == third.raw_bytes == 0
    assert first.page_bytes + second.page_bytes == config.bytes().page_bytes
    for layer in (-1, 3):
        with pytest.raises(tqkv.InvalidArgument, match=f"layer = {layer}"):
            config.layer_bytes(layer)


@pytest.mark.parametrize("layers, changes, text", [
    (LAYERS, dict(num_layers=2), "layers: has 3 entries, num_layers = 2"),
    ((tqkv.Layer(head_dim="64"), ), {}, r"layers\[0\].head_dim = '64': must be an integer"),
    ((LAYERS[0], tqkv.Layer(head_dim=2**33)), {}, r"layers\[1\].head_dim = 8589934592: does not fit"),
    ((tqkv.Layer(rotation="none"), ), {}, r"layers\[0\].rotation = 'none'"),
    ((LAYERS[0], tqkv.Layer(num_q_heads=2, shares_layer=-1)), {}, r"layers\[1\].shares_layer = -1"),
    ((LAYERS[0], tqkv.Layer(num_q_heads=2, shares_layer=1)), {}, r"layers\[1\].shares_layer = 2"),
    ((tqkv.Layer(num_q_heads=2, num_kv_heads=1, head_dim=50), ), {}, r"layers\[0\].head_dim = 50"),
    ((), {}, "num_layers = 0")])
def test_bad_layers(layers, changes, text):
    with pytest.raises(tqkv.InvalidArgument, match=text):
        layered(layers, **changes)


def test_families_and_levels_of_layers():
    """What a cache was made from comes back, and makes the same cache again."""
    three = tqkv.Levels((-.3, -.2, -.1, 0, .1, .2, .25, .3), (-.25, -.15, -.05, .05, .15, .2, .28))
    two = tqkv.Levels((-.3, -.1, .1, .25), (-.2, 0, .2), .5)
    layers = [tqkv.Layer(), tqkv.Layer(key_bits=2, key_levels=two), tqkv.Layer(value_family="grouped"),
              tqkv.Layer(key_family="prod")]
    config = tqkv.Config(num_layers=4, num_q_heads=2, num_kv_heads=1, head_dim=64, key_bits=3, value_bits=3,
                         code_family="levels", key_levels=three, value_levels=three, max_tokens=64,
                         sketch_factor=0.5, layers=layers)
    with tqkv.Cache(config) as cache:
        resolved, fingerprint = cache.config, cache.fingerprint()
    own = resolved.layers
    assert own[0].key_levels.levels == pytest.approx(three.levels) and own[1].key_levels.bits == 2
    assert (own[2].value_family, own[2].group_size, own[2].value_levels) == ("grouped", 32, None)
    assert (own[3].key_family, resolved.sketch, resolved.sketch_factor) == ("prod", "orthogonal", 0.5)
    with tqkv.Cache(resolved) as cache:
        assert cache.fingerprint() == fingerprint


def test_trellis_sides():
    """Three quarters of the scalar codes' error, or less, in the same bytes."""
    x = np.random.default_rng(3).standard_normal((48, 2, 96)).astype(np.float32)
    errors = {}
    for family in ("scalar", "trellis"):
        with tqkv.Cache(num_layers=1, num_q_heads=2, num_kv_heads=2, head_dim=96, key_bits=4, value_bits=3,
                        code_family=family, max_tokens=64) as cache, cache.batch() as batch:
            assert cache.config.key_family == family
            sequence = cache.sequence()
            batch.plan([sequence], [48], [0])
            batch.append(0, x, x)
            sides = sequence.read(0, 0, 48, like=x)
            errors[family] = [((side - x) ** 2).sum() / (x ** 2).sum() for side in sides]
    for scalar, trellis in zip(errors["scalar"], errors["trellis"]):
        assert 0.5 * scalar < trellis < 0.8 * scalar
