#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts kv_slice.safetensors out of the full capture of the test model: layers 0 2 4 6, the last 448 tokens,
the last 16 queries.

    python3 tests/data/cut_slice.py FULL_CAPTURE [OUTPUT] [--check]

The queries are those of the last positions, so a slice must end where the capture ends. --check compares
instead of writing.
"""
import json
import struct
import sys
from pathlib import Path

LAYERS = (0, 2, 4, 6)
TOKENS, QUERIES = 448, 16
HALF_BYTES = 2


def tail_rows(data, shape, rows):
    """The last `rows` of the second axis of a float16 tensor [heads, n, dim]."""
    heads, count, dim = shape
    row_bytes = dim * HALF_BYTES
    return b"".join(data[(head * count + count - rows) * row_bytes:(head + 1) * count * row_bytes]
                    for head in range(heads))


def cut(raw):
    (header_bytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + header_bytes])
    data = raw[8 + header_bytes :]
    entries, parts, at = {}, [], 0
    for layer in LAYERS:
        for part, rows in (("key", TOKENS), ("query", QUERIES), ("value", TOKENS)):
            name = f"layers.{layer}.{part}"
            entry = header[name]
            assert entry["dtype"] == "F16", name
            begin, end = entry["data_offsets"]
            piece = tail_rows(data[begin:end], entry["shape"], rows)
            entries[name] = {
                "dtype": "F16", "shape": [entry["shape"][0], rows, entry["shape"][2]],
                "data_offsets": [at, at + len(piece)]
            }
            parts.append(piece)
            at += len(piece)
    metadata = {
        "layout": "head, token, dim", "rope": "applied", "tokens": str(TOKENS),
        "source": "last 448 of 1024 tokens"
    }
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if not 1 <= len(arguments) <= 2:
        sys.exit(__doc__)
    target = Path(
        arguments[1]) if len(arguments) == 2 else Path(__file__).resolve().parent / "kv_slice.safetensors"
    made = cut(Path(arguments[0]).read_bytes())
    if "--check" in sys.argv:
        sys.exit(0 if target.read_bytes() ==
                 made else f"{target} is not what this script cuts out of {arguments[0]}")
    target.write_bytes(made)


if __name__ == "__main__":
    main()
