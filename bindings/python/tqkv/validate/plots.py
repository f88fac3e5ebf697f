# SPDX-License-Identifier: Apache-2.0
"""Plots of the table's figures, as SVG text for the page; by matplotlib, which only this file needs."""

import io

from .rows import UPPER_BOUND


def _series(rows, plot):
    """{series: figures of its rows, in order}"""
    found = {}
    for row in rows:
        if row.figures.get("plot") == plot:
            found.setdefault(row.figures.get("series", ""), []).append(row.figures)
    return found


def distortion(axes, series):
    dim = 128
    for name, points in series.items():
        points = [p for p in points if dim in p["dims"]]
        axes.plot(
            [p["bits"] for p in points],
            [p["mse"][list(p["dims"]).index(dim)] for p in points],
            marker="o",
            label=name,
        )
    bits = range(1, 7)
    axes.plot(bits, [UPPER_BOUND * 4.0 ** -b for b in bits], "--", color="gray",
              label="Theorem 1, upper bound")
    axes.plot(bits, [4.0 ** -b for b in bits], ":", color="black", label="Theorem 3, lower bound")
    axes.set(yscale="log", xlabel="bits", ylabel="relative squared error", title=f"Distortion, d = {dim}")
    axes.legend()


def bias(axes, series):
    names = list(series)
    for i, name in enumerate(names):
        axes.errorbar(
            [p["bits"] + (i - len(names) / 2) * 0.08 for p in series[name]],
            [100 * p["bias"] for p in series[name]],
            [400 * p["error"] for p in series[name]],
            fmt="o",
            capsize=3,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="bits", ylabel="%", title="Bias of inner products, 4 s.e.", xticks=(1, 2, 3, 4))
    axes.set_yscale("symlog", linthresh=0.5)
    axes.legend()


def recall(axes, series):
    points = [(name, figures[0]) for name, figures in series.items()]
    for offset, key, label in ((-0.2, "recall1", "recall@1"), (0.2, "recall8", "recall@8")):
        bars = axes.bar([i + offset for i in range(len(points))], [p[key] for _, p in points], 0.38,
                        label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(0.55, linestyle="--", color="gray", label="S4's recall@8")
    axes.set(ylabel="share", ylim=(0, 1), title="Recall among 4,096 keys")
    axes.set_xticks(range(len(points)), [name for name, _ in points])
    axes.legend()


def values(axes, series):
    for name, points in series.items():
        axes.plot([p["bytes"] for p in points], [1 - p["cosine"] for p in points], "o", label=name)
        for p in points:
            axes.annotate(
                p["label"],
                (p["bytes"], 1 - p["cosine"]),
                textcoords="offset points",
                xytext=(6, 4),
                fontsize=8,
            )
    axes.set(
        yscale="log",
        xlabel="bytes of a vector of 128",
        ylabel="1 - cosine",
        title="Values: groups and rotated codes",
    )
    axes.legend()


def constant(axes, series):
    points = next(iter(series.values()))
    for offset, key, label in (
        (-0.27, "bare", "Hadamard without signs"),
        (0, "worst", "tqkv, worst seed"),
        (0.27, "error", "tqkv"),
    ):
        axes.bar([p["bits"] + offset for p in points], [p[key] for p in points], 0.26, label=label)
    axes.set(xlabel="bits", ylabel="relative error", title="A constant vector",
             xticks=[p["bits"] for p in points])
    axes.legend()


def compression(axes, series):
    points = [p for p in next(iter(series.values())) if p["dim"] == 128]
    kinds = (
        ("codes", "codes alone"),
        ("scales", "with scales"),
        ("32768", "all, 32k tokens"),
        ("4096", "all, 4k tokens"),
    )
    for i, (key, label) in enumerate(kinds):
        bars = axes.bar([at + (i - 1.5) * 0.2 for at in range(len(points))], [p[key] for p in points], 0.19,
                        label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set(ylabel="times smaller than float16", title="Compression, counted four ways, d = 128")
    axes.set_xticks(range(len(points)), [f"{p['label']} bits" for p in points])
    axes.legend()


PLOTS = {
    "distortion": distortion,
    "bias": bias,
    "recall": recall,
    "values": values,
    "constant": constant,
    "compression": compression,
}


def draw(rows):
    """{plot: SVG text} of the plots that these rows have figures for. ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "tqkv", "font.size": 9, "legend.fontsize": 8}):
        for name, plot in PLOTS.items():
            series = _series(rows, name)
            if series:
                figure = Figure(figsize=(6.4, 3.8), layout="constrained")
                plot(figure.subplots(), series)
                text = io.StringIO()
                figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
                drawn[name] = text.getvalue()[text.getvalue().index("<svg"):]
    return drawn
