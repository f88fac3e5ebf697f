# SPDX-License-Identifier: Apache-2.0
"""`tqkv info --models` against the plain formula, and the table against itself."""
import collections
import json

import pytest
import table
import tqkv
from tool import find_tool, run

pytestmark = pytest.mark.skipif(find_tool() is None, reason="no program tqkv in build*/ (set TQKV_TOOL)")


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
    """Whole pages and one more a sequence. A sliding layer: pages of its window, which begins and ends
    anywhere in a page, one for the copy of a shared page, and pages of the plan's new tokens."""
    model, row, page = table.MODELS[name], rows[name], printed["page_size"]
    kinds = [kind for _, kind in table.layers(model) if table.stores(kind)]
    assert "refused" not in row
    assert ("attention_refused" in row) == any("position_bias" in kind for kind in kinds)
    stored, fp16 = {8: 0, 4: 0, 2: 0}, 0
    for kind in kinds:
        kept = table.kept_tokens(kind, row["tokens"], printed["plan_tokens"])
        dims = kind["head_dim"] + (0 if kind.get("values_in_keys") else table.value_dim(kind))
        fp16 += 2 * kind["num_kv_heads"] * dims * kept
        crosses, window = kind["attention"] == "cross", kind.get("sliding_window")
        pages = -(-(kind["cross_tokens"] if crosses else row["tokens"]) // page) + 1
        if window:
            pages = min(pages, -(-window // page) + 3 + -(-printed["plan_tokens"] // page))
        for bits in stored:
            stored[bits] += table.token_bytes(kind, bits) * page * pages
    assert row["bytes"] == {"fp16": fp16, **{str(bits): total for bits, total in stored.items()}}


def test_gemma_3_27b_at_128k(rows):
    """With all its layers as long as the sequence it was 16.0 GiB at 4 + 4 bits."""
    assert rows["Gemma-3-27B"]["tokens"] == 131072
    assert rows["Gemma-3-27B"]["bytes"]["4"] < 3.2 * 2**30


@pytest.mark.parametrize("name", ["Gemma-3-27B", "Gemma-4-E2B", "Llama-4-Scout", "MiMo-V2-Flash", "Phi-2"])
def test_a_cache_of_the_model_s_layers_needs_what_is_printed(name, printed, rows):
    model, last, layers = table.MODELS[name], {}, []
    for letter, kind in table.layers(model):
        layers.append(tqkv.Layer(kind["num_q_heads"], kind["num_kv_heads"], kind["head_dim"],
                                 table.value_dim(kind), sliding_window=kind.get("sliding_window", 0),
                                 shares_layer=last.get(kind.get("shares"))))
        last[letter] = len(layers) - 1
    config = tqkv.Config(layers=layers, io_dtype="float16", key_bits=4, value_bits=4, page_size=64,
                         max_tokens=rows[name]["tokens"], max_batch_tokens=printed["plan_tokens"])
    assert config.check() == [] and config.bytes().page_bytes == rows[name]["bytes"]["4"]


def test_text(rows):
    done = run("info", "--models")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120 and all(line == line.rstrip() for line in lines)
    for name in rows:
        assert any(line.startswith(name + " ") for line in lines), name
    assert not any("refused: layers" in line for line in lines)
