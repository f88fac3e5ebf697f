# SPDX-License-Identifier: Apache-2.0
"""TQKV_LIBRARY names the library under test. Everything runs on the CPU, on one thread, without a network."""
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bindings" / "python"), str(ROOT / "tests" / "testlm")]

import pytest  # noqa: E402
import torch  # noqa: E402

from tqkv import eval as tqeval  # noqa: E402

torch.set_num_threads(1)
TESTLM = Path(os.environ.get("TQKV_TESTLM", ROOT.parent / "shared" / "testlm"))
if not (TESTLM / "weights.safetensors").exists():  # a worktree lies one folder deeper
    TESTLM = ROOT.parents[1] / "shared" / "testlm"


@pytest.fixture(scope="session")
def constructed():
    return tqeval.load("constructed")


@pytest.fixture(scope="session")
def testlm():
    if not (TESTLM / "weights.safetensors").exists():
        pytest.skip(f"no test model at {TESTLM} (set TQKV_TESTLM)")
    return tqeval.load(str(TESTLM))
