# SPDX-License-Identifier: Apache-2.0
"""Formats against what they promise: distortion of Gaussian numbers where it is known, error bounds where a
grid gives one, bytes of their own READMEs; and the pass that judges them against attention in float64."""
import math

import pytest
import torch

from tqkv.eval import _formats as formats
from tqkv.eval import _rivals
from tqkv.eval._quality import kl

DIM = 128
ALL = {f.name: f for f in formats.rivals()}


@pytest.fixture(scope="module")
def gauss():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 512, DIM, generator=generator)
    return x, formats.Side(3, torch.randn(2, 900, DIM, generator=generator), x)


def error(f, x, side):
    return [((g(x, side) - x).square().sum() / x.square().sum()).item() for g in (f.key, f.value)]


def test_lloyd_max_levels_are_the_known_ones():
    known = {1: [0.79788], 2: [0.45278, 1.51042], 3: [0.24509, 0.75601, 1.34391, 2.15195]}
    for bits, levels in known.items():
        found = formats.lloyd_max(bits)
        assert torch.allclose(found[len(levels):], torch.tensor(levels), atol=2e-5)
        assert torch.allclose(found, -found.flip(0), atol=1e-6)


# Relative squared error of independent Gaussian numbers. Lloyd-Max: the known constants, here with the norm
# of 128 numbers; sketches: theory's shares of what is left; the rest is bounded by its grid below.
@pytest.mark.parametrize("name, key, value", (
    ("S3 4", 0.0093, 0.0093), ("S3 2", 0.116, 0.116),
    ("S4 k3v2", 0.182, None), ("S2 k3v3", 0.071, None),
    ("FP8 e4m3, a tensor", 0.00068, 0.00068), ("buun TCQ 2", 0.072, 0.072), ("buun TCQ 3", 0.0188, 0.0188),
    ("Block-GTQ k2v2", None, 0.116)))
def test_distortion_of_gaussian_numbers(gauss, name, key, value):
    for found, expected in zip(error(ALL[name], *gauss), (key, value)):
        assert expected is None or found == pytest.approx(expected, rel=0.07), name


@pytest.mark.parametrize("name", ALL)
def test_no_format_beats_shannon_nor_loses_its_way(gauss, name):
    """4^-bits bounds the error of Gaussian numbers from below, whatever the code; stored bits are those of
    the table. From above: three bits fewer, five where 6-bit codes lie in whole bytes."""
    spent = 5 if name.startswith("S1") else 3
    for found, b in zip(error(ALL[name], *gauss), ALL[name].bits(DIM)):
        assert 4.0**-b < found < 4.0**-(b - spent), (name, found, b)


@pytest.mark.parametrize("bits, group, cosine", ((2, 32, 0.9327), (2, 16, 0.9520), (3, 32, 0.9864),
                                                 (3, 16, 0.9905), (4, 16, 0.9979), (4, 32, 0.9970)))
def test_groups_have_the_cosines_of_s2(gauss, bits, group, cosine):
    """Its exp_a, as recomputed in the project's reference from 1,500 vectors."""
    coded = formats.by_groups(lambda x: formats.minmax(x, bits), group)(gauss[0])
    assert torch.cosine_similarity(coded, gauss[0], dim=-1).mean().item() == pytest.approx(cosine, abs=7e-4)


def test_grids_round_within_half_a_step(gauss):
    x = gauss[0]
    for function, block in ((formats.q8_0, 32), (formats.q4_0, 32)):
        blocks = x.unflatten(-1, (-1, block))
        most = blocks.abs().amax(-1, keepdim=True)
        step = most / (127 if function is formats.q8_0 else 8)
        top = 1.0 if function is formats.q4_0 else 0.5  # q4_0 has -8 but no +8: the other end is cut by one
        assert bool(((function(blocks) - blocks).abs() <= step * top * 1.01 + most * 2e-3).all())
    for bits in (2, 3, 4, 6):
        step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / (2**bits - 1)
        assert bool(((formats.minmax(x, bits) - x).abs() <= step * 0.51 + 0.004).all())


def test_constants_and_zeros_survive():
    side = formats.Side(0, torch.randn(1, 64, DIM), torch.randn(1, 64, DIM))
    for name, f in ALL.items():
        for x in (torch.zeros(1, 40, DIM), torch.full((1, 40, DIM), 3.0)):
            for g in (f.key, f.value):
                assert bool(g(x, side).isfinite().all()), name


def test_paths_of_a_trellis_are_the_best_there_are(gauss):
    """Against every path of four coordinates, and each step shifts the code's bits in."""
    from tqkv.eval import _bitshift
    x, levels = gauss[0][0, :20, :4], _bitshift.levels(2, 60, 3)
    states = _bitshift.paths(x, levels, 2)
    assert bool((states[:, 1:] >> 2 == states[:, :-1] % (_bitshift.STATES >> 2)).all())
    found = (levels[states] - x).square().sum(1)
    first, rest = torch.arange(_bitshift.STATES)[:, None], torch.arange(64)[None]
    whole = (first << 6 | rest).flatten()
    every = torch.stack([whole >> shift & _bitshift.STATES - 1 for shift in (6, 4, 2, 0)], 1)
    least = (levels[every][None] - x[:, None]).square().sum(2).min(1).values
    assert torch.allclose(found, least, rtol=1e-5)


# bytes of a token and head at 128 dimensions, keys and values, as the projects give them
@pytest.mark.parametrize("name, expected", (("S3 4", 132), ("S3 2", 68), ("S4 k3v2", 100), ("S2 k3v3", 132),
                                            ("S1 k6v6", 274), ("KIVI 2", 96), ("q8_0", 272), ("q4_0", 144),
                                            ("buun TCQ 2", 72), ("buun TCQ 3", 104), ("KVarN k4v2", 108),
                                            ("NVFP4, blocks of 16", 144)))
def test_bytes_are_those_of_the_projects(name, expected):
    assert sum(ALL[name].bits(DIM)) * DIM / 8 == expected


def test_bits_of_pairs_follow_their_energy_and_budget():
    energy = torch.tensor([100.0, 1.0, 1.0, 1.0])
    bits = formats.block_gtq_bits(energy, 2)
    assert bits.sum() == 8 and bits[0] > bits[1:].max() and bits.min() >= 1
    assert formats.block_gtq_bits(torch.ones(64), 3).tolist() == [3] * 64


def test_attention_reads_exact_tokens_where_it_says(gauss):
    """Against a loop in float64."""
    generator = torch.Generator().manual_seed(6)
    tokens = 140
    query, key, value, keys, values = (torch.randn(h, tokens, 16, generator=generator)
                                       for h in (4, 2, 2, 2, 2))
    for coded in (None, (keys, values)):
        found = _rivals.attention(query, key, value, 0.4, coded)
        for head, row in ((0, 0), (3, 17), (2, 139)):
            near = [s > row - 128 or s < 4 for s in range(row + 1)]
            k, v = ([(a if coded is None or n else b)[head // 2, s].double() for s, n in enumerate(near)]
                    for a, b in ((key, keys), (value, values)))
            logits = torch.stack(k) @ query[head, row].double() * 0.4
            expected = torch.softmax(logits, 0) @ torch.stack(v)
            assert torch.allclose(found[head, row].double(), expected, atol=1e-5)


def test_formats_are_judged_on_a_model(testlm):
    chosen = [ALL["q8_0"], ALL["S3 2"], _rivals.library(8, 8), _rivals.library(2, 2),
              _rivals.library(2, 2, family="trellis")]
    ids = testlm.ids("def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n" * 2)
    found = _rivals.judge(testlm, ids, 0, formats=chosen)
    for fine, coarse in (("q8_0", "S3 2"), ("tqkv 8", "tqkv 2")):
        for what in ("key", "value", "attention", "kl", "kl_exact"):
            assert found[fine][what] < found[coarse][what] / 10, what
        assert found[fine]["top1"] > 0.95 and found[fine]["recall"] >= found[coarse]["recall"]
    assert found["tqkv 2"]["bytes"] == found["S3 2"]["bytes"] == found["tqkv 2 trellis"]["bytes"] == 68
    for what in ("key", "value"):
        assert found["tqkv 2 trellis"][what] < 0.8 * found["tqkv 2"][what], what
    assert testlm.model.config._attn_implementation == testlm.attention


def test_kl_is_that_of_its_definition():
    p, q = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl(p.log()[None], q.log()[None]).item() == pytest.approx(expected)
    zero = torch.tensor([1.0, 0.0, 0.0]).double()
    assert kl(zero.log()[None], q.log()[None]).item() == pytest.approx(math.log(4))
