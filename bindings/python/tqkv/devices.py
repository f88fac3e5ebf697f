# SPDX-License-Identifier: Apache-2.0
"""What library this is and which devices it sees."""
import ctypes
from typing import List

from . import _abi, _ffi
from ._ffi import check

__all__ = ["build_info", "devices", "library_path", "library_version"]


def library_path() -> str:
    """The file or the name that the library was loaded by."""
    return _ffi.load_library().path


def library_version() -> str:
    """Such as "0.1.0"."""
    return _ffi.load_library().tq_version().decode()


def build_info() -> str:
    """One line: version, compiler, CUDA architectures, SIMD paths, format version."""
    return _ffi.load_library().tq_build_info().decode()


def devices() -> List[_abi.DeviceInfo]:
    """Every device that a cache can be made on: the CPU, then the CUDA devices. Fields: device_type (1 CPU, 2
    CUDA), device_id, compute_major, compute_minor, num_units, memory_bytes, name (bytes)."""
    library, result = _ffi.load_library(), []
    for device_type in (_ffi.CPU, _ffi.CUDA):
        count = ctypes.c_int32()
        check(library, library.tq_device_count(device_type, count))
        for index in range(count.value):
            info = _abi.DeviceInfo()
            check(library, library.tq_device_get_info(device_type, index, info))
            result.append(info)
    return result
