# SPDX-License-Identifier: Apache-2.0
"""Cache, Sequence, Batch: the handles of the library with Python's manners.

Rules that hold for every call
  Shapes     k [new tokens][num_kv_heads][head_dim], v likewise with value_dim, q [query
             tokens][num_q_heads][head_dim], out with value_dim; or one flat contiguous row of as many
             elements. Strides of tokens and heads are free, the last dimension is contiguous.
  Types      k, v, q, out: the cache's io_dtype. lse, sink_logits, centres: float32.
  Devices    arrays lie on the cache's device (centres: on the host). Anything that buffers.as_buffer takes is
             taken; nothing is copied.
  Streams    stream: None, an int, a torch or CuPy stream. A CUDA cache enqueues its work there and returns;
             give torch's current stream yourself (torch.cuda.current_stream()), None is the legacy default
             stream. Arrays must live until the stream has passed the call. CPU caches are done when they
             return; their stream is None.
  Errors     tqkv.Error and its classes; a failed call has changed nothing.
  Threads    a cache serves one thread at a time; calls from several wait for one another, except attend calls
             that bring their own workspace. The interpreter's lock is released during calls.
"""
import contextlib
import ctypes
import threading
import weakref
from typing import Any, List, Optional, Sequence as Many, Tuple

from . import _abi, _ffi
from .buffers import as_buffer, as_bytes, as_stream, check_device, dense, empty_like, rows
from .config import Config, check, choice, integer
from .errors import InvalidArgument, InvalidState

__all__ = ["Batch", "Cache", "Sequence"]


class _Handles:
    """What must be destroyed, in which order: batches before their cache. Shared by the objects and their
    finalizers, and refers to none of them."""

    def __init__(self, library, cache):
        self.library, self.cache, self.batches, self.lock = library, cache, set(), threading.RLock()

    def destroy_batch(self, address):
        # Without waiting: this may run inside any allocation of a thread that holds another lock. What is
        # left over goes with the cache.
        if address in self.batches and self.lock.acquire(blocking=False):
            try:
                if self.library.tq_batch_destroy(_abi.BatchHandle(address)) == 0:
                    self.batches.discard(address)
            finally:
                self.lock.release()

    def destroy(self):
        for address in list(self.batches):
            check(self.library, self.library.tq_batch_destroy(_abi.BatchHandle(address)))
            self.batches.discard(address)
        if self.cache:
            check(self.library, self.library.tq_cache_destroy(self.cache))
            self.cache = None

    def destroy_quietly(self):
        with contextlib.suppress(Exception):
            self.destroy()


class Cache:
    """A KV cache of 2-8 bit codes for all layers and sequences of a model.

    Cache(config), or Cache(num_layers=.., ..) with the fields of Config. stream: where a CUDA cache is
    initialised.

        with tqkv.Cache(num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=128, key_bits=4, value_bits=3,
        max_tokens=8192) as cache:
            sequence = cache.sequence()
            step = cache.batch()
            step.plan([sequence], [len(k)])
            for layer in range(2):
                step.append(layer, k, v)
                out = step.attend(layer, q)

    Raises InvalidArgument, NotSupported, NoDevice, DriverError, OutOfMemory, CudaError, CaptureError,
    LibraryError.
    """

    def __init__(self, config: Optional[Config] = None, *, stream: Any = None, **fields: Any):
        if config is None:
            config = Config(**fields)
        elif fields:
            raise TypeError("give a Config or its fields, not both")
        self._library = library = _ffi.load_library()
        c, self._pool = config._to_c()
        handle = _abi.CacheHandle()
        check(library, library.tq_cache_create(c, as_stream(stream), handle))
        self._handles = _Handles(library, handle)
        self._keep = config.allocator
        self._finalizer = weakref.finalize(self, self._handles.destroy_quietly)
        self._config = _abi.CacheConfig()
        check(library, library.tq_cache_get_config(handle, self._config))
        self._device = (self._config.device_type, self._config.device_id)

    # ---- lifetime

    def close(self) -> None:
        """Destroys the cache and its batches now; waits for the work that the cache enqueued. Idempotent;
        every other call then raises InvalidState. A cache that is not closed is destroyed when it is
        collected, or at the interpreter's end."""
        with self._handles.lock:
            self._handles.destroy()
        self._finalizer.detach()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._handles.cache is None

    @contextlib.contextmanager
    def _use(self, exclusive=True):
        """(library, handle) for one call."""
        with self._handles.lock if exclusive else contextlib.nullcontext():
            if self._handles.cache is None:
                raise InvalidState("cache: is closed")
            yield self._library, self._handles.cache

    # ---- sequences and batches

    def sequence(self) -> "Sequence":
        """A new, empty sequence. Raises CapacityError if max_sequences are alive."""
        with self._use() as (library, handle):
            number = ctypes.c_int64()
            check(library, library.tq_sequence_create(handle, number))
            return Sequence(self, number.value)

    def batch(self) -> "Batch":
        """Room for the plan of one step. One is enough for most programs; it is planned again for every
        step."""
        with self._use() as (library, handle):
            batch = _abi.BatchHandle()
            check(library, library.tq_batch_create(handle, batch))
            self._handles.batches.add(batch.value)
            return Batch(self, batch)

    # ---- questions

    @property
    def config(self) -> _abi.CacheConfig:
        """The configuration with every default resolved."""
        return self._config

    def memory(self) -> _abi.CacheMemory:
        """num_sequences, tokens, pages_used, pages_total, stored_bytes_used, raw_bytes, device_bytes,
        host_bytes, compression (float16 bytes of a token / stored bytes of a token, scales included).
        Host-side, no synchronisation."""
        with self._use() as (library, handle):
            memory = _abi.CacheMemory()
            check(library, library.tq_cache_get_memory(handle, memory))
            return memory

    def fingerprint(self) -> int:
        """64-bit hash, equal for two caches if and only if their pages are exchangeable."""
        with self._use() as (library, handle):
            value = ctypes.c_uint64()
            check(library, library.tq_cache_fingerprint(handle, value))
            return value.value

    def check(self, *, stream: Any = None) -> int:
        """Synchronises the stream, raises the cache's asynchronous error if there is one, and returns and
        clears what was noticed since the last check: TQ_NOTICED_NONFINITE (1), an appended vector held NaN,
        infinity or a magnitude above 2^64."""
        with self._use() as (library, handle):
            flags = ctypes.c_uint64()
            check(library, library.tq_cache_check(handle, as_stream(stream), flags))
            return flags.value

    # ---- centres

    def set_centres(self, layer: int, key_centre: Any = None, value_centre: Any = None) -> None:
        """Fixed vectors subtracted before coding: key_centre [num_kv_heads][head_dim], value_centre
        [num_kv_heads][value_dim], float32 on the host; None leaves one as it is. InvalidState once a sequence
        holds tokens."""
        c = self._config
        pointers: List[Optional[int]] = []
        for name, centre, dim in (("key_centre", key_centre, c.head_dim), ("value_centre", value_centre,
                                                                           c.value_dim)):
            if centre is None:
                pointers.append(None)
                continue
            pointers.append(
                dense(as_buffer(centre, name=name),
                      name, (c.num_kv_heads, dim),
                      "[num_kv_heads][dim]",
                      dtype=1,
                      device=(_ffi.CPU, 0)))
        with self._use() as (library, handle):
            check(library,
                  library.tq_cache_set_centres(handle, integer("layer", layer, ctypes.c_int32), *pointers))


class Sequence:
    """The tokens of one text in all layers of a cache. Made by Cache.sequence and Sequence.fork. It stays
    alive until it is freed or its cache closed; losing the object frees nothing. len(sequence) is its length
    in tokens."""

    __slots__ = ("cache", "id")

    def __init__(self, cache: Cache, number: int):
        self.cache, self.id = cache, number

    def __repr__(self):
        return f"Sequence({self.id:#x})"

    def __len__(self) -> int:
        with self.cache._use() as (library, handle):
            length = ctypes.c_int64()
            check(library, library.tq_sequence_length(handle, self.id, length))
            return length.value

    def __bool__(self) -> bool:
        return True  # an empty sequence is one, too

    @property
    def flags(self) -> int:
        """TQ_NOTICED_* since it was created; without synchronisation, so early on a CUDA cache."""
        with self.cache._use() as (library, handle):
            flags = ctypes.c_uint64()
            check(library, library.tq_sequence_flags(handle, self.id, flags))
            return flags.value

    def fork(self, *, stream: Any = None) -> "Sequence":
        """A new sequence with the same tokens; pages are shared until one side writes into them.
        CapacityError if max_sequences are alive."""
        with self.cache._use() as (library, handle):
            number = ctypes.c_int64()
            check(library, library.tq_sequence_fork(handle, self.id, as_stream(stream), number))
            return Sequence(self.cache, number.value)

    def truncate(self, length: int, *, stream: Any = None) -> None:
        """Shortens to `length` tokens, as if the later ones had never been appended. Puts a plan that holds
        the sequence out of force."""
        with self.cache._use() as (library, handle):
            check(
                library,
                library.tq_sequence_truncate(handle, self.id, integer("length", length, ctypes.c_int64),
                                             as_stream(stream)))

    def free(self, *, stream: Any = None) -> None:
        """Gives its pages back; the id stays invalid for ever (InvalidArgument)."""
        with self.cache._use() as (library, handle):
            check(library, library.tq_sequence_free(handle, self.id, as_stream(stream)))

    def read(self,
             layer: int,
             first: int,
             count: int,
             *,
             like: Any = None,
             k: Any = None,
             v: Any = None,
             stream: Any = None) -> Tuple[Any, Any]:
        """Decoded keys and values of tokens first .. first + count - 1, exact where exact copies are kept.

        k, v   arrays to write into, [count][num_kv_heads][dim] io_dtype; like: an array whose kind the
               results get if k and v are None. With neither, memoryviews (CPU caches). With only one of k and
               v given, only that one is read.
        Returns (k, v), None for what was not read.
        """
        c, layout, stream = self.cache._config, _abi.TensorLayout(), as_stream(stream)
        layer, first, count = (integer(name, x, t)
                               for name, x, t in (("layer", layer, ctypes.c_int32),
                                                  ("first", first, ctypes.c_int64), ("count", count,
                                                                                     ctypes.c_int64)))
        fresh = k is None and v is None
        kind = as_buffer(b"" if like is None else like, "float32" if like is None else None,
                         name="like") if fresh else None
        results: List[Any] = []
        pointers: List[Any] = []
        with self.cache._use() as (library, handle):
            # Nothing is read yet: the range is checked before memory is made for it.
            check(library,
                  library.tq_cache_read(handle, layer, self.id, first, count, None, None, None, stream))
            for name, side, array, dim in (("k", "key", k, c.head_dim), ("v", "value", v, c.value_dim)):
                shape, buffer = (count, c.num_kv_heads, dim), None
                if kind is not None:
                    array, buffer = empty_like(kind, shape, c.io_dtype, name)
                elif array is not None:
                    buffer = as_buffer(array, name=name, stream=stream)
                if buffer is not None:
                    token, head = rows(buffer,
                                       name,
                                       shape,
                                       "[count][num_kv_heads][dim]",
                                       dtype=c.io_dtype,
                                       device=self.cache._device,
                                       writable=True)
                    setattr(layout, side + "_token_stride", token)
                    setattr(layout, side + "_head_stride", head)
                results.append(array)
                pointers.append(None if buffer is None else buffer.pointer)
            check(library,
                  library.tq_cache_read(handle, layer, self.id, first, count, *pointers, layout, stream))
        return results[0], results[1]


class Batch:
    """The sequences of one step: plan once, then append and attend each layer. Made by Cache.batch."""

    def __init__(self, cache: Cache, handle: "_abi.BatchHandle"):
        self.cache, self._handle = cache, handle
        self._new_tokens = self._query_tokens = 0
        self._finalizer = weakref.finalize(self, cache._handles.destroy_batch, handle.value)

    def close(self) -> None:
        """Destroys the batch now. Idempotent; closing its cache does it too."""
        handles = self.cache._handles
        with handles.lock:
            if self._handle.value in handles.batches:
                check(handles.library, handles.library.tq_batch_destroy(self._handle))
                handles.batches.discard(self._handle.value)
        self._finalizer.detach()
        self._handle = _abi.BatchHandle()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def _use(self, exclusive=True):
        with self.cache._use(exclusive) as (library, handle):
            if not self._handle.value:
                raise InvalidState("batch: is closed")
            yield library, handle, self._handle

    def plan(self,
             sequences: Many[Sequence],
             new_tokens: Many[int],
             query_tokens: Optional[Many[int]] = None,
             *,
             stream: Any = None) -> None:
        """Plans one step: sequence i gets new_tokens[i] more tokens (its length grows at once) and asks
        query_tokens[i] queries, which are its last tokens (None: as many as new ones). Rows of k and v are
        then the new tokens of all sequences one after the other, rows of q, out and lse the query tokens
        likewise.

        In force until the next plan, truncate or free of one of its sequences. Not inside a CUDA graph: plan
        between replays. Raises CapacityError if the pool, max_sequence_tokens or the batch limits are
        exceeded.
        """
        if len(new_tokens) != len(sequences) or (query_tokens is not None
                                                 and len(query_tokens) != len(sequences)):
            raise InvalidArgument("new_tokens, query_tokens: must have as many entries as sequences")
        for i, sequence in enumerate(sequences):
            if sequence.cache is not self.cache:
                raise InvalidArgument(f"sequences[{i}]: belongs to another cache")
        array = ctypes.c_int64 * len(sequences)
        counts = array(*(integer(f"new_tokens[{i}]", n, ctypes.c_int64) for i, n in enumerate(new_tokens)))
        queries = None if query_tokens is None else array(*(integer(f"query_tokens[{i}]", n, ctypes.c_int64)
                                                            for i, n in enumerate(query_tokens)))
        with self._use() as (library, _, batch):
            check(
                library,
                library.tq_batch_plan(batch, len(sequences), array(*(s.id for s in sequences)), counts,
                                      queries, as_stream(stream)))
            self._new_tokens = sum(new_tokens)
            self._query_tokens = self._new_tokens if query_tokens is None else sum(query_tokens)

    def append(self, layer: int, k: Any, v: Any, *, stream: Any = None) -> None:
        """Encodes the new tokens of the plan into one layer: k [new tokens][num_kv_heads][head_dim], v [new
        tokens][num_kv_heads][value_dim], rotary embedding already applied to k. Each layer of a plan is
        appended once. InvalidState without a plan in force."""
        stream, layer = as_stream(stream), integer("layer", layer, ctypes.c_int32)
        c, layout, must = self.cache._config, _abi.TensorLayout(), {
            "dtype": self.cache._config.io_dtype, "device": self.cache._device
        }
        with self._use() as (library, handle, batch):
            k, v = as_buffer(k, name="k", stream=stream), as_buffer(v, name="v", stream=stream)
            if self._in_force(library, handle, batch):
                shape = (self._new_tokens, c.num_kv_heads)
                layout.key_token_stride, layout.key_head_stride = rows(
                    k, "k", (*shape, c.head_dim), "[new tokens][num_kv_heads][head_dim]", **must)
                layout.value_token_stride, layout.value_head_stride = rows(
                    v, "v", (*shape, c.value_dim), "[new tokens][num_kv_heads][value_dim]", **must)
            check(library, library.tq_cache_append(handle, layer, batch, k.pointer, v.pointer, layout,
                                                   stream))

    def attend(self,
               layer: int,
               q: Any,
               *,
               out: Any = None,
               lse: Any = None,
               out_dtype: Optional[str] = None,
               softmax_scale: float = 0.0,
               logit_softcap: float = 0.0,
               sliding_window: int = 0,
               sink_logits: Any = None,
               history_only: bool = False,
               workspace: Any = None,
               stream: Any = None) -> Any:
        """out = softmax(q . K^T * softmax_scale) . V for the query tokens of the plan, straight on the codes;
        a query sees the tokens up to its own position.

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
        workspace       None = the cache's own; else a flat writable array of workspace_bytes() bytes on the
                        cache's device, 256-byte aligned

        Returns out, or (out, lse) if lse was asked for. A query that sees no token: out 0, lse -inf.
        InvalidState without a plan in force.
        """
        cache, stream, layer = self.cache, as_stream(stream), integer("layer", layer, ctypes.c_int32)
        c = cache._config
        with self._use(workspace is None) as (library, handle, batch):
            q = as_buffer(q, name="q", stream=stream)
            dtype = c.io_dtype if out_dtype is None else choice("out_dtype", out_dtype, _ffi.DTYPES)
            params = _abi.AttendParams(out_dtype=dtype,
                                       softmax_scale=softmax_scale,
                                       logit_softcap=logit_softcap,
                                       sliding_window=integer("sliding_window", sliding_window,
                                                              ctypes.c_int64),
                                       history_only=integer("history_only", history_only, ctypes.c_int32))
            if sink_logits is not None:
                sinks = as_buffer(sink_logits, name="sink_logits", stream=stream)
                address = dense(sinks,
                                "sink_logits", (c.num_q_heads, ),
                                "[num_q_heads]",
                                dtype=1,
                                device=cache._device)
                params.sink_logits = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            pointers, results = [None, None], [None, None]
            if dtype in _ffi.DTYPE_NAMES and self._in_force(library, handle, batch):
                pointers, results = self._results(params, dtype, q, out, lse, stream)
            own, space, space_bytes = self._workspace(workspace)
            check(
                library,
                library.tq_cache_attend(handle, layer, batch, q.pointer, *pointers, params, space,
                                        space_bytes, stream))
            del own
        return results[0] if lse is None or lse is False else tuple(results)

    def workspace_bytes(self) -> int:
        """Bytes of workspace that attend needs for this plan, and for every smaller one."""
        with self._use() as (library, handle, batch):
            size = ctypes.c_size_t()
            check(library, library.tq_attend_workspace_bytes(handle, size))
            return size.value

    # ---- inside

    def _in_force(self, library, handle, batch):
        """Whether the counts of the last plan still say the shapes. If not, the library is asked with what is
        there and refuses, with its own text."""
        return library.tq_attend_workspace_bytes(handle, ctypes.c_size_t()) == 0

    def _results(self, params, dtype, q, out, lse, stream):
        """Checks q and out, makes what was not given; -> ([out pointer, lse pointer], [out, lse])."""
        c, device, count = self.cache._config, self.cache._device, self._query_tokens
        params.q_token_stride, params.q_head_stride = rows(q,
                                                           "q", (count, c.num_q_heads, c.head_dim),
                                                           "[query tokens][num_q_heads][head_dim]",
                                                           dtype=c.io_dtype,
                                                           device=device)
        shape = (count, c.num_q_heads, c.value_dim)
        out, out_buffer = empty_like(
            q, shape, dtype, "out") if out is None else (out, as_buffer(out, name="out", stream=stream))
        params.out_token_stride, params.out_head_stride = rows(out_buffer,
                                                               "out",
                                                               shape,
                                                               "[query tokens][num_q_heads][value_dim]",
                                                               dtype=dtype,
                                                               device=device,
                                                               writable=True)
        lse_pointer = None
        if lse is not None and lse is not False:
            lse, buffer = empty_like(
                q, shape[:2], 1, "lse") if lse is True else (lse, as_buffer(lse, name="lse", stream=stream))
            lse_pointer = dense(buffer,
                                "lse",
                                shape[:2],
                                "[query tokens][num_q_heads]",
                                dtype=1,
                                device=device,
                                writable=True)
        return [out_buffer.pointer, lse_pointer], [out, lse]

    def _workspace(self, workspace):
        if workspace is None:
            return None, None, 0
        memory = as_bytes(workspace, "workspace")
        check_device(memory, self.cache._device, "workspace")
        if not memory.writable:
            raise InvalidArgument("workspace: cannot be written to")
        return memory, memory.pointer, memory.num_bytes
