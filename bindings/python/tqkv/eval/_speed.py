# SPDX-License-Identifier: Apache-2.0
"""Tokens a second and bytes, by cache and context; and, from bytes alone, which contexts and batches fit.

Caches: the model's own (DynamicCache), TurboCache by profile, and Transformers' QuantizedCache where its
backend can be imported. Times are those of this machine, with what else it does; every other figure of a
report follows from its seed. Prefill goes through the cache that is timed. On a GPU peak_bytes is torch's
peak; on a CPU, where torch counts nothing, it is None.
"""
import time
from typing import Any, Dict, Optional

import torch
from transformers.cache_utils import DynamicCache

from ..transformers import TurboCache
from ._models import Subject
from ._profiles import Profile, options
from ._runs import forward

DYNAMIC = "DynamicCache"
QUANTIZED = ("quanto", "hqq")


def caches(profiles) -> tuple:
    return (DYNAMIC, *(f"QuantizedCache {backend} 4 bits" for backend in QUANTIZED),
            *(profile.name for profile in profiles))


def _new(subject: Subject, name: str, profile: Optional[Profile], calibration: Any):
    subject.model.set_attn_implementation("tqkv" if profile else subject.attention)
    if profile is not None:
        return TurboCache(subject.model.config, profile.preset, mode="fused", max_batch=1,
                          **options(profile, calibration))
    if name == DYNAMIC:
        return DynamicCache(config=subject.model.config)
    from transformers.cache_utils import QuantizedCache
    return QuantizedCache(backend=name.split()[1], config=subject.model.config, nbits=4)


def measure(subject: Subject, name: str, profile: Optional[Profile], calibration: Any, context: int,
            new_tokens: int) -> Dict[str, Any]:
    """"prefill" and "decode" in tokens a second, "bytes" of the cache at the end, "peak_bytes"; or "why"
    it cannot be done."""
    generator = torch.Generator().manual_seed(context)
    vocabulary = subject.model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (1, context), generator=generator).to(subject.device)
    cuda = subject.device.type == "cuda"
    try:
        cache = _new(subject, name, profile, calibration)  # to warm up: some backends compile themselves
        forward(subject, ids[:, :64], cache, last=True)
        forward(subject, ids[:, :1], cache, last=True)
        if cuda:
            torch.cuda.reset_peak_memory_stats(subject.device)
        cache = _new(subject, name, profile, calibration)
        start = _now(cuda)
        forward(subject, ids, cache, last=True)
        middle = _now(cuda)
        for i in range(new_tokens):
            forward(subject, ids[:, i:i + 1], cache, last=True)
        end = _now(cuda)
    except (ImportError, ModuleNotFoundError, ValueError) as error:  # a backend that is not installed
        if profile is not None or name == DYNAMIC:
            raise
        return {"why": str(error).splitlines()[0]}
    return {"prefill": context / (middle - start), "decode": new_tokens / (end - middle),
            "bytes": _bytes(cache, context + new_tokens),
            "peak_bytes": torch.cuda.max_memory_allocated(subject.device) if cuda else None}


def _now(cuda):
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _bytes(cache, tokens):
    """All that the cache holds for these tokens."""
    if isinstance(cache, TurboCache):
        sizes = cache.tqkv.config.bytes()
        return sizes.token_bytes * tokens + sizes.raw_bytes + sizes.table_bytes
    return sum(_tensors(vars(layer)) for layer in cache.layers)


def _tensors(thing) -> int:
    """Bytes of all tensors in a layer; of a quantised one, those that it is made of."""
    if isinstance(thing, torch.Tensor):
        inner = [getattr(thing, name) for name in ("_data", "_scale", "_shift") if hasattr(thing, name)]
        return sum(map(_tensors, inner)) if inner else thing.numel() * thing.element_size()
    if isinstance(thing, (list, tuple)):
        return sum(map(_tensors, thing))
    if isinstance(thing, dict):
        return sum(map(_tensors, thing.values()))
    return 0


def fits(subject: Subject, profile: Optional[Profile], calibration: Any, memory: int,
         context: int) -> Dict[str, int]:
    """Tokens of one text, and texts of `context` tokens, whose cache fits into `memory` bytes: by the bytes
    of a token, and of the room for exact copies of a text."""
    cache = DynamicCache(config=subject.model.config)
    subject.model.set_attn_implementation(subject.attention)
    forward(subject, torch.zeros(1, 1, dtype=torch.long, device=subject.device), cache, last=True)
    token, fixed = sum(_tensors(vars(layer)) for layer in cache.layers), 0
    if profile is not None:
        turbo = _new(subject, profile.name, profile, calibration)
        forward(subject, torch.zeros(1, 1, dtype=torch.long, device=subject.device), turbo, last=True)
        sizes = turbo.tqkv.config.bytes()
        token, fixed = sizes.token_bytes, sizes.raw_bytes
        turbo.close()
    return {"token_bytes": token, "text_bytes": fixed, "tokens": max(0, (memory - fixed) // token),
            "batch": memory // (token * context + fixed)}
