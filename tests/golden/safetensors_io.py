# SPDX-License-Identifier: Apache-2.0
"""Smallest reader and writer of the safetensors layout: u64 header length, JSON header, data.

The public package is not used for writing because its metadata order is not fixed, and these files are
compared byte for byte. Tensors lie in order of falling element size, then name, so that each is aligned.
"""
import json
import struct

import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"),
    "U8": np.dtype("u1")
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def order(tensors):
    return sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))


def dump(tensors, metadata):
    """tensors {name: array}, metadata {str: str} -> bytes."""
    header, blocks, offset = {"__metadata__": metadata}, [], 0
    for name in order(tensors):
        array = np.ascontiguousarray(tensors[name])
        block = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {"dtype": NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(block)]}
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blocks)


def load(path):
    """-> (tensors, metadata)."""
    with open(path, "rb") as file:
        raw = file.read()
    size = struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + o for o in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[begin:end], dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata
