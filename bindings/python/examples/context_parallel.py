#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: one long sequence on several ranks, each of which keeps and attends to its part.

    torchrun --nproc-per-node 2 context_parallel.py          NCCL if every rank has a GPU, else gloo

The tokens go to the ranks in turn, a block at a time, so the ranks stay equally long while the sequence
grows. In every layer each rank attends all queries to its own tokens; the partial results are gathered and
merged by their log-sum-exp, which gives all ranks the same bits. The last line compares with one device.
"""
import os

import torch
import torch.distributed as dist

import tqkv
from tqkv.distributed import ContextSplit, attend_context_parallel

LAYERS, Q_HEADS, KV_HEADS, DIM, PROMPT, STEPS = 2, 8, 2, 64, 4000, 20


def cache_on(device, stream, max_tokens):
    return tqkv.Cache(num_layers=LAYERS, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                      key_bits=4, value_bits=3, max_tokens=max_tokens, device=device, stream=stream)


def numbers(step, layer, tokens, device):
    """In place of a model: k, v and q of a step, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 * step + layer)
    return [torch.randn(rows, heads, DIM, generator=generator).to(device)
            for rows, heads in ((tokens, KV_HEADS), (tokens, KV_HEADS), (min(tokens, 4), Q_HEADS))]


def main():
    local, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= local_world
    device = f"cuda:{local}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    stream = torch.cuda.current_stream() if gpus else None

    split = ContextSplit(block=64)
    part = cache_on(device, stream, PROMPT // world + 1024)
    sequence, batch = part.sequence(), part.batch()
    whole = cache_on(device, stream, PROMPT + 1024) if rank == 0 else None
    if whole:
        whole_sequence, whole_batch = whole.sequence(), whole.batch()

    length, worst = 0, 0.0
    for step, tokens in enumerate([PROMPT] + STEPS * [1]):
        queries = min(tokens, 4)
        mine = split.mine(length, tokens)  # rows of k and v that this rank keeps
        length += tokens
        visible = split.visible(torch.arange(length - queries, length, device=device))
        batch.plan([sequence], [len(mine)], [queries], stream=stream)
        if whole:
            whole_batch.plan([whole_sequence], [tokens], [queries], stream=stream)
        for layer in range(LAYERS):
            k, v, q = numbers(step, layer, tokens, device)
            batch.append(layer, k[mine], v[mine], stream=stream)
            out = attend_context_parallel(batch, layer, q, visible)
            if whole:
                whole_batch.append(layer, k, v, stream=stream)
                expected = whole_batch.attend(layer, q, stream=stream)
                worst = max(worst, ((out - expected).norm() / expected.norm()).item())

    lengths = [None] * world
    dist.all_gather_object(lengths, len(sequence))
    if rank == 0:
        sent = (world - 1) * Q_HEADS * (4 * DIM + 4)
        print(f"{length} tokens as {' + '.join(map(str, lengths))} ({dist.get_backend()}); {sent} bytes from "
              f"each rank for a token and layer; as on one device within 4e-4: {worst < 4e-4}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
