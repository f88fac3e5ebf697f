# SPDX-License-Identifier: Apache-2.0
"""Paired runs: a prompt's context is prefilled once, by the model's own attention, and every cache that is
compared starts from those keys and values. Each question is then asked of a copy.

That is what a TurboCache does by itself: its first prompt is attended exactly, before its keys and values are
encoded. The questions' tokens read codes, and are codes when the answer's tokens are decoded.
"""
import copy
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..transformers import TurboCache
from ..transformers._calibrate import CACHE
from ._models import Subject
from ._tasks import Prompt

TEMPERATURE = 0.7


class Variant(NamedTuple):
    """A cache that is compared with the baseline. open(subject, prefilled) gives one that holds what the
    DynamicCache does; None stands for the DynamicCache itself."""

    name: str
    open: Optional[Any] = None
    fused: bool = False  # attends on codes


BASELINE = Variant("baseline")


def forward(subject: Subject, ids, cache, last: bool = False) -> torch.Tensor:
    """[tokens][vocabulary] float32 logits, the last token's only if asked; ids [1][tokens] enter the
    cache."""
    keep = {"logits_to_keep": 1} if last else {}
    with torch.no_grad():
        return subject.model(input_ids=ids, use_cache=True, **{CACHE: cache}, **keep).logits[0].float()


def prefill(subject: Subject, ids) -> DynamicCache:
    """The context's keys and values."""
    subject.model.set_attn_implementation(subject.attention)
    cache = DynamicCache(config=subject.model.config)
    forward(subject, ids, cache, last=True)
    cache.context = ids  # for caches that cannot take it from here
    return cache


def turbo(subject: Subject, prefilled: DynamicCache, preset: str, **options) -> TurboCache:
    """A TurboCache with what the DynamicCache holds, as its first prompt would have left it. Where that keeps
    states or a window's tokens only, the context is prefilled again."""
    subject.model.set_attn_implementation("tqkv")
    cache = TurboCache(subject.model.config, preset, mode="fused", **options)
    if not all(type(layer) is DynamicLayer for layer in prefilled.layers):
        forward(subject, prefilled.context, cache, last=True)
        return cache
    heads = subject.model.config.get_text_config(decoder=True).num_attention_heads
    store = cache.store
    for number, (layer, source) in enumerate(zip(cache.layers, prefilled.layers)):
        key, value = source.keys, source.values
        layer.lazy_initialization(key, value)
        step = store.enter(number, key, value)
        if not step.planned:
            store.plan(key, value, heads)
        store.append(number, key, value)
    store.finish()
    return cache


def opened(subject: Subject, variant: Variant, prefilled: DynamicCache):
    """A cache of the variant, holding the context; the model's attention is set for it."""
    subject.model.set_attn_implementation("tqkv" if variant.fused else subject.attention)
    return copy.deepcopy(prefilled) if variant.open is None else variant.open(subject, prefilled)


def generate(subject: Subject, cache, ids, count: int, seed: Optional[int] = None) -> List[int]:
    """The count tokens that follow; greedy, or drawn by a seed: the same numbers are drawn for every
    cache."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    tokens = []
    for _ in range(count):
        logits = forward(subject, ids, cache, last=True)[-1].cpu()
        if generator is not None:
            uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
            logits = logits.double() / TEMPERATURE - torch.log(-torch.log(uniform))
        tokens.append(int(logits.argmax()))
        ids = torch.tensor([[tokens[-1]]], device=subject.device)
    return tokens


def ask(subject: Subject, variant: Variant, prompt: Prompt, prefilled: DynamicCache,
        seed: Optional[int] = None) -> List[Dict[str, Any]]:
    """One record a question: {"right": 0 .. 1, "said": text}."""
    cache, records = opened(subject, variant, prefilled), []
    first = cache
    for number, question in enumerate(prompt.questions):
        own = None if seed is None else seed * 1000003 + number
        if prompt.candidates:
            record, after = _ranked(subject, cache, question, prompt.candidates)
        elif prompt.chains:
            record, after = _chained(subject, cache, question, own)
        else:
            said, after = _say(subject, cache, question.text, question.answer, own)
            record = {"right": float(said.strip().startswith(question.answer.strip())), "said": said}
        records.append(record)
        if prompt.turns:
            cache, after = after, cache
        if after is not first:
            discard(after)
    if isinstance(first, TurboCache):
        first.close()
    return records


def discard(cache) -> None:
    """Gives the rows of a copy back now: it is part of a cycle, which Python may keep for long."""
    if isinstance(cache, TurboCache):
        for row in cache.store.rows:
            row.free()
        cache.store.rows.clear()


def _say(subject, cache, text, answer, seed):
    """What is said to the text, and a cache that holds both; the cache itself stays as it was.

    Greedy answers are first fed, not generated: that each token of the true one is what the model would have
    said takes one forward pass. What it says instead is then generated."""
    ids, wanted = subject.ids(text), subject.ids(answer)
    after = copy.deepcopy(cache)
    if seed is None:
        logits = forward(subject, torch.cat((ids, wanted), 1), after)[ids.shape[1] - 1:-1]
        if bool((logits.argmax(-1) == wanted[0]).all()):
            return answer, after
        discard(after)
        after = copy.deepcopy(cache)
    return subject.text(generate(subject, after, ids, wanted.shape[1] + 1, seed)), after


def _chained(subject, cache, question, seed):
    """Hop after hop, each asked with the answer before."""
    style, hops, said = subject.style, question.answer.split("\n"), []
    end = style.link.format(key="", value="\0").partition("\0")[2]
    at, between, first = question.text, "", cache
    for hop, answer in enumerate(hops):
        own = None if seed is None else seed * 101 + hop
        text, after = _say(subject, cache, between + style.ask_link.format(key=at),
                           style.answer_link.format(value=answer), own)
        if cache is not first:
            discard(cache)
        cache, at, between = after, text.partition(end)[0].strip(), end
        said.append(at)
        if at != answer:  # what follows would be another chain
            break
    return {"right": float(said == hops), "said": " > ".join(said)}, cache


def _ranked(subject, cache, question, candidates):
    after = copy.deepcopy(cache)
    logits = forward(subject, subject.ids(question.text), after, last=True)[-1].cpu()
    first = [subject.ids(" " + word)[0, 0].item() for word in candidates]
    best = logits[first].argsort(descending=True, stable=True).tolist()
    common = question.answer.split("\n")
    said = sorted(candidates[i] for i in best[:len(common)])
    return {"right": len(set(said) & set(common)) / len(common), "said": " ".join(said)}, after


class _SwappedHeads(DynamicCache):
    """Values of another head: what a cache that mixes up its heads would return."""

    def update(self, key, value, layer, *args, **kwargs):
        key, value = super().update(key, value, layer, *args, **kwargs)
        return key, value.roll(1, dims=1) if value.shape[1] > 1 else value.roll(1, dims=2)


def _broken(subject, prefilled):
    cache = copy.deepcopy(prefilled)
    cache.__class__ = _SwappedHeads
    return cache


BROKEN = Variant("broken: values of another head", _broken)
AGAIN = Variant("baseline again")
