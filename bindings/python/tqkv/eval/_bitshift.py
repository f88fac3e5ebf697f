# SPDX-License-Identifier: Apache-2.0
"""Codes of a bit-shift trellis, as spiritbuun's llama.cpp stores them (turbo2_tcq, turbo3_tcq), written anew
from their description: a state is the last nine bits of the code, each coordinate shifts in `bits` more, and
each of the 512 states has a level of its own. 128 coordinates after signs and a Hadamard rotation are one
path with a free beginning; the norm that is stored makes what is read back as long as what was written.

The encoder is Viterbi's; the levels are trained by Lloyd's iteration on N(0, 1), from a spread-out start.
"""
import math
from functools import lru_cache

import torch

STATE_BITS = 9
STATES = 1 << STATE_BITS


def paths(x: torch.Tensor, levels: torch.Tensor, bits: int) -> torch.Tensor:
    """x [n][length] -> states [n][length] of the path with the least squared error.

    A state's last `bits` bits are the newest. Those before state s are all whose low bits are s >> bits, so
    the best of them is found once for all 2^bits states that share these."""
    n, length = x.shape
    before, inputs = STATES >> bits, 1 << bits
    metric = x.new_zeros(n, STATES)
    chosen = torch.empty(length, n, before, dtype=torch.uint8, device=x.device)
    for t in range(length):
        if t > 0:
            least, first = metric.view(n, inputs, before).min(1)
            chosen[t] = first.to(torch.uint8)
            metric = least.repeat_interleave(inputs, 1)
        metric = metric + (x[:, t, None] - levels).square()
    states = torch.empty(n, length, dtype=torch.long, device=x.device)
    state = metric.argmin(1)
    for t in range(length - 1, -1, -1):
        states[:, t] = state
        if t > 0:
            low = state >> bits
            state = (chosen[t].gather(1, low[:, None])[:, 0].long() * before) + low
    return states


@lru_cache(maxsize=None)
def levels(bits: int, vectors: int = 600, rounds: int = 15) -> torch.Tensor:
    """[STATES]"""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(vectors, 128, generator=generator)
    scattered = (torch.arange(STATES) * 331 + 17) % STATES  # neighbouring states far apart: 331 is odd
    found = math.sqrt(2) * torch.special.erfinv(2 * (scattered + 0.5) / STATES - 1)
    for _ in range(rounds):
        states = paths(x, found, bits).flatten()
        count = torch.bincount(states, minlength=STATES)
        mean = torch.bincount(states, x.flatten(), STATES) / count.clamp(min=1)
        found = torch.where(count > 0, mean, found)
    return found


def code(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x [..][dim], rotated -> what is read back."""
    rows = x.reshape(-1, x.shape[-1])
    norm = rows.norm(dim=-1, keepdim=True)
    table = levels(bits).to(x.device)
    read = table[paths(rows / norm.clamp(min=1e-8) * math.sqrt(x.shape[-1]), table, bits)]
    scale = (norm / read.norm(dim=-1, keepdim=True).clamp(min=1e-8)).half().float()
    return (read * scale).reshape(x.shape)


def stored_bits(dim: int, bits: int) -> float:
    """Of a coordinate: the norm in 16 bits, and 16 for the first state."""
    return bits + 32 / dim


def signs(dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (dim,), generator=generator) * 2.0 - 1.0

