# SPDX-License-Identifier: Apache-2.0
"""Ranks as forked processes of the test, and attention in float64 to compare their results with."""
import multiprocessing
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing import connection

import numpy as np
import torch
import torch.distributed as dist

SECONDS = 60
# Attention on codes is off by 5e-5 of its output's size, rms: 16-bit queries and weights; the tolerance is
# four times that (tests/conformance/attend_test.cpp derives it). Merging is float32 arithmetic.
ATTEND = 2e-4


def on_ranks(world, work):
    """[work(rank) of each rank], computed in `world` processes of one gloo group. An exception in one of them
    ends them all and is raised here with its text."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, world, f"{folder}/store", work, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _results(pipes)
        finally:
            for process in processes:
                process.join(1 if process.exitcode is None else None)
                if process.exitcode is None:
                    process.kill()
                    process.join()


def _rank(rank, world, store, work, pipe):
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world,
                                timeout=timedelta(seconds=SECONDS))
        result = work(rank)
        dist.barrier()
        dist.destroy_process_group()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def _results(pipes):
    results, deadline = {}, time.monotonic() + SECONDS
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = connection.wait(waiting, max(0, deadline - time.monotonic()))
        assert ready, f"ranks hang: {sorted(set(range(len(pipes))) - set(results))}"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                good, results[rank] = pipe.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            assert good, f"rank {rank}:\n{results[rank]}"
    return [results[rank] for rank in range(len(pipes))]


def numbers(seed, *shape):
    """The same on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(q, k, v, positions, *, window=0, softcap=0.0, sinks=None):
    """(out, lse) in float64 of queries at `positions` over the tokens of one sequence."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group, tokens = q.shape[1] // k.shape[1], np.arange(len(k))
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.zeros(q.shape[:2])
    for row, position in enumerate(np.asarray(positions)):
        seen = (tokens <= position) & (tokens > position - window if window else True)
        for head in range(q.shape[1]):
            logits = k[seen, head // group] @ q[row, head] / np.sqrt(q.shape[2])
            logits = softcap * np.tanh(logits / softcap) if softcap else logits
            all_logits = logits if sinks is None else np.append(logits, float(sinks[head]))
            lse[row, head] = np.logaddexp.reduce(all_logits)
            out[row, head] = np.exp(logits - lse[row, head]) @ v[seen, head // group]
    return out, lse


def difference(found, expected):
    """Relative to the size of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
