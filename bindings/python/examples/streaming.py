#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generation without an end in a cache of fixed size (StreamingLLM, arXiv 2309.17453): the first tokens, the
sinks, stay for ever, and a window behind them moves. When it is full its oldest tokens are removed; later
tokens move down in the cache, bit for bit.

Rotary embeddings are the caller's business. A key is stored rotated for the position at which it was
appended, and attention sees differences of positions only. So positions of new tokens may count on, and
distances within the window stay true; those to the sinks would grow beyond what a model was trained for. Here
the sinks follow the window: they are a sequence of their own, of which the cache keeps exact copies. After a
removal these are read, rotated on by as many positions as tokens were removed, and written anew; a step
attends both sequences and merges the results by their LSE. (Rotating the query back for the sinks would do as
well.)

Needs nothing but tqkv; with NumPy, torch or CuPy, pass their arrays instead of array.array.
"""
import array
import math

import tqkv

HEADS, DIM, SINKS, WINDOW, DROP = 2, 64, 4, 64, 32
state = 5


def numbers(count):
    """In place of a model."""
    global state
    result = array.array("f")
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2 ** 32
        result.append(((state >> 16) % 2048 - 1024) / 1024)
    return result


def rotate(rows, position):
    """Rotary embedding of each row [DIM] of a flat array for consecutive tokens from `position` on: pairs
    (i, i + DIM / 2) by position * 10000^(-2 i / DIM). By a negative number it is undone."""
    result, half = array.array("f", rows), DIM // 2
    for row in range(len(rows) // DIM):
        token = position + row // HEADS
        for i in range(half):
            angle = token * 10000.0 ** (-2.0 * i / DIM)
            x, y = rows[row * DIM + i], rows[row * DIM + half + i]
            result[row * DIM + i] = x * math.cos(angle) - y * math.sin(angle)
            result[row * DIM + half + i] = x * math.sin(angle) + y * math.cos(angle)
    return result


def shift(rows, by):
    """All rows rotated on by the same number of positions."""
    result = array.array("f")
    for row in range(len(rows) // (HEADS * DIM)):
        token = rows[row * HEADS * DIM:(row + 1) * HEADS * DIM]
        result.extend(rotate(token, by))
    return result


def floats(view):
    return array.array("f", view.cast("B").cast("f"))


class Stream:
    """One endless sequence: its sinks and its window, each a sequence of the cache."""

    def __init__(self, cache):
        self.cache, self.batch = cache, cache.batch()
        self.sinks, self.window = cache.sequence(), cache.sequence()
        self.position = 0  # of the next token, in the model's count
        self.removed = 0   # tokens so far

    def write_sinks(self, k, v):
        """Puts keys, rotated as they shall stand, and values into the sinks' sequence."""
        self.sinks.truncate(0)
        self.batch.plan([self.sinks], [SINKS], [0])
        self.batch.append(0, k, v)

    def start(self, k, v):
        self.write_sinks(rotate(k, 0), v)
        self.position = SINKS

    def step(self, q, k, v):
        """Appends one token; returns its attention over sinks and window."""
        if len(self.window) == WINDOW:
            self.forget()
        self.batch.plan([self.window], [1])
        self.batch.append(0, rotate(k, self.position), v)
        query = rotate(q, self.position)
        out, lse = self.batch.attend(0, query, lse=True)
        self.batch.plan([self.sinks], [0], [1])
        sink_out, sink_lse = self.batch.attend(0, query, lse=True)
        merged = tqkv.merge_states([out, sink_out], [lse, sink_lse])
        self.position += 1
        return floats(merged)

    def forget(self):
        """The oldest DROP tokens of the window go; the sinks follow the window. Their keys are exact copies,
        so that rotating them again and again loses no more than float32 does."""
        self.window.remove(0, DROP)
        k, v = self.sinks.read(0, 0, SINKS)
        self.write_sinks(shift(floats(k), DROP), floats(v))
        self.removed += DROP


def main():
    with tqkv.Cache(num_layers=1,
                    num_q_heads=HEADS,
                    num_kv_heads=HEADS,
                    head_dim=DIM,
                    key_bits=4,
                    value_bits=4,
                    max_tokens=WINDOW + SINKS,
                    max_sequences=2,
                    max_sequence_tokens=WINDOW,
                    sink_tokens=SINKS) as cache:
        stream = Stream(cache)
        sink_keys, sink_values = numbers(SINKS * HEADS * DIM), numbers(SINKS * HEADS * DIM)
        stream.start(sink_keys, sink_values)
        for _ in range(400):
            out = stream.step(numbers(HEADS * DIM), numbers(HEADS * DIM), numbers(HEADS * DIM))
        norm = math.sqrt(sum(x * x for x in out))
        print(f"{stream.position} tokens seen, {len(stream.sinks)} + {len(stream.window)} in the cache, "
              f"{stream.removed} removed, norm of the last output {norm:.3f}")

        # The sinks' keys are what a rotation by all removed tokens at once makes of them.
        k, _ = stream.sinks.read(0, 0, SINKS)
        expected = rotate(sink_keys, stream.removed)
        error = max(abs(a - b) for a, b in zip(floats(k), expected))
        print(f"sinks after {stream.removed // DROP} rotations: off by less than 1e-5: {error < 1e-5}")


if __name__ == "__main__":
    main()
