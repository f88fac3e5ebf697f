#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill in one process, decode in another: the KV cache goes through shared memory, layer by layer, as a
connector between prefill and decode workers moves it. While layer 1 is computed, layer 0 is on its way; the
decode process has each layer's tokens as soon as its part has come, in a cache with pages of another size.
Codes travel as they are, so both processes give the same bits.

What goes over the pipe is small: a State for each layer and where its bytes lie. Over a network the bytes
would follow it; checksums are then the transport's affair, or cache.save writes a stream that has them.

Needs nothing but tqkv; with NumPy, torch or CuPy, pass their arrays instead of array.array.
"""
import array
import multiprocessing
from multiprocessing import shared_memory

import tqkv

LAYERS, HEADS, DIM, PROMPT = 4, 2, 64, 200


def numbers(count, state):
    """In place of a model."""
    result = array.array("f")
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2 ** 32
        result.append(((state >> 16) % 2048 - 1024) / 1024)
    return result


def make_cache(page_size):
    return tqkv.Cache(num_layers=LAYERS, num_q_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM, key_bits=4,
                      value_bits=3, window_tokens=16, page_size=page_size, io_dtype="float32",
                      max_tokens=512)


def answer(cache, sequence):
    """One query token's output in all layers."""
    batch = cache.batch()
    batch.plan([sequence], [0], [1])
    return b"".join(bytes(batch.attend(layer, numbers(HEADS * DIM, layer))) for layer in range(LAYERS))


def prefill(pipe):
    """Computes the prompt, and hands each layer over when it is there."""
    with make_cache(page_size=64) as cache:
        sequence, batch, shared, used = cache.sequence(), cache.batch(), None, 0
        batch.plan([sequence], [PROMPT], [0])
        for layer in range(LAYERS):
            batch.append(layer, *(numbers(PROMPT * HEADS * DIM, 100 + 2 * layer + side) for side in range(2)))
            state = cache.describe_sequence(sequence, layers=layer)
            if shared is None:  # all layers of this model are of one size
                shared = shared_memory.SharedMemory(create=True, size=state.bytes * LAYERS)
            part = shared.buf[used:used + state.bytes]
            cache.export_sequence(sequence, part, layers=layer)
            part.release()
            pipe.send((shared.name, used, state))
            used += state.bytes
        pipe.send(answer(cache, sequence))
        pipe.recv()  # the other side has all
        shared.close()
        shared.unlink()


def decode(pipe, result):
    """Takes each layer as it comes, then decodes."""
    with make_cache(page_size=32) as cache:
        sequence, shared = None, None
        for _ in range(LAYERS):
            name, begin, state = pipe.recv()
            shared = shared or shared_memory.SharedMemory(name)
            part = shared.buf[begin:begin + state.bytes]
            sequence = cache.import_sequence(state, part, sequence)
            part.release()
        shared.close()
        expected = pipe.recv()
        pipe.send("done")
        result.send((len(sequence), answer(cache, sequence) == expected))


def main():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    out, result = context.Pipe(duplex=False)
    workers = [context.Process(target=prefill, args=(here,)),
               context.Process(target=decode, args=(there, result))]
    for worker in workers:
        worker.start()
    tokens, same = out.recv()
    for worker in workers:
        worker.join()
    print(f"{tokens} tokens of {LAYERS} layers moved, the same bits: {'yes' if same else 'no'}")
    return 0 if same and all(worker.exitcode == 0 for worker in workers) else 1


if __name__ == "__main__":
    raise SystemExit(main())
