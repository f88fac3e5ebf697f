# SPDX-License-Identifier: Apache-2.0
"""`tqkv calibrate` on the bundled slice: a table, a file, and what it refuses. On captures made here:
matrices of keys, which are those that the Python package finds when it is fed the same."""
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from tool import EXIT_CAPTURE, EXIT_LIBRARY, SLICE, eval_json, run, write_safetensors

Q_HEADS, KV_HEADS, DIM = 4, 2, 64


def test_a_table_and_a_file(tmp_path):
    file = tmp_path / "slice.tqc"
    done = run("calibrate", SLICE, "-o", file, "--key-bits", "3", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "layer 0: keys " in done.stdout and "bytes a token, error " in done.stdout
    assert file.read_bytes()[:8] == bytes.fromhex("8954514b430d0a1a")
    again = json.loads(run("calibrate", SLICE, "--json", "--quiet").stdout)
    assert again["error"] <= again["uniform_error"] and again["layers"]
    assert {"layer", "keys", "turned", "value_bits"} == set(again["layers"][0])
    assert again["turned_layers"] == 0


def test_what_it_refuses(tmp_path):
    assert run("calibrate", SLICE, "-o", SLICE).returncode == 2
    done = run("calibrate", SLICE, "--key-bits", "2.2", "--quiet")
    assert done.returncode == 5 and "goal.key_bits = 2.2" in done.stderr
    other = tmp_path / "none"
    assert run("calibrate", other).returncode == 3


def test_eval_takes_the_file(tmp_path):
    file = tmp_path / "slice.tqc"
    assert run("calibrate", SLICE, "-o", file, "--quiet").returncode == 0
    plain, banded = (eval_json(SLICE, "--key-bits", 3, *more) for more in ((), ("--calibration", file)))
    kl = [document["overall"][0]["attention_kl"] for document in (plain, banded)]
    size = [document["overall"][0]["stored_bytes_per_token_head"] for document in (plain, banded)]
    assert kl[1] < .8 * kl[0] and size[0] < size[1] <= size[0] + 8
    refused = run("eval", SLICE, "--layers", "0", "--calibration", file)
    assert refused.returncode == 4 and "the capture has others" in refused.stderr
    assert run("eval", SLICE, "--calibration", SLICE).returncode == 3


def check_plot(path, found):
    """A point for every way in both panels, lines that only fall, and below plain codes the limit of codes
    that are blind to their data: a straight line."""
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    circles = [circle for circle in root.iter(space + "circle") if circle.get("r") == "2.5"]
    assert len(circles) == 2 * len(found["measured"])
    texts = [text.text for text in root.iter(space + "text")]
    for part in ("scalar", "trellis", "scalar, centres of",
                 "trellis, layers of an error, bands and centres of", "Shannon's limit",
                 f"circled: {found['cheapest']['configuration']}"):
        assert [text for text in texts if text.startswith(part)], part
    for line in root.iter(space + "polyline"):
        points = np.array([point.split(",") for point in line.get("points").split()], float)
        assert (np.diff(points, axis=0) >= 0).all()
        if line.get("stroke") != "#000":
            continue
        slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
        assert len(points) > 10 and slopes.max() < 1.2 * slopes.min()
        if points[0, 0] > 525:  # the KL, which is of keys alone: some have more bits than their values
            continue
        own = [(float(circle.get("cx")), float(circle.get("cy"))) for circle in circles
               if circle.get("fill") == "#440154"]  # plain scalar codes
        own = [(x, y) for x, y in own if x < 525]
        assert own and all(np.interp(x, *points.T) > y for x, y in own)


def test_the_cheapest_that_keeps_a_limit(tmp_path):
    """Every way is measured as eval measures it, and the fewest bytes within both limits are found."""
    files = [tmp_path / family for family in ("scalar", "trellis")]
    for file in files:
        done = run("calibrate", SLICE, "--key-family", file.name, "--value-family", file.name, "-o", file,
                   "--quiet")
        assert done.returncode == 0, done.stderr
    known = [more for file in files for more in ("--calibration", file)]
    plot = tmp_path / "ways.svg"
    found = eval_json(SLICE, "--cheapest", "--max-kl", 0.02, "--max-error", 0.15, *known, "--plot", plot)
    best, ways = found["cheapest"], found["measured"]
    assert best["attention_kl"] <= 0.02 and best["output_relative_error"] <= 0.15
    size = "stored_bytes_per_token_head"
    assert not [way for way in ways if way[size] < best[size] and way["attention_kl"] <= 0.02
                and way["output_relative_error"] <= 0.15]
    names = " ".join(way["configuration"] for way in ways)
    for part in ("scalar 2/2", "trellis 4/4", "centres of", "3.5/2, bands and centres", "layers of error"):
        assert part in names
    plain = {way["configuration"]: way for way in ways}["trellis 3/3"]
    alone = eval_json(SLICE, "--key-family", "trellis", "--value-family", "trellis")["overall"][0]
    for name in (size, "attention_kl", "output_relative_error"):
        assert plain[name] == alone[name]
    check_plot(plot, found)
    none = run("eval", SLICE, "--cheapest", "--max-kl", 0, "--quiet")
    assert none.returncode == 0 and none.stdout.endswith("none of 15 keeps KL <= 0\n")
    for option, asked, other in (("--max-error", .15, "max_kl"), ("--max-kl", .02, "max_output_error")):
        alone = eval_json(SLICE, "--cheapest", option, asked)
        name = "output_relative_error" if option == "--max-error" else "attention_kl"
        keeping = [way for way in alone["measured"] if way[name] <= asked]
        assert alone[other] is None and alone["cheapest"] == min(keeping, key=lambda way: way[size])
    for wrong in (("--sweep",), ("--key-bits", 3), ("--plot", SLICE), ("--plot", files[0], *known)):
        assert run("eval", SLICE, "--cheapest", *wrong).returncode == 2
    assert run("eval", SLICE, *known).returncode == 2


def turned_capture(tokens, queries=None, seed=0, layers=2):
    """Sides of layers: what is uneven in keys and queries lies across coordinates, head by head."""
    random, heads = np.random.default_rng(7), np.random.default_rng(seed)
    sides = {}
    for layer in range(layers):
        uneven = np.geomspace(4, 0.1, DIM)
        turn = np.linalg.qr(random.standard_normal((KV_HEADS, DIM, DIM)))[0]
        key = np.einsum("htd,hde->hte", heads.standard_normal((KV_HEADS, tokens, DIM)) * uneven, turn)
        query = heads.standard_normal((Q_HEADS, queries or tokens, DIM)) * uneven
        query = np.einsum("htd,hde->hte", query, turn.repeat(Q_HEADS // KV_HEADS, 0))
        value = heads.standard_normal((KV_HEADS, tokens, DIM))
        for name, side in (("key", key), ("value", value), ("query", query)):
            sides[f"layers.{layer}.{name}"] = side.astype(np.float16)
    return sides


@pytest.mark.parametrize("lengths", ((300, ), (130, 200)))
def test_key_matrices(tqkv, tmp_path, lengths):
    """The file is the package's own of the same tokens, and a capture that it has not seen gains."""
    captures = [turned_capture(length, seed=i) for i, length in enumerate(lengths)]
    files = [write_safetensors(tmp_path / f"{i}.safetensors", capture) for i, capture in enumerate(captures)]
    found = {}
    for more in ((), ("--turn-keys", )):
        done = run("calibrate", *files, "-o", tmp_path / f"calibration{len(more)}", "--json", "--quiet",
                   *more)
        assert done.returncode == 0, done.stderr
        found[len(more)] = json.loads(done.stdout)
    assert [layer["turned"] for layer in found[1]["layers"]] == [True, True]
    assert (found[0]["turned_layers"], found[1]["turned_layers"]) == (0, 2)
    assert found[1]["error"] < .8 * found[0]["error"]
    with tqkv.Calibration(2, Q_HEADS, KV_HEADS, DIM, turn_keys=True) as own:
        for layer in range(2):
            for capture in captures:
                own.feed(layer, *(capture[f"layers.{layer}.{name}"].transpose(1, 0, 2).astype(np.float32, "C")
                                  for name in ("query", "key", "value")))
        own.save(tmp_path / "own")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "calibration1").read_bytes()
    judged = write_safetensors(tmp_path / "judged.safetensors", turned_capture(300, 60, seed=9))
    kl = [eval_json(judged, "--calibration", tmp_path / f"calibration{i}")["overall"][0]["attention_kl"]
          for i in range(2)]
    assert kl[1] < .8 * kl[0], kl
    assert "turned, values 3 bits" in run("calibrate", *files, "--turn-keys", "--quiet").stdout
    ways = eval_json(judged, "--cheapest", "--calibration", tmp_path / "calibration1")["measured"]
    assert [way for way in ways if ", bands, matrices and centres of " in way["configuration"]]


def test_key_matrices_of_few_queries_are_refused(tmp_path):
    done = run("calibrate", SLICE, "--turn-keys", "--quiet", "-o", tmp_path / "file")
    assert done.returncode == EXIT_CAPTURE and not (tmp_path / "file").exists()
    assert f"{SLICE}: --turn-keys needs the queries of all 448 positions, here are those of the last 16" \
        in done.stderr
    files = [write_safetensors(tmp_path / f"{i}.safetensors", turned_capture(300, count, layers=1))
             for i, count in enumerate((300, 299))]
    done = run("calibrate", *files, "--turn-keys", "--quiet")
    assert done.returncode == EXIT_CAPTURE and f"{files[1]}: --turn-keys needs" in done.stderr
    short = write_safetensors(tmp_path / "short.safetensors", turned_capture(200, layers=1))
    done = run("calibrate", short, "--turn-keys", "--quiet")
    assert done.returncode == EXIT_LIBRARY and "was fed 200 tokens: it takes 256 or more" in done.stderr
