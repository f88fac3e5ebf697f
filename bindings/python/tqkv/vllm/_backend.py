# SPDX-License-Identifier: Apache-2.0
"""The backend that vLLM's attention layers meet: page bytes, the plan of a step, append and attend.

A group of layers has one builder, and its layers share a step. The first of them plans it, so that a captured
graph holds the plan too and reads, when it is replayed, what vLLM's arrays hold then: the host knows bounds
alone. Keys and values are appended in forward, behind the plan, because a tile that several tokens of a step
write has one owner.
"""
import weakref
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Union

import torch
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none, get_layers_from_vllm_config
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (AttentionBackend, AttentionCGSupport, AttentionImpl,
                                       AttentionMetadataBuilder, AttentionType, MultipleOf)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from .. import PagedCodec, PagedStep
from ..errors import NotSupported
from ._codec import DTYPES, LayerShape, content_bytes, first_kv_head, head_sizes, make_codec
from ._settings import Settings

# (cache_dtype, model dtype, Settings) of the run: asked for where vLLM does not pass its configuration.
_run = None


def _remember(vllm_config):
    global _run
    _run = (vllm_config.cache_config.cache_dtype, vllm_config.model_config.dtype, Settings.of(vllm_config))
    return _run


class TqkvBackend(AttentionBackend):
    """Takes the place of CPU_ATTN; on CUDA the name CUSTOM."""

    forward_includes_kv_cache_update = True
    supported_dtypes = list(DTYPES)
    supported_kv_cache_dtypes = [
        "auto", "float16", "bfloat16", "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc",
        "turboquant_3bit_nc"
    ]

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN" if current_platform.is_cpu() else "CUSTOM"

    @staticmethod
    def get_impl_cls():
        return TqkvImpl

    @staticmethod
    def get_builder_cls():
        return TqkvBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [MultipleOf(32)]

    @classmethod
    def get_supported_head_sizes(cls):
        return head_sizes(current_platform.device_type)

    @classmethod
    def supported_kv_cache_layouts(cls):
        return (KVCacheLayout.LBHNC, )

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

    @classmethod
    def supports_compute_capability(cls, capability) -> bool:
        return capability.major >= 8

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """A block is [kv head][tile], so a token of a head has a 32nd of a tile's bytes."""
        if spec.state_content_bytes is not None:
            return spec
        config = get_current_vllm_config_or_none()
        cache_dtype, dtype, settings = _run if config is None else _remember(config)
        widths = settings.layer_widths(cache_dtype, spec.kv_quant_mode.name)
        return replace(spec, dtype=torch.uint8,
                       state_content_bytes=content_bytes(spec.head_size, spec.head_size_v, widths, dtype))


@dataclass
class TqkvMetadata:
    """A step of a group of layers."""

    codec: PagedCodec
    step: PagedStep
    layers: Dict[str, int]  # number in the codec of each layer by name
    first: int              # of them that this group's forward passes begin with
    arrays: Dict[str, Any]  # of PagedStep.plan
    causal: Union[bool, torch.Tensor]
    planned: bool = False
    visible_begin: Optional[torch.Tensor] = None  # of non-causal requests' queries, else None
    visible_end: Optional[torch.Tensor] = None

    @property
    def num_tokens(self) -> int:
        return self.arrays["num_tokens"]

    def ready(self, number, stream):
        """Planned, anew in every forward pass: metadata may serve several, over arrays that changed."""
        if number == self.first or not self.planned:
            self.step.plan(**self.arrays, stream=stream)
            self.visible_begin, self.visible_end = _visible(self.causal, self.arrays["seq_lens"],
                                                            self.arrays["query_start_loc"], self.num_tokens)
            self.planned = True


class TqkvBuilder(AttentionMetadataBuilder[TqkvMetadata]):

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        cache_dtype, dtype, settings = _remember(vllm_config)
        parallel, model = vllm_config.parallel_config, vllm_config.model_config
        layers = get_layers_from_vllm_config(vllm_config, Attention)
        targets = {layers[name].kv_sharing_target_layer_name for name in layer_names} - {None}
        shapes = {}
        for name in sorted({*layer_names, *targets}):
            layer, target = layers[name], layers[name].kv_sharing_target_layer_name
            first = first_kv_head(layer.num_kv_heads, model.get_total_num_kv_heads(),
                                  get_tensor_model_parallel_rank(), parallel.tensor_parallel_size)
            shapes[name] = LayerShape(extract_layer_index(name), layer.num_heads, layer.num_kv_heads,
                                      layer.head_size, layer.head_size_v,
                                      settings.layer_widths(cache_dtype, layer.kv_cache_dtype), first,
                                      None if target is None else extract_layer_index(target))
        self._codec = make_codec(list(shapes.values()), settings, dtype, device)
        least = min(shape.number for shape in shapes.values())
        self._layers = {name: shape.number - least for name, shape in shapes.items()}
        self._first = min(self._layers[name] for name in layer_names)
        self._free = []  # steps whose metadata is gone
        # On CUDA one step serves all: what it holds, a stream uses in order. Graphs keep its address.
        self._only = None if device.type == "cpu" else self._codec.step(self._workspace(vllm_config, device))

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
        """ALWAYS on CUDA: lengths, tables and which rows are padding are read on the device."""
        return AttentionCGSupport.NEVER if current_platform.is_cpu() else AttentionCGSupport.ALWAYS

    def _workspace(self, vllm_config, device):
        """Of the largest step that the scheduler may ask for."""
        scheduler, tokens = vllm_config.scheduler_config, vllm_config.scheduler_config.max_num_batched_tokens
        num_bytes = self._codec.workspace_bytes(num_reqs=scheduler.max_num_seqs, num_tokens=tokens,
                                                max_query_len=tokens,
                                                max_seq_len=vllm_config.model_config.max_model_len)
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        m = common_attn_metadata
        step = self._only or (self._free.pop() if self._free else self._codec.step())
        reqs, tokens = m.num_reqs, m.num_actual_tokens
        arrays = dict(slot_mapping=m.slot_mapping[:tokens], block_table=m.block_table_tensor[:reqs],
                      seq_lens=m.seq_lens[:reqs], query_start_loc=m.query_start_loc[:reqs + 1],
                      num_tokens=tokens, max_query_len=m.max_query_len, max_seq_len=m.max_seq_len)
        metadata = TqkvMetadata(self._codec, step, self._layers, self._first, arrays, m.causal)
        if step is not self._only:
            weakref.finalize(metadata, self._free.append, step)
        return metadata


def _visible(causal, seq_lens, starts, tokens):
    """visible_begin, visible_end of all rows where some request is not causal: what its mask would say. On
    the arrays' device, without waiting for it."""
    if causal is True:
        return None, None
    ends, row = starts[1:].contiguous(), torch.arange(tokens, dtype=torch.int32, device=starts.device)
    request = torch.searchsorted(ends, row, right=True).clamp_(max=len(ends) - 1)
    position = row - ends[request] + seq_lens[request]
    whole = ~causal[:len(ends)][request] if isinstance(causal, torch.Tensor) else torch.ones_like(row).bool()
    end = torch.where(whole, seq_lens[request], position + 1)
    return torch.zeros_like(row), torch.where(row < ends[-1], end, 0)


def _stream(device):
    return None if device.type == "cpu" else torch.cuda.current_stream(device)


class TqkvImpl(AttentionImpl[TqkvMetadata]):

    def __init__(self, num_heads, head_size, scale, num_kv_heads=None, alibi_slopes=None,
                 sliding_window=None, kv_cache_dtype="auto", logits_soft_cap=None,
                 attn_type=AttentionType.DECODER, kv_sharing_target_layer_name=None, sinks=None,
                 **unknown: Any):
        if attn_type != AttentionType.DECODER:
            raise NotSupported(f"attn_type = {attn_type}: tqkv.vllm has decoder attention alone; unset "
                               "TQKV_VLLM for this model")
        if unknown:
            raise NotSupported(f"attention arguments {', '.join(sorted(unknown))}: unknown to tqkv.vllm")
        _remember(get_current_vllm_config())
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.sliding_window = sliding_window
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self._softcap = float(logits_soft_cap or 0)
        self._alibi = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self._sinks = sinks
        self._pages = (None, None)  # the cache tensor that they were made of, and they

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None,
                output_block_scale=None):
        if output_scale is not None or output_block_scale is not None:
            raise NotSupported("fused quantisation of the output: unknown to tqkv.vllm")
        if attn_metadata is None:  # a run for measuring memory
            return output.fill_(0)
        m, stream = attn_metadata, _stream(query.device)
        tokens, number = m.num_tokens, m.layers[layer.layer_name]
        pages = self._pages_of(m.codec, number, kv_cache)
        m.ready(number, stream)
        if self.kv_sharing_target_layer_name is None and key is not None and value is not None:
            m.step.append(number, pages, key[:tokens], value[:tokens], stream=stream)
        if m.visible_begin is not None and self.sliding_window:
            raise NotSupported("non-causal requests in a layer with a sliding window: unknown to tqkv.vllm")
        m.step.attend(number, pages, query[:tokens], out=output[:tokens].view(tokens, self.num_heads, -1),
                      softmax_scale=self.scale, logit_softcap=self._softcap,
                      sliding_window=self.sliding_window or 0, sink_logits=self._float_sinks(),
                      alibi_slopes=self._slopes(query.device), visible_begin=m.visible_begin,
                      visible_end=m.visible_end, stream=stream)
        return output

    def _slopes(self, device):
        if self._alibi is not None and self._alibi.device != device:
            self._alibi = self._alibi.to(device)
        return self._alibi

    def _float_sinks(self):
        return None if self._sinks is None else self._sinks.to(torch.float32).contiguous()

    def _pages_of(self, codec, number, kv_cache):
        """Pages of the layer in vLLM's tensor [block][kv head][token][bytes of a token] of bytes."""
        made_of, pages = self._pages
        if made_of is None or made_of.data_ptr() != kv_cache.data_ptr() or made_of.shape != kv_cache.shape:
            blocks, heads, size, content = kv_cache.shape
            if kv_cache.stride()[2:] != (content, 1):
                raise NotSupported(f"KV cache of shape {tuple(kv_cache.shape)} and strides "
                                   f"{kv_cache.stride()}: the tokens of a head must be contiguous")
            flat = kv_cache.as_strided((blocks, heads, size * content), (*kv_cache.stride()[:2], 1))
            pages = codec.pages(number, flat, block_size=size)
            self._pages = (kv_cache, pages)
        return pages
