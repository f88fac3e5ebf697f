# SPDX-License-Identifier: Apache-2.0
"""The constructed model keeps the margins that its text promises; the test model is the model of
tests/testlm; a packed checkpoint is the model that was packed."""
import json

import numpy as np
import pytest
import torch
import tqkv
from conftest import TESTLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tqkv import eval as tqeval
from tqkv.eval import constructed as made


def test_identities_share_at_most_twelve_of_sixteen_signs():
    codes = made.identities().double()
    products = codes @ codes.T
    assert torch.equal(products.diagonal(), torch.ones(made.TOKENS, dtype=torch.float64))
    assert products.fill_diagonal_(0).abs().max() == 0.5


def test_positions_are_told_apart_up_to_a_quarter_million():
    """In float64, from the rotary formula: the logit of the token looked for less that of any other."""
    frequency = made.THETA ** (-np.arange(64) / 64.0)
    best = np.zeros(1 << 18)
    for f in frequency:
        best += np.cos(f * np.arange(1, 1 + (1 << 18)))
    lost = made.POSITION * (1 - best / 64)
    assert lost[0] > 16 and lost[1:].min() > 37


def test_the_tokenizer_gives_back_what_it_read(constructed):
    text = "The wolf's code, 38205: x=7!\n The amber river\t is {here}."
    ids = constructed.ids(text.replace("\t", " "), special=True)
    assert ids[0, 0] == 0 and constructed.text(ids) == text.replace("\t", " ")
    assert constructed.ids(" amber river 38").shape[1] == 5


def attended(model, ids):
    """[layers] of [heads][tokens][tokens]: attention weights."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0] for a in model(ids, output_attentions=True).attentions]


def test_heads_look_where_they_were_told(constructed):
    ids = constructed.ids(" Now remember that the amber river is here. We remember that the amber river is",
                          special=True)
    weights = attended(constructed.model, ids)
    constructed.model.set_attn_implementation(constructed.attention)
    for layer, offset in enumerate((1, 2, 4)):
        for head in range(made.HEADS):
            there = weights[layer][head].diagonal(-offset)
            assert there[1:].min() > 1 - 1e-4, (layer, head)
    here = ids[0].tolist().index(constructed.ids(" here").item())
    assert weights[3][0][-1, here] > 1 - 1e-4
    assert torch.allclose(weights[3][1][-1], torch.full((ids.shape[1],), 1 / ids.shape[1]), atol=1e-6)


def test_bad_parameters_are_named():
    with pytest.raises(tqkv.InvalidArgument, match="margin = 0"):
        tqeval.construct(margin=0)
    for arguments, text in ((("no/such folder",), "no/such folder"), (("constructed", "cpu", "flat"), "flat"),
                            (("constructed", "cpu", None, "prose"), "prose")):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            tqeval.load(*arguments)


def test_a_packed_checkpoint_is_the_model(tmp_path, constructed):
    tqeval.pack(constructed, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "smollm3"
    ids = constructed.ids(" The amber river is here. The amber river is", special=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(" The amber").input_ids == constructed.tokenizer(" The amber").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, constructed.model(ids).logits)
    assert tqeval.load(str(tmp_path)).style == constructed.style


def test_the_test_model_is_that_of_the_numpy_forward_pass(testlm):
    """Another implementation of the same model, frequencies in bfloat16 included; float32 sums differ."""
    from model import Model, read_safetensors
    tokens = read_safetensors(str(TESTLM / "eval.safetensors"))["text"][0][:200]
    expected = Model(TESTLM).logits(tokens)
    with torch.no_grad():
        got = testlm.model(torch.tensor(tokens.astype(np.int64))[None]).logits[0].numpy()
    assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()
    assert testlm.ids(bytes(range(32, 127)).decode()).tolist() == [list(range(32, 127))]
    assert testlm.text(testlm.ids("a\n\u00e9z")) == "a\n\u00e9z" and testlm.style.fact.startswith("\n[[")
