# SPDX-License-Identifier: Apache-2.0
"""Attention over decoded keys and values of one sequence, in float64.

The formulas: logit = softmax_scale * q.k, then cap * tanh(logit / cap) if there is a cap; weight =
exp(logit); out = sum of weight * v over sum of weight; the sum takes exp(sink logit) of the head in as well;
lse = natural log of that sum. A centre needs no word here: decoded vectors already contain it.
"""
import numpy as np


def exact_token_mask(seq_len, query_tokens, window_tokens, sink_tokens):
    """bool [query_tokens, seq_len]: what each of the last query_tokens queries reads from raw copies: the
    first sink_tokens, and the window_tokens up to its own position."""
    token, position = np.arange(seq_len), np.arange(seq_len - query_tokens, seq_len)[:, None]
    window = (token <= position) & (token > position - window_tokens)
    return (token < sink_tokens) | window


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
           first_position=None):
    """q [q_len, num_q_heads, d], k [num_kv_heads, seq_len, d], v [num_kv_heads, seq_len, dv] -> out [q_len,
    num_q_heads, dv], lse [q_len, num_q_heads], float64.

    first_position    position of query 0; None: the queries are the last q_len tokens
    history_only_len  history length; tokens at or after it are left out. None: all tokens
    sliding_window    tokens that a query sees, its own included; 0 = all
    exact             bool [seq_len] or [q_len, seq_len]: tokens taken from k_exact, v_exact (shapes of k, v)
                      instead
    A row that sees nothing: out 0, lse -inf, or the sink logit where there is one.
    """
    q, k, v = (np.asarray(a, dtype=np.float64) for a in (q, k, v))
    q_len, num_q_heads, d = q.shape
    num_kv_heads, seq_len, _ = k.shape
    assert num_q_heads % num_kv_heads == 0
    scale = 1 / np.sqrt(d) if softmax_scale is None else softmax_scale
    position = np.arange(q_len) + (seq_len - q_len if first_position is None else first_position)
    token = np.arange(seq_len)
    visible = np.ones((q_len, seq_len), dtype=bool)
    if causal:
        visible &= token[None, :] <= position[:, None]
    if sliding_window > 0:
        visible &= token[None, :] > position[:, None] - sliding_window
    if history_only_len is not None:
        visible &= token[None, :] < history_only_len
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
        logits = np.where(visible, logits, -np.inf)
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
