# SPDX-License-Identifier: Apache-2.0
"""The validation suite must notice broken codecs; its command, its files and its own figures."""

import functools
import json
import os
import subprocess
import sys

import broken
import numpy as np
import pytest
from conftest import ROOT
from reference import tqkv_reference as reference
from tqkv.validate import (
    FAIL,
    PASS,
    REFUTED,
    accounting,
    audit,
    codes,
    decode,
    paper,
    report,
    retrieval,
    retune,
    rotations,
    rows,
    run,
    theorems,
    vectors,
)
from tqkv.validate.library import Library
from tqkv.validate.rows import Estimate


def measured(part, codec, **options):
    """Rows of one part of a section."""
    context = run.Context(codec, True, options.pop("seed", 0), lambda *what: None)
    context.table.section = "test"
    part(context, **options)
    return context.table.rows


def failing(part, codec):
    return [row.claim for row in measured(part, codec) if row.verdict == FAIL]


# Faults, where they must show, and the claim that must fail (part of its text).
FAULTS = (
    (broken.LevelsTooLarge, theorems.mse_of_the_library, "`paper` at 4 bits is the published quantiser"),
    (broken.LevelsTooLarge, theorems.library_scales, "the error is orthogonal to the decoded vector"),
    (broken.LevelsTooLarge, theorems.library_scales, "inner products without bias"),
    (broken.LevelsTooLarge, codes.fixed_point, "Coding twice"),
    (broken.LevelsTooLarge, rotations.aimed, "The signs of a key"),
    (broken.OtherSignsBack, theorems.mse_of_the_library, "Theorem 1: "),
    (broken.OtherSignsBack, theorems.library_scales, "<x, x^> = |x|^2"),
    (broken.OtherSignsBack, rotations.quality, "QR and Hadamard"),
    (broken.OtherSignsBack, rotations.aimed, "The signs of a value"),
    (broken.OtherSignsBack, retrieval.recall, "Recall@8 of tqkv keys at 4 bits"),
    (broken.OtherStream, rotations.aimed, "The signs of a key"),
    (broken.NoSigns, rotations.constant, "A constant vector at 3 bits"),
    (broken.NoSigns, rotations.constant, "All 128 inputs"),
    (broken.BiasedFactor, theorems.library_scales, "`unbiased` at 4 bits: <x, x^> = |x|^2"),
    (broken.BiasedFactor, theorems.library_scales, "`unbiased` at 2 bits: inner products without bias"),
    (broken.NoSearch, theorems.mse_of_the_library, "The default encoder"),
    (broken.CoarseQueries, decode.run, "Fused decode, BH = 8"),
    (broken.CoarseQueries, audit.short_history, "Histories"),
    (broken.OtherHead, decode.run, "Fused decode, BH = 8"),
    (broken.OtherHead, retrieval.needles, "Needle, 4 bits: the query is the key"),
    (broken.FirstTokenLost, audit.short_history, "Histories"),
    (broken.MoreBytes, accounting.run, "tqkv at 3-bit keys + 2-bit values"),
    (broken.MoreBytes, accounting.run, "Compression at 3 + 2 bits, d 128"),
    (broken.MoreBytes, accounting.run, "32,768 tokens of 28 layers"),
    (broken.FewerBits, vectors.distortion, "the quantizer at 4 bits has the distortion"),
    (broken.FewerBits, vectors.groups, "Grouped codes at 4 bits in groups of 16"),
    (broken.FewerBits, vectors.outliers, "The outlier split"),
    (broken.SketchTooLarge, vectors.sketches, "PROD at 2 bits is unbiased, orthogonal sketch"),
    (broken.SketchTooLarge, vectors.sketches, "PROD at 4 bits: d times the variance"),
    (broken.ProductsOff, vectors.products, "Integer inner products"),
    (broken.ProductsOff, vectors.products, "Search finds the records"),
    (broken.LevelsOfOthers, vectors.factors, "The least-squares factor of the gaussian sketch"),
    (broken.LevelsOfOthers, vectors.retuned, "Levels of 4 bits calibrated"),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The parts that hold most of the time, shortened: what is broken here is broken everywhere."""
    monkeypatch.setattr(decode, "CONFIGURATIONS", decode.CONFIGURATIONS[:2])


_failing = functools.lru_cache(maxsize=None)(lambda part, codec: failing(part, codec()))


@pytest.mark.parametrize("codec, part, claim", FAULTS,
                         ids=lambda value: getattr(value, "__name__", str(value))[:40])
def test_a_broken_codec_fails(codec, part, claim):
    found = _failing(part, codec)
    assert any(claim in text for text in found), found


@pytest.mark.parametrize(
    "part",
    sorted({part
            for _, part, _ in FAULTS}, key=lambda part: part.__qualname__ + part.__module__),
    ids=lambda part: f"{part.__module__}.{part.__name__}",
)
def test_the_library_passes_there(part):
    assert not failing(part, Library())


def test_a_biased_sketch_fails(monkeypatch):
    biased = functools.partial(paper.Prod, factor=1.2)  # instead of sqrt(pi / 2)
    monkeypatch.setattr(paper, "Prod", biased)
    found = failing(theorems.prod, Library())
    for bits in (1, 2, 3, 4):
        assert f"Theorem 2: Algorithm 2 at {theorems.width(bits)} is unbiased, Gaussian sketch" in found


def test_a_wrong_codebook_fails(monkeypatch):
    """Algorithm 1 with levels 2 % off is not Algorithm 1."""
    class Off(paper.Mse):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.levels = self.levels * 1.02

    monkeypatch.setattr(paper, "Mse", Off)
    assert any(
        "at 4 bits has the distortion" in text for text in failing(theorems.mse_of_algorithm_1, Library()))


def test_others_refuted_do_not_fail_the_command():
    found = measured(accounting.context_extension, Library())
    assert any(row.verdict == REFUTED for row in found)
    assert not report.Result(found, {}, 0, True, "").failed


def test_the_same_seed_gives_the_same_rows():
    one, two, other = (measured(theorems.library_scales, Library(), seed=seed) for seed in (3, 3, 4))
    assert one == two and one != other


# ---- what it compares with


def test_codebooks_are_those_of_the_tables():
    tables = json.loads((ROOT / "codebooks" / "tables.json").read_text())["tables"]
    for table in tables:
        levels, mse = paper.lloyd_max(table["head_dim"], table["bits"])
        assert mse == pytest.approx(table["mse_exact"], rel=1e-5)
        assert levels[len(levels) // 2:] == pytest.approx(table["levels"], rel=1e-4)


@pytest.mark.parametrize("place", ((0, 0, 0, 0), (7, 3, 2, 1), (2 ** 64 - 1, 65535, 9, 1)))
def test_signs_are_the_oracles(place):
    signs = reference.sign_bits(reference.stream_base(*place), 256)
    assert np.array_equal(paper.sign_stream(*place, 256), 1 - 2 * signs.astype(int))


@pytest.mark.parametrize("head_dim", (64, 80, 96, 128, 160, 192, 224, 576))
def test_rotation_is_the_oracles(head_dim):
    x = np.random.default_rng(head_dim).standard_normal((3, head_dim)).astype(np.float32)
    config = reference.SideConfig(head_dim=head_dim, bits=4, kind=reference.VALUE, seed=5, layer=2, kv_head=1)
    y, exponent, *_ = reference.rotated_side(x, config)
    expected = y * config.norm_rot * 2.0 ** exponent[:, None]
    assert paper.rotate(x, 5, 2, 1, 1) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bits, share", ((2, 0.5), (3, 0.5), (4, 0.5), (5, 0.75), (6, 0.95)))
def test_retuning_finds_levels_that_the_data_has(bits, share):
    """Coordinates on 2^bits levels of their own, which no other codebook has; of many a local optimum."""
    rng = np.random.default_rng(bits)
    levels = np.cumsum(rng.uniform(1, 2, 2 ** (bits - 1)))
    y = rng.choice(levels, (2000, 64)) * rng.choice((-1, 1), (2000, 64))
    x = paper.hadamard(y) * paper.sign_stream(0, 0, 0, 0, 64)
    plain, tuned = (
        theorems.relative_errors(x, Library().round_trip(x, bits, rule="ls", search=True, codebook=b)).mean()
        for b in (None, retune.retune(x, bits)))
    assert tuned < plain * share


@pytest.mark.parametrize(
    "arguments, text",
    (
        ((np.zeros((4, 64)), 4), "none that is not zero"),
        ((np.ones((4, 64)), 8), "bits = 8"),
        ((np.ones(64), 4), "shape (64,)"),
        ((np.full((4, 64), np.nan), 4), "finite"),
        ((np.ones((4, 64)), 4, "query"), "side = 'query'"),
    ),
)
def test_retuning_names_what_does_not_fit(arguments, text):
    with pytest.raises(ValueError) as error:
        retune.retune(*arguments)
    assert text in str(error.value)


def test_algorithm_2_by_its_formula():
    rng = np.random.default_rng(0)
    prod, x = paper.Prod(32, 3, rng), rng.standard_normal((5, 32))
    for row, decoded in zip(x, prod.round_trip(x)):
        norm = np.linalg.norm(row)
        turned = prod.base.rotation @ row / norm
        coarse = (prod.base.rotation.T @ [min(prod.base.levels, key=lambda c: abs(c - t))
                                          for t in turned] * norm)
        rest = row - coarse
        sketch = np.sign(prod.sketch @ rest)
        expected = coarse + np.sqrt(np.pi / 2) / 32 * np.linalg.norm(rest) * prod.sketch.T @ sketch
        assert decoded == pytest.approx(expected, abs=1e-12)


def test_groups_by_hand():
    v = np.array([[0.0, 1, 2, 3, -8, -8, -8, -8]])
    assert paper.group_minmax(v, 2, 4) == pytest.approx(v)
    assert np.abs(paper.group_minmax(v * np.pi, 2, 4) - v * np.pi).max() < 0.02  # float16
    assert paper.group_bytes(128, 2, 32) == 48


def test_estimates():
    found = Estimate.of([1.0, 2, 3, 4])
    assert found.mean == 2.5 and found.error == pytest.approx(np.sqrt(5 / 3) / 2)
    assert found.agrees(2.5 + 3.9 * found.error) and not found.agrees(2.5 + 4.1 * found.error)
    assert found.agrees(2.5 - 4.1 * found.error, allowance=0.2 * found.error)
    assert rows.as_printed(0.1174, "0.117") and not rows.as_printed(0.1176, "0.117")


# ---- the command


def command(*arguments, **environment):
    path = os.pathsep.join([environment.pop("first", ""), str(ROOT / "bindings" / "python")])
    return subprocess.run(
        [sys.executable, "-m", "tqkv.validate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    files = {kind: folder / f"report.{kind}" for kind in ("json", "markdown", "html")}
    done = command(
        "--quick",
        "--only",
        "accounting,codes",
        "--seed",
        5,
        *(text for kind, file in files.items() for text in (f"--{kind}", file)),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == sorted(file.name for file in files.values())
    return done, {kind: file.read_text(encoding="utf-8") for kind, file in files.items()}


def test_all_forms_have_all_rows(outputs):
    done, texts = outputs
    found = json.loads(texts["json"])
    assert (found["seed"] == 5 and found["quick"] and not found["failed"] and
            set(found["seconds"]) == {"accounting", "codes"})
    assert (found["counts"][PASS] > 10 and found["summary"] in done.stdout and
            found["summary"] in texts["markdown"])
    assert "[2/2" in done.stderr
    for row in found["rows"]:
        assert f"| {report.cell(row['claim'])}" in texts["markdown"]
        assert row["verdict"] in rows.VERDICTS and row["measured"]
    assert texts["html"].count("<tr>") == len(found["rows"]) + 2  # and a head for each section
    assert "http" not in texts["html"].replace("http://www.w3.org",
                                               "").replace("http://purl.org", "").replace(
                                                   "http://creativecommons.org", "")


def test_plots(outputs):
    pytest.importorskip("matplotlib")
    assert outputs[1]["html"].count("<svg") == 2  # of these sections: values and compression


def test_without_matplotlib(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    done = command("--quick", "--only", "accounting", "--html", tmp_path / "x.html", "--quiet",
                   first=str(tmp_path))
    assert done.returncode == 0 and "none here" in done.stderr
    assert "No plots: matplotlib" in (tmp_path / "x.html").read_text()


def test_without_numpy(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    done = command("--quick", first=str(tmp_path))
    assert done.returncode == 3 and "needs NumPy" in done.stderr and "no numpy here" in done.stderr


def test_without_a_library(tmp_path):
    done = command("--quick", TQKV_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode == 3 and str(tmp_path / "none.so") in done.stderr


@pytest.mark.parametrize(
    "arguments, text",
    (
        (("--only", "theorem"), "'theorem' is no section"),
        (("--seed", "-1"), "--seed = -1"),
        (("--json", "/no/such/folder/x.json"), "/no/such/folder"),
        (("--html", "/"), "is a folder"),
        (("--html", "x.html", "--json", "x.html"), "the same name"),
    ),
)
def test_wrong_arguments(arguments, text, tmp_path):
    done = command("--quick", *arguments)
    assert done.returncode == 2 and text in done.stderr and not done.stdout


def test_standard_output_that_cannot_be_written(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tqkv.validate", "--quick", "--only", "accounting", "--quiet", "--json",
             str(tmp_path / "x.json")],
            stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python")})
    assert done.returncode == 2 and "standard output: No space left" in done.stderr
    assert json.loads((tmp_path / "x.json").read_text())["rows"]


def test_a_failing_claim_fails_the_command(monkeypatch, capsys):
    from tqkv.validate import __main__ as program

    monkeypatch.setattr(run, "Library", broken.MoreBytes)
    assert program.main(["--quick", "--only", "accounting", "--quiet"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_terminal_columns_fit():
    text = report.terminal(report.Result(measured(accounting.run, Library()), {}, 0, True, ""), width=100)
    assert max(map(len, text.split("\n")[:-2])) <= 100


def test_a_device_that_there_is_not_is_refused_before_the_work():
    """Without torch, or without a GPU; where there is one, the rows of a GPU are there."""
    done = command("--quick", "--quiet", "--only", "decode", "--device", "cuda")
    if done.returncode == 3:
        assert "device = 'cuda'" in done.stderr and not done.stdout
    else:
        assert done.returncode == 0 and "Fused decode on" in done.stdout
