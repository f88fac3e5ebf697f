# SPDX-License-Identifier: Apache-2.0
"""`tqkv info --models` against the plain formula, and the table against itself."""
import collections
import json

import pytest
import table
from tool import find_tool, run

pytestmark = pytest.mark.skipif(find_tool() is None, reason="no program tqkv in build*/ (set TQKV_TOOL)")
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576)


@pytest.fixture(scope="module")
def printed():
    done = run("info", "--models", "--json")
    assert done.returncode == 0 and done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows(printed):
    return {row["name"]: row for row in printed["models"]}


def test_the_table_is_sound():
    assert len(table.MODELS) == len(table.DATA["models"]) >= 25
    for name, model in table.MODELS.items():
        assert model["source"] and model["repository"] and model["max_context"] > 0, name
        assert {letter for letter, _ in table.layers(model)} == set(model["kinds"]), name
        for letter, kind in model["kinds"].items():
            if kind["attention"] == "linear":
                assert len(kind) == 1, name
                continue
            assert kind["num_q_heads"] % kind["num_kv_heads"] == 0, name
            assert ("sliding_window" in kind) == (kind["attention"] in ("sliding", "chunked")), name
            assert ("cross_tokens" in kind) == (kind["attention"] == "cross"), name
            source = model["kinds"].get(kind.get("shares"))
            if source:  # a layer that shares has the shape of what it shares
                assert {**source, "shares": kind["shares"]} == kind, name
                first = next(i for i, (at, _) in enumerate(table.layers(model)) if at == letter)
                assert kind["shares"] in [at for at, _ in table.layers(model)[:first]], name


def test_every_model_is_printed_with_its_layers(rows):
    assert list(rows) == list(table.MODELS)
    for name, row in rows.items():
        counts = collections.Counter(letter for letter, _ in table.layers(table.MODELS[name]))
        assert row["layers"] == sum(counts.values()), name
        assert [kind["layers"] for kind in row["kinds"]] == list(counts.values()), name
        assert row["tokens"] == min(131072, table.MODELS[name]["max_context"]), name


@pytest.mark.parametrize("name", table.MODELS)
def test_bytes_are_those_of_the_formula(name, printed, rows):
    """Whole pages and one more a sequence. Begin and end of what a sliding layer keeps lie anywhere in a
    page: up to one page more again."""
    model, row, page = table.MODELS[name], rows[name], printed["page_size"]
    kinds = [kind for _, kind in table.layers(model) if table.stores(kind)]
    refused = [kind["head_dim"] for kind in kinds if kind["head_dim"] not in HEAD_DIMS]
    if refused:
        assert f"head_dim = {refused[0]}: must be" in row["refused"]
        assert [row["bytes"][bits] for bits in ("8", "4", "2")] == [None] * 3
        return
    assert "refused" not in row
    assert ("attention_refused" in row) == any("position_bias" in kind for kind in kinds)
    low, high, fp16 = {8: 0, 4: 0, 2: 0}, {8: 0, 4: 0, 2: 0}, 0
    for kind in kinds:
        kept = table.kept_tokens(kind, row["tokens"], printed["plan_tokens"])
        dims = kind["head_dim"] + (0 if kind.get("values_in_keys") else table.value_dim(kind))
        fp16 += 2 * kind["num_kv_heads"] * dims * kept
        pages, slides = -(-kept // page) + 1, "sliding_window" in kind and kept < row["tokens"]
        for bits in low:
            low[bits] += table.token_bytes(kind, bits) * page * pages
            high[bits] += table.token_bytes(kind, bits) * page * (pages + slides)
    assert row["bytes"]["fp16"] == fp16
    for bits in low:
        assert low[bits] <= row["bytes"][str(bits)] <= high[bits], bits


def test_gemma_3_27b_at_128k(rows):
    """With all its layers as long as the sequence it was 16.0 GiB at 4 + 4 bits."""
    assert rows["Gemma-3-27B"]["tokens"] == 131072
    assert rows["Gemma-3-27B"]["bytes"]["4"] < 3.2 * 2**30


def test_text(rows):
    done = run("info", "--models")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120 and all(line == line.rstrip() for line in lines)
    for name in rows:
        assert any(line.startswith(name + " ") for line in lines), name
    assert any("refused: head_dim = 100" in line for line in lines)
