# SPDX-License-Identifier: Apache-2.0
"""Steps of an engine that owns its pages beside a cache's, in one run: decode of the same tokens from blocks
and block tables on the device, whose output has the cache's bits, and the plan of a step alone.
`bench.py --cases paged`.

Both are graphs of many launches (bench.py says how they are timed), by turns, so that the device's clocks are
the same for both. Gates: a plan takes at most 3 us, decode at most 3 % longer than the cache's.
"""
import dataclasses
import json
import random
import statistics

import cases
import tqkv
from cases import PAGE_TOKENS, Case

CASES = (Case("B8 n32768", "decode", 8, 32768), Case("B64 n1024", "decode", 64, 1024))
WIDTHS = ((4, 4), (2, 2))
TURNS = 5
PLAN_US, DECODE_RATIO = 3.0, 1.03


class Engine:
    """The tokens of a Filled cache in blocks that lie anywhere."""

    def __init__(self, filled, torch, stream):
        case = filled.case
        self.torch, self.filled, self.stream = torch, filled, stream
        self.codec = tqkv.PagedCodec(num_layers=filled.layers, num_q_heads=case.q_heads,
                                     num_kv_heads=case.kv_heads, head_dim=case.head_dim,
                                     key_bits=filled.bits[0], value_bits=filled.bits[1], io_dtype="float16",
                                     page_size=PAGE_TOKENS, rotation_seed=77, device="cuda", stream=stream)
        each = -(-filled.length // PAGE_TOKENS)
        order = list(range(case.batch * each))
        random.Random(5).shuffle(order)
        self.table = self.int32(order).view(case.batch, each)
        self.pages = [
            self.codec.pages(
                layer,
                torch.empty(self.codec.page_layout(layer, len(order)).total_bytes, dtype=torch.uint8,
                            device="cuda")) for layer in range(filled.layers)
        ]
        self.lens = self.int32([filled.length] * case.batch)
        done = 0
        for piece, offset in zip(filled.pieces, filled.offsets):
            at = torch.arange(done, done + piece, device="cuda")
            slots = self.table[:, at // PAGE_TOKENS].long() * PAGE_TOKENS + at % PAGE_TOKENS
            self.append(slots.reshape(-1).contiguous(), [pool[offset:offset + piece * case.batch]
                                                         for pool in filled.pool])
            done += piece
        self.starts = self.int32(list(range(case.batch + 1)))
        self.last = slots.reshape(-1).contiguous()
        bounds = dict(num_tokens=case.batch, max_query_len=1, max_seq_len=filled.length)
        self.step = self.codec.step(
            torch.empty(self.codec.workspace_bytes(num_reqs=case.batch, **bounds), dtype=torch.uint8,
                        device="cuda"))
        torch.cuda.synchronize()
        self.plan = lambda: self.step.plan(slot_mapping=self.last, block_table=self.table, seq_lens=self.lens,
                                           query_start_loc=self.starts, **bounds, stream=stream)
        self.plan()

    def int32(self, numbers):
        return self.torch.tensor(numbers, dtype=self.torch.int32, device="cuda")

    def append(self, slots, rows):
        self.torch.cuda.synchronize()
        step = self.codec.step()
        step.plan(slot_mapping=slots, stream=self.stream)
        for layer, pages in enumerate(self.pages):
            step.append(layer, pages, *rows, stream=self.stream)
        self.torch.cuda.synchronize()


def measured(bench, case, bits):
    """One line: microseconds of an attend of each kind and of a plan."""
    torch, gpu, stream = bench.torch, bench.gpu, bench.stream
    filled = bench.fill(case, bits, 1, 1)
    try:
        engine = Engine(filled, torch, stream)
        q = torch.randn(case.batch, case.q_heads, case.head_dim, dtype=torch.float16, device="cuda")
        outs = [torch.full((filled.layers, *q.shape), float("nan"), dtype=torch.float16, device="cuda")
                for _ in range(2)]
        torch.cuda.synchronize()

        def cache(layer):
            filled.step.attend(layer, q, out=outs[0][layer], stream=stream)

        def paged(layer):
            engine.step.attend(layer, engine.pages[layer], q, out=outs[1][layer], stream=stream)
        count = cases.launches(filled.layers, gpu.first_time(stream, lambda: cache(0)))

        def timed(call, launches=count):
            return gpu.replayed(stream, lambda: [call(i % filled.layers) for i in range(launches)], launches,
                                9)["us"]
        times = {"cache": [], "paged": [], "plan": []}
        for _ in range(TURNS):
            times["cache"].append(timed(cache))
            times["paged"].append(timed(paged))
            times["plan"].append(timed(lambda _: engine.plan(), 100))
        one = {name: round(statistics.median(us), 3) for name, us in times.items()}
        one.update(case=case.name, key_bits=bits[0], value_bits=bits[1], layers=filled.layers, turns=times,
                   ratio=round(one["paged"] / one["cache"], 4), equal=bool(torch.equal(*outs)))
        filled.cache.check(stream=stream)
        if engine.codec.check(stream=stream) or not bool(torch.isfinite(outs[1]).all()):
            raise RuntimeError("the codec noticed something, or the output is not finite")
        return one
    finally:
        filled.close()


def measure(arguments, head, bench):
    """The table; its JSON if a file is named. Returns the exit status."""
    rows, failed, passed = [], 0, 0
    for case in CASES:
        for bits in WIDTHS:
            if not cases.named(case.name, arguments.only):
                continue
            one = measured(bench, dataclasses.replace(case, widths=(bits, )), bits)
            rows.append(one)
            checks = {"bits of the cache": one["equal"], f"plan <= {PLAN_US} us": one["plan"] <= PLAN_US,
                      f"decode <= {DECODE_RATIO} of the cache's": one["ratio"] <= DECODE_RATIO}
            print(f"{case.name:<12} {bits[0]}+{bits[1]}  cache {one['cache']:8.2f} us  paged "
                  f"{one['paged']:8.2f} us ({one['ratio']:.3f})  plan {one['plan']:5.2f} us  " +
                  ", ".join(f"{'ok' if right else 'NOT'}: {name}" for name, right in checks.items()),
                  flush=True)
            passed += sum(checks.values())
            failed += len(checks) - sum(checks.values())
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({**head, "rows": rows}, file, indent=1)
            file.write("\n")
    print(f"bench: {passed} passed, {failed} failed, 0 skipped")
    return 0 if passed and not failed else 1
