# SPDX-License-Identifier: Apache-2.0
"""TQKV_LIBRARY names the library under test. Ranks are forked processes on gloo, one thread each."""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "bindings" / "python"), str(HERE)]

import torch  # noqa: E402

torch.set_num_threads(1)
