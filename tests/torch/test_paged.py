# SPDX-License-Identifier: Apache-2.0
"""Operators on an engine's blocks against PagedStep's own calls, which have the bits of a cache; opcheck,
compiled steps, what is refused."""
import gc

import pytest
import torch
import tqkv
import tqkv.torch
from rig import DEVICE, DIM, KV_HEADS, LAYERS, Q_HEADS, numbers, same_bits

ops = torch.ops.tqkv
BLOCKS, SIZE = 12, 64


class Engine:
    """Two requests, of 70 and 9 tokens, in blocks that lie anywhere; a hole and padding."""

    def __init__(self, heads_first=False, **fields):
        self.codec = tqkv.PagedCodec(num_layers=LAYERS, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS,
                                     head_dim=DIM, key_bits=4, value_bits=3, page_size=SIZE, num_threads=1,
                                     device=DEVICE, **fields)
        order = "heads" if heads_first else "blocks"
        shape = (KV_HEADS, BLOCKS, -1) if heads_first else (BLOCKS, KV_HEADS, -1)
        self.blocks = [self.room(layer, order).view(shape) for layer in range(LAYERS)]
        if heads_first:
            self.blocks = [blocks.transpose(0, 1) for blocks in self.blocks]
        for blocks in self.blocks:
            blocks.fill_(0xA5)
        self.step = self.codec.step()
        self.bound = tqkv.torch.bind(self.step)

    def room(self, layer, order):
        if DEVICE == "cpu":
            return torch.frombuffer(self.codec.empty(layer, BLOCKS, order=order), dtype=torch.uint8)
        with pytest.raises(tqkv.NotSupported, match="blocks are your framework's memory"):
            self.codec.empty(layer, BLOCKS, order=order)
        layout = self.codec.page_layout(layer, BLOCKS)
        return torch.empty(layout.total_bytes, dtype=torch.uint8, device=DEVICE)

    def plan(self):
        slots = [7 * SIZE + i for i in range(64)] + [2 * SIZE + i for i in range(6)]
        slots += [5 * SIZE + i for i in range(9)] + [-1, -1]
        int32 = dict(dtype=torch.int32, device=DEVICE)
        self.step.plan(slot_mapping=torch.tensor(slots, device=DEVICE),
                       seq_lens=torch.tensor([70, 9, 0], **int32),
                       block_table=torch.tensor([[7, 2], [5, -9], [-9, -9]], **int32),
                       query_start_loc=torch.tensor([0, 70, 79, 79], **int32))
        self.tokens = len(slots)
        return self

    def tensors(self, layer=0):
        return [numbers(10 * layer + i, self.tokens, heads, DIM)
                for i, heads in enumerate((KV_HEADS, KV_HEADS, Q_HEADS))]

    def pages(self, layer):
        return self.codec.pages(layer, self.blocks[layer])


@pytest.mark.parametrize("heads_first", (False, True))
@pytest.mark.parametrize("options", ({}, dict(sliding_window=9, softmax_scale=0.2), dict(history_only=True)))
def test_as_the_packages_own_calls(options, heads_first):
    ours, theirs = Engine(heads_first).plan(), Engine().plan()
    for layer in range(LAYERS):
        k, v, q = ours.tensors(layer)
        ours.bound.append(layer, ours.blocks[layer], k, v)
        theirs.step.append(layer, theirs.pages(layer), k, v)
        assert torch.equal(ours.blocks[layer], theirs.blocks[layer])
        expected = theirs.step.attend(layer, theirs.pages(layer), q, lse=True, **options)
        blocks = ours.blocks[layer]
        assert all(map(same_bits, ours.bound.attend(layer, blocks, q, lse=True, **options), expected))
        assert same_bits(ours.bound.attend(layer, blocks, q, **options), expected[0])
        out, lse = torch.full_like(q, 7), torch.full(q.shape[:2], 7.0, device=DEVICE)
        assert ours.bound.attend(layer, blocks, q, out=out, lse=lse, **options) == (out, lse)
        assert all(map(same_bits, (out, lse), expected))


def samples():
    engine = Engine().plan()
    k, v, q = engine.tensors()
    key = engine.blocks[0], engine.bound.number, 0
    engine.bound.append(0, engine.blocks[0], k, v)
    return engine, {"paged_append": (ops.paged_append, (*key, k, v)),
                    "paged_attend": (ops.paged_attend, (*key, q)),
                    "paged_attend_out": (ops.paged_attend_out, (*key, q, torch.empty_like(q)))}


@pytest.mark.parametrize("name", ("paged_append", "paged_attend", "paged_attend_out"))
def test_opcheck(name):
    engine, all_samples = samples()
    operator, arguments = all_samples[name]
    options = {"with_lse": False} if name == "paged_attend" else {}
    results = torch.library.opcheck(operator.default, arguments, options)
    assert set(results.values()) == {"SUCCESS"} and len(results) >= 4, results


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_a_step_in_one_graph(backend):
    def run(bound, blocks, tensors):
        outs = []
        for layer in range(LAYERS):
            k, v, q = tensors[layer]
            bound.append(layer, blocks[layer], k, v)
            outs.append(bound.attend(layer, blocks[layer], q))
        return outs

    ours, theirs = Engine().plan(), Engine().plan()
    tensors = [ours.tensors(layer) for layer in range(LAYERS)]
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for _ in range(2):  # planned anew
        found = compiled(ours.bound, ours.blocks, tensors)
        assert all(map(same_bits, found, run(theirs.bound, theirs.blocks, tensors)))
        assert all(map(torch.equal, ours.blocks, theirs.blocks))
        ours.plan(), theirs.plan()


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are CUDA's")
def test_a_captured_step():
    """Plan, append and attend of all layers in one CUDA graph, replayed with other lengths and tables."""
    ours, theirs = Engine(), Engine()
    tokens = 16
    numbers_of = [[torch.zeros(tokens, heads, DIM, device=DEVICE) for heads in (KV_HEADS, KV_HEADS, Q_HEADS)]
                  for _ in range(LAYERS)]
    int32 = dict(dtype=torch.int32, device=DEVICE)
    arrays = dict(slot_mapping=torch.full((tokens, ), -1, device=DEVICE), seq_lens=torch.zeros(3, **int32),
                  block_table=torch.full((3, 4), -1, **int32), query_start_loc=torch.zeros(4, **int32))
    bounds = dict(num_tokens=tokens, max_query_len=tokens, max_seq_len=4 * SIZE)
    room = ours.codec.workspace_bytes(num_reqs=3, **bounds)
    step = ours.codec.step(torch.empty(room, dtype=torch.uint8, device=DEVICE))
    bound = tqkv.torch.bind(step)

    def run(bound, step, blocks, stream=None):
        step.plan(**arrays, **bounds, stream=stream)
        outs = []
        for layer in range(LAYERS):
            k, v, q = numbers_of[layer]
            bound.append(layer, blocks[layer], k, v)
            outs.append(bound.attend(layer, blocks[layer], q, lse=True))
        return outs

    run(bound, step, ours.blocks)  # all padding
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(bound, step, ours.blocks, torch.cuda.current_stream())
    for blocks, other in zip(ours.blocks, theirs.blocks):
        blocks.copy_(other)
    lengths = [0, 0, 0]
    for replay, counts in enumerate(([9, 5, 0], [1, 1, 1], [0, 0, 0], [14, 0, 2], [1, 1, 1])):
        slots, starts = [], [0]
        for i, count in enumerate(counts):
            slots += [(3 * i + (t // SIZE)) * SIZE + t % SIZE for t in range(lengths[i], lengths[i] + count)]
            lengths[i] += count
            starts.append(starts[-1] + count)
        arrays["slot_mapping"].copy_(torch.tensor(slots + [-1] * (tokens - len(slots))))
        arrays["seq_lens"].copy_(torch.tensor(lengths))
        arrays["query_start_loc"].copy_(torch.tensor(starts))
        arrays["block_table"].copy_(torch.tensor([[3 * i, 3 * i + 1, -1, 2**31 - 1] for i in range(3)]))
        for layer in range(LAYERS):
            for i, tensor in enumerate(numbers_of[layer]):
                tensor.copy_(numbers(100 * replay + 10 * layer + i, *tensor.shape))
        graph.replay()
        expected = run(theirs.bound, theirs.step, theirs.blocks)
        torch.cuda.synchronize()
        for layer in range(LAYERS):
            assert all(map(same_bits, captured[layer], expected[layer])), (replay, layer)
            assert torch.equal(ours.blocks[layer], theirs.blocks[layer]), (replay, layer)
    assert not ours.codec.check()


def test_what_is_refused():
    engine = Engine()
    engine.tokens = 81
    k, v, q = engine.tensors()
    blocks, bound = engine.blocks[0], engine.bound
    assert tqkv.torch.bind(engine.step).number == bound.number
    unplanned = f"TQ_ERROR_INVALID_STATE: step = {bound.number}: no plan was made"
    with pytest.raises(RuntimeError, match=unplanned):
        bound.append(0, blocks, k, v)
    engine.plan()
    for text, call in (
        ("k: has shape [80, 2, 64], expected [81, 2, 64] = [num_tokens][num_kv_heads][head_dim]",
         lambda: bound.append(0, blocks, k[1:], v)),
        ("q: has float16", lambda: bound.attend(0, blocks, q.half())),
        ("blocks: has shape [12, 3, ",
         lambda: bound.append(0, torch.zeros(12, 3, 3712, dtype=torch.uint8, device=DEVICE), k, v)),
        ("blocks: has shape [12, 2, 100] and strides ", lambda: bound.append(0, blocks[:, :, :100], k, v)),
        ("blocks: has int32 elements, expected uint8", lambda: bound.attend(0, blocks.int(), q)),
        *([("= 7", lambda: bound.attend(0, blocks[:7], q))] if DEVICE == "cpu" else []),  # no such block
        ("layer = 2", lambda: bound.append(2, blocks, k, v))):
        with pytest.raises(RuntimeError) as refused:
            call()
        assert str(refused.value).startswith("TQ_ERROR_INVALID_ARGUMENT: ") and text in str(refused.value)
    with pytest.raises(tqkv.NotSupported, match="q: requires a gradient"):
        bound.attend(0, blocks, q.requires_grad_())


def test_steps_that_are_gone():
    engine = Engine().plan()
    k, v, _ = engine.tensors()
    other = tqkv.torch.bind(engine.codec.step())
    number = other.number
    del other
    gc.collect()
    for gone in (number, None):
        if gone is None:
            gone = engine.bound.number
            engine.codec.close()
        with pytest.raises(RuntimeError, match=f"TQ_ERROR_INVALID_STATE: step = {gone}: is closed, or was"):
            ops.paged_append(engine.blocks[0], gone, 0, k, v)
