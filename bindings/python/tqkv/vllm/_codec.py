# SPDX-License-Identifier: Apache-2.0
"""Codecs for groups of vLLM's layers.

A layer is known by its number in the whole model, which its name carries, and its kv heads by theirs: both
enter the random signs, so a rank of a tensor- or pipeline-parallel run writes the bytes that one process
would.
"""
import functools
from typing import NamedTuple, Optional

import torch

from .. import Config, Layer, PagedCodec
from ..errors import NotSupported

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@functools.lru_cache(maxsize=None)
def head_sizes(device) -> list:
    """Those that the library has on a kind of device, "cpu" or "cuda"."""
    return [size for size in range(4, 577, 4)
            if not Config(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=size, key_bits=4,
                          value_bits=4, io_dtype="float16", max_tokens=64, device=device).check()]


class LayerShape(NamedTuple):
    """What decides about a layer's bytes, and how many heads ask."""

    number: int  # in the whole model
    num_heads: int
    num_kv_heads: int
    head_size: int
    head_size_v: int
    widths: tuple
    first_kv_head: int
    shares: Optional[int] = None  # the number of the layer whose cache it reads


@functools.lru_cache(maxsize=None)
def content_bytes(head_size, head_size_v, widths, dtype) -> int:
    """Bytes of one token of one kv head, exactly: a tile's share."""
    with PagedCodec(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=head_size, value_dim=head_size_v,
                    key_bits=widths[0], value_bits=widths[1], io_dtype=DTYPES[dtype], page_size=32,
                    num_threads=1) as codec:
        return codec.page_layout(0).token_bytes


def make_codec(shapes, settings, dtype, device) -> PagedCodec:
    """Layer i of the codec is layer first + i of the model, first the smallest number; those between that are
    not named are there for the numbering alone."""
    by_number = {}
    for shape in shapes:
        other = by_number.setdefault(shape.number, shape)
        if other != shape:
            raise NotSupported(f"layer {shape.number} stands twice in a group of layers, as {other} and "
                               f"{shape}")
    first, last = min(by_number), max(by_number)
    layers = []
    for number in range(first, last + 1):
        shape = by_number.get(number, shapes[0])
        if shape.shares is not None and number in by_number:
            layers.append(Layer(num_q_heads=shape.num_heads, shares_layer=shape.shares - first))
            continue
        layers.append(Layer(num_q_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
                            head_dim=shape.head_size, value_dim=shape.head_size_v,
                            key_bits=shape.widths[0], value_bits=shape.widths[1],
                            first_kv_head=shape.first_kv_head))
    where = (dict(num_threads=settings.num_threads or torch.get_num_threads()) if device.type == "cpu" else
             dict(device=f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"))
    return PagedCodec(Config(layers=layers, io_dtype=DTYPES[dtype], rotation_seed=settings.rotation_seed,
                             first_layer=first, page_size=32, **where))


def first_kv_head(num_kv_heads, total_kv_heads, rank, size) -> int:
    """Of a tensor-parallel rank; with more ranks than kv heads several have the same one."""
    return rank * num_kv_heads if total_kv_heads >= size else rank * total_kv_heads // size
