# SPDX-License-Identifier: Apache-2.0
"""Batch: the sequences of one step, planned once, then appended to and attended in each layer.

How many rows a call needs is asked of the library (tq_batch_rows) in the same turn in which the call runs, so
the number that shapes are compared with is the number that the library uses. Buffers stay in variables of the
calling function until the library has returned: they hold the memory.
"""
import contextlib
import ctypes
import weakref
from typing import Any, NamedTuple, Optional, Sequence as Many

from . import _abi, _ffi
from ._ffi import check
from ._handles import Unique
from .buffers import (BITS, FLOAT32, RANGES, as_buffer, as_stream, as_workspace, dense, empty_like, rows)
from .config import choice, integer, real
from .errors import InvalidArgument, InvalidState
from .sequence import Sequence

__all__ = ["Batch"]


class Rows(NamedTuple):
    """What a plan covers: rows of k and v, rows of q, out and lse; zeros if it is not in force."""

    new_tokens: int
    query_tokens: int
    in_force: bool


# Element types, as C has them, and shape of what attend takes beside q.
_MASKS = {
    "sink_logits": (FLOAT32, ctypes.c_float, "[num_q_heads]"),
    "visible_begin": (RANGES, ctypes.c_int32, "[query tokens]"),
    "visible_end": (RANGES, ctypes.c_int32, "[query tokens]"),
    "tree_mask": (BITS, ctypes.c_uint64, "[query tokens][words]"),
    "alibi_slopes": (FLOAT32, ctypes.c_float, "[num_q_heads]")
}


class Batch(Unique):
    """The sequences of one step: plan once, then append and attend each layer. Made by Cache.batch; a context
    manager. A batch that is lost is destroyed by a later call on its cache."""

    def __init__(self, cache: Any, handle: "_abi.BatchHandle"):
        self._cache, self._handle = cache, handle
        handles = cache._handles
        self._finalizer = weakref.finalize(self, handles.left, lambda: handles.destroy_batch(handle))
        self._finalizer.atexit = False  # the cache's destroys them all

    @property
    def cache(self) -> Any:
        """The Cache that it belongs to."""
        return self._cache

    def close(self) -> None:
        """Destroys the batch now, after the calls that run. Idempotent; closing its cache does it too. Every
        other call then raises InvalidState."""
        handles = self._cache._handles
        with handles.exclusive(closing=True):
            handles.destroy_batch(self._handle)
        self._finalizer.detach()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def plan(self, sequences: Many[Sequence], new_tokens: Many[int],
             query_tokens: Optional[Many[int]] = None, *, stream: Any = None) -> None:
        """Plans one step: sequence i gets new_tokens[i] more tokens (its length grows at once) and asks
        query_tokens[i] queries, which are its last tokens (None: as many as new ones).

        sequences     up to max_batch_sequences of this cache, each once
        new_tokens    as many integers, 0 or more: a list, a NumPy array of any integer type, ..
        query_tokens  likewise, up to the new length of the sequence

        Rows of k and v are then the new tokens of all sequences one after the other, rows of q, out and lse
        the query tokens likewise. In force until the next plan, and until one of its sequences is truncated,
        freed or planned in another batch. Not inside a CUDA graph (CaptureError): plan between replays.
        Raises CapacityError if the pool, max_sequence_tokens or the batch limits are exceeded; nothing has
        changed then.
        """
        stream, sequences = as_stream(stream), tuple(sequences)
        for i, sequence in enumerate(sequences):
            if not isinstance(sequence, Sequence):
                raise InvalidArgument(f"sequences[{i}]: a {type(sequence).__name__} is no Sequence")
            if sequence.cache is not self._cache:
                raise InvalidArgument(f"sequences[{i}]: belongs to another cache")
        ids = (ctypes.c_int64 * len(sequences))(*(sequence.id for sequence in sequences))
        counts = _counts("new_tokens", new_tokens, len(sequences))
        queries = None if query_tokens is None else _counts("query_tokens", query_tokens, len(sequences))
        with self._turn() as (library, _):
            check(library,
                  library.tq_batch_plan(self._handle, len(sequences), ids, counts, queries, stream))

    def rows(self) -> Rows:
        """(new_tokens, query_tokens, in_force) of the plan: how many rows append and attend take, and whether
        they take any. Host-side, no synchronisation."""
        with self._turn() as (library, _):
            return self._rows(library)

    def append(self, layer: int, k: Any, v: Any, *, stream: Any = None) -> None:
        """Encodes the new tokens of the plan into one layer.

        k  [new tokens][num_kv_heads][head_dim] io_dtype, rotary embedding already applied
        v  [new tokens][num_kv_heads][value_dim] io_dtype

        Each layer of a plan is appended once; a repeated append writes the same bytes again. Raises
        InvalidState without a plan in force.
        """
        stream, layer = as_stream(stream), integer("layer", layer, ctypes.c_int32)
        k, v = as_buffer(k, name="k", stream=stream), as_buffer(v, name="v", stream=stream)
        layout, c = _abi.TensorLayout(), self._cache._shape(layer)
        with self._turn() as (library, cache):
            tokens, _, in_force = self._rows(library)
            if in_force and c.exists:
                must = {"dtype": c.io_dtype, "device": c.device}
                layout.key_token_stride, layout.key_head_stride = rows(
                    k, "k", (tokens, c.num_kv_heads, c.head_dim), "[new tokens][num_kv_heads][head_dim]",
                    **must)
                layout.value_token_stride, layout.value_head_stride = rows(
                    v, "v", (tokens, c.num_kv_heads, c.value_dim), "[new tokens][num_kv_heads][value_dim]",
                    **must)
            # Without a plan, or such a layer, the library refuses, with its own text.
            check(library, library.tq_cache_append(cache, layer, self._handle, k.pointer, v.pointer, layout,
                                                   stream))

    def attend(self, layer: int, q: Any, *, out: Any = None, lse: Any = None, out_dtype: Optional[str] = None,
               softmax_scale: float = 0.0, logit_softcap: float = 0.0, sliding_window: int = 0,
               sink_logits: Any = None, history_only: bool = False, visible_begin: Any = None,
               visible_end: Any = None, tree_mask: Any = None, alibi_slopes: Any = None,
               workspace: Any = None, stream: Any = None) -> Any:
        """out = softmax(q . K^T * softmax_scale) . V for the query tokens of the plan, straight on the codes;
        a query sees the tokens up to its own position, or what its mask says.

        q               [query tokens][num_q_heads][head_dim] io_dtype; query head h reads kv head h /
                        (num_q_heads / num_kv_heads)
        out             [query tokens][num_q_heads][value_dim], written into; None: a new array of q's kind
        lse             [query tokens][num_q_heads] float32, natural log of the softmax's sum, written into;
                        True: a new array
        out_dtype       None = io_dtype; "float32" keeps the full precision of a partial result
        softmax_scale   0 = 1 / sqrt(head_dim)
        logit_softcap   c: logits become c * tanh(logit / c); 0 = off
        sliding_window  tokens that a query sees, its own included; 0 = all
        sink_logits     [num_q_heads] float32 on the cache's device, added to the softmax's sum only
        history_only    leave out the plan's new tokens, to attend them elsewhere and merge by lse
                        (merge_states)
        visible_begin, visible_end
                        [query tokens] int32, both or neither: a query sees the tokens begin .. end - 1 that
                        are there, those behind its own included
        tree_mask       [query tokens] or [query tokens][1 or 2] uint64 (int64: its bits): bit j % 64 of word
                        j / 64 says whether the query sees the j-th of the plan's new tokens of its sequence
        alibi_slopes    [num_q_heads] float32: slope * (token - query position) is added to the logits
                        The four are on the cache's device, and a captured graph reads them there.
        workspace       None = the cache's own; else a contiguous writable array of cache.workspace_bytes()
                        bytes on the cache's device, 256-byte aligned. Such calls run side by side in several
                        threads, each in a workspace of its own.

        Returns out, or (out, lse) if lse was asked for. A query that sees no token: out 0, lse -inf. Raises
        InvalidState without a plan in force, and for a layer of it that was not appended (unless
        history_only).
        """
        stream, layer = as_stream(stream), integer("layer", layer, ctypes.c_int32)
        q, c = as_buffer(q, name="q", stream=stream), self._cache._shape(layer)
        dtype = c.io_dtype if out_dtype is None else choice("out_dtype", out_dtype, _ffi.DTYPES)
        params = _abi.AttendParams(out_dtype=dtype,
                                   softmax_scale=real("softmax_scale", softmax_scale),
                                   logit_softcap=real("logit_softcap", logit_softcap),
                                   sliding_window=integer("sliding_window", sliding_window, ctypes.c_int64),
                                   history_only=integer("history_only", history_only, ctypes.c_int32))
        masks = {name: as_buffer(array, name=name, stream=stream, takes=_MASKS[name][0])
                 for name, array in zip(_MASKS, (sink_logits, visible_begin, visible_end, tree_mask,
                                                 alibi_slopes)) if array is not None}
        with_lse = lse is not None and lse is not False
        results = [out, None if lse is True or not with_lse else lse]
        buffers = [None if array is None else as_buffer(array, name=name, stream=stream)
                   for name, array in zip(("out", "lse"), results)]
        space = None if workspace is None else as_workspace(workspace, c.device)
        with self._turn(space) as (library, cache):
            _, tokens, in_force = self._rows(library)
            self._pass_masks(params, masks, c, tokens if in_force else None)
            if in_force and c.exists and dtype in _ffi.DTYPE_NAMES:  # else the library refuses, with its text
                shape = (tokens, c.num_q_heads, c.value_dim)
                params.q_token_stride, params.q_head_stride = rows(
                    q, "q", (tokens, c.num_q_heads, c.head_dim), "[query tokens][num_q_heads][head_dim]",
                    dtype=c.io_dtype, device=c.device)
                if out is None:
                    results[0], buffers[0] = empty_like(q, shape, dtype, "out")
                if lse is True:
                    results[1], buffers[1] = empty_like(q, shape[:2], 1, "lse")
                params.out_token_stride, params.out_head_stride = rows(
                    buffers[0], "out", shape, "[query tokens][num_q_heads][value_dim]", dtype=dtype,
                    device=c.device, writable=True)
                if with_lse:
                    dense(buffers[1], "lse", shape[:2], "[query tokens][num_q_heads]", dtype=1,
                          device=c.device, writable=True)
            pointers = [None if buffer is None else buffer.pointer for buffer in buffers]
            check(library,
                  library.tq_cache_attend(cache, layer, self._handle, q.pointer, *pointers, params,
                                          space and space.pointer, space.num_bytes if space else 0, stream))
        return tuple(results) if with_lse else results[0]

    # ---- inside

    def _pass_masks(self, params, masks, c, tokens):
        """Arrays that say something of heads or of query tokens: checked, and their addresses in params.
        tokens: None without a plan in force, which the library refuses with its own text."""
        words = max(1, masks["tree_mask"].size // tokens) if tokens and "tree_mask" in masks else 1
        shapes = {"[num_q_heads]": (c.num_q_heads, ), "[query tokens]": (tokens, ),
                  "[query tokens][words]": (tokens, words)}
        for name, buffer in masks.items():
            _, element, meaning = _MASKS[name]
            if tokens is not None and c.exists:
                dense(buffer, name, shapes[meaning], meaning, dtype=None, device=c.device)
            setattr(params, name, ctypes.cast(buffer.pointer, ctypes.POINTER(element)))
        params.tree_words = words if "tree_mask" in masks else 0

    @contextlib.contextmanager
    def _turn(self, workspace=None):
        """(library, cache handle) for one call; with a workspace of its own it is a shared one."""
        handles = self._cache._handles
        with handles.exclusive() if workspace is None else handles.shared(workspace) as cache:
            if not self._handle.value:
                raise InvalidState("batch: is closed")
            yield handles.library, cache

    def _rows(self, library):
        new_tokens, query_tokens, in_force = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_int32()
        check(library, library.tq_batch_rows(self._handle, new_tokens, query_tokens, in_force))
        return Rows(new_tokens.value, query_tokens.value, bool(in_force.value))


def _counts(name, values, length):
    """`values`, looked at once, as a C array of `length` integers."""
    values = tuple(values)
    if len(values) != length:
        raise InvalidArgument(f"{name}: has {len(values)} entries, sequences has {length}; must have as many "
                              "entries")
    return (ctypes.c_int64 * length)(*(integer(f"{name}[{i}]", n, ctypes.c_int64)
                                       for i, n in enumerate(values)))
