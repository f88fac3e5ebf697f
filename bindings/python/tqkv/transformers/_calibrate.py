# SPDX-License-Identifier: Apache-2.0
"""Calibration: what a text says about a model's keys and values, measured in one forward pass.

Two things cost quality at few bits. A layer whose keys are much longer than those of the others (models with
biases on keys) is better kept at 16 bits. And what all keys of a head have in common is better subtracted
before coding, since it would be coded again in every token.
"""
from typing import List, NamedTuple, Tuple

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from ..errors import InvalidArgument

# What models call their cache: renamed in 5.24.
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


class Calibration(NamedTuple):
    """For TurboCache(model, calibration=..)."""

    centres: List[Tuple[torch.Tensor, torch.Tensor]]  # each attention layer's, [kv heads][dim] on the host
    skip_layers: List[int]   # the model's layers whose keys are outliers
    key_norms: List[float]   # median length of a key, of each attention layer


def calibrate(model, input_ids, *, outlier: float = 4.0, attention_mask=None) -> Calibration:
    """input_ids  [batch][tokens], or [tokens]: some hundreds, of the kind that the model will see
    outlier    layers are skipped whose median key is longer than this many times that of the median layer
    """
    input_ids = torch.as_tensor(input_ids, device=model.device)
    input_ids = input_ids[None] if input_ids.dim() == 1 else input_ids
    if input_ids.dim() != 2 or input_ids.shape[1] < 2:
        raise InvalidArgument(f"input_ids: has shape {list(input_ids.shape)}; must be [batch][2 or more "
                              "tokens]")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **{CACHE: cache})
    real = None if attention_mask is None else torch.as_tensor(attention_mask).bool()
    centres, norms, numbers = [], [], []
    for i, layer in enumerate(cache.layers):
        if not isinstance(layer, CacheLayerMixin) or not layer.is_initialized:
            continue
        sides = []
        for side in (layer.keys, layer.values):
            rows = side.transpose(1, 2)  # sliding layers hold their last tokens only
            kept = real[:, -rows.shape[1]:].to(rows.device) if real is not None else None
            sides.append(rows.flatten(0, 1) if kept is None else rows[kept])
        keys, values = (side.float() for side in sides)
        centres.append((keys.mean(0).cpu().contiguous(), values.mean(0).cpu().contiguous()))
        norms.append(keys.norm(dim=-1).median().item())
        numbers.append(i)
    median = sorted(norms)[(len(norms) - 1) // 2]
    return Calibration(centres, [i for i, norm in zip(numbers, norms) if norm > outlier * median], norms)
