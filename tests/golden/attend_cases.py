# SPDX-License-Identifier: Apache-2.0
"""attend.safetensors: small attention cases; the expected results are those of exact arithmetic on the
decoded codes."""
import json

import numpy as np
from reference import key_matrix
from reference import tqkv_reference as ref
from encode_cases import gaussian, key_matrices

SEED = 77
DEFAULTS = {
    "layer": 0, "head_dim": 64, "value_dim": 64, "key_bits": 4, "value_bits": 4, "num_q_heads": 2,
    "num_kv_heads": 1, "seq_len": 40, "new_tokens": 1, "query_tokens": 1, "softmax_scale": 0.0,
    "logit_softcap": 0.0, "sliding_window": 0, "sink_logits": None, "history_only": False, "window_tokens": 0,
    "rollback_tokens": 0, "sink_tokens": 0, "centres": False, "search": True, "matrices": False,
    "visible_begin": None, "visible_end": None, "tree_mask": None, "alibi_slopes": None
}


def causal(seq_len, query_tokens):
    """(begin, end) lists: what the last queries see without a mask."""
    return [0] * query_tokens, list(range(seq_len - query_tokens + 1, seq_len + 1))


def spans(seq_len, *images):
    """Every token a query; tokens of an image see the whole of it."""
    begin, end = causal(seq_len, seq_len)
    for first, last in images:
        end[first:last] = [last] * (last - first)
    return {"visible_begin": begin, "visible_end": end}


def tree(parents):
    """Masks of drafts: each sees itself and its ancestors. parents[i] < i, or -1 for a child of the
    history."""
    masks = []
    for i, parent in enumerate(parents):
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << i)
    return {"tree_mask": [[mask % 2**64, mask // 2**64][:1 + (len(parents) > 64)] for mask in masks]}


CASES = {
    "decode_mha": {"num_kv_heads": 2, "seq_len": 44},
    "decode_one_token": {"seq_len": 1},
    "decode_gqa3_mixed": {
        "head_dim": 96, "value_dim": 96, "key_bits": 4, "value_bits": 2, "num_q_heads": 6, "num_kv_heads": 2,
        "layer": 5
    },
    "decode_key_wider": {"head_dim": 192, "value_dim": 128, "num_q_heads": 4, "seq_len": 33},
    "decode_padded_dim": {"head_dim": 80, "value_dim": 80, "key_bits": 5, "value_bits": 6, "seq_len": 45},
    "decode_raw_key": {"key_bits": 16, "value_bits": 4},
    "decode_b8": {"key_bits": 8, "value_bits": 8, "seq_len": 40, "softmax_scale": 0.2},
    "decode_nosearch": {"key_bits": 3, "value_bits": 3, "search": False},
    "prefill_gqa4": {
        "seq_len": 35, "new_tokens": 35, "query_tokens": 35, "head_dim": 32, "value_dim": 32, "key_bits": 3,
        "value_bits": 3, "num_q_heads": 4
    },
    "prefill_d128": {
        "seq_len": 12, "new_tokens": 12, "query_tokens": 12, "head_dim": 128, "value_dim": 128, "key_bits": 2
    },
    "chunk_after_history":
        {"seq_len": 64, "new_tokens": 11, "query_tokens": 11, "key_bits": 3, "value_bits": 4},
    "queries_fewer_than_new": {"seq_len": 50, "new_tokens": 20, "query_tokens": 3},
    "window_and_sinks": {
        "key_bits": 2, "value_bits": 2, "seq_len": 67, "new_tokens": 3, "query_tokens": 3,
        "window_tokens": 16, "rollback_tokens": 2, "sink_tokens": 4
    },
    "sliding_window":
        {"seq_len": 50, "new_tokens": 9, "query_tokens": 9, "sliding_window": 20, "key_bits": 3},
    "softcap": {"logit_softcap": 2.0, "softmax_scale": 0.3},
    "sink_logits": {"num_q_heads": 4, "sink_logits": [0.5, -3.0, 4.0, 9.0]},
    "history_only": {"seq_len": 40, "new_tokens": 7, "query_tokens": 7, "history_only": True},
    "history_empty": {"seq_len": 6, "new_tokens": 6, "query_tokens": 6, "history_only": True},
    "history_empty_sink":
        {"seq_len": 6, "new_tokens": 6, "query_tokens": 6, "history_only": True, "sink_logits": [1.25, -2.0]},
    "centres": {
        "head_dim": 128, "value_dim": 128, "key_bits": 3, "value_bits": 3, "softmax_scale": 0.05,
        "centres": True
    },
    "everything": {
        "key_bits": 4, "value_bits": 3, "num_q_heads": 6, "num_kv_heads": 2, "seq_len": 70, "new_tokens": 5,
        "query_tokens": 5, "sliding_window": 50, "logit_softcap": 8.0,
        "sink_logits": [0.1, 0.2, 0.3, -0.4, -0.5,
                        2.0], "window_tokens": 24, "rollback_tokens": 4, "sink_tokens": 30, "centres": True,
        "layer": 2
    },
    # Gemma 3: two images in a prompt
    "mask_image_spans": {
        "seq_len": 44, "new_tokens": 44, "query_tokens": 44, "key_bits": 3, **spans(44, (5, 13), (30, 38))
    },
    "mask_prefix": {
        "seq_len": 30, "new_tokens": 30, "query_tokens": 30, "window_tokens": 8, "rollback_tokens": 29,
        "sink_tokens": 2,
        **spans(30, (0, 20))
    },
    # Whisper: more text tokens than audio states, which were appended before
    "mask_cross_attention": {
        "num_q_heads": 2, "num_kv_heads": 2, "seq_len": 37, "new_tokens": 0, "query_tokens": 45,
        "window_tokens": 6, "rollback_tokens": 44, "visible_begin": [0] * 45, "visible_end": [37] * 45
    },
    # Llama 4: attention inside chunks
    "mask_chunks": {
        "seq_len": 50, "new_tokens": 40, "query_tokens": 40, "key_bits": 8, "value_bits": 8,
        "visible_begin": [p // 16 * 16 for p in range(10, 50)], "visible_end": list(range(11, 51))
    },
    "mask_tree": {
        "num_q_heads": 4, "seq_len": 45, "new_tokens": 12, "query_tokens": 12, "window_tokens": 16,
        "rollback_tokens": 11, "sliding_window": 40, **tree([-1, -1, -1, 0, 0, 1, 2, 3, 3, 4, 7, 7])
    },
    "mask_tree_two_words": {
        "seq_len": 90, "new_tokens": 80, "query_tokens": 70, "key_bits": 3, "value_bits": 3,
        **tree([i // 2 - 1 for i in range(80)])
    },
    # MPT: slopes 2^(-8 h / heads)
    "mask_alibi": {
        "num_q_heads": 4, "num_kv_heads": 4, "seq_len": 60, "new_tokens": 5, "query_tokens": 5,
        "window_tokens": 9, "rollback_tokens": 4, "alibi_slopes": [0.25, 0.0625, 0.015625, 0.00390625]
    },
    "mask_everything": {
        "key_bits": 4, "value_bits": 3, "num_q_heads": 4, "num_kv_heads": 2, "seq_len": 70, "new_tokens": 9,
        "query_tokens": 8, "logit_softcap": 8.0, "sink_logits": [0.1, 0.2, -0.5, 2.0], "window_tokens": 24,
        "rollback_tokens": 7, "sink_tokens": 10, "centres": True, "layer": 2,
        "visible_begin": [0, 5, 64, 70, -9, 8, 12, 3], "visible_end": [70, 63, 66, 75, 8, 8, 69, 99],
        "tree_mask": [[511], [511], [5], [511], [511], [511], [0x1AA], [7]],
        "alibi_slopes": [0.5, -0.125, 0.0, 0.25]
    },
    "key_matrices": {
        "key_bits": 3, "num_q_heads": 4, "num_kv_heads": 2, "seq_len": 66, "new_tokens": 3, "query_tokens": 3,
        "window_tokens": 12, "rollback_tokens": 2, "sink_tokens": 3, "centres": True, "matrices": True,
        "layer": 1
    },
}
for _case in CASES.values():  # those of masks speak of the queries that there are
    if "tree_mask" in _case:
        _case["tree_mask"] = _case["tree_mask"][-_case["query_tokens"]:]


def decode_side(x, p, kind, centre, matrices=None):
    """x float32 [seq_len, num_kv_heads, d] -> decoded float64 [num_kv_heads, seq_len, d]."""
    bits = p["key_bits"] if kind == ref.KEY else p["value_bits"]
    heads = []
    for kv_head in range(x.shape[1]):
        vectors = np.ascontiguousarray(x[:, kv_head])
        if bits == 16:
            heads.append(ref.raw_bits(vectors)[0].view(np.float16).astype(np.float64))
            continue
        own = None if centre is None else centre[kv_head]
        if matrices is not None:
            vectors = key_matrix.turn(matrices[kv_head], vectors)[0]
            own = None if own is None else key_matrix.turn(matrices[kv_head], own)[0]
        config = ref.SideConfig(head_dim=x.shape[2],
                                bits=bits,
                                kind=kind,
                                seed=SEED,
                                layer=p["layer"],
                                kv_head=kv_head,
                                search=p["search"],
                                centre=None if own is None else tuple(float(c) for c in own))
        encoded = ref.encode(vectors, config)
        decoded = ref.decode(encoded.codes, encoded.scales, config)
        if matrices is not None:
            decoded = key_matrix.product(key_matrix.inverse(matrices[kv_head]), decoded)
        heads.append(decoded.astype(np.float64))
    return np.stack(heads)


def build_case(number, p):
    t, kv, d, dv = p["seq_len"], p["num_kv_heads"], p["head_dim"], p["value_dim"]
    k = gaussian(100 * number + 1, t * kv * d).reshape(t, kv, d)
    v = gaussian(100 * number + 2, t * kv * dv).reshape(t, kv, dv)
    k_centre = v_centre = matrices = None
    tensors = {}
    if p["centres"]:
        k_centre = (1.5 * gaussian(100 * number + 3, kv * d)).reshape(kv, d).astype(np.float32)
        v_centre = gaussian(100 * number + 4, kv * dv).reshape(kv, dv).astype(np.float32)
        k, v = k + k_centre, v + v_centre
        tensors.update(key_centre=k_centre, value_centre=v_centre)
    if p["matrices"]:
        matrices = tensors["key_matrix"] = key_matrices(100 * number + 6, kv, d)
    # Queries that look at some key, so that the softmax is not flat.
    group = p["num_q_heads"] // kv
    own = np.arange(t - p["query_tokens"], t)
    q = gaussian(100 * number + 5,
                 p["query_tokens"] * p["num_q_heads"] * d).reshape(p["query_tokens"], p["num_q_heads"], d)
    q = q + 0.4 * np.repeat(k[own // 2], group, axis=1)
    q, k, v = (a.astype(np.float32) for a in (q, k, v))
    heads_first = [np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (k, v)]
    out, lse = ref.attend(q,
                          decode_side(k, p, ref.KEY, k_centre, matrices),
                          decode_side(v, p, ref.VALUE, v_centre),
                          softmax_scale=p["softmax_scale"] or None,
                          softcap=p["logit_softcap"],
                          sliding_window=p["sliding_window"],
                          sink_logits=p["sink_logits"],
                          history_only_len=t - p["new_tokens"] if p["history_only"] else None,
                          exact=ref.exact_token_mask(t, p["query_tokens"], p["window_tokens"],
                                                     p["sink_tokens"]),
                          k_exact=heads_first[0],
                          v_exact=heads_first[1],
                          visible=None if p["visible_begin"] is None else
                          (p["visible_begin"], p["visible_end"]),
                          tree_mask=p["tree_mask"],
                          new_tokens=p["new_tokens"],
                          alibi_slopes=p["alibi_slopes"])
    tensors.update(q=q, k=k, v=v, out=out, lse=lse)
    return tensors


def build():
    """-> (tensors, metadata)"""
    tensors, metadata = {}, {}
    for number, (name, changes) in enumerate(CASES.items()):
        parameters = {**DEFAULTS, **changes, "seed": SEED}
        metadata[name] = json.dumps(parameters)
        tensors.update((f"{name}.{key}", array) for key, array in build_case(number, parameters).items())
    return tensors, metadata
