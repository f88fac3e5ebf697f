# SPDX-License-Identifier: Apache-2.0
"""How near the next-token distributions of a cache are to those of the baseline, on given text and on text
that the model writes itself.

Beginnings are prefilled, the rest enters in blocks, whose queries read codes only, those of their own block
included. Distributions are compared where both caches have seen the same tokens.
"""
import random
from typing import Any, Dict, List, Sequence

import torch

from . import _words
from ._models import Subject
from ._runs import BASELINE, Variant, forward, generate, opened, prefill
from ._stats import quantile

BLOCK = 128


def texts(subject: Subject, count: int, tokens: int, path: str = "", seed: int = 0) -> List[torch.Tensor]:
    """[1][tokens] each: cuts of a file; without one, sentences that are said twice, in which the second half
    can be known."""
    if path:
        with open(path, encoding="utf-8", errors="replace") as file:
            ids = subject.ids(file.read())[0]
        if len(ids) < count * tokens:
            raise ValueError(f"text = {path}: has {len(ids)} tokens, {count} x {tokens} are asked for")
        return [ids[None, i * tokens:(i + 1) * tokens] for i in range(count)]
    made = []
    for i in range(count):
        source, half = _words.sentences(random.Random(f"{seed} text {i}")), ""
        while subject.ids(half).shape[1] < tokens // 2:
            half += next(source)
        made.append(subject.ids(half + half, special=True)[:, :tokens])
    return made


def _use(subject, variant):
    subject.model.set_attn_implementation("tqkv" if variant.fused else subject.attention)


def completion(subject: Subject, variants: Sequence[Variant], ids: torch.Tensor,
               block: int = BLOCK) -> Dict[str, Dict[str, Any]]:
    """By variant, of one text: "kl" (mean, nats), "kl_p999", "top1" (share of agreement), "dnll" (mean,
    nats a token), "nll" of the baseline, "places" compared."""
    begin = max(1, ids.shape[1] // 8)
    prefilled = prefill(subject, ids[:, :begin])
    everyone = (BASELINE, *variants)
    caches = [opened(subject, variant, prefilled) for variant in everyone]
    found: Dict[str, Dict[str, List[float]]] = {v.name: {"kl": [], "top1": [], "dnll": []} for v in variants}
    nll: List[float] = []
    for first in range(begin, ids.shape[1] - 1, block):
        part = ids[:, first:min(first + block, ids.shape[1] - 1)]
        target = ids[0, first + 1:first + 1 + part.shape[1], None]
        exact = None
        for variant, cache in zip(everyone, caches):
            _use(subject, variant)
            logits = torch.log_softmax(forward(subject, part, cache).double(), -1)
            if exact is None:
                exact, own = logits, logits.gather(1, target)[:, 0]
                nll += (-own).tolist()
                continue
            side = found[variant.name]
            side["kl"] += kl(exact, logits).tolist()
            side["top1"] += (exact.argmax(-1) == logits.argmax(-1)).double().tolist()
            side["dnll"] += (own - logits.gather(1, target)[:, 0]).tolist()
    _close(caches)
    return {name: {"kl": _mean(side["kl"]), "kl_p999": quantile(side["kl"], 0.999),
                   "top1": _mean(side["top1"]), "dnll": _mean(side["dnll"]), "nll": _mean(nll),
                   "places": len(nll)} for name, side in found.items()}


def kl(exact, other) -> torch.Tensor:
    """[places] KL(exact || other) of log-probabilities [places][vocabulary]; a probability of zero adds
    nothing."""
    return torch.where(exact > -torch.inf, exact.exp() * (exact - other), 0.0).sum(-1)


def drift(subject: Subject, variants: Sequence[Variant], ids: torch.Tensor,
          tokens: int) -> Dict[str, Dict[str, Any]]:
    """By variant: "same", how many tokens of a free continuation are the baseline's before the first other
    one, and "kl" along the baseline's own continuation, in four quarters: whether errors grow."""
    prefilled = prefill(subject, ids[:, :-1])
    last, result = ids[:, -1:], {}
    said = generate(subject, opened(subject, BASELINE, prefilled), last, tokens)
    path = torch.cat((last, torch.tensor([said], device=ids.device)), 1)
    quarter = max(1, tokens // 4)
    exact = _along(subject, BASELINE, prefilled, path[:, :-1], quarter)
    for variant in variants:
        cache = opened(subject, variant, prefilled)
        free = generate(subject, cache, last, tokens)
        same = next((i for i, (a, b) in enumerate(zip(free, said)) if a != b), tokens)
        along = _along(subject, variant, prefilled, path[:, :-1], quarter)
        differences = kl(exact, along)
        result[variant.name] = {"same": same, "of": tokens,
                                "kl": [_mean(differences[i * quarter:(i + 1) * quarter].tolist())
                                       for i in range(4)]}
        _close([cache])
    return result


def _along(subject, variant, prefilled, path, block):
    cache = opened(subject, variant, prefilled)
    logits = [torch.log_softmax(forward(subject, path[:, i:i + block], cache).double(), -1)
              for i in range(0, path.shape[1], block)]
    _close([cache])
    return torch.cat(logits)


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def _close(caches):
    for cache in caches:
        if hasattr(cache, "close"):
            cache.close()
