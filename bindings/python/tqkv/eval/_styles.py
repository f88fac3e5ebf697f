# SPDX-License-Identifier: Apache-2.0
"""Styles: the wording of retrieval prompts. What a style asks for is worded as the fact was, so that a model
without instruction tuning completes it."""
import random
import string
from typing import Callable, Dict, List, NamedTuple

from . import _words


class Style(NamedTuple):
    fact: str      # in the text: {key}, {code}
    ask: str       # at its end
    answer: str    # what must follow: {code}
    pair: str      # likewise for many short pairs of {key} and {value}
    ask_pair: str
    answer_pair: str
    link: str      # likewise for chains: {key} leads to {value}
    ask_link: str
    answer_link: str
    keys: Callable[[random.Random, int], List[str]]   # of facts
    codes: Callable[[random.Random, int], List[str]]
    short_keys: Callable[[random.Random, int], List[str]]   # of pairs and links
    short_values: Callable[[random.Random, int], List[str]]


def _different(make):
    def several(generator, count):
        chosen = {}
        while len(chosen) < count:
            chosen[make(generator)] = None
        return list(chosen)
    return several


def _letters(least, most):
    return _different(lambda g: "".join(g.choices(string.ascii_lowercase, k=g.randint(least, most))))


def _triples(generator, count):
    """Three letters; two of five begin alike."""
    begin = "".join(generator.choices(string.ascii_lowercase, k=2))
    near = [begin + end for end in generator.sample(string.ascii_lowercase, 26)]
    others = [key for key in _letters(3, 3)(generator, count) if not key.startswith(begin)]
    mixed = near[:2 * count // 5] + others
    chosen = mixed[:count]
    generator.shuffle(chosen)
    return chosen


_five = _different(lambda generator: str(generator.randrange(10000, 100000)))

STYLES: Dict[str, Style] = {
    "sentence": Style(" The access code of the {key} is {code}.", "\nThe access code of the {key} is",
                      " {code}", " Remember that the {key} holds {value}.", " Remember that the {key} holds",
                      " {value}", " Remember that the {key} leads to the {value}.",
                      " Remember that the {key} leads to the", " {value}", _words.keys, _five,
                      _words.keys, _five),
    "brackets": Style("\n[[{key} is {code}]]\n", "\n<<{key}?", "{code}", "{key}={value};", ";?{key}=",
                      "{value}", "{key}={value};", ";?{key}=", "{value}", _letters(4, 7), _five, _triples,
                      _letters(3, 3)),
}
