# SPDX-License-Identifier: Apache-2.0
"""The builder and the attention class with vLLM's real metadata, without an engine: padding, holes, requests
that are not causal, steps that are built while others live, what is refused."""
import types

import pytest
import torch
import tqkv
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

from tqkv.vllm import _backend
from tqkv.vllm._codec import content_bytes, first_kv_head
from tqkv.vllm._settings import Settings, dtype_widths

HEADS, KV_HEADS, DIM, BLOCK, NAMES = 8, 2, 64, 32, ["model.layers.3.attn", "model.layers.5.attn"]


def run_config(cache_dtype="auto", additional=None):
    return types.SimpleNamespace(
        cache_config=types.SimpleNamespace(cache_dtype=cache_dtype),
        model_config=types.SimpleNamespace(dtype=torch.float32, get_total_num_kv_heads=lambda: KV_HEADS),
        parallel_config=types.SimpleNamespace(tensor_parallel_size=1), additional_config=additional or {})


class Layers:
    """Two layers of a group, vLLM's tensor of each, and a builder over them."""

    def __init__(self, monkeypatch, widths, **arguments):
        monkeypatch.setenv("TQKV_VLLM", widths)
        config = run_config()
        monkeypatch.setattr(_backend, "get_current_vllm_config", lambda: config)
        monkeypatch.setattr(_backend, "get_current_vllm_config_or_none", lambda: config)
        monkeypatch.setattr(_backend, "get_tensor_model_parallel_rank", lambda: 0)
        layers = {name: types.SimpleNamespace(num_heads=HEADS, num_kv_heads=KV_HEADS, head_size=DIM,
                                              head_size_v=DIM, kv_cache_dtype="auto", layer_name=name,
                                              kv_sharing_target_layer_name=None) for name in NAMES}
        monkeypatch.setattr(_backend, "get_layers_from_vllm_config",
                            lambda config, kind, names=None: layers)
        # vLLM's asks for its process groups, which an engine makes.
        monkeypatch.setattr(_backend.TqkvImpl, "__new__",
                            staticmethod(lambda cls, *a, **named: object.__new__(cls)), raising=False)
        self.layers = layers
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=DIM, dtype=torch.float32)
        self.spec = _backend.TqkvBackend.customize_spec(spec)
        self.builder = _backend.TqkvBuilder(self.spec, NAMES, config, torch.device("cpu"))
        self.impl = _backend.TqkvImpl(HEADS, DIM, DIM**-0.5, KV_HEADS, **arguments)
        shape = 20, KV_HEADS, BLOCK, self.spec.state_content_bytes
        self.caches = [torch.full(shape, 255, dtype=torch.uint8) for _ in NAMES]

    def metadata(self, lens, queries, slots, table, causal=True):
        starts = torch.tensor([0] + queries, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return self.builder.build(0, CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts,
            seq_lens=torch.tensor(lens, dtype=torch.int32), num_reqs=len(lens), num_actual_tokens=len(slots),
            max_query_len=max(queries), max_seq_len=max(lens),
            block_table_tensor=torch.tensor(table, dtype=torch.int32),
            slot_mapping=torch.tensor(slots, dtype=torch.int64), causal=causal))

    def forward(self, metadata, q, k, v, layer=0):
        out = torch.full((len(q), HEADS, DIM), 7.0)
        return self.impl.forward(self.layers[NAMES[layer]], q, k, v, self.caches[layer], metadata, out)


def tensors(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def exact(q, k, v, see):
    """softmax in float64 over the tokens that `see` [rows][tokens] names."""
    group = HEADS // KV_HEADS
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    logits = torch.einsum("qhd,khd->hqk", q.double(), k) * DIM**-0.5
    weights = logits.masked_fill(~see, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def close(a, b):
    return float((a - b).norm() / b.norm())


def test_padding_holes_and_garbage(monkeypatch):
    layers = Layers(monkeypatch, "16+16")
    q, k, v = tensors(50)
    k, v = k.half().float(), v.half().float()  # as raw sides keep them
    q[45:], k[45:], v[45:] = torch.nan, torch.nan, torch.nan
    slots = [3 * BLOCK + i for i in range(32)] + [9 * BLOCK + i for i in range(13)] + [-1] * 5
    metadata = layers.metadata([45, 0], [45, 0], slots, [[3, 9, -77], [2**30, -1, 5]])
    out = layers.forward(metadata, q, k, v)
    causal = torch.ones(45, 45).tril().bool()
    assert close(out[:45].double(), exact(q[:45], k[:45], v[:45], causal)) < 2**-12
    assert torch.all(out[45:] == 0)
    assert torch.all(layers.caches[0][[0, 1, 2, 4, 19]] == 255)


def test_requests_that_are_not_causal(monkeypatch):
    layers = Layers(monkeypatch, "16+16")
    q, k, v = tensors(40)
    k, v = k.half().float(), v.half().float()
    slots = [BLOCK + i for i in range(20)] + [2 * BLOCK + i for i in range(20)]
    metadata = layers.metadata([20, 20], [20, 20], slots, [[1], [2]], torch.tensor([True, False]))
    out = layers.forward(metadata, q, k, v)
    both = (torch.ones(20, 20).tril().bool(), torch.ones(20, 20).bool())
    for first, see in zip((0, 20), both):
        part = slice(first, first + 20)
        assert close(out[part].double(), exact(q[part], k[part], v[part], see)) < 2**-12


def test_a_cache_of_the_package_gives_the_same_bits(monkeypatch):
    """Numbers of the layer (5, of a group that begins at 3) and of the heads are those of the whole model."""
    layers = Layers(monkeypatch, "4+3", logits_soft_cap=20.0, sinks=torch.ones(HEADS, dtype=torch.bfloat16))
    q, k, v = tensors(33)
    metadata = layers.metadata([33], [33], [4 * BLOCK + i for i in range(33)], [[4, 5]])
    out = layers.forward(metadata, q, k, v, layer=1)
    with tqkv.Cache(num_layers=1, num_q_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, key_bits=4,
                    value_bits=3, max_tokens=64, first_layer=5) as cache:
        batch = cache.batch()
        batch.plan([cache.sequence()], [33])
        batch.append(0, k, v)
        assert torch.equal(out, batch.attend(0, q, softmax_scale=DIM**-0.5, logit_softcap=20.0,
                                             sink_logits=torch.ones(HEADS)))


def test_steps_live_as_long_as_their_metadata(monkeypatch):
    layers = Layers(monkeypatch, "8+8")
    make = lambda: layers.metadata([1], [1], [BLOCK], [[1]])  # noqa: E731
    first, second = make(), make()
    assert first.step is not second.step
    step = first.step
    del first
    assert make().step is step


def test_bytes_of_a_page(monkeypatch):
    layers = Layers(monkeypatch, "4+3")
    assert layers.spec.dtype == torch.uint8 and layers.spec.state_content_bytes == (4 + 3) * DIM // 8 + 4
    assert layers.spec.page_size_bytes == KV_HEADS * BLOCK * layers.spec.state_content_bytes
    assert _backend.TqkvBackend.customize_spec(layers.spec) is layers.spec
    assert content_bytes(80, 80, (16, 16), torch.bfloat16) == 4 * 80
    assert [first_kv_head(2, 8, rank, 4) for rank in range(4)] == [0, 2, 4, 6]
    assert [first_kv_head(1, 2, rank, 4) for rank in range(4)] == [0, 0, 1, 1]


def test_widths(monkeypatch):
    assert [dtype_widths(name) for name in ("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc",
                                            "turboquant_3bit_nc", "auto", "fp8")] == [(8, 4), (4, 4), (3, 4),
                                                                                      (3, 3), None, None]
    for mode in KVQuantMode:
        assert (dtype_widths(mode.name) is not None) == mode.is_turboquant
    monkeypatch.setenv("TQKV_VLLM", "4+3")
    assert Settings.of(run_config()).layer_widths("auto", "NONE") == (4, 3)
    own = Settings.of(run_config(additional={"tqkv": {"key_bits": 8, "value_bits": 6, "rotation_seed": 5}}))
    assert own.widths == (8, 6) and own.rotation_seed == 5
    for config, text in ((run_config(additional={"tqkv": {"key_bits": 8}}), "give both or neither"),
                         (run_config("turboquant_4bit_nc"), r"says widths 4\+4, TQKV_VLLM .* 4\+3"),
                         (run_config("fp8"), "kv_cache_dtype = fp8")):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            Settings.of(config)
    monkeypatch.setenv("TQKV_VLLM", "1")
    named = Settings.of(run_config("turboquant_k3v4_nc"))
    assert named.layer_widths("turboquant_k3v4_nc", "TURBOQUANT_K3V4_NC") == (3, 4)
    assert named.layer_widths("turboquant_k3v4_nc", "NONE") == (16, 16)


def test_what_is_refused(monkeypatch):
    layers = Layers(monkeypatch, "4+4")
    with pytest.raises(tqkv.NotSupported, match="decoder attention alone"):
        _backend.TqkvImpl(HEADS, DIM, 1.0, KV_HEADS, attn_type=AttentionType.ENCODER_ONLY)
    with pytest.raises(tqkv.NotSupported, match="block_m"):
        _backend.TqkvImpl(HEADS, DIM, 1.0, KV_HEADS, block_m=4)
    q, k, v = tensors(1)
    with pytest.raises(tqkv.InvalidArgument, match="slot_mapping"):
        layers.forward(layers.metadata([1], [1], [20 * BLOCK], [[0]]), q, k, v)
