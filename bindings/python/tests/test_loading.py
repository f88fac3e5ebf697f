# SPDX-License-Identifier: Apache-2.0
"""How the library is found, and what is said when it is not the right one; imports stay light. Each in a
fresh interpreter."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tqkv
from tqkv import _abi, _ffi

PACKAGE = Path(__file__).resolve().parents[1]


def python(code, library=None, **environment):
    env = {k: v for k, v in os.environ.items() if k != "TQKV_LIBRARY"}
    env.update(environment, PYTHONPATH=str(PACKAGE))
    if library is not None:
        env["TQKV_LIBRARY"] = str(library)
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


FAILS = """
import tqkv
try:
    tqkv.Cache(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=32, key_bits=4, value_bits=4,
               max_tokens=32)
except tqkv.LibraryError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def own_path():
    path = tqkv.library_path()
    if not os.path.isabs(path):
        pytest.skip("the library under test has no path of its own; set TQKV_LIBRARY")
    return path


def test_import_needs_neither_numpy_nor_torch(own_path):
    code = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("numpy", "torch", "cupy"): raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import array, tqkv
assert not {"numpy", "torch", "cupy"} & set(sys.modules)
with tqkv.Cache(num_layers=1, num_q_heads=2, num_kv_heads=1, head_dim=32, key_bits=8, value_bits=8,
                max_tokens=32) as cache:
    step, sequence = cache.batch(), cache.sequence()
    step.plan([sequence], [2])
    step.append(0, array.array("f", range(64)), array.array("f", [1.0] * 64))
    out, lse = step.attend(0, array.array("f", [0.5] * 128), lse=True)
    k, v = sequence.read(0, 0, 2)
    close = all(0.97 < x < 1.03 for row in out.tolist() for head in row for x in head)
    print(out.shape, lse.shape, k.shape, close)
"""
    assert python(code, own_path) == "(2, 2, 32) (2, 2) (2, 1, 32) True"


def test_importing_loads_nothing():
    assert python("import tqkv; print(tqkv.__version__)", "/nowhere/libtqkv.so.0") == tqkv.__version__


def test_missing():
    text = python(FAILS, "/nowhere/libtqkv.so.0")
    assert "cannot load /nowhere/libtqkv.so.0" in text and "environment variable TQKV_LIBRARY" in text
    assert "set TQKV_LIBRARY to the path" in text


def test_the_systems_loader_is_asked_last():
    text = python("import tqkv._ffi as f; f.SONAME = 'libtqkv-absent.so.0'\n" + FAILS.strip())
    assert "cannot load libtqkv-absent.so.0" in text and "(from the system's loader)" in text


def test_explicit_path(own_path):
    assert python(f"import tqkv; tqkv.load_library({own_path!r}); print(tqkv.library_version())",
                  "/nowhere/libtqkv.so.0") == tqkv.library_version()
    code = f"""
import tqkv
tqkv.load_library({own_path!r})
tqkv.load_library()
try: tqkv.load_library("/other/libtqkv.so.0")
except tqkv.LibraryError as error: print(error)
"""
    assert "is loaded already" in python(code)


def test_beside_the_package(own_path, tmp_path):
    """As a wheel has it."""
    package = tmp_path / "tqkv"
    package.mkdir()
    for source in (PACKAGE / "tqkv").glob("*.py"):
        (package / source.name).write_text(source.read_text())
    (package / _ffi.SONAME).symlink_to(own_path)
    assert python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tqkv; print(tqkv.library_path())") == str(
            package / _ffi.SONAME)


def test_another_library():
    assert "libm.so.6 is not the tqkv library" in python(FAILS, "libm.so.6")


def compiled(tmp_path, name, functions):
    """A library of that name in which every function returns the given number."""
    source = tmp_path / (name + ".c")
    source.write_text("".join(f"long {f}(int a) {{ (void)a; return {value}; }}\n"
                              for f, value in functions.items()))
    target = tmp_path / (name + ".so")
    subprocess.run(
        [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o",
         str(target), str(source)], check=True)
    return target


def old_library(tmp_path, name, **changes):
    functions = dict.fromkeys(_abi.FUNCTIONS, 0)
    functions.update({"tq_version": '(long)"0.0.9"', "tq_struct_size": 4096}, **changes)
    return compiled(tmp_path, name, {f: v for f, v in functions.items() if v is not None})


def test_a_function_is_missing(tmp_path):
    text = python(FAILS, old_library(tmp_path, "old", tq_merge_states=None))
    assert re.search(r"old.so is tqkv 0.0.9, and this Python package was made for .*: it lacks "
                     "tq_merge_states; install a newer library", text)


def test_another_abi(tmp_path):
    assert "ABI version 3 instead of 0" in python(FAILS, old_library(tmp_path, "abi", tq_abi_version=3))


def test_a_struct_is_too_small(tmp_path):
    assert "tq_device_info has 24 bytes instead of 160" in python(
        FAILS, old_library(tmp_path, "small", tq_struct_size=24))


def test_no_crash_at_exit(own_path):
    """Open handles, in module globals and in cycles, at the interpreter's end."""
    code = """
import tqkv
cache = tqkv.Cache(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=32, key_bits=4, value_bits=4,
                   max_tokens=32)
batch = cache.batch()
cache.cycle = [cache, batch]
print("done")
"""
    assert python(code, own_path) == "done"


def test_diagnostics(own_path):
    env = {**os.environ, "TQKV_LIBRARY": own_path, "PYTHONPATH": str(PACKAGE)}
    run = subprocess.run([sys.executable, "-m", "tqkv"], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and own_path in run.stdout, run.stdout + run.stderr
    assert "self-test:     ok" in run.stdout
    run = subprocess.run([sys.executable, "-m", "tqkv"],
                         env={**env, "TQKV_LIBRARY": "/nowhere/x.so"},
                         capture_output=True,
                         text=True,
                         timeout=120)
    assert run.returncode == 1 and "failed:" in run.stdout and not run.stderr
