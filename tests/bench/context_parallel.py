#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decode attention of one long sequence on one device and on several, in one run. Prints JSON on rank 0.

    torchrun --nproc-per-node 2 context_parallel.py [--tokens 1048576] [--quick]
    torchrun --nproc-per-node 1 context_parallel.py --share 2

TQKV_LIBRARY names the library. NCCL if every rank has a GPU, else gloo on the CPU with one thread a rank. One
layer of 32 query and 8 kv heads of 128 dimensions at 4+4 bits; a step is one query. "one": rank 0 attends to
all tokens, the others wait. "parallel": every rank attends to its part and merges all
(attend_context_parallel). Microseconds of a step, the median: "call" one call from Python until the device is
done; "graph" (GPUs) of a CUDA graph of 16 steps, the collective among them, as an engine replays its layers.
--share N, for one device: "parallel" is what each of N ranks does by itself, the attention to its part and
the merge of N; the exchange between them is missing. So "times faster" is the most that N devices can give.
"""
import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
import tqkv  # noqa: E402
from tqkv.distributed import ContextSplit, attend_context_parallel  # noqa: E402
from tqkv.merge import merge_states  # noqa: E402

Q_HEADS, KV_HEADS, DIM, PIECE, STEPS = 32, 8, 128, 4096, 16


class Device:
    """This rank's device."""

    def __init__(self):
        local, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        self.cuda = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
        self.name = f"cuda:{local}" if self.cuda else "cpu"
        if self.cuda:
            torch.cuda.set_device(local)
        torch.set_num_threads(1)
        dist.init_process_group("nccl" if self.cuda else "gloo")
        self.stream = torch.cuda.current_stream() if self.cuda else None

    def filled(self, tokens):
        """(sequence, batch) of a cache of that many tokens."""
        cache = tqkv.Cache(num_layers=1, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, key_bits=4,
                           value_bits=4, io_dtype="bfloat16", max_tokens=tokens + 64, max_batch_tokens=PIECE,
                           device=self.name, num_threads=1, stream=self.stream)
        sequence, batch = cache.sequence(), cache.batch()
        generator = torch.Generator(self.name).manual_seed(1)
        k, v = (torch.randn(PIECE, KV_HEADS, DIM, generator=generator, device=self.name).bfloat16()
                for _ in "kv")
        while len(sequence) < tokens:
            count = min(PIECE, tokens - len(sequence))
            batch.plan([sequence], [count], [0], stream=self.stream)
            batch.append(0, k[:count], v[:count], stream=self.stream)
        batch.plan([sequence], [0], [1], stream=self.stream)
        return sequence, batch

    def microseconds(self, step, times):
        taken = []
        for _ in range(times):
            self.wait()
            begin = time.perf_counter()
            step()
            self.wait()
            taken.append((time.perf_counter() - begin) * 1e6)
        return statistics.median(taken)

    def replayed(self, step, times):
        """Of a CUDA graph of STEPS steps, for each step."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        stream.synchronize()
        # Threads of NCCL ask for events meanwhile, which a capture of the whole process would not bear.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(STEPS):
                step()
        self.microseconds(graph.replay, 3)
        return self.microseconds(graph.replay, times) / STEPS

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--share", type=int, metavar="N")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    tokens, times = (8192, 5) if options.quick else (options.tokens, 51)
    device = Device()
    rank, world = dist.get_rank(), dist.get_world_size()
    q = torch.randn(1, Q_HEADS, DIM, generator=torch.Generator().manual_seed(2)).to(device.name).bfloat16()
    if options.share and world > 1:
        parser.error("--share N is for one rank")
    split = ContextSplit(block=64, rank=rank, world=options.share or world)
    _, batch = device.filled(split.held(tokens))
    if options.share:
        outs = torch.zeros(options.share, 1, Q_HEADS, DIM, device=device.name)
        lses = torch.zeros(options.share, 1, Q_HEADS, device=device.name)

    def parallel():
        if not options.share:
            return attend_context_parallel(batch, 0, q, None)
        stream = torch.cuda.current_stream() if device.cuda else None
        batch.attend(0, q, out=outs[0], lse=lses[0], out_dtype="float32", stream=stream)
        return merge_states(list(outs), list(lses), lse=True, stream=stream)[0].to(q.dtype)

    device.microseconds(parallel, 3)
    dist.barrier()
    ways = {"call": device.microseconds}
    if device.cuda:
        ways["graph"] = device.replayed
    together = {name: way(parallel, times) for name, way in ways.items()}
    if rank == 0:
        _, whole = device.filled(tokens)

        def one():
            whole.attend(0, q, stream=torch.cuda.current_stream() if device.cuda else None)

        one()
        alone = {name: way(one, times) for name, way in ways.items()}
        json.dump({"ranks": world, "share of": options.share, "backend": dist.get_backend(), "tokens": tokens,
                   "device": torch.cuda.get_device_name() if device.cuda else "cpu",
                   **{name: {"one us": round(alone[name], 1), "parallel us": round(together[name], 1),
                             "times faster": round(alone[name] / together[name], 2)} for name in ways}},
                  sys.stdout, indent=1)
        print()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
