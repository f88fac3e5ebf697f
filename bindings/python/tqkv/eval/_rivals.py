# SPDX-License-Identifier: Apache-2.0
"""Formats side by side at their bytes: one forward pass of a text for each, in which every query reads keys
and values of all positions, its own included, as the format gives them back.

First a pass with exact attention, in which each format is also tried on that layer's own queries, keys and
values: errors of attention there are of one layer alone. Then passes in which errors run through all layers:
KL, top-1 agreement and NLL on the text, and the share of recalled answers on pairs of keys and values.
Calibration, where a format wants it, is on other text. No token is exact, for any of them, but in the column
that says so: there the last 128 and first 4 tokens are read exactly.
"""
import contextlib
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from ..cache import Cache
from ..errors import NotSupported
from ._formats import Format, Side, rivals
from ._models import Subject
from ._profiles import calibrate
from ._quality import kl
from ._tasks import make

NAME = "tqkv-eval-formats"
RECENT, FIRST = 128, 4


class Pass(NamedTuple):
    """What the attention of the pass that is under way does; layer -> anything it wants."""

    attend: Callable[..., torch.Tensor]


_under_way: List[Pass] = []


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    if kwargs.get("sliding_window") or kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise NotSupported("this model's attention has a sliding window, a soft-cap or sinks")
    scale = query.shape[-1]**-0.5 if scaling is None else scaling
    out = _under_way[-1].attend(module.layer_idx, query[0].float(), key[0].float(), value[0].float(), scale)
    return out.transpose(0, 1)[None].to(query.dtype), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextlib.contextmanager
def _running(subject, attend):
    subject.model.set_attn_implementation(NAME)
    _under_way.append(Pass(attend))
    try:
        yield
    finally:
        _under_way.pop()
        subject.model.set_attn_implementation(subject.attention)


def attention(query, key, value, scale, coded=None):
    """Causal. query [Hq][T][D], key, value [Hkv][T][D]; coded: (keys, values) that are read instead, but for
    the last RECENT and the first FIRST tokens."""
    tokens, groups = query.shape[1], query.shape[0] // key.shape[0]
    key, value = (x.repeat_interleave(groups, 0) for x in (key, value))
    at = torch.arange(tokens, device=query.device)
    seen = at <= at[:, None]
    if coded is None:
        return functional.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale,
                                                       is_causal=True)[0]
    near = (at > at[:, None] - RECENT) | (at < FIRST)
    keys, values = (x.repeat_interleave(groups, 0) for x in coded)
    logits = torch.where(near, query @ key.transpose(1, 2), query @ keys.transpose(1, 2)) * scale
    weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
    return (weights * near) @ value + (weights * ~near) @ values


def library(key_bits: int, value_bits: int, centres: Optional[List[Any]] = None,
            key_rule: str = "unbiased", family: str = "scalar") -> Format:
    """tqkv's own format, through the library: appended, and read back."""
    name = f"tqkv {key_bits}" if key_bits == value_bits else f"tqkv k{key_bits}v{value_bits}"
    name += f" {family}" if family != "scalar" else ""

    def through(x, side, bits, which):
        heads, tokens, dim = x.shape
        rows = x.transpose(0, 1).contiguous().cpu()
        with Cache(num_layers=1, num_q_heads=heads, num_kv_heads=heads, head_dim=dim, key_bits=bits,
                   value_bits=bits, max_tokens=tokens + 64, first_layer=side.layer,
                   key_scale_rule=key_rule, code_family=family) as cache:
            if centres is not None:
                cache.set_centres(0, *centres[side.layer])
            sequence, batch = cache.sequence(), cache.batch()
            batch.plan([sequence], [tokens])
            batch.append(0, rows, rows)
            found = sequence.read(0, 0, tokens, like=rows)
        return found[which].transpose(0, 1).to(x)

    name += (" + centres" if centres else "") + (f", {key_rule} keys" if key_rule != "unbiased" else "")
    return Format(name, "this library",
                  lambda d: (key_bits + 16 / d, value_bits + 16 / d),
                  lambda x, side: through(x, side, key_bits, 0),
                  lambda x, side: through(x, side, value_bits, 1))


def own(subject: Subject) -> List[Format]:
    centres = calibrate(subject).centres
    widths = [(8, 8), (6, 6), (4, 4), (4, 2), (3, 3), (3, 2), (2, 2)]
    return [*(library(*pair) for pair in widths), *(library(b, b, centres) for b in (4, 3, 2)),
            *(library(b, b, centres, "ls") for b in (4, 3, 2)),
            *(library(b, b, about, family="trellis") for b in (4, 3, 2) for about in (None, centres))]


def judge(subject: Subject, ids: torch.Tensor, seed: int, exact_too: bool = True,
          formats: Optional[List[Format]] = None) -> Dict[str, Dict[str, Any]]:
    """By format: "bits" of a key's and a value's number, "bytes" of a token and head, "key", "value":
    relative squared errors, "attention": that of the attention's output, by layer alone; "kl", "dnll", "top1"
    on the text, "kl_exact" with exact tokens, "recall" on pairs."""
    formats = rivals() + own(subject) if formats is None else formats
    calibration = make(subject, "pairs", min(512, ids.shape[1]), 0.5, 77, seed, 4).context
    sides = _collect(subject, torch.cat((calibration, ids[:, -calibration.shape[1]:].flip(1)), 1))
    found = {f.name: {"source": f.source} for f in formats}
    exact = _layers(subject, ids, formats, sides, found)
    pairs, asked = _pairs(subject, min(768, ids.shape[1]), seed)
    for f in formats:
        row, target = found[f.name], ids[0, 1:, None]
        logits = _through(subject, ids, f, sides, False)
        row["kl"] = kl(exact, logits)[:-1].mean().item()
        row["dnll"] = (exact[:-1].gather(1, target) - logits[:-1].gather(1, target)).mean().item()
        row["top1"] = (exact.argmax(-1) == logits.argmax(-1))[:-1].double().mean().item()
        if exact_too:
            row["kl_exact"] = kl(exact, _through(subject, ids, f, sides, True))[:-1].mean().item()
        said = _through(subject, pairs, f, sides, False).argmax(-1)
        right = [bool((said[a - 1:b - 1] == pairs[0, a:b]).all()) for a, b in asked]
        row["recall"] = sum(right) / len(right)
    return found


def _collect(subject, ids):
    """Side of every layer, by calibration."""
    sides: Dict[int, Side] = {}

    def attend(layer, query, key, value, scale):
        groups = query.shape[0] // key.shape[0]
        sides[layer] = Side(layer, query.reshape(key.shape[0], groups * query.shape[1], -1), key)
        return attention(query, key, value, scale)

    _logits(subject, ids, attend)
    return sides


def _layers(subject, ids, formats, sides, found):
    """The exact pass: log-probabilities, and errors of each format by layer, averaged, into found."""
    sums = {f.name: torch.zeros(3, dtype=torch.float64) for f in formats}
    count = [0]

    def attend(layer, query, key, value, scale):
        out = attention(query, key, value, scale)
        count[0] += 1
        for f in formats:
            coded = f.key(key, sides[layer]), f.value(value, sides[layer])
            through = attention(query, *coded, scale)
            for i, (other, one) in enumerate(zip((*coded, through), (key, value, out))):
                sums[f.name][i] += ((other - one).square().sum() / one.square().sum()).item()
        dims.append((key.shape[-1], value.shape[-1]))
        return out

    dims: List[Any] = []
    logits = _logits(subject, ids, attend)
    for f in formats:
        bits = f.bits(dims[0][0])
        errors = (sums[f.name] / count[0]).tolist()
        found[f.name].update(bits=list(bits), bytes=(bits[0] * dims[0][0] + bits[1] * dims[0][1]) / 8,
                             key=errors[0], value=errors[1], attention=errors[2])
    return logits


def _through(subject, ids, f, sides, exact_too):
    def attend(layer, query, key, value, scale):
        coded = f.key(key, sides[layer]), f.value(value, sides[layer])
        if exact_too:
            return attention(query, key, value, scale, coded)
        return attention(query, *coded, scale)
    return _logits(subject, ids, attend)


def _logits(subject, ids, attend):
    """[tokens][vocabulary] log-probabilities, float64."""
    with torch.no_grad(), _running(subject, attend):
        logits = subject.model(input_ids=ids, use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)


def _pairs(subject, context, seed):
    """A text of pairs with every question's true answer behind it, and where those answers stand."""
    prompt = make(subject, "pairs", context, 0.5, 78, seed, 16)
    parts, asked, length = [prompt.context], [], prompt.context.shape[1]
    for question in prompt.questions:
        text, answer = subject.ids(question.text), subject.ids(question.answer)
        length += text.shape[1]
        asked.append((length, length + answer.shape[1]))
        length += answer.shape[1]
        parts += [text, answer]
    return torch.cat(parts, 1), asked
