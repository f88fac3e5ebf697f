# SPDX-License-Identifier: Apache-2.0
"""Saved sequences: FORMAT.md section 6, read with numpy and xxhash.

read_saved(bytes) checks what the text tells a reader to check, whatever its own cache would be, and gives
a Saved: fields of the header, records of the layers, the bytes of each run. decoded() and exact_copies()
turn the runs of a layer into numbers, by sections 3 and 4 as encode.py, rotation.py and tile.py read them,
and with the codebooks that the file itself names. Raises Corrupt or Incompatible with a text.
"""
import dataclasses
import struct

import numpy as np
import xxhash

from . import rotation as rot
from . import trellis
from .encode import KEY, VALUE, bf16_to_float, stored_dim
from .grouped import decode_grouped, unpack_rows
from .rows import LEVELS, PROD, RowSide, decode_rows
from .tile import RAW, TILE_TOKENS, scale_num_bytes, side_num_bytes, unpack_side

MAGIC = bytes.fromhex("8954514b560d0a1a")
END_MARK = bytes.fromhex("54514b56454e440a")
VERSION = 1
PIECE = 65536
MAC_BITS, LEAST_MAC, MOST_MAC = 0x7F, 16, 64
MOST_HEADS, LAST_FIRST_HEAD = 65536, 65535
TRELLIS = 5
SCALAR_BITS = (1, 2, 3, 4, 5, 6, 8)
HEAD_DIMS = (*range(8, 257, 4), 512, 576)
NOTICED = 3
LATENT = 16  # added to the family of both sides of a latent layer
NUMBER_TYPES = {1: "<f4", 2: "<f2", 3: "<u2"}


class Corrupt(Exception):
    pass


class Incompatible(Exception):
    pass


def require(right, text):
    if not right:
        raise Corrupt(text)


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
class Side:
    dim: int
    family: int
    bits: int
    raw_type: int
    rotation: int
    variant: int  # grouped: group size; prod: sketch
    seed: int
    magnitudes: bytes
    kind: int
    latent: int = 0  # 1: of a latent layer

    @property
    def raw(self):
        return self.bits == RAW

    @property
    def grouped(self):
        return self.family == 3

    def check(self):
        require(self.dim in HEAD_DIMS, f"dim {self.dim}")
        if self.raw:
            require((self.family, self.rotation, self.variant, self.seed) == (0, 0, 0, 0) and
                    self.raw_type in (1, 2) and not any(self.magnitudes),
                    "a raw side says more than its type")
            return
        if self.grouped:
            require(self.bits in (2, 3, 4, 8) and self.variant in (16, 32, 64) and
                    (self.raw_type, self.rotation, self.seed) == (0, 0, 0) and not any(self.magnitudes),
                    "a grouped side says more than bits and group")
            return
        if self.family == PROD:
            require(self.bits in (2, 3, 4) and self.variant in (1, 2) and self.raw_type == 0 and
                    self.rotation in (1, 2) and not any(self.magnitudes[1 << (self.bits - 2):28]),
                    "a prod side")
            return
        require(self.variant == 0, "a group size without groups")
        if self.family == LEVELS:  # the caller's, of which the file has the hash
            require(self.bits in SCALAR_BITS and self.raw_type == 0 and self.rotation in (1, 2) and
                    not any(self.magnitudes[8:]), "a levels side")
            return
        widths = (2, 3, 4) if self.family == TRELLIS else SCALAR_BITS
        require(self.family in (1, TRELLIS) and self.bits in widths and self.raw_type == 0 and
                self.rotation in (1, 2), f"family {self.family}, {self.bits} bits, rotation {self.rotation}")
        count = 0 if self.bits == 8 else 1 << (self.bits - (self.family == 1))
        require(not any(self.magnitudes[count:]), "magnitudes behind the last")
        rising = list(self.magnitudes[:count])
        require(all(a < b for a, b in zip(rising, rising[1:])) and all(m <= 127 for m in rising),
                "magnitudes do not rise")

    def levels(self, codes):
        """L(c), float32."""
        if self.family == TRELLIS:
            grid = np.frombuffer(self.magnitudes, np.uint8)[:1 << self.bits].astype(np.float32)
            grid = grid + np.float32(0.5 if self.bits >= 3 else 0)
            return np.concatenate([-grid[::-1], grid])[trellis.indexes(codes, self.kind)]
        if self.bits == 8:
            return codes.view(np.int8).astype(np.float32)
        half = 1 << (self.bits - 1)
        grid = np.frombuffer(self.magnitudes, np.uint8)[:half].astype(np.float32)
        grid = grid + np.float32(0.5 if self.bits >= 4 else 0)
        return np.where(codes >= half, np.float32(-1), np.float32(1)) * grid[codes & (half - 1)]


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


def words_bytes(side):
    return side_num_bytes(side.dim, side.bits, side.variant if side.grouped else 0)


def scales_bytes(side):
    if side.family == PROD:
        return 128
    return scale_num_bytes(side.dim, side.bits, side.variant if side.grouped else 0)


def tile_num_bytes(layer):
    return sum(words_bytes(s) + scales_bytes(s) for s in layer.sides)


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
    """(first token, [(codes or 16-bit numbers [tokens, D or d], scales [tokens] or None) of each side])."""
    if "codes" not in layer.runs:
        return 0, None
    first, end, array = tiles_of(layer, "codes", head)
    at, sides, scales = 0, [], []
    for side in layer.sides:
        count = words_bytes(side)
        part = np.ascontiguousarray(array[:, at:at + count])
        at += count
        if side.raw:
            numbers = part.view("<u2").reshape(-1, side.dim)
            wide = numbers.view("<f2") if side.raw_type == 1 else bf16_to_float(numbers)
            require(np.isfinite(wide).all(), "a raw value is not finite")
            sides.append(tokens_of(numbers, first, end, "codes"))
        elif side.family == PROD:
            rows = part.view("<u4").reshape(len(part) * TILE_TOKENS, -1)
            sides.append(tokens_of(rows, first, end, "codes"))
        elif side.grouped:
            codes, behind = unpack_rows(part.view("<u4").reshape(len(part) * TILE_TOKENS, -1), side.dim,
                                        side.bits)
            require(not behind.any(), "bits behind a row's codes")
            sides.append(tokens_of(codes, first, end, "codes"))
        elif side.latent or side.bits == 1 or side.family == LEVELS:
            codes, _ = unpack_rows(part.view("<u4").reshape(len(part) * TILE_TOKENS, -1),
                                   stored_dim(side.dim), side.bits)
            require(side.bits != 8 or side.family == LEVELS or not (codes == 0x80).any(),
                    "a level of -128")
            sides.append(tokens_of(codes, first, end, "codes"))
        else:
            unpack = trellis.unpack if side.family == TRELLIS else unpack_side
            rows = [unpack(tile, stored_dim(side.dim), side.bits, side.kind) for tile in part.view("<u4")]
            codes = tokens_of(np.concatenate(rows), first, end, "codes")
            require(side.bits != 8 or not (codes == 0x80).any(), "a level of -128")
            sides.append(codes)
    for side in layer.sides:
        if side.raw:
            scales.append(None)
            continue
        count = scales_bytes(side)
        bits = np.ascontiguousarray(array[:, at:at + count]).view("<u2").reshape(-1)
        at += count
        if side.grouped:
            pairs = bits.reshape(len(array) * TILE_TOKENS, -1, 2)
            require(not (pairs[..., 0] & 0x8000).any() and np.isfinite(pairs.view("<f2")).all(),
                    "a scale or a zero")
            scales.append(tokens_of(pairs, first, end, "scales"))
            continue
        if side.family == PROD:
            bits = bits.reshape(-1, 2)
        require(not (bits & 0x8000).any() and np.isfinite(bf16_to_float(bits)).all(), "a scale")
        scales.append(tokens_of(bits, first, end, "scales"))
    return first, list(zip(sides, scales))


def own_levels(side, levels):
    levels = np.asarray(levels, "<f4") + np.float32(0)
    require(len(levels) == 1 << side.bits and
            side.magnitudes[:8] == struct.pack("<Q", xxhash.xxh64_intdigest(levels.tobytes())), "levels")
    return levels


def decoded(saved, layer, head, centres=(None, None), levels=(None, None)):
    """(first token, keys [tokens, d], values [tokens, d]), float32, from the codes alone; of a latent layer
    the rest of the keys, and the latents. centres, of this kv head and its sides, and levels, of sides that
    have the caller's: their hashes must be the file's."""
    first, sides = codes_of(layer, head)
    if sides is None:
        return saved.end, *(np.zeros((0, side.dim), np.float32) for side in layer.sides)
    result = []
    for side, centre, (codes, scales) in zip(layer.sides, centres, sides):
        wanted = layer.centre_hashes[head][side.kind]
        none = not side.rotation or centre is None or not np.any(centre)
        centre = None if none else np.asarray(centre, "<f4") + 0
        require(wanted == (0 if centre is None else xxhash.xxh64_intdigest(centre.tobytes())), "centre")
        if side.raw:
            wide = codes.view("<f2").astype(np.float32) if side.raw_type == 1 else bf16_to_float(codes)
            result.append(wide)
            continue
        if side.grouped:
            result.append(decode_grouped(codes, scales, side.variant))
            continue
        if side.family == PROD:
            factor = np.frombuffer(side.magnitudes[28:], "<f4")[0]
            own = RowSide(side.dim, side.bits, family=PROD, rotation=side.rotation, seed=side.seed,
                          sketch=side.variant, factor=float(factor), layer=layer.number,
                          kv_head=layer.first_head + head,
                          centre=None if centre is None else tuple(float(c) for c in centre))
            result.append(decode_rows(np.ascontiguousarray(codes), np.ascontiguousarray(scales), own))
            continue
        base = rot.stream_base(side.seed, layer.number, layer.first_head + head, side.kind)
        level = side.levels(codes) if side.family != LEVELS else own_levels(side, levels[side.kind])[codes]
        y = bf16_to_float(scales)[:, None] * level
        if side.rotation == rot.HADAMARD:
            x = rot.unrotate_hadamard(y, rot.sign_bits(base, y.shape[1]))
        else:
            x = rot.unrotate_dense(y, rot.dense_rotation(base, y.shape[1]))
        x = x[:, :side.dim]
        result.append(x if centre is None else x + centre)
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
