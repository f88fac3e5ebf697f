# SPDX-License-Identifier: Apache-2.0
"""Every byte of every golden file changed, and every length that is too short: none is loaded, and the cache
holds what it held. By default each byte has one other value, TQKV_TEST_LONG all 255 of them (16.5 million
loads). Through the C interface: an exception for each would take longer than all loads."""
import ctypes
import io
import os
from pathlib import Path

import pytest
import tqkv
from tqkv import _abi

from golden import FILES

GOLDEN = Path(__file__).resolve().parent / "golden"
CORRUPT, INCOMPATIBLE = tqkv.CorruptData.status, tqkv.Incompatible.status
# Version, number of layers and required features are believed before the header's checksum.
VERSION_AND_FEATURES = range(8, 24)


class Loads:
    """Loads of one piece of memory, which a test changes in between."""

    def __init__(self, cache, data):
        self.library, self.cache, self.number = cache._handles.library, cache, ctypes.c_int64()
        self.bytes = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
        self.start, self.end, self.at = ctypes.addressof(self.bytes), len(data), 0
        self.c_io = _abi.Io()
        self.c_io.read = _abi.READ_FUNCTION(self.read)

    def read(self, _, address, count):
        at, self.at = self.at, self.at + count
        if self.at > self.end:
            return 1
        ctypes.memmove(address, self.start + at, count)
        return 0

    def __call__(self, handle):
        self.at, self.number.value = 0, 5
        status = self.library.tq_sequence_load(handle, self.c_io, None, self.number)
        return status, self.number.value


def others(at, right):
    """Values of a byte that is `right`."""
    if os.environ.get("TQKV_TEST_LONG"):
        return [value for value in range(256) if value != right]
    return [(right + 1 + (97 * at) % 255) % 256]


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_byte_of_golden_files(name):
    data = (GOLDEN / f"{name}.tqkv").read_bytes()
    world, taken, tried = FILES[name](), [], 0
    loads = Loads(world.cache, data)
    with world.cache._handles.exclusive() as handle:
        for at, right in enumerate(data):
            for value in others(at, right):
                loads.bytes[at] = value
                status, number = loads(handle)
                refused = status == CORRUPT or status == INCOMPATIBLE and at in VERSION_AND_FEATURES
                if not refused or number != 5:
                    taken.append((at, value, status))
                tried += 1
            loads.bytes[at] = right
        for length in range(len(data)):
            loads.end = length
            if loads(handle) != (CORRUPT, 5):
                taken.append((length, ))
            tried += 1
        assert taken == []
        loads.end = len(data)
        status, number = loads(handle)
    assert status == 0 and number != 5
    assert world.cache.memory().num_sequences == 2  # the one that wrote the file, and the last
    file = io.BytesIO()
    world.cache.save(world.sequence, file)
    assert file.getvalue() == data
    print(f"{name}: {tried} loads of a file of {len(data)} bytes that was changed or cut short, none taken")
    world.close()
