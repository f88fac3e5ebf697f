# SPDX-License-Identifier: Apache-2.0
"""One long history on several ranks, on torch.distributed (gloo on CPUs, NCCL on GPUs).

    split = ContextSplit(block=32)                                # which rank holds which token
    positions = torch.arange(length, length + new)                # of the step's tokens in the whole sequence
    visible = split.visible(positions)
    mine = split.mine(length, new)                                # of the step's rows those that I append
    batch.plan([sequence], [len(mine)], [new])
    for layer in ...:
        batch.append(layer, k[mine], v[mine])
        out = attend_context_parallel(batch, layer, q, visible)   # the same bits on every rank

Every rank attends all queries to the tokens that it holds, gathers the partial results (out, lse) of all
ranks and merges them in the order of the ranks by tqkv.merge_states: nothing is approximated, and what goes
over the wire does not grow with the history. Tensor parallelism needs none of this: a rank's cache is one
with first_kv_head (bindings/python/examples/tensor_parallel.py).
"""
import ctypes

import torch
import torch.distributed as dist

from .config import integer
from .errors import InvalidArgument
from .merge import merge_states

__all__ = ["ContextSplit", "attend_context_parallel"]

_WIRE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ContextSplit:
    """Which rank of a group holds which tokens of a sequence: blocks of `block` tokens in turn, so the ranks
    stay equally long while a sequence grows. A history in as many parts as ranks: block = tokens of a part.

    block  tokens, 1 or more; the same on all ranks
    group  a process group of torch.distributed; None: all ranks. Or give rank and world, for planning
           without a group
    """

    def __init__(self, block=32, group=None, *, rank=None, world=None):
        self.block = integer("block", block, ctypes.c_int64)
        self.rank = integer("rank", dist.get_rank(group) if rank is None else rank, ctypes.c_int64)
        self.world = integer("world", dist.get_world_size(group) if world is None else world, ctypes.c_int64)
        if self.block < 1:
            raise InvalidArgument(f"block = {self.block}: must be 1 or more")
        if not 0 <= self.rank < self.world:
            raise InvalidArgument(f"rank = {self.rank}: must be 0 .. {self.world - 1}; -1 is a process that "
                                  "does not belong to the group")

    def held(self, tokens):
        """How many of the first `tokens` tokens of a sequence this rank holds: an int, or a tensor of ints
        element by element. It is where token number `tokens` has or would have its place on this rank."""
        rounds, rest = tokens // (self.block * self.world), tokens % (self.block * self.world)
        rest = rest - self.rank * self.block
        if isinstance(rest, torch.Tensor):
            return rounds * self.block + rest.clamp(0, self.block)
        return rounds * self.block + min(max(rest, 0), self.block)

    def mine(self, first, count):
        """Of tokens first .. first + count - 1 of a sequence those that this rank appends, as a list of
        offsets 0 .. count - 1: rows of k and v."""
        return [i for i in range(count) if (first + i) // self.block % self.world == self.rank]

    def visible(self, positions, *, sliding_window=0):
        """What queries see of the tokens that this rank holds: (begin, end), int32 tensors like positions.

        positions       [query tokens] integers: where each query stands in its whole sequence, on the
                        cache's device. It sees the tokens up to its own position. With positions on a GPU
                        nothing is read back, so a captured graph may compute them
        sliding_window  tokens of the whole sequence that it sees, its own included; 0 = all. A layer with a
                        sliding_window of its own counts the rank's tokens and so keeps enough: give that
                        window here too
        """
        window = integer("sliding_window", sliding_window, ctypes.c_int64)
        if window < 0:
            raise InvalidArgument(f"sliding_window = {window}: must be 0 or more")
        end = positions + 1
        begin = torch.zeros_like(end) if window == 0 else self.held((end - window).clamp(min=0))
        return begin.to(torch.int32), self.held(end).to(torch.int32)


def attend_context_parallel(batch, layer, q, visible, *, group=None, out=None, lse=None,
                            wire_dtype="float32", softmax_scale=0.0, logit_softcap=0.0, sink_logits=None,
                            workspace=None, stream=None):
    """Attention of a step's queries to the tokens of all ranks. A collective call: every rank of the group
    makes it, in the same order, with the same queries, layer, options and kinds of out and lse.

    batch          this rank's Batch. Its plan asks the same query rows on every rank, and brings the new
                   tokens that this rank holds, or none. Where it brings some, it asks at most as many
                   queries as the sequence then has tokens here (tq_batch_plan); so it does in any case in
                   layers with a sliding_window of their own, which need rollback_tokens for all queries but
                   one, too
    q              [query tokens][num_q_heads][head_dim] io_dtype, a torch tensor on the cache's device
    visible        (begin, end) of ContextSplit.visible, or your own: [query tokens] int32 on the device, in
                   this rank's tokens. None: every query sees all tokens that its sequence has here, which
                   is so in decoding without a window (a query a sequence, at its end) once every rank holds
                   a token; no ranges are then asked for. Otherwise refused
    out            [query tokens][num_q_heads][value_dim] contiguous, of q's type or float32, written into;
                   None: a new tensor of q's type
    lse            [query tokens][num_q_heads] float32 contiguous, written into; True: a new tensor
    wire_dtype     of the partial outputs that are gathered: float32 keeps one device's precision; a 16-bit
                   type halves the bytes and rounds each part once
    sink_logits    [num_q_heads] float32, counted once for all ranks together
    softmax_scale, logit_softcap, workspace   as Batch.attend has them
    stream         None: torch's current stream of q's device, which the collective follows too

    Returns out, or (out, lse) if lse was asked for: on every rank the same bits, those of merge_states over
    the parts in the order of the ranks. The exact windows and sinks of a cache (window_tokens, sink_tokens)
    are each rank's own: more tokens are read exactly than on one device. Tree masks and ALiBi are not taken,
    because they count positions in one cache.

    Bytes that a rank sends and receives: (ranks - 1) * query tokens * num_q_heads * (value_dim * bytes of
    wire_dtype + 4). Raises InvalidArgument, InvalidState as Batch.attend does; a rank that raises leaves the
    others in the collective, until its timeout.
    """
    if not isinstance(q, torch.Tensor) or q.dim() != 3:
        raise InvalidArgument(f"q: {_kind(q)} is no torch tensor [query tokens][num_q_heads][head_dim]")
    if out is not None and not isinstance(out, torch.Tensor):
        raise InvalidArgument(f"out: {_kind(out)} is no torch tensor")
    if wire_dtype not in _WIRE:
        raise InvalidArgument(f"wire_dtype = {wire_dtype!r}: must be one of {', '.join(_WIRE)}")
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise InvalidArgument("group: this process does not belong to it")
    if stream is None and q.device.type == "cuda":
        stream = torch.cuda.current_stream(q.device)
    if visible is None:
        masks = _of_one_query(batch)
    else:
        masks = dict(zip(("visible_begin", "visible_end"), visible))
    heads = batch.cache._shape(integer("layer", layer, ctypes.c_int32))
    parts = _Parts(world, (q.shape[0], heads.num_q_heads, heads.value_dim), _WIRE[wire_dtype], q.device)
    batch.attend(layer, q, out=parts.outs[rank], lse=parts.lses[rank], out_dtype=wire_dtype,
                 softmax_scale=softmax_scale, logit_softcap=logit_softcap,
                 sink_logits=sink_logits if rank == 0 else None, workspace=workspace, stream=stream, **masks)
    if q.shape[0]:
        dist.all_gather_into_tensor(parts.buffer, parts.of_rank(rank), group=group)
    dtype = q.dtype if out is None else out.dtype
    into = out if dtype == _WIRE[wire_dtype] else None
    with_lse = lse is not None and lse is not False
    merged, total = merge_states(parts.outs, parts.lses, out=into, lse=lse if with_lse else True,
                                 stream=stream)
    if out is None:
        out = merged if merged.dtype == dtype else merged.to(dtype)
    elif out is not merged:
        out.copy_(merged)
    return (out, total) if with_lse else out


class _Parts:
    """Room for the partial results of all ranks, one after the other: each is out, then lse. So one
    collective moves both, and each rank attends straight into its place."""

    def __init__(self, world, shape, dtype, device):
        rows = shape[0] * shape[1]
        lse_at = rows * shape[2] * dtype.itemsize
        end = lse_at + rows * 4
        self._bytes = (end + 15) // 16 * 16  # rows of out stay aligned for wide stores
        self.buffer = torch.empty(world * self._bytes, dtype=torch.uint8, device=device)
        places = [self.of_rank(rank) for rank in range(world)]
        self.outs = [place[:lse_at].view(dtype).view(shape) for place in places]
        self.lses = [place[lse_at:end].view(torch.float32).view(shape[:2]) for place in places]

    def of_rank(self, rank):
        return self.buffer[rank * self._bytes:(rank + 1) * self._bytes]


def _of_one_query(batch):
    most = max(batch._queries, default=0)
    if most > 1:
        raise InvalidArgument(f"visible = None: the plan asks {most} queries of a sequence, which do not all "
                              "see the same tokens; give ContextSplit.visible")
    return {}


def _kind(value):
    shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
    return f"a {type(value).__name__}{shape}"
