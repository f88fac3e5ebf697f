# SPDX-License-Identifier: Apache-2.0
"""Profiles: what a TurboCache is made with, written as text.

    retrieval-safe                a preset of tqkv.transformers
    b3                            3 bits for keys and values, nothing exact
    k3v2+window=128+sinks=4       keys and values apart; exact copies of the last and first tokens
    b2+centres+skip=auto          centres, and layers kept at 16 bits, as calibrate says
    b2+skip=0,-1                  layers kept at 16 bits by number
"""
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..errors import InvalidArgument
from ..transformers import PRESETS, TurboCache
from ..transformers._presets import ALIASES
from . import _words
from ._models import Subject
from ._runs import Variant, turbo

# S1's promise: retrieval loses two points at most.
GATED, GATE_POINTS = "retrieval-safe", 2.0
NAMED = ("retrieval-safe", "turboquant-s1", "turboquant-s3", "turboquant-s4", "small")
BITS = ("b8", "b6", "b4", "b3", "b2")
OPTIONS = ("", "+window=128", "+sinks=4", "+centres", "+skip=0,-1")


class Profile(NamedTuple):
    name: str
    preset: str
    fields: Tuple[Tuple[str, int], ...]
    skip: Optional[Tuple[int, ...]]  # None: as calibrated
    centres: bool


def parse(text: str) -> Profile:
    head, *options = text.split("+")
    widths = re.fullmatch(r"b(\d+)|k(\d+)v(\d+)", head)
    fields: Dict[str, int] = {}
    if widths:
        both, key, value = widths.groups()
        fields = {"key_bits": int(both or key), "value_bits": int(both or value), "window_tokens": 0,
                  "sink_tokens": 0}
    elif head not in PRESETS and head not in ALIASES:
        raise InvalidArgument(f"profile = {text!r}: {head!r} is neither bN, kNvN nor one of "
                              f"{', '.join((*PRESETS, *ALIASES))}")
    skip: Optional[Tuple[int, ...]] = ()
    centres = False
    for option in options:
        key, _, value = option.partition("=")
        if key in ("window", "sinks") and value.isdigit():
            fields["window_tokens" if key == "window" else "sink_tokens"] = int(value)
        elif option == "centres":
            centres = True
        elif option == "skip=auto":
            skip = None
        elif key == "skip" and re.fullmatch(r"-?\d+(,-?\d+)*", value):
            skip = tuple(map(int, value.split(",")))
        else:
            raise InvalidArgument(f"profile = {text!r}: {option!r} is none of window=N, sinks=N, centres, "
                                  "skip=auto, skip=N,N")
    return Profile(text, "turboquant-s3" if widths else head, tuple(fields.items()), skip, centres)


def calibrate(subject: Subject, tokens: int = 512):
    """On sentences that no prompt holds: of another seed."""
    import random
    source, text = _words.sentences(random.Random("calibration")), ""
    while subject.ids(text).shape[1] < tokens:
        text += next(source) + next(source)
    subject.model.set_attn_implementation(subject.attention)
    return TurboCache.calibrate(subject.model, subject.ids(text, special=True)[:, :tokens])


def options(profile: Profile, calibration: Any) -> Dict[str, Any]:
    """Arguments of TurboCache beside the preset."""
    chosen: Dict[str, Any] = dict(profile.fields)
    skip = calibration.skip_layers if profile.skip is None else profile.skip
    if profile.centres:
        chosen["calibration"] = calibration._replace(skip_layers=list(skip))
    elif skip:
        chosen["skip_layers"] = skip
    return chosen


def variant(profile: Profile, calibration: Any) -> Variant:
    chosen = options(profile, calibration)
    return Variant(profile.name,
                   lambda subject, prefilled: turbo(subject, prefilled, profile.preset, **chosen), True)


def grid() -> List[str]:
    return [bits + option for bits in BITS for option in OPTIONS]
