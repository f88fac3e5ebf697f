# SPDX-License-Identifier: Apache-2.0
"""Attention on codes against float64 attention over the vectors that the cache decodes, in the nine
configurations of S2's exp_c_fused.py, and what the codes themselves cost there.

Tolerance. Queries carry 15 bits and a sign relative to the largest coordinate of their rotated vector,
weights 16 bits: a logit of order 1 is off by 4e-5, a typical weight by 2e-5, both at random, so the output by
5e-5 of its length when few tokens carry it and less when many do. 2^-12 (2.4e-4) is five times that; three
lost bits of either would be seen.
"""

import numpy as np

from .library import attend64
from .rows import LIBRARY

TOLERANCE = 2.0 ** -12
KEY_BITS = 3
SAYS_ERROR = 0.05  # what S2 lets pass
# Heads, tokens, head_dim, value bits, value group.
CONFIGURATIONS = (
    (8, 256, 128, 2, 32),
    (16, 1024, 128, 2, 32),
    (16, 1024, 256, 2, 32),
    (32, 4096, 128, 2, 32),
    (8, 256, 128, 3, 32),
    (16, 1024, 128, 3, 32),
    (16, 1024, 128, 3, 16),
    (16, 1024, 256, 3, 32),
    (32, 4096, 128, 3, 32),
)


def run(context):
    attend_on(context, context.codec, "")
    if context.device is None:
        context.table.skip("Fused decode on a GPU, nine configurations", "needs --device cuda", source="S2",
                           says="max_err = 0")
    else:
        attend_on(context, context.device, f" on {context.device.title}")


def attend_on(context, codec, where):
    for number, (heads, tokens, dim, bits, group) in enumerate(CONFIGURATIONS):
        context.progress(f"fused decode{where}, configuration {number + 1} of {len(CONFIGURATIONS)}")
        rng = context.rng(f"decode {number}")
        k, v = (rng.standard_normal((tokens, heads, dim), dtype=np.float32) for _ in range(2))
        q = rng.standard_normal((1, heads, dim), dtype=np.float32)
        out, decoded_k, decoded_v = codec.attention(k, v, q, KEY_BITS, bits)
        reference = attend64(q, decoded_k, decoded_v, dim ** -0.5)
        exact = attend64(q, k, v, dim ** -0.5)
        error = np.linalg.norm(out - reference) / np.linalg.norm(reference)
        largest = float(np.abs(out - reference).max())
        cosine = float(
            np.mean(
                np.sum(out * reference, axis=2) /
                (np.linalg.norm(out, axis=2) * np.linalg.norm(reference, axis=2))))
        cost = np.linalg.norm(out - exact) / np.linalg.norm(exact)
        context.table.ours(
            error <= TOLERANCE and largest <= SAYS_ERROR,
            f"Fused decode{where}, BH = {heads}, N = {tokens}, d = {dim}, {KEY_BITS}-bit keys, "
            f"{bits}-bit values "
            f"({number + 1} of {len(CONFIGURATIONS)})",
            f"error {error:.1e} of the output, {largest:.1e} at most, cosine {cosine:.8f}",
            source="S2",
            says=f"max_err = 0 (up to {SAYS_ERROR} passes), groups of {group}",
            subject=LIBRARY,
            tolerance="2^-12 of the output, derived in decode.py",
            note=f"Against the vectors before coding: {cost:.3f}. tqkv has one scale a vector, no groups.",
            figures={
                "heads": heads,
                "tokens": tokens,
                "dim": dim,
                "bits": bits,
                "error": float(error),
                "coding": float(cost),
            },
        )
