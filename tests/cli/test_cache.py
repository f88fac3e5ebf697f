# SPDX-License-Identifier: Apache-2.0
"""tqkv cache info, verify, convert on the golden saved sequences of tests/state and on files of ranks, which
the Python package writes with the library that TQKV_LIBRARY names (else the program's own folder has it)."""
import json
import sys

import numpy as np
import pytest

from tool import EXIT_FILE, EXIT_OUTPUT, EXIT_USAGE, ROOT, run

GOLDEN = ROOT / "tests" / "state" / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.tqkv"))
NOT_IN_THE_FILE = ("bands", "centres", "matrix", "prod", "trellis_bands")  # all that a cache must have
sys.path.insert(0, str(ROOT / "tests"))


def saved(tqkv, path, tokens=70, **fields):
    """A file of random tokens; kv heads get the numbers that their place in the whole model says."""
    config = {"num_layers": 3, "num_kv_heads": 4, "head_dim": 32, "key_bits": 4, "value_bits": 16,
              "io_dtype": "float16", "max_tokens": 256, "window_tokens": 5, "num_threads": 1}
    first = fields.get("first_kv_head", 0)
    heads = range(first, first + fields.get("num_kv_heads", 4))
    random = np.random.default_rng(3)
    whole = random.standard_normal((3, 2, tokens, 4, 32)).astype(np.float16)
    with tqkv.Cache(**{**config, "num_q_heads": len(heads), **fields}) as cache:
        sequence, batch = cache.sequence(), cache.batch()
        batch.plan([sequence], [tokens])
        for layer in range(3):
            batch.append(layer, *(np.ascontiguousarray(x[:, list(heads)]) for x in whole[layer]))
        cache.save(sequence, path)
    return path


def test_golden_files_are_there():
    assert len(NAMES) >= 7


@pytest.mark.parametrize("name", NAMES)
def test_info_says_what_the_independent_reader_reads(name):
    pytest.importorskip("xxhash")
    from reference import state as reader
    path = GOLDEN / f"{name}.tqkv"
    done = run("cache", "info", "--json", path)
    assert done.returncode == 0, done.stderr
    found, wanted = json.loads(done.stdout), reader.read_saved(path.read_bytes())
    assert found["bytes"] == found["whole_bytes"] == wanted.size
    assert (found["tokens"], found["rollback_tokens"]) == (wanted.num_tokens, wanted.rollback)
    assert found["exact_copies"]["sinks_end"] == wanted.exact_sinks
    assert found["exact_copies"]["window_begin"] == wanted.exact_first
    assert int(found["identity"], 16) == wanted.identity
    for entry, layer in zip(found["layers"], wanted.layers, strict=True):
        assert entry["layer"] == layer.number
        if not layer.stores:
            assert entry["reads_layer"] == layer.reads
            continue
        assert (entry["first_kv_head"], entry["kv_heads"]) == (layer.first_head, layer.num_heads)
        for kind, side in zip(("rest", "latent") if name == "latent" else ("key", "value"), layer.sides):
            assert (entry[kind]["dim"], entry[kind]["bits"]) == (side.dim, side.bits)
    text = run("cache", "info", path)
    assert text.returncode == 0 and f"tokens         {wanted.num_tokens}\n" in text.stdout


@pytest.mark.parametrize("name", NAMES)
def test_verify(name, tmp_path):
    path = GOLDEN / f"{name}.tqkv"
    done = run("cache", "verify", path)
    assert done.returncode == 0, done.stderr
    assert "all checksums agree" in done.stdout
    assert ("a cache loads it" in done.stdout) == (name not in NOT_IN_THE_FILE)
    data, random = path.read_bytes(), np.random.default_rng(1)
    broken = tmp_path / "broken.tqkv"
    for at in [0, len(data) - 1, *random.integers(0, len(data), 6)]:
        broken.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1:])
        done = run("cache", "verify", broken)
        assert done.returncode == EXIT_FILE and str(broken) in done.stderr, (at, done)
    for cut in (data[:-1], data[:50], b"", data + b"x"):
        broken.write_bytes(cut)
        assert run("cache", "verify", broken).returncode == EXIT_FILE


def test_ranks_join_to_the_whole_and_it_splits_into_them(tqkv, tmp_path):
    whole = saved(tqkv, tmp_path / "whole")
    ranks = [saved(tqkv, tmp_path / f"rank{i}", num_kv_heads=2, first_kv_head=2 * i) for i in range(2)]
    joined = tmp_path / "joined"
    done = run("cache", "convert", *reversed(ranks), "-o", joined)
    assert done.returncode == 0, done.stderr
    assert joined.read_bytes() == whole.read_bytes()
    for i, rank in enumerate(ranks):
        heads = f"{2 * i}-{2 * i + 1}"
        assert run("cache", "convert", whole, "-o", joined, "--kv-heads", heads).returncode == 0
        assert joined.read_bytes() == rank.read_bytes()


def test_layers_and_exact_copies(tqkv, tmp_path):
    whole, part = saved(tqkv, tmp_path / "whole"), tmp_path / "part"
    done = run("cache", "convert", whole, "-o", part, "--layers", "1-2", "--no-exact-copies")
    assert done.returncode == 0, done.stderr
    assert run("cache", "verify", part).returncode == 0
    info = json.loads(run("cache", "info", "--json", part).stdout)
    assert [layer["layer"] for layer in info["layers"]] == [1, 2] and info["exact_copies"]["type"] == "none"
    assert run("cache", "convert", whole, "-o", part, "--layers", "2").returncode == 0
    assert run("cache", "verify", part).returncode == 0


def test_what_does_not_fit(tqkv, tmp_path):
    whole = saved(tqkv, tmp_path / "whole")
    first = saved(tqkv, tmp_path / "first", num_kv_heads=2)
    other = saved(tqkv, tmp_path / "other", num_kv_heads=2, first_kv_head=2, key_bits=3)
    shorter = saved(tqkv, tmp_path / "shorter", tokens=60, num_kv_heads=2, first_kv_head=2)
    out = tmp_path / "out"
    out.write_bytes(b"old")
    for inputs, text in (((first, other), "the codes of its keys"),
                         ((first, shorter), "num_tokens = 70 and 60"),
                         ((whole, whole), "kv heads"), ((GOLDEN / "raw.tqkv", whole), "do not join")):
        done = run("cache", "convert", *inputs, "-o", out)
        assert done.returncode == EXIT_FILE and text in done.stderr, done
    for option in (("--kv-heads", "2-4"), ("--layers", "1-3"), ("--layers", "7")):
        assert run("cache", "convert", whole, "-o", out, *option).returncode == EXIT_FILE
    for option in (("--kv-heads", "x"), ("--layers", "3-1"), ("--kv-heads", "1-")):
        assert run("cache", "convert", whole, "-o", out, *option).returncode == EXIT_USAGE
    assert run("cache", "convert", whole, "-o", whole).returncode == EXIT_USAGE
    assert run("cache", "convert", whole).returncode == EXIT_USAGE
    assert run("cache").returncode == EXIT_USAGE
    assert run("cache", "convert", whole, "-o", tmp_path / "no" / "folder").returncode == EXIT_OUTPUT
    assert run("cache", "info", tmp_path / "none").returncode == EXIT_FILE
    assert run("cache", "info", tmp_path).returncode == EXIT_FILE
    assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 5
