# SPDX-License-Identifier: Apache-2.0
"""report.json, report.md and report.html from a report. Pictures are made by matplotlib, into the page
itself; without it the page says so and has the tables alone."""
import base64
import html
import io
import json
from pathlib import Path
from typing import Any, Dict

from ._report import tables

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:74em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0;font-size:13px}
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}
td:first-child,th:first-child,td:nth-child(2){text-align:left}
img{max-width:100%}.FAILS{color:#b00;font-weight:bold}"""


def write(folder: str, report: Dict[str, Any]) -> None:
    out = Path(folder)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report))
    (out / "report.html").write_text(page(report))


def _settings(report):
    return ", ".join(f"{k} {v}" for k, v in report["settings"].items() if v not in ("", None))


def markdown(report: Dict[str, Any]) -> str:
    lines = ["# tqkv-eval release", "", f"Verdict: {report['verdict']}.", "", _settings(report) + "."]
    for name, model in report["models"].items():
        lines += ["", f"## {name}"]
        for table in tables(model):
            lines += ["", f"### {table.title}", ""] + ([table.text, ""] if table.text else [])
            lines += ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
            lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def page(report: Dict[str, Any]) -> str:
    try:
        from . import _plots
        missing = ""
    except ImportError as error:
        _plots, missing = None, f"<p>Without pictures: {html.escape(str(error))}.</p>"
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>tqkv-eval release</title>",
             f"<style>{STYLE}</style><h1>tqkv-eval release</h1>{missing}",
             f"<p><b>Verdict: {html.escape(report['verdict'])}.</b></p>",
             f"<p>{html.escape(_settings(report))}</p>"]
    for name, model in report["models"].items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        for table in tables(model):
            parts.append(f"<h3>{html.escape(table.title)}</h3><p>{html.escape(table.text)}</p>")
            if table.plot and _plots is not None:
                figure = _plots.PLOTS[table.plot](model)
                if figure is not None:
                    parts.append(f'<img alt="{html.escape(table.title)}" src="{_picture(figure)}">')
            parts.append("<table>" + _row("th", table.head)
                         + "".join(_row("td", row) for row in table.rows) + "</table>")
    return "\n".join(parts) + "</html>\n"


def _row(tag, cells):
    return "<tr>" + "".join(f"<{tag} class='{'FAILS' if cell == 'FAILS' else ''}'>{html.escape(str(cell))}"
                            f"</{tag}>" for cell in cells) + "</tr>"


def _picture(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
