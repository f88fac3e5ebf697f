# SPDX-License-Identifier: Apache-2.0
"""Attention computed by torch on keys and values as they are: the first prompt of a TurboCache, and every
call of the attention function "tqkv" that no TurboCache is behind (another cache, an encoder, none at all).

Blocks of queries bound the memory of logits and masks: a prompt of n tokens never needs n x n numbers at
once. Padded rows are attended one by one, without their padding.
"""
import torch
from torch.nn import functional

from ..errors import NotSupported

# Logits that exist at once, over batch, heads, queries and keys.
_LOGITS = 1 << 26


def exact_attention(query, key, value, *, scale=None, softcap=None, sinks=None, window=0, causal=True,
                    real=None, mask=None):
    """softmax(q . K^T * scale) . V. query [B][Hq][T][D]: the last T of the S tokens of key and value
    [B][Hkv][S][D].

    softcap  c: logits become c * tanh(logit / c)
    sinks    [Hq]: added to the softmax's sum only
    window   tokens that a query sees, its own included; 0 = all
    real     [B][S] bool on the host, or None: False is padding; its queries get zeros
    mask     [B][1][T][S] bool: True is seen, within the window; instead of causal and real

    Returns [B][T][Hq][Dv]."""
    scale = query.shape[-1]**-0.5 if scale is None else scale
    options = {"scale": scale, "softcap": softcap, "sinks": sinks, "window": window}
    if mask is not None:
        return _attend(query, key, value, mask=mask, causal=False, **options).transpose(1, 2)
    options["causal"] = causal
    if real is None or bool(real.all()):
        return _attend(query, key, value, **options).transpose(1, 2)
    tokens = query.shape[2]
    out = query.new_zeros(query.shape[0], tokens, query.shape[1], value.shape[-1])
    for b in range(query.shape[0]):
        keys = real[b].nonzero()[:, 0].to(query.device)
        asking = real[b, -tokens:].nonzero()[:, 0].to(query.device)
        if len(asking):
            row = _attend(*(x[b:b + 1].index_select(2, columns)
                            for x, columns in ((query, asking), (key, keys), (value, keys))), **options)
            out[b].index_copy_(0, asking, row[0].transpose(0, 1))
    return out


def _attend(query, key, value, *, scale, softcap, sinks, window, causal, mask=None):
    """[B][Hq][T][Dv] of rows that are all real."""
    (batch, heads, tokens, _), length = query.shape, key.shape[2]
    plain = softcap is None and sinks is None
    grouped = {"enable_gqa": True} if key.shape[1] != heads else {}
    windowed = 0 < window < length
    if plain and mask is None and not windowed and (not causal or tokens in (1, length)):
        return functional.scaled_dot_product_attention(query, key, value, scale=scale,
                                                       is_causal=causal and tokens > 1, **grouped)
    span = length if not windowed else min(length, window + 1024)
    block = max(1, min(1024, _LOGITS // (batch * heads * span)))
    parts = []
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        low = max(0, length - tokens + first - window + 1) if windowed else 0
        high = length - tokens + last if causal else length
        at = torch.arange(low, high, device=query.device)
        own = torch.arange(first, last, device=query.device)[:, None] + length - tokens
        seen = None if mask is None else mask[:, :, first:last, low:high]
        for rule in ([at <= own] if causal else []) + ([at > own - window] if windowed else []):
            seen = rule if seen is None else seen & rule
        part = query[:, :, first:last], key[:, :, low:high], value[:, :, low:high]
        parts.append(_masked(*part, seen, scale, softcap, sinks))
    return torch.cat(parts, 2)


def _masked(query, key, value, seen, scale, softcap, sinks):
    """One block of queries; seen broadcasts to [B][1][T][S], None: all. A query that sees nothing: zeros."""
    (batch, heads, tokens, dim), kv_heads = query.shape, key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, tokens, dim)
    logits = (grouped @ key[:, :, None].transpose(-1, -2)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if seen is not None:
        seen = seen[:, :, None] if seen.dim() == 4 else seen
        logits = logits.masked_fill(~seen, -torch.inf)
    top = logits.amax(-1, keepdim=True)
    if sinks is not None:
        sinks = sinks.float().reshape(1, kv_heads, heads // kv_heads, 1, 1)
        top = torch.maximum(top, sinks)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks - top)
    weights = (weights / total.masked_fill(total == 0, 1.0)).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(batch, heads, tokens, value.shape[-1])


def as_seen(mask):
    """A 4D mask as bool: True is seen. Masks of numbers are added to logits: 0 is seen, the type's lowest
    number and -infinity are not; others would be a bias, which attention on codes has no place for."""
    if mask.dtype == torch.bool:
        return mask
    seen = mask == 0
    if not bool((seen | (mask <= -1e4)).all()):
        raise NotSupported("attention_mask: holds numbers other than 0 and the lowest one: a bias of each "
                           "logit has no place in attention on codes; use mode=\"compatible\"")
    return seen


def bounded(seen, queries, window):
    """What is seen [B][1][T][S], within the window of each of the last `queries` tokens. T = 1 stands for all
    of them: what of the columns is there, each query up to itself."""
    at = torch.arange(seen.shape[-1], device=seen.device)
    own = at[len(at) - queries:, None]
    if seen.shape[2] < queries:
        seen = seen & (at <= own)
    return seen & (at > own - window) if window else seen


def visible_ranges(seen, real, asking):
    """begin, end of what each asking query sees, counted in real tokens, as int32 on the mask's device.

    seen    [B][1][T][S] bool, S all columns of the cache
    real    [B][S] bool on the host, or None
    asking  [B][T] bool on the host: queries that are no padding, or None
    """
    if seen.shape[1] != 1:
        raise NotSupported(f"attention_mask: has {seen.shape[1]} heads; attention on codes takes one mask "
                           "for all heads; use mode=\"compatible\"")
    begins, ends, whole = [], [], []
    for b in range(seen.shape[0]):
        row = seen[b, 0]
        if real is not None:
            row = row[:, real[b].to(row.device)]
        if asking is not None:
            row = row[asking[b].to(row.device)]
        at = torch.arange(row.shape[1], device=row.device)
        end = torch.where(row, at + 1, 0).amax(-1)
        begin = torch.where(row, at, row.shape[1]).amin(-1).minimum(end)
        begins.append(begin)
        ends.append(end)
        whole.append(end - begin == row.sum(-1))
    if not bool(torch.cat(whole).all()):
        raise NotSupported("attention_mask: a query sees tokens with a gap between them; attention on codes "
                           "takes one range of tokens for each query; use mode=\"compatible\"")
    return torch.cat(begins).to(torch.int32), torch.cat(ends).to(torch.int32)


class NoGradient(torch.autograd.Function):
    """Passes `out` on; a backward pass through it is refused."""

    @staticmethod
    def forward(ctx, out, _query):
        return out.view_as(out)

    @staticmethod
    def backward(ctx, _grad):
        raise NotSupported("attention on codes has no gradient: train with another cache, or with "
                           "use_cache=False")
