# SPDX-License-Identifier: Apache-2.0
"""The cases that every language runs."""
import contract_runner
import pytest

DATA = contract_runner.load()


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_case(case):
    contract_runner.Runner(DATA).run(case)


def test_there_are_enough():
    assert len(DATA["cases"]) >= 25
    assert sum(any("status" in step for step in case["steps"]) for case in DATA["cases"]) >= 12
