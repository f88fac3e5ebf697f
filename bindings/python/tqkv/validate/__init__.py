# SPDX-License-Identifier: Apache-2.0
"""tqkv.validate: the claims of TurboQuant's paper, of its other implementations and of tqkv, measured.

    python -m tqkv.validate --html report.html

prints claim, what the source says, what is measured and the verdict, and fails if a claim that tqkv stands
for fails. Needs NumPy; matplotlib for the plots of the HTML page. In a program:

    from tqkv.validate import FAIL, validate
    rows, seconds = validate(quick=True)
    assert not any(row.verdict == FAIL for row in rows)

Nothing is imported before it is used, NumPy included.
"""

__all__ = ["CONFIRMED", "FAIL", "PASS", "REFUTED", "Row", "SKIPPED", "validate"]


def __getattr__(name):
    if name in __all__:
        from . import rows, run

        return run.validate if name == "validate" else getattr(rows, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
