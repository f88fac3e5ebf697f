# SPDX-License-Identifier: Apache-2.0
"""Calibration: centres, key bands and bits for each layer, from prompts of the model's own kind (tqkv.h,
section 11)."""
import ctypes
import dataclasses
from typing import Any, Optional, Tuple, Union

from . import _abi, _ffi
from ._ffi import DTYPES, check
from ._handles import Opened
from ._shapes import matrix_buffer
from .buffers import as_buffer, as_stream, dense
from .config import _FAMILIES, Layer, choice, integer, real
from .state import _Io, replacing

__all__ = ["Calibration", "Choice"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What Calibration.choose found. layers: for Config(layers=..). error: of held-out logits (variance) and
    values (relative), on average over layers; uniform_error: without bands. token_bytes: over all layers."""

    layers: Tuple[Layer, ...]
    banded_layers: int
    raw_layers: int
    error: float
    uniform_error: float
    token_bytes: int


class Calibration(Opened):
    """calibration = Calibration(num_layers, num_q_heads, num_kv_heads, head_dim); feed it q, k, v of each
    layer, 256 tokens of each at least; then

        found = calibration.choose(key_bits=3, value_bits=3)
        cache = tqkv.Cache(layers=found.layers, num_q_heads=.., num_kv_heads=.., head_dim=.., max_tokens=..)
        calibration.set_centres(cache)

    A fourth of what is fed is held out, and decides whether a layer gets bands: only where they make the
    error of its logits smaller by 2 %. Tokens are not kept, but for held_out_tokens (0 = 128) of each layer.
    turn_keys: layers also get key matrices of the calibration's own (Cache.set_key_matrix), where these do as
    much.
    """

    def __init__(self, num_layers: int, num_q_heads: int, num_kv_heads: int, head_dim: int, *,
                 value_dim: int = 0, io_dtype: Union[str, int] = "float32", key_family: Union[str, int] = 0,
                 value_family: Union[str, int] = 0, held_out_tokens: int = 0, turn_keys: bool = False):
        self._library = _ffi.load_library()
        numbers = {"num_layers": num_layers, "num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads,
                   "head_dim": head_dim, "value_dim": value_dim, "held_out_tokens": held_out_tokens}
        c = _abi.CalibrationConfig(
            io_dtype=choice("io_dtype", io_dtype, DTYPES),
            key_family=choice("key_family", key_family, _FAMILIES),
            value_family=choice("value_family", value_family, _FAMILIES), turn_keys=bool(turn_keys),
            **{name: integer(name, value, ctypes.c_int32) for name, value in numbers.items()})
        handle = _abi.CalibrationHandle()
        check(self._library, self._library.tq_calibration_create(c, handle))
        self._own(self._library, handle, None, "calibration")
        self._shape()

    def _shape(self):
        c = _abi.CalibrationConfig()
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_get_config(handle, c))
        self._c = c

    num_layers = property(lambda self: self._c.num_layers)
    num_q_heads = property(lambda self: self._c.num_q_heads)
    num_kv_heads = property(lambda self: self._c.num_kv_heads)
    head_dim = property(lambda self: self._c.head_dim)
    value_dim = property(lambda self: self._c.value_dim)

    def feed(self, layer: int, q: Any, k: Any, v: Any, *, stream: Any = None) -> None:
        """Tokens of a layer after RoPE: q [n][num_q_heads][head_dim], k [n][num_kv_heads][head_dim], v
        [n][num_kv_heads][value_dim] of io_dtype, dense, all on the host or on one CUDA device. stream: None,
        an int, or a torch or CuPy stream, whose work so far comes first; the call waits for it."""
        c, stream = self._c, as_stream(stream)
        q = as_buffer(q, name="q", stream=stream)
        rows, device = q.shape[0] if q.shape else 0, (q.device_type or _ffi.CPU, q.device_id or 0)
        sides = [(q, "q", c.num_q_heads, c.head_dim),
                 (as_buffer(k, name="k", stream=stream), "k", c.num_kv_heads, c.head_dim),
                 (as_buffer(v, name="v", stream=stream), "v", c.num_kv_heads, c.value_dim)]
        for buffer, name, heads, dim in sides:
            dense(buffer, name, (rows, heads, dim), f"[n][{heads}][{dim}]", dtype=c.io_dtype, device=device)
        pointers = [buffer.pointer for buffer, _, _, _ in sides]
        layer = integer("layer", layer, ctypes.c_int32)
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_feed_from(handle, layer, rows, *pointers,
                                                                        *device, stream))

    def set_key_matrix(self, layer: int, matrix: Any) -> None:
        """As Cache.set_key_matrix, in front of the layer's first tokens; kept in the file, and set with the
        centres. Bits and bands are then measured of keys as the matrix turns them."""
        buffer = matrix_buffer(matrix, self.num_kv_heads, self.head_dim)
        layer = integer("layer", layer, ctypes.c_int32)
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_set_key_matrix(handle, layer, buffer.pointer))

    def choose(self, key_bits: float = 0, value_bits: int = 0, *, max_error: float = 0,
               outlier: float = 0) -> Choice:
        """key_bits 2, 2.5, 3, 3.5 or 4, and value_bits 2, 3 or 4, for all layers; or max_error, to be reached
        with the fewest bytes. outlier (0 = 4): layers whose median key is longer than this many times that of
        the median layer keep 16 bits."""
        goal = _abi.CalibrationGoal(key_bits=real("key_bits", key_bits),
                                    max_error=real("max_error", max_error),
                                    value_bits=integer("value_bits", value_bits, ctypes.c_int32),
                                    outlier=real("outlier", outlier))
        layers, found = (_abi.LayerConfig * self.num_layers)(), _abi.CalibrationResult()
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_choose(handle, goal, layers, self.num_layers,
                                                                     found))
            for layer in layers:  # what the bands are read by
                layer.num_kv_heads, layer.head_dim = self.num_kv_heads, self.head_dim
            chosen = tuple(Layer._of(layer) for layer in layers)
        return Choice(chosen, found.banded_layers, found.raw_layers, found.error, found.uniform_error,
                      found.token_bytes)

    def set_centres(self, cache: Any) -> None:
        """Cache.set_centres of all layers, and set_key_matrix of those that have one."""
        with self._handles.exclusive() as handle, cache._handles.exclusive() as own:
            check(self._library, self._library.tq_calibration_set_centres(handle, own))

    def centres(self, layer: int) -> Tuple[bytes, bytes]:
        """Key and value centres of a layer as bytes of float32 [num_kv_heads][dim]."""
        sides = [(ctypes.c_float * (self.num_kv_heads * dim))() for dim in (self.head_dim, self.value_dim)]
        layer = integer("layer", layer, ctypes.c_int32)
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_centres(handle, layer, *sides))
        return bytes(sides[0]), bytes(sides[1])

    def key_matrix(self, layer: int) -> Optional[bytes]:
        """A layer's matrices, given or found, as bytes of float32 [num_kv_heads][head_dim][head_dim]; None:
        it has none. With turn_keys as choose: InvalidState before 256 tokens."""
        matrix = (ctypes.c_float * (self.num_kv_heads * self.head_dim * self.head_dim))()
        layer, has = integer("layer", layer, ctypes.c_int32), ctypes.c_int32()
        with self._handles.exclusive() as handle:
            check(self._library, self._library.tq_calibration_key_matrix(handle, layer, matrix, has))
        return bytes(matrix) if has.value else None

    def save(self, file: Any, *, mac: Optional[bytes] = None) -> None:
        """Into a path, whole or not at all, or a binary file."""
        with replacing(file) as target, self._handles.exclusive() as handle:
            io = _Io(target, False, mac)
            io.finish(self._library, self._library.tq_calibration_save(handle, io.c))

    @classmethod
    def load(cls, file: Any, *, mac: Optional[bytes] = None) -> "Calibration":
        """What save wrote. It takes no more tokens. Raises CorruptData, Incompatible."""
        self = cls.__new__(cls)
        self._library, handle = _ffi.load_library(), _abi.CalibrationHandle()
        with (file if hasattr(file, "read") else open(file, "rb")) as source:
            io = _Io(source, True, mac)
            io.finish(self._library, self._library.tq_calibration_load(io.c, handle))
        self._own(self._library, handle, None, "calibration")
        self._shape()
        return self
