#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Replace your attention call: a decode loop on a tqkv cache. Plan the step once, then append and attend in
every layer; fork a sequence for a shared prompt; truncate it when a draft is rejected. The same program in C,
with the generator of its numbers explained: packaging/smoke/decode_loop.c.

Needs nothing but tqkv; with NumPy, torch or CuPy, pass their arrays instead of array.array.
"""
import array
import math

import tqkv

LAYERS, QUERY_HEADS, KV_HEADS, DIM = 2, 4, 2, 64
state = 5


def numbers(count):
    """In place of a model."""
    global state
    result = array.array("f")
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2 ** 32
        result.append(((state >> 16) % 2048 - 1024) / 1024)
    return result


def step(batch, sequences, new_tokens, query_tokens):
    """One step of the model; returns the norm of its outputs."""
    batch.plan(sequences, new_tokens, query_tokens)
    rows, queries, total = sum(new_tokens), sum(query_tokens), 0.0
    for layer in range(LAYERS):
        # here the model computes k, v and q, rotary embedding applied
        k, v = numbers(rows * KV_HEADS * DIM), numbers(rows * KV_HEADS * DIM)
        q = numbers(queries * QUERY_HEADS * DIM)
        batch.append(layer, k, v)
        out = batch.attend(layer, q)
        for x in out.cast("B").cast("f"):
            total += x * x
    return math.sqrt(total)


def main():
    with tqkv.Cache(num_layers=LAYERS,
                    num_q_heads=QUERY_HEADS,
                    num_kv_heads=KV_HEADS,
                    head_dim=DIM,
                    key_bits=4,
                    value_bits=4,
                    max_tokens=8192,
                    max_sequences=2,
                    max_batch_tokens=48,  # the prompt's: a plan's queries need room for exact copies
                    window_tokens=16,
                    rollback_tokens=4) as cache:
        batch, a = cache.batch(), cache.sequence()
        norm = step(batch, [a], [48], [1])
        print(f"prompt: {len(a)} tokens, norm {norm:.3f}")

        b = a.fork()  # a second answer to the same prompt: its pages are shared
        memory = cache.memory()
        print(f"fork: {memory.num_sequences} sequences, {memory.tokens} tokens, {memory.pages_used} page")

        for i in range(1, 5):
            norm = step(batch, [a, b], [1, 1], [1, 1])
            print(f"step {i}: lengths {len(a)} and {len(b)}, norm {norm:.3f}")

        # speculative decoding: four tokens at once, of which two turn out to be wrong
        norm = step(batch, [a], [4], [4])
        print(f"draft: lengths {len(a)} and {len(b)}, norm {norm:.3f}")
        a.truncate(len(a) - 2)
        norm = step(batch, [a, b], [1, 1], [1, 1])
        print(f"two rejected: lengths {len(a)} and {len(b)}, norm {norm:.3f}")

        memory = cache.memory()
        print(f"memory: {memory.tokens} tokens, {memory.pages_used} pages, {memory.compression:.2f} times "
              "smaller than float16")


if __name__ == "__main__":
    main()
