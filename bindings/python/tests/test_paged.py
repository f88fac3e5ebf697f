# SPDX-License-Identifier: Apache-2.0
"""PagedCodec against Cache: the same tokens in an engine's blocks give the same bits; arrays of every kind;
what is refused by the package itself."""
import threading

import numpy as np
import pytest
import tqkv
from test_cache import random

SHAPE = dict(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=64, key_bits=4, value_bits=3, page_size=32,
             num_threads=1)


def int64(*values):
    return np.array(values, "int64")


def int32(*values):
    return np.array(values, "int32")


class Engine:
    """Requests with blocks of their own in a random order, block 0 for padding."""

    def __init__(self, order="blocks", block_size=32, num_blocks=40, **changes):
        self.codec = tqkv.PagedCodec(**{**SHAPE, "page_size": block_size, **changes})
        self.size = block_size
        layout = self.codec.page_layout(0, num_blocks, order=order)
        heads = layout.block_bytes // layout.block_head_bytes
        shape = (num_blocks, heads) if order == "blocks" else (heads, num_blocks)
        shape += (layout.block_head_bytes, )
        self.arrays = [np.asarray(self.codec.empty(layer, num_blocks, order=order)).reshape(shape)
                       for layer in range(2)]
        for array in self.arrays:
            array[:] = 0xFF
        self.pages = [self.codec.pages(i, array, order=order) for i, array in enumerate(self.arrays)]
        self.free = list(np.random.default_rng(3).permutation(np.arange(1, num_blocks)))
        self.blocks, self.lengths = {}, {}
        self.step = self.codec.step()

    def plan(self, new_tokens, padding=3):
        """new_tokens: {request: count}."""
        table, lens, starts, slots = np.full((len(new_tokens) + 1, 8), -9, "int32"), [], [0], []
        for row, (request, count) in enumerate(new_tokens.items()):
            blocks, old = self.blocks.setdefault(request, []), self.lengths.get(request, 0)
            for token in range(old, old + count):
                if token % self.size == 0:
                    blocks.append(int(self.free.pop()))
                slots.append(blocks[token // self.size] * self.size + token % self.size)
            self.lengths[request] = old + count
            table[row, :len(blocks)] = blocks
            lens.append(old + count)
            starts.append(starts[-1] + count)
        self.step.plan(slot_mapping=int64(*slots, *[-1] * padding), block_table=table,
                       seq_lens=int32(*lens, 0), query_start_loc=int32(*starts, starts[-1]))
        return len(slots)


BANDS = tqkv.KeyBands((4, 1), (tuple(range(63, -1, -1)), tuple(range(64))))


@pytest.mark.parametrize("layers", (None, (tqkv.Layer(key_bands=BANDS), ) * 2))
@pytest.mark.parametrize("order", ("blocks", "heads"))
def test_an_engine_gives_the_bits_of_a_cache(order, layers):
    engine = Engine(order, layers=layers)
    shape = {**SHAPE, "layers": layers}
    with tqkv.Cache(**shape, max_tokens=1024, max_sequences=2) as cache, engine.codec as codec:
        assert codec.fingerprint() == cache.fingerprint()
        a, b = cache.sequence(), cache.sequence()
        batch = cache.batch()
        for counts in ((40, 1), (1, 33), (1, 1), (64, 2)):
            rows = engine.plan({"a": counts[0], "b": counts[1]})
            batch.plan([a, b], counts)
            for layer, pages in enumerate(engine.pages):
                q, k, v = random(rows + 3, 4, 64), random(rows + 3, 2, 64), random(rows + 3, 2, 64)
                batch.append(layer, k[:rows], v[:rows])
                engine.step.append(layer, pages, k, v)
                want, want_lse = batch.attend(layer, q[:rows], lse=True, sink_logits=np.ones(4, "float32"))
                out, lse = engine.step.attend(layer, pages, q, lse=True, sink_logits=np.ones(4, "float32"))
                assert np.array_equal(out[:rows], want) and np.array_equal(lse[:rows], want_lse)
                assert not out[rows:].any() and np.all(lse[rows:] == -np.inf)
        slots = int64(engine.blocks["b"][1] * 32 + 2, -1)
        k, v = codec.read(1, engine.pages[1], slots, like=q)
        want_k, want_v = b.read(1, 34, 1, like=q)
        assert np.array_equal(k[:1], want_k) and np.array_equal(v[:1], want_v) and not k[1].any()
        codec.copy(1, engine.pages[1], engine.pages[1], int64(engine.blocks["b"][1], 0).reshape(1, 2))
        assert np.array_equal(codec.read(1, engine.pages[1], int64(2), like=q)[0], k[:1])


def test_torch_tensors_of_an_engines_form():
    """Blocks [blocks][heads][tokens][bytes a token], of which a view is taken; bfloat16."""
    torch = pytest.importorskip("torch")
    with tqkv.PagedCodec(**{**SHAPE, "io_dtype": "bfloat16"}) as codec, \
            tqkv.Cache(**{**SHAPE, "io_dtype": "bfloat16"}, max_tokens=64) as cache:
        a_token = codec.page_layout(0).token_bytes // 2  # of a head
        array = torch.full((6, 2, 32, a_token), 255, dtype=torch.uint8)
        pages = codec.pages(0, array.flatten(2))
        step, batch = codec.step(), cache.batch()
        q, k, v = (torch.randn(40, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
        slots = torch.cat([torch.arange(96, 128), torch.arange(32, 40)])
        step.plan(slot_mapping=slots, block_table=torch.tensor([[3, 1]], dtype=torch.int32),
                  seq_lens=torch.tensor([40], dtype=torch.int32),
                  query_start_loc=torch.tensor([0, 40], dtype=torch.int32))
        step.append(0, pages, k, v)
        batch.plan([cache.sequence()], [40])
        batch.append(0, k, v)
        assert torch.equal(step.attend(0, pages, q), batch.attend(0, q))
        assert torch.all(array[0] == 255) and not torch.all(array[3] == 255)


def test_masks_and_steps_without_append():
    engine = Engine()
    with engine.codec:
        engine.plan({"a": 50}, padding=0)
        k, v, q = random(50, 2, 64), random(50, 2, 64), random(50, 4, 64)
        engine.step.append(0, engine.pages[0], k, v)
        causal = engine.step.attend(0, engine.pages[0], q)
        again = engine.codec.step()
        again.plan(block_table=int32(*engine.blocks["a"]).reshape(1, 2), seq_lens=int32(50),
                   query_start_loc=int32(0, 50), num_tokens=50)
        whole = again.attend(0, engine.pages[0], q, visible_begin=np.zeros(50, "int32"),
                             visible_end=np.full(50, 50, "int32"))
        assert np.array_equal(causal[49], whole[49]) and not np.array_equal(causal[0], whole[0])
        with pytest.raises(tqkv.InvalidArgument, match="step.slot_mapping = NULL"):
            again.append(0, engine.pages[0], k, v)


def test_steps_with_workspaces_of_their_own_run_side_by_side():
    engines = [Engine(), Engine()]
    engines[1].codec.close()
    engines[1].codec = engines[0].codec
    results = [None, None]

    def run(i):
        engine, rng = engines[i], np.random.default_rng(i)
        engine.step = engines[0].codec.step()
        for _ in range(30):
            rows = engine.plan({"x": 3})
            q, k, v = (rng.standard_normal((rows + 3, heads, 64), "float32") for heads in (4, 2, 2))
            engine.step.append(0, engine.pages[0], k, v)
            results[i] = engine.step.attend(0, engine.pages[0], q)

    threads = [threading.Thread(target=run, args=(i, )) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [result.copy() for result in results]
    for i in range(2):
        alone = Engine()
        engines[i].pages, engines[i].blocks, engines[i].lengths = alone.pages, {}, {}
        engines[i].free = alone.free
        run(i)
        assert np.array_equal(results[i], together[i])


def test_workspace_of_the_caller():
    with tqkv.PagedCodec(**SHAPE) as codec:
        most = codec.workspace_bytes(num_reqs=4, num_tokens=64, max_query_len=64, max_seq_len=256)
        assert most >= codec.workspace_bytes(num_reqs=1, num_tokens=1, max_query_len=1, max_seq_len=1)
        step = codec.step(bytearray(64))
        with pytest.raises((tqkv.WorkspaceTooSmall, tqkv.InvalidArgument), match="workspace"):
            step.plan(slot_mapping=int64(0))
        with pytest.raises(tqkv.InvalidState, match="no plan"):
            step.append(0, codec.pages(0, codec.empty(0, 1)), random(1, 2, 64), random(1, 2, 64))


def test_what_the_package_refuses():
    with tqkv.PagedCodec(**SHAPE) as codec:
        step, pages = codec.step(), codec.pages(0, codec.empty(0, 4))
        assert pages.c.num_blocks == 4 and codec.pages(0, codec.empty(0, 4), num_blocks=3).c.num_blocks == 3
        for array, match in ((np.zeros((4, 2, 5), "uint8"),
                              r"array: has shape \[4, 2, 5\].* expected \['blocks', 2, "),
                             (np.zeros(7, "uint8"), "array: has 7 bytes"),
                             (np.zeros(8, "float32"), "array: has float32 elements"),
                             (bytes(codec.page_layout(0).block_bytes), "array: cannot be written to")):
            with pytest.raises(tqkv.InvalidArgument, match=match):
                codec.pages(0, array)
        with pytest.raises(tqkv.InvalidArgument, match="num_blocks = 5: the array has 4"):
            codec.pages(0, codec.empty(0, 4), num_blocks=5)
        with pytest.raises(tqkv.InvalidArgument, match="order = 'pages'"):
            codec.pages(0, codec.empty(0, 4), order="pages")
        with pytest.raises(tqkv.InvalidArgument, match="num_tokens = None"):
            step.plan(seq_lens=int32(1))
        with pytest.raises(tqkv.InvalidArgument, match="slot_mapping: has int32 elements"):
            step.plan(slot_mapping=int32(1))
        with pytest.raises(tqkv.InvalidArgument, match=r"query_start_loc: has shape \[1\], expected \[2\]"):
            step.plan(slot_mapping=int64(1), seq_lens=int32(1), query_start_loc=int32(0),
                      block_table=int32(0).reshape(1, 1))
        with pytest.raises(tqkv.InvalidArgument, match=r"block_table: has shape \[2, 1\]"):
            step.plan(slot_mapping=int64(1), seq_lens=int32(1), query_start_loc=int32(0, 1),
                      block_table=int32(0, 0).reshape(2, 1))
        step.plan(slot_mapping=int64(1))
        with pytest.raises(tqkv.InvalidArgument, match="pages: a ndarray is no Pages"):
            step.append(0, np.zeros(3), random(1, 2, 64), random(1, 2, 64))
        with pytest.raises(tqkv.InvalidArgument, match=r"k: has shape"):
            step.append(0, pages, random(2, 2, 64), random(1, 2, 64))
    with pytest.raises(tqkv.InvalidState, match="codec: is closed"):
        step.append(0, pages, random(1, 2, 64), random(1, 2, 64))
    with pytest.raises(tqkv.InvalidArgument, match="max_tokens = 64: must be 0"):
        tqkv.PagedCodec(**SHAPE, max_tokens=64)
