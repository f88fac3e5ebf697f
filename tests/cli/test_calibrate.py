# SPDX-License-Identifier: Apache-2.0
"""`tqkv calibrate` on the bundled slice: a table, a file, and what it refuses."""
import json

from tool import SLICE, eval_json, run


def test_a_table_and_a_file(tmp_path):
    file = tmp_path / "slice.tqc"
    done = run("calibrate", SLICE, "-o", file, "--key-bits", "3", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "layer 0: keys " in done.stdout and "bytes a token, error " in done.stdout
    assert file.read_bytes()[:8] == bytes.fromhex("8954514b430d0a1a")
    again = json.loads(run("calibrate", SLICE, "--json", "--quiet").stdout)
    assert again["error"] <= again["uniform_error"] and again["layers"]
    assert {"layer", "keys", "value_bits"} == set(again["layers"][0])


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


def test_the_cheapest_that_keeps_a_limit(tmp_path):
    """Every way is measured as eval measures it, and the fewest bytes within both limits are found."""
    files = [tmp_path / family for family in ("scalar", "trellis")]
    for file in files:
        done = run("calibrate", SLICE, "--key-family", file.name, "--value-family", file.name, "-o", file,
                   "--quiet")
        assert done.returncode == 0, done.stderr
    known = [more for file in files for more in ("--calibration", file)]
    found = eval_json(SLICE, "--cheapest", "--max-kl", 0.02, "--max-error", 0.15, *known)
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
    none = run("eval", SLICE, "--cheapest", "--max-kl", 0, "--quiet")
    assert none.returncode == 0 and "none of 15 keeps KL <= 0 " in none.stdout
    for wrong in (("--sweep",), ("--key-bits", 3), ("--plot", tmp_path / "x.svg")):
        assert run("eval", SLICE, "--cheapest", *wrong).returncode == 2
    assert run("eval", SLICE, *known).returncode == 2
