# SPDX-License-Identifier: Apache-2.0
"""Batch: the sequences of one step, planned once, then appended to and attended in each layer.

How many rows a call needs is asked of the library (tq_batch_rows) in the same turn in which the call runs, so
the number that shapes are compared with is the number that the library uses. Buffers stay in variables of the
calling function until the library has returned: they hold the memory.
"""
import ctypes
import struct
import weakref
from typing import Any, NamedTuple, Optional, Sequence as Many

from . import _abi, _ffi
from ._attend import AttendArguments
from ._ffi import check
from ._handles import Unique
from ._shapes import tensor_layout
from .buffers import as_buffer, as_stream, as_workspace
from .config import integer
from .errors import InvalidArgument, InvalidState
from .sequence import Sequence

__all__ = ["Batch"]


class Rows(NamedTuple):
    """What a plan covers: rows of k and v, rows of q, out and lse; zeros if it is not in force."""

    new_tokens: int
    query_tokens: int
    in_force: bool


class Batch(Unique):
    """The sequences of one step: plan once, then append and attend each layer. Made by Cache.batch; a context
    manager. A batch that is lost is destroyed by a later call on its cache."""

    def __init__(self, cache: Any, handle: "_abi.BatchHandle"):
        self._cache, self._handle = cache, handle
        self._queries = ()  # of each sequence of the last plan
        self._bound = None  # weak reference to what tqkv.torch.bind made of it
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
        stream, sequences = as_stream(stream), _listed("sequences", sequences)
        ids = self._ids(sequences)
        counts = _counts("new_tokens", new_tokens, len(sequences))
        queries = None if query_tokens is None else _counts("query_tokens", query_tokens, len(sequences))
        handles = self._cache._handles
        with handles.exclusive():
            library = self._open(handles)
            check(library,
                  library.tq_batch_plan(self._handle, len(sequences), ids, counts, queries, stream))
        self._queries = counts if queries is None else queries

    def rows(self) -> Rows:
        """(new_tokens, query_tokens, in_force) of the plan: how many rows append and attend take, and whether
        they take any. Host-side, no synchronisation."""
        handles = self._cache._handles
        with handles.exclusive():
            return self._rows(self._open(handles))

    def append(self, layer: int, k: Any, v: Any = None, *, stream: Any = None) -> None:
        """Encodes the new tokens of the plan into one layer.

        k  [new tokens][num_kv_heads][head_dim] io_dtype, rotary embedding already applied
        v  [new tokens][num_kv_heads][value_dim] io_dtype; None for a latent layer, and for no other

        Each layer of a plan is appended once; a repeated append writes the same bytes again. Raises
        InvalidState without a plan in force.
        """
        stream, layer = as_stream(stream), integer("layer", layer, ctypes.c_int32)
        k = as_buffer(k, name="k", stream=stream)
        v = None if v is None else as_buffer(v, name="v", stream=stream)
        c, layout = self._cache._shape(layer), _abi.TensorLayout()
        handles = self._cache._handles
        with handles.exclusive() as cache:
            library = self._open(handles)
            tokens, _, in_force = self._rows(library)
            if in_force:
                layout = tensor_layout(c, k, v, tokens)
            # Without a plan, or such a layer, the library refuses, with its own text.
            check(library, library.tq_cache_append(cache, layer, self._handle, k.pointer,
                                                   None if v is None else v.pointer, layout, stream))

    def attend(self, layer: int, q: Any, *, out: Any = None, lse: Any = None, out_dtype: Optional[str] = None,
               softmax_scale: float = 0.0, logit_softcap: float = 0.0, sliding_window: int = 0,
               sink_logits: Any = None, history_only: bool = False, visible_begin: Any = None,
               visible_end: Any = None, tree_mask: Any = None, alibi_slopes: Any = None,
               chunk: Any = None, workspace: Any = None, stream: Any = None) -> Any:
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
        chunk           (k, v) of the plan's new tokens, as append takes them: the queries see these numbers
                        instead of the codes, and codes of the tokens before the plan alone (a first prompt
                        is attended to without compression). In a cache with flags TQ_FLAG_EXACT_CHUNK; out
                        must be dense, and the plan's queries its new tokens. Not with masks.
        workspace       None = the cache's own; else a contiguous writable array of cache.workspace_bytes()
                        bytes on the cache's device, 256-byte aligned. Such calls run side by side in several
                        threads, each in a workspace of its own.

        Returns out, or (out, lse) if lse was asked for. A query that sees no token: out 0, lse -inf. Raises
        InvalidState without a plan in force, and for a layer of it that was not appended (unless
        history_only).
        """
        stream, layer = as_stream(stream), integer("layer", layer, ctypes.c_int32)
        call = AttendArguments(self._cache._shape(layer), q, out, lse, out_dtype, stream, softmax_scale,
                               logit_softcap, sliding_window, history_only,
                               {"sink_logits": sink_logits, "visible_begin": visible_begin,
                                "visible_end": visible_end, "tree_mask": tree_mask,
                                "alibi_slopes": alibi_slopes})
        space = None if workspace is None else as_workspace(workspace, call.shape.device)
        given = None if chunk is None else _chunk(chunk, stream)
        handles = self._cache._handles
        with handles.exclusive() if space is None else handles.shared(space) as cache:
            library = self._open(handles)
            new_tokens, tokens, in_force = self._rows(library)
            pointers = call.bind(tokens if in_force else None)
            if given:
                layout = tensor_layout(call.shape, *given, new_tokens) if in_force else _abi.TensorLayout()
                call.params.chunk_k, call.params.chunk_v = (buffer.pointer for buffer in given)
                call.params.chunk_layout = ctypes.pointer(layout)
            check(library,
                  library.tq_cache_attend(cache, layer, self._handle, *pointers, call.params,
                                          space and space.pointer, space.num_bytes if space else 0, stream))
        return call.result

    # ---- inside

    def _ids(self, sequences):
        """Ids of sequences of this cache as a C array: in one go, since a step has hundreds, and one by one
        where something is wrong."""
        try:
            ids = [sequence._id for sequence in sequences if sequence._cache is self._cache]
        except AttributeError:
            ids = ()
        if len(ids) != len(sequences):
            for i, sequence in enumerate(sequences):
                if not isinstance(sequence, Sequence):
                    raise InvalidArgument(f"sequences[{i}]: a {type(sequence).__name__} is no Sequence")
                if sequence.cache is not self._cache:
                    raise InvalidArgument(f"sequences[{i}]: belongs to another cache")
        return _c_array(ids)

    def _open(self, handles):
        """The library, inside a turn, if the batch is not closed."""
        if not self._handle.value:
            raise InvalidState("batch: is closed")
        return handles.library

    def _rows(self, library):
        new_tokens, query_tokens, in_force = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_int32()
        check(library, library.tq_batch_rows(self._handle, new_tokens, query_tokens, in_force))
        return Rows(new_tokens.value, query_tokens.value, bool(in_force.value))


def _chunk(chunk, stream):
    try:
        k, v = chunk
    except (TypeError, ValueError):
        raise InvalidArgument(f"chunk: a {type(chunk).__name__}, must be a pair: k and v of the plan's new "
                              "tokens") from None
    return as_buffer(k, name="chunk[0]", stream=stream), as_buffer(v, name="chunk[1]", stream=stream)


def _listed(name, values):
    try:
        return tuple(values)
    except TypeError:
        raise InvalidArgument(f"{name}: a {type(values).__name__}, must be a list: one entry for each "
                              "sequence of the step") from None


def _counts(name, values, length):
    """`values`, looked at once, as a C array of `length` integers."""
    values = _listed(name, values)
    if len(values) != length:
        raise InvalidArgument(f"{name}: has {len(values)} entries, sequences has {length}; must have as many "
                              "entries")
    try:
        return _c_array(values)
    except struct.error:
        return _c_array([integer(f"{name}[{i}]", n, ctypes.c_int64) for i, n in enumerate(values)])


def _c_array(integers):
    """An int64 array for C. Raises struct.error for what is no such integer."""
    count = len(integers)
    return (ctypes.c_int64 * count).from_buffer_copy(struct.pack(f"={count}q", *integers))
