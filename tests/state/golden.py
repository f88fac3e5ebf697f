#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden saved sequences, golden/NAME.tqkv: written by the library (run this file with TQKV_LIBRARY set),
compared by test_reader.py. FILES makes the world whose sequence each one is."""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1] / "bindings" / "python"), str(HERE)]

import numpy as np
import tqkv

from worlds import World, as_array, given_dims, numbers

SMALL = {"num_layers": 1, "num_q_heads": 1, "num_kv_heads": 1, "head_dim": 32, "key_bits": 4, "value_bits": 3,
         "io_dtype": "float32", "max_tokens": 256, "max_sequences": 3, "num_threads": 1}


class Golden(World):
    """A cache of these fields, with tokens in steps of these lengths."""

    def __init__(self, steps, centres=False, matrix=False, **fields):
        self.random = random = np.random.default_rng(1)
        self.cache = tqkv.Cache(**{**SMALL, **fields})
        self.config, self.centres, self.matrices = self.cache.config, {}, {}
        if centres:
            centre = [random.standard_normal((self.config.num_kv_heads, 32)).astype(np.float32) for _ in "kv"]
            self.cache.set_centres(0, *centre)
            self.centres[0] = centre
        if matrix:
            shape = (self.config.num_kv_heads, self.config.head_dim, self.config.head_dim)
            self.matrices[0] = (random.standard_normal(shape) / 20 + np.eye(shape[1])).astype(np.float32)
            self.cache.set_key_matrix(0, self.matrices[0])
        self.sequence, self.batch = self.cache.sequence(), self.cache.batch()
        for count in steps:
            self.batch.plan([self.sequence], [count])
            for layer, shape in enumerate(self.config.layers):
                if shape.shares_layer is None:
                    self.batch.append(layer, *(
                        as_array(numbers(random, (count, shape.num_kv_heads, dim), self.config.io_dtype),
                                 self.config.io_dtype) for dim in given_dims(shape)))


LEVELS = tqkv.Levels((-1.5, -0.5, 0.375, 1.75), (-1.0, -0.0625, 1.0625))
ORDER = tuple(range(79, -1, -1))
FILES = {
    "empty": lambda: Golden([]),
    "window": lambda: Golden([40, 1], window_tokens=3, sink_tokens=2, first_layer=5),
    "centres": lambda: Golden([7], centres=True, key_bits=8, value_bits=2, rotation_seed=2**63 + 1),
    "raw": lambda: Golden([33], key_bits=16, value_bits=5, io_dtype="bfloat16", first_kv_head=3),
    "padded": lambda: Golden([5], head_dim=80, value_dim=64, key_bits=6, value_bits=16, io_dtype="float16"),
    "grouped": lambda: Golden([39], head_dim=80, value_bits=3, value_family="grouped", group_size=64),
    "prod": lambda: Golden([39], key_bits=3, key_family="prod", centres=True, sketch_rule="least_error"),
    "trellis": lambda: Golden([39], key_bits=3, value_bits=2, code_family="trellis"),
    "matrix": lambda: Golden([37], centres=True, matrix=True),
    "bands": lambda: Golden([35], head_dim=80, key_bits=0, value_family="levels", value_levels=LEVELS,
                            value_bits=2, layers=[tqkv.Layer(key_bands=tqkv.KeyBands((5, 3, 2), (ORDER, )))]),
    "trellis_bands": lambda: Golden([34], head_dim=64, key_bits=0, key_family="trellis", value_bits=2,
                                    layers=[tqkv.Layer(key_bands=tqkv.KeyBands((4, 1)))]),
    "latent": lambda: Golden([36], head_dim=96, value_dim=64, layer_kind="latent", key_bits=8),
    "dense": lambda: Golden([9], rotation="dense", key_bits=2),
    "layers": lambda: Golden([50, 20, 3], rollback_tokens=4, num_layers=3, layers=[
        tqkv.Layer(), tqkv.Layer(sliding_window=10, key_bits=3), tqkv.Layer(shares_layer=1)]),
}


def main():
    (HERE / "golden").mkdir(exist_ok=True)
    for name, make in FILES.items():
        world = make()
        world.cache.save(world.sequence, HERE / "golden" / f"{name}.tqkv")
        world.close()


if __name__ == "__main__":
    main()
