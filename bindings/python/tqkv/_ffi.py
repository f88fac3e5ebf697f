# SPDX-License-Identifier: Apache-2.0
"""include/tqkv.h as ctypes: constants, structs, one table of every function, and how the library is found.

The tables are compared with the header by the tests, name by name and type by type, so nothing here may be
abbreviated.
"""
import ctypes
import os
from ctypes import c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

from .errors import LibraryError

SONAME = "libtqkv.so.0"
ENVIRONMENT = "TQKV_LIBRARY"

# ---- constants

CONSTANTS = {
    "TQ_VERSION_MAJOR": 0,
    "TQ_VERSION_MINOR": 1,
    "TQ_VERSION_PATCH": 0,
    "TQ_ABI_VERSION": 0,
    "TQ_OK": 0,
    "TQ_ERROR_INVALID_ARGUMENT": 1,
    "TQ_ERROR_INVALID_STATE": 2,
    "TQ_ERROR_OUT_OF_MEMORY": 3,
    "TQ_ERROR_CAPACITY": 4,
    "TQ_ERROR_NOT_SUPPORTED": 5,
    "TQ_ERROR_NO_DEVICE": 6,
    "TQ_ERROR_DRIVER": 7,
    "TQ_ERROR_CUDA": 8,
    "TQ_ERROR_VERSION": 9,
    "TQ_ERROR_CORRUPT_DATA": 10,
    "TQ_ERROR_INCOMPATIBLE": 11,
    "TQ_ERROR_WORKSPACE_TOO_SMALL": 12,
    "TQ_ERROR_CAPTURE": 13,
    "TQ_ERROR_IO": 14,
    "TQ_ERROR_INTERNAL": 99,
    "TQ_STRUCT_CACHE_CONFIG": 1,
    "TQ_STRUCT_CACHE_BYTES": 2,
    "TQ_STRUCT_CACHE_MEMORY": 3,
    "TQ_STRUCT_TENSOR_LAYOUT": 4,
    "TQ_STRUCT_ATTEND_PARAMS": 5,
    "TQ_STRUCT_DEVICE_INFO": 6,
    "TQ_STRUCT_CODEBOOK": 7,
    "TQ_STRUCT_ALLOCATOR": 8,
    "TQ_DEVICE_CPU": 1,
    "TQ_DEVICE_CUDA": 2,
    "TQ_F32": 1,
    "TQ_F16": 2,
    "TQ_BF16": 3,
    "TQ_ROTATION_HADAMARD": 1,
    "TQ_ROTATION_DENSE": 2,
    "TQ_SCALE_LS": 1,
    "TQ_SCALE_UNBIASED": 2,
    "TQ_SCALE_NORM": 3,
    "TQ_SCALE_PAPER": 4,
    "TQ_CODE_SCALAR": 1,
    "TQ_FLAG_NO_ZERO_ON_FREE": 1,
    "TQ_FLAG_NO_SCALE_SEARCH": 2,
    "TQ_NOTICED_NONFINITE": 1,
}
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}
DTYPE_BYTES = {1: 4, 2: 2, 3: 2}
CPU, CUDA = CONSTANTS["TQ_DEVICE_CPU"], CONSTANTS["TQ_DEVICE_CUDA"]


# ---- structs

class Struct(ctypes.Structure):
    """struct_size is set by the constructor; the other fields are zero unless given."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)

    def __repr__(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, *_ in self._fields_
                          if name not in ("struct_size", "reserved"))
        return f"{type(self).__name__}({shown})"


class DeviceInfo(Struct):
    _fields_ = [("struct_size", c_uint32), ("device_type", c_int32), ("device_id", c_int32),
                ("compute_major", c_int32), ("compute_minor", c_int32), ("num_units", c_int32),
                ("memory_bytes", c_int64), ("name", c_char * 128)]


class Codebook(Struct):
    _fields_ = [("struct_size", c_uint32), ("bits", c_int32), ("unit", c_float), ("magnitude", c_uint8 * 32)]


ALLOC_FUNCTION = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t, c_int32, c_int32)
FREE_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_size_t, c_int32, c_int32)


class Allocator(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("user", c_void_p),
                ("alloc", ALLOC_FUNCTION), ("free", FREE_FUNCTION)]


class CacheConfig(Struct):
    _fields_ = [("struct_size", c_uint32), ("device_type", c_int32), ("device_id", c_int32),
                ("num_layers", c_int32), ("num_q_heads", c_int32), ("num_kv_heads", c_int32),
                ("head_dim", c_int32), ("value_dim", c_int32), ("io_dtype", c_int32), ("key_bits", c_int32),
                ("value_bits", c_int32),
                ("code_family", c_int32), ("layer_key_bits", ctypes.POINTER(c_int32)),
                ("layer_value_bits", ctypes.POINTER(c_int32)), ("rotation", c_int32),
                ("key_scale_rule", c_int32), ("value_scale_rule", c_int32), ("page_size", c_int32),
                ("rotation_seed", c_uint64), ("key_codebook", ctypes.POINTER(Codebook)),
                ("value_codebook", ctypes.POINTER(Codebook)), ("max_tokens", c_int64),
                ("max_sequence_tokens", c_int64), ("max_sequences", c_int32),
                ("max_batch_sequences", c_int32), ("max_batch_tokens", c_int64), ("window_tokens", c_int32),
                ("sink_tokens", c_int32), ("rollback_tokens", c_int32), ("num_threads", c_int32),
                ("flags", c_uint64), ("allocator", ctypes.POINTER(Allocator)), ("pool", c_void_p),
                ("pool_bytes", c_int64)]


class CacheBytes(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("page_bytes", c_int64),
                ("raw_bytes", c_int64), ("table_bytes", c_int64), ("workspace_bytes", c_int64),
                ("device_bytes", c_int64), ("host_bytes", c_int64), ("num_pages", c_int64),
                ("token_bytes", c_int64), ("fp16_token_bytes", c_int64)]


class CacheMemory(Struct):
    _fields_ = [("struct_size", c_uint32), ("num_sequences", c_int32), ("tokens", c_int64),
                ("pages_used", c_int64), ("pages_total", c_int64), ("stored_bytes_used", c_int64),
                ("raw_bytes", c_int64), ("device_bytes", c_int64), ("host_bytes", c_int64),
                ("compression", c_double)]


class TensorLayout(Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("key_token_stride", c_int64),
                ("key_head_stride", c_int64), ("value_token_stride", c_int64), ("value_head_stride", c_int64)]


class AttendParams(Struct):
    _fields_ = [("struct_size", c_uint32), ("out_dtype", c_int32), ("softmax_scale", c_float),
                ("logit_softcap", c_float), ("sliding_window", c_int64),
                ("sink_logits", ctypes.POINTER(c_float)), ("history_only", c_int32), ("num_splits", c_int32),
                ("q_token_stride", c_int64), ("q_head_stride", c_int64), ("out_token_stride", c_int64),
                ("out_head_stride", c_int64)]


# C name -> (class, TQ_STRUCT_ id)
STRUCTS = {
    "tq_device_info_t": (DeviceInfo, "TQ_STRUCT_DEVICE_INFO"),
    "tq_codebook": (Codebook, "TQ_STRUCT_CODEBOOK"),
    "tq_allocator": (Allocator, "TQ_STRUCT_ALLOCATOR"),
    "tq_cache_config": (CacheConfig, "TQ_STRUCT_CACHE_CONFIG"),
    "tq_cache_bytes": (CacheBytes, "TQ_STRUCT_CACHE_BYTES"),
    "tq_cache_memory_t": (CacheMemory, "TQ_STRUCT_CACHE_MEMORY"),
    "tq_tensor_layout": (TensorLayout, "TQ_STRUCT_TENSOR_LAYOUT"),
    "tq_attend_params": (AttendParams, "TQ_STRUCT_ATTEND_PARAMS"),
}

# ---- functions: name -> (result, arguments)

# Distinct classes, so that a batch passed where a cache belongs is a TypeError and not a crash.
class CacheHandle(c_void_p):
    pass


class BatchHandle(c_void_p):
    pass


_P = ctypes.POINTER
Status, Sequence = c_int32, c_int64

FUNCTIONS = {
    "tq_status_name": (c_char_p, [Status]),
    "tq_last_error": (c_char_p, []),
    "tq_last_error_copy": (Status, [c_char_p, c_size_t, _P(c_size_t)]),
    "tq_version": (c_char_p, []),
    "tq_abi_version": (c_int32, []),
    "tq_build_info": (c_char_p, []),
    "tq_struct_size": (c_size_t, [c_int32]),
    "tq_device_count": (Status, [c_int32, _P(c_int32)]),
    "tq_device_info": (Status, [c_int32, c_int32, _P(DeviceInfo)]),
    "tq_cache_config_init": (Status, [_P(CacheConfig)]),
    "tq_cache_config_check": (Status, [_P(CacheConfig), c_char_p, c_size_t]),
    "tq_cache_config_bytes": (Status, [_P(CacheConfig), _P(CacheBytes)]),
    "tq_cache_create": (Status, [_P(CacheConfig), c_void_p, _P(CacheHandle)]),
    "tq_cache_destroy": (Status, [CacheHandle]),
    "tq_cache_get_config": (Status, [CacheHandle, _P(CacheConfig)]),
    "tq_cache_set_centres": (Status, [CacheHandle, c_int32, c_void_p, c_void_p]),
    "tq_cache_memory": (Status, [CacheHandle, _P(CacheMemory)]),
    "tq_cache_fingerprint": (Status, [CacheHandle, _P(c_uint64)]),
    "tq_cache_check": (Status, [CacheHandle, c_void_p, _P(c_uint64)]),
    "tq_sequence_create": (Status, [CacheHandle, _P(Sequence)]),
    "tq_sequence_free": (Status, [CacheHandle, Sequence, c_void_p]),
    "tq_sequence_fork": (Status, [CacheHandle, Sequence, c_void_p,
                                  _P(Sequence)]),
    "tq_sequence_truncate": (Status, [CacheHandle, Sequence, c_int64, c_void_p]),
    "tq_sequence_length": (Status, [CacheHandle, Sequence, _P(c_int64)]),
    "tq_sequence_flags": (Status, [CacheHandle, Sequence, _P(c_uint64)]),
    "tq_batch_create": (Status, [CacheHandle, _P(BatchHandle)]),
    "tq_batch_destroy": (Status, [BatchHandle]),
    "tq_batch_plan": (Status, [BatchHandle, c_int32,
                               _P(Sequence),
                               _P(c_int64),
                               _P(c_int64), c_void_p]),
    "tq_cache_append":
        (Status, [CacheHandle, c_int32, BatchHandle, c_void_p, c_void_p,
                  _P(TensorLayout), c_void_p]),
    "tq_cache_attend": (Status, [
        CacheHandle, c_int32, BatchHandle, c_void_p, c_void_p, c_void_p,
        _P(AttendParams), c_void_p, c_size_t, c_void_p
    ]),
    "tq_attend_workspace_bytes": (Status, [CacheHandle, BatchHandle, _P(c_size_t)]),
    "tq_merge_states": (Status, [
        c_int32,
        _P(c_void_p),
        _P(c_void_p), c_int64, c_int32, c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p
    ]),
    "tq_cache_read":
        (Status,
         [CacheHandle, c_int32, Sequence, c_int64, c_int64, c_void_p, c_void_p,
          _P(TensorLayout), c_void_p]),
}

# ---- loading


class Library:
    """The loaded library: every function of the header as an attribute, and the path it came from."""

    def __init__(self, path):
        self.path = path
        try:
            handle = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise LibraryError(f"cannot load {path}: {error}") from None
        missing = []
        for name, (result, arguments) in FUNCTIONS.items():
            try:
                function = getattr(handle, name)
            except AttributeError:
                missing.append(name)
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if len(missing) == len(FUNCTIONS):
            raise LibraryError(f"{path} is not the tqkv library: it has none of its functions")
        self._check_version(missing)

    def _check_version(self, missing):
        wanted, package = CONSTANTS["TQ_ABI_VERSION"], ".".join(
            str(CONSTANTS[f"TQ_VERSION_{part}"]) for part in ("MAJOR", "MINOR", "PATCH"))
        version = self.tq_version().decode() if "tq_version" not in missing else "unknown"
        about = f"{self.path} is tqkv {version}, and this Python package was made for {package}"
        if "tq_abi_version" not in missing and self.tq_abi_version() != wanted:
            raise LibraryError(
                f"{about}: ABI version {self.tq_abi_version()} instead of {wanted}; install library and package of one release"
            )
        if missing:
            raise LibraryError(f"{about}: it lacks {', '.join(missing)}; install a newer library")
        for name, (struct, number) in STRUCTS.items():
            size = self.tq_struct_size(CONSTANTS[number])
            # A newer library may know more fields at the end; it then takes ours as the older, shorter
            # struct.
            if size < ctypes.sizeof(struct):
                raise LibraryError(
                    f"{about}: its {name} has {size} bytes instead of {ctypes.sizeof(struct)}; install a newer library"
                )


def candidates(path=None):
    """(where it comes from, path) in the order of search. An explicit path and the environment variable are
    not fallen back from."""
    if path is not None:
        return [("the path given to tqkv.load_library", os.fspath(path))]
    if os.environ.get(ENVIRONMENT):
        return [(f"the environment variable {ENVIRONMENT}", os.environ[ENVIRONMENT])]
    beside = Path(__file__).resolve().parent / SONAME
    return ([("the package's own folder", str(beside))] if beside.exists() else []) + [
        ("the system's loader", SONAME)
    ]


_library = None


def load_library(path=None):
    """Loads the library and checks that it fits; later calls give the same one.

    Order: `path`, the environment variable TQKV_LIBRARY, a libtqkv.so.0 beside this package (as wheels have
    it), the system's loader. Raises LibraryError with what was tried, and on a second call with another path.
    """
    global _library
    if _library is not None:
        if path is not None and os.fspath(path) != _library.path:
            raise LibraryError(
                f"{_library.path} is loaded already, so {os.fspath(path)} cannot be: call load_library before anything else"
            )
        return _library
    origin, found = candidates(path)[0]
    try:
        _library = Library(found)
    except LibraryError as error:
        raise LibraryError(
            f"{error} (from {origin}). Install the tqkv library, or set {ENVIRONMENT} to the path of {SONAME}."
        ) from None
    return _library
