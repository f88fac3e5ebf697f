# SPDX-License-Identifier: Apache-2.0
"""One exception class for every status of the library."""
from typing import Optional


class Error(Exception):
    """A call failed. `status`: the number (TQ_ERROR_...), or None if no library was involved; `text`: what
    the library said about it."""

    status: Optional[int] = None

    def __init__(self, text: str, status: Optional[int] = None):
        super().__init__(text)
        self.text = text
        if status is not None:
            self.status = status


class LibraryError(Error):
    """The shared library is missing, too old, too new, or not tqkv."""


class InvalidArgument(Error, ValueError):
    """A value is out of range or inconsistent; the text names the argument."""

    status = 1


class InvalidState(Error, RuntimeError):
    """Right arguments at the wrong moment: append without a plan in force, centres after an append, a closed
    cache, busy."""

    status = 2


class OutOfMemory(Error, MemoryError):
    """Host or device allocation failed."""

    status = 3


class CapacityError(Error):
    """max_tokens, max_sequences or a batch limit is used up; nothing has changed."""

    status = 4


class NotSupported(Error):
    """Valid, but not in this build or not for this configuration."""

    status = 5


class NoDevice(Error):
    """No such device."""

    status = 6


class DriverError(Error):
    """The CUDA driver is absent or too old."""

    status = 7


class CudaError(Error):
    """A CUDA call failed; the text has the CUDA error's name."""

    status = 8


class VersionError(Error):
    """A struct uses a field that this library does not know."""

    status = 9


class CorruptData(Error):
    """Saved bytes fail their checks."""

    status = 10


class Incompatible(Error):
    """Saved bytes are of another format, geometry or codebook."""

    status = 11


class WorkspaceTooSmall(Error, ValueError):
    """The text says how many bytes are needed."""

    status = 12


class CaptureError(Error):
    """Not allowed while the stream is being captured."""

    status = 13


class IoError(Error):
    """Reading or writing failed."""

    status = 14


class InternalError(Error):
    """A bug in the library."""

    status = 99


BY_STATUS = {
    c.status: c
    for c in list(globals().values()) if isinstance(c, type) and issubclass(c, Error) and c.status is not None
}


def make(status, text):
    """The exception of a status; of class Error for a status that this package does not know."""
    return BY_STATUS.get(status, Error)(text, status)
