# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report. Each takes a model's report and returns a matplotlib figure, or None where there is
nothing to show."""
import re

from matplotlib.figure import Figure

from ._profiles import BITS
from ._runs import AGAIN, BROKEN


def heat(report):
    """Recall of one needle, context by depth, a field for each cache."""
    names = [name for name in report["heat"] if name not in (AGAIN.name, BROKEN.name)]
    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(13, 2.6 * rows), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        cells = report["heat"][name]
        contexts, depths = sorted({c[0] for c in cells}), sorted({c[1] for c in cells})
        at = {(c, d): share for c, d, share, _ in cells}
        axes.imshow([[at[c, d] for c in contexts] for d in depths], vmin=0, vmax=1, cmap="RdYlGn",
                    aspect="auto")
        axes.set_xticks(range(len(contexts)), contexts, fontsize=7)
        axes.set_yticks(range(len(depths)), [f"{d:g}" for d in depths], fontsize=7)
        axes.set_title(name, fontsize=9)
    figure.supxlabel("context, tokens")
    figure.supylabel("depth")
    return figure


def kl(report):
    """KL by bits."""
    points = [(int(name[1:]), report["text"][name]["kl"]) for name in BITS if name in report["text"]]
    if not points:
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points), "o-", label="codes alone")
    for name, row in report["text"].items():
        if not re.fullmatch(r"b\d+", name) and name not in (AGAIN.name, BROKEN.name):
            axes.axhline(row["kl"], lw=0.7, ls=":", color="gray")
            axes.annotate(name, (2, row["kl"]), fontsize=7, va="bottom")
    axes.set_yscale("log")
    axes.set_xlabel("bits of keys and values")
    axes.set_ylabel("KL to the exact cache, nats a token")
    axes.legend()
    return figure


def quality_by_bytes(report):
    """Mean relative error of keys and values over bits, with the rate-distortion bound of Gaussian numbers,
    4^-bits; and KL over bytes."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    bits = [x / 4 for x in range(6, 36)]
    left.plot(bits, [4.0**-b for b in bits], "k--", lw=1, label="Shannon: 4^-bits")
    for name, row in report["rivals"].items():
        own = name.startswith("tqkv")
        style = {"marker": "o" if own else "x", "color": "tab:blue" if own else "tab:gray"}
        mean = sum(row["bits"]) / 2
        left.scatter(mean, (row["key"] + row["value"]) / 2, **style)
        right.scatter(row["bytes"], max(row["kl"], 1e-7), **style)
        left.annotate(name, (mean, (row["key"] + row["value"]) / 2), fontsize=6)
        right.annotate(name, (row["bytes"], max(row["kl"], 1e-7)), fontsize=6)
    left.set(yscale="log", xlabel="bits a number, all side data", ylabel="relative squared error, K and V")
    right.set(yscale="log", xscale="log", xlabel="bytes of a token and head", ylabel="KL, nats a token")
    left.legend()
    return figure


def speed(report):
    """Tokens a second by context."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("prefill", "decode")):
        names = {name for job in report["speed"] for name, row in job["rows"].items() if what in row}
        for name in sorted(names):
            points = [(job["context"], job["rows"][name][what]) for job in report["speed"]]
            axes.plot(*zip(*points), "o-", label=name, ms=3, lw=1)
        axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel=f"{what}, tokens a second")
        axes.legend(fontsize=6)
    return figure


PLOTS = {"heat": heat, "kl": kl, "bytes": quality_by_bytes, "speed": speed}
