# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at any moment of a save: the file is the old one or the new one, whole. A child saves two sequences
in turn over one path, as fast as it can; it is killed after a random time, again and again (40 times,
TQKV_TEST_LONG 200, TQKV_TEST_QUICK 10), and what lies there is loaded."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tqkv
from reference import state as reader

KILLS = 200 if os.environ.get("TQKV_TEST_LONG") else 10 if os.environ.get("TQKV_TEST_QUICK") else 40
CONFIG = {"num_layers": 2, "num_q_heads": 2, "num_kv_heads": 2, "head_dim": 64, "key_bits": 4,
          "value_bits": 4, "io_dtype": "float32", "max_tokens": 2048, "max_sequences": 3, "num_threads": 1}
LENGTHS = (300, 700)


def make(cache, length):
    sequence, batch = cache.sequence(), cache.batch()
    batch.plan([sequence], [length])
    random = np.random.default_rng(length)
    for layer in range(2):
        batch.append(layer, *(random.standard_normal((length, 2, 64)).astype(np.float32) for _ in "kv"))
    batch.close()
    return sequence


def child(path):
    """Saves until it is killed."""
    cache = tqkv.Cache(**CONFIG)
    sequences = [make(cache, length) for length in LENGTHS]
    print("ready", flush=True)
    while True:
        for sequence in sequences:
            cache.save(sequence, path)


@pytest.fixture
def cache():
    with tqkv.Cache(**CONFIG) as cache:
        yield cache


def test_killed_while_it_saves(cache, tmp_path):
    path, random = tmp_path / "prompt.tqkv", np.random.default_rng(7)
    cache.save(make(cache, LENGTHS[0]), path)
    wanted = {}
    for sequence in (make(cache, length) for length in LENGTHS):
        cache.save(sequence, tmp_path / "one.tqkv")
        wanted[len(sequence)] = (tmp_path / "one.tqkv").read_bytes()
        sequence.free()
    seen, left = set(), 0
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(random.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        data = path.read_bytes()
        length = reader.read_saved(data).num_tokens
        assert data == wanted[length]
        cache.load(path).free()
        seen.add(length)
        for other in tmp_path.iterdir():
            if other.name.startswith(".prompt.tqkv."):
                left += 1
                other.unlink()
    assert seen == set(LENGTHS) or KILLS < 20
    print(f"{KILLS} kills, {left} of them in the middle of a file")


def test_a_failed_write_leaves_the_old_file(cache, tmp_path):
    """The simulated disk is full at every place where a file of this size can be cut."""
    path, sequence = tmp_path / "prompt.tqkv", make(cache, LENGTHS[0])
    cache.save(sequence, path)
    before = path.read_bytes()
    longer = make(cache, LENGTHS[1])
    for room in range(0, len(before), 70_001):
        with pytest.raises(OSError, match="full"):
            with tqkv.state.replacing(path) as file:
                cache.save(longer, Full(file, room))
        assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["prompt.tqkv"]
    assert len(cache.load(path)) == LENGTHS[0]


class Full:
    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(28, "the disk is full")
        self.room -= len(data)
        return self.file.write(data)


if __name__ == "__main__":
    child(sys.argv[1])
