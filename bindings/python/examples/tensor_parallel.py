#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: each rank keeps some of the kv heads, with the query heads that read them.

    torchrun --nproc-per-node 2 tensor_parallel.py          NCCL if every rank has a GPU, else gloo

A rank's cache is an ordinary one: num_q_heads and num_kv_heads are its share, first_kv_head says where the
share begins in the whole model. With that number the rank stores byte for byte what one device stores for its
heads, so a sequence may move between groups of any size. The projections are split as usual: q, k and v by
columns, the output projection by rows, then one all-reduce a layer. tqkv adds no communication of its own.
The last line compares with the same model on one device.
"""
import os

import torch
import torch.distributed as dist

import tqkv

LAYERS, HIDDEN, Q_HEADS, KV_HEADS, DIM = 2, 256, 8, 4, 64


class Attention:
    """The attention layers of a model, or one rank's share of them."""

    def __init__(self, rank, world, device):
        if KV_HEADS % world:
            raise SystemExit(f"{KV_HEADS} kv heads cannot be shared by {world} ranks")
        self.q_heads, self.kv_heads, self.world = Q_HEADS // world, KV_HEADS // world, world
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(7)  # in place of a checkpoint: the same on all ranks

        def weight(rows, columns):
            return (torch.randn(rows, columns, generator=generator) / rows**0.5).to(self.device)

        def share(heads):
            return slice(rank * heads * DIM, (rank + 1) * heads * DIM)

        self.layers = []
        for _ in range(LAYERS):
            q, k, v = (weight(HIDDEN, heads * DIM) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
            o, own, own_kv = weight(Q_HEADS * DIM, HIDDEN), share(self.q_heads), share(self.kv_heads)
            self.layers.append((q[:, own].contiguous(), k[:, own_kv].contiguous(),
                                v[:, own_kv].contiguous(), o[own].contiguous()))
        self.cache = tqkv.Cache(num_layers=LAYERS, num_q_heads=self.q_heads, num_kv_heads=self.kv_heads,
                                first_kv_head=rank * self.kv_heads, head_dim=DIM, key_bits=4, value_bits=4,
                                max_tokens=4096, device=device, stream=self.stream())
        self.sequence, self.batch = self.cache.sequence(), self.cache.batch()

    def stream(self):
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def step(self, x):
        """x [tokens][HIDDEN] -> the same. A model has its rotary embedding and its MLP here, too."""
        tokens, stream = len(x), self.stream()
        self.batch.plan([self.sequence], [tokens], stream=stream)
        for layer, (wq, wk, wv, wo) in enumerate(self.layers):
            q, k, v = ((x @ w).view(tokens, -1, DIM) for w in (wq, wk, wv))
            self.batch.append(layer, k, v, stream=stream)
            out = self.batch.attend(layer, q, stream=stream).flatten(1) @ wo
            if self.world > 1:
                dist.all_reduce(out)
            x = x + out
        return x


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= local_world
    device = f"cuda:{local}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")

    part, whole = Attention(rank, world, device), Attention(0, 1, device)
    worst = 0.0
    for tokens in [48] + 8 * [1]:  # a prompt, then a token at a time
        x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).to(device)
        out, expected = part.step(x), whole.step(x)
        worst = max(worst, ((out - expected).norm() / expected.norm()).item())
    share = part.cache.config.bytes().page_bytes / whole.cache.config.bytes().page_bytes
    if rank == 0:
        # One all-reduce adds in another order than one device: float32 rounding, and what the codes of
        # layer 2 make of it.
        print(f"{world} ranks ({dist.get_backend()}), {len(part.sequence)} tokens, {share:.2f} of the pages "
              f"on each; as on one device within 1e-3: {worst < 1e-3}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
