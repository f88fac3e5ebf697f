# SPDX-License-Identifier: Apache-2.0
"""The Python package with torch tensors on a CUDA device: the contract cases, streams, graph capture, DLPack,
refusals.

Run: TQKV_LIBRARY=/path/to/libtqkv.so.0 python -m pytest tests/gpu/test_python_torch.py     (needs torch with
CUDA; skips without)
"""
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

PYTHON = Path(__file__).resolve().parents[2] / "bindings" / "python"
sys.path[:0] = [str(PYTHON), str(PYTHON / "tests")]

import contract_runner  # noqa: E402
import numpy as np  # noqa: E402
import tqkv  # noqa: E402

DATA = contract_runner.load()
SHAPE = dict(num_layers=2,
             num_q_heads=8,
             num_kv_heads=2,
             head_dim=128,
             key_bits=4,
             value_bits=4,
             max_tokens=4096,
             max_sequences=4,
             device="cuda")


class Cuda:
    """Tensors of the contract cases on the GPU."""

    device = "cuda"

    def put(self, array, dtype):
        strides = [s // array.itemsize for s in array.strides]
        dense = torch.from_numpy(np.ascontiguousarray(array).copy())
        if dtype == "bfloat16":
            dense = dense.view(torch.int16).view(torch.bfloat16)
        result = torch.empty_strided(array.shape, strides, dtype=dense.dtype, device="cuda")
        return result.copy_(dense)

    def empty(self, shape, dtype):
        return torch.full(shape, float("nan"), dtype=getattr(torch, dtype), device="cuda")

    def take(self, tensor):
        return tensor.double().cpu().numpy()

    def memory(self, num_bytes):
        return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_contract(case):
    if case.get("cpu_only"):
        pytest.skip("for the CPU only")
    contract_runner.Runner(DATA, Cuda()).run(case)


def tensors(tokens, queries, dtype=torch.float16, seed=0):
    g = torch.Generator("cuda").manual_seed(seed)

    def make(rows, heads):
        return torch.randn(rows, heads, 128, generator=g, device="cuda", dtype=torch.float32).to(dtype)
    return make(tokens, 2), make(tokens, 2), make(queries, 8)


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_results_are_torch_tensors_on_the_device(dtype):
    k, v, q = tensors(200, 200, getattr(torch, dtype))
    with tqkv.Cache(**{**SHAPE, "io_dtype": dtype, "key_bits": 8, "value_bits": 8}) as cache:
        step = cache.batch()
        step.plan([cache.sequence()], [200])
        step.append(0, k, v)
        out, lse = step.attend(0, q, lse=True)
    assert out.device == q.device and out.dtype == q.dtype and lse.dtype == torch.float32
    wide = [x.double().transpose(0, 1) for x in (q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1))]
    want = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True).transpose(0, 1)
    # 8-bit codes are off by 0.7 % of a vector's norm, on both sides.
    assert (out.double() - want).norm() < 0.02 * want.norm()


def test_the_readme_s_example(capsys):
    sys.path.insert(0, str(PYTHON.parents[1] / "tests"))
    import readme

    exec(compile(readme.example("python"), "README.md", "exec"), {})
    assert capsys.readouterr().out == readme.PYTHON_PRINTS


def test_streams():
    """Work is ordered by the given stream: inputs are produced there by a long kernel just before."""
    k, v, q = tensors(512, 4)
    results = []
    with tqkv.Cache(**SHAPE, io_dtype="float16") as cache:
        for stream in (None, torch.cuda.Stream(), torch.cuda.Stream()):
            torch.cuda.synchronize()
            step, sequence = cache.batch(), cache.sequence()
            late = [torch.zeros_like(x) for x in (k, v, q)]
            torch.cuda.synchronize()
            with torch.cuda.stream(stream if stream is not None else torch.cuda.default_stream()):
                torch.cuda._sleep(50_000_000)
                for to, source in zip(late, (k, v, q)):
                    to.copy_(source)
                handle = stream if stream is None else stream.cuda_stream if len(results) == 1 else stream
                step.plan([sequence], [512], [4], stream=handle)
                step.append(0, late[0], late[1], stream=handle)
                results.append(step.attend(0, late[2], stream=handle))
            assert cache.check(stream=handle) == 0
            sequence.free(stream=handle)
            step.close()
    assert results[0].abs().sum() > 0
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_graph_replay_equals_eager():
    """append and attend captured once, replayed while the sequence grows; plan between replays."""
    steps = 70  # over a page of 64
    inputs = [tensors(1, 1, seed=100 + i) for i in range(steps)]
    prompt = tensors(40, 1)

    def run(graphed):
        outs = []
        stream = torch.cuda.Stream()
        with tqkv.Cache(**SHAPE, io_dtype="float16") as cache, torch.cuda.stream(stream):
            step, sequence = cache.batch(), cache.sequence()
            step.plan([sequence], [40], [1], stream=stream)
            for layer in range(2):
                step.append(layer, prompt[0], prompt[1], stream=stream)
            k, v, q = (x.clone() for x in inputs[0])
            out = torch.empty(2, 1, 8, 128, dtype=torch.float16, device="cuda")

            def layers():
                for layer in range(2):
                    step.append(layer, k, v, stream=stream)
                    step.attend(layer, q, out=out[layer], stream=stream)

            graph = None
            for new in inputs:
                for to, source in zip((k, v, q), new):
                    to.copy_(source)
                step.plan([sequence], [1], stream=stream)
                if not graphed:
                    layers()
                else:
                    if graph is None:
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph, stream=stream):
                            layers()
                    graph.replay()
                outs.append(out.clone())
            stream.synchronize()
        return torch.stack(outs)

    eager = run(False)
    assert torch.isfinite(eager).all() and torch.equal(run(True), eager)


def causal(q, k, v):
    """[queries][8][128] of the last tokens of k and v, in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = k.repeat_interleave(4, 0), v.repeat_interleave(4, 0)
    hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device="cuda").triu(
        k.shape[1] - q.shape[1] + 1)
    logits = (q @ k.transpose(1, 2) / 128**0.5).masked_fill(hidden, float("-inf"))
    return (logits.softmax(2) @ v).transpose(0, 1)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("counts", ((700, 3, 300), (5, 1, 40)))
def test_a_plan_s_own_tokens_as_they_are(dtype, counts):
    """Rows of a first prompt are attention without compression; later ones read codes of what was before."""
    flags, name = tqkv.CONSTANTS["TQ_FLAG_EXACT_CHUNK"], str(dtype).split(".")[1]
    with tqkv.Cache(**{**SHAPE, "num_layers": 1}, max_batch_tokens=1024, io_dtype=name,
                    flags=flags) as cache:
        step, sequence = cache.batch(), cache.sequence()
        before = 0
        for i, count in enumerate(counts):
            k, v, q = tensors(count, count, dtype, seed=i)
            step.plan([sequence], [count])
            out, lse = step.attend(0, q, chunk=(k, v), out_dtype="float32", lse=True)
            step.append(0, k, v)
            old = sequence.read(0, 0, before, like=k) if before else (k[:0], v[:0])
            wanted = causal(q, torch.cat((old[0], k)), torch.cat((old[1], v)))
            off = ((out - wanted).norm() / wanted.norm()).item()
            # what is read back is rounded to the type, and so are queries of float16 prefill
            assert off < (1e-3 if i == 0 else 2e-3 if dtype == torch.float16 else 8e-3), (count, off)
            before += count


def test_own_tokens_in_a_graph():
    flags = tqkv.CONSTANTS["TQ_FLAG_EXACT_CHUNK"]
    with tqkv.Cache(**{**SHAPE, "num_layers": 1}, max_batch_tokens=64, io_dtype="float16",
                    flags=flags) as cache:
        stream, sequence = torch.cuda.Stream(), cache.sequence()
        k, v, q = tensors(9, 9)
        out, direct = torch.empty_like(q), torch.empty_like(q)
        step = cache.batch()
        with torch.cuda.stream(stream):
            step.plan([sequence], [9], stream=stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                step.append(0, k, v, stream=stream)
                step.attend(0, q, out=out, chunk=(k, v), stream=stream)
            for seed in range(3):
                if seed:
                    step.plan([sequence], [9], stream=stream)
                for tensor, fresh in zip((k, v, q), tensors(9, 9, seed=seed)):
                    tensor.copy_(fresh)
                graph.replay()
                step.attend(0, q, out=direct, chunk=(k, v), stream=stream)
                stream.synchronize()
                assert torch.equal(out, direct), seed


def test_attends_in_their_own_workspaces_from_two_threads():
    """Side by side, each on its own stream; the rows of a plan are those of the library."""
    k, v, q = tensors(300, 2)
    with tqkv.Cache(**SHAPE, io_dtype="float16") as cache:
        assert cache.config.device == "cuda:0" and cache.config.io_dtype == "float16"
        step, sequence = cache.batch(), cache.sequence()
        step.plan([sequence], np.array([300], np.uint16), np.array([2], np.uint8))
        assert step.rows() == (300, 2, True)
        step.append(0, k, v)
        want = step.attend(0, q)
        torch.cuda.synchronize()
        rooms = [torch.empty(cache.workspace_bytes(), dtype=torch.uint8, device="cuda") for _ in range(2)]
        outs, streams = [[], []], [torch.cuda.Stream() for _ in range(2)]

        def work(i):
            for _ in range(50):
                with torch.cuda.stream(streams[i]):
                    outs[i].append(step.attend(0, q, workspace=rooms[i], stream=streams[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
        assert all(len(each) == 50 and all(torch.equal(out, want) for out in each) for each in outs)


def test_plan_inside_a_capture_is_refused():
    with tqkv.Cache(**SHAPE, io_dtype="float16") as cache:
        step, sequence = cache.batch(), cache.sequence()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        x = torch.zeros(1, device="cuda")
        with torch.cuda.graph(graph, stream=stream):
            with pytest.raises(tqkv.CaptureError):
                step.plan([sequence], [1], stream=stream)
            x += 1
        graph.replay()
        torch.cuda.synchronize()
        assert x.item() == 1 and len(sequence) == 0


def test_dlpack_and_cuda_array_interface():
    k, v, q = tensors(9, 9)

    class OnlyDlpack:
        def __init__(self, tensor):
            self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__

    class OnlyInterface:
        def __init__(self, tensor):
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    want = None
    with tqkv.Cache(**SHAPE, io_dtype="float16") as cache:
        for kind in (lambda x: x, OnlyDlpack, OnlyInterface):
            step, sequence = cache.batch(), cache.sequence()
            step.plan([sequence], [9])
            step.append(0, kind(k), kind(v))
            out = torch.empty(9, 8, 128, dtype=torch.float16, device="cuda")
            step.attend(0, kind(q), out=kind(out))
            torch.cuda.synchronize()
            want = out if want is None else want
            assert torch.equal(out, want)
            sequence.free()


def test_decoded_values_beyond_float16_saturate_as_on_the_cpu():
    centre = np.full((2, 128), 65400.0, np.float32)
    k = torch.from_numpy(
        np.minimum(65400 + 150 * np.random.default_rng(4).standard_normal((70, 2, 128)),
                   65504).astype(np.float16))
    read = []
    for device in ("cpu", "cuda"):
        with tqkv.Cache(**{**SHAPE, "key_bits": 2, "value_bits": 2, "device": device},
                        io_dtype="float16") as cache:
            for layer in range(2):
                cache.set_centres(layer, centre, -centre)
            step, sequence = cache.batch(), cache.sequence()
            step.plan([sequence], [70])
            step.append(0, k.to(device), -k.to(device))
            rows = [torch.empty(70, 2, 128, dtype=torch.float16, device=device) for _ in "kv"]
            sequence.read(0, 0, 70, k=rows[0], v=rows[1])
            torch.cuda.synchronize()
            read.append([x.cpu() for x in rows])
    for cpu, cuda, largest in zip(*read, (65504, -65504)):
        assert torch.equal(cpu, cuda) and torch.isfinite(cpu).all() and (cpu == largest).any()


def test_host_tensors_are_refused():
    k, v, q = tensors(2, 2)
    with tqkv.Cache(**SHAPE, io_dtype="float16") as cache:
        step = cache.batch()
        step.plan([cache.sequence()], [2])
        with pytest.raises(tqkv.InvalidArgument, match="v: is on the CPU, the cache is on CUDA device 0"):
            step.append(0, k, v.cpu())
        with pytest.raises(tqkv.InvalidArgument, match="q: is on the CPU"):
            step.attend(0, q.cpu().numpy())
        with pytest.raises(tqkv.InvalidArgument, match="cannot be made like the input|is on the CPU"):
            step.cache.sequence().read(0, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantizer(dtype):
    """Tensors of the device in every call, on a stream of one's own; the CPU's records and results."""
    fields = dict(dim=100, bits=4, io_dtype=dtype, seed=3)
    host, device = tqkv.Quantizer(**fields), tqkv.Quantizer(**fields, device="cuda")
    x = torch.randn(500, 100, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    queries, stream = x[:9] * 0.5, torch.cuda.Stream()
    on_device, device_queries = x.cuda(), queries.cuda()
    torch.cuda.synchronize()
    codes = device.encode(on_device, stream=stream)
    assert codes.is_cuda and codes.dtype == torch.uint8
    back = device.decode(codes, stream=stream)
    y = device.rotate(on_device, stream=stream)
    round_trip = device.unrotate(y, stream=stream)
    products = device.inner_products(device_queries, codes, stream=stream)
    scores, ids = device.search(device_queries, codes, 7, bias=torch.ones(500, device="cuda"), stream=stream)
    stream.synchronize()
    wanted = host.encode(x)
    assert codes.cpu().equal(wanted)
    assert back.cpu().equal(host.decode(wanted)) and y.cpu().equal(host.rotate(x))
    assert round_trip.cpu().equal(host.unrotate(host.rotate(x)))
    assert products.cpu().equal(host.inner_products(queries, wanted))
    want_scores, want_ids = host.search(queries, wanted, 7, bias=torch.ones(500))
    assert scores.cpu().equal(want_scores) and ids.cpu().equal(want_ids)
    x[3, 4] = float("nan")
    assert device.encode(x.cuda(), noticed=True)[1] == tqkv.Noticed.NONFINITE
    with pytest.raises(tqkv.InvalidArgument, match="is on the CPU"):
        device.encode(x)
    with pytest.raises(tqkv.NotSupported, match="CPU"):
        device.calibrate_levels(on_device, 2)
