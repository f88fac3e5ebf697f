# SPDX-License-Identifier: Apache-2.0
"""Cache: the library's cache with Python's manners.

Rules that hold for every call of Cache, Sequence and Batch
  Shapes     k [new tokens][num_kv_heads][head_dim], v likewise with value_dim, q [query
             tokens][num_q_heads][head_dim], out with value_dim; or one flat contiguous row of as many
             elements. Strides of tokens and heads are free, the last dimension is contiguous.
  Types      k, v, q, out: the cache's io_dtype. lse, sink_logits, centres: float32. Counts: any integers.
  Devices    arrays lie on the cache's device (centres: on the host). Anything that buffers.as_buffer takes is
             taken; nothing is copied.
  Streams    stream: None, an int, a torch or CuPy stream. A CUDA cache enqueues its work there and returns;
             give torch's current stream yourself (torch.cuda.current_stream()), None is the legacy default
             stream. Arrays must live until the stream has passed the call. CPU caches are done when they
             return; their stream is None.
  Lifetimes  a call holds every array that it was given until it returns. Memory that Python can lock in place
             (array.array, bytearray, ..) cannot be resized meanwhile; do not resize torch tensors.
  Errors     tqkv.Error and its classes; a failed call has changed nothing.
  Threads    calls from several threads on one cache wait for one another, close and plan included; attend
             calls that bring their own workspace run side by side. The interpreter's lock is released during
             calls. A signal handler or finalizer that calls in the middle of another call of its own thread
             gets InvalidState ("busy").
  Fork       in a forked process a CPU cache works, on the calling thread alone, and a CUDA cache refuses all
             but close (InvalidState). A cache that is lost there is not destroyed: that would copy its pages.
"""
import ctypes
from dataclasses import replace
from typing import Any, Optional, Tuple

from . import _abi, _ffi, state as _state
from ._ffi import Noticed, check
from ._handles import Opened
from ._shapes import Shapes, centre_buffers, matrix_buffer
from .batch import Batch
from .buffers import as_stream
from .config import Config, config_of, integer
from .errors import InvalidArgument
from .sequence import Sequence
from .state import State

__all__ = ["Cache"]


class Cache(Opened):
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
        config = config_of(config, fields)
        library, stream = _ffi.load_library(), as_stream(stream)
        c, keep = config._to_c()
        handle = _abi.CacheHandle()
        check(library, library.tq_cache_create(c, stream, handle))
        self._own(library, handle, keep, "cache")
        resolved = _abi.CacheConfig()
        check(library, library.tq_cache_get_config(handle, resolved))
        self._config = config._resolved(resolved)
        self._shapes = Shapes(resolved, self._config.layers)

    # ---- sequences and batches

    def sequence(self) -> Sequence:
        """A new, empty sequence. Raises CapacityError if max_sequences are alive."""
        return Sequence(self, self._ask("tq_sequence_create", ctypes.c_int64()).value)

    def batch(self) -> Batch:
        """Room for the plan of one step. One is enough for most programs; it is planned again for every
        step. Raises OutOfMemory."""
        handles, batch = self._handles, _abi.BatchHandle()
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_batch_create(cache, batch))
            handles.batches[id(batch)] = batch
        return Batch(self, batch)

    def reserve(self, max_tokens: int, *, stream: Any = None) -> None:
        """Raises max_tokens, up to the configuration's max_reserve_tokens, in place: plans stay in force,
        what graphs hold stays where it is. Waits for its memory. Raises CapacityError beyond
        max_reserve_tokens, OutOfMemory; nothing has changed then."""
        handles, stream = self._handles, as_stream(stream)
        max_tokens = integer("max_tokens", max_tokens, ctypes.c_int64)
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_cache_reserve(cache, max_tokens, stream))
            self._config = replace(self._config, max_tokens=max_tokens)

    # ---- state that travels

    def describe_sequence(self, sequence: Sequence, *, layers: Any = None, kv_heads: Any = None,
                          tokens: Any = None) -> State:
        """What export_sequence would give of a part of the sequence: layers, kv_heads (numbers in the whole
        model) and tokens, each None for all, one number, or a range of step 1. Raises InvalidArgument naming
        what is not there, InvalidState if a layer lacks tokens."""
        return _state.describe(self._handles, self._number(sequence), layers, kv_heads, tokens)

    def export_sequence(self, sequence: Sequence, out: Any = None, *, layers: Any = None,
                        kv_heads: Any = None, tokens: Any = None, stream: Any = None) -> Tuple[State, Any]:
        """The part as bytes: (State, memory). memory is `out`, writable and 16-byte aligned, with room for
        State.bytes, on the host or the cache's device; or a new bytearray of just these. Equal states give
        equal bytes, whatever the page size and device. A CUDA cache enqueues the work and returns if `out`
        is on its device or pinned (torch: pin_memory), whose bytes are there when stream has passed it, and
        `out` must live till then; otherwise it waits for stream."""
        return _state.export(self._handles, self._config._device(), self._number(sequence), out, layers,
                             kv_heads, tokens, as_stream(stream))

    def import_sequence(self, state: State, memory: Any, sequence: Optional[Sequence] = None, *,
                        stream: Any = None) -> Sequence:
        """Puts a part behind the tokens that its layers hold: of `sequence`, or of a new one. By layer: the
        sequence grows with the first part, and each layer holds the tokens once its own part has come.
        memory: contiguous, 16-byte aligned, where export_sequence may write, and as there; its bytes are
        trusted. Raises Incompatible naming the field, CapacityError, InvalidState, InvalidArgument; nothing
        has changed then, and no sequence was made."""
        number = None if sequence is None else self._number(sequence)
        made = _state.import_(self._handles, self._config._device(), state, memory, number, as_stream(stream))
        return sequence if sequence is not None else Sequence(self, made)

    def save(self, sequence: Sequence, target: Any, *, mac: Any = None, stream: Any = None) -> None:
        """Writes the sequence, with checksums, to a path or to a binary file that is open for writing. A path
        is replaced as a whole: killed at any moment, the old file or the new one is there. mac: a secret key
        (bytes, for HMAC-SHA256), or a fresh keyed object as hmac.new gives, whose digest then stands at the
        end. Raises InvalidState if a layer lacks tokens, and what the file raises (OSError)."""
        _state.save(self._handles, self._number(sequence), target, mac, as_stream(stream))

    def load(self, source: Any, *, mac: Any = None, stream: Any = None) -> Sequence:
        """A new sequence from what save wrote, in a path or a binary file; of the file no byte behind the
        sequence's is read. mac: as save; what was not written with this key is CorruptData. Raises
        CorruptData, Incompatible naming the field that differs, CapacityError, OSError; the cache is as it
        was then."""
        return Sequence(self, _state.load(self._handles, source, mac, as_stream(stream)))

    def _number(self, sequence):
        if not isinstance(sequence, Sequence):
            raise TypeError(f"sequence: must be a Sequence, not {type(sequence).__name__}")
        if sequence.cache is not self:
            raise InvalidArgument(f"sequence = {sequence!r}: belongs to another cache")
        return sequence.id

    # ---- questions

    @property
    def config(self) -> Config:
        """The configuration with every default resolved; Cache(cache.config) makes another cache like
        this."""
        return self._config

    def memory(self) -> "_abi.CacheMemory":
        """num_sequences, tokens, pages_used, pages_total, stored_bytes_used, raw_bytes, device_bytes,
        host_bytes, compression (float16 bytes of max_tokens tokens / bytes of all pages and exact copies),
        raw_bytes_used.
        Host-side, no synchronisation."""
        return self._ask("tq_cache_get_memory", _abi.CacheMemory())

    def workspace_bytes(self) -> int:
        """Bytes of workspace that attend needs, whatever the plan."""
        return self._ask("tq_attend_workspace_bytes", ctypes.c_size_t()).value

    def fingerprint(self) -> int:
        """64-bit hash, equal for two caches if and only if their pages are exchangeable."""
        return self._ask("tq_cache_fingerprint", ctypes.c_uint64()).value

    def check(self, *, stream: Any = None) -> Noticed:
        """Synchronises the stream, raises the cache's asynchronous error if there is one, and returns and
        clears what was noticed since the last check, a set of flags that is 0 if there was nothing:
        Noticed.NONFINITE, an appended vector held NaN, infinity or a magnitude above 2^64; Noticed.SATURATED,
        a finite number beyond +-65504 went into a raw side of a float32 cache."""
        return Noticed(self._ask("tq_cache_check", as_stream(stream), ctypes.c_uint64()).value)

    def _shape(self, layer):
        return self._shapes[layer]

    def _ask(self, function, *arguments):
        """Calls a function of (cache, .., answer); -> answer."""
        with self._handles.exclusive() as cache:
            check(self._handles.library, getattr(self._handles.library, function)(cache, *arguments))
        return arguments[-1]

    # ---- centres

    def set_centres(self, layer: int, key_centre: Any = None, value_centre: Any = None) -> None:
        """Fixed vectors subtracted before coding: key_centre [num_kv_heads][head_dim], value_centre
        [num_kv_heads][value_dim], float32 on the host, finite; None leaves one as it is. Copied. Raises
        InvalidState once a sequence holds tokens."""
        layer = integer("layer", layer, ctypes.c_int32)
        buffers = centre_buffers(self._shape(layer), key_centre, value_centre)
        pointers = [None if buffer is None else buffer.pointer for buffer in buffers]
        handles = self._handles
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_cache_set_centres(cache, layer, *pointers))

    def set_key_matrix(self, layer: int, matrix: Any) -> None:
        """For each kv head [num_kv_heads][head_dim][head_dim], float32 on the host: codes are of matrix times
        key, and queries meet them times the inverse transpose; for calibrated rotations. Copied.
        Raises InvalidState once a sequence holds tokens, InvalidArgument where there is no inverse."""
        layer = integer("layer", layer, ctypes.c_int32)
        shape = self._shape(layer)
        buffer = matrix_buffer(matrix, shape.num_kv_heads, shape.head_dim)
        handles = self._handles
        with handles.exclusive() as cache:
            check(handles.library, handles.library.tq_cache_set_key_matrix(cache, layer, buffer.pointer))
