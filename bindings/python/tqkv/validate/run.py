# SPDX-License-Identifier: Apache-2.0
"""Runs the sections one after the other."""

import time
import zlib

import numpy as np

from . import accounting, audit, codes, decode, retrieval, rotations, theorems, vectors
from .device import Device
from .library import Library
from .rows import Table

SECTIONS = (
    ("theorems", "Theorems 1 to 3", theorems.run),
    ("retrieval", "Recall and needles", retrieval.run),
    ("codes", "Codes", codes.run),
    ("vectors", "Vectors on their own", vectors.run),
    ("rotations", "Rotations", rotations.run),
    ("decode", "Attention on codes", decode.run),
    ("accounting", "Bytes", accounting.run),
    ("audit", "S4's audit, line by line", audit.run),
)


class Context:
    """What a section works with: the table, the codec under test, sizes, random numbers, progress."""
    def __init__(self, codec, quick, seed, tell, device=None):
        self.codec, self.quick, self.seed, self._tell = codec, quick, seed, tell
        self.device = device  # device.Device, or None: rows of a GPU are skipped
        self.table = Table()
        self.done, self.of = 0, 0  # sections

    def rng(self, name):
        """Random numbers of one part, whatever ran before it."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def size(self, quick, full):
        return int(quick if self.quick else full)

    def progress(self, what):
        self._tell(self.done, self.of, self.table.section, what)


def validate(sections=None, quick=False, seed=0, codec=None, tell=lambda done, of, section, what: None,
             device=None):
    """-> (rows, {section: seconds}).

    sections  names out of SECTIONS; None: all
    quick     smaller samples: half a minute on two cores instead of minutes
    seed      of all random numbers; the same seed gives the same table, timings left aside
    device    "cuda" or "cuda:N": attention and the rotation there too (needs torch); None: not
    codec     what is measured, with the methods of library.Library; None: the library
    tell      called as work goes on with the number of finished sections, of all, the title of the one that
              runs, and what it does
    """
    chosen = [section for section in SECTIONS if sections is None or section[0] in sections]
    context, seconds = Context(codec or Library(), quick, seed, tell, device and Device(device)), {}
    context.of = len(chosen)
    for context.done, (name, title, run) in enumerate(chosen):
        start = time.perf_counter()
        context.table.section = title
        run(context)
        seconds[name] = time.perf_counter() - start
    return context.table.rows, seconds
