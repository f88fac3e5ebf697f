# SPDX-License-Identifier: Apache-2.0
"""The examples as a user starts them: by torchrun, on the CPU."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


def torchrun(name, ranks):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                          f"--nproc-per-node={ranks}", str(PACKAGE / "examples" / name)],
                         env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("ranks, share", ((2, "0.50"), ))
def test_tensor_parallel(ranks, share):
    assert torchrun("tensor_parallel.py", ranks) == \
        f"{ranks} ranks, 56 tokens, {share} of the pages on each; as on one device within 1e-3: True\n"


def test_context_parallel():
    printed = torchrun("context_parallel.py", 3)
    assert re.fullmatch(r"4020 tokens as 1344 \+ 1344 \+ 1332; 4160 bytes from each rank for a token and "
                        r"layer; as on one device within 4e-4: True\n", printed), printed
