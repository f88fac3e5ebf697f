# SPDX-License-Identifier: Apache-2.0
"""What the documents show, as it stands."""
import re
from pathlib import Path

import pytest
import torch
import tqkv
from rig import DEVICE

ROOT = Path(__file__).resolve().parents[2]


def sample(name):
    """What is left of a sample of README.md that was run."""
    code = re.search(rf"<!-- example: {name};.*?-->\n```python\n(.*?)```", (ROOT / "README.md").read_text(),
                     re.S).group(1)
    names = {}
    with torch.no_grad():
        exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.skipif(DEVICE != "cpu", reason="TQKV_TEST_DEVICE is not cpu")
def test_the_sample_of_pages():
    names = sample("paged")
    assert names["length"] == 99 and names["out"].shape == (1, 8, 64) and names["out"].abs().sum() > 0
    written = names["blocks"].flatten(1).any(1).nonzero().flatten().tolist()
    assert written == [3, 7] and not names["codec"].check()


@pytest.mark.skipif(DEVICE != "cpu", reason="TQKV_TEST_DEVICE is not cpu")
def test_the_sample_of_the_readme():
    names = sample("torch")
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
