# SPDX-License-Identifier: Apache-2.0
"""merge_states: partial attention results into one."""
import ctypes
from typing import Any, Sequence as Many

from . import _ffi
from ._ffi import check
from .buffers import as_buffer, as_stream, dense, empty_like
from .errors import InvalidArgument

__all__ = ["merge_states"]


def merge_states(outs: Many[Any],
                 lses: Many[Any],
                 *,
                 out: Any = None,
                 lse: Any = None,
                 stream: Any = None) -> Any:
    """Merges partial results of the same rows, in order and in float32: context-parallel ranks, chunked
    prefill, history_only.

    outs   1 .. 1024 contiguous arrays [rows][dim], or [tokens][heads][dim], all of one type and on one device
    lses   as many float32 arrays [rows] or [tokens][heads]; an empty part has lse -inf and its out is not
           read
    out    written into (it may be one of outs); None: a new array like outs[0]
    lse    float32, written into; True: a new array; None: not wanted
    Returns out, or (out, lse) if lse was asked for.
    """
    library, stream, outs, lses = _ffi.load_library(), as_stream(stream), tuple(outs), tuple(lses)
    if len(outs) != len(lses) or not outs:
        raise InvalidArgument(f"outs, lses: {len(outs)} and {len(lses)} parts; there must be as many of "
                              "each, at least 1 (num_states)")
    first = as_buffer(outs[0], name="outs[0]", stream=stream)
    shape = first.shape
    if len(shape) < 2:
        raise InvalidArgument("outs[0]: must have 2 dimensions or more, the last one is dim")
    device, dtype = (first.device_type or _ffi.CPU, first.device_id or 0), _ffi.DTYPES[first.dtype]
    parts, sums = [], []  # buffers: held until the library has returned
    for i, (one, total) in enumerate(zip(outs, lses)):
        parts.append(_part(one, f"outs[{i}]", shape, dtype, device, stream))
        sums.append(_part(total, f"lses[{i}]", shape[:-1], 1, device, stream))
    if out is None:
        out, out_buffer = empty_like(first, shape, dtype, "out")
    else:
        out_buffer = as_buffer(out, name="out", stream=stream)
    dense(out_buffer, "out", shape, "the shape of outs[0]", dtype=dtype, device=device, writable=True)
    lse_pointer, asked = None, lse is not None and lse is not False
    if asked:
        if lse is True:
            lse, lse_buffer = empty_like(first, shape[:-1], 1, "lse")
        else:
            lse_buffer = as_buffer(lse, name="lse", stream=stream)
        lse_pointer = dense(lse_buffer, "lse", shape[:-1], "[rows]", dtype=1, device=device, writable=True)
    count = 1
    for extent in shape[:-1]:
        count *= extent
    check(library, library.tq_merge_states(len(parts), _pointers(parts), _pointers(sums), count, shape[-1],
                                           dtype, out_buffer.pointer, lse_pointer, *device, stream))
    return (out, lse) if asked else out


def _part(array, name, shape, dtype, device, stream):
    buffer = as_buffer(array, name=name, stream=stream)
    dense(buffer, name, shape, "the shape of the other parts", dtype=dtype, device=device)
    return buffer


def _pointers(buffers):
    return (ctypes.c_void_p * len(buffers))(*(b.pointer for b in buffers))
