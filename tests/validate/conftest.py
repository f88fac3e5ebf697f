# SPDX-License-Identifier: Apache-2.0
"""tqkv.validate from the sources; TQKV_LIBRARY names the library that it measures."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bindings" / "python"), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]
