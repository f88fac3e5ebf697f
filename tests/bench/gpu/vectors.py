# SPDX-License-Identifier: Apache-2.0
"""Vectors on their own on a GPU: the rotation beside torch GEMMs by the same matrix, encode and decode in
GB/s of vectors, searches in queries/s, in one run. `bench.py --cases vectors`.

Rotations, codes and GEMMs are graphs of many launches over sets that exceed the second-level cache (bench.py
says how they are timed), by turns; searches, which cannot be captured, are timed call after call. A GEMM
reads and writes float16, or reads and writes float32 with TF32 products: the faster one is what counts.
Checked: the rotation against the GEMM in float64, records and search results against the CPU's.
"""
import json
import statistics

import cases
import tqkv

DIMS = (128, 1024, 1536, 4096)
BYTES = 1 << 28  # of float16 vectors of a set
TURNS = 3
SEARCHED = {"": {"bits": 4}, "prod": {"bits": 4, "family": "prod"},
            "outliers": {"bits": 3, "outliers": range(32)}}
SEARCHES = ((128, 1000000, ""), (1536, 200000, ""), (128, 1000000, "prod"), (128, 1000000, "outliers"))
QUERIES = (1, 32, 256)
TOLERANCE = 4e-6  # of float32 rotations: log2(4096) + 3 roundings of 2^-24, relative to a vector's length


class Rotations:
    """One dimension's calls on sets of vectors."""

    def __init__(self, bench, dim):
        torch = self.torch = bench.torch
        self.bench, self.dim = bench, dim
        self.count = BYTES // (2 * dim)
        self.sets = cases.rotated(BYTES, bench.l2)
        self.half = [torch.randn(self.count, dim, device="cuda", dtype=torch.float16)
                     for _ in range(self.sets)]
        self.full = [x.float() for x in self.half]
        self.by_half = tqkv.Quantizer(dim, 4, io_dtype="float16", seed=5, device="cuda")
        self.by_full = tqkv.Quantizer(dim, 4, seed=5, device="cuda")
        eye = torch.eye(dim, device="cuda")
        # row i of the rotated identity is what x_i adds
        self.matrix = self.by_full.rotate(eye)[:, :dim]
        self.y = torch.empty(self.count, self.by_full.rotated_dim, device="cuda")
        self.out_half = torch.empty(self.count, dim, device="cuda", dtype=torch.float16)
        self.out_full = torch.empty(self.count, dim, device="cuda")
        self.codes = torch.empty(self.count, self.by_half.code_bytes, device="cuda", dtype=torch.uint8)
        torch.cuda.synchronize()

    def calls(self):
        torch, stream = self.torch, self.bench.stream
        half_matrix = self.matrix.half()
        return {
            "rotate f16": lambda i: self.by_half.rotate(self.half[i], y=self.y, stream=stream),
            "rotate f32": lambda i: self.by_full.rotate(self.full[i], y=self.y, stream=stream),
            "unrotate f32": lambda i: self.by_full.unrotate(self.y, x=self.out_full, stream=stream),
            "GEMM f16": lambda i: torch.mm(self.half[i], half_matrix, out=self.out_half),
            "GEMM TF32": lambda i: torch.mm(self.full[i], self.matrix, out=self.out_full),
            "encode f16": lambda i: self.by_half.encode(self.half[i], codes=self.codes, stream=stream),
            "decode f16": lambda i: self.by_half.decode(self.codes, x=self.out_half, stream=stream),
        }

    def check(self):
        """What was timed is right: {check: bool}."""
        x = self.full[0][:4096]
        wanted = x.double() @ self.matrix.double()
        got = self.by_full.rotate(x)[:, :self.dim].double()
        error = (got - wanted).norm(dim=1) / x.double().norm(dim=1)
        few = self.half[0][:64]
        host = tqkv.Quantizer(self.dim, 4, io_dtype="float16", seed=5)
        same = self.by_half.encode(few).cpu().equal(host.encode(few.cpu()))
        return {f"rotation within {TOLERANCE} of the GEMM in float64": float(error.max()) <= TOLERANCE,
                "records of the CPU": same}


def rotations(bench, dim):
    made = Rotations(bench, dim)
    torch, gpu, stream = bench.torch, bench.gpu, bench.stream
    torch.backends.cuda.matmul.allow_tf32 = True
    calls, times = made.calls(), {}
    for _ in range(TURNS):
        for name, call in calls.items():
            count = cases.launches(made.sets, gpu.first_time(stream, lambda call=call: call(0)))
            replay = gpu.replayed(stream, lambda call=call, n=count: [call(i % made.sets) for i in range(n)],
                                  count, 5)
            times.setdefault(name, []).append(replay["us"])
    us = {name: statistics.median(all_us) for name, all_us in times.items()}
    one = {"dim": dim, "count": made.count, "us": us, "turns": times, "checks": made.check()}
    gemm = min(us["GEMM f16"], us["GEMM TF32"])
    moved = {"rotate f16": 6, "rotate f32": 8, "unrotate f32": 8, "encode f16": 2, "decode f16": 2}
    one["gbs"] = {name: size * dim * made.count / us[name] / 1e3 for name, size in moved.items()}
    one["rotate / GEMM"] = {name: us[name] / gemm for name in ("rotate f16", "rotate f32")}
    one["rotate / GEMM"]["f32 / TF32"] = us["rotate f32"] / us["GEMM TF32"]
    return one


def searches(bench, dim, count, codes_of):
    torch, gpu, stream = bench.torch, bench.gpu, bench.stream
    fields = {"io_dtype": "float16", "seed": 5, **SEARCHED[codes_of]}
    quantizer, host = (tqkv.Quantizer(dim, device=device, **fields) for device in ("cuda", "cpu"))
    x = torch.randn(count, dim, device="cuda", dtype=torch.float16)
    codes, rows = quantizer.encode(x), []
    few = codes[:5000].cpu()
    for queries in QUERIES:
        q = torch.randn(queries, dim, device="cuda", dtype=torch.float16)
        torch.cuda.synchronize()
        us = statistics.median(
            gpu.event_times(stream, lambda q=q: quantizer.search(q, codes, 10, stream=stream), 9))
        dense = statistics.median(
            gpu.event_times(stream, lambda q=q: torch.topk(q @ x.T, 10, dim=1), 9))
        got = quantizer.search(q, codes[:5000].contiguous(), 10)
        want = host.search(q.cpu(), few, 10)
        same = all(a.cpu().equal(b) for a, b in zip(got, want))
        rows.append({"dim": dim, "count": count, "codes": codes_of, "queries": queries, "us": us,
                     "per_second": queries / us * 1e6,
                     "float16 GEMM and topk us": dense, "ratio": us / dense,
                     "checks": {"results of the CPU": same}})
    return rows


def measure(arguments, head, bench):
    """The tables; their JSON if a file is named. Returns the exit status."""
    rows, passed, failed = [], 0, 0
    for dim in DIMS:
        if arguments.only in f"rotate d{dim}":
            one = rotations(bench, dim)
            rows.append(one)
            print(f"d{dim:<5} x {one['count']}: " + "  ".join(
                f"{name} {us:.1f} us" + (f" ({one['gbs'][name]:.0f} GB/s)" if name in one["gbs"] else "")
                for name, us in one["us"].items()), flush=True)
            print("       of the GEMM's time: " + "  ".join(
                f"{name} {ratio:.2f}" for name, ratio in one["rotate / GEMM"].items()), flush=True)
    for dim, count, codes_of in SEARCHES:
        name = f"search d{dim}{', ' * bool(codes_of)}{codes_of}"
        if arguments.only in name:
            for one in searches(bench, dim, count, codes_of):
                rows.append(one)
                print(f"{name} in {count}, {one['queries']} queries, k = 10: {one['us']:.1f} us, "
                      f"{one['per_second']:.0f} queries/s; float16 GEMM and topk "
                      f"{one['float16 GEMM and topk us']:.1f} us ({one['ratio']:.2f})", flush=True)
    for one in rows:
        for name, right in one["checks"].items():
            passed, failed = passed + bool(right), failed + (not right)
            if not right:
                print(f"NOT: {name} (dim {one['dim']})")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({**head, "rows": rows}, file, indent=1)
            file.write("\n")
    print(f"bench: {passed} passed, {failed} failed, 0 skipped")
    return 0 if passed and not failed else 1
