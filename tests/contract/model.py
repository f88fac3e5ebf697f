# SPDX-License-Identifier: Apache-2.0
"""What a correct library answers to a list of steps, in NumPy: a cache as plain lists of the appended
vectors, decoded by the oracle of tests/reference. Deliberately naive: no pages, no sharing, every attend
decodes everything.
"""
import contextlib
from unittest import mock

import numpy as np
from reference import bands as reference_bands
from reference import encode as reference_encode
from reference import rows as reference_rows
from reference import tqkv_reference as ref
from reference import trellis

RAW = 16
F32, F16, BF16 = 1, 2, 3
PROD, GROUPED, TRELLIS = 2, 3, 5
LATENT = 2  # a layer_kind


def to_float(array):
    """float32 of a tensor: float32, float16, or uint16 = bfloat16 bits."""
    return ref.bf16_to_float(array) if array.dtype == np.uint16 else array.astype(np.float32)


class ModelSequence:
    def __init__(self, num_layers):
        self.length = 0
        # per layer: key rows, value rows, each [num_kv_heads, dim] of the input type
        self.layers = [([], []) for _ in range(num_layers)]
        self.exact_first = 0  # exact copies of the window and what lies behind it exist from this token on
        self.sink_end = 0  # and of the tokens before this one

    def copy(self):
        other = ModelSequence(0)
        other.length, other.exact_first, other.sink_end = self.length, self.exact_first, self.sink_end
        other.layers = [(list(k), list(v)) for k, v in self.layers]
        return other


def resolved_layers(config):
    """Each layer's own fields, the cache's where it has none, and those of the layer that it shares."""
    layers = []
    for i, own in enumerate(config.get("layers", [{}] * config["num_layers"])):
        layer = {name: own.get(name) or config.get(name) for name in (
            "num_q_heads", "num_kv_heads", "head_dim", "value_dim", "rotation", "sliding_window",
            "first_kv_head")}
        layer["value_dim"] = layer["value_dim"] or layer["head_dim"]
        layer["latent"] = (own.get("layer_kind") or config.get("layer_kind")) == LATENT
        layer["sliding_window"] = layer["sliding_window"] or 0
        layer["first_kv_head"] = layer["first_kv_head"] or 0
        layer["key_bands"] = own.get("key_bands")
        layer["bits"] = [own.get(f"{side}_bits")
                         or config.get(f"layer_{side}_bits", [0] * config["num_layers"])[i]
                         or config[f"{side}_bits"] for side in ("key", "value")]
        layer["families"] = [own.get(f"{side}_family") or config.get(f"{side}_family") or
                             config.get("code_family") for side in ("key", "value")]
        layer["groups"] = [(own.get("group_size") or config.get("group_size", 32)) if GROUPED == (
            own.get(f"{side}_family") or config.get(f"{side}_family") or config.get("code_family")) else 0
                           for side in ("key", "value")]
        layer["source"] = own["shares_layer"] - 1 if own.get("shares_layer") else i
        if layer["source"] != i:
            source = layers[layer["source"]]
            layer = {**source, "num_q_heads": layer["num_q_heads"],
                     "sliding_window": layer["sliding_window"] or source["sliding_window"]}
        layers.append(layer)
    return layers


class ModelCache:
    def __init__(self, config):
        c = self.config = {
            "rotation": ref.HADAMARD, "rotation_seed": 0,
            "first_layer": 0, "first_kv_head": 0,
            "key_scale_rule": ref.UNBIASED, "value_scale_rule": ref.UNBIASED, "page_size": 64,
            "window_tokens": 0,
            "sink_tokens": 0, "rollback_tokens": 0, "flags": 0, **config
        }
        self.layers = resolved_layers(c)
        self.centres = [[None, None] for _ in range(c["num_layers"])]
        self.sequences = {}
        self.plan = None

    # ---- figures

    def token_bytes(self):
        total = 0
        for layer in self.stored_layers():
            key_bits, value_bits = layer["bits"]
            own = ref.tile_num_bytes(self.key_side_dim(layer), key_bits, layer["value_dim"],
                                     value_bits, *layer["groups"]) // 32
            if layer["key_bands"]:
                widths = layer["key_bands"]["bits"]
                own += 4 * sum(widths) + 2 * len(widths) - (4 * len(widths) * key_bits + 2)
            total += own * layer["num_kv_heads"]
        return total

    def key_side_dim(self, layer):
        return layer["head_dim"] - (layer["value_dim"] if layer["latent"] else 0)

    def stored_layers(self):
        return [layer for i, layer in enumerate(self.layers) if layer["source"] == i]

    def fp16_token_bytes(self):
        return sum(2 * layer["num_kv_heads"] * (self.key_side_dim(layer) + layer["value_dim"])
                   for layer in self.stored_layers())

    # ---- sequences

    def create(self, name):
        self.sequences[name] = ModelSequence(self.config["num_layers"])

    def fork(self, source, name):
        self.sequences[name] = self.sequences[source].copy()
        self.give_back(self.sequences[name], 0)

    def adopt(self, name, sequence):
        """A sequence of another cache of the same window, copied."""
        self.sequences[name] = sequence
        sequence.exact_first = max(
            sequence.exact_first,
            sequence.length - self.config["window_tokens"] - self.config["rollback_tokens"])

    def truncate(self, name, length):
        sequence = self.sequences[name]
        sequence.length = length
        sequence.exact_first = min(sequence.exact_first, length)
        sequence.sink_end = min(sequence.sink_end, length)
        for k, v in sequence.layers:
            del k[length:], v[length:]

    def flush(self, name):
        sequence = self.sequences[name]
        if sequence.sink_end < sequence.length:
            sequence.exact_first = sequence.length

    def select(self, name, positions):
        sequence = self.sequences[name]
        kept = lambda n: sum(p < n for p in positions)  # noqa: E731
        sequence.exact_first, sequence.sink_end = kept(sequence.exact_first), kept(sequence.sink_end)
        sequence.length = len(positions)
        if sequence.exact_first <= sequence.sink_end:
            sequence.exact_first = 0
            sequence.sink_end = min(self.config["sink_tokens"], sequence.length)
        for rows in (rows for layer in sequence.layers for rows in layer):
            rows[:] = [rows[p] for p in positions]

    # ---- one step

    def give_back(self, sequence, queries):
        """Exact copies in front of what the queries see, and of what they would see after a rollback."""
        sequence.exact_first = max(
            sequence.exact_first,
            sequence.length - self.config["window_tokens"] - max(queries - 1, self.config["rollback_tokens"]))

    def plan_step(self, names, new_tokens, query_tokens):
        before = self.plan[0] if self.plan else []
        self.plan = (names, new_tokens, new_tokens if query_tokens is None else query_tokens)
        for name, new, queries in zip(*self.plan):
            sequence = self.sequences[name]
            if sequence.sink_end == sequence.length:
                sequence.sink_end = max(sequence.sink_end,
                                        min(self.config["sink_tokens"], sequence.length + new))
            sequence.length += new
            self.give_back(sequence, queries)
        for name in set(before) & set(self.sequences) - set(names):
            self.give_back(self.sequences[name], 0)

    def append(self, layer, k, v):
        row = 0
        if v is None:
            v = k[..., :self.layers[layer]["value_dim"]]
        for name, new in zip(*self.plan[:2]):
            keys, values = self.sequences[name].layers[layer]
            # Rows of a repeated append replace those of the first.
            first = self.sequences[name].length - new
            keys[first:], values[first:] = list(k[row:row + new]), list(v[row:row + new])
            row += new

    def _codebooks(self):
        """Own codebooks in the oracle's table; they serve layers of exactly their bits."""
        own = {}
        for kind, side in ((ref.KEY, "key"), (ref.VALUE, "value")):
            book = self.config.get(f"{side}_codebook")
            if book:
                offset = 0.5 if book["bits"] >= 4 else 0.0
                own[kind, book["bits"]] = ref.Codebook(book["bits"], np.float32(book["unit"]),
                                                       tuple(m + offset for m in book["magnitude"]))
        return own

    def decode(self, layer, rows, kind):
        """rows [n, num_kv_heads, dim] of the input type -> decoded float32 of the same shape."""
        own = self.layers[layer]
        if own["latent"] and kind == ref.KEY:
            parts = np.split(np.stack(rows), [own["value_dim"]], axis=2)
            return np.concatenate([self.decode_side(layer, part, side)
                                   for part, side in zip(parts, (ref.VALUE, ref.KEY))], axis=2)
        return self.decode_side(layer, rows, kind)

    def decode_side(self, layer, rows, kind):
        c, bits = self.config, self.layers[layer]["bits"][kind]
        rows = np.stack(rows)
        if bits == RAW:
            stored = ref.raw_bits(np.ascontiguousarray(rows))[0]
            return to_float(stored if rows.dtype == np.uint16 else stored.view(np.float16))
        wide, heads = to_float(rows), []
        if group := self.layers[layer]["groups"][kind]:
            for head in range(rows.shape[1]):
                encoded = ref.encode_grouped(np.ascontiguousarray(wide[:, head]), bits, group)
                heads.append(ref.decode_grouped(encoded.codes, encoded.pairs, group))
            return np.stack(heads, axis=1)
        if self.layers[layer]["families"][kind] == PROD:
            return self.decode_prod(layer, wide)
        if kind == ref.KEY and self.layers[layer]["key_bands"]:
            return self.decode_bands(layer, wide)
        coded = trellis if self.layers[layer]["families"][kind] == TRELLIS else None
        own = None if coded else self._codebooks().get((kind, bits))
        patch = mock.patch.object(reference_encode, "load_codebook",
                                  lambda head_dim, b: own) if own else contextlib.nullcontext()
        for head in range(rows.shape[1]):
            centre = self.centres[layer][kind]
            side = (coded.TrellisSide if coded else ref.SideConfig)(
                head_dim=rows.shape[2],
                bits=bits,
                kind=kind,
                rule=c["value_scale_rule" if kind else "key_scale_rule"],
                search=not c["flags"] & 2,
                rotation=self.layers[layer]["rotation"],
                seed=c["rotation_seed"],
                layer=c["first_layer"] + layer,
                kv_head=self.layers[layer]["first_kv_head"] + head,
                centre=None if centre is None else tuple(float(x) for x in centre[head]))
            with patch:
                encoded = (coded or ref).encode(np.ascontiguousarray(wide[:, head]), side)
                heads.append(ref.decode(encoded.codes, encoded.scales, side))
        return np.stack(heads, axis=1)

    def decode_prod(self, layer, wide):
        c, heads, own = self.config, [], self.layers[layer]
        for head in range(wide.shape[1]):
            side = reference_rows.RowSide(wide.shape[2], own["bits"][0], family=PROD,
                                          rule=c["key_scale_rule"], search=not c["flags"] & 2,
                                          rotation=own["rotation"], seed=c["rotation_seed"],
                                          layer=c["first_layer"] + layer,
                                          kv_head=own["first_kv_head"] + head, sketch=c.get("sketch", 1),
                                          sketch_rule=c.get("sketch_rule", 1),
                                          factor=c.get("sketch_factor", 0.0))
            rows, scales, _ = reference_rows.encode_rows(np.ascontiguousarray(wide[:, head]), side)
            heads.append(reference_rows.decode_rows(rows, scales, side))
        return np.stack(heads, axis=1)

    def decode_bands(self, layer, wide):
        c, heads, own = self.config, [], self.layers[layer]
        given, centre, dim = own["key_bands"], self.centres[layer][ref.KEY], wide.shape[2]
        for head in range(wide.shape[1]):
            order = given.get("order")
            side = reference_bands.Bands(
                dim, tuple(given["bits"]), order and tuple(order[head * dim:(head + 1) * dim]),
                trellis=own["families"][ref.KEY] == TRELLIS, rule=c["key_scale_rule"],
                search=not c["flags"] & 2, seed=c["rotation_seed"], layer=c["first_layer"] + layer,
                kv_head=own["first_kv_head"] + head,
                centre=None if centre is None else tuple(float(x) for x in centre[head]))
            codes, scales, _ = reference_bands.encode(np.ascontiguousarray(wide[:, head]), side)
            heads.append(reference_bands.decode(codes, scales, side))
        return np.stack(heads, axis=1)

    def exact_tokens(self, sequence, num_queries):
        """bool [num_queries, length]: what the last queries read exactly."""
        c = self.config
        mask = ref.exact_token_mask(sequence.length, num_queries, c["window_tokens"], c["sink_tokens"])
        token = np.arange(sequence.length)
        return mask & ((token < sequence.sink_end) | (token >= sequence.exact_first))

    def vectors(self, layer, sequence):
        """(decoded, exact) float32 of keys and of values, [length, num_kv_heads, dim] each."""
        layer = self.layers[layer]["source"]
        if sequence.length == 0:
            c = self.layers[layer]
            none = [np.zeros((0, c["num_kv_heads"], c[dim]), np.float32) for dim in ("head_dim", "value_dim")]
            return [(x, x) for x in none]
        return [(self.decode(layer, rows, kind), to_float(np.stack(rows)))
                for kind, rows in zip((ref.KEY, ref.VALUE), sequence.layers[layer])]

    def read(self, layer, name, first, count):
        """Float32 k, v [count, num_kv_heads, dim] as a query at the last token sees them."""
        sequence = self.sequences[name]
        mask = self.exact_tokens(sequence, 1)[0][:, None, None]
        return [np.where(mask, exact, decoded)[first:first + count]
                for decoded, exact in self.vectors(layer, sequence)]

    def attend(self, layer, q, params):
        """q [rows, num_q_heads, head_dim] -> out, lse in float64."""
        outs, lses, row, shape = [], [], 0, self.layers[layer]
        windows = [w for w in (shape["sliding_window"], params.get("sliding_window", 0)) if w]
        for name, new, queries in zip(*self.plan):
            sequence = self.sequences[name]
            if queries == 0:
                continue
            own = slice(row, row + queries)
            (k, k_exact), (v, v_exact) = [[x.transpose(1, 0, 2) for x in pair]
                                          for pair in self.vectors(layer, sequence)]
            out, lse = ref.attend(to_float(q[own]),
                                  k,
                                  v,
                                  exact=self.exact_tokens(sequence, queries),
                                  k_exact=k_exact,
                                  v_exact=v_exact,
                                  softmax_scale=np.float64(params.get("softmax_scale", 0)) or None,
                                  softcap=params.get("logit_softcap", 0),
                                  sliding_window=min(windows, default=0),
                                  sink_logits=params.get("sink_logits"),
                                  visible=(params["visible_begin"][own], params["visible_end"][own])
                                  if "visible_begin" in params else None,
                                  tree_mask=params["tree_mask"][own] if "tree_mask" in params else None,
                                  new_tokens=new,
                                  alibi_slopes=params.get("alibi_slopes"),
                                  history_only_len=sequence.length -
                                  new if params.get("history_only") else None)
            outs.append(out)
            lses.append(lse)
            row += queries
        if not outs:
            return (np.zeros((0, shape["num_q_heads"], shape["value_dim"])),
                    np.zeros((0, shape["num_q_heads"])))
        return np.concatenate(outs), np.concatenate(lses)


def merge(outs, lses):
    """Partial results [rows, dim] and [rows] -> the result over all parts, float64."""
    outs, lses = np.stack([o.astype(np.float64) for o in outs
                           ]), np.stack([x.astype(np.float64) for x in lses])
    top = lses.max(axis=0)
    safe = np.where(np.isfinite(top), top, 0.0)
    weight = np.exp(lses - safe)
    total = weight.sum(axis=0)
    part = np.where(weight[..., None] > 0, outs, 0.0)  # the out of an empty part is not read
    some = total > 0
    out = np.where(some[:, None], (weight[..., None] * part).sum(axis=0) / np.where(some, total, 1)[:, None],
                   0.0)
    with np.errstate(divide="ignore"):
        return out, np.where(some, safe + np.log(np.where(some, total, 1)), -np.inf)
