# SPDX-License-Identifier: Apache-2.0
"""The command tqkv-eval release: models one after the other, their jobs, the report."""
import sys
from typing import Any, Dict, List

import torch
import transformers

from .. import __version__
from ..errors import InvalidArgument
from . import _documents, _journal, _plan, _profiles, _report
from .__main__ import models
from ._models import load

KINDS = ("task", "grid", "text", "drift", "rivals", "speed")


def release(arguments) -> int:
    """Exit status: 0 if all controls and gates hold, else 1."""
    settings = _settings(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    journal = _journal.Journal(arguments.out, settings, arguments.fresh)
    try:
        reports = {name: _one(name, arguments, settings, journal) for name in models(arguments.model)}
    finally:
        journal.close()
    good, text = _report.verdict(reports)
    _documents.write(arguments.out, {"tqkv": __version__, "torch": torch.__version__,
                                     "transformers": transformers.__version__, "settings": settings,
                                     "verdict": text, "passed": good, "models": reports})
    print(f"{text}\nreport: {arguments.out}/report.html, report.md, report.json")
    return 0 if good else 1


def _settings(arguments) -> Dict[str, Any]:
    full = arguments.full
    profiles = arguments.profile or [*_profiles.NAMED, *_profiles.BITS]
    gate = arguments.gate or _profiles.GATED
    if gate not in profiles:
        profiles = [gate, *profiles]
    for name in profiles:
        _profiles.parse(name)
    kinds = [kind for kind in arguments.only.split(",") if kind]
    for kind in kinds:
        if kind not in KINDS and kind not in _plan.TASKS:
            raise InvalidArgument(f"only = {kind!r}: must be one of {', '.join((*KINDS, *_plan.TASKS))}")
    return _plan.settings_of({
        "size": "full" if full else "quick", "contexts": arguments.contexts or (131072 if full else 0),
        "trials": (4 if full else 1) if arguments.trials is None else arguments.trials,
        "profiles": profiles, "gate": gate, "text": arguments.text, "seed": arguments.seed,
        "device": arguments.device, "dtype": arguments.dtype, "style": arguments.style, "only": kinds})


def _one(name: str, arguments, settings: Dict[str, Any], journal) -> Dict[str, Any]:
    subject = load(name, arguments.device, arguments.dtype, arguments.style)
    plan: List[Dict[str, Any]] = _plan.jobs(subject, settings["size"] == "full",
                                            settings["contexts"] or _plan.QUICK[name == "constructed"],
                                            settings["trials"])
    only = settings["only"]
    plan = [{"model": name, **job} for job in plan
            if not only or job["job"] in only or job.get("task") in only]
    print(f"{name}: {len(plan)} jobs", file=sys.stderr)
    worker = _plan.Worker(subject, settings["profiles"], settings["seed"], settings["text"],
                          full=settings["size"] == "full")
    results = _journal.run(journal, plan, worker, _plan.cost)
    return _report.analyse(results, plan, settings["gate"])
