# SPDX-License-Identifier: Apache-2.0
"""state.safetensors: parts of sequences and saved sequences (FORMAT.md section 6), byte for byte, written
from the format text with the oracle's codes. One plan of all tokens, without queries, has made the sequence.

The writer shares nothing with the library: state_test.cpp wants the same bytes, and loads them."""
import json
import struct

import numpy as np
import xxhash
from reference import tqkv_reference as ref
from reference import rows as by_rows
from reference import bands, key_matrix, trellis
from encode_cases import gaussian, key_matrices

SEED = 0x1234567890ABCDEF
MAGIC, MARK = b"\x89TQKV\r\n\x1a", b"TQKVEND\n"
PIECE = 65536
TILE = 32
F32 = 1
SCALAR, TRELLIS, BANDS, TRELLIS_BANDS = 1, 5, 7, 8
DEFAULTS = {
    "first_layer": 0, "first_kv_head": 0, "num_kv_heads": 1, "head_dim": 32, "value_dim": 32, "tokens": 0,
    # key bits, value bits, sliding window of each layer; and the group size where its values are grouped
    "layers": [[2, 2, 0]],
    "window_tokens": 0, "rollback_tokens": 0, "sink_tokens": 0,
    "family": SCALAR,  # of all sides but raw and grouped ones
    "bands": [],       # widths of the keys' bands in all layers, whose key bits then are 0
    "centres": False,  # of the keys of all layers
    "matrices": False,  # of the keys of the first layer
    "latent": False,
    "value_levels": None,  # of the values of all layers, in place of scalar codes
    "parts": []        # first token, tokens, first layer, layers, first kv head, kv heads
}
CASES = {
    "empty": {},
    "three_tokens": {"tokens": 3},
    "ranks": {
        "first_layer": 3, "first_kv_head": 2, "num_kv_heads": 2, "head_dim": 64, "tokens": 77,
        "layers": [[4, 3, 0], [16, 5, 0]], "centres": True,
        "parts": [[0, 77, 3, 2, 2, 2], [30, 40, 4, 1, 3, 1], [64, 13, 3, 1, 2, 1]]
    },
    "exact": {
        "tokens": 77, "layers": [[3, 8, 0]], "window_tokens": 10, "rollback_tokens": 3, "sink_tokens": 5,
        "parts": [[0, 77, 0, 1, 0, 1], [2, 64, 0, 1, 0, 1], [70, 7, 0, 1, 0, 1], [10, 20, 0, 1, 0, 1]]
    },
    "all_exact": {"tokens": 12, "window_tokens": 20, "sink_tokens": 1},
    "sliding": {
        "tokens": 100, "layers": [[2, 2, 0], [2, 3, 33]], "rollback_tokens": 4,
        "parts": [[0, 100, 1, 1, 0, 1], [0, 64, 0, 2, 0, 1], [64, 36, 0, 2, 0, 1]]
    },
    "padded": {"head_dim": 80, "value_dim": 112, "tokens": 33, "layers": [[6, 4, 0]]},
    "grouped": {
        "head_dim": 80, "value_dim": 80, "tokens": 41, "layers": [[4, 3, 0, 64], [3, 8, 20, 16]],
        "parts": [[0, 41, 0, 2, 0, 1], [5, 30, 0, 1, 0, 1]]
    },
    # of latent layers head_dim and key bits are the rest's, value_dim and value bits the latent's
    "latent": {
        "head_dim": 32, "value_dim": 64, "tokens": 70, "layers": [[8, 4, 0], [16, 8, 0]], "latent": True,
        "window_tokens": 9, "sink_tokens": 2, "centres": True,
        "parts": [[0, 70, 0, 2, 0, 1], [33, 20, 1, 1, 0, 1]]
    },
    "trellis": {
        "family": TRELLIS, "head_dim": 96, "value_dim": 64, "tokens": 75, "centres": True,
        "layers": [[3, 2, 0], [4, 4, 40]], "rollback_tokens": 2,
        "parts": [[0, 75, 0, 2, 0, 1], [7, 50, 0, 1, 0, 1], [40, 35, 1, 1, 0, 1]]
    },
    "bands": {
        "head_dim": 80, "value_dim": 64, "tokens": 75, "num_kv_heads": 2, "centres": True, "bands": [5, 2, 1],
        "layers": [[0, 2, 0], [0, 4, 40]], "rollback_tokens": 2, "first_kv_head": 1,
        "parts": [[0, 75, 0, 2, 1, 2], [7, 50, 0, 1, 2, 1], [40, 35, 1, 1, 1, 1]]
    },
    "trellis_bands": {"family": TRELLIS, "head_dim": 96, "tokens": 40, "bands": [4, 3, 1],
                      "layers": [[0, 3, 0]]},
    # scalar keys of one bit beside levels of the caller's
    "levels": {
        "head_dim": 32, "value_dim": 72, "tokens": 70, "layers": [[1, 3, 0], [1, 3, 40]],
        "value_levels": {"levels": (-0.3, -0.2, -0.11, 0.0, 0.05, 0.12, 0.19, 0.28),
                         "boundaries": (-0.25, -0.15, -0.06, 0.0, 0.08, 0.16, 0.22), "unit": 0.75},
        "parts": [[0, 70, 0, 2, 0, 1], [33, 20, 1, 1, 0, 1]]
    },
    "pieces": {"head_dim": 64, "value_dim": 64, "tokens": 280, "layers": [[16, 16, 0]]},
    # each head has a matrix of its own: a part of one head says what that head's would
    "matrices": {
        "head_dim": 40, "value_dim": 32, "tokens": 70, "num_kv_heads": 2, "centres": True, "matrices": True,
        "layers": [[3, 2, 0], [4, 3, 0]], "first_layer": 1, "first_kv_head": 3, "window_tokens": 9,
        "parts": [[0, 70, 1, 2, 3, 2], [5, 50, 1, 1, 3, 1], [5, 50, 1, 1, 4, 1]]
    },
    "matrices_of_bands": {
        "family": TRELLIS, "head_dim": 64, "tokens": 35, "bands": [4, 1], "matrices": True,
        "layers": [[0, 2, 0]]
    },
}


def side_config(p, layer, kv_head, kind, centre):
    bits = p["layers"][layer - p["first_layer"]][0 if kind == ref.KEY else 1]
    side = trellis.TrellisSide if p["family"] == TRELLIS else ref.SideConfig
    return side(head_dim=p["head_dim"] if kind == ref.KEY else p["value_dim"],
                bits=bits, kind=kind, seed=SEED, layer=layer, kv_head=kv_head,
                centre=None if centre is None else tuple(float(c) for c in centre))


def band_order(p, kv_head):
    return tuple((7 + kv_head + 31 * i) % p["head_dim"] for i in range(p["head_dim"]))


def band_tile(codes, scales, own, inside):
    """Words and scales of a tile's keys in bands, as rows, which they are not."""
    full = np.zeros((2, len(codes), TILE, 32), np.uint16)
    for i, (band, scale) in enumerate(zip(codes, scales)):
        full[0, i, :len(own)] = band[own] * inside[:, None]
        full[1, i, :len(own), 0] = scale[own] * inside
    return full[0].astype(np.uint8), full[1, :, :, 0].copy().reshape(TILE, -1)


class Sequence:
    """What a sequence holds; layers and kv heads by their numbers in the model."""

    def __init__(self, number, p):
        self.p = p
        self.layers = range(p["first_layer"], p["first_layer"] + len(p["layers"]))
        self.heads = range(p["first_kv_head"], p["first_kv_head"] + p["num_kv_heads"])
        self.tensors, self.centre, self.matrices = {}, {}, {}
        for i, layer in enumerate(self.layers):
            key_dim = p["head_dim"] + (p["value_dim"] if p["latent"] else 0)
            for name, dim in (("k", key_dim), ("v", p["value_dim"])):
                if p["latent"] and name == "v":
                    continue
                shape = p["tokens"], p["num_kv_heads"], dim
                rows = gaussian(1000 * number + 10 * i + (name == "v"), int(np.prod(shape)))
                self.tensors[f"layer{i}.{name}"] = rows.reshape(shape).astype(np.float32)
            if p["centres"]:
                shape = p["num_kv_heads"], key_dim
                centre = gaussian(1000 * number + 10 * i + 5, int(np.prod(shape))).reshape(shape)
                self.tensors[f"layer{i}.key_centre"] = centre.astype(np.float32)
                self.centre[layer] = centre.astype(np.float32)
        if p["matrices"]:
            found = key_matrices(1000 * number + 6, p["num_kv_heads"], p["head_dim"])
            self.tensors["layer0.key_matrix"] = self.matrices[p["first_layer"]] = found
        tokens, behind = p["tokens"], p["window_tokens"] + p["rollback_tokens"]
        has_exact = p["window_tokens"] + p["sink_tokens"] > 0
        self.sinks = min(p["sink_tokens"], tokens)
        self.exact = tokens if p["window_tokens"] == 0 else max(0, tokens - behind)
        if not has_exact:
            self.sinks, self.exact = 0, tokens

    def group(self, layer, kind):
        return (*self.p["layers"][layer - self.p["first_layer"]], 0)[3] if kind == ref.VALUE else 0

    def has_levels(self, kind):
        return kind == ref.VALUE and self.p["value_levels"] is not None

    def window(self, layer):
        return self.p["layers"][layer - self.p["first_layer"]][2]

    def rows(self, layer, kv_head, kind):
        latent = self.p["latent"]
        name = f"layer{layer - self.p['first_layer']}.{'k' if latent or kind == ref.KEY else 'v'}"
        whole = self.tensors[name][:, kv_head - self.p["first_kv_head"]]
        return np.ascontiguousarray(self.of_side(whole, kind) if latent else whole)

    def of_side(self, whole, kind):
        """A latent layer's side of the coordinates of a key."""
        cut = self.p["value_dim"]
        return whole[..., cut:] if kind == ref.KEY else whole[..., :cut]

    def matrix(self, layer, kv_head, kind):
        own = self.matrices.get(layer)
        return None if own is None or kind == ref.VALUE else own[kv_head - self.p["first_kv_head"]]

    def coded_rows(self, layer, kv_head, kind):
        """(rows, centre) as they are coded."""
        rows, centre = self.rows(layer, kv_head, kind), self.side_centre(layer, kv_head, kind)
        matrix = self.matrix(layer, kv_head, kind)
        if matrix is None:
            return rows, centre
        return key_matrix.turn(matrix, rows)[0], (None if centre is None else
                                                  key_matrix.turn(matrix, centre)[0])

    def side_centre(self, layer, kv_head, kind):
        """As it was given."""
        if layer not in self.centre or (kind == ref.VALUE and not self.p["latent"]):
            return None
        centre = self.centre[layer][kv_head - self.p["first_kv_head"]]
        return self.of_side(centre, kind) if self.p["latent"] else centre

    def config(self, layer, kv_head, kind):
        return side_config(self.p, layer, kv_head, kind, self.coded_rows(layer, kv_head, kind)[1])

    def bands(self, layer, kv_head):
        centre = self.coded_rows(layer, kv_head, ref.KEY)[1]
        return bands.Bands(self.p["head_dim"], tuple(self.p["bands"]), band_order(self.p, kv_head),
                           self.p["family"] == TRELLIS, seed=SEED, layer=layer, kv_head=kv_head,
                           centre=None if centre is None else tuple(float(c) for c in centre))

    def in_bands(self, kind):
        return kind == ref.KEY and bool(self.p["bands"])

    # ---- section 6.1

    def numbers(self, first, count):
        """exact_type, first_token, num_tokens, exact_sinks, exact_first, rollback of a part."""
        end = first + count
        sinks, exact = (min(end, max(first, token)) for token in (self.sinks, self.exact))
        if exact <= sinks:
            sinks = exact = first
        rollback = 0
        windows = [layer[2] for layer in self.p["layers"] if layer[2] > 0]
        if windows:
            rollback = self.p["rollback_tokens"]
            for w in windows:
                kept = max(0, self.p["tokens"] - w - max(self.p["tokens"] - 1, rollback))
                if kept > 0:
                    rollback = min(rollback, end - w - kept)
        kind = F32 if sinks > first or exact < end else 0
        return kind, first, count, sinks, exact, rollback

    def coded_tiles(self, layer, kv_head, begin, end):
        sides = []
        for kind in (ref.KEY, ref.VALUE):
            config, rows = self.config(layer, kv_head, kind), self.coded_rows(layer, kv_head, kind)[0]
            if self.in_bands(kind):
                sides.append((*bands.encode(rows, self.bands(layer, kv_head))[:2], 0))
            elif group := self.group(layer, kind):
                encoded = ref.encode_grouped(rows, config.bits, group)
                sides.append((encoded.codes, encoded.pairs, config.bits))
            elif config.bits == 16:
                sides.append((ref.raw_bits(rows)[0], None, 16))
            elif self.has_levels(kind):
                side = by_rows.RowSide(config.head_dim, config.bits, family=by_rows.LEVELS, kind=kind,
                                       seed=SEED, layer=layer, kv_head=kv_head, rule=ref.UNBIASED,
                                       **self.p["value_levels"])
                sides.append((*by_rows.encode_rows(rows, side)[:2], config.bits))
            else:
                encoded = (trellis if self.p["family"] == TRELLIS else ref).encode(rows, config)
                row = self.p["latent"] or config.bits == 1
                codes = ref.pack_rows(encoded.codes, config.bits) if row else encoded.codes
                sides.append((codes, encoded.scales, config.bits))
        tiles = b""
        for tile in range(begin // TILE, (end - 1) // TILE + 1):
            # Places of tokens outside the run are zero, so the run's own stand where they stood.
            cut = []
            for codes, scales, bits in sides:
                own = np.arange(TILE * tile, min(TILE * tile + TILE, self.p["tokens"]))
                inside = (own >= begin) & (own < end)
                if isinstance(codes, list):
                    band_codes, band_scales = band_tile(codes, scales, own, inside)
                    words = bands.words(band_codes, self.bands(layer, kv_head))
                    cut.append((words.reshape(TILE, -1), band_scales, 0))
                    continue
                cut.append((np.where(inside[:, None], codes[own], 0).astype(codes.dtype),
                            None if scales is None else scales[own] * inside.reshape(
                                -1, *[1] * (scales.ndim - 1)).astype(np.uint16),
                            bits))
            if self.p["family"] == TRELLIS:  # as rows of words
                for kind, (codes, scales, bits) in zip((ref.KEY, ref.VALUE), cut):
                    if self.in_bands(kind):
                        continue
                    full = np.zeros((TILE, codes.shape[1]), np.uint8)
                    full[:len(codes)] = codes
                    cut[kind] = trellis.pack(full, bits, kind).reshape(TILE, -1), scales, bits
            tiles += ref.tile_bytes(*cut)
        return tiles

    def exact_tiles(self, layer, kv_head, kind, begin, end):
        rows = self.rows(layer, kv_head, kind)
        first, last = begin // TILE * TILE, ((end - 1) // TILE + 1) * TILE
        tiles = np.zeros((last - first, rows.shape[1]), dtype="<f4")
        tiles[begin - first:end - first] = rows[begin:end]
        return tiles.tobytes()

    def part(self, first, count, first_layer, num_layers, first_head, num_heads):
        kind, _, _, sinks, exact, rollback = self.numbers(first, count)
        end, heads, payload = first + count, range(first_head, first_head + num_heads), b""
        for layer in range(first_layer, first_layer + num_layers):
            w = self.window(layer)
            begin = first if w == 0 else max(first, min(end, end - w - rollback))
            if begin < end:
                payload += b"".join(self.coded_tiles(layer, head, begin, end) for head in heads)
            if kind == 0:
                continue
            for side in (ref.KEY, ref.VALUE):
                for begin, stop in ((first, sinks), (exact, end)):
                    if begin < stop:
                        payload += b"".join(self.exact_tiles(layer, h, side, begin, stop) for h in heads)
        return payload

    # ---- sections 6.2 and 6.3

    def side(self, layer, kv_head, kind):
        config = self.config(layer, kv_head, kind)
        if group := self.group(layer, kind):
            return struct.pack("<6IQ32x", config.head_dim, 3, config.bits, 0, 0, group, 0)
        latent = 16 if self.p["latent"] else 0
        if self.in_bands(kind):
            widths, is_trellis = self.p["bands"], self.p["family"] == TRELLIS
            books = bands.books_bytes(widths, is_trellis)
            return struct.pack("<6IQQ24x", config.head_dim, TRELLIS_BANDS if is_trellis else BANDS,
                               sum(widths), 0, config.rotation, sum(b << 4 * i for i, b in enumerate(widths)),
                               SEED, xxhash.xxh64_intdigest(books))
        if config.bits == 16:
            return struct.pack("<6IQ32x", config.head_dim, latent, 16, 1, 0, 0, 0)
        magnitudes = b""
        if self.has_levels(kind):
            levels = (np.array(self.p["value_levels"]["levels"], "<f4") + np.float32(0)).tobytes()
            return struct.pack("<6IQQ24x", config.head_dim, by_rows.LEVELS, config.bits, 0, config.rotation,
                               0, SEED, xxhash.xxh64_intdigest(levels))
        if self.p["family"] == TRELLIS:
            magnitudes = bytes(int(x) for x in trellis.load_book(config.bits)[1][1 << config.bits:])
        elif config.bits < 8:
            magnitudes = bytes(int(x) for x in ref.load_codebook(config.head_dim, config.bits).grid)
        return struct.pack("<6IQ32s", config.head_dim, latent + self.p["family"], config.bits, 0,
                           config.rotation, 0, SEED, magnitudes)

    def centre_hash(self, layer, kv_head, kind):
        centre, found = self.side_centre(layer, kv_head, kind), 0
        if centre is not None and self.config(layer, kv_head, kind).bits != 16 and centre.any():
            found = xxhash.xxh64_intdigest((centre + np.float32(0)).astype("<f4").tobytes())
        if self.in_bands(kind):
            found = xxhash.xxh64_intdigest(np.array(band_order(self.p, kv_head), "<u4").tobytes(), seed=found)
        matrix = self.matrix(layer, kv_head, kind)
        return found if matrix is None else key_matrix.side_hash(matrix, found)

    def records(self, first_layer, num_layers, first_head, num_heads):
        text = b""
        for layer in range(first_layer, first_layer + num_layers):
            text += struct.pack("<4I", layer, first_head, num_heads, self.window(layer))
            text += b"".join(self.side(layer, first_head, kind) for kind in (ref.KEY, ref.VALUE))
            text += b"".join(struct.pack("<Q", self.centre_hash(layer, head, kind))
                             for head in range(first_head, first_head + num_heads)
                             for kind in (ref.KEY, ref.VALUE))
        return text

    def identity(self, first_layer, num_layers, first_head, num_heads):
        records = self.records(first_layer, num_layers, first_head, num_heads)
        return xxhash.xxh64_intdigest(struct.pack("<2I", 1, first_layer) + records)

    def saved(self):
        p, n = self.p, len(self.layers)
        place = p["first_layer"], n, p["first_kv_head"], p["num_kv_heads"]
        payload = self.part(0, p["tokens"], *place)
        kind, *numbers = self.numbers(0, p["tokens"])
        fields = 1, n, 0, 0, len(payload), p["first_layer"], kind, *numbers, 0, self.identity(*place)
        text = MAGIC + struct.pack("<2I3Q2I5q2Q", *fields) + self.records(*place)
        text += struct.pack("<Q", xxhash.xxh3_64_intdigest(text))
        for i in range(0, len(payload), PIECE):
            piece = payload[i:i + PIECE]
            text += piece + struct.pack("<Q", xxhash.xxh3_64_intdigest(piece, i // PIECE + 1))
        digest = xxhash.xxh3_128_intdigest(text)
        return text + struct.pack("<2Q", digest % 2**64, digest // 2**64) + MARK


def build():
    """-> (tensors, metadata)"""
    tensors, metadata = {}, {}
    for number, (name, changes) in enumerate(CASES.items()):
        p = {**DEFAULTS, **changes}
        sequence = Sequence(number, p)
        values = dict(sequence.tensors, saved=np.frombuffer(sequence.saved(), dtype=np.uint8))
        states = []
        for i, part in enumerate(p["parts"]):
            values[f"part{i}"] = np.frombuffer(sequence.part(*part), dtype=np.uint8)
            states.append([*sequence.numbers(*part[:2]), f"{sequence.identity(*part[2:]):016x}"])
        if p["bands"]:
            p["band_orders"] = [band_order(p, head) for head in sequence.heads]
        metadata[name] = json.dumps({**p, "seed": SEED, "states": states})
        tensors.update((f"{name}.{key}", array) for key, array in values.items() if array.size > 0)
    return tensors, metadata
