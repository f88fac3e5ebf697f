# SPDX-License-Identifier: Apache-2.0
"""Cache, Sequence and Batch: results, kinds of arrays, lifetimes, errors."""
import array
import ctypes
import gc
import os
import sys
import threading
import tracemalloc

import fakes
import numpy as np
import pytest
import tqkv

SHAPE = dict(num_layers=2,
             num_q_heads=4,
             num_kv_heads=2,
             head_dim=64,
             key_bits=4,
             value_bits=4,
             max_tokens=256,
             num_threads=1)
RNG = np.random.default_rng(5)


def random(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


def cache(**more):
    return tqkv.Cache(**{**SHAPE, **more})


@pytest.fixture
def small():
    with cache(max_sequences=3) as c:
        yield c


def aligned(size):
    room = np.zeros(size + 256, "uint8")
    return room[-room.ctypes.data % 256:][:size]


K, V, Q = random(10, 2, 64), random(10, 2, 64), random(10, 4, 64)


def filled(c, k=K, v=V):
    step, sequence = c.batch(), c.sequence()
    step.plan([sequence], [10])
    step.append(0, k, v)
    return step, sequence


def exact(q=Q, k=K, v=V):
    """Causal attention in float64 over the vectors themselves."""
    out = np.zeros((10, 4, 64))
    for h in range(4):
        logits = q[:, h].astype(float) @ k[:, h // 2].T.astype(float) / 8
        weight = np.tril(np.exp(logits))
        out[:, h] = weight @ v[:, h // 2] / weight.sum(axis=1, keepdims=True)
    return out


# ---- results

def test_ten_lines():
    with tqkv.Cache(num_layers=2,
                    num_q_heads=4,
                    num_kv_heads=2,
                    head_dim=64,
                    key_bits=6,
                    value_bits=6,
                    max_tokens=256) as c:
        sequence = c.sequence()
        step = c.batch()
        step.plan([sequence], [10])
        for layer in range(2):
            step.append(layer, K, V)
            out = step.attend(layer, Q)
        assert len(sequence) == 10
    # 6-bit codes are off by about 2^-5 of a vector's norm (FORMAT.md section 6, a factor of 4 a bit);
    # attention averages.
    assert np.linalg.norm(out - exact()) < 2.0 ** -5 * np.linalg.norm(exact())


def test_out_and_lse(small):
    step, _ = filled(small)
    out, lse = step.attend(0, Q, lse=True)
    assert out.shape == (10, 4, 64) and lse.shape == (10, 4) and out.dtype == lse.dtype == np.float32
    mine, sums = np.full((10, 4, 64), np.nan, "float32"), np.full((10, 4), np.nan, "float32")
    same = step.attend(0, Q, out=mine, lse=sums)
    assert same[0] is mine and same[1] is sums
    np.testing.assert_array_equal(mine, out)
    np.testing.assert_array_equal(sums, lse)
    wide = np.full((10, 4, 2, 64), np.nan, "float32")
    step.attend(0, Q, out=wide[:, :, 1])
    np.testing.assert_array_equal(wide[:, :, 1], out)
    assert np.isnan(wide[:, :, 0]).all()
    with pytest.raises(tqkv.InvalidArgument, match="out: has shape"):
        step.attend(0, Q, out=mine[:9])
    with pytest.raises(tqkv.InvalidArgument, match="lse: must be contiguous"):
        step.attend(0, Q, lse=np.zeros((10, 8), "float32")[:, ::2])


KINDS = {
    "dlpack": lambda x: fakes.Dlpack(x, "float32"),
    "old dlpack": lambda x: fakes.Dlpack(x, "float32", versioned=False),
    "torch": lambda x: fakes.Torch(x, "float32"), "array.array": lambda x: array.array("f", x.reshape(-1)),
    "memoryview": memoryview, "bytes": lambda x: tqkv.as_buffer(bytes(x), "float32"),
    "ctypes": lambda x: (ctypes.c_float * x.size).from_buffer_copy(x),
    "head-major": lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
    "padded": lambda x: np.pad(x, ((0, 0), (0, 1), (0, 8)))[:, :-1, :-8]
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_gives_the_same_bits(small, kind):
    want = filled(small)[0].attend(0, Q)
    step, _ = filled(small, KINDS[kind](K), KINDS[kind](V))
    out = np.full((10, 4, 64), np.nan, "float32")
    assert step.attend(0, KINDS[kind](Q), out=out) is out
    np.testing.assert_array_equal(out, want)


def test_results_are_of_the_inputs_kind(small):
    step, sequence = filled(small)
    want = step.attend(0, Q)
    view = step.attend(0, array.array("f", Q.reshape(-1)))
    assert isinstance(view, memoryview) and view.shape == (10, 4, 64)
    np.testing.assert_array_equal(np.asarray(view), want)
    assert isinstance(step.attend(0, tqkv.as_buffer(Q)), np.ndarray)
    with pytest.raises(tqkv.InvalidArgument, match="out: cannot be made like the input, a Dlpack; pass out="):
        step.attend(0, fakes.Dlpack(Q, "float32"))
    k, v = sequence.read(0, 2, 3)
    assert k.shape == (3, 2, 64)
    k2, v2 = sequence.read(0, 2, 3, like=Q)
    np.testing.assert_array_equal(np.asarray(k), k2)
    np.testing.assert_array_equal(np.asarray(v), v2)
    with pytest.raises(tqkv.InvalidArgument, match="count = 1000000000000000"):
        sequence.read(0, 0, 10 ** 15)  # not a MemoryError
    only = np.empty((3, 2, 64), "float32")
    assert sequence.read(0, 2, 3, v=only)[0] is None
    np.testing.assert_array_equal(only, v2)


def test_bfloat16_and_float16():
    for name, k, v, q in (("bfloat16", *map(fakes.bfloat16_bits, (K, V, Q))),
                          ("float16", *(x.astype("float16") for x in (K, V, Q)))):
        with cache(io_dtype=name, key_bits=8, value_bits=8) as c:
            step, sequence = filled(c, tqkv.as_buffer(k, name), tqkv.as_buffer(v, name))
            out = step.attend(0, tqkv.as_buffer(q, name))
            assert out.dtype == ("uint16" if name == "bfloat16" else "float16")
            wide = step.attend(0, tqkv.as_buffer(q, name), out_dtype="float32")
            assert wide.dtype == np.float32
            narrow = (out.astype("uint32") << np.uint32(16)
                      ).view("float32") if name == "bfloat16" else out.astype("float32")
            # One rounding to 8 or 11 bits of precision.
            np.testing.assert_allclose(narrow,
                                       wide,
                                       rtol=2.0 ** (-8 if name == "bfloat16" else -11),
                                       atol=2.0 ** -24)
    with cache(io_dtype="bfloat16") as c, pytest.raises(tqkv.InvalidArgument,
                                                        match="k: has float32 elements, expected bfloat16"):
        filled(c)


def test_fork_and_truncate(small):
    step, sequence = filled(small)
    fork = sequence.fork()
    assert len(fork) == 10 and fork.id != sequence.id
    step.plan([sequence, fork], [1, 2])
    k, v, q = random(3, 2, 64), random(3, 2, 64), random(3, 4, 64)
    step.append(0, k, v)
    first = step.attend(0, q)
    assert step.rows() == (3, 3, True)
    sequence.truncate(10)
    assert step.rows() == (0, 0, False)
    with pytest.raises(tqkv.InvalidState, match="plan"):
        step.attend(0, q)
    step.plan([sequence], [1])
    step.append(0, k[:1], v[:1])
    np.testing.assert_array_equal(step.attend(0, q[:1]), first[:1])
    fork.free()
    with pytest.raises(tqkv.InvalidArgument, match="sequence"):
        len(fork)
    assert small.memory().num_sequences == 1


def test_remove_and_select(small):
    step, a = filled(small)
    b = a.fork()
    a.remove(2, 3)
    b.select(i for i in range(10) if not 2 <= i < 5)
    assert len(a) == len(b) == 7
    assert bytes(a.read(0, 0, 7)[0]) == bytes(b.read(0, 0, 7)[0])
    with pytest.raises(tqkv.InvalidState, match="without some of its tokens"):
        step.attend(0, Q)
    with pytest.raises(tqkv.InvalidArgument, match=r"positions\[1\] = 1: must be above"):
        a.select([3, 1])
    with pytest.raises(tqkv.InvalidArgument, match="count = 8"):
        a.remove(0, 8)
    b.select([])
    assert len(b) == 0


def test_reserve():
    with cache(max_reserve_tokens=1024, max_batch_tokens=512) as c:
        step, sequence = c.batch(), c.sequence()
        with pytest.raises(tqkv.CapacityError):
            step.plan([sequence], [400])
        c.reserve(512)
        assert c.config.max_tokens == 512 and c.config.max_reserve_tokens == 1024
        step.plan([sequence], [400])
        with pytest.raises(tqkv.CapacityError, match="max_reserve_tokens = 1024"):
            c.reserve(2000)


def test_merge_equals_the_whole(small):
    step, _ = filled(small)
    whole, lse = step.attend(0, Q, lse=True)
    merged, total = tqkv.merge_states([whole, np.full_like(whole, np.nan)],
                                      [lse, np.full_like(lse, -np.inf)],
                                      lse=True)
    np.testing.assert_allclose(merged, whole, rtol=2.0 ** -22)
    np.testing.assert_allclose(total, lse, rtol=0, atol=2.0 ** -18)
    with pytest.raises(tqkv.InvalidArgument, match="num_states"):
        tqkv.merge_states([], [])
    with pytest.raises(tqkv.InvalidArgument, match=r"lses\[0\]: has shape"):
        tqkv.merge_states([whole], [lse[:3]])


def test_centres_pool_and_codebook():
    pool_bytes = tqkv.Config(**SHAPE).bytes().page_bytes
    pool = aligned(pool_bytes)
    with cache(pool=pool, key_codebook=tqkv.Codebook(4, 0.02, (5, 15, 26, 38, 51, 66, 85, 114))) as c:
        c.set_centres(0, key_centre=np.full((2, 64), 3, "float32"))
        filled(c)
        assert pool.any()
        with pytest.raises(tqkv.InvalidState, match="centres"):
            c.set_centres(0, key_centre=np.zeros((2, 64), "float32"))
    assert not pool.any()  # scrubbed
    with pytest.raises(tqkv.InvalidArgument, match="key_centre: has shape"), cache() as c:
        c.set_centres(0, key_centre=np.zeros((1, 64), "float32"))
    with pytest.raises(tqkv.InvalidArgument, match="pool_bytes"):
        cache(pool=pool[:256])


# ---- errors

@pytest.mark.parametrize(
    "changes, error, text",
    [(dict(head_dim=50), tqkv.InvalidArgument, "head_dim = 50"),
     (dict(io_dtype="float8"), tqkv.InvalidArgument, "io_dtype = 'float8'"),
     (dict(device="tpu"), tqkv.InvalidArgument, "device = 'tpu'"),
     (dict(rotation="random"), tqkv.InvalidArgument, "rotation = 'random'"),
     (dict(layer_key_bits=[4]), tqkv.InvalidArgument, "layer_key_bits: has 1 entries"),
     (dict(key_bits=-1), tqkv.InvalidArgument, "key_bits"),
     (dict(max_tokens=2 ** 70), tqkv.InvalidArgument, "max_tokens = "),
     (dict(num_q_heads=2 ** 33), tqkv.InvalidArgument, "num_q_heads = 8589934592: does not fit 32 bits"),
     (dict(device="cpu:1"), tqkv.InvalidArgument, "device_id")])
def test_bad_configurations(changes, error, text):
    with pytest.raises(error, match=text) as raised:
        cache(**changes)
    assert isinstance(raised.value, tqkv.Error) and raised.value.status == error.status


def test_no_such_field():
    with pytest.raises(TypeError):
        tqkv.Cache(heads=3)
    with pytest.raises(TypeError):
        tqkv.Cache(tqkv.Config(**SHAPE), num_layers=3)


def test_check_gives_every_reason():
    assert tqkv.Config(**SHAPE).check() == []
    reasons = tqkv.Config(**{**SHAPE, "head_dim": 50, "key_bits": 7}).check()
    assert len(reasons) == 2 and "head_dim" in reasons[0] and "key_bits" in reasons[1]


def test_cuda_without_a_device():
    if len(tqkv.devices()) > 1:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises((tqkv.NoDevice, tqkv.DriverError, tqkv.NotSupported)):
        cache(device="cuda")


def test_bad_calls(small):
    step, sequence = filled(small)
    with pytest.raises(tqkv.InvalidArgument, match=r"k: has shape \[9, 2, 64\], expected \[10, 2, 64\]"):
        step.append(0, K[:9], V)
    with pytest.raises(tqkv.InvalidArgument, match="v: has float16"):
        step.append(0, K, V.astype("float16"))
    with pytest.raises(tqkv.InvalidArgument, match="layer = 2"):
        step.append(2, K, V)
    with pytest.raises(tqkv.InvalidArgument, match="layer = 4294967296: does not fit"):
        step.append(2 ** 32, K, V)
    with pytest.raises(tqkv.InvalidArgument, match="q: is on CUDA device 0, the cache is on the CPU"):
        step.attend(0, fakes.CudaArray(Q), out=np.empty((10, 4, 64), "float32"))
    with pytest.raises(tqkv.InvalidArgument, match="stream"):
        step.attend(0, Q, stream=5)
    with pytest.raises(tqkv.InvalidArgument, match="sink_logits: has shape"):
        step.attend(0, Q, sink_logits=np.zeros(3, "float32"))
    ten = np.zeros(10, "int32")
    with pytest.raises(tqkv.InvalidArgument, match=r"visible_end: has shape \[9\], expected \[10\]"):
        step.attend(0, Q, visible_begin=ten, visible_end=ten[:9])
    with pytest.raises(tqkv.InvalidArgument, match="visible_begin: has int64 elements; they must be int32"):
        step.attend(0, Q, visible_begin=ten.astype("int64"), visible_end=ten)
    with pytest.raises(tqkv.InvalidArgument, match="both or neither"):
        step.attend(0, Q, visible_begin=ten)
    with pytest.raises(tqkv.InvalidArgument, match="tree_mask: has int32 elements; they must be uint64"):
        step.attend(0, Q, tree_mask=ten)
    with pytest.raises(tqkv.InvalidArgument, match="params.tree_words = 3"):
        step.attend(0, Q, tree_mask=np.zeros((10, 3), "uint64"))
    with pytest.raises(tqkv.InvalidArgument, match=r"tree_mask: has shape \[11\], expected \[10, 1\]"):
        step.attend(0, Q, tree_mask=np.zeros(11, "uint64"))
    with pytest.raises(tqkv.InvalidArgument, match="alibi_slopes: must be contiguous"):
        step.attend(0, Q, alibi_slopes=np.zeros(8, "float32")[::2])
    with pytest.raises(tqkv.InvalidArgument, match="out_dtype"):
        step.attend(0, Q, out_dtype="float64")
    with pytest.raises(tqkv.InvalidArgument, match="as many entries"):
        step.plan([sequence], [1, 2])
    with cache() as other, pytest.raises(tqkv.InvalidArgument,
                                         match=r"sequences\[0\]: belongs to another cache"):
        step.plan([other.sequence()], [1])
    with pytest.raises(tqkv.CapacityError, match="max_sequence_tokens = 256"):
        step.plan([sequence], [250])
    with pytest.raises(tqkv.WorkspaceTooSmall, match="workspace_bytes"):
        step.attend(0, Q, workspace=aligned(1))
    with pytest.raises(tqkv.InvalidArgument, match="workspace = 0x.* aligned to 256"):
        step.attend(0, Q, workspace=aligned(small.workspace_bytes() + 1)[1:])
    step.append(0, K, V)  # and all is as it was
    assert len(sequence) == 10


def test_every_status_has_its_class():
    for name, number in tqkv.CONSTANTS.items():
        if name.startswith("TQ_ERROR_"):
            assert tqkv.errors.BY_STATUS[number].status == number, name
    assert type(tqkv.errors.make(77, "new")) is tqkv.Error and tqkv.errors.make(77, "new").status == 77


# ---- lifetimes

def test_close():
    c = cache()
    step, sequence = filled(c)
    assert not c.closed
    c.close()
    c.close()
    assert c.closed
    step.close()
    for call in (c.sequence, c.batch, c.memory, lambda: len(sequence), lambda: step.plan([sequence], [1]),
                 lambda: step.attend(0, Q)):
        with pytest.raises(tqkv.InvalidState, match="closed"):
            call()


def test_batch_close(small):
    step, _ = filled(small)
    with step:
        pass
    with pytest.raises(tqkv.InvalidState, match="batch: is closed"):
        step.plan([], [])


def test_lost_objects_are_destroyed():
    """In any order, in cycles, and without close: the library's memory goes back."""
    allocated = {}

    def alloc(user, size, alignment, device_type, device_id):
        room = ctypes.create_string_buffer(size + alignment)
        address = (ctypes.addressof(room) + alignment - 1) // alignment * alignment
        allocated[address] = room
        return address

    allocator = tqkv._abi.Allocator(
        alloc=tqkv._abi.ALLOC_FUNCTION(alloc),
        free=tqkv._abi.FREE_FUNCTION(
            lambda user, pointer, size, device_type, device_id: allocated.pop(pointer) and None))
    for cycle in (False, True):
        c = cache(allocator=allocator)
        batches = [c.batch() for _ in range(3)]
        if cycle:
            c.own = batches
        assert allocated
        del batches[0]
        del c, batches
        gc.collect()
        assert not allocated


def test_reference_counts_are_stable(small):
    """10,000 calls of the decode loop's kind neither lose nor keep a reference, nor leave memory behind."""
    step, sequence = small.batch(), small.sequence()
    k, v, q, out, sums = random(1, 2, 64), random(1, 2, 64), random(1, 4, 64), np.empty(
        (1, 4, 64), "float32"), np.empty((1, 4), "float32")
    shared = fakes.Dlpack(q, "float32")
    flat = array.array("f", q.reshape(-1))
    watched = [k, v, q, out, sums, shared, flat, step, sequence, small, tqkv.Cache, None]

    def turn():
        step.plan([sequence], [1])
        step.append(0, k, v)
        for query in (q, shared, flat):
            step.attend(0, query, out=out, lse=sums)
            shared.exports.clear()
        with pytest.raises(tqkv.InvalidArgument):
            step.append(7, k, v)
        sequence.truncate(0)

    for _ in range(100):
        turn()
    gc.collect()
    before = [sys.getrefcount(x) for x in watched[:-1]]
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    for _ in range(10000 // 5):
        turn()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert [sys.getrefcount(x) for x in watched[:-1]] == before
    assert shared.deleted == 2100
    assert grown < 64 * 1024, "2,000 turns of 5 calls: one byte kept a turn and array would already show"
