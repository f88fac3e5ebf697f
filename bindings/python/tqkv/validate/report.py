# SPDX-License-Identifier: Apache-2.0
"""The table as text for a terminal, Markdown, JSON and one HTML page."""

import dataclasses
import html
import itertools
import json
import platform
import re
import textwrap

import numpy as np

from .rows import CONFIRMED, FAIL, PASS, REFUTED, SKIPPED, VERDICTS

COLUMNS = ("claim", "source says", "we measure", "verdict")
MEANINGS = {
    PASS: "a claim that tqkv stands for holds",
    FAIL: "a claim that tqkv stands for does not hold",
    CONFIRMED: "what another source says is so",
    REFUTED: "what another source says is not so",
    SKIPPED: "not measured here, with the reason",
}
SOURCES = ("arXiv 2504.19874 is the paper; S1 Taleef7/turboquant, S2 themoddedcube/turboquant-plus, S3 "
           "vivekvar/turboquant, S4 0xSero/turboquant. Measured: the library, through its Python binding; an "
           "algorithm that it does not have, in NumPy; bytes, counted.")


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its rows, and what they were measured with."""

    rows: list
    seconds: dict
    seed: int
    quick: bool
    build: str  # of the library

    def counts(self):
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    @property
    def failed(self):
        return any(row.verdict == FAIL for row in self.rows)

    def sections(self):
        return [(title, list(rows)) for title, rows in itertools.groupby(self.rows, lambda row: row.section)]

    def summary(self):
        counts = self.counts()
        return (
            f"tqkv stands for {counts[PASS] + counts[FAIL]} claims: {counts[PASS]} pass, {counts[FAIL]} fail."
            f" Of others: {counts[CONFIRMED]} confirmed, {counts[REFUTED]} refuted. {counts[SKIPPED]}"
            " skipped.")

    def setting(self):
        form = "quick" if self.quick else "full"
        return (f"{self.build}; {form} form, seed {self.seed}, {sum(self.seconds.values()):.0f} s; NumPy "
                f"{np.__version__}, Python {platform.python_version()}, {platform.machine()}")


def cells(row):
    """(claim, source says, we measure, verdict)"""
    claim = row.claim + (f" [{row.subject}]" if row.subject != "library" else "")
    says = f"{row.source}: {row.says}" if row.says else row.source
    measured = row.measured + (f" [tolerance: {row.tolerance}]" if row.tolerance else "")
    return claim, says, measured + (f". {row.note}" if row.note else ""), row.verdict


def terminal(result, width=120, colour=False):
    """Plain text, in columns that fit `width`."""
    verdict = max(map(len, VERDICTS))
    room = max(width - verdict - 6, 60)
    widths = (room * 34 // 100, room * 24 // 100, room - room * 34 // 100 - room * 24 // 100)
    colours = {PASS: "32", CONFIRMED: "32", FAIL: "1;31", REFUTED: "33", SKIPPED: "2"}
    lines = []
    for title, rows in result.sections():
        lines += ["", f"== {title}"]
        head = (*COLUMNS[:3], "verdict")
        for texts in [head] + [cells(row) for row in rows]:
            wrapped = [textwrap.wrap(text, w) or [""] for text, w in zip(texts[:3], widths)]
            for i, parts in enumerate(itertools.zip_longest(*wrapped, fillvalue="")):
                last = texts[3] if i == 0 else ""
                if colour and last in colours:
                    last = f"\033[{colours[last]}m{last}\033[0m"
                lines.append("  ".join([p.ljust(w) for p, w in zip(parts, widths)] + [last]).rstrip())
    return "\n".join(lines[1:] + ["", result.summary()]) + "\n"


def cell(text):
    """Text of a Markdown table: what it would take for markup is escaped."""
    return re.sub(r"([|*~\\])", r"\\\1", text.replace("<", "&lt;"))


def markdown(result):
    lines = ["# tqkv validate", "", result.summary(), "", result.setting() + ".", "", SOURCES, ""]
    lines += [f"- **{verdict}**: {meaning}" for verdict, meaning in MEANINGS.items()]
    for title, rows in result.sections():
        lines += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(cell, cells(row)))} |" for row in rows]
    return "\n".join(lines) + "\n"


def as_json(result):
    return (json.dumps(
        {
            "summary": result.summary(),
            "failed": result.failed,
            "counts": result.counts(),
            "seed": result.seed,
            "quick": result.quick,
            "build": result.build,
            "seconds": result.seconds,
            "rows": [dataclasses.asdict(row) for row in result.rows],
        },
        indent=1,
        default=float,
    ) + "\n")


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 1180px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #e3e7ee; }
th { background: #f4f6fa; } td:first-child { width: 28%; } td:nth-child(2) { width: 20%; }
.small { color: #68758a; font-size: .8rem; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { width: 560px; max-width: 100%; height: auto; border: 1px solid #e3e7ee; border-radius: 6px; }
.v { display: inline-block; padding: 0 .5rem; border-radius: 9px; font-size: .8rem; font-weight: 600; }
.pass, .confirmed { background: #dcf3e3; color: #14622f; } .refuted { background: #fdeecb; color: #7a4e00; }
.FAIL { background: #c62828; color: #fff; } .skipped { background: #eceff4; color: #5b6675; }
"""


def page(result, plots):
    """One self-contained HTML page. plots: {name: SVG text}, or a text that says why there are none."""
    def chip(verdict):
        return f'<span class="v {verdict}">{verdict}</span>'

    parts = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>tqkv validate</title>",
        f"<style>{STYLE}</style><h1>tqkv validate</h1><p>{html.escape(result.summary())}</p>",
        f"<p class=small>{html.escape(result.setting())}.<br>{html.escape(SOURCES)}</p><p>",
    ]
    parts += [f"{chip(verdict)} <span class=small>{meaning}</span> " for verdict, meaning in MEANINGS.items()]
    parts.append("</p>")
    if isinstance(plots, str):
        parts.append(f"<p class=small>No plots: {html.escape(plots)}</p>")
    else:
        parts.append(f'<div class=plots>{"".join(plots.values())}</div>')
    for title, rows in result.sections():
        parts.append(
            f"<h2>{html.escape(title)}</h2><table><tr>{''.join(f'<th>{c}</th>' for c in COLUMNS)}</tr>")
        for row in rows:
            small = "; ".join(
                text for text in (f"tolerance: {row.tolerance}" if row.tolerance else "", row.note) if text)
            parts.append(
                f"<tr><td>{html.escape(row.claim)} <span class=small>{row.subject}</span></td>"
                f"<td><span class=small>{html.escape(row.source)}</span><br>{html.escape(row.says)}</td>"
                f"<td>{html.escape(row.measured)}<br><span class=small>{html.escape(small)}</span></td>"
                f"<td>{chip(row.verdict)}</td></tr>")
        parts.append("</table>")
    return "\n".join(parts) + "</html>\n"
