# SPDX-License-Identifier: Apache-2.0
"""The backend that vLLM's attention layers meet: page bytes, the plan of a step, append and attend.

A group of layers has one builder; the step that it plans is shared by all layers of the group. Keys and
values are appended in forward, behind the plan, because a tile that several tokens of a step write has one
owner.
"""
import weakref
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional

import torch
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none, get_layers_from_vllm_config
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import (AttentionBackend, AttentionCGSupport, AttentionImpl,
                                       AttentionMetadataBuilder, AttentionType, MultipleOf)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from .. import PagedCodec, PagedStep
from ..errors import NotSupported
from ._codec import DTYPES, HEAD_SIZES, LayerShape, content_bytes, first_kv_head, make_codec
from ._settings import Settings

# (cache_dtype, model dtype, Settings) of the run: asked for where vLLM does not pass its configuration.
_run = None


def _remember(vllm_config):
    global _run
    _run = (vllm_config.cache_config.cache_dtype, vllm_config.model_config.dtype, Settings.of(vllm_config))
    return _run


class TqkvBackend(AttentionBackend):
    """Takes the place of CPU_ATTN."""

    forward_includes_kv_cache_update = True
    supported_dtypes = list(DTYPES)
    supported_kv_cache_dtypes = [
        "auto", "float16", "bfloat16", "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc",
        "turboquant_3bit_nc"
    ]

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"

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
        return list(HEAD_SIZES)

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
    """A planned step of a group of layers."""

    codec: PagedCodec
    step: PagedStep
    layers: Dict[str, int]  # number in the codec of each layer by name
    num_tokens: int
    visible_begin: Optional[torch.Tensor]  # of non-causal requests' queries, else None
    visible_end: Optional[torch.Tensor]


class TqkvBuilder(AttentionMetadataBuilder[TqkvMetadata]):
    _cudagraph_support = AttentionCGSupport.NEVER  # the CPU engine has none

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
        self._codec = make_codec(list(shapes.values()), settings, dtype)
        least = min(shape.number for shape in shapes.values())
        self._layers = {name: shape.number - least for name, shape in shapes.items()}
        self._free = []  # steps whose metadata is gone

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        m = common_attn_metadata
        step = self._free.pop() if self._free else self._codec.step()
        reqs, tokens = m.num_reqs, m.num_actual_tokens
        seq_lens, starts = m.seq_lens[:reqs], m.query_start_loc[:reqs + 1]
        step.plan(slot_mapping=m.slot_mapping[:tokens], block_table=m.block_table_tensor[:reqs],
                  seq_lens=seq_lens, query_start_loc=starts, num_tokens=tokens,
                  max_query_len=m.max_query_len, max_seq_len=m.max_seq_len)
        metadata = TqkvMetadata(self._codec, step, self._layers, tokens,
                                *_visible(m.causal, seq_lens, starts, tokens))
        weakref.finalize(metadata, self._free.append, step)
        return metadata


def _visible(causal, seq_lens, starts, tokens):
    """visible_begin, visible_end of all rows where some request is not causal: what its mask would say."""
    if causal is True:
        return None, None
    lengths = (starts[1:] - starts[:-1]).long()
    request = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    row = torch.arange(len(request), dtype=torch.int32)
    position = row - starts[1:][request] + seq_lens[request]
    whole = ~causal[:len(lengths)][request] if isinstance(causal, torch.Tensor) else True
    end = torch.zeros(tokens, dtype=torch.int32)
    end[:len(request)] = torch.where(torch.as_tensor(whole), seq_lens[request], position + 1)
    return torch.zeros(tokens, dtype=torch.int32), end


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
        m = attn_metadata
        tokens, number = m.num_tokens, m.layers[layer.layer_name]
        pages = self._pages_of(m.codec, number, kv_cache)
        if self.kv_sharing_target_layer_name is None and key is not None and value is not None:
            m.step.append(number, pages, key[:tokens], value[:tokens])
        if m.visible_begin is not None and self.sliding_window:
            raise NotSupported("non-causal requests in a layer with a sliding window: unknown to tqkv.vllm")
        m.step.attend(number, pages, query[:tokens], out=output[:tokens].view(tokens, self.num_heads, -1),
                      softmax_scale=self.scale, logit_softcap=self._softcap,
                      sliding_window=self.sliding_window or 0, sink_logits=self._float_sinks(),
                      alibi_slopes=self._alibi, visible_begin=m.visible_begin, visible_end=m.visible_end)
        return output

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
