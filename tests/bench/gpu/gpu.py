# SPDX-License-Identifier: Apache-2.0
"""The GPU side of bench.py: what the device is, the read roof, time by graph replay, torch SDPA in
float16."""
import contextlib
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import launches, rotated, spread

REPEATS, WARM = 25, 4

READ = r"""
extern "C" __global__ void read_stream(const uint4* p, unsigned long long n, unsigned int* out) {
  unsigned int x = 0;
  const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
  unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < n; i += 4 * stride) {
    const uint4 a = __ldcs(p + i), b = __ldcs(p + i + stride);
    const uint4 c = __ldcs(p + i + 2 * stride), d = __ldcs(p + i + 3 * stride);
    x ^= a.x ^ b.y ^ c.z ^ d.w ^ a.y ^ b.x;
  }
  if (x == 0x12345) *out = x;
}
"""


def smi(fields):
    """nvidia-smi's answer as {field: text}; {} if it cannot be asked."""
    try:
        ran = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (x.strip() for x in ran.stdout.strip().split("\n")[0].split(","))))


def clocks():
    return smi(
        ["clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "temperature.gpu"])


def device():
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "driver": smi(["driver_version"]).get("driver_version"),
        "cuda": torch.version.cuda, "torch": torch.__version__,
        "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size
    }


def l2_bytes():
    return torch.cuda.get_device_properties(0).L2_cache_size


def event_times(stream, work, count):
    """Microseconds of work(), each between two events. A short sleep before lets the host enqueue all of it
    before the device starts."""
    times = []
    with torch.cuda.stream(stream):
        for index in range(WARM + count):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(200000)
            begin.record(stream)
            work()
            end.record(stream)
            end.synchronize()
            if index >= WARM:
                times.append(1000.0 * begin.elapsed_time(end))
    return times


def read_roof(stream):
    """{gbs, bytes, kernel}: the best of a few shapes of a kernel that only reads, medians over 4 GiB."""
    size = 4 << 30
    memory, out = torch.zeros(size // 4, dtype=torch.int32, device="cuda"), torch.zeros(1,
                                                                                        dtype=torch.int32,
                                                                                        device="cuda")
    memory += torch.arange(size // 4, dtype=torch.int32, device="cuda") & 0xFFFF
    torch.cuda.synchronize()
    best, name = 0.0, ""
    for label, run in readers(memory, out, stream):
        gbs = size / statistics.median(event_times(stream, run, 15)) / 1e3
        if gbs > best:
            best, name = gbs, label
    del memory, run
    torch.cuda.empty_cache()
    return {"gbs": round(best, 1), "bytes": size, "kernel": name}


def readers(memory, out, stream):
    count, units = memory.numel() // 4, torch.cuda.get_device_properties(0).multi_processor_count
    try:
        import cupy
        kernel = cupy.RawKernel(READ, "read_stream")
        for blocks, threads in ((4, 512), (8, 512), (16, 256), (2, 1024)):
            def run(blocks=blocks, threads=threads):
                with cupy.cuda.ExternalStream(stream.cuda_stream):
                    kernel((units * blocks,), (threads,), (memory.data_ptr(), count, out.data_ptr()))
            run()
            yield f"{blocks} x {threads} threads a multiprocessor", run
    # no CuPy, or it cannot compile here: the same through torch, some percent slower
    except Exception as error:
        print(f"read roof: CuPy failed ({type(error).__name__}: {error}); torch.sum instead")
        yield "torch.sum", lambda: torch.sum(memory.view(torch.int64))


@contextlib.contextmanager
def captured(stream, calls):
    """A graph of calls(), which has run before outside of it."""
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        calls()
    torch.cuda.synchronize()
    try:
        yield graph
    finally:
        graph.reset()


def replayed(stream, calls, per_graph, repeats=REPEATS):
    """spread() of the microseconds of one of per_graph launches."""
    with captured(stream, calls) as graph:
        times = event_times(stream, graph.replay, repeats)
    return spread([t / per_graph for t in times])


def first_time(stream, call):
    """Microseconds, roughly, of one call: what long cases size their graphs by."""
    with torch.cuda.stream(stream):
        call()
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        call()
        end.record(stream)
        end.synchronize()
    return 1000.0 * begin.elapsed_time(end)


def latent_products(case, stream):
    """Attention on dense float16 latents by torch's matrix products and softmax, as sdpa's result."""
    sets = rotated(case.fp16_bytes(), l2_bytes())
    q = torch.randn(case.batch, case.q_len * case.q_heads, case.head_dim, dtype=torch.float16, device="cuda")
    keys = [torch.randn(case.batch, case.tokens, case.head_dim, dtype=torch.float16, device="cuda")
            for _ in range(sets)]
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.stream(stream):
        def call(index=0):
            weights = torch.softmax(q @ keys[index].transpose(1, 2) * case.head_dim ** -0.5, dim=-1)
            return weights @ keys[index][:, :, :case.latent]
        count = launches(sets, first_time(stream, call))
        result = replayed(stream, lambda: [call(i % sets) for i in range(count)] and None, count)
    return dict(result, backend="products", gbs=round(case.fp16_bytes() / result["us"] / 1e3, 1), sets=sets,
                others={}, tflops=round(case.operations() / result["us"] / 1e6, 1))


def sdpa(case, stream):
    """torch SDPA in float16 on dense keys and values, best of its backends: {us, .., backend, gbs, others}.
    Queries see all tokens, of a causal case those up to their own. Values of another dimension than the keys:
    as they are, and for flash, which takes no such, with zeros behind them."""
    sets = rotated(case.fp16_bytes(), l2_bytes())
    shape = (case.batch, case.kv_heads, case.seen_tokens, case.head_dim)
    q = torch.randn(case.batch, case.q_heads, case.q_len, case.head_dim, dtype=torch.float16, device="cuda")
    keys = [torch.randn(shape, dtype=torch.float16, device="cuda") for _ in range(sets)]
    values = [torch.randn(*shape[:3], case.value_dim(), dtype=torch.float16, device="cuda")
              for _ in range(sets)]
    torch.cuda.synchronize()
    results, troubles = {}, {}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        missing = case.head_dim - case.value_dim()
        if name == "flash" and missing:
            name = "flash, padded values"
            values = [torch.nn.functional.pad(v, (0, missing)) for v in values]
        try:
            with sdpa_kernel(backend), torch.no_grad(), torch.cuda.stream(stream):
                def call(index=0):
                    return torch.nn.functional.scaled_dot_product_attention(q,
                                                                            keys[index],
                                                                            values[index],
                                                                            is_causal=case.causal,
                                                                            enable_gqa=case.q_heads
                                                                            != case.kv_heads)
                count = launches(sets, first_time(stream, call))
                results[name] = replayed(stream, lambda: [call(i % sets) for i in range(count)] and None,
                                         count)
        except Exception as error:  # a backend that does not take the shape
            troubles[name] = f"{type(error).__name__}: {error}"[:200]
            torch.cuda.synchronize()
    if not results:
        raise RuntimeError(f"no backend of torch SDPA runs this case: {troubles}")
    best = min(results, key=lambda name: results[name]["us"])
    result = dict(results[best],
                  backend=best,
                  gbs=round(case.fp16_bytes() / results[best]["us"] / 1e3, 1),
                  sets=sets,
                  others={name: r["us"]
                          for name, r in results.items() if name != best})
    if case.kind == "prefill":
        result["tflops"] = round(case.operations() / results[best]["us"] / 1e6, 1)
    if troubles:
        result["not_run"] = troubles
    del keys, values
    torch.cuda.empty_cache()
    return result
