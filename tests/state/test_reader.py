# SPDX-License-Identifier: Apache-2.0
"""Two readers of one file: what tests/reference/state.py, written from FORMAT.md, makes of saved sequences,
against tq_cache_read. Random caches: 200, TQKV_TEST_LONG 10,000, TQKV_TEST_QUICK 60. The golden files too."""
import io
import os
from pathlib import Path

import numpy as np
import pytest
import tqkv
from reference import state as reader
from reference.encode import bf16_bits, bf16_to_float

from golden import FILES
from worlds import NUMPY_TYPES, World, is_latent, own_levels

COUNT = 10000 if os.environ.get("TQKV_TEST_LONG") else 60 if os.environ.get("TQKV_TEST_QUICK") else 200
PORTIONS = 10
GOLDEN = Path(__file__).resolve().parent / "golden"


def saved_bytes(cache, sequence):
    file = io.BytesIO()
    cache.save(sequence, file)
    return file.getvalue()


def rounded(x, io_dtype):
    """float32 as tq_cache_read gives it, as bits."""
    if io_dtype == "bfloat16":
        return bf16_bits(x)
    if io_dtype == "float16":
        return np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16)
    return x.view(np.uint32)


def library_reads(sequence, layer, shape, config, first):
    count = len(sequence) - first
    arrays = [np.empty((count, shape.num_kv_heads, dim), NUMPY_TYPES[config.io_dtype])
              for dim in (shape.head_dim, shape.value_dim)]
    given = [tqkv.as_buffer(a, "bfloat16") if config.io_dtype == "bfloat16" else a for a in arrays]
    sequence.read(layer, first, count, k=given[0], v=given[1])
    return [a.view(np.uint32 if config.io_dtype == "float32" else np.uint16) for a in arrays]


def compare(world, sequence, saved):
    """Every number that the library reads from a layer; how many they are."""
    config, compared = world.config, 0
    for index, (layer, shape) in enumerate(zip(saved.layers, config.layers)):
        assert layer.stores == (shape.shares_layer is None)
        if not layer.stores:
            assert layer.reads == config.first_layer + shape.shares_layer
            continue
        for head in range(shape.num_kv_heads):
            centres = [c[head] for c in world.centres.get(index, ())] or [None, None]
            if is_latent(shape) and len(centres) == 1:  # of all that a key has: the latent in front
                centres = [centres[0][shape.value_dim:], centres[0][:shape.value_dim]]
            matrix = world.matrices[index][head] if index in world.matrices else None
            first, keys, values = reader.decoded(saved, layer, head, centres, own_levels(shape, head), matrix)
            # What a query at the last token sees; a sliding layer may hold more.
            seen = len(sequence) - shape.sliding_window if shape.sliding_window else 0
            first, keys, values = max(first, seen), keys[max(0, seen - first):], values[max(0, seen - first):]
            for token, copy in reader.exact_copies(saved, layer, head).items():
                exact = token < config.sink_tokens or token >= len(sequence) - config.window_tokens
                if exact and token >= first:
                    keys[token - first], values[token - first] = copy
            if is_latent(shape):  # what the file calls keys is the rest of them
                keys = np.concatenate([values, keys], axis=1)
            wanted = library_reads(sequence, index, shape, config, first)
            for found, read in ((keys, wanted[0]), (values, wanted[1])):
                np.testing.assert_array_equal(rounded(found, config.io_dtype), read[:, head])
                compared += found.size
    return compared


@pytest.mark.parametrize("portion", range(PORTIONS))
def test_random_sequences(portion):
    compared = 0
    for number in range(portion, COUNT, PORTIONS):
        world = World(number)
        try:
            data = saved_bytes(world.cache, world.sequence)
            saved = reader.read_saved(data)
            assert saved.size == len(data) and saved.num_tokens == len(world.sequence)
            compared += compare(world, world.sequence, saved)
            # Loaded, it holds the same tokens; of exact copies no more than the window needs.
            again = world.cache.load(io.BytesIO(data))
            second = saved_bytes(world.cache, again)
            compared += compare(world, again, reader.read_saved(second))
            again.free()
            assert second == saved_bytes(world.cache, world.cache.load(io.BytesIO(second))), number
        finally:
            world.close()
    assert compared > COUNT // PORTIONS * 1000


@pytest.mark.parametrize("name", sorted(FILES))
def test_golden_files(name):
    """The committed bytes are what the library writes and what both readers read."""
    data = (GOLDEN / f"{name}.tqkv").read_bytes()
    world = FILES[name]()
    try:
        assert saved_bytes(world.cache, world.sequence) == data
        saved = reader.read_saved(data)
        compare(world, world.sequence, saved)
        assert saved_bytes(world.cache, world.cache.load(io.BytesIO(data))) == data
    finally:
        world.close()


def test_damage_is_found():
    """One bit anywhere, and every length: neither reader takes it."""
    data = (GOLDEN / "window.tqkv").read_bytes()
    world = FILES["window"]()
    random = np.random.default_rng(5)
    damaged = [data[:cut] for cut in range(0, len(data), 97)]
    for at in random.integers(0, len(data) * 8, 300):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << (at % 8)
        damaged.append(bytes(changed))
    for each in damaged:
        with pytest.raises((reader.Corrupt, reader.Incompatible)):
            reader.read_saved(each)
        with pytest.raises((tqkv.CorruptData, tqkv.Incompatible)):
            world.cache.load(io.BytesIO(each))
    assert world.cache.memory().num_sequences == 1
    world.close()


def test_bfloat16_helpers_agree():
    bits = np.arange(0x7F80, dtype=np.uint16)
    np.testing.assert_array_equal(bf16_bits(bf16_to_float(bits)), bits)
