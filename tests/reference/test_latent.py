# SPDX-License-Identifier: Apache-2.0
"""Latent layers of the oracle: the split rotation keeps scores and values, and one scale serves both uses."""
import numpy as np
import pytest
from reference import latent, rotation as rot
from reference import tqkv_reference as ref

LATENT, REST, TOKENS, HEADS = 512, 64, 1024, 32


def sides(bits, rule=ref.UNBIASED, rest_bits=8):
    return latent.LatentConfig(ref.SideConfig(head_dim=LATENT, bits=bits, kind=ref.VALUE, seed=3, rule=rule),
                               ref.SideConfig(head_dim=REST, bits=rest_bits, kind=ref.KEY, seed=3))


def test_a_score_is_the_sum_of_two_rotated_products():
    random = np.random.default_rng(1)
    q, k = random.normal(size=(2, 5, LATENT + REST)).astype(np.float32)
    rotated = 0.0
    for dim, part in ((LATENT, slice(0, LATENT)), (REST, slice(LATENT, None))):
        signs = rot.sign_bits(rot.stream_base(3, 0, 0, ref.VALUE if dim == LATENT else ref.KEY), dim)
        norm = rot.norm_rot_hadamard(dim)
        a, b = (rot.rotate_hadamard(np.ascontiguousarray(x[:, part]), signs) * norm for x in (q, k))
        rotated = rotated + (a.astype(np.float64) * b).sum(axis=1)
    assert rotated == pytest.approx((q.astype(np.float64) * k).sum(axis=1), abs=1e-4)


def softmax(scores):
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_second_scale_changes_little(bits):
    """Keys with unequal channels and a common part, queries that look at some of them."""
    random = np.random.default_rng(bits)
    size = np.concatenate([np.exp(0.7 * random.normal(size=LATENT)), np.full(REST, 2.0)])
    k = (size * (random.normal(size=(TOKENS, LATENT + REST)) + 0.3 * random.normal(size=LATENT + REST))
         ).astype(np.float32)
    q = (random.normal(size=(HEADS, len(size))) + 0.75 * k[random.integers(0, TOKENS, HEADS)] / size) / size
    scale = 3 / (q @ k.T).std()
    want = softmax(scale * q @ k.T) @ k[:, :LATENT]
    keys, values = latent.decode_latent(k, sides(bits))
    least, least_values = latent.decode_latent(k, sides(bits, ref.LS))

    def error(some_keys, some_values):
        return np.linalg.norm(softmax(scale * q @ some_keys.T) @ some_values - want) / np.linalg.norm(want)

    one, two, other = error(keys, values), error(keys, least_values), error(least, least_values)
    print(f"{bits} bits: unbiased {one:.4f}, a second scale {two:.4f}, least squares for both {other:.4f}")
    assert 0 < 1 - two / one < {2: 0.12, 3: 0.04, 4: 0.02}[bits]
    assert other == pytest.approx(two, rel=0.01)  # the rule, not the number of scales, makes the difference
