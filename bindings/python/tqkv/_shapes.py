# SPDX-License-Identifier: Apache-2.0
"""What arrays of a layer are compared with, for caches and codecs: shapes of k, v and centres."""
from typing import NamedTuple, Tuple

from . import _abi, _ffi
from .buffers import as_buffer, dense, rows


class Shape(NamedTuple):
    """Of one layer."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    io_dtype: int
    device: Tuple[int, int]  # type, id

    @property
    def exists(self):
        """False for a layer that there is not: the library refuses it, with its own text."""
        return self.num_q_heads > 0


class Shapes:
    """Of all layers of a resolved configuration."""

    def __init__(self, resolved, layers):
        none = Shape(0, 0, 0, 0, resolved.io_dtype, (resolved.device_type, resolved.device_id))
        self._all = tuple(
            none._replace(num_q_heads=layer.num_q_heads, num_kv_heads=layer.num_kv_heads,
                          head_dim=layer.head_dim, value_dim=layer.value_dim) for layer in layers) + (none, )

    def __getitem__(self, layer):
        return self._all[layer if 0 <= layer < len(self._all) else -1]

    @property
    def device(self):
        return self._all[-1].device


def tensor_layout(shape, k, v, tokens, meaning="new tokens", writable=False):
    """tq_tensor_layout of buffers of k and v, either None, with `tokens` rows."""
    layout = _abi.TensorLayout()
    must = {"dtype": shape.io_dtype, "device": shape.device, "writable": writable}
    if shape.exists and k is not None:
        layout.key_token_stride, layout.key_head_stride = rows(
            k, "k", (tokens, shape.num_kv_heads, shape.head_dim), f"[{meaning}][num_kv_heads][head_dim]",
            **must)
    if shape.exists and v is not None:
        layout.value_token_stride, layout.value_head_stride = rows(
            v, "v", (tokens, shape.num_kv_heads, shape.value_dim), f"[{meaning}][num_kv_heads][value_dim]",
            **must)
    return layout


def matrix_buffer(matrix, num_kv_heads, dim):
    """Key matrices of a layer; of none (0 heads) the library says so."""
    buffer = as_buffer(matrix, name="matrix")
    if num_kv_heads == 0:
        return buffer
    dense(buffer, "matrix", (num_kv_heads, dim, dim), "[num_kv_heads][head_dim][head_dim]", dtype=1,
          device=(_ffi.CPU, 0))
    return buffer


def centre_buffers(shape, key_centre, value_centre):
    """Buffers of both centres, None for none; to be held until the library has copied them."""
    centres = {"key_centre": key_centre, "value_centre": value_centre}
    buffers = {name: None if centre is None else as_buffer(centre, name=name)
               for name, centre in centres.items()}
    for (name, buffer), dim in zip(buffers.items(), (shape.head_dim, shape.value_dim)):
        if buffer is not None and shape.exists:
            dense(buffer, name, (shape.num_kv_heads, dim), "[num_kv_heads][dim]", dtype=1,
                  device=(_ffi.CPU, 0))
    return list(buffers.values())
