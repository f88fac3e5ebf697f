# SPDX-License-Identifier: Apache-2.0
"""Cases in which a call must fail: with which status, which argument its text names, and that nothing has
changed."""
import numpy as np
from builder import Case
from result_cases import shapes

BAD, STATE, CAPACITY = "INVALID_ARGUMENT", "INVALID_STATE", "CAPACITY"


def small(**more):
    return shapes(2, 1, 32, (4, 4), page_size=32, **more)


def configurations(tensors):
    for name, text, changes in (("heads", "num_q_heads", {"num_q_heads": 3, "num_kv_heads": 2}),
                                ("head_dim", "head_dim", {"head_dim": 50}), ("value_dim", "value_dim",
                                                                             {"value_dim": 33}),
                                ("key_bits", "key_bits", {"key_bits": 7}), ("value_bits_missing",
                                                                            "value_bits", {"value_bits": 0}),
                                ("layer_bits", "layer_key_bits[0]",
                                 {"layer_key_bits": [7]}), ("io_dtype", "io_dtype", {"io_dtype": 0}),
                                ("page_size", "page_size", {"page_size": 40}), ("max_tokens", "max_tokens",
                                                                                {"max_tokens": 0}),
                                ("device_type", "device_type",
                                 {"device_type": 9}), ("window", "window_tokens", {"window_tokens": -1}),
                                ("raw_tokens", "max_raw_tokens",
                                 {"window_tokens": 40, "max_raw_tokens": 64}),
                                ("family", "key_family = 9", {"key_family": 9}),
                                ("prod_values", "value_family = 2", {"value_family": 2}),
                                ("prod_bits", "key_bits = 5", {"key_family": 2, "key_bits": 5}),
                                ("sketch", "sketch = 3", {"key_family": 2, "sketch": 3}),
                                ("sketch_unused", "sketch = 1", {"sketch": 1}),
                                ("levels_missing", "key_levels", {"key_family": 4}),
                                ("group_size", "group_size = 24", {"group_size": 24, "value_family": 3}),
                                ("group_unused", "group_size = 16", {"group_size": 16}),
                                ("trellis_bits", "key_bits = 8", {"key_family": 5, "key_bits": 8}),
                                ("grouped_bits", "value_bits = 5", {"value_family": 3, "value_bits": 5}),
                                ("flags", "flags", {"flags": 1 << 40}), ("codebook", "key_codebook", {
                                    "key_codebook":
                                        {"bits": 4, "unit": 0.01, "magnitude": [1, 5, 5, 20, 30, 40, 50, 60]}
                                })):
        c = Case(tensors, f"config_{name}", f"a configuration with a bad {text}")
        c.fail("create", BAD, text, config={**small(), **changes})
        yield c

    c = Case(tensors, "config_all_reasons", "every reason is given at once")
    c.fail("create",
           BAD,
           "head_dim",
           "key_bits",
           "max_tokens",
           config={**small(), "head_dim": 50, "key_bits": 7, "max_tokens": 0})
    yield c

    c = Case(tensors, "config_device_id", "there is one CPU")
    c.fail("create", BAD, "device_id", config={**small(), "device_id": 1})
    yield c


def sequences(tensors):
    c = Case(tensors, "max_sequences", "one sequence too many, by create and by fork")
    c.create(**small(max_sequences=2))
    c.sequences("a", "b")
    c.fail("sequence_create", CAPACITY, "max_sequences", sequence="x")
    c.fail("sequence_fork", CAPACITY, "max_sequences", source="a", sequence="x")
    c.memory(num_sequences=2)
    c.free("b")
    c.fork("a", "c")
    yield c

    c = Case(tensors, "copy_refused", "a copy into a cache of other codes, or without room")
    c.create("home", **small())
    c.create("other", **{**small(), "key_bits": 3})
    c.create("short", **small(max_sequence_tokens=4))
    c.model = c.caches["home"]
    c.sequences("a")
    c.plan(["a"], [5], batch="home")
    c.append(batch="home")
    for status, text, target in (("INCOMPATIBLE", "key_bits", "other"), (CAPACITY, "max_sequence_tokens",
                                                                         "short"), (CAPACITY, "max_sequences",
                                                                                    "home")):
        c.fail("sequence_copy", status, text, cache="home", source="a", target=target, sequence="x")
    for cache in ("other", "short"):
        c.model = c.caches[cache]
        c.memory(num_sequences=0, pages_used=0)
    c.model = c.caches["home"]
    c.read("a")
    yield c

    c = Case(tensors, "truncate_range", "a length below 0 or above the sequence's own")
    c.create(**small())
    c.sequences("a")
    c.plan(["a"], [5], [1])
    c.append()
    for length in (-1, 6):
        c.fail("sequence_truncate", BAD, "length", sequence="a", length=length)
    c.length("a")
    c.attend()
    yield c

    c = Case(tensors, "remove_arguments",
             "tokens that the sequence does not have; positions that do not rise")
    c.create(**small())
    c.sequences("a")
    c.plan(["a"], [5], [1])
    c.append()
    for first, count, text in ((-1, 1, "first"), (6, 0, "first"), (0, -1, "count"), (3, 3, "count")):
        c.fail("sequence_remove", BAD, text, sequence="a", first=first, count=count)
    for positions, text in (([-1], "positions[0]"), ([0, 5], "positions[1]"), ([3, 3], "positions[1]"),
                            ([0, 1, 2, 3, 4, 5], "count")):
        c.fail("sequence_select", BAD, text, sequence="a", positions=positions)
    c.length("a")
    c.attend()
    c.step("sequence_remove", sequence="a", first=5, count=0)  # nothing: the plan is still in force
    c.attend()
    c.remove("a", 1, 2)
    q = c.put("q", np.zeros((1, 2, 32), dtype=np.float32))
    c.fail("attend", STATE, "batch", "sequence", batch="main", layer=0, q=q)
    c.plan(["a"], [0], [1])
    c.attend()
    yield c

    c = Case(tensors, "reserve_arguments", "less than there is, more than was reserved")
    c.create(**small(max_tokens=64, max_reserve_tokens=96))
    c.fail("reserve", BAD, "max_tokens = 63", max_tokens=63)
    c.fail("reserve", CAPACITY, "max_tokens = 97", "max_reserve_tokens = 96", max_tokens=97)
    c.step("reserve", max_tokens=64)
    c.step("reserve", max_tokens=96)
    c.fail("reserve", BAD, "max_tokens = 64", max_tokens=64)
    yield c

    c = Case(tensors, "read_range", "tokens that the sequence does not have")
    c.create(**small())
    c.sequences("a")
    c.plan(["a"], [5])
    c.append()
    for first, count, text in ((-1, 2, "first"), (4, 2, "count"), (0, -1, "count")):
        c.fail("read", BAD, text, layer=0, sequence="a", first=first, count=count)
    c.fail("read", BAD, "layer", layer=1, sequence="a", first=0, count=1)
    yield c


def plans(tensors):
    c = Case(tensors, "plan_arguments",
             "the same sequence twice, a negative count, more queries than tokens, a freed sequence")
    c.create(**small(max_sequences=3))
    c.sequences("a", "b", "gone")
    c.free("gone")
    c.plan(["a"], [3], [1])
    c.append()
    c.fail("plan", BAD, "sequences[1]", batch="main", sequences=["a", "a"], new_tokens=[1, 1])
    c.fail("plan", BAD, "new_tokens[1]", batch="main", sequences=["a", "b"], new_tokens=[1, -1])
    c.fail("plan", BAD, "query_tokens[0]", batch="main", sequences=["a"], new_tokens=[1], query_tokens=[5])
    c.fail("plan", BAD, "sequences[0]", batch="main", sequences=["gone"], new_tokens=[1])
    c.length("a")
    c.attend()  # the plan before is still in force
    yield c

    c = Case(tensors, "plan_capacity",
             "more tokens than the pool, the sequence limit or the batch limits allow; nothing changes")
    c.create(**small(
        max_tokens=64, max_sequence_tokens=48, max_sequences=4, max_batch_sequences=2, max_batch_tokens=40))
    c.sequences("a", "b", "c", "d")
    c.plan(["a"], [30], [1])
    c.append()
    c.fail("plan", CAPACITY, "max_sequence_tokens", batch="main", sequences=["a"], new_tokens=[19])
    c.fail("plan", CAPACITY, "max_batch_tokens", batch="main", sequences=["b"], new_tokens=[41])
    c.fail("plan",
           CAPACITY,
           "max_batch_sequences",
           batch="main",
           sequences=["a", "b", "c"],
           new_tokens=[1, 1, 1])
    c.length("a")
    c.length("b")
    c.attend()
    yield c

    c = Case(tensors, "pool_capacity", "three sequences of the pool's whole size")
    c.create(**small(max_tokens=64, max_sequences=3, max_batch_tokens=192))
    c.sequences("a", "b", "c")
    c.fail("plan", CAPACITY, "new_tokens", batch="main", sequences=["a", "b", "c"], new_tokens=[64, 64, 64])
    c.memory(num_sequences=3, tokens=0, pages_used=0)
    c.plan(["b"], [3])
    c.append()
    c.attend()
    yield c

    c = Case(
        tensors, "out_of_force",
        "append and attend without a plan, after a truncate, and after another batch has planned the sequence"
    )
    c.create(**small())
    c.sequences("a")
    k, v = (c.put(name, c.random(2, 1, 32)) for name in ("k", "v"))
    q = c.put("q", c.random(2, 2, 32))
    c.fail("append", STATE, "plan", batch="main", layer=0, k=k, v=v)
    c.fail("attend", STATE, "plan", batch="main", layer=0, q=q)
    c.plan(["a"], [2])
    c.append()
    c.truncate("a", 1)
    c.fail("attend", STATE, "plan", batch="main", layer=0, q=q)
    c.plan(["a"], [1])
    c.step("plan", batch="other", sequences=["a"], new_tokens=[1])
    c.fail("append", STATE, "plan", batch="main", layer=0, k=k, v=v)
    c.step("sequence_length", sequence="a", expect=3)
    yield c


def unwritten(tensors):
    c = Case(tensors, "unwritten", "tokens that are planned and not appended are neither seen nor built upon")
    c.create(**{**small(), "num_layers": 2})
    c.sequences("a")
    c.plan(["a"], [3])
    q = c.put("q", c.random(3, 2, 32))
    k, v = (c.put(name, c.random(1, 1, 32)) for name in ("k", "v"))
    c.append(0)
    c.fail("attend", STATE, "layer", "holds 0", batch="main", layer=1, q=q)
    c.fail("read", STATE, "layer 1", "holds 0", layer=1, sequence="a", first=1, count=2)
    c.append(1)
    c.attend(1)
    # A plan that is never appended, and the next one behind it.
    for _ in range(2):
        c.step("plan", batch="main", sequences=["a"], new_tokens=[1])
    c.fail("append", STATE, "layer", "truncate it to 3", batch="main", layer=0, k=k, v=v)
    c.step("sequence_truncate", sequence="a", length=3)
    c.plan(["a"], [0], [2])
    c.attend(0)
    yield c


def calls(tensors):
    c = Case(tensors, "layer_range", "a layer that does not exist")
    c.create(**small())
    c.sequences("a")
    c.plan(["a"], [2])
    k, v = (c.put(name, c.random(2, 1, 32)) for name in ("k", "v"))
    q = c.put("q", c.random(2, 2, 32))
    for layer in (-1, 1):
        c.fail("append", BAD, "layer", batch="main", layer=layer, k=k, v=v)
        c.fail("attend", BAD, "layer", batch="main", layer=layer, q=q)
    yield c

    c = Case(tensors, "attend_parameters", "parameters out of range")
    c.create(**small())
    c.sequences("a")
    c.plan(["a"], [2])
    c.append()
    q = c.put("q", c.random(2, 2, 32))
    for name, value in (("out_dtype", 7), ("logit_softcap", -1.0), ("sliding_window", -1),
                        ("history_only", 2)):
        c.fail("attend", BAD, name, batch="main", layer=0, q=q, params={name: value})
    yield c

    c = Case(tensors, "centres_state", "centres are finite, and come before the first token")
    c.create(**small())
    c.sequences("a")
    bad = np.ones((1, 32), dtype=np.float32)
    bad[0, 3] = np.nan
    c.fail("set_centres", BAD, "value_centre", layer=0, value_centre=c.put("bad", bad))
    c.fail("set_centres",
           BAD,
           "layer",
           layer=1,
           value_centre=c.put("layer", np.ones((1, 32), dtype=np.float32)))
    c.plan(["a"], [1])
    c.append()
    c.fail("set_centres",
           STATE,
           "centres",
           layer=0,
           key_centre=c.put("late", np.ones((1, 32), dtype=np.float32)))
    c.attend()
    yield c

    c = Case(tensors, "merge_arguments", "nothing to merge, and a type that is none")
    part, lse = c.put("part", c.random(2, 32)), c.put("lse", c.random(2))
    c.fail("merge", BAD, "num_states", outs=[], lses=[], rows=2, dim=32, dtype=1)
    c.fail("merge", BAD, "dtype", outs=[part], lses=[lse], rows=2, dim=32, dtype=0)
    c.fail("merge", BAD, "rows", outs=[part], lses=[lse], rows=-1, dim=32, dtype=1)
    yield c


def build(tensors):
    for group in (configurations, sequences, plans, unwritten, calls):
        yield from group(tensors)
