# SPDX-License-Identifier: Apache-2.0
"""A cache filled with random tokens through the API, its pages in shuffled order, and exact attention over
what it stores.

`Filled` works on the CPU with NumPy arrays as on the GPU with torch tensors: `pool` is a pair of arrays
[rows][kv_heads][head_dim] from which all keys and values are taken, as views; values of fewer coordinates
are the first ones. The reference needs decoded values in full precision: a twin cache with float32 input
gets the same tokens of one sequence (float16 numbers are float32 numbers, so its codes are the same) and is
read; rounded to float16 this must equal what the cache itself reads, bit for bit.
"""
import dataclasses
import random

import numpy as np
import tqkv
from cases import PAGE_TOKENS, pieces

NO_ZERO_ON_FREE = tqkv.CONSTANTS["TQ_FLAG_NO_ZERO_ON_FREE"]


def banded_layers(case, layers):
    """Layers of keys in bands, None if there are none: any order will do for time."""
    if not case.bands:
        return None
    order = [random.Random(head).sample(range(case.head_dim), case.head_dim) for head in range(case.kv_heads)]
    return [tqkv.Layer(key_bands=tqkv.KeyBands(case.bands, order))] * layers


def turn_keys(case, cache, layers):
    """Rotations for the keys of all layers, before the first token; nothing where the case has none."""
    if not case.turned:
        return
    normal = np.random.default_rng(3).standard_normal((case.kv_heads, case.head_dim, case.head_dim))
    matrices = np.ascontiguousarray(np.linalg.qr(normal)[0], np.float32)
    for layer in range(layers):
        cache.set_key_matrix(layer, matrices)


class Filled:
    """layers: caches' worth of pages that are used in turn. plan is in force for the last `new` tokens of
    each sequence, appended in all layers."""

    def __init__(self, case, bits, layers, pool, device, stream=None, new=1, queries=1, decoys=4096):
        self.case, self.bits, self.layers, self.pool = case, bits, layers, pool
        self.device, self.stream, self.new = device, stream, new
        self.pieces = pieces(case, new) + [new]
        self.length = sum(self.pieces)
        self.most_tokens = max(max(self.pieces) * case.batch, PAGE_TOKENS) if case.latent else 0  # of a plan
        pages_each = -(-self.length // PAGE_TOKENS)
        pages = case.batch * pages_each
        decoys = max(1, min(decoys, pages))
        alive = max(decoys, case.batch)
        self.cache = tqkv.Cache(self._config(layers, "float16", pages * PAGE_TOKENS, alive,
                                             max(case.batch, min(alive, 256))),
                                stream=stream)
        turn_keys(case, self.cache, layers)
        self.step = self.cache.batch()
        self._shuffle(decoys, pages // decoys)
        self.sequences = [self.cache.sequence() for _ in range(case.batch)]
        draw = random.Random(case.tokens * 31 + case.batch)
        most = len(pool[0]) - max(self.pieces) * case.batch
        self.offsets = [draw.randrange(most + 1) for _ in self.pieces]
        for index, piece in enumerate(self.pieces):
            last = index == len(self.pieces) - 1
            self.step.plan(self.sequences, [piece] * case.batch, [queries if last else 0] * case.batch,
                           stream=stream)
            rows = slice(self.offsets[index], self.offsets[index] + piece * case.batch)
            self.last_rows = (pool[0][rows], pool[1][rows])
            for layer in range(layers):
                self.step.append(layer, *self._sides(*self.last_rows), stream=stream)

    def _sides(self, k, v):
        return (k, ) if self.case.latent else (k, v[..., :self.case.value_dim()])

    def _config(self, layers, dtype, tokens, sequences, batch_sequences, device=None):
        return tqkv.Config(num_layers=layers,
                           num_q_heads=self.case.q_heads,
                           num_kv_heads=self.case.kv_heads,
                           head_dim=self.case.head_dim,
                           value_dim=self.case.value_dim(),
                           layer_kind="latent" if self.case.latent else 0,
                           max_batch_tokens=self.most_tokens,
                           key_bits=self.bits[0],
                           value_bits=self.bits[1],
                           io_dtype=dtype,
                           device=device or self.device,
                           page_size=PAGE_TOKENS,
                           max_tokens=tokens,
                           max_sequence_tokens=self.length,
                           max_sequences=sequences,
                           max_batch_sequences=batch_sequences,
                           window_tokens=self.case.window,
                           sink_tokens=self.case.sinks,
                           max_raw_tokens=self._raw_tokens() * sequences,
                           flags=NO_ZERO_ON_FREE,
                           rotation_seed=77,
                           layers=banded_layers(self.case, layers),
                           **dict(self.case.families))

    def _raw_tokens(self):
        """Exact copies of one sequence: pages of 32 tokens, those at both ends of a window in part. A
        prompt's last piece has its own as well."""
        exact = self.case.window + self.case.sinks
        if exact and self.case.causal:
            exact += self.new
        return 32 * (exact // 32 + 4) if exact else 0

    def _shuffle(self, count, pages_each):
        """Pages go out again in the order in which they came back: as many sequences as possible take all of
        them and are freed in random order."""
        held = [self.cache.sequence() for _ in range(count)]
        together = max(1, self.most_tokens // (pages_each * PAGE_TOKENS)) if self.most_tokens else 256
        for first in range(0, count, together):
            some = held[first:first + together]
            self.step.plan(some, [pages_each * PAGE_TOKENS] * len(some), [0] * len(some), stream=self.stream)
        random.Random(count).shuffle(held)
        for sequence in held:
            sequence.free(stream=self.stream)

    def token_bytes(self):
        """Stored bytes of one token in one layer, all kv heads."""
        return self._config(1, "float16", self.length, 1, 1, device="cpu").bytes().token_bytes

    def rows_of(self, sequence):
        """The keys and values that went into a sequence: a list of pairs of views."""
        result = []
        for offset, piece in zip(self.offsets, self.pieces):
            rows = slice(offset + sequence * piece, offset + (sequence + 1) * piece)
            result.append((self.pool[0][rows], self.pool[1][rows]))
        return result

    def decoded(self, layer, sequence, wide, empty, device=None, exact=True):
        """Decoded keys and values of a sequence in float32, read from a twin on `device`. wide(array): the
        same numbers in float32 there; empty(shape, dtype): a new array there. Not exact: a twin without exact
        tokens, which reads the codes of all."""
        device = device or self.device
        shape = (self.length, self.case.kv_heads)
        k, v = (empty((*shape, dim), "float32") for dim in (self.case.head_dim, self.case.value_dim()))
        stream = self.stream if device == self.device else None
        config = self._config(self.layers, "float32", self.length + PAGE_TOKENS, 1, 1, device)
        if not exact:
            config = dataclasses.replace(config, window_tokens=0, sink_tokens=0, max_raw_tokens=0)
        with tqkv.Cache(config, stream=stream) as twin:
            turn_keys(self.case, twin, self.layers)
            step, copy = twin.batch(), twin.sequence()
            for keys, values in self.rows_of(sequence):
                step.plan([copy], [len(keys)], [0], stream=stream)
                step.append(layer, *self._sides(wide(keys), wide(values)), stream=stream)
            copy.read(layer, 0, self.length, k=k, v=v, stream=stream)
            twin.check(stream=stream)
        return k, v

    def own(self, layer, sequence, empty):
        """The same as the cache itself reads it, float16."""
        shape = (self.length, self.case.kv_heads)
        k, v = (empty((*shape, dim), "float16") for dim in (self.case.head_dim, self.case.value_dim()))
        self.sequences[sequence].read(layer, 0, self.length, k=k, v=v, stream=self.stream)
        self.cache.check(stream=self.stream)
        return k, v

    def close(self):
        self.cache.close()


def attention(q, k, v, xp, seen=None):
    """Float64 attention of rows that see all tokens, or the first seen[row]: q [rows][q_heads][d], k, v
    [tokens][kv_heads][d], arrays of xp (numpy or torch) in any type. Yields (kv head, [rows][heads of
    it][d])."""
    group = q.shape[1] // k.shape[1]
    for head in range(k.shape[1]):
        keys, values, some = double(k[:, head], xp), double(v[:, head],
                                                            xp), double(q[:, head * group:(head + 1) * group],
                                                                        xp)
        logits = some @ keys.T / k.shape[2] ** 0.5
        if seen is not None:
            hidden = xp.arange(len(k), device=k.device)[None, None, :] >= seen[:, None, None]
            logits = xp.where(hidden, -xp.inf, logits)
        weights = xp.exp(logits - (logits.max() if xp.__name__ == "numpy" else logits.amax()))
        yield head, (weights @ values) / weights.sum(-1)[..., None]


def double(array, xp):
    return array.astype("float64") if xp.__name__ == "numpy" else array.double()


def worst_error(out, q, k, v, xp, seen=None):
    """Largest relative L2 error of a row."""
    group, worst = q.shape[1] // k.shape[1], 0.0
    for head, want in attention(q, k, v, xp, seen):
        off = double(out[:, head * group:(head + 1) * group], xp) - want
        error = float((((off ** 2).sum(-1) / (want ** 2).sum(-1)) ** 0.5).max())
        worst = error if error != error else max(worst, error)  # NaN stays
        if worst != worst:
            break
    return worst
