# SPDX-License-Identifier: Apache-2.0
"""The test model with its KV cache in libtqkv: the KL of 3-bit least-squares codes must be the published
0.0124 within 20 %.

The band is the folder's own statement: one rotation seed moves KL by about 8 %, and two and a half of that is
20 %. Only the text task is run (its three sequences are the published protocol), which keeps the test below a
minute on two cores. Folder: TQKV_TESTLM or ../shared/testlm beside the checkout; library: TQKV_LIBRARY or the
newest build*/libtqkv.so.
"""
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import run  # noqa: E402
from library import CacheAttention, Library, find_library  # noqa: E402
from model import read_safetensors  # noqa: E402

FOLDER = run.default_folder()

pytestmark = pytest.mark.skipif(not (FOLDER / "weights.safetensors").exists(),
                                reason=f"no test model at {FOLDER} (set TQKV_TESTLM)")


@pytest.fixture(scope="module")
def library():
    path = find_library()
    if not path:
        pytest.skip("no libtqkv.so in build*/ (set TQKV_LIBRARY)")
    return Library(path)


@pytest.fixture(scope="module")
def prepared():
    return run.prepare(FOLDER, 3, tasks=("text",))


def figures(library, prepared, bits, key_rule, value_rule, search, seed=0, **fields):
    model, sequences, exact = prepared

    def attention(tokens):
        return CacheAttention(library, model, tokens, bits, key_rule, value_rule, search, seed, **fields)

    return run.evaluate(model, sequences, exact, attention)


def test_the_exact_model_meets_the_capture(prepared):
    """The NumPy model is the model: its keys, values and queries are those of the captured prompt, to the
    capture's bfloat16 arithmetic.

    The prompt is read back from the layer-0 values, which depend on the byte alone. A bfloat16 run has
    rounding of 2^-9 relative per operation; eight layers stay below 1.5 %, while a wrong RoPE frequency shows
    up as more than 10 %.
    """
    model = prepared[0]
    capture = read_safetensors(os.path.join(FOLDER, "kv_capture.safetensors"))
    table = {}
    model.logits(np.arange(256, dtype=np.uint8), lambda layer, q, k, v: table.setdefault(layer, (q, k, v))[0])
    values = capture["layers.0.value"].astype(np.float32).transpose(1, 0, 2).reshape(1024, -1)
    known = table[0][2].reshape(256, -1)
    prompt = ((values[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    seen = {}

    def keep(layer, q, k, v):
        seen[layer] = (q, k, v)
        return run.exact_attention(layer, q, k, v)

    model.logits(prompt, keep)
    for layer in range(model.layers):
        q, k, v = (side.transpose(1, 0, 2) for side in seen[layer])
        for name, own in (("key", k), ("value", v), ("query", q[:, -32:])):
            captured = capture[f"layers.{layer}.{name}"].astype(np.float32)
            assert np.linalg.norm(own - captured) < 0.015 * np.linalg.norm(captured), (layer, name)


@pytest.fixture(scope="module")
def plain(library, prepared):
    return figures(library, prepared, 3, "ls", "ls", False)


def test_three_bit_least_squares_reproduces_the_published_kl(plain):
    row = plain
    print(row)
    assert abs(row["kl"] / 0.0124 - 1) < 0.20, row
    assert row["top1"] > 0.94, row  # published 0.960


def test_more_bits_and_the_default_encoder_lose_less(library, prepared, plain):
    """Ordering only: 4 bits below half of 3 bits (published ratio 4.4), the default encoder not above the
    plain one by the seed's 8 %, and trellis codes, which come to 0.68 of it (README.md), below it by a
    seventh."""
    plain = plain["kl"]
    four = figures(library, prepared, 4, "ls", "ls", False)["kl"]
    default = figures(library, prepared, 3, "default", "default", True)["kl"]
    trellis = figures(library, prepared, 3, "default", "default", True, family="trellis")["kl"]
    print({"3 ls": plain, "4 ls": four, "3 default": default, "3 trellis": trellis})
    assert four < plain / 2
    assert default < plain * 1.08
    assert trellis < default * 6 / 7


def test_latents_of_keys_and_values(library, prepared):
    """One set of 4-bit codes of [k | v] for scores and values: measured 0.0039, one seed some 8 % of that;
    keys and values apart, with a scale each, have 0.0025."""
    model, sequences, exact = prepared
    row = run.evaluate(
        model, sequences, exact,
        lambda tokens: CacheAttention(library, model, tokens, 4, "default", "default", True, latent=True))
    print(row)
    assert 0.0020 < row["kl"] < 0.0050, row
