# SPDX-License-Identifier: Apache-2.0
"""Modules that the tests of this folder share with others: the table, the oracle, the package tqkv."""
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS.parent / "bindings" / "python", TESTS / "cli", TESTS, TESTS / "models"):
    sys.path.insert(0, str(folder))
