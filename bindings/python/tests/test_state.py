# SPDX-License-Identifier: Apache-2.0
"""Export, import, save and load: the same bytes, and errors of Python for what cannot be."""
import dataclasses
import hashlib
import hmac
import io
import json
import os
import pickle

import numpy as np
import pytest
import tqkv

CONFIG = {"num_layers": 2, "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32, "key_bits": 4,
          "value_bits": 3, "io_dtype": "float32", "max_tokens": 256, "max_sequences": 4, "num_threads": 1}


def filled(cache, tokens, seed=1):
    sequence, random = cache.sequence(), np.random.default_rng(seed)
    with cache.batch() as batch:
        batch.plan([sequence], [tokens])
        for layer in range(2):
            batch.append(layer, *(random.standard_normal((tokens, 2, 32)).astype(np.float32) for _ in "kv"))
    return sequence


def attended(cache, sequence):
    """Output bytes of one query in each layer."""
    query = np.random.default_rng(9).standard_normal((1, 4, 32)).astype(np.float32)
    with cache.batch() as batch:
        batch.plan([sequence], [0], [1])
        return b"".join(np.asarray(batch.attend(layer, query)).tobytes() for layer in range(2))


@pytest.fixture
def cache():
    with tqkv.Cache(**CONFIG, window_tokens=8, sink_tokens=2) as cache:
        yield cache


def test_save_and_load_give_the_same_bits(cache, tmp_path):
    sequence = filled(cache, 70)
    cache.save(sequence, tmp_path / "a")
    with tqkv.Cache(**CONFIG, window_tokens=8, sink_tokens=2, page_size=96) as other:
        loaded = other.load(tmp_path / "a")
        assert len(loaded) == 70 and attended(other, loaded) == attended(cache, sequence)
        file = io.BytesIO()
        other.save(loaded, file)
        file.seek(0)
        assert attended(cache, cache.load(file)) == attended(cache, sequence)
        assert file.read() == b""


def test_files_one_behind_another(cache):
    file = io.BytesIO()
    for tokens in (5, 40):
        cache.save(filled(cache, tokens, tokens), file)
    file.write(b"rest")
    file.seek(0)
    assert [len(cache.load(file)) for _ in range(2)] == [5, 40]
    assert file.read() == b"rest"


def test_export_and_import_by_layer(cache):
    sequence = filled(cache, 70)
    parts = [cache.export_sequence(sequence, layers=layer) for layer in range(2)]
    for state, memory in parts:
        assert (state.num_layers, state.num_tokens, state.bytes) == (1, 70, len(memory))
    with tqkv.Cache(**CONFIG, window_tokens=8, sink_tokens=2, page_size=32) as other:
        copy = None
        for state, memory in parts:
            again = tqkv.State(**json.loads(json.dumps(dataclasses.asdict(state))))
            assert again == state == pickle.loads(pickle.dumps(state))
            copy = other.import_sequence(again, memory, copy)
        assert attended(other, copy) == attended(cache, sequence)


def test_tokens_and_heads(cache):
    sequence = filled(cache, 70)
    whole, memory = cache.export_sequence(sequence)
    assert whole == cache.describe_sequence(sequence) and whole.io_dtype == "float32"
    heads = [cache.export_sequence(sequence, kv_heads=head) for head in range(2)]
    assert sum(state.bytes for state, _ in heads) == whole.bytes
    merged = None
    for state, part in heads:
        merged = cache.import_sequence(state, part, merged)
    assert attended(cache, merged) == attended(cache, sequence)
    first, then = (cache.export_sequence(sequence, tokens=tokens) for tokens in (range(40), range(40, 70)))
    pieced = cache.import_sequence(*then, cache.import_sequence(*first))
    assert len(pieced) == 70
    assert pieced.read(0, 0, 70)[0].tobytes() == sequence.read(0, 0, 70)[0].tobytes()


def test_own_memory(cache):
    sequence = filled(cache, 33)
    state = cache.describe_sequence(sequence)
    room = np.zeros(state.bytes + 64, np.uint8)
    assert cache.export_sequence(sequence, room) == (state, room)
    assert attended(cache, cache.import_sequence(state, room)) == attended(cache, sequence)


def test_a_key_says_who_wrote(cache, tmp_path):
    sequence, path = filled(cache, 40), tmp_path / "a"
    sealed = hmac.new(b"other", digestmod="sha512"), hashlib.blake2b(key=b"k", digest_size=16)
    for mac in (b"key" * 9, *sealed):
        cache.save(sequence, path, mac=mac)
        for key in (mac, None):
            loaded = cache.load(path, mac=key)
            assert attended(cache, loaded) == attended(cache, sequence)
            loaded.free()
        with pytest.raises(tqkv.CorruptData, match="MAC"):
            cache.load(path, mac=b"wrong")
    cache.save(sequence, path)
    with pytest.raises(tqkv.CorruptData, match="a MAC of 0 bytes"):
        cache.load(path, mac=b"key")
    for wrong in (7, "text", hashlib.blake2b(key=b"k", digest_size=8)):
        with pytest.raises(tqkv.InvalidArgument, match="mac: "):
            cache.save(sequence, path, mac=wrong)
    with pytest.raises(tqkv.InvalidArgument, match=r"^mac: digest_size = 8: must be 16 .. 64$"):
        cache.save(sequence, path, mac=hashlib.blake2b(key=b"k", digest_size=8))


@pytest.mark.parametrize("change, name", [
    ({"key_bits": 3}, "key_bits"), ({"head_dim": 64, "value_dim": 32}, "head_dim"),
    ({"rotation_seed": 5}, "rotation_seed"), ({"rotation": "dense"}, "rotation"),
])
def test_import_names_the_field(cache, change, name):
    state, memory = cache.export_sequence(filled(cache, 40))
    with tqkv.Cache(**{**CONFIG, **change}) as other, pytest.raises(tqkv.Incompatible, match=name):
        other.import_sequence(state, memory)


@pytest.mark.parametrize("part, text", [
    ({"layers": 2}, "layer"), ({"layers": range(1, 3)}, "layer"), ({"layers": range(0)}, "layers"),
    ({"kv_heads": range(0, 4, 2)}, "kv_heads"), ({"tokens": range(60, 80)}, "token"),
    ({"layers": -1}, "layer"), ({"tokens": 2**70}, "tokens"), ({"layers": "all"}, "layers"),
])
def test_parts_that_are_not_there(cache, part, text):
    sequence = filled(cache, 70)
    with pytest.raises(tqkv.InvalidArgument, match=text):
        cache.export_sequence(sequence, **part)


def test_refusals(cache, tmp_path):
    sequence = filled(cache, 40)
    state, memory = cache.export_sequence(sequence)
    lives = cache.memory().num_sequences
    for wrong in (dataclasses.replace(state, identity=state.identity ^ 1),
                  dataclasses.replace(state, num_tokens=400), dataclasses.replace(state, io_dtype="float16")):
        with pytest.raises((tqkv.Incompatible, tqkv.InvalidArgument)):
            cache.import_sequence(wrong, memory)
    with pytest.raises(tqkv.InvalidArgument):
        cache.import_sequence(state, memory[:-64])
    with pytest.raises(tqkv.InvalidArgument, match="written"):
        cache.export_sequence(sequence, bytes(state.bytes))
    with tqkv.Cache(**CONFIG) as other, pytest.raises(tqkv.InvalidArgument, match="another cache"):
        other.save(sequence, tmp_path / "a")
    with pytest.raises(TypeError, match="must be a Sequence"):
        cache.save(sequence.id, tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        cache.save(sequence, tmp_path / "no folder" / "a")
    with tqkv.Cache(**{**CONFIG, "key_bits": 3}) as other, pytest.raises(tqkv.Incompatible, match="bits"):
        cache.save(sequence, tmp_path / "a")
        other.load(tmp_path / "a")
    assert cache.memory().num_sequences == lives


def test_damage_and_failures_of_files(cache, tmp_path):
    sequence, path = filled(cache, 40), tmp_path / "a"
    cache.save(sequence, path)
    data = path.read_bytes()
    lives = cache.memory()
    flipped = data[:200] + bytes([data[200] ^ 1]) + data[201:]
    for damaged in (data[:-1], data[:100], b"", b"x" + data[1:], flipped):
        with pytest.raises(tqkv.CorruptData):
            cache.load(io.BytesIO(damaged))

    class Broken:
        def read(self, count):
            raise KeyboardInterrupt

        def write(self, bytes):
            cache.memory()  # in the middle of a call on the cache

    with pytest.raises(KeyboardInterrupt):
        cache.load(Broken())
    with pytest.raises(tqkv.InvalidState, match="busy"):
        cache.save(sequence, Broken())
    assert cache.memory().num_sequences == lives.num_sequences and cache.memory().tokens == lives.tokens
    assert attended(cache, cache.load(path)) == attended(cache, sequence)


def test_a_symbolic_link_stays_one(cache, tmp_path):
    sequence = filled(cache, 5)
    os.symlink("real", tmp_path / "link")
    cache.save(sequence, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and len(cache.load(tmp_path / "real")) == 5
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
