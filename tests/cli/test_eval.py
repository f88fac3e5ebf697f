# SPDX-License-Identifier: Apache-2.0
"""`tqkv eval`: its figures against the NumPy oracle, and its outputs as documents.

The oracle (tests/reference, written from FORMAT.md) encodes and decodes the same vectors; keys and values
must then have the same errors up to summation order (1e-6 relative, float64 sums over at most 1e5 terms of
float32 data are far better), which also proves that a layer is judged with the rotation that it has in a
whole cache. The attention of the library rounds queries and weights to 16 bits and its scores to float32; its
output may differ from float64 attention over the same decoded vectors by 1e-3 of the output's norm.
"""
import json
import os
import pty
import select
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.reference import attention as reference_attention
from tests.reference import encode as reference
from tool import SLICE, eval_json, find_tool, make_capture, read_slice, run, write_safetensors

ORACLE_RELATIVE = 1e-6
ATTEND_RELATIVE = 1e-3


def oracle_decode(x, layer, bits, kind, centres=None):
    """x [heads, tokens, dim] through the oracle with the library's defaults."""
    out = np.empty(x.shape, np.float32)
    for head in range(x.shape[0]):
        config = reference.SideConfig(x.shape[2],
                                      bits,
                                      kind,
                                      layer=layer,
                                      kv_head=head,
                                      centre=None if centres is None else tuple(
                                          np.float32(c) for c in centres[head]))
        coded = reference.encode(np.ascontiguousarray(x[head], np.float32), config)
        out[head] = reference.decode(coded.codes, coded.scales, config)
    return out


def mean_errors(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    mse = (((x - y) ** 2).sum(-1) / (x**2).sum(-1)).mean()
    cosine = ((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))).mean()
    return mse, cosine


def log_weights(q, k):
    """[q heads, queries, tokens] causal log-softmax in float64, -inf where hidden."""
    q, k = q.astype(np.float64), np.repeat(k.astype(np.float64), q.shape[0] // k.shape[0], axis=0)
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    tokens, queries = k.shape[1], q.shape[1]
    logits[:, np.arange(tokens)[None, :] > (tokens - queries + np.arange(queries))[:, None]] = -np.inf
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def attention_kl(q, k, decoded):
    p, other = log_weights(q, k), log_weights(q, decoded)
    seen = np.isfinite(p)
    terms = np.zeros_like(p)
    terms[seen] = np.exp(p[seen]) * (p[seen] - other[seen])
    return terms.sum(-1).mean()


def attend(q, k, v):
    return reference_attention.attend(q.transpose(1, 0, 2), k, v)[0]


def expect(found, wanted, relative=ORACLE_RELATIVE):
    assert found == pytest.approx(wanted, rel=relative, abs=1e-12)


def expect_quality(found, layer, key, value, query, bits, key_centres=None, value_centres=None):
    k, v, q = (side.astype(np.float32) for side in (key, value, query))
    decoded_k = oracle_decode(k, layer, bits, reference.KEY, key_centres)
    decoded_v = oracle_decode(v, layer, bits, reference.VALUE, value_centres)
    for side, x, y in (("key", k, decoded_k), ("value", v, decoded_v)):
        mse, cosine = mean_errors(x, y)
        expect(found[side + "_relative_mse"], mse)
        expect(found[side + "_cosine"], cosine)
    expect(found["attention_kl"], attention_kl(q, k, decoded_k), 1e-5)
    exact, coded = attend(q, k, v), attend(q, decoded_k, decoded_v)
    assert found["output_relative_error"] == pytest.approx(np.linalg.norm(exact - coded) /
                                                           np.linalg.norm(exact),
                                                           abs=ATTEND_RELATIVE)
    assert found["output_max_error"] == pytest.approx(np.abs(exact - coded).max(),
                                                      abs=ATTEND_RELATIVE * np.linalg.norm(exact))


@pytest.mark.parametrize("bits", [3, 8])
def test_figures_of_the_slice_are_the_oracle_s(bits):
    tensors = read_slice()
    layer = 2
    document = eval_json(SLICE, "--layers", layer, "--key-bits", bits, "--value-bits", bits)
    (found,) = document["layers"]
    assert found["layer"] == layer
    (width,) = found["widths"]
    key, value, query = (tensors[f"layers.{layer}.{part}"] for part in ("key", "value", "query"))
    expect_quality(width, layer, key, value, query, bits)
    # 448 tokens are 7 whole pages: nothing but codes and two bfloat16 scales
    assert width["stored_bytes_per_token_head"] == 2 * (128 * bits / 8 +
                                                        2) == width["coded_bytes_per_token_head"]
    assert width["fp16_bytes_per_token_head"] == 512
    expect(width["compression"], 512 / width["stored_bytes_per_token_head"])

    norms = np.linalg.norm(key.astype(np.float64), axis=-1)
    expect(found["mean_key_norm"], norms.mean())
    share = (key.astype(np.float64).mean(1) ** 2).sum(-1) / (norms**2).mean(1)
    expect(found["constant_key_share"], share.mean())
    expect(found["constant_key_share_worst_head"], share.max())

    half = key.shape[1] // 2
    centres = [side[:, :half].astype(np.float64).mean(1) for side in (key, value)]
    expect_quality(width["centres"]["without"], layer, key[:, half:], value[:, half:], query, bits)
    expect_quality(width["centres"]["with"], layer, key[:, half:], value[:, half:], query, bits, *centres)


def test_sweep_measures_every_width_and_more_bits_are_better():
    document = eval_json(SLICE, "--sweep")
    widths = [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (8, 8), (4, 2)]
    assert [layer["layer"] for layer in document["layers"]] == [0, 2, 4, 6]
    for rows in [layer["widths"] for layer in document["layers"]] + [document["overall"]]:
        assert [(row["key_bits"], row["value_bits"]) for row in rows] == widths
        same = rows[:6]
        for name in ("key_relative_mse", "value_relative_mse", "output_relative_error", "attention_kl"):
            values = [row[name] for row in same]
            assert values == sorted(values, reverse=True), name
        stored = [row["stored_bytes_per_token_head"] for row in same]
        assert stored == sorted(stored)
        assert rows[6]["key_relative_mse"] == rows[2]["key_relative_mse"] and rows[6][
            "value_relative_mse"] == rows[0]["value_relative_mse"]
        assert all(row["append_tokens_per_s"] > 0 and row["attend_tokens_per_s"] > 0 for row in rows)
    for layer in document["layers"]:
        advice = layer["recommendation"]
        first = next(row for row in layer["widths"][:6]
                     if row["attention_kl"] <= 0.02 and row["output_relative_error"] <= 0.1)
        assert advice["bits"] == first["key_bits"] and not advice["keep_raw"]


def test_a_layer_is_judged_the_same_whatever_else_is():
    # noqa: E731
    strip = lambda row: {name: value for name, value in row.items() if not name.endswith("_per_s")}
    whole = {layer["layer"]: [strip(row) for row in layer["widths"]] for layer in eval_json(SLICE)["layers"]}
    part = eval_json(SLICE, "--layers", "2,4-4,6", "--threads", 1)["layers"]
    assert {layer["layer"]: [strip(row) for row in layer["widths"]]
            for layer in part} == {n: whole[n]
                                   for n in (2, 4, 6)}


def test_seed_rotation_rules_and_search_reach_the_library():
    def error(*arguments):
        return eval_json(SLICE, "--layers", 0, *arguments)["layers"][0]["widths"][0]

    base = error()
    assert error("--seed", 1)["key_relative_mse"] != base["key_relative_mse"]
    assert error("--no-search")["key_relative_mse"] > base["key_relative_mse"]
    assert error("--key-scale-rule", "ls")["key_relative_mse"] < base["key_relative_mse"]
    assert error("--value-scale-rule", "ls")["value_relative_mse"] < base["value_relative_mse"]
    dense = error("--rotation", "dense")
    assert dense["key_relative_mse"] != base["key_relative_mse"]
    assert dense["key_relative_mse"] == pytest.approx(base["key_relative_mse"], rel=0.2)


def test_exact_window_and_raw_sides_are_exact():
    """The slice is float16, so raw copies are the input: decoding is exact, and the output is float32
    attention."""
    for arguments in (["--window", 448], ["--key-bits", 16, "--value-bits", 16]):
        (layer,) = eval_json(SLICE, "--layers", 6, *arguments)["layers"]
        (width,) = layer["widths"]
        assert width["key_relative_mse"] == 0 and width["value_relative_mse"] == 0 and width[
            "attention_kl"] == 0
        assert width["output_relative_error"] < 1e-3
    raw = width
    assert raw["stored_bytes_per_token_head"] == 512 and raw["compression"] == 1
    part = eval_json(SLICE, "--layers", 6, "--window", 64, "--sinks", 4)["layers"][0]["widths"][0]
    plain = eval_json(SLICE, "--layers", 6)["layers"][0]["widths"][0]
    # 68 of 448 tokens are exact; their raw copies count in what is stored
    assert part["key_relative_mse"] == pytest.approx(plain["key_relative_mse"] * 380 / 448, rel=0.02)
    assert part["stored_bytes_per_token_head"] >= plain["stored_bytes_per_token_head"] + 68 / 448 * 512
    assert part["coded_bytes_per_token_head"] == plain["coded_bytes_per_token_head"]


def test_pages_that_are_not_full_count():
    found = eval_json(SLICE, "--layers", 0, "--page-size", 256)["layers"][0]["widths"][0]
    assert found["stored_bytes_per_token_head"] == pytest.approx(100 * 512 / 448)


def test_recommendation_follows_its_rule():
    # noqa: E731
    advice = lambda *arguments: eval_json(SLICE, "--layers", 2, *arguments)["layers"][0]["recommendation"]
    strict = advice("--max-error", 1e-9)
    assert strict["keep_raw"] and strict["bits"] == 16 and strict["tried"] == [3, 4, 5, 6, 8]
    loose = advice("--max-error", 10, "--max-kl", 10)
    assert loose["bits"] == 3 and loose["tried"] == [3]
    assert advice("--sweep", "--max-error", 10, "--max-kl", 10)["bits"] == 2


def test_outlier_layers_are_named(tmp_path):
    tensors = make_capture(layers=(0, 1, 2, 3), tokens=64)
    tensors["layers.2.key"] = tensors["layers.2.key"] * 5
    tensors["layers.1.key"] = tensors["layers.1.key"] + 3  # |mean|^2 / mean |k|^2 = 9 / 10
    path = write_safetensors(tmp_path / "outlier.safetensors", tensors, "F32")
    layers = eval_json(path, "--key-bits", 4, "--value-bits", 4)["layers"]
    norms = [np.linalg.norm(tensors[f"layers.{i}.key"], axis=-1).mean() for i in range(4)]
    for layer, norm in zip(layers, norms):
        assert layer["key_norm_to_median"] == pytest.approx(norm / np.median(norms), rel=1e-5)
    assert [layer["outlier"] for layer in layers
            ] == [bool(norm / np.median(norms) > 2 or norm / np.median(norms) < 0.5) for norm in norms]
    assert layers[2]["outlier"]
    assert layers[1]["constant_key_share"] > 0.8 > 0.2 > layers[0]["constant_key_share"]
    centred = layers[1]["widths"][0]["centres"]
    assert centred["with"]["key_relative_mse"] < centred["without"]["key_relative_mse"] / 3
    text = run("eval", path, "--repeats", 1).stdout
    # the legend's and the rows'
    assert text.count("OUTLIER ") == 1 + sum(layer["outlier"] for layer in layers)
    assert "set centres" in text


@pytest.mark.parametrize(
    "shape",
    [
        dict(kv_heads=1, q_heads=8),  # MQA
        dict(kv_heads=3, q_heads=3),  # MHA
        dict(tokens=1, queries=1),  # no halves to judge centres on
        dict(tokens=33, queries=33),  # every position asks; more queries than the second half has tokens
        dict(dim=80, value_dim=64),
        dict(dim=576, value_dim=512, q_heads=4),
    ])
def test_shapes(tmp_path, shape):
    tensors = make_capture(**shape)
    path = write_safetensors(tmp_path / "shape.safetensors", tensors, "F32")
    (layer,) = eval_json(path, "--key-bits", 4, "--value-bits", 4)["layers"]
    expect_quality(layer["widths"][0], 0,
                   *(tensors[f"layers.0.{part}"].astype(np.float32) for part in ("key", "value", "query")), 4)
    assert ("centres" in layer["widths"][0]) == (shape.get("tokens") != 1)


def test_element_types_agree(tmp_path):
    """The same numbers, exact in all three types, give the same figures."""
    tensors = {name: np.round(array * 16) / 16 for name, array in make_capture().items()}
    tensors = {name: np.clip(array, -7.9375, 7.9375) for name, array in tensors.items()}
    results = []
    for dtype in ("F16", "BF16", "F32"):
        document = eval_json(write_safetensors(tmp_path / f"{dtype}.safetensors", tensors, dtype))
        assert document["capture"]["dtype"] == dtype
        row = document["layers"][0]["widths"][0]
        results.append({name: value for name, value in row.items() if not name.endswith("_per_s")})
    assert results[0] == results[1] == results[2]


def test_extreme_halves_are_read_exactly(tmp_path):
    """Subnormal and largest float16, against NumPy's own conversion."""
    tensors = make_capture(dim=32, tokens=32)
    tensors["layers.0.key"][0, 0, :4] = [6e-8, -3e-5, 65504, 6.2e-5]
    path = write_safetensors(tmp_path / "extreme.safetensors", tensors, "F16")
    half = tensors["layers.0.key"].astype(np.float16).astype(np.float64)
    (layer,) = eval_json(path, "--key-bits", 8, "--value-bits", 8)["layers"]
    expect(layer["mean_key_norm"], np.linalg.norm(half, axis=-1).mean())


def test_table_fits_120_columns_and_says_what_it_is():
    done = run("eval", SLICE, "--sweep", "--repeats", 1)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    # quality and centres: four layers and the mean
    assert sum(line.split()[1:2] == ["3/3"] for line in lines) == 2 * (4 + 1)
    for word in ("stored per token and kv head", "nats", "constant share", "recommended", "centres:",
                 "5.12x"):
        assert word in done.stdout, word


def test_plot_is_a_complete_svg(tmp_path):
    path = tmp_path / "a <plot>.svg"
    done = run("eval", SLICE, "--sweep", "--repeats", 1, "--plot", path, "--json")
    assert done.returncode == 0, done.stderr
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == space + "svg"
    lines = root.findall(space + "polyline")
    assert len(lines) == 2 * (4 + 1)
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == 6
        # more bytes, less error (y grows downwards)
        assert all(b[0] > a[0] and b[1] > a[1] for a, b in zip(points, points[1:]))
    texts = [text.text for text in root.iter(space + "text")]
    for wanted in ("3/3", "4/2", "layer 6", "mean of layers", "attention weights: KL to exact (nats)"):
        assert wanted in texts, wanted
    assert any("stored bytes" in text for text in texts)


def test_plot_of_one_width_and_one_layer(tmp_path):
    path = tmp_path / "one.svg"
    assert run("eval", SLICE, "--layers", 4, "--repeats", 1, "--plot", path).returncode == 0
    assert "nan" not in path.read_text() and "inf" not in path.read_text()
    ElementTree.parse(path)


def test_json_is_alone_on_stdout_and_short_work_is_silent(tmp_path):
    path = write_safetensors(tmp_path / "small.safetensors", make_capture())
    done = run("eval", path, "--json", "--repeats", 1)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith(
        "{") and done.stdout.endswith("}\n")


def test_progress_updates_one_line_on_a_terminal():
    terminal, child_side = pty.openpty()
    process = subprocess.Popen(
        [find_tool(), "eval", str(SLICE), "--sweep", "--repeats", "20"],
        stdout=subprocess.DEVNULL,
        stderr=child_side)
    os.close(child_side)
    seen = b""
    while True:
        ready, _, _ = select.select([terminal], [], [], 60)
        try:
            part = os.read(terminal, 4096) if ready else b""
        except OSError:  # the child's end is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert seen.count(b"\r") >= 2 and b"\n" not in seen and b"layer " in seen and seen.endswith(b"\r\x1b[K")


def test_figures_that_are_not_finite_are_null_and_leave_the_plot(tmp_path):
    """Exact attention that looks at one token only, whose value is 0, while the codes cannot tell the tokens
    apart: an error relative to nothing is infinite, and no document holds a bare inf or NaN for it."""
    tensors = make_capture(layers=(0, 1))
    key = tensors["layers.0.key"]
    key[:] = key[:, :1] + 0.01 * key
    query = tensors["layers.0.query"] = 1e8 * tensors["layers.0.query"]
    for position in range(4):
        seen = np.einsum("hd,td->ht", query[:, position], key[0, :37 + position])
        tensors["layers.0.value"][0, seen.argmax(1)] = 0
    path = write_safetensors(tmp_path / "huge.safetensors", tensors, "F32")
    plot = tmp_path / "huge.svg"
    done = run("eval", path, "--key-bits", 2, "--repeats", 1, "--json", "--plot", plot)
    assert done.returncode == 0, done.stderr

    def refuse(token):
        raise ValueError(token)

    document = json.loads(done.stdout, parse_constant=refuse)
    assert document["layers"][0]["widths"][0]["output_relative_error"] is None
    root = ElementTree.parse(plot).getroot()
    numbers = [value for element in root.iter() for name, value in element.attrib.items() if name in PLACES]
    assert numbers
    assert np.isfinite([float(n) for value in numbers for n in value.replace(",", " ").split()]).all()
    assert any("not finite, left out" in (element.text or "") for element in root.iter())


PLACES = ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "points")
