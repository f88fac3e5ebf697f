# SPDX-License-Identifier: Apache-2.0
"""Calibration and key bands from Python: what is chosen serves, survives a file, and says what is wrong."""
import io

import numpy as np
import pytest
import tqkv

LAYERS, Q_HEADS, KV_HEADS, DIM = 3, 4, 2, 64


def prompts(seed=0, tokens=512):
    """Keys whose first coordinates are long, and queries that look at these."""
    random = np.random.default_rng(seed)
    weight = np.where(np.arange(DIM) % 4 == 0, 4.0, 0.5).astype(np.float32)
    q = random.standard_normal((tokens, Q_HEADS, DIM)).astype(np.float32) * weight
    k = random.standard_normal((tokens, KV_HEADS, DIM)).astype(np.float32) * weight + 1
    return q, k, random.standard_normal((tokens, KV_HEADS, DIM)).astype(np.float32)


@pytest.fixture
def calibration():
    with tqkv.Calibration(LAYERS, Q_HEADS, KV_HEADS, DIM) as found:
        for layer in range(LAYERS):
            q, k, v = prompts(layer)
            for first in range(0, len(q), 100):
                found.feed(layer, *(side[first:first + 100] for side in (q, k, v)))
        yield found


def cache_of(choice, **more):
    return tqkv.Cache(layers=choice.layers, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                      max_tokens=512, num_threads=1, **more)


def logits_error(cache, q, k, v):
    step, sequence = cache.batch(), cache.sequence()
    step.plan([sequence], new_tokens=[len(k)], query_tokens=[0])
    step.append(0, k, v)
    keys, _ = sequence.read(0, 0, len(k))
    products = np.einsum("qhd,khd->hqk", q[:, ::Q_HEADS // KV_HEADS], np.asarray(keys) - k)
    return (products**2).mean()


def test_bands_are_chosen_where_they_serve(calibration):
    choice = calibration.choose(key_bits=3, value_bits=3)
    assert choice.banded_layers == LAYERS and choice.raw_layers == 0
    assert all(sum(layer.key_bands.bits) == 6 for layer in choice.layers)
    assert choice.error < .8 * choice.uniform_error
    assert choice.token_bytes == LAYERS * KV_HEADS * ((DIM // 8 * 3 + 4) + (DIM // 8 * 3 + 2))
    q, k, v = prompts(0, 256)
    alike = tqkv.Choice((tqkv.Layer(key_bits=3, value_bits=3), ) * LAYERS, 0, 0, 0, 0, 0)
    with cache_of(choice) as banded, cache_of(alike) as plain:
        for cache in (banded, plain):
            calibration.set_centres(cache)
        assert logits_error(banded, q, k, v) < .6 * logits_error(plain, q, k, v)


def test_keys_alike_in_all_coordinates_get_no_bands():
    random = np.random.default_rng(1)
    with tqkv.Calibration(1, 1, 1, 128, held_out_tokens=256) as found:
        found.feed(0, *(random.standard_normal((4096, 1, 128)).astype(np.float32) for _ in "qkv"))
        # Bands of 32 have books of 32: a gain of a few percent at 3 bits, none of a pattern that differs.
        for layer in found.choose(key_bits=3, value_bits=2).layers:
            assert layer.key_bands is None or set(layer.key_bands.bits) == {3}


def test_long_keys_stay_raw():
    with tqkv.Calibration(LAYERS, Q_HEADS, KV_HEADS, DIM) as found:
        for layer in range(LAYERS):
            q, k, v = prompts(layer)
            found.feed(layer, q, k * (10 if layer == 1 else 1), v)
        choice = found.choose(key_bits=2, value_bits=2)
        assert [layer.key_bits for layer in choice.layers][1] == 16 and choice.raw_layers == 1


def test_an_error_is_reached_with_the_fewest_bytes(calibration):
    loose, tight = (calibration.choose(max_error=error) for error in (1.0, .1))
    assert loose.error <= 1.0 and tight.error <= .1 and loose.token_bytes < tight.token_bytes
    with pytest.raises(tqkv.InvalidArgument, match="goal.max_error = 1e-06: 4 bits in all layers come to"):
        calibration.choose(max_error=1e-6)


def test_a_file_has_all_of_it(calibration, tmp_path):
    calibration.save(tmp_path / "model.tqc")
    with tqkv.Calibration.load(tmp_path / "model.tqc") as again:
        assert again.choose(2.5, 2) == calibration.choose(2.5, 2)
        assert again.centres(2) == calibration.centres(2)
        with pytest.raises(tqkv.InvalidState, match="it was loaded"):
            again.feed(0, *prompts())
    whole = (tmp_path / "model.tqc").read_bytes()
    for at in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        with pytest.raises((tqkv.CorruptData, tqkv.Incompatible, tqkv.IoError)):
            tqkv.Calibration.load(io.BytesIO(bytes(damaged)))
    for size in (0, 7, 60, len(whole) // 2, len(whole) - 1):
        with pytest.raises((tqkv.CorruptData, tqkv.IoError)):
            tqkv.Calibration.load(io.BytesIO(whole[:size]))


def test_states_know_widths_and_orders(calibration, tmp_path):
    choice = calibration.choose(3, 3)
    q, k, v = prompts(0, 40)
    with cache_of(choice) as cache:
        calibration.set_centres(cache)
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], new_tokens=[40], query_tokens=[0])
        for layer in range(LAYERS):
            step.append(layer, k, v)
        cache.save(sequence, tmp_path / "state")
        fingerprint, config = cache.fingerprint(), cache.config
    assert [layer.key_bands for layer in config.layers] == [layer.key_bands for layer in choice.layers]
    other = list(choice.layers)
    bands = other[0].key_bands
    turned = tqkv.KeyBands(bands.bits, tuple(own[1:] + own[:1] for own in bands.order))
    other[0] = tqkv.Layer(key_bands=turned, value_bits=3)
    changed = tqkv.Choice(tuple(other), 0, 0, 0, 0, 0)
    with cache_of(changed) as cache:
        calibration.set_centres(cache)
        assert cache.fingerprint() != fingerprint
        with pytest.raises(tqkv.Incompatible, match="layer 0: the key centre of kv head 0"):
            cache.load(tmp_path / "state")
    with cache_of(choice) as cache:
        calibration.set_centres(cache)
        assert cache.fingerprint() == fingerprint
        cache.load(tmp_path / "state")


def test_what_is_wrong_is_named(calibration):
    q, k, v = prompts(0, 4)
    for change, text in ((dict(layer=LAYERS), "layer = 3: must be 0 .. 2"),
                         (dict(k=k[:3]), "k: has shape"), (dict(v=v.astype(np.float64)), "v: ")):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            calibration.feed(**{"layer": 0, "q": q, "k": k, "v": v, **change})
    with pytest.raises(tqkv.InvalidArgument, match="stream = 0x10: must be NULL on the CPU"):
        calibration.feed(0, q, k, v, stream=16)
    k[2, 1, 5] = np.inf
    with pytest.raises(tqkv.InvalidArgument, match="k: number 69 of token 2 is not finite"):
        calibration.feed(0, q, k, v)
    for fields, text in ((dict(key_bits=2.25, value_bits=2), "goal.key_bits = 2.25"),
                         (dict(key_bits=3, value_bits=5), "goal.value_bits = 5"),
                         (dict(max_error=-1), "goal.max_error = -1")):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            calibration.choose(**fields)
    with tqkv.Calibration(1, 2, 1, 64) as empty:
        with pytest.raises(tqkv.InvalidState, match="layer 0 was fed 0 tokens: it takes 256 or more"):
            empty.choose(3, 3)
    with pytest.raises(tqkv.InvalidArgument, match="head_dim = 512: must be a multiple of 4 from 8 to 256"):
        tqkv.Calibration(1, 2, 1, 512)
    with pytest.raises(tqkv.InvalidArgument, match="layers\\[0\\].key_bands.order: has 1 rows"):
        layer = tqkv.Layer(key_bands=tqkv.KeyBands((3, 3), ((0, 1), )), value_bits=3)
        cache_of(tqkv.Choice((layer, ), 0, 0, 0, 0, 0))
