# SPDX-License-Identifier: Apache-2.0
"""Where the gate of tests/gpu/conformance_cases.cuh for long prefill over keys in bands comes from: queries,
keys and weights as halves (cuda/DESIGN.md section 7), and nothing else.

A key's coordinate is its level times its band's part of the token's unit, rounded once. A band of one bit has
one magnitude a token, so that all of its coordinates are off by the same share, up to 2^-11, and so is the
band's part of the logit; a band of few bits is not far from that, and a band that is padded has each rounded
number of the query several times. Roundings do not average out there: rows that see a token of a large logit
are off by several times what independent roundings would make.
"""
import numpy as np
import pytest

from . import bands, encode

# Of a row: what all rows are off by together, and the worst of a million (conformance_cases.cuh has both).
ROW_ROUNDING, WORST = 5.3e-4, 5.5
QUERY_MAX = 32512
TOKENS, QUERIES, HEADS, CASES = (2112, 1056, 192, 96), 190, 4, 8


def halves(x):
    return x.astype(np.float16).astype(np.float64)


def numbers(rng, count, dim, gain):
    """As the GPU tests draw them (api_cache.cuh)."""
    return ((rng.random((count, dim, 4)).sum(axis=2) - 2) * gain).astype(np.float32)


def row_errors(rng, head_dim, widths, matrices):
    """Of the rows of one cache, relative to themselves."""
    side = bands.Bands(head_dim, widths, tuple(int(i) for i in rng.permutation(head_dim)),
                       seed=int(rng.integers(1 << 30)))
    turn = np.eye(head_dim)
    if matrices:
        turn += (rng.random((head_dim, head_dim)) * 2 - 1) * .5 / np.sqrt(head_dim)
    back = np.linalg.inv(turn)
    for tokens in TOKENS:
        asked = min(tokens, QUERIES)
        codes, scales, _ = bands.encode((numbers(rng, tokens, head_dim, 1) @ turn.T).astype(np.float32), side)
        scales = [encode.bf16_to_float(s).astype(np.float64) for s in scales]
        unit = np.exp2(np.floor(np.log2(np.max(scales, axis=0))))[:, None]
        keys, rounded, queries = [], [], []
        own_queries = (numbers(rng, asked * HEADS, head_dim, 3) @ back).astype(np.float32)
        for (own, band), code, scale in zip(side.parts, codes, scales):
            level = band.levels(code).astype(np.float64)
            keys.append(level * scale[:, None])
            rounded.append(halves(level * (scale[:, None] / unit)) * unit)
            padded = np.zeros((len(own_queries), 32), dtype=np.float32)
            padded[:, :len(own)] = own_queries[:, own]
            queries.append(band.rotate(padded).astype(np.float64) * float(band.norm_rot))
        keys, rounded, queries = (np.concatenate(x, axis=1) for x in (keys, rounded, queries))
        step = np.abs(queries).max(axis=1, keepdims=True) / QUERY_MAX
        values = numbers(rng, tokens, head_dim, 1).astype(np.float64)
        position = tokens - asked + np.repeat(np.arange(asked), HEADS)[:, None]
        out = []
        for q, k, of_weights in ((queries, keys, np.asarray),
                                 (halves(np.rint(queries / step)) * step, rounded, halves)):
            logits = np.where(np.arange(tokens) <= position, q @ k.T / np.sqrt(head_dim), -np.inf)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out.append(of_weights(weights) @ values / weights.sum(axis=1, keepdims=True))
        yield np.linalg.norm(out[1] - out[0], axis=1) / np.linalg.norm(out[0], axis=1)


@pytest.mark.parametrize("head_dim, widths, matrices", ((64, (1, 1), True), (40, (4, 1), False)))
def test_gate_is_what_halves_of_keys_in_bands_do(head_dim, widths, matrices):
    rng = np.random.default_rng(7)
    rows = np.concatenate([e for _ in range(CASES) for e in row_errors(rng, head_dim, widths, matrices)])
    together = np.sqrt((rows ** 2).mean())
    print(f"{len(rows)} rows of {head_dim} in {widths}: {together:.2e} off, the worst {rows.max():.2e}")
    assert ROW_ROUNDING / 1.5 < together <= ROW_ROUNDING
    assert WORST * ROW_ROUNDING / 2 < rows.max() <= WORST * ROW_ROUNDING
