#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prompt cache on disk: prompt_cache.py FILE. The first run computes the prompt's keys and values and saves
them; a later one, another process, loads them instead. Both answer with the same bits, which the hash in the
last line shows. cache.save replaces the file as a whole, whenever the process is killed.

Needs nothing but tqkv; with NumPy, torch or CuPy, pass their arrays instead of array.array.
"""
import array
import hashlib
import os
import sys

import tqkv

LAYERS, HEADS, DIM, PROMPT = 2, 4, 64, 96


def numbers(count, state):
    """In place of a model: numbers that follow from where they stand."""
    result = array.array("f")
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2 ** 32
        result.append(((state >> 16) % 2048 - 1024) / 1024)
    return result


def prefill(cache, batch):
    sequence = cache.sequence()
    batch.plan([sequence], [PROMPT], [0])
    for layer in range(LAYERS):
        batch.append(layer, *(numbers(PROMPT * HEADS * DIM, 2 * layer + side) for side in range(2)))
    return sequence


def main():
    path = sys.argv[1]
    with tqkv.Cache(num_layers=LAYERS, num_q_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM, key_bits=4,
                    value_bits=4, max_tokens=2 * PROMPT, io_dtype="float32") as cache:
        batch = cache.batch()
        if os.path.exists(path):
            sequence = cache.load(path)
            print("loaded")
        else:
            sequence = prefill(cache, batch)
            cache.save(sequence, path)
            print("computed and saved")
        batch.plan([sequence], [0], [1])
        digest = hashlib.sha256()
        for layer in range(LAYERS):
            digest.update(batch.attend(layer, numbers(HEADS * DIM, 99 + layer)))
        print("answer", digest.hexdigest()[:16])


if __name__ == "__main__":
    main()
