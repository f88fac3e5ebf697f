# SPDX-License-Identifier: Apache-2.0
"""tqkv: a KV cache held as 2-8 bit TurboQuant codes, and attention straight on the codes.

    import numpy as np, tqkv

    with tqkv.Cache(num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=128, key_bits=4, value_bits=3,
    max_tokens=8192) as cache:
        sequence = cache.sequence()
        step = cache.batch()
        k, v = (np.random.randn(100, 2, 128).astype("float32") for _ in "kv")
        step.plan([sequence], new_tokens=[100], query_tokens=[1])
        for layer in range(2):
            step.append(layer, k, v)
            out = step.attend(layer, np.random.randn(1, 8, 128).astype("float32"))

Arrays: NumPy, torch, DLPack, __cuda_array_interface__, the buffer protocol; this package imports none of
them. The library is found by TQKV_LIBRARY, beside this package, or by the system's loader, at the first use;
see load_library. The manual of every call is tqkv.h; `python -m tqkv` says what is installed.
"""
from . import errors
from ._abi import CONSTANTS
from ._ffi import Noticed, load_library
from .buffers import Buffer, as_buffer, as_stream
from .batch import Batch, Rows
from .cache import Cache
from .calibration import Calibration, Choice
from .config import Codebook, Config, KeyBands, Layer
from .devices import build_info, devices, library_path, library_version
from .errors import (CapacityError, CaptureError, CorruptData, CudaError, DriverError, Error, Incompatible,
                     InternalError, InvalidArgument, InvalidState, IoError, LibraryError, NoDevice,
                     NotSupported, OutOfMemory, VersionError, WorkspaceTooSmall)
from .merge import merge_states
from .paged import PagedCodec, PagedStep, Pages
from .prefix import prefix_keys
from .quantizer import Levels, Quantizer
from .sequence import Sequence
from .state import State

__version__ = ".".join(str(CONSTANTS[f"TQ_VERSION_{part}"]) for part in ("MAJOR", "MINOR", "PATCH"))

__all__ = [
    "Batch", "Buffer", "CONSTANTS", "Cache", "Calibration", "CapacityError", "CaptureError", "Choice",
    "Codebook", "Config", "CorruptData", "CudaError", "DriverError", "Error", "Incompatible", "InternalError",
    "InvalidArgument", "InvalidState", "IoError", "KeyBands", "Layer", "Levels", "LibraryError", "NoDevice",
    "NotSupported", "Noticed", "OutOfMemory", "PagedCodec", "PagedStep", "Pages", "Quantizer", "Rows",
    "Sequence", "State", "VersionError", "WorkspaceTooSmall", "as_buffer", "as_stream", "build_info",
    "devices", "errors", "library_path", "library_version", "load_library", "merge_states", "prefix_keys"
]
