# SPDX-License-Identifier: Apache-2.0
"""Calibration: what a text says about a model's keys and values, measured in one forward pass.

Two things cost quality at few bits. A layer whose keys are much longer than those of the others (models with
biases on keys) is better kept at 16 bits. And what all keys of a head have in common is better subtracted
before coding, since it would be coded again in every token.
"""
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from .. import calibration as measured
from ..config import KeyBands, choice
from ..errors import Error, InvalidArgument, NotSupported
from ._recording import recorded

# What models call their cache: renamed in 5.24.
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


_MEASURED = {"scalar": 1, "trellis": 5}  # what codes a tqkv.Calibration measures


class Calibration(NamedTuple):
    """For TurboCache(model, calibration=..)."""

    centres: List[Tuple[torch.Tensor, torch.Tensor]]  # each attention layer's, [kv heads][dim] on the host
    skip_layers: List[int]   # the model's layers whose keys are outliers
    key_norms: List[float]   # median length of a key, of each attention layer
    # each attention layer's, None where they earn nothing; None: were not asked for
    key_bands: Optional[List[Optional[KeyBands]]] = None
    key_matrices: Optional[List[Optional[torch.Tensor]]] = None  # [kv heads][dim][dim] on the host


# For models that bring a tokenizer and no text. Some 200 tokens of any sort: names, numbers, speech, code.
TEXT = """The harbour office opened at seven. By then the first boats had already come in, and Maren wrote
down what each of them had caught: 214 kilograms of cod, 38 of haddock, a crate of crabs. "Only one crate?"
she asked. "The water is too warm for them this year," the skipper said, and shrugged. In the afternoon she
added the columns, sent the list to the auction, and went home along the sea wall.

Her brother had left a note on the kitchen table. The pump in the cellar was running again; the part had
cost 47.50, half of what the shop in town had asked for, and it would do until spring. He had also repaired
the program that she used for her lists:

    def total(rows):
        return sum(row["weight"] for row in rows if row["kind"] != "crab")

She read it twice, changed one word, and saved it. Then she made tea, opened the window, and listened to the
wind, which had turned to the north-west as the forecast had promised on Tuesday."""


def calibrate(model, tokens, *, text=None, outlier: float = 4.0, attention_mask=None,
              key_bits: Optional[float] = None, value_bits: int = 3, code_family: str = "scalar",
              turn_keys: bool = False) -> Calibration:
    """tokens     [batch][tokens] or [tokens] of ids: some hundreds, of the kind that the model will see; or a
               tokenizer, for text
    text       a string for the tokenizer; None: a page of English, numbers and code that is kept here
    outlier    layers are skipped whose median key is longer than this many times that of the median layer
    key_bits   2, 2.5, 3, 3.5 or 4: find key bands of so many bits on average, and keep centres of heads alone
               whose held-out tokens gain by them; takes 256 tokens or more
    code_family, turn_keys
               with key_bits: of what codes; find matrices of keys too
    """
    family = choice("code_family", code_family, _MEASURED)
    if turn_keys and key_bits is None:
        raise InvalidArgument("turn_keys: needs key_bits, whose bands are found of turned keys")
    input_ids = _ids(tokens, text, model.device)
    cache = DynamicCache(config=model.config)

    def prompt():
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **{CACHE: cache})

    seen = None if key_bits is None else recorded(model, prompt)
    if seen is None:
        prompt()
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
    bands = matrices = None
    if seen is not None:
        found = [_measure(seen.get(i), real, key_bits, value_bits, family, turn_keys) for i in numbers]
        centres = [own.centres or means for own, means in zip(found, centres)]
        bands, matrices = [own.bands for own in found], [own.matrix for own in found]
    return Calibration(centres, [i for i, norm in zip(numbers, norms) if norm > outlier * median], norms,
                       bands, matrices if turn_keys else None)


class _Found(NamedTuple):
    """Of a layer; None where it earns nothing, or the layer's attention was not seen."""

    centres: Any = None
    bands: Any = None
    matrix: Any = None


def _measure(tensors, real, key_bits, value_bits, family, turn_keys):
    """_Found of a layer's query, key and value [B][H][T][D]."""
    if tensors is None or tensors[0].shape[2] != tensors[1].shape[2] or tensors[1].shape[3] > 256:
        return _Found()
    rows = []
    for side in tensors:
        tokens = side.transpose(1, 2)
        kept = None if real is None else real[:, -tokens.shape[1]:].to(tokens.device)
        tokens = tokens.flatten(0, 1) if kept is None else tokens[kept]
        rows.append(tokens.float().cpu().contiguous())
    q, k, v = rows
    heads, dim = k.shape[1:]

    def tensor(bytes_, *shape):
        return torch.frombuffer(bytearray(bytes_), dtype=torch.float32).view(heads, *shape)

    with measured.Calibration(1, q.shape[1], heads, dim, value_dim=v.shape[2], key_family=family,
                              value_family=family, turn_keys=turn_keys) as found:
        found.feed(0, q, k, v)
        bands, matrix = found.choose(key_bits, value_bits).layers[0].key_bands, found.key_matrix(0)
        centres = tuple(tensor(side, side_dim) for side, side_dim in zip(found.centres(0), (dim, v.shape[2])))
    return _Found(centres, bands, None if matrix is None else tensor(matrix, dim, dim))


def set_measured(cache, centres, matrices):
    """Into an empty tqkv.Cache, by its layers; it is closed if this fails. centres: None, or as Calibration
    has them."""
    try:
        for layer, sides in enumerate(centres or ()):
            cache.set_centres(layer, *sides)
        for layer, matrix in enumerate(matrices):
            if matrix is not None and cache.config.layers[layer].key_bits != 16:
                cache.set_key_matrix(layer, matrix)
    except NotSupported as error:
        cache.close()
        raise NotSupported(f"calibration: has key matrices, which this cache does not take: {error}; "
                           "calibrate without turn_keys") from None
    except Error:
        cache.close()
        raise


def _ids(tokens, text, device):
    """[batch][tokens] on the device, of what calibrate was given."""
    if isinstance(tokens, str):
        raise InvalidArgument(f"tokens = {tokens[:40]!r}: a text needs the model's tokenizer: give that, and "
                              "text=..")
    if callable(tokens) and not isinstance(tokens, torch.Tensor):
        tokens = tokens(TEXT if text is None else text)["input_ids"]
    elif text is not None:
        raise InvalidArgument("text: is for a tokenizer; token ids were given")
    try:
        ids = torch.as_tensor(tokens, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"tokens: {type(tokens).__name__}: must be token ids or a tokenizer "
                              f"({error})") from None
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.shape[1] < 2 or ids.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument(f"tokens: are {list(ids.shape)} of {ids.dtype}; must be integers [batch][2 or "
                              "more tokens]")
    return ids
