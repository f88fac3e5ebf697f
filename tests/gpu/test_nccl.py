# SPDX-License-Identifier: Apache-2.0
"""The examples of tensor and context parallelism on two GPUs, as a user starts them; each compares itself
with one device."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name, bound", (("tensor_parallel.py", "1e-3"), ("context_parallel.py", "4e-4")))
def test_two_gpus(name, bound):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                          str(PACKAGE / "examples" / name)], env=env, capture_output=True, text=True,
                         timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "(nccl)" in ran.stdout and f"as on one device within {bound}: True" in ran.stdout, ran.stdout
