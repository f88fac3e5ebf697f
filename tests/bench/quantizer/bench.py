#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours by codes, beside FAISS at equal bytes: how often the true nearest neighbour is among the
first 1, 10, 100 (the paper's section 4.4), time to build, queries a second; and the rotation beside a matrix
product.

Data: vectors made by formula (a mixture on the sphere at d = 200, a decaying spectrum at d = 1536), and what
scikit-learn ships: its digits, and patches of its two photographs. All vectors are brought to length 1, so
that inner products rank as distances do. Queries are no part of the base. One thread for everybody.

    bench.py [--quick] [--json FILE]        with the interpreter that environment.sh prints; TQKV_LIBRARY

--quick: one small set, FAISS if it is there; no figure is judged.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bindings" / "python"))

import numpy as np  # noqa: E402
import tqkv  # noqa: E402

try:
    import faiss
    faiss.omp_set_num_threads(1)
except ImportError:
    faiss = None

AMONG = (1, 10, 100)
HELD = []


# ---- data: (base, queries), float32, unit length

def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def split(x, queries, rng):
    x = unit(x[rng.permutation(len(x))])
    return x[queries:], x[:queries]


def mixture(count, queries, dim=200, centres=20):
    rng = np.random.default_rng(1)
    around = rng.standard_normal((centres, dim))[rng.integers(centres, size=count + queries)]
    return split(around + rng.standard_normal((count + queries, dim)), queries, rng)


def spectrum(count, queries, dim=1536):
    """Coordinates of falling variance, mixed by random reflections: embeddings look so."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((count + queries, dim)) / np.sqrt(1 + np.arange(dim) / 20)
    for _ in range(4):
        v = rng.standard_normal(dim)
        v /= np.linalg.norm(v)
        x = x[:, rng.permutation(dim)]
        x -= 2 * np.outer(x @ v, v)
    return split(x, queries, rng)


def digits(queries):
    from sklearn.datasets import load_digits
    x = load_digits().data
    return split(x - x.mean(axis=0), queries, np.random.default_rng(3))


def patches(queries, side=16, step=6):
    """Patches of two photographs, in grey, without their mean."""
    from sklearn.datasets import load_sample_images
    found = []
    for image in load_sample_images().images:
        grey = image.astype(np.float64).mean(axis=2)
        windows = np.lib.stride_tricks.sliding_window_view(grey, (side, side))[::step, ::step]
        found.append(windows.reshape(-1, side * side))
    x = np.concatenate(found)
    x = x - x.mean(axis=1, keepdims=True)
    return split(x[np.linalg.norm(x, axis=1) > 1], queries, np.random.default_rng(4))


# ---- methods: build(base) -> (bytes a vector, search(queries, k) -> ids)

def ours(**fields):
    def build(base):
        quantizer = tqkv.Quantizer(base.shape[1], num_threads=1, seed=7, **fields)
        codes = quantizer.encode(base)
        return quantizer.code_bytes, lambda queries, k: quantizer.search(queries, codes, k)[1]
    return build


def index(make):
    def build(base):
        made = make(base.shape[1])
        made.train(base)
        made.add(base)
        size = getattr(made, "code_size", None) or made.sa_code_size()
        return size, lambda queries, k: made.search(queries, k)[1]
    return build


def exact(base):
    return 4 * base.shape[1], lambda queries, k: np.argsort(-(queries @ base.T), axis=1)[:, :k]


def parts_of(dim, most):
    """The largest number of parts of PQ that divides dim and is not above `most` bytes."""
    return max(m for m in range(1, most + 1) if dim % m == 0)


def product_quantizer(dim, parts):
    """PQ with 10 rounds of k-means; FAISS's default is 25."""
    made = faiss.IndexPQ(dim, parts, 8, faiss.METRIC_INNER_PRODUCT)
    made.pq.cp.niter, made.pq.cp.min_points_per_centroid = 10, 1  # 1: no warnings on standard output
    return made


def rotated_pq(dim, parts):
    """OPQ and PQ, with 5 rounds of training; FAISS's default is 50, which takes minutes."""
    rotation, inner = faiss.OPQMatrix(dim, parts), faiss.ProductQuantizer(dim, parts, 8)
    inner.cp.min_points_per_centroid = 1
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0, rotation.pq = 5, 2, 10, inner
    HELD.append(inner)  # FAISS keeps the address alone
    return faiss.IndexPreTransform(rotation, product_quantizer(dim, parts))


def methods(dim, bits, training):
    """(name, build) at about `bits` bits a coordinate."""
    found = [(f"tqkv {bits} bits", ours(bits=bits)),
             (f"tqkv {bits} bits, paper", ours(bits=bits, scale_rule="paper"))]
    if bits in (2, 3, 4):
        found.append((f"tqkv prod {bits} bits", ours(bits=bits, family="prod")))
    if faiss is None:
        return found
    ip = faiss.METRIC_INNER_PRODUCT
    most = parts_of(dim, dim * bits // 8 + 2)
    if training and most <= 200:  # beyond, training takes minutes
        found.append((f"FAISS PQ{most}x8", index(lambda d: product_quantizer(d, most))))
        if most <= 64:  # its training takes minutes beyond
            found.append((f"FAISS OPQ{most},PQ{most}x8", index(lambda d: rotated_pq(d, most))))
    kinds = {4: faiss.ScalarQuantizer.QT_4bit, 6: faiss.ScalarQuantizer.QT_6bit,
             8: faiss.ScalarQuantizer.QT_8bit}
    if bits in kinds:
        found.append((f"FAISS SQ{bits}", index(lambda d: faiss.IndexScalarQuantizer(d, kinds[bits], ip))))
    if hasattr(faiss, "IndexRaBitQ"):
        found.append((f"FAISS RaBitQ {bits} bits", index(lambda d: faiss.IndexRaBitQ(d, ip, bits))))
    return found


# ---- measurements

def measure(name, build, base, queries, nearest):
    start = time.perf_counter()
    size, search = build(base)
    built = time.perf_counter() - start
    most = min(AMONG[-1], len(base))
    search(queries[:8], most)
    start = time.perf_counter()
    ids = search(queries, most)
    seconds = time.perf_counter() - start
    row = {"method": name, "bytes": size, "build_s": built, "queries_per_s": len(queries) / seconds}
    for k in AMONG:
        row[f"1@{k}"] = float((ids[:, :k] == nearest[:, None]).any(axis=1).mean())
    return row


def rotation_rows(quick):
    """The rotation of many vectors against a product with a dense matrix, both in float32 on one thread."""
    rows = []
    for dim in (128, ) if quick else (128, 512, 1536, 4096):
        count = max(64, (1 << 21) // dim)
        x = np.random.default_rng(5).standard_normal((count, dim)).astype(np.float32)
        matrix = np.random.default_rng(6).standard_normal((dim, dim)).astype(np.float32)
        quantizer = tqkv.Quantizer(dim, 2, num_threads=1)
        y = np.empty((count, quantizer.rotated_dim), dtype=np.float32)
        seconds = {}
        for name, call in (("rotate", lambda: quantizer.rotate(x, y=y)), ("GEMM", lambda: x @ matrix)):
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                call()
                best = min(best, time.perf_counter() - start)
            seconds[name] = best
        rows.append({"dim": dim, "vectors": count, "rotate_us": 1e6 * seconds["rotate"] / count,
                     "gemm_us": 1e6 * seconds["GEMM"] / count, "ratio": seconds["GEMM"] / seconds["rotate"],
                     "rotate_gb_s": 8e-9 * x.size / seconds["rotate"]})
    return rows


def progress(text):
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        sets = [("mixture d=200", mixture(1500, 60), (2, ), False)]
    else:
        sets = [("mixture d=200", mixture(10000, 1000), (1, 2, 4), True),
                ("spectrum d=1536", spectrum(5000, 500), (1, 2, 4), True)]
        if faiss is not None:
            sets[2:] = [("digits d=64", digits(300), (1, 2, 4), True),
                        ("patches d=256", patches(1000), (1, 2, 4, 8), True)]
    report = {"rows": [], "rotation": []}
    head = f"{'data':<16} {'method':<26} {'bytes':>6} {'build s':>8} {'queries/s':>10}" + "".join(
        f"{f'1@{k}':>7}" for k in AMONG)
    print(head)
    for data, (base, queries), widths, training in sets:
        dim = base.shape[1]
        nearest = (queries @ base.T).argmax(axis=1)
        all_methods = [("exact, float32", exact)]
        for bits in widths:
            all_methods += methods(dim, bits, training)
        for i, (name, build) in enumerate(all_methods):
            progress(f"{data}: {name} ({i + 1} of {len(all_methods)})")
            row = {"data": data, "vectors": len(base), **measure(name, build, base, queries, nearest)}
            report["rows"].append(row)
            progress("")
            print(f"{data:<16} {name:<26} {row['bytes']:>6} {row['build_s']:>8.2f} "
                  f"{row['queries_per_s']:>10.0f}" + "".join(f"{row[f'1@{k}']:>7.3f}" for k in AMONG),
                  flush=True)
    report["rotation"] = rotation_rows(options.quick)
    print(f"\n{'rotation, d':<12} {'us a vector':>12} {'GEMM':>8} {'times faster':>13} {'GB/s':>6}")
    for row in report["rotation"]:
        print(f"{row['dim']:<12} {row['rotate_us']:>12.3f} {row['gemm_us']:>8.3f} {row['ratio']:>13.1f} "
              f"{row['rotate_gb_s']:>6.1f}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
