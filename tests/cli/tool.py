# SPDX-License-Identifier: Apache-2.0
"""Runs the program tqkv for the tests, and writes the files that it reads. TQKV_TOOL names the program; else
the newest build*/tqkv."""
import json
import os
import struct
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SLICE = ROOT / "tests" / "data" / "kv_slice.safetensors"
EXIT_USAGE, EXIT_FILE, EXIT_CAPTURE, EXIT_LIBRARY, EXIT_OUTPUT = 2, 3, 4, 5, 6


def find_tool():
    named = os.environ.get("TQKV_TOOL")
    if named:
        return named
    found = [path for folder in ROOT.glob("build*") for path in (folder / "tqkv",) if path.is_file()]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def run(*arguments, **options):
    return subprocess.run([find_tool(), *map(str, arguments)],
                          capture_output=True,
                          text=True,
                          timeout=300,
                          **options)


def eval_json(path, *arguments):
    done = run("eval", path, "--json", "--quiet", "--repeats", 1, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def to_bfloat16(x):
    """uint16 bits, nearest even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encode_tensor(x, dtype):
    if dtype == "BF16":
        return to_bfloat16(x).tobytes()
    return np.asarray(x, {"F16": np.float16, "F32": np.float32, "F64": np.float64,
                          "I8": np.int8}[dtype]).tobytes()


def write_safetensors(path, tensors, dtype="F16", metadata=None):
    header, parts, at = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, array in tensors.items():
        data = encode_tensor(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(np.shape(array)), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    write_raw(path, header, b"".join(parts))
    return path


def write_raw(path, header, data, header_bytes=None):
    """header: an object, or the header's text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    Path(path).write_bytes(
        struct.pack("<Q",
                    len(text) if header_bytes is None else header_bytes) + text + data)
    return path


def make_capture(layers=(0,), kv_heads=1, q_heads=2, tokens=40, queries=4, dim=32, value_dim=None, seed=1):
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        tensors[f"layers.{layer}.key"] = random.standard_normal((kv_heads, tokens, dim))
        tensors[f"layers.{layer}.value"] = random.standard_normal((kv_heads, tokens, value_dim or dim))
        tensors[f"layers.{layer}.query"] = random.standard_normal((q_heads, queries, dim))
    return tensors


def read_slice():
    raw = SLICE.read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(raw[8 + size + begin:8 + size + end],
                                          np.float16).reshape(entry["shape"])
    return tensors
