# SPDX-License-Identifier: Apache-2.0
"""What the documents show, run as it stands on a tiny model with a tiny tokenizer in a folder."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tqkv
from tiny import DEVICE, VOCABULARY, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tqkv.transformers import TurboCache
from tqkv.transformers._calibrate import TEXT

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings" / "python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a tokenizer, as from_pretrained takes them."""
    path = tmp_path_factory.mktemp("model")
    words = {word: i for i, word in enumerate(["[UNK]", *(f"w{i}" for i in range(1, VOCABULARY))])}
    words["laws"] = words.pop("w7")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(path)
    tiny("llama").save_pretrained(path)
    return str(path)


def test_calibration_by_a_tokenizer(folder):
    """The same as by its token ids, of the text that comes along and of another."""
    model, tokenizer = tiny("llama"), AutoTokenizer.from_pretrained(folder)
    for text, given in ((TEXT, None), ("the laws of w5 w6 w7 w8", "the laws of w5 w6 w7 w8")):
        expected = TurboCache.calibrate(model, tokenizer(text)["input_ids"])
        found = TurboCache.calibrate(model, tokenizer, text=given)
        assert found.key_norms == expected.key_norms and found.skip_layers == expected.skip_layers
        assert all(torch.equal(x, y) for pair in zip(found.centres, expected.centres) for x, y in zip(*pair))
    assert len(tokenizer(TEXT)["input_ids"]) > 150
    for tokens, text, message in (("the laws", None, "tokens = 'the laws': a text needs the model's token"),
                                  ([5, 6, 7], "the laws", "text: is for a tokenizer"),
                                  (object(), None, "tokens: object: must be token ids or a tokenizer"),
                                  ([7], None, r"tokens: are \[1, 1\] of torch.int64"),
                                  ([0.5, 1.5], None, r"tokens: are \[1, 2\] of torch.float32")):
        with pytest.raises(tqkv.InvalidArgument, match=message):
            TurboCache.calibrate(model, tokens, text=text)


def run(*command):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_sample_of_the_readme(folder):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"<!-- example: transformers;.*?-->\n```python\n(.*?)```", text, re.S).group(1)
    assert code.count("\n") <= 12
    printed = run("-c", re.sub(r'name = "[^"]*"', f'name = "{folder}"', code))
    assert "3.56 times smaller" in printed, printed  # 18 bytes for 32 dimensions


def test_the_example_with_a_model_and_without(folder):
    for arguments in ((), (folder, "the laws of w5 w6")):
        printed = run(str(PACKAGE / "examples" / "transformers_generate.py"), *arguments)
        assert re.search(r"DynamicCache, attention 'sdpa': 48 tokens", printed), printed
        same = 48 if DEVICE == "cpu" else "[0-9]+"
        assert re.search(f"raw: {same} of 48 tokens the same", printed), printed
        assert printed.count("tokens the same") == 6, printed
