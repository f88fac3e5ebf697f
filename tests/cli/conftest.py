# SPDX-License-Identifier: Apache-2.0
"""The tests of this folder need the program tqkv."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tool  # noqa: E402


@pytest.fixture(autouse=True)
def _tool_is_built():
    if tool.find_tool() is None:
        pytest.skip("no program tqkv in build*/ (set TQKV_TOOL)")
