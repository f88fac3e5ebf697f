# SPDX-License-Identifier: Apache-2.0
"""Matrices for keys: codes are of M k, queries meet them times the inverse transpose, and what is exact stays
as it was. Against a cache without a matrix that is given M k, as the NumPy reading of FORMAT.md makes it."""
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tqkv

TESTS = str(Path(__file__).resolve().parents[3] / "tests")
sys.path.insert(0, TESTS)
from reference.key_matrix import inverse, product  # noqa: E402
sys.path.remove(TESTS)  # its folder torch is not torch

Q_HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 64, 96


def tokens(seed=0, dim=DIM, scale=1.0):
    random = np.random.default_rng(seed)
    return [scale * random.standard_normal((TOKENS, heads, dim)).astype(np.float32)
            for heads in (Q_HEADS, KV_HEADS, KV_HEADS)]


def matrices(seed=1, dim=DIM):
    """Well conditioned, not orthogonal."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(KV_HEADS):
        left, right = (np.linalg.qr(random.standard_normal((dim, dim)))[0] for _ in "ab")
        made.append(left * np.geomspace(0.25, 4, dim) @ right)
    return np.array(made, np.float32)


def turned(found, q, k):
    """What a cache without them must be given."""
    keys = np.stack([product(found[head], k[:, head]) for head in range(KV_HEADS)], 1)
    back = np.linalg.inv(found.astype(np.float64))
    group = Q_HEADS // KV_HEADS
    queries = np.stack([q[:, head].astype(np.float64) @ back[head // group]
                        for head in range(Q_HEADS)], 1)
    return queries.astype(np.float32), keys


def run(q, k, v, matrix=None, centre=None, matrix_first=True, **fields):
    """(attention, keys as they are read, fingerprint)"""
    fields = {"key_bits": 3, "value_bits": 4, **fields}
    q, k, v = (np.ascontiguousarray(side) for side in (q, k, v))
    with tqkv.Cache(num_layers=1, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=k.shape[2],
                    max_tokens=TOKENS, num_threads=1, **fields) as cache:
        for do_matrix in (matrix_first, not matrix_first):
            if do_matrix and matrix is not None:
                cache.set_key_matrix(0, matrix)
            if not do_matrix and centre is not None:
                cache.set_centres(0, centre)
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], new_tokens=[TOKENS])
        step.append(0, k, v)
        out = np.asarray(step.attend(0, q))
        return out, np.asarray(sequence.read(0, 0, TOKENS)[0]), cache.fingerprint()


def close(found, wanted, share):
    assert np.linalg.norm(found - wanted) <= share * np.linalg.norm(wanted)


BANDS = tqkv.KeyBands((4, 2), tuple(tuple(np.random.default_rng(head).permutation(DIM).tolist())
                                    for head in range(KV_HEADS)))


@pytest.mark.parametrize("fields", ({}, {"code_family": "trellis"}, {"rotation": "dense"}, {"key_bits": 8},
                                    {"key_family": "prod"}, {"layers": (tqkv.Layer(key_bands=BANDS), )}))
def test_codes_are_those_of_turned_keys(fields):
    q, k, v = tokens()
    found = matrices()
    queries, keys = turned(found, q, k)
    if "layers" in fields:
        fields = {**fields, "key_bits": 0}
    out, read, fingerprint = run(q, k, v, found, **fields)
    plain_out, plain_read, plain_fingerprint = run(queries, keys, v, **fields)
    wanted = [product(inverse(found[head]), plain_read[:, head]) for head in range(KV_HEADS)]
    assert np.array_equal(read, np.stack(wanted, 1))
    close(out, plain_out, 2e-3)  # queries are rounded to integers: to 2^-11 of the largest coordinate
    assert fingerprint != plain_fingerprint


def test_powers_of_two_and_permutations_change_nothing_but_places():
    """Such matrices are exact: so is all that is read."""
    q, k, v = tokens()
    order = np.random.default_rng(3).permutation(DIM)
    found = np.zeros((KV_HEADS, DIM, DIM), np.float32)
    found[:, np.arange(DIM), order] = 4
    out, read, _ = run(q, k, v, found)
    plain_out, plain_read, _ = run(q[..., order] / 4, 4 * k[..., order], v)
    assert np.array_equal(read[..., order], plain_read / 4) and np.array_equal(out, plain_out)


def test_exact_tokens_are_read_as_they_came():
    q, k, v = tokens()
    out, read, _ = run(q, k, v, matrices(), window_tokens=TOKENS)
    plain_out, plain_read, _ = run(q, k, v, window_tokens=TOKENS)
    assert np.array_equal(read, k) and np.array_equal(out, plain_out) and np.array_equal(plain_read, k)


def test_centres_are_turned_as_well_in_either_order():
    q, k, v = tokens()
    k += 3
    found, centre = matrices(), np.full((KV_HEADS, DIM), 3, np.float32)
    runs = [run(q, k, v, found, centre, first) for first in (True, False)]
    assert np.array_equal(runs[0][0], runs[1][0]) and np.array_equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]
    far, near = (np.square(result[1] - k).sum() for result in (run(q, k, v, found), runs[0]))
    assert near < far / 2


def test_states_know_their_matrix():
    q, k, v = tokens()
    found = matrices()

    def opened(matrix):
        cache = tqkv.Cache(num_layers=1, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, key_bits=3,
                           value_bits=3, max_tokens=2 * TOKENS, num_threads=1)
        if matrix is not None:
            cache.set_key_matrix(0, matrix)
        return cache
    with opened(found) as cache:
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], new_tokens=[TOKENS], query_tokens=[0])
        step.append(0, k, v)
        state = io.BytesIO()
        cache.save(sequence, state)
        read = np.asarray(sequence.read(0, 0, TOKENS)[0])
        with pytest.raises(tqkv.InvalidState, match="key matrices are fixed once a sequence holds tokens"):
            cache.set_key_matrix(0, found)
    with opened(found) as cache:
        again = cache.load(io.BytesIO(state.getvalue()))
        assert np.array_equal(np.asarray(again.read(0, 0, TOKENS)[0]), read)
    for other in (None, matrices(2)):
        with opened(other) as cache, pytest.raises(tqkv.Incompatible, match="key centre"):
            cache.load(io.BytesIO(state.getvalue()))


def test_each_head_of_a_state_has_its_own():
    """A rank that has one of the heads, with that head's matrix, takes its part."""
    found = matrices()
    _, k, v = tokens()

    def opened(heads, first, matrix):
        cache = tqkv.Cache(num_layers=1, num_q_heads=heads, num_kv_heads=heads, first_kv_head=first,
                           head_dim=DIM, key_bits=3, value_bits=3, max_tokens=2 * TOKENS, num_threads=1)
        cache.set_key_matrix(0, matrix)
        return cache
    with opened(2, 0, found) as cache, opened(1, 1, found[1:]) as rank, opened(1, 1, found[:1]) as other:
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], new_tokens=[TOKENS], query_tokens=[0])
        step.append(0, k, v)
        state = io.BytesIO()
        cache.save(sequence, state)
        again = rank.load(io.BytesIO(state.getvalue()))
        read = np.asarray(sequence.read(0, 0, TOKENS)[0])
        assert np.array_equal(np.asarray(again.read(0, 0, TOKENS)[0]), read[:, 1:])
        with pytest.raises(tqkv.Incompatible, match="key centre"):
            other.load(io.BytesIO(state.getvalue()))


def test_a_calibration_carries_them(tmp_path):
    found = matrices()
    q, k, v = (np.concatenate([tokens(seed)[side] for seed in range(5)]) for side in range(3))
    k = k + 2
    with tqkv.Calibration(1, Q_HEADS, KV_HEADS, DIM) as calibration:
        calibration.set_key_matrix(0, found)
        calibration.feed(0, q, k, v)
        with pytest.raises(tqkv.InvalidState, match="layer 0 was fed 480 tokens"):
            calibration.set_key_matrix(0, found)
        queries, keys = turned(found, q, k)
        with tqkv.Calibration(1, Q_HEADS, KV_HEADS, DIM) as other:
            assert other.key_matrix(0) is None
            other.feed(0, queries, keys, v)
            want = other.choose(key_bits=3, value_bits=3)
            turned_centre = np.frombuffer(other.centres(0)[0], np.float32).reshape(KV_HEADS, DIM)
        have = calibration.choose(key_bits=3, value_bits=3)
        assert calibration.key_matrix(0) == found.tobytes()
        assert have.layers == want.layers and have.error == pytest.approx(want.error, rel=1e-4)
        centre = np.frombuffer(calibration.centres(0)[0], np.float32).reshape(KV_HEADS, DIM)
        close(np.einsum("hij,hj->hi", found, centre), turned_centre, 1e-5)
        calibration.save(tmp_path / "turned")
    with tqkv.Calibration.load(tmp_path / "turned") as again:
        assert again.choose(key_bits=3, value_bits=3) == have and again.key_matrix(0) == found.tobytes()
        with pytest.raises(tqkv.InvalidState, match="it was loaded"):
            again.set_key_matrix(0, found)
        fields = {"num_layers": 1, "num_q_heads": Q_HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM,
                  "key_bits": 3, "value_bits": 3, "max_tokens": 64}
        with tqkv.Cache(**fields) as cache, tqkv.Cache(**fields) as own:
            again.set_centres(cache)
            own.set_key_matrix(0, found)
            own.set_centres(0, centre, np.frombuffer(again.centres(0)[1], np.float32).reshape(KV_HEADS, DIM))
            assert cache.fingerprint() == own.fingerprint()
    whole = (tmp_path / "turned").read_bytes()
    for at in range(0, len(whole), 997):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        with pytest.raises((tqkv.CorruptData, tqkv.Incompatible, tqkv.IoError)):
            tqkv.Calibration.load(io.BytesIO(bytes(damaged)))


def test_what_is_wrong_is_named():
    good = matrices()

    def refused(error, text, matrix=good, layer=0, **fields):
        fields = {"num_layers": 1, "head_dim": DIM, "key_bits": 3, "value_bits": 3, **fields}
        with tqkv.Cache(num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, max_tokens=64, **fields) as cache:
            with pytest.raises(error, match=text):
                cache.set_key_matrix(layer, matrix)
    bad = good.copy()
    bad[1, 3, 5] = np.nan
    refused(tqkv.InvalidArgument, r"matrix\[1\]\[3\]\[5\] = -?nan of layer 0: must be finite", bad)
    singular = good.copy()
    singular[1, 7] = singular[1, 8]
    refused(tqkv.InvalidArgument, r"matrix\[1\] of layer 0: has no inverse in float32", singular)
    refused(tqkv.InvalidArgument, r"matrix\[0\] of layer 0: has no inverse", np.ldexp(good, -30))
    refused(tqkv.InvalidArgument, "matrix: has shape", good[:1])
    refused(tqkv.InvalidArgument, "layer = 1", layer=1)
    refused(tqkv.NotSupported, "layer 0: a key matrix is for keys and values apart", key_bits=16)
    refused(tqkv.NotSupported, "layer 0: a key matrix is for", key_bits=4, key_family="grouped")
