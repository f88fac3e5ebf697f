# SPDX-License-Identifier: Apache-2.0
"""The library's caches on the test model with what a calibration found for them: centres, key bands, both.

Calibrated (tq_calibration) on text of another kind than the judged one: needle and recall sequences of the
model's own tasks, and sources and documentation of this clone, 10,240 bytes in all. One calibration a code
family gives all widths.
"""
from pathlib import Path

import numpy as np

from model import exact_attention

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src/batch.cpp", "src/page_table.cpp", "bindings/python/README.md", "tests/bench/README.md")
FAMILIES = ("scalar", "trellis")
KINDS = ("plain", "centred", "banded", "both")


def calibration_texts(data, piece=1024, each=3):
    """Sequences of `piece` bytes: `each` of a task, and the sources."""
    texts = [data[task][-1 - i][:piece] for task in ("needle", "recall") for i in range(each)]
    for name in SOURCES if each > 1 else SOURCES[:2]:
        texts.append(np.frombuffer((ROOT / name).read_bytes()[1000:1000 + piece], np.uint8))
    return texts


def listen(model, texts, hear):
    """hear(layer, q, k, v) of every text, after RoPE."""

    def attend(layer, q, k, v):
        hear(layer, q, k, v)
        return exact_attention(layer, q, k, v)

    for text in texts:
        model.logits(text, attend)


def calibrate(tqkv, model, texts, family):
    found = tqkv.Calibration(model.layers, model.q_heads, model.kv_heads, model.head_dim, key_family=family,
                             value_family=family)
    listen(model, texts, lambda layer, *sides: found.feed(
        layer, *(np.ascontiguousarray(side, np.float32) for side in sides)))
    return found


class CacheAttention:
    """One sequence in a fresh cache; call with (layer, q, k, v), each layer once."""

    def __init__(self, tqkv, model, tokens, layers, bits, family, seed, window, sinks, calibration):
        fields = {"layers": layers} if layers else {"num_layers": model.layers, "key_bits": bits}
        self.cache = tqkv.Cache(num_q_heads=model.q_heads, num_kv_heads=model.kv_heads,
                                head_dim=model.head_dim, value_bits=bits, code_family=family,
                                rotation_seed=seed, max_tokens=tokens, num_threads=1, window_tokens=window,
                                sink_tokens=sinks, **fields)
        if calibration is not None:
            calibration.set_centres(self.cache)
        self.step = self.cache.batch()
        self.step.plan([self.cache.sequence()], new_tokens=[tokens])

    def __call__(self, layer, q, k, v):
        q, k, v = (np.ascontiguousarray(side, np.float32) for side in (q, k, v))
        self.step.append(layer, k, v)
        return np.asarray(self.step.attend(layer, q))

    def close(self):
        self.cache.close()


class Caches:
    """What the library offers, by name: a family, a kind and bits."""

    def __init__(self, tqkv, model, calibrations):
        """calibrations: {family: tqkv.Calibration}"""
        self.tqkv, self.model, self.calibrations = tqkv, model, calibrations
        self.found = {}

    def chosen(self, family, bits):
        if (family, bits) not in self.found:
            self.found[family, bits] = self.calibrations[family].choose(key_bits=bits, value_bits=int(bits))
        return self.found[family, bits]

    def token_bytes(self, family, kind, bits):
        """Of a token and kv head."""
        if kind in ("banded", "both"):
            return self.chosen(family, bits).token_bytes / (self.model.layers * self.model.kv_heads)
        return 2 * (self.model.head_dim // 8 * int(bits) + 2)

    def attention(self, tokens, family, kind, bits, window, sinks, seed):
        layers = self.chosen(family, bits).layers if kind in ("banded", "both") else None
        calibration = self.calibrations[family] if kind in ("centred", "both") else None
        return CacheAttention(self.tqkv, self.model, tokens, layers, int(bits), family, seed, window, sinks,
                              calibration)
