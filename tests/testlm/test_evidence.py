# SPDX-License-Identifier: Apache-2.0
"""What evidence.json promises, and that it is what the library does: its goals, its shape, one of its runs
made again, and the quick form of the command that made it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import report  # noqa: E402
import run  # noqa: E402
from calibrated import CacheAttention  # noqa: E402
from library import find_library  # noqa: E402
from model import Model, read_safetensors  # noqa: E402

FOLDER = run.default_folder()
needs_model = pytest.mark.skipif(not (FOLDER / "weights.safetensors").exists() or not find_library(),
                                 reason=f"no test model at {FOLDER} (set TQKV_TESTLM), or no libtqkv.so")


@pytest.fixture(scope="module")
def rows():
    found = json.loads((HERE / "evidence.json").read_text())["rows"]
    return {(row["name"], row["kind"], row["bits"], row["window"], row["sinks"]): row for row in found}


def expect_whole(rows, *configuration, pairs=((0, 0), (0, 4), (128, 0), (128, 4))):
    for pair in pairs:
        row = rows[(*configuration, *pair)]
        assert len(row["kl"]) == len(row["top1"]) == 24, (configuration, pair)
        assert pair not in ((0, 0), (128, 4)) or len(row["recall"]) == len(row["recall_kl"]) == 6


def test_every_family_kind_rate_and_choice_of_exact_tokens_is_there(rows):
    for family in ("scalar", "trellis"):
        for kind in ("plain", "centred", "banded", "both", "turned"):
            for bits in (2, 3, 4):
                expect_whole(rows, family, kind, bits)
        for bits in (2.5, 3.5):
            expect_whole(rows, family, "turned", bits)
            for kind in ("banded", "both"):
                expect_whole(rows, family, kind, bits, pairs=((0, 0), (128, 4)))
    names = {name for name, kind, *_ in rows if not kind}
    assert {name.split()[0] for name in names} == {"KVarN", "Block-GTQ", "OSCAR", "buun"}
    for name in names:
        expect_whole(rows, name, "", 0)


@pytest.mark.parametrize("bits, rival, most", ((2, "KVarN k2v2", 2.4), (3, "KVarN k3v3", 3.4)))
def test_half_of_kvarns_kl_in_no_more_bytes(rows, bits, rival, most):
    """Two standard errors of the ratio included; at every choice of exact tokens that the rival has."""
    pairs = [(window, sinks) for name, kind, _, window, sinks in rows if name == rival]
    assert {(0, 0), (128, 4)} <= set(pairs)
    for pair in pairs:
        own, other = rows[("trellis", "both", bits, *pair)], rows[(rival, "", 0, *pair)]
        assert own["bytes"] <= other["bytes"] and 8 * own["bytes"] / 256 <= most
        ratio, error = report.jackknife_ratio(np.array(own["kl"]), np.array(other["kl"]))
        assert ratio + 2 * error <= 0.5, (pair, ratio, error)


@pytest.mark.parametrize("bits, goal, most", ((2, 0.020, 74), (3, 0.0042, 106), (4, 0.0011, 138)))
def test_goals_without_exact_tokens(rows, bits, goal, most):
    row = rows["trellis", "both", bits, 0, 0]
    assert np.mean(row["kl"]) <= goal and row["bytes"] <= most


@needs_model
def test_a_run_made_again():
    """One text of plain trellis codes; machines differ in the last bits of floats, which moved the KL of a
    text by 0.1 % in the middle and by up to a fifth at 3 bits."""
    os.environ["TQKV_LIBRARY"] = find_library()
    sys.path.insert(0, str(HERE.parents[1] / "bindings" / "python"))
    import tqkv
    found = json.loads((HERE / "evidence.json").read_text())["rows"]
    row = next(row for row in found if (row["name"], row["kind"], row["bits"], row["window"], row["sinks"]) ==
               ("trellis", "plain", 3, 0, 0))
    model = Model(FOLDER)
    tokens = read_safetensors(FOLDER / "eval.safetensors")["text"][0][:641]
    attention = CacheAttention(tqkv, model, 640, None, 3, "trellis", 0, 0, 0, None)
    exact, coded = (run.log_softmax(model.logits(tokens[:-1], *more)) for more in ((), (attention,)))
    attention.close()
    kl = run.compare(exact, coded, tokens[1:])[0][-384:].mean()
    assert abs(kl / row["kl"][0] - 1) < 0.25, (kl, row["kl"][0])


@needs_model
def test_the_quick_form(tmp_path):
    """Calibrates, runs all families and kinds at 3 bits on two short texts, and keeps what it found."""
    kept = tmp_path / "quick.json"
    done = subprocess.run([sys.executable, HERE / "evidence.py", "--quick", "--library", find_library(),
                           "--json", kept], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    kl = {(row["name"], row["kind"]): np.mean(row["kl"]) for row in json.loads(kept.read_text())["rows"]}
    assert len(kl) == 8 and kl["trellis", "both"] < 0.75 * kl["scalar", "plain"], kl
    again = subprocess.run([sys.executable, HERE / "evidence.py", "--table", "--json", kept, "--goal", "1"],
                           capture_output=True, text=True)
    assert again.returncode == 0 and "| trellis 3, both | 106.0 |" in again.stdout, again.stderr
    assert "window 0, sinks 0: " in again.stdout.split("KL 1 with the fewest bytes")[1]
