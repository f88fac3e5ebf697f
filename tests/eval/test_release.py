# SPDX-License-Identifier: Apache-2.0
"""The command: what it writes, its exit status, that it goes on where it was ended, and that a seed settles
every figure but times."""
import io
import json
import re

import pytest
import tqkv

from tqkv.eval import _journal, _report
from tqkv.eval.__main__ import main

SMALL = ["--model", "constructed", "--contexts", "512", "--threads", "1", "--profile", "retrieval-safe",
         "--profile", "b2"]


def release(out, *more):
    return main(["release", "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    status = release(out, "--only", "pairs,words,drift")
    return out, status, json.loads((out / "report.json").read_text())


def test_a_run_passes_and_says_what_it_saw(run):
    out, status, report = run
    assert status == 0 and report["passed"] and report["verdict"].startswith("all ")
    pairs = report["models"]["constructed"]["tasks"]["pairs"]
    assert pairs["retrieval-safe"]["other"] == 100 and pairs["broken: values of another head"]["other"] < 20
    assert report["models"]["constructed"]["drift"]["baseline again"]["kl"] == [0, 0, 0, 0]
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for table in _report.tables(report["models"]["constructed"]):
        assert f"### {table.title}\n" in text and f"<h3>{table.title}</h3>" in page
        for row in table.rows:
            assert "| " + " | ".join(row) + " |" in text
    assert all(len(row) == len(table.head) for table in _report.tables(report["models"]["constructed"])
               for row in table.rows)


def test_a_run_goes_on_where_it_was_ended(run, tmp_path, capsys):
    """The journal cut in the middle of a line, as a killed run leaves it: the same report, byte for byte."""
    out, _, _ = run
    raw = (out / "results.jsonl").read_bytes()
    first = raw.index(b"\n", raw.index(b"\n") + 1) + 1
    (tmp_path / "results.jsonl").write_bytes(raw[:first + 40])
    assert release(tmp_path, "--only", "pairs,words,drift") == 0
    assert "1 of 3 jobs are there already" in capsys.readouterr().err
    for name in ("report.json", "report.md"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_other_settings_are_refused_and_fresh_forgets(run, tmp_path, capsys):
    (tmp_path / "results.jsonl").write_bytes((run[0] / "results.jsonl").read_bytes())
    assert release(tmp_path, "--only", "words", "--seed", "5") == 2
    assert "other settings" in capsys.readouterr().err
    assert release(tmp_path, "--only", "words", "--seed", "5", "--fresh") == 0


def test_a_gate_that_does_not_hold_fails_the_command(tmp_path, capsys):
    assert release(tmp_path, "--only", "pairs", "--gate", "b2") == 1
    assert "failed: pairs: b2 loses at most 2 points" in capsys.readouterr().out


def test_what_is_wrong_is_said(tmp_path, capsys):
    for more, text in ((("--profile", "b2+glue"), "'glue'"), (("--profile", "fast"), "'fast'"),
                       (("--only", "riddles"), "'riddles'"), (("--trials", "0"), "trials = 0"),
                       (("--profile", "b7"), "key_bits = 7")):
        assert release(tmp_path / text.strip("'"), *more) == 2, more
        assert text in capsys.readouterr().err


def test_speed_is_timed_and_says_what_it_could_not_run(tmp_path):
    assert main(["release", "--out", str(tmp_path), *SMALL, "--contexts", "1024", "--only",
                 "speed,words"]) == 0
    job, = json.loads((tmp_path / "report.json").read_text())["models"]["constructed"]["speed"]
    rows = job["rows"]
    assert rows["b2"]["decode"] > 0 and rows["b2"]["bytes"] < rows["DynamicCache"]["bytes"] / 4
    # DynamicCache of float32: 4 layers, 2 heads, 128 numbers of key and value
    assert rows["DynamicCache"]["fits"]["token_bytes"] == 4 * 2 * 2 * 128 * 4
    assert rows["DynamicCache"]["bytes"] == (1024 + 16) * 8192
    assert rows["b2"]["fits"]["token_bytes"] == 4 * 2 * 2 * (128 * 2 // 8 + 2)
    assert rows["b2"]["fits"]["tokens"] == job["memory"] // rows["b2"]["fits"]["token_bytes"]
    quantized = rows["QuantizedCache quanto 4 bits"]
    assert "install" in quantized.get("why", "") or quantized["decode"] > 0


def test_the_progress_line_counts_what_is_left():
    now, stream = [0.0], io.StringIO()
    progress = _journal.Progress(100.0, stream, lambda: now[0])
    now[0] = 40.0
    progress.step(25.0, "a")
    now[0] = 200.0
    progress.step(75.0, "b")
    lines = stream.getvalue().splitlines()
    assert re.search(r"25%, 2:00 left, a", lines[0]) and re.search(r"100%, 0:00 left, b", lines[1])


def test_a_journal_keeps_whole_lines_only(tmp_path):
    journal = _journal.Journal(str(tmp_path), {"seed": 1})
    journal.add("a", {"x": [1, 2.5]})
    journal.close()
    with open(journal.path, "ab") as file:
        file.write(b'{"key": "b", "resu')
    again = _journal.Journal(str(tmp_path), {"seed": 1})
    assert again.results == {"a": {"x": [1, 2.5]}}
    again.add("c", 3)
    again.close()
    assert _journal.Journal(str(tmp_path), {"seed": 1}).results == {"a": {"x": [1, 2.5]}, "c": 3}
    with pytest.raises(tqkv.InvalidState, match="other settings"):
        _journal.Journal(str(tmp_path), {"seed": 2})


def test_pictures_stand_in_the_page(run):
    pytest.importorskip("matplotlib")
    from tqkv.eval import _documents, _plots
    model = json.loads((run[0] / "report.json").read_text())["models"]["constructed"]
    rival = {"source": "-", "bits": [2.1, 2.1], "bytes": 68, "key": 0.11, "value": 0.12, "attention": 0.16,
             "kl": 0.06, "top1": 0.9, "recall": 1.0}
    row = {"kl": 0.1, "kl_p999": 1.0, "top1": 0.9, "dnll": 0.1, "nll": 1.0, "kl_interval": [0.0, 0.2]}
    speed = {"context": 512, "device": "-", "memory": 1, "rows": {"b2": {
        "prefill": 9.0, "decode": 3.0, "bytes": 5, "peak_bytes": None}}}
    model.update(heat={"b2": [[512, 0.5, 1.0, 2]]}, text={"b2": row, "b4": row, "small": row},
                 rivals={"tqkv 2": rival}, speed=[speed])
    for plot in _plots.PLOTS.values():
        assert _documents._picture(plot(model)).startswith("data:image/png;base64,iVBOR")
    page = _documents.page({"verdict": "-", "settings": {}, "models": {"m": model}})
    assert page.count("<img") == len(_plots.PLOTS)
