# SPDX-License-Identifier: Apache-2.0
"""The address behind any object with the buffer protocol, read-only ones too, which ctypes' from_buffer
refuses."""
import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_ssize_t, c_void_p, py_object


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the stable ABI."""

    _fields_ = [("buf", c_void_p), ("obj", c_void_p), ("len", c_ssize_t), ("itemsize", c_ssize_t),
                ("readonly", c_int), ("ndim", c_int), ("format", c_char_p), ("shape", POINTER(c_ssize_t)),
                ("strides", POINTER(c_ssize_t)), ("suboffsets", POINTER(c_ssize_t)), ("internal", c_void_p)]


# PyBUF_FORMAT | PyBUF_STRIDES; without PyBUF_INDIRECT, so suboffsets do not occur
_STRIDED_WITH_FORMAT = 0x0004 | 0x0018

_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes, _get.restype = [py_object, POINTER(_PyBuffer), c_int], c_int
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes, _release.restype = [POINTER(_PyBuffer)], None


class View:
    """Holds the exporter's buffer until the view goes: an array.array cannot be resized under it."""

    def __init__(self, exporter):
        self._view = _PyBuffer()
        self._held = False
        _get(exporter, byref(self._view), _STRIDED_WITH_FORMAT)  # raises as Python does
        self._held = True
        view = self._view
        self.pointer, self.writable = view.buf or 0, not view.readonly
        self.format = (view.format or b"B").decode()
        self.shape = tuple(view.shape[i] for i in range(view.ndim))
        if view.strides:
            self.strides = tuple(view.strides[i] for i in range(view.ndim))
        else:  # ctypes arrays leave them out, against the protocol: contiguous
            step, self.strides = view.itemsize, ()
            for extent in reversed(self.shape):
                self.strides = (step, *self.strides)
                step *= extent

    def __del__(self):
        if self._held:
            self._held = False
            _release(byref(self._view))
