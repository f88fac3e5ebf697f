# SPDX-License-Identifier: Apache-2.0
"""Quantizer: the records of the golden file, products and search against decoded vectors, arrays of every
kind, levels from files, what the package itself refuses."""
import array
import json
import threading

import numpy as np
import pytest
import tqkv

GOLDEN = "tests/golden/quantizer.safetensors"
NAMES = {"family": {1: "scalar", 2: "prod", 3: "grouped", 4: "levels"}}


def vectors(count, dim=100, seed=1):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype("float32")


def golden(root):
    """(case, fields of the oracle's Quantizer, x, records, decoded or None)"""
    blob = (root / GOLDEN).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:8 + length])
    kinds = {"F32": "<f4", "U8": "u1"}

    def tensor(name):
        first, end = header[name]["data_offsets"]
        return np.frombuffer(blob[8 + length + first:8 + length + end],
                             kinds[header[name]["dtype"]]).reshape(header[name]["shape"])

    for case, text in header["__metadata__"].items():
        p = json.loads(text)
        decoded = f"{case}.decoded"
        yield (case, p, tensor(f"d{p['dim']}.input"), tensor(f"{case}.records"),
               tensor(decoded) if decoded in header else None)


def made(p):
    prod, grouped = p["family"] == 2, p["family"] == 3
    levels = tqkv.Levels(tuple(p["levels"]), tuple(p["boundaries"]), p["unit"]) if p["levels"] else None
    return tqkv.Quantizer(p["dim"], p["bits"], family=NAMES["family"][p["family"]],
                          rotation=0 if grouped else p["rotation"], scale_rule=p["rule"],
                          scale_search=p["search"], group_size=p["group"] if grouped else 0,
                          sketch=p["sketch"] if prod else 0, sketch_rule=p["sketch_rule"] if prod else 0,
                          sketch_factor=p["factor"], outliers=p["outliers"], levels=levels, seed=p["seed"])


def test_golden_records(root):
    cases = 0
    for case, p, x, records, decoded in golden(root):
        with made(p) as quantizer:
            assert quantizer.code_bytes == records.shape[1], case
            assert np.array_equal(quantizer.encode(x), records), case
            if decoded is not None:
                assert np.array_equal(quantizer.decode(records), decoded), case
        cases += 1
    assert cases > 40


@pytest.mark.parametrize("fields", (dict(bits=4), dict(bits=3, family="prod"),
                                    dict(bits=4, family="grouped", group_size=32),
                                    dict(bits=2, outliers=[3, 50])))
def test_products_and_search(fields):
    x, q = vectors(300), vectors(20, seed=2)
    with tqkv.Quantizer(100, **fields) as quantizer:
        codes = quantizer.encode(x)
        decoded = quantizer.decode(codes).astype("float64")
        out = quantizer.inner_products(q, codes)
        size = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(decoded, axis=1)
        assert (abs(out - q @ decoded.T) < 4e-4 * size).all()
        for bias in (None, -(x ** 2).sum(axis=1) / 2):
            scores, ids = quantizer.search(q, codes, 7, bias=bias)
            wanted = out if bias is None else out + bias
            order = np.argsort(-wanted, axis=1, kind="stable")[:, :7]
            assert np.array_equal(ids, order)
            assert np.array_equal(scores, np.take_along_axis(wanted, order, axis=1))
        scores, ids = quantizer.search(q[:2], codes[:3], 5)
        assert (ids[:, 3:] == -1).all() and np.isneginf(scores[:, 3:]).all()


def test_one_vector_and_arrays_without_numpy():
    x = array.array("f", range(16))
    with tqkv.Quantizer(16, 2) as quantizer:
        record = quantizer.encode(x)
        assert bytes(record) == bytes(quantizer.encode(np.arange(16, dtype="float32")))
        assert quantizer.decode(record).shape == (16, )
        room = np.zeros((1, quantizer.code_bytes), "uint8")
        assert quantizer.encode(np.arange(16, dtype="float32")[None], codes=room) is room
        assert bytes(room) == bytes(record)


def test_half_precision():
    x = vectors(10).astype("float16")
    with tqkv.Quantizer(100, 8, io_dtype="float16") as half, tqkv.Quantizer(100, 8) as single:
        assert np.array_equal(half.encode(x), single.encode(x.astype("float32")))
        back = half.decode(half.encode(x))
        assert back.dtype == np.float16
        with pytest.raises(tqkv.InvalidArgument, match="x: has float32 elements"):
            half.encode(x.astype("float32"))


def test_rotation():
    x = vectors(5, 641)
    with tqkv.Quantizer(641, 1, seed=3) as quantizer:
        y = quantizer.rotate(x)
        assert y.shape == (5, 768) == (5, quantizer.rotated_dim)
        assert np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)
        assert np.allclose(quantizer.unrotate(y), x, atol=1e-5)


def test_noticed():
    x = vectors(2)
    x[1, 7] = np.nan
    with tqkv.Quantizer(100, 4) as quantizer:
        assert quantizer.encode(x, noticed=True)[1] == tqkv.Noticed.NONFINITE
        assert quantizer.encode(x[:1], noticed=True)[1] == 0


def test_levels(tmp_path):
    x = vectors(1000)
    with tqkv.Quantizer(100, 2, family="prod") as quantizer:
        levels, error = quantizer.calibrate_levels(x, 3)
        assert 0.03 < error < 0.036
        assert quantizer.calibrate_sketch_factor(x) == pytest.approx(0.798, abs=0.01)
    levels.save(tmp_path / "levels.json")
    assert tqkv.Levels.load(tmp_path / "levels.json") == levels
    # as other tools write it: ends of the range, "centroids", a factor
    other = {"centroids": levels.levels, "boundaries": [-1, *levels.boundaries, 1], "sketch_factor": 0.5}
    (tmp_path / "other.json").write_text(json.dumps(other))
    loaded = tqkv.Levels.load(tmp_path / "other.json")
    assert loaded == tqkv.Levels(levels.levels, levels.boundaries, 1.0, 0.5)
    with tqkv.Quantizer(100, 3, family="levels", levels=levels) as quantizer:
        back = quantizer.decode(quantizer.encode(x))
        # decoding drops the error of the padding
        assert ((back - x) ** 2).sum() / (x ** 2).sum() == pytest.approx(error * 100 / 112, rel=0.02)
    with tqkv.Quantizer(100, 4, family="prod", levels=loaded) as quantizer:
        assert quantizer.sketch_factor == 0.5
    with pytest.raises(tqkv.InvalidArgument, match="levels: 3 levels"):
        tqkv.Quantizer(100, 2, family="levels", levels=tqkv.Levels((1, 2, 3), (1, 2)))


def test_threads_and_close():
    x = vectors(500)
    quantizer = tqkv.Quantizer(100, 4)
    wanted, found = quantizer.encode(x), []
    threads = [threading.Thread(target=lambda: found.append(quantizer.encode(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(codes, wanted) for codes in found)
    with tqkv.Quantizer(100, 4) as same, tqkv.Quantizer(100, 4, seed=1) as other:
        assert quantizer.fingerprint == same.fingerprint != other.fingerprint
    quantizer.close()
    quantizer.close()
    with pytest.raises(tqkv.InvalidState, match="quantizer: is closed"):
        quantizer.encode(x)


def test_refusals():
    with pytest.raises(tqkv.InvalidArgument, match="(?s)dim = 0.*bits"):
        tqkv.Quantizer(0, 9, family="prod")
    with pytest.raises(tqkv.InvalidArgument, match="family = 'product'"):
        tqkv.Quantizer(8, 4, family="product")
    with tqkv.Quantizer(100, 4) as quantizer:
        x, codes = vectors(2), np.zeros((2, 58), "uint8")
        with pytest.raises(tqkv.InvalidArgument, match=r"x: has shape \[2, 99\]"):
            quantizer.encode(np.ascontiguousarray(x[:, 1:]))
        with pytest.raises(tqkv.InvalidArgument, match="x: must be contiguous"):
            quantizer.encode(np.asfortranarray(x))
        with pytest.raises(tqkv.InvalidArgument, match=r"codes: has shape \[2, 57\]"):
            quantizer.decode(np.ascontiguousarray(codes[:, 1:]))
        with pytest.raises(tqkv.InvalidArgument, match="codes: has float32 elements"):
            quantizer.decode(x)
        with pytest.raises(tqkv.InvalidArgument, match="k = 0"):
            quantizer.search(x, codes, 0)
        with pytest.raises(tqkv.InvalidArgument, match="bias: has shape"):
            quantizer.search(x, codes, 1, bias=np.zeros(3, "float32"))
        with pytest.raises(tqkv.InvalidArgument, match="codes: cannot be written to"):
            quantizer.encode(x, codes=np.frombuffer(bytes(116), "uint8").reshape(2, 58))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1"])
def test_devices_that_there_are_not(device):
    with pytest.raises(tqkv.InvalidArgument, match="device"):
        tqkv.Quantizer(dim=8, bits=2, device=device)
