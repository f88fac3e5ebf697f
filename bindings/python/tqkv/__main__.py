# SPDX-License-Identifier: Apache-2.0
"""python -m tqkv: what is installed, which library is used and why, and whether a small cache works. Exit
status 0 if it does."""
import array
import sys

import tqkv
from tqkv import _ffi


def _line(title, text):
    print(f"{title + ':':<14} {text}")


def _self_test():
    """One head, 8 tokens at 8 bits, each its own key: attention must return about the value of the key that
    is asked for."""
    with tqkv.Cache(num_layers=1,
                    num_q_heads=1,
                    num_kv_heads=1,
                    head_dim=32,
                    key_bits=8,
                    value_bits=8,
                    max_tokens=32,
                    num_threads=1) as cache:
        step = cache.batch()
        step.plan([cache.sequence()], [8], [1])
        k = array.array("f", (float(10 * (i % 32 == i // 32)) for i in range(8 * 32)))
        v = array.array("f", (float(1 + i // 32) for i in range(8 * 32)))
        step.append(0, k, v)
        q = array.array("f", (float(10 * (i == 5)) for i in range(32)))
        out = step.attend(0, q, softmax_scale=1.0)
        error = max(abs(x - 6.0) for x in out.cast("B").cast("f"))
        if not error < 0.05:
            raise RuntimeError(f"attention is off by {error}")
        return f"ok ({cache.memory().compression:.2f} times smaller than float16 at 8 + 8 bits, head_dim 32)"


def main():
    _line("python", sys.version.split("\n")[0])
    _line("package", f"{tqkv.__version__}, {tqkv.__file__}")
    for origin, path in _ffi.candidates():
        _line("looked for", f"{path} ({origin})")
    try:
        _line("library", f"{tqkv.library_version()}, {tqkv.library_path()}")
        _line("build", tqkv.build_info())
        for d in tqkv.devices():
            cuda = f"cuda:{d.device_id}, compute {d.compute_major}.{d.compute_minor}"
            kind, gib = "cpu" if d.device_type == _ffi.CPU else cuda, d.memory_bytes / 2**30
            _line("device", f"{kind}, {d.name.decode()}, {d.num_units} units, {gib:.1f} GiB")
        _line("self-test", _self_test())
    except (tqkv.Error, RuntimeError) as error:
        _line("failed", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
