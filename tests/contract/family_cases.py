# SPDX-License-Identifier: Apache-2.0
"""Cases of code families other than scalar."""
from builder import Case
from model import BF16
from result_cases import shapes


def grouped(tensors):
    c = Case(tensors, "grouped_values", "3-bit values in groups of 16 beside scalar keys, with a window")
    c.create(**shapes(2, 1, 32, (4, 3), value_family=3, group_size=16, window_tokens=4, sink_tokens=2))
    c.sequences("a")
    for new in (30, 5):
        c.plan(["a"], [new], [1])
        c.append()
        c.attend()
    c.remove("a", 5, 20)
    c.read("a")
    c.config_bytes(**shapes(4, 2, 128, (3, 2), value_family=3, group_size=32))
    yield c

    c = Case(tensors, "grouped_layers", "one layer grouped on both sides, one with raw keys, one scalar")
    c.create(**shapes(1, 1, 32, (4, 4), num_layers=3, io_dtype=BF16, code_family=3, layers=[
        {"group_size": 64, "key_bits": 8}, {"key_bits": 16, "value_bits": 2},
        {"key_family": 1, "value_family": 1}]))
    c.sequences("a")
    c.plan(["a"], [9], [1])
    for layer in range(3):
        c.append(layer)
        c.attend(layer)
        c.read("a", 2, 3, layer=layer)
    yield c


def prod(tensors):
    c = Case(tensors, "prod_keys", "prod keys beside scalar values: orthogonal sketch, then Gaussian")
    c.create(**shapes(2, 1, 32, (3, 3), key_family=2, key_scale_rule=1))
    c.sequences("a")
    c.plan(["a"], [20], [2])
    c.append()
    c.attend()
    c.read("a", 3, 9)
    c.create("gaussian", **shapes(1, 1, 32, (2, 4), key_family=2, key_scale_rule=1, sketch=2,
                                  sketch_rule=2))
    c.sequences("b")
    c.plan(["b"], [7], [1], batch="gaussian")
    c.append(batch="gaussian")
    c.read("b")
    yield c


def two_steps(c):
    """Through both layers of sequence "a", which then loses tokens."""
    c.sequences("a")
    for new in (30, 5):
        c.plan(["a"], [new], [2])
        for layer in range(2):
            c.append(layer)
            c.attend(layer)
    c.remove("a", 5, 20)
    c.read("a")
    c.read("a", 3, 9, layer=1)


def trellis(tensors):
    c = Case(tensors, "trellis_layers", "trellis sides of each width beside scalar and grouped ones",
             cpu_only=True)
    c.create(**shapes(2, 1, 64, (3, 2), num_layers=2, code_family=5, window_tokens=4, sink_tokens=2,
                      max_sequences=2, layers=[{}, {"key_bits": 4, "value_family": 3, "group_size": 32}]))
    two_steps(c)
    c.save("a", "saved")
    c.load("saved", "b", ("main", "a"))
    c.read("b", layer=1)
    yield c


def orders(heads, dim):
    """A permutation for each kv head, one after the other."""
    return [(i * (4 * head + 7) + head) % dim for head in range(heads) for i in range(dim)]


def bands(tensors):
    c = Case(tensors, "banded_keys", "keys in bands, in other orders from head to head, with a centre")
    c.create(**shapes(2, 2, 40, (4, 3), num_layers=2, window_tokens=2, sink_tokens=1, max_sequences=2,
                      layers=[{"key_bands": {"bits": [4, 2], "order": orders(2, 40)}},
                              {"key_bands": {"bits": [5, 1]}, "value_bits": 16}]))
    c.centres(0, c.random(2, 40), c.random(2, 40))
    c.sequences("a")
    for new in (7, 1):
        c.plan(["a"], [new], [1])
        for layer in range(2):
            c.append(layer)
            c.attend(layer)
    c.remove("a", 2, 3)
    c.read("a")
    c.fork("a", "b")
    c.truncate("a", 3)
    c.read("a", layer=1)
    c.config_bytes(**shapes(8, 2, 128, (4, 3), layers=[{"key_bands": {"bits": [4, 3, 3, 2]}}]))
    yield c

    c = Case(tensors, "banded_trellis", "trellis codes in bands of 3 bits, scalar ones of 1")
    c.create(**shapes(1, 1, 40, (4, 2), code_family=5, max_sequences=2,
                      layers=[{"key_bands": {"bits": [3, 1], "order": orders(1, 40)}}]))
    c.sequences("a")
    for new in (33, 1):
        c.plan(["a"], [new], [1])
        c.append()
        c.attend()
    c.save("a", "saved")
    c.load("saved", "b", ("main", "a"))
    c.read("b", 29, 5)
    yield c


def latent(tensors):
    c = Case(tensors, "latent_layers", "latents of 4 bits, stored once, beside 8-bit and raw rests",
             cpu_only=True)
    c.create(**shapes(4, 1, 96, (8, 4), value_dim=64, num_layers=2, layer_kind=2, window_tokens=4,
                      sink_tokens=2, max_sequences=2, layers=[{}, {"key_bits": 16, "value_bits": 8}]))
    two_steps(c)
    c.config_bytes(**shapes(128, 1, 576, (8, 4), value_dim=512, layer_kind=2))
    c.save("a", "saved")
    c.load("saved", "b", ("main", "a"))
    c.read("b", layer=1)
    yield c


def build(tensors):
    for group in (grouped, prod, trellis, bands, latent):
        yield from group(tensors)
