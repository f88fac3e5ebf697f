# SPDX-License-Identifier: Apache-2.0
"""TurboCache: a Transformers cache on tqkv codes, for model.generate(past_key_values=cache).

Layers with attention share one Store; states of linear attention and convolutions stay what Transformers
makes them. What changes all layers alike (crop, reorder, select, reset) is done once, by the cache.
"""
import copy
from ctypes import c_int64
from typing import Any, Iterable, Optional

import torch
from transformers.cache_utils import (DYNAMIC_LAYER_TYPE_MAPPING, Cache, CacheLayerMixin,
                                      LinearAttentionCacheLayerMixin, LinearAttentionLayer,
                                      get_layer_types_and_kwargs)

from ..config import Config, integer
from ..errors import InvalidArgument, NotSupported
from ._calibrate import Calibration, calibrate
from ._presets import preset as named
from ._store import Limits, Spec, Store, Ticket

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding")
_STATES = ("conv", "linear_attention", "moe", "mlp", "dummy")  # layers without keys and values of their own
_MODES = ("auto", "fused", "compatible")
# What the model and the caller's limits say; the other fields of Config may be given.
_DERIVED = {"num_layers", "num_q_heads", "num_kv_heads", "head_dim", "value_dim", "io_dtype", "device",
            "layers", "layer_key_bits", "layer_value_bits", "max_sequences", "max_batch_sequences",
            "max_batch_tokens", "max_reserve_tokens", "allocator", "pool"}
_FREE = set(Config.__dataclass_fields__) - _DERIVED


class TurboLayer(CacheLayerMixin):
    """One attention layer of a TurboCache. Tokens of all layers are one: crop, reorder and select are calls
    of the cache."""

    is_compileable = False
    is_croppable = True

    def __init__(self, cache: "TurboCache", number: int, window: int):
        super().__init__()
        self.cache, self.number, self.window = cache, number, window
        self.is_sliding = window > 0

    def lazy_initialization(self, key_states, value_states):
        self.is_initialized, self.device, self.dtype = True, key_states.device, key_states.dtype

    @torch.compiler.disable
    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            TurboLayer.lazy_initialization(self, key_states, value_states)
        store = self.cache.store
        store.enter(self.number, key_states, value_states)
        if not self.cache.fused:
            return store.read(self.number, key_states.detach(), value_states.detach())
        key_states = key_states.view_as(key_states)
        key_states._tqkv = Ticket(store, self.number)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.cache.store.length()

    def get_mask_sizes(self, query_length: int):
        length, window = self.get_seq_length(), self.window
        if self.cache.fused or not window or length < window:
            return length + query_length, 0
        return window - 1 + query_length, length - window + 1

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    refused = ("TurboLayer: crop, reorder, select, reset and offload are calls of the cache; layers are not "
               "offloaded one by one: TurboCache.swap_out moves all of them")

    def _whole(self, *args, **kwargs):
        raise NotSupported(self.refused)

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _whole
    reset = offload = prefetch = _whole


class TurboHybridLayer(LinearAttentionLayer, TurboLayer):
    """A layer with attention and states of linear attention."""

    is_compileable = False
    supports_early_init = False

    def __init__(self, cache, number, window, number_of_states=1):
        TurboLayer.__init__(self, cache, number, window)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args, **kwargs):  # Transformers calls it with keywords for the states
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)


class TurboCache(Cache):
    """Keys and values as TurboQuant codes.

        cache = TurboCache(model)                       # or TurboCache(model, "turboquant-s1")
        model.generate(**inputs, past_key_values=cache)

    model          a model, whose attention implementation becomes "tqkv" where it can be chosen; or its
                   configuration, which changes nothing: then call model.set_attn_implementation("tqkv")
    preset         a name of PRESETS; key_bits, value_bits, window_tokens and sink_tokens override it
    mode           "fused": attention runs on the codes. "compatible": update returns decoded keys and values,
                   for any attention implementation, at the price of decoding all of them in every step.
                   "auto": fused if the model's attention implementation is "tqkv"
    skip_layers    numbers of the model's layers that keep 16 bits; negative ones count from the end
    calibration    what TurboCache.calibrate returned: centres, layers to skip, and what it was asked for
    max_tokens     of all rows together, allocated at once; None: the cache grows as it needs
    max_sequence_tokens
                   longest row; None: the model's max_position_embeddings
    max_batch      rows (beams and copies of the cache included); None: 4 times the first batch, 16 at least
    fields         of tqkv.Config: rotation_seed, page_size, num_threads, rollback_tokens, ..

    The first prompt is attended exactly, on the keys and values before they are encoded. Padding takes no
    room in fused mode. copy.deepcopy shares pages until one side writes. Raises tqkv's exceptions."""

    def __init__(self, model: Any, preset: str = "turboquant-s3", *, key_bits: Optional[int] = None,
                 value_bits: Optional[int] = None, window_tokens: Optional[int] = None,
                 sink_tokens: Optional[int] = None, mode: str = "auto", skip_layers: Iterable[int] = (),
                 calibration: Any = None, max_tokens: Optional[int] = None,
                 max_sequence_tokens: Optional[int] = None, max_batch: Optional[int] = None, **fields: Any):
        if mode not in _MODES:
            raise InvalidArgument(f"mode = {mode!r}: must be one of {', '.join(_MODES)}")
        for name in fields:
            if name not in _FREE:
                raise InvalidArgument(f"{name}: is no field that TurboCache takes; those of tqkv.Config that "
                                      f"the model does not settle are {', '.join(sorted(_FREE))}")
        self.config = _text_config(model, mode)
        self.mode, self.fused = mode, mode != "compatible"
        chosen = named(preset)
        given = {"key_bits": key_bits, "value_bits": value_bits, "window_tokens": window_tokens,
                 "sink_tokens": sink_tokens}
        fields.update({k: getattr(chosen, k) if v is None else v for k, v in given.items()})
        types, kwargs = get_layer_types_and_kwargs(self.config)
        if isinstance(kwargs, dict):  # before 5.20: the same for all layers
            kwargs = [kwargs] * len(types)
        skipped = _skipped(skip_layers, calibration, len(types))
        specs, layers = [], []
        for i, (kind, options) in enumerate(zip(types, kwargs)):
            layers.append(self._layer(i, kind, dict(options), specs, i in skipped))
        if not specs:
            raise NotSupported("TurboCache: the model has no attention layer; use DynamicCache")
        longest = _count("max_sequence_tokens", max_sequence_tokens) or \
            getattr(self.config, "max_position_embeddings", None) or 1 << 17
        limits = Limits(_count("max_tokens", max_tokens), longest, _count("max_batch", max_batch))
        if calibration is not None and calibration.key_bands is not None:
            matrices = calibration.key_matrices or [None] * len(specs)
            specs = [spec._replace(bands=bands, matrix=matrix)
                     for spec, bands, matrix in zip(specs, calibration.key_bands, matrices)]
        self.store = Store(specs, fields, limits, None if calibration is None else calibration.centres)
        super().__init__(layers=layers)

    def _layer(self, i, kind, options, specs, exact):
        window = options.pop("sliding_window", 0) or 0
        if kind in _STATES:
            return DYNAMIC_LAYER_TYPE_MAPPING[kind](**options)
        if kind not in _ATTENTION:
            raise NotSupported(f"TurboCache: layer {i} is of type {kind!r}, which it does not know; use "
                               "DynamicCache for this model")
        window = window if "sliding" in kind else 0  # a chunk's tokens are told by the mask
        specs.append(_spec(self.config, i, window, exact))
        if kind.startswith("hybrid"):
            return TurboHybridLayer(self, len(specs) - 1, window, **options)
        return TurboLayer(self, len(specs) - 1, window)

    # ---- what Transformers calls

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if self.mode == "auto" and not self.store.columns and self.store.step is None:
            self.fused = (getattr(self.config, "_attn_implementation", None) == "tqkv" and
                          _can_fuse(self.config))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes -tokens_to_remove tokens; a positive number is the length to keep."""
        n = integer("tokens_to_remove", tokens_to_remove, c_int64)
        remove = -n if n <= 0 else max(0, self.store.columns - n)
        self.store.crop(remove)
        for layer in self._states():
            LinearAttentionCacheLayerMixin.crop(layer, -remove)

    def reorder_cache(self, beam_idx) -> None:
        self._select(beam_idx, "reorder_cache")

    def batch_select_indices(self, indices) -> None:
        self._select(indices, "batch_select_indices")

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.store.swap_in()
        rows = torch.arange(len(self.store.rows))
        self._select(rows.repeat_interleave(repeats), "batch_repeat_interleave")

    def reset(self) -> None:
        self.store.reset()
        self.fused = self.mode != "compatible"
        for layer in self._states():
            LinearAttentionCacheLayerMixin.reset(layer)

    def _select(self, indices, what):
        indices = torch.as_tensor(indices)
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        if indices.dim() != 1 or indices.is_floating_point():
            raise InvalidArgument(f"{what}: {list(indices.shape)} of {indices.dtype}; must be numbers of "
                                  "rows, [rows] of integers")
        self.store.select(indices.tolist(), what)
        for layer in self._states():
            if layer.device is not None:
                LinearAttentionCacheLayerMixin.reorder_cache(layer, indices)

    def _states(self):
        return [layer for layer in self.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]

    # ---- what it adds

    @property
    def tqkv(self):
        """The tqkv.Cache beneath, None before the first forward pass."""
        return self.store.cache

    def memory(self):
        """tqkv.Cache.memory(): tokens, pages and bytes; None before the first forward pass."""
        return None if self.tqkv is None else self.tqkv.memory()

    def compression(self) -> float:
        """Bytes of a token in float16 / its stored bytes; 0 before the first forward pass."""
        if self.tqkv is None:
            return 0.0
        sizes = self.tqkv.config.bytes()
        return sizes.fp16_token_bytes / sizes.token_bytes

    def swap_out(self) -> int:
        """Moves all tokens into host memory as they are stored, and gives the device's memory back (its pages
        alone while copies of this cache live). Whatever needs them next brings them back by itself, with the
        same bits. Returns the bytes in host memory. States of linear attention stay where they are."""
        return self.store.swap_out()

    def swap_in(self) -> None:
        """Brings back now what swap_out moved away. Raises CapacityError or OutOfMemory if there is no room;
        nothing is lost then."""
        self.store.swap_in()

    def close(self) -> None:
        """Gives all memory back now; copies of this cache are closed with it."""
        if self.tqkv is not None:
            self.tqkv.close()

    def __deepcopy__(self, memo):
        other = memo[id(self)] = TurboCache.__new__(TurboCache)  # layers refer to it
        other.__dict__.update(self.__dict__)
        other.store = self.store.fork()
        other.layers = [copy.deepcopy(layer, memo) for layer in self.layers]
        return other

    def __reduce__(self):
        raise NotSupported("TurboCache: cannot be pickled")

    @staticmethod
    def calibrate(model, tokens, *, text: Optional[str] = None, outlier: float = 4.0, attention_mask=None,
                  key_bits: Optional[float] = None, value_bits: int = 3, code_family: str = "scalar",
                  turn_keys: bool = False):
        """Centres, layers to skip, key bands and key matrices, measured on a text: see Calibration.

        tokens     [batch][tokens] or [tokens] of ids: some hundreds, of the kind that the model will see; or
                   the model's tokenizer
        text       for a tokenizer; None: a page of English, numbers and code
        outlier    layers are skipped whose median key is longer than this many times that of the median
                   layer
        attention_mask
                   of token ids: 0 where there is padding, which does not count
        key_bits   2, 2.5, 3, 3.5 or 4: find bands of keys (tqkv.KeyBands) of so many bits on average, which
                   caches then have in place of their key_bits, and take centres only where held-out tokens
                   gain by them; takes 256 tokens or more
        code_family
                   with key_bits: "scalar", or "trellis" for a TurboCache(code_family="trellis")
        turn_keys  with key_bits: also find a matrix of each head's keys (tqkv.Cache.set_key_matrix), of
                   layers where held-out logits gain 2 % by it; caches that take none refuse it"""
        return calibrate(model, tokens, text=text, outlier=outlier, attention_mask=attention_mask,
                         key_bits=key_bits, value_bits=value_bits, code_family=code_family,
                         turn_keys=turn_keys)


def _text_config(model, mode):
    """The decoder's configuration; a model's attention becomes "tqkv" unless the mode is compatible."""
    config = getattr(model, "config", model)
    if not hasattr(config, "get_text_config"):
        raise InvalidArgument(f"model: a {type(model).__name__} is neither a Transformers model nor its "
                              "configuration")
    if getattr(config, "is_encoder_decoder", False):
        raise NotSupported("TurboCache: encoder-decoder models are not supported; use DynamicCache")
    if config is not model and mode != "compatible":
        if _can_fuse(config) and model._can_set_attn_implementation():
            model.set_attn_implementation("tqkv")
        elif mode == "fused":
            raise NotSupported(f"mode = 'fused': attention of {type(model).__name__} cannot run on codes, "
                               "since its attention function cannot be chosen or its keys are expanded from "
                               "latents; use mode=\"compatible\"")
    return config.get_text_config(decoder=True)


def _can_fuse(config):
    """Models with latent attention (MLA) cache latents, and expand them before they attend."""
    return not getattr(config.get_text_config(decoder=True), "kv_lora_rank", None)


def _skipped(skip_layers, calibration, layers):
    """Numbers of the model's layers that keep 16 bits."""
    if not isinstance(calibration, (Calibration, type(None))):
        raise InvalidArgument(f"calibration: a {type(calibration).__name__} is not what TurboCache.calibrate "
                              "returns")
    if not isinstance(skip_layers, Iterable) or isinstance(skip_layers, str):
        raise InvalidArgument(f"skip_layers = {skip_layers!r}: must be a list of layers' numbers")
    skipped = set(calibration.skip_layers if calibration is not None else ())
    for number in skip_layers:
        i = integer("skip_layers", number, c_int64)
        if not -layers <= i < layers:
            raise InvalidArgument(f"skip_layers: {i} is no layer of a model of {layers} layers")
        skipped.add(i % layers)
    return skipped


def _count(name, value):
    """A number of something from 1 on, or None."""
    if value is not None and integer(name, value, c_int64) < 1:
        raise InvalidArgument(f"{name} = {value}: must be 1 or more, or None")
    return value


def _spec(config, i, window, exact):
    """A layer's shape by the configuration; used where layers differ."""
    own = config.per_layer_config[i] if hasattr(config, "per_layer_config") else config
    heads = getattr(own, "num_attention_heads", 0) or 0
    dim = getattr(own, "head_dim", None) or (own.hidden_size // heads if heads else 0)
    return Spec(window, heads, getattr(own, "num_key_value_heads", None) or heads, dim, exact)
