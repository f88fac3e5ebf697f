# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of the NumPy oracle on a CUDA device: page bytes, decoded vectors, flags, attention. As
tests/golden/library_test.cpp does on the CPU, with the same tolerances: bytes and decoded vectors equal,
attention within 2e-4 of a case's output and of its LSE (derived there).

Run: TQKV_LIBRARY=/path/to/libtqkv.so.0 python -m pytest tests/gpu/test_golden_torch.py     (needs torch with
CUDA; skips without) TQ_GOLDEN_DEVICE=cpu runs the same on the CPU, with torch or without.
"""
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

DEVICE = os.environ.get("TQ_GOLDEN_DEVICE", "cuda")
if DEVICE == "cuda":
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT / "bindings" / "python"), str(GOLDEN)]

import safetensors_io  # noqa: E402
import tqkv  # noqa: E402

DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576, 40, 72,
        *((100, ) if DEVICE == "cpu" else ()))
GATE = 2e-4
MASKS = {"visible_begin": np.int32, "visible_end": np.int32, "tree_mask": np.uint64,
         "alibi_slopes": np.float32}


def put(array):
    return np.ascontiguousarray(array) if DEVICE == "cpu" else torch.from_numpy(
        np.ascontiguousarray(array).copy()).cuda()


def take(array):
    return array if DEVICE == "cpu" else array.cpu().numpy()


def aligned_bytes(count, value):
    """Memory for a pool, full of one byte."""
    if DEVICE == "cuda":
        return torch.full((count,), value, dtype=torch.uint8, device="cuda")
    whole = np.full(count + 256, value, np.uint8)
    skip = -whole.ctypes.data % 256
    return whole[skip:skip + count]


def config(parameters, key_bits, value_bits, **more):
    fields = dict(num_layers=parameters["layer"] + 1,
                  head_dim=parameters["head_dim"],
                  io_dtype="float32",
                  key_bits=key_bits,
                  value_bits=value_bits,
                  rotation_seed=parameters["seed"],
                  key_scale_rule=parameters.get("key_rule", 0),
                  device=DEVICE)
    return tqkv.Config(**{**fields, **more})


def append_golden(cache, parameters, rows, pieces):
    """rows [32][d] as keys and values of the file's kv head, the other heads zero, appended in pieces; -> the
    sequence."""
    wide = np.zeros((32, parameters["kv_head"] + 1, rows.shape[1]), np.float32)
    wide[:, parameters["kv_head"]] = rows
    step, sequence, done = cache.batch(), cache.sequence(), 0
    for piece in pieces:
        step.plan([sequence], [piece], [0])
        part = put(wide[done:done + piece])
        step.append(parameters["layer"], part, part)
        done += piece
    cache.check()
    assert done == 32
    return sequence


@pytest.fixture(scope="module")
def encoded():
    files = {}

    def load(dim):
        if dim not in files:
            tensors, metadata = safetensors_io.load(GOLDEN / f"encode_d{dim}.safetensors")
            files[dim] = tensors, json.loads(metadata["parameters"])
        return files[dim]
    return load


@pytest.mark.parametrize("widths", ((2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (8, 8), (3, 5), (4, 2)), ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_page_bytes(encoded, dim, widths):
    tensors, parameters = encoded(dim)
    heads = parameters["kv_head"] + 1
    tile = b"".join(tensors[f"{side}.b{bits}.{part}"].tobytes() for part in ("words", "scales")
                    for side, bits in zip(("key", "value"), widths))
    for pieces in ((32,), (1, 6, 9, 15, 1)):
        chosen = config(parameters,
                        *widths,
                        num_q_heads=heads,
                        num_kv_heads=heads,
                        max_tokens=32,
                        page_size=32)
        # appended tokens may not depend on what was there
        pool = aligned_bytes((chosen.bytes().page_bytes + 255) // 256 * 256, 0xA5)
        with tqkv.Cache(
                config(parameters,
                       *widths,
                       num_q_heads=heads,
                       num_kv_heads=heads,
                       max_tokens=32,
                       page_size=32,
                       pool=pool)) as cache:
            sequence = append_golden(cache, parameters, tensors["input"], pieces)
            assert sequence.flags == 1, "rows 19, 21 and 22 hold what has to be replaced"
            assert tile in take(pool).tobytes(), f"pieces {pieces}: no tile of the pool equals the oracle's"


@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6, 8))
def test_decoded_vectors(encoded, bits):
    tensors, parameters = encoded(128)
    heads, layer = parameters["kv_head"] + 1, parameters["layer"]
    with tqkv.Cache(config(parameters, bits, bits, num_q_heads=heads, num_kv_heads=heads,
                           max_tokens=32)) as cache:
        sequence = append_golden(cache, parameters, tensors["input"], (32,))
        k = put(np.full((32, heads, 128), np.nan, np.float32))
        sequence.read(layer, 0, 32, k=k)
        cache.check()
        found = take(k)[:, parameters["kv_head"]]
    assert np.array_equal(found.view(np.uint32), tensors[f"key.b{bits}.decoded"].view(np.uint32))


ATTEND, ATTEND_CASES = safetensors_io.load(GOLDEN / "attend.safetensors")


@pytest.mark.parametrize("name", sorted(ATTEND_CASES))
def test_attention(name):
    p = json.loads(ATTEND_CASES[name])
    layer, length, fresh = p["layer"], p["seq_len"], p["new_tokens"]
    k, v, q = (ATTEND[f"{name}.{x}"] for x in "kvq")
    chosen = config(p,
                    p["key_bits"],
                    p["value_bits"],
                    num_q_heads=p["num_q_heads"],
                    num_kv_heads=p["num_kv_heads"],
                    value_dim=p["value_dim"],
                    max_tokens=length,
                    max_batch_tokens=max(length, p["query_tokens"]),
                    window_tokens=p["window_tokens"],
                    rollback_tokens=p["rollback_tokens"],
                    sink_tokens=p["sink_tokens"],
                    flags=0 if p["search"] else tqkv.CONSTANTS["TQ_FLAG_NO_SCALE_SEARCH"])
    with tqkv.Cache(chosen) as cache:
        if p["centres"]:
            cache.set_centres(
                layer, *(np.ascontiguousarray(ATTEND[f"{name}.{side}_centre"]) for side in ("key", "value")))
        if p["matrices"]:
            cache.set_key_matrix(layer, np.ascontiguousarray(ATTEND[f"{name}.key_matrix"]))
        step, sequence = cache.batch(), cache.sequence()
        if length > fresh:
            step.plan([sequence], [length - fresh], [0])
            step.append(layer, put(k[:length - fresh]), put(v[:length - fresh]))
        step.plan([sequence], [fresh], [p["query_tokens"]])
        step.append(layer, put(k[length - fresh:]), put(v[length - fresh:]))
        sinks = None if p["sink_logits"] is None else put(np.array(p["sink_logits"], np.float32))
        masks = {key: put(np.array(p[key], dtype)) for key, dtype in MASKS.items() if p[key] is not None}
        out, lse = (put(np.full(shape, np.nan, np.float32))
                    for shape in (ATTEND[f"{name}.out"].shape, ATTEND[f"{name}.lse"].shape))
        step.attend(layer,
                    put(q),
                    out=out,
                    lse=lse,
                    softmax_scale=p["softmax_scale"],
                    logit_softcap=p["logit_softcap"],
                    sliding_window=p["sliding_window"],
                    sink_logits=sinks,
                    history_only=bool(p["history_only"]),
                    **masks)
        cache.check()
        out, lse = take(out).astype(np.float64), take(lse).astype(np.float64)
    want, want_lse = ATTEND[f"{name}.out"], ATTEND[f"{name}.lse"]
    assert np.linalg.norm(out - want) <= GATE * np.linalg.norm(want)
    empty = np.isneginf(want_lse)
    assert np.array_equal(lse[empty], want_lse[empty]) and not np.any(out[empty])
    assert np.all(np.abs(lse[~empty] - want_lse[~empty]) <= GATE)


# ---- Latent layers: head_dim = 576, value_dim = 512, all that CUDA has of them ----

LATENT, LATENT_CASES = safetensors_io.load(GOLDEN / "latent.safetensors")
LATENT_GATE = 1e-3 if DEVICE == "cuda" else 2e-5  # queries and weights are halves on CUDA
LATENT_SHAPE = [512, 64]
BLOCK = 64


def latent_cases(attend):
    return sorted(name for name, text in LATENT_CASES.items()
                  if name.startswith("attend_") == attend and json.loads(text)["dims"] == LATENT_SHAPE)


def latent_config(p, **more):
    latent_bits, rest_bits = p["bits"]
    return tqkv.Config(**{**dict(layer_kind="latent", num_layers=1, num_q_heads=1, num_kv_heads=1,
                                 head_dim=576, value_dim=512, io_dtype="float32", key_bits=rest_bits,
                                 value_bits=latent_bits, rotation_seed=p["seed"], first_layer=p["layer"],
                                 first_kv_head=p["kv_head"], device=DEVICE), **more})


@pytest.mark.parametrize("name", latent_cases(False))
def test_latent_tile(name):
    p, tile = json.loads(LATENT_CASES[name]), LATENT[f"{name}.tile"]
    rows, decoded = LATENT[f"{name}.input"], LATENT[f"{name}.decoded"]
    more = dict(max_tokens=32, page_size=32)
    pool = aligned_bytes((latent_config(p, **more).bytes().page_bytes + 255) // 256 * 256, 0xA5)
    with tqkv.Cache(latent_config(p, **more, pool=pool)) as cache:
        step, sequence, done = cache.batch(), cache.sequence(), 0
        for piece in (1, 6, 9, 15, 1):
            step.plan([sequence], [piece], [0])
            step.append(0, put(rows[done:done + piece, None]))
            done += piece
        assert tile.tobytes() in take(pool).tobytes()
        k, v = (put(np.full((32, 1, dim), np.nan, np.float32)) for dim in (576, 512))
        sequence.read(0, 0, 32, k=k, v=v)
        cache.check()
        assert take(k)[:, 0].tobytes() == decoded.tobytes()
        assert take(v)[:, 0].tobytes() == np.ascontiguousarray(decoded[:, :512]).tobytes()


@pytest.mark.parametrize("name", latent_cases(False))
def test_latent_pages(name):
    """The same bytes in an engine's block, second tile of block 1, its slots filled in any order."""
    p, tile = json.loads(LATENT_CASES[name]), LATENT[f"{name}.tile"]
    order = (np.arange(32) * 11 + 5) % 32
    with tqkv.PagedCodec(latent_config(p, page_size=BLOCK)) as codec:
        layout = codec.page_layout(0, 3)
        memory = aligned_bytes(layout.total_bytes, 0xA5)
        pages, step = codec.pages(0, memory), codec.step()
        step.plan(slot_mapping=put(BLOCK + 32 + order.astype(np.int64)))
        step.append(0, pages, put(LATENT[f"{name}.input"][order][:, None]))
        codec.check()
        at = layout.block_stride + tile.size
        assert take(memory)[at:at + tile.size].tobytes() == tile.tobytes()


@pytest.mark.parametrize("name", latent_cases(True))
def test_latent_attention(name):
    p = json.loads(LATENT_CASES[name])
    length, fresh = p["seq_len"], p["new_tokens"]
    k, q = LATENT[f"{name}.k"], LATENT[f"{name}.q"]
    with tqkv.Cache(latent_config(p, num_q_heads=p["num_q_heads"], max_tokens=length,
                                  window_tokens=p["window_tokens"], sink_tokens=p["sink_tokens"],
                                  rollback_tokens=p["rollback_tokens"])) as cache:
        if p["centres"]:
            cache.set_centres(0, np.ascontiguousarray(LATENT[f"{name}.centre"]), None)
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], [length - fresh], [0])
        step.append(0, put(k[:length - fresh, None]))
        step.plan([sequence], [fresh], [p["query_tokens"]])
        step.append(0, put(k[length - fresh:, None]))
        want, want_lse = LATENT[f"{name}.out"], LATENT[f"{name}.lse"]
        out, lse = (put(np.full(x.shape, np.nan, np.float32)) for x in (want, want_lse))
        step.attend(0, put(q), out=out, lse=lse, softmax_scale=p["softmax_scale"])
        cache.check()
        out, lse = take(out).astype(np.float64), take(lse).astype(np.float64)
    assert np.linalg.norm(out - want) <= LATENT_GATE * np.linalg.norm(want)
    assert np.all(np.abs(lse - want_lse) <= 5 * LATENT_GATE)
