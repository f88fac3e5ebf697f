# SPDX-License-Identifier: Apache-2.0
"""A cache of each model of the table with one layer of every kind, in its true shape: appended in four plans,
attended on the CPU with the model's scale, masks, sinks and biases, and compared with float64 attention over
what the oracle decodes. Sequences are short, so windows are shortened to end inside them."""
import numpy as np
import pytest
import table
import tqkv
from contract import model as contract_model

PLANS = ((70, 3), (43, 2), (1, 1), (6, 6))  # new tokens, query tokens
TOKENS = sum(new for new, _ in PLANS)
LONGEST_WINDOW, CROSS_TOKENS, BITS, PAGE = 40, 77, 4, 32
# tests/contract/README.md derives it: queries carry 15 bits, weights 16.
TOLERANCE = 2.0 ** -12


def one_of_each(model, crossing):
    """[(letter, kind)] of the self- or cross-attention layers, those that store before those that share."""
    kinds = {letter: kind for letter, kind in table.layers(model)
             if kind["attention"] != "linear" and (kind["attention"] == "cross") == crossing}
    return sorted(kinds.items(), key=lambda item: "shares" in item[1])


def window_of(kind):
    return min(kind.get("sliding_window", 0), LONGEST_WINDOW)


def layer_of(kinds, kind):
    letters = [letter for letter, _ in kinds]
    return tqkv.Layer(num_q_heads=kind["num_q_heads"], num_kv_heads=kind["num_kv_heads"],
                      head_dim=kind["head_dim"], value_dim=table.value_dim(kind),
                      sliding_window=window_of(kind),
                      shares_layer=letters.index(kind["shares"]) if "shares" in kind else None)


def config_of(kinds):
    return tqkv.Config(layers=[layer_of(kinds, kind) for _, kind in kinds], key_bits=BITS, value_bits=BITS,
                       max_tokens=TOKENS, max_batch_tokens=max(CROSS_TOKENS, *(new for new, _ in PLANS)),
                       page_size=PAGE, num_threads=1)


def visible_range(kind, positions, tokens):
    """First token that each query sees, and the one behind its last."""
    if kind["attention"] == "cross":
        return np.zeros_like(positions), np.full_like(positions, tokens)
    first, window = np.zeros_like(positions), window_of(kind)
    if kind["attention"] == "sliding":
        first = np.maximum(0, positions - window + 1)
    elif kind["attention"] == "chunked":
        first = positions // window * window
    return first, positions + 1


def attend64(kind, q, k, v, positions, sinks):
    """q [queries, q heads, d], k and v [tokens, kv heads, d] -> out, lse, float64."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    group, token = kind["num_q_heads"] // kind["num_kv_heads"], np.arange(len(k))
    begin, end = visible_range(kind, positions, len(k))
    seen = (token >= begin[:, None]) & (token < end[:, None])
    out, lse = [], []
    for head in range(kind["num_q_heads"]):
        logits = q[:, head] @ k[:, head // group].T * scale_of(kind)
        if "alibi_bias_max" in kind:
            logits += slopes_of(kind)[head] * (token - positions[:, None])
        if "logit_softcap" in kind:
            logits = kind["logit_softcap"] * np.tanh(logits / kind["logit_softcap"])
        weights = np.exp(np.where(seen, logits, -np.inf))
        total = weights.sum(axis=1) + (0 if sinks is None else np.exp(np.float64(sinks[head])))
        out.append(weights @ v[:, head // group] / total[:, None])
        lse.append(np.log(total))
    return np.stack(out, axis=1), np.stack(lse, axis=1)


def scale_of(kind):
    return kind.get("softmax_scale", kind["head_dim"] ** -0.5)


def slopes_of(kind):
    heads = kind["num_q_heads"]
    return 2.0 ** (-kind["alibi_bias_max"] * np.arange(1, heads + 1) / heads)


def arguments_of(kind, positions, tokens, sinks):
    """Keyword arguments of attend. What a layer's own window says needs no argument."""
    arguments = {"softmax_scale": kind.get("softmax_scale", 0.0),
                 "logit_softcap": kind.get("logit_softcap", 0.0), "sink_logits": sinks}
    if kind["attention"] in ("chunked", "cross"):
        begin, end = visible_range(kind, positions, tokens)
        arguments.update(visible_begin=begin.astype(np.int32), visible_end=end.astype(np.int32))
    if "alibi_bias_max" in kind:
        arguments["alibi_slopes"] = slopes_of(kind).astype(np.float32)
    return arguments


class Run:
    """One sequence of a cache with its tokens, raw."""

    def __init__(self, kinds, cache, seed):
        self.kinds, self.cache, self.random = kinds, cache, np.random.default_rng(seed)
        self.sequence, self.batch, self.length = cache.sequence(), cache.batch(), 0
        self.tokens = [tuple(self.normal(TOKENS, kind["num_kv_heads"], dim)
                             for dim in (kind["head_dim"], table.value_dim(kind))) for _, kind in kinds]
        self.oracle = contract_model.ModelCache(
            {"num_layers": len(kinds), "head_dim": 0, "key_bits": BITS, "value_bits": BITS})
        self.decoded = {}

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def plan(self, new, queries):
        self.batch.plan([self.sequence], [new], [queries])
        for layer, (_, kind) in enumerate(self.kinds):
            if table.stores(kind) and new:
                k, v = (side[self.length:self.length + new] for side in self.tokens[layer])
                self.batch.append(layer, k, v)
        self.length += new

    def source(self, layer):
        """The layer whose tokens it attends to."""
        shared = self.kinds[layer][1].get("shares")
        return next((i for i, (letter, _) in enumerate(self.kinds) if letter == shared), layer)

    def visible_tokens(self, layer):
        layer = self.source(layer)
        if layer not in self.decoded:
            self.decoded[layer] = [self.oracle.decode(layer, side, which)
                                   for which, side in enumerate(self.tokens[layer])]
        return [side[:self.length] for side in self.decoded[layer]]

    def compare(self, layer, queries):
        """Attends the plan's queries and compares. Logits have a spread of 1.5, as those of models."""
        kind = self.kinds[layer][1]
        positions = np.arange(self.length - queries, self.length)
        spread = np.float32(1.5 / (scale_of(kind) * kind["head_dim"] ** 0.5))
        q = self.normal(queries, kind["num_q_heads"], kind["head_dim"]) * spread
        sinks = self.normal(kind["num_q_heads"]) if "sink_logits" in kind else None
        out, lse = self.batch.attend(layer, q, lse=True, **arguments_of(kind, positions, self.length, sinks))
        want_out, want_lse = attend64(kind, q, *self.visible_tokens(layer), positions, sinks)
        assert out.shape == want_out.shape and lse.shape == want_lse.shape
        assert np.linalg.norm(out - want_out) <= TOLERANCE * np.linalg.norm(want_out)
        assert np.abs(lse - want_lse).max() <= TOLERANCE


@pytest.mark.parametrize("name", table.MODELS)
def test_self_attention(name):
    kinds = one_of_each(table.MODELS[name], False)
    with tqkv.Cache(config_of(kinds)) as cache:
        run = Run(kinds, cache, seed=1)
        for new, queries in PLANS:
            run.plan(new, queries)
            for layer, (_, kind) in enumerate(kinds):
                if "position_bias" not in kind:  # `tqkv info --models` says why not
                    run.compare(layer, queries)


@pytest.mark.parametrize("name", [name for name in table.MODELS if one_of_each(table.MODELS[name], True)])
def test_cross_attention(name):
    """Encoder tokens are appended once; all queries of the decoder's plans see all of them."""
    kinds = one_of_each(table.MODELS[name], True)
    with tqkv.Cache(config_of(kinds)) as cache:
        run = Run(kinds, cache, seed=2)
        run.plan(CROSS_TOKENS, 0)
        for _, queries in PLANS:
            run.plan(0, queries)
            run.compare(0, queries)
