# SPDX-License-Identifier: Apache-2.0
"""Saved sequences: FORMAT.md section 6, read with numpy and xxhash.

read_saved(bytes) checks what the text tells a reader to check, whatever its own cache would be, and gives
a Saved: fields of the header, records of the layers, the bytes of each run. decoded() and exact_copies()
turn the runs of a layer into numbers (state_side.py), with the codebooks that the file itself names. Raises
Corrupt or Incompatible with a text.
"""
import dataclasses
import struct

import numpy as np
import xxhash

from . import key_matrix
from .encode import KEY, VALUE, bf16_to_float
from .state_side import LATENT, Corrupt, Side, require
from .tile import TILE_TOKENS

MAGIC = bytes.fromhex("8954514b560d0a1a")
END_MARK = bytes.fromhex("54514b56454e440a")
VERSION = 1
PIECE = 65536
MAC_BITS, LEAST_MAC, MOST_MAC = 0x7F, 16, 64
MOST_HEADS, LAST_FIRST_HEAD = 65536, 65535
NOTICED = 3
NUMBER_TYPES = {1: "<f4", 2: "<f2", 3: "<u2"}


class Incompatible(Exception):
    pass


class Cursor:
    """Bytes front to back."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        require(count <= len(self.data) - self.at, f"cut short at byte {len(self.data)}")
        self.at += count
        return self.data[self.at - count:self.at]

    def numbers(self, kinds):
        return struct.unpack("<" + kinds, self.take(struct.calcsize("<" + kinds)))


@dataclasses.dataclass
class Layer:
    number: int        # in the whole model
    reads: int         # the layer whose tokens it reads
    first_head: int = 0
    num_heads: int = 0
    window: int = 0
    sides: tuple = ()
    centre_hashes: tuple = ()  # [kv head] (key, value)
    runs: dict = dataclasses.field(default_factory=dict)  # name: (first token, end, bytes)

    @property
    def stores(self):
        return self.reads == self.number


@dataclasses.dataclass
class Saved:
    first_layer: int
    exact_type: int
    first_token: int
    num_tokens: int
    exact_sinks: int
    exact_first: int
    rollback: int
    noticed: int
    identity: int
    layers: list
    mac: bytes = b""  # behind the end mark
    size: int = 0     # bytes of all, the MAC included

    @property
    def end(self):
        return self.first_token + self.num_tokens


# ---- the header

def read_side(cursor, kind):
    side = Side(*cursor.numbers("6IQ"), cursor.take(32), kind)
    side.latent, side.family = side.family // LATENT, side.family % LATENT
    return side


def read_layer(cursor, number, unused):
    """A record; `unused` collects what must be zero. Nothing is judged yet: the checksum comes first."""
    layer = Layer(number, *cursor.numbers("I"))
    if not layer.stores:
        unused.append(any(cursor.take(3 * 4 + 2 * 64)))
        return layer
    layer.first_head, layer.num_heads, layer.window = cursor.numbers("3I")
    require(layer.first_head <= LAST_FIRST_HEAD and layer.num_heads <= MOST_HEADS,
            f"layer {number}: {layer.num_heads} kv heads from {layer.first_head} on")
    layer.sides = tuple(read_side(cursor, kind) for kind in (KEY, VALUE))
    layer.centre_hashes = tuple(cursor.numbers("2Q") for _ in range(layer.num_heads))
    return layer


def check_header(saved, features_ignored):
    s = saved
    require(features_ignored in (0, *range(LEAST_MAC, MOST_MAC + 1)), f"features 0x{features_ignored:x}")
    require(s.noticed & ~NOTICED == 0, f"noticed 0x{s.noticed:x}")
    require(s.first_token >= 0 and s.num_tokens >= 0, "tokens before the first")
    require(s.exact_type in (0, 1, 2, 3), f"exact copies of type {s.exact_type}")
    f, e = s.first_token, s.end
    require(f <= s.exact_sinks <= s.exact_first <= e, "exact copies outside of the tokens")
    if s.exact_type == 0:
        require(s.exact_sinks == f and s.exact_first == (e if s.num_tokens else f), "copies without a type")
    else:
        require(s.exact_sinks < s.exact_first or s.exact_sinks == s.exact_first == f,
                "all copies, but not from the first token on")
        require(s.exact_sinks > f or s.exact_first < e, "a type without copies")
    for layer in s.layers:
        require(layer.reads <= layer.number, f"layer {layer.number} reads layer {layer.reads}")
        if layer.stores:
            require(layer.num_heads >= 1, f"layer {layer.number} has no kv heads")
            require(layer.sides[0].latent == layer.sides[1].latent <= 1, f"layer {layer.number}: families")
            for side in layer.sides:
                side.check()
        else:
            require(layer.reads >= s.first_layer and s.layers[layer.reads - s.first_layer].stores,
                    f"layer {layer.number} reads layer {layer.reads}, which has no tokens")
    if all(not layer.window for layer in s.layers if layer.stores):
        require(s.rollback == 0, "rollback without a sliding window")


def read_header(cursor):
    require(cursor.take(8) == MAGIC, "another magic")
    version, num_layers, required = cursor.numbers("IIQ")
    if version != VERSION or required:
        raise Incompatible(f"format version {version}, features 0x{required:x}")
    ignored, payload, first_layer, exact_type = cursor.numbers("QQII")
    fields = cursor.numbers("5qQQ")
    unused = []
    start = cursor.at
    layers = [read_layer(cursor, first_layer + i, unused) for i in range(num_layers)]
    records = cursor.data[start:cursor.at]
    digest = xxhash.xxh3_64_intdigest(cursor.data[:cursor.at])
    require(cursor.numbers("Q")[0] == digest, "header: checksum")
    require(not any(unused), "bytes that are zero are not")
    saved = Saved(first_layer, exact_type, *fields, layers)
    check_header(saved, ignored)
    identity = xxhash.xxh64_intdigest(struct.pack("<II", version, first_layer) + records)
    require(saved.identity == identity, "identity")
    return saved, payload, ignored & MAC_BITS


# ---- the payload

def tiles(first, end):
    return 0 if first >= end else (end - 1) // TILE_TOKENS - first // TILE_TOKENS + 1


def tile_num_bytes(layer):
    return sum(side.words_bytes + side.scales_bytes for side in layer.sides)


def runs_of(saved, layer):
    """(name, first token, end, bytes of a tile) in the order of section 6.1."""
    f, e = saved.first_token, saved.end
    first = f if not layer.window else max(f, min(e, e - layer.window - saved.rollback))
    yield "codes", first, e, tile_num_bytes(layer)
    size = {0: 0, 1: 4, 2: 2, 3: 2}[saved.exact_type]
    for name, side in zip(("key", "value"), layer.sides):
        yield f"{name} sinks", f, saved.exact_sinks, TILE_TOKENS * side.dim * size
        yield f"{name} window", saved.exact_first, e, TILE_TOKENS * side.dim * size


def read_payload(cursor, length):
    pieces = []
    for i in range((length + PIECE - 1) // PIECE):
        piece = cursor.take(min(PIECE, length - i * PIECE))
        require(cursor.numbers("Q")[0] == xxhash.xxh3_64_intdigest(piece, seed=i + 1), f"piece {i}: checksum")
        pieces.append(piece)
    return b"".join(pieces)


def read_saved(data, mac=None):
    """mac(bytes): the MAC that a file must have."""
    cursor = Cursor(bytes(data))
    saved, length, mac_bytes = read_header(cursor)
    stored = [layer for layer in saved.layers if layer.stores]
    expected = sum(layer.num_heads * tiles(a, b) * size for layer in stored
                   for _, a, b, size in runs_of(saved, layer))
    require(length == expected, f"a payload of {length} bytes, expected {expected}")
    payload = Cursor(read_payload(cursor, length))
    digest = xxhash.xxh3_128_intdigest(cursor.data[:cursor.at])
    require(cursor.numbers("2Q") == (digest & (2**64 - 1), digest >> 64), "digest")
    require(cursor.take(8) == END_MARK, "no end mark")
    front = cursor.data[:cursor.at]
    saved.mac = cursor.take(mac_bytes)
    require(mac is None or (saved.mac and saved.mac == mac(front)), "MAC")
    saved.size = cursor.at
    for layer in stored:
        for name, a, b, size in runs_of(saved, layer):
            if a < b:
                layer.runs[name] = a, b, payload.take(layer.num_heads * tiles(a, b) * size)
    for layer in stored:  # what a reader may rely on
        for head in range(layer.num_heads):
            codes_of(layer, head)
            exact_copies(saved, layer, head)
    return saved


# ---- numbers

def tokens_of(rows, first, end, what):
    """rows [tiles * 32, ..] of a run; those outside of it must be zero."""
    lead = first % TILE_TOKENS
    count = end - first
    require(not rows[:lead].any() and not rows[lead + count:].any(), f"{what}: bits of no token")
    return rows[lead:lead + count]


def tiles_of(layer, name, head):
    first, end, data = layer.runs[name]
    count = tiles(first, end)
    array = np.frombuffer(data, np.uint8).reshape(layer.num_heads, count, -1)
    return first, end, array[head]


def codes_of(layer, head):
    """(first token, [(rows, scales or None) of each side], a row a token): see Side."""
    if "codes" not in layer.runs:
        return 0, None
    first, end, array = tiles_of(layer, "codes", head)
    at, parts = 0, []
    for count in [s.words_bytes for s in layer.sides] + [s.scales_bytes for s in layer.sides]:
        parts.append(np.ascontiguousarray(array[:, at:at + count]))
        at += count
    result = []
    for side, words, bits in zip(layer.sides, parts[:2], parts[2:]):
        scales = side.scales(bits)
        result.append((tokens_of(side.rows(words), first, end, "codes"),
                       None if scales is None else tokens_of(scales, first, end, "scales")))
    return first, result


def decoded(saved, layer, head, centres=(None, None), levels=(None, None), matrix=None):
    """(first token, keys [tokens, d], values [tokens, d]), float32, from the codes alone; of a latent layer
    the rest of the keys, and the latents. centres, of this kv head and its sides, and levels, of sides that
    have the caller's (of keys in bands: the order), and this kv head's key matrix: their hashes must be the
    file's."""
    first, sides = codes_of(layer, head)
    if sides is None:
        return saved.end, *(np.zeros((0, side.dim), np.float32) for side in layer.sides)
    result = []
    for side, centre, own, (rows, scales) in zip(layer.sides, centres, levels, sides):
        none = not side.rotation or centre is None or not np.any(centre)
        centre = None if none else np.asarray(centre, "<f4") + 0
        own_hash = 0 if centre is None else xxhash.xxh64_intdigest(centre.tobytes())
        if side.banded:
            own = tuple(range(side.dim)) if own is None else tuple(own)
            own_hash = xxhash.xxh64_intdigest(np.array(own, "<u4").tobytes(), seed=own_hash)
        turned = matrix is not None and side.kind == KEY
        if turned:
            own_hash = key_matrix.side_hash(matrix, own_hash)
            centre = None if centre is None else key_matrix.turn(matrix, centre)[0]
        require(layer.centre_hashes[head][side.kind] == own_hash, "centre, order of bands, or key matrix")
        x = side.decoded(rows, scales, (layer.number, layer.first_head + head), centre, own)
        result.append(key_matrix.product(key_matrix.inverse(matrix), x) if turned else x)
    return first, *result


def exact_copies(saved, layer, head):
    """{token: (key, value)}, float32."""
    copies = {}
    for run in ("sinks", "window"):
        if f"key {run}" not in layer.runs:
            continue
        rows = []
        for name, side in zip(("key", "value"), layer.sides):
            first, end, array = tiles_of(layer, f"{name} {run}", head)
            numbers = np.ascontiguousarray(array).view(NUMBER_TYPES[saved.exact_type]).reshape(-1, side.dim)
            numbers = tokens_of(numbers, first, end, "exact copies")
            wide = bf16_to_float(numbers) if saved.exact_type == 3 else numbers.astype(np.float32)
            require(np.isfinite(wide).all(), "an exact copy is not finite")
            rows.append(wide)
        copies.update((first + i, pair) for i, pair in enumerate(zip(*rows)))
    return copies
