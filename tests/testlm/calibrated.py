# SPDX-License-Identifier: Apache-2.0
"""The library's caches on the test model with what a calibration found for them: centres, key bands, both;
and both of keys that matrices turn which the calibration found ("turned").

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
TURNED = "turned"


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


def moments(model, texts):
    """Second moments of a kv head's queries [layer][kv head][dim][dim], mean squares of keys [..][dim]."""
    shape = model.layers, model.kv_heads, model.head_dim
    queries, keys, count = np.zeros((*shape, model.head_dim)), np.zeros(shape), sum(map(len, texts))

    def hear(layer, q, k, v):
        del v
        rows = q.reshape(len(q), model.kv_heads, -1, model.head_dim).transpose(1, 0, 2, 3)
        rows = rows.reshape(model.kv_heads, -1, model.head_dim).astype(np.float64)
        queries[layer] += rows.transpose(0, 2, 1) @ rows / (count * (model.q_heads // model.kv_heads))
        keys[layer] += np.square(k, dtype=np.float64).sum(axis=0) / count

    listen(model, texts, hear)
    return queries, keys


def calibrate(tqkv, model, texts, family, turned=False):
    found = tqkv.Calibration(model.layers, model.q_heads, model.kv_heads, model.head_dim, key_family=family,
                             value_family=family, turn_keys=turned)
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
        """calibrations: {family: tqkv.Calibration}, of turned keys by family and TURNED"""
        self.tqkv, self.model, self.calibrations = tqkv, model, calibrations
        self.found = {}

    def calibration(self, family, kind):
        return self.calibrations[family + TURNED if kind == TURNED else family]

    def chosen(self, family, kind, bits):
        key = family, kind == TURNED, bits
        if key not in self.found:
            self.found[key] = self.calibration(family, kind).choose(key_bits=bits, value_bits=int(bits))
        return self.found[key]

    def token_bytes(self, family, kind, bits):
        """Of a token and kv head."""
        if kind in ("banded", "both", TURNED):
            return self.chosen(family, kind, bits).token_bytes / (self.model.layers * self.model.kv_heads)
        return 2 * (self.model.head_dim // 8 * int(bits) + 2)

    def attention(self, tokens, family, kind, bits, window, sinks, seed):
        layers = self.chosen(family, kind, bits).layers if kind in ("banded", "both", TURNED) else None
        calibration = self.calibration(family, kind) if kind in ("centred", "both", TURNED) else None
        return CacheAttention(self.tqkv, self.model, tokens, layers, int(bits), family, seed, window, sinks,
                              calibration)
