# SPDX-License-Identifier: Apache-2.0
"""`tqkv validate` becomes the Python package's command, or says what it lacks."""
import os
import sys
from pathlib import Path

import tool

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


def run(*arguments, **environment):
    return tool.run("validate", *arguments, env={**os.environ, "TQKV_PYTHON": sys.executable,
                                                 "PYTHONPATH": str(PACKAGE), **environment})


def test_arguments_and_status_are_passed_on(tmp_path):
    library = Path(tool.find_tool()).parent / "libtqkv.so.0"
    done = run("--quick", "--only", "accounting", "--json", tmp_path / "x.json", "--quiet",
               TQKV_LIBRARY=str(library))
    assert done.returncode == 0 and "0 fail" in done.stdout and (tmp_path / "x.json").exists(), done.stderr
    done = run("--only", "nothing")
    assert done.returncode == 2 and "'nothing' is no section" in done.stderr


def test_help_is_the_packages(tmp_path):
    done = run("--help")
    assert done.returncode == 0 and "--markdown" in done.stdout and "FAIL" in done.stdout


def test_without_the_package(tmp_path):
    done = run("--quick", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3 and "TQKV_PYTHON" in done.stderr and sys.executable in done.stderr


def test_without_python(tmp_path):
    done = run("--quick", TQKV_PYTHON=str(tmp_path / "none"))
    assert done.returncode == 3 and str(tmp_path / "none") in done.stderr
