# SPDX-License-Identifier: Apache-2.0
"""`tqkv calibrate` on the bundled slice: a table, a file, and what it refuses."""
import json

from tool import SLICE, run


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
