# SPDX-License-Identifier: Apache-2.0
"""The bundled slice: small enough to ship, readable by the safetensors package, and what its script cuts out
of the full capture."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tool import ROOT, SLICE, read_slice

FOLDER = Path(os.environ["TQKV_TESTLM"]) if "TQKV_TESTLM" in os.environ else ROOT.parent / "shared" / "testlm"


def test_slice_is_small_and_sound():
    safetensors = pytest.importorskip("safetensors.numpy")
    assert SLICE.stat().st_size <= 2_000_000
    read = safetensors.load_file(SLICE)
    own = read_slice()
    assert sorted(read) == sorted(own) and len(own) == 12
    for name, tensor in own.items():
        assert np.array_equal(read[name], tensor) and np.isfinite(tensor).all(), name


def test_slice_is_cut_from_the_capture():
    capture = FOLDER / "kv_capture.safetensors"
    if not capture.exists():
        pytest.skip(f"no full capture at {FOLDER} (set TQKV_TESTLM)")
    done = subprocess.run([sys.executable, ROOT / "tests" / "data" / "cut_slice.py", capture, "--check"],
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
