# SPDX-License-Identifier: Apache-2.0
"""DLPack tensors by ctypes: the capsules of versions 0 and 1, and the C functions of version 1.3's exchange
API, which a type shows as __dlpack_c_exchange_api__ and which take no Python call of the producer's. Layout:
dlpack.h of the DLPack project."""
import ctypes
import functools
import threading
from ctypes import (CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32,
                    c_uint64, c_void_p, py_object)

from ._ffi import CPU, CUDA
from .errors import InvalidArgument

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_TYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (1, 16): "uint16", (0, 16): "int16",
          (1, 8): "uint8", (0, 8): "uint8", (0, 32): "int32", (0, 64): "int64", (1, 64): "uint64"}
_READ_ONLY = 1
_MAX_VERSION = (1, 0)


class DLTensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
                ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)),
                ("strides", POINTER(c_int64)), ("byte_offset", c_uint64)]


class DLManagedTensor(ctypes.Structure):
    pass


DELETER = CFUNCTYPE(None, POINTER(DLManagedTensor))
DLManagedTensor._fields_ = [("dl_tensor", DLTensor), ("manager_ctx", c_void_p), ("deleter", c_void_p)]


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("manager_ctx", c_void_p), ("deleter", c_void_p),
                ("flags", c_uint64), ("dl_tensor", DLTensor)]


_DELETE = ctypes.PYFUNCTYPE(None, c_void_p)  # keeps the interpreter's lock, as at its end it must
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = [py_object, c_char_p], c_int
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = [py_object, c_char_p], c_void_p
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes, _set_name.restype = [py_object, c_char_p], c_int

# (capsule name, name of a consumed one, struct); the names must outlive the capsules
_KINDS = ((b"dltensor_versioned", b"used_dltensor_versioned", DLManagedTensorVersioned),
          (b"dltensor", b"used_dltensor", DLManagedTensor))

_claiming = threading.RLock()  # a capsule that two threads get is taken by one of them


class View:
    """A consumed capsule: its tensor is ours until this view goes, then the producer's deleter is called."""

    def __init__(self, managed, address, name):
        self._delete, self._address = managed.deleter, address
        t = managed.dl_tensor
        if isinstance(managed, DLManagedTensorVersioned) and managed.major != _MAX_VERSION[0]:
            raise InvalidArgument(f"{name}: DLPack version {managed.major}.{managed.minor} is not known here")
        self.dtype = _TYPES.get(
            (t.code,
             t.bits), f"DLPack type ({t.code}, {t.bits})") if t.lanes == 1 else f"vectors of {t.lanes}"
        self.shape = tuple(t.shape[i] for i in range(t.ndim))
        self.strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else None
        self.pointer = (t.data or 0) + t.byte_offset
        self.writable = not (isinstance(managed, DLManagedTensorVersioned) and managed.flags & _READ_ONLY)
        devices = {
            _CPU: (CPU, 0), _CUDA_HOST: (CPU, 0), _CUDA: (CUDA, t.device_id), _CUDA_MANAGED: (None, None)
        }
        if t.device_type not in devices:
            raise InvalidArgument(
                f"{name}: is on DLPack device type {t.device_type}; only the CPU and CUDA can be used")
        self.device = devices[t.device_type]

    def __del__(self):
        delete, self._delete = getattr(self, "_delete", None), None
        if delete:
            _DELETE(delete)(self._address)


def _request(array, stream, name):
    """The producer's capsule. CUDA producers are told our stream (1 = legacy default) and order their work
    before it."""
    on_cuda = array.__dlpack_device__()[0] in (_CUDA, _CUDA_MANAGED)
    arguments = {"stream": stream or 1} if on_cuda else {}
    try:
        try:
            return array.__dlpack__(max_version=_MAX_VERSION, **arguments)
        except TypeError:  # a producer from before version 1
            return array.__dlpack__(**arguments)
    except (BufferError, RuntimeError, ValueError) as error:
        raise InvalidArgument(f"{name}: gives no DLPack tensor: {error}") from None


class _ExchangeAPI(ctypes.Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("earlier", c_void_p), ("allocate", c_void_p),
                ("export", c_void_p), ("adopt", c_void_p), ("look", c_void_p), ("stream", c_void_p)]


class Exchange:
    """The functions of a type that are used here. Each raises what the producer raises.

    look(array, DLTensor)   fills it with what is the array's own; None if the type has no such function
    export(array, pointer)  a tensor that is ours until its deleter is called
    stream(device_type, device_id, pointer)   on which the producer works now; None likewise
    """

    def __init__(self, api):
        def function(address, *arguments):
            return ctypes.PYFUNCTYPE(c_int, *arguments)(address) if address else None
        self.look = function(api.look, py_object, POINTER(DLTensor))
        self.export = function(api.export, py_object, POINTER(c_void_p))
        self.stream = function(api.stream, c_int32, c_int32, POINTER(c_void_p))


@functools.lru_cache(maxsize=64)
def exchange(kind):
    """The Exchange of a type, None if it has none that is known here."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None or not _is_valid(capsule, b"dlpack_exchange_api"):
        return None
    api = _ExchangeAPI.from_address(_get_pointer(capsule, b"dlpack_exchange_api"))
    return Exchange(api) if api.major == _MAX_VERSION[0] else None


def look(array, types):
    """(pointer, dtype, shape, strides, device) of an array whose type shows how by the exchange API; None if
    it does not, or holds other than these types of elements on the CPU or a CUDA device."""
    functions = exchange(type(array))
    if functions is None or functions.look is None:
        return None
    t = DLTensor()
    try:
        functions.look(array, t)
    except Exception:  # the other ways say what is wrong
        return None
    code, bits, n = t.code, t.bits, t.ndim
    dtype = _TYPES.get((code, bits))
    if dtype not in types or t.lanes != 1 or (code, bits) == (0, 8) or t.device_type not in (_CPU, _CUDA):
        return None
    shape, strides = (tuple(t.shape[:n]), tuple(t.strides[:n])) if n else ((), ())
    device = (CPU, 0) if t.device_type == _CPU else (CUDA, t.device_id)
    return (t.data or 0) + t.byte_offset, dtype, shape, strides, device


def _exported(array, stream, name):
    """The View of an array by its type's C functions. None without them, and if the producer works on another
    stream, behind which only __dlpack__ can put us."""
    functions, address = exchange(type(array)), c_void_p()
    if functions is None or functions.export is None:
        return None
    try:
        failed = functions.export(array, address)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidArgument(f"{name}: gives no DLPack tensor: {error}") from None
    if failed or not address.value:
        return None
    view = View(DLManagedTensorVersioned.from_address(address.value), address.value, name)
    if view.device[0] != CPU:
        theirs = c_void_p()
        if view.device[0] is None or functions.stream is None or functions.stream(
                _CUDA, view.device[1], theirs) or (theirs.value or 0) != (stream or 0):
            return None
    return view


def import_tensor(array, stream, name):
    view = _exported(array, stream, name)
    if view is not None:
        return view
    capsule = _request(array, stream, name)
    for fresh, used, struct in _KINDS:
        with _claiming:
            address = _get_pointer(capsule, fresh) if _is_valid(capsule, fresh) else None
            if address:
                _set_name(capsule, used)
        if address:
            return View(struct.from_address(address), address, name)
    raise InvalidArgument(f"{name}: its __dlpack__ gave no fresh DLPack capsule")
