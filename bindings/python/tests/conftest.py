# SPDX-License-Identifier: Apache-2.0
"""TQKV_LIBRARY names the library under test; without it the package's own search applies. A library that
cannot be loaded fails the tests: nothing is skipped."""
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACKAGE), str(Path(__file__).resolve().parent)]

import tqkv  # noqa: E402


@pytest.fixture(scope="session")
def root():
    return PACKAGE.parents[1]


@pytest.fixture
def before(monkeypatch):
    """before(function, do): `do` runs when the package has checked all and calls the library's function."""
    def replace(name, do):
        library = tqkv.load_library()
        function = getattr(library, name)

        def called(*arguments):
            do()
            return function(*arguments)

        monkeypatch.setattr(library, name, called)

    return replace
