#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention on quantised caches by others, beside tqkv in one run: `bench.py --cases peers --peers DIR`.

DIR holds the few files of each peer (peer_*.py name them) as `peers.py collect FROM DIR` took them out of the
folder `vllm` of an installed vLLM, or of KVarN's fork of it, or out of `sglang` of OSCAR's, or compiled them
from `flashinfer`; a peer without its files is left out. They are imported as they are and never kept in this
repository; the packages above them, and what they ask of vLLM's platform layer, are stand-ins made here. A
cache is filled by the peer's own store, its blocks in shuffled order, and decoded by the peer's own launcher
with the buffers and settings of its backend. The output that was timed is compared with float64 attention
over what the peer's own functions decode from the same blocks, and that with what was stored.

    peers.py collect FROM DIR                 copies the files, or compiles
    TRITON_INTERPRET=1 peers.py try DIR NAME  every variant of a peer on a small case, on the CPU
"""
import dataclasses
import importlib
import logging
import os
import random
import shutil
import sys
import types

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cases  # noqa: E402

PEERS = ("peer_xqa", "peer_oscar", "peer_turboquant", "peer_kvarn")  # the quick ones first
# A few roundings to float16 or TF32 (queries, weights, decoded values, the output), each at most 2^-11.
GATE = 2.5e-3
# How far codes of normal numbers may be off, relative to their length, by the bits of a number: uniform
# steps between the extremes of 128 numbers, or better; 8: float8 with 3 bits of mantissa, at worst cut off.
STORED_GATE = {2: 0.6, 3: 0.25, 4: 0.13, 8: 0.1}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run a peer. splits: numbers of pieces of a sequence, each measured; shipped: the one that the
    peer's engine takes by itself on an NVIDIA GPU, if this is what it runs there."""
    preset: str
    bits: tuple
    soa: bool = False
    block: int = 16
    splits: tuple = (32, )
    shipped: object = None

    def name(self):
        return f"{self.preset}{' SoA' if self.soa else ''}"


class Blocks:
    """Caches of a peer in blocks of a layer, filled from pool. A peer adds put(layer, keys, values, slots),
    buffers(splits), decode(layer, q, splits, buffers) -> out, _decoded(layer, sequence), token_bytes."""

    def __init__(self, case, variant, layers, pool, device):
        self.case, self.variant, self.layers, self.pool = case, variant, layers, pool
        self.device = device
        each = -(-case.tokens // variant.block)
        self.num_blocks = case.batch * each + 1  # block 0 is never used: vLLM's null block
        order = torch.randperm(case.batch * each, generator=torch.Generator().manual_seed(3)) + 1
        self.table = order.view(case.batch, each).int().to(device)
        self.lengths = torch.full((case.batch, ), case.tokens, dtype=torch.int32, device=device)
        draw = random.Random(case.tokens + case.batch)
        self.offsets = [draw.randrange(len(pool[0]) - case.tokens + 1) for _ in range(case.batch)]
        self.reference = {}

    def fill(self):
        for sequence in range(self.case.batch):
            for layer in range(self.layers):
                self.put(layer, sequence, *self.rows(sequence))

    def rows(self, sequence):
        part = slice(self.offsets[sequence], self.offsets[sequence] + self.case.tokens)
        return self.pool[0][part], self.pool[1][part]

    def checked(self):
        """Sequences that errors looks at."""
        return sorted({0, self.case.batch - 1})

    def errors(self, layer, q, out):
        """(worst relative L2 error of an output row, those of stored keys and values)."""
        from filled import worst_error
        worst, stored = 0.0, [0.0, 0.0]
        for sequence in self.checked():
            if (layer, sequence) not in self.reference:
                self.reference[layer, sequence] = self._decoded(layer, sequence)
            k, v = self.reference[layer, sequence]
            for i, (mine, given) in enumerate(zip((k, v), self.rows(sequence))):
                stored[i] = max(stored[i], float((mine - given.double()).norm() / given.double().norm()))
            rows = slice(sequence, sequence + 1)
            worst = max(worst, worst_error(out[rows], q[rows], k, v, torch))
        return float(f"{worst:.3e}"), [float(f"{x:.3e}") for x in stored]


def hadamard(dim, device):
    """Sylvester's, orthonormal."""
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return (matrix / dim ** 0.5).to(device)


def judged(peer, variant, error, stored):
    """Why these errors are too large, or None. NaN is."""
    if not error <= getattr(peer, "GATE", GATE):
        return f"the output is off by {error:.2e} from attention over what the peer itself decodes"
    for kind, bits, one in zip(("keys", "values"), variant.bits, stored):
        if not 0 < one <= STORED_GATE[bits]:
            return f"what the peer decodes is off by {one:.2e} from the {kind} that were stored"
    return None


# ---- files of the peers ----


def module(name, folder=None, **contents):
    made = types.ModuleType(name)
    if folder is not None:
        made.__path__ = [folder]
    made.__dict__.update(contents)
    sys.modules[name] = made


class Platform:
    """What the files ask of vllm.platforms.current_platform, for this machine."""

    @staticmethod
    def is_cuda_alike():
        return torch.cuda.is_available()

    @staticmethod
    def is_rocm():
        return False

    @staticmethod
    def fp8_dtype():
        return torch.float8_e4m3fn


def package_of(peer):
    return getattr(peer, "PACKAGE", "vllm")


def stand_ins(folder, peers):
    """Packages without their own code, and the modules that more than one peer imports."""
    import triton
    import triton.language
    packages = {package_of(peer) for peer in peers}
    for peer, name in ((peer, name) for peer in peers for name in peer.FILES):
        parts = os.path.dirname(name).split("/")
        packages |= {".".join([package_of(peer), *parts[:i + 1]]) for i in range(len(parts))}
    for package in sorted(packages):
        module(package, os.path.join(folder, *package.split(".")[1:]))
    module("vllm.platforms", current_platform=Platform)
    module("vllm.triton_utils", tl=triton.language, triton=triton)
    module("vllm.logger", init_logger=logging.getLogger)


def lacking(folder, peer):
    return [name for name in peer.FILES if not os.path.isfile(os.path.join(folder, name))]


def collect(folder, to):
    for peer in map(importlib.import_module, PEERS):
        if hasattr(peer, "collect"):
            peer.collect(folder, to)
            continue
        missing = lacking(folder, peer)
        if missing:
            print(f"{peer.NAME}: {folder} lacks {', '.join(missing)}")
            continue
        for name in peer.FILES:
            os.makedirs(os.path.dirname(os.path.join(to, name)), exist_ok=True)
            shutil.copy(os.path.join(folder, name), os.path.join(to, name))
        print(f"{peer.NAME}: {len(peer.FILES)} files in {to}")


class Peers:
    """The peers whose files are in folder and whose name holds wanted."""

    def __init__(self, folder, wanted=""):
        folder, self.found = os.path.abspath(folder), []
        all_peers = [importlib.import_module(name) for name in PEERS]
        stand_ins(folder, all_peers)
        for peer in all_peers:
            if wanted not in peer.NAME:
                continue
            missing = lacking(folder, peer)
            if missing:
                print(f"{peer.NAME} left out: {folder} lacks {', '.join(missing)}")
            else:
                self.found.append((peer, peer.Functions(folder)))
        if not self.found:
            raise SystemExit(f"--peers {folder}: holds no files of a peer whose name holds {wanted!r}")

    def variants(self):
        for peer, functions in self.found:
            for variant in peer.VARIANTS:
                yield peer, functions, variant

    # ---- the bench ----

    def measure(self, bench, case):
        """Yields a line for each variant and number of splits, or a pair (name, trouble)."""
        for peer, functions, variant in self.variants():
            try:
                yield from self._variant(bench, case, peer, functions, variant)
            except Exception as error:
                yield f"{peer.NAME} {variant.name()}", error
                torch.cuda.synchronize()

    @torch.no_grad()
    def _variant(self, bench, case, peer, functions, variant):
        token_bytes = peer.token_bytes(functions, case, variant)
        layers = cases.rotated(case.stored_bytes(token_bytes), bench.l2)
        with torch.cuda.stream(bench.stream):
            pool = bench.pool(case.kv_heads, case.head_dim)
            blocks = peer.PeerBlocks(functions, case, variant, layers, pool, "cuda")
            blocks.fill()
            q = torch.randn(case.batch, case.q_heads, case.head_dim, dtype=torch.float16, device="cuda")
        bench.stream.synchronize()
        for splits in variant.splits:
            result, out = self._timed(bench, blocks, q, splits)
            with torch.cuda.stream(bench.stream):
                error, stored = blocks.errors(layers - 1, q, out)
            bench.stream.synchronize()
            trouble = judged(peer, variant, error, stored)
            if trouble:
                yield f"{peer.NAME} {variant.name()}, {splits} splits", ValueError(trouble)
                continue
            yield {
                "peer": peer.NAME, "preset": variant.name(), "splits": splits, "block": variant.block,
                "shipped": splits == variant.shipped, **result,
                "gbs": round(case.stored_bytes(token_bytes) / result["us"] / 1e3, 1), "layers": layers,
                "token_bytes": token_bytes, "error": error, "stored_error": stored
            }
        del blocks, out
        torch.cuda.empty_cache()

    @staticmethod
    def _timed(bench, blocks, q, splits):
        """The spread of the times, and the output of the last call that was timed."""
        buffers, last = blocks.buffers(splits), None
        once = bench.gpu.first_time(bench.stream, lambda: blocks.decode(0, q, splits, buffers))
        count = cases.launches(blocks.layers, once)

        def calls():
            nonlocal last
            for index in range(count):
                last = blocks.decode(index % blocks.layers, q, splits, buffers)
        result = bench.gpu.replayed(bench.stream, calls, count,
                                    max(7, min(bench.gpu.REPEATS, int(4e5 / (count * once)))))
        return result, last


def try_on_cpu(folder, name):
    """In Triton's interpreter; a minute or so."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("try needs TRITON_INTERPRET=1")
    case, failed = cases.Case("small", "decode", 2, 256, q_heads=2, kv_heads=1, head_dim=128), 0
    torch.manual_seed(1)
    pool = tuple(torch.randn(500, case.kv_heads, case.head_dim, dtype=torch.float16) for _ in "kv")
    for peer, functions, variant in Peers(folder, name).variants():
        blocks = peer.PeerBlocks(functions, case, variant, 1, pool, "cpu")
        blocks.fill()
        q = torch.randn(case.batch, case.q_heads, case.head_dim, dtype=torch.float16)
        splits = min(x for x in variant.splits if x > 1)
        out = blocks.decode(0, q, splits, blocks.buffers(splits))
        errors = blocks.errors(0, q, out)
        trouble = judged(peer, variant, *errors)
        failed += trouble is not None
        print(f"{peer.NAME} {variant.name()}: errors {errors}{f': FAILED {trouble}' if trouble else ''}",
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.modules["peers"] = sys.modules["__main__"]  # the peers' modules import this one
    if len(sys.argv) == 4 and sys.argv[1] == "collect":
        collect(*sys.argv[2:])
    elif len(sys.argv) == 4 and sys.argv[1] == "try":
        sys.exit(try_on_cpu(*sys.argv[2:]))
    else:
        sys.exit(__doc__)
