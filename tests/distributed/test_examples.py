# SPDX-License-Identifier: Apache-2.0
"""The examples as a user starts them: by torchrun, on the CPU."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


def torchrun(path, ranks, *arguments):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                          f"--nproc-per-node={ranks}", str(path), *arguments],
                         env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("ranks, share", ((2, "0.50"), ))
def test_tensor_parallel(ranks, share):
    assert torchrun(PACKAGE / "examples" / "tensor_parallel.py", ranks) == \
        f"{ranks} ranks (gloo), 56 tokens, {share} of the pages on each; as on one device within 1e-3: True\n"


def test_context_parallel():
    printed = torchrun(PACKAGE / "examples" / "context_parallel.py", 3)
    assert re.fullmatch(r"4020 tokens as 1344 \+ 1344 \+ 1332 \(gloo\); 4160 bytes from each rank "
                        r"for a token and layer; as on one device within 4e-4: True\n", printed), printed


def test_the_bench():
    """It runs; no timing is judged."""
    bench = json.loads(torchrun(PACKAGE.parents[1] / "tests" / "bench" / "context_parallel.py", 2, "--quick"))
    assert (bench["ranks"], bench["backend"], bench["tokens"]) == (2, "gloo", 8192)
    assert bench["call"]["one us"] > 0 and bench["call"]["parallel us"] > 0


def test_the_sample_of_the_readme():
    """On three ranks and on one: the same answer."""
    text = (PACKAGE.parents[1] / "README.md").read_text()
    code = re.search(r"<!-- example: distributed;.*?-->\n```python\n(.*?)```", text, re.S).group(1)
    start = 'dist.init_process_group("gloo")'
    assert code.count(start) == 1
    code = code.replace(start, "pass")  # the ranks here are in a group already

    def work(rank):
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        return len(names["sequence"]), names["out"].numpy()

    (length, one), = on_ranks(1, work)
    parts = on_ranks(3, work)
    assert length == sum(part for part, _ in parts) == 1020
    for _, out in parts:
        difference = torch.from_numpy(out - one).norm() / torch.from_numpy(one).norm()
        assert difference < 4e-4 and out.tobytes() == parts[0][1].tobytes()
