# SPDX-License-Identifier: Apache-2.0
"""The tests of this folder drive the library (TQKV_LIBRARY) through the Python package, and read what it
saves with tests/reference/state.py."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bindings" / "python"), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]


def pytest_collection_modifyitems(items):
    if not os.environ.get("TQKV_LIBRARY"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="TQKV_LIBRARY names no library"))
