# SPDX-License-Identifier: Apache-2.0
"""attend_context_parallel on 1 to 4 gloo processes: against float64 attention over what one cache holds, and
against that cache's own attend; which rank holds what; what is sent; what is refused."""
import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
import tqkv
from ranks import ATTEND, attention, difference, numbers, on_ranks

from tqkv.distributed import ContextSplit, attend_context_parallel

Q_HEADS, KV_HEADS, DIM, LAYERS = 4, 2, 64, 2
# Tokens of each step for three sequences: a prompt (of which some ranks get nothing), single tokens, drafts.
STEPS = [(300, 5, 70), (1, 1, 1), (4, 1, 2), (1, 0, 1)] + 30 * [(1, 1, 1)]


def make_cache(**fields):
    return tqkv.Cache(**{**dict(num_layers=LAYERS, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                                key_bits=4, value_bits=3, max_tokens=2048, max_sequences=4, num_threads=1),
                         **fields})


def tensors(step, layer, new, asked, dtype):
    seed = 10 * step + layer
    return [numbers(3 * seed + i, sum(rows), heads, DIM).to(dtype)
            for i, (rows, heads) in enumerate(((new, KV_HEADS), (new, KV_HEADS), (asked, Q_HEADS)))]


def decode(attend, split, cache, dtype, steps, given=None):
    """Runs the steps on a cache that holds its part of every sequence (split None: all of it); returns the
    (out, lse) of each step and layer, and the sequences. Numbers are rounded to dtype, given as `given`."""
    sequences, batch = [cache.sequence() for _ in steps[0]], cache.batch()
    lengths, results = [0] * len(sequences), []
    for step, new in enumerate(steps):
        asked = [min(n, 4) for n in new]
        mine, first = [], 0
        for length, n in zip(lengths, new):
            offsets = range(n) if split is None else split.mine(length, n)
            mine.append([first + i for i in offsets])
            first += n
        lengths = [length + n for length, n in zip(lengths, new)]
        positions = torch.cat([torch.arange(length - n, length) for length, n in zip(lengths, asked)])
        batch.plan(sequences, [len(rows) for rows in mine], asked)
        for layer in range(LAYERS):
            k, v, q = (x.to(given or dtype) for x in tensors(step, layer, new, asked, dtype))
            rows = sum(mine, [])
            batch.append(layer, k[rows], v[rows])
            results.append(attend(batch, layer, q, positions))
    return results, sequences


def on_one(fields, dtype, steps, sinks, window, options):
    """The same steps on one device, and in float64 over what its cache holds. That is read from a cache of
    float32, which holds the same codes and rounds nothing when it is read; and which has no windows, so all
    can be read."""
    def attend(batch, layer, q, positions):
        return batch.attend(layer, q, lse=True, out_dtype="float32", sink_logits=sinks, sliding_window=window,
                            **options)

    results, _ = decode(attend, None, make_cache(**fields), dtype, steps)
    readable = {name: value for name, value in fields.items() if name not in ("layers", "io_dtype")}
    _, sequences = decode(lambda *_: None, None, make_cache(**readable), dtype, steps, torch.float32)
    held = [[s.read(layer, 0, len(s), like=np.empty(0, np.float32)) for s in sequences]
            for layer in range(LAYERS)]
    exact, lengths = [], [0] * len(sequences)
    for step, new in enumerate(steps):
        asked = [min(n, 4) for n in new]
        lengths = [length + n for length, n in zip(lengths, new)]
        for layer in range(LAYERS):
            q, first, parts = tensors(step, layer, new, asked, dtype)[2].double(), 0, []
            for i, (length, n) in enumerate(zip(lengths, asked)):
                k, v = (x[:length] for x in held[layer][i])
                parts.append(attention(q[first:first + n], k, v, range(length - n, length), sinks=sinks,
                                       window=window, softcap=options.get("logit_softcap", 0.0)))
                first += n
            exact.append(tuple(np.concatenate(x) for x in zip(*parts)))
    return results, exact


def rank_work(rank, *, block, fields, dtype, steps, sinks, wire, window, options):
    split = ContextSplit(block)

    def attend(batch, layer, q, positions):
        return attend_context_parallel(batch, layer, q, split.visible(positions, sliding_window=window),
                                       lse=True, wire_dtype=wire, sink_logits=sinks,
                                       out=torch.empty(*q.shape, dtype=torch.float32), **options)

    results, sequences = decode(attend, split, make_cache(**fields), dtype, steps)
    totals = [sum(step[i] for step in steps) for i in range(3)]
    assert [len(s) for s in sequences] == [split.held(total) for total in totals]
    return [(out.numpy(), lse.numpy()) for out, lse in results]


SINKS = torch.tensor([0.5, -1.0, 3.0, -torch.inf])
# name: (ranks, block, cache, type, sinks, type on the wire, window, options of attend)
CASES = {
    "one rank": (1, 32, {}, "float32", None, "float32", 0, {}),
    "two ranks": (2, 32, {}, "float32", None, "float32", 0, {}),
    "three ranks, odd blocks": (3, 7, {}, "float32", None, "float32", 0, {}),
    "four ranks": (4, 32, {}, "float32", None, "float32", 0, {}),
    "in parts": (4, 100, {}, "float32", None, "float32", 0, {}),
    "sinks, soft-cap": (3, 32, {}, "float32", SINKS, "float32", 0, dict(logit_softcap=2.0)),
    "window": (3, 16, {}, "float32", SINKS, "float32", 50, {}),
    "layers with a window": (3, 8, dict(layers=[tqkv.Layer(sliding_window=40)] * LAYERS,
                                        rollback_tokens=3, max_batch_tokens=512),
                             "float32", None, "float32", 40, {}),
    "raw": (2, 32, dict(key_bits=16, value_bits=16), "float32", None, "float32", 0, {}),
    "bfloat16": (2, 32, dict(io_dtype="bfloat16"), "bfloat16", None, "float32", 0, {}),
    "bfloat16 on the wire": (4, 32, {}, "float32", None, "bfloat16", 0, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_one_device(name):
    world, block, fields, dtype, sinks, wire, window, options = CASES[name]
    dtype = getattr(torch, dtype)
    # A rank answers more queries than it has tokens in layers without windows alone.
    steps = [(300, 50, 70), *STEPS[1:]] if "layers" in fields else STEPS
    found = on_ranks(world, functools.partial(rank_work, block=block, fields=fields, dtype=dtype, steps=steps,
                                              sinks=sinks, wire=wire, window=window, options=options))
    one, exact = on_one(fields, dtype, steps, sinks, window, options)
    # A part of n / ranks random tokens is sqrt(ranks) times as large as the whole; parts and sum are rounded
    # to 8 bits of mantissa.
    rounding = 0 if wire == "float32" else 2**-9 * (1 + world**0.5)
    for step, ((out, lse), (one_out, one_lse), (exact_out, exact_lse)) in enumerate(
            zip(found[0], one, exact)):
        assert difference(out, exact_out) <= ATTEND + rounding, step
        assert difference(out, one_out) <= 2 * ATTEND + rounding, step
        # 4.5 sigma of a logit's 3.6e-5 |q| |k| / sqrt(dim), keys up to 1.5 times their nominal length
        assert np.abs(lse - exact_lse).max() <= 4.5 * 3.6e-5 * 1.5 * 1.5, step
    for other in found[1:]:
        for (out, lse), (other_out, other_lse) in zip(found[0], other):
            assert out.tobytes() == other_out.tobytes() and lse.tobytes() == other_lse.tobytes()
    if rounding:
        assert max(difference(out, exact[i][0]) for i, (out, _) in enumerate(found[0])) > ATTEND


@pytest.mark.parametrize("block", (1, 3, 32))
@pytest.mark.parametrize("world", (1, 2, 5))
def test_split_against_counting(world, block):
    splits = [ContextSplit(block, rank=rank, world=world) for rank in range(world)]
    owner = [next(r for r, s in enumerate(splits) if s.mine(token, 1)) for token in range(70)]
    assert owner == [token // block % world for token in range(70)]
    positions = torch.arange(70)
    for rank, split in enumerate(splits):
        counts = np.concatenate(([0], np.cumsum([o == rank for o in owner])))
        assert [split.held(n) for n in range(71)] == list(counts)
        assert split.held(torch.arange(71)).tolist() == list(counts)
        assert split.mine(11, 40) == [i for i in range(40) if owner[11 + i] == rank]
        for window in (0, 1, 9):
            begin, end = split.visible(positions, sliding_window=window)
            assert begin.dtype == end.dtype == torch.int32
            lowest = [max(0, p + 1 - window) if window else 0 for p in range(70)]
            assert end.tolist() == list(counts[1:]) and begin.tolist() == list(counts[lowest])
    assert max(s.held(70) for s in splits) - min(s.held(70) for s in splits) <= block


def asked(rank, group=None, **options):
    """One decode step of 2 queries of a short sequence."""
    split, cache = ContextSplit(4, group), make_cache()
    sequence, batch = cache.sequence(), cache.batch()
    k, v, q = numbers(1, 20, KV_HEADS, DIM), numbers(2, 20, KV_HEADS, DIM), numbers(3, 2, Q_HEADS, DIM)
    mine = split.mine(0, 20)
    batch.plan([sequence], [len(mine)], [2])
    batch.append(0, k[mine], v[mine])
    visible = split.visible(torch.arange(18, 20))
    return batch, q, visible, attend_context_parallel(batch, 0, q, visible, group=group, **options)


def test_a_group_of_some_ranks():
    def work(rank):
        group = dist.new_group([0, 2])
        if rank != 1:
            return asked(rank, group)[3].numpy()
        with pytest.raises(tqkv.InvalidArgument, match="rank = -1: .*does not belong to the group"):
            ContextSplit(4, group)
        batch, q, visible = _planned()
        with pytest.raises(tqkv.InvalidArgument, match="group: this process does not belong to it"):
            attend_context_parallel(batch, 0, q, visible, group=group)
        return None

    found = on_ranks(3, work)
    pair = on_ranks(2, lambda rank: asked(rank)[3].numpy())
    assert found[0].tobytes() == found[2].tobytes() == pair[0].tobytes()


def _planned(queries=2):
    cache = make_cache()
    sequence, batch = cache.sequence(), cache.batch()
    batch.plan([sequence], [queries])
    batch.append(0, numbers(1, queries, KV_HEADS, DIM), numbers(2, queries, KV_HEADS, DIM))
    visible = ContextSplit(rank=0, world=1).visible(torch.arange(queries))
    return batch, numbers(3, queries, Q_HEADS, DIM), visible


def test_what_is_sent_and_what_is_returned():
    def work(rank):
        sent, gather = [], dist.all_gather_into_tensor

        def record(everything, part, **options):
            sent.append(part.numel() * part.element_size())
            return gather(everything, part, **options)

        dist.all_gather_into_tensor = record
        batch, q, visible, out = asked(rank)
        for wire, size in (("float32", 4), ("float16", 2)):
            attend_context_parallel(batch, 0, q, visible, wire_dtype=wire)
            assert sent[-1] == 2 * Q_HEADS * (DIM * size + 4), "as the docstring says"
        again, lse = attend_context_parallel(batch, 0, q, visible, lse=True)
        own, own_lse = torch.empty_like(out), torch.empty(2, Q_HEADS)
        result = attend_context_parallel(batch, 0, q, visible, out=own, lse=own_lse)
        assert result[0] is own and result[1] is own_lse
        assert torch.equal(own, out) and torch.equal(again, out) and torch.equal(own_lse, lse)
        half = torch.empty(*out.shape, dtype=torch.float16)
        assert attend_context_parallel(batch, 0, q, visible, out=half) is half
        assert torch.equal(half, out.half())
        # Nothing asked: nothing is sent.
        count = len(sent)
        batch.plan([batch.cache.sequence()], [0], [0])
        nothing = attend_context_parallel(batch, 0, q[:0], (visible[0][:0], visible[1][:0]))
        assert nothing.shape == (0, Q_HEADS, DIM) and len(sent) == count

    on_ranks(2, work)


def test_without_ranges():
    """visible = None, of a query that sees all: the bits of ranges that say so; and where it is refused."""
    def work(rank):
        batch, q, visible, _ = asked(rank)
        with pytest.raises(tqkv.InvalidArgument, match="visible = None: the plan asks 2 queries of a sequ"):
            attend_context_parallel(batch, 0, q, None)
        sequence = batch.cache.sequence()
        k = numbers(5, 10, KV_HEADS, DIM)
        batch.plan([sequence], [10], [0])
        batch.append(0, k, k)
        batch.plan([sequence], [0], [1])
        ranges = ContextSplit(10).visible(torch.tensor([19]))
        ways = [attend_context_parallel(batch, 0, q[:1], given) for given in (ranges, None)]
        assert torch.equal(*ways)

    on_ranks(2, work)


def test_what_is_refused():
    def work(rank):
        batch, q, visible = _planned()
        for text, options in (("wire_dtype = 'int8': must be one of float32, float16, bfloat16",
                               dict(wire_dtype="int8")),
                              ("out: a ndarray of shape", dict(out=q.numpy())),
                              ("lse: has shape", dict(lse=torch.empty(3, Q_HEADS)))):
            with pytest.raises(tqkv.InvalidArgument, match=text):
                attend_context_parallel(batch, 0, q, visible, **options)
        for text, wrong in (("q: a ndarray of shape", q.numpy()), ("q: a Tensor of shape", q.flatten()),
                            ("q: has shape", q[:, :, :32]), ("q: has float16", q.half())):
            with pytest.raises(tqkv.InvalidArgument, match=text):
                attend_context_parallel(batch, 0, wrong, visible)
        with pytest.raises(tqkv.InvalidArgument, match="visible_end: has int64"):
            attend_context_parallel(batch, 0, q, (visible[0], visible[1].long()))
        with pytest.raises(tqkv.InvalidArgument, match="layer"):
            attend_context_parallel(batch, LAYERS, q, visible)
        with pytest.raises(tqkv.InvalidState, match="layer = 1: .*append its new tokens"):
            attend_context_parallel(batch, 1, q, visible)

    on_ranks(1, work)
    for text, arguments in (("block = 0", dict(block=0)), ("rank = 2: must be 0 .. 1", dict(rank=2)),
                            ("block = 1.5", dict(block=1.5))):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            ContextSplit(**{**dict(rank=0, world=2), **arguments})
    with pytest.raises(tqkv.InvalidArgument, match="sliding_window = -1"):
        ContextSplit(rank=0, world=2).visible(torch.arange(3), sliding_window=-1)
