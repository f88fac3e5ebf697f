# SPDX-License-Identifier: Apache-2.0
"""PagedCodec: codes in pages that an engine owns (block tables, slot mappings), and attention on them.

    codec = tqkv.PagedCodec(num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=128, key_bits=4,
                            value_bits=3, page_size=64)
    pages = [codec.pages(layer, codec.empty(layer, num_blocks=512)) for layer in range(2)]
    step = codec.step()
    step.plan(slot_mapping=slots, block_table=table, seq_lens=lens, query_start_loc=starts)   # once a step
    for layer in range(2):
        step.append(layer, pages[layer], k, v)
        out = step.attend(layer, pages[layer], q)

Arrays, types, streams, errors and lifetimes are those of Cache; what a block, a slot and a step are, says
section 8 of tqkv.h. Steps that have workspaces of their own run side by side in several threads.

CUDA: blocks and the step's arrays are on the device (torch.empty(.., dtype=torch.uint8, device="cuda")),
which alone reads them, so a step may be captured into a graph, plan and all. What it finds out of range it
leaves out; check() then says OUT_OF_RANGE.
"""
import ctypes
from typing import Any, NamedTuple, Optional, Tuple

from . import _abi, _ffi
from ._attend import AttendArguments
from ._ffi import Noticed, check
from ._handles import Opened
from ._shapes import Shapes, centre_buffers, tensor_layout
from .buffers import (BYTES, CPU, RANGES, SLOTS, Memory, as_buffer, as_bytes, as_stream, as_workspace,
                      check_device, dense, empty_like)
from .config import Config, choice, config_of, integer
from .errors import InvalidArgument, InvalidState, NotSupported

__all__ = ["PagedCodec", "PagedStep", "Pages"]

_ORDERS = {"blocks": 1, "heads": 2}
_FLOAT32 = _abi.CONSTANTS["TQ_F32"]


class Pages(NamedTuple):
    """Blocks of one layer in the caller's memory. Made by PagedCodec.pages."""

    layer: int
    c: Any      # tq_pages
    array: Any  # what holds the memory


class PagedCodec(Opened):
    """Shapes, codes, rotations and centres of a model's layers; neither pages nor sequences.

    PagedCodec(config), or with the fields of Config. page_size is the block size where none is given, and
    part of the fingerprint; what says how many tokens or sequences there are must be 0, and so must
    window_tokens, sink_tokens, rollback_tokens and pool. Raises as Cache does.
    """

    def __init__(self, config: Optional[Config] = None, *, stream: Any = None, **fields: Any):
        config = config_of(config, fields)
        library, stream = _ffi.load_library(), as_stream(stream)
        c, keep = config._to_c()
        handle, resolved = _abi.CodecHandle(), _abi.CacheConfig()
        check(library, library.tq_codec_create(c, stream, handle))
        self._own(library, handle, keep, "codec")
        check(library, library.tq_codec_get_config(handle, resolved))
        self._config = config._resolved(resolved)
        self._shapes = Shapes(resolved, self._config.layers)

    @property
    def config(self) -> Config:
        """The configuration with every default resolved."""
        return self._config

    def fingerprint(self) -> int:
        """Equal to that of a Cache of the same layers and page_size, whose pages hold the same bytes."""
        return self._look("tq_codec_fingerprint", ctypes.c_uint64()).value

    def check(self, *, stream: Any = None) -> Noticed:
        """As Cache.check."""
        handles, stream, flags = self._handles, as_stream(stream), ctypes.c_uint64()
        with handles.exclusive() as codec:
            check(handles.library, handles.library.tq_codec_check(codec, stream, flags))
        return Noticed(flags.value)

    def set_centres(self, layer: int, key_centre: Any = None, value_centre: Any = None) -> None:
        """As Cache.set_centres. Blocks that were written before mean something else afterwards."""
        layer = integer("layer", layer, ctypes.c_int32)
        buffers = centre_buffers(self._shapes[layer], key_centre, value_centre)
        pointers = [None if buffer is None else buffer.pointer for buffer in buffers]
        with self._handles.exclusive() as codec:
            check(self._handles.library, self._handles.library.tq_codec_set_centres(codec, layer, *pointers))

    # ---- pages

    def page_layout(self, layer: int, num_blocks: int = 0, *, block_size: int = 0,
                    order: str = "blocks") -> "_abi.PageLayout":
        """alignment, block_bytes, block_head_bytes, token_bytes, block_stride, head_stride, total_bytes of
        blocks in the order [blocks][heads][bytes] ("blocks") or [heads][blocks][bytes] ("heads")."""
        return self._look("tq_codec_page_layout", integer("layer", layer, ctypes.c_int32),
                          integer("block_size", block_size, ctypes.c_int32),
                          integer("num_blocks", num_blocks, ctypes.c_int64), choice("order", order, _ORDERS),
                          _abi.PageLayout())

    def empty(self, layer: int, num_blocks: int, *, block_size: int = 0, order: str = "blocks") -> Any:
        """Memory for blocks: a writable memoryview of bytes, zeroed and aligned, for Pages on the CPU (NumPy:
        numpy.asarray of it). NotSupported on CUDA: blocks are your framework's memory."""
        if self._shapes.device[0] != CPU:
            raise NotSupported(f"device = {self._config.device}: blocks are your framework's memory, such as "
                               "torch.empty(bytes, dtype=torch.uint8, device='cuda')")
        layout = self.page_layout(layer, num_blocks, block_size=block_size, order=order)
        return _aligned(layout.total_bytes, layout.alignment)

    def pages(self, layer: int, array: Any, *, block_size: int = 0, order: str = "blocks",
              num_blocks: Optional[int] = None) -> Pages:
        """Blocks of a layer in memory of the caller's, which the result holds.

        array  uint8 [num_blocks][num_kv_heads][bytes] (order "blocks") or [num_kv_heads][num_blocks][bytes]
               (order "heads"), of any strides but for contiguous bytes; or one contiguous row of the bytes of
               whole blocks. bytes: block_head_bytes of page_layout. Its address and strides are multiples of
               the layout's alignment
        num_blocks  those that are used; None: all of the array
        """
        layer, heads_first = integer("layer", layer, ctypes.c_int32), choice("order", order, _ORDERS) == 2
        layout = self.page_layout(layer, 0, block_size=block_size, order=order)
        heads = layout.block_bytes // layout.block_head_bytes
        buffer = as_buffer(array, name="array", takes=BYTES)
        check_device(buffer, self._shapes.device, "array")
        if not buffer.writable:
            raise InvalidArgument("array: cannot be written to")
        shape, strides = buffer.shape, buffer.strides
        if len(shape) == 1:
            blocks = shape[0] // layout.block_bytes
            if shape[0] != blocks * layout.block_bytes or (blocks and strides[0] != 1):
                raise InvalidArgument(f"array: has {shape[0]} bytes, expected contiguous blocks of "
                                      f"{layout.block_bytes}")
            of_all = self.page_layout(layer, blocks, block_size=block_size, order=order)
            block_stride, head_stride = of_all.block_stride, of_all.head_stride
        else:
            b, h = (1, 0) if heads_first else (0, 1)
            wanted = ("blocks", heads)[b], (heads, "blocks")[b], layout.block_head_bytes
            if len(shape) != 3 or (shape[h], shape[2]) != (heads, wanted[2]) or strides[2] != 1:
                raise InvalidArgument(f"array: has shape {list(shape)} and strides {list(strides)}, expected "
                                      f"{list(wanted)} of contiguous bytes")
            blocks, block_stride, head_stride = shape[b], strides[b], strides[h]
        if num_blocks is not None and not 0 <= num_blocks <= blocks:
            raise InvalidArgument(f"num_blocks = {num_blocks}: the array has {blocks}")
        c = _abi.Pages(block_size=block_size, base=buffer.pointer,
                       num_blocks=blocks if num_blocks is None else num_blocks, block_stride=block_stride,
                       head_stride=head_stride)
        return Pages(layer, c, buffer)

    def read(self, layer: int, pages: Pages, slots: Any, *, k: Any = None, v: Any = None, like: Any = None,
             stream: Any = None) -> Tuple[Any, Any]:
        """Decoded keys and values of slots [count] int64; -1: a row of zeros. k, v, like: as
        Sequence.read."""
        layer, stream = self._layer(layer, pages), as_stream(stream)
        slots, c = as_buffer(slots, name="slots", stream=stream, takes=SLOTS), self._shapes[layer]
        count = slots.size
        dense(slots, "slots", (count, ), "[count]", dtype=None, device=c.device)
        arrays = [k, v]
        buffers = [None if array is None else as_buffer(array, name=name, stream=stream)
                   for name, array in (("k", k), ("v", v))]
        if k is None and v is None and c.exists:
            kind = as_buffer(b"", "float32") if like is None else as_buffer(like, name="like", stream=stream)
            for i, (name, dim) in enumerate((("k", c.head_dim), ("v", c.value_dim))):
                arrays[i], buffers[i] = empty_like(kind, (count, c.num_kv_heads, dim), c.io_dtype, name)
        layout = tensor_layout(c, *buffers, count, "count", writable=True)
        pointers = [None if buffer is None else buffer.pointer for buffer in buffers]
        with self._handles.shared(_nothing) as codec:
            library = self._handles.library
            check(library, library.tq_paged_read(codec, layer, pages.c, _int64(slots), count, *pointers,
                                                 layout, stream))
        return arrays[0], arrays[1]

    def copy(self, layer: int, source: Pages, target: Pages, pairs: Any, *, stream: Any = None) -> None:
        """Copies blocks: pairs [count][2] int64, block pairs[i][0] of source to pairs[i][1] of target, which
        may be the same pages; a pair with a -1 is left out. No block may be a target and in another pair."""
        layer, stream = self._layer(layer, source), as_stream(stream)
        self._layer(layer, target)
        pairs = as_buffer(pairs, name="pairs", stream=stream, takes=SLOTS)
        count = pairs.size // 2
        dense(pairs, "pairs", (count, 2), "[count][2]", dtype=None, device=self._shapes.device)
        with self._handles.shared(_nothing) as codec:
            library = self._handles.library
            check(library, library.tq_paged_copy(codec, layer, source.c, target.c, _int64(pairs), count,
                                                 stream))

    # ---- steps

    def workspace_bytes(self, *, num_reqs: int, num_tokens: int, max_query_len: int, max_seq_len: int) -> int:
        """Bytes of workspace of steps up to these numbers."""
        step = _abi.PagedStep()
        for name, value in (("num_reqs", num_reqs), ("num_tokens", num_tokens),
                            ("max_query_len", max_query_len), ("max_seq_len", max_seq_len)):
            ctype = ctypes.c_int64 if name == "num_tokens" else ctypes.c_int32
            setattr(step, name, integer(f"step.{name}", value, ctype))
        return self._workspace_bytes(step)

    def step(self, workspace: Any = None) -> "PagedStep":
        """Room for the plan of one step. workspace: a contiguous writable array, 256-byte aligned, of
        workspace_bytes for the largest step; None: memory of its own, that grows with the steps: on CUDA made
        by the library of the step's arrays (torch, CuPy), and not for graphs, whose workspace must stay."""
        return PagedStep(self, workspace)

    # ---- inside

    def _workspace_bytes(self, step):
        return self._look("tq_paged_workspace_bytes", step, ctypes.c_size_t()).value

    def _look(self, function, *arguments):
        """Calls a function of (codec, .., answer) that changes nothing; -> answer."""
        with self._handles.shared(_nothing) as codec:
            check(self._handles.library, getattr(self._handles.library, function)(codec, *arguments))
        return arguments[-1]

    def _layer(self, layer, pages):
        """The number of a layer whose pages these may be: its own, or those of the layer it shares."""
        layer = integer("layer", layer, ctypes.c_int32)
        if not isinstance(pages, Pages):
            raise InvalidArgument(f"pages: a {type(pages).__name__} is no Pages; make them by codec.pages")
        return layer


class PagedStep:
    """One step of an engine: plan once, then append and attend each layer. Made by PagedCodec.step."""

    def __init__(self, codec: PagedCodec, workspace: Any):
        self._codec = codec
        self._owned = workspace is None
        self._space = _nothing if workspace is None else as_workspace(workspace, codec._shapes.device)
        self._step, self._arrays = None, {}
        self._number = None  # of tqkv.torch.bind

    def plan(self, *, slot_mapping: Any = None, block_table: Any = None, seq_lens: Any = None,
             query_start_loc: Any = None, num_tokens: Optional[int] = None,
             max_query_len: Optional[int] = None, max_seq_len: Optional[int] = None,
             stream: Any = None) -> None:
        """Plans one step from the engine's arrays, on the codec's device, which stay unchanged until its
        calls have run. None: the step has no append (slot_mapping), or no attend (the others).

        slot_mapping     [num_tokens] int64: block * block size + place in the block, or -1
        block_table      [reqs][blocks] int32
        seq_lens         [reqs] int32, new tokens included; 0: padding
        query_start_loc  [reqs + 1] int32
        num_tokens       rows of q, k and v; None: those of slot_mapping
        max_query_len, max_seq_len  bounds; None: num_tokens, and what the block table has room for
        """
        stream, shapes = as_stream(stream), self._codec._shapes
        wanted = {"slot_mapping": (slot_mapping, SLOTS), "block_table": (block_table, RANGES),
                  "seq_lens": (seq_lens, RANGES), "query_start_loc": (query_start_loc, RANGES)}
        arrays = {name: as_buffer(array, name=name, stream=stream, takes=takes)
                  for name, (array, takes) in wanted.items() if array is not None}
        if num_tokens is None:
            if slot_mapping is None:
                raise InvalidArgument("num_tokens = None: without slot_mapping it must be given")
            num_tokens = arrays["slot_mapping"].size
        step = _abi.PagedStep(num_tokens=integer("num_tokens", num_tokens, ctypes.c_int64))
        step.num_reqs = arrays["seq_lens"].size if seq_lens is not None else 0
        expected = {"slot_mapping": ((num_tokens, ), "[num_tokens]"),
                    "seq_lens": ((step.num_reqs, ), "[reqs]"),
                    "query_start_loc": ((step.num_reqs + 1, ), "[reqs + 1]")}
        for name, buffer in arrays.items():
            if name in expected:
                dense(buffer, name, *expected[name], dtype=None, device=shapes.device)
                kind = ctypes.c_int64 if name == "slot_mapping" else ctypes.c_int32
                setattr(step, name, ctypes.cast(buffer.pointer, ctypes.POINTER(kind)))
        columns = _pass_table(step, arrays.get("block_table"), shapes.device)
        room = min(columns * self._codec.config.page_size, 2**31 - 1)
        for name, value, most in (("max_query_len", max_query_len, min(num_tokens, 2**31 - 1)),
                                  ("max_seq_len", max_seq_len, room)):
            setattr(step, name, integer(name, most if value is None else value, ctypes.c_int32))
        if self._owned:
            needed = self._codec._workspace_bytes(step)
            if needed > self._space.num_bytes:
                self._space = self._room(needed, next(iter(arrays.values()), None))
        self._step = None
        self._call("tq_paged_plan", step, self._space.pointer, self._space.num_bytes, stream)
        self._step, self._arrays = step, arrays
        self._tell_operators()

    def append(self, layer: int, pages: Pages, k: Any, v: Any = None, *, stream: Any = None) -> None:
        """Encodes k [num_tokens][num_kv_heads][head_dim] io_dtype, v likewise (None: the layer is latent),
        into their slots."""
        layer, stream, step = self._codec._layer(layer, pages), as_stream(stream), self._planned()
        k = as_buffer(k, name="k", stream=stream)
        v = None if v is None else as_buffer(v, name="v", stream=stream)
        layout = tensor_layout(self._codec._shapes[layer], k, v, step.num_tokens, "num_tokens")
        self._call("tq_paged_append", layer, pages.c, step, k.pointer, None if v is None else v.pointer,
                   layout, self._space.pointer, self._space.num_bytes, stream)

    def attend(self, layer: int, pages: Pages, q: Any, *, out: Any = None, lse: Any = None,
               out_dtype: Optional[str] = None, softmax_scale: float = 0.0, logit_softcap: float = 0.0,
               sliding_window: int = 0, sink_logits: Any = None, history_only: bool = False,
               visible_begin: Any = None, visible_end: Any = None, tree_mask: Any = None,
               alibi_slopes: Any = None, stream: Any = None) -> Any:
        """Attention of q [num_tokens][num_q_heads][head_dim] on the blocks: arguments and result as those of
        Batch.attend, with num_tokens rows, all of which are written: 0 and -inf for padding."""
        layer, stream, step = self._codec._layer(layer, pages), as_stream(stream), self._planned()
        call = AttendArguments(self._codec._shapes[layer], q, out, lse, out_dtype, stream, softmax_scale,
                               logit_softcap, sliding_window, history_only,
                               {"sink_logits": sink_logits, "visible_begin": visible_begin,
                                "visible_end": visible_end, "tree_mask": tree_mask,
                                "alibi_slopes": alibi_slopes})
        pointers = call.bind(step.num_tokens)
        self._call("tq_paged_attend", layer, pages.c, step, *pointers, call.params, self._space.pointer,
                   self._space.num_bytes, stream)
        return call.result

    # ---- inside

    def _room(self, num_bytes, like):
        """Memory of its own; on CUDA of the kind of an array of the step."""
        if self._codec._shapes.device[0] == CPU:
            return as_bytes(_aligned(num_bytes, 256), "workspace")
        if like is None:
            raise InvalidArgument("workspace = None: a step without arrays on CUDA needs one that is given")
        array, _ = empty_like(like, (-(-num_bytes // 4), ), _FLOAT32, "workspace")
        return as_workspace(array, self._codec._shapes.device)

    def _tell_operators(self):
        """What torch's operators go by from now on, if the step is bound (tqkv.torch)."""
        if self._number is not None and self._step is not None:
            self._codec._handles.ops.set_step(self._number, self._step, self._space)

    def _planned(self):
        if self._step is None:
            raise InvalidState("step: no plan was made yet")
        return self._step

    def _call(self, function, *arguments):
        handles = self._codec._handles
        with handles.shared(self._space) as codec:
            check(handles.library, getattr(handles.library, function)(codec, *arguments))


# A call without a workspace: it lies in the way of none.
_nothing = Memory(0, 0, None, None, True, None)


def _pass_table(step, table, device):
    """The block table of a step; -> its entries a request."""
    if table is None:
        return 0
    check_device(table, device, "block_table")
    shape, strides = table.shape, table.strides
    if len(shape) != 2 or shape[0] != step.num_reqs or (shape[1] > 1 and strides[1] != 1):
        raise InvalidArgument(f"block_table: has shape {list(shape)} and strides {list(strides)}, expected "
                              f"[reqs][blocks] of {step.num_reqs} requests, contiguous in each")
    step.block_table = ctypes.cast(table.pointer, ctypes.POINTER(ctypes.c_int32))
    step.block_table_stride = table.strides[0] if step.num_reqs > 1 else table.shape[1]
    return table.shape[1]


def _int64(buffer):
    return ctypes.cast(buffer.pointer, ctypes.POINTER(ctypes.c_int64))


def _aligned(num_bytes, alignment):
    """Zeroed bytes, of which the first is aligned."""
    memory = bytearray(num_bytes + alignment)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return memoryview(memory)[-address % alignment:][:num_bytes]
