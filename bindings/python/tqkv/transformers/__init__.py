# SPDX-License-Identifier: Apache-2.0
"""tqkv for Hugging Face Transformers (5.17 and later): a cache of codes, and attention on them.

    from tqkv.transformers import TurboCache

    cache = TurboCache(model)
    model.generate(**inputs, past_key_values=cache)

Importing this module registers the attention function "tqkv". Under it, a model whose cache is a TurboCache
attends on codes; with any other cache, or none, its attention is computed by torch, exactly. Greedy decoding,
sampling, beams, left padding, prompt lookup and assisted decoding, several answers to a prompt, sliding
windows, hybrid models and conversations that keep their cache need nothing more. Decoding under
torch.compile takes a StaticTurboCache. Not supported: encoder-decoder models, offloading layer by layer,
layers on several devices.
"""
try:
    import torch
    import transformers
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.cache_utils import get_layer_types_and_kwargs  # noqa: F401  absent in older ones
except ImportError as error:
    raise ImportError("tqkv.transformers needs torch and transformers 5.17 or later: pip install torch "
                      f"'transformers>=5.17' ({error})") from error

from transformers.masking_utils import causal_mask_function, sdpa_mask

from ..errors import NotSupported
from ._attention import as_seen, exact_attention
from ._cache import TurboCache, TurboLayer
from ._presets import PRESETS, Preset
from ._static import StaticTurboCache

__all__ = ["PRESETS", "Preset", "StaticTurboCache", "TurboCache", "tqkv_attention", "tqkv_mask"]


def tqkv_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, sliding_window=None,
                   softcap=None, s_aux=None, is_causal=None, position_bias=None, **kwargs):
    """The attention function "tqkv". query [B][Hq][T][D]; key, value as the cache returned them; returns
    ([B][T][Hq][Dv], None)."""
    if dropout:
        raise NotSupported(f"dropout = {dropout}: attention on codes has none; call model.eval()")
    if position_bias is not None:
        raise NotSupported("position_bias: a bias of each logit has no place in attention on codes; use "
                           "another attention implementation")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    options = {"scale": scaling, "window": sliding_window or 0, "softcap": softcap, "sinks": s_aux}
    static = getattr(key, "_tqkv_static", None)
    if static is not None:
        if not causal:
            raise NotSupported("is_causal = False: a StaticTurboCache is for causal attention")
        return static.cache.attend(static.number, query, key, value, attention_mask, options), None
    ticket = getattr(key, "_tqkv", None)
    if ticket is not None:
        return _attend(ticket, query, key, value, attention_mask, causal, options), None
    seen, real = attention_mask, None
    if seen is not None and (seen.dim() == 2 or seen.shape[2] < query.shape[2] or
                             hasattr(seen, "_tqkv_causal")):
        seen, real = None, seen if seen.dim() == 2 else seen[:, 0, 0]
        real = None if bool(real.all()) else real[:, -key.shape[2]:].bool().cpu()
    seen = None if seen is None else as_seen(seen)
    return exact_attention(query, key, value, causal=causal, real=real, mask=seen, **options), None


@torch.compiler.disable
def _attend(ticket, query, key, value, mask, causal, options):
    if not causal:
        raise NotSupported("is_causal = False: a TurboCache is for causal attention; give this model none")
    return ticket.store.attend(ticket.layer, query, key, value, mask, **options)


def tqkv_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
              attention_mask=None, **kwargs):
    """The mask function of "tqkv". Causal attention, with a sliding window or without, needs no mask: padding
    alone is passed on, as [B][1][1][tokens]. Any other pattern becomes [B][1][T][tokens] of what is seen."""
    known = torch.compiler.is_compiling() and isinstance(q_offset, torch.Tensor)
    if _is_causal_or_sliding(mask_function, known):
        if attention_mask is None:
            return None
        real = attention_mask[:, None, None, -kv_length:]
        real._tqkv_causal, real._tqkv_padding = True, attention_mask
        return real
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    seen = sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
                     kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask,
                     **kwargs)
    seen._tqkv_padding = attention_mask
    return seen


def _is_causal_or_sliding(function, known=False):
    """Whether it is Transformers' own causal mask or its sliding one, an intersection of two functions.
    known: of a static cache in a graph, whose first prompt has shown which of the two it is; compilers let
    nobody look into closures."""
    if function is causal_mask_function:
        return True
    if getattr(function, "__qualname__", "") != "and_masks.<locals>.and_mask":
        return False
    if known:
        return True
    parts = [cell.cell_contents for cell in function.__closure__ or ()]
    parts = parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else ()
    return (len(parts) == 2 and parts[1] is causal_mask_function and
            getattr(parts[0], "__qualname__", "") == "sliding_window_overlay.<locals>.inner_mask")


AttentionInterface.register("tqkv", tqkv_attention)
AttentionMaskInterface.register("tqkv", tqkv_mask)
