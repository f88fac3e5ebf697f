# SPDX-License-Identifier: Apache-2.0
"""Sequence: the tokens of one text, in all layers of a cache."""
import contextlib
import ctypes
from typing import Any, Iterable, Tuple

from . import _abi
from ._ffi import Noticed, check
from ._handles import Unique
from .buffers import as_buffer, as_stream, empty_like, rows
from .config import integer

__all__ = ["Sequence"]


class Sequence(Unique):
    """The tokens of one text in all layers of a cache. Made by Cache.sequence and Sequence.fork. It stays
    alive until it is freed or its cache closed; losing the object frees nothing. len(sequence) is its length
    in tokens, planned ones included. Every call raises InvalidArgument once it is freed."""

    __slots__ = ("_cache", "_id")

    def __init__(self, cache: Any, number: int):
        self._cache, self._id = cache, number

    @property
    def cache(self) -> Any:
        """The Cache that it belongs to."""
        return self._cache

    @property
    def id(self) -> int:
        """Its number in the library: slot and generation, never that of another sequence of the cache."""
        return self._id

    def __repr__(self):
        return f"Sequence({self._id:#x})"

    def __len__(self) -> int:
        return self._ask("tq_sequence_length", ctypes.c_int64())

    def __bool__(self) -> bool:
        return True  # an empty sequence is one, too

    @property
    def flags(self) -> Noticed:
        """What was noticed of it since it was created (a fork inherits it): Noticed.NONFINITE,
        Noticed.SATURATED; and Noticed.SHORT_WINDOW as long as fewer than window_tokens are exact, since a
        truncate went back further than rollback_tokens. Without synchronisation, so early on a CUDA cache."""
        return Noticed(self._ask("tq_sequence_flags", ctypes.c_uint64()))

    def _ask(self, function, answer):
        handles = self._cache._handles
        with handles.exclusive() as cache:
            check(handles.library, getattr(handles.library, function)(cache, self._id, answer))
        return answer.value

    def fork(self, *, stream: Any = None) -> "Sequence":
        """A new sequence with the same tokens; pages are shared until one side writes into them. Fork after a
        step's appends. Raises CapacityError if max_sequences are alive."""
        handles, stream, number = self._cache._handles, as_stream(stream), ctypes.c_int64()
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_sequence_fork(cache, self._id, stream, number))
        return Sequence(self._cache, number.value)

    def copy(self, target: Any, *, stream: Any = None) -> "Sequence":
        """A new sequence of the Cache `target` (self.cache too) with the same tokens. Codes are moved as they
        are, so it attends to the same bits however often it moves; page sizes, windows and capacities may
        differ, and one cache may be the CPU's. stream: the CUDA cache's. Raises Incompatible naming the field
        that differs, CapacityError if target is full."""
        stream, number = as_stream(stream), ctypes.c_int64()
        ends = [self._cache._handles, target._handles]
        library = ends[0].library
        with contextlib.ExitStack() as turns:
            for handles in sorted(set(ends), key=id):  # the same order in every thread
                turns.enter_context(handles.exclusive())
            check(library,
                  library.tq_sequence_copy(ends[0].cache, self._id, ends[1].cache, stream, number))
        return Sequence(target, number.value)

    def truncate(self, length: int, *, stream: Any = None) -> None:
        """Shortens to `length` tokens, 0 .. len(self), as if the later ones had never been appended. A batch
        that has the sequence in its plan must be planned again."""
        handles, stream = self._cache._handles, as_stream(stream)
        length = integer("length", length, ctypes.c_int64)
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_sequence_truncate(cache, self._id, length, stream))

    def flush(self, *, stream: Any = None) -> None:
        """Gives up the exact copies of the window, not those of the sinks: queries to come read these tokens
        as codes, and the window grows again with what is appended. A batch that has the sequence in its plan
        must be planned again, if anything was given up."""
        handles, stream = self._cache._handles, as_stream(stream)
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_sequence_flush(cache, self._id, stream))

    def remove(self, first: int, count: int, *, stream: Any = None) -> None:
        """Takes tokens first .. first + count - 1 out; later ones move down, bit for bit. Positions for
        rotary embeddings stay the caller's business: a key stays rotated for the position that it was
        appended at. A batch that has the sequence in its plan must be planned again. Raises CapacityError if
        pages that a fork shares cannot be replaced, InvalidState if a sliding layer would miss tokens."""
        handles, stream = self._cache._handles, as_stream(stream)
        first, count = integer("first", first, ctypes.c_int64), integer("count", count, ctypes.c_int64)
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_sequence_remove(cache, self._id, first, count, stream))

    def select(self, positions: Iterable[int], *, stream: Any = None) -> None:
        """Keeps the tokens at these rising positions alone; as remove otherwise."""
        handles, stream = self._cache._handles, as_stream(stream)
        kept = [integer(f"positions[{i}]", p, ctypes.c_int64) for i, p in enumerate(positions)]
        numbers = (ctypes.c_int64 * len(kept))(*kept)
        with handles.exclusive() as cache:
            check(handles.library,
                  handles.library.tq_sequence_select(cache, self._id, numbers, len(kept), stream))

    def free(self, *, stream: Any = None) -> None:
        """Gives its pages back; the id stays invalid for ever. A batch that has the sequence in its plan must
        be planned again. Called by a finalizer that runs in the middle of another call on the cache, it takes
        effect at the start of the next call."""
        handles, stream = self._cache._handles, as_stream(stream)
        library, cache, number = handles.library, handles.cache, self._id
        if handles.nested():
            handles.left(lambda: library.tq_sequence_free(cache, number, stream))
            return
        with handles.exclusive():
            check(library, library.tq_sequence_free(cache, number, stream))

    def read(self, layer: int, first: int, count: int, *, like: Any = None, k: Any = None, v: Any = None,
             stream: Any = None) -> Tuple[Any, Any]:
        """Decoded keys and values of tokens first .. first + count - 1, exact where exact copies are kept.

        k       [count][num_kv_heads][head_dim] io_dtype, written into; None: see below
        v       [count][num_kv_heads][value_dim] io_dtype likewise
        like    without k and v, both are made: of the kind of this array and on its device, or memoryviews
                if it is None (CPU caches). With only one of k and v, only that one is read.
        Returns (k, v), None for what was not read. Raises InvalidArgument if the range does not lie inside
        the sequence, InvalidState for a layer whose planned tokens were not appended.
        """
        handles, stream = self._cache._handles, as_stream(stream)
        layer = integer("layer", layer, ctypes.c_int32)
        first, count = integer("first", first, ctypes.c_int64), integer("count", count, ctypes.c_int64)
        kind, given = None, [None, None]
        if k is not None or v is not None:
            given = [None if array is None else as_buffer(array, name=name, stream=stream)
                     for name, array in (("k", k), ("v", v))]
        else:
            kind = as_buffer(b"", "float32") if like is None else as_buffer(like, name="like", stream=stream)
        arrays, buffers, layout = [k, v], given, _abi.TensorLayout()
        with handles.exclusive() as cache:
            read = handles.library.tq_cache_read
            # Nothing is read yet: layer and range are checked before memory is made for them.
            check(handles.library, read(cache, layer, self._id, first, count, None, None, None, stream))
            c = self._cache._shape(layer)
            for i, (name, side, dim) in enumerate((("k", "key", c.head_dim), ("v", "value", c.value_dim))):
                shape = (count, c.num_kv_heads, dim)
                if kind is not None:
                    arrays[i], buffers[i] = empty_like(kind, shape, c.io_dtype, name)
                if buffers[i] is not None:
                    token, head = rows(buffers[i], name, shape, "[count][num_kv_heads][dim]",
                                       dtype=c.io_dtype, device=c.device, writable=True)
                    setattr(layout, side + "_token_stride", token)
                    setattr(layout, side + "_head_stride", head)
            pointers = [None if buffer is None else buffer.pointer for buffer in buffers]
            check(handles.library, read(cache, layer, self._id, first, count, *pointers, layout, stream))
        return arrays[0], arrays[1]
