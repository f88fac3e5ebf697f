# SPDX-License-Identifier: Apache-2.0
"""What the results of a run say: statistics, controls and gates, and the tables that the documents show. A
pure function of the results: the same results give the same report, but for what speed jobs timed."""
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ._profiles import BITS, GATE_POINTS, OPTIONS
from ._runs import AGAIN, BROKEN
from ._stats import bootstrap, compare

JUDGED = 50.0  # points of the baseline, below which a task says nothing about a cache


class Table(NamedTuple):
    title: str
    text: str
    head: Sequence[str]
    rows: List[Sequence[str]]
    plot: str = ""  # name of the picture that shows the same


def analyse(results: Dict[str, Any], jobs: List[Dict[str, Any]], gated: str) -> Dict[str, Any]:
    """results by key of jobs, of one model."""
    from ._journal import key_of
    done = [(job, results[key_of(job)]) for job in jobs]
    skipped = {f"{job.get('task', job['job'])}: {result['why']}" for job, result in done if "why" in result}
    done = [(job, result) for job, result in done if "why" not in result]
    report = {"tasks": _tasks(done, "answers"), "sampled": _tasks(done, "sampled"), "heat": _heat(done),
              "grid": _grid(done), "text": _text(done), "drift": _drift(done), "rivals": _rivals(done),
              "speed": [{**job, **result} for job, result in done if job["job"] == "speed"],
              "skipped": sorted(skipped)}
    report["controls"] = _controls(report)
    report["gates"] = _gates(report, gated)
    return report


def _tasks(done, kind):
    """task -> cache -> Paired as a dict."""
    scores: Dict[str, Dict[str, List[float]]] = {}
    for job, result in done:
        if job["job"] == "task" and result.get(kind):
            for name, records in result[kind].items():
                side = scores.setdefault(job["task"], {}).setdefault(name, [])
                side += [record["right"] for record in records]
    return {task: {name: compare(sides["baseline"], side)._asdict() for name, side in sides.items()
                   if name != "baseline"} for task, sides in scores.items()}


def _heat(done):
    """cache -> [[context, depth, share, questions]] of single needles."""
    cells: Dict[str, Dict[Tuple[int, float], List[float]]] = {}
    for job, result in done:
        if job["job"] == "task" and job["task"] == "needle":
            for name, records in result["answers"].items():
                side = cells.setdefault(name, {}).setdefault((job["context"], job["depth"]), [])
                side += [record["right"] for record in records]
    return {name: [[*cell, sum(s) / len(s), len(s)] for cell, s in sorted(side.items())]
            for name, side in cells.items()}


def _grid(done):
    rows: Dict[str, List[float]] = {}
    for job, result in done:
        if job["job"] == "grid":
            for name, side in result.items():
                rows.setdefault(name, []).extend(side)
    return {name: compare(rows["baseline"], side)._asdict() for name, side in rows.items()} if rows else {}


def _text(done):
    """cache -> means over texts, KL's interval by the bootstrap over texts."""
    rows: Dict[str, List[Dict[str, float]]] = {}
    for job, result in done:
        if job["job"] == "text":
            for name, row in result.items():
                rows.setdefault(name, []).append(row)
    found = {}
    for name, side in rows.items():
        mean = {field: sum(row[field] for row in side) / len(side) for field in side[0]}
        found[name] = {**mean, "texts": len(side), "kl_interval": bootstrap([row["kl"] for row in side]),
                       "dnll_interval": bootstrap([row["dnll"] for row in side])}
    return found


def _drift(done):
    rows: Dict[str, List[Dict[str, Any]]] = {}
    for job, result in done:
        if job["job"] == "drift":
            for name, row in result.items():
                rows.setdefault(name, []).append(row)
    return {name: {"same": sum(r["same"] for r in side) / len(side), "of": side[0]["of"],
                   "kl": [sum(r["kl"][i] for r in side) / len(side) for i in range(4)]}
            for name, side in rows.items()}


def _rivals(done):
    rows: Dict[str, List[Dict[str, Any]]] = {}
    for job, result in done:
        if job["job"] == "rivals":
            for name, row in result.items():
                rows.setdefault(name, []).append(row)
    numbers = ("bytes", "key", "value", "attention", "kl", "kl_exact", "dnll", "top1", "recall")
    return {name: {"source": side[0]["source"], "bits": side[0]["bits"],
                   **{n: sum(r[n] for r in side) / len(side) for n in numbers if n in side[0]}}
            for name, side in rows.items()}


def _controls(report) -> List[Dict[str, Any]]:
    """The baseline against itself must be the same; a cache that mixes up its heads must be noticed."""
    found = []
    for task, sides in report["tasks"].items():
        again, broken = sides[AGAIN.name], sides[BROKEN.name]
        found.append({"what": f"{task}: the baseline again is the same",
                      "holds": again["worse"] == again["better"] == 0})
        if again["baseline"] >= JUDGED:
            found.append({"what": f"{task}: values of another head are noticed",
                          "holds": broken["delta"] < -GATE_POINTS})
    if report["text"]:
        found.append({"what": "text: the baseline again has KL 0 and the same NLL",
                      "holds": report["text"][AGAIN.name]["kl"] == report["text"][AGAIN.name]["dnll"] == 0})
        found.append({"what": "text: values of another head are noticed",
                      "holds": report["text"][BROKEN.name]["kl"] > 0.5})
    if report["drift"]:
        row = report["drift"][AGAIN.name]
        found.append({"what": "drift: the baseline again writes the same", "holds": row["same"] == row["of"]})
    return found


def _gates(report, gated) -> List[Dict[str, Any]]:
    found = []
    for task, sides in report["tasks"].items():
        row = sides.get(gated)
        if row is not None and row["baseline"] >= JUDGED:
            found.append({"what": f"{task}: {gated} loses at most {GATE_POINTS:g} points",
                          "delta": row["delta"], "holds": row["delta"] >= -GATE_POINTS})
    return found


def verdict(models: Dict[str, Dict[str, Any]]) -> Tuple[bool, str]:
    checks = [check for report in models.values() for check in report["controls"] + report["gates"]]
    failed = [check["what"] for check in checks if not check["holds"]]
    if failed:
        return False, "failed: " + "; ".join(failed)
    if not any(report["gates"] for report in models.values()):
        return False, f"nothing was judged: no task of which the baseline knows {JUDGED:g} % and more"
    return True, f"all {len(checks)} controls and gates hold"


# ---- tables


def tables(report: Dict[str, Any]) -> List[Table]:
    found = [_checks(report)]
    for kind, title in (("tasks", "Recall, greedy"), ("sampled", "Recall, sampled")):
        if report[kind]:
            found.append(_recall(report[kind], title))
    makers = (_heat_table, _grid_table, _text_table, _drift_table, _rivals_table, _speed_table, _fits_table)
    return found + [table for maker in makers for table in [maker(report)] if table is not None]


def _checks(report):
    rows = [(check["what"], "holds" if check["holds"] else "FAILS",
             f"{check['delta']:+.1f}" if "delta" in check else "-")
            for check in report["controls"] + report["gates"]]
    text = " ".join(f"Not run: {why}." for why in report["skipped"])
    return Table("Controls and gates", text, ("check", "verdict", "points"), rows)


def _recall(tasks, title):
    rows = []
    for task, sides in tasks.items():
        for name, row in sides.items():
            low, high = row["interval"]
            rows.append((task, name, f"{row['pairs']}", f"{row['baseline']:.1f}", f"{row['other']:.1f}",
                         f"{row['delta']:+.1f} [{low:+.1f}, {high:+.1f}]",
                         f"{row['worse']} / {row['better']}", f"{row['p']:.3g}"))
    return Table(title, "Points of 100; difference to the baseline on the same questions with its 95 % "
                 "interval; pairs that became wrong / right; p of McNemar's exact test.",
                 ("task", "cache", "questions", "baseline", "cache's", "difference", "worse / better", "p"),
                 rows)


def _heat_table(report) -> Optional[Table]:
    if not report["heat"]:
        return None
    cells = sorted({(c, d) for side in report["heat"].values() for c, d, _, _ in side})
    rows = []
    for name, side in report["heat"].items():
        at = {(c, d): share for c, d, share, _ in side}
        rows.append((name, *(f"{100 * at[cell]:.0f}" for cell in cells)))
    return Table("One needle by context and depth", "Points of 100.",
                 ("cache", *(f"{c} @ {d:g}" for c, d in cells)), rows, "heat")


def _grid_table(report) -> Optional[Table]:
    grid = report["grid"]
    if not grid:
        return None
    rows = [(bits, *(f"{grid[bits + option]['other']:.0f}" for option in OPTIONS)) for bits in BITS]
    base = grid["baseline"]
    return Table("Bits and what is kept exact", f"Pairs recalled, points of 100, {base['pairs']} questions; "
                 f"the baseline: {base['other']:.0f}.",
                 ("bits", *(option[1:] or "codes alone" for option in OPTIONS)), rows)


def _text_table(report) -> Optional[Table]:
    if not report["text"]:
        return None
    rows = []
    for name, r in report["text"].items():
        low, high = r["kl_interval"]
        rows.append((name, f"{r['kl']:.5f} [{low:.5f}, {high:.5f}]", f"{r['kl_p999']:.4f}",
                     f"{100 * r['top1']:.2f}", f"{r['dnll']:+.5f}", f"{r['nll']:.4f}"))
    return Table("Text", "KL to the baseline (nats a token, mean over texts with its 95 % interval), its "
                 "99.9 % quantile, agreement of the best token, NLL above the baseline's.",
                 ("cache", "KL", "KL 99.9 %", "top-1 %", "NLL difference", "baseline's NLL"), rows, "kl")


def _drift_table(report) -> Optional[Table]:
    if not report["drift"]:
        return None
    rows = [(name, f"{r['same']:.0f} of {r['of']}", *(f"{k:.2g}" for k in r["kl"]))
            for name, r in report["drift"].items()]
    return Table("Long form", "Tokens of a free continuation that are the baseline's before the first other "
                 "one; KL along the baseline's continuation, by quarters.",
                 ("cache", "same tokens", "KL 1st", "2nd", "3rd", "4th quarter"), rows)


def _rivals_table(report) -> Optional[Table]:
    if not report["rivals"]:
        return None
    rows = []
    for name, r in sorted(report["rivals"].items(), key=lambda item: (item[1]["bytes"], item[0])):
        rows.append((name, f"{r['bytes']:.0f}", f"{r['bits'][0]:.3g} / {r['bits'][1]:.3g}", f"{r['key']:.5f}",
                     f"{r['value']:.5f}", f"{r['attention']:.5f}", f"{r['kl']:.5f}",
                     f"{r['kl_exact']:.5f}" if "kl_exact" in r else "-", f"{100 * r['top1']:.1f}",
                     f"{100 * r['recall']:.0f}"))
    return Table("Formats at their bytes", "Bytes of a token and head, keys and values with all side data; "
                 "relative squared errors of keys, values and attention's output by layer; KL with no token "
                 "exact, and with the last 128 and first 4.",
                 ("format", "bytes", "bits K / V", "keys", "values", "attention", "KL", "KL, some exact",
                  "top-1 %", "recall"), rows, "bytes")


def _speed_table(report) -> Optional[Table]:
    if not report["speed"]:
        return None
    rows = []
    for job in report["speed"]:
        for name, r in job["rows"].items():
            if "why" in r:
                rows.append((f"{job['context']}", name, "not run: " + r["why"], "-", "-", "-"))
            else:
                peak = "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f}"
                rows.append((f"{job['context']}", name, f"{r['prefill']:.0f}", f"{r['decode']:.1f}",
                             f"{r['bytes'] / 2**20:.2f}", peak))
    return Table("Speed and memory", f"On {report['speed'][0]['device']}. Tokens a second; MiB of the cache, "
                 "and torch's peak on a GPU.",
                 ("context", "cache", "prefill", "decode", "cache MiB", "peak MiB"), rows, "speed")


def _fits_table(report) -> Optional[Table]:
    rows = [(f"{job['context']}", name, f"{r['fits']['token_bytes']}", f"{r['fits']['tokens']:,}",
             f"{r['fits']['batch']:,}") for job in report["speed"] for name, r in job["rows"].items()
            if "fits" in r]
    if not rows:
        return None
    memory = report["speed"][0]["memory"] / 2**30
    return Table("What fits", f"Computed from bytes, into {memory:.1f} GiB, what the device has less the "
                 "weights: tokens of one text, and texts of a context.",
                 ("context", "cache", "bytes a token", "tokens that fit", "batch that fits"), rows)
