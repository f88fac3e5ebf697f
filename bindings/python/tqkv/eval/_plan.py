# SPDX-License-Identifier: Apache-2.0
"""The jobs of a release run, in two sizes, and what each does. A job is one prompt, one text or one timing,
with all caches that are compared in it, and its result is plain JSON."""
import json
import os
from pathlib import Path
from typing import Any, Dict, List

import torch

from ..errors import InvalidArgument, NotSupported
from . import _profiles, _quality, _rivals, _speed
from ._models import Subject
from ._runs import AGAIN, BASELINE, BROKEN, ask, opened, prefill
from ._tasks import make

DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
# task: (quick contexts, full contexts, facts)
TASKS = {"needle": ((1024, 4096), (1024, 4096, 16384, 32768, 65536, 131072), 1),
         "needles": ((4096,), (4096, 16384, 65536, 131072), 8),
         "pairs": ((1024, 4096), (1024, 4096, 16384, 65536, 131072), 20),
         "tracking": ((2048,), (2048, 8192, 32768), 3),
         "words": ((1024,), (1024, 4096, 16384), 3),
         "chat": ((1024,), (2048, 8192), 6)}
QUICK = (2048, 4096)  # longest contexts of a quick run: of a model, of the constructed one
SPEED = ((1024, 4096), (1024, 4096, 16384, 65536, 131072))
GRID = (4096, 16384)  # on a CPU; a GPU has the longest context with `full`


def jobs(subject: Subject, full: bool, limit: int, trials: int) -> List[Dict[str, Any]]:
    """limit: longest context; contexts that the model has no positions for are left out."""
    longest = min(limit, subject.limit() - 256)
    plan: List[Dict[str, Any]] = []
    for task, (quick, whole, facts) in TASKS.items():
        for context in [c for c in (whole if full else quick) if c <= longest] or [longest]:
            for depth in DEPTHS if task == "needle" else (0.5,):
                plan += [{"job": "task", "task": task, "context": context, "depth": depth, "trial": trial,
                          "facts": facts} for trial in range(trials)]
    context = longest if full and subject.device.type != "cpu" else min(longest, GRID[full])
    if can_recall(subject):
        plan += [{"job": "grid", "context": context, "trial": trial} for trial in range(trials)]
    if subject.name != "constructed":  # no language: where nothing repeats, its distribution has no meaning
        count = 8 if full else 2
        plan += [{"job": "text", "number": i, "tokens": min(longest, 2048 if full else 1024)}
                 for i in range(count)]
        plan += [{"job": "rivals", "number": i, "tokens": min(longest, 2048 if full else 512)}
                 for i in range(2 if full else 1)]
    plan += [{"job": "drift", "number": i, "tokens": min(longest // 2, 512),
              "new": 256 if full else 64} for i in range(4 if full else 1)]
    for context in [c for c in SPEED[full] if c <= longest]:
        plan.append({"job": "speed", "context": context, "new": 64 if full else 16})
    return plan


def can_recall(subject: Subject) -> bool:
    return subject.name != "random"


def cost(job: Dict[str, Any]) -> float:
    """In about the same unit: tokens that are computed, attention's square included."""
    tokens = job.get("context", job.get("tokens", 0))
    times = {"task": 1, "grid": 2, "text": 12, "rivals": 30, "drift": 8, "speed": 6}[job["job"]]
    return times * (2000 + tokens + tokens * tokens / 8192)


class Worker:
    """Does the jobs of one model. seed: of prompts, texts and sampled answers."""

    def __init__(self, subject: Subject, profiles: List[str], seed: int, text: str = "",
                 full: bool = False):
        self.subject, self.seed, self.text, self.full = subject, seed, text, full
        self.profiles = [_profiles.parse(name) for name in profiles]
        self.calibration = _profiles.calibrate(subject)
        self.variants = [AGAIN, BROKEN, *(_profiles.variant(p, self.calibration) for p in self.profiles)]
        tried = prefill(subject, torch.zeros(1, 4, dtype=torch.long, device=subject.device))
        for variant in self.variants:  # a profile that this model cannot have is an error, not a result
            opened(subject, variant, tried)

    def __call__(self, job: Dict[str, Any]) -> Any:
        """{"why": ..} of what this model or its tokenizer does not allow."""
        try:
            return getattr(self, "_" + job["job"])(job)
        except NotSupported as error:
            return {"why": str(error)}

    def _task(self, job):
        prompt = make(self.subject, job["task"], job["context"], job["depth"], job["trial"], self.seed,
                      job["facts"])
        prefilled = prefill(self.subject, prompt.context)
        answers = {v.name: ask(self.subject, v, prompt, prefilled) for v in (BASELINE, *self.variants)}
        sampled = {}
        if job["task"] == "needles":
            seed = self.seed * 7919 + job["trial"]
            sampled = {v.name: ask(self.subject, v, prompt, prefilled, seed)
                       for v in (BASELINE, *self.variants)}
        return {"tokens": prompt.context.shape[1], "depths": [q.depth for q in prompt.questions],
                "answers": answers, "sampled": sampled}

    def _grid(self, job):
        prompt = make(self.subject, "pairs", job["context"], 0.5, 100 + job["trial"], self.seed, 20)
        prefilled = prefill(self.subject, prompt.context)
        rows = {"baseline": [r["right"] for r in ask(self.subject, BASELINE, prompt, prefilled)]}
        for name in _profiles.grid():
            variant = _profiles.variant(_profiles.parse(name), self.calibration)
            rows[name] = [r["right"] for r in ask(self.subject, variant, prompt, prefilled)]
        return rows

    def _texts(self, job):
        held_out = Path(self.subject.name) / "eval.safetensors"
        if not self.text and held_out.exists():
            from safetensors.torch import load_file
            rows = load_file(str(held_out))["text"]
            return rows[job["number"], None, :job["tokens"]].long().to(self.subject.device)
        return _quality.texts(self.subject, job["number"] + 1, job["tokens"], self.text,
                              self.seed)[job["number"]]

    def _text(self, job):
        return _quality.completion(self.subject, self.variants, self._texts(job))

    def _rivals(self, job):
        return _rivals.judge(self.subject, self._texts(job), self.seed, exact_too=self.full)

    def _drift(self, job):
        ids = self._texts({"number": job["number"], "tokens": job["tokens"]})
        return _quality.drift(self.subject, self.variants, ids, job["new"])

    def _speed(self, job):
        rows, memory = {}, available(self.subject)
        for name in _speed.caches(self.profiles):
            profile = next((p for p in self.profiles if p.name == name), None)
            rows[name] = _speed.measure(self.subject, name, profile, self.calibration, job["context"],
                                        job["new"])
            if profile is not None or name == _speed.DYNAMIC:
                rows[name]["fits"] = _speed.fits(self.subject, profile, self.calibration, memory,
                                                 job["context"])
        return {"memory": memory, "device": device_name(self.subject), "rows": rows}


def available(subject: Subject) -> int:
    """Bytes for caches: what the device has less the weights."""
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    if subject.device.type == "cuda":
        return torch.cuda.get_device_properties(subject.device).total_memory - weights
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - weights


def device_name(subject: Subject) -> str:
    if subject.device.type == "cuda":
        return torch.cuda.get_device_name(subject.device)
    return f"CPU, {torch.get_num_threads()} threads"


def settings_of(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """What results depend on."""
    if arguments["trials"] < 1:
        raise InvalidArgument(f"trials = {arguments['trials']}: must be 1 or more")
    return json.loads(json.dumps(arguments))
