# SPDX-License-Identifier: Apache-2.0
"""The value that is checked is the value that is used, and memory stays until the library is done with it."""
import array
import copy
import ctypes
import dataclasses
import gc
import pickle

import fakes
import numpy as np
import pytest
import tqkv
from test_cache import K, Q, V, aligned, cache, filled, random
from tqkv import _abi, _ffi, buffers


class Fickle:
    """An integer that is another one each time it is looked at."""

    def __init__(self, *values):
        self.values, self.looks = values, 0

    def __index__(self):
        self.looks += 1
        return self.values[min(self.looks, len(self.values)) - 1]


class FickleList(list):
    """Longer when it is measured than when it is read."""

    def __len__(self):
        return 8


# ---- numbers

@pytest.mark.parametrize("dtype", ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"))
def test_counts_of_any_integer_type(dtype):
    """Their sum would wrap in types of 8 bits."""
    counts = np.array([120, 100, 80], dtype)
    k, q = random(300, 2, 64), random(300, 4, 64)
    with cache(max_tokens=512, max_sequences=3) as c:
        step, sequences = c.batch(), [c.sequence() for _ in range(3)]
        step.plan(sequences, counts, counts)
        assert [len(s) for s in sequences] == [120, 100, 80] and step.rows() == (300, 300, True)
        for rows in (300 - 256, 299, 301):
            with pytest.raises(tqkv.InvalidArgument, match=r"k: has shape .*, expected \[300, 2, 64\]"):
                step.append(0, random(rows, 2, 64), random(rows, 2, 64))
        step.append(0, k, k)
        with pytest.raises(tqkv.InvalidArgument, match=r"q: has shape .*, expected \[300, 4, 64\]"):
            step.attend(0, q[:44])
        assert step.attend(0, q).shape == (300, 4, 64)


def test_numbers_are_looked_at_once():
    with cache(max_tokens=512) as c:
        step, sequence, n, layer = c.batch(), c.sequence(), Fickle(10, 200), Fickle(0, 1)
        step.plan([sequence], [n])
        assert n.looks == 1 and len(sequence) == 10
        step.append(layer, K, V)
        assert layer.looks == 1
        window = Fickle(4, 1 << 60)
        np.testing.assert_array_equal(step.attend(0, Q, sliding_window=window),
                                      step.attend(0, Q, sliding_window=4))
        assert window.looks == 1
        step.plan(iter([sequence]), iter([1]), (n for n in [2]))
        assert len(sequence) == 11


def test_lists_are_read_once():
    with cache(max_sequences=8) as c:
        step, one = c.batch(), [c.sequence()]
        step.plan(FickleList(one), FickleList([1]))
        assert c.memory().tokens == 1
        for counts in (FickleList([1, 2]), [1, 2], [], np.ones(8, "uint8")):
            with pytest.raises(tqkv.InvalidArgument, match="new_tokens: has . entries, sequences has 1"):
                step.plan(FickleList(one), counts)
        with pytest.raises(tqkv.InvalidArgument, match="sequences: a Sequence, must be a list"):
            step.plan(one[0], [1])
        with pytest.raises(tqkv.InvalidArgument, match="new_tokens: a int, must be a list"):
            step.plan(one, 1)
    with pytest.raises(tqkv.InvalidArgument, match="layer_key_bits: has 1 entries, num_layers = 8"):
        cache(num_layers=8, layer_key_bits=FickleList([4]))
    with pytest.raises(tqkv.InvalidArgument, match="layer_value_bits: has 2 entries, num_layers = 8"):
        cache(num_layers=Fickle(8, 2), layer_value_bits=[4, 4])
    part = random(2, 4), random(2)
    with pytest.raises(tqkv.InvalidArgument, match="1 and 2 parts"):
        tqkv.merge_states(FickleList(part[:1]), FickleList([part[1]] * 2))


@pytest.mark.parametrize("wrong, text", [
    (dict(head_dim=64.0), "head_dim = 64.0: must be an integer"),
    (dict(device=f"cuda:{2**32}"), "device_id = 4294967296"),
    (dict(io_dtype=2**32 + 1), "io_dtype = 4294967297"),
    (dict(layer_key_bits=[4, 2**32 + 4]), r"layer_key_bits\[1\] = "),
    (dict(rotation_seed=-1), "rotation_seed = -1: does not fit 64 bits"),
    (dict(key_codebook=tqkv.Codebook(2**32 + 4, 1.0, (1, ))), "key_codebook.bits = 4294967300"),
    (dict(key_codebook=tqkv.Codebook(4, 1e300, (1, ))), r"key_codebook.unit = 1e\+300: does not fit float32"),
    (dict(key_codebook=tqkv.Codebook(4, 1.0, (257, ))), r"key_codebook.magnitude\[0\] = 257: does not fit 8"),
    (dict(key_codebook=tqkv.Codebook(4, 1.0, range(33))), "key_codebook.magnitude: has 33 entries"),
    (dict(key_codebook=tqkv.Codebook(4, "x", (1, ))), "key_codebook.unit = 'x': must be a number")
])
def test_what_ctypes_would_cut(wrong, text):
    with pytest.raises(tqkv.InvalidArgument, match=text):
        cache(**wrong)


def test_call_arguments_that_ctypes_would_cut():
    with cache() as c:
        step, sequence = filled(c)
        for call, text in ((lambda: step.attend(0, Q, softmax_scale=1e300), r"softmax_scale = 1e\+300"),
                           (lambda: step.attend(0, Q, logit_softcap="x"), "logit_softcap = 'x': must be"),
                           (lambda: step.attend(0, Q, history_only=2**32), "history_only = 4294967296"),
                           (lambda: step.attend(0, Q, stream=2**64), "stream = 18446744073709551616"),
                           (lambda: step.append(0, K, V, stream=-1), "stream = -1"),
                           (lambda: step.append(0.0, K, V), "layer = 0.0: must be an integer"),
                           (lambda: sequence.truncate("3"), "length = '3': must be an integer"),
                           (lambda: step.plan([sequence], [1.5]), r"new_tokens\[0\] = 1.5: must be an"),
                           (lambda: step.plan([sequence.id], [1]), r"sequences\[0\]: a int is no Sequence")):
            with pytest.raises(tqkv.InvalidArgument, match=text):
                call()
        assert len(sequence) == 10


def test_reasons_are_never_cut(monkeypatch):
    """The library cuts a text that does not fit, so it is asked again with more room."""
    reasons = [f"reason {i}" for i in range(2000)]

    def config_check(config, text, room):
        whole = "\n".join(reasons).encode()
        ctypes.memmove(text, whole[:room - 1] + b"\0", min(room, len(whole) + 1))
        return 1

    monkeypatch.setattr(_ffi.load_library(), "tq_cache_config_check", config_check)
    assert tqkv.Config(1, 1, 1, 32, 32).check() == reasons


# ---- what shapes are compared with cannot be changed

def test_the_configuration_is_a_copy():
    with cache(layer_key_bits=[0, 6], io_dtype="bfloat16", value_scale_rule="norm") as c:
        config = c.config
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.num_kv_heads = 1
        assert (config.value_dim, config.io_dtype, config.device) == (64, "bfloat16", "cpu")
        assert config.rotation == "hadamard"
        assert (config.key_scale_rule, config.value_scale_rule) == ("unbiased", "norm")
        assert config.page_size > 0 and config.max_sequences == 1
        with tqkv.Cache(config) as same:
            assert same.config == config and same.fingerprint() == c.fingerprint()
    assert tuple(config.layer_key_bits) == (4, 6)  # not memory of the cache that is gone


def test_handles_keep_their_cache():
    with cache() as c, cache() as other:
        step, sequence = filled(c)
        for thing in (step, sequence):
            with pytest.raises(AttributeError):
                thing.cache = other
        with pytest.raises(AttributeError):
            sequence.id = 1
        buffer = tqkv.as_buffer(K)
        with pytest.raises(AttributeError):
            buffer.shape = (1000, 2, 64)


def test_live_objects_are_no_pickles():
    """Nor copies: both would give memory of this process a second owner, or none."""
    with cache() as c:
        step, sequence = filled(c)
        for thing in (c, step, sequence, [sequence]):
            for copied in (pickle.dumps, copy.copy, copy.deepcopy):
                if thing == [sequence] and copied is copy.copy:
                    continue  # the list's own
                with pytest.raises(TypeError, match="cannot be pickled or copied"):
                    copied(thing)
        assert pickle.loads(pickle.dumps(c.config)) == c.config  # plain data


# ---- what arrays say of themselves

class Says:
    def __init__(self, array, **changes):
        self.array, self.__array_interface__ = array, {**array.__array_interface__, **changes}


def test_extents_of_numpy_integers_do_not_wrap():
    small = np.zeros(0, "uint8")
    said = Says(small, shape=(np.uint8(16), np.uint8(16)), typestr="<f4")
    assert tqkv.as_buffer(said).size == 256 and buffers.as_bytes(said, "pool").num_bytes == 1024
    assert all(type(n) is int for n in tqkv.as_buffer(said).shape)


@pytest.mark.parametrize("changes, text", [(dict(shape=(-1, 3)), r"k: shape \(-1, 3\) must be 0"),
                                           (dict(shape=(2.0, 3)), r"k: shape \(2.0, 3\) must be integers"),
                                           (dict(strides=(2**70, 4)), "k: strides .* must be -9223"),
                                           (dict(strides=(4, )), "k: has 2 dimensions and 1 strides"),
                                           (dict(data=(2**64, False)), "k: address .18446744073709551616"),
                                           (dict(data=None), "k: its array interface has no"),
                                           (dict(data=b"1234"), "k: its array interface has no")])
def test_what_an_array_cannot_be(changes, text):
    with pytest.raises(tqkv.InvalidArgument, match=text):
        tqkv.as_buffer(Says(np.zeros((2, 3), "float32"), **changes), name="k")


# ---- memory is held until the library returns

CALLS = {
    "tq_cache_set_centres": {
        "key_centre": lambda c, step, sequence, x: c.set_centres(0, key_centre=x(np.ones((2, 64), "f4"))),
        "value_centre": lambda c, step, sequence, x: c.set_centres(0, value_centre=x(np.ones((2, 64), "f4"))),
    },
    "tq_cache_append": {
        "k": lambda c, step, sequence, x: step.append(0, x(K), V),
        "v": lambda c, step, sequence, x: step.append(0, K, x(V)),
    },
    "tq_cache_attend": {
        "q": lambda c, step, sequence, x: step.attend(0, x(Q), out=np.empty((10, 4, 64), "f4")),
        "out": lambda c, step, sequence, x: step.attend(0, Q, out=x(np.empty((10, 4, 64), "f4"))),
        "lse": lambda c, step, sequence, x: step.attend(0, Q, lse=x(np.empty((10, 4), "f4"))),
        "sink_logits": lambda c, step, sequence, x: step.attend(0, Q, sink_logits=x(np.zeros(4, "f4"))),
        "visible_begin": lambda c, step, sequence, x: step.attend(0, Q, visible_begin=x(np.zeros(10, "i4")),
                                                                  visible_end=np.zeros(10, "i4")),
        "visible_end": lambda c, step, sequence, x: step.attend(0, Q, visible_begin=np.zeros(10, "i4"),
                                                                visible_end=x(np.zeros(10, "i4"))),
        "tree_mask": lambda c, step, sequence, x: step.attend(0, Q, tree_mask=x(np.zeros(10, "u8"))),
        "alibi_slopes": lambda c, step, sequence, x: step.attend(0, Q, alibi_slopes=x(np.zeros(4, "f4"))),
    },
    "tq_cache_read": {
        "k": lambda c, step, sequence, x: sequence.read(0, 0, 3, k=x(np.empty((3, 2, 64), "f4"))),
        "v": lambda c, step, sequence, x: sequence.read(0, 0, 3, v=x(np.empty((3, 2, 64), "f4"))),
    },
    "tq_merge_states": {
        "outs": lambda c, step, sequence, x: tqkv.merge_states([random(3, 8), x(random(3, 8))],
                                                               [random(3), random(3)]),
        "lses": lambda c, step, sequence, x: tqkv.merge_states([random(3, 8)], [x(random(3))]),
        "out": lambda c, step, sequence, x: tqkv.merge_states([random(3, 8)], [random(3)],
                                                              out=x(random(3, 8))),
        "lse": lambda c, step, sequence, x: tqkv.merge_states([random(3, 8)], [random(3)], lse=x(random(3))),
    },
}
CASES = [(function, name) for function, calls in CALLS.items() for name in calls]


@pytest.mark.parametrize("function, name", CASES)
def test_dlpack_tensors_are_given_back_after_the_call(before, function, name):
    made, seen = [], []

    def temporary(a):
        made.append(fakes.Dlpack(a, a.dtype.name))
        return made[-1]

    with cache() as c:
        step, sequence = (c.batch(), c.sequence()) if function == "tq_cache_set_centres" else filled(c)
        before(function, lambda: seen.append(made[-1].deleted < len(made[-1].exports)))
        CALLS[function][name](c, step, sequence, temporary)
    assert seen and all(seen), "a tensor was given back before the library had it"
    gc.collect()
    assert all(fake.deleted == len(fake.exports) for fake in made)


@pytest.mark.parametrize("function, name", CASES)
def test_arrays_cannot_be_resized_during_the_call(before, function, name):
    made, refused = [], []

    def flat(a):
        made.append(array.array({"i": "i", "u": "Q"}.get(a.dtype.kind, "f"), np.asarray(a).reshape(-1)))
        shaped = function == "tq_merge_states"
        return memoryview(made[-1]).cast("B").cast("f", a.shape) if shaped else made[-1]

    def resize():
        with pytest.raises(BufferError):
            made[-1].append(0)
        refused.append(True)

    with cache() as c:
        step, sequence = (c.batch(), c.sequence()) if function == "tq_cache_set_centres" else filled(c)
        before(function, resize)
        CALLS[function][name](c, step, sequence, flat)
    assert refused
    gc.collect()
    made[-1].append(0)  # and is free afterwards


def test_workspace_and_pool_are_held(before):
    size = tqkv.Config(2, 4, 2, 64, 256, 4, 4).bytes().page_bytes
    pool = bytearray(size + 256)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(pool)) % 256
    with cache(pool=memoryview(pool)[skip:skip + size]) as c:
        step = filled(c)[0]
        bytes_needed = c.workspace_bytes()
        room = bytearray(bytes_needed + 256)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % 256
        gc.collect()

        def resize():
            with pytest.raises(BufferError):
                room.append(0)

        before("tq_cache_attend", resize)
        step.attend(0, Q, workspace=memoryview(room)[start:start + bytes_needed])
        gc.collect()
        room.append(0)
        with pytest.raises(BufferError):
            pool.append(0)
    del c, step
    gc.collect()
    pool.append(0)


def test_callbacks_of_an_allocator_are_held():
    """Its fields may be set anew while a cache still has the old ones."""
    allocated = {}

    def alloc(user, size, alignment, device_type, device_id):
        room = aligned(size + alignment)
        address = -(-room.ctypes.data // alignment) * alignment
        allocated[address] = room
        return address

    def free(user, pointer, size, device_type, device_id):
        del allocated[pointer]

    allocator = _abi.Allocator(alloc=_abi.ALLOC_FUNCTION(alloc), free=_abi.FREE_FUNCTION(free))
    c = cache(allocator=allocator)
    allocator.alloc, allocator.free = _abi.ALLOC_FUNCTION(int), _abi.FREE_FUNCTION(print)
    gc.collect()
    filled(c)
    assert allocated
    c.close()
    assert not allocated
