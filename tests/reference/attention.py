# SPDX-License-Identifier: Apache-2.0
"""Attention over decoded keys and values of one sequence, in float64.

The formulas: logit = softmax_scale * q.k, then cap * tanh(logit / cap) if there is a cap, then + slope *
(token - position of the query) if the head has an ALiBi slope; weight = exp(logit); out = sum of weight * v
over sum of weight; the sum takes exp(sink logit) of the head in as well; lse = natural log of that sum. A
centre needs no word here: decoded vectors already contain it.
"""
import numpy as np


def exact_token_mask(seq_len, query_tokens, window_tokens, sink_tokens):
    """bool [query_tokens, seq_len]: what each of the last query_tokens queries reads from raw copies: the
    first sink_tokens, the window_tokens up to its own position, and what a mask shows it behind that."""
    token, position = np.arange(seq_len), np.arange(seq_len - query_tokens, seq_len)[:, None]
    return (token < sink_tokens) | ((window_tokens > 0) & (token > position - window_tokens))


def visible_tokens(position,
                   seq_len,
                   causal=True,
                   sliding_window=0,
                   history_only_len=None,
                   visible=None,
                   tree_mask=None,
                   new_tokens=0):
    """bool [q_len, seq_len]: the tokens that queries at these positions see; arguments as attend's."""
    token, position = np.arange(seq_len)[None, :], np.asarray(position)[:, None]
    if visible is not None:
        begin, end = (np.asarray(bound, dtype=np.int64)[:, None] for bound in visible)
        seen = (token >= begin) & (token < end)
    else:
        seen = (token <= position) if causal else np.ones((len(position), seq_len), dtype=bool)
    if sliding_window > 0:
        seen = seen & (token > position - sliding_window)
    if tree_mask is not None:
        words = np.asarray(tree_mask, dtype=np.uint64).reshape(len(position), -1)
        bits = (words[:, :, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).reshape(len(position), -1)
        named = np.zeros_like(seen)
        named[:, seq_len - new_tokens:] = bits[:, :new_tokens]
        new = token >= seq_len - new_tokens
        seen = np.where(new, named & (seen if visible is not None else True), seen)
    if history_only_len is not None:
        seen = seen & (token < history_only_len)
    return seen


def attend(q,
           k,
           v,
           softmax_scale=None,
           causal=True,
           history_only_len=None,
           sliding_window=0,
           softcap=0.0,
           sink_logits=None,
           exact=None,
           k_exact=None,
           v_exact=None,
           first_position=None,
           visible=None,
           tree_mask=None,
           new_tokens=0,
           alibi_slopes=None):
    """q [q_len, num_q_heads, d], k [num_kv_heads, seq_len, d], v [num_kv_heads, seq_len, dv] -> out [q_len,
    num_q_heads, dv], lse [q_len, num_q_heads], float64.

    first_position    position of query 0; None: the queries are the last q_len tokens
    history_only_len  history length; tokens at or after it are left out. None: all tokens
    sliding_window    tokens that a query sees, its own included; 0 = all
    exact             bool [seq_len] or [q_len, seq_len]: tokens taken from k_exact, v_exact (shapes of k, v)
                      instead
    visible           (begin [q_len], end [q_len]): the query sees these tokens; no causal bound
    tree_mask         [q_len, words] uint64: bit j % 64 of word j / 64 says whether the query sees the j-th of
                      the last new_tokens tokens, whatever their order (with `visible`: if that shows it too)
    alibi_slopes      [num_q_heads]
    A row that sees nothing: out 0, lse -inf, or the sink logit where there is one.
    """
    q, k, v = (np.asarray(a, dtype=np.float64) for a in (q, k, v))
    q_len, num_q_heads, d = q.shape
    num_kv_heads, seq_len, _ = k.shape
    assert num_q_heads % num_kv_heads == 0
    scale = 1 / np.sqrt(d) if softmax_scale is None else softmax_scale
    position = np.arange(q_len) + (seq_len - q_len if first_position is None else first_position)
    seen = visible_tokens(position, seq_len, causal, sliding_window, history_only_len, visible, tree_mask,
                          new_tokens)
    exact = np.zeros(
        (q_len, seq_len), dtype=bool) if exact is None else np.broadcast_to(exact, (q_len, seq_len))

    out = np.zeros((q_len, num_q_heads, v.shape[2]))
    lse = np.full((q_len, num_q_heads), -np.inf)
    for head in range(num_q_heads):
        kv_head = head // (num_q_heads // num_kv_heads)
        logits = q[:, head] @ k[kv_head].T * scale
        if exact.any():
            logits = np.where(exact, q[:, head] @ np.asarray(k_exact[kv_head], dtype=np.float64).T * scale,
                              logits)
        if softcap > 0:
            logits = softcap * np.tanh(logits / softcap)
        if alibi_slopes is not None:
            logits = logits + float(alibi_slopes[head]) * (np.arange(seq_len)[None, :] - position[:, None])
        logits = np.where(seen, logits, -np.inf)
        sink = -np.inf if sink_logits is None else float(sink_logits[head])
        top = np.maximum(logits.max(axis=1, initial=-np.inf), sink)
        safe_top = np.where(np.isfinite(top), top, 0.0)
        weight = np.exp(logits - safe_top[:, None])
        total = weight.sum(axis=1) + np.exp(sink - safe_top)
        weighted = np.where(exact, 0.0, weight) @ v[kv_head]
        if exact.any():
            weighted = weighted + np.where(exact, weight, 0.0) @ np.asarray(v_exact[kv_head],
                                                                            dtype=np.float64)
        some = total > 0
        out[some, head] = weighted[some] / total[some, None]
        lse[some, head] = safe_top[some] + np.log(total[some])
    return out, lse
