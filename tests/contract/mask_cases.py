# SPDX-License-Identifier: Apache-2.0
"""Cases of masks: what queries see, and plans that a mask does not fit."""
import numpy as np
from builder import Case
from layer_cases import cache, layer
from result_cases import shapes


def ranges(*pairs):
    return {"visible_begin": [begin for begin, _ in pairs], "visible_end": [end for _, end in pairs]}


def visible(tensors):
    c = Case(tensors, "mask_image_span",
             "tokens 5 .. 12 of a prompt see each other, the others what is before")
    c.create(**shapes(2, 1, 32, (4, 4)))
    c.sequences("a")
    c.plan(["a"], [16])
    c.append()
    c.attend(**ranges(*[(0, 13 if 5 <= p < 13 else p + 1) for p in range(16)]))
    yield c

    c = Case(tensors, "mask_cross_attention",
             "more decoder tokens than encoder states, which were appended once: all see all; then one alone")
    c.create(**shapes(4, 2, 32, (8, 8), max_sequences=2))
    c.sequences("states", "none")
    c.plan(["states"], [10], [0])
    c.append()
    c.plan(["states", "none"], [0, 0], [13, 2])
    c.fail("attend", "INVALID_STATE", "visible_begin", "10 tokens", batch="main", layer=0,
           q=c.put("q", c.queries()))
    c.attend(**ranges(*[(0, 10)] * 13, (0, 10), (0, 10)))  # the empty sequence: out 0, lse -inf
    c.plan(["states"], [0], [1])
    c.attend(**ranges((0, 10)))
    yield c

    c = Case(tensors, "mask_chunks", "chunked local attention: chunks of 8 tokens, two sequences in one plan")
    c.create(**shapes(2, 1, 32, (4, 3), max_sequences=2, window_tokens=4, sink_tokens=2, rollback_tokens=8))
    c.sequences("a", "b")
    c.plan(["a", "b"], [19, 5], [0, 0])
    c.append()
    c.plan(["b", "a"], [6, 3], [6, 2])
    c.append()
    c.attend(**ranges(*[(p // 8 * 8, p + 1) for p in [*range(5, 11), 20, 21]]))
    # bounds beyond what is there are cut, empty ranges see nothing
    most = 2**31 - 1
    c.attend(**ranges((-5, 3), (4, 4), (9, 2), (3, most), (-most - 1, most), (30, 40), (21, 22), (0, 1)))
    c.attend(history_only=1, sink_logits=[0.5, -1.0],
             **ranges(*[(0, 99)] * 4, (6, 99), (5, 6), (18, 99), (19, 99)))
    yield c


def trees(tensors):
    c = Case(tensors, "mask_tree", "7 drafts of a tree behind 12 tokens: each sees its ancestors and itself")
    c.create(**shapes(2, 1, 32, (4, 4), window_tokens=6, rollback_tokens=8))
    c.sequences("a")
    c.plan(["a"], [12], [1])
    c.append()
    c.plan(["a"], [7])
    c.append()
    masks = [0b1, 0b10, 0b101, 0b1001, 0b10010, 0b100101, 0b1010010]
    q = c.queries()
    c.attend(q=q, tree_mask=[[m] for m in masks])
    c.attend(q=q, tree_mask=[[m, 2**64 - 1] for m in masks], sliding_window=9)
    c.attend(q=q, tree_mask=[[m] for m in masks], **ranges(*[(3, 19)] * 6, (14, 18)))
    c.attend(q=q, tree_mask=[[127 & ~m] for m in masks], alibi_slopes=[0.25, 1.0], logit_softcap=3.0)
    c.fail("attend", "INVALID_ARGUMENT", "visible_begin", "both", batch="main", layer=0, q=c.put("q", q),
           params={"visible_begin": c.put("begin", np.zeros(7, dtype=np.int32))})
    q = c.case["steps"][-1]["q"]
    c.fail("attend", "INVALID_ARGUMENT", "sliding_window = 5", batch="main", layer=0, q=q,
           params=c.put_arrays({"sliding_window": 5, **ranges(*[(0, 9)] * 7)}, "w"))
    c.plan(["a"], [1], [2])
    c.append()
    c.fail("attend", "INVALID_STATE", "tree_mask", "2 queries", "1 new tokens", batch="main", layer=0,
           q=c.put("q2", c.queries()), params=c.put_arrays({"tree_mask": [[1], [1]]}, "old"))
    c.plan(["a"], [65], [1])
    c.append()
    c.fail("attend", "INVALID_STATE", "tree_words = 1", "65 new tokens", batch="main", layer=0,
           q=c.put("q1", c.queries()), params=c.put_arrays({"tree_mask": [[1]]}, "short"))
    c.attend(tree_mask=[[0, 1]])
    yield c


def alibi(tensors):
    c = Case(tensors, "mask_alibi", "slopes of MPT for 4 heads, in prefill and decode")
    c.create(**shapes(4, 2, 32, (4, 4), window_tokens=8, rollback_tokens=16))
    slopes = [0.25, 0.0625, 0.015625, 0.00390625]
    c.sequences("a")
    for new in (12, 1):
        c.plan(["a"], [new])
        c.append()
        c.attend(alibi_slopes=slopes)
    c.attend(alibi_slopes=slopes, sink_logits=[0.5, -1.0, 0.0, 3.0], history_only=1)
    yield c


def plans(tensors):
    c = Case(tensors, "mask_plans", "more queries than tokens only without new tokens")
    c.create(**shapes(2, 1, 32, (4, 4)))
    c.sequences("a")
    c.fail("plan", "INVALID_ARGUMENT", "query_tokens[0] = 3", "2 tokens", batch="main", sequences=["a"],
           new_tokens=[2], query_tokens=[3])
    c.length("a")
    yield c


def sliding(tensors):
    c = Case(tensors, "mask_sliding_layer",
             "a layer's own window cuts ranges in front; cross-attention has no window")
    c.create(**cache(layer(1, 1, 32), layer(1, 1, 32, sliding_window=6)))
    c.sequences("a")
    c.plan(["a"], [14])
    for i in (0, 1):
        c.append(i)
        c.attend(i, **ranges(*[(0, 12 if 7 <= p < 12 else p + 1) for p in range(14)]))
    c.plan(["a"], [0], [15])
    c.attend(0, **ranges(*[(0, 14)] * 15))
    c.fail("attend", "INVALID_STATE", "15 queries", "sliding window of 6", batch="main", layer=1,
           q=c.put("q", c.queries(1)), params=c.put_arrays(ranges(*[(0, 14)] * 15), "cross"))
    yield c


def build(tensors):
    for group in (visible, trees, alibi, plans, sliding):
        yield from group(tensors)
