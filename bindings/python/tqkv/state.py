# SPDX-License-Identifier: Apache-2.0
"""State that travels: parts of a sequence as bytes, and sequences in files (tqkv.h, FORMAT.md section 6).

Used through Cache.export_sequence, import_sequence, save and load. State is plain data: it goes by pickle,
json (dataclasses.asdict) or any other way beside the bytes that it describes.
"""
import contextlib
import ctypes
import os
import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any, Iterator, Optional

from . import _abi
from ._ffi import CPU, DTYPE_NAMES, DTYPES, Noticed, check
from .buffers import as_bytes, check_device
from .config import integer
from .errors import InvalidArgument

__all__ = ["State", "replacing"]


@dataclass(frozen=True)
class State:
    """What a part of a sequence is: tq_state of tqkv.h, whose names these are. Layers and kv heads have their
    numbers in the whole model. io_dtype: type of the exact copies, None if the part has none. bytes: of the
    part in memory."""

    first_layer: int
    num_layers: int
    first_kv_head: int
    num_kv_heads: int
    io_dtype: Optional[str]
    first_token: int
    num_tokens: int
    exact_sinks: int
    exact_first: int
    rollback_tokens: int
    flags: int
    identity: int
    bytes: int

    def _to_c(self):
        values = asdict(self)
        if self.io_dtype is not None and self.io_dtype not in DTYPES:
            raise InvalidArgument(f"state.io_dtype = {self.io_dtype!r}: must be None or one of "
                                  f"{', '.join(DTYPES)}")
        values["io_dtype"] = DTYPES.get(self.io_dtype, 0)
        types = dict(_abi.State._fields_)
        return _abi.State(**{name: integer(f"state.{name}", value, types[name])
                             for name, value in values.items()})

    @classmethod
    def _from_c(cls, state):
        values = {field.name: getattr(state, field.name) for field in fields(cls)}
        values["io_dtype"] = DTYPE_NAMES.get(state.io_dtype)
        values["flags"] = int(Noticed(state.flags))
        return cls(**values)


def _range(name, choice, ctype):
    """(first, count) of None, a number or a range of step 1; count 0 stands for all, as in the library."""
    if choice is None:
        return 0, 0
    if not isinstance(choice, range):
        return integer(name, choice, ctype), 1
    if choice.step != 1 or choice.start >= choice.stop:
        raise InvalidArgument(f"{name} = {choice}: must be None (all), one number, or a range of step 1 that "
                              "is not empty")
    return integer(name, choice.start, ctype), integer(name, choice.stop - choice.start, ctype)


def _described(library, cache, number, layers, kv_heads, tokens):
    state = _abi.State()
    state.first_layer, state.num_layers = _range("layers", layers, ctypes.c_int32)
    state.first_kv_head, state.num_kv_heads = _range("kv_heads", kv_heads, ctypes.c_int32)
    state.first_token, state.num_tokens = _range("tokens", tokens, ctypes.c_int64)
    check(library, library.tq_sequence_describe(cache, number, state))
    return state


def describe(handles, number, layers, kv_heads, tokens):
    with handles.exclusive() as cache:
        return State._from_c(_described(handles.library, cache, number, layers, kv_heads, tokens))


def export(handles, number, out, layers, kv_heads, tokens, stream):
    """(State, memory): one turn, so that nothing changes between the two calls."""
    with handles.exclusive() as cache:
        library = handles.library
        state = _described(library, cache, number, layers, kv_heads, tokens)
        if out is None:
            out = bytearray(state.bytes)
        memory = as_bytes(out, "out")
        check_device(memory, (CPU, 0), "out")
        if not memory.writable:
            raise InvalidArgument("out: cannot be written to")
        check(library, library.tq_sequence_export(cache, number, state, memory.pointer, memory.num_bytes,
                                                  stream))
        return State._from_c(state), out


def import_(handles, state, memory, number, stream):
    """-> the sequence's number. A new sequence is freed again if the part does not fit."""
    described, memory = state._to_c(), as_bytes(memory, "memory")
    check_device(memory, (CPU, 0), "memory")
    with handles.exclusive() as cache:
        library, made = handles.library, ctypes.c_int64(number or 0)
        if number is None:
            check(library, library.tq_sequence_create(cache, made))
        try:
            check(library, library.tq_sequence_import(cache, made, described, memory.pointer,
                                                      memory.num_bytes, stream))
        except BaseException:
            if number is None:
                library.tq_sequence_free(cache, made, stream)
            raise
        return made.value


# ---- files

class _Io:
    """tq_io of a binary file. What a callback raises ends the call, and is raised by `finish`."""

    def __init__(self, file, reads):
        self._file, self._error = file, None
        self.c = _abi.Io()
        if reads:
            self.c.read = _abi.READ_FUNCTION(self._read)
        else:
            self.c.write = _abi.WRITE_FUNCTION(self._write)

    def _guarded(self, function):
        try:
            return function()
        except BaseException as error:  # goes through C: kept, and raised when the call has returned
            self._error = error
            return -1

    def _write(self, _, address, count):
        def write():
            rest = memoryview((ctypes.c_char * count).from_address(address)).cast("B")
            while len(rest):
                written = self._file.write(rest)
                if not written:
                    raise OSError(f"write: {len(rest)} bytes are left, none was taken")
                rest = rest[written:]
            return 0

        return self._guarded(write)

    def _read(self, _, address, count):
        def read():
            done = 0
            while done < count:
                part = self._file.read(count - done)
                if not part:
                    return 1
                ctypes.memmove(address + done, bytes(part), len(part))
                done += len(part)
            return 0

        return self._guarded(read)

    def finish(self, library, status):
        if self._error is not None:
            raise self._error
        check(library, status)


def _sync(path):
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """A binary file that takes the place of `path` when the block ends well: written beside it, synced,
    renamed, its folder synced. Killed at any moment, the old file or the whole new one is there; at worst a
    `.NAME.xxxxxxxx.tmp` is left beside it. A symbolic link stays one."""
    path = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    _sync(folder)


def save(handles, number, target, stream):
    if not hasattr(target, "write"):
        with replacing(target) as file:
            return save(handles, number, file, stream)
    io = _Io(target, reads=False)
    with handles.exclusive() as cache:
        io.finish(handles.library, handles.library.tq_sequence_save(cache, number, io.c, stream))


def load(handles, source, stream):
    """-> the new sequence's number."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return load(handles, file, stream)
    io, number = _Io(source, reads=True), ctypes.c_int64()
    with handles.exclusive() as cache:
        io.finish(handles.library, handles.library.tq_sequence_load(cache, io.c, stream, number))
    return number.value
