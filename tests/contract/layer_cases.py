# SPDX-License-Identifier: Apache-2.0
"""Cases of caches whose layers differ: shapes, widths and windows of their own, and tokens that layers
share."""
from builder import Case
from model import F32

BAD, STATE = "INVALID_ARGUMENT", "INVALID_STATE"


def cache(*layers, **more):
    return {
        "num_layers": len(layers), "layers": list(layers), "io_dtype": F32, "key_bits": 4, "value_bits": 4,
        "rotation_seed": 7, "max_tokens": 256, "num_threads": 1, **more
    }


def layer(q_heads, kv_heads, dim, **more):
    return {"num_q_heads": q_heads, "num_kv_heads": kv_heads, "head_dim": dim, **more}


def step(c, new, layers, queries=None):
    """One plan; tokens for the layers that have their own, then attention in all."""
    c.plan(["a"], [new], [min(new, 2) if queries is None else queries])
    for i in range(layers):
        if c.model.layers[i]["source"] == i:
            c.append(i)
    for i in range(layers):
        c.attend(i)


def results(tensors):
    c = Case(tensors, "layers_differ", "layers of other heads, dimensions and widths in one plan")
    c.create(**cache(layer(2, 1, 64), layer(4, 2, 32, key_bits=3, value_bits=8), {"num_q_heads": 1},
                     num_q_heads=4, num_kv_heads=1, head_dim=32))
    c.sequences("a")
    for new in (17, 1, 2):
        step(c, new, 3)
    for i in range(3):
        c.read("a", 16, 3, layer=i)
    yield c

    c = Case(tensors, "layers_share", "layers that attend to another one's tokens with heads of their own")
    c.create(**cache(layer(2, 1, 32), layer(4, 2, 32), {"num_q_heads": 4, "shares_layer": 1},
                     {"num_q_heads": 2, "shares_layer": 2}, max_sequences=2))
    c.centres(1, c.random(2, 32), c.random(2, 32))  # of layers 2 and 3 too
    c.sequences("a")
    for new in (20, 1):
        step(c, new, 4)
    c.read("a", 17, 4, layer=2)
    c.fork("a", "b")
    c.truncate("a", 11)
    step(c, 2, 4)
    yield c

    c = Case(tensors, "layers_slide", "windows of layers, of those that share them, and of a call")
    c.create(**cache(layer(2, 1, 32), layer(2, 1, 32, sliding_window=20),
                     {"num_q_heads": 2, "shares_layer": 2},
                     {"num_q_heads": 2, "shares_layer": 2, "sliding_window": 7}, page_size=32))
    c.sequences("a")
    for new, queries in ((34, 3), (1, 1), (21, 2), (1, 1)):
        step(c, new, 4, queries)
    c.attend(1, sliding_window=9)
    c.fail("attend", BAD, "sliding_window = 21", batch="main", layer=1, params={"sliding_window": 21},
           q=c.put("wide", c.random(1, 2, 32)))
    c.attend(3, sliding_window=3)
    c.read("a", c.model.sequences["a"].length - 10, 10, layer=1)
    yield c

    c = Case(tensors, "layers_bytes", "bytes of a token: each layer's own, none for a layer that shares")
    c.config_bytes(**cache(layer(8, 2, 128), layer(8, 8, 64, key_bits=2), layer(4, 1, 192, value_dim=128),
                           {"num_q_heads": 2, "shares_layer": 1}, value_bits=3))
    yield c


def errors(tensors):
    good = layer(2, 1, 32)
    for name, text, layers in (
        ("head_dim", "layers[1].head_dim = 50", (good, {**good, "head_dim": 50})),
        ("value_dim", "layers[0].value_dim = 33", ({**good, "value_dim": 33},)),
        ("bits", "layers[0].key_bits = 7", ({**good, "key_bits": 7},)),
        ("heads", "layers[0]", (layer(3, 2, 32),)),
        ("no_heads", "layers[1].num_q_heads = 0", (good, {"num_kv_heads": 1, "head_dim": 32})),
        ("rotation", "layers[0].rotation = 3", ({**good, "rotation": 3},)),
        ("window", "layers[0].sliding_window = -1", ({**good, "sliding_window": -1},)),
        ("first_head", "layers[1].first_kv_head = 65536", (good, {**good, "first_kv_head": 65536})),
        ("shares_other_head", "layers[1].first_kv_head = 2",
         (good, {"num_q_heads": 2, "first_kv_head": 2, "shares_layer": 1})),
        ("shares_itself", "layers[1].shares_layer = 2", (good, {**good, "shares_layer": 2})),
        ("shares_sharing", "layers[2].shares_layer = 2",
         (good, {"num_q_heads": 2, "shares_layer": 1}, {"num_q_heads": 2, "shares_layer": 2})),
        ("bands_width", "layers[0].key_bands.bits[1] = 3: must be 1 .. 2, none above the one before",
         ({**layer(2, 1, 64), "key_bands": {"bits": [2, 3]}},)),
        ("bands_count", "layers[0].key_bands.num_bands = 1", (
            {**layer(2, 1, 64), "key_bands": {"bits": [4]}},)),
        ("bands_order", "layers[0].key_bands.order[0][31] = 0: must be each of 0 .. 31 once",
         ({**good, "key_bands": {"bits": [4], "order": [*range(31), 0]}},)),
        ("bands_and_bits", "layers[0].key_bits = 4: must be 0, key_bands has the widths",
         ({**good, "key_bits": 4, "key_bands": {"bits": [4]}},)),
        ("shares_other_shape", "layers[1].head_dim = 64",
         (good, {"num_q_heads": 2, "head_dim": 64, "shares_layer": 1})),
        ("shares_wider_window", "layers[1].sliding_window = 30",
         ({**good, "sliding_window": 20}, {"num_q_heads": 2, "shares_layer": 1, "sliding_window": 30}))):
        c = Case(tensors, f"layers_{name}", f"a layer with a bad field: {text}")
        c.fail("create", BAD, text, config=cache(*layers))
        yield c

    c = Case(tensors, "layers_append_shared", "a layer that shares has no tokens of its own to append")
    c.create(**cache(good, {"num_q_heads": 2, "shares_layer": 1}))
    c.sequences("a")
    c.plan(["a"], [3])
    k, v = (c.put(side, array) for side, array in zip("kv", c.kv(3)))
    c.fail("append", BAD, "layer", batch="main", layer=1, k=k, v=v)
    q = c.put("q", c.random(3, 2, 32))
    c.fail("attend", STATE, "layer", batch="main", layer=1, q=q)
    c.append(0)
    c.attend(1)
    yield c


def build(tensors):
    for group in (results, errors):
        yield from group(tensors)
