# SPDX-License-Identifier: Apache-2.0
"""tqkv as operators of torch: torch.ops.tqkv.*, for eager code, torch.compile and CUDA graphs (torch 2.11 and
later).

    bound = tqkv.torch.bind(batch)
    batch.plan([sequence], [1])                       # once a step, outside of what is compiled or captured
    bound.append(layer, k, v)                         # torch.ops.tqkv.append(bound.state, bound.number, ..)
    out = bound.attend(layer, q)

Operators, with shapes, types and rules of Batch.append, Batch.attend, merge_states and Sequence.read:

    append(Tensor(a!) state, int batch, int layer, Tensor k, Tensor v) -> ()
    attend(Tensor state, int batch, int layer, Tensor q, *, ScalarType? out_dtype, bool with_lse,
           float softmax_scale, float logit_softcap, int sliding_window, bool history_only,
           Tensor? sink_logits, Tensor? visible_begin, Tensor? visible_end, Tensor? tree_mask,
           Tensor? alibi_slopes) -> (Tensor out, Tensor lse); lse has no rows if with_lse is False
    attend_out(Tensor state, int batch, int layer, Tensor q, Tensor(a!) out, Tensor(b!)? lse, *, ..) -> ()
    merge(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)
    read(Tensor state, int batch, int layer, int sequence, int first, int count) -> (Tensor k, Tensor v)
    paged_append(Tensor(a!) blocks, int step, int layer, Tensor k, Tensor v) -> ()
    paged_attend(Tensor blocks, int step, int layer, Tensor q, *, ..) -> (Tensor out, Tensor lse)
    paged_attend_out(Tensor blocks, int step, int layer, Tensor q, Tensor(a!) out, Tensor(b!)? lse, *, ..)
           -> ()

state    a tensor without a content, on the cache's device: append is declared to change it and the others
         take it. So a compiler keeps their order, and drops no append.
batch    the number of the bound batch. A batch that was closed is an error, never a stale pointer.
blocks   what an engine owns: uint8 [num_blocks][num_kv_heads][bytes], of any strides but for contiguous
         bytes; the block size follows from the bytes. See PagedCodec.pages.
step     the number of the bound PagedStep, as it was planned last. Its arrays and its workspace stay at their
         addresses, so it is no tensor here: a compiler may copy those.
Streams  work goes to torch's current stream. Plan on the same one.
Errors   what a call refuses is a RuntimeError whose text begins with the status' name, such as
         "TQ_ERROR_INVALID_ARGUMENT: k: has shape ..". There is no other way of computing to fall back to.
Turns    operators and the package's own calls on a cache wait for one another, close and plan included.
Compiled shapes are checked when a graph is made and rows when it runs; the plan may ask another number of
         rows every time. No plan is made inside: its lists are the host's. But a PagedStep's are made by the
         device: on CUDA a graph may hold step.plan too, with a workspace that was given.
Gradients  do not flow: Bound refuses tensors that ask for them (NotSupported).

The operators are compiled once, at the first import, by the system's C++ compiler; `python -m
tqkv._torch_extension FILE` does it beforehand, and TQKV_TORCH_OPS names such a file.
"""
import weakref

import torch

from .. import _ffi
from ..batch import Batch
from ..errors import InvalidArgument, InvalidState, NotSupported
from ..paged import PagedStep
from .._torch_extension import Ops, load, shapes_of

__all__ = ["Bound", "BoundStep", "bind", "merge"]

load()

# What is looked up once instead of in every call.
_APPEND, _ATTEND, _ATTEND_OUT, _PAGED_APPEND, _PAGED_ATTEND, _PAGED_ATTEND_OUT = (
    getattr(torch.ops.tqkv, name).default
    for name in ("append", "attend", "attend_out", "paged_append", "paged_attend", "paged_attend_out"))
_DTYPES = {number: getattr(torch, name) for number, name in _ffi.DTYPE_NAMES.items()}


class Bound:
    """A Batch as the operators know it. Made by bind.

    batch   the Batch
    number  its number in torch.ops.tqkv
    state   the tensor that orders calls, on the cache's device
    """

    def __init__(self, batch, number):
        cache = batch.cache
        self.batch, self.number = batch, number
        self.state = torch.zeros(1, dtype=torch.uint8, device=cache.config.device)

    def append(self, layer, k, v):
        """Encodes the plan's new tokens into a layer; see Batch.append."""
        _refuse_gradients(k=k, v=v)
        _APPEND(self.state, self.number, layer, k, v)

    def attend(self, layer, q, *, out=None, lse=None, **options):
        """Attention of the plan's queries; see Batch.attend for the options. out, lse: tensors that are
        written into, or lse=True: returned beside out. Returns out, or (out, lse) if lse was asked for."""
        return _attended(_ATTEND, _ATTEND_OUT, (self.state, self.number, layer), q, out, lse, options)

    def read(self, layer, sequence, first, count):
        """(k, v) of tokens first .. first + count - 1 of a Sequence, decoded; see Sequence.read."""
        return torch.ops.tqkv.read(self.state, self.number, layer, sequence.id, first, count)


class BoundStep:
    """A PagedStep as the operators know it. Made by bind.

    step    the PagedStep: plan it once a step, outside of what is compiled or captured
    number  its number in torch.ops.tqkv
    """

    def __init__(self, step, number):
        self.step, self.number = step, number

    def append(self, layer, blocks, k, v):
        """Encodes the step's tokens into one layer's blocks; see PagedStep.append."""
        _refuse_gradients(k=k, v=v)
        _PAGED_APPEND(blocks, self.number, layer, k, v)

    def attend(self, layer, blocks, q, *, out=None, lse=None, **options):
        """Attention of the step's queries on one layer's blocks; see PagedStep.attend, and Bound.attend for
        out and lse."""
        return _attended(_PAGED_ATTEND, _PAGED_ATTEND_OUT, (blocks, self.number, layer), q, out, lse,
                         options)


def _attended(make, write, which, q, out, lse, options):
    """The result of one of two operators: one that makes out and lse, one that writes into them."""
    _refuse_gradients(q=q)
    with_lse = lse is not None and lse is not False
    if out is None and (lse is True or not with_lse):
        result = make(*which, q, with_lse=with_lse, **options)
        return result if with_lse else result[0]
    if out is None or lse is True:
        raise InvalidArgument("out, lse: give both to write into, or out alone, or neither")
    lse = lse if with_lse else None
    write(*which, q, out, lse, **options)
    return (out, lse) if with_lse else out


def bind(batch):
    """The Bound of a Batch, or the BoundStep of a PagedStep, which keeps its number at later calls. The
    number stays valid until the batch, cache or codec is closed."""
    if isinstance(batch, PagedStep):
        return _bind_step(batch)
    if not isinstance(batch, Batch):
        raise InvalidArgument(f"batch: a {type(batch).__name__} is neither a Batch nor a PagedStep")
    handles, cache = batch.cache._handles, batch.cache
    with handles.exclusive():
        if not batch._handle.value:
            raise InvalidState("batch: is closed")
        if handles.ops is None:
            handles.ops = Ops(handles, [cache._shape(i) for i in range(len(cache.config.layers))])
        number = handles.ops.bind(batch._handle)
        bound = batch._bound and batch._bound()
        if bound is None:
            bound = Bound(batch, number)
            batch._bound = weakref.ref(bound)
    return bound


def _bind_step(step):
    codec, handles = step._codec, step._codec._handles
    with handles.exclusive():
        if handles.ops is None:
            handles.ops = Ops(handles, [codec._shapes[i] for i in range(len(codec.config.layers))])
        if step._number is None:
            step._number = handles.ops.bind_step(step)
            step._tell_operators()
    return BoundStep(step, step._number)


def merge(outs, lses):
    """(out, lse) of partial results of the same rows; see merge_states."""
    return torch.ops.tqkv.merge(list(outs), list(lses))


def _refuse_gradients(**tensors):
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if getattr(tensor, "requires_grad", False):
                raise NotSupported(f"{name}: requires a gradient, which codes do not give; call under "
                                   "torch.no_grad(), or give a detached tensor")


# ---- fake kernels: shapes and types of results, for compilers ----

def _shape(number, layer, what="batch"):
    shapes = shapes_of.get(number)
    if shapes is None:
        raise RuntimeError(f"TQ_ERROR_INVALID_STATE: {what} = {number}: is closed, or was never bound "
                           "(tqkv.torch.bind)")
    if not 0 <= layer < len(shapes):
        raise RuntimeError(f"TQ_ERROR_INVALID_ARGUMENT: layer = {layer}: must be 0 .. {len(shapes) - 1}")
    return shapes[layer], _DTYPES[shapes[layer].io_dtype]


def _expect(name, tensor, dtype, *extents):
    """A tensor [rows][extents..] of a type; rows are compared when the call runs."""
    if tensor.dim() != 1 + len(extents) or tuple(tensor.shape[1:]) != extents or tensor.dtype != dtype:
        raise RuntimeError(f"TQ_ERROR_INVALID_ARGUMENT: {name}: is {list(tensor.shape)} of {tensor.dtype}, "
                           f"expected [rows, {', '.join(map(str, extents))}] of {dtype}")


def _fake_append(shape, dtype, k, v):
    _expect("k", k, dtype, shape.num_kv_heads, shape.head_dim)
    _expect("v", v, dtype, shape.num_kv_heads, shape.value_dim)


def _fake_attend(shape, dtype, q, out_dtype, with_lse):
    _expect("q", q, dtype, shape.num_q_heads, shape.head_dim)
    return (q.new_empty(q.shape[0], shape.num_q_heads, shape.value_dim, dtype=out_dtype or dtype),
            q.new_empty(q.shape[0] if with_lse else 0, shape.num_q_heads, dtype=torch.float32))


def _fake_attend_out(shape, dtype, q, out, lse):
    _expect("q", q, dtype, shape.num_q_heads, shape.head_dim)
    _expect("out", out, out.dtype, shape.num_q_heads, shape.value_dim)
    if lse is not None:
        _expect("lse", lse, torch.float32, shape.num_q_heads)


@torch.library.register_fake("tqkv::append")
def _append(state, batch, layer, k, v):
    _fake_append(*_shape(batch, layer), k, v)


@torch.library.register_fake("tqkv::attend")
def _attend(state, batch, layer, q, *, out_dtype=None, with_lse=True, **options):
    return _fake_attend(*_shape(batch, layer), q, out_dtype, with_lse)


@torch.library.register_fake("tqkv::attend_out")
def _attend_out(state, batch, layer, q, out, lse=None, **options):
    _fake_attend_out(*_shape(batch, layer), q, out, lse)


@torch.library.register_fake("tqkv::paged_append")
def _paged_append(blocks, step, layer, k, v):
    _fake_append(*_shape(step, layer, "step"), k, v)


@torch.library.register_fake("tqkv::paged_attend")
def _paged_attend(blocks, step, layer, q, *, out_dtype=None, with_lse=True, **options):
    return _fake_attend(*_shape(step, layer, "step"), q, out_dtype, with_lse)


@torch.library.register_fake("tqkv::paged_attend_out")
def _paged_attend_out(blocks, step, layer, q, out, lse=None, **options):
    _fake_attend_out(*_shape(step, layer, "step"), q, out, lse)


@torch.library.register_fake("tqkv::merge")
def _merge(outs, lses):
    return torch.empty_like(outs[0]), torch.empty_like(lses[0])


@torch.library.register_fake("tqkv::read")
def _read(state, batch, layer, sequence, first, count):
    shape, dtype = _shape(batch, layer)
    return (state.new_empty(count, shape.num_kv_heads, shape.head_dim, dtype=dtype),
            state.new_empty(count, shape.num_kv_heads, shape.value_dim, dtype=dtype))
