# SPDX-License-Identifier: Apache-2.0
"""Quantizer: vectors on their own as records of 1-8 bits a coordinate, inner products with them, search.

    q = tqkv.Quantizer(dim=1536, bits=4)
    codes = q.encode(x)                                 # x [n][1536] float32 -> uint8 [n][q.code_bytes]
    scores, ids = q.search(queries, codes, k=10)        # largest inner products, best first
    y = q.rotate(x)                                     # the rotation alone

Arrays and errors are those of Cache; results are new arrays like the input unless one to write into is given.
Section 10 of tqkv.h is the manual. Calls of several threads run side by side. With device="cuda" all arrays
are the device's (torch, CuPy, anything with DLPack): calls take a stream, are enqueued there and return.
"""
import ctypes
from typing import Any, Optional, Sequence, Tuple, Union

from . import _abi, _ffi
from ._ffi import DTYPES, Noticed, check
from ._handles import Opened
from .buffers import BYTES, FLOAT32, Memory, as_buffer, as_stream, dense, empty_like
from .config import (_FAMILIES, _ROTATIONS, _SCALES, _SKETCH_RULES, _SKETCHES, Codebook, Levels, choice,
                     device_of, integer, real)
from .errors import InvalidArgument

__all__ = ["Levels", "Quantizer"]


class Quantizer(Opened):
    """Turns vectors [n][dim] into records uint8 [n][code_bytes], and back.

    dim          1 .. 8192
    bits         of a coordinate: "scalar" 1 .. 8, "prod" 2 .. 4 (its sign included), "grouped" 2, 3, 4, 8,
                 "levels" 1 .. 8
    family       "scalar" (TurboQuant_mse), "prod" (TurboQuant_prod), "grouped" (min/max of neighbours),
                 "levels" (your own)
    io_dtype     of vectors and queries: "float32", "float16", "bfloat16"
    rotation     "hadamard", or "dense" (dim up to 1536)
    scale_rule   "ls" (the default), "unbiased", "norm", "paper" (the default with levels)
    scale_search False: one quantisation step, as published, instead of the best of several
    group_size   of "grouped": 16, 32 or 64
    sketch       of "prod": "orthogonal" or "gaussian"; sketch_rule "unbiased" or "least_error"; sketch_factor
                 overrides the rule
    outliers     channels, rising, that get bits + 1 ("scalar" alone)
    codebook     Codebook, levels: Levels, of your own
    seed         of the rotation; num_threads 0: all
    device       "cpu", "cuda" or "cuda:N": where all arrays of its calls lie. Records and products are the
                 same on both. stream, of every call: None, an int, or a torch or CuPy stream; with encode's
                 noticed a CUDA call waits for it. calibrate_*: CPU only

    Raises InvalidArgument or NotSupported with every reason.
    """

    def __init__(self, dim: int, bits: int, *, family: Union[str, int] = "scalar",
                 io_dtype: Union[str, int] = "float32", rotation: Union[str, int] = 0,
                 scale_rule: Union[str, int] = 0, scale_search: bool = True, group_size: int = 0,
                 sketch: Union[str, int] = 0, sketch_rule: Union[str, int] = 0, sketch_factor: float = 0.0,
                 outliers: Sequence[int] = (), codebook: Optional[Codebook] = None,
                 levels: Optional[Levels] = None, seed: int = 0, num_threads: int = 0,
                 device: str = "cpu"):
        library = _ffi.load_library()
        self._device = device_of(device)
        c = _abi.QuantizerConfig(
            device_type=self._device[0], device_id=self._device[1],
            dim=integer("dim", dim, ctypes.c_int32), bits=integer("bits", bits, ctypes.c_int32),
            family=choice("family", family, _FAMILIES), io_dtype=choice("io_dtype", io_dtype, DTYPES),
            rotation=choice("rotation", rotation, _ROTATIONS),
            scale_rule=choice("scale_rule", scale_rule, _SCALES),
            group_size=integer("group_size", group_size, ctypes.c_int32),
            sketch=choice("sketch", sketch, _SKETCHES),
            sketch_rule=choice("sketch_rule", sketch_rule, _SKETCH_RULES),
            sketch_factor=real("sketch_factor", sketch_factor), num_outliers=len(outliers),
            num_threads=integer("num_threads", num_threads, ctypes.c_int32),
            seed=integer("seed", seed, ctypes.c_uint64),
            flags=0 if scale_search else _abi.CONSTANTS["TQ_FLAG_NO_SCALE_SEARCH"])
        keep = []  # lives until the library has copied it
        if len(outliers):
            keep.append((ctypes.c_int32 * len(outliers))(*(integer(f"outliers[{i}]", o, ctypes.c_int32)
                                                           for i, o in enumerate(outliers))))
            c.outlier_channels = ctypes.cast(keep[-1], type(c.outlier_channels))
        if codebook is not None:
            keep.append(codebook._to_c("codebook"))
            c.codebook = ctypes.pointer(keep[-1])
        if levels is not None:
            keep.extend(levels._to_c())
            c.levels = ctypes.pointer(keep[-2])
            if c.family == _FAMILIES["prod"] and not sketch_factor:
                c.sketch_factor = real("levels.sketch_factor", levels.sketch_factor)
        handle, info = _abi.QuantizerHandle(), _abi.QuantizerInfo()
        check(library, library.tq_quantizer_create(c, handle))
        self._own(library, handle, None, "quantizer")
        check(library, library.tq_quantizer_get_info(handle, info))
        self._info, self._dim, self._io_dtype, self._bits = info, c.dim, c.io_dtype, c.bits

    dim = property(lambda self: self._dim, doc="Coordinates of a vector.")
    bits = property(lambda self: self._bits, doc="Bits of a coordinate.")
    code_bytes = property(lambda self: self._info.code_bytes, doc="Bytes of a record, scales included.")
    rotated_dim = property(lambda self: self._info.rotated_dim,
                           doc="Coordinates of a rotated vector: dim and its padding.")
    fingerprint = property(lambda self: self._info.fingerprint,
                           doc="Equal: records mean the same.")
    sketch_factor = property(lambda self: self._info.sketch_factor, doc="In use; 0 without a sketch.")

    # ---- records

    def encode(self, x: Any, *, codes: Any = None, noticed: bool = False, stream: Any = None) -> Any:
        """x [n][dim] or [dim] -> codes uint8 [n][code_bytes] or [code_bytes]. With noticed: (codes, Noticed:
        whether x had NaN or infinity, or numbers beyond float16 in "grouped")."""
        stream = as_stream(stream)
        x, rows, one = self._vectors("x", x, stream)
        codes, buffer = self._out("codes", codes, x, _shape(rows, self.code_bytes, one), "uint8", BYTES,
                                  stream=stream)
        flags = ctypes.c_uint64()
        self._call("encode", x.pointer, rows, buffer.pointer, flags if noticed else None, stream=stream)
        return (codes, Noticed(flags.value)) if noticed else codes

    def decode(self, codes: Any, *, x: Any = None, stream: Any = None) -> Any:
        """codes [n][code_bytes] -> x [n][dim] of io_dtype."""
        stream = as_stream(stream)
        codes, rows, one = self._records(codes, stream)
        x, buffer = self._out("x", x, codes, _shape(rows, self.dim, one), self._io_dtype, stream=stream)
        self._call("decode", codes.pointer, rows, buffer.pointer, stream=stream)
        return x

    def inner_products(self, queries: Any, codes: Any, *, out: Any = None, stream: Any = None) -> Any:
        """queries [m][dim], codes [n][code_bytes] -> float32 [m][n], products with what codes decode to."""
        stream = as_stream(stream)
        queries, num_queries, _ = self._vectors("queries", queries, stream)
        codes, rows, _ = self._records(codes, stream)
        out, buffer = self._out("out", out, queries, (num_queries, rows), 1, FLOAT32, stream=stream)
        self._call("inner_products", queries.pointer, num_queries, codes.pointer, rows, buffer.pointer,
                   stream=stream)
        return out

    def search(self, queries: Any, codes: Any, k: int, *, bias: Any = None,
               stream: Any = None) -> Tuple[Any, Any]:
        """The k largest inner products of each query: (scores float32 [m][k], ids int64 [m][k]), best first;
        places without a record -infinity and -1. bias float32 [n] is added to the products: -|x|^2 / 2 ranks
        by distance."""
        stream = as_stream(stream)
        queries, num_queries, _ = self._vectors("queries", queries, stream)
        codes, rows, _ = self._records(codes, stream)
        k = integer("k", k, ctypes.c_int64)
        if bias is not None:
            bias = as_buffer(bias, name="bias", stream=stream, takes=FLOAT32)
            dense(bias, "bias", (rows, ), "[n]", dtype=1, device=self._device)
        scores, s = empty_like(queries, (num_queries, max(k, 0)), 1, "scores")
        ids, i = empty_like(queries, (num_queries, max(k, 0)), "int64", "ids")
        self._call("search", queries.pointer, num_queries, codes.pointer, rows,
                   None if bias is None else bias.pointer, k, s.pointer,
                   ctypes.cast(ctypes.c_void_p(i.pointer), ctypes.POINTER(ctypes.c_int64)), stream=stream)
        return scores, ids

    # ---- the rotation alone, calibration

    def rotate(self, x: Any, *, y: Any = None, stream: Any = None) -> Any:
        """x [n][dim] -> y float32 [n][rotated_dim], of the same lengths."""
        stream = as_stream(stream)
        x, rows, one = self._vectors("x", x, stream)
        y, buffer = self._out("y", y, x, _shape(rows, self.rotated_dim, one), 1, FLOAT32, stream=stream)
        self._call("rotate", x.pointer, rows, buffer.pointer, stream=stream)
        return y

    def unrotate(self, y: Any, *, x: Any = None, stream: Any = None) -> Any:
        """The inverse: y [n][rotated_dim] -> x [n][dim] of io_dtype."""
        stream = as_stream(stream)
        y = as_buffer(y, name="y", stream=stream, takes=FLOAT32)
        rows, one = self._rows("y", y, self.rotated_dim)
        x, buffer = self._out("x", x, y, _shape(rows, self.dim, one), self._io_dtype, stream=stream)
        self._call("unrotate", y.pointer, rows, buffer.pointer, stream=stream)
        return x

    def calibrate_sketch_factor(self, x: Any) -> float:
        """The sketch_factor of the least squared error over x [n][dim]."""
        x, rows, _ = self._vectors("x", x)
        factor = ctypes.c_float()
        self._call("sketch_factor", x.pointer, rows, ctypes.addressof(factor), prefix="tq_calibrate_")
        return factor.value

    def calibrate_levels(self, x: Any, bits: int) -> Tuple[Levels, float]:
        """Lloyd-Max levels of the rotated coordinates of x [n][dim], and the mean squared error of the
        rotated vectors relative to |x|^2."""
        x, rows, _ = self._vectors("x", x)
        bits = integer("bits", bits, ctypes.c_int32)
        count = 1 << bits if 1 <= bits <= 8 else 256
        levels, boundaries = (ctypes.c_float * count)(), (ctypes.c_float * count)()
        error = ctypes.c_double()
        self._call("levels", x.pointer, rows, bits, ctypes.addressof(levels), ctypes.addressof(boundaries),
                   error, prefix="tq_calibrate_")
        return Levels(tuple(levels), tuple(boundaries)[:-1]), error.value

    # ---- arguments

    def _call(self, name, *arguments, prefix="tq_quantizer_", stream=0):
        with self._handles.shared(_nothing) as quantizer:
            library = self._handles.library
            check(library, getattr(library, prefix + name)(quantizer, *arguments, stream))

    def _rows(self, name, buffer, width):
        one = len(buffer.shape) == 1
        rows = 1 if one else buffer.shape[0]
        dense(buffer, name, (width, ) if one else (rows, width), f"[n][{width}]", dtype=None,
              device=self._device)
        return rows, one

    def _vectors(self, name, array, stream=0):
        buffer = as_buffer(array, name=name, stream=stream)
        if DTYPES[buffer.dtype] != self._io_dtype:
            raise InvalidArgument(f"{name}: has {buffer.dtype} elements, expected "
                                  f"{_ffi.DTYPE_NAMES[self._io_dtype]} (io_dtype)")
        return (buffer, *self._rows(name, buffer, self.dim))

    def _records(self, array, stream):
        buffer = as_buffer(array, name="codes", stream=stream, takes=BYTES)
        return (buffer, *self._rows("codes", buffer, self.code_bytes))

    def _out(self, name, array, like, shape, dtype, takes=None, stream=0):
        """The caller's array, checked, or a new one."""
        if array is None:
            return empty_like(like, shape, dtype, name)
        buffer = as_buffer(array, name=name, stream=stream, **({} if takes is None else {"takes": takes}))
        dense(buffer, name, shape, str(list(shape)), dtype=dtype if takes is None else None,
              device=self._device, writable=True)
        return array, buffer


def _shape(rows, width, one):
    return (width, ) if one else (rows, width)


_nothing = Memory(0, 0, None, None, True, None)
