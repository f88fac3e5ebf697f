#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a call from Python costs: the C function with arguments made beforehand, the package's Batch, and the
operators of tqkv.torch, each beside the others in one run. Prints JSON.

    python_calls.py [--quick] [--device cpu|cuda]      TQKV_LIBRARY names the library

Microseconds of the calling thread for one call, in the fastest of several rounds. One token of the smallest
cache, so that on the CPU little of it is work; on CUDA nothing waits for the device. "overhead" is what a way
adds to the C function. "plan of N": a step of N sequences that get a token each.
"""
import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
import tqkv  # noqa: E402
import tqkv.torch  # noqa: E402
from tqkv import _abi  # noqa: E402

Q_HEADS, DIM = 2, 64  # and one kv head
PLANS = (1, 64, 256, 1024)  # sequences of a step


def microseconds(call, calls, rounds):
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, time.thread_time() - begin)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return best / calls * 1e6


def ways(device, cache, batch, k, v, q, out):
    """{call: {way: function}}."""
    library, bound = tqkv.load_library(), tqkv.torch.bind(batch)
    stream = torch.cuda.current_stream() if device == "cuda" else None
    number = stream.cuda_stream if stream else 0
    layout, params, handle = _abi.TensorLayout(), _abi.AttendParams(), cache._handles.cache
    layout, params = ctypes.byref(layout), ctypes.byref(params)
    pointers = [x.data_ptr() for x in (k, v, q, out)]
    append = (handle, 0, batch._handle, *pointers[:2], layout, number)
    attend = (handle, 0, batch._handle, *pointers[2:], None, params, None, 0, number)
    return {
        "append": {
            "c": lambda: library.tq_cache_append(*append),
            "package": lambda: batch.append(0, k, v, stream=stream),
            "operators": lambda: bound.append(0, k, v),
        },
        "attend": {
            "c": lambda: library.tq_cache_attend(*attend),
            "package": lambda: batch.attend(0, q, stream=stream),
            "operators": lambda: bound.attend(0, q),
        },
        "attend into out": {
            "c": lambda: library.tq_cache_attend(*attend),
            "package": lambda: batch.attend(0, q, out=out, stream=stream),
            "operators": lambda: bound.attend(0, q, out=out),
        },
    }


def plans(device, count, calls, rounds):
    """Microseconds of a plan of so many sequences, by C and by the package."""
    with tqkv.Cache(num_layers=1, num_q_heads=Q_HEADS, num_kv_heads=1, head_dim=DIM, key_bits=4, value_bits=4,
                    max_tokens=count * (64 + 2 * calls * rounds), max_sequences=count,
                    max_batch_sequences=count, max_batch_tokens=count, device=device,
                    num_threads=1) as cache:
        batch, sequences = cache.batch(), [cache.sequence() for _ in range(count)]
        ids = (ctypes.c_int64 * count)(*(sequence.id for sequence in sequences))
        ones, plan = (ctypes.c_int64 * count)(*[1] * count), tqkv.load_library().tq_batch_plan
        stream = torch.cuda.current_stream() if device == "cuda" else None
        number, tokens = stream.cuda_stream if stream else 0, [1] * count
        functions = {"c": lambda: plan(batch._handle, count, ids, ones, None, number),
                     "package": lambda: batch.plan(sequences, tokens, stream=stream)}
        return {way: microseconds(function, calls, rounds) for way, function in functions.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    calls, rounds = (200, 2) if options.quick else (2000, 20)
    torch.set_num_threads(1)
    k, v = (torch.randn(1, 1, DIM, device=options.device) for _ in "kv")
    q = torch.randn(1, Q_HEADS, DIM, device=options.device)
    result = {"device": options.device, "torch": torch.__version__, "library": tqkv.build_info(), "us": {}}
    with tqkv.Cache(num_layers=1, num_q_heads=Q_HEADS, num_kv_heads=1, head_dim=DIM, key_bits=4, value_bits=4,
                    max_tokens=1024, device=options.device, num_threads=1) as cache, torch.inference_mode():
        batch = cache.batch()
        batch.plan([cache.sequence()], [1])
        batch.append(0, k, v)
        for call, functions in ways(options.device, cache, batch, k, v, q, torch.empty_like(q)).items():
            us = {way: microseconds(function, calls, rounds) for way, function in functions.items()}
            us.update({f"overhead of {way}": us[way] - us["c"] for way in ("package", "operators")})
            result["us"][call] = {way: round(value, 2) for way, value in us.items()}
    for count in PLANS:
        us = plans(options.device, count, max(5, int(calls / count ** .5)), 3 if options.quick else rounds)
        result["us"][f"plan of {count}"] = {way: round(value, 2) for way, value in us.items()}
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
