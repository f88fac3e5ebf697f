#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Preemption under load: four requests share a pool with room for about two. When a plan finds no room
(CapacityError, nothing has changed), the youngest running request goes to host memory as bytes and its pages
are free; when others have ended it comes back, codes as they were. So every answer has the bits that it has
when nothing else runs.

Needs nothing but tqkv; with NumPy, torch or CuPy, pass their arrays instead of array.array.
"""
import array

import tqkv

HEADS, DIM, REQUESTS, TOKENS, PROMPT = 2, 64, 4, 72, 32


def numbers(count, state):
    """In place of a model."""
    result = array.array("f")
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2 ** 32
        result.append(((state >> 16) % 2048 - 1024) / 1024)
    return result


class Request:
    def __init__(self, number):
        self.number, self.tokens, self.sequence, self.away, self.answer = number, 0, None, None, b""

    def to_host(self, cache):
        """Its tokens as bytes; the pages are free."""
        self.away = cache.export_sequence(self.sequence)
        self.sequence.free()
        self.sequence = None

    def runs(self, cache):
        """Whether it is in the cache, or there was room to bring it (back)."""
        try:
            if self.sequence is None:
                self.sequence = cache.import_sequence(*self.away) if self.away else cache.sequence()
        except tqkv.CapacityError:
            return False
        return True

    def step(self, batch):
        count = 1 if self.tokens else PROMPT
        batch.plan([self.sequence], [count], [1])
        seed = 1000 * self.number + self.tokens
        batch.append(0, *(numbers(count * HEADS * DIM, seed + side) for side in range(2)))
        self.answer = bytes(batch.attend(0, numbers(HEADS * DIM, seed + 2)))
        self.tokens += count


def serve(cache, requests):
    """All requests to their ends; how often one went to the host."""
    batch, preempted, waiting = cache.batch(), 0, list(requests)
    while waiting:
        for request in list(waiting):
            if not request.runs(cache):
                continue
            while request.sequence is not None:
                try:
                    request.step(batch)
                    break
                except tqkv.CapacityError:
                    running = [r for r in waiting if r.sequence is not None and r is not request]
                    (running[-1] if running else request).to_host(cache)
                    preempted += 1
            if request.tokens >= TOKENS:
                request.sequence.free()
                waiting.remove(request)
    return preempted


def make_cache(max_tokens):
    return tqkv.Cache(num_layers=1, num_q_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM, key_bits=4,
                      value_bits=3, page_size=32, io_dtype="float32", max_tokens=max_tokens,
                      max_sequence_tokens=96, max_sequences=2)


def main():
    crowded, alone = ([Request(number) for number in range(REQUESTS)] for _ in range(2))
    with make_cache(96) as small, make_cache(4 * 96) as large:
        preempted = serve(small, crowded)
        for request in alone:
            serve(large, [request])
    same = sum(one.answer == other.answer for one, other in zip(crowded, alone))
    print(f"{REQUESTS} requests, preempted: {'yes' if preempted else 'no'}, answers as alone: {same}")
    return 0 if same == REQUESTS and preempted else 1


if __name__ == "__main__":
    raise SystemExit(main())
