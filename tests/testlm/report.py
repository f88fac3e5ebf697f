# SPDX-License-Identifier: Apache-2.0
"""What evidence.json says: a table, the goal against KVarN, the cheapest of a KL, a picture.

Rows are {"name": family or rival, "kind": of the library's caches, "bits", "window", "sinks", "bytes",
"kl": [by text], "top1", "recall_kl": [by sequence], "recall"}.
"""
import json
from pathlib import Path

import numpy as np

from rules import jackknife_ratio

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, RAW_BYTES = 4096, 512  # of "with exact"; a token of 2 x 128 numbers of 16 bits
GOALS = ((2.1, 2.4, "KVarN k2v2"), (3.1, 3.4, "KVarN k3v3"))
NUMBERS = 256  # of a token and kv head


def save(found, path):
    """A line a row, so that differences can be read."""
    head = json.dumps({key: value for key, value in found.items() if key != "rows"})[:-1]
    path.write_text(head + ', "rows": [\n' + ",\n".join(map(json.dumps, found["rows"])) + "\n]}\n")


def title(row):
    return row["name"] if not row["kind"] else f"{row['name']} {row['bits']:g}, {row['kind']}"


def all_bytes(row):
    """A token's, on average over CONTEXT tokens, exact ones in 16 bits: they are codes too in this library,
    and nothing else in the others."""
    share = (row["window"] + row["sinks"]) / CONTEXT
    return row["bytes"] * (1 if row["kind"] else 1 - share) + RAW_BYTES * share


def mean(values):
    return float(np.mean(values))


def with_error(values):
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    digits = max(0, int(np.ceil(-np.log10(error))) + 1) if error > 0 else 5
    return f"{values.mean():.{digits}f} +- {error:.{digits}f}"


def by_configuration(found):
    """[(title, bytes, {(window, sinks): row})], by bytes."""
    groups = {}
    for row in found["rows"]:
        groups.setdefault((title(row), row["bytes"]), {})[row["window"], row["sinks"]] = row
    return sorted(((*key, rows) for key, rows in groups.items()), key=lambda group: (group[1], group[0]))


def short_table(found):
    """Plain codes, calibrated ones and rivals of whole bits; all coded, and beside the most exact tokens."""
    exact = sorted({(row["window"], row["sinks"]) for row in found["rows"]})
    none, most = exact[0], exact[-1]
    print(f"| | bytes | KL, all tokens coded | KL, last {most[0]} and first {most[1]} exact | top-1 % | "
          "recall % |")
    print("|---|---|---|---|---|---|")
    for name, size, rows in by_configuration(found):
        row, beside = rows.get(none), rows.get(most)
        if not row or not beside or row["kind"] in ("centred", "banded") or row["bits"] % 1:
            continue
        name = name.replace(", both", ", calibrated").replace(", turned", ", calibrated and turned")
        name = name.replace(", plain", "")
        recall = f"{100 * mean(row['recall']):.1f}" if "recall" in row else "-"
        print(f"| {name} | {size:.0f} | {with_error(row['kl'])} | {with_error(beside['kl'])} | "
              f"{100 * mean(row['top1']):.1f} | {recall} |")


def table(found):
    exact = sorted({(row["window"], row["sinks"]) for row in found["rows"]})
    last = exact[-1]
    beside = f"{last[0]}, {last[1]}"
    print(f"| | bytes | with exact | {' | '.join(f'KL {w}, {s}' for w, s in exact)} | top-1 % | "
          f"top-1 {beside} | recall % | recall {beside} | recall KL | recall KL {beside} |")
    print("|" + "---|" * (len(exact) + 9))
    for name, size, rows in by_configuration(found):
        first, full = rows.get(exact[0]), rows.get(last)
        cells = [name, f"{size:.1f}", f"{all_bytes(full):.1f}" if full else "-"]
        cells += [with_error(rows[pair]["kl"]) if pair in rows else "-" for pair in exact]
        cells += [f"{100 * mean(row['top1']):.1f}" if row else "-" for row in (first, full)]
        known = [row if row and "recall" in row else None for row in (first, full)]
        cells += [f"{100 * mean(row['recall']):.1f}" if row else "-" for row in known]
        cells += [with_error(row["recall_kl"]) if row else "-" for row in known]
        print("| " + " | ".join(cells) + " |")
    goals(found, exact)


def goals(found, exact):
    """The best of the library in a range of bits, against KVarN's KL there; for each choice of exact tokens.
    """
    print("\n| bits | window, sinks | best of this library | bytes | KL | KVarN's bytes | its KL | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for least, most, name in GOALS:
        for pair in exact:
            there = [row for row in found["rows"] if (row["window"], row["sinks"]) == pair]
            rival = [row for row in there if row["name"] == name]
            own = [row for row in there if row["kind"] and least <= 8 * row["bytes"] / NUMBERS <= most]
            if not rival or not own:
                continue
            best = min(own, key=lambda row: mean(row["kl"]))
            ratio, error = jackknife_ratio(np.array(best["kl"]), np.array(rival[0]["kl"]))
            print(f"| {least} - {most} | {pair[0]}, {pair[1]} | {title(best)} | {best['bytes']:.1f} | "
                  f"{with_error(best['kl'])} | {rival[0]['bytes']:.1f} | {with_error(rival[0]['kl'])} | "
                  f"{ratio:.3f} +- {error:.3f} |")


def cheapest(found, goal):
    """Of the library, for each choice of exact tokens: by all bytes."""
    print(f"\nKL {goal:g} with the fewest bytes:")
    for pair in sorted({(row["window"], row["sinks"]) for row in found["rows"]}):
        reached = [row for row in found["rows"] if row["kind"] and (row["window"], row["sinks"]) == pair
                   and mean(row["kl"]) <= goal]
        answer = "none reaches it"
        if reached:
            row = min(reached, key=lambda row: (all_bytes(row), mean(row["kl"])))
            answer = (f"{title(row)}: {row['bytes']:.1f} bytes, {all_bytes(row):.1f} with exact tokens, KL "
                      f"{mean(row['kl']):.5f}")
        print(f"  window {pair[0]}, sinks {pair[1]}: {answer}")


def shannon(found, pair):
    """The KL that codes blind to their data would have at the rate-distortion limit: that of plain trellis
    codes of 4 bits, whose KL is in proportion to their error, times 4^-bits over their error."""
    tables = json.loads((ROOT / "codebooks" / "tables.json").read_text())["trellis"]
    error = next(table["mse"] for table in tables if table["bits"] == 4)
    row = next((row for row in found["rows"] if title(row) == "trellis 4, plain"
                and (row["window"], row["sinks"]) == pair), None)
    if row is None:
        return None
    bits = np.linspace(1.9, 4.3, 49)
    return bits * NUMBERS / 8, mean(row["kl"]) / error * 4.0**-bits


LINES = {("scalar", "plain"): ("C0", "o", "scalar"), ("trellis", "plain"): ("C1", "s", "trellis"),
         ("scalar", "both"): ("C2", "^", "scalar, calibrated"),
         ("trellis", "both"): ("C3", "D", "trellis, calibrated"),
         ("scalar", "turned"): ("C9", "<", "scalar, calibrated, turned"),
         ("trellis", "turned"): ("C6", "v", "trellis, calibrated, turned")}
RIVALS = {"KVarN": ("C4", "x"), "Block-GTQ": ("C5", "+"), "OSCAR": ("C7", "1"), "buun TCQ": ("C8", "2")}


def draw(axes, found, pair):
    rows = [row for row in found["rows"] if (row["window"], row["sinks"]) == pair]
    for (name, kind), (colour, marker, label) in LINES.items():
        own = sorted((all_bytes(row), mean(row["kl"])) for row in rows if (row["name"], row["kind"]) ==
                     (name, kind))
        if own:
            axes.plot(*zip(*own), color=colour, marker=marker, markersize=4, linewidth=1, label=label)
    for name, (colour, marker) in RIVALS.items():
        other = sorted((all_bytes(row), mean(row["kl"])) for row in rows if row["name"].startswith(name))
        if other:
            axes.plot(*zip(*other), color=colour, marker=marker, linestyle=":", linewidth=1, label=name)
    limit = shannon(found, pair)
    if limit:
        extra = all_bytes({"kind": "any", "bytes": 0, "window": pair[0], "sinks": pair[1]})
        axes.plot(limit[0] + extra, limit[1], color="black", linewidth=0.8, label="Shannon, uncalibrated")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of a token and head, exact tokens counted")
    axes.set_title("all tokens coded" if pair == (0, 0) else f"last {pair[0]} and first {pair[1]} exact",
                   fontsize=9)
    axes.grid(True, linewidth=0.3)


def plot(found, path):
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tqkv", "font.size": 8})
    from matplotlib import pyplot
    pairs = sorted({(row["window"], row["sinks"]) for row in found["rows"]})
    figure, both = pyplot.subplots(1, 2, figsize=(8, 4.2), sharey=False)
    for axes, pair in zip(both, (pairs[0], pairs[-1])):
        draw(axes, found, pair)
    both[0].set_ylabel("next-byte KL, nats")
    figure.legend(*both[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="lower center",
                  ncols=4)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    print(f"{path}: {path.stat().st_size} bytes")
