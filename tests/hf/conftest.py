# SPDX-License-Identifier: Apache-2.0
"""TQKV_LIBRARY names the library under test, TQKV_TEST_DEVICE the device (cpu; cuda: both model and cache).
On the CPU nothing reaches for a network, and one thread computes: the models are tiny."""
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "bindings" / "python"), str(HERE)]

import torch  # noqa: E402

torch.set_num_threads(1)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
