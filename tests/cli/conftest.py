# SPDX-License-Identifier: Apache-2.0
"""The tests of this folder need the program tqkv."""
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tool  # noqa: E402

sys.path.insert(0, str(tool.ROOT / "bindings" / "python"))


@pytest.fixture(autouse=True)
def _tool_is_built():
    if tool.find_tool() is None:
        pytest.skip("no program tqkv in build*/ (set TQKV_TOOL)")


@pytest.fixture(scope="session")
def tqkv():
    """The Python package, with the library that TQKV_LIBRARY names, else the program's own folder has."""
    os.environ.setdefault("TQKV_LIBRARY", str(Path(tool.find_tool()).parent / "libtqkv.so.0"))
    import tqkv
    return tqkv
