#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes cases.json: what every language binding must be able to do, with the answers. README.md has the
schema.

Usage: generate.py           writes cases.json
       generate.py --check   regenerates and compares: numbers of attention to 1e-6, all else exactly; exit
                             status 1 on a difference
"""
import base64
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import error_cases  # noqa: E402
import family_cases  # noqa: E402
import layer_cases  # noqa: E402
import mask_cases  # noqa: E402
import numpy as np  # noqa: E402
import paged_cases  # noqa: E402
import result_cases  # noqa: E402
import state_cases  # noqa: E402

PATH = HERE / "cases.json"
MAX_BYTES = 2_400_000


def build():
    tensors, cases = {}, []
    for module in (result_cases, family_cases, error_cases, layer_cases, mask_cases, state_cases,
                   paged_cases):
        cases += [case.case for case in module.build(tensors)]
    assert len({case["name"] for case in cases}) == len(cases)
    return {"version": 1, "cases": cases, "tensors": tensors}


def dump(data):
    """One line a step and a tensor: small, and a diff shows which."""
    lines = ['{"version": %d,' % data["version"], '"cases": [']
    for i, case in enumerate(data["cases"]):
        head = json.dumps({k: v for k, v in case.items() if k != "steps"})
        steps = ",\n".join("  " + json.dumps(step) for step in case["steps"])
        lines.append(f'{head[:-1]}, "steps": [\n{steps}]}}' + ("," if i + 1 < len(data["cases"]) else ""))
    tensors = ",\n".join(f"{json.dumps(name)}: {json.dumps(tensor)}"
                         for name, tensor in data["tensors"].items())
    return "\n".join(lines) + '],\n"tensors": {\n' + tensors + "}}\n"


def same_tensor(name, a, b):
    if (a["dtype"], a["shape"]) != (b["dtype"], b["shape"]):
        return False
    if a["data"] == b["data"]:
        return True
    if a["dtype"] != "f32" or not name.split(".")[1].startswith(("out", "lse", "merged", "part")):
        return False
    # Results of attention pass through exp and a matrix product, whose last bits are the machine's.
    x, y = (np.frombuffer(base64.b64decode(t["data"]), dtype="<f4") for t in (a, b))
    return np.allclose(x, y, rtol=1e-6, atol=1e-6)


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    data = build()
    text = dump(data)
    assert json.loads(text) == data and len(text) <= MAX_BYTES, len(text)
    if not arguments:
        PATH.write_text(text)
        errors = sum(1 for case in data["cases"] if any("status" in step for step in case["steps"]))
        print(f"{len(data['cases'])} cases, {errors} of them with errors, {len(text)} bytes")
        return 0
    stored = json.loads(PATH.read_text())
    if stored["cases"] != data["cases"] or list(stored["tensors"]) != list(data["tensors"]):
        print("cases.json has other steps: run generate.py")
        return 1
    wrong = [
        name for name, tensor in data["tensors"].items()
        if not same_tensor(name, stored["tensors"][name], tensor)
    ]
    for name in wrong:
        print(f"cases.json differs in {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
