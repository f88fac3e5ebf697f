# SPDX-License-Identifier: Apache-2.0
"""grouped.safetensors: tiles with two grouped sides (FORMAT.md sections 3.6 and 4), what they decode to."""
import json

import numpy as np
from encode_cases import inputs
from reference import tqkv_reference as ref

# head_dim, key bits, value bits, group: each width, each group size, last groups of 16 and of 48
CASES = [(32, 2, 8, 16), (80, 3, 4, 64), (112, 4, 3, 32), (128, 8, 2, 64)]


def build():
    """-> (tensors, metadata)"""
    tensors, metadata = {}, {}
    for d, key_bits, value_bits, group in CASES:
        name, x = f"d{d}", inputs(d)
        # float16 at its largest number, and steps that are subnormal there or vanish
        x[11, :4] = [65504, 65505, -65505, -70000]
        x[12] = np.linspace(0, 2.0 ** -22, d, dtype=np.float32)
        x[13] = np.linspace(0, 2.0 ** -26, d, dtype=np.float32)
        sides = []
        for side, bits in (("key", key_bits), ("value", value_bits)):
            encoded = ref.encode_grouped(x, bits, group)
            tensors[f"{name}.{side}.decoded"] = ref.decode_grouped(encoded.codes, encoded.pairs, group)
            sides.append((encoded.codes, encoded.pairs, bits))
        tensors[f"{name}.input"] = x
        tensors[f"{name}.nonfinite"] = encoded.nonfinite.astype(np.uint8)
        tensors[f"{name}.saturated"] = encoded.saturated.astype(np.uint8)
        tensors[f"{name}.tile"] = np.frombuffer(ref.tile_bytes(*sides), np.uint8)
        metadata[name] = json.dumps({"head_dim": d, "key_bits": key_bits, "value_bits": value_bits,
                                     "group_size": group})
    return tensors, metadata
