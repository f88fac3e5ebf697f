# SPDX-License-Identifier: Apache-2.0
"""What the documents show, run as it stands."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tqkv

PACKAGE = Path(__file__).resolve().parents[1]
SMOKE = PACKAGE.parents[1] / "packaging" / "smoke"


def test_decode_loop_prints_what_every_language_prints():
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    run = subprocess.run([sys.executable, str(PACKAGE / "examples" / "decode_loop.py")],
                         env=env,
                         capture_output=True,
                         text=True,
                         timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == (SMOKE / "decode_loop.txt").read_text()


def test_streaming_keeps_the_sinks_exact():
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    run = subprocess.run([sys.executable, str(PACKAGE / "examples" / "streaming.py")],
                         env=env,
                         capture_output=True,
                         text=True,
                         timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("404 tokens seen, 4 + ") and " 352 removed, " in first
    assert second == "sinks after 11 rotations: off by less than 1e-5: True"


def test_decode_loop_in_c_prints_the_same(tmp_path):
    library = Path(tqkv.library_path())
    if not library.is_absolute():
        pytest.skip("the library under test has no path of its own; set TQKV_LIBRARY")
    program = tmp_path / "decode_loop"
    flags = [
        "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I",
        str(PACKAGE.parents[1] / "include")
    ]
    subprocess.run([
        os.environ.get("CC", "cc"), *flags, "-o",
        str(program),
        str(SMOKE / "decode_loop.c"),
        str(library), "-lm", f"-Wl,-rpath,{library.parent}"
    ],
                   check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == (SMOKE / "decode_loop.txt").read_text()


@pytest.mark.parametrize("where", ("README.md", "tqkv/__init__.py"))
def test_the_short_example_runs(where):
    text = (PACKAGE / where).read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1) if where.endswith(".md") else \
        "\n".join(line[4:] for line in re.search(r"\n\n((?:    .*\n|\n)+)", text).group(1).split("\n"))
    assert "attend" in code
    names = {}
    exec(compile(code, where, "exec"), names)
    assert names["out"].shape == (1, 8, 128) and names["cache"].closed
