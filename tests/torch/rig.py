# SPDX-License-Identifier: Apache-2.0
"""A cache with a planned step, and its tensors."""
import os

import torch
import tqkv
import tqkv.torch

DEVICE = os.environ.get("TQKV_TEST_DEVICE", "cpu")
Q_HEADS, KV_HEADS, DIM, LAYERS = 4, 2, 64, 2


def numbers(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def make_cache(**fields):
    given = dict(num_layers=LAYERS, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, key_bits=4,
                 value_bits=3, max_tokens=4096, max_sequences=4, num_threads=1, device=DEVICE)
    return tqkv.Cache(**{**given, **fields})


class Step:
    """A cache of one sequence, its batch planned, the batch bound."""

    def __init__(self, tokens=40, queries=None, dtype=torch.float32, **fields):
        self.cache = make_cache(io_dtype=str(dtype).replace("torch.", ""), **fields)
        self.sequence, self.batch = self.cache.sequence(), self.cache.batch()
        self.bound, self.dtype = tqkv.torch.bind(self.batch), dtype
        self.plan(tokens, queries)

    def plan(self, tokens, queries=None):
        self.tokens, self.queries = tokens, tokens if queries is None else queries
        self.batch.plan([self.sequence], [tokens], [self.queries])

    def kv(self, seed=1, layer=0):
        shape = self.cache.config.layers[layer]
        return (numbers(seed, self.tokens, shape.num_kv_heads, shape.head_dim, dtype=self.dtype),
                numbers(seed + 1, self.tokens, shape.num_kv_heads, shape.value_dim, dtype=self.dtype))

    def q(self, seed=3, layer=0):
        shape = self.cache.config.layers[layer]
        return numbers(seed, self.queries, shape.num_q_heads, shape.head_dim, dtype=self.dtype)

    @property
    def key(self):
        """What the operators take first."""
        return self.bound.state, self.bound.number


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8),
                                                                    b.contiguous().view(torch.uint8))
