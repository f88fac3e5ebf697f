# SPDX-License-Identifier: Apache-2.0
"""The arguments of an attend call: arrays compared with the shapes that a step has, and tq_attend_params.

Batch and PagedStep attend alike; what they know apart is how many query rows there are, and when.
"""
import ctypes

from . import _abi, _ffi
from .buffers import BITS, FLOAT32, RANGES, as_buffer, dense, empty_like, rows
from .config import choice, integer, real

# Element types, as C has them, and shape of what attend takes beside q.
_MASKS = {
    "sink_logits": (FLOAT32, ctypes.c_float, "[num_q_heads]"),
    "visible_begin": (RANGES, ctypes.c_int32, "[query tokens]"),
    "visible_end": (RANGES, ctypes.c_int32, "[query tokens]"),
    "tree_mask": (BITS, ctypes.c_uint64, "[query tokens][words]"),
    "alibi_slopes": (FLOAT32, ctypes.c_float, "[num_q_heads]")
}


class AttendArguments:
    """Made from what the caller gave; `bind` completes it once the number of rows is known.

    shape   what arrays of the layer are compared with
    params  tq_attend_params
    result  what the call returns: out, or (out, lse)
    """

    def __init__(self, shape, q, out, lse, out_dtype, stream, softmax_scale, logit_softcap, sliding_window,
                 history_only, masks):
        self.shape = shape
        self._q = as_buffer(q, name="q", stream=stream)
        self._dtype = shape.io_dtype if out_dtype is None else choice("out_dtype", out_dtype, _ffi.DTYPES)
        self.params = _abi.AttendParams(out_dtype=self._dtype,
                                        softmax_scale=real("softmax_scale", softmax_scale),
                                        logit_softcap=real("logit_softcap", logit_softcap),
                                        sliding_window=integer("sliding_window", sliding_window,
                                                               ctypes.c_int64),
                                        history_only=integer("history_only", history_only, ctypes.c_int32))
        self._masks = {name: as_buffer(array, name=name, stream=stream, takes=_MASKS[name][0])
                       for name, array in masks.items() if array is not None}
        self._wanted = lse is not None and lse is not False
        self._new_lse = lse is True
        self._results = [out, None if self._new_lse or not self._wanted else lse]
        self._buffers = [None if array is None else as_buffer(array, name=name, stream=stream)
                         for name, array in zip(("out", "lse"), self._results)]

    @property
    def result(self):
        return tuple(self._results) if self._wanted else self._results[0]

    def bind(self, tokens):
        """Addresses of q, out and lse for `tokens` rows. None: there is no plan, or such a layer, and the
        library refuses the call with its own text."""
        self._pass_masks(tokens)
        c = self.shape
        if tokens is not None and c.exists and self._dtype in _ffi.DTYPE_NAMES:  # else: likewise
            shape = (tokens, c.num_q_heads, c.value_dim)
            self.params.q_token_stride, self.params.q_head_stride = rows(
                self._q, "q", (tokens, c.num_q_heads, c.head_dim), "[query tokens][num_q_heads][head_dim]",
                dtype=c.io_dtype, device=c.device)
            if self._results[0] is None:
                self._results[0], self._buffers[0] = empty_like(self._q, shape, self._dtype, "out")
            if self._new_lse:
                self._results[1], self._buffers[1] = empty_like(self._q, shape[:2], 1, "lse")
            self.params.out_token_stride, self.params.out_head_stride = rows(
                self._buffers[0], "out", shape, "[query tokens][num_q_heads][value_dim]", dtype=self._dtype,
                device=c.device, writable=True)
            if self._wanted:
                dense(self._buffers[1], "lse", shape[:2], "[query tokens][num_q_heads]", dtype=1,
                      device=c.device, writable=True)
        return [self._q.pointer] + [None if buffer is None else buffer.pointer for buffer in self._buffers]

    def _pass_masks(self, tokens):
        """Arrays that say something of heads or of query tokens: checked, and their addresses in params."""
        c, masks = self.shape, self._masks
        words = max(1, masks["tree_mask"].size // tokens) if tokens and "tree_mask" in masks else 1
        shapes = {"[num_q_heads]": (c.num_q_heads, ), "[query tokens]": (tokens, ),
                  "[query tokens][words]": (tokens, words)}
        for name, buffer in masks.items():
            _, element, meaning = _MASKS[name]
            if tokens is not None and c.exists:
                dense(buffer, name, shapes[meaning], meaning, dtype=None, device=c.device)
            setattr(self.params, name, ctypes.cast(buffer.pointer, ctypes.POINTER(element)))
        self.params.tree_words = words if "tree_mask" in masks else 0
