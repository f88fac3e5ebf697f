# SPDX-License-Identifier: Apache-2.0
"""bench.py's results for people: lines while it runs, a table at its end, and the tables of
README.md and tests/bench/README.md (tests/readme.py). Standard library only."""
import json
import textwrap


def number(x, digits=0):
    return f"{x:,.{digits}f}"


def microseconds(us):
    return number(us, 0 if us >= 100 else 1 if us >= 10 else 2)


def bits(line):
    return f"{line['key_bits']}+{line['value_bits']}"


def environment(result):
    return f"{result['gpu']}, driver {result['driver']}, CUDA {result['cuda']}, torch {result['torch']}"


def head(result):
    roof = result["roof"]
    return (f"{environment(result)}; {result['library']}\n"
            f"read roof {number(roof['gbs'])} GB/s ({roof['kernel']}, {roof['bytes'] >> 30} GiB), "
            f"second-level cache {result['l2_bytes'] >> 20} MiB, clocks {result['clocks_before']}")


def range_text(one, width=0):
    low, high = microseconds(one["us_low"]), microseconds(one["us_high"])
    return f"{microseconds(one['us']):>{width}} us ({low} .. {high})"


def fp16_line(case):
    fp16 = case["fp16"]
    others = "".join(f", {name} {microseconds(us)} us" for name, us in fp16["others"].items())
    flops = f", {fp16['tflops']} TFLOP/s" if "tflops" in fp16 else ""
    return (f"{case['name']:<40} FP16 SDPA {range_text(fp16)}, {fp16['backend']}{others}, "
            f"{number(fp16['gbs'])} GB/s{flops}")


def line(case, one):
    text = (f"{case['name']:<40} {bits(one)} {range_text(one, 9)}  {number(one['gbs']):>6} GB/s "
            f"{100 * one['roof_share']:5.1f} % of roof")
    if "times_fp16" in one:
        text += f"  {one['times_fp16']:.2f}x FP16"
    if "tflops" in one:
        text += f"  {one['tflops']} TFLOP/s"
    if "error" in one:
        text += f"  error {one['error']:.1e}"
    return text + f"  ({one['layers']} layers)"


def peer_line(case, one):
    stored = " ".join(f"{x:.3f}" for x in one["stored_error"])
    return (f"{case['name']:<10} {one['peer']:<15} {one['preset']:<8} {one['splits']:3} splits, blocks of "
            f"{one['block']:3}{'*' if one['shipped'] else ' '}{range_text(one, 8)}  {number(one['gbs']):>5} "
            f"GB/s  error {one['error']:.1e}, stored {stored}  ({one['layers']} layers)")


def fastest(lines, preset=None):
    return min((one for one in lines if preset in (None, one["preset"])), key=lambda one: one["us"],
               default=None)


PEER_COLUMNS = (("vLLM k4v4 as it runs", "vLLM TURBOQUANT", "k4v4", True),
                ("vLLM k4v4, best", "vLLM TURBOQUANT", "k4v4", False),
                ("vLLM, best of all", "vLLM TURBOQUANT", "", False), ("KVarN, best", "KVarN", "", False),
                ("OSCAR 2-bit, best", "OSCAR", "", False),
                ("XQA FP8 as it runs", "FlashInfer XQA", "", True),
                ("XQA FP8, best", "FlashInfer XQA", "", False))


def peer_columns(case):
    """[(title, the fastest line of a case's peers that it means, or None)]."""
    def fastest(peer, preset, shipped):
        lines = [one for one in case["peers"] if one["peer"] == peer and one["preset"].startswith(preset)]
        return min((one for one in lines if one["shipped"] or not shipped), key=lambda one: one["us"],
                   default=None)
    return [(title, fastest(*which)) for title, *which in PEER_COLUMNS]


def peer_cell(title, one):
    if one is None:
        return "-"
    how = "" if title.endswith("runs") else f" ({one['preset']}, {one['splits'] or 'own'} splits)"
    return microseconds(one["us"]) + how


def beside_cell(case, one):
    """us, and how many times as fast as FP16 and each of peer_columns."""
    if one is None:
        return "-"
    ratios = [f"{peer['us'] / one['us']:.1f}x" for _, peer in peer_columns(case) if peer]
    return f"{microseconds(one['us'])}: {one.get('times_fp16', 0):.1f}x, " + ", ".join(ratios)


def cell(case, one):
    """us, times FP16, share of the roof (prefill: TFLOP/s and share of SDPA's)."""
    if one is None:
        return "-"
    parts = [microseconds(one["us"])]
    if "tflops" in one:
        parts.append(f"{one['tflops']:.0f} TFLOP/s")
        if "fp16" in case:
            parts.append(f"{100 * one['tflops'] / case['fp16']['tflops']:.0f} % of FP16")
    else:
        if "times_fp16" in one:
            parts.append(f"{one['times_fp16']:.2f}x")
        parts.append(f"{100 * one['roof_share']:.0f} %")
    return ", ".join(parts)


def rows(result):
    """(columns, [[text, ..]]): a row for each case."""
    widths = list(dict.fromkeys(bits(one) for case in result["cases"] for one in case["tqkv"]))
    found = {title for case in result["cases"] if "peers" in case
             for title, peer in peer_columns(case) if peer}
    measured = [title for title, *_ in PEER_COLUMNS if title in found]
    lines = []
    for case in result["cases"]:
        found = {bits(one): one for one in case["tqkv"]}
        name = case["name"] if not case["kind"].startswith("append") else f"append {case['name']}"
        fp16 = f"{microseconds(case['fp16']['us'])} ({case['fp16']['backend']})" if "fp16" in case else "-"
        columns = peer_columns(case) if "peers" in case else []
        peers = [peer_cell(*column) for column in columns if column[0] in measured]
        shown = beside_cell if peers else cell
        lines.append([name, fp16] + peers + [shown(case, found.get(width)) for width in widths])
    return ["case", "FP16 SDPA, us"] + measured + [f"{width} bits" for width in widths], lines


def peers_in(result):
    return any("peers" in case for case in result["cases"])


def text(result):
    columns, lines = rows(result)
    wide = [max(len(row[i]) for row in [columns] + lines) for i in range(len(columns))]
    shown = [
        "  ".join(f"{value:<{wide[i]}}" for i, value in enumerate(row)).rstrip() for row in [columns] + lines
    ]
    errors = [one["error"] for case in result["cases"] for one in case["tqkv"] if "error" in one]
    end = f"worst error of a timed output: {max(errors):.1e}" if errors else "no error was measured"
    return "\n".join(shown + [
        "cells: us, times as fast as " + ("FP16 and each column of others" if peers_in(result) else
                                          f"FP16, share of the read roof of "
                                          f"{number(result['roof']['gbs'])} GB/s"),
        end
    ] + [f"FAILED {one}" for one in result["failed"]])


def filled(text):
    """Prose of the README files: 100 columns."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def as_table(lines):
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + " --- |" * len(lines[0])] + rest) + "\n"


def markdown(results):
    """The section on GPUs of tests/bench/README.md: one table for each result."""
    parts = []
    for result in results:
        columns, lines = rows(result)
        errors = [one["error"] for case in result["cases"] for one in case["tqkv"] if "error" in one]
        worst = f"; worst relative error of a timed output {max(errors):.1e}" if errors else ""
        parts.append(
            filled(f"{environment(result)}, {result['date']}, commit {result['commit']}: read roof "
                   f"{number(result['roof']['gbs'])} GB/s measured in the same process{worst}. "
                   f"`{result['command']}`") + "\n")
        parts.append(as_table([columns] + lines))
    return "\n".join(parts)


HEADLINE, WIDTHS = "B32 n32768", ("4+4", "3+3", "2+2")


def headline(results):
    """One case of each result, for the first screen of README.md."""
    lines = [["32 sequences of 32,768 tokens", "float16, torch SDPA"] + [f"{width} bits" for width in WIDTHS]]
    for result in results:
        case = next(case for case in result["cases"] if case["name"] == HEADLINE)
        found = {bits(one): one for one in case["tqkv"]}
        lines.append([result["gpu"], microseconds(case["fp16"]["us"]) + " us"])
        for width in WIDTHS:
            lines[-1].append(f"{microseconds(found[width]['us'])} us, **{found[width]['times_fp16']:.1f}x**")
    command = results[0]["command"].rsplit(" --json", 1)[0]
    return as_table(lines) + "\n" + filled(
        f"One layer, {case['q_heads']} query and {case['kv_heads']} kv heads, `head_dim` {case['head_dim']}; "
        f"printed by `{command}`. All cases, among them those that gain less: "
        "[tests/bench/README.md](tests/bench/README.md).") + "\n"


def dump(result):
    """JSON with one line for each measurement, so that it can be kept under version control and read in a
    diff."""
    plain = {key: value for key, value in result.items() if key != "cases"}
    blocks = []
    for case in result["cases"]:
        lists = {key: value for key, value in case.items() if key in ("peers", "tqkv")}
        fields = json.dumps({key: value for key, value in case.items() if key not in lists})[:-1]
        for key, value in lists.items():
            fields += f', "{key}": [\n' + ",\n".join("   " + json.dumps(one) for one in value) + "]"
        blocks.append("  " + fields + "}")
    return json.dumps(plain, indent=1)[:-2] + ',\n "cases": [\n' + ",\n".join(blocks) + "]\n}\n"
