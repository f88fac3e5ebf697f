#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention and append on codes beside torch SDPA in float16, through the Python package, in one process on
one GPU.

    TQKV_LIBRARY=.../libtqkv.so.0 python3 tests/bench/gpu/bench.py [--cases short|full|prefill|cliffs|modes|
    quality|latent|engines|paged|peers|ragged|vectors] [--only TEXT] [--json FILE] [--peers DIR]
    [--self-check]

For every case: microseconds (median and spread over replays of a CUDA graph of many launches), GB/s of stored
bytes, share of the read roof measured in the same process, ratio to the best of torch SDPA's cuDNN and flash
backends, and the error of the very output that was timed against float64 attention over the decoded codes.
Several layers are used in turn until their pages exceed three times the second-level cache; pages lie in
shuffled order. An error above 1e-3 fails the bench. --self-check runs what needs no GPU, on a CPU build of
the library. Cases "engines": a whole model's decoding by cache, see engines.py; "paged": decoding from pages
that an engine owns beside a cache's, see paged.py; "peers": others' kernels beside, see peers.py; "ragged":
sequences of unequal lengths, see ragged.py; "vectors": vectors on their own beside GEMMs, see vectors.py.
"""
import argparse
import json
import os
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
sys.path[:0] = [HERE, os.path.join(ROOT, "bindings", "python")]

import cases  # noqa: E402
import table  # noqa: E402
from cases import GATE  # noqa: E402


class Bench:
    def __init__(self, torch, gpu, filled):
        self.torch, self.gpu, self.filled = torch, gpu, filled
        self.stream = torch.cuda.Stream()
        self.l2 = gpu.l2_bytes()
        self.roof = gpu.read_roof(self.stream)
        self.pools = {}
        self.peers, self.keep = None, lambda: None
        self.failed = []

    def pool(self, heads, dim):
        """Random rows that all keys and values of such a shape are taken from."""
        if (heads, dim) not in self.pools:
            self.pools = {}
            self.torch.cuda.empty_cache()
            self.pools = {
                (heads, dim): tuple(
                    self.torch.randn(131072 + 4096, heads, dim, dtype=self.torch.float16, device="cuda")
                    for _ in "kv")
            }
            self.torch.cuda.synchronize()
        return self.pools[heads, dim]

    def empty(self, shape, dtype):
        return self.torch.full(shape, float("nan"), dtype=getattr(self.torch, dtype), device="cuda")

    def fill(self, case, bits, new, queries, most_layers=64):
        coordinate_bits = bits[1] if case.latent else sum(bits)
        guess = case.stored_bytes(case.kv_heads * case.head_dim * coordinate_bits // 8)
        layers = cases.rotated(guess, self.l2, most_layers)
        with self.torch.cuda.stream(self.stream):
            filled = self.filled.Filled(case, bits, layers, self.pool(case.kv_heads, case.head_dim), "cuda",
                                        self.stream, new, queries)
        self.stream.synchronize()
        return filled

    def attend(self, case, bits):
        """One line of a decode or prefill case."""
        torch, prefill = self.torch, case.kind == "prefill"
        filled = self.fill(case, bits, case.q_len if prefill else 1, case.q_len)
        try:
            q = torch.randn(case.batch * case.q_len,
                            case.q_heads,
                            case.head_dim,
                            dtype=torch.float16,
                            device="cuda")
            out = torch.full((filled.layers, *q.shape[:2], case.value_dim()), float("nan"),
                             dtype=torch.float16, device="cuda")
            torch.cuda.synchronize()

            def call(layer=0):
                filled.step.attend(layer, q, out=out[layer], history_only=prefill and not case.causal,
                                   stream=self.stream)
            once = self.gpu.first_time(self.stream, call)
            count = cases.launches(filled.layers, once, least=1 if prefill else 10)

            def calls():
                for index in range(count):
                    call(index % filled.layers)

            result = self.gpu.replayed(self.stream, calls, count,
                                       max(7, min(self.gpu.REPEATS, int(1.5e6 / (count * once)))))
            filled.cache.check(stream=self.stream)
            token_bytes = filled.token_bytes()
            gbs = case.stored_bytes(token_bytes) / result["us"] / 1e3
            result = {
                "key_bits": bits[0], "value_bits": bits[1], **result, "gbs": round(gbs, 1),
                "roof_share": round(gbs / self.roof["gbs"],
                                    4), "layers": filled.layers, "token_bytes": token_bytes
            }
            if prefill or case.latent:
                result["tflops"] = round(case.operations() / result["us"] / 1e6, 1)
            result["error"] = self.error(case, filled, q, out)
            return result
        finally:
            filled.close()

    def error(self, case, filled, q, out):
        """The worst relative L2 error of a row of the output just timed: two sequences, all heads, the last
        layer."""
        layer, worst = filled.layers - 1, 0.0
        for sequence in sorted({0, case.batch - 1}):
            with self.torch.cuda.stream(self.stream):
                k, v = filled.decoded(layer, sequence, lambda rows: rows.float(), self.empty)
                own_k, own_v = filled.own(layer, sequence, self.empty)
                if not (self.torch.equal(k.half(), own_k) and self.torch.equal(v.half(), own_v)):
                    raise RuntimeError("the cache reads other values than its float32 twin")
                rows = slice(sequence * case.q_len, (sequence + 1) * case.q_len)
                if case.causal and case.window + case.sinks:
                    worst = max(worst, self.windowed_error(case, filled, layer, sequence, q, out[layer]))
                    continue
                some = slice(None) if case.q_len == 1 else slice(None, None, 255)
                seen = self.torch.arange(1, case.q_len + 1, device="cuda")[some] if case.causal else None
                worst = max(
                    worst,
                    self.filled.worst_error(out[layer][rows][some], q[rows][some], k[:case.seen_tokens],
                                            v[:case.seen_tokens], self.torch, seen))
            self.stream.synchronize()
        return float(f"{worst:.3e}")

    def windowed_error(self, case, filled, layer, sequence, q, out):
        """The same of some rows of a prompt, each of which reads the tokens before itself and the first ones
        exactly, those between by their codes."""
        torch = self.torch
        sides = filled.decoded(layer, sequence, lambda rows: rows.float(), self.empty, exact=False)
        exact = [torch.cat(side).float() for side in zip(*filled.rows_of(sequence))]
        place, worst = torch.arange(case.q_len, device="cuda")[:, None, None], 0.0
        for row in range(0, case.q_len, 255):
            seen = row + 1
            near = ((place >= seen - case.window) | (place < case.sinks))[:seen]
            k, v = (torch.where(near, own[:seen], codes[:seen]) for own, codes in zip(exact, sides))
            at = slice(sequence * case.q_len + row, sequence * case.q_len + seen)
            worst = max(worst, self.filled.worst_error(out[at], q[at], k, v, torch))
        return worst

    def append(self, case, bits):
        """One line of an append case: the last plan's tokens into every layer, again and again (a repeated
        append writes the same bytes)."""
        bulk = case.kind == "append bulk"
        new = case.tokens if bulk else 1
        filled = self.fill(case, bits, new, 0, 4 if bulk else 20)
        try:
            layers = filled.layers
            count = layers * (3 if bulk else max(1, 40 // layers))

            def calls():
                for index in range(count):
                    filled.step.append(index % layers, *filled.last_rows, stream=self.stream)
            result = self.gpu.replayed(self.stream, calls, count)
            filled.cache.check(stream=self.stream)
            vectors = case.batch * new * case.kv_heads
            moved = vectors * 2 * 2 * case.head_dim + case.batch * new * filled.token_bytes()
            gbs = moved / result["us"] / 1e3
            result = {
                "key_bits": bits[0], "value_bits": bits[1], **result, "gbs": round(gbs, 1),
                "roof_share": round(gbs / self.roof["gbs"],
                                    4), "layers": layers, "token_bytes": filled.token_bytes()
            }
            self.check_append(case, filled)
            return result
        finally:
            filled.close()

    def check_append(self, case, filled):
        """What the timed appends left is what the CPU stores: decoded values bit for bit, first and last
        sequence and layer."""
        import numpy as np

        def host(rows):
            return rows.cpu().numpy().astype(np.float32)
        for layer, sequence in ((0, 0), (filled.layers - 1, case.batch - 1)):
            k, v = filled.decoded(layer,
                                  sequence,
                                  host,
                                  lambda shape, dtype: np.full(shape, np.nan, dtype),
                                  device="cpu")
            for mine, theirs in zip(filled.own(layer, sequence, self.empty), (k, v)):
                if not np.array_equal(mine.cpu().numpy(), theirs.astype(np.float16)):
                    raise RuntimeError("the CPU decodes other values")

    def run(self, case, results):
        """results gets the case's at once; it fills while it is measured."""
        result = {**case.fields(), "tqkv": []}
        results.append(result)
        if case.kind in ("decode", "prefill"):
            try:
                dense = self.gpu.latent_products if case.latent else self.gpu.sdpa
                result["fp16"] = dense(case, self.stream)
                print(table.fp16_line(result), flush=True)
            except Exception as error:
                self.trouble(case, "torch SDPA", error)
        for bits in case.widths:
            try:
                line = (self.append if case.kind.startswith("append") else self.attend)(case, bits)
                if "fp16" in result:
                    line["times_fp16"] = round(result["fp16"]["us"] / line["us"], 3)
                result["tqkv"].append(line)
                print(table.line(result, line), flush=True)
                if not line.get("error", 0) <= GATE:
                    self.trouble(case, bits, ValueError(f"error {line['error']:.2e} is above {GATE:.0e}"))
            except Exception as error:
                self.trouble(case, bits, error)
                self.torch.cuda.synchronize()  # a broken context ends the bench here
        if self.peers:
            self.run_peers(case, result)

    def run_peers(self, case, result):
        result["peers"] = []
        for line in self.peers.measure(self, case):
            if isinstance(line, dict):
                result["peers"].append(line)
                print(table.peer_line(result, line), flush=True)
                self.keep()
            else:
                self.trouble(case, *line)

    def trouble(self, case, what, error):
        text = f"{case.name}, {what}: {type(error).__name__}: {error}"
        print("FAILED " + text, flush=True)
        if not isinstance(error, ValueError):
            traceback.print_exc()
        self.failed.append(text[:400])


def commit():
    """The revision that is measured, if anybody knows it: TQ_COMMIT, or git."""
    if os.environ.get("TQ_COMMIT"):
        return os.environ["TQ_COMMIT"]
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"],
                              cwd=ROOT,
                              capture_output=True,
                              text=True,
                              check=True,
                              timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def measure(arguments):
    import torch

    import filled
    import gpu
    import tqkv
    torch.manual_seed(1)
    begun = time.time()
    head = {
        **gpu.device(), "library": tqkv.build_info(), "commit": commit(), "command": " ".join(
            ["python3", "tests/bench/gpu/bench.py",
             *(os.path.basename(a) for a in sys.argv[1:])]), "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "clocks_before": gpu.clocks()
    }
    if arguments.cases == "engines":
        import engines
        return engines.measure(arguments, head)
    bench = Bench(torch, gpu, filled)
    if arguments.cases == "peers":
        import peers
        bench.peers = peers.Peers(arguments.peers, arguments.peer)
    head.update(roof=bench.roof, repeats=gpu.REPEATS)
    if arguments.cases == "paged":
        import paged
        return paged.measure(arguments, head, bench)
    if arguments.cases == "ragged":
        import ragged
        return ragged.measure(arguments, head, bench)
    if arguments.cases == "vectors":
        import vectors
        return vectors.measure(arguments, head, bench)
    print(table.head(head), flush=True)
    wanted = [case for case in cases.SETS[arguments.cases] if cases.named(case.name, arguments.only)]
    if not wanted:
        raise SystemExit(f"no case's name holds {arguments.only!r}")
    results = []

    def keep():
        head.update(seconds=round(time.time() - begun, 1), cases=results, failed=bench.failed)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                file.write(table.dump(head))
    bench.keep = keep
    for case in wanted:
        try:
            bench.run(case, results)
        except Exception as error:  # the context is broken: what was measured so far is kept
            bench.trouble(case, "the bench ends", error)
            break
        finally:
            head["clocks_after"] = gpu.clocks()
            keep()
    print("\n" + table.text(head))
    lines = sum(len(case["tqkv"]) for case in results)
    print(f"bench: {lines} passed, {len(bench.failed)} failed, 0 skipped")
    return 0 if lines and not bench.failed else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=[*sorted(cases.SETS), "engines", "paged", "ragged", "vectors"],
                        default="short")
    parser.add_argument("--only", default="", help="only cases whose name holds this text, or one of A|B")
    parser.add_argument("--json", help="file that the results are written to")
    parser.add_argument("--peers", metavar="DIR", help="files of others, for cases peers (peers.py)")
    parser.add_argument("--peer", default="", help="of others, only those whose name holds this")
    parser.add_argument("--self-check", action="store_true", help="what needs no GPU, on the CPU")
    arguments = parser.parse_args()
    if arguments.self_check:
        import self_check
        return self_check.main()
    if (arguments.cases == "peers") != bool(arguments.peers):
        parser.error("--cases peers and --peers DIR go together")
    return measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
