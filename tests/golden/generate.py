#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden vectors (*.safetensors) with the oracle of tests/reference. README.md lists the names.

Usage: generate.py           writes all files
       generate.py --check   regenerates and compares, float64 results to 1e-12, all else bit for bit; exit
                             status 1 on a difference
"""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import attend_cases  # noqa: E402
import calibration_cases  # noqa: E402
import encode_cases  # noqa: E402
import latent_cases  # noqa: E402
import numpy as np  # noqa: E402
import quantizer_cases  # noqa: E402
import row_cases  # noqa: E402
import safetensors_io  # noqa: E402
import state_cases  # noqa: E402

FLOAT64_TOLERANCE = 1e-12


def build():
    """{file name: (tensors, metadata)}"""
    files = {f"encode_d{d}.safetensors": encode_cases.build(d) for d in encode_cases.DIMS}
    files["attend.safetensors"] = attend_cases.build()
    files["rows.safetensors"] = row_cases.build()
    files["latent.safetensors"] = latent_cases.build()
    files["calibration.safetensors"] = calibration_cases.build()
    files["quantizer.safetensors"] = quantizer_cases.build()
    files["state.safetensors"] = state_cases.build()
    return files


def difference(path, tensors, metadata):
    """What is wrong with the file, or None."""
    if not path.exists():
        return "is missing"
    if path.read_bytes() == safetensors_io.dump(tensors, metadata):
        return None
    stored, stored_metadata = safetensors_io.load(path)
    if stored_metadata != metadata or list(stored) != safetensors_io.order(tensors):
        return "has other names or parameters"
    for name, array in tensors.items():
        if array.dtype == np.float64 and array.shape == stored[name].shape:
            # Results of attention pass through exp and a matrix product, whose last bits are the machine's.
            if np.allclose(stored[name], array, rtol=FLOAT64_TOLERANCE, atol=FLOAT64_TOLERANCE):
                continue
        elif stored[name].shape == array.shape and stored[name].tobytes() == array.tobytes():
            continue
        return f"differs in {name}"
    return None


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    files = build()
    status = 0
    for name, (tensors, metadata) in files.items():
        if not arguments:
            (HERE / name).write_bytes(safetensors_io.dump(tensors, metadata))
        elif problem := difference(HERE / name, tensors, metadata):
            print(f"{name} {problem}")
            status = 1
    for path in HERE.glob("*.safetensors"):
        if path.name not in files:
            print(f"{path.name} is not written by generate.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
