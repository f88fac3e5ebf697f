# SPDX-License-Identifier: Apache-2.0
"""Models to be judged, by name: a folder or hub name, the constructed one, one with random weights, or a
folder of int8 rows as the project's test model has; and packing any of them as a Transformers checkpoint.

A model comes with a tokenizer and a style, the wording of retrieval prompts: models that were trained on one
wording are asked in it. A checkpoint may name its style in a file tqkv_eval.json: {"style": "brackets"}.
"""
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from ..errors import InvalidArgument, NotSupported
from . import constructed
from ._styles import STYLES, Style

STYLE_FILE = "tqkv_eval.json"


class Subject(NamedTuple):
    name: str
    model: Any
    tokenizer: Any
    style: Style
    attention: str  # the model's own attention implementation

    @property
    def device(self):
        return self.model.device

    def ids(self, text: str, special: bool = False):
        """[1][tokens] on the model's device; special: with what the tokenizer puts in front of a text."""
        return self.tokenizer(text, add_special_tokens=special, return_tensors="pt").input_ids.to(self.device)

    def text(self, ids) -> str:
        return self.tokenizer.decode(torch.as_tensor(ids).flatten().tolist(), skip_special_tokens=True)

    def limit(self) -> int:
        return getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", 1 << 30)


def load(name: str, device: str = "cpu", dtype: Optional[str] = None, style: Optional[str] = None) -> Subject:
    """name    "constructed", "random", a folder or a hub name
    device  of torch
    dtype   "float32", "float16", "bfloat16"; None: float32 on a CPU, else the checkpoint's own
    style   a name of STYLES; None: the checkpoint's, "sentence" where it names none"""
    if style is not None and style not in STYLES:
        raise InvalidArgument(f"style = {style!r}: must be one of {', '.join(STYLES)}")
    kind = None if dtype is None else getattr(torch, dtype, None)
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise InvalidArgument(f"dtype = {dtype!r}: is no type of torch")
    folder = Path(name)
    if name == "constructed":
        model, tokenizer = constructed.construct()
    elif name == "random":
        model, tokenizer = _random()
    elif (folder / "weights.safetensors").exists():
        model, tokenizer = _from_int8_rows(folder)
        style = style or "brackets"
    else:
        model, tokenizer = _from_checkpoint(name, kind or (torch.float32 if device == "cpu" else "auto"))
        if (folder / STYLE_FILE).exists():
            style = style or json.loads((folder / STYLE_FILE).read_text())["style"]
    model = model.eval().to(device=device, dtype=kind)
    return Subject(name, model, tokenizer, STYLES[style or "sentence"], model.config._attn_implementation)


def pack(subject: Subject, folder: str) -> None:
    """Writes a checkpoint that AutoModelForCausalLM and AutoTokenizer read, and this package with its
    style."""
    subject.model.set_attn_implementation(subject.attention)
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    style = next(name for name, style in STYLES.items() if style == subject.style)
    (Path(folder) / STYLE_FILE).write_text(json.dumps({"style": style}) + "\n")


def _from_checkpoint(name, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    try:
        return (AutoModelForCausalLM.from_pretrained(name, dtype=dtype), AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"model = {name!r}: is not \"constructed\", \"random\", nor a model that "
                              f"Transformers can load: {str(error).splitlines()[0]}") from error


def byte_tokenizer():
    """Token i is byte i; nothing is put in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in spelled)
    spelled.update({byte: chr(256 + i) for i, byte in enumerate(others)})  # the alphabet of ByteLevel
    made = Tokenizer(models.BPE({text: byte for byte, text in spelled.items()}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


def _random():
    """A small Llama with random weights: nothing to recall, but KL and speed can be measured."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                         num_attention_heads=8, num_key_value_heads=2, head_dim=64, initializer_range=0.1,
                         max_position_embeddings=1 << 17)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config), byte_tokenizer()


def _from_int8_rows(folder):
    """A byte-level Llama whose matrices are int8 rows with a float scale each (NAME and NAME.scale).

    Its rotary frequencies were rounded to bfloat16 in training, and matter to 1 % of a key: a longrope table
    whose factors are exact / rounded frequency says so in the configuration's own words."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    raw, state = load_file(str(folder / "weights.safetensors")), {}
    for name, value in raw.items():
        if not name.endswith(".scale"):
            scale = raw.get(name + ".scale")
            state[name] = value.float() if scale is None else value.float() * scale[:, None]
    fields = json.loads((folder / "config.json").read_text())
    if fields.get("model_type") != "llama" or fields.get("vocab_size") != 256:
        raise NotSupported(f"{folder}: int8 rows are read of byte-level Llama models, this one is "
                           f"{fields.get('model_type')!r} with {fields.get('vocab_size')} tokens")
    half = fields["head_dim"] // 2
    exact = fields["rope_parameters"]["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    factors = (exact / exact.to(torch.bfloat16).double()).tolist()
    fields["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": fields["rope_parameters"]["rope_theta"],
        "short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0,
        "original_max_position_embeddings": fields["max_position_embeddings"]}
    fields["dtype"] = "float32"
    model = LlamaForCausalLM(LlamaConfig(**fields))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("lm_head" not in name for name in missing):
        raise InvalidArgument(f"{folder}: weights missing {missing}, unknown {unexpected}")
    model.tie_weights()
    return model, byte_tokenizer()
