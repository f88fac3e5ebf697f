# SPDX-License-Identifier: Apache-2.0
"""Store: the tokens of a batch of texts in one tqkv cache, counted as Transformers counts them.

Transformers sees a rectangle: rows of a batch, columns of tokens, padding among them. The store holds one
sequence for each row and leaves padding out: `real` remembers which columns are tokens, once some are not. A
forward pass is a step: its first attention layer plans it, each layer appends to it, and it is over when the
last layer has. A step that an exception cut off is undone when the next one starts.
"""
import weakref
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from torch.nn import functional

from ..cache import Cache
from ..config import Config, Layer
from ..errors import CapacityError, Error, InvalidArgument, InvalidState, NotSupported
from ._attention import NoGradient, as_seen, bounded, exact_attention, visible_ranges
from ._calibrate import set_measured
from ._swap import Swapped

PAGE = 64            # tokens; what room is counted in
ROLLBACK = 64        # tokens that can be cropped, at least, of models with sliding windows
FIELDS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Spec(NamedTuple):
    """One attention layer, as the model's configuration has it."""

    window: int       # sliding window, 0 = none
    q_heads: int
    kv_heads: int
    head_dim: int
    exact: bool       # kept at 16 bits
    bands: Any = None   # KeyBands, in place of key_bits
    matrix: Any = None  # of its keys, [kv heads][dim][dim]


class Limits(NamedTuple):
    tokens: Optional[int]   # of the pool; None: it grows
    sequence: int           # longest row
    rows: Optional[int]     # None: chosen by the first batch


class Ticket(NamedTuple):
    """Tied to the keys that a layer's update returned: says whose they are to the attention function."""

    store: Any
    layer: int


class Step:
    """One forward pass."""

    def __init__(self, before: int, columns: int):
        self.before, self.columns = before, columns
        self.updated, self.appended = set(), set()
        self.planned = False
        self.real = None    # [B][columns] bool on the host: False is padding; None: none is
        self.index = None   # flat places of real tokens in [B][columns], on the device; None: all are
        self.lengths: List[int] = []
        self.ranges: Dict[Any, Any] = {}  # of a mask that several layers get, and the mask: id stays its own


def flat(x, index):
    """[B][H][T][D] as rows [B * T][H][D], or those of the index."""
    x = x.transpose(1, 2)
    x = x.reshape(-1, *x.shape[2:])
    if index is not None:
        return x.index_select(0, index)
    return x if x.stride(-1) == 1 else x.contiguous()


def _release(rows):
    for row in rows:
        try:
            row.free()
        except Error:  # its cache is closed
            pass


class Store:
    def __init__(self, specs: List[Spec], fields: Dict[str, Any], limits: Limits, centres=None):
        self.specs, self.limits, self.centres, self.fields = specs, limits, centres, fields
        if any(spec.window for spec in specs):  # else all tokens are kept
            self.fields = {"rollback_tokens": ROLLBACK, **fields}
        self.cache: Optional[Cache] = None
        self.batch = None
        self.device = None
        self.rows: List[Any] = []   # changed in place: what is left of it is freed with the store
        self.columns = 0
        self.real: Optional[torch.Tensor] = None
        self.step: Optional[Step] = None
        self.broken = ""
        self.swapped: Optional[Swapped] = None  # instead of rows
        weakref.finalize(self, _release, self.rows).atexit = False

    # ---- what Transformers asks

    def length(self) -> int:
        """Columns of all layers; those of a step count when its last layer has them."""
        step = self.step
        return self.columns if step is None or len(step.appended) == len(self.specs) else step.before

    def enter(self, layer: int, key, value) -> Step:
        """The step that these new keys and values belong to."""
        step, columns = self.step, key.shape[2]
        waiting = step is not None and step.updated - step.appended
        if waiting and layer not in step.updated:
            self.undo()
            raise InvalidState(
                f"attention layer {min(waiting)} of the model did not reach the attention function \"tqkv\": "
                "call model.set_attn_implementation(\"tqkv\"), or make the cache with mode=\"compatible\"")
        if step is not None and (layer in step.updated or len(step.appended) == len(self.specs)):
            self.finish()
            step = None
        if step is None:
            self._check_batch(key)
            step = self.step = Step(self.columns, columns)
        elif columns != step.columns:
            raise InvalidArgument(f"key_states: of layer {layer} have {columns} tokens, those of the layers "
                                  f"before it {step.columns}")
        if key.dtype != value.dtype or key.dtype not in FIELDS:
            raise NotSupported(f"key_states, value_states: are {key.dtype} and {value.dtype}; must be one of "
                               "float32, float16, bfloat16, both alike (without autocast)")
        step.updated.add(layer)
        return step

    def _check_batch(self, key):
        if self.broken:
            raise InvalidState(f"{self.broken}; reset() empties the cache")
        self.swap_in()
        made = (self.device, self.cache.config.io_dtype) if self.cache is not None else None
        if made not in (None, (key.device, FIELDS.get(key.dtype))):
            raise InvalidArgument(f"key_states: are {key.dtype} on {key.device}, the cache was made for "
                                  f"{made[1]} on {made[0]}, which all layers must have: use another cache")
        if self.columns and key.shape[0] != len(self.rows):
            raise InvalidArgument(f"key_states: of {key.shape[0]} rows, the cache holds {len(self.rows)}: "
                                  "use batch_repeat_interleave or batch_select_indices, or reset()")

    def finish(self):
        """Ends the step; undone unless all layers have appended to it."""
        if self.step is not None:
            if len(self.step.appended) < len(self.specs):
                self.undo()
            self.step = None

    def undo(self):
        step, self.step = self.step, None
        if step.planned:
            for row, length in zip(self.rows, step.lengths):
                row.truncate(length, stream=self.stream)
            self.columns = step.before
            self.real = None if self.real is None else self.real[:, :self.columns]

    # ---- a step

    @property
    def stream(self):
        cuda = self.device is not None and self.device.type == "cuda"
        return torch.cuda.current_stream(self.device).cuda_stream if cuda else None

    def plan(self, key, value, q_heads: int, real=None):
        """Makes room for the step's tokens in all layers. real: [B][columns] bool on the host, or None."""
        step, batch = self.step, key.shape[0]
        if real is not None and bool(real.all()):
            real = None
        counts = [step.columns] * batch if real is None else real.sum(1).tolist()
        longest = max(n + (len(self.rows[b]) if self.columns else 0) for b, n in enumerate(counts))
        if longest > self.limits.sequence:
            raise CapacityError(f"max_sequence_tokens = {self.limits.sequence}: a row would have {longest} "
                                "tokens; give TurboCache a larger max_sequence_tokens")
        if self.cache is None:
            self._create(key, value, q_heads, counts)
        if not self.columns:
            self._resize(batch)
        step.lengths = [len(row) for row in self.rows]
        self._reserve(step.lengths, counts)
        queries = counts if self.columns else [min(n, ROLLBACK) for n in counts]
        self._planned(counts, queries)
        step.planned, step.real = True, real
        if real is not None:
            step.index = real.reshape(-1).nonzero()[:, 0].to(self.device)
        if real is not None or self.real is not None:
            new = torch.ones(batch, step.columns, dtype=torch.bool) if real is None else real
            old = torch.ones(batch, self.columns, dtype=torch.bool) if self.real is None else self.real
            self.real = torch.cat((old, new), 1)
        self.columns += step.columns

    def append(self, layer: int, key, value):
        step = self.step
        if layer not in step.appended:
            self.batch.append(layer, flat(key.detach(), step.index), flat(value.detach(), step.index),
                              stream=self.stream)
            step.appended.add(layer)

    def attend(self, layer: int, query, key, value, mask, *, scale, window, softcap, sinks):
        """The attention of one layer, [B][T][Hq][Dv]: exact for a first prompt, else on the codes. Of layers
        that share another's keys, the queries may be the last ones of the step only."""
        step, asked = self.step, query.shape[2]
        if step is None or layer not in step.updated:
            raise InvalidState(f"attention layer {layer}: its keys are those of an earlier forward pass")
        if not step.planned:
            self.plan(key, value, query.shape[1], self._new_real(mask))
        self.append(layer, key, value)
        window = window or self.specs[layer].window
        if step.before == 0:
            seen = self._seen(mask, asked, window)
            return exact_attention(query, key, value, scale=scale, softcap=softcap, sinks=sinks,
                                   window=window, real=step.real, mask=seen)
        missing, rows = step.columns - asked, len(self.rows)
        if missing:
            query = functional.pad(query, (0, 0, missing, 0))
        masks = self._masks(mask, asked, window)
        if sinks is not None:
            masks["sink_logits"] = sinks.detach().float().contiguous()
        out = self.batch.attend(layer, flat(query.detach(), step.index), softmax_scale=scale or 0.0,
                                logit_softcap=softcap or 0.0, stream=self.stream, **masks)
        if step.index is not None:
            full = out.new_zeros(rows * step.columns, *out.shape[1:])
            out = full.index_copy_(0, step.index, out)
        out = out.view(rows, step.columns, *out.shape[1:])[:, missing:]
        return NoGradient.apply(out, query) if torch.is_grad_enabled() and query.requires_grad else out

    def read(self, layer: int, key, value):
        """Appends, and returns all that the layer's queries may see: decoded, the new tokens as they are."""
        step = self.step
        if not step.planned:
            self.plan(key, value, self.specs[layer].q_heads if self._differ() else key.shape[1])
        self.append(layer, key, value)
        if step.before == 0:
            return key, value
        window = self.specs[layer].window
        first = max(0, step.before - window + 1) if window else 0
        count, sides = step.before - first, []
        for new in (key, value):
            side = new.new_empty(new.shape[0], count + step.columns, new.shape[1], new.shape[3])
            side[:, count:] = new.transpose(1, 2)
            sides.append(side)
        for b, row in enumerate(self.rows):
            row.read(layer, first, count, k=sides[0][b, :count], v=sides[1][b, :count], stream=self.stream)
        return sides[0].transpose(1, 2), sides[1].transpose(1, 2)

    # ---- rows of the batch

    def select(self, indices: List[int], what: str):
        """Row i becomes a copy of what row indices[i] was: pages are shared, not copied."""
        self.finish()
        self.swap_in()
        if not self.columns:
            return
        for i in indices:
            if not 0 <= i < len(self.rows):
                raise InvalidArgument(f"{what}: row {i} of a batch of {len(self.rows)}")
        self._check_rows(len(indices) - len(set(indices)), what)
        kept, rows = set(indices), []
        for i in range(len(self.rows)):
            if i not in kept:
                self.rows[i].free(stream=self.stream)
        for i in indices:  # the first copy of a row is the row itself
            rows.append(self.rows[i] if i in kept else self.rows[i].fork(stream=self.stream))
            kept.discard(i)
        self.rows[:] = rows
        self.real = None if self.real is None else self.real[indices]

    def crop(self, remove: int):
        """Takes the last `remove` columns away."""
        self.finish()
        self.swap_in()
        if remove > self.columns:
            raise InvalidArgument(f"crop: {remove} tokens to remove, the cache has {self.columns}")
        if remove == 0:
            return
        left = self.columns - remove
        gone = [remove] * len(self.rows) if self.real is None else self.real[:, left:].sum(1).tolist()
        for b, (row, n) in enumerate(zip(self.rows, gone)):
            try:
                row.truncate(len(row) - n, stream=self.stream)
            except InvalidState as error:
                self.broken = f"crop: stopped at row {b}: {error}" if b else ""
                raise InvalidState(f"crop({-remove}): {error}; give TurboCache more rollback_tokens, of "
                                   f"which it has {self.cache.config.rollback_tokens}") from None
        self.columns = left
        self.real = None if self.real is None else self.real[:, :left]

    def reset(self):
        self.step, self.real, self.columns, self.broken, self.swapped = None, None, 0, "", None
        for row in self.rows:
            row.truncate(0, stream=self.stream)

    def fork(self) -> "Store":
        """Another batch with the same tokens, in the same cache."""
        self.finish()
        self.swap_in()
        other = Store(self.specs, self.fields, self.limits, self.centres)
        other.cache, other.device, other.columns = self.cache, self.device, self.columns
        other.real = None if self.real is None else self.real.clone()
        if self.cache is not None:
            other.batch = self.cache.batch()
            self._check_rows(len(self.rows), "copy")
            other.rows += [row.fork(stream=self.stream) for row in self.rows]
        return other

    def swap_out(self) -> int:
        """Moves the rows into host memory; the cache is closed unless others have rows in it. Returns the
        bytes there."""
        self.finish()
        if self.rows:
            self.swapped = Swapped(self.cache, self.rows, self.device, self.stream)
            for row in self.rows:
                row.free(stream=self.stream)
            self.rows.clear()
            if self.cache.memory().num_sequences == 0:
                self.cache.close()
                self.cache = self.batch = None
        return 0 if self.swapped is None else self.swapped.bytes

    def swap_in(self):
        """Brings rows back that were swapped out; they stay there if this fails."""
        if self.swapped is not None:
            if self.cache is None:
                self._open(self.swapped.config)
            self.rows += self.swapped.rows(self.cache, self.stream)
            self.swapped = None

    # ---- inside

    def _new_real(self, mask):
        """The step's columns of a padding mask, on the host; None: all are tokens, or the mask says what is
        seen and nothing about padding."""
        padding = getattr(mask, "_tqkv_padding", None)
        if mask is not None and mask.dim() == 2:
            padding = mask
        if padding is None:
            return None
        if padding.shape[1] < self.step.columns:
            raise InvalidArgument(f"attention_mask: has {padding.shape[1]} columns, input_ids "
                                  f"{self.step.columns}")
        return padding[:, -self.step.columns:].bool().cpu()

    def _masks(self, mask, queries, window):
        """The mask as arguments of attend on codes."""
        step, key = self.step, (id(mask), queries, window)
        if key not in step.ranges:
            seen, masks = self._seen(mask, queries, window), {"sliding_window": window}
            if seen is not None:
                seen = functional.pad(seen, (0, 0, step.columns - queries, 0))
                seen = seen.expand(len(self.rows), -1, -1, -1)
                begin, end = visible_ranges(seen, self.real, step.real)
                masks = {"visible_begin": begin, "visible_end": end}
            step.ranges[key] = masks, mask
        return dict(step.ranges[key][0])

    def _seen(self, mask, queries, window):
        """[B][1][queries][columns] bool, or None: causal, and padding is not in the cache."""
        if mask is None or mask.dim() == 2 or getattr(mask, "_tqkv_causal", False):
            return None
        seen = as_seen(mask)
        if seen.dim() != 4 or seen.shape[-1] != self.columns or seen.shape[2] not in (1, queries):
            raise NotSupported(f"attention_mask: has shape {list(mask.shape)}; must be "
                               f"[batch][{self.columns}], or [batch][1][{queries}][{self.columns}]")
        return bounded(seen, queries, window)

    def _differ(self):
        return len({spec[1:4] for spec in self.specs}) > 1

    def _layers(self, key, value, q_heads):
        """tq_layer_config of each layer. Shapes are those of the tensors in hand; where the configuration
        says that layers differ, its own."""
        dims = {"num_q_heads": q_heads, "num_kv_heads": key.shape[1], "head_dim": key.shape[3],
                "value_dim": value.shape[3]}
        layers = []
        for spec in self.specs:
            if self._differ():
                dims = {"num_q_heads": spec.q_heads, "num_kv_heads": spec.kv_heads, "head_dim": spec.head_dim}
            bits = {"key_bits": 16, "value_bits": 16} if spec.exact else {"key_bands": spec.bands}
            layers.append(Layer(sliding_window=spec.window, **dims, **bits))
        return layers

    def _create(self, key, value, q_heads, counts):
        limits, batch = self.limits, key.shape[0]
        rows = limits.rows or max(16, 4 * batch)
        if limits.tokens is not None:
            pool = {"max_tokens": limits.tokens}
            limits = limits._replace(sequence=min(limits.sequence, limits.tokens))
        else:
            pool = {"max_tokens": sum(-(-n // PAGE) * PAGE + 4 * PAGE for n in counts)}
            pool["max_reserve_tokens"] = max(pool["max_tokens"], rows * (limits.sequence + PAGE))
        config = Config(layers=self._layers(key, value, q_heads), io_dtype=FIELDS[key.dtype],
                        device=str(key.device), max_sequence_tokens=limits.sequence, max_sequences=rows,
                        max_batch_tokens=1 << 24, **pool, **self.fields)
        reasons = config.check()
        if reasons:
            raise NotSupported("TurboCache: this model cannot be held:\n  " + "\n  ".join(reasons))
        self.device = key.device
        self._open(config)

    def _open(self, config):
        cache = Cache(config, stream=self.stream)
        set_measured(cache, self.centres, [spec.matrix for spec in self.specs])
        self.cache, self.batch = cache, cache.batch()

    def _check_rows(self, more, what):
        limit, alive = self.cache.config.max_sequences, self.cache.memory().num_sequences
        if alive + more > limit:
            raise CapacityError(f"{what}: {alive + more} rows, the cache was made for {limit}: give "
                                f"TurboCache max_batch={alive + more} or more")

    def _resize(self, batch):
        """Rows for a batch that starts; those that are there are empty."""
        self._check_rows(max(0, batch - len(self.rows)), "batch")
        while len(self.rows) > batch:
            self.rows.pop().free(stream=self.stream)
        while len(self.rows) < batch:
            self.rows.append(self.cache.sequence())

    def _reserve(self, lengths, counts):
        """Grows the pool, by a quarter at least, if the step might not find room."""
        if self.limits.tokens is not None:
            return
        memory, config = self.cache.memory(), self.cache.config
        used = memory.pages_used * PAGE
        # A row may take a page to part from its fork, beside those for what it adds.
        need = used + sum(-(-(n + length) // PAGE) * PAGE - length // PAGE * PAGE + PAGE
                          for length, n in zip(lengths, counts))
        if need > config.max_tokens:
            room = min(max(need, config.max_tokens * 5 // 4), config.max_reserve_tokens)
            if room > config.max_tokens:
                self.cache.reserve(room, stream=self.stream)

    def _planned(self, counts, queries):
        try:
            self.batch.plan(self.rows, counts, queries, stream=self.stream)
        except CapacityError as error:
            advice = ""
            if "max_raw_tokens" in str(error):
                advice = "; generate(prefill_chunk_size=1024), or give TurboCache max_raw_tokens"
            elif self.limits.tokens is not None:
                advice = "; give TurboCache a larger max_tokens, or none, so that it grows"
            raise CapacityError(f"{error}{advice}") from None
