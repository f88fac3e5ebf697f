# SPDX-License-Identifier: Apache-2.0
"""Cases whose answers are numbers."""
import numpy as np
from builder import Case
from model import BF16, F16, F32

NO_SEARCH = 2


def shapes(q_heads, kv_heads, dim, bits, **more):
    key_bits, value_bits = bits
    return {
        "num_layers": 1, "num_q_heads": q_heads, "num_kv_heads": kv_heads, "head_dim": dim, "io_dtype": F32,
        "key_bits": key_bits, "value_bits": value_bits, "rotation_seed": 7, "max_tokens": 256,
        "num_threads": 1, **more
    }


def prefill_and_decode(tensors):
    c = Case(tensors, "prefill_and_decode",
             "one sequence: 37 tokens at once, then 3 single ones, in two layers; the codes read back")
    c.create(**shapes(2, 1, 64, (4, 4), num_layers=2))
    c.sequences("a")
    for new in (37, 1, 1, 1):
        c.plan(["a"], [new], [min(new, 2)])
        for layer in (0, 1):
            c.append(layer)
            c.attend(layer)
    c.length("a")
    c.read("a", 30, 10, layer=1)
    yield c


def geometry(tensors):
    c = Case(tensors, "mixed_bits_gqa",
             "3-bit keys, 5-bit values, 3 query heads per kv head, a head_dim with an odd factor")
    c.create(**shapes(6, 2, 96, (3, 5)))
    c.sequences("a")
    c.plan(["a"], [33], [2])
    c.append()
    c.attend()
    c.read("a", 31, 2)
    yield c

    c = Case(tensors, "value_dim_differs", "keys of 192 at 2 bits, values of 128 at 6 bits")
    c.create(**shapes(2, 1, 192, (2, 6), value_dim=128))
    c.sequences("a")
    c.plan(["a"], [34], [1])
    c.append()
    c.attend()
    c.read("a", 0, 2)
    yield c

    c = Case(tensors, "padded_dim_8_bits", "head_dim 80 is stored as 96; 8 bits")
    c.create(**shapes(2, 2, 80, (8, 8), page_size=32))
    c.sequences("a")
    c.plan(["a"], [35], [2])
    c.append()
    c.attend()
    c.read("a", 32, 3)
    yield c

    for dim, bits, more in ((40, (3, 4), {"window_tokens": 3, "sink_tokens": 2}), (100, (4, 16), {})):
        c = Case(tensors, f"padded_dim_{dim}", "stored as the next multiple of 32", cpu_only=dim % 8 > 0)
        c.create(**shapes(2, 1, dim, bits, **more))
        c.sequences("a")
        c.plan(["a"], [7], [2])
        c.append()
        c.attend()
        c.read("a", 2, 2)
        yield c

    c = Case(tensors,
             "dense_rotation_paper",
             "the paper's own quantiser: dense rotation, paper scales",
             cpu_only=True)
    c.create(**shapes(1, 1, 32, (3, 3), rotation=2, key_scale_rule=4, value_scale_rule=4))
    c.sequences("a")
    c.plan(["a"], [20], [1])
    c.append()
    c.attend()
    c.read("a")
    yield c

    c = Case(tensors, "norm_rule_no_search", "scale rule norm, one quantisation step")
    c.create(**shapes(2, 1, 32, (4, 3), key_scale_rule=3, value_scale_rule=1, flags=NO_SEARCH))
    c.sequences("a")
    c.plan(["a"], [20], [1])
    c.append()
    c.attend()
    c.read("a")
    yield c

    c = Case(tensors, "bits_per_layer",
             "layer 0: 2 and 8 bits, layer 1: raw keys, layer 2: the common 4 bits")
    c.create(**shapes(2, 1, 32, (4, 4), num_layers=3, layer_key_bits=[2, 16, 0], layer_value_bits=[8, 0, 4]))
    c.sequences("a")
    c.plan(["a"], [9], [2])
    for layer in range(3):
        c.append(layer)
        c.attend(layer)
        c.read("a", 0, 9, layer=layer)
    yield c

    c = Case(tensors, "own_codebook", "2-bit keys with a codebook of the caller's own")
    c.create(**shapes(1, 1, 64, (2, 4), key_codebook={"bits": 2, "unit": 0.015625, "magnitude": [27, 98]}))
    c.sequences("a")
    c.plan(["a"], [16], [1])
    c.append()
    c.attend()
    c.read("a")
    yield c


def io_types(tensors):
    c = Case(tensors, "bfloat16", "bfloat16 in and read back; out in float32")
    c.create(**shapes(4, 2, 64, (4, 4), io_dtype=BF16))
    c.sequences("a")
    c.plan(["a"], [12], [2])
    c.append()
    c.attend()
    c.read("a", 0, 4)
    yield c

    c = Case(tensors, "float16", "float16 in, raw values; out in float32")
    c.create(**shapes(4, 2, 64, (3, 16), io_dtype=F16))
    c.sequences("a")
    c.plan(["a"], [12], [2])
    c.append()
    c.attend()
    yield c


def batches(tensors):
    c = Case(tensors, "ragged_batch",
             "three sequences with 5, 0 and 11 new tokens and 2, 1 and 0 queries in one plan")
    c.create(**shapes(2, 1, 32, (4, 4), max_sequences=3))
    c.sequences("a", "b", "c")
    c.plan(["b"], [6], [0])
    c.append()
    c.plan(["a", "b", "c"], [5, 0, 11], [2, 1, 0])
    c.append()
    c.attend()
    c.plan(["c", "a"], [1, 1])
    c.append()
    c.attend()
    for name in "abc":
        c.length(name)
    yield c

    c = Case(tensors, "interleaved_layout",
             "k and v of a token side by side in one tensor; q lies head by head")
    c.create(**shapes(4, 2, 64, (4, 3)))
    c.sequences("a")
    c.plan(["a"], [10], [3])
    c.append_interleaved()
    c.attend(head_major=True)
    c.read("a", 8, 2)
    yield c

    c = Case(
        tensors, "fork_and_truncate",
        "a shared prefix of 40 tokens in pages of 32: fork, diverge, take a draft back, free the source")
    c.create(**shapes(2, 1, 32, (4, 4), page_size=32, max_sequences=2))
    c.sequences("a")
    c.plan(["a"], [40], [1])
    c.append()
    c.memory(num_sequences=1, tokens=40, pages_used=2)
    c.fork("a", "b")
    c.memory(num_sequences=2, tokens=80, pages_used=2)
    c.plan(["a", "b"], [3, 2])
    c.append()
    c.attend()
    c.memory(num_sequences=2, tokens=85, pages_used=3)
    c.truncate("a", 41)
    c.length("a")
    c.plan(["a"], [2])
    c.append()
    c.attend()
    c.read("a", 38, 5)
    c.free("a")
    c.memory(num_sequences=1, tokens=42, pages_used=2)
    c.plan(["b"], [0], [2])
    c.attend()
    yield c

    c = Case(
        tensors, "remove_and_select",
        "tokens out of the middle of a fork, in pages of 32; then every third; both sides go on")
    c.create(**shapes(2, 1, 32, (3, 5), io_dtype=BF16, page_size=32, max_sequences=2))
    c.sequences("a")
    c.plan(["a"], [75], [1])
    c.append()
    c.fork("a", "b")
    c.remove("b", 20, 9)
    c.length("b")
    c.memory(num_sequences=2, tokens=75 + 66, pages_used=6)
    c.read("b", 18, 6)
    c.plan(["a", "b"], [2, 3], [1, 1])
    c.append()
    c.attend()
    c.select("b", [i for i in range(69) if i % 3 != 1])
    c.read("b", 10, 8)
    c.remove("a", 32, 32)
    c.memory(num_sequences=2, tokens=45 + 46, pages_used=4)
    c.plan(["a", "b"], [0, 0], [2, 1])
    c.attend()
    c.remove("a", 40, 5)
    c.select("b", [])
    c.length("a")
    c.length("b")
    yield c

    c = Case(
        tensors, "remove_with_exact_copies",
        "the first 4 tokens and the last 8 are exact; tokens leave between them, among them, among the first")
    c.create(**shapes(2, 1, 32, (2, 2), io_dtype=BF16, window_tokens=8, sink_tokens=4))
    c.sequences("a")
    c.plan(["a"], [50], [1])
    c.append()
    c.remove("a", 10, 10)
    c.read("a", 2, 12)
    c.plan(["a"], [1])
    c.append()
    c.attend()
    c.remove("a", 36, 3)
    c.read("a", 28, 10)
    c.remove("a", 1, 2)
    c.read("a", 0, 6)
    c.plan(["a"], [12])
    c.append()
    c.attend()
    yield c

    c = Case(tensors, "reserve", "a pool of two pages grows while a plan is in force")
    c.create(**shapes(1,
                      1,
                      32, (4, 4),
                      io_dtype=BF16,
                      page_size=32,
                      max_tokens=32,
                      max_reserve_tokens=96,
                      max_batch_tokens=96))
    c.sequences("a")
    c.plan(["a"], [40], [2])
    c.append()
    c.fail("plan", "CAPACITY", "new_tokens", batch="main", sequences=["a"], new_tokens=[30])
    c.step("reserve", max_tokens=96)
    c.attend()
    c.plan(["a"], [30], [1])
    c.append()
    c.attend()
    yield c

    c = Case(tensors, "sequence_ids_are_not_reused",
             "a freed id stays invalid although its place is taken again")
    c.create(**shapes(1, 1, 32, (4, 4)))
    c.sequences("old")
    c.free("old")
    c.sequences("new")
    c.fail("sequence_length", "INVALID_ARGUMENT", "sequence", sequence="old")
    c.length("new")
    yield c


def exact_tokens(tensors):
    c = Case(
        tensors, "window_sinks_rollback",
        "last 8 and first 3 tokens exact at 2 bits; 4 tokens are taken back, inside the rollback, then 12"
        " beyond it")
    c.create(**shapes(2, 1, 32, (2, 2), window_tokens=8, sink_tokens=3, rollback_tokens=5))
    c.sequences("a")
    c.plan(["a"], [40], [2])
    c.append()
    c.attend()
    c.read("a", 32, 8, exact=True)
    c.read("a", 0, 3, exact=True)
    c.read("a", 20, 12)
    c.truncate("a", 36)
    c.read("a", 28, 8, exact=True)
    c.plan(["a"], [0], [1])
    c.attend()
    c.step("sequence_flags", sequence="a", expect=0)
    c.truncate("a", 24)
    c.step("sequence_flags", sequence="a", expect=4)
    c.plan(["a"], [3])
    c.append()
    c.attend()
    c.read("a", 16, 11)
    c.plan(["a"], [5])
    c.step("sequence_flags", sequence="a", expect=0)
    yield c

    c = Case(tensors, "flush", "the window is given up, the sinks are not; it grows again")
    c.create(**shapes(2, 1, 32, (2, 2), window_tokens=4, sink_tokens=2))
    c.sequences("a")
    c.plan(["a"], [9], [1])
    c.append()
    c.read("a", 3, 6)
    c.flush("a")
    c.step("sequence_flags", sequence="a", expect=4)
    c.read("a", 0, 9)
    c.plan(["a"], [2], [2])
    c.append()
    c.attend()
    c.read("a", 5, 6)
    yield c

    c = Case(
        tensors, "exact_copies_by_need",
        "sequences share the pool of exact copies: 6 pages of 32 tokens for 6 sequences; a plan with more"
        " queries than there is room for is refused, and goes in smaller ones")
    c.create(**shapes(2, 1, 32, (2, 2), max_sequences=6, window_tokens=20, max_raw_tokens=192))
    c.sequences("a", "b", "c")
    page = 32 * 64 * 4
    c.plan(["a"], [64], [45])
    c.append()
    c.attend()
    c.memory(raw_bytes_used=2 * page)
    c.plan(["b"], [70], [0])
    c.append()
    c.memory(raw_bytes_used=3 * page)
    c.read("b", 45, 25)
    c.fail("plan", "CAPACITY", "max_raw_tokens = 192: the plan needs 4 more pages", batch="main",
           sequences=["c"], new_tokens=[100])
    c.fork("a", "d")
    c.memory(raw_bytes_used=3 * page)
    c.plan(["c"], [60], [40])
    c.append()
    c.attend()
    c.memory(raw_bytes_used=5 * page)
    c.plan(["c"], [40], [40])
    c.append()
    c.attend()
    c.memory(raw_bytes_used=6 * page)
    c.plan(["d"], [0], [1])
    c.memory(raw_bytes_used=5 * page)
    c.attend()
    c.read("d", 40, 24)
    yield c

    c = Case(
        tensors, "drafts_at_once",
        "8 drafts verified in one plan read what 8 single steps of a fork read: each its own window of 8")
    c.create(**shapes(2, 1, 32, (2, 2), max_sequences=2, window_tokens=8, rollback_tokens=8))
    c.sequences("steps")
    c.plan(["steps"], [40], [0])
    c.append()
    c.fork("steps", "drafts")
    k, v = c.kv(8)
    queries = []
    for i in range(8):
        c.plan(["steps"], [1])
        c.append(0, k[i:i + 1], v[i:i + 1])
        queries.append(c.queries())
        c.attend(q=queries[-1])
    c.plan(["drafts"], [8])
    c.append(0, k, v)
    c.attend(q=np.concatenate(queries))
    yield c

    c = Case(tensors, "centres", "keys and values with large constant parts, subtracted before coding")
    c.create(**shapes(2, 2, 64, (3, 3), num_layers=2))
    c.sequences("a")
    key = (4 * c.random(2, 64)).astype(np.float32)
    value = (2 * c.random(2, 64)).astype(np.float32)
    c.centres(0, key, value)
    c.centres(1, key, None)
    c.plan(["a"], [14], [2])
    for layer in (0, 1):
        k, v = c.kv(14)
        c.append(layer, k + key, v + value)
        c.attend(layer, softmax_scale=0.0625)
    c.read("a", 10, 4)
    yield c


def attention(tensors):
    c = Case(
        tensors, "attend_params",
        "softmax scale, soft cap, sliding window, sink logits, each alone and all together"
    )
    c.create(**shapes(2, 1, 64, (4, 4)))
    c.sequences("a")
    c.plan(["a"], [40], [3])
    c.append()
    q = c.queries()
    everything = {
        "softmax_scale": 0.25, "logit_softcap": 4.0, "sliding_window": 16, "sink_logits": [0.5, -1.0]
    }
    for name, value in everything.items():
        c.attend(q=q, **{name: value})
    c.attend(q=q, **everything)
    c.attend(q=q, workspace="exact")
    c.fail("attend",
           "WORKSPACE_TOO_SMALL",
           "workspace_bytes",
           batch="main",
           layer=0,
           q=c.case["steps"][-1]["q"],
           workspace="short")
    yield c

    c = Case(tensors, "history_only_and_merge",
             "the history from the cache, the new tokens as a second part, merged by their lse")
    c.create(**shapes(2, 1, 32, (4, 4)))
    c.sequences("a")
    c.plan(["a"], [6])
    c.append()
    c.attend(history_only=1)  # nothing before the first tokens: out 0, lse -inf
    c.attend(history_only=1, sink_logits=[1.25, -2.0])
    c.plan(["a"], [4])
    c.append()
    out, lse = c.attend(history_only=1)
    rows = out.shape[0] * out.shape[1]
    parts = [out.reshape(rows, -1)] + [c.random(rows, 32) for _ in range(2)]
    lses = [lse.reshape(rows), c.random(rows), np.full(rows, -np.inf, dtype=np.float32)]
    parts[2][:] = np.nan  # the out of an empty part is not read
    c.merge(parts, lses)
    c.merge(parts[2:], lses[2:])
    c.merge(parts[:1], lses[:1])
    yield c

    c = Case(tensors, "not_finite", "a NaN and an infinity are noticed and replaced; the results stay finite")
    c.create(**shapes(1, 1, 32, (4, 4), max_sequences=2))
    c.sequences("clean", "dirty")
    c.step("sequence_flags", sequence="dirty", expect=0)
    c.plan(["clean", "dirty"], [2, 2], [1, 1])
    k, v = c.kv(4)
    k[2, 0, 5], v[3, 0, 6] = np.nan, -np.inf
    c.append(0, k, v)
    c.read("dirty")
    c.step("sequence_flags", sequence="clean", expect=0)
    c.step("sequence_flags", sequence="dirty", expect=1)
    c.step("check", expect=1)
    c.step("check", expect=0)
    yield c


def figures(tensors):
    c = Case(tensors, "stored_bytes", "bytes of one token, scales included, against float16")
    for dim, bits in ((128, (4, 4)), (128, (3, 3)), (128, (2, 2)), (64, (5, 6)), (80, (8, 4)), (256, (16, 4)),
                      (576, (4, 16))):
        c.config_bytes(**shapes(8, 2, dim, bits, num_layers=3))
    c.config_bytes(**shapes(8, 8, 192, (3, 2), value_dim=128, num_layers=2, layer_key_bits=[0, 16]))
    c.create(**shapes(8, 2, 128, (3, 3)))
    c.memory(num_sequences=0, tokens=0, pages_used=0, stored_bytes_used=0, raw_bytes_used=0,
             compression=256 * 512 / ((256 / 64 + 1) * 64 * 100))
    yield c

    c = Case(tensors, "fingerprint",
             "equal for what makes equal pages, different for another seed, other bits and other centres")
    c.create("one", **shapes(2, 1, 32, (4, 4)))
    c.create("same", **shapes(4, 1, 32, (4, 4), max_tokens=512, max_sequences=3))
    c.create("seed", **{**shapes(2, 1, 32, (4, 4)), "rotation_seed": 8})
    c.create("bits", **shapes(2, 1, 32, (4, 3)))
    c.step("fingerprint", cache="one", save="f")
    c.step("fingerprint", cache="same", equals="f")
    c.step("fingerprint", cache="seed", differs="f")
    c.step("fingerprint", cache="bits", differs="f")
    centre = c.put("kc", c.random(1, 32))
    c.step("set_centres", cache="one", layer=0, key_centre=centre)
    c.step("fingerprint", cache="one", differs="f")
    c.step("set_centres", cache="same", layer=0, key_centre=centre)
    c.step("fingerprint", cache="one", save="g")
    c.step("fingerprint", cache="same", equals="g")
    yield c


def ranks(tensors):
    c = Case(tensors, "ranks", "a rank of a parallel group holds the codes that one device holds for its "
             "layers and heads, and is another cache to the fingerprint")
    whole = shapes(2, 2, 32, (2, 3), num_layers=2)
    rank = {**whole, "num_q_heads": 1, "num_kv_heads": 1, "num_layers": 1}
    k, v = c.random(9, 2, 32), c.random(9, 2, 32)
    c.create("whole", **whole)
    c.sequences("s")
    c.plan(["s"], [9])
    for layer in range(2):
        c.append(layer, k, v)
        c.read("s", layer=layer)
    c.step("fingerprint", cache="whole", save="whole")
    c.create("rank", **rank, first_layer=1, first_kv_head=1)
    c.sequences("r")
    c.plan(["r"], [9], batch="rank")
    c.append(0, k[:, 1:], v[:, 1:], batch="rank")
    c.read("r")
    c.attend(batch="rank")
    c.step("fingerprint", cache="rank", save="rank")
    c.step("fingerprint", cache="rank", differs="whole")
    c.create("first", **rank)
    c.step("fingerprint", cache="first", differs="rank")
    # The second rank of two of a model whose layers have 2 and 4 kv heads.
    c.create("uneven", **{**whole, "num_q_heads": 2}, layers=[
        {"num_kv_heads": 1, "first_kv_head": 1}, {"first_kv_head": 2}])
    c.sequences("u")
    c.plan(["u"], [9], batch="uneven")
    for layer, first in ((0, 1), (1, 0)):
        c.append(layer, k[:, first:], v[:, first:], batch="uneven")
        c.read("u", layer=layer)
        c.attend(layer, batch="uneven")
    yield c


def copies(tensors):
    c = Case(tensors, "copy", "a sequence copied to a cache of another page size and back is what it was, "
             "exact copies included; the source stays")
    config = {**shapes(2, 1, 32, (2, 3)), "window_tokens": 8, "sink_tokens": 3, "rollback_tokens": 5}
    c.create("home", **config, max_sequences=2)
    c.create("away", **{**config, "page_size": 32, "max_tokens": 96})
    c.model = c.caches["home"]
    c.sequences("s")
    c.plan(["s"], [40], batch="home")
    c.append(batch="home")
    c.copy("s", "away", "there")
    c.length("there")
    c.plan(["there"], [2], batch="away")
    c.append(batch="away")
    c.attend(batch="away")
    c.copy("there", "home", "back")
    c.read("back")
    c.truncate("back", 39)
    c.plan(["back"], [0], [1], batch="home")
    c.attend(batch="home")
    c.length("s")
    yield c


def build(tensors):
    for group in (prefill_and_decode, geometry, io_types, batches, exact_tokens, attention,
                  figures, ranks, copies):
        yield from group(tensors)
