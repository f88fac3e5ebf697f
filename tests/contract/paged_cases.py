# SPDX-License-Identifier: Apache-2.0
"""Cases of an engine's pages: slots, block tables, requests of all kinds, copies, and what is refused."""
from builder import Case
from model import BF16, F32
from paged_builder import Paged

BAD, STATE = "INVALID_ARGUMENT", "INVALID_STATE"


def shapes(**more):
    return {
        "num_layers": 1, "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32, "io_dtype": F32, "key_bits": 4,
        "value_bits": 4, "rotation_seed": 7, "page_size": 32, "num_threads": 1, **more
    }


def results(tensors):
    p = Paged(tensors, "paged_steps", "two requests in blocks of any order: a prompt, then tokens one by one")
    p.create(**shapes(num_layers=2, num_q_heads=2, num_kv_heads=1, layer_key_bits=[3, 16],
                      layer_value_bits=[5, 8]))
    for layer in range(2):
        p.pages(f"layer {layer}", layer, 6)
    p.requests(a=[4, 1], b=[2, 0, 5])
    for news in ({"a": 34, "b": 3}, {"a": 1, "b": 1}, {"b": 31}):
        p.plan(news)
        for layer in range(2):
            p.append(layer)
            p.attend(layer)
    p.read("layer 1", 1, "b", 30, 4)
    yield p

    p = Paged(tensors, "paged_blocks_of_heads", "heads first, blocks of 64 tokens, bfloat16")
    p.create(**shapes(io_dtype=BF16, num_q_heads=2))
    p.pages("pages", 0, 3, block_size=64, order=2)
    p.requests(a=[2, 0], block_size=64)
    for new in (66, 1):
        p.plan({"a": new}, queries={"a": min(new, 2)})
        p.append(0)
        p.attend(0)
    p.read("pages", 0, "a", 62, 4)
    yield p

    p = Paged(tensors, "paged_holes", "padding of rows and requests, tokens that are not stored, masks")
    p.create(**shapes())
    p.pages("pages", 0, 4)
    p.requests(a=[3], b=[1])
    p.plan({"a": 5, "b": 2}, padding=3, idle=2)
    p.append(0)
    p.attend(0)
    p.attend(0, sink_logits=[0.5, -1.0, 0.25, 0.0], softmax_scale=0.2)
    p.plan({"a": 1, "b": 1})
    p.append(0)
    p.attend(0, sliding_window=3, logit_softcap=4.0)
    p.attend(0, history_only=1)
    p.attend(0, alibi_slopes=[0.5, 0.25, 0.125, 0.0625])
    p.flags(0)
    yield p

    p = Paged(tensors, "paged_copies", "blocks copied inside of the pages and to others, for a fork")
    p.create(**shapes())
    p.pages("pages", 0, 4)
    p.pages("others", 0, 2)
    p.requests(a=[0])
    p.plan({"a": 7})
    p.append(0)
    p.copy("pages", "pages", [[0, 3], [-1, 1]])
    p.copy("pages", "others", [[3, 1]])
    p.fork("a", "b", [3])
    p.plan({"a": 1, "b": 1})
    p.append(0)
    p.attend(0)
    p.fork("a", "c", [1], length=7)
    p.plan({"c": 0}, queries={"c": 1})
    p.attend(0, pages="others")
    yield p

    p = Paged(tensors, "paged_is_a_cache", "the fingerprint of a codec is that of a cache; centres")
    p.create(**shapes())
    p.step("fingerprint", codec="main", save="plain")
    cache = {"max_tokens": 64, **shapes()}
    p.case["steps"].append({"op": "create", "config": cache})
    p.step("fingerprint", equals="plain")
    p.centres(0, p.random(2, 32), p.random(2, 32))
    p.step("fingerprint", codec="main", differs="plain")
    p.pages("pages", 0, 1)
    p.requests(a=[0])
    p.plan({"a": 6}, queries={"a": 2})
    p.append(0)
    p.attend(0)
    p.read("pages", 0, "a", 4, 2)
    yield p


def misuse(tensors):
    for name, status, text, change in (("tokens", BAD, "max_tokens = 64", {"max_tokens": 64}),
                                       ("window", "NOT_SUPPORTED", "window_tokens = 4", {"window_tokens": 4}),
                                       ("page_size", BAD, "page_size = 33", {"page_size": 33}),
                                       ("bits", BAD, "key_bits = 7", {"key_bits": 7})):
        c = Case(tensors, f"paged_codec_refuses_{name}", "a configuration that is none of a codec")
        c.fail("codec_create", status, text, config=shapes(**change))
        yield c

    p = Paged(tensors, "paged_misuse", "calls without a plan, arrays and blocks that are not there")
    p.create(**shapes())
    p.pages("pages", 0, 2)
    p.fail("pages", BAD, "layer = 1", name="x", layer=1, num_blocks=1)
    p.fail("pages", BAD, "block_size = 40", name="x", layer=0, num_blocks=1, block_size=40)
    p.fail("pages", BAD, "order", name="x", layer=0, num_blocks=1, order=3)
    k = p.put("k", p.random(2, 2, 32))
    q = p.put("q", p.random(2, 4, 32))
    p.fail("paged_append", STATE, "plan", step="main", pages="pages", layer=0, k=k, v=k)
    good = {"slot_mapping": [0, 1], "block_table": [[0]], "seq_lens": [2], "query_start_loc": [0, 2],
            "max_query_len": 2, "max_seq_len": 32}
    for text, change in (("step.slot_mapping[1] = -2", {"slot_mapping": [0, -2]}),
                         ("step.seq_lens[0] = 33", {"seq_lens": [33]}),
                         ("step.seq_lens[0] = -1", {"seq_lens": [-1]}),
                         ("step.query_start_loc[0] = 1", {"query_start_loc": [1, 2]}),
                         ("step.query_start_loc[1] = 3", {"query_start_loc": [0, 3], "max_query_len": 3}),
                         ("queries", {"query_start_loc": [0, -1]}),
                         ("max_query_len = 1", {"max_query_len": 1})):
        p.fail("paged_plan", BAD, text, step="main", **{**good, **change})
    p.step("paged_plan", step="main", **{**good, "slot_mapping": [0, 64], "block_table": [[2]]})
    p.fail("paged_append", BAD, "64", step="main", pages="pages", layer=0, k=k, v=k)
    p.fail("paged_attend", BAD, "block_table", step="main", pages="pages", layer=0, q=q)
    p.fail("paged_attend", BAD, "layer = -1", step="main", pages="pages", layer=-1, q=q)
    p.step("paged_plan", step="main", **good)
    p.step("paged_append", step="main", pages="pages", layer=0, k=k, v=k)
    p.fail("paged_attend", BAD, "sliding_window = -1", step="main", pages="pages", layer=0, q=q,
           params={"sliding_window": -1})
    p.fail("paged_read", BAD, "slots[1] = 64", pages="pages", layer=0, slots=[0, 64])
    p.fail("paged_copy", BAD, "pairs[0]", source="pages", target="pages", layer=0, pairs=[[0, 2]])
    p.flags(0)
    yield p


def build(tensors):
    for cases in (results, misuse):
        yield from cases(tensors)
