# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for array libraries that are not installed: they show NumPy memory through one protocol each."""
import ctypes

import numpy as np
from tqkv import _dlpack

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.argtypes, _new_capsule.restype = [ctypes.c_void_p, ctypes.c_char_p,
                                               ctypes.c_void_p], ctypes.py_object
_CODES = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "uint16": (1, 16), "int32": (0, 32),
          "uint64": (1, 64)}


class Dlpack:
    """Only __dlpack__ and __dlpack_device__, built by hand. Counts how often its deleter ran; remembers which
    stream it was told."""
    def __init__(self,
                 array,
                 dtype,
                 *,
                 versioned=True,
                 device=(1, 0),
                 read_only=False,
                 byte_offset=0,
                 keep_strides=True,
                 major=1):
        self.array, self.dtype, self.versioned, self.device = array, dtype, versioned, device
        self.read_only = read_only
        self.byte_offset, self.keep_strides, self.major = byte_offset, keep_strides, major
        self.deleted, self.stream, self.exports = 0, "not told", []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream="not told", **more):
        if more and not self.versioned:
            raise TypeError("unexpected keyword max_version")
        self.stream = stream
        a = self.array
        shape = (ctypes.c_int64 * a.ndim)(*a.shape)
        strides = (ctypes.c_int64 * a.ndim)(*(s // a.itemsize for s in a.strides))
        code, bits = _CODES[self.dtype]
        pointer = ctypes.POINTER(ctypes.c_int64)
        tensor = _dlpack.DLTensor(a.ctypes.data - self.byte_offset, *self.device, a.ndim, code, bits, 1,
                                  ctypes.cast(shape, pointer),
                                  ctypes.cast(strides, pointer) if self.keep_strides else None,
                                  self.byte_offset)

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def deleter(address):
            self.deleted += 1

        function = ctypes.cast(deleter, ctypes.c_void_p)
        if self.versioned:
            managed, name = _dlpack.DLManagedTensorVersioned(self.major, 0, None, function,
                                                             int(self.read_only),
                                                             tensor), b"dltensor_versioned"
        else:
            managed, name = _dlpack.DLManagedTensor(tensor, None, function), b"dltensor"
        self.exports.append((managed, shape, strides, deleter))
        return _new_capsule(ctypes.addressof(managed), name, None)


class CudaArray:
    """Only __cuda_array_interface__, version 3. The memory is the host's, so it may be described but not
    used."""

    def __init__(self, array, stream=None, device_id=0):
        self.array, self.stream = array, stream
        self.device = type("Device", (), {"id": device_id})()

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "version": 3, "stream": self.stream}


class Torch:
    """The attributes of a torch tensor that as_buffer looks at."""

    def __init__(self, array, dtype, device=("cpu", None)):
        self.array, self.dtype, self.shape = array, f"torch.{dtype}", array.shape
        self.device = type("Device", (),
                           {"type": device[0], "index": device[1], "__str__": lambda s: s.type})()
        self.layout = "torch.strided"

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def get_device(self):
        return 0


class Stream:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def bfloat16_bits(array):
    """Nearest even."""
    u = np.asarray(array, dtype=np.float32).view(np.uint32)
    return ((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16)


def exchange_type(*, stream=0, major=1):
    """A class whose instances show an array by DLPack's C exchange API, and remember the calls."""

    class Exchanged(Dlpack):
        calls = []

        def __dlpack__(self, **arguments):
            self.calls.append("capsule")
            return super().__dlpack__(**arguments)

    def export(array, out):
        array.calls.append("export")
        capsule = Dlpack.__dlpack__(array, max_version=(1, 0))
        address = _dlpack._get_pointer(capsule, b"dltensor_versioned")
        ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = address
        return 0

    def now(device_type, device_id, out):
        ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = stream
        return 0

    number, pointer = ctypes.c_int32, ctypes.c_void_p
    functions = (ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, pointer)(export),
                 ctypes.PYFUNCTYPE(ctypes.c_int, number, number, pointer)(now))
    address = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    api = _dlpack._ExchangeAPI(major, 3, None, None, address[0], None, None, address[1])
    Exchanged.kept = functions, api
    Exchanged.__dlpack_c_exchange_api__ = _new_capsule(ctypes.addressof(api), b"dlpack_exchange_api", None)
    return Exchanged
