# SPDX-License-Identifier: Apache-2.0
"""Where the tolerances of tests/gpu/attend_test.cu for nearly one-hot attention come from: the 16-bit query
alone.

Attention over random codes in float64, once with the query as it is and once with it rounded to integers of
+-32512; nothing else differs. Errors are given relative to the spread of the logits (their standard deviation
times sqrt(head_dim), the codebook's levels counted), which is what the GPU tests allow: of thousands of rows
the worst may be off by 4.5 x 2.7e-5 of it (attend_prefill.cuh; cases of a few dozen rows are held to 6e-5),
the log-sum-exp by 2e-4. A tolerance eight times what rounding does would hide lost bits, so that is checked
as well.
"""
import numpy as np
import pytest

from .encode import load_codebook

ROW_GATE, LSE_GATE = 4.5 * 2.7e-5, 2e-4
QUERY_MAX = 32512
SCALE, SPREAD = 2.0, 4.0  # of those cases


def all_levels(head_dim, bits):
    grid = np.asarray(load_codebook(head_dim, bits).grid, dtype=np.float64)
    return np.concatenate([grid, -grid])


def attend(q, k, v):
    s = q @ k.T * SCALE
    top = s.max(axis=1, keepdims=True)
    p = np.exp(s - top)
    total = p.sum(axis=1, keepdims=True)
    return p / total @ v, (top + np.log(total))[:, 0]


@pytest.mark.parametrize("bits", (2, 3, 4))
@pytest.mark.parametrize("head_dim", (64, 128, 256))
def test_tolerance_is_the_query_rounding(head_dim, bits):
    rng = np.random.default_rng(5)
    levels = all_levels(head_dim, bits)
    row = lse = 0.0
    for _ in range(3):
        k = rng.choice(levels, (500, head_dim)) * (SPREAD / 60 * (0.5 + rng.random((500, 1))))
        v = rng.choice(levels, (500, head_dim)) / 60
        q = rng.standard_normal((800, head_dim))
        step = np.abs(q).max(axis=1, keepdims=True) / QUERY_MAX
        exact, rounded = attend(q, k, v), attend(np.rint(q / step) * step, k, v)
        row = max(row,
                  (np.linalg.norm(rounded[0] - exact[0], axis=1) / np.linalg.norm(exact[0], axis=1)).max())
        lse = max(lse, np.abs(rounded[1] - exact[1]).max())
    spread = SCALE * np.sqrt(head_dim) * SPREAD * max(1.0, np.sqrt((levels**2).mean()) / 60)
    assert ROW_GATE / 8 < row / spread <= ROW_GATE, row / spread
    assert LSE_GATE / 8 < lse / spread <= LSE_GATE, lse / spread
