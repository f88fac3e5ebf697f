# SPDX-License-Identifier: Apache-2.0
"""State that travels: parts of a sequence as bytes, and sequences in files (tqkv.h, FORMAT.md section 6).

Used through Cache.export_sequence, import_sequence, save and load. State is plain data: it goes by pickle,
json (dataclasses.asdict) or any other way beside the bytes that it describes.
"""
import contextlib
import ctypes
import hmac
import os
import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any, Iterator, Optional, Tuple

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
    part in memory. fields: hashes by which an error names the field that differs."""

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
    fields: Tuple[int, ...] = (0, ) * 16

    def __post_init__(self):
        object.__setattr__(self, "fields", tuple(self.fields))  # json gives a list

    def _to_c(self):
        values = asdict(self)
        if self.io_dtype is not None and self.io_dtype not in DTYPES:
            raise InvalidArgument(f"state.io_dtype = {self.io_dtype!r}: must be None or one of "
                                  f"{', '.join(DTYPES)}")
        values["io_dtype"] = DTYPES.get(self.io_dtype, 0)
        types, hashes = dict(_abi.State._fields_), values.pop("fields")
        if len(hashes) != 16:
            raise InvalidArgument(f"state.fields = {hashes!r}: must be 16 numbers")
        state = _abi.State(**{name: integer(f"state.{name}", value, types[name])
                              for name, value in values.items()})
        for i, value in enumerate(hashes):
            state.fields[i] = integer(f"state.fields[{i}]", value, ctypes.c_uint32)
        return state

    @classmethod
    def _from_c(cls, state):
        values = {field.name: getattr(state, field.name) for field in fields(cls)}
        values["io_dtype"] = DTYPE_NAMES.get(state.io_dtype)
        values["flags"] = int(Noticed(state.flags))
        values["fields"] = tuple(state.fields)
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


def _bytes_of_part(array, name, device):
    """On the host, or on the cache's own device."""
    memory = as_bytes(array, name)
    check_device(memory, (CPU, 0) if memory.device_type == CPU else device, name)
    return memory


def describe(handles, number, layers, kv_heads, tokens):
    with handles.exclusive() as cache:
        return State._from_c(_described(handles.library, cache, number, layers, kv_heads, tokens))


def export(handles, device, number, out, layers, kv_heads, tokens, stream):
    """(State, memory): one turn, so that nothing changes between the two calls."""
    with handles.exclusive() as cache:
        library = handles.library
        state = _described(library, cache, number, layers, kv_heads, tokens)
        if out is None:
            out = bytearray(state.bytes)
        memory = _bytes_of_part(out, "out", device)
        if not memory.writable:
            raise InvalidArgument("out: cannot be written to")
        check(library, library.tq_sequence_export(cache, number, state, memory.pointer, memory.num_bytes,
                                                  stream))
        return State._from_c(state), out


def import_(handles, device, state, memory, number, stream):
    """-> the sequence's number. A new sequence is freed again if the part does not fit."""
    described, memory = state._to_c(), _bytes_of_part(memory, "memory", device)
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

    def __init__(self, file, reads, mac):
        self._file, self._error = file, None
        self.c = _abi.Io()
        if mac is not None:
            self._mac = _keyed(mac)
            self.c.mac_bytes = self._mac.digest_size
            self.c.mac = _abi.MAC_FUNCTION(self._seal)
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

    def _seal(self, _, address, count, tag):
        def seal():
            if tag:
                digest = self._mac.digest()
                ctypes.memmove(tag, digest, len(digest))
            else:
                self._mac.update(ctypes.string_at(address, count))
            return 0

        return self._guarded(seal)

    def finish(self, library, status):
        if self._error is not None:
            raise self._error
        check(library, status)


def _keyed(mac):
    """A MAC with update, digest and digest_size: hmac.new(..), a keyed hashlib.blake2b; or a key, for
    HMAC-SHA256."""
    if isinstance(mac, (bytes, bytearray, memoryview)):
        return hmac.new(mac, digestmod="sha256")
    if not all(hasattr(mac, name) for name in ("update", "digest", "digest_size")):
        raise InvalidArgument(f"mac: a {type(mac).__name__} is no key of bytes, and has no update, digest "
                              "and digest_size")
    if not 16 <= mac.digest_size <= 64:
        raise InvalidArgument(f"mac: digest_size = {mac.digest_size}: must be 16 .. 64")
    return mac.copy() if hasattr(mac, "copy") else mac


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


def save(handles, number, target, mac, stream):
    if not hasattr(target, "write"):
        with replacing(target) as file:
            return save(handles, number, file, mac, stream)
    io = _Io(target, False, mac)
    with handles.exclusive() as cache:
        io.finish(handles.library, handles.library.tq_sequence_save(cache, number, io.c, stream))


def load(handles, source, mac, stream):
    """-> the new sequence's number."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return load(handles, file, mac, stream)
    io, number = _Io(source, True, mac), ctypes.c_int64()
    with handles.exclusive() as cache:
        io.finish(handles.library, handles.library.tq_sequence_load(cache, io.c, stream, number))
    return number.value
