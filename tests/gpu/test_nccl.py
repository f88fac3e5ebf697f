# SPDX-License-Identifier: Apache-2.0
"""The examples of tensor and context parallelism on two GPUs, as a user starts them; each compares itself
with one device."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def torchrun(path, *arguments):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                          str(path), *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name, bound", (("tensor_parallel.py", "1e-3"), ("context_parallel.py", "4e-4")))
def test_two_gpus(name, bound):
    printed = torchrun(PACKAGE / "examples" / name)
    assert "(nccl)" in printed and f"as on one device within {bound}: True" in printed, printed


def test_the_bench(capsys):
    """One sequence of a million tokens; no timing is judged, all is printed."""
    bench = json.loads(torchrun(PACKAGE.parents[1] / "tests" / "bench" / "context_parallel.py"))
    with capsys.disabled():
        print(json.dumps(bench))
    assert (bench["backend"], bench["tokens"]) == ("nccl", 1 << 20)
