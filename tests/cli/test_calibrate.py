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
