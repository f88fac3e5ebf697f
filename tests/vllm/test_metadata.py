# SPDX-License-Identifier: Apache-2.0
"""The builder and the attention class with vLLM's real metadata, without an engine: padding, holes, requests
that are not causal, steps that are built while others live, what is refused. TQKV_TEST_DEVICE=cuda: on a GPU,
with captured graphs."""
import os
import types

import pytest
import torch
import tqkv
import vllm
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import get_attn_backend
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

import tqkv.vllm
from tqkv.vllm import _backend
from tqkv.vllm._codec import content_bytes, first_kv_head, head_sizes
from tqkv.vllm._settings import Settings, dtype_widths

HEADS, KV_HEADS, DIM, BLOCK, NAMES = 8, 2, 64, 32, ["model.layers.3.attn", "model.layers.5.attn"]
DEVICE = os.environ.get("TQKV_TEST_DEVICE", "cpu")
MOST_REQS, MOST_TOKENS, MODEL_LEN = 8, 128, 512
on_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="graphs are CUDA's")
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's builder")


def on_device(values, dtype):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def run_config(cache_dtype="auto", additional=None):
    return types.SimpleNamespace(
        cache_config=types.SimpleNamespace(cache_dtype=cache_dtype),
        model_config=types.SimpleNamespace(dtype=torch.float32, get_total_num_kv_heads=lambda: KV_HEADS,
                                           max_model_len=MODEL_LEN),
        scheduler_config=types.SimpleNamespace(max_num_seqs=MOST_REQS, max_num_batched_tokens=MOST_TOKENS),
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
        self.builder = _backend.TqkvBuilder(self.spec, NAMES, config, torch.device(DEVICE))
        self.impl = _backend.TqkvImpl(HEADS, DIM, DIM**-0.5, KV_HEADS, **arguments)
        shape = 20, KV_HEADS, BLOCK, self.spec.state_content_bytes
        self.caches = [torch.full(shape, 255, dtype=torch.uint8, device=DEVICE) for _ in NAMES]

    def metadata(self, lens, queries, slots, table, causal=True, max_seq_len=None):
        starts = on_device([0] + queries, torch.int32).cumsum(0, dtype=torch.int32)
        return self.builder.build(0, common(
            starts, on_device(lens, torch.int32), on_device(table, torch.int32),
            on_device(slots, torch.int64), max(queries), max_seq_len or max(lens), causal))

    def forward(self, metadata, q, k, v, layer=0):
        out = torch.full((len(q), HEADS, DIM), 7.0, device=DEVICE)
        return self.impl.forward(self.layers[NAMES[layer]], q, k, v, self.caches[layer], metadata, out)


def common(starts, lens, table, slots, max_query_len, max_seq_len, causal=True):
    """vLLM's metadata; the host's copy of starts is left out, for it may say something else."""
    return CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=None, seq_lens=lens, num_reqs=len(lens),
        num_actual_tokens=len(slots), max_query_len=max_query_len, max_seq_len=max_seq_len,
        block_table_tensor=table, slot_mapping=slots, causal=causal)


def tensors(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, DIM, generator=generator).to(DEVICE)
            for heads in (HEADS, KV_HEADS, KV_HEADS)]


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
    causal = torch.ones(45, 45, device=DEVICE).tril().bool()
    assert close(out[:45].double(), exact(q[:45], k[:45], v[:45], causal)) < 2**-12
    assert torch.all(out[45:] == 0)
    assert torch.all(layers.caches[0][[0, 1, 2, 4, 19]] == 255)


def test_requests_that_are_not_causal(monkeypatch):
    layers = Layers(monkeypatch, "16+16")
    q, k, v = tensors(40)
    k, v = k.half().float(), v.half().float()
    slots = [BLOCK + i for i in range(20)] + [2 * BLOCK + i for i in range(20)]
    metadata = layers.metadata([20, 20], [20, 20], slots, [[1], [2]], on_device([True, False], torch.bool))
    out = layers.forward(metadata, q, k, v)
    every = torch.ones(20, 20, device=DEVICE)
    both = every.tril().bool(), every.bool()
    for first, see in zip((0, 20), both):
        part = slice(first, first + 20)
        assert close(out[part].double(), exact(q[part], k[part], v[part], see)) < 2**-12


def test_a_cache_of_the_package_gives_the_same_bits(monkeypatch):
    """Numbers of the layer (5, of a group that begins at 3) and of the heads are those of the whole model."""
    layers = Layers(monkeypatch, "4+3", logits_soft_cap=20.0,
                    sinks=torch.ones(HEADS, dtype=torch.bfloat16).to(DEVICE))
    q, k, v = tensors(33)
    metadata = layers.metadata([33], [33], [4 * BLOCK + i for i in range(33)], [[4, 5]])
    out = layers.forward(metadata, q, k, v, layer=1)
    with tqkv.Cache(num_layers=1, num_q_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, key_bits=4,
                    value_bits=3, max_tokens=64, first_layer=5, device=DEVICE) as cache:
        batch = cache.batch()
        batch.plan([cache.sequence()], [33])
        batch.append(0, k, v)
        assert torch.equal(out, batch.attend(0, q, softmax_scale=DIM**-0.5, logit_softcap=20.0,
                                             sink_logits=torch.ones(HEADS, device=DEVICE)))


@on_cpu
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
    beyond = layers.metadata([1], [1], [20 * BLOCK], [[0]])
    if DEVICE == "cpu":
        with pytest.raises(tqkv.InvalidArgument, match="slot_mapping"):
            layers.forward(beyond, q, k, v)
    else:  # the device leaves it out, and says so
        layers.forward(beyond, q, k, v)
        torch.cuda.synchronize()
        assert all(torch.all(cache == 255) for cache in layers.caches)
        assert layers.builder._codec.check() == tqkv.Noticed.OUT_OF_RANGE


def test_metadata_that_serves_two_passes(monkeypatch):
    """A draft model's loop changes vLLM's arrays in place and keeps the metadata."""
    layers = Layers(monkeypatch, "16+16")
    q, k, v = (x.half().float() for x in tensors(2))
    metadata = layers.metadata([1], [1], [BLOCK], [[1]], max_seq_len=2)
    for position in range(2):
        part = slice(position, position + 1)
        metadata.arrays["seq_lens"].fill_(position + 1)
        metadata.arrays["slot_mapping"].fill_(BLOCK + position)
        for layer in range(2):
            out = layers.forward(metadata, q[part], k[part], v[part], layer)
            see = torch.ones(1, position + 1, device=DEVICE).bool()
            want = exact(q[part], k[:position + 1], v[:position + 1], see)
            assert close(out.double(), want) < 2**-12


@on_cuda
@pytest.mark.parametrize("widths", ("16+16", "8+8", "4+3"))
def test_a_captured_step(monkeypatch, widths):
    """All layers of a step in one graph, as vLLM captures it: bounds of the capture, then other lengths, a
    batch of decodes and prompts, padding. The same bits and bytes as without a graph."""
    ours, theirs = Layers(monkeypatch, widths), Layers(monkeypatch, widths)
    assert ours.builder.get_cudagraph_support(None, None) == AttentionCGSupport.ALWAYS
    tokens, reqs, columns = 24, 4, MODEL_LEN // BLOCK
    q, k, v = (torch.zeros(tokens, heads, DIM, device=DEVICE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    starts, lens, slots = (torch.zeros(reqs + 1, dtype=torch.int32, device=DEVICE),
                           torch.zeros(reqs, dtype=torch.int32, device=DEVICE),
                           torch.full((tokens, ), -1, device=DEVICE))
    table = torch.zeros(reqs, columns, dtype=torch.int32, device=DEVICE)
    step = common(starts, lens, table, slots, tokens, MODEL_LEN)

    def run(layers):
        metadata = layers.builder.build_for_cudagraph_capture(step)
        return [layers.forward(metadata, q, k, v, layer) for layer in range(2)]

    run(ours)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(ours)
    blocks, lengths = {i: [] for i in range(reqs)}, [0] * reqs
    for replay, counts in enumerate(([20, 3, 0, 0], [1, 1, 0, 0], [1, 1, 22, 0], [0, 0, 0, 0], [2, 3, 1, 9],
                                     [1, 1, 1, 1])):
        places = []
        for i, count in enumerate(counts):
            for position in range(lengths[i], lengths[i] + count):
                if position % BLOCK == 0:
                    blocks[i].append(1 + sum(map(len, blocks.values())))
                places.append(blocks[i][position // BLOCK] * BLOCK + position % BLOCK)
            lengths[i] += count
            table[i, :len(blocks[i])] = on_device(blocks[i], torch.int32)
        starts.copy_(on_device([0] + counts, torch.int32).cumsum(0, dtype=torch.int32))
        lens.copy_(on_device([n if c else 0 for n, c in zip(lengths, counts)], torch.int32))
        slots.copy_(on_device(places + [-1] * (tokens - len(places)), torch.int64))
        for mine, new in zip((q, k, v), tensors(tokens, replay)):
            mine.copy_(new)
        eager = run(theirs)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, eager)), f"replay {replay}"
        assert all(torch.equal(a, b) for a, b in zip(ours.caches, theirs.caches)), f"replay {replay}"
        assert all(torch.all(out[len(places):] == 0) for out in captured)
    assert ours.builder._codec.check() == 0


def test_registration(monkeypatch):
    """The name that vLLM knows the backend by; on CUDA it is chosen where none is named."""
    monkeypatch.setenv("TQKV_VLLM", "4+4")
    name = AttentionBackendEnum[_backend.TqkvBackend.get_name()]
    assert name == (AttentionBackendEnum.CPU_ATTN if current_platform.is_cpu() else
                    AttentionBackendEnum.CUSTOM)
    tqkv.vllm.register()
    assert name.get_class() is _backend.TqkvBackend
    assert DIM in head_sizes(DEVICE) and 568 not in head_sizes(DEVICE)

    class Platform:
        asked = []

        @classmethod
        def get_attn_backend_cls(cls, selected_backend, config, num_heads=None):
            cls.asked.append((selected_backend, config, num_heads))

    for _ in range(2):  # as often as vLLM loads plug-ins
        tqkv.vllm._prefer(Platform, name)
    Platform.get_attn_backend_cls(None, "config", num_heads=3)
    Platform.get_attn_backend_cls(AttentionBackendEnum.FLASH_ATTN, "config")
    assert Platform.asked == [(name, "config", 3), (AttentionBackendEnum.FLASH_ATTN, "config", None)]


@pytest.mark.parametrize("version", ("0.31.2", "0.33.0"))
def test_other_versions(monkeypatch, version):
    monkeypatch.setenv("TQKV_VLLM", "4+4")
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(tqkv.NotSupported, match=f"vllm {version}: .* made for 0.32.x; unset TQKV_VLLM"):
        tqkv.vllm.register()
    monkeypatch.delenv("TQKV_VLLM")
    tqkv.vllm.register()


@on_cuda
def test_vllm_chooses_it(monkeypatch):
    """Where no backend is named; what it cannot do is an error, not another backend."""
    monkeypatch.setenv("TQKV_VLLM", "4+3")
    tqkv.vllm.register()
    with set_current_vllm_config(VllmConfig()):
        assert get_attn_backend(128, torch.bfloat16, "auto") is _backend.TqkvBackend
        with pytest.raises(ValueError, match="kv_cache_dtype not supported"):
            get_attn_backend(128, torch.bfloat16, "fp8")
