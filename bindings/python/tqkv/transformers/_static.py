# SPDX-License-Identifier: Apache-2.0
"""StaticTurboCache: codes in memory of fixed size, for decoding steps under torch.compile and CUDA graphs.

Row b of the batch owns blocks b * n .. b * n + n - 1 of every layer; columns are Transformers', left padding
included, which no query sees. How many columns there are is a tensor on the device, so that a step has no
number that changes: its slots, lengths and work lists are made on the device (PagedCodec), and a graph holds
them too. Compiled code sees two operators a layer at most, tqkv.turbo_plan for the step and
tqkv.turbo_attend for a layer; `state` keeps their order. All they change lies behind the cache's number, so a
compiler copies no blocks.
"""
import itertools
import weakref
from ctypes import c_int32
from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from ..config import Config, Layer, integer
from ..errors import CapacityError, InvalidArgument, InvalidState, NotSupported
from ..paged import PagedCodec
from ._attention import exact_attention
from ._cache import TurboLayer, _can_fuse, _skipped, _spec, _text_config
from ._presets import preset as named
from ._store import FIELDS, PAGE

__all__ = ["StaticTurboCache"]

_TYPES = ("full_attention", "sliding_attention")
_numbers = itertools.count(1)  # never given twice: a graph knows its cache by one
_caches: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


class StaticTurboLayer(TurboLayer):
    """One attention layer of a StaticTurboCache; tokens of all layers are one."""

    is_compileable = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, waiting = self.cache, self.cache._waiting
        cache._waiting = self.number
        if waiting is not None:
            cache._waiting = None
            raise InvalidState(f"attention layer {waiting} of the model did not reach the attention function "
                               "\"tqkv\": call model.set_attn_implementation(\"tqkv\")")
        key_states = key_states.view_as(key_states)
        key_states._tqkv_static = self  # says whose they are to the attention function
        return key_states, value_states

    def get_seq_length(self):
        return self.cache.length if self.cache.started else 0

    def get_mask_sizes(self, query_length: int):
        return self.cache._columns, 0

    def get_max_length(self) -> int:
        return self.cache._columns

    get_max_cache_shape = get_max_length

    refused = ("StaticTurboCache: crop and reset are calls of the cache; rows of a static cache are neither "
               "reordered nor selected, and it is not offloaded: use TurboCache")


class _Step(NamedTuple):
    """A step of so many columns: the PagedStep, and its arrays on the device."""

    bound: Any
    columns: Tensor     # [T] 0 .. T - 1
    starts: Tensor      # of each row, and the end
    slots: Tensor
    lengths: Tensor
    begins: List[Tensor]  # of each window: what a query sees from on; empty without padding
    ends: Tensor


class StaticTurboCache(Cache):
    """Keys and values as TurboQuant codes, in memory allocated once: for compiled decoding.

        cache = StaticTurboCache(model, max_batch=1, max_cache_len=4096)
        model.generate(**inputs, past_key_values=cache)      # on CUDA, generate compiles the decoding step
        step = torch.compile(model.forward, fullgraph=True)  # or by hand, for steps behind the prompt

    model          a model, whose attention implementation becomes "tqkv"
    preset, key_bits, value_bits, skip_layers, calibration
                   as those of TurboCache; presets that keep exact tokens are refused
    max_batch      rows
    max_cache_len  columns of a row, padding included
    fields         of tqkv.Config: rotation_seed, page_size, num_threads, ..

    The first prompt is attended exactly, and not compiled. Padding must be in front of it
    (padding_side="left"); later masks say nothing more.
    Layers with sliding windows keep all columns. A step beyond max_cache_len raises CapacityError on the CPU;
    on CUDA its tokens are not stored and check() says OUT_OF_RANGE. Raises NotSupported for models whose
    layers are not plain attention or share keys, and for beams."""

    def __init__(self, model: Any, preset: str = "turboquant-s3", *, max_batch: int, max_cache_len: int,
                 key_bits: Optional[int] = None, value_bits: Optional[int] = None, skip_layers: Any = (),
                 calibration: Any = None, **fields: Any):
        self.config = _text_config(model, "fused")
        for name, count in (("max_batch", max_batch), ("max_cache_len", max_cache_len)):
            if integer(name, count, c_int32) < 1:
                raise InvalidArgument(f"{name} = {count}: must be 1 or more")
        chosen = named(preset)
        if chosen.window_tokens or chosen.sink_tokens:
            raise NotSupported(f"preset = {preset!r}: keeps exact tokens, a static cache does not; choose "
                               "another, or TurboCache")
        if not _can_fuse(self.config) or getattr(self.config, "num_kv_shared_layers", 0):
            raise NotSupported("StaticTurboCache: the model caches latents, or its layers share keys; use "
                               "TurboCache")
        types, kwargs = get_layer_types_and_kwargs(self.config)
        kwargs = [kwargs] * len(types) if isinstance(kwargs, dict) else kwargs
        skipped = _skipped(skip_layers, calibration, len(types))
        self._specs, layers = [], []
        for i, (kind, options) in enumerate(zip(types, kwargs)):
            if kind not in _TYPES:
                raise NotSupported(f"StaticTurboCache: layer {i} is of type {kind!r}; those it knows are "
                                   f"{', '.join(_TYPES)}: use TurboCache")
            window = (options.get("sliding_window") or 0) if kind == "sliding_attention" else 0
            self._specs.append(_spec(self.config, i, window, i in skipped))
            layers.append(StaticTurboLayer(self, i, window))
        self._most_rows, self._columns, self._fields = max_batch, max_cache_len, fields
        self._fields.update(key_bits=chosen.key_bits if key_bits is None else key_bits,
                            value_bits=chosen.value_bits if value_bits is None else value_bits)
        if calibration is not None and any(found is not None for found in (
                *(calibration.key_bands or ()), *(calibration.key_matrices or ()))):
            raise NotSupported("calibration: it has key bands or key matrices, which a StaticTurboCache does "
                               "not take; calibrate without key_bits, or use TurboCache")
        self._centres = None if calibration is None else calibration.centres
        self._windows = sorted({spec.window for spec in self._specs})
        self.started, self.codec, self.number = False, None, next(_numbers)
        self._steps, self._padded, self._waiting, self._closed = {}, False, None, False
        _caches[self.number] = self
        super().__init__(layers=layers)

    # ---- what Transformers calls

    def crop(self, tokens_to_remove: int) -> None:
        """Removes -tokens_to_remove tokens."""
        if tokens_to_remove > 0:
            raise InvalidArgument(f"crop({tokens_to_remove}): must be negative, the tokens to remove")
        if self.started:
            self.length.sub_(-tokens_to_remove).clamp_(min=0)

    def reset(self) -> None:
        self.started, self._padded, self._waiting = False, False, None
        if self.codec is not None:
            self.length.zero_()

    def reorder_cache(self, beam_idx) -> None:
        raise NotSupported(StaticTurboLayer.refused)

    batch_repeat_interleave = batch_select_indices = reorder_cache

    # ---- what it adds

    def check(self):
        """PagedCodec.check(): what the device found wrong since the last time; waits for it."""
        return self.codec.check(stream=self._stream())

    def close(self) -> None:
        """Gives all memory back now."""
        self._closed = True
        if self.codec is not None:
            self.codec.close()
            self._blocks, self._steps = [], {}

    def __deepcopy__(self, memo):
        raise NotSupported("StaticTurboCache: is not copied; use TurboCache, whose copies share pages")

    # ---- a step

    def attend(self, layer, query, key, value, mask, options):
        """The attention of one layer, [B][T][Hq][Dv]. In graphs, but for the first prompt."""
        self._waiting = None
        if self._closed:
            raise InvalidState("StaticTurboCache: is closed")
        if not self.started:
            return self._first(layer, query, key, value, mask, options)
        batch, tokens = query.shape[0], query.shape[2]
        if layer == 0:
            if mask is not None and mask.dim() == 4 and mask.shape[2] > 1:
                raise NotSupported(f"attention_mask: shape {list(mask.shape)}; a static cache takes causal "
                                   "attention, with the padding that the first prompt had")
            torch.ops.tqkv.turbo_plan(self._state, self.number, self.length, batch, tokens, self._padded)
        numbers = options["scale"] or 0.0, options["softcap"] or 0.0
        out = torch.ops.tqkv.turbo_attend(self._state, self.number, layer, query, key, value,
                                          options["sinks"], *numbers)
        if layer == len(self.layers) - 1:
            self.length.add_(tokens)
        return out

    @torch.compiler.disable
    def _first(self, layer, query, key, value, mask, options):
        (batch, _, tokens, _), window = query.shape, self._specs[layer].window
        if layer == 0:
            self._start(query, key, value)
            padding = _left_padding(mask, batch, tokens)
            self._padded = padding is not None
            if self._padded:
                self._padding[:batch] = padding
            self.plan(self.length.zero_(), batch, tokens, self._padded)
        self._append(layer, key, value)
        real = None
        if self._padded:
            real = torch.arange(tokens) >= self._padding[:batch, None].cpu()
        out = exact_attention(query, key, value, real=real, **{**options, "window": window})
        if layer == len(self.layers) - 1:
            self.length.add_(tokens)
            self.started = True
            self._step(1, self._padded)  # a graph's capture is no place to make memory that stays
        return out

    def plan(self, length, batch, tokens, padded):
        """turbo_plan: the step behind `length` columns, a tensor."""
        if batch != self._rows:
            raise InvalidArgument(f"key_states: of {batch} rows, the cache holds {self._rows}: reset()")
        if self.length.device.type == "cpu" and int(length) + tokens > self._columns:
            raise CapacityError(f"max_cache_len = {self._columns}: a row would have "
                                f"{int(length) + tokens} columns")
        step = self._step(tokens, padded)
        at = (length + step.columns)[None].expand(batch, -1)
        slots = self._first_slots[:batch, None] + at
        step.slots.copy_(torch.where(at < self._columns, slots, -1).reshape(-1))
        step.lengths.copy_((length + tokens).expand(batch))
        if step.begins:
            step.ends.copy_(at.reshape(-1) + 1)
            for window, begin in zip(self._windows, step.begins):
                first = self._padding[:batch, None].expand(-1, tokens)
                first = torch.maximum(first, at - window + 1) if window else first
                begin.copy_(torch.minimum(first, at + 1).reshape(-1))
        self._plan_again(step)
        self._planned = step

    def layer_on_codes(self, layer, query, key, value, sinks, scale, softcap):
        """turbo_attend."""
        self._append(layer, key, value)
        step, window = self._planned, self._specs[layer].window
        masks = {"sliding_window": window}
        if step.begins:
            masks = {"visible_begin": step.begins[self._windows.index(window)], "visible_end": step.ends}
        if sinks is not None:
            masks["sink_logits"] = sinks.float().contiguous()
        out = step.bound.attend(layer, self._blocks[layer], _rows(query), softmax_scale=scale,
                                logit_softcap=softcap, **masks)
        return out.view(query.shape[0], query.shape[2], *out.shape[1:])

    # ---- inside

    def _append(self, layer, key, value):
        self._planned.bound.append(layer, self._blocks[layer], _rows(key), _rows(value))

    def _stream(self):
        device = self.length.device
        return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None

    def _start(self, query, key, value):
        """Memory, for the first prompt's shapes; the number of rows until reset."""
        batch, tokens = query.shape[0], query.shape[2]
        if batch > self._most_rows or tokens > self._columns:
            raise CapacityError(f"max_batch = {self._most_rows}, max_cache_len = {self._columns}: the "
                                f"prompt is {batch} rows of {tokens} columns")
        self._rows = batch
        if self.codec is not None:
            return
        if key.dtype != value.dtype or key.dtype not in FIELDS:
            raise NotSupported(f"key_states, value_states: are {key.dtype} and {value.dtype}; must be one of "
                               "float32, float16, bfloat16, both alike (without autocast)")
        differ = len({spec[1:4] for spec in self._specs}) > 1
        layers = []
        for spec in self._specs:
            heads = (spec.q_heads, spec.kv_heads, spec.head_dim) if differ else \
                (query.shape[1], key.shape[1], key.shape[3])
            bits = {"key_bits": 16, "value_bits": 16} if spec.exact else {}
            layers.append(Layer(num_q_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2],
                                value_dim=heads[2] if differ else value.shape[3], **bits))
        config = Config(layers=layers, io_dtype=FIELDS[key.dtype], device=str(key.device),
                        **{"page_size": PAGE, **self._fields})
        codec, device = PagedCodec(config), key.device
        for layer, sides in enumerate(self._centres or ()):
            codec.set_centres(layer, *sides)
        page = codec.config.page_size
        each = -(-self._columns // page)
        self._blocks = []
        for layer in range(len(self.layers)):
            layout = codec.page_layout(layer, self._most_rows * each)
            memory = torch.zeros(layout.total_bytes, dtype=torch.uint8, device=device)
            self._blocks.append(memory.view(self._most_rows * each, -1, layout.block_head_bytes))
        rows = torch.arange(self._most_rows, device=device)
        self._first_slots = rows * (each * page)
        self._table = (rows[:, None] * each + torch.arange(each, device=device)).int()
        self._padding = torch.zeros_like(rows)  # columns in front of each row
        self._state = torch.zeros(1, dtype=torch.uint8, device=device)
        self.length = torch.zeros((), dtype=torch.int64, device=device)
        for tensor in (self._state, self.length):
            torch._dynamo.mark_static_address(tensor)
        self.codec = codec

    def _step(self, tokens, padded):
        """Arrays and workspace of a step of so many columns, made once: graphs know where they are."""
        rows, device = self._rows, self.length.device
        key = rows, tokens, padded
        if key not in self._steps:
            from ..torch import bind  # compiles the operators, where they are not yet
            bounds = dict(num_tokens=rows * tokens, max_query_len=tokens, max_seq_len=self._columns)
            size = self.codec.workspace_bytes(num_reqs=rows, **bounds)
            space = torch.empty(size + 256, dtype=torch.uint8, device=device)
            space = space[-space.data_ptr() % 256:][:size]

            def array(count, dtype=torch.int32):
                return torch.zeros(count, dtype=dtype, device=device)
            begins = [array(rows * tokens) for _ in self._windows] if padded else []
            starts = torch.arange(rows + 1, dtype=torch.int32, device=device) * tokens
            self._steps[key] = _Step(bind(self.codec.step(space)), torch.arange(tokens, device=device),
                                     starts, array(rows * tokens, torch.int64), array(rows), begins,
                                     array(rows * tokens))
        return self._steps[key]

    def _plan_again(self, step):
        step.bound.step.plan(slot_mapping=step.slots, block_table=self._table[:self._rows],
                             seq_lens=step.lengths, query_start_loc=step.starts,
                             max_query_len=len(step.columns), max_seq_len=self._columns,
                             stream=self._stream())


def _rows(x):
    """[B][H][T][D] as [B * T][H][D]."""
    x = x.transpose(1, 2)
    x = x.reshape(-1, *x.shape[2:])
    return x if x.stride(-1) == 1 else x.contiguous()


def _left_padding(mask, batch, tokens):
    """Columns of padding in front of each row [B], or None if there is none. Of a first prompt, on the
    host's account."""
    padding = getattr(mask, "_tqkv_padding", None)
    if mask is not None and mask.dim() == 2:
        padding = mask
    if padding is None:
        if mask is not None:
            raise NotSupported(f"attention_mask: of shape {list(mask.shape)}; a static cache takes causal "
                               "attention with padding in front: give a mask [batch][tokens]")
        return None
    real = padding[:, :tokens].bool()
    if real.shape != (batch, tokens):
        raise InvalidArgument(f"attention_mask: has shape {list(padding.shape)}, input_ids {batch} rows of "
                              f"{tokens} columns")
    first = tokens - real.sum(1)
    if bool((real != (torch.arange(tokens, device=real.device) >= first[:, None])).any()):
        raise NotSupported("attention_mask: a static cache takes padding in front only "
                           "(tokenizer.padding_side = \"left\")")
    return first if bool(first.any()) else None


def _found(number):
    cache = _caches.get(number)
    if cache is None:
        raise InvalidState("StaticTurboCache: the cache that this graph was made for is gone")
    return cache


@torch.library.custom_op("tqkv::turbo_plan", mutates_args=("state", ))
def turbo_plan(state: Tensor, cache: int, length: Tensor, rows: int, tokens: int, padded: bool) -> None:
    _found(cache).plan(length, rows, tokens, padded)


@torch.library.custom_op("tqkv::turbo_attend", mutates_args=("state", ))
def turbo_attend(state: Tensor, cache: int, layer: int, q: Tensor, k: Tensor, v: Tensor,
                 sinks: Optional[Tensor], scale: float, softcap: float) -> Tensor:
    return _found(cache).layer_on_codes(layer, q, k, v, sinks, scale, softcap)


@turbo_attend.register_fake
def _(state, cache, layer, q, k, v, sinks, scale, softcap):
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
