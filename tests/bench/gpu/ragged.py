# SPDX-License-Identifier: Apache-2.0
"""Decoding of sequences whose lengths differ, beside what torch has for them in float16: a varlen call of its
flash kernel over packed keys, and flex_attention over padded ones, whose block mask leaves out the padding.
`bench.py --cases ragged`.

Every time is one of a CUDA graph of many launches (bench.py says how they are timed); the error is of two
sequences of the output that was timed, the longest and the last, against float64 attention over what the
cache reads. Gates: that error, and at most the time of the better of torch's two.
"""
import functools
import json

import cases
import tqkv
from cases import GATE, PAGE_TOKENS

Q_HEADS, KV_HEADS, DIM = 32, 8, 128
WIDTHS = ((4, 4), (2, 2))
# most tokens of a padded [sequences][longest] that flex_attention gets: 17 GB of keys and values
MOST_PADDED = 64 * 65536
PIECE = 65536  # tokens of a plan


def spread_lengths():
    """128 .. 65536 evenly in their logarithm, shuffled: those of attend_bench --cases ragged."""
    lengths = [0] * 64
    for i in range(64):
        lengths[i * 37 % 64] = round(128 * 2 ** (9 * i / 63))
    return lengths


CASES = {"64 of 128..65536": spread_lengths(), "1 of 131072, 63 of 512": [131072] + [512] * 63}


class Filled:
    """A cache of `layers` layers with random tokens; its plan is in force for the last one of each."""

    def __init__(self, lengths, bits, layers, pool, stream):
        pages = sum(-(-n // PAGE_TOKENS) for n in lengths)
        self.cache = tqkv.Cache(
            tqkv.Config(num_layers=layers, num_q_heads=Q_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                        key_bits=bits[0], value_bits=bits[1], io_dtype="float16", device="cuda",
                        page_size=PAGE_TOKENS, max_tokens=pages * PAGE_TOKENS,
                        max_sequence_tokens=max(lengths), max_sequences=len(lengths),
                        max_batch_sequences=len(lengths), rotation_seed=77), stream=stream)
        self.step, self.layers = self.cache.batch(), layers
        self.sequences = [self.cache.sequence() for _ in lengths]
        for sequence, length in zip(self.sequences, lengths):
            for first in range(0, length - 1, PIECE):
                self.append([sequence], [min(PIECE, length - 1 - first)], [0], pool, stream)
        self.append(self.sequences, [1] * len(lengths), [1] * len(lengths), pool, stream)
        self.cache.check(stream=stream)

    def append(self, sequences, new, queries, pool, stream):
        self.step.plan(sequences, new, queries, stream=stream)
        rows = [side[:sum(new)] for side in pool]
        for layer in range(self.layers):
            self.step.append(layer, *rows, stream=stream)


def coded(bench, lengths, bits, q):
    """Microseconds and error of attention on codes."""
    torch, stream = bench.torch, bench.stream
    stored = sum(-(-n // 32) * 32 for n in lengths) * KV_HEADS * (DIM * sum(bits) // 8 + 4)
    layers = cases.rotated(stored, bench.l2, 8)
    filled = Filled(lengths, bits, layers, bench.pool(KV_HEADS, DIM), stream)
    try:
        out = torch.full((layers, *q.shape), float("nan"), dtype=torch.float16, device="cuda")
        torch.cuda.synchronize()

        def call(index=0):
            filled.step.attend(index % layers, q, out=out[index % layers], stream=stream)
        count = cases.launches(layers, bench.gpu.first_time(stream, call))
        line = bench.gpu.replayed(stream, lambda: [call(i) for i in range(count)] and None, count)
        filled.cache.check(stream=stream)
        worst = 0.0
        for at in (lengths.index(max(lengths)), len(lengths) - 1):
            k, v = (bench.empty((lengths[at], KV_HEADS, DIM), "float16") for _ in "kv")
            filled.sequences[at].read(layers - 1, 0, lengths[at], k=k, v=v, stream=stream)
            stream.synchronize()
            worst = max(worst, bench.filled.worst_error(out[-1][at:at + 1], q[at:at + 1], k, v, torch))
        return dict(line, error=float(f"{worst:.3e}"), gbs=round(stored / line["us"] / 1e3, 1))
    finally:
        filled.cache.close()


def varlen(bench, lengths, q):
    """torch's flash kernel over packed sequences."""
    torch = bench.torch
    k, v = (torch.randn(sum(lengths), KV_HEADS, DIM, dtype=torch.float16, device="cuda") for _ in "kv")
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    queries = torch.arange(len(lengths) + 1, device="cuda", dtype=torch.int32)

    def call():
        torch.ops.aten._flash_attention_forward(q, k, v, queries, starts, 1, max(lengths), 0.0, False, False)
    return timed(bench, call)


def flex(bench, lengths, q):
    """flex_attention, compiled, over padded keys and values."""
    torch = bench.torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    most = max(lengths)
    if len(lengths) * most > MOST_PADDED:
        raise MemoryError(f"{len(lengths)} x {most} tokens padded are above {MOST_PADDED}")
    k, v = (torch.randn(len(lengths), KV_HEADS, most, DIM, dtype=torch.float16, device="cuda") for _ in "kv")
    ends = torch.tensor(lengths, device="cuda")
    mask = create_block_mask(lambda b, h, i, j: j < ends[b], len(lengths), None, 1, most, device="cuda")
    compiled = torch.compile(functools.partial(flex_attention, enable_gqa=True))
    queries = q.view(len(lengths), Q_HEADS, 1, DIM)
    return timed(bench, lambda: compiled(queries, k, v, block_mask=mask))


def timed(bench, call):
    torch, stream = bench.torch, bench.stream
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.stream(stream):
        call()  # compiles
        count = cases.launches(1, bench.gpu.first_time(stream, call))
        return bench.gpu.replayed(stream, lambda: [call() for _ in range(count)] and None, count)


def measure(arguments, head, bench):
    """The table; its JSON if a file is named. Returns the exit status."""
    rows, failed, passed = [], 0, 0
    for name, lengths in CASES.items():
        if not cases.named(name, arguments.only):
            continue
        q = bench.torch.randn(len(lengths), Q_HEADS, DIM, dtype=bench.torch.float16, device="cuda")
        row = {"case": name, "tokens": sum(lengths), "torch": {}, "not_run": {}, "tqkv": []}
        rows.append(row)
        for peer in (varlen, flex):
            try:
                row["torch"][peer.__name__] = peer(bench, lengths, q)["us"]
            except Exception as error:
                row["not_run"][peer.__name__] = f"{type(error).__name__}: {error}"[:300]
            bench.torch.cuda.empty_cache()
        best = min(row["torch"].values(), default=None)
        print(f"{name}: torch " + ", ".join(f"{peer} {us:.1f} us" for peer, us in row["torch"].items()) +
              "".join(f"  {peer} did not run: {why}" for peer, why in row["not_run"].items()), flush=True)
        for bits in WIDTHS:
            line = coded(bench, lengths, bits, q)
            row["tqkv"].append(dict(line, key_bits=bits[0], value_bits=bits[1]))
            checks = [line["error"] <= GATE] + ([line["us"] <= best] if best else [])
            share = line["gbs"] / bench.roof["gbs"]
            beside = f"  {best / line['us']:.2f}x of torch" if best else ""
            print(f"  {bits[0]}+{bits[1]}  {line['us']:8.2f} us  {100 * share:5.1f} % of the roof  error "
                  f"{line['error']:.1e}{beside}", flush=True)
            passed += sum(checks)
            failed += len(checks) - sum(checks)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({**head, "rows": rows}, file, indent=1)
            file.write("\n")
    print(f"bench: {passed} passed, {failed} failed, 0 skipped")
    return 0 if passed and not failed else 1
