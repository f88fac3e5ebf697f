# SPDX-License-Identifier: Apache-2.0
"""Named choices of widths and exact copies, for TurboCache(model, "name")."""
from typing import Dict, NamedTuple

from ..errors import InvalidArgument


class Preset(NamedTuple):
    """What a name stands for; every field can be given to TurboCache itself, and is then taken instead."""

    key_bits: int
    value_bits: int
    window_tokens: int  # last tokens, held exactly beside their codes
    sink_tokens: int    # first tokens likewise
    what: str


PRESETS: Dict[str, Preset] = {
    "turboquant-s3": Preset(4, 4, 0, 0, "4 bits in all layers; the default. Skip layers as calibrate says"),
    "turboquant-s1": Preset(6, 6, 0, 0, "6 bits: nearly lossless"),
    "turboquant-s1-retrieval": Preset(8, 6, 128, 4, "for retrieval from long contexts"),
    "turboquant-s4": Preset(3, 2, 128, 0, "3-bit keys, 2-bit values, the newest 128 exact"),
    "small": Preset(3, 3, 128, 4, "3 bits, the newest and first tokens exact"),
    "raw": Preset(16, 16, 0, 0, "16 bits as they are: DynamicCache's results, in pages"),
}

# Names that other projects gave to what stands above.
ALIASES: Dict[str, str] = {"retrieval-safe": "turboquant-s1-retrieval"}


def preset(name: str) -> Preset:
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise InvalidArgument(f"preset = {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
