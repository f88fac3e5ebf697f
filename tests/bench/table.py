#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""cpu_bench's JSON as a table for people: cpu_bench | table.py."""
import json
import sys


def main():
    bench = json.load(sys.stdin)
    print(
        f"{bench['cpu']}, {bench['isa']}, {bench['hardware_threads']} hardware threads, "
        f"last-level cache {bench['last_level_cache_MB']} MB, head_dim {bench['head_dim']}, "
        f"best of {bench['repeats']} rounds by CPU time")
    encode = [r for r in bench["results"] if r["case"] == "encode"]
    if encode:
        print_encode(encode)
    attend = [r for r in bench["results"] if r["case"] == "attend"]
    if attend:
        print_attend(attend)


def print_encode(encode):
    threads = sorted({r["threads"] for r in encode})
    print("\nencode, MB of float32 input a CPU second" +
          "".join(f"{f'{t} thread' + 's' * (t > 1):>14}" for t in threads))
    for name in dict.fromkeys(r["kv"] for r in encode):
        cells = {r["threads"]: r["MB_per_cpu_s"] for r in encode if r["kv"] == name}
        print(f"  {name:38}" + "".join(f"{cells[t]:14.0f}" for t in threads))


def print_attend(attend):
    kinds = list(dict.fromkeys(r["kv"] for r in attend))
    print("\nattend, million (token, kv head) a CPU second; (times float16)\n"
          "place          n  q/kv  threads" + "".join(f"{k:>14}" for k in kinds))
    rows = dict.fromkeys((r["place"], r["n"], r["q_per_kv"], r["threads"]) for r in attend)
    for row in sorted(rows):
        cells = {r["kv"]: r for r in attend if (r["place"], r["n"], r["q_per_kv"], r["threads"]) == row}
        print(f"{row[0]:<12}{row[1]:6}{row[2]:6}{row[3]:9}" + "".join(f"{shown(cells.get(kind)):>14}"
                                                                      for kind in kinds))


def shown(cell):
    if not cell:
        return "-"
    ratio = f" ({cell['times_fp16_by_cpu_time']:.2f})" if "times_fp16_by_cpu_time" in cell else ""
    return f"{1000 / cell['cpu_ns_per_token']:.1f}" + ratio


if __name__ == "__main__":
    main()
