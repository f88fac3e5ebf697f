# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU, with torch for memory, streams and the matrix product to compare with: attention
on codes, and the rotation alone.

Times are those of CUDA graphs of many calls, warm, over sets of vectors that exceed the second-level cache,
by turns: start-up and the host are in none of them.
"""

import statistics

import numpy as np

import tqkv

from .library import Library

CALLS, TURNS = 24, 7
SET_BYTES = 1 << 26


class Device(Library):
    """Caches and quantizers of the loaded library on a CUDA device. Raises InvalidArgument without one."""
    def __init__(self, name):
        try:
            import torch
        except ImportError as error:
            raise tqkv.InvalidArgument(f"device = {name!r}: needs torch: {error}") from error
        if not torch.cuda.is_available():
            raise tqkv.InvalidArgument(f"device = {name!r}: torch {torch.__version__} finds no CUDA device")
        self.name, self.torch = name, torch
        self.place = torch.device(name)
        self.title = torch.cuda.get_device_name(self.place)
        self.stream = torch.cuda.Stream(self.place)

    def attention(self, k, v, q, key_bits, value_bits, **fields):
        torch = self.torch
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(self.place) for x in (k, v, q)]
        torch.cuda.synchronize(self.place)
        results = super().attention(*tensors, key_bits, value_bits, device=self.name, **fields)
        torch.cuda.synchronize(self.place)
        return tuple(x.cpu().numpy() for x in results)

    def rotation_times(self, dim, seed):
        """Microseconds of the rotation of float32 vectors and of GEMMs by the same matrix: {name: us}, how
        many vectors, and whether the rotated vectors are the CPU's bit for bit."""
        torch = self.torch
        rows = SET_BYTES // (4 * dim)
        generator = torch.Generator(self.place).manual_seed(seed)
        sets = [torch.randn(rows, dim, device=self.place, generator=generator) for _ in range(4)]
        quantizer = tqkv.Quantizer(dim, 4, seed=seed, device=self.name)
        matrix = quantizer.rotate(torch.eye(dim, device=self.place))[:, :dim]
        y = torch.empty(rows, quantizer.rotated_dim, device=self.place)
        out = torch.empty(rows, dim, device=self.place)
        halves, half_matrix = [x.half() for x in sets], matrix.half()
        half_out = torch.empty(rows, dim, device=self.place, dtype=torch.float16)
        calls = {
            "rotation": lambda i: quantizer.rotate(sets[i], y=y, stream=self.stream),
            "float32 GEMM": lambda i: torch.mm(sets[i], matrix, out=out),
            "TF32 GEMM": lambda i: torch.mm(sets[i], matrix, out=out),
            "float16 GEMM": lambda i: torch.mm(halves[i], half_matrix, out=half_out),
        }
        torch.cuda.synchronize(self.place)
        graphs = {name: self._graph(call, len(sets), name == "TF32 GEMM") for name, call in calls.items()}
        times = {name: [] for name in graphs}
        for _ in range(TURNS):
            for name, graph in graphs.items():
                times[name].append(self._replay(graph))
        host = tqkv.Quantizer(dim, 4, seed=seed).rotate(sets[0][:64].cpu().numpy())
        same = np.array_equal(quantizer.rotate(sets[0][:64]).cpu().numpy(), host)
        return {name: statistics.median(us) for name, us in times.items()}, rows, same

    def _graph(self, call, sets, tf32):
        torch = self.torch
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, tf32
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self.stream):
                call(0)
                torch.cuda.synchronize(self.place)
                with torch.cuda.graph(graph, stream=self.stream):
                    for i in range(CALLS):
                        call(i % sets)
            torch.cuda.synchronize(self.place)
            return graph
        finally:
            matmul.allow_tf32 = before

    def _replay(self, graph):
        torch = self.torch
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            graph.replay()
            begin.record()
            graph.replay()
            end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / CALLS
