# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism on gloo processes: the pages of 2 and 4 ranks are, tile by tile, those of one device,
attention has the same bits, and only the all-reduce of the output projection adds in another order."""
import numpy as np
import pytest
import torch
import torch.distributed as dist
import tqkv
from ranks import numbers, on_ranks

LAYERS, HEADS, GROUP, DIM, TOKENS, HIDDEN = 3, 4, 2, 64, 150, 96
WIDTHS = dict(layer_key_bits=(4, 16, 6), layer_value_bits=(3, 2, 8))


def fed_cache(rank, world):
    """(pages [layer]: [page][head][bytes], outs [layer]) of a rank after a prompt, its cache in memory of
    ours."""
    heads, first = HEADS // world, rank * HEADS // world
    config = tqkv.Config(num_layers=LAYERS, num_q_heads=GROUP * heads, num_kv_heads=heads, head_dim=DIM,
                         first_layer=5, first_kv_head=first, rotation_seed=3, max_tokens=256, num_threads=1,
                         **WIDTHS)
    room = np.zeros(config.bytes().page_bytes + 256, np.uint8)
    pool = room[-room.ctypes.data % 256:][:config.bytes().page_bytes]
    with tqkv.Cache(tqkv.Config(**{**vars(config), "pool": pool})) as cache:
        sequence, batch = cache.sequence(), cache.batch()
        batch.plan([sequence], [TOKENS], [9])
        own, asking = slice(first, first + heads), slice(GROUP * first, GROUP * (first + heads))
        outs = []
        for layer in range(LAYERS):
            k, v = (numbers(2 * layer + i, TOKENS, HEADS, DIM)[:, own] for i in range(2))
            batch.append(layer, k, v)
            outs.append(batch.attend(layer, numbers(50 + layer, 9, GROUP * HEADS, DIM)[:, asking]).numpy())
        pages, at = [], 0
        for layer in range(LAYERS):
            size = config.layer_bytes(layer).page_bytes
            pages.append(pool[at:at + size].reshape(config.bytes().num_pages, heads, -1).copy())
            at += size
        assert at == len(pool)
        return pages, outs


@pytest.mark.parametrize("world", (2, 4))
def test_pages_and_attention_are_those_of_one_device(world):
    pages, outs = fed_cache(0, 1)
    found = on_ranks(world, lambda rank: fed_cache(rank, world))
    for layer in range(LAYERS):
        assert pages[layer].any(axis=2).sum() == (TOKENS + 63) // 64 * HEADS, "pages that hold something"
        together = np.concatenate([rank_pages[layer] for rank_pages, _ in found], axis=1)
        assert together.tobytes() == pages[layer].tobytes()
        together = np.concatenate([rank_outs[layer] for _, rank_outs in found], axis=1)
        assert together.tobytes() == outs[layer].tobytes()


@pytest.mark.parametrize("world", (2, 4))
def test_the_output_projection(world):
    _, outs = fed_cache(0, 1)
    weight = numbers(99, GROUP * HEADS * DIM, HIDDEN)

    def work(rank):
        rows = GROUP * HEADS // world * DIM
        own = torch.from_numpy(np.stack(fed_cache(rank, world)[1])).flatten(2)
        result = own @ weight[rank * rows:(rank + 1) * rows]
        dist.all_reduce(result)
        return result.numpy()

    out = np.stack(outs).reshape(LAYERS, 9, -1).astype(np.float64)
    exact, size = out @ weight.numpy().astype(np.float64), np.abs(out) @ np.abs(weight.numpy())
    # Float32 sums of n products, in any order: off by at most n u / (1 - n u) of the sum of magnitudes.
    terms = out.shape[-1]
    bound = terms * 2**-24 / (1 - terms * 2**-24) * size
    first, *others = on_ranks(world, work)
    assert (np.abs(first - exact) <= bound).all()
    assert all(other.tobytes() == first.tobytes() for other in others)
