# SPDX-License-Identifier: Apache-2.0
"""How the operators are found, compiled and refused."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tqkv

import tqkv._torch_extension as extension

PACKAGE = Path(__file__).resolve().parents[2] / "bindings" / "python"


def imported(**environment):
    """What `import tqkv.torch` says in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    ran = subprocess.run([sys.executable, "-c", "import tqkv.torch"], env=env, capture_output=True, text=True,
                         timeout=120)
    return ran.returncode, ran.stderr


def test_without_a_compiler(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != extension.ENVIRONMENT}
    env.update(PYTHONPATH=str(PACKAGE), XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler")
    ran = subprocess.run([sys.executable, "-c", "import tqkv.torch"], env=env, capture_output=True, text=True)
    assert ran.returncode == 1 and "tqkv.torch: compiling " in ran.stderr
    assert "LibraryError: tqkv.torch needs a C++17 compiler, once: no-such-compiler: " in ran.stderr
    assert "set CXX, or TQKV_TORCH_OPS to a file" in ran.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'import sys; sys.exit(\"cannot\")'")
    with pytest.raises(tqkv.LibraryError, match="the operators do not compile: .*\ncannot"):
        extension.build(tmp_path / "ops.so")
    assert not list(tmp_path.iterdir())


def test_an_old_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(extension.torch, "__version__", "2.10.1+cpu")
    with pytest.raises(tqkv.LibraryError, match=r"torch 2\.10\.1\+cpu: tqkv\.torch needs 2\.11 or later"):
        extension.build(tmp_path / "ops.so")


def test_a_file_of_other_sources(monkeypatch):
    path = os.environ.get(extension.ENVIRONMENT) or extension.cached_path()
    monkeypatch.setattr(extension, "sources_hash", lambda: "0" * 16)
    with pytest.raises(tqkv.LibraryError, match=r"was compiled from other sources \([0-9a-f]{16}, this "
                       "package has 0{16}\\); make it anew: python -m tqkv._torch_extension "):
        extension._Extension(path)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "ops.so").write_text("no library")
    status, said = imported(**{extension.ENVIRONMENT: str(tmp_path / "ops.so")})
    assert status == 1 and "ops.so: cannot be loaded as the operators of tqkv.torch: " in said


def test_the_package_itself_imports_no_torch():
    code = "import tqkv, sys; tqkv.load_library(); assert not {'torch', 'numpy'} & set(sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
