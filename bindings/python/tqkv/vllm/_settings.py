# SPDX-License-Identifier: Apache-2.0
"""Widths and what else a run of vLLM may choose: from TQKV_VLLM, kv_cache_dtype and additional_config."""
import os
import re
from typing import NamedTuple, Optional

from ..errors import InvalidArgument

VARIABLE = "TQKV_VLLM"
WIDTHS = (2, 3, 4, 5, 6, 8, 16)
RAW = (16, 16)


def enabled() -> bool:
    return os.environ.get(VARIABLE, "") not in ("", "0")


def dtype_widths(name: str):
    """(key bits, value bits) of a kv_cache_dtype or KVQuantMode name of vLLM's; None if it names none."""
    match = re.fullmatch(r"turboquant_(?:k(\d)v(\d)|(\d)bit)(?:_nc)?", name.lower())
    if not match:
        return None
    key, value, both = match.groups()
    return (int(both), int(both)) if both else (int(key), int(value))


class Settings(NamedTuple):
    """widths: of layers whose cache has no dtype of its own, None: as kv_cache_dtype says."""

    widths: Optional[tuple] = None
    rotation_seed: int = 0
    num_threads: int = 0

    @classmethod
    def from_environment(cls) -> "Settings":
        text = os.environ.get(VARIABLE, "")
        if text == "1":
            return cls()
        match = re.fullmatch(r"(\d+)\+(\d+)", text)
        if not match:
            raise InvalidArgument(f"{VARIABLE} = {text!r}: must be 0, 1, or widths of keys and values such "
                                  "as 4+3")
        return cls(_checked(VARIABLE, tuple(map(int, match.groups()))))

    @classmethod
    def of(cls, vllm_config) -> "Settings":
        """Of a run. Raises InvalidArgument for what contradicts or is unknown."""
        settings = cls.from_environment()
        own = dict((vllm_config.additional_config or {}).get("tqkv", {}))
        widths = [own.pop(name, None) for name in ("key_bits", "value_bits")]
        if any(width is not None for width in widths):
            if None in widths:
                raise InvalidArgument(f"additional_config['tqkv']: key_bits = {widths[0]}, value_bits = "
                                      f"{widths[1]}: give both or neither")
            settings = settings._replace(widths=_checked("additional_config['tqkv']", tuple(widths)))
        for name in ("rotation_seed", "num_threads"):
            if name in own:
                settings = settings._replace(**{name: own.pop(name)})
        if own:
            raise InvalidArgument(f"additional_config['tqkv']: unknown {', '.join(sorted(own))}")
        dtype = vllm_config.cache_config.cache_dtype
        named = dtype_widths(dtype)
        if named and settings.widths not in (None, named):
            raise InvalidArgument(f"kv_cache_dtype = {dtype}: says widths {named[0]}+{named[1]}, {VARIABLE} "
                                  f"or additional_config {settings.widths[0]}+{settings.widths[1]}")
        if not named and dtype not in ("auto", "float16", "bfloat16", "float32"):
            raise InvalidArgument(f"kv_cache_dtype = {dtype}: tqkv knows auto and turboquant_*")
        return settings

    def layer_widths(self, cache_dtype: str, quant_mode_name: str):
        """(key bits, value bits) of one layer: cache_dtype is the run's, the mode the layer's. A layer
        without a mode in a run that has one was skipped."""
        named = dtype_widths(quant_mode_name)
        if named:
            return named
        return RAW if dtype_widths(cache_dtype) or self.widths is None else self.widths


def _checked(name, widths):
    for width in widths:
        if width not in WIDTHS:
            raise InvalidArgument(f"{name}: {widths[0]}+{widths[1]}: widths must be among "
                                  f"{', '.join(map(str, WIDTHS))}")
    return widths
