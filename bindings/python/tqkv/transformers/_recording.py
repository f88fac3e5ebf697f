# SPDX-License-Identifier: Apache-2.0
"""What the attention layers of a model were given, for calibration: an attention function that remembers its
query, key and value, as they are after RoPE, and computes what "tqkv" computes without a TurboCache."""
from transformers import AttentionInterface, AttentionMaskInterface

from ..errors import NotSupported

NAME = "tqkv_recorded"
_seen = []  # of the running calls, {layer: (query, key, value)}


def recorded(model, run):
    """Calls run(), which is to run the model once; gives {layer: (query, key, value)} of its attention
    layers, [B][H][T][D]."""
    from . import tqkv_attention, tqkv_mask  # the package imports this module
    if not model._can_set_attn_implementation():
        raise NotSupported(f"key_bits: queries of a {type(model).__name__} cannot be seen, since its "
                           "attention function cannot be chosen; leave key_bits away")

    def record(module, query, key, value, attention_mask, **kwargs):
        _seen[-1].setdefault(module.layer_idx, (query.detach(), key.detach(), value.detach()))
        return tqkv_attention(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(NAME, record)
    AttentionMaskInterface.register(NAME, tqkv_mask)
    before = model.config._attn_implementation
    _seen.append({})
    try:
        model.set_attn_implementation(NAME)
        run()
    finally:
        model.set_attn_implementation(before)
        found = _seen.pop()
    return found
