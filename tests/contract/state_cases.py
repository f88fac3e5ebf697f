# SPDX-License-Identifier: Apache-2.0
"""Cases of state that travels: parts of sequences to memory and back, sequences saved and loaded."""
from builder import Case
from model import F16, F32

BAD, STATE, CORRUPT, OTHER = "INVALID_ARGUMENT", "INVALID_STATE", "CORRUPT_DATA", "INCOMPATIBLE"


def shapes(**more):
    return {
        "num_layers": 2, "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 32, "io_dtype": F32, "key_bits": 4,
        "value_bits": 3, "rotation_seed": 7, "max_tokens": 192, "max_sequences": 3, "num_threads": 1, **more
    }


def filled(c, name, new, queries=1):
    c.sequences(name)
    c.plan([name], [new], [queries])
    for layer in range(2):
        c.append(layer)


def parts(tensors):
    c = Case(tensors, "state_parts", "a sequence to another page size: whole, by layers, by tokens")
    c.create(**shapes(window_tokens=3, sink_tokens=1))
    filled(c, "a", 40)
    c.create("other", **shapes(page_size=96, window_tokens=3, sink_tokens=1, max_sequences=4))
    c.use("main")
    c.export("a", "whole", expect={"num_tokens": 40, "num_layers": 2, "exact_sinks": 1, "exact_first": 37})
    for layer in range(2):
        c.export("a", f"layer {layer}", layers=[layer, 1], expect={"first_layer": layer})
    for first, count in ((0, 33), (33, 7)):
        c.export("a", f"from {first}", tokens=[first, count],
                 expect={"first_token": first, "num_tokens": count})
    c.use("other")
    for name, names in (("b", ["whole"]), ("c", ["layer 1", "layer 0"]), ("d", ["from 0", "from 33"])):
        c.sequences(name)
        for part in names:
            c.import_part(name, part, last=part == names[-1], source="a")
        c.plan([name], [0], [1])
        c.attend(0)
        c.attend(1)
        c.export(name, "again " + name, equals="whole")
        c.free(name)
    yield c

    c = Case(tensors, "state_ranks", "kv heads come from two ranks and make the whole, one after the other")
    c.create(**shapes(num_kv_heads=2))
    filled(c, "a", 13)
    c.export("a", "whole")
    for head in range(2):
        c.export("a", f"head {head}", kv_heads=[head, 1], expect={"num_kv_heads": 1, "first_kv_head": head})
    c.sequences("b")
    c.fail("import", STATE, "state.first_kv_head = 1: kv heads come in order", sequence="b", part="head 1")
    for head in range(2):
        c.import_part("b", f"head {head}", last=head == 1, source="a")
    c.export("b", "again", equals="whole")
    c.plan(["b"], [1], [1])
    for layer in range(2):
        c.append(layer)
        c.attend(layer)
    yield c


def misuse(tensors):
    c = Case(tensors, "state_part_misuse", "parts that are not there, states that do not fit, short memory")
    c.create(**shapes())
    filled(c, "a", 33)
    for text, part in (("state.first_layer = 2", {"layers": [2, 1]}),
                       ("state.num_layers", {"layers": [1, 2]}),
                       ("state.first_kv_head = 1", {"kv_heads": [1, 1]}),
                       ("state.num_tokens = 34", {"tokens": [0, 34]}),
                       ("state.first_token = 40", {"tokens": [40, 1]})):
        c.fail("export", BAD, text, sequence="a", **part)
    c.export("a", "part")
    c.sequences("b")
    for status, text, change in (
        (OTHER, "state.identity", {"identity": 1}), (BAD, "state.bytes", {"num_tokens": 65}),
        (BAD, "exact_first", {"exact_first": 5}), (BAD, "state.rollback_tokens", {"rollback_tokens": 2**40}),
        (BAD, "state: num_layers = 0", {"num_layers": 0}), (STATE, "state.first_token = 32", {
            "first_token": 32, "exact_sinks": 32, "exact_first": 65}), (BAD, "bytes = ", {"cut": 64})):
        c.fail("import", status, text, sequence="b", part="part", change=change)
    c.length("b")
    c.import_part("b", "part", source="a")
    c.fail("import", STATE, "holds 33 tokens", sequence="b", part="part")
    for name, change in (("key_bits", {"key_bits": 3}), ("rotation_seed", {"rotation_seed": 8}),
                         ("head_dim", {"head_dim": 64}), ("sliding_window", {
                             "layers": [{}, {"sliding_window": 9}]})):
        c.create("other " + name, **shapes(**change))
        c.sequences("x")
        c.fail("import", OTHER, name + " not the cache's", cache="other " + name, sequence="x", part="part")
    c.use("main")
    c.free("a")
    c.fail("export", BAD, "sequence", sequence="a")
    c.fail("save", BAD, "sequence", sequence="a")
    c.read("b", 30, 3)
    yield c

    c = Case(tensors, "state_needs_tokens", "a layer that was planned and not appended has no state")
    c.create(**shapes())
    filled(c, "a", 5)
    c.plan(["a"], [2])
    c.append(1)
    for op in ("export", "save"):
        c.fail(op, STATE, "layer 0 of sequence", sequence="a")
    c.export("a", "layer 1", layers=[1, 1], expect={"num_tokens": 7})
    c.export("a", "first", tokens=[0, 5])
    yield c


def saved(tensors):
    c = Case(tensors, "state_saved", "a sequence saved and loaded, into another page size; the same bytes")
    c.create(**shapes(io_dtype=F16, window_tokens=4, sink_tokens=2, key_bits=16))
    filled(c, "a", 37)
    c.save("a", "file")
    c.create("other", **shapes(io_dtype=F16, window_tokens=4, sink_tokens=2, key_bits=16, page_size=32))
    c.load("file", "b", source=("main", "a"))
    c.save("b", "again", equals="file")
    c.plan(["b"], [0], [2])
    for layer in range(2):
        c.attend(layer)
    c.length("b")
    yield c

    c = Case(tensors, "state_saved_misuse", "damaged, cut, of another cache, too large: nothing is loaded")
    c.create(**shapes())
    filled(c, "a", 40)
    c.save("a", "file")
    for at, text in ((3, "does not begin as one"), (60, "checksum"), (500, "checksum"), (-1, "mark"),
                     (-9, "digest")):
        c.fail("load", CORRUPT, text, file="file", change={"at": at, "xor": 1}, sequence="x")
    for cut, text in ((1, "ends after"), (30, "ends after"), (4000, "ends after")):
        c.fail("load", CORRUPT, text, file="file", change={"cut": cut}, sequence="x")
    c.fail("load", OTHER, "format version 2", file="file", change={"at": 8, "xor": 3}, sequence="x")
    c.fail("load", OTHER, "features 0x1", file="file", change={"at": 16, "xor": 1}, sequence="x")
    for name, text, change in (("bits", "layer 0: key_bits = 4, the cache's is 3", {"key_bits": 3}),
                               ("seed", "rotation_seed = 7", {"rotation_seed": 8}),
                               ("layers", "num_layers = 2", {"num_layers": 1})):
        c.create(name, **shapes(**change))
        c.fail("load", OTHER, text, cache=name, file="file", sequence="x")
    c.create("small", **shapes(max_sequence_tokens=39, max_tokens=64))
    c.fail("load", "CAPACITY", "max_sequence_tokens = 39", cache="small", file="file", sequence="x")
    c.use("main")
    c.memory(num_sequences=1, tokens=40)
    c.load("file", "b", source=("main", "a"))
    c.read("b", 36, 4, layer=1)
    yield c

    c = Case(tensors, "state_mac", "a keyed MAC: the same key loads, another and none are told apart")
    c.create(**shapes())
    filled(c, "a", 9)
    c.save("a", "sealed", mac=7)
    c.save("a", "open")
    c.load("sealed", "b", source=("main", "a"), mac=7)
    c.free("b")
    c.fail("load", CORRUPT, "its MAC is not that of this key", file="sealed", mac=8, sequence="x")
    c.fail("load", CORRUPT, "a MAC of 0 bytes", file="open", mac=7, sequence="x")
    c.fail("load", CORRUPT, "ends after", file="sealed", mac=7, change={"cut": 1}, sequence="x")
    c.fail("load", CORRUPT, "its MAC is not that of this key", file="sealed", mac=7,
           change={"at": -3, "xor": 64}, sequence="x")
    c.load("sealed", "b", source=("main", "a"))  # who has no key does not look
    c.read("b", 7, 2)
    yield c


def build(tensors):
    for cases in (parts, misuse, saved):
        yield from cases(tensors)
