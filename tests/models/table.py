# SPDX-License-Identifier: Apache-2.0
"""tests/data/models.json (tests/data/README.md says what its fields mean), and the bytes that its caches need
by the plain formula."""
import json
from pathlib import Path

DATA = json.loads((Path(__file__).resolve().parents[1] / "data" / "models.json").read_text())
MODELS = {model["name"]: model for model in DATA["models"]}


def layers(model):
    """The model's layers in order: (letter of the kind, kind)."""
    return [(letter, model["kinds"][letter]) for count, letters in model["layers"]
            for letter in letters * count]


def stores(kind):
    return kind["attention"] != "linear" and "shares" not in kind


def value_dim(kind):
    return kind.get("value_dim", kind["head_dim"])


def kept_tokens(kind, tokens, plan_tokens):
    """Tokens that the queries of one plan can see, in a sequence of `tokens`."""
    if kind["attention"] == "cross":
        return kind["cross_tokens"]
    window = kind.get("sliding_window")
    return min(tokens, window - 1 + plan_tokens) if window else tokens


def token_bytes(kind, bits):
    """FORMAT.md section 4: D * bits / 8 bytes and a two-byte scale for a vector; D is the dimension rounded
    up to 32."""
    sides = sum(-(-dim // 32) * 32 * bits // 8 + 2 for dim in (kind["head_dim"], value_dim(kind)))
    return kind["num_kv_heads"] * sides
