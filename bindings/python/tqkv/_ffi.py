# SPDX-License-Identifier: Apache-2.0
"""How the shared library is found, loaded and checked against the tables of _abi, and the few numbers of the
header that the package works with."""
import ctypes
import enum
import os
import threading
from pathlib import Path

from ._abi import CONSTANTS, FUNCTIONS, STRUCTS
from .errors import LibraryError, make

SONAME = "libtqkv.so.0"
ENVIRONMENT = "TQKV_LIBRARY"

DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}
DTYPE_BYTES = {1: 4, 2: 2, 3: 2}
CPU, CUDA = CONSTANTS["TQ_DEVICE_CPU"], CONSTANTS["TQ_DEVICE_CUDA"]
# The TQ_NOTICED_ constants; an integer, so a bit that a newer library knows stays one.
Noticed = enum.IntFlag("Noticed", {name[len("TQ_NOTICED_"):]: value for name, value in CONSTANTS.items()
                                   if name.startswith("TQ_NOTICED_")}, module="tqkv")


class Library:
    """The loaded library: every function of the header as an attribute, and the path it came from."""

    def __init__(self, path):
        self.path = path
        try:
            handle = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise LibraryError(f"cannot load {path}: {error}") from None
        missing = []
        for name, (result, arguments) in FUNCTIONS.items():
            try:
                function = getattr(handle, name)
            except AttributeError:
                missing.append(name)
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if len(missing) == len(FUNCTIONS):
            raise LibraryError(f"{path} is not the tqkv library: it has none of its functions")
        self._check_version(missing)

    def _check_version(self, missing):
        wanted, package = CONSTANTS["TQ_ABI_VERSION"], ".".join(
            str(CONSTANTS[f"TQ_VERSION_{part}"]) for part in ("MAJOR", "MINOR", "PATCH"))
        version = self.tq_version().decode() if "tq_version" not in missing else "unknown"
        about = f"{self.path} is tqkv {version}, and this Python package was made for {package}"
        if "tq_abi_version" not in missing and self.tq_abi_version() != wanted:
            raise LibraryError(f"{about}: ABI version {self.tq_abi_version()} instead of {wanted}; install "
                               "library and package of one release")
        if missing:
            raise LibraryError(f"{about}: it lacks {', '.join(missing)}; install a newer library")
        for name, (struct, number) in STRUCTS.items():
            size = self.tq_struct_size(CONSTANTS[number])
            # A newer library may know more fields at the end; it then takes ours as the older, shorter
            # struct.
            if size < ctypes.sizeof(struct):
                raise LibraryError(f"{about}: its {name} has {size} bytes instead of "
                                   f"{ctypes.sizeof(struct)}; install a newer library")


def check(library, status):
    """Raises the exception of a status, with the library's text."""
    if status:
        raise make(status, library.tq_last_error().decode(errors="replace"))


def candidates(path=None):
    """(where it comes from, path) in the order of search. An explicit path and the environment variable are
    not fallen back from."""
    if path is not None:
        return [("the path given to tqkv.load_library", os.fspath(path))]
    if os.environ.get(ENVIRONMENT):
        return [(f"the environment variable {ENVIRONMENT}", os.environ[ENVIRONMENT])]
    beside = Path(__file__).resolve().parent / SONAME
    return ([("the package's own folder", str(beside))] if beside.exists() else []) + [
        ("the system's loader", SONAME)
    ]


_library = None
_loading = threading.RLock()


def load_library(path=None):
    """Loads the library and checks that it fits; later calls give the same one.

    Order: `path`, the environment variable TQKV_LIBRARY, a libtqkv.so.0 beside this package (as wheels have
    it), the system's loader. Raises LibraryError with what was tried, and on a second call with another path.
    """
    global _library
    with _loading:
        if _library is None:
            _library = _load(path)
        elif path is not None and os.fspath(path) != _library.path:
            raise LibraryError(f"{_library.path} is loaded already, so {os.fspath(path)} cannot be: call "
                               "load_library before anything else")
        return _library


def _load(path):
    origin, found = candidates(path)[0]
    try:
        return Library(found)
    except LibraryError as error:
        raise LibraryError(f"{error} (from {origin}). Install the tqkv library, or set {ENVIRONMENT} to the "
                           f"path of {SONAME}.") from None
