# SPDX-License-Identifier: Apache-2.0
"""Formats of other projects on the test model: tqkv.eval's quantise-dequantise as an attention function.

What they may know beforehand (Block-GTQ, OSCAR) is from the calibration texts of calibrated.py. Needs torch.
"""
import numpy as np
import torch

from calibrated import moments
from model import exact_attention
from tqkv.eval import _formats

NAMES = ("KVarN k2v2", "KVarN k3v3", "KVarN k4v4", "Block-GTQ k2v2", "Block-GTQ k3v3", "Block-GTQ k4v4",
         "OSCAR 2", "OSCAR 3", "OSCAR 4", "buun TCQ 2", "buun TCQ 3")


def formats():
    known = {f.name: f for f in _formats.rivals()}
    return {name: known[name] for name in NAMES}


def token_bytes(name, dim):
    return sum(formats()[name].bits(dim)) * dim / 8


def collect_moments(model, texts, path):
    """Into a file."""
    queries, keys = moments(model, texts)
    with open(path, "wb") as file:
        np.savez(file, moments=queries, squares=keys)


def read_sides(path):
    """[layer]: _formats.Side of as few rows as have these moments, which are all that formats ask for."""
    found, sides = np.load(path), []
    for layer, (queries, squares) in enumerate(zip(found["moments"], found["squares"])):
        value, vector = np.linalg.eigh(queries)
        rows = vector * np.sqrt(np.maximum(value, 0) * len(value[0]))[:, None, :]
        sides.append(_formats.Side(layer, torch.from_numpy(rows.transpose(0, 2, 1).astype(np.float32)),
                                   torch.from_numpy(np.sqrt(squares)[:, None].astype(np.float32))))
    return sides


def mixed_attention(q, k, v, coded_k, coded_v, window, sinks, block=128):
    """Causal; the last `window` tokens, the own one included, and the first `sinks` are read exactly."""
    tokens, heads, dim = q.shape
    group, out = heads // k.shape[1], np.empty((tokens, heads, v.shape[2]), np.float32)
    at = np.arange(tokens)
    for head in range(heads):
        kv = head // group
        for first in range(0, tokens, block):
            last = min(first + block, tokens)
            rows = at[first:last, None]
            near = (at[None, :last] > rows - window) | (at[None, :last] < sinks)
            queries = q[first:last, head] * np.float32(1 / np.sqrt(dim))
            logits = np.where(near, queries @ k[:last, kv].T, queries @ coded_k[:last, kv].T)
            logits[at[None, :last] > rows] = -np.inf
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[first:last, head] = (np.where(near, weights, 0) @ v[:last, kv] +
                                     np.where(near, 0, weights) @ coded_v[:last, kv])
    return out


class RivalAttention:
    def __init__(self, name, sides, window, sinks):
        self.format, self.sides, self.window, self.sinks = formats()[name], sides, window, sinks

    def __call__(self, layer, q, k, v):
        with torch.no_grad():
            coded_k, coded_v = (
                function(torch.from_numpy(np.ascontiguousarray(side.transpose(1, 0, 2))),
                         self.sides[layer]).numpy().transpose(1, 0, 2)
                for function, side in ((self.format.key, k), (self.format.value, v)))
        if self.window == 0 and self.sinks == 0:
            return exact_attention(layer, q, coded_k, coded_v)
        return mixed_attention(q, k, v, coded_k, coded_v, self.window, self.sinks)

    def close(self):
        pass
