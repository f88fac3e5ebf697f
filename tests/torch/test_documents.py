# SPDX-License-Identifier: Apache-2.0
"""What the documents show, as it stands."""
import re
from pathlib import Path

import pytest
import torch
import tqkv
from rig import DEVICE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(DEVICE != "cpu", reason="TQKV_TEST_DEVICE is not cpu")
def test_the_sample_of_the_readme():
    code = re.search(r"<!-- example: torch;.*?-->\n```python\n(.*?)```", (ROOT / "README.md").read_text(),
                     re.S).group(1)
    names = {}
    with torch.no_grad():
        exec(compile(code, "README.md", "exec"), names)
    assert len(names["sequence"]) == 102 and names["out"].shape == (1, 8, 64)
    assert names["out"].abs().sum() > 0


@pytest.mark.skipif(DEVICE != "cpu", reason="TQKV_TEST_DEVICE is not cpu")
def test_the_sample_of_the_packages_readme():
    text = (ROOT / "bindings" / "python" / "README.md").read_text()
    code = re.search(r"## Operators of torch\n.*?```python\n(.*?)```", text, re.S).group(1)
    with tqkv.Cache(num_layers=1, num_q_heads=8, num_kv_heads=2, head_dim=64, key_bits=4, value_bits=4,
                    max_tokens=1024) as cache:
        names = dict(torch=torch, tqkv=tqkv, sequence=cache.sequence(), batch=cache.batch(),
                     q=torch.randn(9, 8, 64), k=torch.randn(9, 2, 64), v=torch.randn(9, 2, 64))
        with torch.no_grad():
            exec(compile(code, "README.md", "exec"), names)
        assert torch.equal(names["out"], names["batch"].attend(0, names["q"], softmax_scale=0.1))
