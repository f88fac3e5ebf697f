# SPDX-License-Identifier: Apache-2.0
"""The shared library of tqkv.torch's operators: found or compiled, loaded, and its functions for binding and
for turns. `python -m tqkv._torch_extension FILE` compiles it to FILE.

It stands on torch's stable C++ ABI and uses nothing of Python's, so one file serves every Python, and every
torch from the one on that it was compiled for. Compiling takes some seconds and happens once: the result lies
in the user's cache, under a name made of the sources and of torch's version.
"""
import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import weakref
from ctypes import POINTER, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch

from . import _abi, _ffi
from .errors import LibraryError

ENVIRONMENT = "TQKV_TORCH_OPS"
HERE = Path(__file__).resolve().parent / "torch"
SOURCES = ("ops.cpp", "paged.cpp", "bind.cpp", "arguments.h", "tensors.h", "bound.h")
TORCH_NEEDED = (2, 11)
_FUNCTIONS = ("tq_last_error", "tq_status_name", "tq_batch_rows", "tq_cache_append", "tq_cache_attend",
              "tq_merge_states", "tq_cache_read", "tq_codec_page_layout", "tq_paged_append",
              "tq_paged_attend")


def header_folder():
    """Where tqkv.h is: beside this file in a wheel, else in the repository."""
    for folder in (HERE, *(parent / "include" for parent in HERE.parents)):
        if (folder / "tqkv.h").exists():
            return folder
    raise LibraryError(f"tqkv.h is neither in {HERE} nor in an include folder above it: the operators cannot "
                       "be compiled; install the wheel, or work in the repository")


def torch_version():
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def sources_hash():
    """Of all that is compiled, but torch's headers."""
    texts = [(HERE / name).read_bytes() for name in SOURCES] + [(header_folder() / "tqkv.h").read_bytes()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def cached_path():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tqkv"
    return cache / f"torch_ops-{sources_hash()}-torch{'.'.join(map(str, torch_version()))}.so"


def build(output):
    """Compiles to `output`, which is there whole or not at all. Raises LibraryError with what the compiler
    said."""
    if torch_version() < TORCH_NEEDED:
        raise LibraryError(f"torch {torch.__version__}: tqkv.torch needs {TORCH_NEEDED[0]}.{TORCH_NEEDED[1]} "
                           "or later")
    output, root = Path(output), Path(torch.__file__).parent
    output.parent.mkdir(parents=True, exist_ok=True)
    target = TORCH_NEEDED[0] << 56 | TORCH_NEEDED[1] << 48
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        made = Path(folder) / output.name
        command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O2", "-fPIC", "-shared",
                   "-fvisibility=hidden", "-Wall", "-Wextra", f"-DTORCH_TARGET_VERSION={target:#x}",
                   f"-DTQKV_TORCH_SOURCES=\"{sources_hash()}\"", f"-I{header_folder()}",
                   f"-isystem{root / 'include'}", *(str(HERE / name) for name in SOURCES if name[-1] == "p"),
                   "-o", str(made), f"-L{root / 'lib'}", "-ltorch_cpu"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise LibraryError(f"tqkv.torch needs a C++17 compiler, once: {command[0]}: {error}; set CXX, or "
                               f"{ENVIRONMENT} to a file that `python -m tqkv._torch_extension FILE` made "
                               "elsewhere") from None
        if ran.returncode:
            raise LibraryError(f"the operators do not compile: {shlex.join(command)}\n{ran.stderr}")
        os.replace(made, output)
    return output


class _Extension:
    """The loaded library."""

    def __init__(self, path):
        try:
            torch.ops.load_library(str(path))
            functions = ctypes.CDLL(str(path))
            functions.tqkv_torch_sources.restype = ctypes.c_char_p
            found = functions.tqkv_torch_sources().decode()
        except (OSError, AttributeError) as error:
            raise LibraryError(f"{path}: cannot be loaded as the operators of tqkv.torch: {error}") from None
        if found != sources_hash():
            raise LibraryError(f"{path}: was compiled from other sources ({found}, this package has "
                               f"{sources_hash()}); make it anew: python -m tqkv._torch_extension {path}")
        for name, result, arguments in (
            ("bind_cache", c_int64,
             [c_void_p, c_void_p, c_int32, c_int32, c_int32, POINTER(c_int32), c_int32]),
            ("turn", c_void_p, [c_int64]), ("unbind_cache", None, [c_int64]),
            ("bind_batch", c_int64, [c_int64, c_void_p]), ("unbind_batch", None, [c_int64]),
            ("bind_step", c_int64, [c_int64]), ("unbind_step", None, [c_int64]),
            ("set_step", None, [c_int64, POINTER(_abi.PagedStep), c_void_p, c_size_t]),
            ("after_fork", None, [c_void_p]), ("lock", None, [c_void_p]), ("lock_shared", None, [c_void_p]),
            ("unlock", None, [c_void_p] + 3 * [ctypes.py_object]),
            ("unlock_shared", None, [c_void_p] + 3 * [ctypes.py_object])):
            function = getattr(functions, f"tqkv_torch_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        library = _ffi.load_library()
        addresses = [ctypes.cast(getattr(library, name), c_void_p).value for name in _FUNCTIONS]
        addresses.append(_cuda_stream())
        functions.tqkv_torch_open((c_void_p * len(addresses))(*addresses))


def _cuda_stream():
    """The address of torch's own call for a device's current stream, None without CUDA. It is in the part of
    torch that only CUDA builds have, which an extension for all of them must not be linked to."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return None
    part = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"))
    return ctypes.cast(part.aoti_torch_get_current_cuda_stream, c_void_p).value


_loading, _extension = threading.Lock(), None
# number of a bound batch: shapes of its cache's layers; for kernels that compute no values
shapes_of = {}


def load():
    """The extension: $TQKV_TORCH_OPS, else from the user's cache, where it is compiled if it is missing."""
    global _extension
    with _loading:
        if _extension is None:
            path = os.environ.get(ENVIRONMENT) or cached_path()
            if not os.environ.get(ENVIRONMENT) and not path.exists():
                print(f"tqkv.torch: compiling {path}, once ...", file=sys.stderr, flush=True)
                build(path)
            _extension = _Extension(path)
        return _extension


def _context(enter, leave, turn):
    """A context manager whose both ends are C functions: a signal's exception comes before or after them,
    and never leaves a turn taken."""
    methods = {"__enter__": staticmethod(functools.partial(enter, turn)),
               "__exit__": staticmethod(functools.partial(leave, turn))}
    return type("Turn", (), methods)()


class Ops:
    """What the operators know of one cache or codec; its Handles hold it.

    exclusive, shared   context managers: turns of Python's own calls
    """

    def __init__(self, handles, shapes):
        """shapes: of each layer. In an exclusive turn."""
        self._extension, self._numbers, self._shapes = load(), {}, shapes
        cache, codec = (handles.cache, None) if handles.kind == "cache" else (None, handles.cache)
        flat = (c_int32 * (4 * len(shapes)))(*(number for shape in shapes for number in shape[:4]))
        self._number = self._extension.bind_cache(cache, codec, *shapes[0].device, shapes[0].io_dtype, flat,
                                                  len(shapes))
        self._turn = self._extension.turn(self._number)
        weakref.finalize(self, self._extension.unbind_cache, self._number).atexit = False
        self.exclusive = _context(self._extension.lock, self._extension.unlock, self._turn)
        self.shared = _context(self._extension.lock_shared, self._extension.unlock_shared, self._turn)

    def bind(self, batch):
        """The number of a batch handle."""
        number = self._numbers.get(id(batch))
        if number is None:
            number = self._numbers[id(batch)] = self._extension.bind_batch(self._number, batch)
            shapes_of[number] = self._shapes
        return number

    def bind_step(self, step):
        """The number of a PagedStep, which is unbound when it is collected, or its codec closed."""
        number = self._numbers[id(step)] = self._extension.bind_step(self._number)
        shapes_of[number] = self._shapes
        weakref.finalize(step, self._unbind, id(step), number).atexit = False
        return number

    def set_step(self, number, step, space):
        """The step was planned: tq_paged_step and the Memory of its workspace."""
        self._extension.set_step(number, step, space.pointer, space.num_bytes)

    def unbind(self, batch):
        """In an exclusive turn."""
        number = self._numbers.pop(id(batch), None)
        if number is not None:
            del shapes_of[number]
            self._extension.unbind_batch(number)

    def close(self):
        """Of a codec: its steps, in an exclusive turn."""
        for key, number in list(self._numbers.items()):
            self._unbind(key, number)

    def _unbind(self, key, number):
        if self._numbers.get(key) == number:
            del self._numbers[key]
            shapes_of.pop(number, None)
            self._extension.unbind_step(number)

    def after_fork(self):
        self._extension.after_fork(self._turn)


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else cached_path()))
